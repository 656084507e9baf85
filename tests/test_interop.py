"Models of diffusers in and out: the same predictions, the same samples, nothing of ours where the student is used."

import copy
import importlib.util
import html
import json
import pickle
import re
import shlex
import sys
from dataclasses import asdict, replace

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from PIL import Image
from torch import nn

diffusers = pytest.importorskip('diffusers')

from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    UNet2DModel,
)  # noqa: E402

from bdense_nb.app import sources, shell as cli  # noqa: E402
from bdense_nb.distillation.branches import branch, fold, output_layer  # noqa: E402
from bdense_nb.core import load_tensors, read_json, sample_noise, write_json  # noqa: E402
from bdense_nb.diffusion.data import fashion_mnist, image_folder, to_pixels  # noqa: E402
from bdense_nb.interop.diffusers import (
    BETA_SCHEDULES,
    PREDICTION_TYPES,
    as_denoiser,
    from_diffusers,
    net_config_of,
    net_from_config,
    noise_table,
    sample_ddim_like_diffusers,
)
from bdense_nb.interop.export import ddim_steps, export_onnx, export_student, load_pretrained
from bdense_nb.diffusion.nets import MLP, UNet  # noqa: E402
from bdense_nb.distillation.progressive import PDConfig, progressive  # noqa: E402
from bdense_nb.distillation.sfd import SFDConfig, sfd, teacher_bank  # noqa: E402
from bdense_nb.distillation.students import Student  # noqa: E402
from bdense_nb.diffusion.denoisers import EDMDenoiser, GaussianDenoiser  # noqa: E402
from bdense_nb.distillation.variable import sfd_variable  # noqa: E402
from conftest import check_onnx_step, in_pairs
from warm import python


def unet_of(size=8, **more):
    torch.manual_seed(0)
    return UNet2DModel(
        **dict(
            dict(
                sample_size=size,
                in_channels=1,
                out_channels=1,
                block_out_channels=(8, 16),
                layers_per_block=1,
                norm_num_groups=4,
                down_block_types=('DownBlock2D', 'DownBlock2D'),
                up_block_types=('UpBlock2D', 'UpBlock2D'),
            ),
            **more,
        )
    ).eval()


@pytest.fixture(scope='module')
def unet():
    return unet_of()


@pytest.fixture(scope='module')
def classy():
    return unet_of(num_class_embeds=4)


TINY = SFDConfig(steps=2, batch=4, shape=(1, 8, 8), lr=1e-2)
TINY_PD = PDConfig(start_steps=8, end_steps=4, schedule='teacher', updates=2, batch=4, lr=1e-2)


def sfd_of(denoiser, cfg=TINY):
    "A student of SFD that was not trained: what is asked here is how it leaves."
    return Student(
        denoiser,
        cfg.grids[1],
        cfg.afs,
        cfg.shape,
        dict(host='sfd', teacher='0123', config=asdict(cfg)),
    )


