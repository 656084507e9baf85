"Experiments: arms, runs that stop and go on, differences; and the stored results against the code that claims to have made them."

import dataclasses
import json

import pytest
import torch

from bdense_nb.lab import differences as D
from bdense_nb.lab import experiments as X
from bdense_nb.lab import worlds as W
from bdense_nb.core import data_dir
from bdense_nb.diffusion.denoisers import EDMDenoiser, MixtureDenoiser
from bdense_nb.diffusion.identity import denoiser_hash
from bdense_nb.diffusion.nets import MLP
from bdense_nb.diffusion.samplers import euler_step
from bdense_nb.distillation.distill import config_of
from bdense_nb.distillation.progressive import PDConfig
from bdense_nb.distillation.sfd import SFDConfig
from bdense_nb.training.config import Hardware
from warm import held, spawn_in_forks

STORED = sorted(
    name for name in X.EXPERIMENTS if (data_dir() / 'results' / f'{name}.json').is_file()
)
STAGE = dict(K=1, steps=2, batch=16)
SHORT = SFDConfig(steps=2, batch=16, K=2, substeps=2, solver='euler', shape=(2,))


@pytest.fixture(scope='module')
def cheap():
    "The ring without its costs: untrained students, few samples, an end point of few steps."
    ring = W.ring_world()

    def network(seed, width):
        torch.manual_seed(seed)
        return EDMDenoiser(MLP(width=width or 8, depth=1), 0.7)

    return dataclasses.replace(
        ring,
        network=network,
        data=lambda seed: (ring.teacher(0).sample(64, seed), None),
        ends=lambda cfg, seed: ring.teacher(0).sample(50, 7),
        quality={'mean': lambda x: float(x.mean().abs())},
        n=50,
        work={'twice': lambda sampler: torch.tensor(2.0 * sampler.nfe)},
    )


def exact(seed=0):
    return MixtureDenoiser(torch.zeros(1, 2), torch.ones(1), torch.ones(1))


def untrained(seed, width):
    torch.manual_seed(seed)
    return EDMDenoiser(MLP(width=8, depth=1), 0.7)


ends = W.ReferenceEnds(exact, (2,), 20)


def spread(x):
    return float(x.std())


def ends_not(cfg, seed):
    if seed == 1:
        raise FloatingPointError('seed 1')
    return ends(cfg, seed)


def test_seeds_side_by_side_give_the_same_rows(tmp_path, cheap, monkeypatch):
    "A seed that fails leaves the rows of the others, and is run again."
    spawn_in_forks(monkeypatch)
    world = W.World('a Gaussian', exact, (2,), untrained, ends, ends, dict(spread=spread), 20)
    e = X.Experiment(
        'Does it run?', world, X.vary(SHORT, {'host': dict(K=1), 'linear': {}}), 'host', 3
    )
    one = X.run_experiment(e, tmp_path / 'a.json', say=lambda s: None)
    failing = dataclasses.replace(e, world=dataclasses.replace(world, ends=ends_not))
    with pytest.raises(FloatingPointError, match='seed 1'):
        X.run_experiment(failing, tmp_path / 'b.json', say=lambda s: None, jobs=2)
    assert {r['seed'] for r in json.loads((tmp_path / 'b.json').read_text())['rows']} == {0, 2}, (
        'the others are kept'
    )
    two = X.run_experiment(e, tmp_path / 'b.json', say=lambda s: None)
    by = lambda r: (r['seed'], r['arm'])
    assert len(two['rows']) == 6 and figures(one) == figures(dict(rows=sorted(two['rows'], key=by)))
    with pytest.raises(ValueError, match='jobs=2 sends the experiment'):
        X.run_experiment(
            dataclasses.replace(e, world=cheap), tmp_path / 'c.json', say=lambda s: None, jobs=2
        )
    with pytest.raises(ValueError, match="device='cuda' is for the world fashion_mnist"):
        X.run_experiment(e, tmp_path / 'c.json', device='cuda')


