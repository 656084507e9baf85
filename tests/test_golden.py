"Golden numbers: what public names gave before the code moved into packages, written down digit by digit."

import json
import re

import pytest
import torch
from conftest import shaken
from bdense_nb.core import NFECounter, data_dir, sample_labels, sample_noise
from bdense_nb.diffusion.data import fashion_mnist, toy_2d
from bdense_nb.diffusion.denoisers import EDMDenoiser, GaussianDenoiser, MixtureDenoiser
from bdense_nb.diffusion.stored import load_teacher
from bdense_nb.diffusion.nets import MLP
from bdense_nb.diffusion.samplers import SOLVERS, sample, trajectory
from bdense_nb.diffusion.schedules import (
    SCHEDULES,
    alpha_bar_from_sigma,
    cosine_alpha_bar,
    linear_alpha_bar,
    make_sigmas,
)
from bdense_nb.distillation.branches import branch
from bdense_nb.distillation.distill import preset
from bdense_nb.distillation.losses import branch_weights, dense_alignment_loss
from bdense_nb.distillation.progressive import PDConfig, progressive
from bdense_nb.distillation.segments import progressive_targets
from bdense_nb.distillation.sfd import SFDConfig, sfd
from bdense_nb.distillation.students import load_student
from bdense_nb.evaluation.intervals import paired_interval
from bdense_nb.evaluation.metrics import (
    fashion_fd,
    frechet_distance,
    image_features,
    kernel_distance,
    load_features,
    paired_error,
)
from bdense_nb.lab.differences import difference_table

BLOBS = MixtureDenoiser(
    torch.tensor([[1.0, 0.0], [-1.0, 0.5]]), torch.tensor([0.2, 0.3]), torch.tensor([0.4, 0.6])
)
TINY = SFDConfig(steps=6, batch=8, lr=1e-3, shape=(2,))
DOUBLE, SINGLE, TRAINED = (
    1e-10,
    1e-6,
    1e-5,
)  # relative: float64; float32; float32 after optimiser steps on another machine


def net(n_classes=0):
    return shaken(EDMDenoiser(MLP(width=16, depth=2, n_classes=n_classes)), seed=5)


def numbers(tensor) -> list[float]:
    "A tensor in two numbers: its sum of magnitudes, and a sum in which every entry's place counts."
    flat = tensor.detach().double().flatten()
    return [
        float(flat.abs().sum()),
        float((flat * torch.arange(1, len(flat) + 1) / len(flat)).abs().sum()),
    ]


def trained(student) -> list[float]:
    "A run: first and last loss, its weights, what it samples."
    history = student.about.get('history') or student.about['rounds'][-1]['history']
    weights = torch.cat([p.flatten() for p in student.denoiser.state_dict().values()])
    return [
        history[0]['loss'],
        history[-1]['loss'],
        *numbers(weights),
        *numbers(student.sample(4, seed=3)),
    ]


# --- what is computed; every function returns numbers ---


def schedules():
    return [
        float(v)
        for name in SCHEDULES
        if name != 'flow'
        for v in make_sigmas(name, 7, 0.006, 80.0)[[1, 3, 6]]
    ]


def tables():
    return [
        float(a[i]) for a in (linear_alpha_bar(1000), cosine_alpha_bar(1000)) for i in (0, 500, 990)
    ] + [float(alpha_bar_from_sigma(torch.tensor(2.5, dtype=torch.float64)))]


def draws():
    return [
        *numbers(sample_noise(range(5), (3,))),
        *sample_labels(range(12), 10).tolist(),
        *numbers(toy_2d('ring', 50, seed=2)),
        *numbers(BLOBS.sample(9, seed=1)),
    ]


def samplers():
    x = 80 * sample_noise(range(6), (2,)).double()
    grid = make_sigmas('karras', 6, 0.006, 80.0)
    return [v for solver in SOLVERS for v in numbers(sample(BLOBS, x, grid, solver))]


def path():
    traj = trajectory(
        GaussianDenoiser(0.5, 0.7),
        80 * sample_noise(range(3), (4,)).double(),
        make_sigmas('karras', 4, 0.01, 80.0),
        'heun',
        True,
    )
    return numbers(traj.xs)


