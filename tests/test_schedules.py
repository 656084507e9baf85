"What a schedule refuses, and matrices too wide for its notebook."

from __future__ import annotations
import math

import pytest
import torch
from bdense_nb.diffusion import schedules as sc

NAMES = list(sc.SCHEDULES)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('n_steps', [1, 2, 3, 18, 1000])
@pytest.mark.parametrize('low, high', [(0.002, 80.0), (0.006, 80.0), (0.02, 1.0)])
def test_grid(name, n_steps, low, high):
    grid = sc.make_sigmas(name, n_steps, low, high)
    assert grid.shape == (n_steps + 1,) and grid.dtype == torch.float64
    assert torch.isfinite(grid).all() and (grid.diff() < 0).all()
    assert grid[0] == high and grid[-1] == low


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('K', [1, 2, 3, 4, 8])
def test_nesting(name, K):
    for n_steps in range(1, 8):
        fine, coarse = sc.nested_sigmas(n_steps, K, name, 0.006)
        assert len(fine) == n_steps * K + 1 and torch.equal(coarse, fine[::K])
        torch.testing.assert_close(coarse, sc.make_sigmas(name, n_steps, 0.006), rtol=1e-10, atol=0)
        if name in ('karras', 'logsnr'):
            torch.testing.assert_close(
                coarse, sc.make_sigmas(name, n_steps, 0.006), rtol=1e-12, atol=0
            )


@pytest.mark.parametrize('name', NAMES)
def test_bad_n_steps_and_range(name):
    for n_steps in (0, -1, 2.5, True, None, '3'):
        with pytest.raises(ValueError, match='n_steps'):
            sc.make_sigmas(name, n_steps)
    for low, high in (
        (0.0, 80.0),
        (-1.0, 80.0),
        (80.0, 80.0),
        (2.0, 1.0),
        (math.nan, 80.0),
        (0.002, math.inf),
        (0.002, math.nan),
    ):
        with pytest.raises(ValueError, match='sigma_min'):
            sc.make_sigmas(name, 4, low, high)


@pytest.mark.parametrize('make', [sc.karras_sigmas, sc.time_uniform_sigmas, sc.discrete_sigmas])
@pytest.mark.parametrize('rho', [0.0, -7.0, math.nan, math.inf])
def test_bad_rho(make, rho):
    with pytest.raises(ValueError, match='rho'):
        make(4, rho=rho)


def test_karras_ends_in_logsnr():
    assert torch.allclose(sc.karras_sigmas(10, rho=1e6), sc.make_sigmas('logsnr', 10), rtol=1e-3)


def test_unknown_names():
    with pytest.raises(ValueError, match='unknown schedule .*karras'):
        sc.make_sigmas('poly7', 4)
    with pytest.raises(ValueError, match='unknown schedule'):
        sc.nested_sigmas(2, 2, 'poly7')
    z = torch.zeros(2, 3)
    for convert in (sc.to_x0, sc.to_eps, sc.to_v):
        with pytest.raises(ValueError, match='unknown prediction .*eps'):
            convert(z, z, 1.0, 0.0, 'noise')


@pytest.mark.parametrize('n_steps, K', [(2, 0), (2, -1), (0, 2), (2, 1.5)])
def test_bad_nesting(n_steps, K):
    with pytest.raises(ValueError):
        sc.nested_sigmas(n_steps, K)


@pytest.mark.parametrize('eps_s', [0.0, 1.0, -1.0, math.nan])
def test_bad_eps_s(eps_s):
    with pytest.raises(ValueError, match='eps_s'):
        sc.time_uniform_sigmas(4, eps_s=eps_s)


@pytest.mark.parametrize('rho', [1.0, 2.0, 7.0])
def test_time_uniform_and_discrete_reach_both_ends_for_every_rho(rho):
    for make in (sc.time_uniform_sigmas, sc.discrete_sigmas):
        grid = make(
            10**5, rho=rho
        )  # the neighbours of the two ends are where the ends say, so the formula reaches them
        assert grid[0] / grid[1] - 1 < 0.01 and (grid[-2] - grid[-1] < 0.01)


