"""Conditions travel with their samples: classes, tensors and dicts; guidance; tables of embeddings."""

import copy
import inspect
import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from bdense_nb.app import shell as cli
from bdense_nb.app import commands, measuring, sources
from bdense_nb.core import NFECounter, load_tensors, sample_labels, save_tensors
from bdense_nb.diffusion.checks import check_teacher
from bdense_nb.diffusion.denoisers import EDMDenoiser, FlowDenoiser, GaussianDenoiser
from bdense_nb.diffusion.denoisers import GuidedDenoiser, MixtureDenoiser, VPDenoiser, null_rows
from bdense_nb.diffusion.denoisers import unguided
from bdense_nb.diffusion.nets import MLP
from bdense_nb.diffusion.samplers import (
    ConditionTable,
    Sampler,
    draw_conditions,
    draw_start,
    sample,
)
from bdense_nb.diffusion.schedules import linear_alpha_bar
from bdense_nb.distillation.bank import TrajectoryPlan, denoiser_hash, frozen_copy, make_bank
from bdense_nb.distillation.branches import branch
from bdense_nb.distillation.distill import preset
from bdense_nb.distillation.progressive import PDConfig, progressive
from bdense_nb.distillation.sfd import SFDConfig, sfd, teacher_bank
from bdense_nb.distillation.students import describe_teacher, load_student
from bdense_nb.distillation.variable import SFDVConfig
from bdense_nb.training.config import Hardware

SFD = dict(shape=(2,), nfe=2, substeps=4, steps=2, batch=4, pool=8, lr=1e-3, sigma_max=20.0)
PD = dict(start_steps=4, end_steps=2, updates=2, batch=4)


class TextNet(nn.Module):
    "Takes a sequence of tokens and a pooled vector, as text-conditional networks do."

    def __init__(self):
        super().__init__()
        self.tokens, self.pooled, self.first, self.out = (
            nn.Linear(3, 16),
            nn.Linear(4, 16),
            nn.Linear(3, 16),
            nn.Linear(16, 2),
        )

    def forward(self, x, noise, cond):
        noise = (noise / (1 + noise.abs())).reshape(-1, 1).expand(len(x), 1)
        h = self.first(torch.cat([x, noise], 1))
        return self.out(
            (h + self.tokens(cond['tokens']).mean(1) + self.pooled(cond['pooled'])).tanh()
        )


def text(kind=EDMDenoiser, seed=0, rows=6, **how):
    torch.manual_seed(seed)
    D = kind(TextNet(), **how).eval()
    g = torch.Generator().manual_seed(1)
    D.conditions = ConditionTable(
        dict(tokens=torch.randn(rows, 5, 3, generator=g), pooled=torch.randn(rows, 4, generator=g))
    )
    return D


def classy(n=3, seed=0):
    torch.manual_seed(seed)
    D = EDMDenoiser(MLP(width=16, depth=1, n_classes=n)).eval()
    for p in D.parameters():
        nn.init.normal_(p, 0, 0.3)
    return D


KINDS = dict(
    edm=dict(),
    vp=dict(kind=VPDenoiser, alpha_bar=linear_alpha_bar(1000), prediction='x0'),
    flow=dict(kind=FlowDenoiser),
)


def row(D, i):
    return {k: v[i : i + 1] for k, v in D.conditions.rows.items()}


# tables
def test_a_table_draws_rows_from_seeds_alone():
    table = text().conditions
    got, index = table([9, 2, 9]), sample_labels([9, 2, 9], 6)
    assert torch.equal(got['tokens'], table.rows['tokens'][index]) and torch.equal(
        got['pooled'], table.rows['pooled'][index]
    )
    assert len(table) == 6 and copy.deepcopy(table) is table
    one = ConditionTable(torch.arange(4.0)[:, None])
    assert torch.equal(one([5]), one.rows[sample_labels([5], 4)])


@pytest.mark.parametrize(
    'rows',
    [torch.randn(5, 2, 3), dict(b=torch.randn(5, 1), a=torch.randn(5, 7).half())],
    ids=['tensor', 'dict'],
)
def test_a_table_on_disk(rows, tmp_path):
    table = ConditionTable(rows)
    table.save(tmp_path / 't.safetensors')
    again = ConditionTable.load(tmp_path / 't.safetensors')
    assert type(again.rows) is type(table.rows) and again.tensors.keys() == table.tensors.keys()
    for k, v in table.tensors.items():
        assert torch.equal(v, again.tensors[k]) and v.dtype == again.tensors[k].dtype


