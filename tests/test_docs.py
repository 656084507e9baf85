"The documentation site, as files: it builds without a warning, holds every notebook and every exported symbol, and no link is broken."

import ast
import gzip
import json
import posixpath
import re
import shutil
import sys
from html import unescape
from itertools import groupby
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import torch
import yaml
from nbformat.v4 import new_code_cell
from sphinx.util.inventory import InventoryFile

from bdense_nb._modidx import d as modidx
from bdense_nb.app.course import relink
from bdense_nb.core import sample_noise
from bdense_nb.diffusion.denoisers import GaussianDenoiser
from bdense_nb.diffusion.samplers import Sampler
from bdense_nb.diffusion.schedules import karras_sigmas
from colab import for_colab
from conftest import check_onnx_step
from docs import main, told
from docs_live import recipe, samplers
from docs_results import QUESTIONS, grouped, headings, result_parts, seen
from docs_sources import (
    BINDER,
    COLAB,
    LIB,
    MAIN,
    SETTINGS,
    alt_text,
    doc_line,
    find_symbol,
    link_names,
    pages,
    symbols,
)
from warm import python

PAGES = {p.doc: p for p in pages()}


TAG = re.compile(r'<(\w+)((?:\s+[\w:.-]+(?:="[^"]*")?)+)\s*/?>')
ATTRIBUTE = re.compile(r'([\w:.-]+)="([^"]*)"')
NO_TAGS = re.compile(r'(<script\b[^>]*>).*?</script>|<!--.*?-->', re.S)


class Parsed:
    "A page's ids, links, what it loads, and its pictures: by what Sphinx writes, four times as fast as a parser."

    def __init__(self, path: Path):
        self.ids, self.links, self.loaded, self.pictures = set(), [], [], []
        self.text = path.read_text(encoding='utf-8')
        for tag, attributes in TAG.findall(NO_TAGS.sub(r'\1', self.text)):
            self.note(tag, {k: unescape(v) for k, v in ATTRIBUTE.findall(attributes)})

    def note(self, tag: str, a: dict[str, str]):
        if 'id' in a:
            self.ids.add(a['id'])
        if tag == 'a' and 'href' in a:
            self.links.append(a['href'])
        if tag == 'img':
            self.pictures.append(a)
        source = a.get('src') or (
            a.get('href') if tag == 'link' and a.get('rel') in ('stylesheet', 'icon') else None
        )
        if source:
            self.loaded.append(source)


@pytest.fixture(scope='module')
def parsed(site) -> dict[str, Parsed]:
    "Every page of the site, by path."
    return {p.relative_to(site).as_posix(): Parsed(p) for p in sorted(site.rglob('*.html'))}


def test_every_notebook_has_its_page(site, parsed):
    for doc, page in PAGES.items():
        text = parsed[f'{doc}.html'].text
        assert f'{COLAB}/nbs/{doc}.ipynb' in text and f'{BINDER}/nbs/{doc}.ipynb' in text, (
            f'{doc}: Colab, Binder'
        )
        name = page.path.name
        download = next(
            unquote(link)
            for link in parsed[f'{doc}.html'].links
            if unquote(link).endswith(name) and '_downloads' in link
        )
        assert (site / doc).parent.joinpath(
            download
        ).resolve().read_bytes() == page.path.read_bytes()
        if page.module:
            assert f'api/{page.module}.html' in text, f'{doc}: its module'
        assert 'prev-page' in text or 'next-page' in text, f'{doc}: previous and next'


def test_every_exported_symbol_is_in_the_reference(site, parsed):
    with open(site / 'objects.inv', 'rb') as f:
        inventory = InventoryFile.load(f, '', lambda a, b: b)
    listed = {name for kind, names in inventory.items() if kind.startswith('py:') for name in names}
    exported = {
        name
        for module in modidx['syms'].values()
        for name in module
        if not any(part.startswith('_') for part in name.split('.'))
    }
    assert exported and not sorted(exported - listed)
    assert not sorted(symbols().keys() - listed)
    links = {name: set(page.links) for name, page in parsed.items()}
    for name, symbol in symbols().items():
        page = f'api/{symbol.page.module}.html'
        assert (
            name in parsed[page].ids
            and f'../{symbol.page.doc}.html#cell-{symbol.cell}' in links[page]
        ), f'{name}: the cell that builds it'


def test_every_symbol_has_a_sentence():
    silent = [name for name, symbol in symbols().items() if not doc_line(symbol)]
    assert len(symbols()) > 500 and not silent, silent


