"What both hosts share: one segment, one door, and configurations that come back from a student."
import json
from dataclasses import replace

import pytest
import torch
from bdense_nb.core import NFECounter, sample_noise
from bdense_nb.distill import PRESETS, PDConfig, SFDConfig, config_of, distill, load_student, preset, reference_plan, sfd_variable, teacher_bank, training_cost
from bdense_nb.nets import MLP
from bdense_nb.samplers import SOLVERS, trajectory
from bdense_nb.schedules import karras_sigmas
from bdense_nb.targets import progressive_segment, segments
from bdense_nb.teachers import EDMDenoiser, MixtureDenoiser

BLOBS = MixtureDenoiser(torch.tensor([[-1., 0.], [1., .5]]), torch.tensor([.2, .3]), torch.ones(2))
SFD, PD = SFDConfig(steps=2, batch=4, lr=1e-3, shape=(2,)), PDConfig(8, 2, updates=2, batch=4, lr=1e-3)


@pytest.fixture(scope='module')
def teacher():
    torch.manual_seed(0)
    denoiser = EDMDenoiser(MLP(width=8, depth=1))
    torch.nn.init.normal_(denoiser.net.out.weight, std=.2)
    return denoiser.requires_grad_(False).eval()


@pytest.mark.parametrize('substeps, K', [(1, 1), (2, 1), (2, 2), (4, 2), (6, 3), (8, 8)])
def test_both_hosts_make_the_same_segment(substeps, K):
    grid, x = karras_sigmas(2*substeps, .01, 10.), 10*sample_noise(range(16), (2,)).double()
    cut = segments(trajectory(BLOBS, x, grid, 'euler'), substeps, K)[0]
    made = progressive_segment(BLOBS, x, grid[:substeps + 1].expand(16, -1), K)
    assert (cut.states - made.states).abs().max() < 1e-12
    assert torch.equal(cut.sigmas_k.expand(16, K), made.sigmas_k)


@pytest.mark.parametrize('cfg', [SFD, PD, replace(SFD, nfe=1, K=2, branch_weights=(1., 2.)), replace(PD, K=1, branch_weights_end='endpoint')], ids=lambda c: type(c).__name__)
def test_a_student_knows_its_configuration(teacher, cfg, tmp_path):
    student = distill(teacher, cfg, BLOBS.sample(32), show=False)
    student.save(tmp_path)
    assert config_of(load_student(tmp_path).about) == cfg
    assert student.nfe == (cfg.nfe if isinstance(cfg, SFDConfig) else cfg.end_steps)


def test_one_of_several_step_counts_knows_its_configuration(teacher):
    student = sfd_variable(teacher, SFD, (1, 2), show=False)
    for n in (1, 2): assert config_of(json.loads(json.dumps(student.at(n).about))) == replace(SFD, nfe=n)


@pytest.mark.parametrize('host', ['dmd', None])
def test_an_unknown_host_is_named(host):
    with pytest.raises(ValueError, match=f'unknown host {host!r}; choose one of: sfd, sfd-v, pd'): config_of(dict(host=host, config={}))


def test_the_reference_starts_and_ends_where_the_student_does():
    for cfg, student_grid in ((SFD, SFD.grids[1]), (PD, PD.grid(2))):
        plan = reference_plan(cfg, (2,))
        assert (plan.sigmas[0], plan.sigmas[-1]) == (student_grid[0].item(), student_grid[-1].item())
        assert set(student_grid.tolist()) <= {min(plan.sigmas, key=lambda s, t=t: abs(s - t)) for t in student_grid.tolist()} or torch.allclose(
            torch.tensor([min(plan.sigmas, key=lambda s, t=t: abs(s - t)) for t in student_grid.tolist()], dtype=torch.float64), student_grid, rtol=1e-12, atol=0)


@pytest.mark.parametrize('solver', SOLVERS)
def test_the_cost_of_sfd_is_what_the_run_asks_for(teacher, solver):
    cfg = replace(SFD, solver=solver, steps=4, pool=8)
    counter = NFECounter(teacher)
    for i in range(2): cfg.plan.walk(counter, cfg.seeds(i))
    assert training_cost(cfg) == dict(updates=8, teacher=counter.nfe*cfg.batch, student=2*4*4)


def test_the_cost_of_progressive_distillation():
    assert training_cost(PD) == dict(updates=4, teacher=2*4*4, student=4*4)
    assert training_cost(replace(PD, start_steps=32, substeps=4, K=4)) == dict(updates=4, teacher=4*16, student=16)


def test_bad_calls_are_refused_before_work(teacher):
    with pytest.raises(ValueError, match='noises real data'): distill(teacher, PD)
    with pytest.raises(TypeError, match='SFDConfig or a PDConfig'): distill(teacher, None)
    with pytest.raises(ValueError, match="unknown preset 'x'"): preset('x')
    with pytest.raises(ValueError, match='another teacher'): distill(teacher, SFD, bank=teacher_bank(EDMDenoiser(MLP(width=8, depth=1)), SFD, show=False), show=False)


def test_presets_can_be_written_as_json():
    for name, cfg in PRESETS.items(): assert type(cfg)(**json.loads(json.dumps(cfg.__dict__))) == cfg, name
