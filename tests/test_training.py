"The training loop: exact resumption in a matrix of settings, faults, and bad input."

import contextlib
import json
import math
import os
import signal
import threading
import time
import warnings
from dataclasses import asdict, replace

import pytest
import torch
from bdense_nb.core import save_tensors
from bdense_nb.diffusion.nets import UNet
from bdense_nb.training.checkpoints import newest_checkpoint
from bdense_nb.training.config import LR_SCHEDULES, Hardware, TrainConfig
from bdense_nb.training.devices import Processes, local_batch
from bdense_nb.training.hooks import Every, Trackers, progress
from bdense_nb.training.loop import Interrupts, State, Updates, fit, lr_factor, training
from torch import nn
from warm import python

CFG = TrainConfig(
    steps=12,
    lr=1e-2,
    warmup=2,
    schedule='cosine',
    ema=0.9,
    clip_grad=1.0,
    checkpoint_every=4,
    log_every=3,
)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.2), nn.Linear(8, 2))


def loss_of(model, i, j=0):
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(100 * i + j))
    return (model(x) - x.flip(1)).square().mean()


def step(model, i):
    yield loss_of(model, i)


def fault(at, error):
    def faulty(model, i):
        if i == at:
            raise error
        yield loss_of(model, i)

    return faulty


def state(folder):
    tensors, meta = newest_checkpoint(folder)
    meta.pop('seconds')
    return tensors, meta


def metrics(folder):
    return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


def assert_same(a, b):
    (ta, ma), (tb, mb) = state(a), state(b)
    assert ma == mb and ta.keys() == tb.keys()
    assert not [k for k in ta if not torch.equal(ta[k], tb[k])]


# --- exact resumption ---

SETTINGS = [
    {},
    dict(ema=None),
    dict(clip_grad=None),
    dict(schedule='drop'),
    dict(schedule='linear'),
    dict(schedule='constant', warmup=0),
    dict(betas=(0.5, 0.9)),
    dict(seed=7),
]


@pytest.mark.parametrize(
    'setting, at', [(s, (0, 4, 7)[i % 3]) for i, s in enumerate([{}, {}, *SETTINGS])], ids=str
)
def test_resumed_is_the_same_run(tmp_path, setting, at):
    cfg = replace(CFG, **setting)
    fit(net(), step, cfg, tmp_path / 'a', show=False)
    with pytest.raises(OSError):
        fit(net(), fault(at, OSError('power cut')), cfg, tmp_path / 'b', show=False)
    torch.randn(5)  # what the process draws in between must not matter
    result = fit(net(), step, cfg, tmp_path / 'b', show=False)
    assert_same(tmp_path / 'a', tmp_path / 'b')
    assert [h['step'] for h in result.history] == [3, 4, 6, 8, 9, 12]
    assert [
        {k: row[k] for k in ('step', 'loss', 'lr')} for row in metrics(tmp_path / 'b')
    ] == result.history


def test_unet_with_dropout_and_several_updates_resumes(tmp_path):
    def make():
        torch.manual_seed(0)
        return UNet(widths=(8, 32), dropout=0.3)

    def step(model, i):
        for j in range(2):
            yield (
                (
                    model(
                        torch.randn(
                            2, 1, 8, 8, generator=torch.Generator().manual_seed(10 * i + j)
                        ),
                        torch.zeros(1),
                    )
                    - 1
                )
                .square()
                .mean()
            )

    cfg = TrainConfig(steps=4, checkpoint_every=2, ema=0.5)
    fit(make(), step, cfg, tmp_path / 'a', show=False)

    def cut(model, i):
        for j, loss in enumerate(step(model, i)):
            if (i, j) == (3, 1):
                raise OSError('in the middle of an iteration')
            yield loss

    with pytest.raises(OSError):
        fit(make(), cut, cfg, tmp_path / 'b', show=False)
    fit(make(), step, cfg, tmp_path / 'b', show=False)
    assert_same(tmp_path / 'a', tmp_path / 'b')


def test_a_finished_run_is_left_alone(tmp_path):
    first = fit(net(), step, CFG, tmp_path, show=False)
    again = fit(net(), fault(0, AssertionError('no iteration is left')), CFG, tmp_path, show=False)
    assert again.history == first.history
    for a, b in zip(again.ema.parameters(), first.ema.parameters()):
        assert torch.equal(a, b)