@pytest.mark.parametrize(
    'rows',
    [dict(a=torch.zeros(3), b=torch.zeros(4)), torch.zeros(0, 2), {}],
    ids=['two lengths', 'none', 'empty'],
)
def test_bad_tables(rows):
    with pytest.raises(ValueError, match='one number of rows, at least 1'):
        ConditionTable(rows)


def test_conditions_take_the_dtype_of_their_samples_and_whole_numbers_keep_theirs():
    D = text()
    D.conditions = ConditionTable(
        dict(
            tokens=torch.randn(4, 5, 3).half(),
            pooled=torch.randn(4, 4).double(),
            ids=torch.arange(4),
        )
    )
    _, cond = draw_start(D, (2,), [1, 2], 1.0)
    assert (
        cond['tokens'].dtype == cond['pooled'].dtype == torch.float32
        and cond['ids'].dtype == torch.long
    )


def test_classes_may_come_from_a_table_too():
    D = classy()
    assert torch.equal(draw_conditions(D, range(50)), sample_labels(range(50), 3))
    D.conditions = ConditionTable(torch.tensor([2, 2, 1]))
    assert set(draw_conditions(D, range(50)).tolist()) == {1, 2}


# sampling
@pytest.mark.parametrize('kind', KINDS)
def test_sampling_with_dicts(kind):
    D = text(**KINDS[kind])
    s = Sampler(D, [20.0, 2.0, 0.1], False, (2,))
    out = s.sample(7, seed=3)
    x, cond = draw_start(D, (2,), range(3, 10), 20.0)
    assert torch.equal(out, sample(D, x, s.sigmas, cond=cond))
    assert torch.allclose(out, s.sample(7, seed=3, batch=2), atol=1e-6) and torch.equal(
        out, s.sample(7, seed=3, cond=cond)
    )
    for_all = s.sample(3, cond=row(D, 1))
    many = {k: v.expand(3, *v.shape[1:]) for k, v in row(D, 1).items()}
    assert torch.equal(for_all, s.sample(3, cond=many)) and not torch.allclose(
        for_all, s.sample(3, cond=row(D, 2))
    )
    assert s.nfe == 2 and torch.equal(s.trajectory(7, 3)[-1], out)


@pytest.mark.parametrize(
    'cond, message',
    [
        (dict(tokens=torch.zeros(2, 5, 3)), 'tokens must have a row for each of the 3'),
        (torch.zeros(4, 2), 'cond must have a row for each of the 3'),
        (torch.zeros(3, dtype=torch.long), 'no classes'),
        (
            dict(token=torch.zeros(3, 5, 3), pooled=torch.zeros(3, 4)),
            'cond has token, and the conditions of this denoiser have tokens',
        ),
    ],
)
def test_bad_conditions_are_refused_before_any_work(cond, message):
    D = text()
    D.net.forward = lambda *_: pytest.fail('work was done')
    with pytest.raises(ValueError, match=message):
        Sampler(D, [2.0, 1.0], False, (2,)).sample(3, cond=cond)


def test_check_teacher_with_a_guided_one_is_about_what_it_guides():
    exact = Two()
    data, label = exact.data(400)
    assert check_teacher(exact, data, label).ok
    assert not check_teacher(GuidedDenoiser(exact, 8.0), data, label, refuse=False).ok


# banks
@pytest.mark.parametrize('on_disk', [False, True])
def test_banks_draw_conditions_again(on_disk, tmp_path):
    D, plan = frozen_copy(text(), (2,)), TrajectoryPlan((20.0, 2.0, 0.1), 'euler', (2,))
    seeds = range(100, 116)
    for _ in range(2):
        bank = make_bank(D, plan, seeds, 4, tmp_path if on_disk else None, show=False)
    traj, cond = bank.batch(range(103, 109))
    want, want_cond = plan.trajectories(D, range(103, 109))
    assert torch.allclose(traj.xs, want.xs, atol=1e-6) and all(
        torch.equal(cond[k], want_cond[k]) for k in want_cond
    )
    other = copy.deepcopy(D)
    other.conditions = ConditionTable({k: v + 1 for k, v in D.conditions.rows.items()})
    with pytest.raises(ValueError, match='another configuration.*teacher'):
        bank.check(other, plan, seeds)


