"The documentation site in a real browser: every page, search, the explorers, dark mode, accessibility."

import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from bdense_nb.core import sample_noise
from bdense_nb.diffusion.data import to_pixels
from conftest import opened
from docs_live import samplers
from docs_sources import SETTINGS

pytestmark = pytest.mark.browser
BASE = SETTINGS['doc_baseurl'] + '/'
PHONE, DESK = {'width': 390, 'height': 844}, {'width': 1280, 'height': 900}
KINDS = {
    'home': 'index.html',
    'live': 'live.html',
    'lesson': 'distillation/02_branches.html',
    'reference': 'api/distillation.losses.html',
}  # one page of each kind is looked at more closely, in light and dark

# Read pages without opening them. Their formulas, and their pictures with all that these stand in, are put into the page that is
# open; what comes back is what is wrong, and how much of what may be too wide for a phone each page has.
READ = """async paths => {
    const article = document.querySelector('article'), known = new Set(), bad = {}, risks = {};
    article.replaceChildren();
    document.documentElement.style.visibility = 'hidden'; // laid out as ever, and not painted
    for (const path of paths) {
        const answer = await fetch(path), there = new DOMParser().parseFromString(await answer.text(), 'text/html');
        const all = what => [...there.querySelectorAll(what)], most = numbers => Math.max(0, ...numbers);
        const main = there.querySelector('article'), formulas = all('.math'), wrong = bad[path] = [];
        for (const math of formulas) if (!known.has(math.outerHTML)) {
            known.add(math.outerHTML);
            article.append(math.cloneNode(true));
        }
        if (formulas.length && !all('script[src*=tex-svg]').length) wrong.push('nothing draws its formulas');
        for (const m of all('.problematic, .system-message')) wrong.push('error: ' + m.textContent.slice(0, 60));
        for (const m of all('code.py-obj, code.py-mod')) if (!m.closest('a')) wrong.push('no such name: ' + m.textContent);
        for (const image of path.endsWith('py-modindex.html') ? [] : main.querySelectorAll('img')) { // there they are Sphinx's own
            let shown = image.cloneNode();
            shown.src = new URL(image.getAttribute('src'), new URL(path, location)).href;
            for (let e = image.parentElement; e !== main; e = e.parentElement) {
                const around = e.cloneNode();
                around.append(shown);
                shown = around;
            }
            shown.dataset.page = path;
            article.append(shown);
        }
        const words = [], texts = there.createTreeWalker(main, NodeFilter.SHOW_TEXT);
        while (texts.nextNode()) if (!texts.currentNode.parentElement.closest('pre, script, style, .math'))
            words.push(...texts.currentNode.data.split(/[\\s-]+/).map(word => word.length));
        risks[path] = {
            word: words.reduce((a, b) => Math.max(a, b), 0),
            columns: most([...main.querySelectorAll('tr')].map(row => row.cells.length)),
            formula: most(formulas.filter(e => !e.closest('div.math')).map(e => e.textContent.length)),
            shown: most(formulas.filter(e => e.closest('div.math')).map(e => e.textContent.length)),
            code: most([...main.querySelectorAll('pre')].filter(e => !e.closest('.highlight')).map(e => most(e.textContent.split('\\n').map(line => line.length)))),
            given: most([...main.querySelectorAll('[width], [style*=width]')].map(e => parseFloat(e.getAttribute('width') || e.style.width || e.style.minWidth) || 0)),
            scripts: most([...main.querySelectorAll('script')].map(e => e.textContent.length)),
        };
        main.querySelectorAll('pre, code, script, style, .math, .bdense-explorer').forEach(e => e.remove());
        for (const raw of ['#|', ':::', '$$', '\\\\(', '\\\\[', '{py:', '{ref}', '{term}', '<IPython'])
            if (main.textContent.includes(raw)) wrong.push('raw ' + raw);
    }
    await MathJax.startup.promise;
    await MathJax.typesetPromise([article]);
    const drawn = article.querySelectorAll('.math');
    bad.formulas = [...drawn].filter(m => !m.querySelector('mjx-container')).map(m => 'not drawn: ' + m.textContent.slice(0, 60));
    for (const m of article.querySelectorAll('mjx-merror, [data-mjx-error]')) bad.formulas.push('error: ' + m.textContent.slice(0, 60));
    const count = drawn.length;
    drawn.forEach(m => m.remove()); // the pictures stay
    return [bad, risks, count];
}"""


