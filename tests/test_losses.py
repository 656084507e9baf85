"Branch weights, the dense alignment loss and its SNR weights: values on a matrix of inputs, the identities with both hosts, and bad input."

import math

import pytest
import torch
import torch.nn.functional as F
from bdense_nb.diffusion.denoisers import EDMDenoiser
from bdense_nb.diffusion.nets import MLP, UNet
from bdense_nb.distillation.branches import branch, fold
from bdense_nb.distillation.distill import preset
from bdense_nb.distillation.losses import (
    BRANCH_WEIGHTS,
    NORMS,
    SNR_WEIGHTS,
    branch_weights,
    dense_alignment_loss,
    scheduled_weights,
    snr_weight,
)
from bdense_nb.distillation.progressive import PDConfig, draw_noised, pd_step
from bdense_nb.distillation.segments import branch_states, progressive_segment
from torch import nn

SIGMA, LEVELS = 2.0, torch.tensor([1.4, 0.9, 0.5, 0.2], dtype=torch.float64)
BY_HAND = {
    'l1': lambda r: abs(r),
    'l2': lambda r: r * r,
    'huber': lambda r: r * r / 2 if abs(r) <= 1 else abs(r) - 0.5,
}


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- weights ---


@pytest.mark.parametrize('K', [1, 2, 3, 4, 17])
@pytest.mark.parametrize('kind', BRANCH_WEIGHTS)
def test_weights(kind, K):
    w = branch_weights(K, kind)
    expected = {
        'linear': [(k + 1) / (K * (K + 1) / 2) for k in range(K)],
        'uniform': [1 / K] * K,
        'endpoint': [0] * (K - 1) + [1],
        'endpoint-heavy': [0.6 * (k + 1) / (K * (K - 1)) for k in range(K - 1)]
        + [0.7 if K > 1 else 1],
        'light': [0.2 * (k + 1) / (K * (K - 1)) for k in range(K - 1)] + [0.9 if K > 1 else 1],
    }[kind]
    assert w.dtype == torch.float64 and w.shape == (K,)
    assert w.tolist() == pytest.approx(expected, rel=1e-14, abs=0)
    assert w.sum().item() == pytest.approx(1, rel=1e-14)


@pytest.mark.parametrize(
    'kind',
    [
        [1, 2, 1],
        (1.0, 2.0, 1.0),
        torch.tensor([1, 2, 1]),
        torch.tensor([0.1, 0.2, 0.1]),
        [1e30, 2e30, 1e30],
    ],
)
def test_explicit_weights_are_normalised(kind):
    assert branch_weights(3, kind).tolist() == pytest.approx([0.25, 0.5, 0.25], rel=1e-6)


def test_one_branch_has_all_the_weight():
    assert {branch_weights(1, kind).item() for kind in (*BRANCH_WEIGHTS, [7.0])} == {1}
    assert branch_weights(4).tolist() == branch_weights(4, 'linear').tolist()
    assert branch_weights(4, 'endpoint-heavy').tolist() == pytest.approx([0.05, 0.1, 0.15, 0.7])


@pytest.mark.parametrize('done', [0, 0.25, 0.5, 1.0, 1])
@pytest.mark.parametrize(
    'start, end', [('linear', 'endpoint'), ('uniform', [1, 0, 0, 0]), ('linear', 'linear')]
)
def test_scheduled_weights(start, end, done):
    a, b = branch_weights(4, start), branch_weights(4, end)
    w = scheduled_weights(a, b, done)
    assert w.tolist() == pytest.approx(
        [(1 - done) * x + done * y for x, y in zip(a.tolist(), b.tolist())], abs=1e-15
    )
    assert w.sum().item() == pytest.approx(1, rel=1e-14) and (w >= 0).all()
    if done in (0, 1):
        assert torch.equal(w, b if done else a)
    assert scheduled_weights(a, None, done) is a


@pytest.mark.parametrize('done', [-0.01, 1.01, math.nan, math.inf, 17])
def test_share_of_training_outside(done):
    for end in (None, branch_weights(4)):
        with pytest.raises(ValueError, match='done must be'):
            scheduled_weights(branch_weights(4), end, done)


def test_weights_at_the_end_of_another_K():
    for K in (1, 3):
        with pytest.raises(ValueError, match='as many as at the start'):
            scheduled_weights(branch_weights(4), branch_weights(K), 0.5)


