"The K-branch head: values on a matrix of networks and parameterisations, layouts, folding, and bad input."
import copy

import pytest
import torch
from bdense_nb.branches import BranchedDenoiser, branch, fold, narrow, widen
from bdense_nb.nets import MLP, UNet
from bdense_nb.schedules import linear_alpha_bar
from bdense_nb.teachers import EDMDenoiser, GaussianDenoiser, MixtureDenoiser, NetDenoiser, VPDenoiser
from torch import nn

NETS = {
    'unet': (lambda: UNet(1, (32,)), (1, 4, 4), 0),
    'unet, classes': (lambda: UNet(3, (32,), n_classes=5), (3, 4, 4), 5),
    'unet, two levels, no patches': (lambda: UNet(2, (8, 32), patch=1), (2, 4, 4), 0),
    'mlp': (lambda: MLP(2, 16, 1), (2,), 0),
    'mlp, classes': (lambda: MLP(3, 16, 1, n_classes=4), (3,), 4),
}
WRAPS = {'edm': EDMDenoiser, **{p: lambda net, p=p: VPDenoiser(net, linear_alpha_bar(), p) for p in ('eps', 'x0', 'v')}}


def teacher_of(net='mlp', wrap='edm', seed=0):
    "A frozen teacher whose output layer is not zero."
    torch.manual_seed(seed)
    make, shape, n_classes = NETS[net]
    net = make()
    nn.init.normal_(net.out.weight, std=.2)
    nn.init.normal_(net.out.bias)
    return WRAPS[wrap](net).requires_grad_(False).eval(), shape, n_classes


def inputs(shape, n_classes, dtype=torch.float32):
    g = torch.Generator().manual_seed(1)
    sigma = torch.tensor([.02, 1., 50.], dtype=dtype)
    x = torch.randn(3, *shape, generator=g).to(dtype)*sigma.reshape(-1, *[1]*len(shape))
    return x, sigma, torch.randint(n_classes, (3,), generator=g) if n_classes else None


def storages(model): return {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}


# --- every branch starts as the teacher, and folding gives the teacher back ---

@pytest.mark.parametrize('K', [1, 2, 5])
@pytest.mark.parametrize('wrap', WRAPS)
@pytest.mark.parametrize('net', NETS)
def test_start_and_fold(net, wrap, K):
    teacher, shape, n_classes = teacher_of(net, wrap)
    x, sigma, label = inputs(shape, n_classes)
    for dtype, tol in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
        teacher, x, sigma = teacher.to(dtype), x.to(dtype), sigma.to(dtype)
        student = branch(teacher, K)
        with torch.no_grad(): goal, got, folded = teacher(x, sigma, label), student(x, sigma, label), fold(student)(x, sigma, label)
        assert got.shape == (3, K, *shape) and got.dtype == dtype
        scale = goal.abs().max()
        assert (got - goal[:, None]).abs().max() <= tol*scale
        assert (folded - goal).abs().max() <= tol*scale
    assert student.n_classes == n_classes


@pytest.mark.parametrize('net', NETS)
def test_fold_keeps_the_endpoint(net):
    teacher, shape, n_classes = teacher_of(net)
    student = branch(teacher, 3).train()
    torch.manual_seed(2)
    with torch.no_grad():
        for p in student.parameters(): p.add_(.05*torch.randn_like(p))
    plain = fold(student)
    assert type(plain) is type(teacher) and type(plain.net) is type(teacher.net)
    assert {k: v.shape for k, v in plain.state_dict().items()} == {k: v.shape for k, v in teacher.state_dict().items()}
    assert not plain.training and not any(p.requires_grad for p in plain.parameters())
    assert student.training and all(p.requires_grad for p in student.parameters()), 'folding left the student alone'
    assert not storages(plain) & storages(student)
    x, sigma, label = inputs(shape, n_classes)
    with torch.no_grad(): every, end = student.eval()(x, sigma, label), plain(x, sigma, label)
    torch.testing.assert_close(end, every[:, -1], rtol=1e-5, atol=1e-5)
    assert all((end - every[:, k]).abs().max() > 1e-3 for k in range(2)), 'the other branches differ'


def test_branches_are_independent():
    "Each branch's rows move that branch alone, through pixel_shuffle too."
    teacher, shape, _ = teacher_of('unet')
    x, sigma, _ = inputs(shape, 0)
    rows = len(teacher.net.out.weight)
    for k in range(3):
        student = branch(teacher, 3).requires_grad_(False)
        first = student(x, sigma)
        student.denoiser.net.out.bias[k*rows:(k + 1)*rows] += 1
        moved = (student(x, sigma) - first).abs().flatten(2).amax((0, 2))
        assert (moved > .1).tolist() == [j == k for j in range(3)]