class Quiet(SimpleHTTPRequestHandler):
    "The site, also below the address that settings.ini gives it; a missing page is answered as GitHub Pages does."

    def log_message(self, *args):
        pass

    def translate_path(self, path):
        return super().translate_path(f'/{path.removeprefix(BASE)}')

    def send_error(self, code, *args):
        self.send_response(code)
        self.end_headers()
        self.wfile.write(Path(self.directory, '404.html').read_bytes())


@pytest.fixture(scope='module')
def address(site):
    "The built site, served on loopback."
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


def visits(page, address):
    "`visit(path)` opens a page of the site; `visit.page` is the browser's."
    page.set_default_timeout(60_000)
    page.on('console', lambda m: m.type == 'error' and page.problems.append(f'console: {m.text}'))

    def visit(path):
        page.goto(f'{address}/{path}')
        return page

    visit.page = page
    return visit


@pytest.fixture
def first_visit(page, address):
    "Of a reader who has never been here."
    return visits(page, address)


@pytest.fixture(scope='module')
def reader(chromium, address):
    "One for all tests that do not ask for a new one: what every page loads is read once."
    with opened(chromium) as page:
        yield visits(page, address)


@pytest.fixture
def visit(reader):
    "Of a reader who remembers no choice and no search, and whose window is as it was."
    page = reader.page
    yield reader
    page.unroute_all()
    page.evaluate('() => { localStorage.clear(); sessionStorage.clear(); }')
    page.goto('about:blank')
    page.set_viewport_size(DESK)
    page.emulate_media(color_scheme='light')
    page.problems.clear()


# put another page into this one, if this one has loaded all that it would: its scripts run, its formulas are drawn
PUT = """async path => {
    const answer = await fetch(path), there = new DOMParser().parseFromString(await answer.text(), 'text/html');
    const loads = (page, at) => [...page.querySelectorAll('script[src], link[rel=stylesheet]')].map(
        e => new URL(e.getAttribute('src') || e.getAttribute('href'), at).pathname
    );
    window.loaded ??= new Set(loads(document, location)); // while the address is this page's own
    if (!loads(there, new URL(path, location)).every(e => loaded.has(e))) return false;
    document.querySelectorAll('link[rel~=icon]').forEach(e => e.href = e.href); // as they are, whatever the address
    document.querySelectorAll('.sidebar-logo').forEach(e => e.src = e.src);
    history.replaceState(null, '', path);
    const main = document.adoptNode(there.querySelector('.main'));
    document.querySelector('.main').replaceWith(main);
    for (const script of main.querySelectorAll('script')) {
        const runs = document.createElement('script');
        for (const {name, value} of script.attributes) runs.setAttribute(name, value);
        runs.textContent = script.textContent;
        script.replaceWith(runs);
    }
    await window.MathJax?.typesetPromise([main]);
    return true;
}"""


# what is wider than the screen scrolls the page, or its content in furo's own box
WIDTH = """Math.max(...[document.documentElement, ...document.querySelectorAll('.content')].map(e => e.scrollWidth))"""


LOST = """async () => {
    await window.MathJax?.startup?.promise;
    return [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => 'picture: ' + i.src.slice(0, 80));
}"""


CUT = """[...document.querySelectorAll('article pre')].filter(e => e.clientWidth && e.scrollWidth > e.clientWidth + 1).length"""


