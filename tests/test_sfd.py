"SFD in a matrix of settings, against the host and against a second implementation; bad input, determinism, resumption."

import copy
import json
from dataclasses import asdict, replace
from itertools import product

import pytest
import torch
from conftest import shaken
from bdense_nb.distillation import sfd as sfd_module
from bdense_nb.distillation import students as students_module
from bdense_nb.core import NFECounter, sample_noise
from bdense_nb.diffusion.denoisers import (
    EDMDenoiser,
    GaussianDenoiser,
    GuidedDenoiser,
    MixtureDenoiser,
    NetDenoiser,
    VPDenoiser,
)
from bdense_nb.diffusion.nets import MLP, UNet
from bdense_nb.diffusion.samplers import SOLVERS, afs_x0, euler_step, trajectory
from bdense_nb.diffusion.schedules import linear_alpha_bar
from bdense_nb.distillation.bank import TrajectoryBank, denoiser_hash, frozen_copy
from bdense_nb.distillation.branches import branch, fold
from bdense_nb.distillation.losses import NORMS, branch_weights
from bdense_nb.distillation.segments import BRANCH_STEPS
from bdense_nb.distillation.sfd import SFDConfig, local_segment, sfd, sfd_step, teacher_bank
from bdense_nb.distillation.students import Student, branched_student, load_student
from bdense_nb.training.config import Hardware
from bdense_nb.training.loop import fit
from torch import nn

TINY = SFDConfig(steps=2, batch=4, lr=1e-3, shape=(2,))


@pytest.fixture(scope='module')
def teacher():
    return shaken(EDMDenoiser(MLP(width=8, depth=1)))


@pytest.fixture(scope='module')
def classy():
    return shaken(EDMDenoiser(MLP(width=8, depth=1, n_classes=5)))


@pytest.fixture(scope='module')
def blobs():
    return MixtureDenoiser(
        torch.tensor([[1.0, 0.0], [-1.0, 0.5]]), torch.tensor([0.2, 0.3]), torch.tensor([0.4, 0.6])
    )


def params(student):
    return list(
        (student.denoiser if isinstance(student, Student) else student).state_dict().values()
    )


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(params(a), params(b), strict=True))


def check(teacher, cfg):
    before = copy.deepcopy(teacher)
    student = sfd(teacher, cfg, show=False)
    assert all(torch.isfinite(p).all() for p in params(student)) and not same(student, before)
    assert same(before, teacher) and not {p.data_ptr() for p in params(student)} & {
        p.data_ptr() for p in params(teacher)
    }
    assert student.nfe == cfg.nfe and torch.isfinite(student.sample(3)).all()
    assert (
        params(student)[0].shape == params(teacher)[0].shape
        and student.denoiser.state_dict().keys() == teacher.state_dict().keys()
    )


# --- the matrix ---


@pytest.mark.parametrize('solver, K', [(s, (1, 2, 4)[i % 3]) for i, s in enumerate(SOLVERS)])
def test_every_teacher_solver(teacher, solver, K):
    check(teacher, replace(TINY, solver=solver, K=K))


@pytest.mark.parametrize('K, substeps', [(1, 1), (2, 2), (3, 3), (3, 6), (2, 6), (1, 7)])
def test_every_division(teacher, K, substeps):
    check(teacher, replace(TINY, K=K, substeps=substeps))


@pytest.mark.parametrize(
    'step, states, afs, loss',
    list(product(BRANCH_STEPS, ['global', 'local'], [True, False], NORMS)),
)
def test_every_option(classy, step, states, afs, loss):
    check(classy, replace(TINY, branch_step=step, teacher_states=states, afs=afs, loss=loss))


@pytest.mark.parametrize('nfe, afs', list(product([1, 2, 3, 4], [True, False])))
def test_every_number_of_calls(teacher, nfe, afs):
    check(teacher, replace(TINY, nfe=nfe, afs=afs, K=2))


@pytest.mark.parametrize(
    'make',
    [
        lambda net: EDMDenoiser(net),
        *(lambda net, p=p: VPDenoiser(net, linear_alpha_bar(), p) for p in ('eps', 'x0', 'v')),
    ],
    ids=['edm', 'eps', 'x0', 'v'],
)
def test_images_with_classes(make):
    teacher = shaken(make(UNet(widths=(8, 32), n_classes=3)))
    top = (
        2.0 if getattr(teacher, 'prediction', None) == 'eps' else 80.0
    )  # random noise estimates remove no noise, which is refused where there is much
    check(teacher, replace(TINY, shape=(1, 8, 8), K=2, sigma_max=top))


# --- K = 1 is the host ---


def host_step(teacher, student, cfg, i):
    "SFD without branches, written out: one loss for every student step that calls the network."
    fine, nodes = cfg.grids
    x, label = cfg.sigma_max * sample_noise(cfg.seeds(i), cfg.shape), None
    y = trajectory(teacher, x, fine, cfg.solver, cond=label)[:: cfg.substeps]
    for n, (t, s) in enumerate(zip(nodes[:-1].tolist(), nodes[1:].tolist())):
        if cfg.afs and n == 0:
            x = euler_step(x, afs_x0(x, t), t, s)
            continue
        x0_hat = student(x, t)
        landed = x0_hat + torch.tensor(s / t) * (x - x0_hat)
        yield (landed - y[n + 1]).abs().flatten(1).sum(1).mean()
        x = landed.detach()


def edm():
    return EDMDenoiser(MLP(width=8, depth=1))


def image():
    return EDMDenoiser(UNet(widths=(8, 32)))


def v():
    return VPDenoiser(MLP(width=8, depth=1), linear_alpha_bar(), 'v')


