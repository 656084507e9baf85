"The search for branch weights: start trials, resumption, storages that do not fit, confirmation, picture."

import contextlib
import dataclasses
import json
import math
import re
import shutil
import sqlite3
import sys
from dataclasses import replace

import pytest
import torch
from bdense_nb.lab import search
from bdense_nb.diffusion.denoisers import EDMDenoiser, GuidedDenoiser, MixtureDenoiser
from bdense_nb.diffusion.nets import MLP
from bdense_nb.distillation.bank import frozen_copy
from bdense_nb.distillation.losses import branch_weights
from bdense_nb.distillation.sfd import SFDConfig, sfd, teacher_bank
from bdense_nb.evaluation.intervals import paired_interval
from bdense_nb.evaluation.metrics import paired_error
from bdense_nb.lab.search import (
    LOG_RATIOS,
    STARTS,
    confirm_weights,
    load_search,
    ratios_to_weights,
    save_search,
    score_weights,
    search_study,
    search_weights,
    show_search,
    start_trials,
    weights_to_ratios,
)
from bdense_nb.training.config import Hardware
from warm import held, python

optuna = pytest.importorskip('optuna')
CFG = SFDConfig(steps=2, batch=4, pool=4, lr=1e-2, shape=(2,))
N = 13  # trials: the named ones, Optuna's random ones, and some of TPE


def make(seed):
    g, net = torch.Generator().manual_seed(seed), EDMDenoiser(MLP(width=8, depth=1))
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * 0.2)
    return net.requires_grad_(False).eval()


@pytest.fixture(scope='module')
def teacher():
    return make(0)


@pytest.fixture(scope='module')
def whole(teacher):
    return search_weights(teacher, CFG, N, n_samples=8, show=False)


def run(teacher, n=4, storage=None, cfg=CFG, **changes):
    return search_weights(
        teacher, cfg, n, storage, **dict(dict(n_samples=8, show=False), **changes)
    )


@pytest.fixture(scope='module')
def begun(teacher, tmp_path_factory):
    "A storage with one trial."
    path = tmp_path_factory.mktemp('begun') / 's.db'
    run(teacher, 1, path)
    return path


def points(result):
    return [(t.name, t.log_ratios, t.score) for t in result.trials]


@pytest.fixture
def count(monkeypatch):
    "How many trainings were begun; `count.stop_at` kills one of them."

    class Count:
        done, stop_at, error = 0, None, KeyboardInterrupt

    def counted(*args, **kwargs):
        Count.done += 1
        if Count.done == Count.stop_at:
            raise Count.error
        return sfd(*args, **kwargs)

    monkeypatch.setattr(search, 'sfd', counted)
    return Count


# --- weights and ratios ---


@pytest.mark.parametrize('K', [2, 3, 4, 8])
def test_ratios_and_weights_are_inverse(K):
    ratios = torch.linspace(*LOG_RATIOS, K - 1).tolist()
    w = ratios_to_weights(ratios)
    assert len(w) == K and abs(sum(w) - 1) < 1e-12 and min(w) > 0
    assert weights_to_ratios(w) == pytest.approx(ratios) and weights_to_ratios(
        [7 * v for v in w]
    ) == pytest.approx(ratios)
    assert [math.log(v / w[-1]) for v in w[:-1]] == pytest.approx(ratios)


def test_ratios_out_of_range_become_the_nearest():
    assert weights_to_ratios([0.0, 1e-9, 1e9, 1.0]) == (-4.0, -4.0, 1.0)


@pytest.mark.parametrize(
    'weights',
    [[1.0], [], [1.0, 0.0], [-1.0, 1.0], [math.nan, 1.0], [math.inf, 1.0], [[1.0, 1.0]]],
    ids=str,
)
def test_weights_without_ratios_are_refused(weights):
    with pytest.raises(ValueError, match='log-ratios need'):
        weights_to_ratios(weights)


@pytest.mark.parametrize('K', [2, 4, 64])
def test_start_trials_are_the_named_weights(K):
    starts = start_trials(K)
    assert set(starts) == set(STARTS) and all(
        LOG_RATIOS[0] <= r <= LOG_RATIOS[1] for point in starts.values() for r in point
    )
    assert starts['uniform'] == (0.0,) * (K - 1) and starts['endpoint'] == (-4.0,) * (K - 1)
    if K < 50:
        assert ratios_to_weights(starts['linear']) == pytest.approx(
            branch_weights(K, 'linear').tolist()
        )


# --- the search ---


