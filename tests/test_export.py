"The library is what the notebooks export, the notebooks are clean, and README.md is what nbs/index.ipynb says."
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from run_notebooks import NBS, notebooks

SKIP = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')


def contents(root: Path) -> dict[str, bytes]:
    "Every file of the library and the notebooks under `root`, by relative path."
    found = [p for folder in ('bdense_nb', 'nbs') for p in (root/folder).rglob('*') if p.is_file()]
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in found if not {'__pycache__', '.ipynb_checkpoints'} & set(p.parts)}


def nbdev(command: str, cwd: Path) -> None:
    "Run one nbdev command there."
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'}
    subprocess.run([Path(sys.executable).with_name(command)], cwd=cwd, env=env, check=True, capture_output=True)


def test_library_is_what_the_notebooks_export(root, tmp_path):
    for name in ('settings.ini', 'pyproject.toml'): shutil.copy(root/name, tmp_path)
    for name in ('bdense_nb', 'nbs'): shutil.copytree(root/name, tmp_path/name, ignore=SKIP)
    for module in (tmp_path/'bdense_nb').rglob('*.py'):  # so that a module whose notebook is gone does not come back
        if module.name != '__init__.py': module.unlink()
    nbdev('nbdev_export', tmp_path)
    nbdev('nbdev_clean', tmp_path)
    here, fresh = contents(root), contents(tmp_path)
    changed = sorted(name for name in here.keys() | fresh.keys() if here.get(name) != fresh.get(name))
    assert not changed, f'not what the notebooks give (run `make sync`; delete the module of a notebook that is gone): {changed}'


@pytest.mark.parametrize('path', notebooks(), ids=lambda p: p.relative_to(NBS).as_posix())
def test_notebook_is_well_formed(path):
    nb = nbformat.from_dict(json.loads(path.read_text(encoding='utf-8')))  # as it is: nbformat.read would add what is missing
    ids = [cell.get('id') for cell in nb.cells]
    assert all(ids) and len(set(ids)) == len(ids), 'each cell needs an id of its own (run `make sync`)'
    nbformat.validate(nb)
    assert 'widgets' not in nb.metadata, 'saved widget state is noise: store outputs with tools/run_notebooks.py'
    errors = [o.ename for cell in nb.cells for o in cell.get('outputs', []) if o.output_type == 'error']
    assert not errors, f'stored outputs hold errors: {errors}'
    lessons = [source for cell in nb.cells if cell.cell_type == 'code' and not (source := ''.join(cell.source)).startswith('#| export')]
    wide = [line for source in lessons for line in source.splitlines() if len(line) > 120]
    assert not wide, f'wider than a laptop\'s window, 120 characters: {wide}'


def test_readme_is_fresh(root):
    check = subprocess.run([sys.executable, root/'tools'/'readme.py', '--check'], capture_output=True, text=True)
    assert check.returncode == 0, check.stderr
