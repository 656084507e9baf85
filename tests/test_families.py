"Each family of diffusers networks: in, distilled, out, and sampled the same where this package does not exist."

import copy
import dataclasses
import importlib
import json
import re
import sys

import pytest
import torch
from torch import nn

diffusers = pytest.importorskip('diffusers')

from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DiTTransformer2DModel,  # noqa: E402
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)

from bdense_nb.app.plans import kept_bytes, memory_on_paper  # noqa: E402
from bdense_nb.core import load_tensors, sample_noise  # noqa: E402
from bdense_nb.diffusion.denoisers import (
    EDMDenoiser,
    FlowDenoiser,
    GuidedDenoiser,
    VPDenoiser,
    map_cond,
)  # noqa: E402
from bdense_nb.diffusion.nets import MLP  # noqa: E402
from bdense_nb.diffusion.samplers import ConditionTable, sample  # noqa: E402
from bdense_nb.distillation.bank import denoiser_hash, frozen_copy  # noqa: E402
from bdense_nb.distillation.branches import branch, fold  # noqa: E402
from bdense_nb.distillation.progressive import PDConfig, progressive  # noqa: E402
from bdense_nb.distillation.sfd import SFDConfig, sfd  # noqa: E402
from bdense_nb.distillation.variable import second_stage, sfd_variable  # noqa: E402
from bdense_nb.distillation.students import Student, branched_student, load_student, starting_run  # noqa: E402
from bdense_nb.interop.diffusers import (
    FAMILIES,
    from_diffusers,
    net_config_of,
    net_from_config,
    prompt_conditions,
)  # noqa: E402
from bdense_nb.interop.export import (
    export_onnx,
    load_pretrained,
    merged,
    pipeline_code,
    with_adapters,
)  # noqa: E402
from bdense_nb.training.config import Hardware, TrainConfig  # noqa: E402
from bdense_nb.training.devices import blocks, lean_copy, recompute_blocks, set_precision  # noqa: E402
from bdense_nb.training.loop import fit  # noqa: E402
from warm import python  # noqa: E402

SHAPE = (4, 8, 8)
UNET = dict(
    sample_size=8,
    in_channels=4,
    out_channels=4,
    block_out_channels=(8, 16),
    layers_per_block=1,
    norm_num_groups=4,
)
TEXT_UNET = dict(
    UNET,
    block_out_channels=(8,),
    down_block_types=('CrossAttnDownBlock2D',),
    up_block_types=('CrossAttnUpBlock2D',),
    cross_attention_dim=12,
    attention_head_dim=4,
)
DIT = dict(num_attention_heads=2, attention_head_dim=8, num_layers=1, sample_size=8, in_channels=4)
FLUX = dict(
    in_channels=16,
    num_layers=1,
    num_single_layers=1,
    attention_head_dim=8,
    num_attention_heads=2,
    joint_attention_dim=12,
    pooled_projection_dim=10,
    axes_dims_rope=(2, 2, 4),
)
MADE = {
    'U-Net': lambda: UNet2DModel(
        **UNET, down_block_types=('DownBlock2D',) * 2, up_block_types=('UpBlock2D',) * 2
    ),
    'U-Net, flow matching': lambda: MADE['U-Net'](),
    'SD': lambda: UNet2DConditionModel(**TEXT_UNET),
    'SD, zero terminal SNR': lambda: UNet2DConditionModel(**TEXT_UNET, mid_block_type=None),
    'SDXL': lambda: UNet2DConditionModel(
        **TEXT_UNET,
        mid_block_type=None,
        addition_embed_type='text_time',
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 10,
    ),
    'DiT': lambda: DiTTransformer2DModel(
        **DIT, out_channels=8, num_embeds_ada_norm=5, norm_num_groups=4
    ),
    'PixArt': lambda: PixArtTransformer2DModel(
        **DIT, out_channels=8, cross_attention_dim=16, caption_channels=12, norm_num_groups=4
    ),
    'PixArt with sizes': lambda: PixArtTransformer2DModel(
        **DIT | dict(num_attention_heads=3),
        out_channels=8,
        cross_attention_dim=24,
        caption_channels=12,
        norm_num_groups=4,
        use_additional_conditions=True,
    ),
    'SD3': lambda: SD3Transformer2DModel(
        **DIT,
        out_channels=4,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        pos_embed_max_size=8,
    ),
    'Flux': lambda: FluxTransformer2DModel(**FLUX),
    'Flux with guidance': lambda: FluxTransformer2DModel(**FLUX, guidance_embeds=True),
}
FLOW = ('U-Net, flow matching', 'SD3', 'Flux', 'Flux with guidance')


def net_of(name):
    "Random weights, with none left at 0: something depends on everything."
    torch.manual_seed(0)
    net = MADE[name]().eval()
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            if not p.any():
                p.copy_(0.1 * torch.randn(p.shape, generator=g))
    return net


def scheduler_of(name):
    "An untrained network says a velocity best."
    return (
        FlowMatchEulerDiscreteScheduler(shift=3.0)
        if name in FLOW
        else DDPMScheduler(prediction_type='v_prediction', rescale_betas_zero_snr='zero' in name)
    )


def example_cond(net, n: int) -> dict[str, torch.Tensor] | None:
    "Random conditions of the right shapes, with which a network can be tried out."
    g = torch.Generator().manual_seed(0)
    size = lambda shape: [4 if isinstance(axis, str) else axis for axis in shape]
    rows = {
        name: torch.randn(n, *size(shape), generator=g).abs() for name, shape in net.takes.items()
    }
    if 'class_labels' in rows:
        rows['class_labels'] = torch.arange(n) % max(net.n_classes, 1)
    return rows or None


def teacher_of(name, net=None):
    teacher = from_diffusers(net or net_of(name), scheduler_of(name), shape=SHAPE)
    rows = example_cond(teacher.net, 6)
    if rows is not None and not teacher.net.n_classes:
        teacher.conditions = ConditionTable(rows)
    return teacher


def rows_of(teacher, n):
    "Conditions of n samples."
    rows = example_cond(teacher.net, n)
    return rows['class_labels'] if rows and teacher.net.n_classes else rows


def nested(cond):
    "As a network takes its keyword arguments."
    out = {}
    for name, value in (cond or {}).items():
        outer, _, inner = name.partition('.')
        if inner:
            out.setdefault(outer, {})[inner] = value
        else:
            out[outer] = value
    return out


SFD = SFDConfig(nfe=2, steps=1, batch=2, shape=SHAPE, lr=1e-2, sigma_max=20.0, afs=False)
PD = PDConfig(start_steps=4, end_steps=2, K=2, schedule='teacher', updates=1, batch=2, lr=1e-2)


def students_of(name):
    teacher = teacher_of(name)
    data = sample_noise(range(4), SHAPE)
    pd = (
        PDConfig(**{**PD.__dict__, **dict(schedule='karras', sigma_min=0.1, sigma_max=20.0)})
        if name in FLOW
        else PD
    )
    return {
        'SFD, K = 4': sfd(teacher, SFD, show=False),
        'PD, K = 2': progressive(teacher, data, pd, rows_of(teacher, 4), show=False),
    }


