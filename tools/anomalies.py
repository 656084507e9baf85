"""Find anomalies by what a few-call student reconstructs and by how much its branches disagree, beside isolation forest, matrix profile and autoencoder.

Two tests. The heart signal InternalBleeding16 of the UCR anomaly archive (Wu & Keogh 2021), which the package aeon carries: learned from its first 1,200
points, one labelled anomaly behind them. And the weather of Seattle (shipped; three channels): learned from 2012-2014, and five kinds of faults planted into
2015, one at a time, six places each. Networks are trained with several seeds. No setting was searched for on labels. A second start goes on with the next seed. At the end the CPU time of 1,000 points is measured, once for each detector; `--time` measures it
again. Needs the extra `anomalies`.

    OMP_NUM_THREADS=1 python tools/anomalies.py       # about five minutes of one quiet core
"""

import csv
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from pathlib import Path

import numba
import numpy as np
import stumpy
import torch
from aeon.benchmarking.metrics.anomaly_detection import pr_auc_score
from aeon.benchmarking.metrics.anomaly_detection import range_roc_vus_score
from aeon.benchmarking.metrics.anomaly_detection import roc_auc_score
from pyod.models.auto_encoder import AutoEncoder
from pyod.models.iforest import IForest

from applications import Results, cpu_times
from bdense_nb.applications.anomalies import DETECTOR_SFD, FAULTS, NORMAL
from bdense_nb.applications.anomalies import alarm_threshold, anomaly_scores
from bdense_nb.applications.anomalies import branched_student_of, by_point, train_normal
from bdense_nb.applications.anomalies import with_fault
from bdense_nb.applications.forecasting import teacher_sampler
from bdense_nb.applications.series import Series, Windows, read_series, shipped_series

WEIGHTS = (0.05, 0.1, 0.15, 0.7)
PLACES = 6  # of each fault
DRAWS = 4  # noises for each window
STEPS = 100  # iterations of a distillation
RATE = 0.005  # of the training steps may raise an alarm


@dataclass(frozen=True)
class Task:
    "A signal to learn from, and signals with one anomaly each."

    name: str
    train: Series
    clean: Series  # unseen
    cases: dict[str, list[tuple[Series, torch.Tensor]]]  # kind -> (signal, labels [T])
    windows: Windows
    every: int  # steps from one window to the next
    margin: int  # steps beside an anomaly at which the top score counts as inside


def heart() -> Task:
    folder = files('aeon') / 'datasets' / 'data' / 'KDD-TSAD_135'
    train, whole = (
        read_series(folder / f'135_UCR_Anomaly_InternalBleeding16_{part}.csv', 'value', 'timestamp')
        for part in ('TRAIN', 'TEST')
    )
    with (folder / '135_UCR_Anomaly_InternalBleeding16_TEST.csv').open() as f:
        labels = torch.tensor([float(r['is_anomaly']) for r in csv.DictReader(f)])
    test, labels = whole[len(train) :], labels[len(train) :]
    margin = max(100, int(labels.sum()))  # as the archive counts
    return Task(
        'InternalBleeding16',
        train,
        test[: int(labels.argmax()) - 64],
        {'internal bleeding': [(test, labels)]},
        Windows.fit(train, 0, 64),
        8,
        margin,
    )


def weather() -> Task:
    series = shipped_series('seattle_weather', ['temp_max', 'temp_min', 'wind'])
    train, test = series.before('2015-01-01'), series.after('2015-01-01')
    cases = {kind: [with_fault(test, kind, place) for place in range(PLACES)] for kind in FAULTS}
    return Task('weather', train, test, cases, Windows.fit(train, 0, 16, ['year']), 4, 8)


# --- detectors: a series -> name -> scores, [T]


def flat(task: Task, series: Series, every: int) -> tuple[np.ndarray, torch.Tensor]:
    "Windows as rows, and where they start."
    starts = torch.tensor(
        sorted(
            {
                *range(0, len(series) - task.windows.horizon, every),
                len(series) - task.windows.horizon,
            }
        )
    )
    return task.windows.cut(series, starts)[0].flatten(1).numpy(), starts


def on_windows(task: Task, name: str, model):
    "A detector of pyod, trained on all windows of the training part."
    model.fit(flat(task, task.train, 1)[0])

    def scores(series):
        rows, starts = flat(task, series, task.every)
        each = torch.from_numpy(np.asarray(model.decision_function(rows))).float()
        return {name: by_point(each[:, None].expand(-1, task.windows.horizon), starts, len(series))}

    return scores


def matrix_profile(task: Task, name: str, normalize: bool):
    "Distance of each stretch to the nearest one of the training part (of that itself: to the nearest other); the mean over channels."
    L = task.windows.horizon
    known = task.windows.scaled(task.train).double().numpy()

    def profile(a, b, itself):
        args = (a, L) if itself else (a, L, b)
        return stumpy.stump(*args, ignore_trivial=itself, normalize=normalize)[:, 0].astype(float)

    def scores(series):
        rows = task.windows.scaled(series).double().numpy()
        mean = np.mean([profile(a, b, series is task.train) for a, b in zip(rows, known)], axis=0)
        return {
            name: by_point(
                torch.from_numpy(mean).float()[:, None].expand(-1, L),
                torch.arange(len(mean)),
                len(series),
            )
        }

    return scores


def scored_by(name: str, sampler, task: Task, branched=None):
    "A detector that reconstructs; with branches, two more scores from the same noises."
    how = dict(every=task.every, draws=DRAWS)
    return lambda series: {
        f'{name}, {kind}': s
        for kind, s in anomaly_scores(sampler, series, branched, **how).items()
        if branched is not None or kind == 'reconstruction'
    }