def test_hashes():
    D = classy()
    before = denoiser_hash(D)
    guided = [GuidedDenoiser(D, w, null) for w, null in ((2.0, None), (3.0, None), (2.0, 0))] + [
        GuidedDenoiser(D, 2.0, interval=(0.1, 1.0))
    ]
    assert len({denoiser_hash(g) for g in guided} | {before}) == 5 and denoiser_hash(
        GuidedDenoiser(D, 2.0)
    ) == denoiser_hash(guided[0])
    T = text()
    hashes = {
        denoiser_hash(GuidedDenoiser(T, 2.0, {k: v[:1] * a for k, v in T.conditions.rows.items()}))
        for a in (0.0, 1.0)
    }
    bare = copy.deepcopy(T)
    bare.conditions = None
    assert len(hashes | {denoiser_hash(T), denoiser_hash(bare)}) == 4
    flows = [FlowDenoiser(D.net, scale, end) for scale, end in ((1.0, 0), (1000.0, 0), (1.0, 1))]
    assert len({denoiser_hash(f) for f in flows} | {before}) == 4 and denoiser_hash(D) == before


# guidance
class Two(nn.Module):
    "Exact for data at -1 (class 0) and +1 (class 1); without a class, for both."

    n_classes = 2

    def forward(self, x, sigma, cond=None):
        means = torch.tensor([[-1.0], [1.0]])
        if cond is None:
            return MixtureDenoiser(means, torch.full((2,), 0.3), torch.ones(2))(x, sigma)
        return GaussianDenoiser(means.to(x)[cond], 0.3)(x, sigma)

    def data(self, n):
        label = torch.arange(n) % 2
        return torch.where(label == 1, 1.0, -1.0)[:, None] + 0.3 * torch.randn(
            n, 1, generator=torch.Generator().manual_seed(0)
        ), label


def test_guidance_is_linear_in_its_scale_and_counts_two_calls():
    D, x, label = classy(), torch.randn(6, 2), torch.arange(6) % 3
    given, none = D(x, 1.5, label), D(x, 1.5)
    for w in (0.0, 0.5, 2.0, 7.5):
        torch.testing.assert_close(GuidedDenoiser(D, w)(x, 1.5, label), none + w * (given - none))
    counter = NFECounter(GuidedDenoiser(D, 2.0))
    counter(x, 1.5, label)
    assert (
        counter.nfe == 2 and Sampler(GuidedDenoiser(D, 2.0), [9.0, 3.0, 1.0], False, (2,)).nfe == 4
    )
    foreign = NFECounter(GuidedDenoiser(Two(), 2.0))  # a module that is a denoiser by itself
    foreign(x[:, :1], 1.5, label % 2)
    assert foreign.nfe == 2
    plain = NFECounter(GuidedDenoiser(D, 1.0))
    assert torch.equal(plain(x, 1.5, label), given) and plain.nfe == 1


@pytest.mark.parametrize(
    'sigma', [1.0, torch.tensor([0.1, 0.5, 1.0, 2.0, 3.0, 90.0])], ids=['one', 'each']
)
def test_guidance_in_an_interval(sigma):
    D, x, label = classy(), torch.randn(6, 2), torch.arange(6) % 3
    some, all_ = GuidedDenoiser(D, 3.0, interval=(0.5, 2.0)), GuidedDenoiser(D, 3.0)
    inside = (torch.as_tensor(sigma) >= 0.5) & (torch.as_tensor(sigma) <= 2.0)
    torch.testing.assert_close(
        some(x, sigma, label),
        torch.where(inside.reshape(-1, 1), all_(x, sigma, label), D(x, sigma, label)),
    )
    assert (
        Sampler(some, [9.0, 1.0, 0.1, 0.01], False, (2,)).nfe == 4
    )  # of three steps one is guided


