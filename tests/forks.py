"""Run programs of an installed package in forks of one process, which has imported its libraries once.

    python forks.py MODULE ...   # a line of JSON in (a job), a line of JSON out (how it ended)

Only the standard library is used here: an environment of users has no tools for tests.
"""
import contextlib
import importlib
import io
import json
import os
import sys
import tempfile
import time
import traceback
from importlib.metadata import EntryPoint, distribution
from pathlib import Path


def programs(package: str = 'bdense-nb') -> dict[str, EntryPoint]:
    "The package's commands, as its installed scripts find them."
    found = distribution(package).entry_points.select(group='console_scripts')
    return {entry.name: entry for entry in found}


def run_here(program: str, arguments: list[str], commands: dict[str, EntryPoint]) -> int:
    "Run a command, or `python -c code`, in this process, and say its exit code as a shell would see it."
    sys.argv = [f'/usr/bin/{program}', *arguments]
    try:
        if program == 'python': exec(arguments[1], {'__name__': '__main__'})
        else: sys.exit(commands[program].load()())
    except SystemExit as e:
        if isinstance(e.code, str): print(e.code, file=sys.stderr)
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    else: code = 0
    try: sys.stdout.flush()
    except OSError: return 120  # what the interpreter itself ends with
    return code


def fork(job, stdout: int, stderr: int, folder: Path | str = '.', env: dict = {}) -> int:  # its process id
    "Run `job()`, which returns an exit code, in a child with these streams, folder and variables."
    sys.stdout.flush()
    if pid := os.fork(): return pid
    code = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        sys.stdout = io.TextIOWrapper(io.FileIO(1, 'w'), encoding='utf-8', line_buffering=True)
        sys.stderr = io.TextIOWrapper(io.FileIO(2, 'w'), encoding='utf-8', write_through=True)
        os.chdir(folder)
        os.environ.update(env)
        code = job()
        sys.stderr.flush()
    except BaseException: traceback.print_exc()
    os._exit(code)


def ended(pid: int) -> int:
    "Wait for a child: its exit code, or minus the signal that ended it."
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def answer(job: dict, commands: dict[str, EntryPoint]) -> dict:
    "Run one job to its end."
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begin = time.monotonic()
        code = ended(fork(lambda: run_here(job['program'], job['arguments'], commands),
                          out.fileno(), err.fileno(), job['folder']))
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode(errors='replace'))
        return dict(code=code, out=texts[0], err=texts[1], seconds=time.monotonic() - begin)


def main() -> None:
    commands = programs()
    for name in sys.argv[1:]:
        with contextlib.suppress(ImportError): importlib.import_module(name)  # the jobs show it
    replies = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # whatever a library prints here is no answer
    print(json.dumps(sorted(commands)), file=replies, flush=True)
    for line in sys.stdin: print(json.dumps(answer(json.loads(line), commands)), file=replies, flush=True)


if __name__ == '__main__': main()