@pytest.mark.parametrize(
    'make, shape, changes',
    [
        (edm, (2,), dict()),
        (edm, (2,), dict(nfe=3, afs=False, solver='heun')),
        (edm, (2,), dict(substeps=3, branch_step='end', branch_weights='uniform')),
        (image, (1, 8, 8), dict()),
        (v, (2,), dict(nfe=3, afs=False, solver='heun')),
    ],
    ids=lambda value: getattr(value, '__name__', str(value)),
)
def test_one_branch_has_the_hosts_losses_and_gradients(make, shape, changes):
    cfg, source = replace(TINY, K=1, batch=16, shape=shape, **changes), shaken(make())
    host, ours = (
        copy.deepcopy(source).requires_grad_(True).train(),
        branched_student(source, None, 1, 'out'),
    )
    opts = [torch.optim.Adam(m.parameters(), 1e-3) for m in (host, ours)]
    for i in range(3):
        for a, b in zip(
            host_step(source, host, cfg, i), sfd_step(source, cfg)(ours, i), strict=True
        ):
            for opt, loss in zip(opts, (a, b)):
                opt.zero_grad()
                loss.backward()
            assert torch.equal(a, b)
            for p, q in zip(host.parameters(), ours.parameters(), strict=True):
                assert p.grad is q.grad is None or torch.equal(p.grad, q.grad)
            for opt in opts:
                opt.step()


def test_one_branch_is_the_host_over_a_whole_run(teacher):
    cfg = replace(TINY, K=1, steps=12, batch=16)
    host = copy.deepcopy(teacher).requires_grad_(True).train()
    opt = torch.optim.Adam(host.parameters(), cfg.lr)
    for i in range(cfg.steps):
        for loss in host_step(teacher, host, cfg, i):
            opt.zero_grad()
            loss.backward()
            opt.step()
        if 2 * i >= cfg.steps:
            opt.param_groups[0]['lr'] = cfg.lr * 0.1
    assert same(host, sfd(teacher, cfg, show=False))


def test_endpoint_weights_have_the_hosts_gradients(teacher):
    cfg = replace(TINY, batch=16)
    host, dense = (
        branched_student(teacher, None, 1, 'out').double(),
        branched_student(teacher, None, 4, 'out').double(),
    )
    exact, wide = (
        copy.deepcopy(teacher).double(),
        sample_noise(cfg.seeds(0), cfg.shape).double() * cfg.sigma_max,
    )
    grads = []
    for model, K in ((host, 1), (dense, 4)):
        c = replace(cfg, K=K, branch_weights='endpoint')
        bank = TrajectoryBank(
            c.plan,
            c.seeds(0),
            '',
            4,
            [
                {'xs': trajectory(exact, wide[i : i + 4], c.grids[0], c.solver).xs.transpose(0, 1)}
                for i in range(0, 16, 4)
            ],
        )
        next(sfd_step(exact, c, bank)(model, 0)).backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for name, g in grads[0].items():
        if name.startswith('denoiser.net.out'):
            *idle, last = grads[1][name].unflatten(0, (4, 2))
            assert all((h == 0).all() for h in idle)
        else:
            last = grads[1][name]
        torch.testing.assert_close(last, g, rtol=1e-12, atol=1e-12)


# --- against a second implementation, written from the paper's formulas ---


def second(teacher, cfg):
    student = branch(teacher, cfg.K).train()
    opt = torch.optim.Adam(student.parameters(), cfg.lr)
    fine, M = cfg.grids[0].tolist(), cfg.substeps
    for i in range(cfg.steps):
        first, last = (
            branch_weights(cfg.K, w or cfg.branch_weights).tolist()
            for w in (cfg.branch_weights, cfg.branch_weights_end)
        )
        w = [a + (b - a) * i / cfg.steps for a, b in zip(first, last)]
        x = cfg.sigma_max * sample_noise(cfg.seeds(i), cfg.shape)
        ys = trajectory(teacher, x, fine, cfg.solver, afs=cfg.teacher_afs).xs
        for n in range(cfg.n_steps):
            t, end = fine[n * M], fine[(n + 1) * M]
            if cfg.afs and n == 0:
                x = x + (end - t) * x / (1 + t * t) ** 0.5
                continue
            if cfg.teacher_states == 'local':
                ys = torch.cat(
                    [
                        ys[: n * M],
                        trajectory(teacher, x, fine[n * M : (n + 1) * M + 1], cfg.solver).xs,
                    ]
                )
            D, loss = student(x, t), 0.0
            for k in range(1, cfg.K + 1):
                j = n * M + k * M // cfg.K
                landed = (
                    x + ((fine[j] if cfg.branch_step == 'own' else end) - t) * (x - D[:, k - 1]) / t
                )
                loss = loss + w[k - 1] * (landed - ys[j]).abs().sum() / cfg.batch
            opt.zero_grad()
            loss.backward()
            opt.step()
            x = landed.detach()
        if 2 * i >= cfg.steps:
            opt.param_groups[0]['lr'] = 0.1 * cfg.lr
    return student.denoiser.net.out.weight[-2:], student.denoiser.net.stem.weight


@pytest.mark.parametrize(
    'changes',
    [
        dict(K=1),
        dict(),
        dict(K=2),
        dict(K=3, substeps=6),
        dict(afs=False, sigma_max=10.0),
        dict(branch_step='end'),
        dict(branch_weights=(3.0, 1.0, 0.0, 2.0)),
        dict(nfe=4),
        dict(solver='heun'),
        dict(schedule='logsnr', sigma_max=20.0),
        dict(teacher_states='local', solver='euler'),
        dict(teacher_states='local', solver='dpm2', K=2),
        dict(teacher_afs=True),
        dict(branch_weights='uniform', branch_weights_end='endpoint'),
    ],
    ids=str,
)
def test_agrees_with_a_second_implementation(teacher, changes):
    cfg = replace(TINY, steps=6, batch=16, **changes)
    ours = sfd(teacher, cfg, show=False).denoiser.net
    out, stem = second(teacher, cfg)
    for a, b, c in (
        (ours.out.weight, out, teacher.net.out.weight),
        (ours.stem.weight, stem, teacher.net.stem.weight),
    ):
        assert (a - b).norm() < 2e-2 * (
            a - c
        ).norm()  # Adam amplifies rounding where gradients are small


# --- one update per student step, and nothing between them ---


class Spy(EDMDenoiser):
    "Notes each network call: is it the student's, with which labels, does its input carry a gradient?"

    calls: list = []

    def raw(self, x, sigma, label=None):
        Spy.calls.append(
            (self.training, None if label is None else label.tolist(), x.requires_grad, x.clone())
        )
        return super().raw(x, sigma, label)


