"""What only a GPU can show: is training there right, does it wait for the device, what does it cost.

    python tests/gpu/report.py OUT                  # about ten minutes on one H200; OUT gets a JSON a part
    python tests/gpu/report.py OUT --minutes 4      # no part begins after four minutes; run it again to go on
    python tests/gpu/report.py OUT --device cpu     # tiny networks, to see that every part runs; --whole: not tiny

Each part writes OUT/NAME.json and is not run again; one that fails notes its error and the next one runs. The ratios
are those of `bdense_bench` (bdense_nb/app/bench.py); the checks of correctness are below.
"""

import argparse
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from bdense_nb.app.bench import (
    PARTS,
    Bench,
    Size,
    compared,
    loop_arm,
    run_parts,
    sfd_arm,
    sfd_config,
    wait,
    write_report,
)  # noqa: E402
from bdense_nb.app.plans import estimate_run, peak_bytes  # noqa: E402
from bdense_nb.core import load_tensors, save_tensors  # noqa: E402
from bdense_nb.diffusion.denoisers import GuidedDenoiser  # noqa: E402
from bdense_nb.distillation.bank import TrajectoryPlan, frozen_copy  # noqa: E402
from bdense_nb.distillation.branches import branch  # noqa: E402
from bdense_nb.distillation.progressive import PDConfig, pd_step  # noqa: E402
from bdense_nb.distillation.teaching import edm_loss  # noqa: E402
from bdense_nb.training.config import Hardware, TrainConfig  # noqa: E402
from bdense_nb.training.devices import Replayed, replayed  # noqa: E402
from bdense_nb.training.loop import training  # noqa: E402

# seconds that a part may take before it is given up
LIMIT, LIMITS = 150, dict(compile=450, roofline=300)


def first(bench: Bench) -> Size:
    return bench.sizes['small']


def student_of(size: Size, device: torch.device, K: int = 4):
    teacher = size.denoiser(device).eval()
    return teacher, branch(teacher, K).train().requires_grad_(True)


def curve(
    bench: Bench, hardware: Hardware, steps: int, device=None, scale: float = 1.0
) -> tuple[list[float], dict]:
    "Losses of an SFD run, and what the loop was left with."
    device = device or bench.device
    size = first(bench)
    cfg = sfd_config(size, steps=steps, lr=2e-4)
    teacher, student = student_of(size, device)
    inner = cfg.step_function(teacher)

    def step(model, i):
        for loss in inner(model, i):
            yield loss * scale

    run = training(
        student, step, TrainConfig(steps, cfg.lr, log_every=1), hardware, teacher=teacher
    )
    for state in run:
        pass
    scaler = state.updates.scaler
    finite = all(p.isfinite().all().item() for p in student.parameters())
    return [row['loss'] for row in state.history], dict(
        finite=finite,
        fused=state.updates.adam.defaults['fused'],
        scale=scaler and scaler.get_scale(),
    )


def part_precision(bench: Bench) -> dict:
    "The same run in every precision: how far the losses lie from those of float32 on the same device, and on the CPU."
    steps = 4 if bench.quick else 40
    kinds = {'no': Hardware(precision='no'), 'bf16': Hardware(precision='bf16')}
    if bench.device.type == 'cuda':
        kinds |= {
            'tf32': Hardware(precision='no', tf32=True),
            'fp16': Hardware(precision='fp16'),
            'default': Hardware(),
        }
    runs = {name: curve(bench, hardware, steps) for name, hardware in kinds.items()}
    runs['no, CPU'] = curve(bench, Hardware(precision='no'), min(steps, 4), torch.device('cpu'))
    base = runs['no'][0]
    apart = {
        name: max(abs(a / b - 1) for a, b in zip(losses, base))
        for name, (losses, _) in runs.items()
    }
    falls = {name: statistics.fmean(losses[-4:]) / losses[0] for name, (losses, _) in runs.items()}
    return dict(
        largest_relative_difference=apart,
        last_over_first=falls,
        losses={k: v[0] for k, v in runs.items()},
        states={k: v[1] for k, v in runs.items()},
    )


