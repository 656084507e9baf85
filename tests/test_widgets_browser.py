"The explorers as a reader meets them: a page opened from disk, and a notebook in JupyterLab; by keyboard and by mouse."
import os
import shutil
import subprocess
import sys
import time
from urllib.request import urlopen

import pytest

from bdense_nb.widgets import Explorer, schedule_explorer
from test_widgets import explorer

pytestmark = pytest.mark.browser


@pytest.fixture
def shots(tmp_path_factory, request):
    "Where this test leaves its screenshots."
    folder = tmp_path_factory.getbasetemp()/'screenshots'
    folder.mkdir(exist_ok=True)
    return lambda page, name: page.screenshot(path=folder/f'{request.node.name}-{name}.png')


@pytest.fixture
def opened(page, tmp_path):
    "`opened(*explorers)`: the page, showing them, loaded from a file."
    def go(*explorers: Explorer, style=''):
        path = tmp_path/'page.html'
        path.write_text(f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>explorers</title>'
                        f'<style>{style}</style><main>{"".join(e.html() for e in explorers)}</main>')
        page.goto(path.as_uri())
        return page
    return go


def shown(page, nth=0):
    "The picture, its alternative and the live text of an explorer."
    root = page.locator('.bdense-explorer').nth(nth)
    return root.locator('img').get_attribute('src'), root.locator('img').get_attribute('alt'), root.locator('[aria-live]').inner_text()


def drag(page, slider, share):
    "Press the slider's middle and let go at a share of its width."
    box = slider.bounding_box()
    y = box['y'] + box['height']/2
    page.mouse.move(box['x'] + box['width']/2, y); page.mouse.down()
    page.mouse.move(box['x'] + box['width']*share, y, steps=5); page.mouse.up()


def test_keyboard(opened, shots):
    page = opened(explorer({'level': 1}))
    first = shown(page)
    page.keyboard.press('Tab'); page.keyboard.press('ArrowRight')
    second = shown(page)
    assert second[1:] == ('one & <2>', 'one & <2>') and second[0] != first[0]
    page.keyboard.press('Home')
    assert shown(page)[1] == 'one & <0>'
    page.keyboard.press('Tab'); page.keyboard.press('ArrowDown')
    assert shown(page)[1] == 'two & <0>'
    slider = page.get_by_role('slider', name='level')
    assert slider.get_attribute('aria-valuetext') == '0'
    assert page.get_by_role('combobox', name='word').input_value() == '1'
    assert not page.problems


def test_mouse(opened, shots):
    page = opened(schedule_explorer(n_steps=(4, 8)))
    first = shown(page)
    drag(page, page.get_by_role('slider', name='rho'), .99)
    second = shown(page)
    assert 'rho 15' in second[2] and second[0] != first[0]
    page.get_by_role('combobox', name='grid').select_option('logsnr')
    assert shown(page)[2].startswith('logsnr')
    shots(page, 'page')
    assert not page.problems


def test_two_explorers_do_not_touch_each_other(opened):
    page = opened(explorer(), explorer({'level': 2}))
    page.get_by_role('slider', name='level').nth(1).press('ArrowLeft')
    assert shown(page, 0)[1] == 'one & <0>' and shown(page, 1)[1] == 'one & <1>'
    assert page.get_by_role('slider').count() == page.get_by_role('combobox').count() == 2


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_phone(opened, shots, scheme):
    page = opened(schedule_explorer(n_steps=(8,)), style=':root { color-scheme: light dark; font-family: sans-serif }')
    page.set_viewport_size({'width': 360, 'height': 740})
    page.emulate_media(color_scheme=scheme)
    shots(page, 'page')
    assert page.evaluate('document.documentElement.scrollWidth') <= 360, 'wider than the screen'
    assert page.locator('.bdense-explorer img').bounding_box()['width'] <= 360


def test_swap_is_quick(opened):
    page = opened(schedule_explorer(n_steps=(4, 8)))
    took = page.evaluate('''async () => {
        const slider = document.querySelector('input[type=range]'), picture = document.querySelector('img'), times = [];
        for (const value of [0, 1, 2, 3, 2, 1, 0]) {
            const begin = performance.now();
            slider.value = value; slider.dispatchEvent(new Event('input')); await picture.decode();
            times.push(performance.now() - begin);
        }
        return times;
    }''')
    print('milliseconds from input to decoded picture:', [round(t, 1) for t in took])
    assert len(took) == 7


def test_without_scripts_there_is_a_picture(chromium, tmp_path):
    (tmp_path/'page.html').write_text(explorer({'level': 1}).html())
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((tmp_path/'page.html').as_uri())
    assert page.get_by_role('img', name='one & <1>').is_visible()
    assert page.locator('input, select').count() == 0
    context.close()
