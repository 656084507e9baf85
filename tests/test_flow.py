"""Flow matching is a change of coordinates: same steps, same students."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from bdense_nb.diffusion.checks import check_teacher
from bdense_nb.diffusion.denoisers import EDMDenoiser, FlowDenoiser, GaussianDenoiser
from bdense_nb.diffusion.denoisers import MixtureDenoiser, VPDenoiser, as_column, check_top
from bdense_nb.diffusion.stored import load_denoiser, save_denoiser
from bdense_nb.diffusion.nets import MLP
from bdense_nb.diffusion.samplers import Sampler, trajectory
from bdense_nb.diffusion.schedules import (
    SCHEDULES,
    SHIFTED,
    cosine_alpha_bar,
    make_sigmas,
    sigma_from_alpha_bar,
)
from bdense_nb.distillation.progressive import PDConfig, progressive
from bdense_nb.distillation.sfd import SFDConfig, sfd, teacher_bank
from bdense_nb.distillation.students import load_student
from bdense_nb.distillation.variable import SFDVConfig, second_stage

ANGLES = torch.arange(5) * 2 * math.pi / 5
RING = MixtureDenoiser(
    torch.stack([ANGLES.cos(), ANGLES.sin()], 1), torch.full((5,), 0.15), torch.ones(5)
)
WAYS = [(1.0, 0), (1000.0, 0), (1.0, 1), (1000.0, 1)]


class ExactFlow(nn.Module):
    "The velocity of the ring: exact, with time in 0..scale and data at `data_time`."

    def __init__(self, scale=1.0, data_time=0, of=RING):
        super().__init__()
        self.scale, self.data_time, self.of = scale, data_time, of

    def forward(self, x_t, time, cond=None):
        t = as_column(time / self.scale, x_t)
        t = 1 - t if self.data_time else t
        x0 = self.of(x_t / (1 - t), (t / (1 - t)).flatten())
        return (x0 - x_t) / t if self.data_time else (x_t - x0) / t


def flow(*way):
    return FlowDenoiser(ExactFlow(*way), *way)


@pytest.mark.parametrize('way', WAYS)
def test_an_exact_velocity_is_the_exact_denoiser(way):
    x = 5 * torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigma = torch.tensor([0.01, 0.2, 1.0, 4.0, 80.0, 1000.0], dtype=torch.float64)
    torch.testing.assert_close(flow(*way)(x, sigma), RING(x, sigma), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(flow(*way)(x, 2.0), RING(x, 2.0), rtol=1e-9, atol=1e-9)
    assert check_teacher(flow(*way), RING.sample(1000)).ok


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('n_steps, shift', [(1, 1.0), (4, 1.0), (28, 3.0)])
def test_euler_is_the_same_walk_in_both_coordinates(way, n_steps, shift):
    "The walk of a flow library, x += (t_next - t)*v from t = .999, and ours on the VE scale."
    eps = torch.randn(8, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sigmas = make_sigmas('flow', n_steps, 0.01, 999.0, shift)
    t = sigmas / (1 + sigmas)
    D, scale, data_time = flow(*way), *way
    x_t = t[0] * eps  # ours starts at sigma*eps, which is x_t/(1 - t)
    ve = trajectory(D, sigmas[0] * eps, sigmas)
    for i in range(n_steps):
        time = scale * (1 - t[i] if data_time else t[i])
        velocity = D.net(x_t, time.expand(8))
        x_t = x_t + (t[i + 1] - t[i]) * (-velocity if data_time else velocity)
        torch.testing.assert_close(x_t / (1 - t[i + 1]), ve[i + 1], rtol=1e-7, atol=1e-7)


def test_what_starting_at_sigma_max_costs():
    "The flow of a Gaussian is known to its end: the start leaves out the mean of the data, mean/sigma_max of it."
    gauss = GaussianDenoiser(0.7, 0.5)
    eps = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = 0.7 + 0.5 * eps  # from t = 1
    for top in (80.0, 1000.0, 10_000.0):
        gap = (gauss.flow(top * eps, top, 0.0) - whole).square().mean().sqrt().item()
        assert gap == pytest.approx(0.5 * 0.7 / top, rel=0.02)


@pytest.mark.parametrize('shift', [0.5, 1.0, 3.0])
def test_the_flow_grid_is_even_in_time_and_shifted_as_flow_libraries_do(shift):
    sigmas = make_sigmas('flow', 10, 0.05, 200.0, shift)
    t = sigmas / (1 + sigmas)
    even = t / (shift + (1 - shift) * t)  # t is shift*even/(1 + (shift - 1)*even)
    torch.testing.assert_close(even.diff(), even.diff().mean().expand(10), rtol=1e-8, atol=0)
    assert sigmas[0] == 200.0 and sigmas[-1] == 0.05
    assert torch.equal(make_sigmas('karras', 8), make_sigmas('karras', 8, shift=1.0))
    torch.testing.assert_close(
        make_sigmas('karras', 8, shift=2.0), make_sigmas('karras', 8), rtol=1e-9, atol=0
    )  # it has no scale


@pytest.mark.parametrize('shift', [0.0, -1.0, math.inf])
def test_bad_shifts(shift):
    with pytest.raises(ValueError, match='shift'):
        make_sigmas('flow', 4, shift=shift)
    with pytest.raises(ValueError, match='shift'):
        SFDConfig(shift=shift)
    with pytest.raises(ValueError, match='shift'):
        PDConfig(shift=shift)


@pytest.mark.parametrize(
    'how, message', [(dict(time_scale=0.0), 'time_scale'), (dict(data_time=2), 'data_time')]
)
def test_bad_flows(how, message):
    with pytest.raises(ValueError, match=message):
        FlowDenoiser(MLP(), **how)


@pytest.mark.parametrize('is_', WAYS)
@pytest.mark.parametrize('said', WAYS)
def test_a_misread_flow_is_named(is_, said):
    D = FlowDenoiser(ExactFlow(*is_), *said)
    if is_ == said or said == (1.0, 1) and is_[0] == 1000.0:
        return  # the errors of the second stay within what is accepted
    how = ', time_scale=1000' * (is_[0] != 1) + ', data_time=1' * is_[1]
    with pytest.raises(ValueError, match=rf'which FlowDenoiser\(net{how}\) takes'):
        check_teacher(D, RING.sample(2000))


class Noise(ExactFlow):
    "Predicts the noise of a flow, not its velocity."

    def forward(self, x_t, time, cond=None):
        velocity = super().forward(x_t, time, cond)
        t = as_column(time / self.scale, x_t)
        return x_t - t * velocity if self.data_time else x_t + (1 - t) * velocity


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('size', [0.3, 1.0, 4.0])
def test_a_network_of_the_noise_is_no_flow_at_any_size_of_the_data(way, size):
    "Where data are small, every level is within what is accepted: that another reading is better betrays it."
    of = MixtureDenoiser(size * RING.means, size * RING.stds, RING.weights)
    data = of.sample(2000)
    assert check_teacher(FlowDenoiser(ExactFlow(*way, of), *way), data).ok
    answers = r'\(x_t - eps\)/t' if way[1] else r'\(eps - x_t\)/\(1 - t\)'
    D = FlowDenoiser(Noise(*way, of), *way)
    with pytest.raises(
        ValueError,
        match=f'predict the noise eps; a network that answers {answers} predicts the velocity',
    ):
        check_teacher(D, data)


@pytest.mark.parametrize('steps', [0, 3, 30, 300])
def test_a_flow_that_has_hardly_learnt_is_not_taken_for_another(steps):
    torch.manual_seed(0)
    D = FlowDenoiser(MLP(2, 32, 2))
    adam = torch.optim.Adam(D.parameters(), 3e-3)
    data = 0.3 * RING.sample(4000)
    for i in range(steps):
        x0, eps, t = data[torch.randint(4000, (128,))], torch.randn(128, 2), torch.rand(128)
        loss = (
            (D.net((1 - t[:, None]) * x0 + t[:, None] * eps, t, None) - (eps - x0)).square().mean()
        )
        adam.zero_grad(), loss.backward(), adam.step()
    found = check_teacher(D, data, refuse=False)
    assert 'the noise eps;' not in found.predicts and (found.ok or steps < 300)


@pytest.mark.parametrize('data_time', [0, 1])
def test_flow_denoisers_on_disk(data_time, tmp_path):
    D = FlowDenoiser(MLP(width=8, depth=1, n_classes=2), 1000.0, data_time)
    save_denoiser(D, tmp_path)
    again = load_denoiser(tmp_path, 'cpu')
    x = torch.randn(3, 2)
    assert (
        type(again) is FlowDenoiser
        and torch.equal(again(x, 2.0), D(x, 2.0))
        and again.config == dict(time_scale=1000.0, data_time=data_time)
    )


def near_exact(way=(1.0, 0)):
    "A flow network that learned the ring's velocity a little."
    torch.manual_seed(0)
    D = FlowDenoiser(MLP(width=32, depth=2), *way)
    opt = torch.optim.Adam(D.parameters(), 1e-2)
    data = RING.sample(2000)
    for i in range(150):
        g = torch.Generator().manual_seed(i)
        x0, eps = data[torch.randint(2000, (128,), generator=g)], torch.randn(128, 2, generator=g)
        t = torch.rand(128, generator=g) * 0.98 + 0.01
        velocity = D.net(
            (1 - t)[:, None] * x0 + t[:, None] * eps, way[0] * (1 - t if way[1] else t)
        )
        loss = (velocity - (x0 - eps if way[1] else eps - x0)).square().mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    return D.eval()


@pytest.mark.parametrize('way', [(1.0, 0), (1.0, 1)])
def test_a_flow_teacher_is_distilled_by_both_hosts(way, tmp_path):
    teacher = near_exact(way)
    for K in (1, 4):
        cfg = SFDConfig(
            shape=(2,),
            nfe=2,
            K=K,
            substeps=4,
            steps=60,
            batch=64,
            pool=64,
            lr=2e-3,
            schedule='flow',
            shift=2.0,
            sigma_max=1000.0,
            sigma_min=0.02,
            afs=False,
        )
        untrained = Sampler(teacher, cfg.grids[1], False, (2,))
        student = sfd(teacher, cfg, show=False)
        want = cfg.plan.sampler(teacher).sample(200)
        error = lambda s: (s.sample(200) - want).square().mean().sqrt().item()
        assert (
            type(student.denoiser) is FlowDenoiser
            and student.nfe == 2
            and error(student) < 0.9 * error(untrained)
        )
        student.save(tmp_path / f'{K}')
        assert torch.equal(load_student(tmp_path / f'{K}', 'cpu').sample(5), student.sample(5))
    cfg = PDConfig(
        start_steps=4,
        end_steps=2,
        updates=3,
        batch=16,
        K=2,
        schedule='flow',
        shift=2.0,
        sigma_max=1000.0,
    )
    student = progressive(teacher, RING.sample(100), cfg, show=False)
    assert (
        type(student.denoiser) is FlowDenoiser
        and student.nfe == 2
        and student.sample(3).isfinite().all()
    )
    assert torch.equal(student.sigmas[:-1], make_sigmas('flow', 2, 0.002, 1000.0, 2.0)[:-1])


@pytest.mark.parametrize('sigma_max', [200.0, 1000.0])
def test_the_second_stage_keeps_the_shift(sigma_max):
    "And is not told of the end of another schedule's table."
    cfg = SFDConfig(
        shape=(2,),
        nfe=4,
        K=1,
        substeps=2,
        steps=1,
        batch=4,
        pool=4,
        schedule='flow',
        shift=3.0,
        sigma_max=sigma_max,
        afs=False,
    )
    student = sfd(near_exact(), cfg, show=False)
    assert second_stage(student).shift == 3.0 and torch.allclose(
        second_stage(student).grids[0], student.sigmas
    )


FLOW_GRID = dict(schedule='flow', sigma_max=1000.0, shift=3.0, afs=False)


@pytest.mark.parametrize('cfg', [SFDConfig(), SFDVConfig(), PDConfig()], ids=lambda cfg: cfg.host)
def test_a_configuration_is_fitted_to_a_flow(cfg):
    "Its own time, its scheduler's shift, no analytic step; what is given stays, and a stored grid does."
    D = FlowDenoiser(MLP(width=8))
    D.net.shift_for = lambda shape: 3.0
    wanted = {k: v for k, v in FLOW_GRID.items() if hasattr(cfg, k)}
    grid = lambda *given, **own: {
        k: getattr(replace(cfg, **own).fitted(D, (2,), frozenset(given)), k) for k in wanted
    }
    assert grid() == wanted and grid('shift', shift=5.0) == wanted | dict(shift=5.0)
    assert grid('schedule', schedule='karras') == wanted | dict(schedule='karras', shift=1.0)
    assert grid('config') == {k: getattr(cfg, k) for k in wanted}


@pytest.mark.parametrize('schedule', SCHEDULES)
def test_a_shift_that_moves_nothing_is_refused(schedule):
    moved = not torch.allclose(
        make_sigmas(schedule, 4, 0.01, 80.0, 3.0), make_sigmas(schedule, 4, 0.01, 80.0)
    )
    cfg = SFDConfig(shape=(2,), schedule=schedule, sigma_min=0.01, shift=3.0, batch=4, pool=4)
    assert moved == (schedule in SHIFTED)
    D = EDMDenoiser(MLP(width=8))
    if moved:
        assert cfg.suited(D) is cfg
        return
    for ask in (
        cfg.suited,
        lambda D: sfd(D, cfg, show=False),
        lambda D: teacher_bank(D, cfg, show=False),
    ):
        with pytest.raises(ValueError, match=f"shift=3 moves no level of schedule '{schedule}'"):
            ask(D)
    with pytest.raises(ValueError, match='shift=3 moves no level'):
        PDConfig(schedule=schedule, shift=3.0).suited(D)


def test_an_analytic_step_of_a_flow_is_refused():
    "Python's own defaults have one, so they say what to pass."
    for ask in (sfd, teacher_bank):
        with pytest.raises(
            ValueError,
            match=r"afs=True.*afs=False with schedule='flow', sigma_max=1000.*cfg.fitted\(teacher, shape\) has",
        ):
            ask(FlowDenoiser(MLP(width=8)), SFDConfig(shape=(2,)), show=False)


# tables whose last level has no signal
def test_zero_terminal_snr_starts_from_the_last_finite_level():
    table = cosine_alpha_bar(50)
    whole = torch.cat([table, torch.zeros(1).double()])
    net = MLP()
    a, b = VPDenoiser(net, table, 'v'), VPDenoiser(net, whole, 'v')
    x = torch.randn(3, 2)
    top = sigma_from_alpha_bar(table[-1]).item()
    assert (
        torch.equal(a(x, top), b(x, top))
        and len(b.alpha_bar) == 50
        and b.index(torch.tensor([top])).item() == 49
    )
    with pytest.raises(ValueError, match='noisiest level'):
        check_top(2 * top, b)
    cfg = PDConfig(start_steps=4, end_steps=2, updates=1, batch=2, schedule='teacher').on_table(b)
    assert math.isfinite(cfg.sigmas[0]) and cfg.sigmas[0].item() == pytest.approx(top)
    for bad in (torch.zeros(3), torch.tensor([0.9, 0.0, 0.0]), torch.tensor([0.5, 0.0])):
        with pytest.raises(ValueError, match='strictly descending'):
            VPDenoiser(net, bad)
