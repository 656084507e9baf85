"Metrics: values on matrices of inputs, invariances, and bad input."

import json
import math

import numpy as np
import pytest
import torch
from bdense_nb.evaluation import metrics as m
from bdense_nb.evaluation import pictures
from bdense_nb.core import Trajectory, data_dir, load_tensors, save_tensors, sha256
from bdense_nb.diffusion.data import fashion_mnist
from conftest import in_pairs


def draw(n, d, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, d, generator=g, dtype=torch.float64)
        @ torch.randn(d, d, generator=g, dtype=torch.float64)
    ).to(dtype)


@pytest.fixture(scope='module')
def net():
    return m.load_features()


@pytest.fixture(scope='module')
def test_set():
    return fashion_mnist('test')


# --- Fréchet distance: values ---


@pytest.mark.parametrize(
    'd, dtype, seed',
    in_pairs(
        [1, 2, 7, 64],
        [torch.float64, torch.float32, torch.bfloat16, torch.float16],
        range(3),
    ),
)
def test_frechet_is_a_distance(d, dtype, seed):
    a, b = draw(3 * d + 9, d, seed, dtype), draw(2 * d + 9, d, seed + 10, dtype)
    assert m.frechet_distance(a, a) <= 1e-9 * (1 + float(a.double().square().sum()))
    assert m.frechet_distance(a, b) > 0
    assert m.frechet_distance(a, b) == pytest.approx(m.frechet_distance(b, a), rel=1e-9)


@pytest.mark.parametrize('d', [1, 3, 64])
@pytest.mark.parametrize('seed', range(3))
def test_frechet_equals_the_sqrt_of_the_product(d, seed):
    a, b = m.feature_stats(draw(500, d, seed)), m.feature_stats(draw(400, d, seed + 10) + 1)
    roots = np.sqrt(np.linalg.eigvals((a.cov @ b.cov).numpy()).astype(complex)).real.sum()
    expected = float((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace()) - 2 * roots
    assert m.frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('d', [1, 2, 16])
def test_frechet_commuting_covariances(d):
    "Equal eigenvectors: the 1-D formula along each."
    g = torch.Generator().manual_seed(d)
    q = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64)).Q
    s, t, mean = torch.rand(3, d, generator=g, dtype=torch.float64) + 0.1
    a, b = (mean, q * s**2 @ q.T), (mean * 0, q * t**2 @ q.T)
    assert m.frechet_distance(a, b) == pytest.approx(
        float(mean.square().sum() + (s - t).square().sum()), rel=1e-9
    )


def test_frechet_invariances():
    a, b = draw(200, 8, 0), draw(300, 8, 1)
    q = torch.linalg.qr(draw(8, 8, 2)).Q
    base = m.frechet_distance(a, b)
    assert m.frechet_distance(a @ q, b @ q) == pytest.approx(base, rel=1e-9)
    assert m.frechet_distance(a + 5, b + 5) == pytest.approx(base, rel=1e-9)
    assert m.frechet_distance(3 * a, 3 * b) == pytest.approx(9 * base, rel=1e-9)
    assert m.frechet_distance(a[torch.randperm(200)], b) == pytest.approx(base, rel=1e-9)
    assert m.frechet_distance(a, a + 1) == pytest.approx(8, rel=1e-9)


def test_frechet_rank_deficient_and_constant():
    few = draw(5, 64)
    assert m.frechet_distance(few, few) < 1e-6
    assert m.frechet_distance(torch.zeros(4, 3), torch.ones(6, 3)) == pytest.approx(3)
    assert m.frechet_distance(torch.zeros(4, 3), torch.zeros(6, 3)) == 0


def test_frechet_accepts_every_form_of_the_same_set():
    a, b = draw(50, 6, 0), draw(60, 6, 1)
    sa = m.feature_stats(a)
    forms = [
        a,
        a.numpy(),
        sa,
        (sa.mean, sa.cov),
        (sa.mean.numpy(), sa.cov.numpy()),
        a.clone().requires_grad_(),
    ]
    values = {m.frechet_distance(f, b) for f in forms}
    assert max(values) - min(values) <= 1e-12 * max(values) and all(
        type(v) is float for v in values
    )


