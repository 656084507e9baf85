"Progressive Distillation: exact invariance, a second implementation, a matrix of networks and grids, bookkeeping; resumption, bad input."

import copy
import json
from dataclasses import asdict, replace

import pytest
import torch
from conftest import in_pairs, shaken
from bdense_nb.distillation import progressive as module
from bdense_nb.diffusion.denoisers import EDMDenoiser, GaussianDenoiser, MixtureDenoiser, VPDenoiser
from bdense_nb.diffusion.nets import MLP, UNet
from bdense_nb.diffusion.samplers import sample
from bdense_nb.diffusion.schedules import (
    cosine_alpha_bar,
    linear_alpha_bar,
    pd_cosine_sigmas,
    vp_scales,
)
from bdense_nb.distillation.branches import branch, fold
from bdense_nb.distillation.distill import preset
from bdense_nb.distillation.losses import SNR_WEIGHTS
from bdense_nb.distillation.progressive import (
    PDConfig,
    draw_noised,
    pd_step,
    progressive,
    progressive_rounds,
    progressive_sigmas,
)
from bdense_nb.distillation.segments import progressive_segment
from bdense_nb.distillation.students import Student, branched_student, load_student
from bdense_nb.training.config import Hardware

TINY = PDConfig(start_steps=8, updates=3, batch=8, lr=1e-3)
DATA = torch.randn(50, 2, generator=torch.Generator().manual_seed(7)) * 0.5
LABELS = torch.arange(50) % 5


@pytest.fixture(scope='module')
def teacher():
    return shaken(EDMDenoiser(MLP(width=8, depth=1)))


@pytest.fixture(scope='module')
def classy():
    return shaken(EDMDenoiser(MLP(width=8, depth=1, n_classes=5)))


def params(student):
    return list(
        (student.denoiser if isinstance(student, Student) else student).state_dict().values()
    )


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(params(a), params(b), strict=True))


def run(teacher, cfg=TINY, data=DATA, **kw):
    return progressive(teacher, data, cfg, show=False, **kw)


# --- a perfect student, in float64 ---


class Table:
    "A perfect student: any linear map for each noise level."

    def __init__(self, sigmas, maps):
        self.sigmas, self.maps = sigmas, maps

    def __call__(self, x, sigma, label=None):
        i = (self.sigmas - torch.as_tensor(sigma).reshape(-1, 1)).abs().argmin(1)
        return torch.einsum('bij,bj->bi', self.maps[i.expand(len(x))], x)


