"Feature spaces: Inception's file and bytes, every way for it to be missing or wrong, and the table of scores."

import json
import math
import shutil
import sys
from urllib.error import URLError

import pytest
import torch
from bdense_nb.evaluation import features as f
from bdense_nb.evaluation import metrics as m
from bdense_nb.diffusion.data import fashion_mnist, to_pixels

fidelity = pytest.importorskip('torch_fidelity.feature_extractor_inceptionv3')


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    "A file like the real one, with random weights."
    folder = tmp_path_factory.mktemp('inception')

    class Unloaded(fidelity.FeatureExtractorInceptionV3):
        def load_state_dict(self, state):
            pass

    torch.save({}, folder / 'empty.pth')
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(
            Unloaded('inception', ['2048'], str(folder / 'empty.pth')).state_dict(),
            folder / 'random.pth',
        )
    return folder / 'random.pth'


@pytest.fixture(scope='module')
def space(weights):
    return f.load_space('inception', path=weights)


def noise(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2.4 - 1.2


def test_inception_takes_the_bytes_of_the_field(space, weights):
    x = noise(2, 3, 20, 24)
    expected = fidelity.FeatureExtractorInceptionV3('inception', ['2048'], str(weights))(
        (x * 127.5 + 128).clamp(0, 255).to(torch.uint8)
    )[0]
    got = space(x, 1)
    assert (
        got.shape == (2, 2048)
        and got.dtype == torch.float32
        and space.n_features == 2048
        and space.name == 'inception'
    )
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_grey_is_three_equal_colours(space):
    x = noise(1, 1, 28, 28)
    torch.testing.assert_close(space(x), space(x.expand(-1, 3, -1, -1)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    'bad, error',
    [
        (torch.zeros(2, 2, 8, 8), ValueError),
        (torch.zeros(0, 3, 8, 8), ValueError),
        (torch.zeros(3, 8, 8), ValueError),
        (torch.full((1, 3, 8, 8), math.nan), ValueError),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), TypeError),
        (None, TypeError),
    ],
)
def test_inception_refuses_images(space, bad, error):
    with pytest.raises(error):
        space(bad)
    with pytest.raises(ValueError, match='batch_size'):
        space(noise(1, 3, 8, 8), 0)


def test_weights_are_fetched_once_and_checked(weights, tmp_path, monkeypatch):
    asked = []

    def fetch(url, to, hash_prefix):
        asked.append((url, hash_prefix))
        shutil.copy(weights, to)

    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', fetch)
    first, second = f.inception_weights(), f.inception_weights()
    assert (
        first == second
        and first.parent == tmp_path / 'checkpoints'
        and asked == [(fidelity.URL_INCEPTION_V3, '6726825d')]
    )
    assert f.load_space('inception').name == 'inception'


@pytest.mark.parametrize(
    'error',
    [URLError('no route to host'), TimeoutError('timed out'), RuntimeError('invalid hash value')],
)
def test_weights_that_cannot_be_fetched(tmp_path, monkeypatch, error):
    def fetch(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', fetch)
    with pytest.raises(ConnectionError, match='weights-inception.*pass its path'):
        f.load_space('inception')


def test_files_that_are_not_the_weights(weights, tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path / 'executed').touch, ()

    torch.save({'w': torch.zeros(2)}, tmp_path / 'other.pth')
    torch.save({'w': Evil()}, tmp_path / 'evil.pth')
    torch.save([1, 2], tmp_path / 'list.pth')
    (tmp_path / 'cut.pth').write_bytes(weights.read_bytes()[: 10**6])
    (tmp_path / 'empty.pth').touch()
    (tmp_path / 'text.pth').write_text('<html>')
    (tmp_path / 'executed').unlink(missing_ok=True)
    for name in ('other', 'evil', 'list', 'cut', 'empty', 'text'):
        with pytest.raises(ValueError, match=f'{name}.pth does not hold'):
            f.load_inception(path=tmp_path / f'{name}.pth')
    assert not (tmp_path / 'executed').exists()
    with pytest.raises(FileNotFoundError, match='nowhere'):
        f.load_inception(path=tmp_path / 'nowhere.pth')


def test_without_the_package(weights, monkeypatch):
    monkeypatch.setitem(
        __import__('sys').modules, 'torch_fidelity.feature_extractor_inceptionv3', None
    )
    with pytest.raises(ImportError, match=r'bdense-nb\[fid\]'):
        f.load_space('inception', path=weights)
    assert f.load_space('fashion_mnist').n_features == 64


def test_fashion_space():
    images = fashion_mnist('test')[0][:30]
    torch.testing.assert_close(
        f.load_space()(images), m.image_features(images, m.load_features()), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        f.load_space()(to_pixels(images).float() / 127.5 - 1, 7),
        f.load_space()(images),
        rtol=1e-4,
        atol=1e-4,
    )
    with pytest.raises(ValueError, match='resnet.*fashion_mnist, inception'):
        f.load_space('resnet')


def test_set_scores():
    g = torch.Generator().manual_seed(0)
    real, fake = torch.randn(2, 60, 5, generator=g, dtype=torch.float64)
    row = f.set_scores(real, fake)
    assert json.loads(json.dumps(row)) == row and list(row) == [
        'n',
        'frechet_distance',
        'kernel_distance',
        'precision',
        'recall',
        'density',
        'coverage',
    ]
    assert row['frechet_distance'] == m.frechet_distance(fake, real) and row['n'] == 60
    assert (row['precision'], row['recall'], row['density'], row['coverage']) == (
        *m.precision_recall(real, fake),
        *m.density_coverage(real, fake),
    )


def test_without_torch_fidelity_the_message_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'torch_fidelity.feature_extractor_inceptionv3', None)
    with pytest.raises(ImportError, match=r'pip install "bdense-nb\[fid\]"'):
        f.load_inception(path=tmp_path)
    with pytest.raises(ImportError, match=r'pip install "bdense-nb\[fid\]"'):
        f.inception_weights()