def test_feature_stats_are_unbiased():
    a = draw(40, 5, dtype=torch.float32)
    s = m.feature_stats(a)
    assert s.n == 40 and s.mean.dtype == s.cov.dtype == torch.float64
    torch.testing.assert_close(s.cov, torch.cov(a.double().T))


# --- Fréchet distance: bad input ---


@pytest.mark.parametrize(
    'bad, error, words',
    [
        (torch.zeros(1, 4), ValueError, 'at least 2'),
        (torch.zeros(0, 4), ValueError, 'at least 2'),
        (torch.zeros(4), ValueError, 'shape'),
        (torch.zeros(4, 2, 2), ValueError, r'\[N, d\]'),
        (torch.full((5, 4), math.nan), ValueError, 'NaN'),
        (torch.full((5, 4), math.inf), ValueError, 'infinite'),
        (torch.zeros(5, 4, dtype=torch.int64), TypeError, 'int64'),
        (torch.zeros(5, 4, dtype=torch.complex64), TypeError, 'complex64'),
        (np.zeros((5, 4), np.int32), TypeError, 'int32'),
        ([[0.0, 1.0], [1.0, 0.0]], TypeError, 'list'),
        (None, TypeError, 'NoneType'),
        ('x', TypeError, 'str'),
        (torch.randn(9, 3), ValueError, '3 and 4'),
        ((torch.zeros(4), torch.eye(3)), ValueError, 'must have shape'),
        ((torch.zeros(4), -torch.eye(4)), ValueError, 'negative eigenvalue'),
        ((torch.zeros(4), torch.triu(torch.ones(4, 4))), ValueError, 'symmetric'),
        ((torch.full((4,), math.nan), torch.eye(4)), ValueError, 'mean contains NaN'),
        ((torch.zeros(4), torch.eye(4) * math.inf), ValueError, 'covariance contains'),
    ],
)
def test_frechet_refuses(bad, error, words):
    good = torch.randn(9, 4)
    with pytest.raises(error, match=words):
        m.frechet_distance(bad, good)
    if words != '3 and 4':
        with pytest.raises(error, match=words):
            m.frechet_distance(good, bad)


# --- the shipped network and statistics ---


def test_shipped_network(net, test_set):
    images, labels = test_set
    config = json.loads((data_dir() / 'fashion_mnist_features' / 'config.json').read_text())
    right = m.accuracy(net, images, labels)
    assert right >= 0.91 and right == pytest.approx(config['test_accuracy'], abs=5e-4)
    assert not net.training and not any(p.requires_grad for p in net.parameters())
    for name, digest in config['sha256'].items():
        assert sha256(data_dir() / 'fashion_mnist_features' / name) == digest
    assert (
        load_tensors(data_dir() / 'fashion_mnist_features' / 'reference.safetensors')[1][
            'model_sha256'
        ]
        == config['sha256']['model.safetensors']
    )
    assert (data_dir() / 'fashion_mnist_features' / 'model.safetensors').stat().st_size <= 2 * 2**20


def test_reference_and_floor(test_set):
    ref = m.load_reference()
    assert ref.n == 60_000 and ref.cov.shape == (64, 64) and ref.cov.dtype == torch.float64
    images = test_set[0][:2000]
    floor = m.fashion_fd(images)
    assert 0 < floor < 1
    assert m.fashion_fd(images, ref) == floor
    assert m.fashion_fd(torch.rand(500, 1, 28, 28) * 2 - 1) > 50 * floor


@pytest.mark.parametrize('batch_size', [1, 3, 64, 500])
def test_batch_size_changes_nothing(net, test_set, batch_size):
    torch.testing.assert_close(
        m.image_features(test_set[0][:70], net, batch_size),
        m.image_features(test_set[0][:70], net, 70),
        rtol=1e-4,
        atol=1e-4,
    )


def test_a_network_is_asked_in_evaluation_mode(net, test_set):
    "Its own mode stays, and its statistics; labels of another shape would count what is not there."
    images, labels = (t[:70] for t in test_set)
    training = m.load_features().train()
    feats = m.image_features(images, training, 7)
    torch.testing.assert_close(feats, m.image_features(images, net), rtol=1e-4, atol=1e-4)
    assert m.accuracy(training, images, labels, 7) == m.accuracy(net, images, labels)
    same = zip(training.state_dict().values(), net.state_dict().values())
    assert training.training and all(torch.equal(a, b) for a, b in same)
    for bad in (labels[:60], labels[:, None], torch.cat([labels, labels])):
        with pytest.raises(ValueError, match=r'labels must have shape \[70\]'):
            m.accuracy(net, images, bad)