@pytest.mark.parametrize(
    'states, afs, teacher_calls',
    [('global', True, 12), ('global', False, 8), ('local', True, 8), ('local', False, 8)],
)
def test_calls_of_an_iteration(states, afs, teacher_calls):
    spy, cfg = (
        shaken(Spy(MLP(width=8, depth=1, n_classes=5))),
        replace(TINY, teacher_states=states, afs=afs, solver='euler'),
    )
    model = branch(spy, 4).train()
    Spy.calls.clear()
    list(sfd_step(spy, cfg)(model, 0))
    student, teacher = ([c for c in Spy.calls if c[0] == who] for who in (True, False))
    assert (len(teacher), len(student)) == (teacher_calls, 2)
    assert (
        len({tuple(c[1]) for c in Spy.calls}) == 1 and len(set(Spy.calls[0][1])) > 1
    )  # one set of random labels for both
    assert not any(c[2] for c in student)  # no gradient crosses student steps


def test_the_next_step_starts_where_the_endpoint_branch_landed_before_the_update():
    spy, cfg = shaken(Spy(MLP(width=8, depth=1))), replace(TINY, nfe=3)
    model, nodes = branch(spy, 4).train(), cfg.grids[1].tolist()
    opt, landed = torch.optim.SGD(model.parameters(), 0.1), None
    Spy.calls.clear()
    for n, loss in enumerate(sfd_step(spy, cfg)(model, 0), 1):
        x = [c for c in Spy.calls if c[0]][-1][3]
        if landed is not None:
            assert torch.equal(x, landed)
        with torch.no_grad():
            D = copy.deepcopy(model).eval()(x, nodes[n])[:, -1]
        landed = D + torch.tensor(nodes[n + 1] / nodes[n]) * (x - D)
        opt.zero_grad()
        loss.backward()
        opt.step()
    assert n == 3


@pytest.mark.parametrize('nfe, afs', [(1, True), (2, True), (3, False)])
def test_one_update_for_each_student_step(teacher, monkeypatch, nfe, afs):
    taken, step = [], torch.optim.Adam.step
    monkeypatch.setattr(
        torch.optim.Adam, 'step', lambda self, *a, **kw: (taken.append(1), step(self, *a, **kw))[1]
    )
    sfd(teacher, replace(TINY, steps=5, nfe=nfe, afs=afs), show=False)
    assert len(taken) == 5 * nfe


def test_dropout_is_active_in_the_student_alone():
    def run(p):
        return sfd(
            shaken(EDMDenoiser(UNet(widths=(8, 32), dropout=p))),
            replace(TINY, shape=(1, 8, 8)),
            show=False,
        )

    assert same(run(0.3), run(0.3)) and not same(run(0.3), run(0.0))
    wet, dry = (
        teacher_bank(
            shaken(EDMDenoiser(UNet(widths=(8, 32), dropout=p))).train(),
            replace(TINY, shape=(1, 8, 8)),
            show=False,
        )
        for p in (0.3, 0.0)
    )
    assert torch.equal(wet.batch(wet.seeds)[0].xs, dry.batch(dry.seeds)[0].xs)


def test_learning_rate_drops_once(teacher):
    rates = [h['lr'] for h in sfd(teacher, replace(TINY, steps=20), show=False).about['history']]
    assert rates == [1e-3] * 11 + [1e-3 * 0.1] * 9


# --- weights that move ---


