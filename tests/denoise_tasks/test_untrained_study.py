"""The untrained study's fits: settings as published, curves, what is stored, and what decides it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from denoise_tasks.untrained import UntrainedConfig
from denoise_tasks.untrained_report import _psnr_axis
from denoise_tasks.untrained_study import (
    NETWORKS,
    TARGETS,
    Fit,
    Targets,
    first_input,
    first_network,
    fit_network,
    identity,
    load_fit,
    lr_of,
    make_targets,
    network_options,
    psnr_of,
    save_fit,
    shown_iterations,
    square_picture,
)
from img2img_recon.networks.zoo import build_model
from img2img_recon.support.errors import InputError

FULL = UntrainedConfig(size=256, iterations=1501)
TINY = UntrainedConfig(size=32, iterations=6, sigma=50, seed=3, short=True)


def picture(size: int = 32) -> np.ndarray:
    """A bright square on a ramp: structure that is no noise."""
    image = np.tile(np.linspace(0.1, 0.6, size), (size, 1)).astype(np.float32)
    image[size // 4 : size // 2, size // 4 : size // 2] = 1
    return image


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
    config = network_options(model, FULL)
    assert (config["in_chans"], config["out_chans"]) == (1, 1)
    with torch.device("meta"):
        network = build_model(NETWORKS[model].zoo_name, **config)
    assert sum(weight.numel() for weight in network.parameters()) == parameters


def test_published_noise_has_half_the_pictures_norm_and_is_not_clipped():
    targets = make_targets(picture(64), None, seed=1)
    ratio = np.linalg.norm(targets.noise) / np.linalg.norm(targets.image)
    assert ratio == pytest.approx(0.5, rel=1e-6)
    assert targets.noisy.min() < 0
    assert targets.noisy.max() > 1
    np.testing.assert_array_equal(targets.noisy, targets.image + targets.noise)


def test_sigma_is_in_grey_levels():
    targets = make_targets(picture(256), 51, seed=0)
    assert targets.noise_std == pytest.approx(0.2, rel=0.01)
    assert abs(targets.noise.mean()) < 0.002
    weaker = make_targets(picture(256), 25.5, seed=0)
    np.testing.assert_allclose(weaker.noise, targets.noise / 2, rtol=1e-6)
    assert np.abs(make_targets(picture(256), 51, seed=1).noise - targets.noise).max() > 0.1


def test_colour_becomes_luminance_as_pillow_makes_it():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    square = square_picture(pixels / np.float32(255), 32, "colour")
    assert np.abs(grey.max() * square - grey).max() <= 1


def test_a_large_picture_is_scaled_and_its_centre_cut_out():
    wide = np.zeros((64, 128), dtype=np.float32)
    wide[:, 48:80] = 0.5  # a bar in the middle, a quarter of the width
    square = square_picture(wide[..., None], 32, "wide")
    assert square.shape == (32, 32)
    assert square.dtype == np.float32
    assert square.max() == 1
    np.testing.assert_allclose(square, square[:, ::-1], atol=1e-6)
    assert square[:, 12:20].min() > 0.9
    assert square[:, :6].max() < 0.01


def test_a_picture_of_the_right_size_is_only_divided_by_its_maximum():
    exact = picture(32) * 0.7
    np.testing.assert_allclose(
        square_picture(exact[..., None], 32, "exact"), exact / exact.max(), rtol=1e-6
    )


@pytest.mark.parametrize("model", NETWORKS)
@pytest.mark.parametrize("target", TARGETS)
def test_curves_begin_with_the_untrained_network_and_record_before_each_step(model, target):
    """The first steps, taken again by hand with another formulation of the loss."""
    targets = make_targets(picture(), TINY.sigma, TINY.seed)
    fit = fit_network(model, target, targets, replace(TINY, iterations=3))
    network = first_network(model, TINY).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=lr_of(model, TINY))
    wanted = {
        "image": targets.image,
        "noise": targets.noise,
        "noisy": targets.image + targets.noise,
    }
    # The third step follows a halving: three iterations have one after each.
    for iteration in range(2):
        optimizer.param_groups[0]["lr"] = lr_of(model, TINY) * 0.5**iteration
        output = network(first_input(model, TINY))[0, 0]
        loss = ((output - torch.from_numpy(wanted[target])) ** 2).mean()
        assert fit.mse_target[iteration] == pytest.approx(loss.item(), rel=1e-4)
        reference = targets.noise if target == "noise" else targets.image
        error = np.mean((output.detach().numpy() - reference) ** 2)
        assert fit.mse_reference[iteration] == pytest.approx(error, rel=1e-4)
        np.testing.assert_allclose(fit.shown[iteration], output.detach(), rtol=1e-3, atol=1e-4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("model", ["vit", "unet"])
def test_the_best_iterate_is_the_one_at_the_maximum_of_the_curve(model):
    targets = make_targets(picture(), 50, seed=0)
    settings = replace(TINY, iterations=25, lr=0.02)
    fit = fit_network(model, "noisy", targets, settings)
    psnr = [psnr_of(float(error)) for error in fit.mse_reference]
    assert fit.best_psnr == max(psnr)
    assert fit.best_iteration == int(np.argmax(psnr))
    error = np.mean((fit.best.astype(np.float64) - targets.image) ** 2)
    assert -10 * np.log10(error) == pytest.approx(fit.best_psnr, abs=1e-3)
    assert fit.shown.shape == (len(shown_iterations(25)), 32, 32)
    assert fit.mse_target[-1] < fit.mse_target[0]


def test_psnr_has_a_data_range_of_one():
    assert psnr_of(0.01) == pytest.approx(20)
    assert np.isfinite(psnr_of(0.0))


def test_the_seed_decides_everything_and_leaves_the_global_state_alone():
    targets = make_targets(picture(), 50, seed=0)
    before = torch.random.get_rng_state()
    once = fit_network("vit", "noisy", targets, TINY)
    torch.rand(7)
    again = fit_network("vit", "noisy", targets, TINY)
    other = fit_network("vit", "noisy", targets, replace(TINY, seed=4))
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


def test_a_stored_fit_comes_back(tmp_path):
    targets = make_targets(picture(), 50, seed=0)
    fit = fit_network("vit", "noise", targets, replace(TINY, iterations=2))
    path = tmp_path / "fits" / "vit-noise.npz"
    assert load_fit(path) is None
    save_fit(path, fit)
    back = load_fit(path)
    assert isinstance(back, Fit)
    for name, value in fit._asdict().items():
        np.testing.assert_array_equal(getattr(back, name), value)
    assert type(back.parameters) is int
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="not a fit of this study"):
        load_fit(path)


def test_whatever_decides_a_fit_is_in_the_studys_identity(monkeypatch):
    targets = make_targets(picture(), 50, seed=0)
    brighter = make_targets(np.sqrt(picture()), 50, seed=0)
    contents = [identity(TINY, targets), identity(TINY, brighter)]
    changes = ({"size": 36}, {"iterations": 7}, {"sigma": 25.0}, {"lr": 0.1}, {"seed": 9})
    contents += [identity(replace(TINY, **change), targets) for change in changes]
    monkeypatch.setitem(NETWORKS, "vit", NETWORKS["vit"]._replace(short_lr=0.5))
    contents.append(identity(TINY, targets))
    assert len({json.dumps(content, sort_keys=True) for content in contents}) == len(contents)
    assert contents[0]["networks"]["unet"]["options"]["chans"] == 8


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


def test_a_learning_rate_that_diverges_is_named():
    targets = make_targets(picture(), 50, seed=0)
    broken = make_targets(picture() * np.float32(np.inf), 50, seed=0)
    unusable = Targets(broken.image, targets.noise)
    said = r"--lr: with 0.5 the fit of vit to image diverged at iter"
    with pytest.raises(InputError, match=said):
        fit_network("vit", "image", unusable, replace(TINY, lr=0.5))
