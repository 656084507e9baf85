"What a distillation leaves behind: sampling, cost, files, and what is refused."
import json

import pytest
import torch
from conftest import shaken
from bdense_nb.core import load_tensors, sample_labels, sample_noise, save_tensors
from bdense_nb.nets import MLP, UNet
from bdense_nb.samplers import sample
from bdense_nb.schedules import cosine_alpha_bar, karras_sigmas
from bdense_nb.students import Student, branched_student, load_student
from bdense_nb.teachers import EDMDenoiser, GaussianDenoiser, VPDenoiser, save_denoiser
from torch import nn

GRID = karras_sigmas(3, .006, 80.)


@pytest.fixture(scope='module')
def plain(): return Student(shaken(EDMDenoiser(MLP(width=8, depth=1))), GRID, True, (2,))


@pytest.fixture(scope='module')
def classy(): return Student(shaken(EDMDenoiser(MLP(width=8, depth=1, n_classes=5))), GRID, True, (2,), dict(note='mine', lr=.1))


# --- sampling ---

def test_sample_is_the_sampler(classy):
    x = 80*sample_noise(range(3, 10), (2,))
    want = sample(classy.denoiser, x, GRID, afs=True, label=sample_labels(range(3, 10), 5))
    assert torch.equal(classy.sample(7, seed=3), want)


@pytest.mark.parametrize('batch', [1, 3, 7, 100])
def test_batch_size_changes_no_sample(classy, batch):
    assert torch.allclose(classy.sample(10, seed=3, batch=batch), classy.sample(13)[3:], atol=1e-5)


@pytest.mark.parametrize('steps, afs', [(1, False), (2, False), (2, True), (5, True)])
def test_cost_is_counted(plain, steps, afs):
    assert Student(plain.denoiser, karras_sigmas(steps, .006, 80.), afs, (2,)).nfe == steps - afs


def test_one_class_may_be_given_in_any_form(classy):
    want = classy.sample(3, label=2)
    for label in (torch.tensor(2), [2, 2, 2], torch.full((3,), 2)): assert torch.equal(classy.sample(3, label=label), want)


class Untouchable(EDMDenoiser):
    "A network that must not be called."
    def raw(self, x, sigma, label=None): raise AssertionError('work was done')


@pytest.mark.parametrize('kw', [dict(label='shoe'), dict(label=1.5), dict(label=[1, 2]), dict(label=torch.zeros(3, 1, dtype=torch.long)), dict(label=5), dict(label=-1), dict(label=[0, 4, 5]), dict(label=True),
                                dict(seed='a'), dict(seed=1.5), dict(seed=-1), dict(batch=0), dict(batch=None)], ids=str)
def test_sampling_refuses_bad_input_before_any_work(kw):
    student = Student(Untouchable(MLP(width=8, depth=1, n_classes=5)), GRID, True, (2,))
    with pytest.raises(ValueError, match=next(iter(kw))): student.sample(3, **kw)


@pytest.mark.parametrize('n', [0, -1, 1.5, '3', True])
def test_sampling_refuses_bad_numbers(plain, n):
    with pytest.raises(ValueError, match='n must be'): plain.sample(n)


def test_a_student_without_classes_takes_no_label():
    with pytest.raises(ValueError, match='no classes'): Student(Untouchable(MLP(width=8, depth=1)), GRID, True, (2,)).sample(3, label=0)


def test_a_closed_form_can_be_dressed_as_a_student():
    exact = Student(GaussianDenoiser(0., .5), GRID, False, (3,))
    assert exact.nfe == 3 and torch.equal(exact.sample(5), sample(exact.denoiser, 80*sample_noise(range(5), (3,)), GRID))
    with pytest.raises(ValueError, match='GaussianDenoiser'): exact.save('nowhere')


# --- files ---

@pytest.mark.parametrize('make', [lambda: EDMDenoiser(MLP(width=8, depth=1, n_classes=5), .7), lambda: VPDenoiser(MLP(width=8, depth=1), cosine_alpha_bar(), 'v')], ids=['edm', 'v'])
def test_save_and_load(tmp_path, make):
    student = Student(shaken(make()), GRID, False, (2,), dict(note='mine', history=[dict(step=1, loss=.25)]))
    student.save(tmp_path)
    again = load_student(tmp_path, 'cpu')
    assert torch.equal(again.sample(7), student.sample(7)) and torch.equal(again.sigmas, GRID) and again.sigmas.dtype == torch.float64
    assert (again.afs, again.shape, again.about, again.nfe) == (False, (2,), student.about, 3)
    again.save(tmp_path/'twice')
    assert torch.equal(load_student(tmp_path/'twice', 'cpu').sample(7), student.sample(7))


def test_images(tmp_path):
    student = Student(shaken(EDMDenoiser(UNet(widths=(8, 32), n_classes=3))), GRID, True, (1, 8, 8))
    student.save(tmp_path)
    out = student.sample(3)
    assert torch.allclose(load_student(tmp_path, 'cpu').sample(3), out, atol=1e-5) and out.shape == (3, 1, 8, 8)   # another memory layout rounds otherwise


def test_a_teacher_is_no_student(tmp_path, plain):
    save_denoiser(plain.denoiser, tmp_path)
    with pytest.raises(ValueError, match='not a student'): load_student(tmp_path)
    with pytest.raises(FileNotFoundError): load_student(tmp_path/'nowhere')


def test_damaged_weights_are_refused(tmp_path, plain):
    plain.save(tmp_path)
    weights = tmp_path/'model.safetensors'
    data = bytearray(weights.read_bytes()); data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ValueError, match='damaged'): load_student(tmp_path)