def part_scaler(bench: Bench) -> dict:
    "fp16 with a loss that overflows: the scaler leaves updates out, lowers its scale, and training goes on."
    if bench.device.type != 'cuda':
        return dict(skipped='fp16 needs a GPU')
    losses, state = curve(bench, Hardware(precision='fp16'), 20, scale=1e3)
    return dict(
        first=losses[0],
        last=losses[-1],
        **state,
        ok=state['finite'] and state['scale'] < 2**16 and losses[-1] < losses[0],
    )


@contextmanager
def waits(device: torch.device):
    "Collect where the host waits for the device: a Counter of places."
    found = Counter()
    if device.type != 'cuda':
        yield found
        return

    def note(message, *where, **more):
        if 'called a synchronizing' not in str(message):
            return
        frames = [
            f'{Path(f.filename).name}:{f.lineno} {f.line}'
            for f in traceback.extract_stack()
            if 'bdense_nb' in f.filename
        ]
        found[frames[-1] if frames else 'elsewhere'] += 1

    with warnings.catch_warnings():
        warnings.simplefilter('always')
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode('warn')
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode('default')


def part_waits(bench: Bench) -> dict:
    "How often an iteration waits for the device, and where; wanted: never."
    size, device = first(bench), bench.device
    x0 = torch.randn(64, *size.shape)
    labels = torch.randint(size.net['n_classes'], (64,))
    cfg = sfd_config(size)
    pd = PDConfig(start_steps=8, end_steps=4, K=2, updates=4, batch=size.batch)
    found = {}
    for name in ('SFD', 'SFD from a bank', 'SFD, local', 'SFD, guided', 'PD', 'teaching'):
        teacher, student = student_of(size, device, 2 if name == 'PD' else 4)
        if 'guided' in name:
            teacher = GuidedDenoiser(teacher, 2.0, size.net['n_classes'])
        if name == 'PD':
            step = pd_step(teacher, x0, labels, pd, 4)
        elif name == 'teaching':
            student = size.denoiser(device).train().requires_grad_(True)
            x = x0.to(device)

            def step(model, i):
                yield edm_loss(model, x, generator=torch.Generator().manual_seed(i))
        else:
            one = replace(
                cfg,
                pool=cfg.batch if 'bank' in name else None,
                teacher_states='local' if 'local' in name else 'global',
            )
            step = one.step_function(
                teacher, one.bank(teacher, show=False) if 'bank' in name else None
            )
        config = TrainConfig(10**6, 1e-6, log_every=10**6, clip_grad=1.0, ema=0.99)
        run = training(
            student, step, config, Hardware(), teacher=None if name == 'teaching' else teacher
        )
        for _ in range(2):
            next(run)
        with waits(device) as places:
            for _ in range(2):
                next(run)
        found[name] = dict(
            an_iteration=sum(places.values()) / 2, places=dict(places.most_common(12))
        )
    return dict(waits=found, ok=not any(f['an_iteration'] for f in found.values()))


class Awkward(torch.nn.Module):
    "A network that a CUDA graph would not repeat."

    def __init__(self, net, kind: str):
        super().__init__()
        self.net, self.kind, self.calls = net, kind, 0

    def forward(self, x, sigma, cond=None):
        self.calls += 1
        out = self.net(x, sigma, cond)
        if self.kind == 'waits':
            return out if float(out.flatten()[0]) > 9 else out / 2
        return out / self.calls if self.kind == 'counts' else out + torch.randn_like(out)


