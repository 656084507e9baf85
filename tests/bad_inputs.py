"""Inputs that nobody should give: damaged and foreign files, senseless options, full disks, streams that are shut.

Whatever comes in, a command ends with exit code 0, 1 or 2, without a traceback; if not 0, its last line names the file or
the option, and what was there before is still there.
"""

import ctypes
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from forks import ended, fork, run_here
from kills import RUNS, Attack, Ended, Lab, arguments, difference, leftovers, result, watch_changes

TINY = '--preset demo --K 2 --steps 10 --batch 8 --pool 16'
HALF = f'bdense_distill half --teacher plane {TINY.replace("10", "12")}'  # a run that was killed on the way
SEARCH = (
    'bdense_search found --teacher plane --preset demo --K 2 --n 8 --steps 2 --batch 4 --pool 8'
)
EVALUATE = 'bdense_evaluate student --teacher plane --n 4 --out figures.json'
EXPERIMENT = 'bdense_evaluate --experiment ring_sfd --limit 1 --out ring_sfd.json'
FROM_UNET = f'bdense_distill new --teacher unet {TINY}'
READERS = [  # (a JSON file, a command that reads it)
    ('plane/config.json', f'bdense_distill new --teacher plane {TINY}'),
    ('plane/config.json', EVALUATE),
    ('student/config.json', 'bdense_sample student --n 2'),
    ('student/config.json', EVALUATE),
    ('student/config.json', 'bdense_export student new'),
    ('student/config.json', f'bdense_distill new --teacher student {TINY}'),
    ('several/config.json', 'bdense_sample several --n 2 --nfe 2'),
    ('half/checkpoints/run.json', HALF),
    ('bank/nfe-2/run.json', f'bdense_distill new --teacher plane --bank bank {TINY}'),
    ('found/search.json', SEARCH + ' --trials 4'),
    ('exported/sampling.json', 'bdense_export student exported'),
    ('figures.json', EVALUATE),
    ('demo_out/report.json', 'bdense_demo --out demo_out'),
    ('ring_sfd.json', EXPERIMENT),
    ('unet/config.json', FROM_UNET),
    ('unet/scheduler/scheduler_config.json', FROM_UNET),
    ('pipeline/model_index.json', FROM_UNET.replace('unet', 'pipeline')),
]
REWRITTEN = (
    'found/search.json',
    'half/checkpoints/run.json',
)  # what they say is also elsewhere: a command may mend them
WHOLE = ('unet', 'pipeline', 'demo_out', 'exported')  # folders that are refused as a whole
JSONS = {  # how a JSON file is damaged
    'empty': b'',
    'a list': b'[]',
    'null': b'null',
    'a number': b'7',
    'foreign': b'{"a": {"b": 1}}',
    'not text': b'\xff\xfe\x00{',
    'deep': b'[' * 100_000,
    'cut': None,
}
FIELDS = [  # (a JSON file, a field in it, what it says instead, a command that reads it)
    *[
        ('student/config.json', 'about.student.sigmas', v, 'bdense_sample student --n 2')
        for v in ([], [1.0], [1.0, 2.0], [2.0, 'x'], [2.0, float('nan'), 0.0], None, 'x', {})
    ],
    *[
        ('student/config.json', 'about.student.afs', v, 'bdense_sample student --n 2')
        for v in ('no', 1, None)
    ],
    *[
        ('student/config.json', 'about.student.shape', v, 'bdense_sample student --n 2')
        for v in ([], [-1], ['a'], [3], 2, None)
    ],
    *[('student/config.json', 'about', v, 'bdense_sample student --n 2') for v in ([], None, 'x')],
    *[('student/config.json', 'about.config', v, EVALUATE) for v in ({}, None, dict(nfe='x'), [])],
    *[
        ('plane/config.json', 'net_config.depth', v, f'bdense_distill new --teacher plane {TINY}')
        for v in (10**9, -1, 'x', None, 2.5)
    ],
    *[
        ('plane/config.json', 'net_config.width', v, f'bdense_distill new --teacher plane {TINY}')
        for v in (10**9, 0, '128')
    ],
    *[
        ('plane/config.json', f, 'Nope', f'bdense_distill new --teacher plane {TINY}')
        for f in ('net', 'denoiser', 'sha256')
    ],
    *[
        ('plane/config.json', 'config.sigma_data', v, f'bdense_distill new --teacher plane {TINY}')
        for v in ('x', -1, float('nan'), None)
    ],
    ('plane/config.json', 'net_config.future', 1, f'bdense_distill new --teacher plane {TINY}'),
    ('half/checkpoints/run.json', 'future', 1, HALF),
    ('half/checkpoints/run.json', 'steps', 'many', HALF),
    *[
        ('several/config.json', 'about.student.grids', v, 'bdense_sample several --n 2 --nfe 2')
        for v in ({}, {'x': [1.0, 0.0]}, {'2': [1.0]}, [])
    ],
    *[
        (
            'several/config.json',
            'about.student.step_layer',
            v,
            'bdense_sample several --n 2 --nfe 2',
        )
        for v in ('nope', 3)
    ],
    *[('exported/sampling.json', 'grid', v, 'bdense_export student exported') for v in ([], 'x')],
]
TENSORS = [  # (a file of tensors, a command that reads it, may the command do without it?)
    ('plane/model.safetensors', f'bdense_distill new --teacher plane {TINY}', False),
    ('student/model.safetensors', 'bdense_sample student --n 2', False),
    ('student/model.safetensors', 'bdense_export student new', False),
    ('several/step_biases.safetensors', 'bdense_sample several --n 2 --nfe 2', False),
    (
        'bank/nfe-2/trajectories-00000.safetensors',
        f'bdense_distill new --teacher plane --bank bank {TINY}',
        False,
    ),
    ('half/checkpoints/NEWEST', HALF, True),
    ('half/checkpoints/best.safetensors', HALF, True),
    ('four.safetensors', 'bdense_sample student --n 2 --out four.png', True),
]
VALUES = ('', 'nope', '-1', 'nan', '1e999', '9' * 30, '../nowhere/at/all')
OPTIONS = [  # commands whose every option gets each of VALUES
    'bdense_teach new --data ring --preset quick --steps 1 --dry_run',
    f'bdense_distill new --teacher plane {TINY} --dry_run',
    'bdense_distill new --teacher plane --data ring --preset fashion_mnist_pd --nfe 2 --start_steps 8 --steps 2 --batch 8 --dry_run',
    'bdense_search new --teacher plane --preset demo --K 2 --n 8 --steps 2 --batch 4 --pool 8 --dry_run',
    'bdense_sample student --n 2 --dry_run',
    'bdense_evaluate student --teacher plane --n 4 --dry_run',
    'bdense_export student new --dry_run',
]
ALSO = {
    '--K': 'branches',
    '--branches': 'K',
    '--weights': 'branch_weights',
    '--preset': 'preset_name',
    '--preset_name': 'preset',
    '--to': 'format',
}
LINES = [  # senseless command lines, and what the last line has to name
    ('bdense_sample figures.json', 'figures.json'),
    ('bdense_sample ""', "''"),
    ('bdense_distill ""', "''"),
    ('bdense_sample student --out student', 'student'),
    ('bdense_sample student --out figures.json', 'figures.json'),
    ('bdense_sample student --out figures.json/a.png', 'figures.json'),
    (f'bdense_distill figures.json --teacher plane {TINY}', 'figures.json'),
    (f'bdense_distill figures.json/run --teacher plane {TINY}', 'figures.json'),
    (f'bdense_distill plane --teacher plane {TINY}', 'plane'),
    (f'bdense_distill new --teacher figures.json {TINY}', 'figures.json'),
    (f'bdense_distill new --teacher plane --bank figures.json {TINY}', 'figures.json'),
    (f'bdense_distill new --teacher plane --bank plane {TINY}', 'plane'),
    (f'bdense_distill student --teacher plane {TINY} --lr .1', 'student'),
    (f'bdense_distill {"x" * 300} --teacher plane {TINY}', 'x' * 20),
    ('bdense_teach plane --data moons --preset quick --steps 20 --batch 16', 'plane'),
    ('bdense_teach new --data figures.json', 'figures.json'),
    ('bdense_teach student --data ring', 'student'),
    ('bdense_export student plane', 'plane'),
    ('bdense_export student figures.json', 'figures.json'),
    ('bdense_export plane new', 'plane'),
    ('bdense_export student new --to onnx,diffusers', 'onnx'),
    ('bdense_evaluate student --teacher plane --out plane --n 4', 'plane'),
    ('bdense_evaluate student --teacher plane --out plane/config.json --n 4', 'config.json'),
    ('bdense_evaluate student --teacher fashion_mnist --n 4', 'fashion_mnist'),
    ('bdense_evaluate plane --teacher plane', 'plane'),
    ('bdense_search plane --teacher plane', 'plane'),
    (SEARCH + ' --trials 4 --seed 7', 'found'),
    ('bdense_notebooks figures.json', 'figures.json'),
    ('bdense_notebooks figures.json/a', 'figures.json'),
]


