"`bdense_bench` measures what it says, and no iteration of a training waits for the device."

import gc
import json
import os
import runpy
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from bdense_nb.app import bench as module
from bdense_nb.app.bench import (
    Bench,
    Size,
    interleaved,
    parts_left,
    plain_sfd,
    ratio,
    run_parts,
    sfd_config,
    stored_parts,
    table,
)
from bdense_nb.app.plans import memory_on_paper
from bdense_nb.app.shell import bdense_bench
from bdense_nb.applications import anomalies
from bdense_nb.core import data_dir, read_json, write_json
from bdense_nb.diffusion import denoisers
from bdense_nb.diffusion.denoisers import EDMDenoiser, GuidedDenoiser, VPDenoiser
from bdense_nb.diffusion.nets import MLP, TemporalNet
from bdense_nb.diffusion.samplers import Sampler
from bdense_nb.diffusion.schedules import karras_sigmas, linear_alpha_bar
from bdense_nb.distillation import teaching
from bdense_nb.distillation.bank import TrajectoryPlan
from bdense_nb.distillation.branches import branch
from bdense_nb.distillation.progressive import PDConfig, pd_step
from bdense_nb.distillation.teaching import edm_loss, train_teacher
from bdense_nb.interop.diffusers import _Asked, _packed_call
from bdense_nb.training.config import Hardware, TrainConfig
from bdense_nb.training.loop import training
from torch.overrides import TorchFunctionMode
from warm import python

SIZE = Size(dict(widths=(8, 32), n_classes=10), (1, 8, 8), 4)
ONE_LEVEL = Size(dict(widths=(32,), n_classes=10), (1, 8, 8), 4)
META, CPU = torch.device('meta'), torch.device('cpu')
QUICK = Bench(CPU, quick=True)


@pytest.fixture(autouse=True, scope='module')
def clean():
    "A part ends with a search for garbage, which need not go through what earlier tests left."
    gc.freeze()


def on_meta(step, K: int | None, size: Size = SIZE, **config) -> None:
    "Two iterations with a student whose numbers are nowhere: what reads one of them raises."
    student = size.denoiser(CPU)
    student = (student if K is None else branch(student, K)).to(META).train().requires_grad_(True)
    run = training(
        student, step, TrainConfig(10, log_every=10, checkpoint_every=10, **config), Hardware()
    )
    for _ in range(2):
        next(run)


@pytest.mark.parametrize(
    'changes',
    [
        dict(K=1, loss='huber', branch_step='end'),
        dict(teacher_states='local', branch_weights_end='endpoint'),
        dict(solver='dpmpp3m'),
    ],
    ids=str,
)
def test_no_iteration_of_sfd_reads_from_the_device(changes):
    cfg = sfd_config(ONE_LEVEL, **changes)
    teacher = ONE_LEVEL.denoiser(META)
    on_meta(cfg.step_function(teacher), cfg.K, ONE_LEVEL, clip_grad=1.0, ema=0.9)


@pytest.mark.parametrize('target, place', [('state', CPU), ('x0', CPU), ('x0', META)], ids=str)
def test_no_iteration_of_pd_reads_from_the_device(target, place):
    cfg = PDConfig(start_steps=8, end_steps=4, K=2, updates=4, batch=4, target=target)
    data, labels = torch.randn(8, *SIZE.shape).to(place), torch.arange(8).to(place)
    on_meta(pd_step(SIZE.denoiser(META), data, labels, cfg, 4), 2, clip_grad=1.0, ema=0.9)


@pytest.mark.parametrize('host', ['sfd', 'pd'])
def test_all_that_enters_a_compiled_network_is_on_its_device(host, monkeypatch):
    "A noise level on the CPU would be copied inside the graph, by pinned memory, which no graph can hold."
    seen, real = [], torch.compile

    def backend(graph, inputs):
        seen.append({t.device.type for t in inputs if isinstance(t, torch.Tensor)})
        return graph.forward

    monkeypatch.setattr(
        torch, 'compile', lambda f, dynamic: real(f, backend=backend, dynamic=dynamic)
    )
    teacher, data, labels = (
        ONE_LEVEL.denoiser(META),
        torch.randn(8, *ONE_LEVEL.shape),
        torch.arange(8),
    )
    if host == 'sfd':
        step = (cfg := sfd_config(ONE_LEVEL)).step_function(teacher)
    else:
        step = pd_step(
            teacher,
            data,
            labels,
            cfg := PDConfig(start_steps=8, end_steps=4, K=2, updates=4, batch=4),
            4,
        )
    student = branch(ONE_LEVEL.denoiser(CPU), cfg.K).to(META).train().requires_grad_(True)
    next(
        training(
            student, step, TrainConfig(10, log_every=10), Hardware(compile=True), teacher=teacher
        )
    )
    assert len(seen) > 1 and all(devices == {'meta'} for devices in seen)


