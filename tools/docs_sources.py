"""The sources of the documentation site: a page for each notebook, the API reference, the results. Sphinx makes HTML of them (docs/conf.py)."""

import ast
import json
import re
import shutil
from collections import defaultdict
from configparser import ConfigParser
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import takewhile
from os.path import relpath
from pathlib import Path
from uuid import uuid4

import nbformat

import bdense_nb
from bdense_nb.app.course import PICTURES, relink
from docs_pictures import IMAGE, explorer_on_dark
from readme import PAPER
from run_notebooks import ANSWER, FOLDERS, NBS, ROOT, notebooks, stored

ini = ConfigParser(delimiters=['='])
ini.read(ROOT / 'settings.ini', encoding='utf-8')
SETTINGS = ini['DEFAULT']
LIB, GIT, BRANCH = SETTINGS['lib_path'], SETTINGS['git_url'], SETTINGS['branch']
COLAB = (
    GIT.replace('https://github.com', 'https://colab.research.google.com/github') + '/blob/colab'
)  # the branch that tools/colab.py is for
BINDER = (
    f'https://mybinder.org/v2/gh/{SETTINGS["user"]}/{SETTINGS["repo"]}/{BRANCH}?urlpath=lab/tree'
)
HOW_TO = ('interop', 'gpu')  # folders of nbs/ whose notebooks are recipes
TITLES = {
    'set_title',
    'suptitle',
    'title',
    'set_xlabel',
    'xlabel',
    'set_ylabel',
    'ylabel',
}  # what matplotlib writes on a figure
TOPICS = {
    'index': 'how to install, installation, pip install',
    'course/1': 'blurred, save and load student',
    'course/2': 'spiral, my own data, own dataset, custom data, analytic first step, how do I train a teacher',
    'course/3': 'Euler, Heun',  # of pages, which are found by them, and lessons by their number
    'course/4': 'Progressive Distillation, PD',
    'course/5': 'SFD',
    'course/6': 'K, B-DENSE, dense alignment, how many branches',
    'course/7': 'comparison, branch weights',
    'course/8': 'diffusers, GPU, GPU memory',
    'training/03_devices': 'multi gpu, several gpus, multiple gpus',
    'interop/01_diffusers': 'hugging face hub',
}
OWN_PAGES = {
    'glossary.md': '/glossary.md',
    'CITATION.cff': '/citing.md',
    'CHANGELOG.md': '/changelog.md',
}  # of the site
Assign = ast.Assign | ast.AnnAssign


# --- notebooks


@dataclass(frozen=True)
class Page:
    "A notebook as it is stored."

    path: Path

    @cached_property
    def doc(self) -> str:
        return self.path.relative_to(NBS).with_suffix('').as_posix()

    @cached_property
    def title(self) -> str:
        "Its heading, which the site uses everywhere; a lesson has its number."
        heading = self.cells()[0].source.splitlines()[0].lstrip('# ')
        numbered = self.doc.startswith('course/') and heading != 'Solutions'
        return f'{self.path.stem.partition("_")[0]} {heading}' if numbered else heading

    @cache
    def cells(self) -> list:
        return stored(self.path).cells

    @cached_property
    def module(self) -> str:
        "The module it exports, or ''."
        return next(
            (d['default_exp'] for d in map(directives, self.cells()) if 'default_exp' in d), ''
        )

    @cached_property
    def summary(self) -> str:
        "The `> summary` of the first cell."
        return ' '.join(
            line.lstrip('> ')
            for line in self.cells()[0].source.splitlines()
            if line.startswith('>')
        )

    @cache
    def own_names(self) -> set[str]:
        "Names that cells which are not exported define: in this notebook they mean what they mean here."
        trees = [
            tree(c.source)
            for c in self.cells()
            if c.cell_type == 'code' and 'export' not in directives(c)
        ]
        return {name for t in trees for node in t.body for name in defined(node)}


