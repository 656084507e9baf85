"SFD-v and the second stage: what the conditioning changes and what it leaves alone, determinism, files, bad input."

import copy
import json
from dataclasses import asdict, replace

import pytest
import torch
from conftest import shaken
from bdense_nb.distillation import variable as variable_module
from bdense_nb.core import NFECounter, save_tensors
from bdense_nb.diffusion.denoisers import EDMDenoiser, MixtureDenoiser, VPDenoiser
from bdense_nb.diffusion.nets import MLP, UNet
from bdense_nb.diffusion.schedules import linear_alpha_bar, make_sigmas
from bdense_nb.distillation.bank import TrajectoryBank
from bdense_nb.distillation.branches import branch, fold
from bdense_nb.distillation.distill import config_of, distill
from bdense_nb.distillation.progressive import PDConfig
from bdense_nb.distillation.sfd import SFDConfig, sfd, sfd_step, teacher_bank
from bdense_nb.distillation.students import Student, VariableStudent, load_student
from bdense_nb.distillation.variable import (
    SFDVConfig,
    StepBias,
    choose,
    condition,
    draw_index,
    find_step_layer,
    second_stage,
    several,
    sfd_variable,
    uncondition,
    variable_step,
)
from bdense_nb.distillation.teaching import train_teacher
from bdense_nb.training.config import Hardware, TrainConfig
from bdense_nb.training.hooks import Every
from torch import nn

TINY = SFDConfig(steps=4, batch=4, lr=1e-3, shape=(2,))
NFES = (2, 3, 4, 5)


def apart(model, seed=0):
    "Biases that differ, as after training."
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, StepBias):
                m.biases.add_(torch.randn(m.biases.shape, generator=g))
    return model


@pytest.fixture(scope='module')
def teacher():
    return shaken(EDMDenoiser(MLP(width=8, depth=1)))


@pytest.fixture(scope='module')
def blobs():
    return MixtureDenoiser(
        torch.tensor([[1.0, 0.0], [-1.0, 0.5]]), torch.tensor([0.2, 0.3]), torch.tensor([0.4, 0.6])
    )


@pytest.fixture(scope='module')
def student(teacher):
    return sfd_variable(teacher, TINY, NFES, show=False)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(p, b[k]) for k, p in a.items())


def all_tensors(student):
    return dict(student.denoiser.state_dict(), biases=student.biases)


