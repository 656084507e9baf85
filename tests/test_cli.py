"The commands as a shell sees them: help, answers for programs, one-line errors, exit codes, and what they leave behind."

import contextlib
import dataclasses
import errno
import inspect
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import types
import typing
import warnings
from functools import partial
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image
from conftest import shaken
from bdense_nb.app import shell as cli
from bdense_nb.app import commands, common, comparing, measuring, sources
from bdense_nb.app.commands import new_denoiser, note_pipeline
from bdense_nb.app.common import Networks, Stored, duration
from bdense_nb.app.sources import find_data, find_student, read_data, shape_of
from bdense_nb.app.course import COMMANDS as COURSE
from bdense_nb.app.plans import estimate_run, memory_on_paper
from bdense_nb.app.shell import (
    Command,
    Options,
    call,
    check_launch,
    explain,
    from_shell,
    in_shell,
    parse,
    said,
    spelled,
    words,
)
from bdense_nb.core import data_dir, load_tensors, sample_noise, save_tensors
from bdense_nb.diffusion.data import fashion_mnist, to_pixels
from bdense_nb.diffusion.denoisers import EDMDenoiser, FlowDenoiser, GuidedDenoiser, VPDenoiser
from bdense_nb.diffusion.identity import denoiser_hash
from bdense_nb.diffusion.stored import load_denoiser, save_denoiser
from bdense_nb.diffusion.nets import MLP, UNet
from bdense_nb.diffusion.samplers import ConditionTable
from bdense_nb.diffusion.schedules import linear_alpha_bar
from bdense_nb.distillation.distill import PRESETS, preset
from bdense_nb.distillation.progressive import PDConfig
from bdense_nb.distillation.sfd import SFDConfig
from bdense_nb.distillation.students import Host, Student, VariableStudent, load_student
from bdense_nb.distillation.variable import SFDVConfig, find_step_layer, second_stage
from bdense_nb.evaluation.features import load_space
from bdense_nb.evaluation.metrics import frechet_distance, sliced_wasserstein
from bdense_nb.lab.experiments import EXPERIMENTS, Arm, Experiment
from bdense_nb.lab.search import search_weights
from bdense_nb.lab.worlds import World
from bdense_nb.training.checkpoints import checksum
from bdense_nb.training.config import Hardware, TrainConfig
from warm import WARM, held, in_fork, python, torchrun

COMMANDS = commands.COMMANDS | COURSE


def run(command: str, *args: str, cwd: Path | None = None, **env) -> subprocess.CompletedProcess:
    "In a process of its own, as a shell does it."
    return subprocess.run(
        [Path(sys.executable).parent / command, *args],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | env,
    )


class Shell:
    "The same in this process, which need not import torch again."

    def __init__(self, folder, capsys, monkeypatch):
        self.folder, self.capsys, self.monkeypatch = folder, capsys, monkeypatch
        monkeypatch.chdir(folder)

    def __call__(self, text: str, code: int = 0) -> tuple[str, str]:  # standard output and error
        command, *args = text.split()
        self.monkeypatch.setattr(sys, 'argv', [f'/usr/bin/{command}', *args])
        with pytest.raises(SystemExit) as e:
            getattr(cli, command)()
        out, err = self.capsys.readouterr()
        assert (e.value.code or 0) == code, (out, err)
        return out, err

    def json(self, text: str, code: int = 0) -> dict:
        return json.loads(self(text + ' --json', code)[0])

    def believes(self) -> None:
        "From here on no teacher is asked whether it answers with clean estimates: it has been."
        for room in (commands, measuring):
            self.monkeypatch.setattr(room, 'check_source', lambda *_, **__: None)


@pytest.fixture
def shell(tmp_path, capsys, monkeypatch):
    return Shell(tmp_path, capsys, monkeypatch)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A folder with a teacher of the plane, one of small images, the images, and students of both."
    folder, old = tmp_path_factory.mktemp('made'), Path.cwd()
    os.chdir(folder)
    try:
        torch.manual_seed(0)
        for x, y in zip(*(part[:60] for part in fashion_mnist('test'))):
            if y in (7, 8):
                (kind := folder / 'zoo' / ('bag' if y == 8 else 'shoe')).mkdir(
                    parents=True, exist_ok=True
                )
                Image.fromarray(to_pixels(x[None])[0, 0].numpy()).save(
                    kind / f'{len(list(kind.iterdir()))}.png'
                )
        small = dict(preset_name='demo', steps=1, batch=4, pool=4, teacher='plane')
        cli.bdense_teach('plane', data='moons', steps=2, batch=8)
        cli.bdense_teach('small', data='zoo', size='8', steps=1, batch=4)
        cli.bdense_distill('student', **small)
        cli.bdense_distill('several', nfe='1,5', branches=1, **small)
    finally:
        os.chdir(old)
    return folder


@pytest.fixture
def at(made, shell):
    shell.monkeypatch.chdir(made)
    shell.made = made
    return shell


# --- help and options ---

REACHED = [
    (name, kind) for name, command in COMMANDS.items() for kind in (command.options, *command.hosts)
]


@pytest.mark.parametrize('command', COMMANDS)
def test_help_explains_every_option_and_ends_with_examples(command, shell):
    help, _ = shell(f'{command} --help')
    options, rest = help.split('examples:')
    assert (
        help.startswith(f'usage: {command}') and not set('│╭─') & set(help) and '--json' in options
    )
    for f in dataclasses.fields(COMMANDS[command].options):
        assert f'--{f.name}' in options or f.name.upper() in options or 'FOLDER' in options, f.name
    assert (
        rest.count(f'\n  {command}') == len(COMMANDS[command].examples) >= 2
        and 'exit codes: 0 done' in rest
    )


@pytest.mark.parametrize('command', COMMANDS)
def test_every_example_is_understood(command, monkeypatch):
    for room in (common, commands):
        monkeypatch.setattr(room, 'read_config', lambda path: Stored({}, {}))
    monkeypatch.setattr(commands, 'is_student', lambda name: False)
    for args, does in COMMANDS[command].examples:
        assert does and parse(command, COMMANDS[command], args.split())[0]


OTHER_VALUES = {  # of fields that are bound to others
    'branch_weights': ('uniform', 'uniform'),
    'branch_weights_end': ('uniform', 'uniform'),
    'betas': ('.5,.6', (0.5, 0.6)),
    'shape': ('3,8,8', (3, 8, 8)),
    'size': ('8,4', (8, 4)),
    'K': ('1', 1),
    'start_steps': ('512', 512),
    'end_steps': ('2', 2),
    'log_with': ('tensorboard', ('tensorboard',)),
    'substeps': ('16', 16),
    'pool': ('9000', 9000),
    'warmup': ('1', 1),
    'guidance_interval': ('.5,2.', (0.5, 2.0)),
    'periods': ('day,week', ('day', 'week')),
    'columns': ('a,b', ('a', 'b')),
    'rows': ('0,2', (0, 2)),
    'host': ('test_cli:Straight', 'test_cli:Straight'),
}


def another(kind, name, value):
    "Another value for a field, as options of a shell, and what it becomes."
    hint = typing.get_type_hints(kind)[name]
    hints = [hint, *typing.get_args(hint)]
    choices = [
        c
        for h in hints
        if typing.get_origin(h) is typing.Literal
        for c in typing.get_args(h)
        if c != value
    ]
    if name == 'nfe' and isinstance(value, tuple):
        return '--nfe=4,5', (4, 5)
    if name in OTHER_VALUES:
        word, want = OTHER_VALUES[name]
    elif isinstance(value, bool):
        return f'--{"" if not value else "no_"}{name}', not value
    elif choices:
        word = want = choices[0]
    elif int in hints:
        want = 3 if value is None else value + 1
    elif float in hints:
        want = 0.5 if value is None else value / 2
    else:
        want = 'word'
    return f'--{name}={word if name in OTHER_VALUES or choices else want}', want


ASKED = {'bdense_demo': [], 'bdense_export': ['a', 'b'], 'bdense_evaluate': []}
HOSTS = {
    SFDConfig: [],
    PDConfig: ['--preset_name', 'fashion_mnist_pd'],
    SFDVConfig: ['--nfe', '2,3'],
}
EARLIER = ('preset_name', 'config', 'teacher', 'nfe')  # decide what the other options are


@pytest.mark.parametrize(
    'name, kind', REACHED, ids=lambda v: v if isinstance(v, str) else v.__name__
)
def test_every_field_of_every_configuration_is_reached(name, kind):
    command, start = (
        COMMANDS[name],
        ASKED.get(name, ['a']) + (HOSTS.get(kind, []) if name == 'bdense_distill' else []),
    )

    def parts(*more):
        return {type(part): part for part in parse(name, command, [*start, *more])}[kind]

    before = parts()
    mine = [
        f.name
        for f in dataclasses.fields(kind)
        if kind is not command.options
        or f.name not in EARLIER
        and f.default is not dataclasses.MISSING
    ]
    wanted = {
        n: another(kind, n, getattr(before, n))
        for n in mine
        if n not in ('student', 'teacher_sigmas')
    }
    apart = wanted.keys() & {
        'bank_dtype'
    }  # where the teacher restarts at the student no bank keeps anything
    for names in (wanted.keys() - apart, apart):
        found = parts(*(wanted[n][0] for n in names))  # all at once
        assert {n: getattr(found, n) for n in names} == {n: wanted[n][1] for n in names}
        assert all(getattr(found, n) != getattr(before, n) for n in names)


def test_a_table_of_levels_and_a_student_are_reached():
    args = [
        'a',
        '--preset_name',
        'fashion_mnist_pd',
        '--schedule',
        'teacher',
        '--start_steps',
        '2',
        '--teacher_sigmas',
        '2.,1.,0.',
    ]
    assert parse('bdense_distill', COMMANDS['bdense_distill'], args)[2].teacher_sigmas == (
        2.0,
        1.0,
        0.0,
    )
    assert parse('bdense_evaluate', COMMANDS['bdense_evaluate'], ['s'])[0].student == 's'


def test_options_that_decide_what_the_others_are(made, monkeypatch, tmp_path):
    monkeypatch.chdir(made)

    def cfg(*args):
        return parse('bdense_distill', COMMANDS['bdense_distill'], ['x', *args])[2]

    (tmp_path / 'mine.json').write_text('{"K": 2, "steps": 7}')
    assert (
        isinstance(cfg('--preset_name', 'cifar10-pd'), PDConfig)
        and cfg('--preset=demo').pool == 1536
    )
    assert cfg('--config', f'{tmp_path}/mine.json', '--steps', '8') == preset(
        'fashion_mnist', K=2, steps=8
    )
    for file in ('student/command.json', 'student/config.json', 'student/checkpoints/run.json'):
        assert dataclasses.asdict(cfg('--config', file, '--lr', '.5')) == json.loads(
            json.dumps(load_student('student').about['config']), object_hook=tuples
        ) | dict(lr=0.5)
    assert (
        isinstance(cfg('--config', 'several/config.json'), SFDVConfig)
        and cfg('--teacher', 'several').substeps == 3
    )
    (tmp_path / 'bad.json').write_text('{"Kk": 2}')
    with pytest.raises(ValueError, match='bad.json names Kk, which SFDConfig does not have'):
        cfg('--config', f'{tmp_path}/bad.json')


@dataclasses.dataclass(frozen=True)
class Straight(Host):
    "A host of one's own."

    K: int = 4
    shape: tuple[int, ...] = (2,)
    host = 'straight'


