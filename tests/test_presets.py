"The presets of the paper's runs: real code, a tiny budget, stand-in networks of the same interface and shapes, data made on the spot."

import json
from dataclasses import asdict

import pytest
import torch
from bdense_nb.app.plans import estimate_run
from bdense_nb.app.shell import bdense_distill
from bdense_nb.core import load_tensors
from bdense_nb.diffusion.data import to_pixels
from bdense_nb.diffusion.denoisers import EDMDenoiser
from bdense_nb.diffusion.stored import save_denoiser
from bdense_nb.diffusion.nets import UNet
from bdense_nb.distillation.distill import config_of, distill, preset
from bdense_nb.distillation.students import load_student
from bdense_nb.evaluation.metrics import feature_stats, frechet_distance
from bdense_nb.evaluation.pictures import paper_table
from bdense_nb.interop.diffusers import as_denoiser, from_diffusers
from bdense_nb.interop.export import export_state_dict, load_pretrained
from conftest import shaken
from PIL import Image
from torch import nn


def ddpm(levels):
    "A diffusers U-Net for 3 x 32 x 32 with linear betas."
    from diffusers import DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(8,),
        norm_num_groups=4,
        add_attention=False,
        down_block_types=('DownBlock2D',),
        up_block_types=('UpBlock2D',),
    )
    return unet, DDPMScheduler(
        levels, beta_start=0.1 / levels, beta_end=20 / levels, prediction_type='v_prediction'
    )  # random noise estimates remove no noise, which is refused


class Inner(nn.Module):
    "The interface of EDM's inner networks."

    def __init__(self, label_dim=0):
        super().__init__()
        self.enc, self.embed, self.out_conv = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Linear(1 + label_dim, 8),
            nn.Conv2d(8, 3, 3, padding=1),
        )

    def forward(self, x, noise_labels, class_labels=None):
        told = (
            noise_labels[:, None]
            if class_labels is None
            else torch.cat([noise_labels[:, None], class_labels], 1)
        )
        return self.out_conv(nn.functional.silu(self.enc(x) + self.embed(told)[..., None, None]))


class Published(nn.Module):
    "The interface of EDM's preconditioned networks."

    def __init__(self, label_dim=0):
        super().__init__()
        self.model, self.sigma_data, self.label_dim = Inner(label_dim), 0.5, label_dim


def features(images):
    "Four random features of bytes."
    return (
        to_pixels(images).float().flatten(1)
        / 255
        @ torch.randn(images[0].numel(), 4, generator=torch.Generator().manual_seed(0))
    )


def check_samples(student, again, nfe):
    "Sampling after loading, and the Fréchet distance in parts."
    samples, whole = again.sample(3, seed=2), student.sample(5, seed=0)[2:]
    assert again.nfe == nfe and samples.isfinite().all() and samples.shape[1:] == student.shape
    assert torch.allclose(samples, whole, rtol=1e-3, atol=1e-3 * whole.abs().max().item())
    reference = feature_stats(features(torch.rand(20, *student.shape) * 2 - 1))
    assert (
        frechet_distance(features(samples), features(whole))
        < 1e-2
        < frechet_distance(features(samples), reference)
    )


def check_estimate(guess, **known):
    "What is said before a run starts: memory, time and network calls."
    assert (
        guess['memory_gb'] > 0 and guess['seconds'] > 0 and guess['teacher'] > guess['student'] > 0
    )
    assert {k: guess[k] for k in known} == known


