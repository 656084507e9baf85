"""Figures in prose. What an experiment gave is said by `data/results/`, what a cell gave by that cell: the text may not say something else.

Two nets. The wide one: a number in a notebook's text (with a decimal point or a percent sign) is printed by a cell of that notebook, stands in its code
or its formulas, or is listed in GIVEN with where it comes from. The narrow one: CLAIMS are sentences about stored results, filled in from the files.
"""

import functools
import json
import re

import nbformat
import pytest

from bdense_nb.core import data_dir
from bdense_nb.evaluation.intervals import paired_interval
from bdense_nb.lab.differences import differences
from run_notebooks import NBS, notebooks, stored as stored_notebook

GIVEN = {  # notebook -> number -> where it comes from
    'diffusion/05_data': {
        '41.9999': 'an example of rounding',
        '2.9': '50,000 images of 3 x 64 x 64, five bytes a value, in GB of 2**30 bytes',
    },
    'diffusion/01_schedules': {
        '4.4': 'the last level but one of the uniform grid from 80, drawn in the figure'
    },
    'distillation/01_teaching': {'1.1': 'the first reading of the drum whose sketch is described'},
    'diffusion/08_stored': dict.fromkeys(('1.17', '0.57'), 'the model cards of the two teachers'),
    'course/2_your_own_data': {
        '0.05': '88 % of the log-normal law in the next cell lie between 0.05 and 2'
    },
    'interop/03_families': {
        '54.6': 'million weights of the network that was measured',
        '0.20': 'million weights of its adapters and output layer',
    },
    'interop/04_beside_others': {'1.5': 'a version of Stable Diffusion'},
    'distillation/05_bank': dict.fromkeys(
        ('0.06', '0.29', '0.09', '0.08', '0.27', '0.0006', '0.0012', '0.001'),
        'students of float32 and float16 banks, five seeds, measured apart',
    ),
    'interop/02_export': {
        '14.6': 'the last noise level of the scaled-linear table of latent diffusion models'
    },
    'lab/06_worlds': {'0.73': 'millions of parameters: the model card of the shipped teacher'},
    'gpu/published_settings': {
        '9.12': 'FID of one step, Salimans and Ho 2022',
        '21.19': 'billion multiply-adds of a call, counted by tools outside this package',
        '109.7': 'billion multiply-adds of a call, counted by tools outside this package',
        '55.73': 'million weights of a published network',
        '295.9': 'million weights of a published network',
        '1.1': 'five copies of the weights in float32, GB',
        '5.9': 'five copies of the weights in float32, GB',
        '0.03': 'difference of two columns of the table',
        '37': 'difference of two columns of the table, in percent of the host',
    },
    'index': {
        '0.04': 'the target of the capstone',
        **dict.fromkeys(('1.4', '2.7', '1.2', '1.5'), 'tests/test_experiments.py holds it'),
        '0.9': 'tests/test_experiments.py holds it',
        '4.7': 'tests/test_experiments.py holds it',
        '2.1': 'tests/test_experiments.py holds it',
        '1.9': 'tests/test_experiments.py holds it',
        '1': 'tests/test_experiments.py holds it',
        '95': 'the level of every interval',
        '0.2': 'data/results/forecasting.json, with its interval in the notebook',
    },
    'course/9_capstone': {'0.03': 'a mark for the ambitious', '0.02': 'a mark for the ambitious'},
    'distillation/07_sfd': {'10.9': 'a level of the grid'},
}
NUMBER = r'(?<![\w.,])(?:\d*\.\d+(?![\d.]*\d*\.)|\d+(?= ?%| percent\b))'
SILENT = (
    r'```.*?```',
    r'\$\$.*?\$\$',
    r'\$[^$]*\$',
    r'`[^`]*`',
    r'\]\([^)]*\)',
    r'arXiv \d+\.\d+',
    r'<[^>]*>',
    r'Python \d\.\d+',
    r'(?m:^> \*\*\d\.[^\n]*)',
)  # code, formulas, links, quoted questions


def prose(markdown: str) -> str:
    "Text without code, formulas and addresses; what is left stands where it stood."
    for pattern in SILENT:
        markdown = re.sub(pattern, lambda m: ' ' * len(m[0]), markdown, flags=re.S)
    return markdown


def said(nb: nbformat.NotebookNode) -> tuple[list[float], list[float]]:
    "The numbers that a notebook's cells print, and those in its code and formulas."
    printed = '\n'.join(
        o.get('text')
        or ' '.join(
            str(o.get('data', {}).get(f'text/{kind}', '')) for kind in ('plain', 'markdown', 'html')
        )
        for c in nb.cells
        for o in c.get('outputs', [])
    )
    set_ = '\n'.join(
        c.source
        if c.cell_type == 'code'
        else ' '.join(re.findall('|'.join(SILENT[:4]), c.source, flags=re.S))
        for c in nb.cells
    )
    return [
        [float(v) for v in re.findall(r'(?<![\w.])(?:\d*\.\d+|\d+)', text)]
        for text in (printed, set_)
    ]


def unsupported(nb: nbformat.NotebookNode) -> list[str]:
    "Numbers of the text that no cell prints, at the precision of the text, and no code or formula holds; in percent a ratio will do."
    (printed, given), found = said(nb), []
    for cell in nb.cells:
        if cell.cell_type != 'markdown':
            continue
        text = prose(cell.source)
        for m in re.finditer(NUMBER, text):
            digits, percent = (
                len(m[0].partition('.')[2]),
                re.match(r' ?%| percent', text[m.end() :]),
            )
            near = lambda v: abs(v - float(m[0])) < 0.5001 * 10**-digits
            if not any(near(v) or percent and near(100 * v) for v in printed) and not any(
                v == float(m[0]) or percent and abs(100 * v - float(m[0])) < 1e-9 for v in given
            ):
                found.append(m[0])
    return found


