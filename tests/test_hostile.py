"A sample of the hostile campaign; all of it: `python tests/campaign.py`."
import subprocess
import sys
from pathlib import Path

CAMPAIGN = Path(__file__).with_name('campaign.py')


def test_a_sample_of_kills_and_bad_inputs_is_stood():
    done = subprocess.run([sys.executable, CAMPAIGN, '--sample'], capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '| kills: SFD |' in done.stdout and '| JSON |' in done.stdout
