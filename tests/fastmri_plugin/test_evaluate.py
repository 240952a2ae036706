"""The command that scores files, or runs and methods side by side."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import fastmri.evaluate
import h5py
import numpy as np
import pytest

import fastmri_plugin.reconstruct as reconstruct
from fastmri_plugin.evaluate import main
from fastmri_plugin.freeze_split import FreezeConfig, freeze_split
from img2img_recon.support.errors import InputError


@pytest.fixture
def predictions(tiny_data, tmp_path) -> Path:
    """Zero-filled reconstructions of the tiny single-coil validation volumes, made by the command."""
    reconstruct.main(
        ["--challenge", "singlecoil", "--data_path", str(tiny_data("singlecoil")), "--no_progress",
         "--test_split", "val", "--method", "zero_filled", "--out", str(tmp_path / "made")]
    )  # fmt: skip
    return tmp_path / "made" / "zero_filled"


def test_files_are_scored_as_fastmri_does(tiny_data, predictions, tmp_path, capsys):
    data, file = tiny_data("singlecoil"), tmp_path / "out" / "scores.json"
    words = ["--target-path", str(data), "--predictions-path", str(predictions)]
    main([*words, "--challenge", "singlecoil", "--json", str(file)])
    printed = capsys.readouterr().out
    assert all(label in printed for label in ("all", "CORPD_FBK", "CORPDFS_FBK", "SSIM", "+/-"))
    # fastMRI's program takes no narrow volume, whose reconstruction is smaller than the target.
    whole = tmp_path / "whole"
    whole.mkdir()
    for path in sorted(predictions.iterdir()):
        with h5py.File(path) as volume, h5py.File(data / "singlecoil_val" / path.name) as target:
            if volume["reconstruction"].shape == target["reconstruction_esc"].shape:
                (whole / path.name).write_bytes((data / "singlecoil_val" / path.name).read_bytes())
    args = Namespace(target_path=whole, predictions_path=predictions, acquisition=None,
                     acceleration=None)  # fmt: skip
    expected = fastmri.evaluate.evaluate(args, "reconstruction_esc").means()
    found = json.loads(file.read_text())["volumes"]
    names = {path.name for path in whole.iterdir()}
    for metric in ("NMSE", "PSNR", "SSIM"):
        mean = np.mean([found[name][metric.lower()] for name in names])
        assert mean == pytest.approx(float(np.squeeze(expected[metric])), rel=1e-5)


@pytest.mark.slow
def test_methods_side_by_side_have_the_scores_of_their_files(
    tiny_data, predictions, tmp_path, capsys
):
    data, challenge = tiny_data("singlecoil"), ("--challenge", "singlecoil")
    tables = tmp_path / "files.json", tmp_path / "methods.json"
    main(["--target_path", str(data), "--predictions_path", str(predictions), *challenge,
          "--json", str(tables[0])])  # fmt: skip
    capsys.readouterr()
    main(["--method", "tv", "--method", "zero_filled", "--data_path", str(data), *challenge,
          "--json", str(tables[1]), "--no_progress"])  # fmt: skip
    printed = capsys.readouterr().out
    assert printed.count("tv") == printed.count("zero_filled") >= 3
    files, methods = (json.loads(table.read_text()) for table in tables)
    assert set(methods["methods"]) == {"tv", "zero_filled"}
    assert methods["methods"]["zero_filled"] == files
    ssim = {name: m["groups"][0]["mean"]["ssim"] for name, m in methods["methods"].items()}
    assert ssim["tv"] != ssim["zero_filled"]


def test_a_frozen_splits_targets_are_found(tiny_data, tmp_path, capsys):
    config = FreezeConfig(
        data_path=tiny_data("singlecoil"), challenge="singlecoil", out=tmp_path / "frozen"
    )
    freeze_split(config)
    main(["--method", "zero_filled", "--data_path", str(tmp_path / "frozen"), "--test_split",
          "test", "--challenge", "singlecoil", "--acceleration", "8", "--no_progress"])  # fmt: skip
    assert "8x" in capsys.readouterr().out
    for path in (tmp_path / "frozen" / "targets").rglob("*.h5"):
        path.unlink()
    with pytest.raises(InputError, match=r"no target in it, nor at .*targets/singlecoil_test"):
        main(["--method", "zero_filled", "--data_path", str(tmp_path / "frozen"), "--test_split",
              "test", "--challenge", "singlecoil", "--no_progress"])  # fmt: skip


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "--target_path: needed, unless --run or --method is given"),
        (["--target_path", "."], "--predictions_path: needed"),
        (["--method", "tv", "--target_path", "."], "--target_path: give it without --run"),
        (["--method", "tv", "--json", "."], "--json: . is a folder"),
        (
            ["--target_path", "nowhere", "--predictions_path", "."],
            "--target_path: nowhere is not a",
        ),
    ],
)
def test_flags_that_do_not_go_together(words, says):
    with pytest.raises(InputError, match=says):
        main([*words, "--challenge", "multicoil"])


@pytest.mark.slow
def test_the_script_exits_with_2_and_one_line(script, tmp_path):
    words = ["--target-path", "nowhere", "--predictions-path", ".", "--challenge", "multicoil"]
    done = script("fastmri_plugin/evaluate.py", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: --target_path: nowhere is not a folder\n"
