"What a distillation leaves behind: sampling, cost, files, and what is refused."

import json
import os
from pathlib import Path

import pytest
import torch
from conftest import shaken
from bdense_nb.core import load_tensors, sample_labels, sample_noise, save_tensors, sha256
from bdense_nb.diffusion.denoisers import EDMDenoiser, GaussianDenoiser, VPDenoiser
from bdense_nb.diffusion.stored import load_denoiser, save_denoiser
from bdense_nb.diffusion.nets import MLP, UNet
from bdense_nb.diffusion.samplers import sample
from bdense_nb.diffusion.schedules import cosine_alpha_bar, karras_sigmas
from bdense_nb.distillation.distill import config_of
from bdense_nb.distillation.students import Student, VariableStudent, branched_student, load_student
from bdense_nb.interop.diffusers import as_denoiser, from_diffusers
from torch import nn

GRID = karras_sigmas(3, 0.006, 80.0)


@pytest.fixture(scope='module')
def plain():
    return Student(shaken(EDMDenoiser(MLP(width=8, depth=1))), GRID, True, (2,))


@pytest.fixture(scope='module')
def classy():
    return Student(
        shaken(EDMDenoiser(MLP(width=8, depth=1, n_classes=5))),
        GRID,
        True,
        (2,),
        dict(note='mine', lr=0.1),
    )


# --- sampling ---


def test_sample_is_the_sampler(classy):
    x = 80 * sample_noise(range(3, 10), (2,))
    want = sample(classy.denoiser, x, GRID, afs=True, cond=sample_labels(range(3, 10), 5))
    assert torch.equal(classy.sample(7, seed=3), want)


@pytest.mark.parametrize('batch', [1, 3, 7, 100])
def test_batch_size_changes_no_sample(classy, batch):
    assert torch.allclose(classy.sample(10, seed=3, batch=batch), classy.sample(13)[3:], atol=1e-5)


@pytest.mark.parametrize('steps, afs', [(1, False), (2, False), (2, True), (5, True)])
def test_cost_is_counted(plain, steps, afs):
    assert Student(plain.denoiser, karras_sigmas(steps, 0.006, 80.0), afs, (2,)).nfe == steps - afs


def test_one_class_may_be_given_in_any_form(classy):
    want = classy.sample(3, cond=2)
    for label in (torch.tensor(2), [2, 2, 2], torch.full((3,), 2)):
        assert torch.equal(classy.sample(3, cond=label), want)


class Untouchable(EDMDenoiser):
    "A network that must not be called."

    def raw(self, x, sigma, label=None):
        raise AssertionError('work was done')


@pytest.mark.parametrize(
    'kw',
    [
        dict(cond='shoe'),
        dict(cond=1.5),
        dict(cond=[1, 2]),
        dict(cond=torch.zeros(3, 1, dtype=torch.long)),
        dict(cond=5),
        dict(cond=-1),
        dict(cond=[0, 4, 5]),
        dict(cond=True),
        dict(seed='a'),
        dict(seed=1.5),
        dict(seed=-1),
        dict(batch=0),
        dict(batch=None),
    ],
    ids=str,
)
def test_sampling_refuses_bad_input_before_any_work(kw):
    student = Student(Untouchable(MLP(width=8, depth=1, n_classes=5)), GRID, True, (2,))
    with pytest.raises(ValueError, match=next(iter(kw)).replace('cond', 'label')):
        student.sample(3, **kw)


@pytest.mark.parametrize('n', [0, -1, 1.5, '3', True])
def test_sampling_refuses_bad_numbers(plain, n):
    with pytest.raises(ValueError, match='n must be'):
        plain.sample(n)


def test_a_student_without_classes_takes_no_label():
    with pytest.raises(ValueError, match='no classes'):
        Student(Untouchable(MLP(width=8, depth=1)), GRID, True, (2,)).sample(3, cond=0)


def test_a_closed_form_can_be_dressed_as_a_student():
    exact = Student(GaussianDenoiser(0.0, 0.5), GRID, False, (3,))
    assert exact.nfe == 3 and torch.equal(
        exact.sample(5), sample(exact.denoiser, 80 * sample_noise(range(5), (3,)), GRID)
    )
    with pytest.raises(ValueError, match='GaussianDenoiser'):
        exact.save('nowhere')


# --- files ---