def test_the_callers_random_numbers_are_left_alone():
    torch.manual_seed(3)
    want = torch.randn(3)
    torch.manual_seed(3)
    model = net()
    torch.manual_seed(3)
    fit(model, step, CFG, show=False)
    assert torch.equal(torch.randn(3), want)


def test_only_two_checkpoints_are_kept(tmp_path):
    fit(net(), step, replace(CFG, checkpoint_every=1), tmp_path, show=False)
    assert sorted(p.name for p in tmp_path.glob('[!.]*')) == [
        'best.safetensors',
        'checkpoint-00000011.safetensors',
        'checkpoint-00000012.safetensors',
        'metrics.jsonl',
    ]


def test_the_average_is_the_average():
    model, seen, cfg = nn.Linear(1, 1), [], TrainConfig(steps=5, ema=0.7)

    def watch(m, i):
        if i:
            seen.append(m.weight.detach().clone())
        yield (m(torch.ones(1, 1)) - 5).square().mean()

    ema = fit(model, watch, cfg, show=False).ema
    want = seen[0]
    for w in [*seen[1:], model.weight.detach()]:
        want = 0.7 * want + 0.3 * w
    torch.testing.assert_close(ema.weight.detach(), want)


def test_seeds_matter_through_dropout():
    ends = []
    for seed in (0, 0, 1):
        model = net()
        fit(model, step, replace(CFG, seed=seed), show=False)
        ends.append(model[0].weight.detach())
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


# --- learning rate ---


@pytest.mark.parametrize('schedule', LR_SCHEDULES)
@pytest.mark.parametrize('steps,warmup', [(1, 0), (10, 0), (10, 3), (7, 6)])
def test_lr_factor(schedule, steps, warmup):
    values = [
        lr_factor(TrainConfig(steps=steps, warmup=warmup, schedule=schedule), i)
        for i in range(steps)
    ]
    assert all(0 < v <= 1 for v in values)
    assert all(b > a for a, b in zip(values[:warmup], values[1:warmup])) and all(
        b <= a for a, b in zip(values[warmup:], values[warmup + 1 :])
    )
    assert values[warmup] == (1 if schedule != 'drop' or warmup - 1 < steps / 2 else 0.1)


def test_adam_gets_the_factor(tmp_path):
    fit(net(), step, CFG, tmp_path, show=False)
    assert [h['lr'] for h in state(tmp_path)[1]['history']] == [
        CFG.lr * lr_factor(CFG, i - 1) for i in (3, 4, 6, 8, 9, 12)
    ]
    model, cfg = nn.Linear(1, 1, bias=False), TrainConfig(steps=10, lr=0.1, warmup=9)
    weights = [model.weight.item()]

    def watch(m, i):
        yield m(torch.ones(1, 1)).sum()
        weights.append(m.weight.item())

    fit(model, watch, cfg, show=False)  # a constant gradient: Adam's step is the learning rate
    assert [a - b for a, b in zip(weights, weights[1:])] == pytest.approx(
        [0.01 * i for i in range(1, 11)], rel=1e-3
    )


# --- faults ---


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('at', [0, 5, 7, 11])
def test_bad_loss_stops_and_keeps_the_last_good_checkpoint(tmp_path, value, at):
    def bad(model, i):
        yield loss_of(model, i) * (value if i == at else 1)

    with pytest.raises(FloatingPointError, match='lower lr'):
        fit(net(), bad, CFG, tmp_path, show=False)
    found = newest_checkpoint(tmp_path)
    assert found is None if at < 4 else found[1]['done'] == at // 4 * 4
    if found:
        assert all(t.isfinite().all() for t in found[0].values())


def test_a_finite_loss_with_a_broken_gradient_is_not_saved(tmp_path):
    def bad(model, i):
        loss = loss_of(model, i)
        yield (
            loss + (model[0].weight.sum() * 0).sqrt() if i == 7 else loss
        )  # the slope of a square root at 0

    with pytest.raises(FloatingPointError, match='no longer finite.*00000004'):
        fit(net(), bad, CFG, tmp_path, show=False)
    assert newest_checkpoint(tmp_path)[1]['done'] == 4