def part_replayed(bench: Bench) -> dict:
    "A teacher replayed from CUDA graphs: the same trajectories, how much sooner; what cannot be replayed is called."
    if bench.device.type != 'cuda':
        return dict(rows=[], skipped='CUDA graphs need a GPU')
    size = first(bench)
    plan = sfd_config(size).plan
    teachers = {name: size.denoiser(bench.device).eval() for name in ('called', 'replayed')}
    teachers['replayed'].forward = Replayed(teachers['replayed'].forward)
    walks = {
        name: partial(plan.trajectories, teacher, range(size.batch))
        for name, teacher in teachers.items()
    }
    states = {name: walk()[0].xs for name, walk in walks.items()}
    apart = ((states['called'] - states['replayed']).norm() / states['called'].norm()).item()
    rows = compared(
        {f'walk, {name}': walk for name, walk in walks.items()}, 'walk, called', bench, 'small'
    )
    arms = {}
    for name in teachers:
        arms[f'SFD, {name}'] = sfd_arm(size.denoiser(bench.device), sfd_config(size), Hardware())
        with (
            nullcontext()
            if name == 'replayed'
            else patch('bdense_nb.training.loop.replayed', nullcontext)
        ):
            arms[f'SFD, {name}']()
    rows += compared(arms, 'SFD, called', bench, 'small')
    refused = {}
    for kind in ('waits', 'counts', 'draws'):
        awkward = Awkward(size.denoiser(bench.device).eval(), kind)
        with replayed(awkward), torch.no_grad():
            for _ in range(2):
                awkward(torch.randn(4, *size.shape, device=bench.device), 1.0)
            refused[kind] = list(awkward.forward.made.values()) == [None]
    return dict(rows=rows, apart=apart, refused=refused, ok=apart < 1e-5 and all(refused.values()))


def walk_ahead(device: torch.device):  # in place of `TrajectoryPlan.trajectories`
    "Walks the batch after the one that is asked for, on a stream of its own."
    walk, side, held = TrajectoryPlan.trajectories, torch.cuda.Stream(device), {}

    def begin(plan, teacher, seeds):
        with torch.cuda.stream(side):
            held[seeds] = walk(plan, teacher, seeds)

    def ahead(plan, teacher, seeds):
        if seeds not in held:
            begin(plan, teacher, seeds)
        stream = torch.cuda.current_stream(device)
        stream.wait_stream(side)
        states, cond = held.pop(seeds)
        for t in (states.xs, cond):
            if t is not None:
                t.record_stream(stream)  # its memory stays until the student has used it
        begin(plan, teacher, range(seeds.stop, seeds.stop + len(seeds)))
        return states, cond

    return ahead


def part_ahead(bench: Bench) -> dict:
    "Does an iteration end sooner where the teacher's next walk runs beside the student's training?"
    if bench.device.type != 'cuda':
        return dict(rows=[], skipped='streams need a GPU')
    rows, apart = [], {}
    for name, size in bench.sizes.items():
        cfg, arms = sfd_config(size), {}
        teacher = size.denoiser(bench.device).eval()
        states = [cfg.plan.trajectories(teacher, cfg.seeds(i))[0].xs for i in range(2)]
        with patch.object(TrajectoryPlan, 'trajectories', walk_ahead(bench.device)):
            walks = [cfg.plan.trajectories(teacher, cfg.seeds(i))[0].xs for i in range(2)]
        apart[name] = max((a - b).abs().max().item() for a, b in zip(states, walks))
        for kind in ('in turns', 'beside it'):
            teacher = frozen_copy(size.denoiser(bench.device), cfg.shape)
            student = branch(teacher, cfg.K).train().requires_grad_(True)
            step = cfg.step_function(teacher)
            arms[kind] = loop_arm(student, step, Hardware(), teacher, iterations=10)
        ahead, go_on = walk_ahead(bench.device), arms['beside it']
        arms['beside it'] = patch.object(TrajectoryPlan, 'trajectories', ahead)(go_on)
        rows += compared(arms, 'in turns', bench, name)
    return dict(rows=rows, apart=apart, ok=not any(apart.values()))


