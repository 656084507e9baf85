"Seeds, trajectories, counting, guards and files: bad input, and what must survive it."

import contextlib
import json
import math
import os
import pickle
import subprocess
import sys
import time
from collections import OrderedDict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest
import torch

import bdense_nb
import forks
from bdense_nb import core
from bdense_nb.core import (
    Above0,
    AtLeast1,
    Fraction,
    NFECounter,
    Trajectory,
    Within,
    atomic_path,
    check_choice,
    existing_file,
    check_int,
    check_number,
    check_sigmas,
    check_state,
    copied,
    data_dir,
    about_run,
    default_device,
    load_tensors,
    reworded,
    sample_labels,
    sample_noise,
    seeded,
    save_tensors,
    sha256,
    validate,
    write_json,
)
from bdense_nb.training.checkpoints import write_checkpoint
from warm import python


# --- seeds ---
@pytest.mark.parametrize(
    'shape', [(2,), (3, 4, 4), (1, 28, 28)]
)  # fewer and more than 16 numbers: torch fills them differently
def test_batch_size_and_order_change_no_sample(shape):
    whole = sample_noise(range(12), shape)
    for batch in (1, 5, 12):
        assert torch.equal(
            whole,
            torch.cat([sample_noise(range(12)[i : i + batch], shape) for i in range(0, 12, batch)]),
        )
    assert torch.equal(sample_noise([9, 0, 4], shape), whole[[9, 0, 4]])
    assert torch.equal(sample_labels([9, 0, 4], 10), sample_labels(range(12), 10)[[9, 0, 4]])


def test_the_global_generator_is_neither_read_nor_moved():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = sample_noise([1], (5,)), sample_labels([1], 10)
    assert torch.equal(before, torch.get_rng_state())
    with seeded(3):
        drawn = torch.randn(2)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    with seeded(3):
        assert torch.equal(drawn, torch.randn(2))
    assert torch.equal(first[0], sample_noise([1], (5,))) and torch.equal(
        first[1], sample_labels([1], 10)
    )


def test_small_seeds_are_torchs_own():
    assert torch.equal(
        sample_noise([7], (20,))[0], torch.randn(20, generator=torch.Generator().manual_seed(7))
    )


@pytest.mark.parametrize('far', [2**32, 2**33, 7 * 10**9, 2**63, 2**64, 10**30])
def test_seeds_beyond_32_bits_are_seeds_of_their_own(far):
    assert not torch.equal(sample_noise(range(far, far + 4), (8,)), sample_noise(range(4), (8,)))
    assert len(sample_noise(range(far, far + 50), (1,)).unique()) == 50
    assert not torch.equal(sample_labels(range(far, far + 50), 10), sample_labels(range(50), 10))


def test_seeds_may_be_numpy_or_torch_whole_numbers():
    assert torch.equal(sample_noise(np.arange(3), (2,)), sample_noise(torch.arange(3), (2,)))
    assert sample_noise([], (2,)).shape == (0, 2) and sample_labels([], 10).shape == (0,)


@pytest.mark.parametrize(
    'seed, error', [(-1, ValueError), (1.5, TypeError), ('3', TypeError), (None, TypeError)]
)
def test_bad_seeds(seed, error):
    for draw in (lambda: sample_noise([0, seed], (2,)), lambda: sample_labels([0, seed], 10)):
        with pytest.raises(error, match=f'seed must be .*{seed}'):
            draw()


@pytest.mark.parametrize('seeds', [5, None])
def test_one_number_is_not_a_list_of_seeds(seeds):
    with pytest.raises(TypeError):
        sample_noise(seeds, (2,))


@pytest.mark.parametrize('n', [0, -1, 2.5])
def test_bad_number_of_classes(n):
    with pytest.raises(ValueError, match='n_classes'):
        sample_labels([0], n)


# --- device, trajectory, counter ---
def test_default_device_works():
    assert torch.zeros(1, device=default_device()).item() == 0


def test_hardware_is_that_of_the_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device: f'GPU {device.index}')
    assert about_run('cuda:1')['hardware'] == 'GPU 1'
    assert about_run('cpu')['hardware'].startswith('cpu, ')


