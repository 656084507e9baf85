"The K-branch head: values on a matrix of networks and parameterisations, layouts, folding, and bad input."

import copy
import pickle

import pytest
import torch
from bdense_nb.diffusion.denoisers import (
    EDMDenoiser,
    GaussianDenoiser,
    GuidedDenoiser,
    MixtureDenoiser,
    ModuleDenoiser,
    NetDenoiser,
    VPDenoiser,
)
from bdense_nb.diffusion.nets import MLP, UNet
from bdense_nb.diffusion.samplers import trajectory
from bdense_nb.diffusion.schedules import linear_alpha_bar
from bdense_nb.distillation.branches import BranchedDenoiser, branch, fold, narrow, widen
from bdense_nb.distillation.sfd import SFDConfig, sfd
from bdense_nb.interop.diffusers import from_diffusers
from bdense_nb.training.devices import recompute_blocks
from conftest import in_pairs
from torch import nn
from torch.optim.swa_utils import AveragedModel

NETS = {
    'unet': (lambda: UNet(1, (32,)), (1, 4, 4), 0),
    'unet, classes': (lambda: UNet(3, (32,), n_classes=5), (3, 4, 4), 5),
    'unet, two levels, no patches': (lambda: UNet(2, (8, 32), patch=1), (2, 4, 4), 0),
    'mlp': (lambda: MLP(2, 16, 1), (2,), 0),
    'mlp, classes': (lambda: MLP(3, 16, 1, n_classes=4), (3,), 4),
}
WRAPS = {
    'edm': EDMDenoiser,
    **{p: lambda net, p=p: VPDenoiser(net, linear_alpha_bar(), p) for p in ('eps', 'x0', 'v')},
}


def teacher_of(net='mlp', wrap='edm', seed=0):
    "A frozen teacher whose output layer is not zero."
    torch.manual_seed(seed)
    make, shape, n_classes = NETS[net]
    net = make()
    nn.init.normal_(net.out.weight, std=0.2)
    nn.init.normal_(net.out.bias)
    return WRAPS[wrap](net).requires_grad_(False).eval(), shape, n_classes


def inputs(shape, n_classes, dtype=torch.float32):
    g = torch.Generator().manual_seed(1)
    sigma = torch.tensor([0.02, 1.0, 50.0], dtype=dtype)
    x = torch.randn(3, *shape, generator=g).to(dtype) * sigma.reshape(-1, *[1] * len(shape))
    return x, sigma, torch.randint(n_classes, (3,), generator=g) if n_classes else None


def storages(model):
    return {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}


# --- every branch starts as the teacher, and folding gives the teacher back ---


@pytest.mark.parametrize('net, wrap, K', in_pairs(NETS, WRAPS, [1, 2, 5]))
def test_start_and_fold(net, wrap, K):
    teacher, shape, n_classes = teacher_of(net, wrap)
    x, sigma, label = inputs(shape, n_classes)
    for dtype, tol in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
        teacher, x, sigma = teacher.to(dtype), x.to(dtype), sigma.to(dtype)
        student = branch(teacher, K)
        with torch.no_grad():
            goal, got, folded = (
                teacher(x, sigma, label),
                student(x, sigma, label),
                fold(student)(x, sigma, label),
            )
        assert got.shape == (3, K, *shape) and got.dtype == dtype
        scale = goal.abs().max()
        assert (got - goal[:, None]).abs().max() <= tol * scale
        assert (folded - goal).abs().max() <= tol * scale
    assert student.n_classes == n_classes


