"The course's exercises: stubs are quiet, solutions are right, usual mistakes get the hint that fits, and the two notebooks stay in step."
import ast
import contextlib
import io
import re

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from torch import nn

from bdense_nb.core import check_answer, data_dir
from bdense_nb.diffusion.samplers import afs_x0, euler_step
from bdense_nb.diffusion.schedules import karras_sigmas
from bdense_nb.distillation.branches import narrow
from bdense_nb.distillation.losses import branch_weights, dense_alignment_loss
from bdense_nb.distillation.segments import branch_states
from bdense_nb.evaluation.intervals import student_t
from solutions import LESSONS, exercises as lesson_exercises, is_stub, lesson_solutions, questions, quoted_questions

EXERCISES, SOLUTIONS = '9_exercises', '9b_solutions'


def cells(name):
    "The cells of a tutorial, markdown and code."
    return nbformat.read(data_dir().parent/'nbs'/'tutorials'/f'{name}.ipynb', 4).cells


def run(name):
    "Execute a tutorial's code in this process: its namespace, and what it printed."
    plt.switch_backend('Agg')
    names, out = {}, io.StringIO()
    with contextlib.redirect_stdout(out):
        for c in cells(name):
            if c.cell_type == 'code': exec(compile(c.source, name, 'exec'), names)
    plt.close('all')
    return names, out.getvalue()


@pytest.fixture(scope='module')
def exercises(): return run(EXERCISES)


@pytest.fixture(scope='module')
def solutions(): return run(SOLUTIONS)


def numbers(name):
    "The exercises that have a check, in order."
    return [int(n) for c in cells(name) for n in re.findall(r'^solved\[(\d+)\] = check_answer\(', c.source, flags=re.M)]


def verdicts(out):
    "What the checks said of the answers, in order."
    return re.findall(r'^(?:not answered yet|correct|hint: .*)$', out, flags=re.M)


def test_unanswered_stubs_say_so(exercises):
    assert verdicts(exercises[1]) == 12*['not answered yet'] and '0 of 12 solved' in exercises[1]


def test_solutions_are_correct(solutions):
    assert verdicts(solutions[1]) == 12*['correct'] and '12 of 12 solved' in solutions[1] and 'all done' in solutions[1]


def parts(name):
    "Code cells of a notebook of exercises: those that only hold an answer, and all others."
    code = [c.source for c in cells(name) if c.cell_type == 'code']
    answers = [i - 1 for i, source in enumerate(code) if 'check_answer(' in source]
    return [code[i] for i in answers], [source for i, source in enumerate(code) if i not in answers]


def test_both_notebooks_hold_the_same_checks():
    assert numbers(EXERCISES) == numbers(SOLUTIONS) == list(range(1, 13))
    assert parts(EXERCISES)[1] == parts(SOLUTIONS)[1]
    problems = [[c.source for c in cells(name) if c.cell_type == 'markdown' and re.match(r'## \d+\. ', c.source)] for name in (EXERCISES, SOLUTIONS)]
    assert problems[0] == problems[1] and len(problems[0]) == 12


def defined(source):
    "Names that a cell defines, with the arguments of functions."
    body = ast.parse(source).body
    functions = {n.name: ast.dump(n.args) for n in body if isinstance(n, ast.FunctionDef)}
    return functions | {t.id: None for n in body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}


def test_solutions_answer_the_stubs():
    for stub, solution in zip(parts(EXERCISES)[0], parts(SOLUTIONS)[0]):
        assert defined(stub) == defined(solution) and stub != solution


def landing(denoiser, x, t, mid, end): # the teacher's two steps: both guesses, and where it stands
    first = denoiser(x, t); half = euler_step(x, first, t, mid)
    second = denoiser(half, mid)
    return first, second, euler_step(half, second, mid, end)


