"""Build the documentation site from the notebooks and their stored outputs: nothing is executed, no network is used.

    python tools/docs.py           # in _docs/
    python tools/docs.py FOLDER
"""
import gc
import shutil
import sys
import tempfile
import time
from pathlib import Path

from sphinx.cmd.build import main as sphinx_build

from docs_live import write_live
from docs_sources import ROOT, SETTINGS, write_sources


HOME = SETTINGS['doc_host'] + SETTINGS['doc_baseurl'] + '/'
LOST = f'''<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><link rel="icon" href="data:,"><title>Not found</title>
<style>:root{{color-scheme:light dark}} body{{font:1.1rem sans-serif;max-width:36rem;margin:20vh auto;padding:1rem}} a{{color:LinkText}}</style>
<main><article><h1>There is no such page</h1><p>Pages have moved since. The <a href="{HOME}">front page</a> has the course,
and its search finds the rest.</p></article></main></html>
'''


def main() -> None:
    gc.disable()  # a seventh of the time would go into looking for garbage, of which there is little
    start, out = time.perf_counter(), Path(sys.argv[1] if sys.argv[1:] else ROOT/'_docs')
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        write_live(work/'live')  # before Sphinx lets every library's log through
        write_sources(work/'sources')
        failed = sphinx_build(['-q', '-W', '--keep-going', '-c', f'{ROOT/"docs"}', '-d', f'{work/"doctrees"}', f'{work/"sources"}', f'{work/"html"}'])
        if failed: sys.exit(failed)
        shutil.move(work/'live', work/'html'/'_static'/'live')
        (work/'html'/'404.html').write_text(LOST, encoding='utf-8')
        shutil.rmtree(out, ignore_errors=True)
        shutil.move(work/'html', out)
    print(f'{len(list(out.rglob("*.html")))} pages in {time.perf_counter() - start:.0f} s; open {out/"index.html"}')


if __name__ == '__main__': main()
