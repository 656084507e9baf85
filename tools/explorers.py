"""What the interactive explorers show but no notebook should compute: nine small distillations, one of them kept.

The demonstration's configuration (SFD, 2 NFE, K = 4) is trained with three sets of branch weights and three seeds each; the three arms of a seed share
the teacher's trajectories. Measured: the paired error and the Fréchet distance of 1,000 samples, and how far each branch lands from the teacher's state.
Written: data/results/branch_weights.json; the student with linear weights and seed 0, folded, in data/fashion_mnist_student; and what that student's
branches did before they were folded, in data/results/branch_viewer.safetensors. Runs that are in the JSON already are not repeated.

    OMP_NUM_THREADS=1 python tools/explorers.py       # see data/results/branch_weights.json for how long it took
"""

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from bdense_nb.app.common import draw_samples
from bdense_nb.core import about_run, data_dir, save_tensors, write_json
from bdense_nb.diffusion.stored import load_teacher, read_about
from bdense_nb.diffusion.samplers import afs_x0
from bdense_nb.distillation.branches import BranchedDenoiser, branch, fold
from bdense_nb.distillation.distill import preset
from bdense_nb.distillation.losses import BRANCH_WEIGHTS
from bdense_nb.distillation.segments import branch_states, segments
from bdense_nb.distillation.sfd import SFDConfig, sfd_step, teacher_bank
from bdense_nb.distillation.students import Student
from bdense_nb.evaluation.metrics import fashion_fd, paired_error
from bdense_nb.training.loop import fit

KEPT = ('linear', 0)  # weights and seed of the student that ships
HELD_OUT = range(256)  # sampling seeds: no training run has seen them
SHOWN = (0, 1, 2, 5)  # of those, the ones in the branch viewer


@torch.no_grad()
def walk(
    model: BranchedDenoiser, cfg: SFDConfig, x: torch.Tensor, label: torch.Tensor
) -> list[dict[str, torch.Tensor]]:
    "Each step of the student's own path: where it stands, and what the K branches estimate and where they land."
    fine, nodes, steps = cfg.grids[0], cfg.grids[1].tolist(), []
    for n, (t, s) in enumerate(zip(nodes[:-1], nodes[1:])):
        levels = fine[n * cfg.substeps + 1 : (n + 1) * cfg.substeps + 1]
        if cfg.afs and n == 0:
            x0s = afs_x0(x, t)[:, None].expand(-1, cfg.K, *cfg.shape)
        else:
            x0s = model(x, t, label)
        states = branch_states(x0s, x, t, levels, cfg.branch_step)
        steps.append(dict(x0s=x0s, states=states))
        x = states[:, -1]
    return steps


def residuals(model: BranchedDenoiser, cfg: SFDConfig, teacher) -> list[list[float]]:
    "Mean distance (L1, summed over pixels) of each branch to the teacher's state, for each student step that calls the network."
    traj, label = cfg.plan.trajectories(teacher, HELD_OUT)
    steps, segs = walk(model, cfg, traj[0], label), segments(traj, cfg.substeps, cfg.K)
    gaps = [
        (step['states'] - seg.states).abs().flatten(2).sum(2).mean(0)
        for step, seg in zip(steps, segs)
    ]
    return [[round(v, 4) for v in gap.tolist()] for gap in gaps[cfg.afs :]]


def keep(model: BranchedDenoiser, cfg: SFDConfig, teacher, student: Student, notes: dict) -> None:
    "The student that ships, and the branches it had."
    student.save(data_dir() / 'fashion_mnist_student')
    traj, label = cfg.plan.trajectories(teacher, HELD_OUT)
    steps, shown = walk(model, cfg, traj[0], label), torch.tensor(SHOWN)
    tensors = dict(labels=label[shown], sigmas=traj.sigmas, teacher=traj.xs[:, shown].half())
    for name in ('x0s', 'states'):
        tensors[name] = torch.stack([step[name][shown] for step in steps], 1).half()
    save_tensors(
        data_dir() / 'results' / 'branch_viewer.safetensors',
        tensors,
        dict(notes, seeds=list(SHOWN)),
    )


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument('--seeds', type=int, default=3, help='training seeds of each set of weights')
    p.add_argument(
        '--n', type=int, default=1000, help='samples for the Fréchet distance and the paired error'
    )
    p.add_argument('--folder', type=Path, default=Path('runs/explorers'), help='checkpoints')
    p.add_argument('--out', type=Path, default=data_dir() / 'results' / 'branch_weights.json')
    args = p.parse_args()
    cfg, teacher = preset('demo'), load_teacher(device='cpu')
    untrained = residuals(branch(teacher, cfg.K), cfg, teacher)
    notes = dict(
        command=shlex.join(['python', 'tools/explorers.py', *sys.argv[1:]]),
        config=asdict(cfg),
        samples=args.n,
        sampling_seeds=[0, args.n - 1],
        held_out_seeds=[HELD_OUT.start, HELD_OUT.stop - 1],
        teacher_sha256=read_about(data_dir() / 'fashion_mnist_teacher')['sha256'],
        **about_run(),
    )
    old = json.loads(args.out.read_text()) if args.out.is_file() else {}
    runs = (
        old['runs']
        if all(
            old.get(k) == json.loads(json.dumps(notes[k]))
            for k in ('config', 'samples', 'teacher_sha256')
        )
        else []
    )
    target = draw_samples(cfg.reference().sampler(teacher), args.n, 'teacher')
    for seed in range(args.seeds):
        bank = None
        for weights in sorted(BRANCH_WEIGHTS, key=lambda w: w != KEPT[0]):
            if any((r['weights'], r['seed']) == (weights, seed) for r in runs):
                continue
            one = preset('demo', branch_weights=weights, seed=seed)
            bank = bank or teacher_bank(teacher, one)
            done = fit(
                branch(teacher, one.K).train(),
                sfd_step(teacher, one, bank),
                one.train_config,
                args.folder / f'{weights}-{seed}',
            )
            model = done.model.eval()
            about = dict(
                host='sfd',
                config=asdict(one),
                history=done.history,
                seconds=round(done.seconds, 1),
                **about_run(),
            )
            student = Student(fold(model), one.grids[1], one.afs, one.shape, about)
            images = draw_samples(student, args.n, 'student')
            runs.append(
                dict(
                    weights=weights,
                    seed=seed,
                    nfe=student.nfe,
                    paired_error=paired_error(images, target),
                    frechet_distance=fashion_fd(images),
                    residuals=residuals(model, one, teacher),
                    seconds=round(done.seconds, 1),
                )
            )
            write_json(args.out, dict(notes, untrained_residuals=untrained, runs=runs))
            print(runs[-1], flush=True)
            if (weights, seed) == KEPT:
                keep(model, one, teacher, student, notes)


if __name__ == '__main__':
    main()