def test_search_begins_with_the_named_weights_and_never_ends_below_them(whole):
    assert [t.name for t in whole.trials] == [*start_trials(4)] + [''] * (N - 3)
    assert all(t.log_ratios == point for t, point in zip(whole.trials, start_trials(4).values()))
    assert (
        whole.best.score
        == min(t.score for t in whole.trials)
        <= min(t.score for t in whole.trials[:3])
    )


def test_weights_are_in_range_normalised_and_different(whole):
    for t in whole.trials:
        assert all(LOG_RATIOS[0] <= r <= LOG_RATIOS[1] for r in t.log_ratios)
        assert (
            abs(sum(t.weights) - 1) < 1e-12
            and t.weights == ratios_to_weights(t.log_ratios)
            and t.seconds >= 0
        )
    assert len({t.log_ratios for t in whole.trials}) == N


def test_score_is_the_paired_error_on_seeds_that_training_does_not_use(teacher, whole):
    t = whole.trials[5]
    student = sfd(teacher, replace(CFG, branch_weights=t.weights), show=False)
    target = CFG.reference().sampler(frozen_copy(teacher, CFG.shape)).sample(8)
    assert t.score == paired_error(student.sample(8), target)
    assert CFG.seeds(0).start > 2**31 and torch.equal(
        target[3:5], CFG.reference().sampler(teacher).sample(2, 3)
    )


