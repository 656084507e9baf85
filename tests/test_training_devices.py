"Many processes, micro-batches, precision, recomputation, compilation: what they may change, and what not."

import json
import shutil
import sys
import warnings
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import two_processes as two
from bdense_nb.core import load_tensors
from bdense_nb.diffusion.checks import check_teacher
from bdense_nb.diffusion.denoisers import EDMDenoiser, VPDenoiser
from bdense_nb.diffusion.nets import MLP, TemporalNet, UNet
from bdense_nb.diffusion.schedules import linear_alpha_bar
from bdense_nb.distillation.progressive import PDConfig, progressive
from bdense_nb.distillation.sfd import SFDConfig, sfd
from bdense_nb.distillation.teaching import train_teacher
from bdense_nb.training.checkpoints import newest_checkpoint
from bdense_nb.training.config import Hardware, TrainConfig
from bdense_nb.training.devices import (
    Replayed,
    blocks,
    chosen_precision,
    free_memory,
    products_in_tf32,
    replayed,
    to_device,
    local_batch,
)
from bdense_nb.training import loop
from bdense_nb.training.loop import Meter, State, fit, training
from test_training import loss_of, net
from torch import nn
from warm import torchrun

TOLERANCE = dict(
    rtol=1e-4, atol=1e-5
)  # two halves of a batch are added up in another order than the whole


@pytest.fixture(scope='module')
def both(tmp_path_factory) -> tuple[Path, Path]:
    "The folders of the same runs by one process and by two."
    one, pair = tmp_path_factory.mktemp('one'), tmp_path_factory.mktemp('two')
    two.main(one)
    assert 'find_unused_parameters' not in torchrun(2, Path(two.__file__), pair, folder=pair)
    return one, pair


def model_of(folder: Path, case: str, rank: int = 0) -> dict[str, torch.Tensor]:
    tensors = load_tensors(folder / f'rank{rank}.safetensors')[0]
    return {k.removeprefix(case + '.'): v for k, v in tensors.items() if k.startswith(case + '.')}


def distance(
    a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]
) -> float:  # norm of the difference, relative
    a, b = (
        torch.cat([torch.zeros(1), *[t[k].double().flatten() for k in sorted(t)]]) for t in (a, b)
    )
    return float((a - b).norm() / a.norm().clamp(min=1e-30))


@pytest.mark.parametrize(
    'case',
    [
        'plain',
        'accumulate',
        'skip',
        'recompute',
        'conv',
        'teacher',
        'sfd',
        'variable',
        'pd',
        'guided',
        'told',
    ],
)
def test_two_processes_are_one(both, case):
    one, pair = both
    want, got, other = model_of(one, case), model_of(pair, case), model_of(pair, case, 1)
    assert want and want.keys() == got.keys() == other.keys()
    for k in want:
        torch.testing.assert_close(got[k], want[k], **TOLERANCE, msg=lambda m: f'{k}: {m}')
    print(f'{case} {distance(want, got):.1e}')
    for k in want:
        assert torch.equal(got[k], other[k]), f'{k} differs between the processes'


def test_accumulated_and_sharded_are_the_plain_run(both):
    one, pair = both
    for folder, case in (
        (one, 'accumulate'),
        (pair, 'accumulate'),
        (one, 'recompute'),
        (pair, 'shard'),
    ):
        reference = (
            model_of(one, 'plain')
            if case != 'recompute'
            else {k: v for k, v in newest_checkpoint(one / 'plain')[0].items()}
        )
        for k, v in model_of(folder, case).items():
            torch.testing.assert_close(
                v, reference[f'model.{k}' if case == 'recompute' else k], **TOLERANCE
            )