def packed(x):
    "Latents as FluxPipeline packs them."
    b, c, h, w = x.shape
    return (
        x.view(b, c, h // 2, 2, w // 2, 2)
        .permute(0, 2, 4, 1, 3, 5)
        .reshape(b, h // 2 * w // 2, c * 4)
    )


def test_the_table_names_every_class_and_what_is_installed(root):
    "README's: no class is missing, none is made up, and the version is the one that these tests ran with."
    table = (root / 'README.md').read_text().split('| family |')[1].split('\n\n')[0]
    assert set(re.findall(r'`(\w+Model)`', table)) == set(FAMILIES)
    assert set(re.findall(r'diffusers ([\d.]+\d)', table)) == {diffusers.__version__}
    rows = [line[1:-1].split('|') for line in table.splitlines()[1:]]
    assert len(rows) == 9 and {len(row) for row in rows} == {7}


# --- in ---


@pytest.mark.parametrize('name', MADE)
def test_the_clean_estimate_is_the_networks_own(name):
    "At a level of its scheduler, by the scheduler's own formula, from a call as the stock pipeline makes it."
    net, teacher = net_of(name), teacher_of(name)
    x, cond = sample_noise(range(3), SHAPE), map_cond(torch.round, example_cond(teacher.net, 3))
    told = map_cond(torch.Tensor.long, cond)  # whole numbers are numbers
    with torch.no_grad():
        if name in FLOW:
            t = 0.75
            if 'Flux' in name:
                ids = torch.tensor([[0.0, i, j] for i in range(4) for j in range(4)])
                out = net(
                    packed(x),
                    timestep=torch.full((3,), t),
                    img_ids=ids,
                    txt_ids=torch.zeros(4, 3),
                    **cond,
                ).sample
                out = out.view(3, 4, 4, 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(3, 4, 8, 8)
            else:
                out = net(x, timestep=torch.full((3,), 1000 * t), **cond or {}).sample
            want, got = x - t * out, teacher(x / (1 - t), t / (1 - t), told)
        else:
            s = scheduler_of(name)
            a = s.alphas_cumprod[600].double()
            out = net(x, timestep=torch.full((3,), 600), **nested(cond)).sample[:, :4]
            want, got = (
                a**0.5 * x - (1 - a) ** 0.5 * out,
                teacher(x / a**0.5, ((1 - a) / a) ** 0.5, told),
            )
    torch.testing.assert_close(got, want.float(), rtol=1e-4, atol=1e-4)


def test_what_kind_of_denoiser_a_family_becomes():
    for name in MADE:
        teacher = teacher_of(name)
        assert (
            type(teacher) is (FlowDenoiser if name in FLOW else VPDenoiser)
            and teacher.net.sample_shape == SHAPE
        )
    assert [teacher_of(n).time_scale for n in FLOW] == [1000.0, 1000.0, 1.0, 1.0]
    assert teacher_of('DiT').net.null_class == teacher_of('DiT').n_classes == 5


@pytest.mark.parametrize(
    'betas, levels',
    [({}, 996), (dict(beta_schedule='scaled_linear', beta_start=0.00085, beta_end=0.012), 999)],
    ids=['linear', 'SD'],
)
def test_zero_terminal_snr_starts_at_the_last_level_that_stock_steps_can_be_told(betas, levels):
    "Its table ends at 4096, where that of linear betas is at 15,406 before its last."
    config = dict(
        DDPMScheduler(prediction_type='v_prediction', rescale_betas_zero_snr=True, **betas).config
    )
    teacher = from_diffusers(net_of('U-Net'), DDPMScheduler.from_config(config))
    top = teacher.log_sigmas[-1].exp().item()
    assert len(teacher.alpha_bar) == levels and 0.5 < top / 4096 < 1
    stock = diffusers.EulerDiscreteScheduler.from_config(config)
    steps = torch.tensor([top, 0.9 * top, 10.0], dtype=torch.float64)
    stock.set_timesteps(sigmas=[*steps.tolist(), 0.0])
    torch.testing.assert_close(stock.timesteps.double(), teacher.index(steps), rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match='above the noisiest level'):
        Student(teacher, [2 * top, 1.0, 0.0], False, SHAPE).save_pretrained('nowhere')


def test_classes_of_a_dit():
    "No class is the null class; a student is never told that by chance."
    teacher = teacher_of('DiT')
    x = sample_noise(range(2), SHAPE)
    null = torch.tensor([5, 5])
    assert torch.equal(
        teacher(x, 2.0), teacher.raw(x, 2.0, null) * 0 + teacher(x, 2.0, null)
    ) and not torch.equal(teacher(x, 2.0), teacher(x, 2.0, null * 0))
    student = branch(teacher, 1).train()
    assert all(torch.equal(student(x, 2.0, null * 0), student(x, 2.0, null * 0)) for _ in range(20))
    guided = GuidedDenoiser(teacher, 3.0)
    torch.testing.assert_close(
        guided(x, 2.0, null * 0),
        teacher(x, 2.0) + 3 * (teacher(x, 2.0, null * 0) - teacher(x, 2.0)),
    )


@pytest.mark.parametrize('name', MADE)
def test_branches_equal_the_teacher(name):
    teacher = teacher_of(name)
    student = branch(teacher, 4)
    x, cond = sample_noise(range(2), SHAPE), rows_of(teacher, 2)
    with torch.no_grad():
        torch.testing.assert_close(
            student(x, 2.0, cond),
            teacher(x, 2.0, cond)[:, None].expand(-1, 4, -1, -1, -1),
            rtol=0,
            atol=1e-5,
        )
    plain, old = fold(student).net.model, teacher.net.model
    assert (
        type(plain) is type(old)
        and plain.config == old.config
        and plain.state_dict().keys() == old.state_dict().keys()
    )
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), old.parameters(), strict=True))


@pytest.mark.parametrize('name', MADE)
def test_a_description_rebuilds_the_network(name):
    net = teacher_of(name).net
    again = net_from_config(json.loads(json.dumps(net_config_of(net))))
    assert net_config_of(again) == net_config_of(net) and again.sample_shape == net.sample_shape
    again.load_state_dict(net.state_dict())
    x, cond = sample_noise(range(2), SHAPE), rows_of(teacher_of(name), 2)
    assert torch.equal(
        again.eval()(x, torch.tensor([0.5]).expand(2), cond),
        net(x, torch.tensor([0.5]).expand(2), cond),
    )


TEXT = dict(encoder_hidden_states=torch.zeros(3, 4, 12), encoder_attention_mask=torch.ones(3, 4))


@pytest.mark.parametrize(
    'cond, match',
    [
        (
            dict(TEXT, encoder_attention_mask=torch.ones(3, 7)),
            'as long as each other: encoder_hidden_states has 4 tokens, encoder_attention_mask has 7',
        ),
        (
            dict(encoder_hidden_states=torch.zeros(2, 4, 12)),
            r"condition 'encoder_hidden_states' must have a row for each of the 3 samples, got shape \(2, 4, 12\)",
        ),
        (torch.zeros(1, 4, 12), 'a row for each of the 3'),
    ],
)
def test_conditions_that_cannot_belong_to_their_samples_are_refused(cond, match):
    "In words also where the network is called directly."
    teacher, x = teacher_of('SD'), sample_noise(range(3), SHAPE)
    with pytest.raises(ValueError, match=match):
        teacher(x, 2.0, cond)


def test_what_looks_at_conditions_compiles_whole():
    teacher, x = teacher_of('SD'), sample_noise(range(3), SHAPE)
    compiled = torch.compile(teacher, fullgraph=True, backend='eager')
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, torch.tensor(2.0), TEXT), teacher(x, 2.0, TEXT))


def test_a_scheduler_without_a_table_is_named():
    with pytest.raises(ValueError, match='DDPMWuerstchenScheduler has no betas'):
        from_diffusers(net_of('SD'), diffusers.DDPMWuerstchenScheduler())


@pytest.mark.parametrize('kind', ['exponential', 'linear'])
@pytest.mark.parametrize('name, side', [('Flux', 32), ('SD3', 128), ('U-Net, flow matching', 32)])
def test_a_scheduler_that_shifts_by_the_number_of_tokens(name, side, kind):
    "The teacher's grid is that of the stock pipeline at this size; a fixed shift is as it was."
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, max_shift=2.0, time_shift_type=kind
    )
    tokens = side**2 // (1 if 'U-Net' in name else 4)
    scheduler.set_timesteps(8, mu=calculate_shift(tokens, max_shift=2.0))
    teacher = from_diffusers(net_of(name), scheduler)
    cfg = SFDConfig(nfe=8).fitted(teacher, (4, side, side))
    t = torch.linspace(1, 1 / 1000, 8)  # stock times before their shift
    torch.testing.assert_close(cfg.shift * t / (1 + (cfg.shift - 1) * t), scheduler.sigmas[:8])
    assert (
        SFDConfig(nfe=8)
        .fitted(
            from_diffusers(net_of(name), FlowMatchEulerDiscreteScheduler(shift=3.0)),
            (4, side, side),
        )
        .shift
        == 3
    )


