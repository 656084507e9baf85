"Branch weights and the dense alignment loss: values on a matrix of inputs, the identities with the host, and bad input."
import math

import pytest
import torch
import torch.nn.functional as F
from bdense_nb.branches import branch
from bdense_nb.losses import BRANCH_WEIGHTS, NORMS, branch_weights, dense_alignment_loss
from bdense_nb.nets import MLP, UNet
from bdense_nb.targets import branch_states
from bdense_nb.teachers import EDMDenoiser
from torch import nn

SIGMA, LEVELS = 2., torch.tensor([1.4, .9, .5, .2], dtype=torch.float64)
BY_HAND = {'l1': lambda r: abs(r), 'l2': lambda r: r*r, 'huber': lambda r: r*r/2 if abs(r) <= 1 else abs(r) - .5}


def draw(*shape, seed=0, dtype=torch.float64): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- weights ---

@pytest.mark.parametrize('K', [1, 2, 3, 4, 17])
@pytest.mark.parametrize('kind', BRANCH_WEIGHTS)
def test_weights(kind, K):
    w = branch_weights(K, kind)
    expected = {'linear': [(k + 1)/(K*(K + 1)/2) for k in range(K)], 'uniform': [1/K]*K, 'endpoint': [0]*(K - 1) + [1]}[kind]
    assert w.dtype == torch.float64 and w.shape == (K,)
    assert w.tolist() == pytest.approx(expected, rel=1e-14, abs=0)
    assert w.sum().item() == pytest.approx(1, rel=1e-14)


@pytest.mark.parametrize('kind', [[1, 2, 1], (1., 2., 1.), torch.tensor([1, 2, 1]), torch.tensor([.1, .2, .1]), [1e30, 2e30, 1e30]])
def test_explicit_weights_are_normalised(kind):
    assert branch_weights(3, kind).tolist() == pytest.approx([.25, .5, .25], rel=1e-6)


def test_one_branch_has_all_the_weight():
    assert {branch_weights(1, kind).item() for kind in (*BRANCH_WEIGHTS, [7.])} == {1}
    assert branch_weights(4).tolist() == branch_weights(4, 'linear').tolist()


# --- the loss ---

@pytest.mark.parametrize('shape', [(2,), (1, 3, 3), (3, 2, 4)])
@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('K', [1, 3])
def test_loss_is_the_formula(norm, K, shape):
    pred, target, w = 2*draw(3, K, *shape), draw(3, K, *shape, seed=1), branch_weights(K)
    slow = sum(w[k].item()*BY_HAND[norm](r)/3 for b in range(3) for k in range(K) for r in (pred - target)[b, k].flatten().tolist())
    assert dense_alignment_loss(pred, target, w, norm).item() == pytest.approx(slow, rel=1e-12)
    assert dense_alignment_loss(pred, pred, w, norm).item() == 0


def test_loss_default_is_l1_summed_over_pixels():
    pred, target = torch.ones(5, 4, 1, 7, 7), torch.zeros(5, 4, 1, 7, 7)
    for kind in BRANCH_WEIGHTS: assert dense_alignment_loss(pred, target, branch_weights(4, kind)).item() == pytest.approx(49, rel=1e-6)
    mean = F.l1_loss(draw(5, 4, 6), draw(5, 4, 6, seed=1))
    assert dense_alignment_loss(draw(5, 4, 6), draw(5, 4, 6, seed=1), branch_weights(4, 'uniform')).item() == pytest.approx(6*mean.item(), rel=1e-12)


def test_a_branch_is_compared_with_its_own_state():
    target = draw(3, 4, 2)
    for kind in BRANCH_WEIGHTS[:2]:
        assert dense_alignment_loss(target.flip(1), target, branch_weights(4, kind)) > .1
    assert dense_alignment_loss(target, target.flip(1), branch_weights(4, [1, 0, 0, 0])) == pytest.approx((target[:, 0] - target[:, 3]).abs().sum(1).mean().item())


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_loss_keeps_the_dtype(dtype):
    loss = dense_alignment_loss(draw(2, 3, 4).to(dtype), draw(2, 3, 4, seed=1).to(dtype), branch_weights(3))
    assert loss.dtype == dtype and loss.shape == ()


# --- identities with the host ---

def make_host(kind, dtype):
    torch.manual_seed(0)
    net, shape = (UNet(1, (32,)), (1, 4, 4)) if kind == 'unet' else (MLP(2, 16, 1), (2,))
    nn.init.normal_(net.out.weight, std=.3)
    nn.init.normal_(net.out.bias)
    return EDMDenoiser(net).to(dtype), SIGMA*draw(6, *shape, dtype=dtype), draw(6, 4, *shape, seed=1, dtype=dtype)


def grads(model, loss):
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name.removeprefix('denoiser.'): p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def host_loss(host, x, y):
    x0_hat = host(x, SIGMA)
    states = x0_hat + torch.tensor(LEVELS[-1].item()/SIGMA, dtype=x.dtype)*(x - x0_hat)
    return ((states - y).abs().flatten(1).sum(1)).mean()