@pytest.mark.parametrize(
    'start, end', [('linear', 'endpoint'), ('uniform', (1.0, 0.0, 0.0, 3.0)), ('linear', None)]
)
def test_weights_are_as_promised(teacher, monkeypatch, start, end):
    seen, loss = [], sfd_module.dense_alignment_loss
    monkeypatch.setattr(
        sfd_module,
        'dense_alignment_loss',
        lambda pred, target, weights, norm: (
            seen.append(weights),
            loss(pred, target, weights, norm),
        )[1],
    )
    cfg = replace(TINY, steps=8, branch_weights=start, branch_weights_end=end)
    sfd(teacher, cfg, show=False)
    assert len(seen) == 8 * cfg.nfe
    first = branch_weights(4, start)
    last = first if end is None else branch_weights(4, end)
    for n, w in enumerate(seen):
        torch.testing.assert_close(
            w, first + (last - first) * (n // cfg.nfe) / 8, rtol=0, atol=1e-15
        )
        assert abs(float(w.sum()) - 1) < 1e-15


@pytest.mark.parametrize('kind', ['linear', 'uniform', 'endpoint', (3.0, 1.0, 0.0, 2.0)], ids=str)
def test_weights_that_end_where_they_begin_are_constant(teacher, kind):
    cfg = replace(TINY, steps=6, branch_weights=kind)
    assert same(
        sfd(teacher, cfg, show=False),
        sfd(teacher, replace(cfg, branch_weights_end=kind), show=False),
    )


def test_moving_weights_change_the_run(teacher):
    assert not same(
        sfd(teacher, TINY, show=False),
        sfd(teacher, replace(TINY, branch_weights_end='endpoint'), show=False),
    )


# --- teachers in closed form, other networks ---


class Rows(nn.Module):
    "A number for each of some levels, and for each branch."

    def __init__(self, levels):
        super().__init__()
        self.levels, self.out = levels.float(), nn.Linear(len(levels), 1, bias=False)

    def forward(self, x, sigma, label=None):
        return self.out(
            nn.functional.one_hot(
                (self.levels - sigma.reshape(-1, 1)).abs().argmin(1), len(self.levels)
            ).float()
        )


class ByLevel(NetDenoiser):
    "D(x, sigma) = w x, with one number for each student level and branch."

    def __init__(self, levels):
        super().__init__(Rows(levels))

    def raw(self, x, sigma, label=None):
        return self.net(x, torch.as_tensor(sigma).float().expand(len(x)))

    def to_x0(self, raw, x, sigma):
        return raw * x


@pytest.mark.parametrize('states', ['global', 'local'])
def test_reaches_its_closed_form(states):
    cfg = SFDConfig(
        solver='euler',
        steps=400,
        batch=64,
        lr=5e-3,
        lr_schedule='cosine',
        shape=(1,),
        teacher_states=states,
    )
    (fine, nodes), K, c = cfg.grids, 4, 0.5
    B = torch.cat([torch.ones(1), 1 + fine.diff() * fine[:-1] / (c**2 + fine[:-1] ** 2)]).cumprod(0)
    A = 1 + (nodes[1] - nodes[0]) / (1 + nodes[0] ** 2).sqrt()
    best = torch.stack(
        [
            1
            - nodes[n]
            / (nodes[n] - fine[n * K + 1 : n * K + K + 1])
            * (1 - B[n * K + 1 : n * K + K + 1] / (at if states == 'global' else B[n * K]))
            for n, at in ((1, A), (2, B[8]))
        ]
    )
    if states == 'global':
        assert torch.allclose(
            best.flatten(),
            torch.tensor(
                [0.00241, 0.00334, 0.00567, 0.0107, 0.35778, 0.4484, 0.4923, 0.50725]
            ).double(),
            atol=6e-6,
        )
    exact = GaussianDenoiser(0.0, c)
    start = ByLevel(nodes)
    start.net.out.weight.data = (c**2 / (c**2 + nodes**2)).float()[None]
    model = branched_student(exact, start, K, 'out', (1,))
    fit(model, sfd_step(exact, cfg), cfg.train_config, show=False)
    learned = model.denoiser.net.out.weight.detach()[:, 1:3].T.double()
    assert (learned - best).abs().max() < 2e-4
    few = replace(cfg, steps=40)
    model = branched_student(exact, start, K, 'out', (1,))
    fit(model, sfd_step(exact, few), few.train_config, show=False)
    assert torch.equal(
        model.denoiser.net.out.weight[-1, 1:3],
        sfd(exact, few, show=False, student=start).denoiser.net.out.weight[0, 1:3],
    )


@pytest.mark.parametrize(
    'K, states, loss', [(1, 'global', 'l1'), (4, 'global', 'huber'), (2, 'local', 'l2')]
)
def test_a_closed_form_teaches_a_network(teacher, blobs, K, states, loss):
    cfg = replace(TINY, K=K, teacher_states=states, loss=loss, steps=4)
    bank = teacher_bank(blobs, cfg, show=False)
    before = copy.deepcopy(teacher)
    student = sfd(blobs, cfg, show=False, student=teacher)
    assert (
        same(student, sfd(blobs, cfg, bank, show=False, student=teacher))
        and same(before, teacher)
        and not same(before, student)
    )
    assert student.denoiser.state_dict().keys() == teacher.state_dict().keys() and student.sample(
        5
    ).shape == (5, 2)


def test_a_network_may_teach_another(teacher):
    wide = shaken(EDMDenoiser(MLP(width=12, depth=2)))
    student = sfd(teacher, TINY, show=False, student=wide)
    assert params(student)[0].shape == params(wide)[0].shape and not same(student, wide)


class Renamed(nn.Module):
    "A foreign network whose output layer is called head.last."

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 8)
        self.head = nn.ModuleDict({'last': nn.Linear(8, 2)})

    def forward(self, x, noise, label=None):
        return self.head['last'](self.body(torch.cat([x, noise.expand(len(x))[:, None]], 1)).tanh())


def test_an_output_layer_by_another_name():
    foreign, cfg = shaken(EDMDenoiser(Renamed())), replace(TINY, layer='head.last')
    check(foreign, cfg)
    assert same(
        sfd(foreign, TINY, show=False), sfd(foreign, cfg, show=False)
    )  # found, from the shape of a sample


# --- determinism ---


def test_same_seed_same_student(teacher):
    torch.manual_seed(1)
    a = sfd(teacher, TINY, show=False)
    torch.manual_seed(2)
    b = sfd(teacher, TINY, show=False)
    assert (
        same(a, b)
        and a.about['history'] == b.about['history']
        and not same(a, sfd(teacher, replace(TINY, seed=1), show=False))
    )


@pytest.mark.parametrize('pool', [None, 8, 11])
@pytest.mark.parametrize('kind', ['memory', 'folder'])
def test_bank_changes_nothing(classy, tmp_path, pool, kind, monkeypatch):
    monkeypatch.setattr(SFDConfig, 'is_kept', False)
    cfg = replace(TINY, steps=5, pool=pool)
    bank = teacher_bank(classy, cfg, folder=tmp_path if kind == 'folder' else None, show=False)
    assert len(bank.seeds) == (20 if pool is None else 8) and isinstance(bank.shards[0], dict) == (
        kind == 'memory'
    )
    for K, states in zip((1, 4), ('global', 'local')[:: 1 if kind == 'memory' else -1]):
        c = replace(cfg, K=K, teacher_states=states)
        assert same(sfd(classy, c, bank, show=False), sfd(classy, c, show=False))


def test_a_bank_saves_the_teacher_its_work():
    spy = shaken(Spy(MLP(width=8, depth=1)))
    bank = teacher_bank(spy, TINY, show=False)
    model = branch(spy, 4).train()
    Spy.calls.clear()
    list(sfd_step(spy, TINY, bank)(model, 1))
    assert all(c[0] for c in Spy.calls) and len(Spy.calls) == 2


def test_walks_that_are_seen_again_are_made_once(monkeypatch, tmp_path):
    spy, asked = shaken(Spy(MLP(width=8, depth=1))), {}
    cfg = replace(TINY, steps=6, pool=8)
    assert cfg.is_kept and not replace(cfg, steps=2).is_kept
    assert not replace(cfg, teacher_states='local').is_kept
    assert not replace(cfg, shape=(10**8,)).is_kept
    for kept in (True, False):
        monkeypatch.setattr(SFDConfig, 'is_kept', kept)
        Spy.calls.clear()
        student = sfd(spy, cfg, show=False, folder=tmp_path / str(kept))
        asked[kept] = student, sum(not own and len(x) == cfg.batch for own, *_, x in Spy.calls)
    assert same(asked[True][0], asked[False][0])
    assert asked[False][1] - asked[True][1] == (6 - 2) * (len(cfg.grids[0]) - 1)
    monkeypatch.setattr(SFDConfig, 'is_kept', True)
    monkeypatch.setattr(SFDConfig, 'bank', None)  # a finished run needs none
    assert same(sfd(spy, cfg, show=False, folder=tmp_path / 'True'), student)