def child_run(folder: str, device: str, quick: str, kill: str) -> None:
    "An SFD run of 12 iterations with checkpoints, of deterministic kernels; it kills itself in iteration `kill`."
    os.environ['CUBLAS_WORKSPACE_CONFIG'] = ':4096:8'
    torch.use_deterministic_algorithms(True, warn_only=True)
    bench = Bench(torch.device(device), quick == 'quick')
    size = first(bench)
    cfg = sfd_config(size, steps=12, lr=1e-3)
    teacher, student = student_of(size, bench.device)
    config = TrainConfig(12, 1e-3, ema=0.9, clip_grad=1.0, checkpoint_every=4, log_every=4)
    for state in training(
        student, cfg.step_function(teacher), config, Hardware(), folder, teacher=teacher
    ):
        if state.done == int(kill):
            os.kill(os.getpid(), signal.SIGKILL)
    save_tensors(
        Path(folder) / 'weights.safetensors',
        {k: v.cpu().contiguous() for k, v in student.state_dict().items()},
    )


def python(*args, torchrun: bool = False) -> subprocess.CompletedProcess:
    start = (
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '1']
        if torchrun
        else [sys.executable]
    )
    return subprocess.run(
        [*start, __file__, *map(str, args)], capture_output=True, text=True, timeout=LIMIT
    )


def part_resume(bench: Bench, out: Path) -> dict:
    "A run killed by SIGKILL and resumed ends in the weights of one that was not."

    def run(name, kill):
        done = python(
            '--child',
            'run',
            out / 'runs' / name,
            bench.device,
            'quick' if bench.quick else 'whole',
            kill,
        )
        return done.returncode, done.stderr[-2000:]

    done = dict(
        whole=run('whole', 0),
        again=run('again', 0),
        killed=run('resumed', 6),
        resumed=run('resumed', 0),
    )
    codes = {name: code for name, (code, _) in done.items()}
    if (
        any(codes[name] for name in ('whole', 'again', 'resumed'))
        or codes['killed'] != -signal.SIGKILL
    ):
        return dict(
            error='a run failed',
            codes=codes,
            said={name: text for name, (code, text) in done.items() if code},
        )
    weights = {
        name: load_tensors(out / 'runs' / name / 'weights.safetensors')[0]
        for name in ('whole', 'again', 'resumed')
    }

    def apart(a, b):
        return max(
            (weights[a][k].double() - weights[b][k].double()).abs().max().item() for k in weights[a]
        )

    return dict(
        codes=codes,
        twice_apart=apart('whole', 'again'),
        resumed_apart=apart('whole', 'resumed'),
        ok=apart('whole', 'again') == apart('whole', 'resumed') == 0,
    )


def child_nccl(device: str, quick: str) -> None:
    "One process that knows it is one of several: all-reduce, the averaging wrapper and FSDP give the plain gradient."
    from bdense_nb.training.devices import Averaged, Processes, full_tensor, shard_model

    bench = Bench(torch.device(device), quick == 'quick')
    size, processes = first(bench), Processes(torch.device(device))
    backend = torch.distributed.get_backend()
    t = torch.ones(3, device=processes.device)
    torch.distributed.all_reduce(t)
    x = torch.randn(size.batch, *size.shape, device=processes.device)
    found = {}
    for kind in ('plain', 'averaged', 'sharded'):
        model = (
            size.denoiser(processes.device)
            .to(memory_format=torch.contiguous_format)
            .requires_grad_(True)
        )
        if kind == 'sharded':
            shard_model(model)
        called = Averaged(model, processes.device) if kind == 'averaged' else model
        edm_loss(called, x, generator=torch.Generator().manual_seed(0)).backward()
        found[kind] = [full_tensor(p.grad).cpu() for p in model.parameters() if p.grad is not None]
    size_of = max(g.abs().max().item() for g in found['plain'])
    apart = {
        k: max((a - b).abs().max().item() for a, b in zip(v, found['plain'])) / size_of
        for k, v in found.items()
    }
    print('FOUND', backend, t.tolist(), apart)
    torch.distributed.destroy_process_group()


