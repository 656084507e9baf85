"compare and bdense_compare: the same seeds for all arms, runs that go on, measures, refusals; the paper's settings."

import dataclasses
import json
import math
import sys

import pytest
import torch

from bdense_nb import load_student
from bdense_nb.app import comparing
from bdense_nb.app.comparing import measuring_seconds, read_arms, walking_seconds
from bdense_nb.app.shell import bdense_compare, from_shell
from bdense_nb.core import read_json
from bdense_nb.diffusion.denoisers import EDMDenoiser, GuidedDenoiser, MixtureDenoiser
from bdense_nb.diffusion.stored import save_denoiser
from bdense_nb.diffusion.nets import MLP, UNet
from bdense_nb.diffusion.samplers import Sampler
from bdense_nb.distillation.distill import distill
from bdense_nb.distillation.progressive import PDConfig, progressive
from bdense_nb.distillation.sfd import SFDConfig
from bdense_nb.distillation.variable import SFDVConfig
from bdense_nb.evaluation.metrics import sliced_wasserstein
from bdense_nb.lab import compare as comparison
from bdense_nb.lab.compare import compare, make_arms, same_ends, side_by_side, teacher_world
from bdense_nb.evaluation.metrics import paired_error
from bdense_nb.lab import experiments
from bdense_nb.lab.experiments import Banks
from bdense_nb.training.config import Hardware

SHORT = SFDConfig(K=2, substeps=2, steps=4, batch=16, shape=(2,))


@pytest.fixture(scope='module')
def teacher():
    torch.manual_seed(0)
    return EDMDenoiser(MLP(width=16, depth=1), 0.5)


@pytest.fixture(scope='module')
def points():
    return torch.randn(200, 2, generator=torch.Generator().manual_seed(1))


def quiet(*args, **kwargs):
    return compare(*args, n=50, show=False, say=lambda s: None, **dict(trust_teacher=True) | kwargs)


def figures(found):
    return [{k: v for k, v in r.items() if k != 'cpu_seconds'} for r in found.result['rows']]


def test_a_comparison_is_paired_and_counts_calls(teacher, points, tmp_path):
    found = quiet(
        teacher, SHORT, seeds=3, folder=tmp_path, data=points, calls=(2, 3), budgets=(2, 4)
    )
    rows = figures(found)
    assert (
        len(rows) == 2 * 2 * 2 * 3
        and {r['nfe'] for r in rows} == {2, 3}
        and {r['iterations'] for r in rows} == {2, 4}
    )
    host = {
        (r['nfe'], r['iterations'], r['seed']): r['paired_error']
        for r in rows
        if r['arm'] == 'host'
    }
    ours = {
        (r['nfe'], r['iterations'], r['seed']): r['paired_error']
        for r in rows
        if r['arm'] == 'B-DENSE'
    }
    for d in found.differences():
        pairs = [(ours[d.nfe, d.iterations, s], host[d.nfe, d.iterations, s]) for s in range(3)]
        assert d.interval.mean == pytest.approx(sum(a - b for a, b in pairs) / 3)
        assert d.interval.low < d.interval.mean < d.interval.high and all(a != b for a, b in pairs)
    assert [r['nfe'] for r in found.speed][1:] == [2, 3] and found.speed[0]['nfe'] > 3
    assert all(
        w in found.table
        for w in (
            'sliced Wasserstein',
            'paired error',
            'host: K=1; ',
            f'B-DENSE: K={SHORT.K}, branch_weights="linear"',
        )
    )
    found.figure(tmp_path / 'x.png')
    assert (tmp_path / 'x.png').stat().st_size > 5000


def test_a_killed_comparison_goes_on_to_the_same_result(teacher, points, tmp_path):
    whole = quiet(teacher, SHORT, seeds=3, folder=tmp_path / 'whole', data=points)

    class Stop(Exception):
        pass

    class Bomb:
        "Stops a training in its middle."

        def after_iteration(self, state):
            if state.done >= 2:
                raise Stop

    from bdense_nb.lab.experiments import Experiment, run_experiment

    world = teacher_world(teacher, (2,), 50, points)
    e = Experiment("Do branches help this teacher's students?", world, make_arms(SHORT), 'host', 3)
    part = tmp_path / 'part'
    with pytest.raises(Stop):
        run_experiment(
            e, part / 'comparison.json', say=lambda s: None, folder=part, hooks=(Bomb(),)
        )
    assert not (part / 'comparison.json').exists() and list(part.glob('runs/*/run.json'))
    assert figures(quiet(teacher, SHORT, seeds=3, folder=part, data=points)) == figures(whole)


