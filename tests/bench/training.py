"""What the training loop costs, and what its switches are worth here, as ratios within one run:

    python tests/bench/training.py            # prints a table; --out FILE also writes it as JSON

The arms take turns in short blocks, and each ratio is the median of the blocks' ratios, so a busy machine slows both alike.
Only what a CPU can show is measured: tensor cores, TF32, fused Adam on CUDA, pinned copies and several GPUs are not.
"""
import argparse
import copy
import shlex
import statistics
import sys
import time
import warnings
from dataclasses import fields
from pathlib import Path

import torch
from bdense_nb.core import about_run, write_json
from bdense_nb.diffusion.denoisers import EDMDenoiser
from bdense_nb.diffusion.nets import UNet
from bdense_nb.distillation.teaching import edm_loss
from bdense_nb.training.config import Hardware, TrainConfig
from bdense_nb.training.loop import fit
from torch import nn

BATCH = 64


def make(**config) -> nn.Module:
    torch.manual_seed(0)
    return EDMDenoiser(UNet(**config), .7).train()


def loss_of(model: nn.Module, i: int, x: torch.Tensor) -> torch.Tensor:
    return edm_loss(model, x, generator=torch.Generator().manual_seed(i))


def bare(model: nn.Module, x: torch.Tensor, steps: int) -> float:
    "Seconds of forward, backward and step with nothing around them."
    opt = torch.optim.Adam(model.parameters(), lr=1e-4)
    begin = time.perf_counter()
    for i in range(steps):
        loss = loss_of(model, i, x)
        opt.zero_grad()
        loss.backward()
        opt.step()
    return time.perf_counter() - begin


def looped(model: nn.Module, x: torch.Tensor, steps: int, **changes) -> float:
    "Seconds of the same through `fit`, from its first iteration to the end of its last."
    begin = None
    def step(model, i):
        nonlocal begin
        if i == 0: begin = time.perf_counter()
        yield loss_of(model, i, x)
    hardware = dict(channels_last=False) | {f.name: changes.pop(f.name) for f in fields(Hardware) if f.name in changes}
    fit(model, step, TrainConfig(steps, 1e-4, **changes), show=False, hardware=Hardware(**hardware))
    return time.perf_counter() - begin


def ratio(first, second, blocks: int) -> tuple[float, float, float]:
    "Median, smallest and largest of the ratios of two arms that take turns."
    first(), second()
    ratios = []
    for k in range(blocks):
        a, b = (first(), second()) if k % 2 else reversed((second(), first()))
        ratios.append(a/b)
    return statistics.median(ratios), min(ratios), max(ratios)


def compiled(model: nn.Module, x: torch.Tensor, blocks: int, steps: int) -> tuple[float, tuple[float, float, float]]:
    "Seconds that the first compiled iteration takes, and the ratio afterwards; without `fit`, which would compile anew each time."
    fast = torch.compile(copy.deepcopy(model))
    warm_up = bare(fast, x, 1)
    return warm_up, ratio(lambda: bare(fast, x, steps), lambda: bare(model, x, steps), blocks)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, help='a JSON file for the figures')
    parser.add_argument('--blocks', type=int, default=9)
    parser.add_argument('--steps', type=int, default=4, help='iterations in a block')
    args = parser.parse_args()
    warnings.simplefilter('ignore')
    x, model = torch.randn(BATCH, 1, 28, 28), make()
    block = lambda **changes: lambda m=copy.deepcopy(model): looped(m, x, args.steps, **changes)
    plain = lambda m=copy.deepcopy(model): bare(m, x, args.steps)
    def forward(context):
        m = copy.deepcopy(model).eval()
        def run():
            begin = time.perf_counter()
            with context():
                for _ in range(3*args.steps): m(x, 1.)
            return time.perf_counter() - begin
        return run
    rows = {'the loop / bare forward, backward, step': ratio(block(), plain, args.blocks),
            'with clipping and average / without': ratio(block(clip_grad=1., ema=.999), block(), args.blocks),
            'channels-last / not': ratio(block(channels_last=True), block(), args.blocks),
            'bf16 / float32': ratio(block(precision='bf16'), block(), args.blocks),
            'recompute / not': ratio(block(recompute=True), block(), args.blocks),
            'accumulate=4 / 1': ratio(block(accumulate=4), block(), args.blocks),
            'teacher under inference_mode / no_grad': ratio(forward(torch.inference_mode), forward(torch.no_grad), args.blocks)}
    try: warm_up, rows['compiled / not, after its warm-up'] = compiled(model, x, args.blocks, args.steps)
    except Exception as e: warm_up = f'torch.compile does not work here: {type(e).__name__}'
    print(f'{"time ratio":45}{"median":>8}{"least":>8}{"most":>8}')
    for name, values in rows.items(): print(f'{name:45}' + ''.join(f'{v:8.3f}' for v in values))
    print('first compiled iteration:', warm_up if isinstance(warm_up, str) else f'{warm_up:.1f} s')
    about = dict(batch=BATCH, steps=args.steps, blocks=args.blocks, **about_run())
    print(about)
    if args.out: write_json(args.out, dict(command=shlex.join(['python', 'tests/bench/training.py', *sys.argv[1:]]), ratios=rows, seconds_of_first_compiled_iteration=warm_up, **about))


if __name__ == '__main__': main()
