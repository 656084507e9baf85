"""Each extra alone, in an empty environment: what lacks it says how to get it, and what gets it does its job.

python tests/extras.py [EXTRA ...]   # a table: seconds, packages, MB, what ran; nothing named: newest, oldest and all
"""

import re
import sys
import tempfile
from pathlib import Path

from environments import Environment, build, needs

TINY = ('--preset', 'demo', '--steps', '1', '--batch', '4', '--pool', '4')

A_UNET = """
import torch
from diffusers import DDPMScheduler, UNet2DModel
torch.manual_seed(0)
net = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4,
                  layers_per_block=1, down_block_types=('DownBlock2D',), up_block_types=('UpBlock2D',))
net.save_pretrained('unet')
DDPMScheduler(prediction_type='v_prediction').save_pretrained('unet/scheduler')  # untrained, a velocity is the best it can say
"""
A_UNET_ONLY_IN_NAME = """
import json, pathlib
pathlib.Path('named/scheduler').mkdir(parents=True)
for path, name in (('config.json', 'UNet2DModel'), ('scheduler/scheduler_config.json', 'DDPMScheduler')):
    pathlib.Path('named', path).write_text(json.dumps(dict(_class_name=name, _diffusers_version='0.30.0')))
"""
TENSORBOARD = """
import torch, pathlib
from bdense_nb.training.config import TrainConfig
from bdense_nb.training.hooks import Trackers
from bdense_nb.training.loop import fit
def step(model, i): yield model(torch.ones(1, 2)).square().mean()
fit(torch.nn.Linear(2, 1), step, TrainConfig(steps=2, log_every=1), 'followed', show=False, hooks=[Trackers('tensorboard')])
print(len(list(pathlib.Path('followed').rglob('events.out.tfevents.*'))), 'file of events')
"""
INCEPTION = """
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
class Unloaded(FeatureExtractorInceptionV3):
    def load_state_dict(self, state): pass
torch.save({}, 'none.pth')
torch.save(Unloaded('inception', ['2048'], 'none.pth').state_dict(), 'random.pth')  # the real ones are 95 MB elsewhere
from bdense_nb.evaluation.features import load_space
print(list(load_space('inception', path='random.pth')(torch.zeros(2, 1, 28, 28)).shape))
"""
WITHOUT_INCEPTION = 'from bdense_nb.evaluation.features import load_space; load_space("inception")'
EXPLORER = """
from bdense_nb.lab.explorers import Explorer, Frame
print(type(Explorer('x', {'level': (0, 1)}, lambda level: Frame(b'', str(level))).live()).__name__)
"""
ONNX_STEP = """
import numpy, onnxruntime
step = onnxruntime.InferenceSession('as_onnx/step.onnx')
x = dict(x=numpy.ones((3, 2), 'float32'), sigma=numpy.array(2, 'float32'), sigma_next=numpy.array(1, 'float32'))
print(list(step.run(None, x)[0].shape))
"""
TEXT = """
import json, pathlib, torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from bdense_nb import SFDConfig, sfd
from bdense_nb.diffusion.samplers import ConditionTable
from bdense_nb.interop.diffusers import from_diffusers
net = UNet2DConditionModel(sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1,
                           down_block_types=('CrossAttnDownBlock2D',), up_block_types=('CrossAttnUpBlock2D',), cross_attention_dim=4, attention_head_dim=4)
net.save_pretrained('text/unet')
DDPMScheduler(prediction_type='v_prediction').save_pretrained('text/scheduler')
pathlib.Path('text/model_index.json').write_text(json.dumps(dict(_class_name='StableDiffusionPipeline')))
teacher = from_diffusers('text')  # no text encoder is needed to distil, given embeddings
teacher.conditions = ConditionTable(torch.zeros(1, 2, 4))
student = sfd(teacher, SFDConfig(shape=(1, 8, 8), steps=1, batch=2, sigma_max=14., afs=False), show=False)
try: student.save_pretrained('few text', pipeline='text')
except ImportError as e: print(e)
student.save_pretrained('few text')
"""
WITHOUT_PEFT = 'from bdense_nb.interop.diffusers import add_adapters; add_adapters(None, {})'
ADAPTERS = """
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from bdense_nb.diffusion.samplers import ConditionTable
from bdense_nb.interop.diffusers import from_diffusers
from bdense_nb.interop.export import with_adapters
net = UNet2DConditionModel(sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1,
                           down_block_types=('CrossAttnDownBlock2D',), up_block_types=('CrossAttnUpBlock2D',), cross_attention_dim=4, attention_head_dim=4)
teacher = from_diffusers(net, DDPMScheduler())
teacher.conditions = ConditionTable(torch.zeros(1, 2, 4))
print({n.split('.')[-2] for n, p in with_adapters(teacher, 2).named_parameters() if p.requires_grad and 'lora' not in n})
"""
SCORES = """
import torch
from bdense_nb.applications.forecasting import forecast_scores
print(sorted(forecast_scores(torch.zeros(2, 3, 4), torch.ones(2, 4), 1.))[0])
"""
# extra -> (a job that says what is missing, jobs that it makes possible, and what the last one prints)
EXTRAS = {
    'tensorboard': (
        ('python', '-c', TENSORBOARD),
        [('python', '-c', TENSORBOARD)],
        '1 file of events',
    ),
    'search': (
        (
            'bdense_search',
            'found',
            '--teacher',
            'plane',
            '--trials',
            '3',
            '--K',
            '2',
            '--n',
            '4',
            *TINY,
        ),
        [
            (
                'bdense_search',
                'found',
                '--teacher',
                'plane',
                '--trials',
                '3',
                '--K',
                '2',
                '--n',
                '4',
                *TINY,
            )
        ],
        'found',
    ),
    'diffusers': (
        ('bdense_distill', 'few', '--teacher', 'named', *TINY),
        [
            ('python', '-c', TEXT),
            ('python', '-c', A_UNET),
            ('bdense_distill', 'few', '--teacher', 'unet', *TINY),
            ('bdense_export', 'few', 'as_diffusers', '--to', 'diffusers'),
        ],
        'as_diffusers',
    ),
    'lora': (('python', '-c', WITHOUT_PEFT), [('python', '-c', ADAPTERS)], "{'conv_out'}"),
    'onnx': (
        ('bdense_export', 'student', 'as_onnx', '--to', 'onnx'),
        [('bdense_export', 'student', 'as_onnx', '--to', 'onnx'), ('python', '-c', ONNX_STEP)],
        '[3, 2]',
    ),
    'fid': (('python', '-c', WITHOUT_INCEPTION), [('python', '-c', INCEPTION)], '[2, 2048]'),
    'widgets': (('python', '-c', EXPLORER), [('python', '-c', EXPLORER)], 'VBox'),
    'timeseries': (('python', '-c', SCORES), [('python', '-c', SCORES)], 'crps'),
    'notebooks': (
        ('bdense_notebooks', 'course'),
        [('jupyter-execute', 'course/00_core.ipynb')],
        '',
    ),
}
PREPARED = [
    ('python', '-c', A_UNET_ONLY_IN_NAME),
    ('bdense_teach', 'plane', '--data', 'moons', '--steps', '2', '--batch', '8'),
    ('bdense_distill', 'student', '--teacher', 'plane', *TINY),
]