def test_discrete_refuses_levels_above_its_table():
    with pytest.raises(ValueError, match='157.4'):
        sc.discrete_sigmas(4, sigma_max=158.0)
    assert len(sc.discrete_sigmas(4, sigma_max=1000.0, alpha_bar=sc.cosine_alpha_bar())) == 5


def test_tables():
    for T in (21, 50, 1000, 1024):
        for a in (sc.linear_alpha_bar(T), sc.cosine_alpha_bar(T)):
            assert (
                a.shape == (T,)
                and a.dtype == torch.float64
                and (a.diff() < 0).all()
                and 0 < a[-1] < a[0] < 1
            )
    for T in (0, 20, 10.5):
        pytest.raises(ValueError, sc.linear_alpha_bar, T)
    pytest.raises(ValueError, sc.cosine_alpha_bar, 0)


@pytest.mark.parametrize('n_steps', [1, 2, 3, 7, 50, 999, 1000])
def test_strided_nodes(n_steps):
    a = sc.linear_alpha_bar()
    nodes, indices = sc.strided_nodes(a, n_steps)
    assert len(nodes) == n_steps + 1 and len(indices) == n_steps
    assert indices[0] == 999 and indices[-1] >= 0 and nodes[-1] == 1
    assert (
        (indices.diff() < 0).all()
        and (nodes.diff() > 0).all()
        and torch.equal(nodes[:-1], a[indices])
    )


@pytest.mark.parametrize('n_steps', [0, 1001, 2.0])
def test_bad_stride(n_steps):
    with pytest.raises(ValueError, match='n_steps'):
        sc.strided_nodes(sc.linear_alpha_bar(), n_steps)


@pytest.mark.parametrize('shape', [(3, 2), (3, 1, 4, 4), (3, 5, 1, 4, 4)])
@pytest.mark.parametrize('scale', ['float', 'scalar tensor', 'per sample'])
def test_conversions_round_trip_in_every_shape(shape, scale):
    g = torch.Generator().manual_seed(0)
    z, x0 = torch.randn(2, *shape, generator=g, dtype=torch.float64)
    sigma = {
        'float': 0.7,
        'scalar tensor': torch.tensor(0.7),
        'per sample': torch.tensor([0.1, 0.7, 5.0]),
    }[scale]
    alpha, sigma_vp = sc.vp_scales(sigma)
    eps, v = sc.to_eps(x0, z, alpha, sigma_vp, 'x0'), sc.to_v(x0, z, alpha, sigma_vp, 'x0')
    torch.testing.assert_close(sc.to_x0(eps, z, alpha, sigma_vp, 'eps'), x0, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(sc.to_x0(v, z, alpha, sigma_vp, 'v'), x0, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(sc.to_eps(v, z, alpha, sigma_vp, 'v'), eps, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        sc.vp_from_ve(sc.ve_from_vp(z, sigma), sigma), z, rtol=1e-12, atol=1e-12
    )


def test_v_is_defined_where_the_others_are_not():
    z = torch.ones(1, 2)
    assert torch.equal(sc.to_x0(z, z, 0.0, 1.0, 'v'), -z) and torch.equal(
        sc.to_eps(z, z, 1.0, 0.0, 'v'), z
    )
    assert not torch.isfinite(sc.to_x0(z * 2, z, 0.0, 1.0, 'eps')).any()


def test_conversions_keep_the_dtype():
    z = torch.zeros(2, 3)
    alpha, sigma_vp = sc.vp_scales(torch.tensor([1.0, 2.0]))
    for convert in (sc.to_x0, sc.to_eps, sc.to_v):
        for kind in sc.PREDICTIONS:
            assert convert(z, z, alpha, sigma_vp, kind).dtype == torch.float32


@pytest.mark.parametrize('low, high', ((0.2, 80.0), (1.0, 2.0), (1.999, 2.0)))
def test_levels_that_no_linear_process_goes_down_through_are_refused(low, high):
    with pytest.raises(ValueError, match='goes down from .* lower sigma_min, or take another'):
        sc.time_uniform_sigmas(4, low, high)
