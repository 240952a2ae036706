"""Denoising in one call: arrays and tensors in, the same out, with the networks that come with the package."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from img2img_recon.networks.window_mixer import WindowMixer
from img2img_recon.support.errors import InputError
from img2img_recon.support.progress import bar, silent
from img2img_recon.trained import load, pick_device, shipped
from img2img_recon.wrappers import AnySize

if TYPE_CHECKING:
    from numpy.typing import NDArray

Image = TypeVar("Image", "NDArray", Tensor)
Sigma = float | Sequence[float] | Tensor | None
ChannelAxis = int | Literal["auto"] | None

# 100 of 255 grey levels: more noise than any network was trained for.
LARGEST_SIGMA = 100 / 255
# Floats beyond are no image in [0, 1], however strong its noise.
LARGEST_VALUE = 4.0
# Noise lies beyond [0, 1], means hardly: those of squares of these sides may by as much as noise of the level that was
# found, or of 25 grey levels, explains (in standard deviations), and this much more. Networks make garbage of others.
MEAN_SIDES, MEAN_DEVIATIONS, MEAN_MARGIN, MEAN_SIGMA = (4, 8, 16), 5, 0.1, 25 / 255
# Sides of tiles by default: of networks that map tiles as they map the whole (about 0.4 GB each for 0.4 M parameters),
# and of others, whose tiles are blended. A GPU idles with few of those, a CPU gains nothing from more.
TILE, BLENDED_TILE, BLENDED_AT_ONCE = 1536, 512, {"cpu": 512, "cuda": 1448}


def denoise(
    image: Image,
    sigma: Sigma = None,
    *,
    channel_axis: ChannelAxis = "auto",
    model: nn.Module | str | Path | None = None,
    strength: float = 1.0,
    tile: int | None = None,
    device: str | None = None,
    progress: bool = False,
) -> Image:
    """Take the noise out of an image, or out of a stack of them slice by slice.

    Called as the functions of `skimage.restoration`, with one difference: the result has the dtype and the range
    of what was given, where theirs is float in [0, 1].

    Args:
        image: an array (H, W) or, with a channel axis, (H, W, 3); with more axes before these a stack, (Z, H, W)
            or (Z, H, W, 3), whose slices are denoised one after the other as if each were alone. Or a tensor
            (B, 1 or 3, H, W). Integers of 8 and 16 bits (unsigned) span black to white; floats are taken as
            they are, with white at 1, and noise may lie beyond [0, 1], the picture itself not.
        sigma: standard deviation of the noise in units of white, as 25 / 255 for 25 grey levels of 8 bits, whatever
            the type of the image: one number, or one per slice or image of a tensor. None estimates it.
        channel_axis: which axis of an array holds channels; None if there is none. Three are a colour, others
            are denoised each by itself. "auto": the last axis of three or more if its length is 1 or 3.
        model: a network of `img2img_recon.load`, or what that opens: a name, a run folder or a file. None
            takes the one that comes with the package for grey or for colour.
        strength: how much of what was found to be noise is removed, 0 to 1: what stays looks like the noise did.
        tile: side in pixels of what is mapped at once, which bounds the memory; the networks that come with the
            package give the same whatever it is.
        device: as "cpu" or "cuda"; by default where a tensor is, and for arrays a GPU if there is one.
        progress: show on the standard error how many slices of a stack are done.

    Returns:
        The same type, shape and, rounded and clipped where it holds integers, dtype.

    Raises:
        InputError: an image, a sigma or a network that cannot be used; no slice is denoised before all are checked.
    """
    if not 0 <= strength <= 1:
        raise InputError(
            f"strength: given {strength:g}, allowed: 0 to 1, the share that is removed"
        )
    if isinstance(image, Tensor):
        if channel_axis not in ("auto", 1, -3):
            raise InputError(
                f"channel_axis: given {channel_axis}; tensors are (B, C, H, W), allowed: 1"
            )
        return _denoised(image, _checked(image, sigma), model, strength, tile, device)
    if not isinstance(image, np.ndarray):
        raise InputError(f"image: given {type(image).__name__}, allowed: an array or a tensor")
    clean = np.empty(image.shape, image.dtype)
    source, target = _slices(image, channel_axis), _slices(clean, channel_axis)
    places = list(np.ndindex(source.shape[:-3]))
    given = noise_levels(sigma, len(places))
    levels = [
        _checked(_planes(source[place]), None if given is None else given[i : i + 1])
        for i, place in enumerate(places)
    ]
    track = bar if progress else silent
    for level, place in zip(levels, track(places, "denoising", len(places)), strict=True):
        done = _denoised(_planes(source[place]), level, model, strength, tile, device or "auto")
        target[place] = done[0].permute(1, 2, 0).numpy()
    return clean


def _denoised(
    image: Tensor,
    levels: Tensor,
    model: nn.Module | str | Path | None,
    strength: float,
    tile: int | None,
    device: str | None,
) -> Tensor:
    """`denoise` for a tensor (B, 1 or 3, H, W), on its own device where none is given."""
    batch, white = _as_unit(image)
    target = image.device if device is None else pick_device(device)
    if model is None:
        model = default_name(is_grey(batch))
    network = model if isinstance(model, nn.Module) else _loaded(model)
    if (getattr(network, "description", None) or {}).get("task") == "mri":
        raise InputError("model: a network of the task mri; allowed: those that denoise")
    # A caller's own network is given back as it was.
    with torch.no_grad(), _as_it_was(network) if network is model else nullcontext():
        _evaluating(network)
        bound_tiles(network.to(target), tile, target)
        clean = clean_images(network, batch.to(target), levels.to(target)).to(batch.device)
    clean = torch.lerp(batch, clean, strength)
    if white != 1:
        clean = (clean * white).round_().clamp_(0, white)
    return clean.to(image.dtype)


def _evaluating(network: nn.Module) -> None:
    """Put a network into evaluation mode; programs of torch.export know one mode alone."""
    with suppress(NotImplementedError):
        network.eval()


@contextmanager
def _as_it_was(network: nn.Module) -> Iterator[None]:
    """Bring back a network's device, the mode of its modules and their tiles."""
    home = next((weights.device for weights in network.parameters()), None)
    names = ("tile", "max_tiles_per_batch")
    kept = [
        (part, part.training, {name: vars(part)[name] for name in names if name in vars(part)})
        for part in network.modules()
    ]
    try:
        yield
    finally:
        network.to(home)
        for part, training, values in kept:
            # Parents come first: what they set in their parts is set right after them.
            if part.training != training:
                part.train(training)
            vars(part).update(values)


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
    if len({is_grey(image) for image in noisy.split(1)}) > 1:
        sigmas = [None] * B if sigma is None else sigma.expand(B).split(1)
        alone = zip(noisy.split(1), sigmas, strict=True)
        return torch.cat([clean_images(network, *one) for one in alone])
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


