from __future__ import annotations

import csv
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from denoise_tasks import untrained, untrained_study
from denoise_tasks.untrained_figures import _psnr_axis
from denoise_tasks.untrained_study import (
    CONTENDERS,
    TARGETS,
    Fit,
    Settings,
    first_input,
    first_network,
    fit_key,
    fit_network,
    load_fit,
    luminance,
    make_scene,
    psnr_of,
    save_fit,
    square_picture,
)
from img2img_recon.networks.zoo import build_model
from img2img_recon.support.errors import InputError
from img2img_recon.support.files import locked

FULL = Settings(size=256, iterations=1501, sigma=None, lr=None, seed=1, short=False)
TINY = Settings(size=32, iterations=6, sigma=50, lr=None, seed=3, short=True)
TINY_WORDS = ("--short", "--size", "32", "--iterations", "3", "--sigma", "50", "--no_progress",
              "--accelerator", "cpu")  # fmt: skip


def picture(size: int = 32) -> np.ndarray:
    """A bright square on a ramp: structure that is no noise."""
    image = np.tile(np.linspace(0.1, 0.6, size), (size, 1)).astype(np.float32)
    image[size // 4 : size // 2, size // 4 : size // 2] = 1
    return image


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray((255 * picture(40)).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny study of two networks; nobody may write into it."""
    folder = tmp_path_factory.mktemp("studies") / "tiny"
    untrained.main([*TINY_WORDS, "--out", str(folder), "--models", "unet", "vit"])
    return folder


def refused(match: str, *words: object) -> None:
    with pytest.raises(InputError, match=match) as caught:
        untrained.main([*TINY_WORDS, *map(str, words)])
    assert "\n" not in str(caught.value)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_script_offers_the_networks_that_the_study_knows():
    assert tuple(CONTENDERS) == untrained.MODELS


def test_defaults_are_the_published_settings():
    assert untrained.UntrainedConfig().settings() == FULL
    assert FULL.halve_every == 500
    assert FULL.shown_iterations == (0, 10, 50, 100, 700, 1100, 1500)
    rates = {"img2img_mixer": 1e-4, "unet": 5e-3, "vit": 1e-3, "original_mixer": 5e-4}
    assert {model: FULL.lr_of(model) for model in CONTENDERS} == rates


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("img2img_mixer", 6_601_216),
        ("unet", 6_816_901),
        ("vit", 6_819_876),
        ("original_mixer", 6_860_929),
    ],
)
def test_networks_are_grey_and_of_the_papers_size(model, parameters):
    config = FULL.network_config(model)
    assert (config["in_chans"], config["out_chans"]) == (1, 1)
    with torch.device("meta"):
        network = build_model(CONTENDERS[model].zoo_name, **config)
    assert sum(weight.numel() for weight in network.parameters()) == parameters


def test_published_noise_has_half_the_pictures_norm_and_is_not_clipped():
    scene = make_scene(picture(64), None, seed=1)
    ratio = np.linalg.norm(scene.noise) / np.linalg.norm(scene.image)
    assert ratio == pytest.approx(0.5, rel=1e-6)
    assert scene.noisy.min() < 0
    assert scene.noisy.max() > 1
    np.testing.assert_array_equal(scene.noisy, scene.image + scene.noise)


def test_sigma_is_in_grey_levels():
    scene = make_scene(picture(256), 51, seed=0)
    assert scene.noise_std == pytest.approx(0.2, rel=0.01)
    assert abs(scene.noise.mean()) < 0.002
    weaker = make_scene(picture(256), 25.5, seed=0)
    np.testing.assert_allclose(weaker.noise, scene.noise / 2, rtol=1e-6)
    assert np.abs(make_scene(picture(256), 51, seed=1).noise - scene.noise).max() > 0.1


def test_colour_becomes_luminance_as_pillow_makes_it():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    assert np.abs(255 * luminance(pixels / 255) - grey).max() <= 1
    assert luminance(pixels[..., :1] / 255).shape == (9, 7)


def test_a_large_picture_is_scaled_and_its_centre_cut_out():
    wide = np.zeros((64, 128), dtype=np.float32)
    wide[:, 48:80] = 0.5  # a bar in the middle, a quarter of the width
    square = square_picture(wide, 32, "wide")
    assert square.shape == (32, 32)
    assert square.dtype == np.float32
    assert square.max() == 1
    np.testing.assert_allclose(square, square[:, ::-1], atol=1e-6)
    assert square[:, 12:20].min() > 0.9
    assert square[:, :6].max() < 0.01


def test_a_picture_of_the_right_size_is_only_divided_by_its_maximum():
    exact = picture(32) * 0.7
    np.testing.assert_allclose(square_picture(exact, 32, "exact"), exact / exact.max(), rtol=1e-6)


@pytest.mark.parametrize("model", CONTENDERS)
@pytest.mark.parametrize("target", TARGETS)
def test_curves_begin_with_the_untrained_network_and_record_before_each_step(model, target):
    """The first steps, taken again by hand with another formulation of the loss."""
    scene = make_scene(picture(), TINY.sigma, TINY.seed)
    fit = fit_network(model, target, scene, replace(TINY, iterations=3))
    network = first_network(model, TINY).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=TINY.lr_of(model))
    wanted = {"image": scene.image, "noise": scene.noise, "noisy": scene.image + scene.noise}
    # The third step follows a halving: three iterations have one after each.
    for iteration in range(2):
        optimizer.param_groups[0]["lr"] = TINY.lr_of(model) * 0.5**iteration
        output = network(first_input(model, TINY))[0, 0]
        loss = ((output - torch.from_numpy(wanted[target])) ** 2).mean()
        assert fit.mse_target[iteration] == pytest.approx(loss.item(), rel=1e-4)
        reference = scene.noise if target == "noise" else scene.image
        error = np.mean((output.detach().numpy() - reference) ** 2)
        assert fit.mse_reference[iteration] == pytest.approx(error, rel=1e-4)
        np.testing.assert_allclose(fit.shown[iteration], output.detach(), rtol=1e-3, atol=1e-4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("model", ["vit", "unet"])
def test_the_best_iterate_is_the_one_at_the_maximum_of_the_curve(model):
    scene = make_scene(picture(), 50, seed=0)
    settings = replace(TINY, iterations=25, lr=0.02)
    fit = fit_network(model, "noisy", scene, settings)
    psnr = [psnr_of(float(error)) for error in fit.mse_reference]
    assert fit.best_psnr == max(psnr)
    assert fit.best_iteration == int(np.argmax(psnr))
    error = np.mean((fit.best.astype(np.float64) - scene.image) ** 2)
    assert -10 * np.log10(error) == pytest.approx(fit.best_psnr, abs=1e-3)
    assert fit.shown.shape == (len(settings.shown_iterations), 32, 32)
    assert fit.mse_target[-1] < fit.mse_target[0]


def test_psnr_has_a_data_range_of_one():
    assert psnr_of(0.01) == pytest.approx(20)
    assert np.isfinite(psnr_of(0.0))


def test_the_seed_decides_everything_and_leaves_the_global_state_alone():
    scene = make_scene(picture(), 50, seed=0)
    before = torch.random.get_rng_state()
    once = fit_network("vit", "noisy", scene, TINY)
    torch.rand(7)
    again = fit_network("vit", "noisy", scene, TINY)
    other = fit_network("vit", "noisy", scene, replace(TINY, seed=4))
    np.testing.assert_array_equal(once.mse_target, again.mse_target)
    np.testing.assert_array_equal(once.shown, again.shown)
    assert other.mse_target[0] != once.mse_target[0]
    torch.random.set_rng_state(before)
    first_network("vit", TINY)
    first_input("vit", TINY)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_inputs_are_uniform_in_the_published_ranges():
    for model, (low, high) in {"img2img_mixer": (0, 1), "vit": (-0.25, 0.25)}.items():
        values = first_input(model, FULL)
        assert values.shape == (1, 1, 256, 256)
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() < high


def test_a_stored_fit_comes_back_and_belongs_to_its_settings(tmp_path):
    scene = make_scene(picture(), 50, seed=0)
    fit = fit_network("vit", "noise", scene, replace(TINY, iterations=2))
    key = fit_key("vit", "noise", scene, TINY)
    path = tmp_path / "fits" / "vit-noise.npz"
    assert load_fit(path, key) is None
    save_fit(path, fit, key)
    back = load_fit(path, key)
    assert isinstance(back, Fit)
    for name, value in fit._asdict().items():
        np.testing.assert_array_equal(getattr(back, name), value)
    assert type(back.parameters) is int
    with pytest.raises(InputError, match="other settings"):
        load_fit(path, "another key")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="not a fit of this study"):
        load_fit(path, key)


def test_whatever_decides_a_fit_is_in_its_key():
    scene = make_scene(picture(), 50, seed=0)
    brighter = make_scene(np.sqrt(picture()), 50, seed=0)
    keys = [fit_key("vit", "noise", scene, TINY), fit_key("vit", "noisy", scene, TINY)]
    keys += [fit_key("unet", "noise", scene, TINY), fit_key("vit", "noise", brighter, TINY)]
    changes = ({"size": 36}, {"iterations": 7}, {"sigma": 25.0}, {"lr": 0.1}, {"seed": 9})
    keys += [fit_key("vit", "noise", scene, replace(TINY, **change)) for change in changes]
    assert len(set(keys)) == len(keys)
    assert fit_key("vit", "noise", scene, TINY) == keys[0]


def test_the_right_axis_shows_the_psnr_of_the_error_on_the_left():
    axis = Figure().subplots()
    axis.loglog([1, 2], [1e-1, 1e-3])
    right = _psnr_axis(axis)
    # Where the left axis says 0.01, halfway up in display, the right one must say 20 dB.
    for mse, decibel in ((1e-1, 10), (1e-2, 20), (1e-3, 30)):
        left_height = axis.transData.transform((1, mse))[1]
        assert right.transData.transform((1, decibel))[1] == pytest.approx(left_height)


def test_a_fit_counts_as_fitted_where_its_curve_first_gets_there():
    curve = np.array([4, 2, 1, 3, 0.5], dtype=np.float32)
    fit = Fit(curve, curve, np.zeros((1, 2, 2)), np.zeros((2, 2)), 1, 0.0)
    assert fit.iterations_to(2) == 1
    assert fit.iterations_to(1.5) == 2
    assert fit.iterations_to(0.1) is None


@pytest.mark.slow
def test_a_study_writes_numbers_curves_and_pictures(study):
    results = json.loads((study / "results.json").read_text())
    assert list(results["models"]) == ["unet", "vit"]
    assert results["noise_sigma"] == pytest.approx(50, rel=0.1)
    assert results["noisy_psnr"] == pytest.approx(-20 * np.log10(50 / 255), abs=0.5)
    # BM3D has to be better than doing nothing.
    assert results["bm3d"]["best_psnr"] > results["noisy_psnr"] + 3
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
        assert matplotlib.image.imread(study / name).std() > 0.05


@pytest.mark.slow
def test_finished_fits_are_not_made_again(study, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(study, tmp_path / "study"))
    (folder / "fits" / "vit-noisy.npz").unlink()
    made: list[tuple[str, str]] = []
    really_fit = untrained_study.fit_network

    def counted(model, target, *args, **options):
        made.append((model, target))
        return really_fit(model, target, *args, **options)

    monkeypatch.setattr(untrained_study, "fit_network", counted)
    untrained.main([*TINY_WORDS, "--out", str(folder), "--models", "vit"])
    assert made == [("vit", "noisy")]
    # The network that this call did not name is still in the study.
    again = json.loads((folder / "results.json").read_text())
    before = json.loads((study / "results.json").read_text())
    for results in (again, before):
        for row in results["models"].values():
            for fit in row["targets"].values():
                del fit["seconds"]
    assert again["models"] == before["models"]


@pytest.mark.slow
def test_an_interrupted_study_keeps_its_finished_fits(tmp_path, monkeypatch):
    folder = tmp_path / "study"
    really_fit = untrained_study.fit_network

    def interrupted(model, target, *args, **options):
        if target == "noisy":
            raise KeyboardInterrupt
        return really_fit(model, target, *args, **options)

    words = [*TINY_WORDS, "--out", str(folder), "--models", "vit"]
    monkeypatch.setattr(untrained_study, "fit_network", interrupted)
    with pytest.raises(KeyboardInterrupt):
        untrained.main(words)
    assert sorted(p.name for p in (folder / "fits").iterdir()) == ["vit-image.npz", "vit-noise.npz"]
    assert not (folder / "results.json").exists()
    kept = files(folder / "fits")
    monkeypatch.setattr(untrained_study, "fit_network", really_fit)
    untrained.main(words)
    assert (folder / "results.json").exists()
    assert kept.items() <= files(folder / "fits").items()


@pytest.mark.slow
def test_a_study_of_other_settings_is_refused_and_overwritten_only_on_demand(study, tmp_path):
    folder = Path(shutil.copytree(study, tmp_path / "study"))
    (folder / "notes.txt").write_text("mine")
    before = files(folder)
    refused(r"--out: .* holds a study of other settings \(seed: 1 there, 2 here\)",
            "--out", folder, "--seed", 2)  # fmt: skip
    refused(r"sigma: 50.0 there, 25.0 here", "--out", folder, "--sigma", 25)
    assert files(folder) == before
    untrained.main(
        [*TINY_WORDS, "--out", str(folder), "--seed", "2", "--models", "vit", "--overwrite"]
    )
    results = json.loads((folder / "results.json").read_text())
    assert list(results["models"]) == ["vit"]
    assert results["settings"]["seed"] == 2
    assert not (folder / "fits" / "unet-image.npz").exists()
    assert (folder / "notes.txt").read_text() == "mine"


def test_two_studies_do_not_work_in_one_folder(tmp_path):
    out = tmp_path / "study"
    with locked(out / ".lock", 0, "free"):
        refused(r"--out: another process is working in .*study", "--out", out, *TINY_WORDS)
    assert files(out) == {".lock": b""}


def test_a_folder_that_is_no_study_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for words in ((), ("--overwrite",)):
        refused("holds files but no study.json", "--out", tmp_path, *words)
    refused("is a file, expected a folder", "--out", tmp_path / "thesis.txt")
    assert files(tmp_path) == {"thesis.txt": b"years of work"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--models", "unett"), "--models: given unett, allowed: img2img_mixer, unet, vit, orig"),
        (("--sigma", "-1"), "--sigma: given -1"),
        (("--sigma", "0"), "--sigma: given 0"),
        (("--sigma", "1000"), "--sigma: given 1000"),
        (("--sigma", ".nan"), "--sigma: given nan"),
        (("--iterations", "0"), "--iterations: given 0, allowed: 1 or more"),
        (("--lr", "0"), "--lr: given 0, allowed: more than 0"),
        (("--lr", ".nan"), "--lr: given nan"),
        (("--seed", "-1"), "--seed: given -1"),
        (("--size", "16"), "--size: given 16, allowed: multiples of 4 from 32 on"),
        (("--size", "50"), "--size: given 50, allowed: multiples of 4"),
        (("--size", "1000"), "camera: 512 x 512 pixels, smaller than --size 1000"),
        (("--image", "nowhere.png"), "nowhere.png"),
    ],
)
def test_bad_flags_are_named_and_nothing_is_written(tmp_path, words, says):
    refused(says, "--out", tmp_path / "study", *words)
    assert not (tmp_path / "study").exists()


def test_bad_pictures_are_named(tmp_path, photo):
    out = ("--out", tmp_path / "study")
    refused(
        r"photo.png: 40 x 40 pixels, smaller than --size 64", *out, "--image", photo, "--size", 64
    )
    Image.new("L", (40, 40), 128).save(photo)
    refused("photo.png: its centre is one flat grey", *out, "--image", photo)
    photo.write_bytes(photo.read_bytes()[:60])
    refused("photo.png", *out, "--image", photo)
    assert not (tmp_path / "study").exists()


def test_a_learning_rate_that_diverges_is_named():
    scene = make_scene(picture(), 50, seed=0)
    broken = make_scene(picture() * np.float32(np.inf), 50, seed=0)
    with pytest.raises(
        InputError, match=r"--lr: with 0.5 the fit of vit to image diverged at iter"
    ):
        fit_network("vit", "image", replace_image(scene, broken), replace(TINY, lr=0.5))


def replace_image(
    scene: untrained_study.Scene, other: untrained_study.Scene
) -> untrained_study.Scene:
    return untrained_study.Scene(other.image, scene.noise)


@pytest.mark.slow
def test_the_script_runs_from_start_to_table(tmp_path, photo, script):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = script("denoise_tasks/untrained.py", *TINY_WORDS, "--models", "vit", "--image", photo,
                  "--out", tmp_path / "study", env=environment)  # fmt: skip
    assert done.returncode == 0, done.stderr
    for word in ("ViT", "BM3D", "noisy", "17.3"):
        assert word in done.stdout
    wrong = script("denoise_tasks/untrained.py", "--image", tmp_path / "no.png", env=environment)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: ")
    assert wrong.stderr.count("\n") == 1