def test_settings_are_those_of_the_papers():
    pd, cifar, imagenet = (preset(name) for name in ('cifar10-pd', 'cifar10-sfd', 'imagenet64-sfd'))
    assert (pd.start_steps, pd.rounds, pd.K, pd.substeps, pd.updates, pd.batch, pd.lr) == (
        1024,
        [512, 256, 128],
        2,
        2,
        50_000,
        128,
        2e-4,
    )
    for cfg in (cifar, imagenet):
        assert (
            cfg.K,
            cfg.substeps,
            cfg.batch,
            cfg.n_trajectories,
            cfg.lr,
            cfg.lr_schedule,
            cfg.solver,
            cfg.loss,
            cfg.afs,
        ) == (4, 4, 128, 200_064, 5e-5, 'drop', 'dpmpp3m', 'l1', True)
        assert (cfg.sigma_min, cfg.sigma_max, cfg.schedule) == (0.006, 80.0, 'karras')
    assert (cifar.shape, imagenet.shape) == ((3, 32, 32), (3, 64, 64))
    for n in (2, 3, 4, 5):
        assert preset('imagenet64-sfd', nfe=n).n_steps == n + 1


def test_cifar10_pd_dry_run(tmp_path):
    teacher, cfg, data = (
        from_diffusers(*ddpm(1024)),
        preset('cifar10-pd', updates=1, batch=2),
        torch.rand(4, 3, 32, 32) * 2 - 1,
    )
    student = distill(teacher, cfg, data, show=False)
    assert config_of(json.loads(json.dumps(student.about))) == cfg
    student.save_pretrained(tmp_path)
    check_samples(student, load_pretrained(tmp_path, 'cpu'), 128)


def test_1024_steps_on_1000_levels_are_refused():
    teacher, data = from_diffusers(*ddpm(1000)), torch.zeros(2, 3, 32, 32)
    for more in ({}, dict(schedule='teacher')):
        with pytest.raises(ValueError, match='1000'):
            distill(teacher, preset('cifar10-pd', **more), data, show=False)
    assert preset('cifar10-pd', schedule='teacher', start_steps=1000, end_steps=125).on_table(
        teacher
    ).rounds == [500, 250, 125]


def test_cifar10_pd_as_a_command(tmp_path, capsys):
    from diffusers import DDIMPipeline

    DDIMPipeline(*ddpm(1000)).save_pretrained(tmp_path / 'ddpm')
    (tmp_path / 'data').mkdir()
    for i in range(2):
        Image.new('RGB', (32, 32), (i * 200, 90, 30)).save(tmp_path / 'data' / f'{i}.png')
    run = dict(
        teacher=str(tmp_path / 'ddpm'),
        preset_name='cifar10-pd',
        start_steps=1000,
        nfe='125',
        data=str(tmp_path / 'data'),
        steps=1,
        batch=2,
        trust_teacher=True,
    )
    plan = bdense_distill(str(tmp_path / 'out'), dry_run=True, **run)
    said = capsys.readouterr().out
    assert (
        plan['nfe'] == [125]
        and plan['memory_gb'] > 0
        and plan['seconds'] > 0
        and not (tmp_path / 'out').exists()
    )
    assert all(word in said for word in ('memory', 'time', 'nfe', '1000 to 500 steps'))
    bdense_distill(str(tmp_path / 'out'), **run)
    assert load_pretrained(tmp_path / 'out', 'cpu').nfe == 125


@pytest.mark.parametrize('nfe', [5])
def test_cifar10_sfd_dry_run(tmp_path, nfe):
    torch.manual_seed(0)
    published, cfg = Published(), preset('cifar10-sfd', nfe=nfe, steps=1, batch=2)
    teacher = as_denoiser(published)
    check_estimate(estimate_run(teacher, cfg), nfe=nfe, updates=nfe)
    student = distill(teacher, cfg, show=False)
    export_state_dict(student, tmp_path)
    how, again = json.loads((tmp_path / 'sampling.json').read_text()), as_denoiser(published)
    again.net.load_state_dict(load_tensors(tmp_path / 'model.safetensors')[0])
    assert how['about']['config'] == json.loads(json.dumps(asdict(cfg)))
    check_samples(
        student,
        type(student)(
            again, torch.tensor(how['grid'], dtype=torch.float64), how['afs'], tuple(how['shape'])
        ),
        nfe,
    )


