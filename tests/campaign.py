"""Be hostile: kill runs, feed bad inputs, and say what did not stand it.

    python tests/campaign.py [--kills 12] [--inputs 1.0] [--only WORD] [--seed 0] [--sample]

--kills: of each kind of run; --inputs: part of the bad inputs that is tried; --only: groups whose name has this word;
--sample: what `make test` takes. Exit code 1 if anything was wrong.
"""

import argparse
import gc
import importlib
import os
import random
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
sys.path.append(str(Path(__file__).resolve().parents[1] / 'tools'))
for library in (
    'torch._dynamo',
    'torchvision',
    'accelerate',
    'matplotlib.pyplot',
    'optuna.storages',
    'bdense_nb.app.commands',
    'bdense_nb.app.course',
    'bdense_nb.interop.diffusers',
    'bdense_nb.lab.search',
):
    importlib.import_module(library)  # here, once for all forks
gc.freeze()  # a fork that looks for garbage would copy every page of it

import bad_inputs  # noqa: E402
import kills  # noqa: E402

SAMPLED = ('SFD', 'SFD-v', 'PD', 'save', 'notebooks')  # runs that `make test` kills


class Campaign:
    "What was tried, and what was wrong."

    def __init__(self, lab: kills.Lab, seed: int, only: str):
        self.lab = lab
        self.only = only
        self.dice = random.Random(seed)
        self.wrong = []  # (group, what, how)
        self.rows = []  # (group, tried, wrong, seconds)

    def group(self, name: str, tries: list[tuple]) -> None:
        "Try all of a group, each a (name, function without arguments)."
        if self.only not in name:
            return
        begin, wrong = time.monotonic(), []
        for what, do in tries:
            if said := do():
                wrong.append((name, what, said))
        self.wrong += wrong
        self.rows.append((name, len(tries), len(wrong), time.monotonic() - begin))
        print(f'{name}: {len(tries)} tried, {len(wrong)} wrong', file=sys.stderr, flush=True)

    def part(self, cases: list, share: float) -> list:
        "Some of the cases, in their order."
        chosen = self.dice.sample(
            range(len(cases)), max(round(share * len(cases)), min(1, len(cases)))
        )
        return [cases[i] for i in sorted(chosen)]

    def report(self) -> str:
        "A table, and what was wrong below it."
        lines = ['| group | tried | wrong | seconds |', '| --- | --- | --- | --- |']
        lines += [
            f'| {name} | {tried} | {wrong} | {seconds:.0f} |'
            for name, tried, wrong, seconds in self.rows
        ]
        return '\n'.join(
            [*lines, '', *(f'{group}: {what}: {said}' for group, what, said in self.wrong)]
        )


def kill_all(campaign: Campaign, n: int, names: tuple[str, ...]) -> None:
    for name in names:
        tries = (
            kills.plan(campaign.lab, name, n, campaign.dice)
            if campaign.only in f'kills: {name}'
            else []
        )
        campaign.group(f'kills: {name}', tries)


def feed_all(campaign: Campaign, share: float) -> None:
    lab = campaign.lab
    found = [
        *bad_inputs.cases_json(),
        *bad_inputs.cases_tensors(),
        *bad_inputs.cases_options(lab),
        *bad_inputs.cases_permissions(),
    ]
    if not (lab.folder / 'base' / 'found').exists():
        found = [case for case in found if 'found' not in str(case.command)]
    for group in dict.fromkeys(case.group for case in found):
        some = campaign.part([case for case in found if case.group == group], share)
        campaign.group(
            group, [(case.name, lambda case=case: bad_inputs.try_case(lab, case)) for case in some]
        )


def disturb_all(campaign: Campaign, share: float) -> None:
    lab = campaign.lab
    runs = [
        name for name in kills.RUNS if name != 'search' or (lab.folder / 'base' / 'found').exists()
    ]
    limits = [(name, size) for name in runs for size in (0, 1_000, 30_000, 120_000)]
    campaign.group(
        'full disk',
        [
            (f'{name}, {size:,} bytes', lambda n=name, s=size: bad_inputs.full_disk(lab, n, s))
            for name, size in campaign.part(limits, share)
        ],
    )
    runs = [name for name in runs if name in ('teach', 'SFD', 'SFD-v', 'PD', 'search')]
    campaign.group(
        'two at once',
        [
            (name, lambda n=name: bad_inputs.two_at_once(lab, n))
            for name in campaign.part(runs, share)
        ],
    )
    if share < 0.5:
        return  # processes of their own cost seconds each
    campaign.group(
        'streams', [(kind, lambda k=kind: bad_inputs.stream(lab, k)) for kind in bad_inputs.STREAMS]
    )
    campaign.group(
        'Ctrl-C',
        [
            (f'after {t:.1f} s', lambda t=t: bad_inputs.interrupted(lab, t))
            for t in (0.2, 0.6, 1.2, 2.0, 3.0)
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--kills', type=int, default=12)
    parser.add_argument('--inputs', type=float, default=1.0)
    parser.add_argument('--only', default='')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--sample', action='store_true')
    args = parser.parse_args()
    if args.sample:
        args.kills, args.inputs = 1, 0.0025
    memory = Path('/dev/shm')  # no waiting for a disk
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        campaign = Campaign(kills.Lab(Path(folder)), args.seed, args.only)
        kills.prepare(campaign.lab)
        if args.inputs:
            bad_inputs.prepare(campaign.lab, search=not args.sample)
        kill_all(campaign, args.kills, SAMPLED if args.sample else tuple(kills.RUNS))
        if args.inputs:
            feed_all(campaign, args.inputs)
        if args.inputs:
            disturb_all(campaign, args.inputs)
    print(campaign.report())
    sys.exit(1 if campaign.wrong else 0)


if __name__ == '__main__':
    main()
