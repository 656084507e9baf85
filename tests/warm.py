"""Other processes for tests: forks of one that has imported PyTorch once (which the workers of pytest share).

A program sees a fresh `bdense_nb`, its own arguments, folder, variables and streams. What depends on the start of an
interpreter itself (encodings, closed streams, signals while libraries are imported) is tested in true processes.
"""

import multiprocessing.spawn
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from run_notebooks import WARM

TESTS = Path(__file__).resolve().parent
REACH = f'import sys; sys.path[1:1] = [{str(TESTS)!r}, {str(TESTS.parent / "tools")!r}]\n'


def python(
    code: str, *args: Path | str, cwd: Path | None = None, **env: str
) -> subprocess.CompletedProcess:
    "`python -c code args`, with the tests in reach."
    done = WARM.run('python', '-c', REACH + code, *args, cwd=cwd, **os.environ | env)
    sys.stderr.write(done.stderr)
    return done


def spawn_in_forks(monkeypatch) -> None:
    "What `multiprocessing` spawns has imported PyTorch, where workers share a server; `bdense_nb` it imports itself."
    if WARM.shared in os.environ:
        program = os.fsencode(TESTS.parent / 'tools' / 'forked.py')
        monkeypatch.setattr(multiprocessing.spawn, '_python_exe', program)


def in_fork(program: Path, folder: Path) -> Path:
    "An installed program, or one in `folder` that runs it in a fork, where workers share a server."
    if WARM.shared not in os.environ:
        return program
    script = folder / program.name
    words = [sys.executable, str(TESTS.parent / 'tools' / 'forked.py'), str(program)]
    script.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    script.chmod(0o755)
    return script


class Waiting:
    "A Python program that has printed `ready` and waits for the end of its input; `finish` lets it go on, to its end."

    def __init__(self, code: str, *args: Path | str, ready: str):
        self.folder = Path(tempfile.mkdtemp(prefix='waiting-'))
        self.log = self.folder / 'log'
        self.log.touch()
        os.mkfifo(self.folder / 'input')
        self.process = WARM.begin(
            '-c',
            REACH + code,
            *args,
            env=dict(os.environ),
            log=self.log,
            stdin=self.folder / 'input',
        )
        self.input = open(self.folder / 'input', 'w')
        while ready not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.02)

    def finish(self) -> tuple[int, str]:  # exit code, and what it printed
        self.input.close()
        return self.process.wait(), self.log.read_text()


@contextmanager
def held(*where: Path | str) -> Iterator[None]:
    "Another process has `bdense_nb.core.locked(*where)`."
    code = f'from bdense_nb.core import locked\nwith locked(*{[str(w) for w in where]}): print("held", flush=True); sys.stdin.read()'
    other = Waiting(code, ready='held')
    try:
        yield
    finally:
        assert other.finish()[0] == 0


def torchrun(
    n: int, script: Path, *args: Path | str, folder: Path
) -> str:  # what the processes printed
    "A script in n processes that know of one another, as torchrun starts them."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    code = f'sys.argv = {[str(script), *map(str, args)]}\nimport runpy; runpy.run_path({str(script)!r}, run_name="__main__")'
    world = dict(
        MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), WORLD_SIZE=str(n), LOCAL_WORLD_SIZE=str(n)
    )
    ranks = [
        WARM.begin(
            '-c',
            REACH + code,
            env=os.environ | world | dict(RANK=str(r), LOCAL_RANK=str(r)),
            log=folder / f'rank{r}.log',
        )
        for r in range(n)
    ]
    codes = [r.wait() for r in ranks]
    said = ''.join((folder / f'rank{r}.log').read_text() for r in range(n))
    assert codes == [0] * n, said
    return said
