"""Synthetic camera noise: as strong as asked for, without a colour cast, smooth in colour, more of it in the light."""

from __future__ import annotations

import numpy as np
import pytest
from skimage import data as photographs
from skimage import img_as_float32

from denoise_tasks.camera_noise import Camera, camera_noise, random_camera
from img2img_recon import denoise
from img2img_recon.metrics import image_psnr

CLEAN = img_as_float32(photographs.chelsea())[:256, :256]
PLAIN = Camera(
    sigma=5 / 255,
    read_share=0.02,
    gains=np.array([2.0, 1.0, 1.6]),
    matrix=np.array([[1.6, -0.4, -0.2], [-0.2, 1.5, -0.3], [0.0, -0.5, 1.5]]),
    gamma=2.2,
    roll_off=0.0,
    phase=(0, 0),
    smoothing=(0.0, 0.0),
    jpeg_quality=None,
)


def noise(camera: Camera, clean: np.ndarray = CLEAN, seed: int = 0) -> np.ndarray:
    return camera_noise(clean, camera, np.random.default_rng(seed)) - clean


def correlation(values: np.ndarray) -> float:
    """Between horizontal neighbours."""
    return float(np.corrcoef(values[:, 1:].ravel(), values[:, :-1].ravel())[0, 1])


@pytest.mark.parametrize("sigma", [2, 5, 15])
def test_the_noise_is_as_strong_as_asked_for_and_has_no_cast(sigma: float) -> None:
    away_from_black_and_white = 0.3 + 0.4 * CLEAN
    found = 255 * noise(PLAIN._replace(sigma=sigma / 255), away_from_black_and_white)
    assert found.std() == pytest.approx(sigma, rel=0.06)
    assert np.abs(found.mean(axis=(0, 1))).max() < 0.2


def test_a_seed_gives_the_same_noise_again() -> None:
    camera = random_camera(np.random.default_rng(3))
    np.testing.assert_array_equal(noise(camera), noise(camera))
    assert not np.array_equal(noise(camera), noise(camera, seed=1))


def test_noise_through_a_mosaic_is_smooth_and_smoothing_makes_it_smoother() -> None:
    luminance, colour = [], []
    for smoothing in ((0.0, 0.0), (0.8, 2.0)):
        found = noise(PLAIN._replace(smoothing=smoothing))
        luminance.append(correlation(found.mean(axis=2)))
        colour.append(correlation(found[..., 0] - found[..., 1]))
    assert colour[0] > 0.3, "red is measured at every second pixel, the rest is filled in"
    assert luminance[1] > luminance[0] + 0.1
    assert colour[1] > 0.85


def test_shot_noise_grows_with_light_and_read_noise_does_not() -> None:
    """In linear values, gamma 1: shot noise has the variance of the light."""
    step = np.full((128, 256, 3), 0.2, np.float32)
    step[:, 128:] = 0.8
    linear = PLAIN._replace(gamma=1.0, matrix=np.eye(3))

    def ratio(read_share: float) -> float:
        found = noise(linear._replace(read_share=read_share), step)
        return float(found[:, 136:].std() / found[:, :120].std())

    assert ratio(1e-6) == pytest.approx(2, rel=0.1)
    assert ratio(1e3) == pytest.approx(1, rel=0.1)


def test_jpeg_leaves_less_noise_in_the_colours() -> None:
    exact, stored = (
        noise(PLAIN._replace(jpeg_quality=quality)) @ np.array([0.5, -0.419, -0.081])
        for quality in (None, 75)
    )
    assert stored.std() < 0.8 * exact.std()


def test_random_cameras_give_pictures_of_eight_bits() -> None:
    for seed in range(8):
        camera = random_camera(np.random.default_rng(seed))
        picture = camera_noise(CLEAN[:32, :48], camera, np.random.default_rng(seed))
        assert picture.shape == (32, 48, 3)
        assert picture.dtype == np.float32
        np.testing.assert_allclose(255 * picture, np.round(255 * picture), atol=1e-3)
        np.testing.assert_allclose(camera.matrix.sum(axis=1), 1)


@pytest.mark.parametrize(("sigma", "gain"), [(4, 0.5), (8, 1), (16, 2)])
def test_the_package_s_network_takes_it_out_whatever_its_level(sigma: float, gain: float) -> None:
    """Of a camera and a picture that no training saw."""
    clean = 0.2 + 0.6 * CLEAN[40:168, 80:208]  # what is clipped at black moves the mean
    camera = PLAIN._replace(sigma=sigma / 255, smoothing=(0.5, 1.5), jpeg_quality=90)
    noisy = camera_noise(clean, camera, np.random.default_rng(0))
    found = denoise(noisy, model="denoise-camera", device="cpu")
    before, after = (image_psnr(clean, image, data_range=1) for image in (noisy, found))
    assert after > before + gain
    assert np.abs((found - noisy).mean(axis=(0, 1))).max() < 1 / 255
    np.testing.assert_array_equal(
        found, denoise(noisy, 0.2, model="denoise-camera", device="cpu")
    )  # a level means nothing to it
