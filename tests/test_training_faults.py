"Nothing lost: killed, full, unwritable, cut off, bits flipped. Every run must end as if nothing had happened, or say what happened."

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import warnings
from dataclasses import replace
from pathlib import Path

import bdense_nb.core as core
import pytest
import torch
from bdense_nb.training.checkpoints import (
    BEST,
    CHECKPOINTS,
    checkpoint_path,
    checksum,
    claim_folder,
    fingerprint,
    newest_checkpoint,
    read_checkpoint,
    same_run,
)
from bdense_nb.training.config import Hardware
from bdense_nb.training.loop import fit
from test_training import CFG, assert_same, fault, loss_of, metrics, net, step
from warm import Waiting, python

KILLS = """
import json, os, random, sys, time
import torch; torch.set_num_threads(1)
from accelerate import Accelerator
import torch._dynamo
import test_training as t, bdense_nb.core as core
folder, draw, report, real = sys.argv[1], random.Random(0), [], core.save_file
def slow_write(tensors, path, metadata):
    real(tensors, path, metadata); whole = open(path, 'rb').read()
    with open(path, 'wb') as f:
        for i in range(10): f.write(whole[i*len(whole)//10:(i + 1)*len(whole)//10]); f.flush(); time.sleep(.01)
def slow_step(model, i): time.sleep(.01); yield from t.step(model, i)
def child(place, ready):
    core.save_file = slow_write
    os.write(ready, b'x'); t.fit(t.net(), slow_step, t.CFG, place, show=False); os._exit(0)
def run(place, delay, in_write=False):
    written = lambda: [p for p in os.listdir(place) if p.endswith('.tmp')] if os.path.isdir(place) else []
    r, w = os.pipe(); pid = os.fork()
    if not pid: child(place, w)
    os.read(r, 1); begin = time.monotonic()
    if delay is None: os.waitpid(pid, 0); return time.monotonic() - begin
    time.sleep(delay)
    while in_write and not written() and time.monotonic() < begin + length: time.sleep(.005)
    writing = written()
    os.kill(pid, 9); _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status): report.append(dict(folder=place, writing=bool(writing))) # else it had already finished
length, tries = run(f'{folder}/whole', None), 0
while len(report) < 8 and tries < 40: tries += 1; run(f'{folder}/{tries:02d}', draw.uniform(0, length), tries % 2)
print(json.dumps(report))
"""


def again(folder, **changes):
    "Run the same command once more, without minding warnings."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return fit(net(), step, replace(CFG, **changes), folder, show=False)


@pytest.fixture
def straight(tmp_path):
    fit(net(), step, CFG, tmp_path / 'straight', show=False)
    return tmp_path / 'straight'


# --- killed ---


