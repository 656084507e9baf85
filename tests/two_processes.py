"What test_training_devices.py runs in one process, and torchrun in two: python tests/two_processes.py FOLDER"

import os
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
from bdense_nb.core import save_tensors
from bdense_nb.diffusion.denoisers import EDMDenoiser, GuidedDenoiser
from bdense_nb.diffusion.nets import MLP
from bdense_nb.diffusion.samplers import draw_conditions
from bdense_nb.distillation.progressive import PDConfig, progressive
from bdense_nb.distillation.sfd import SFDConfig, sfd, teacher_bank
from bdense_nb.distillation.teaching import train_teacher
from bdense_nb.distillation.variable import sfd_variable
from bdense_nb.training.config import Hardware, TrainConfig
from bdense_nb.training import loop
from bdense_nb.training.devices import local_batch
from bdense_nb.training.hooks import Every
from bdense_nb.training.loop import fit
from test_conditions import row, text
from torch import nn

CFG = TrainConfig(
    steps=12,
    lr=1e-2,
    warmup=2,
    schedule='cosine',
    clip_grad=1.0,
    ema=0.9,
    checkpoint_every=4,
    log_every=3,
)
SFD = SFDConfig(nfe=3, K=2, substeps=2, steps=6, batch=8, shape=(2,), lr=1e-3, sigma_max=10.0)
PD = PDConfig(start_steps=8, end_steps=2, K=2, updates=6, batch=8, lr=1e-3, sigma_max=10.0)


class Net(nn.Module):
    "Blocks in a list, and an attribute that a step function asks for."

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks, self.flavour = (
            nn.ModuleList([nn.Linear(2, 16), nn.Linear(16, 16), nn.Linear(16, 2)]),
            'plain',
        )

    def forward(self, x):
        for block in self.blocks[:-1]:
            x = nn.functional.silu(block(x))
        return self.blocks[-1](x)


def several(model, i):
    "One to three updates, as many as a random number of the iteration says; each starts from the last one's answer."
    g = torch.Generator().manual_seed(i)
    n, x = int(torch.randint(1, 4, (), generator=g)), local_batch(torch.randn(16, 2, generator=g))
    for _ in range(n):
        assert model.flavour == 'plain'
        y = model(x)
        yield (y - x.flip(1)).square().mean()
        x = y.detach()


class Conv(nn.Module):
    "Convolutions without a list of blocks, whose weights come channels last, as those of loaded denoisers do."

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 2, 3, padding=1)
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, x):
        return self.net(x)


def denoise(model, i):
    x = local_batch(torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(i)))
    yield (model(x) - x.flip(1)).square().mean()


class Late(nn.Module):
    "Two weights, of which a step function may use one."

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 1), nn.Linear(2, 1)

    def forward(self, x, both):
        return self.a(x) + self.b(x) if both else self.a(x)


def leaves_out_from_3(model, i):
    yield model(local_batch(torch.ones(4, 2)), i < 3).square().mean()


def bad_at_5(model, i):
    for loss in several(model, i):
        yield loss * float('nan') if i == 5 and os.environ.get('RANK', '0') == '0' else loss


def make_teacher():
    torch.manual_seed(0)
    return EDMDenoiser(MLP(width=16, depth=2, n_classes=3), 0.7)


def cases(folder: Path) -> dict:
    "Every case by its name: the models that it leaves."
    data, labels = (
        torch.randn(40, 2, generator=torch.Generator().manual_seed(0)),
        torch.arange(40) % 3,
    )

    def run(name, step=several, on_nan='stop', net=Net, **hardware):
        return fit(
            net(),
            step,
            replace(CFG, on_nan=on_nan),
            folder / name,
            show=False,
            hardware=Hardware(**hardware),
        )

    teacher = train_teacher(
        make_teacher(),
        data,
        labels,
        replace(CFG, steps=8),
        batch=8,
        folder=folder / 'teacher',
        show=False,
    ).ema
    out = dict(
        plain=run('plain').ema,
        accumulate=run('accumulate', accumulate=2).ema,
        skip=run('skip', bad_at_5, on_nan='skip').model,
        recompute=run('recompute', recompute=True).model,
        teacher=teacher,
    )
    out['sfd'] = sfd(make_teacher(), SFD, folder=folder / 'sfd', show=False).denoiser
    out['variable'] = sfd_variable(
        make_teacher(), SFD, (1, 2, 3), folder=folder / 'variable', show=False
    ).denoiser
    out['pd'] = progressive(
        make_teacher(), data, PD, labels, folder=folder / 'pd', show=False
    ).denoiser
    out['conv'] = run('conv', denoise, net=Conv).ema
    told = GuidedDenoiser(
        text(), 3.0, row(text(), 0)
    )  # conditions are dicts, drawn from seeds or given with the data
    smooth = replace(SFD, loss='l2')  # the l1 loss has signs for gradients, which rounding may turn
    out['guided'] = sfd(
        told, smooth, bank=teacher_bank(told, smooth, show=False), show=False
    ).denoiser
    stops = lambda state: setattr(state, 'stop', state.done == 4)
    hook = Every(1, lambda model, i: None)
    hook.use = lambda state, answer: stops(state)  # in the first process alone
    with mock.patch.object(loop, 'MEET', 1e9):  # they meet where losses are read, after each third
        ended = fit(Net(), several, CFG, folder / 'stopped', show=False, hooks=[hook])
    alone = int(os.environ.get('WORLD_SIZE', 1)) == 1
    assert ended.done == (4 if alone else 6), ended.done
    out['told'] = progressive(told, data, PD, draw_conditions(told, range(40)), show=False).denoiser
    if int(os.environ.get('WORLD_SIZE', 1)) > 1:
        given = Net()
        done = run('shard', net=lambda: given, shard=True, recompute=True)
        out['shard'] = done.ema
        assert type(done.model.blocks[0].weight) is nn.Parameter
        try:
            given(torch.ones(4, 2))
        except RuntimeError as e:
            assert 'in pieces over the processes' in str(e), e
        else:
            raise AssertionError('what is left of a sharded training was called by one process')
        out['conv shard'] = run('conv shard', denoise, net=Conv, shard=True).ema
        try:
            fit(Late(), leaves_out_from_3, TrainConfig(6), show=False)
        except ValueError as e:
            assert 'leaves b.bias without a gradient' in str(e), e
        else:
            raise AssertionError('an update that two processes could not average')
    return out


def main(folder: Path):
    torch.set_num_threads(1)
    rank, written = int(os.environ.get('RANK', 0)), []

    def watch(
        event, args
    ):  # every file that this process opens for writing, makes, renames or removes below the folder
        writes = (
            event == 'open'
            and isinstance(args[2], int)
            and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            or event in ('os.mkdir', 'os.rename', 'os.remove', 'os.link')
        )
        if writes and str(args[0]).startswith(str(folder)):
            written.append(f'{event} {args[0]}')

    sys.addaudithook(watch)
    models = cases(folder)
    wrote = list(written)
    flat = {
        f'{name}.{k}': v for name, model in models.items() for k, v in model.state_dict().items()
    }
    save_tensors(folder / f'rank{rank}.safetensors', flat, dict(wrote=wrote))


if __name__ == '__main__':
    main(Path(sys.argv[1]))
