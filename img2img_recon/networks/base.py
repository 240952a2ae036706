"""What every network checks of its sizes and of the images that come in."""

from __future__ import annotations

from torch import Tensor

from img2img_recon.support.errors import InputError


def image_size(img_size: int | tuple[int, int], divisor: int) -> tuple[int, int]:
    """(H, W) of `img_size`, checked: each side positive and divisible by `divisor`, else `InputError`."""
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    if divisor < 1:
        raise InputError(f"the patch size is {divisor}; it must be at least 1")
    if height < divisor or width < divisor:
        raise InputError(
            f"img_size {height} x {width} is smaller than a patch of {divisor} x {divisor}"
        )
    if height % divisor or width % divisor:
        raise InputError(
            f"img_size {height} x {width} is not divisible by {divisor}, the patch size"
        )
    return height, width


def check_image(image: Tensor, in_chans: int, img_size: tuple[int, int]) -> None:
    """Raise `InputError` unless `image` is (B, in_chans, H, W) with (H, W) = `img_size`."""
    expected = (in_chans, *img_size)
    if image.ndim != 4 or tuple(image.shape[1:]) != expected:
        raise InputError(
            f"the image has shape {tuple(image.shape)}; this network takes (batch, "
            f"{in_chans}, {img_size[0]}, {img_size[1]}) (AnySize takes any height and width)"
        )