@pytest.mark.parametrize('pool', [None, 12])
def test_training_seeds_are_apart(pool):
    runs = [
        {s for i in range(6) for s in replace(TINY, steps=6, seed=k, pool=pool).seeds(i)}
        for k in range(3)
    ]
    assert all(len(r) == (pool or 24) for r in runs) and len(set.union(*runs)) == sum(
        map(len, runs)
    )
    assert (
        min(min(r) for r in runs) >= 2**32
    )  # sampling starts at 0 and would need 2**32 samples to get there
    rows = {tuple(x) for r in runs for x in sample_noise(sorted(r), (2,)).tolist()}
    assert not rows & {tuple(x) for x in sample_noise(range(2000), (2,)).tolist()}


@pytest.mark.parametrize('solver', SOLVERS)
def test_local_is_global_where_both_begin(teacher, solver):
    cfg = replace(TINY, afs=False, solver=solver)
    traj, label = cfg.plan.trajectories(teacher, cfg.seeds(0))
    seg = local_segment(teacher, cfg, traj[0], 0, label)
    assert torch.equal(seg.states, traj.xs[1:5].transpose(0, 1))
    first = [
        next(sfd_step(teacher, replace(cfg, teacher_states=s))(branch(teacher, 4), 0))
        for s in ('global', 'local')
    ]
    assert torch.equal(*first)


@pytest.mark.parametrize('solver', ['euler', 'heun', 'dpm2', 'dpmpp1', 'ipndm1'])
def test_local_is_global_for_solvers_without_history(blobs, solver):
    "Restarted on its own path, such a teacher walks on as if nothing had happened."
    cfg = replace(TINY, solver=solver)
    traj, _ = cfg.plan.trajectories(blobs, cfg.seeds(0))
    assert torch.equal(
        local_segment(blobs, cfg, traj[4], 1, None).states, traj.xs[5:9].transpose(0, 1)
    )


class Unplugged(TrajectoryBank):
    def __init__(self, bank, at):
        vars(self).update(vars(bank))
        self.at = at

    def batch(self, seeds):
        if seeds.start == self.at:
            raise OSError('power cut')
        return super().batch(seeds)


@pytest.mark.parametrize(
    'at, changes, kind',
    [
        (1, {}, 'memory'),
        (13, {}, 'folder'),
        (19, dict(K=1), 'memory'),
        (13, dict(branch_weights='uniform', branch_weights_end='endpoint'), 'folder'),
    ],
    ids=str,
)
def test_resumed_is_the_same_run(tmp_path, classy, at, changes, kind):
    cfg = replace(TINY, steps=20, **changes)
    bank = teacher_bank(
        classy, cfg, folder=tmp_path / 'bank' if kind == 'folder' else None, show=False
    )
    whole = sfd(classy, cfg, bank, tmp_path / 'a', show=False)
    cut = Unplugged(bank, cfg.seeds(at).start)
    with pytest.raises(OSError, match='power cut'):
        sfd(classy, cfg, cut, tmp_path / 'b', show=False)
    resumed = sfd(classy, cfg, bank, tmp_path / 'b', show=False)
    assert same(whole, resumed) and whole.about['history'] == resumed.about['history']


# --- bad input ---


@pytest.fixture(scope='module')
def finished(tmp_path_factory, teacher):
    folder = tmp_path_factory.mktemp('run')
    sfd(teacher, TINY, folder=folder, show=False)
    return folder


@pytest.mark.parametrize(
    'changes',
    [
        dict(K=2),
        dict(branch_weights='uniform'),
        dict(branch_weights_end='endpoint'),
        dict(solver='euler'),
        dict(branch_step='end'),
        dict(loss='l2'),
        dict(nfe=3),
        dict(seed=1),
        dict(lr=2e-3),
        dict(batch=8),
        dict(teacher_afs=True),
    ],
    ids=str,
)
def test_a_folder_belongs_to_one_configuration(finished, teacher, changes):
    with pytest.raises(ValueError, match=f'another configuration.*{next(iter(changes))}'):
        sfd(teacher, replace(TINY, **changes), folder=finished, show=False)
    sfd(teacher, SFDConfig(**json.loads(json.dumps(asdict(TINY)))), folder=finished, show=False)


def test_a_folder_belongs_to_one_teacher_and_one_start(finished, teacher, blobs):
    other = shaken(EDMDenoiser(MLP(width=8, depth=1)), 1)
    with pytest.raises(ValueError, match='teacher'):
        sfd(blobs, TINY, folder=finished, show=False, student=teacher)
    with pytest.raises(ValueError, match='student'):
        sfd(teacher, TINY, folder=finished, show=False, student=other)


@pytest.mark.parametrize(
    'bad',
    [
        dict(K=0),
        dict(K=3),
        dict(K=8),
        dict(nfe=0),
        dict(nfe=1.5),
        dict(substeps=3),
        dict(steps=0),
        dict(batch=0),
        dict(pool=3),
        dict(afs=None),
        dict(teacher_afs=1),
        dict(shape=()),
        dict(shape=(2.0,)),
        dict(solver='ddpm'),
        dict(schedule='linear'),
        dict(loss='mse'),
        dict(branch_step='both'),
        dict(teacher_states='none'),
        dict(branch_weights=(1.0, 1.0)),
        dict(branch_weights='first'),
        dict(branch_weights_end='first'),
        dict(branch_weights_end=(1.0,)),
        dict(layer=2),
        dict(layer=''),
        dict(sigma_min=0.0),
        dict(sigma_min=90.0),
        dict(sigma_max=float('nan')),
        dict(lr=0.0),
        dict(lr_schedule='none'),
        dict(seed=-1),
    ],
    ids=str,
)
def test_bad_configurations(bad):
    with pytest.raises(ValueError):
        replace(TINY, **bad)


def test_configurations_survive_json():
    for cfg in (
        TINY,
        SFDConfig(shape=(3, 32, 32)),
        SFDConfig(branch_weights=[1.0, 2.0], branch_weights_end=[0.0, 1.0], K=2, shape=[3, 8, 8]),
    ):
        assert SFDConfig(**json.loads(json.dumps(asdict(cfg)))) == cfg and hash(cfg)