def part_nccl(bench: Bench) -> dict:
    done = python(
        '--child', 'nccl', bench.device, 'quick' if bench.quick else 'whole', torchrun=True
    )
    said = [line for line in done.stdout.splitlines() if line.startswith('FOUND')]
    return dict(code=done.returncode, said=said) if said else dict(error=done.stderr[-2000:])


def child_oom(device: str, quick: str) -> None:
    "A run on a device whose memory is filled up, until a whole batch does not fit: it halves, and is the same run."
    bench = Bench(torch.device(device))
    size = bench.sizes['EDM']
    teacher = size.denoiser(bench.device).eval()
    cfg = sfd_config(size, K=1)

    def losses(hardware, ballast_gb=None):
        student = branch(teacher, 1).train().requires_grad_(True)
        config = TrainConfig(2, 1e-6, log_every=1)
        ballast = None
        if ballast_gb:  # all but so much
            torch.cuda.empty_cache()
            free = torch.cuda.mem_get_info()[0]
            ballast = torch.empty(
                int(free - ballast_gb * 1e9), dtype=torch.uint8, device=bench.device
            )
        torch.cuda.reset_peak_memory_stats()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            for state in training(
                student, cfg.step_function(teacher), config, hardware, teacher=teacher
            ):
                pass
        peak = torch.cuda.max_memory_allocated() - (0 if ballast is None else ballast.numel())
        return (
            [r['loss'] for r in state.history],
            state.batches.accumulate,
            peak / 1e9,
            [str(w.message)[:120] for w in said if 'memory' in str(w.message)],
        )

    whole = losses(Hardware())
    halved = losses(Hardware(on_oom='halve'), 0.6 * whole[2])
    print(
        'FOUND',
        dict(
            whole=whole,
            halved=halved,
            apart=max(abs(a / b - 1) for a, b in zip(halved[0], whole[0])),
        ),
    )


def part_oom(bench: Bench) -> dict:
    "Real memory that does not suffice."
    if bench.device.type != 'cuda':
        return dict(skipped='memory that runs out needs a GPU')
    done = python('--child', 'oom', bench.device, '')
    said = [line for line in done.stdout.splitlines() if line.startswith('FOUND')]
    return dict(code=done.returncode, said=said) if said else dict(error=done.stderr[-2000:])