@pytest.mark.parametrize(
    'case',
    [
        'plain',
        'accumulate',
        'shard',
        'teacher',
        'sfd',
        'variable',
        'pd/steps-00004',
        'pd/steps-00002',
    ],
)
def test_checkpoints_of_two_are_checkpoints_of_one(both, case):
    one, pair = both
    (a, ma), (b, mb) = (
        newest_checkpoint(one / case.replace('shard', 'plain')),
        newest_checkpoint(pair / case),
    )
    assert a.keys() == b.keys() and ma['done'] == mb['done']
    for part in ('model.', 'ema.', 'optim.'):
        gap = distance(*({k: v for k, v in t.items() if k.startswith(part)} for t in (a, b)))
        print(f'{case} {part} {gap:.1e}')
        assert (
            gap < 1e-3
        )  # single numbers may differ more: a branch without a residual has a gradient of rounding errors, and Adam makes full steps of it
    for x, y in zip(ma['history'], mb['history'], strict=True):
        assert x['step'] == y['step'] and x['loss'] == pytest.approx(y['loss'], rel=1e-4)


def test_convolutions_are_sharded(both):
    one, pair = both
    want, got = model_of(one, 'conv'), model_of(pair, 'conv shard')
    assert want.keys() == got.keys()
    for k in want:
        torch.testing.assert_close(got[k], want[k], **TOLERANCE)
    a, b = newest_checkpoint(one / 'conv')[0], newest_checkpoint(pair / 'conv shard')[0]
    assert a.keys() == b.keys() and distance(a, b) < 1e-4


def test_a_sharded_run_goes_on_with_one(both, tmp_path):
    shutil.copytree(both[1] / 'conv shard', tmp_path / 'run')
    (tmp_path / 'run' / 'checkpoint-00000012.safetensors').unlink()
    done = fit(two.Conv(), two.denoise, two.CFG, tmp_path / 'run', show=False)
    for k, v in done.ema.state_dict().items():
        torch.testing.assert_close(v, model_of(both[0], 'conv')[k], **TOLERANCE)


def test_processes_ask_each_other_every_few_seconds(monkeypatch):
    "After a resume, too, and sooner again when iterations become slower."
    state = State(net(), TrainConfig(10_000, log_every=100), Hardware(), None, ())
    asked, now = [], 0.0
    several = SimpleNamespace(world=2, largest=lambda number: number)
    state.processes = several
    monkeypatch.setattr(loop.time, 'monotonic', lambda: now)
    state.done, seconds = 2000, 0.5
    state.met, state.meeting = (state.done, now), state.done + 1
    for state.done in range(2001, 2080):
        seconds = 0.5 if state.done < 2040 else 2.0
        now += seconds
        before = state.met
        state.agree()
        if state.met != before:
            asked.append(state.done)
    gaps = [b - a for a, b in zip(asked, asked[1:])]
    assert asked[0] == 2001 and gaps[:4] == [2, 4, 6, 6] and set(gaps[-20:]) == {1}
    state.stop = True
    state.stop = False  # it is asked for, and the others will know
    assert not state.ends and state.stop
    state.done += 20
    state.agree()
    assert state.ends


def test_what_one_process_stops_is_saved_by_both_and_goes_on(both, tmp_path):
    assert newest_checkpoint(both[1] / 'stopped')[1]['done'] == 6
    done = fit(two.Net(), two.several, two.CFG, both[1] / 'stopped', show=False)
    for k, v in done.ema.state_dict().items():
        torch.testing.assert_close(v, model_of(both[0], 'plain')[k], **TOLERANCE)


def test_only_the_main_process_writes(both):
    wrote = [load_tensors(both[1] / f'rank{rank}.safetensors')[1]['wrote'] for rank in (0, 1)]
    assert wrote[0] and not wrote[1]


def test_the_run_of_two_goes_on_with_one(both, tmp_path):
    done = fit(two.Net(), two.several, two.CFG, both[1] / 'plain', show=False)
    assert done.history[-1]['step'] == 12
    for k, v in done.ema.state_dict().items():
        torch.testing.assert_close(v, model_of(both[0], 'plain')[k], **TOLERANCE)


def test_skipped_updates_are_counted_on_both(both):
    for folder in both:
        rows = [
            json.loads(line)
            for line in (folder / 'skip' / 'metrics.jsonl').read_text().splitlines()
        ]
        g = torch.Generator().manual_seed(5)
        assert (
            sum(row['skipped'] for row in rows)
            == int(torch.randint(1, 4, (), generator=g))
            == sum(row['skipped'] for row in rows if row['step'] == 6)
        )