@cache
def pages() -> list[Page]:
    "Every notebook, in reading order."
    return [Page(path) for path in notebooks()]


def directives(cell) -> dict[str, str]:
    "The `#| name: value` lines of a code cell."
    if cell.cell_type != 'code':
        return {}
    return {
        m[1]: m[2].strip() for m in re.finditer(r'^#\|\s*([\w-]+):?(.*)$', cell.source, flags=re.M)
    }


@cache
def tree(source: str) -> ast.Module:
    "The source's syntax tree; notebook magics are left out."
    return ast.parse(re.sub(r'^[%!].*$', '', source, flags=re.M))


def markdown_cell(text: str):
    "A cell; `nbformat.v4` would check each of them against its schema."
    return nbformat.from_dict(
        {'id': uuid4().hex[:8], 'cell_type': 'markdown', 'metadata': {}, 'source': text}
    )


def defined(node: ast.stmt) -> list[str]:
    "The names that a statement at top level defines (imports not counted)."
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = (
        node.targets
        if isinstance(node, ast.Assign)
        else [node.target]
        if isinstance(node, ast.AnnAssign)
        else []
    )
    return [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]


# --- the library's symbols, and where each is built


@dataclass(frozen=True)
class Symbol:
    "An exported name: its syntax tree, and the notebook cell that defines it."

    name: str
    node: ast.stmt
    source: str
    page: Page
    cell: str
    section: str


@cache
def symbols() -> dict[str, Symbol]:
    "Every exported symbol, and every public method, by full name (`bdense_nb.core.NFECounter`)."
    found = {}
    for page in pages():
        section = ''
        for cell in page.cells() if page.module else []:
            if cell.cell_type == 'markdown':
                section = (re.findall(r'^#+ (.*)$', cell.source, flags=re.M) or [section])[-1]
            if 'export' not in directives(cell):
                continue
            for node in tree(cell.source).body:
                for name in defined(node):
                    if name.startswith('_'):
                        continue
                    full = '.'.join(filter(None, [LIB, page.module, patched_class(node), name]))
                    found[full] = Symbol(full, node, cell.source, page, cell.id, section)
                    for method in methods(node):
                        found[f'{full}.{method.name}'] = Symbol(
                            f'{full}.{method.name}', method, cell.source, page, cell.id, section
                        )
    return found


@cache
def built_by_cell() -> dict[tuple[Page, str], list[Symbol]]:
    "The symbols of each cell of a page."
    found = defaultdict(list)
    for symbol in symbols().values():
        found[symbol.page, symbol.cell].append(symbol)
    return found


def patched_class(node: ast.stmt) -> str:
    "The class that a function decorated with fastcore's `@patch` is a method of, or ''."
    patched = isinstance(node, ast.FunctionDef) and any(
        ast.unparse(d).startswith('patch') for d in node.decorator_list
    )
    return ast.unparse(node.args.args[0].annotation) if patched else ''


def methods(node: ast.stmt) -> list[ast.FunctionDef]:
    "The public methods of a class, and `__call__`; of a property its getter."
    body = (
        [n for n in node.body if isinstance(n, ast.FunctionDef)]
        if isinstance(node, ast.ClassDef)
        else []
    )
    getters = [
        n for n in body if not any(ast.unparse(d).endswith('.setter') for d in n.decorator_list)
    ]
    return [n for n in getters if not n.name.startswith('_') or n.name == '__call__']


@cache
def short_names() -> dict[str, list[str]]:
    "What prose may call a symbol (`sample`, `samplers.sample`) -> full names."
    names = defaultdict(list)
    for full in symbols():
        parts, module = full.split('.'), module_of(full)
        for i in range(module.count('.') + 3):
            names['.'.join(parts[i:])].append(full)  # a method needs its class
    return names


@cache
def module_of(full: str) -> str:
    "The module in which a symbol's full name lies, without the library's own name."
    return next(
        (p.module for p in pages() if p.module and full.startswith(f'{LIB}.{p.module}.')), ''
    )


