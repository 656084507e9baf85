"The loop from outside: paused, looked into, stopped, and what its hooks write and show."

import json
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from bdense_nb.training.checkpoints import newest_checkpoint
from bdense_nb.training.config import Hardware, TrainConfig
from bdense_nb.training.hooks import (
    Every,
    LossGraph,
    MetricsFile,
    PairedError,
    Profiler,
    SampleSheets,
    Trackers,
)
from bdense_nb.training.loop import fit, training
from test_training import CFG, assert_same, fault, metrics, net, step


class Diary:
    "Writes down what it is told, and when."

    def __init__(self):
        self.events = []

    def start(self, state):
        self.events.append(('start', state.done))

    def after_iteration(self, state):
        self.events.append(('after', state.done))

    def logged(self, state, row):
        self.events.append(('logged', row['step']))

    def saved(self, state, path):
        self.events.append(('saved', int(path.stem[-8:])))

    def end(self, state):
        self.events.append(('end', state.done))


# --- a loop that yields ---


def test_the_loop_yields_after_each_iteration_and_is_the_run_of_fit(tmp_path):
    model = net()
    seen = [(s.done, s.model is model) for s in training(model, step, CFG, folder=tmp_path / 'a')]
    assert seen == [(i, True) for i in range(1, 13)]
    fit(net(), step, CFG, tmp_path / 'b', show=False)
    assert_same(tmp_path / 'a', tmp_path / 'b')


def test_between_two_iterations_everything_is_the_callers():
    before = (
        torch.get_float32_matmul_precision(),
        signal.getsignal(signal.SIGTERM),
        signal.getsignal(signal.SIGINT),
    )
    torch.manual_seed(3)
    want = torch.randn(4)
    torch.manual_seed(3)
    model = net()
    torch.manual_seed(3)
    drawn = [
        torch.randn(1) for _ in training(model, step, replace(CFG, steps=4), Hardware(tf32=True))
    ]
    assert torch.equal(torch.cat(drawn), want)
    for _ in training(model, step, CFG, Hardware(tf32=True)):
        assert (
            torch.get_float32_matmul_precision(),
            signal.getsignal(signal.SIGTERM),
            signal.getsignal(signal.SIGINT),
        ) == before
    straight = fit(net(), step, replace(CFG, steps=4), show=False).model
    again = net()
    for _ in training(again, step, replace(CFG, steps=4)):
        torch.randn(7)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), again.parameters()))


@pytest.mark.parametrize('how', ['stop', 'stop and break'])
def test_a_stopped_run_is_saved_and_goes_on(tmp_path, how):
    for state in training(net(), step, CFG, folder=tmp_path / 'b'):
        if state.done == 7:
            state.stop = True
        if state.stop and 'break' in how:
            break
    assert state.done == newest_checkpoint(tmp_path / 'b')[1]['done'] == 7
    fit(net(), step, CFG, tmp_path / 'b', show=False)
    fit(net(), step, CFG, tmp_path / 'a', show=False)
    (ta, _), (tb, _) = newest_checkpoint(tmp_path / 'a'), newest_checkpoint(tmp_path / 'b')
    assert all(torch.equal(ta[k], tb[k]) for k in ta)


def test_a_loop_that_is_left_puts_everything_back(tmp_path):
    model, diary = net(), Diary()
    for state in training(model, step, CFG, Hardware(precision='bf16'), tmp_path, [diary]):
        if state.done == 6:
            break
    assert (
        diary.events[-1] == ('end', 6)
        and 'forward' not in vars(model)
        and not model._forward_pre_hooks
    )
    assert newest_checkpoint(tmp_path)[1]['done'] == 4  # what was not saved is done again
    fit(net(), step, CFG, tmp_path, show=False)  # the folder is free again


def test_ctrl_c_between_two_iterations_is_the_callers(tmp_path):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            for state in training(net(), step, CFG, folder=tmp_path):
                if state.done == 5:
                    signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert newest_checkpoint(tmp_path)[1]['done'] == 4


# --- hooks ---


