"Alignment: students whose errors are known, branches and steps, every kind of input, and what is refused."

import json
import math
from dataclasses import replace

import pytest
import torch
from bdense_nb.lab import alignment as al
from bdense_nb.core import NFECounter, Trajectory
from bdense_nb.diffusion.denoisers import EDMDenoiser, GaussianDenoiser, MixtureDenoiser
from bdense_nb.diffusion.nets import MLP
from bdense_nb.diffusion.samplers import SOLVERS, sample
from bdense_nb.distillation.bank import TrajectoryPlan
from bdense_nb.distillation.branches import branch, fold
from bdense_nb.distillation.progressive import PDConfig, progressive
from bdense_nb.distillation.segments import BRANCH_STEPS, branch_targets, segments, step_ratios
from bdense_nb.distillation.sfd import SFDConfig, local_segment, sfd
from bdense_nb.distillation.students import Student
from bdense_nb.evaluation.metrics import paired_error

GAUSS = GaussianDenoiser(0.3, 0.5)
BLOBS = MixtureDenoiser(
    torch.tensor([[-1.0, -0.6], [1.0, -0.6], [0.0, 1.0]]), torch.full((3,), 0.2), torch.ones(3)
)
SEEDS = range(40)


class Perfect:
    "Every branch lands where the teacher, restarted there, would; in one step `off` too far in each coordinate."

    def __init__(self, teacher, course, wrong=None, off=0.3):
        self.teacher, self.course, self.K, self.wrong, self.off = (
            teacher,
            course,
            course.K,
            wrong,
            off,
        )

    def __call__(self, x, sigma, label=None):
        n = int((self.course.grids[1] - sigma).abs().argmin())
        seg = local_segment(self.teacher, self.course, x, n, label)
        x0s = branch_targets(seg, self.course.branch_step)
        if n != self.wrong:
            return x0s
        ratio = step_ratios(x, sigma, seg.sigmas_k)
        return x0s + self.off / (1 - (ratio if self.course.branch_step == 'own' else ratio[:, -1:]))


def config(**changes):
    return SFDConfig(**dict(dict(nfe=3, K=4, afs=False, solver='euler', shape=(2,)), **changes))


def network(n_classes=0, width=16, seed=0):
    torch.manual_seed(seed)
    net = EDMDenoiser(MLP(width=width, depth=1, n_classes=n_classes)).requires_grad_(False).eval()
    torch.nn.init.normal_(net.net.out.weight, std=0.2)
    return net


# --- students whose errors are known ---


@pytest.mark.parametrize('solver', SOLVERS)
@pytest.mark.parametrize('step', BRANCH_STEPS)
def test_perfect_student(solver, step):
    cfg = config(solver=solver, branch_step=step)
    a = al.alignment_errors(Perfect(BLOBS, cfg), cfg, BLOBS, SEEDS)
    assert a.own_local.max() < 1e-4 and a.teacher_local.max() < 1e-4
    memory = solver not in ('euler', 'heun', 'dpm2', 'dpmpp1', 'ipndm1')
    assert (a.own_global.max() > 1e-4) == (a.teacher_global.max() > 1e-4) == memory
    assert a.gap.shape == (3, 4)


@pytest.mark.parametrize('wrong', [0, 1, 2])
@pytest.mark.parametrize('step', BRANCH_STEPS)
def test_wrong_in_one_step(wrong, step):
    cfg = config(branch_step=step)
    a = al.alignment_errors(Perfect(GAUSS, cfg, wrong), cfg, GAUSS, SEEDS)
    fine, expected = cfg.grids[0], torch.zeros(3, 4, dtype=torch.float64)
    expected[wrong] = 0.3
    for name in al.ERRORS[1:]:
        torch.testing.assert_close(getattr(a, name), expected, rtol=0, atol=1e-4)
    factor = 1 + fine.diff() * fine[:-1] / (0.25 + fine[:-1] ** 2)
    expected[wrong + 1 :] = 0.3 * factor[4 * wrong + 4 :].cumprod(0).reshape(-1, 4)
    torch.testing.assert_close(a.own_global, expected, rtol=0, atol=1e-4)
    assert (a.gap[: wrong + 1].abs() < 1e-4).all() and (
        wrong == 2 or (a.gap[wrong + 1 :] > 0.01).all()
    )


