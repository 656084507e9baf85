"""The page of results: a figure and a table on top, then each file of data/results with its
question, what came out, and a link to it."""
import base64
import json
import re
from collections import Counter, defaultdict
from pathlib import Path

from bdense_nb.lab.experiments import difference_table, differences, measures_of
from docs_sources import ROOT, copy_to, pages, table

QUESTIONS = {  # of files that are no experiment; the others ask their own
    'demo': 'What does the demonstration draw in two calls, with branches and without?',
    'fashion_mnist_teacher': 'How good is the teacher of Fashion-MNIST that ships?',
    'fashion_mnist_wide_teacher': 'How good is the wider teacher of Fashion-MNIST?',
    'fashion_mnist_pd': 'What is lost from 64 steps to 1, with branches and without?',
    'branch_weights': "How far from the teacher's state does each branch end?",
    'branch_weight_search': 'Does a search find better branch weights?',
    'forecasting_methods': 'How good are forecasts in few calls, beside other methods?',
    'anomalies_methods': 'How well do student and branches find anomalies, beside other detectors?',
    'bench_cpu': 'What does the package cost on a CPU, beside plain PyTorch?',
    'bench_gpu': 'What does the package cost on a GPU, beside plain PyTorch?',
    'paper': 'What does the paper report?'}
VERDICTS = ('better', 'worse', 'not told apart')  # as `Difference.verdict` says
AT_ONCE = 6  # rows of a table that is shown at once; longer ones are opened


def shown(value) -> str:
    "A value of a results file in a table."
    if value is None: return '–'
    if isinstance(value, bool): return 'yes' if value else 'no'
    if isinstance(value, float): return f'{value:.4g}'
    if isinstance(value, list): return ', '.join(map(shown, value))
    return str(value)


PROPER = {'frechet': 'Fréchet', 'wasserstein': 'Wasserstein', 'crps': 'CRPS', 'mase': 'MASE', 'auc': 'AUC'}


def words(key) -> str: return ' '.join(PROPER.get(word, word) for word in str(key).split('_'))


def sentence(key) -> str:
    "Words with a capital, as a heading begins."
    text = words(key)
    return text[:1].upper() + text[1:]


def is_flat(value) -> bool:
    "It has room in one cell."
    if not isinstance(value, list): return not isinstance(value, dict)
    return len(value) <= 12 and not any(isinstance(v, dict) for v in value)


def over_seeds(rows: list[dict]) -> list[dict]:
    "Rows that differ in their seed alone become one: how many, and the mean of each measure."
    def mean(group, k):
        first = group[0][k]
        return sum(r[k] for r in group)/len(group) if isinstance(first, float) else first
    groups = defaultdict(list)
    for row in rows:
        same = {k: v for k, v in row.items() if k != 'seed' and not isinstance(v, float)}
        groups[str(same)].append(row)
    return [{'seeds': len(g)} | {k: mean(g, k) for k in g[0] if k != 'seed'}
            for g in groups.values()]


def rows_table(inner) -> tuple[str, int, bool] | None:
    "A list or dict of rows as (table, its rows, is it the mean over seeds); None: it is none."
    rows = inner
    if isinstance(inner, dict):
        rows = [{'': k} | v if isinstance(v, dict) else v for k, v in inner.items()]
    if not all(isinstance(r, dict) and all(map(is_flat, r.values())) for r in rows): return None
    averaged = len(rows) > 24 and all('seed' in r and set(r) == set(rows[0]) for r in rows)
    if averaged: rows = over_seeds(rows)
    columns = list(dict.fromkeys(k for r in rows for k in r))
    cells = [[shown(r.get(c)) for c in columns] for r in rows]
    return table([words(c) for c in columns], cells), len(rows), averaged


def result_parts(value: dict, name: str = '') -> list[str]:
    "A file, or a part of it, as markdown: a table of plain values, and one for each list of rows."
    flat = [[words(k), shown(v)] for k, v in value.items() if is_flat(v) and v != []]
    parts = []
    for key, inner in value.items():
        if is_flat(inner) or not inner: continue
        found = rows_table(inner)
        if found and found[1] <= 40:
            mean = ', mean over seeds' if found[2] else ''
            parts += [f'**{sentence(key)}{mean}**', found[0]]
        elif isinstance(inner, dict) and not found: parts += result_parts(inner, key)
        else: flat.append([words(key), f'{len(inner)} entries, in the file'])
    head = [f'**{sentence(name)}**'] if name else []
    return head + ([table(['what', 'value'], flat)] if flat else []) + parts


def details(summary: str, *parts: str) -> str:
    "What is read when it is opened."
    return '\n\n'.join([f'<details><summary>{summary}</summary>', *parts, '</details>'])


# --- comparisons

def comparison(data: dict) -> list[str]:
    "What came out for each measure: a sentence, and a table."
    parts = []
    for i, measure in enumerate(measures_of(data)):
        grid = difference_table(data, measure).partition('\n\n')[2]
        n = grid.count('\n') - 1
        said = f'**{sentence(measure)}**: {counted(data, measure)}.'
        parts += [said, grid] if i == 0 and n <= AT_ONCE else [
            said, details(f'Table: {words(measure)}, {n} rows', grid)]
    return parts


