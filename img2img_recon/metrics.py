"""Scores with an explicit data range: of volumes those of `fastmri.evaluate`, of photographs PSNR and SSIM.

Volumes are (slices, H, W), real; photographs (H, W, C). `data_range` is always an argument: fastMRI's convention is the
maximum of the target volume, and the caller says so with `data_range=target.max()`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from img2img_recon.support.errors import InputError

Volume = NDArray[np.floating]


def _check_volumes(target: Volume, prediction: Volume) -> None:
    for name, volume in (("target", target), ("prediction", prediction)):
        if volume.ndim != 3 or volume.size == 0:
            raise InputError(f"{name} has shape {volume.shape}; (slices, height, width) is needed")
        if np.iscomplexobj(volume):
            raise InputError(f"{name} is complex; its magnitude is needed")
    if target.shape != prediction.shape:
        raise InputError(
            f"target has shape {target.shape} and prediction {prediction.shape}; "
            "they must be the same"
        )


def _check_range(data_range: float) -> None:
    if not (math.isfinite(data_range) and data_range > 0):
        raise InputError(f"data_range is {data_range}; it must be positive and finite")


def nmse(target: Volume, prediction: Volume) -> float:
    """Normalised mean squared error, ||target - prediction||^2 / ||target||^2; 0 is perfect.

    Raises:
        InputError: the volumes do not fit together, or the target is all zeros.

    """
    _check_volumes(target, prediction)
    # float64, because the squares of fastMRI's intensities (1e-6 and less) are tiny.
    reference = target.astype(np.float64)
    energy = float(np.sum(reference**2))
    if energy == 0:
        raise InputError("target is all zeros; its NMSE is not defined")
    return float(np.sum((reference - prediction) ** 2)) / energy


def psnr(target: Volume, prediction: Volume, *, data_range: float) -> float:
    """Peak signal-to-noise ratio of the whole volume in dB.

    10 log10(data_range^2 / mean squared error); infinite for equal volumes.

    Raises:
        InputError: the volumes do not fit together, or `data_range` is not positive.

    """
    _check_volumes(target, prediction)
    _check_range(data_range)
    error = float(np.mean((target.astype(np.float64) - prediction) ** 2))
    return 10 * math.log10(float(data_range) ** 2 / error) if error else math.inf


def ssim(target: Volume, prediction: Volume, *, data_range: float) -> float:
    """Structural similarity, 7 x 7 uniform window, averaged over slices; 1 is perfect.

    Raises:
        InputError: the volumes do not fit together, a side is below 7, or `data_range` is not
            positive.

    """
    from skimage.metrics import structural_similarity

    _check_volumes(target, prediction)
    _check_range(data_range)
    if min(target.shape[1:]) < 7:
        raise InputError(f"target has shape {target.shape}; SSIM needs slices of at least 7 x 7")
    # Divided by the range, so that float32 squares of tiny intensities do not vanish.
    reference = target.astype(np.float64) / data_range
    estimate = prediction.astype(np.float64) / data_range
    values = [
        structural_similarity(one, other, win_size=7, data_range=1.0)
        for one, other in zip(reference, estimate, strict=True)
    ]
    return float(np.mean(values))


def volume_scores(target: Volume, prediction: Volume, *, data_range: float) -> dict[str, float]:
    """`nmse`, `psnr` and `ssim` of one volume.

    Args:
        target: the reference, (slices, H, W).
        prediction: the reconstruction, same shape and units.
        data_range: span of the values; fastMRI takes `target.max()`.

    """
    return {
        "nmse": nmse(target, prediction),
        "psnr": psnr(target, prediction, data_range=data_range),
        "ssim": ssim(target, prediction, data_range=data_range),
    }


def image_psnr(clean: Volume, estimate: Volume, *, data_range: float) -> float:
    """Peak signal-to-noise ratio of one image over all of its channels, in dB.

    Args:
        clean: the reference, (H, W, C).
        estimate: same shape and units.
        data_range: span of the values.

    Raises:
        InputError: the images do not fit together, or `data_range` is not positive.
    """
    return psnr(clean, estimate, data_range=data_range)


def image_ssim(clean: Volume, estimate: Volume, *, data_range: float) -> float:
    """Structural similarity of one image as Wang et al. (2004) define it, averaged over channels.

    scikit-image with `gaussian_weights=True, sigma=1.5, use_sample_covariance=False`: an 11 x 11 Gaussian
    window.

    Args:
        clean: the reference, (H, W, C).
        estimate: same shape and units.
        data_range: span of the values.

    Raises:
        InputError: the images do not fit together, a side is below 11, or `data_range` is not positive.
    """
    from skimage.metrics import structural_similarity

    _check_volumes(clean, estimate)
    _check_range(data_range)
    if min(clean.shape[:2]) < 11:
        raise InputError(f"the image has shape {clean.shape}; SSIM needs at least 11 x 11")
    return float(
        structural_similarity(
            clean.astype(np.float64),
            estimate.astype(np.float64),
            data_range=data_range,
            channel_axis=-1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def image_scores(clean: Volume, estimate: Volume, *, data_range: float) -> dict[str, float]:
    """`psnr` and `ssim` of one image (H, W, C); see `image_psnr` and `image_ssim`."""
    return {
        "psnr": image_psnr(clean, estimate, data_range=data_range),
        "ssim": image_ssim(clean, estimate, data_range=data_range),
    }