def find_symbol(text: str, module: str = '') -> str | None:
    "The full name of what the code `text` (a name, or a call) stands for, seen from a module; None: nothing, or more than one thing."
    match = re.fullmatch(r'([A-Za-z_][\w.]*)(\([^`<>]*\))?', text)
    found = short_names().get(match[1], []) if match else []
    here = [name for name in found if name.startswith(f'{LIB}.{module}.')]
    if not here and re.fullmatch('[a-z]+', text) and text not in bdense_nb.__all__:
        return None  # an option, an extra, a folder
    here = here or found
    return here[0] if len(here) == 1 else None


def built_in(symbol: Symbol) -> str:
    "A reStructuredText link to the notebook's cell."
    where = f'{symbol.page.title}, {symbol.section}' if symbol.section else symbol.page.title
    return f':ref:`{rst_escape(where.replace("`", ""))} <cell-{symbol.cell}>`'


# --- markdown


def link_names(markdown: str, page: Page) -> str:
    "Code that names an exported symbol, and `lesson 2`, become links; fences, headings and links stay as they are."

    def code(m):
        full = find_symbol(m[1], page.module)
        own = m[1].split('(')[0] in page.own_names() and full != f'{LIB}.{page.module}.{m[1]}'
        if page.doc == 'index' and m[1] in {p.module for p in pages()}:
            return f'[`{m[1]}`](api/{m[1]}.rst)'
        return m[0] if full is None or own else f'{{py:obj}}`{m[1]} <{full}>`'

    def lesson(m):
        path = next((p.path for p in pages() if p.doc.startswith(f'course/{m[1]}_')), None)
        return m[0] if path in (None, page.path) else f'[{m[0]}]({relpath(path, page.path.parent)})'

    def prose(text):
        text = re.sub(r'(?<![`\w}])`([^`\n]+)`(?!`)', code, text)
        return re.sub(r'\blesson (\d+)\b(?! of)', lesson, text, flags=re.I)

    parts = re.split(
        r'(^```.*?^```|^#.*?$|\[[^\]]*\]\([^)]*\)|\$\$.*?\$\$)', markdown, flags=re.M | re.S
    )
    return ''.join(part if i % 2 else prose(part) for i, part in enumerate(parts))


def move_links(markdown: str, page: Page, out: Path) -> str:
    "Pictures are copied beside the pages; links to other files of the repository lead to its address."

    def target(link):
        file, mark, heading = link.partition('#')
        path = (page.path.parent / file).resolve()
        if path.is_relative_to(NBS) or not path.exists():
            return file + mark + heading.lower()  # JupyterLab keeps capitals
        if path.name in OWN_PAGES:
            return OWN_PAGES[path.name]
        if path.suffix not in PICTURES:
            return f'{GIT}/blob/{BRANCH}/{path.relative_to(ROOT).as_posix()}'
        copy_to(path, out / 'images' / path.name)
        return f'/images/{path.name}'

    return relink(markdown, target)


def copy_to(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, target)


def table(head: list[str], rows: list[list[str]]) -> str:
    "A markdown table."
    return '\n'.join(
        '| ' + ' | '.join(text.replace('|', '\\|') for text in row) + ' |'
        for row in [head, ['---'] * len(head), *rows]
    )


# --- a notebook's page


def page_links(page: Page) -> str:
    "The line below a notebook's title."
    where = f'{NBS.name}/{page.doc}.ipynb'
    links = [
        f'{{download}}`Notebook </notebooks/{page.doc}.ipynb>`',
        f'[Open in Colab]({COLAB}/{where})',
        f'[Open in Binder]({BINDER}/{where})',
    ]
    if page.doc == 'index':
        links.insert(0, '[**Try it in this browser**](/live.md)')
    if page.module:
        links.append(f'[API of `{LIB}.{page.module}`](/api/{page.module}.rst)')
    return '{.page-links}\n' + ' · '.join(links)