def test_no_iteration_of_teaching_reads_from_the_device():
    x = torch.randn(4, *SIZE.shape, device=META)

    def step(model, i):
        yield edm_loss(
            model,
            x,
            torch.zeros(4, dtype=torch.long, device=META),
            torch.Generator().manual_seed(i),
        )

    on_meta(step, None)


class Copies(TorchFunctionMode):
    "Counts what a call takes from the host."

    n = 0

    def __torch_function__(self, f, types, args=(), kwargs=None):
        found = f(*args, **(kwargs or {}))
        if f in (torch.as_tensor, torch.tensor, torch.Tensor.to):
            self.n += found.is_meta and not getattr(args[0], 'is_meta', False)
        return found


@pytest.mark.parametrize('null', [10, torch.tensor(3), torch.tensor([3])], ids=repr)
def test_guidance_takes_nothing_from_the_host(null, monkeypatch):
    "A copy in each call would wait for a GPU, and no graph could hold it."
    x, label = (
        torch.zeros(4, *SIZE.shape, device=META),
        torch.zeros(4, dtype=torch.long, device=META),
    )
    guided = GuidedDenoiser(ONE_LEVEL.denoiser(META), 2.0, null)
    for _ in range(2):
        with Copies() as copies:
            guided(x, 1.0, label)
    assert copies.n == 0
    sent = []
    monkeypatch.setattr(denoisers, 'to_device', lambda t, d: sent.append(t.dtype) or t.to(d))
    guided.interval = 0.1, 5.0
    guided(x, torch.ones(4), label)
    assert torch.bool in sent  # where it acts, from pinned memory


def test_a_table_of_levels_lies_beside_a_network_on_a_gpu():
    class Net(torch.nn.Module):
        def parameters(self, recurse=True):
            yield SimpleNamespace(is_cuda=True, device=META)

        def forward(self, x, noise, cond=None):
            return x

    made = VPDenoiser(Net(), linear_alpha_bar())
    assert made.log_sigmas.is_meta and made.alpha_bar.is_meta


def test_rows_of_data_are_picked_where_they_lie(monkeypatch):
    sent = []
    monkeypatch.setattr(teaching, 'to_device', lambda t, d: sent.append(t.dtype) or t)
    denoiser = EDMDenoiser(MLP(2, 8, 1))
    train_teacher(denoiser, torch.randn(8, 2) / 2, None, TrainConfig(1), 4, show=False)
    assert torch.long in sent


def test_what_foreign_networks_are_told_lies_on_their_device(monkeypatch):
    x, rows = torch.zeros(2, 1, 4, 4, device=META), torch.zeros(2, 3, device=META)
    assert _Asked()(x, x.new_ones(2), rows).is_meta
    real, places = torch.arange, []
    note = lambda *a, **k: places.append(k.get('device')) or real(*a, **k)
    monkeypatch.setattr(torch, 'arange', note)
    flux = lambda patches, **told: SimpleNamespace(sample=patches)
    told = dict(encoder_hidden_states=rows[:, None])
    assert _packed_call(flux, x, x.new_ones(2), told).shape == x.shape and places == 3 * [META]


def test_windows_are_sent_where_their_detector_is(monkeypatch):
    sent = []
    monkeypatch.setattr(anomalies, 'to_device', lambda t, d: sent.append((d, len(t))) or t)
    denoiser = EDMDenoiser(TemporalNet(1, 8, calendar=1, width=8, blocks=1))
    sampler = Sampler(denoiser, karras_sigmas(2), False, (1, 8))
    x, cond = torch.randn(3, 1, 8), dict(calendar=torch.zeros(3, 1, 8))
    back = anomalies.reconstructions(sampler, x, cond, draws=2)
    anomalies.branch_guesses(branch(denoiser, 2), sampler, x, cond, draws=2)
    assert sent == 6 * [(CPU, 3)] and back.shape == (2, *x.shape)


