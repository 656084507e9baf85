"No undefined name, unused import or other slip that a linter sees: in the library, the tools and the tests."

import ast
import functools
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def ruff(*options, do: str = 'check') -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, '-m', 'ruff', do, '--no-cache', *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_names():
    "As `make sync` checks them."
    done = ruff('--output-format=concise')
    assert done.returncode == 0, done.stdout + done.stderr


def test_everything_is_formatted():
    "As `make sync` formats it: notebooks, tests and tools; the library is exported from formatted notebooks."
    done = ruff('--check', do='format')
    assert done.returncode == 0, done.stdout + done.stderr


def test_slips_are_seen(tmp_path):
    (tmp_path / 'slips.py').write_text('import os\nx = undefined; y = 1\n')
    found = json.loads(
        ruff('--output-format=json', '--config', ROOT / 'pyproject.toml', tmp_path).stdout
    )
    assert {f['code'] for f in found} == {'F401', 'F821', 'E702'}


def test_the_library_keeps_to_100_columns_and_to_one_statement_a_line():
    "But for the lists of names, and first lines, which nbdev writes."
    found = ruff('--select=E501,E702,E703', '--output-format=json', ROOT / 'bdense_nb')
    lines = [(Path(f['filename']), f['location']['row']) for f in json.loads(found.stdout)]

    @functools.cache
    def names_of(path):
        names = [
            n
            for n in ast.parse(path.read_text(encoding='utf-8')).body
            if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '') == '__all__'
        ]
        return [range(n.lineno, n.end_lineno + 1) for n in names]

    def generated(path, row):
        return row == 1 or any(row in lines for lines in names_of(path))

    assert not [
        f'{path.relative_to(ROOT)}:{row}' for path, row in lines if not generated(path, row)
    ]


MISTAKES = {
    'ValueError',
    'TypeError',
    'FloatingPointError',
    'FileNotFoundError',
    'ImportError',
    'ConnectionError',
}


def refusals(node: ast.AST, times: int = 1) -> int:
    "How many refusals a cell shows: a caller's mistake that it catches; in a loop or a function that is many."
    if isinstance(node, ast.For | ast.While | ast.FunctionDef | ast.Lambda | ast.comprehension):
        times = 99
    caught = (
        isinstance(node, ast.ExceptHandler)
        and node.type
        and {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)} & MISTAKES
    )
    expected = isinstance(node, ast.Call) and ast.unparse(node.func).split('.')[-1] in (
        'test_fail',
        'raises',
        'refused',
    )
    return times * bool(caught or expected) + sum(
        refusals(child, times) for child in ast.iter_child_nodes(node)
    )


def cells(path: Path) -> list[str]:  # what a reader runs, and not what is exported
    found = [
        ''.join(c['source'])
        for c in json.loads(path.read_text(encoding='utf-8'))['cells']
        if c['cell_type'] == 'code'
    ]
    return [
        '\n'.join(line for line in code.splitlines() if line[:1] not in '%!')
        for code in found
        if '#| export' not in code
    ]


def test_a_library_notebook_shows_a_refusal_at_most_once():
    "One teaches what an error looks like; tables of them belong into tests."
    shown = {
        path.relative_to(ROOT / 'nbs').as_posix(): sum(
            refusals(ast.parse(code)) for code in cells(path)
        )
        for path in sorted((ROOT / 'nbs').glob('*/*.ipynb')) + [ROOT / 'nbs' / '00_core.ipynb']
        if path.parent.name != 'course'
    }
    assert len(shown) > 35 and 1 in shown.values()
    assert not [name for name, n in shown.items() if n > 1]


def test_refusals_are_counted():
    once = 'try: f()\nexcept (OSError, ValueError) as e: print(e)'
    assert (
        refusals(ast.parse(once)) == 1
        and refusals(ast.parse(f'{once}\ntest_fail(f)\npytest.raises(ValueError)')) == 3
    )
    assert refusals(ast.parse('for f in g:\n  ' + once.replace('\n', '\n  '))) > 1 and not refusals(
        ast.parse(once.replace('ValueError', 'KeyError'))
    )