@pytest.mark.parametrize(
    'cfg',
    [
        SFDVConfig(nfe=(2, 3), K=2, substeps=2, steps=4, batch=16, shape=(2,)),
        PDConfig(start_steps=4, updates=2, batch=8),
    ],
    ids=lambda c: c.host,
)
def test_every_host(cfg, teacher, points, tmp_path):
    found = quiet(teacher, cfg, seeds=3, folder=tmp_path, data=points)
    assert {r['nfe'] for r in found.result['rows']} == ({2, 3} if cfg.host == 'sfd-v' else {1, 2})
    assert {d.nfe for d in found.differences()} == {r['nfe'] for r in found.result['rows']}


def test_another_budget_goes_on_in_the_same_folder(teacher, points, tmp_path):
    short = quiet(teacher, SHORT, seeds=3, folder=tmp_path, data=points, budgets=(2,))
    longer = quiet(teacher, SHORT, seeds=3, folder=tmp_path, data=points, budgets=(2, 6))
    fresh = quiet(teacher, SHORT, seeds=3, folder=tmp_path / 'fresh', data=points, budgets=(2, 6))
    assert figures(longer)[:6] == figures(short)

    def key(row):
        return row['arm'], row['iterations'], row['seed']

    assert sorted(figures(longer), key=key) == sorted(figures(fresh), key=key)


def test_a_teacher_without_clean_estimates_is_refused_where_data_are_known(
    teacher, points, tmp_path
):
    with pytest.raises(ValueError, match='does not give clean estimates'):
        quiet(
            lambda x, sigma, cond=None: x + 3,
            SHORT,
            seeds=3,
            folder=tmp_path,
            data=points,
            trust_teacher=False,
        )


def test_a_teacher_is_tried_where_the_arm_that_starts_highest_does(points, tmp_path):
    def knows_little(x, sigma, cond=None):
        low = torch.as_tensor(sigma).reshape(-1, 1) <= 2
        return x / (1 + torch.as_tensor(sigma).reshape(-1, 1) ** 2) + 30 * (50 * x).sin() * ~low

    low, high = dict(sigma_max=2.0), dict(sigma_max=80.0)
    cfg = dataclasses.replace(SHORT, **low)
    how = dict(seeds=3, data=points, trust_teacher=False)
    with pytest.raises(ValueError, match='does not give clean estimates'):
        quiet(knows_little, cfg, dict(a=low, b=high), folder=tmp_path / 'high', **how)
    with pytest.raises(TypeError, match='must start from'):  # it passes as a teacher
        quiet(knows_little, cfg, dict(a=low, b=dict(K=1)), folder=tmp_path / 'low', **how)


def test_what_is_no_configuration_is_named(teacher, points, tmp_path):
    with pytest.raises(TypeError, match="cfg must be one of: SFDConfig.*, got 'demo'"):
        quiet(teacher, 'demo', folder=tmp_path)
    with pytest.raises(ValueError, match='data must be a float32 tensor .*, got PDConfig'):
        progressive(teacher, PDConfig())
    with pytest.raises(TypeError, match=r'data must be a tensor \[N, \*D\], got str'):
        distill(teacher, SHORT, 'points')
    with pytest.raises(TypeError, match='bank must come from teacher_bank, got str'):
        distill(teacher, PDConfig(), points, bank='a bank')


def test_another_teacher_or_other_data_are_refused(teacher, points, tmp_path):
    quiet(teacher, SHORT, seeds=3, folder=tmp_path, data=points, limit=1)
    torch.manual_seed(5)
    other = EDMDenoiser(MLP(width=16, depth=1), 0.5)
    with pytest.raises(ValueError, match='teacher'):
        quiet(other, SHORT, seeds=3, folder=tmp_path, data=points)
    with pytest.raises(ValueError, match='cannot go on'):
        quiet(teacher, SHORT, seeds=3, folder=tmp_path, data=points + 1)
    changed = dataclasses.replace(SHORT, lr=1e-2)
    with pytest.raises(ValueError, match='lr'):
        quiet(teacher, changed, seeds=3, folder=tmp_path, data=points)
    how = Hardware(precision='bf16')
    with pytest.raises(ValueError, match="precision: 'no' there, 'bf16' now"):
        quiet(teacher, SHORT, seeds=3, folder=tmp_path, data=points, hardware=how)
    assert read_json(tmp_path / 'comparison.json')['precision'] == 'no'


