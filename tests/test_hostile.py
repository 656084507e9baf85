"A sample of the hostile campaign; all of it: `python tests/campaign.py`."

from warm import python


def test_a_sample_of_kills_and_bad_inputs_is_stood():
    done = python('import campaign; sys.argv = ["campaign.py", "--sample"]; campaign.main()')
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '| kills: SFD |' in done.stdout and '| JSON |' in done.stdout
