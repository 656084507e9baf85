#!/usr/bin/env python3
"""Move bdense-nb into its packages (design.md, "The house"). Run in a fresh checkout, with that checkout's python:

    cd CHECKOUT && .venv/bin/python /work/move.py

It works by notebook names, headings and imported names, so the cells' contents may have changed. A second run changes nothing.
What is written by hand lies in /work/move/: files/ (copied over the tree), SPLITS and EDITS below name the rest.
It ends with nbdev_export, nbdev_clean, a run of nbs/index.ipynb and tools/readme.py (--no-run leaves the last two out),
and prints what it could not do: each such line begins with BY HAND.
"""
import ast
import builtins
import hashlib
import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

HERE = Path(__file__).resolve().parent/'move'
ROOT = Path.cwd()
LIB, NBS, PKG = 'bdense_nb', ROOT/'nbs', ROOT/'bdense_nb'
sys.path.insert(0, str(HERE))
from table import EDITS, MOVES, OPTIONAL, OVERRIDES, PACKAGES, SPLITS, STEMS_EXTRA, TOP, WITHOUT_COMMANDS  # noqa: E402

BY_HAND = []


def by_hand(text):
    BY_HAND.append(text)


# --- notebooks

def load(path): return json.loads(path.read_text(encoding='utf-8'))


def save(path, nb):
    path.parent.mkdir(parents=True, exist_ok=True)
    for cell in nb['cells']:
        cell['source'] = source(cell).splitlines(keepends=True)
    path.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')


def source(cell): return ''.join(cell['source'])
def is_export(cell): return cell['cell_type'] == 'code' and re.match(r'#\|\s*exports?\b', source(cell)) is not None


def tree(text):
    try: return ast.parse(re.sub(r'^(\s*)[%!].*$', r'\1pass', text, flags=re.M))
    except SyntaxError: return ast.Module([], [])


def new_cell(kind, text):
    cell = dict(cell_type=kind, id=hashlib.sha256(text.encode()).hexdigest()[:8], metadata={}, source=text)
    if kind == 'code': cell |= dict(execution_count=None, outputs=[])
    return cell


def targets(node):
    "Names that a statement binds, other than by import."
    if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)): return {node.name}
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)} | {
        n.name for n in ast.walk(node) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}


def defined(text):
    "Names defined at top level (comprehension variables and the like are harmless extras)."
    return set().union(*(targets(n) for n in tree(text).body if not isinstance(n, (ast.Import, ast.ImportFrom))), set())


def exported_names(text):
    "What a module defines: functions, classes, plain assignments."
    found = set()
    for n in tree(text).body:
        if isinstance(n, (ast.FunctionDef, ast.ClassDef)): found.add(n.name)
        elif isinstance(n, (ast.Assign, ast.AnnAssign)):
            for t in n.targets if isinstance(n, ast.Assign) else [n.target]:
                found |= {m.id for m in ast.walk(t) if isinstance(m, ast.Name)}
    return found - {'_all_'}


def used(text):
    "Every name that is read, and names inside string annotations."
    found = set()
    for n in ast.walk(tree(text)):
        if isinstance(n, ast.Name): found.add(n.id)
        if isinstance(n, ast.Constant) and isinstance(n.value, str) and re.fullmatch(r'[A-Za-z_][\w.|\[\], ]*', n.value):
            found |= set(re.findall(r'[A-Za-z_]\w*', n.value))
    return found


def imports(text):
    "[(bound name, statement)] of the top-level imports."
    found = []
    for n in tree(text).body:
        if isinstance(n, ast.Import):
            for a in n.names: found.append(((a.asname or a.name).split('.')[0], f'import {a.name}' + (f' as {a.asname}' if a.asname else '')))
        if isinstance(n, ast.ImportFrom):
            for a in n.names:
                found.append((a.asname or a.name, f'from {"."*n.level}{n.module or ""} import {a.name}' + (f' as {a.asname}' if a.asname else '')))
    return found


def bound_imports(text): return {name for name, _ in imports(text)}


# --- where every name lives

class Library:
    "Old modules: what each defines and imports; where each name is to live."
    def __init__(self):
        self.cells, self.defs, self.froms, self.path = {}, {}, {}, {}
        for path in sorted(NBS.glob('*.ipynb')):
            nb = load(path)
            name = next((m[1] for c in nb['cells'] if (m := re.search(r'^#\|\s*default_exp (\S+)', source(c), re.M))), None)
            if name is None: continue
            self.path[name] = path
            self.defs[name], self.froms[name] = {}, {}
            for i, cell in enumerate(nb['cells']):
                if not is_export(cell): continue
                for d in exported_names(source(cell)): self.defs[name].setdefault(d, i)
                for n in tree(source(cell)).body:
                    if isinstance(n, ast.ImportFrom) and n.module and n.module.startswith(f'{LIB}.') and not n.level:
                        for a in n.names: self.froms[name][a.asname or a.name] = (n.module.split('.')[1], a.name)
        self.moved = {}  # (old module, name) -> new module, for names that leave with a split

    def main(self, old): return MOVES[old][0] if old in MOVES else old

    def home(self, old, name, seen=()):
        "The new module of a name that was imported from an old module."
        if (old, name) in self.moved: return self.moved[old, name]
        if name in self.defs.get(old, {}): return self.main(old)
        if name in self.froms.get(old, {}) and old not in seen:
            return self.home(*self.froms[old][name], (*seen, old))
        return self.main(old)