def test_hooks_are_told_in_order(tmp_path):
    diary = Diary()
    hooks = [MetricsFile(), diary]  # a folder's run has the first by itself
    fit(net(), step, replace(CFG, steps=6), tmp_path, show=False, hooks=hooks)
    assert [row['step'] for row in metrics(tmp_path)] == [3, 4, 6]
    assert diary.events == [
        ('start', 0),
        ('after', 1),
        ('after', 2),
        ('logged', 3),
        ('after', 3),
        ('logged', 4),
        ('saved', 4),
        ('after', 4),
        ('after', 5),
        ('logged', 6),
        ('saved', 6),
        ('after', 6),
        ('end', 6),
    ]
    again = Diary()
    fit(net(), step, replace(CFG, steps=6), tmp_path, show=False, hooks=[again, SimpleNamespace()])
    assert again.events == [('start', 6), ('end', 6)]


def test_hooks_end_after_an_error_and_a_hook_may_stop_the_run(tmp_path):
    diary = Diary()
    with pytest.raises(OSError):
        fit(net(), fault(2, OSError('power cut')), CFG, show=False, hooks=[diary])
    assert diary.events[-1] == ('end', 2)

    class Enough:
        def after_iteration(self, state):
            state.stop = state.done == 5

    done = fit(net(), step, CFG, tmp_path, show=False, hooks=[Enough()])
    assert newest_checkpoint(tmp_path)[1]['done'] == 5 == done.history[-1]['step']


def test_each_hook_that_was_started_is_ended(tmp_path):
    class Bad(Diary):
        def __init__(self, event):
            super().__init__()
            self.event = event

        def start(self, state):
            super().start(state)
            if self.event == 'start':
                raise OSError('no room')

        def end(self, state):
            super().end(state)
            raise OSError('no room')

    before, after = Diary(), Diary()
    with pytest.raises(OSError, match='no room'):
        fit(net(), step, CFG, show=False, hooks=[before, Bad('start'), after])
    assert before.events == [('start', 0), ('end', 0)] and not after.events
    with pytest.raises(OSError, match='no room'):
        fit(net(), step, CFG, show=False, hooks=[Bad('end'), after])
    assert after.events[-1] == ('end', 12)
    with pytest.raises(TypeError, match='hooks are given in a list'):
        fit(net(), step, CFG, show=False, hooks=after)


def test_sample_sheets_and_paired_error(tmp_path):
    def images(model):
        return model(torch.zeros(4, 2)).reshape(4, 2, 1, 1).expand(4, 2, 8, 8)[:, :1]

    def error(model):
        return model(torch.ones(1, 2)).abs().mean()

    hooks = [SampleSheets(4, images), PairedError(6, error, 'gap')]
    done = fit(net(), step, CFG, tmp_path / 'a', show=False, hooks=hooks)
    assert [p.name for p in sorted((tmp_path / 'a' / 'samples').iterdir())] == [
        '00000004.png',
        '00000008.png',
        '00000012.png',
    ]
    rows = {row['step']: row['gap'] for row in metrics(tmp_path / 'a') if 'gap' in row}
    assert list(rows) == [6, 12] and rows[12] == pytest.approx(float(error(done.ema.eval())))
    fit(net(), step, CFG, tmp_path / 'b', show=False)
    assert_same(tmp_path / 'a', tmp_path / 'b')
    fit(
        net(),
        step,
        CFG,
        tmp_path / 'points',
        show=False,
        hooks=[SampleSheets(12, lambda model: model(torch.randn(50, 2)))],
    )
    assert (tmp_path / 'points' / 'samples' / '00000012.png').stat().st_size > 1000


@pytest.mark.parametrize(
    'hook',
    [lambda: SampleSheets(1, lambda model: model), Profiler, Trackers, MetricsFile],
    ids=['samples', 'profiler', 'trackers', 'metrics'],
)
def test_hooks_that_write_need_a_folder(hook):
    with pytest.raises(ValueError, match='needs a run with a folder'):
        fit(net(), fault(0, AssertionError('too late')), CFG, show=False, hooks=[hook()])


def test_a_function_is_no_hook():
    with pytest.raises(TypeError, match=r'a hook is an object .* Every\(n, f\)'):
        fit(net(), step, CFG, show=False, hooks=[lambda *state: None])


def test_a_name_is_no_hardware():
    with pytest.raises(TypeError, match=r"must be Hardware\(precision='bf16'\).*got str"):
        fit(net(), step, CFG, show=False, hardware='bf16')


