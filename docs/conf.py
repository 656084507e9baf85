"Sphinx configuration. The pages themselves are written by tools/docs_sources.py."

import ast
import inspect
import re
import sys
from dataclasses import is_dataclass
from functools import cache
from html import escape
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, ForwardRef, Union, get_args, get_origin

from docutils import nodes
from fastcore.docments import docments, empty
from furo.navigation import get_navigation_tree
from ipython_pygments_lexers import IPython3Lexer
from PIL import Image
from pygments.lexers import PythonLexer
from sphinx.ext.autodoc._dynamic._preserve_defaults import DefaultValue
from sphinx.search.en import SearchEnglish
from sphinx.util.osutil import relative_uri

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / 'tools'), str(ROOT)]
from bdense_nb import core  # noqa: E402
from bdense_nb.core import Within  # noqa: E402
from docs_pictures import is_drawing, twins  # noqa: E402
from docs_sources import (
    GIT,
    LIB,
    SETTINGS,
    doc_line,
    find_symbol,
    indented,
    module_of,
    pages,
    rst,
    sections,
    symbols,
)  # noqa: E402
from docs_words import usual  # noqa: E402

LIMITED = [
    name for name, kind in vars(core).items() if get_origin(kind) is Annotated
]  # AtLeast1 ...
# the same is parsed, read and stemmed again and again
ast.parse = cache(ast.parse)
inspect.getsourcelines = cache(inspect.getsourcelines)
SearchEnglish.stem = cache(SearchEnglish.stem)

project, author, copyright = SETTINGS['title'], SETTINGS['author'], SETTINGS['copyright']
smartquotes = False  # a command in prose keeps its dashes and quotes
version = release = SETTINGS['version']
html_baseurl = SETTINGS['doc_host'] + SETTINGS['doc_baseurl'] + '/'
extensions = ['myst_nb', 'sphinx.ext.autodoc', 'sphinx.ext.viewcode', 'sphinx_copybutton']
viewcode_follow_imported_members = (
    False  # a type such as Annotated[int, ...] says that it lives in builtins
)
exclude_patterns = ['notebooks', 'results/*']

nb_execution_mode = 'off'
nb_merge_streams = True
nb_render_markdown_format = 'myst'
nb_ipywidgets_js = {}  # stored outputs hold pictures and plain HTML, no widget state
myst_enable_extensions = [
    'dollarmath',
    'amsmath',
    'colon_fence',
    'attrs_inline',
    'attrs_block',
    'deflist',
]
myst_heading_anchors = 4
mathjax_path = 'vendor/tex-svg.js'

autodoc_typehints = 'none'  # types stand in the table of parameters
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
toc_object_entries_show_parents = 'hide'
add_module_names = False

html_theme = 'furo'
html_title = SETTINGS['title']
html_static_path = ['_static']
html_search_scorer = str(ROOT / 'docs' / 'scorer.js')
html_css_files, html_js_files = ['site.css'], ['site.js']
html_favicon = html_logo = '_static/logo.svg'
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    'footer_icons': [{'name': 'Repository', 'url': GIT, 'html': 'Repository', 'class': ''}]
}


@cache
def noted(cls: type) -> dict:
    return docments(cls, full=True)  # base classes are asked again and again


def starred(obj) -> dict:
    "Docments, and the comments behind `*args` and `**how`, which they take for that of the returned value."
    found = docments(obj, full=True)
    made = obj.__init__ if inspect.isclass(obj) else obj
    said = (
        re.findall(r'^ *\*+(\w+)[^#\n]*# *(.*)$', inspect.getsource(made), flags=re.M)
        if inspect.isfunction(made)
        else []
    )
    for name, text in said:
        if name in found:
            found[name]['docment'] = text
        if found.get('return', {}).get('docment') == text:
            found['return']['docment'] = None
    return found


