"SFD in a matrix of settings, against a second implementation; bad input, determinism, resumption."
import copy
import json
from dataclasses import asdict, replace
from itertools import product

import pytest
import torch
from bdense_nb.branches import branch
from bdense_nb.core import sample_noise
from bdense_nb.distill import SFDConfig, Student, load_student, preset, sfd, sfd_step, teacher_bank
from bdense_nb.sfd import local_segment
from bdense_nb.losses import NORMS, branch_weights
from bdense_nb.nets import MLP, UNet
from bdense_nb.samplers import SOLVERS, trajectory
from bdense_nb.schedules import linear_alpha_bar
from bdense_nb.targets import BRANCH_STEPS
from bdense_nb.teachers import EDMDenoiser, GaussianDenoiser, VPDenoiser

TINY = SFDConfig(steps=2, batch=4, lr=1e-3, shape=(2,))


def shaken(denoiser, seed=0):
    "Random instead of zero output weights, so that something depends on everything."
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in denoiser.parameters(): p.copy_(torch.randn(p.shape, generator=g)*.2)
    return denoiser.requires_grad_(False).eval()


@pytest.fixture(scope='module')
def teacher(): return shaken(EDMDenoiser(MLP(width=8, depth=1)))


@pytest.fixture(scope='module')
def classy(): return shaken(EDMDenoiser(MLP(width=8, depth=1, n_classes=5)))


def params(student): return list((student.denoiser if isinstance(student, Student) else student).state_dict().values())
def same(a, b): return all(torch.equal(p, q) for p, q in zip(params(a), params(b), strict=True))


def check(teacher, cfg):
    before = copy.deepcopy(teacher)
    student = sfd(teacher, cfg, show=False)
    assert all(torch.isfinite(p).all() for p in params(student)) and not same(student, before)
    assert same(before, teacher) and not {p.data_ptr() for p in params(student)} & {p.data_ptr() for p in params(teacher)}
    assert student.nfe == cfg.nfe and torch.isfinite(student.sample(3)).all()
    assert params(student)[0].shape == params(teacher)[0].shape and student.denoiser.state_dict().keys() == teacher.state_dict().keys()


# --- the matrix ---

@pytest.mark.parametrize('solver', SOLVERS)
@pytest.mark.parametrize('K', [1, 2, 4])
def test_every_teacher_solver(teacher, solver, K):
    check(teacher, replace(TINY, solver=solver, K=K))


@pytest.mark.parametrize('K, substeps', [(1, 1), (2, 2), (3, 3), (3, 6), (1, 7)])
def test_every_division(teacher, K, substeps):
    check(teacher, replace(TINY, K=K, substeps=substeps))


@pytest.mark.parametrize('step, states, afs, loss', list(product(BRANCH_STEPS, ['global', 'local'], [True, False], NORMS)))
def test_every_option(classy, step, states, afs, loss):
    check(classy, replace(TINY, branch_step=step, teacher_states=states, afs=afs, loss=loss))


@pytest.mark.parametrize('nfe, afs', list(product([1, 2, 3, 4], [True, False])))
def test_every_number_of_calls(teacher, nfe, afs):
    check(teacher, replace(TINY, nfe=nfe, afs=afs, K=2))


@pytest.mark.parametrize('make', [lambda net: EDMDenoiser(net), *(lambda net, p=p: VPDenoiser(net, linear_alpha_bar(), p) for p in ('eps', 'x0', 'v'))], ids=['edm', 'eps', 'x0', 'v'])
def test_images_with_classes(make):
    check(shaken(make(UNet(widths=(8, 32), n_classes=3))), replace(TINY, shape=(1, 8, 8), K=2))


# --- against a second implementation, written from the paper's formulas ---

