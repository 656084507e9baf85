"`bdense_bench` measures what it says, and no iteration of a training waits for the device."
import pytest
import torch
from bdense_nb.app.bench import Size, sfd_config
from bdense_nb.distillation.branches import branch
from bdense_nb.distillation.progressive import PDConfig, pd_step
from bdense_nb.distillation.teaching import edm_loss
from bdense_nb.training.config import Hardware, TrainConfig
from bdense_nb.training.loop import training

SIZE = Size(dict(widths=(8, 32), n_classes=10), (1, 8, 8), 4)
META = torch.device('meta')


def on_meta(step, K: int | None, **config) -> None:
    "Two iterations with a student whose numbers are nowhere: what reads one of them raises."
    student = SIZE.denoiser(torch.device('cpu'))
    student = (student if K is None else branch(student, K)).to(META).train().requires_grad_(True)
    run = training(student, step, TrainConfig(10, log_every=10, checkpoint_every=10, **config), Hardware())
    for _ in range(2): next(run)


@pytest.mark.parametrize('changes', [{}, dict(K=1), dict(teacher_states='local'), dict(branch_weights_end='endpoint'), dict(solver='dpmpp3m'),
                                     dict(solver='heun'), dict(loss='huber'), dict(branch_step='end')], ids=str)
def test_no_iteration_of_sfd_reads_from_the_device(changes):
    cfg = sfd_config(SIZE, **changes)
    teacher = SIZE.denoiser(META)
    on_meta(cfg.step_function(teacher), cfg.K, clip_grad=1., ema=.9)


@pytest.mark.parametrize('target', ['state', 'x0'])
def test_no_iteration_of_pd_reads_from_the_device(target):
    cfg = PDConfig(start_steps=8, end_steps=4, K=2, updates=4, batch=4, target=target)
    data, labels = torch.randn(8, *SIZE.shape), torch.arange(8)
    on_meta(pd_step(SIZE.denoiser(META), data, labels, cfg, 4), 2, clip_grad=1., ema=.9)


def test_no_iteration_of_teaching_reads_from_the_device():
    x = torch.randn(4, *SIZE.shape, device=META)
    def step(model, i): yield edm_loss(model, x, torch.zeros(4, dtype=torch.long, device=META), torch.Generator().manual_seed(i))
    on_meta(step, None)


def test_a_step_that_reads_from_the_device_is_seen():
    def step(model, i):
        loss = model(torch.randn(4, *SIZE.shape, device=META), 1.).mean()
        if loss > 0: loss = 2*loss
        yield loss
    with pytest.raises(RuntimeError, match='meta'): on_meta(step, None)