# of every picture that is seen: its name, how bright it is with its filter, and how much of its edge is
SHADES = """async () => {
    document.querySelectorAll('article details').forEach(d => d.open = true);
    const found = [];
    for (const image of document.querySelectorAll('article img')) {
        if (!image.clientWidth) continue;
        await image.decode();
        const canvas = new OffscreenCanvas(60, 60), context = canvas.getContext('2d');
        context.filter = getComputedStyle(image).filter;
        context.drawImage(image, 0, 0, 60, 60);
        const {data} = context.getImageData(0, 0, 60, 60);
        const light = Array.from({length: 3600}, (_, i) => (data[4*i] + data[4*i + 1] + data[4*i + 2])/3);
        const edge = light.filter((_, i) => i < 60 || i >= 3540), mean = a => a.reduce((x, y) => x + y)/a.length;
        const name = image.src.startsWith('data:') ? 'explorer' : image.src.split('/').pop();
        found.push([`${image.closest('[data-page]').dataset.page}: ${name}`, mean(light), mean(edge)]);
    }
    return found;
}"""


def pictures(page):
    "How many were looked at, and which are not as dark as their page: what the switch says counts, whatever the system has."
    seen, wrong = 0, []
    for system, switch in ('dark', 'auto'), ('light', 'dark'), ('dark', 'light'):
        page.emulate_media(color_scheme=system)
        page.evaluate('theme => { document.body.dataset.theme = theme; }', switch)
        for name, mean, edge in page.evaluate(SHADES):
            seen += 1
            bright = edge > 130 if switch == 'light' else mean > 140 or edge > 60
            if bright != (switch == 'light'):
                wrong.append(
                    f'system {system}, switch {switch}: {name} {mean:.0f}, its edge {edge:.0f}'
                )
    page.emulate_media(color_scheme='light')
    page.evaluate("document.body.dataset.theme = 'auto'")
    return seen, wrong


def worst(risks, n=4):
    "The pages that have most of what may be too wide: of each kind n."
    kinds = next(iter(risks.values()))
    most = lambda kind: sorted(risks, key=lambda path: -risks[path][kind])[:n]
    return {path for kind in kinds for path in most(kind) if risks[path][kind]}


def test_every_page(visit, site):
    """Nothing raw, every name known, every formula drawn, every picture dark on a dark page: formulas and pictures of all are put into one
    page. Nothing may fail, be foreign or scroll a phone sideways on the first page of each folder, on one of each template, opened on a
    desk too, and on those that have most of what may be too wide (`worst`): a third of all."""
    page = visit('training/03_devices.html')  # it draws formulas, and is light
    paths = sorted(p.relative_to(site).as_posix() for p in site.rglob('*.html'))
    listings = [path for path in paths if path.startswith('_modules')]
    paths = [path for path in paths if path not in listings or path in listings[::8]]
    problems, risks, formulas = page.evaluate(READ, [f'/{path}' for path in paths])
    seen, problems['pictures'] = pictures(page)
    assert formulas > 400 and seen > 462
    opened = {*KINDS.values(), '404.html', 'genindex.html', 'search.html'}
    first = {path.split('/')[0]: path for path in reversed(paths)}
    asked = {*first.values(), *opened, *(path[1:] for path in worst(risks))}
    loads = lambda path: 'tex-svg' in (site / path).read_text(encoding='utf-8')
    for path in sorted(asked, key=lambda path: (loads(path), path)):  # what is loaded stays
        page.problems.clear()
        if fresh := path in opened or not page.evaluate(PUT, f'/{path}'):
            visit(path).evaluate(
                "document.documentElement.style.visibility = 'hidden'"
            )  # laid out as ever, and not painted
        found = [*page.evaluate(LOST), *page.problems]
        for size in (DESK, PHONE) if fresh else (PHONE,):
            if page.viewport_size != size:
                page.set_viewport_size(size)
            width = page.evaluate(WIDTH)
            if width > size['width'] and not fresh:  # formulas that are put get no box from site.js
                visit(path).evaluate(LOST)
                width = page.evaluate(WIDTH)
            if width > size['width']:
                found.append(f'{width} pixels wide on a screen of {size["width"]}')
            if size == DESK and (cut := page.evaluate(CUT)):
                found.append(f'{cut} listings are cut off on a desk')
        problems[f'/{path}'] += found
    assert not any(problems.values()), '\n'.join(f'{k}: {v}' for k, v in problems.items() if v)


