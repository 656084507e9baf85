"""One student for several step counts (SFD-v) against a student for each, on a two-dimensional teacher whose exact flow is known.

Every seed trains, from the same network: four SFD students (2, 3, 4 and 5 calls) of `steps` iterations each; one SFD-v student of 4*steps
iterations, hence of as many trajectories as the four together; both without branches (K = 1) and with (K = 4); and, without branches, SFD-v
that is not told the step count. Then one network call: by the second stage from each 5-call student, and
directly with as many iterations, with as many as both stages from an SFD student, and with as many as both from SFD-v. Every finished seed is
kept in data/results/variable.json, and a second start goes on from there.
"""
import argparse
import json
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path

from bdense_nb.branches import fold
from bdense_nb.core import about_run, sample_noise, write_json
from bdense_nb.metrics import paired_error
from bdense_nb.samplers import sample
from bdense_nb.sfd import SFDConfig, sfd, teacher_bank
from bdense_nb.students import Student, branched_student
from bdense_nb.training import fit
from bdense_nb.variable import second_stage, sfd_variable, variable_configs, variable_step
from toy_hosts import exact_ends, ring, start_network

ROOT = Path(__file__).resolve().parent.parent
CFG = SFDConfig(K=1, batch=256, lr=1e-3, lr_schedule='cosine', shape=(2,))
NFES = (2, 3, 4, 5)


def untold(teacher, cfg, banks, network) -> list[Student]:
    "The same training, but the network is not told how many steps it may take."
    cfgs = variable_configs(cfg, NFES)
    plain = fold(fit(branched_student(teacher, network, cfg.K, cfg.layer), variable_step(teacher, cfgs, banks), cfg.train_config, show=False).model)
    return [Student(plain, c.grids[1], c.afs, c.shape) for c in cfgs.values()]


def runs(teacher, network, seed: int, steps: int, exact):
    "Every arm of one seed, as rows; each student is measured against the exact flow from the same noise."
    def row(arm, K, student, iterations):
        return dict(arm=arm, K=K, seed=seed, nfe=student.nfe, iterations=iterations, paired_error=paired_error(student.sample(len(exact), batch=len(exact)), exact))
    cfg = replace(CFG, steps=steps, seed=seed)
    long = replace(cfg, steps=len(NFES)*steps, pool=cfg.n_trajectories)  # the same trajectories, four times as often: the banks are shared
    banks = {nfe: teacher_bank(teacher, c, show=False) for nfe, c in variable_configs(cfg, NFES).items()}
    for K in (1, 4):
        single = [sfd(teacher, replace(cfg, nfe=nfe, K=K), banks[nfe], show=False, student=network) for nfe in NFES]
        told = sfd_variable(teacher, replace(long, K=K), NFES, banks, show=False, student=network)
        for student in single: yield row('one each', K, student, steps)
        for nfe in NFES: yield row('told', K, told.at(nfe), long.steps)
        if K == 1: yield from (row('not told', K, student, long.steps) for student in untold(teacher, replace(long, K=K), banks, network))
        for arm, five in (('second stage of one each', single[-1]), ('second stage of told', told.at(5))):
            stage = second_stage(five, K=1 if K == 1 else 3, steps=steps, batch=cfg.batch, lr=cfg.lr, lr_schedule=cfg.lr_schedule, seed=seed)
            yield row(arm, K, sfd(five.denoiser, stage, show=False), steps)
        for times in (1, 2, 5): yield row('direct', K, sfd(teacher, replace(cfg, nfe=1, K=K, steps=times*steps), show=False, student=network), times*steps)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seeds', type=int, default=10)
    p.add_argument('--steps', type=int, default=100, help='iterations of one SFD run')
    p.add_argument('--out', type=Path, default=ROOT/'data'/'results'/'variable.json')
    args = p.parse_args()
    teacher = ring()
    exact = exact_ends(teacher, CFG.sigma_min)
    x = 80*sample_noise(range(len(exact)), (2,))
    rows = json.loads(args.out.read_text())['rows'] if args.out.is_file() else [
        dict(arm='teacher', nfe=nfe, paired_error=paired_error(sample(teacher, x, c.grids[1], 'euler', c.afs), exact)) for nfe, c in variable_configs(CFG, (1, *NFES)).items()]
    for seed in range(args.seeds):
        if any(r.get('seed') == seed for r in rows): continue
        begin = time.monotonic()
        rows += list(runs(teacher, start_network(teacher, seed), seed, args.steps, exact))
        write_json(args.out, dict(command=shlex.join(['python', 'tools/variable.py', *sys.argv[1:]]), steps=args.steps, batch=CFG.batch, rows=rows, **about_run()))
        print(f'seed {seed}: {time.monotonic() - begin:.0f} s', flush=True)


if __name__ == '__main__': main()