def refused_unet(**more):
    return UNet2DConditionModel(**TEXT_UNET | more)


@pytest.mark.parametrize(
    'make, match',
    [
        (
            lambda: from_diffusers(net_of('SD3'), DDPMScheduler()),
            'SD3Transformer2DModel with a table of betas.*FlowMatchEulerDiscreteScheduler',
        ),
        (lambda: from_diffusers(net_of('SD3')), 'pass scheduler='),
        (
            lambda: from_diffusers(
                net_of('Flux'), FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
            ),
            'invert_sigmas.*data_time=1',
        ),
        (
            lambda: from_diffusers(refused_unet(in_channels=9), DDPMScheduler()),
            '9 channels in and 4 out',
        ),
        (
            lambda: from_diffusers(refused_unet(time_embedding_type='fourier'), DDPMScheduler()),
            "time_embedding_type='fourier'",
        ),
        (
            lambda: from_diffusers(refused_unet(class_embed_type='timestep'), DDPMScheduler()),
            "class_embed_type='timestep'",
        ),
        (
            lambda: from_diffusers(refused_unet(time_cond_proj_dim=8), DDPMScheduler()),
            'time_cond_proj_dim=8',
        ),
        (
            lambda: from_diffusers(
                refused_unet(addition_embed_type='text', encoder_hid_dim=12), DDPMScheduler()
            ),
            "addition_embed_type='text'; only text_time",
        ),
        (
            lambda: from_diffusers(
                refused_unet(
                    addition_embed_type='text_time',
                    addition_time_embed_dim=4,
                    projection_class_embeddings_input_dim=5 * 4 + 12,
                ),
                DDPMScheduler(),
            ),
            'layout of the SDXL refiner, five time_ids',
        ),
        (
            lambda: from_diffusers(net_of('SD'), DDPMScheduler(), null_class=0),
            'a null class of 0: this network has no classes, so leave null_class out',
        ),
        (
            lambda: from_diffusers(net_of('SD3'), diffusers.FlowMatchLCMScheduler()),
            'FlowMatchLCMScheduler is of a consistency model',
        ),
        (
            lambda: from_diffusers(AutoencoderKL(), DDPMScheduler()),
            'takes UNet2DModel, .*got AutoencoderKL',
        ),
        (
            lambda: teacher_of('SD')(sample_noise([0], SHAPE), 1.0),
            r'cond= a dict with encoder_hidden_states \[B, L, 12\] \(and, if you like, encoder_attention_mask\)',
        ),
        (
            lambda: teacher_of('SD3')(sample_noise([0], SHAPE), 1.0, torch.zeros(1, 4, 12)),
            'pooled_projections',
        ),
        (
            lambda: teacher_of('SD3')(
                sample_noise([0], SHAPE),
                1.0,
                dict(
                    encoder_hidden_states=torch.zeros(1, 4, 12),
                    pooled_projections=torch.zeros(1, 9),
                ),
            ),
            r"'pooled_projections' must have shape \[B, 10\], got \(1, 9\)",
        ),
        (
            lambda: teacher_of('SD')(
                sample_noise([0], SHAPE),
                1.0,
                dict(encoder_hidden_states=torch.zeros(1, 4, 12), prompt=torch.zeros(1)),
            ),
            "unknown condition 'prompt'",
        ),
        (
            lambda: teacher_of('SD')(sample_noise([0], SHAPE), 1.0, torch.zeros(1, 4, 13)),
            r'must have shape \[B, L, 12\]',
        ),
    ],
    ids=range(17),
)
def test_what_is_not_supported_is_named(make, match):
    with pytest.raises((ValueError, TypeError), match=match):
        make()


# --- out ---

STOCK = """import os, sys, re, torch
sys.modules['bdense_nb'] = None
try: import bdense_nb
except ImportError: pass
else: raise SystemExit('bdense_nb was found')
for folder in sys.argv[1:]:
    os.chdir(folder)
    made = {}
    exec(re.search('```python\\n(.*?)```', open('README.md').read(), re.S)[1], made)
    if 'pipe' in made: out = made['pipe'](3, [torch.Generator().manual_seed(i) for i in range(3)], num_inference_steps=2, output_type='np').images
    else: out = made['sample'](range(3), **torch.load('cond.pt'))
    torch.save(torch.as_tensor(out), 'out.pt')
"""


def by_stock(script, *folders):
    "Run a script over folders in a process where bdense_nb cannot be imported."
    assert python(script, *folders).returncode == 0
    return [torch.load(folder / 'out.pt') for folder in folders]


def ends_at_zero(student):
    "What stock flow matching does: its last step ends at noise level 0."
    if type(student.denoiser) is FlowDenoiser:
        student.sigmas[-1] = 0.0
    return student


def same(got, want, limit=1e-4):
    assert ((got - want).abs().max() / want.abs().max()).item() < limit


