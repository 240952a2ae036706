"""Scores with an explicit data range: of batches (differentiable), of volumes as `fastmri.evaluate`, of photographs.

Batches are tensors (B, C, H, W); volumes (slices, H, W), real; photographs (H, W, C). `data_range` is always an
argument: fastMRI's convention is the maximum of the target volume, and the caller says so: `data_range=target.max()`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

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


def volume_ssim(target: Volume, prediction: Volume, *, data_range: float) -> float:
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
    """`nmse`, `psnr` and `volume_ssim` of one volume.

    Args:
        target: the reference, (slices, H, W).
        prediction: the reconstruction, same shape and units.
        data_range: span of the values; fastMRI takes `target.max()`.
    """
    return {
        "nmse": nmse(target, prediction),
        "psnr": psnr(target, prediction, data_range=data_range),
        "ssim": volume_ssim(target, prediction, data_range=data_range),
    }


def image_psnr(clean: Volume, estimate: Volume, *, data_range: float) -> float:
    """`psnr` of one image (H, W, C), over all of its channels."""
    return psnr(clean, estimate, data_range=data_range)


def image_ssim(clean: Volume, estimate: Volume, *, data_range: float) -> float:
    """Structural similarity of one image (H, W, C) as Wang et al. (2004) define it, averaged over channels.

    scikit-image with `gaussian_weights=True, sigma=1.5, use_sample_covariance=False`: an 11 x 11 Gaussian
    window.

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
    """`image_psnr` and `image_ssim` of one image."""
    return {
        "psnr": image_psnr(clean, estimate, data_range=data_range),
        "ssim": image_ssim(clean, estimate, data_range=data_range),
    }


def ssim(
    x: Tensor,
    y: Tensor,
    data_range: Tensor | float,
    window_size: int = 7,
) -> Tensor:
    """Mean structural similarity of each image of a batch.

    With means u, variances v and covariance v_xy over a uniform window, sample (n - 1) normalised,
    c1 = (0.01 L)^2 and c2 = (0.03 L)^2,

        SSIM = (2 u_x u_y + c1) (2 v_xy + c2) / ((u_x^2 + u_y^2 + c1) (v_x + v_y + c2)),

    averaged over the windows that lie inside the image and over channels (Wang et al., IEEE TIP
    2004). The same as fastMRI's. Computed in float32 or better, under autocast too, and on x / L,
    so that intensities may be tiny.

    Args:
        x: images (B, C, H, W), H and W at least `window_size`.
        y: images of the same shape.
        data_range: L > 0, the span of the values: one number, or one for each image, (B,).
        window_size: side of the window in pixels, at least 2.

    Returns:
        (B,), each in [-1, 1]; 1 for equal images.

    Raises:
        InputError: shapes differ or do not fit, or the image is smaller than the window.
    """
    if x.shape != y.shape or x.ndim != 4:
        raise InputError(
            f"images of shape {tuple(x.shape)} and {tuple(y.shape)}; "
            "both must be (batch, channels, height, width), and the same"
        )
    if not 2 <= window_size <= min(x.shape[-2:]):
        raise InputError(
            f"window_size is {window_size}; for images of {x.shape[-2]} x {x.shape[-1]} it must "
            f"lie between 2 and {min(x.shape[-2:])}"
        )
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    span = torch.as_tensor(data_range, dtype=dtype, device=x.device)
    if span.shape not in (torch.Size([]), torch.Size([1]), torch.Size([x.shape[0]])):
        raise InputError(
            f"data_range has shape {tuple(span.shape)}; it must be one number or ({x.shape[0]},), "
            "one for each image"
        )
    with torch.autocast(x.device.type, enabled=False):
        span = span.reshape(-1, 1, 1, 1)
        x, y = x.to(dtype) / span, y.to(dtype) / span
        # Sum of the variances and covariance are all that the formula needs: four maps, not five.
        maps = torch.stack([x, y, x * x + y * y, x * y]).flatten(0, 2)  # (4 B C, H, W)
        local = F.avg_pool2d(F.avg_pool2d(maps, (window_size, 1), 1), (1, window_size), 1)
        u_x, u_y, squares, product = local.unflatten(0, (4, x.shape[0], -1))  # each (B, C, H', W')
        sample = window_size**2 / (window_size**2 - 1)
        u_xy, u_squares = u_x * u_y, u_x * u_x + u_y * u_y
        c1, c2 = 0.01**2, 0.03**2
        luminance = (2 * u_xy + c1) / (u_squares + c1)
        structure = (2 * sample * (product - u_xy) + c2) / (sample * (squares - u_squares) + c2)
        return (luminance * structure).flatten(1).mean(1)


def ssim_loss(x: Tensor, y: Tensor, data_range: Tensor | float, window_size: int = 7) -> Tensor:
    """1 - mean SSIM over the batch, a scalar in [0, 2]; the arguments are those of `ssim`."""
    return 1 - ssim(x, y, data_range, window_size).mean()


class SSIMLoss(nn.Module):
    """`ssim_loss` as a module; called with x, y and data_range.

    Args:
        window_size: side of the window in pixels.
    """

    def __init__(self, window_size: int = 7) -> None:
        super().__init__()
        self.window_size = window_size

    def forward(self, x: Tensor, y: Tensor, data_range: Tensor | float) -> Tensor:
        """Compute 1 - mean SSIM, a scalar."""
        return ssim_loss(x, y, data_range, self.window_size)