@pytest.mark.parametrize(
    'rank, device',
    [
        (None, torch.device('cuda')),
        ('0', torch.device('cuda', 0)),
        ('3', torch.device('cuda', 3)),
        ('5', torch.device('cuda', 1)),  # a process may see fewer than its node has
    ],
    ids=str,
)
def test_each_process_has_its_own_gpu(monkeypatch, rank, device):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    if rank is not None:
        monkeypatch.setenv('LOCAL_RANK', rank)
    assert default_device() == device


@pytest.mark.parametrize(
    'sigmas, xs, error, message',
    [
        ([2.0, 1.0], torch.zeros(2, 3, 1), TypeError, 'sigmas must be a torch.Tensor'),
        (torch.tensor([2.0, 1.0]), [1, 2], TypeError, 'xs must be a torch.Tensor'),
        (torch.tensor([2.0, 1.0]), torch.zeros(3, 4, 1), ValueError, '3 states for 2 levels'),
        (torch.tensor([1.0, 2.0]), torch.zeros(2, 4, 1), ValueError, 'descend'),
        (torch.tensor([1.0, 1.0]), torch.zeros(2, 4, 1), ValueError, 'descend'),
        (torch.tensor([2.0, float('nan')]), torch.zeros(2, 4, 1), ValueError, 'descend'),
        (torch.tensor([[2.0, 1.0]]), torch.zeros(1, 4, 1), ValueError, r'\(1, 2\)'),
        (torch.tensor([2.0, 1.0]), torch.zeros(2), ValueError, r'\(2,\)'),
    ],
)
def test_bad_trajectory(sigmas, xs, error, message):
    with pytest.raises(error, match=message):
        Trajectory(sigmas, xs)


def test_trajectory_is_a_sequence_of_states():
    t = Trajectory(torch.tensor([2.0, 1.0, 0.0]), torch.arange(6.0).reshape(3, 2, 1))
    assert len(t) == 3 and len(list(t)) == 3 and torch.equal(t[-1], t.xs[2])
    with pytest.raises(AttributeError):
        t.xs = t.xs  # frozen


def test_counter_counts_and_passes_everything_on():
    seen, x = [], torch.ones(2, 1)
    counter = NFECounter(lambda *args: seen.append(args) or args[0] + 1)
    assert (
        torch.equal(counter(x, 3.0, torch.tensor([1, 2])), x + 1)
        and counter(x, sigma=1.0) is not None
    )
    assert (
        counter.nfe == 2
        and seen[0][0] is x
        and seen[0][1] == 3.0
        and seen[0][2].tolist() == [1, 2]
        and seen[1][2] is None
    )


def test_counter_counts_calls_that_fail():
    def broken(x, sigma, label=None):
        raise RuntimeError('out of memory')

    counter = NFECounter(broken)
    with pytest.raises(RuntimeError, match='out of memory'):
        counter(torch.ones(1, 1), 1.0)
    assert counter.nfe == 1


class Inside(torch.nn.Module):
    "A denoiser around a network with layers of its own."

    def __init__(self, net=None):
        super().__init__()
        self.net = net or torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.Linear(2, 1))

    def to_x0(self, raw, x, sigma):
        return raw

    def forward(self, x, sigma, label=None):
        return self.net(x)


class Guided(torch.nn.Module):
    "Guidance by a second call, or by one of double size."

    def __init__(self, inner, doubled):
        super().__init__()
        self.inner, self.doubled = inner, doubled

    def forward(self, x, sigma, label=None):
        if not self.doubled:
            return 2 * self.inner(x, sigma) - self.inner(x, sigma)
        a, b = self.inner(torch.cat([x, x]), sigma).chunk(2)
        return 2 * a - b


class Plain:
    "The same without being a module."

    def __init__(self, inner):
        self.parts = dict(inner=inner)

    def __call__(self, x, sigma, label=None):
        return self.parts['inner'](x, sigma) - self.parts['inner'](x, sigma)