def test_a_step_that_reads_from_the_device_is_seen():
    def step(model, i):
        loss = model(torch.randn(4, *SIZE.shape, device=META), 1.0).mean()
        if loss > 0:
            loss = 2 * loss
        yield loss

    with pytest.raises(RuntimeError, match='meta'):
        on_meta(step, None)


# --- the measuring ---


def test_a_ratio_is_that_of_the_arms_in_one_round():
    ticks = iter(
        [0.0, 1.0, 1.0, 4.0, 4.0, 10.0, 10.0, 11.0, 11.0, 12.0, 12.0, 15.0]
    )  # seconds of a, b, then b, a, then a, b
    called = []
    times = interleaved(
        {'a': lambda: called.append('a'), 'b': lambda: called.append('b')},
        3,
        CPU,
        lambda: next(ticks),
    )
    assert times == {'a': [1.0, 1.0, 1.0], 'b': [3.0, 6.0, 3.0]} and called == [*'ab', *'abbaab']
    assert ratio(times['b'], times['a']) == dict(
        ratio=3.0, least=3.0, most=6.0, seconds=3.0, peer_seconds=1.0
    )


def test_the_plain_loop_is_sfd(monkeypatch):
    "The peer does the same arithmetic: with our noise and labels its losses are ours."
    cfg = sfd_config(SIZE, K=1, steps=1)
    teacher = SIZE.denoiser(CPU)
    traj, label = cfg.plan.trajectories(teacher, cfg.seeds(0))
    student = branch(teacher, 1).train().requires_grad_(True)
    opt, mine = torch.optim.Adam(student.parameters(), 1e-6), []
    for loss in cfg.step_function(teacher)(student, 0):
        opt.zero_grad()
        loss.backward()
        opt.step()
        mine.append(loss.detach())
    monkeypatch.setattr(torch, 'randn', lambda *_, **__: traj[0] / cfg.sigma_max)
    monkeypatch.setattr(torch, 'randint', lambda *_, **__: label)
    torch.testing.assert_close(plain_sfd(teacher, cfg)(), mine, rtol=1e-5, atol=0)


@pytest.mark.parametrize('name', ['loop', 'sampler', 'sfd', 'branches', 'hardware', 'roofline'])
def test_every_part_says_what_was_divided_by_what(name):
    found = module.run_part(module.PARTS[name], QUICK)
    assert 'error' not in found, found.get('traceback')
    for row in found['rows']:
        assert (
            row['least'] <= row['ratio'] <= row['most']
            and row['what'] != row['peer']
            and row['size'] in QUICK.sizes
        )
        assert row['seconds'] > 0 and row['peer_seconds'] > 0
    assert len({(r['size'], r['what'], r['peer']) for r in found['rows']}) == len(found['rows'])


def test_memory_grows_by_the_branches_alone():
    "K branches keep K outputs and K states more; everything before the last layer is there once."
    rows = module.bench_branches(QUICK)['rows']
    more = {int(r['what'].split()[-1]): r['mb'] - r['peer_mb'] for r in rows}
    assert (
        more[4] == pytest.approx(3 * more[2], rel=0.05) and 0 < more[4] < 0.1 * rows[0]['peer_mb']
    )


def test_groups_of_processes_take_turns(monkeypatch):
    "One group after the other would compare two moments of the machine."
    called = []
    monkeypatch.setattr(module, 'processes_arm', lambda n, *_: lambda: called.append(n))
    monkeypatch.setattr(Bench, 'rounds', lambda *_: 2)
    (row,) = module.bench_processes(replace(QUICK, busy=True))['rows']
    assert called == [1, 2, 1, 2, 2, 1] and row['peer'] == '1 process'