@pytest.mark.parametrize('net', NETS)
def test_fold_keeps_the_endpoint(net):
    teacher, shape, n_classes = teacher_of(net)
    student = branch(teacher, 3).train()
    torch.manual_seed(2)
    with torch.no_grad():
        for p in student.parameters():
            p.add_(0.05 * torch.randn_like(p))
    plain = fold(student)
    assert type(plain) is type(teacher) and type(plain.net) is type(teacher.net)
    assert {k: v.shape for k, v in plain.state_dict().items()} == {
        k: v.shape for k, v in teacher.state_dict().items()
    }
    assert not plain.training and not any(p.requires_grad for p in plain.parameters())
    assert student.training and all(p.requires_grad for p in student.parameters()), (
        'folding left the student alone'
    )
    assert not storages(plain) & storages(student)
    x, sigma, label = inputs(shape, n_classes)
    with torch.no_grad():
        every, end = student.eval()(x, sigma, label), plain(x, sigma, label)
    torch.testing.assert_close(end, every[:, -1], rtol=1e-5, atol=1e-5)
    assert all((end - every[:, k]).abs().max() > 1e-3 for k in range(2)), (
        'the other branches differ'
    )


def test_branches_are_independent():
    "Each branch's rows move that branch alone, through pixel_shuffle too."
    teacher, shape, _ = teacher_of('unet')
    x, sigma, _ = inputs(shape, 0)
    rows = len(teacher.net.out.weight)
    for k in range(3):
        student = branch(teacher, 3).requires_grad_(False)
        first = student(x, sigma)
        student.denoiser.net.out.bias[k * rows : (k + 1) * rows] += 1
        moved = (student(x, sigma) - first).abs().flatten(2).amax((0, 2))
        assert (moved > 0.1).tolist() == [j == k for j in range(3)]


@pytest.mark.parametrize('patch', [1, 2])
def test_channels_keep_their_colours(patch):
    "Branch-major rows: a network that paints one colour per channel paints it in every branch."
    net = UNet(3, (32,), patch=patch).requires_grad_(False)
    colour = torch.tensor([0.9, 0.1, -0.7])
    net.out.bias.copy_(colour.repeat_interleave(patch**2))
    wide = copy.deepcopy(net)
    wide.out = widen(net.out, 4)
    picture = wide(torch.zeros(1, 3, 4, 4), torch.zeros(1)).unflatten(1, (4, 3))
    assert torch.equal(picture, colour.reshape(1, 1, 3, 1, 1).expand_as(picture))


