"The explorers as a reader meets them: a page opened from disk, and a notebook in JupyterLab; by keyboard and by mouse."

import nbformat
import pytest

import lab
from bdense_nb.lab.explorers import Explorer, schedule_explorer
from test_widgets import explorer

pytestmark = pytest.mark.browser


@pytest.fixture
def opened(page, tmp_path):
    "`opened(*explorers)`: the page, showing them, loaded from a file."

    def go(*explorers: Explorer, style=''):
        path = tmp_path / 'page.html'
        path.write_text(
            f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>explorers</title>'
            f'<style>{style}</style><main>{"".join(e.html() for e in explorers)}</main>'
        )
        page.goto(path.as_uri())
        return page

    return go


def shown(page, nth=0):
    "The picture, its alternative and the live text of an explorer."
    root = page.locator('.bdense-explorer').nth(nth)
    return (
        root.locator('img').get_attribute('src'),
        root.locator('img').get_attribute('alt'),
        root.locator('[aria-live]').inner_text(),
    )


def drag(page, slider, share, handle=None):
    "Press the handle (or the slider's middle) and let go at a share of the slider's width."
    track, start = slider.bounding_box(), (handle or slider).bounding_box()
    y = start['y'] + start['height'] / 2
    page.mouse.move(start['x'] + start['width'] / 2, y)
    page.mouse.down()
    page.mouse.move(track['x'] + track['width'] * share, y, steps=5)
    page.mouse.up()


def test_keyboard(opened, shots):
    page = opened(explorer({'level': 1}))
    first = shown(page)
    page.keyboard.press('Tab')
    page.keyboard.press('ArrowRight')
    second = shown(page)
    assert second[1:] == ('one & <2>', 'one & <2>') and second[0] != first[0]
    page.keyboard.press('Home')
    assert shown(page)[1] == 'one & <0>'
    page.keyboard.press('Tab')
    page.keyboard.press('ArrowDown')
    assert shown(page)[1] == 'two & <0>'
    slider = page.get_by_role('slider', name='level')
    assert slider.get_attribute('aria-valuetext') == '0'
    assert page.get_by_role('combobox', name='word').input_value() == '1'
    assert not page.problems


def test_mouse(opened, shots):
    page = opened(schedule_explorer(n_steps=(8,)))
    first = shown(page)
    drag(page, page.get_by_role('slider', name='rho'), 0.99)
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
    assert not page.get_by_text('Run the notebook').count(), 'the controls are there'


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_phone(opened, shots, scheme):
    page = opened(
        schedule_explorer(n_steps=(8,)),
        style=':root { color-scheme: light dark; font-family: sans-serif }',
    )
    page.set_viewport_size({'width': 360, 'height': 740})
    page.emulate_media(color_scheme=scheme)
    shots(page, 'page')
    assert page.evaluate('document.documentElement.scrollWidth') <= 360, 'wider than the screen'
    assert page.locator('.bdense-explorer img').bounding_box()['width'] <= 360


def test_swap_is_quick(opened):
    page = opened(schedule_explorer(n_steps=(8,)))
    took = page.evaluate("""async () => {
        const slider = document.querySelector('input[type=range]'), picture = document.querySelector('img'), times = [];
        for (const value of [0, 1, 2, 3, 2, 1, 0]) {
            const begin = performance.now();
            slider.value = value; slider.dispatchEvent(new Event('input')); await picture.decode();
            times.push(performance.now() - begin);
        }
        return times;
    }""")
    print('milliseconds from input to decoded picture:', [round(t, 1) for t in took])
    assert sorted(took)[3] < 200, took


def test_without_scripts_there_is_a_picture(chromium, tmp_path):
    (tmp_path / 'page.html').write_text(explorer({'level': 1}).html())
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((tmp_path / 'page.html').as_uri())
    assert page.get_by_role('img', name='one & <1>').is_visible()
    assert page.locator('input, select').count() == 0
    assert page.get_by_text('Run the notebook up to here').is_visible()
    context.close()


FEW = """from bdense_nb.lab.explorers import Explorer, schedule_frame
at = dict(grid='karras', n_steps=8, sigmas='0.002 to 80')
explorer = Explorer(
    'Schedule explorer', dict(rho=(1.0, 3.0, 7.0, 15.0)), lambda rho: schedule_frame(rho=rho, **at), dict(rho=7.0)
)"""  # frames enough for what is done here; test_mouse has them all
LESSON = [
    FEW,
    'explorer',
    'explorer.live()',
    'print("the end")',
]


