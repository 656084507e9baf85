"""Run notebooks top to bottom, each in a fresh kernel, and store their outputs.

python tools/run_notebooks.py                       # every notebook
python tools/run_notebooks.py nbs/diffusion/03_samplers.ipynb # these
python tools/run_notebooks.py --check               # store nothing; say where a run, from an empty folder, prints something else than what is stored
"""

import argparse
import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from queue import Empty

import nbformat
import zmq
from jupyter_client.asynchronous import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from nbclient import NotebookClient

from forks import WARM

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / 'nbs'
FOLDERS = {
    'course': 'Course',
    'diffusion': 'Diffusion',
    'distillation': 'Distillation',
    'training': 'Training',
    'evaluation': 'Evaluation',
    'interop': 'Other libraries',
    'lab': 'The lab',
    'app': 'Commands',
    'applications': 'Applications',
    'gpu': 'On a GPU',
}  # below nbs/, in reading order, and what the site calls them
WIDGET, WIDGET_STATE = (
    'application/vnd.jupyter.widget-view+json',
    'application/vnd.jupyter.widget-state+json',
)
NOTE = 'A live control in JupyterLab; stored here is the picture it starts with.\n'
ANSWER = 'answer'  # in the metadata of a cell that answers a prediction: its outputs. No viewer shows them before the reader has run the cell


def notebooks() -> list[Path]:
    "Every notebook in reading order: those in nbs/ itself, then each folder of `FOLDERS`."
    number = lambda path: int(re.match(r'\d*', path.stem)[0] or 0)
    return [
        path
        for folder in ('', *FOLDERS)
        for path in sorted(
            (NBS / folder).glob('*.ipynb'), key=lambda path: (number(path), path.name)
        )
    ]


def is_skipped(source: str) -> bool:
    "Does this cell ask not to be run (`#| eval: false`)?"
    return re.search(r'^#\|\s*eval:\s*false\s*$', source, flags=re.M) is not None


def sliced(get_msg):
    "Wait for a message in slices of one second: one long wait now and then misses a message that is already there."

    async def get(timeout=None):
        deadline = float('inf') if timeout is None else time.monotonic() + timeout
        while True:
            try:
                return await get_msg(timeout=max(0, min(1, deadline - time.monotonic())))
            except Empty:
                if time.monotonic() >= deadline:
                    raise

    return get


KERNEL = (
    f'FORKED = {str(Path(__file__).with_name("forked.py"))!r}'
    + """
import os, sys, matplotlib
sys.modules['debugpy'] = None  # nobody looks for it here
os.environ['MPLBACKEND'] = 'module://matplotlib_inline.backend_inline'  # not what the asking process draws with
matplotlib.rcParams['backend'] = os.environ['MPLBACKEND']
if 'BDENSE_FORKS' in os.environ and os.path.exists('/proc/self/fd'):
    sys.executable = FORKED  # what a lesson starts has imported PyTorch, too
from ipykernel import kernelapp as app
app.launch_new_instance([*sys.argv[1:], f'--IPKernelApp.parent_handle={os.getppid()}'])
app.IPKernelApp.instance().control_thread.join(5)  # else its last flush may meet what is closed already, and wait for ten seconds
"""
)


class Forked(LocalProvisioner):
    "A kernel in a fork of a process that has imported what most notebooks import: seconds less for each."

    async def launch_kernel(self, cmd, **kwargs):
        options = cmd[cmd.index('-f') :]
        self.process = WARM.begin('-c', KERNEL, *options, cwd=kwargs['cwd'], env=kwargs['env'])
        self.pid = self.pgid = self.process.pid
        self.cwd = kwargs['cwd']
        return self.connection_info


class Ready(AsyncKernelClient):
    "Of a kernel that is ready as soon as it has answered on both channels: what it said before is no cell's, so no silence is waited for."

    async def _async_wait_for_ready(self, timeout=None):
        async with asyncio.timeout(timeout):
            while await self.is_alive():
                self.kernel_info()
                with suppress(Empty):
                    await self.get_shell_msg(timeout=1)
                    await self.get_iopub_msg(timeout=0.05)
                    return
        raise RuntimeError('the kernel died before it answered')

    wait_for_ready = _async_wait_for_ready


class Kernels(AsyncKernelManager):
    client_factory = Ready

    def client(self, **how):
        self.context.setsockopt(
            zmq.RECONNECT_IVL, 10
        )  # milliseconds: the kernel is there in less than the usual hundred
        return super().client(**how)

    async def _async_finish_shutdown(self, waittime=None, pollinterval=0.02, restart=False):
        await super()._async_finish_shutdown(waittime, pollinterval, restart)

    async def pre_start_kernel(self, **kw):
        return await self._async_pre_start_kernel(**kw)

    async def _async_pre_start_kernel(self, **kw):
        if self.provisioner is None:
            self.provisioner = Forked(
                kernel_id=self.kernel_id, kernel_spec=self.kernel_spec, parent=self
            )
        return await super()._async_pre_start_kernel(**kw)


