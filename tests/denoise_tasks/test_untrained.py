from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from typing import get_args

import matplotlib.image
import numpy as np
import pytest
from PIL import Image

from denoise_tasks import untrained, untrained_fits, untrained_study
from denoise_tasks.untrained_study import NETWORKS
from img2img_recon.support.errors import InputError
from img2img_recon.support.files import locked
from tests.denoise_tasks.test_untrained_study import FULL, picture

TINY_WORDS = ("--short", "--size", "32", "--iterations", "3", "--sigma", "50", "--no_progress",
              "--accelerator", "cpu")  # fmt: skip


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray((255 * picture(40)).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny study of two networks; nobody may write into it."""
    folder = tmp_path_factory.mktemp("studies") / "tiny"
    untrained.main([*TINY_WORDS, "--run", str(folder), "--model", "unet", "vit"])
    return folder


def refused(match: str, *words: object) -> None:
    with pytest.raises(InputError, match=match) as caught:
        untrained.main([*TINY_WORDS, *map(str, words)])
    assert "\n" not in str(caught.value)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_script_offers_the_networks_that_the_study_knows():
    assert set(NETWORKS) == set(get_args(untrained.Model))


def test_defaults_are_the_published_settings():
    default = untrained.UntrainedConfig()
    assert (default.side, default.steps, default.sigma, default.lr) == (256, 1501, None, None)
    assert default.seed == 1
    assert untrained_study.halve_every(1501) == 500
    assert untrained_study.shown_iterations(1501) == (0, 10, 50, 100, 700, 1100, 1500)
    rates = {"img2img_mixer": 1e-4, "unet": 5e-3, "vit": 1e-3, "original_mixer": 5e-4}
    assert {model: untrained_study.lr_of(model, FULL) for model in NETWORKS} == rates


@pytest.mark.slow
def test_a_study_writes_numbers_curves_and_pictures(study):
    results = json.loads((study / "metrics.json").read_text())
    assert list(results["models"]) == ["unet", "vit"]
    assert results["noise_sigma"] == pytest.approx(50, rel=0.1)
    assert results["noisy_psnr"] == pytest.approx(-20 * np.log10(50 / 255), abs=0.5)
    # Methods have to be better than doing nothing.
    assert set(results["methods"]) == {"bm3d", "tv"}
    for row in results["methods"].values():
        assert row["best_psnr"] > results["noisy_psnr"] + 3
    with (study / "curves.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 2 * 3 * 3
    for model, row in results["models"].items():
        own = [r for r in rows if r["model"] == model]
        psnr = [float(r["psnr_image"]) for r in own if r["target"] == "noisy"]
        assert row["best_psnr"] == pytest.approx(max(psnr), abs=1e-3)
        assert row["best_iteration"] == int(np.argmax(psnr))
        assert row["last_psnr"] == pytest.approx(psnr[-1], abs=1e-3)
        assert {r["psnr_image"] for r in own if r["target"] == "noise"} == {""}
        first = next(r for r in own if r["target"] == "image")
        assert row["targets"]["image"]["first_mse"] == pytest.approx(float(first["mse_target"]))
    for name in ("curves.png", "strip.png"):
        assert matplotlib.image.imread(study / "figures" / name).std() > 0.05


@pytest.mark.slow
def test_finished_fits_are_not_made_again(study, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(study, tmp_path / "study"))
    (folder / "fits" / "vit-noisy.npz").unlink()
    made: list[tuple[str, str]] = []
    really_fit = untrained_fits.fit_network

    def counted(model, target, *args, **options):
        made.append((model, target))
        return really_fit(model, target, *args, **options)

    monkeypatch.setattr(untrained_fits, "fit_network", counted)
    untrained.main([*TINY_WORDS, "--run", str(folder), "--model", "vit"])
    assert made == [("vit", "noisy")]
    # The network that this call did not name is still in the study.
    again = json.loads((folder / "metrics.json").read_text())
    before = json.loads((study / "metrics.json").read_text())
    for results in (again, before):
        for row in results["models"].values():
            for fit in row["targets"].values():
                del fit["seconds"]
    assert again["models"] == before["models"]


@pytest.mark.slow
def test_an_interrupted_study_keeps_its_finished_fits(tmp_path, monkeypatch):
    folder = tmp_path / "study"
    really_fit = untrained_fits.fit_network

    def interrupted(model, target, *args, **options):
        if target == "noisy":
            raise KeyboardInterrupt
        return really_fit(model, target, *args, **options)

    words = [*TINY_WORDS, "--run", str(folder), "--model", "vit"]
    monkeypatch.setattr(untrained_fits, "fit_network", interrupted)
    with pytest.raises(KeyboardInterrupt):
        untrained.main(words)
    assert sorted(p.name for p in (folder / "fits").iterdir()) == ["vit-image.npz", "vit-noise.npz"]
    assert not (folder / "metrics.json").exists()
    kept = files(folder / "fits")
    monkeypatch.setattr(untrained_fits, "fit_network", really_fit)
    untrained.main(words)
    assert (folder / "metrics.json").exists()
    assert kept.items() <= files(folder / "fits").items()


@pytest.mark.slow
def test_a_study_of_other_settings_is_refused_and_overwritten_only_on_demand(study, tmp_path):
    folder = Path(shutil.copytree(study, tmp_path / "study"))
    (folder / "notes.txt").write_text("mine")
    before = files(folder)
    refused(r"--run: .* belongs to another configuration \(seed: 1 there, 2 here\)",
            "--run", folder, "--seed", 2)  # fmt: skip
    refused(r"sigma: 50.0 there, 25.0 here", "--run", folder, "--sigma", 25)
    assert files(folder) == before
    untrained.main(
        [*TINY_WORDS, "--run", str(folder), "--seed", "2", "--model", "vit", "--overwrite"]
    )
    results = json.loads((folder / "metrics.json").read_text())
    assert list(results["models"]) == ["vit"]
    assert results["seed"] == 2
    assert not (folder / "fits" / "unet-image.npz").exists()
    assert (folder / "notes.txt").read_text() == "mine"


def test_two_studies_do_not_work_in_one_folder(tmp_path):
    out = tmp_path / "study"
    with locked(out / ".lock", 0, "free"):
        refused(r"--run: another process is working in .*study", "--run", out, *TINY_WORDS)
    assert files(out) == {".lock": b""}


def test_a_folder_that_is_no_study_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for words in ((), ("--overwrite",)):
        refused("holds files but no config.json", "--run", tmp_path, *words)
    refused("thesis.txt cannot be written to", "--run", tmp_path / "thesis.txt")
    assert files(tmp_path) == {"thesis.txt": b"years of work"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ("--model", "unett"),
            "--model: given unett.*one or more of img2img_mixer, unet, vit, orig",
        ),
        (("--sigma", "-1"), "--sigma: given -1"),
        (("--sigma", "0"), "--sigma: given 0"),
        (("--sigma", "1000"), "--sigma: given 1000"),
        (("--sigma", ".nan"), "--sigma: given .nan"),
        (("--iterations", "0"), "--iterations: given 0"),
        (("--lr", "0"), "--lr: given 0"),
        (("--lr", ".nan"), "--lr: given .nan"),
        (("--seed", "-1"), "--seed: given -1"),
        (("--size", "16"), "--size: given 16, allowed: multiples of 4 from 32 on"),
        (("--size", "50"), "--size: given 50, allowed: multiples of 4"),
        (("--size", "1000"), "camera: 512 x 512 pixels, smaller than --size 1000"),
        (("--image", "nowhere.png"), "nowhere.png"),
    ],
)
def test_bad_flags_are_named_and_nothing_is_written(tmp_path, words, says):
    refused(says, "--run", tmp_path / "study", *words)
    assert not (tmp_path / "study").exists()


def test_bad_pictures_are_named(tmp_path, photo):
    out = ("--run", tmp_path / "study")
    refused(
        r"photo.png: 40 x 40 pixels, smaller than --size 64", *out, "--image", photo, "--size", 64
    )
    Image.new("L", (40, 40), 128).save(photo)
    refused("photo.png: its centre is one flat grey", *out, "--image", photo)
    photo.write_bytes(photo.read_bytes()[:60])
    refused("photo.png", *out, "--image", photo)
    assert not (tmp_path / "study").exists()


@pytest.mark.slow
def test_the_script_runs_from_start_to_table(tmp_path, photo, script):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = script("denoise_tasks/untrained.py", *TINY_WORDS, "--model", "vit", "--image", photo,
                  "--run", tmp_path / "study", env=environment)  # fmt: skip
    assert done.returncode == 0, done.stderr
    for word in ("ViT", "BM3D", "noisy", "17.3"):
        assert word in done.stdout
    wrong = script("denoise_tasks/untrained.py", "--image", tmp_path / "no.png", env=environment)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: ")
    assert wrong.stderr.count("\n") == 1
