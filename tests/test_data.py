"Data sets: what is damaged, forged, missing or half downloaded is refused by name and leaves nothing behind."

import functools
import gzip
import hashlib
import http.server
import pickle
import shutil
import struct
import threading
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, FashionMNIST, ImageFolder

from bdense_nb.diffusion import data
from bdense_nb.diffusion.data import (
    FASHION_SHA256,
    TOY_SETS,
    cache_dir,
    cifar10,
    fashion_mnist,
    image_folder,
    read_idx,
    to_images,
    to_pixels,
    toy_2d,
)

TEST = ('t10k-images-idx3-ubyte.gz', 't10k-labels-idx1-ubyte.gz')
SHIPPED = data.data_dir() / 'fashion_mnist'


def idx(array: np.ndarray) -> bytes:
    "An array of bytes in IDX format, unpacked."
    return (
        bytes([0, 0, 8, array.ndim])
        + struct.pack(f'>{array.ndim}I', *array.shape)
        + array.tobytes()
    )


def put(path: Path, raw: bytes) -> Path:
    "Write `raw`, gzipped."
    path.write_bytes(gzip.compress(raw, 1))
    return path


# --- the file format ---
@pytest.mark.parametrize('shape', [(), (5,), (2, 3), (4, 2, 3), (0, 28, 28)])
def test_idx_round_trip(tmp_path, shape):
    array = np.arange(np.prod(shape, dtype=int), dtype=np.uint8).reshape(shape)
    p = put(tmp_path / 'a.gz', idx(array))
    back = read_idx(p, hashlib.sha256(idx(array)).hexdigest())
    assert back.shape == shape and back.dtype == np.uint8 and np.array_equal(back, array)


@pytest.mark.parametrize(
    'raw, message',
    [
        (b'', 'not an IDX file'),
        (b'\x00\x00', 'not an IDX file'),
        (b'\x00\x00\x0d\x01' + bytes(8), '00000d01'),
        (b'hello world', '68656c6c'),
        (b'\x00\x00\x08\x03\x00\x00', 'ends inside its header'),
        (idx(np.zeros((2, 3), np.uint8))[:-1], r'announces shape \(2, 3\)'),
        (idx(np.zeros(3, np.uint8)) + b'x', 'announces'),
    ],
)
def test_not_idx(tmp_path, raw, message):
    with pytest.raises(ValueError, match=f'a.gz.*{message}'):
        read_idx(put(tmp_path / 'a.gz', raw))


def test_every_truncation_and_every_flipped_bit_is_refused(tmp_path):
    raw = idx(np.random.default_rng(0).integers(0, 256, 60, dtype=np.uint8))
    p, want = put(tmp_path / 'a.gz', raw), hashlib.sha256(raw).hexdigest()
    good = p.read_bytes()
    for i in range(len(good)):
        p.write_bytes(good[:i])
        with pytest.raises(ValueError, match=f'a.gz.*{want}'):
            read_idx(p, want)
        p.write_bytes(good[:i] + bytes([good[i] ^ 1 << i % 8]) + good[i + 1 :])
        try:
            assert np.array_equal(
                read_idx(p, want).ravel(), np.frombuffer(raw[8:], np.uint8)
            )  # the flip was in the archive's date or padding
        except ValueError as e:
            assert 'a.gz' in str(e) and want in str(e)


def test_a_sound_archive_of_other_bytes_is_refused(tmp_path):
    p = put(tmp_path / 'a.gz', idx(np.ones(3, np.uint8)))
    read_idx(p)
    with pytest.raises(ValueError, match=f'not the expected file.*{"0" * 64}'):
        read_idx(p, '0' * 64)


def test_no_file_a_folder_and_no_gzip(tmp_path):
    for p in (tmp_path / 'none.gz', tmp_path):
        with pytest.raises(FileNotFoundError, match=str(p)):
            read_idx(p)
    (tmp_path / 'plain.gz').write_bytes(idx(np.ones(3, np.uint8)))
    with pytest.raises(ValueError, match='plain.gz is truncated or damaged'):
        read_idx(tmp_path / 'plain.gz')