@cache
def parameters(obj) -> dict:
    "A callable's or class's fastcore docments; a dataclass's are those of its base classes, too; a named tuple's are the comments behind its fields."
    if inspect.isclass(obj) and issubclass(obj, tuple):
        comments = dict(
            re.findall(r'^\s+(\w+)\s*:.*?#\s*(.*)$', inspect.getsource(obj), flags=re.M)
        )
        row = lambda name, anno: {
            'anno': anno,
            'docment': comments.get(name),
            'default': obj._field_defaults.get(name, empty),
        }
        return {name: row(name, anno) for name, anno in obj.__annotations__.items()}
    if inspect.isclass(obj) and obj.__init__ in (object.__init__, Exception.__init__):
        return {}
    if not is_dataclass(obj):
        return starred(inspect.unwrap(obj))
    found = {name: dict(row) for name, row in noted(obj).items()}
    for cls in obj.__mro__[::-1]:
        own = noted(cls) if is_dataclass(cls) else {}
        for name, anno in vars(cls).get('__annotations__', {}).items():
            if name in found:
                found[name] |= {'docment': own[name]['docment']} | (
                    {'anno': anno} if isinstance(anno, str) and 'Literal[*' not in anno else {}
                )
    return found


def type_links(anno: str, module: str) -> str:
    "An annotation in which the library's own types are links."
    own = {
        word: full
        for word in re.findall(r'\b[A-Z]\w+', anno)
        if (full := find_symbol(word, module))
    }
    parts = re.split(rf'\b({"|".join(own)})\b', anno) if own else [anno]
    return '\\ '.join(
        f':py:obj:`{part} <{own[part]}>`' if part in own else f'``{part.strip()}``'
        for part in parts
        if part.strip()
    )


def type_text(anno, inner: bool = False) -> str:
    "A type; limits of numbers are in words: `int, at least 1`."
    origin, args = get_origin(anno), get_args(anno)
    if isinstance(anno, ForwardRef):
        return anno.__forward_arg__
    if 'Within(' not in repr(anno):
        return re.sub(
            r'\b(typing|collections\.abc|torch(?=\.Tensor)|torch\.nn\.modules\.\w+)\.',
            '',
            inspect.formatannotation(anno),
        )
    if origin is Annotated:
        text = ', '.join([type_text(args[0]), *(str(a) for a in args[1:] if isinstance(a, Within))])
        return f'({text})' if inner else text
    parts = [('...' if a is ... else 'None' if a is NoneType else type_text(a, True)) for a in args]
    return (
        ' | '.join(parts)
        if origin in (Union, UnionType)
        else f'{origin.__name__}[{", ".join(parts)}]'
    )


def annotation(anno, module: str) -> str:
    "What a parameter's annotation says; names of limited numbers are looked up in their module."
    if anno in (empty, None, DefaultValue):
        return ''  # the last is what a default without a type seems to be
    if not isinstance(anno, str):
        return type_text(anno)
    limited = re.search(rf'\b(Annotated|{"|".join(LIMITED)})\b', anno)
    return type_text(eval(anno, vars(import_module(f'{LIB}.{module}')))) if limited else anno


def meaning(name: str, anno: str, said: str | None, symbol: str) -> str:
    "What is said of a parameter, or of its type, or of every parameter of this name."
    own = find_symbol(anno.removesuffix(' | None'), module_of(symbol))
    return ' '.join(
        (
            said or own and doc_line(symbols()[own]) or usual(name, symbol.removeprefix(f'{LIB}.'))
        ).split()
    )


def parameter_table(obj, symbol: str) -> list[str]:
    "The parameters as a table: name, type, default, meaning; the last row is what is returned."
    rows = []
    module = module_of(symbol)
    for name, p in parameters(obj).items():
        anno = annotation(p['anno'], module)
        if name == 'self' or name == 'return' and not p['docment']:
            continue
        cells = [
            '**returns**' if name == 'return' else f'``{name}``',
            type_links(anno, module),
            ''
            if p['default'] is empty
            else 'a function'
            if inspect.isfunction(p['default'])
            else f'``{p["default"]!r}``',
            rst(meaning(name, anno, p['docment'], symbol), module),
        ]
        rows.append(','.join('"' + cell.replace('"', '""') + '"' for cell in cells))
    head = ['parameter,type,default,meaning']
    return (
        [
            '',
            '.. csv-table::',  # parsed in half the time of a list-table
            '   :header-rows: 1',
            '   :widths: auto',
            '   :class: parameters',
            '',
            *indented(head + rows),
            '',
        ]
        if rows
        else []
    )


