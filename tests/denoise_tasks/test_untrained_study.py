"""What the untrained study fits: networks as published, targets, and what decides it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from denoise_tasks.untrained import UntrainedConfig
from denoise_tasks.untrained_study import (
    NETWORKS,
    identity,
    make_targets,
    network_options,
    psnr_of,
    square_picture,
)
from img2img_recon.networks.zoo import build_model

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


def test_psnr_has_a_data_range_of_one():
    assert psnr_of(0.01) == pytest.approx(20)
    assert np.isfinite(psnr_of(0.0))


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
