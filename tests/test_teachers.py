"Denoisers: exactness in every dtype and shape, files, and bad input."

import json
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from bdense_nb.app.sources import check_source
from bdense_nb.core import data_dir, load_tensors, save_tensors, sha256
from bdense_nb.diffusion.data import fashion_mnist
from bdense_nb.diffusion.checks import check_itself, check_samples, check_teacher
from bdense_nb.diffusion.denoisers import EDMDenoiser, FlowDenoiser, GaussianDenoiser
from bdense_nb.diffusion.denoisers import GuidedDenoiser, MixtureDenoiser, ModuleDenoiser
from bdense_nb.diffusion.denoisers import NetDenoiser, PreconditionedDenoiser, VPDenoiser, as_column
from bdense_nb.diffusion.stored import TEACHERS, is_complete, load_denoiser, load_teacher
from bdense_nb.diffusion.stored import read_about, read_run, save_denoiser, to_channels_last
from bdense_nb.diffusion.nets import MLP, UNet
from bdense_nb.diffusion.samplers import sample
from bdense_nb.diffusion.schedules import (
    PREDICTIONS,
    cosine_alpha_bar,
    karras_sigmas,
    linear_alpha_bar,
    sigma_from_alpha_bar,
)
from bdense_nb.distillation.sfd import SFDConfig, sfd
from bdense_nb.distillation.teaching import edm_loss, train_teacher
from bdense_nb.training.checkpoints import newest_checkpoint
from bdense_nb.training.config import Hardware, TrainConfig
from torch import nn


def edm(**kw):
    torch.manual_seed(0)
    return awake(EDMDenoiser(MLP(width=16, **kw), 0.7))


def vp():
    torch.manual_seed(0)
    return awake(
        VPDenoiser(MLP(width=16, n_classes=3, time_scale=1 / 400), linear_alpha_bar(100), 'v')
    )


def unet():
    torch.manual_seed(0)
    return awake(EDMDenoiser(UNet(widths=(8, 32), n_classes=3), 0.7))


def awake(denoiser):
    "Give every layer that starts at zero a default start, so that outputs depend on inputs."
    for m in denoiser.modules():
        if hasattr(m, 'weight') and hasattr(m, 'reset_parameters') and not m.weight.any():
            m.reset_parameters()
    return denoiser.eval()


def mixture(*shape):
    g = torch.Generator().manual_seed(0)
    return MixtureDenoiser(
        torch.randn(4, *shape, generator=g),
        torch.rand(4, generator=g) + 0.1,
        torch.rand(4, generator=g),
    )


# --- shapes, dtypes ---

EXACT = {
    'gaussian': lambda *shape: GaussianDenoiser(0.3, 0.5),
    'gaussian, mean of shape D': lambda *shape: GaussianDenoiser(torch.full(shape, 0.3), 0.5),
    'mixture': mixture,
}


@pytest.mark.parametrize('make', EXACT.values(), ids=EXACT)
@pytest.mark.parametrize('shape', [(1,), (2,), (1, 4, 4), (3, 2, 2)], ids=str)
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16])
def test_exact_denoisers(make, shape, dtype, noise):
    D, x = make(*shape), 2 * noise(5, *shape).to(dtype)
    sigma = torch.tensor([0.01, 0.1, 1.0, 10.0, 80.0])
    out = D(x, sigma)
    assert out.dtype == dtype and out.shape == x.shape and out.isfinite().all()
    for i in range(5):
        torch.testing.assert_close(out[i : i + 1], D(x[i : i + 1], float(sigma[i])))
    assert (
        torch.equal(D(x, 1.0), D(x, torch.tensor(1.0)))
        and torch.equal(D(x, 1.0), D(x, torch.ones(5)))
        and torch.equal(D(x, 1.0), D(x, torch.ones(1)))
    )
    assert torch.equal(
        D(x, 1.0, torch.zeros(5, dtype=torch.long)), D(x, 1.0)
    )  # they have one class and take any label


