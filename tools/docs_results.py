"""The page of results: the answer and a figure on top, then each file of data/results, the most
important first, with its question, what came out, and a link to it."""

import json
import re
from collections import Counter, defaultdict
from fnmatch import fnmatch
from pathlib import Path

from bdense_nb.lab.differences import difference_table, differences
from bdense_nb.lab.experiments import measures_of
from docs_sources import ROOT, copy_to, pages, table

GROUPS = {  # heading -> its files, in order; a file belongs to the first that names it
    'Branches at growing budgets': 'fashion_4096 fashion_4096_calls fashion_long fashion_long_calls fashion_wide fashion_sfd spiral_longest spiral_copies spiral_exact spiral_other_networks spiral_calls moons_* swiss_roll_* ring_copies ring_exact ring_other_networks',
    'Other choices, on pictures': 'fashion_[!m]* fashion_mnist_pd',
    'Other choices, on points': 'spiral_* ring_*',
    'Series': 'forecasting* anomalies*',
    'Branch weights': 'branch_*',
    'Teachers and the demonstration': 'demo *_teacher',
    'Cost': 'bench_*',
    'The paper': 'paper',
}
QUESTIONS = {  # of files that are no experiment, or whose own question is another file's, too
    'spiral_pd_recipe': 'spiral: learning rate, loss, average',
    'fashion_4096': 'Fashion-MNIST, half a million trajectories: do branches help?',
    'fashion_4096_calls': 'Fashion-MNIST, half a million trajectories, 4 calls: do branches help?',
    'fashion_longest': 'Fashion-MNIST, 131,000 trajectories: do branches help?',
    'fashion_long_calls': 'Fashion-MNIST, 33,000 trajectories, 3 to 5 calls: do branches help?',
    'fashion_long': 'Fashion-MNIST, 33,000 trajectories: which branch weights help?',
    'fashion_wide': 'Fashion-MNIST, a teacher twice as good: do branches help?',
    'fashion_sfd': 'Fashion-MNIST, short trainings: which branch weights help, at how many calls?',
    'spiral_copies': 'Spiral, students that start as a copy of their teacher: do branches help?',
    'spiral_exact': 'Spiral, a teacher known in closed form: do branches help?',
    'spiral_other_networks': 'Spiral, students that start as another network: do branches help?',
    'moons_copies': 'Two moons: do branches help?',
    'moons_exact': 'Two moons, a teacher known in closed form: do branches help?',
    'moons_other_networks': 'Two moons, students that start as another network: do branches help?',
    'swiss_roll_copies': 'Swiss roll: do branches help?',
    'swiss_roll_exact': 'Swiss roll, a teacher known in closed form: do branches help?',
    'swiss_roll_other_networks': 'Swiss roll, students that start as another network: do branches help?',
    'ring_copies': 'Ring, students that start as a copy of their teacher: do branches help?',
    'ring_exact': 'Ring, a teacher known in closed form: do branches help?',
    'ring_other_networks': 'Ring, students that start as another network: do branches help?',
    'spiral_longest': 'Spiral, 3,000 iterations: do branches help?',
    'spiral_calls': 'Spiral, 3 to 5 calls: do branches help?',
    'fashion_lesson': 'Fashion-MNIST: what else moves a student of two calls?',
    'fashion_lesson_calls': 'Fashion-MNIST, 2 to 5 calls: do branches and a finer teacher help?',
    'fashion_training': 'Fashion-MNIST: what are learning rate, warm-up, loss and K worth?',
    'fashion_fresh': 'Fashion-MNIST: does the recipe hold with fresh seeds?',
    'fashion_variable': 'Fashion-MNIST, one student for two and three calls: do branches help?',
    'fashion_one_call': 'Fashion-MNIST, one call: directly, or in two stages?',
    'spiral_recipe': 'Spiral: what else moves a student of two calls?',
    'demo': 'What does the demonstration draw in two calls, with branches and without?',
    'fashion_mnist_teacher': 'How good is the teacher of Fashion-MNIST that ships?',
    'fashion_mnist_wide_teacher': 'How good is the wider teacher of Fashion-MNIST?',
    'fashion_pd_quarter': 'A quarter of the steps each round: do four branches help?',
    'ring_sfd': 'Ring, a teacher known in closed form: which branch weights help?',
    'ring_pd': 'Ring, Progressive Distillation: do two branches help?',
    'ring_pd_quarter': 'Ring, a quarter of the steps each round: do four branches help?',
    'ring_variable': 'Ring: one student for several step counts, or one call, and branches?',
    'fashion_pd_long': 'Progressive Distillation with 1,000 updates a round: do branches help?',
    'fashion_pd': 'Progressive Distillation, from 128 steps to 1: do branches help?',
    'fashion_mnist_pd': 'What is lost from 64 steps to 1, with branches and without?',
    'branch_weights': "How far from the teacher's state does each branch end?",
    'branch_weight_search': 'Does a search find better branch weights?',
    'forecasting_methods': 'How good are forecasts in few calls, beside other methods?',
    'anomalies_methods': 'How well do student and branches find anomalies, beside other detectors?',
    'bench_cpu': 'What does the package cost on a CPU, beside plain PyTorch?',
    'bench_two_cores': 'What does a training step reach on two cores of a CPU?',
    'bench_gpu': 'What does the package cost on a GPU, beside plain PyTorch?',
    'paper': 'What does the paper report?',
}
VERDICTS = ('better', 'worse', 'not told apart')  # as `Difference.verdict` says
AT_ONCE = 6  # rows of a measurement that is shown at once; other tables are opened


