"What all tests share. One thread each: small tensors gain nothing from more, and results stay comparable."
import os
import tempfile
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ['IPYTHONDIR'] = tempfile.mkdtemp(prefix='bdense-nb-ipython-')  # kernels write their history here, not into the home folder

import pytest  # noqa: E402


@pytest.fixture(scope='session')
def root() -> Path:
    "The repository's root."
    return Path(__file__).resolve().parent.parent


@pytest.fixture
def noise():
    "`noise(B, *D)`: standard normal noise with per-sample seeds 0 to B-1."
    from bdense_nb.core import sample_noise
    return lambda batch, *shape: sample_noise(range(batch), shape)