# --- imports

NAMES = r'[A-Za-z_]\w*(?: as \w+)?'
BLOCK = re.compile(rf'^(?P<ind>[ \t]*)from {LIB}\.(?P<mod>[a-z_0-9]+) import (?:\((?P<many>[^)]*)\)|(?P<one>{NAMES}(?:,[ \t]*{NAMES})*))(?P<tail>[ \t]*(?:#[^\n]*)?)$', re.M)
INLINE = re.compile(rf'from {LIB}\.(?P<mod>[a-z_0-9]+) import (?P<one>{NAMES}(?:, ?{NAMES})*)')


def split_names(text):
    text = re.sub(r'#[^\n]*', '', text)
    parts = [part.strip() for part in text.split(',')]
    return [tuple(part.split(' as ')) if ' as ' in part else (part, part) for part in parts if part]


def by_type(name):
    "Constants, classes, functions, each in alphabetical order, as ruff sorts them."
    word = name.split(' ')[0]
    return (0 if word.isupper() and len(word) > 1 else 1 if word[0].isupper() else 2, word)


def lines_for(pairs, indent, width):
    "`from m import names` for [(module, (name, alias))], one statement a module, wrapped."
    grouped = {}
    for module, name in pairs: grouped.setdefault(module, []).append(name)
    out = []
    for module in sorted(grouped):
        names = sorted(dict.fromkeys(a if a == b else f'{a} as {b}' for a, b in grouped[module]), key=by_type)
        head = f'{indent}from {".".join(filter(None, [LIB, module]))} import '
        text = head + ', '.join(names)
        if len(text) > width:
            body = textwrap.fill(', '.join(names), width - len(head) - 2, break_long_words=False)
            text = head + '(' + body.replace('\n', '\n' + ' '*(len(head) + 1)) + ')'
        out.append(text)
    return '\n'.join(out)


def new_pairs(lib, old, names, top):
    pairs = []
    for name, alias in names:
        home = old if f'{old}.{name}' in NEW_MODULES else lib.home(old, name)
        pairs.append(('' if top and name in TOP_OK else home, (name, alias)))
    return pairs


def rewrite_imports(text, lib, width=100, top=False):
    "Statements on lines of their own (neighbours are regrouped), then those inside other lines and strings."
    out, at, run = [], 0, []

    def flush():
        if not run: return
        pairs = [p for m in run for p in new_pairs(lib, m['mod'], split_names(m['many'] or m['one']), top)]
        out.append(lines_for(pairs, run[0]['ind'], width))
        run.clear()
    for m in BLOCK.finditer(text):
        if m['mod'] not in lib.defs: continue
        joins = run and m.start() == at + 1 and text[at:m.start()] == '\n' and m['ind'] == run[0]['ind'] and not m['tail'].strip()
        if not joins:
            flush()
            out.append(text[at:m.start()])
        if m['tail'].strip():
            grouped = lines_for(new_pairs(lib, m['mod'], split_names(m['many'] or m['one']), top), m['ind'], 10_000)
            out.append('\n'.join(line + m['tail'] for line in grouped.splitlines()))
        else: run.append(m)
        at = m.end()
    flush()
    out.append(text[at:])
    text = ''.join(out)

    def inline(m):
        if m['mod'] not in lib.defs or m['mod'] == 'core': return m[0]
        return lines_for(new_pairs(lib, m['mod'], split_names(m['one']), False), '', 10_000).replace('\n', '; ')
    # what BLOCK wrote names packages ("bdense_nb.diffusion.schedules"), which INLINE does not match: its module has no dot
    return INLINE.sub(inline, text)


def rewrite_modules(text, lib, label):
    "`from bdense_nb import X [as Y]`, `import bdense_nb.X as Y`, dotted names in strings."
    def where(old, alias):
        attrs = set(re.findall(rf'(?<![\w.]){alias}\.(\w+)', text)) | set(re.findall(rf'setattr\({alias}, [\'"](\w+)', text))
        homes = {lib.moved[old, a] for a in attrs if (old, a) in lib.moved}
        stay = {a for a in attrs if (old, a) not in lib.moved}
        if homes and stay - GLOBAL_USE.get(old, set()): by_hand(f'{label}: {alias} is used for {sorted(attrs)}, which now live in {sorted({lib.main(old), *homes})}')
        return homes.pop() if len(homes) == 1 else lib.main(old)

    def from_lib(m):
        lines = {}
        for name, alias in split_names(m[2]):
            if name not in lib.defs or name == 'core': lines.setdefault('', []).append((name, alias)); continue
            package, _, last = where(name, alias).rpartition('.')
            lines.setdefault(package, []).append((last, alias))
        return '\n'.join(lines_for([(p, n)], m[1], 10_000) for p, ns in lines.items() for n in ns) + m[3]
    text = re.sub(rf'^([ \t]*)from {LIB} import ({NAMES}(?:, {NAMES})*)([^\n]*)$', from_lib, text, flags=re.M)

    def module_as(m):
        if m[1] not in lib.defs or m[1] == 'core': return m[0]
        return f'import {LIB}.{where(m[1], m[2])} as {m[2]}'
    return re.sub(rf'import {LIB}\.([a-z_0-9]+) as (\w+)', module_as, text)


