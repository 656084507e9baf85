"No undefined name, unused import or other slip that pyflakes sees: in the library, the tools and the tests."
import ast
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pyflakes.api import checkPath
from pyflakes.reporter import Reporter

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(p for folder in ('bdense_nb', 'tools', 'tests') for p in (ROOT/folder).rglob('*.py'))


@pytest.mark.parametrize('path', [ROOT/'setup.py', *FILES], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_names(path):
    report = io.StringIO()
    checkPath(str(path), Reporter(report, report))
    found = [line for line in report.getvalue().splitlines() if not re.search(r"import \*' used|\.\*' imported but unused", line)]  # old names are re-exported by a star
    if found: pytest.fail('\n'.join(found), pytrace=False)


def test_the_library_keeps_to_100_columns_and_to_one_statement_a_line():
    "But for the lists of names, and first lines, which nbdev writes."
    found = subprocess.run([sys.executable, '-m', 'ruff', 'check', '--isolated', '--line-length=100', '--select=E501,E702,E703', '--output-format=json',
                            '--exclude=_modidx.py', ROOT/'bdense_nb'], capture_output=True, text=True)
    lines = [(Path(f['filename']), f['location']['row']) for f in json.loads(found.stdout)]
    def generated(path, row):
        names = [n for n in ast.parse(path.read_text(encoding='utf-8')).body if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '') == '__all__']
        return row == 1 or any(n.lineno <= row <= n.end_lineno for n in names)
    assert not [f'{path.relative_to(ROOT)}:{row}' for path, row in lines if not generated(path, row)]