# --- SNR weights ---


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_snr_weights(dtype):
    sigma = torch.tensor([1e-4, 0.5, 1.0, 2.0, 1e4], dtype=dtype)
    want = {
        'const': lambda s: 1.0,
        'snr': lambda s: s**-2,
        'snr+1': lambda s: s**-2 + 1,
        'trunc': lambda s: max(1.0, s**-2),
    }
    assert want.keys() == set(SNR_WEIGHTS)
    for kind, f in want.items():
        w = snr_weight(sigma, kind)
        assert (
            w.dtype == dtype
            and w.shape == sigma.shape
            and w.tolist() == pytest.approx([f(s) for s in sigma.tolist()], rel=1e-5)
        )
    assert torch.equal(snr_weight(sigma), snr_weight(sigma, 'trunc'))


@pytest.mark.parametrize('sigma', [[0.0], [1.0, -1.0], [math.nan]], ids=str)
def test_snr_of_bad_levels(sigma):
    with pytest.raises(ValueError, match='above 0'):
        snr_weight(torch.tensor(sigma))


@pytest.mark.parametrize('kind', ['truncated', 'SNR', None])
def test_unknown_snr_weight(kind):
    with pytest.raises(ValueError, match='trunc, const, snr'):
        snr_weight(torch.ones(2), kind)


# --- the loss ---


@pytest.mark.parametrize('shape', [(2,), (1, 3, 3), (3, 2, 4)])
@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('K', [1, 3])
def test_loss_is_the_formula(norm, K, shape):
    pred, target, w = 2 * draw(3, K, *shape), draw(3, K, *shape, seed=1), branch_weights(K)
    slow = sum(
        w[k].item() * BY_HAND[norm](r) / 3
        for b in range(3)
        for k in range(K)
        for r in (pred - target)[b, k].flatten().tolist()
    )
    assert dense_alignment_loss(pred, target, w, norm).item() == pytest.approx(slow, rel=1e-12)
    assert dense_alignment_loss(pred, pred, w, norm).item() == 0


def test_loss_default_is_l1_summed_over_pixels():
    pred, target = torch.ones(5, 4, 1, 7, 7), torch.zeros(5, 4, 1, 7, 7)
    for kind in BRANCH_WEIGHTS:
        assert dense_alignment_loss(pred, target, branch_weights(4, kind)).item() == pytest.approx(
            49, rel=1e-6
        )
    mean = F.l1_loss(draw(5, 4, 6), draw(5, 4, 6, seed=1))
    assert dense_alignment_loss(
        draw(5, 4, 6), draw(5, 4, 6, seed=1), branch_weights(4, 'uniform')
    ).item() == pytest.approx(6 * mean.item(), rel=1e-12)


def test_a_branch_is_compared_with_its_own_state():
    target = draw(3, 4, 2)
    for kind in BRANCH_WEIGHTS[:2]:
        assert dense_alignment_loss(target.flip(1), target, branch_weights(4, kind)) > 0.1
    assert dense_alignment_loss(
        target, target.flip(1), branch_weights(4, [1, 0, 0, 0])
    ) == pytest.approx((target[:, 0] - target[:, 3]).abs().sum(1).mean().item())


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_loss_keeps_the_dtype(dtype):
    loss = dense_alignment_loss(
        draw(2, 3, 4).to(dtype), draw(2, 3, 4, seed=1).to(dtype), branch_weights(3)
    )
    assert loss.dtype == dtype and loss.shape == ()


@pytest.mark.parametrize('norm', NORMS)
def test_sample_weights(norm):
    pred, target, w = draw(3, 2, 4), draw(3, 2, 4, seed=1), branch_weights(2)
    factors = torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64)
    slow = (
        sum(
            f * dense_alignment_loss(pred[b : b + 1], target[b : b + 1], w, norm).item()
            for b, f in enumerate(factors.tolist())
        )
        / 3
    )
    assert dense_alignment_loss(pred, target, w, norm, factors).item() == pytest.approx(
        slow, rel=1e-12
    )
    assert torch.equal(
        dense_alignment_loss(pred, target, w, norm, torch.ones(3)),
        dense_alignment_loss(pred, target, w, norm),
    )
    assert (
        dense_alignment_loss(pred.float(), target.float(), w, norm, factors).dtype == torch.float32
    )


# --- identities with the hosts ---


def make_host(kind, dtype):
    torch.manual_seed(0)
    net, shape = (UNet(1, (32,)), (1, 4, 4)) if kind == 'unet' else (MLP(2, 16, 1), (2,))
    nn.init.normal_(net.out.weight, std=0.3)
    nn.init.normal_(net.out.bias)
    return (
        EDMDenoiser(net).to(dtype),
        SIGMA * draw(6, *shape, dtype=dtype),
        draw(6, 4, *shape, seed=1, dtype=dtype),
    )


def grads(model, loss):
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {
        name.removeprefix('denoiser.'): p.grad.clone()
        for name, p in model.named_parameters()
        if p.grad is not None
    }