def rewrite_dotted(text, lib):
    "`bdense_nb.old.name` and `bdense_nb.old` wherever they stand."
    def dotted(m):
        old, name = m[1], m[2]
        if old not in lib.defs or old == 'core': return m[0]
        if name and (old in PACKAGES and (f'{old}.{name}' in NEW_MODULES)): return m[0]  # already new
        home = lib.moved.get((old, name), lib.main(old))
        return f'{LIB}.{home}' + (f'.{name}' if name else '')
    return re.sub(rf'\b{LIB}\.([a-z_0-9]+)\b(?:\.(\w+))?(?!\.py\b)', dotted, text)


def rewrite_code(text, lib, width, label, top=False):
    text = rewrite_modules(text, lib, label)  # first: afterwards `from bdense_nb import sfd` may mean the function
    return rewrite_dotted(rewrite_imports(text, lib, width, top), lib)


# --- prose

class Prose:
    "Links between notebooks, numbers of notebooks, stems, and names like `targets.branch_states`."
    def __init__(self, lib, anchors):
        self.lib, self.anchors = lib, anchors
        self.stem = {lib.path[old].stem: (new[1], new[2]) for old, new in MOVES.items() if old in lib.path}
        self.stem |= STEMS_EXTRA
        self.number = {stem.split('_')[0]: stem for stem in self.stem if stem[:2].isdigit()}

    def link(self, stem, doc, anchor=''):
        target = self.stem[stem][0]
        slug = anchor.lstrip('#')
        if slug and slug not in self.anchors.get(target, {slug}):
            target = next((d for d, slugs in self.anchors.items() if slug in slugs), target)
        return posixpath.relpath(f'{target}.ipynb', posixpath.dirname(doc) or '.') + anchor

    def topic(self, stem, doc): return self.stem[stem][1]

    def markdown(self, text, doc):
        "A markdown cell of the notebook `doc` (its new path below nbs/, without suffix)."
        old_dir = OLD_DIR.get(doc, posixpath.dirname(doc))
        new_dir = posixpath.dirname(doc)
        kept = []

        def keep(s): kept.append(s); return f'\x00{len(kept) - 1}\x00'

        def relinked(m):
            words, target = m[1], m[2]
            path, _, anchor = target.partition('#')
            anchor = f'#{anchor}' if anchor else ''
            inside = posixpath.normpath(posixpath.join('nbs', old_dir, path)) if path else ''
            stem = inside.removeprefix('nbs/').removesuffix('.ipynb')
            if path and stem in self.stem and doc == 'tutorials/9b_solutions' and words == stem:
                return keep(f'[{self.stem[stem][0]}]({self.link(stem, doc, anchor)})')  # tests read the lesson's name there
            if path and stem in self.stem:
                if words in (stem, f'`{stem}`') or re.fullmatch(r'(the )?notebook \d+[a-z]?|\d+[a-z]?', words, re.I):
                    said = f'the notebook on {self.topic(stem, doc)}'
                    words = said[0].upper() + said[1:] if words[0] == 'N' else said
                return keep(f'[{words}]({self.link(stem, doc, anchor)})')
            if path and not re.match(r'[a-z]+:|/', path):
                return keep(f'[{words}]({posixpath.relpath(inside, posixpath.join("nbs", new_dir))}{anchor})')
            return keep(m[0])
        text = re.sub(r'(?s)(```.*?```)', lambda m: keep(m[0]), text)
        text = re.sub(r'(?<!`)`[^`\n]+`(?!`)', lambda m: keep(m[0]) if '](' in m[0] else m[0], text)  # a link that is shown as code
        text = re.sub(r'\[([^\]]*)\]\(<?([^)\s>]+)>?\)', lambda m: m[0] if re.match(r'[a-z]+:', m[2]) or m[2].startswith('#') else relinked(m), text)
        text = re.sub(r'`(\d\d[a-z]?_\w+)`', lambda m: keep(f'[the notebook on {self.topic(m[1], doc)}]({self.link(m[1], doc)})') if m[1] in self.stem else m[0], text)
        text = self.numbers(text, doc, linked=True)
        text = self.qualified(text)
        while '\x00' in text: text = re.sub('\x00(\\d+)\x00', lambda m: kept[int(m[1])], text)
        return text

    def numbers(self, text, doc='', linked=False):
        "`notebook 10a` -> the notebook on SFD; `notebooks 11 and 10g` -> the notebooks on metrics and on intervals."
        def one(number, word):
            stem = OVERRIDES.get((doc, number), self.number[number])
            said = f'{word} {self.topic(stem, doc)}'
            return f'[{said}]({self.link(stem, doc)})' if linked and self.stem[stem][0] != doc else said

        def single(m):
            if m[2] not in self.number: return m[0]
            return one(m[2], ('The' if m[1][0] == 'N' else 'the') + ' notebook on')

        def several(m):
            numbers = re.findall(r'\d+[a-z]?', m[2])
            if not all(n in self.number for n in numbers): return m[0]
            words = [one(n, 'on') for n in numbers]
            return ('The' if m[1][0] == 'N' else 'the') + ' notebooks ' + (', '.join(words[:-1]) + ' and ' if words[:-1] else '') + words[-1]
        text = re.sub(r'\b([Nn]otebooks) ((?:\d\d[a-z]?, )*\d\d[a-z]?(?: and|,| to) \d\d[a-z]?)\b', several, text)
        text = re.sub(r'\b([Nn]otebook) (\d\d[a-z]?)\b', single, text)
        if linked: text = re.sub(r'\((0\d[a-z]?|1\d[a-z])\)', lambda m: '(' + one(m[1], '').replace('[ ', '[') + ')' if m[1] in self.number else m[0], text)
        if linked:  # "SFD in notebook 10a, Progressive Distillation in 10c", "explained in 08c"
            text = re.sub(r'(?<=\bin )(\d\d[a-z]?)(?=[;.,)])', lambda m: one(m[1], 'the notebook on') if m[1] in self.number else m[0], text)
        return text

    def qualified(self, text):
        "`targets.branch_states` in backticks, where the module has another name now."
        def rename(m):
            old, name = m[1], m[2]
            if old not in self.lib.defs or name not in {**self.lib.defs[old], **self.lib.froms[old]}: return m[0]
            return f'`{self.lib.home(old, name).split(".")[-1]}.{name}'
        return re.sub(r'`([a-z_]+)\.(\w+)(?=[`(.])', rename, text)