def pd_of(denoiser, n=4):
    "A student of Progressive Distillation on its teacher's own table, likewise."
    levels = denoiser.log_sigmas.exp().flip(0)
    grid = torch.cat([levels[:: len(levels) // n], levels.new_zeros(1)])
    return Student(
        denoiser, grid, False, (1, 8, 8), dict(host='pd', teacher='0123', config=asdict(TINY_PD))
    )


def images(n=16):
    return sample_noise(range(n), (1, 8, 8)).clamp(-1, 1)


def same_pixels(pixels, ours, limit=1e-4):
    "What a pipeline shows of our samples; an untrained network's are larger than 1, and rounding grows with them."
    torch.testing.assert_close(
        pixels, (ours / 2 + 0.5).clamp(0, 1), rtol=0, atol=limit * max(1.0, ours.abs().max().item())
    )


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


# --- in: the prediction ---


@pytest.mark.parametrize(
    'betas, prediction, T', in_pairs([*BETA_SCHEDULES, 'trained'], PREDICTION_TYPES, [1000, 37])
)
def test_the_prediction_is_that_of_diffusers(unet, betas, prediction, T):
    "The network's own answer at its own levels; in float64 to rounding, in float32 to 1e-5."
    more = (
        dict(trained_betas=torch.linspace(1e-3, 0.1, T).tolist())
        if betas == 'trained'
        else dict(beta_schedule=betas)
    )
    scheduler = (
        DDIMScheduler
        if betas in ('linear', 'scaled_linear', 'squaredcos_cap_v2')
        else DDPMScheduler
    )
    s = scheduler(T, prediction_type=prediction, **more)
    for dtype, limit in ((torch.float64, 1e-6), (torch.float32, 1e-5)):
        net = copy.deepcopy(unet).to(dtype)
        denoiser, z = from_diffusers(net, s), sample_noise(range(3), (1, 8, 8)).to(dtype)
        for i in (0, T // 3, T - 1):
            a = s.alphas_cumprod[i].double()
            x, sigma = z / a**0.5, ((1 - a) / a) ** 0.5
            with torch.no_grad():
                own = net(z, i).sample
            assert relative(denoiser.raw(x, sigma), own) < limit
            if dtype == torch.float64:
                theirs = {
                    'epsilon': (z - (1 - a) ** 0.5 * own) / a**0.5,
                    'sample': own,
                    'v_prediction': a**0.5 * z - (1 - a) ** 0.5 * own,
                }[prediction]
                torch.testing.assert_close(
                    denoiser(x, sigma), theirs, rtol=1e-6, atol=1e-6 * theirs.abs().max().item()
                )


def test_at_very_high_noise_float32_rounds_on_both_sides():
    "A cosine table ends at almost no signal: (z - s*eps)/alpha loses digits in diffusers and here alike; in float64 nothing is left."
    s, z, gaps = (
        DDIMScheduler(100, beta_schedule='squaredcos_cap_v2', clip_sample=False),
        sample_noise(range(2), (1, 8, 8)),
        {},
    )
    for dtype in (torch.float32, torch.float64):
        net = unet_of().to(dtype)
        s.set_timesteps(4)
        s.alphas_cumprod = s.alphas_cumprod.to(dtype)
        x = z.to(dtype)
        with torch.no_grad():
            for t in s.timesteps:
                x = s.step(net(x, t).sample, t, x).prev_sample
        gaps[dtype] = relative(
            sample_ddim_like_diffusers(from_diffusers(net, s), z.to(dtype), s, 4), x
        )
    assert gaps[torch.float64] < 1e-6 and gaps[torch.float32] < 1e-2


OPTIONS = [
    dict(),
    dict(timestep_spacing='linspace', clip_sample=False),
    dict(timestep_spacing='trailing', set_alpha_to_one=False),
    dict(steps_offset=1),
    dict(clip_sample_range=0.5),
]


@pytest.mark.parametrize(
    'betas, prediction, more',
    in_pairs(['linear', 'scaled_linear', 'squaredcos_cap_v2'], PREDICTION_TYPES, OPTIONS),
    ids=str,
)
def test_ddim_pipeline_is_reproduced(unet, betas, prediction, more):
    pipe = DDIMPipeline(
        unet, DDIMScheduler(100, beta_schedule=betas, prediction_type=prediction, **more)
    )
    pipe.set_progress_bar_config(disable=True)
    n = 7 if more else 4
    theirs = torch.from_numpy(
        pipe(
            batch_size=3,
            num_inference_steps=n,
            generator=[torch.Generator().manual_seed(i) for i in range(3)],
            output_type='np',
        ).images
    ).permute(0, 3, 1, 2)
    ours = sample_ddim_like_diffusers(
        from_diffusers(pipe), sample_noise(range(3), (1, 8, 8)), pipe.scheduler, n
    )
    same_pixels(
        theirs, ours, 5e-3 if (betas, prediction) == ('squaredcos_cap_v2', 'epsilon') else 1e-4
    )


def test_classes(classy):
    s, z, label = DDPMScheduler(), sample_noise(range(3), (1, 8, 8)), torch.tensor([0, 3, 1])
    with pytest.warns(UserWarning, match='4 class embeddings.*null_class=3'):
        plain = from_diffusers(classy, s)
    null = from_diffusers(classy, s, null_class=3)
    assert (plain.n_classes, null.n_classes) == (4, 3)
    a = s.alphas_cumprod[500]
    x, sigma = z / a**0.5, ((1 - a) / a) ** 0.5
    with torch.no_grad():
        by_class, without = (
            classy(z, 500, class_labels=label).sample,
            classy(z, 500, class_labels=torch.full((3,), 3)).sample,
        )
    assert (
        relative(plain.raw(x, sigma, label), by_class) < 1e-5
        and relative(null.raw(x, sigma), without) < 1e-5
    )
    with pytest.raises(
        ValueError, match='pass cond=.*; if its last class is the null class.*null_class=3'
    ):
        plain(x, sigma)
    with pytest.raises(ValueError, match='0..2'):
        sfd_of(null).sample(3, cond=label)
    with pytest.raises(ValueError, match='null class must be the last of the 4'):
        from_diffusers(classy, s, null_class=0)


def test_the_model_is_copied(unet):
    denoiser = from_diffusers(unet, DDPMScheduler())
    assert not {p.data_ptr() for p in denoiser.parameters()} & {
        p.data_ptr() for p in unet.parameters()
    }
    assert (
        not denoiser.training
        and not any(p.requires_grad for p in denoiser.parameters())
        and all(p.requires_grad for p in unet.parameters())
    )


# --- in: files ---


def test_folders(unet, tmp_path):
    pipe = DDIMPipeline(
        unet, DDIMScheduler(50, beta_schedule='scaled_linear', prediction_type='v_prediction')
    )
    pipe.save_pretrained(tmp_path / 'pipe')
    unet.save_pretrained(tmp_path / 'model')
    x = sample_noise(range(2), (1, 8, 8))
    want = from_diffusers(pipe)(x, 2.0)
    for made in (
        from_diffusers(tmp_path / 'pipe'),
        from_diffusers(str(tmp_path / 'pipe')),
        from_diffusers(tmp_path / 'model', tmp_path / 'pipe'),
        from_diffusers(tmp_path / 'model', tmp_path / 'pipe' / 'scheduler'),
        from_diffusers(tmp_path / 'model', pipe.scheduler),
        from_diffusers(tmp_path / 'model', dict(pipe.scheduler.config)),
    ):
        assert torch.equal(made(x, 2.0), want)
    assert from_diffusers(tmp_path / 'pipe').net.source == 'pipe'
    with pytest.raises(FileNotFoundError, match='pass scheduler='):
        from_diffusers(tmp_path / 'model')


def test_only_safetensors_are_read(unet, tmp_path):
    unet.save_pretrained(tmp_path / 'model', safe_serialization=False)
    assert list((tmp_path / 'model').glob('*.bin'))
    with pytest.raises(
        ValueError,
        match='holds no safetensors; diffusion_pytorch_model.bin is a pickle.*run any code.*convert',
    ):
        from_diffusers(tmp_path / 'model', DDPMScheduler())
    (tmp_path / 'model' / 'diffusion_pytorch_model.bin').unlink()
    with pytest.raises(ValueError, match='holds no safetensors$'):
        from_diffusers(tmp_path / 'model', DDPMScheduler())


def test_the_hub_needs_a_commit_and_gives_no_programs(unet, tmp_path, monkeypatch):
    for revision in (None, 'main', 'v1.0', 'abc123'):
        with pytest.raises(ValueError, match='40 hex digits'):
            from_diffusers('someone/model', revision=revision)
        with pytest.raises(ValueError, match='40 hex digits'):
            load_pretrained('someone/model', revision=revision)
    DDIMPipeline(unet, DDIMScheduler()).save_pretrained(tmp_path / 'there')
    asked, commit = {}, '0123456789' * 4
    import huggingface_hub

    monkeypatch.setattr(
        huggingface_hub,
        'snapshot_download',
        lambda name, **how: asked.update(how, name=name) or str(tmp_path / 'there'),
    )
    denoiser = from_diffusers('someone/model', revision=commit)
    assert (asked['name'], asked['revision'], denoiser.net.source) == (
        'someone/model',
        commit,
        f'someone/model at {commit}',
    )
    assert all(pattern.endswith(('.json', '.safetensors')) for pattern in asked['allow_patterns'])


class Program:
    "A pickle that runs something as soon as it is read."

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, 'w')


def test_nothing_that_lies_in_a_folder_is_run(unet, tmp_path):
    "Programs beside the weights, and named in every file that could name one, stay what they are: bytes."
    folder, ran = tmp_path / 'model', tmp_path / 'ran'
    DDIMPipeline(unet, DDIMScheduler()).save_pretrained(folder)
    program = f'open({str(ran)!r}, "w")\n'
    for name in ('pipeline.py', 'unet/evil.py', 'unet/__init__.py', 'scheduler/evil.py'):
        (folder / name).write_text(program)
    for name in (
        'unet/diffusion_pytorch_model.bin',
        'unet/pytorch_model.bin',
        'scheduler/state.pkl',
    ):
        (folder / name).write_bytes(pickle.dumps(Program(ran)))
    for name in ('model_index.json', 'unet/config.json', 'scheduler/scheduler_config.json'):
        config = json.loads((folder / name).read_text())
        (folder / name).write_text(
            json.dumps(
                dict(
                    config,
                    auto_map={'AutoModel': 'evil.Model', 'AutoConfig': 'evil.Config'},
                    custom_pipeline='pipeline.py',
                )
            )
        )
    x = sample_noise(range(2), (1, 8, 8))
    assert (
        torch.equal(from_diffusers(folder)(x, 2.0), from_diffusers(unet, DDIMScheduler())(x, 2.0))
        and not ran.exists()
    )
    (folder / 'unet' / 'diffusion_pytorch_model.safetensors.index.json').write_text(
        json.dumps(
            dict(metadata={}, weight_map=dict.fromkeys(unet.state_dict(), 'pytorch_model.bin'))
        )
    )
    with pytest.raises(
        ValueError, match='names pytorch_model.bin among its weights; only safetensors'
    ):
        from_diffusers(folder)
    pickle.loads((folder / 'unet' / 'pytorch_model.bin').read_bytes()).close()
    assert ran.exists()  # it would have


def test_weights_in_several_files(unet, tmp_path):
    unet.save_pretrained(tmp_path, max_shard_size='20KB')
    assert len(list(tmp_path.glob('*.safetensors'))) > 1
    x = sample_noise(range(2), (1, 8, 8))
    assert torch.equal(
        from_diffusers(tmp_path, DDIMScheduler())(x, 2.0),
        from_diffusers(unet, DDIMScheduler())(x, 2.0),
    )


def test_weights_that_lack_are_named_and_half_ones_are_read(unet, tmp_path):
    unet.half().save_pretrained(tmp_path, variant='fp16')
    unet.float()
    file = tmp_path / 'diffusion_pytorch_model.fp16.safetensors'
    assert from_diffusers(tmp_path, DDPMScheduler()).net.unet.conv_out.weight.dtype == torch.float32
    weights = load_file(file)
    del weights['conv_out.weight']
    save_file(weights, file, dict(format='pt'))
    with pytest.raises(
        ValueError, match='lacks 1 of the weights of a UNet2DModel, such as conv_out.weight: save'
    ):
        from_diffusers(tmp_path, DDPMScheduler())
    save_file(
        weights | {'conv_out.weight': torch.ones(1, 8, 3, 3, dtype=torch.int8)},
        file,
        dict(format='pt'),
    )
    with pytest.raises(ValueError, match='conv_out.weight in whole numbers: it is quantised'):
        from_diffusers(tmp_path, DDPMScheduler())
    config = read_json(tmp_path / 'config.json')
    write_json(tmp_path / 'config.json', config | dict(quantization_config=dict(load_in_4bit=True)))
    with pytest.raises(ValueError, match='is quantised, which is not read'):
        from_diffusers(tmp_path, DDPMScheduler())
    write_json(tmp_path / 'config.json', config)
    save_file(
        weights | {'conv_out.weight': torch.full((1, 8, 3, 3), torch.inf)}, file, dict(format='pt')
    )
    with pytest.raises(ValueError, match='NaN or infinite numbers in conv_out.weight'):
        from_diffusers(tmp_path, DDPMScheduler())


class Other(nn.Module):
    def forward(self, x):
        return x


@pytest.mark.parametrize(
    'make, match',
    [
        (lambda: from_diffusers(Other(), DDPMScheduler()), 'as_denoiser'),
        (lambda: from_diffusers(unet_of()), 'pass scheduler='),
        (
            lambda: from_diffusers(unet_of(class_embed_type='timestep'), DDPMScheduler()),
            'class_embed_type',
        ),
        (
            lambda: from_diffusers(unet_of(time_embedding_type='fourier'), DDPMScheduler()),
            'fourier',
        ),
        (
            lambda: from_diffusers(
                unet_of(time_embedding_type='learned', num_train_timesteps=1000), DDPMScheduler()
            ),
            'learned',
        ),
        (lambda: from_diffusers(unet_of(out_channels=2), DDPMScheduler()), 'variance'),
        (
            lambda: from_diffusers(unet_of(), DDPMScheduler(trained_betas=[0.1, 1.0, 0.5])),
            'without signal before its last',
        ),
        (
            lambda: from_diffusers(
                unet_of(), DDPMScheduler(trained_betas=[0.1, float('nan'), 0.3])
            ),
            'NaN',
        ),
        (lambda: from_diffusers(unet_of(), diffusers.EDMEulerScheduler()), 'no betas'),
        (
            lambda: from_diffusers(
                unet_of(), diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
            ),
            'invert_sigmas',
        ),
        (
            lambda: from_diffusers(unet_of(), EulerDiscreteScheduler(timestep_type='continuous')),
            'discrete',
        ),
        (lambda: noise_table(dict(beta_schedule='cubic')), 'cubic'),
        (lambda: noise_table(dict(beta_start=1e-4, prediction_type='score')), 'score'),
        (
            lambda: from_diffusers(unet_of(), diffusers.LCMScheduler()),
            'LCMScheduler is of a consistency model',
        ),
        (
            lambda: noise_table(dict(beta_start=1e-4, prediction_type='flow_prediction')),
            'FlowMatchEulerDiscreteScheduler',
        ),
        (lambda: noise_table(dict(beta_start=1e-4, use_flow_sigmas=True)), 'use_flow_sigmas'),
        (
            lambda: noise_table(dict(diffusers.CogVideoXDDIMScheduler().config)),
            'snr_shift_scale=3.0, which is not read',
        ),
        (
            lambda: sample_ddim_like_diffusers(
                from_diffusers(unet_of(), DDPMScheduler()),
                images(),
                DDIMScheduler(thresholding=True),
                2,
            ),
            'thresholding',
        ),
        (
            lambda: sample_ddim_like_diffusers(
                from_diffusers(unet_of(), DDPMScheduler()),
                images(),
                DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing='trailing'),
                2,
            ),
            '999, is noise alone .*infinite',
        ),
        (lambda: as_denoiser(3), 'callable'),
        (
            lambda: from_diffusers(unet_of(), DDPMScheduler),
            r'scheduler must be .*DDPMScheduler\(\).*got <class',
        ),
        (lambda: from_diffusers(unet_of(), 3), 'scheduler must be .*got 3'),
        (
            lambda: sources.conditioned(
                from_diffusers(unet_of(), DDPMScheduler()), sources.Distilled(guidance_scale=2.0)
            ),
            'takes no condition: leave --guidance_scale out',
        ),
    ],
)
def test_what_is_not_supported_is_named(make, match):
    with pytest.raises((ValueError, TypeError), match=match):
        make()


def test_another_kind_of_model_in_a_folder(tmp_path):
    (tmp_path / 'config.json').write_text(
        '{"_class_name": "Transformer2DModel", "auto_map": {"AutoModel": "evil.Model"}}'
    )
    (tmp_path / 'evil.py').write_text('raise SystemExit("ran")')
    with pytest.raises(
        TypeError,
        match='holds a Transformer2DModel; from_diffusers takes UNet2DModel, .*FluxTransformer2DModel; wrap another',
    ):
        from_diffusers(tmp_path, DDPMScheduler())


def test_a_start_above_the_table_is_refused_before_work(unet, monkeypatch):
    "Scaled-linear betas end at 14.6; SFD's usual start is 80."
    teacher, grey = (
        from_diffusers(
            unet,
            DDPMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule='scaled_linear',
                prediction_type='v_prediction',
            ),
        ),
        replace(TINY, sigma_max=14.6),
    )
    assert sfd(teacher, grey, show=False).sigmas[0] == 14.6
    monkeypatch.setattr('bdense_nb.distillation.students.fit', lambda *a: pytest.fail('work began'))
    monkeypatch.setattr('bdense_nb.distillation.variable.fit', lambda *a: pytest.fail('work began'))
    for start in (
        lambda: sfd(teacher, TINY),
        lambda: sfd_variable(teacher, TINY, (2, 3)),
        lambda: teacher_bank(teacher, TINY),
        lambda: progressive(teacher, images(), PDConfig(start_steps=8)),
        lambda: sfd(GaussianDenoiser(0.0, 1.0), TINY, student=teacher),
    ):
        with pytest.raises(
            ValueError,
            match=r'sigma_max=80 is above the noisiest level.*14.61\d*, .*pass sigma_max=14.61',
        ):
            start()


# --- branches ---


def test_branches_and_back(unet, classy):
    for net in (unet, classy):
        denoiser = from_diffusers(net, DDPMScheduler(), null_class=3 if net is classy else None)
        student, x = branch(denoiser, 3), sample_noise(range(2), (1, 8, 8))
        label = torch.tensor([1, 2]) if denoiser.n_classes else None
        assert (
            student.layer == 'unet.conv_out'
            and relative(
                student(x, 2.0, label), denoiser(x, 2.0, label)[:, None].expand(-1, 3, -1, -1, -1)
            )
            < 1e-5
        )
        plain = fold(student).net.unet
        assert (type(plain), plain.config, list(plain.state_dict())) == (
            UNet2DModel,
            net.config,
            list(net.state_dict()),
        )
        assert all(
            torch.equal(p, q) for p, q in zip(plain.parameters(), net.parameters(), strict=True)
        )


class Renamed(nn.Module):
    def __init__(self, **layers):
        super().__init__()
        for name, m in layers.items():
            setattr(self, name, m)

    def forward(self, x, noise, label=None):
        return self.last(self.first(x).relu())


@pytest.mark.parametrize(
    'net, shape, name',
    [
        (Renamed(first=nn.Conv2d(3, 8, 3, padding=1), last=nn.Conv2d(8, 3, 1)), (3, 4, 4), 'last'),
        (Renamed(first=nn.Linear(2, 2), last=nn.Linear(2, 2)), (2,), 'last'),
    ],
)
def test_an_output_layer_without_a_name_is_found(net, shape, name):
    denoiser = EDMDenoiser(net)
    assert output_layer(denoiser, shape) == name and branch(denoiser, 2, shape=shape).layer == name
    with pytest.raises(ValueError, match='Renamed does not say what samples it takes; pass shape='):
        branch(denoiser, 2)


@pytest.mark.parametrize(
    'net, name',
    [
        (Renamed(last=nn.Linear(2, 2), first=nn.Linear(2, 2)), 'last'),
        (
            Renamed(
                first=nn.Linear(2, 6),
                last=nn.Sequential(
                    nn.Linear(6, 4), nn.Unflatten(1, (2, 2)), nn.Flatten(), nn.AvgPool1d(2)
                ),
            ),
            'last.0',
        ),
    ],
)
def test_the_layer_that_is_called_last_is_found(net, name):
    assert (
        output_layer(EDMDenoiser(net), (2,)) == name
        and branch(EDMDenoiser(net), 2, shape=(2,)).layer == name
    )


# --- out ---

RUN = """import os, sys, re, torch
from diffusers import DiffusionPipeline
sys.modules['bdense_nb'] = None
try: import bdense_nb
except ImportError: pass
else: raise SystemExit('bdense_nb was found')
for folder in sys.argv[1:]:
    os.chdir(folder)
    if os.path.exists('model_index.json'): DiffusionPipeline.from_pretrained('.')
    made = {}
    exec(re.search('```python\\n(.*?)```', open('README.md').read(), re.S)[1], made)
    torch.save(torch.from_numpy(made['images']) if 'images' in made else made['x'], 'out.pt')
"""


def sampled_by_stock(*folders):
    "Run each README's code where bdense_nb cannot be imported."
    assert python(RUN, *folders).returncode == 0
    return [torch.load(folder / 'out.pt') for folder in folders]


def test_a_readme_samples_the_same(unet, classy, tmp_path):
    students = {
        f'sfd {prediction}': sfd_of(from_diffusers(unet, DDPMScheduler(prediction_type=prediction)))
        for prediction in PREDICTION_TYPES
    }
    students['sfd sigmoid'] = sfd_of(
        from_diffusers(unet, DDPMScheduler(beta_schedule='sigmoid')), replace(TINY, sigma_max=10.0)
    )
    students['sfd classes'] = sfd_of(
        from_diffusers(classy, DDPMScheduler(), null_class=3), replace(TINY, afs=False)
    )
    students['pd'] = pd_of(from_diffusers(unet, DDPMScheduler()))
    students['pd low'] = pd_of(
        from_diffusers(unet, DDPMScheduler(beta_schedule='scaled_linear'))
    )  # its table ends where unit noise is another start
    for name, student in students.items():
        student.save_pretrained(tmp_path / name)
        assert (tmp_path / name / 'model_index.json').exists() == (name in ('pd', 'pd low'))
        assert ('stronger' in (tmp_path / name / 'README.md').read_text()) == (name == 'pd low')
    stock = dict(zip(students, sampled_by_stock(*(tmp_path / name for name in students))))
    for name, student in students.items():
        label = torch.arange(4) % 3 if student.denoiser.n_classes else None
        ours = student.sample(4, cond=label)
        if name == 'pd':
            same_pixels(stock[name].permute(0, 3, 1, 2), ours)
        else:
            assert relative(stock[name], ours) < 1e-4, name


@pytest.mark.parametrize('prediction', PREDICTION_TYPES)
def test_the_scheduler_takes_the_students_steps(unet, tmp_path, prediction):
    "In this process: the folder's own U-Net and scheduler, without clipping."
    teacher = from_diffusers(unet, DDPMScheduler(prediction_type=prediction))
    for name, student in (('sfd', sfd_of(teacher)), ('pd', pd_of(teacher))):
        student.save_pretrained(tmp_path / name)
        how, net = (
            json.loads((tmp_path / name / 'sampling.json').read_text()),
            UNet2DModel.from_pretrained(tmp_path / name / 'unet'),
        )
        if name == 'sfd':
            scheduler, x = (
                EulerDiscreteScheduler.from_pretrained(tmp_path / name / 'scheduler'),
                how['start'] * sample_noise(range(3), (1, 8, 8)),
            )
            scheduler.set_timesteps(sigmas=how['sigmas'])
        else:
            scheduler, x = (
                DDIMPipeline.from_pretrained(tmp_path / name).scheduler,
                sample_noise(range(3), (1, 8, 8)),
            )
            scheduler.set_timesteps(how['nfe'])
        assert len(scheduler.timesteps) == student.nfe
        with torch.no_grad():
            for t in scheduler.timesteps:
                x = scheduler.step(
                    net(scheduler.scale_model_input(x, t), t).sample, t, x
                ).prev_sample
        assert relative(x, student.sample(3)) < 1e-4


def test_a_folder_becomes_a_student_again(classy, tmp_path):
    student = sfd(
        from_diffusers(
            classy,
            DDPMScheduler(beta_schedule='scaled_linear', prediction_type='v_prediction'),
            null_class=3,
        ),
        replace(TINY, sigma_max=30.0),
        show=False,
    )
    student.save_pretrained(tmp_path, licence='mit', data='four classes of noise')
    back = load_pretrained(tmp_path, 'cpu')
    assert relative(back.sample(4, seed=3), student.sample(4, seed=3)) < 1e-6
    assert (back.afs, back.shape, back.nfe, back.denoiser.n_classes, back.sigmas.tolist()) == (
        True,
        (1, 8, 8),
        2,
        3,
        student.sigmas.tolist(),
    )
    assert back.about == json.loads(json.dumps(student.about)) | dict(
        licence='mit', teacher_data='four classes of noise'
    )
    card = (tmp_path / 'README.md').read_text()
    for words in (
        'license: "mit"',
        'library_name: diffusers',
        'SFD',
        '| Branches in training (K) | 4 |',
        '| Network calls a sample (NFE) | 2 |',
        'four classes of noise',
        'class_labels',
        'linear',
    ):
        assert words in card
    names = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob('*') if p.is_file()}
    assert names == {
        'README.md',
        'sampling.json',
        'unet/config.json',
        'unet/diffusion_pytorch_model.safetensors',
        'scheduler/scheduler_config.json',
    }
    again = load_pretrained(tmp_path, 'cpu')  # from a folder: its path must not travel on
    again.save_pretrained(tmp_path / 'again')
    assert all(
        str(tmp_path) not in p.read_text()
        for p in (tmp_path / 'again').rglob('*')
        if p.suffix in ('.json', '.md')
    )
    with pytest.raises(FileNotFoundError, match='sampling.json'):
        load_pretrained(tmp_path / 'unet', 'cpu')