@pytest.mark.parametrize(
    'query, page_found, kind',
    [
        ('NFECounter', 'api/core.html', 'Reference'),
        ('halving', 'course/4_halving.html', 'Course'),
        ('progressive_targets', 'api/distillation.segments.html', 'Reference'),
        ('pixel_shuffle', 'distillation/02_branches.html', 'Library'),
    ],
)
def test_search(visit, query, page_found, kind):
    page = visit('index.html')
    page.locator('.sidebar-search').fill(query)
    page.keyboard.press('Enter')
    page.locator(
        f'#search-results li:has(.found-in:text("{kind}")) a[href*="{page_found}"]'
    ).first.wait_for()
    assert not page.problems


def test_figures_on_a_phone(visit):
    "Those of the front page are seen whole, at more than half their size; a wide one of a lesson keeps its size and scrolls."
    visit.page.set_viewport_size(PHONE)
    page = visit('index.html')
    shown = page.locator('article img').evaluate_all(
        'images => images.map(i => [i.src.split("/").pop(), i.clientWidth/i.naturalWidth, i.clientWidth])'
    )
    shown = {name: rest for name, *rest in shown}
    assert all(
        shown[name][0] > 0.5 and shown[name][1] <= PHONE['width']
        for name in (
            'spiral.gif',
            'method.light.svg',
            'gains.png',
            'forecasting.png',
            'anomalies.png',
        )
    ), shown
    page = visit('course/3_why_walks_bend.html')
    page.locator('details summary').last.click()
    box = page.locator('a.full:visible').first
    assert box.locator('img').evaluate(
        'i => i.clientWidth === i.naturalWidth && i.naturalWidth > 600'
    )
    box.focus()
    page.keyboard.press('ArrowRight')
    page.wait_for_function('e => e.scrollLeft > 0', arg=box.element_handle())


BROKEN = """codes => {
    const broken = [], range = document.createRange();
    for (const code of codes) for (const walker = document.createTreeWalker(code, NodeFilter.SHOW_TEXT); walker.nextNode();)
        for (const word of walker.currentNode.data.matchAll(/[A-Za-z0-9]+/g)) {
            range.setStart(walker.currentNode, word.index); range.setEnd(walker.currentNode, word.index + word[0].length);
            if (new Set([...range.getClientRects()].map(r => Math.round(r.top))).size > 1) broken.push(word[0]);
        }
    return broken;
}"""


@pytest.mark.parametrize(
    'path', ['api/distillation.students.html', 'api/app.commands.html', 'api/training.hooks.html']
)
def test_no_word_of_a_type_is_broken_on_a_phone(visit, path):
    visit.page.set_viewport_size(PHONE)
    codes = visit(path).locator('table.parameters code')
    assert codes.count() > 50 and not codes.evaluate_all(BROKEN)
    assert codes.locator('wbr').count()


