"Environments as users get them: empty, the package installed with what it requires, no repository and no network."

import json
import os
import shutil
import subprocess
import sys
import time
from configparser import ConfigParser
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / 'tools'))
from forks import Server  # noqa: E402

UV = [sys.executable, '-m', 'uv']
PRELOADED = (
    'torch._dynamo',  # which accelerate imports, to train
    'accelerate',
    'bdense_nb.app.commands',
    'bdense_nb.app.course',
)
NO_NETWORK = """
import socket
def refuse(self, address, *_):
    if self.family != socket.AF_UNIX: raise OSError(f'no network in this test: {address}')
socket.socket.connect = socket.socket.connect_ex = refuse
"""
ROOT = Path(__file__).resolve().parent.parent
SOURCES = (
    'bdense_nb',
    'data',
    'nbs',
    'settings.ini',
    'setup.py',
    'pyproject.toml',
    'MANIFEST.in',
    'LICENSE',
    'README.md',
    'CHANGELOG.md',
)
settings = ConfigParser(delimiters=['='])
settings.read(ROOT / 'settings.ini', encoding='utf-8')


def needs(key: str) -> list[str]:
    "A list in settings.ini."
    return settings['DEFAULT'][key].split()


def build(folder: Path) -> Path:
    "Build the sdist, and from it the wheel: the wheel."
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', '*.tmp')
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder)
    done = subprocess.run(
        [sys.executable, '-m', 'build', '--no-isolation'],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (folder / 'dist').glob('*.whl')
    return wheel


class Environment:
    "An empty virtual environment with a wheel and what it requires; `seconds` is what installing took."

    def __init__(self, folder: Path, wheel: Path, oldest: bool = False):
        self.folder = folder
        self.oldest = oldest  # of what settings.ini allows; else the newest of everything
        self.python = folder / 'env' / 'bin' / 'python'
        self.empty = folder / 'empty'  # where its programs run
        begin = time.monotonic()
        self.uv('venv', '--python', sys.executable, folder / 'env')
        self.install(wheel, needs('requirements'))
        self.seconds = time.monotonic() - begin
        (self.packages,) = (folder / 'env').glob('lib/python*/site-packages')
        (self.packages / 'no_network.py').write_text(NO_NETWORK)
        (self.packages / 'no_network.pth').write_text('import no_network\n')
        self.empty.mkdir()
        places = dict.fromkeys(('HOME', 'TMPDIR', 'MPLCONFIGDIR'), str(folder))
        compiled = dict(PYTHONPYCACHEPREFIX=str(folder / 'compiled'), PYTHONDONTWRITEBYTECODE='')
        self.env = dict(PATH=os.defpath, OMP_NUM_THREADS='1', **places, **compiled)
        self.server = Server(*PRELOADED, python=self.python, cwd=self.empty, env=self.env)

    def uv(self, *args: Path | str) -> str:
        "uv, as this environment's tests have it; packages come as hard links out of its cache."
        done = subprocess.run(
            [*UV, '--quiet', *args], capture_output=True, text=True, cwd=self.folder
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def install(self, package: Path | str, required: list[str]) -> None:
        "Install a package; where the oldest is wanted, `required` has to be named, too: the choice is made among what is named."
        how = (*required, '--resolution', 'lowest-direct') if self.oldest else ()
        self.uv('pip', 'install', '--python', self.python, package, *how)

    def versions(self) -> dict[str, str]:
        "Package -> version of everything that is installed."
        found = json.loads(self.uv('pip', 'list', '--python', self.python, '--format', 'json'))
        return {package['name']: package['version'] for package in found}

    def check(self) -> None:
        "Refuse an environment in which a package lacks something or has it in a wrong version."
        self.uv('pip', 'check', '--python', self.python)

    def script(self, program: str, *args: str) -> subprocess.CompletedProcess:
        "Run an installed program in a process of its own."
        return subprocess.run(
            [self.python.parent / program, *args],
            cwd=self.empty,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=600,
        )

    def __call__(self, program: str, *args: str, code: int = 0) -> str:
        "Run a command, or `python -c code`, in a fork of a process that has imported PyTorch: its output."
        done = self.server.run(program, *args, cwd=self.empty)
        self.commands = self.server.commands
        assert done.returncode == code, done.stdout + done.stderr
        return (done.stdout if code == 0 else done.stderr).strip()

    def close(self) -> None:
        self.server.close()