def test_a_file_says_whose_configuration_it_holds(made, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def cfg(name, *args):
        return parse('bdense_distill', COMMANDS['bdense_distill'], ['x', '--config', name, *args])[
            2
        ]

    for name in ('command.json', 'checkpoints/run.json'):
        assert json.loads((made / 'student' / name).read_text())['host'] == 'sfd', name
    mine = dict(K=2, shape=[2])
    for name, found in {
        'run.json': mine | dict(host='straight', teacher='x'),
        'command.json': dict(config=mine, host='straight'),
        'config.json': dict(about=dict(config=mine, host='straight')),
        'pd.json': dict(K=2, host='pd'),
        'nobody.json': mine | dict(host='nobody'),
    }.items():
        Path(name).write_text(json.dumps(found))
    for name in ('run.json', 'command.json', 'config.json'):
        assert cfg(name, '--preset_name', 'fashion_mnist_pd') == Straight(2)
    assert cfg('pd.json') == PDConfig(K=2)
    with pytest.raises(ValueError, match="unknown host 'nobody'; choose one of: "):
        cfg('nobody.json')


def test_what_is_typed_is_laid_over_a_file_before_it_is_checked(made, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def cfg(name, *args, command='bdense_distill'):
        return parse(command, COMMANDS[command], ['x', '--config', str(name), *args])[2]

    for name, found in dict(weights=dict(branch_weights=[0.1, 0.9]), two=dict(K='two')).items():
        Path(f'{name}.json').write_text(json.dumps(found))
    several = cfg(made / 'student', '--nfe', '2,3')
    assert (several.nfe, several.steps, several.title) == ((2, 3), 1, 'SFD-v')
    mended = cfg('weights.json', '--branches=2')
    assert (mended.K, mended.branch_weights) == (2, (0.1, 0.9))
    Path('t.json').write_text(json.dumps(dict(steps=9, warmup=4)))
    taught = cfg('t.json', '--steps', '2', '--warmup', '1', command='bdense_teach')
    assert (taught.steps, taught.warmup) == (2, 1)
    for name, args, why in (
        ('weights', [], 'weights.json: branch weights need'),
        ('weights', ['--lr', '.1'], 'weights.json: branch weights need'),
        ('two', ['--steps', '8'], 'two.json: K must be'),
        ('two', ['--K', '2', '--lr', '-1'], 'lr must be'),
    ):
        with pytest.raises(ValueError, match=f'^{why}'):
            cfg(f'{name}.json', *args)
    with pytest.raises(ValueError, match='^warmup must be less'):
        cfg('t.json', '--steps', '2', command='bdense_teach')


def seen(name, monkeypatch):  # what reaches a function, at which the command is stopped
    found = []

    def stop(*args, **how):
        found.append((args, how))
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, name, stop)
    return found


def test_a_file_asks_for_its_fields_as_a_line_does(shell):
    "What it says is not fitted to the teacher; what it leaves open is."
    for name, kind in dict(
        plane=EDMDenoiser,
        vp=partial(VPDenoiser, alpha_bar=linear_alpha_bar(100)),
        flow=FlowDenoiser,
    ).items():
        save_denoiser(kind(MLP(width=8, depth=1)), Path(name), dict(data='moons', shape=[2]))
    pd, found = (
        dict(start_steps=4, end_steps=2, updates=1, batch=4),
        seen('distill', shell.monkeypatch),
    )

    def cfg(teacher, config, args='', command='bdense_distill'):
        Path('mine.json').write_text(json.dumps(config))
        shell(
            f'{command} {command}-x --teacher {teacher} --config mine.json --trust_teacher {args}',
            130,
        )
        return found.pop()[0][1]

    for more, schedule in ((dict(schedule='pd_cosine'), 'pd_cosine'), ({}, 'teacher')):
        assert cfg('vp', pd | more, '--preset_name fashion_mnist_pd').schedule == schedule
    assert cfg('plane', dict(sigma_max=9.0, pool=4, batch=4, steps=1)).sigma_max == 9.0
    assert (free := cfg('flow', dict(K=2, pool=4, batch=4, steps=1))).K == 2 and (
        free.schedule,
        free.afs,
    ) == ('flow', False)
    Path('mycode.py').write_text(
        'from bdense_nb.diffusion.stored import load_denoiser\ndef teacher(): return load_denoiser("plane")'
    )
    assert cfg('mycode:teacher', dict(shape=[2], pool=4, batch=4, steps=1)).shape == (2,)
    found = seen('search_weights', shell.monkeypatch)
    assert (
        cfg(
            'plane', dict(sigma_max=9.0, pool=4, batch=4, steps=1), '--n 4', 'bdense_search'
        ).sigma_max
        == 9.0
    )
    shell.monkeypatch.setattr(comparing, 'compare', commands.search_weights)
    assert (
        cfg(
            'plane', dict(sigma_max=9.0, pool=4, batch=4, steps=1), '--n 4', 'bdense_compare'
        ).sigma_max
        == 9.0
    )
    sys.modules.pop('mycode')


def test_the_options_of_a_start_are_those_of_its_repetition(tmp_path, capsys, monkeypatch):
    "Unless others are typed; where it writes is no part of them."
    monkeypatch.chdir(tmp_path)

    def read(command, *args):
        return parse(command, (COMMANDS | comparing.COMMANDS)[command], ['new', *args])

    def again(command, *args):
        return [*read(command, '--config', 'command.json', *args), capsys.readouterr().out]

    def note(command, *args):
        options, line, cfg, hardware = read(command, *args)
        common.note_start('.', line, options, config=cfg, hardware=hardware)
        return options

    first = note(
        'bdense_distill',
        '--teacher',
        'plane',
        '--K=2',
        '--guidance_scale=3',
        '--guidance_interval=.5,2',
        '--overwrite',
        '--bank',
        'there',
        '--accumulate',
        '2',
    )
    options, line, cfg, hardware, out = again('bdense_distill')
    assert (
        options == dataclasses.replace(first, config='command.json', overwrite=False, bank=None)
        and (cfg.K, hardware.accumulate) == (2, 2)
        and line.text == 'bdense_distill new --config command.json'
    )
    assert (
        out
        == 'command.json also sets --teacher=plane --guidance_scale=3.0 --guidance_interval=0.5,2.0 --accumulate=2\n'
    )
    options, line, cfg, hardware, out = again(
        'bdense_distill',
        '--teacher',
        'small',
        '--guidance-scale=1',
        '--accumulate=1',
        '--size',
        '8',
    )
    assert (
        (options.teacher, options.guidance_scale, options.guidance_interval, hardware.accumulate)
        == ('small', 1.0, (0.5, 2.0), 1)
        and 'shape' not in line.given
        and 'K' in line.given
    )
    assert out == 'command.json also sets --guidance_interval=0.5,2.0\n'
    assert again('bdense_compare', '--seeds=4')[0].guidance_scale == 3.0
    assert again('bdense_search')[0].guidance_interval == (0.5, 2.0)
    first = note(
        'bdense_teach', '--data', 'photos', '--size', '8', '--preset', 'quick', '--batch', '32'
    )
    assert again('bdense_teach')[0] == dataclasses.replace(first, config='command.json')
    for name, found in (
        (
            'config.json',
            dict(command='bdense_distill x --teacher plane', about=dict(config=dict(K=2))),
        ),
        ('run.json', dict(K=2, teacher='1234')),
    ):
        Path(name).write_text(json.dumps(found))
        options, line, cfg, *_ = read('bdense_distill', '--config', name)
        assert (
            options == dataclasses.replace(read('bdense_distill')[0], config=name)
            and cfg.K == 2
            and not capsys.readouterr().out
        )


def test_a_start_is_noted_before_the_work_and_a_refused_one_is_not(shell):
    save_denoiser(EDMDenoiser(MLP(width=8, depth=1)), Path('plane'), dict(data='moons', shape=[2]))
    small = '--teacher plane --K 2 --steps 1 --batch 4 --pool 4 --trust_teacher'
    for does, line in dict(
        train_teacher='bdense_teach {} --data moons --steps 1 --batch 4',
        distill=f'bdense_distill {{}} {small}',
        search_weights=f'bdense_search {{}} {small}',
    ).items():
        out = line.split()[0]
        seen(does, shell.monkeypatch)
        shell(line.format(out), 130)
        kept = (Path(out) / 'command.json').read_bytes()
        assert (
            json.loads(kept)['command'] == line.format(out)
            and json.loads(kept)['config']['steps'] == 1
        )

        def refuses(*args, **how):
            raise ValueError('another run')

        shell.monkeypatch.setattr(commands, does, refuses)
        for folder in (out, f'new-{out}'):
            assert 'another run' in shell(line.format(folder) + ' --seed 1', 1)[1]
        assert (Path(out) / 'command.json').read_bytes() == kept and not (
            Path(f'new-{out}') / 'command.json'
        ).exists()


def test_a_run_that_ends_before_its_first_iteration_leaves_nothing(shell):
    save_denoiser(EDMDenoiser(MLP(width=8, depth=1)), Path('plane'), dict(data='moons', shape=[2]))
    line = 'bdense_distill s --teacher plane --batch 4 --pool 4 --trust_teacher --steps 1'

    def fails(*args, **how):
        raise ValueError('no such step')

    with shell.monkeypatch.context() as m:
        m.setattr('bdense_nb.distillation.sfd.sfd_step', lambda *args: fails)
        assert 'no such step' in shell(line, 1)[1]
    assert {p.name for p in Path('s').iterdir()} <= {'.lock'}
    shell(line + ' --K 2')  # other settings


def test_what_is_written_of_a_finished_run_stays_true(shell):
    "Asked for again, it computes nothing; one that goes on with other hardware keeps both."
    save_denoiser(EDMDenoiser(MLP(width=8, depth=1)), Path('plane'), dict(data='moons', shape=[2]))
    line = 'bdense_distill s --teacher plane --lr_schedule constant --batch 4 --trust_teacher --steps 1'
    shell(line)
    note = Path('s/command.json').read_bytes()
    for again in (line + ' --precision bf16', 'bdense_distill s --config s'):
        shell(again)
        about = json.loads(Path('s/config.json').read_text())['about']
        assert Path('s/command.json').read_bytes() == note
        assert about['command'].startswith(line[:20]) and '--config' not in about['command']
        assert about['computed_with']['precision'] == 'auto' and 'earlier' not in about
    shell(line.replace('steps 1', 'steps 2') + ' --precision bf16')
    note = json.loads(Path('s/command.json').read_text())
    about = json.loads(Path('s/config.json').read_text())['about']
    assert note['hardware']['precision'] == about['computed_with']['precision'] == 'bf16'
    assert [e['hardware']['precision'] for e in note['earlier']] == ['auto']
    assert about['earlier'] == note['earlier'] and 'steps 1' in note['earlier'][0]['command']
    shutil.rmtree('s/checkpoints')  # so it begins anew: another run would replace it
    assert 'none of its checkpoints' in shell(line + ' --seed 1', 1)[1]
    shell(line.replace('steps 1', 'steps 2') + ' --tf32')
    about = json.loads(Path('s/config.json').read_text())['about']
    assert about['computed_with']['precision'] == 'auto' and 'earlier' not in about


def test_what_a_file_holds_is_used_or_refused_by_its_name(shell):
    def says(content, args='', code=1, name='mine.json', command='bdense_distill'):
        Path(name).write_text(json.dumps(content))
        return ''.join(shell(f'{command} x --config {name} {args} --dry_run', code))

    cfg = dict(K=2)
    for content, told in (
        (
            dict(config=cfg, hardwear={}),
            'mine.json names hardwear, which such a file does not have: take it out, or did you mean hardware?',
        ),
        (
            dict(config=cfg, options=dict(guidance=3)),
            'names guidance, which a file for bdense_distill does not have: take it out, or did you mean guidance_scale?',
        ),
        (dict(config=dict(Kk=2)), 'mine.json names Kk, which SFDConfig does not have'),
        (dict(config=dict(K='two')), 'mine.json: K must be a whole number'),
        (dict(config=cfg, hardware=dict(precision='x')), 'mine.json: precision must be one of'),
        (
            dict(command='bdense_teach x', config=cfg),
            'mine.json is of bdense_teach, and bdense_distill does',
        ),
        (
            dict(command='bdense_nothing x', config=cfg),
            'mine.json names the command bdense_nothing, which is none here: take it out',
        ),
        (
            dict(command='bdense_distill x', config=cfg, options=dict(gone=1)),  # an older version
            'mine.json names gone, which a file for bdense_distill does not have: take it out; it',
        ),
        (
            dict(command='bdense_distill x', config=cfg, options=dict(overwrite=True)),
            'mine.json names overwrite, which a file for bdense_distill does not have: take it out',
        ),
        (dict(config=cfg, options=dict(trust_teacher='yes')), 'mine.json: trust_teacher must be'),
        (dict(config=[2]), 'mine.json: config must be names with values'),
        (dict(config=cfg, hardware=[2]), 'mine.json: hardware must be names with values'),
        (dict(config=cfg, about={}), 'mine.json holds no configuration: name the folder'),
    ):
        assert told in says(content), content
    assert 'mine.json: --guidance_scale must be a number, got ' in says(
        dict(config=cfg, options=dict(guidance_scale='big')), code=2
    )
    assert '--steps must be a whole number, got ' in shell('bdense_teach x --steps many', 2)[1]
    Path('empty').mkdir()
    assert (
        'empty is a folder without command.json' in shell('bdense_distill x --config empty', 1)[1]
    )
    for name, found in dict(
        mine=dict(about=dict(config=cfg, anything=1), hash=2),
        result=dict(config=cfg, bdense_nb='1', seeds=3),
    ).items():  # what Python has kept with a student, and what a run has written
        Path(f'{name}.json').write_text(json.dumps(found))
        assert common.read_config(f'{name}.json').config == cfg
    Path('empty/command.json').write_text(json.dumps(dict(config=cfg, options=dict(data='a b'))))
    parse(
        'bdense_distill', COMMANDS['bdense_distill'], ['x', '--config', 'empty', '--preset', 'demo']
    )
    assert "empty also sets '--data=a b'" in shell.capsys.readouterr().out
    older = dict.fromkeys(common.HERE, True) | dict(data='b')  # which has written all of its start
    older = dict(command='bdense_distill x', config=cfg, options=older)
    Path('older.json').write_text(json.dumps(older))
    found = parse('bdense_distill', COMMANDS['bdense_distill'], ['x', '--config', 'older.json'])
    assert (found[0].data, found[0].overwrite, found[0].out) == ('b', False, 'x')
    assert 'config.json: name empty, which has one' in shell('bdense_distill x --config .', 1)[1]
    Path('pd.json').write_text(json.dumps(dict(cfg, host='pd')))
    parse(
        'bdense_distill',
        COMMANDS['bdense_distill'],
        ['x', '--config', 'pd.json', '--preset', 'demo'],
    )
    assert 'pd.json is for the host pd, not for sfd' in shell.capsys.readouterr().out


def test_a_dry_run_says_what_becomes_of_the_run_that_is_there(shell):
    save_denoiser(EDMDenoiser(MLP(width=8, depth=1)), Path('plane'), dict(data='moons', shape=[2]))
    for name in ('distill_plan', 'teach_plan', 'on_one_gpu'):
        shell.monkeypatch.setattr(commands, name, lambda *how: {})
    for line in (
        'bdense_distill s --teacher plane --preset demo --batch 4 --pool 4 --steps 2 --trust_teacher',
        'bdense_teach t --data ring --batch 4 --steps 2',
        'bdense_distill pd --teacher plane --preset fashion_mnist_pd --start_steps 4 --nfe 2 --batch 4 --steps 2 --trust_teacher',
    ):
        assert shell.json(line + ' --dry_run')['run'] == 'begins'
        shell.monkeypatch.setattr(common, 'print_plan', lambda *plan: None)
        shell(line)
        found = shell.json(line + ' --dry_run')['run']
        assert found.startswith('is finished: iteration 2 of 2')
        told = shell(line)[0]
        assert 'the run is finished: iteration 2 of 2' in told
        assert 'teacher trajectories' not in told and 'a second' not in told
        assert 'would be refused: ' in shell.json(line + ' --lr .5 --dry_run')['run']
        for name in ('config.json', 'model.safetensors'):  # a kill before they were written
            (Path(line.split()[1]) / name).unlink()
        assert shell.json(line + ' --dry_run')['run'].startswith('goes on from iteration 2 of 2')
        begins = shell.json(line + ' --lr .5 --dry_run --overwrite')['run']
        assert begins.startswith('begins, and replaces one of 2 iterations')
        shutil.rmtree(Path(line.split()[1]) / 'checkpoints')
        assert shell.json(line + ' --dry_run --overwrite')['run'] == 'begins'
        (Path(line.split()[1]) / 'config.json').touch()
        begins = shell.json(line + ' --dry_run --overwrite')['run']
        assert begins == 'begins, and replaces what another run has made'


def test_walks_that_restart_at_the_student_are_not_banked():
    cfg = preset('fashion_mnist')
    local = dataclasses.replace(cfg, teacher_states='local')
    assert commands.is_banked(cfg, None) and not commands.is_banked(local, None)


def test_a_dry_run_refuses_what_the_start_refuses(at, tmp_path, monkeypatch):
    for name in ('distill_plan', 'teach_plan', 'on_one_gpu'):
        monkeypatch.setattr(commands, name, lambda *how: {})
    monkeypatch.setattr(commands, 'announce', lambda *how: None)
    sfd = f'bdense_distill {tmp_path}/%s --teacher plane --preset demo --batch 4 --pool 4'
    pd = f'bdense_distill {tmp_path}/pd --teacher plane --preset fashion_mnist_pd --nfe 2 --batch 4'
    teach = f'bdense_teach {tmp_path}/t --batch 4 --steps 2 --data'
    pd += ' --start_steps 4 --updates 1 --data'
    bank = f' --bank {tmp_path}/bk'
    flat = sfd % 'flat' + ' --lr_schedule constant --steps'
    for line in (sfd % 's' + bank + ' --steps 2', flat + ' 2', teach + ' ring', pd + ' ring'):
        at(line)
    for line, why in {
        sfd % 's' + bank + ' --steps 3': 'with the cosine schedule',
        flat + ' 1': 'steps: 2 there, 1 now',
        teach + ' moons': 'data: ',
        pd + ' moons': 'data: ',
        sfd % 'new' + bank + ' --steps 2 --seed 3': 'seeds: ',
        sfd % 'flat' + ' --overwrite --accumulate 3': 'cannot be cut into 3 equal parts',
        sfd % 'flat' + ' --overwrite --shard': 'needs several processes',
    }.items():
        found = at.json(f'{line} --dry_run')['run']
        assert found.startswith('would be refused: ') and why in found, line
        monkeypatch.setattr(commands, 'started', None)  # the start is refused before it
        why = found.removeprefix('would be refused: ').replace('=True', '')
        assert why[:80] in at(line, 1)[1].replace('--', '')


def test_a_host_of_ones_own_is_named_in_the_line(shell):
    Path('mine.py').write_text('from test_cli import Straight')
    found = parse(
        'bdense_distill', COMMANDS['bdense_distill'], ['x', '--host', 'mine:Straight', '--K', '2']
    )
    assert found[2] == Straight(2)
    for name, why in {
        'builtins:dict': 'builtins:dict makes a dict',
        'test_cli:Host': 'test_cli:Host makes a Host',
        'test_cli:tuples': 'tuples() missing 1 required positional argument',
    }.items():
        assert why in shell(f'bdense_distill x --host {name}', 1)[1]
    parse(
        'bdense_distill', COMMANDS['bdense_distill'], 'x --host mine:Straight --preset demo'.split()
    )
    assert 'preset_name is not used' in shell.capsys.readouterr().out


def test_what_a_file_holds_is_of_its_kind(shell):
    for found, why in (
        (dict(host='nobody'), 'a.json: unknown host .*--host module:Class'),
        (dict(options=[1]), 'a.json: options must be'),
        (dict(options=dict(trust_teacher='yes')), "trust_teacher must be true .* got 'yes'"),
    ):
        Path('a.json').write_text(json.dumps(dict(config={}, **found)))
        assert re.search(why, shell('bdense_distill x --config a.json', 1)[1])


def test_a_host_of_ones_own_keeps_its_bank_as_it_likes(shell, monkeypatch):
    (bank := Path('bk')).mkdir()
    (bank / 'trajectories-00000.safetensors').touch()
    reached = seen('teacher_and_shape', monkeypatch)
    shell('bdense_distill x --host test_cli:Straight --bank bk', 130)
    assert reached and 'holds other things' in shell('bdense_distill x --bank bk', 1)[1]


def tuples(found):
    return {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}


def test_no_configuration_of_the_library_is_left_out():
    reached = {kind for _, kind in REACHED}
    assert {SFDConfig, SFDVConfig, PDConfig, TrainConfig, Hardware} <= reached
    assert {type(cfg) for cfg in PRESETS.values()} <= reached


def test_every_option_has_its_comment_as_help(shell):
    for command, host in (
        ('bdense_distill', SFDConfig),
        ('bdense_distill', SFDVConfig),
        ('bdense_distill', PDConfig),
        ('bdense_teach', TrainConfig),
    ):
        text = ' '.join(shell(f'{command} {" ".join(HOSTS.get(host, []))} --help')[0].split())
        for f in dataclasses.fields(host):
            assert re.search(rf'--{f.name}\b', text), f.name
        options = sum(
            len(dataclasses.fields(kind))
            for kind in {COMMANDS[command].options, *COMMANDS[command].hosts}
            - ({PDConfig, SFDVConfig, SFDConfig} - {host})
        )
        assert len(re.findall(r'\w[^-]{2,}? ?\((?:default: |required\))', text)) == options, command
    assert (
        'micro-batches that a batch is cut into, to save memory (default: 1)' in text
        and 'peak learning rate of Adam' in text
        and '--precision {auto,no,bf16,fp16}' in text
    )


def test_help_is_of_the_line_that_asks_for_it(shell):
    text = shell('bdense_distill --preset_name fashion_mnist_pd --help')[0]
    assert '--start_steps' in text and '(default: 0.0002)' in text
    plain = shell('bdense_distill --help')[0]
    for line in ('--preset_name nothing', '--config nothing.json', '--preset cifar10-sfd'):
        text = shell(f'bdense_distill {line} --help')[0]
        assert text.startswith('usage: ') and (text == plain) == ('nothing' in line)


def test_help_from_a_real_shell_and_an_error(tmp_path):
    done = run('bdense_sample', '--help', PYTHONIOENCODING='ascii', MPLBACKEND='nonsense')
    assert (
        done.returncode == 0 and done.stdout.startswith('usage: bdense_sample') and not done.stderr
    )
    done = WARM.run('bdense_sample', 'nowhere', '--json', cwd=tmp_path)
    assert (
        done.returncode == 1
        and done.stderr.startswith('bdense_sample: nowhere holds no')
        and done.stderr.count('\n') == 1
    )
    assert json.loads(done.stdout) == dict(
        command='bdense_sample', exit_code=1, error=done.stderr.split(': ', 1)[1].strip()
    ) and not list(tmp_path.iterdir())


def test_options_may_be_spelled_in_other_ways():
    args = [
        'a-b',
        '--dry-run',
        '--branches=2',
        '--weights',
        'x-y',
        '-h',
        '--preset',
        'demo',
        '--steps',
        '3',
    ]
    assert spelled(args, ['K', 'branch_weights', 'preset_name', 'updates']) == [
        'a-b',
        '--dry_run',
        '--K=2',
        '--branch_weights',
        'x-y',
        '-h',
        '--preset_name',
        'demo',
        '--updates',
        '3',
    ]
    assert spelled(['--steps', '3'], ['steps', 'updates']) == ['--steps', '3']
    assert said(['out', '--nfe', '2,3', '--K=2', '--dry_run']) == {
        'nfe': '2,3',
        'K': '2',
        'dry_run': '',
    }
    assert words('out', nfe='2,3', weights=(0.1, 0.9), dry_run=True, afs=False, pool=None) == [
        'out',
        '--nfe=2,3',
        '--weights=0.1,0.9',
        '--dry_run',
        '--no_afs',
    ]


def test_numbers_with_commas_weights_by_name_and_flags():
    def cfg(*args):
        return parse('bdense_distill', COMMANDS['bdense_distill'], ['out', '--K', '2', *args])[2]

    assert (
        cfg('--weights', '.1,.9').branch_weights == (0.1, 0.9)
        and cfg('--weights=uniform').branch_weights == 'uniform'
    )
    assert (
        cfg('--weights_end', 'endpoint').branch_weights_end == 'endpoint'
        and cfg('--branch-weights-end', 'none').branch_weights_end is None
    )
    assert (
        cfg('--nfe', '2,3') == SFDVConfig(**dataclasses.asdict(cfg()) | dict(nfe=(2, 3)))
        and cfg('--nfe', '3').nfe == 3
    )
    pd = cfg('--preset', 'fashion_mnist_pd', '--nfe', '4', '--steps', '7', '--betas', '.5,.9')
    assert (pd.end_steps, pd.updates, pd.betas) == (4, 7, (0.5, 0.9)) and not cfg(
        '--no-afs', '--nfe', '3'
    ).afs


# --- errors ---

MISTAKES = [
    ('bdense_distill out --preset_name dmo', "unknown preset 'dmo'; choose one of: demo"),
    ('bdense_distill out --branches 0', 'K must be a whole number, at least 1, got 0'),
    ('bdense_distill out --branches 3', 'K=3'),
    ('bdense_distill out --branch_weights 1,-1,1,1', 'non-negative'),
    ('bdense_distill out --weights 1,2', 'K=4'),
    (
        'bdense_distill out --teacher nobody',
        "unknown teacher 'nobody'; choose one of: fashion_mnist",
    ),
    ('bdense_distill out --teacher=', '--teacher is empty'),
    ('bdense_distill out --data=', '--data is empty'),
    ('bdense_distill out --bank=', '--bank is empty'),
    ('bdense_distill out --teacher nobody:makes_it', 'net must be module:callable'),
    ('bdense_sample nowhere --net ../nowhere', 'net must be module:callable'),
    ('bdense_distill out --device abacus', "device 'abacus' cannot be used here"),
    ('bdense_distill out --config nothing.json', 'no such file: nothing.json'),
    (
        'bdense_distill out --preset_name fashion_mnist_pd --nfe 3',
        'end_steps times a power of substeps',
    ),
    ('bdense_distill out --preset_name fashion_mnist_pd --bank x', 'a bank belongs to SFD'),
    (
        'bdense_distill out --preset_name fashion_mnist_pd --data cats',
        "unknown data 'cats'; choose one of: fashion_mnist",
    ),
    ('bdense_distill out --nfe 2,2', 'different numbers'),
    ('bdense_distill out --size 27', 'multiples of 4'),
    ('bdense_distill out --shape 5', 'draws (1, 28, 28): name one with --teacher'),
    ('bdense_distill out --lora 2', 'lora is for networks of diffusers, and fashion_mnist is none'),
    ('bdense_distill out --lora 0', 'lora must be at least 1, got 0'),
    ('bdense_distill out --bank /dev/null', 'cannot be a folder'),
    ('bdense_distill out --config=', '--config is empty'),
    (
        'bdense_distill out --split train',
        'split belongs to fashion_mnist and cifar10, not to no data',
    ),
    (
        'bdense_distill out --branches 99999999999999999999999999999',
        '--branches must be a number of at most 18 digits',
    ),
    ('bdense_distill out --log_with nothing', "unknown log_with 'nothing'; choose one of: "),
    (
        'bdense_distill out --nfe 2,3 --step_layer nothing',
        "UNet has no linear layer 'nothing' with a bias; the step count can enter at one of: embed.lin1",
    ),
    ('bdense_sample 99999999999999999999', '99999999999999999999 holds no'),
    (
        'bdense_sample nowhere --n 99999999999999999999999999999',
        '--n must be a number of at most 18 digits',
    ),
    ('bdense_evaluate --experiment=', '--experiment is empty'),
    ('bdense_teach out --data cats', "unknown data 'cats'; choose one of: fashion_mnist"),
    ('bdense_teach out --data=', '--data is empty'),
    ('bdense_teach out --data ring --steps 0', 'steps must be a whole number, at least 1, got 0'),
    ('bdense_teach out --data ring --size 8', 'size does not belong to ring but to a folder'),
    (
        'bdense_teach out --data ring --path /nope',
        'path does not belong to ring but to fashion_mnist and cifar10',
    ),
    ('bdense_teach out --data . --download', 'download does not belong to . but to fashion'),
    ('bdense_teach out --data ring --max_gb 1', 'max_gb does not belong to ring'),
    (
        'bdense_teach out --data ring --context 1',
        'context does not belong to ring but to a CSV file',
    ),
    ('bdense_teach out --data ring --net json:dumps', "'json:dumps' cannot be had: missing"),
    ('bdense_distill out --teacher json:dumps', "'json:dumps' cannot be had: missing"),
    ('bdense_distill out --download', 'download belongs to fashion_mnist and cifar10, not to no'),
    (
        'bdense_distill out --data ring --download',
        'download belongs to fashion_mnist and cifar10, not to ring',
    ),
    (
        'bdense_compare out --data ring --download',
        'download belongs to fashion_mnist and cifar10, not to ring',
    ),
    ('bdense_distill out --null_class 3', 'says itself what its classes are: leave --null_class'),
    ('bdense_distill out --K 1 --weights uniform', 'branch_weights is for several branches'),
    ('bdense_distill out --K 1 --weights_end linear', 'branch_weights_end is for several branches'),
    ('bdense_teach out --data .', 'holds no images'),
    ('bdense_teach out --preset slow', "unknown preset 'slow'; choose one of: quick"),
    ('bdense_teach out --path nowhere', 'no such data file: nowhere'),
    ('bdense_search out --seeds 2', 'seeds must be at least 3, got 2'),
    ('bdense_search out --trials 0', 'trials must be at least 1, got 0'),
    ('bdense_search out --branches 1', 'nothing to search'),
    ('bdense_search out --preset_name fashion_mnist_pd', 'PDConfig'),
    ('bdense_sample nowhere', 'nowhere holds no'),
    ('bdense_sample nowhere --n 0', 'n must be at least 1, got 0'),
    ('bdense_sample nowhere --out samples.safetensors', 'out must name a .png file'),
    ('bdense_sample nowhere --out=', '--out is empty'),
    ('bdense_evaluate nowhere', 'nowhere holds no'),
    ('bdense_evaluate', 'name the folder of a student, or an experiment'),
    ('bdense_evaluate --experiment nothing', "unknown experiment 'nothing'; choose one of: "),
    ('bdense_evaluate s --experiment list', 'leave the student out'),
    ('bdense_evaluate nowhere --limit 3', 'limit belongs to an experiment'),
    ('bdense_evaluate nowhere --jobs 2', 'jobs belongs to an experiment'),
    ('bdense_evaluate nowhere --data cats', "unknown data 'cats'; choose one of: fashion_mnist"),
    ('bdense_evaluate nowhere --data cats.npy', 'cats.npy: No such file'),
    ('bdense_export nowhere out', 'nowhere holds no'),
    ('bdense_export nowhere out --to pickle', "unknown format 'pickle'; choose one of: diffusers"),
    ('bdense_demo --steps 0', 'steps must be a whole number, at least 1, got 0'),
    ('bdense_demo --n 1', 'n must be at least 2, got 1'),
    ('bdense_demo --out /dev/null', 'cannot be a folder'),
    ('bdense_distill out --teacher_states local --bank x', 'no bank can keep its trajectories'),
    ('bdense_demo --out new --accumulate 7', 'a batch of 128 cannot be cut into 7 equal parts'),
    ('bdense_search out --branch_weights_end uniform', 'weights that stay'),
    ('bdense_search out --accumulate 7', 'a batch of 128 cannot be cut into 7 equal parts'),
    ('bdense_evaluate --experiment ring_sfd --n 3', 'n belongs to the measurement of a student'),
    ('bdense_evaluate --experiment ring_sfd --dry_run --limit 0', 'limit must be at least 1'),
    ('bdense_evaluate --experiment ring_sfd --accumulate 7', 'cannot be cut into 7 equal parts'),
    ('bdense_teach out --data ring --null_class 3', 'one of the classes of the data, and ring has'),
    ('bdense_distill out --size 8 --shape 1,8,8', 'pass one of them'),
    ('bdense_compare out --calls 2,2', 'calls must be different numbers, got (2, 2)'),
    ('bdense_compare out --accumulate 2 --arms=a:K=1;b:batch=3', 'a batch of 3 cannot be cut'),
    ('bdense_demo --out new --shard', 'this runs in one process: leave --shard out'),
    ('bdense_search out --shard', 'this runs in one process: leave --shard out'),
    ('bdense_compare out --shard', 'this runs in one process: leave --shard out'),
    ('bdense_evaluate --experiment ring_sfd --shard', 'this runs in one process: leave --shard'),
    ('bdense_bench out --minutes nan', 'minutes must be a finite number at least 0, got nan'),
]


@pytest.mark.parametrize(
    'command, says', MISTAKES + [(f'{command} --dry-run', says) for command, says in MISTAKES[::7]]
)
def test_a_mistake_ends_in_one_line_and_writes_nothing(command, says, shell):
    out, err = shell(command, 1)
    assert (
        says in err
        and err.startswith(f'{command.split()[0]}: ')
        and err.count('\n') == 1
        and not out
    )
    assert not list(shell.folder.iterdir())


@pytest.mark.parametrize(
    'command, says',
    [
        ('bdense_sample', 'Missing'),
        ('bdense_sample a --n many', '--n'),
        ('bdense_demo --bogus', '--bogus'),
        ('bdense_distill a b', 'b'),
        ('bdense_evaluate a --limit x', '--limit'),
        ('bdense_distill a --nfe 2,x', 'must be numbers with commas between'),
        ('bdense_distill a --nfe two', '--nfe'),
        ('bdense_distill a --split nope', 'test'),
        ('bdense_distill a --size 2,x', 'numbers with commas'),
        ('bdense_distill a --branch_weights_end late', 'must be linear, uniform, endpoint'),
        ('bdense_distill a --precision bf15', 'bf16'),
        ('bdense_evaluate a --preset most', 'quick'),
        (
            'bdense_distill a --start_steps 64',
            'it belongs to PDConfig: choose another --preset_name',
        ),
        (
            'bdense_distill a --preset_name fashion_mnist_pd --pool 128',
            'it belongs to SFDConfig and SFDVConfig',
        ),
        (
            'bdense_distill a --host test_cli:Straight --ema .9',
            'test_cli:Straight has no such field: give your host a field ema',
        ),
        ('bdense_distill a --stesp 3', 'did you mean --steps?'),
    ],
)
def test_wrong_usage_has_its_own_exit_code(command, says, shell):
    out, err = shell(command, 2)
    assert (
        says in err
        and err.startswith(f'{command.split()[0]}: ')
        and err.count('\n') == 1
        and not out
    )
    assert err.endswith(f'(all options: {command.split()[0]} --help)\n')
    answer = shell.json(command, 2)
    assert (
        answer['exit_code'] == 2
        and answer['command'] == command.split()[0]
        and answer['error']
        and not list(shell.folder.iterdir())
    )


def test_a_file_that_says_whose_it_is_is_not_overruled_by_a_preset(shell):
    Path('pd.json').write_text(
        '{"config": {}, "host": "pd", "options": {"preset_name": "fashion_mnist_pd"}}'
    )
    told = shell('bdense_distill a --config pd.json --pool 4', 2)[1]
    assert told.startswith('bdense_distill: Unrecognized options: --pool')
    assert 'pd.json is for another host, so leave it out' in told and 'choose' not in told


def test_what_has_no_near_name_is_not_guessed(shell):
    assert 'did you mean' not in shell('bdense_distill new --frob', 2)[1]


def raising(e):
    def command(options, line):
        raise e

    return from_shell('command', [], lambda name: Command(command, Options))


@pytest.mark.parametrize(
    'e',
    [
        KeyError('x'),
        RuntimeError('shapes differ'),
        TypeError('x'),
        AttributeError('x'),
        AssertionError('x'),
        NameError('x'),
    ],
    ids=lambda e: type(e).__name__,
)
def test_bugs_keep_their_traceback(e):
    with pytest.raises(type(e)):
        raising(e)


def sqlite_is_full():
    sqlalchemy = pytest.importorskip('sqlalchemy')
    return sqlalchemy.exc.OperationalError('INSERT', {}, Exception('database or disk is full'))


def foreign(module, name, text):
    return type(name, (Exception,), {'__module__': module})(text)


@pytest.mark.parametrize(
    'e, says',
    [
        (ValueError('one\n  two'), 'one two'),
        (FloatingPointError('NaN'), 'NaN'),
        (ImportError('pip install x'), 'pip install x'),
        (MemoryError(), 'the memory does not suffice'),
        (torch.cuda.OutOfMemoryError('CUDA out of memory'), 'the memory does not suffice'),
        (
            RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
            ),
            'the memory does not suffice',
        ),
        (
            OSError(errno.ENOSPC, 'No space left on device', 'a/b'),
            'a/b: No space left on device; make room',
        ),
        (OSError(errno.ENOSPC, 'No space left on device'), 'make room on the disk'),
        (
            OSError(errno.EROFS, 'Read-only file system', 'a/b'),
            'a/b: Read-only file system; choose another place',
        ),
        (PermissionError(errno.EACCES, 'Permission denied', 'a/b'), 'a/b: Permission denied'),
        (
            foreign(
                'safetensors_rust',
                'SafetensorError',
                'I/O error: No space left on device (os error 28)',
            ),
            'make room on the disk',
        ),
        (
            foreign('sqlalchemy.exc', 'OperationalError', 'database or disk is full'),
            'make room on the disk',
        ),
        (foreign('optuna.exceptions', 'X', 'odd'), 'X: odd'),
        (BrokenPipeError(errno.EPIPE, 'Broken pipe'), 'what read the output has gone'),
        (
            FileExistsError(errno.EEXIST, 'File exists', 'a/b'),
            'a/b cannot be a folder: a file is in the way',
        ),
        (UnicodeDecodeError('utf-8', b'x', 0, 1, 'odd'), 'odd'),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, Exception) else '',
)
def test_what_can_be_mended_is_one_line(e, says, capsys):
    assert raising(e) == 1
    err = capsys.readouterr().err
    assert says in err and err.startswith('command: ') and err.count('\n') == 1