@pytest.mark.parametrize(
    'damage',
    [
        lambda b: b[:1000],
        lambda b: b[:3],
        lambda b: b'',
        lambda b: b'x' * len(b),
        lambda b: b'\xff' * 8 + b[8:],
    ],
    ids=['cut', 'three bytes', 'empty', 'text', 'header length'],
)
def test_damaged_newest_checkpoint(tmp_path, damage):
    fit(net(), step, CFG, tmp_path / 'a', show=False)
    fit(net(), step, CFG, tmp_path / 'b', show=False)
    newest = tmp_path / 'b' / 'checkpoint-00000012.safetensors'
    newest.write_bytes(damage(newest.read_bytes()))
    with pytest.warns(UserWarning, match='00000012.*the checkpoint before'):
        fit(net(), step, CFG, tmp_path / 'b', show=False)
    assert_same(tmp_path / 'a', tmp_path / 'b')


def test_foreign_checkpoints(tmp_path):
    save_tensors(
        tmp_path / 'checkpoint-00000099.safetensors', {'w': torch.ones(2)}, {'something': 'else'}
    )
    with (
        pytest.warns(UserWarning, match='not a checkpoint'),
        pytest.raises(ValueError, match='none of the 1 checkpoints'),
    ):
        fit(net(), step, CFG, tmp_path, show=False)
    assert newest_checkpoint(tmp_path / 'nowhere') is None


@pytest.mark.parametrize(
    'other',
    [
        dict(lr=1.0),
        dict(steps=13),
        dict(ema=None),
        dict(betas=(0.9, 0.99)),
        dict(seed=1),
        dict(schedule='drop'),
    ],
    ids=str,
)
def test_another_configuration_is_refused(tmp_path, other):
    fit(net(), step, CFG, tmp_path, show=False)
    with pytest.raises(ValueError, match=next(iter(other))):
        fit(net(), step, replace(CFG, **other), tmp_path, show=False)


def test_another_model_is_refused(tmp_path):
    fit(net(), step, CFG, tmp_path, show=False)
    with pytest.raises(ValueError, match='another model'):
        fit(nn.Linear(2, 2), step, CFG, tmp_path, show=False)


def test_leftovers_of_a_killed_write_are_cleared_and_nothing_else(tmp_path):
    for name in (
        '.checkpoint-00000004.safetensors.ab12cd34.tmp',
        '.best.safetensors.cd34ef56.tmp',
        '.tmpbJBAqE',
        '.mine.tmp',
        'notes.txt',
    ):
        (tmp_path / name).write_text('x')
    fit(net(), step, CFG, tmp_path, show=False)
    assert {'.mine.tmp', 'notes.txt'} == {p.name for p in tmp_path.iterdir()} - {
        '.lock',
        'best.safetensors',
        'checkpoint-00000008.safetensors',
        'checkpoint-00000012.safetensors',
        'metrics.jsonl',
    }


def test_killed_in_the_middle_of_a_write(tmp_path):
    "A process that dies while it writes a checkpoint leaves the one before it, and the next run ends as if nothing had happened."
    code = """
import os, sys
import torch; torch.set_num_threads(1)
import test_training as t
import bdense_nb.core as core
real = core.save_file
def dies(tensors, path, metadata):
    real(tensors, path, metadata)
    if '00000008' in str(path):
        open(path, 'rb+').truncate(500); os.kill(os.getpid(), 9)
core.save_file = dies
t.fit(t.net(), t.step, t.CFG, sys.argv[1], show=False)"""
    done = python(code, tmp_path / 'b')
    assert done.returncode == -9
    assert [p.name for p in (tmp_path / 'b').glob('.*.tmp')] and newest_checkpoint(tmp_path / 'b')[
        1
    ]['done'] == 4
    fit(net(), step, CFG, tmp_path / 'a', show=False)
    fit(net(), step, CFG, tmp_path / 'b', show=False)
    assert_same(tmp_path / 'a', tmp_path / 'b')
    assert not list((tmp_path / 'b').glob('.*.tmp'))


# --- Ctrl-C ---


@pytest.fixture
def ctrl_c():
    "Python's own handling of Ctrl-C, which a shell takes away from processes in the background."
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_where_ctrl_c_is_ignored_it_stays_ignored(tmp_path, ctrl_c):
    def press(model, i):
        signal.raise_signal(signal.SIGINT)
        yield loss_of(model, i)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    fit(net(), press, CFG, tmp_path, show=False)
    assert (
        newest_checkpoint(tmp_path)[1]['done'] == 12
        and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    )