def export_note(cell, page: Page) -> str:
    "The line above an exported cell, which is also its anchor."
    names = [
        s
        for s in built_by_cell()[page, cell.id]
        if s.name.rpartition('.')[0] == f'{LIB}.{page.module}'
    ]
    links = ', '.join(f'{{py:obj}}`{s.name.split(".")[-1]} <{s.name}>`' for s in names)
    return f'(cell-{cell.id})=\n{{.exports}}\n' + (
        f'Exported: {links}' if names else 'Part of the library'
    )


def alt_text(cell, section: str, prose: str) -> str:
    "What a figure shows: `#| fig-alt: ...`, or its section with the titles and axis labels in its code, or with the text's first sentence."
    if alt := directives(cell).get('fig-alt'):
        return alt
    calls = [n for n in ast.walk(tree(cell.source)) if isinstance(n, ast.Call)]
    args = [a for c in calls if getattr(c.func, 'attr', '') in TITLES for a in c.args]
    args += [k.value for c in calls for k in c.keywords if k.arg in TITLES]
    shown = '; '.join(
        dict.fromkeys(
            a.value for a in args if isinstance(a, ast.Constant) and isinstance(a.value, str)
        )
    )
    if not shown:
        text = re.sub('(?s)<details>.*?(</details>|$)', '', prose)  # no answer is given away
        text = re.sub(r'\$+(.*?)\$+', lambda formula: re.sub(r'[\\{}^]', '', formula[1]), text)
        text = re.sub(
            r'^(#|>|\||\*Lesson|\*Cost).*$|[`*]|\[(?=[^\]]*\]\()|\]\([^)]*\)', '', text, flags=re.M
        )
        shown = re.split(r'(?<=[.?!:]) ', ' '.join(text.split()))[0].rstrip('.:')
    return f'Figure in the section “{re.sub("[`*$]", "", section)}”' + (
        f': {shown}.' if shown else '.'
    )


def code_cell(cell, alt: str):
    "A code cell as its page shows it."
    flags = directives(cell)
    body = tree(cell.source).body
    tags = {'remove-input'} if flags.get('echo') == 'false' else set()
    answer = ANSWER in cell.metadata  # of a prediction
    if answer:
        tags.add('hide-output')
    if body and all(isinstance(n, ast.Import | ast.ImportFrom) for n in body):
        tags |= {'hide-input'}
    prompt = 'The answer: what did you predict?' if answer else 'Imports'
    cell.metadata = {
        'tags': sorted(tags),
        'mystnb': {'image': {'alt': alt}, 'code_prompt_show': prompt, 'code_prompt_hide': prompt},
    }
    cell.source = '\n'.join(
        line for line in cell.source.splitlines() if not line.startswith('#|')
    ).strip()
    return cell


def notebook_page(page: Page, out: Path):
    "The notebook as MyST-NB shall render it."
    cells, section, prose = [], page.title, ''
    nb = stored(page.path)
    for cell in nb.cells:
        flags = directives(cell)
        if cell.cell_type == 'markdown':
            section = (re.findall(r'^#+ (.*)$', cell.source, flags=re.M) or [section])[-1]
            prose = cell.source
            cells.append(markdown_cell(link_names(move_links(cell.source, page, out), page)))
            if len(cells) == 1:
                cells.append(
                    markdown_cell(
                        '\n\n'.join(
                            filter(None, [page_links(page), search_words(page), below(page)])
                        )
                    )
                )
        elif not {'hide', 'default_exp'} & set(flags) and flags.get('include') != 'false':
            if 'export' in flags:
                cells.append(markdown_cell(export_note(cell, page)))
            for output in cell.outputs:
                if 'text/markdown' in output.get('data', {}):
                    output.data = {'text/markdown': link_names(output.data['text/markdown'], page)}
                if IMAGE.search(html := output.get('data', {}).get('text/html', '')):
                    output.data = {'text/html': explorer_on_dark(html)}
            cells.append(code_cell(cell, alt_text(cell, section, prose)))
    nb.cells = cells
    nb.metadata = {
        'kernelspec': {'name': 'python3', 'display_name': 'Python 3', 'language': 'python'},
        'language_info': {'name': 'python'},
    }
    return nb