# --- pixels ---
def test_pixels_round_trip_in_every_precision_that_holds_them():
    p = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    x = to_images(p)
    assert x.dtype == torch.float32 and x.min() == -1 and x.max() == 1
    for dtype in (torch.float16, torch.float32, torch.float64):
        assert np.array_equal(to_pixels(x.to(dtype)).numpy(), p)


def test_pixels_are_clipped_and_the_input_is_left_alone():
    x = torch.tensor([[-9.0, -1.0, 0.0, 1.0, 9.0]], requires_grad=True)
    assert to_pixels(x).tolist() == [[0, 0, 128, 255, 255]] and x.tolist() == [
        [-9.0, -1.0, 0.0, 1.0, 9.0]
    ]


@pytest.mark.parametrize(
    'bad',
    [
        np.zeros((1, 1, 2, 2)),
        torch.zeros(1, 1, 2, 2, dtype=torch.uint8),
        [[1, 2]],
        np.zeros(3, np.int64),
    ],
)
def test_bad_pixels(bad):
    with pytest.raises(TypeError, match='uint8'):
        to_images(bad)


@pytest.mark.parametrize(
    'bad, error',
    [
        (torch.tensor([[float('nan')]]), ValueError),
        (torch.tensor([[float('inf')]]), ValueError),
        (torch.zeros(1, 2, dtype=torch.uint8), TypeError),
        (np.zeros((1, 2)), TypeError),
    ],
)
def test_bad_images(bad, error):
    with pytest.raises(error, match='images'):
        to_pixels(bad)


# --- Fashion-MNIST ---
class Quiet(http.server.SimpleHTTPRequestHandler):
    "Serves files and logs nothing."

    def log_message(self, *_):
        pass


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    "A folder and the address under which this machine serves it (torchvision downloads over http only). Returns (folder, url)."
    folder = tmp_path / 'mirror'
    folder.mkdir()
    monkeypatch.setenv('no_proxy', '*')
    with http.server.ThreadingHTTPServer(
        ('127.0.0.1', 0), functools.partial(Quiet, directory=folder)
    ) as server:
        threading.Thread(
            target=server.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True
        ).start()
        yield folder, f'http://127.0.0.1:{server.server_port}/'
        server.shutdown()


