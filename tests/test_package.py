"The package as a user gets it: built, installed in an empty environment, used from an empty folder without the repository or a network."
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

from run_notebooks import NBS, notebooks

SOURCES = ('bdense_nb', 'data', 'nbs', 'settings.ini', 'setup.py', 'pyproject.toml', 'MANIFEST.in', 'LICENSE', 'README.md', 'CHANGELOG.md')
settings = ConfigParser(delimiters=['='])
settings.read(Path(__file__).resolve().parent.parent/'settings.ini', encoding='utf-8')
COMMANDS = [script.split('=')[0] for script in settings['DEFAULT']['console_scripts'].split()]
NO_NETWORK = '''
import socket
def refuse(self, address, *_):
    if self.family != socket.AF_UNIX: raise OSError(f'no network in this test: {address}')
socket.socket.connect = socket.socket.connect_ex = refuse
'''


def shipped(root: Path) -> set[str]:
    "The data files, as paths inside data/."
    return {p.relative_to(root/'data').as_posix() for p in (root/'data').rglob('*') if p.is_file()}


@pytest.fixture(scope='module')
def built(root, tmp_path_factory) -> Path:
    "A folder with the sdist, and the wheel that was built from it."
    tree = tmp_path_factory.mktemp('tree')
    for name in SOURCES:
        if (root/name).is_dir(): shutil.copytree(root/name, tree/name, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', '*.tmp'))
        else: shutil.copy(root/name, tree)
    build = subprocess.run([sys.executable, '-m', 'build', '--no-isolation'], cwd=tree, capture_output=True, text=True)
    assert build.returncode == 0, build.stdout + build.stderr
    return tree/'dist'


@pytest.fixture(scope='module')
def installed(built, tmp_path_factory):
    "`installed(program, *args)` runs a program of an environment that holds the wheel; libraries come from this one."
    env_dir = tmp_path_factory.mktemp('user')/'env'
    venv.create(env_dir, symlinks=True)
    python = env_dir/'bin'/'python'
    wheel, = built.glob('*.whl')
    pip = [sys.executable, '-m', 'pip', '--python', python, 'install', '--quiet', '--no-deps', '--no-index', '--disable-pip-version-check']
    subprocess.run([*pip, wheel], check=True)
    here, there = (next(Path(p).glob('lib/python*/site-packages')) for p in (sys.prefix, env_dir))
    (there/'zz_libraries.pth').write_text(f'{here}\n')  # a .pth inside that folder (the editable install's) is not followed
    (there/'no_network.py').write_text(NO_NETWORK)
    (there/'no_network.pth').write_text('import no_network\n')
    home, cwd = (tmp_path_factory.mktemp(name) for name in ('home', 'empty'))
    env = {'PATH': os.defpath, 'HOME': str(home), 'TMPDIR': str(home), 'MPLCONFIGDIR': str(home), 'OMP_NUM_THREADS': '1'}

    def run(program: str, *args: str) -> str:
        done = subprocess.run([env_dir/'bin'/program, *args], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()
    run.folder = there
    return run


def test_sdist_and_wheel_hold_data_and_notebooks(root, built):
    with zipfile.ZipFile(next(built.glob('*.whl'))) as z: names = set(z.namelist())
    assert {n.removeprefix('bdense_nb/assets/') for n in names if n.startswith('bdense_nb/assets/')} == shipped(root)
    assert {n.removeprefix('bdense_nb/nbs/') for n in names if n.startswith('bdense_nb/nbs/')} == {p.relative_to(NBS).as_posix() for p in notebooks()}
    assert any(n.endswith('licenses/LICENSE') for n in names)
    with tarfile.open(next(built.glob('*.tar.gz'))) as t: names = {n.split('/', 1)[-1] for n in t.getnames()}
    assert {'settings.ini', 'setup.py', 'LICENSE', *(f'data/{n}' for n in shipped(root))} <= names


def test_description_for_pypi_has_absolute_links(built):
    with zipfile.ZipFile(next(built.glob('*.whl'))) as z: text = z.read(next(n for n in z.namelist() if n.endswith('METADATA'))).decode()
    targets = re.findall(r'\]\(([^)\s]+)\)', text)
    assert any(t.endswith('.png') for t in targets) and all(t.startswith(('https://', '#')) for t in targets)


def test_import_comes_from_the_installed_wheel(installed):
    where = installed('python', '-c', 'import bdense_nb; print(bdense_nb.__file__)')
    assert Path(where).is_relative_to(installed.folder)
    data = installed('python', '-c', 'from bdense_nb.core import data_dir; print(data_dir())')
    assert Path(data) == installed.folder/'bdense_nb'/'assets'


def test_every_module_imports(root, installed):
    modules = sorted(p.stem for p in (root/'bdense_nb').glob('*.py') if p.stem != '__init__')
    installed('python', '-W', 'error::SyntaxWarning', '-c', '; '.join(f'import bdense_nb.{m}' for m in modules))


def test_the_network_is_shut(installed):
    code = 'import socket\ntry: socket.create_connection(("127.0.0.1", 9), 1)\nexcept OSError as e: print(e)'
    assert 'no network in this test' in installed('python', '-c', code)


@pytest.mark.parametrize('command', COMMANDS)
def test_commands_explain_themselves(installed, command):
    assert 'usage' in installed(command, '--help').lower()


def test_shipped_teacher_loads_and_denoises(installed):
    code = ('import torch; from bdense_nb.teachers import load_teacher; D = load_teacher();'
            'print(list(D(torch.zeros(2, 1, 28, 28), 1.).shape))')
    assert installed('python', '-c', code) == '[2, 1, 28, 28]'


def test_the_course_can_be_copied(installed):
    said = installed('bdense_notebooks', 'course')
    again = installed('bdense_notebooks', 'course')
    assert 'written' in said and 'same in course' in again and 'open them: jupyter lab course' in again
    names = installed('python', '-c', "from pathlib import Path; print(*sorted(p.relative_to('course').as_posix() for p in Path('course').rglob('*.ipynb')))")
    assert names.split() == sorted(p.relative_to(NBS).as_posix() for p in notebooks())


def test_shipped_images_load(installed):
    assert installed('python', '-c', "from bdense_nb.data import fashion_mnist; print(len(fashion_mnist('test')[0]))") == '10000'