@dataclass
class Case:
    "One bad input."

    group: str
    name: str
    command: str | list[str]
    names: tuple[str, ...]  # one of these stands in the last line
    damage: Callable[[Path], None] = lambda at: None
    codes: tuple[int, ...] = (1, 2)
    free: tuple[str, ...] = ()  # files that may be replaced
    inside: Callable | None = None  # called in the command's process


def words(line: str) -> list[str]:
    'A command line as words; "" is an empty one.'
    return ['' if word == '""' else word for word in arguments(line)]


# --- how files are damaged ---


def spoil(name: str, content: bytes | None) -> Callable[[Path], None]:
    "Replace a file's bytes; None: cut it in the middle."

    def damage(at):
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        old = (at / name).read_bytes() if (at / name).exists() else b'{"a": 1}'
        (at / name).write_bytes(old[: len(old) // 2] if content is None else content)

    return damage


def say(name: str, path: str, value) -> Callable[[Path], None]:
    "Change one field of a JSON file."

    def damage(at):
        content = json.loads((at / name).read_text())
        *way, last = path.split('.')
        part = content
        for key in way:
            part = part[key]
        part[last] = value
        (at / name).write_text(json.dumps(content))

    return damage


def newest(at: Path, name: str) -> Path:
    "A file by name; NEWEST is the last checkpoint."
    return (
        max((at / name).parent.glob('checkpoint-*.safetensors'))
        if name.endswith('NEWEST')
        else at / name
    )


def reweigh(path: Path, change: Callable) -> None:
    "Change all tensors of a file, and the checksum beside it."
    meta = json.loads(path.read_bytes()[8 : 8 + struct.unpack('<Q', path.read_bytes()[:8])[0]]).get(
        '__metadata__'
    )
    save_file({k: change(v) for k, v in load_file(path).items()}, path, meta)
    config = path.parent / 'config.json'
    if path.name == 'model.safetensors' and config.exists():
        say('config.json', 'sha256', hashlib.sha256(path.read_bytes()).hexdigest())(path.parent)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-len(content) // 4] ^= 64
    path.write_bytes(content)


def as_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir(parents=True)


DAMAGES = {
    'cut': lambda p: p.write_bytes(p.read_bytes()[:-100]),
    'half': lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
    'empty': lambda p: p.write_bytes(b''),
    'a bit flipped': flip,
    'long header': lambda p: p.write_bytes(b'\xff' * 8 + p.read_bytes()[8:]),
    'header not JSON': lambda p: p.write_bytes(p.read_bytes()[:8] + b'x' + p.read_bytes()[9:]),
    'a folder': as_folder,
    'NaN': lambda p: reweigh(p, lambda v: v * torch.nan),
    'int64': lambda p: reweigh(p, lambda v: v.long()),
    'other shapes': lambda p: reweigh(p, lambda v: v.flatten()[:1].clone()),
}


# --- the cases ---


def cases_json():
    for name, command in READERS:
        codes = (0, 1) if name in REWRITTEN else (1,)
        for kind, content in JSONS.items():
            known = (
                (name, str(Path(name).parent))
                if kind == 'foreign' or name.split('/')[0] in WHOLE
                else (name,)
            )
            yield Case(
                'JSON',
                f'{name}: {kind}; {command.split()[0]}',
                command,
                known,
                spoil(name, content),
                codes,
                REWRITTEN,
            )
        if name != 'demo_out/report.json':
            yield Case(
                'JSON',
                f'{name}: a folder; {command.split()[0]}',
                command,
                (name,),
                lambda at, name=name: as_folder(at / name),
                codes,
                REWRITTEN,
            )
    for name, path, value, command in FIELDS:
        known = ('half',) if path == 'future' else (name, path.split('.')[-1], name.split('/')[0])
        codes = (0, 1) if 'future' in path or path in ('about', 'about.config') else (1,)
        yield Case(
            'fields',
            f'{name}: {path} = {value!r}',
            command,
            known,
            say(name, path, value),
            codes,
            REWRITTEN,
        )


def cases_tensors():
    for name, command, spare in TENSORS:
        for kind, damage in DAMAGES.items():
            if name.startswith('bank') and kind == 'int64':
                continue
            known = (
                (name.split('/')[-1], name.rsplit('/', 1)[0])
                if 'NEWEST' not in name
                else ('checkpoint-',)
            )
            yield Case(
                'tensors',
                f'{name}: {kind}; {command.split()[0]}',
                command,
                known,
                lambda at, name=name, damage=damage: damage(newest(at, name)),
                (0, 1) if spare else (1,),
                ('half/', 'four'),
            )
    for name, content, command in (
        ('found/search.db', b'no database', SEARCH + ' --trials 4'),
        ('found/search.db', None, SEARCH + ' --trials 4'),
    ):
        yield Case('tensors', f'{name}: {content}', command, (name,), spoil(name, content), (1,))
    every = lambda at: [
        p.write_bytes(b'') for p in (at / 'half' / 'checkpoints').glob('*.safetensors')
    ]
    yield Case('tensors', 'half: every checkpoint empty', HALF, ('half',), every)
    yield Case(
        'tensors',
        'half: metrics not text',
        HALF,
        (),
        spoil('half/checkpoints/metrics.jsonl', b'\xff\x00' * 99),
        (0,),
        ('half/',),
    )


def options_of(lab: Lab, command: str) -> list[str]:
    "The options that a command's help names."
    help = lab.must([command.split()[0], '--help']).out
    found = [
        re.findall(r'--[A-Za-z][\w-]*', line.strip('│| ').split('  ')[0])
        for line in help.splitlines()
        if line.strip('│| ').startswith('-')
    ]
    return sorted(
        {o.replace('-', '_').replace('__', '--', 1) for names in found for o in names}
        - {'--help', '--json', '--dry_run'}
    )


def cases_options(lab: Lab):
    for line in OPTIONS:
        for option in options_of(lab, line):
            for value in VALUES:
                plain = option.lstrip('-')
                names = tuple(
                    {plain, plain.replace('_', '-'), ALSO.get(option, plain), value or "''"}
                )
                yield Case(
                    'options',
                    f'{line.split()[0]} {option} {value!r}',
                    [*words(line), option, value],
                    names,
                    codes=(0, 1, 2),
                )
    for line, name in LINES:
        yield Case('lines', line[:90], words(line), (name,))
    for command in (
        'bdense_distill',
        'bdense_sample',
        'bdense_evaluate',
        'bdense_export',
        'bdense_search',
        'bdense_teach',
    ):
        yield Case(
            'lines',
            f'{command} --nonsense',
            [command, 'student', *['new'] * (command == 'bdense_export'), '--nonsense', '1'],
            ('--nonsense',),
            codes=(2,),
        )


def no_privileges() -> None:
    "Give up what lets root write where permissions forbid it."
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    ctypes.CDLL(None, use_errno=True).capset(header, (ctypes.c_uint32 * 6)())


def shut(*names: str, mode: int = 0o555) -> Callable[[Path], None]:
    def damage(at):
        for name in names:
            (at / name).mkdir(exist_ok=True)
            (at / name).chmod(mode)

    return damage


def cases_permissions():
    for command, names in (
        (f'bdense_distill shut/run --teacher plane {TINY}', ('shut',)),
        (HALF, ('half', 'half/checkpoints')),
        ('bdense_sample student --out shut/four.png', ('shut',)),
        ('bdense_teach shut/run --data ring --steps 2', ('shut',)),
        ('bdense_evaluate student --teacher plane --n 4 --out shut/f.json', ('shut',)),
        ('bdense_notebooks shut', ('shut',)),
        ('bdense_export student shut', ('shut',)),
        ('bdense_search shut --teacher plane', ('shut',)),
    ):
        yield Case('permissions', command, command, names, shut(*names), inside=no_privileges)
    for name, command in (
        ('plane/config.json', f'bdense_distill new --teacher plane {TINY}'),
        ('student/model.safetensors', 'bdense_sample student'),
        ('student/config.json', 'bdense_sample student'),
        ('half/checkpoints/run.json', HALF),
    ):
        yield Case(
            'permissions',
            f'{name} may not be read',
            command,
            (name,),
            lambda at, name=name: (at / name).chmod(0),
            inside=no_privileges,
        )


# --- trying them ---


def snapshot(folder: Path) -> dict[str, str]:
    "What is in a folder: name -> checksum."
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        if p.is_file()
        else 'folder'
        for p in folder.rglob('*')
        if p.name != '.lock'
    }


def judge(case: Case, done: Ended, before: dict, after: dict) -> str:  # '': nothing is wrong
    "What a command did wrong."
    if 'Traceback' in done.err or 'Exception ignored' in done.err:
        return f'a traceback: {done.last}'
    if done.code not in case.codes:
        return f'exit code {done.code}: {done.last}'
    if done.code == 0:
        return ''
    program = case.command[0] if isinstance(case.command, list) else case.command.split()[0]
    if not done.last.startswith(f'{program}: '):
        return f'its last line is no message of its own: {done.last}'
    last = done.last.lower()
    spelled = (last, last.replace('-', '_'), last.replace(' ', '_'))
    if case.names and not any(name.lower() in text for name in case.names for text in spelled):
        return f'names none of {", ".join(case.names)}: {done.last}'
    lost = [
        n
        for n, was in before.items()
        if after.get(n) != was and not any(n.startswith(f) for f in case.free)
    ]
    return f'changed or lost: {", ".join(lost[:4])}' if lost else ''


def try_case(lab: Lab, case: Case) -> str:
    "Damage a copy of what there is, run the command, judge."
    at = Path(tempfile.mkdtemp(prefix='case-', dir=lab.folder))
    try:
        shutil.copytree(lab.folder / 'base', at, dirs_exist_ok=True)
        case.damage(at)
        before = snapshot(at)
        done = lab.run(
            case.command if isinstance(case.command, list) else words(case.command),
            at,
            prepare=case.inside,
        )
        return judge(case, done, before, snapshot(at))
    finally:
        for folder in at.rglob('*'):
            if folder.is_dir():
                folder.chmod(0o755)
        shutil.rmtree(at)


def prepare(lab: Lab, search: bool = True) -> None:
    "Everything that the cases damage; a search takes longest."
    base = lab.folder / 'base'
    base.mkdir()
    if search:
        lab.must(SEARCH.replace('plane', '../plane', 1) + ' --trials 3', base)
    for line in (
        f'bdense_distill several --teacher ../plane {TINY} --nfe 2,3',
        'bdense_export ../student exported',
        f'bdense_distill banked --teacher ../plane {TINY} --bank bank',
        'bdense_sample ../student --n 2 --out four.png',
        EVALUATE.replace('student', '../student', 1).replace('teacher plane', 'teacher ../plane'),
    ):
        lab.must(line, base)
    for name in ('plane', 'student'):
        shutil.copytree(lab.folder / name, base / name)
    lab.run(HALF, base, Attack(signal.SIGKILL, change=110))
    assert len(list((base / 'half' / 'checkpoints').glob('checkpoint-*'))) >= 2
    (base / 'unet' / 'scheduler').mkdir(parents=True)
    for place, name in (('unet', 'UNet2DModel'), ('unet/scheduler', 'DDPMScheduler')):
        file = 'scheduler_config.json' if 'scheduler' in place else 'config.json'
        (base / place / file).write_text(
            json.dumps(dict(_class_name=name, _diffusers_version='0.30.0'))
        )
    (base / 'pipeline').mkdir()
    (base / 'pipeline' / 'model_index.json').write_text(
        json.dumps(dict(_class_name='DDPMPipeline', _diffusers_version='0.30.0'))
    )


# --- what needs more than one command or a process of its own ---


def full_disk(lab: Lab, name: str, limit: int) -> str:
    "No file may grow beyond a limit: the run stops with a line; with more room it goes on to the same result."
    at = Path(tempfile.mkdtemp(prefix='full-', dir=lab.folder))
    try:
        small = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        done = lab.run(RUNS[name], at, prepare=small)
        if 'Traceback' in done.err and not RUNS[name].startswith('python'):
            return f'a traceback: {done.last}'
        if done.code not in (0, 1):
            return f'exit code {done.code}: {done.last}'
        if done.code and not re.search(r'run|too large|space', done.last):
            return f'names no file: {done.last}'
        again = lab.run(RUNS[name], at)
        if again.code:
            return f'does not go on: {again.last}'
        if said := difference(lab.whole(name), result(at / 'run')):
            return said
        return f'left behind: {left}' if (left := leftovers(at)) else ''
    finally:
        shutil.rmtree(at)


def two_at_once(lab: Lab, name: str) -> str:
    "A second run in a folder is refused while the first one is there, and the first one ends as if alone."
    at = Path(tempfile.mkdtemp(prefix='two-', dir=lab.folder))
    program, *args = arguments(RUNS[name])
    half = lab.undisturbed(name).changes // 2
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as count:

        def job():
            watch_changes(count.fileno(), Attack(signal.SIGSTOP, change=half))
            return run_here(program, args, lab.commands)

        pid = fork(job, out.fileno(), out.fileno(), at)
        if not os.WIFSTOPPED(status := os.waitpid(pid, os.WUNTRACED)[1]):
            out.seek(0)
            return f'the first one ended early, with {os.waitstatus_to_exitcode(status)}: {out.read()[-300:]}'
        try:
            second = lab.run(RUNS[name], at)
        finally:
            os.kill(pid, signal.SIGCONT)
        code = ended(pid)
    said = (
        difference(lab.whole(name), result(at / 'run'))
        if code == 0
        else f'the first one ended with {code}'
    )
    shutil.rmtree(at)
    if said:
        return said
    if second.code != 1 or 'in use by another process' not in second.last:
        return f'the second one ended with {second.code}: {second.last}'
    return '' if 'run' in second.last else f'names no folder: {second.last}'


def real(
    lab: Lab, line: str, at: Path, stdout=subprocess.PIPE, **env: str
) -> subprocess.CompletedProcess:
    "A command in a process of its own."
    program, *args = words(line)
    return subprocess.run(
        [Path(sys.executable).parent / program, *args],
        cwd=at,
        env={**os.environ, **env},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        errors='replace',
    )


STREAMS = ['closed pipe', '/dev/full', 'ascii', 'no backend', 'no home']


def stream(lab: Lab, kind: str) -> str:
    "Streams and variables that do not suit: figures are written all the same."
    at = Path(tempfile.mkdtemp(prefix='stream-', dir=lab.folder))
    try:
        shutil.copytree(lab.folder / 'base', at, dirs_exist_ok=True)
        (at / 'figures.json').unlink()
        line, written = EVALUATE, at / 'figures.json'
        if kind == 'closed pipe':
            shut, out = os.pipe()
            os.close(shut)
            done = real(lab, line, at, out)
            os.close(out)
        elif kind == '/dev/full':
            with open('/dev/full', 'w') as out:
                done = real(lab, line, at, out)
        elif kind == 'ascii':
            done = real(lab, line, at, PYTHONIOENCODING='ascii', LC_ALL='C', PYTHONUTF8='0')
        elif kind == 'no home':
            done = real(
                lab, line, at, HOME='/nonexistent', MPLCONFIGDIR='', XDG_CACHE_HOME='/nonexistent'
            )
        else:
            line, written = 'bdense_sample student --n 2 --out new.png', at / 'new.safetensors'
            done = real(lab, line, at, MPLBACKEND='nonsense')
        if 'Traceback' in done.stderr or 'Exception ignored' in done.stderr:
            return f'a traceback: {done.stderr.strip().splitlines()[-1]}'
        if not written.exists() and not (kind == 'no backend' and 'MPLBACKEND' in done.stderr):
            return f'exit code {done.returncode}, nothing written: {done.stderr[-300:]}'
        return ''
    finally:
        shutil.rmtree(at)


def interrupted(lab: Lab, after: float) -> str:
    "Ctrl-C so early that libraries are still being imported."
    child = subprocess.Popen(
        [Path(sys.executable).parent / 'bdense_sample', 'nowhere'],
        cwd=lab.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(after)
    child.send_signal(signal.SIGINT)
    err = child.communicate()[1]
    if 'Traceback' in err or 'Exception ignored' in err:
        return f'a traceback: {err.strip().splitlines()[-1]}'
    return (
        ''
        if child.returncode in (1, 130, -signal.SIGINT)
        else f'exit code {child.returncode}: {err[-200:]}'
    )