EVIL = 'evil | <img src=x onerror=alert(1)> [click](javascript:1) `code`\n---\nlicense: mit\n# a heading'


def test_a_card_says_what_users_named_and_does_nothing_else(unet, tmp_path):
    student = Student(
        from_diffusers(unet, DDPMScheduler()),
        torch.tensor([80.0, 1.0, 0.1], dtype=torch.float64),
        True,
        (1, 8, 8),
        dict(
            host='sfd',
            teacher=EVIL,
            config=dict(K=4, branch_weights=(0.5, 0.5), solver=EVIL),
            figures={EVIL: EVIL},
        ),
    )
    student.denoiser.net.source = EVIL
    student.save_pretrained(tmp_path, licence=EVIL, data=EVIL)
    card = (tmp_path / 'README.md').read_text()
    _, front, body = card.split('---\n', 2)
    front = yaml.safe_load(front)
    assert front == dict(license=EVIL, library_name='diffusers', tags=['diffusion', 'distillation'])
    assert '<' not in body.split('```')[0] + body.split('```')[2] and '](' not in body
    rows = [line for line in body.splitlines() if line.startswith('|')]
    assert all(line.count('|') == 3 for line in rows) and sum('evil' in line for line in rows) == 4
    assert [line for line in body.splitlines() if line.startswith('#')] == [
        '# A student of 1 network calls',
        '## How to sample',
    ]
    table = html.unescape('\n'.join(rows))
    assert ' '.join(EVIL.split()) in table  # a reader sees what was named