def test_every_family_is_distilled_and_sampled_by_stock_diffusers(tmp_path):
    made = {(name, how): student for name in MADE for how, student in students_of(name).items()}
    folders = []
    for (name, how), student in made.items():
        folders.append(folder := tmp_path / f'{name} {how}')
        student.save_pretrained(folder)
        cond = rows_of(student.denoiser, 3)
        torch.save(
            {'class_labels': cond} if isinstance(cond, torch.Tensor) else nested(cond),
            folder / 'cond.pt',
        )
        assert (folder / student.denoiser.net.part / 'config.json').is_file() and json.loads(
            (folder / 'sampling.json').read_text()
        )['nfe'] == 2
    for (key, student), stock in zip(made.items(), by_stock(STOCK, *folders)):
        ours = ends_at_zero(student).sample(3, cond=rows_of(student.denoiser, 3))
        if stock.shape != ours.shape:  # pixels, from DDIMPipeline
            assert key == ('U-Net', 'PD, K = 2')
            torch.testing.assert_close(
                stock.permute(0, 3, 1, 2), (ours / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-4
            )
        else:
            same(stock, ours)
    flows = {
        folder: student
        for folder, student in zip(folders, made.values())
        if type(student.denoiser) is FlowDenoiser and student.about['host'] == 'sfd'
    }
    assert len(flows) == 4 and all(
        second_stage(load_pretrained(folder, 'cpu')) == second_stage(student)
        for folder, student in flows.items()
    )
    back = load_pretrained(folders[-1], 'cpu')
    same(back.sample(3, cond=rows_of(back.denoiser, 3)), ours, 1e-6)


def test_a_student_is_saved_and_read(tmp_path):
    student = sfd(teacher_of('Flux'), SFD, show=False)
    student.save(tmp_path)
    same(load_student(tmp_path, 'cpu').sample(3), student.sample(3), 1e-6)


# --- what it takes ---


def kept_for_real(teacher, cfg, hardware):
    "Of one update on this CPU."
    model, frozen = branched_student(teacher, None, cfg.K, None, SHAPE), frozen_copy(teacher, SHAPE)
    set_precision(model, hardware.precision, torch.device('cpu'))
    return kept_bytes(
        model,
        cfg.step_function(
            frozen, None, sample_noise(range(cfg.batch), SHAPE), rows_of(teacher, cfg.batch)
        ),
    )


@pytest.mark.parametrize('name', ['SD', 'DiT', 'Flux'])
def test_memory_on_paper_is_what_autograd_keeps(name, monkeypatch):
    "A network without numbers says to 5 % what a real one keeps, in float32 and in 16 bits."
    teacher = teacher_of(name)
    cfg = dataclasses.replace(SFD, batch=8, ema=0.9)
    with torch.device('meta'):
        nowhere = MADE[name]()
    empty = from_diffusers(nowhere, scheduler_of(name), shape=SHAPE)
    empty.conditions = teacher.conditions
    plain, bf16 = Hardware(precision='no'), Hardware(precision='bf16')
    full, on_cuda = (memory_on_paper(empty, cfg, hardware=how) for how in (plain, bf16))
    # a CPU's autocast lets norms be in 16 bits
    monkeypatch.setattr('bdense_nb.app.plans._WHOLE', set())
    paper = memory_on_paper(teacher, cfg, hardware=bf16)
    assert paper['activations_gb'] < on_cuda['activations_gb'] < full['activations_gb']
    for hardware, said in ((plain, full), (bf16, paper)):
        assert said['activations_gb'] == pytest.approx(
            kept_for_real(teacher, cfg, hardware) / 1e9, rel=0.05
        ), hardware.precision
    size = sum(p.numel() for p in teacher.parameters())
    head = (paper['trained'] - size) / 3  # three more heads
    assert paper['parameters'] == size and head == int(head) and 0 < head < size
    assert 4e-9 * size <= paper['weights_gb'] < 6e-9 * size and paper[
        'training_gb'
    ] == pytest.approx(5 * 4e-9 * paper['trained'])
    less = memory_on_paper(empty, cfg, hardware=Hardware(precision='no', accumulate=2))
    assert less['at_once'] == 4 and less['activations_gb'] < 0.55 * full['activations_gb']
    if name != 'DiT':
        return
    assert full == memory_on_paper(teacher, cfg, hardware=plain), (
        'a network without numbers is as one with them'
    )
    anew = (
        memory_on_paper(copy.deepcopy(teacher).requires_grad_(True), cfg)['weights_gb']
        - paper['weights_gb']
    )
    assert anew == pytest.approx(4e-9 * size), 'a teacher that is not frozen is copied'
    part = memory_on_paper(teacher, cfg, student=partly_trained(teacher))
    assert part['trained'] < size / 2 and part['weights_gb'] < 1.5 * paper['weights_gb']


@pytest.mark.parametrize('name', ['SD', 'SDXL', 'DiT', 'PixArt', 'SD3', 'Flux'])
def test_recomputation_forgets_the_blocks_of_every_family(name):
    teacher = teacher_of(name)
    kinds = {type(m).__name__ for m in blocks(teacher)}
    assert (
        kinds
        <= {
            'ResnetBlock2D',
            'BasicTransformerBlock',
            'Downsample2D',
            'Upsample2D',
            'JointTransformerBlock',
            'FluxTransformerBlock',
            'FluxSingleTransformerBlock',
        }
        and kinds
    )
    x, cond, ends = sample_noise(range(2), SHAPE), rows_of(teacher, 2), []

    def step(model, i):
        yield model(x, 2.0, cond).square().mean()

    for again in (False, True):
        model = branch(teacher, 4)
        if again:
            recompute_blocks(model)
        ends.append(
            (
                torch.autograd.grad(
                    next(step(model, 0)), list(model.parameters()), allow_unused=True
                ),
                kept_bytes(model, step),
            )
        )
    (plain, most), (recomputed, least) = ends
    assert (
        all((a is None and b is None) or torch.equal(a, b) for a, b in zip(plain, recomputed))
        and least < 0.75 * most
    )


# --- pipelines, with their VAE, tokenizers and text encoders ---

VAE = dict(
    block_out_channels=(4, 8),
    norm_num_groups=2,
    down_block_types=('DownEncoderBlock2D',) * 2,
    up_block_types=('UpDecoderBlock2D',) * 2,
    sample_size=16,
    latent_channels=4,
    shift_factor=0.1,
)


def clip(projected=False, width=12):
    "A tokenizer of four words, and a text encoder."
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
    )

    words = ['a</w>', 'red</w>', 'green</w>', 'cat</w>', '<|startoftext|>', '<|endoftext|>']
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        projection_dim=width,
        bos_token_id=4,
        eos_token_id=5,
        pad_token_id=5,
    )
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    return CLIPTokenizer(
        vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=8
    ), kind(config).eval()


