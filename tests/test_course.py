"The course: lessons keep to their size, mistakes get the hint that names them, and every exercise has a solution."

import ast
import contextlib
import io
import re
from dataclasses import replace
from xml.etree import ElementTree

import nbformat
import pytest
import torch
from torch import nn

from bdense_nb.app.exercises import CAPSTONE, EXERCISES, check
from bdense_nb.core import check_answer, data_dir, read_json, sample_noise
from bdense_nb.diffusion.data import toy_2d
from bdense_nb.diffusion.stored import load_teacher
from bdense_nb.diffusion.samplers import Sampler, afs_x0, euler_step, sample
from bdense_nb.diffusion.schedules import karras_sigmas
from bdense_nb.distillation.branches import branch
from bdense_nb.distillation.sfd import SFDConfig, sfd
from bdense_nb.evaluation.intervals import paired_interval, student_t
from pictures import method
from run_notebooks import ANSWER, NBS, hide_answers, notebooks, stored
from solutions import LESSONS, SOLUTIONS, exercises, lesson_solutions, questions, quoted_questions

COURSE = [name for name in LESSONS if name.startswith('course/')]
NUMBERED = COURSE[:8]


def cells(name):
    return stored(NBS / f'{name}.ipynb').cells


def words(name):
    return sum(len(c.source.split()) for c in cells(name) if c.cell_type == 'markdown')


def code(name):
    return [
        line
        for c in cells(name)
        if c.cell_type == 'code'
        for line in c.source.splitlines()
        if line.strip()
    ]


def test_all_notebooks_together_are_43_500_words_at_most():
    assert sum(map(words, (*LESSONS, SOLUTIONS, 'index'))) <= 43_500


def test_the_course_is_eight_lessons_and_a_capstone():
    assert [re.match(r'course/(\d)', name)[1] for name in COURSE] == list('123456789') and COURSE[
        8
    ] == 'course/9_capstone'


@pytest.mark.parametrize('name', NUMBERED)
def test_a_lesson_keeps_to_its_size(name):
    lines = code(name)
    assert words(name) <= 1200 and len(lines) <= 100 and max(map(len, lines)) <= 88
    imports = re.findall(
        r'^(?:from|import) (?:[^(\n]*\([^)]*\)|[^\n]*)', '\n'.join(lines), flags=re.M
    )
    assert sum(part.count('\n') + 1 for part in imports) <= 8


PREDICTING = [*NUMBERED, 'applications/01_forecasting', 'applications/02_anomalies']


@pytest.mark.parametrize('name', PREDICTING)
def test_the_answer_of_a_prediction_is_not_shown_before_its_cell_is_run(name):
    "No viewer shows it, and the site on a click alone; it is kept with the cell, and nothing between the question and the answer has a picture."
    own = cells(name)
    asked = next(i for i, c in enumerate(own) if '**Prediction.**' in c.source)
    answers = [i for i, c in enumerate(own) if ANSWER in c.metadata]
    shown = nbformat.read(NBS / f'{name}.ipynb', 4).cells
    assert answers and all(
        own[i].outputs and not shown[i].outputs and 'jupyter' not in shown[i].metadata
        for i in answers
    )
    assert answers[0] > asked and not any(
        'image/png' in o.get('data', {})
        for c in own[asked : answers[0]]
        for o in c.get('outputs', [])
    )


def test_nothing_else_asks_for_a_prediction():
    assert {
        p.relative_to(NBS).with_suffix('').as_posix()
        for p in notebooks()
        if '**Prediction.**' in p.read_text(encoding='utf-8')
    } == set(PREDICTING)


def test_answers_are_stored_and_come_back(tmp_path):
    def output():
        return nbformat.v4.new_output('stream', text='68%\n')

    nb = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell('print(1)', outputs=[output()], metadata=how)
            for how in ({ANSWER: []}, {})
        ]
    )
    hide_answers(nb)
    nbformat.write(nb, tmp_path / 'a.ipynb')
    assert [c.outputs for c in nbformat.read(tmp_path / 'a.ipynb', 4).cells] == [[], [output()]]
    assert [c.outputs for c in stored(tmp_path / 'a.ipynb').cells] == [[output()], [output()]]


ARIMA = torch.tensor(
    [
        r['crps_by_day']
        for r in read_json(data_dir() / 'results' / 'forecasting_methods.json')['rows']
        if r['method'] == 'ARIMA'
    ]
)


def rolling(x, days, reduce=torch.std, fill=99.0):
    return torch.stack(
        [
            reduce(x[t - days + 1 : t + 1]) if t >= days - 1 else torch.tensor(fill)
            for t in range(len(x))
        ]
    )


def heun(
    D,
    x,
    t,
    s,
    mean=lambda d, e: (d + e) / 2,
    first=lambda x, guess, t, s: (x - guess) / t,
    second=lambda x, guess, t, s: (x - guess) / s,
):
    slope = first(x, D(x, t), t, s)
    y = x + (s - t) * slope
    return x + (s - t) * mean(slope, second(y, D(y, s), t, s))


def walk(D, x, grid, ask=lambda t, s: t, divide=lambda t, s: t):
    for t, s in zip(grid[:-1].tolist(), grid[1:].tolist()):
        x = x + (s - t) * (x - D(x, ask(t, s))) / divide(t, s)
    return x


def gap(student, teacher, sigmas, first=0, scale=20.0):
    return student.sample(500) - sample(
        teacher, scale * sample_noise(range(first, first + 500), (2,)), sigmas
    )


def midpoint(D, x, t, s, m):
    half = euler_step(x, D(x, t), t, m)
    return x + (s - t) * (half - D(half, m)) / m


def mixture(
    x,
    means,
    spread,
    shrink,
    dim=1,
    inside=lambda means, apart, shrink: means + shrink * apart,
    size=lambda apart: apart.square().sum(-1),
):
    apart = x[:, None] - means
    return (
        (-size(apart) / (2 * spread)).softmax(dim)[..., None] * inside(means, apart, shrink)
    ).sum(1)


def blobs(x, sigma, m, std, **how):
    return mixture(x, m, std**2 + sigma**2, std**2 / (std**2 + sigma**2), **how)


def landing(D, x, t, mid, end):  # the teacher's two steps: both guesses, and where it stands
    first = D(x, t)
    half = euler_step(x, first, t, mid)
    second = D(half, mid)
    return first, second, euler_step(half, second, mid, end)


def blend(landed, w):
    return (1 - w) * landed[0] + w * landed[1]


def pd_target(first, second, x, t, mid, end):
    y = euler_step(euler_step(x, first, t, mid), second, mid, end)
    return (y - end / t * x) / (1 - end / t)


def pd_walk(
    D,
    x,
    t,
    mid,
    end,
    half=lambda x, g, t, mid: g + mid / t * (x - g),
    then=lambda x, g, t, mid, end: g + end / mid * (x - g),
    above=lambda t, end: end / t,
    below=lambda t, end: end / t,
):
    y = half(x, D(x, t), t, mid)
    y = then(y, D(y, mid), t, mid, end)
    return (y - above(t, end) * x) / (1 - below(t, end))


