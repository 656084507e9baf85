"Segments, branch steps and targets: every shape and level, random grids, and what is refused."

import pytest
import torch
from bdense_nb.core import NFECounter, Trajectory, sample_noise
from bdense_nb.diffusion.denoisers import GaussianDenoiser, MixtureDenoiser
from bdense_nb.diffusion.samplers import trajectory
from bdense_nb.diffusion.schedules import SCHEDULES, karras_sigmas, nested_sigmas
from bdense_nb.distillation.segments import (
    BRANCH_STEPS,
    Segment,
    average_weights,
    branch_states,
    branch_targets,
    check_substeps,
    progressive_segment,
    progressive_targets,
    segments,
)
from conftest import in_pairs

BLOBS = MixtureDenoiser(
    torch.tensor([[-1.0, -0.6], [1.0, -0.6], [0.0, 1.0]]), torch.full((3,), 0.15), torch.ones(3)
)


def problem(K, shape=(2,), t=5.0, low=0.01, dtype=torch.float64, B=6):
    x = (t * sample_noise(range(B), shape)).to(dtype)
    traj = trajectory(GaussianDenoiser(0.1, 0.5), x, karras_sigmas(K, low, t), 'heun')
    return x, t, traj.sigmas[1:], traj.xs[1:].transpose(0, 1)


# --- landing ---


@pytest.mark.parametrize(
    'K, shape, exactly',
    in_pairs(
        range(1, 9),
        [(1,), (2,), (3, 4, 4)],
        [(torch.float64, 1e-12), (torch.float32, 5e-6)],
    ),
    ids=str,
)
def test_targets_land_on_the_states(K, shape, exactly):
    dtype, tol = exactly
    x, t, levels, states = problem(K, shape, dtype=dtype)
    target = progressive_targets(states, x, t, levels)
    assert target.dtype == dtype and target.shape == states.shape
    assert (branch_states(target, x, t, levels) - states).abs().max() <= tol


@pytest.mark.parametrize('schedule, n_steps, K', in_pairs(SCHEDULES, [1, 2, 12], [1, 2, 4]))
def test_targets_land_on_every_step_of_every_grid(schedule, n_steps, K):
    fine, _ = nested_sigmas(n_steps, K, schedule, 0.006, 80.0)
    path = trajectory(BLOBS, 80 * sample_noise(range(3), (2,)).double(), fine, 'euler')
    for seg in segments(path, K, K):
        target = progressive_targets(seg.states, seg.x_t, seg.sigma, seg.sigmas_k)
        assert (
            branch_states(target, seg.x_t, seg.sigma, seg.sigmas_k) - seg.states
        ).abs().max() <= 1e-12
        assert torch.allclose(
            target[:, 0], BLOBS(seg.x_t, seg.sigma), atol=1e-11
        )  # branch 1: the teacher's own prediction