class Adapter(torch.nn.Module):
    "A foreign module that guides by itself, seen from outside as one network."

    def __init__(self, unet):
        super().__init__()
        self.unet = unet

    def forward(self, x, *sigma):
        return self.unet(x, *sigma) + self.unet(x, *sigma)


@pytest.mark.parametrize(
    'denoiser, nfe',
    [
        (Inside(), 1),
        (Guided(Inside(), False), 2),
        (Guided(Inside(), True), 2),
        (Plain(Inside()), 2),
        (Plain(NFECounter(Inside())), 2),
        (NFECounter(Guided(Inside(), True)), 2),
        (Inside(Adapter(Inside().net)), 2),
        (Guided(Inside(Adapter(Inside().net)), False), 4),
        (Guided(Plain(Inside()), True), 4),
        (lambda x, sigma, label=None: x, 1),
        (Plain(lambda x, sigma, label=None: x), 1),
    ],
)
@pytest.mark.parametrize('batch', [1, 5])
def test_counter_counts_every_call_of_the_network(denoiser, nfe, batch):
    counter = NFECounter(denoiser)
    for _ in range(3):
        counter(torch.ones(batch, 1), 2.0)
    assert counter.nfe == 3 * nfe
    modules = denoiser.modules() if isinstance(denoiser, torch.nn.Module) else []
    assert not any(m._forward_pre_hooks for m in modules)


def test_counter_needs_a_denoiser():
    with pytest.raises(TypeError, match='callable'):
        NFECounter('euler')


# --- guards ---
@pytest.mark.parametrize('value', ['huen', None, 3, ['euler'], ''])
def test_choice(value):
    with pytest.raises(ValueError, match='solver.*euler, heun'):
        check_choice('solver', value, {'euler': 1, 'heun': 2})
    check_choice('solver', 'heun', {'euler': 1, 'heun': 2})


@pytest.mark.parametrize('value', [0, 9, -1, 2.0, '3', True, None, float('nan')])
def test_int(value):
    with pytest.raises(ValueError, match=f'K must be .*{value}'):
        check_int('K', value, 1, 8)
    for good in (1, 8):
        check_int('K', good, 1, 8)


@pytest.mark.parametrize(
    'grid, message',
    [
        ([1.0, 2.0], 'strictly descending'),
        ([2.0, 2.0], 'level 1'),
        ([4.0, 3.0, 3.5], r'level 2 \(3.5\)'),
        ([1.0], r'\(1,\)'),
        ([], r'\(0,\)'),
        (3.0, r'\(\)'),
        ([[2.0, 1.0]], r'\(1, 2\)'),
        ([float('nan'), 1.0], 'finite'),
        ([float('inf'), 1.0], 'finite'),
        ([1.0, -1.0], 'at least 0'),
    ],
)
def test_grid(grid, message):
    with pytest.raises(ValueError, match=message):
        check_sigmas(grid)


def test_grid_zero_only_where_it_may_be():
    assert check_sigmas([2, 1, 0]).dtype == torch.float64
    with pytest.raises(ValueError, match='above 0'):
        check_sigmas([2, 1, 0], zero_ok=False)


@pytest.mark.parametrize(
    'x, error, message',
    [
        (np.zeros((2, 2)), TypeError, 'ndarray'),
        (torch.zeros(2, 2, dtype=torch.long), TypeError, 'int64'),
        (torch.zeros(3), ValueError, r'\(3,\)'),
        (torch.tensor([[1.0, float('nan')], [float('inf'), 0.0]]), ValueError, '2 NaN or infinite'),
    ],
)
def test_state(x, error, message):
    with pytest.raises(error, match=message):
        check_state(x)
    with pytest.raises(error, match='start'):
        check_state(x, 'start')


# --- files ---
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    p = tmp_path / 'a'
    p.write_text('old')
    with pytest.raises(KeyboardInterrupt), atomic_path(p) as tmp:
        tmp.write_text('ne')
        raise KeyboardInterrupt
    assert p.read_text() == 'old' and list(tmp_path.iterdir()) == [p]