def students(task: Task, seed: int) -> dict:
    "Teacher, host and B-DENSE of a seed."
    teacher = train_normal(task.train, task.windows, replace(NORMAL, seed=seed))
    _, host = branched_student_of(teacher, replace(DETECTOR_SFD, K=1, steps=STEPS, seed=seed))
    branched, student = branched_student_of(
        teacher, replace(DETECTOR_SFD, branch_weights=WEIGHTS, steps=STEPS, seed=seed)
    )
    return {
        'teacher': scored_by('teacher', teacher_sampler(teacher, 12), task),
        'SFD (host)': scored_by('SFD (host)', host, task),
        'B-DENSE': scored_by('B-DENSE', student, task, branched),
    }


def detectors(task: Task, seed: int) -> dict:
    "By name; the last one has three scores."
    torch.manual_seed(seed)
    models = {
        'isolation forest': IForest(random_state=seed),
        'autoencoder': AutoEncoder(
            random_state=seed, verbose=0, epoch_num=30, hidden_neuron_list=[64, 16]
        ),
    }
    found = {name: on_windows(task, name, model) for name, model in models.items()}
    profiles = {'matrix profile': True, 'matrix profile, not normalised': False}
    if seed == 0:
        found |= {
            name: matrix_profile(task, name, normalize) for name, normalize in profiles.items()
        }
    return found | students(task, seed)


# --- measures


def near(labels: torch.Tensor, margin: int) -> torch.Tensor:  # [T], bool
    places = labels.nonzero()[:, 0]
    steps = torch.arange(len(labels))
    return (steps >= places[0] - margin) & (steps <= places[-1] + margin)


def measured(task: Task, scores, labels: torch.Tensor, threshold: float) -> dict:
    y, s, margin = labels.numpy().astype(int), scores.double().numpy(), task.windows.horizon // 2
    around = near(labels, margin)
    top = near(labels, task.margin)[scores.argmax()]
    return dict(
        roc_auc=roc_auc_score(y, s),
        pr_auc=pr_auc_score(y, s),
        vus_roc=range_roc_vus_score(y, s, max_buffer_size=margin),
        top_is_inside=float(top),
        caught=float((scores[around] > threshold).any()),
    )


def run(task: Task, seed: int) -> list[dict]:
    rows = []
    for detect in detectors(task, seed).values():
        thresholds = {name: alarm_threshold(s, RATE) for name, s in detect(task.train).items()}
        clean = detect(task.clean)
        for kind, cases in task.cases.items():
            each = [(detect(series), labels) for series, labels in cases]
            for name, threshold in thresholds.items():
                measures = [
                    measured(task, found[name], labels, threshold) for found, labels in each
                ]
                rows.append(
                    dict(
                        data=task.name,
                        method=name,
                        seed=seed,
                        anomaly=kind,
                        cases=len(cases),
                        false_alarms=round(float((clean[name] > threshold).float().mean()), 4),
                        **{
                            k: round(float(np.mean([m[k] for m in measures])), 4)
                            for k in measures[0]
                        },
                    )
                )
                print(
                    [
                        rows[-1][k]
                        for k in (
                            'data',
                            'seed',
                            'method',
                            'anomaly',
                            'roc_auc',
                            'top_is_inside',
                            'false_alarms',
                        )
                    ],
                    flush=True,
                )
    return rows


def times(tasks) -> dict:
    "CPU milliseconds of 1,000 points of each signal, all scores of a detector together."
    found = {}
    for task in tasks:
        works = {name: partial(detect, task.clean) for name, detect in detectors(task, 0).items()}
        part = cpu_times(works, 1000 / len(task.clean))
        found |= part | dict(ms=found.get('ms', {}) | {task.name: part['ms']})
    return found


def picture(task: Task, path: Path) -> None:
    "The heart signal and what two scores say of it; readable on a phone: 590 pixels wide."
    import matplotlib.pyplot as plt

    ((series, labels),) = task.cases['internal bleeding']
    detect = students(task, 0)['B-DENSE']
    found, known = detect(series), detect(task.train)
    fig, axes = plt.subplots(3, 1, figsize=(5.9, 5), sharex=True, layout='constrained')
    axes[0].plot(series.values[0], lw=0.8)
    axes[0].set_title('heart signal (UCR archive); shaded: the labelled anomaly', fontsize=11)
    for ax, name in zip(axes[1:], ('B-DENSE, reconstruction', 'B-DENSE, disagreement')):
        ax.plot(found[name], lw=0.8, color='C1')
        ax.axhline(alarm_threshold(known[name], RATE), color='gray', lw=0.8, ls=':')
        ax.set_title(f'{name}; dotted: threshold from training', fontsize=11)
    inside = labels.nonzero()[:, 0]
    for ax in axes:
        ax.axvspan(int(inside[0]) - 20, int(inside[-1]) + 20, color='C3', alpha=0.25, lw=0)
    fig.savefig(path, dpi=100)


def main() -> None:
    numba.set_num_threads(1)  # what stumpy computes with
    results = Results(__doc__, 'anomalies_methods.json', 5)
    tasks = (heart(), weather())
    for seed in results.seeds:
        for task in tasks:
            if not any((r['data'], r['seed']) == (task.name, seed) for r in results.rows):
                results.keep(rate=RATE, rows=results.rows + run(task, seed))
    results.keep_times('CPU milliseconds for 1,000 points, one thread', lambda: times(tasks))
    picture(tasks[0], results.out.with_name('anomalies.png'))


if __name__ == '__main__':
    main()