def heun(D, x, t, s, first=.5, asked=None): # with the first slope's share, and the level that divides the second
    slope = (x - D(x, t))/t; y = x + (s - t)*slope
    return x + (s - t)*(first*slope + (1 - first)*(y - D(y, s))/(asked or s))


def iteration(student, y, fine, coarse, w, update, free=True, astray=False, last=-1, keep=False):
    "One of SFD; the options are usual mistakes."
    x, losses = y[0], []
    for n in range(3):
        if n == 0 and free: x = y[4] if astray else euler_step(x, afs_x0(x, coarse[0]), coarse[0], coarse[1]); continue
        landed = branch_states(student(x, coarse[n]), x, coarse[n], fine[4*n + 1:4*n + 5])
        loss = dense_alignment_loss(landed, y[4*n + 1:4*n + 5].transpose(0, 1), w)
        update(loss); losses.append(loss.item())
        x = landed[:, last] if keep else landed[:, last].detach()
    return losses


def layer(weight, bias):
    new = nn.Linear(weight.shape[1], len(weight))
    with torch.no_grad(): new.weight.copy_(weight); new.bias.copy_(bias)
    return new


def spread(a, b, factor): # an interval with a given half-width, in standard deviations of the differences
    d = torch.tensor(a) - torch.tensor(b)
    half = factor(d)
    return d.mean(), d.mean() - half, d.mean() + half