@pytest.fixture
def experiment(monkeypatch, cheap):
    arms = (
        *X.vary(SHORT, {'host': dict(K=1), 'linear': {}, 'local': dict(teacher_states='local')}),
        *X.vary(PDConfig(start_steps=4, updates=2, batch=8), {'pd': {}}),
        X.Arm('several', dataclasses.replace(SHORT, pool=32), (2, 3)),
        X.Arm('not told', dataclasses.replace(SHORT, pool=32), (2, 3), untold=True),
        X.Arm('stages', dataclasses.replace(SHORT, nfe=3), stage=STAGE),
        X.Arm('several, stages', dataclasses.replace(SHORT, pool=32), (2, 3), stage=STAGE),
        *X.vary(SHORT, {'wide': {}}, 12),
    )
    monkeypatch.setitem(W.WORLDS, 'cheap', lambda: cheap)
    monkeypatch.setitem(
        X.EXPERIMENTS, 'try', X.Experiment('Does it run?', 'cheap', arms, 'host', 3)
    )
    return arms


def figures(result):
    return [{k: v for k, v in r.items() if k != 'cpu_seconds'} for r in result['rows']]


def test_every_kind_of_arm_stopped_and_continued(experiment, cheap, tmp_path):
    said = []
    result = X.run_experiment('try', tmp_path / 'a.json', say=said.append)
    rows = result['rows']
    assert {r['arm'] for r in rows} == {a.name for a in experiment} and {
        r['seed'] for r in rows
    } == {0, 1, 2}
    assert all(r['twice'] == 2 * r['nfe'] for r in rows) and X.EXPERIMENTS['try'].measures == [
        'paired_error',
        'mean',
        'twice',
    ], 'a measure of the sampler at work'
    assert [r['nfe'] for r in rows if r['arm'] == 'pd' and r['seed'] == 0] == [2, 1], (
        'a row for every round'
    )
    for arm in ('several', 'not told'):
        assert [r['nfe'] for r in rows if r['arm'] == arm and r['seed'] == 0] == [2, 3], (
            'a row for every step count'
        )
    assert {r['nfe'] for r in rows if r['arm'] in ('stages', 'several, stages')} == {1}
    scores = {
        arm: [r['paired_error'] for r in rows if r['arm'] == arm and r['seed'] == 0]
        for arm in ('several', 'not told', 'stages', 'several, stages')
    }
    assert (
        scores['several'] != scores['not told'] and scores['stages'] != scores['several, stages']
    ), 'arms that differ give the same student'
    assert [r['width'] for r in rows if r['arm'] == 'wide'] == [12] * 3 and 'width' not in rows[0]
    assert (
        len(said) == 1 + 3 + 3 * len(experiment)
        and json.loads((tmp_path / 'a.json').read_text()) == result
    )
    assert {'bdense_nb', 'torch', 'hardware', 'samples', 'command'} <= result.keys()
    assert result['teacher'] == denoiser_hash(cheap.teacher(0))
    told = [f'seed {i}: training the network that its students start from' for i in range(3)]
    assert [line.partition(';')[0] for line in said if line.startswith('seed')] == told
    mtime = (tmp_path / 'a.json').stat().st_mtime_ns
    assert (
        X.run_experiment('try', tmp_path / 'a.json', say=said.append) == result
        and (tmp_path / 'a.json').stat().st_mtime_ns == mtime
    ), 'nothing to do'
    for n in (1, 4, 2):
        X.run_experiment('try', tmp_path / 'b.json', limit=n, say=lambda s: None)
    stopped = json.loads((tmp_path / 'b.json').read_text())
    assert len({(r['arm'], r['seed']) for r in stopped['rows']}) == 7
    again = X.run_experiment('try', tmp_path / 'b.json', say=lambda s: None)
    assert figures(again) == figures(result)


@pytest.mark.parametrize('name', ['not told', 'several, stages'])
def test_every_training_of_an_arm_has_the_hardware_and_the_folder(
    experiment, cheap, tmp_path, name
):
    "Also that which hides the number of calls, and the second stage; an interrupted one goes on there."
    arm, seen = next(a for a in experiment if a.name == name), []

    class Seen:
        def start(self, state):
            seen.append((state.hardware.accumulate, state.folder.is_relative_to(tmp_path)))

    for _ in X.students(
        cheap,
        arm,
        0,
        X.Banks(cheap.teacher, [arm]),
        tmp_path,
        hardware=Hardware(accumulate=2),
        hooks=(Seen(),),
        show=False,
    ):
        pass
    assert seen == [(2, True)] * (1 + bool(arm.stage))