def returned(app, what, name, obj, options, signature, returns) -> tuple | None:
    "A signature says of what type the answer is; that has a row in the table if a comment says more."
    if what not in ('function', 'method') or not signature:
        return None
    found = parameters(obj).get('return', {})
    anno = annotation(found.get('anno'), module_of(name))
    return None if found.get('docment') or anno in ('', 'None') else (signature, anno)


def document(app, what, name, obj, options, lines) -> None:
    "Docstrings here are one line of text with `code` in it; the rest is in the docments."
    module = module_of(name)
    if not any(lines) and name in symbols():
        lines[:] = [doc_line(symbols()[name])]
    lines[:] = [rst(line, module) for line in lines]
    if what in ('function', 'method', 'class'):
        lines += parameter_table(obj, name)


def mark_drawings(app, doctree) -> None:
    "site.css inverts drawings in dark mode; what else has panels, or follows the system, is there twice; other figures are dimmed."
    docname = app.env.current_document.docname

    def moved(image, path, kind):
        image['uri'] = str(Path(image['uri']).with_name(path.name))
        image['candidates'] = {'*': image['uri']}
        app.env.images.add_file(docname, image['uri'])
        image['classes'].append(kind)

    for image in list(doctree.findall(nodes.image)):
        path = Path(app.srcdir, image.get('candidates', {}).get('*', image['uri']))
        if path.suffix not in ('.png', '.gif', '.svg'):
            continue
        if path.suffix != '.svg' and is_drawing(path):
            image['classes'].append('drawing')
        elif both := twins(path):
            twin = image.deepcopy()
            image.parent.insert(image.parent.index(image) + 1, twin)
            for node, file, kind in zip((image, twin), both, ('only-light', 'only-dark')):
                moved(node, file, kind)


def open_in_full(app, doctree, docname) -> None:
    "A wide picture links to its file, and scrolls on a phone; an animation is seen whole."
    for image in list(doctree.findall(nodes.image)):
        file = app.env.images.get(image['uri'])
        if (
            not file
            or file[1].endswith(('.svg', '.gif'))
            or isinstance(image.parent, nodes.reference)
        ):
            continue
        if Image.open(Path(app.srcdir, image['uri'])).width < 600:
            continue
        link = nodes.reference(
            '',
            '',
            refuri=relative_uri(app.builder.get_target_uri(docname), f'_images/{file[1]}'),
            classes=['full', *(c for c in image['classes'] if c.startswith('only-'))],
        )
        image.replace_self(link)
        link += image


def above(app, doc: str) -> list[str]:
    "A page and what it lies below in the navigation, up to the front page."
    found = []
    while doc in app.builder.relations:
        found.append(doc)
        doc = app.builder.relations[doc][0]
    return found


def section(app, doc: str) -> str:
    "The section of the navigation in which a page lies, or ''."
    return next(
        (name for name, docs in sections().items() if docs.keys() & set(above(app, doc))), ''
    )


def neighbours(app, pagename, templatename, context, doctree) -> None:
    "Previous and next stay in a section, but the start leads on to the course. The tree of all pages is not made here."
    context['toctree'] = lambda **options: ''
    own, (_, before, after) = (
        section(app, pagename),
        app.builder.relations.get(pagename, [None] * 3),
    )
    if before and section(app, before) != own:
        context['prev'] = {'link': context['pathto']('index'), 'title': project}
    if after and own not in ('', 'Start', section(app, after)):
        context['next'] = None


@cache
def whole_tree(app) -> str:
    "All pages, as the front page has them, by section; a section opens and closes. Captions are headings, and a heading needs its level."
    tree = get_navigation_tree(
        app.builder._get_local_toctree(
            'index', collapse=False, titles_only=True, maxdepth=-1, includehidden=True
        )
    )
    parts = r'<p class="caption" role="heading">(.*?)</p>(.*?)(?=<p class="caption"|\Z)'
    return re.sub(
        parts,
        r'<details><summary><span class="caption" role="heading" aria-level="2">\1</span></summary>\2</details>',
        tree,
        flags=re.S,
    )