def analytic(x, levels):
    return euler_step(x, afs_x0(x, levels[0]), levels[0], levels[1])


def rollout(
    student,
    y,
    fine,
    coarse,
    update,
    start=lambda x, y, n: x,
    target=lambda n: 4 * n + 4,
    size=lambda gap: gap.abs().sum(1).mean(),
    detach=True,
):
    x, losses = analytic(y[0], coarse), []
    for n in (1, 2):
        x = start(x, y, n)
        x = euler_step(x, student(x, coarse[n]), coarse[n], coarse[n + 1])
        loss = size(x - y[target(n)])
        update(loss)
        losses.append(loss.item())
        if detach:
            x = x.detach()
    return losses


def layer(weight, bias):
    new = nn.Linear(weight.shape[1], len(weight))
    with torch.no_grad():
        new.weight.copy_(weight)
        new.bias.copy_(bias)
    return new


def cut(rows):
    return lambda wide, K: layer(rows(wide.weight, K), rows(wide.bias, K))


def neighbours(y, x, levels):  # ratios of neighbouring levels
    ratio = (levels[1:] / levels[:-1])[:, None]
    return (y - ratio * x[:, None]) / (1 - ratio)


def spread(a, b, factor):  # an interval with a given half-width
    d = torch.tensor(a) - torch.tensor(b)
    return d.mean(), d.mean() - factor(d), d.mean() + factor(d)


def with_half(a, b):
    mean, _, high = spread(a, b, lambda d: T * d.std() / 5**0.5)
    return mean, mean - high, high - mean


def stands(
    D,
    x,
    grid,
    told=lambda t, s: t,
    give=lambda x, guess: guess,
    move=lambda x, guess, t, s: x + (s - t) * (x - guess) / t,
):
    "A walk that gives something else than where it ends, or that moves in another way."
    for t, s in zip(grid[:-1].tolist(), grid[1:].tolist()):
        guess = D(x, told(t, s))
        x = move(x, guess, t, s)
    return give(x, guess)


def network_first(student, y, *rest):  # without the analytic step
    coarse = rest[1]
    return rollout(
        student,
        y,
        *rest,
        start=lambda x, y, n: (
            euler_step(y[0], student(y[0], coarse[0]), coarse[0], coarse[1]) if n == 1 else x
        ),
    )


class Taught:
    "A student of the spiral's teacher that is trained when it is asked for."

    def __init__(self, about={}, **how):
        self.how, self.about = dict(substeps=8, steps=2, batch=32, lr=2e-3, shape=(2,)) | how, about

    def student(self):
        one = sfd(TEACHER, SFDConfig(nfe=2, K=1, **self.how), show=False)
        return replace(one, about=self.about) if self.about else one


