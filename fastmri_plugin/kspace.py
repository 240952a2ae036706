"""K-space and images as arrays: the centred FFT, crop, coil combination, the zero-filled reconstruction.

The centred orthonormal FFT is fastMRI's: image[r] = sum_k kspace[k] exp(2 pi i (k - K//2)(r - R//2) / K) / sqrt(K),
along both axes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.fft

from img2img_recon.support.errors import InputError

IMAGE_AXES = (-2, -1)
# A damaged file must not ask for all of the memory.
MAX_SLICE_BYTES = 4 << 30
# Fields of the real and the imaginary part, as MATLAB, Octave and C programs name them.
COMPOUNDS = (("real", "imag"), ("re", "im"), ("r", "i"))


def complex_fields(dtype: np.dtype) -> tuple[str, str] | None:
    """The fields of the real and the imaginary part where a compound type holds complex numbers, else None.

    Raises:
        InputError: fields of these names that are not of one numeric type, packed. (The HDF5 library aborts
            the program on the fields that a damaged header makes up.)
    """
    fields = next((pair for pair in COMPOUNDS if dtype.names == pair), None)
    if fields is not None:
        one = dtype[0]
        if one.kind not in "fiu" or dtype != np.dtype([(name, one) for name in fields]):
            raise InputError(f"holds {dtype}, expected {' and '.join(fields)} of one numeric type")
    return fields


def as_complex(values: np.ndarray) -> np.ndarray:
    """Complex numbers, or compounds of them, as complex numbers; at least single precision."""
    fields = complex_fields(values.dtype)
    if fields is None:
        return values
    real, imaginary = (values[name] for name in fields)
    result = np.empty(values.shape, np.result_type(real.dtype, np.complex64))
    result.real, result.imag = real, imaginary
    return result


def check_finite(values: np.ndarray, what: str) -> None:
    """See that all numbers of an array are finite: one that is not shows in their sum, in double precision.

    Raises:
        InputError: WHAT holds NaN or infinite values.
    """
    with np.errstate(invalid="ignore"):
        total = values.sum(dtype=np.result_type(values.dtype, np.float64))
    if not np.isfinite(total):
        raise InputError(f"{what} holds NaN or infinite values")


def centred_fft(image: np.ndarray, axes: Sequence[int] = IMAGE_AXES) -> np.ndarray:
    """Images to k-space along `axes`, same shape; single precision stays single."""
    return _centred(scipy.fft.fft, image, axes)


def centred_ifft(kspace: np.ndarray, axes: Sequence[int] = IMAGE_AXES) -> np.ndarray:
    """K-space to images along `axes`, the inverse of `centred_fft`."""
    return _centred(scipy.fft.ifft, kspace, axes)


def _centred(
    transform: Callable[..., np.ndarray], data: np.ndarray, axes: Sequence[int]
) -> np.ndarray:
    data = np.fft.ifftshift(data, axes=axes)
    for axis in reversed(axes):
        data = transform(data, axis=axis, norm="ortho")
    return np.fft.fftshift(data, axes=axes)


def center_crop(image: Any, size: Sequence[int]) -> Any:
    """The centre (h, w) of an array's or a tensor's last axes, at fastMRI's offsets (H - h) // 2 and (W - w) // 2.

    Raises:
        ValueError: the image is smaller than that.
    """
    _check_crop(image.shape, size)
    height, width = image.shape[-2:]
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return image[..., top : top + size[0], left : left + size[1]]


def crop_size(wanted: tuple[int, int], kspace_shape: Sequence[int]) -> tuple[int, int]:
    """(H, W) to crop to: `wanted`, or W x W for a k-space narrower than that (as fastMRI crops)."""
    width = kspace_shape[-1]
    return (width, width) if width < wanted[1] else (wanted[0], wanted[1])


def rss(image: np.ndarray) -> np.ndarray:
    """Magnitude (H, W) of an image (H, W), root-sum-of-squares over the coils of (coils, H, W)."""
    if image.ndim == 2:
        return np.abs(image)
    return np.sqrt((np.abs(image) ** 2).sum(axis=0))


def zero_filled(kspace: np.ndarray, mask: np.ndarray | None, size: tuple[int, int]) -> np.ndarray:
    """The zero-filled reconstruction: |centre of the inverse FFT of the masked k-space|, coils combined.

    Only the sampled columns are transformed along the read-out, and only the rows that the crop keeps
    along the phase encoding: the same numbers in a third of the operations. A shift of an FFT's input
    only turns the phase of its output, so the input stays where it is; the shift of the output is
    taken up by the crop.

    Args:
        kspace: complex, (H, W) or (coils, H, W).
        mask: bool (W,), the columns to use; None uses all.
        size: (h, w) of the centre to keep, at most (H, W).

    Returns:
        real, (h, w), in the precision and the intensity units of the k-space.

    Raises:
        ValueError: the k-space is smaller than the crop.
    """
    _check_crop(kspace.shape, size)
    height, width = kspace.shape[-2:]
    columns = slice(None) if mask is None else np.flatnonzero(mask)
    sampled = np.ascontiguousarray(np.moveaxis(kspace, -1, -2)[..., columns, :])
    along_readout = scipy.fft.ifft(sampled, norm="ortho")
    hybrid = np.zeros((*kspace.shape[:-2], size[0], width), dtype=along_readout.dtype)
    for to, origin in _wrapped((height - size[0]) // 2, size[0], height):
        hybrid[..., to, columns] = np.moveaxis(along_readout[..., origin], -1, -2)
    image = scipy.fft.ifft(hybrid, norm="ortho")
    magnitude = np.empty((*kspace.shape[:-2], *size), dtype=image.real.dtype)
    for to, origin in _wrapped((width - size[1]) // 2, size[1], width):
        np.abs(image[..., origin], out=magnitude[..., to])
    return rss(magnitude)


def crop_readout(kspace: np.ndarray, columns: np.ndarray, height: int) -> np.ndarray:
    """Columns of the k-space of the image's centre `height` rows.

    Every sample of a column is measured or none, so that cutting the image's rows, which the read-out
    over-samples, loses nothing of the others.

    Args:
        kspace: complex (..., H, W).
        columns: bool (W,), the n columns to use.
        height: h, at most H.

    Returns:
        complex (..., h, n), in the k-space's units.
    """
    sampled = np.take(kspace, np.flatnonzero(columns), axis=-1)
    if height == kspace.shape[-2]:
        return sampled
    image = center_crop(centred_ifft(sampled, (-2,)), (height, sampled.shape[-1]))
    return centred_fft(image, (-2,))


def _check_crop(shape: Sequence[int], size: Sequence[int]) -> None:
    if size[0] > shape[-2] or size[1] > shape[-1]:
        raise ValueError(f"cannot crop {shape[-2]} x {shape[-1]} to {size[0]} x {size[1]}")


def _wrapped(start: int, length: int, size: int) -> list[tuple[slice, slice]]:
    """(to, from) slices that copy entries start..start+length of a centred axis from an FFT's own order."""
    first = (start - size // 2) % size
    before = min(length, size - first)
    return [
        (slice(0, before), slice(first, first + before)),
        (slice(before, length), slice(0, length - before)),
    ]


def target_of(kspace: np.ndarray, recon_size: tuple[int, int]) -> np.ndarray:
    """Reconstruct fully sampled k-space as fastMRI's targets are.

    Args:
        kspace: complex, (slices, H, W) or (slices, coils, H, W).
        recon_size: (h, w) to crop to; W x W where the k-space is narrower than w.

    Returns:
        float32, (slices, h, w): the magnitude, or the root-sum-of-squares over the coils.
    """
    size = crop_size(recon_size, kspace.shape)
    return np.stack([zero_filled(measured, None, size) for measured in kspace]).astype(np.float32)