def shown(value) -> str:
    "A value of a results file in a table."
    if value is None:
        return '–'
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    if isinstance(value, float):
        return f'{value:.4g}'
    if isinstance(value, list):
        return ', '.join(map(shown, value))
    return str(value)


PROPER = {
    'frechet': 'Fréchet',
    'wasserstein': 'Wasserstein',
    'crps': 'CRPS',
    'mase': 'MASE',
    'auc': 'AUC',
}


def words(key) -> str:
    return ' '.join(PROPER.get(word, word) for word in str(key).split('_'))


def sentence(key) -> str:
    "Words with a capital, as a heading begins."
    text = words(key)
    return text[:1].upper() + text[1:]


def is_flat(value) -> bool:
    "It has room in one cell."
    if not isinstance(value, list):
        return not isinstance(value, dict)
    return len(value) <= 12 and not any(isinstance(v, dict) for v in value)


def over_seeds(rows: list[dict]) -> list[dict]:
    "Rows that differ in their seed alone become one: how many, and the mean of each measure."

    def mean(group, k):
        first = group[0][k]
        return sum(r[k] for r in group) / len(group) if isinstance(first, float) else first

    groups = defaultdict(list)
    for row in rows:
        same = {k: v for k, v in row.items() if k != 'seed' and not isinstance(v, float)}
        groups[str(same)].append(row)
    return [
        {'seeds': len(g)} | {k: mean(g, k) for k in g[0] if k != 'seed'} for g in groups.values()
    ]


def rows_table(inner) -> tuple[str, int, bool] | None:
    "A list or dict of rows as (table, its rows, is it the mean over seeds); None: it is none."
    rows = inner
    if isinstance(inner, dict):
        rows = [{'': k} | v if isinstance(v, dict) else v for k, v in inner.items()]
    if not all(isinstance(r, dict) and all(map(is_flat, r.values())) for r in rows):
        return None
    averaged = len(rows) > 24 and all('seed' in r and set(r) == set(rows[0]) for r in rows)
    if averaged:
        rows = over_seeds(rows)
    columns = list(dict.fromkeys(k for r in rows for k in r))
    cells = [[shown(r.get(c)) for c in columns] for r in rows]
    return table([words(c) for c in columns], cells), len(rows), averaged


def result_parts(value: dict, name: str = '') -> list[str]:
    "A file, or a part of it, as markdown: a table of plain values, and one for each list of rows."
    flat = [[words(k), shown(v)] for k, v in value.items() if is_flat(v) and v != []]
    parts = []
    for key, inner in value.items():
        if is_flat(inner) or not inner:
            continue
        found = rows_table(inner)
        if found and found[1] <= 40:
            mean = ', mean over seeds' if found[2] else ''
            parts += [f'**{sentence(key)}{mean}**', found[0]]
        elif isinstance(inner, dict) and not found:
            parts += result_parts(inner, key)
        else:
            flat.append([words(key), f'{len(inner)} entries, in the file'])
    head = [f'**{sentence(name)}**'] if name else []
    return head + ([table(['what', 'value'], flat)] if flat else []) + parts


