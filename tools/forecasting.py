"""Forecast the daily high of Seattle by diffusion teacher, its few-call students and what practitioners use; score all on the same 120 weeks.

Teacher and networks are trained with five seeds; ARIMA and exponential smoothing (statsmodels) are fitted once, and their simulated paths have five seeds.
Everything is learned from 2012-2014 and tested on 2015. How long networks are trained is chosen before, for each kind, by learning from 2012-2013 and
testing on 2014. A second start goes on where the first one stopped. At the end the CPU time of 100 futures is measured, once for each method; `--time` measures it
again. Needs the extra `timeseries`.

    OMP_NUM_THREADS=1 python tools/forecasting.py       # about eight minutes of one quiet core
"""

import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import scoringrules as rules
import torch
from statsmodels.tsa.statespace.exponential_smoothing import ExponentialSmoothing
from statsmodels.tsa.statespace.sarimax import SARIMAX

from applications import Results, cpu_times
from bdense_nb.applications.forecasting import QUICK, coverage, forecast
from bdense_nb.applications.forecasting import forecast_scores, naive_error
from bdense_nb.applications.forecasting import rolling_forecasts, show_forecast
from bdense_nb.applications.forecasting import teacher_sampler, temporal_denoiser
from bdense_nb.applications.forecasting import train_forecaster, truth_at, weather_task
from bdense_nb.applications.forecasting import weather_teacher, weather_world
from bdense_nb.distillation.sfd import sfd
from bdense_nb.lab.experiments import EXPERIMENTS, WEATHER_SFD, WEIGHTS, students
from bdense_nb.training.config import TrainConfig
from bdense_nb.training.loop import fit

ARMS = {'SFD (host)': 'endpoint (SFD)', 'B-DENSE': 'endpoint-heavy'}
PD_ARMS = {'PD (host)': 'K = 1 (PD)', 'PD, B-DENSE': 'K = 2, endpoint-heavy'}
CALLS = (1, 2, 4)
MEMBERS = 50  # futures of an origin
LEVELS = np.arange(1, 100) / 100  # of the quantile regression network
PINBALL = (0.1, 0.5, 0.9)
TRIED = (50, 100, 200, 400, 700)  # iterations


class Task:
    "A year to test on, and what came."

    def __init__(self, year: int):
        self.series, self.train, self.windows, self.starts = weather_task(year)
        self.truth = truth_at(self.series, self.starts, self.windows.horizon)
        self.y = self.truth.double().numpy()  # [N, horizon]
        self.naive = naive_error(self.train)

    def ahead(self, start: int) -> np.ndarray:
        return self.series.times[start : start + self.windows.horizon]


def scored(task: Task, futures: torch.Tensor) -> dict:
    "Scores of equally likely futures [N, n, horizon]."
    ensemble = futures.double().numpy()
    crps = rules.crps_ensemble(task.y, ensemble, m_axis=1, estimator='fair')
    pinball = [
        rules.quantile_score(task.y, np.quantile(ensemble, level, axis=1), level).mean()
        for level in PINBALL
    ]
    return dict(
        forecast_scores(futures, task.truth, task.naive),
        pinball=float(np.mean(pinball)),
        coverage_50=coverage(futures, task.truth, 0.5),
        coverage_90=coverage(futures, task.truth, 0.9),
        crps_by_day=crps.mean(0).round(4).tolist(),
        crps_by_origin=crps.mean(1).round(4).tolist(),
    )


def scored_quantiles(task: Task, quantiles: np.ndarray, seed: int) -> dict:
    "Scores of quantiles [N, horizon, 99]: of as many draws as the others have, of each day alone; paths they have none."
    place = np.random.default_rng(seed).random((len(quantiles), MEMBERS, quantiles.shape[1]))
    draws = np.stack(
        [[np.interp(u, LEVELS, q) for u, q in zip(us.T, qs)] for us, qs in zip(place, quantiles)]
    )
    found = scored(task, torch.from_numpy(draws).transpose(1, 2).float())
    return {k: v for k, v in found.items() if k != 'energy_score'}


# --- what practitioners use