def navigation(app, pagename, templatename, context, doctree) -> None:
    "A page has its own links and its own place; the section that is open is its own, at the start and where there is none the course."
    if 'furo_navigation_tree' not in context:
        return
    pathto, lineage, own = context['pathto'], above(app, pagename), section(app, pagename)
    shown = (own, 'Course') if own in ('', 'Start') else (own,)

    def entry(m):
        doc = m[2].removesuffix('.html')
        here, inside = doc == pagename, doc in lineage
        kinds = m[1] + ' current' * inside + ' current-page' * here
        return (
            f'<li class="{kinds}"><a class="{"current " * here}reference internal" href="{pathto(m[2], 1)}">{m[3]}</a>'
            + ('<input checked="" ' if inside else '<input ') * bool(m[4])
        )

    tree = re.sub(
        r'<li class="([^"]*)"><a class="reference internal" href="([^"]*)">(.*?)</a>(<input )?',
        entry,
        whole_tree(app),
    )
    for name in shown:
        tree = re.sub(
            f'<details>(?=<summary><span [^>]*><span class="caption-text">{name}<)',
            '<details open>',
            tree,
        )
    context['furo_navigation_tree'] = tree


def break_code(app, pagename, templatename, context, doctree) -> None:
    "In tables code may break after a dot, a bracket, a comma or an underscore, and nowhere else; a parameter's name stays whole."

    def breaks(text):
        return re.sub(
            r'(?<=<span class="pre">)[^<]+',
            lambda m: re.sub(r'(?<=[.\[(,_])(?=\w)', '<wbr>', m[0]),
            text,
        )

    def in_table(m):
        if 'class="parameters' not in m[1]:
            return breaks(m[0])
        return re.sub(
            r'(<tr[^>]*><td>.*?</td>)(.*?</tr>)',
            lambda row: row[1] + breaks(row[2]),
            m[0],
            flags=re.S,
        )

    context['body'] = re.sub(
        '(<table[^>]*>).*?</table>', in_table, context.get('body', ''), flags=re.S
    )


def describe(app, pagename, templatename, context, doctree) -> None:
    "What search engines and messengers show of a page."
    listing = pagename.partition(f'_modules/{LIB}/')[2].replace('/', '.')
    page = next(
        (
            p
            for p in pages()
            if pagename in (p.doc, f'api/{p.module}') or listing and p.module == listing
        ),
        None,
    )
    first = re.search('<p>(.{20,}?)</p>', context.get('body', ''), flags=re.S)
    text = (
        f'Source of {LIB}.{listing}: ' * bool(listing) + page.summary
        if page
        else re.sub('<[^>]*>', '', first[1])
        if first and pagename[0] != '_'
        else ''
    )
    text = escape(' '.join(text.replace('`', '').split()) or SETTINGS['description'])
    title = escape(re.sub('<[^>]*>', '', context.get('title', project)))
    context['metatags'] = context.get('metatags', '') + (
        f'<meta name="description" content="{text}"><meta property="og:title" content="{title}"><meta property="og:type" content="article">'
        f'<meta property="og:description" content="{text}"><meta property="og:image" content="{html_baseurl}_images/demo_samples.png">'
    )


class CellLexer(PythonLexer):
    "Of a notebook's cells: the lexer for IPython takes half as long again, and few cells have what is its own."

    own = re.compile(r'^\s*[%!?]|\?\s*$|=\s*[!%]', re.M)  # %magic, !command, help?

    def get_tokens_unprocessed(self, text, stack=('root',)):
        if self.own.search(text):
            return IPython3Lexer(**self.options).get_tokens_unprocessed(text)
        return super().get_tokens_unprocessed(text, stack)


def setup(app) -> None:
    app.add_lexer('ipython3', CellLexer)
    app.connect('doctree-read', mark_drawings)
    app.connect('doctree-resolved', open_in_full)
    app.connect('html-page-context', neighbours, priority=100)  # before furo's
    app.connect('autodoc-process-docstring', document)
    app.connect('autodoc-process-signature', returned)
    app.connect('html-page-context', navigation, priority=900)
    app.connect('html-page-context', describe)
    app.connect('html-page-context', break_code)