def entries(parsed):
    "Each entry of the reference: its name, its signature, and the rows of its table as (parameter, type, default, meaning)."
    for name, page in parsed.items():
        for entry in page.text.split('<dt class="sig ')[1:] if name.startswith('api/') else ():
            rows = [
                re.findall('<td>(.*?)</td>', row, flags=re.S)
                for row in re.findall(
                    '<tr.*?</tr>',
                    entry.partition('<table class="parameters')[2].split('</table>')[0],
                    flags=re.S,
                )
            ]
            yield (
                re.search('id="([^"]*)"', entry)[1],
                entry.split('</dt>')[0],
                [
                    [unescape(re.sub('<[^>]*>', '', cell)).strip() for cell in row]
                    for row in rows
                    if row
                ],
            )


def test_every_parameter_has_a_sentence(parsed):
    "Each name in a signature has a row in the table below it, and each row a meaning, of more than a word."
    seen, silent = 0, []
    for symbol, signature, rows in entries(parsed):
        wanted = set(
            re.findall(
                '<em class="sig-param">(?:<span class="o">[^<]*</span>)?<span class="n"><span class="pre">([^<]*)',
                signature,
            )
        ) - {'self'}
        said = {row[0]: row[3] for row in rows}
        seen += len(said)
        silent += [
            f'{symbol}: {p}: {said.get(p)}'
            for p in wanted | said.keys()
            if not said.get(p) or p != 'returns' and len(said[p].split()) < 2
        ]
    assert seen > 2000 and not silent, silent


def test_types_are_those_of_the_source(parsed):
    "Nothing of the machinery that reads them."
    machinery = re.compile(
        r'sphinx|ForwardRef|collections\.abc|torch\.nn\.modules|typing\.|DefaultValue|<class|<function|object at 0x'
    )
    found = [
        (symbol, text)
        for symbol, signature, rows in entries(parsed)
        for text in (re.sub('<[^>]*>', '', signature), *(cell for row in rows for cell in row[:3]))
        if machinery.search(text)
    ]
    assert not found, found
    signatures = {
        symbol: re.sub('<[^>]*>', '', signature) for symbol, signature, _ in entries(parsed)
    }
    assert '→ nn.Module' in unescape(signatures['bdense_nb.diffusion.nets.build_net'])


def test_a_module_begins_with_its_main_entries(parsed):
    for module, names in MAIN.items():
        text = parsed[f'api/{module}.html'].text
        found = [
            symbol
            for symbol in re.findall(f'<dt class="sig [^>]*id="{LIB}.{module}.([^".]*)"', text)
        ]
        assert found[: len(names.split())] == names.split(), module


def test_what_stands_behind_stars_is_no_returned_value(parsed):
    text = re.sub('<[^>]*>', '', parsed['api/distillation.students.html'].text)
    assert text.count('what else defines the run: hashes of student and data') == 1


def test_reference_begins_with_what_people_use(parsed):
    text = parsed['api/distillation.sfd.html'].text
    order = [
        text.index(f'id="bdense_nb.distillation.sfd.{name}"')
        for name in ('SFDConfig', 'sfd_step', 'TEACHER_STATES')
    ]
    assert order == sorted(order)


def test_own_types_are_links(parsed):
    text = parsed['api/evaluation.pictures.html'].text
    entry = text[text.index('id="bdense_nb.evaluation.pictures.displayable"') :]
    assert 'href="core.html#bdense_nb.core.Trajectory"' in entry[: entry.index('</table>')]


def test_reference_has_parameters_and_source(parsed):
    text = parsed['api/diffusion.samplers.html'].text
    entry = text[
        text.index('id="bdense_nb.diffusion.samplers.euler_step"') : text.index(
            'id="bdense_nb.diffusion.samplers.heun_step"'
        )
    ]
    for wanted in (
        'sigma_next',
        'Tensor',
        'next noise level, &gt;= 0',
        'returns',
        '_modules/bdense_nb/diffusion/samplers.html#euler_step',
    ):
        assert wanted in entry, wanted


def test_limits_of_numbers_are_words(parsed):
    shown = {
        name: re.sub('<[^>]*>', '', page.text)
        for name, page in parsed.items()
        if name.startswith('api/')
    }
    assert not [
        name
        for name, text in shown.items()
        if name != 'api/core.html' and re.search(r'Within\([^)]*-inf', text)
    ]
    text = shown['api/distillation.sfd.html']
    assert 'int, at least 1' in text and '(int, at least 1) | tuple[(int, at least 1), ...]' in text