def test_a_student_that_undoes_its_first_error_has_a_negative_gap():
    cfg = config()

    class Repairs(Perfect):  # wrong by .3 in step 0; in step 1 it subtracts what has become of it
        def __call__(self, x, sigma, label=None):
            x0s = super().__call__(x, sigma, label)
            if int((self.course.grids[1] - sigma).abs().argmin()) != 1:
                return x0s
            return x0s - 0.3 * inherited[:, None] / (
                1 - step_ratios(x, sigma, self.course.grids[0][5:9])
            )

    fine = cfg.grids[0]
    inherited = (1 + fine.diff() * fine[:-1] / (0.25 + fine[:-1] ** 2))[4:8].cumprod(0).float()
    a = al.alignment_errors(Repairs(GAUSS, cfg, 0), cfg, GAUSS, SEEDS)
    assert a.own_global[1].max() < 1e-4 and a.own_global[2].max() < 1e-4
    torch.testing.assert_close(a.gap[1].float(), -0.3 * inherited, rtol=0, atol=1e-4)


@pytest.mark.parametrize('shape', [(2,), (1, 4, 4), (3, 2, 2)])
@pytest.mark.parametrize('K, substeps', [(1, 1), (1, 4), (2, 4), (4, 8)])
def test_shapes(shape, K, substeps):
    cfg = config(nfe=2, K=K, substeps=substeps, shape=shape, afs=True)
    a = al.alignment_errors(Perfect(GAUSS, cfg), cfg, GAUSS, range(5))
    assert all(
        getattr(a, name).shape == (3, K) and getattr(a, name).dtype == torch.float64
        for name in al.ERRORS
    )
    assert torch.equal(a.sigmas, cfg.grids[1]) and torch.equal(a.levels[:, -1], cfg.grids[1][1:])
    rows = a.rows()
    assert (
        json.loads(json.dumps(rows)) == rows
        and len(rows) == 3 * K
        and [(r['step'], r['branch']) for r in rows][-1] == (2, K)
    )


# --- real networks ---


@pytest.mark.parametrize('n_classes', [0, 3])
@pytest.mark.parametrize('afs', [True, False])
def test_rollout_is_what_sampling_does(n_classes, afs):
    teacher, cfg = network(n_classes), SFDConfig(nfe=2, afs=afs, shape=(2,))
    model = branch(teacher, 4).eval()
    torch.nn.init.normal_(model.denoiser.net.out.bias)
    traj, label = cfg.plan.walk(teacher, SEEDS)
    path, student = (
        al.rollout(model, cfg, traj[0], label),
        Student(fold(model), cfg.grids[1], afs, (2,)),
    )
    torch.testing.assert_close(path[-1].states[:, -1], student.sample(40), rtol=1e-4, atol=1e-4)
    for a, b in zip(path, path[1:]):
        assert torch.equal(a.states[:, -1], b.x_t)
    folded, branched = (al.alignment_errors(m, cfg, teacher, SEEDS) for m in (student, model))
    for name in al.ERRORS:
        torch.testing.assert_close(
            getattr(folded, name)[:, 0], getattr(branched, name)[:, -1], rtol=1e-4, atol=1e-4
        )
    assert float(folded.own_global[-1, 0]) == pytest.approx(
        paired_error(student.sample(40), traj[-1]), rel=1e-4
    )


def test_untrained_branches():
    "Every branch is the teacher: the first one takes the restarted Euler teacher's own step."
    teacher, cfg = network(), SFDConfig(solver='euler', shape=(2,))
    a = al.alignment_errors(branch(teacher, 4).eval(), cfg, teacher, SEEDS)
    assert (
        (a.own_local[1:, 0] < 1e-4).all()
        and (a.own_local[1:, 1:] > 1e-4).all()
        and (a.own_local[0] > 1e-4).all()
    )


