"What all tests share. One thread each: small tensors gain nothing from more, and results stay comparable."

import gc
import os
import shlex
import shutil
import stat
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ['IPYTHONDIR'] = tempfile.mkdtemp(
    prefix='bdense-nb-ipython-'
)  # kernels write their history here, not into the home folder

import pytest  # noqa: E402

from forks import WARM, find_classes_by_name, no_parsers_of_addresses, no_waiting_for_disks  # noqa: E402

find_classes_by_name()
no_parsers_of_addresses()
no_waiting_for_disks()
gc.disable()  # what is imported stays


def pytest_configure(config):
    """Where several processes test, they share one server of forks, and are forks of it: what it has imported, they have,
    too. A stream that is a socket, as some programs give, cannot be opened by its path."""
    if getattr(config.option, 'tx', None) and not hasattr(config, 'workerinput'):
        WARM.share()
        if os.path.exists('/proc/self/fd') and not stat.S_ISSOCK(os.fstat(2).st_mode):
            forked = Path(__file__).resolve().parents[1] / 'tools' / 'forked.py'
            fork = f'popen//python={shlex.join([sys.executable, str(forked)])}'
            config.option.tx = [fork if how == 'popen' else how for how in config.option.tx]


def pytest_collection_finish():
    "No search for garbage goes through what was imported, and few go through what tests import."
    gc.freeze()
    gc.enable()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope='session')
def root() -> Path:
    "The repository's root."
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope='session')
def site(root, tmp_path_factory) -> Path:
    "The documentation site, built once for all tests that look at it; a warning is an error."
    from warm import python  # not before the number of threads is set

    folder = tmp_path_factory.mktemp('docs') / 'site'
    done = python('import docs; sys.argv[0] = docs.__file__; docs.main()', folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    "The tests of a file run in one process, so that what they share is made once; notebooks go wherever there is room."
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = Path(nodeid.split('::')[0]).name
            return (
                nodeid
                if file == 'test_notebooks.py'
                else {'test_docs_browser.py': 'test_docs.py'}.get(file, file)
            )

    return ByFile(config, log)


def in_pairs(*axes):
    "Of the product of three axes, cases in which every value of one meets every value of another: all of the longer two, the shortest in turn."
    axes = [list(axis) for axis in axes]
    *longer, short = sorted(range(3), key=lambda i: -len(axes[i]))
    cases = []
    for i, one in enumerate(axes[longer[0]]):
        for j, other in enumerate(axes[longer[1]]):
            found = {
                longer[0]: one,
                longer[1]: other,
                short: axes[short][(i + j) % len(axes[short])],
            }
            cases.append(tuple(found[k] for k in range(3)))
    return cases


def shaken(denoiser, seed=0):
    "Random instead of zero output weights, so that something depends on everything."
    import torch  # not before the number of threads is set

    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in denoiser.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * 0.2)
    return denoiser.requires_grad_(False).eval()


def check_onnx_step(file, denoiser, shape):
    "An exported step (a path or bytes) is an Euler step of its denoiser, at batch sizes that it was not exported with."
    import onnxruntime  # not before the number of threads is set
    import torch

    from bdense_nb.core import sample_noise

    run = onnxruntime.InferenceSession(file).run
    for n in (1, 5):
        label = torch.arange(n) % 3 if denoiser.n_classes else None
        for t, s in ((80.0, 10.0), (0.37, 0.1), (0.002, 0.0)):
            x = t * sample_noise(range(n), shape)
            given = dict(x=x, sigma=torch.tensor(t), sigma_next=torch.tensor(s))
            given |= {} if label is None else dict(label=label)
            with torch.no_grad():
                x0_hat = denoiser(x, t, label)
            want = x0_hat + s / t * (x - x0_hat)
            (got,) = run(None, {name: value.numpy() for name, value in given.items()})
            assert (torch.from_numpy(got) - want).abs().max() < 1e-4 * want.abs().max()


@pytest.fixture
def noise():
    "`noise(B, *D)`: standard normal noise with per-sample seeds 0 to B-1."
    from bdense_nb.core import sample_noise

    return lambda batch, *shape: sample_noise(range(batch), shape)


@pytest.fixture(scope='module')
def chromium():
    "A headless Chromium: playwright's `Browser`. Where there is none, the tests that ask for it are left out, and say so."
    program = os.environ.get('CHROMIUM') or next(
        filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None
    )
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    if program is None or sync_playwright is None:
        pytest.skip(
            'browser tests left out: they need Chromium (Debian: apt-get install chromium; elsewhere CHROMIUM=/path/to/it) and '
            'playwright (pip install playwright); then: python -m pytest -m browser'
        )
    with sync_playwright() as p:
        browser = p.chromium.launch(
            executable_path=program,
            args=[
                '--no-sandbox',
                '--disable-gpu',
                '--disable-quic',
                '--no-first-run',
                '--disable-background-networking',
                '--disable-component-update',
                '--disable-sync',
            ],
        )
        yield browser
        browser.close()


@contextmanager
def opened(chromium):
    "An empty page; `page.problems` collects failed requests, requests to other hosts and errors of scripts."
    context = chromium.new_context(viewport={'width': 1200, 'height': 900})
    page = context.new_page()
    page.problems = []
    local = lambda url: (
        urlparse(url).scheme in ('file', 'data', 'blob')
        or urlparse(url).hostname in ('127.0.0.1', 'localhost')
    )
    page.on(
        'request',
        lambda r: local(r.url) or page.problems.append(f'request to another host: {r.url}'),
    )
    left = 'net::ERR_ABORTED'  # the test went to another page while this one still loaded something
    page.on(
        'requestfailed',
        lambda r: (
            r.failure == left or page.problems.append(f'failed request: {r.url}: {r.failure}')
        ),
    )
    page.on(
        'response', lambda r: r.status < 400 or page.problems.append(f'status {r.status}: {r.url}')
    )
    page.on('pageerror', lambda e: page.problems.append(f'script: {e}'))
    yield page
    context.close()


@pytest.fixture
def page(chromium):
    "A page that nothing was opened in."
    with opened(chromium) as page:
        yield page


@pytest.fixture
def shots(root, request):
    "Leaves a screenshot in `_screenshots/`, which git ignores."
    folder = root / '_screenshots'
    folder.mkdir(exist_ok=True)
    return lambda page, name: page.screenshot(path=folder / f'{request.node.name} {name}.png')