@pytest.mark.parametrize('null', [1, torch.tensor([1]), None], ids=str)
def test_the_null_condition_of_classes(null):
    D, x, label = classy(), torch.randn(4, 2), torch.tensor([0, 1, 2, 0])
    none = D(x, 1.0, None if null is None else torch.full((4,), 1))
    torch.testing.assert_close(
        GuidedDenoiser(D, 2.0, null)(x, 1.0, label), 2 * D(x, 1.0, label) - none
    )


@pytest.mark.parametrize(
    'make, says',
    [
        *[
            (dict(interval=bad), r'interval must be two noise levels \(low, high\).*got')
            for bad in (5.0, 'ab', '12', (1.0, 'x'), (2.0, 1.0), (1.0, 2.0, 3.0))
        ],
        (dict(null=torch.zeros(2, 4)), r'null must be .*one row.*got shape \[2, 4\]'),
        (dict(null=dict(a=torch.zeros(5, 3))), r"null\['a'\] must be .*\[5, 3\]"),
        (dict(null='no'), "null must be a class.*got 'no'"),
    ],
    ids=str,
)
def test_guidance_that_cannot_be_is_refused_in_our_words(make, says):
    with pytest.raises((ValueError, TypeError), match=says):
        GuidedDenoiser(EDMDenoiser(MLP(2)), 2.0, **make)


def test_what_draws_no_conditions_is_refused_where_it_is_used():
    D = EDMDenoiser(MLP(2))
    D.conditions = [1, 2]
    for use in (
        lambda: sfd(D, SFDConfig(**SFD, layer='out'), show=False),
        lambda: branch(D, 2, shape=(2,)),
        lambda: Sampler(D, [2.0, 1.0], False, (2,)).sample(2),
    ):
        with pytest.raises(
            TypeError, match=r'`conditions` must draw.*ConditionTable\(rows\).*got list'
        ):
            use()
    with pytest.raises(TypeError, match='alpha_bar must be .*got None'):
        VPDenoiser(MLP(2), None)


def test_the_null_condition_of_a_dict():
    D, x = text(), torch.randn(3, 2)
    null, cond = row(D, 0), D.conditions([4, 5, 6])
    none = D(x, 1.0, {k: v.expand(3, *v.shape[1:]) for k, v in null.items()})
    torch.testing.assert_close(
        GuidedDenoiser(D, 3.0, null)(x, 1.0, cond), 3 * D(x, 1.0, cond) - 2 * none
    )
    assert {k: tuple(v.shape) for k, v in null_rows(null, 3, torch.device('cpu')).items()} == dict(
        tokens=(3, 5, 3), pooled=(3, 4)
    )


@pytest.mark.parametrize(
    'how, message',
    [
        (dict(scale=-1.0), 'scale'),
        (dict(scale=float('nan')), 'scale'),
        (dict(scale=2.0, interval=(2.0, 1.0)), 'interval'),
        (dict(scale=2.0, interval=(1.0,)), 'interval'),
        (dict(scale=2.0, interval=(-1.0, 1.0)), 'interval'),
    ],
)
def test_bad_guidance(how, message):
    with pytest.raises(ValueError, match=message):
        GuidedDenoiser(classy(), **how)


def test_guidance_that_acts_at_no_step_of_a_run_is_refused():
    guided = lambda *interval: GuidedDenoiser(classy(), 3.0, interval=interval)
    pd = PDConfig(**PD, schedule='karras')
    for cfg in (SFDConfig(**SFD), SFDVConfig(**SFD | dict(nfe=(1, 2))), pd):
        with pytest.raises(
            ValueError,
            match=r'in the interval \(250.0, 750.0\) acts at no step .* noise levels \(sigma, no time steps\) from [28]0 to 0\.\d+,',
        ):
            cfg.suited(guided(250, 750))
        assert cfg.suited(guided(0.1, 5.0)) == cfg and cfg.suited(classy()) == cfg


@pytest.mark.parametrize('scale', [3, torch.tensor(3.0), np.float32(3)], ids=str)
def test_a_scale_is_a_number_whatever_it_comes_as(scale):
    guided, same = (
        GuidedDenoiser(D := classy(), scale, interval=(np.float64(0.1), 5)),
        GuidedDenoiser(D, 3.0, interval=(0.1, 5.0)),
    )
    assert json.dumps(guided.config) == json.dumps(same.config) and denoiser_hash(
        guided
    ) == denoiser_hash(same)


