"Segments, branch steps, targets and the trajectory bank: every shape and level, and what is refused."
import pytest
import torch
from bdense_nb.core import Trajectory, sample_labels, sample_noise
from bdense_nb.samplers import SOLVERS, trajectory
from bdense_nb.schedules import SCHEDULES, karras_sigmas, nested_sigmas
from bdense_nb.targets import BRANCH_STEPS, Segment, TrajectoryBank, branch_states, check_substeps, progressive_targets, segments
from bdense_nb.teachers import GaussianDenoiser, MixtureDenoiser

BLOBS = MixtureDenoiser(torch.tensor([[-1., -.6], [1., -.6], [0., 1.]]), torch.full((3,), .15), torch.ones(3))


def problem(K, shape=(2,), t=5., low=.01, dtype=torch.float64, B=6):
    x = (t*sample_noise(range(B), shape)).to(dtype)
    traj = trajectory(GaussianDenoiser(.1, .5), x, karras_sigmas(K, low, t), 'heun')
    return x, t, traj.sigmas[1:], traj.xs[1:].transpose(0, 1)


# --- landing ---

@pytest.mark.parametrize('K', range(1, 9))
@pytest.mark.parametrize('shape', [(1,), (2,), (3, 4, 4)], ids=str)
@pytest.mark.parametrize('dtype, tol', [(torch.float64, 1e-12), (torch.float32, 5e-6)])
def test_targets_land_on_the_states(K, shape, dtype, tol):
    x, t, levels, states = problem(K, shape, dtype=dtype)
    target = progressive_targets(states, x, t, levels)
    assert target.dtype == dtype and target.shape == states.shape
    assert (branch_states(target, x, t, levels) - states).abs().max() <= tol


@pytest.mark.parametrize('schedule', SCHEDULES)
@pytest.mark.parametrize('n_steps', [1, 2, 12])
@pytest.mark.parametrize('K', [1, 2, 4])
def test_targets_land_on_every_step_of_every_grid(schedule, n_steps, K):
    fine, _ = nested_sigmas(n_steps, K, schedule, .006, 80.)
    path = trajectory(BLOBS, 80*sample_noise(range(3), (2,)).double(), fine, 'euler')
    for seg in segments(path, K, K):
        target = progressive_targets(seg.states, seg.x_t, seg.sigma, seg.sigmas_k)
        assert (branch_states(target, seg.x_t, seg.sigma, seg.sigmas_k) - seg.states).abs().max() <= 1e-12
        assert torch.allclose(target[:, 0], BLOBS(seg.x_t, seg.sigma), atol=1e-11)     # branch 1: the teacher's own prediction


def test_levels_of_each_sample():
    x, _, _, _ = problem(1)
    t = torch.linspace(1, 6, 6, dtype=torch.float64)
    levels = t[:, None]*torch.tensor([.6, .2, 0.], dtype=torch.float64)
    states = torch.randn(6, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for step in BRANCH_STEPS:
        one = torch.cat([branch_states(states[b:b+1], x[b:b+1], t[b].item(), levels[b], step) for b in range(6)])
        assert torch.allclose(branch_states(states, x, t, levels, step), one, atol=1e-14)
    one = torch.cat([progressive_targets(states[b:b+1], x[b:b+1], t[b].item(), levels[b]) for b in range(6)])
    target = progressive_targets(states, x, t, levels)
    assert torch.allclose(target, one, atol=1e-14) and torch.equal(target[:, -1], states[:, -1])     # level 0: the state itself
    shared = torch.tensor([.9, .5, .1])                                                              # own inputs, shared levels
    assert torch.allclose(branch_states(states, x, t, shared)[2:3], branch_states(states[2:3], x[2:3], t[2].item(), shared), atol=1e-14)


def test_gradients_pass_through_the_step():
    x, t, levels, states = problem(4)
    x0_hats = states.clone().requires_grad_(True)
    branch_states(x0_hats, x, t, levels).sum().backward()
    assert torch.allclose(x0_hats.grad, (1 - levels/t)[None, :, None].expand_as(states))


@pytest.mark.parametrize('broken', ['no branch axis', 'other K', 'other batch', 'other sample shape', 'branches first'])
def test_wrong_shapes_are_refused_not_broadcast(broken):
    x, t, levels, states = problem(4)
    bad = {'no branch axis': states[:, 0], 'other K': states[:, :1], 'other batch': states[:1], 'other sample shape': states[..., :1], 'branches first': states.transpose(0, 1)}[broken]
    for call in (lambda: branch_states(bad, x, t, levels), lambda: progressive_targets(bad, x, t, levels), lambda: Segment(x, t, levels, bad)):
        with pytest.raises(ValueError, match=r'\[B, K, \*D\]'): call()


@pytest.mark.parametrize('levels', [[5., 1.], [6., 1.], [1., -1.], [1., float('nan')]], ids=str)
def test_levels_outside_the_step_are_refused(levels):
    x, t, _, states = problem(2)
    with pytest.raises(ValueError, match='levels inside a step'): progressive_targets(states, x, t, torch.tensor(levels))


def test_unknown_step_is_refused():
    x, t, levels, states = problem(2)
    with pytest.raises(ValueError, match='own, end'): branch_states(states, x, t, levels, 'half')


# --- cutting ---

@pytest.mark.parametrize('n_steps', [1, 2, 5])
@pytest.mark.parametrize('substeps, K', [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4), (6, 3), (6, 2)])
def test_segments_are_slices(n_steps, substeps, K):
    fine, nodes = nested_sigmas(n_steps, substeps)
    traj = Trajectory(fine, torch.arange(len(fine)*6.).reshape(len(fine), 3, 2))
    cut = segments(traj, substeps, K)
    assert [s.sigma for s in cut] == nodes[:-1].tolist()
    for n, seg in enumerate(cut):
        assert torch.equal(seg.x_t, traj[n*substeps])
        for k in range(1, K + 1):
            j = n*substeps + k*substeps//K
            assert seg.sigmas_k[k-1] == fine[j] and torch.equal(seg.states[:, k-1], traj[j])


