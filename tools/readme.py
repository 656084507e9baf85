"""Write README.md from nbs/index.ipynb, and CITATION.cff from settings.ini.

python tools/readme.py           # write it
python tools/readme.py --check   # only say whether it is up to date
"""

import base64
import posixpath
import re
import sys
from configparser import ConfigParser
from pathlib import Path

import nbformat

from bdense_nb.app.course import relink

ROOT = Path(__file__).resolve().parent.parent
INDEX, README, CITATION, IMAGES = (
    ROOT / 'nbs' / 'index.ipynb',
    ROOT / 'README.md',
    ROOT / 'CITATION.cff',
    'docs/readme',
)
PAPER = dict(
    title='B-DENSE: Branching For Dense Ensemble Network Learning',
    year=2026,
    arxiv='2602.15971',
    authors=(
        ('Cherish', 'Puniani'),
        ('Tushar', 'Kumar'),
        ('Arnav', 'Bendre'),
        ('Gaurav', 'Kumar'),
        ('Shree', 'Singhi'),
    ),
)  # as arXiv lists it
HEAD = '<!-- Written by `make sync` from nbs/index.ipynb: change that, not this. -->\n\n'


def from_root(markdown: str) -> str:
    "Relative links are written for nbs/; here they start at the repository's root."
    return relink(markdown, lambda link: posixpath.normpath(posixpath.join('nbs', link)))


def output_markdown(output, name: str, images: dict[str, bytes]) -> str:
    "One stored output as markdown; a picture becomes a file."
    data = output.get('data', {})
    if 'image/png' in data:
        images[f'{IMAGES}/{name}.png'] = base64.b64decode(data['image/png'])
        return f'![]({IMAGES}/{name}.png)'
    if 'text/markdown' in data:
        return from_root(data['text/markdown'])
    text = output.get('text') or data.get('text/plain', '')
    return f'```text\n{text.rstrip()}\n```' if text.strip() else ''


def code_markdown(cell, images: dict[str, bytes]) -> list[str]:
    "A code cell as a fenced block followed by its stored outputs."
    lines = cell.source.splitlines()
    directives = [re.sub(r'\s', '', line) for line in lines if line.startswith('#|')]
    if {'#|hide', '#|include:false'} & set(directives):
        return []
    code = '\n'.join(line for line in lines if not line.startswith('#|')).strip()
    parts = [] if '#|echo:false' in directives or not code else [f'```python\n{code}\n```']
    return parts + [
        output_markdown(o, f'{cell.id}-{i}', images) for i, o in enumerate(cell.outputs)
    ]


def citation() -> str:
    "CITATION.cff, from settings.ini."
    ini = ConfigParser(delimiters=['='])
    ini.read(ROOT / 'settings.ini', encoding='utf-8')
    cfg = ini['DEFAULT']
    return (
        '\n'.join(
            [
                '# Written by `make sync` from settings.ini: change that, not this.',
                'cff-version: 1.2.0',
                'type: software',
                'message: If this software helped your work, please cite it and the paper whose method it teaches.',
                f'title: "{cfg["title"]}: {cfg["description"]}"',
                'authors:',
                f'  - name: {cfg["author"]}',
                f'version: {cfg["version"]}',
                'license: Apache-2.0',
                f'repository-code: {cfg["git_url"]}',
                f'url: {cfg["doc_host"]}{cfg["doc_baseurl"]}',
                'references:',
                '  - type: article',
                f'    title: "{PAPER["title"]}"',
                '    authors:',
                *(
                    f'      - given-names: {given}\n        family-names: {family}'
                    for given, family in PAPER['authors']
                ),
                f'    year: {PAPER["year"]}',
                f'    url: https://arxiv.org/abs/{PAPER["arxiv"]}',
                '    identifiers:',
                '      - type: other',
                f'        value: arXiv:{PAPER["arxiv"]}',
            ]
        )
        + '\n'
    )


def render() -> dict[str, bytes]:
    "README.md and its pictures, and CITATION.cff: path from the root to contents."
    images, parts = {}, []
    for cell in nbformat.read(INDEX, 4).cells:
        if cell.cell_type == 'markdown':
            parts.append(from_root(cell.source.strip()))
        elif cell.cell_type == 'code':
            parts += code_markdown(cell, images)
    return {
        README.name: (HEAD + '\n\n'.join(filter(None, parts)) + '\n').encode(),
        CITATION.name: citation().encode(),
        **images,
    }


def main() -> None:
    check = '--check' in sys.argv[1:]
    if set(sys.argv[1:]) - {'--check'}:
        sys.exit(__doc__)
    files = render()
    existing = {
        p.relative_to(ROOT).as_posix(): p.read_bytes()
        for p in [README, CITATION, *(ROOT / IMAGES).glob('*.png')]
        if p.is_file()
    }
    if check:
        sys.exit(
            0
            if files == existing
            else 'README.md or CITATION.cff is not what nbs/index.ipynb and settings.ini give: run `make sync`'
        )
    for path in set(existing) - set(files):
        (ROOT / path).unlink()
    for path, content in files.items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_bytes(content)


if __name__ == '__main__':
    main()