def test_teacher_is_neither_changed_nor_shared():
    teacher, *_ = teacher_of('unet, classes')
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    student = branch(teacher, 3)
    assert not storages(teacher) & storages(student)
    with torch.no_grad():
        for p in student.parameters():
            p.add_(1)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert not any(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize('K', [1, 2, 4, 8])
@pytest.mark.parametrize('net', ['unet', 'unet, classes', 'unet, two levels, no patches'])
def test_parameters_follow_the_formula(net, K):
    teacher, *_ = teacher_of(net)
    c_out, c_in, *_ = teacher.net.out.weight.shape
    extra = sum(p.numel() for p in branch(teacher, K).parameters()) - sum(
        p.numel() for p in teacher.parameters()
    )
    assert extra == (K - 1) * (9 * c_in * c_out + c_out)


def test_one_network_call_whatever_K():
    teacher, shape, _ = teacher_of('mlp')
    student, calls = branch(teacher, 6), []
    student.denoiser.net.register_forward_hook(lambda *_: calls.append(1))
    student(*inputs(shape, 0)[:2])
    assert len(calls) == 1


def test_named_layer():
    "Another network's output layer may have another name, at any depth."

    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.ModuleDict({'head': nn.Linear(2, 2)})

        def forward(self, x, c_noise, label=None):
            return self.body['head'](x)

    teacher = EDMDenoiser(Other())
    student = branch(teacher, 3, 'body.head', (2,))
    x = torch.randn(4, 2)
    torch.testing.assert_close(student(x, 1.0), teacher(x, 1.0)[:, None].expand(-1, 3, -1))
    torch.testing.assert_close(fold(student)(x, 1.0), teacher(x, 1.0))
    assert branch(teacher, 3, shape=(2,)).layer == 'body.head'
    for layer in (None, 'body.head'):
        with pytest.raises(
            ValueError, match='Other does not say what samples it takes; pass shape='
        ):
            branch(teacher, 3, layer)


# --- layers ---


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize(
    'make, shape',
    [
        (lambda b: nn.Linear(4, 3, bias=b), (4,)),
        (lambda b: nn.Conv1d(4, 3, 3, bias=b), (4, 5)),
        (lambda b: nn.Conv2d(4, 3, 3, padding=1, padding_mode='circular', bias=b), (4, 5, 5)),
        (lambda b: nn.Conv3d(4, 3, 1, stride=2, bias=b), (4, 3, 3, 3)),
    ],
)
def test_widen_and_narrow(make, shape, bias):
    layer, x = make(bias), torch.randn(2, *shape)
    wide = widen(layer, 3)
    assert type(wide) is type(layer) and (wide.bias is None) == (not bias)
    for part in wide(x).chunk(3, 1):
        torch.testing.assert_close(part, layer(x))
    back = narrow(wide, 3)
    assert torch.equal(back.weight, layer.weight) and repr(back) == repr(layer)


# --- bad input ---


@pytest.mark.parametrize('K', [0, -1, 2.0, True, '2', None])
def test_bad_K(K):
    teacher, *_ = teacher_of()
    with pytest.raises(ValueError, match='K must be'):
        branch(teacher, K)
    with pytest.raises(ValueError, match='K must be'):
        narrow(nn.Linear(2, 2), K)


@pytest.mark.parametrize('layer', ['head', 'out.weight', 'net.out'])
def test_unknown_layer(layer):
    with pytest.raises(ValueError, match='has no layer .*one of: .*out'):
        branch(teacher_of()[0], 2, layer)


@pytest.mark.parametrize('layer', ['norm', 'down', 'embed.classes'])
def test_not_a_layer_that_widens(layer):
    with pytest.raises(TypeError, match='only a layer whose weight has one row for each output'):
        branch(teacher_of('unet, classes')[0], 2, layer)


@pytest.mark.parametrize(
    'layer',
    [nn.Conv2d(4, 4, 3, groups=2), nn.ConvTranspose2d(4, 4, 3), nn.Embedding(4, 4), nn.Identity()],
)
def test_not_widened(layer):
    with pytest.raises(TypeError, match='only a layer whose weight has one row for each output'):
        widen(layer, 2)


@pytest.mark.parametrize(
    'teacher',
    [
        GaussianDenoiser(0.0, 1.0),
        MixtureDenoiser(torch.zeros(1, 2), torch.ones(1), torch.ones(1)),
        MLP(2, 16, 1),
        None,
    ],
)
def test_needs_a_network_denoiser(teacher):
    with pytest.raises(TypeError, match=f'network denoiser.*{type(teacher).__name__}'):
        branch(teacher, 2)


def test_not_twice_and_not_backwards():
    teacher, *_ = teacher_of()
    assert isinstance(teacher, NetDenoiser) and isinstance(branch(teacher, 2), BranchedDenoiser)
    with pytest.raises(TypeError, match='BranchedDenoiser'):
        branch(branch(teacher, 2), 2)
    for plain in (teacher, fold(branch(teacher, 2)), teacher.net):
        with pytest.raises(TypeError, match='fold needs a branched student'):
            fold(plain)
    with pytest.raises(ValueError, match='7 rows.*K=2'):
        narrow(nn.Linear(2, 7), 2)


def test_half_precision_is_refused():
    with pytest.raises(TypeError, match='bfloat16.*float'):
        branch(teacher_of()[0].bfloat16(), 2)


# --- heads of other networks ---


class Head(nn.Module):
    "A body of two layers and a head; `after` is what a network does behind the head."

    def __init__(self, head, after=lambda out, x, noise: out, before=lambda h: h):
        super().__init__()
        self.body = nn.Linear(8, 8)
        self.head = head
        self.after = after
        self.before = before

    def forward(self, x, noise, label=None):
        return self.after(self.head(self.before(self.body(x).tanh())), x, noise)


def unpatchify(out, x, noise):
    "As in DiT: tokens [B, h*w, p*p*C] with the channels last -> [B, C, H, W]."
    p = out.unflatten(1, (2, 2)).unflatten(3, (4, 4, 3))
    return torch.einsum('nhwpqc->nchpwq', p).reshape(len(p), 3, 8, 8)


class EDMConv(nn.Module):
    "A convolution of a class of its own; its bias is added by hand."

    def __init__(self, c_in, c_out):
        super().__init__()
        self.c_in, self.out_channels = c_in, c_out
        self.weight = nn.Parameter(torch.randn(c_out, c_in, 3, 3))
        self.bias = nn.Parameter(torch.randn(c_out))

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight, padding=1).add_(self.bias.reshape(1, -1, 1, 1))


