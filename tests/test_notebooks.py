"Every notebook runs top to bottom in a fresh kernel, from any working folder, and says the same every time."

import warnings

import nbformat
import pytest
from jupyter_client.manager import AsyncKernelManager

import run_notebooks
from run_notebooks import (
    NBS,
    differences,
    execute,
    freeze_widgets,
    notebooks,
    printed,
    stored,
    widget_errors,
)
from solutions import execute_solved

LONGEST = {
    'index',
    'course/1_first_distillation',
    'course/4_halving',
    'course/6_branches',
    'course/7_when_does_it_help',
    'course/8_your_model',
    'course/9_capstone',
    'diffusion/03_samplers',
    'distillation/07_sfd',
    'distillation/08_variable',
    'distillation/09_progressive',
    'distillation/11_a_new_host',
    'training/04_hooks',
    'training/05_loop',
    'evaluation/02_metrics',
    'interop/02_export',
    'interop/03_families',
    'lab/02_search',
    'lab/03_alignment',
    'lab/04_explorers',
    'lab/05_compare',
    'app/03_commands',
    'app/06_compare',
    'applications/01_forecasting',
    'applications/02_anomalies',
    'gpu/published_settings',
}  # first, so that no worker waits long for another's last
TWICE = 'training/04_hooks.ipynb'  # draws random numbers, trains, goes on after a fault; the others' second run is compared with their stored outputs


@pytest.fixture(autouse=True)
def drawn_once(monkeypatch):
    """By the backend of notebooks, when a cell ends; pyplot would draw each figure before it, and what looks for room and for its edges draws
    its labels thrice, which moves stored pictures by some pixels and shows no more faults. Nobody sees the pictures: they are small."""
    code = """from matplotlib import figure, pyplot; pyplot.install_repl_displayhook = lambda: None
figure.Figure.get_layout_engine = lambda self: None
import sys; sys.argv.append('--InlineBackend.print_figure_kwargs={"bbox_inches": None, "dpi": 50, "pil_kwargs": {"compress_level": 1}}')
"""
    monkeypatch.setattr(run_notebooks, 'KERNEL', code + run_notebooks.KERNEL)
    monkeypatch.delenv(
        'MPLBACKEND', raising=False
    )  # what a command has set in this process, kernels would inherit


def name(path):
    return path.relative_to(NBS).as_posix()


@pytest.mark.parametrize(
    'path',
    sorted(notebooks(), key=lambda path: name(path).removesuffix('.ipynb') not in LONGEST),
    ids=name,
)
def test_notebook_runs(path, tmp_path):
    nb, right, wrong = execute_solved(
        path, timeout=240, cwd=tmp_path
    )  # stored outputs come from a run in the notebook's own folder
    assert all('correct\n' in s for s in right), f'solutions of the exercises: {right}'
    assert all('hint: ' in s for s in wrong), f'wrong answers to the exercises: {wrong}'
    assert not widget_errors(nb), 'a widget callback raised'
    failed = [
        o.ename
        for c in nb.cells
        if 'raises-exception' not in c.metadata.get('tags', [])
        for o in c.get('outputs', [])
        if o.output_type == 'error'
    ]
    assert not failed, 'a figure could not be drawn'
    said = [
        line
        for c in nb.cells
        for o in c.get('outputs', [])
        if o.get('name') == 'stderr'
        for line in o.text.splitlines()
        if 'UserWarning' in line
    ]
    assert not [line for line in said if 'site-packages' not in line], 'right use warns of nothing'
    freeze_widgets(nb)
    if found := differences(stored(path), nb):
        warnings.warn(
            f'{path.name}: not what is stored (another machine may round differently; tools/run_notebooks.py stores anew): {found}'
        )
    if name(path) == TWICE:
        again = execute(path, timeout=240, manager=AsyncKernelManager)
        assert not differences(nb, again), (
            'two runs on one machine, one of them in a process of its own, differ'
        )


def test_comparison_sees_numbers_and_no_times():
    def run(text, source='print(x)'):
        return nbformat.v4.new_notebook(
            cells=[
                nbformat.v4.new_code_cell(
                    source, id='a', outputs=[nbformat.v4.new_output('stream', text=text)]
                )
            ]
        )

    assert differences(run('loss 0.25 in 3.1 s, 5 MB'), run('loss 0.25 in 9 s, 7.5 MB')) == []
    assert differences(run('loss 0.25 in 3.1 s'), run('loss 0.26 in 3.1 s')) == [
        "cell a: 'loss 0.25 in' then 'loss 0.26 in'"
    ]
    assert differences(run('a\nb'), run('a')) and not differences(
        run('1', 't = time.perf_counter()'), run('2', 't = time.perf_counter()')
    )
    assert printed(nbformat.v4.new_markdown_cell('1')) == ''