def second(teacher, cfg):
    student = branch(teacher, cfg.K).train()
    opt = torch.optim.Adam(student.parameters(), cfg.lr)
    fine, M = cfg.grids[0].tolist(), cfg.substeps
    w = branch_weights(cfg.K, cfg.branch_weights).tolist()
    for i in range(cfg.steps):
        x = cfg.sigma_max*sample_noise(cfg.seeds(i), cfg.shape)
        ys = trajectory(teacher, x, fine, cfg.solver).xs
        for n in range(cfg.n_steps):
            t, end = fine[n*M], fine[(n + 1)*M]
            if cfg.afs and n == 0: x = x + (end - t)*x/(1 + t*t)**.5; continue
            D, loss = student(x, t), 0.
            for k in range(1, cfg.K + 1):
                j = n*M + k*M//cfg.K
                landed = x + ((fine[j] if cfg.branch_step == 'own' else end) - t)*(x - D[:, k-1])/t
                loss = loss + w[k-1]*(landed - ys[j]).abs().sum()/cfg.batch
            opt.zero_grad(); loss.backward(); opt.step()
            x = landed.detach()
        if 2*i >= cfg.steps: opt.param_groups[0]['lr'] = .1*cfg.lr
    return student.denoiser.net.out.weight[-2:], student.denoiser.net.stem.weight


@pytest.mark.parametrize('changes', [dict(K=1), dict(), dict(K=2), dict(afs=False, sigma_max=10.), dict(branch_step='end'), dict(branch_weights=(3., 1., 0., 2.)), dict(nfe=4), dict(solver='heun'), dict(schedule='logsnr', sigma_max=20.)], ids=str)
def test_agrees_with_a_second_implementation(teacher, changes):
    cfg = replace(TINY, steps=6, batch=16, **changes)
    ours = sfd(teacher, cfg, show=False).denoiser.net
    out, stem = second(teacher, cfg)
    for a, b, c in ((ours.out.weight, out, teacher.net.out.weight), (ours.stem.weight, stem, teacher.net.stem.weight)):
        assert (a - b).norm() < 2e-2*(a - c).norm()     # Adam amplifies rounding where gradients are small


# --- cost, labels, dropout, learning rate ---

class Spy(EDMDenoiser):
    "Notes each network call: is it the student's, and with which labels?"
    calls: list = []
    def raw(self, x, sigma, label=None):
        Spy.calls.append((self.training, None if label is None else label.tolist(), x.requires_grad))
        return super().raw(x, sigma, label)


@pytest.mark.parametrize('states, afs, teacher_calls', [('global', True, 12), ('global', False, 8), ('local', True, 8), ('local', False, 8)])
def test_calls_of_an_iteration(states, afs, teacher_calls):
    spy, cfg = shaken(Spy(MLP(width=8, depth=1, n_classes=5))), replace(TINY, teacher_states=states, afs=afs, solver='euler')
    Spy.calls.clear()
    list(sfd_step(spy, cfg)(branch(spy, 4).train(), 0))
    student, teacher = ([c for c in Spy.calls if c[0] == who] for who in (True, False))
    assert (len(teacher), len(student)) == (teacher_calls, 2)
    assert len({tuple(label) for _, label, _ in Spy.calls}) == 1 and len(set(Spy.calls[0][1])) > 1     # one set of random labels for both
    assert not any(grad for *_, grad in student)                                                     # no gradient crosses student steps


def test_dropout_is_active_in_the_student_alone():
    def run(p):
        return sfd(shaken(EDMDenoiser(UNet(widths=(8, 32), dropout=p))), replace(TINY, shape=(1, 8, 8)), show=False)
    assert same(run(.3), run(.3)) and not same(run(.3), run(0.))
    wet, dry = (teacher_bank(shaken(EDMDenoiser(UNet(widths=(8, 32), dropout=p))).train(), replace(TINY, shape=(1, 8, 8)), show=False) for p in (.3, 0.))
    assert torch.equal(wet.traj.xs, dry.traj.xs)


def test_learning_rate_drops_once(teacher):
    rates = [h['lr'] for h in sfd(teacher, replace(TINY, steps=20), show=False).about['history']]
    assert rates == [1e-3]*11 + [1e-3*.1]*9


# --- determinism ---

