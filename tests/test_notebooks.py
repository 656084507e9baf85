"Every notebook runs top to bottom in a fresh kernel."
import pytest

from run_notebooks import NBS, execute, notebooks, widget_errors


@pytest.mark.parametrize('path', notebooks(), ids=lambda p: p.relative_to(NBS).as_posix())
def test_notebook_runs(path):
    nb = execute(path, timeout=240)
    assert not widget_errors(nb), 'a widget callback raised'