def test_an_import_of_ours_that_fails_is_a_bug():
    assert explain(
        ImportError('cannot import name', name='bdense_nb.distillation.sfd')
    ) is None and explain(ImportError('no optuna', name='optuna'))


def test_a_process_that_is_left_alone_says_so(monkeypatch):
    lost = RuntimeError('[gloo/transport] Connection closed by peer [127.0.0.1]')
    assert explain(lost) is None  # a bug, where there is one process
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert explain(lost).startswith('another process of this run has ended')
    assert explain(RuntimeError('odd')) is None


def test_interrupted_has_its_exit_code(capsys):
    assert (
        raising(KeyboardInterrupt()) == 130 and capsys.readouterr().err == 'command: interrupted\n'
    )

    def find(name):
        raise KeyboardInterrupt

    assert from_shell('command', [], find) == 130


def test_what_overwrites_does_not_go_on(capsys, monkeypatch):
    from bdense_nb.training.loop import Interrupts

    monkeypatch.setattr(signal, 'raise_signal', lambda number: None)
    stops = Interrupts()
    for number in (signal.SIGINT, signal.SIGTERM):
        stops.asked = number
        for more in ('', ' --overwrite'):
            with contextlib.suppress(SystemExit), warnings.catch_warnings():
                warnings.simplefilter('always')
                from_shell('x', more.split(), lambda name: stops.act('run it again to go on'))
            told = capsys.readouterr().err
            assert f'run it again{more and " without --overwrite"} to go on' in told