def entries(folder: str) -> dict[str, str]:
    "The notebooks of a folder: page -> title."
    return {
        p.doc: p.title for p in pages() if p.doc.rpartition('/')[0] == folder and p.doc != 'index'
    }


@cache
def sections() -> dict[str, dict[str, str]]:
    "The site's table of contents, from the files: section -> its first pages and their titles."
    packages = {
        f'api/{folder}': name
        for folder, name in FOLDERS.items()
        if any(p.module.startswith(f'{folder}.') for p in pages())
    }
    return {
        'Start': {'live': 'Try it here'},
        'Course': entries('course'),
        'How-to': {k: v for folder in HOW_TO for k, v in entries(folder).items()},
        'Reference by package': {'api/index': 'All packages', '00_core': 'Core'} | packages,
        'Results': {'results': 'What was measured'},
        'About': {'glossary': 'Glossary', 'changelog': 'Changes', 'citing': 'How to cite'},
    }


def toctree(docs: dict[str, str], caption: str = '') -> str:
    "Pages and their titles as part of the navigation, in MyST."
    return (
        '```{toctree}\n:hidden:\n'
        + f':caption: {caption}\n' * bool(caption)
        + '\n'
        + '\n'.join(f'{title} </{doc}>' for doc, title in docs.items())
        + '\n```'
    )


def below(page: Page) -> str:
    "What the navigation has below a notebook: on the front page all sections, elsewhere the module that is built there first."
    if page.doc == 'index':
        return '\n\n'.join(toctree(docs, caption) for caption, docs in sections().items())
    first = page.module and next(p for p in pages() if p.module == page.module) is page
    return toctree(api_title(page.module)) if first and page.doc.split('/')[0] not in HOW_TO else ''


def api_title(module: str) -> dict[str, str]:
    return {f'api/{module}': f'API of {module.rpartition(".")[2]}'}


def search_words(page: Page) -> str:
    "What a search finds a page by, beside its title."
    lesson = re.match(r'course/(\d)_', page.doc)
    words = TOPICS.get(lesson[0][:-1] if lesson else page.doc, '').split(', ') + (
        [f'lesson {lesson[1]}'] if lesson else []
    )
    entries = ', '.join(
        f'! {word}' for word in filter(None, words)
    )  # one target: a result shows the text below it
    return entries and f'```{{index}} {entries}\n```'


# --- the API reference


def rst_escape(text: str) -> str:
    return re.sub(r'([\\*_|<>`])', r'\\\1', text)


def rst(text: str, module: str = '') -> str:
    "A docstring or comment, in which `code` may name a symbol, as reStructuredText."

    def code(name):
        full = find_symbol(name, module)
        return f':py:obj:`{name} <{full}>`' if full else f'``{name}``'

    parts = text.split('`')
    return ''.join(
        code(part) if i % 2 and i < len(parts) - 1 else rst_escape(part)
        for i, part in enumerate(parts)
    )


def doc_line(symbol: Symbol) -> str:
    "What a docstring says first, perhaps that of the method it replaces; of a constant, the comment behind or above it."
    if not isinstance(symbol.node, Assign):
        return ' '.join(
            (ast.get_docstring(symbol.node) or inherited(*symbol.name.rpartition('.')[::2]))
            .split('\n\n')[0]
            .split()
        )
    lines = symbol.source.splitlines()
    above = takewhile(
        lambda line: re.match('#[^|]', line), reversed(lines[: symbol.node.lineno - 1])
    )
    behind = re.search(r'\s#\s+(.*)$', lines[symbol.node.end_lineno - 1])
    return ' '.join(line.lstrip('#: ') for line in reversed(list(above))) or (
        behind[1] if behind else ''
    )


