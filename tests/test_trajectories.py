"Teacher trajectories from seeds: identity, banks in memory and on disk, resumption, and what is refused."

import copy
import json
import logging
import math
import operator
import os
import random
import threading
import warnings
import weakref
from collections import defaultdict, deque
from dataclasses import replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bdense_nb.distillation import bank as trajectories
from bdense_nb.core import (
    NFECounter,
    Trajectory,
    copied,
    load_tensors,
    sample_labels,
    sample_noise,
    save_tensors,
)
from bdense_nb.diffusion.denoisers import EDMDenoiser, GaussianDenoiser, MixtureDenoiser
from bdense_nb.diffusion.denoisers import ModuleDenoiser, VPDenoiser
from bdense_nb.diffusion.stored import load_teacher
from bdense_nb.diffusion.nets import MLP, UNet
from bdense_nb.diffusion.samplers import SOLVERS, trajectory
from bdense_nb.diffusion.schedules import linear_alpha_bar, nested_sigmas
from bdense_nb.distillation.bank import (
    answers,
    TrajectoryBank,
    TrajectoryPlan,
    bank_megabytes,
    denoiser_hash,
    device_of,
    draw_start,
    frozen_copy,
    make_bank,
)
from bdense_nb.distillation.branches import branch
from safetensors.torch import save_file
from torch import nn
from warm import held, torchrun

FINE = tuple(nested_sigmas(3, 4)[0].tolist())
PLAN = TrajectoryPlan(FINE, 'dpmpp3m', (2,))
BLOBS = MixtureDenoiser(
    torch.tensor([[-1.0, -0.6], [1.0, -0.6], [0.0, 1.0]]), torch.full((3,), 0.15), torch.ones(3)
)
SEEDS = range(50, 50 + 2304)  # shards of 1024, 1024 and 256


def classy(seed=0):
    torch.manual_seed(seed)
    net = MLP(2, 8, 1, n_classes=10)
    nn.init.normal_(net.out.weight, std=0.3)
    return EDMDenoiser(net)


def bank_of(kind, folder, teacher=BLOBS, **changes):
    return make_bank(
        teacher,
        **(dict(plan=PLAN, seeds=SEEDS, batch=128, show=False) | changes),
        folder=folder if kind == 'folder' else None,
    )


def walked(seeds, teacher=BLOBS, plan=PLAN):
    "The same trajectories, computed now in the bank's batches."
    return torch.cat(
        [plan.trajectories(teacher, SEEDS[i : i + 128])[0].xs for i in range(0, len(SEEDS), 128)], 1
    )[:, seeds.start - SEEDS.start : seeds.stop - SEEDS.start]


def shards(folder):
    return sorted(folder.glob('*.safetensors'))


# --- the start, the copy, the hash ---


@pytest.mark.parametrize('shape', [(2,), (1, 4, 4)])
def test_start_depends_on_the_seed_alone(shape):
    x, label = draw_start(GaussianDenoiser(0.0, 0.5), shape, range(5, 9), 80.0)
    assert torch.equal(x, 80 * sample_noise(range(5, 9), shape)) and label is None
    x, label = draw_start(classy(), (2,), [7, 5], 3.0)
    assert torch.equal(x, 3 * sample_noise([7, 5], (2,))) and torch.equal(
        label, sample_labels([7, 5], 10)
    )


def test_device():
    assert (
        device_of(classy())
        == device_of(BLOBS)
        == device_of(lambda x, s, y=None: x)
        == torch.device('cpu')
    )
    assert device_of(classy().to('meta')) == torch.device('meta')


def test_copy_is_frozen_and_apart():
    teacher = classy().train()
    copied = frozen_copy(teacher, (2,))
    assert not copied.training and not any(p.requires_grad for p in copied.parameters())
    assert teacher.training and all(p.requires_grad for p in teacher.parameters())
    assert not {p.data_ptr() for p in teacher.parameters()} & {
        p.data_ptr() for p in copied.parameters()
    }
    assert frozen_copy(BLOBS, (2,)) is BLOBS


@pytest.mark.parametrize(
    'teacher, shape',
    [
        (classy(), (3,)),
        (BLOBS, (2, 2)),
        (EDMDenoiser(UNet(widths=(8, 32))), (1, 7, 7)),
        (GaussianDenoiser(torch.zeros(4), 0.5), (1,)),
    ],
)
def test_shape_that_does_not_fit(teacher, shape):
    with pytest.raises(ValueError, match='does not fit the teacher'):
        frozen_copy(teacher, shape)


def test_hash_tells_denoisers_apart():
    net = classy().net
    moved = classy()
    with torch.no_grad():
        moved.net.stem.bias[0] += 1e-7
    zoo = [
        classy(),
        classy(1),
        moved,
        EDMDenoiser(net, 0.6),
        *(VPDenoiser(net, linear_alpha_bar(), p) for p in ('eps', 'x0', 'v')),
        VPDenoiser(net, linear_alpha_bar(500)),
        BLOBS,
        MixtureDenoiser(BLOBS.means, BLOBS.stds, [1.0, 2.0, 3.0]),
        MixtureDenoiser(BLOBS.means.reshape(3, 1, 2), BLOBS.stds, BLOBS.weights),
        GaussianDenoiser(0.0, 0.5),
        GaussianDenoiser(0.0, 0.6),
        GaussianDenoiser(torch.zeros(2), 0.5),
        classy().double(),
        NFECounter(BLOBS),
        NFECounter(classy()),
    ]
    hashes = [denoiser_hash(d) for d in zoo]
    assert len(set(hashes)) == len(zoo) and all(len(h) == 16 for h in hashes)
    assert hashes == [denoiser_hash(copy.deepcopy(d)) for d in zoo]
    assert denoiser_hash(frozen_copy(classy(), (2,))) == denoiser_hash(classy().train())