def test_messages_name_options_that_are_there():
    assert in_shell('pass size= or max_gb=9', ['size']) == 'pass --size or max_gb=9'
    assert (
        in_shell("pass overwrite=True; got K=3 and names=['out']", ['overwrite', 'K', 'names'])
        == "pass --overwrite; got K=3 and names=['out']"
    )
    assert in_shell(
        "use hardware=Hardware(accumulate=2), Hardware(recompute=True), Hardware(precision='bf16') or on_oom='halve'",
        ['recompute', 'on_oom', 'accumulate', 'precision'],
    ) == ('use --accumulate 2, --recompute, --precision bf16 or --on_oom halve')
    assert (
        in_shell('pass null_class=2 or K=2, got size=3', ['null_class', 'K', 'size'])
        == 'pass --null_class 2 or K=2, got size=3'
    )
    assert (
        in_shell('pass root= or download=True', ['path', 'download']) == 'pass --path or --download'
    )
    assert in_shell('pass cond= a class', ['conditions']) == 'pass --conditions a class'
    for kept in (
        "shape=(2,) with cond={'text': [2, 7]} does",
        'seed=<lambda>',
        'seed=$x',
        'seed=é',
    ):
        assert in_shell(kept, ['conditions', 'shape', 'seed']) == kept


def test_a_lonely_process_says_how_to_start_several():
    asked = {'ACCELERATE_USE_CPU': 'True', 'MASTER_ADDR': '127.0.0.1'}
    with pytest.raises(ValueError, match='torchrun --nproc_per_node 2 --no-python -- '):
        check_launch(asked)
    check_launch(asked | {'WORLD_SIZE': '2'})
    check_launch({'ACCELERATE_USE_CPU': 'True'})


def test_what_is_said_to_start_several_processes_does(tmp_path):
    "`accelerate launch` starts one alone, which says so; what it names instead starts two."
    bin, args = (
        Path(sys.executable).parent,
        ['teacher', '--data', 'ring', '--steps', '4', '--batch', '8'],
    )

    def launched(module, *words):
        return python(
            f'from {module} import main; sys.argv = [{module!r}, *sys.argv[1:]]; sys.exit(main())',
            *words,
            cwd=tmp_path,
            OMP_NUM_THREADS='1',
        )

    started = launched(
        'accelerate.commands.launch',
        '--cpu',
        '--num_processes',
        '2',
        '--num_machines',
        '1',
        '--mixed_precision',
        'no',
        '--dynamo_backend',
        'no',
        '--no_python',
        '/usr/bin/env',
        '-0',
    )
    lonely = WARM.run(
        'bdense_teach',
        *args,
        cwd=tmp_path,
        **dict(line.split('=', 1) for line in started.stdout.split('\0') if '=' in line),
    )
    assert (
        f'torchrun --nproc_per_node 2 --no-python -- bdense_teach {" ".join(args)}' in lonely.stderr
        and not list(tmp_path.iterdir())
    )
    both = launched(
        'torch.distributed.run',
        '--nproc_per_node',
        '2',
        '--no-python',
        '--',
        in_fork(bin / 'bdense_teach', tmp_path),
        *args,
    )
    assert both.returncode == 0, both.stderr
    assert load_denoiser(tmp_path / 'teacher').net.config['dim'] == 2


def test_several_processes_begin_again_together_and_one_speaks(tmp_path):
    "The first is late to put the finished run aside, which the second must not take for its own."
    save_denoiser(EDMDenoiser(MLP(width=8, depth=1)), tmp_path / 'plane', dict(shape=[2]))
    script = tmp_path / 'script.py'
    script.write_text("""import signal, sys, time
from bdense_nb.app import common
from bdense_nb.app.shell import from_shell
signal.alarm(200)
aside = common.put_aside
common.put_aside = lambda out: (time.sleep(3), aside(out))
line = [sys.argv[1] + '/s', '--teacher', sys.argv[1] + '/plane', '--trust_teacher']
line += '--steps 3 --batch 4 --pool 4 --device cpu --preset demo'.split()
for more in ([], ['--overwrite', '--json']):
    assert from_shell('bdense_distill', line + more) == 0
""")
    said = torchrun(2, script, tmp_path, folder=tmp_path)
    assert said.count('the student is in') == 2 and said.count('"exit_code": 0') == 1
    assert 'replaces one of 3 iterations' in said


def test_from_python_a_command_is_a_function(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match='unknown preset'):
        cli.bdense_distill('out', preset_name='dmo')
    with pytest.raises(ValueError, match='Unrecognized options: --frob'):
        cli.bdense_distill('out', frob=3)
    with pytest.raises(ValueError, match='name the folder of a student'):
        call('bdense_evaluate', COMMANDS['bdense_evaluate'], [])
    assert set(cli.bdense_evaluate(experiment='list')['experiments']) == set(EXPERIMENTS)


@pytest.mark.parametrize('door', ['stdout', 'full'])
def test_figures_are_written_before_they_are_shown(door, at, tmp_path):
    "A closed pipe, in a process of its own, or a full disk behind standard output, in a fork, loses nothing."
    args = ['student', '--teacher', 'plane', '--n', '4', '--out', tmp_path / 'x.json']
    if door == 'full':
        done = python(
            'sys.stdout = open("/dev/full", "w", encoding="ascii"); from bdense_nb.cli import bdense_evaluate; sys.argv[0] = "bdense_evaluate"; bdense_evaluate()',
            *args,
        )
    else:
        read, write = os.pipe()
        os.close(read)
        with os.fdopen(write, 'w') as out:
            done = subprocess.run(
                [Path(sys.executable).parent / 'bdense_evaluate', *args],
                stdout=out,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {'PYTHONIOENCODING': 'ascii'},
            )
    assert (
        done.returncode == 1
        and done.stderr.startswith('bdense_evaluate: ')
        and done.stderr.count('\n') == 1
    ), done.stderr
    assert json.loads((tmp_path / 'x.json').read_text())['samples'] == 4


def test_an_ascii_terminal_is_spoken_to(at):
    done = WARM.run(
        'bdense_evaluate', 'student', '--teacher', 'plane', '--n', '4', PYTHONIOENCODING='ascii'
    )
    assert done.returncode == 0 and 'Fr?chet' in done.stdout


def test_a_student_of_ones_own_host_is_measured(at, root, tmp_path, monkeypatch):
    "The host of the how-to, in a module of its own."
    cells = [
        c.source
        for c in nbformat.read(root / 'nbs' / 'distillation' / '11_a_new_host.ipynb', 4).cells
    ]
    imports, host = cells[1], next(source for source in cells if 'class Pairs(Host)' in source)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'my_hosts.py').write_text(f'{imports}\n{host}')
    make = (
        'import torch; torch.manual_seed(0); from my_hosts import *; from bdense_nb.diffusion.stored import load_denoiser;'
        'distill(load_denoiser("plane"), Pairs(K=2, nfe=2, steps=2, pool=8, batch=8), show=False).save(sys.argv[1])'
    )
    assert (
        python(f'sys.path.insert(0, {str(tmp_path)!r}); {make}', tmp_path / 'pairs').returncode == 0
    )
    line = f'bdense_evaluate {tmp_path}/pairs --teacher plane --n 4'
    assert "unknown host 'pairs'" in at(line, 1)[1]
    assert 'host must be module:callable' in at(f'{line} --host my_host:Pairs', 1)[1]
    assert at.json(f'{line} --host my_hosts:Pairs')['rows'][0]['nfe'] == 2


# --- what is there already ---

OTHER = [
    'bdense_teach {} --data ring --steps 1',
    'bdense_distill {} --preset demo --steps 1',
    'bdense_search {}',
    'bdense_demo --out {}',
    'bdense_export student {}',
]


@pytest.mark.parametrize('command', OTHER, ids=lambda c: c.split()[0])
def test_a_folder_with_other_things_is_left_alone(command, at):
    for where in ('zoo', 'zoo/bag/0.png', '/dev/null/x'):
        at(command.format(where), 1)
    assert {p.name for p in Path('zoo').iterdir()} == {'bag', 'shoe'}


def test_a_refused_export_leaves_an_empty_folder_to_others(at, tmp_path, monkeypatch):
    def refused(arm, to, out, **card):
        raise ValueError('a reason')

    monkeypatch.setattr(commands, 'export_student', refused)
    (tmp_path / 'out').mkdir()
    assert 'a reason' in at(f'bdense_export student {tmp_path}/out', 1)[1]
    assert not (tmp_path / 'out' / 'command.json').exists()


def test_what_is_asked_for_in_vain_is_refused(at, tmp_path):
    line = 'bdense_evaluate student --teacher plane --n 4'
    assert 'taught by none: leave it out' in at(f'{line} --null_condition x.safetensors', 1)[1]
    table = tmp_path / 'table.safetensors'
    save_tensors(table, dict(a=torch.ones(4, 2), b=torch.ones(4, 3)))
    told = f'bdense_distill new --teacher small --preset demo --conditions {table}'
    assert 'knows no condition but a class' in at(told, 1)[1]
    line += ' --features_path x.pt --dry_run'
    assert 'not read, to compare with fresh points of moons' in at(line, 1)[1]
    line = 'bdense_compare new --teacher plane --preset demo --features_path x.pt'
    assert 'not read, to compare with fresh points of moons' in at(line, 1)[1]


def test_what_only_a_file_asks_for_in_vain_does_no_harm(at, tmp_path, monkeypatch):
    "An option of a file that nothing is done with is refused as soon as it is typed."
    monkeypatch.setattr(commands, 'on_one_gpu', lambda *how: {})
    options = dict(null_class=3, download=True, trust_teacher=True)
    config = dict(K=1, branch_weights='uniform', steps=1, batch=4, pool=4)
    teach = dict(max_gb=1.0, size=[8], download=True, horizon=3)
    for name, found in (('d', dict(config=config, options=options)), ('t', dict(options=teach))):
        (tmp_path / f'{name}.json').write_text(json.dumps(dict(config={}) | found))
    line = f'bdense_distill new --teacher plane --config {tmp_path}/d.json --dry_run'
    at(line)
    for more, why in (
        ('null_class 3', 'plane says itself what its classes are'),
        ('download', 'download belongs to'),
        ('weights uniform', 'branch_weights is for several branches'),
    ):
        assert why in at(f'{line} --{more}', 1)[1]
    stored, classes = commands.Distill(out='x', null_class=3), types.SimpleNamespace(n_classes=10)
    pairs = sources.distill_data(
        stored, commands.Line(), preset('fashion_mnist_pd'), classes, (1, 28, 28)
    )
    assert (pairs[1] == 3).any()
    line = f'bdense_teach new --data ring --batch 4 --config {tmp_path}/t.json --dry_run'
    at(line)
    assert 'size does not belong to ring' in at(f'{line} --size 8', 1)[1]
    line = 'bdense_evaluate student --teacher plane --n 4'
    assert 'not to moons' in at(f'{line} --download', 1)[1]
    assert 'plane says itself' in at(f'{line} --null_class 3', 1)[1]
    save_denoiser(EDMDenoiser(MLP(width=8, depth=1)), tmp_path / 'bare', dict(shape=[2]))
    line = f'bdense_distill new --teacher {tmp_path}/bare --null_class 3'
    assert 'bare has no classes: leave --null_class out' in at(line, 1)[1]


def test_messages_name_options_of_the_line_alone(shell, monkeypatch):
    def diverges(*args):
        raise FloatingPointError("set on_nan='skip'")

    monkeypatch.setattr(commands, 'teacher_and_shape', diverges)
    assert 'set --on_nan skip' in shell('bdense_distill x', 1)[1]
    assert "set on_nan='skip'" in shell('bdense_distill x --host test_cli:Straight', 1)[1]