class Client(NotebookClient):
    "nbclient, but it leaves out cells that ask for it and never sleeps through a message."

    async def async_start_new_kernel_client(self):
        client = await super().async_start_new_kernel_client()
        for channel in client.shell_channel, client.iopub_channel:
            channel.get_msg = sliced(channel.get_msg)
        return client

    async def async_execute_cell(self, cell, cell_index, *args, **kwargs):
        if cell.cell_type == 'code' and is_skipped(cell.source):
            return cell
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
        return state.get('outputs', []) + [
            o for child in state.get('children', []) for o in shown(child)
        ]

    for cell in nb.cells:
        outputs = []
        for o in cell.get('outputs', []):
            view = o.get('data', {}).get(WIDGET)
            outputs += (
                [o]
                if view is None
                else shown(view['model_id'])
                + [nbformat.v4.new_output('stream', name='stdout', text=NOTE)]
            )
        if cell.cell_type == 'code':
            cell.outputs = [nbformat.from_dict(o) for o in outputs]
    nb.metadata.pop('widgets', None)


def hide_answers(nb) -> None:
    "Move what an answering cell has given to where no viewer looks."
    for cell in nb.cells:
        if ANSWER in cell.metadata:
            cell.metadata[ANSWER], cell.outputs = cell.outputs, []


def stored(path: Path):
    "A notebook as it was stored, with the outputs of its answers in their cells."
    nb = nbformat.read(path, 4)
    for cell in nb.cells:
        if ANSWER in cell.metadata:
            cell.outputs = cell.metadata[ANSWER]
    return nb


TIMED = re.compile(
    r'perf_counter|process_time|peak_memory|_per_second|METRICS'
)  # in the code of cells whose numbers are the machine's
UNLIKE = re.compile(
    r'<[\w.]+ object( at \w+)?>|[\w./-]*/tmp\w*/[\w./-]*|\d[\d.,]* ?(µs|ms|s|seconds?|min|minutes?|[kMG]B)\b(?!\^)|\d[\d.,]* \w+ a second|\d+:\d\d'
)


def printed(cell) -> str:
    "What a cell printed, without what differs from run to run: times, memory, addresses, temporary folders, the seventh digit. Pictures, bars and warnings are left out."
    if cell.cell_type != 'code' or TIMED.search(cell.source):
        return ''
    parts = [
        o.get('data', {}) | {'text/plain': o.get('text', o.get('data', {}).get('text/plain', ''))}
        for o in cell.outputs
        if o.get('name') != 'stderr'
    ]
    text = UNLIKE.sub(
        '',
        ''.join(
            p.get('text/markdown', p['text/plain'])
            for p in parts
            if not {'image/png', WIDGET} & set(p)
        ),
    ).strip()
    return re.sub(r'\d+\.\d+(e[-+]\d+)?', lambda m: f'{float(m[0]):.6g}', text)


def differences(stored, fresh) -> list[str]:
    "Cells of two runs of a notebook that printed different things: the cell, and the first line that differs."
    found = []
    for a, b in zip(stored.cells, fresh.cells):
        lines = [text.splitlines() for text in (printed(a), printed(b))]
        first = next(
            (f'{x!r} then {y!r}' for x, y in zip_longest(*lines, fillvalue='') if x != y), None
        )
        if first and NOTE.strip() not in printed(a):
            found.append(f'cell {a.id}: {first}')
    return found


def execute(
    path: Path, timeout: int = 300, cwd: Path | None = None, extra: list[str] = (), manager=Kernels
):
    "The notebook at `path`, with `extra` code cells at its end, after a run in a fresh kernel whose working folder is `cwd` (default: the notebook's)."
    nb = nbformat.read(path, 4)
    nb.cells += [nbformat.v4.new_code_cell(source) for source in extra]
    Client(
        nb,
        timeout=timeout,
        kernel_name='python3',
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=['--log-level=ERROR'],
        kernel_manager_class=manager,
        resources={'metadata': {'path': str(cwd or path.parent)}},
    ).execute()
    return nb


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument('notebook', nargs='*', type=Path, help='which ones (all, if none is named)')
    p.add_argument(
        '--check', action='store_true', help='compare with the stored outputs instead of storing'
    )
    p.add_argument('--timeout', type=int, default=600, help='seconds a cell may take (600)')
    args = p.parse_args()
    paths = [path.resolve() for path in args.notebook] or notebooks()
    changed = 0
    for path in paths:
        start, cpu = time.perf_counter(), WARM.cpu
        with tempfile.TemporaryDirectory() as empty:
            nb = execute(path, args.timeout, Path(empty) if args.check else None)
        if errors := widget_errors(nb):
            sys.exit(f'{path}: a widget failed: {errors}')
        freeze_widgets(nb)
        print(
            f'{time.perf_counter() - start:6.1f} s, {WARM.cpu - cpu:6.1f} s of CPU  {os.path.relpath(path)}',
            flush=True,
        )
        if args.check:
            found = differences(stored(path), nb)
            changed += bool(found)
            print(*(f'    {line}' for line in found), sep='\n', end='\n' if found else '')
        else:
            hide_answers(nb)
            nbformat.write(nb, path)
            subprocess.run(
                [Path(sys.executable).with_name('nbdev_clean'), '--fname', path],
                cwd=ROOT,
                check=True,
            )
    if changed:
        sys.exit(f'{changed} of {len(paths)} notebooks printed something else than what is stored')


if __name__ == '__main__':
    main()
