"""Distil the shipped Fashion-MNIST teacher by Progressive Distillation from 64 steps to 1, on a CPU: the host, and the same with two branches.

Both arms have the same start, images, noise and number of updates. Measured after every round: the Fréchet distance of 1,000 samples to the
training images, and the paired error to the teacher's 64-step samples from the same noise and labels. One training seed: an illustration.
A second start goes on where the first one stopped.

    OMP_NUM_THREADS=1 python tools/fashion_pd.py       # see data/results/fashion_mnist_pd.json for how long it took
"""

import argparse
import json
import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path

from bdense_nb.core import about_run, data_dir, write_json
from bdense_nb.diffusion.data import FASHION_CLASSES, fashion_mnist
from bdense_nb.diffusion.stored import load_teacher, read_about
from bdense_nb.distillation.progressive import PDConfig, progressive_rounds
from bdense_nb.diffusion.samplers import Sampler
from bdense_nb.evaluation.metrics import fashion_fd, paired_error
from bdense_nb.evaluation.pictures import show_rows

CONFIG = PDConfig(start_steps=64, updates=100, batch=64, lr=2e-4)
SHAPE = (1, 28, 28)
SHOWN = (8, 2, 1)  # steps of the students in the picture


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument('--updates', type=int, default=CONFIG.updates, help='in each round')
    p.add_argument(
        '--n', type=int, default=1000, help='samples for the Fréchet distance and the paired error'
    )
    p.add_argument('--folder', type=Path, default=Path('runs/fashion_pd'), help='checkpoints')
    p.add_argument('--out', type=Path, default=data_dir() / 'results' / 'fashion_mnist_pd.json')
    args = p.parse_args()
    cfg = replace(CONFIG, updates=args.updates)
    teacher, (data, labels) = load_teacher(device='cpu'), fashion_mnist('test')
    notes = dict(
        command=shlex.join(['python', 'tools/fashion_pd.py', *sys.argv[1:]]),
        config=asdict(cfg),
        n=args.n,
        sampling_seeds=[0, args.n - 1],
        data='the 10,000 test images',
        teacher_sha256=read_about(data_dir() / 'fashion_mnist_teacher')['sha256'],
        **about_run(),
    )
    old = json.loads(args.out.read_text()) if args.out.is_file() else {}
    same = all(
        old.get(k) == json.loads(json.dumps(notes[k])) for k in ('config', 'n', 'teacher_sha256')
    )
    rows = {(r['arm'], r['steps']): r for r in old['rows']} if same else {}

    fine = cfg.reference(SHAPE).sampler(teacher)
    target = fine.sample(args.n)
    pictures = {f'teacher, NFE {cfg.start_steps}': target[:10]}

    def measure(arm: str, student: Sampler, **more) -> None:
        steps = len(student.sigmas) - 1
        if (arm, steps) in rows:
            return
        images = target if student is fine else student.sample(args.n)
        rows[arm, steps] = dict(
            arm=arm,
            steps=steps,
            nfe=student.nfe,
            frechet_distance=fashion_fd(images),
            paired_error=paired_error(images, target),
            **more,
        )
        write_json(args.out, dict(notes, rows=list(rows.values())))
        print(rows[arm, steps], flush=True)

    measure('teacher', fine)
    for n in cfg.rounds[2:]:
        measure('teacher', Sampler(teacher, cfg.grid(n), False, SHAPE))
    for K, arm in ((1, 'PD'), (2, 'B-DENSE, K = 2')):
        for student in progressive_rounds(
            teacher, data, replace(cfg, K=K), labels, args.folder / f'K{K}'
        ):
            last = student.about['rounds'][-1]
            measure(
                arm,
                student,
                seconds=last['seconds'],
                loss=[h['loss'] for h in last['history']][::10],
            )
            if last['n_steps'] in SHOWN:
                pictures[f'{arm}, NFE {last["n_steps"]}'] = student.sample(10)
    classes = [
        FASHION_CLASSES[i].split('/')[0].replace('Ankle boot', 'Boot')
        for i in fine.start(range(10))[1]
    ]
    show_rows(pictures, 10, classes, args.out.with_name('fashion_mnist_pd_samples.png'))


if __name__ == '__main__':
    main()