@pytest.mark.parametrize('when', ['before', 'between updates', 'after'])
@pytest.mark.parametrize('at', [0, 5, 7])
def test_ctrl_c_saves_whole_iterations(tmp_path, ctrl_c, when, at):
    def two(model, i, press=False):
        if press and when == 'before':
            signal.raise_signal(signal.SIGINT)
        yield loss_of(model, i, 0)
        if press and when == 'between updates':
            signal.raise_signal(signal.SIGINT)
        yield loss_of(model, i, 1)
        if press and when == 'after':
            signal.raise_signal(signal.SIGINT)

    straight = net()
    fit(straight, two, CFG, show=False)
    with pytest.raises(KeyboardInterrupt, match='run it again'):
        fit(net(), lambda m, i: two(m, i, i == at), CFG, tmp_path, show=False)
    assert newest_checkpoint(tmp_path)[1]['done'] == at + 1
    resumed = net()
    fit(resumed, two, CFG, tmp_path, show=False)
    for a, b in zip(straight.parameters(), resumed.parameters()):
        assert torch.equal(a, b)


def test_ctrl_c_in_the_last_iteration_is_not_lost(tmp_path, ctrl_c):
    def last(model, i):
        yield loss_of(model, i)
        if i == 11:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(net(), last, CFG, tmp_path, show=False)
    assert newest_checkpoint(tmp_path)[1]['done'] == 12


def test_ctrl_c_between_two_iterations_is_a_stop_too(tmp_path, ctrl_c, monkeypatch):
    "When the one before has put the handlers back and the next has not begun."
    turn = State.turn

    @contextlib.contextmanager
    def pressed(state):
        with turn(state):
            yield
        if state.done == 5:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(State, 'turn', pressed)
    with pytest.raises(KeyboardInterrupt, match='run it again'):
        fit(net(), step, CFG, tmp_path, show=False)
    assert (
        newest_checkpoint(tmp_path)[1]['done'] == 6
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )


def test_an_echo_of_ctrl_c_is_no_second_one(tmp_path, ctrl_c):
    "torchrun passes on what a terminal or Slurm has sent to its processes, too."

    def echoed(model, i):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
        yield loss_of(model, i)

    with pytest.raises(KeyboardInterrupt):
        fit(net(), echoed, CFG, tmp_path, show=False)
    assert newest_checkpoint(tmp_path)[1]['done'] == 1


def test_second_ctrl_c_stops_at_once(tmp_path, ctrl_c, monkeypatch):
    monkeypatch.setattr(Interrupts, 'moment', 0.0)

    def impatient(model, i):
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        yield pytest.fail('the second should have come through')

    with pytest.raises(KeyboardInterrupt):
        fit(net(), impatient, CFG, tmp_path, show=False)
    assert (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
        and newest_checkpoint(tmp_path) is None
    )


def test_another_thread_may_train(tmp_path):
    done = []
    thread = threading.Thread(
        target=lambda: done.append(fit(net(), step, CFG, tmp_path, show=False))
    )
    thread.start()
    thread.join()
    assert done and newest_checkpoint(tmp_path)[1]['done'] == 12


def test_nan_is_not_saved_by_ctrl_c(tmp_path, ctrl_c):
    def bad(model, i):
        yield loss_of(model, i) * (float('nan') if i >= 5 else 1)
        if i == 5:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(FloatingPointError):
        fit(net(), bad, CFG, tmp_path, show=False)
    assert newest_checkpoint(tmp_path)[1]['done'] == 4


# --- bad input ---