def test_a_card_names_the_guidance_and_where_it_acts(unet, tmp_path):
    for about, says in (
        (dict(guidance_scale=3.0), '3.0'),
        (
            dict(guidance_scale=3.0, guidance_interval=[0.5, 2]),
            '3.0; guidance_interval: noise levels 0.5, 2',
        ),
        ({}, 'none'),
    ):
        Student(
            from_diffusers(unet, DDPMScheduler()),
            torch.tensor([80.0, 1.0, 0.1], dtype=torch.float64),
            True,
            (1, 8, 8),
            about,
        ).save_pretrained(tmp_path)
        assert (
            f'| Guidance in the weights (guidance_scale) | {says} |'
            in (tmp_path / 'README.md').read_text()
        )


@pytest.mark.parametrize('to', ['diffusers', 'state_dict'])
def test_licence_and_data_are_given_or_known(unet, tmp_path, to):
    student = Student(
        from_diffusers(unet, DDPMScheduler()),
        torch.tensor([80.0, 1.0, 0.1], dtype=torch.float64),
        True,
        (1, 8, 8),
    )

    def facts(student, **card):
        export_student(student, to, tmp_path, **card)
        if to == 'diffusers':
            text = (tmp_path / 'README.md').read_text()
            assert ('Teacher trained on | not stated' in text) == ('license: "unknown"' in text)
        how = json.loads((tmp_path / 'sampling.json').read_text())
        return how.get('licence'), how.get('teacher_data')

    assert facts(student) == (None, None)
    assert facts(student, licence='mit', data='photos') == ('mit', 'photos')
    known = replace(student, about=dict(licence='cc0-1.0', data='ring'))
    assert facts(known) == ('cc0-1.0', 'ring') and facts(known, licence='mit') == ('mit', 'ring')
    assert facts(
        replace(student, about=dict(licence='mit', data='ring', teacher_data='moons'))
    ) == ('mit', 'moons')


