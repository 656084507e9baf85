"Teacher, SFD and Progressive Distillation, killed at any iteration and run again: the same numbers, bit for bit."

import os
import signal
from dataclasses import asdict, replace
from functools import cache

import bdense_nb.distillation.progressive as progressive_module
import bdense_nb.distillation.sfd as sfd_module
import bdense_nb.distillation.students as students_module
import bdense_nb.distillation.teaching as teachers_module
import pytest
import torch
from bdense_nb.training.checkpoints import newest_checkpoint
from bdense_nb.distillation.distill import distill
from bdense_nb.training.config import Hardware
from test_distill import own_host
from two_processes import CFG, PD, SFD, make_teacher

DATA, LABELS = torch.randn(40, 2, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3


def teacher(folder):
    return teachers_module.train_teacher(
        make_teacher(), DATA, LABELS, CFG, batch=8, folder=folder, show=False
    ).ema


def sfd(folder):
    return sfd_module.sfd(make_teacher(), SFD, folder=folder, show=False).denoiser


def pd(folder, **changes):
    return progressive_module.progressive(
        make_teacher(), DATA, replace(PD, **changes), LABELS, folder=folder, show=False
    ).denoiser


def pd_with_average(folder):
    return pd(folder, ema=0.5)


def test_a_host_of_ones_own_takes_micro_batches():
    Pairs, _ = own_host()
    cfg = Pairs(nfe=2, pool=16, batch=8, steps=4)
    whole, parts = (
        distill(make_teacher(), cfg, show=False, hardware=Hardware(accumulate=n)) for n in (1, 2)
    )
    torch.testing.assert_close(whole.sample(5), parts.sample(5), rtol=1e-3, atol=1e-4)


def killed(run, folder, at):
    "Run in a process of its own that kills itself when the step function begins for the `at`-th time."
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    try:
        begun = 0
        for module in (teachers_module, students_module, progressive_module):

            def dying(model, step, *args, real=module.fit, **named):
                def counted(model, i):
                    nonlocal begun
                    if begun == at:
                        os.kill(os.getpid(), signal.SIGKILL)
                    begun += 1
                    yield from step(model, i)

                return real(model, counted, *args, **named)

            module.fit = dying
        run(folder)
    finally:
        os._exit(1)


def assert_same(one, two, a, b):
    assert [k for k, v in one.state_dict().items() if not torch.equal(v, two.state_dict()[k])] == []
    places = [p.relative_to(a) for p in a.rglob('checkpoint-*.safetensors')]
    assert places and sorted(places) == sorted(
        p.relative_to(b) for p in b.rglob('checkpoint-*.safetensors')
    )
    for place in {p.parent for p in places}:
        (ta, ma), (tb, mb) = newest_checkpoint(a / place), newest_checkpoint(b / place)
        assert (
            ma['history'] == mb['history']
            and ta.keys() == tb.keys()
            and all(torch.equal(ta[k], tb[k]) for k in ta)
        )


MOMENTS = [
    (teacher, 0),
    (teacher, 9),
    (sfd, 1),
    (sfd, 5),
    (pd, 3),
    (pd, 6),
    (pd, 10),
    (pd_with_average, 8),
]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "A run that nobody disturbed, and its folder."

    @cache
    def made(run):
        folder = tmp_path_factory.mktemp(run.__name__)
        return run(folder), folder

    return made


@pytest.mark.parametrize('run,at', MOMENTS, ids=lambda v: getattr(v, '__name__', str(v)))
def test_killed_and_run_again(tmp_path, whole, run, at):
    "Progressive Distillation has rounds of 6: at 6 the kill falls between two rounds, after it into the second."
    assert len(PD.rounds) == 2 and PD.updates == 6
    status = killed(run, tmp_path / 'b', at)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    want, folder = whole(run)
    assert_same(want, run(tmp_path / 'b'), folder, tmp_path / 'b')


def test_configurations_of_checkpoints_are_whole(tmp_path):
    teacher(tmp_path)
    assert newest_checkpoint(tmp_path)[1]['config'] | {'betas': CFG.betas} == asdict(CFG)