def test_kill_9_at_random_moments_and_in_writes(tmp_path, straight):
    done = python(KILLS, tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    writing = sum(r['writing'] for r in report)
    print(f'{len(report)} killed, {writing} of them during a write')
    assert len(report) == 8 and writing >= 3
    for r in report:
        again(r['folder'])
        assert_same(straight, Path(r['folder']))
        assert [m['step'] for m in metrics(Path(r['folder']))] == [3, 4, 6, 8, 9, 12] and not list(
            Path(r['folder']).glob('.*.tmp')
        )


def test_killed_between_the_checkpoint_and_its_second_name(tmp_path, straight, monkeypatch):
    "The best checkpoint is named again when the run goes on."
    import bdense_nb.training.checkpoints as checkpoints

    def dies(path):
        raise MemoryError('as if killed')

    monkeypatch.setattr(checkpoints, 'keep_as_best', dies)
    with pytest.raises(MemoryError):
        fit(net(), step, CFG, tmp_path / 'b', show=False)
    assert (
        not (tmp_path / 'b' / BEST).exists() and newest_checkpoint(tmp_path / 'b')[1]['done'] == 4
    )
    monkeypatch.undo()
    with pytest.raises(OSError):
        fit(net(), fault(4, OSError('stop')), CFG, tmp_path / 'b', show=False)
    assert read_checkpoint(tmp_path / 'b' / BEST)[1]['done'] == 4
    again(tmp_path / 'b')
    assert_same(straight, tmp_path / 'b')


# --- damaged ---


@pytest.mark.parametrize('seed', range(8))
def test_a_flipped_bit_anywhere_is_noticed(tmp_path, straight, seed):
    path = checkpoint_path(straight, 12)
    whole, draw = bytearray(path.read_bytes()), random.Random(seed)
    header = int.from_bytes(whole[:8], 'little')
    at = draw.randrange(
        8 + header if seed % 4 == 0 else len(whole)
    )  # every fourth one in the header
    want, _ = read_checkpoint(path)
    whole[at] ^= 1 << draw.randrange(8)
    path.unlink()
    path.write_bytes(whole)
    shutil.copytree(straight, tmp_path / 'b')
    with pytest.warns(UserWarning, match='00000012.*the checkpoint before'):
        fit(net(), step, CFG, tmp_path / 'b', show=False)
    got, _ = read_checkpoint(checkpoint_path(tmp_path / 'b', 12))
    assert got.keys() == want.keys() and all(torch.equal(got[k], want[k]) for k in want)
    assert (tmp_path / 'b' / 'checkpoint-00000012.safetensors.damaged').exists()


@pytest.mark.parametrize('share', [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_truncated(tmp_path, straight, share):
    again(tmp_path / 'b')
    path = checkpoint_path(tmp_path / 'b', 12)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.warns(UserWarning, match='00000012.*the checkpoint before'):
        fit(net(), step, CFG, tmp_path / 'b', show=False)
    assert_same(straight, tmp_path / 'b')


def test_never_step_0_in_silence(tmp_path, straight):
    for path in straight.glob(CHECKPOINTS):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning), pytest.raises(ValueError, match='none of the 2 checkpoints'):
        fit(net(), fault(0, AssertionError('step 0')), CFG, straight, show=False)
    for path in straight.glob(CHECKPOINTS):
        path.unlink()
    with pytest.warns(UserWarning, match='metrics up to iteration 12 but no checkpoint'):
        fit(net(), step, CFG, straight, show=False)


def test_metrics_that_were_cut_off(tmp_path, straight):
    with pytest.raises(OSError):
        fit(net(), fault(7, OSError('power cut')), CFG, tmp_path / 'b', show=False)
    with open(tmp_path / 'b' / 'metrics.jsonl', 'a') as f:
        f.write('{"step": 7, "lo')
    again(tmp_path / 'b')
    assert [m['loss'] for m in metrics(tmp_path / 'b')] == [m['loss'] for m in metrics(straight)]


# --- no room, no right ---


@pytest.fixture
def small_disk(tmp_path):
    "A file system of 128 kB; only where this process may mount one."
    place = tmp_path / 'small'
    place.mkdir()
    if subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', 'size=128k', 'tmpfs', place], capture_output=True
    ).returncode:
        pytest.skip('may not mount a file system')
    yield place
    subprocess.run(['umount', '-l', place], check=True)


@pytest.mark.parametrize('room', [0, 2, 4])
def test_full_disk(small_disk, straight, room):
    "The disk fills up after `room` kB; once there is room again the run ends as if nothing had happened."
    folder, filler = small_disk / 'run', small_disk / 'filler'

    def fills(model, i):
        if i == 5:
            free = os.statvfs(small_disk)
            filler.write_bytes(b'x' * max(free.f_bavail * free.f_bsize - room * 1024, 0))
        yield loss_of(model, i)

    with pytest.raises(OSError, match='No space left') as caught:
        fit(net(), fills, CFG, folder, show=False)
    if '00000' in str(caught.value):
        assert 'checkpoint-0000000' in str(caught.value) and 'make room' in str(caught.value)
    assert newest_checkpoint(folder)[1]['done'] >= 4 and not list(folder.glob('.*.tmp'))
    filler.unlink()
    again(folder)
    assert_same(straight, folder)


@pytest.mark.parametrize('at', [4, 8, 12])
def test_disk_full_at_each_checkpoint(tmp_path, straight, monkeypatch, at):
    real = core.save_file

    def full(tensors, path, metadata):
        if f'{at:08d}' in str(path):
            Path(path).write_bytes(b'half')
            raise OSError(28, 'No space left on device')
        real(tensors, path, metadata)

    monkeypatch.setattr(core, 'save_file', full)
    with pytest.raises(
        OSError,
        match=f'iteration {at} could not be written.*No space left.*'
        + ('none before' if at == 4 else f'checkpoint-{at - 4:08d}.*make room'),
    ):
        fit(net(), step, CFG, tmp_path / 'b', show=False)
    monkeypatch.undo()
    again(tmp_path / 'b')
    assert_same(straight, tmp_path / 'b')


def test_too_large_a_file(tmp_path, straight):
    "A limit on the size of files (ulimit -f)."
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(model, i):
        if i == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2500, before[1]))
        yield loss_of(model, i)

    try:
        with pytest.raises(OSError, match='iteration 8 could not be written.*checkpoint-00000004'):
            fit(net(), limit, CFG, tmp_path / 'b', show=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    again(tmp_path / 'b')
    assert_same(straight, tmp_path / 'b')


def test_no_right_to_write_is_seen_before_any_work(tmp_path):
    (tmp_path / 'file').write_text('')
    for place in (tmp_path / 'file', tmp_path / 'file' / 'below'):
        with pytest.raises(OSError):
            fit(net(), fault(0, AssertionError('too late')), CFG, place, show=False)


def test_read_only_file_system(tmp_path, straight):
    place = tmp_path / 'bound'
    place.mkdir()
    if subprocess.run(['mount', '--bind', straight, place], capture_output=True).returncode:
        pytest.skip('may not mount a file system')
    try:
        if subprocess.run(
            ['mount', '-o', 'remount,ro,bind', place], capture_output=True
        ).returncode:
            pytest.skip('may not remount a file system')
        with pytest.raises(OSError, match='[Rr]ead-only'):
            fit(net(), fault(0, AssertionError('too late')), CFG, place, show=False)
    finally:
        subprocess.run(['umount', '-l', place], check=True)


# --- which checkpoints stay ---


@pytest.mark.parametrize('keep', [1, 2, 3, 10])
def test_the_last_n_and_the_best_stay(tmp_path, keep):
    def hump(model, i):
        yield loss_of(model, i) + (0.0 if i == 5 else float(10 + i))

    fit(net(), hump, replace(CFG, checkpoint_every=2, log_every=1, keep=keep), tmp_path, show=False)
    assert [int(p.stem[-8:]) for p in sorted(tmp_path.glob(CHECKPOINTS))] == [2, 4, 6, 8, 10, 12][
        -keep:
    ]
    _, meta = read_checkpoint(tmp_path / BEST)
    assert meta['done'] == 6 and meta['best'] == {'step': 6, 'loss': meta['history'][-1]['loss']}
    assert newest_checkpoint(tmp_path)[1]['best'] == meta['best']


def test_the_best_takes_no_room(straight):
    assert sum(p.stat().st_nlink for p in straight.glob('*.safetensors')) > len(
        list(straight.glob('*.safetensors'))
    )


@pytest.mark.parametrize(
    'change',
    [dict(keep=5), dict(on_nan='skip'), dict(log_every=1), dict(checkpoint_every=3)],
    ids=str,
)
def test_what_does_not_change_the_run_may_change(tmp_path, straight, change):
    with pytest.raises(OSError):
        fit(net(), fault(7, OSError('power cut')), CFG, tmp_path / 'b', show=False)
    again(tmp_path / 'b', **change)
    (ta, _), (tb, _) = newest_checkpoint(straight), newest_checkpoint(tmp_path / 'b')
    assert all(torch.equal(ta[k], tb[k]) for k in ta)


@pytest.mark.parametrize(
    'hardware',
    [Hardware(on_oom='halve'), Hardware(peak_tflops=1.0), Hardware(channels_last=False)],
    ids=str,
)
def test_hardware_may_change(tmp_path, straight, hardware):
    with pytest.raises(OSError):
        fit(net(), fault(7, OSError('power cut')), CFG, tmp_path / 'b', show=False)
    with pytest.raises(ValueError, match=r'local_batch\(\)'):
        fit(net(), step, CFG, tmp_path / 'b', show=False, hardware=Hardware(accumulate=2))
    fit(net(), step, CFG, tmp_path / 'b', show=False, hardware=hardware)
    (ta, _), (tb, _) = newest_checkpoint(straight), newest_checkpoint(tmp_path / 'b')
    assert all(torch.equal(ta[k], tb[k]) for k in ta)


def test_checksum_sees_names_types_shapes_and_order_of_nothing():
    one, meta = {'a': torch.ones(4), 'b': torch.zeros(2)}, {'done': 1, 'x': 0.1}
    base = checksum(one, meta)
    assert checksum(dict(reversed(one.items())), {'x': 0.1, 'done': 1}) == base
    for tensors, other in (
        ({'a': torch.ones(2, 2), 'b': one['b']}, meta),
        ({'c': one['a'], 'b': one['b']}, meta),
        ({'a': one['a'].int().view(torch.int32), 'b': one['b']}, meta),
        (one, meta | {'x': 0.2}),
        ({'a': one['a']}, meta),
    ):
        assert checksum(tensors, other) != base


# --- older and newer versions, foreign files ---

OLD = (
    Path(__file__).parent / 'old_run'
)  # written by a version whose TrainConfig had the fields of Hardware, and numbers for Adam's parameters


def old_step(model, i):
    yield loss_of(model, i)


def test_checkpoints_of_older_versions_are_read(tmp_path):
    shutil.copy(OLD / 'checkpoint-00000008.safetensors', tmp_path)
    tensors, meta = read_checkpoint(OLD / 'checkpoint-00000008.safetensors')
    assert (
        'optim.0.exp_avg' in tensors
        and meta['config']['precision'] == 'no'
        and 'tensorboard' in meta['config']
    )
    want, _ = read_checkpoint(OLD / 'end.safetensors')
    fit(net(), old_step, CFG, tmp_path, show=False)
    got, meta = newest_checkpoint(tmp_path)
    assert meta['done'] == 12 and 'optim.0.weight.exp_avg' in got
    names = {str(i): name for i, (name, _) in enumerate(net().named_parameters())}
    for key, value in want.items():
        for i, name in names.items():
            key = (
                key.replace(f'optim.{i}.', f'optim.{name}.')
                if key.split('.')[1] == i and key.count('.') == 2
                else key
            )
        torch.testing.assert_close(got[key], value, rtol=1e-6, atol=1e-7)


def rewrite(path, change):
    "Another content of a checkpoint, with the checksum that fits it."
    tensors, meta = read_checkpoint(path)
    change(tensors, meta)
    path.unlink()  # it may have a second name
    core.save_tensors(path, tensors, dict(meta, checksum=checksum(tensors, meta)))


def test_a_field_of_a_newer_version_is_named(straight):
    rewrite(
        checkpoint_path(straight, 12), lambda tensors, meta: meta['config'].update(momentum=0.9)
    )
    with pytest.raises(ValueError, match='checkpoint-00000012.*newer version.*momentum'):
        fit(net(), step, CFG, straight, show=False)


def test_numbers_of_another_type_are_refused(straight):
    def to_int64(tensors, meta):
        tensors['model.0.weight'] = tensors['model.0.weight'].long()

    rewrite(checkpoint_path(straight, 12), to_int64)
    with pytest.raises(ValueError, match='another model: 0.weight is int64.*float32'):
        fit(net(), step, CFG, straight, show=False)


def test_nan_with_a_checksum_that_fits_is_not_used(tmp_path, straight):
    again(tmp_path / 'b')

    def to_nan(tensors, meta):
        tensors['ema.module.0.bias'][1] = float('nan')

    rewrite(checkpoint_path(tmp_path / 'b', 12), to_nan)
    with pytest.warns(
        UserWarning, match='00000012.*ema.module.0.bias holds NaN.*the checkpoint before'
    ):
        fit(net(), step, CFG, tmp_path / 'b', show=False)
    assert_same(straight, tmp_path / 'b')


def test_a_folder_in_place_of_the_newest_checkpoint(tmp_path, straight):
    again(tmp_path / 'b')
    path = checkpoint_path(tmp_path / 'b', 12)
    path.unlink()
    path.mkdir()
    with pytest.warns(UserWarning, match='00000012.*the checkpoint before'):
        fit(net(), step, CFG, tmp_path / 'b', show=False)
    assert_same(straight, tmp_path / 'b')


def test_binary_metrics_do_not_stop_a_resume(tmp_path, straight):
    with pytest.raises(OSError):
        fit(net(), fault(7, OSError('power cut')), CFG, tmp_path / 'b', show=False)
    with open(tmp_path / 'b' / 'metrics.jsonl', 'ab') as f:
        f.write(b'\xff\xfe\x00\n[1]\n"text"\n{"loss": 1}\n')
    again(tmp_path / 'b')
    assert [m['loss'] for m in metrics(tmp_path / 'b')] == [m['loss'] for m in metrics(straight)]


@pytest.mark.parametrize('content', ['', '[1]', '{"batch": ', '\x00'])
def test_a_damaged_run_note_is_named(tmp_path, content):
    (tmp_path / 'run.json').write_text(content)
    with pytest.raises(ValueError, match='run.json is'):
        claim_folder(tmp_path, dict(batch=3))


def test_same_run_says_what_differs():
    assert same_run(dict(a=1, log_every=5, keep=1), dict(a=1, log_every=6, keep=2)) == []
    assert (
        same_run(dict(a=(1, 2)), dict(a=[1, 2], new=3), dict(new=3))
        == []
        == same_run(dict(a=1, b=2), dict(a=1, b=3), free=['b'])
    )
    assert same_run(dict(a=1, gone=2), dict(a=2, new=3)) == [
        'a: 1 there, 2 now',
        'new: not there, 3 now',
        'gone: 2 there, not now',
    ]


# --- one folder, one run ---

WAITS = """
import sys
import test_training as t
def step(model, i):
    if i == 2: print('running', flush=True); sys.stdin.read()
    yield from t.step(model, i)
t.fit(t.net(), step, t.CFG, sys.argv[1], show=False)"""


def started(folder):
    "A run in another process, which has done two iterations and waits for the end of its input."
    return Waiting(WAITS, folder, ready='running')


def test_a_second_run_in_a_folder_is_refused(tmp_path, straight):
    child = started(tmp_path / 'b')
    with pytest.raises(OSError, match='in use by another process'):
        fit(net(), fault(0, AssertionError('too late')), CFG, tmp_path / 'b', show=False)
    assert child.finish()[0] == 0
    again(tmp_path / 'b')
    assert_same(straight, tmp_path / 'b')


def test_sigterm_saves_and_ends_as_sigterm_does(tmp_path, straight):
    child = started(tmp_path / 'b')
    child.process.send_signal(signal.SIGTERM)
    code, said = child.finish()
    assert code == -signal.SIGTERM and f'run it again to go on from {tmp_path / "b"}' in said
    assert newest_checkpoint(tmp_path / 'b')[1]['done'] == 3
    again(tmp_path / 'b')
    (ta, _), (tb, _) = newest_checkpoint(straight), newest_checkpoint(tmp_path / 'b')
    assert all(torch.equal(ta[k], tb[k]) for k in ta)


# --- longer runs ---


@pytest.mark.parametrize('warmup', [0, 3])
def test_a_finished_run_is_lengthened(tmp_path, warmup):
    cfg = replace(CFG, schedule='constant', warmup=warmup)
    fit(net(), step, replace(cfg, steps=20), tmp_path / 'a', show=False)
    fit(net(), step, cfg, tmp_path / 'b', show=False)
    fit(net(), step, replace(cfg, steps=20), tmp_path / 'b', show=False)
    assert_same(tmp_path / 'a', tmp_path / 'b')
    with pytest.raises(ValueError, match='steps: 20 there, 12 now'):
        fit(net(), step, cfg, tmp_path / 'b', show=False)


@pytest.mark.parametrize('schedule', ['cosine', 'linear', 'drop'])
def test_where_the_rates_depend_on_steps_the_message_says_so(tmp_path, schedule):
    cfg = replace(CFG, schedule=schedule)
    fit(net(), step, cfg, tmp_path, show=False)
    with pytest.raises(
        ValueError,
        match=f'steps: 12 there, 20 now.*the {schedule} schedule every learning rate depends on steps',
    ):
        fit(net(), step, replace(cfg, steps=20), tmp_path, show=False)


# --- what is no step function ---


def test_a_step_without_a_loss_is_refused():
    def nothing(model, i):
        if i > 99:
            yield

    with pytest.raises(ValueError, match='yielded no loss in iteration 0'):
        fit(net(), nothing, CFG, show=False)
    with pytest.raises(TypeError, match='must yield its losses, got Tensor'):
        fit(net(), loss_of, CFG, show=False)


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match='warmup=13 and steps=12.*never reach lr'):
        replace(CFG, warmup=13)


