"""The command that makes and checks submissions."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from fastmri_plugin.export_submission import main
from fastmri_plugin.listing import list_volumes
from fastmri_plugin.methods import METHODS, ZeroFilled
from fastmri_plugin.submission import check_submission
from img2img_recon.support.errors import InputError


@pytest.fixture(params=["singlecoil", "multicoil"])
def words(tiny_data: Callable[[str], Path], request: pytest.FixtureRequest) -> list[str]:
    data = tiny_data(request.param)
    return ["--data-path", str(data), "--challenge", request.param, "--no_progress"]


def test_a_submission_is_made_and_checked(words, tmp_path, capsys):
    archive, data, challenge = tmp_path / "made.zip", Path(words[1]), words[3]
    main([*words, "--method", "zero_filled", "--out", str(archive)])
    assert "2 volumes, 4 slices" in capsys.readouterr().out
    infos = list_volumes(data / f"{challenge}_test", challenge)
    check_submission(archive, infos).raise_if_invalid()
    main([*words, "--validate", str(archive)])
    assert "valid submission" in capsys.readouterr().out

    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with pytest.raises(InputError, match="not valid, 2 problem"):
        main([*words, "--validate", str(tmp_path / "empty.zip")])
    assert capsys.readouterr().err.count("missing") == len(infos)


def test_drawn_masks_are_the_checks_too(words, tmp_path, capsys):
    """A split that stores no masks: the check compares with what was reconstructed."""
    archive = tmp_path / "val.zip"
    main([*words, "--test_split", "val", "--accel", "4", "--method", "zero_filled",
          "--out", str(archive)])  # fmt: skip
    assert "2 volumes, 4 slices" in capsys.readouterr().out


def test_what_is_not_valid_is_refused_after_it_was_made(words, tmp_path, monkeypatch):
    class Bright(ZeroFilled):
        name = "bright"

        def image(self, kspace, mask, size):
            return 100 * super().image(kspace, mask, size)

    monkeypatch.setitem(METHODS, "bright", Bright)
    with pytest.raises(InputError, match="not valid"):
        main([*words, "--method", "bright", "--out", str(tmp_path / "bright.zip")])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "--run, --method: give one of the two, unless --validate"),
        (["--run", "a", "--method", "tv", "--out", "b.zip"], "give one of the two"),
        (["--run", "run"], "--out: needed"),
        (["--validate", "a.zip", "--out", "b.zip"], "--validate: give it without"),
        (["--validate", "a.zip", "--batch_size", "0"], "--batch_size: given 0"),
        (["--validate", "a.zip", "--test_split", "train"], "--test_split: given train"),
        (["--method", "ista", "--out", "b.zip"], "--method: given ista; allowed: zero_filled, tv"),
        (["--run", "nowhere", "--out", "b.zip"], "nowhere: no such checkpoint"),
    ],
)
def test_flags_that_do_not_fit_are_refused(given, says):
    with pytest.raises(InputError, match=says):
        main(["--data_path", ".", "--challenge", "singlecoil", *given])


def test_an_existing_archive_is_refused_before_any_work(words, tmp_path):
    there = tmp_path / "there.zip"
    shutil.copy(__file__, there)
    before = there.read_bytes()
    with pytest.raises(InputError, match=r"--out: .*there.zip exists; give --overwrite"):
        main([*words, "--run", "none", "--out", str(there)])
    assert there.read_bytes() == before
    main([*words, "--method", "zero_filled", "--out", str(there), "--overwrite"])
    assert there.read_bytes() != before