def test_hashes_stay():
    "They stand in stored students, results and banks."
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mlp = EDMDenoiser(MLP(2, 16, 1, n_classes=3), 0.6)
        nn.init.normal_(mlp.net.out.weight)
        torch.manual_seed(1)
        vp = VPDenoiser(MLP(2, 16, 1, time_scale=1 / 400), linear_alpha_bar(100), 'v')
        nn.init.normal_(vp.net.out.weight)
    mixture = MixtureDenoiser(
        torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([0.1, 0.2]), torch.ones(2)
    )
    teacher = load_teacher(device='cpu')
    stay = {
        '6759c3d2487c470d': teacher,
        '5f7c1c2f8919aa8b': branch(teacher, 4).denoiser,
        '75cfd069171b0899': GaussianDenoiser(0.0, 0.5),
        '171f9a4389efd86f': GaussianDenoiser(torch.zeros(2), 0.5),
        '4067c7c34ff41894': mixture,
    }
    assert [denoiser_hash(d) for d in stay.values()] == list(stay)
    assert (denoiser_hash(mlp), denoiser_hash(vp)) == ('075d79874d7b437a', 'fc2f32ee643180d1'), (
        'initialised by this version of torch'
    )


class Guided:
    def __init__(self, net, w, **more):
        self.net, self.w = net, w
        vars(self).update(more)

    def __call__(self, x, sigma, label=None):
        return self.net(x, sigma, label) * self.w


class GuidedModule(EDMDenoiser):
    def __init__(self, net, w):
        super().__init__(net)
        self.w = w


class Rule:
    def __init__(self, low):
        self.low = low

    def weight(self, s):
        return self.low * s


class Items(dict):
    def __init__(self, low):
        self.low = low


class Slotted:
    __slots__ = ('low',)

    def __init__(self, low):
        self.low = low


def nested(depth):
    return SimpleNamespace(inner=nested(depth - 1)) if depth else 1


def other_dropout(d):
    d.net.embed.time_scale = 2.0
    return d


def other_activation(act):
    return EDMDenoiser(nn.Sequential(nn.Linear(2, 2), act))


def with_buffer(value):
    net = nn.Linear(2, 2)
    with torch.no_grad():
        net.weight.fill_(1.0), net.bias.fill_(0.0)
    net.register_buffer('table', torch.tensor([value]), persistent=False)
    return EDMDenoiser(net)


@pytest.mark.parametrize(
    'one, other',
    [
        (Guided(classy(), 1.0), Guided(classy(), 7.5)),
        (Guided(classy(), 1.0), Guided(classy(1), 1.0)),
        (GuidedModule(classy().net, 1.0), GuidedModule(classy().net, 7.5)),
        (classy(), other_dropout(classy())),
        (Guided(BLOBS, 1, rule=Rule(0.1)), Guided(BLOBS, 1, rule=Rule(0.2))),
        (Guided(BLOBS, 1, rule=Rule(0.1).weight), Guided(BLOBS, 1, rule=Rule(0.2).weight)),
        (Guided(BLOBS, 1, rule=Slotted(0.1)), Guided(BLOBS, 1, rule=Slotted(0.2))),
        (Guided(BLOBS, 1, levels=[torch.ones(2)]), Guided(BLOBS, 1, levels=[torch.zeros(2)])),
        (
            Guided(BLOBS, 1, table={'a': torch.ones(1)}),
            Guided(BLOBS, 1, table={'b': torch.ones(1)}),
        ),
        (Guided(BLOBS, 1, f=torch.relu), Guided(BLOBS, 1, f=torch.tanh)),
        (
            Guided(BLOBS, 1, f=partial(torch.clamp, max=1)),
            Guided(BLOBS, 1, f=partial(torch.clamp, max=2)),
        ),
        (Guided(BLOBS, 1, f=lambda x: x + 1), Guided(BLOBS, 1, f=lambda x: x + 2)),
        (Guided(BLOBS, 1, f=nn.ReLU()), Guided(BLOBS, 1, f=nn.SiLU())),
        (Guided(BLOBS, 1, kind=Rule), Guided(BLOBS, 1, kind=Slotted)),
        (with_buffer(1.0), with_buffer(2.0)),
        *(
            (Guided(BLOBS, 1, kept=one), Guided(BLOBS, 1, kept=other))
            for one, other in [
                (lambda x: x.sin(), lambda x: x.cos()),
                (lambda: (i + 1 for i in ()), lambda: (i + 2 for i in ())),
                (lru_cache(lambda: 1), lru_cache(lambda: 2)),
                (deque([1]), deque([2])),
                (operator.itemgetter(1), operator.itemgetter(2)),
                (np.sin, np.cos),
                (math, operator),
                ({1: 2}.get, {1: 3}.get),
                (Items(0.1), Items(0.2)),
                (defaultdict(lambda: 1), defaultdict(lambda: 2)),
                (type('<local>', (), {'low': 1}), type('<local>', (), {'low': 2})),
                (Decimal('.1'), Decimal('.2')),
                (torch.eye(2).to_sparse(), torch.ones(2, 2).to_sparse()),
                (torch.tensor(1j).conj(), torch.tensor(2j).conj()),
                (list[int], list[float]),
                (list.append, list.pop),
                (timedelta(1), timedelta(2)),
                (date(2020, 1, 1), date(2020, 1, 2)),
            ]
        ),
    ],
    ids=range(33),
)
def test_every_attribute_counts(one, other):
    assert denoiser_hash(one) != denoiser_hash(other)
    assert denoiser_hash(one) == denoiser_hash(copied(one))