# --- splitting a notebook in two

def headings(cell): return re.findall(r'^##+ (.*)$', source(cell), re.M) if cell['cell_type'] == 'markdown' else []


def cut_at_headings(nb):
    "A markdown cell with text above its first `## ` is cut there, so that sections are whole cells; outputs stay."
    cells = []
    for cell in nb['cells']:
        m = re.search(r'^## ', source(cell), re.M) if cell['cell_type'] == 'markdown' else None
        if m and m.start() and source(cell)[:m.start()].strip():
            first, second = dict(cell, source=source(cell)[:m.start()].rstrip()), new_cell('markdown', source(cell)[m.start():])
            cells += [first, second]
        else: cells.append(cell)
    nb['cells'] = cells


def section_of(nb):
    "For each cell the `## ` heading it stands under."
    found, now = [], ''
    for cell in nb['cells']:
        for h in re.findall(r'^## (.*)$', source(cell), re.M) if cell['cell_type'] == 'markdown' else []: now = h
        found.append(now)
    return found


def prune_imports(text, needed, width):
    "The import cell without names that nothing needs; comments and directives stay."
    lines, have = text.splitlines(), {}
    nodes = [n for n in tree(text).body if isinstance(n, (ast.Import, ast.ImportFrom))]
    drop = set()
    inserts = {}
    for n in nodes:
        names = [(a.name, a.asname or a.name) for a in n.names]
        keep = [(a, b) for a, b in names if b.split('.')[0] in needed or (isinstance(n, ast.ImportFrom) and n.module == '__future__')]
        if keep == names: continue
        drop |= set(range(n.lineno - 1, n.end_lineno))
        if not keep: continue
        if isinstance(n, ast.Import): new = 'import ' + ', '.join(a if a == b else f'{a} as {b}' for a, b in keep)
        else:
            head = f'from {"."*n.level}{n.module or ""} import '
            new = head + ', '.join(a if a == b else f'{a} as {b}' for a, b in keep)
            if len(new) > width:
                body = textwrap.fill(new.removeprefix(head), width - len(head) - 2)
                new = head + '(' + body.replace('\n', '\n' + ' '*(len(head) + 1)) + ')'
        inserts[n.lineno - 1] = new
    out = []
    for i, line in enumerate(lines):
        if i in inserts: out.append(inserts[i])
        if i not in drop: out.append(line)
    return '\n'.join(out)


