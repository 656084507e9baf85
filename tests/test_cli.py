"The commands as a shell sees them: help, one-line errors, and what they leave behind."
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bdense_nb.core import load_tensors
from bdense_nb.students import load_student

COMMANDS = ('bdense_demo', 'bdense_teach', 'bdense_distill', 'bdense_search', 'bdense_sample', 'bdense_evaluate', 'bdense_export')


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
    ('bdense_distill', ['out', '--start_steps', '64'], 'start_steps is not an option of this host'),
    ('bdense_distill', ['out', '--preset_name', 'pd', '--pool', '128'], 'pool is not an option of this host'),
    ('bdense_distill', ['out', '--preset_name', 'fashion_mnist_pd', '--nfe', '3'], 'end_steps times a power of substeps'),
    ('bdense_distill', ['out', '--preset_name', 'fashion_mnist_pd', '--nfe', '4,2'], 'several step counts belong to SFD'),
    ('bdense_distill', ['out', '--nfe', '2,x'], 'nfe must be a whole number'),
    ('bdense_distill', ['out', '--weights_end', 'late'], "unknown branch weights 'late'"),
    ('bdense_teach', ['out', '--data', 'cats'], "unknown data 'cats'; choose one of: fashion_mnist"),
    ('bdense_teach', ['out', '--data', 'ring', '--steps', '0'], 'steps must be at least 1, got 0'),
    ('bdense_teach', ['out', '--path', 'nowhere'], 'no such data file: nowhere'),
    ('bdense_search', ['out', '--seeds', '2'], 'seeds must be at least 3, got 2'),
    ('bdense_search', ['out', '--preset_name', 'pd'], 'Progressive'),
    ('bdense_sample', ['nowhere'], 'nowhere holds no denoiser'),
    ('bdense_evaluate', ['nowhere'], 'nowhere holds no denoiser'),
    ('bdense_export', ['nowhere', 'out'], 'nowhere holds no denoiser'),
    ('bdense_demo', ['--steps', '0'], 'steps must be at least 1, got 0'),
    ('bdense_demo', ['--n', '1'], 'n must be at least 2, got 1'),
    ('bdense_demo', ['--out', '/dev/null'], 'cannot be a folder'),
    ('bdense_sample', ['nowhere', '--out', 'samples.safetensors'], 'out must name a .png file'),
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


@pytest.mark.parametrize('change', [['--data', 'ring'], ['--batch', '16']], ids=['data', 'batch'])
def test_a_folder_with_another_run_is_refused(change, tmp_path):
    args = ['teacher', '--data', 'moons', '--steps', '4', '--batch', '8']
    assert run('bdense_teach', *args, cwd=tmp_path).returncode == 0
    before = (tmp_path/'teacher'/'config.json').read_bytes()
    done = run('bdense_teach', *args, *change, cwd=tmp_path)
    assert done.returncode == 1 and 'was made with another configuration' in done.stderr
    assert (tmp_path/'teacher'/'config.json').read_bytes() == before


def test_a_plane_teacher_is_distilled_and_sampled_from_the_shell(tmp_path):
    budget = ['--preset_name', 'demo', '--steps', '2', '--batch', '8', '--pool', '8']
    assert run('bdense_teach', 'teacher', '--data', 'moons', '--steps', '4', '--batch', '8', cwd=tmp_path).returncode == 0
    assert run('bdense_teach', 'other', '--data', 'ring', '--steps', '4', '--batch', '8', cwd=tmp_path).returncode == 0
    assert run('bdense_distill', 'student', '--teacher', 'teacher', *budget, cwd=tmp_path).returncode == 0
    assert run('bdense_sample', 'student', '--n', '5', cwd=tmp_path).returncode == 0
    assert load_tensors(tmp_path/'samples.safetensors')[0]['samples'].shape == (5, 2)
    done = run('bdense_distill', 'student', '--teacher', 'other', *budget, cwd=tmp_path)   # its checkpoints are another teacher's
    assert done.returncode == 1 and 'was made with another configuration (teacher:' in done.stderr


def test_both_hosts_and_their_variants_from_the_shell(tmp_path):
    budget = ['--steps', '2', '--batch', '8', '--branches', '1']
    pool = ['--preset_name', 'demo', '--pool', '8']
    for command in (['bdense_teach', 'teacher', '--data', 'moons', '--steps', '4', '--batch', '8'],
                    ['bdense_distill', 'halved', '--teacher', 'teacher', '--preset_name', 'fashion_mnist_pd', '--start_steps', '8', '--nfe', '2', *budget],
                    ['bdense_distill', 'several', '--teacher', 'teacher', '--nfe', '1,5', '--bank', 'bank', *pool, *budget],
                    ['bdense_distill', 'five', '--teacher', 'teacher', '--nfe', '5', '--bank', 'bank', *pool, *budget],
                    ['bdense_distill', 'one', '--teacher', 'five', *pool, *budget],
                    ['bdense_sample', 'several', '--nfe', '5', '--n', '3', '--out', 'several.png'],
                    ['bdense_sample', 'one', '--n', '3', '--out', 'one.png']):
        done = run(*command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path/'bank').iterdir()} == {'nfe-1', 'nfe-5'}
    assert [load_student(tmp_path/name).nfe for name in ('halved', 'several', 'five', 'one')] == [2, (1, 5), 5, 1]
    done = run('bdense_sample', 'several', '--n', '3', cwd=tmp_path)
    assert done.returncode == 1 and 'holds a student for 1, 5 NFE: say which with --nfe' in done.stderr
    done = run('bdense_sample', 'one', '--nfe', '2', cwd=tmp_path)
    assert done.returncode == 1 and 'holds a student for 1 NFE, not 2' in done.stderr


def test_ctrl_c_ends_in_one_line_and_the_run_goes_on(tmp_path):
    args = [Path(sys.executable).parent/'bdense_teach', 'teacher', '--data', 'moons', '--steps', '3000', '--batch', '32', '--checkpoint_every', '50']
    process = subprocess.Popen(args, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(tmp_path.glob('teacher/checkpoints/checkpoint-*')): time.sleep(.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.startswith('bdense_teach: stopped') and err.count('\n') == 1, err
    assert list(tmp_path.glob('teacher/checkpoints/checkpoint-*'))
