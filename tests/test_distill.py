"What both hosts share: one segment, one door, and configurations that come back from a student."

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from bdense_nb.app.plans import estimate_run, growing_trials, prolong, time_iteration
from bdense_nb.core import NFECounter, sample_noise
from bdense_nb.diffusion.denoisers import EDMDenoiser, GuidedDenoiser, MixtureDenoiser
from bdense_nb.diffusion.nets import MLP, UNet
from bdense_nb.diffusion.samplers import SOLVERS, trajectory
from bdense_nb.diffusion.schedules import karras_sigmas
from bdense_nb.distillation.bank import TrajectoryPlan
from bdense_nb.distillation.distill import PRESETS, config_of, distill, preset
from bdense_nb.distillation.progressive import PDConfig
from bdense_nb.distillation.segments import progressive_segment, segments
from bdense_nb.distillation.sfd import SFDConfig, sfd_step, teacher_bank
from bdense_nb.distillation.students import Student, load_student
from bdense_nb.distillation.variable import sfd_variable
from bdense_nb.training.config import Hardware, TrainConfig
from bdense_nb.training.devices import local_batch
from torch import nn

BLOBS = MixtureDenoiser(
    torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), torch.tensor([0.2, 0.3]), torch.ones(2)
)
SFD, PD = (
    SFDConfig(steps=2, batch=4, lr=1e-3, shape=(2,)),
    PDConfig(8, 2, updates=2, batch=4, lr=1e-3),
)


@pytest.fixture(scope='module')
def teacher():
    torch.manual_seed(0)
    denoiser = EDMDenoiser(MLP(width=8, depth=1))
    torch.nn.init.normal_(denoiser.net.out.weight, std=0.2)
    return denoiser.requires_grad_(False).eval()


@pytest.mark.parametrize('substeps, K', [(1, 1), (2, 1), (2, 2), (4, 2), (6, 3), (8, 8)])
def test_both_hosts_make_the_same_segment(substeps, K):
    grid, x = karras_sigmas(2 * substeps, 0.01, 10.0), 10 * sample_noise(range(16), (2,)).double()
    cut = segments(trajectory(BLOBS, x, grid, 'euler'), substeps, K)[0]
    made = progressive_segment(BLOBS, x, grid[: substeps + 1].expand(16, -1), K)
    assert (cut.states - made.states).abs().max() < 1e-12
    assert torch.equal(cut.sigmas_k.expand(16, K), made.sigmas_k)


@pytest.mark.parametrize(
    'cfg',
    [
        SFD,
        PD,
        replace(SFD, nfe=1, K=2, branch_weights=(1.0, 2.0)),
        replace(PD, K=1, branch_weights_end='endpoint'),
    ],
    ids=lambda c: type(c).__name__,
)
def test_a_student_knows_its_configuration(teacher, cfg, tmp_path):
    student = distill(teacher, cfg, BLOBS.sample(32), show=False)
    student.save(tmp_path)
    assert config_of(load_student(tmp_path).about) == cfg
    assert student.nfe == (cfg.nfe if isinstance(cfg, SFDConfig) else cfg.end_steps)


def test_one_of_several_step_counts_knows_its_configuration(teacher):
    student = sfd_variable(teacher, SFD, (1, 2), show=False)
    for n in (1, 2):
        assert config_of(json.loads(json.dumps(student.at(n).about))) == replace(SFD, nfe=n)


@pytest.mark.parametrize('host', ['dmd', None])
def test_an_unknown_host_is_named(host):
    with pytest.raises(ValueError, match=f'unknown host {host!r}; choose one of: ') as e:
        config_of(dict(host=host, config={}))
    assert {'pd', 'sfd', 'sfd-v'} <= {*str(e.value).partition('of: ')[2].split(', ')}


def test_the_reference_starts_and_ends_where_the_student_does():
    for cfg, student_grid in ((SFD, SFD.grids[1]), (PD, PD.grid(2))):
        plan = cfg.reference((2,))
        assert (plan.sigmas[0], plan.sigmas[-1]) == (
            student_grid[0].item(),
            student_grid[-1].item(),
        )
        assert set(student_grid.tolist()) <= {
            min(plan.sigmas, key=lambda s, t=t: abs(s - t)) for t in student_grid.tolist()
        } or torch.allclose(
            torch.tensor(
                [min(plan.sigmas, key=lambda s, t=t: abs(s - t)) for t in student_grid.tolist()],
                dtype=torch.float64,
            ),
            student_grid,
            rtol=1e-12,
            atol=0,
        )