def shorten(path):
    path.write_bytes(path.read_bytes()[:-9])


def other_json(path):
    path.write_text('[1, 2]')


def no_boolean(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(afs='no')))


def no_grid(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(grid=[1.0, 2.0, 3.0])))


@pytest.mark.parametrize(
    'file, damage',
    [
        ('sampling.json', shorten),
        ('sampling.json', other_json),
        ('sampling.json', no_boolean),
        ('sampling.json', no_grid),
        ('unet/config.json', shorten),
        ('unet/config.json', other_json),
        ('scheduler/scheduler_config.json', shorten),
        ('unet/diffusion_pytorch_model.safetensors', shorten),
    ],
    ids=lambda v: getattr(v, '__name__', v),
)
def test_damaged_and_foreign_files_are_named(unet, tmp_path, file, damage):
    Student(
        from_diffusers(unet, DDPMScheduler()),
        torch.tensor([80.0, 1.0, 0.1], dtype=torch.float64),
        True,
        (1, 8, 8),
    ).save_pretrained(tmp_path)
    damage(tmp_path / file)
    with pytest.raises(
        ValueError,
        match=re.escape(str(tmp_path / file).removesuffix('/diffusion_pytorch_model.safetensors')),
    ):
        load_pretrained(tmp_path, 'cpu')


