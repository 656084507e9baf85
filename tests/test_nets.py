"Networks: shapes, the null class, zero starts, and bad input."

import pytest
import torch
from bdense_nb.diffusion.nets import (
    MLP,
    NETS,
    GroupNorm,
    NoiseEmbedding,
    ResBlock,
    SelfAttention,
    UNet,
    attend,
    build_net,
)
from conftest import in_pairs

SMALL = dict(widths=(8, 32))


def move_away_from_zero(net):
    "Give every layer that starts at zero a default start, so that outputs depend on inputs."
    torch.manual_seed(1)
    for m in net.modules():
        if hasattr(m, 'weight') and hasattr(m, 'reset_parameters') and not m.weight.any():
            m.reset_parameters()
    return net.eval()


# --- shapes ---


@pytest.mark.parametrize(
    'sizes, patch, widths',
    in_pairs([(1, 1), (3, 2), (1, 2), (3, 1)], [1, 2, 4], [(32,), (8, 32), (8, 16, 32)]),
)
def test_unet_keeps_the_shape(sizes, patch, widths):
    channels, blocks = sizes
    net = move_away_from_zero(UNet(channels, widths, blocks, patch=patch))
    assert net.divisor == patch * 2 ** (len(widths) - 1)
    for H, W in ((16, 16), (16, 32)):
        x = torch.randn(2, channels, H, W)
        y = net(x, torch.zeros(2))
        assert y.shape == x.shape and y.isfinite().all() and y.std() > 0


@pytest.mark.parametrize('dim,width,depth', [(1, 1, 1), (2, 16, 3), (5, 8, 2)])
def test_mlp_keeps_the_shape(dim, width, depth):
    assert move_away_from_zero(MLP(dim, width, depth))(
        torch.randn(3, dim), torch.zeros(1)
    ).shape == (3, dim)


# --- behaviour ---

NETWORKS = {
    'unet': (lambda **kw: UNet(**SMALL, **kw), (1, 8, 8)),
    'mlp': (lambda **kw: MLP(width=16, **kw), (2,)),
}


@pytest.mark.parametrize('kind', NETWORKS)
def test_untrained_is_zero(kind, noise):
    make, shape = NETWORKS[kind]
    assert not make(n_classes=3)(noise(2, *shape), torch.randn(2), torch.tensor([0, 2])).any()


@pytest.mark.parametrize('kind', NETWORKS)
def test_null_class_and_labels(kind, noise):
    make, shape = NETWORKS[kind]
    net, x, c = move_away_from_zero(make(n_classes=3)), noise(4, *shape), torch.zeros(4)
    assert torch.equal(net(x, c), net(x, c, torch.full((4,), 3)))
    outs = [net(x, c), *(net(x, c, torch.full((4,), i)) for i in range(3))]
    assert all(not torch.allclose(a, b) for i, a in enumerate(outs) for b in outs[:i])


@pytest.mark.parametrize('kind', NETWORKS)
def test_samples_do_not_mix(kind, noise):
    make, shape = NETWORKS[kind]
    net, x, c, label = (
        move_away_from_zero(make(n_classes=3)).double(),
        noise(4, *shape).double(),
        torch.randn(4).double(),
        torch.tensor([0, 1, 2, 0]),
    )
    for i in range(4):
        torch.testing.assert_close(
            net(x, c, label)[i : i + 1],
            net(x[i : i + 1], c[i : i + 1], label[i : i + 1]),
            rtol=1e-10,
            atol=1e-12,
        )
    torch.testing.assert_close(net(x, c[:1]), net(x, c[:1].expand(4)), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('kind', NETWORKS)
def test_every_parameter_learns(kind, noise):
    make, shape = NETWORKS[kind]
    net = move_away_from_zero(make(n_classes=3)).train()
    net(noise(4, *shape), torch.randn(4), torch.tensor([0, 1, 2, 0])).square().mean().backward()
    assert not [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize('kind', NETWORKS)
def test_config_rebuilds(kind):
    net = NETWORKS[kind][0](n_classes=4, time_scale=0.1)
    again = build_net(type(net).__name__, net.config)
    assert again.config == net.config
    again.load_state_dict(net.state_dict())  # strict: the same keys and shapes


def test_dropout_only_in_training(noise):
    net, x, c = move_away_from_zero(UNet(**SMALL, dropout=0.5)), noise(2, 1, 8, 8), torch.zeros(2)
    assert torch.equal(net(x, c), net(x, c))
    net.train()
    assert not torch.equal(net(x, c), net(x, c))


def test_layout_changes_no_number(noise):
    net, x, c = move_away_from_zero(UNet(**SMALL)), noise(2, 1, 8, 8), torch.zeros(2)
    contiguous = net(x, c)
    torch.testing.assert_close(
        net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), c),
        contiguous,
        rtol=1e-4,
        atol=1e-5,
    )