def test_same_seed_same_student(teacher):
    torch.manual_seed(1); a = sfd(teacher, TINY, show=False)
    torch.manual_seed(2); b = sfd(teacher, TINY, show=False)
    assert same(a, b) and a.about['history'] == b.about['history'] and not same(a, sfd(teacher, replace(TINY, seed=1), show=False))


@pytest.mark.parametrize('pool', [None, 8, 11])
def test_bank_changes_nothing(classy, pool):
    cfg = replace(TINY, steps=5, pool=pool)
    bank = teacher_bank(classy, cfg, show=False)
    assert len(bank.seeds) == (20 if pool is None else 8)
    for K, states in product((1, 4), ('global', 'local')):
        c = replace(cfg, K=K, teacher_states=states)
        assert same(sfd(classy, c, bank, show=False), sfd(classy, c, show=False))


def test_training_seeds_are_apart():
    runs = [{s for i in range(4) for s in replace(TINY, steps=4, seed=k).seeds(i)} for k in range(3)]
    assert all(len(r) == 16 and min(r) >= 2**32 for r in runs) and len(set.union(*runs)) == 48


@pytest.mark.parametrize('solver', SOLVERS)
def test_local_is_global_where_both_begin(teacher, solver):
    cfg = replace(TINY, afs=False, solver=solver)
    traj, label = teacher_trajectory(teacher, cfg, cfg.seeds(0))
    seg = local_segment(teacher, cfg, traj[0], 0, label)
    assert torch.equal(seg.states, traj.xs[1:5].transpose(0, 1))
    first = [next(sfd_step(teacher, replace(cfg, teacher_states=s))(branch(teacher, 4), 0)) for s in ('global', 'local')]
    assert torch.equal(*first)


class Unplugged(TrajectoryBank):
    at = 0
    def batch(self, seeds, sigmas, solver=None):
        if len(seeds) == TINY.batch and seeds.start == self.at: raise OSError('power cut')
        return super().batch(seeds, sigmas, solver)


@pytest.mark.parametrize('at, K', [(1, 4), (13, 4), (19, 1)])
def test_resumed_is_the_same_run(tmp_path, classy, at, K):
    cfg = replace(TINY, steps=20, K=K)
    bank = teacher_bank(classy, cfg, show=False)
    whole = sfd(classy, cfg, bank, tmp_path/'a', show=False)
    cut = Unplugged(**vars(bank)); object.__setattr__(cut, 'at', cfg.seeds(at).start)
    with pytest.raises(OSError): sfd(classy, cfg, cut, tmp_path/'b', show=False)
    resumed = sfd(classy, cfg, bank, tmp_path/'b', show=False)
    assert same(whole, resumed) and whole.about['history'] == resumed.about['history']


# --- bad input ---

@pytest.fixture(scope='module')
def finished(tmp_path_factory, teacher):
    folder = tmp_path_factory.mktemp('run')
    sfd(teacher, TINY, folder=folder, show=False)
    return folder


@pytest.mark.parametrize('changes', [dict(K=2), dict(branch_weights='uniform'), dict(solver='euler'), dict(branch_step='end'), dict(loss='l2'), dict(nfe=3), dict(seed=1), dict(lr=2e-3), dict(batch=8)], ids=str)
def test_a_folder_belongs_to_one_configuration(finished, teacher, changes):
    with pytest.raises(ValueError, match=f'another configuration.*{next(iter(changes))}'): sfd(teacher, replace(TINY, **changes), folder=finished, show=False)
    sfd(teacher, SFDConfig(**json.loads(json.dumps(asdict(TINY)))), folder=finished, show=False)


@pytest.mark.parametrize('bad', [dict(K=0), dict(K=3), dict(K=8), dict(nfe=0), dict(nfe=1.5), dict(substeps=3), dict(steps=0), dict(batch=0), dict(pool=3), dict(afs=None), dict(shape=()), dict(shape=(2.,)),
                                 dict(solver='ddpm'), dict(schedule='linear'), dict(loss='mse'), dict(branch_step='both'), dict(teacher_states='none'), dict(branch_weights=(1., 1.)), dict(branch_weights='first'),
                                 dict(sigma_min=0.), dict(sigma_min=90.), dict(sigma_max=float('nan')), dict(lr=0.), dict(lr_schedule='none'), dict(seed=-1)], ids=str)
