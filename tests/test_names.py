"No undefined name, unused import or other slip that pyflakes sees: in the library, the tools and the tests."
import io
import re
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