# --- networks with buffers of their own ---


class Buffered(torch.nn.Module):
    "A causal mask, running statistics, and a table that the first forward makes."

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(2, 2)
        self.register_buffer('table', None, persistent=False)
        self.register_buffer('scale', torch.ones(2))
        self.register_buffer('mask', torch.tensor([0.0, -torch.inf]))
        self.norm = torch.nn.BatchNorm1d(2)

    def forward(self, x):
        if self.table is None:
            self.table = torch.arange(2.0)
        return self.layer(self.norm(x)) * self.scale + self.table + self.mask.exp()


def test_a_mask_of_infinities_is_kept_and_an_average_has_its_own_buffers(tmp_path):
    run = fit(Buffered(), step, CFG, tmp_path, show=False)
    kept = run.ema.module if hasattr(run.ema, 'module') else run.ema
    assert kept.scale.tolist() == [1, 1] and kept.table.tolist() == [0, 1]
    again = fit(Buffered(), step, CFG, tmp_path, show=False)
    assert torch.equal(again.model.layer.weight, run.model.layer.weight)
    spoilt = Buffered()
    spoilt.mask[0] = torch.nan
    with pytest.raises(FloatingPointError, match='mask is no longer finite'):
        fit(spoilt, lambda m, i: iter([m.layer.weight.sum()]), CFG, tmp_path / 'nan', show=False)


