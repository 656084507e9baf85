"""Runs that are killed, and started again: the finished result must be that of a run which nobody disturbed.

A run is ended either at a random moment or before its n-th change of a file, so that the windows between two changes
are hit as often as the long stretches of arithmetic.
"""

import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file

from forks import ended, fork, programs, run_here

TINY = '--preset demo --K 2 --steps 12 --batch 8 --pool 16 --teacher ../plane'  # its plan is timed first
SHORT = TINY.replace('12', '10')  # this one's is not
SAVE = """
from bdense_nb.distillation.students import load_student
load_student("../student").save("run")
"""
RUNS = {  # what is killed -> its command; it writes into run/
    'teach': 'bdense_teach run --data ring --preset quick --steps 24 --batch 8 --checkpoint_every 6',
    'SFD': f'bdense_distill run {TINY}',
    'SFD, bank': f'bdense_distill run {SHORT} --bank run/bank',
    'SFD-v': f'bdense_distill run {SHORT} --nfe 2,3',
    'PD': 'bdense_distill run --preset fashion_mnist_pd --nfe 2 --start_steps 8 --steps 5 --batch 8 --data ring --teacher ../plane',
    'search': 'bdense_search run --teacher ../plane --preset demo --K 2 --trials 3 --n 8 --steps 2 --batch 4 --pool 8',
    'save': f'python -c {SAVE}',
    'export': 'bdense_export ../student run',
    'sample': 'bdense_sample ../student --n 4 --out run/four.png',
    'notebooks': 'bdense_notebooks run',
}
CHANGES = {'os.rename', 'os.remove', 'os.mkdir', 'os.link', 'os.truncate'}
TEMPORARY = re.compile(r'^\..*\.tmp$|^\.tmp\w{6}$')


def arguments(line: str) -> list[str]:
    "A command line's words; the code behind `python -c` is one."
    return (
        ['python', '-c', line.removeprefix('python -c ')]
        if line.startswith('python')
        else line.split()
    )


@dataclass
class Ended:
    "How a command ended."

    code: int
    out: str
    err: str
    seconds: float
    changes: int  # of files below its folder

    @property
    def last(self) -> str:
        return (self.err.strip().splitlines() or [''])[-1]


@dataclass
class Attack:
    "What is done to a command while it runs."

    kind: int = 0  # a signal
    after: float | None = None  # it comes after so many seconds
    change: int | None = None  # or before this change of a file, the first being 1


class Said:
    "A pipe, and a thread that reads what comes out of it: `text` once it is left."

    def __enter__(self):
        self.start, self.end = os.pipe()
        self.reader = threading.Thread(target=self.read)
        self.reader.start()
        return self

    def read(self) -> None:
        with os.fdopen(self.start, 'rb') as f:
            self.text = f.read().decode(errors='replace')

    def __exit__(self, *_) -> None:
        os.close(self.end)
        self.reader.join()


@dataclass
class Lab:
    "A folder with things to work on, and a way to run commands there in forks of this process."

    folder: Path
    commands: dict = field(default_factory=programs)
    known: dict = field(default_factory=dict)

    def run(
        self, line: str | list[str], at: Path | str = '.', attack: Attack = Attack(), prepare=None
    ) -> Ended:
        "Run a command to its end, or to the attack; `prepare` is called in its process first."
        program, *args = arguments(line) if isinstance(line, str) else line
        begin = time.monotonic()
        with Said() as out, Said() as err, tempfile.TemporaryFile() as count:

            def job():
                if prepare:
                    prepare()
                else:
                    watch_changes(count.fileno(), attack)
                return run_here(program, args, self.commands)

            pid = fork(job, out.end, err.end, self.folder / at, dict(COLUMNS='120'))
            if attack.after is not None:
                time.sleep(attack.after)
                os.kill(pid, attack.kind)  # of a child that has ended: nothing happens
            code = ended(pid)
            changes = os.fstat(count.fileno()).st_size
        return Ended(code, out.text, err.text, time.monotonic() - begin, changes)

    def undisturbed(self, name: str) -> Ended:
        "How one of `RUNS` ends if nothing is done to it."
        if name not in self.known:
            at = self.folder / f'whole {name}'
            at.mkdir()
            self.known[name] = (self.must(RUNS[name], at), result(at / 'run'))
        return self.known[name][0]

    def whole(self, name: str) -> dict[str, object]:
        "And what it leaves."
        self.undisturbed(name)
        return self.known[name][1]

    def must(self, line: str | list[str], at: Path | str = '.') -> Ended:
        "Run a command that has to work."
        done = self.run(line, at)
        assert done.code == 0, f'{line}: {done.err}'
        return done


