"The exercises of the course and of the applications, and their solutions, which stand as text in the notebook of solutions."

import ast
import re

import nbformat

from run_notebooks import NBS, execute, notebooks


def name_of(path):
    return path.relative_to(NBS).with_suffix('').as_posix()


SOLUTIONS = 'course/10_solutions'
LESSONS = [name for name in map(name_of, notebooks()) if name not in ('index', SOLUTIONS)]


def lesson_solutions():
    "Lesson -> its solutions, from the fenced blocks below its name."
    found = {}
    for c in nbformat.read(NBS / f'{SOLUTIONS}.ipynb', 4).cells:
        if c.cell_type == 'markdown' and (m := re.match(r'### \[([\w/]+)\]', c.source)):
            found[m[1]] = re.findall(r'^```python\n(.*?)^```', c.source, flags=re.M | re.S)
    return found


def questions(name):
    "What the exercises of a lesson ask, the first paragraph of each, without links."
    texts = [
        c.source for c in nbformat.read(NBS / f'{name}.ipynb', 4).cells if c.cell_type == 'markdown'
    ]
    text = '\n'.join(
        texts[next(i for i, t in enumerate(texts) if re.search('^## Exercises', t, flags=re.M)) :]
    )
    return [
        re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', q)
        for q in re.findall(r'^\*\*\d\.\*\* (.*)$', text[text.index('## Exercises') :], flags=re.M)
    ]


def quoted_questions():
    "Lesson -> the questions that stand above its solutions."
    return {
        m[1]: re.findall(r'^> \*\*\d\.\*\* (.*)$', c.source, flags=re.M)
        for c in nbformat.read(NBS / f'{SOLUTIONS}.ipynb', 4).cells
        if (m := re.match(r'### \[([\w/]+)\]', c.source))
    }


def is_stub(node):
    "`name = None`, or a function that does nothing but return None."
    none = lambda n: isinstance(n, ast.Constant) and n.value is None
    return (
        isinstance(node, ast.Assign)
        and none(node.value)
        or isinstance(node, ast.FunctionDef)
        and isinstance(node.body[-1], ast.Return)
        and len(node.body) == 1
        and none(node.body[0].value)
    )


def exercises(name):
    "The exercises of a lesson, as pairs: the stub, and the rest of its cell."
    code = [
        re.sub(r'^%.*$', '', c.source, flags=re.M)
        for c in nbformat.read(NBS / f'{name}.ipynb', 4).cells
        if c.cell_type == 'code'
    ]
    parsed = [ast.parse(s).body for s in code if re.search(r'\bcheck\(', s)]
    return [
        (next(filter(is_stub, body)), ast.unparse([n for n in body if not is_stub(n)]))
        for body in parsed
        if any(map(is_stub, body))
    ]


def wrong_answers(stub):
    "Answers to any exercise that cannot be right: a number that nobody would give, another kind of thing, a function that fails."
    if isinstance(stub, ast.Assign):
        return [f'{stub.targets[0].id} = {value}' for value in ('-12345.', "'no idea'")]
    return [
        f'def {stub.name}(*args, **kwargs): {does}'
        for does in ('return -12345.', "raise RuntimeError('no idea')")
    ]


# what the ten lines of the front page must have done to the reader's points
LEARNED = """near = torch.allclose(samples.mean(0), data.mean(0), atol=.06)
print('correct' if near and .85 < samples.std()/data.std() < 1.15 else samples.std(0))"""


def execute_solved(path, **how):
    "A notebook after a run in a fresh kernel, and what its exercises print there: when they are answered, and when they are answered wrongly."
    name, right, wrong = name_of(path), [], []
    if name in LESSONS:
        for solution, (stub, rest) in zip(lesson_solutions().get(name, ()), exercises(name)):
            right.append(f'{solution}\n{rest}')
            wrong += [f'{answer}\n{rest}' for answer in wrong_answers(stub)]
    if name == 'index':
        right.append(LEARNED)
    nb = execute(path, extra=right + wrong, **how)
    n_own = len(nb.cells) - len(right + wrong)
    said = [''.join(o.get('text', '') for o in c.outputs) for c in nb.cells[n_own:]]
    nb.cells = nb.cells[:n_own]
    return nb, said[: len(right)], said[len(right) :]