@pytest.mark.parametrize('solver', SOLVERS)
def test_the_cost_of_sfd_is_what_the_run_asks_for(teacher, solver):
    cfg = replace(SFD, solver=solver, steps=4, pool=8)
    counter = NFECounter(teacher)
    for i in range(2):
        cfg.plan.trajectories(counter, cfg.seeds(i))
    assert cfg.cost == dict(updates=8, teacher=counter.nfe * cfg.batch, student=2 * 4 * 4)


def test_the_cost_of_large_samples_is_counted_on_one(monkeypatch):
    walked, walk = [], TrajectoryPlan.trajectories
    monkeypatch.setattr(
        TrajectoryPlan,
        'trajectories',
        lambda plan, teacher, seeds: walked.append(len(seeds)) or walk(plan, teacher, seeds),
    )
    assert SFD.cost['student'] == 2 * 2 * 4 and walked == [1]


def test_the_cost_of_progressive_distillation():
    assert PD.cost == dict(updates=4, teacher=2 * 4 * 4, student=4 * 4)
    assert replace(PD, start_steps=32, substeps=4, K=4).cost == dict(
        updates=4, teacher=4 * 16, student=16
    )


class Counted(nn.Module):
    "Counts the samples that its denoiser is asked for."

    n_classes = 3

    def __init__(self):
        super().__init__()
        self.asked = 0

    def forward(self, x, sigma, cond=None):
        self.asked += len(x)
        return x / 2


@pytest.mark.parametrize(
    'scale, interval', [(3.0, None), (1.0, None), (3.0, (1.0, 10.0)), (3.0, (100.0, 200.0))]
)
@pytest.mark.parametrize(
    'cfg',
    [replace(SFD, steps=2, solver='euler'), PD, replace(PD, start_steps=16)],
    ids=['sfd', 'pd', 'pd, 2 rounds'],
)
def test_the_cost_of_a_guided_teacher_is_counted(cfg, scale, interval):
    "Two calls where guidance acts; the teachers of later rounds are students, which have it in their weights."
    plan = cfg.plan if isinstance(cfg, SFDConfig) else cfg.plan((2,))
    inner = Counted()
    plan.trajectories(GuidedDenoiser(inner, scale, interval=interval), range(16))
    steps, plain = len(plan.sigmas) - 1, cfg.cost
    first = plain['teacher'] / len(cfg.rounds or [0])
    want = plain['teacher'] - first + first * inner.asked / (16 * steps)
    assert cfg.cost_with(GuidedDenoiser(inner, scale, interval=interval)) == plain | dict(
        teacher=round(want)
    )
    assert plain == cfg.cost_with(inner) and (want > plain['teacher']) == (
        scale == 3.0 and interval != (100.0, 200.0)
    )


def test_bad_calls_are_refused_before_work(teacher):
    with pytest.raises(ValueError, match='noises real data'):
        distill(teacher, PD)
    with pytest.raises(ValueError, match='a bank belongs to SFD'):
        distill(teacher, PD, torch.zeros(4, 2), bank={})
    with pytest.raises(TypeError, match='one of: SFDConfig, SFDVConfig, PDConfig'):
        distill(teacher, None)
    with pytest.raises(ValueError, match="unknown preset 'x'"):
        preset('x')
    with pytest.raises(ValueError, match='another configuration.*teacher'):
        distill(
            teacher,
            SFD,
            bank=teacher_bank(EDMDenoiser(MLP(width=8, depth=1)), SFD, show=False),
            show=False,
        )


def test_presets_can_be_written_as_json():
    for name, cfg in PRESETS.items():
        assert type(cfg)(**json.loads(json.dumps(cfg.__dict__))) == cfg, name


@pytest.mark.parametrize('solver', ['euler', 'heun'])
@pytest.mark.parametrize('pool', [None, 8])
def test_the_cost_of_local_teacher_states(teacher, solver, pool):
    cfg, counter = (
        replace(SFD, teacher_states='local', solver=solver, nfe=2, K=2, pool=pool),
        NFECounter(teacher),
    )
    for i in range(cfg.steps):
        for _ in sfd_step(counter, cfg)(
            lambda x, sigma, label: x[:, None].expand(-1, 2, *x.shape[1:]), i
        ):
            pass
    assert (
        cfg.cost['teacher'] == counter.nfe * cfg.batch
    )  # a pool saves nothing: the walks start where the student stands


CONDITIONAL = EDMDenoiser(UNet(channels=3, widths=(32,), n_classes=3))