def test_lessons_come_first(visit):
    "In a search for their title, number or topic; a result says of what kind it is."
    page = visit('search.html?q=lesson+3')
    page.locator('#search-results li:has(a[href^="00_core"]) .found-in:text("Library")').wait_for()
    assert page.locator('#search-results li a').first.get_attribute('href').startswith('course/3_')
    first = """query => {
        history.replaceState(null, '', `?q=${query}`);
        return Search._performSearch(...Search._parseQuery(query)).at(-1)[0];
    }"""
    for query, lesson in (
        ('Progressive Distillation', 4),
        ('branch', 6),
        ('branches', 6),
        ('capstone', 9),
        ('Lesson 5', 5),
        ('why walks bend', 3),
        ('SFD', 5),
        ('spiral', 2),
        ('diffusers', 8),
        ('my own data', 2),
        ('what is a branch', 6),
        ('GPU memory', 8),
        ('analytic first step', 2),
        ('branch weights', 7),
        ('K', 6),
        ('own dataset', 2),
        ('custom data', 2),
    ):
        assert page.evaluate(first, query).startswith(f'course/{lesson}_'), query
    for query, found in (
        ('NFECounter', 'api/core'),
        ('how to install', 'index'),
        ('multi gpu', 'training/03_devices'),
        ('hugging face hub', 'interop/01_diffusers'),
        ('endpoint', 'glossary'),
    ):
        assert page.evaluate(first, query) == found, query
    assert not page.problems


def test_sections_of_the_sidebar(visit):
    "All headings are on the screen; the page's section is open, others open by keyboard."
    visit.page.set_viewport_size(DESK)
    page = visit('course/10_solutions.html')
    heads = page.locator('.sidebar-tree summary')
    assert heads.count() == 6 and all(
        box.bounding_box()['y'] + 20 < DESK['height'] for box in heads.all()
    )
    assert page.locator('.sidebar-tree details[open] .caption-text').all_inner_texts() == ['COURSE']
    heads.nth(3).press('Enter')
    assert page.locator('.sidebar-tree a', has_text='Diffusion').first.is_visible()
    visit.page.set_viewport_size(PHONE)
    drawer = page.locator('.sidebar-search')
    drawer.wait_for(state='hidden')  # out of the keyboard's way, until it is opened by it
    page.locator('label.nav-overlay-icon').press('Enter')
    drawer.wait_for(state='visible')
    assert (
        page.locator('label.nav-overlay-icon').get_attribute('aria-label')
        == 'Toggle site navigation sidebar'
    )
    page.wait_for_function("document.activeElement.closest('.sidebar-drawer')")
    page.keyboard.press('Escape')
    drawer.wait_for(state='hidden')


BOXES = 'article pre, article .table-wrapper, article mjx-container, article a.full'
CUT_OFF = """boxes => boxes.filter(e => e.clientWidth && e.scrollWidth > e.clientWidth + 1 && !(e.matches('.scrolls.more') && e.tabIndex === 0)).map(e => e.textContent.slice(0, 60))"""


def test_results_on_a_phone(visit):
    "The overview fits, and what is wider scrolls."
    visit.page.set_viewport_size(PHONE)
    page = visit('results.html')
    assert page.evaluate('document.documentElement.scrollHeight') < 14_000
    page.evaluate("document.querySelectorAll('article details').forEach(d => { d.open = true; })")
    page.locator('article .scrolls.more:visible').first.wait_for()
    table = page.locator('article .table-wrapper').first
    assert table.locator('th').all_inner_texts()[:3] == [
        'better',
        'worse',
        'neither',
    ] and table.evaluate('e => e.scrollWidth <= e.clientWidth + 1')
    assert not page.locator(BOXES).evaluate_all(CUT_OFF)


def test_a_missing_page_has_the_site_around_it(visit):
    "However deep it was looked for, and without a wrong request."
    page = visit(f'{BASE[1:]}tutorials/deep/none.html')
    assert len(page.problems) == 2 and page.problems[0].endswith('none.html'), (
        page.problems
    )  # the status of the page itself, said twice
    page.problems.clear()
    assert (
        page.locator('.sidebar-tree a', has_text='A first distillation').count()
        and page.locator('.sidebar-search').is_visible()
    )
    page.locator('article a', has_text='Start with lesson 1').click()
    assert page.url.endswith('/course/1_first_distillation.html') and not page.problems