def import_lines(wanted, width):
    "Statements for {bound name: statement}: plain imports, then others, then ours."
    plain = sorted({s for s in wanted.values() if s.startswith('import ')})
    froms = {}
    for s in wanted.values():
        if m := re.fullmatch(r'from (\S+) import (.*)', s): froms.setdefault(m[1], set()).add(m[2])
    def line(m):
        head = f'from {m} import '
        text = head + ', '.join(sorted(froms[m], key=by_type))
        if len(text) > width:
            body = textwrap.fill(text.removeprefix(head), width - len(head) - 2)
            text = head + '(' + body.replace('\n', '\n' + ' '*(len(head) + 1)) + ')'
        return text
    future = [line(m) for m in froms if m == '__future__']
    others = [line(m) for m in sorted(froms) if not m.startswith(LIB) and m != '__future__']
    ours = [line(m) for m in sorted(froms) if m.startswith(LIB)]
    std = [s for s in plain if s.split()[1].split('.')[0] in sys.stdlib_module_names]
    std_from = [s for s in others if s.split()[1].split('.')[0] in sys.stdlib_module_names]
    rest = [s for s in plain if s not in std]
    rest_from = [s for s in others if s not in std_from]
    first = [*future, *std, *std_from]
    return '\n'.join([*first, *([''] if first and (rest or rest_from or ours) else []), *rest, *rest_from, *ours])


def split(lib, spec):
    "Move sections (and single cells by the name they define) of a notebook to a new one."
    old = spec['of']
    if old not in lib.path: return by_hand(f'split of {old}: there is no such module')
    path = lib.path[old]
    nb = load(path)
    cut_at_headings(nb)
    where, cells = section_of(nb), nb['cells']
    missing = [h for h in spec['sections'] if h not in where]
    if missing: by_hand(f'split of {old}: no section {missing} (there are {list(dict.fromkeys(where))})')
    go = {i for i, h in enumerate(where) if h in spec['sections']}
    go |= {i for i, c in enumerate(cells) if is_export(c) and exported_names(source(c)) & set(spec.get('names', ()))}
    stay = {i for i, c in enumerate(cells) if is_export(c) and exported_names(source(c)) & set(spec.get('keep', ()))}
    go -= stay
    if not go: return by_hand(f'split of {old}: nothing to move')
    moving, staying = [cells[i] for i in sorted(go)], [c for i, c in enumerate(cells) if i not in go]
    names = set().union(*(exported_names(source(c)) for c in moving if is_export(c)), set())
    if not names: return by_hand(f'split of {old}: no exported name in {spec["sections"]}')
    new = spec['to']
    new_old = f'{old}->{new}'  # stands for the new module until imports are rewritten
    for name in names: lib.moved[old, name] = new

    exp_imports = {b: s for c in cells if is_export(c) for b, s in imports(source(c))}
    lesson_imports = {b: s for c in cells if not is_export(c) and c['cell_type'] == 'code' for b, s in imports(source(c))}

    def needs(group): return set().union(*(used(source(c)) for c in group if c['cell_type'] == 'code'), set())
    def local(group): return set().union(*(exported_names(source(c)) for c in group if is_export(c)), set())
    def ours(group): return [c for c in group if is_export(c)]
    def lessons(group): return [c for c in group if c['cell_type'] == 'code' and not is_export(c)]

    old_defs = set(lib.defs[old])
    # the new notebook
    bridge = [new_cell(kind, text) for kind, text in spec.get('bridge', ())]
    wanted = {b: s for b, s in exp_imports.items() if b in needs(ours(moving)) - local(moving)}
    wanted |= {b: f'from {LIB}.{old} import {b}' for b in (needs(ours(moving)) & old_defs) - names}
    wanted['annotations'] = 'from __future__ import annotations'
    exported_imports = '#| export\n' + import_lines(wanted, 100)
    lesson = lessons([*bridge, *moving])
    spec_helpers = [c for c in staying if not is_export(c) and c['cell_type'] == 'code' and spec.get('helpers') and re.search(spec['helpers'], source(c))]
    lesson_used = needs([*lesson, *spec_helpers])
    lesson_wanted = {b: s for b, s in {**exp_imports, **lesson_imports}.items() if b in lesson_used and b not in wanted}
    lesson_wanted |= {b: f'from {LIB}.{old} import {b}' for b in (lesson_used & old_defs) - names if b not in wanted}
    for b, s in spec.get('imports', {}).items():
        if b in lesson_used and b not in wanted: lesson_wanted[b] = s
    last = new.split('.')[-1]
    head = [new_cell('markdown', f'# {last}\n\n> {spec["summary"]}'), new_cell('code', f'#| default_exp {new}'), new_cell('code', exported_imports)]
    if lesson_wanted: head.append(new_cell('code', import_lines(lesson_wanted, 88)))
    helpers = [new_cell('code', source(c)) for c in spec_helpers]
    intro = [new_cell('markdown', spec['intro'])] if spec.get('intro') else []
    end = [new_cell(kind, text) for kind, text in spec.get('end', ())]
    fresh = [*head, *helpers, *intro, *bridge, *moving, *end]
    # what stays: import cells without what has become useless, with what it now needs
    for find, put in spec.get('subs', ()):
        hits = [c for c in staying if find in source(c)]
        for c in hits: c['source'] = source(c).replace(find, put)
        if not hits: by_hand(f'split of {old}: nothing says {find[:60]!r} any more')
    extra = spec.get('stay_bridge')
    if extra:
        heading, kind, text = extra
        at = next((i + 1 for i, c in enumerate(staying) if heading in headings(c)), None)
        if at is None: by_hand(f'split of {old}: no section {heading!r} for the bridge')
        else: staying.insert(at, new_cell(kind, text))
    need_exp, need_lesson = needs(ours(staying)), needs(lessons(staying))
    all_lists = {s for c in ours(staying) for s in re.findall(r"'(\w+)'", source(c)) if '_all_' in source(c)}
    was_needed = needs(ours(cells))  # a name that was never used is a re-export and stays
    for c in staying:
        if is_export(c) and imports(source(c)):
            c['source'] = prune_imports(source(c), need_exp | all_lists | ({b for b in exp_imports} - was_needed), 100)
        elif c['cell_type'] == 'code' and not is_export(c) and imports(source(c)):
            c['source'] = prune_imports(source(c), need_lesson | set(lesson_imports) - needs(lessons(cells)), 88)
    have_exp = set().union(*(bound_imports(source(c)) for c in ours(staying)), set())
    have = have_exp | set().union(*(bound_imports(source(c)) for c in lessons(staying)), set()) | set(old_defs - names)
    back = need_exp & names
    if back and spec.get('below'):  # the new module stands below: what stays imports from it
        first = next(c for c in ours(staying) if imports(source(c)))
        first['source'] = source(first).rstrip() + '\n' + import_lines({b: f'from {LIB}.{old} import {b}' for b in back}, 100)
        have |= back
    elif back: by_hand(f'split of {old}: what stays needs {sorted(back)} of {new}')
    more = {b: {**exp_imports, **lesson_imports}[b] for b in need_lesson if b in {**exp_imports, **lesson_imports} and b not in have}
    more |= {b: f'from {LIB}.{old} import {b}' for b in need_lesson & names}
    first_lesson = next((c for c in lessons(staying) if imports(source(c))), None)
    if more and first_lesson is not None: c = first_lesson; c['source'] = source(c).rstrip() + '\n' + import_lines(more, 88)
    nb['cells'] = [c for c in staying if source(c).strip()]
    save(path, nb)
    fresh_nb = dict(nb, cells=[dict(c) for c in fresh])
    target = NBS/f'{spec["doc"]}.ipynb'
    save(target, fresh_nb)
    for label, group in ((spec['doc'], fresh), (path.stem, nb['cells'])):
        lost = undefined(group)
        if lost: by_hand(f'{label}: nothing defines {sorted(lost)}')
    lib.path[new_old] = target
    lib.split_docs.append((old, new, target))
    print(f'split {path.stem}: {len(moving)} cells with {sorted(names)} -> {spec["doc"]}')


