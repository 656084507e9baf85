"""Models of other libraries and other layouts: stand-ins written here, with those libraries' attributes and calls."""

import collections
import copy
import functools
import json
import logging
import math
import operator
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from bdense_nb.core import NFECounter, read_json, sample_noise, write_json
from bdense_nb.diffusion.denoisers import EDMDenoiser, FlowDenoiser, GaussianDenoiser
from bdense_nb.diffusion.denoisers import ModuleDenoiser, PreconditionedDenoiser, VPDenoiser
from bdense_nb.diffusion.denoisers import as_column
from bdense_nb.diffusion.stored import load_denoiser, load_teacher, save_denoiser
from bdense_nb.diffusion.schedules import cosine_alpha_bar, linear_alpha_bar
from bdense_nb.diffusion.samplers import ConditionTable
from bdense_nb.diffusion.nets import MLP
from bdense_nb.distillation.bank import answers, denoiser_hash, frozen_copy
from bdense_nb.distillation.branches import branch, fold, output_layer
from bdense_nb.distillation.progressive import PDConfig, progressive
from bdense_nb.distillation.sfd import SFDConfig, sfd, teacher_bank
from bdense_nb.distillation.students import Student, load_student
from bdense_nb.interop.diffusers import as_denoiser
from bdense_nb.interop.export import export_onnx
from bdense_nb.lab.search import search_weights
from bdense_nb.training.checkpoints import same_run
from bdense_nb.training.devices import blocks, recompute_blocks

SHAPE = (3, 8, 8)


class Conv(nn.Module):
    "EDM's own kind of layer: a weight and a bias, not a `torch.nn.Conv2d`."

    def __init__(self, c_in, c_out):
        super().__init__()
        self.in_channels, self.out_channels = c_in, c_out
        self.weight, self.bias = (
            nn.Parameter(torch.randn(c_out, c_in, 3, 3) * 0.1),
            nn.Parameter(torch.zeros(c_out)),
        )

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight.to(x.dtype), self.bias.to(x.dtype), padding=1)


class Inner(nn.Module):
    "A raw network: `inner(x, c_noise, class_labels)`, one-hot classes."

    def __init__(self, out=3, label_dim=0):
        super().__init__()
        self.map_noise, self.map_label = (
            nn.Linear(1, 8),
            nn.Linear(label_dim, 8, bias=False) if label_dim else None,
        )
        self.first, self.last = Conv(3, 8), Conv(8, out)

    def forward(self, x, noise, class_labels=None, augment_labels=None):
        h = self.map_noise(noise.reshape(-1, 1).float().tanh())
        if self.map_label is not None:
            h = h + self.map_label(class_labels)
        return self.last((self.first(x) + h[:, :, None, None]).tanh())


class Precond(nn.Module):
    "What EDM's preconditioned classes have in common: attributes, and their arguments."

    out = 3

    def __init__(self, label_dim=0):
        super().__init__()
        self.img_resolution, self.img_channels, self.label_dim, self.use_fp16 = (
            8,
            3,
            label_dim,
            False,
        )
        self.model = Inner(self.out, label_dim)

    def forward(self, x, sigma, class_labels=None, force_fp32=False, **kw):
        x, sigma = x.float(), sigma.float().reshape(-1, 1, 1, 1)
        if self.label_dim:
            class_labels = (
                torch.zeros(1, self.label_dim)
                if class_labels is None
                else class_labels.float().reshape(-1, self.label_dim)
            )
        else:
            class_labels = None
        return self.combine(x, sigma, class_labels, kw)


class VP(Precond):
    def combine(self, x, sigma, labels, kw):
        t = ((0.1**2 + 2 * 19.9 * (1 + sigma**2).log()).sqrt() - 0.1) / 19.9
        return x - sigma * self.model(x / (sigma**2 + 1).sqrt(), (999 * t).flatten(), labels, **kw)


class VE(Precond):
    def combine(self, x, sigma, labels, kw):
        return x + sigma * self.model(x, (0.5 * sigma).log().flatten(), labels, **kw)


class IDDPM(Precond):
    out = 6  # it predicts a variance too

    def __init__(self, label_dim=0):
        super().__init__(label_dim)
        self.register_buffer('u', torch.linspace(10, 0, 101))

    def combine(self, x, sigma, labels, kw):
        index = (sigma.flatten()[:, None] - self.u).abs().argmin(1)
        return (
            x
            - sigma
            * self.model(x / (sigma**2 + 1).sqrt(), (100 - index).float(), labels, **kw)[:, :3]
        )


class EDM(Precond):
    sigma_data = 0.5

    def combine(self, x, sigma, labels, kw):
        v = sigma**2 + 0.25
        return 0.25 / v * x + sigma * 0.5 / v.sqrt() * self.model(
            x / v.sqrt(), (sigma.log() / 4).flatten(), labels, **kw
        )


class MPConv(nn.Module):
    "EDM2's kind of layer: no bias, and its weight is normalised in every call, in training in place."

    def __init__(self, c_in, c_out):
        super().__init__()
        self.out_channels, self.weight = c_out, nn.Parameter(torch.randn(c_out, c_in, 3, 3))

    def forward(self, x, gain=1.0):
        w = self.weight.float()
        if self.training:
            with torch.no_grad():
                self.weight.copy_(self.normalised(w))
        return nn.functional.conv2d(x, self.normalised(w) * gain / w[0].numel() ** 0.5, padding=1)

    def normalised(self, w):
        return w / (1e-4 + w.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1) / w[0].numel() ** 0.5)


class Inner2(Inner):
    def __init__(self, out=3, label_dim=0):
        super().__init__(out, label_dim)
        self.last, self.gain = MPConv(8, out), nn.Parameter(torch.tensor(0.7))

    def forward(self, x, noise, class_labels=None):
        h = self.map_noise(noise.reshape(-1, 1).float().tanh()) + (
            0 if self.map_label is None else self.map_label(class_labels)
        )
        return self.last((self.first(x) + h[:, :, None, None]).tanh(), gain=self.gain)


class EDM2(Precond):
    sigma_data = 0.5

    def __init__(self, label_dim=0):
        super().__init__(label_dim)
        del self.model
        self.unet = Inner2(3, label_dim)

    def combine(self, x, sigma, labels, kw):
        v = sigma**2 + 0.25
        return 0.25 / v * x + sigma * 0.5 / v.sqrt() * self.unet(
            x / v.sqrt(), (sigma.log() / 4).flatten(), labels
        )


PRECONDS = dict(vp=VP, ve=VE, iddpm=IDDPM, edm=EDM, edm2=EDM2)


def made(kind, label_dim=0):
    torch.manual_seed(0)
    return PRECONDS[kind](label_dim).eval()


def x_sigma(n=4):
    return 3 * torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(2)), torch.tensor(
        [0.1, 0.7, 3.0, 9.0]
    )[:n]


