"""Run programs in forks of one process, which has imported its libraries once.

    python forks.py MODULE ...             # a line of JSON in (a job), a line of JSON out (how it ended)
    python forks.py --at SOCKET MODULE ... # the same for each that connects, until standard input ends

`Server` is the other end. Only the standard library is used here: an environment of users has no tools for tests.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import inspect
import io
import json
import os
import re
import select
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import traceback
import weakref
from importlib.metadata import EntryPoint, distribution
from pathlib import Path


def find_classes_by_name(find=inspect.findsource) -> None:
    "To find a class, of whose comments help is made, Python 3.11 parses its whole module, each time anew: a search for its name does. One that was made while running is in none."

    def findsource(thing):
        if inspect.isclass(thing) and thing.__module__ == 'types':  # a command's, of its options
            raise OSError('no source')
        if not (inspect.isclass(thing) and thing.__module__.startswith('bdense_nb')):
            return find(thing)
        lines, _ = find(sys.modules[thing.__module__])
        (at,) = (
            i for i, line in enumerate(lines) if re.match(rf'class {thing.__qualname__}\b', line)
        )
        while lines[at - 1].startswith('@'):
            at -= 1
        return lines, at

    inspect.findsource = findsource


def no_parsers_of_addresses() -> None:
    "jsonschema, and with it nbformat, would make 38 of them when it is imported, which takes more than a second, and here nobody asks for one."
    sys.modules.setdefault('rfc3987_syntax', None)


def no_waiting_for_disks() -> None:
    "What a process that is killed has written, others read; what a machine that loses its power has, no test sees."
    os.fsync = lambda fd: None
    connect = sqlite3.connect

    def unsynced(*args, **how):
        db = connect(*args, **how)
        with contextlib.suppress(sqlite3.Error):
            db.execute('PRAGMA synchronous = OFF')  # what is damaged says so later
        return db

    sqlite3.connect = sqlite3.dbapi2.connect = unsynced


def programs(package: str = 'bdense-nb') -> dict[str, EntryPoint]:
    "The package's commands, as its installed scripts find them."
    found = distribution(package).entry_points.select(group='console_scripts')
    return {entry.name: entry for entry in found}


def run_here(program: str, arguments: list[str], commands: dict[str, EntryPoint]) -> int:
    "Run a command, or `python -c code ...`, in this process, and say its exit code as a shell would see it."
    is_code = program == 'python'
    sys.argv = ['-c', *arguments[2:]] if is_code else [f'/usr/bin/{program}', *arguments]
    try:
        if is_code:
            exec(arguments[1], vars(main_module()))
        else:
            sys.exit(commands[program].load()())
    except SystemExit as e:
        if isinstance(e.code, str):
            print(e.code, file=sys.stderr)
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    else:
        code = 0
    atexit._run_exitfuncs()  # a fork leaves without them
    try:
        sys.stdout.flush()
    except OSError:
        return 120  # what the interpreter itself ends with
    return code


def main_module():
    "An empty `__main__`."
    sys.path.insert(0, '')
    sys.modules['__main__'] = type(sys)('__main__')
    return sys.modules['__main__']


def end_with(parent: int) -> None:
    "End this process as soon as the one that started it is gone, even if that was killed (on Linux)."
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it is gone already
        os._exit(1)


def fork(
    job, stdout: int, stderr: int, folder: Path | str = '.', env: dict = {}, stdin: str = os.devnull
) -> int:
    "Run `job()`, which returns an exit code, in a child with these streams, folder and variables: its process id."
    sys.stdout.flush()
    parent = os.getpid()
    if pid := os.fork():
        return pid
    code = 1
    try:
        end_with(parent)
        os.setsid()
        weakref.finalize._registry.clear()  # temporary folders of the parent are not this child's to remove
        os.environ.update(env)
        os.dup2(os.open(stdin, os.O_RDONLY), 0)
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        encoding = os.environ.get('PYTHONIOENCODING', 'utf-8')
        sys.stdin = open(0, encoding=encoding, closefd=False)
        sys.stdout = io.TextIOWrapper(
            io.FileIO(1, 'w', closefd=False), encoding=encoding, line_buffering=True
        )
        sys.stderr = io.TextIOWrapper(
            io.FileIO(2, 'w', closefd=False),
            encoding=encoding,
            errors='backslashreplace',
            write_through=True,
        )
        os.chdir(folder)
        code = job()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def ended(pid: int) -> int:
    "Wait for a child: its exit code, or minus the signal that ended it."
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def start(job: dict, commands: dict[str, EntryPoint], stdout: int, stderr: int) -> int:
    "Begin a job: its process id."
    return fork(
        lambda: run_here(job['program'], job['arguments'], commands),
        stdout,
        stderr,
        job['folder'],
        job['env'],
        job.get('stdin', os.devnull),
    )


def answer(job: dict, commands: dict[str, EntryPoint]) -> dict:
    "Run a job to its end, with streams of its own or not; or only begin it (`log`: what it prints), and look later whether it has ended (`poll`: its process)."
    if pid := job.get('poll'):
        found, status, used = os.wait4(pid, os.WNOHANG)
        return dict(code=os.waitstatus_to_exitcode(status) if found else None, cpu=used.ru_utime)
    if log := job.get('log'):
        with open(log, 'a') as out:
            return dict(pid=start(job, commands, out.fileno(), out.fileno()))
    if streams := job.get('streams'):
        with open(streams[1], 'ab') as out, open(streams[2], 'ab') as err:
            pid = start(job | dict(stdin=streams[0]), commands, out.fileno(), err.fileno())
        return dict(code=ended(pid))
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begin = time.monotonic()
        code = ended(start(job, commands, out.fileno(), err.fileno()))
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode(errors='replace'))
        return dict(code=code, out=texts[0], err=texts[1], seconds=time.monotonic() - begin)


class Server:
    "Programs in forks of a Python that has imported `modules` once: started when first asked, with `how` it starts."

    def __init__(self, *modules: str, python: Path | str = sys.executable, shared: str = '', **how):
        self.command = [python, __file__, *modules]
        self.how = how  # cwd and env, as subprocess takes them
        self.shared = shared  # a variable: the socket of a server that was started for several processes, where there is one
        self.process = self.line = None
        self.cpu = 0.0  # seconds, of the programs that were begun and have ended

    def share(self) -> None:
        "Start it for this process and those that it starts."
        self.folder = tempfile.TemporaryDirectory(prefix='forks-')
        os.environ[self.shared] = at = f'{self.folder.name}/socket'
        self.process = subprocess.Popen(
            [*self.command[:2], '--at', at, *self.command[2:]], stdin=subprocess.PIPE, **self.how
        )
        atexit.register(self.close)
        while self.process.poll() is None and not os.path.exists(at):
            time.sleep(0.01)

    def start(self) -> None:
        if at := os.environ.get(self.shared):
            self.line = socket.socket(socket.AF_UNIX)
            self.line.connect(at)
            self.jobs, self.replies = self.line.makefile('w'), self.line.makefile()
        else:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **self.how
            )
            self.jobs, self.replies = self.process.stdin, self.process.stdout
            self.line = self.process
            atexit.register(self.close)
        self.commands = json.loads(self.replies.readline())

    def ask(self, **job) -> dict:
        if self.line is None:
            self.start()
        print(json.dumps(job, default=str), file=self.jobs, flush=True)
        return json.loads(self.replies.readline())

    def run(
        self, program: str, *arguments: Path | str, cwd: Path | str | None = None, **env: str
    ) -> subprocess.CompletedProcess:
        "Run a command, or `python -c code ...`, to its end; `env` are variables on top of the server's."
        words = [str(a) for a in arguments]
        done = self.ask(program=program, arguments=words, folder=cwd or os.getcwd(), env=env)
        return subprocess.CompletedProcess(
            [program, *words], done['code'], done['out'], done['err']
        )

    def begin(
        self,
        *arguments: Path | str,
        cwd: Path | str | None = None,
        env: dict[str, str] = {},
        log: Path | str = '/dev/stderr',
        stdin: Path | str = os.devnull,
    ) -> 'Begun':
        "Begin a Python program that is not waited for; all it prints goes to the file `log`."
        words = [str(a) for a in arguments]
        job = dict(
            program='python',
            arguments=words,
            folder=cwd or os.getcwd(),
            env=env,
            log=log,
            stdin=stdin,
        )
        return Begun(self, self.ask(**job)['pid'])

    def close(self) -> None:
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()
            if self.process.stdout:
                self.process.stdout.close()
            self.process = self.line = None


class Begun:
    "A program that a server has begun, with the part of `subprocess.Popen` that Jupyter asks for."

    stdin = stdout = stderr = None

    def __init__(self, server: Server, pid: int):
        self.server = server
        self.pid = pid
        self.code = None

    def poll(self) -> int | None:
        if self.code is None:
            said = self.server.ask(poll=self.pid)
            self.code = said['code']
            self.server.cpu += said['cpu']
        return self.code

    def wait(self) -> int:
        while self.poll() is None:
            time.sleep(0.02)
        return self.code

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


os.environ.setdefault(
    'OMP_WAIT_POLICY', 'PASSIVE'
)  # threads that wait without spinning, as in the Makefile
WARM = Server(
    'torch._dynamo',
    'torch._functorch.aot_autograd',
    'torch.onnx._internal.exporter._core',
    'onnxscript.function_libs.torch_lib.ops',
    'torchvision',
    'accelerate',
    'matplotlib.pyplot',
    'scipy.stats',
    'ipywidgets',
    'ipykernel.ipkernel',
    'ipykernel.kernelapp',
    'optuna.visualization.matplotlib',
    'optuna.storages._rdb.models',
    'alembic.command',
    'diffusers.pipelines.pipeline_utils',
    'diffusers.models.unets.unet_2d_condition',
    'tyro',
    'tyro._backends._tyro_backend',
    'tyro._backends._argparse_formatter',
    'typeguard',
    'docstring_parser',
    'tabulate',
    'matplotlib.backends.backend_agg',
    'PIL.JpegImagePlugin',
    'PIL.GifImagePlugin',
    'IPython.core.magics',
    'IPython.core.pylabtools',
    shared='BDENSE_FORKS',
)  # not what asks, when imported, whether it is in a notebook


def serve(jobs, replies, commands: dict[str, EntryPoint]) -> None:
    print(json.dumps(sorted(commands)), file=replies, flush=True)
    for line in jobs:
        print(json.dumps(answer(json.loads(line), commands)), file=replies, flush=True)


def connected(door: socket.socket) -> socket.socket:
    "In a fork for each that connects: its line."
    while door in select.select([door, sys.stdin], [], [])[0]:
        line = door.accept()[0]
        parent = os.getpid()
        if not os.fork():
            end_with(parent)
            return line
        line.close()
    sys.exit()


def main() -> None:
    end_with(os.getppid())
    modules, door = sys.argv[1:], None
    if modules[:1] == ['--at']:
        _, at, *modules = modules
        door = socket.socket(socket.AF_UNIX)
        door.bind(at)
        door.listen()
    commands = programs()
    sys.path.pop(0)  # this folder is no part of what runs here
    find_classes_by_name()
    no_parsers_of_addresses()
    no_waiting_for_disks()
    gc.disable()  # what is imported stays
    for name in modules:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)  # the jobs show it
    gc.freeze()  # a fork that looks for garbage would copy every page of it
    gc.enable()
    gc.set_threshold(20_000, 20, 20)  # what runs here is short
    replies = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # whatever a library prints here is no answer
    if door is None:
        serve(sys.stdin, replies, commands)
    else:
        line = connected(door)
        serve(line.makefile(), line.makefile('w'), commands)


if __name__ == '__main__':
    main()