@pytest.mark.parametrize(
    'command',
    ['demo --out new', 'search new', 'compare new', 'sample x', 'evaluate x', 'export x y']
    + ['notebooks course'],
)
def test_what_several_processes_cannot_share_is_refused(command, shell, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert 'start it without torchrun' in shell(f'bdense_{command}', 1)[1]
    assert not list(shell.folder.iterdir())


@pytest.mark.parametrize('command', ['demo --out', 'search', 'distill'])
def test_a_plan_is_of_the_hardware_that_is_asked_for(command, at, monkeypatch):
    def told(*run, hardware, **how):
        raise ValueError(f'{hardware.accumulate} micro-batches')

    monkeypatch.setattr(commands, 'estimate_run', told)
    line = f'bdense_{command} new --accumulate 4 --dry_run'
    assert '4 micro-batches' in at(line, 1)[1]


def test_a_plan_of_more_samples_than_there_are_is_measured(at):
    plan = at.json('bdense_teach new --data zoo --size 8 --steps 1 --batch 20 --dry_run')
    assert plan['data'].startswith('zoo: 1') and plan['estimated_from'] == (
        'iterations of 20 samples were timed on this device'
    )


def test_an_export_that_was_killed_is_finished_by_the_same_command(at, tmp_path, monkeypatch):
    def killed(arm, to, out, **card):
        (Path(out) / 'unet').mkdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(commands, 'export_student', killed)
        at(f'bdense_export student {tmp_path}/out', 130)
    at(f'bdense_export student {tmp_path}/out')
    assert 'holds other things' in at(f'bdense_export student {made_by_hand(tmp_path)}', 1)[1]
    assert {p.name for p in (tmp_path / 'out').iterdir() if p.is_file() and p.name != '.lock'} == {
        'model.safetensors',
        'sampling.json',
    }


def made_by_hand(folder):  # what an export leaves, but none of this command's
    (folder / 'other' / 'unet').mkdir(parents=True)
    return folder / 'other'


def test_a_folder_with_another_run_is_refused(at):
    before = Path('plane/config.json').read_bytes()
    for command in (
        'distill new --teacher plane --preset demo --bank plane',
        'export student plane',
    ):
        told = at(f'bdense_{command}', 1)[1]
        assert 'plane holds ' in told and 'name a new or an empty folder' in told
    for change in ('--data ring', '--batch 16', '--steps 3'):
        assert (
            'was made with another configuration'
            in at(f'bdense_teach plane --data moons --steps 2 --batch 8 {change}', 1)[1]
        )
    assert (
        'was made with another configuration'
        in at(
            'bdense_distill student --teacher plane --preset demo --steps 1 --batch 4 --pool 4 --K 2',
            1,
        )[1]
    )
    small = '--preset demo --steps 1 --batch 4 --pool 4 --overwrite'
    told = at(f'bdense_distill plane --teacher student {small}', 1)[1]
    assert 'plane holds what bdense_teach has made: name a new or an empty folder' in told
    assert Path('plane/config.json').read_bytes() == before


def test_a_finished_run_is_done_again_in_no_time(at):
    before = Path('student/model.safetensors').read_bytes()
    at('bdense_distill student --teacher plane --preset demo --steps 1 --batch 4 --pool 4')
    assert Path('student/model.safetensors').read_bytes() == before


def test_files_of_another_kind_are_not_replaced(at, tmp_path):
    for out in ('student/model.png', f'{tmp_path}/mine.png'):
        (tmp_path / 'mine.png').write_bytes(b'x')
        assert 'another kind' in at(f'bdense_sample student --out {out}', 1)[1]
    (tmp_path / 'text.safetensors').write_text('x')
    assert 'another kind' in at(f'bdense_sample student --out {tmp_path}/text.png', 1)[1]
    for out in ('student/config.json', 'zoo', 'zoo/bag/0.png'):
        at(f'bdense_evaluate student --teacher plane --n 10 --out {out}', 1)
    assert (tmp_path / 'mine.png').read_bytes() == b'x' and load_student('student').nfe == 2
    for seed in (0, 1):
        at(f'bdense_sample student --n 3 --seed {seed} --out {tmp_path}/again.png')


def test_a_demonstration_of_other_settings_is_not_replaced(at, tmp_path):
    cfg = preset('demo', steps=3)
    (tmp_path / 'report.json').write_text(
        json.dumps(dict(config=dataclasses.asdict(cfg), samples=20))
    )
    commands.check_demo(tmp_path, cfg, 20)
    for command in ('--steps 4 --n 20', '--steps 3 --n 21', '--steps 3 --n 20 --seed 1'):
        assert 'other settings' in at(f'bdense_demo --out {tmp_path} {command}', 1)[1]
    (tmp_path / 'report.json').write_text('[]')
    assert 'of another kind' in at(f'bdense_demo --out {tmp_path}', 1)[1]


# --- dry runs and answers for programs ---


PLANS = [  # (a command, what its plan holds)
    ('bdense_teach new --data ring', dict(updates=12_000, batch=128, images_seen=12_000 * 128)),
    ('bdense_teach new --data zoo --size 8 --preset quick', dict(updates=400, batch=64)),
    (
        'bdense_distill new --teacher plane --preset demo --batch 8 --pool 8 --steps 5',
        dict(
            updates=10,
            nfe=[2],
            teacher_samples=96,
            student_samples=80,
            shape=[2],
            data='none needed',
        ),
    ),
    (
        'bdense_distill new --teacher plane --nfe 2,3 --batch 8 --pool 16 --steps 4',
        dict(nfe=[2, 3], updates=10, teacher_samples=16 * 24 + 16 * 32),
    ),
    (
        'bdense_distill new --teacher small --preset fashion_mnist_pd --start_steps 8 --nfe 2 --steps 5 --batch 4',
        dict(nfe=[2], updates=10, rounds=['8 to 4 steps', '4 to 2 steps'], shape=[1, 8, 8]),
    ),
    (
        'bdense_search new --teacher plane --trials 5 --steps 2 --batch 8 --pool 8 --n 8',
        dict(
            trials=5,
            trainings=5 + 3 * 4,
            nfe=[2],
            updates=17 * 4,
            teacher_samples=4 * 96,
            student_samples=17 * 32,
        ),
    ),
    (
        'bdense_sample student --n 1000 --out new.png',
        dict(samples=1000, nfe=2, network_calls=2000),
    ),
    (
        'bdense_evaluate student --teacher plane --n 100 --out new.json',
        dict(nfe=2, teacher_nfe=24, samples=100),
    ),
    ('bdense_evaluate --experiment ring_pd --out new.json', dict(runs=120, runs_done=0)),
    (
        f'bdense_evaluate --experiment ring_pd --out {data_dir() / "results" / "ring_pd.json"}',
        dict(runs=120, runs_done=120),
    ),
    (
        f'bdense_evaluate --experiment ring_capacity_sfd --out {data_dir() / "results" / "ring_capacity_sfd.json"}',
        dict(runs=120, runs_done=120),
    ),
    (
        'bdense_export several new --nfe 5',
        dict(nfe=5, files=['model.safetensors', 'sampling.json']),
    ),
]


@pytest.mark.parametrize('command, holds', PLANS)
def test_a_dry_run_tells_the_plan_and_writes_nothing(command, holds, at):
    before = {p: p.stat().st_mtime_ns for p in at.folder.rglob('*')} | {
        p: p.stat().st_mtime_ns for p in Path('.').rglob('*')
    }
    if command in {plan.split()[0]: plan for plan, _ in PLANS}.values():  # one of each program
        assert (
            'a dry run: nothing is trained, nothing is written\n' in at(command + ' --dry-run')[0]
        )
    answer = at.json(command + ' --dry_run')
    assert answer['dry_run'] and answer['exit_code'] == 0 and {k: answer[k] for k in holds} == holds
    if 'export' not in command and 'experiment' not in command:
        assert (
            answer['seconds'] > 0
            and 'timed on this device' in answer['estimated_from']
            or 'drawn' in answer['estimated_from']
        )
    assert {p: p.stat().st_mtime_ns for p in at.folder.rglob('*')} | {
        p: p.stat().st_mtime_ns for p in Path('.').rglob('*')
    } == before


def test_students_of_one_training_take_its_time_once(at, tmp_path):
    stored = json.loads((data_dir() / 'results' / 'ring_variable.json').read_text())
    rows = stored['rows'][:4]
    assert [r['nfe'] for r in rows] == [2, 3, 4, 5]
    (tmp_path / 'one.json').write_text(json.dumps(stored | dict(rows=rows)))
    line = f'bdense_evaluate --experiment ring_variable --out {tmp_path}/one.json --dry_run'
    plan = at.json(line)
    assert plan['runs_done'] == 1
    assert plan['seconds'] == pytest.approx(189 * rows[-1]['cpu_seconds'])
    assert at.json(line + ' --limit 2')['seconds'] == pytest.approx(2 * rows[-1]['cpu_seconds'])


def test_processes_share_what_is_left_of_an_experiment(at, tmp_path):
    stored = json.loads((data_dir() / 'results' / 'ring_pd.json').read_text())
    (tmp_path / 'part.json').write_text(json.dumps(stored | dict(rows=stored['rows'][:97])))
    alone, three = (
        at.json(
            f'bdense_evaluate --experiment ring_pd --out {tmp_path}/part.json --jobs {n} --dry_run'
        )
        for n in (1, 3)
    )
    left = alone['runs'] - alone['runs_done']
    assert left == 100 and three['seconds'] == pytest.approx(alone['seconds'] * 34 / 100)


def test_the_plan_of_a_distillation_is_the_estimate_of_the_library(at):
    answer = at.json(
        'bdense_distill new --teacher plane --preset demo --batch 8 --pool 8 --steps 5 --dry-run'
    )
    cfg = preset('demo', batch=8, pool=8, steps=5, shape=(2,))
    want = estimate_run(load_denoiser('plane'), cfg)
    assert (answer['updates'], answer['teacher_samples'], answer['parameters']) == (
        want['updates'],
        want['teacher'],
        want['parameters'],
    )
    assert answer['grid_of_3_steps'] == cfg.grids[1].tolist() and answer['bank'].endswith(
        'in memory'
    )


def test_a_plan_that_does_not_fit_says_so(capsys):
    common.show_plan(dict(memory_gb=30.0, device_memory_gb=16.0))
    assert 'smaller --batch' in capsys.readouterr().out
    assert 'not at all' in commands.how_measured(dict(measured_batch=None, batch=4))
    assert [duration(s) for s in (0.5, 119.0, 121.0, 7300.0, 200_000.0)] == [
        '0.5 seconds',
        '119 seconds',
        '2.0 minutes',
        '2.0 hours',
        '2.3 days',
    ]


def test_answers_for_programs(at, tmp_path):
    answer = at.json(f'bdense_teach {tmp_path}/t --data moons --steps 2 --batch 8')
    assert (answer['updates'], answer['images_seen'], answer['data'], answer['shape']) == (
        2,
        16,
        'moons',
        [2],
    ) and answer['loss'] > 0
    answer = at.json(
        f'bdense_distill {tmp_path}/s --teacher plane --preset fashion_mnist_pd --start_steps 4 --nfe 2 --steps 2 --batch 4'
    )
    assert (answer['nfe'], answer['host'], answer['config']['updates']) == (2, 'pd', 2) and answer[
        'loss'
    ] > 0
    answer = at.json(f'bdense_sample several --nfe 5 --n 3 --out {tmp_path}/x.png')
    assert (answer['nfe'], answer['picture'], answer['seeds'], answer['shape']) == (
        5,
        f'{tmp_path}/x.png',
        [0, 2],
        [2],
    )
    answer = at.json(
        f'bdense_evaluate student --teacher plane --n 20 --out {tmp_path}/figures.json'
    )
    assert (
        answer['rows'] == json.loads((tmp_path / 'figures.json').read_text())['rows']
        and answer['rows'][0]['frechet_distance'] is None
        and answer['rows'][0]['sliced_wasserstein'] > 0
    )
    assert at.json(f'bdense_export student {tmp_path}/e')['files'] == [
        'model.safetensors',
        'sampling.json',
    ]
    text = f'bdense_search {tmp_path}/search --teacher plane --trials 4 --K 2 --steps 1 --batch 4 --pool 4 --n 4'
    answer = at.json(text)
    assert (
        len(answer['weights']) == 2
        and answer['trials'] == 4
        and set(answer['confirmed']) >= {'best', 'uniform'}
    )
    by = {d['arm']: d for d in answer['differences']}
    assert list(by) == ['best minus linear', 'best minus uniform', 'best minus endpoint'] and by[
        'best minus uniform'
    ]['mean'] == pytest.approx(
        sum(answer['confirmed']['best']) / 3 - sum(answer['confirmed']['uniform']) / 3
    )
    (last,) = re.findall('paired error on 3 other seeds: (.*)', at(text)[0])
    assert [part.split(', ')[-1] for part in last.split('; ')] == [
        d['verdict'] for d in by.values()
    ]


def test_experiments_from_the_shell(at, tmp_path, monkeypatch):
    assert {
        name: e['about']
        for name, e in at.json('bdense_evaluate --experiment list')['experiments'].items()
    } == {name: e.about for name, e in EXPERIMENTS.items()}
    stored = json.loads((data_dir() / 'results' / 'ring_variable.json').read_text())

    def fake(name, out, limit, jobs, device, hardware, folder):
        assert (jobs, device, folder) == (1, None, None)
        print('progress')
        return dict(stored, rows=stored['rows'][:limit])

    monkeypatch.setattr(measuring, 'run_experiment', fake)
    assert at.json(
        f'bdense_evaluate --experiment ring_variable --limit 2 --out {tmp_path}/x.json'
    ) == dict(
        command='bdense_evaluate',
        exit_code=0,
        experiment='ring_variable',
        file=f'{tmp_path}/x.json',
        rows=2,
        differences=[],
    )
    assert 'no intervals yet' in at('bdense_evaluate --experiment ring_variable --limit 2')[0]
    found = at.json('bdense_evaluate --experiment ring_variable --limit 1000')['differences']
    assert (
        {d['verdict'] for d in found} == {'better', 'worse', 'not told apart'}
        and {d['measure'] for d in found} == {'paired_error', 'sliced_wasserstein'}
        and {d['n'] for d in found} == {10}
    )
    assert (
        '| SFD-v, K = 4, 400 it. |'
        in at('bdense_evaluate --experiment ring_variable --limit 1000')[0]
    )
    assert 'limit must be at least 1' in at('bdense_evaluate --experiment ring_pd --limit 0', 1)[1]


# --- data, teachers, students ---


def test_a_folder_of_images_is_a_data_set(made):
    x, y = read_data(str(made / 'zoo'), shape=(3, 12, 8))
    assert x.shape[1:] == (3, 12, 8) and sorted(set(y.tolist())) == [0, 1]
    with pytest.raises(ValueError, match='a sample is of shape'):
        read_data(str(made / 'zoo'), shape=(2,))


@pytest.mark.parametrize(
    'size, widths, divisor',
    [((8, 8), 2, 4), ((28, 28), 2, 4), ((32, 32), 2, 4), ((48, 64), 3, 8), ((128, 128), 4, 16)],
)
def test_networks_grow_with_the_images(size, widths, divisor):
    denoiser = new_denoiser(torch.randn(2, 3, *size), 5, 'photos')
    assert (
        len(denoiser.net.config['widths']) == widths
        and denoiser.net.divisor == divisor
        and denoiser.n_classes == 5
    )
    assert denoiser(torch.randn(1, 3, *size), 1.0).shape == (1, 3, *size)


def test_images_that_do_not_fit_are_told_the_size():
    with pytest.raises(ValueError, match='pass --size 32,20'):
        new_denoiser(torch.randn(2, 1, 31, 19), 0, 'photos')
    with pytest.raises(ValueError, match='single colour'):
        new_denoiser(torch.ones(2, 1, 8, 8), 0, 'photos')


def test_points_in_a_numpy_file_by_both_hosts(shell, tmp_path):
    g = np.random.default_rng(0)
    np.save('points.npy', g.random((60, 3)) - 0.5)
    shell('bdense_teach points --data points.npy --steps 2 --batch 8')
    shell(
        'bdense_distill sfd --teacher points --preset_name demo --steps 1 --batch 4 --pool 4 --trust_teacher'
    )
    shell(
        'bdense_distill pd --teacher points --preset_name fashion_mnist_pd --start_steps 4 --nfe 2 --steps 1 --batch 4 --trust_teacher'
    )
    for name in ('sfd', 'pd'):
        shell(f'bdense_sample {name} --n 5')
        assert load_tensors('samples.safetensors')[0]['samples'].shape == (5, 3)
    for name, what, why in (
        ('words', np.array(['a', 'b']), 'an array of numbers'),
        ('objects', np.array([{}], dtype=object), 'an array of numbers'),
        ('holes', np.array([[np.nan, 1.0]]), 'finite numbers'),
        ('rows', g.random((5, 4, 16)), 'pass --net'),
    ):
        np.save(f'{name}.npy', what)
        assert why in shell(f'bdense_teach x --data {name}.npy', 1)[1] and not Path('x').exists()


def test_a_folder_of_images_from_teacher_to_export(at, tmp_path):
    out, _ = at(
        f'bdense_distill {tmp_path}/pd --teacher small --preset fashion_mnist_pd --start_steps 4 --nfe 2 --steps 1 --batch 4 --data zoo'
    )
    assert 'the student is in' in out and load_student(tmp_path / 'pd').shape == (1, 8, 8)
    at(
        f'bdense_distill {tmp_path}/sfd --teacher small --preset demo --K 2 --steps 1 --batch 4 --pool 4'
    )
    assert load_student(tmp_path / 'sfd').about['data'] == 'zoo'
    for name in ('pd', 'sfd'):
        out, _ = at(f'bdense_evaluate {tmp_path}/{name} --teacher small --n 4')
        assert 'no Fréchet distance' in out
    at(f'bdense_sample {tmp_path}/pd --n 4 --label 1 --out {tmp_path}/x.png')
    assert (
        load_tensors(tmp_path / 'x.safetensors')[0]['samples'].shape == (4, 1, 8, 8)
        and (tmp_path / 'x.png').stat().st_size > 100
    )
    assert (
        'choose other data'
        in at(
            f'bdense_distill {tmp_path}/new --teacher small --preset fashion_mnist_pd --data fashion_mnist',
            1,
        )[1]
    )
    made = Path.cwd()
    at.monkeypatch.chdir(tmp_path)  # its folder of images is not there
    assert (
        'was trained on zoo, which is not here'
        in at(f'bdense_distill new --teacher {made}/small --preset fashion_mnist_pd', 1)[1]
    )


def test_samples_are_compared_with_a_folder_of_images(at, tmp_path):
    at(f'bdense_distill {tmp_path}/clothes --preset demo --K 1 --steps 1 --batch 4 --pool 4')
    answer, images = (
        at.json(f'bdense_evaluate {tmp_path}/clothes --n 8 --data zoo'),
        read_data('zoo', shape=(1, 28, 28))[0],
    )
    mine, space = (
        load_student(tmp_path / 'clothes', 'cpu').sample(8),
        load_space('fashion_mnist', 'cpu'),
    )
    assert answer['features'] == 'fashion_mnist' and answer['compared_with'].startswith(
        f'zoo: {len(images)} of shape'
    )
    assert answer['rows'][0]['frechet_distance'] == pytest.approx(
        frechet_distance(space(mine), space(images)), rel=1e-3
    )
    asked = []

    def stand_in(name, device, path):
        asked.append((name, path))
        return lambda x: x.flatten(1)[:, 300:304]

    at.monkeypatch.setattr(measuring, 'load_space', stand_in)
    other = at.json(
        f'bdense_evaluate {tmp_path}/clothes --n 8 --data zoo --features inception --features_path weights.pth'
    )
    assert asked == [('inception', 'weights.pth')] and other['rows'][0][
        'frechet_distance'
    ] == pytest.approx(
        frechet_distance(mine.flatten(1)[:, 300:304], images.flatten(1)[:, 300:304]), rel=1e-3
    )
    assert (
        'leave --features out'
        in at('bdense_evaluate student --teacher plane --n 4 --features inception', 1)[1]
    )
    at(
        f'bdense_distill {tmp_path}/tiny --teacher small --preset demo --K 1 --steps 1 --batch 4 --pool 4'
    )
    assert (
        'take --features inception'
        in at(
            f'bdense_evaluate {tmp_path}/tiny --teacher small --n 4 --data zoo --features fashion_mnist',
            1,
        )[1]
    )


@pytest.mark.parametrize('shape', [(2,), (3, 2)])
def test_samples_that_are_no_pictures_are_compared_with_a_file(shape, tmp_path, capsys):
    torch.manual_seed(0)
    real, mine = torch.randn(30, *shape), torch.randn(20, *shape)
    np.save(tmp_path / 'mine.npy', real.numpy())
    save_denoiser(
        EDMDenoiser(torch.nn.Linear(2, 2)),
        tmp_path / 'teacher',
        dict(data=str(tmp_path / 'mine.npy')),
    )
    for asked in (None, str(tmp_path / 'mine.npy')):
        reality = measuring.find_reality(str(tmp_path / 'teacher'), shape, asked)
        measures = measuring.distances(reality, reality.space(None))
        assert (
            measures['sliced_wasserstein'](mine)
            == pytest.approx(
                sliced_wasserstein(
                    mine.flatten(1).repeat_interleave(3, 0), real.flatten(1).repeat_interleave(2, 0)
                ),
                rel=1e-9,
            )
            and 'mine.npy: 30 of' in reality.line
        )
    unknown = measuring.find_reality('some:code', shape)
    assert (
        'pass --data, a file of samples' in unknown.note
        and measuring.distances(unknown, unknown.space(None)) == {}
    )


def test_a_card_knows_licence_and_data(at, tmp_path):
    def facts(name):
        return {
            k: v
            for k, v in load_student(tmp_path / name).about.items()
            if k in ('licence', 'teacher_data')
        }

    budget = '--preset demo --K 2 --steps 1 --batch 4 --pool 4'
    at(f'bdense_distill {tmp_path}/a --teacher plane {budget}')
    at(
        f'bdense_distill {tmp_path}/b --teacher plane {budget} --licence mit --teacher_data two-moons'
    )
    assert facts('a') == dict(teacher_data='moons') and facts('b') == dict(
        licence='mit', teacher_data='two-moons'
    )
    assert sources.teacher_facts('fashion_mnist') == dict(
        licence='apache-2.0', teacher_data='fashion_mnist'
    )
    (tmp_path / 'hub' / 'unet').mkdir(parents=True)
    (tmp_path / 'hub' / 'README.md').write_text(
        '---\nlicense: "openrail"\n---\nlicense: none of these'
    )
    assert sources.teacher_facts(str(tmp_path / 'hub')) == dict(licence='openrail')
    at(f'bdense_export {tmp_path}/b {tmp_path}/out --licence bsd')
    stored = json.loads((tmp_path / 'out' / 'sampling.json').read_text())
    assert (stored['licence'], stored['teacher_data']) == ('bsd', 'two-moons')


def test_a_training_is_watched(at, tmp_path):
    pytest.importorskip('tensorboard')
    at(
        f'bdense_teach {tmp_path}/t --data ring --steps 6 --batch 4 --log_with tensorboard --profile'
    )
    at(
        f'bdense_distill {tmp_path}/s --teacher plane --preset demo --steps 6 --batch 4 --pool 4 --log_with tensorboard --profile'
    )
    for name in 'ts':
        assert (
            list((tmp_path / name / 'checkpoints').rglob('events.out.*'))
            and (tmp_path / name / 'checkpoints' / 'trace.json').is_file()
        )


def test_a_distillation_says_its_plan_before_it_starts(at, tmp_path):
    "One of no more iterations than a plan times just starts."
    command = (
        f'bdense_distill {tmp_path}/s --teacher plane --preset demo --steps 11 --batch 4 --pool 4'
    )
    first, again = at(command)[0], at(command)[0]
    assert 'the plan' not in at(command.replace('/s ', '/short ').replace('11', '10'))[0]
    assert (
        first.index('the plan') < first.index('time') < first.index('the student is in')
        and 'memory' in first
        and 'nfe' in first
    )
    assert 'the plan' not in again, 'nothing is trained'
    assert at.json(command)['exit_code'] == 0, 'standard output holds more than the answer'


def test_a_pickle_is_no_teacher(at, tmp_path):
    (tmp_path / 'model.pt').touch()
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'folder' / 'pytorch_model.bin').touch()
    for name in ('model.pt', 'folder'):
        _, err = at(f'bdense_distill {tmp_path}/new --teacher {tmp_path}/{name}', 1)
        assert 'is a pickle, which is not read' in err and err.count('\n') == 1
    assert not (tmp_path / 'new').exists()