def test_two_at_once_lose_no_rows(experiment, tmp_path):
    "A second process that wants the same file is refused; one with another file in the same folder is not."
    with held(tmp_path, 'a.json'):
        with pytest.raises(OSError, match='a.json is in use by another process'):
            X.run_experiment('try', tmp_path / 'a.json', 1)
        X.run_experiment('try', tmp_path / 'b.json', 1)
    X.run_experiment('try', tmp_path / 'a.json', 1)


def test_foreign_files_are_refused(experiment, tmp_path, monkeypatch):
    out = tmp_path / 'a.json'
    X.run_experiment('try', out, limit=1, say=lambda s: None)
    before = out.read_bytes()
    changed = dataclasses.replace(
        X.EXPERIMENTS['try'], arms=(X.Arm('host', dataclasses.replace(SHORT, K=1, lr=0.1)),)
    )
    monkeypatch.setitem(X.EXPERIMENTS, 'try', changed)
    with pytest.raises(ValueError, match='host, 2 calls, 2 iterations with other settings'):
        X.run_experiment('try', out)
    monkeypatch.setitem(X.EXPERIMENTS, 'try', dataclasses.replace(changed, world='ring'))
    with pytest.raises(ValueError, match="world: 'cheap' there, 'ring' now"):
        X.run_experiment('try', out)
    assert out.read_bytes() == before
    young = json.loads(before)
    for c in young['configs']:
        del c['config']['cfg']['layer']
    out.write_text(json.dumps(young))
    monkeypatch.setitem(X.EXPERIMENTS, 'try', dataclasses.replace(changed, arms=experiment))
    X.run_experiment(
        'try', out, limit=0, say=lambda s: None
    )  # a field that came later counts as its default
    for text in (
        b'{"rows": 3',
        b'[]',
        b'{}',
        b'{"world": "ring", "configs": 3, "rows": []}',
        b'{"world": "ring", "configs": [], "rows": [3]}',
        b'{"world": "\xff"}',
    ):
        out.write_bytes(text)
        with pytest.raises(ValueError, match='a.json'):
            X.run_experiment('try', out)
        assert out.read_bytes() == text
    with pytest.raises(ValueError, match='experiment'):
        X.run_experiment('none such')


def test_an_experiment_in_a_world_of_ones_own(cheap, tmp_path):
    "Neither is in a table, and all that is said of the result comes from its file."
    arms = (*X.vary(SHORT, {'host': dict(K=1)}), *X.vary(SHORT, {'linear': {}}, steps=4))
    mine = X.Experiment('Does it run?', cheap, arms, 'host', 3, {4: 2})
    with pytest.raises(ValueError, match='pass out='):
        X.run_experiment(mine)
    result = X.run_experiment(mine, tmp_path / 'mine.json', say=lambda s: None)
    assert len(result['rows']) == 6 and (result['experiment'], result['world']) == (
        'mine',
        cheap.about,
    )
    assert X.measures_of(result) == mine.measures == ['paired_error', 'mean', 'twice']
    assert [(d.arm, d.host_iterations) for d in D.differences(result)] == [
        ('linear', 2)
    ] and D.plot_differences(result).keys() == {'paired_error', 'mean', 'twice'}
    exact = cheap.teacher(0)
    moved = type(exact)(exact.means + 0.1, exact.stds, exact.weights)
    other = dataclasses.replace(cheap, teacher=lambda seed: moved)
    student = dataclasses.replace(cheap, network=lambda seed, width: moved)  # asked as a network is
    for world, said in (
        (other, 'teacher: '),
        (student, 'answers'),
        (dataclasses.replace(cheap, about='elsewhere'), 'world: '),
        (dataclasses.replace(cheap, n=7), 'samples: '),
    ):
        with pytest.raises(ValueError, match=said):
            X.run_experiment(dataclasses.replace(mine, world=world), tmp_path / 'mine.json')


def test_a_student_is_judged_by_the_reference_of_its_own_calls():
    several = X.Arm('several', X.SFDConfig(), (2, 3))
    assert [several.judged(n).nfe for n in (2, 3)] == [2, 3]
    one = X.Arm('one', X.SFDConfig(nfe=1), judge=X.SFDConfig(nfe=5))
    assert one.judged(1).nfe == 5


def test_banks_are_shared_inside_a_seed(cheap):
    arms = (*X.vary(SHORT, {'a': {}, 'b': dict(K=1)}), *X.vary(SHORT, {'a': {}}, steps=6))
    banks = X.Banks(cheap.teacher, arms)
    first, second, long = (banks(a.cfg) for a in arms)
    assert first is second is long and len(first.seeds) == 6 * 16, (
        'one bank, as long as the longest run'
    )
    assert banks(dataclasses.replace(SHORT, seed=1)) is not first
    assert banks(dataclasses.replace(SHORT, teacher_states='local')) is None