@pytest.mark.parametrize(
    'what, told',
    [
        ('float32', dict(precision='no')),
        ('accumulate=2', dict(precision='no', accumulate=2)),
        ('bf16', dict(precision='bf16')),
        ('recompute', dict(precision='no', recompute=True)),
        ('bf16, recompute', dict(precision='bf16', recompute=True)),
    ],
    ids=str,
)
def test_memory_on_paper_is_that_of_a_gpu(what, told):
    "What was measured on one H200, on top of the teacher: nothing is allocated here."
    rows = read_json(data_dir() / 'results' / 'bench_gpu.json')['hardware']['rows']
    rows = {r['what']: r for r in rows if r['size'] == 'EDM'}
    true = rows['bf16']['peer_mb'] if what == 'float32' else rows[what]['mb']
    size = Size(module.EDM_SIZE, (3, 32, 32), 128)
    found = memory_on_paper(size.denoiser(META), sfd_config(size), hardware=Hardware(**told))
    said = 1e3 * (found['training_gb'] + found['activations_gb'])
    assert said == pytest.approx(true, rel=0.04 if 'recompute' not in what else 0.15)


@pytest.mark.parametrize('beside_them', [True, False])
def test_branches_are_drawn_over_their_number(beside_them, monkeypatch):
    "In order, from one branch on; beside them a bank and processes, where these were measured."
    rows = {
        part: [
            dict(size='S', what=what, peer=peer, ratio=2, least=1, most=3, mb=3, peer_mb=2)
            for what, peer in pairs
        ]
        for part, pairs in dict(
            branches=[('K = 2', 'K = 1'), ('K = 16', 'K = 1')],
            sfd=[('from a bank', 'fresh'), ('SFD', 'plain loop')],
            processes=[('2 processes', '1 process')],
        ).items()
    }
    drawn = {}
    monkeypatch.setattr(
        'matplotlib.figure.Figure.savefig',
        lambda fig, path, **_: drawn.update({path: [a.get_lines() for a in fig.axes]}),
    )
    if not beside_them:
        rows = dict(branches=rows['branches'])
    module.figure({'here': {name: dict(rows=own) for name, own in rows.items()}}, 'p')
    (times,), (memory,), *beside = drawn['p']
    assert times.get_xydata().tolist() == [[1, 1], [2, 2], [16, 2]]
    assert memory.get_xydata().tolist() == [[1, 1], [2, 1.5], [16, 1.5]]
    assert list(map(len, beside)) == [2] * beside_them
    assert times.axes.get_ylim()[1] > 3, 'all of it is seen'


def forked(started):
    "Pools of one process each, which know their number and do nothing else at first."
    pools = [
        ProcessPoolExecutor(1, get_context('fork'), os.environ.__setitem__, ('RANK', str(i)))
        for i in range(2)
    ]
    for pool in pools:
        started.enter_context(pool)
    return pools


def work_or_die(how: str) -> int:
    rank = int(os.environ['RANK'])
    if how and not rank:
        time.sleep(600)  # as in a collective that never comes about
    if how == 'raises':
        raise ValueError('no port')
    return os._exit(3) if how else rank


@pytest.mark.parametrize(
    'how, message', [('', None), ('raises', 'no port'), ('dies', 'abruptly')], ids=str
)
def test_a_process_that_fails_ends_the_others(how, message):
    with ExitStack() as stack:
        pools = forked(stack)
        if not how:
            assert module.together(pools, work_or_die, how) == [0, 1]
            return
        with pytest.raises(RuntimeError, match=f'process 1 of 2 failed: .*{message}'):
            module.together(pools, work_or_die, how)


def test_a_quick_product_is_repeated_until_it_takes_long_enough():
    now = [0.0]

    def product():
        now[0] += 0.003

    assert module.often_enough(product, CPU, 0.02, lambda: now[0]) == 8
    assert module.often_enough(product, CPU, 0.002, lambda: now[0]) == 1


def test_the_teacher_alone_is_called_as_the_loop_calls_it(monkeypatch):
    "A share of an iteration whose teacher is replayed is no share if it is called alone."
    inside, seen = [], []

    @contextmanager
    def replayed(model):
        inside.append(model)
        yield
        inside.remove(model)

    monkeypatch.setattr(module, 'replayed', replayed)
    monkeypatch.setattr(
        TrajectoryPlan, 'trajectories', lambda plan, teacher, seeds: seen.append(teacher)
    )
    monkeypatch.setattr(module, 'plain_sfd', lambda *_: None)
    monkeypatch.setattr(module, 'sfd_arm', lambda *_, **__: None)
    monkeypatch.setattr('bdense_nb.distillation.sfd.SFDConfig.bank', lambda *_, **__: None)

    def compared(arms, peer, bench, size):
        if peer == 'fresh':
            arms['teacher alone']()
            assert inside == seen and len(seen) == 1
        return []

    monkeypatch.setattr(module, 'compared', compared)
    module.bench_sfd(QUICK)
    assert seen and not inside