@pytest.mark.parametrize(
    'use, says',
    [
        (lambda D: GuidedDenoiser(D, 3.0, 9), 'null, a class, must be between 0 and 3, got 9'),
        (
            lambda D: GuidedDenoiser(D, 3.0, dict(c=torch.tensor([9]))),
            'null, a class, must be between 0 and 3, got 9',
        ),
        (
            lambda D: Sampler(D, [2.0, 1.0], False, (2,)).sample(
                2, cond=dict(class_labels=torch.tensor([9, 2]))
            ),
            r'label must be in 0..2, got values from 2 to 9',
        ),
        (
            lambda D: (
                setattr(D, 'conditions', ConditionTable(torch.tensor([9]))),
                Sampler(D, [2.0, 1.0], False, (2,)).sample(2),
            ),
            r'label must be in 0..2, got 9$',
        ),
    ],
    ids=['null', 'null in a dict', 'dict', 'table'],
)
def test_a_class_that_a_network_does_not_know_is_refused(use, says):
    with pytest.raises(ValueError, match=says):
        use(classy())
    GuidedDenoiser(classy(), 3.0, 3)  # its null class


@pytest.mark.parametrize(
    'cond, says',
    [
        (
            dict(tokens=torch.full((1, 5, 3), torch.nan), pooled=torch.zeros(1, 4)),
            'tokens: row 0 has numbers that are NaN',
        ),
        (['a cat', 'red'], r'a condition is numbers, got .*prompt_conditions\(pipeline, prompts\)'),
        ('a cat', 'of prompts it is what'),
    ],
    ids=['NaN', 'prompts', 'prompt'],
)
def test_conditions_that_are_no_numbers_are_refused(cond, says):
    with pytest.raises((TypeError, ValueError), match=says):
        Sampler(text(), [2.0, 1.0], False, (2,)).sample(2, cond=cond)


@pytest.mark.parametrize('names', [['tokens'], ['tokens', 'pooled', 'mask']], ids=len)
def test_a_null_of_other_tensors_than_the_conditions_is_refused(names):
    T = text()
    null = {k: v for k, v in (row(T, 0) | dict(mask=torch.ones(1, 5))).items() if k in names}
    with pytest.raises(ValueError, match=r'^null=.*must be of the shape of the others'):
        frozen_copy(GuidedDenoiser(T, 3.0, null), (2,))
    frozen_copy(GuidedDenoiser(T, 1.0), (2,))  # asks for none


def test_guidance_without_a_condition_is_refused():
    with pytest.raises(ValueError, match='cond is None'):
        GuidedDenoiser(classy(), 2.0)(torch.randn(2, 2), 1.0)


# distillation
def teachers():
    T = text()
    return dict(
        classes=classy(),
        guided=GuidedDenoiser(classy(), 3.0),
        text=T,
        guided_text=GuidedDenoiser(T, 3.0, row(T, 0)),
        flow=text(FlowDenoiser),
        vp=text(VPDenoiser, alpha_bar=linear_alpha_bar(1000), prediction='x0'),
        guided_flow=GuidedDenoiser(text(FlowDenoiser), 2.0, row(T, 0)),
    )


def pd_conditions(teacher, n):
    return draw_conditions(teacher, range(n))


@pytest.mark.parametrize('K', [1, 4])
@pytest.mark.parametrize('name', teachers())
def test_sfd_of_conditional_teachers(name, K, tmp_path):
    teacher = teachers()[name]
    cfg = SFDConfig(**SFD, K=K, layer='out', afs='flow' not in name)
    student = sfd(teacher, cfg, show=False)
    assert (
        type(student.denoiser) is type(unguided(teacher)) and student.nfe == 2
    )  # guidance costs the student nothing
    assert Sampler(teacher, student.sigmas, cfg.afs, (2,)).nfe == (4 if 'guided' in name else 2)
    assert student.about.get('guidance_scale') == getattr(teacher, 'scale', None)
    student.save(tmp_path / 's')
    make = None if 'class' in name or name == 'guided' else TextNet
    again = load_student(tmp_path / 's', 'cpu', net=make)
    assert torch.equal(again.sample(5), student.sample(5)) and again.about.get(
        'guidance_scale'
    ) == student.about.get('guidance_scale')
    cond = 1 if make is None else row(unguided(teacher), 2)
    assert torch.equal(again.sample(3, cond=cond), student.sample(3, cond=cond))


