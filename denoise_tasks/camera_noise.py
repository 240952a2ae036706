"""Synthetic noise of a camera: shot and read noise through mosaic, colour matrix, tone curve, smoothing and JPEG."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from denoise_tasks.pixel_store import LUMINANCE

# Kernels that fill a mosaic bilinearly, for green and for red and blue.
GREEN_KERNEL = np.array([[0, 1, 0], [1, 4, 1], [0, 1, 0]]) / 4
RED_BLUE_KERNEL = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 4
# Keeps the slope of a power law finite at black.
BLACK = 0.005


class Camera(NamedTuple):
    """How one picture was taken and developed.

    Attributes:
        sigma: standard deviation of the developed noise over the picture, in [0, 1].
        read_share: variance of a black pixel as a share of a white one's, in the raw values.
        gains: white balance of red, green and blue.
        matrix: (3, 3), from the sensor's colours to those of the picture; rows add up to 1.
        gamma: of the tone curve.
        roll_off: by how much of itself the slope of the tone curve falls up to white, in [0, 1].
        phase: rows and columns by which the mosaic RGGB is shifted.
        smoothing: standard deviations, in pixels, of what the camera smooths luminance and colour with.
        jpeg_quality: of the file; None for no compression.
    """

    sigma: float
    read_share: float
    gains: NDArray[np.float64]
    matrix: NDArray[np.float64]
    gamma: float
    roll_off: float
    phase: tuple[int, int]
    smoothing: tuple[float, float]
    jpeg_quality: int | None


def random_camera(rng: np.random.Generator) -> Camera:
    """A camera with settings drawn from wide ranges: compact to full frame, base to highest ISO."""
    mixed = rng.uniform(0, 0.4, (3, 3))
    matrix = -mixed * (1 - np.eye(3))
    matrix += np.diag(1 - matrix.sum(axis=1))
    return Camera(
        sigma=float(np.exp(rng.uniform(np.log(1), np.log(20)))) / 255,
        read_share=float(np.exp(rng.uniform(np.log(0.002), np.log(0.2)))),
        gains=np.array([rng.uniform(1.2, 2.6), 1, rng.uniform(1.2, 2.6)]),
        matrix=matrix,
        gamma=float(rng.uniform(1.8, 2.6)),
        roll_off=float(rng.uniform(0, 0.8)),
        phase=(int(rng.integers(2)), int(rng.integers(2))),
        smoothing=(float(rng.uniform(0, 1.1)), float(rng.uniform(0, 3.5))),
        jpeg_quality=int(rng.integers(70, 100)) if rng.random() < 0.7 else None,
    )


def camera_noise(
    clean: NDArray[np.floating], camera: Camera, rng: np.random.Generator
) -> NDArray[np.float32]:
    """A picture as the camera would have taken it.

    The noise alone goes through the camera, to first order (the tone curve by its slope), so that the
    clean picture is the mean of many shots, as the clean pictures of PolyU and SIDD are. Raw values have
    Poisson-Gaussian noise (Foi et al., IEEE Trans. Image Processing 17:1737, 2008); the mosaic is filled
    bilinearly.

    Args:
        clean: (H, W, 3) in [0, 1], H and W at least 2.
        camera: see `random_camera`.
        rng: draws the noise.

    Returns:
        float32 (H, W, 3) of 8-bit values in [0, 1].
    """
    from scipy.ndimage import gaussian_filter

    linear = clean**camera.gamma
    raw = np.clip(linear @ np.linalg.inv(camera.matrix).T, 0, 1) / camera.gains
    noise = _through_mosaic(np.sqrt(raw + camera.read_share), camera.phase, rng)
    noise = (noise * camera.gains) @ camera.matrix.T
    noise *= (linear + BLACK) ** (1 / camera.gamma - 1) * (1 - camera.roll_off * clean**2)
    luminance = (noise @ LUMINANCE)[..., None]
    of_luminance, of_colour = camera.smoothing
    noise = gaussian_filter(luminance, (of_luminance, of_luminance, 0)) + gaussian_filter(
        noise - luminance, (of_colour, of_colour, 0)
    )
    noise -= noise.mean(axis=(0, 1))
    noisy = np.clip(clean + noise * (camera.sigma / noise.std()), 0, 1)
    pixels = (255 * noisy).round().astype(np.uint8)
    if camera.jpeg_quality is not None:
        pixels = _through_jpeg(pixels, camera.jpeg_quality)
    return pixels.astype(np.float32) / 255


def _through_mosaic(
    deviation: NDArray[np.floating], phase: tuple[int, int], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Noise of the given deviation (H, W, 3), measured in one colour per pixel and filled in."""
    from scipy.ndimage import convolve

    height, width = deviation.shape[:2]
    rows = (np.arange(height) + phase[0])[:, None] % 2
    columns = (np.arange(width) + phase[1]) % 2
    measured = rng.normal(size=(height, width))
    planes = []
    for channel, kernel in enumerate((RED_BLUE_KERNEL, GREEN_KERNEL, RED_BLUE_KERNEL)):
        there = rows + columns == channel
        # "mirror" keeps the mosaic's colours in their places beyond the border.
        planes.append(convolve(measured * deviation[..., channel] * there, kernel, mode="mirror"))
    return np.stack(planes, axis=2)


def _through_jpeg(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    from PIL import Image

    file = io.BytesIO()
    # The colours at half resolution, as cameras store them.
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return np.asarray(Image.open(file))
