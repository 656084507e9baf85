"The interactive explorers: one self-contained page for what is drawn beforehand, Python behind the rest."
import json
import re
from html.parser import HTMLParser

import ipywidgets
import numpy as np
import pytest

from bdense_nb.widgets import Explorer, Frame, png

PICTURES = [np.full((4, 6), level, np.uint8) for level in (0, 60, 120, 180, 240, 255)]


def explorer(start=None, log=None):
    "Two controls, six frames; `log` collects the calls."
    def frame(level, word):
        if log is not None: log.append((level, word))
        i = level + 3*(word == 'two')
        return Frame(png(PICTURES[i]), f'{word} & <{level}>')
    return Explorer('A "small" one', {'level': (0, 1, 2), 'word': ('one', 'two')}, frame, start)


class Page(HTMLParser):
    "The tags of a page with their attributes, and its scripts."
    def __init__(self, page):
        super().__init__()
        self.tags, self.scripts = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs): self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == 'script' and data.strip(): self.scripts.append(data)

    @property
    def data(self): return json.loads(self.scripts[0])


def test_page_loads_nothing():
    page = explorer().html()
    links = [v for _, attrs in Page(page).tags for k, v in attrs.items() if k in ('src', 'href', 'action', 'srcset')]
    assert links and all(link.startswith('data:image/png;base64,') for link in links)
    assert not re.search(r'https?:|//\w|fetch\(|XMLHttpRequest|import\(|url\(', page)


def test_two_on_one_page_share_no_id():
    page = explorer().html() + explorer({'level': 2}).html()
    ids = [attrs['id'] for _, attrs in Page(page).tags if 'id' in attrs]
    assert len(ids) == len(set(ids)) and 'getElementById' not in page


def test_picture_has_words():
    tags = Page(explorer().html()).tags
    image, = (attrs for tag, attrs in tags if tag == 'img')
    assert image['alt'] == 'one & <0>'
    assert ('div', 'A "small" one') in [(tag, attrs.get('aria-label')) for tag, attrs in tags]
    assert [attrs['aria-live'] for tag, attrs in tags if 'aria-live' in attrs] == ['polite']
    assert not [tag for tag, _ in tags if tag in ('input', 'select', 'button')], 'a control that nothing answers'


def test_every_setting_has_its_frame():
    data = Page(explorer({'level': 1, 'word': 'two'}).html()).data
    assert [(c['name'], c['values'], c['slider']) for c in data['controls']] == [('level', ['0', '1', '2'], True), ('word', ['one', 'two'], False)]
    assert data['start'] == [1, 1]
    texts = [data['frames'][i]['text'] for i in data['order']]
    assert texts == [f'{word} & <{level}>' for level in range(3) for word in ('one', 'two')]


def test_equal_frames_are_stored_once():
    same = Explorer('same', {'a': (1, 2, 3), 'b': (1, 2)}, lambda a, b: Frame(png(PICTURES[b]), str(b)))
    data = Page(same.html()).data
    assert len(data['frames']) == 2 and data['order'] == [0, 1]*3


def test_frames_are_drawn_once():
    log = []
    one = explorer(log=log)
    assert not log, 'nothing is drawn before it is shown'
    pages = {one.html() for _ in range(3)} | {one._repr_mimebundle_()['text/html']}
    assert len(log) == 6 and len(pages) == 1 and explorer().html() in pages


def test_text_cannot_end_the_script():
    page = Explorer('x', {'a': (1,)}, lambda a: Frame(png(PICTURES[0]), '</script><b>')).html()
    assert Page(page).data['frames'][0]['text'] == '</script><b>' and '<b>' not in [tag for tag, _ in Page(page).tags]


def test_plain_text_alternative():
    assert explorer({'level': 1})._repr_mimebundle_()['text/plain'] == 'A "small" one: one & <1>'


@pytest.mark.parametrize('error, controls, start', [
    (ValueError, {}, None), (ValueError, {'a': ()}, None), (ValueError, {'a': (1, 1)}, None), (TypeError, {'a': (1, 'b')}, None),
    (ValueError, {'a': (1, 2)}, {'a': 3}), (ValueError, {'a': (1, 2)}, {'b': 1})])
def test_bad_controls_are_refused(error, controls, start):
    with pytest.raises(error): Explorer('x', controls, lambda **_: None, start)


@pytest.mark.parametrize('picture, colours', [([[0]], 16), (np.zeros((2, 2)), 16), (PICTURES[0], 1), (PICTURES[0], 257)])
def test_bad_pictures_are_refused(picture, colours):
    with pytest.raises((TypeError, ValueError)): png(picture, colours)


def test_live_draws_what_is_asked_for_and_nothing_else():
    log = []
    level, word, out = explorer({'level': 1}, log).live().children
    assert log == [(1, 'one')]
    word.value = 'two'
    assert log == [(1, 'one'), (1, 'two')]
    shown = out.outputs[0]['data']['text/html']
    assert 'alt="two &amp; &lt;1&gt;"' in shown and 'role="status"' in shown


def test_live_takes_other_widgets_and_says_errors():
    def frame(level):
        if level > 5: raise ValueError(f'{level} is above 5 & refused')
        return Frame(png(PICTURES[level]), str(level))
    box = Explorer('x', {'level': (0, 1)}, frame).live(level=ipywidgets.IntSlider(description='level'))
    box.children[0].value = 9
    assert '9 is above 5 &amp; refused' in box.children[-1].outputs[0]['data']['text/html']
    with pytest.raises(ValueError, match='unknown control'): explorer().live(size=ipywidgets.IntSlider())