T = student_t(0.95, 4)
TEACHER = load_teacher('spiral', 'cpu')
BOARD = toy_2d('checkerboard', 4000)
MISTAKES = [
    ('1.1', lambda x, g, t, s: x - (s - t) * (x - g) / t, 's - t, which is negative'),
    ('1.1', lambda x, g, t, s: g, 'jumps all the way'),
    ('1.1', lambda x, g, t, s: x + (s - t) * (x - g), 'division is missing'),
    ('1.1', lambda x, g, t, s: x + (s - t) * (x - g) / s, 'not by s'),
    ('1.1', lambda x, g, t, s: (s - t) * (x - g) / t, 'add it to x'),
    ('1.1', lambda x, g, t, s: x + (s - t) * (g - x) / t, 'walks away'),
    ('1.1', lambda x, g, t, s: s / t * g + (1 - s / t) * x, 'the other way round'),
    ('1.1', lambda x, g, t, s: (x - g) / t, 'the slope alone'),
    ('1.1', lambda x, g, t, s: x + (s - t) * x - g / t, 'with parentheses'),
    ('1.1', lambda x, g, t, s: x + (s - t) * (x - g / t), 'with parentheses'),
    (
        '1.2',
        lambda D, x, grid: stands(
            D,
            x,
            grid,
            give=lambda x, guess: x,
            move=lambda x, guess, t, s: guess + s * (x - guess),
        ),
        'division by t is missing',
    ),
    ('2.1', 0.5, 'where it is told nothing'),
    ('2.1', 0.48, 'the spread of the spiral'),
    (
        '4.1',
        lambda D, x, t, m, s: (s / t * x - landing(D, x, t, m, s)[2]) / (1 - s / t),
        'the signs',
    ),
    (
        '4.1',
        lambda D, x, t, m, s: (euler_step(x, D(x, t), t, m) - s / t * x) / (1 - s / t),
        'it takes a second one',
    ),
    (
        '4.1',
        lambda D, x, t, m, s: (
            (landing(D, x, t, m, s)[2] - s / t * euler_step(x, D(x, t), t, m)) / (1 - s / t)
        ),
        'the student starts at x',
    ),
    ('1.2', lambda D, x, grid: walk(D, x, grid, ask=lambda t, s: s), 'is told s'),
    (
        '1.2',
        lambda D, x, grid: walk(D, x, grid, ask=lambda t, s: s, divide=lambda t, s: s),
        'is told s',
    ),
    ('1.2', lambda D, x, grid: walk(D, x, grid, divide=lambda t, s: s), 'divide by s'),
    (
        '1.2',
        lambda D, x, grid: (
            x + sum((s - t) * (x - D(x, t)) / t for t, s in zip(grid[:-1], grid[1:]))
        ),
        'same noise',
    ),
    ('1.2', lambda D, x, grid: D(x, grid[0]), 'has not begun'),
    ('1.2', lambda D, x, grid: x, 'nothing has moved'),
    ('1.2', lambda D, x, grid: walk(D, x, grid, divide=lambda t, s: -t), 'walks away'),
    ('1.2', lambda D, x, grid: walk(D, x, grid[:2]), 'inside the loop'),
    (
        '1.2',
        lambda D, x, grid: walk(D, x, grid, ask=lambda t, s: grid[0]),
        'not always at sigmas[0]',
    ),
    (
        '1.2',
        lambda D, x, grid: walk(D, x, grid, ask=lambda t, s: grid[0], divide=lambda t, s: grid[0]),
        'not always at sigmas[0]',
    ),
    ('2.1', BOARD.var(), 'variance'),
    ('2.1', BOARD.abs().max(), 'largest'),
    ('2.1', (0.4, 0.5), 'one number'),
    ('2.1', BOARD.std, 'call it'),
    ('2.1', 3.0, 'all coordinates together'),
    ('2.2', lambda *a: gap(*a, first=500).square().mean().sqrt(), 'different noise'),
    ('2.2', lambda *a: gap(*a, scale=1.0).square().mean().sqrt(), 'multiplied'),
    ('2.2', lambda *a: gap(*a).square().mean(), 'take its root'),
    ('2.2', lambda *a: gap(*a).abs().mean(), 'absolute differences'),
    ('2.2', lambda *a: gap(*a).square().sum(1).mean().sqrt(), 'mean over coordinates'),
    ('2.2', lambda *a: gap(*a, scale=80.0).square().mean().sqrt(), 'need not be 80'),
    ('2.2', lambda *a: gap(*a, first=1500).square().mean().sqrt(), 'two strangers'),
    (
        '2.2',
        lambda student, D, sigmas: (
            (
                student.sample(500)
                - sample(
                    D,
                    sigmas[0] * torch.randn(500, 2, generator=torch.Generator().manual_seed(3)),
                    sigmas,
                )
            )
            .square()
            .mean()
            .sqrt()
        ),
        'two strangers',
    ),
    ('3.1', lambda D, x, t, s: euler_step(x, D(x, t), t, s), 'once more'),
    ('3.1', lambda D, x, t, s: heun(D, x, t, s, mean=lambda d, e: e), 'second slope alone'),
    (
        '3.1',
        lambda D, x, t, s: heun(D, x, t, s) + euler_step(x, D(x, t), t, s) - x,
        'walk from the start',
    ),
    (
        '3.1',
        lambda D, x, t, s: heun(D, x, t, s, second=lambda x, guess, t, s: (x - guess) / t),
        'it was asked at',
    ),
    ('3.1', lambda D, x, t, s: 2 * x - heun(D, x, t, s), 'away from the guess'),
    (
        '3.1',
        lambda D, x, t, s: (
            x
            + (s - t)
            * (
                (x - D(x, t)) / t
                + (euler_step(x, D(x, t), t, s) - D(euler_step(x, D(x, t), t, s), t)) / s
            )
            / 2
        ),
        'ask there with s',
    ),
    (
        '3.1',
        lambda D, x, t, s: (
            x + (s - t) * ((x - D(x, t)) / t + (x - D(euler_step(x, D(x, t), t, s), s)) / s) / 2
        ),
        'begins where the first',
    ),
    (
        '3.1',
        lambda D, x, t, s: x + (s - t) * ((x - D(x, t)) / t + (x - D(x, s)) / s) / 2,
        'not at (x, s)',
    ),
    (
        '3.1',
        lambda D, x, t, s: (
            x + (s - t) * ((x - D(x, t)) / t + (euler_step(x, D(x, t), t, s) - D(x, s)) / s) / 2
        ),
        'not at (x, s)',
    ),
    ('3.1', lambda D, x, t, s: midpoint(D, x, t, s, (t + s) / 2), 'midpoint rule'),
    ('3.1', lambda D, x, t, s: midpoint(D, x, t, s, (t * s) ** 0.5), 'midpoint rule'),
    (
        '3.1',
        lambda D, x, t, s: euler_step(x, (D(x, t) + D(euler_step(x, D(x, t), t, s), s)) / 2, t, s),
        'not of the two guesses',
    ),
    ('3.1', lambda D, x, t, s: 2 * heun(D, x, t, s) - x, 'the sum of the two'),
    (
        '3.2',
        lambda x, sigma, m, std: mixture(x, m, std**2 + sigma**2, -(std**2) / (std**2 + sigma**2)),
        'the other way round',
    ),
    (
        '3.2',
        lambda x, sigma, m, std: mixture(x, m, std**2 + sigma**2, sigma**2 / (std**2 + sigma**2)),
        'little where the noise',
    ),
    ('3.2', lambda x, sigma, m, std: mixture(x, m, sigma**2, 0.0), 'points without width'),
    ('3.2', lambda x, sigma, m, std: mixture(x, m, std**2 + sigma**2, 0.0), 'moves towards x'),
    (
        '3.2',
        lambda x, sigma, m, std: mixture(x, m, sigma**2, std**2 / (std**2 + sigma**2)),
        'take the blobs for points',
    ),
    (
        '3.2',
        lambda x, sigma, m, std: mixture(x, m, (std + sigma) ** 2, std**2 / (std + sigma) ** 2),
        'variances add',
    ),
    (
        '3.2',
        lambda x, sigma, m, std: mixture(x, m, std**2 + sigma**2, std**2 / (std**2 + sigma**2), 0),
        'softmax over blobs',
    ),
    (
        '3.2',
        lambda x, sigma, m, std: mixture(x, m, (std + sigma) ** 2, std**2 / (std**2 + sigma**2)),
        'variances add',
    ),
    (
        '3.2',
        lambda x, sigma, m, std: mixture(
            x, m, (std**2 + sigma**2) / 2, std**2 / (std**2 + sigma**2)
        ),
        'by 2 times the variance',
    ),
    (
        '3.2',
        lambda x, sigma, m, std: mixture(x, m, std**2 + sigma**2, std / (std**2 + sigma**2) ** 0.5),
        'not of standard deviations',
    ),
    ('4.1', lambda *a: landing(*a)[1], 'tempting'),
    ('4.1', lambda *a: sum(landing(*a)[:2]) / 2, 'equal weights'),
    ('4.1', lambda *a: landing(*a)[2], 'what must it predict'),
    ('4.1', lambda *a: landing(*a)[0], 'not for two'),
    (
        '4.1',
        lambda D, x, t, m, s: (
            D(x, t) * (1 - s / m) / (1 - s / t)
            + landing(D, x, t, m, s)[1] * (s / m - s / t) / (1 - s / t)
        ),
        'wrong way round',
    ),
    ('4.1', lambda D, x, t, m, s: pd_target(D(x, t), D(x, m), x, t, m, s), 'not at x'),
    (
        '4.1',
        lambda D, x, t, m, s: pd_target(D(x, t), D(euler_step(x, D(x, t), t, m), t), x, t, m, s),
        'not at t',
    ),
    (
        '4.1',
        lambda D, x, t, m, s: blend(landing(D, x, t, m, s), (1 - m / t) / (1 - s / t)),
        'omega has the ratio of the second step',
    ),
    ('4.1', lambda D, x, t, m, s: landing(D, x, t, m, s)[2] - s / t * x, 'is missing'),
    ('4.1', lambda D, x, t, m, s: blend(landing(D, x, t, m, s), 1 - s / m), 'is missing'),
    (
        '4.1',
        lambda D, x, t, m, s: (landing(D, x, t, m, s)[2] - s / m * x) / (1 - s / m),
        'end/t, not end/mid',
    ),
    ('4.2', lambda grid: grid.unfold(0, 3, 1), 'where the last one ends'),
    ('4.2', lambda grid: grid[::2].unfold(0, 2, 1), 'in the middle'),
    ('4.2', lambda grid: grid.reshape(3, 3), 'share a level'),
    ('4.2', lambda grid: grid.unfold(0, 3, 2).flip(1), 'levels fall'),
    ('4.2', lambda grid: grid.unfold(0, 3, 4), 'is missing'),
    ('5.1', lambda p, a, f: p * a - f, 'n - 1 steps'),
    ('5.1', lambda p, a, f: a * (p - 1), 'one call is free'),
    ('5.1', lambda p, a, f: a * (p - 1 - f), 'not the whole step'),
    ('5.1', lambda p, a, f: p - 1 - f, 'asks twice'),
    ('5.1', lambda p, a, f: a * (p - 1) + f, 'not more'),
    ('5.1', lambda p, a, f: a * (p - 1) - 1, 'only with afs'),
    ('5.2', lambda *a: rollout(*a, start=lambda x, y, n: y[4 * n]), "the teacher's state, where"),
    (
        '5.2',
        lambda *a: rollout(*a, start=lambda x, y, n: y[4] if n == 1 else x),
        'the teacher stands at y[4]',
    ),
    (
        '5.2',
        lambda *a: rollout(*a, start=lambda x, y, n: y[0] if n == 1 else x),
        'analytic step is missing',
    ),
    (
        '5.2',
        lambda *a: rollout(*a, start=lambda x, y, n: analytic(y[0], a[2]) if n == 1 else x),
        'not at fine[1]',
    ),
    ('5.2', lambda *a: rollout(*a[:4], lambda loss: None), 'call update'),
    ('5.2', lambda *a: rollout(*a, target=lambda n: 4 * n), 'y[4*n + 4]'),
    ('5.2', lambda *a: rollout(*a, size=lambda gap: gap.abs().mean()), 'average over both'),
    ('5.2', lambda *a: rollout(*a, start=lambda x, y, n: y[0]), 'only the first step'),
    ('5.2', lambda *a: rollout(*a)[:1], 'one loss for each'),
    ('5.2', lambda *a: rollout(*a, detach=False), 'detach the state'),
    ('5.2', lambda *a: rollout(*a, size=lambda gap: gap.square().sum(1).mean()), 'not its square'),
    ('5.2', lambda *a: rollout(*a, size=lambda gap: gap.square().mean()), 'not its square'),
    (
        '5.2',
        lambda *a: rollout(*a, start=lambda x, y, n: a[3][1] / a[3][0] * y[0] if n == 1 else x),
        'sqrt(1 + t**2), not by t',
    ),
    ('5.2', lambda *a: rollout(*a, target=lambda n: 4 * n + 3), 'at the end of that step'),
    ('5.2', lambda *a: rollout(*a, target=lambda n: 4 * n + 2), 'compare with the iteration above'),
    ('6.1', cut(lambda v, K: v[:3]), 'first branch'),
    ('6.1', cut(lambda v, K: v[K - 1 :: K]), 'alternate'),
    ('6.1', lambda wide, K: layer(wide.weight[-3:], wide.bias[:3]), 'the bias has rows'),
    ('6.1', lambda wide, K: wide.weight[-3:], 'a layer is asked for'),
    ('6.1', lambda wide, K: wide, 'keeps 6 outputs'),
    ('6.1', cut(lambda v, K: v[3:]), 'of K = 4 branches yours keeps 9'),
    ('6.1', cut(lambda v, K: v[3:6]), 'the last of two branches'),
    ('6.1', cut(lambda v, K: v.unflatten(0, (K, 3)).mean(0)), 'not their mean'),
    ('6.2', lambda y, x, t, s: (y - s[-1] / t * x[:, None]) / (1 - s[-1] / t), 'still the same'),
    ('6.2', lambda y, x, t, s: y, 'must land'),
    ('6.2', lambda y, x, t, s: y - (s / t)[:, None] * x[:, None], 'still multiplied'),
    ('6.2', lambda y, x, t, s: y[:, -1], 'has the shape [64, 4, 2], yours [64, 2]'),
    ('6.2', lambda y, x, t, s: (y - s[0] / t * x[:, None]) / (1 - s[0] / t), 'first level'),
    ('6.2', lambda y, x, t, s: 0 * y, 'off their states'),
    (
        '6.2',
        lambda y, x, t, s: (y - (t / s)[:, None] * x[:, None]) / (1 - (t / s)[:, None]),
        'upside down',
    ),
    (
        '6.2',
        lambda y, x, t, s: neighbours(y, x, torch.cat([s.new_tensor([t]), s])),
        'the branch before it',
    ),
    (
        '7.1',
        lambda a, b: [spread(a, b, lambda d: T * d.std() / 5**0.5)[i] for i in (1, 0, 2)],
        'order is not',
    ),
    ('7.1', lambda a, b: spread(b, a, lambda d: T * d.std() / 5**0.5), 'the sign'),
    ('7.1', lambda a, b: spread(a, b, lambda d: T * d.std()), 'divide by sqrt(n)'),
    ('7.1', lambda a, b: spread(a, b, lambda d: 1.96 * d.std() / 5**0.5), '1.96 is for many'),
    (
        '7.1',
        lambda a, b: spread(a, b, lambda d: T * d.std(correction=0) / 5**0.5),
        'divides by n - 1',
    ),
    (
        '7.1',
        lambda a, b: spread(a, b, lambda d: student_t(0.95, 5) * d.std() / 5**0.5),
        'degrees of freedom',
    ),
    (
        '7.1',
        lambda a, b: spread(
            a, b, lambda d: T * ((torch.tensor(a).var() + torch.tensor(b).var()) / 5).sqrt()
        ),
        'not of the two arms',
    ),
    ('7.1', lambda a, b: spread(a, b, lambda d: T * d.std() / 5**0.5)[0::2], 'not the half-width'),
    ('7.1', lambda a, b: with_half(a, b)[:2], 'not the half-width'),
    ('7.1', lambda a, b: with_half(a, b), 'not the half-width'),
    ('7.1', paired_interval, 'three numbers, please'),
    ('7.1', lambda a, b: (0.0, (0.0, 0.0)), 'three numbers in a row'),
    ('7.1', lambda a, b: (a - b).mean(), 'a and b are lists'),
    ('7.1', lambda a, b: spread(a, b, lambda d: T * d.std() / 5), 'falls with sqrt(n)'),
    ('7.1', lambda a, b: spread(a, b, lambda d: T * d.var() / 5**0.5), 'that is the variance'),
    ('7.2', lambda run, seeds: [run(4, s) - run(1, s + 100) for s in seeds], 'different seeds'),
    (
        '7.2',
        lambda run, seeds: sum(run(4, s) - run(1, s) for s in seeds) / 6,
        'one difference for each seed',
    ),
    ('7.2', lambda run, seeds: [run(1, s) - run(4, s) for s in seeds], 'minus the host'),
    (
        '7.2',
        lambda run, seeds: [
            a - b
            for a, b in zip(sorted(run(4, s) for s in seeds), sorted(run(1, s) for s in seeds))
        ],
        'breaks the pairs',
    ),
    ('7.2', lambda run, seeds: [abs(run(4, s) - run(1, s)) for s in seeds], 'the sign counts'),
    ('7.2', lambda run, seeds: [run(4, s) / run(1, s) - 1 for s in seeds], 'relative'),
    ('8.1', 24, 'two micro-batches'),
    ('8.1', 96, 'share the batch'),
    ('8.1', 192, 'the whole batch'),
    ('8.1', 48, 'does not double'),
    ('8.1', 384, 'does not multiply'),
    ('8.1', 1536, 'not one for each GPU'),
    ('8.1', 8, 'the number of GPUs'),
    ('8.2', lambda a: (1 - a).sqrt(), 'still the same'),
    ('8.2', lambda a: (1 - a) / a, 'its root'),
    ('8.2', lambda a: (a / (1 - a)).sqrt(), 'upside down'),
    ('8.2', lambda a: 1 - a, 'noise in z'),
    ('8.2', lambda a: (1 / a).sqrt(), 'the noise is missing'),
    ('8.2', lambda a: (1 - a).sqrt() / a, 'not by alpha_bar'),
    ('8.2', lambda a: a.sqrt(), 'scale of the signal'),
    *[
        ('forecasting.1', found, said)
        for found, said in (
            (ARIMA[:, -1].mean(), 'the last day'),
            (ARIMA[:, 1].mean(), 'counts from 0'),
            (ARIMA.mean(), 'over the week'),
            (ARIMA[0, 0], 'one seed'),
            (ARIMA[:, 0].sum(), 'their sum'),
        )
    ],
    ('forecasting.2', 'the calendar', 'known in advance'),
    ('forecasting.2', 'context', 'looks back on'),
    ('forecasting.2', 'the future', 'seven days of every window'),
    ('forecasting.2', 'x0', 'are their values divided'),
    ('forecasting.2', 'no idea what you mean', 'what does Windows.fit measure'),
    *[
        ('anomalies.1', steadiness, said)
        for steadiness, said in (
            (lambda v: rolling(v[0], 6), 'six days'),
            (lambda v: rolling(v[0], 8), 'eight days'),
            (lambda v: rolling(v[0], 7, fill=0.0), '99 is asked for'),
            (lambda v: rolling(v[1], 7), 'second channel'),
            (lambda v: rolling(v[0], 7, torch.var), 'the variance'),
            (lambda v: rolling(v[0], 7, torch.mean), 'that is the mean'),
            (lambda v: torch.cat([torch.tensor([99.0]), rolling(v[0], 7)[:-1]]), 'its own counts'),
        )
    ],
    ('1.1', lambda x, x0_hat, t, s: x0_hat + t / s * (x - x0_hat), 'upside down'),
    ('1.1', lambda x, x0_hat, t, s: x0_hat + s * (x - x0_hat), 't is missing'),
    *[
        ('anomalies.2', n, said)
        for n, said in (
            (7501, 'with the anomaly in it'),
            (6301, 'the test part'),
            (12, 'are labelled'),
            (7489, 'know where it is'),
            (0, 'comes from scores'),
        )
    ],
    ('1.1', lambda x, g, t, s: x, 'nothing has moved'),
    ('1.1', lambda x, g, t, s: s / t * (x - g), 'the guess is missing'),
    ('1.1', lambda x, g, t, s: x - (x - g) / t, 'multiply it by s - t'),
    ('1.1', lambda x, g, t, s: x + (s - t) * g / t, 'x is missing'),
    ('1.2', stands, 'the last guess'),
    ('1.2', lambda *a: stands(*a, told=lambda t, s: s), 'the last guess'),
    ('1.2', lambda D, x, grid: D(walk(D, x, grid), grid[-1]), 'the last guess'),
    ('1.2', lambda *a: stands(*a, move=lambda x, guess, t, s: guess), 'becomes the guess itself'),
    (
        '1.2',
        lambda *a: stands(
            *a, give=lambda x, guess: x, move=lambda x, guess, t, s: x + (s - t) * (x - guess)
        ),
        'division by t',
    ),
    ('2.1', 80, 'noisiest level'),
    ('2.1', BOARD.mean(), 'that is the mean;'),
    ('2.1', BOARD.square().sum(1).mean().sqrt(), 'size of a point'),
    ('2.2', lambda *a: gap(*a).norm(), 'not their sum'),
    ('2.2', lambda *a: gap(*a).norm(dim=1).mean(), 'mean over coordinates'),
    ('2.2', gap, 'one number'),
    ('2.2', lambda *a: gap(*a)[:, 0].square().mean().sqrt(), 'both coordinates'),
    ('2.2', lambda *a: gap(*a).square().median().sqrt(), 'not their median'),
    ('2.2', lambda *a: gap(*a).square().mean(1).sqrt().mean(), 'then one root'),
    ('2.2', lambda *a: gap(*a).std(), 'takes the mean difference off'),
    (
        '2.2',
        lambda student, D, sigmas: (
            (student.sample(500) - D(sigmas[0] * sample_noise(range(500), (2,)), sigmas[0]))
            .square()
            .mean()
            .sqrt()
        ),
        'one guess of the teacher',
    ),
    (
        '2.2',
        lambda student, D, sigmas: (
            (student.sample(500) - sigmas[0] * sample_noise(range(500), (2,)))
            .square()
            .mean()
            .sqrt()
        ),
        'noise itself',
    ),
    ('3.1', lambda D, x, t, s: x, 'nothing has moved'),
    ('3.1', lambda *a: heun(*a) - a[1], 'add it to x'),
    ('3.1', lambda D, x, t, s: walk(D, x, torch.tensor([t, (t + s) / 2, s])), 'half the length'),
    (
        '3.1',
        lambda D, x, t, s: (
            x
            + (s - t)
            * (x - D(x, t) + euler_step(x, D(x, t), t, s) - D(euler_step(x, D(x, t), t, s), s))
            / 2
        ),
        'divided by its level',
    ),
    ('3.2', lambda x, sigma, m, std: mixture(x, m, std**2, 0.0), 'sigma**2, too'),
    (
        '3.2',
        lambda x, sigma, m, std: mixture(x, m, std**2 + sigma**2, std**2 / sigma**2),
        'not over sigma**2',
    ),
    (
        '3.2',
        lambda x, sigma, m, std: mixture(
            x, m, (std**2 + sigma**2) ** 0.5, std**2 / (std**2 + sigma**2)
        ),
        'twice its root',
    ),
    ('4.1', lambda D, x, t, m, s: landing(D, x, t, m, s)[2] / (1 - s / t), 'before you divide'),
    (
        '4.1',
        lambda D, x, t, m, s: blend(landing(D, x, t, m, s), (1 - s / t) / (1 - s / m)),
        'upside down',
    ),
    (
        '4.1',
        lambda D, x, t, m, s: (landing(D, x, t, m, s)[2] - m / t * x) / (1 - m / t),
        'not mid/t',
    ),
    ('4.1', lambda D, x, t, m, s: euler_step(x, D(x, t), t, m), 'a second one'),
    ('4.2', lambda grid: grid.unfold(0, 2, 2), 'leaves out where it ends'),
    ('4.2', lambda grid: grid[::2], 'in one list'),
    ('4.2', lambda grid: grid.unfold(0, 4, 2), 'three levels'),
    ('4.2', lambda grid: grid[:-1].unfold(0, 3, 2), 'reach the last level'),
    ('4.2', lambda grid: grid.unfold(0, 3, 1)[1::2], 'begin at the first'),
    ('4.2', lambda grid: grid.unfold(0, 3, 2).T, 'exchanged'),
    ('5.1', lambda p, a, f: p * a, 'n - 1 steps'),
    ('5.1', lambda p, a, f: p - 1, 'asks twice'),
    ('5.1', lambda p, a, f: (p - 1) * (a - f), 'not in every step'),
    ('5.1', lambda p, a, f: (p - 1) * a - 1 + f, 'without afs'),
    ('5.2', network_first, 'asks the student nothing'),
    ('6.1', cut(lambda v, K: v[::K]), 'alternate'),
    ('6.1', lambda wide, K: layer(wide.weight[:3], wide.bias[-3:]), 'the bias is right'),
    ('6.1', cut(lambda v, K: v.unflatten(0, (K, 3)).sum(0)), 'not their sum'),
    ('6.1', cut(lambda v, K: v[-4:-1]), 'the last three rows'),
    (
        '6.2',
        lambda y, x, t, s: (y - (s / t)[:, None] * x[:, None]) / (1 - s[-1] / t),
        'the last one below',
    ),
    (
        '6.2',
        lambda y, x, t, s: (y - s[-1] / t * x[:, None]) / (1 - (s / t)[:, None]),
        'the last one above',
    ),
    ('6.2', lambda y, x, t, s: (y - s[:, None] * x[:, None]) / (1 - s[:, None]), 'division by t'),
    ('6.2', lambda y, x, t, s: y / (1 - (s / t)[:, None]), 'before you divide'),
    ('7.1', lambda a, b: spread(a, b, lambda d: T * d.std() / 4**0.5), 'n - 1 is for student_t'),
    ('7.1', lambda a, b: spread(a, b, lambda d: 2 * d.std() / 5**0.5), 'factor 2'),
    ('7.1', lambda a, b: spread(a, b, lambda d: d.std() / 5**0.5), 'factor t is missing'),
    (
        '7.1',
        lambda a, b: spread(a, b, lambda d: student_t(0.975, 4) * d.std() / 5**0.5),
        'too wide',
    ),
    ('7.1', lambda a, b: spread(a, b, lambda d: -T * d.std() / 5**0.5), 'lower end'),
    ('7.1', lambda a, b: spread(a, b, lambda d: T * d.std() / 5**0.5)[1:], 'three numbers'),
    (
        '7.1',
        lambda a, b: spread(a, b, lambda d: T * torch.tensor(a).std() / 5**0.5),
        'not of one arm',
    ),
    ('7.2', lambda run, seeds: [run(4, s + 100) - run(1, s) for s in seeds], 'different seeds'),
    ('7.2', lambda run, seeds: [run(4, s) for s in seeds], 'new arm alone'),
    ('7.2', lambda run, seeds: [run(4, s) / run(1, s) for s in seeds], 'relative'),
    ('7.2', lambda run, seeds: [run(4, s) - run(1, s) for s in seeds][:1], 'that is one seed'),
    (
        '7.2',
        lambda run, seeds: [run(4, s) - run(1, r) for s in seeds for r in seeds],
        'not against all',
    ),
    ('8.1', 1, 'one image after another'),
    ('8.1', 2, 'how many micro-batches'),
    ('8.1', 4, 'where is the batch'),
    ('8.2', lambda a: ((1 - a) * a).sqrt(), 'do not multiply'),
    ('8.2', lambda a: (1 - a**2).sqrt() / a, 'no further square'),
    ('8.2', lambda a: 1 / a.sqrt() - 1, 'not 1 - sqrt'),
    ('8.2', lambda a: a / (1 - a), 'signal-to-noise'),
    # what looks right where a level or a number of branches is 1 or 2, and mistakes made twice
    *[
        ('4.1', answer, said)
        for answer, said in (
            (
                lambda *a: pd_walk(*a, then=lambda x, g, t, mid, end: x + (end - mid) * (x - g)),
                'by mid is missing',
            ),
            (
                lambda *a: pd_walk(*a, then=lambda x, g, t, mid, end: g + end * (x - g)),
                'by mid is missing',
            ),
            (
                lambda D, x, t, m, s: blend(landing(D, x, t, m, s), (1 - s) / (1 - s / t)),
                'omega is (1 - end/mid)',
            ),
            (
                lambda *a: pd_walk(*a, half=lambda x, g, t, mid: g + (x - g) / t),
                'mid/t of x - first',
            ),
            (
                lambda *a: pd_walk(*a, half=lambda x, g, t, mid: g + mid * (x - g)),
                'mid/t of x - first',
            ),
            (
                lambda *a: pd_walk(*a, half=lambda x, g, t, mid: x + (mid - t) * (x - g)),
                'mid/t of x - first',
            ),
            (
                lambda *a: pd_walk(*a, above=lambda t, end: end, below=lambda t, end: end),
                'division by t is missing',
            ),
            (lambda *a: pd_walk(*a, above=lambda t, end: end), 'division by t is missing'),
            (lambda *a: pd_walk(*a, below=lambda t, end: end), 'division by t is missing'),
            (
                lambda *a: pd_walk(*a, then=lambda x, g, t, mid, end: g + end / t * (x - g)),
                'divide by mid there, not by t',
            ),
        )
    ],
    *[
        ('3.1', answer, said)
        for answer, said in (
            (
                lambda *a: heun(*a, second=lambda x, guess, t, s: (x - guess) * t),
                'mean of the two slopes',
            ),
            (
                lambda *a: heun(
                    *a,
                    first=lambda x, guess, t, s: (guess - x) / t,
                    second=lambda x, guess, t, s: (guess - x) / s,
                ),
                'walk away',
            ),
            (
                lambda D, x, t, s: (
                    x
                    + (t - s)
                    * (
                        (x - D(x, t)) / t
                        + (x + (t - s) * (x - D(x, t)) / t - D(x + (t - s) * (x - D(x, t)) / t, s))
                        / s
                    )
                    / 2
                ),
                'walk away',
            ),
            (
                lambda *a: heun(
                    *a,
                    first=lambda x, guess, t, s: x - guess,
                    second=lambda x, guess, t, s: x - guess,
                ),
                'divided by its level',
            ),
            (lambda *a: heun(*a, first=lambda x, guess, t, s: x - guess), 'divided by its level'),
            (lambda *a: heun(*a, second=lambda x, guess, t, s: x - guess), 'divided by its level'),
            (lambda D, x, t, s: (heun(D, x, t, s) - x) / (s - t), 'the mean slope'),
            (lambda *a: heun(*a, mean=lambda d, e: d + e / 2), 'parentheses'),
            (lambda *a: heun(*a, mean=lambda d, e: d / 2 + e), 'parentheses'),
        )
    ],
    *[
        ('3.2', answer, said)
        for answer, said in (
            (lambda *a: blobs(*a, inside=lambda m, apart, p: m + p * (m + apart)), 'not times x'),
            (lambda *a: blobs(*a, inside=lambda m, apart, p: p * apart), 'means is missing'),
            (lambda x, sigma, m, std: mixture(x, m, std**2 + sigma**2, std), 'not std alone'),
            (lambda *a: blobs(*a, size=lambda apart: apart.norm(dim=-1)), 'not the distance'),
        )
    ],
    *[
        ('5.2', answer, said)
        for answer, said in (
            (lambda *a: rollout(*a, start=lambda x, y, n: x if n == 1 else y[8]), 'not at y[8]'),
            (lambda *a: rollout(*a, start=lambda x, y, n: analytic(y[0], a[3])), 'not in it'),
            (
                lambda *a: rollout(
                    *a, start=lambda x, y, n: x if n == 1 else analytic(x, a[3][1:])
                ),
                'not in it',
            ),
            (
                lambda *a: rollout(
                    *a, start=lambda x, y, n: afs_x0(y[0], a[3][0]) if n == 1 else x
                ),
                'a guess, not a state',
            ),
            (lambda *a: rollout(*a, target=lambda n: n + 1), 'four to a step'),
        )
    ],
    ('5.1', lambda p, a, f: (p - 2) * a - f, 'not n - 2'),
    ('5.1', lambda p, a, f: p * a - 1, 'only with afs'),
    (
        '1.2',
        lambda D, x, grid: walk(D, x, grid, ask=lambda t, s: s, divide=lambda t, s: -t),
        'not t - s',
    ),
    (
        '1.2',
        lambda D, x, grid: walk(D, x, grid, ask=lambda t, s: s, divide=lambda t, s: -s),
        'not t - s',
    ),
    (
        '6.2',
        lambda y, x, t, s: (y - (s / t)[:, None] * x[:, None]) / (1 - s[:, None]),
        'division by t',
    ),
    ('6.2', lambda y, x, t, s: (y - s / t * x) / (1 - s / t), 'a row for each branch'),
    ('forecasting.2', 'what does this mean?', 'what does Windows.fit measure'),
    ('forecasting.2', 'no variation', 'what does Windows.fit measure'),
    (
        '4.1',
        lambda D, x, t, m, s: (landing(D, x, t, m, s)[2] + s / t * x) / (1 - s / t),
        'the signs',
    ),
    (
        '4.1',
        lambda D, x, t, m, s: landing(D, x, t, m, s)[2] - s / t * x / (1 - s / t),
        'parentheses',
    ),
    (
        '4.1',
        lambda D, x, t, m, s: (landing(D, x, t, m, s)[2] - x) / (1 - s / t),
        'not the whole of x',
    ),
    ('1.1', lambda x, g, t, s: x + s - t * (x - g) / t, 'parentheses'),
    ('5.1', lambda p, a, f: a * p - a * f, 'not the whole step'),
    ('4.2', lambda grid: grid[::2].unfold(0, 3, 1), 'leaves the middles out'),
    ('5.2', lambda *a: rollout(*a, target=lambda n: 12), 'y[4*n + 4]'),
    (
        '3.2',
        lambda x, sigma, m, std: mixture(x, m, std + sigma**2, std / (std + sigma**2)),
        'its square is the variance',
    ),
    (
        '3.2',
        lambda x, sigma, m, std: mixture(x, m, std**2 + sigma**2, std / (std + sigma)),
        'the weights are right',
    ),
    (
        '3.2',
        lambda x, sigma, m, std: mixture(x, m, std**2 + sigma**2, 1.0),
        'the weights are right',
    ),
    (
        '7.1',
        lambda a, b: (
            (d := torch.tensor(a) - torch.tensor(b)) is None
            or (d.mean(), d.mean() - d.std(), d.mean() + d.std())
        ),
        'the spread of one difference',
    ),
    ('5.1', 23, 'give the function'),
    (
        '7.2',
        lambda run, seeds: [run(4, seed) - run(1, seeds[0]) for seed in seeds],
        'not always with the first',
    ),
    ('7.2', lambda run, seeds: run(4, 0) - run(1, 0), 'that is one seed'),
    ('capstone', TEACHER, 'not EDMDenoiser'),
    ('capstone', branch(TEACHER, 2), 'not BranchedDenoiser'),
    ('capstone', Sampler(TEACHER, karras_sigmas(4, 0.006, 80.0), False, (2,)), 'takes 4'),
    (
        'capstone',
        Sampler(TEACHER, SFDConfig(nfe=2).grids[1], True, (2,)),
        'does the loss still fall',
    ),
    *[
        ('capstone', student, said)
        for student, said in (
            (Taught(steps=3), 'training: train longer, with a larger batch\n'),
            (Taught(steps=3, lr=5e-4), 'higher rate'),
            (Taught(steps=3, lr=0.1), 'a rate of 0.1 is too high'),
            (Taught(steps=15, substeps=4, lr=5e-4), 'most of it is training: train longer'),
            (Taught(about={'seconds': 75.0}), 'its iterations took 75 s'),
        )
    ],
    ('capstone', Taught(substeps=4, steps=60, batch=128, lr_schedule='cosine'), 'a finer grid\n'),
]