def test_labels_tell_comparisons_apart(teacher, points):
    classes = torch.arange(200) % 2
    given = (None, classes, 1 - classes)
    assert len({teacher_world(teacher, (2,), 50, points, c).about for c in given}) == 3


def test_what_is_taught_is_measured_again_with_more_samples(teacher, tmp_path):
    "Where the runs were moved away, and the file of the times was not."
    how = dict(seeds=3, limit=1, show=False, say=lambda line: None)
    few = compare(teacher, SHORT, folder=tmp_path, n=8, **how)
    (tmp_path / 'comparison.json').unlink()
    more = compare(teacher, SHORT, folder=tmp_path, n=16, **how)
    assert few.taught != more.taught and few.speed != more.speed
    again = compare(teacher, SHORT, folder=tmp_path, n=16, **how)
    assert (again.taught, again.speed) == (more.taught, more.speed)


def test_rows_of_other_settings_are_never_mixed(teacher, points, tmp_path):
    "Not when the arm or the budget that would show it is left out for one start."

    def go(seeds=3, lr=SHORT.lr, **how):
        return quiet(
            teacher,
            dataclasses.replace(SHORT, lr=lr),
            seeds=seeds,
            folder=tmp_path,
            data=points,
            **how,
        )

    go(budgets=(2, 4))
    go(4, budgets=(2,))
    with pytest.raises(ValueError, match='lr: 5e-05 there, 0.01 now'):
        go(4, 1e-2, budgets=(4,))
    with pytest.raises(ValueError, match='lr: 5e-05 there, 0.01 now'):
        go(4, 1e-2, budgets=(6,))  # an arm of one name
    go(4, arms={'host': dict(K=1), 'mine': dict(lr=1e-3)}, budgets=(2,))
    found = go(4, budgets=(2, 4))
    assert all(name in found.table for name in ('mine: ', 'B-DENSE: '))
    path = tmp_path / 'comparison.json'
    stored = read_json(path)
    path.write_text(json.dumps(stored | dict(configs=stored['configs'][1:])))
    with pytest.raises(
        ValueError, match='with which settings host, 2 calls, 2 iterations was trained'
    ):
        go(4, arms={'mine': dict(lr=1e-3), 'B-DENSE': {}}, budgets=(2,))


def test_other_measures_are_refused(teacher, tmp_path):
    def go(**how):
        return quiet(teacher, SHORT, seeds=3, folder=tmp_path, **how)

    go(quality={'q': lambda x: float(x.abs().mean())}, limit=1)
    with pytest.raises(ValueError, match='q of noise is .* it is another measure'):
        go(quality={'q': lambda x: 100 * float(x.abs().mean())})
    with pytest.raises(ValueError, match='measures'):
        go()
    with pytest.raises(ValueError, match='measures'):
        go(quality={'q': lambda x: float(x.abs().mean()), 'r': lambda x: 0.0})
    assert {'q'} < set(go(quality={'q': lambda x: x.abs().mean().item()}).result['rows'][-1])
    silent = {'q': lambda x: 1.0 if len(x) == 50 else math.nan}  # of other samples than it gets
    assert compare(teacher, SHORT, folder=tmp_path / 'x', n=50, limit=1, show=False, quality=silent)