class Images(nn.Module):
    "A convolutional body, and a head."

    def __init__(self, head, after=lambda out: out):
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3, padding=1)
        self.head = head
        self.after = after

    def forward(self, x, noise, label=None):
        return self.after(self.head(self.body(x).tanh() * noise[:, None, None, None]))


class Patches(nn.Module):
    "Images to tokens and back, channels last: `nhwpqc`."

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.head = nn.Linear(8, 48)

    def forward(self, x, noise, label=None):
        tokens = self.embed(x).flatten(2).transpose(1, 2).tanh() * noise[:, None, None]
        return unpatchify(self.head(tokens), x, noise)


WORKS = {
    'nhwpqc': (Patches, (3, 8, 8), 'head'),
    'tokens': (lambda: Head(nn.Linear(8, 8)), (5, 8), 'head'),
    'images with the channels last': (lambda: Head(nn.Linear(8, 8)), (4, 4, 8), 'head'),
    'a learned variance is dropped': (
        lambda: Images(nn.Conv2d(4, 6, 1), lambda out: out.chunk(2, 1)[0]),
        (3, 8, 8),
        'head',
    ),
    'a class of its own': (lambda: Images(EDMConv(4, 3)), (3, 8, 8), 'head'),
    'no bias': (lambda: Images(nn.Conv2d(4, 3, 1, bias=False)), (3, 8, 8), 'head'),
    'pooled': (
        lambda: Images(nn.Conv2d(4, 6, 1), lambda out: out.unflatten(1, (3, 2)).mean(2)),
        (3, 8, 8),
        'head',
    ),
    'the last that can be widened': (
        lambda: Images(nn.Conv2d(4, 4, 2, groups=2, padding='same'), lambda out: out[:, :3]),
        (3, 8, 8),
        'body',
    ),
    'bilinear': (lambda: Bilinear(), (2,), 'head'),
}


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 8)

    def forward(self, x, noise, label=None):
        return self.head(self.head(x).tanh())


class Bilinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Bilinear(2, 2, 2)

    def forward(self, x, noise, label=None):
        return self.head(x, x * noise[:, None])


def foreign(name, wrap=EDMDenoiser):
    torch.manual_seed(0)
    make, shape, layer = WORKS[name]
    return wrap(make()).requires_grad_(False).eval(), shape, layer


@pytest.mark.parametrize(
    'name, wrap, named',
    in_pairs(
        [n for n in WORKS if 'last that can' not in n],
        [EDMDenoiser, ModuleDenoiser, lambda net: VPDenoiser(net, linear_alpha_bar(), 'v')],
        [False, True],
    ),
)
def test_heads_of_other_networks(name, wrap, named):
    "Every branch starts as the teacher, each is moved by its own rows, and folding keeps the last."
    teacher, shape, layer = foreign(name, wrap)
    x, sigma, _ = inputs(shape, 0)
    student = branch(teacher, 4, layer if named else None, shape)
    goal, got = teacher(x, sigma), student(x, sigma)
    assert student.layer == layer and got.shape == (3, 4, *shape)
    assert (got - goal[:, None]).abs().max() <= 1e-5 * goal.abs().max()
    with torch.no_grad():
        wide = student.denoiser.net.get_submodule(layer)
        wide.weight += torch.randn(wide.weight.shape, generator=torch.Generator().manual_seed(3))
    every = student(x, sigma)
    assert all(
        (every[:, k] - every[:, -1]).abs().max() > 0.01 * every.abs().max() for k in range(3)
    )
    assert (fold(student)(x, sigma) - every[:, -1]).abs().max() <= 1e-5 * every.abs().max()
    assert not fold(student).net.get_submodule(layer)._forward_hooks