def try_extra(user: Environment, extra: str) -> list[str]:  # the programs that ran
    "Do without an extra, install it as the message says, and do its job."
    lacks, jobs, last = EXTRAS[extra]
    for job in PREPARED:
        if not (user.empty / job[1]).exists():
            user(*job)
    said = user(
        *lacks, code=int(extra != 'notebooks')
    )  # the course is copied without JupyterLab, too
    (advised,) = set(re.findall(r'pip install ["\']?(bdense-nb\[\w+\])', said))
    assert advised == f'bdense-nb[{extra}]', said
    user.install(advised, needs(f'{extra}_requirements'))
    user.check()
    for program, *args in jobs:
        if program in ('python', *user.commands):
            said = user(program, *args)
        else:
            said = user.script(program, *args).check_returncode() or ''
    assert last in said, said
    return [job[0] if job[0] != 'python' else 'its library' for job in jobs]


def row(name: str, wheel: Path, folder: Path) -> str:
    "One environment: made, measured, tried."
    user = Environment(folder, wheel, oldest=name == 'oldest')
    try:
        if name in EXTRAS:
            ran = try_extra(user, name)
        else:
            for job in PREPARED:
                user(*job)
            ran = [
                'bdense_teach',
                'bdense_distill',
                *(c for c in user.commands if user(c, '--help')),
            ]
        size = sum(f.lstat().st_size for f in user.packages.rglob('*') if f.is_file()) / 1e6
        torch = user.versions()['torch']
        return f'| {name} | {torch} | {user.seconds:.1f} | {len(user.versions())} | {size:,.0f} | {", ".join(ran)} |'
    finally:
        user.close()


def main() -> None:
    wanted = sys.argv[1:] or ['newest', 'oldest', *EXTRAS]
    if unknown := set(wanted) - {'newest', 'oldest', *EXTRAS}:
        sys.exit(f'{unknown}\n{__doc__}')
    failed = 0
    print(
        '| environment | torch | seconds | packages | MB | ran |\n| --- | --- | --- | --- | --- | --- |',
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        (tree := Path(folder) / 'tree').mkdir()
        wheel = build(tree)
        for name in wanted:
            (at := Path(folder) / name).mkdir()
            try:
                print(row(name, wheel, at), flush=True)
            except AssertionError as e:
                failed += 1
                print(f'| {name} | | | | | FAILED: {str(e).strip().splitlines()[-1]} |', flush=True)
    sys.exit(int(failed > 0))


if __name__ == '__main__':
    main()