@pytest.mark.parametrize('path', notebooks(), ids=lambda p: p.relative_to(NBS).as_posix())
def test_numbers_in_prose_have_a_source(path):
    name = path.relative_to(NBS).with_suffix('').as_posix()
    nb = stored_notebook(path)
    assert set(unsupported(nb)) - GIVEN.get(name, {}).keys() == set(), (
        'no cell prints these, and no code or formula holds them'
    )
    text = '\n'.join(prose(c.source) for c in nb.cells if c.cell_type == 'markdown')
    # not "needed": a time that a cell prints may happen to be the same number
    assert GIVEN.get(name, {}).keys() - set(re.findall(NUMBER, text)) == set(), (
        'listed, but no longer in the text'
    )


def test_the_net_holds():
    def nb(text, out='error 0.1532, or 12 % of it', code='steps = 40'):
        return nbformat.v4.new_notebook(
            cells=[
                nbformat.v4.new_markdown_cell(text),
                nbformat.v4.new_code_cell(
                    code, outputs=[nbformat.v4.new_output('stream', text=out)]
                ),
            ]
        )

    for good in (
        'the error is 0.153',
        'the error is 15 %',
        'the error is 0.15 and 12 percent',
        '$x = 7.5$, and 7.5 once more',
        'see [it](a/9.9.html)',
    ):
        assert unsupported(nb(good)) == [], good
    for bad, what in (
        ('the error is 0.154', '0.154'),
        ('by 13 %', '13'),
        ('by 13 percent', '13'),
        ('of 7.5', '7.5'),
    ):
        assert unsupported(nb(bad)) == [what], bad


@functools.cache
def stored(name):
    return json.loads((data_dir() / 'results' / f'{name}.json').read_text())


def gaps(
    name, arm, nfe=None, iterations=None, measure='paired_error', host=None
):  # differences to the host in percent of it, sorted
    ds = [
        d
        for d in differences(stored(name), measure, host)
        if d.arm == arm and (nfe is None or d.nfe in nfe) and iterations in (None, d.iterations)
    ]
    return sorted(100 * d.interval.mean / d.host for d in ds)


def between(
    *arms, nfe, iterations=(None, None), name='ring_variable', measure='paired_error'
):  # percent by which the first arm differs from the second
    rows = sorted(stored(name)['rows'], key=lambda r: r['seed'])
    new, old = (
        [
            r[measure]
            for r in rows
            if (r['arm'], r['nfe']) == (arm, nfe) and i in (None, r['iterations'])
        ]
        for arm, i in zip(arms, iterations)
    )
    return 100 * paired_interval(new, old).mean / (sum(old) / len(old))


def ladder():
    values = gaps('ring_pd', 'K = 2, linear', (4, 2))
    return [
        values[0],
        values[-1],
    ]  # Progressive Distillation with branches, from the best to the worst


def variable():
    told, each, untold = 'SFD-v, K = 1', 'one each, K = 1', 'SFD-v, K = 1, not told'
    return {
        'one for all': [between(told, each, nfe=n) for n in (2, 3)],
        'told': [between(told, untold, nfe=n) for n in (2, 3, 5)],
        'stage': [
            between(
                f'{first}, then one call, K = 1', 'directly, K = 1', nfe=1, iterations=(None, i)
            )
            for first, i in (('one each', 200), ('SFD-v', 500))
        ],
    }


CLAIMS = [  # notebook, a sentence with gaps, what belongs into them (signs are left to the sentence)
    (
        'distillation/08_variable',
        'at 2 and 3 calls, by {} and {} percent',
        lambda: variable()['one for all'],
    ),
    (
        'distillation/08_variable',
        'by {} percent at 2 calls and {} at 3, and costs {} percent at 5',
        lambda: variable()['told'],
    ),
    (
        'distillation/08_variable',
        'by {} percent after one student each, and by {} after SFD-v',
        lambda: variable()['stage'],
    ),
    ('distillation/10_distill', 'is *worse* at every budget, by {} to {} percent', ladder),
]


@pytest.mark.parametrize(
    'name, sentence, values', CLAIMS, ids=[f'{n}: {s[:40]}' for n, s, _ in CLAIMS]
)
def test_claim(name, sentence, values):
    text = ' '.join(
        c.source for c in nbformat.read(NBS / f'{name}.ipynb', 4).cells if c.cell_type == 'markdown'
    )
    right = sentence.format(*[v if isinstance(v, str) else f'{abs(v):.0f}' for v in values()])
    assert right in text, 'the text says something else than the stored results'


def test_stored_experiments_are_whole():
    "Every arm has every seed, five or more."
    for path in (data_dir() / 'results').glob('*.json'):
        result = stored(path.stem)
        if 'experiment' not in result:
            continue
        runs = {}
        for r in result['rows']:
            runs.setdefault((r['arm'], r['calls'], r['iterations'], r.get('width')), set()).add(
                r['seed']
            )
        seeds = set.union(*runs.values())
        assert (
            len(seeds) >= 5
            and all(s == seeds for s in runs.values())
            and len(runs) == len(result['configs'])
        ), f'{path.stem} is not complete'
