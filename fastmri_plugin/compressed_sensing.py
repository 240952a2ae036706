"""Reconstruction of one slice by compressed sensing: total variation and wavelets, through sigpy.

Both minimise, over the complex image x (h, W),

    tv:          1/2 || M F S x - y / s ||^2 + regularization * || G x ||_1
    l1_wavelet:  1/2 || M F S x - y / s ||^2 + regularization * || Psi x ||_1

where y is the measured k-space, M the columns' mask, F the centred orthonormal FFT, S the coil maps
(1 for a single coil), G the finite differences, Psi Daubechies-4 wavelets, and s the maximum of the
zero-filled magnitude, which makes the regularization free of units. The read-out is fully sampled, so
that its over-sampled rows are cut off in the image domain before the iterations: the same problem with
half the rows, and noise that is still white.

Solvers and maps are sigpy's: `TotalVariationRecon` (primal-dual hybrid gradient), `L1WaveletRecon`
(FISTA) and `EspiritCalib` (Uecker et al., MRM 71:990, 2014). For TV and wavelets in MRI see Block
et al., MRM 57:1086, 2007, and Lustig et al., MRM 58:1182, 2007.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import sigpy
from sigpy.linop import Linop
from sigpy.mri.app import EspiritCalib, L1WaveletRecon, TotalVariationRecon
from sigpy.mri.linop import Sense

from fastmri_plugin.kspace import center_crop, check_finite, rss

Regularizer = Literal["tv", "l1_wavelet"]

# A compromise with the time: the regularization chosen goes with these numbers, so that stopping early
# counts as part of the method.
NUM_ITERATIONS: dict[str, int] = {"tv": 100, "l1_wavelet": 40}

# sigma tau (|M F S|^2 + |G|^2) <= sigma tau (1 + 8) = 1 is what the primal-dual method needs. The
# dual variable of G lives in a ball of the regularization's radius, far below the image's 1, hence long
# primal and short dual steps: with sigma = 1, more than ten times the iterations reach the same objective.
TV_SIGMA = 1 / 32
TV_TAU = 1 / (9 * TV_SIGMA)

# The cost of the maps grows with the square of the coils; a few combinations of them hold nearly all
# the signal (Buehrer et al., MRM 57:1131, 2007).
MAX_VIRTUAL_COILS = 8
CALIBRATION_WIDTH = 24
KERNEL_WIDTH = 6
# Below this, a square calibration region holds too few kernels to tell signal from noise.
MIN_ESPIRIT_WIDTH = 8


@dataclass(frozen=True)
class SliceProblem:
    """One slice, read-out cropped, coils compressed, scaled: what the solvers start from.

    Attributes:
        kspace: complex64 (coils, h, W), zero where not sampled, divided by `scale`.
        sampled: float32 (h, W), 1 where measured.
        maps: complex64 (coils, h, W), with unit root-sum-of-squares wherever they are not zero.
        scale: intensity of the zero-filled maximum; 0 for a slice without signal.
        size: (h, w) of the image to return.
    """

    kspace: np.ndarray
    sampled: np.ndarray
    maps: np.ndarray
    scale: float
    size: tuple[int, int]


def prepare_slice(
    kspace: np.ndarray, mask: np.ndarray | None, size: tuple[int, int]
) -> SliceProblem:
    """Mask, cut the read-out to the image's rows, compress and calibrate the coils, scale.

    Args:
        kspace: complex, (H, W) or (coils, H, W).
        mask: bool (W,), the columns to use, or (H, W), the samples; None uses all.
        size: (h, w) of the image, at most (H, W).

    Raises:
        InputError: k-space that is not finite, or whose image leaves single precision.
    """
    height, width = kspace.shape[-2:]
    # Columns in the mask that were never acquired hold zeros and count as measured: fastMRI's
    # targets are made from the zero-padded k-space too.
    columns = np.ones(width, dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
    measured = kspace.reshape(-1, height, width).astype(np.complex64, copy=False) * columns
    if columns.ndim == 1:
        # Along the read-out only; the crop has fastMRI's offsets, so that the image lands on the
        # target's pixels.
        hybrid = center_crop(sigpy.ifft(measured, axes=(-2,)), (size[0], width))
        measured = sigpy.fft(hybrid, axes=(-2,)).astype(np.complex64, copy=False)
    zero_filled = center_crop(rss(sigpy.ifft(measured, axes=(-2, -1))), size)
    # One bad sample spreads over the whole image.
    check_finite(zero_filled, "the k-space")
    scale = float(zero_filled.max())
    sampled = np.broadcast_to(columns, measured.shape[1:]).astype(np.float32)
    if scale == 0:
        return SliceProblem(measured, sampled, np.ones_like(measured), scale, size)
    measured = compress_coils(measured / np.float32(scale), MAX_VIRTUAL_COILS)
    return SliceProblem(measured, sampled, coil_maps(measured, columns), scale, size)


def compress_coils(kspace: np.ndarray, num_coils: int) -> np.ndarray:
    """Combine (coils, h, W) into the `num_coils` coils of the most energy, strongest first."""
    if len(kspace) == 1:
        return kspace
    flat = kspace.reshape(len(kspace), -1)
    _, vectors = np.linalg.eigh(flat @ flat.conj().T)
    strongest = vectors[:, ::-1][:, :num_coils]
    return (
        (strongest.conj().T @ flat).reshape(-1, *kspace.shape[1:]).astype(np.complex64, copy=False)
    )


def calibration_width(sampled: np.ndarray) -> int:
    """Side of the widest window around the centre within which all of (W,) or (H, W) is sampled."""
    width = 0
    while width < min(sampled.shape):
        starts = [size // 2 - (width + 1) // 2 for size in sampled.shape]
        if not sampled[tuple(slice(start, start + width + 1) for start in starts)].all():
            break
        width += 1
    return width


def coil_maps(kspace: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Sensitivity maps from the centre columns, complex64 (coils, h, W), unit root-sum-of-squares.

    ESPIRiT where the fully sampled centre is wide enough; below that (8-fold acceleration of few
    columns) the smooth low-resolution coil images over their root-sum-of-squares. No map is cut off
    by its eigenvalue: fastMRI's targets show the background's noise too.

    Args:
        kspace: complex64 (coils, h, W), zero where not sampled.
        columns: bool (W,), the sampled columns, or (h, W), the samples.
    """
    if len(kspace) == 1:
        return np.ones_like(kspace)
    width = min(calibration_width(columns), CALIBRATION_WIDTH, kspace.shape[-2])
    if width >= MIN_ESPIRIT_WIDTH:
        maps = EspiritCalib(
            kspace,
            calib_width=width,
            kernel_width=min(KERNEL_WIDTH, width // 2),
            crop=0,
            max_iter=30,
            show_pbar=False,
        ).run()
        return np.nan_to_num(maps).astype(np.complex64, copy=False)
    # A window that is zero just outside the sampled centre keeps the low-resolution images from
    # ringing.
    window = np.hanning(max(width, 1) + 2)[1:-1]
    centre = sigpy.resize(np.outer(window, window), kspace.shape[1:])
    images = sigpy.ifft(kspace * centre.astype(np.float32), axes=(-2, -1))
    magnitude = rss(images)
    return (images / np.maximum(magnitude, np.finfo(np.float32).tiny)).astype(np.complex64)


def sense_operator(problem: SliceProblem) -> Linop:
    """M F S as sigpy's linear operator, image (h, W) to k-space (coils, h, W)."""
    return Sense(problem.maps, weights=problem.sampled)


def solve(
    problem: SliceProblem, method: Regularizer, regularization: float, num_iter: int | None = None
) -> np.ndarray:
    """Minimise the method's objective (see the module).

    Args:
        problem: the prepared slice.
        method: "tv" or "l1_wavelet".
        regularization: relative to a zero-filled maximum of 1.
        num_iter: iterations; the method's usual number by default.

    Returns:
        complex64 (h, W), as the maps; times them and `scale` it is the coils' images.
    """
    if problem.scale == 0:
        return np.zeros(problem.maps.shape[1:], dtype=np.complex64)
    # The operator's norm is at most 1, so all step sizes are known. sigpy would estimate them by a
    # power iteration from a random start: slower, and another result on every call.
    steps = {"sigma": TV_SIGMA, "tau": TV_TAU} if method == "tv" else {"alpha": 1}
    app = {"tv": TotalVariationRecon, "l1_wavelet": L1WaveletRecon}[method]
    recon = app(
        problem.kspace,
        problem.maps,
        regularization,
        weights=problem.sampled,
        x=sense_operator(problem).H(problem.kspace),
        max_iter=NUM_ITERATIONS[method] if num_iter is None else num_iter,
        show_pbar=False,
        **steps,
    )
    return recon.run()


def reconstruct_slice(
    kspace: np.ndarray,
    mask: np.ndarray | None,
    size: tuple[int, int],
    method: Regularizer,
    regularizations: Sequence[float],
    num_iter: int | None = None,
) -> np.ndarray:
    """Reconstruct one slice under several regularizations; the coil maps are made once.

    Args:
        kspace: complex, (H, W) or (coils, H, W).
        mask: bool (W,), the columns to use, or (H, W), the samples; None uses all.
        size: (h, w) of the image, at most (H, W).
        method: "tv" or "l1_wavelet".
        regularizations: each relative to a zero-filled maximum of 1.
        num_iter: iterations; the method's usual number by default.

    Returns:
        Magnitudes, float32 (regularizations, h, w), in the intensity units of the k-space's orthonormal
        inverse FFT (root-sum-of-squares for many coils).

    Raises:
        InputError: as `prepare_slice`.
    """
    problem = prepare_slice(kspace, mask, size)
    images = (solve(problem, method, value, num_iter) for value in regularizations)
    cropped = [center_crop(abs(image) * problem.scale, problem.size) for image in images]
    return np.stack(cropped).astype(np.float32)