def watch_changes(count: int, attack: Attack) -> None:
    "Count this process's changes of files below its folder, a byte each; before a chosen one comes the attack."
    here, busy = os.getcwd() + os.sep, []

    def hook(event, args):
        if busy or event not in CHANGES and event != 'open' or not args:
            return
        if event == 'open' and not (
            isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        ):
            return
        if not isinstance(args[0], (str, os.PathLike)) or not os.path.abspath(args[0]).startswith(
            here
        ):
            return
        busy.append(True)  # what follows is no change of the command's
        os.write(count, b'.')
        if attack.change == os.fstat(count).st_size:
            os.kill(os.getpid(), attack.kind)
        busy.clear()

    sys.addaudithook(hook)


def result(folder: Path) -> dict[str, object]:
    "What a finished run has left: tensors, texts and pictures by name; not its checkpoints, whose number depends on interruptions."
    found = {}
    for path in sorted(p for p in folder.rglob('*') if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.suffix == '.safetensors' and 'checkpoints' not in name:
            found[name] = load_file(path)
        elif path.suffix in ('.ipynb', '.png') and path.name != 'search.png':
            found[name] = path.read_bytes()
        elif path.name == 'search.json':
            found[name] = scores(json.loads(path.read_text()))
    return found


def scores(search: object) -> str:
    "A search's file without what differs from day to day."
    if isinstance(search, dict):
        return {k: scores(v) for k, v in search.items() if 'seconds' not in k and k != 'command'}
    return [scores(v) for v in search] if isinstance(search, list) else search


def difference(one: dict, other: dict) -> str:  # '': none
    "Where two results are not the same to the last bit."
    if one.keys() != other.keys():
        return f'other files: {sorted(one.keys() ^ other.keys())}'
    for name, value in one.items():
        if not isinstance(value, dict) or not name.endswith('.safetensors'):
            same = value == other[name]
        else:
            theirs = other[name]
            same = value.keys() == theirs.keys() and all(
                torch.equal(v, theirs[k]) for k, v in value.items()
            )
        if not same:
            return f'{name} differs'
    return ''


def leftovers(folder: Path) -> list[str]:
    "Temporary files of writers that are gone."
    return [p.relative_to(folder).as_posix() for p in folder.rglob('*') if TEMPORARY.match(p.name)]


def one_kill(lab: Lab, name: str, attack: Attack) -> str:  # '': nothing is wrong
    "Kill a run, start it again, compare."
    at = Path(tempfile.mkdtemp(prefix='kill-', dir=lab.folder))
    try:
        hit = lab.run(RUNS[name], at, attack)
        if 'Traceback' in hit.err and name != 'save':
            return f'a traceback: {hit.last}'
        again = lab.run(RUNS[name], at)
        if 'Traceback' in again.err and name != 'save':
            return f'a traceback: {again.last}'
        if again.code != 0:
            return f'does not go on: {again.last}'
        if said := difference(lab.whole(name), result(at / 'run')):
            return said
        return f'left behind: {", ".join(left)}' if (left := leftovers(at)) else ''
    finally:
        shutil.rmtree(at)


def attacks(dice: random.Random, whole: Ended, kind: int, n: int) -> list[Attack]:
    "Half of them at random moments of the run, half before random changes of files."
    by_time = [Attack(kind, after=dice.uniform(0, whole.seconds)) for _ in range(n // 2)]
    some = dice.sample(range(1, whole.changes + 1), min(n - n // 2, whole.changes))
    return by_time + [Attack(kind, change=i) for i in sorted(some)]


def prepare(lab: Lab) -> None:
    "A teacher and a student, for runs to start from."
    lab.must('bdense_teach plane --data ring --preset quick --steps 20 --batch 16')
    lab.must(
        'bdense_distill student --teacher plane --preset demo --K 2 --steps 2 --batch 4 --pool 4'
    )


def plan(
    lab: Lab, name: str, n: int, dice: random.Random
) -> list[tuple]:  # (moment, a function that kills there and judges)
    "n kills of one run, three of four by SIGKILL and the others by SIGTERM."
    whole = lab.undisturbed(name)
    n_hard = n * 3 // 4 or dice.randrange(2)
    hard = attacks(dice, whole, signal.SIGKILL, n_hard)
    soft = attacks(dice, whole, signal.SIGTERM, n - n_hard)
    return [
        (moment(attack, whole), lambda attack=attack: one_kill(lab, name, attack))
        for attack in hard + soft
    ]


def moment(attack: Attack, whole: Ended) -> str:
    "An attack in words."
    what = signal.Signals(attack.kind).name + ' '
    if attack.change is not None:
        return f'{what}before change {attack.change} of {whole.changes}'
    return f'{what}after {attack.after:.2f} of {whole.seconds:.2f} s'