T4 = student_t(.95, 9)
PULL = (2 - karras_sigmas(4, .1, 2.)[1:])/2
MISTAKES = [
    (1, lambda a: (1 - a)/a, 'its root'),
    (1, lambda a: (1 - a).sqrt(), 'scale of the signal'),
    (1, lambda a: (a/(1 - a)).sqrt(), 'upside down'),
    (1, lambda a: 1 - a, 'of noise for'),
    (1, lambda a: a.nothing, 'stopped with AttributeError'),
    (2, lambda D, x, t, s: euler_step(x, D(x, t), t, s), 'look once more'),
    (2, lambda D, x, t, s: heun(D, x, t, s, first=0.), 'second slope alone'),
    (2, lambda D, x, t, s: heun(D, x, t, s) + euler_step(x, D(x, t), t, s) - x, 'walk from the start'),
    (2, lambda D, x, t, s: heun(D, x, t, s, asked=t), 'level it was asked at'),
    (2, lambda D, x, t, s: 2*x - heun(D, x, t, s), 'away from the guess'),
    (2, lambda D, x, t, s: x, 'mean of the two slopes'),
    (3, lambda points, looks, afs: looks*points - afs, 'n - 1 steps'),
    (3, lambda points, looks, afs: looks*(points - 1), 'first look is free'),
    (3, lambda points, looks, afs: looks*(points - 1 - afs), 'not the whole step'),
    (3, lambda points, looks, afs: 7, 'wrong for (points, looks, afs) = (3, 1, False)'),
    (4, lambda n, substeps, K: [n*substeps + k*substeps//K for k in range(K)], 'where the student stands'),
    (4, lambda n, substeps, K: [n*substeps + j + 1 for j in range(substeps)], 'not one for every teacher step'),
    (4, lambda n, substeps, K: [n*(substeps + 1) + (k + 1)*substeps//K for k in range(K)], 'next student step starts'),
    (4, lambda n, substeps, K: [n*substeps + k + 1 for k in range(K - 1)] + [(n + 1)*substeps], 'wrong for (n, substeps, K) = (0, 4, 2)'),
    (5, lambda *args: iteration(*args, free=False), 'no loss'),
    (5, lambda *args: iteration(*args)[:1], 'yours has 1'),
    (5, lambda student, y, *rest: iteration(student, y, *rest, astray=True), 'walks its own path'),
    (5, lambda *args: iteration(*args, last=0), 'the second is not'),
    (5, lambda student, y, fine, coarse, w, update: iteration(student, y, fine, coarse, w, lambda loss: None), 'after an update'),
    (5, lambda *args: iteration(*args, keep=True), 'stopped with RuntimeError'),
    (5, lambda student, y, fine, coarse, w, update: iteration(student, y, fine, coarse, w.flip(0), update), 'and yours'),
    (6, [1., 1., 1., 3.], 'shares of the weight'),
    (6, (torch.tensor([1., 1., 1., 3.])*PULL).tolist(), 'divide by'),
    (6, [1., 2., 3., 4.], 'of the pull'),
    (6, [1., 2.], 'stopped with ValueError'),
    (7, lambda p, y, w: (w*(p - y).abs().flatten(2).mean(2).mean(0)).sum(), 'average over pixels'),
    (7, lambda p, y, w: (w*(p - y).abs().flatten(2).sum(2).sum(0)).sum(), 'sum over the batch'),
    (7, lambda p, y, w: (w*(p - y).abs().flatten(2).sum(2).mean(0)).mean(), 'divide by K'),
    (7, lambda p, y, w: (p - y).abs().flatten(2).sum(2).mean(), 'where are the weights'),
    (7, lambda p, y, w: dense_alignment_loss(p, y, w, 'l2'), 'not squares'),
    (7, lambda p, y, w: (p - y).abs().flatten(2).sum(2), 'one number'),
    (7, lambda p, y, w: dense_alignment_loss(p, y, w)*2, '2 times the right number'),
    (8, lambda y, x, t, s: (y - s[-1]/t*x[:, None])/(1 - s[-1]/t), 'still the same'),
    (8, lambda y, x, t, s: y, 'where the branch shall land'),
    (8, lambda y, x, t, s: y - (s/t)[:, None]*x[:, None], 'still multiplied'),
    (8, lambda y, x, t, s: y[:, -1], 'shape of the states'),
    (8, lambda y, x, t, s: (y - s/t*x[:, None])/(1 - s/t), 'stopped with RuntimeError'),
    (8, lambda y, x, t, s: 0*y, 'away from their states'),
    (9, lambda D, *args: landing(D, *args)[1], 'tempting'),
    (9, lambda D, *args: (landing(D, *args)[0] + landing(D, *args)[1])/2, 'not with equal weights'),
    (9, lambda D, *args: landing(D, *args)[2], 'what must it predict'),
    (9, lambda D, *args: landing(D, *args)[0], 'not for two'),
    (9, lambda D, x, *args: 0*x, 'away from the teacher'),
    (10, lambda wide, K: layer(wide.weight[:3], wide.bias[:3]), 'first branch'),
    (10, lambda wide, K: layer(wide.weight[1::2], wide.bias[1::2]), 'alternate'),
    (10, lambda wide, K: layer(wide.weight[3:], wide.bias[:3]), 'the bias has rows'),
    (10, lambda wide, K: narrow(wide, 1), 'three outputs'),
    (10, lambda wide, K: wide.weight[3:], 'a layer is asked for'),
    (10, lambda wide, K: nn.Linear(5, 3), 'last three rows'),
    (11, lambda a, b: spread(b, a, lambda d: T4*d.std()/10**.5), 'the mean of a - b'),
    (11, lambda a, b: spread(a, b, lambda d: T4*d.std()), 'divide by sqrt(n)'),
    (11, lambda a, b: spread(a, b, lambda d: 1.96*d.std()/10**.5), '1.96 is for many'),
    (11, lambda a, b: spread(a, b, lambda d: T4*d.std(correction=0)/10**.5), 'divides by n - 1'),
    (11, lambda a, b: spread(a, b, lambda d: student_t(.95, 10)*d.std()/10**.5), 'degrees of freedom'),
    (11, lambda a, b: spread(a, b, lambda d: T4*((torch.tensor(a).var() + torch.tensor(b).var())/10).sqrt()), 'too wide'),
    (11, lambda a, b: spread(a, b, lambda d: 0*d.std()), 'plus and minus'),
    (12, karras_sigmas(8, .02, 20.), '100% of the mark'),
    (12, karras_sigmas(8, .02, 20., 50.), 'move single levels'),
    (12, karras_sigmas(9, .02, 20.), 'nine levels'),
    (12, karras_sigmas(8, .02, 20.).flip(0), 'must descend'),
    (12, karras_sigmas(8, .002, 80.), 'from 20 down to 0.02'),
]


def heard(names, n, answer):
    "What the check of an exercise says of an answer; the cells before it have been run."
    code = [c.source for c in cells(EXERCISES) if c.cell_type == 'code']
    i = next(i for i, source in enumerate(code) if f'solved[{n}] = check_answer(' in source)
    name = next(node for node in ast.parse(code[i - 1]).body if is_stub(node))
    name = name.name if isinstance(name, ast.FunctionDef) else name.targets[0].id
    with contextlib.redirect_stdout(io.StringIO()) as out: exec(code[i], names | {name: answer})
    return out.getvalue()


@pytest.mark.parametrize('n, answer, hint', MISTAKES, ids=[f'{n}-{hint}' for n, _, hint in MISTAKES])
def test_mistakes_get_their_hint(exercises, n, answer, hint):
    said = heard(exercises[0], n, answer)
    assert said.startswith('hint: ') and hint in said, said


def no_idea(*args): raise RuntimeError('no idea')


@pytest.mark.parametrize('answer', [-12345., 'no idea', no_idea, lambda *args: -12345., lambda *args: torch.zeros(7)], ids=['number', 'text', 'error', 'function', 'tensor'])
@pytest.mark.parametrize('n', range(1, 13))
def test_answers_of_another_kind_get_a_hint(exercises, n, answer):
    assert heard(exercises[0], n, answer).startswith('hint: ')


def test_every_exercise_has_mistakes():
    assert {n for n, _, _ in MISTAKES} == set(range(1, 13)) and min([n for n, _, _ in MISTAKES].count(n) for n in range(1, 13)) >= 4


def test_a_second_right_answer_is_right(exercises):
    for n, answer in ((5, iteration), (6, branch_weights(4, (torch.tensor([1., 1., 1., 3.])/PULL).tolist())), (10, narrow)):
        assert heard(exercises[0], n, answer) == 'correct\n'


@pytest.mark.parametrize('answer, ok, said', [
    (None, bool, 'not answered yet'), (lambda: None, bool, 'not answered yet'), ([1, None], bool, 'not answered yet'),
    (3, lambda a: a == 3, 'correct'), (lambda: torch.ones(2), lambda a: (a == 1).all(), 'correct'), ((1, 2), lambda a: True, 'correct'),
    (3, lambda a: None, 'hint: think'), (3, lambda a: '', 'hint: '), (3, lambda a: 'look', 'hint: look'), (0, bool, 'hint: think'), ('', lambda a: a > 2, 'hint: think (stopped with TypeError'),
    (torch.ones(2), lambda a: a == 1, 'hint: think (stopped with RuntimeError'), (lambda: [][1], bool, 'hint: think (stopped with IndexError: list index out of range)'),
])
def test_check_answer(capsys, answer, ok, said):
    assert check_answer(answer, ok, 'think') == (said == 'correct')
    out = capsys.readouterr().out
    assert out.startswith(said) and out.count('\n') == 1


def test_a_long_error_is_one_line(capsys):
    def fails(): raise ValueError('line\n'*100)
    assert not check_answer(fails, bool, 'think')
    out = capsys.readouterr().out
    assert out.count('\n') == 1 and len(out) < 200


def test_every_exercise_of_the_lessons_has_a_solution():  # tests/test_notebooks.py runs them
    found = lesson_solutions()
    assert {name: len(found.get(name, ())) for name in LESSONS} == {name: len(lesson_exercises(name)) for name in LESSONS}
    assert found.keys() <= set(LESSONS)


def test_solutions_quote_the_questions():
    assert quoted_questions() == {name: questions(name) for name in LESSONS if lesson_exercises(name)}