@pytest.fixture
def bare(tmp_path, monkeypatch, mirror):
    "A machine on which nothing is found: no shipped data, no Debian package, an empty cache; its mirror is local. Returns (mirror, cache)."
    (mirror, url), cache = mirror, tmp_path / 'cache' / 'FashionMNIST' / 'raw'
    (tmp_path / 'shipped').mkdir()
    monkeypatch.setenv('BDENSE_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(data, 'data_dir', lambda: tmp_path / 'shipped')
    monkeypatch.setattr(data, 'DEBIAN_FASHION', tmp_path / 'debian')
    monkeypatch.setattr(FashionMNIST, 'mirrors', [url])
    return mirror, cache


@pytest.fixture
def tiny(monkeypatch):
    "Checksums of a test split of three images; the unpacked files by name."
    files = dict(
        zip(
            TEST,
            (
                idx(np.arange(3 * 784, dtype=np.uint16).astype(np.uint8).reshape(3, 28, 28)),
                idx(np.array([7, 0, 9], np.uint8)),
            ),
        )
    )
    for name, raw in files.items():
        monkeypatch.setitem(data.FASHION_SHA256, name, hashlib.sha256(raw).hexdigest())
    return files


def test_shipped_split():
    images, labels = fashion_mnist()
    assert (
        images.shape == (10_000, 1, 28, 28)
        and images.dtype == torch.float32
        and labels.dtype == torch.int64
    )
    assert images.min() == -1 and images.max() == 1 and labels.bincount().tolist() == [1000] * 10


def test_shipped_files_are_as_their_readme_says():
    readme = (SHIPPED / 'README.md').read_text()
    for name in TEST:
        packed = (SHIPPED / name).read_bytes()
        assert FASHION_SHA256[name] == hashlib.sha256(gzip.decompress(packed)).hexdigest()
        assert FASHION_SHA256[name] in readme and hashlib.sha256(packed).hexdigest() in readme
    assert (
        'Zalando SE' in (SHIPPED / 'LICENSE').read_text()
        and 'Permission is hereby granted' in (SHIPPED / 'LICENSE').read_text()
    )


@pytest.mark.parametrize('split', ['validation', '', None, 'Train', 0])
def test_wrong_split(split):
    for load in (fashion_mnist, cifar10):
        with pytest.raises(ValueError, match='split.*train, test'):
            load(split)


def test_search_order(bare, tiny, tmp_path):
    mirror, cache = bare
    shipped, debian = tmp_path / 'shipped' / 'fashion_mnist', tmp_path / 'debian'
    find = lambda: data._fashion_folder(TEST, download=False)
    with pytest.raises(FileNotFoundError, match='download=True') as e:
        find()
    for place in (shipped, debian, cache):
        assert str(place) in str(e.value)
    for place in (cache, debian, shipped):  # the nearer one wins
        place.mkdir(parents=True)
        put(place / TEST[0], tiny[TEST[0]])
        if place != cache:
            assert find() != place  # images without labels are no data set
        put(place / TEST[1], tiny[TEST[1]])
        assert find() == place


def test_a_given_path_is_searched_alone(tmp_path):
    with pytest.raises(FileNotFoundError, match=f'{tmp_path}/{TEST[0]}'):
        fashion_mnist('test', path=tmp_path)
    shutil.copy(SHIPPED / TEST[0], tmp_path)
    with pytest.raises(FileNotFoundError, match=TEST[1]):
        fashion_mnist('test', path=tmp_path, download=True)
    shutil.copy(SHIPPED / TEST[0], tmp_path / TEST[1])  # images under the labels' name
    with pytest.raises(
        ValueError, match=f'{TEST[1]} is not the expected file.*{FASHION_SHA256[TEST[1]]}'
    ):
        fashion_mnist('test', path=tmp_path)


def test_cache_dir(monkeypatch, tmp_path):
    monkeypatch.setenv('BDENSE_CACHE', str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.setenv('BDENSE_CACHE', '')
    assert cache_dir() == Path.home() / '.cache' / 'bdense_nb'
    monkeypatch.delenv('BDENSE_CACHE')
    assert cache_dir() == Path.home() / '.cache' / 'bdense_nb'


def test_download_once_then_from_the_cache(bare, tiny):
    mirror, cache = bare
    for name, raw in tiny.items():
        put(mirror / name, raw)
    images, labels = fashion_mnist('test', download=True)
    assert images.shape == (3, 1, 28, 28) and labels.tolist() == [7, 0, 9]
    assert sorted(p.name for p in cache.iterdir()) == sorted(
        TEST
    )  # nothing unpacked, nothing half written
    for name in tiny:
        (mirror / name).unlink()
    assert torch.equal(fashion_mnist('test')[0], images) and torch.equal(
        fashion_mnist('test', download=True)[0], images
    )


DAMAGE = {  # ways for a download to go wrong, from unpacked and packed bytes
    'cut off': lambda raw, good: good[: len(good) // 2],
    'bit flipped': lambda raw, good: good[:-6] + bytes([good[-6] ^ 16]) + good[-5:],
    'empty': lambda raw, good: b'',
    'other bytes': lambda raw, good: gzip.compress(raw[:-1] + b'\xff'),
    'an error page': lambda raw, good: b'<html>Sorry</html>',
}


@pytest.mark.parametrize('what', list(DAMAGE))
def test_a_damaged_download_is_refused_and_removed(bare, tiny, what):
    mirror, cache = bare
    put(mirror / TEST[0], tiny[TEST[0]])
    bad = put(mirror / TEST[1], tiny[TEST[1]])
    bad.write_bytes(DAMAGE[what](tiny[TEST[1]], bad.read_bytes()))
    with pytest.raises(
        ValueError, match=f'download of .*{TEST[1]} was refused.*{FASHION_SHA256[TEST[1]]}'
    ):
        fashion_mnist('test', download=True)
    assert [p.name for p in cache.iterdir()] == [
        TEST[0]
    ]  # the good one stays, of the bad one nothing
    put(bad, tiny[TEST[1]])
    assert fashion_mnist('test', download=True)[1].tolist() == [7, 0, 9]  # the next try succeeds


def test_a_mirror_that_is_gone(bare, tiny):
    mirror, cache = bare
    with pytest.raises(ConnectionError, match=f'{TEST[0]} could not be downloaded'):
        fashion_mnist('test', download=True)
    assert not list(cache.iterdir())


def test_a_line_that_drops(bare, tiny, monkeypatch):
    "torchvision's own download writes to the name it is given; that name must not be the final one."

    def drop(url, root, filename, *_):
        Path(root, filename).write_bytes(b'\x1f\x8b half')
        raise ConnectionResetError('connection reset by peer')

    monkeypatch.setattr('torchvision.datasets.utils.download_url', drop)
    with pytest.raises(ConnectionError, match='connection reset by peer'):
        fashion_mnist('test', download=True)
    assert not list(bare[1].iterdir())


def test_a_cached_file_that_rots_is_named(bare, tiny):
    mirror, cache = bare
    for name, raw in tiny.items():
        put(mirror / name, raw)
    fashion_mnist('test', download=True)
    (cache / TEST[0]).write_bytes((cache / TEST[0]).read_bytes()[:-9])
    with pytest.raises(
        ValueError,
        match=f'{cache / TEST[0]} is truncated or damaged.*{FASHION_SHA256[TEST[0]]}.*delete',
    ):
        fashion_mnist('test', download=True)
    (cache / TEST[0]).unlink()
    assert len(fashion_mnist('test', download=True)[0]) == 3


def test_torchvision_still_names_the_files_as_we_do():
    assert {name for name, _ in FashionMNIST.resources} == set(FASHION_SHA256) and tuple(
        FashionMNIST.classes
    ) == data.FASHION_CLASSES


@pytest.mark.skipif(
    not (data.DEBIAN_FASHION / 'train-images-idx3-ubyte.gz').is_file(),
    reason='needs the Debian package dataset-fashion-mnist',
)
def test_full_training_set():
    images, labels = fashion_mnist('train')
    assert images.shape == (60_000, 1, 28, 28) and labels.bincount().tolist() == [6000] * 10


# --- CIFAR-10 ---
@pytest.fixture
def cifar(tmp_path, monkeypatch):
    "A folder in CIFAR-10's own format with two images a batch, and torchvision's checksums set to it. Returns (root, pixels, labels)."
    folder, rng = tmp_path / CIFAR10.base_folder, np.random.default_rng(0)
    folder.mkdir()

    def batch(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    pixels, labels = (
        rng.integers(0, 256, (12, 3, 32, 32), dtype=np.uint8),
        rng.integers(0, 10, 12).tolist(),
    )
    part = lambda i: {
        'data': pixels[2 * i : 2 * i + 2].reshape(2, -1),
        'labels': labels[2 * i : 2 * i + 2],
    }
    monkeypatch.setattr(
        CIFAR10, 'train_list', [batch(f'data_batch_{i + 1}', part(i)) for i in range(5)]
    )
    monkeypatch.setattr(CIFAR10, 'test_list', [batch('test_batch', part(5))])
    name, md5 = batch('batches.meta', {'label_names': list('abcdefghij')})
    monkeypatch.setattr(CIFAR10, 'meta', {'filename': name, 'key': 'label_names', 'md5': md5})
    return tmp_path, pixels, labels


@pytest.mark.parametrize('split, rows', [('train', slice(0, 10)), ('test', slice(10, 12))])
def test_cifar10(cifar, split, rows):
    root, pixels, labels = cifar
    images, got = cifar10(split, root=root)
    assert images.dtype == torch.float32 and got.dtype == torch.int64
    assert (
        np.array_equal(to_pixels(images).numpy(), pixels[rows]) and got.tolist() == labels[rows]
    )  # channels, rows and columns in place


def test_cifar10_default_root_is_the_cache(cifar, monkeypatch):
    monkeypatch.setenv('BDENSE_CACHE', str(cifar[0]))
    assert len(cifar10('test')[0]) == 2


@pytest.mark.parametrize('name', ['data_batch_3', 'test_batch', 'batches.meta'])
@pytest.mark.parametrize(
    'damage', [lambda raw: raw[:-1], lambda raw: raw[:-5] + bytes([raw[-5] ^ 1]) + raw[-4:], None]
)
def test_damaged_cifar10_is_refused_before_it_is_unpickled(cifar, name, damage, monkeypatch):
    p = cifar[0] / CIFAR10.base_folder / name
    if damage:
        p.write_bytes(damage(p.read_bytes()))
    else:
        p.unlink()
    if name != 'batches.meta':
        monkeypatch.setattr(pickle, 'load', lambda *a, **k: pytest.fail('unpickled a damaged file'))
    with pytest.raises(FileNotFoundError, match=f'CIFAR-10 is not under {cifar[0]}, or is damaged'):
        cifar10('train', root=cifar[0])


def test_cifar10_from_a_mirror_that_is_gone_or_sends_junk(tmp_path, monkeypatch, mirror):
    folder, url = mirror
    root = tmp_path / 'root'
    monkeypatch.setattr(CIFAR10, 'url', url + CIFAR10.filename)
    with pytest.raises(FileNotFoundError, match='CIFAR-10.*404'):
        cifar10('test', root=root, download=True)
    (folder / CIFAR10.filename).write_bytes(gzip.compress(b'junk'))
    for download in (True, False):  # what torchvision leaves behind is not used
        with pytest.raises(FileNotFoundError, match='corrupted'):
            cifar10('test', root=root, download=download)


# --- a folder of images ---
RNG = np.random.default_rng(0)


def picture(path: Path, h=4, w=6, mode='RGB', **how) -> np.ndarray:
    "Write an image of noise; returns its pixels [H, W] or [H, W, channels]."
    depth = {'L': (), 'LA': (2,), 'RGB': (3,), 'RGBA': (4,)}[mode]
    x = RNG.integers(0, 256, (h, w, *depth), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(x).save(path, **how)
    return x


@pytest.mark.parametrize(
    'suffix, how', [('.png', {}), ('.PNG', {}), ('.webp', dict(lossless=True))]
)
def test_a_flat_folder_in_the_order_of_its_names(tmp_path, suffix, how):
    wrote = {
        name: picture(tmp_path / f'{name}{suffix}', **how) for name in ('c', 'a', 'B', 'b10', 'b9')
    }  # not the order of the file system
    (tmp_path / 'notes.txt').write_text('no image')
    picture(tmp_path / '.thumbnail.png', 1, 1)
    (tmp_path / 'empty').mkdir()
    images, labels = image_folder(tmp_path)
    assert labels is None and images.shape == (5, 3, 4, 6) and images.dtype == torch.float32
    assert np.array_equal(
        to_pixels(images).permute(0, 2, 3, 1).numpy(),
        np.stack([wrote[name] for name in sorted(wrote)]),
    )


def test_sub_folders_are_classes_as_in_torchvision(tmp_path):
    for name, n in (('shoe', 3), ('bag', 2), ('coat/deep/er', 1)):
        for i in range(n):
            picture(tmp_path / name / f'{i}.png')
    picture(tmp_path / 'coat' / '.trash' / 'x.png', 1, 1)
    picture(tmp_path / '.cache' / 'x.png', 1, 1)
    images, labels = image_folder(str(tmp_path))
    shutil.rmtree(tmp_path / '.cache')
    shutil.rmtree(tmp_path / 'coat' / '.trash')
    theirs = ImageFolder(tmp_path)
    assert labels.tolist() == theirs.targets == [0, 0, 1, 2, 2, 2] and labels.dtype == torch.int64
    assert np.array_equal(
        to_pixels(images).permute(0, 2, 3, 1).numpy(), np.stack([np.asarray(x) for x, _ in theirs])
    )


def test_kinds_of_pixels(tmp_path):
    grey, colour = picture(tmp_path / 'g' / 'a.png', mode='L'), picture(tmp_path / 'c' / 'a.png')
    assert np.array_equal(to_pixels(image_folder(tmp_path / 'g')[0])[0, 0].numpy(), grey)
    three = to_pixels(image_folder(tmp_path / 'g', channels=3)[0])[0].numpy()
    assert all(np.array_equal(plane, grey) for plane in three)
    one = to_pixels(image_folder(tmp_path / 'c', channels=1)[0])[0, 0].numpy()
    assert np.abs(one - colour @ [0.299, 0.587, 0.114]).max() < 1  # luma, as television has it
    picture(tmp_path / 'c' / 'b.png', mode='L')
    assert image_folder(tmp_path / 'c')[0].shape == (
        2,
        3,
        4,
        6,
    )  # one colour image makes a colour set
    for mode in ('1', 'P', 'CMYK'):
        file = tmp_path / mode / ('a.jpg' if mode == 'CMYK' else 'a.png')
        file.parent.mkdir()
        Image.new('RGB', (6, 4), 'white').convert(mode).save(file)
        assert (image_folder(file.parent)[0] > 0.98).all(), mode


@pytest.mark.parametrize('mode', ['LA', 'RGBA', 'palette'])
def test_transparent_parts_are_white_paper(tmp_path, mode):
    if mode == 'palette':
        image = Image.new('P', (6, 4))
        image.putpalette([0, 0, 0, 255, 0, 0])
        image.putpixel((0, 0), 1)
        image.save(tmp_path / 'a.png', transparency=0)
        assert image_folder(tmp_path)[0][0, :, 0, :2].T.tolist() == [
            [1, -1, -1],
            [1, 1, 1],
        ]  # the red pixel, then paper
        return
    x = picture(tmp_path / 'a.png', mode=mode)
    x[..., -1] = np.where(np.arange(24).reshape(4, 6) % 2, 255, 0)
    Image.fromarray(x).save(tmp_path / 'a.png')
    want = np.where(x[..., -1:] == 255, x[..., :-1], 255)
    assert np.array_equal(to_pixels(image_folder(tmp_path)[0])[0].permute(1, 2, 0).numpy(), want)
    x[..., -1] = 128
    Image.fromarray(x).save(tmp_path / 'a.png')  # half transparent
    got = to_pixels(image_folder(tmp_path)[0])[0].permute(1, 2, 0).numpy()
    assert np.abs(got - (x[..., :-1] * (128 / 255) + 255 * (127 / 255))).max() <= 1


@pytest.mark.parametrize('orientation', range(1, 9))
def test_turned_as_the_camera_says(tmp_path, orientation):
    x = np.zeros((16, 32), np.uint8)
    x[:8, :8] = 255  # one bright corner
    turn = {
        1: x,
        2: x[:, ::-1],
        3: x[::-1, ::-1],
        4: x[::-1],
        5: x.T,
        6: np.rot90(x),
        7: x[::-1, ::-1].T,
        8: np.rot90(x, 3),
    }[orientation]
    note = Image.Exif()
    note[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(turn)).save(tmp_path / 'a.jpg', exif=note, quality=100)
    images, _ = image_folder(tmp_path)
    assert (
        images.shape == (1, 1, 16, 32)
        and np.abs(to_pixels(images)[0, 0].numpy().astype(int) - x).max() < 20
    )


def test_sizes(tmp_path):
    for name, h, w in (('a', 4, 6), ('b', 4, 6), ('c', 9, 6)):
        picture(tmp_path / f'{name}.png', h, w)
    with pytest.raises(
        ValueError, match=r'2 sizes.*2 of 4 x 6 \(.*a.png\), 1 of 9 x 6 \(.*c.png\); pass size='
    ):
        image_folder(tmp_path)
    assert image_folder(tmp_path, size=5)[0].shape == (3, 3, 5, 5) and image_folder(
        tmp_path, size=(3, 8)
    )[0].shape == (3, 3, 3, 8)
    flag = np.zeros((10, 30), np.uint8)
    flag[:, 10:20] = 255  # the middle third is what a square crop keeps
    Image.fromarray(flag).save(tmp_path / 'a.png')
    assert (image_folder(tmp_path, size=10)[0][0] == 1).all()
    stripes = np.tile(np.array([0, 255], np.uint8), (32, 16))
    Image.fromarray(stripes).save(tmp_path / 'a.png')
    assert (
        image_folder(tmp_path, size=8)[0][0].abs().max() < 0.1
    )  # no aliasing: fine stripes turn grey
    for bad in (0, -4, 2.5, (4, 4, 4), (4, 'x'), True):
        with pytest.raises(ValueError, match='size'):
            image_folder(tmp_path, size=bad)


def test_what_is_done_to_the_images_is_said_in_one_line(tmp_path, capsys):
    for name, h, w in (('a', 4, 6), ('b', 4, 6), ('c', 9, 6)):
        picture(tmp_path / f'{name}.png', h, w)
    picture(tmp_path / 'd.png', 4, 4, 'L')

    def said(**how):
        image_folder(tmp_path, **how)
        return capsys.readouterr().out

    assert said(size=4) == f'{tmp_path}: 2 of 4 x 6, 1 of 9 x 6 cropped and resized to 4 x 4\n'
    assert (
        said(size=4, channels=1)
        == f'{tmp_path}: 2 of 4 x 6, 1 of 9 x 6 cropped and resized to 4 x 4; 3 in colour made grey\n'
    )
    for name in ('c', 'd'):
        (tmp_path / f'{name}.png').unlink()
    assert (
        said() == said(size=(4, 6)) == ''
        and said(channels=1) == f'{tmp_path}: 2 in colour made grey\n'
    )


def test_every_truncation_of_an_image_is_refused_by_name(tmp_path):
    for suffix in ('.png', '.jpg', '.webp'):
        folder = tmp_path / suffix[1:]
        picture(folder / f'a{suffix}', 8, 8)
        picture(folder / f'z{suffix}', 8, 8)
        good = (folder / f'z{suffix}').read_bytes()
        for n in range(
            0, len(good) - (20 if suffix == '.png' else 2), 7
        ):  # a PNG's end mark and checksums after its last pixel may be missing
            (folder / f'z{suffix}').write_bytes(good[:n])
            with pytest.raises(ValueError, match=f'z{suffix} is truncated, damaged'):
                image_folder(folder)


def chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack('>I', len(content))
        + kind
        + content
        + struct.pack('>I', zlib.crc32(kind + content))
    )


def png_that_claims(side: int) -> bytes:
    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', struct.pack('>IIBBBBB', side, side, 8, 0, 0, 0, 0))
        + chunk(b'IDAT', zlib.compress(bytes(99)))
        + chunk(b'IEND', b'')
    )


def moving(path):
    Image.new('L', (4, 4)).save(path, save_all=True, append_images=[Image.new('L', (4, 4), 9)])


BAD_IMAGES = {
    'another format': (
        lambda p: Image.new('RGB', (4, 4)).save(p, 'GIF'),
        'a.png is truncated, damaged or no PNG, JPEG or WebP',
    ),
    'a text': (lambda p: p.write_text('hello'), 'a.png is'),
    'empty': (lambda p: p.write_bytes(b''), 'a.png is'),
    'a bomb': (lambda p: p.write_bytes(png_that_claims(50_000)), 'a.png claims to be enormous'),
    'half a bomb': (
        lambda p: p.write_bytes(png_that_claims(10_000)),
        'a.png claims to be enormous',
    ),
    'a text bomb': (
        lambda p: p.write_bytes(
            png_that_claims(4)[:33]
            + chunk(b'zTXt', b'k\0\0' + zlib.compress(bytes(9_000_000)))
            + png_that_claims(4)[33:]
        ),
        'a.png is',
    ),
    '16 bits': (
        lambda p: Image.fromarray(np.zeros((4, 4), np.uint16)).save(p),
        "a.png has pixels of kind 'I;16'.*8 bits",
    ),
    'an animation': (moving, 'a.png is an animation'),
    'a folder': (lambda p: p.mkdir(), 'holds no images.*no files'),
}


@pytest.mark.parametrize('name', BAD_IMAGES)
def test_bad_images_are_named(tmp_path, name):
    make, match = BAD_IMAGES[name]
    make(tmp_path / 'a.png')
    with pytest.raises(ValueError, match=match):
        image_folder(tmp_path)


def test_bad_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match='no such folder'):
        image_folder(tmp_path / 'none')
    for nothing in ('', ' '):  # which would be the folder that one is in
        with pytest.raises(ValueError, match='name a folder of images'):
            image_folder(nothing)
    (tmp_path / 'a.tiff').write_bytes(b'')
    (tmp_path / 'b.tiff').write_bytes(b'')
    (tmp_path / 'README').write_text('')
    with pytest.raises(
        ValueError,
        match=r'holds no images \(.png, .jpg, .jpeg, .webp\); found there: 2 x .tiff, 1 x no suffix',
    ):
        image_folder(tmp_path)
    picture(tmp_path / 'cat' / 'a.png')
    (tmp_path / 'dog').mkdir()
    with pytest.raises(ValueError, match='classes, but .*dog holds no images'):
        image_folder(tmp_path)
    picture(tmp_path / 'stray.png')
    with pytest.raises(
        ValueError, match=r'images \(stray.png\) beside folders of images \(cat, dog\)'
    ):
        image_folder(tmp_path)
    for bad in (2, 4, 'grey'):
        with pytest.raises(ValueError, match='channels.*1, 3'):
            image_folder(tmp_path, channels=bad)


def test_memory_is_as_stated_and_refused_beforehand(tmp_path, monkeypatch):
    for i in range(8):
        picture(tmp_path / f'{i}.png', 128, 128)
    values = 8 * 3 * 128 * 128
    tracemalloc.start()
    images, _ = image_folder(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 5 * values < peak < 5.5 * values and images.numel() == values
    monkeypatch.setattr(data, '_pixels', lambda *a: pytest.fail('unpacked'))
    with pytest.raises(
        ValueError, match='8 x 3 x 20000 x 20000 values need 44.7 GB of memory, more than max_gb=8'
    ):
        image_folder(tmp_path, size=20_000)
    with pytest.raises(ValueError, match='more than max_gb=0.001'):
        image_folder(tmp_path, max_gb=0.001)


# --- 2-D sets ---
@pytest.mark.parametrize('name', list(TOY_SETS))
def test_toy_sets(name):
    for n in (1, 7, 1000):
        points = toy_2d(name, n)
        assert (
            points.shape == (n, 2)
            and points.dtype == torch.float32
            and points.isfinite().all()
            and points.abs().max() < 1.5
        )
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert torch.equal(toy_2d(name, 50, 3), toy_2d(name, 50, 3)) and not torch.equal(
        toy_2d(name, 50, 3), toy_2d(name, 50, 4)
    )
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(name='circle'), 'ring, moons, spiral, checkerboard'),
        (dict(name=None), 'ring'),
        (dict(n=0), 'n must be at least 1'),
        (dict(n=-3), 'n must'),
        (dict(n=2.5), 'n must'),
        (dict(seed=-1), 'seed must'),
        (dict(seed=2**32), 'seed must'),
        (dict(seed=0.5), 'seed must'),
        (dict(seed='1'), 'seed must'),
    ],
)
def test_bad_toy_sets(kwargs, message):
    with pytest.raises(ValueError, match=message):
        toy_2d(**kwargs)