@pytest.mark.parametrize(
    'make',
    [
        lambda: EDMDenoiser(MLP(width=8, depth=1, n_classes=5), 0.7),
        lambda: VPDenoiser(MLP(width=8, depth=1), cosine_alpha_bar(), 'v'),
    ],
    ids=['edm', 'v'],
)
def test_save_and_load(tmp_path, make):
    student = Student(
        shaken(make()), GRID, False, (2,), dict(note='mine', history=[dict(step=1, loss=0.25)])
    )
    student.save(tmp_path)
    again = load_student(tmp_path, 'cpu')
    assert (
        torch.equal(again.sample(7), student.sample(7))
        and torch.equal(again.sigmas, GRID)
        and again.sigmas.dtype == torch.float64
    )
    assert (again.afs, again.shape, again.about, again.nfe) == (False, (2,), student.about, 3)
    again.save(tmp_path / 'twice')
    assert torch.equal(load_student(tmp_path / 'twice', 'cpu').sample(7), student.sample(7))


def test_images(tmp_path):
    student = Student(shaken(EDMDenoiser(UNet(widths=(8, 32), n_classes=3))), GRID, True, (1, 8, 8))
    student.save(tmp_path)
    out = student.sample(3)
    assert torch.allclose(
        load_student(tmp_path, 'cpu').sample(3), out, atol=1e-5
    ) and out.shape == (3, 1, 8, 8)  # another memory layout rounds otherwise


def test_a_teacher_is_no_student(tmp_path, plain):
    save_denoiser(plain.denoiser, tmp_path)
    with pytest.raises(ValueError, match='not a student'):
        load_student(tmp_path)
    with pytest.raises(FileNotFoundError):
        load_student(tmp_path / 'nowhere')


def test_damaged_weights_are_refused(tmp_path, plain):
    plain.save(tmp_path)
    weights = tmp_path / 'model.safetensors'
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ValueError, match='damaged'):
        load_student(tmp_path)


@pytest.mark.parametrize(
    'change, says',
    [
        (dict(afs='no'), "afs must be True or False, got 'no'"),
        (dict(shape=[]), 'shape'),
        (dict(shape=[0]), 'shape must be'),
        (dict(shape='2'), 'shape'),
        (dict(sigmas=[3.0, 'a']), 'sigmas must be'),
        (dict(sigmas=[1.0, 2.0]), 'descending'),
        (dict(more=1), 'more'),
    ],
    ids=str,
)
def test_a_wrong_description_is_refused(tmp_path, plain, change, says):
    plain.save(tmp_path)
    about = json.loads((tmp_path / 'config.json').read_text())
    about['about']['student'].update(change)
    (tmp_path / 'config.json').write_text(json.dumps(about))
    with pytest.raises(ValueError, match=says):
        load_student(tmp_path)


@pytest.mark.parametrize(
    'spoil, says',
    [(lambda w: w.fill_(float('nan')), 'NaN'), (lambda w: w.long(), 'int64|does not fit')],
    ids=['NaN', 'int64'],
)
def test_numbers_that_cannot_be_weights_are_refused(tmp_path, spoil, says):
    Student(EDMDenoiser(Foreign()), GRID, True, (2,)).save(tmp_path)
    weights, meta = load_tensors(tmp_path / 'model.safetensors')
    save_tensors(tmp_path / 'model.safetensors', {k: spoil(v) for k, v in weights.items()}, meta)
    about = json.loads((tmp_path / 'config.json').read_text())
    (tmp_path / 'config.json').write_text(
        json.dumps(about | dict(sha256=sha256(tmp_path / 'model.safetensors')))
    )
    with pytest.raises(ValueError, match=says):
        load_student(tmp_path, 'cpu', net=Foreign)


@pytest.mark.parametrize(
    'sigmas', [[80.0, float('nan'), 0.006], [1.0, 2.0], [80.0], [float('inf'), 1.0]], ids=str
)
def test_tables_that_are_no_grid_are_refused(plain, sigmas):
    with pytest.raises(ValueError, match='noise level'):
        Student(plain.denoiser, torch.tensor(sigmas), True, (2,))
    bias = plain.denoiser.net.embed.lin1.bias
    with pytest.raises(ValueError, match='NaN'):
        VariableStudent(
            plain.denoiser, bias[None] * float('nan'), 'embed.lin1', {2: GRID}, True, (2,)
        )


def test_the_student_that_ships_still_loads(root):
    student = load_student(root / 'data' / 'fashion_mnist_student', 'cpu')
    assert (
        student.nfe == 2
        and student.sample(2).isfinite().all()
        and config_of(student.about).clip_grad is None
    )