@pytest.mark.parametrize('K', [1, 2])
@pytest.mark.parametrize('name', teachers())
def test_pd_of_conditional_teachers(name, K):
    teacher = teachers()[name]
    data = torch.randn(20, 2)
    student = progressive(
        teacher, data, PDConfig(**PD, K=K, layer='out'), pd_conditions(teacher, 20), show=False
    )
    assert (
        type(student.denoiser) is type(unguided(teacher))
        and student.nfe == 2
        and student.sample(3).isfinite().all()
    )
    assert student.about.get('guidance_scale') == getattr(teacher, 'scale', None)


@pytest.mark.parametrize('name', ['guided', 'text', 'guided_flow'])
def test_banks_micro_batches_and_a_run_by_itself_agree(name):
    teacher, cfg = teachers()[name], SFDConfig(**SFD, K=2, layer='out', afs='flow' not in name)
    alone = sfd(teacher, cfg, show=False)
    banked = sfd(teacher, cfg, bank=teacher_bank(teacher, cfg, show=False), show=False)
    parts = sfd(teacher, cfg, show=False, hardware=Hardware(accumulate=2))
    for other in (banked, parts):
        for a, b in zip(alone.denoiser.parameters(), other.denoiser.parameters()):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    data, cfg = torch.randn(20, 2), PDConfig(**PD, K=2, layer='out')
    runs = [
        progressive(
            teacher,
            data,
            cfg,
            pd_conditions(teacher, 20),
            show=False,
            hardware=Hardware(accumulate=n),
        )
        for n in (1, 2)
    ]
    for a, b in zip(*[r.denoiser.parameters() for r in runs]):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_a_guided_teacher_is_what_the_student_learns(tmp_path):
    """A student from one step of a guided exact teacher ends where guidance leads, not where the plain teacher does; who is distilled from
    it is told so."""
    exact = GuidedDenoiser(Two(), 4.0)
    torch.manual_seed(0)
    start = EDMDenoiser(MLP(dim=1, width=32, depth=2, n_classes=2))
    cfg = SFDConfig(
        shape=(1,),
        nfe=2,
        K=4,
        substeps=4,
        steps=200,
        batch=64,
        pool=256,
        lr=5e-3,
        sigma_max=20.0,
        lr_schedule='cosine',
    )
    student = sfd(exact, cfg, cfg.bank(exact, show=False), student=start, show=False)
    plan = cfg.plan
    ends = {w: plan.sampler(GuidedDenoiser(Two(), w)).sample(300) for w in (1.0, 4.0)}
    to = {w: (student.sample(300) - e).square().mean().sqrt().item() for w, e in ends.items()}
    apart = (ends[4.0] - ends[1.0]).square().mean().sqrt().item()
    assert to[4.0] < 0.5 * to[1.0] and apart > 0.1, (to, apart)
    student.save(tmp_path)
    for d in (student, load_student(tmp_path, 'cpu')):
        assert describe_teacher(d.denoiser) == dict(
            teacher=denoiser_hash(student.denoiser), guidance_scale=4.0
        )


@pytest.mark.parametrize(
    'make, says',
    [
        (lambda: ConditionTable([1, 2]), 'cond must be a tensor .*got list'),
        (lambda: ConditionTable(dict(a='text')), 'a must be a tensor .*got str'),
        (lambda: ConditionTable(None), 'got NoneType'),
        (
            lambda: ConditionTable(torch.tensor(3.0)),
            r'cond must have a row for each of the samples, got shape \(\)',
        ),
        (lambda: ConditionTable({}), 'at least 1'),
    ],
)
def test_what_is_no_table_is_refused(make, says):
    with pytest.raises((TypeError, ValueError), match=says):
        make()