def test_levels_of_each_sample():
    x, _, _, _ = problem(1)
    t = torch.linspace(1, 6, 6, dtype=torch.float64)
    levels = t[:, None] * torch.tensor([0.6, 0.2, 0.0], dtype=torch.float64)
    states = torch.randn(6, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for step in BRANCH_STEPS:
        one = torch.cat(
            [
                branch_states(states[b : b + 1], x[b : b + 1], t[b].item(), levels[b], step)
                for b in range(6)
            ]
        )
        assert torch.allclose(branch_states(states, x, t, levels, step), one, atol=1e-14)
    one = torch.cat(
        [
            progressive_targets(states[b : b + 1], x[b : b + 1], t[b].item(), levels[b])
            for b in range(6)
        ]
    )
    target = progressive_targets(states, x, t, levels)
    assert torch.allclose(target, one, atol=1e-14) and torch.equal(
        target[:, -1], states[:, -1]
    )  # level 0: the state itself
    shared = torch.tensor([0.9, 0.5, 0.1])  # own inputs, shared levels
    assert torch.allclose(
        branch_states(states, x, t, shared)[2:3],
        branch_states(states[2:3], x[2:3], t[2].item(), shared),
        atol=1e-14,
    )


def test_gradients_pass_through_the_step():
    x, t, levels, states = problem(4)
    x0_hats = states.clone().requires_grad_(True)
    branch_states(x0_hats, x, t, levels).sum().backward()
    assert torch.allclose(x0_hats.grad, (1 - levels / t)[None, :, None].expand_as(states))


@pytest.mark.parametrize(
    'broken', ['no branch axis', 'other K', 'other batch', 'other sample shape', 'branches first']
)
def test_wrong_shapes_are_refused_not_broadcast(broken):
    x, t, levels, states = problem(4)
    bad = {
        'no branch axis': states[:, 0],
        'other K': states[:, :1],
        'other batch': states[:1],
        'other sample shape': states[..., :1],
        'branches first': states.transpose(0, 1),
    }[broken]
    for call in (
        lambda: branch_states(bad, x, t, levels),
        lambda: progressive_targets(bad, x, t, levels),
        lambda: Segment(x, t, levels, bad),
    ):
        with pytest.raises(ValueError, match=r'\[B, K, \*D\]'):
            call()


@pytest.mark.parametrize(
    'levels', [[5.0, 1.0], [6.0, 1.0], [1.0, -1.0], [1.0, float('nan')]], ids=str
)
def test_levels_outside_the_step_are_refused(levels):
    x, t, _, states = problem(2)
    with pytest.raises(ValueError, match='levels inside a step'):
        progressive_targets(states, x, t, torch.tensor(levels))


def test_unknown_step_is_refused():
    x, t, levels, states = problem(2)
    with pytest.raises(ValueError, match='own, end'):
        branch_states(states, x, t, levels, 'half')


# --- cutting ---


@pytest.mark.parametrize('n_steps', [1, 2, 5])
@pytest.mark.parametrize(
    'substeps, K', [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4), (6, 3), (6, 2)]
)
def test_segments_are_slices(n_steps, substeps, K):
    fine, nodes = nested_sigmas(n_steps, substeps)
    traj = Trajectory(fine, torch.arange(len(fine) * 6.0).reshape(len(fine), 3, 2))
    cut = segments(traj, substeps, K)
    assert [s.sigma for s in cut] == nodes[:-1].tolist()
    for n, seg in enumerate(cut):
        assert torch.equal(seg.x_t, traj[n * substeps])
        for k in range(1, K + 1):
            j = n * substeps + k * substeps // K
            assert seg.sigmas_k[k - 1] == fine[j] and torch.equal(seg.states[:, k - 1], traj[j])


@pytest.mark.parametrize(
    'n_fine, substeps, K',
    [(12, 4, 3), (12, 5, 1), (12, 4, 0), (12, 0, 1), (12, 4, 8), (12, 4, 2.0), (12, 4, True)],
)
def test_what_does_not_divide_is_refused(n_fine, substeps, K):
    with pytest.raises(ValueError):
        check_substeps(n_fine, substeps, K)


# --- the average ---


def random_grid(seed, S, rows=None, zero=False):
    "Descending levels over eight decades."
    g = torch.Generator().manual_seed(seed)
    shape = (S + 1,) if rows is None else (rows, S + 1)
    grid = (
        (18 * torch.rand(shape, generator=g, dtype=torch.float64) - 9)
        .exp()
        .sort(dim=-1, descending=True)
        .values
    )
    if zero:
        grid[..., -1] = 0.0
    return grid


def assert_same_weights(w, grid):
    "Entry by entry, by the formula."
    s = grid.tolist()
    for k in range(1, len(s)):
        for j in range(1, k + 1):
            last = 1.0 if j == k else s[k] / s[j]
            assert w[k - 1, j - 1].item() == pytest.approx(
                (last - s[k] / s[j - 1]) / (1 - s[k] / s[0]), rel=1e-10, abs=1e-15
            )