def test_teachers_that_cannot_be_distilled(teacher, classy, blobs):
    with pytest.raises(TypeError, match='GaussianDenoiser.*student='):
        sfd(GaussianDenoiser(0.0, 0.5), TINY, show=False)
    with pytest.raises(TypeError, match='MixtureDenoiser'):
        sfd(teacher, TINY, show=False, student=blobs)
    for shape in ((3,), (1, 28, 28)):
        with pytest.raises(ValueError, match='does not fit the teacher'):
            sfd(teacher, replace(TINY, shape=shape), show=False)
    for source, start in ((blobs, classy), (classy, teacher)):
        with pytest.raises(ValueError, match='classes'):
            sfd(source, TINY, show=False, student=start)
    with pytest.raises(ValueError, match='this MLP takes'):
        sfd(GaussianDenoiser(0.0, 0.5), replace(TINY, shape=(3,)), show=False, student=teacher)
    broken = copy.deepcopy(teacher)
    broken.net.out.bias[0] = float('nan')
    for call in (sfd, teacher_bank):
        with pytest.raises(FloatingPointError, match='teacher'):
            call(broken, TINY, show=False)


@pytest.mark.parametrize('states', ['global', 'local'])
def test_a_run_that_explodes_stops(teacher, states):
    with pytest.raises((FloatingPointError, ValueError), match='became|NaN'):
        sfd(teacher, replace(TINY, lr=1e30, steps=4, teacher_states=states), show=False)


@pytest.mark.parametrize(
    'changes',
    [
        dict(seed=1),
        dict(nfe=3),
        dict(solver='euler'),
        dict(steps=3),
        dict(afs=False),
        dict(teacher_afs=True),
        dict(schedule='logsnr'),
        dict(sigma_max=40.0),
    ],
    ids=str,
)
def test_a_bank_of_another_run_is_refused(teacher, changes):
    bank = teacher_bank(teacher, TINY, show=False)
    with pytest.raises(ValueError, match='this bank'):
        sfd(teacher, replace(TINY, **changes), bank, show=False)


def test_a_bank_of_another_teacher_is_refused(teacher, classy, blobs):
    bank = teacher_bank(teacher, TINY, show=False)
    for other in (
        shaken(EDMDenoiser(MLP(width=8, depth=1)), 1),
        EDMDenoiser(teacher.net, 0.9),
        classy,
    ):
        with pytest.raises(ValueError, match='this bank'):
            sfd(other, TINY, bank, show=False)
    with pytest.raises(ValueError, match='this bank'):
        sfd(blobs, TINY, bank, show=False, student=teacher)


def test_a_bank_may_be_larger_than_the_run(teacher):
    bank = teacher_bank(teacher, replace(TINY, steps=5), show=False)
    assert same(sfd(teacher, TINY, bank, show=False), sfd(teacher, TINY, show=False))


@pytest.mark.parametrize('n', [0, 3, 2.5])
def test_a_bank_needs_a_batch(teacher, n):
    with pytest.raises(ValueError, match='n must be'):
        teacher_bank(teacher, TINY, n, show=False)


def test_configuration_must_be_one(teacher):
    with pytest.raises(TypeError, match='cfg must be an SFDConfig'):
        sfd(teacher, 'demo')


def test_a_frozen_teacher_stays_as_it_is(teacher):
    copied = frozen_copy(teacher, (2,))
    list(sfd_step(copied, TINY)(branch(teacher, 4).train(), 0))
    assert same(copied, teacher) and all(p.grad is None for p in copied.parameters())


# --- how and what the loop is told ---


class Notes:
    "A hook that notes what it sees."

    def __init__(self):
        self.iterations, self.rows = [], []

    def after_iteration(self, state):
        self.iterations.append(state.done)

    def logged(self, state, row):
        self.rows.append(row)


def test_hardware_and_hooks_reach_the_loop(teacher):
    notes, plain = Notes(), sfd(teacher, TINY, show=False)
    half = sfd(teacher, TINY, show=False, hardware=Hardware(precision='bf16'), hooks=(notes,))
    assert notes.iterations == [1, 2] and len(notes.rows) == 2
    assert not same(plain, half) and all(
        torch.allclose(a, b, atol=0.02) for a, b in zip(params(plain), params(half))
    )
    parts = sfd(teacher, TINY, show=False, hardware=Hardware(accumulate=2))
    assert not same(plain, parts) and all(
        torch.allclose(a, b, atol=1e-4) for a, b in zip(params(plain), params(parts))
    )


@pytest.mark.parametrize('precision, autocast', [('same', True), ('no', False)])
def test_the_teacher_computes_in_the_students_precision(precision, autocast):
    seen = set()

    class Watched(MLP):
        def forward(self, x, noise, label=None):
            seen.add((torch.is_grad_enabled(), torch.is_autocast_enabled('cpu')))
            return super().forward(x, noise, label)

    class Forget:  # what was asked before the first iteration
        def start(self, state):
            seen.clear()

    sfd(
        shaken(EDMDenoiser(Watched(width=8, depth=1))),
        TINY,
        show=False,
        hardware=Hardware(precision='bf16', teacher_precision=precision),
        hooks=(Forget(),),
    )
    assert seen == {(True, True), (False, autocast)}


def test_training_fields_pass_through():
    plain = TINY.train_config
    assert (
        plain.steps,
        plain.lr,
        plain.schedule,
        plain.log_every,
        plain.checkpoint_every,
        plain.clip_grad,
        plain.ema,
        plain.warmup,
        plain.keep,
        plain.on_nan,
    ) == (2, 1e-3, 'drop', 1, 1, None, None, 0, 2, 'stop')
    asked = dict(
        warmup=1,
        betas=(0.5, 0.9),
        clip_grad=0.1,
        ema=0.9,
        log_every=2,
        checkpoint_every=0,
        keep=3,
        on_nan='skip',
    )
    cfg = replace(TINY, **asked).train_config
    assert {k: getattr(cfg, k) for k in asked} == asked


@pytest.mark.parametrize(
    'changes',
    [dict(warmup=3), dict(betas=(0.5, 0.5)), dict(clip_grad=1e-3), dict(lr_schedule='linear')],
    ids=str,
)
def test_training_fields_change_the_student(teacher, changes):
    cfg = replace(TINY, steps=4)
    assert not same(
        sfd(teacher, cfg, show=False), sfd(teacher, replace(cfg, **changes), show=False)
    )