@pytest.mark.parametrize('shape', [(1,), (2,), (1, 3, 3)], ids=str)
@pytest.mark.parametrize('sigma', [0.05, 0.5, 5.0])
def test_mixture_is_the_gradient_of_the_log_density(shape, sigma, noise):
    D, x = mixture(*shape), noise(6, *shape).double().requires_grad_()
    d, var = math.prod(shape), D.stds**2 + sigma**2
    square = (x.flatten(1)[:, None] - D.means.flatten(1)).square().sum(-1)
    log_p = (D.weights.log() - square / (2 * var) - d / 2 * (2 * math.pi * var).log()).logsumexp(1)
    (score,) = torch.autograd.grad(log_p.sum(), x)
    torch.testing.assert_close(
        D(x.detach(), sigma), x.detach() + sigma**2 * score, rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize('mean,std', [(0.0, 0.5), (-1.0, 2.0), (0.3, 0.05)])
@pytest.mark.parametrize('legs', [(80.0, 0.002), (5.0, 1.0), (1.0, 0.0)])
def test_gaussian_flow(mean, std, legs, noise):
    D, x = GaussianDenoiser(mean, std), 3 * noise(5, 2).double()
    t, s = legs
    torch.testing.assert_close(
        D.flow(D.flow(x, t, 0.5), 0.5, s), D.flow(x, t, s), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(D.flow(D.flow(x, t, s), s, t), x, rtol=1e-10, atol=1e-10)
    h = 1e-5 * max(s, 0.1)
    middle = D.flow(x, t, s + h)
    slope = (D.flow(x, t, s + 2 * h) - D.flow(x, t, s)) / (2 * h)
    torch.testing.assert_close(slope, (middle - D(middle, s + h)) / (s + h), rtol=1e-5, atol=1e-7)


def test_of_two_points_it_is_a_tanh():
    x = torch.linspace(-3, 3, 25, dtype=torch.float64)[:, None]
    D = MixtureDenoiser(torch.tensor([[-1.0], [1.0]]), torch.full((2,), 1e-6), torch.ones(2))
    torch.testing.assert_close(D(x, 0.7), torch.tanh(x / 0.7**2), atol=1e-6, rtol=0)


def test_far_away_and_tiny_noise_stay_finite():
    D = MixtureDenoiser(
        torch.tensor([[-1.0], [1.0]]), torch.tensor([1e-4, 1e-4]), torch.tensor([1.0, 0.0])
    )
    out = D(torch.tensor([[-1e4], [0.0], [1e4]]), 1e-3)
    assert out.isfinite().all() and D.weights.tolist() == [1, 0]
    torch.testing.assert_close(
        D(torch.tensor([[1.0]]), 0.01), torch.tensor([[-1.0]]), atol=1e-3, rtol=0
    )  # a blob of weight 0 does not exist


# --- network denoisers ---

NETWORKS = {'edm': (lambda: edm(n_classes=3), (2,)), 'vp': (vp, (2,)), 'unet': (unet, (1, 8, 8))}


@pytest.mark.parametrize('kind', NETWORKS)
def test_network_denoisers(kind, noise):
    make, shape = NETWORKS[kind]
    D, x, sigma, label = (
        make().double(),
        2 * noise(5, *shape).double(),
        torch.tensor([0.01, 0.1, 1.0, 10.0, 80.0], dtype=torch.float64),
        torch.tensor([0, 1, 2, 0, 1]),
    )
    out = D(x, sigma, label)
    assert out.shape == x.shape and out.dtype == x.dtype and out.isfinite().all()
    for i in range(5):
        torch.testing.assert_close(
            out[i : i + 1], D(x[i : i + 1], float(sigma[i]), label[i : i + 1])
        )
    assert not torch.allclose(D(x, 1.0, label), D(x, 1.0)) and D.n_classes == 3
    torch.testing.assert_close(D(x, 1.0), D(x, torch.ones(5)))
    k_fold = D.to_x0(torch.stack([D.raw(x, sigma, label)] * 3, 1), x[:, None], sigma)
    torch.testing.assert_close(
        k_fold, out[:, None].expand_as(k_fold)
    )  # broadcasts over a branch axis


@pytest.mark.parametrize('sigma_data', [0.1, 0.5, 2.0])
def test_untrained_edm_is_the_gaussian_guess(sigma_data, noise):
    x, sigma = noise(5, 2), torch.tensor([0.01, 0.1, 1.0, 10.0, 80.0])
    torch.testing.assert_close(
        EDMDenoiser(MLP(), sigma_data)(x, sigma), GaussianDenoiser(0.0, sigma_data)(x, sigma)
    )


@pytest.mark.parametrize(
    'alpha_bar',
    [linear_alpha_bar(1000), linear_alpha_bar(50), cosine_alpha_bar(100)],
    ids=['linear 1000', 'linear 50', 'cosine 100'],
)
def test_vp_index(alpha_bar):
    D, T = VPDenoiser(MLP(), alpha_bar), len(alpha_bar)
    sigmas = sigma_from_alpha_bar(alpha_bar)
    torch.testing.assert_close(D.index(sigmas), torch.arange(T).double(), rtol=1e-9, atol=1e-9)
    middle = D.index((sigmas[1:] * sigmas[:-1]).sqrt())
    torch.testing.assert_close(
        middle, torch.arange(T - 1) + 0.5, rtol=1e-6, atol=1e-6, check_dtype=False
    )
    assert D.index(torch.tensor([1e-9, 1e9])).tolist() == [0, T - 1]


@pytest.mark.parametrize('prediction', PREDICTIONS)
def test_vp_predictions_agree_with_their_definitions(prediction, noise):
    x0, eps = noise(6, 3).double(), noise(6, 3).flip(0).double()
    sigma = torch.tensor([0.02, 0.1, 0.5, 2.0, 10.0, 100.0], dtype=torch.float64)[:, None]
    alpha = 1 / (1 + sigma**2).sqrt()
    raw = {'eps': eps, 'x0': x0, 'v': alpha * eps - sigma * alpha * x0}[prediction]
    got = VPDenoiser(MLP(), linear_alpha_bar(100), prediction).to_x0(
        raw, x0 + sigma * eps, sigma.flatten()
    )
    torch.testing.assert_close(got, x0, rtol=1e-9, atol=1e-9)


# --- bad input ---


@pytest.mark.parametrize('kind', NETWORKS)
@pytest.mark.parametrize(
    'sigma',
    [
        0.0,
        -1.0,
        float('nan'),
        float('inf'),
        torch.tensor([1.0, 0.0, 1.0, 1.0]),
        torch.tensor([1.0, float('nan'), 1.0, 1.0]),
    ],
    ids=str,
)
def test_sigma_refused(kind, sigma, noise):
    make, shape = NETWORKS[kind]
    with pytest.raises(ValueError, match='sigma must be finite and above 0'):
        make().check(noise(4, *shape), sigma)


@pytest.mark.parametrize(
    'make',
    [lambda: GaussianDenoiser(0.0, 1.0), lambda: mixture(2), edm, vp],
    ids=['gaussian', 'mixture', 'edm', 'vp'],
)
@pytest.mark.parametrize(
    'sigma', [torch.ones(3), torch.ones(4, 1), torch.ones(0)], ids=lambda s: str(tuple(s.shape))
)
def test_sigma_of_wrong_shape_refused(make, sigma, noise):
    with pytest.raises(ValueError, match='sigma'):
        make()(noise(4, 2), sigma)


@pytest.mark.parametrize(
    'make',
    [lambda: GaussianDenoiser(0.0, 1.0), lambda: mixture(2), edm, vp],
    ids=['gaussian', 'mixture', 'edm', 'vp'],
)
@pytest.mark.parametrize('dtype', [torch.long, torch.uint8, torch.bool])
def test_x_of_wrong_dtype_refused(make, dtype):
    with pytest.raises(TypeError, match='floating'):
        make()(torch.zeros(4, 2, dtype=dtype), 1.0)


@pytest.mark.parametrize('make', [edm, vp, unet])
def test_x_on_another_device_refused(make):
    with pytest.raises(ValueError, match='x is on meta but the denoiser is on cpu'):
        make().check(torch.zeros(4, 2, device='meta'), 1.0)


def test_x_of_another_dtype_refused():
    with pytest.raises(TypeError, match='x is torch.float64 but the denoiser is torch.float32'):
        edm().check(torch.zeros(4, 2, dtype=torch.float64), 1.0)


@pytest.mark.parametrize('shape', [(4, 1), (4, 3), (4, 2, 2)], ids=str)
@pytest.mark.parametrize('make', [lambda: mixture(2), edm, vp], ids=['mixture', 'edm', 'vp'])
def test_x_of_wrong_shape_refused(make, shape):
    with pytest.raises(ValueError, match=r'\[B, 2\]'):
        make()(torch.zeros(shape), 1.0)


@pytest.mark.parametrize('kind', NETWORKS)
@pytest.mark.parametrize(
    'label',
    [
        torch.zeros(4),
        torch.zeros(4, dtype=torch.int32),
        torch.zeros(3, dtype=torch.long),
        torch.zeros(4, 1, dtype=torch.long),
        torch.tensor(0),
        torch.tensor([0, 1, 2, 3]),
        torch.tensor([0, -1, 2, 0]),
        [0, 1, 2, 0],
        1,
    ],
    ids=str,
)
def test_label_refused(kind, label, noise):
    make, shape = NETWORKS[kind]
    with pytest.raises(ValueError, match=r'0\.\.2'):
        make().check(noise(4, *shape), 1.0, label)


def test_label_for_an_unconditional_network(noise):
    with pytest.raises(ValueError, match='no classes'):
        edm()(noise(4, 2), 1.0, torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize(
    'make',
    [
        lambda: GaussianDenoiser(0.0, 0.0),
        lambda: GaussianDenoiser(0.0, -1.0),
        lambda: GaussianDenoiser(0.0, float('nan')),
        lambda: GaussianDenoiser(0.0, float('inf')),
        lambda: MixtureDenoiser(torch.zeros(2), torch.ones(2), torch.ones(2)),
        lambda: MixtureDenoiser(torch.zeros(2, 1), torch.ones(3), torch.ones(2)),
        lambda: MixtureDenoiser(torch.zeros(2, 1), torch.ones(2), torch.ones(2, 1)),
        lambda: MixtureDenoiser(torch.zeros(2, 1), torch.tensor([1.0, 0.0]), torch.ones(2)),
        lambda: MixtureDenoiser(
            torch.zeros(2, 1), torch.tensor([1.0, float('nan')]), torch.ones(2)
        ),
        lambda: MixtureDenoiser(torch.zeros(2, 1), torch.ones(2), torch.tensor([1.0, -1.0])),
        lambda: MixtureDenoiser(torch.zeros(2, 1), torch.ones(2), torch.zeros(2)),
        lambda: MixtureDenoiser(
            torch.zeros(2, 1), torch.ones(2), torch.tensor([1.0, float('nan')])
        ),
        lambda: MixtureDenoiser(torch.zeros(0, 1), torch.ones(0), torch.ones(0)),
        lambda: EDMDenoiser(MLP(), 0.0),
        lambda: EDMDenoiser(MLP(), float('nan')),
        lambda: VPDenoiser(MLP(), linear_alpha_bar(100), 'noise'),
        lambda: VPDenoiser(MLP(), linear_alpha_bar(100).flip(0)),
        lambda: VPDenoiser(MLP(), torch.tensor([0.5])),
        lambda: VPDenoiser(MLP(), torch.tensor([1.0, 0.5])),
        lambda: VPDenoiser(MLP(), torch.tensor([0.5, 0.0])),
        lambda: VPDenoiser(MLP(), torch.tensor([[0.9, 0.5]])),
        lambda: VPDenoiser(MLP(), torch.tensor([0.9, float('nan')])),
    ],
)
def test_constructors_refuse(make):
    with pytest.raises(ValueError):
        make()


def test_the_base_class_is_no_denoiser(noise):
    with pytest.raises(TypeError, match='EDMDenoiser, VPDenoiser or FlowDenoiser'):
        NetDenoiser(MLP())(noise(2, 2), 1.0)


def test_as_column():
    x = torch.zeros(3, 1, 2, 2, dtype=torch.float64)
    assert (
        as_column(1, x).shape == (1, 1, 1, 1)
        and as_column(torch.ones(3), x).shape == (3, 1, 1, 1)
        and as_column(1, x).dtype == torch.float64
    )


@pytest.mark.parametrize(
    'call',
    [
        lambda: as_column(torch.ones(3), torch.zeros(4, 2)),
        lambda: as_column(1.0, torch.ones(4, 2, dtype=torch.long)),
        lambda: GuidedDenoiser(RING, -1.0),
        lambda: PreconditionedDenoiser(nn.Sequential(nn.Linear(2, 2)), 'unet'),
        lambda: save_denoiser(RING, 'nowhere'),
    ],
    ids=range(5),
)
def test_what_else_is_refused(call):
    with pytest.raises((ValueError, TypeError)):
        call()


# --- is it a denoiser at all? ---

ANGLES = torch.arange(8) * 2 * math.pi / 8
RING = MixtureDenoiser(
    torch.stack([ANGLES.cos(), ANGLES.sin()], 1),
    torch.linspace(0.04, 0.12, 8),
    torch.arange(1.0, 9.0),
)
POINTS = RING.sample(4000)
#: what an exact network of each kind answers, from x0, eps, sigma and x; and what check_teacher says of it
KINDS = {
    'eps': (lambda x0, eps, s, x: eps, 'the noise eps'),
    'v': (lambda x0, eps, s, x: (eps - s * x0) / (1 + s**2).sqrt(), 'v = alpha'),
    'velocity': (lambda x0, eps, s, x: eps - x0, 'the velocity eps - x0'),
    'minus velocity': (lambda x0, eps, s, x: x0 - eps, 'the velocity x0 - eps'),
    'score': (lambda x0, eps, s, x: -eps / s, 'the score'),
    'half': (lambda x0, eps, s, x: 0.5 * x0, r'x0 in another scale: about 0.49\d\*x0'),
    'unit interval': (
        lambda x0, eps, s, x: 0.5 * x0 + 0.5,
        r'x0 in another scale: about 0.49\d\*x0 \+ 0.49',
    ),
    'pixels': (
        lambda x0, eps, s, x: 127.5 * x0 + 127.5,
        r'x0 in another scale: about 12\d\*x0 \+ 12\d',
    ),
    'its input': (lambda x0, eps, s, x: x, 'wrapper'),
    'NaN': (lambda x0, eps, s, x: x * float('nan'), 'error is nan.*wrapper'),
    'nothing': (lambda x0, eps, s, x: 0 * x, 'wrapper'),
    'the mean': (lambda x0, eps, s, x: 0 * x + POINTS.mean(0), 'wrapper'),
}


class Exact:
    "What is known of the ring, told in one of these ways; `told` times the noise level."

    def __init__(self, kind=None, told=1.0):
        self.kind, self.told = kind, told

    def __call__(self, x, sigma, label=None):
        s = self.told * as_column(sigma, x)
        x0 = RING(x, s.flatten())
        return x0 if self.kind is None else KINDS[self.kind][0](x0, (x - x0) / s, s, x)


class ExactVP(nn.Module):
    "A VP network that predicts eps, x0 or v of the ring exactly."

    def __init__(self, kind):
        super().__init__()
        self.kind, self.levels = kind, sigma_from_alpha_bar(linear_alpha_bar(1000)).float()

    def forward(self, z, index, label=None):
        s = as_column(self.levels[index.round().long()], z)
        x = z * (1 + s**2).sqrt()
        x0 = RING(x, s.flatten())
        return x0 if self.kind == 'x0' else KINDS[self.kind][0](x0, (x - x0) / s, s, x)


@pytest.mark.parametrize('kind', KINDS)
def test_what_is_no_denoiser_is_refused_and_named(kind):
    with pytest.raises(
        ValueError,
        match=f'does not give clean estimates at [1-8] of 8 noise levels.*{KINDS[kind][1]}',
    ):
        check_teacher(Exact(kind), POINTS)


@pytest.mark.parametrize('told, said', [(1000.0, '0.001'), (0.001, '1000')])
def test_a_noise_input_of_another_scale_is_named(told, said):
    with pytest.raises(ValueError, match=f'noise input of another scale: {said} times'):
        check_teacher(Exact(told=told), POINTS)


@pytest.mark.parametrize(
    'is_, said', [(a, b) for a in PREDICTIONS for b in PREDICTIONS if (a, b) != ('x0', 'v')]
)
def test_a_wrong_prediction_is_named(is_, said):
    "(x0 taken for v is nearly a linear denoiser of data with mean 0, which no error tells from a bad network.)"
    D = VPDenoiser(ExactVP(is_), linear_alpha_bar(1000), said)
    if is_ == said:
        assert check_teacher(D, POINTS).ok
        return
    names = {'eps': 'the noise eps', 'x0': 'the clean sample x0', 'v': 'v = alpha'}
    with pytest.raises(ValueError, match=f'it seems to predict {names[is_]}'):
        check_teacher(D, POINTS)


def test_a_velocity_network_taken_for_a_denoiser():
    "All shapes fit, and its samples are noise that has grown."

    class Velocity(nn.Module):
        def forward(self, z, t, label=None):
            s = as_column(t / (1 - t).clamp(min=0.01), z)
            x = z * (1 + s)
            x0 = RING(x, s.flatten())
            return (x - x0) / s - x0

    D = ModuleDenoiser(Velocity())
    with pytest.raises(
        ValueError, match=r'the velocity eps - x0 of flow matching, which FlowDenoiser\(net\) takes'
    ):
        check_teacher(D, POINTS)
    x = 80 * torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    ends = {
        name: sample(d, x, karras_sigmas(20), 'heun') for name, d in (('wrong', D), ('exact', RING))
    }
    check_samples(ends['exact'], 80.0)
    with pytest.raises(
        ValueError, match=r'root mean square of [\d.e+]+, more than 40.*check_teacher'
    ):
        check_samples(ends['wrong'], 80.0)


# --- without data: is it right about its own samples? ---

TABLES = {'linear': linear_alpha_bar(1000), 'cosine': cosine_alpha_bar(1000)}
SPOTS = MixtureDenoiser(
    torch.randn(6, 1, 6, 6, generator=torch.Generator().manual_seed(0)),
    torch.full((6,), 0.1),
    torch.ones(6),
)
READ = [(kind, table) for kind in PREDICTIONS for table in TABLES] + [
    ('flow', scale, end) for scale in (1.0, 1000.0) for end in (0, 1)
]
#: how many of 90 misreadings pass: what is misread is a right denoiser of other data
ALIKE = dict(ring=3, spots=3, gauss=14)


class Closed(nn.Module):
    "The exact network of a mixture: eps, v or x0 on a table, or a velocity."

    def __init__(self, of, how):
        super().__init__()
        self.of, self.how = of, how

    def forward(self, z, time, cond=None):
        if self.how[0] == 'flow':
            t = (time / self.how[1]).clamp(1e-5, 1 - 1e-5)
            t = as_column(1 - t if self.how[2] else t, z)
            x0 = self.of(z / (1 - t), (t / (1 - t)).flatten())
            return (x0 - z) / t if self.how[2] else (z - x0) / t
        levels = sigma_from_alpha_bar(TABLES[self.how[1]]).float().log()
        i = time.clamp(0, 999)
        low = i.floor().long()
        s = as_column(torch.lerp(levels[low], levels[(low + 1).clamp(max=999)], i - low).exp(), z)
        x = z * (1 + s**2).sqrt()
        x0 = self.of(x, s.flatten())
        return dict(x0=x0, eps=(x - x0) / s, v=((x - x0) / s - s * x0) / (1 + s**2).sqrt())[
            self.how[0]
        ]


def read_as(net, how):
    return (
        FlowDenoiser(net, *how[1:]) if how[0] == 'flow' else VPDenoiser(net, TABLES[how[1]], how[0])
    )


def of_noise(world, n=512):
    return torch.randn(n, *world.means.shape[1:], generator=torch.Generator().manual_seed(3))


GAUSS = GaussianDenoiser(0.0, 0.5)


@pytest.mark.parametrize(
    'name, world, noise',
    [
        ('ring', RING, of_noise(RING)),
        ('spots', SPOTS, of_noise(SPOTS, 32)),
        ('gauss', GAUSS, of_noise(SimpleNamespace(means=torch.empty(1, 4)))),
    ],
    ids=list(ALIKE),
)
def test_a_network_that_is_misread_contradicts_its_own_samples(name, world, noise):
    "All that is right passes, and of 90 misreadings few; on data fewer."
    passed = {
        (is_, said)
        for is_ in READ
        for said in READ
        if check_itself(read_as(Closed(world, is_), said), noise, refuse=False).ok
    }
    assert {(is_, is_) for is_ in READ} <= passed
    wrong = [(is_, said) for is_, said in passed if is_ != said]
    assert len(wrong) == ALIKE[name]
    data = (
        0.5 * torch.randn(500, 4, generator=torch.Generator().manual_seed(4))
        if world is GAUSS
        else world.sample(500)
    )
    assert (
        sum(
            check_teacher(read_as(Closed(world, is_), said), data, refuse=False).ok
            for is_, said in wrong
        )
        <= 1
    )


def test_a_prediction_that_fits_its_own_samples_far_better_is_named():
    "x0 taken for v is a right denoiser of other data."
    D = read_as(Closed(RING, ('x0', 'linear')), ('v', 'linear'))
    with pytest.raises(
        ValueError,
        match=r"read as another prediction.*what VPDenoiser\(net, alpha_bar, 'x0'\) takes",
    ):
        check_itself(D, of_noise(RING))


class Sees(nn.Module):
    "A rough velocity, which takes the noise level from the sample, and less from a time of 0 to 1000."

    def forward(self, z, time, cond=None):
        t = torch.linspace(0.01, 0.99, 50)
        var = ((1 - t) * 0.1) ** 2 + t**2
        gap = (
            (z.flatten(1)[:, None, None] - (1 - t)[:, None, None] * SPOTS.means.float().flatten(1))
            .square()
            .sum(-1)
        )  # [B, T, M]
        seen = (
            (-gap / (2 * var)[:, None] - 18 * var.log()[:, None]).logsumexp(2).softmax(1) * t
        ).sum(1)
        s = as_column((seen * (1 + 0.15 * time / 1000)).clamp(max=0.999), z)
        return (z - SPOTS(z / (1 - s), (s / (1 - s)).flatten())) / s


def test_a_time_that_a_network_hardly_hears_is_no_better_reading():
    "Read as a time of 0 to 1 it fits its own samples better, since it takes the noise level from them."
    assert check_itself(FlowDenoiser(Sees(), 1000.0), of_noise(SPOTS, 32)).ok
    with pytest.raises(
        ValueError,
        match=r'told a time of 0 to 1 its network hardly hears it.*; data \(check_teacher, --data\) would',
    ):
        check_itself(FlowDenoiser(Sees()), of_noise(SPOTS, 32))


def test_a_network_that_has_hardly_learnt_v_is_not_taken_for_x0():
    "Read as that it makes one sample only, which nothing fits better."
    torch.manual_seed(0)
    net, levels, data = (
        MLP(width=64, depth=3, time_scale=1 / 400),
        sigma_from_alpha_bar(TABLES['linear']).float(),
        RING.sample(4000),
    )
    adam = torch.optim.Adam(net.parameters(), 2e-3)
    for i in range(30):
        g = torch.Generator().manual_seed(i)
        x0, eps, time = (
            data[torch.randint(4000, (256,), generator=g)],
            torch.randn(256, 2, generator=g),
            torch.randint(1000, (256,), generator=g),
        )
        s = levels[time, None]
        loss = (
            (
                (1 + s**2).sqrt() * net((x0 + s * eps) / (1 + s**2).sqrt(), time.float())
                - eps
                + s * x0
            )
            .div((1 + s**2).sqrt())
            .square()
            .mean()
        )
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert check_itself(read_as(net, ('v', 'linear')), of_noise(RING)).ok


def test_the_noise_of_the_check_is_not_that_of_the_samples():
    "Samples made from seed 0, as commands make them, are no easier than others."
    misread, shape = (
        read_as(Closed(GaussianDenoiser(0.0, 0.5), ('x0', 'linear')), ('v', 'linear')),
        (512, 4),
    )
    for seed in (0, 1):
        assert not check_itself(
            misread, torch.randn(shape, generator=torch.Generator().manual_seed(seed)), refuse=False
        ).ok


@pytest.mark.parametrize(
    'is_, said, names',
    [
        (
            ('eps', 'linear'),
            ('v', 'linear'),
            r"follows it by 1, where 0 is expected: it predicts the noise eps or .*; it seems to predict what VPDenoiser\(net, alpha_bar, 'eps'\) takes",
        ),
        (
            ('eps', 'linear'),
            ('eps', 'cosine'),
            r"seems to predict what VPDenoiser\(net, linear_alpha_bar\(1000\), 'eps'\) takes",
        ),
        (
            ('flow', 1000.0, 0),
            ('v', 'linear'),
            r'seems to predict what FlowDenoiser\(net, 1000, 0\) takes',
        ),
    ],
    ids=str,
)
def test_what_it_is_instead_is_named(is_, said, names):
    with pytest.raises(ValueError, match=names):
        check_itself(read_as(Closed(SPOTS, is_), said), of_noise(SPOTS, 32))


@pytest.mark.parametrize(
    'is_, said',
    [
        (('eps', 'linear'), ('eps', 'cosine')),
        (('eps', 'cosine'), ('eps', 'linear')),
        (('eps', 'linear'), ('flow', 1000.0, 0)),
    ],
    ids=str,
)
def test_on_data_another_table_is_named(is_, said):
    assert check_teacher(read_as(Closed(SPOTS, is_), is_), SPOTS.sample(200)).ok
    with pytest.raises(
        ValueError, match=rf"what VPDenoiser\(net, {is_[1]}_alpha_bar\(1000\), 'eps'\)"
    ):
        check_teacher(read_as(Closed(SPOTS, is_), said), SPOTS.sample(200))


def test_good_teachers_of_other_kinds_pass_by_themselves():
    for name, shape, n in (
        ('fashion_mnist', (1, 28, 28), 4),
        ('fashion_mnist_wide', (1, 28, 28), 4),
        ('spiral', (2,), 256),
    ):
        assert check_itself(
            load_teacher(name, 'cpu'),
            torch.randn(n, *shape, generator=torch.Generator().manual_seed(0)),
            torch.arange(n) if n == 4 else None,
        ).ok
    assert check_itself(RING, of_noise(RING)).ok and check_itself(SPOTS, of_noise(SPOTS, 32)).ok


def test_an_untrained_network_of_the_noise_is_told_so():
    "And not that it should be what it is."
    torch.manual_seed(0)
    D = VPDenoiser(MLP(width=16), TABLES['linear'], 'eps')
    for check in (lambda: check_teacher(D, POINTS), lambda: check_itself(D, of_noise(RING))):
        with pytest.raises(
            ValueError, match='where 1 is expected: it predicts x0 or v, or has not learned yet'
        ) as e:
            check()
        assert "alpha_bar, 'eps')" not in str(e.value)


def test_good_and_badly_trained_teachers_pass():
    assert (
        check_teacher(RING, POINTS).ok
        and check_teacher(GaussianDenoiser(0.0, 0.5), 0.5 * torch.randn(500, 3)).ok
    )
    for steps in (1, 30):
        torch.manual_seed(0)
        D = EDMDenoiser(MLP(width=32), 0.7)
        check_teacher(D, POINTS)
        assert D.training
        assert check_teacher(
            train_teacher(D, POINTS, None, TrainConfig(steps=steps, lr=4e-3), 64, show=False).model,
            POINTS,
        ).ok


def test_a_network_with_a_table_of_its_steps_is_read_as_no_other():
    "Another reading asks it for a step that it does not have."

    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Embedding.from_pretrained(
                (1 - TABLES['linear'][::2])[:, None].sqrt()
            )  # exact for data of size 1: eps is sqrt(1 - alpha_bar) z

        def forward(self, z, index):
            return self.scale(index.round().long()).reshape(-1, 1) * z

    D = VPDenoiser(Table(), TABLES['linear'][::2].clone(), 'eps')
    assert check_teacher(
        D,
        torch.randn(500, 2, generator=torch.Generator().manual_seed(0)),
        sigmas=(0.1, 0.5, 2.0, 7.0),
    ).ok


def test_shipped_teacher_passes_with_and_without_labels():
    images, labels = fashion_mnist('test')
    D = load_teacher(device='cpu')
    for cond in (labels, None):
        found = check_teacher(D, images, cond, n=16)
        assert found.ok and all(e < 1.05 * g for e, g in zip(found.errors, found.linear))


def test_the_report():
    found = check_teacher(Exact('eps'), POINTS, sigmas=(0.05, 20.0), refuse=False)
    assert (
        not found.ok
        and found.failed == (0.05, 20.0)
        and found.sigmas == (0.05, 20.0)
        and 'eps' in found.predicts
    )
    lines = str(found).splitlines()
    assert (
        len(lines) == 3
        and lines[0].split() == ['sigma', 'error', 'linear', 'accepted']
        and lines[1].endswith('fails')
    )
    assert [float(v) for v in lines[1].split()[:4]] == pytest.approx(
        [0.05, found.errors[0], found.linear[0], found.limits[0]], rel=1e-3
    )
    again = check_teacher(Exact('eps'), POINTS, sigmas=(0.05, 20.0), refuse=False)
    assert again == found and again != check_teacher(
        Exact('eps'), POINTS, sigmas=(0.05, 20.0), refuse=False, seed=1
    )


def test_check_teacher_takes_conditions_with_their_samples():
    class Told:
        def __call__(self, x, sigma, label=None):
            assert torch.equal(label['at'][:, 0], label['copy'])
            return label['at'].expand_as(x)

    data = torch.arange(200.0)[:, None].expand(200, 3).contiguous() / 100 - 1
    assert check_teacher(Told(), data, dict(at=data[:, :1], copy=data[:, 0])).errors == (0.0,) * 8


@pytest.mark.parametrize(
    'bad',
    [
        dict(data=None),
        dict(data=torch.zeros(4)),
        dict(data=torch.full((4, 2), float('nan'))),
        dict(data=torch.zeros(4, 2).long()),
        dict(denoiser=3),
        dict(sigmas=(0.0,)),
        dict(sigmas=(float('nan'),)),
        dict(sigmas=()),
        dict(n=0),
        dict(cond=torch.zeros(3)),
        dict(denoiser=lambda x, s, y=None: x[:, :1]),
    ],
    ids=lambda d: next(iter(d)),
)
def test_check_teacher_refuses(bad):
    with pytest.raises((ValueError, TypeError)):
        check_teacher(**dict(denoiser=RING, data=POINTS) | bad)


@pytest.mark.parametrize(
    'x, kw, message',
    [
        (torch.tensor([[1.0], [float('nan')]]), {}, '1 of 2 samples.*NaN or infinite'),
        (torch.full((3, 2), float('inf')), {}, '3 of 3'),
        (torch.full((3, 2), 41.0), {}, 'more than 40'),
        (torch.full((3, 2), 4.0), dict(scale=1.0), 'more than 3'),
    ],
    ids=str,
)
def test_samples_refused(x, kw, message):
    with pytest.raises(ValueError, match=message):
        check_samples(x, 80.0, **kw)
    check_samples(torch.full((3, 2), 2.9), 80.0, **kw)
    check_samples(torch.ones(3, 2), 2.0)  # a walk that begins at little noise


def test_channels_last_touches_images_alone():
    net = nn.Sequential(nn.Conv1d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv3d(4, 4, 3), nn.Linear(4, 4))
    to_channels_last(net)
    assert [m.weight.is_contiguous() for m in net] == [True, False, True, True] and net[
        1
    ].weight.is_contiguous(memory_format=torch.channels_last)


# --- training ---


def test_edm_loss_depends_on_the_generator_alone(noise):
    D, x = edm(n_classes=3), noise(8, 2)
    loss = lambda seed, **kw: float(
        edm_loss(D, x, generator=torch.Generator().manual_seed(seed), **kw).detach()
    )
    assert loss(0) == loss(0) != loss(1)
    label = torch.zeros(8, dtype=torch.long)
    assert loss(0, label=label, label_drop=0.0) != loss(0, label=label, label_drop=1.0)


def test_train_teacher_resumes_exactly(tmp_path, noise):
    x, label = noise(50, 2), torch.arange(50) % 3
    cfg = TrainConfig(steps=6, ema=0.5, checkpoint_every=2)

    class PowerCut(EDMDenoiser):
        calls = 0

        def forward(self, *args):
            self.calls += 1
            if self.calls == 4:
                raise OSError('power cut')
            return super().forward(*args)

    whole = train_teacher(edm(n_classes=3), x, label, cfg, 8, tmp_path / 'a', show=False)
    cut = PowerCut(edm(n_classes=3).net, 0.7)
    with pytest.raises(OSError):
        train_teacher(cut, x, label, cfg, 8, tmp_path / 'b', show=False)
    again = train_teacher(edm(n_classes=3), x, label, cfg, 8, tmp_path / 'b', show=False)
    for a, b in zip(whole.ema.state_dict().values(), again.ema.state_dict().values()):
        assert torch.equal(a, b)
    assert (
        newest_checkpoint(tmp_path / 'a')[1]['history']
        == newest_checkpoint(tmp_path / 'b')[1]['history']
    )


def test_train_teacher_does_not_go_on_with_a_denoiser_of_other_settings(tmp_path, noise):
    def go(steps, sigma_data=0.5, **net):
        made = EDMDenoiser(MLP(width=8, depth=1, **net), sigma_data)
        return train_teacher(made, noise(9, 2), None, TrainConfig(steps), 4, tmp_path, show=False)

    go(1)
    with pytest.raises(ValueError, match='sigma_data: 0.5 there, 0.4 now'):
        go(2, 0.4)
    with pytest.raises(ValueError, match="net: .*'time_scale': 1.0.* there, .*'time_scale': 2.0"):
        go(2, time_scale=2.0)
    note = json.loads((tmp_path / 'run.json').read_text())
    old = {k: note[k] for k in ('batch', 'data')}  # of an earlier version
    (tmp_path / 'run.json').write_text(json.dumps(old))
    done = go(2)
    assert done.history[-1]['step'] == 2 and not done.model.training


def test_no_data_are_refused():
    none = torch.zeros(0, 2)
    with pytest.raises(ValueError, match='number of images must be at least 1'):
        train_teacher(edm(), none, None, TrainConfig(1), 4, show=False)
    with pytest.raises(ValueError, match='number of samples in data must be at least 1'):
        check_teacher(edm(), none)


def test_train_teacher_refuses(noise):
    cfg = TrainConfig(steps=1)
    with pytest.raises(ValueError, match='batch'):
        train_teacher(edm(), noise(9, 2), None, cfg, 0, show=False)
    with pytest.raises(ValueError, match='9 images need as many labels, got 8'):
        train_teacher(
            edm(n_classes=3), noise(9, 2), torch.zeros(8, dtype=torch.long), cfg, 4, show=False
        )


def test_labels_are_checked_before_training(noise):
    run = lambda labels, **kw: train_teacher(
        edm(n_classes=3), noise(9, 2), labels, TrainConfig(steps=1), 4, show=False, **kw
    )
    ok = torch.arange(9) % 3
    with pytest.raises(ValueError, match='from 0 to 3'):
        run(torch.arange(9) % 4)
    with pytest.raises(ValueError, match='int64'):
        run(ok.float())
    with pytest.raises(ValueError, match='null_class=2 is one of the 3 classes'):
        run(ok, null_class=2)
    with pytest.raises(ValueError, match='from 0 to 4'):
        run(torch.tensor([0, 1, 2, 3, 4, 0, 0, 0, 0]), null_class=3)
    with pytest.raises(ValueError, match='images contains 1 NaN'):
        train_teacher(
            edm(), torch.tensor([[float('nan'), 0.0]]), None, TrainConfig(steps=1), 1, show=False
        )
    with pytest.raises(TypeError, match='bfloat16'):
        train_teacher(edm().bfloat16(), noise(9, 2), None, TrainConfig(steps=1), 4, show=False)


def test_the_null_class_is_trained_by_unlabelled_samples(noise):
    "Rows of the embedding whose class did not occur do not move."
    D = edm(n_classes=3).train()
    before = D.net.embed.classes.weight.clone()
    train_teacher(
        D,
        noise(9, 2),
        torch.tensor([0, 7]).repeat(5)[:9],
        TrainConfig(steps=1),
        8,
        show=False,
        null_class=7,
    )
    moved = (D.net.embed.classes.weight != before).any(1)
    assert moved.tolist() == [True, False, False, True]


def test_hardware_and_hooks_reach_the_loop(noise):
    class Spy:
        rows = []

        def logged(self, state, row):
            self.rows.append(row)

    fit = train_teacher(
        edm(),
        noise(9, 2),
        None,
        TrainConfig(steps=2, log_every=1),
        8,
        show=False,
        hardware=Hardware(precision='bf16'),
        hooks=[Spy()],
    )
    plain = train_teacher(
        edm(), noise(9, 2), None, TrainConfig(steps=2, log_every=1), 8, show=False
    )
    assert len(Spy.rows) == 2 and not torch.equal(
        fit.model.net.stem.weight, plain.model.net.stem.weight
    )


# --- files ---


@pytest.mark.parametrize('kind', NETWORKS)
def test_round_trip(tmp_path, kind, noise):
    make, shape = NETWORKS[kind]
    D, x = make(), noise(4, *shape)
    save_denoiser(D, tmp_path / 'd', dict(note='ü'))
    back = load_denoiser(tmp_path / 'd', 'cpu')
    assert (
        type(back) is type(D)
        and back.config == D.config
        and back.net.config == D.net.config
        and read_about(tmp_path / 'd')['about'] == {'note': 'ü'}
    )
    torch.testing.assert_close(back(x, 0.5), D(x, 0.5))
    for a, b in zip(back.state_dict().values(), D.state_dict().values()):
        assert torch.equal(a, b)
    assert not back.training and not any(p.requires_grad for p in back.parameters())
    assert sorted(p.name for p in (tmp_path / 'd').iterdir()) == [
        'config.json',
        'model.safetensors',
    ]
    save_denoiser(D, tmp_path / 'd')
    load_denoiser(tmp_path / 'd', 'cpu')  # written over


@pytest.fixture
def stored(tmp_path):
    save_denoiser(edm(n_classes=3), tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    'damage',
    [
        lambda b: b[:-1],
        lambda b: b[:100],
        lambda b: b'',
        lambda b: b[:-50] + bytes([b[-50] ^ 1]) + b[-49:],
        lambda b: b'\x80\x04pickle',
    ],
    ids=['cut', 'cut early', 'empty', 'one bit', 'foreign'],
)
def test_damaged_weights_refused(stored, damage):
    path = stored / 'model.safetensors'
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match='model.safetensors is damaged'):
        load_denoiser(stored, 'cpu')


@pytest.mark.parametrize(
    'change,message',
    [
        (dict(denoiser='Evil'), 'EDMDenoiser, VPDenoiser'),
        (dict(net='Evil'), 'holds a Evil, which this package cannot build: pass net='),
        (dict(net='UNet'), 'does not fit'),
        (dict(net_config=dict(width=8)), 'does not fit'),
        (dict(net_config=dict(size=8)), 'does not fit'),
        (dict(net_config=dict(depth=10**9)), 'depth must be between 0 and 4096'),
        (dict(net_config=dict(dim=10**9)), 'dim must be'),
        (dict(net_config=dict(width=4096, depth=64)), 'the network has'),
        (dict(net_config=[1]), 'a dict, got list'),
        (dict(net_config=None), 'pass net='),
        (dict(config=3), "its 'config' is 3"),
        (dict(net=None), "its 'net' is None"),
        (dict(sha256=7), "its 'sha256' is 7"),
        (dict(about=[1]), "its 'about' is"),
        (dict(config=dict(sigma=1)), 'does not fit'),
        (dict(config=dict(sigma_data=-1.0)), 'sigma_data'),
        (dict(net_config=dict(width=-1)), 'width'),
        (dict(sha256='0' * 64), 'damaged'),
    ],
    ids=str,
)
def test_altered_config_refused(stored, change, message):
    path = stored / 'config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        load_denoiser(stored, 'cpu')


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda t: t.fill_(float('nan')), 'embed.lin1.bias has NaN'),
        (lambda t: t.fill_(float('inf')), 'embed.lin1.bias has NaN or infinite'),
        (lambda t: t.long(), 'embed.lin1.bias is torch.int64, expected torch.float32'),
    ],
)
def test_numbers_that_a_checksum_does_not_refuse(stored, change, message):
    tensors, meta = load_tensors(stored / 'model.safetensors')
    tensors['net.embed.lin1.bias'] = change(tensors['net.embed.lin1.bias'])
    save_tensors(stored / 'model.safetensors', tensors, meta)
    about = json.loads((stored / 'config.json').read_text())
    (stored / 'config.json').write_text(
        json.dumps(about | dict(sha256=sha256(stored / 'model.safetensors')))
    )
    with pytest.raises(ValueError, match=message):
        load_denoiser(stored, 'cpu')