@pytest.mark.parametrize(
    'bad, error',
    [
        (torch.zeros(4, 28, 28), ValueError),
        (torch.zeros(4, 3, 28, 28), ValueError),
        (torch.zeros(4, 1, 32, 32), ValueError),
        (torch.zeros(4, 1, 28, 28, dtype=torch.uint8), TypeError),
        (torch.full((4, 1, 28, 28), math.nan), ValueError),
        (np.zeros((4, 1, 28, 28)), TypeError),
        (torch.zeros(0, 1, 28, 28), ValueError),
    ],
)
def test_image_features_refuse(net, bad, error):
    with pytest.raises(error):
        m.image_features(bad, net)


def test_images_that_begin_at_zero_are_warned_of(net, test_set, recwarn):
    images = test_set[0][:3]
    m.image_features(images, net)
    m.image_features(torch.zeros_like(images), net)
    assert not recwarn.list
    for seen in ((images + 1) / 2, (images + 1) * 127.5):
        with pytest.warns(UserWarning, match='no pixel of these images is below 0'):
            m.image_features(seen, net)


def test_unknown_reference_and_batch_size(net):
    with pytest.raises(ValueError, match='valid.*train'):
        m.load_reference('valid')
    with pytest.raises(ValueError, match='valid.*train'):
        m.fashion_fd(torch.zeros(3, 1, 28, 28), 'valid')
    with pytest.raises(ValueError, match='batch_size'):
        m.image_features(torch.zeros(3, 1, 28, 28), net, 0)


def test_load_features_refuses_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere'):
        m.load_features(path=tmp_path / 'nowhere.safetensors')
    save_tensors(tmp_path / 'other.safetensors', {'w': torch.zeros(2)}, {'kind': 'Teacher'})
    with pytest.raises(ValueError, match='Teacher'):
        m.load_features(path=tmp_path / 'other.safetensors')
    whole = (data_dir() / 'fashion_mnist_features' / 'model.safetensors').read_bytes()
    (tmp_path / 'cut.safetensors').write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match='cut.safetensors'):
        m.load_features(path=tmp_path / 'cut.safetensors')


# --- training ---


def test_training_depends_on_the_seed_only(test_set):
    x, y = (t[:256] for t in test_set)
    nets = []
    for seed, stir in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(stir)
        state = torch.get_rng_state()
        nets.append(m.train_feature_net(x, y, 1, seed, batch_size=64, progress=False).state_dict())
        assert torch.equal(
            state, torch.get_rng_state()
        )  # the caller's random numbers are not touched
    assert all(torch.equal(a, b) for a, b in zip(nets[0].values(), nets[1].values()))
    assert not torch.equal(nets[0]['head.1.weight'], nets[2]['head.1.weight'])


@pytest.mark.parametrize(
    'kwargs', [{'epochs': 0}, {'epochs': 1.5}, {'batch_size': 1}, {'batch_size': 9}]
)
def test_training_refuses(kwargs):
    with pytest.raises(ValueError):
        m.train_feature_net(
            torch.zeros(8, 1, 28, 28), torch.zeros(8, dtype=torch.long), progress=False, **kwargs
        )
    with pytest.raises(ValueError, match=r'labels must have shape \[8\], got \(9,\)'):
        m.train_feature_net(torch.zeros(8, 1, 28, 28), torch.zeros(9).long(), 1, 0, 4)


# --- precision and recall, 2-D distances ---


def test_precision_recall_extremes():
    a = draw(100, 3)
    assert m.precision_recall(a, a) == (1, 1)
    assert m.precision_recall(a, a + 1e4) == (0, 0)
    mixed = torch.cat([a[:50], a[:50] + 1e4])
    assert m.precision_recall(a, mixed).precision == 0.5


def test_precision_recall_swaps():
    a, b = draw(1200, 4, 0), draw(1100, 4, 1)  # more than one chunk
    assert m.precision_recall(a, b) == m.precision_recall(b, a)[::-1]