def targets():
    states, x_t = (
        sample_noise(range(6), (3, 4)).double(),
        9 * sample_noise(range(6, 12), (4,)).double(),
    )
    x0 = progressive_targets(states, x_t, 9.0, torch.tensor([5.0, 2.0, 0.5], dtype=torch.float64))
    weights = branch_weights(3, 'linear')
    return [
        *numbers(x0),
        *weights.tolist(),
        float(dense_alignment_loss(x0, states, weights.double(), 'l1')),
    ]


def start():
    x = sample_noise(range(5), (2,))
    return [*numbers(branch(net(), 4, shape=(2,))(x, 2.0)), *numbers(net()(x, 2.0))]


def sfd_run():
    return trained(sfd(net(), TINY, show=False))


def sfd_host():
    return trained(
        sfd(net(), SFDConfig(K=1, steps=6, batch=8, lr=1e-3, shape=(2,), solver='heun'), show=False)
    )


def sfd_labels():
    return trained(sfd(net(5), TINY, show=False))


def pd_run():
    data = torch.randn(50, 2, generator=torch.Generator().manual_seed(7)) * 0.5
    return trained(
        progressive(net(), data, PDConfig(start_steps=8, updates=3, batch=8, lr=1e-3), show=False)
    )


def metrics():
    a, b = torch.randn(2, 60, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    i = paired_interval([1.0, 2.0, 4.0, 3.0], [1.5, 1.8, 3.0, 2.0])
    return [
        frechet_distance(a, b),
        kernel_distance(a, b),
        paired_error(a, b),
        i.mean,
        i.low,
        i.high,
    ]


def shipped_images():
    images, labels = fashion_mnist('test')
    return [
        len(images),
        int(labels[:100].sum()),
        *numbers(images[:20]),
        *numbers(image_features(images[:20], load_features())),
    ]


def shipped_models():
    student = load_student(data_dir() / 'fashion_mnist_student', 'cpu')
    counter = NFECounter(load_teacher(device='cpu'))
    x = 80 * sample_noise(range(4), (1, 28, 28))
    teacher = sample(
        counter, x, make_sigmas('karras', 3, 0.006, 80.0), 'euler', True, torch.arange(4)
    )
    return [student.nfe, counter.nfe, *numbers(student.sample(4, seed=0)), *numbers(teacher)]


def small_demo():
    cfg = preset('demo', steps=2, batch=4, pool=8)
    student = sfd(load_teacher(device='cpu'), cfg, show=False)
    return [student.nfe, *trained(student), fashion_fd(student.sample(8, seed=1))]


def stored_demo():
    rows = json.loads((data_dir() / 'results' / 'demo.json').read_text())['rows']
    return [r[k] for r in rows[1:] for k in ('nfe', 'frechet_distance', 'paired_error')]


def stored_experiments():
    tables = (
        difference_table(json.loads((data_dir() / 'results' / f'{name}.json').read_text()))
        for name in ('ring_sfd', 'fashion_pd')
    )
    return [float(v) for table in tables for v in re.findall(r'[-+]?\d+\.\d+', table)][::7]


GOLDEN = {
    schedules: (
        DOUBLE,
        [
            36.491700723995265,
            5.47726638054535,
            0.06714101678549611,
            20.597429479683,
            1.3653974891134333,
            0.023303878790965862,
            25.064469102927845,
            4.084803400231136,
            0.44995510043812365,
            25.06339391808631,
            4.092687855761697,
            0.45615286355794316,
            4.190460287850507,
            1.2422685323367944,
            0.23177826262130163,
        ],
    ),
    tables: (
        DOUBLE,
        [
            0.9999,
            0.07779665836502389,
            4.837047811818103e-05,
            0.999958715775178,
            0.49228517244880327,
            0.00019671738012480377,
            0.13793103448275862,
        ],
    ),
    draws: (
        SINGLE,
        [
            11.083248656243086,
            5.944634372492632,
            5,
            2,
            2,
            1,
            5,
            4,
            6,
            1,
            9,
            7,
            3,
            6,
            61.88316655240487,
            31.087108600016215,
            12.152026139199734,
            6.462788783013821,
        ],
    ),
    samplers: (
        DOUBLE,
        [
            5.890991833425721,
            3.359276171917371,
            9.558277668676544,
            5.075240113133633,
            8.366140745677276,
            4.44334751725536,
            5.890991833425721,
            3.359276171917371,
            7.773593565795539,
            4.27100496558916,
            8.139797283306033,
            4.445736558067247,
            7.462959640134026,
            4.125743880722224,
            7.487713289874241,
            4.13820490252526,
            5.890991833425721,
            3.359276171917371,
            7.202008890241585,
            3.983913582850588,
            7.799352722447635,
            4.278993831353218,
            8.026431845582715,
            4.39853738129411,
        ],
    ),
    path: (DOUBLE, [895.7701142985222, 147.4021507398081]),
    targets: (
        SINGLE,
        [
            318.2495075062606,
            150.518941714716,
            0.16666666666666666,
            0.3333333333333333,
            0.5,
            10.274848897217048,
        ],
    ),
    start: (
        SINGLE,
        [2.724802143871784, 1.8013324590399862, 0.6812005620449781, 0.46575310416519644],
    ),
    sfd_run: (
        TRAINED,
        [
            0.29888270795345306,
            0.3282386288046837,
            297.90427533944603,
            150.1651358936638,
            2.757298521697521,
            1.720872277393937,
        ],
    ),
    sfd_host: (
        TRAINED,
        [
            0.3984839469194412,
            0.4498293697834015,
            297.94787375760643,
            150.16053465210305,
            2.75049639493227,
            1.7143828365951777,
        ],
    ),
    sfd_labels: (
        TRAINED,
        [
            0.31983231753110886,
            0.3241647332906723,
            311.70927838231,
            156.61130439770864,
            1.5934529285877943,
            0.8331467029638588,
        ],
    ),
    pd_run: (
        TRAINED,
        [
            0.030933532863855362,
            0.0245315320789814,
            297.9902962105989,
            150.16107257753157,
            1.0043897600844502,
            0.6694758520461619,
        ],
    ),
    metrics: (
        DOUBLE,
        [
            0.7252623577071535,
            0.03487656164970421,
            1.495452344947729,
            0.425,
            -0.7252023130673866,
            1.5752023130673867,
        ],
    ),
    shipped_images: (
        SINGLE,
        [10000, 428, 12013.427565574646, 5876.969884180073, 960.5621350233778, 479.70441714050713],
    ),
    shipped_models: (
        SINGLE,
        [2, 2, 2492.5173409533018, 1233.3351351214692, 2051.2715381463786, 1004.3808831387004],
    ),
    small_demo: (
        TRAINED,
        [
            2,
            171.60916137695312,
            222.36139678955078,
            41858.05085113135,
            21559.781945208637,
            2323.4361679104913,
            1110.1232314271676,
            45.956581236151536,
        ],
    ),
    stored_demo: (
        DOUBLE,
        [
            24,
            1.1750702981223782,
            0.0,
            2,
            10.069629917306983,
            0.2768297858378186,
            2,
            2.8203315187433873,
            0.14952290736603072,
            2,
            2.6799318798949088,
            0.15338447812476194,
        ],
    ),
    stored_experiments: (
        DOUBLE,
        [
            0.1014,
            -1.6,
            2.8,
            -1.2,
            -9.1,
            -0.4,
            6.3,
            -0.6,
            -1.2,
            -2.8,
            0.9,
            3.0,
            1.0,
            0.0337,
            -0.1,
            -8.2,
            0.0,
            4.8,
            4.3,
            7.3,
            10.1,
            10.5,
        ],
    ),
}


@pytest.mark.parametrize('what', GOLDEN, ids=lambda f: f.__name__)
def test_golden(what):
    tolerance, values = GOLDEN[what]
    assert what() == pytest.approx(values, rel=tolerance, abs=0)