class Mine(nn.Module):
    "A network that this package does not know."

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(2, 2)

    def forward(self, x, noise, label=None):
        return self.lin(x)


@pytest.mark.parametrize(
    'wrap', [EDMDenoiser, ModuleDenoiser, lambda net: VPDenoiser(net, linear_alpha_bar(50), 'v')]
)
def test_any_network_is_saved_and_loaded_with_net(tmp_path, wrap, noise):
    D = wrap(Mine())
    save_denoiser(D, tmp_path)
    x = noise(4, 2)
    for net in (Mine(), Mine, Mine().double(), lambda: Mine().bfloat16()):
        assert torch.equal(load_denoiser(tmp_path, 'cpu', net)(x, 2.0), D(x, 2.0))
    with pytest.raises(
        ValueError, match=f'holds a {__name__}:Mine, which this package cannot build: pass net='
    ):
        load_denoiser(tmp_path, 'cpu')
    told = 'does not fit(.|\n)*:Mine, and net= is a MLP: pass net= the network as it was'
    with pytest.raises(ValueError, match=told):
        load_denoiser(tmp_path, 'cpu', MLP())
    pipeline = type('Pipe', (), dict(save_pretrained=print, __call__=lambda self: 1 / 0))()
    for other in (lambda: 3, 'mine', pipeline):
        with pytest.raises(TypeError, match='net must be a network or make one, got'):
            load_denoiser(tmp_path, 'cpu', other)
    save_denoiser(EDMDenoiser(MLP(width=8, depth=1)), tmp_path)
    with pytest.raises(ValueError, match='net= is a Mine: leave net= out, this package makes it'):
        load_denoiser(tmp_path, 'cpu', Mine())