def test_a_skipped_update_leaves_no_trace_in_running_statistics(tmp_path):
    def poisoned(model, i):
        x = torch.randn(8, 2, generator=torch.Generator().manual_seed(i))
        yield model(x * (torch.nan if i == 2 else 1.0)).square().mean()

    run = fit(Buffered(), poisoned, replace(CFG, on_nan='skip'), tmp_path, show=False)
    assert run.model.norm.running_mean.isfinite().all() and run.history[-1]['step'] == CFG.steps


def test_a_disk_without_hard_links_keeps_the_best_as_a_copy(tmp_path, monkeypatch):
    def unlinked(*where):
        raise OSError(95, 'Operation not supported')

    monkeypatch.setattr(os, 'link', unlinked)
    fit(net(), step, CFG, tmp_path, show=False)
    fit(net(), step, CFG, tmp_path, show=False)
    best = read_checkpoint(tmp_path / BEST)[1]
    assert best['done'] == best['best']['step']


def test_what_was_done_before_a_hook_failed_is_kept(tmp_path):
    class Fails:
        def after_iteration(self, state):
            if state.done == 7:
                raise RuntimeError('a hook of mine')

    with pytest.raises(RuntimeError, match='a hook of mine'):
        fit(net(), step, CFG, tmp_path / 'a', show=False, hooks=[Fails()])
    assert newest_checkpoint(tmp_path / 'a')[1]['done'] == 7
    for folder in 'ab':
        fit(net(), step, CFG, tmp_path / folder, show=False)
    mine, whole = (newest_checkpoint(tmp_path / folder)[0] for folder in 'ab')
    assert all(torch.equal(mine[k], whole[k]) for k in whole)


def test_labels_are_told_apart_by_their_names():
    a, b = torch.arange(3), torch.arange(3, 6)
    assert fingerprint(dict(e=a, f=b)) == fingerprint(dict(f=b, e=a)) != fingerprint(dict(e=b, f=a))
