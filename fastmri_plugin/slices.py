"""Reconstruction of k-space arrays, slice by slice, with any model and what was measured of each slice."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np

from fastmri_plugin.kspace import check_finite
from img2img_recon.support.errors import InputError, named

# (kspace (coils, H, W), mask bool (W,) or (H, W), (h, w)) -> magnitude float32 (h, w)
SliceFunction = Callable[[np.ndarray, np.ndarray, tuple[int, int]], np.ndarray]

CLASSICAL = ("tv", "l1_wavelet", "zero_filled")
# The middle one of the candidates of `methods.Regularized`: a scan by itself has nothing to choose on.
REGULARIZATION = 3e-3
# A few samples of a measured column may be exactly zero.
WHOLE = 0.9


def measured_samples(kspace: np.ndarray) -> np.ndarray:
    """What was measured of a slice (coils, H, W), by its zeros.

    Returns:
        bool (W,) where columns were measured as a whole (but for rows that no column has), else (H, W).
    """
    pattern = (kspace != 0).any(axis=0)
    columns, rows = pattern.any(axis=0), pattern.any(axis=1)
    used = pattern[np.ix_(rows, columns)]
    gaps = has_gaps(rows)
    return columns if used.size == 0 or (used.mean() >= WHOLE and not gaps) else pattern


def has_gaps(used: np.ndarray) -> bool:
    """Whether something is missing between the first and the last of what was measured, bool (n,)."""
    where = np.flatnonzero(used)
    return len(where) > 0 and len(where) < where[-1] - where[0] + 1


def is_undersampled(measured: np.ndarray) -> bool:
    """Whether samples are missing between others; what is missing at the edges was never to be measured.

    Of single samples (H, W) that is a column between others, or more than a tenth of the rows, or of the samples of
    rows: corners may be cut, and a sample may be zero by chance.
    """
    if measured.ndim == 1:
        return has_gaps(measured)
    rows = measured.any(axis=1)
    lines = measured[rows]
    # How much lies between the first and the last of each row, and of the rows.
    extents = [np.ptp(np.flatnonzero(line)) + 1 for line in lines]
    extent = np.ptp(np.flatnonzero(rows)) + 1 if rows.any() else 0
    return bool(
        has_gaps(np.any(measured, axis=0))
        or lines.sum() < WHOLE * sum(extents)
        or rows.sum() < WHOLE * extent
    )


def slice_function(model: str) -> SliceFunction:
    """A model by name, run folder or file.

    Args:
        model: tv, l1_wavelet, zero_filled, or what `fastmri_plugin.shipped.find_network` takes.

    Raises:
        InputError: no such model.
    """
    from fastmri_plugin.methods import make_method

    if model not in CLASSICAL and not os.path.exists(model):
        from fastmri_plugin.shipped import shipped

        if model not in shipped():
            names = ", ".join((*CLASSICAL, *shipped()))
            raise InputError(
                f"--model: given {model}; allowed: {names}, a run folder, a checkpoint or .safetensors file"
            )
    with named("--model"):
        method = make_method(model)
    if method.chooses:
        method.settings = {"regularization": REGULARIZATION}
    return method.image


def default_model(num_coils: int, measured: np.ndarray) -> str:
    """The network of the package that fits the coils and the samples, else l1_wavelet.

    The network for one coil was trained on whole columns alone.
    """
    from fastmri_plugin.shipped import shipped

    several = num_coils > 1
    fitting = "mri-brain-multicoil" if several else "mri-brain-singlecoil"
    return fitting if (several or measured.ndim == 1) and fitting in shipped() else "l1_wavelet"


def reconstruct(
    kspace: np.ndarray, mask: np.ndarray | None = None, *, model: str | None = None
) -> np.ndarray:
    """Reconstruct k-space arrays.

    Args:
        kspace: complex, (coils, H, W) or (slices, coils, H, W), centred, columns phase-encoded, zero where
            nothing was measured; of one coil, coils = 1.
        mask: bool (W,), the measured columns, or (H, W), the samples; by default where k-space is not zero.
        model: tv, l1_wavelet, zero_filled, a network's name, run folder or file; by default `default_model`.

    Returns:
        Magnitudes, float32 (H, W) or (slices, H, W), in the units of the orthonormal inverse FFT
        (root-sum-of-squares over the coils).

    Raises:
        InputError: arrays of another kind or shape, or a model that does not fit.
    """
    kspace = np.asarray(kspace)
    if kspace.ndim not in (3, 4) or kspace.dtype.kind != "c" or 0 in kspace.shape:
        raise InputError(
            f"kspace is {kspace.dtype} of shape {kspace.shape}; expected complex (coils, H, W) or "
            "(slices, coils, H, W)"
        )
    if mask is not None:
        mask = np.asarray(mask).astype(bool)
        if mask.shape not in (kspace.shape[-1:], kspace.shape[-2:]):
            raise InputError(
                f"mask has shape {mask.shape}, expected {kspace.shape[-1:]} or {kspace.shape[-2:]}"
            )
    check_finite(kspace, "kspace")
    slices = kspace.reshape(-1, *kspace.shape[-3:]).astype(np.complex64, copy=False)
    masks = [measured_samples(coils) if mask is None else mask for coils in slices]
    function = slice_function(model or default_model(slices.shape[1], masks[len(masks) // 2]))
    size = (kspace.shape[-2], kspace.shape[-1])
    images = [function(k * used, used, size) for k, used in zip(slices, masks, strict=True)]
    return np.stack(images) if kspace.ndim == 4 else images[0]
