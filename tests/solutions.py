"The exercises at the end of the lessons, and their solutions, which stand as text in the notebook of solutions."
import ast
import re

import nbformat

from run_notebooks import NBS, execute, notebooks

def name_of(path): return path.relative_to(NBS).with_suffix('').as_posix()

LESSONS = [name for name in map(name_of, notebooks()) if name not in ('index', 'tutorials/9_exercises', 'tutorials/9b_solutions')]


def lesson_solutions():
    "Lesson -> its solutions, from the fenced blocks below its name."
    found = {}
    for c in nbformat.read(NBS/'tutorials'/'9b_solutions.ipynb', 4).cells:
        if c.cell_type == 'markdown' and (m := re.match(r'### ([\w/]+)', c.source)): found[m[1]] = re.findall(r'^```python\n(.*?)^```', c.source, flags=re.M | re.S)
    return found


def is_stub(node):
    "`name = None`, or a function that does nothing but return None."
    none = lambda n: isinstance(n, ast.Constant) and n.value is None
    return isinstance(node, ast.Assign) and none(node.value) or isinstance(node, ast.FunctionDef) and isinstance(node.body[-1], ast.Return) and len(node.body) == 1 and none(node.body[0].value)


def exercises(name):
    "The cells of a lesson that hold an exercise, without their stubs."
    code = [re.sub(r'^%.*$', '', c.source, flags=re.M) for c in nbformat.read(NBS/f'{name}.ipynb', 4).cells if c.cell_type == 'code']
    parsed = [ast.parse(s).body for s in code if re.search(r'not answered yet|^verdict\(', s, flags=re.M)]
    return [ast.unparse([n for n in body if not is_stub(n)]) for body in parsed if any(map(is_stub, body))]


def execute_solved(path, **how):
    "A notebook after a run in a fresh kernel, and what its exercises print there when they are answered."
    answered = [f'{solution}\n{rest}' for solution, rest in zip(lesson_solutions()[name_of(path)], exercises(name_of(path)))] if name_of(path) in LESSONS else []
    nb = execute(path, extra=answered, **how)
    said = [''.join(o.get('text', '') for o in c.outputs) for c in nb.cells[len(nb.cells) - len(answered):]]
    nb.cells = nb.cells[:len(nb.cells) - len(answered)]
    return nb, said