def test_all_arms_are_measured_against_the_same_ends(teacher, tmp_path):
    "A teacher of other steps ends elsewhere; the first arm's, in the finest steps, judges all."
    arms = {
        'host': dict(K=1),
        'euler': dict(solver='euler', substeps=4, K=2),
        'noisy': dict(sigma_min=0.3),
    }
    found = quiet(teacher, SHORT, arms, seeds=3, folder=tmp_path)
    judge = dataclasses.replace(SHORT, K=1, substeps=4).reference((2,))
    ends = lambda seed: judge.sampler(teacher.eval()).sample(50, 50 * seed)
    for row in found.result['rows']:  # each seed on noise of its own
        student = load_student(
            tmp_path
            / 'runs'
            / f'{row["arm"]}_2_calls_4_iterations_seed_{row["seed"]}'
            / 'student-2-calls',
            device='cpu',
        )
        assert row['paired_error'] == pytest.approx(
            paired_error(student.sample(50, 50 * row['seed']), ends(row['seed'])), rel=1e-5
        )
    assert found.speed[0]['nfe'] == judge.sampler(teacher).nfe
    assert f'| teacher, {SHORT.solver} |' in found.table
    taught = SHORT.plan.sampler(teacher).sample(50)
    assert (
        found.taught == {2: pytest.approx(paired_error(taught, ends(0)), rel=1e-5)}
        and f'{found.taught[2]:.4f} away at 2 calls' in found.table
    )
    assert quiet(teacher, SHORT, arms, seeds=3, folder=tmp_path).taught == found.taught
    turned = dict(reversed(arms.items()))  # the worst solver first: the judge stays the best
    assert {a.judged(2).solver for a in same_ends(make_arms(SHORT, turned), (2,))} == {SHORT.solver}
    with pytest.raises(ValueError, match=r"judge: .*'substeps': 4.* there, not now"):
        quiet(teacher, SHORT, {'host': dict(K=1), 'B-DENSE': {}}, seeds=3, folder=tmp_path)


