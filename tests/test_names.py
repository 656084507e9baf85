"No undefined name, unused import or other slip that a linter sees: in the library, the tools and the tests."
import ast
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def ruff(*options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, '-m', 'ruff', 'check', '--no-cache', *options], cwd=ROOT, capture_output=True, text=True)


def test_names():
    "As `make sync` checks them."
    done = ruff('--output-format=concise')
    assert done.returncode == 0, done.stdout + done.stderr


def test_slips_are_seen(tmp_path):
    (tmp_path/'slips.py').write_text('import os\nx = undefined; y = 1\n')
    found = json.loads(ruff('--output-format=json', '--config', ROOT/'pyproject.toml', tmp_path).stdout)
    assert {f['code'] for f in found} == {'F401', 'F821', 'E702'}


def test_the_library_keeps_to_100_columns_and_to_one_statement_a_line():
    "But for the lists of names, and first lines, which nbdev writes."
    found = ruff('--select=E501,E702,E703', '--output-format=json', ROOT/'bdense_nb')
    lines = [(Path(f['filename']), f['location']['row']) for f in json.loads(found.stdout)]
    def generated(path, row):
        names = [n for n in ast.parse(path.read_text(encoding='utf-8')).body if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '') == '__all__']
        return row == 1 or any(n.lineno <= row <= n.end_lineno for n in names)
    assert not [f'{path.relative_to(ROOT)}:{row}' for path, row in lines if not generated(path, row)]