def test_weights_say_what_they_are(tmp_path):
    "So that a half-saved denoiser is known: its config.json comes last."
    assert read_run(tmp_path) is None and not is_complete(tmp_path)
    save_denoiser(edm(), tmp_path, run=dict(steps=3))
    assert read_run(tmp_path) == dict(steps=3) and is_complete(tmp_path)
    (tmp_path / 'config.json').unlink()
    assert read_run(tmp_path) == dict(steps=3) and not is_complete(tmp_path)
    save_tensors(tmp_path / 'model.safetensors', {'a': torch.zeros(1)}, dict(kind='something else'))
    assert read_run(tmp_path) is None
    (tmp_path / 'model.safetensors').write_bytes(b'foreign')
    assert read_run(tmp_path) is None and not is_complete(tmp_path)
    save_denoiser(edm(), tmp_path)
    assert read_run(tmp_path) == {} and is_complete(tmp_path)
    save_tensors(
        tmp_path / 'model.safetensors', edm().state_dict()
    )  # other weights than those that config.json describes
    assert not is_complete(tmp_path)


@pytest.mark.parametrize(
    'text',
    ['', '{', '[]', '3', 'null', '"EDMDenoiser"', '{}', '{"denoiser": "EDMDenoiser"}', b'\xff\xfe'],
    ids=str,
)
def test_foreign_config_refused(stored, text):
    (stored / 'config.json').write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match='config.json'):
        load_denoiser(stored, 'cpu')