@pytest.mark.parametrize(
    'spoil',
    [lambda how: how.pop('sigmas'), lambda how: how.pop('afs'), lambda how: how.pop('shape')],
    ids=['sigmas', 'afs', 'shape'],
)
def test_an_incomplete_description_is_refused(tmp_path, plain, spoil):
    plain.save(tmp_path)
    about = json.loads((tmp_path / 'config.json').read_text())
    spoil(about['about']['student'])
    (tmp_path / 'config.json').write_text(json.dumps(about))
    with pytest.raises(ValueError, match='how to sample'):
        load_student(tmp_path)


class Foreign(nn.Module):
    "A network this package does not know."

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(2, 2)

    def forward(self, x, noise, label=None):
        return self.out(x)


def test_a_foreign_network_is_saved_and_comes_back_around_net(tmp_path):
    student = Student(shaken(EDMDenoiser(Foreign(), 0.7)), GRID, True, (2,), dict(note='mine'))
    student.save(tmp_path)
    before = Foreign()
    left = before.out.weight.clone()
    for net in (before, Foreign, lambda: EDMDenoiser(Foreign(), 0.7)):
        again = load_student(tmp_path, 'cpu', net=net)
        assert (
            torch.equal(again.sample(5), student.sample(5))
            and again.about == dict(note='mine')
            and again.denoiser.sigma_data == 0.7
        )
        assert not any(p.requires_grad for p in again.denoiser.parameters())
    assert torch.equal(before.out.weight, left)  # the given network is copied
    again.save(tmp_path)  # what was loaded may be saved again


def test_a_foreign_network_without_net_is_told_what_to_pass(tmp_path):
    Student(EDMDenoiser(Foreign()), GRID, True, (2,)).save(tmp_path)
    with pytest.raises(
        ValueError,
        match='test_students:Foreign, which this package cannot build: pass net=,.*module:function',
    ):
        load_student(tmp_path)


@pytest.mark.parametrize(
    'net, error, says',
    [
        (lambda: nn.Linear(2, 2), ValueError, 'does not fit'),
        (nn.Linear(2, 3), ValueError, 'does not fit'),
        (lambda: 'net', TypeError, 'net must be'),
    ],
    ids=['names', 'shapes', 'no network'],
)
def test_a_network_that_does_not_fit_is_refused(tmp_path, net, error, says):
    Student(EDMDenoiser(Foreign()), GRID, True, (2,)).save(tmp_path)
    with pytest.raises(error, match=says):
        load_student(tmp_path, 'cpu', net=net)


class Own(EDMDenoiser):
    "A denoiser this package does not know."


def test_a_foreign_denoiser_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="unknown denoiser 'Own'; choose one of: EDMDenoiser"):
        Student(Own(Foreign()), GRID, True, (2,)).save(tmp_path / 'student')
    assert not (tmp_path / 'student').exists()


class Preconditioned(nn.Module):
    "An EDM-style module with a network inside."

    def __init__(self):
        super().__init__()
        self.model, self.sigma_data = Foreign(), 0.5


class WholeDenoiser(nn.Module):
    "A module that is a denoiser already."

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(2, 2)

    def forward(self, x, sigma, label=None):
        return self.out(x) / (1 + sigma[:, None])


@pytest.mark.parametrize('kind', [Preconditioned, WholeDenoiser])
def test_what_as_denoiser_took_is_what_net_takes(tmp_path, kind):
    student = Student(shaken(as_denoiser(kind())), GRID, True, (2,))
    student.save(tmp_path)
    assert torch.equal(load_student(tmp_path, 'cpu', net=kind).sample(4), student.sample(4))


def test_a_foreign_network_of_several_step_counts(tmp_path):
    denoiser = shaken(EDMDenoiser(Foreign()))
    biases = torch.stack([denoiser.net.out.bias, denoiser.net.out.bias + 1])
    student = VariableStudent(
        denoiser, biases, 'out', {2: GRID, 3: karras_sigmas(4, 0.006, 80.0)}, True, (2,)
    )
    student.save(tmp_path)
    again = load_student(tmp_path, 'cpu', net=Foreign)
    for n in (2, 3):
        assert torch.equal(again.sample(4, nfe=n), student.sample(4, nfe=n))


def unet():
    from diffusers import DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    return from_diffusers(
        UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(8,),
            norm_num_groups=4,
            down_block_types=('DownBlock2D',),
            up_block_types=('UpBlock2D',),
            num_class_embeds=4,
        ),
        DDPMScheduler(),
        null_class=3,
    )