def test_a_head_that_cannot_be_widened_leaves_the_layer_before():
    teacher, shape, layer = foreign('the last that can be widened')
    scaled = lambda net: EDMDenoiser(net)
    with pytest.raises(
        ValueError,
        match="Images cannot be given branches: its output layer 'head' has groups=2.*take K=1",
    ):
        branch(scaled(teacher.net), 2, shape=shape)


@pytest.mark.parametrize(
    'head, says',
    [
        (
            nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 3, 1)),
            'computed from others.*remove_parametrizations',
        ),
        (nn.Conv2d(4, 4, 1, groups=2), 'groups=2'),
        (nn.ConvTranspose2d(4, 3, 1), 'one row for each input'),
    ],
    ids=['weight norm', 'groups', 'transposed'],
)
def test_an_output_layer_that_cannot_be_widened_is_named(head, says):
    net = Images(head)
    net.body = nn.Conv2d(len(head.bias), 4, 3, padding=1)
    with pytest.raises(
        ValueError,
        match=f"Images cannot be given branches: its output layer 'head' has .*{says}.*take K=1",
    ):
        branch(EDMDenoiser(net), 2, shape=(len(head.bias), 8, 8))
    assert branch(EDMDenoiser(net), 1).K == 1


@pytest.mark.filterwarnings('ignore')
class Keeping(torch.nn.Module):
    "Keeps what it computed, as those do that show attention maps."

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(2, 2)
        self.norm = torch.nn.BatchNorm1d(2)
        self.maps = []

    def forward(self, x, sigma, cond=None):
        self.last = self.head(self.norm(x))
        self.maps = [self.last * 2]
        return self.last


def test_a_network_that_keeps_an_activation_is_distilled():
    teacher = EDMDenoiser(Keeping(), 0.5)
    cfg = SFDConfig(K=2, substeps=2, steps=3, batch=8, shape=(2,))
    student = sfd(teacher, cfg, show=False)
    assert student.sample(3).shape == (3, 2)
    # its norm keeps the statistics that the teacher has of all noise levels
    norms = [d.net.norm for d in (teacher, student.denoiser)]
    assert torch.equal(*(norm.running_mean for norm in norms))


def test_a_network_that_changes_its_input_is_refused():
    class Scales(Keeping):
        def forward(self, x, sigma, cond=None):
            return self.head(x.mul_(0.5))

    with pytest.raises(ValueError, match='Scales changes what it is given'):
        sfd(ModuleDenoiser(Scales()), SFDConfig(steps=1, batch=2, shape=(2,)), show=False)


def test_the_old_weight_norm_is_refused_in_our_words():
    net = Images(nn.utils.weight_norm(nn.Conv2d(4, 3, 1)))
    with pytest.raises(ValueError, match=r'remove_weight_norm\(layer\), or use'):
        branch(EDMDenoiser(net), 2, shape=(3, 8, 8))
    nn.utils.remove_weight_norm(net.head)
    assert branch(EDMDenoiser(Images(net.head)), 2, shape=(3, 8, 8)).K == 2


REFUSED = {
    'a skip connection behind the head': (
        Head(nn.Linear(8, 8), lambda out, x, noise: out + x),
        (5, 8),
        'head',
        'stops with RuntimeError',
    ),
    'a scale from the noise level': (
        Head(nn.Linear(8, 8), lambda out, x, noise: out * noise[:, None, None]),
        (5, 8),
        'head',
        'stops with RuntimeError',
    ),
    'tokens of all samples in one axis': (
        Head(
            nn.Linear(8, 8), lambda out, x, noise: out.reshape(-1, 5, 8), lambda h: h.flatten(0, 1)
        ),
        (5, 8),
        'head',
        'does not answer as',
    ),
    'samples are mixed': (
        Head(nn.Linear(8, 8), lambda out, x, noise: out - out.mean(0)),
        (8,),
        'head',
        'does not answer as',
    ),
    'another layer': (
        Head(nn.Linear(8, 8), lambda out, x, noise: out + x),
        (8,),
        'body',
        'stops with',
    ),
    'without influence': (
        Head(nn.Linear(8, 8), lambda out, x, noise: out * 0),
        (8,),
        'head',
        'does not depend on it',
    ),
    'not called': (
        Head(nn.Linear(8, 8), lambda out, x, noise: x),
        (8,),
        'spare',
        'does not depend on it',
    ),
    'called twice': (Twice(), (8,), 'head', 'answers with shape'),
    'NaN': (
        Head(nn.Linear(8, 8), lambda out, x, noise: out / 0 * 0),
        (8,),
        'head',
        'NaN or infinity',
    ),
}


