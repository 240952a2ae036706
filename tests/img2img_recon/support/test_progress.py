"""Loops outside of a training: a few lines into a file, nothing lost on the way."""

import pytest

from img2img_recon.support.progress import LINES, bar, silent


@pytest.mark.parametrize("total", [0, 1, 3, 5, 9, 100, 12345])
def test_a_few_lines_into_a_file(capfd, total):
    assert list(bar(range(total), "scoring", total)) == list(range(total))
    out, err = capfd.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert "\r" not in err
    assert len(lines) <= LINES
    if total:
        assert lines[-1] == f"scoring: {total}/{total}"


def test_silent_says_nothing(capfd):
    assert list(silent(range(3), "scoring", 3)) == [0, 1, 2]
    assert capfd.readouterr() == ("", "")