@pytest.mark.parametrize(
    'drawn, says',
    [
        ([1, 2], 'cond must be a tensor .*got list'),
        (torch.ones(1, 3), r'a row for each of the 2 samples, got shape \(1, 3\)'),
        (None, 'got NoneType'),
    ],
)
def test_what_draws_too_few_is_refused(drawn, says):
    D = text()
    D.conditions = lambda seeds: drawn
    with pytest.raises((TypeError, ValueError), match=says):
        draw_conditions(D, [0, 1])


def test_the_student_takes_the_conditions_of_a_teacher_that_is_another_network():
    exact = Two()
    exact.conditions = ConditionTable(torch.tensor([1]))
    start = EDMDenoiser(MLP(dim=1, width=16, depth=1, n_classes=2))
    student = sfd(exact, SFDConfig(**SFD | dict(shape=(1,)), K=1), student=start, show=False)
    assert student.denoiser.conditions is exact.conditions and start.conditions is None


def test_pd_refuses_conditions_that_do_not_fit():
    T, data = text(), torch.randn(6, 2)
    with pytest.raises(ValueError, match='takes conditions: pass labels='):
        progressive(T, data, PDConfig(**PD), show=False)
    with pytest.raises(ValueError, match='pooled must have a row for each of the 6'):
        progressive(
            T,
            data,
            PDConfig(**PD),
            dict(tokens=torch.zeros(6, 5, 3), pooled=torch.zeros(5, 4)),
            show=False,
        )


def test_a_teacher_whose_conditions_are_missing_says_so():
    T = text()
    T.conditions = None
    with pytest.raises(TypeError, match='ConditionTable'):
        sfd(T, SFDConfig(**SFD, K=1), show=False)


def test_a_student_keeps_its_table_and_a_damaged_one_is_refused(tmp_path):
    student = sfd(text(), SFDConfig(**SFD, K=1), show=False)
    student.save(tmp_path / 's')
    assert (
        'conditions_sha256'
        in json.loads((tmp_path / 's' / 'config.json').read_text())['about']['student']
    )
    ConditionTable({k: v + 1 for k, v in student.denoiser.conditions.rows.items()}).save(
        tmp_path / 's' / 'conditions.safetensors'
    )
    with pytest.raises(ValueError, match='conditions.safetensors is damaged or not the one'):
        load_student(tmp_path / 's', 'cpu', net=TextNet)
    (tmp_path / 's' / 'conditions.safetensors').unlink()
    with pytest.raises(FileNotFoundError, match='conditions.safetensors'):
        load_student(tmp_path / 's', 'cpu', net=TextNet)