@pytest.mark.parametrize(
    'bad',
    [
        dict(steps=0),
        dict(steps=-1),
        dict(steps=1.5),
        dict(steps=True),
        dict(steps='10'),
        dict(lr=0.0),
        dict(lr=-1.0),
        dict(lr=float('nan')),
        dict(lr=float('inf')),
        dict(warmup=-1),
        dict(warmup=10),
        dict(schedule='cos'),
        dict(schedule=None),
        dict(betas=(0.9,)),
        dict(betas=(0.9, 1.0)),
        dict(betas=(-0.1, 0.9)),
        dict(clip_grad=0.0),
        dict(clip_grad=-1.0),
        dict(clip_grad=float('nan')),
        dict(ema=0.0),
        dict(ema=1.0),
        dict(ema=float('nan')),
        dict(seed=-1),
        dict(seed=2**32),
        dict(seed=0.5),
        dict(checkpoint_every=-1),
        dict(log_every=0),
    ],
    ids=str,
)
def test_config_refuses(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        TrainConfig(**dict(steps=10) | bad)


def test_config_knows_no_other_word():
    with pytest.raises(TypeError, match='momentum'):
        TrainConfig(steps=1, momentum=0.9)


@pytest.mark.parametrize('setting', SETTINGS, ids=str)
def test_config_survives_json(setting):
    cfg = replace(CFG, **setting)
    assert TrainConfig(**json.loads(json.dumps(asdict(cfg)))) == cfg


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / 'f').write_text('')
    with pytest.raises(FileExistsError):
        fit(net(), fault(0, AssertionError('too late')), CFG, tmp_path / 'f', show=False)


def test_progress_prints_lines_where_there_is_no_terminal(capsys):
    assert list(progress(3, 'counting', note=lambda: 'a note')) == [0, 1, 2]
    out = capsys.readouterr().out
    assert out.startswith('counting 3/3') and 'a note' in out and '\r' not in out
    assert (
        list(progress(3, start=3)) == []
        and list(progress(3, start=1, show=False)) == [1, 2]
        and not capsys.readouterr().out
    )


def test_no_warnings(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        fit(net(), step, CFG, tmp_path, show=False)


# --- health, and what is seen ---


def flaky(at, value):
    def bad(model, i):
        yield loss_of(model, i) * (value if i in at else 1)

    return bad


def test_the_step_and_the_weight_are_named():
    with pytest.raises(
        FloatingPointError, match=r'loss of iteration 4 became nan.*0\.weight is no longer finite'
    ):
        fit(net(), flaky([4], float('nan')), CFG, show=False)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_skipped_updates_leave_everything_alone(tmp_path, value):
    seen = []

    def watch(model, i):
        seen.append(model[0].weight.detach().clone())
        yield from flaky([5, 6], value)(model, i)

    result = fit(net(), watch, replace(CFG, on_nan='skip', ema=None), tmp_path, show=False)
    assert (
        torch.equal(seen[5], seen[6])
        and torch.equal(seen[6], seen[7])
        and not torch.equal(seen[7], seen[8])
    )
    assert [m['skipped'] for m in metrics(tmp_path)] == [0, 0, 1, 1, 0, 0] and all(
        h['loss'] > 0 for h in result.history
    )


def test_a_broken_gradient_is_skipped_too():
    def bad(model, i):
        loss = loss_of(model, i)
        yield loss + (model[0].weight.sum() * 0).sqrt() if i == 7 else loss

    model = fit(net(), bad, replace(CFG, on_nan='skip'), show=False).model
    assert all(p.isfinite().all() for p in model.parameters())


def test_skipping_everything_stops():
    for first, steps, said in ((5, 30, 'the last 13 updates'), (0, 4, 'every update')):
        with pytest.raises(FloatingPointError, match=f'^{said} had to be skipped[^=]*$'):
            fit(
                net(),
                flaky(range(first, 99), float('nan')),
                replace(CFG, steps=steps, on_nan='skip', log_every=6, checkpoint_every=0),
                show=False,
            )


def test_one_skipped_update_between_two_readings_is_no_reason_to_stop(tmp_path):
    cfg = replace(CFG, on_nan='skip', log_every=1, checkpoint_every=0)
    bad = flaky([5], float('nan'))
    whole = fit(net(), bad, cfg, show=False)
    assert [h['step'] for h in whole.history] == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12]
    for state in training(net(), bad, cfg, folder=tmp_path):
        state.stop = state.done == 6  # after the one that was skipped
    again = fit(net(), bad, cfg, tmp_path, show=False)
    assert again.done == whole.done == 12
    assert all(
        torch.equal(p, q) for p, q in zip(whole.model.parameters(), again.model.parameters())
    )


def test_skipping_changes_a_healthy_run_by_nothing():
    a, b = (
        fit(net(), step, replace(CFG, on_nan=on_nan), show=False).model
        for on_nan in ('stop', 'skip')
    )
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))


def hungry(room, tries):
    "A step that has memory for batches of `room`."

    def step(model, i):
        x = local_batch(torch.randn(16, 2, generator=torch.Generator().manual_seed(i)))
        tries.append(len(x))
        if len(x) > room:
            raise torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')
        yield (model(x) - x.flip(1)).square().mean()

    return step