def heard(number, answer):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        check(number, answer)
    return out.getvalue()


@pytest.mark.parametrize(
    'number, answer, hint', MISTAKES, ids=[f'{n}-{hint}' for n, _, hint in MISTAKES]
)
def test_mistakes_get_their_hint(number, answer, hint):
    said = heard(number, answer.student() if isinstance(answer, Taught) else answer)
    assert 'hint: ' in said and hint in said, said


def test_every_exercise_has_four_mistakes():
    assert all([n for n, *_ in MISTAKES].count(number) >= 4 for number in EXERCISES), (
        EXERCISES.keys()
    )


def no_idea(*args):
    raise RuntimeError('no idea')


@pytest.mark.parametrize(
    'answer',
    [-12345.0, 'no idea', no_idea, lambda *args: -12345.0, lambda *args: torch.zeros(7)],
    ids=['number', 'text', 'error', 'function', 'tensor'],
)
@pytest.mark.parametrize('number', EXERCISES)
def test_answers_of_another_kind_get_a_hint(number, answer):
    assert heard(number, answer).startswith('hint: ')


@pytest.mark.parametrize('number', EXERCISES)
def test_no_answer_is_no_mistake(number):
    assert heard(number, None) == 'not answered yet\n'
    if EXERCISES[number][0]:
        assert heard(number, lambda *args: None) == 'not answered yet\n'
        assert heard(number, lambda *args: ...) == 'not answered yet\n'


