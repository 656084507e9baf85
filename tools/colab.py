"""Write the notebooks as Google Colab opens them: a cell that installs the package stands above each lesson, and every link is an address.

python tools/colab.py           # in _colab/; the workflow `docs` pushes that folder to the branch that the Colab links open
python tools/colab.py FOLDER
"""

import shutil
import sys
from pathlib import Path
from posixpath import join, normpath

import nbformat
from nbformat.v4 import new_code_cell

from bdense_nb.app.course import PICTURES, relink
from docs_sources import BRANCH, COLAB, GIT, Page, SETTINGS, pages
from run_notebooks import ROOT

INSTALL = f'''#@title Run this first: it installs {SETTINGS['lib_name']} (about a minute)
%pip install -q "{SETTINGS['lib_name']}[notebooks] @ git+{GIT}@{BRANCH}"'''


def for_colab(page: Page):
    "The notebook with the cell that installs the package below its title."

    def address(link):
        inside = normpath(join('nbs', page.doc, '..', link))
        return (
            f'{COLAB}/{inside}'
            if inside.startswith('nbs/')
            else f'{GIT}/{"raw" if inside.endswith(PICTURES) else "blob"}/{BRANCH}/{inside}'
        )

    nb = nbformat.read(page.path, 4)
    for cell in nb.cells:
        if cell.cell_type == 'markdown':
            cell.source = relink(cell.source, address)
    nb.cells.insert(1, new_code_cell(INSTALL, id='install', metadata={'cellView': 'form'}))
    return nb


def main() -> None:
    out = Path(sys.argv[1] if sys.argv[1:] else ROOT / '_colab')
    shutil.rmtree(out, ignore_errors=True)
    for page in pages():
        path = out / 'nbs' / f'{page.doc}.ipynb'
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(for_colab(page), path)
    print(f'{len(pages())} notebooks in {out}')


if __name__ == '__main__':
    main()