def t5():
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    words = ['<pad>', '</s>', '<unk>', '▁a', '▁red', '▁green', '▁cat']
    config = T5Config(vocab_size=len(words), d_model=12, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    return T5Tokenizer(
        vocab=[(w, -float(i)) for i, w in enumerate(words)], extra_ids=0, model_max_length=8
    ), T5EncoderModel(config).eval()


def pipeline_of(name):
    "A tiny pipeline, built from configurations; its text encoders are as wide as its network wants."
    torch.manual_seed(0)
    vae, net = AutoencoderKL(**VAE).eval(), net_of(name.partition(',')[0])
    if name == 'DiT':
        return diffusers.DiTPipeline(net, vae, scheduler_of(name))
    if name == 'SD':
        tokenizer, encoder = clip()
        return diffusers.StableDiffusionPipeline(
            vae,
            encoder,
            tokenizer,
            net,
            scheduler_of(name),
            None,
            None,
            requires_safety_checker=False,
        )
    if name == 'SDXL':
        tokenizer, encoder = clip(width=2)
        tokenizer_2, encoder_2 = clip(True, width=10)
        return diffusers.StableDiffusionXLPipeline(
            vae, encoder, encoder_2, tokenizer, tokenizer_2, net, scheduler_of(name)
        )
    if 'PixArt' in name:
        tokenizer, encoder = t5()
        kind = diffusers.PixArtAlphaPipeline if 'alpha' in name else diffusers.PixArtSigmaPipeline
        return kind(tokenizer, encoder, vae, net, scheduler_of(name))
    tokenizer_5, encoder_5 = t5()
    if name == 'SD3':
        (tokenizer, encoder), (tokenizer_2, encoder_2) = clip(True, width=4), clip(True, width=6)
        return diffusers.StableDiffusion3Pipeline(
            net,
            scheduler_of(name),
            vae,
            encoder,
            tokenizer,
            encoder_2,
            tokenizer_2,
            encoder_5,
            tokenizer_5,
        )
    tokenizer, encoder = clip(width=10)
    return diffusers.FluxPipeline(
        scheduler_of(name), vae, encoder, tokenizer, encoder_5, tokenizer_5, net
    )


SIZE = dict(height=16, width=16)
CALLS = {
    'DiT': {},
    'SD': SIZE,
    'SDXL': SIZE,
    'PixArt': dict(SIZE, use_resolution_binning=False, max_sequence_length=8),
    'SD3': dict(SIZE, max_sequence_length=8),
    'PixArt, alpha': dict(SIZE, use_resolution_binning=False, max_sequence_length=8),
    'Flux': dict(SIZE, max_sequence_length=8),
}
PIPED = """import os, sys, re, torch, json
from diffusers import DiffusionPipeline
sys.modules['bdense_nb'] = None
for folder in sys.argv[1:]:
    os.chdir(folder)
    pipe = DiffusionPipeline.from_pretrained('.')
    pipe.set_progress_bar_config(disable=True)
    how, code = torch.load('call.pt'), re.findall('```python\\n(.*?)```', open('README.md').read(), re.S)[1]
    how |= eval('dict(' + ', '.join(re.findall(r'(?:height|width|use_resolution_binning)=[^,)]*', code)) + ')')
    if 'class_labels' in how: how['generator'] = [torch.Generator().manual_seed(i) for i in range(2)]
    torch.save(torch.as_tensor(pipe(**how, output_type='np').images), 'out.pt')
    assert type(pipe).__name__ in code, code
"""
PROMPTS = ['a red cat', 'a green cat']


def test_pipelines_of_classes(tmp_path):
    "DiTPipeline takes the steps of a student of Progressive Distillation, and cannot take other levels."
    pipe = pipeline_of('DiT')
    teacher = from_diffusers(pipe)
    student = progressive(teacher, sample_noise(range(4), SHAPE), PD, torch.arange(4), show=False)
    student.save_pretrained(tmp_path, pipeline=pipe)
    torch.save(
        dict(class_labels=[0, 3], num_inference_steps=2, guidance_scale=1.0), tmp_path / 'call.pt'
    )
    images = by_stock(PIPED, tmp_path)[0]
    with torch.no_grad():
        ours = pipe.vae.decode(
            student.sample(2, cond=[0, 3]) / pipe.vae.config.scaling_factor
        ).sample
    torch.testing.assert_close(
        images.permute(0, 3, 1, 2), (ours / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-4
    )
    with pytest.raises(
        ValueError, match='DiTPipeline cannot be told noise levels.*leave pipeline= out'
    ):
        sfd(teacher, SFD, show=False).save_pretrained(tmp_path / 'no', pipeline=pipe)
    assert not (tmp_path / 'no').exists()
    early = Student(teacher_of('SD3'), [1000.0, 2.0, 0.5, 0.0], True, SHAPE)

    class Piped:
        def __call__(self, prompt, sigmas):
            pass

    with pytest.raises(
        ValueError,
        match=r'Piped would start this student from noise that is 49\...% stronger.*leave pipeline= out .* afs=False',
    ):
        pipeline_code(early, Piped)
    for levels, off in (
        ([1000.0, 2.0, 0.0], '0.10% stronger'),
        ([120.0, 2.0, 0.0], '0.83% stronger'),
    ):
        assert off in pipeline_code(dataclasses.replace(early, sigmas=levels, afs=False), Piped)
    with pytest.raises(ValueError, match=r'1\.25% stronger than its own, and up to 1% is accepted'):
        pipeline_code(dataclasses.replace(early, sigmas=[80.0, 2.0, 0.0], afs=False), Piped)
    plain = sfd(teacher_of('U-Net'), SFD, show=False)
    ddim = diffusers.DDIMPipeline(plain.denoiser.net.model, diffusers.DDIMScheduler())
    with pytest.raises(ValueError, match='DDIMPipeline cannot be told noise levels'):
        plain.save_pretrained(tmp_path / 'no', pipeline=ddim)


def test_pipelines_of_text(tmp_path):
    "From prompts to images: the pipeline in the student's folder makes the images that our samples decode to."
    pytest.importorskip(
        'transformers',
        reason='stock text pipelines need transformers (pip install transformers); their networks are tested without it',
    )
    made = {}
    for name, more in CALLS.items():
        if name == 'DiT':
            continue
        pipe = pipeline_of(name)
        pipe.set_progress_bar_config(disable=True)
        source = pipe
        if name in ('SD', 'SD3'):
            pipe.save_pretrained(source := tmp_path / f'{name} teacher')
        shape = (4, 8, 12) if name == 'SD' else SHAPE  # no pipeline's own size, nor is Flux's
        teacher = from_diffusers(source, shape=shape)
        cond = prompt_conditions(pipe, PROMPTS, **more)
        teacher.conditions = ConditionTable(cond)
        cfg = (
            dataclasses.replace(SFD, sigma_max=1000.0) if name in FLOW else SFD
        )  # where its pipeline begins
        student = ends_at_zero(sfd(teacher, dataclasses.replace(cfg, shape=shape), show=False))
        student.save_pretrained(folder := tmp_path / name, pipeline=source)
        sigmas = re.search(
            r'sigmas=(\[.*?\])', (folder / 'README.md').read_text().split('```python')[2]
        )[1]
        noise = sample_noise(range(2), shape)
        flow = name in FLOW
        latents = noise * (student.sigmas[0] / (1 + student.sigmas[0])).float() if flow else noise
        if name == 'Flux':
            latents = packed(latents)
        torch.save(
            dict(
                prompt=PROMPTS,
                sigmas=json.loads(sigmas),
                latents=latents,
                guidance_scale=1.0,
                **{k: v for k, v in more.items() if k not in SIZE},
            ),
            folder / 'call.pt',
        )
        x = student.sample(2, cond=cond)
        v = pipe.vae.config
        with torch.no_grad():
            image = pipe.vae.decode(
                x / v.scaling_factor + ((v.shift_factor or 0.0) if flow else 0.0)
            ).sample
        made[folder] = (image / 2 + 0.5).clamp(0, 1)
    for (folder, ours), images in zip(made.items(), by_stock(PIPED, *made)):
        torch.testing.assert_close(
            images.permute(0, 3, 1, 2), ours, rtol=0, atol=1e-4, msg=lambda m: f'{folder.name}: {m}'
        )


def test_a_pipeline_without_its_text_encoders_names_the_package(tmp_path, monkeypatch):
    "As diffusers stands in for a pipeline whose packages are missing; the network alone needs none of them."
    monkeypatch.setattr(
        diffusers,
        'StableDiffusionPipeline',
        type('StableDiffusionPipeline', (), dict(_backends=['torch', 'transformers_of_nobody'])),
    )
    net = net_of('SD')
    net.save_pretrained(tmp_path / 'unet')
    scheduler_of('SD').save_pretrained(tmp_path / 'scheduler')
    (tmp_path / 'model_index.json').write_text(
        json.dumps(
            dict(_class_name='StableDiffusionPipeline', unet=['diffusers', 'UNet2DConditionModel'])
        )
    )
    teacher = from_diffusers(tmp_path)
    teacher.conditions = ConditionTable(example_cond(teacher.net, 4))
    student = sfd(teacher, SFD, show=False)
    with pytest.raises(
        ImportError,
        match='StableDiffusionPipeline needs what is not here: pip install transformers_of_nobody; or leave pipeline= out',
    ):
        student.save_pretrained(tmp_path / 'few', pipeline=tmp_path)
    assert not (tmp_path / 'few').exists()
    student.save_pretrained(tmp_path / 'few')
    weights = tmp_path / 'unet' / 'diffusion_pytorch_model.safetensors'
    theirs = weights.read_bytes()
    with pytest.raises(ValueError, match=r'another model \(unet, model_index.json\), a teacher p'):
        student.save_pretrained(tmp_path)
    assert weights.read_bytes() == theirs and not (tmp_path / 'README.md').exists()
    for again in (dict(overwrite=True), {}):  # then it is a student's
        student.save_pretrained(tmp_path, **again)
    assert weights.read_bytes() != theirs and not (tmp_path / 'model_index.json').exists()


def test_a_pipeline_whose_network_takes_other_things_is_refused(tmp_path):
    net_of('SDXL').save_config(tmp_path / 'unet')
    (tmp_path / 'model_index.json').write_text(
        json.dumps(
            dict(
                _class_name='StableDiffusionXLPipeline', unet=['diffusers', 'UNet2DConditionModel']
            )
        )
    )
    student = Student(teacher_of('SD'), [14.0, 1.0, 0.0], False, SHAPE)
    for pipe, says in (
        (
            tmp_path,
            "'unet' of this pipeline takes addition_embed_type='text_time', the student's None; takes addition_time_embed_dim=4.*name the pipeline that was distilled",
        ),
        (net_of('SD'), 'pipeline must be one of diffusers, .* got UNet2DConditionModel'),
    ):
        with pytest.raises((TypeError, ValueError), match=says):
            student.save_pretrained(tmp_path / 'out', pipeline=pipe)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    'null, says',
    [
        (None, '^null=None, .*does not fit the teacher: a UNet2DConditionModel is told more'),
        (torch.zeros(1, 4, 7), r'^null=\[1, 4, 7\].* must be of the shape of the others'),
        (
            {'encoder_hidden_states': torch.zeros(1, 7, 12)},
            r'^null=.*\[1, 7, 12\].* must be of the shape of the others',
        ),
    ],
    ids=['none', 'width', 'length'],
)
def test_a_null_that_does_not_fit_is_named(null, says):
    with pytest.raises(ValueError, match=says):
        frozen_copy(GuidedDenoiser(teacher_of('SD'), 3.0, null), SHAPE)


def test_missing_conditions_are_named():
    teacher = teacher_of('SD')
    teacher.conditions = None
    with pytest.raises(
        ValueError, match='with cond=None does not fit the teacher: .* or let conditions= draw them'
    ):
        frozen_copy(teacher, SHAPE)


# --- adapters ---


def test_what_is_frozen_stays_frozen_from_the_first_step_to_the_student():
    "Without peft: whichever parameters of student= are trainable, those and no others change."
    teacher = teacher_of('DiT')
    start = partly_trained(teacher)
    for how in ('SFD', 'PD'):
        if how == 'SFD':
            student = sfd(teacher, SFD, show=False, student=start)
        else:
            student = progressive(
                teacher,
                sample_noise(range(4), SHAPE),
                PDConfig(**{**PD.__dict__, 'start_steps': 8}),
                torch.arange(4),
                show=False,
                student=start,
            )
        moved = {
            name
            for (name, p), q in zip(
                student.denoiser.named_parameters(), teacher.parameters(), strict=True
            )
            if not torch.equal(p, q)
        }
        assert (
            moved
            and all('to_q' in name or 'proj_out_2' in name for name in moved)
            and any('to_q' in name for name in moved)
        ), how


def partly_trained(teacher):
    start = lean_copy(teacher)
    for name, p in start.named_parameters():
        p.requires_grad_('to_q' in name or 'proj_out_2' in name)
    return start


def places(*modules):
    return [{p.data_ptr() for p in m.parameters() if not p.requires_grad} for m in modules]


class Seen:
    "Where the frozen weights of a run lie, and a stop after an iteration."

    def __init__(self, stop_at=None):
        self.stop_at = stop_at

    def start(self, state):
        self.frozen = places(state.model, *[state.ema.module] if state.ema else [])

    def after_iteration(self, state):
        state.stop = state.done == self.stop_at


def distilled(how, teacher, start, folder=None, hooks=()):
    if how == 'SFD':
        return sfd(
            teacher,
            dataclasses.replace(SFD, steps=4, ema=0.5, afs=True),
            student=start,
            folder=folder,
            hooks=hooks,
            show=False,
        )
    cfg = dataclasses.replace(PD, start_steps=8, updates=2)
    return progressive(
        teacher,
        sample_noise(range(4), SHAPE),
        cfg,
        torch.arange(4),
        student=start,
        folder=folder,
        hooks=hooks,
        show=False,
    )


@pytest.mark.parametrize('how', ['SFD', 'PD'])
def test_frozen_weights_are_held_once_and_change_no_result(how, tmp_path, monkeypatch):
    "The teacher, its frozen copy, the student and its average share them; a finished student shares nothing."
    teacher, seen = teacher_of('DiT'), Seen()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    start = partly_trained(teacher)
    _, frozen, model = starting_run(
        PD if how == 'PD' else SFD, teacher, start, SHAPE, lambda cfg: SFD.plan
    )
    mine, theirs, trained = (
        *places(teacher, frozen),
        {p.data_ptr() for p in model.parameters() if p.requires_grad},
    )
    assert theirs == mine and places(model)[0] < mine and not trained & mine and trained
    student = distilled(how, teacher, start, hooks=[seen])
    if how == 'SFD':
        assert len(seen.frozen) == 2 and all(
            found < mine for found in seen.frozen
        )  # of PD the last round's teacher is a student
    assert not places(student.denoiser)[0] & mine and all(
        torch.equal(v, before[k]) for k, v in teacher.state_dict().items()
    )
    if how == 'SFD':
        distilled(how, teacher, start, tmp_path, [Seen(2)])
        stored = {
            k
            for k in load_tensors(next(tmp_path.glob('checkpoint-*')))[0]
            if not k.startswith('optim')
        }
        learned = {k for k, p in model.named_parameters() if p.requires_grad}
        assert {k.removeprefix('model.').removeprefix('ema.module.') for k in stored} - {
            'ema.n_averaged'
        } == learned, 'the teacher is at hand'
        moved = copy.deepcopy(teacher)
        next(p for n, p in moved.named_parameters() if 'to_k' in n).data += 0.1
        with pytest.raises(ValueError, match='another configuration'):
            distilled(how, moved, partly_trained(moved), tmp_path)
        resumed = distilled(how, teacher, start, tmp_path)
        assert all(
            torch.equal(a, b)
            for a, b in zip(
                resumed.denoiser.parameters(), student.denoiser.parameters(), strict=True
            )
        )
    for name in ('bank', 'students', 'branches', 'progressive'):
        module = importlib.import_module(f'bdense_nb.distillation.{name}')
        for kind in ('lean_copy', 'trainable_copy'):
            if hasattr(module, kind):
                monkeypatch.setattr(module, kind, copy.deepcopy)
    apart = distilled(how, teacher, copy.deepcopy(start))
    assert all(
        torch.equal(a, b)
        for a, b in zip(apart.denoiser.parameters(), student.denoiser.parameters(), strict=True)
    )


@pytest.mark.parametrize('change', ['numbers', 'trained'])
def test_weights_that_a_checkpoint_leaves_out_must_be_the_same(change, tmp_path):
    def run(net, steps):
        step = lambda model, i: iter([model(torch.ones(2, 3)).square().mean()])
        return fit(net, step, TrainConfig(steps, 1e-2, schedule='constant'), tmp_path, show=False)

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 1))
    run(copy.deepcopy(net), 1)
    again = run(copy.deepcopy(net), 2).model
    assert torch.equal(again[0].weight, net[0].weight)
    net[0].weight.requires_grad_(change == 'trained').data.add_(change == 'numbers')
    with pytest.raises(
        ValueError,
        match='1 weights that were frozen, .* are others here or trained, such as 0.weight',
    ):
        run(net, 3)