def undefined(cells):
    "Names that code reads and nothing in the notebook binds."
    have, read = set(dir(builtins)) | {'display', '__file__', '_all_', 'get_ipython', '_'}, set()
    for c in cells:
        if c['cell_type'] != 'code': continue
        t = tree(source(c))
        for n in ast.walk(t):
            if isinstance(n, ast.Name): (read if isinstance(n.ctx, ast.Load) else have).add(n.id)
            elif isinstance(n, (ast.FunctionDef, ast.ClassDef)): have.add(n.name)
            elif isinstance(n, ast.arg): have.add(n.arg)
            elif isinstance(n, (ast.Import, ast.ImportFrom)): have |= {(a.asname or a.name).split('.')[0] for a in n.names}
            elif isinstance(n, ast.ExceptHandler) and n.name: have.add(n.name)
            elif isinstance(n, (ast.MatchAs, ast.MatchStar)) and n.name: have.add(n.name)
            elif isinstance(n, (ast.Global, ast.Nonlocal)): have |= set(n.names)
    return read - have


# --- the tree

def slugs(path):
    "Anchors of a notebook's headings, as GitHub and Sphinx make them."
    found = set()
    for cell in load(path)['cells']:
        for h in headings(cell) if cell['cell_type'] == 'markdown' else []:
            found.add(re.sub(r'[^\w\- ]', '', re.sub(r'[`*$]', '', h).lower()).replace(' ', '-'))
    return found


def git(*args): subprocess.run(['git', *map(str, args)], cwd=ROOT, check=True)


def rename_stems(text, prose, kind):
    "Paths and keys like '10a_sfd' in tests, tools and documents."
    for stem, (doc, _) in sorted(prose.stem.items(), key=lambda kv: -len(kv[0])):
        if doc == stem or not stem[:2].isdigit(): continue
        text = re.sub(rf'(?<= -k ){stem}\b', doc.split('/')[-1], text)
        text = re.sub(rf'(?<![\w/]){stem}(?!\w)|(?<=nbs/){stem}(?!\w)', doc, text)
    return text