@pytest.mark.parametrize('label_dim', [0, 3])
@pytest.mark.parametrize('kind', PRECONDS)
def test_edm_classes_as_they_are(kind, label_dim):
    module, (x, sigma) = made(kind, label_dim), x_sigma()
    D = as_denoiser(module)
    label = torch.tensor([0, 2, 1, 0]) if label_dim else None
    rows = nn.functional.one_hot(label, 3).float() if label_dim else None
    torch.testing.assert_close(D(x, sigma, label), module(x, sigma, rows), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(D(x, 2.0), module(x, torch.tensor(2.0)), atol=1e-5, rtol=1e-5)
    assert D.n_classes == label_dim and output_layer(D, SHAPE).endswith('last')
    counter = NFECounter(D)
    counter(x, sigma, label)
    assert counter.nfe == 1


@pytest.mark.parametrize('kind', PRECONDS)
def test_branches_of_what_is_combined_inside(kind):
    D, (x, sigma) = as_denoiser(made(kind, 3)), x_sigma()
    label = torch.tensor([0, 2, 1, 0])
    model = branch(D, 4, shape=SHAPE)
    for k in range(4):
        torch.testing.assert_close(
            model(x, sigma, label)[:, k], D(x, sigma, label), atol=1e-5, rtol=1e-4
        )
    folded = fold(model)
    torch.testing.assert_close(folded(x, sigma, label), D(x, sigma, label), atol=1e-5, rtol=1e-4)
    assert folded.state_dict().keys() == D.state_dict().keys()


@pytest.mark.parametrize('K', [1, 4])
@pytest.mark.parametrize('kind', PRECONDS)
def test_edm_classes_are_distilled_and_given_back(kind, K, tmp_path):
    module = made(kind, 3)
    for p in getattr(module, 'unet' if kind == 'edm2' else 'model').last.parameters():
        p.data *= 0.1
    cfg = SFDConfig(
        shape=SHAPE,
        nfe=2,
        K=K,
        substeps=4,
        steps=1,
        batch=2,
        pool=2,
        sigma_max=2.5,
        sigma_min=0.1,
        lr=1e-3,
    )
    student = sfd(as_denoiser(module), cfg, show=False)
    student.save(tmp_path / 's')
    for net in (module, as_denoiser(module)):
        again = load_student(tmp_path / 's', 'cpu', net=net)
        assert torch.equal(again.sample(3), student.sample(3))
    if kind != 'edm':  # EDM's are rebuilt from their own class
        x, sigma = x_sigma()
        own, rows = student.denoiser.module(), torch.eye(3)[[0, 2, 1, 0]]
        assert type(own) is type(module) and own.state_dict().keys() == module.state_dict().keys()
        torch.testing.assert_close(
            own(x, sigma, rows), student.denoiser(x, sigma, torch.tensor([0, 2, 1, 0]))
        )


@pytest.mark.parametrize('kind', PRECONDS)
def test_both_hosts_take_them(kind):
    module = made(kind)
    both_hosts(as_denoiser(module))


@pytest.mark.parametrize('kind', PRECONDS)
def test_a_stored_teacher_takes_the_module_as_it_is(kind, tmp_path):
    "What `--net` names for a teacher that was saved from a pickle: a module, or what makes it, with other weights."
    module, (x, sigma) = made(kind), x_sigma()
    save_denoiser(D := as_denoiser(module), tmp_path)
    other = made(kind)
    for p in other.parameters():
        p.data += 1.0
    for net in (other, lambda: other, lambda: as_denoiser(other)):
        assert torch.equal(load_denoiser(tmp_path, 'cpu', net)(x, sigma), D(x, sigma))
    assert not any(torch.equal(p, q) for p, q in zip(other.parameters(), module.parameters()))


def both_hosts(D, labels=None):
    "A student of each, that draws something."
    small = dict(batch=2, sigma_min=0.1, sigma_max=2.5, K=2)
    few = sfd(D, SFDConfig(shape=SHAPE, nfe=2, steps=1, **small), show=False)
    half = progressive(
        D,
        torch.randn(6, *SHAPE),
        PDConfig(start_steps=4, end_steps=2, updates=1, schedule='karras', **small),
        labels,
        show=False,
    )
    for student in (few, half):
        assert (
            student.nfe == 2
            and student.sample(2).isfinite().all()
            and type(student.denoiser) is type(D)
        )


class KDenoiser(nn.Module):
    "k-diffusion's: `inner_model`, `sigma_data`, other arguments by name."

    def __init__(self, inner_model, sigma_data=0.5):
        super().__init__()
        self.inner_model, self.sigma_data = inner_model, sigma_data

    def forward(self, x, sigma, **kwargs):
        s = as_column(sigma, x)
        v = s**2 + self.sigma_data**2
        return (
            self.inner_model(x / v.sqrt(), sigma.log() / 4, **kwargs)
            * s
            * self.sigma_data
            / v.sqrt()
            + x * self.sigma_data**2 / v
        )


class ClassCond(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.net = nn.Embedding(5, 8), Inner()
        self.n_classes = 5

    def forward(self, x, noise, class_cond=None):
        return self.net(x, noise + self.embed(class_cond).mean(1))


def test_k_diffusion_in_one_line():
    torch.manual_seed(0)
    theirs, (x, sigma) = KDenoiser(ClassCond()).eval(), x_sigma()
    D = as_denoiser(theirs, inner='inner_model', takes='class_cond')
    label = torch.tensor([0, 4, 2, 1])
    torch.testing.assert_close(D(x, sigma, label), theirs(x, sigma, class_cond=label))
    torch.testing.assert_close(
        D(x, sigma, dict(class_cond=label)), theirs(x, sigma, class_cond=label)
    )
    assert D.n_classes == 5 and branch(D, 2, shape=SHAPE)(x, sigma, label).shape == (4, 2, *SHAPE)
    both_hosts(D, torch.arange(6) % 5)
    with pytest.raises(ValueError, match='has no network .model.*inner_model'):
        as_denoiser(theirs, inner='model')


class GaussianDiffusion(nn.Module):
    "lucidrains': `model(x, t, x_self_cond)`, `alphas_cumprod`, `objective`."

    def __init__(self, model, objective):
        super().__init__()
        self.model, self.objective = model, objective
        self.register_buffer('alphas_cumprod', cosine_alpha_bar(1000).float())


class Unet(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Inner()

    def forward(self, x, time, x_self_cond=None):
        assert x_self_cond is None
        return self.net(x, time / 1000)


@pytest.mark.parametrize('objective', ['pred_noise', 'pred_x0', 'pred_v'])
def test_lucidrains_in_one_line(objective):
    diffusion = GaussianDiffusion(Unet(), objective)
    D = VPDenoiser(
        diffusion.model,
        diffusion.alphas_cumprod,
        {'pred_noise': 'eps', 'pred_x0': 'x0', 'pred_v': 'v'}[diffusion.objective],
    ).eval()
    a = diffusion.alphas_cumprod[500].double()
    x, sigma = torch.randn(4, *SHAPE), ((1 - a) / a).sqrt()
    z = x * a.sqrt().float()
    out = diffusion.model(z, torch.full((4,), 500.0))
    want = {
        'pred_x0': out,
        'pred_noise': (z - (1 - a).sqrt() * out) / a.sqrt(),
        'pred_v': a.sqrt() * z - (1 - a).sqrt() * out,
    }[objective]
    torch.testing.assert_close(D(x, sigma), want.float(), atol=1e-4, rtol=1e-4)
    assert branch(D, 2, shape=SHAPE)(x, sigma).shape == (4, 2, *SHAPE)
    both_hosts(D)


def test_what_trains_a_network_is_told_from_it():
    with pytest.raises(
        TypeError,
        match=r'GaussianDiffusion trains its network.*VPDenoiser\(x.model, x.alphas_cumprod',
    ):
        as_denoiser(GaussianDiffusion(Unet(), 'pred_v'))


def test_a_network_that_stops_is_not_always_of_another_shape():
    class Broken(Series):
        def forward(self, x, noise, cond=None):
            raise RuntimeError('no weights were loaded')

    class Looks(Series):
        def forward(self, x, noise, cond=None):
            return super().forward(x, nn.Embedding(9, 1)(noise)[:, 0], cond)

    class Told(Series):
        def forward(self, x, noise, cond=None):
            return super().forward(cond['rows'] if named else cond, noise)

    named = False
    for net, says in (
        (Series().double(), 'torch.float64.*float32.*with .float'),
        (Broken(), 'stops with RuntimeError: no weights were loaded'),
        (Looks(), 'noise levels are fractions'),
        *[(Told(), 'conditions of whole numbers stay such')] * 2,
    ):
        teacher = EDMDenoiser(net)
        named = type(net) is Told and not named
        rows = torch.ones(4, *Series.shape).long()
        if type(net) is Told:
            teacher.conditions = ConditionTable(dict(rows=rows) if named else rows)
        with pytest.raises(ValueError, match=says) as e:
            sfd(teacher, SFDConfig(shape=Series.shape, K=2, steps=1, batch=2), show=False)
        assert 'halved' not in str(e.value)


# layouts
class Series(nn.Module):  # [B, C, L]
    shape = (2, 12)

    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Conv1d(2, 8, 3, padding=1), nn.Conv1d(8, 2, 3, padding=1)

    def forward(self, x, noise, cond=None):
        return self.out((self.first(x) + noise[:, None, None].tanh()).tanh())


class Video(nn.Module):  # [B, C, T, H, W]
    shape = (3, 4, 6, 6)

    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Conv3d(3, 8, 3, padding=1), nn.Conv3d(8, 3, 3, padding=1)

    def forward(self, x, noise, cond=None):
        return self.out((self.first(x) + noise.reshape(-1, 1, 1, 1, 1).tanh()).tanh())


class Tokens(nn.Module):  # [B, L, C]
    shape = (5, 4)

    def __init__(self):
        super().__init__()
        self.first, self.mix, self.out = (
            nn.Linear(4, 8),
            nn.MultiheadAttention(8, 2, batch_first=True),
            nn.Linear(8, 4),
        )

    def forward(self, x, noise, cond=None):
        h = self.first(x) + noise[:, None, None].tanh()
        return self.out(h + self.mix(h, h, h, need_weights=False)[0])


@pytest.mark.parametrize(
    'wrap',
    [EDMDenoiser, FlowDenoiser, lambda net: VPDenoiser(net, linear_alpha_bar(100), 'x0')],
    ids=['edm', 'flow', 'vp'],
)
@pytest.mark.parametrize('net', [Series, Video, Tokens])
def test_layouts(net, wrap):
    torch.manual_seed(0)
    D = wrap(net()).eval()
    x, sigma = torch.randn(3, *net.shape), torch.tensor([0.2, 1.0, 5.0])
    model = branch(D, 4, shape=net.shape)
    assert model.layer == 'out'
    for k in range(4):
        torch.testing.assert_close(model(x, sigma)[:, k], D(x, sigma), atol=1e-5, rtol=1e-4)
    common = dict(K=2, lr=1e-3)
    student = sfd(
        D,
        SFDConfig(
            shape=net.shape,
            nfe=2,
            substeps=2,
            steps=1,
            batch=2,
            pool=2,
            sigma_max=9.0,
            afs=wrap is not FlowDenoiser,
            **common,
        ),
        show=False,
    )
    assert student.sample(3).shape == (3, *net.shape)
    student = progressive(
        D,
        torch.randn(5, *net.shape),
        PDConfig(
            start_steps=4,
            end_steps=2,
            updates=1,
            batch=2,
            schedule='karras',
            sigma_max=9.0,
            **common,
        ),
        show=False,
    )
    assert student.sample(3).shape == (3, *net.shape)


# --- networks that take fewer or more arguments ---


class Gained(nn.Module):
    "Takes an argument of its own by name."

    def __init__(self):
        super().__init__()
        self.body, self.out = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x, noise, cond=None, *, gain):
        return gain * self.out(
            torch.tanh(self.body(torch.cat([x, noise.reshape(-1, 1).expand(len(x), 1)], 1)))
        )


class Unconditional(Gained):
    def forward(self, x, noise):
        return super().forward(x, noise, gain=1.0)


@pytest.mark.parametrize(
    'wrap',
    [
        EDMDenoiser,
        lambda net: VPDenoiser(net, linear_alpha_bar(100), 'v'),
        FlowDenoiser,
        as_denoiser,
    ],
    ids=['edm', 'vp', 'flow', 'as_denoiser'],
)
@pytest.mark.parametrize(
    'net',
    [
        lambda: functools.partial(Gained(), gain=2.0),
        lambda: functools.partial(Gained(), gain=torch.tensor(2.0)),
        Unconditional,
    ],
    ids=['number', 'tensor', 'no condition'],
)
def test_a_partial_network_is_distilled_saved_and_read(wrap, net, tmp_path):
    torch.manual_seed(0)
    student = sfd(
        wrap(net()),
        SFDConfig(shape=(2,), K=2, steps=1, batch=4, sigma_max=5.0, afs=False),
        show=False,
    )
    student.save(tmp_path)
    again = load_student(tmp_path, 'cpu', net() if isinstance(net(), functools.partial) else net)
    assert torch.equal(
        again.sample(3), student.sample(3)
    ) and again.denoiser.net.net.out.weight.shape == (2, 8)
    if net is Unconditional:
        return
    for other in (3.0, torch.tensor(3.0)):
        with pytest.raises(
            ValueError,
            match=r'other arguments of functools.partial: gain=(2.0|a tensor \[\] \(\w+\)) there, (3.0|a tensor \[\] \(\w+\)) here',
        ):
            load_student(tmp_path, 'cpu', functools.partial(Gained(), gain=other))


@pytest.mark.parametrize(
    'make, says',
    [
        (lambda: EDMDenoiser(Gained()), 'Gained needs gain too: give it by functools.partial'),
        (
            lambda: EDMDenoiser(functools.partial(torch.relu)),
            'a functools.partial of one, got partial of',
        ),
        (
            lambda: EDMDenoiser(lambda x, noise, cond: x),
            'a network is a torch.nn.Module, .*got function',
        ),
        (
            lambda: EDMDenoiser(functools.partial(Gained(), torch.zeros(2), gain=1.0)),
            'must give its arguments by name',
        ),
        (
            lambda: as_denoiser(functools.partial(Gained(), gain=1.0), inner='body'),
            'is taken apart, so functools.partial cannot',
        ),
        (
            lambda: EDMDenoiser(functools.partial(Gained(), gain=1.0, gian=2.0)),
            "gives Gained an argument 'gian', which it does not take; it takes: x, noise, cond, gain",
        ),
        (lambda: as_denoiser(functools.partial(Gained(), gian=2.0)), "argument 'gian'"),
        (
            lambda: EDMDenoiser(Unconditional())(torch.zeros(2, 2), 1.0, torch.zeros(2, 3)),
            'Unconditional takes no condition',
        ),
    ],
    ids=range(8),
)
def test_what_cannot_be_called_is_refused_in_our_words(make, says):
    with pytest.raises((TypeError, ValueError), match=says):
        make()


class Opaque:
    "Of no kind that can be compared."

    __slots__ = ()


class Told(Gained):
    def forward(self, x, noise, cond=None, *, told):
        return super().forward(x, noise, gain=1.0)


@pytest.mark.parametrize(
    'mine, other',
    [
        ({'k': 1.0}, {'k': 5.0}),
        (np.float32(1), np.float32(2)),
        ([torch.ones(9)], [torch.zeros(9)]),
        ({'k': (np.ones(2), 'a')}, {'k': (np.zeros(2), 'a')}),
        ([torch.zeros(5000)], [torch.eye(5000)[2500]]),
    ],
    ids=range(5),
)
def test_other_constants_inside_of_others_are_refused(mine, other, tmp_path):
    save_denoiser(EDMDenoiser(functools.partial(Told(), told=mine)), tmp_path)
    load_denoiser(tmp_path, 'cpu', functools.partial(Told(), told=copy.deepcopy(mine)))
    with pytest.raises(
        ValueError, match='other arguments of functools.partial: told=.* there, .* here'
    ):
        load_denoiser(tmp_path, 'cpu', functools.partial(Told(), told=other))


def test_what_cannot_be_compared_is_said(tmp_path):
    save_denoiser(EDMDenoiser(functools.partial(Told(), told={'k': iter('a')})), tmp_path)
    with pytest.warns(
        UserWarning, match='told, arguments of functools.partial, cannot be compared'
    ):
        load_denoiser(tmp_path, 'cpu', functools.partial(Told(), told={'k': iter('b')}))
    with pytest.raises(ValueError, match='other arguments'), pytest.warns(UserWarning):
        load_denoiser(tmp_path, 'cpu', functools.partial(Told(), told={'k': 1.0}))


def test_constants_of_earlier_versions_are_read(tmp_path):
    "What they told in other words than we do cannot be compared, numbers can."
    module = KDenoiser(Inner())
    module.tuple, module.kind = (1, 2), Slotted(1)
    save_denoiser(as_denoiser(module, 'inner_model'), tmp_path)
    path = tmp_path / 'config.json'
    about = json.loads(path.read_text())
    about['constants'] = about.pop('kept') | {'tuple': '(1, 2)', 'kind': "[Slotted, {'scale': 1}]"}
    path.write_text(json.dumps(about))
    with pytest.warns(
        UserWarning, match='kind, tuple, constants of its module, cannot be compared'
    ):
        load_denoiser(tmp_path, 'cpu', module)
    module.sigma_data = 2.0
    with (
        pytest.raises(ValueError, match='sigma_data=0.5 there, 2.0 here; pass'),
        pytest.warns(UserWarning),
    ):
        load_denoiser(tmp_path, 'cpu', module)


def test_samples_of_a_wrong_height_are_refused_in_our_words():
    "And not in torch's."

    class Halved(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Conv2d(3, 3, 1)

        def forward(self, x, noise, cond=None):
            return self.out(
                x + nn.functional.interpolate(nn.functional.avg_pool2d(x, 2), scale_factor=2)
            )

    D = EDMDenoiser(Halved())
    for shape, why in {
        (3, 7, 8): '; sides that can be halved',
        (4, 8, 8): ', which are expected to have 3 channels, but got 4 channels',
    }.items():
        stops = f'does not fit the teacher: its network stops at such samples{why}'
        with pytest.raises(ValueError, match=stops) as e:
            sfd(D, SFDConfig(shape=shape, K=2, steps=1, batch=2), show=False)
        assert 'tensor a' not in str(e.value)


@pytest.mark.parametrize(
    'how',
    [
        dict(schedule='teacher', sigma_max=10.0),
        dict(schedule='vp_linear', sigma_max=10.0),
        dict(schedule='teacher', sigma_min=0.1),
    ],
    ids=str,
)
def test_a_level_that_a_table_decides_is_refused(how):
    with pytest.raises(ValueError, match='takes its levels from a table, so it has no sigma_m'):
        PDConfig(**how)


def test_a_table_length_that_no_table_has_is_refused():
    with pytest.raises(ValueError, match=r"levels=64 changes nothing with schedule 'karras'"):
        PDConfig(schedule='karras', levels=64).suited(EDM())


class OwnSkip(EDM):
    "As consistency models' code has it."

    def combine(self, x, sigma, labels, kw):
        v = (sigma - 0.002) ** 2 + 0.25
        return 0.25 / v * x + (sigma - 0.002) * 0.5 / v.sqrt() * self.model(
            x / v.sqrt(), 250 * sigma.log().flatten(), labels
        )


@pytest.mark.parametrize('zeros', [False, True], ids=['random', 'zeros'])
@pytest.mark.parametrize('kind', [EDM, OwnSkip])
def test_a_modules_own_formulas_are_kept(kind, zeros):
    "Where the network says nothing yet, too."
    torch.manual_seed(0)
    module = kind()
    if zeros:
        torch.nn.init.zeros_(module.model.last.weight)
    D, (x, sigma) = as_denoiser(module), x_sigma()
    for net in (D.net.model if kind is EDM else D.net, module.model):
        net.last.weight.data.add_(0.1)
    torch.testing.assert_close(D(x, sigma), module(x, sigma), atol=1e-5, rtol=1e-5)
    assert type(D) is (EDMDenoiser if kind is EDM else PreconditionedDenoiser)


class Karras(nn.Module):
    "k-diffusion's layout."

    sigma_data = 0.5

    def __init__(self, inner):
        super().__init__()
        self.inner_model = inner

    def ask(self, x, sigma, **more):
        return self.inner_model(x, sigma, **more)

    def forward(self, input, sigma, **more):
        return input - sigma[:, None, None, None] * self.ask(input, sigma, **more)


class CompVis(Karras):
    def ask(self, x, sigma, **more):
        return self.inner_model.apply_model(x, sigma, **more)


class Deaf(Karras):
    def ask(self, x, sigma, **more):
        return x


class Lossy(Karras):
    def forward(self, images):
        return images.mean()


class ByClass(nn.Module):
    def __init__(self):
        super().__init__()
        self.rows, self.last = nn.Embedding(4, 3), Conv(3, 3)

    def forward(self, x, sigma, class_cond=None):
        return self.last(x + (0 if class_cond is None else self.rows(class_cond)[:, :, None, None]))


class Answers(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.out, self.kind = nn.Conv2d(3, 3, 1), kind

    def forward(self, x, noise, cond=None):
        return self.kind({'sample': self.out(x)})


class Indexes(Answers):
    def forward(self, x, noise, cond=None):
        return self.out(x)[:, [7]]


@pytest.mark.parametrize(
    'make, says',
    [
        (
            lambda: as_denoiser(CompVis(Inner()), 'inner_model'),
            "CompVis cannot be taken apart at its 'inner_model', since it uses apply_model of the network",
        ),
        (lambda: as_denoiser(Deaf(Inner()), 'inner_model'), 'since it does not call it'),
        (
            lambda: as_denoiser(Lossy(Inner())),
            r'a Lossy is not called with \(x, sigma\).*one of inner_model',
        ),
        (lambda: EDMDenoiser(Answers(tuple)), 'it answers with a tuple$'),
        (lambda: ModuleDenoiser(Answers(dict)), 'it answers with a dict$'),
        (
            lambda: EDMDenoiser(Indexes(tuple)),
            'Indexes is called with three arguments.*out of bounds',
        ),
    ],
    ids=range(6),
)
def test_a_first_call_says_what_stopped_it(make, says):
    with pytest.raises((TypeError, ValueError), match=says):
        frozen_copy(make(), SHAPE)


def test_classes_by_name_are_distilled():
    D = as_denoiser(Karras(ByClass()), 'inner_model', takes='class_cond')
    D.conditions = ConditionTable(torch.arange(4))
    D.net.last.weight.data.mul_(0.1)
    student = sfd(
        D, SFDConfig(shape=SHAPE, K=2, steps=1, batch=2, sigma_max=2.0, layer='last'), show=False
    )
    torch.testing.assert_close(
        student.sample(4, cond=torch.arange(4)),
        torch.cat([student.sample(1, seed=i, cond=torch.tensor([i])) for i in range(4)]),
    )


class Twice(EDM):
    "Guidance inside: two calls."

    def combine(self, x, sigma, labels, kw):
        given, none = (
            super().combine(x, sigma, labels, kw),
            super().combine(x, sigma, labels * 0, kw),
        )
        return none + 3 * (given - none)


class Biased(EDM):
    "The condition is used outside of the network too."

    def combine(self, x, sigma, labels, kw):
        return super().combine(x, sigma, labels, kw) + labels[:, :, None, None]


class Reads(EDM):
    "And so is an attribute of the network, if it is there."

    def combine(self, x, sigma, labels, kw):
        return super().combine(x, sigma, labels, kw) * getattr(self.model, 'gain', 1.0)


class Learned(KDenoiser):
    "k-diffusion's OpenAIDenoiser: the network predicts a variance too. It asks its weights for their type."

    def __init__(self):
        super().__init__(Inner(6))

    def forward(self, x, sigma):
        x = x.to(dict(self.named_parameters())['inner_model.first.weight'].dtype)
        return x - as_column(sigma, x) * self.inner_model(x, sigma).chunk(2, 1)[0]


class Numbers(EDM):
    "Its network takes classes by number."

    def forward(self, x, sigma, class_labels=None):
        return self.combine(x, as_column(sigma, x), class_labels, {})

    def __init__(self, label_dim):
        super().__init__(label_dim)
        self.model = ByNumber()


class ByNumber(Inner):
    def __init__(self):
        super().__init__()
        self.rows = nn.Embedding(3, 1)

    def forward(self, x, noise, label=None):
        return super().forward(x, noise + self.rows(label)[:, 0])


def test_a_module_that_is_taken_apart_answers_as_itself():
    torch.manual_seed(0)
    x, sigma = x_sigma()
    for module, cond in ((Biased(3), torch.tensor([0, 2, 1, 0])), (Learned(), None)):
        D = as_denoiser(module.eval(), None if module.__class__ is Biased else 'inner_model')
        own = module(x, sigma) if cond is None else module(x, sigma, torch.eye(3)[cond])
        torch.testing.assert_close(D(x, sigma, cond), own)
        torch.testing.assert_close(branch(D, 2, shape=SHAPE)(x, sigma, cond)[:, 1], own)
    reads = Reads(3)
    reads.model.gain = 2.0
    for module, says in (
        (Twice(3), 'calls it 2 times for an answer.*GuidedDenoiser'),
        (reads, 'uses gain of it'),
    ):
        with pytest.raises(
            ValueError, match=f"cannot be taken apart at its 'model', since it {says}"
        ):
            as_denoiser(module)(x, sigma, torch.tensor([0, 2, 1, 0]))
    for use, says in ((lambda net: net[0], '__getitem__'), (len, '__len__'), (list, '__iter__')):

        class Uses(KDenoiser):
            def forward(self, x, sigma, use=use):
                return use(self.inner_model)

        with pytest.raises(ValueError, match=f'cannot be taken apart.*since it uses {says} of'):
            as_denoiser(Uses(nn.Sequential(Inner())), 'inner_model')(x, sigma)
    with pytest.raises(
        ValueError, match=r'classes by number.*net.n_classes = 3; EDMDenoiser\(net, 0.5\)'
    ):
        as_denoiser(Numbers(3))


@pytest.mark.parametrize(
    'wrap', [lambda m: as_denoiser(m, 'inner_model'), as_denoiser], ids=['inner', 'whole']
)
def test_another_constant_of_the_module_is_refused(wrap, tmp_path):
    D = wrap(KDenoiser(Inner(), 0.5))
    save_denoiser(D, tmp_path)
    x, sigma = x_sigma()
    assert torch.equal(
        load_denoiser(tmp_path, 'cpu', KDenoiser(Inner(), 0.5))(x, sigma), D(x, sigma)
    )
    with pytest.raises(
        ValueError, match='other constants of its module: sigma_data=0.5 there, 1.0 here'
    ):
        load_denoiser(tmp_path, 'cpu', KDenoiser(Inner(), 1.0))


class Slotted:
    __slots__ = ('scale',)

    def __init__(self, scale):
        self.scale = scale

    def get(self):
        return self.scale


def test_two_threads_take_turns_in_a_module_that_is_taken_apart():
    D = as_denoiser(KDenoiser(Inner()), 'inner_model')
    x, sigma = x_sigma()
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: D(x, sigma), range(50)))
    assert all(torch.equal(one, found[0]) for one in found)


@pytest.mark.parametrize(
    'keep',
    [
        lambda m, v: setattr(m, '_scale', v),
        lambda m, v: setattr(m, 'config', SimpleNamespace(scale=v)),
        lambda m, v: setattr(m, '_scale', {'beside': {v, 'what cannot be compared', Opaque}}),
        lambda m, v: setattr(m, 'scale', Slotted(v).get),
        *(
            lambda m, v, keep=keep: setattr(m, 'scale', keep(v))
            for keep in (
                lambda v: collections.deque([v]),
                lambda v: operator.itemgetter(v),
                lambda v: functools.lru_cache(lambda: v),
                lambda v: np.array([v, ''], object),
                lambda v: np.array([v * 1j]),
                lambda v: functools.reduce(lambda a, _: [a], range(45), v),
                lambda v: type('Local', (), {'scale': v, '__module__': '__main__'}),
                lambda v: collections.defaultdict(lambda: v),
                lambda v: [nn.LeakyReLU(v)],
            )
        ),
        lambda m, v: setattr(m, 'scale', functools.partial(max, v)),
        lambda m, v: setattr(m, 'scale', lambda: v),
        lambda m, v: m.register_buffer('scale', torch.tensor(v), persistent=False),
    ],
    ids=[
        'hidden',
        'namespace',
        'set',
        'method',
        'deque',
        'itemgetter',
        'lru_cache',
        'objects',
        'complex',
        'deep',
        'class',
        'defaultdict',
        'modules',
        'partial',
        'function',
        'buffer',
    ],
)
def test_constants_of_every_kind_are_compared(keep, tmp_path):
    def made(v):
        keep(module := KDenoiser(Inner()), v)
        return module

    save_denoiser(as_denoiser(made(2.0), 'inner_model'), tmp_path)
    load_denoiser(tmp_path, 'cpu', made(2.0))
    with pytest.raises(ValueError, match='other constants of its module: .*(scale|config)'):
        load_denoiser(tmp_path, 'cpu', made(3.0))


@pytest.mark.parametrize(
    'wrap', [lambda m: as_denoiser(m, 'inner_model'), as_denoiser], ids=['inner', 'whole']
)
def test_what_cannot_be_pickled_is_distilled_and_read(wrap, tmp_path):
    def made():
        module = KDenoiser(Inner(), 0.5)
        module.kept = [
            math,
            threading.Lock(),
            torch.Generator(),
            logging.getLogger('a'),
            np.sin,
            MappingProxyType({'a': 1}),
        ]
        return module

    teacher = frozen_copy(wrap(made()), SHAPE)
    denoiser_hash(teacher)
    save_denoiser(teacher, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        load_denoiser(tmp_path, 'cpu', made())


class Counts(nn.Module):
    "Keeps a constant in a part of its own, and a counter and a cache beside."

    def __init__(self, sigma_data=0.5):
        super().__init__()
        self.part, self.calls, self.shape = KDenoiser(Inner(), sigma_data), 0, None

    def forward(self, x, sigma):
        self.calls, self.shape = self.calls + 1, x.shape
        return self.part(x, sigma)


def test_what_moves_in_use_is_no_constant(tmp_path):
    module = Counts()
    D = as_denoiser(module)
    save_denoiser(D, tmp_path)
    says = D(*x_sigma())
    save_denoiser(D, tmp_path / 'used')
    for folder in (tmp_path, tmp_path / 'used'):
        assert torch.equal(load_denoiser(folder, 'cpu', module)(*x_sigma()), says)
        with pytest.raises(
            ValueError, match='other constants of its module: part.sigma_data=0.5 there, 2.0 here'
        ):
            load_denoiser(folder, 'cpu', Counts(2.0))
    says = 'calls=0 there, 5 here.*list what moves in use in hash_ignores of its class'
    module.calls = 5  # it was used before it was wrapped
    with pytest.raises(ValueError, match=says):
        load_denoiser(tmp_path, 'cpu', module)
    Silent = type('Silent', (Counts,), dict(hash_ignores=('calls', 'shape')))
    module.__class__ = Silent
    load_denoiser(tmp_path, 'cpu', module)


@pytest.mark.parametrize(
    'wrap',
    [lambda: as_denoiser(EDM(0).eval()), lambda: as_denoiser(KDenoiser(Inner()), 'inner_model')],
    ids=['EDM', 'k-diffusion'],
)
def test_what_is_taken_apart_becomes_onnx(wrap, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    grid = torch.tensor([80.0, 1.0, 0.1], dtype=torch.float64)
    student = Student(wrap(), grid, True, SHAPE)
    export_onnx(student, tmp_path / 'step.onnx')
    x = sample_noise(range(3), SHAPE)
    (got,) = onnxruntime.InferenceSession(tmp_path / 'step.onnx').run(
        None,
        dict(x=x.numpy(), sigma=torch.tensor(1.0).numpy(), sigma_next=torch.tensor(0.0).numpy()),
    )
    with torch.no_grad():
        torch.testing.assert_close(
            torch.from_numpy(got), student.denoiser(x, 1.0), rtol=0, atol=1e-4
        )


def test_frozen_weights_that_training_changes_are_not_the_teachers():
    "EDM2's layers normalise their weights in place in training mode; what is frozen is shared else."
    D = as_denoiser(made('edm2'))
    D.net.gain.requires_grad_(True)
    model = branch(D, 1, shape=SHAPE)
    own, mine = model.denoiser.net, D.net
    before = mine.last.weight.clone()
    assert own.first.weight.data_ptr() == mine.first.weight.data_ptr() and not own.training
    torch.testing.assert_close(model(*x_sigma())[:, -1], D(*x_sigma()))
    model.train()(*x_sigma())
    assert (
        torch.equal(mine.last.weight, before)
        and torch.equal(own.last.weight, before)
        and own.training
    )
    own.train()(torch.zeros(1, *SHAPE), torch.ones(1))  # of its own
    assert torch.equal(mine.last.weight, before) and not torch.equal(own.last.weight, before)


class Drops(Unet):
    "As lucidrains' of classes: some are dropped, in evaluation mode too."

    def forward(self, x, time, classes=None, cond_drop_prob=None):
        return super().forward(x, time) * (
            1.0 if cond_drop_prob == 0 else (torch.rand(len(x)) > 0.5).float()[:, None, None, None]
        )


def test_a_network_that_answers_by_chance_is_named():
    with pytest.warns(
        UserWarning,
        match=r'Drops draws random numbers in evaluation mode.*functools.partial\(net, cond_drop_prob=0.\)',
    ):
        frozen_copy(EDMDenoiser(Drops()), SHAPE)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        frozen_copy(EDMDenoiser(functools.partial(Drops(), cond_drop_prob=0.0)), SHAPE)
    with pytest.raises(
        ValueError, match='no classes.*before it is wrapped, as with net.n_classes = 10'
    ):
        EDMDenoiser(Drops()).check(torch.zeros(1, *SHAPE), 1.0, torch.tensor([0]))


def test_a_compiled_network_is_taken_as_it_is():
    compiled = lambda net: torch.compile(net, backend='eager')
    net = Inner()
    assert (
        EDMDenoiser(compiled(net)).net is net
        and EDMDenoiser(functools.partial(compiled(Told()), told=1)).net.net.out.out_features == 2
    )
    for take in (EDMDenoiser, as_denoiser):
        with pytest.raises(TypeError, match='compiled already.*compile it once'):
            take(compiled(compiled(net)))


class Elucidated(Karras):
    "lucidrains': its forward is the loss."

    def __init__(self, net):
        nn.Module.__init__(self)
        self.net = net

    def forward(self, images, *args, **more):
        return images.mean()

    def sample(self, n): ...


class Loss(nn.Module):
    def forward(self, x, sigma):
        return x.mean()


class Frames(nn.Module):
    "[B, T, C, H, W]."

    def __init__(self):
        super().__init__()
        self.out = nn.Conv2d(3, 3, 1)

    def forward(self, x, noise, cond=None):
        return self.out(x.flatten(0, 1)).unflatten(0, x.shape[:2])


@pytest.mark.parametrize(
    'make, says',
    [
        (
            lambda: as_denoiser(Elucidated(Inner())),
            r'a Elucidated trains its network.*wrap that as EDMDenoiser\(x.net, x.sigma_data\)',
        ),
        (
            lambda: frozen_copy(as_denoiser(Loss()), SHAPE),
            'Loss answers with one number, as a loss does',
        ),
        (lambda: as_denoiser(EDM), 'got the class EDM: make one of it'),
        (lambda: EDMDenoiser(EDM), 'got the class EDM'),
        (
            lambda: as_denoiser(dict(step=1, ema=EDM())),
            r"got a dict: pass the module in it, as \['ema'\]",
        ),
        (
            lambda: as_denoiser('edm.pkl'),
            "'edm.pkl': read it, a pickle in the checkout of its authors .*04_beside_others",
        ),
        (
            lambda: frozen_copy(EDMDenoiser(Frames()), (3, 4, 8, 8)),
            r'a video network may take other axes first, as \(T, C, H, W\)',
        ),
    ],
    ids=range(7),
)
def test_what_is_no_denoiser_is_told_what_is(make, says):
    with pytest.raises((TypeError, ValueError), match=says):
        make()


def test_what_is_scaled_twice_is_named():
    for wrap in (EDMDenoiser, FlowDenoiser):
        with pytest.warns(
            UserWarning,
            match='EDM seems to be a denoiser already, since it has sigma_data, and .* as_denoiser takes it as it is',
        ):
            wrap(EDM())
    with pytest.warns(UserWarning, match='FlowDenoiser seems to be a denoiser already, and'):
        EDMDenoiser(FlowDenoiser(Inner()))


class Blocks(Inner):
    "EDM's U-Nets keep their blocks in dictionaries."

    def __init__(self):
        super().__init__()
        self.enc = nn.ModuleDict(dict(aux=Conv(8, 8), block=nn.Sequential(Conv(3, 8), Conv(8, 3))))

    def forward(self, x, noise, cond=None):
        return super().forward(self.enc['block'](x), noise)


def test_blocks_in_a_dictionary_are_computed_again():
    net = Blocks()
    assert blocks(net) == [net.enc['block']]
    x, sigma = x_sigma()
    out = net(x, sigma)
    recompute_blocks(net)
    assert torch.equal(net(x, sigma), out)


class Vectors(nn.Module):
    "EDM's formulas for samples of one axis."

    sigma_data, label_dim = 0.5, 3

    def __init__(self):
        super().__init__()
        self.model = nn.Bilinear(2, 3, 2)

    def forward(self, x, sigma, rows):
        return EDM.combine(self, x, sigma[:, None], rows, {})


def test_samples_of_one_axis_are_edms_too():
    module, x, label = Vectors(), torch.randn(4, 2), torch.tensor([0, 2, 1, 0])
    module.model.forward = lambda x, noise, rows, f=module.model.forward: (
        f(x, rows) + noise[:, None]
    )
    D = as_denoiser(module)
    torch.testing.assert_close(
        D(x, torch.ones(4), label), module(x, torch.ones(4), torch.eye(3)[label])
    )
    assert type(D) is EDMDenoiser


def test_a_module_that_names_its_range_of_levels_keeps_to_it():
    module = made('ve')
    module.sigma_min, module.sigma_max = 0.02, torch.tensor(50.0)
    fit = lambda D, *given: (
        (cfg := SFDConfig().fitted(D, SHAPE, frozenset(given))) and (cfg.sigma_min, cfg.sigma_max)
    )
    assert fit(as_denoiser(module)) == (0.02, 50.0) and fit(as_denoiser(module), 'sigma_min') == (
        0.006,
        50.0,
    )
    assert fit(as_denoiser(made('edm'))) == (0.006, 80.0)


def test_a_network_made_otherwise_is_known_by_its_answers(tmp_path):
    "Whatever in it differs: a student's weights are the same."

    class Net(nn.Module):
        def __init__(self, act, time=1.0):
            super().__init__()
            self.a, self.act, self.b, self.norm = (
                nn.Linear(4, 16),
                act,
                nn.Linear(16, 3),
                nn.BatchNorm1d(16),
            )
            self.times = lambda t: time * t

        def forward(self, x, t, cond=None):
            return self.b(
                self.act(
                    self.norm(
                        self.a(torch.cat([x, self.times(t).reshape(-1, 1).expand(len(x), 1)], 1))
                    )
                )
            )

    student = Student(
        EDMDenoiser(Net(nn.LeakyReLU(0.1)), 0.5).requires_grad_(False),
        torch.tensor([80.0, 1.0, 0.006]),
        False,
        (3,),
    )
    student.save(tmp_path)  # in training mode: saving moves no statistics
    assert (
        student.denoiser.net.training and not student.denoiser.eval().net.norm.num_batches_tracked
    )
    assert torch.equal(
        load_student(tmp_path, 'cpu', lambda: Net(nn.LeakyReLU(0.1))).sample(4), student.sample(4)
    )
    for act, time in ((nn.LeakyReLU(0.3), 1.0), (nn.ELU(), 1.0), (nn.LeakyReLU(0.1), 16.0)):
        with pytest.raises(ValueError, match='answers otherwise than the one that was stored'):
            load_student(tmp_path, 'cpu', lambda: Net(act, time))
    student.denoiser.conditions = lambda seeds: None  # not kept: nobody can ask again
    with pytest.warns(UserWarning, match='set denoiser.conditions again'):
        student.save(tmp_path, overwrite=True)
    assert 'answers' not in read_json(tmp_path / 'config.json')['about']['student']


class Tied(nn.Module):
    "Its output layer has the weight of its first one."

    sample_shape = (4,)

    def __init__(self):
        super().__init__()
        self.first, self.time, self.last = nn.Linear(4, 4), nn.Linear(1, 4), nn.Linear(4, 4)
        self.last.weight = self.first.weight

    def forward(self, x, noise, cond=None):
        return self.last((self.first(x) + self.time(noise[:, None])).tanh())


@pytest.mark.parametrize('K', [1, 2])
def test_a_weight_that_branches_have_parted_is_loaded_as_two(tmp_path, K):
    torch.manual_seed(0)
    cfg = SFDConfig(nfe=2, K=K, steps=2, batch=4, lr=1e-2, shape=(4,))
    student = sfd(EDMDenoiser(Tied(), 0.5), cfg, show=False)
    student.save(tmp_path)
    again = load_student(tmp_path, 'cpu', Tied)
    assert (again.denoiser.net.last.weight is again.denoiser.net.first.weight) == (K == 1)
    assert torch.equal(again.sample(4), student.sample(4))


class Scaled(nn.Module):
    "What it answers hangs on a constant of its class, as well as on its weights."

    scale = 1.0

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Linear(3, 3)

    def forward(self, x, t, cond=None):
        return self.scale * self.a(x)


def test_a_teacher_made_otherwise_is_known_by_its_answers(tmp_path, monkeypatch):
    "By a run's folder, a search, and banks on disk or in memory; a note without answers is taken."
    cfg = SFDConfig(nfe=2, K=2, substeps=2, steps=1, batch=4, pool=4, shape=(3,), afs=False)
    teacher = lambda: EDMDenoiser(Scaled(), 0.5)
    keep = dict(folder=tmp_path / 'bank', show=False)
    ways = [
        lambda: sfd(teacher(), cfg, folder=tmp_path / 'run', show=False),
        lambda: teacher_bank(teacher(), cfg, **keep),
        lambda: search_weights(teacher(), cfg, 1, tmp_path / 'search', n_samples=4, show=False),
    ]
    bank = [way() for way in ways][1]
    monkeypatch.setattr(Scaled, 'scale', 2.0)
    for way in (*ways, lambda: sfd(teacher(), cfg, bank=bank, show=False)):
        with pytest.raises(
            ValueError, match=r'the network answers [\d.]+% away there: its code, a constant'
        ):
            way()
    note = read_json(tmp_path / 'run' / 'run.json')
    write_json(tmp_path / 'run' / 'run.json', {k: v for k, v in note.items() if k != 'answers'})
    assert len(note['answers']) == 2 and ways[0]().sample(2).isfinite().all()
    assert not same_run(
        note | dict(answers=[[1.0] * 6, None]), note | dict(answers=[[1.0] * 12, [1.0] * 6])
    )  # of another shape, not known


class Remembers(Scaled):
    "What its calls leave in it is no difference, and no part of its hash."

    def __init__(self):
        super().__init__()
        self.calls, self.tables = 0, {}

    def forward(self, x, t, cond=None):
        self.calls += 1
        return (
            super().forward(x, t)
            + self.tables.setdefault(x.shape, torch.ones(3))
            + (0.0 if cond is None else cond)
        )


def test_any_denoiser_is_asked_and_calls_are_no_difference():
    cfg = SFDConfig(nfe=2, K=2, substeps=2, steps=1, batch=4, pool=4, shape=(3,), afs=False)
    teacher = EDMDenoiser(Remembers(), 0.5)
    assert (
        sfd(teacher, cfg, bank=teacher_bank(teacher, cfg, show=False), show=False)
        .sample(2)
        .isfinite()
        .all()
    )
    search_weights(teacher, cfg, 1, n_samples=4, show=False)

    class Mine(EDMDenoiser):
        pass

    drawn = EDMDenoiser(Remembers(), 0.5)
    drawn.conditions = lambda seeds: torch.ones(len(seeds), 3)

    class Narrow(EDMDenoiser):
        def forward(self, x, sigma, cond=None):
            if sigma > 5:
                raise ValueError('not trained above 5')
            return super().forward(x, sigma, cond)

    told = answers(EDMDenoiser(Remembers(), 0.5), (3,), drawn.conditions)
    assert told == answers(drawn, (3,)) and drawn.net.calls == 0 and len(told) == 18
    with torch.inference_mode():
        frozen = frozen_copy(EDMDenoiser(MLP(3)), (3,))
    before, frozen.sigma_data = denoiser_hash(frozen), 0.6
    assert denoiser_hash(frozen) != before, 'nothing is kept where calls leave nothing'
    narrow = answers(Narrow(MLP(3)), (3,))
    assert all(narrow[:12]) and narrow[12:] == [0.0] * 6
    asked = [
        answers(D, (3,))
        for D in (
            teacher,
            drawn,
            Mine(MLP(3)),
            GaussianDenoiser(0.0, 0.5),
            lambda x, sigma, cond=None: torch.randn_like(x),
        )
    ]
    assert [a is None for a in asked] == [False] * 4 + [True] and asked[0] != asked[1]


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 3)

    def forward(self, x, t):
        return self.a(torch.cat([x, t.reshape(-1, 1).expand(x.shape[0], 1)], 1))


def test_a_scripted_network_and_one_without_gradients_say_so():
    with pytest.raises(TypeError, match='pass the module that was scripted'):
        EDMDenoiser(torch.jit.script(Dense()))
    silent = Dense()
    silent.forward = torch.no_grad()(silent.forward)
    with pytest.raises(ValueError, match='this loss has no gradient'):
        sfd(EDMDenoiser(silent), SFDConfig(K=1, steps=2, batch=4, shape=(3,)), show=False)


def test_a_shape_that_is_not_the_networks_own_is_said():
    net = Dense()
    net.sample_shape = (2,)
    with pytest.warns(UserWarning, match=r'shape=\(3,\) are asked for.*its own are \(2,\)'):
        frozen_copy(EDMDenoiser(net), (3,))
    with warnings.catch_warnings(action='error'):
        frozen_copy(load_teacher(device='cpu'), (1, 28, 28))  # a network that takes many shapes


def test_the_order_of_entries_and_buffers_changes_no_constants(tmp_path):
    def made(entries):
        module = KDenoiser(Inner())
        module.kept = dict(entries)
        for i in range(9):
            module.register_buffer(f'b{i}', torch.tensor(float(i)), persistent=False)
        return module

    entries = [('a', 1.0), ('b', 2.0)]
    save_denoiser(as_denoiser(made(entries), 'inner_model'), tmp_path)
    load_denoiser(tmp_path, 'cpu', made(entries[::-1]))
    kept = [k for k in read_json(tmp_path / 'config.json')['kept'] if k.startswith('b')]
    assert kept == [f'b{i}' for i in range(9)]
