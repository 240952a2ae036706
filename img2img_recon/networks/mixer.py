"""The image-to-image MLP-mixer of Mansour, Lin and Heckel (arXiv:2202.02018)."""

from __future__ import annotations

from torch import Tensor, nn

from img2img_recon.networks.mixing import MixerLayer, TokenMixing
from img2img_recon.networks.patches import PatchEmbed, PatchExpand
from img2img_recon.support.errors import InputError


class Img2ImgMixer(nn.Module):
    """Image to image with linear maps, GELU and LayerNorm alone.

    Patches are embedded linearly and stay on their 2-D grid; `depth` layers mix that (H/P, W/P, C) volume
    along height, width and channels; a linear map expands every cell to P x P pixels again. There is no
    global skip: whether the network predicts the image or the noise is the task's choice.

    Args:
        img_size: height and width of the images, or one number for both. The weights of height and
            width mixing belong to this size.
        in_chans: channels of the images that come in.
        out_chans: channels of the images that go out.
        patch_size: P, side of a patch in pixels; divides both sides of `img_size`.
        embed_dim: C, channels of the volume.
        depth: number of mixer layers.
        mlp_ratio: hidden width of every MLP as a multiple of its input.
        token_mixing: "mlp", or "linear" for the linear mixer, whose height and width mixing are one
            linear map each.

    Shapes: (B, in_chans, H, W) -> (B, out_chans, H, W).

    Raises:
        InputError: `img_size` is smaller than a patch or not divisible by `patch_size`, or an image
            of another size comes in.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int],
        in_chans: int,
        out_chans: int,
        patch_size: int,
        embed_dim: int,
        depth: int,
        mlp_ratio: int,
        token_mixing: TokenMixing = "mlp",
    ) -> None:
        super().__init__()
        self.img_size = image_size(img_size, patch_size)
        self.in_chans = in_chans
        self.size_divisor = patch_size
        grid = (self.img_size[0] // patch_size, self.img_size[1] // patch_size)
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.mixer_layers = nn.Sequential(
            *(MixerLayer(grid, embed_dim, mlp_ratio, token_mixing) for _ in range(depth))
        )
        self.patch_expand = PatchExpand(embed_dim, patch_size, embed_dim)
        self.output = nn.Linear(embed_dim, out_chans, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, in_chans, H, W) to (B, out_chans, H, W)."""
        check_image(image, self.in_chans, self.img_size)
        volume = self.mixer_layers(self.patch_embed(image))  # (B, H/P, W/P, C)
        pixels = self.patch_expand.project(volume, self.output.weight)  # (B, H, W, out_chans)
        return pixels.permute(0, 3, 1, 2).contiguous()


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
