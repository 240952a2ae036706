"""Structural similarity (SSIM) of image batches, differentiable."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from img2img_recon.support.errors import InputError


def ssim(
    x: Tensor,
    y: Tensor,
    data_range: Tensor | float,
    window_size: int = 7,
    k1: float = 0.01,
    k2: float = 0.03,
) -> Tensor:
    """Mean structural similarity of each image of a batch.

    With means u, variances v and covariance v_xy over a uniform window, sample (n - 1) normalised,
    c1 = (k1 L)^2 and c2 = (k2 L)^2,

        SSIM = (2 u_x u_y + c1) (2 v_xy + c2) / ((u_x^2 + u_y^2 + c1) (v_x + v_y + c2)),

    averaged over the windows that lie inside the image and over channels (Wang et al., IEEE TIP
    2004). The same as fastMRI's. Computed in float32 or better, under autocast too, and on x / L,
    so that intensities may be tiny.

    Args:
        x: images (B, C, H, W), H and W at least `window_size`.
        y: images of the same shape.
        data_range: L > 0, the span of the values: one number, or one for each image, (B,).
        window_size: side of the window in pixels, at least 2.
        k1: constant that stabilises the luminance term.
        k2: constant that stabilises the contrast-structure term.

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
        c1, c2 = k1**2, k2**2
        luminance = (2 * u_xy + c1) / (u_squares + c1)
        structure = (2 * sample * (product - u_xy) + c2) / (sample * (squares - u_squares) + c2)
        return (luminance * structure).flatten(1).mean(1)


def ssim_loss(
    x: Tensor,
    y: Tensor,
    data_range: Tensor | float,
    window_size: int = 7,
    k1: float = 0.01,
    k2: float = 0.03,
) -> Tensor:
    """1 - mean SSIM over the batch, a scalar in [0, 2]; the arguments are those of `ssim`."""
    return 1 - ssim(x, y, data_range, window_size, k1, k2).mean()


class SSIMLoss(nn.Module):
    """`ssim_loss` as a module; called with x, y and data_range.

    Args:
        window_size: side of the window in pixels.
        k1: constant that stabilises the luminance term.
        k2: constant that stabilises the contrast-structure term.

    """

    def __init__(self, window_size: int = 7, k1: float = 0.01, k2: float = 0.03) -> None:
        super().__init__()
        self.window_size, self.k1, self.k2 = window_size, k1, k2

    def forward(self, x: Tensor, y: Tensor, data_range: Tensor | float) -> Tensor:
        """Compute 1 - mean SSIM, a scalar."""
        return ssim_loss(x, y, data_range, self.window_size, self.k1, self.k2)