def test_what_a_layer_without_weights_does_counts():
    torch.manual_seed(0)
    a = other_activation(nn.ReLU())
    torch.manual_seed(0)
    b = other_activation(nn.LeakyReLU(0.1))
    torch.manual_seed(0)
    c = other_activation(nn.LeakyReLU(0.2))
    assert len({denoiser_hash(d) for d in (a, b, c)}) == 3


def test_how_it_is_computed_does_not_count():
    for make in (
        lambda: EDMDenoiser(UNet(widths=(8, 32))),
        lambda: other_activation(nn.SiLU()),
        lambda: Guided(classy(), 2.0),
    ):
        d = make()
        before = denoiser_hash(d)
        net = d if isinstance(d, nn.Module) else d.net
        net.train().requires_grad_(False)
        if isinstance(getattr(net, 'net', None), UNet):
            net.to(memory_format=torch.channels_last)
        handle = net.register_forward_hook(lambda *args: None)
        net.compile(backend='eager')
        assert denoiser_hash(d) == before
        handle.remove()
    assert denoiser_hash(torch.compile(classy(), backend='eager')) == denoiser_hash(classy())


def test_a_denoiser_that_knows_itself():
    d = Guided(BLOBS, 1.0)
    d.me = [d]
    e = Guided(BLOBS, 2.0)
    e.me = [e]
    assert denoiser_hash(d) == denoiser_hash(copy.deepcopy(d)) != denoiser_hash(e)


def test_a_counter_counts_on():
    counter = NFECounter(BLOBS)
    before = denoiser_hash(counter)
    counter(torch.zeros(1, 2), 1.0)
    assert denoiser_hash(counter) == before


@pytest.mark.parametrize(
    'make',
    [
        lambda: iter([1]),
        lambda: open(os.devnull),
        lambda: torch.ones(1, device='meta'),
        lambda: nested(200),
        lambda: compiled(3),
    ],
    ids=['iterator', 'file', 'tensor without numbers', 'depth', 'compiled'],
)
def test_what_cannot_be_compared_is_refused_by_its_name(make):
    class Ignoring(Guided):
        hash_ignores = ('helper',)

    with pytest.raises(
        TypeError,
        match=r'its attribute rules.helper.0[.\w]* is a \w+, which cannot be compared; list it in hash_ignores',
    ):
        denoiser_hash(Guided(BLOBS, 1.0, rules={'helper': [make()]}))
    denoiser_hash(Ignoring(BLOBS, 1.0, helper=make()))


def test_what_is_no_part_of_a_formula_is_passed_over():
    def empty():
        return later

    kept = [
        threading.Lock(),
        torch.Generator(),
        logging.getLogger('a'),
        random.Random(1),
        np.random.default_rng(1),
        empty,
        [datetime.now()],
    ]
    path = Path('a')
    before = denoiser_hash(Guided(BLOBS, 1.0, kept=kept, path=path))
    (
        kept[1].manual_seed(5),
        kept[3].random(),
        kept[4].random(),
        kept[6].append(kept[6].pop() - timedelta(1)),
        hash(path),
    )  # a path keeps that
    assert denoiser_hash(Guided(BLOBS, 1.0, kept=kept, path=path)) == before
    later = 1
    assert denoiser_hash(Guided(BLOBS, 1.0, kept=kept, path=path)) != before


def test_objects_that_know_one_another_are_each_asked_once():
    "Every way through them, as it was, is 40! ways."

    def graph(make, low):
        found = [make() for _ in range(40)]
        for one in found:
            one.low, one.others = low, found[::-1]
        return Guided(BLOBS, 1.0, first=found[0])

    for make in (SimpleNamespace, lambda: Guided(None, 1.0)):
        assert (
            denoiser_hash(graph(make, 1))
            == denoiser_hash(graph(make, 1))
            != denoiser_hash(graph(make, 2))
        )


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_teachers_are_refused(dtype):
    with pytest.raises(
        TypeError, match=rf'net.embed.lin1.weight of this denoiser is {dtype}.*\.float\(\)'
    ):
        frozen_copy(classy().to(dtype), (2,))
    frozen_copy(classy().to(dtype).float(), (2,))


class WantsB(nn.Module):
    "A network whose noise input has one entry for each sample."

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(2, 2)

    def forward(self, x, noise, label=None):
        assert noise.shape == (len(x),)
        return self.lin(x * noise[:, None])


