"""What the package costs beyond what must be paid, as ratios within one run. On a quiet machine:

    python tests/bench/overheads.py            # prints a table; --out FILE also writes it as JSON

Each pair is timed alternately, and the ratio is that of the two medians.
"""
import argparse
import statistics
import subprocess
import sys
import time

import torch
from bdense_nb.core import about_run, sample_noise, write_json
from bdense_nb.diffusion.data import fashion_mnist
from bdense_nb.diffusion.denoisers import EDMDenoiser, load_teacher
from bdense_nb.diffusion.nets import UNet
from bdense_nb.diffusion.samplers import sample
from bdense_nb.diffusion.schedules import karras_sigmas
from bdense_nb.distillation.branches import branch
from bdense_nb.distillation.distill import preset
from bdense_nb.distillation.sfd import sfd_step, teacher_bank
from bdense_nb.distillation.teaching import train_teacher
from bdense_nb.training.config import TrainConfig


def seconds(f) -> float:
    begin = time.perf_counter(); f()
    return time.perf_counter() - begin


def medians(*fs, repeats: int) -> list[float]:
    "Median seconds of each function, run in turn so that a slow moment hits all alike."
    for f in fs: f()
    return [statistics.median(t) for t in zip(*[[seconds(f) for f in fs] for _ in range(repeats)])]


def import_times() -> tuple[float, float]:
    "`import bdense_nb` and every module a first distillation needs, against `import torch` alone; fresh interpreters."
    run = lambda code: lambda: subprocess.run([sys.executable, '-c', code], check=True)
    return tuple(medians(run('import bdense_nb'), run('import bdense_nb.distillation.distill'), run('import torch'), repeats=5))


def sampling(teacher, n_steps: int = 12) -> tuple[float, float]:
    "`sample()` with N Euler steps, against N bare network calls at the same noise levels."
    x, sigmas = 80*sample_noise(range(64), (1, 28, 28)), karras_sigmas(n_steps, .006)
    @torch.no_grad()
    def bare():
        for s in sigmas[:-1].tolist(): teacher(x, s)
    return tuple(medians(lambda: sample(teacher, x, sigmas), bare, repeats=7))


def student_steps(teacher) -> tuple[float, float]:
    "One SFD iteration (two updates) at batch 64 from a bank, K = 4 against K = 1."
    arms = []
    for K in (4, 1):
        cfg = preset('demo', K=K, batch=64, pool=64, steps=100)
        student, step = branch(teacher, K).train(), sfd_step(teacher, cfg, teacher_bank(teacher, cfg, show=False))
        opt = torch.optim.Adam(student.parameters(), lr=1e-6)
        def iteration(student=student, step=step, opt=opt):
            for loss in step(student, 0): opt.zero_grad(); loss.backward(); opt.step()
        arms.append(iteration)
    return tuple(medians(*arms, repeats=15))


def teacher_speed(steps: int = 12, batch: int = 128) -> float:
    "Training images a second of the shipped teacher's network, through `train_teacher`."
    x, y = fashion_mnist('test')
    denoiser, cfg = EDMDenoiser(UNet(n_classes=10), .7), TrainConfig(steps=steps, clip_grad=1., ema=.999)
    train_teacher(denoiser, x, y, TrainConfig(steps=2), batch, show=False)
    return steps*batch/seconds(lambda: train_teacher(denoiser, x, y, cfg, batch, show=False))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', help='a JSON file for the figures')
    out, teacher = parser.parse_args().out, load_teacher()
    (package, distill, bare_torch), (ours, bare), (k4, k1) = import_times(), sampling(teacher), student_steps(teacher)
    rows = {'import bdense_nb / import torch': package/bare_torch, 'import bdense_nb.distillation.distill / import torch': distill/bare_torch,
            'sample(), 12 steps / 12 bare network calls': ours/bare, 'SFD iteration, K = 4 / K = 1': k4/k1, 'teacher training, images a second': teacher_speed()}
    for name, value in rows.items(): print(f'{name:45}{value:9.3f}')
    if out: write_json(out, dict(rows=rows, seconds=dict(import_torch=bare_torch, sample=ours, sfd_iteration_k1=k1), **about_run()))


if __name__ == '__main__': main()