def host_loss(host, x, y):
    x0_hat = host(x, SIGMA)
    states = x0_hat + torch.tensor(LEVELS[-1].item() / SIGMA, dtype=x.dtype) * (x - x0_hat)
    return ((states - y).abs().flatten(1).sum(1)).mean()


def dense(student, x, y, weights, step='own', levels=LEVELS):
    return dense_alignment_loss(
        branch_states(student(x, SIGMA), x, SIGMA, levels, step), y, weights
    )


@pytest.mark.parametrize('step', ['own', 'end'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('kind', ['unet', 'mlp'])
def test_one_branch_is_the_host_bit_by_bit(kind, dtype, step):
    host, x, y = make_host(kind, dtype)
    student = branch(host, 1)
    a, b = (
        host_loss(host, x, y[:, -1]),
        dense(student, x, y[:, -1:], branch_weights(1), step, LEVELS[-1:]),
    )
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
        else:
            torch.testing.assert_close(got[name], g, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('kind', ['unet', 'mlp'])
def test_equal_targets_only_rescale(kind):
    host, x, y = make_host(kind, torch.float64)
    base = grads(host, host_loss(host, x, y[:, -1]))
    w, student = torch.tensor([0.3, 0.6, 0.9, 1.2], dtype=torch.float64), branch(host, 4)
    got = grads(student, dense(student, x, y[:, -1:].expand_as(y), w, 'end'))
    for name, g in base.items():
        if name.startswith('net.out.'):
            for k, head in enumerate(got[name].unflatten(0, (4, -1))):
                torch.testing.assert_close(head, w[k] * g, rtol=1e-10, atol=1e-12)
        else:
            torch.testing.assert_close(got[name], w.sum() * g, rtol=1e-10, atol=1e-12)


def pd_problem(kind, dtype, K, substeps, **changes):
    "A host, its branched student, the first iteration's loss of `pd_step`, and the same noised batch with the endpoint's target."
    host, _, _ = make_host(kind, dtype)
    shape = (1, 4, 4) if kind == 'unet' else (2,)
    cfg = PDConfig(
        start_steps=substeps**2,
        end_steps=substeps,
        substeps=substeps,
        K=K,
        batch=5,
        schedule='karras',
        **changes,
    )
    data, student = draw(9, *shape, seed=2, dtype=dtype), branch(host, K)
    loss = next(pd_step(host, data, None, cfg, substeps)(student, 0))
    g = torch.Generator().manual_seed(cfg.train_config(substeps).seed * 1_000_003)
    _, levels, z = draw_noised(
        data, cfg.grid(substeps**2).unfold(0, substeps + 1, substeps), cfg.batch, g
    )
    return host, student, loss, z, levels, progressive_segment(host, z, levels, 1).x0s[:, 0]


def pd_host_loss(host, z, sigma, target):
    "Salimans and Ho: squared error of the estimate, mean over pixels, times truncated SNR, mean over the batch."
    weight = torch.maximum(torch.ones_like(sigma), 1 / sigma**2) / z[0].numel()
    return ((host(z, sigma) - target).square().flatten(1).sum(1) * weight.to(z)).mean()


@pytest.mark.parametrize('substeps', [2, 3])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('kind', ['unet', 'mlp'])
def test_one_branch_is_progressive_distillation_bit_by_bit(kind, dtype, substeps):
    host, student, loss, z, levels, target = pd_problem(kind, dtype, 1, substeps)
    first = pd_host_loss(host, z, levels[:, 0], target)
    assert torch.equal(first, loss) and loss > 0
    a, b = grads(host, first), grads(student, loss)
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_the_hosts_target_is_the_published_one():
    "The endpoint's target above, by two DDIM steps and Salimans and Ho's formula."
    host, _, _, z, levels, target = pd_problem('mlp', torch.float64, 1, 2)
    with torch.no_grad():
        t, m, s = levels.T[..., None]
        middle = host(z, levels[:, 0]) + m / t * (z - host(z, levels[:, 0]))
        last = host(middle, levels[:, 1])
        end = last + s / m * (middle - last)
    torch.testing.assert_close(target, (end - s / t * z) / (1 - s / t), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize('step', ['own', 'end'])
@pytest.mark.parametrize('kind, K', [('unet', 2), ('mlp', 4)])
def test_endpoint_weights_leave_the_other_heads_alone_in_progressive_distillation(kind, K, step):
    host, student, loss, z, levels, target = pd_problem(
        kind, torch.float64, K, 4, branch_weights='endpoint', branch_step=step
    )
    base, got = grads(host, pd_host_loss(host, z, levels[:, 0], target)), grads(student, loss)
    for name, g in base.items():
        if name.startswith('net.out.'):
            heads = got[name].unflatten(0, (K, -1))
            assert (heads[:-1] == 0).all() and (heads[-1] != 0).any()
            torch.testing.assert_close(heads[-1], g, rtol=1e-9, atol=1e-12)
        else:
            torch.testing.assert_close(got[name], g, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('host_of', ['sfd', 'pd'])
def test_fold_after_training_is_the_hosts_network(host_of):
    "Keys and shapes are the teacher's, after an update of every branch."
    if host_of == 'pd':
        host, student, loss, z, *_ = pd_problem('unet', torch.float64, 4, 4)
    else:
        host, z, y = make_host('unet', torch.float64)
        student = branch(host, 4)
        loss = dense(student, z, y, branch_weights(4))
    opt = torch.optim.Adam(student.parameters(), 1e-2)
    loss.backward()
    opt.step()
    plain = fold(student)
    assert {k: v.shape for k, v in plain.state_dict().items()} == {
        k: v.shape for k, v in host.state_dict().items()
    }
    with torch.no_grad():
        torch.testing.assert_close(
            plain(z, SIGMA), student(z, SIGMA)[:, -1], rtol=1e-12, atol=1e-12
        )


# --- bad input ---


@pytest.mark.parametrize('K', [0, -1, 1.5, '4', None, True])
def test_bad_K(K):
    with pytest.raises(ValueError, match='K must be'):
        branch_weights(K)


@pytest.mark.parametrize('kind', ['quadratic', 'Linear', ''])
def test_unknown_kind(kind):
    with pytest.raises(ValueError, match='linear, uniform, endpoint'):
        branch_weights(2, kind)


def test_a_single_branch_has_all_the_weight():
    "So that K=1 is the host of every configuration, whatever its branches weigh."
    for kind in (*BRANCH_WEIGHTS, (0.1, 0.9)):
        assert branch_weights(1, kind).tolist() == [1.0]
    assert preset('fashion_mnist_pd', K=1).weights(0.5).tolist() == [1.0]


@pytest.mark.parametrize('kind', [[], [1.0], [1, 1, 1], [[1, 1]], 1.0, torch.ones(3)])
def test_weights_of_the_wrong_length(kind):
    with pytest.raises(ValueError, match='one number for each of the K=2 branches'):
        branch_weights(2, kind)


@pytest.mark.parametrize('kind', [[1, -1], [0, 0], [1, math.nan], [1, math.inf], [-1, -1]])
def test_weights_with_bad_values(kind):
    with pytest.raises(ValueError, match='finite, non-negative and not all zero'):
        branch_weights(2, kind)


@pytest.mark.parametrize('kind', [None, ['a', 'b'], {'k': 1}, [[1], [1, 2]]])
def test_weights_that_are_no_numbers(kind):
    with pytest.raises(
        ValueError, match='linear, uniform, endpoint, endpoint-heavy, light or K numbers'
    ):
        branch_weights(2, kind)


@pytest.mark.parametrize('norm', ['l3', 'L1', None, 1])
def test_unknown_norm(norm):
    with pytest.raises(ValueError, match='l1, l2, huber'):
        dense_alignment_loss(draw(2, 2, 3), draw(2, 2, 3), branch_weights(2), norm)


@pytest.mark.parametrize(
    'pred, target',
    [
        ((2, 4, 3), (2, 1, 3)),
        ((2, 4, 3), (2, 4)),
        ((2, 4, 3), (1, 4, 3)),
        ((2, 4, 1, 3), (2, 4, 3, 1)),
        ((2, 4), (2, 4)),
        ((4,), (4,)),
    ],
)
def test_shapes_that_do_not_match(pred, target):
    with pytest.raises(ValueError, match='same shape'):
        dense_alignment_loss(draw(*pred), draw(*target), branch_weights(4))


@pytest.mark.parametrize(
    'weights', [torch.ones(3), torch.ones(1), torch.tensor(1.0), torch.ones(4, 1)]
)
def test_weights_of_another_K(weights):
    with pytest.raises(ValueError, match='each of the 4 branches'):
        dense_alignment_loss(draw(2, 4, 3), draw(2, 4, 3), weights)


@pytest.mark.parametrize('weights', ['linear', [0.25] * 4, None])
def test_weights_that_are_no_tensor(weights):
    with pytest.raises(TypeError, match='branch_weights'):
        dense_alignment_loss(draw(2, 4, 3), draw(2, 4, 3), weights)


@pytest.mark.parametrize(
    'weights, error',
    [
        (torch.ones(2), ValueError),
        (torch.ones(3, 1), ValueError),
        (torch.tensor(1.0), ValueError),
        ([1.0] * 3, TypeError),
        (2.0, TypeError),
    ],
    ids=str,
)
def test_bad_sample_weights(weights, error):
    with pytest.raises(error, match='sample_weights must'):
        dense_alignment_loss(draw(3, 2, 4), draw(3, 2, 4), branch_weights(2), 'l2', weights)