@pytest.mark.parametrize('n_fine, substeps, K', [(12, 4, 3), (12, 5, 1), (12, 4, 0), (12, 0, 1), (12, 4, 8), (12, 4, 2.), (12, 4, True)])
def test_what_does_not_divide_is_refused(n_fine, substeps, K):
    with pytest.raises(ValueError): check_substeps(n_fine, substeps, K)


# --- the bank ---

@pytest.fixture(scope='module')
def bank():
    seeds = range(50, 82)
    return TrajectoryBank(seeds, sample_labels(seeds, 10), trajectory(BLOBS, 80*sample_noise(seeds, (2,)), nested_sigmas(3, 4)[0], 'dpmpp3m'), 'dpmpp3m')


@pytest.mark.parametrize('start, n', [(50, 1), (50, 32), (57, 8), (81, 1)])
def test_bank_finds_seeds(bank, start, n):
    seeds = range(start, start + n)
    traj, labels = bank.batch(seeds, bank.traj.sigmas, 'dpmpp3m')
    assert torch.equal(labels, sample_labels(seeds, 10)) and torch.equal(traj[0], 80*sample_noise(seeds, (2,)))
    assert torch.allclose(traj.xs, trajectory(BLOBS, traj[0], traj.sigmas, 'dpmpp3m').xs, atol=1e-4)


@pytest.mark.parametrize('seeds', [range(49, 52), range(80, 83), range(0, 8), range(50, 60, 3)], ids=str)
def test_bank_refuses_other_seeds(bank, seeds):
    with pytest.raises(ValueError, match='seeds 50..81'): bank.batch(seeds, bank.traj.sigmas)


@pytest.mark.parametrize('solver', set(SOLVERS) - {'dpmpp3m'})
def test_bank_refuses_other_solvers(bank, solver):
    with pytest.raises(ValueError, match='dpmpp3m'): bank.batch(range(50, 52), bank.traj.sigmas, solver)


def test_bank_refuses_other_grids(bank):
    for grid in (bank.traj.sigmas[:-1], bank.traj.sigmas*1.0001, nested_sigmas(3, 4, 'logsnr')[0]):
        with pytest.raises(ValueError, match='grid'): bank.batch(range(50, 52), grid)


def test_bank_refuses_what_does_not_match(bank):
    for seeds in (range(31), range(0, 64, 2)):
        with pytest.raises(ValueError, match='consecutive'): TrajectoryBank(seeds, None, bank.traj)
    with pytest.raises(ValueError, match='labels'): TrajectoryBank(range(32), bank.labels[:3], bank.traj)
    assert TrajectoryBank(range(32), None, bank.traj).batch(range(4), bank.traj.sigmas, 'heun')[1] is None     # solver not known
