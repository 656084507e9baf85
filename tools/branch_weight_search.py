"""Search branch weights on the shipped Fashion-MNIST teacher at 2 NFE, as the paper did on CIFAR-10, with a small budget, and confirm the find.

Every trial is a distillation with the settings of `bdense_demo`, but a sixth of its trajectories. The confirmation repeats the best weights and
the named ones with other training seeds, scored on other samples. Search and confirmation are kept as they go in an SQLite file, and a second
start goes on from there; the result goes to data/results/branch_weight_search.json.

    OMP_NUM_THREADS=1 python tools/branch_weight_search.py       # the JSON says how long it took
"""

import argparse
import shlex
import sys
import time
from pathlib import Path

from bdense_nb.core import about_run, data_dir
from bdense_nb.diffusion.stored import load_teacher, read_about
from bdense_nb.distillation.distill import preset
from bdense_nb.lab.search import confirm_weights, save_search, search_weights


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument('--trials', type=int, default=16)
    p.add_argument('--seeds', type=int, default=3, help='training seeds of the confirmation')
    p.add_argument('--n', type=int, default=256, help='samples that each student is scored on')
    p.add_argument('--steps', type=int, default=32, help='iterations of each training')
    p.add_argument('--batch', type=int, default=32, help='trajectories an iteration')
    p.add_argument('--pool', type=int, default=512, help='distinct trajectories')
    p.add_argument('--storage', type=Path, default=Path('runs/branch_weight_search.db'))
    p.add_argument('--out', type=Path, default=data_dir() / 'results' / 'branch_weight_search.json')
    args = p.parse_args()
    teacher, cfg, begin = (
        load_teacher(device='cpu'),
        preset('demo', steps=args.steps, batch=args.batch, pool=args.pool),
        time.monotonic(),
    )
    result = search_weights(teacher, cfg, args.trials, args.storage, n_samples=args.n)
    result = confirm_weights(teacher, result, range(1, args.seeds + 1), args.storage)
    save_search(
        args.out,
        result,
        command=shlex.join(['python', 'tools/branch_weight_search.py', *sys.argv[1:]]),
        search_seed=0,
        training_seed=cfg.seed,
        sampling_seeds=dict(search=[0, args.n - 1], confirmation=[args.n, 2 * args.n - 1]),
        teacher_sha256=read_about(data_dir() / 'fashion_mnist_teacher')['sha256'],
        seconds_of_this_start=round(time.monotonic() - begin),
        **about_run(),
        differences={
            f'best minus {arm}': str(result.difference(arm))
            for arm in result.confirmed
            if arm != 'best'
        },
    )


if __name__ == '__main__':
    main()