def inherited(cls: str, method: str) -> str:
    "What the next class up says of a method."
    if cls not in symbols():
        return ''
    for base in (
        find_symbol(ast.unparse(b), module_of(cls))
        for b in getattr(symbols()[cls].node, 'bases', [])
    ):
        own = symbols().get(f'{base}.{method}')
        if text := doc_line(own) if own else inherited(base, method):
            return text
    return ''


def indented(lines: list[str]) -> list[str]:
    return ['   ' + line if line else '' for line in lines]


def documented(symbol: Symbol) -> list[str]:
    "The directives for one symbol; signature and parameters come from autodoc."
    kept = ['', f'Built in {built_in(symbol)}.', '']
    if isinstance(symbol.node, Assign):
        source = (ast.get_source_segment(symbol.source, symbol.node) or '').splitlines()
        body = [
            rst(doc_line(symbol), symbol.page.module),
            '',
            '.. code-block:: python',
            '',
            *indented(source),
            *kept,
        ]
        return [f'.. py:data:: {symbol.name.split(".")[-1]}', '', *indented(body)]
    if isinstance(symbol.node, ast.FunctionDef):
        return [
            f'.. {"automethod" if patched_class(symbol.node) else "autofunction"}:: {symbol.name}',
            '',
            *indented(kept),
        ]
    for method in (s for s in symbols().values() if s.name.startswith(f'{symbol.name}.')):
        decorators = {ast.unparse(d) for d in method.node.decorator_list}
        kind = (
            'autoproperty'
            if decorators & {'property', 'cached_property', 'patch(as_prop=True)'}
            else 'automethod'
        )
        where = [] if method.cell == symbol.cell else [f'Built in {built_in(method)}.']
        kept += [f'.. {kind}:: {method.name}', '', *indented(where), '']
    return [f'.. autoclass:: {symbol.name}', '', *indented(kept)]


def titled(text: str) -> list[str]:
    return [text, '=' * len(text), '']


MAIN = {  # module -> what its page begins with; elsewhere that is what `import bdense_nb` gives
    'core': 'sample_noise Trajectory NFECounter data_dir',
    'diffusion.schedules': 'make_sigmas karras_sigmas',
    'diffusion.denoisers': 'EDMDenoiser VPDenoiser FlowDenoiser',
    'diffusion.identity': 'denoiser_hash',
    'diffusion.data': 'fashion_mnist image_folder toy_2d',
    'training.checkpoints': 'write_checkpoint read_checkpoint newest_checkpoint',
    'training.devices': 'local_batch Processes set_precision',
    'training.hooks': 'ProgressBar SampleSheets PairedError Trackers',
    'training.loop': 'fit training State',
    'distillation.segments': 'segments branch_targets progressive_targets',
    'distillation.losses': 'dense_alignment_loss branch_weights',
    'distillation.bank': 'make_bank TrajectoryBank TrajectoryPlan',
    'distillation.sfd': 'sfd SFDConfig',
    'distillation.variable': 'sfd_variable SFDVConfig',
    'distillation.progressive': 'progressive PDConfig',
    'evaluation.intervals': 'mean_interval paired_interval',
    'evaluation.metrics': 'paired_error frechet_distance',
    'evaluation.features': 'load_space set_scores FeatureSpace',
    'evaluation.pictures': 'show_rows show_trajectories',
    'interop.export': 'export_student load_pretrained export_onnx',
    'lab.worlds': 'World ReferenceEnds',
    'lab.experiments': 'run_experiment Experiment',
    'lab.differences': 'differences difference_table plot_differences',
    'lab.search': 'search_weights confirm_weights show_search',
    'lab.explorers': 'Explorer sampler_race schedule_explorer branch_viewer student_picker',
    'applications.series': 'read_series Series Windows',
    'applications.forecasting': 'forecast train_forecaster Forecast',
    'applications.anomalies': 'anomaly_scores train_normal',
    'app.plans': 'estimate_run estimate_training',
    'app.shell': 'Command program call',
    'app.commands': 'Demo Teach Distill Search Export',
    'app.measuring': 'Sample Evaluate',
    'app.course': 'Notebooks notebooks',
    'app.comparing': 'Compare compare_run',
    'app.bench': 'Bench measure run_parts',
}