@pytest.mark.parametrize('k', [0, 10, -1, 1.5, True])
def test_precision_recall_refuses_k(k):
    with pytest.raises(ValueError, match='k must be'):
        m.precision_recall(draw(10, 2), draw(20, 2), k)


@pytest.mark.parametrize('function', [m.precision_recall, m.energy_distance, m.sliced_wasserstein])
def test_set_distances_refuse(function):
    for bad in (draw(10, 3), torch.full((10, 2), math.nan), torch.zeros(10)):
        with pytest.raises(ValueError):
            function(draw(10, 2), bad)
    with pytest.raises(ValueError, match='at least [12], got 0'):
        function(draw(0, 2), draw(0, 2))
    for bad in (torch.zeros(10, 2, dtype=torch.int32), [[1.0, 2.0]]):
        with pytest.raises(TypeError):
            function(draw(10, 2), bad)


def test_slices_need_as_many_points():  # sorted, and compared one by one
    with pytest.raises(ValueError, match=r'must have shape \[10, 2\], got \(9, 2\)'):
        m.sliced_wasserstein(draw(10, 2), draw(9, 2))


def test_data_that_are_sorted_are_seen_from_end_to_end():
    data = torch.cat([draw(300, 2) - 5, draw(300, 2) + 5])
    mixed = data[torch.randperm(600, generator=torch.Generator().manual_seed(0))]
    found = m.sliced_to(data)
    assert found(mixed) == m.sliced_wasserstein(mixed, data) == 0
    assert found(mixed[:100]) < 0.2 * m.sliced_wasserstein(mixed[:100], data[:100])
    assert m.sliced_to(data[::6])(data) < 0.5  # the samples are more
    turns = torch.stack([data[:300], data[300:]], 1).flatten(0, 1)  # one of each in turn
    assert m.sliced_to(turns)(mixed[:300]) < 0.1 * m.sliced_wasserstein(turns[::2], mixed[:300])
    a, b = draw(4, 2), draw(6, 2, 1)  # each point three times, twice: as many
    want = m.sliced_wasserstein(a.repeat_interleave(3, 0), b.repeat_interleave(2, 0))
    assert m.sliced_to(b)(a) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize('function', [m.energy_distance, m.sliced_wasserstein])
def test_set_distances(function):
    a, b = draw(200, 2, 0), draw(200, 2, 1)
    assert (
        function(a, a) == pytest.approx(0, abs=1e-6)
        and function(a, b) == pytest.approx(function(b, a))
        and function(a, b) > 0
    )
    assert function(3 * a, 3 * b) == pytest.approx(3 * function(a, b))


# --- kernel distance, density and coverage, infinitely many samples ---


@pytest.mark.parametrize('n, n_b, d', [(2, 2, 1), (30, 30, 64), (1203, 40, 5), (50, 1100, 3)])
def test_kernel_distance_is_its_definition(n, n_b, d):
    a, b = draw(n, d, 0), draw(n_b, d, 1) + 0.3
    k = lambda x, y: (x @ y.T / d + 1) ** 3
    off = lambda x: float((k(x, x).sum() - k(x, x).trace()) / (len(x) * (len(x) - 1)))
    expected = off(a) + off(b) - 2 * float(k(a, b).mean())
    assert close(m.kernel_distance(a, b), expected) and close(m.kernel_distance(b, a), expected)


def close(a, b):
    return a == pytest.approx(b, rel=1e-9, abs=1e-9)


def test_kernel_distance_is_unbiased():
    values = torch.tensor(
        [
            m.kernel_distance(
                *torch.randn(
                    2, 20, 4, generator=torch.Generator().manual_seed(s), dtype=torch.float64
                )
            )
            for s in range(400)
        ]
    )
    assert (values < 0).any() and (values > 0).any() and abs(values.mean()) < 4 * values.std() / 20


def test_kernel_distance_of_subsets():
    a, b = draw(300, 6, 0), draw(400, 6, 1) + 1
    assert m.kernel_distance(a, b, 50, 200) == pytest.approx(m.kernel_distance(a, b), rel=0.1)
    assert (
        m.kernel_distance(a, b, 3, 50)
        == m.kernel_distance(a, b, 3, 50)
        != m.kernel_distance(a, b, 3, 50, seed=1)
    )