def test_results_are_there(root, parsed):
    text = re.sub('<[^>]*>', '', parsed['results.html'].text)
    for path in (root / 'data' / 'results').glob('*.json'):
        assert (
            path.name in text
            and json.loads(path.read_text()).get('command', '').split('--')[0] in text
        )


def test_results_have_their_questions(root, parsed):
    "Each is a heading of its own, and long tables are closed."
    files = {p.stem: json.loads(p.read_text()) for p in (root / 'data' / 'results').glob('*.json')}
    heads = headings(files)
    assert (
        len(set(heads.values())) == len(files)
        and {n for n, d in files.items() if 'experiment' not in d} <= QUESTIONS.keys()
    )
    text = parsed['results.html'].text
    closed = re.sub(r'<details>.*?</details>', '', text, flags=re.S)
    assert all(f'id="result-{name.replace("_", "-")}"' in text for name in files)
    assert closed.count('<table') < len(files) < text.count('<table') and closed.count('<tr') < 200


def test_no_link_is_broken(site, parsed):
    files, broken = {p.relative_to(site).as_posix() for p in site.rglob('*')}, []
    for name, page in parsed.items():
        for link in set(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (
                posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(parts.path)))
                if parts.path
                else name
            )
            found = parsed.get(target)
            if (
                target not in files
                or parts.fragment
                and found
                and unquote(parts.fragment) not in found.ids
            ):
                broken.append(f'{name}: {link}')
    assert len(files) > 200 and not broken, broken


def test_nothing_is_loaded_from_elsewhere(site, parsed):
    for name, page in parsed.items():
        for source in page.loaded:
            assert not urlsplit(source).netloc, f'{name} loads {source}'
            if not urlsplit(source).scheme:
                assert (site / name).parent.joinpath(unquote(urlsplit(source).path)).is_file(), (
                    f'{name}: {source}'
                )


def test_pictures_say_what_they_show(parsed):
    for name, page in parsed.items():
        if name.startswith('_modules'):
            continue
        silent = [
            p.get('src', '')[:80]
            for p in page.pictures
            if not p.get('alt') and 'sidebar-logo' not in p.get('class', '')
        ]
        assert not silent, f'{name}: {silent}'


def test_wide_pictures_open_in_full(site, parsed):
    links = [link for link in parsed['course/6_branches.html'].links if '_images/' in link]
    assert links and all((site / 'course' / link).resolve().is_file() for link in links)


def test_names_in_prose_become_links():
    page = PAGES['distillation/04_losses']
    linked = '{py:obj}`branch_weights <bdense_nb.distillation.losses.branch_weights>`'
    assert link_names('`branch_weights` and [`fold`](x)', page) == f'{linked} and [`fold`](x)'
    assert (
        link_names('# `fold`\n```\n`fold`\n```\n``fold``', page)
        == '# `fold`\n```\n`fold`\n```\n``fold``'
    )
    assert (
        link_names('`search`, `notebooks` and `blocks`', page)
        == '`search`, `notebooks` and `blocks`'
    ), 'extras, an option'
    assert link_names('`sfd`, `devices.local_batch`', page).count('{py:obj}') == 2
    assert link_names('as in lesson 2', page) == 'as in [lesson 2](../course/2_your_own_data.ipynb)'
    assert (
        link_names('Lesson 7', page) == '[Lesson 7](../course/7_when_does_it_help.ipynb)'
        and link_names('lesson 17', page) == 'lesson 17'
    )
    assert (
        find_symbol('samplers.sample') == 'bdense_nb.diffusion.samplers.sample'
        and find_symbol('no_such_name') is None
    )


def test_a_displayed_formula_is_a_paragraph():
    "Inside one, the site takes its dollars for those of other formulas."
    parts = [
        (page.doc, cell.source[: m.start()], cell.source[m.end() :])
        for page in pages()
        for cell in page.cells()
        if cell.cell_type == 'markdown'
        for m in re.finditer(r'\$\$.*?\$\$', cell.source, flags=re.S)
    ]
    assert len(parts) > 20 and not [
        doc
        for doc, before, after in parts
        if before and not before.endswith('\n\n') or after and not after.startswith('\n\n')
    ]