def test_out_of_memory_says_what_to_change():
    with pytest.raises(
        torch.cuda.OutOfMemoryError, match=r'hardware=Hardware\(accumulate=2\).*Tried to allocate'
    ):
        fit(net(), hungry(8, []), CFG, show=False)


@pytest.mark.parametrize('room', [1, 4, 8])
def test_out_of_memory_halves_until_it_fits(room):
    tries = []
    with pytest.warns(UserWarning, match='out of memory in iteration 0'):
        got = fit(
            net().eval(), hungry(room, tries), CFG, show=False, hardware=Hardware(on_oom='halve')
        )
    want = fit(net().eval(), hungry(16, []), CFG, show=False)
    assert tries[-1] == room and tries.count(16) == 1 and len(tries) < 12 * 16 // room + 16
    for a, b in zip(got.model.parameters(), want.model.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('at', [1, 2])
def test_out_of_memory_repeats_no_update(at):
    "The moments of Adam are made by the first update: memory may end after it."
    want, got = net().eval(), net().eval()

    def three(model, i, room=16):
        x = local_batch(torch.randn(16, 2, generator=torch.Generator().manual_seed(i)))
        for n in range(3):
            if n == at and len(x) > room:
                raise torch.cuda.OutOfMemoryError('CUDA out of memory')
            yield (model(x) - (n + 1) * x.flip(1)).square().mean()

    fit(want, three, CFG, show=False)
    with pytest.warns(UserWarning, match='out of memory in iteration 0'):
        fit(got, lambda m, i: three(m, i, 8), CFG, show=False, hardware=Hardware(on_oom='halve'))
    for a, b in zip(got.parameters(), want.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_out_of_memory_before_a_part_is_asked_for_ends():
    "Smaller parts cannot help where the step function has not come to cut its batch."
    tries = []

    def step(model, i):
        tries.append(i)
        raise torch.cuda.OutOfMemoryError('full')
        yield

    with pytest.warns(UserWarning, match='2 micro-batches'):
        with pytest.raises(torch.cuda.OutOfMemoryError, match='recompute'):
            fit(net(), step, CFG, show=False, hardware=Hardware(on_oom='halve'))
    assert len(tries) == 2  # the whole batch, and the first half of it


def half_precision(cfg=CFG):
    "Updates in float16, as on a GPU."
    model = net().eval()
    updates = Updates(model, cfg, Hardware(), Processes(torch.device('cpu')))
    updates.scaler = torch.amp.GradScaler('cpu')
    return model, updates


def test_an_update_in_float16_is_begun_again():
    model, updates = half_precision()
    updates.backward(loss_of(model, 0))
    updates.scaler.unscale_(updates.adam)  # here memory ends
    updates.adam.grad_scale = torch.tensor(2.0)
    updates.begin_again()
    assert not hasattr(updates.adam, 'grad_scale')
    loss = loss_of(model, 0)
    updates.backward(loss)
    updates.update(loss.detach(), 0)
    assert updates.scaler.get_scale() == 65536 and math.isfinite(updates.norm)
    want = net().eval()
    plain = Updates(want, CFG, Hardware(), Processes(torch.device('cpu')))
    loss = loss_of(want, 0)
    plain.backward(loss)
    plain.update(loss.detach(), 0)
    for a, b in zip(model.parameters(), want.parameters()):
        torch.testing.assert_close(a, b)


def test_moments_that_memory_did_not_hold_are_made_again(monkeypatch):
    model = net().eval()
    updates = Updates(model, CFG, Hardware(), Processes(torch.device('cpu')))
    made, real = [], torch.zeros_like

    def zeros(*given, **how):
        made.append(1)
        if len(made) == 2:
            raise torch.cuda.OutOfMemoryError('full')
        return real(*given, **how)

    loss = loss_of(model, 0)
    updates.backward(loss)
    monkeypatch.setattr(torch, 'zeros_like', zeros)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        updates.update(loss.detach(), 0)
    updates.begin_again()
    loss = loss_of(model, 0)
    updates.backward(loss)
    updates.update(loss.detach(), 0)
    assert len(updates.state_dict()) == 3 * len(list(model.parameters()))


def test_float16_may_look_for_its_scale_as_long_as_it_takes():
    model, updates = half_precision(replace(CFG, on_nan='skip'))
    for i in range(20):
        updates.forget()
        loss = loss_of(model, i)
        updates.backward(loss * (1e36 if i < 12 else 1e-30))
        updates.update(loss.detach(), i)
        assert updates.in_a_row == 0
    assert updates.skipped == 12
    updates.forget()
    updates.backward(loss_of(model, 0))
    updates.update(torch.tensor(math.nan), 0)
    assert updates.in_a_row == 1


def test_a_buffer_that_training_makes_is_stored_with_the_average():
    class Counts(nn.Linear):
        def forward(self, x):
            if self.training and not hasattr(self, 'seen'):
                self.register_buffer('seen', torch.ones(1))
                self.register_buffer('hint', torch.ones(1), persistent=False)
            return super().forward(x)

    step = lambda model, i: iter([model(torch.ones(1, 2)).square().mean()])
    done = fit(Counts(2, 1), step, TrainConfig(3, ema=0.9), show=False)
    names = done.ema.state_dict().keys()
    assert 'seen' in names and 'hint' not in names and done.ema.hint == 1


def test_what_no_checkpoint_can_hold_is_refused_at_the_start(tmp_path):
    class Knows(nn.Linear):
        def get_extra_state(self):
            return dict(calls=3)

        def set_extra_state(self, state):
            pass

    step = lambda model, i: iter([model(torch.ones(1, 2)).square().mean()])
    with pytest.raises(TypeError, match='make _extra_state a buffer, got dict'):
        fit(Knows(2, 1), step, TrainConfig(3), tmp_path, show=False)


def test_out_of_memory_with_one_sample_ends():
    with (
        pytest.warns(UserWarning),
        pytest.raises(torch.cuda.OutOfMemoryError, match=r'device has; use Hardware\(recompute'),
    ):
        fit(net(), hungry(0, []), CFG, show=False, hardware=Hardware(on_oom='halve'))


@pytest.mark.parametrize(
    'size, room, parts', [(6, 1, [1, 2, 6]), (7, 2, [1, 7]), (12, 3, [1, 2, 4])]
)
def test_out_of_memory_takes_the_next_equal_parts(size, room, parts):
    tries = []

    def step(model, i):
        x = local_batch(torch.randn(size, 2, generator=torch.Generator().manual_seed(i)))
        tries.append(size // len(x))
        if len(x) > room:
            raise torch.cuda.OutOfMemoryError('full')
        yield (model(x) - x.flip(1)).square().mean()

    with pytest.warns(UserWarning, match='out of memory in iteration 0'):
        fit(net(), step, CFG, show=False, hardware=Hardware(on_oom='halve'))
    assert list(dict.fromkeys(tries)) == parts


class Shy(torch.Tensor):
    "A loss that counts how often its value is read."

    read = 0

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function.__name__ in (
            'item',
            'tolist',
            '__bool__',
            '__float__',
            '__int__',
            'cpu',
            'numpy',
        ):
            Shy.read += 1
        return super().__torch_function__(function, types, args, kwargs or {})


@pytest.mark.parametrize(
    'changes,reads',
    [({}, 3), (dict(clip_grad=None, ema=None), 3), (dict(on_nan='skip'), 3 + 12)],
    ids=str,
)
def test_losses_are_read_only_when_they_are_logged(changes, reads):
    Shy.read = 0

    def shy(model, i):
        yield loss_of(model, i).as_subclass(Shy)

    fit(net(), shy, replace(CFG, checkpoint_every=0, log_every=4, **changes), show=False)
    assert Shy.read == reads


def test_metrics(tmp_path):
    def slow(model, i):
        time.sleep(0.01)
        yield loss_of(model, i)

    result = fit(net(), slow, CFG, tmp_path, show=False)
    rows = metrics(tmp_path)
    assert [row['step'] for row in rows] == [3, 4, 6, 8, 9, 12] and [
        row['loss'] for row in rows
    ] == [h['loss'] for h in result.history]
    for row in rows:
        assert row.keys() == {
            'step',
            'loss',
            'lr',
            'iterations_per_second',
            'waiting',
            'peak_memory_mb',
            'skipped',
            'grad_norm',
        }
        assert (
            0 < row['iterations_per_second'] < 100
            and 0.1 < row['waiting'] < 1
            and row['peak_memory_mb'] > 10
            and row['grad_norm'] > 0
        )


def test_the_gradient_norm_is_that_before_clipping(tmp_path):
    fit(
        net(),
        step,
        replace(CFG, steps=1, warmup=0, clip_grad=1e-3, log_every=1),
        tmp_path / 'a',
        show=False,
    )
    fit(
        net(),
        step,
        replace(CFG, steps=1, warmup=0, clip_grad=None, log_every=1),
        tmp_path / 'b',
        show=False,
    )
    a, b = metrics(tmp_path / 'a')[0]['grad_norm'], metrics(tmp_path / 'b')[0]['grad_norm']
    assert a == pytest.approx(b) and a > 1e-3


def test_samples_are_drawn_from_the_average_and_disturb_nothing():
    calls = []

    def look(model, i):
        assert not model.training and not torch.is_grad_enabled()
        calls.append((i, model))
        torch.randn(3)

    got = fit(net(), step, CFG, show=False, hooks=[Every(5, look)])
    want = fit(net(), step, CFG, show=False)
    assert (
        [i for i, _ in calls] == [5, 10]
        and all(m is got.ema for _, m in calls)
        and got.ema.training
        and got.model.training
    )
    assert all(torch.equal(a, b) for a, b in zip(got.model.parameters(), want.model.parameters()))


def test_tensorboard(tmp_path):
    events = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    with pytest.raises(ValueError, match='needs a run with a folder'):
        fit(net(), step, CFG, show=False, hooks=[Trackers('tensorboard')])
    result = fit(net(), step, CFG, tmp_path, show=False, hooks=[Trackers('tensorboard')])
    board = events.EventAccumulator(str(tmp_path / 'tensorboard'))
    board.Reload()
    assert [(e.step, pytest.approx(e.value, rel=1e-5)) for e in board.Scalars('loss')] == [
        (h['step'], h['loss']) for h in result.history
    ]


def test_what_the_loop_leaves_behind():
    model = net()
    hooks = lambda: [len(m._forward_pre_hooks) for m in model.modules()]
    before = (hooks(), set(vars(model)), torch.get_float32_matmul_precision())
    fit(model, step, CFG, show=False, hardware=Hardware(precision='bf16', tf32=True))
    with pytest.raises(OSError):
        fit(
            model,
            fault(3, OSError('stop')),
            CFG,
            show=False,
            hardware=Hardware(precision='bf16', tf32=True),
        )
    assert (hooks(), set(vars(model)), torch.get_float32_matmul_precision()) == before


KERNEL = """
import sys; sys.path[:0] = [{tests!r}, {tests!r} + '/../tools']
import time, torch, test_training as t
from dataclasses import replace
def slow(model, i): time.sleep(.02); yield t.loss_of(model, i)
t.fit(t.net(), slow, replace(t.CFG, steps=2000, checkpoint_every=0), {folder!r})"""


def test_the_stop_button_of_a_notebook(tmp_path):
    "The kernel is interrupted: a checkpoint is written, the cell ends in KeyboardInterrupt, bar and graph are one output each."
    from jupyter_client.manager import KernelManager
    from run_notebooks import Forked

    manager = KernelManager(kernel_name='python3', kernel_id='stopped')
    manager.provisioner = Forked(
        kernel_id=manager.kernel_id, kernel_spec=manager.kernel_spec, parent=manager
    )
    manager.start_kernel(cwd=tmp_path)
    client = manager.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=60)
        message = client.execute(
            KERNEL.format(tests=os.path.dirname(__file__), folder=str(tmp_path))
        )
        kinds, end = [], time.monotonic() + 300
        while time.monotonic() < end:
            m = client.get_iopub_msg(timeout=300)
            if m['parent_header'].get('msg_id') != message:
                continue
            kinds.append(m['msg_type'])
            if m['msg_type'] == 'update_display_data' and kinds.count('update_display_data') == 3:
                manager.interrupt_kernel()
            if m['msg_type'] == 'error':
                assert (
                    m['content']['ename'] == 'KeyboardInterrupt'
                    and 'run it again' in m['content']['evalue']
                )
            if m['msg_type'] == 'status' and m['content']['execution_state'] == 'idle':
                break
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert 'error' in kinds and kinds.count('display_data') <= 3 and 'stream' not in kinds
    assert 0 < newest_checkpoint(tmp_path)[1]['done'] < 2000