def part_estimate(bench: Bench) -> dict:
    "The estimate before a run over the truth, in seconds and memory; wanted: within 25 %."
    found = {}
    for name, size in bench.sizes.items():
        teacher = size.denoiser(bench.device).eval()
        steps = 3 if bench.quick else 60 if name == 'small' else 40
        for kind, pool in (('fresh', None), ('from a bank', size.batch * max(steps // 2, 1))):
            cfg = sfd_config(size, steps=steps, pool=pool)
            guess = estimate_run(teacher, cfg, hardware=Hardware())
            wait(bench.device)
            if bench.device.type == 'cuda':
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            begin = time.perf_counter()
            bank = cfg.bank(teacher, show=False) if pool else None
            cfg.run(teacher, bank=bank, show=False)
            wait(bench.device)
            seconds = time.perf_counter() - begin
            peak = peak_bytes(bench.device) / 1e9
            keep = ('seconds', 'seconds_teacher', 'seconds_student', 'memory_gb', 'measured_batch')
            found[f'{name}, {kind}'] = dict(
                {k: guess[k] for k in keep},
                true_seconds=seconds,
                true_memory_gb=peak,
                time_ratio=guess['seconds'] / seconds,
                memory_ratio=guess['memory_gb'] / peak,
            )
    return dict(
        estimates=found,
        ok=all(
            abs(f[k] - 1) < 0.25 for f in found.values() for k in ('time_ratio', 'memory_ratio')
        ),
    )


def part_profile(bench: Bench) -> dict:
    "Where the time of an SFD iteration goes: the largest kernels and host functions, and how long the GPU rests."
    from torch.profiler import ProfilerActivity, profile

    size = first(bench)
    arm = sfd_arm(size.denoiser(bench.device), sfd_config(size), Hardware())
    for _ in range(3):
        arm()
    wait(bench.device)
    cuda = bench.device.type == 'cuda'
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda) as seen:
        begin = time.perf_counter()
        for _ in range(3):
            arm()
        wait(bench.device)
        seconds = time.perf_counter() - begin
    events = seen.key_averages()
    # an operator's device time is that of its kernels again
    kernels = [e for e in events if str(e.device_type).endswith('CUDA')]
    kernels = [e for e in kernels if not getattr(e, 'is_user_annotation', False)]

    def top(events, key):
        return {
            e.key[:60]: [round(getattr(e, key) / 3e3, 3), e.count // 3]
            for e in sorted(events, key=lambda e: -getattr(e, key))[:14]
        }

    busy = sum(e.self_device_time_total for e in kernels) / 1e6
    return dict(
        ms_an_iteration=seconds / 3e-3,
        gpu_busy=busy / seconds if cuda else None,
        host_ms=top(events, 'self_cpu_time_total'),
        device_ms=top(kernels, 'self_device_time_total') if cuda else None,
    )


CHILDREN = dict(run=child_run, nccl=child_nccl, oom=child_oom)


class GivenUp(BaseException):
    "Passes by `except Exception`, in a part as in what it compiles."


def limited(part, limit: int, bench: Bench) -> dict:
    "A part that takes too long is given up."

    def stop(*_):
        raise GivenUp(f'given up after {limit} s')

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(limit)
    try:
        return part(bench)
    except GivenUp as e:
        raise TimeoutError(str(e)) from None
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('out', type=Path)
    parser.add_argument('--minutes', type=float, default=8.0)
    parser.add_argument('--device', choices=('cuda', 'cpu'), default='cuda')
    parser.add_argument('--whole', action='store_true', help='no tiny networks on a CPU')
    parser.add_argument('--only', help='names of parts, with commas between')
    parser.add_argument('--repeats', type=int, default=3)
    args = parser.parse_args()
    quick = args.device == 'cpu' and not args.whole
    bench = Bench(torch.device(args.device), quick, args.repeats)
    checks = dict(
        waits=part_waits,
        precision=part_precision,
        estimate=part_estimate,
        resume=partial(part_resume, out=args.out),
        scaler=part_scaler,
        replayed=part_replayed,
        ahead=part_ahead,
        oom=part_oom,
        nccl=part_nccl,
        profile=part_profile,
    )
    order = [
        'waits',
        'replayed',
        'ahead',
        'sfd',
        'loop',
        'sampler',
        'profile',
        'branches',
        'hardware',
        'estimate',
        'precision',
        'oom',
        'resume',
        'scaler',
        'nccl',
        'graphs',
        'compile',
        'roofline',
        'diffusers',
        'imports',
        'onnx',
        'processes',
    ]
    known = PARTS | checks
    names = args.only.split(',') if args.only else order
    args.out.mkdir(parents=True, exist_ok=True)
    run_parts(
        {name: partial(limited, known[name], LIMITS.get(name, LIMIT)) for name in names},
        bench,
        args.out,
        args.minutes,
    )
    every = write_report(
        args.out, order, bench, shlex.join(['python', 'tests/gpu/report.py', *sys.argv[1:]])
    )
    print((args.out / 'bench.txt').read_text())
    for name in checks:
        if part := every.get(name):
            print(
                name,
                'ok' if part.get('ok') else '',
                {
                    k: v
                    for k, v in part.items()
                    if k
                    in (
                        'error',
                        'skipped',
                        'waits',
                        'estimates',
                        'said',
                        'twice_apart',
                        'resumed_apart',
                        'largest_relative_difference',
                        'gpu_busy',
                    )
                },
            )


if __name__ == '__main__':
    if sys.argv[1:2] == ['--child']:
        CHILDREN[sys.argv[2]](*sys.argv[3:])
    else:
        main()