def linear_teacher(sigmas, dim=3):
    "The exact denoiser of N(0, C) with a full covariance: C (C + sigma^2)^-1."
    root = torch.randn(dim, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    C = root @ root.T / dim + 0.1 * torch.eye(dim, dtype=torch.float64)
    return Table(
        sigmas[:-1], C @ torch.linalg.inv(C + sigmas[:-1, None, None] ** 2 * torch.eye(dim))
    )


def noise_to_sample(denoiser, sigmas):  # the whole map, [dim, dim]
    dim = denoiser.maps.shape[-1]
    return sample(denoiser, sigmas[0] * torch.eye(dim, dtype=torch.float64), sigmas)


def perfect_round(denoiser, sigmas, S, K, raw=False):
    rows, dim = sigmas.unfold(0, S + 1, S), denoiser.maps.shape[-1]
    x, levels = (
        torch.eye(dim, dtype=torch.float64).repeat(len(rows), 1),
        rows.repeat_interleave(dim, 0),
    )
    x0s = progressive_segment(denoiser, x, levels, K, raw=raw).x0s
    assert x0s.shape == (len(x), K, dim)
    return Table(
        sigmas[::S][:-1], x0s[:, -1].unflatten(0, (len(rows), dim)).transpose(1, 2)
    ), sigmas[::S]


GRIDS = {
    'vp_linear': {},
    'vp_cosine': {},
    'pd_cosine': {},
    'pd_cosine, log-SNR -20 to 20': dict(
        schedule='pd_cosine', sigma_min=4.54e-5, sigma_max=22026.0
    ),
    'karras': {},
}


@pytest.mark.parametrize('grid', GRIDS)
@pytest.mark.parametrize(
    'S, K, steps',
    [(2, 1, 64), (2, 2, 64), (3, 3, 81), (4, 4, 64), (4, 2, 64), (6, 3, 36), (64, 4, 64)],
)
def test_a_perfect_student_changes_nothing(S, K, steps, grid):
    sigmas = progressive_sigmas(steps, **dict(schedule=grid) | GRIDS[grid])
    denoiser, rounds = linear_teacher(sigmas), 0
    start, denoiser_raw, raw_sigmas = noise_to_sample(denoiser, sigmas), denoiser, sigmas
    scale = start.abs().max()
    while len(sigmas) > 2:
        denoiser, sigmas = perfect_round(denoiser, sigmas, S, K)
        denoiser_raw, raw_sigmas = perfect_round(denoiser_raw, raw_sigmas, S, K, raw=True)
        rounds += 1
        assert (noise_to_sample(denoiser, sigmas) - start).abs().max() < 1e-9 * scale
    assert S**rounds == steps
    drift = (noise_to_sample(denoiser_raw, raw_sigmas) - start).abs().max()
    assert (
        drift > 0.02 * scale if rounds > 1 else drift < 1e-9 * scale
    )  # the naive target is right in the last step alone


def test_figures_of_the_naive_drift():
    sigmas = pd_cosine_sigmas(1024)
    sigmas[-1] = 0
    denoiser = Table(sigmas[:-1], (0.25 / (0.25 + sigmas[:-1] ** 2))[:, None, None])
    assert noise_to_sample(denoiser, sigmas).item() == pytest.approx(0.499248, abs=1e-6)
    for n, want in {
        512: 0.499975,
        256: 0.501397,
        128: 0.504137,
        64: None,
        32: None,
        16: None,
        8: 0.558574,
    }.items():
        denoiser, sigmas = perfect_round(denoiser, sigmas, 2, 1, raw=True)
        assert want is None or noise_to_sample(denoiser, sigmas).item() == pytest.approx(
            want, abs=1e-6
        )


def test_last_step_is_the_limit():
    "At i = 0 the target is the teacher's last estimate, and is approached from above."
    gauss, x = (
        GaussianDenoiser(0.0, 0.5),
        torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    )
    levels = lambda s: torch.tensor([0.4, 0.2, s], dtype=torch.float64).expand(4, 3)
    seg = progressive_segment(gauss, x, levels(0.0), 2)
    middle = torch.lerp(gauss(x, 0.4), x, 0.5)
    assert (
        torch.equal(seg.x0s[:, 0], gauss(x, 0.4))
        and torch.equal(seg.x0s[:, 1], gauss(middle, 0.2))
        and torch.equal(seg.states[:, 1], seg.x0s[:, 1])
    )
    gaps = [
        (progressive_segment(gauss, x, levels(s), 2).x0s - seg.x0s).abs().max().item()
        for s in (1e-2, 1e-4, 1e-6)
    ]
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 1e-4


# --- the published algorithm, written a second time ---


def published_loss(student, teacher, data, cfg, n, i):
    "Salimans & Ho 2022, Algorithm 2, in VP coordinates and float64, with the subtractive target and its special case."
    train = cfg.train_config(n)
    g = torch.Generator().manual_seed(train.seed * 1_000_003 + i)
    x0 = data[torch.randint(len(data), (cfg.batch,), generator=g)].double()
    sigmas, step = (
        cfg.sigmas[:: cfg.start_steps // (2 * n)],
        torch.randint(n, (cfg.batch,), generator=g),
    )
    eps = torch.randn(cfg.batch, *data.shape[1:], generator=g).double()
    column = lambda a: a.reshape(-1, *[1] * (x0.ndim - 1))
    (alpha_t, sigma_t), (alpha_m, sigma_m), (alpha_s, sigma_s) = (
        tuple(map(column, vp_scales(sigmas[2 * step + j]))) for j in range(3)
    )

    def x0_hat(net, z, alpha, sigma):
        return net((z / alpha).float(), (sigma / alpha).flatten()).double()

    def ddim(z, x, alpha, sigma, alpha_to, sigma_to):
        return alpha_to * x + sigma_to * (z - alpha * x) / sigma

    z_t = alpha_t * x0 + sigma_t * eps
    with torch.no_grad():
        z_m = ddim(z_t, x0_hat(teacher, z_t, alpha_t, sigma_t), alpha_t, sigma_t, alpha_m, sigma_m)
        x_m = x0_hat(teacher, z_m, alpha_m, sigma_m)
        z_s = ddim(z_m, x_m, alpha_m, sigma_m, alpha_s, sigma_s)
    target = torch.where(
        column(step == n - 1),
        x_m,
        (z_s - sigma_s / sigma_t * z_t) / (alpha_s - sigma_s / sigma_t * alpha_t),
    )
    x = x0_hat(student, z_t, alpha_t, sigma_t)
    error_x, error_eps = (
        (x - target) ** 2,
        ((z_t - alpha_t * x) / sigma_t - (z_t - alpha_t * target) / sigma_t) ** 2,
    )
    return torch.maximum(error_x.flatten(1).mean(1), error_eps.flatten(1).mean(1)).mean()


VARIANTS = {
    'EDM': (lambda: EDMDenoiser(MLP(width=16, depth=1)), 'pd_cosine'),
    'x0': (lambda: VPDenoiser(MLP(width=16, depth=1), cosine_alpha_bar(64), 'x0'), 'vp_cosine'),
    'v': (lambda: VPDenoiser(MLP(width=16, depth=1), linear_alpha_bar(64), 'v'), 'vp_linear'),
    'images': (lambda: EDMDenoiser(UNet(widths=(8, 32))), 'karras'),
}


@pytest.mark.parametrize('name', VARIANTS)
@pytest.mark.parametrize('n', [16, 4, 1])
def test_k1_is_the_published_algorithm(name, n):
    build, schedule = VARIANTS[name]
    teacher, other = shaken(build(), 1), shaken(build(), 2)
    data = (
        DATA
        if name != 'images'
        else torch.randn(9, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    )
    cfg = PDConfig(start_steps=32, K=1, batch=16, schedule=schedule, levels=64)
    student = branched_student(other, None, 1, 'out').eval()
    plain = copy.deepcopy(other).requires_grad_(True)
    ours, theirs = (
        next(pd_step(teacher, data, None, cfg, n)(student, 5)),
        published_loss(plain, teacher, data, cfg, n, 5),
    )
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    ours.backward()
    theirs.backward()
    whole = torch.cat([p.grad.flatten() for p in plain.parameters()]).norm()
    for a, b in zip(student.parameters(), plain.parameters(), strict=True):
        assert (a.grad - b.grad).norm() <= 1e-4 * b.grad.norm() + 1e-6 * whole


# --- every network on every grid ---

NETWORKS = {'edm': lambda table: EDMDenoiser(MLP(width=32, depth=1), 0.5)} | {
    p: (lambda p: lambda table: VPDenoiser(MLP(width=32, depth=1), table, p))(p)
    for p in ('eps', 'x0', 'v')
}


def leaning(denoiser):
    "Random weights, but the answer leans towards the input: as noise estimates must, or the samples would stay noise."
    net = shaken(denoiser).net
    with torch.no_grad():
        for weight, one in (
            (net.stem.weight, torch.eye(len(net.stem.weight), 2)),
            (net.out.weight, torch.eye(2, len(net.stem.weight))),
        ):
            weight.mul_(0.1).add_(one)
    return denoiser


@pytest.mark.parametrize(
    'kind, schedule, weight',
    in_pairs(NETWORKS, ['vp_linear', 'vp_cosine', 'pd_cosine'], SNR_WEIGHTS),
)
def test_every_network_on_every_grid(kind, schedule, weight):
    "Targets land on the teacher's states, every loss and gradient is finite, and training moves towards the teacher."
    table = cosine_alpha_bar(64) if schedule == 'vp_cosine' else linear_alpha_bar(64)
    teacher = (leaning if kind == 'eps' else shaken)(NETWORKS[kind](table))
    cfg = PDConfig(
        start_steps=16,
        end_steps=4,
        updates=4,
        batch=32,
        lr=1e-3,
        schedule=schedule,
        levels=64 if 'vp' in schedule else 1024,
        snr_weight=weight,
    )
    rows = cfg.sigmas.unfold(0, 3, 2)
    _, levels, x_t = draw_noised(DATA, rows, 64, torch.Generator().manual_seed(0))
    seg = progressive_segment(teacher, x_t, levels, 2)
    x, states = x_t, []
    for j in range(2):  # the sampler's own steps
        x0_hat = teacher(x, levels[:, j]).double()
        x = (x0_hat + (levels[:, j + 1] / levels[:, j])[:, None] * (x.double() - x0_hat)).float()
        states.append(x)
    size = torch.stack([seg.x0s.abs().amax((1, 2)), x_t.abs().amax(1)]).amax(0)
    assert ((torch.stack(states, 1) - seg.states).abs().amax((1, 2)) <= 1e-5 * size).all()
    students = list(progressive_rounds(teacher, DATA, cfg, show=False))
    for s in students:
        assert (
            all(torch.isfinite(p).all() for p in params(s))
            and torch.isfinite(s.sample(4)).all()
            and s.denoiser.state_dict().keys() == teacher.state_dict().keys()
        )
        assert all(
            torch.isfinite(torch.tensor(h['loss'])) for r in s.about['rounds'] for h in r['history']
        )
    assert (
        [s.nfe for s in students] == [8, 4]
        and not same(students[0], teacher)
        and not same(*students)
    )


@pytest.mark.parametrize(
    'kind, schedule, weight',
    [
        ('edm', 'pd_cosine', 'trunc'),
        ('v', 'vp_cosine', 'snr+1'),
        ('x0', 'vp_cosine', 'const'),
        ('eps', 'vp_linear', 'snr'),
    ],
)
def test_it_learns(kind, schedule, weight):
    table = cosine_alpha_bar(64) if schedule == 'vp_cosine' else linear_alpha_bar(64)
    cfg = PDConfig(
        start_steps=8,
        end_steps=4,
        updates=150,
        batch=128,
        lr=5e-3,
        schedule=schedule,
        levels=64 if 'vp' in schedule else 1024,
        snr_weight=weight,
        K=2,
    )
    torch.manual_seed(0)
    start = NETWORKS[kind](table)
    history = run(GaussianDenoiser(0.0, 0.5), cfg, student=start).about['rounds'][0]['history']
    assert sum(h['loss'] for h in history[-10:]) < 0.2 * sum(h['loss'] for h in history[:10])


# --- a DDPM network's own time ---


class Spy(MLP):
    "Notes the time inputs it gets, by who asks."

    def __init__(self):
        super().__init__(width=8, depth=1)
        self.seen = {True: set(), False: set()}

    def forward(self, x, c_noise, label=None):
        self.seen[torch.is_grad_enabled()] |= {round(i, 3) for i in c_noise.tolist()}
        return super().forward(x, c_noise, label)


def test_time_inputs_of_1024_levels():
    seen, T = [], 1024
    teacher = shaken(VPDenoiser(Spy(), linear_alpha_bar(T), 'v'))
    cfg = PDConfig(start_steps=T, end_steps=128, schedule='vp_linear', updates=1, batch=20_000)
    for n in cfg.rounds:
        spy = copy.deepcopy(teacher)
        spy.net.seen = {True: set(), False: set()}
        student = branch(teacher, 2)
        student.denoiser.net.seen = {True: set(), False: set()}
        next(pd_step(spy, DATA, None, cfg, n)(student, 0))
        stride = T // n
        assert student.denoiser.net.seen == {
            True: {float(i) for i in range(T - 1, -1, -stride)},
            False: set(),
        }  # 1023, 1021, ...; node 0, the data, never
        assert spy.net.seen == {
            True: set(),
            False: {float(i) for i in range(T - 1, -1, -stride // 2)},
        }
        seen.append((max(spy.net.seen[False]), min(student.denoiser.net.seen[True])))
    assert seen == [(1023.0, 1.0), (1023.0, 3.0), (1023.0, 7.0)]


def test_grids_are_slices():
    for schedule in (
        'vp_linear',
        'vp_cosine',
        'pd_cosine',
        'karras',
        'logsnr',
        'time_uniform',
        'discrete',
    ):
        cfg = PDConfig(start_steps=64, schedule=schedule)
        for n in cfg.rounds:
            assert (
                torch.equal(cfg.grid(n), cfg.sigmas[:: 64 // n])
                and cfg.grid(n)[-1] == 0
                and (cfg.grid(n).diff() < 0).all()
                and cfg.grid(n).dtype == torch.float64
            )
    assert progressive_sigmas(64, 'vp_cosine')[0] > 2e4


# --- the network's own table ---

OWN = replace(TINY, schedule='teacher')
TABLES = {
    'linear': linear_alpha_bar(64),
    'cosine': cosine_alpha_bar(64),
    'scaled linear': (
        1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    ).cumprod(0),
    'trained': (
        1 - torch.rand(37, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 0.3
    ).cumprod(0),
}


@pytest.mark.parametrize('name', TABLES)
def test_any_table_can_be_distilled_on_its_own_levels(tmp_path, name):
    "The network is asked at whole indices, from its noisiest level; and the levels travel with the student."
    table = TABLES[name]
    teacher = shaken(VPDenoiser(Spy(), table, 'v'))
    cfg = OWN.on_table(teacher)
    nodes = torch.linspace(len(table), 0, 9, dtype=torch.float64).round().long()
    assert cfg.sigmas[-1] == 0 and torch.allclose(
        1 / (1 + cfg.sigmas[:-1] ** 2), table[nodes[:-1] - 1], rtol=1e-12
    )
    spy, student = copy.deepcopy(teacher), branch(teacher, 2)
    for net in (spy.net, student.denoiser.net):
        net.seen = {True: set(), False: set()}
    next(pd_step(spy, DATA, None, replace(cfg, batch=500), 4)(student, 0))
    assert spy.net.seen[False] == {float(n - 1) for n in nodes[:-1]} and student.denoiser.net.seen[
        True
    ] == {float(n - 1) for n in nodes[:-1:2]}
    start = shaken(VPDenoiser(MLP(width=8, depth=1), table, 'v'))
    last = progressive(start, DATA, OWN, folder=tmp_path, show=False)
    assert (
        PDConfig(**json.loads(json.dumps(last.about['config']))) == cfg
        and last.sigmas.tolist() == [cfg.sigmas[0].item(), 0.0]
        and last.sample(3).isfinite().all()
    )
    assert same(
        last, progressive(start, DATA, cfg, folder=tmp_path, show=False)
    )  # its stored configuration is the same run


def test_the_named_table_is_the_networks_own():
    net = shaken(VPDenoiser(MLP(width=8, depth=1), linear_alpha_bar(64), 'v'))
    assert same(run(net, OWN), run(net, replace(TINY, schedule='vp_linear', levels=64)))
    assert same(
        run(GaussianDenoiser(0.0, 0.5), OWN, student=net),
        run(
            GaussianDenoiser(0.0, 0.5), replace(TINY, schedule='vp_linear', levels=64), student=net
        ),
    )  # the student's table, where the teacher has none


def test_a_table_that_does_not_fit_is_refused(teacher):
    one, other = (VPDenoiser(MLP(width=8, depth=1), TABLES[name]) for name in ('linear', 'trained'))
    for bad, match in (
        (lambda: run(teacher, OWN), 'own table, and EDMDenoiser has none; choose one of: karras'),
        (lambda: run(one, OWN, student=other), 'not that of the other'),
        (lambda: run(other, OWN.on_table(one)), 'teacher_sigmas'),
        (
            lambda: run(other, replace(OWN, start_steps=64)),
            'start_steps on a table of 37 levels must be between 2 and 37, got 64',
        ),
        (lambda: OWN.sigmas, 'on_table'),
        (lambda: run(other, TINY), 'sigma_max=80 is above the noisiest level.*pass sigma_max='),
    ):
        with pytest.raises(ValueError, match=match):
            bad()


# --- one round after another ---


def test_the_order_of_a_round(monkeypatch, teacher):
    "Fold, promote, tile anew; a fresh optimiser; a rate that falls to 0; gradients clipped to 1."
    fits, real = [], module.fit

    def spy(model, step, cfg, *args, **how):
        head = model.denoiser.net.out.weight
        fits.append(
            dict(
                tiled=torch.equal(head[:2], head[2:]),
                start=copy.deepcopy(model),
                training=model.training,
                cfg=cfg,
            )
        )
        fits[-1]['done'] = real(model, step, cfg, *args, **how)
        return fits[-1]['done']

    monkeypatch.setattr(module, 'fit', spy)
    students = list(progressive_rounds(teacher, DATA, TINY, show=False))
    assert len(fits) == 3 and all(f['tiled'] and not f['training'] for f in fits)
    for before, f, student in zip([teacher, *students], fits, students):
        assert same(fold(f['start']), before) and same(fold(f['done'].model), student)
        assert [f['cfg'].schedule, f['cfg'].clip_grad, f['cfg'].warmup, f['cfg'].lr] == [
            'linear',
            1.0,
            0,
            1e-3,
        ]
        assert [h['lr'] for h in f['done'].history] == pytest.approx([1e-3, 2e-3 / 3, 1e-3 / 3])
    assert len({f['cfg'].seed for f in fits}) == 3 and len({id(f['done'].model) for f in fits}) == 3


def test_heads_carried_over(monkeypatch, teacher):
    starts, ends, real = [], [], module.fit

    def spy(model, *args, **how):
        starts.append(copy.deepcopy(model))
        done = real(model, *args, **how)
        ends.append(copy.deepcopy(done.model))
        return done

    monkeypatch.setattr(module, 'fit', spy)
    last = list(progressive_rounds(teacher, DATA, replace(TINY, heads='carry'), show=False))[-1]
    for end, start in zip(ends, starts[1:]):
        assert same(end, start)
    assert same(fold(ends[-1]), last) and not same(ends[0], branch(fold(ends[0]), 2))


def test_a_round_is_that_round_alone(teacher):
    "No optimiser state crosses a round: the second round from its teacher alone gives the same student."
    first, second, _ = progressive_rounds(teacher, DATA, TINY, show=False)
    model = branched_student(first.denoiser, None, TINY.K, 'out').eval()
    module.fit(
        model, pd_step(first.denoiser, DATA, None, TINY, 2), TINY.train_config(2), show=False
    )
    assert same(fold(model), second)


def test_ema_is_promoted(monkeypatch, teacher):
    fits, real = [], module.fit
    monkeypatch.setattr(
        module, 'fit', lambda *args, **how: fits.append(real(*args, **how)) or fits[-1]
    )
    cfg = replace(TINY, ema=0.5)
    students = list(progressive_rounds(teacher, DATA, cfg, show=False))
    for f, s in zip(fits, students):
        assert same(fold(f.ema), s) and not same(fold(f.model), s)
    model = branched_student(
        students[0].denoiser, None, 2, 'out'
    ).eval()  # the average is also the next teacher
    real(model, pd_step(students[0].denoiser, DATA, None, cfg, 2), cfg.train_config(2), show=False)
    assert same(fold(model), fold(fits[1].model))


def test_the_teacher_stays(teacher):
    before, students = copy.deepcopy(teacher), []
    for s in progressive_rounds(teacher, DATA, TINY, show=False):
        places = {p.data_ptr() for p in params(s)}
        assert not places & {p.data_ptr() for other in (teacher, *students) for p in params(other)}
        students.append(copy.deepcopy(s))
        with torch.no_grad():
            s.denoiser.net.out.bias.add_(
                100.0
            )  # what the caller does to a student reaches no later round
    assert same(before, teacher) and same(students[-1], run(teacher))


def test_no_dropout():
    def make(p):
        return shaken(EDMDenoiser(UNet(widths=(8, 32), dropout=p)))

    data = torch.randn(9, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    assert same(run(make(0.5), data=data), run(make(0.0), data=data))
    tiled = replace(TINY, heads='tile')
    assert same(run(make(0.5), tiled, data=data), run(make(0.0), tiled, data=data))


def test_same_seed_same_student(teacher):
    torch.manual_seed(1)
    a = run(teacher)
    torch.manual_seed(2)
    b = run(teacher)
    assert same(a, b) and not same(a, run(teacher, replace(TINY, seed=1)))
    assert [r['history'] for r in a.about['rounds']] == [r['history'] for r in b.about['rounds']]


def test_arms_see_the_same_draws(teacher):
    seen = []

    def spy(x, sigma, label=None):
        seen.append((x.clone(), sigma))
        return teacher(x, sigma)

    for K in (1, 2):
        next(pd_step(spy, DATA, None, replace(TINY, K=K), 4)(branch(teacher, K), 2))
    assert (
        torch.equal(seen[0][0], seen[2][0])
        and torch.equal(seen[0][1], seen[2][1])
        and len(seen) == 4
    )


class Unplugged(Exception):
    pass


@pytest.mark.parametrize(
    'stop, changes',
    [
        ((2, 3), {}),
        ((4, 4), {}),
        ((1, 0), {}),
        ((2, 3), dict(ema=0.5)),
        ((2, 3), dict(heads='carry')),
        ((1, 2), dict(K=1, branch_weights_end='endpoint')),
    ],
    ids=str,
)
def test_resumed_is_the_same_run(tmp_path, monkeypatch, classy, stop, changes):
    cfg = replace(TINY, updates=5, **changes)
    whole = run(classy, cfg, labels=LABELS, folder=tmp_path / 'a')
    real = module.pd_step

    def cut(teacher, data, labels, cfg, n):
        step = real(teacher, data, labels, cfg, n)

        def unplugged(student, i):
            if (n, i) == stop:
                raise Unplugged
            yield from step(student, i)

        return unplugged

    monkeypatch.setattr(module, 'pd_step', cut)
    with pytest.raises(Unplugged):
        run(classy, cfg, labels=LABELS, folder=tmp_path / 'b')
    monkeypatch.setattr(module, 'pd_step', real)
    resumed = run(classy, cfg, labels=LABELS, folder=tmp_path / 'b')
    assert same(whole, resumed) and [r['history'] for r in whole.about['rounds']] == [
        r['history'] for r in resumed.about['rounds']
    ]


def test_save_and_load(tmp_path, classy):
    student = run(classy, labels=LABELS)
    student.save(tmp_path)
    again = load_student(tmp_path, 'cpu')
    assert (
        same(student, again) and torch.equal(again.sample(7), student.sample(7)) and again.nfe == 1
    )
    assert PDConfig(**again.about['config']) == TINY and [
        r['n_steps'] for r in again.about['rounds']
    ] == [4, 2, 1]


# --- options ---


@pytest.mark.parametrize(
    'changes',
    [
        dict(substeps=2, K=1),
        dict(start_steps=9, substeps=3, K=3),
        dict(start_steps=16, substeps=4, K=4),
        dict(start_steps=16, substeps=4, K=2),
        dict(target='state'),
        dict(target='raw_x0'),
        dict(branch_step='end'),
        dict(target='state', branch_step='end'),
        dict(loss='l1'),
        dict(loss='huber'),
        dict(branch_weights=(3.0, 1.0)),
        dict(branch_weights_end='endpoint'),
        dict(clip_grad=None),
        dict(schedule='karras'),
    ],
    ids=str,
)
def test_options_train(teacher, changes):
    cfg = replace(TINY, **changes)
    student = run(teacher, cfg)
    assert (
        student.nfe == 1 and torch.isfinite(student.sample(3)).all() and not same(student, teacher)
    )


@pytest.mark.parametrize('n', [4, 2, 1])
def test_state_loss_is_another_weight(teacher, n):
    "The state's error is (t - s)/t times the estimate's."
    student = branch(shaken(EDMDenoiser(MLP(width=8, depth=1)), 3), 1)
    cfg = replace(TINY, K=1, batch=1, updates=5)
    for i in range(5):
        a, b = (
            next(pd_step(teacher, DATA, None, replace(cfg, target=t), n)(student, i)).item()
            for t in ('x0', 'state')
        )
        g = torch.Generator().manual_seed(cfg.train_config(n).seed * 1_000_003 + i)
        levels = draw_noised(DATA, cfg.grid(2 * n).unfold(0, 3, 2), 1, g)[1][0]
        assert b == pytest.approx(a * float(1 - levels[2] / levels[0]) ** 2, rel=1e-4)


@pytest.mark.parametrize('kind', SNR_WEIGHTS)
def test_weights_are_a_mean_over_pixels(teacher, kind):
    cfg = replace(TINY, K=1, batch=1, snr_weight=kind)
    student = branch(shaken(EDMDenoiser(MLP(width=8, depth=1)), 3), 1)
    g = torch.Generator().manual_seed(cfg.train_config(4).seed * 1_000_003)
    _, levels, x = draw_noised(DATA, cfg.sigmas.unfold(0, 3, 2), 1, g)
    snr = float(levels[0, 0]) ** -2
    error = (
        (student(x, levels[:, 0]) - progressive_segment(teacher, x, levels, 1).x0s)
        .square()
        .mean()
        .item()
    )
    want = {'trunc': max(1, snr), 'const': 1, 'snr': snr, 'snr+1': snr + 1}[kind] * error
    assert next(pd_step(teacher, DATA, None, cfg, 4)(student, 0)).item() == pytest.approx(
        want, rel=1e-5
    )


@pytest.mark.parametrize('K', [2, 3, 4])
def test_branch_1_starts_without_loss(teacher, K):
    cfg = replace(TINY, start_steps=K**2, substeps=K, K=K)
    one_hot = lambda b: tuple(float(b == k) for k in range(K))
    losses = [
        next(
            pd_step(teacher, DATA, None, replace(cfg, branch_weights=one_hot(b)), K)(
                branch(teacher, K), 0
            )
        ).item()
        for b in range(K)
    ]
    assert losses[0] < 1e-10 < losses[1] and losses[-1] > 1e3 * losses[0]


def test_one_hot_endpoint_is_the_host(teacher):
    def grads(K, weights):
        student = branch(teacher, K)
        next(
            pd_step(teacher, DATA, None, replace(TINY, K=K, branch_weights=weights), 4)(student, 0)
        ).backward()
        return {k: p.grad for k, p in student.named_parameters()}

    host, ours = grads(1, 'linear'), grads(2, 'endpoint')
    for k in host:
        if k.endswith(('out.weight', 'out.bias')):
            assert not ours[k][:2].any()
            assert torch.allclose(ours[k][2:], host[k], rtol=1e-5, atol=1e-7)
        else:
            assert torch.allclose(ours[k], host[k], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    'formula',
    [
        GaussianDenoiser(0.1, 0.5),
        MixtureDenoiser(
            torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([0.2, 0.3]), torch.ones(2)
        ),
    ],
    ids=['Gaussian', 'mixture'],
)
def test_closed_form_teacher(tmp_path, formula, teacher):
    student = run(formula, student=teacher, folder=tmp_path)
    assert (
        student.nfe == 1
        and type(student.denoiser) is EDMDenoiser
        and same(student, run(formula, student=teacher, folder=tmp_path))
    )
    with pytest.raises(ValueError, match='another configuration'):
        run(formula, student=shaken(EDMDenoiser(MLP(width=8, depth=1)), 9), folder=tmp_path)
    with pytest.raises(TypeError, match='pass a network as student='):
        run(formula)


# --- bad input, before any work ---


@pytest.mark.parametrize(
    'bad',
    [
        dict(start_steps=12),
        dict(start_steps=1),
        dict(start_steps=8, end_steps=3),
        dict(start_steps=8, end_steps=8),
        dict(end_steps=0),
        dict(substeps=1),
        dict(K=0),
        dict(K=3),
        dict(substeps=4, K=3, start_steps=16),
        dict(K=1.5),
        dict(schedule='linear'),
        dict(schedule='vp_linear', levels=4),
        dict(schedule='vp_linear', levels=20),
        dict(sigma_min=0.0),
        dict(sigma_min=90.0),
        dict(sigma_max=float('inf')),
        dict(target='z'),
        dict(snr_weight='none'),
        dict(start_steps=2**40),
        dict(levels=2**40),
        dict(schedule='teacher', teacher_sigmas=(2.0, 1.0, 0.0)),
        dict(schedule='teacher', teacher_sigmas=tuple(range(9, 0, -1))),
        dict(teacher_sigmas=tuple(range(8, -1, -1))),
        dict(heads='none'),
        dict(loss='mse'),
        dict(branch_step='both'),
        dict(branch_weights=(1.0,)),
        dict(branch_weights='first'),
        dict(branch_weights_end=(1.0, 2.0, 3.0)),
        dict(updates=0),
        dict(batch=0),
        dict(lr=0.0),
        dict(lr=float('nan')),
        dict(clip_grad=0.0),
        dict(ema=1.0),
        dict(seed=-1),
        dict(seed=2**26),
    ],
    ids=str,
)
def test_bad_configurations(bad):
    with pytest.raises(ValueError):
        replace(TINY, **bad)


def test_configurations_survive_json():
    for cfg in (
        TINY,
        OWN,
        OWN.on_table(VPDenoiser(MLP(), TABLES['trained'])),
        preset('cifar10-pd'),
        preset('fashion_mnist_pd'),
        PDConfig(branch_weights=[1.0, 2.0], branch_weights_end=[0.0, 1.0]),
    ):
        assert PDConfig(**json.loads(json.dumps(asdict(cfg)))) == cfg and hash(cfg)


BAD_RUNS = {
    'another shape': (lambda t, c: (t, DATA.repeat(1, 2), None), 'does not fit the teacher'),
    'images': (lambda t, c: (t, torch.zeros(4, 1, 8, 8), None), 'does not fit the teacher'),
    'no data': (lambda t, c: (t, DATA[:0], None), 'at least 1'),
    'float64': (lambda t, c: (t, DATA.double(), None), 'float32'),
    'not finite': (lambda t, c: (t, DATA * float('nan'), None), 'NaN'),
    'a list': (lambda t, c: (t, [1.0, 2.0], None), 'data must be'),
    'fewer labels': (lambda t, c: (c, DATA, LABELS[:-1]), 'label must be an int64 tensor of shape'),
    'label out of range': (lambda t, c: (c, DATA, LABELS + 1), r'label must be in 0\.\.4'),
    'float labels': (lambda t, c: (c, DATA, LABELS.float()), 'int64'),
    'labels without classes': (lambda t, c: (t, DATA, LABELS), 'no classes'),
    'classes without labels': (lambda t, c: (c, DATA, None), '5 classes'),
}


@pytest.mark.parametrize('name', BAD_RUNS)
def test_bad_runs_are_refused_before_work(tmp_path, monkeypatch, teacher, classy, name):
    monkeypatch.setattr(module, 'fit', lambda *a, **how: pytest.fail('work began'))
    make, match = BAD_RUNS[name]
    who, data, labels = make(teacher, classy)
    with pytest.raises((ValueError, TypeError), match=match):
        progressive(who, data, TINY, labels, tmp_path / 'run', show=False)
    assert not (tmp_path / 'run').exists()


def test_a_student_that_does_not_fit_is_refused(tmp_path, teacher):
    for wrong in (shaken(EDMDenoiser(MLP(dim=3, width=8, depth=1))), GaussianDenoiser(0.0, 1.0)):
        with pytest.raises((ValueError, TypeError)):
            run(teacher, student=wrong, folder=tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_another_table_is_refused():
    net = MLP(width=8, depth=1)
    for table, cfg in (
        (linear_alpha_bar(1000), replace(TINY, schedule='vp_linear')),
        (cosine_alpha_bar(64), replace(TINY, schedule='vp_linear', levels=64)),
        (linear_alpha_bar(64), replace(TINY, schedule='vp_cosine', levels=64)),
    ):
        with pytest.raises(ValueError, match='not the table of this network'):
            run(VPDenoiser(net, table), cfg)
    run(
        VPDenoiser(net, linear_alpha_bar(1000), 'v'),
        replace(TINY, schedule='vp_linear', levels=1000),
    )
    run(
        VPDenoiser(net, linear_alpha_bar(1000).float().double(), 'v'),
        replace(TINY, schedule='vp_linear', levels=1000),
    )  # a table kept in float32
    run(VPDenoiser(net, linear_alpha_bar(1000), 'v'), TINY)  # between its levels, on purpose


def test_broken_networks_are_refused(teacher):
    broken = copy.deepcopy(teacher)
    broken.net.out.bias[0] = float('nan')
    with pytest.raises(FloatingPointError, match='the teacher ends in NaN'):
        run(broken)
    with pytest.raises(FloatingPointError, match='first loss'):
        run(teacher, replace(TINY, K=1), student=broken)
    with pytest.raises(TypeError, match='PDConfig'):
        run(teacher, 'pd')
    with pytest.raises(ValueError, match='n_steps'):
        pd_step(teacher, DATA, None, TINY, 3)


def test_a_folder_belongs_to_one_run(tmp_path, teacher):
    run(teacher, folder=tmp_path)
    for changes in (dict(K=1), dict(lr=2e-3), dict(seed=1), dict(heads='carry'), dict(updates=4)):
        with pytest.raises(ValueError, match=f'another configuration.*{next(iter(changes))}'):
            run(teacher, replace(TINY, **changes), folder=tmp_path)
    with pytest.raises(ValueError, match='data'):
        run(teacher, data=DATA + 1, folder=tmp_path)
    with pytest.raises(ValueError, match='teacher'):
        run(shaken(EDMDenoiser(MLP(width=8, depth=1)), 5), folder=tmp_path)


# --- how and what the loop is told ---


class Notes:
    "A hook that notes what it sees."

    def __init__(self):
        self.iterations = []

    def after_iteration(self, state):
        self.iterations.append(state.done)


def test_hardware_and_hooks_reach_every_round(teacher):
    notes, plain = Notes(), run(teacher)
    half = run(teacher, hardware=Hardware(precision='bf16'), hooks=(notes,))
    assert notes.iterations == [1, 2, 3] * 3 and not same(plain, half)
    assert all(torch.allclose(a, b, atol=0.05) for a, b in zip(params(plain), params(half)))


def test_training_fields_pass_through(teacher):
    plain = TINY.train_config(2)
    assert (
        plain.steps,
        plain.lr,
        plain.schedule,
        plain.clip_grad,
        plain.log_every,
        plain.checkpoint_every,
    ) == (3, 1e-3, 'linear', 1.0, 1, 1)
    asked = dict(
        warmup=1,
        betas=(0.5, 0.9),
        clip_grad=None,
        ema=0.9,
        log_every=2,
        checkpoint_every=0,
        keep=3,
        on_nan='skip',
    )
    cfg = replace(TINY, lr_schedule='cosine', **asked).train_config(2)
    assert {k: getattr(cfg, k) for k in asked} == asked and cfg.schedule == 'cosine'
    for changes in (dict(warmup=2), dict(betas=(0.5, 0.5)), dict(lr_schedule='constant')):
        assert not same(run(teacher), run(teacher, replace(TINY, **changes)))


def test_a_run_of_an_older_version_goes_on(tmp_path, teacher):
    want = run(teacher, folder=tmp_path)
    note = json.loads((tmp_path / 'run.json').read_text())
    for name in (
        'lr_schedule',
        'warmup',
        'betas',
        'log_every',
        'checkpoint_every',
        'keep',
        'on_nan',
    ):
        del note[name]
    (tmp_path / 'run.json').write_text(json.dumps(note))
    assert same(want, run(teacher, folder=tmp_path)) and same(
        want, run(teacher, replace(TINY, log_every=2, keep=1, checkpoint_every=0), folder=tmp_path)
    )
    with pytest.raises(ValueError, match='lr_schedule'):
        run(teacher, replace(TINY, lr_schedule='constant'), folder=tmp_path)


# --- other people's networks ---


class Strict(MLP):
    "Takes its noise input as [B], as many networks do."

    def forward(self, x, noise, label=None):
        assert noise.shape == (len(x),)
        return super().forward(x, noise, label)


def test_the_noise_input_is_always_one_per_sample():
    assert run(shaken(EDMDenoiser(Strict(width=8, depth=1)))).sample(3).isfinite().all()


@pytest.mark.parametrize('heads', ['tile', 'carry'])
@pytest.mark.parametrize('K', [1, 2])
def test_only_what_is_trainable_is_trained_in_every_round(teacher, heads, K):
    start = copy.deepcopy(teacher)
    start.net.out.requires_grad_(True)
    before = teacher.state_dict()
    for student in progressive_rounds(
        teacher, DATA, replace(TINY, heads=heads, K=K), show=False, student=start
    ):
        assert {
            k for k, v in student.denoiser.state_dict().items() if not torch.equal(v, before[k])
        } == {'net.out.weight', 'net.out.bias'}


class Noise(EDMDenoiser):
    "A network that predicts the noise, believed to be a denoiser."

    def to_x0(self, raw, x, sigma):
        return x


def test_a_teacher_that_removes_no_noise_is_refused_before_anything(tmp_path):
    with pytest.raises(ValueError, match='does not remove the noise'):
        run(shaken(Noise(MLP(width=8, depth=1))), folder=tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


class StopOnce:
    "Ends the first round that it sees after two updates."

    stopped = False

    def after_iteration(self, state):
        state.stop |= state.done == 2 and not self.stopped
        self.stopped |= state.stop


def test_a_round_that_a_hook_stops_is_finished_before_the_next_begins(teacher, tmp_path):
    whole = run(teacher, folder=tmp_path / 'whole')
    part = run(teacher, folder=tmp_path / 'part', hooks=[StopOnce()])
    assert (
        part.nfe == 4
        and part.about['stopped'] == 2
        and not (tmp_path / 'part/steps-00002').exists()
    )
    part.save(tmp_path / 'student')
    done = run(teacher, folder=tmp_path / 'part')
    assert same(done, whole) and 'stopped' not in done.about