@pytest.mark.parametrize('spoil', [lambda how: how.pop('sigmas'), lambda how: how.pop('afs'), lambda how: how.pop('shape')], ids=['sigmas', 'afs', 'shape'])
def test_an_incomplete_description_is_refused(tmp_path, plain, spoil):
    plain.save(tmp_path)
    about = json.loads((tmp_path/'config.json').read_text())
    spoil(about['about']['student'])
    (tmp_path/'config.json').write_text(json.dumps(about))
    with pytest.raises(ValueError, match='how to sample'): load_student(tmp_path)


class Foreign(nn.Module):
    "A network this package does not know."
    def __init__(self): super().__init__(); self.out = nn.Linear(2, 2)
    def forward(self, x, noise, label=None): return self.out(x)


def test_a_foreign_network_is_told_what_to_do(tmp_path):
    student = Student(EDMDenoiser(Foreign()), GRID, True, (2,))
    with pytest.raises(ValueError, match='Foreign.*save_tensors') as e: student.save(tmp_path/'student')
    assert not (tmp_path/'student').exists() and 'student.denoiser.net.state_dict()' in str(e.value)
    save_tensors(tmp_path/'net.safetensors', student.denoiser.net.state_dict())
    again = Foreign(); again.load_state_dict(load_tensors(tmp_path/'net.safetensors')[0])
    assert torch.equal(again.out.weight, student.denoiser.net.out.weight)


RUN = dict(host='sfd', teacher='abc', config=dict(steps=10, branch_weights=(1., 2.)), history=[dict(step=1, loss=.25)], seconds=1.)


def one(about, weights=0, grid=GRID): return Student(shaken(EDMDenoiser(MLP(width=8, depth=1)), weights), grid, True, (2,), about)


@pytest.mark.parametrize('first, again', [(one(RUN), one(RUN)), (one(RUN), one(RUN | dict(seconds=2., history=[], torch='9.9'), 1)), (one({}), one({})), (one(dict(note='a')), one(dict(note='b')))],
                         ids=['itself', 'the run again', 'by hand', 'renamed'])
def test_a_run_may_be_saved_again(tmp_path, first, again):
    first.save(tmp_path); again.save(tmp_path)
    assert torch.equal(load_student(tmp_path, 'cpu').sample(3), again.sample(3)) and load_student(tmp_path).about.keys() == again.about.keys()


@pytest.mark.parametrize('other, says', [(one(RUN | dict(teacher='xyz')), 'teacher: abc there, xyz now'), (one(RUN | dict(host='pd')), 'host'), (one(RUN | dict(config=dict(steps=11))), 'config.steps: 10 there, 11 now'),
                                         (one(RUN, grid=GRID/2), 'sigmas'), (one({}, 1), 'host')], ids=['teacher', 'host', 'steps', 'grid', 'by hand'])
def test_another_student_is_not_replaced_in_silence(tmp_path, other, says):
    one(RUN).save(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(ValueError, match='holds another student') as e: other.save(tmp_path)
    assert says in str(e.value) and 'overwrite=True' in str(e.value) and {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    other.save(tmp_path, overwrite=True)
    assert torch.equal(load_student(tmp_path, 'cpu').sample(3), other.sample(3))


@pytest.mark.parametrize('spoil, says', [(lambda d: save_denoiser(one({}).denoiser, d), 'no student, a teacher perhaps'), (lambda d: (d/'config.json').write_text('{"mine": 1}'), "are no student's"),
                                         (lambda d: (d/'model.safetensors').write_bytes(b'x'), "are no student's"), (lambda d: (d/'config.json').mkdir(), "are no student's")], ids=['a teacher', 'a foreign config', 'foreign weights', 'a folder'])
def test_files_of_another_kind_are_not_replaced_in_silence(tmp_path, spoil, says):
    spoil(tmp_path)
    with pytest.raises(ValueError, match=says): one(RUN).save(tmp_path)


def test_a_student_is_not_saved_into_a_file(tmp_path, plain):
    (tmp_path/'file').write_text('')
    with pytest.raises(ValueError, match='is a file'): plain.save(tmp_path/'file')


def test_hand_made_students_are_told_apart_by_their_weights(tmp_path):
    one({}).save(tmp_path)
    with pytest.raises(ValueError, match=r'another student \(its weights\)'): one({}, 1).save(tmp_path)
    (tmp_path/'model.safetensors').unlink()
    with pytest.raises(ValueError, match='its weights'): one({}).save(tmp_path)


# --- where a student starts ---

def test_a_student_starts_as_its_teacher_or_as_another_network(plain):
    teacher, x = plain.denoiser, sample_noise(range(5), (2,))
    for start in (teacher, shaken(EDMDenoiser(MLP(width=12, depth=2)), 1)):
        model = branched_student(teacher, None if start is teacher else start, 3, 'out')
        assert model.training and all(p.requires_grad for p in model.parameters()) and not any(p.requires_grad for p in start.parameters())
        assert torch.allclose(model.eval()(x, 2.), start(x, 2.)[:, None].expand(-1, 3, -1), atol=1e-6)


def test_starts_that_do_not_fit(plain, classy):
    with pytest.raises(TypeError, match='GaussianDenoiser.*student='): branched_student(GaussianDenoiser(0., .5), None, 2, 'out')
    with pytest.raises(ValueError, match='no layer'): branched_student(plain.denoiser, None, 2, 'last')
    with pytest.raises(ValueError, match='classes'): branched_student(plain.denoiser, classy.denoiser, 2, 'out')
    with pytest.raises(ValueError, match='K'): branched_student(plain.denoiser, None, 0, 'out')