def test_a_formula_fits_a_phone(visit):
    visit.page.set_viewport_size(PHONE)
    page = visit('course/1_first_distillation.html')
    page.wait_for_function('window.MathJax?.startup?.promise')
    formulas = page.locator('article mjx-container[display=true]')
    formulas.first.wait_for()
    assert formulas.count() and not formulas.evaluate_all(
        'all => all.filter(e => e.scrollWidth > e.clientWidth).length'
    )
    page.set_viewport_size({'width': 1, 'height': 1})  # as a window may be before it is shown
    page.wait_for_function('innerWidth < 10')
    page.set_viewport_size(PHONE)
    page.wait_for_function("!document.querySelector('article mjx-container.wide')")


def test_sidebar_shows_the_place(visit):
    "Also far down the list."
    here = visit('training/05_loop.html').locator('.sidebar-tree a.current')
    box = here.bounding_box()
    assert here.count() == 1 and 0 < box['y'] < DESK['height'] - box['height']


def test_parameters_on_a_phone(visit):
    "A type is not broken within a word, and stands in one line with its parameter."
    visit.page.set_viewport_size(PHONE)
    row = (
        visit('api/diffusion.samplers.html')
        .locator('table.parameters tr:has(:text-is("sigma_next"))')
        .first
    )
    name, kind, meaning = (row.locator('td').nth(i).bounding_box() for i in (0, 1, 3))
    assert (
        abs(name['y'] - kind['y']) < 5
        and kind['height'] < 30
        and meaning['y'] > name['y'] + 10
        and meaning['width'] > 250
    )


@pytest.mark.parametrize(
    'path',
    ['course/1_first_distillation.html', 'course/6_branches.html', 'distillation/07_sfd.html'],
)
def test_what_is_wide_scrolls_on_a_phone(visit, path):
    "Formulas, code, outputs and tables keep their lines, fade at the end that hides something, and lose the fade there."
    visit.page.set_viewport_size(PHONE)
    page = visit(path)
    page.locator('article .scrolls.more:visible').first.wait_for()
    page.wait_for_timeout(300)
    assert not page.locator(BOXES).evaluate_all(CUT_OFF)
    box = page.locator('article .scrolls.more:visible').first.element_handle()
    box.evaluate('e => { e.scrollLeft = e.scrollWidth; }')
    page.wait_for_function("e => !e.classList.contains('more')", arg=box)
    assert page.evaluate(WIDTH) <= PHONE['width']


# of every explorer that is seen: the pictures at the last, first and middle place of its first slider
MOVED = """roots => roots.filter(root => root.checkVisibility()).map(root => {
    const slider = root.querySelector('input[type=range]'), picture = root.querySelector('img');
    const places = [slider.max, 0, Math.round(0.6*slider.max)].map(value => {
        slider.value = value;
        slider.dispatchEvent(new Event('input'));
        return picture.getAttribute('src');
    });
    return [new Set(places).size, Math.min(3, +slider.max + 1)];
})"""


@pytest.mark.parametrize(
    'path, at_least',
    [
        ('lab/04_explorers.html', 5),
        ('diffusion/01_schedules.html', 1),
        ('distillation/02_branches.html', 1),
    ],
)
def test_explorers_move(visit, path, at_least):
    "Every slider, without a kernel; the first of a page by keyboard and by mouse."
    page = visit(path)
    explorers = page.locator('.bdense-explorer:has(input[type=range])')
    found = explorers.evaluate_all(MOVED)
    assert len(found) >= at_least and all(seen == places for seen, places in found), found
    first = page.locator('.bdense-explorer:visible:has(input[type=range])').first
    slider, picture = first.locator('input[type=range]').first, first.locator('img')
    shown = lambda: picture.get_attribute('alt')
    slider.focus()
    alternatives = []
    for key in 'End', 'Home':
        page.keyboard.press(key)
        alternatives.append(shown())
    box = slider.bounding_box()
    slider.click(position={'x': box['width'] * 0.6, 'y': box['height'] / 2})
    alternatives.append(shown())
    assert len(set(alternatives)) == min(3, int(slider.get_attribute('max')) + 1), (
        'the picture did not follow'
    )
    assert not page.problems