@pytest.mark.parametrize(
    'how, says',
    [
        (dict(arms={}), 'two arms or more, got none'),
        (dict(arms={'host': {}}), 'two arms or more, got host'),
        (dict(budgets=5), 'several numbers each'),
        (dict(limit=0), 'limit must be'),
        (dict(arms={'host': dict(k=1), 'B': {}}), "field of the arm 'host'"),
        (dict(arms={'host': {}, 'B': dict(seed=1)}), "field of the arm 'B'"),
        (dict(seeds=2), 'seeds must be at least 3'),
        (dict(data=torch.zeros(4, 3)), 'shape'),
        (dict(calls=(0,)), 'nfe'),
        (dict(hardware=Hardware(accumulate=7)), 'cannot be cut into 7'),
    ],
)
def test_refusals(how, says, teacher, tmp_path):
    with pytest.raises(ValueError, match=says):
        quiet(teacher, SHORT, **dict(seeds=3) | how, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_images_need_features_for_the_second_measure(tmp_path):
    exact = MixtureDenoiser(torch.randn(3, 1, 4, 4), torch.full((3,), 0.1), torch.ones(3))
    images = exact.sample(64, 0)
    assert teacher_world(exact, (1, 4, 4), data=images).quality == {}
    series = exact.sample(8, 0).flatten(1, 2)
    assert (
        teacher_world(lambda x, sigma, cond=None: x, (4, 4), data=series).quality[
            'sliced_wasserstein'
        ](series)
        == 0
    )  # samples of any other shape
    world = teacher_world(exact, (1, 4, 4), data=images, features=lambda x: x.flatten(1)[:, :3])
    near, far = (world.quality['frechet_distance'](x) for x in (exact.sample(64, 9), images + 1))
    assert 0 <= near < far


def test_the_host_needs_no_weights_of_four_branches():
    host, ours = make_arms(
        dataclasses.replace(SHORT, substeps=4, K=4, branch_weights=(0.1, 0.1, 0.1, 0.7))
    )
    assert (host.cfg.K, ours.cfg.K, ours.cfg.branch_weights) == (1, 4, (0.1, 0.1, 0.1, 0.7))
    with pytest.raises(ValueError, match='K=2'):
        make_arms(ours.cfg, {'host': dict(K=1), 'two': dict(K=2)})


def test_arms_that_cannot_be_told_apart_or_compared_are_refused():
    with pytest.raises(ValueError, match='arms that differ in nothing: host, B-DENSE'):
        make_arms(dataclasses.replace(SHORT, K=1))
    for more in (dict(steps=8), dict(nfe=3)):
        with pytest.raises(ValueError, match='other calls or budgets than host, .*: mine; pass'):
            make_arms(SHORT, {'host': dict(K=1), 'mine': more})
    for cfg, more in (  # they would be judged by other walks of the teacher
        (PDConfig(start_steps=8), dict(end_steps=2, start_steps=4)),
        (SFDVConfig(nfe=(2, 3), shape=(2,)), dict(nfe=(2,), substeps=8)),
    ):
        with pytest.raises(ValueError, match='other calls or budgets than host'):
            make_arms(cfg, {'host': dict(K=1), 'mine': more})


def test_arms_in_a_line():
    assert read_arms('host: K=1; B:; c: betas=.9,.99 ema=None afs=False') == {
        'host': {'K': 1},
        'B': {},
        'c': {'betas': (0.9, 0.99), 'ema': None, 'afs': False},
    }


@pytest.mark.parametrize(
    'text, says',
    [
        ('host K=1', 'must look like'),
        ('a: K=1; B: K=2; B: K=4', "two arms have the same name, 'B'"),
    ],
)
def test_arms_that_cannot_be_read(text, says):
    with pytest.raises(ValueError, match=says):
        read_arms(text)


def test_other_work_on_the_machine_does_not_flatter_a_student(monkeypatch):
    "A clock that moves by what a call costs, and is held up in the teacher's part of three turns of five."
    clock = dict(now=0.0, calls=0, held=0)

    def denoiser(x, sigma, cond=None):
        clock['now'] += 0.001 + 0.0001 * len(x)
        clock['calls'] += 1
        if clock['calls'] % 26 == 5 and clock['held'] < 3:  # 24 calls and two
            clock['held'] += 1
            clock['now'] += 3.0
        return x * 0

    monkeypatch.setattr(comparison.time, 'perf_counter', lambda: clock['now'])
    monkeypatch.setattr(Sampler, 'seconds_per_sample', 0.001)
    few, many = (
        Sampler(denoiser, tuple(torch.linspace(80, 0.01, n).tolist()), False, (2,), solver='euler')
        for n in (3, 25)
    )
    assert (many.nfe, few.nfe) == (24, 2)
    clock.update(calls=0, held=0)
    found = {r['what']: r for r in side_by_side(dict(teacher=many, student=few))}
    assert clock['held'] == 3
    of = lambda key: found['teacher'][key] / found['student'][key]
    assert of('nfe') == pytest.approx(of('seconds_per_sample'), rel=1e-3) == 12


@pytest.mark.parametrize(
    'preset, net',
    [('cifar10-sfd', dict(widths=(32,), patch=4)), ('cifar10-pd', dict(widths=(8, 32), patch=8))],
)
def test_the_papers_settings_plan(preset, net, tmp_path, monkeypatch):
    """Of each host, with a network that costs nothing; those of ImageNet-64 are planned as a command in test_presets.py, and run in the
    notebook on a GPU."""
    monkeypatch.setitem(sys.modules, 'standing', type(sys)('standing'))
    monkeypatch.setattr(Sampler, 'seconds_per_sample', property(lambda arm: float(arm.nfe)))
    torch.manual_seed(0)
    sys.modules['standing'].make = lambda: EDMDenoiser(UNet(3, **net), 0.5)
    data = {}
    if preset.endswith('pd'):
        from PIL import Image

        for i in range(3):
            Image.new('RGB', (32, 32), (i * 40, 0, 0)).save(tmp_path / f'{i}.png')
        data = dict(data=tmp_path)
    plan = bdense_compare(
        tmp_path / 'new',
        teacher='standing:make',
        preset_name=preset,
        size=32,
        batch=2,
        trust_teacher=True,
        dry_run=True,
        **data,
    )
    assert (
        plan['trains'] == '2 arms, 5 seeds of each'
        and plan['shape'] == [3, 32, 32]
        and not (tmp_path / 'new').exists()
    )
    assert plan['seconds'] > 3600


def test_a_plan_counts_what_is_measured(teacher, tmp_path, monkeypatch):
    "A second for each call: the students of all seeds, in every round, and the teacher's finest walk for each seed and number of calls."
    monkeypatch.setattr(Sampler, 'seconds_per_sample', property(lambda arm: float(arm.nfe)))
    save_denoiser(teacher, tmp_path / 'plane', dict(data='spiral', shape=[2]))
    plan = bdense_compare(
        tmp_path / 'new',
        teacher=tmp_path / 'plane',
        K=2,
        substeps=2,
        steps=2,
        batch=8,
        pool=8,
        seeds=3,
        n=1000,
        calls='2,3',
        dry_run=True,
    )
    fine = [dataclasses.replace(SHORT, nfe=n).reference().sampler(teacher).nfe for n in (2, 3)]
    assert (
        plan['seconds_measuring']
        == 1000 * 3 * (sum(fine) + 2 * (2 + 3))
        == pytest.approx(plan['seconds'] - plan['seconds_training'])
    )
    assert measuring_seconds(teacher, make_arms(PDConfig(start_steps=4)), (2,), 10, 3) == 10 * 3 * (
        4 + 2 * (2 + 1)
    )


def test_a_plan_counts_the_walks_that_arms_share_once():
    "Those of the longest budget for all that walk alike; what restarts at the student is no other arm's."
    plans = [dict(seconds_teacher=s) for s in (1.0, 8.0, 2.0, 4.0)]
    local = dataclasses.replace(SHORT, teacher_states='local')
    for cfg, which, seconds in (
        (SHORT, dict(budgets=(1, 2)), 8),
        (SHORT, dict(calls=(2, 3)), 8 + 4),
        (local, dict(budgets=(1, 2)), 1 + 8 + 2 + 4),
        (PDConfig(start_steps=4), dict(budgets=(1, 2)), 1 + 8 + 2 + 4),
    ):
        assert walking_seconds(make_arms(cfg, **which), plans) == seconds


def test_the_command_from_the_shell(teacher, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_denoiser(teacher, 'plane', dict(data='spiral', shape=[2]))
    line = '--teacher plane --K 2 --steps 2 --batch 8 --pool 8 --seeds 3 --n 20 --json'

    def run(*args):
        return from_shell('bdense_compare', [*args, *line.split()]), json.loads(
            capsys.readouterr().out
        )

    code, first = run('found', '--limit', '1')
    assert code == 0 and first['rows'] == 1 and first['differences'] == []
    code, rest = run('found')
    assert (
        code == 0
        and rest['rows'] == 6
        and {d['measure'] for d in rest['differences']} == {'paired_error', 'sliced_wasserstein'}
    )
    assert {'comparison.json', 'comparison.md', 'comparison.png', 'command.json'} <= {
        p.name for p in (tmp_path / 'found').iterdir()
    }
    assert read_json(tmp_path / 'found/comparison.json')['rows'][0]['seed'] == 0
    assert (
        load_student('found/runs/B_DENSE_2_calls_2_iterations_seed_2/student-2-calls', 'cpu').nfe
        == 2
    )
    timed = (tmp_path / 'found/speed.json').stat().st_mtime_ns
    assert (
        run('found')[1]['speed'] == rest['speed']
        and (tmp_path / 'found/speed.json').stat().st_mtime_ns == timed
    ), 'timed once'
    assert (
        'did you mean branch_weights?'
        in run('found', '--arms', 'host: K=1; x: branch_weight=uniform')[1]['error']
    )
    code, said = run('found', '--arms', 'host K=1')
    assert code == 1 and 'arms must look like' in said['error']
    kept = (tmp_path / 'found/command.json').read_bytes()
    assert (
        run('found', '--data', 'moons')[0] == 1
        and (tmp_path / 'found/command.json').read_bytes() == kept
    ), 'a refused command leaves no note'
    code, said = run('guided', '--guidance_scale', '2')
    assert code == 1 and 'guidance exaggerates a condition' in said['error']
    code, said = run('plane')
    assert code == 1 and 'holds other things' in said['error']


def test_a_guided_teacher_is_timed_with_its_two_calls_and_the_student_with_one(tmp_path):
    torch.manual_seed(0)
    guided = GuidedDenoiser(EDMDenoiser(MLP(width=8, depth=1, n_classes=2), 0.7), 2.0)
    found = compare(
        guided,
        SFDConfig(nfe=2, K=1, substeps=2, steps=1, batch=4, pool=4, shape=(2,)),
        dict(host={}, other=dict(lr=1e-3)),
        3,
        tmp_path,
        n=8,
        limit=1,
        show=False,
        say=lambda s: None,
    )
    teacher, student = (r['nfe'] for r in found.speed)
    assert (
        student == 2
        and teacher
        == 2
        * SFDConfig(nfe=2, substeps=2, K=1, shape=(2,)).reference().sampler(guided.denoiser).nfe
        and 'No intervals yet' in str(found)
    )


def test_arms_that_walk_differently_keep_their_trajectories_apart(tmp_path):
    "Another solver or dtype is another folder, and the same walk is the same bank."
    cfg = SFDConfig(shape=(2,), steps=1, batch=4, pool=4)
    arms = make_arms(
        cfg, {'host': dict(K=1), 'heun': dict(solver='heun'), 'half': dict(bank_dtype='float16')}
    )
    ring = MixtureDenoiser(torch.eye(2), torch.full((2,), 0.1), torch.ones(2))
    banks = Banks(lambda seed: ring, arms, tmp_path)
    made = [banks(arm.cfg) for arm in arms]
    assert len(list(tmp_path.iterdir())) == 3 and banks(dataclasses.replace(cfg, K=2)) is made[0]


def test_a_comparison_that_goes_on_asks_its_teacher_once_and_a_dry_run_says_so(
    teacher, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    save_denoiser(teacher, 'plane', dict(data='spiral', shape=[2]))
    monkeypatch.setattr(comparing, 'compare_plan', lambda *how: {})
    line = '--teacher plane --K 2 --steps 2 --batch 8 --pool 8 --seeds 3 --n 20 --json'

    def dry(*more):
        assert from_shell('bdense_compare', ['x', *line.split(), '--dry_run', *more]) == 0
        return json.loads(capsys.readouterr().out)['run']

    assert dry() == 'begins'
    start = ['x', *line.split(), '--limit', '1']
    from_shell('bdense_compare', start)
    capsys.readouterr()
    asked, note = [], experiments.answers_note
    monkeypatch.setattr(experiments, 'answers_note', lambda *of: asked.append(1) or note(*of))
    from_shell('bdense_compare', start)
    capsys.readouterr()
    assert len(asked) == 1
    assert dry() == 'goes on: 2 of 6 trainings are done'
    assert dry('--lr', '.5').startswith('would be refused: x/comparison.json cannot go on')
    monkeypatch.setattr(
        comparing,
        'stored_rows',
        lambda e, *of: [dict(a.key, seed=s) for a in e.arms for s in range(3)],
    )
    assert dry() == 'is finished: 6 of 6 trainings are done'


def test_measures_get_samples_of_their_own_a_name_and_a_number(teacher, tmp_path):
    seen = dict(first=lambda x: float(x.mul_(0).mean()), spread=lambda x: float(x.std()))
    alone = quiet(
        teacher, SHORT, seeds=3, folder=tmp_path / 'a', quality=dict(spread=seen['spread'])
    )
    both = quiet(teacher, SHORT, seeds=3, folder=tmp_path / 'b', quality=seen)
    for name in ('paired_error', 'spread'):
        assert [r[name] for r in both.result['rows']] == [r[name] for r in alone.result['rows']]
    with pytest.raises(ValueError, match="a row of results has 'arm' already"):
        quiet(teacher, SHORT, folder=tmp_path / 'c', quality=dict(arm=seen['spread']))
    with pytest.raises(ValueError, match='odd of a student of 2 calls, seed 0, is nan'):
        quiet(teacher, SHORT, folder=tmp_path / 'c', quality=dict(odd=lambda x: math.nan))
    with pytest.raises(TypeError, match='quality must be a dict'):
        quiet(teacher, SHORT, folder=tmp_path / 'c', quality=seen['spread'])


def test_another_host_of_a_finished_comparison(teacher, tmp_path):
    one = quiet(teacher, SHORT, {'host': dict(K=1), 'B-DENSE': {}}, 3, tmp_path)
    other = quiet(teacher, SHORT, {'B-DENSE': {}, 'host': dict(K=1)}, 3, tmp_path)
    (a,), (b,) = one.differences(), other.differences()
    assert (a.arm, b.arm) == ('B-DENSE', 'host') and a.interval.mean == -b.interval.mean
    assert read_json(tmp_path / 'comparison.json')['host'] == 'B-DENSE'


def test_seeds_begin_with_that_of_the_configuration(teacher, tmp_path):
    cfg = dataclasses.replace(SHORT, seed=100)
    found = quiet(teacher, cfg, seeds=3, folder=tmp_path / 'a')
    assert {r['seed'] for r in found.result['rows']} == {100, 101, 102}
    first = quiet(teacher, SHORT, seeds=3, folder=tmp_path / 'b')
    errors = [{r['paired_error'] for r in c.result['rows']} for c in (found, first)]
    assert not errors[0] & errors[1]


def test_measures_that_take_only_so_many_samples_are_told_apart(teacher, tmp_path):
    of = lambda x: dict(quality=dict(distance=lambda out: sliced_wasserstein(out, x)))
    points = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    quiet(teacher, SHORT, seeds=3, folder=tmp_path, limit=1, **of(points))
    with pytest.raises(ValueError, match='distance of noise is .* another measure'):
        quiet(teacher, SHORT, seeds=3, folder=tmp_path, **of(3 * points))