@pytest.mark.parametrize('batch', [7, 100])
def test_batch_changes_nothing(batch):
    teacher, cfg = network(3), SFDConfig(shape=(2,))
    whole, parts = (
        al.alignment_errors(branch(teacher, 4).eval(), cfg, teacher, SEEDS, b) for b in (40, batch)
    )
    for name in al.ERRORS:
        torch.testing.assert_close(getattr(whole, name), getattr(parts, name), rtol=1e-4, atol=1e-5)


def test_cost():
    teacher, cfg = NFECounter(GAUSS), config(nfe=2, afs=True)
    al.alignment_errors(GAUSS, cfg, teacher, SEEDS)
    assert teacher.nfe == 3 * 12  # one walk, and two of restarts


# --- finished students ---


@pytest.mark.parametrize('changes', [{}, dict(nfe=1), dict(afs=False, substeps=2, K=2)])
def test_finished_sfd_student(changes):
    cfg = SFDConfig(**dict(dict(steps=2, batch=4, shape=(2,)), **changes))
    teacher = network()
    student = sfd(teacher, cfg, show=False)
    course = al.finished_course(student)
    a = al.alignment_errors(student, course, teacher, SEEDS)
    assert course.substeps == 2 * cfg.substeps and a.own_global.shape == (cfg.n_steps, 1)
    x = cfg.sigma_max * course.plan.walk(teacher, SEEDS)[0][0] / 80
    end = sample(teacher, x, course.plan.sigmas, cfg.solver)
    assert float(a.own_global[-1, 0]) == pytest.approx(
        paired_error(student.sample(40), end), rel=1e-4
    )


def test_finished_pd_student_and_noised_inputs():
    teacher, data = network(3), BLOBS.sample(200)
    labels = torch.arange(200) % 3
    student = progressive(
        teacher, data, PDConfig(start_steps=8, end_steps=2, updates=2, batch=4), labels, show=False
    )
    course = al.finished_course(student)
    assert (course.substeps, course.K, course.afs, course.solver) == (4, 1, False, 'euler')
    a = al.alignment_errors(student, course, teacher, SEEDS)
    torch.testing.assert_close(a.teacher_global, a.teacher_local, rtol=1e-3, atol=1e-4)
    e = al.noised_errors(student, course, teacher, data, labels)
    assert e.shape == (2, 1) and (e > 0).all() and torch.isfinite(e).all()
    assert torch.equal(
        e, al.noised_errors(student, course, teacher, data, labels)
    ) and not torch.equal(e, al.noised_errors(student, course, teacher, data, labels, seed=1))


def test_noised_inputs_where_known():
    cfg = config()
    torch.testing.assert_close(
        al.noised_errors(Perfect(GAUSS, cfg, 1), cfg, GAUSS, BLOBS.sample(50), n=20),
        torch.tensor([[0.0] * 4, [0.3] * 4, [0.0] * 4], dtype=torch.float64),
        rtol=0,
        atol=1e-4,
    )


def test_course_says_the_same_as_a_configuration():
    cfg = config(nfe=2, afs=True, solver='dpmpp3m')
    course = al.Course(cfg.plan, cfg.substeps, cfg.K, cfg.afs, cfg.branch_step)
    for mine, theirs in zip(course.grids, cfg.grids):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=0)
    a, b = (al.alignment_errors(Perfect(BLOBS, c), c, BLOBS, range(8)) for c in (course, cfg))
    for name in al.ERRORS:
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-5, atol=1e-6)


# --- bad input ---


@pytest.mark.parametrize(
    'substeps, K, words',
    [(5, 1, 'do not divide'), (4, 3, 'K must divide'), (4, 0, 'K must be'), (0, 1, 'substeps')],
)
def test_course_refuses(substeps, K, words):
    with pytest.raises(ValueError, match=words):
        al.Course(config().plan, substeps, K)


def test_course_refuses_an_unknown_branch_step():
    with pytest.raises(ValueError, match='both.*own, end'):
        al.Course(config().plan, 4, branch_step='both')


