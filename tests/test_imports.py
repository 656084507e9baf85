"Imports between the library's modules go one way only."
import ast

import pytest

ALLOWED = {  # module: the modules it may import
    'core': '',
    'data': 'core',
    'schedules': 'core',
    'nets': 'core',
    'losses': 'core',
    'checkpoints': 'core',
    'devices': 'core',
    'hooks': 'core checkpoints',
    'training': 'core checkpoints devices hooks',
    'teachers': 'core data schedules nets training',
    'samplers': 'core schedules teachers',
    'branches': 'core nets teachers',
    'targets': 'core schedules teachers samplers',
    'trajectories': 'core nets checkpoints training teachers samplers',
    'students': 'core training teachers samplers branches trajectories',
    'sfd': 'core schedules teachers samplers branches targets losses training trajectories students',
    'variable': 'core schedules teachers samplers branches targets losses training trajectories students sfd',
    'progressive': 'core schedules teachers branches targets losses training trajectories students',
    'intervals': 'core',
    'metrics': 'core data nets training intervals',
    'features': 'core data metrics',
    'viz': 'core data schedules teachers samplers targets metrics',
    'interop': 'core nets teachers samplers branches trajectories students',
    'distill': 'core schedules training teachers trajectories students sfd variable progressive',
    'alignment': 'core samplers branches targets trajectories students sfd progressive distill metrics',
    'search': 'core checkpoints losses training teachers trajectories sfd distill metrics',
    'experiments': 'core checkpoints data schedules branches nets training students teachers samplers trajectories variable distill metrics',
    'widgets': 'core data schedules nets training teachers samplers branches targets losses trajectories students distill metrics viz',
    'cli': '',
    'commands': 'cli core data schedules nets training teachers samplers branches targets losses trajectories students variable interop distill metrics features search experiments viz widgets',
    'notebooks': 'core cli',
}
ALLOWED = {module: set(names.split()) for module, names in ALLOWED.items()}


def imported(source: str) -> set[str]:
    "The modules of bdense_nb that this source imports, anywhere in it."
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import): names |= {a.name for a in node.names}
        if isinstance(node, ast.ImportFrom):
            base = '.'.join(filter(None, ['bdense_nb' if node.level else '', node.module]))
            names |= {f'{base}.{a.name}' for a in node.names} if base == 'bdense_nb' else {base}
    return {name.split('.')[1] for name in names if name.startswith('bdense_nb.')} - {'__version__'}


def modules(root):
    return {p.stem: p for p in (root/'bdense_nb').glob('*.py') if p.stem not in ('__init__', '_modidx')}


def test_imports_go_one_way(root):
    wrong = {f'{module} <- {name}' for module, path in modules(root).items()
             for name in imported(path.read_text()) - ALLOWED.get(module, set())}
    assert not wrong, f'arrows that the table of layers does not allow: {sorted(wrong)}'


def test_every_module_is_in_the_table(root):
    assert not modules(root).keys() - ALLOWED.keys(), 'a new module needs its place in the table of layers'


def test_table_has_no_circle():
    order = list(ALLOWED)
    assert all(order.index(name) < order.index(module) for module, names in ALLOWED.items() for name in names)


@pytest.mark.parametrize('line', ['from bdense_nb.distill import sfd', 'from .distill import sfd', 'import bdense_nb.distill', 'from bdense_nb import distill',
                                  'from . import distill', 'def f():\n    from .distill import sfd'])
def test_every_form_of_import_is_seen(line):
    assert imported(line) == {'distill'}


def test_library_imports_without_notebook_tools(root):
    for path in modules(root).values():
        tree = ast.walk(ast.parse(path.read_text()))
        names = {a.name.split('.')[0] for n in tree if isinstance(n, ast.Import) for a in n.names}
        assert not names & {'nbdev', 'pytest', 'IPython'}, f'{path.name} imports a development tool'