def test_with_ema_the_student_is_the_average(teacher, monkeypatch):
    made, real = [], students_module.fit
    monkeypatch.setattr(
        students_module, 'fit', lambda *args, **how: made.append(real(*args, **how)) or made[-1]
    )
    student = sfd(teacher, replace(TINY, steps=6, ema=0.5), show=False)
    assert same(student, fold(made[0].ema)) and not same(student, fold(made[0].model))
    assert same(
        sfd(teacher, replace(TINY, steps=6), show=False), fold(made[0].model)
    )  # what is trained is the same


@pytest.mark.parametrize(
    'bad, says',
    [
        (dict(warmup=3), 'warmup'),
        (dict(betas=(0.9,)), 'betas'),
        (dict(betas=(0.9, 1.0)), 'betas must be'),
        (dict(clip_grad=0.0), 'clip_grad'),
        (dict(ema=1.0), 'ema'),
        (dict(log_every=0), 'log_every'),
        (dict(checkpoint_every=-1), 'checkpoint_every'),
        (dict(keep=0), 'keep'),
        (dict(on_nan='hide'), "on_nan must be one of: stop, skip, got 'hide'"),
        (dict(afs='no'), "afs must be True or False, got 'no'"),
        (dict(loss='mse'), "loss must be one of: l1, l2, huber, got 'mse'"),
        (dict(K=0), 'K must be a whole number, at least 1, got 0'),
    ],
    ids=str,
)
def test_refusals_name_field_value_and_what_is_allowed(bad, says):
    with pytest.raises(ValueError, match=says):
        replace(TINY, **bad)


# --- going on ---


@pytest.mark.parametrize(
    'changes',
    [dict(log_every=2), dict(checkpoint_every=0), dict(keep=1), dict(on_nan='skip')],
    ids=str,
)
def test_what_is_written_and_when_is_no_other_run(finished, teacher, changes):
    sfd(teacher, replace(TINY, **changes), folder=finished, show=False)


def test_a_run_of_an_older_version_goes_on(tmp_path, teacher):
    want = sfd(teacher, TINY, folder=tmp_path, show=False)
    note = json.loads((tmp_path / 'run.json').read_text())
    for name in (
        'warmup',
        'betas',
        'clip_grad',
        'ema',
        'log_every',
        'checkpoint_every',
        'keep',
        'on_nan',
    ):
        del note[name]
    (tmp_path / 'run.json').write_text(json.dumps(note))
    assert same(want, sfd(teacher, TINY, folder=tmp_path, show=False))
    with pytest.raises(ValueError, match='ema'):
        sfd(teacher, replace(TINY, ema=0.9), folder=tmp_path, show=False)


def test_a_run_may_be_made_longer(tmp_path, teacher):
    short, long = (replace(TINY, steps=n, lr_schedule='constant') for n in (4, 9))
    sfd(teacher, short, folder=tmp_path, show=False)
    assert same(sfd(teacher, long, folder=tmp_path, show=False), sfd(teacher, long, show=False))
    with pytest.raises(ValueError, match='steps'):
        sfd(teacher, short, folder=tmp_path, show=False)


@pytest.mark.parametrize(
    'changes, says',
    [
        ({}, 'the drop schedule every.*depends on steps.*constant can be lengthened'),
        (dict(lr_schedule='constant', branch_weights_end='endpoint'), 'steps: 4 there, 9 now'),
    ],
    ids=str,
)
def test_a_run_whose_past_depends_on_its_length_may_not(tmp_path, teacher, changes, says):
    sfd(teacher, replace(TINY, steps=4, **changes), folder=tmp_path, show=False)
    with pytest.raises(ValueError, match=says):
        sfd(teacher, replace(TINY, steps=9, **changes), folder=tmp_path, show=False)


# --- other people's networks ---


class Strict(MLP):
    "Takes its noise input as [B], as many networks do."

    def forward(self, x, noise, label=None):
        assert noise.shape == (len(x),)
        return super().forward(x, noise, label)


@pytest.mark.parametrize('states', ['global', 'local'])
@pytest.mark.parametrize(
    'make',
    [
        lambda: EDMDenoiser(Strict(width=8, depth=1)),
        lambda: VPDenoiser(Strict(width=8, depth=1), linear_alpha_bar(), 'v'),
    ],
    ids=['edm', 'v'],
)
def test_the_noise_input_is_always_one_per_sample(make, states):
    student = sfd(shaken(make()), replace(TINY, teacher_states=states), show=False)
    assert student.sample(3).isfinite().all()


class Adapted(nn.Module):
    "LoRA: a frozen linear layer, and a trainable one of low rank beside it."

    def __init__(self, layer, rank=2):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down, self.up = (
            nn.Linear(layer.in_features, rank, bias=False),
            nn.Linear(rank, layer.out_features, bias=False),
        )
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x))


def adapted(seed=None):
    torch.manual_seed(0)
    net = (
        MLP(width=8, depth=1)
        if seed is None
        else shaken(EDMDenoiser(MLP(width=8, depth=1)), seed).net
    )
    net.requires_grad_(False)
    net.layers[0] = Adapted(net.layers[0])
    net.out.requires_grad_(True)
    return net


@pytest.mark.parametrize('K', [1, 4])
def test_only_what_is_trainable_is_trained(teacher, tmp_path, K):
    start = EDMDenoiser(adapted(0))
    before = copy.deepcopy(start.state_dict())
    student = sfd(teacher, replace(TINY, K=K), folder=tmp_path / 'run', show=False, student=start)
    moved = {
        name
        for name, p in student.denoiser.state_dict().items()
        if not torch.equal(p, before[name])
    }
    assert (
        moved
        == {'net.layers.0.down.weight', 'net.layers.0.up.weight', 'net.out.weight', 'net.out.bias'}
        and student.denoiser.state_dict().keys() == before.keys()
    )
    student.save(tmp_path / 'student')
    assert torch.equal(
        load_student(tmp_path / 'student', 'cpu', net=adapted).sample(5), student.sample(5)
    )


class Noise(EDMDenoiser):
    "A network that predicts the noise, believed to be a denoiser."

    def to_x0(self, raw, x, sigma):
        return x