def dense(student, x, y, weights, step='own', levels=LEVELS):
    return dense_alignment_loss(branch_states(student(x, SIGMA), x, SIGMA, levels, step), y, weights)


@pytest.mark.parametrize('step', ['own', 'end'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('kind', ['unet', 'mlp'])
def test_one_branch_is_the_host_bit_by_bit(kind, dtype, step):
    host, x, y = make_host(kind, dtype)
    student = branch(host, 1)
    a, b = host_loss(host, x, y[:, -1]), dense(student, x, y[:, -1:], branch_weights(1), step, LEVELS[-1:])
    assert torch.equal(a, b)
    a, b = grads(host, a), grads(student, b)
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize('step', ['own', 'end'])
@pytest.mark.parametrize('kind', ['unet', 'mlp'])
def test_endpoint_weights_leave_the_other_heads_alone(kind, step):
    host, x, y = make_host(kind, torch.float64)
    base = grads(host, host_loss(host, x, y[:, -1]))
    student = branch(host, 4)
    got = grads(student, dense(student, x, y, branch_weights(4, 'endpoint'), step))
    for name, g in base.items():
        if name.startswith('net.out.'):
            heads = got[name].unflatten(0, (4, -1))
            assert (heads[:-1] == 0).all()
            torch.testing.assert_close(heads[-1], g, rtol=1e-10, atol=1e-12)
        else: torch.testing.assert_close(got[name], g, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('kind', ['unet', 'mlp'])
def test_equal_targets_only_rescale(kind):
    host, x, y = make_host(kind, torch.float64)
    base = grads(host, host_loss(host, x, y[:, -1]))
    w, student = torch.tensor([.3, .6, .9, 1.2], dtype=torch.float64), branch(host, 4)
    got = grads(student, dense(student, x, y[:, -1:].expand_as(y), w, 'end'))
    for name, g in base.items():
        if name.startswith('net.out.'):
            for k, head in enumerate(got[name].unflatten(0, (4, -1))): torch.testing.assert_close(head, w[k]*g, rtol=1e-10, atol=1e-12)
        else: torch.testing.assert_close(got[name], w.sum()*g, rtol=1e-10, atol=1e-12)


# --- bad input ---

@pytest.mark.parametrize('K', [0, -1, 1.5, '4', None, True])
def test_bad_K(K):
    with pytest.raises(ValueError, match='K must be'): branch_weights(K)


@pytest.mark.parametrize('kind', ['quadratic', 'Linear', ''])
def test_unknown_kind(kind):
    with pytest.raises(ValueError, match='linear, uniform, endpoint'): branch_weights(2, kind)


@pytest.mark.parametrize('kind', [[], [1.], [1, 1, 1], [[1, 1]], 1., torch.ones(3)])
def test_weights_of_the_wrong_length(kind):
    with pytest.raises(ValueError, match='one number for each of the K=2 branches'): branch_weights(2, kind)


@pytest.mark.parametrize('kind', [[1, -1], [0, 0], [1, math.nan], [1, math.inf], [-1, -1]])
def test_weights_with_bad_values(kind):
    with pytest.raises(ValueError, match='finite, non-negative and not all zero'): branch_weights(2, kind)


@pytest.mark.parametrize('kind', [None, ['a', 'b'], {'k': 1}, [[1], [1, 2]]])
def test_weights_that_are_no_numbers(kind):
    with pytest.raises(ValueError, match='linear, uniform, endpoint or K numbers'): branch_weights(2, kind)


@pytest.mark.parametrize('norm', ['l3', 'L1', None, 1])
def test_unknown_norm(norm):
    with pytest.raises(ValueError, match='l1, l2, huber'): dense_alignment_loss(draw(2, 2, 3), draw(2, 2, 3), branch_weights(2), norm)


@pytest.mark.parametrize('pred, target', [((2, 4, 3), (2, 1, 3)), ((2, 4, 3), (2, 4)), ((2, 4, 3), (1, 4, 3)), ((2, 4, 1, 3), (2, 4, 3, 1)), ((2, 4), (2, 4)), ((4,), (4,))])
def test_shapes_that_do_not_match(pred, target):
    with pytest.raises(ValueError, match='same shape'): dense_alignment_loss(draw(*pred), draw(*target), branch_weights(4))


@pytest.mark.parametrize('weights', [torch.ones(3), torch.ones(1), torch.tensor(1.), torch.ones(4, 1)])
def test_weights_of_another_K(weights):
    with pytest.raises(ValueError, match='each of the 4 branches'): dense_alignment_loss(draw(2, 4, 3), draw(2, 4, 3), weights)


@pytest.mark.parametrize('weights', ['linear', [.25]*4, None])
def test_weights_that_are_no_tensor(weights):
    with pytest.raises(TypeError, match='branch_weights'): dense_alignment_loss(draw(2, 4, 3), draw(2, 4, 3), weights)