def day_of_year(times: np.ndarray) -> np.ndarray:
    return (times.astype('datetime64[D]') - times.astype('datetime64[Y]')).astype(int)


def last_year(task: Task, start: int) -> torch.Tensor:  # [1, horizon]
    "Seasonal naive: the same days a year before."
    return task.series.values[:, start - 365 : start - 365 + task.windows.horizon]


def climatology(task: Task, start: int) -> torch.Tensor:  # [about 93, horizon]
    "The weeks of the training years that began within 15 days of this day of the year."
    days = day_of_year(task.train.times[: len(task.train) - task.windows.horizon + 1])
    gap = abs(days - day_of_year(task.series.times[start : start + 1]))
    near = np.flatnonzero(np.minimum(gap, 365 - gap) <= 15)
    return task.train.values[0].unfold(0, task.windows.horizon, 1)[torch.from_numpy(near)]


def persistence(
    task: Task, start: int, seed: int = 0, n: int = MEMBERS
) -> torch.Tensor:  # [n, horizon]
    "The last day, and the changes that followed n days of training."
    pick = torch.randint(
        len(task.train) - task.windows.horizon,
        (n,),
        generator=torch.Generator().manual_seed(1000 * seed + start),
    )
    paths = task.train.values[0].unfold(0, task.windows.horizon + 1, 1)[pick]
    return task.series.values[0, start - 1] + paths[:, 1:] - paths[:, :1]


def fourier(task: Task, n: int = 2) -> np.ndarray:  # [T, 2n]
    angle = 2 * np.pi * task.series.times.astype('datetime64[D]').astype(int) / 365.2425
    return np.stack([wave(k * angle) for k in range(1, n + 1) for wave in (np.sin, np.cos)], 1)


class Arima:
    "ARMA(2, 1) around two yearly waves, fitted once on the training years, filtered up to each origin."

    def __init__(self, task: Task):
        self.task = task
        self.y, self.waves = task.series.values[0].double().numpy(), fourier(task)
        self.fitted = SARIMAX(
            self.y[: len(task.train)],
            exog=self.waves[: len(task.train)],
            order=(2, 0, 1),
            trend='c',
        ).fit(disp=0)

    def __call__(self, start: int, seed: int = 0, n: int = MEMBERS) -> torch.Tensor:  # [n, horizon]
        task = self.task
        known = self.fitted.apply(self.y[:start], exog=self.waves[:start])
        paths = known.simulate(
            task.windows.horizon,
            anchor='end',
            repetitions=n,
            exog=self.waves[start : start + task.windows.horizon],
            rng=1000 * seed + start,
        )
        return torch.from_numpy(paths.reshape(task.windows.horizon, n).T.copy())


class Smoothing:
    "Simple exponential smoothing of what differs from the season, fitted once on the training years."

    def __init__(self, task: Task):
        self.task = task
        self.y = task.windows.scaled(task.series)[0].double().numpy()
        self.fitted = ExponentialSmoothing(self.y[: len(task.train)]).fit(disp=0)

    def __call__(self, start: int, seed: int = 0, n: int = MEMBERS) -> torch.Tensor:  # [n, horizon]
        task = self.task
        paths = self.fitted.apply(self.y[:start]).simulate(
            task.windows.horizon, anchor='end', repetitions=n, rng=1000 * seed + start
        )
        paths = torch.from_numpy(paths.reshape(task.windows.horizon, n).T.copy()).float()
        return task.windows.unscaled(paths[:, None], task.ahead(start))[:, 0]


def quantile_network(task: Task, cfg: TrainConfig):
    "The forecaster's own network and training, asked for 99 quantiles of each day."
    net = temporal_denoiser(task.windows, seed=cfg.seed).net
    net.out = torch.nn.Conv1d(net.config['width'], len(LEVELS), 1)
    x0, cond = task.windows.cut(task.train)
    levels = torch.from_numpy(LEVELS).float()[:, None]

    def step(model, i):
        pick = torch.randint(
            len(x0), (64,), generator=torch.Generator().manual_seed(cfg.seed * 1_000_003 + i)
        )
        gap = x0[pick] - model(
            torch.zeros_like(x0[pick]), torch.zeros(64), {k: v[pick] for k, v in cond.items()}
        )
        yield torch.maximum(levels * gap, (levels - 1) * gap).mean()

    return fit(net.train(), step, cfg, show=False).ema.eval()