DRAW = """async cases => {
    const {load, noise} = await import('/_static/live.js');
    const place = what => new URL(document.querySelector('#live').dataset[what], location.href);
    const {draw} = await load(place('assets'), place('runtime'));
    const drawn = [];
    for (const [name, label, seed] of cases) drawn.push([[...noise(seed, 784)], [...(await draw(name, label, seed)).pixels]]);
    return drawn;
}"""


@pytest.fixture(scope='module')
def python():
    "What Python draws: `python(name, label, seed)`, of shape [784]."
    both = samplers()
    return lambda name, label, seed: both[name].sample(1, seed, label).flatten()


def test_live_pictures_are_those_of_python(visit, python):
    cases = [
        (name, label, seed)
        for name in ('teacher', 'student')
        for label, seed in ((0, 0), (7, 123), (9, 999))
    ]
    page = visit('live.html')
    for case, (noise, pixels) in zip(cases, page.evaluate(DRAW, cases)):
        assert (torch.tensor(noise) - sample_noise([case[2]], (784,))[0]).abs().max() < 1e-5, case
        assert (torch.tensor(pixels) - python(*case)).abs().max() < 1e-3, case
    assert not page.problems


def test_live_controls(visit, shots, python):
    "On a phone: load at the second attempt, choose a class, move the slider by keyboard; the canvas holds what Python draws, and both times are shown."
    visit.page.set_viewport_size(PHONE)
    page = visit('live.html')
    for file in ('ort.wasm.bundle.min.mjs', 'teacher.onnx.gz'):
        page.route(f'**/{file}', lambda route: route.abort(), times=1)
    page.evaluate(
        "window.said = []; new MutationObserver(() => said.push(document.querySelector('#live [role=status]').textContent)).observe(document.querySelector('#live [role=status]'), {childList: true})"
    )
    button = page.get_by_role('button', name='Run both')
    button.press('Enter')
    page.get_by_text('The button tries again').wait_for()
    assert button.evaluate('e => e === document.activeElement') and len(page.problems) > 1
    page.problems.clear()
    page.keyboard.press('Enter')
    page.locator('#live[data-state=done]').wait_for()
    assert page.evaluate("document.activeElement.type === 'radio'") and any(
        text.startswith('Drawing T-shirt') for text in page.evaluate('said')
    )
    page.get_by_text('Sneaker').click()
    page.get_by_role('slider').press('ArrowRight')
    said = page.locator('#live [role=status]')
    page.wait_for_function(
        "document.querySelector('#live [role=status]').textContent.startsWith('Sneaker, seed 1: the student took')"
    )
    for name, calls in (('teacher', 24), ('student', 2)):
        canvas = page.locator(f'#live-{name}')
        grey = canvas.evaluate(
            "c => [...c.getContext('2d').getImageData(0, 0, 28, 28).data].filter((_, i) => i % 4 === 0)"
        )
        assert (
            torch.tensor(grey) - to_pixels(python(name, 7, 1)[None]).flatten().int()
        ).abs().max() <= 1, name
        caption = canvas.locator('..').inner_text()
        assert (
            f'{name}, {calls} calls' in caption and caption.split('\n')[-1] in said.inner_text()
        ), caption
    assert page.evaluate(WIDTH) <= PHONE['width'] and not page.problems
    shots(page, 'live')


def test_live_calls(site):
    how = json.loads((site / '_static' / 'live' / 'live.json').read_text())
    assert [len(how[name]['calls']) for name in ('teacher', 'student')] == [24, 2], (
        'docs/live.md says so'
    )


def test_live_from_a_file_says_what_to_do(page, site):
    page.goto((site / 'live.html').as_uri())
    assert (
        'python -m http.server' in page.locator('#live [role=status]').inner_text()
        and page.get_by_role('button', name='Run both').is_disabled()
    )