def test_colab_installs_first_and_has_addresses_for_links():
    links = []
    for page in pages():
        lesson, copy = nbformat.read(page.path, 4), for_colab(page)
        nbformat.validate(copy)
        install = copy.cells.pop(1)
        assert (
            '%pip install' in install.source
            and SETTINGS['git_url'] in install.source
            and '%pip' not in ''.join(c.source for c in lesson.cells)
        )
        assert [c.source for c in copy.cells if c.cell_type == 'code'] == [
            c.source for c in lesson.cells if c.cell_type == 'code'
        ]
        for cell in copy.cells:
            if cell.cell_type == 'markdown':
                relink(cell.source, lambda link: links.append(f'{page.doc}: {link}') or link)
    assert not links, 'these would lead nowhere'


def test_commands_can_be_copied(parsed):
    "No `--option` became a dash."
    for name, page in parsed.items():
        found = re.findall(r'[–—](?<!\w.)[a-z][\w-]*', page.text)
        assert not found, f'{name}: {found}'
    assert '<span class="pre">--experiment</span>' in parsed['results.html'].text


def test_pages_describe_themselves(site, parsed):
    said = {}
    for name, page in parsed.items():
        if name.startswith(('_modules/index', 'genindex', 'py-modindex', 'search', '404')):
            continue
        said.setdefault(
            re.search('<meta name="description" content="([^"]{20,})"', page.text)[1], []
        ).append(name)
        if name[0] == '_':
            continue  # a listing is called like its module
        title = re.search('<title>([^<]+)', page.text)[1]
        assert (
            'og:image' in page.text and 'bdense_nb.' not in title and not re.match(r'\d\d', title)
        ), name
        if name != 'index.html':
            assert 'prev-page' in page.text, f'{name}: the page before it'
    shared = [
        names for names in said.values() if len(names) > 2
    ]  # a notebook and its reference share theirs
    assert len(said) > 60 and not shared, shared
    assert '<h1>Noise schedules and time grids' in parsed['diffusion/01_schedules.html'].text
    assert (
        '<h1>Noise schedules and time grids: reference'
        in parsed['api/diffusion.schedules.html'].text
    )
    assert re.search(
        '<a class="reference internal" href="api/diffusion.schedules.html">API of schedules<',
        parsed['index.html'].text,
    )
    assert (
        '<h1>bdense-nb<' in parsed['index.html'].text
        and '<title>bdense-nb' in parsed['index.html'].text
    )
    assert '<title>Samplers' in parsed['diffusion/03_samplers.html'].text
    assert (site / '_images' / 'demo_samples.png').is_file() and (site / '404.html').is_file()


def test_a_missing_page_links_from_the_address_of_the_site(parsed):
    "Whatever folder it was looked for in."
    lost, base = parsed['404.html'], SETTINGS['doc_baseurl'] + '/'
    assert f'<base href="{base}">' in lost.text and lost.text.index('<base') < lost.text.index(
        '<link'
    )
    assert (
        SETTINGS['doc_host'] + base in lost.links
        and 'course/1_first_distillation.html' in lost.links
    )


def test_help_builds_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['docs.py', '--help'])
    with pytest.raises(SystemExit, match='^0$'):
        main()
    assert 'usage: docs.py' in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_the_order_of_the_site(root, parsed):
    captions = re.findall(
        'class="caption"[^>]*><span class="caption-text">([^<]*)', parsed['index.html'].text
    )
    links = parsed['index.html'].links
    assert {'live.html', 'glossary.html', 'citing.html'} <= set(links) and not [
        link for link in links if 'glossary.md' in link or 'CITATION' in link
    ]
    assert captions == ['Start', 'Course', 'How-to', 'Reference by package', 'Results', 'About']
    named = re.findall(
        r'^- \*\*(\w+)\*\*', (root / 'README.md').read_text(encoding='utf-8'), flags=re.M
    )
    packages = re.findall(
        '<li class="toctree-l1[^"]*"><a [^>]*href="api/([^"]*).html">', parsed['index.html'].text
    )
    assert ['core', *packages[1:]] == [name for name in named if name != 'gpu'], (
        "the packages, in the README's order"
    )
    reference = re.search(
        '>Reference by package<.*?</details>', parsed['index.html'].text, flags=re.S
    )[0]
    places = [
        reference.index(f'href="{page}.html"')
        for page in (
            'api/distillation',
            'distillation/04_losses',
            'api/distillation.losses',
            'distillation/05_bank',
            'api/training',
        )
    ]
    assert places == sorted(places), 'a package has its notebooks, and a notebook its module'


