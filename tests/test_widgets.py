"The interactive explorers: one self-contained page for what is drawn beforehand, Python behind the rest."

import json
import re
from html.parser import HTMLParser

import ipywidgets
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from bdense_nb.core import sample_noise
from bdense_nb.diffusion.denoisers import MixtureDenoiser
from bdense_nb.diffusion.samplers import sample
from bdense_nb.diffusion.schedules import karras_sigmas
from bdense_nb.distillation.students import Student
from bdense_nb.evaluation.metrics import paired_error
from bdense_nb.lab.explorers import (
    Explorer,
    Frame,
    branch_viewer,
    png,
    quantile_flow,
    race_teacher,
    sampler_race,
    schedule_explorer,
    schedule_frame,
    shipped_student,
    student_picker,
)
from warm import python

PICTURES = [np.full((4, 6), level, np.uint8) for level in (0, 60, 120, 180, 240, 255)]


def explorer(start=None, log=None):
    "Two controls, six frames; `log` collects the calls."

    def frame(level, word):
        if log is not None:
            log.append((level, word))
        i = level + 3 * (word == 'two')
        return Frame(png(PICTURES[i]), f'{word} & <{level}>')

    return Explorer('A "small" one', {'level': (0, 1, 2), 'word': ('one', 'two')}, frame, start)


class Page(HTMLParser):
    "The tags of a page with their attributes, and its scripts."

    def __init__(self, page):
        super().__init__()
        self.tags, self.scripts = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == 'script' and data.strip():
            self.scripts.append(data)

    @property
    def data(self):
        return json.loads(self.scripts[0])


def test_page_loads_nothing():
    page = explorer().html()
    links = [
        v
        for _, attrs in Page(page).tags
        for k, v in attrs.items()
        if k in ('src', 'href', 'action', 'srcset')
    ]
    assert links and all(link.startswith('data:image/png;base64,') for link in links)
    text = re.sub(
        r'[\w+/=]{60,}', '', page
    )  # without the pictures' bytes, in which anything may stand
    assert (
        not re.search(r'https?:|//\w|fetch\(|XMLHttpRequest|import\(|url\(', text)
        and '<script>' in text
    )


def test_two_on_one_page_share_no_id():
    page = explorer().html() + explorer({'level': 2}).html()
    ids = [attrs['id'] for _, attrs in Page(page).tags if 'id' in attrs]
    assert len(ids) == len(set(ids)) and 'getElementById' not in page


def test_picture_has_words():
    tags = Page(explorer().html()).tags
    (image,) = (attrs for tag, attrs in tags if tag == 'img')
    assert image['alt'] == 'one & <0>'
    assert ('div', 'A "small" one') in [(tag, attrs.get('aria-label')) for tag, attrs in tags]
    assert [attrs['aria-live'] for tag, attrs in tags if 'aria-live' in attrs] == ['polite']
    assert not [tag for tag, _ in tags if tag in ('input', 'select', 'button')], (
        'a control that nothing answers'
    )


def test_every_setting_has_its_frame():
    data = Page(explorer({'level': 1, 'word': 'two'}).html()).data
    assert [(c['name'], c['values'], c['slider']) for c in data['controls']] == [
        ('level', ['0', '1', '2'], True),
        ('word', ['one', 'two'], False),
    ]
    assert data['start'] == [1, 1]
    texts = [data['frames'][i]['text'] for i in data['order']]
    assert texts == [f'{word} & <{level}>' for level in range(3) for word in ('one', 'two')]


def test_equal_frames_are_stored_once():
    same = Explorer(
        'same', {'a': (1, 2, 3), 'b': (1, 2)}, lambda a, b: Frame(png(PICTURES[b]), str(b))
    )
    data = Page(same.html()).data
    assert len(data['frames']) == 2 and data['order'] == [0, 1] * 3


def test_frames_are_drawn_once():
    log = []
    one = explorer(log=log)
    assert not log, 'nothing is drawn before it is shown'
    pages = {one.html() for _ in range(3)} | {one._repr_mimebundle_()['text/html']}
    assert len(log) == 6 and len(pages) == 1 and explorer().html() in pages