def test_a_killed_write_leaves_the_old_file(tmp_path):
    p = tmp_path / 'a'
    p.write_text('old')
    code = "import os, sys\nfrom bdense_nb.core import atomic_path\nwith atomic_path(sys.argv[1]) as tmp: tmp.write_text('ne'); os._exit(3)"
    assert python(code, p).returncode == 3
    assert p.read_text() == 'old'
    with atomic_path(p) as tmp:
        tmp.write_text('new')  # and the next write goes through
    assert p.read_text() == 'new'


def test_what_has_its_name_is_on_the_disk(tmp_path, monkeypatch):
    "The contents before the name; of a checkpoint the name, too, before an older one goes."
    synced = []
    monkeypatch.setattr(
        os,
        'fsync',
        lambda fd: synced.append(
            (os.fstat(fd).st_ino, sorted(p.name for p in tmp_path.glob('[a-z]*')))
        ),
    )
    core.write_json(tmp_path / 'one', {})
    assert synced == [((tmp_path / 'one').stat().st_ino, [])]
    for done in 1, 2:
        path = write_checkpoint(tmp_path, {}, dict(done=done), keep=1)
    names = [f'checkpoint-{done:08d}.safetensors' for done in (1, 2)]
    assert path.name == names[1] and synced[-2:] == [
        (path.stat().st_ino, [names[0], 'one']),
        (tmp_path.stat().st_ino, [*names, 'one']),
    ]


def test_folders_are_made_and_files_are_readable(tmp_path):
    p = tmp_path / 'x' / 'y' / 'a.json'
    write_json(p, {'n': [1, 2.5, None]})
    assert json.loads(p.read_text()) == {'n': [1, 2.5, None]} and p.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    'bad, error',
    [(float('nan'), ValueError), (float('inf'), ValueError), (torch.ones(1), TypeError)],
)
def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path, bad, error):
    p = tmp_path / 'a.json'
    write_json(p, 1)
    with pytest.raises(error):
        write_json(p, {'x': bad})
    with pytest.raises(error):
        save_tensors(tmp_path / 'b.safetensors', {'a': torch.ones(1)}, {'x': bad})
    assert json.loads(p.read_text()) == 1 and list(tmp_path.iterdir()) == [p]


def test_tensors_come_back_as_they_were(tmp_path):
    p, base = tmp_path / 'w.safetensors', torch.arange(6.0)
    tensors = {
        'a': base,
        'shared': base,
        'view': base.reshape(2, 3).T,
        'half': base.to(torch.bfloat16),
        'n': torch.tensor(3),
        'grad': torch.nn.Parameter(base),
    }
    save_tensors(p, tensors, {'seed': 1, 'name': 'Ärmel'})
    back, meta = load_tensors(p)
    assert meta == {'seed': 1, 'name': 'Ärmel'} and back.keys() == tensors.keys()
    for k, v in tensors.items():
        assert torch.equal(back[k], v.detach()) and back[k].dtype == v.dtype
    assert load_tensors(p)[0]['grad'].requires_grad is False


def test_loaded_tensors_do_not_change_with_the_file(tmp_path):
    p = tmp_path / 'w.safetensors'
    save_tensors(p, {'a': torch.ones(100)})
    back, _ = load_tensors(p)
    p.write_bytes(bytes(p.stat().st_size))
    assert torch.equal(back['a'], torch.ones(100))


def test_every_truncated_tensor_file_is_refused(tmp_path):
    p = tmp_path / 'w.safetensors'
    save_tensors(p, {'a': torch.ones(50), 'b': torch.zeros(3)}, {'seed': 1})
    raw = p.read_bytes()
    for keep in range(0, len(raw), 7):
        p.write_bytes(raw[:keep])
        with pytest.raises(ValueError, match='w.safetensors is not a readable'):
            load_tensors(p)


@pytest.mark.parametrize(
    'content', [b'', b'hello', pickle.dumps({'a': 1}), b'PK\x03\x04' + bytes(100), bytes(200)]
)
def test_foreign_files_are_refused(tmp_path, content):
    p = tmp_path / 'w.safetensors'
    p.write_bytes(content)
    with pytest.raises(ValueError, match='w.safetensors is not a readable'):
        load_tensors(p)