@pytest.mark.parametrize('nfe', [2])
def test_imagenet64_sfd_dry_run(tmp_path, nfe):
    torch.manual_seed(0)
    teacher, cfg = (
        shaken(EDMDenoiser(UNet(3, (8, 32), n_classes=1000, patch=4))).requires_grad_(False).eval(),
        preset('imagenet64-sfd', nfe=nfe, steps=1, batch=2),
    )
    check_estimate(estimate_run(teacher, cfg), nfe=nfe, updates=nfe)
    student = distill(teacher, cfg, show=False)
    student.save(tmp_path)
    check_samples(student, load_student(tmp_path, 'cpu'), nfe)
    assert student.sample(1, cond=999).shape == (1, 3, 64, 64)


def test_imagenet64_sfd_with_a_published_networks_interface():
    torch.manual_seed(0)
    student = distill(
        as_denoiser(Published(label_dim=1000)),
        preset('imagenet64-sfd', steps=1, batch=2),
        show=False,
    )
    assert student.denoiser.n_classes == 1000 and student.sample(2, cond=[0, 999]).isfinite().all()


def test_imagenet64_sfd_as_a_command(tmp_path, capsys):
    save_denoiser(
        shaken(EDMDenoiser(UNet(3, (8, 32), n_classes=1000, patch=4))),
        tmp_path / 'teacher',
        dict(shape=[3, 64, 64], data='imagenet64'),
    )
    run = dict(
        teacher=str(tmp_path / 'teacher'), preset_name='imagenet64-sfd', nfe='3', steps=1, batch=2
    )
    plan = bdense_distill(str(tmp_path / 'out'), dry_run=True, **run)
    assert (
        plan['nfe'] == [3]
        and plan['memory_gb'] > 0
        and plan['seconds'] > 0
        and 'memory' in capsys.readouterr().out
    )
    bdense_distill(str(tmp_path / 'out'), **run)
    assert load_student(tmp_path / 'out', 'cpu').shape == (3, 64, 64)


def test_the_papers_figures(root):
    tables = json.loads((root / 'data' / 'results' / 'paper.json').read_text(encoding='utf-8'))
    rows = {
        name: {r['method']: r for r in tables[name]['rows']}
        for name in ('cifar10_pd', 'cifar10_sfd', 'imagenet64_sfd')
    }
    assert [rows['cifar10_pd']['PD'][n] for n in ('512', '256', '128')] == [11.96, 21.52, 39.66]
    assert [rows['imagenet64_sfd']['B-DENSE'][n] for n in '2345'] == [9.57, 6.54, 5.97, 5.91]
    behind = {
        (name, n)
        for name in ('cifar10_sfd', 'imagenet64_sfd')
        for n in '2345'
        if rows[name]['B-DENSE'][n] > rows[name]['SFD'][n]
    }
    assert behind == {('imagenet64_sfd', n) for n in '345'}
    assert all(
        rows[name]['SFD-v'][n] < rows[name]['B-DENSE'][n]
        for name in ('cifar10_sfd', 'imagenet64_sfd')
        for n in '2345'
    )
    assert all('2602.15971' in t['source'] for t in tables.values() if isinstance(t, dict))


@pytest.mark.parametrize('name', ['cifar10_pd', 'cifar10_sfd', 'imagenet64_sfd'])
def test_gpu_notebooks_say_that_nothing_was_produced(root, name):
    cells = json.loads(
        (root / 'nbs' / 'gpu' / 'published_settings.ipynb').read_text(encoding='utf-8')
    )['cells']
    assert 'have not been produced yet' in ''.join(cells[1]['source'])
    assert paper_table(name, {}).count('not produced yet') == (
        3 * 2 if name == 'cifar10_pd' else 4 * 3
    )
    assert f"'{name}'" in ''.join(cells[4]['source']) and 'paper_table(name, ours={})' in ''.join(
        cells[4]['source']
    )
