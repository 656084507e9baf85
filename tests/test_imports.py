"Imports inside the library go down only: from a package to packages on lower floors, and inside a package without a circle."

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

FLOORS = [
    {'app'},
    {'applications'},
    {'lab', 'interop'},
    {'distillation', 'evaluation'},
    {'diffusion', 'training'},
    {'core'},
]  # rooms of one floor never meet
LIB = Path(__file__).resolve().parent.parent / 'bdense_nb'


def floor(package: str) -> int:
    "How deep a package lies; `__init__`, at the top of the library, stands above them all."
    return next((depth for depth, rooms in enumerate(FLOORS) if package in rooms), -1)


def modules() -> dict[str, Path]:
    "Every module of the library by its dotted name; a package by its own."
    names = {
        p: p.relative_to(LIB)
        .with_suffix('')
        .as_posix()
        .replace('/', '.')
        .removesuffix('__init__')
        .strip('.')
        for p in LIB.rglob('*.py')
    }
    return {name: path for path, name in names.items() if name not in ('', '_modidx')}


@cache
def statements(source: str) -> list[ast.AST]:
    "The imports of a source, which is parsed once."
    return [n for n in ast.walk(ast.parse(source)) if isinstance(n, (ast.Import, ast.ImportFrom))]


def imported(source: str, module: str = '', is_package: bool = False) -> set[str]:
    "What this source imports of the library, anywhere in it, as dotted names (a module, or a name inside one)."
    base, found = ['bdense_nb', *module.split('.')][: None if is_package else -1], set()
    for node in statements(source):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        if isinstance(node, ast.ImportFrom):
            start = '.'.join(
                [
                    *(base[: len(base) - node.level + 1] if node.level else []),
                    *filter(None, [node.module]),
                ]
            )
            found |= {f'{start}.{a.name}' for a in node.names}
    return {name.removeprefix('bdense_nb.') for name in found if name.startswith('bdense_nb.')}


def arrows() -> set[tuple[str, str]]:
    "(module, module that it imports)."
    known, found = modules(), set()
    for module, path in known.items():
        for name in imported(path.read_text(), module, path.name == '__init__.py'):
            while name and name not in known:
                name = name.rpartition('.')[0]
            if name and name != module:
                found.add((module, name))
    return found


def test_arrows_go_down():
    wrong = {
        f'{a} -> {b}'
        for a, b in arrows()
        if a.split('.')[0] != b.split('.')[0] and floor(b.split('.')[0]) <= floor(a.split('.')[0])
    }
    assert not wrong, f'imports that do not lead to a lower floor: {sorted(wrong)}'


def test_no_circle_inside_a_package():
    graph = {}
    for a, b in arrows():
        if a not in {room for rooms in FLOORS for room in rooms}:
            graph.setdefault(a, set()).add(b)
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as e:
        pytest.fail(f'modules that import one another: {e.args[1]}')


def test_every_package_has_its_floor():
    packages = {p.parent.name for p in LIB.glob('*/__init__.py')}
    assert packages == {room for rooms in FLOORS for room in rooms} - {'core'} and len(FLOORS) <= 6


@pytest.mark.parametrize(
    'line, found',
    [
        ('from bdense_nb.lab.search import x', 'lab.search.x'),
        ('from ..lab.search import x', 'lab.search.x'),
        ('from .sfd import x', 'distillation.sfd.x'),
        ('import bdense_nb.lab.search', 'lab.search'),
        ('from bdense_nb import lab', 'lab'),
        ('from .. import lab', 'lab'),
        ('from . import sfd', 'distillation.sfd'),
        ('def f():\n    from ..lab.search import x', 'lab.search.x'),
    ],
)
def test_every_form_of_import_is_seen(line, found):
    assert imported(line, 'distillation.branches') == {found}


def test_an_arrow_that_goes_up_is_seen():
    sources = {
        'distillation.branches': 'from ..training.loop import fit',
        'diffusion.nets': 'def f():\n    from ..training.loop import fit',
        'evaluation.metrics': 'import bdense_nb.distillation.sfd',
        'lab.search': 'from bdense_nb.app import commands',
    }
    up = {
        module
        for module, source in sources.items()
        for name in imported(source, module)
        if floor(name.split('.')[0]) <= floor(module.split('.')[0])
    }
    assert up == {'diffusion.nets', 'evaluation.metrics', 'lab.search'}


def test_library_imports_without_notebook_tools():
    for path in modules().values():
        names = {
            a.name.split('.')[0]
            for n in statements(path.read_text())
            if isinstance(n, ast.Import)
            for a in n.names
        }
        assert not names & {'nbdev', 'pytest', 'IPython'}, f'{path.name} imports a development tool'