def noise_levels(sigma: Sigma, count: int) -> Tensor | None:
    """The noise level of every image, (count,), in units of white; None where it is to be estimated.

    Raises:
        InputError: out of range, in other units, or not one number per image.
    """
    if sigma is None:
        return None
    try:
        given = torch.as_tensor(sigma, dtype=torch.float32).reshape(-1)
    except (TypeError, ValueError):
        raise InputError(
            f"sigma: given {sigma!r}, allowed: numbers, or None to estimate it"
        ) from None
    if len(given) not in (1, count):
        raise InputError(f"sigma: given {len(given)} numbers; allowed: one, or one of each image")
    for level in given.tolist():
        if not 0 <= level <= LARGEST_SIGMA * (1 + 1e-6):  # single precision rounds it up
            grey_levels = f"; were {level:g} of 255 grey levels meant? That is {level:g} / 255"
            raise InputError(
                f"sigma: given {level:g}, allowed: 0 to {LARGEST_SIGMA:.3f} in units of white"
                f"{grey_levels if 1 < level <= 100 else ''}"
            )
    return given.expand(count)


def _checked(image: Tensor, sigma: Sigma) -> Tensor:
    """The noise level of every image of a tensor that can be denoised, (B,)."""
    batch, _ = _as_unit(image)
    levels = noise_levels(sigma, len(batch))
    if levels is None:
        levels = estimated_levels(batch)
    if not image.is_floating_point():
        return levels
    for side in MEAN_SIDES:
        shape = [min(side, extent) for extent in batch.shape[2:]]
        means = avg_pool2d(batch.detach(), shape, side // 2).flatten(1).cpu()
        noise = MEAN_DEVIATIONS * levels.cpu().clamp(min=MEAN_SIGMA) / math.prod(shape) ** 0.5
        beyond = torch.maximum(-means.amin(1), means.amax(1) - 1) > MEAN_MARGIN + noise
        if beyond.any():
            least, most = (float(value) for value in means[beyond].aminmax())
            raise InputError(
                f"image: means of {side} x {side} pixels from {least:.3g} to {most:.3g}; black must be 0 and "
                "white 1: subtract the one, divide by the other, or clip what is brighter than white"
            )
    return levels


def estimated_levels(batch: Tensor) -> Tensor:
    """The noise level of every image of (B, C, H, W) as it is estimated, (B,), without a gradient."""
    from img2img_recon.noise_level import estimate_sigma

    images = batch.detach().permute(0, 2, 3, 1).cpu().numpy()
    return batch.new_tensor([min(estimate_sigma(image), LARGEST_SIGMA) for image in images])


def _as_unit(image: Tensor) -> tuple[Tensor, float]:
    """An image (B, C, H, W) as floats in [0, 1], and what white was."""
    if image.ndim != 4 or image.shape[1] not in (1, 3) or not image.numel():
        raise InputError(
            f"image: has shape {tuple(image.shape)}, allowed: a tensor (B, 1 or 3, H, W)"
        )
    if image.dtype in (torch.uint8, torch.uint16):
        white = float(torch.iinfo(image.dtype).max)
        return image.to(torch.float32).contiguous() / white, white
    if not image.is_floating_point():
        kind = str(image.dtype).removeprefix("torch.")
        raise InputError(f"image: holds {kind}, allowed: uint8, uint16 or floats")
    least, most = image.aminmax()
    if not (torch.isfinite(least) and torch.isfinite(most)):
        raise InputError("image: holds NaN or infinite values")
    if max(-least, most) > LARGEST_VALUE:
        raise InputError(
            f"image: floats from {float(least):g} to {float(most):g}; white must be 1: divide by its value"
        )
    return image.to(torch.float32).contiguous(), 1.0


def _slices(image: NDArray, channel_axis: ChannelAxis) -> NDArray:
    """A view (..., H, W, 1 or 3) of an array; channels that are no colour are among the first axes."""
    if channel_axis == "auto":
        colour = image.ndim > 2 and image.shape[-1] in (1, 3)
        # Four axes may be a batch, and a last axis of two or four is alpha rather than a width.
        if image.ndim - colour not in (2, 3) or (image.ndim > 2 and image.shape[-1] in (2, 4)):
            raise InputError(
                f"image: has shape {image.shape}, allowed: an array (H, W[, 1 or 3]) or a stack "
                "(Z, H, W[, 1 or 3]); for others give channel_axis"
            )
        channel_axis = -1 if colour else None
    if channel_axis is None:
        view = image[..., None]
    elif -image.ndim <= channel_axis < image.ndim:
        view = np.moveaxis(image, channel_axis, -1)
    else:
        raise InputError(f"channel_axis: given {channel_axis}, the image has {image.ndim} axes")
    if view.ndim < 3 or not view.size:
        raise InputError(
            f"image: has shape {image.shape}, allowed: an array of height and width, and channel_axis"
        )
    return view if view.shape[-1] == 3 else np.moveaxis(view, -1, 0)[..., None]


def _planes(image: NDArray) -> Tensor:
    """An array (H, W, C) as (1, C, H, W)."""
    native = np.ascontiguousarray(image, image.dtype.newbyteorder("="))
    try:
        # An array of a picture may be read-only, of which torch would warn.
        writable = native if native.flags.writeable else native.copy()
        return torch.from_numpy(writable).permute(2, 0, 1)[None]
    except TypeError:
        raise InputError(f"image: holds {image.dtype}, allowed: uint8, uint16 or floats") from None