def test_a_diffusers_network_needs_no_net(tmp_path):
    denoiser = unet()
    one = Student(denoiser, karras_sigmas(3, 0.006, 80.0), True, (1, 8, 8))
    one.save(tmp_path / 'one')
    again = load_student(tmp_path / 'one', 'cpu')
    assert (
        torch.allclose(again.sample(2), one.sample(2), rtol=1e-4, atol=1e-4)
        and again.denoiser.net.null_class == 3
    )
    name = 'unet.time_embedding.linear_1'
    bias = denoiser.net.get_submodule(name).bias
    two = VariableStudent(
        denoiser,
        torch.stack([bias, bias + 1]),
        name,
        {2: GRID, 1: karras_sigmas(2, 0.006, 80.0)},
        True,
        (1, 8, 8),
    )
    two.save(tmp_path / 'two')
    again = load_student(tmp_path / 'two', 'cpu')
    for n in (1, 2):
        assert torch.allclose(
            again.sample(2, nfe=n), two.sample(2, nfe=n), rtol=1e-4, atol=1e-4
        )  # another memory layout rounds otherwise


# --- a save that is cut off ---


@pytest.fixture
def cut(monkeypatch):
    "Save, and lose power before the named file is there."

    def run(student, folder, before, **how):
        with monkeypatch.context() as m:
            replace = os.replace

            def killed(source, target):
                if Path(target).name == before:
                    raise KeyboardInterrupt
                replace(source, target)

            m.setattr(os, 'replace', killed)
            with pytest.raises(KeyboardInterrupt):
                student.save(folder, **how)

    return run


def several(about):
    bias = one(about).denoiser.net.embed.lin1.bias
    return VariableStudent(
        one(about).denoiser,
        torch.stack([bias, bias]),
        'embed.lin1',
        {2: GRID, 3: karras_sigmas(4, 0.006, 80.0)},
        True,
        (2,),
        about,
    )


def test_a_folder_without_a_student_says_why(tmp_path):
    with pytest.raises(FileNotFoundError, match='holds no student: there is no such folder'):
        load_student(tmp_path / 'none')
    (tmp_path / 'checkpoints').mkdir()
    with pytest.raises(FileNotFoundError, match='run there is not finished; the same command'):
        load_student(tmp_path)
    with pytest.raises(FileNotFoundError, match='no denoiser: .*run there is not finished'):
        load_denoiser(tmp_path)
    (tmp_path / 'checkpoints' / 'run.json').touch()
    with pytest.raises(FileNotFoundError, match='these are the checkpoints of a run'):
        load_student(tmp_path / 'checkpoints')


@pytest.mark.parametrize(
    'make, before',
    [
        (lambda about: one(about), 'config.json'),
        (lambda about: several(about), 'model.safetensors'),
        (lambda about: several(about), 'config.json'),
        (lambda about: one(about), 'model.safetensors'),
    ],
    ids=['one', 'several, biases only', 'several', 'nothing yet'],
)
def test_a_save_that_was_cut_off_is_finished_by_the_same_run(tmp_path, cut, make, before):
    cut(make(RUN), tmp_path, before)
    with pytest.raises(
        FileNotFoundError,
        match='no config.json'
        + (
            ': its weights are there, but saving was cut off'
            if before != 'model.safetensors'
            else ''
        ),
    ):
        load_student(tmp_path)
    if before != 'model.safetensors':
        with pytest.raises(
            ValueError,
            match="another student.*teacher: 'abc' there, 'xyz' now.*overwrite=True",
        ):
            make(RUN | dict(teacher='xyz')).save(tmp_path)
    make(RUN).save(tmp_path)
    assert load_student(tmp_path, 'cpu').about == json.loads(json.dumps(RUN))


def test_a_save_over_another_that_was_cut_off_belongs_to_the_second(tmp_path, cut):
    one(RUN).save(tmp_path)
    cut(one(RUN | dict(teacher='xyz'), 1), tmp_path, 'config.json', overwrite=True)
    with pytest.raises(FileNotFoundError, match='cut off'):
        load_student(tmp_path)
    one(RUN | dict(teacher='xyz'), 1).save(tmp_path)
    assert load_student(tmp_path, 'cpu').about['teacher'] == 'xyz'


def test_weights_that_are_nobodys_save_are_kept(tmp_path):
    save_tensors(tmp_path / 'model.safetensors', one(RUN).denoiser.state_dict())
    with pytest.raises(ValueError, match='was not written by Student.save'):
        one(RUN).save(tmp_path)


RUN = dict(
    host='sfd',
    teacher='abc',
    config=dict(steps=10, branch_weights=(1.0, 2.0)),
    history=[dict(step=1, loss=0.25)],
    seconds=1.0,
)