@pytest.mark.parametrize(
    'function', [al.alignment_errors, lambda s, c, t: al.noised_errors(s, c, t, BLOBS.sample(9))]
)
def test_students_that_do_not_fit(function):
    teacher, cfg = network(), SFDConfig(shape=(2,))
    student = Student(teacher, cfg.grids[1], True, (2,))
    with pytest.raises(ValueError, match='K=2 branches.*K=4'):
        function(branch(teacher, 2).eval(), cfg, teacher)
    with pytest.raises(ValueError, match='training mode'):
        function(branch(teacher, 4).train(), cfg, teacher)
    with pytest.raises(ValueError, match='other levels'):
        function(student, replace(cfg, nfe=3), teacher)
    with pytest.raises(ValueError, match='other levels'):
        function(student, replace(cfg, sigma_max=40.0), teacher)
    with pytest.raises(ValueError, match='afs=True.*afs=False'):
        function(student, replace(cfg, nfe=3, afs=False), teacher)
    with pytest.raises(TypeError, match='NoneType'):
        function(None, cfg, teacher)


def test_numbers_are_checked():
    cfg = config()
    with pytest.raises(ValueError, match='number of seeds'):
        al.alignment_errors(GAUSS, cfg, GAUSS, range(0))
    for bad in (0, 1.5):
        with pytest.raises(ValueError, match='batch'):
            al.alignment_errors(GAUSS, cfg, GAUSS, SEEDS, bad)
    with pytest.raises(ValueError, match='n must be'):
        al.noised_errors(GAUSS, cfg, GAUSS, BLOBS.sample(9), n=0)
    with pytest.raises(ValueError, match='host'):
        al.finished_course(Student(network(), cfg.grids[1], False, (2,)))


def test_nan_is_not_averaged_away():
    cfg = config()
    with pytest.raises(ValueError, match='NaN'):
        al.alignment_errors(lambda x, sigma, label=None: x * math.nan, cfg, GAUSS, SEEDS)


# --- straightness ---

TIME = torch.linspace(1, 0, 65, dtype=torch.float64)


@pytest.mark.parametrize('shape', [(1,), (2,), (1, 3, 3)])
@pytest.mark.parametrize('power', [1, 2, 3])
def test_straight_lines(shape, power):
    "A line has no stretch however it is walked; the deviation tells an uneven walk."
    start = torch.randn(6, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    s = al.straightness(Trajectory(TIME, TIME.reshape(-1, *[1] * start.ndim) ** power * start))
    torch.testing.assert_close(s.stretch, torch.ones(6, dtype=torch.float64))
    size = float(start.square().mean().sqrt())
    torch.testing.assert_close(
        s.deviation, size * (TIME - TIME**power).abs(), rtol=1e-6, atol=1e-12
    )


def test_gaussian_flow_is_straight_in_space():
    traj, _ = TrajectoryPlan(tuple(config(substeps=16).grids[0].tolist()), 'heun', (2,)).walk(
        GAUSS, SEEDS
    )
    s = al.straightness(traj)
    assert (
        (s.stretch - 1).abs().max() < 1e-4
        and s.deviation[0] == s.deviation[-1] == 0
        and s.deviation[1:-1].min() > 0
    )


def test_deviation_is_what_a_perfect_endpoint_leaves():
    cfg = config(nfe=1, substeps=8, K=8, sigma_max=2.0, solver='heun')
    traj, _ = cfg.plan.walk(BLOBS, SEEDS)
    end, inside = segments(traj, 8, 1)[0], segments(traj, 8, 8)[0]
    missed = branch_targets(end) + step_ratios(end.x_t, end.sigma, inside.sigmas_k) * (
        end.x_t[:, None] - branch_targets(end)
    )
    errors = torch.tensor(
        [paired_error(missed[:, k], inside.states[:, k]) for k in range(8)], dtype=torch.float64
    )
    torch.testing.assert_close(errors, al.straightness(traj).deviation[1:], rtol=1e-4, atol=1e-6)