def test_the_last_step_counts_as_often_as_it_is_told():
    "Once: the host bit for bit; four times: another student."
    made = [
        cfg.run(exact(), student=untrained(0, 8), show=False).denoiser.net.out.weight
        for cfg in (SHORT, *(X.RecipeSFD(**vars(SHORT), last=n) for n in (1, 4)))
    ]
    assert torch.equal(made[0], made[1]) and not torch.equal(made[1], made[2])


def test_a_last_layer_solved_anew():
    "Without a ridge it is what lstsq finds from the steps themselves; with one the squares that it minimises do not grow."
    cfg = X.RecipeSFD(**vars(SHORT), refit=True)
    walk = SHORT.plan.trajectories(exact(), SHORT.all_seeds)[0]
    parts = [X.Trajectory(walk.sigmas, walk.xs[:, i : i + 16]) for i in (0, 16)]
    before = SHORT.run(exact(), student=untrained(0, 8), show=False)
    net, grid = X.copied(before.denoiser).double(), before.sigmas
    xs = X.trajectory(net, walk[0].double(), grid, 'euler', before.afs).xs

    def gaps(weight, bias):  # of the two steps that call the network, from the same states
        layer = {'net.out.weight': weight, 'net.out.bias': bias}
        ask = lambda n: torch.func.functional_call(net, layer, (xs[n], grid[n]))
        ends = [euler_step(xs[n], ask(n), grid[n], grid[n + 1]) for n in (1, 2)]
        return (walk.xs[4::2] - torch.stack(ends)).flatten()

    old = [p.detach() for p in net.net.out.parameters()]
    slopes = [j.flatten(1) for j in torch.autograd.functional.jacobian(gaps, tuple(old))]
    best = torch.linalg.lstsq(torch.cat(slopes, 1), -gaps(*old)).solution
    best = [p + d.view_as(p) for p, d in zip(old, best.split([16, 2]))]
    squares = lambda made: gaps(*(p.double() for p in made)).square().sum().item()
    solved = X.refit(before, parts, ridge=0.0).denoiser.net.out.parameters()
    torch.testing.assert_close([*solved], [p.float() for p in best])
    made = cfg.run(exact(), student=untrained(0, 8), show=False)
    assert squares(best) < squares(made.denoiser.net.out.parameters()) < squares(old)
    assert config_of(made.about) == cfg
    before.denoiser.conditions = X.sample_noise
    with pytest.raises(ValueError, match='only for students without conditions'):
        X.refit(before, parts)


def test_a_student_that_is_not_told_is_the_average_and_goes_on_in_its_own_folder(tmp_path):
    cfg = dataclasses.replace(SHORT, K=1, ema=0.5)
    banks = {n: dataclasses.replace(cfg, nfe=n).bank(exact(), show=False) for n in (2, 3)}

    def go(cfg=cfg, **how):
        two, _ = X.untold(exact(), cfg, (2, 3), banks, untrained(0, 8), show=False, **how)
        return two.denoiser.net.out.weight

    whole = go(folder=tmp_path)
    assert torch.equal(go(folder=tmp_path), whole)
    assert not torch.equal(go(dataclasses.replace(cfg, ema=None)), whole)
    with pytest.raises(ValueError, match="loss: 'l1' there, 'l2' now"):
        go(dataclasses.replace(cfg, loss='l2'), folder=tmp_path)


def test_bad_experiments():
    arms = X.vary(SHORT, {'host': {}})
    with pytest.raises(ValueError, match='same name, calls and budget'):
        X.Experiment('?', 'ring', (*arms, *arms), 'host', 3)
    with pytest.raises(ValueError, match=r'named by: w\+, 2 calls, .*; w-, 2 calls'):
        X.Experiment('?', 'ring', tuple(X.vary(SHORT, {'w+': {}, 'w-': dict(K=1)})), 'w+', 3)
    with pytest.raises(ValueError, match='seeds'):
        X.Experiment('?', 'ring', tuple(arms), 'host', 2)
    with pytest.raises(ValueError, match='host'):
        X.Experiment('?', 'ring', tuple(arms), 'nobody', 3)
    with pytest.raises(ValueError, match='world'):
        X.Experiment('?', 'moon', tuple(arms), 'host', 3)