def test_missing_files_refused(stored):
    with pytest.raises(FileNotFoundError, match='nowhere holds no denoiser'):
        load_denoiser(stored / 'nowhere')
    (stored / 'model.safetensors').unlink()
    with pytest.raises(FileNotFoundError, match='no model.safetensors'):
        load_denoiser(stored)
    (stored / 'config.json').unlink()
    with pytest.raises(FileNotFoundError, match='config.json'):
        load_denoiser(stored)


def test_devices_refused(stored):
    with pytest.raises(RuntimeError, match='gpu'):
        load_denoiser(stored, 'gpu')
    if not torch.cuda.is_available():
        with pytest.raises((RuntimeError, AssertionError), match='(?i)cuda|nvidia'):
            load_denoiser(stored, 'cuda')


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    class Mine(EDMDenoiser):
        pass

    with pytest.raises(ValueError, match='unknown'):
        save_denoiser(Mine(MLP()), tmp_path / 'd')
    assert not (tmp_path / 'd').exists()


def test_unknown_teacher():
    with pytest.raises(ValueError, match='fashion_mnist'):
        load_teacher('imagenet')
    with pytest.raises(ValueError, match='fashion_mnist'):
        load_teacher(['fashion_mnist'])


# --- the teacher that ships ---


@pytest.mark.parametrize('name', TEACHERS)
def test_shipped_teacher(name, noise):
    D = load_teacher(name, 'cpu')
    classes, shape = {
        'fashion_mnist': (10, (1, 28, 28)),
        'fashion_mnist_wide': (10, (1, 28, 28)),
        'spiral': (0, (2,)),
    }[name]
    assert (
        D.n_classes == classes
        and not D.training
        and not any(p.requires_grad for p in D.parameters())
    )
    x = 2 * noise(3, *shape)
    assert (
        D(x, 2.0).isfinite().all()
        and D(x, 2.0, torch.tensor([0, 5, 9]) if classes else None).shape == x.shape
    )
    assert sum(p.stat().st_size for p in (data_dir() / TEACHERS[name]).iterdir()) < 10e6