@pytest.mark.parametrize('name', REFUSED)
def test_where_it_cannot_work_it_is_refused(name):
    net, shape, layer, reason = REFUSED[name]
    net = copy.deepcopy(net)
    if layer == 'spare':
        net.spare = nn.Linear(8, 8)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(
        ValueError, match=f'cannot be given 4 branches at its layer {layer!r}: .*{reason}.*take K=1'
    ):
        branch(EDMDenoiser(net), 4, layer, shape)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    x, sigma, _ = inputs(shape, 0)
    torch.testing.assert_close(
        branch(EDMDenoiser(net), 1)(x, sigma)[:, 0], EDMDenoiser(net)(x, sigma), equal_nan=True
    )  # one branch needs no layer


def test_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r'shape=\(3,\) does not fit the teacher'):
        branch(teacher_of()[0], 2, shape=(3,))
    with pytest.raises(ValueError, match=r'such samples; a picture has a shape \(C, H, W\)'):
        branch(EDMDenoiser(Images(nn.Conv2d(3, 3, 1))), 2, shape=(16,))


def test_the_check_leaves_no_trace():
    "Neither in the random numbers, nor in the modes of modules, nor in the weights."
    teacher, *_ = teacher_of('unet, classes')
    teacher.net.middle.train()
    modes = [m.training for m in teacher.modules()]
    state = torch.get_rng_state()
    student = branch(teacher, 3)
    assert (
        torch.equal(torch.get_rng_state(), state)
        and [m.training for m in student.denoiser.modules()] == modes
    )
    assert all(
        torch.equal(v[: len(teacher.state_dict()[k])], teacher.state_dict()[k])
        for k, v in student.denoiser.state_dict().items()
    )
    assert list(student.denoiser.state_dict()) == list(teacher.state_dict())


def test_diffusers():
    diffusers = pytest.importorskip('diffusers')
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=('DownBlock2D', 'AttnDownBlock2D'),
        up_block_types=('AttnUpBlock2D', 'UpBlock2D'),
    )
    dit = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        norm_num_groups=4,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=5,
    )

    class Called(nn.Module):
        n_classes = 5

        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, z, index, label=None):
            return self.model(z, timestep=index.long(), class_labels=label).sample[:, :4]

    for p in dit.parameters():
        nn.init.normal_(p, std=0.3)
    for teacher, layer, shape, label in (
        (from_diffusers(unet, diffusers.DDPMScheduler()), 'unet.conv_out', (1, 8, 8), None),
        (
            VPDenoiser(Called(dit), linear_alpha_bar()),
            'model.proj_out_2',
            (4, 8, 8),
            torch.tensor([0, 4, 2]),
        ),
    ):
        teacher.eval()
        x, sigma, _ = inputs(shape, 0)
        student = branch(teacher, 4)
        with torch.no_grad():
            goal, got, folded = (
                teacher(x, sigma, label),
                student(x, sigma, label),
                fold(student)(x, sigma, label),
            )
        assert (
            student.layer == layer
            and (got - goal[:, None]).abs().max() <= 1e-5 * goal.abs().max()
            and (folded - goal).abs().max() <= 1e-5 * goal.abs().max()
        )


# --- what a training run does with it ---