# --- share ---


def test_share_is_all_for_one():
    x = torch.arange(6)
    assert (
        local_batch(x) is not None
        and torch.equal(local_batch(x), x)
        and local_batch(6) == range(6)
        and local_batch(range(3, 9)) == range(3, 9)
        and local_batch('abc') == 'abc'
    )


@pytest.mark.parametrize('n', [1, 2, 4])
def test_shares_are_parts_of_the_whole_and_their_mean_is_its_mean(n):
    seen = []

    def step(model, i):
        x = local_batch(torch.arange(8.0).reshape(8, 1))
        seen.append((local_batch(8), local_batch(range(10, 18)), x.flatten().tolist()))
        yield model(x).square().mean()

    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    fit(model, step, TrainConfig(steps=1), show=False, hardware=Hardware(accumulate=n))
    assert (
        [j for s in seen for j in s[0]] == list(range(8))
        and [j for s in seen for j in s[1]] == list(range(10, 18))
        and sum([s[2] for s in seen], []) == list(range(8))
    )


@pytest.mark.parametrize('n', [2, 3, 6])
def test_micro_batches_change_only_the_rounding(n):
    def step(model, i):
        x = local_batch(torch.randn(12, 2, generator=torch.Generator().manual_seed(i)))
        for _ in range(3):
            y = model(x)
            yield (y - x.flip(1)).square().mean()
            x = y.detach()

    ends = []
    for accumulate in (1, n):
        model = net().eval()
        ends.append(
            fit(
                model,
                step,
                TrainConfig(steps=10, lr=1e-2, clip_grad=1.0),
                show=False,
                hardware=Hardware(accumulate=accumulate),
            )
        )
    for a, b in zip(ends[0].model.parameters(), ends[1].model.parameters()):
        torch.testing.assert_close(a, b, **TOLERANCE)
    assert ends[0].history[-1]['loss'] == pytest.approx(ends[1].history[-1]['loss'], rel=1e-4)


def test_a_batch_that_cannot_be_cut():
    def step(model, i):
        yield model(local_batch(torch.ones(7, 2))).sum()

    with pytest.raises(ValueError, match='batch of 7 cannot be cut into 2'):
        fit(net(), step, TrainConfig(steps=1), show=False, hardware=Hardware(accumulate=2))


def test_a_step_that_does_not_share_is_refused():
    with pytest.raises(ValueError, match=r'local_batch\(\)'):
        fit(
            net(),
            lambda m, i: iter([loss_of(m, i)]),
            TrainConfig(steps=1),
            show=False,
            hardware=Hardware(accumulate=2),
        )


def test_micro_batches_that_end_at_different_times_are_refused():
    def step(model, i):
        x = local_batch(torch.ones(4, 2))
        for _ in range(1 + local_batch(4).start):
            yield model(x).sum()

    with pytest.raises(ValueError, match='equally often'):
        fit(net(), step, TrainConfig(steps=1), show=False, hardware=Hardware(accumulate=2))


def test_shard_needs_processes():
    with pytest.raises(ValueError, match='only one'):
        fit(two.Net(), two.several, TrainConfig(steps=1), show=False, hardware=Hardware(shard=True))


def test_send_keeps_values():
    x = torch.randn(3)
    assert torch.equal(to_device(x, 'cpu'), x) and torch.equal(to_device(x, torch.device('cpu')), x)


# --- precision, recomputation, compilation ---


def unet(dropout=0.0):
    torch.manual_seed(0)
    return UNet(widths=(8, 32), dropout=dropout)


def unet_step(model, i):
    x = local_batch(torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(i)))
    yield (model(x, torch.zeros(1)) - x).square().mean()


