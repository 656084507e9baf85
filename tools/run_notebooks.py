"""Run notebooks top to bottom, each in a fresh kernel, and store their outputs.

    python tools/run_notebooks.py                       # every notebook
    python tools/run_notebooks.py nbs/04_samplers.ipynb # these
"""
import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from queue import Empty

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT/'nbs'
WIDGET, WIDGET_STATE = 'application/vnd.jupyter.widget-view+json', 'application/vnd.jupyter.widget-state+json'
NOTE = 'A live control in JupyterLab; stored here is the picture it starts with.\n'


def notebooks() -> list[Path]:
    "The library notebooks and the tutorials, in reading order."
    return sorted(NBS.glob('*.ipynb')) + sorted((NBS/'tutorials').glob('*.ipynb'))


def is_skipped(source: str) -> bool:
    "Does this cell ask not to be run (`#| eval: false`)?"
    return re.search(r'^#\|\s*eval:\s*false\s*$', source, flags=re.M) is not None


def sliced(get_msg):
    "Wait for a message in slices of one second: one long wait now and then misses a message that is already there."
    async def get(timeout=None):
        deadline = float('inf') if timeout is None else time.monotonic() + timeout
        while True:
            try: return await get_msg(timeout=max(0, min(1, deadline - time.monotonic())))
            except Empty:
                if time.monotonic() >= deadline: raise
    return get


class Client(NotebookClient):
    "nbclient, but it leaves out cells that ask for it and never sleeps through a message."
    async def async_start_new_kernel_client(self):
        client = await super().async_start_new_kernel_client()
        for channel in client.shell_channel, client.iopub_channel: channel.get_msg = sliced(channel.get_msg)
        return client

    async def async_execute_cell(self, cell, cell_index, *args, **kwargs):
        if cell.cell_type == 'code' and is_skipped(cell.source): return cell
        return await super().async_execute_cell(cell, cell_index, *args, **kwargs)


def widget_states(nb) -> dict:
    "The saved state of each widget of a notebook that was run, by id."
    return nb.metadata.get('widgets', {}).get(WIDGET_STATE, {}).get('state', {})


def widget_errors(nb) -> list[str]:
    "Exceptions raised inside widget callbacks: they end up in a widget's own output and stop no cell."
    outputs = [o for w in widget_states(nb).values() for o in w['state'].get('outputs', [])]
    return [f'{o["ename"]}: {o["evalue"]}' for o in outputs if o['output_type'] == 'error']


def freeze_widgets(nb) -> None:
    "Replace each widget by what it shows at first and a note: widget state is random ids, and dead outside JupyterLab."
    states = {i: w['state'] for i, w in widget_states(nb).items()}

    def shown(model: str) -> list:
        state = states.get(model.removeprefix('IPY_MODEL_'), {})
        return state.get('outputs', []) + [o for child in state.get('children', []) for o in shown(child)]

    for cell in nb.cells:
        outputs = []
        for o in cell.get('outputs', []):
            view = o.get('data', {}).get(WIDGET)
            outputs += [o] if view is None else shown(view['model_id']) + [nbformat.v4.new_output('stream', name='stdout', text=NOTE)]
        if cell.cell_type == 'code': cell.outputs = [nbformat.from_dict(o) for o in outputs]
    nb.metadata.pop('widgets', None)


def execute(path: Path, timeout: int = 300):
    "The notebook at `path` after a run in a fresh kernel whose working folder is the notebook's."
    nb = nbformat.read(path, 4)
    Client(nb, timeout=timeout, kernel_name='python3', record_timing=False, extra_arguments=['--log-level=ERROR'],
           resources={'metadata': {'path': str(path.parent)}}).execute()
    return nb


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('notebook', nargs='*', type=Path, help='which ones (all, if none is named)')
    p.add_argument('--timeout', type=int, default=600, help='seconds a cell may take (600)')
    args = p.parse_args()
    paths = [path.resolve() for path in args.notebook] or notebooks()
    for path in paths:
        start = time.perf_counter()
        nb = execute(path, args.timeout)
        if errors := widget_errors(nb): sys.exit(f'{path}: a widget failed: {errors}')
        freeze_widgets(nb)
        nbformat.write(nb, path)
        print(f'{time.perf_counter() - start:6.1f} s  {os.path.relpath(path)}', flush=True)
        subprocess.run([Path(sys.executable).with_name('nbdev_clean'), '--fname', path], cwd=ROOT, check=True)


if __name__ == '__main__': main()