def test_the_target_is_the_teacher_on_a_finer_grid():
    single = MixtureDenoiser(
        torch.zeros(1, 2), torch.ones(1) * 0.5, torch.ones(1)
    )  # its flow shrinks every point by a known factor
    x = replace(CFG, substeps=32).reference().sampler(single).sample(4)
    from bdense_nb.core import sample_noise

    exact = 80 * sample_noise(range(4), (2,)) * math.sqrt((0.25 + CFG.sigma_min**2) / (0.25 + 6400))
    torch.testing.assert_close(x, exact, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize('parts', [(2, N), (11, 12, N)], ids=str)
def test_a_search_in_parts_is_the_whole_search(teacher, whole, tmp_path, parts):
    for n in parts:
        result = run(teacher, n, tmp_path / 's.db')
        assert len(result.trials) == n
    assert points(result) == points(whole)


@pytest.mark.parametrize('stop_at', [1, 12])
def test_a_stopped_trial_is_repeated(teacher, whole, tmp_path, count, stop_at):
    count.stop_at = stop_at
    with pytest.raises(
        KeyboardInterrupt,
        match=f'{stop_at - 1} of {N} trials are done; run it again to go on from .*s.db',
    ):
        run(teacher, N, tmp_path / 's.db')
    assert points(run(teacher, N, tmp_path / 's.db')) == points(whole)
    assert count.done == N + 1


def test_a_finished_search_trains_nothing(teacher, whole, tmp_path, count):
    run(teacher, 4, tmp_path / 's.db')
    assert (
        points(run(teacher, 4, tmp_path / 's.db'))
        == points(run(teacher, 2, tmp_path / 's.db'))
        == points(whole)[:4]
        and count.done == 4
    )


def test_search_seed_moves_the_sampler_only(teacher, whole):
    other = run(teacher, 5, seed=1)
    assert points(other)[:3] == points(whole)[:3] and points(other)[3] != points(whole)[3]


def test_shared_bank_changes_nothing(teacher, whole):
    assert points(run(teacher, bank=teacher_bank(teacher, CFG, show=False))) == points(whole)[:4]
    local = replace(CFG, teacher_states='local')
    assert all(math.isfinite(t.score) for t in run(teacher, cfg=local).trials)


def test_walks_too_large_to_be_kept_change_nothing(teacher, whole, confirmed, monkeypatch):
    monkeypatch.setattr(SFDConfig, 'fits_in_memory', False)
    monkeypatch.setattr(SFDConfig, 'bank', None)
    found = run(teacher)
    assert points(found) == points(whole)[:4]
    again = confirm_weights(teacher, whole, (1, 2, 5), show=False)
    assert again.confirmed == confirmed.confirmed


def test_a_bank_of_another_run_is_refused(teacher):
    with pytest.raises(ValueError, match='another configuration.*solver'):
        run(teacher, bank=teacher_bank(teacher, replace(CFG, solver='euler'), show=False))


def test_closed_form_teacher_with_a_network_as_student(teacher):
    blob = MixtureDenoiser(
        torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([0.2, 0.3]), torch.ones(2)
    )
    result = confirm_weights(blob, run(blob, student=teacher), student=teacher, show=False)
    assert len(result.confirmed['best']) == 3


def test_training_that_diverges_is_an_infinite_score(teacher, tmp_path, count):
    count.stop_at, count.error = 4, FloatingPointError
    result = run(teacher, 5, tmp_path / 's.db')
    assert (
        result.trials[3].score == math.inf
        and math.isfinite(result.trials[4].score)
        and run(teacher, 5, tmp_path / 's.db') == result
    )
    save_search(tmp_path / 's.json', result)
    assert (
        load_search(tmp_path / 's.json') == result
        and 'Infinity' not in (tmp_path / 's.json').read_text()
    )
    show_search(result, tmp_path / 's.png')
    assert len(run(teacher, N, tmp_path / 's.db').trials) == N  # TPE bears it


def test_if_the_first_training_diverges_the_search_ends(teacher, count):
    count.stop_at, count.error = 1, FloatingPointError
    with pytest.raises(FloatingPointError):
        run(teacher)


def test_optunas_log_level_is_left_alone(teacher, capfd):
    level = optuna.logging.get_verbosity()
    run(teacher, 5)
    assert optuna.logging.get_verbosity() == level and not capfd.readouterr().err


# --- what is refused ---


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(cfg=replace(CFG, K=1)), 'nothing to search'),
        (dict(cfg=replace(CFG, branch_weights_end='endpoint')), 'branch_weights_end'),
        (dict(cfg=7), 'SFDConfig'),
        (dict(n=0), 'n_trials'),
        (dict(n_samples=0), 'n_samples'),
        (dict(seed=-1), 'seed'),
    ],
    ids=lambda v: v if isinstance(v, str) else '',
)
def test_bad_input_is_refused_before_any_work(teacher, count, tmp_path, changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        run(teacher, storage=tmp_path / 's.db', **changes)
    assert count.done == 0 and not (tmp_path / 's.db').exists()


@pytest.mark.parametrize(
    'changes, what',
    [
        (dict(cfg=replace(CFG, lr=1e-3)), 'lr: 0.01 there, 0.001 now'),
        (dict(cfg=replace(CFG, seed=3)), 'seed: 0 there, 3 now'),
        (dict(n_samples=9), 'n_samples'),
        (dict(seed=1), 'search_seed'),
        (dict(student=make(1)), 'student'),
        (dict(cfg=replace(CFG, K=2)), 'K: 4 there, 2 now'),
        (dict(hardware=Hardware(precision='bf16')), "precision: 'no' there, 'bf16' now"),
    ],
    ids=lambda v: v if isinstance(v, str) else '',
)
def test_another_search_in_the_storage_is_refused(teacher, begun, tmp_path, changes, what):
    shutil.copy(begun, tmp_path / 's.db')
    with pytest.raises(ValueError, match=f'another configuration.*{what}'):
        run(teacher, 2, tmp_path / 's.db', **changes)
    if 'search_seed' in what:  # beside it there is room
        assert len(run(teacher, 2, tmp_path / 's.db', name='another', **changes).trials) == 2


def test_another_teacher_is_refused(teacher, tmp_path):
    run(teacher, 1, tmp_path / 's.db')
    with pytest.raises(ValueError, match='teacher'):
        run(make(1), 2, tmp_path / 's.db')


def test_the_weights_in_the_configuration_do_not_matter(teacher, tmp_path):
    run(teacher, 1, tmp_path / 's.db')
    assert (
        len(
            run(
                teacher, 2, tmp_path / 's.db', replace(CFG, branch_weights=(1.0, 2.0, 3.0, 4.0))
            ).trials
        )
        == 2
    )


def test_a_study_of_someone_else_is_refused(teacher, tmp_path):
    study = optuna.create_study(
        storage=f'sqlite:///{tmp_path / "s.db"}', study_name='branch_weights'
    )
    study.optimize(lambda trial: trial.suggest_float('x', 0, 1), 1)
    with pytest.raises(ValueError, match='no search for branch weights'):
        run(teacher, 2, tmp_path / 's.db')


def text(path):
    path.write_text('this is no database, but long enough to be taken for one')


def truncated(path):
    whole_file = path.read_bytes()
    path.write_bytes(whole_file[: len(whole_file) // 2])


def scrambled(path):
    with open(path, 'r+b') as f:
        f.seek(4096)
        f.write(bytes(range(256)) * 64)


def other_kind(path):
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute('CREATE TABLE songs (title)')


def folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize('damage', [text, truncated, scrambled, other_kind, folder])
def test_a_damaged_storage_is_a_clear_error(teacher, tmp_path, count, damage):
    path = tmp_path / 's.db'
    run(teacher, 1, path)
    damage(path)
    with pytest.raises((ValueError, OSError), match='s.db .*(SQLite|cannot be used)'):
        run(teacher, 2, path)
    assert count.done == 1


def test_storage_makes_its_folder_and_bears_odd_names(teacher, tmp_path):
    path = tmp_path / 'new folder' / '50 % of it.db'
    run(teacher, 1, path)
    assert path.is_file() and len(run(teacher, 2, str(path)).trials) == 2


def test_without_optuna_the_message_says_what_to_install(teacher, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'optuna', None)
    with pytest.raises(ImportError, match=r'pip install "bdense-nb\[search\]"'):
        run(teacher, 1, tmp_path / 's.db')
    assert not (tmp_path / 's.db').exists()


# --- confirmation ---


@pytest.fixture(scope='module')
def confirmed(teacher, whole):
    return confirm_weights(teacher, whole, (1, 2, 5), show=False)


def test_confirmation_trains_on_other_noise_and_scores_other_samples(teacher, whole, confirmed):
    assert confirmed.confirm_seeds == (1, 2, 5) and set(confirmed.confirmed) == {'best', *STARTS}
    target = CFG.reference().sampler(teacher).sample(8, 8)
    for arm, weights in dict(best=whole.best.weights, endpoint=(0.0, 0.0, 0.0, 1.0)).items():
        cfg = replace(CFG, seed=5, branch_weights=weights)
        assert confirmed.confirmed[arm][2] == paired_error(
            sfd(teacher, cfg, show=False).sample(8, 8), target
        )


def test_differences_are_paired(confirmed):
    for arm in STARTS:
        assert confirmed.difference(arm, 0.9) == paired_interval(
            confirmed.confirmed['best'], confirmed.confirmed[arm], 0.9
        )
    assert (
        confirmed.gap('linear')
        == confirmed.best.score
        - confirmed.trials[[t.name for t in confirmed.trials].index('linear')].score
        <= 0
    )


def test_unconfirmed_or_unknown_differences_are_refused(whole, confirmed):
    with pytest.raises(ValueError, match='confirm_weights'):
        whole.difference()
    for name in ('best', 'nothing'):
        with pytest.raises(ValueError, match='choose one of'):
            confirmed.difference(name)
        with pytest.raises(ValueError, match='choose one of'):
            confirmed.gap(name)


@pytest.mark.parametrize('seeds', [(1, 2), (1, 2, 2), (0, 1, 2), (1, 2, -3), (1, 2, 3.0)], ids=str)
def test_bad_seeds_are_refused(teacher, whole, count, seeds):
    with pytest.raises(ValueError, match='seed'):
        confirm_weights(teacher, whole, seeds, show=False)
    assert count.done == 0


def test_another_teacher_confirms_nothing(whole, count):
    with pytest.raises(ValueError, match='not the teacher of the search'):
        confirm_weights(make(1), whole, show=False)
    assert count.done == 0


def test_confirmation_goes_on_and_grows(teacher, whole, confirmed, tmp_path, count):
    count.stop_at = 6
    with pytest.raises(KeyboardInterrupt):
        confirm_weights(teacher, whole, (1, 2, 5), tmp_path / 's.db', show=False)
    assert (
        confirm_weights(teacher, whole, (1, 2, 5), tmp_path / 's.db', show=False) == confirmed
        and count.done == 13
    )
    grown = confirm_weights(teacher, whole, (1, 2, 5, 6), tmp_path / 's.db', show=False)
    assert count.done == 17 and grown.confirmed['best'][:3] == confirmed.confirmed['best']


def test_a_search_that_goes_on_confirms_its_new_best(teacher, whole, tmp_path, count):
    "The named weights are not trained again, and an earlier best is not mistaken for the new one."
    early = replace(whole, trials=whole.trials[:1])
    first = confirm_weights(teacher, early, (1, 2, 5), tmp_path / 's.db', show=False)
    assert first.best.weights != whole.best.weights and count.done == 12
    later = confirm_weights(teacher, whole, (1, 2, 5), tmp_path / 's.db', show=False)
    assert (
        later == confirm_weights(teacher, whole, (1, 2, 5), show=False)
        and first.confirmed['best'] != later.confirmed['best']
    )
    assert count.done == 12 + 3 + 12
    assert (
        confirm_weights(teacher, early, (1, 2, 5), tmp_path / 's.db', show=False) == first
        and count.done == 27
    )


def test_students_of_a_search_are_guided_as_their_teacher_is():
    plain = EDMDenoiser(MLP(width=8, depth=1, n_classes=2))
    with torch.no_grad():
        plain.net.out.weight.normal_(generator=torch.Generator().manual_seed(0))
    weak, strong = (run(GuidedDenoiser(plain, w), 1).trials[0].score for w in (1.0, 9.0))
    assert weak < strong  # untrained, both students are where the unguided teacher is


def test_a_storage_that_cannot_be_written_is_named(teacher, tmp_path, count, monkeypatch):
    path = tmp_path / 's.db'
    run(teacher, 1, path)
    connect = sqlite3.connect
    at_once = lambda *a, **k: connect(*a, **k | dict(timeout=0.0))  # instead of five seconds
    monkeypatch.setattr(sqlite3, 'connect', at_once)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute('BEGIN EXCLUSIVE')  # another program holds it
        with pytest.raises(OSError, match='s.db cannot be used .*locked.*no other program'):
            run(teacher, 2, path)
    full = 'import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))'
    unwaiting = 'import time; time.sleep = lambda _: None'  # Optuna tries it three times
    code = f'import test_search as t; {full}; {unwaiting}\ntry: t.run(t.make(0), 2, {str(path)!r})\nexcept OSError as e: print(e)'
    said = python(code).stdout
    assert re.match(r'.*s.db cannot be used .*disk with room', said, re.S), said
    assert count.done == 1 and len(run(teacher, 2, path).trials) == 2  # nothing was lost


def test_another_process_in_the_folder_is_refused(teacher, tmp_path):
    with held(tmp_path), pytest.raises(OSError, match='in use by another process'):
        run(teacher, 1, tmp_path / 's.db')


# --- files and picture ---


def test_result_comes_back_from_its_file(confirmed, whole, tmp_path):
    for result in (confirmed, whole):
        save_search(tmp_path / 's.json', result, command='x')
        assert load_search(tmp_path / 's.json') == result
    kept = json.loads((tmp_path / 's.json').read_text())
    assert kept['command'] == 'x' and kept.pop('teacher') == whole.teacher
    (tmp_path / 's.json').write_text(json.dumps(kept))  # an older file
    assert load_search(tmp_path / 's.json') == replace(whole, teacher='')


@pytest.mark.parametrize('content', ['no JSON', '{}', '[]', '{"cfg": {"K": 4}}'])
def test_a_file_that_is_no_search_is_refused(tmp_path, content):
    (tmp_path / 's.json').write_text(content)
    with pytest.raises(ValueError, match='s.json'):
        load_search(tmp_path / 's.json')


def test_picture_returns_what_it_shows(confirmed, whole, tmp_path):
    drawn, scores = (
        show_search(confirmed, tmp_path / 's.png').drawn,
        [t.score for t in whole.trials],
    )
    assert (tmp_path / 's.png').stat().st_size > 5000
    assert drawn['scores'] == scores and drawn['best_so_far'] == [
        min(scores[: i + 1]) for i in range(N)
    ]
    for arm in STARTS:
        assert drawn['confirmed'][arm]['gap'] == confirmed.gap(arm) and drawn['confirmed'][arm][
            'interval'
        ] == (confirmed.difference(arm).low, confirmed.difference(arm).high)
        assert drawn['confirmed'][arm]['differences'] == [
            b - r for b, r in zip(confirmed.confirmed['best'], confirmed.confirmed[arm])
        ]
    assert 'confirmed' not in show_search(whole).drawn


def test_a_search_that_has_not_tried_all_named_weights_is_drawn(confirmed):
    drawn = show_search(dataclasses.replace(confirmed, trials=confirmed.trials[:1])).drawn[
        'confirmed'
    ]
    assert [math.isnan(found['gap']) for found in drawn.values()] == [
        name != confirmed.trials[0].name for name in drawn
    ]


def test_optuna_draws_the_trials(whole):
    study = search_study(whole.trials)
    assert [t.value for t in study.trials] == [t.score for t in whole.trials] and list(
        study.best_params.values()
    ) == list(whole.best.log_ratios)
    axes = optuna.visualization.matplotlib.plot_slice(study)
    assert [ax.get_xlabel() for ax in axes] == ['ln(w1/w4)', 'ln(w2/w4)', 'ln(w3/w4)']


def test_score_weights_refuses_weights_that_are_none(teacher):
    with pytest.raises(ValueError, match='branch weights'):
        score_weights(teacher, CFG, (1.0, 2.0), None, torch.zeros(2, 2))