def test_previous_and_next_stay_in_the_section(parsed):
    around = lambda page: re.findall(
        '<a class="(next|prev)-page" href="([^"]*)"', parsed[page].text
    )
    assert around('course/10_solutions.html') == [('prev', '9_capstone.html')] and around(
        'interop/01_diffusers.html'
    ) == [('next', '02_export.html'), ('prev', '../index.html')]
    assert around('live.html')[0] == ('next', 'course/1_first_distillation.html') and around(
        'index.html'
    ) == [('next', 'live.html')]


def test_results_begin_with_the_answer(root, parsed):
    "Then the figure, then the comparisons it is made of, then the rest under few headings; what is long is closed."
    text = parsed['results.html'].text.partition('<h1>')[2]
    places = [
        text.index(part)
        for part in (
            'Do branches help?',
            'A little',
            'gains.png',
            'result-fashion-4096',
            'result-spiral-longest',
            'result-ring-sfd',
            'result-paper',
        )
    ]
    assert (
        places == sorted(places)
        and '<details' not in text[places[0] : places[2]]
        and len(re.findall('<h2>', text)) < 12
    )
    files = {p.stem for p in (root / 'data' / 'results').glob('*.json')}
    assert sorted(name for names in grouped(sorted(files)).values() for name in names) == sorted(
        files
    ), 'each under one heading'


def test_the_build_says_how_to_serve(tmp_path):
    said = told(tmp_path, 1.0)
    assert f'python -m http.server -d {tmp_path}' in said and '/live.html' in said


def test_printed_code_can_be_copied():
    "The READMEs of students that the page of model families prints."
    codes = [
        o.text
        for cell in PAGES['interop/03_families'].cells()
        for o in cell.get('outputs', [])
        if 'import torch' in o.get('text', '')
    ]
    for code in codes:
        assert {
            node.module for node in ast.parse(code).body if isinstance(node, ast.ImportFrom)
        } == {'diffusers'} and not code.startswith('python')
    assert len(codes) == 3


def test_alternative_text():
    cell = new_code_cell("ax.set_title('loss'); ax.set(xlabel='step')")
    assert alt_text(cell, 'A walk', 'Any `text`.') == 'Figure in the section “A walk”: loss; step.'
    assert (
        alt_text(new_code_cell('plot()'), 'A walk', '## A walk\n\nOne line. Another.')
        == 'Figure in the section “A walk”: One line.'
    )
    assert alt_text(new_code_cell('#| fig-alt: two lines\nplot()'), '', '') == 'two lines'
    told = '*Lesson 1 of 8.*\n\nA level $\\sigma$. More.\n\n<details><summary>What came out</summary>\n\nDogs.'
    assert alt_text(new_code_cell('plot()'), 'A', told).endswith(': A level sigma.')
    assert alt_text(new_code_cell('plot()'), 'A', told[told.index('<') :]).endswith('“A”.')


def test_results_of_any_shape():
    parts = '\n'.join(
        result_parts(
            {
                'command': 'x',
                'budgets': [],
                'seeds': [0, 1],
                'rows': [{'a': 1, 'b': None}],
                'config': {'K': 4},
                'long': [{'a': i} for i in range(99)],
            }
        )
    )
    assert (
        '| seeds | 0, 1 |' in parts
        and 'budgets' not in parts
        and '| a | b |' in parts
        and '| 1 | – |' in parts
        and '| K | 4 |' in parts
        and '99 entries' in parts
    )
    cfgs = [dict(config=dict(cfg=dict(batch=8, pool=n))) for n in (4096, 4096)]
    assert seen(dict(configs=cfgs)) == 'batches of 8, a pool of 4,096 trajectories'
    cfgs[0]['config']['cfg']['pool'] = None  # of one arm all are fresh
    assert seen(dict(configs=cfgs)) == 'batches of 8'


def test_readme_lists_every_notebook(root):
    text = (root / 'README.md').read_text(encoding='utf-8')
    missing = [doc for doc in PAGES if doc != 'index' and f'(nbs/{doc}.ipynb)' not in text]
    assert not missing, f'the map of nbs/index.ipynb lacks {missing}'


