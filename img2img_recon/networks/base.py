"""What every network says of itself, and checks of the images that come in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from img2img_recon.support.errors import InputError
from img2img_recon.weights_file import write_weights

# An input, and which of its axes may be of another length, by what they are.
Example = tuple[Tensor, dict[int, str]]


class Described(nn.Module):
    """A network that can be written to a file and opened again.

    Attributes:
        description: how to build it again, and what it was trained for; `build_model` and
            `img2img_recon.load` state it.
    """

    description: Mapping[str, Any] | None = None

    def save(self, path: Path | str) -> None:
        """Write weights and description to a `.safetensors` file, which `img2img_recon.load` opens.

        Raises:
            InputError: another ending, a network without a description, or no room or right to write.
        """
        if Path(path).suffix != ".safetensors":
            raise InputError(f"{path}: weights are written to a file that ends in .safetensors")
        write_weights(Path(path), self.state_dict(), described(self, path))

    def save_pretrained(self, folder: Path | str, **options: Any) -> None:
        """Write a folder as the Hugging Face hub has it; for the options see `img2img_recon.hub.save_pretrained`."""
        from img2img_recon.hub import save_pretrained

        save_pretrained(self, folder, **options)

    def example(self, img_size: tuple[int, int] | None = None) -> dict[str, Example]:
        """Inputs of `forward` by name, for exporters, with axes "batch", "height", "width" and "coils".

        Args:
            img_size: height and width, where they are not free.

        Raises:
            InputError: the network has no such inputs, or none of this size.
        """
        raise InputError(f"{type(self).__name__}: this network is not exported")


def described(network: nn.Module, target: Path | str) -> Mapping[str, Any]:
    """What a network says of itself.

    Raises:
        InputError: nothing; `target` is what cannot be written therefore.
    """
    description = getattr(network, "description", None)
    if description is None:
        raise InputError(
            f"{target}: this network does not say how it was built; save one of build_model or load"
        )
    return description


class Network(Described):
    """A network that maps images (B, in_chans, H, W) to images (B, out_chans, H, W).

    Args:
        in_chans: channels of the images that come in; None for any number.
        out_chans: channels of the images that go out; None where only the output tells.
        img_size: the one (H, W) that it takes, or None for any.
        size_divisor: what H and W must be divisible by.
        min_size: least H and W.

    Attributes:
        grid_divisor: what the numbers of patches along H and W must be divisible by, for networks with an
            `img_size`; a constant of the class, which `networks.zoo` reads from the source.
    """

    grid_divisor: ClassVar[int] = 1

    def __init__(
        self,
        in_chans: int | None,
        out_chans: int | None,
        img_size: tuple[int, int] | None = None,
        size_divisor: int = 1,
        min_size: int = 1,
    ) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.out_chans = out_chans
        self.img_size = img_size
        self.size_divisor = size_divisor
        self.min_size = min_size

    def takes_size(self, height: int, width: int) -> bool:
        """Whether images of this size can come in."""
        if self.img_size is not None:
            return (height, width) == self.img_size
        divisible = height % self.size_divisor == 0 and width % self.size_divisor == 0
        return divisible and min(height, width) >= self.min_size

    def check_image(self, image: Tensor) -> None:
        """Refuse what cannot come in; every network calls this first.

        Raises:
            InputError: no batch of one or more images of the right number of channels and size.
        """
        if (
            image.ndim == 4
            and image.shape[0] > 0
            and image.shape[1] == (self.in_chans or image.shape[1])
            and self.takes_size(image.shape[2], image.shape[3])
        ):
            return
        raise InputError(f"the image has shape {tuple(image.shape)}; it must be {self._wanted()}")

    def example(self, img_size: tuple[int, int] | None = None) -> dict[str, Example]:
        """See `Described.example`."""
        parts = [part for part in self.modules() if isinstance(part, Network)]
        own = next((part.img_size for part in parts if part.img_size), None)
        axes = {0: "batch"}
        if own is None and all(part.size_divisor == part.min_size == 1 for part in parts):
            axes |= {2: "height", 3: "width"}
            img_size = img_size or (53, 45)
        height, width = img_size or own or (256, 256)
        image = torch.rand(2, self.in_chans or 3, height, width)
        if own not in (None, (height, width)) or not self.takes_size(height, width):
            raise InputError(
                f"--img_size: given {height} x {width}; the network takes {own or 'others'}"
            )
        if not getattr(self, "noise_level_plane", False):
            return {"image": (image, axes)}
        return {"image": (image, axes), "sigma": (torch.full((2,), 0.1), {0: "batch"})}

    def _wanted(self) -> str:
        chans = "channels" if self.in_chans is None else self.in_chans
        if self.img_size is not None:
            H, W = self.img_size
            return f"(1 or more, {chans}, {H}, {W}) (AnySize takes any height and width)"
        limits = [f"of {self.min_size} or more"] if self.min_size > 1 else []
        limits += [f"divisible by {self.size_divisor}"] if self.size_divisor > 1 else []
        sides = f", height and width {', '.join(limits)} (AnySize takes any)" if limits else ""
        return f"(1 or more, {chans}, height, width){sides}"


def patch_grid(
    img_size: int | tuple[int, int], patch_size: int, grid_divisor: int = 1
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(H, W) in pixels and (H, W) in patches of images of one size.

    Args:
        img_size: in pixels, or one number for both sides.
        patch_size: side of a patch.
        grid_divisor: what the numbers of patches must be divisible by.

    Raises:
        InputError: less than a patch, or not divisible into patches.
    """
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    if patch_size < 1:
        raise InputError(f"the patch size is {patch_size}; it must be at least 1")
    if height < patch_size or width < patch_size:
        raise InputError(
            f"img_size {height} x {width} is smaller than a patch of {patch_size} x {patch_size}"
        )
    divisor = patch_size * grid_divisor
    if height % divisor or width % divisor:
        patches = "a patch" if grid_divisor == 1 else f"{grid_divisor} patches"
        raise InputError(
            f"img_size {height} x {width} is not divisible by {divisor}, the side of {patches}"
        )
    return (height, width), (height // patch_size, width // patch_size)


def count_parameters(module: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