def test_missing_files_and_folders(tmp_path):
    for p in (tmp_path / 'none.safetensors', tmp_path):
        with pytest.raises(FileNotFoundError, match=str(p)):
            load_tensors(p)
    with pytest.raises(FileNotFoundError):
        sha256(tmp_path / 'none')


def test_only_tensors_are_saved(tmp_path):
    with pytest.raises(TypeError, match="'b' is a float"):
        save_tensors(tmp_path / 'w.safetensors', {'a': torch.ones(1), 'b': 1.0})
    assert not list(tmp_path.iterdir())


def test_sha256(tmp_path):
    (tmp_path / 'a').write_bytes(b'abc')
    assert (
        sha256(tmp_path / 'a') == 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'
    )


def test_an_error_in_other_words_keeps_its_cause():
    with (
        pytest.raises(OSError, match="^no room: 'full'$") as e,
        reworded(lambda e: f'no room: {e}', KeyError, RuntimeError, error=OSError),
    ):
        {}['full']
    assert isinstance(e.value.__cause__, KeyError)
    with pytest.raises(TypeError, match='^as it was$'), reworded(str, ValueError):
        raise TypeError('as it was')


# --- where the data is ---
def test_data_dir_has_two_homes(tmp_path, monkeypatch):
    assert (data_dir() / 'README.md').is_file()
    (tmp_path / 'bdense_nb').mkdir()
    monkeypatch.setattr(bdense_nb, '__file__', str(tmp_path / 'bdense_nb' / '__init__.py'))
    find = core.data_dir.__wrapped__  # without the cache
    with pytest.raises(FileNotFoundError, match='assets'):
        find()
    for home in (
        tmp_path / 'data',
        tmp_path / 'bdense_nb' / 'assets',
    ):  # the wheel's own data comes first
        home.mkdir()
        (home / 'README.md').touch()
        assert find() == home.resolve()


# --- what a type allows ---
@dataclass(frozen=True)
class Settings:
    loss: Literal['l1', 'l2'] = 'l1'
    n: AtLeast1 = 1
    few: Annotated[int, Within(at_least=0, at_most=3)] = 0
    rate: Above0 = 0.5
    decay: Fraction | None = None
    weights: Literal['linear', 'flat'] | tuple[float, ...] = 'linear'
    betas: tuple[float, float] = (0.9, 0.99)
    shape: tuple[AtLeast1, ...] = (1,)
    afs: bool = True
    layer: str | None = None

    def __post_init__(self):
        validate(self)


@pytest.mark.parametrize(
    'good',
    [
        dict(loss='l2', n=7, few=3, rate=2, decay=0.5, weights=(1, 0.5), layer='out', afs=False),
        dict(few=0, shape=(2, 3)),
    ],
    ids=str,
)
def test_values_that_their_types_allow(good):
    cfg = Settings(**good)
    assert (
        {k: getattr(cfg, k) for k in good} == good
        and Settings(**json.loads(json.dumps(asdict(cfg)))) == cfg
        and hash(cfg)
    )


@pytest.mark.parametrize(
    'bad, says',
    [
        (dict(loss='l3'), "loss must be one of: l1, l2, got 'l3'"),
        (dict(loss=None), 'got None'),
        (dict(n=0), 'n must be a whole number, at least 1, got 0'),
        (dict(n=True), 'got True'),
        (dict(n=1.0), 'got 1.0'),
        (dict(few=4), 'few must be a whole number, at least 0 and at most 3, got 4'),
        (dict(rate=0), 'rate must be a number, above 0, got 0'),
        (dict(rate=float('inf')), 'got inf'),
        (dict(rate='1'), "got '1'"),
        (dict(decay=1.0), 'decay must be a number, above 0 and below 1 or None, got 1.0'),
        (dict(decay=float('nan')), 'got nan'),
        (
            dict(weights='steep'),
            "weights must be one of: linear, flat or a tuple of any number of values, each a number, got 'steep'",
        ),
        (dict(weights=(1.0, float('nan'))), 'nan'),
        (dict(betas=(0.9,)), 'betas'),
        (
            dict(shape=(2, 0)),
            r'shape must be a tuple of any number of values, each a whole number, at least 1, got \(2, 0\)',
        ),
        (dict(shape=3), 'shape'),
        (dict(afs='no'), "afs must be True or False, got 'no'"),
        (dict(afs=1), 'afs'),
        (dict(layer=''), "layer must be a name or None, got ''"),
    ],
    ids=str,
)
def test_values_that_their_types_refuse(bad, says):
    with pytest.raises(ValueError, match=says):
        Settings(**bad)