def place(symbol: Symbol) -> int:
    "What people start with comes first, constants last."
    short = symbol.name.split('.')[-1]
    main = MAIN.get(symbol.page.module, '').split()
    if isinstance(symbol.node, Assign):
        return 99
    return main.index(short) if short in main else 97 if short in bdense_nb.__all__ else 98


def api_page(module: str) -> str:
    "A module's reference: a table of its symbols, then each of them."
    built = [p for p in pages() if p.module == module]
    own = [
        s
        for s in symbols().values()
        if s.name.startswith(f'{LIB}.{module}.')
        and (
            s.name.rpartition('.')[0] == f'{LIB}.{module}'
            or s.name.rpartition('.')[0] not in symbols()
        )
    ]  # also methods given to another module's class
    own.sort(key=place)
    lines = [
        f'.. py:module:: {LIB}.{module}',
        '',
        *titled(f'{built[0].title}: reference'),
        rst(built[0].summary, module),
        '',
    ]
    lines += [
        f'``{LIB}.{module}``, built in ' + ', '.join(f':doc:`/{p.doc}`' for p in built) + '.',
        '',
        '.. list-table::',
        '   :widths: auto',
        '   :class: symbols',
        '',
    ]
    for s in own:
        lines += [
            f'   * - :py:obj:`{s.name.split(".")[-1]} <{s.name}>`',
            f'     - {rst(doc_line(s), module)}',
        ]
    for s in own:
        lines += ['', *documented(s)]
    return '\n'.join(lines) + '\n'


def api_table(modules: list[str]) -> list[str]:
    "What each module is for."
    lines = ['', '.. list-table::', '   :widths: auto', '   :class: symbols', '']
    for m in modules:
        page = next(p for p in pages() if p.module == m)
        lines += [
            f'   * - :doc:`{page.title} </api/{m}>`',
            '',
            f'       ``{m}``',
            f'     - {rst(page.summary, m)}',
        ]
    return [*lines, '']


def api_tree(docs: dict[str, str]) -> list[str]:
    return [
        '.. toctree::',
        '   :hidden:',
        '',
        *(f'   {title} </{doc}>' for doc, title in docs.items()),
    ]


def api_indices() -> dict[str, str]:
    "The list of modules, and that of each package, as pages."
    packages = defaultdict(list)
    for m in dict.fromkeys(p.module for p in pages() if p.module):
        packages[m.rpartition('.')[0]].append(m)
    lines = [
        *titled('API reference'),
        f'Everything that the notebooks export, as it is imported: ``from {LIB}.core import sample_noise``.',
        '',
        'Each entry gives the signature, the parameters with their shapes and units, the source, and the place in the course where it is built.',
        '',
    ]
    texts = {}
    for package, modules in packages.items():
        name = FOLDERS.get(package, 'Core')
        lines += [name, '-' * len(name), *api_table(modules)]
        inside = (
            {k: v for m in modules for k, v in api_title(m).items()}
            if package in HOW_TO
            else entries(package)
        )
        if package:
            texts[f'api/{package}.rst'] = [
                *titled(f'{name}: reference'),
                f'``{LIB}.{package}`` has {len(modules)} modules.',
                '',
                *api_table(modules),
                *api_tree(inside),
            ]
    texts['api/index.rst'] = lines
    return {path: '\n'.join(text) + '\n' for path, text in texts.items()}


