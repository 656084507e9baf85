"""Each host against itself with branches, on a two-dimensional teacher whose exact flow is known.

Ten seeds, three training budgets, 2 NFE by SFD and 4, 2 and 1 NFE by Progressive Distillation. In each pair of runs everything but the
branches is the same: the network the students start from, the noise, the data, the number of updates. Every finished run is kept in
data/results/toy_hosts.json, and a second start goes on from there.
"""
import argparse
import json
import shlex
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from bdense_nb.core import about_run, sample_noise, write_json
from bdense_nb.distill import PDConfig, SFDConfig, progressive_rounds, sfd, teacher_bank
from bdense_nb.metrics import paired_error, sliced_wasserstein
from bdense_nb.nets import MLP
from bdense_nb.samplers import sample
from bdense_nb.schedules import karras_sigmas
from bdense_nb.teachers import EDMDenoiser, MixtureDenoiser, train_teacher
from bdense_nb.training import TrainConfig

ROOT = Path(__file__).resolve().parent.parent
BUDGETS = (50, 200, 800)  # iterations of SFD; updates in each round of Progressive Distillation
SFD = SFDConfig(nfe=2, K=4, substeps=8, solver='heun', batch=256, lr=1e-3, lr_schedule='cosine', shape=(2,))  # this teacher is 0.006 from the exact flow; 12 steps of dpmpp3m would be 0.07
PD = PDConfig(start_steps=32, end_steps=1, K=2, batch=256, lr=1e-3)


def ring(n: int = 8, std: float = .1) -> MixtureDenoiser:
    "Eight Gaussians on a circle of radius 1."
    angle = torch.arange(n)*2*torch.pi/n
    return MixtureDenoiser(torch.stack([angle.cos(), angle.sin()], 1), torch.full((n,), std), torch.ones(n))


def start_network(teacher: MixtureDenoiser, seed: int) -> EDMDenoiser:
    "The network that all students of a seed start from: trained on the teacher's own data, the usual way."
    torch.manual_seed(seed)
    config = TrainConfig(1500, 5e-3, schedule='cosine', ema=.99, seed=seed)
    return train_teacher(EDMDenoiser(MLP(width=64, depth=2), .7), teacher.sample(50_000, seed), None, config, 256, show=False).ema.requires_grad_(False).eval()


def exact_ends(teacher: MixtureDenoiser, sigma_end: float, n: int = 4000) -> torch.Tensor:
    "Where the exact flow ends from the noise of seeds 0..n-1 (256 Heun steps; to clean data, one more)."
    grid = karras_sigmas(256, sigma_end or .002, 80.)
    return sample(teacher, 80.*sample_noise(range(n), (2,)).double(), grid if sigma_end else torch.cat([grid, torch.zeros(1).double()]), 'heun').float()


def measure(student, exact: torch.Tensor, data: torch.Tensor) -> dict[str, float]:
    "Against the exact flow from the same noise, and against data."
    got = student.sample(len(exact), batch=len(exact))
    return dict(nfe=student.nfe, paired_error=paired_error(got, exact), sliced_wasserstein=float(sliced_wasserstein(got, data)))


def sfd_rows(teacher: MixtureDenoiser, network: EDMDenoiser, seed: int, budget: int, exact: torch.Tensor, fresh: torch.Tensor):
    "SFD without and with branches, from one bank."
    cfg = replace(SFD, steps=budget, seed=seed)
    bank = teacher_bank(teacher, cfg, show=False)
    for K in (1, cfg.K):
        student = sfd(teacher, replace(cfg, K=K), bank, show=False, student=network)
        yield dict(K=K, seconds=student.about['seconds'], **measure(student, exact, fresh))


def pd_rows(teacher: MixtureDenoiser, network: EDMDenoiser, seed: int, budget: int, exact: torch.Tensor, fresh: torch.Tensor):
    "Progressive Distillation without and with branches; the rounds that end in 4, 2 and 1 steps."
    data = teacher.sample(50_000, seed)
    for K in (1, PD.K):
        for student in progressive_rounds(teacher, data, replace(PD, K=K, updates=budget, seed=seed), show=False, student=network):
            if len(student.sigmas) <= 5: yield dict(K=K, seconds=student.about['seconds'], **measure(student, exact, fresh))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seeds', type=int, default=10)
    p.add_argument('--out', type=Path, default=ROOT/'data'/'results'/'toy_hosts.json')
    args = p.parse_args()
    rows = json.loads(args.out.read_text())['rows'] if args.out.is_file() else []
    teacher = ring()
    fresh = teacher.sample(4000, 10**6)
    hosts = {'sfd': (sfd_rows, exact_ends(teacher, SFD.sigma_min)), 'pd': (pd_rows, exact_ends(teacher, 0.))}
    for budget, seed, host in product(BUDGETS, range(args.seeds), hosts):
        key = dict(host=host, seed=seed, budget=budget)
        if any(key.items() <= r.items() for r in rows): continue
        begin, (make, exact) = time.monotonic(), hosts[host]
        rows += [key | row for row in make(teacher, start_network(teacher, seed), seed, budget, exact, fresh)]
        write_json(args.out, dict(command=shlex.join(['python', 'tools/toy_hosts.py', *sys.argv[1:]]), rows=rows, **about_run()))
        print(f'{host}, budget {budget}, seed {seed}: {time.monotonic() - begin:.0f} s', flush=True)


if __name__ == '__main__': main()