def test_blocks_start_as_identity(noise):
    x, emb = noise(2, 32, 4, 4), noise(2, 16)
    assert torch.equal(ResBlock(32, 32, 16)(x, emb), x) and torch.equal(SelfAttention(32)(x), x)
    widen = ResBlock(32, 64, 16)
    assert torch.equal(widen(x, emb), widen.skip(x))


def test_time_scale_is_a_change_of_unit():
    torch.manual_seed(0)
    a = NoiseEmbedding(8)
    torch.manual_seed(0)
    b = NoiseEmbedding(8, time_scale=1 / 400)
    torch.testing.assert_close(a(torch.tensor([0.5])), b(torch.tensor([200.0])))


#: state-dict names are part of the file format of every stored teacher and student
def test_state_dict_names_stay():
    assert sorted({k.split('.')[0] for k in UNet(**SMALL, n_classes=2).state_dict()}) == [
        'down',
        'embed',
        'middle',
        'norm',
        'out',
        'stem',
        'up',
    ]
    assert sorted({k.split('.')[0] for k in MLP(n_classes=2).state_dict()}) == [
        'embed',
        'layers',
        'out',
        'stem',
    ]
    assert [k for k in UNet(**SMALL, n_classes=2).state_dict() if k.startswith('embed')] == [
        'embed.lin1.weight',
        'embed.lin1.bias',
        'embed.lin2.weight',
        'embed.lin2.bias',
        'embed.classes.weight',
    ]


# --- bad input ---


@pytest.mark.parametrize(
    'bad',
    [
        dict(widths=()),
        dict(widths=(8, 33)),
        dict(widths=(12, 32)),
        dict(widths=(8, 40)),
        dict(widths=(0, 32)),
        dict(widths=(-8, 32)),
        dict(widths=(8.0, 32)),
        dict(channels=0),
        dict(blocks=0),
        dict(blocks=1.5),
        dict(patch=0),
        dict(n_classes=-1),
        dict(n_classes=True),
        dict(dropout=1.5),
    ],
    ids=str,
)
def test_unet_refuses_configuration(bad):
    with pytest.raises(ValueError):
        UNet(**SMALL | bad)


@pytest.mark.parametrize(
    'bad', [dict(dim=0), dict(width=0), dict(depth=0), dict(depth='3'), dict(n_classes=-1)], ids=str
)
def test_mlp_refuses_configuration(bad):
    with pytest.raises(ValueError):
        MLP(**bad)


@pytest.mark.parametrize(
    'shape',
    [(1, 28, 28), (2, 1, 27, 28), (2, 1, 28, 30), (2, 3, 28, 28), (2, 784), (2, 1, 1, 28, 28)],
    ids=str,
)
def test_unet_refuses_shape(shape):
    with pytest.raises(ValueError, match='multiples of 4'):
        UNet(**SMALL)(torch.zeros(shape), torch.zeros(1))


@pytest.mark.parametrize('shape', [(2,), (2, 3), (2, 2, 2)], ids=str)
def test_mlp_refuses_shape(shape):
    with pytest.raises(ValueError, match=r'\[B, 2\]'):
        MLP()(torch.zeros(shape), torch.zeros(1))


@pytest.mark.parametrize('kind', NETWORKS)
def test_no_classes_no_label(kind):
    make, shape = NETWORKS[kind]
    with pytest.raises(ValueError, match='label must be None'):
        make()(torch.zeros(2, *shape), torch.zeros(2), torch.zeros(2, dtype=torch.long))


def test_build_net_refuses():
    with pytest.raises(ValueError, match='UNet, MLP'):
        build_net('Transformer', {})
    for name in NETS:
        with pytest.raises(TypeError, match='layers'):
            build_net(name, {'layers': 3})


def test_norms_and_a_cpus_attention_are_computed_in_float32_under_bf16():
    x = torch.randn(2, 32, 4, 4, requires_grad=True)
    attention, norm = SelfAttention(32), GroupNorm(8, 32)
    torch.nn.init.normal_(attention.proj.weight)
    with torch.autocast('cpu', torch.bfloat16):
        low = attention.qkv(x)
        assert low.dtype == torch.bfloat16 and norm(low[:, :32]).dtype == torch.float32
        assert torch.equal(
            norm(low[:, :32]),
            torch.nn.functional.group_norm(low[:, :32].float(), 8, norm.weight, norm.bias),
        )
        q, k, v = torch.randn(3, 2, 1, 16, 32).bfloat16()
        answer = attend(q, k, v)
        rough = attention(x)
    assert torch.equal(
        answer, torch.nn.functional.scaled_dot_product_attention(q.float(), k.float(), v.float())
    )
    assert 0 < (rough - attention(x)).abs().max() < 0.02 * attention(x).abs().max()
    assert attend(*torch.randn(3, 2, 1, 4, 8).double()).dtype == torch.float64