# --- other pages


def citing_page() -> str:
    "CITATION.cff, and the same for BibTeX."
    bibtex = (
        f'@software{{bdense_nb,\n  title   = {{{SETTINGS["title"]}: {SETTINGS["description"]}}},\n  author  = {{{{{SETTINGS["author"]}}}}},\n'
        f'  version = {{{SETTINGS["version"]}}},\n  url     = {{{GIT}}},\n  license = {{Apache-2.0}}\n}}\n\n'
        f'@misc{{bdense2026,\n  title         = {{{PAPER["title"]}}},\n  author        = {{{" and ".join(f"{family}, {given}" for given, family in PAPER["authors"])}}},\n'
        f'  year          = {{{PAPER["year"]}}},\n  eprint        = {{{PAPER["arxiv"]}}},\n  archivePrefix = {{arXiv}}\n}}'
    )
    return (
        '\n\n'.join(
            [
                '# How to cite',
                'If the code or the course helped your work, cite this software and the paper whose method it teaches, '
                '[B-DENSE, arXiv 2602.15971](https://arxiv.org/abs/2602.15971).',
                f'```bibtex\n{bibtex}\n```',
                'The same for GitHub and reference managers, `CITATION.cff`:',
                f'```yaml\n{(ROOT / "CITATION.cff").read_text(encoding="utf-8").strip()}\n```',
            ]
        )
        + '\n'
    )


LOST = f"""---
orphan: true
nosearch: true
---
# There is no such page

It may have moved. The [front page]({SETTINGS['doc_host']}{SETTINGS['doc_baseurl']}/) has the course, and the search finds the rest.

- [Start with lesson 1](/course/1_first_distillation.ipynb)
- [The reference, by package](/api/index.rst)
- [Results](/results.md)
- [Glossary](/glossary.md)
"""


def glossary_page() -> str:
    "`docs/glossary.md`, whose terms are headings so that it can be read anywhere, as the directive that search and other pages find them by."
    head, *entries = re.split(
        r'^### ',
        (ROOT / 'docs' / 'glossary.md').read_text(encoding='utf-8').replace('](../nbs/', ']('),
        flags=re.M,
    )
    entries = [entry.strip().split('\n', 1) for entry in entries]
    terms = {re.sub(r'[^\w -]', '', term.lower()).replace(' ', '-'): term for term, _ in entries}

    def linked(text):
        text = re.sub(
            r'\[([^]]+)\]\(#([\w-]+)\)', lambda m: f'{{term}}`{m[1]} <{terms[m[2]]}>`', text
        )
        return re.sub(r'(?<=See )`([\w.]+)`', lambda m: f'{{py:obj}}`~{find_symbol(m[1])}`', text)

    return (
        f'{head}```{{glossary}}\n'
        + '\n\n'.join(f'{term}\n  {linked(text)}' for term, text in entries)
        + '\n```\n'
    )


# --- all of it


def write_sources(out: Path) -> None:
    "Write everything Sphinx needs into the folder `out`."
    from docs_results import results_page  # it needs this module

    modules = list(dict.fromkeys(p.module for p in pages() if p.module))
    texts = (
        {f'api/{m}.rst': api_page(m) for m in modules}
        | api_indices()
        | {
            'results.md': results_page(out),
            'citing.md': citing_page(),
            'changelog.md': (ROOT / 'CHANGELOG.md').read_text(encoding='utf-8'),
            'live.md': (ROOT / 'docs' / 'live.md').read_text(encoding='utf-8'),
            'glossary.md': glossary_page(),
            '404.md': LOST,
        }
    )
    for page in pages():
        nb = notebook_page(page, out)
        copy_to(page.path, out / 'notebooks' / f'{page.doc}.ipynb')
        texts[f'{page.doc}.ipynb'] = json.dumps(nb)
    for name, text in texts.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text, encoding='utf-8')