def row(arm, seed, value, nfe=2, iterations=10, **more):
    return dict(arm=arm, nfe=nfe, iterations=iterations, seed=seed, paired_error=value, **more)


def test_differences():
    result = dict(
        host='h',
        rows=[row('h', i, float(i)) for i in range(5)]
        + [row('a', i, i - 0.5 + 0.01 * i) for i in range(5)]
        + [row('few', i, 0.0) for i in range(2)]
        + [row('long', i, float(i), iterations=20) for i in range(5)]
        + [row('other calls', i, 0.0, nfe=3) for i in range(5)]
        + [row('a', i, 0.0, width=16) for i in range(5)],
    )
    (one,) = D.differences(result)
    assert (
        one.arm == 'a'
        and one.verdict == 'better'
        and one.host == 2.0
        and one.interval.mean == pytest.approx(-0.48)
        and one.interval.n == 5
    )
    assert {d.arm for d in D.differences(result, budgets={20: 10})} == {'a', 'long'}
    (back,) = D.differences(result, host='a')
    assert back.verdict == 'worse' and back.interval.mean == pytest.approx(0.48)
    with pytest.raises(ValueError, match='host'):
        D.differences(result, host='z')
    assert D.differences(dict(result, host='not run yet')) == []


def test_percent_of_what_is_negative_or_zero():
    "The sign still says which is better, and nothing stops at a measure that is 0."

    def percent(*of):
        rows = [row('h', i, of[0]) for i in range(3)] + [row('a', i, of[1]) for i in range(3)]
        result = dict(host='h', rows=rows, experiment='x')
        D.plot_differences(result)
        (one,) = D.differences(result)
        return one.percent

    assert percent(-2.0, -3.0) == '**-50.0 [-50.0, -50.0]**'
    assert percent(0.0, 1.0) == '**+1 [+1, +1], no percent of zero**'


def test_gains_have_a_panel_for_each_measure_and_a_place_for_each_round():
    "A student of a round, or one of several step counts, takes other calls than its run is named by."
    import matplotlib.pyplot as plt

    two = [row(arm, i, float(i), nfe=4, calls=1, q=0.5, r=1.5) for arm in 'ha' for i in range(3)]
    configs = [dict(arm='a', calls=1, iterations=10, config=dict(cfg=dict(batch=8, K=2)))]
    result = dict(host='h', rows=two, experiment='x', configs=configs)
    found = D.show_gains({'here': [result]})
    assert [many for many, _ in found['here']['r']] == [80]
    titles = [ax.get_title() for ax in plt.gcf().axes]
    assert titles == ['here: paired error', 'here: q', 'here: r']


def test_an_arm_has_one_colour_in_all_panels():
    "Also where one budget lacks an arm; the legend names what any panel shows."
    import matplotlib.pyplot as plt
    from matplotlib.colors import to_hex

    rows = [
        row(arm, i, float(i), iterations=n)
        for n, arms in ((10, 'hab'), (20, 'hbc'))
        for arm in arms
        for i in range(3)
    ]
    plt.close('all')
    D.plot_differences(dict(host='h', rows=rows, experiment='x'))
    fig = plt.gcf()
    drawn = {(c.get_label(), to_hex(c[0].get_color())) for ax in fig.axes for c in ax.containers}
    assert drawn == {('a', to_hex('C0')), ('b', to_hex('C1')), ('c', to_hex('C2'))}
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ['a', 'b', 'c']