def verdicts(data: dict, measure: str) -> Counter:
    "How many differences to the host have which verdict."
    return Counter(d.verdict for d in differences(data, measure))


def counted(data: dict, measure: str) -> str:
    "The verdicts in words."
    found = verdicts(data, measure)
    better, worse, neither = (found[v] for v in VERDICTS)
    return (f'of {found.total()} differences to "{data["host"]}" {better} better, {worse} worse, '
            f'{neither} not significant')


def overview(files: dict[str, dict], heads: dict[str, str]) -> str:
    "A row for each comparison: how often the paired error was better or worse than the host's."
    rows = [[f'[{heads[name]}](#result-{name.replace("_", "-")})', d['host'],
             *(str(verdicts(d, 'paired_error')[v]) for v in VERDICTS)]
            for name, d in files.items() if 'experiment' in d]
    return table(['question', 'compared with', 'better', 'worse', 'not significant'], rows)


# --- the page

def headings(files: dict[str, dict]) -> dict[str, str]:
    "The question of each file; equal ones say where they were asked."
    asked = {name: d['about'] if 'experiment' in d else QUESTIONS.get(name) or words(name)
             for name, d in files.items()}
    often = Counter(asked.values())
    where = {name: f' ({d["world"].partition(", ")[2]})' for name, d in files.items()
             if often[asked[name]] > 1}
    return {name: text[0].upper() + text[1:] + where.get(name, '') for name, text in asked.items()}


def made(name: str, data: dict) -> str:
    "The line under a heading: the file, and how it was made."
    seeds = {r['seed'] for r in data['rows']} if 'experiment' in data else ()
    parts = [f'{{download}}`{name}.json <results/{name}.json>`',
             f'`{data["command"]}`' if 'command' in data else '',
             data['hardware'] if isinstance(data.get('hardware'), str) else '',  # else a part
             f'{len(seeds)} seeds' if seeds else '']
    return '{.made}\n' + ' · '.join(filter(None, parts))


def summary(out: Path) -> list[str]:
    "What lesson 7 says of the stored comparisons, and its figure."
    page = next(p for p in pages() if p.doc.startswith('course/7_'))
    cells = page.cells()
    def pictures(cell):
        found = [o.get('data', {}).get('image/png') for o in cell.get('outputs', [])]
        return [*filter(None, found)]
    i = next(i for i, c in enumerate(cells) if pictures(c))
    (out/'images').mkdir(parents=True, exist_ok=True)
    (out/'images'/'comparisons.png').write_bytes(base64.b64decode(pictures(cells[i])[0]))
    said = cells[i + 1].source.split('\n## ')[0].replace('](../', '](/')
    return ['## Do branches help?', f'The short answer of [{page.title}](/{page.doc}.ipynb):',
            '![With branches minus without, in percent of the host, with 95 % intervals: '
            'distance to the teacher and to the data](images/comparisons.png)', said]


def result(name: str, data: dict, out: Path, alts: dict[str, str]) -> list[str]:
    "What came out, without its heading."
    texts = [made(name, data)]
    if 'experiment' in data: texts += comparison(data)
    else:
        found = rows_table(data['rows']) if 'rows' in data else None
        if found and found[1] <= AT_ONCE: texts.append(found[0])
        texts.append(details('The file as tables', *result_parts(data)))
    pictures = []
    for path in sorted((ROOT/'data'/'results').glob(f'{name}_*.png')):
        copy_to(path, out/'images'/path.name)
        alt = alts.get(path.name, f'Figure: {words(path.stem)}')
        pictures.append(f'![{alt}](images/{path.name})')
    return texts + ([details('Pictures', *pictures)] if pictures else [])


def results_page(out: Path) -> str:
    "Every data/results/*.json, comparisons first."
    paths = sorted((ROOT/'data'/'results').glob('*.json'))
    files = {p.stem: json.loads(p.read_text(encoding='utf-8')) for p in paths}
    files = dict(sorted(files.items(), key=lambda item: 'experiment' not in item[1]))
    heads = headings(files)
    sources = (c.source for p in pages() for c in p.cells())
    alts = {name: alt for source in sources
            for alt, name in re.findall(r'!\[([^\]]*)\]\([^)\s]*?([^/)\s]+)\)', source)}
    texts = ['# Results', 'What the commands and scripts of this repository measured. Each file '
             'says how it was made, so that the run can be repeated; figures that rest on one '
             'training seed are illustrations, not evidence.', *summary(out),
             '## All comparisons', 'How often the paired error was better or worse than that of '
             'the arm it is compared with. A difference is significant where its 95 % interval '
             'over seeds excludes zero; about one in twenty does so by chance. Other measures can say '
             'otherwise; they are in the sections below.', overview(files, heads),
             'In the tables below the arm compared with has its mean; every other arm has its '
             'difference to it in percent, with that interval, bold where it is significant. '
             'Lower is better.']
    for name, data in files.items():
        copy_to(ROOT/'data'/'results'/f'{name}.json', out/'results'/f'{name}.json')
        texts += [f'(result-{name.replace("_", "-")})=\n## {heads[name]}',
                  *result(name, data, out, alts)]
    return '\n\n'.join(texts) + '\n'