def store_lesson(path):
    "A lesson as it is stored: what its explorer shows as HTML, and no numbers of cells."
    new = nbformat.v4
    exec(FEW, made := {})
    shown = new.new_output('execute_result', data=made['explorer']._repr_mimebundle_())
    nb = new.new_notebook(
        cells=[new.new_code_cell(source) for source in LESSON],
        metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')),
    )
    nb.cells[1].outputs = [shown]
    nbformat.write(nb, path)


def see_first_page(page):
    "The course's first page, with its pictures and a kernel."
    assert page.url.endswith('/lab/tree/nbs/index.ipynb')
    page.get_by_role('heading', name='bdense-nb').first.wait_for()
    pictures = page.locator('.jp-MarkdownCell img')
    assert pictures.count() >= 2 and all(
        p.evaluate('async image => (await image.decode(), image.naturalWidth)') > 0
        for p in pictures.all()
    )


def go_through(page, shots):
    "The lesson from the top by the menu, its two explorers by keyboard and mouse, all once more after a restart."
    stored = page.locator('.jp-OutputArea img').first
    stored.scroll_into_view_if_needed()
    assert stored.evaluate('image => image.naturalWidth') > 0, 'no picture before anything has run'
    assert page.get_by_text('Run the notebook up to here').is_visible(), (
        'no controls, and nothing says why'
    )
    shots(page, 'lesson')
    lab.run_all(page)
    for run in 'first run', 'after a restart':
        lab.wait_until_done(page)
        assert not lab.errors(page)
        use_page(page)
        use_live(page)
        shots(page, run)
        if run == 'first run':
            lab.restart_and_run_all(page)


def test_in_jupyterlab(page, root, tmp_path, shots):
    "`make lab` opens the course on its first page; then a lesson, as a person goes through it. Where make has not set up .venv, JupyterLab is started without it."
    made = (root / '.venv' / '.ready').is_file()
    command = lambda options: [
        'make',
        '--old-file=.venv/.ready',
        'lab',
        f'ARGS={" ".join(options)}',
    ]  # installs nothing now
    (tmp_path / 'home').mkdir()
    lesson = root / '_screenshots' / 'lesson.ipynb'
    store_lesson(lesson)
    with lab.server(root, tmp_path / 'home', command if made else lab.plain) as url:
        lab.open_notebook(page, url, '' if made else 'nbs/index.ipynb')
        see_first_page(page)
        shots(page, 'opened')
        lab.open_another(page, lesson.relative_to(root).as_posix())
        go_through(page, shots)
        page.goto('about:blank')  # leaves no request of the page behind when the server ends
    assert not page.problems


def use_page(page):
    "Move the slider of an explorer that needs no kernel, by keyboard and by mouse."
    root = page.get_by_role('group', name='Schedule explorer')
    slider, picture, text = (
        root.get_by_role('slider', name='rho'),
        root.locator('img'),
        root.locator('[aria-live]'),
    )
    slider.scroll_into_view_if_needed()
    assert not root.get_by_text('Run the notebook').count()
    seen = [(picture.get_attribute('src'), text.inner_text())]
    slider.focus()
    page.keyboard.press('Home')
    seen.append((picture.get_attribute('src'), text.inner_text()))
    drag(page, slider, 0.99)
    seen.append((picture.get_attribute('src'), text.inner_text()))
    assert 'rho 1:' in seen[1][1] and 'rho 15:' in seen[2][1] and len({src for src, _ in seen}) == 3
    last = int(slider.input_value())
    for key, value in (
        ('ArrowLeft', last - 1),
        ('ArrowRight', last),
        ('ArrowDown', last - 1),
    ):  # after a mouse click JupyterLab would take them
        page.keyboard.press(key)
        assert int(slider.input_value()) == value and slider.evaluate(
            'slider => slider === document.activeElement'
        ), key
    assert picture.evaluate('image => image.complete && image.naturalWidth') > 0


def use_live(page):
    "Move a slider that Python answers, by keyboard and by mouse."
    box = page.locator('.widget-vbox').first
    handle, picture = box.locator('.noUi-handle').first, box.locator('.jp-OutputArea img')
    handle.scroll_into_view_if_needed()
    assert 'rho 7:' in picture.get_attribute('alt')
    handle.focus()
    page.keyboard.press('ArrowRight')
    says(page, picture, 'rho 15:')
    drag(page, box.locator('.noUi-base').first, 0.4, handle)
    says(page, picture, 'rho 3:')


def says(page, picture, wanted, seconds=30):
    "The picture's alternative says what is wanted, soon."
    for _ in range(10 * seconds):
        if picture.count() and wanted in (now := picture.get_attribute('alt')):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f'{wanted} is not shown, but: {now}')