STEADY = RUN | dict(config=dict(steps=10, lr_schedule='constant', log_every=1))
LONGER = RUN | dict(config=dict(steps=20, lr_schedule='constant', log_every=2))


def one(about, weights=0, grid=GRID):
    return Student(shaken(EDMDenoiser(MLP(width=8, depth=1)), weights), grid, True, (2,), about)


@pytest.mark.parametrize(
    'first, again',
    [
        (one(RUN), one(RUN)),
        (one(RUN), one(RUN | dict(seconds=2.0, history=[], torch='9.9'), 1)),
        (one({}), one({})),
        (one(dict(note='a')), one(dict(note='b'))),
        (one(STEADY), one(LONGER, 1)),
    ],
    ids=['itself', 'the run again', 'by hand', 'renamed', 'gone on'],
)
def test_a_run_may_be_saved_again(tmp_path, first, again):
    first.save(tmp_path)
    again.save(tmp_path)
    assert (
        torch.equal(load_student(tmp_path, 'cpu').sample(3), again.sample(3))
        and load_student(tmp_path).about.keys() == again.about.keys()
    )


@pytest.mark.parametrize(
    'other, says',
    [
        (one(RUN | dict(teacher='xyz')), "teacher: 'abc' there, 'xyz' now"),
        (one(RUN | dict(host='pd')), 'host'),
        (one(RUN | dict(config=dict(steps=11))), 'config.steps: 10 there, 11 now'),
        (one(RUN, grid=GRID / 2), 'sigmas'),
        (one({}, 1), 'host'),
    ],
    ids=['teacher', 'host', 'steps', 'grid', 'by hand'],
)
def test_another_student_is_not_replaced_in_silence(tmp_path, other, says):
    one(RUN).save(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(ValueError, match='holds another student') as e:
        other.save(tmp_path)
    assert (
        says in str(e.value)
        and 'overwrite=True' in str(e.value)
        and {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    )
    other.save(tmp_path, overwrite=True)
    assert torch.equal(load_student(tmp_path, 'cpu').sample(3), other.sample(3))


@pytest.mark.parametrize(
    'spoil, says',
    [
        (lambda d: save_denoiser(one({}).denoiser, d), 'no student, a teacher perhaps'),
        (lambda d: (d / 'config.json').write_text('{"mine": 1}'), "are no student's"),
        (lambda d: (d / 'model.safetensors').write_bytes(b'x'), "are no student's"),
        (lambda d: (d / 'config.json').mkdir(), "are no student's"),
    ],
    ids=['a teacher', 'a foreign config', 'foreign weights', 'a folder'],
)
def test_files_of_another_kind_are_not_replaced_in_silence(tmp_path, spoil, says):
    spoil(tmp_path)
    with pytest.raises(ValueError, match=says):
        one(RUN).save(tmp_path)


def test_a_student_is_not_saved_into_a_file(tmp_path, plain):
    (tmp_path / 'file').write_text('')
    with pytest.raises(ValueError, match='is a file'):
        plain.save(tmp_path / 'file')


def test_hand_made_students_are_told_apart_by_their_weights(tmp_path):
    one({}).save(tmp_path)
    with pytest.raises(ValueError, match=r'another student \(its weights\)'):
        one({}, 1).save(tmp_path)
    (tmp_path / 'model.safetensors').unlink()
    with pytest.raises(ValueError, match='its weights'):
        one({}).save(tmp_path)


# --- where a student starts ---


def test_a_student_starts_as_its_teacher_or_as_another_network(plain):
    teacher, x = plain.denoiser, sample_noise(range(5), (2,))
    for start in (teacher, shaken(EDMDenoiser(MLP(width=12, depth=2)), 1)):
        model = branched_student(teacher, None if start is teacher else start, 3, 'out')
        assert (
            model.training
            and all(p.requires_grad for p in model.parameters())
            and not any(p.requires_grad for p in start.parameters())
        )
        assert torch.allclose(
            model.eval()(x, 2.0), start(x, 2.0)[:, None].expand(-1, 3, -1), atol=1e-6
        )


def test_starts_that_do_not_fit(plain, classy):
    with pytest.raises(TypeError, match='GaussianDenoiser.*student='):
        branched_student(GaussianDenoiser(0.0, 0.5), None, 2, 'out')
    with pytest.raises(ValueError, match='no layer'):
        branched_student(plain.denoiser, None, 2, 'last')
    with pytest.raises(ValueError, match='classes'):
        branched_student(plain.denoiser, classy.denoiser, 2, 'out')
    with pytest.raises(ValueError, match='K'):
        branched_student(plain.denoiser, None, 0, 'out')