def test_labels_go_where_there_are_classes(made, tmp_path):
    plain, classes = (EDMDenoiser(UNet(widths=(32,), n_classes=n)) for n in (0, 2))
    save_denoiser(plain, tmp_path / 'plain')
    assert (
        find_data(str(tmp_path / 'plain'), plain, (1, 8, 8), str(made / 'zoo'))[1] is None
        and find_data('x', classes, (1, 8, 8), str(made / 'zoo'))[1] is not None
    )
    with pytest.raises(ValueError, match='one sub-folder for each class'):
        find_data('x', classes, (1, 8, 8), str(made / 'zoo' / 'bag'))
    with pytest.raises(ValueError, match='pass --data'):
        find_data(str(tmp_path / 'plain'), plain, (1, 8, 8))
    with pytest.raises(ValueError, match='pass --shape 1,HEIGHT,WIDTH'):
        shape_of(str(tmp_path / 'plain'), plain)
    assert shape_of(str(tmp_path / 'plain'), plain, (16,)) == (1, 16, 16) and shape_of(
        str(tmp_path / 'plain'), plain, (16, 8)
    ) == (1, 16, 8)
    assert shape_of('fashion_mnist', EDMDenoiser(UNet(n_classes=10))) == (1, 28, 28)
    colour = EDMDenoiser(UNet(3, widths=(32,)))
    assert shape_of('mine:teacher', colour, data='cifar10') == (3, 32, 32)
    colour.net.img_channels, colour.net.img_resolution = 3, 64  # as EDM's networks say it
    assert shape_of('mine:teacher', colour, data='cifar10') == (3, 64, 64)


def test_both_hosts_and_their_variants(at, tmp_path):
    budget = '--teacher plane --steps 2 --batch 8 --K 1'
    at(
        f'bdense_distill {tmp_path}/five {budget} --nfe 5 --preset demo --pool 8 --bank {tmp_path}/bank'
    )
    told = at(
        f'bdense_distill {tmp_path}/several {budget} --nfe 1,5 --preset demo --pool 8 --bank {tmp_path}/bank'
    )[0]
    assert 'several: 1, 5 NFE' in told
    assert {p.name for p in (tmp_path / 'bank').iterdir()} == {'nfe-1', 'nfe-5'}
    for start in ('five', 'several'):
        at(
            f'bdense_distill {tmp_path}/one-{start} --teacher {tmp_path}/{start} --preset demo --steps 2 --batch 8 --pool 8'
        )
    assert [
        load_student(tmp_path / name).nfe for name in ('five', 'several', 'one-five', 'one-several')
    ] == [5, (1, 5), 1, 1]
    assert (
        'holds a student for 1, 5 NFE: say which with --nfe'
        in at('bdense_sample several --n 3', 1)[1]
    )
    assert 'holds a student for 2 NFE, not 3' in at('bdense_sample student --nfe 3', 1)[1]
    assert (
        'name its own with --teacher' in at('bdense_evaluate student --n 10', 1)[1]
        and find_student(str(tmp_path / 'several'), 5, Networks()).nfe == 5
    )
    assert (
        'holds another student'
        in (
            at(f'bdense_export several {tmp_path}/out --nfe 1'),
            at(f'bdense_export several {tmp_path}/out --nfe 5', 1),
        )[1][1]
    )


def test_a_diffusers_teacher_by_both_hosts_and_out_again(shell):
    diffusers = pytest.importorskip('diffusers')
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=('DownBlock2D',),
        up_block_types=('UpBlock2D',),
    )
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler(num_train_timesteps=100)).save_pretrained(
        'mine'
    )
    for i, x in enumerate(sample_noise(range(6), (8, 8))):
        Path('photos').mkdir(exist_ok=True)
        Image.fromarray((x * 40 + 128).clamp(0, 255).byte().numpy()).save(f'photos/{i}.png')
    sfd = 'bdense_distill sfd --teacher mine --preset demo --K 2 --steps 1 --batch 2 --pool 2 --licence mit --teacher_data birds'
    with shell.monkeypatch.context() as m:
        m.setattr('bdense_nb.diffusion.checks._readings', lambda _: {})  # no guess what fits
        assert 'does not give clean estimates at' in shell(sfd, 1)[1], 'an untrained network'
    assert not Path('sfd').exists()
    assert 'the teacher is trusted, although' in shell(sfd + ' --trust_teacher')[0]
    assert (
        'of 7 noise levels' in shell('bdense_evaluate sfd --teacher mine --n 2 --data photos', 1)[1]
    )
    shell.believes()
    shell(
        'bdense_distill pd --teacher mine --preset fashion_mnist_pd --start_steps 4 --nfe 2 --steps 1 --batch 2 --data photos'
    )
    assert (
        'license: "mit"' in Path('sfd/README.md').read_text()
        and '| Teacher trained on | birds |' in Path('sfd/README.md').read_text()
    )
    assert 'pass --data' in shell('bdense_distill x --teacher mine --preset fashion_mnist_pd', 1)[1]
    for name in ('pd', 'sfd'):
        assert shell.json(f'bdense_evaluate {name} --teacher mine --n 2')['rows'][0]['nfe'] == 2
        shell(f'bdense_export {name} out-{name} --to diffusers')
        shell(f'bdense_sample out-{name} --n 2 --out {name}.png')
    assert (shell.folder / 'pd' / 'unet').is_dir() and not (
        shell.folder / 'pd' / 'model_index.json'
    ).exists(), 'this short table ends far from unit noise'
    assert (shell.folder / 'out-sfd' / 'unet').is_dir()
    plan = shell.json(
        'bdense_distill new --teacher mine --preset fashion_mnist_pd --start_steps 4 --nfe 2 --steps 1 --batch 2 --data photos --dry-run'
    )
    assert plan['data'] == 'photos: 6 of shape (1, 8, 8)' and plan['rounds'] == ['4 to 2 steps']


def test_a_null_class_reaches_every_command_that_reads_a_diffusers_teacher(shell):
    diffusers = pytest.importorskip('diffusers')
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=('DownBlock2D',),
        up_block_types=('UpBlock2D',),
        num_class_embeds=3,
    )
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler(num_train_timesteps=100)).save_pretrained(
        'mine'
    )
    budget = '--teacher mine --preset demo --K 2 --steps 1 --batch 2 --pool 2 --trust_teacher'
    assert 'pass --null_class 2' in shell(f'bdense_distill plain {budget} --dry_run')[1]
    assert 'leave --null_class out' in shell('bdense_distill x --null_class 2 --dry_run', 1)[1]
    shell(f'bdense_distill s {budget} --null_class 2')
    shell.believes()
    assert find_student('s', None, Networks()).denoiser.n_classes == 2
    assert (
        shell.json('bdense_evaluate s --teacher mine --null_class 2 --n 2 --trust_teacher')['rows'][
            0
        ]['nfe']
        == 2
    )
    told = shell('bdense_evaluate s --teacher mine --n 2', 1)[1]
    assert 'was not distilled from mine' in told and 'made by: bdense_distill s --teacher' in told
    assert (
        'pass --null_class'
        not in shell(f'bdense_search new {budget} --null_class 2 --n 2 --dry_run')[1]
    )
    shell('bdense_export s out --to diffusers')
    for name in ('s', 'out --dry_run'):
        assert 'label must be in 0..1' in shell(f'bdense_sample {name} --n 2 --label 2', 1)[1]
    assert '--null_class' in shell('bdense_sample s --null_class 2', 2)[1], (
        'a student knows its own'
    )


def text_pipeline(folder, **more):  # what bdense_distill reads of Stable Diffusion
    diffusers = pytest.importorskip('diffusers')
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=12,
        mid_block_type=None,  # a third of its work
        down_block_types=('CrossAttnDownBlock2D',),
        up_block_types=('CrossAttnUpBlock2D',),
    )
    unet.save_pretrained(folder / 'unet')
    diffusers.DDPMScheduler(prediction_type='v_prediction').save_pretrained(folder / 'scheduler')
    return unet


def test_what_no_stock_pipeline_takes_is_said_before_the_training(tmp_path, capsys):
    text_pipeline(tmp_path)
    from diffusers import DDPMScheduler

    DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule='scaled_linear'
    ).save_pretrained(tmp_path / 'scheduler')
    teacher, shape = sources.from_diffusers(tmp_path), (4, 8, 8)
    for afs, note in (
        (True, 'cannot go into a stock pipeline, whose noise is 1.1% off; with --no_afs it can'),
        (False, ''),
    ):
        note_pipeline(teacher, SFDConfig(afs=afs).fitted(teacher, shape), shape)
        assert note in (out := capsys.readouterr().out) and bool(note) == bool(out)


def test_a_network_told_a_text_from_the_shell(shell):
    "Its conditions are asked for, kept with the student, chosen by row, and read where bdense_nb is not."
    text_pipeline(shell.folder / 'mine')
    table = {'encoder_hidden_states': torch.randn(5, 4, 12)}
    for name, rows in (
        ('text', table),
        ('null', {k: v[:1] for k, v in table.items()}),
        ('wide', {k: v[..., :3] for k, v in table.items()}),
    ):
        save_tensors(Path(f'{name}.safetensors'), rows)
    run = 'bdense_distill s --teacher mine --preset demo --K 2 --steps 1 --batch 2 --pool 2 --trust_teacher'
    assert 'must be told encoder_hidden_states: pass --conditions' in shell(run, 1)[1]
    assert (
        'pass --null_condition'
        in shell(run + ' --conditions text.safetensors --guidance_scale 3', 1)[1]
    )
    plan = shell.json(run + ' --conditions text.safetensors --dry_run')
    assert 0 < plan['gpu_memory_gb'] < 0.1 and re.fullmatch(
        r'of 80 GB: fits, with up to [\d,]+ samples at a time', plan['on_one_gpu']
    )
    guided = ' --conditions text.safetensors --guidance_scale 3 --null_condition null.safetensors'
    shell(run + guided)
    shell.believes()
    plan = shell.json(run.replace('distill s', 'search new') + f'{guided} --n 2 --dry_run')
    assert (plan['run'], plan['nfe']) == ('begins', [2])
    student = find_student('s', None, Networks())
    assert torch.equal(
        student.denoiser.conditions.rows['encoder_hidden_states'], table['encoder_hidden_states']
    )
    card = Path('s/README.md').read_text()
    assert '(guidance_scale) | 3.0 |' in card and '`guidance_scale=1.0`' in card
    shell('bdense_sample s --n 3 --rows 4,0')
    mine = load_tensors('samples.safetensors')[0]['samples']
    torch.testing.assert_close(
        mine, student.sample(3, cond={k: v[[4, 0, 4]] for k, v in table.items()})
    )
    assert (
        'each of the rows must be between 0 and 4' in shell('bdense_sample s --n 3 --rows 5', 1)[1]
    )
    for wrong, says in (
        ('--rows 1 --label 1', 'rows are of a table: choose one of them'),
        ('--label 1', 'rows of its table of conditions are --rows'),
    ):
        assert says in shell(f'bdense_sample s --n 3 {wrong}', 1)[1]
    assert (
        'must have shape [B, L, 12]'
        in shell('bdense_sample s --n 3 --conditions wide.safetensors', 1)[1]
    )
    found = shell.json(
        'bdense_evaluate s --teacher mine --n 2 --trust_teacher --null_condition null.safetensors'
    )
    assert found['rows'][0]['nfe'] == 2
    shell('bdense_distill once --teacher s --steps 1 --batch 2 --pool 2 --trust_teacher')
    assert '(guidance_scale) | 3.0 |' in Path('once/README.md').read_text()
    assert (
        shell.json('bdense_evaluate once --teacher s --n 2 --trust_teacher')['rows'][0]['nfe'] == 1
    )
    for more in (' --dry_run', ''):
        found = shell.json(f'bdense_export s out --to diffusers{more}')['files']
        assert 'conditions.safetensors' in found
    assert (
        'no folder of a diffusers pipeline'
        in shell('bdense_export s piped --to diffusers --pipeline mine', 1)[1]
    )
    merged = 'bdense_export s piped --to diffusers --merge --dry_run'
    assert 'leave merge out' in shell(merged, 1)[1]
    assert 'belong to --to diffusers' in shell('bdense_export s piped --merge', 1)[1]
    assert not Path('piped').exists()
    assert shell.json(
        run.replace(' s ', ' other ')
        + ' --conditions text.safetensors --guidance_scale 1 --dry_run'
    )
    Path('s/conditions.safetensors').write_bytes(Path('null.safetensors').read_bytes())
    assert 'is damaged or not the one' in shell('bdense_sample s --n 3', 1)[1]


# --- interrupted ---


def test_an_interrupted_teacher_is_resumed(shell):
    command = 'bdense_teach teacher --data moons --steps 30 --batch 32 --checkpoint_every 10'
    shell(command)
    whole = Path('teacher/model.safetensors').read_bytes()
    sorted(Path('teacher/checkpoints').glob('checkpoint-*.safetensors'))[
        -1
    ].unlink()  # as if killed before the last checkpoint
    shell(command)
    assert Path('teacher/model.safetensors').read_bytes() == whole
    about = json.loads(Path('teacher/config.json').read_text())['about']
    assert about['command'] == command and about['images_seen'] == 30 * 32


def test_ctrl_c_ends_in_one_line_and_the_run_goes_on(tmp_path):
    args = [
        Path(sys.executable).parent / 'bdense_teach',
        'teacher',
        '--data',
        'moons',
        '--steps',
        '3000',
        '--batch',
        '32',
        '--checkpoint_every',
        '50',
        '--json',
    ]
    heard = lambda: signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # a job in the background of a shell starts deaf to Ctrl-C
    process = subprocess.Popen(
        args,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heard,
    )
    while process.poll() is None and not list(tmp_path.glob('teacher/checkpoints/checkpoint-*')):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.splitlines()[-1].startswith('bdense_teach: stopped'), (
        err
    )
    assert json.loads(out)['exit_code'] == 130 and list(
        tmp_path.glob('teacher/checkpoints/checkpoint-*')
    )


# --- what the options do ---


def test_hardware_and_training_fields_change_what_is_computed(at, tmp_path, monkeypatch):
    "Not their names are seen but their effect."
    budget = '--teacher plane --preset demo --steps 3 --batch 8 --pool 8 --K 2'

    def weights(name):
        return load_tensors(tmp_path / name / 'model.safetensors')[0]

    def differ(a, b):
        return max(float((v - weights(b)[k]).abs().max()) for k, v in weights(a).items())

    linear, seen = torch.nn.functional.linear, []

    def watched(*args):
        seen.append((y := linear(*args)).dtype)
        return y

    def dtypes(name, options):
        seen.clear()
        at(f'bdense_distill {tmp_path}/{name} {budget} {options}')
        return list(seen)

    monkeypatch.setattr(torch.nn.functional, 'linear', watched)
    plain = dtypes('plain', '')
    assert (
        set(plain) == {torch.float32}
        and torch.bfloat16 in dtypes('bf16', '--precision bf16')
        and 0 < differ('bf16', 'plain') < 0.1
    )
    conv, calls = torch.nn.functional.conv2d, []
    monkeypatch.setattr(torch.nn.functional, 'conv2d', lambda *args: calls.append(1) or conv(*args))
    counts = {}
    for name, option in (('unet', ''), ('again', '--recompute')):
        calls.clear()
        at(
            f'bdense_distill {tmp_path}/{name} --teacher small --preset demo --steps 1 --batch 2 --pool 2 --K 1 {option}'
        )
        counts[name] = len(calls)
    assert counts['again'] > counts['unet'] and differ('again', 'unet') < 1e-5, (
        'each block is computed once more'
    )
    assert (
        len(dtypes('parts', '--accumulate 4')) > len(plain) and differ('parts', 'plain') < 1e-4
    ), 'micro-batches give the same gradient'
    monkeypatch.undo()
    at.monkeypatch.chdir(at.made)
    at(f'bdense_distill {tmp_path}/ema {budget} --ema .9 --lr 1e-2')
    at(f'bdense_distill {tmp_path}/lr {budget} --lr 1e-2')
    teacher = load_tensors('plane/model.safetensors')[0]

    def moved(name):
        return sum(float((v - teacher[k]).square().sum()) for k, v in weights(name).items())

    assert moved('ema') < moved('lr'), 'an average of the weights lags behind them'
    at(f'bdense_distill {tmp_path}/clipped {budget} --clip_grad 1e-12 --lr 1e-2')
    assert moved('clipped') < 0.5 * moved('lr'), (
        'Adam forgives a scale, but not a gradient below its eps'
    )
    for name in ('bf16', 'ema', 'clipped', 'parts'):
        asked = json.loads((tmp_path / name / 'command.json').read_text())
        again = parse(
            'bdense_distill',
            COMMANDS['bdense_distill'],
            ['x', '--config', f'{tmp_path}/{name}/command.json'],
        )
        assert [type(p) for p in again[2:]] == [SFDConfig, Hardware] and dataclasses.asdict(
            again[3]
        ) == asked['hardware']