@pytest.mark.parametrize(
    'cfg, denoiser, shape',
    [
        (SFD, None, None),
        (replace(SFD, K=1, pool=8), None, None),
        (replace(SFD, teacher_states='local'), None, None),
        (PD, None, (2,)),
        (replace(PD, K=1, ema=0.9, batch=16), None, (2,)),
        (replace(SFD, shape=(3, 8, 8), nfe=1), CONDITIONAL, None),
        (replace(PD, target='state'), CONDITIONAL, (3, 8, 8)),
    ],
    ids=['sfd', 'pool', 'local', 'pd', 'ema', 'images', 'images-pd'],
)
def test_an_estimate_counts_what_the_run_does_and_leaves_no_trace(
    teacher, cfg, denoiser, shape, tmp_path, monkeypatch
):
    denoiser = denoiser or teacher
    monkeypatch.chdir(tmp_path)
    before, drawn = {k: v.clone() for k, v in denoiser.state_dict().items()}, torch.get_rng_state()
    got = estimate_run(denoiser, cfg, shape)
    assert {k: got[k] for k in ('updates', 'teacher', 'student')} == cfg.cost
    assert (
        got['nfe'] == (2 if isinstance(cfg, PDConfig) else cfg.nfe)
        and got['measured_batch'] == got['batch'] == cfg.batch
    )
    assert (
        got['seconds'] == got['seconds_teacher'] + got['seconds_student'] > 0
        and 0 < got['memory_gb'] < got['device_gb']
    )
    assert (got['seconds_teacher'] > 0) == (
        isinstance(cfg, SFDConfig) and cfg.teacher_states == 'global'
    )
    assert json.loads(json.dumps(got)) == got and got['parameters'] == sum(
        p.numel() for p in denoiser.parameters()
    )
    assert (
        all(torch.equal(v, before[k]) for k, v in denoiser.state_dict().items())
        and torch.equal(torch.get_rng_state(), drawn)
        and not list(tmp_path.iterdir())
    )


def test_an_estimate_takes_a_teacher_in_closed_form(teacher):
    assert estimate_run(BLOBS, SFD, student=teacher)['parameters'] == sum(
        p.numel() for p in teacher.parameters()
    )
    with pytest.raises(TypeError, match='pass a network as student='):
        estimate_run(BLOBS, SFD)


def test_an_estimate_refuses_what_the_run_refuses(teacher):
    with pytest.raises(ValueError, match='pass shape='):
        estimate_run(teacher, PD)
    with pytest.raises(ValueError, match='does not fit the teacher'):
        estimate_run(teacher, replace(SFD, shape=(3,)))
    with pytest.raises(TypeError, match="one of: SFDConfig, SFDVConfig, PDConfig, got 'demo'"):
        estimate_run(teacher, 'demo')


def test_more_samples_take_more_memory(monkeypatch):
    monkeypatch.setattr(
        'bdense_nb.app.plans.time_iteration', lambda *run: 10.0
    )  # so slow that 2 samples must do, and the rest is computed
    few, many = (estimate_run(CONDITIONAL, replace(SFD, shape=(3, 8, 8), batch=n)) for n in (4, 64))
    assert (few['measured_batch'], many['measured_batch']) == (2, 2) and many[
        'seconds_student'
    ] == 16 * few['seconds_student']
    assert (
        60 * 8 * 8 * 32 * 4
        < 1e9 * (many['memory_gb'] - few['memory_gb'])
        < 60 * 8 * 8 * 32 * 4 * 100
    )  # at least a feature map of the finest level for each sample more


def test_an_estimate_is_of_the_micro_batches_that_are_asked_for(monkeypatch):
    "Two samples take ten seconds; on a CPU what autograd keeps is computed."
    monkeypatch.setattr('bdense_nb.app.plans.time_iteration', lambda *run: 10.0)
    monkeypatch.setattr('bdense_nb.app.plans.peak_bytes', lambda device: 0)
    cfg = replace(SFD, shape=(3, 8, 8), batch=64)
    of = lambda **how: estimate_run(CONDITIONAL, cfg, hardware=Hardware(**how))
    plain, cut, lean = of(), of(accumulate=8), of(recompute=True)
    assert plain['seconds_student'] == cut['seconds_student'] == 32 * 10.0 * cfg.steps
    kept = [d['memory_gb'] for d in (plain, cut, lean)]
    assert kept[1] < kept[0] / 8 and kept[2] < kept[0] / 2


def test_trials_stop_where_memory_ends():
    def trial(n):
        if n > 32:
            raise torch.cuda.OutOfMemoryError('full')
        return (0.001,)

    assert (
        list(growing_trials(trial, 512)) == [2, 8, 32]
        and list(growing_trials(trial, 16)) == [2, 16]
        and list(growing_trials(trial, 1)) == [1]
    )
    assert (
        prolong({4: 2.0}, 16) == 8.0 and prolong({4: 2.0, 8: 1.0}, 16) == 1.0
    )  # a line is never prolonged downwards