def test_bf16_computes_in_bf16_and_keeps_float32(tmp_path):
    seen = []

    def step(model, i):
        x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(i))
        hook = model.stem.register_forward_hook(lambda m, a, out: seen.append(out.dtype))
        out = model(x, torch.zeros(1))
        hook.remove()
        seen.append(out.dtype)
        yield (out - x).square().mean()

    model = unet()
    half = fit(
        model,
        step,
        TrainConfig(steps=3, ema=0.5),
        tmp_path,
        show=False,
        hardware=Hardware(precision='bf16'),
    )
    assert set(seen[::2]) == {torch.bfloat16} and set(seen[1::2]) == {torch.float32}
    assert {p.dtype for m in (model, half.ema) for p in m.parameters()} == {torch.float32} and {
        t.dtype for t in newest_checkpoint(tmp_path)[0].values() if t.is_floating_point()
    } == {torch.float32}
    full = fit(unet(), unet_step, TrainConfig(steps=3), show=False)
    assert (
        half.history[-1]['loss'] == pytest.approx(full.history[-1]['loss'], rel=0.05)
        and half.history[-1]['loss'] != full.history[-1]['loss']
    )


def test_precision_of_one_run_does_not_stay_for_the_next():
    for precision, dtype in (
        ('bf16', torch.bfloat16),
        ('no', torch.float32),
        ('bf16', torch.bfloat16),
    ):
        model, seen = unet(), []
        model.stem.register_forward_hook(lambda m, a, out: seen.append(out.dtype))
        fit(
            model,
            unet_step,
            TrainConfig(steps=1),
            show=False,
            hardware=Hardware(precision=precision),
        )
        assert seen == [dtype]
        model(torch.zeros(1, 1, 8, 8), torch.zeros(1))
        assert seen[1] == torch.float32 and 'forward' not in model.__dict__


def test_fp16_needs_a_gpu():
    with pytest.raises(ValueError, match='fp16.*needs a GPU'):
        fit(
            unet(), unet_step, TrainConfig(steps=1), show=False, hardware=Hardware(precision='fp16')
        )


@pytest.mark.parametrize('dropout', [0.0, 0.3])
def test_recomputation_changes_nothing_but_memory(dropout):
    ends, kept = [], []
    for recompute in (False, True):
        size = 0

        def step(model, i):
            def pack(t):
                nonlocal size
                size += t.numel() * t.element_size()
                return t

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
                loss = next(unet_step(model, i))
            yield loss

        model = unet(dropout)
        fit(model, step, TrainConfig(steps=3), show=False, hardware=Hardware(recompute=recompute))
        ends.append(model)
        kept.append(size)
        assert not any('forward' in m.__dict__ for m in model.modules())
    assert (
        all(torch.equal(a, b) for a, b in zip(ends[0].parameters(), ends[1].parameters()))
        and kept[1] < 0.6 * kept[0]
    )


def test_recomputation_needs_blocks():
    with pytest.raises(ValueError, match='ModuleList'):
        fit(
            net(),
            lambda m, i: iter([loss_of(m, i)]),
            TrainConfig(steps=1),
            show=False,
            hardware=Hardware(recompute=True),
        )


@pytest.mark.parametrize('kind', ['BatchNorm', 'spectral norm'])
def test_recomputation_refuses_what_a_forward_changes(kind):
    "Computed twice, a running average would move twice, and a power iteration would take two steps."

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8)
            if kind == 'spectral norm':
                self.linear = nn.utils.parametrizations.spectral_norm(self.linear)
                self.norm = nn.LayerNorm(8)

        def forward(self, x):
            return self.norm(self.linear(x))

    model = nn.ModuleDict(dict(blocks=nn.ModuleList([Block()])))
    step = lambda m, i: iter([m['blocks'][0](torch.randn(4, 8)).square().mean()])
    how = dict(show=False, hardware=Hardware(recompute=True))
    with pytest.raises(ValueError, match='computes every Block twice'):
        fit(model, step, TrainConfig(steps=1), **how)
    if kind == 'BatchNorm':
        model['blocks'][0].norm.eval()
        fit(model, step, TrainConfig(steps=1), **how)