@pytest.mark.parametrize(
    'named',
    [
        '</script><b>',
        '<!--<script>',
        '<img src=x onerror=alert(1)>',
        '" onclick="x',
        '{title}',
        '\u2028&amp;',
    ],
)
def test_what_users_named_is_text_and_nothing_else(named):
    page = Explorer(
        named, {named: (named, 'b'), 'c': (1, 2)}, lambda **at: Frame(png(PICTURES[at['c']]), named)
    ).html()
    plain = explorer().html()

    def names(page):
        return [(tag, sorted(attrs)) for tag, attrs in Page(page).tags]

    assert names(page) == names(plain)
    assert '<' not in Page(page).scripts[0] and Page(page).scripts[1] == Page(plain).scripts[1]
    data = Page(page).data
    assert (
        data['controls'][0] == dict(name=named, values=[named, 'b'], slider=False)
        and data['frames'][0]['text'] == named
    )
    attrs = [attrs for _, attrs in Page(page).tags]
    assert [a['aria-label'] for a in attrs if 'aria-label' in a] == [named] and [
        a['alt'] for a in attrs if 'alt' in a
    ] == [named]


def test_a_live_explorer_shows_what_users_named_as_text():
    named = '<img src=x onerror=alert(1)>'
    control, out = (
        Explorer(named, {named: (named, 'b')}, lambda **at: Frame(png(PICTURES[0]), named))
        .live()
        .children
    )
    assert not control.description_allow_html and named not in out.outputs[0]['data']['text/html']


def test_without_ipywidgets_pages_are_made_and_live_says_what_to_install():
    code = """import sys; sys.modules['ipywidgets'] = None
from bdense_nb.lab.explorers import branch_viewer
explorer = branch_viewer(1)
assert 'bdense-explorer' in explorer.html()
try: explorer.live()
except ImportError as e: assert 'pip install "bdense-nb[widgets]"' in str(e), e
else: assert False"""
    assert python(code).returncode == 0


def test_plain_text_alternative():
    assert explorer({'level': 1})._repr_mimebundle_()['text/plain'] == 'A "small" one: one & <1>'


@pytest.mark.parametrize(
    'error, controls, start',
    [
        (ValueError, {}, None),
        (ValueError, {'a': ()}, None),
        (ValueError, {'a': (1, 1)}, None),
        (TypeError, {'a': (1, 'b')}, None),
        (ValueError, {'a': (1, 2)}, {'a': 3}),
        (ValueError, {'a': (1, 2)}, {'b': 1}),
    ],
)
def test_bad_controls_are_refused(error, controls, start):
    with pytest.raises(error):
        Explorer('x', controls, lambda **_: None, start)


@pytest.mark.parametrize(
    'picture, colours', [([[0]], 16), (np.zeros((2, 2)), 16), (PICTURES[0], 1), (PICTURES[0], 257)]
)
def test_bad_pictures_are_refused(picture, colours):
    with pytest.raises((TypeError, ValueError)):
        png(picture, colours)


def test_live_draws_what_is_asked_for_and_nothing_else():
    log = []
    level, word, out = explorer({'level': 1}, log).live().children
    assert log == [(1, 'one')]
    word.value = 'two'
    assert log == [(1, 'one'), (1, 'two')]
    shown = out.outputs[0]['data']['text/html']
    assert 'alt="two &amp; &lt;1&gt;"' in shown and 'role="status"' in shown


def test_what_cannot_be_changed_gets_no_control():
    log = []
    one = Explorer(
        'x',
        {'level': (0, 1), 'word': ('only',)},
        lambda level, word: log.append(word) or Frame(png(PICTURES[level]), f'{word} {level}'),
    )
    slider, out = one.live().children
    slider.value = 1
    assert log == ['only'] * 2 and 'alt="only 1"' in out.outputs[0]['data']['text/html']
    assert len(one.live(word=ipywidgets.Text(value='other')).children) == 3


def test_live_takes_other_widgets_and_says_errors():
    def frame(level):
        if level > 5:
            raise ValueError(f'{level} is above 5 & refused')
        return Frame(png(PICTURES[level]), str(level))

    box = Explorer('x', {'level': (0, 1)}, frame).live(
        level=ipywidgets.IntSlider(description='level')
    )
    box.children[0].value = 9
    assert '9 is above 5 &amp; refused' in box.children[-1].outputs[0]['data']['text/html']
    with pytest.raises(ValueError, match='unknown control'):
        explorer().live(size=ipywidgets.IntSlider())