def the_peft():
    return pytest.importorskip(
        'peft',
        reason='LoRA needs peft (pip install "bdense-nb[lora]"); what is frozen is tested without it',
    )


def lora(**more):
    return the_peft().LoraConfig(**dict(r=2, lora_alpha=6, target_modules=['to_q', 'to_v']) | more)


def by_peft(name, how, **more):
    "A denoiser whose network a user has given adapters, in one of peft's ways."
    peft, net = the_peft(), net_of(name)
    if how == 'add_adapter':
        net.add_adapter(lora(**more))
    elif how == 'inject':
        peft.inject_adapter_in_model(lora(**more), net, 'mine')
    else:
        net = peft.get_peft_model(net, lora(**more))
    teacher = from_diffusers(net, scheduler_of(name), shape=SHAPE)
    if not teacher.n_classes:
        teacher.conditions = teacher_of(name).conditions
    return teacher


ADAPTED = {
    'SD, with_adapters': lambda: with_adapters(teacher_of('SD'), rank=2),
    'DiT, with_adapters': lambda: with_adapters(teacher_of('DiT'), rank=2),
    'Flux, add_adapter': lambda: by_peft(
        'Flux', 'add_adapter', init_lora_weights='gaussian', use_rslora=True
    ),
    'SD3, get_peft_model': lambda: by_peft(
        'SD3', 'get_peft_model', target_modules=r'.*to_(q|k)', rank_pattern={'to_q': 4}
    ),
    'PixArt, inject': lambda: by_peft('PixArt', 'inject', use_dora=True),
}


def test_adapters(tmp_path):
    "Trained, saved, exported as adapter plus head, and merged: the same samples each time, also where this package does not exist."
    the_peft()
    folders, want = [], []
    for case, make in ADAPTED.items():
        name, here = case.partition(',')[0], tmp_path / case
        teacher, start = teacher_of(name), make()
        x, cond = sample_noise(range(3), SHAPE), rows_of(teacher, 3)
        same(start(x, 2.0, cond), teacher(x, 2.0, cond), 1e-6)
        model = branch(start, 2)
        trained = {n for n, p in model.denoiser.named_parameters() if p.requires_grad}
        assert (
            sum('lora_' not in n for n in trained) == 2
            and sum('lora_' in n for n in trained)
            == sum('lora_' in n for n, _ in model.named_parameters())
            > 0
        )
        assert places(model)[0] <= places(start)[0] and not {
            p.data_ptr() for p in model.parameters() if p.requires_grad
        } & {p.data_ptr() for p in start.parameters()}
        student = ends_at_zero(
            sfd(teacher if 'with' in case else start, SFD, show=False, student=start)
        )
        ours = student.sample(3, cond=cond)
        moved = {
            n
            for (n, p), q in zip(
                student.denoiser.named_parameters(), start.parameters(), strict=True
            )
            if not torch.equal(p, q)
        }
        assert moved <= trained and any('lora_' in n for n in moved)
        plain = merged(student.denoiser)
        assert plain.state_dict().keys() == teacher.state_dict().keys()
        same(dataclasses.replace(student, denoiser=plain).sample(3, cond=cond), ours)
        student.save(here / 'own')
        same(load_student(here / 'own', 'cpu').sample(3, cond=cond), ours, 1e-6)
        student.denoiser.net.source = '../teacher'
        teacher.net.model.save_pretrained(here / 'teacher' / teacher.net.part)
        whole, light = here / 'whole', here / 'light'
        student.save_pretrained(whole, merge=True)
        student.save_pretrained(light)
        size = {
            folder: sum(
                p.stat().st_size for p in (folder / teacher.net.part).rglob('*.safetensors')
            )
            for folder in (whole, light)
        }
        assert size[light] < size[whole] and not (light / teacher.net.part / 'config.json').exists()
        assert load_pretrained(whole, 'cpu').denoiser.net.adapters is None
        for folder in (whole, light):
            torch.save(
                {'class_labels': cond} if isinstance(cond, torch.Tensor) else nested(cond),
                folder / 'cond.pt',
            )
            folders.append(folder)
            want.append(ours)
        with pytest.raises(ValueError, match='merge=True'):
            student.save_pretrained(tmp_path / 'no', pipeline=tmp_path)
    for stock, ours in zip(by_stock(STOCK, *folders), want, strict=True):
        same(stock, ours)