@pytest.mark.parametrize(
    'subsets, size, words',
    [
        (-1, 10, 'subsets'),
        (1.5, 10, 'subsets'),
        (1, 1, 'size'),
        (1, 31, 'size'),
        (True, 9, 'subsets'),
    ],
)
def test_kernel_distance_refuses(subsets, size, words):
    with pytest.raises(ValueError, match=words):
        m.kernel_distance(draw(30, 2), draw(40, 2), subsets, size)


@pytest.mark.parametrize('function', [m.kernel_distance, m.density_coverage, m.precision_recall])
def test_pairs_are_checked(function):
    with pytest.raises(ValueError, match='lengths: 3 and 2'):
        function(draw(9, 3), draw(9, 2))
    for a, b in ((1, 9), (9, 1), (9, 0)):
        with pytest.raises(ValueError, match='at least 2'):
            function(draw(a, 3), draw(b, 3))
    with pytest.raises(ValueError, match='NaN'):
        function(draw(9, 2), torch.full((9, 2), math.nan))


@pytest.mark.parametrize('n, n_b, d, k', [(40, 30, 3, 5), (25, 60, 1, 1), (12, 5, 8, 11)])
def test_density_coverage_by_brute_force(n, n_b, d, k):
    real, fake = draw(n, d, 0), draw(n_b, d, 1)
    gap = lambda a, b: math.dist(a.tolist(), b.tolist())
    radius = [
        sorted(gap(x, y) for j, y in enumerate(real) if j != i)[k - 1] for i, x in enumerate(real)
    ]
    inside = [[gap(x, y) <= r for x, r in zip(real, radius)] for y in fake]
    got = m.density_coverage(real, fake, k)
    assert got.density == pytest.approx(
        sum(map(sum, inside)) / (k * n_b)
    ) and got.coverage == pytest.approx(sum(map(any, zip(*inside))) / n)


def test_density_coverage_extremes():
    a = draw(1300, 3)
    assert m.density_coverage(a, a).coverage == 1 and m.density_coverage(a, a + 1e4) == (0, 0)
    assert (
        m.density_coverage(a, a[:1].repeat(1200, 1)).coverage < 0.05
    )  # one picture again and again
    for k in (0, 1300, 2.5):
        with pytest.raises(ValueError, match='k must be'):
            m.density_coverage(a, a, k)


def test_frechet_at_infinity():
    truth, reference = 8 * 0.25, (torch.zeros(8).double(), torch.eye(8).double())
    clouds = [
        1.5 * torch.randn(200, 8, generator=torch.Generator().manual_seed(s), dtype=torch.float64)
        for s in range(30)
    ]
    plain, better = (
        sum(map(f, clouds)) / 30
        for f in (
            lambda c: m.frechet_distance(c, reference),
            lambda c: m.frechet_at_infinity(c, reference),
        )
    )
    assert abs(better - truth) < 0.4 * abs(plain - truth)
    assert (
        m.frechet_at_infinity(clouds[0], reference)
        == m.frechet_at_infinity(clouds[0], reference)
        != m.frechet_at_infinity(clouds[0], reference, seed=1)
    )
    with pytest.raises(ValueError, match='at least 80'):
        m.frechet_at_infinity(clouds[0][:79], reference)
    with pytest.raises(ValueError, match='n_points'):
        m.frechet_at_infinity(clouds[0], reference, 1)


# --- a second opinion: other libraries on the same features ---


@pytest.mark.parametrize('n, d', [(300, 8), (200, 64)])
@pytest.mark.parametrize('seed', range(2))
def test_agrees_with_torchmetrics(n, d, seed):
    fid, kid = (
        pytest.importorskip('torchmetrics.image.fid'),
        pytest.importorskip('torchmetrics.image.kid'),
    )
    a, b = draw(n, d, seed), draw(n, d, seed + 10) * 1.2 + 0.1
    sa, sb = m.feature_stats(a), m.feature_stats(b)
    assert m.frechet_distance(a, b) == pytest.approx(
        float(fid._compute_fid(sa.mean, sa.cov, sb.mean, sb.cov)), rel=1e-6
    )
    assert m.kernel_distance(a, b) == pytest.approx(float(kid.poly_mmd(a, b)), rel=1e-6)