def test_recomputation_allows_what_is_made_once():
    class Caches(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            if not hasattr(self, 'angles'):
                self.register_buffer('angles', torch.arange(8.0), persistent=False)
            return self.linear(x) + self.angles

    class Counts(Caches):
        def __init__(self):
            super().__init__()
            self.register_buffer('n', torch.zeros(()))

        def forward(self, x):
            self.n.data.add_(1)  # which no version tells
            return super().forward(x)

    for kind, refused in ((Caches, None), (Counts, 'computes every Counts twice')):
        model = nn.ModuleDict(dict(blocks=nn.ModuleList([kind()])))
        step = lambda m, i: iter([m['blocks'][0](torch.randn(4, 8)).square().mean()])
        with pytest.raises(ValueError, match=refused) if refused else nullcontext():
            fit(model, step, TrainConfig(2), show=False, hardware=Hardware(recompute=True))


def test_counting_operations_changes_no_number(tmp_path):
    plain, counted = (
        fit(unet(), unet_step, TrainConfig(steps=3), show=False).model,
        fit(
            unet(),
            unet_step,
            TrainConfig(steps=3, log_every=1),
            tmp_path,
            show=False,
            hardware=Hardware(peak_tflops=1e-3),
        ).model,
    )
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), counted.parameters()))
    rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert all(
        row['utilisation'] == pytest.approx(row['tflops'] / 1e-3) and row['tflops'] > 0
        for row in rows
    )


class Shallow(two.Net):
    "One kernel to be compiled for each direction."

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(2, 16, bias=False), nn.Linear(16, 2, bias=False)])


def test_compiled_is_the_same_up_to_rounding(tmp_path, monkeypatch):
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, 'vec_isa_ok', False)  # no program that asks for instructions
    monkeypatch.setattr(inductor, 'cpp_cache_precompile_headers', False)  # for two files

    def once(model, i):
        yield next(two.several(model, i))

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            fast = fit(
                Shallow(),
                once,
                replace(two.CFG, steps=3),
                tmp_path,
                show=False,
                hardware=Hardware(compile=True),
            )
        except Exception as e:
            if 'compiler' in str(e).lower():
                pytest.skip('torch.compile needs a C++ compiler')
            raise
    slow = fit(Shallow(), once, replace(two.CFG, steps=3), show=False)
    for a, b in zip(slow.model.parameters(), fast.model.parameters()):
        torch.testing.assert_close(a, b, **TOLERANCE)
    assert type(fast.model) is Shallow and not any(
        k.startswith('model._orig') for k in newest_checkpoint(tmp_path)[0]
    )


def test_on_a_cpu_the_default_is_float32_and_tf32_touches_nothing():
    seen, before = [], torch.get_float32_matmul_precision()

    def step(model, i):
        seen.append(torch.get_float32_matmul_precision())
        yield loss_of(model, i)

    fit(net(), step, TrainConfig(steps=1), show=False, hardware=Hardware(tf32=True))
    assert seen == [before] and torch.get_float32_matmul_precision() == before


def test_bf16_is_the_default_of_large_networks_on_gpus_that_have_it(monkeypatch):
    large, cuda = nn.Linear(4000, 2500, device='meta'), torch.device('cuda')
    for has in (True, False):
        monkeypatch.setattr(
            torch.cuda, 'is_bf16_supported', lambda including_emulation, has=has: has
        )
        assert chosen_precision('auto', large, cuda) == ('bf16' if has else 'no')
        assert (
            chosen_precision('auto', net(), cuda)
            == chosen_precision('auto', large, torch.device('cpu'))
            == 'no'
        )
        assert chosen_precision('bf16', net(), torch.device('cpu')) == 'bf16'