def test_flags_are_kept():
    "Of a student with adapters only these are trained; a copy of a frozen teacher is trained as a whole."
    teacher, *_ = teacher_of()
    assert all(p.requires_grad for p in branch(teacher, 2).parameters())
    student = copy.deepcopy(teacher)
    student.net.layers[0].requires_grad_(True)
    with pytest.warns(
        UserWarning, match="output layer 'out' is frozen, so all K=2 branches will stay equal"
    ):
        kept = branch(student, 2)
    assert [n for n, p in kept.denoiser.named_parameters() if p.requires_grad] == [
        'net.layers.0.weight',
        'net.layers.0.bias',
    ]
    student.net.out.weight.requires_grad_(True)
    kept = branch(student, 2).denoiser.net.out
    assert kept.weight.requires_grad and not kept.bias.requires_grad
    assert [p.requires_grad for p in branch(student, 1).parameters()] == [
        p.requires_grad for p in student.parameters()
    ]


@pytest.mark.parametrize(
    'net, wrap', [('unet, classes', 'edm'), ('mlp, classes', 'eps'), ('mlp', 'v')]
)
def test_compiles_without_a_break(net, wrap):
    teacher, shape, n_classes = teacher_of(net, wrap)
    x, sigma, label = inputs(shape, n_classes)
    student = branch(teacher, 3)
    for model, s in ((teacher, 2.0), (student, sigma)):
        torch._dynamo.reset()
        fast = torch.compile(model, fullgraph=True, backend='eager')
        torch.testing.assert_close(fast(x, s, label), model(x, s, label))
    assert all(
        a.equal(b)
        for a, b in zip(student.state_dict().values(), copy.deepcopy(student).state_dict().values())
    )


def test_guidance_compiles_without_a_break():
    teacher, shape, n_classes = teacher_of('mlp, classes', 'eps')
    x, sigma, label = inputs(shape, n_classes)
    for guided in (GuidedDenoiser(teacher, 3.0), GuidedDenoiser(teacher, 1.0)):
        torch._dynamo.reset()
        fast = torch.compile(guided, fullgraph=True, backend='eager')
        for s in (sigma, 2.0):
            torch.testing.assert_close(fast(x, s, label), guided(x, s, label))


@pytest.mark.parametrize('name', ['nhwpqc', 'a class of its own'])
def test_foreign_heads_compile_without_a_break(name):
    teacher, shape, _ = foreign(name)
    x, sigma, _ = inputs(shape, 0)
    student = branch(teacher, 2, shape=shape)
    torch._dynamo.reset()
    torch.testing.assert_close(
        torch.compile(student, fullgraph=True, backend='aot_eager')(x, sigma), student(x, sigma)
    )


def test_copies_averages_and_recomputation_keep_the_branches():
    teacher, shape, n_classes = teacher_of('unet, classes')
    x, sigma, label = inputs(shape, n_classes)
    student = branch(teacher, 3)
    average = AveragedModel(student)
    loaded = branch(teacher, 3)
    loaded.load_state_dict(student.state_dict())
    for other in (
        copy.deepcopy(student),
        average.module,
        loaded,
        pickle.loads(pickle.dumps(student)),
    ):
        assert torch.equal(other(x, sigma, label), student(x, sigma, label))
    student(x, sigma, label).square().mean().backward()
    grads = [p.grad.clone() for p in student.parameters()]
    again = branch(teacher, 3)
    recompute_blocks(again)
    again(x, sigma, label).square().mean().backward()
    for a, b in zip(grads, again.parameters()):
        torch.testing.assert_close(a, b.grad)


def test_a_patchified_head_learns_what_one_branch_learns():
    "Branches that are scrambled end far from the teacher, while the loss looks fine."
    torch.manual_seed(0)
    teacher = EDMDenoiser(Patches())
    ends = {}
    for K in (1, 4):
        cfg = SFDConfig(nfe=2, K=K, steps=30, batch=16, shape=(3, 8, 8), lr=3e-3, sigma_max=10.0)
        student = sfd(teacher, cfg, show=False)
        x, _ = student.start(range(16))
        goal = trajectory(teacher, x, cfg.grids[0], cfg.solver)[-1]
        ends[K] = float((student.sample(16) - goal).square().mean().sqrt())
    assert ends[4] < 1.5 * ends[1], ends