def test_a_forgotten_return_is_no_missing_answer():
    def forgotten(x, x0_hat, t, s):
        x + (s - t) * (x - x0_hat) / t

    assert heard('1.1', forgotten) == 'hint: your function gives None: is its return missing?\n'
    assert 'return missing' in heard('7.1', lambda a, b: (sum(a), None, None))


def in_place(x, x0_hat, t, s):
    x += (s - t) * (x - x0_hat) / t
    return x


def walk_in_place(D, x, grid):
    for t, s in zip(grid[:-1].tolist(), grid[1:].tolist()):
        x += (s - t) * (x - D(x, t)) / t
    return x


def cut_in_place(wide, K):
    wide.weight.data, wide.bias.data = wide.weight.data[-3:], wide.bias.data[-3:]
    return wide


@pytest.mark.parametrize(
    'number, answer',
    [
        ('1.1', in_place),
        ('1.2', walk_in_place),
        ('6.1', cut_in_place),
        (
            '2.2',
            lambda student, D, sigmas: (
                (
                    student.sample(500, seed=500)
                    - sample(D, sigmas[0] * sample_noise(range(500, 1000), (2,)), sigmas)
                )
                .square()
                .mean()
                .sqrt()
            ),
        ),
        (
            '2.2',
            lambda student, D, sigmas: (
                (
                    student.sample(128)
                    - sample(D, sigmas[0] * sample_noise(range(128), (2,)), sigmas)
                )
                .square()
                .mean()
                .sqrt()
            ),
        ),
        (
            '7.2',
            lambda run, seeds: (
                torch.tensor([run(4, seed) for seed in seeds])
                - torch.tensor([run(1, seed) for seed in seeds])
            ),
        ),
        ('7.2', lambda run, seeds: (run(4, seed) - run(1, seed) for seed in seeds)),
        ('7.2', lambda run, seeds: [run(4, seed + 100) - run(1, seed + 100) for seed in seeds]),
    ],
)
def test_other_right_answers_are_right_each_time(number, answer):
    assert [heard(number, answer) for _ in range(2)] == 2 * ['correct\n']