NETWORKS = {
    'mlp': (lambda: EDMDenoiser(MLP(width=8, depth=1)), (2,), 'embed.lin1'),
    'classes': (lambda: EDMDenoiser(MLP(width=8, depth=1, n_classes=3)), (2,), 'embed.lin1'),
    'unet': (lambda: EDMDenoiser(UNet(widths=(8, 32))), (1, 8, 8), 'embed.lin1'),
    'v': (lambda: VPDenoiser(MLP(width=8, depth=1), linear_alpha_bar(), 'v'), (2,), 'embed.lin1'),
    'another block': (lambda: EDMDenoiser(UNet(widths=(8, 32))), (1, 8, 8), 'middle.0.emb'),
    'another layer': (lambda: EDMDenoiser(MLP(width=8, depth=2)), (2,), 'layers.1'),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    make, shape, layer = NETWORKS[request.param]
    return shaken(make()), shape, layer


# --- the conditioning ---


@pytest.mark.parametrize('K', [1, 3])
def test_at_the_start_it_is_the_teacher_for_every_count(network, noise, K):
    teacher, shape, layer = network
    x, before = noise(5, *shape), copy.deepcopy(teacher)
    told = condition(teacher, 4, layer)
    wide = branch(teacher, K)
    wide.denoiser = condition(wide.denoiser, 4, layer)
    for j in range(4):
        choose(told, j)
        choose(wide, j)
        assert torch.equal(told(x, 2.0), teacher(x, 2.0))
        assert torch.allclose(
            wide(x, 2.0), teacher(x, 2.0)[:, None].expand(-1, K, *x.shape[1:]), atol=1e-6
        )
    assert same(before.state_dict(), teacher.state_dict()) and not {
        p.data_ptr() for p in told.parameters()
    } & {p.data_ptr() for p in teacher.parameters()}


def test_apart_every_count_is_its_own_network(network, noise):
    teacher, shape, layer = network
    told, x = apart(condition(teacher, 3, layer)), noise(5, *shape)
    for j in range(3):
        choose(told, j)
        plain, biases = uncondition(told, layer)
        assert list(plain.state_dict()) == list(teacher.state_dict()) and [
            p.shape for p in plain.parameters()
        ] == [p.shape for p in teacher.parameters()]
        assert type(plain.net.get_submodule(layer)) is type(teacher.net.get_submodule(layer))
        assert (
            torch.equal(plain(x, 2.0), told(x, 2.0))
            and biases.shape == (3, len(plain.net.get_submodule(layer).bias))
            and torch.equal(plain.net.get_submodule(layer).bias, biases[j])
        )
    assert len({tuple(b.tolist()) for b in biases}) == 3 and not torch.equal(
        plain(x, 2.0), teacher(x, 2.0)
    )


def test_branches_and_step_counts_come_off_in_either_order(teacher, noise):
    wide = branch(teacher, 4)
    wide.denoiser = apart(condition(wide.denoiser, 2))
    choose(wide, 1)
    a = uncondition(fold(wide))[0]
    wide.denoiser = uncondition(wide.denoiser)[0]
    assert same(a.state_dict(), fold(wide).state_dict())
    assert torch.allclose(a(noise(5, 2), 1.0), wide(noise(5, 2), 1.0)[:, -1], atol=1e-6)


def test_one_count_in_use_leaves_the_others_without_gradient(teacher, noise):
    told = condition(teacher, 3)
    choose(told, 1)
    told(noise(5, 2), 1.0).square().sum().backward()
    grad = told.net.embed.lin1.biases.grad
    plain = copy.deepcopy(teacher).requires_grad_(True)
    plain(noise(5, 2), 1.0).square().sum().backward()
    assert torch.equal(grad[1], plain.net.embed.lin1.bias.grad) and not grad[[0, 2]].any()
    assert torch.equal(told.net.embed.lin1.weight.grad, plain.net.embed.lin1.weight.grad)


def test_what_cannot_be_conditioned(teacher, blobs):
    for layer in ('embed.lin3', 'embed', ''):
        with pytest.raises(ValueError, match=r'MLP has no .*embed\.lin1, embed\.lin2'):
            condition(teacher, 2, layer)
    with pytest.raises(ValueError, match='one of: embed.lin2'):
        condition(condition(teacher, 2), 2)
    with pytest.raises(ValueError, match="'stem'.*embed.lin1"):
        condition(EDMDenoiser(UNet(widths=(8, 32))), 2, 'stem')  # a convolution

    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.out = nn.Linear(2, 4, bias=False), nn.Linear(4, 2)

        def forward(self, x, c_noise, label=None):
            return self.out(self.mix(x))

    with pytest.raises(ValueError, match='one of: out'):
        condition(EDMDenoiser(Bare()), 2, 'mix')
    with pytest.raises(TypeError, match='MixtureDenoiser'):
        condition(blobs, 2)
    for n in (0, 1.5):
        with pytest.raises(ValueError, match='n must be'):
            condition(teacher, n)
    told = condition(teacher, 2)
    for j in (-1, 2, 0.5):
        with pytest.raises(ValueError, match='index must be'):
            choose(told, j)
    choose(teacher, 7)  # nothing to choose in a plain network


# --- which count when ---


@pytest.mark.parametrize('n', [1, 2, 4])
def test_the_draw_is_uniform_and_depends_on_seed_and_iteration_alone(n):
    drawn = [draw_index(3, n, i) for i in range(4000)]
    torch.manual_seed(5)
    torch.rand(7)
    assert drawn == [draw_index(3, n, i) for i in range(4000)] and (
        n == 1 or drawn != [draw_index(4, n, i) for i in range(4000)]
    )
    counts = torch.bincount(torch.tensor(drawn), minlength=n).double()
    assert len(counts) == n and (counts - 4000 / n).abs().max() <= 4 * (4000 / n) ** 0.5
    state = torch.random.get_rng_state()
    draw_index(3, n, 1)
    assert torch.equal(state, torch.random.get_rng_state())


def test_an_iteration_is_one_of_sfd(teacher):
    "The losses of iteration i are those of SFD with the count that was drawn, and the bias in use is that count's."
    cfgs, told = several(replace(TINY, steps=12), NFES).each, branch(teacher, 4)
    step, seen = variable_step(teacher, cfgs), set()
    told.denoiser = condition(told.denoiser, 4)
    for i in range(12):
        j = draw_index(TINY.seed, 4, i)
        seen.add(j)
        losses = []
        for loss in step(told, i):
            losses.append(loss)
            assert told.denoiser.net.embed.lin1.index == j
        assert len(losses) == NFES[j]
        assert all(
            torch.equal(a, b)
            for a, b in zip(
                losses, sfd_step(teacher, cfgs[NFES[j]])(branch(teacher, 4), i), strict=True
            )
        )
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize(
    'nfe, changes',
    [
        (2, dict()),
        (1, dict(K=1)),
        (2, dict(K=2, afs=False, solver='heun')),
        (1, dict(teacher_states='local', loss='l2')),
        (2, dict(branch_weights='uniform', branch_weights_end='endpoint')),
    ],
    ids=str,
)
def test_with_a_single_count_it_is_sfd(teacher, nfe, changes):
    cfg = replace(TINY, nfe=nfe, steps=12, **changes)
    ours, host = sfd_variable(teacher, cfg, (nfe,), show=False), sfd(teacher, cfg, show=False)
    assert (
        same(ours.at(nfe).denoiser.state_dict(), host.denoiser.state_dict())
        and ours.about['history'] == host.about['history']
    )
    assert torch.equal(ours.sample(5), host.sample(5))


@pytest.mark.parametrize('K', [1, 2, 4])
@pytest.mark.parametrize('afs', [True, False])
def test_every_count_has_its_grid_and_its_cost(teacher, K, afs):
    cfg = replace(TINY, K=K, afs=afs, steps=8)
    before = copy.deepcopy(teacher)
    student = sfd_variable(teacher, cfg, (3, 1, 2), show=False)
    assert student.nfe == (3, 1, 2) and same(before.state_dict(), teacher.state_dict())
    for nfe in (1, 2, 3):
        one = student.at(nfe)
        assert (
            torch.equal(one.sigmas, replace(cfg, nfe=nfe).grids[1])
            and one.nfe == nfe
            and list(one.denoiser.state_dict()) == list(teacher.state_dict())
        )
        assert torch.isfinite(one.sample(3)).all() and torch.equal(
            one.sample(3), student.sample(3, nfe=nfe)
        )
    assert torch.equal(student.sample(3), student.sample(3, nfe=3))


def test_branches_change_what_is_learned_and_not_the_student(teacher):
    one, four = (sfd_variable(teacher, replace(TINY, K=K), NFES, show=False) for K in (1, 4))
    assert all_tensors(one).keys() == all_tensors(four).keys() and not same(
        all_tensors(one), all_tensors(four)
    )
    assert [p.shape for p in all_tensors(one).values()] == [
        p.shape for p in all_tensors(four).values()
    ]


def test_only_counts_that_were_drawn_learn(teacher):
    cfg = replace(TINY, steps=1)
    student = sfd_variable(teacher, cfg, NFES, show=False)
    moved = [not torch.equal(b, teacher.net.embed.lin1.bias) for b in student.biases]
    assert moved == [j == draw_index(cfg.seed, 4, 0) for j in range(4)]


def test_what_is_learned_is_what_is_sampled(student, teacher):
    "The plain student of a count is the conditioned network with that count chosen."
    told = condition(student.denoiser, 4)
    with torch.no_grad():
        told.net.embed.lin1.biases.copy_(student.biases)
    x, _ = student.at(2).start(range(6))
    for j, nfe in enumerate(NFES):
        choose(told, j)
        assert (told(x, 3.0) - student.at(nfe).denoiser(x, 3.0)).abs().max() <= 1e-6
    assert torch.equal(
        student.at(2).denoiser.net.embed.lin1.bias, student.biases[0]
    ) and not torch.equal(student.biases[0], student.biases[1])


def test_an_exact_teacher_and_classes(blobs, teacher):
    assert sfd_variable(blobs, TINY, (1, 2), show=False, student=teacher).nfe == (1, 2)
    classy = sfd_variable(
        shaken(EDMDenoiser(MLP(width=8, depth=1, n_classes=3))), TINY, (1, 2), show=False
    )
    assert not torch.equal(classy.sample(4, cond=0, nfe=2), classy.sample(4, cond=1, nfe=2))
    with pytest.raises(TypeError, match='student='):
        sfd_variable(blobs, TINY, show=False)


# --- resumption ---


class Unplugged(TrajectoryBank):
    def __init__(self, bank, at):
        vars(self).update(vars(bank))
        self.at = at

    def batch(self, seeds):
        if seeds.start == self.at:
            raise OSError('power cut')
        return super().batch(seeds)


@pytest.mark.parametrize('at, K', [(1, 4), (19, 2)])
def test_resumed_is_the_same_run(tmp_path, teacher, at, K):
    cfg = replace(TINY, steps=20, K=K)
    banks = {
        nfe: teacher_bank(teacher, c, show=False) for nfe, c in several(cfg, (2, 3)).each.items()
    }
    whole = sfd_variable(teacher, cfg, (2, 3), banks, tmp_path / 'a', show=False)
    cut = {nfe: Unplugged(bank, cfg.seeds(at).start) for nfe, bank in banks.items()}
    with pytest.raises(OSError, match='power cut'):
        sfd_variable(teacher, cfg, (2, 3), cut, tmp_path / 'b', show=False)
    resumed = sfd_variable(teacher, cfg, (2, 3), banks, tmp_path / 'b', show=False)
    assert (
        same(all_tensors(whole), all_tensors(resumed))
        and whole.about['history'] == resumed.about['history']
    )
    assert same(all_tensors(whole), all_tensors(sfd_variable(teacher, cfg, (2, 3), show=False)))


def test_a_folder_belongs_to_one_run(tmp_path, teacher):
    sfd_variable(teacher, TINY, (2, 3), folder=tmp_path, show=False)
    for call in (
        lambda: sfd_variable(teacher, TINY, (3, 2), folder=tmp_path, show=False),
        lambda: sfd_variable(teacher, replace(TINY, K=2), (2, 3), folder=tmp_path, show=False),
        lambda: sfd_variable(
            teacher, TINY, (2, 3), folder=tmp_path, show=False, step_layer='embed.lin2'
        ),
        lambda: sfd(teacher, TINY, folder=tmp_path, show=False),
    ):
        with pytest.raises(ValueError, match='another configuration'):
            call()
    sfd_variable(teacher, TINY, (2, 3), folder=tmp_path, show=False)


def test_the_folder_of_another_run_is_refused_before_anything_is_walked(
    tmp_path, teacher, monkeypatch
):
    seen_again = replace(TINY, pool=4)
    for cfg, name in ((seen_again, 'a'), (several(seen_again, (2, 3)), 'b')):
        distill(teacher, cfg, folder=tmp_path / name, show=False)
        with monkeypatch.context() as m:
            m.setattr(type(cfg), 'bank', lambda *args, **how: pytest.fail('it walked'))
            with pytest.raises(ValueError, match='another configuration'):
                distill(teacher, replace(cfg, seed=1), folder=tmp_path / name, show=False)
            distill(teacher, cfg, folder=tmp_path / name, show=False)  # it is finished


# --- files ---


def test_to_a_folder_and_back(tmp_path, student):
    student.save(tmp_path)
    assert sorted(p.name for p in tmp_path.glob('[!.]*')) == [
        'config.json',
        'model.safetensors',
        'step_biases.safetensors',
    ]
    back = load_student(tmp_path, 'cpu')
    assert (
        isinstance(back, VariableStudent)
        and same(all_tensors(back), all_tensors(student))
        and back.nfe == student.nfe
        and back.about == json.loads(json.dumps(student.about))
    )
    assert [*back.grids] == [*student.grids] and all(
        torch.equal(back.grids[n], student.grids[n]) for n in NFES
    )
    assert (back.afs, back.shape, back.step_layer) == (
        student.afs,
        student.shape,
        student.step_layer,
    )
    for nfe in NFES:
        assert torch.equal(back.sample(4, nfe=nfe), student.sample(4, nfe=nfe))
    student.at(3).save(tmp_path / 'three')
    assert isinstance(load_student(tmp_path / 'three', 'cpu'), Student) and torch.equal(
        load_student(tmp_path / 'three', 'cpu').sample(4), student.sample(4, nfe=3)
    )


@pytest.mark.parametrize(
    'damage, error',
    [
        (lambda p: p.unlink(), FileNotFoundError),
        (lambda p: p.write_bytes(p.read_bytes()[:-3]), ValueError),
        (lambda p: p.write_bytes(b'nothing'), ValueError),
        (lambda p: save_tensors(p, {'biases': torch.zeros(4, 8)}), ValueError),
        (lambda p: save_tensors(p, {'other': torch.zeros(4, 8)}), ValueError),
    ],
    ids=['gone', 'truncated', 'foreign', 'other numbers', 'other names'],
)
def test_damaged_biases_are_refused_by_name(tmp_path, student, damage, error):
    student.save(tmp_path)
    damage(tmp_path / 'step_biases.safetensors')
    with pytest.raises(error, match='step_biases.safetensors'):
        load_student(tmp_path, 'cpu')


@pytest.mark.parametrize(
    'change, match',
    [
        (lambda how: how.pop('biases_sha256'), 'biases_sha256'),
        (lambda how: how.pop('step_layer'), 'step_layer'),
        (lambda how: how.update(step_layer='embed.lin7'), 'embed.lin7'),
        (lambda how: how['grids'].pop('2'), 'biases, a row for each step count, must have'),
    ],
    ids=['no checksum', 'no layer', 'another layer', 'a grid too few'],
)
def test_a_description_that_does_not_fit_is_refused(tmp_path, student, change, match):
    student.save(tmp_path)
    about = json.loads((tmp_path / 'config.json').read_text())
    change(about['about']['student'])
    (tmp_path / 'config.json').write_text(json.dumps(about))
    with pytest.raises(ValueError, match=match):
        load_student(tmp_path, 'cpu')


# --- a configuration of its own ---


def test_its_configuration_says_what_arguments_said(teacher):
    cfg = SFDVConfig(nfe=(2, 3), step_layer='embed.lin2', steps=4, batch=4, lr=1e-3, shape=(2,))
    ours, old = (
        sfd_variable(teacher, cfg, show=False),
        sfd_variable(teacher, TINY, (2, 3), show=False, step_layer='embed.lin2'),
    )
    assert same(all_tensors(ours), all_tensors(old)) and ours.about['config'] == old.about[
        'config'
    ] == asdict(cfg)
    assert same(all_tensors(ours), all_tensors(distill(teacher, cfg, show=False)))
    assert (
        SFDVConfig(**json.loads(json.dumps(asdict(cfg)))) == cfg
        and hash(cfg)
        and config_of(ours.about) == cfg
        and config_of(ours.at(3).about) == cfg.at(3) == replace(TINY, nfe=3)
    )
    assert (
        cfg.each == several(TINY, (2, 3)).each
        and several(TINY, (2, 3), step_layer='embed.lin2') == cfg
    )


@pytest.mark.parametrize(
    'bad, says',
    [
        (dict(nfe=()), 'nfe must be different'),
        (dict(nfe=(2, 2)), 'nfe must be different'),
        (dict(nfe=2), 'nfe must be a tuple'),
        (dict(nfe=(0,)), 'nfe'),
        (dict(step_layer=''), 'step_layer'),
        (dict(K=3), 'K must divide'),
    ],
    ids=str,
)
def test_bad_configurations(bad, says):
    with pytest.raises(ValueError, match=says):
        SFDVConfig(**bad)
    with pytest.raises(TypeError, match='SFDVConfig'):
        several('demo')


def test_it_is_no_configuration_of_sfd(teacher):
    with pytest.raises(TypeError, match='SFDConfig'):
        sfd(teacher, SFDVConfig(shape=(2,)))


class Notes:
    "A hook that notes what it sees."

    def __init__(self):
        self.iterations = []

    def after_iteration(self, state):
        self.iterations.append(state.done)


def test_hardware_and_hooks_reach_the_loop(teacher, student):
    notes = Notes()
    half = sfd_variable(
        teacher, TINY, NFES, show=False, hardware=Hardware(precision='bf16'), hooks=(notes,)
    )
    assert (
        notes.iterations == [1, 2, 3, 4]
        and not same(all_tensors(half), all_tensors(student))
        and half.sample(3).isfinite().all()
    )


@pytest.mark.parametrize('ema', [None, 0.5])
def test_hooks_meet_a_student_that_is_told_the_first_count(teacher, ema):
    told = []
    see = lambda model, done: told.append(model.denoiser.net.embed.lin1.index)
    cfg = replace(TINY, steps=8, ema=ema)
    sfd_variable(teacher, cfg, NFES, show=False, hooks=[Every(1, see)])
    assert {draw_index(cfg.seed, len(NFES), i) for i in range(8)} - {0} and told == [0] * 8


def test_with_ema_the_student_is_the_average(teacher, monkeypatch):
    made, real = [], variable_module.fit
    monkeypatch.setattr(
        variable_module, 'fit', lambda *args, **how: made.append(real(*args, **how)) or made[-1]
    )
    student = sfd_variable(teacher, replace(TINY, ema=0.5), (2, 3), show=False)
    assert torch.equal(
        student.biases, made[0].ema.denoiser.net.embed.lin1.biases
    ) and not torch.equal(student.biases, made[0].model.denoiser.net.embed.lin1.biases)


def test_a_run_of_an_older_version_goes_on(tmp_path, teacher):
    want = sfd_variable(teacher, TINY, (2, 3), folder=tmp_path, show=False)
    note = json.loads((tmp_path / 'run.json').read_text())
    assert note['step_layer'] == 'embed.lin1' and note['nfe'] == [2, 3]
    for name in (
        'warmup',
        'betas',
        'clip_grad',
        'ema',
        'log_every',
        'checkpoint_every',
        'keep',
        'on_nan',
    ):
        del note[name]
    (tmp_path / 'run.json').write_text(json.dumps(note))
    assert same(
        all_tensors(want),
        all_tensors(
            sfd_variable(teacher, replace(TINY, log_every=3), (2, 3), folder=tmp_path, show=False)
        ),
    )


class Strict(MLP):
    "Takes its noise input as [B], as many networks do."

    def forward(self, x, noise, label=None):
        assert noise.shape == (len(x),)
        return super().forward(x, noise, label)


def test_the_noise_input_is_always_one_per_sample():
    assert (
        sfd_variable(shaken(EDMDenoiser(Strict(width=8, depth=1))), TINY, (1, 2), show=False)
        .sample(3)
        .isfinite()
        .all()
    )


def test_only_what_is_trainable_is_trained(teacher):
    start = copy.deepcopy(teacher)
    start.net.out.requires_grad_(True)
    student = sfd_variable(teacher, replace(TINY, K=1), (1, 2), show=False, student=start)
    before = teacher.state_dict()
    assert {
        k for k, v in student.denoiser.state_dict().items() if not torch.equal(v, before[k])
    } <= {'net.out.weight', 'net.out.bias', 'net.embed.lin1.bias'}
    assert not torch.equal(student.biases[0], student.biases[1]) and not torch.equal(
        student.denoiser.net.out.weight, teacher.net.out.weight
    )


def test_the_layer_of_a_diffusers_network_is_found_and_its_student_saved(tmp_path):
    from bdense_nb.interop.diffusers import from_diffusers
    from diffusers import DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=('DownBlock2D',),
        up_block_types=('UpBlock2D',),
    )
    source = from_diffusers(unet, DDPMScheduler(prediction_type='v_prediction'))
    assert find_step_layer(source) == 'unet.time_embedding.linear_1'
    made = sfd_variable(
        source, replace(TINY, shape=(1, 8, 8), steps=2, batch=2), (1, 2), show=False
    )
    made.save(tmp_path)
    again = load_student(tmp_path, 'cpu')
    assert again.step_layer == 'unet.time_embedding.linear_1' and all(
        torch.allclose(again.sample(2, nfe=n), made.sample(2, nfe=n), atol=1e-4) for n in (1, 2)
    )