def test_the_hardware_of_searches_and_experiments_computes_their_students(shell):
    "Each training's products are in the precision that was asked for, of a search those of its confirmation too."
    teacher, dtypes, linear = EDMDenoiser(MLP(width=8, depth=1)), [], torch.nn.functional.linear
    save_denoiser(teacher, Path('plane'), dict(data='moons', shape=[2]))

    def watched(*args):
        dtypes.append((y := linear(*args)).dtype)
        return y

    def phase(room, name, real):
        def does(*args, **how):
            dtypes.clear()
            out = real(*args, **how)
            found[name] = set(dtypes)
            return out

        shell.monkeypatch.setattr(room, name, does)

    found, cfg = {}, SFDConfig(K=1, steps=1, batch=4, pool=4, shape=(2,))
    for name in ('search_weights', 'confirm_weights', 'run_experiment'):
        room = measuring if name == 'run_experiment' else commands
        phase(room, name, getattr(room, name))
    world = World(
        'here',
        lambda seed: teacher,
        (2,),
        lambda seed, width: None,
        None,
        lambda cfg, seed: torch.zeros(4, 2),
        {},
        4,
    )
    shell.monkeypatch.setitem(EXPERIMENTS, 'tiny', Experiment('?', world, (Arm('a', cfg),), 'a', 3))
    shell.monkeypatch.setattr(torch.nn.functional, 'linear', watched)
    for name, more in (('plain', ''), ('bf16', ' --precision bf16')):
        if more:
            shell(
                f'bdense_search {name} --teacher plane --trust_teacher --trials 1 --K 2 --steps 1 --batch 4 --pool 4 --n 4{more}'
            )
        shell(f'bdense_evaluate --experiment tiny --limit 1 --out {name}.json --folder kept{more}')
        for where, kinds in found.items():
            assert (torch.bfloat16 in kinds) is bool(more), where
        assert (
            json.loads(Path(f'{name}.json').read_text())['command']
            == f'bdense_evaluate --experiment tiny{more}'
        )
    assert json.loads(Path('bf16/command.json').read_text())['hardware']['precision'] == 'bf16'
    for place in (
        Path('kept'),
        Path('kept/precision=bf16'),
    ):  # what is kept of one is not the other's
        assert len([*place.glob('bank-*'), *place.glob('runs/*')]) == 2
    assert (
        'compile, precision belongs to an experiment'
        in shell('bdense_evaluate s --precision bf16 --compile', 1)[1]
    )


@pytest.mark.parametrize('nfe', ['2', '2,3'])
def test_a_run_is_looked_at_and_stays_the_same(at, tmp_path, nfe):
    line = f'bdense_distill {{}} --teacher plane --preset demo --steps 4 --batch 4 --pool 4 --nfe {nfe}'
    at(line.format(tmp_path / 'unseen'))
    at(line.format(tmp_path / 'seen') + ' --look_every 2')
    runs = tmp_path / 'seen' / 'checkpoints'
    assert [p.name for p in sorted((runs / 'samples').iterdir())] == [
        '00000002.png',
        '00000004.png',
    ]
    rows = [json.loads(line) for line in (runs / 'metrics.jsonl').read_text().splitlines()]
    errors = [row['paired_error'] for row in rows if 'paired_error' in row]
    assert len(errors) == 2 and errors[0] != errors[1]
    files = [tmp_path / name / 'model.safetensors' for name in ('unseen', 'seen')]
    assert files[0].read_bytes() == files[1].read_bytes()
    _, err = at(f'bdense_distill {tmp_path}/pd --preset fashion_mnist_pd --look_every 2', 1)
    assert 'look_every belongs to hosts of one training' in err


def test_compile_reaches_the_network(at, tmp_path, monkeypatch):
    "The compiler itself is replaced, so that none need be there; what it was asked to compile is seen, and it is what trains."
    asked = []
    monkeypatch.setattr(torch, 'compile', lambda f, *a, **k: asked.append(f) or f)
    monkeypatch.setattr(torch.nn.Module, 'compile', lambda self, *a, **k: asked.append(self))
    at(
        f'bdense_distill {tmp_path}/s --teacher plane --preset demo --steps 1 --batch 4 --pool 4 --compile'
    )
    assert asked


def test_a_teacher_that_gives_no_clean_estimates_is_refused(at, tmp_path):
    "A teacher of moons answers well enough on moons once trained; an untrained one does not."
    save_denoiser(EDMDenoiser(commands.MLP(), 5.0), tmp_path / 'wrong', dict(data='moons'))
    err = at(
        f'bdense_distill {tmp_path}/s --teacher {tmp_path}/wrong --preset demo --steps 1 --batch 4 --pool 4 --data moons',
        1,
    )[1]
    assert (
        'does not give clean estimates at' in err
        and '--trust_teacher' in err
        and not (tmp_path / 's').exists()
    )
    out = at(
        f'bdense_distill {tmp_path}/s --teacher {tmp_path}/wrong --preset demo --steps 1 --batch 4 --pool 4 --data moons --trust_teacher'
    )[0]
    assert 'the teacher is trusted, although' in out


class Other(torch.nn.Module):
    "A network that the package does not know."

    def __init__(self):
        super().__init__()
        self.body, self.out = torch.nn.Linear(3, 16), torch.nn.Linear(16, 2)

    def forward(self, x, noise, label=None):
        return self.out(
            torch.nn.functional.silu(
                self.body(torch.cat([x, noise.reshape(-1, 1).expand(len(x), 1)], 1))
            )
        )


CODE = """
import torch
from bdense_nb.diffusion.denoisers import EDMDenoiser
{}

def teacher(): torch.manual_seed(0); return EDMDenoiser(Other(), .7)
"""


def test_any_network_from_the_shell(shell):
    "From a module:callable to a student, its samples, its figures and an export."
    Path('mynets.py').write_text(CODE.format(inspect.getsource(Other)))
    shell(
        'bdense_distill s --teacher mynets:teacher --preset demo --shape 2 --steps 1 --batch 4 --pool 4 --layer out --K 2'
    )
    assert 'pass --net, a network of that kind' in shell('bdense_sample s --n 3', 1)[1]
    assert (
        'bdense_distill: shape=(5,) does not fit the teacher'
        in shell('bdense_distill x --teacher mynets:teacher --preset demo --shape 5 --dry_run', 1)[
            1
        ]
    )
    assert (
        "of a module that says D(x, sigma) itself, as EDM's do, as_denoiser(module)"
        in shell('bdense_distill x --teacher mynets:Other --preset demo --shape 2 --dry_run', 1)[1]
    )
    several = 'bdense_distill several --teacher mynets:teacher --preset demo --shape 2 --steps 1 --batch 4 --pool 4 --layer out --K 1 --nfe 2,3 --bank bank'
    assert (
        'pass --step_layer its name, one of: body, out' in shell(several, 1)[1]
        and not Path('bank').exists()
    )
    shell(several + ' --step_layer body')
    assert shell.json('bdense_sample s --n 3 --net mynets:Other')['shape'] == [2]
    assert (
        shell.json('bdense_evaluate s --n 3 --teacher mynets:teacher --net mynets:Other')['rows'][
            0
        ]['nfe']
        == 2
    )
    assert shell.json('bdense_export s out --net mynets:Other')['files'] == [
        'model.safetensors',
        'sampling.json',
    ]
    shell(
        'bdense_distill one --teacher several --net mynets:Other --steps 1 --batch 4 --pool 4 --layer out --K 1'
    )
    shell('bdense_teach own --data ring --steps 1 --batch 4 --net mynets:Other')
    assert load_denoiser('own', 'cpu', sys.modules['mynets'].Other).config == dict(sigma_data=0.7)
    assert (
        'net must make a torch.nn.Module'
        in shell('bdense_teach no --data ring --net builtins:dict', 1)[1]
    )
    sys.modules.pop('mynets')


def test_a_finished_run_is_lengthened(at, tmp_path):
    "And its longer student takes the place of the shorter; where that cannot be, the reason is said before the work."
    line = f'bdense_distill {tmp_path}/s --teacher {tmp_path}/t --batch 4 --lr_schedule constant --steps'
    at(f'bdense_teach {tmp_path}/t --data ring --steps 1 --batch 4')
    for steps in ('2 --log_every 1', '3 --log_every 2 --checkpoint_every 1'):
        at(f'{line} {steps} --trust_teacher')
    assert load_student(tmp_path / 's').about['config']['steps'] == 3
    moving = f'bdense_distill {tmp_path}/m --teacher {tmp_path}/t --batch 4 --lr_schedule constant --branch_weights_end endpoint --steps'
    at(f'{moving} 2')
    assert (
        'with branch_weights_end the weights of every iteration depend on steps'
        in at(f'{moving} 3', 1)[1]
    )


def test_a_null_class_is_no_class_of_its_own(at, tmp_path):
    at(f'bdense_teach {tmp_path}/t --data zoo --size 8 --steps 1 --batch 4 --null_class 1')
    assert load_denoiser(tmp_path / 't').n_classes == 1
    line = f'bdense_teach {tmp_path}/new --data zoo --size 8 --steps 1 --batch 4 --null_class'
    for null in (0, 5):
        assert f'the last class of the data, 1, got {null}' in at(f'{line} {null}', 1)[1]
    assert not (tmp_path / 'new').exists()
    at(
        f'bdense_distill {tmp_path}/s --teacher {tmp_path}/t --preset fashion_mnist_pd --start_steps 4 --nfe 2 --steps 1 --batch 4 --trust_teacher'
    )
    assert load_student(tmp_path / 's').denoiser.n_classes == 1


def test_a_teacher_that_saw_every_condition_is_not_guided(at, tmp_path):
    line = f'bdense_teach {tmp_path}/t --data zoo --size 8 --steps 1 --batch 4'
    at(f'{line} --label_drop 0')
    assert json.loads((tmp_path / 't' / 'config.json').read_text())['about']['label_drop'] == 0
    assert 'label_drop: 0.0 there, 0.1 now' in at(f'{line} --dry_run')[0]
    assert 'label_drop: 0.0 there, 0.1 now' in at(line, 1)[1]
    budget = '--preset demo --steps 1 --batch 4 --pool 4 --trust_teacher'
    distil = f'bdense_distill {tmp_path}/s --teacher {tmp_path}/t {budget}'
    assert 'never met the condition of "nothing"' in at(f'{distil} --guidance_scale 2', 1)[1]
    assert not (tmp_path / 's').exists()
    at(f'{distil} --guidance_scale 1 --dry_run')
    none = f'bdense_teach {tmp_path}/ring --data ring --steps 1 --batch 4 --label_drop 0.5'
    assert 'label_drop hides conditions, and ring has none' in at(none, 1)[1]


def test_overwrite_starts_again(at, tmp_path):
    for out, other in (
        (f'bdense_teach {tmp_path}/t --data ring --batch 8 --steps', ('2', '2 --lr .5')),
        (
            f'bdense_distill {tmp_path}/s --teacher plane --preset demo --batch 4 --pool 4 --steps',
            ('1', '1 --K 2'),
        ),
    ):
        at(f'{out} {other[0]}')
        told = at(f'{out} {other[1]}', 1)[1]
        assert 'another configuration' in told and 'another folder, or --overwrite' in told
        at(f'{out} {other[1]} --overwrite')
    assert load_student(tmp_path / 's').about['config']['K'] == 2


def files_in(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob('*')
        if p.is_file() and p.name != '.lock'
    }


def test_a_refused_start_loses_no_work(at, tmp_path, monkeypatch):
    student = f'bdense_distill {tmp_path}/s --teacher plane --preset demo --batch 4 --pool 4'
    teacher = f'bdense_teach {tmp_path}/t --data ring --steps 1 --batch 8'
    at(f'{student} --steps 1 --bank {tmp_path}/bk')
    at(teacher)
    before = files_in(tmp_path)
    fp16 = ' --precision fp16 --device cpu'
    at(f'{student} --steps 1 --bank {tmp_path}/bk --seed 5 --overwrite', 1)
    at(f'{student} --steps 1 --accumulate 3 --overwrite', 1)
    at(f'{teacher}{fp16} --overwrite', 1)
    for more in (' --overwrite', ''):
        with pytest.raises(StopIteration):
            at(f'{teacher} --net torch.nn:Identity{more}')
    assert files_in(tmp_path) == before
    killed = lambda out: None  # before its first iteration: nobody puts back
    with monkeypatch.context() as m:
        m.setattr(common, 'put_back', killed)
        at(f'{teacher}{fp16} --seed 3 --overwrite', 1)
    common.put_aside(f'{tmp_path}/s')
    left = files_in(tmp_path)
    for name in ('distill_plan', 'teach_plan', 'on_one_gpu'):
        monkeypatch.setattr(commands, name, lambda *how: {})
    for start in (teacher, f'{student} --steps 1'):
        assert at.json(f'{start} --dry_run')['run'] == 'is finished: iteration 1 of 1'
        refused = at.json(f'{start} --batch 2 --dry_run')['run']
        assert refused.startswith(f'would be refused: {tmp_path}/') and '.before' not in refused
    assert files_in(tmp_path) == left != before, 'a dry run puts nothing back'
    for out in 'st':
        common.put_back(f'{tmp_path}/{out}')
    assert files_in(tmp_path) == before


def test_a_folder_in_use_is_left_to_its_owner(at, tmp_path):
    with held(tmp_path / 's'):
        err = at(
            f'bdense_distill {tmp_path}/s --teacher plane --preset demo --steps 1 --batch 4 --pool 4',
            1,
        )[1]
    assert 'is in use by another process' in err.splitlines()[-1]


def test_an_interrupted_demonstration_goes_on(shell, monkeypatch):
    monkeypatch.setitem(PRESETS, 'demo', preset('demo', batch=4, pool=4, steps=1))
    monkeypatch.setattr(
        commands, 'measure_arms', lambda arms, n: (_ for _ in ()).throw(KeyboardInterrupt())
    )
    err = shell('bdense_demo --n 4', 130)[1]
    assert 'note:' not in err, 'right use warns of nothing'
    assert {p.name for p in Path('demo_out').iterdir() if p.name != '.lock'} == {
        'command.json',
        'checkpoints',
    }
    monkeypatch.setattr(commands, 'measure_arms', lambda arms, n: ([], {}))
    monkeypatch.setattr(commands, 'draw_arms', lambda *args: None)
    monkeypatch.setattr(commands, 'print_table', lambda rows: sys.exit(0))
    shell('bdense_demo --n 4')
    assert {p.name for p in Path('demo_out').iterdir() if p.name != '.lock'} == {
        'command.json',
        'report.json',
    }


def test_a_teachers_table_of_conditions_has_a_checksum(tmp_path):
    table, other = (ConditionTable(torch.full((3, 2), v)) for v in (1.0, 2.0))
    save_denoiser(
        EDMDenoiser(commands.MLP(width=8, depth=1), 0.7),
        tmp_path,
        dict(conditions_sha256=checksum(table.tensors, {})),
    )
    table.save(tmp_path / 'conditions.safetensors')
    assert torch.equal(
        sources.find_teacher(str(tmp_path), common.Teachers(device='cpu')).conditions.rows,
        table.rows,
    )
    other.save(tmp_path / 'conditions.safetensors')
    with pytest.raises(ValueError, match='conditions.safetensors is damaged or not the one'):
        sources.find_teacher(str(tmp_path), common.Teachers(device='cpu'))


def families_of_text():
    "Folders of a pipeline each, their latents and what they are told; beside each, the shape of its latents."
    diffusers = pytest.importorskip('diffusers')
    flow, g = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), torch.Generator().manual_seed(0)
    text_pipeline(Path('sd'))
    dit = dict(
        num_attention_heads=2, attention_head_dim=8, num_layers=1, sample_size=8, in_channels=4
    )
    nets = dict(
        pixart=diffusers.PixArtTransformer2DModel(
            **dit, out_channels=8, cross_attention_dim=16, caption_channels=12, norm_num_groups=4
        ),
        sd3=diffusers.SD3Transformer2DModel(
            **dit,
            out_channels=4,
            joint_attention_dim=12,
            caption_projection_dim=16,
            pooled_projection_dim=10,
            pos_embed_max_size=8,
        ),
        flux=diffusers.FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=12,
            pooled_projection_dim=10,
            axes_dims_rope=(2, 2, 4),
        ),
    )
    for name, net in nets.items():
        net.save_pretrained(f'{name}/transformer')
        (
            flow if name != 'pixart' else diffusers.DDPMScheduler(prediction_type='v_prediction')
        ).save_pretrained(f'{name}/scheduler')
    shapes = dict(sd=(4, 16, 16), pixart=(4, 8, 8), sd3=(4, 8, 8), flux=(4, 4, 6))
    for name, shape in shapes.items():
        rows = {'encoder_hidden_states': torch.randn(5, 4, 12, generator=g)} | (
            {'pooled_projections': torch.randn(5, 10, generator=g)}
            if name in ('sd3', 'flux')
            else {}
        )
        save_tensors(Path(f'{name}-text.safetensors'), rows)
        save_tensors(Path(f'{name}.safetensors'), {'samples': torch.randn(5, *shape, generator=g)})
    return shapes