@pytest.mark.parametrize('name', NUMBERED)
def test_solutions_are_right(name):
    names = dict(torch=torch, sample=sample, sample_noise=sample_noise)
    for i, solution in enumerate(lesson_solutions()[name], 1):
        exec(solution, names)
        stub = exercises(name)[i - 1][0]
        answer = stub.name if isinstance(stub, ast.FunctionDef) else stub.targets[0].id
        assert heard(f'{re.match("course/(.)", name)[1]}.{i}', names[answer]) == 'correct\n'


def test_the_capstone_asks_for_what_it_says():
    assert f'below {CAPSTONE}' in ' '.join(c.source for c in cells('course/9_capstone'))


def test_an_unknown_exercise():
    with pytest.raises(ValueError, match='9.9'):
        check('9.9', 1)


@pytest.mark.parametrize(
    'answer, ok, said',
    [
        (None, bool, 'not answered yet'),
        (lambda: None, bool, 'not answered yet'),
        ([1, None], bool, 'not answered yet'),
        ([1, ...], bool, 'not answered yet'),
        (lambda: torch.as_tensor(...), bool, 'not answered yet'),
        (lambda: (lambda a: a)(), bool, 'hint: your answer stopped with TypeError'),
        (3, lambda a: a == 3, 'correct'),
        (lambda: torch.ones(2), lambda a: (a == 1).all(), 'correct'),
        ((1, 2), lambda a: True, 'correct'),
        (3, lambda a: None, 'hint: think'),
        (3, lambda a: '', 'hint: '),
        (3, lambda a: 'look', 'hint: look'),
        (0, bool, 'hint: think'),
        ('', lambda a: a > 2, 'hint: think (stopped with TypeError'),
        (torch.ones(2), lambda a: a == 1, 'hint: think (stopped with RuntimeError'),
        (lambda: [][1], bool, 'hint: think (stopped with IndexError: list index out of range)'),
        (
            lambda: pionts,  # noqa: F821
            bool,
            "hint: your answer stopped with NameError: name 'pionts' is not defined\n",
        ),
    ],
)
def test_check_answer(capsys, answer, ok, said):
    assert check_answer(answer, ok, 'think') == (said == 'correct')
    out = capsys.readouterr().out
    assert out.startswith(said) and out.count('\n') == 1