def test_moments_lie_as_their_weights_when_a_run_goes_on(tmp_path):
    "On CUDA fused Adam refuses anything else; a file holds no layout."

    def step(model, i):
        yield (
            model(torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(i)))
            .square()
            .mean()
        )

    cfg = TrainConfig(steps=4, checkpoint_every=2, ema=0.9)
    whole = fit(two.Conv(), step, cfg, tmp_path / 'whole', show=False)
    for state in training(two.Conv(), step, cfg, folder=tmp_path / 'cut'):
        if state.done == 2:
            break
    for state in training(two.Conv(), step, cfg, folder=tmp_path / 'cut'):
        for p, moments in state.updates.adam.state.items():
            assert all(
                m.stride() == p.stride() for m in (moments['exp_avg'], moments['exp_avg_sq'])
            )
    assert any(p.ndim == 4 and not p.is_contiguous() for p in state.model.parameters())
    assert all(
        torch.equal(a, b) for a, b in zip(whole.ema.parameters(), state.ema.module.parameters())
    )


# --- the teacher ---


class Teacher(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.net, self.seen = nn.Linear(2, 2), []

    def forward(self, x):
        y = self.net(x)
        self.seen.append(y.dtype)
        return y


def taught(teacher):
    def step(model, i):
        x = torch.randn(16, 2, generator=torch.Generator().manual_seed(i))
        with torch.no_grad():
            want = teacher(x)
        assert want.dtype == torch.float32
        yield (model(x) - want).square().mean()

    return step


@pytest.mark.parametrize(
    'hardware,dtype',
    [
        (Hardware(), torch.float32),
        (Hardware(precision='bf16'), torch.bfloat16),
        (Hardware(precision='bf16', teacher_precision='no'), torch.float32),
    ],
    ids=str,
)
def test_the_teacher_computes_in_the_students_precision(hardware, dtype):
    teacher = Teacher()
    step = taught(teacher)
    fit(net(), step, TrainConfig(2), show=False, hardware=hardware, teacher=teacher)
    assert set(teacher.seen) == {dtype} and 'forward' not in vars(teacher)
    assert teacher(torch.zeros(1, 2)).dtype == torch.float32


def test_a_new_noise_level_is_no_reason_to_compile_anew(monkeypatch):
    from torch._dynamo.testing import CompileCounter

    counter, real = CompileCounter(), torch.compile
    monkeypatch.setattr(
        torch, 'compile', lambda f, dynamic: real(f, backend=counter, dynamic=dynamic)
    )

    class Scaled(nn.Linear):
        def forward(self, x, sigma):
            return super().forward(x) * sigma

    def step(model, i):
        yield model(torch.ones(2, 2), 1.0 + i / 7).square().mean()

    fit(Scaled(2, 2), step, TrainConfig(5), show=False, hardware=Hardware(compile=True))
    assert counter.frame_count == 1


def test_the_teacher_is_compiled_too(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, 'compile', lambda f, dynamic: compiled.append(f) or f)
    teacher = Teacher()
    fit(
        net(),
        taught(teacher),
        TrainConfig(1),
        show=False,
        hardware=Hardware(compile=True),
        teacher=teacher,
    )
    assert compiled[-1] == teacher.forward and len(compiled) == 2


# --- memory formats ---


@pytest.mark.parametrize('shape', [(2, 5), (2, 5, 5), (2, 3, 5, 5)], ids=str)
def test_series_images_and_videos_train(shape):
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(shape) - 2]

    def step(model, i):
        yield model(torch.ones(2, *shape)).square().mean()

    model = fit(kind(2, 4, 3, padding=1), step, TrainConfig(2), show=False).model
    assert model.weight.is_contiguous() != (kind is nn.Conv2d)


def test_accelerate_launch_on_cpus_says_what_to_run(monkeypatch):
    monkeypatch.setenv('ACCELERATE_USE_CPU', 'True')
    monkeypatch.setenv('MASTER_PORT', '29500')
    with pytest.warns(UserWarning, match='one process only.*torchrun --nproc_per_node N'):
        fit(net(), taught(Teacher()), TrainConfig(1), show=False)