@pytest.mark.parametrize(
    'module, extra, use',
    [
        ('diffusers', 'diffusers', lambda student, folder: load_pretrained(folder, 'cpu')),
        ('onnxscript', 'onnx', lambda student, folder: export_onnx(student, folder / 'step.onnx')),
    ],
)
def test_a_missing_extra_is_named(unet, tmp_path, monkeypatch, module, extra, use):
    student = Student(
        from_diffusers(unet, DDPMScheduler()),
        torch.tensor([80.0, 1.0, 0.1], dtype=torch.float64),
        True,
        (1, 8, 8),
    )
    student.save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf'pip install "bdense-nb\[{extra}\]"'):
        use(student, tmp_path)


def test_no_pipeline_where_it_would_sample_something_else(unet, classy, tmp_path):
    pd = pd_of(from_diffusers(unet, DDPMScheduler()))
    assert ddim_steps(pd) == 4
    other_size = replace(pd, shape=(1, 16, 16))
    by_class = pd_of(from_diffusers(classy, DDPMScheduler(), null_class=3))
    other_grid = replace(pd, sigmas=torch.cat([pd.sigmas[:1] * 0.9, pd.sigmas[1:]]))
    pd.save_pretrained(tmp_path)
    assert (tmp_path / 'model_index.json').exists()
    for student in (other_size, by_class, other_grid):
        student.save_pretrained(tmp_path)  # over the one that was there
        assert (
            not (tmp_path / 'model_index.json').exists()
            and 'EulerDiscreteScheduler' in (tmp_path / 'README.md').read_text()
        )


def test_clipping_and_thresholding_of_the_teacher_stay_behind(unet, tmp_path):
    s = DDPMScheduler(thresholding=True, clip_sample=True, timestep_spacing='leading')
    pd_of(from_diffusers(unet, s)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / 'scheduler' / 'scheduler_config.json').read_text())
    assert (config['clip_sample'], config['thresholding'], config['timestep_spacing']) == (
        False,
        False,
        'trailing',
    )


def test_pushing_to_the_hub(unet, tmp_path, monkeypatch):
    student, calls = sfd_of(from_diffusers(unet, DDPMScheduler())), []

    class Api:
        def __init__(self, token=None):
            calls.append(('token', token))

        def create_repo(self, repo_id, private, exist_ok):
            calls.append(('create', repo_id, private, exist_ok))

        def upload_folder(self, repo_id, folder_path, commit_message):
            calls.append(('upload', repo_id))
            self.card = (tmp_path / 'card').write_text(open(f'{folder_path}/README.md').read())
            load_pretrained(folder_path, 'cpu')
            return 'https://somewhere'

    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, 'HfApi', Api)
    assert student.push_to_hub('me/student', token='t', licence='mit') == 'https://somewhere'
    assert (
        calls == [('token', 't'), ('create', 'me/student', True, True), ('upload', 'me/student')]
        and 'license: "mit"' in (tmp_path / 'card').read_text()
    )


