"""Build the documentation site from the notebooks and their stored outputs: nothing is executed, no network is used.

python tools/docs.py           # in _docs/
python tools/docs.py FOLDER
"""

import argparse
import gc
import shutil
import sys
import tempfile
import time
from pathlib import Path

from sphinx.cmd.build import main as sphinx_build

from docs_live import write_live
from docs_sources import ROOT, SETTINGS, write_sources


BASE = SETTINGS['doc_baseurl'] + '/'
# a page that is missing can lie in any folder: where the site has its address, all of its links start from there
FROM_BASE = f'<head><base href="{BASE}"><script>location.pathname.startsWith("{BASE}") || document.querySelector("base").remove()</script>'


def told(out: Path, seconds: float) -> str:
    "What is said in the end."
    return f'{len(list(out.rglob("*.html")))} pages in {seconds:.0f} s; open {out / "index.html"}\nThe live page needs a server: python -m http.server -d {out}, then http://localhost:8000/live.html'


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument('folder', type=Path, nargs='?', default=ROOT / '_docs')
    out, start = p.parse_args().folder, time.perf_counter()
    gc.disable()  # a seventh of the time would go into looking for garbage, of which there is little
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        write_live(work / 'live')  # before Sphinx lets every library's log through
        write_sources(work / 'sources')
        failed = sphinx_build(
            [
                '-q',
                '-W',
                '--keep-going',
                '-c',
                f'{ROOT / "docs"}',
                '-d',
                f'{work / "doctrees"}',
                f'{work / "sources"}',
                f'{work / "html"}',
            ]
        )
        if failed:
            sys.exit(failed)
        shutil.move(work / 'live', work / 'html' / '_static' / 'live')
        lost = work / 'html' / '404.html'
        lost.write_text(
            lost.read_text(encoding='utf-8').replace('<head>', FROM_BASE, 1), encoding='utf-8'
        )
        shutil.rmtree(out, ignore_errors=True)
        shutil.move(work / 'html', out)
    print(told(out, time.perf_counter() - start))


if __name__ == '__main__':
    main()