@pytest.mark.parametrize('size', [50.0, 0.01])
def test_data_of_another_size_than_told_are_noticed(size):
    torch.manual_seed(0)
    data = size * torch.randn(64, 2)
    with pytest.warns(UserWarning, match='sigma_data=1: subtract the mean'):
        train_teacher(
            EDMDenoiser(MLP(width=8, depth=1), 1.0), data, None, TrainConfig(1), 8, show=False
        )
    with pytest.warns(UserWarning, match='root mean square of (5|4.9)'):
        train_teacher(
            EDMDenoiser(MLP(width=8, depth=1), 1.0),
            torch.randn(64, 2) + 5,
            None,
            TrainConfig(1),
            8,
            show=False,
        )


def test_data_of_another_dtype_are_refused():
    with pytest.raises(TypeError, match='data are torch.float64, the network is torch.float32'):
        train_teacher(
            EDMDenoiser(MLP(width=8, depth=1), 1.0),
            torch.randn(64, 2).double(),
            None,
            TrainConfig(1),
            8,
            show=False,
        )


def test_a_network_that_fails_at_the_top_alone_is_told_apart_from_a_misread_one(noise):
    exact = GaussianDenoiser(0.0, 0.5)

    def weak(x, sigma, cond=None, known=20):
        above = torch.as_tensor(sigma).reshape(-1, 1) > known
        return exact(x, sigma) + 3 * (50 * x).sin() * above

    with pytest.raises(
        ValueError,
        match=r'at 1 of 8 .* up to 10 it does, .* train it longer, or start lower, with sigma_max=10 in a configuration',
    ) as e:
        check_teacher(
            weak, 0.5 * torch.randn(500, 2), sigmas=(0.1, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0)
        )
    assert 'parameterisation' not in str(e.value)
    lower, data = partial(weak, known=5), 0.5 * torch.randn(500, 2)
    assert check_teacher(lower, data, refuse=False).failed
    assert check_teacher(lower, data, sigma_max=5.0).sigmas[-1] == 5.0  # and so it is started
    check_source(
        lower, 'mine', (2,), (data, None), top=SFDConfig(sigma_max=5.0, shape=(2,)).noisiest
    )
    lost = lambda x, sigma, cond=None: exact(x, sigma) / (torch.as_tensor(sigma) <= 5)
    assert check_itself(lost, noise(64, 2), sigma_max=5.0).ok
    check_source(lost, 'mine:made', (2,), top=5.0)
    with pytest.raises(ValueError, match='its own samples have a root mean square of nan'):
        check_itself(lost, noise(64, 2))
    misread = lambda x, sigma, cond=None: 2 * exact(x, 2 * torch.as_tensor(sigma))
    with pytest.raises(ValueError) as e:
        check_teacher(misread, 0.5 * torch.randn(500, 2))
    assert 'train it longer' not in str(e.value)