def test_several_step_counts(unet, tmp_path):
    student = sfd_variable(
        from_diffusers(unet, DDPMScheduler(prediction_type='v_prediction')),
        TINY,
        (2, 3),
        show=False,
        step_layer='unet.time_embedding.linear_1',
    )
    for nfe in (2, 3):
        one = student.at(nfe)
        one.save_pretrained(tmp_path / str(nfe))
        back = load_pretrained(tmp_path / str(nfe), 'cpu')
        assert back.nfe == nfe and relative(back.sample(2), student.sample(2, nfe=nfe)) < 1e-6
    with pytest.raises(TypeError, match=r'\.at\(nfe\)'):
        export_student(student, 'state_dict', tmp_path)
    with pytest.raises(ValueError, match="no linear layer 'unet.conv_out'"):
        sfd_variable(
            from_diffusers(unet, DDPMScheduler(prediction_type='v_prediction')),
            TINY,
            (2, 3),
            show=False,
            step_layer='unet.conv_out',
        )


def test_students_of_other_networks(tmp_path):
    student = Student(
        EDMDenoiser(MLP(width=8, depth=1)).eval(),
        torch.tensor([80.0, 1.0, 0.1], dtype=torch.float64),
        True,
        (2,),
    )
    with pytest.raises(TypeError, match='MLP.*export_onnx'):
        student.save_pretrained(tmp_path / 'no')
    assert not (tmp_path / 'no').exists()
    export_student(student, 'state_dict', tmp_path / 'plain')
    weights, how = (
        load_tensors(tmp_path / 'plain' / 'model.safetensors')[0],
        json.loads((tmp_path / 'plain' / 'sampling.json').read_text()),
    )
    assert weights.keys() == student.denoiser.net.state_dict().keys() and (
        how['network'],
        how['denoiser'],
        how['nfe'],
    ) == ('MLP', 'EDMDenoiser', 1)
    with pytest.raises(ValueError, match='diffusers, onnx, state_dict'):
        export_student(student, 'keras', tmp_path)


def test_a_student_is_saved_like_any_other_and_read_where_diffusers_was_not_imported(
    classy, tmp_path
):
    student = sfd(
        from_diffusers(classy, DDPMScheduler(prediction_type='v_prediction'), null_class=3),
        TINY,
        show=False,
    )
    student.save(tmp_path / 'student')
    torch.save(student.sample(3), tmp_path / 'want.pt')
    code = """import sys, torch
for name in [name for name in sys.modules if name.partition('.')[0] == 'diffusers']: del sys.modules[name]
from bdense_nb.distillation.students import load_student
assert 'diffusers' not in sys.modules
s = load_student('student', 'cpu')
torch.testing.assert_close(s.sample(3), torch.load('want.pt'))
assert (s.nfe, s.denoiser.n_classes, s.denoiser.net.null_class) == (2, 3, 3)"""
    assert python(code, cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    'changes, match',
    [
        (dict(layers=3), 'layers'),
        (dict(unet_class='Transformer2DModel'), 'Transformer2DModel.*UNet2DModel'),
    ],
    ids=str,
)
def test_a_description_of_another_network_is_refused(unet, changes, match):
    config = net_config_of(from_diffusers(unet, DDPMScheduler()).net)
    assert (
        type(net_from_config(config).unet) is UNet2DModel
        and json.loads(json.dumps(config)) == config
    )
    with pytest.raises((TypeError, ValueError), match=match):
        net_from_config(config | changes)
    with pytest.raises(TypeError, match='missing: scheduler'):
        net_from_config({k: v for k, v in config.items() if k != 'scheduler'})


@pytest.mark.parametrize(
    'field',
    [
        'layers_per_block',
        'in_channels',
        'num_class_embeds',
        'block_out_channels',
        'num_train_timesteps',
    ],
)
def test_sizes_in_a_foreign_file_are_bounded_before_a_layer_is_built(
    field, unet, tmp_path, monkeypatch
):
    net = from_diffusers(unet, DDPMScheduler()).net
    net.unet.save_pretrained(tmp_path / 'unet')
    DDPMScheduler().save_pretrained(tmp_path / 'scheduler')
    file = tmp_path / (
        'scheduler/scheduler_config.json' if 'train' in field else 'unet/config.json'
    )
    file.write_text(
        json.dumps(
            json.loads(file.read_text()) | {field: [10**9] * 2 if 'block_out' in field else 10**9}
        )
    )
    with pytest.raises(ValueError, match=f'{field} must be between 0 and'):
        from_diffusers(tmp_path)
    config = net_config_of(net)
    config['unet'][field] = 10**9
    if 'train' not in field:
        with pytest.raises(ValueError, match=f'{field} must be between 0 and'):
            net_from_config(config)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_weights_become_float32(unet, dtype):
    half = copy.deepcopy(unet).to(dtype)
    denoiser = from_diffusers(half, DDPMScheduler())
    assert all(
        p.dtype == torch.float32 and torch.equal(p, q.float())
        for p, q in zip(denoiser.net.unet.parameters(), half.parameters(), strict=True)
    )

    class Plain(nn.Linear):
        def forward(self, x, sigma):
            return super().forward(x)

    assert half.dtype == dtype and all(
        p.dtype == torch.float32 for p in as_denoiser(Plain(2, 2).to(dtype)).parameters()
    )
    assert next(as_denoiser(Plain(2, 2).double()).parameters()).dtype == torch.float64


def test_onnx(tmp_path):
    "Of classes and a network of diffusers; our own U-Net's is looked at where the site's live page has it."
    pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    level = dict(block_out_channels=(8,), num_class_embeds=4)
    blocks = dict(down_block_types=('DownBlock2D',), up_block_types=('UpBlock2D',))
    net = unet_of(**level, **blocks)
    net.conv_out.padding = (1,)  # one for both axes, as EDM2's layers have it
    denoiser = from_diffusers(net, DDPMScheduler(), null_class=3)
    grid = torch.tensor([80.0, 10.0, 1.0, 0.1], dtype=torch.float64)
    export_onnx(Student(denoiser, grid, True, (1, 8, 8)), tmp_path / 'step.onnx')
    check_onnx_step(tmp_path / 'step.onnx', denoiser, (1, 8, 8))