@torch.no_grad()
def quantiles_of(task: Task, net, starts) -> np.ndarray:  # [N, horizon, 99]
    x = torch.zeros(len(starts), 1, task.windows.horizon)
    out = net(x, torch.zeros(len(x)), task.windows.conditions(task.series, starts))
    each = [task.windows.unscaled(row[:, None], task.ahead(s))[:, 0] for row, s in zip(out, starts)]
    return torch.stack(each).sort(1).values.permute(0, 2, 1).double().numpy()


# --- the comparison


def choose() -> list[dict]:
    "CRPS of 2014 by iterations, for the diffusion teacher and for the quantile network: two seeds each."
    task, rows = Task(2014), []
    for steps in TRIED:
        for seed in range(2):
            cfg = replace(QUICK, steps=steps, seed=seed)
            teacher = teacher_sampler(train_forecaster(task.train, task.windows, cfg, show=False))
            futures = rolling_forecasts(teacher, task.series, task.starts, MEMBERS)[:, :, 0]
            quantiles = quantiles_of(task, quantile_network(task, cfg), task.starts)
            rows.append(
                dict(
                    iterations=steps,
                    seed=seed,
                    teacher=scored(task, futures)['crps'],
                    quantile_network=scored_quantiles(task, quantiles, seed)['crps'],
                )
            )
            print('on 2014:', rows[-1], flush=True)
    return rows


def best(rows: list[dict], kind: str) -> int:  # iterations
    return min(TRIED, key=lambda steps: sum(r[kind] for r in rows if r['iterations'] == steps))


def baselines(task: Task, seeds: int, steps: int) -> list[dict]:
    rows = []

    def add(method, seed, scores):
        rows.append(dict(method=method, seed=seed, **scores))
        print(method, 'seed', seed, f'CRPS {scores["crps"]:.3f}', flush=True)

    error = (torch.stack([last_year(task, s)[0] for s in task.starts]) - task.truth).abs().mean(1)
    add(
        'seasonal naive',
        0,
        dict(
            crps=float(error.mean()),
            mase=float(error.mean()) / task.naive,
            crps_by_origin=error.tolist(),
        ),
    )
    makers = {
        'climatology': lambda s, seed: climatology(task, s),
        'persistence': lambda s, seed: persistence(task, s, seed),
    }
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # statsmodels warns of a series without an index
        makers |= {'exponential smoothing': Smoothing(task), 'ARIMA': Arima(task)}
        for name, make in makers.items():
            for seed in range(1 if name == 'climatology' else seeds):
                members = [make(s, seed) for s in task.starts]
                n = min(map(len, members))
                futures = torch.stack([m[torch.linspace(0, len(m) - 1, n).long()] for m in members])
                add(name, seed, scored(task, futures))
    for seed in range(seeds):
        net = quantile_network(task, replace(QUICK, steps=steps, seed=seed))
        add(
            'quantile network',
            seed,
            scored_quantiles(task, quantiles_of(task, net, task.starts), seed),
        )
    return rows


def drawn(task: Task, seed: int, method: str, sampler) -> dict:
    "A row of a sampler."
    futures = rolling_forecasts(sampler, task.series, task.starts, MEMBERS)[:, :, 0]
    row = dict(method=method, calls=sampler.nfe, seed=seed, **scored(task, futures))
    print(method, sampler.nfe, 'calls, seed', seed, f'CRPS {row["crps"]:.3f}', flush=True)
    return row


def halved(name: str, seed: int, **changes) -> list:
    "Progressive Distillation's students of one, two and four calls."
    arm = next(a for a in EXPERIMENTS['forecasting_pd'].arms if a.name == PD_ARMS[name])
    arm = replace(arm, cfg=replace(arm.cfg, **changes))
    made = [student for student, _ in students(weather_world(), arm, seed, None, show=False)]
    return sorted((s for s in made if s.nfe in CALLS), key=lambda s: s.nfe)