@pytest.mark.parametrize(
    'wrap', [EDMDenoiser, lambda net: VPDenoiser(net, linear_alpha_bar()), ModuleDenoiser]
)
def test_a_noise_level_reaches_a_network_as_B(wrap):
    teacher = wrap(WantsB())
    frozen_copy(teacher, (2,))
    for sigma in (2.0, torch.tensor(2.0), torch.tensor([2.0]), torch.full((3,), 2.0)):
        assert torch.equal(teacher(torch.ones(3, 2), sigma), teacher(torch.ones(3, 2), 2.0))
        assert branch(teacher, 2, 'lin', (2,))(torch.ones(3, 2), sigma).shape == (3, 2, 2)


def compiled(factor):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # it is deprecated, and still met
        return torch.jit.trace(lambda x: x * factor, torch.ones(1))


@pytest.mark.parametrize(
    'function',
    [lambda x, s, y=None: x, torch.relu, BLOBS.sample, compiled(2)],
    ids=['lambda', 'builtin', 'method', 'compiled'],
)
def test_functions_have_no_hash(function):
    with pytest.raises(TypeError, match='cannot tell'):
        denoiser_hash(function)


# --- the plan ---


@pytest.mark.parametrize('solver', SOLVERS)
@pytest.mark.parametrize('afs', [False, True])
def test_walk_is_the_trajectory(solver, afs):
    traj, label = replace(PLAN, solver=solver, afs=afs).trajectories(BLOBS, range(4))
    assert label is None and torch.equal(
        traj.xs, trajectory(BLOBS, 80 * sample_noise(range(4), (2,)), FINE, solver, afs).xs
    )


def test_walk_passes_the_labels():
    teacher = frozen_copy(classy(), (2,))
    traj, label = PLAN.trajectories(teacher, range(8))
    assert torch.equal(label, sample_labels(range(8), 10))
    assert torch.equal(traj.xs, trajectory(teacher, traj[0], FINE, 'dpmpp3m', cond=label).xs)
    assert not torch.equal(traj.xs, trajectory(teacher, traj[0], FINE, 'dpmpp3m').xs)


@pytest.mark.parametrize(
    'changes, match',
    [
        (dict(solver='rk4'), 'solver'),
        (dict(sigmas=(1.0, 2.0)), 'descending'),
        (dict(sigmas=(1.0,)), 'at least 2 points'),
        (dict(sigmas=(1.0, float('nan'))), 'finite'),
    ],
)
def test_bad_plans(changes, match):
    with pytest.raises(ValueError, match=match):
        replace(PLAN, **changes)


def test_plan_is_normalised():
    assert replace(
        PLAN, sigmas=torch.tensor(FINE, dtype=torch.float64), shape=[2]
    ) == PLAN and hash(PLAN) == hash(replace(PLAN))


def test_broken_teacher_is_refused():
    class Broken(GaussianDenoiser):
        def __call__(self, x, sigma, label=None):
            return super().__call__(x, sigma) / 0.0

    with pytest.raises(FloatingPointError, match='seeds 4..7'):
        PLAN.trajectories(Broken(0.0, 1.0), range(4, 8))


# --- the bank ---


@pytest.mark.parametrize('kind', ['memory', 'folder'])
def test_bank_is_what_a_walk_gives(tmp_path, kind):
    bank = bank_of(kind, tmp_path)
    for seeds in (
        range(50, 51),
        range(50, 178),
        range(1060, 1100),
        range(1073, 1075),
        SEEDS,
        range(2353, 2354),
        range(700, 2200),
    ):
        traj, label = bank.batch(seeds)
        assert torch.equal(traj.xs, walked(seeds)) and label is None
        assert traj.sigmas.dtype == torch.float64 and tuple(traj.sigmas.tolist()) == FINE


@pytest.mark.parametrize('kind', ['memory', 'folder'])
def test_labels_are_kept(tmp_path, kind):
    teacher = frozen_copy(classy(), (2,))
    bank = bank_of(kind, tmp_path, teacher)
    for seeds in (range(50, 178), range(1000, 1200), SEEDS):
        traj, label = bank.batch(seeds)
        assert (
            label.dtype == torch.int64
            and torch.equal(label, sample_labels(seeds, 10))
            and torch.equal(traj.xs, walked(seeds, teacher))
        )