def test_adapters_go_from_round_to_round():
    "Of Progressive Distillation: each round trains them and the output layer, and nothing else."
    start = by_peft('DiT', 'inject')
    student = progressive(
        start,
        sample_noise(range(4), SHAPE),
        dataclasses.replace(PD, start_steps=8),
        torch.arange(4),
        show=False,
    )
    moved = {
        n
        for (n, p), q in zip(student.denoiser.named_parameters(), start.parameters(), strict=True)
        if not torch.equal(p, q)
    }
    assert (
        moved
        and all('lora_' in n or 'proj_out_2' in n for n in moved)
        and student.denoiser.net.adapters
        == by_peft('DiT', 'inject').net.adapters
        | dict(trained=['proj_out_2.weight', 'proj_out_2.bias'])
    )


def test_what_a_user_trains_beside_adapters_is_exported_too(tmp_path):
    start = by_peft('SD', 'add_adapter')
    for n, p in start.named_parameters():
        p.requires_grad_('lora_B' in n or 'conv_in' in n)
    model = branch(start, 1)
    assert {
        n.split('.')[-3 if 'lora' in n else -2]
        for n, p in model.named_parameters()
        if p.requires_grad
    } == {'lora_B', 'conv_in', 'conv_out'}
    sfd(start, SFD, show=False).save_pretrained(tmp_path)
    from safetensors.torch import load_file

    kept = {f'{layer}.{kind}' for layer in ('conv_in', 'conv_out') for kind in ('weight', 'bias')}
    assert set(load_file(tmp_path / 'unet' / 'head.safetensors')) == kept
    sfd_variable(start, SFD, (1, 2), show=False).at(1).save_pretrained(tmp_path)
    assert set(load_file(tmp_path / 'unet' / 'head.safetensors')) == kept | {
        'time_embedding.linear_1.bias'
    }


def test_adapters_of_ones_own_network():
    "Any network with adapters: they and its output layer are trained; merged, it is the network it was."
    peft = the_peft()
    plain = MLP(dim=2, width=8, depth=1)
    torch.nn.init.normal_(plain.out.weight)
    start = EDMDenoiser(
        peft.get_peft_model(
            copy.deepcopy(plain),
            peft.LoraConfig(r=2, target_modules='all-linear', exclude_modules=['out']),
        )
    ).eval()
    student = sfd(start, SFDConfig(nfe=2, K=2, steps=2, batch=4, shape=(2,), lr=1e-2), show=False)
    moved = {
        n
        for (n, p), q in zip(student.denoiser.named_parameters(), start.parameters(), strict=True)
        if not torch.equal(p, q)
    }
    assert moved and all('lora_' in n or '.out.' in n for n in moved)
    whole = merged(student.denoiser)
    assert (
        type(whole.net) is MLP
        and whole.state_dict().keys() == EDMDenoiser(plain).state_dict().keys()
    )
    same(dataclasses.replace(student, denoiser=whole).sample(5), student.sample(5))


def adapted_unet(change=lambda net: None, **more):
    denoiser = by_peft('SD', 'add_adapter', **more)
    change(denoiser.net.model)
    return denoiser


@pytest.mark.parametrize(
    'change, more, says',
    [
        (
            lambda net: net.add_adapter(lora(), 'second'),
            {},
            r'it has 2 of them \(default, second\).*merge the others',
        ),
        (lambda net: net.fuse_lora(), {}, 'differs in merged_adapters of .*to_q'),
        (lambda net: net.set_adapters(['default'], [0.5]), {}, 'differs in scaling of .*to_q'),
        (lambda net: net.disable_lora(), {}, 'differs in disable_adapters'),
        (lambda net: None, dict(lora_bias=True), 'lora_bias=True is not supported'),
        (
            lambda net: None,
            dict(init_lora_weights='pissa'),
            "init_lora_weights='pissa' changes the weights",
        ),
        (lambda net: None, dict(modules_to_save=['conv_in']), 'modules_to_save=.*leave it out'),
        (
            lambda net: None,
            dict(target_modules=['to_q', 'conv_out']),
            "output layer, 'unet.conv_out', has an adapter.*leave it out of target_modules",
        ),
    ],
    ids=['two', 'merged', 'scaled', 'off', 'lora_bias', 'pissa', 'modules_to_save', 'head'],
)
def test_adapters_that_cannot_be_saved_are_refused_before_work(change, more, says):
    lora()
    start = adapted_unet(change, **more)
    for K in (1, 2):
        with pytest.raises(ValueError, match=says):
            branch(start, K)


def test_layers_like_those_of_peft_without_a_configuration_are_refused():
    student = copy.deepcopy(teacher_of('SD'))
    student.net.model.conv_in.base_layer = torch.nn.Identity()  # as peft's layers have one
    for K in (1, 2):
        with pytest.raises(
            ValueError,
            match='adapters of this network cannot be saved: peft has noted none of them in its UNet2DConditionModel: add them to that',
        ):
            branch(student, K)


def test_adapters_of_convolutions_and_dropout_are_exported_and_sampled_without_it(
    tmp_path, monkeypatch
):
    "By get_peft_model after from_diffusers; training leaves their weights in another layout. An export in another form takes the place of the first."
    peft, teacher = the_peft(), teacher_of('SD')
    teacher.net.unet = peft.get_peft_model(
        teacher.net.unet, lora(target_modules=['conv1', 'to_q'], lora_dropout=0.5)
    )
    student = sfd(teacher, SFD, show=False)
    student.denoiser.net.source = '../teacher'
    net_of('SD').save_pretrained(tmp_path / 'teacher' / 'unet')
    student.save_pretrained(tmp_path / 'light')
    monkeypatch.chdir(tmp_path / 'light')
    made = {}
    exec(re.search('```python\n(.*?)```', open('README.md').read(), re.S)[1], made)
    cond = rows_of(teacher, 3)
    same(made['sample'](range(3), **cond), student.sample(3, cond=cond))
    files = lambda: {p.name for p in (tmp_path / 'light' / 'unet').iterdir()}
    light = files()
    student.save_pretrained(tmp_path / 'light', merge=True)
    same(
        load_pretrained(tmp_path / 'light', 'cpu').sample(3, cond=cond),
        student.sample(3, cond=cond),
    )
    student.save_pretrained(tmp_path / 'light')
    assert files() == light
    with pytest.raises(ValueError, match='must be told encoder_hidden_states: write its weights'):
        export_onnx(student, tmp_path / 'step.onnx')


def test_a_pipeline_whose_network_peft_has_wrapped_takes_the_merged_one(tmp_path):
    "And torch.compile."
    pipe = pipeline_of('SD')
    pipe.unet = torch.compile(the_peft().get_peft_model(pipe.unet, lora()))
    start = from_diffusers(pipe)
    start.conditions = teacher_of('SD').conditions
    sfd(start, SFD, show=False).save_pretrained(tmp_path, pipeline=pipe, merge=True)
    assert (
        type(diffusers.StableDiffusionPipeline.from_pretrained(tmp_path).unet)
        is UNet2DConditionModel
    )


