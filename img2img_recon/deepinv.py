"""Our networks as models of deepinv (https://deepinv.github.io): denoisers, MRI reconstruction, a backbone.

Importing this needs deepinv (docs/DEEPINV.md), and `Reconstructor` the extra `mri`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from img2img_recon.denoising import bound_tiles, clean_images, estimated_levels, noise_levels
from img2img_recon.networks.base import Network
from img2img_recon.networks.window_mixer import Border, WindowMixer
from img2img_recon.support.errors import InputError
from img2img_recon.trained import load
from img2img_recon.wrappers import Normalized, Residual

try:
    from deepinv import models
    from deepinv.physics import MRI, DynamicMRI, MultiCoilMRI
except (ImportError, RuntimeError) as error:  # the latter from a torchvision of another torch
    raise InputError(
        f"deepinv cannot be imported ({error}); install the torchvision of your torch, then deepinv"
    ) from None


class Denoiser(models.Denoiser):
    """A denoising network as deepinv's `Denoiser`: for plug-and-play, RED, `ArtifactRemoval` and the like.

    Args:
        network: a network of `img2img_recon.load`, or what that opens: a name, a run folder or a file.
        tile: see `img2img_recon.denoise`.
        device: where it runs.

    Raises:
        InputError: no such network, or none that denoises.
    """

    def __init__(
        self,
        network: nn.Module | str | Path = "denoise-color",
        *,
        tile: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.network = network if isinstance(network, nn.Module) else load(network)
        task = (getattr(self.network, "description", None) or {}).get("task")
        if not isinstance(self.network, Network) or task == "mri":
            raise InputError(f"{_name(network)}: it does not denoise; denoise-color does")
        bound_tiles(self.network.to(device), tile, torch.device(device))

    def forward(self, x: Tensor, sigma: Tensor | Sequence[float] | float | None = None) -> Tensor:
        """Denoise images (B, 1 or 3, H, W) in [0, 1], noise beyond: the same shape, not clipped, differentiable.

        Args:
            x: the images.
            sigma: standard deviation of the noise in the same units, one number or one per image, 0 to 100 / 255.
                None estimates it; a network that was trained for one level does not look at it.

        Raises:
            InputError: a sigma out of range or in other units, or a number of channels that does not fit.
        """
        levels = noise_levels(sigma, len(x))
        if levels is None:
            levels = estimated_levels(x)
        return clean_images(self.network, x, levels.to(x))


class Reconstructor(models.Reconstructor):
    """An MRI network as deepinv's `Reconstructor`, for `deepinv.physics.MRI` and `MultiCoilMRI`.

    Their k-space is fastMRI's: centred, orthonormal; it may have any units. An unrolled mixer is fed the measured
    samples, an image-to-image network the zero-filled magnitudes. Coil maps are those that a network estimates from
    the fully sampled centre, which it was trained with; the physics gives them to one that estimates none.

    Args:
        network: a network of `img2img_recon.load`, or what that opens: a name, a run folder or a file.
        img_size: (h, w) of the centre that is reconstructed, for over-sampled k-space; None: all of it.
        complex_output: the complex image that the physics measures, and not the magnitude. With several coils it
            is combined by the coil maps of the physics.
        device: where it runs.

    Raises:
        InputError: no such network, or none that takes k-space or magnitudes.
    """

    def __init__(
        self,
        network: nn.Module | str | Path = "mri-brain-multicoil",
        *,
        img_size: tuple[int, int] | None = None,
        complex_output: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.network: Any = (
            network if isinstance(network, nn.Module) else load(network, tasks=("mri",))
        )
        self.of_images = isinstance(self.network, Network)
        if not self.of_images and not hasattr(self.network, "coil_images"):
            raise InputError(
                f"{_name(network)}: allowed: unrolled_mixer and image-to-image networks"
            )
        if self.of_images and complex_output:
            raise InputError(f"{_name(network)}: gives magnitudes, allowed: complex_output=False")
        self.img_size, self.complex_output = img_size, complex_output
        self.to(device)

    def forward(self, y: Tensor, physics: MRI | MultiCoilMRI) -> Tensor:
        """Reconstruct k-space (B, 2, H, W), of `MultiCoilMRI` (B, 2, coils, H, W), measured where `physics.mask` is.

        Returns:
            (B, 1, h, w), the magnitude (root-sum-of-squares over the coils), as `physics.A_adjoint` gives it with
            `mag=True` or `rss=True`; with `complex_output` (B, 2, h, w).

        Raises:
            InputError: other physics, shapes that do not go together, or coil maps that are missing.
        """
        several = isinstance(physics, MultiCoilMRI)
        if not isinstance(physics, (MRI, MultiCoilMRI)) or isinstance(physics, DynamicMRI):
            raise InputError(f"physics: given {type(physics).__name__}, allowed: MRI, MultiCoilMRI")
        mask = physics.mask[:, :1] != 0  # (1 or B, 1, H, W)
        H, W = mask.shape[-2:]
        if y.ndim != 4 + several or y.shape[1] != 2 or y.shape[-2:] != (H, W):
            wanted = f"(B, 2, {'coils, ' if several else ''}{H}, {W}), as the mask"
            raise InputError(f"y: has shape {tuple(y.shape)}, allowed: {wanted}")
        h, w = self.img_size or (H, W)
        if h > H or w > W:
            raise InputError(f"img_size: given {h} x {w}, allowed: up to {H} x {W}")
        kspace = physics.to_torch_complex(y if several else y[:, :, None]) * mask
        if self.of_images:
            return self.network(_magnitude(_centre(physics.ifft(kspace), h, w))).clamp_min(0)
        columns = mask.any(-2, keepdim=True)
        rows = H
        if torch.equal(mask, columns.expand_as(mask)):
            # Then the image's rows are enough, and less work.
            mask, rows = columns, h
            if h < H:
                kspace = physics.fft(_centre(physics.ifft(kspace, (-2,)), h, W), (-2,))
        unit_maps = strength = None
        needs_maps = getattr(self.network, "sens", "none") == "none"
        if several and (needs_maps or self.complex_output):
            maps = _centre(physics.coil_maps, rows, W)
            if maps.shape[1] != kspace.shape[1]:
                raise InputError(
                    f"physics.coil_maps: of {maps.shape[1]} coils, y has {kspace.shape[1]}"
                )
            strength = _magnitude(maps).clamp_min(torch.finfo(y.dtype).tiny)
            unit_maps = maps / strength
        sens_maps = unit_maps if needs_maps else None
        images = self.network.coil_images(kspace, mask, sens_maps=sens_maps)
        if not self.complex_output:
            return _magnitude(_centre(images, h, w))
        if unit_maps is not None:
            images = (unit_maps.conj() * images).sum(1, keepdim=True) / strength
        return physics.from_torch_complex(_centre(images, h, w)[:, 0])


class MixerBackbone(models.Denoiser):
    """A window mixer for complex images, real and imaginary part, as the backbone of deepinv's unfolded networks.

    Every image is normalised, so that its units do not matter. A new backbone removes nothing.

    Args:
        residual: whether the output is the image without what the mixer removes, as `MoDL` and `ArtifactRemoval`
            take it; False gives what is removed, which `VarNet` subtracts.
        border: see `WindowMixer`, as `partitions` and `options`; the defaults are those of our unrolled mixer.
        partitions: see there.
        **options: other arguments of `WindowMixer`. Only with `noise_level_plane` the mixer is told `sigma`.
    """

    def __init__(
        self,
        residual: bool = True,
        *,
        border: Border = "circular",
        partitions: tuple[str, ...] = ("windows", "grid"),
        **options: Any,
    ) -> None:
        super().__init__()
        mixer = WindowMixer(2, 2, border=border, partitions=partitions, **options)
        nn.init.zeros_(mixer.output.weight)
        nn.init.zeros_(mixer.output.bias)
        self.network = Normalized(Residual(mixer))
        self.residual = residual

    def forward(self, x: Tensor, sigma: Tensor | float | None = None) -> Tensor:
        """Map images (B, 2, H, W) of any size to the same shape."""
        level = sigma if self.network.noise_level_plane else None
        clean = self.network(x, level)
        return clean if self.residual else x - clean


def _name(network: nn.Module | str | Path) -> str:
    return type(network).__name__ if isinstance(network, nn.Module) else str(network)


def _centre(image: Tensor, height: int, width: int) -> Tensor:
    """The centre of the last two axes, at fastMRI's offsets."""
    top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
    return image[..., top : top + height, left : left + width]


def _magnitude(coils: Tensor) -> Tensor:
    """Root-sum-of-squares of complex (B, coils, H, W), real (B, 1, H, W)."""
    if coils.shape[1] == 1:
        return coils.abs()  # whose gradient is finite at zero
    return coils.abs().square().sum(1, keepdim=True).sqrt()