def rewrite_file(path, lib, prose):
    text = was = path.read_text(encoding='utf-8')
    rel = path.relative_to(ROOT).as_posix()
    if path.suffix == '.py':
        text = rewrite_code(text, lib, 120, rel)
        for old in lib.defs:
            if old == 'core': continue
            text = re.sub(rf"(?<=api/){old}(?=\.html)", lib.main(old), text)
            text = re.sub(rf"(?<=_modules/{LIB}/){old}(?=\.html)", lib.main(old).replace('.', '/'), text)
            text = re.sub(rf"(?<={LIB}/){old}(?=\.py\b)", lib.main(old).replace('.', '/'), text)
            text = re.sub(rf"(?<='{LIB}'/'){old}\.py(?=')", lib.main(old).replace('.', '/') + '.py', text)
    text = rename_stems(text, prose, path.suffix)
    text = prose.numbers(text)
    text = prose.qualified(text)
    if path.suffix == '.md':
        text = re.sub(r'\]\((\.\./nbs/[^)\s]+)\)', lambda m: m[0], text)
        text = rewrite_code(text, lib, 100, rel)
    if text != was: path.write_text(text, encoding='utf-8')


def rewrite_notebook(path, lib, prose):
    nb = load(path)
    doc = path.relative_to(NBS).with_suffix('').as_posix()
    top = doc == 'index' or doc.startswith(('tutorials/', 'gpu/'))
    new = NEW_OF_DOC.get(doc)
    for i, cell in enumerate(nb['cells']):
        text = source(cell)
        if cell['cell_type'] == 'markdown':
            if new and i == 0: text = re.sub(r'^# .*$', f'# {new.split(".")[-1]}', text, count=1, flags=re.M)
            text = prose.markdown(text, doc)
        elif cell['cell_type'] == 'code':
            if new: text = re.sub(r'^(#\|\s*default_exp )\S+', rf'\g<1>{new}', text, flags=re.M)
            exp = is_export(cell)
            text = rewrite_code(text, lib, 100 if exp else 88, doc, top)
            text = prose.qualified(prose.numbers(text))
            text = rename_stems(text, prose, 'code')
        cell['source'] = text
    save(path, nb)


def edit_files():
    "EDITS: exact or regular replacements in files that are not notebooks or that need one more word."
    for pattern, edits in EDITS.items():
        path = next(iter(ROOT.glob(pattern)), None)
        if path is None: by_hand(f'{pattern}: there is no such file'); continue
        name = path.relative_to(ROOT).as_posix()
        if path.suffix == '.ipynb':
            nb = load(path)
            for pattern, new, *how in edits:
                hits = 0
                for cell in nb['cells']:
                    text, n = re.subn(pattern, new, source(cell), flags=re.M | re.S) if 're' in how else (source(cell).replace(pattern, new), source(cell).count(pattern))
                    if n: cell['source'] = text; hits += n
                if not hits and 'maybe' not in how: by_hand(f'{name}: nothing matches {pattern[:80]!r}')
            save(path, nb)
            continue
        text = path.read_text(encoding='utf-8')
        for pattern, new, *how in edits:
            text, n = re.subn(pattern, new, text, flags=re.M | re.S) if 're' in how else (text.replace(pattern, new), text.count(pattern))
            if not n and 'maybe' not in how: by_hand(f'{name}: nothing matches {pattern[:80]!r}')
        path.write_text(text, encoding='utf-8')


def old_names(lib):
    "bdense_nb/OLD.py: the old name of a module, as a re-export."
    for old in lib.defs:
        if old == 'core' or old in OPTIONAL: continue
        homes = list(dict.fromkeys([lib.main(old), *(h for (o, _), h in lib.moved.items() if o == old)]))
        stars = '\n'.join(f'from .{h} import *' for h in homes)
        also = ' and '.join(f'`{LIB}.{h}`' for h in homes)
        if old in PACKAGES: continue  # `training`, `interop`: the package's own __init__ re-exports
        text = f'"The old name of {also}."\n{stars}\n'
        if old in TOP_OK:  # `bdense_nb.sfd` is also a function at the top: either answers a call
            text = (f'"The old name of {also}; called, it is the function that `{LIB}.{old}` is."\n'
                    f'import sys\nfrom types import ModuleType\n\n{stars}\n\n\nclass _Callable(ModuleType):\n'
                    f'    __call__ = staticmethod({old})\n\n\nsys.modules[__name__].__class__ = _Callable\n')
            text = text.replace('import *\n\n\nclass', f'import *\nfrom .{TOP_OK[old]} import {old}\n\n\nclass')
        (PKG/f'{old}.py').write_text(text, encoding='utf-8')


def inits(lib):
    "The packages' __init__: a sentence, and for `training` and `interop` (old module names) what they offered."
    for package, about in PACKAGES.items():
        if package == 'core': continue
        folder = PKG/package
        folder.mkdir(exist_ok=True)
        text = f'"{about}"\n'
        if package in lib.defs:
            modules = sorted({m for m in NEW_MODULES if m.startswith(f'{package}.')}, key=lambda m: MODULE_ORDER[m])
            text += '\n'.join(f'from .{m.split(".")[1]} import *' for m in modules) + '\n'
        (folder/'__init__.py').write_text(text, encoding='utf-8')
    homes = {}
    for name, home in TOP_OK.items(): homes.setdefault(home, []).append(name)
    names = textwrap.fill(', '.join(f"'{n}'" for n in sorted(TOP_OK)), 96).replace('\n', '\n           ')
    table = '\n'.join(f"    {home!r}: {' '.join(sorted(ns))!r}," for home, ns in sorted(homes.items()))
    static = '\n'.join(f"    from .{home} import {', '.join(sorted(ns))}" for home, ns in sorted(homes.items()))
    version = re.search(r'^__version__ = .*$', (PKG/'__init__.py').read_text(), re.M)[0]
    (PKG/'__init__.py').write_text((HERE/'init.py.txt').read_text().replace('@VERSION@', version).replace('@NAMES@', names)
                                   .replace('@TABLE@', table).replace('@STATIC@', static))


