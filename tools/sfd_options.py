"""What the options of SFD with branches are worth, where the paper leaves them open: one option changed at a time.

The teacher is exact (eight Gaussians on a circle) and solves finely enough that its own error, kept as `floor`, is small; ten seeds; 2 NFE.
Within a seed every arm starts from the same network, with the same noise and the same number of updates. Kept in
data/results/sfd_options.json; a second start goes on from there.
"""
import argparse
import json
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from bdense_nb.core import about_run, sample_noise, write_json
from bdense_nb.metrics import paired_error
from bdense_nb.nets import MLP
from bdense_nb.samplers import sample
from bdense_nb.schedules import karras_sigmas
from bdense_nb.sfd import SFDConfig, sfd
from bdense_nb.teachers import EDMDenoiser, MixtureDenoiser, train_teacher
from bdense_nb.training import TrainConfig
from bdense_nb.trajectories import make_bank

ROOT = Path(__file__).resolve().parent.parent
BASE = SFDConfig(nfe=2, K=4, substeps=8, solver='heun', steps=200, batch=128, lr=2e-3, lr_schedule='cosine', shape=(2,))
ARMS = {'default': {}, 'K=1': dict(K=1), 'K=8': dict(K=8), "branch_weights='uniform'": dict(branch_weights='uniform'), "branch_weights_end='endpoint'": dict(branch_weights_end='endpoint'),
        "branch_step='end'": dict(branch_step='end'), "teacher_states='local'": dict(teacher_states='local'), "loss='l2'": dict(loss='l2'), "loss='huber'": dict(loss='huber'), 'afs=False': dict(afs=False)}


def bank_of(teacher: MixtureDenoiser, cfg: SFDConfig):
    "All trajectories of a run in one go: a closed form does not mind large batches."
    first = cfg.seeds(0).start
    return make_bank(teacher, cfg.plan, range(first, first + cfg.n_trajectories), cfg.n_trajectories, show=False)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seeds', type=int, default=10)
    p.add_argument('--out', type=Path, default=ROOT/'data'/'results'/'sfd_options.json')
    args = p.parse_args()
    rows = json.loads(args.out.read_text())['rows'] if args.out.is_file() else []
    angle = torch.arange(8)*torch.pi/4
    teacher = MixtureDenoiser(torch.stack([angle.cos(), angle.sin()], 1), torch.full((8,), .1), torch.ones(8))
    x = 80*sample_noise(range(4000), (2,))
    exact = sample(teacher, x.double(), karras_sigmas(256, BASE.sigma_min, 80.), 'heun').float()
    floor = {afs: paired_error(sample(teacher, x, replace(BASE, afs=afs).grids[0], BASE.solver), exact) for afs in (True, False)}
    for seed in range(args.seeds):
        if any(r['seed'] == seed for r in rows): continue
        begin = time.monotonic()
        torch.manual_seed(seed)
        network = train_teacher(EDMDenoiser(MLP(width=64, depth=2), .7), teacher.sample(20_000, seed), None, TrainConfig(600, 5e-3, schedule='cosine', ema=.99, seed=seed), 256, show=False).ema
        banks = {afs: bank_of(teacher, replace(BASE, seed=seed, afs=afs)) for afs in (True, False)}
        for arm, changes in ARMS.items():
            cfg = replace(BASE, seed=seed, **changes)
            student = sfd(teacher, cfg, banks[cfg.afs], show=False, student=network)
            rows.append(dict(arm=arm, seed=seed, nfe=student.nfe, paired_error=paired_error(student.sample(4000, batch=4000), exact), floor=floor[cfg.afs]))
        write_json(args.out, dict(command=shlex.join(['python', 'tools/sfd_options.py', *sys.argv[1:]]), rows=rows, **about_run()))
        print(f'seed {seed}: {time.monotonic() - begin:.0f} s', flush=True)


if __name__ == '__main__': main()