def test_blocks_are_the_innermost_parts_that_repeat():
    kinds = lambda net: [type(m).__name__ for m in blocks(net)]
    assert (
        set(kinds(UNet(1, (8, 32), blocks=2))) == {'ResBlock', 'SelfAttention'}
        and len(blocks(UNet(1, (8, 32)))) == 5
    )
    assert kinds(MLP(depth=3)) == 3 * ['Linear'] and set(kinds(TemporalNet())) == {'DilatedBlock'}

    class Ragged(nn.Module):
        def __init__(self):
            super().__init__()
            self.some = nn.ModuleList([nn.Linear(2, 2), None])
            self.none = nn.ModuleList()

    assert kinds(Ragged()) == ['Linear']


def test_a_network_is_recorded_once_for_each_shape_and_called_where_it_cannot_be(monkeypatch):
    recorded = []

    def record(self, *given):
        recorded.append([tuple(t.shape) for t in given])
        return None if len(given) == 3 else lambda x, sigma: x + 10 * sigma

    monkeypatch.setattr(Replayed, '_recorded', record)
    monkeypatch.setattr(torch.cuda, 'device', lambda device: nullcontext())
    forward = Replayed(lambda x, sigma, cond=None: x + sigma)
    said = lambda n, *more: float(forward(torch.zeros(n, 1), 1.0, *more)[0])
    assert said(2) == 1.0 and not recorded  # gradients are asked for
    with torch.no_grad():
        assert said(2) == said(2) == 10.0 and recorded == [[(2, 1), ()]]
        assert said(2, torch.zeros(2)) == 1.0 and said(2, dict(a=1)) == 1.0 and len(recorded) == 2
        with Meter(torch.device('cpu'), 1.0).counting():
            assert said(2) == 1.0  # a replay hides its operations
        assert said(2) == 10.0
        assert [said(n) for n in (3, 4, 5, 6, 3)] == [10.0, 10.0, 1.0, 1.0, 10.0]  # four are kept
        free_memory()  # recorded anew
        assert said(2) == 10.0 and recorded[-1] == [(2, 1), ()]
    model = net()
    with replayed(model):
        assert 'forward' not in vars(model)  # on a CPU nothing is launched


def test_a_mac_can_distil(monkeypatch):
    "Its GPU has no float64: samples are made double by one function alone, which moves them first; a table stays."
    real = torch.Tensor.double

    def double(t):
        assert sys._getframe(1).f_code.co_name in ('in_float64', 'branch_weights')
        return real(t)

    monkeypatch.setattr(torch.Tensor, 'double', double)
    torch.manual_seed(0)
    teacher = VPDenoiser(MLP(dim=2, width=8, depth=1), linear_alpha_bar(100), 'v')
    data = torch.randn(16, 2)
    short = dict(K=2, sigma_max=10.0, batch=4)
    student = sfd(teacher, SFDConfig(steps=1, shape=(2,), pool=4, **short), show=False)
    progressive(teacher, data, PDConfig(4, 2, updates=1, **short), show=False)
    check_teacher(teacher, data)
    train_teacher(EDMDenoiser(MLP(dim=2), 1.0), data, None, TrainConfig(1), 4, show=False)
    assert student.sample(2).isfinite().all()

    def to_mac(t):
        if t.dtype == torch.float64:
            raise TypeError('Cannot convert a MPS Tensor to float64 dtype')
        return t.clone()

    moved = teacher._apply(to_mac)
    assert moved.log_sigmas.dtype == torch.float64 and torch.equal(
        moved(data, 1.0), teacher(data, 1.0)
    )


def test_float32_products_are_as_they_were_afterwards():
    before = torch.get_float32_matmul_precision()
    for wanted, inside in ((True, 'high'), (False, 'highest'), (None, before)):
        with products_in_tf32(wanted):
            assert torch.get_float32_matmul_precision() == inside
        assert torch.get_float32_matmul_precision() == before
    newer = torch.backends.cuda.matmul
    if not hasattr(newer, 'fp32_precision'):  # an older PyTorch
        return
    was = newer.fp32_precision
    try:
        newer.fp32_precision = 'tf32'
        with products_in_tf32(False):
            assert newer.fp32_precision == 'tf32'
    finally:
        newer.fp32_precision = was