def main():
    global NEW_MODULES, NEW_OF_DOC, OLD_DIR, TOP_OK, GLOBAL_USE, MODULE_ORDER
    if (NBS/'diffusion').is_dir(): sys.exit('nbs/diffusion is there already: this tree has moved')
    lib = Library()
    lib.split_docs = []
    if 'commands' not in lib.defs: MOVES.update(WITHOUT_COMMANDS)
    for old in OPTIONAL - set(lib.defs): del MOVES[old]
    unknown = sorted(set(lib.defs) - set(MOVES) - {'core'})
    if unknown: by_hand(f'modules that MOVES does not know stay at the top: {unknown}')
    for spec in SPLITS: split(lib, spec)
    NEW_OF_DOC = {MOVES[old][1]: MOVES[old][0] for old in lib.defs if old in MOVES} | {t.relative_to(NBS).with_suffix('').as_posix(): new for _, new, t in lib.split_docs}
    NEW_MODULES = set(NEW_OF_DOC.values()) | {'core'}
    MODULE_ORDER = {m: d for d, m in NEW_OF_DOC.items()}
    OLD_DIR = {doc: '' for doc in NEW_OF_DOC}
    GLOBAL_USE = {}
    every = {}
    for old in MOVES:  # a name that two modules define is the lower one's
        for n in lib.defs.get(old, ()): every.setdefault(n, lib.home(old, n))
    TOP_OK = {n: every[n] for n in TOP if n in every}
    print('not offered at the top, because there is no such name:', sorted(set(TOP) - set(TOP_OK)) or 'none')
    for old, (new, doc, _) in MOVES.items():
        if old not in lib.defs: by_hand(f'MOVES names {old}, which is not there'); continue
        if doc != lib.path[old].stem:
            (NBS/doc).parent.mkdir(parents=True, exist_ok=True)
            git('mv', lib.path[old].relative_to(ROOT), f'nbs/{doc}.ipynb')
            git('rm', '-q', '-f', f'{LIB}/{old}.py')
    anchors = {p.relative_to(NBS).with_suffix('').as_posix(): slugs(p) for p in NBS.rglob('*.ipynb')}
    prose = Prose(lib, anchors)
    for path in sorted(NBS.rglob('*.ipynb')):
        if '.ipynb_checkpoints' not in path.parts: rewrite_notebook(path, lib, prose)
    for folder in ('tests', 'tools', 'docs', 'data', '.ci', '.github'):
        for path in sorted((ROOT/folder).rglob('*')):
            if path.is_file() and path.suffix in ('.py', '.md', '.yml', '') and '_static' not in path.parts and '__pycache__' not in path.parts:
                try: rewrite_file(path, lib, prose)
                except UnicodeDecodeError: pass
    for name in ('CONTRIBUTING.md', 'Makefile', 'setup.py', 'MANIFEST.in'):
        if (ROOT/name).is_file(): rewrite_file(ROOT/name, lib, prose)
    ini = (ROOT/'settings.ini').read_text()
    ini = re.sub(rf'{LIB}\.(\w+):(\w+)', lambda m: f'{LIB}.{lib.home(m[1], m[2])}:{m[2]}' if m[1] in lib.defs else m[0], ini)
    (ROOT/'settings.ini').write_text(ini)
    inits(lib)
    old_names(lib)
    for path in sorted((HERE/'files').rglob('*')):
        if path.is_file():
            target = ROOT/path.relative_to(HERE/'files')
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    edit_files()
    bin = Path(sys.executable).parent
    for command in ('nbdev_export', 'nbdev_clean'): subprocess.run([bin/command], cwd=ROOT, check=True)
    if '--no-run' not in sys.argv:
        subprocess.run([sys.executable, 'tools/run_notebooks.py', 'nbs/index.ipynb'], cwd=ROOT, check=True)
        subprocess.run([sys.executable, 'tools/readme.py'], cwd=ROOT, check=True)
    git('add', '-A')
    left = subprocess.run(['git', 'grep', '-nE', r'\b[Nn]otebooks? [0-9]{2}[a-z]?\b', '--', ':!data/results'], cwd=ROOT, capture_output=True, text=True).stdout
    for line in left.splitlines(): by_hand(line[:200])
    print(*(f'BY HAND: {line}' for line in BY_HAND), sep='\n')


if __name__ == '__main__': main()