def test_budgets_of_an_experiment(experiment, monkeypatch):
    "An arm that trains longer is compared as the experiment says, and the table has a place for everything."
    monkeypatch.setitem(
        X.EXPERIMENTS, 'try', dataclasses.replace(X.EXPERIMENTS['try'], budgets={20: 10})
    )
    result = dict(
        experiment='try',
        host='h',
        command='c',
        hardware='m',
        rows=[row('h', i, 2.0 + i) for i in range(3)]
        + [row('long', i, 1.9 + i, iterations=20) for i in range(3)]
        + [row('a', i, 5.0 - i) for i in range(3)],
    )
    assert [(d.arm, d.verdict) for d in D.differences(result)] == [
        ('long', 'better'),
        ('a', 'not told apart'),
    ]
    assert [d.arm for d in D.differences(result, budgets={})] == ['a']
    many = D.difference_table(
        dict(result, rows=result['rows'] + [dict(r, nfe=n) for r in result['rows'] for n in (3, 4)])
    ).splitlines()
    assert (
        many[2] == '|  | *h* | long, 20 it. | a |'
        and len(many) == 4 + 3
        and many[4].startswith('| 2 calls, 10 it. | 3.0000 | **-3.3 [')
    )
    lines = D.difference_table(result).splitlines()
    assert (
        '3 seeds' in lines[0]
        and 'of "h" the mean' in lines[0]
        and lines[2:]
        == [
            '|  | 2 calls, 10 it. |',
            '| --- | --- |',
            '| *h* | 3.0000 |',
            '| long, 20 it. | **-3.3 [-3.3, -3.3]** |',
            lines[-1],
        ]
    )
    assert lines[-1].startswith('| a | +33.3 [')
    with pytest.raises(ValueError, match='three seeds'):
        D.difference_table(dict(result, rows=result['rows'][:2]))


@pytest.mark.parametrize('name', STORED)
def test_stored_results_are_of_this_code(name):
    "The settings beside the figures are those of the arms as they are now, and the first run, where it is cheap, gives the stored figures again."
    experiment, result = (
        X.EXPERIMENTS[name],
        json.loads((data_dir() / 'results' / f'{name}.json').read_text()),
    )
    device = result.get('device')
    assert (
        X.stored_rows(
            dataclasses.replace(experiment, device=device), data_dir() / 'results' / f'{name}.json'
        )
        == result['rows']
    )
    assert {X.run_name(c) for c in result['configs']} == {
        X.run_name(a.key) for a in experiment.arms
    }  # their settings: see `stored_rows`
    keys = [
        (r['arm'], r['nfe'], r['iterations'], r.get('width'), r['seed']) for r in result['rows']
    ]
    assert len(set(keys)) == len(keys) and all(
        m in r for r in result['rows'] for m in experiment.measures
    )
    assert (
        result['command']
        == f'bdense_evaluate --experiment {name}' + (f' --device {device}' if device else '')
        and result['host'] == experiment.host
    )


