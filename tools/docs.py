"""Build the documentation site in _docs/ from the notebooks and their stored outputs: nothing is executed, no network is used.

    python tools/docs.py
"""
import shutil
import sys
import time

from sphinx.cmd.build import main as sphinx_build

from docs_sources import ROOT, write_sources

OUT, BUILD = ROOT/'_docs', ROOT/'build'/'docs'


def main() -> None:
    start = time.perf_counter()
    shutil.rmtree(BUILD, ignore_errors=True)
    write_sources(BUILD/'sources')
    options = ['-q', '-W', '--keep-going', '-c', ROOT/'docs', '-d', BUILD/'doctrees']
    if failed := sphinx_build([str(o) for o in (*options, BUILD/'sources', BUILD/'html')]): sys.exit(failed)
    shutil.rmtree(OUT, ignore_errors=True)
    shutil.move(BUILD/'html', OUT)
    print(f'{len(list(OUT.rglob("*.html")))} pages in {time.perf_counter() - start:.0f} s; open {OUT/"index.html"}')


if __name__ == '__main__': main()
