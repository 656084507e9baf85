"""What tools/forecasting.py and tools/anomalies.py share: options, a file of results with which a second start goes on, and how long each method computes."""

import argparse
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from bdense_nb.app.bench import interleaved
from bdense_nb.core import about_run, data_dir, read_json, write_json


class Results:
    "A file with rows of several seeds; what is in it is not computed again."

    def __init__(self, doc: str, name: str, seeds: int):
        p = argparse.ArgumentParser(
            description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        p.add_argument('--seeds', type=int, default=seeds)
        p.add_argument('--out', type=Path, default=data_dir() / 'results' / name)
        p.add_argument(
            '--time', action='store_true', help='measure the CPU times again, and nothing else'
        )
        args = p.parse_args()
        self.out, self.seeds, self.time_again = (
            args.out,
            range(0 if args.time else args.seeds),
            args.time,
        )
        self.found = read_json(self.out, ('rows',)) if self.out.is_file() else {}
        torch.set_num_threads(1)

    @property
    def rows(self) -> list[dict]:
        return self.found.get('rows', [])

    def keep(self, **more) -> None:
        "Write what was found so far, and how; times have been measured elsewhere, perhaps."
        if 'times' not in more:
            self.found |= dict(command=shlex.join(['python', *sys.argv]), **about_run())
        self.found |= more
        write_json(self.out, self.found)

    def keep_times(self, unit: str, measure: Callable[[], dict]) -> None:
        "Measure how long the methods compute, unless that is known."
        if self.time_again or 'times' not in self.found:
            self.keep(times=dict(unit=unit, **measure(), **about_run()))


def cpu_times(works: dict[str, Callable], scale: float = 1.0, repeats: int = 15) -> dict:
    "Median CPU milliseconds of a call on one thread; the methods take turns, so that what else the machine does meets all alike."
    seconds = interleaved(works, repeats, torch.device('cpu'), time.process_time)
    return dict(
        clock='time.process_time',
        repeats=repeats,
        ms={name: round(1000 * scale * median(s), 3) for name, s in seconds.items()},
    )