def test_too_many_settings_are_left_to_a_kernel():
    many = Explorer(
        'many', {'a': range(100), 'b': range(100)}, lambda a, b: Frame(png(PICTURES[0]), f'{a} {b}')
    )
    with pytest.raises(ValueError, match='10000 settings'):
        many.html()
    assert 'alt="0 0"' in many.live().children[-1].outputs[0]['data']['text/html']


def test_figures_give_the_same_bytes_every_time():
    def drawn():
        fig = Figure(figsize=(2, 1))
        fig.subplots().plot([1, 2])
        return png(fig)

    assert drawn() == drawn() and drawn()[:4] == b'\x89PNG'


@pytest.mark.parametrize(
    'make, limit',
    [
        (lambda: schedule_explorer(n_steps=(8,)), 190_000),
        (lambda: sampler_race((4, 8)), 180_000),
        (lambda: branch_viewer(1), 180_000),
        (lambda: student_picker(seeds=(0,)), 60_000),
    ],
)
def test_explorers_are_small_and_say_what_they_show(make, limit):
    one = make()
    assert len(one.html()) < limit
    texts = [frame.text for frame in one.frames.values()]
    assert all(len(text) > 40 for text in texts) and len(set(texts)) == len(
        set(one.frames.values())
    )


@pytest.mark.parametrize('rho, n_steps', [(1.0, 8), (7.0, 4), (7.0, 16)])
def test_schedule_frames_say_the_error_of_their_grid(rho, n_steps):
    x, levels = (
        80 * sample_noise(range(64), (1,)).double(),
        karras_sigmas(n_steps, 0.002, 80.0, rho),
    )
    error = paired_error(
        sample(race_teacher(), x, levels), quantile_flow(race_teacher(), x, 80.0, 0.002)
    )
    assert (
        f'an error of {error:.3f} against'
        in schedule_frame('karras', rho, n_steps, '0.002 to 80').text
    )


def test_schedule_frames_without_rho_are_shared():
    assert schedule_frame('logsnr', 1.0, 4, '0.02 to 20') is schedule_frame(
        'logsnr', 7.0, 4, '0.02 to 20'
    )


@pytest.mark.parametrize('s', [80.0, 5.0, 0.3, 0.01])
def test_quantile_flow_keeps_quantiles(s):
    teacher, g = race_teacher(), torch.Generator().manual_seed(0)
    x0 = teacher.sample(4000, 1).double()
    x = x0 + 90 * torch.randn(4000, 1, generator=g, dtype=torch.float64)
    moved = quantile_flow(teacher, x, 90.0, s)
    want = x0 + s * torch.randn(4000, 1, generator=g, dtype=torch.float64)
    assert (moved.argsort(0) == x.argsort(0)).all()
    probe = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    spread = (1 + s**2) ** 0.5
    assert ((moved.quantile(probe) - want.quantile(probe)).abs() < 0.1 * spread).all()
    assert torch.allclose(quantile_flow(teacher, moved, s, 90.0), x, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(
    'call, said',
    [
        (lambda: schedule_frame('cosine', 7.0, 8, '0.002 to 80'), 'unknown grid'),
        (lambda: schedule_frame('karras', 7.0, 8, 'all'), 'unknown range of noise levels'),
        (lambda: schedule_frame('karras', 7.0, 0, '0.002 to 80'), 'n_steps'),
        (lambda: schedule_frame('karras', -1.0, 8, '0.002 to 80'), 'rho'),
        (lambda: sampler_race((4, 5)).html(), 'even'),
        (
            lambda: quantile_flow(
                MixtureDenoiser(torch.zeros(1, 2), torch.ones(1), torch.ones(1)),
                torch.zeros(3, 2),
                1.0,
                0.1,
            ),
            'on a line',
        ),
        (lambda: quantile_flow(race_teacher(), torch.zeros(3), 1.0, 0.1), 'on a line'),
        (lambda: branch_viewer(0), 'n must be'),
        (lambda: branch_viewer(99), 'n must be'),
    ],
)
def test_bad_settings_are_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_picker_samples_what_the_student_samples():
    student = shipped_student()
    box = student_picker(n=2).live(seed=ipywidgets.IntText(value=7))
    assert 'seeds 7 to 8, 2 network calls each' in box.children[-1].outputs[0]['data']['text/html']
    box.children[1].value = -1
    assert 'seed must be' in box.children[-1].outputs[0]['data']['text/html']
    with pytest.raises(ValueError, match='10 classes'):
        student_picker(Student(student.denoiser, student.sigmas, student.afs, (1, 32, 32)))