def test_a_teacher_that_removes_no_noise_is_refused_before_anything(tmp_path):
    with pytest.raises(ValueError, match='does not remove the noise'):
        sfd(shaken(Noise(MLP(width=8, depth=1))), TINY, folder=tmp_path / 'run', show=False)
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_weights_in_half_precision_are_refused_for_what_they_are(teacher, dtype):
    half = copy.deepcopy(teacher).to(dtype)
    for call in (
        lambda: sfd(half, TINY, show=False),
        lambda: sfd(teacher, TINY, show=False, student=half),
    ):
        with pytest.raises(
            (TypeError, ValueError), match=f'{str(dtype).removeprefix("torch.")}.*float'
        ):
            call()


def half_frozen(seed=0):
    torch.manual_seed(seed)
    teacher = EDMDenoiser(MLP(2, 16, 1), 0.5)
    torch.nn.init.normal_(teacher.net.out.weight, 0, 0.1)
    teacher.net.stem.weight.data[0, 0] = -0.0
    teacher.net.stem.requires_grad_(False)
    return teacher


def test_frozen_weights_that_are_shared_are_never_written(tmp_path):
    class Stop:
        def after_iteration(self, state):
            state.stop = state.done == 4

    cfg = SFDConfig(nfe=1, shape=(2,), steps=8, batch=4, lr=0.1, ema=0.9)
    teacher, all_trained = half_frozen(), half_frozen().requires_grad_(True)
    before = denoiser_hash(teacher)
    sfd(teacher, cfg, show=False)
    assert denoiser_hash(teacher) == before  # -0. stays, too
    sfd(all_trained, cfg, folder=tmp_path / 'all', show=False, hooks=[Stop()])
    with pytest.raises(
        ValueError, match='net.stem.weight is frozen here and has other numbers there'
    ):
        sfd(teacher, cfg, folder=tmp_path / 'all', show=False)
    assert denoiser_hash(teacher) == before
    whole = sfd(teacher, cfg, show=False)
    sfd(teacher, cfg, folder=tmp_path / 'half', show=False, hooks=[Stop()])
    again = sfd(teacher, cfg, folder=tmp_path / 'half', show=False)
    assert all(
        torch.equal(a, b) for a, b in zip(whole.denoiser.parameters(), again.denoiser.parameters())
    )


def test_a_float16_bank_is_what_would_be_walked():
    cfg = replace(TINY, bank_dtype='float16', pool=None)
    teacher = half_frozen()
    walked, banked = (
        sfd(teacher, cfg, show=False),
        sfd(teacher, cfg, teacher_bank(teacher, cfg, show=False), show=False),
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(walked.denoiser.parameters(), banked.denoiser.parameters())
    )
    with pytest.raises(ValueError, match='no bank keeps what restarts'):
        replace(cfg, teacher_states='local')


def test_the_norm_in_float32_has_the_hash_of_the_plain_one():
    guided = GuidedDenoiser(EDMDenoiser(UNet(1, (8, 32), n_classes=2), 0.5), 2.0)
    ours = denoiser_hash(guided)
    for m in guided.modules():
        if isinstance(m, torch.nn.GroupNorm):
            m.__class__ = torch.nn.GroupNorm
    assert denoiser_hash(guided) == ours


def test_only_the_first_restarted_step_begins_analytically():
    cfg = SFDConfig(nfe=2, shape=(2,), teacher_states='local', teacher_afs=True)
    calls = []
    for n in range(cfg.n_steps):
        counter = NFECounter(GaussianDenoiser(0.0, 1.0))
        local_segment(counter, cfg, torch.ones(3, 2), n, None)
        calls.append(counter.nfe)
    assert calls == [cfg.substeps - 1, cfg.substeps, cfg.substeps]


class OneLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(2, 2)

    def forward(self, x, noise, cond=None):
        return self.out(x)


@pytest.mark.parametrize(
    'how, says',
    [
        (dict(accumulate=3), 'cannot be cut into 3'),
        (dict(recompute=True), 'has neither'),
        (dict(shard=True), 'this is the only one'),
        (dict(precision='fp16'), 'needs a GPU'),
    ],
)
def test_hardware_that_cannot_be_is_refused_before_the_teacher_walks(how, says, monkeypatch):
    monkeypatch.setattr(SFDConfig, 'bank', lambda *_, **__: pytest.fail('it walks'))
    with pytest.raises(ValueError, match=says):
        sfd(EDMDenoiser(OneLayer()), replace(TINY, pool=4), show=False, hardware=Hardware(**how))


def test_a_student_that_a_hook_has_stopped_says_so_and_replaces_no_finished_one(tmp_path):
    teacher = shaken(EDMDenoiser(MLP(width=8, depth=1)))
    cfg = SFDConfig(steps=6, batch=8, shape=(2,))

    class Stop:
        def after_iteration(self, state):
            state.stop |= state.done == 2

    part, whole = (sfd(teacher, cfg, show=False, hooks=hooks) for hooks in ([Stop()], []))
    assert part.about['stopped'] == 2 and 'stopped' not in whole.about
    part.save(tmp_path)
    whole.save(tmp_path)  # the same run, gone on
    with pytest.raises(ValueError, match='holds another student .stopped: None there, 2 now'):
        part.save(tmp_path)
    other = sfd(teacher, cfg, student=shaken(EDMDenoiser(MLP(width=8, depth=1)), 1), show=False)
    with pytest.raises(ValueError, match='holds another student .start: '):
        other.save(tmp_path)


def test_a_student_takes_euler_steps():
    class Other(SFDConfig):
        def sampler(self, denoiser, shape=None):
            return replace(super().sampler(denoiser, shape), solver='heun')

    teacher = shaken(EDMDenoiser(MLP(width=8, depth=1)))
    with pytest.raises(ValueError, match="takes Euler steps, and the sampler of Other .* 'heun'"):
        sfd(teacher, Other(steps=2, batch=8, shape=(2,)), show=False)


def test_training_where_gradients_are_switched_off_is_refused():
    with torch.no_grad(), pytest.raises(ValueError, match='switched off around this call'):
        sfd(EDMDenoiser(MLP(width=8)), SFDConfig(steps=2, batch=8, shape=(2,)), show=False)