@pytest.mark.parametrize('n, d', [(300, 8), (200, 64)])
@pytest.mark.parametrize('seed', range(2))
def test_agrees_with_torch_fidelity(n, d, seed):
    fid, kid, prc = (
        pytest.importorskip(f'torch_fidelity.metric_{name}') for name in ('fid', 'kid', 'prc')
    )
    real, fake = draw(n, d, seed), draw(n, d, seed + 10) * 1.2 + 0.1
    stats = [fid.fid_features_to_statistics(x) for x in (real, fake)]
    assert m.frechet_distance(real, fake) == pytest.approx(
        fid.fid_statistics_to_metric(*stats, False)['frechet_inception_distance'], rel=1e-6
    )
    assert m.kernel_distance(real, fake) == pytest.approx(
        float(kid.kernel_mmd(real.numpy(), fake.numpy())), rel=1e-6
    )
    theirs = prc.prc_features_to_metric(
        fake, real, prc_neighborhood=3, prc_batch_size=100, save_cpu_ram=False, verbose=False
    )
    assert m.precision_recall(real, fake, 3) == pytest.approx(
        (theirs['precision'], theirs['recall']), rel=1e-6
    )


@pytest.mark.parametrize(
    'name',
    [
        'frechet_distance',
        'paired_error',
        'paired_errors',
        'paired_interval',
        'mean_interval',
        'student_t',
        'Interval',
        'INTERVAL_METHODS',
        'fashion_fd',
        'precision_recall',
        'sliced_wasserstein',
        'energy_distance',
        'kernel_distance',
        'density_coverage',
        'frechet_at_infinity',
        'load_features',
        'image_features',
        'GaussianStats',
    ],
)
def test_names_are_found_here(name):
    assert hasattr(m, name) and name in m.__all__


# --- paired error ---