def test_the_switch_of_convolutions_is_put_back():
    "As it was, also after an error."
    flags, seen = torch.backends.cudnn, []

    def fails():
        seen.append(flags.allow_tf32)
        raise OSError

    before = flags.allow_tf32
    try:
        for wanted in (False, True):
            flags.allow_tf32 = wanted
            with pytest.raises(OSError):
                module.without_tf32(fails)()
            assert flags.allow_tf32 is wanted
    finally:
        flags.allow_tf32 = before
    assert seen == [False, False]


def test_the_time_of_a_kernel_is_counted_once(monkeypatch):
    "A GPU's profile lists it under its operator, and by itself."
    kind = module.DeviceType
    event = lambda key, device_type, time: SimpleNamespace(
        key=key, device_type=device_type, self_device_time_total=time, self_cpu_time_total=1
    )
    listed = [
        event('aten::conv2d', kind.CPU, 3.0),
        event('aten::mul', kind.CPU, 1.0),
        event('sm90_fprop', kind.CUDA, 3.0),
        event('elementwise', kind.CUDA, 1.0),
    ]
    monkeypatch.setattr(
        module,
        'profile',
        lambda **_: nullcontext(SimpleNamespace(key_averages=lambda: listed)),
    )
    monkeypatch.setattr(module, 'wait', lambda device: None)
    shares = module.operator_shares(lambda: None, torch.device('cuda'))
    assert shares == {'aten::conv2d': 0.75, 'aten::mul': 0.25}


def test_what_was_measured_otherwise_is_measured_anew(tmp_path, monkeypatch):
    "Another machine, other versions, more rounds; `cuda` is its first device."
    parts, left = {'loop': lambda bench: dict(rows=[])}, lambda: parts_left(tmp_path, parts, QUICK)
    run_parts(parts, QUICK, tmp_path)
    assert not left() and parts_left(tmp_path, parts, replace(QUICK, repeats=9)) == ['loop']
    kept = (tmp_path / 'loop.json').read_bytes()
    run_parts(parts, replace(QUICK, repeats=9), tmp_path)
    assert (tmp_path / 'loop.before.json').read_bytes() == kept and left() == ['loop']
    run_parts(parts, QUICK, tmp_path)
    real = module.about_run
    for other in (dict(torch='1.0'), dict(bdense_nb='0.0'), dict(hardware='another card')):
        with monkeypatch.context() as patched:
            patched.setattr(module, 'about_run', lambda device: real(device) | other)
            assert left() == ['loop'], other
    with monkeypatch.context() as patched:
        patched.setattr('torch.get_num_threads', lambda: 77)
        assert left() == ['loop']
    monkeypatch.setattr(module, 'about_run', lambda device: {})
    first, same = (Bench(torch.device(name)).kind for name in ('cuda', 'cuda:0'))
    assert first == same != Bench(torch.device('cuda:1')).kind


def test_the_seconds_of_other_processes_are_those_of_the_clock(tmp_path):
    "What is measured is said, in the part and in the table."
    parts = {
        name: lambda bench: dict(
            rows=[dict(what='w', peer='p', size='S', ratio=1, least=1, most=1)]
        )
        for name in ('loop', 'imports')
    }
    busy = replace(QUICK, busy=True)
    run_parts(parts, busy, tmp_path)
    found = stored_parts(tmp_path, list(parts), busy)
    assert {name: part['busy'] for name, part in found.items()} == dict(loop=True, imports=False)
    lines = [line.split('  ')[0] for line in table(found).splitlines()[2:]]
    assert lines == ['loop: w / p (S)', 'imports: w / p (S, clock)']


def test_several_processes_are_refused(tmp_path, monkeypatch):
    "They would write the same files."
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(ValueError, match='in one process'):
        bdense_bench(tmp_path / 'out', parts='sampler', quick=True)
    assert not (tmp_path / 'out').exists()


def test_a_part_that_is_given_up_ends(monkeypatch):
    "Though it catches what goes wrong in one of its arms."
    report = runpy.run_path(str(Path(__file__).resolve().parent / 'gpu' / 'report.py'))

    def part(bench):
        try:
            signal.raise_signal(signal.SIGALRM)
        except Exception:
            return 'goes on'

    with pytest.raises(TimeoutError, match='given up after 60 s'):
        report['limited'](part, 60, QUICK)