def test_solutions_stand_in_the_order_of_the_map(root):
    readme = (root / 'README.md').read_text(encoding='utf-8')
    docs = re.findall(
        r'^### \[([\w/]+)\]',
        '\n'.join(c.source for c in PAGES['course/10_solutions'].cells()),
        flags=re.M,
    )
    library = [doc for doc in docs if not doc.startswith('course/')]
    placed = [readme.rindex(f'(nbs/{doc}.ipynb)') for doc in library]
    assert library == [
        'applications/01_forecasting',
        'applications/02_anomalies',
    ] and placed == sorted(placed)


def test_nbdev_can_process_the_notebooks(root, tmp_path):
    "The smallest of each folder: nbdev does the same with all."
    size = lambda doc: PAGES[doc].path.stat().st_size
    chosen = [min(docs, key=size) for _, docs in groupby(PAGES, lambda doc: doc.rpartition('/')[0])]
    assert len(chosen) > 5
    for name in ('settings.ini', 'pyproject.toml'):
        shutil.copy(root / name, tmp_path)
    shutil.copytree(
        root / 'bdense_nb', tmp_path / 'bdense_nb', ignore=shutil.ignore_patterns('__pycache__')
    )
    for doc in chosen:
        (tmp_path / 'nbs' / doc).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / 'nbs' / f'{doc}.ipynb', (tmp_path / 'nbs' / doc).parent)
    for path in filter(Path.is_file, (root / 'nbs').glob('*.*')):
        shutil.copy(path, tmp_path / 'nbs')
    (tmp_path / 'data').symlink_to(
        root / 'data'
    )  # nbdev runs the cells that mix imports with other code
    code = (
        'import bdense_nb; assert bdense_nb.__file__.startswith(os.getcwd());'
        'from nbdev.quarto import refresh_quarto_yml; from nbdev.serve import proc_nbs; refresh_quarto_yml(); print(proc_nbs(n_workers=0))'
    )
    done = python(
        f'import os; os.environ.pop("IN_TEST", None); {code}', cwd=tmp_path
    )  # the copy of the library is nearest
    assert done.returncode == 0, done.stderr
    for doc in chosen:
        assert (tmp_path / '_proc' / f'{doc}.ipynb').is_file(), doc
    found = [p for p in tmp_path.rglob('*.yml') if '_proc' not in p.parts]
    assert {'_quarto.yml', 'nbdev.yml'} <= {p.name for p in found}
    for path in found:
        assert isinstance(yaml.safe_load(path.read_text()), dict), path


def test_live_steps_are_those_of_python(site):
    "Of our own U-Net with classes; the student's file is the teacher's with other weights."
    pytest.importorskip('onnxruntime')
    for name, sampler in samplers().items():
        file = gzip.decompress((site / '_static' / 'live' / f'{name}.onnx.gz').read_bytes())
        check_onnx_step(file, sampler.denoiser, sampler.shape)


@pytest.mark.parametrize(
    'solver, afs', [('euler', True), ('heun', False), ('dpmpp3m', False), ('ipndm4', True)]
)
def test_a_recipe_gives_the_sample(solver, afs):
    "Of any solver: the network's inputs and the sample from unit noise and the answers so far."
    sampler = Sampler(
        GaussianDenoiser(torch.tensor([0.3, -0.2]), 0.5),
        karras_sigmas(6, 0.01, 80.0),
        afs,
        (2,),
        solver=solver,
    )
    how, parts = recipe(sampler), [sample_noise([7], (2,)).double()]
    combined = lambda weights: sum(w * part for w, part in zip(weights, parts, strict=True))
    for call in how['calls']:
        parts.append(sampler.denoiser(combined(call['input']), call['sigma']))
    assert len(how['calls']) == sampler.nfe and torch.allclose(
        combined(how['sample']).float(), sampler.sample(1, 7), atol=1e-5
    )


def test_workflows_and_citation_are_valid(root):
    for path in [*(root / '.github' / 'workflows').glob('*.yml'), root / 'CITATION.cff']:
        assert isinstance(yaml.safe_load(path.read_text()), dict), path


def test_addresses_stand_in_one_place(root):
    address = re.compile(re.escape(SETTINGS['git_url']))
    for path in [
        *(p for p in (root / 'docs').glob('*.*') if p.suffix != '.png'),
        *(root / 'tools').glob('*.py'),
        *(root / '.github' / 'workflows').glob('*.yml'),
        *(root / 'nbs').rglob('*.ipynb'),
    ]:
        assert not address.search(path.read_text(encoding='utf-8')), (
            f'{path.name} repeats what settings.ini says'
        )
