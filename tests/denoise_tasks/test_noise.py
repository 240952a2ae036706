"""Noise of known strength, and the two protocols."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage import data as photographs
from skimage.metrics import peak_signal_noise_ratio

from denoise_tasks import noise
from denoise_tasks.noise import oracle_sigma
from img2img_recon.support.errors import InputError
from tests.denoise_tasks.conftest import SIGMA, with_noise


@pytest.mark.parametrize("sigma", [15, 30, 50])
def test_noise_has_the_stated_strength_and_comes_back(sigma):
    clean = np.full((300, 300, 3), 0.5, np.float32)
    noisy = noise.noisy_copy(clean, sigma, "standard")
    assert noisy.dtype == np.float32
    assert np.std(noisy - clean) * 255 == pytest.approx(sigma, rel=0.01)
    assert abs(np.mean(noisy - clean)) * 255 < 0.02 * sigma
    np.testing.assert_array_equal(noisy, noise.noisy_copy(clean, sigma, "standard"))


def test_the_standard_protocol_is_numpys_generator_seeded_with_zero_for_every_image():
    clean = photographs.chelsea()[:60, :60].astype(np.float32) / 255
    np.random.seed(0)  # noqa: NPY002 - as the quoted figures were made
    expected = clean + np.random.normal(0, 25 / 255, clean.shape)  # noqa: NPY002
    for name in ("one", "other"):
        seed = noise.noise_seed("standard", name)
        noisy = noise.noisy_copy(noise.prepare_clean(clean, "standard"), 25, "standard", seed)
        np.testing.assert_allclose(noisy, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("protocol", "low", "high"), [("standard", 18.5, 18.7), ("paper", 18.8, 19.6)]
)
def test_protocols_give_the_stated_noisy_psnr(protocol, low, high):
    values = []
    for picture in (photographs.astronaut(), photographs.coffee(), photographs.chelsea()):
        clean = noise.prepare_clean(picture.astype(np.float32) / 255, protocol)
        noisy = noise.noisy_copy(clean, 30, protocol, seed=1)
        values.append(peak_signal_noise_ratio(clean, noisy, data_range=1))
    assert low < np.mean(values) < high


def test_the_paper_protocol_crops_divides_and_clips():
    picture = np.zeros((300, 280, 3), np.float32)
    picture[22:278, 12:268] = 0.25
    clean = noise.prepare_clean(picture, "paper")
    assert clean.shape == (256, 256, 3)
    assert clean.min() == clean.max() == 1
    noisy = noise.noisy_copy(clean, 30, "paper")
    assert noisy.min() >= 0
    assert noisy.max() == 1
    with pytest.raises(InputError, match="all-black"):
        noise.prepare_clean(np.zeros((20, 20, 3), np.float32), "paper")


def test_the_standard_protocol_scores_8_bits():
    values = np.array([[[-0.2], [0.4999 / 255], [0.5001 / 255], [1.7]]], np.float32)
    np.testing.assert_allclose(
        noise.clip_and_round(values, "standard").ravel() * 255, [0, 0, 1, 255]
    )
    np.testing.assert_allclose(noise.clip_and_round(values, "pairs").ravel() * 255, [0, 0, 1, 255])
    np.testing.assert_allclose(
        noise.clip_and_round(values, "paper").ravel() * 255, [0, 0.4999, 0.5001, 255], rtol=1e-5
    )


def test_tensors_are_clipped_and_rounded_as_arrays_are():
    values = np.random.default_rng(0).normal(0.5, 0.6, (9, 50, 3)).astype(np.float32)
    for protocol in ("standard", "paper"):
        tensor = noise.clip_and_round(torch.from_numpy(values), protocol)
        np.testing.assert_array_equal(tensor.numpy(), noise.clip_and_round(values, protocol))


def test_oracle_sigma_is_the_spread_of_the_difference(colour):
    noisy = with_noise(colour)
    assert oracle_sigma(noisy, colour) == pytest.approx(np.std(noisy - colour), rel=1e-5)
    assert oracle_sigma(noisy, colour) == pytest.approx(SIGMA, rel=0.02)
    with pytest.raises(InputError, match=r"\(96, 96\)"):
        oracle_sigma(noisy, colour[..., 0])
    with pytest.raises(InputError, match="no noise"):
        oracle_sigma(colour, colour)