def test_every_refuses_zero():
    with pytest.raises(ValueError, match='every must be at least 1, got 0'):
        Every(0, print)


def test_trackers_are_told_what_the_metrics_file_is(tmp_path, monkeypatch):
    import accelerate.tracking

    told = []

    class Tracker:
        requires_logging_directory = False

        def __init__(self, name):
            told.append(name)

        def log(self, values, step):
            told.append((step, values['loss']))

        def finish(self):
            told.append('finished')

    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, 'json', Tracker)
    done = fit(net(), step, CFG, show=False, hooks=[Trackers(('json',), 'moons')])
    assert told == ['moons', *[(h['step'], h['loss']) for h in done.history], 'finished']


def test_a_missing_library_is_named_with_its_command(monkeypatch):
    import importlib.util
    import bdense_nb.training.hooks as hooks

    monkeypatch.setattr(
        hooks,
        'find_spec',
        lambda name: None if name in ('tensorboard', 'wandb') else importlib.util.find_spec(name),
    )
    with pytest.raises(ImportError, match=r'tensorboard.* pip install "bdense-nb\[tensorboard\]"'):
        Trackers('tensorboard')
    with pytest.raises(ImportError, match='wandb.* pip install wandb'):
        Trackers('wandb')
    with pytest.raises(
        ValueError, match="unknown log_with 'notepad'; choose one of: .*tensorboard"
    ):
        Trackers('notepad')


def test_the_profiler_traces_the_iterations_it_was_asked_for(tmp_path):
    fit(
        net(),
        step,
        replace(CFG, checkpoint_every=0),
        tmp_path,
        show=False,
        hooks=[Profiler(skip=5, iterations=2)],
    )
    names = {
        e.get('name', '') for e in json.loads((tmp_path / 'trace.json').read_text())['traceEvents']
    }
    assert {n for n in names if n.startswith('ProfilerStep')} == {
        'ProfilerStep#5',
        'ProfilerStep#6',
    } and any('addmm' in n for n in names)
    fit(
        net(),
        step,
        replace(CFG, steps=2, warmup=0),
        tmp_path / 'short',
        show=False,
        hooks=[Profiler()],
    )
    assert 'ProfilerStep#1' in (tmp_path / 'short' / 'trace.json').read_text()


# --- configurations ---


@pytest.mark.parametrize(
    'bad',
    [
        dict(precision='fp8'),
        dict(teacher_precision='bf16'),
        dict(accumulate=0),
        dict(accumulate=True),
        dict(shard=1),
        dict(on_oom='skip'),
        dict(peak_tflops=0.0),
        dict(channels_last=None),
    ],
    ids=str,
)
def test_hardware_refuses(bad):
    with pytest.raises(ValueError, match=f'{next(iter(bad))} must be .*, got'):
        Hardware(**bad)


def test_every_field_has_a_comment_and_a_type_that_is_checked():
    import inspect

    for config in (TrainConfig, Hardware):
        source = inspect.getsource(config)
        for name in config.__dataclass_fields__:
            line = next(li for li in source.splitlines() if li.startswith(f'    {name}:'))
            assert ' # ' in line, line
            with pytest.raises(ValueError, match=f'^{name} must be'):
                config(
                    **{'steps': 3} | {name: 'nonsense'}
                    if config is TrainConfig
                    else {name: 'nonsense'}
                )


def test_a_loss_graph_is_shown_with_its_line(monkeypatch):
    "Once empty and once with it would be drawn twice; the next drawing takes its place."
    shown = []

    def show(figure, **how):
        shown.append(len(figure.axes[0].lines))
        return SimpleNamespace(update=lambda figure: shown.append(figure.axes[0].lines[0]))

    monkeypatch.setattr('bdense_nb.training.hooks.IN_NOTEBOOK', True)
    monkeypatch.setattr('fastprogress.fastprogress.display', show, raising=False)
    graph = LossGraph()
    graph.start(None)
    for few in 2, 3:  # two readings are no curve
        graph.draw([dict(step=i + 1, loss=1.0 / (i + 1)) for i in range(few)])
    assert shown == [1]
    graph.draw([dict(step=i, loss=1.0 / i) for i in (1, 2, 3)])
    assert shown[0] == 1 and [list(line.get_xdata()) for line in shown[1:]] == [[1, 2, 3]]