def test_a_trial_that_did_not_fit_leaves_no_memory_behind(monkeypatch):
    "Emptied once the error is gone, which holds what the trial allocated."
    held, seen = set(), []

    class Large:
        def __init__(self):
            held.add(id(self))

        def __del__(self):
            held.discard(id(self))

    def trial(n):
        own = Large()
        if n > 2:
            raise torch.cuda.OutOfMemoryError('full')
        return (0.001, own is None)

    monkeypatch.setattr('torch.cuda.empty_cache', lambda: seen.append(len(held)))
    assert list(growing_trials(trial, 128)) == [2] and seen == [0, 0]


def test_a_run_that_fits_nowhere_is_said_to(teacher, monkeypatch):
    def full(*args, **kwargs):
        raise torch.cuda.OutOfMemoryError('full')

    monkeypatch.setattr('bdense_nb.app.plans.time_iteration', full)
    got = estimate_run(teacher, SFD)
    assert (
        got['seconds'] is got['memory_gb'] is got['measured_batch'] is None and got['updates'] == 4
    )


@pytest.mark.parametrize('accumulate', [1, 4])
def test_the_timed_iteration_is_a_warm_one_with_all_its_parts(accumulate, monkeypatch):
    "By a clock that the step moves on: the first iteration is slow, the third the fastest."
    now, calls = [0.0], []
    monkeypatch.setattr('time.perf_counter', lambda: now[0])

    def step(model, i):
        calls.append(i)
        now[0] += {0: 30.0, 1: 2.0}.get(i, 1.0)
        yield model(local_batch(torch.ones(4, 1))).mean()

    cfg = TrainConfig(10**6, warmup=5, checkpoint_every=1)
    hardware = Hardware(accumulate=accumulate)
    assert time_iteration(torch.nn.Linear(1, 1), step, cfg, hardware) == accumulate
    assert calls == [i for i in range(4) for _ in range(accumulate)]


def own_host():
    "The host that the notebook on a new host writes, and how many lines it takes."
    path = Path(__file__).resolve().parent.parent / 'nbs' / 'distillation' / '11_a_new_host.ipynb'
    sources = [
        ''.join(c['source'])
        for c in json.loads(path.read_text(encoding='utf-8'))['cells']
        if c['cell_type'] == 'code'
    ]
    source = next(s for s in sources if 'class Pairs(Host)' in s)
    names = {}
    exec(sources[0], names)
    exec(source, names)
    return names['Pairs'], len(source.splitlines())


@pytest.mark.parametrize('K', (1, 4))
def test_a_host_of_ones_own_is_a_host(teacher, tmp_path, K):
    Pairs, lines = own_host()
    assert lines <= 60
    cfg = Pairs(nfe=2, K=K, pool=16, batch=8, steps=4)
    student = distill(teacher, cfg, folder=tmp_path / 'run', show=False)
    assert type(student) is Student and student.nfe == 2 and Pairs(**student.about['config']) == cfg
    again = distill(teacher, cfg, folder=tmp_path / 'run', show=False)  # found finished
    assert torch.equal(again.sample(5), student.sample(5))
    assert torch.equal(
        distill(teacher, cfg, bank=cfg.bank(teacher), show=False).sample(5), student.sample(5)
    )
    student.save(tmp_path / 'student')
    assert torch.equal(load_student(tmp_path / 'student', 'cpu').sample(5), student.sample(5))
    guess = estimate_run(teacher, cfg)
    assert (
        {k: guess[k] for k in ('updates', 'teacher', 'student')} == cfg.cost
        and guess['nfe'] == 2
        and guess['seconds_teacher'] > 0
        and guess['bank_gb'] > 0
    )
    with pytest.raises(ValueError, match='another run|differ|other'):
        distill(
            teacher,
            Pairs(nfe=2, K=K, pool=16, batch=8, steps=4, seed=1),
            folder=tmp_path / 'run',
            show=False,
        )


def test_a_host_of_ones_own_needs_no_default_for_every_field(teacher, tmp_path):
    Pairs, _ = own_host()

    @dataclass(frozen=True)
    class Told(Pairs):
        steps: int = field(kw_only=True)

    cfg = Told(nfe=2, K=1, pool=16, batch=8, steps=2)
    for _ in range(2):
        distill(teacher, cfg, folder=tmp_path, show=False)
