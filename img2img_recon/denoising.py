"""Denoising in one call: arrays and tensors in, the same out, with the networks that come with the package."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from img2img_recon.networks.window_mixer import WindowMixer
from img2img_recon.support.errors import InputError
from img2img_recon.trained import load, pick_device, shipped
from img2img_recon.wrappers import AnySize

if TYPE_CHECKING:
    from numpy.typing import NDArray

Image = TypeVar("Image", "NDArray", Tensor)
Sigma = float | Sequence[float] | Tensor | None

# 100 of 255 grey levels: more noise than any network was trained for.
LARGEST_SIGMA = 100 / 255
# Floats beyond are no image in [0, 1], however strong its noise.
LARGEST_VALUE = 4.0
# Sides of tiles by default: of networks that map tiles as they map the whole (about 0.4 GB each for 0.4 M parameters),
# and of others, whose tiles are blended. A GPU idles with few of those, a CPU gains nothing from more.
TILE, BLENDED_TILE, BLENDED_AT_ONCE = 1536, 512, {"cpu": 512, "cuda": 1448}


def denoise(
    image: Image,
    sigma: Sigma = None,
    *,
    model: nn.Module | str | Path | None = None,
    strength: float = 1.0,
    tile: int | None = None,
    device: str | None = None,
) -> Image:
    """Take the noise out of an image.

    Args:
        image: an array (H, W), (H, W, 1) or (H, W, 3), or a tensor (B, 1 or 3, H, W). Integers of 8 and 16 bits
            (unsigned) span black to white; floats are taken as they are, with white at 1, and noise may lie
            beyond [0, 1].
        sigma: standard deviation of the noise in units of white, as 25 / 255 for 25 grey levels of 8 bits, whatever
            the type of the image: one number, or for a tensor one per image. None estimates it.
        model: a network of `img2img_recon.load`, or what that opens: a name, a run folder or a file. None
            takes the one that comes with the package for grey or for colour.
        strength: how much of what was found to be noise is removed, 0 to 1: what stays looks like the noise did.
        tile: side in pixels of what is mapped at once, which bounds the memory; the networks that come with the
            package give the same whatever it is.
        device: as "cpu" or "cuda"; by default where a tensor is, and for arrays a GPU if there is one.

    Returns:
        The same type, shape and, rounded and clipped where it holds integers, dtype.

    Raises:
        InputError: an image, a sigma or a network that cannot be used.
    """
    if not 0 <= strength <= 1:
        raise InputError(
            f"strength: given {strength:g}, allowed: 0 to 1, the share that is removed"
        )
    batch, white = _as_batch(image)
    if device is None and isinstance(image, Tensor):
        target = image.device
    else:
        target = pick_device(device or "auto")
    if model is None:
        model = default_name(is_grey(batch))
    network = model if isinstance(model, nn.Module) else _loaded(model)
    bound_tiles(network.to(target), tile, target)
    levels = _levels(batch, sigma)
    with torch.no_grad():
        clean = clean_images(network, batch.to(target), levels.to(target)).to(batch.device)
    return _as_given(torch.lerp(batch, clean, strength), image, white)


@lru_cache(maxsize=2)
def _loaded(source: str | Path) -> nn.Module:
    return load(source)


def is_grey(batch: Tensor) -> bool:
    """Whether images (B, C, H, W) have one channel, or channels that are all the same."""
    return all(torch.equal(batch[:, 0], other) for other in batch.unbind(1)[1:])


def default_name(grey: bool) -> str:
    """The network that comes with the package for such images; without one for grey it is that for colour.

    Raises:
        InputError: there is none.
    """
    names = ["denoise-grey", "denoise-color"] if grey else ["denoise-color"]
    here = [name for name in names if name in shipped()]
    if not here:
        raise InputError(f"{names[-1]}: this network is missing from the installed package")
    return here[0]


def bound_tiles(network: nn.Module, tile: int | None, device: torch.device) -> None:
    """Let a network map tile x tile pixels at once, or by default as many as suit it and the device."""
    if tile is not None and tile < 1:
        raise InputError(f"tile: given {tile}, allowed: 1 or more pixels")
    for part in network.modules():
        if isinstance(part, WindowMixer):
            part.tile = tile or TILE
        elif isinstance(part, AnySize) and not isinstance(part.net, WindowMixer):
            at_once = tile or BLENDED_AT_ONCE.get(device.type, BLENDED_TILE)
            part.tile = min(at_once, BLENDED_TILE)
            height, width = getattr(part.net, "img_size", None) or (part.tile, part.tile)
            part.max_tiles_per_batch = max(at_once**2 // (height * width), 1)


def clean_images(network: nn.Module, noisy: Tensor, sigma: Tensor | None) -> Tensor:
    """What a denoiser makes of images of one or three channels, whichever of the two it takes.

    Grey, also where it is kept as colour, goes through a colour network as three equal channels, whose mean is
    taken; colour goes through a grey network channel by channel. A colour network knows noise that differs from
    channel to channel, of which a grey image keeps 1 / sqrt(3): it is told sqrt(3) times the noise that grey
    has (at sigma 25 this gives 29.5 dB where the bare sigma gives 23.4, on three photographs).

    Args:
        network: maps (B, C, H, W) in [0, 1].
        noisy: (B, 1 or 3, H, W).
        sigma: (B,), in units of white, for a network that takes it.

    Returns:
        The same shape, not clipped.

    Raises:
        InputError: numbers of channels that do not go together, or the network's memory is not enough.
    """
    B, channels, H, W = noisy.shape
    own = getattr(network, "in_chans", None) or channels
    takes_sigma, grey = getattr(network, "noise_level_plane", False), is_grey(noisy)
    level = [] if sigma is None or not takes_sigma else [sigma]
    if channels != own and {channels, own} != {1, 3}:
        raise InputError(
            f"a picture of {channels} and a network of {own} channels; "
            "allowed: equally many, or grey and colour"
        )
    try:
        if grey:
            each = [value * own**0.5 for value in level]
            clean = network(noisy[:, :1].expand(-1, own, -1, -1), *each)
            return clean.mean(1, keepdim=True).expand_as(noisy)
        if channels > own:
            each = [value.repeat_interleave(channels) for value in level]
            return network(noisy.reshape(-1, 1, H, W), *each).view(B, channels, H, W)
        return network(noisy, *level)
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        raise InputError(
            f"the memory of {noisy.device} is not enough for {H} x {W} pixels; "
            "give a smaller --tile (tile= in Python), or another device"
        ) from None


def checked_sigma(sigma: float) -> float:
    """A noise level in units of white.

    Raises:
        InputError: out of range, or in other units.
    """
    if 1 < sigma <= 100:
        raise InputError(
            f"sigma: given {sigma:g}, allowed: 0 to {LARGEST_SIGMA:.3f} in units of white; "
            f"were {sigma:g} of 255 grey levels meant? That is {sigma:g} / 255"
        )
    if not 0 <= sigma <= LARGEST_SIGMA:
        raise InputError(
            f"sigma: given {sigma:g}, allowed: 0 to {LARGEST_SIGMA:.3f} in units of white"
        )
    return sigma


def _levels(batch: Tensor, sigma: Sigma) -> Tensor:
    """The noise level of every image, (B,)."""
    if sigma is None:
        return batch.new_tensor([_estimated(image) for image in batch])
    given = torch.as_tensor(sigma, dtype=torch.float32).reshape(-1)
    if len(given) not in (1, len(batch)):
        raise InputError(f"sigma: given {len(given)} numbers; allowed: one, or one of each image")
    for level in given.tolist():
        checked_sigma(level)
    return given.expand(len(batch))


def _estimated(image: Tensor) -> float:
    from img2img_recon.noise_level import estimate_sigma

    return min(estimate_sigma(image.permute(1, 2, 0).cpu().numpy()), LARGEST_SIGMA)


def _as_batch(image: NDArray | Tensor) -> tuple[Tensor, float]:
    """An image as a float tensor (B, C, H, W) in [0, 1], and what white was."""
    given = isinstance(image, Tensor)
    wanted = "a tensor (B, 1 or 3, H, W)" if given else "an array (H, W), (H, W, 1) or (H, W, 3)"
    if not isinstance(image, (np.ndarray, Tensor)):
        raise InputError(f"image: given {type(image).__name__}, allowed: an array or a tensor")
    planes = image if isinstance(image, Tensor) else _planes(image)
    if planes.ndim != 4 or planes.shape[1] not in (1, 3) or not planes.numel():
        raise InputError(f"image: has shape {tuple(image.shape)}, allowed: {wanted}")
    if planes.dtype in (torch.uint8, torch.uint16):
        white = float(torch.iinfo(planes.dtype).max)
        return planes.to(torch.float32).contiguous() / white, white
    if not planes.is_floating_point():
        raise InputError(f"image: holds {image.dtype}, allowed: uint8, uint16 or floats")
    least, most = planes.aminmax()
    if not (torch.isfinite(least) and torch.isfinite(most)):
        raise InputError("image: holds NaN or infinite values")
    if max(-least, most) > LARGEST_VALUE:
        raise InputError(
            f"image: floats from {float(least):g} to {float(most):g}; white must be 1: divide by its value"
        )
    return planes.to(torch.float32).contiguous(), 1.0


def _planes(image: NDArray) -> Tensor:
    """An array (H, W[, C]) as (1, C, H, W), or as it is where it has other axes."""
    native = np.ascontiguousarray(image, image.dtype.newbyteorder("="))
    try:
        pixels = torch.from_numpy(native)
    except TypeError:
        raise InputError(f"image: holds {image.dtype}, allowed: uint8, uint16 or floats") from None
    if pixels.ndim == 2:
        return pixels[None, None]
    return pixels.permute(2, 0, 1)[None] if pixels.ndim == 3 else pixels[None]


def _as_given(clean: Tensor, image: Image, white: float) -> Image:
    """A batch as the image that was given."""
    if white != 1:
        clean = (clean * white).round_().clamp_(0, white)
    if isinstance(image, Tensor):
        return clean.to(image.dtype)
    array = clean[0].permute(1, 2, 0).reshape(image.shape).numpy()
    return array.astype(image.dtype)