def details(summary: str, *parts: str) -> str:
    "What is read when it is opened."
    return '\n\n'.join([f'<details><summary>{summary}</summary>', *parts, '</details>'])


# --- comparisons


def comparison(data: dict) -> tuple[list[str], list[str]]:
    "What came out for each measure: a sentence, and a table."
    names = measures_of(data)
    said = [f'- **{sentence(m)}**: {counted(data, m)}.' for m in names]
    tables = [
        f'**{sentence(m)}**\n\n' + difference_table(data, m).partition('\n\n')[2] for m in names
    ]
    return ['\n'.join(said)], tables


# where a difference was found -> how it is said
PLACES = {'nfe': '{:,} calls', 'iterations': '{:,} it.', 'width': 'width {:,}'}


def verdicts(data: dict, measure: str) -> list[int]:
    "How many differences to the host have which verdict, as `VERDICTS` has them."
    found = Counter(d.verdict for d in differences(data, measure))
    return [found[v] for v in VERDICTS]


def counted(data: dict, measure: str) -> str:
    "The verdicts in words, and the two ends of what was found."
    better, worse, neither = verdicts(data, measure)
    found = sorted(differences(data, measure), key=lambda d: d.interval.mean / d.host)
    varied = {
        key: text for key, text in PLACES.items() if len({getattr(d, key) for d in found}) > 1
    }
    ends = [
        f'{d.percent} % ({", ".join([d.name, *(text.format(getattr(d, key)) for key, text in varied.items())])})'
        for d in (found[0], found[-1])
    ]
    return f'{better} better, {worse} worse, {neither} neither: ' + ' to '.join(dict.fromkeys(ends))


def overview(files: dict[str, dict], heads: dict[str, str]) -> str:
    "A row for each comparison: how often the paired error was better or worse than the host's."
    rows = [
        [*map(str, verdicts(d, 'paired_error')), f'[{heads[name]}](#{anchor(name)})']
        for name, d in files.items()
        if 'experiment' in d and beside(name, files) == name
    ]
    return table(['better', 'worse', 'neither', 'question'], rows)


# --- the page


def anchor(name: str) -> str:
    return f'result-{name.replace("_", "-")}'


def grouped(names: list[str]) -> dict[str, list[str]]:
    "The files under the headings of the page, in its order."
    left, found = sorted(names), {}
    for head, patterns in GROUPS.items():
        found[head] = [n for p in patterns.split() for n in left if fnmatch(n, p)]
        found[head] = [*dict.fromkeys(found[head])]
        left = [n for n in left if n not in found[head]]
    return {head: names for head, names in found.items() if names}


def headings(files: dict[str, dict]) -> dict[str, str]:
    "The question of each file."
    asked = {
        name: QUESTIONS.get(name) or data.get('about') or words(name)
        for name, data in files.items()
    }
    return {name: text[0].upper() + text[1:] for name, text in asked.items()}


def seen(data: dict) -> str:
    "How many trajectories the runs of an experiment see: at a time, and different ones."
    cfgs = [c['config']['cfg'] for c in data.get('configs', ())]
    found = []
    for key, text in dict(batch='batches of {:,}', pool='a pool of {:,} trajectories').items():
        sizes = {c.get(key) for c in cfgs}
        if len(sizes) == 1 and (size := sizes.pop()):
            found.append(text.format(size))
    return ', '.join(found)


def made(name: str, data: dict) -> str:
    "The file, and how it was made."
    seeds = {r['seed'] for r in data['rows']} if 'experiment' in data else ()
    parts = [
        f'{{download}}`{name}.json <results/{name}.json>`',
        f'`{data["command"]}`' if 'command' in data else '',
        data['hardware'] if isinstance(data.get('hardware'), str) else '',  # else a part
        f'{len(seeds)} seeds' if seeds else '',
        seen(data),
    ]
    return '{.made}\n' + ' · '.join(filter(None, parts))


