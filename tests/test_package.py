"The package as a user gets it: built, installed with what it requires in an empty environment, used without the repository or a network."

import ast
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from environments import ROOT, UV, Environment, build, needs
from extras import EXTRAS, try_extra
from packaging.requirements import Requirement

from run_notebooks import NBS, notebooks

COMMANDS = [script.split('=')[0] for script in needs('console_scripts')]
REQUIRED = [Requirement(need) for need in needs('requirements')]


def shipped() -> set[str]:
    "The data files, as paths inside data/."
    return {
        p.relative_to(ROOT / 'data').as_posix() for p in (ROOT / 'data').rglob('*') if p.is_file()
    }


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp('tree'))


@pytest.fixture(scope='module')
def user(wheel, tmp_path_factory):
    "`user(program, *args)` runs a program where the wheel is installed with the oldest of what it requires."
    made = Environment(tmp_path_factory.mktemp('user'), wheel, oldest=True)
    yield made
    made.close()
    shutil.rmtree(made.folder)  # several GB where hard links cannot be made


def test_sdist_and_wheel_hold_data_and_notebooks(wheel):
    with zipfile.ZipFile(wheel) as z:
        names = set(z.namelist())
    assert {
        n.removeprefix('bdense_nb/assets/') for n in names if n.startswith('bdense_nb/assets/')
    } == shipped()
    course = {p.relative_to(NBS).as_posix() for p in notebooks()}
    assert {
        n.removeprefix('bdense_nb/nbs/') for n in names if n.startswith('bdense_nb/nbs/')
    } == course
    assert any(n.endswith('licenses/LICENSE') for n in names)
    with tarfile.open(next(wheel.parent.glob('*.tar.gz'))) as t:
        names = {n.split('/', 1)[-1] for n in t.getnames()}
    assert {'settings.ini', 'setup.py', 'LICENSE', *(f'data/{n}' for n in shipped())} <= names


def test_description_for_pypi_has_absolute_links(wheel):
    with zipfile.ZipFile(wheel) as z:
        text = z.read(next(n for n in z.namelist() if n.endswith('METADATA'))).decode()
    targets = re.findall(r'\]\(([^)\s]+)\)', text)
    assert any(t.endswith('.png') for t in targets) and all(
        t.startswith(('https://', '#')) for t in targets
    )


def test_the_newest_of_what_it_requires_fits_together(wheel, tmp_path):
    "What it does there is what all other tests see: theirs are the newest, too; `python tests/extras.py newest` installs and runs it."
    for how in (
        ('venv', '--python', sys.executable, tmp_path),
        ('pip', 'install', '--dry-run', '--python', tmp_path, wheel),
    ):
        done = subprocess.run([*UV, *how], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert {f' + {need.name}==' for need in REQUIRED} <= set(
        re.findall(r'^ \+ [\w-]+==', done.stderr, flags=re.M)
    )


def test_all_that_the_library_imports_is_required():
    "By itself or by an extra, not by something else that is required."
    asked = {
        need
        for key in ('requirements', *(f'{extra}_requirements' for extra in EXTRAS))
        for need in needs(key)
    }
    provided = {Requirement(need).name.lower() for need in asked}
    trees = [ast.parse(path.read_text()) for path in (ROOT / 'bdense_nb').rglob('*.py')]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in nodes if isinstance(n, ast.ImportFrom) and not n.level}
    foreign = {name.split('.')[0] for name in names} - sys.stdlib_module_names - {'bdense_nb'}
    missing = {name for name in foreign if name.lower().replace('_', '-') not in provided}
    assert {'torch', 'tyro'} <= foreign
    assert missing <= {'PIL', 'huggingface_hub'}, (
        'Pillow comes with torchvision, the hub with accelerate'
    )


def test_what_it_requires_is_whole_and_has_no_development_tools(user):
    user.check()
    versions = user.versions()
    developers = {
        'fastcore',
        'nbdev',
        'execnb',
        'pytest',
        'jupyterlab',
        'ipywidgets',
        'optuna',
        'diffusers',
        'onnx',
    }
    assert not developers & versions.keys()
    lowest = {
        need.name: spec.version
        for need in REQUIRED
        for spec in need.specifier
        if spec.operator == '>='
    }
    assert all(
        versions[name].split('+')[0].startswith(version) for name, version in lowest.items()
    ), versions


def test_every_module_imports_and_those_for_an_extra_name_it(user):
    modules = sorted(
        '.'.join(p.relative_to(ROOT / 'bdense_nb').with_suffix('').parts)
        for p in (ROOT / 'bdense_nb').rglob('[a-z]*.py')
    )
    tries = '\n'.join(
        [
            'import importlib, bdense_nb, pathlib',
            f'assert pathlib.Path(bdense_nb.__file__).parent == pathlib.Path({str(user.packages / "bdense_nb")!r})',
            f'for name in {modules}:',
            '    try: importlib.import_module(f"bdense_nb.{name}")',
            '    except ImportError as e: print(name, e)',
        ]
    )
    for line in user('python', '-c', tries).splitlines():
        assert re.search(r'pip install .?"?bdense-nb\[(\w+)\]', line), line


def test_the_network_is_shut(user):
    code = 'import socket\ntry: socket.create_connection(("127.0.0.1", 9), 1)\nexcept OSError as e: print(e)'
    assert 'no network in this test' in user('python', '-c', code)


@pytest.mark.parametrize('command', COMMANDS)
def test_commands_explain_themselves(user, command):
    assert (user.packages.parents[2] / 'bin' / command).is_file()
    assert 'usage' in user(command, '--help').lower()


def test_a_teacher_is_made_distilled_sampled_measured_and_exported(user):
    user('bdense_teach', 'plane', '--data', 'moons', '--steps', '2', '--batch', '8')
    user(
        'bdense_distill',
        'student',
        '--teacher',
        'plane',
        '--preset',
        'demo',
        '--steps',
        '1',
        '--batch',
        '4',
        '--pool',
        '4',
    )
    user('bdense_sample', 'student', '--n', '2', '--out', 'two.png')
    user('bdense_evaluate', 'student', '--teacher', 'plane', '--n', '4', '--out', 'figures.json')
    user('bdense_export', 'student', 'exported')
    written = {
        'student/model.safetensors',
        'two.safetensors',
        'figures.json',
        'exported/sampling.json',
    }
    assert all((user.empty / name).stat().st_size for name in written)


def test_a_shipped_teacher_and_its_images(user):
    code = (
        'import torch; from bdense_nb.diffusion.stored import load_teacher; from bdense_nb.diffusion.data import fashion_mnist;'
        'print(list(load_teacher()(torch.zeros(2, 1, 28, 28), 1.).shape), len(fashion_mnist("test")[0]))'
    )
    assert user('python', '-c', code) == '[2, 1, 28, 28] 10000'


def test_the_course_is_copied_by_an_installed_script(user):
    done = user.script('bdense_notebooks', 'course')
    assert done.returncode == 0, done.stderr
    again = user('bdense_notebooks', 'course')
    assert (
        'written' in done.stdout
        and 'same in course' in again
        and 'open them: jupyter lab course' in again
    )
    copied = {
        p.relative_to(user.empty / 'course').as_posix()
        for p in (user.empty / 'course').rglob('*.ipynb')
    }
    assert copied == {p.relative_to(NBS).as_posix() for p in notebooks()}


@pytest.mark.parametrize('extra', ['search'])  # `python tests/extras.py` tries them all
def test_an_extra_does_its_job(user, extra):
    try_extra(user, extra)


def test_every_extra_is_tried():
    assert {*needs('extras'), 'notebooks'} == set(EXTRAS)