def test_the_verdict_of_the_front_page():
    "The figures in README are those of the stored runs."
    heavy = {
        (title, measure): sorted(
            ((n, d) for n, d in places if 'heavy' in d.arm), key=lambda p: p[0]
        )
        for title, by in _gains().items()
        for measure, places in by.items()
    }
    gains = {key: places[-1][1] for key, places in heavy.items()}
    assert {d.interval.n for d in gains.values()} == {8, 10}
    ring = {m: gains.pop(('ring', m)).verdict for m in ('paired_error', 'sliced_wasserstein')}
    assert all(d.verdict == 'better' for d in gains.values()) and ring == dict(
        paired_error='worse', sliced_wasserstein='better'
    )
    text = (data_dir().parent / 'README.md').read_text(encoding='utf-8')

    def said(n):
        return ' and '.join(
            f'{-100 * d.interval.mean / d.host:.1f}'
            for d in (
                dict(heavy['Fashion-MNIST', m])[n] for m in ('paired_error', 'frechet_distance')
            )
        )

    stored = json.loads((data_dir() / 'results' / 'fashion_wide.json').read_text())
    wide = {
        m: d
        for m in ('paired_error', 'frechet_distance')
        for d in D.differences(stored, m)
        if d.arm == 'heavy'
    }
    assert {d.verdict for d in wide.values()} == {'better'} and {
        d.interval.n for d in wide.values()
    } == {5}
    better = ' and '.join(
        f'{-100 * wide[m].interval.mean / wide[m].host:.1f}'
        for m in ('paired_error', 'frechet_distance')
    )
    assert (
        f'by {said(524_288)} % on Fashion-MNIST after half a million trajectories, repeats counted ({said(32_768)} % after 33,000; {better} % with a better teacher)'
        in text
    )
    pd = {
        n: json.loads((data_dir() / 'results' / f'{n}.json').read_text())
        for n in ('fashion_pd', 'ring_pd')
    }
    found = lambda n, m: [
        d
        for d in D.differences(pd[n], m)
        if 'then' not in d.arm and ('heavy' in d.arm or n == 'ring_pd')
    ]
    assert all(
        (d.verdict == 'better') == (d.nfe >= 4) for d in found('fashion_pd', 'paired_error')
    ) and {d.verdict for d in found('fashion_pd', 'frechet_distance')} == {'better'}
    assert {
        d.verdict for m in ('paired_error', 'sliced_wasserstein') for d in found('ring_pd', m)
    } == {'worse', 'not told apart'}
    long = json.loads(
        (data_dir() / 'results' / 'fashion_pd_long.json').read_text()
    )  # forty times the images
    assert {d.verdict for d in D.differences(long, 'paired_error')} == {'worse'}
    points = json.loads((data_dir() / 'results' / 'spiral_pd.json').read_text())
    told = [
        d.verdict for m in ('paired_error', 'sliced_wasserstein') for d in D.differences(points, m)
    ]
    assert told.count('better') == 1 and told.count('worse') == 38 and len(told) == 48
    assert (
        'With most weight on the endpoint, branches bring a student of two calls about two percent nearer to its teacher and to the data on small pictures, of four calls more than one; on points less than one, on a ring only to the data; with Progressive Distillation only on pictures in short trainings.'
        in text
    )
    assert (
        'A finer lesson (`substeps=8`) helps more towards the teacher, an average of the weights (`ema=.99`) towards the data; both take away part of that gain.'
        in text
    )
    other = json.loads((data_dir() / 'results' / 'fashion_lesson.json').read_text())
    by = lambda m, host='K = 1': {d.arm: d.interval for d in D.differences(other, m, host)}
    paired, data = by('paired_error'), by('frechet_distance')
    dense, finer, mean = 'K = 4, endpoint-heavy', 'K = 1, 8 teacher steps', 'K = 1, EMA .99'
    assert paired[finer].high < paired[dense].low and data[mean].high < data[dense].low
    for host, beside in ((finer, f'{dense}, 8 teacher steps'), (mean, f'{dense}, EMA .99')):
        assert paired[dense].high < by('paired_error', host)[beside].low
    four = ' and '.join(
        f'{-100 * gains["Fashion, 4 calls", m].interval.mean / gains["Fashion, 4 calls", m].host:.1f}'
        for m in ('paired_error', 'frechet_distance')
    )
    assert (
        f'in four calls by {four} %, on spiral, moons and swiss roll by less than 1 %' in text
        and "mostly the finer teacher's, but towards the data in two calls; branches add one or two percent there"
        in text
        and min(map(float, four.split(' and '))) > 1
    )
    assert [d.verdict for _, d in heavy['Fashion, 4 calls', 'paired_error']][-2:] == [
        'worse',
        'better',
    ]  # "four calls need longer ones"
    assert {
        round(-100 * gains['Fashion-MNIST', m].interval.mean / gains['Fashion-MNIST', m].host)
        for m in ('paired_error', 'frechet_distance')
    } == {2}
    assert {
        d.verdict
        for m in ('paired_error', 'frechet_distance')
        for _, d in heavy['Fashion-MNIST', m][-2:]
    } == {'better'}  # from 33,000 on
    assert all(
        -0.01 < d.interval.mean / d.host < 0
        for (title, _), d in gains.items()
        if 'Fashion' not in title
    )


def _gains():
    return D.gains_of(D.stored_gains(), D.HELD)


def test_an_arm_is_called_the_same_in_every_row():
    import matplotlib.pyplot as plt

    D.show_answer()
    legends = [[text.get_text() for text in legend.get_texts()] for legend in plt.gcf().legends]
    plt.close('all')
    assert legends == [['K = 4, linear', 'K = 4, endpoint-heavy'], list(D.FRONT)]


def test_a_world_and_its_ends_are_of_one_noise():
    place = W.WORLDS['spiral, copies']()
    with pytest.raises(ValueError, match='the same of a world and of its ends'):
        dataclasses.replace(place, own_noise=True)
    both = dataclasses.replace(
        place, ends=dataclasses.replace(place.ends, own_noise=True), own_noise=True
    )
    assert both.own_noise and not place.own_noise


def test_no_two_arms_of_a_figure_look_alike():
    names = ['my weights', 'linear', 'K = 4, linear', *(f'arm {i}' for i in range(20))]
    looks = D._looks(names)
    assert (
        looks.keys() == set(names) and len({tuple(look.values()) for look in looks.values()}) == 23
    )
    assert (
        looks['linear']
        == D._looks(['linear'])['linear']
        == D._looks(['K = 4, linear', 'x'])['K = 4, linear']
    )
