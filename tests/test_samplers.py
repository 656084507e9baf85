"What a sampler refuses, and every solver against every edge."

from __future__ import annotations
import itertools
import math

import pytest
import torch
from bdense_nb.diffusion import samplers as sm
from bdense_nb.core import NFECounter
from bdense_nb.diffusion.denoisers import GaussianDenoiser
from bdense_nb.diffusion.schedules import karras_sigmas, linear_alpha_bar, strided_nodes
from conftest import in_pairs

D = GaussianDenoiser(0.3, 0.5)
GRID = karras_sigmas(5, 0.02, 20.0)
ALL = pytest.mark.parametrize('solver', list(sm.SOLVERS))


def start(B=3, dtype=torch.float64, shape=(2,)):
    return 20 * torch.randn(B, *shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def test_the_promised_solvers_are_there():
    assert {
        'euler',
        'heun',
        'dpm2',
        'dpmpp1',
        'dpmpp2m',
        'dpmpp3m',
        'ipndm1',
        'ipndm2',
        'ipndm3',
        'ipndm4',
    } <= set(sm.SOLVERS)


@pytest.mark.parametrize(
    'solver, dtype, shape',
    in_pairs(sm.SOLVERS, [torch.float32, torch.float64, torch.bfloat16], [(2,), (1, 4, 4)]),
)
def test_dtype_and_shape_are_kept_and_the_input_is_left_alone(solver, dtype, shape):
    x = start(dtype=dtype, shape=shape)
    before = x.clone()
    for grid in (GRID, GRID.float(), GRID.tolist(), GRID.tolist() + [0.0]):
        out = sm.sample(D, x, grid, solver)
        assert out.dtype == dtype and out.shape == x.shape and torch.isfinite(out).all()
        traj = sm.trajectory(D, x, grid, solver)
        assert traj.xs.shape == (len(grid), *x.shape) and traj.xs.dtype == dtype
        assert torch.equal(traj[0], x) and torch.equal(traj[-1], out)
    assert torch.equal(x, before)


@ALL
@pytest.mark.parametrize('afs', [False, True])
def test_nfe(solver, afs):
    for n_steps, zero in itertools.product((1, 2, 3, 4, 5, 12), (False, True)):
        grid = karras_sigmas(n_steps, 0.02, 20.0).tolist() + [0.0] * zero
        counter = NFECounter(D)
        assert torch.isfinite(sm.sample(counter, start(), grid, solver, afs=afs)).all()
        steps = n_steps + zero
        assert counter.nfe == (2 * steps - zero if solver in ('heun', 'dpm2') else steps) - afs


@ALL
def test_the_network_is_never_asked_at_zero(solver):
    def refuses_zero(x, sigma, label=None):
        assert sigma > 0
        return D(x, sigma)

    sm.sample(refuses_zero, start(), [20.0, 5.0, 1.0, 0.0], solver)


@ALL
def test_one_grid_of_one_step_to_zero_is_the_estimate(solver):
    x = start()
    torch.testing.assert_close(
        sm.sample(D, x, [20.0, 0.0], solver), D(x, 20.0), rtol=1e-12, atol=1e-12
    )


@ALL
def test_afs_is_a_denoiser_of_its_own_on_the_first_step(solver):
    analytic = lambda x, sigma, label=None: sm.afs_x0(x, sigma) if sigma == 20.0 else D(x, sigma)
    assert torch.equal(
        sm.sample(D, start(), GRID, solver, afs=True), sm.sample(analytic, start(), GRID, solver)
    )


@ALL
@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
def test_non_finite_input(solver, bad):
    x = start()
    x[1, 0] = bad
    for call in (sm.sample, sm.trajectory, sm.sampler_steps):
        with pytest.raises(ValueError, match='1 NaN or infinite'):
            call(D, x, GRID, solver)


BAD_GRIDS = [
    (GRID.flip(0), 'descending'),
    ([20.0, 5.0, 5.0, 1.0], 'descending'),
    ([20.0, -1.0], 'at least 0'),
    ([20.0, 0.0, -1.0], 'at least 0'),
    ([20.0], 'at least 2'),
    ([[20.0, 1.0]], 'one-dimensional'),
    ([math.inf, 1.0], 'finite'),
    ([20.0, math.nan], 'finite'),
    ([0.0, 0.0], 'descending'),
]


@ALL
def test_bad_grid(solver):
    for (grid, match), call in itertools.product(
        BAD_GRIDS, (sm.sample, sm.trajectory, sm.sampler_steps)
    ):
        with pytest.raises(ValueError, match=match):
            call(D, start(), grid, solver)


@ALL
def test_bad_type_and_shape(solver):
    for x in (
        torch.ones(3, 2, dtype=torch.int64),
        torch.ones(3, 2, dtype=torch.bool),
        [[1.0, 2.0]],
        None,
    ):
        with pytest.raises(TypeError, match='x must be'):
            sm.sample(D, x, GRID, solver)
    for shape in ((), (3,)):
        with pytest.raises(ValueError, match='at least two axes'):
            sm.sample(D, torch.ones(shape), GRID, solver)


BAD_CONDITIONS = [
    (torch.zeros(2, dtype=torch.long), ValueError),
    (torch.tensor(1), ValueError),
    (7, TypeError),
    ([0, 1, 2], TypeError),
    (torch.zeros(3, dtype=torch.long, device='meta'), ValueError),
    (dict(a=torch.zeros(3), b=torch.zeros(2)), ValueError),
    (dict(a=torch.zeros(3), b=None), TypeError),
    (dict(a=torch.zeros(3, device='meta')), ValueError),
]


@ALL
def test_bad_condition(solver):
    for cond, error in BAD_CONDITIONS:
        with pytest.raises(
            error, match='must be a tensor|a row for each of the 3 samples|is on meta'
        ):
            sm.sample(D, start(), GRID, solver, cond=cond)


def test_label_reaches_every_call():
    seen = []

    def denoiser(x, sigma, label=None):
        seen.append(label)
        return D(x, sigma)

    label = torch.tensor([4, 5, 6])
    sm.sample(denoiser, start(), GRID, 'heun', cond=label)
    assert len(seen) == 10 and all(l is label for l in seen)


@pytest.mark.parametrize('solver', ['Euler', 'ddim', '', None, 3])
def test_unknown_solver(solver):
    for call in (sm.sample, sm.trajectory, sm.sampler_steps):
        with pytest.raises(ValueError, match='unknown solver .*euler, heun'):
            call(D, start(), GRID, solver)


@ALL
def test_wrong_output_shape(solver):
    branched = lambda x, sigma, label=None: D(x, sigma)[:, None].expand(-1, 4, -1)
    with pytest.raises(ValueError, match=r'\(3, 4, 2\).*\(3, 2\)'):
        sm.sample(branched, start(), GRID, solver)


@ALL
def test_no_gradient_is_kept(solver):
    x = start().requires_grad_()
    assert (
        not sm.sample(D, x, GRID, solver).requires_grad
        and not sm.trajectory(D, x, GRID, solver).xs.requires_grad
    )
    for step in sm.sampler_steps(D, x, GRID, solver):
        assert not step.x.requires_grad and torch.is_grad_enabled()


@ALL
def test_two_runs_share_no_history(solver):
    first, second = (
        sm.sampler_steps(D, start(), GRID, solver),
        sm.sampler_steps(D, start() + 1, GRID, solver),
    )
    for _ in range(5):
        a, _ = next(first), next(second)
    assert torch.equal(a.x, sm.sample(D, start(), GRID, solver))


@ALL
def test_a_step_takes_nothing_before_it_is_asked_for(solver):
    counter = NFECounter(D)
    steps = sm.sampler_steps(counter, start(), GRID, solver)
    assert counter.nfe == 0
    next(steps)
    assert counter.nfe == (2 if solver in ('heun', 'dpm2') else 1)


@ALL
def test_batch_size_changes_no_sample(solver):
    x = start(8)
    torch.testing.assert_close(
        torch.cat([sm.sample(D, row, GRID, solver) for row in x.split(3)]),
        sm.sample(D, x, GRID, solver),
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize('order', [0, 4, 2.5, '2'])
def test_bad_orders(order):
    with pytest.raises(ValueError, match='order'):
        sm.dpmpp(order)
    with pytest.raises(ValueError, match='unknown prediction'):
        sm.dpmpp(2, 'v')
    with pytest.raises(ValueError, match='order'):
        sm.ipndm(order + 1 if order == 4 else order)


@pytest.mark.parametrize('order', [1, 2, 3])
@pytest.mark.parametrize('predict', ['x0', 'eps'])
def test_noise_and_data_mode_agree_on_fine_grids(order, predict):
    x, grid = start(), karras_sigmas(400, 0.02, 20.0)
    for final in (True, False):
        out = sm.sample(D, x, grid, sm.dpmpp(order, predict, final))
        torch.testing.assert_close(
            out, D.flow(x, 20.0, 0.02), rtol=0, atol=1e-2 if order == 1 else 1e-4
        )


@pytest.mark.parametrize(
    'method, eta', [('ddim', 0.0), ('ddim', 0.5), ('ddim', 1.0), ('ddpm', 0.0), ('ddpm_large', 0.0)]
)
@pytest.mark.parametrize('n_steps', [1, 2, 10])
def test_vp_ends_in_the_last_estimate(method, eta, n_steps):
    last = []

    def denoiser(x, sigma, label=None):
        last[:] = [D(x, sigma)]
        return last[0]

    counter = NFECounter(denoiser)
    out = sm.sample_vp(
        counter,
        start() / 20,
        strided_nodes(linear_alpha_bar(), n_steps)[0],
        method,
        eta,
        torch.Generator().manual_seed(0),
    )
    assert torch.equal(out, last[0]) and counter.nfe == n_steps


def test_vp_noise_follows_its_generator():
    nodes = strided_nodes(linear_alpha_bar(), 5)[0]
    run = lambda gens: sm.sample_vp(D, start() / 20, nodes, 'ddpm', generator=gens)
    gens = lambda: [torch.Generator().manual_seed(s) for s in (1, 2, 3)]
    assert torch.equal(run(gens()), run(gens()))
    assert torch.equal(run(torch.Generator().manual_seed(1)), run(torch.Generator().manual_seed(1)))
    for bad in (gens()[:2], 0, 'seed'):
        with pytest.raises(ValueError, match='generator'):
            run(bad)


@pytest.mark.parametrize(
    'nodes',
    [
        [0.9, 0.5, 1.0],
        [0.0, 0.5, 1.0],
        [0.5, 1.1],
        [1.0],
        [0.5, 0.5, 1.0],
        [math.nan, 1.0],
        [[0.5, 1.0]],
    ],
)
def test_bad_alpha_bars(nodes):
    with pytest.raises(ValueError, match='ascending'):
        sm.sample_vp(D, start(), nodes)


@pytest.mark.parametrize('eta', [-0.1, 1.1, math.nan])
def test_bad_eta(eta):
    with pytest.raises(ValueError, match='eta'):
        sm.sample_vp(D, start(), [0.5, 1.0], 'ddim', eta)


def test_bad_vp_arguments():
    z = start()
    with pytest.raises(ValueError, match='unknown method'):
        sm.sample_vp(D, z, [0.5, 1.0], 'ancestral')
    with pytest.raises(ValueError, match='NaN'):
        sm.sample_vp(D, z * math.nan, [0.5, 1.0])
    with pytest.raises(ValueError, match='unknown variance'):
        sm.ddpm_step(z, z, 0.5, 0.9, z, 'medium')
    with pytest.raises(ValueError, match='needs noise'):
        sm.ddim_step(z, z, 0.5, 0.9, 1.0)
    with pytest.raises(ValueError, match='eta'):
        sm.sample_vp(D, z, [0.5, 1.0], 'ddpm', eta=0.5)
    with pytest.raises(
        ValueError, match='quantile must be a finite number above 0 and at most 1, got 99.5'
    ):
        sm.thresholded(D, 99.5)


@pytest.mark.parametrize(
    'label, message',
    [
        (torch.tensor([0, 3]), r'label must be in 0\.\.2, got values from 0 to 3'),
        (torch.tensor([-1, 0]), 'from -1 to 0'),
        (torch.zeros(3, dtype=torch.long), r'int64 tensor of shape \(2,\)'),
        (torch.zeros(2), r'int64 tensor of shape \(2,\)'),
        (torch.zeros(2, dtype=torch.int32), 'int64'),
    ],
)
def test_classes_that_a_denoiser_does_not_know(label, message):
    class Three(GaussianDenoiser):
        n_classes = 3

    class Without(GaussianDenoiser):
        n_classes = 0

    x = torch.zeros(2, 2)
    for walk in (sm.sample, sm.trajectory):
        with pytest.raises(ValueError, match=message):
            walk(Three(0.0, 1.0), x, [2.0, 1.0], cond=label)
        with pytest.raises(ValueError, match='no classes'):
            walk(Without(0.0, 1.0), x, [2.0, 1.0], cond=torch.zeros(2, dtype=torch.long))
        walk(GaussianDenoiser(0.0, 1.0), x, [2.0, 1.0], cond=label[:2])


def test_a_cold_first_call_is_not_what_a_sample_takes(monkeypatch):
    "On a clock of its own: the first call takes a second, each later one .01 for a sample."
    clock, calls = [0.0], []

    def denoiser(x, sigma, cond=None):
        clock[0] += 0.01 * len(x) if calls else 1.0
        calls.append(len(x))
        return x

    monkeypatch.setattr(sm.time, 'perf_counter', lambda: clock[0])
    assert sm.Sampler(denoiser, (80.0, 0.002), False, (2,)).seconds_per_sample == pytest.approx(
        0.01
    ) and calls[:3] == [2, 2, 8]


def test_a_network_in_training_mode_samples_as_in_evaluation():
    parts = torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2), torch.nn.Dropout(0.5)

    class Net(torch.nn.Module):
        n_classes = 0

        def __init__(self):
            super().__init__()
            self.all = torch.nn.Sequential(*parts)

        def forward(self, x, sigma, cond=None):
            return self.all(x)

    model = Net().train()
    before = parts[1].running_mean.clone()
    sampler = sm.Sampler(model, karras_sigmas(3), False, (2,))
    assert sampler.nfe == 3 and torch.equal(sampler.sample(4), sampler.sample(4))
    assert torch.equal(sampler.trajectory(4)[-1], sampler.sample(4))
    assert torch.equal(parts[1].running_mean, before) and all(m.training for m in model.modules())