def halving(task: Task, seed: int) -> list[dict]:
    return [drawn(task, seed, name, student) for name in PD_ARMS for student in halved(name, seed)]


def diffusion(task: Task, seed: int) -> list[dict]:
    teacher = weather_teacher(seed)
    rows = [drawn(task, seed, 'teacher', teacher_sampler(teacher))]
    for calls in CALLS:
        for name, weights in ARMS.items():
            student = sfd(
                teacher, replace(WEATHER_SFD, nfe=calls, seed=seed, **WEIGHTS[weights]), show=False
            )
            rows.append(drawn(task, seed, name, student))
    return rows


def times(task: Task) -> dict:
    "CPU milliseconds of 100 futures from one origin; how long a network was trained does not matter."
    start, teacher = task.starts[0], weather_teacher(0)
    samplers = {'teacher, 24 calls': teacher_sampler(teacher)}
    for calls in CALLS:
        for name, weights in ARMS.items():
            samplers[f'{name}, {calls} calls'] = sfd(
                teacher, replace(WEATHER_SFD, nfe=calls, steps=1, **WEIGHTS[weights]), show=False
            )
    for name in PD_ARMS:
        samplers |= {f'{name}, {s.nfe} calls': s for s in halved(name, 0, updates=1)}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        net, arima, smoothing = (
            quantile_network(task, replace(QUICK, steps=1)),
            Arima(task),
            Smoothing(task),
        )
        works = {
            'seasonal naive': lambda: last_year(task, start),
            'climatology': lambda: climatology(task, start),
            'persistence': lambda: persistence(task, start, n=100),
            'exponential smoothing': lambda: smoothing(start, n=100),
            'ARIMA': lambda: arima(start, n=100),
            'quantile network': lambda: quantiles_of(task, net, [start]),
        }
        return cpu_times(
            works
            | {
                name: partial(forecast, sampler, task.series[:start], n=100)
                for name, sampler in samplers.items()
            }
        )


def picture(task: Task, student, path: Path) -> None:
    "Readable on a phone: 590 pixels wide."
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 3, figsize=(5.9, 2.9), sharey=True, layout='constrained')
    for ax, date in zip(axes, ('2015-02-10', '2015-06-24', '2015-11-20')):
        start = int(np.searchsorted(task.series.times, np.datetime64(date)))
        show_forecast(
            ax,
            task.series[:start],
            forecast(student, task.series[:start], origin=date),
            task.series,
        )
        ax.tick_params(axis='x', labelsize=9)
    axes[0].set_ylabel('daily high, °C')
    fig.legend(*axes[0].get_legend_handles_labels(), loc='outside lower center', ncols=5)
    fig.savefig(path, dpi=100)


def main() -> None:
    results = Results(__doc__, 'forecasting_methods.json', 5)
    task = Task(2015)
    about = dict(
        data='seattle_weather, temp_max: 2012-2014 to learn from, 2015 to test',
        origins=len(task.starts),
        horizon=task.windows.horizon,
        context=task.windows.context,
        members=MEMBERS,
        naive=task.naive,
    )
    if not results.rows:
        chosen = choose()
        results.keep(
            **about,
            chosen=chosen,
            rows=baselines(task, len(results.seeds), best(chosen, 'quantile_network')),
        )
    for seed in results.seeds:
        if not any((r['method'], r['seed']) == ('teacher', seed) for r in results.rows):
            results.keep(rows=results.rows + diffusion(task, seed))
        if not any((r['method'], r['seed']) == ('PD (host)', seed) for r in results.rows):
            results.keep(rows=results.rows + halving(task, seed))
    results.keep_times(
        'CPU milliseconds for 100 futures of one origin, one thread', lambda: times(task)
    )
    student = sfd(
        weather_teacher(0), replace(WEATHER_SFD, nfe=2, **WEIGHTS[ARMS['B-DENSE']]), show=False
    )
    picture(task, student, results.out.with_name('forecasting.png'))


if __name__ == '__main__':
    main()