def test_a_long_error_is_one_line(capsys):
    def fails():
        raise ValueError('line\n' * 100)

    assert not check_answer(fails, bool, 'think')
    out = capsys.readouterr().out
    assert out.count('\n') == 1 and len(out) < 200


def test_every_exercise_has_a_solution():  # tests/test_notebooks.py runs them
    found = lesson_solutions()
    assert {name: len(found.get(name, ())) for name in LESSONS} == {
        name: len(exercises(name)) for name in LESSONS
    }
    assert found.keys() <= set(LESSONS)


def test_exercises_stand_in_the_course_and_the_applications_alone():
    asking = {
        name
        for name in LESSONS
        if exercises(name) or any('## Exercises' in c.source for c in cells(name))
    }
    assert {name.split('/')[0] for name in asking} == {'course', 'applications'}


def test_solutions_quote_the_questions():
    asked = {
        name: questions(name) for name in LESSONS if exercises(name) and name != 'course/9_capstone'
    }
    assert {
        name: said for name, said in quoted_questions().items() if name != 'course/9_capstone'
    } == asked


def test_the_front_page_is_short():
    text = '\n'.join(c.source for c in cells('index'))
    readme = (NBS.parent / 'README.md').read_text(encoding='utf-8')
    assert len(readme.split()) <= 900 and '#|' not in text and 'Start with [lesson 1]' in text
    code = [
        line
        for line in re.search('```python\n(.*?)```', readme, flags=re.S)[1].splitlines()
        if line
    ]
    assert len(code) <= 10 and max(map(len, code)) <= 96, 'ten lines, none cut off on GitHub'
    assert readme.index('```python') < readme.index('make lab') < readme.index('\n## ')


def test_the_pictures_of_the_front_page():
    results = data_dir() / 'results'
    assert method() == (results / 'method.svg').read_text(encoding='utf-8'), (
        'run tools/pictures.py method'
    )
    assert (results / 'spiral.gif').read_bytes()[:3] == b'GIF' and (
        results / 'spiral.gif'
    ).stat().st_size < 1e6
    assert ElementTree.fromstring(method()).tag.endswith('svg')


def test_solutions_are_the_last_page():
    assert (
        SOLUTIONS == 'course/10_solutions'
        and f'({SOLUTIONS[7:]}.ipynb)' in cells('course/8_your_model')[-1].source
    )