def test_adapters_are_drawn_without_a_word_to_the_generators_of_gpus(monkeypatch):
    lora()
    teacher, reached = teacher_of('DiT'), []
    before = torch.get_rng_state()
    monkeypatch.setattr(torch.cuda, 'manual_seed_all', reached.append)
    with_adapters(teacher, 2)
    assert not reached and torch.equal(torch.get_rng_state(), before)


def test_adapters_are_not_added_twice():
    lora()
    with pytest.raises(
        ValueError, match='has adapters, which are trained as they are: pass it as student='
    ):
        with_adapters(adapted_unet())
    branch(merged(adapted_unet()), 2)


@pytest.mark.parametrize(
    'targets, says',
    [
        (('conv_out', 'to_q'), "'conv_out' is the output layer.*leave it out"),
        (('to_q', 'nonsense'), "'nonsense' ends no name.*UNet2DConditionModel.*to_q"),
        ('to_q', "names of layers.*got 'to_q'"),
        ((), r'names of layers.*got \(\)'),
    ],
)
def test_layers_that_get_no_adapter_are_refused(targets, says):
    with pytest.raises((ValueError, TypeError), match=says):
        with_adapters(teacher_of('SD'), 2, targets)


def test_adapters_say_what_they_need(monkeypatch):
    monkeypatch.setitem(sys.modules, 'peft', None)
    with pytest.raises(ImportError, match=r'needs peft.*bdense-nb\[lora\]'):
        with_adapters(teacher_of('SD'))


class Piped:
    "What a text pipeline does: it tells its network something of its prompts, and calls it."

    def __init__(self, unet):
        self.unet, self.asked = unet, []

    def __call__(self, prompts, num_inference_steps, **how):
        self.asked.append(how)
        n = len(prompts)
        text = torch.tensor([len(p) for p in prompts]).half().reshape(n, 1, 1).expand(n, 4, 12)
        self.unet(
            torch.zeros(n, *SHAPE),
            0,
            encoder_hidden_states=text,
            cross_attention_kwargs=None,
            added_cond_kwargs=dict(text_embeds=text[:, 0, :10], time_ids=torch.ones(n, 6)),
            encoder_attention_mask=None,
        )


def test_conditions_of_prompts_are_caught_at_the_networks_door():
    pipe = Piped(net_of('SDXL'))
    pipe.unet.forward = lambda *a, **k: pytest.fail('the network was called')
    cond = prompt_conditions(pipe, ['a', 'bcd', 'ef'], batch=2, guidance_scale=3.5)
    assert list(cond) == [
        'encoder_hidden_states',
        'added_cond_kwargs.text_embeds',
        'added_cond_kwargs.time_ids',
    ] and {len(v) for v in cond.values()} == {3}
    assert (
        cond['encoder_hidden_states'][:, 0, 0].tolist() == [1.0, 3.0, 2.0]
        and cond['encoder_hidden_states'].dtype == torch.float32
    )
    assert [how['guidance_scale'] for how in pipe.asked] == [
        3.5,
        3.5,
    ] and not pipe.unet._forward_pre_hooks
    before = denoiser_hash(EDMDenoiser(net := MLP()))
    net._diffusers_hook = object()  # as some pipelines leave one behind
    assert denoiser_hash(EDMDenoiser(net)) == before


def test_the_empty_prompt_is_what_the_pipelines_guidance_compares_with():
    "Stock SDXL compares with zeros, and its guided samples are those of our guided teacher."
    pytest.importorskip('transformers')
    pipe = pipeline_of('SDXL')
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(
        dict(pipe.scheduler.config) | dict(timestep_spacing='trailing')
    )
    rows = prompt_conditions(pipe, ['a red cat', '', 'a green cat'], **SIZE)
    cond, null = ({k: v[i] for k, v in rows.items()} for i in ([0, 2], [1]))
    noise, levels = sample_noise(range(2), SHAPE), [14.0, 3.0, 0.5, 0.0]
    stock = pipe(
        PROMPTS, latents=noise, guidance_scale=4.0, sigmas=levels, output_type='latent', **SIZE
    ).images
    ours = sample(GuidedDenoiser(from_diffusers(pipe), 4.0, null), 14 * noise, levels, cond=cond)
    assert (
        pipe.config.force_zeros_for_empty_prompt
        and ((stock - ours).abs().max() / stock.abs().max()) < 1e-5
    )
    alone, twice = (
        prompt_conditions(pipe, '', **SIZE),
        prompt_conditions(pipe, PROMPTS + [''], num_images_per_prompt=2, **SIZE),
    )
    for k, v in twice.items():
        torch.testing.assert_close(v, torch.cat([cond[k], null[k]]).repeat_interleave(2, 0))
    assert all(torch.equal(null[k], alone[k]) for k in null)


@pytest.mark.parametrize('source', ['network', 'DiT', 'DDPM'])
def test_prompts_are_of_pipelines_that_take_them(source):
    pipe = (
        net_of('SD')
        if source == 'network'
        else pipeline_of('DiT')
        if source == 'DiT'
        else diffusers.DDPMPipeline(net_of('U-Net'), DDPMScheduler())
    )
    with pytest.raises(TypeError, match='is no pipeline that takes prompts: pass one'):
        prompt_conditions(pipe, ['a'])


def test_no_prompts_are_refused_and_one_is_one():
    assert len(prompt_conditions(Piped(net_of('SDXL')), 'a red cat')['encoder_hidden_states']) == 1
    with pytest.raises(ValueError, match='at least one prompt, got none'):
        prompt_conditions(Piped(net_of('SDXL')), [])


def test_a_table_of_conditions_with_nan_is_refused():
    rows = torch.zeros(3, 2)
    rows[1, 0] = torch.nan
    with pytest.raises(ValueError, match='text: row 1 has numbers that are NaN'):
        ConditionTable(dict(text=rows))
    ConditionTable(torch.arange(4))


@pytest.mark.parametrize(
    'change, says',
    [
        (lambda net: net.set_attn_processor(Own()), r'computed by Own; set_default_attn_proc'),
        (lambda net: net.fuse_qkv_projections(), r'unfuse_qkv_projections\(\) first'),
        (lambda net: net.enable_freeu(0.9, 0.2, 1.5, 1.6), r'disable_freeu\(\) first'),
        (lambda net: net.conv_in.register_forward_hook(print), 'forward hooks.*remove them first'),
    ],
)
def test_what_a_configuration_does_not_say_is_refused(change, says):
    "It would be missing from what a student of it is written as."
    change(net := net_of('SD'))
    with pytest.raises(ValueError, match=says):
        teacher_of('SD', net)


class Own:
    def __call__(self, attn, hidden_states, *args, **more):
        return hidden_states


def test_a_scheduler_whose_levels_were_changed_is_refused():
    scheduler = DDPMScheduler(prediction_type='v_prediction')
    scheduler.alphas_cumprod = (1 - torch.linspace(1e-4, 0.01, 1000)).cumprod(0)
    with pytest.raises(ValueError, match='DDPMScheduler has other levels .* trained_betas='):
        from_diffusers(net_of('SD'), scheduler)


def test_a_pipeline_that_tells_its_network_more_is_refused():
    pipe = pipeline_of('SD')
    pipe.controlnet = object()
    with pytest.raises(ValueError, match='more by its controlnet, which no student'):
        from_diffusers(pipe)


def test_flux_is_told_the_scale_that_its_pipeline_has():
    class Guided(Piped):
        def __call__(self, prompts, num_inference_steps, guidance_scale=3.5, **how):
            told = torch.full((len(prompts),), guidance_scale)
            self.transformer(torch.zeros(1), guidance=told)

    pipe = Guided(None)
    pipe.transformer = net_of('Flux')
    pipe.transformer.register_to_config(guidance_embeds=True)
    assert prompt_conditions(pipe, ['a', 'b'])['guidance'].tolist() == [3.5, 3.5]
    assert prompt_conditions(pipe, ['a'], guidance_scale=2.0)['guidance'].tolist() == [2.0]
