"Turn every notebook, with its stored outputs, into a plain HTML page in _docs/, with a page that lists them."
import re
import shutil
from html import escape
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter

from run_notebooks import NBS, ROOT, notebooks

OUT = ROOT/'_docs'
PAGE = '''<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>bdense-nb</title><style>body {{max-width: 46em; margin: 2em auto; padding: 0 1em; font: 16px/1.5 sans-serif}} li {{margin: .4em 0}}</style>
<h1>bdense-nb</h1><p>The notebooks as pages, as they were last run. To change and run them: <code>make lab</code>.</p>
<ol>{}</ol></html>
'''


def title_and_summary(nb) -> tuple[str, str]:
    "What the first markdown cell says: `# title` and `> summary`."
    lines = nb.cells[0].source.splitlines()
    first = lambda mark: next((line.removeprefix(mark).strip() for line in lines if line.startswith(mark)), '')
    return first('# '), first('> ')


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    exporter = HTMLExporter(require_js_url='', jquery_url='', widget_renderer_url='')
    entries = []
    for path in notebooks():
        nb = nbformat.read(path, 4)
        page = Path('home.html' if path.stem == 'index' else path.relative_to(NBS).with_suffix('.html'))
        title, summary = title_and_summary(nb)
        body, _ = exporter.from_notebook_node(nb, resources={'metadata': {'name': title}})
        (OUT/page).parent.mkdir(parents=True, exist_ok=True)
        (OUT/page).write_text(re.sub(r'href="(?![a-z]+:)([^"]+)\.ipynb', r'href="\1.html', body), encoding='utf-8')
        entries.append(f'<li><a href="{page.as_posix()}">{escape(title)}</a>: {escape(summary)}</li>')
    (OUT/'index.html').write_text(PAGE.format('\n'.join(entries)), encoding='utf-8')
    print(f'{len(entries)} pages; open {OUT/"index.html"}')


if __name__ == '__main__': main()