@pytest.mark.parametrize('batch, n', [(1, 3), (7, 21), (2000, 4000), (1024, 1024)])
def test_every_batch(tmp_path, batch, n):
    plan = replace(PLAN, sigmas=FINE[::4], solver='euler')
    banks = [
        make_bank(BLOBS, plan, range(n), batch, folder, show=False) for folder in (None, tmp_path)
    ]
    want = torch.cat(
        [plan.trajectories(BLOBS, range(i, i + batch))[0].xs for i in range(0, n, batch)], 1
    )
    for bank in banks:
        assert torch.equal(bank.batch(range(n))[0].xs, want) and all(
            torch.equal(bank.batch(range(i, i + 1))[0].xs, want[:, i : i + 1])
            for i in (0, n // 2, n - 1)
        )


def test_seeds_may_be_large():
    seeds = range(2**33, 2**33 + 8)
    assert torch.equal(
        make_bank(BLOBS, PLAN, seeds, 4, show=False).batch(seeds)[0][0],
        80 * sample_noise(seeds, (2,)),
    )


def test_teacher_is_asked_once_for_each_batch():
    class Counted(GaussianDenoiser):
        calls = 0

        def __call__(self, x, sigma, label=None):
            Counted.calls += 1
            return super().__call__(x, sigma)

    bank = make_bank(Counted(0.0, 0.5), PLAN, range(64), 16, show=False)
    assert Counted.calls == 12 * 4 + 6  # `answers`
    for _ in range(3):
        bank.batch(range(64))
    assert Counted.calls == 12 * 4 + 6


def test_what_is_walked_already_makes_room_for_the_rest(monkeypatch):
    "A shard of 32, on a device that has room for 20 trajectories, those of the shard among them."
    held = weakref.WeakSet()

    class OnDevice(torch.Tensor):
        def cpu(self):
            return self.as_subclass(torch.Tensor).clone()

    walk = TrajectoryPlan.trajectories

    def on_device(plan, teacher, seeds):
        traj, cond = walk(plan, teacher, seeds)
        if sum(xs.shape[1] for xs in held) + len(seeds) > 20:
            raise torch.cuda.OutOfMemoryError('full')
        xs = traj.xs.clone().as_subclass(OnDevice)
        held.add(xs)
        return Trajectory(traj.sigmas, xs), cond

    whole = make_bank(GaussianDenoiser(0.0, 0.5), PLAN, range(32), 8, show=False)
    monkeypatch.setattr(TrajectoryPlan, 'trajectories', on_device)
    with pytest.warns(UserWarning, match='4 trajectories at a time instead of 8'):
        cut = make_bank(GaussianDenoiser(0.0, 0.5), PLAN, range(32), 8, show=False)
    assert torch.equal(cut.batch(range(32))[0].xs, whole.batch(range(32))[0].xs)


def test_a_batch_that_the_memory_does_not_hold_is_walked_in_parts():
    sizes = []

    class Small(GaussianDenoiser):
        room = 5

        def __call__(self, x, sigma, label=None):
            sizes.append(len(x))
            if len(x) > self.room:
                raise torch.cuda.OutOfMemoryError('full')
            return super().__call__(x, sigma)

    whole = make_bank(GaussianDenoiser(0.0, 0.5), PLAN, range(32), 8, show=False)
    with pytest.warns(UserWarning, match='4 trajectories at a time instead of 8'):
        cut = make_bank(Small(0.0, 0.5), PLAN, range(32), 8, show=False)
    assert torch.equal(cut.batch(range(32))[0].xs, whole.batch(range(32))[0].xs)
    assert sizes[-8 * 4 :] == [4] * 32  # found once for a shard
    Small.room = 0
    with pytest.warns(UserWarning), pytest.raises(torch.cuda.OutOfMemoryError):
        make_bank(Small(0.0, 0.5), PLAN, range(32), 8, show=False)


@pytest.mark.parametrize(
    'seeds',
    [
        range(49, 52),
        range(2353, 2355),
        range(0, 8),
        range(50, 60, 3),
        range(60, 60),
        range(3000, 3001),
    ],
    ids=str,
)
def test_other_seeds_are_refused(tmp_path, seeds):
    for kind in ('memory', 'folder'):
        bank = bank_of(kind, tmp_path)
        with pytest.raises(ValueError, match='seeds 50..2353'):
            bank.batch(seeds)
        with pytest.raises(ValueError, match='seeds 50..2353'):
            bank.check(BLOBS, PLAN, seeds)


@pytest.mark.parametrize(
    'changes',
    [
        dict(solver='heun'),
        dict(afs=True),
        dict(shape=(1, 2)),
        dict(sigmas=FINE[::2]),
        dict(sigmas=tuple(s * 1.0001 for s in FINE)),
    ],
    ids=lambda c: next(iter(c)),
)
def test_other_plans_are_refused(changes):
    bank = make_bank(BLOBS, PLAN, range(8), 8, show=False)
    bank.check(BLOBS, PLAN, range(8))
    bank.check(BLOBS, PLAN, range(3, 5))
    with pytest.raises(ValueError, match=f'another configuration.*{next(iter(changes))}'):
        bank.check(BLOBS, replace(PLAN, **changes), range(8))


def test_other_teachers_are_refused():
    bank = make_bank(frozen_copy(classy(), (2,)), PLAN, range(8), 8, show=False)
    bank.check(classy(), PLAN, range(8))
    for other in (classy(1), BLOBS, EDMDenoiser(classy().net, 0.6)):
        with pytest.raises(ValueError, match='another configuration.*teacher'):
            bank.check(other, PLAN, range(8))


@pytest.mark.parametrize(
    'seeds, batch, match',
    [
        (range(10), 4, 'multiple of batch=4'),
        (range(0, 16, 2), 4, 'consecutive'),
        (range(0), 4, 'consecutive'),
        (range(8), 0, 'batch'),
        (range(8), 2.0, 'batch'),
    ],
)
def test_bad_arguments(seeds, batch, match):
    with pytest.raises(ValueError, match=match):
        make_bank(BLOBS, PLAN, seeds, batch, show=False)


# --- on disk ---


def test_files_are_plain_and_named(tmp_path):
    bank_of('folder', tmp_path / 'a' / 'b')
    names = sorted(p.name for p in (tmp_path / 'a' / 'b').glob('[!.]*'))
    assert names == ['run.json', *(f'trajectories-{i:05d}.safetensors' for i in range(3))]
    note = json.loads((tmp_path / 'a' / 'b' / 'run.json').read_text())
    assert note.pop('answers') == [answers(BLOBS, (2,))]
    assert note == dict(
        teacher=denoiser_hash(BLOBS),
        sigmas=list(FINE),
        solver='dpmpp3m',
        afs=False,
        shape=[2],
        batch=128,
        seeds=[50, 2354],
    )
    tensors, meta = load_tensors(shards(tmp_path / 'a' / 'b')[2])
    assert (
        len(meta.pop('checksum')) == 64
        and meta == dict(note, rows=[2098, 2354])
        and {k: v.shape for k, v in tensors.items()} == {'xs': (256, 13, 2)}
    )


def test_size_is_stated(tmp_path, capsys):
    bank_of('folder', tmp_path, show=True)
    size = sum(p.stat().st_size for p in shards(tmp_path)) / 1e6
    assert (
        bank_megabytes(PLAN, len(SEEDS))
        == pytest.approx(4e-6 * 2304 * 13 * 2)
        == pytest.approx(size, rel=0.02)
    )
    assert (
        '2304 x 13 states, 0.2 MB of disk' in (out := capsys.readouterr().out)
        and '3 of 3 shards' in out
    )
    bank_of('memory', tmp_path, show=True)
    assert '0.2 MB of memory' in capsys.readouterr().out
    bank_of('folder', tmp_path, show=True)
    assert '0 of 3 shards' in capsys.readouterr().out


@pytest.mark.parametrize('gone', [[0], [1], [2], [0, 2], [0, 1, 2]], ids=str)
def test_interrupted_bank_is_completed(tmp_path, gone):
    bank_of('folder', tmp_path)
    for i, path in enumerate(shards(tmp_path)):
        if i in gone:
            path.unlink()
    kept = {p: p.stat().st_ino for p in shards(tmp_path)}
    bank = bank_of('folder', tmp_path)
    assert len(shards(tmp_path)) == 3 and all(p.stat().st_ino == inode for p, inode in kept.items())
    assert torch.equal(bank.batch(SEEDS)[0].xs, walked(SEEDS))


def test_power_cut_while_it_is_made(tmp_path):
    class Tired(MixtureDenoiser):
        calls = 0

        def __call__(self, *args):
            Tired.calls += 1
            if Tired.calls == 12 * 12:
                raise OSError('power cut')
            return super().__call__(*args)

    tired = Tired(BLOBS.means, BLOBS.stds, BLOBS.weights)
    with pytest.raises(OSError, match='power cut'):
        bank_of('folder', tmp_path, tired)
    assert [p.name for p in shards(tmp_path)] == ['trajectories-00000.safetensors'] and not list(
        tmp_path.glob('.*.tmp')
    )
    assert torch.equal(bank_of('folder', tmp_path, tired).batch(SEEDS)[0].xs, walked(SEEDS))


def test_complete_bank_asks_nobody(tmp_path):
    bank_of('folder', tmp_path)

    class Silent(MixtureDenoiser):
        def __call__(self, *args):
            raise AssertionError('asked')

    Silent.__name__ = 'MixtureDenoiser'
    assert torch.equal(
        bank_of('folder', tmp_path, Silent(BLOBS.means, BLOBS.stds, BLOBS.weights))
        .batch(range(60, 70))[0]
        .xs,
        walked(range(60, 70)),
    )


@pytest.mark.parametrize(
    'changes',
    [
        dict(plan=replace(PLAN, solver='euler')),
        dict(plan=replace(PLAN, sigmas=FINE[::2])),
        dict(plan=replace(PLAN, afs=True)),
        dict(seeds=range(51, 51 + 2304)),
        dict(seeds=range(50, 50 + 128)),
        dict(batch=64),
        dict(teacher=GaussianDenoiser(torch.zeros(2), 0.5)),
    ],
    ids=lambda c: next(iter(c)),
)
def test_folder_of_another_bank(tmp_path, changes):
    bank_of('folder', tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(
        ValueError,
        match=f'another configuration.*{"sigmas|solver|afs" if "plan" in changes else next(iter(changes))}',
    ):
        bank_of('folder', tmp_path, **changes)
    assert before == {p: p.read_bytes() for p in tmp_path.iterdir()}


@pytest.mark.parametrize('damage', ['half', 'three bytes', 'empty', 'text', 'longer'])
def test_damaged_shard_at_opening(tmp_path, damage):
    bank_of('folder', tmp_path)
    bad = shards(tmp_path)[1]
    whole = bad.read_bytes()
    bad.write_bytes(
        {
            'half': whole[: len(whole) // 2],
            'three bytes': whole[:3],
            'empty': b'',
            'text': b'these are not tensors',
            'longer': whole + b'0' * 8,
        }[damage]
    )
    with pytest.raises(ValueError, match=r'trajectories-00001.safetensors is damaged.*remove it'):
        bank_of('folder', tmp_path)
    bad.unlink()
    assert torch.equal(bank_of('folder', tmp_path).batch(SEEDS)[0].xs, walked(SEEDS))


@pytest.mark.parametrize('where', [0.3, 0.99])
def test_a_flipped_bit_is_found_when_the_shard_is_first_read(tmp_path, where):
    bank_of('folder', tmp_path)
    bad = shards(tmp_path)[1]
    whole = bytearray(bad.read_bytes())
    whole[int(where * len(whole))] ^= 1
    bad.write_bytes(whole)
    bank = bank_of('folder', tmp_path)
    with pytest.raises(
        ValueError, match='trajectories-00001.safetensors is damaged: its checksum.*remove it'
    ):
        bank.batch(range(1200, 1300))
    bad.unlink()
    assert torch.equal(bank_of('folder', tmp_path).batch(SEEDS)[0].xs, walked(SEEDS))


def test_a_bank_without_checksums_is_read(tmp_path):
    "As version 0.1 wrote it."
    bank_of('folder', tmp_path)
    for path in shards(tmp_path):
        tensors, note = load_tensors(path)
        del note['checksum']
        save_tensors(path, tensors, note)
    before = {p: p.stat().st_mtime_ns for p in shards(tmp_path)}
    assert torch.equal(bank_of('folder', tmp_path).batch(SEEDS)[0].xs, walked(SEEDS))
    assert before == {p: p.stat().st_mtime_ns for p in shards(tmp_path)}


@pytest.mark.parametrize('meta', ['[1]', '{', '"note"'])
def test_a_shard_with_a_foreign_header(tmp_path, meta):
    bank_of('folder', tmp_path)
    path = shards(tmp_path)[1]
    save_file(load_tensors(path)[0], path, metadata={'meta': meta})
    with pytest.raises(ValueError, match='trajectories-00001.safetensors is no part of this bank'):
        bank_of('folder', tmp_path)


def test_orphans_are_swept_and_the_folder_is_held(tmp_path):
    orphan = tmp_path / '.trajectories-00001.safetensors.abcd1234.tmp'
    orphan.write_bytes(b'half')
    bank_of('folder', tmp_path)
    assert not orphan.exists()
    with held(tmp_path):
        bank_of('folder', tmp_path)  # nothing is missing, so nothing is written
        shards(tmp_path)[1].unlink()
        with pytest.raises(OSError, match='in use by another process'):
            bank_of('folder', tmp_path)
    bank_of('folder', tmp_path)


TWO = """
import sys, torch
from pathlib import Path
from dataclasses import replace
from datetime import date, datetime, timedelta
from bdense_nb.core import save_tensors
from bdense_nb.diffusion.denoisers import GaussianDenoiser
from bdense_nb.distillation.bank import TrajectoryPlan, make_bank
import os
class Labelled(GaussianDenoiser):
    n_classes, asked = 3, 0
    def __call__(self, x, sigma, label=None):
        Labelled.asked += 1
        return super().__call__(x, sigma) + label[:, None]/3
plan = TrajectoryPlan((80., 1., .1), 'euler', (2,))
out, rank = Path(sys.argv[1]), os.environ.get('RANK', '0')
found = {}
for where in (None, out/'bank'):
    before = Labelled.asked
    traj, label = make_bank(Labelled(0., .5), plan, range(3*1024 + 64), 64, where, show=False).batch(range(3*1024 + 64))
    found |= {f'{where is None} xs': traj.xs, f'{where is None} labels': label, f'{where is None} calls': torch.tensor(Labelled.asked - before)}
save_tensors(out/f'rank{rank}.safetensors', found)
"""


def test_two_processes_divide_a_bank(tmp_path):
    "Each computes its part, and both have it all, as one process would."
    script = tmp_path / 'two.py'
    script.write_text(TWO)
    for name, n in (('one', 1), ('two', 2)):
        torchrun(n, script, tmp_path / name, folder=tmp_path)
    one = load_tensors(tmp_path / 'one' / 'rank0.safetensors')[0]
    two = [load_tensors(tmp_path / 'two' / f'rank{rank}.safetensors')[0] for rank in (0, 1)]
    for name, value in one.items():
        if 'calls' in name:
            assert (
                value == 49 * 2 + 6
                and sum(t[name] for t in two) == value + 6
                and min(t[name] for t in two) >= 16 * 2
            )  # each asks for `answers`
        else:
            assert all(torch.equal(t[name], value) for t in two)
    kept = [
        {p.name: load_tensors(p) for p in shards(tmp_path / name / 'bank')}
        for name in ('one', 'two')
    ]
    assert kept[0].keys() == kept[1].keys() and len(kept[0]) == 4
    assert all(kept[0][k][1] == kept[1][k][1] for k in kept[0]), 'the same headers, checksums too'
    (gone := shards(tmp_path / 'two' / 'bank')[1]).unlink()
    torchrun(1, script, tmp_path / 'two', folder=tmp_path)  # one process completes what two made
    assert load_tensors(gone)[1] == kept[0][gone.name][1]
    calls = load_tensors(tmp_path / 'two' / 'rank0.safetensors')[0]['False calls']
    assert calls == 16 * 2 + 6, 'of one shard'


@pytest.mark.parametrize('damage', ['half', 'gone'])
def test_damaged_shard_at_reading(tmp_path, damage):
    bank = bank_of('folder', tmp_path)
    bad = shards(tmp_path)[1]
    if damage == 'half':
        os.truncate(bad, bad.stat().st_size // 2)
    else:
        bad.unlink()
    with pytest.raises(ValueError, match='trajectories-00001.safetensors is damaged or gone'):
        bank.batch(range(1200, 1300))
    assert torch.equal(bank.batch(range(60, 70))[0].xs, walked(range(60, 70)))


@pytest.mark.parametrize('wrong', ['shape', 'fewer', 'labels', 'no xs', 'swapped', 'no note'])
def test_shard_that_does_not_belong(tmp_path, wrong):
    bank_of('folder', tmp_path)
    first, bad, _ = shards(tmp_path)
    tensors, note = load_tensors(bad)
    if wrong == 'swapped':
        bad.write_bytes(first.read_bytes())
    else:
        save_tensors(
            bad,
            *{
                'shape': ({'xs': tensors['xs'][..., :1]}, note),
                'fewer': ({'xs': tensors['xs'][:7]}, note),
                'labels': (dict(tensors, labels=torch.zeros(1024)), note),
                'no xs': ({'ys': tensors['xs']}, note),
                'no note': (tensors, None),
            }[wrong],
        )
    with pytest.raises(ValueError, match='trajectories-00001.safetensors is no part of this bank'):
        bank_of('folder', tmp_path)


def test_shards_of_a_lost_manifest(tmp_path):
    "Another bank's shards are refused without their manifest too."
    bank_of('folder', tmp_path)
    (tmp_path / 'run.json').unlink()
    with pytest.raises(ValueError, match='no part of this bank'):
        bank_of('folder', tmp_path, plan=replace(PLAN, solver='euler'))


def test_disk_too_small(tmp_path, monkeypatch):
    monkeypatch.setattr(
        trajectories.shutil, 'disk_usage', lambda path: SimpleNamespace(free=150_000)
    )
    with pytest.raises(OSError, match='0 MB free, the bank takes'):
        bank_of('folder', tmp_path / 'a')
    assert not list((tmp_path / 'a').glob('[!.]*'))
    monkeypatch.undo()
    bank_of('folder', tmp_path / 'b')
    shards(tmp_path / 'b')[2].unlink()
    monkeypatch.setattr(
        trajectories.shutil, 'disk_usage', lambda path: SimpleNamespace(free=150_000)
    )
    bank_of('folder', tmp_path / 'b')  # only what is missing must fit


def test_bank_in_memory_lies_on_the_cpu():
    bank = make_bank(BLOBS, PLAN, range(8), 8, show=False)
    assert isinstance(bank, TrajectoryBank) and all(
        t.device.type == 'cpu' for shard in bank.shards for t in shard.values()
    )


# --- half the space ---


@pytest.mark.parametrize('on_disk', [False, True])
def test_a_bank_in_float16_takes_half_and_rounds_a_state_by_1_in_2048(on_disk, tmp_path):
    whole = make_bank(BLOBS, PLAN, SEEDS, 64, tmp_path / 'float32' if on_disk else None, show=False)
    half_plan = replace(PLAN, bank_dtype='float16')
    for _ in range(2):
        half = make_bank(
            BLOBS, half_plan, SEEDS, 64, tmp_path / 'float16' if on_disk else None, show=False
        )  # found again
    (a, _), (b, _) = (bank.batch(SEEDS[:64]) for bank in (whole, half))
    assert (
        b.xs.dtype == torch.float32
        and 0 < ((b.xs - a.xs).abs() / a.xs.abs().clamp(min=2**-14)).max() <= 2**-11
    )
    assert 2 * bank_megabytes(half_plan, 64) == bank_megabytes(PLAN, 64)
    if on_disk:
        size = {
            kind: sum(f.stat().st_size for f in shards(tmp_path / kind))
            for kind in ('float32', 'float16')
        }
        assert size['float16'] < 0.55 * size['float32']
        with pytest.raises(ValueError, match="bank_dtype: 'float16' there, 'float32' now"):
            make_bank(BLOBS, PLAN, SEEDS, 64, tmp_path / 'float16', show=False)
        with pytest.raises(ValueError, match="bank_dtype: 'float32' there, 'float16' now"):
            make_bank(BLOBS, half_plan, SEEDS, 64, tmp_path / 'float32', show=False)
    with pytest.raises(ValueError, match="bank_dtype: 'float16' there, 'float32' now"):
        half.check(BLOBS, PLAN, SEEDS)


def test_states_beyond_float16_are_refused():
    plan = replace(PLAN, sigmas=(1e5, 10.0, 0.1), bank_dtype='float16')
    with pytest.raises(
        ValueError,
        match=r"states reach [\d.e+]+, and float16 ends at 65504: take bank_dtype='float32'",
    ):
        make_bank(BLOBS, plan, range(64), 64, show=False)
    with pytest.raises(ValueError, match='bank_dtype'):
        replace(PLAN, bank_dtype='bfloat16')


def test_the_order_of_a_set_changes_no_hash():
    one, other = {0, 8}, {8, 0}  # they share a slot, so the first to come is the first to be told
    assert list(one) != list(other)
    hashes = [denoiser_hash(Guided(BLOBS, 1.0, kept=kept)) for kept in (one, other, {0, 9})]
    assert hashes[0] == hashes[1] != hashes[2]