def test_a_layer_that_is_not_found_is_asked_for_before_any_work(tmp_path):
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.out = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x, noise, label=None):
            return self.out(self.mix(torch.cat([x, noise[:, None]], 1)))

    with pytest.raises(ValueError, match='pass step_layer= its name, one of: mix, out'):
        sfd_variable(shaken(EDMDenoiser(Other())), TINY, show=False, folder=tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


# --- bad input ---


@pytest.mark.parametrize('nfes', [(), (2, 2), (2, 3, 2), (0, 1), (2.0, 3.0), ('2',)], ids=str)
def test_step_counts_must_be_different_numbers(teacher, nfes):
    with pytest.raises(ValueError, match='nfe'):
        sfd_variable(teacher, TINY, nfes, show=False)


def test_a_count_that_was_not_trained_is_refused(student):
    for nfe in (1, 6, '2'):
        with pytest.raises(ValueError, match='unknown nfe.*2, 3, 4, 5'):
            student.at(nfe)
        with pytest.raises(ValueError, match='unknown nfe.*2, 3, 4, 5'):
            student.sample(3, nfe=nfe)
    with pytest.raises(
        AttributeError, match=r'has no save_pretrained; the student of n calls, at\(n\), has'
    ):
        student.save_pretrained
    assert not hasattr(student, 'no_such_thing')


def test_layers_that_do_not_fit_are_refused(teacher):
    with pytest.raises(ValueError, match='embed.lin3.*embed.lin1'):
        sfd_variable(teacher, TINY, show=False, step_layer='embed.lin3')
    with pytest.raises(ValueError, match='output layer'):
        sfd_variable(teacher, TINY, show=False, step_layer='out')


def test_banks_of_another_run_are_refused(teacher):
    cfgs = several(TINY, (2, 3)).each
    banks = {nfe: teacher_bank(teacher, c, show=False) for nfe, c in cfgs.items()}
    run = lambda banks, t=teacher, c=TINY: sfd_variable(t, c, (2, 3), banks, show=False)
    run(banks)
    for wrong in ({2: banks[2]}, {**banks, 4: banks[3]}, banks[2], [banks[2], banks[3]]):
        with pytest.raises(
            ValueError, match=r'banks must hold one for each number of calls \[2, 3\]'
        ):
            run(wrong)
    with pytest.raises(ValueError, match='this bank.*sigmas'):
        run({2: banks[3], 3: banks[2]})
    with pytest.raises(ValueError, match='this bank.*teacher'):
        run(banks, shaken(EDMDenoiser(MLP(width=8, depth=1)), 1))
    for changes in (dict(seed=1), dict(steps=5), dict(solver='euler')):
        with pytest.raises(ValueError, match='this bank'):
            run(banks, c=replace(TINY, **changes))


# --- the second stage ---


@pytest.mark.parametrize('schedule', ['karras', 'logsnr', 'time_uniform'])
@pytest.mark.parametrize(
    'nfe, afs, changes',
    [
        (5, True, {}),
        (5, True, dict(K=1)),
        (5, True, dict(nfe=2)),
        (3, True, {}),
        (4, False, {}),
        (4, False, dict(afs=False)),
        (5, True, dict(afs=False)),
        (1, True, {}),
    ],
    ids=str,
)
def test_the_second_stage_walks_the_students_own_grid(teacher, schedule, nfe, afs, changes):
    first = SFDConfig(nfe=nfe, K=1, afs=afs, schedule=schedule, shape=(2,))
    student = Student(teacher, first.grids[1], afs, (2,))
    cfg = second_stage(student, **changes)
    assert (cfg.grids[0] - student.sigmas).abs().max() <= 1e-12 * 80 and torch.allclose(
        cfg.grids[0], student.sigmas, rtol=1e-12, atol=0
    )
    assert (
        cfg.n_steps * cfg.substeps == len(student.sigmas) - 1
        and cfg.teacher_afs == afs
        and cfg.solver == 'euler'
        and cfg.reference() == cfg.plan
    )
    assert SFDConfig(**json.loads(json.dumps(asdict(cfg)))) == cfg
    counted = NFECounter(teacher)
    traj, _ = cfg.plan.trajectories(counted, range(7))
    assert counted.nfe == nfe == student.nfe and torch.allclose(
        traj[-1], student.sample(7), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize('K', [1, 3])
def test_the_second_stage_ends_in_one_call(student, K):
    five = student.at(5)
    one = sfd(five.denoiser, second_stage(five, K=K, steps=3, batch=4), show=False)
    assert (
        one.nfe == 1
        and len(one.sigmas) == 3
        and torch.isfinite(one.sample(3)).all()
        and list(one.denoiser.state_dict()) == list(five.denoiser.state_dict())
    )


def test_published_settings_of_the_second_stage(student):
    cfg = second_stage(student.at(5))
    assert (cfg.nfe, cfg.n_steps, cfg.substeps, cfg.lr, cfg.afs, cfg.teacher_afs) == (
        1,
        2,
        3,
        5e-4,
        True,
        True,
    ) and cfg.steps * cfg.batch == 2_000_000


def test_a_second_stage_that_does_not_fit_is_refused(student, teacher):
    with pytest.raises(TypeError, match=r'VariableStudent.*\.at\(nfe\)'):
        second_stage(student)
    with pytest.raises(ValueError, match='5 steps.*2 equal parts'):
        second_stage(student.at(4))
    for changes in (dict(schedule='logsnr'), dict(sigma_max=40.0), dict(substeps=4, K=1)):
        with pytest.raises(ValueError, match='own grid'):
            second_stage(student.at(5), **changes)
    for changes in (dict(nfe=0), dict(K=2), dict(afs='yes')):
        with pytest.raises(ValueError):
            second_stage(student.at(5), **changes)
    with pytest.raises(TypeError):
        second_stage(student.at(5), lpips=True)
    for sigmas in ([80.0, 3.0, 1.0, 0.5, 0.1], [80.0, 1.0, 0.0]):
        with pytest.raises(ValueError, match='none of|noise level 0'):
            second_stage(
                Student(teacher, torch.tensor(sigmas, dtype=torch.float64), True, (2,)), K=1
            )


@pytest.mark.parametrize('ends', [(0.002, 20.0), (0.01, 157.0), (0.006, 2e4)])
def test_a_schedule_is_found_whatever_its_ends(teacher, ends):
    for name in ('karras', 'logsnr'):
        assert (
            second_stage(Student(teacher, make_sigmas(name, 4, *ends), True, (2,))).schedule == name
        )


def test_a_student_is_a_teacher_in_its_own_steps_alone(teacher, student):
    five = student.at(5)
    stage = second_stage(five, K=1, steps=1, batch=2)
    assert stage.suited(five.denoiser) == stage
    assert TINY.suited(teacher, five.denoiser) == TINY  # another one may start as it
    others = (dict(sigma_max=40.0), dict(substeps=4), dict(solver='heun'), dict(afs=False))
    unsaid = dict(teacher_own_steps=False, teacher_afs=False)
    for cfg in (
        *(replace(stage, **changes) for changes in (*others, unsaid)),
        SFDVConfig(shape=(2,)),
        PDConfig(start_steps=4),
    ):
        with pytest.raises(ValueError, match='knows its own 6 Euler steps alone'):
            cfg.suited(five.denoiser)
    with pytest.raises(ValueError, match='6 Euler steps alone .* it would take 12 by dpmpp3m'):
        sfd(five.denoiser, replace(TINY, nfe=2), show=False)
    more = TrainConfig(steps=1, lr=1e-4, ema=0.9)  # at all levels: it is a teacher like any other
    again = train_teacher(
        five.denoiser.requires_grad_(True), torch.randn(8, 2), None, more, 4, show=False
    )
    for taught in (five.denoiser, again.model, again.ema):
        assert replace(TINY, nfe=2).suited(taught)
