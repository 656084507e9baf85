"The commands as a shell sees them: help, one-line errors, and what they leave behind."
import json
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = ('bdense_demo', 'bdense_teach', 'bdense_distill', 'bdense_sample', 'bdense_evaluate')


def run(command: str, *args: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    return subprocess.run([Path(sys.executable).parent/command, *args], cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize('command', COMMANDS)
def test_help_explains_every_option(command):
    done = run(command, '--help')
    assert done.returncode == 0, done.stderr
    options = [line for line in done.stdout.split('options:')[1].splitlines() if line.startswith('  -')]
    assert len(options) > 1 and done.stdout.startswith(f'usage: {command}')
    assert all(line.split('  ')[1:] for line in options)


@pytest.mark.parametrize('command, args, says', [
    ('bdense_distill', ['out', '--preset_name', 'dmo'], "unknown preset 'dmo'; choose one of: demo"),
    ('bdense_distill', ['out', '--branches', '0'], 'K must be at least 1, got 0'),
    ('bdense_distill', ['out', '--branches', '3'], 'K=3'),
    ('bdense_distill', ['out', '--weights', '1,-1,1,1'], 'non-negative'),
    ('bdense_distill', ['out', '--weights', '1,2'], 'K=4'),
    ('bdense_distill', ['out', '--teacher', 'nobody'], "unknown teacher 'nobody'; choose one of: fashion_mnist"),
    ('bdense_teach', ['out', '--data', 'cats'], "unknown data 'cats'; choose one of: fashion_mnist"),
    ('bdense_teach', ['out', '--data', 'ring', '--steps', '0'], 'steps must be at least 1, got 0'),
    ('bdense_teach', ['out', '--path', 'nowhere'], 'no such data file: nowhere'),
    ('bdense_sample', ['nowhere'], 'nowhere holds no denoiser'),
    ('bdense_evaluate', ['nowhere'], 'nowhere holds no denoiser'),
    ('bdense_demo', ['--steps', '0'], 'steps must be at least 1, got 0'),
    ('bdense_demo', ['--n', '1'], 'n must be at least 2, got 1'),
])
def test_a_mistake_ends_in_one_line_and_writes_nothing(command, args, says, tmp_path):
    done = run(command, *args, cwd=tmp_path)
    assert done.returncode == 1 and says in done.stderr, done.stderr
    assert done.stderr.startswith(f'{command}: ') and done.stderr.count('\n') == 1 and 'Traceback' not in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_interrupted_teacher_is_resumed_from_the_shell(tmp_path):
    args = ['teacher', '--data', 'moons', '--steps', '30', '--batch', '32', '--checkpoint_every', '10']
    assert run('bdense_teach', *args, cwd=tmp_path).returncode == 0
    whole = (tmp_path/'teacher'/'model.safetensors').read_bytes()
    newest = sorted((tmp_path/'teacher'/'checkpoints').glob('checkpoint-*.safetensors'))[-1]
    newest.unlink()                                                      # as if killed before the last checkpoint
    assert run('bdense_teach', *args, cwd=tmp_path).returncode == 0
    assert (tmp_path/'teacher'/'model.safetensors').read_bytes() == whole
    about = json.loads((tmp_path/'teacher'/'config.json').read_text())['about']
    assert about['command'] == 'bdense_teach ' + ' '.join(args) and about['images_seen'] == 30*32