def test_a_failing_part_is_noted_and_tried_again_last(tmp_path, capsys):
    tried = []

    def good(bench):
        tried.append('good')
        return dict(rows=[])

    def bad(bench):
        tried.append('bad')
        raise OSError('no space')

    parts = {'bad': bad, 'good': good, 'more': good}
    run_parts(parts, QUICK, tmp_path, minutes=-1.0)
    assert not tried and 'bad, good, more left' in capsys.readouterr().out
    run_parts(parts, QUICK, tmp_path)
    run_parts(parts, QUICK, tmp_path)
    assert tried == ['bad', 'good', 'good', 'bad']
    kept = read_json(tmp_path / 'bad.json')
    assert (
        kept['error'] == 'OSError: no space'
        and 'def bad' not in kept['error']
        and 'bad: OSError: no space' in table({'bad': kept})
    )


def test_the_command(tmp_path, capsys):
    plan = bdense_bench(tmp_path / 'new', parts='sampler,imports', dry_run=True)
    assert set(plan['parts']) == {'sampler', 'imports'} and not (tmp_path / 'new').exists()
    with pytest.raises(ValueError, match="unknown part 'speed'; choose one of: loop, sampler"):
        bdense_bench(tmp_path / 'new', parts='speed')
    with pytest.raises(ValueError, match='repeats'):
        bdense_bench(tmp_path / 'new', repeats=0)
    for _ in range(2):
        done = bdense_bench(tmp_path / 'out', parts='sampler', quick=True, device='cpu')
    assert done['failed'] == [] and {p.name for p in (tmp_path / 'out').iterdir()} == {
        'sampler.json',
        'bench.json',
        'bench.txt',
    }
    whole = json.loads((tmp_path / 'out' / 'bench.json').read_text())
    assert (
        whole['command'] == f'bdense_bench {tmp_path / "out"} --parts=sampler --quick --device=cpu'
    )
    assert (
        whole['sampler']['rows'][0]['what'] == 'sampler'
        and whole['sampler']['quick']
        and 'sampler / bare calls' in capsys.readouterr().out
    )
    assert '--quick' in (tmp_path / 'out/bench.txt').read_text().splitlines()[0]
    larger = {**read_json(tmp_path / 'out/sampler.json'), 'quick': False}
    write_json(tmp_path / 'out/loop.json', larger)  # of another kind: not of this report
    bdense_bench(tmp_path / 'out', parts='sampler', quick=True, device='cpu')
    assert 'loop' not in read_json(tmp_path / 'out/bench.json')
    plan = bdense_bench(tmp_path / 'out', parts='sampler,loop', quick=True, dry_run=True)
    assert list(plan['parts']) == ['loop'], 'the other is there'


def test_a_part_that_failed_is_no_success(tmp_path, monkeypatch):
    def bad(bench):
        raise OSError('no space')

    monkeypatch.setitem(module.PARTS, 'loop', bad)
    with pytest.raises(ValueError, match=r'loop failed \(OSError: no space\); the same command'):
        bdense_bench(tmp_path, parts='loop,sampler', quick=True)
    assert 'sampler' in read_json(tmp_path / 'bench.json')
    assert bdense_bench(tmp_path, parts='sampler', quick=True)['failed'] == ['loop']


def test_the_gpu_report_runs_on_a_cpu(tmp_path):
    "In its tiny form: each part there, none failed, and what needs a GPU says so."
    report = Path(__file__).resolve().parent / 'gpu' / 'report.py'
    names = ['waits', 'sampler', 'precision', 'scaler', 'oom', 'graphs']
    code = f'sys.argv = {[str(report), str(tmp_path / "out"), "--device", "cpu", "--only", ",".join(names)]}\nimport runpy; runpy.run_path({str(report)!r}, run_name="__main__")'
    done = python(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = {name: read_json(tmp_path / 'out' / f'{name}.json') for name in names}
    assert not {name: part['error'] for name, part in found.items() if 'error' in part}
    assert {name for name, part in found.items() if 'GPU' in part.get('skipped', '')} == {
        'scaler',
        'oom',
        'graphs',
    }
    assert found['precision']['largest_relative_difference']['bf16'] < 0.05