def test_live_without_webassembly(first_visit):
    first_visit.page.add_init_script('delete window.WebAssembly')
    page = first_visit('live.html')
    assert page.get_by_text('This browser has no WebAssembly').is_visible()
    assert page.get_by_role('button', name='Run both').is_disabled()
    assert (
        page.locator('#live img:visible').evaluate(
            'async image => (await image.decode(), image.naturalWidth)'
        )
        > 300
    )
    assert not page.problems


def test_grey_pictures_in_dark_mode(visit):
    "Their page is dark, and they are not negatives: the first piece of clothing stays bright on black."
    visit.page.emulate_media(color_scheme='dark')
    page = visit('course/1_first_distillation.html')
    assert (
        page.locator('.cell_output img.only-dark').count() >= 4
        and not page.locator('.cell_output img.only-light:visible').count()
    )
    dark, light, same = page.evaluate("""async () => {
        const draw = async image => {
            await image.decode();
            const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight), context = canvas.getContext('2d');
            context.drawImage(image, 0, 0);
            return [...context.getImageData(0, 0, canvas.width, canvas.height).data].filter((_, i) => i % 4 === 0);
        };
        const [light, dark] = await Promise.all(['light', 'dark'].map(kind => draw(document.querySelector(`.cell_output img.only-${kind}`))));
        const same = light.filter((value, i) => value === dark[i]).length/light.length;
        return [dark[0], light[0], same];
    }""")
    assert dark < 40 and light > 250 and same > 0.5
    still = visit('live.html').locator('#live img')
    assert [image.is_visible() for image in still.all()] == [
        False,
        True,
    ] and 'dark' in still.last.get_attribute('src')


# what no rule is asked about holds most of a page's elements, each of which axe would look at: it keeps its size
EMPTY = """() => document.querySelectorAll('mjx-container, .cell_input').forEach(e => {
    const {width, height} = e.getBoundingClientRect();
    e.style.cssText += `; display: inline-block; box-sizing: border-box; width: ${width}px; height: ${height}px`;
    e.replaceChildren();
})"""


def test_accessibility(visit):
    "Every rule in light; in dark that of contrast, the only one that sees colours. Of the sidebar, on the first page alone."
    from axe_playwright_python.sync_playwright import Axe

    serious, seen = {}, []
    for path in (*KINDS.values(), 'glossary.html'):
        for scheme, options in (('light', {}), ('dark', {'runOnly': ['color-contrast']})):
            visit.page.emulate_media(color_scheme=scheme)
            page = visit(path) if scheme == 'light' else visit.page
            page.evaluate(EMPTY)
            found = (
                Axe()
                .run(
                    page,
                    context={'exclude': [['mjx-container'], ['.cell_input'], *seen]},
                    options={'resultTypes': ['violations'], **options},
                )
                .response
            )
            assert (
                len(found['passes']) > 10
                or options
                and [rule['id'] for rule in found['passes']] == options['runOnly']
            )
            worst = [
                f'{v["id"]} ({len(v["nodes"])}): {[n["html"][:120] for n in v["nodes"][:2]]}'
                for v in found['violations']
                if v['impact'] in ('serious', 'critical')
            ]
            if worst:
                serious[f'{path}, {scheme}'] = worst
        seen = [['.sidebar-drawer']]
    assert not serious, '\n'.join(f'{k}: {v}' for k, v in serious.items())


def test_looks(visit, shots):
    "Leaves pictures of the kinds of pages, light and dark, and of the branch viewer; each is wide enough for its text and shows its heading."
    for kind, path in KINDS.items():
        page = visit(path)
        assert page.locator('article h1').bounding_box()['width'] > 200
        for scheme in ('dark', 'light'):
            page.emulate_media(color_scheme=scheme)
            shots(page, f'{kind} {scheme}')
    page = visit(KINDS['lesson'])
    page.locator('.bdense-explorer:visible').scroll_into_view_if_needed()
    page.locator('.bdense-explorer:visible input[type=range]').press('ArrowRight')
    shots(page, 'viewer')
    page.set_viewport_size(PHONE)
    shots(page, 'phone')