@pytest.mark.parametrize('bad', [0, -1.0, 2.5, math.nan, math.inf, '1', None])
def test_a_number_outside_of_its_limits_is_refused(bad):
    with pytest.raises(
        ValueError, match=f'rho must be a finite number above 0 and at most 2, got {bad!r}'
    ):
        check_number('rho', bad, Within(above=0, at_most=2))
    check_number('rho', 2, Within(above=0, at_most=2))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f'no such data file: {tmp_path}'):
        existing_file(tmp_path, 'data file')
    assert existing_file(__file__) == Path(__file__)


@pytest.mark.parametrize(
    'content, says',
    [
        (b'{"score": 0.2', 'bad.json is not valid JSON'),
        (b'\xff', 'not valid JSON'),
        (b'[' * 100_000, 'not valid JSON'),
        (b'[1]', 'holds a list, not a dict'),
        (b'{}', 'bad.json is of another kind: it lacks score'),
    ],
    ids=['cut', 'no text', 'deep', 'a list', 'no score'],
)
def test_damaged_and_foreign_json_is_refused_by_name(tmp_path, content, says):
    (tmp_path / 'bad.json').write_bytes(content)
    with pytest.raises(ValueError, match=says):
        core.read_json(tmp_path / 'bad.json', ['score'])


def test_a_missing_extra_is_named_with_its_command():
    with pytest.raises(
        ImportError, match=r'this needs no_such_library.*pip install "bdense-nb\[search\]"'
    ):
        core.import_extra('no_such_library', 'search')


def test_a_copy_has_its_own_tables_of_hooks():
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    twin = copied(net)
    twin[0].register_forward_hook(lambda *_: None)
    assert [len(m._forward_hooks) for m in (*net, *twin)] == [0, 0, 1, 0]
    tables = [
        d for m in (net, *net, twin, *twin) for d in vars(m).values() if type(d) is OrderedDict
    ]
    assert len(set(map(id, tables))) == len(tables) > 50


def test_a_process_ends_with_the_one_that_started_it():
    "Also where that is killed: nobody would read what it makes."
    code = """
import multiprocessing, time
from bdense_nb.core import end_with_parent

def second(told):
    end_with_parent()
    told.send('it runs')
    time.sleep(600)

def first(told):
    multiprocessing.Process(target=second, args=(told,)).start()
    time.sleep(600)

read, told = multiprocessing.Pipe(duplex=False)
process = multiprocessing.Process(target=first, args=(told,))
process.start()
told.close()
print(read.recv())
process.kill()
try:
    read.recv()
except EOFError:
    print('and ended')
"""
    assert python(code).stdout.split('\n') == ['it runs', 'and ended', '']


def test_servers_of_forks_end_with_a_killed_test(tmp_path):
    code = f"""
import sys; sys.path.insert(0, {str(Path(forks.__file__).parent)!r})
from forks import Server
server, sleep = Server(), 'import time; time.sleep(600)'
print(server.begin('-c', sleep, log={str(tmp_path / 'log')!r}).pid, server.process.pid, flush=True)
server.run('python', '-c', sleep)"""
    first = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in first.stdout.readline().split()]
    first.kill()
    first.communicate()

    def runs(pid):
        with contextlib.suppress(OSError):
            return Path(f'/proc/{pid}/stat').read_text().rpartition(') ')[2][0] != 'Z'

    for _ in range(1000):
        if not any(map(runs, pids)):
            return
        time.sleep(0.02)
    raise AssertionError('they run on')