@pytest.mark.parametrize('there', ['onnxruntime', 'onnx'])
def test_an_onnx_file_that_no_runtime_opens_is_refused_and_removed(tmp_path, monkeypatch, there):
    pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        'find_spec',
        lambda name, *rest: None if name == 'onnxruntime' != there else find(name, *rest),
    )
    monkeypatch.setattr(
        torch.onnx, 'export', lambda model, values, path, **more: path.write_bytes(b'no graph')
    )
    student = Student(
        EDMDenoiser(UNet(widths=(8, 32))).eval(),
        torch.tensor([80.0, 0.1], dtype=torch.float64),
        False,
        (1, 8, 8),
    )
    with pytest.raises(ValueError, match='cannot be used, so it is removed'):
        export_onnx(student, tmp_path / 'step.onnx')
    assert not list(tmp_path.iterdir())


# --- end to end ---


def shell(line):
    "A command line, parsed and run as the installed command does."
    name, *args = shlex.split(line)
    assert cli.from_shell(name, args) == 0, line


def trained_by_diffusers(data, scheduler):
    "A moment of training with diffusers' own noising."
    net = unet_of(28).train()
    g, opt, losses = torch.Generator().manual_seed(0), torch.optim.Adam(net.parameters(), 2e-3), []
    for _ in range(30):
        x0 = data[torch.randint(len(data), (16,), generator=g)]
        eps, t = (
            torch.randn(x0.shape, generator=g),
            torch.randint(scheduler.config.num_train_timesteps, (16,), generator=g),
        )
        loss = (net(scheduler.add_noise(x0, eps, t), t).sample - eps).square().mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < sum(losses[:5])
    return net.eval()


def test_a_model_of_diffusers_from_training_to_samples(tmp_path, monkeypatch):
    "Trained by diffusers, distilled by the commands on a folder of images with both hosts and branches, exported, sampled by stock diffusers in a process of its own."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        'bdense_nb.app.commands.check_source', lambda *_, **__: None
    )  # it has learned for seconds
    (tmp_path / 'clothes').mkdir()
    for i, picture in enumerate(to_pixels(fashion_mnist('test')[0][:16])):
        Image.fromarray(picture[0].numpy()).save(tmp_path / 'clothes' / f'{i:02d}.png')
    data, _ = image_folder(tmp_path / 'clothes')
    assert torch.equal(data, fashion_mnist('test')[0][:16])
    scheduler = DDPMScheduler(
        beta_schedule='scaled_linear'
    )  # begins at noise alone, as stock pipelines do
    diffusers.DDPMPipeline(trained_by_diffusers(data, scheduler), scheduler).save_pretrained(
        tmp_path / 'teacher'
    )
    shell(
        'bdense_distill pd --teacher teacher --preset fashion_mnist_pd --data clothes --start-steps 8 --nfe 2 --K 2 --steps 2 --batch 4'
    )
    shell(
        'bdense_distill sfd --teacher teacher --preset demo --nfe 2 --K 4 --steps 2 --batch 4 --pool 8'
    )
    for name in ('pd', 'sfd'):
        shell(f'bdense_export {name} out/{name} --to diffusers')
    stock = dict(
        zip(('pd', 'sfd'), sampled_by_stock(tmp_path / 'out' / 'pd', tmp_path / 'out' / 'sfd'))
    )
    teacher = from_diffusers(tmp_path / 'teacher')
    for name, host, K in (('pd', 'Progressive Distillation', 2), ('sfd', 'SFD', 4)):
        shell(f'bdense_sample {name} --out {name}.png --n 4')
        ours, card = (
            load_tensors(tmp_path / f'{name}.safetensors')[0]['samples'],
            (tmp_path / 'out' / name / 'README.md').read_text(),
        )
        assert relative(stock[name], ours) < 1e-4
        for words in ('| Teacher | teacher', host, f'(K) | {K} |', '(NFE) | 2 |'):
            assert words in card
        student = load_pretrained(tmp_path / 'out' / name, 'cpu')
        mine, theirs = student.denoiser.net.unet, teacher.net.unet
        assert student.nfe == 2 and mine.state_dict().keys() == theirs.state_dict().keys()
        assert {k: v for k, v in mine.config.items() if k != '_name_or_path'} == {
            k: v for k, v in theirs.config.items() if k != '_name_or_path'
        }
        assert any(
            not torch.equal(p, q)
            for p, q in zip(student.denoiser.parameters(), teacher.parameters(), strict=True)
        )  # it did learn something
    assert (
        load_pretrained(tmp_path / 'pd', 'cpu').about['config']['schedule'] == 'teacher'
        and (tmp_path / 'out' / 'pd' / 'model_index.json').exists()
    )


@pytest.mark.parametrize('name', ['HeunDiscreteScheduler', 'PNDMScheduler'])
def test_what_a_schedulers_file_leaves_out_is_as_its_class_has_it(name):
    "And not as DDPM's."
    kind = getattr(diffusers, name)
    torch.testing.assert_close(
        noise_table(dict(_class_name=name, beta_schedule='linear'))[1].float(),
        kind(beta_schedule='linear').alphas_cumprod,
    )


@pytest.mark.parametrize('name', ['MyScheduler', 'logging', 5])
def test_a_scheduler_that_diffusers_does_not_have_is_named(name):
    for said, config in (
        ('betas', dict(beta_schedule='linear')),
        ('times', dict(base_image_seq_len=256)),
    ):
        with pytest.warns(UserWarning, match=f'no scheduler {name}: its {said} are read as'):
            from_diffusers(unet_of(), dict(_class_name=name, **config))


def test_weights_of_another_width_are_refused_in_our_words(unet, tmp_path):
    for name, net in (('a', unet), ('b', unet_of(block_out_channels=(16, 16)))):
        net.save_pretrained(tmp_path / name)
    (tmp_path / 'b' / 'diffusion_pytorch_model.safetensors').replace(
        tmp_path / 'a' / 'diffusion_pytorch_model.safetensors'
    )
    with pytest.raises(
        ValueError, match='a cannot be read as a UNet2DModel: its weights are .*another network'
    ) as e:
        from_diffusers(tmp_path / 'a', DDPMScheduler())
    assert 'ignore_mismatched' not in str(e.value)