def test_progressive_distillation_of_what_is_told_a_text(shell):
    "Each family, from a file of latents and the condition of each; the shape is that of the latents, or as it is said."
    for name, shape in families_of_text().items():
        run = f'bdense_distill {name}-pd --teacher {name} --preset fashion_mnist_pd --K 2 --start_steps 4 --nfe 2 --steps 1 --batch 2 --trust_teacher --conditions {name}-text.safetensors'
        if name in ('sd', 'flux'):
            assert 'pass --data FILE.safetensors with samples' in shell(run, 1)[1]
        if name == 'sd':
            assert 'needs the condition of every sample' in shell(run + ' --data moons', 1)[1]
        shell(run + f' --data {name}.safetensors' + (' --shape 4,4,6' if name == 'flux' else ''))
        shell.believes()
        student = find_student(f'{name}-pd', None, Networks())
        assert (
            student.about['host'] == 'pd'
            and student.shape == shape
            and len(student.denoiser.conditions) == 5
        )
        assert shell.json(f'bdense_sample {name}-pd --n 3 --rows 4,0')['shape'] == list(shape)
    for more, says in (
        (' --shape 4,4,4', 'has samples of shape (4, 4, 6), and (4, 4, 4) was asked for'),
        (' --shape 3,4,6', 'the samples of flux are of shape (4, 128, 128), not (3, 4, 6)'),
    ):
        assert says in shell(run.replace('flux-pd', 'x') + f' --data flux.safetensors{more}', 1)[1]
    save_tensors(
        Path('one.safetensors'),
        {k: v[:1] for k, v in load_tensors('flux-text.safetensors')[0].items()},
    )
    assert (
        'flux.safetensors holds 5 samples and the conditions have 1 rows'
        in shell(run.replace('flux-text', 'one') + ' --data flux.safetensors', 1)[1]
    )
    assert (
        'must hold a tensor named samples, [N, *D]'
        in shell(run + ' --data flux-text.safetensors', 1)[1]
    )
    plan = shell.json(
        'bdense_distill y --teacher flux --preset demo --K 2 --steps 1 --batch 2 --pool 2 --size 4,6 --trust_teacher --conditions flux-text.safetensors --data flux.safetensors --dry_run'
    )
    assert plan['shape'] == [4, 4, 6] and plan['data'] == 'flux.safetensors: 5 of shape (4, 4, 6)'


@pytest.mark.parametrize(
    'width, layers, more, says',
    [
        (80, 2, {}, 'fits, with up to'),
        (80, 2, dict(batch=512), r'512 samples .* do not fit; --accumulate \d+ makes it fit'),
        (120, 2, {}, '--lora 8 .*makes it fit'),
    ],
)
def test_a_dry_run_says_whether_one_gpu_is_enough(width, layers, more, says):
    "A billion parameters and more, on paper: the answer holds for the options that it names."
    diffusers = pytest.importorskip('diffusers')
    with torch.device('meta'):
        net = diffusers.SD3Transformer2DModel(
            sample_size=64,
            in_channels=16,
            out_channels=16,
            num_layers=layers,
            num_attention_heads=width,
            caption_projection_dim=64 * width,
            pos_embed_max_size=96,
        )
    teacher = sources.from_diffusers(net, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    teacher.conditions = commands.ConditionTable(
        dict(
            encoder_hidden_states=torch.zeros(1, 154, 4096), pooled_projections=torch.zeros(1, 2048)
        )
    )
    cfg = SFDConfig(
        **dict(nfe=2, K=4, afs=False, sigma_max=1000.0, shape=(16, 64, 64), batch=8, ema=0.999)
        | more
    )
    assert sum(p.numel() for p in net.parameters()) > 1e9
    if 'lora' in says:
        pytest.importorskip('peft')
    found = commands.on_one_gpu(teacher, cfg, cfg.shape, Hardware())['on_one_gpu']
    assert re.match('of 80 GB: ', found) and re.search(says, found), found
    if '--lora' not in found and (parts := re.search(r'--accumulate (\d+)', found)):
        n = int(parts[1])
        again = commands.on_one_gpu(teacher, cfg, cfg.shape, Hardware(accumulate=n))['on_one_gpu']
        fits = int(re.search(r'fits, with up to ([\d,]+)', again)[1].replace(',', ''))
        assert cfg.batch / n <= fits < 2 * cfg.batch / n


def test_a_dry_run_says_that_one_gpu_is_not_enough(monkeypatch):
    tried = []
    monkeypatch.setattr(
        commands,
        'on_paper',
        lambda *how: (
            tried.append(how)
            or dict(
                memory_gb=900.0, batch_fits=0, device_gb=80.0, weights_gb=400.0, training_gb=480.0
            )
        ),
    )
    found = commands.on_one_gpu(
        EDMDenoiser(UNet(channels=1)), SFDConfig(batch=8, shape=(1, 8, 8)), (1, 8, 8), Hardware()
    )
    assert found == dict(
        gpu_memory_gb=900.0,
        on_one_gpu='of 80 GB: 8 samples at a time do not fit; not even one does, weights and training alone take 880 GB: take several GPUs with --shard',
    )
    assert [how[3].recompute for how in tried] == [False, True]
    monkeypatch.setattr(commands, 'on_paper', lambda *how: {}['a host of your own'])
    found = commands.on_one_gpu(None, SFDConfig(), (1, 8, 8), Hardware())
    assert found == dict(gpu_memory_gb=None, on_one_gpu='not known for this host or network')


class Shaped(torch.nn.Module):
    "A network that shapes its answer as each sample, or with all=True as the whole batch."

    def __init__(self, all=False):
        super().__init__()
        self.out, self.all = torch.nn.Linear(12, 12), all

    def forward(self, x, noise):
        return self.out(x.flatten(1)).view(x.shape if self.all else (-1, *x.shape[1:]))


def test_a_network_without_numbers_is_planned_on_paper_alone(shell):
    def empty(all=False):
        with torch.device('meta'):
            return EDMDenoiser(Shaped(all))

    shell.monkeypatch.setitem(
        sys.modules, 'empty', types.SimpleNamespace(make=empty, all=lambda: empty(True))
    )
    line = 'bdense_distill x --teacher empty:{} --size 3,2,2 --preset demo --batch 4 --K 4'
    plan = shell.json(line.format('make') + ' --dry_run')
    assert (
        plan['parameters'] == 156
        and 'fits, with up to' in plan['on_one_gpu']
        and plan['gpu_memory_gb'] > 0
        and {plan[k] for k in ('seconds', 'seconds_teacher', 'memory_gb')} == {None}
    )
    for other in (
        line.format('make'),
        line.format('make').replace('distill', 'compare') + ' --dry_run',
    ):
        assert 'without numbers' in shell(other, 1)[1]
    assert 'cannot be given 4 branches' in shell(line.format('all') + ' --dry_run', 1)[1]
    with pytest.raises(ValueError, match='cannot be given 4 branches'):
        memory_on_paper(EDMDenoiser(Shaped(True)), SFDConfig(shape=(3, 2, 2), batch=4))


def test_adapters_from_the_shell(shell):
    pytest.importorskip('peft', reason='LoRA needs peft (pip install peft)')
    text_pipeline(shell.folder / 'mine')
    save_tensors(Path('text.safetensors'), {'encoder_hidden_states': torch.randn(5, 4, 12)})
    shell(
        'bdense_distill s --teacher mine --preset demo --K 2 --steps 1 --batch 2 --pool 2 --trust_teacher --conditions text.safetensors --lora 2'
    )
    shell.believes()
    Path('bare').mkdir()
    Path('mine/unet').rename('bare/transformer')
    assert sources.is_diffusers('bare')
    Path('bare/transformer').rename('mine/unet')
    shell('bdense_export s light --to diffusers')
    shell('bdense_export s whole --to diffusers --merge')
    assert (
        Path('light/unet/head.safetensors').is_file()
        and Path('whole/unet/diffusion_pytorch_model.safetensors').is_file()
    )
    (
        shell('bdense_sample s --n 2 --rows 0,1 --out a.png'),
        shell('bdense_sample whole --n 2 --rows 0,1 --out b.png'),
    )
    a, b = (load_tensors(f'{n}.safetensors')[0]['samples'] for n in 'ab')
    torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
    assert (
        'light holds an adapter and an output layer, and no whole network'
        in shell('bdense_sample light --n 2', 1)[1]
    )


def test_the_teacher_of_a_second_stage_is_the_student_whose_steps_it_walks(tmp_path):
    teacher = shaken(EDMDenoiser(MLP(width=8, depth=1)))
    cfg = SFDVConfig(nfe=(2, 5), shape=(2,))
    grids = {n: c.grids[1] for n, c in cfg.each.items()}
    layer = find_step_layer(teacher)
    biases = torch.stack([teacher.net.get_submodule(layer).bias + i for i in range(2)])
    VariableStudent(teacher, biases, layer, grids, True, (2,), dict(host='sfd-v')).save(tmp_path)
    five = load_student(tmp_path, 'cpu').at(5)
    found = sources.find_teacher(str(tmp_path), common.Teachers(device='cpu'))
    assert denoiser_hash(found) == denoiser_hash(five.denoiser)
    for more, steps in (({}, (2, 3)), (dict(nfe='2'), (3, 2))):
        cfg, _ = commands.distill_configs(dict(teacher=str(tmp_path), preset_name='demo') | more)
        assert (cfg.n_steps, cfg.substeps) == steps and cfg.afs
        assert cfg.suited(found).grids[0].tolist() == five.sigmas.tolist()


def test_a_second_stage_must_save_network_calls(at, tmp_path):
    line = f'bdense_distill {tmp_path}/x --teacher student --K 1 --steps 1 --batch 4 --pool 4 --nfe'
    other = line.replace('distill', 'compare').replace('--K 1', '--arms a:lr=.1;b:lr=.2')
    for asked in (f'{line} 2', f'{line} 2 --no_afs', f'{line} 3', f'{other} 2', f'{other} 7'):
        told = at(f'{asked} --dry_run', 1)[1]
        calls = asked.split('--nfe ')[1].split()[0]
        assert f'a student of {calls} NFE saves nothing: its teacher, student, takes 2' in told
    assert 'K must divide 3, got 2' in at(line.replace('--K 1', '--K 2') + ' 1 --no_afs', 1)[1]
    assert not (tmp_path / 'x').exists()
    other = other.replace('student', 'several').replace('--nfe', '--n 4 --calls')
    assert 'knows its own 6 Euler steps alone' in at(f'{other} 1,2', 1)[1]
    assert not (tmp_path / 'x/runs').exists()  # none was trained
    with at.monkeypatch.context() as older:  # what an older version has made is not made again
        older.setattr(sources, 'check_saving', lambda *_: None)
        at(f'{line} 2')
    assert at.json(f'{line} 2 --dry_run')['run'] == 'is finished: iteration 1 of 1'
    assert 'the run is finished' in at(f'{line} 2')[0]
    assert 'saves nothing' in at(f'{line} 2 --overwrite', 1)[1]
    before = files_in(Path('student'))
    told = at(line.replace(f'{tmp_path}/x', 'student') + ' 1 --overwrite', 1)[1]
    assert 'student is the teacher, too' in told and files_in(Path('student')) == before
    second = load_student('student', 'cpu')
    plain = EDMDenoiser(MLP(width=8, depth=1, n_classes=2))
    student = Student(plain, second.sigmas, second.afs, (2,), second.about).denoiser
    options = commands.Distill(out='x', teacher='student')
    check = partial(sources.check_stage, options, [second_stage(second, nfe=2)])
    with pytest.raises(ValueError, match='saves nothing'):
        check(student, lambda: False)
    check(student, lambda: True)  # all of it was done by an older version
    check(GuidedDenoiser(student, 2.0), lambda: False)  # its two calls become one


def test_an_export_is_said_to_be_one(at, tmp_path):
    at(f'bdense_export student {tmp_path}/e')
    line = f'bdense_distill {tmp_path}/x --steps 1 --batch 4 --pool 4'
    for asked in (f'{line} --teacher {tmp_path}/e', f'bdense_sample {tmp_path}/e --n 2'):
        told = at(asked, 1)[1]
        assert f'{tmp_path}/e is an export for other programs' in told and 'unet' not in told
    for named in ('e', 'e/sampling.json'):
        told = at(f'{line} --teacher plane --config {tmp_path}/{named}', 1)[1]
        assert 'e/sampling.json holds no configuration: name the folder of a run' in told


def test_a_preset_for_a_teacher_of_ones_own_says_that_none_is_named(capsys):
    known = COMMANDS | comparing.COMMANDS
    for name in ('bdense_distill', 'bdense_compare', 'bdense_search'):
        for more, told in (
            (['--preset', 'cifar10-sfd'], True),
            (['--preset=imagenet64-sfd', '--teacher=spiral'], False),
            (['--preset', 'fashion_mnist'], False),
        ):
            parse(name, known[name], ['x', *more])
            assert ('NO TEACHER IS NAMED' in capsys.readouterr().out) == told


def test_a_file_without_a_configuration_says_what_may_be_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def refusal(command, found, name='mine.json'):
        Path(name).write_text(json.dumps(found))
        with pytest.raises(ValueError) as e:
            parse(command, COMMANDS[command], ['x', '--config', name])
        return str(e.value)

    for command in ('bdense_teach', 'bdense_distill'):
        for found, name in (
            (dict(batch=4, data='1234'), 'run.json'),  # of a teacher
            (dict(teacher='1', sigmas=[2, 1], batch=4), 'run.json'),  # of a bank
            (dict(command='bdense_compare x', bdense_nb='1', host='host', configs=[]), 'c.json'),
            (dict(rows=[]), 'speed.json'),
        ):
            assert refusal(command, found, name).startswith(f'{name} holds no configuration: name')
    distilled = dict(K=2, host='sfd', teacher='1')
    assert 'run.json is of bdense_distill' in refusal('bdense_teach', distilled, 'run.json')
    for name in common.HERE:  # of one start: a file would not be obeyed
        found = refusal('bdense_distill', dict(config=dict(K=2), options={name: 'x'}))
        assert f'names {name}, which a file for bdense_distill does not have: take it out' in found
        assert found.startswith('mine.json') and '; it has device, net' in found


def test_weights_of_a_preset_that_do_not_suit_K_are_an_option(shell):
    line = 'bdense_distill x --preset fashion_mnist_pd --K 4 --substeps 4'
    assert 'such as --branch_weights linear, got (0.1, 0.9)' in shell(line, 1)[1]
    told = shell(line.replace('--substeps 4', '').replace('--K', '--branches'), 1)[1]
    assert 'pass --substeps 4, and --branch_weights linear or 4 numbers, not (0.1, 0.9)' in told


def test_a_dry_run_of_a_search_says_what_becomes_of_the_one_that_is_there(shell):
    teacher = EDMDenoiser(MLP(width=8, depth=1))
    save_denoiser(teacher, Path('plane'), dict(data='moons', shape=[2]))
    shell.monkeypatch.setattr(commands, 'search_plan', lambda *how: {})
    how = dict(steps=1, batch=4, pool=4)
    line = 'bdense_search s --teacher plane --n 4 --dry_run --trust_teacher --trials 2'
    line += ''.join(f' --{k} {v}' for k, v in how.items())
    assert shell.json(line)['run'] == 'begins' and not Path('s').exists()
    cfg = preset('demo', shape=(2,), **how)
    Path('s').mkdir()
    search_weights(teacher, cfg, 1, Path('s/search.db'), n_samples=4, show=False)
    before = files_in(Path('s'))
    assert shell.json(line)['run'] == 'goes on: 1 of 2 trials are done'
    told = shell.json(line + ' --lr .5')['run']
    assert told.startswith('would be refused: s/search.db holds a study') and '0.5 now' in told
    assert told.endswith('; use another folder')
    assert files_in(Path('s')) == before
    with contextlib.closing(sqlite3.connect('s/search.db')) as other:
        other.execute('PRAGMA journal_mode=WAL')
        search_weights(teacher, cfg, 2, Path('s/search.db'), n_samples=4, show=False)
        assert Path('s/search.db-wal').stat().st_size
        assert shell.json(line)['run'] == 'goes on: 2 of 2 trials are done'
    Path('s/search.db').write_bytes(b'no database')
    assert shell.json(line)['run'].startswith('would be refused: s/search.db is damaged')


def test_torchrun_takes_no_option_behind_two_dashes():
    from torch.distributed.run import get_args_parser

    with pytest.raises(ValueError) as e:
        check_launch({'ACCELERATE_USE_CPU': 'True', 'MASTER_ADDR': '127.0.0.1'})
    line = str(e.value).partition('torchrun ')[2].partition('-- ')
    asked = get_args_parser().parse_args([*line[0].split(), '--', 'bdense_demo', '--n', '4'])
    assert (asked.training_script, asked.training_script_args) == ('bdense_demo', ['--n', '4'])