@pytest.mark.parametrize('patch', [1, 2])
def test_channels_keep_their_colours(patch):
    "Branch-major rows: a network that paints one colour per channel paints it in every branch."
    net = UNet(3, (32,), patch=patch).requires_grad_(False)
    colour = torch.tensor([.9, .1, -.7])
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
        for p in student.parameters(): p.add_(1)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert not any(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize('K', [1, 2, 4, 8])
@pytest.mark.parametrize('net', ['unet', 'unet, classes', 'unet, two levels, no patches'])
def test_parameters_follow_the_formula(net, K):
    teacher, *_ = teacher_of(net)
    c_out, c_in, *_ = teacher.net.out.weight.shape
    extra = sum(p.numel() for p in branch(teacher, K).parameters()) - sum(p.numel() for p in teacher.parameters())
    assert extra == (K - 1)*(9*c_in*c_out + c_out)


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

        def forward(self, x, c_noise, label=None): return self.body['head'](x)
    teacher = EDMDenoiser(Other())
    student = branch(teacher, 3, 'body.head')
    x = torch.randn(4, 2)
    torch.testing.assert_close(student(x, 1.), teacher(x, 1.)[:, None].expand(-1, 3, -1))
    torch.testing.assert_close(fold(student)(x, 1.), teacher(x, 1.))
    with pytest.raises(ValueError, match="no layer 'out'.*body.head"): branch(teacher, 3)


# --- layers ---

@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('make, shape', [(lambda b: nn.Linear(4, 3, bias=b), (4,)), (lambda b: nn.Conv1d(4, 3, 3, bias=b), (4, 5)),
                                         (lambda b: nn.Conv2d(4, 3, 3, padding=1, padding_mode='circular', bias=b), (4, 5, 5)), (lambda b: nn.Conv3d(4, 3, 1, stride=2, bias=b), (4, 3, 3, 3))])
def test_widen_and_narrow(make, shape, bias):
    layer, x = make(bias), torch.randn(2, *shape)
    wide = widen(layer, 3)
    assert type(wide) is type(layer) and (wide.bias is None) == (not bias)
    for part in wide(x).chunk(3, 1): torch.testing.assert_close(part, layer(x))
    back = narrow(wide, 3)
    assert torch.equal(back.weight, layer.weight) and repr(back) == repr(layer)


# --- bad input ---

@pytest.mark.parametrize('K', [0, -1, 2.0, True, '2', None])
def test_bad_K(K):
    teacher, *_ = teacher_of()
    with pytest.raises(ValueError, match='K must be'): branch(teacher, K)
    with pytest.raises(ValueError, match='K must be'): narrow(nn.Linear(2, 2), K)


@pytest.mark.parametrize('layer', ['head', 'out.weight', 'net.out'])
def test_unknown_layer(layer):
    with pytest.raises(ValueError, match='has no layer .*one of: .*out'): branch(teacher_of()[0], 2, layer)


@pytest.mark.parametrize('layer', ['norm', 'down', ''])
def test_not_a_layer_that_widens(layer):
    with pytest.raises(TypeError, match='only linear layers and convolutions'): branch(teacher_of('unet')[0], 2, layer)


@pytest.mark.parametrize('layer', [nn.Conv2d(4, 4, 3, groups=2), nn.ConvTranspose2d(4, 4, 3), nn.Embedding(4, 4), nn.Identity()])
def test_not_widened(layer):
    with pytest.raises(TypeError, match='only linear layers and convolutions'): widen(layer, 2)


@pytest.mark.parametrize('teacher', [GaussianDenoiser(0., 1.), MixtureDenoiser(torch.zeros(1, 2), torch.ones(1), torch.ones(1)), MLP(2, 16, 1), None])
def test_needs_a_network_denoiser(teacher):
    with pytest.raises(TypeError, match=f'network denoiser.*{type(teacher).__name__}'): branch(teacher, 2)


def test_not_twice_and_not_backwards():
    teacher, *_ = teacher_of()
    assert isinstance(teacher, NetDenoiser) and isinstance(branch(teacher, 2), BranchedDenoiser)
    with pytest.raises(TypeError, match='BranchedDenoiser'): branch(branch(teacher, 2), 2)
    for plain in (teacher, fold(branch(teacher, 2)), teacher.net):
        with pytest.raises(TypeError, match='fold needs a branched student'): fold(plain)
    with pytest.raises(ValueError, match='7 rows.*K=2'): narrow(nn.Linear(2, 7), 2)


def test_branched_student_checks_its_input():
    student = branch(teacher_of('mlp, classes')[0], 2)
    x = torch.randn(3, 3)
    with pytest.raises(ValueError, match='above 0'): student(x, 0.)
    with pytest.raises(ValueError, match='sigma'): student(x, torch.ones(2))
    with pytest.raises(ValueError, match='label'): student(x, 1., torch.tensor([0, 1, 4]))
    with pytest.raises(TypeError, match='float'): student(x.long(), 1.)