# the command
CODE = """
import torch
from torch import nn
from bdense_nb.diffusion.denoisers import EDMDenoiser, FlowDenoiser, GuidedDenoiser
{}

def flow(): torch.manual_seed(0); return FlowDenoiser(TextNet())
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'textnets.py').write_text(CODE.format(inspect.getsource(TextNet)))
    T = text()
    T.conditions.save('prompts.safetensors')
    ConditionTable(row(T, 0)).save('nothing.safetensors')
    yield tmp_path
    sys.modules.pop('textnets', None)


COMMAND = dict(
    teacher='textnets:flow',
    conditions='prompts.safetensors',
    preset_name='demo',
    shape='2',
    steps=2,
    batch=4,
    pool=4,
    layer='out',
    device='cpu',
    trust_teacher=True,
)


def test_the_command_distils_a_guided_text_flow(folder):
    cli.bdense_distill(
        's', **COMMAND, K=4, guidance_scale=3.0, null_condition='nothing.safetensors'
    )
    net = sys.modules['textnets'].TextNet
    student = load_student('s', 'cpu', net=net)
    assert (
        isinstance(student.denoiser, FlowDenoiser)
        and student.nfe == 2
        and student.about['guidance_scale'] == 3.0
    )
    assert student.about['config']['schedule'] == 'flow' and student.sigmas[0] == 1000.0
    assert len(student.denoiser.conditions) == 6 and student.sample(3).shape == (3, 2)
    cli.bdense_sample('s', n=3, net='textnets:TextNet')
    torch.testing.assert_close(load_tensors('samples.safetensors')[0]['samples'], student.sample(3))
    ConditionTable(dict(words=torch.zeros(1, 5, 3))).save('other.safetensors')
    with pytest.raises(ValueError, match='cond has words, .* have pooled, tokens'):
        cli.bdense_sample('s', n=3, net='textnets:TextNet', conditions='other.safetensors')
    cli.bdense_distill('plain', **COMMAND | dict(schedule='karras', sigma_max=50.0), K=1)
    other = load_student('plain', 'cpu', net=net)
    assert (
        'guidance_scale' not in other.about
        and other.sigmas[0] == 50.0
        and other.about['config']['schedule'] == 'karras'
    )


@pytest.mark.parametrize(
    'more, message',
    [
        (dict(null_condition='nothing.safetensors'), 'belongs to guidance'),
        (
            dict(guidance_scale=2.0, null_condition='prompts.safetensors'),
            'must hold one row, it holds 6',
        ),
        (dict(conditions='nowhere.safetensors'), 'nowhere.safetensors'),
        (dict(guidance_scale=-1.0), 'scale'),
    ],
)
def test_what_the_command_refuses(folder, more, message, capsys):
    with pytest.raises((ValueError, SystemExit, FileNotFoundError)) as e:
        cli.bdense_distill('s', **COMMAND | more, K=1)
    assert re.search(message, f'{e.value}{capsys.readouterr().err}')


def test_the_command_says_where_conditions_of_data_come_from(folder, capsys):
    options = commands.Distill(
        out='s', teacher='textnets:flow', data='moons', conditions='prompts.safetensors'
    )
    with pytest.raises(ValueError, match='condition of every sample.*preset of SFD'):
        sources.distill_data(options, None, preset('fashion_mnist_pd'), text(), (2,))


@pytest.mark.parametrize(
    'make, says',
    [
        (
            lambda: MLP(dim=2),
            r'makes a MLP, and a teacher is a denoiser: of a network EDMDenoiser\(net\)',
        ),
        (
            lambda: with_conditions(torch.zeros(3, 2)),
            r'must be a ConditionTable\(rows\), got a Tensor',
        ),
    ],
    ids=['network', 'tensor'],
)
def test_what_code_makes_and_no_command_can_use_is_refused(make, says, monkeypatch):
    monkeypatch.setattr(sources, 'find_net', lambda name: make)
    with pytest.raises(ValueError, match=says):
        sources.teacher_of_code('mine:make')


def test_a_teacher_that_cannot_be_a_students_is_told_why():
    student = SimpleNamespace(shape=(2,), about=dict(teacher='0'))
    for source, why in (
        (EDMDenoiser(MLP(dim=3)), r'shape=\(2,\) .*takes \[B, 3\]'),
        (EDMDenoiser(TextNet()), 'TextNet is called with three arguments'),
    ):
        with pytest.raises(
            ValueError, match=rf'its teacher is 0, this one stops at such samples \({why}'
        ):
            measuring.check_pair(student, source, 's', 't')


def with_conditions(conditions):
    teacher = EDMDenoiser(MLP(dim=2))
    teacher.conditions = conditions
    return teacher


@pytest.mark.parametrize(
    'null_class, labels, says',
    [
        (None, [0, 1, 2, 3], r'label must be in 0..2, got values from 0 to 3'),
        (3, [0, 1, 2, 3], None),
        (3, [0, 1, 2, 4], 'from 0 to 4'),
        (None, None, r'3 classes, and .*x.safetensors has none: write labels, int64 \[N\]'),
    ],
    ids=range(4),
)
def test_labels_of_a_file_beyond_the_classes_are_refused(null_class, labels, says, tmp_path):
    save_tensors(
        tmp_path / 'x.safetensors',
        dict(samples=torch.zeros(4, 2))
        | ({} if labels is None else dict(labels=torch.tensor(labels))),
    )
    options = commands.Distill(
        teacher='mine:net',
        out=str(tmp_path / 'out'),
        data=str(tmp_path / 'x.safetensors'),
        null_class=null_class,
    )
    ask = lambda: sources.distill_data(
        options,
        commands.Line(),
        preset('fashion_mnist_pd'),
        EDMDenoiser(MLP(dim=2, n_classes=3)),
        (2,),
    )
    if says is None:
        assert ask()[1].tolist() == [0, 1, 2]
    else:
        with pytest.raises(ValueError, match=says):
            ask()