def test_bad_configurations(bad):
    with pytest.raises(ValueError): replace(TINY, **bad)


def test_configurations_survive_json():
    for cfg in (TINY, preset('sfd'), SFDConfig(branch_weights=[1., 2.], K=2, shape=[3, 8, 8])):
        assert SFDConfig(**json.loads(json.dumps(asdict(cfg)))) == cfg and hash(cfg)


def test_teachers_that_cannot_be_distilled(teacher):
    with pytest.raises(TypeError, match='GaussianDenoiser'): sfd(GaussianDenoiser(0., .5), TINY, show=False)
    for shape in ((3,), (1, 28, 28)):
        with pytest.raises(ValueError, match='does not fit the teacher'): sfd(teacher, replace(TINY, shape=shape), show=False)
    broken = copy.deepcopy(teacher)
    broken.net.out.bias[0] = float('nan')
    for call in (sfd, teacher_bank):
        with pytest.raises(FloatingPointError, match='teacher'): call(broken, TINY, show=False)


@pytest.mark.parametrize('states', ['global', 'local'])
def test_a_run_that_explodes_stops(teacher, states):
    with pytest.raises((FloatingPointError, ValueError), match='loss became|NaN'): sfd(teacher, replace(TINY, lr=1e30, steps=4, teacher_states=states), show=False)


@pytest.mark.parametrize('changes', [dict(seed=1), dict(nfe=3), dict(solver='euler'), dict(steps=3), dict(afs=False), dict(schedule='logsnr'), dict(sigma_max=40.)], ids=str)
def test_a_bank_of_another_run_is_refused(teacher, changes):
    bank = teacher_bank(teacher, TINY, show=False)
    with pytest.raises(ValueError, match='this bank'): sfd(teacher, replace(TINY, **changes), bank, show=False)


def test_a_bank_of_another_teacher_is_refused(teacher, classy):
    bank = teacher_bank(teacher, TINY, show=False)
    for other in (shaken(EDMDenoiser(MLP(width=8, depth=1)), 1), EDMDenoiser(teacher.net, .9), classy):
        with pytest.raises(ValueError, match='this bank'): sfd(other, TINY, bank, show=False)


# --- the student ---

def test_save_and_load(tmp_path, classy):
    student = sfd(classy, TINY, show=False)
    student.save(tmp_path)
    again = load_student(tmp_path, 'cpu')
    assert same(student, again) and torch.equal(again.sample(7), student.sample(7)) and again.nfe == 2
    assert SFDConfig(**again.about['config']) == TINY and again.about['history'] == student.about['history']


@pytest.mark.parametrize('batch', [1, 3, 7, 100])
def test_batch_size_changes_no_sample(classy, batch):
    student = sfd(classy, TINY, show=False)
    assert torch.allclose(student.sample(10, seed=3, batch=batch), student.sample(13)[3:], atol=1e-5)


@pytest.mark.parametrize('kw', [dict(label='shoe'), dict(label=1.5), dict(label=[1, 2]), dict(label=torch.zeros(3, 1, dtype=torch.long)), dict(seed='a'), dict(seed=1.5), dict(seed=-1)], ids=str)
def test_sampling_refuses_bad_labels_and_seeds(classy, kw):
    student = sfd(classy, TINY, show=False)
    with pytest.raises(ValueError, match='label|seed'): student.sample(3, **kw)


def test_one_class_may_be_given_in_any_form(classy):
    student = sfd(classy, TINY, show=False)
    want = student.sample(3, label=2)
    for label in (torch.tensor(2), [2, 2, 2], torch.full((3,), 2)): assert torch.equal(student.sample(3, label=label), want)


def test_configuration_must_be_one(teacher):
    with pytest.raises(TypeError, match='cfg must be an SFDConfig'): sfd(teacher, 'demo')