@pytest.mark.parametrize('shape', [(5, 2), (5, 1, 28, 28), (1, 3)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_paired_error(shape, dtype):
    a = torch.randn(shape).to(dtype)
    assert m.paired_error(a, a) == 0
    each = m.paired_errors(a, torch.zeros_like(a))
    assert each.shape == shape[:1] and each.dtype == torch.float64
    assert m.paired_error(a, torch.zeros_like(a)) == pytest.approx(
        float(a.double().square().mean().sqrt())
    )


@pytest.mark.parametrize(
    'student, teacher, error',
    [
        (torch.zeros(3, 2), torch.zeros(3, 3), ValueError),
        (torch.zeros(3, 2), torch.zeros(1, 2), ValueError),
        (torch.zeros(3), torch.zeros(3), ValueError),
        (torch.full((3, 2), math.nan), torch.zeros(3, 2), ValueError),
        (torch.zeros(3, 2), torch.full((3, 2), math.inf), ValueError),
        (torch.zeros(3, 2, dtype=torch.int32), torch.zeros(3, 2), TypeError),
        ([[0.0]], torch.zeros(1, 1), TypeError),
    ],
)
def test_paired_error_refuses(student, teacher, error):
    with pytest.raises(error):
        m.paired_error(student, teacher)


# --- intervals ---

TABLE = {
    0.9: {1: 6.313752, 2: 2.919986, 5: 2.015048, 30: 1.697261},
    0.95: {1: 12.706205, 2: 4.302653, 3: 3.182446, 4: 2.776445, 9: 2.262157, 30: 2.042272},
    0.99: {1: 63.656741, 2: 9.924843, 5: 4.032143, 30: 2.749996},
}


@pytest.mark.parametrize(
    'level, dof, t', [(level, dof, t) for level, row in TABLE.items() for dof, t in row.items()]
)
def test_student_t_table(level, dof, t):
    assert m.student_t(level, dof) == pytest.approx(t, abs=2e-6)


@pytest.mark.parametrize('half, n', [(1, 7), (0.5, 18)])
def test_seeds_that_an_interval_needs(half, n):
    assert (
        m.student_t(0.95, n - 1) / n**0.5 <= half < m.student_t(0.95, n - 2) / (n - 1) ** 0.5
    )  # nbs/evaluation/01_intervals says so


@pytest.mark.parametrize('n', [3, 4, 11])
@pytest.mark.parametrize('level', [0.5, 0.95, 0.999])
@pytest.mark.parametrize('method', m.INTERVAL_METHODS)
def test_interval_holds_its_mean(n, level, method):
    v = torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    i = m.mean_interval(v, level, method)
    assert i.low < i.mean < i.high and (i.n, i.level, i.method) == (n, level, method)
    assert f'({100 * level:g}%, n={n}, {method})' in str(i)
    assert i.mean == pytest.approx(float(v.mean()))
    shifted = m.mean_interval(v + 7, level, method)
    assert (shifted.low, shifted.high) == pytest.approx((i.low + 7, i.high + 7))
    assert (
        m.mean_interval(v.tolist(), level, method) == i == m.mean_interval(v.numpy(), level, method)
    )


@pytest.mark.parametrize('method', m.INTERVAL_METHODS)
def test_paired_interval(method):
    a, b = [1.0, 2.0, 3.5, 9.0], [0.5, 1.0, 3.0, 9.0]
    i = m.paired_interval(a, b, method=method)
    assert i.mean == 0.5 and i == m.mean_interval([0.5, 1.0, 0.5, 0.0], method=method)
    j = m.paired_interval(b, a, method=method)
    assert (j.mean, j.low) == pytest.approx(
        (-0.5, -i.high), abs=0.02 if method == 'bootstrap' else 1e-12
    )
    same = m.paired_interval(a, a, method=method)
    assert same.low == same.mean == same.high == 0


@pytest.mark.parametrize(
    'a, b, error, words',
    [
        ([1, 2], [1, 2], ValueError, 'at least 3'),
        ([], [], ValueError, 'at least 3'),
        ([1, 2, 3], [1, 2, 3, 4], ValueError, '3 and 4'),
        ([1, 2, math.nan], [1, 2, 3], ValueError, 'NaN'),
        ([[1, 2, 3]], [1, 2, 3], ValueError, 'shape'),
        (1.0, 2.0, ValueError, 'shape'),
        ('abc', [1, 2, 3], TypeError, 'abc'),
        (None, [1, 2, 3], TypeError, 'None'),
        ([1, 2, 3], ['x', 'y', 'z'], TypeError, 'numbers'),
    ],
)
def test_paired_interval_refuses(a, b, error, words):
    with pytest.raises(error, match=words):
        m.paired_interval(a, b)


@pytest.mark.parametrize('level', [0, 1, -1, 95, math.nan, '.95', None])
def test_level_is_checked(level):
    with pytest.raises(ValueError, match='level'):
        m.mean_interval([1, 2, 3], level)


def test_method_and_dof_are_checked():
    with pytest.raises(ValueError, match='jackknife.*t, bootstrap'):
        m.mean_interval([1, 2, 3], method='jackknife')
    for dof in (0, 2.5, -1):
        with pytest.raises(ValueError, match='dof'):
            m.student_t(0.95, dof)


# --- pictures and tables ---


@pytest.mark.parametrize(
    'call, says',
    [
        (
            lambda: pictures.tile({}),
            r'rows must be tensors \[n, C, H, W\] of one image size, got {}',
        ),
        (lambda: pictures.tile({'a': torch.zeros(1, 4, 4)}), r'of one image size.*1, 4, 4'),
        (
            lambda: pictures.tile({'a': torch.zeros(2, 1, 4, 4), 'b': torch.zeros(2, 3, 8, 8)}),
            r'of one image size.*3, 8, 8',
        ),
        (
            lambda: pictures.show_trajectories(
                {
                    name: Trajectory(torch.tensor(levels), torch.zeros(len(levels), 1, 1, 4, 4))
                    for name, levels in (('few', [2.0, 1.0]), ('many', [2.0, 1.5, 1.0]))
                }
            ),
            "the grid of 'many' is not part of the first one",
        ),
        (lambda: pictures.paper_table('mnist'), "unknown table 'mnist'; choose one of: cifar10_pd"),
        (
            lambda: pictures.paper_table('cifar10_pd', {'SFD': {}}),
            "unknown row of cifar10_pd 'SFD'; choose one of: PD, B-DENSE",
        ),
        (
            lambda: pictures.paper_table('cifar10_pd', {'PD': {2: 4.5}}),
            'unknown column of cifar10_pd 2; choose one of: ',
        ),
    ],
)
def test_pictures_and_tables_refuse(call, says):
    with pytest.raises(ValueError, match=says):
        call()
