"""Everything a person can get wrong ends in one line that names it, exit code 2, nothing overwritten."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from fastmri_plugin import export_submission, train
from img2img_recon.support.errors import InputError

SMALL = ("--embed_dim", "8", "--depth", "1", "--mlp_ratio", "1", "--max_epochs", "1")


@pytest.fixture
def data(tiny_data: Callable[[str], Path], tmp_path: Path) -> Path:
    """A private copy of the tiny single-coil set, to be broken."""
    return Path(shutil.copytree(tiny_data("singlecoil"), tmp_path / "data"))


def run(*words: object) -> None:
    common = (
        "--challenge",
        "singlecoil",
        "--no_progress",
        "--accelerator",
        "cpu",
        "--num_workers",
        "0",
    )
    given = [str(word) for word in words]
    train.main([w for w in common if "--challenge" not in given or w not in common[:2]] + given)


def refused(match: str, *words: object) -> None:
    with pytest.raises(InputError, match=match) as caught:
        run(*words)
    assert "\n" not in str(caught.value)


def edit(folder: Path, change: Callable[[h5py.File], None], first_only: bool = False) -> Path:
    paths = sorted(folder.glob("*.h5"))[: 1 if first_only else None]
    for path in paths:
        with h5py.File(path, "r+") as file:
            change(file)
    return paths[0]


def test_missing_data_folder(tmp_path):
    refused("--data_path: .*nowhere is not a folder", "--data_path", tmp_path / "nowhere")


def test_empty_data_folder(tmp_path):
    refused("has no folder singlecoil_train", "--data_path", tmp_path)


def test_split_without_volumes(data):
    for path in (data / "singlecoil_train").iterdir():
        path.rename(path.with_suffix(".txt"))
    refused(r"no \*.h5 volume", "--data_path", data)


def test_folder_without_the_challenges_split(data):
    refused("has no folder multicoil_train .found: .*singlecoil_train",
            "--data_path", data, "--challenge", "multicoil")  # fmt: skip


@pytest.mark.parametrize("dataset", ["kspace", "ismrmrd_header", "reconstruction_esc"])
def test_volume_without_a_dataset(data, tmp_path, dataset):
    path = edit(data / "singlecoil_val", lambda file: file.__delitem__(dataset), first_only=True)
    refused(f"{path.name}: no (dataset|target) '{dataset}'",
            "--data_path", data, "--run", tmp_path / "run")  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_broken_training_volume_is_named_and_skipped(data, tmp_path, capsys):
    path = edit(data / "singlecoil_train", lambda file: file.__delitem__("kspace"), first_only=True)
    run("--data_path", data, "--run", tmp_path / "run", *SMALL)
    said = capsys.readouterr().err
    assert "skipped" in said
    assert path.name in said
    assert (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.parametrize("split", ["train", "val"])
def test_truncated_volumes(data, split):
    for path in (data / f"singlecoil_{split}").iterdir():
        path.write_bytes(path.read_bytes()[:3000])
    refused("truncated", "--data_path", data)


def test_no_hdf5_at_all(data):
    for path in (data / "singlecoil_val").iterdir():
        path.write_text("hello")
    refused("not an HDF5 file", "--data_path", data)


@pytest.mark.parametrize(
    ("is_a", "given_as"), [("singlecoil", "multicoil"), ("multicoil", "singlecoil")]
)
def test_coils_that_do_not_fit_the_challenge(tiny_data, tmp_path, is_a, given_as):
    for split in ("train", "val"):
        shutil.copytree(tiny_data(is_a) / f"{is_a}_{split}", tmp_path / f"{given_as}_{split}")
    kind = "single-coil" if is_a == "singlecoil" else "multi-coil"
    refused(f"which is {kind}; --challenge {given_as} needs",
            "--data_path", tmp_path, "--challenge", given_as)  # fmt: skip


@pytest.mark.parametrize(("model", "workers"), [("img2img_mixer", 1), ("fastmri_unet", 0)])
def test_nan_in_kspace(data, tmp_path, model, workers, script):
    def spoil(file: h5py.File) -> None:
        kspace = file["kspace"][()]
        kspace[-1, :, kspace.shape[-1] // 2] = np.nan
        file["kspace"][...] = kspace

    edit(data / "singlecoil_train", spoil)
    small = ("--chans", 2) if model == "fastmri_unet" else SMALL[:-2]
    result = script(
        "fastmri_plugin/train.py",
        *("--challenge", "singlecoil", "--data_path", data, "--run", tmp_path / "run"),
        *("--num_workers", workers, "--no_progress", "--model", model, "--max_epochs", 1, *small),
    )
    assert result.returncode == 2, result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: demo")
    assert "of kspace holds NaN or infinite values" in last
    assert "Traceback" not in result.stderr


def test_mask_of_the_wrong_length(data):
    def shorten(file: h5py.File) -> None:
        file["mask"] = np.ones(file["kspace"].shape[-1] - 1, dtype=np.float32)

    path = edit(data / "singlecoil_val", shorten, first_only=True)
    refused(f"{path.name}: mask has shape", "--data_path", data)


@pytest.mark.parametrize(
    ("match", "words"),
    [
        ("--accel: given 0; allowed", ("--accel", 0)),
        ("--accel: given -4; allowed", ("--accel", -4)),
        ("--accel: given 0; allowed", ("--accelerations", 0)),
        ("--center_fractions: given 0.0; allowed", ("--accel", 4, "--center_fractions", 0.0)),
        ("--center_fractions: given 1.5; allowed", ("--accel", 4, "--center_fractions", 1.5)),
        ("one per acceleration", ("--accel", 4, 8, "--center_fractions", 0.08)),
        ("leaves no column outside the centre", ("--accel", 4, "--center_fractions", 1.0)),
        ("--devices 0", ("--devices", 0)),
        ("--accelerator: given tpu", ("--accelerator", "tpu")),
        ("--precision: given foo", ("--precision", "foo")),
        ("--check_val_every_n_epoch: given 5", ("--check_val_every_n_epoch", 5, "--max_epochs", 1)),
        ("--batch_size: given 2, allowed: 1",
         ("--model", "fastmri_varnet", "--batch_size", 2, "--challenge", "multicoil")),
        ("img_size", ("--img_size", 30)),
        ("--mask_type: given spiral; allowed: random", ("--mask_type", "spiral")),
        ("--sample_rate: given 2; allowed", ("--sample_rate", 2)),
        ("only one of the two", ("--sample_rate", 0.5, "--volume_sample_rate", 0.5)),
        ("--batch_size: given 0", ("--batch_size", 0)),
        ("--lr: given 0", ("--lr", 0)),
        ("--model: given resnet; allowed: .*img2img_mixer", ("--model", "resnet")),
        ("chans", ("--chans", 4)),
        ("patch_size is 64, but the images are 32 x 32", ("--patch_size", 64)),
        ("--devices: given two", ("--devices", "two")),
        ("fastmri_varnet needs --challenge multicoil", ("--model", "fastmri_varnet", "--pools", 1)),
        ("--acel: no such flag.*--accel", ("--acel", 4)),
        ("--baselines: given ista, allowed: zero_filled, tv", ("--baselines", "ista")),
    ],
)  # fmt: skip
def test_flags(tiny_data, tmp_path, match, words):
    refused(match, "--data_path", tiny_data("singlecoil"), "--run", tmp_path / "run", *words)
    assert not (tmp_path / "run").exists()


def test_volume_with_fewer_rows_than_its_image(data):
    def shorten(file: h5py.File) -> None:
        kspace = file["kspace"][:, :30]
        del file["kspace"]
        file["kspace"] = kspace

    path = edit(data / "singlecoil_val", shorten, first_only=True)
    refused(f"{path.name}: the image is", "--data_path", data)


def test_a_run_killed_while_it_claimed_its_folder_starts_again(tiny_data, tmp_path):
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    (run_folder / "environment.json").write_text("{}")
    (run_folder / ".writing.abc.json").write_text("{")
    run("--data_path", tiny_data("singlecoil"), "--run", run_folder, *SMALL)
    assert (run_folder / "metrics.json").exists()
    assert not list(run_folder.rglob(".writing.*"))


def test_run_folder_of_another_configuration(tiny_data, tmp_path):
    data, run_folder = tiny_data("singlecoil"), tmp_path / "run"
    run("--data_path", data, "--run", run_folder, *SMALL)
    before = {
        p: p.stat().st_mtime_ns for p in run_folder.rglob("*") if p.is_file() and p.name != ".lock"
    }
    refused("belongs to another configuration .seed: 42 there, 7 here",
            "--data_path", data, "--run", run_folder, *SMALL, "--seed", 7)  # fmt: skip
    assert before == {
        p: p.stat().st_mtime_ns for p in run_folder.rglob("*") if p.is_file() and p.name != ".lock"
    }


def test_run_folder_with_other_files(tiny_data, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    refused("holds files but no config.json",
            "--data_path", tiny_data("singlecoil"), "--run", tmp_path)  # fmt: skip


def test_unwritable_run_folder(tiny_data, tmp_path):
    (tmp_path / "file").write_text("")
    refused("--run: .*cannot be written to",
            "--data_path", tiny_data("singlecoil"), "--run", tmp_path / "file" / "run")  # fmt: skip


def test_checkpoints_that_do_not_fit(tiny_data, tmp_path):
    data, run_folder = tiny_data("singlecoil"), tmp_path / "run"
    run("--data_path", data, "--run", run_folder, *SMALL)

    def export(checkpoint: Path) -> None:
        export_submission.main(
            ["--run", str(checkpoint), "--data_path", str(data), "--challenge", "singlecoil",
             "--out", str(tmp_path / "submission.zip")]
        )  # fmt: skip

    good = torch.load(run_folder / "checkpoints" / "best.ckpt", weights_only=True)
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    torch.save([1, 2], tmp_path / "list.ckpt")
    torch.save({**good, "run_config": None}, tmp_path / "foreign.ckpt")
    options = {**good["run_config"]["options"], "embed_dim": 16}
    other = {**good, "run_config": {**good["run_config"], "options": options}}
    torch.save(other, tmp_path / "other.ckpt")
    for name, match in (
        ("missing.ckpt", "no such checkpoint"),
        ("text.ckpt", "not a checkpoint that can be read safely"),
        ("list.ckpt", "not a checkpoint"),
        ("foreign.ckpt", "not a checkpoint of fastmri_plugin/train.py"),
        ("other.ckpt", "checkpoint of another network"),
    ):
        with pytest.raises(InputError, match=match) as caught:
            export(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "submission.zip").exists()
    with pytest.raises(InputError, match="no checkpoint in this folder"):
        export(data)


def test_exit_code_and_single_line(script, tmp_path):
    result = script("fastmri_plugin/train.py", "--challenge", "singlecoil", "--accel", "0")
    assert result.returncode == 2
    assert result.stderr.strip() == (
        "error: --accel: given 0; allowed: one or more whole numbers above 0"
    )