@pytest.mark.parametrize('seed, S, zero', in_pairs(range(5), [1, 2, 3, 4, 8, 33], [False, True]))
def test_average_weights_of_random_grids(seed, S, zero):
    grid = random_grid(seed, S, zero=zero)
    w = average_weights(grid)
    assert w.shape == (S, S) and w.dtype == torch.float64 and torch.isfinite(w).all()
    assert (
        (w >= 0).all()
        and torch.equal(w, w.tril())
        and torch.allclose(w.sum(-1), torch.ones(S).double(), atol=1e-13, rtol=0)
    )
    assert w[0, 0] == pytest.approx(1, abs=1e-15)
    assert_same_weights(w, grid)
    if zero:
        assert torch.equal(w[-1], torch.eye(S, dtype=torch.float64)[-1])


@pytest.mark.parametrize('S', [1, 2, 5])
def test_average_weights_of_each_sample(S):
    grids = torch.cat([random_grid(0, S, 6), random_grid(1, S, 3, zero=True)])
    w = average_weights(grids)
    assert w.shape == (9, S, S) and (w >= 0).all()
    assert torch.equal(w, torch.stack([average_weights(grid) for grid in grids]))


@pytest.mark.parametrize('n', [16, 1024, 8192])
def test_weights_of_a_fine_grid(n):
    "Two neighbours count alike away from the ends, and no digits are lost."
    w = average_weights(karras_sigmas(n, 0.002, 80.0)[n // 2 : n // 2 + 3])
    assert w[1].tolist() == pytest.approx([0.5, 0.5], abs=4 / n) and w.sum(
        1
    ).tolist() == pytest.approx([1, 1], abs=1e-12)


# --- Progressive Distillation's segments ---


def levels_of(seed, S, B=6):  # some of the last levels are 0
    grid = torch.cat(
        [random_grid(seed, S, B // 2), random_grid(seed + 1, S, B - B // 2, zero=True)]
    )
    return grid / grid[:, :1] * torch.linspace(0.05, 8, B, dtype=torch.float64)[:, None]


@pytest.mark.parametrize('step', BRANCH_STEPS)
@pytest.mark.parametrize('S, K', [(1, 1), (2, 1), (2, 2), (3, 3), (4, 2), (4, 4), (6, 3), (8, 8)])
@pytest.mark.parametrize('seed', [0, 10])
def test_every_branch_lands_on_the_teacher(seed, S, K, step):
    levels = levels_of(seed, S)
    x = levels[:, :1] * sample_noise(range(6), (2,)).double() + BLOBS.sample(6).double()
    seg = progressive_segment(BLOBS, x, levels, K)
    path = torch.cat(
        [trajectory(BLOBS, x[b : b + 1], levels[b], 'euler').xs for b in range(6)], 1
    ).transpose(0, 1)
    goal = path[:, S // K :: S // K]
    landed = branch_states(branch_targets(seg, step), x, seg.sigma, seg.sigmas_k, step)
    assert torch.equal(seg.sigmas_k, levels[:, S // K :: S // K]) and torch.equal(
        seg.sigma, levels[:, 0]
    )
    assert (landed - goal).abs().max() <= 1e-12 and (seg.states - goal).abs().max() <= 1e-12
    inverted = branch_targets(
        Segment(x, seg.sigma, seg.sigmas_k, goal), step
    )  # the same from states alone
    assert (branch_states(inverted, x, seg.sigma, seg.sigmas_k, step) - goal).abs().max() <= 1e-12


def test_first_branch_is_the_teacher_and_calls_are_counted():
    levels, x = levels_of(0, 4), sample_noise(range(6), (2,)).double()
    counter = NFECounter(BLOBS)
    seg = progressive_segment(counter, x, levels, 4)
    assert counter.nfe == 4 and torch.equal(seg.x0s[:, 0], BLOBS(x, levels[:, 0]))


def test_labels_reach_the_teacher():
    seen = []

    def teacher(x, sigma, label=None):
        seen.append(label)
        return 0.5 * x

    label = torch.arange(6)
    progressive_segment(teacher, sample_noise(range(6), (2,)).double(), levels_of(0, 3), 1, label)
    assert len(seen) == 3 and all(one is label for one in seen)


def test_raw_is_the_teachers_own_estimate():
    levels, x = levels_of(0, 4), sample_noise(range(6), (2,)).double()
    raw, exact = (progressive_segment(BLOBS, x, levels, 4, raw=r) for r in (True, False))
    path = [trajectory(BLOBS, x[b : b + 1], levels[b], 'euler').xs for b in range(6)]
    for j in range(4):
        said = torch.cat([BLOBS(path[b][j], levels[b, j].item()) for b in range(6)])
        assert torch.allclose(raw.x0s[:, j], said, atol=1e-12)
    assert torch.equal(raw.x0s[:, 0], exact.x0s[:, 0]) and torch.allclose(
        raw.x0s[3:, -1], exact.x0s[3:, -1], atol=1e-12
    )  # the same at level 0
    assert (raw.x0s[:3, 1:] - exact.x0s[:3, 1:]).abs().max() > 1e-3


@pytest.mark.parametrize('i', [0, 2048, 4096, 6144, 8190])
def test_the_average_is_stable_in_float32(i):
    grid = karras_sigmas(8192, 0.002, 80.0)[i : i + 3]
    x = BLOBS.sample(64).double() + grid[0] * sample_noise(range(64), (2,)).double()
    path = trajectory(BLOBS, x, grid, 'euler')
    said = torch.stack([BLOBS(path[j], grid[j].item()) for j in range(2)], 1)
    w = average_weights(grid)
    want = torch.einsum('kj,bjd->bkd', w, said)
    assert (torch.einsum('kj,bjd->bkd', w.float(), said.float()) - want).abs().max() < 5e-7
    whole = progressive_segment(BLOBS, x.float(), grid.expand(64, 3), 2)  # a float32 teacher too
    assert whole.x0s.dtype == torch.float32 and (whole.x0s - want).abs().max() < 1e-6


@pytest.mark.parametrize('S', [2, 3, 4])
def test_perfect_students_keep_the_map(S):
    "Four rounds of a perfect linear student: every branch passes where the first teacher passes; the naive target drifts."
    first = karras_sigmas(S**4, 0.01, 80.0)
    first[-1] = 0.0
    ends = {}
    for raw in (False, True):
        grid, w, stride = first, 0.25 / (0.25 + first[:-1] ** 2), 1
        path = torch.cat([torch.ones(1), w + first[1:] / first[:-1] * (1 - w)]).cumprod(0)
        while len(w) >= S:

            def table(x, sigma, label=None):
                return w[torch.searchsorted(-grid, -sigma)][:, None] * x

            rows = grid.unfold(0, S + 1, S)
            seg = progressive_segment(table, torch.ones(len(rows), 1).double(), rows, S, raw=raw)
            begin = stride * S * torch.arange(len(rows))[:, None]
            if not raw:
                assert torch.allclose(
                    seg.states[..., 0],
                    path[begin + stride * torch.arange(1, S + 1)] / path[begin],
                    rtol=1e-12,
                    atol=0,
                )
            grid, w, stride = grid[::S], seg.x0s[:, -1, 0], stride * S
        ends[raw] = w.item()
    assert (
        ends[False] == pytest.approx(path[-1].item(), rel=1e-12) and ends[True] > 1.05 * ends[False]
    )


@pytest.mark.parametrize('S, K', [(4, 3), (2, 4), (3, 2), (4, 0)])
def test_branches_must_divide_the_steps(S, K):
    with pytest.raises(ValueError, match='K must'):
        progressive_segment(BLOBS, torch.zeros(6, 2).double(), levels_of(0, S), K)


def test_unknown_step_of_a_target():
    x, t, levels, states = problem(2)
    with pytest.raises(ValueError, match='own, end'):
        branch_targets(Segment(x, t, levels, states), 'both')


def test_carried_estimates_are_used():
    x, t, levels, states = problem(2)
    carried = torch.zeros_like(states)
    assert branch_targets(Segment(x, t, levels, states, carried)) is carried
    with pytest.raises(ValueError, match='x0s'):
        Segment(x, t, levels, states, carried[:, :1])