def summary(out: Path) -> list[str]:
    "What the front page says of branches, and its figure."
    index = next(p for p in pages() if p.doc == 'index')
    front = '\n\n'.join(c.source for c in index.cells())
    answer = re.search(r'\*\*Does it help\?\*\* (.*?) `bdense_compare`', front, re.S)[1]
    figure, said = re.search(r'(!\[[^]]*)\]\([^)]*gains\.png\)\s*(\*.*?\*)(?:\n|$)', front).groups()
    copy_to(ROOT / 'data' / 'results' / 'gains.png', out / 'images' / 'gains.png')
    return [
        '## Do branches help?',
        f'**{answer}** The shortest trainings on pictures lose by them.',
        f'{figure}](images/gains.png)',
        said,
        '[Lesson 7](/course/7_when_does_it_help.ipynb) reads the figure step by step.',
    ]


def beside(name: str, files: dict[str, dict]) -> str:
    "The file in whose entry a file is opened: of another teacher or start the one of copies, of quarters the one of halves, of more calls the one of two, of two cores the one of one, of its settings that of the recipe or of halving."
    other = re.sub(
        '_(quarter|calls)$|(?<=_pd)_recipe$',
        '',
        re.sub('_(exact|other_networks)$', '_copies', name),
    )
    other = re.sub(
        'fashion_(training|fresh)', 'fashion_lesson', other.replace('_two_cores', '_cpu')
    )
    return other if other in files else name


def result(name: str, data: dict, out: Path, alts: dict[str, str]) -> tuple[list[str], list[str]]:
    "What came out, without its heading, and what is read when it is opened."
    if 'experiment' in data:
        shown_at_once, tables = comparison(data)
    else:
        found = rows_table(data['rows']) if 'rows' in data else None
        shown_at_once = [found[0]] if found and found[1] <= AT_ONCE else []
        tables = result_parts(data)
    for path in sorted((ROOT / 'data' / 'results').glob(f'{name}_*.png')):
        copy_to(path, out / 'images' / path.name)
        alt = alts.get(path.name, f'Figure: {words(path.stem)}')
        tables.append(f'![{alt}](images/{path.name})')
    return shown_at_once, [made(name, data), *tables]


READING = (
    'Each entry counts the differences to the arm without the change that it asks about '
    '(of branches: "endpoint (SFD)", "K = 1"), with the least and the largest. One '
    'is significant, and bold, where its 95 % interval over seeds excludes zero; about one in twenty '
    'does so by chance. The students of all seeds are measured on one set of noises, so an interval is '
    'one over trainings. In the tables that arm has its mean, and every other its difference '
    'to it in percent with that interval, bold where it is significant. Lower is better. '
    'Figures that rest on one training seed are illustrations, not evidence.'
)


def results_page(out: Path) -> str:
    "Every data/results/*.json, the most important first."
    paths = (ROOT / 'data' / 'results').glob('*.json')
    files = {p.stem: json.loads(p.read_text(encoding='utf-8')) for p in paths}
    heads, groups = headings(files), grouped([*files])
    sources = (c.source for p in pages() for c in p.cells())
    alts = {
        name: alt
        for source in sources
        for alt, name in re.findall(r'!\[([^\]]*)\]\([^)\s]*?([^/)\s]+)\)', source)
    }
    ordered = {n: files[n] for names in groups.values() for n in names}
    texts = [
        '# Results',
        *summary(out),
        '## All comparisons',
        READING,
        details(
            'How often the distance to the teacher was better or worse, in one table',
            overview(ordered, heads),
        ),
    ]
    for head, names in groups.items():
        texts.append(f'## {head}')
        for name in sorted(names, key=lambda name: names.index(beside(name, names))):
            copy_to(ROOT / 'data' / 'results' / f'{name}.json', out / 'results' / f'{name}.json')
            shown_at_once, opened = result(name, files[name], out, alts)
            place = f'({anchor(name)})='
            if beside(name, files) == name:
                texts += [
                    place,
                    f'### {heads[name]}',
                    *shown_at_once,
                    details('Tables, file and command', *opened),
                ]
            else:
                texts.append(details(heads[name], place, *shown_at_once, *opened))
    return '\n\n'.join(texts) + '\n'
