"The exercises inside four tutorials: the right answer is called correct, usual mistakes get a hint, and an unanswered stub says so."
import contextlib
import io
import re

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from bdense_nb.core import data_dir

# What the lessons trained or measured, made small: the checks need its kind, not its quality.
WORLD = '''
angle = torch.arange(8)*torch.pi/4
teacher = blobs = MixtureDenoiser(torch.stack([angle.cos(), angle.sin()], 1), torch.full((8,), .1), torch.ones(8))
torch.manual_seed(0); network = EDMDenoiser(MLP(width=8, depth=1), .7)
'''
SETUP = {
    '3_progressive_distillation': '''
config = PDConfig(start_steps=64, K=1); grid = config.sigmas
crude, errors, run = {32: .007, 16: .022, 8: .056, 4: .145, 2: .37, 1: .7}, {4: .063}, lambda seed, **changes: [.1, .2]
''',
    '4_simple_and_fast_distillation': WORLD + '''
cfg = SFDConfig(nfe=2, K=4, steps=16, batch=32, pool=256)
toy = SFDConfig(K=4, substeps=8, solver='heun', steps=2, batch=64, lr=2e-3, shape=(2,))
ends, found = sample(blobs, 80*sample_noise(range(1000), (2,)), toy.grids[0], 'heun'), {64: [.1, .2, .3, .4, .5]}
def run(pool, seed):
    c = replace(toy, pool=pool, seed=seed)
    return paired_error(sfd(blobs, c, show=False, student=network).sample(1000, batch=1000), ends)
''',
    '5_variable_steps': WORLD + '''
NFES = (2, 3, 4, 5)
cfg = SFDConfig(K=1, substeps=8, solver='heun', steps=2, batch=8, lr=2e-3, shape=(2,)); each = variable_configs(cfg, NFES)
ends = sample(teacher, 80*sample_noise(range(1000), (2,)), each[5].grids[0], 'heun')
slider = sfd_variable(teacher, cfg, NFES, show=False, student=network)
''',
    '8_scaling_up': "units = {'SFD, 2 calls': 3_601_152}",
}
STUBS = ('answer = None', 'answer = None', {'4_simple_and_fast_distillation': 'def one_batch(seed): return None', '5_variable_steps': 'def cheapest(student, limit): return None', '8_scaling_up': 'def with_bank(cfg): return None'})
ONE_BATCH = '''def one_batch(seed):
    c = replace(toy, pool=64, seed=seed, K=1)
    return paired_error(sfd(blobs, c, show=False, student=network).sample(1000, batch=1000), ends)'''
CHEAPEST = 'def cheapest(student, limit): return next(n for n in NFES if paired_error(student.sample(1000, nfe=n), ends) <= limit)'
CASES = [ # lesson, exercise, right answer, wrong ones
    ('3_progressive_distillation', 1, 'answer = [0, 16, 32, 48, 64]', ['answer = [0, 16, 32, 48]', 'answer = [0, 1, 2, 3, 4]']),
    ('3_progressive_distillation', 2, 'answer = (.05, .95)', ['answer = (1, 2)']),
    ('3_progressive_distillation', 3, 'answer = 8', ['answer = 1', 'answer = 3', 'answer = 32']),
    ('4_simple_and_fast_distillation', 1, 'answer = 12, 3', ['answer = 12, 2']),
    ('4_simple_and_fast_distillation', 2, "answer = {'solver', 'nfe'}", ["answer = {'K', 'solver'}"]),
    ('4_simple_and_fast_distillation', 3, ONE_BATCH, ['def one_batch(seed): return run(64, seed)', 'def one_batch(seed): return .5']),
    ('5_variable_steps', 1, 'answer = 72', ['answer = 56']),
    ('5_variable_steps', 2, 'answer = {3, 5}', ['answer = {2, 4}']),
    ('5_variable_steps', 3, CHEAPEST, ['def cheapest(student, limit): return 1 + max(NFES)']),
    ('8_scaling_up', 1, 'answer = 8', ['answer = 16']),
    ('8_scaling_up', 2, 'answer = 24_960', ['answer = 25_040', 'answer = 128']),
    ('8_scaling_up', 3, "def with_bank(cfg): return 3*training_cost(cfg)['student']", ['def with_bank(cfg): return 5'])]


@pytest.fixture(scope='module')
def lessons() -> dict:
    "The code cells of each lesson, and the names that its exercises find."
    made = {}
    for name, setup in SETUP.items():
        code = [c.source for c in nbformat.read(data_dir().parent/'nbs'/'tutorials'/f'{name}.ipynb', 4).cells if c.cell_type == 'code']
        names = {}
        exec(re.sub(r'^%.*$', '', code[0], flags=re.M) + '\n' + setup, names)
        made[name] = [source for source in code if 'check_answer(' in source], names
    plt.close('all')
    return made


def said(source: str, names: dict) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out: exec(source, dict(names))
    return out.getvalue()


@pytest.mark.parametrize('name, number, right, wrong', CASES, ids=[f'{name[0]}-{number}' for name, number, *_ in CASES])
def test_answers(lessons, name, number, right, wrong):
    torch.manual_seed(0)
    cells, names = lessons[name]
    assert len(cells) == 3
    stub = STUBS[number - 1] if number < 3 else STUBS[2].get(name, 'answer = None')
    source = cells[number - 1]
    assert source.count(stub) == 1 and said(source, names).strip() == 'not answered yet'
    assert said(source.replace(stub, right), names).startswith('correct')
    for answer in wrong: assert said(source.replace(stub, answer), names).startswith('hint: '), answer
