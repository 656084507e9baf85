"""What a trajectory bank saves a sweep of eight SFD runs. About five minutes on one thread of a quiet machine:

    python tests/bench/trajectories.py         # prints a table; --out FILE also writes it as JSON
    OMP_NUM_THREADS=1 python tests/bench/trajectories.py --cpu    # on a busy machine: the process's own seconds, not the clock's

The teacher is the one that ships; a run has the demonstration's settings (2 network calls, batch 128), eight
choices of K and branch weights. Two measurements in one process:

- blocks: one iteration of each of the eight runs without a bank and one with it, in turn, so that a slow moment hits
  both arms alike; between them one batch of the bank itself, computed and written to disk. A sweep of T iterations whose
  pool is gone through p times then takes T times the blocks of its arm, and with a bank T/p batches of it.
  Fresh trajectories are p = 1; the demonstration has p = 4, the Fashion-MNIST preset p = 8.
- whole: eight runs with `sfd` from beginning to end at a small budget, with and without the bank, alternately.
"""
import argparse
import resource
import shlex
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from bdense_nb.core import about_run, write_json
from bdense_nb.diffusion.denoisers import load_teacher
from bdense_nb.distillation.bank import bank_megabytes, frozen_copy, make_bank
from bdense_nb.distillation.branches import branch
from bdense_nb.distillation.distill import preset
from bdense_nb.distillation.sfd import SFDConfig, sfd, sfd_step, teacher_bank

SWEEP = [dict(K=1), dict(K=2), dict(K=4), dict(K=2, branch_weights='uniform'), dict(K=4, branch_weights='uniform'),
         dict(K=4, branch_weights='endpoint'), dict(K=4, branch_weights_end='endpoint'), dict(K=4, branch_step='end')]
PASSES = {'all fresh': 1, 'pool gone through 4 times (demo)': 4, 'pool gone through 8 times (fashion_mnist)': 8}


def seconds(f, clock) -> float:
    begin = clock(); f()
    return clock() - begin


def peak_megabytes() -> float: return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e3


def iteration(teacher, cfg, bank):
    "One iteration of a run, as a function; the student is made once."
    student, step = branch(teacher, cfg.K).train(), sfd_step(teacher, cfg, bank)
    opt = torch.optim.Adam(student.parameters(), lr=1e-6)
    def run():
        for loss in step(student, 0): opt.zero_grad(); loss.backward(); opt.step()
    return run


def blocks(teacher, cfg, sweep, rounds: int, clock) -> dict[str, float]:
    "Seconds of one iteration of the whole sweep in each arm, and of one batch of the bank; means over rounds."
    folder = Path(tempfile.mkdtemp(prefix='bdense-nb-bank-'))
    walk = lambda i: make_bank(teacher, cfg.plan, cfg.seeds(i), cfg.batch, folder/str(i), show=False)
    bank, took = walk(0), dict.fromkeys(('without', 'with', 'bank'), 0.)
    arms = [(iteration(teacher, replace(cfg, **changes), None), iteration(teacher, replace(cfg, **changes), bank)) for changes in sweep]
    arms[0][1]()                                                       # the first call of all is slower
    for i in range(rounds):
        for without, with_bank in arms: took['without'] += seconds(without, clock); took['with'] += seconds(with_bank, clock)
        took['bank'] += seconds(lambda i=i: walk(i + 1), clock)
    shutil.rmtree(folder)
    return {name: t/rounds for name, t in took.items()}


def whole(teacher, cfg, clock) -> dict[str, float]:
    "Eight runs from beginning to end in each arm, with what the bank takes."
    folder, took, before = Path(tempfile.mkdtemp(prefix='bdense-nb-bank-')), {}, peak_megabytes()
    took['bank'] = seconds(lambda: teacher_bank(teacher, cfg, folder=folder, show=False), clock)
    bank = teacher_bank(teacher, cfg, folder=folder, show=False)
    took |= {'bank, MB of disk': sum(p.stat().st_size for p in folder.iterdir())/1e6, 'bank, MB of memory while it is made': peak_megabytes() - before}
    took |= {'without': 0., 'with': 0.}
    for changes in SWEEP:
        run, students = replace(cfg, **changes), {}
        for arm, given in (('without', None), ('with', bank)):
            took[arm] += seconds(lambda: students.update({arm: sfd(teacher, run, given, show=False)}), clock)
        a, b = (s.denoiser.state_dict().values() for s in students.values())
        assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True)), 'the bank must change nothing'
    shutil.rmtree(folder)
    return took


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', help='a JSON file for the figures')
    parser.add_argument('--rounds', type=int, default=2, help='how often each block is timed')
    parser.add_argument('--cpu', action='store_true', help='seconds of this process rather than of the clock')
    args = parser.parse_args()
    clock = time.process_time if args.cpu else time.perf_counter
    begin, teacher = time.perf_counter(), frozen_copy(load_teacher(device='cpu'), (1, 28, 28))
    small = whole(teacher, SFDConfig(batch=32, steps=8, pool=64, lr=5e-4), clock)
    rows = {'whole sweep, batch 32, 8 iterations, pool gone through 4 times': small['without']/(small['bank'] + small['with'])}
    timed = {4: blocks(teacher, SFDConfig(), SWEEP, args.rounds, clock), 8: blocks(teacher, SFDConfig(substeps=8), SWEEP[2:3], args.rounds, clock)}
    timed[8] |= {arm: 8*timed[8][arm] for arm in ('without', 'with')}   # one of the eight was timed
    for substeps, t in timed.items():
        for name, p in PASSES.items(): rows[f'{substeps} teacher steps a student step, {name}'] = t['without']/(t['with'] + t['bank']/p)
    for name, value in rows.items(): print(f'{name:75}{value:6.2f} times as fast')
    for substeps, t in timed.items(): print(f'{substeps} teacher steps, seconds: {t["without"]:.2f} without, {t["with"]:.2f} with (eight iterations), {t["bank"]:.2f} a batch of the bank')
    print(f'bank of the whole sweep: {small["bank, MB of disk"]:.2f} MB of disk, {small["bank, MB of memory while it is made"]:.1f} MB more of peak memory')
    for name in ('demo', 'fashion_mnist'):
        cfg = preset(name)
        print(f'bank of preset {name}: {bank_megabytes(cfg.plan, cfg.n_trajectories):.0f} MB of disk or memory')
    print(f'{time.perf_counter() - begin:.0f} seconds in all')
    if args.out: write_json(args.out, dict(command=shlex.join(['python', 'tests/bench/trajectories.py', *sys.argv[1:]]), rows=rows, seconds={str(k): v for k, v in timed.items()}, whole=small, **about_run()))


if __name__ == '__main__': main()