class Answers(torch.nn.Module):
    "Answers with what a function makes of its input; may need its condition."

    def __init__(self, answer, needs=False):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
        self.answer = answer
        self.needs = needs

    def forward(self, x, sigma, cond=None):
        if self.needs and cond is None:
            raise ValueError('cond needed')
        return self.answer(self.layer(x))


@pytest.mark.parametrize(
    'net, labels, says',
    [
        (Answers(lambda y: y[:, :1]), None, r'answers with \(2, 1\) where it is given \(2, 2\)'),
        (Answers(lambda y: (y, y)), None, 'answers with tuple where it is given'),
        (
            Answers(lambda y: y, True),
            dict(e=torch.ones(8, 1)),
            '10% of the batches.*cond needed.*label_drop=0',
        ),
    ],
)
def test_networks_that_cannot_be_taught_are_refused_before_any_work(net, labels, says):
    with pytest.raises(ValueError, match=says):
        train_teacher(EDMDenoiser(net, 0.5), torch.randn(8, 2), labels, TrainConfig(2, 1e-3))


def test_a_network_that_needs_its_condition_is_taught_where_none_is_hidden(tmp_path):
    x = torch.randn(8, 2)
    cond = dict(e=torch.ones(8, 1))

    def teach(folder, **how):
        torch.manual_seed(0)
        denoiser = EDMDenoiser(Answers(lambda y: y, True), 0.5)
        return train_teacher(denoiser, x, cond, TrainConfig(30, 1e-3), 4, folder, False, **how)

    teach(tmp_path, label_drop=0)
    assert json.loads((tmp_path / 'run.json').read_text())['label_drop'] == 0
    for share in (-0.1, 1.5, 'half'):
        with pytest.raises(ValueError, match='label_drop must be'):
            teach(None, label_drop=share)


def test_an_answer_that_would_stand_for_several_numbers_is_no_teachers():
    teacher = EDMDenoiser(Answers(lambda y: y[:, :1]), 0.5)
    with pytest.raises(ValueError, match=r'answers with \(2, 1\) where it is given'):
        sfd(teacher, SFDConfig(steps=1, batch=2, shape=(2,)), show=False)
