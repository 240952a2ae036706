"""The multi-resolution mixer: mixer layers in the arrangement of a U-Net (arXiv:2202.02018)."""

from __future__ import annotations

from torch import Tensor, nn

from img2img_recon.networks.mixer import check_image, image_size
from img2img_recon.networks.mixing import MixerLayer
from img2img_recon.networks.patches import PatchEmbed, PatchExpand, PatchMerge
from img2img_recon.support.errors import InputError

LEVELS = 4


class MultiResMixer(nn.Module):
    """Mixer layers on four grids, from H/P x W/P with C channels to H/8P x W/8P with 8C channels.

    Every level holds one layer for the way down and one for the way up, and each of them is applied
    twice with the same weights. On the way up, a level ends by adding the volume that its way down
    ended with.

    Args:
        img_size: height and width of the images, or one number for both. The weights of height and
            width mixing belong to this size.
        in_chans: channels of the images that come in.
        out_chans: channels of the images that go out.
        patch_size: P, side of a patch in pixels; 8P divides both sides of `img_size`.
        embed_dim: C, channels of the volume on the finest grid.
        mlp_ratio: hidden width of every MLP as a multiple of its input.

    Shapes: (B, in_chans, H, W) -> (B, out_chans, H, W).

    Raises:
        InputError: `img_size` is not divisible by 8P, or an image of another size comes in.

    """

    def __init__(
        self,
        img_size: int | tuple[int, int],
        in_chans: int,
        out_chans: int,
        patch_size: int,
        embed_dim: int,
        mlp_ratio: int = 1,
    ) -> None:
        super().__init__()
        self.size_divisor = patch_size * 2 ** (LEVELS - 1)
        self.img_size = image_size(img_size, patch_size)
        if self.img_size[0] % self.size_divisor or self.img_size[1] % self.size_divisor:
            raise InputError(
                f"img_size {self.img_size[0]} x {self.img_size[1]} is not divisible by "
                f"{self.size_divisor}, {2 ** (LEVELS - 1)} patches of {patch_size} pixels"
            )
        self.in_chans = in_chans
        grid = (self.img_size[0] // patch_size, self.img_size[1] // patch_size)

        def layers() -> nn.ModuleList:
            """One layer per level, finest first."""
            return nn.ModuleList(
                MixerLayer((grid[0] >> level, grid[1] >> level), embed_dim << level, mlp_ratio)
                for level in range(LEVELS)
            )

        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.down_layers = layers()
        self.merges = nn.ModuleList(PatchMerge(embed_dim << level) for level in range(LEVELS - 1))
        self.up_layers = layers()
        # expands[level] leads from the grid of level + 1 to that of level.
        self.expands = nn.ModuleList(
            PatchExpand(embed_dim << (level + 1), 2, embed_dim << level)
            for level in range(LEVELS - 1)
        )
        self.patch_expand = PatchExpand(embed_dim, patch_size, embed_dim)
        self.output = nn.Linear(embed_dim, out_chans, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, in_chans, H, W) to (B, out_chans, H, W)."""
        check_image(image, self.in_chans, self.img_size)
        x = self.patch_embed(image)  # (B, H/P, W/P, C)
        kept = []
        for layer, merge in zip(self.down_layers, self.merges, strict=False):
            x = layer(layer(x))
            kept.append(x)
            x = merge(x)  # half the height and width, twice the channels
        coarsest = self.down_layers[-1]
        x = coarsest(coarsest(x))  # (B, H/8P, W/8P, 8C)
        x = self.up_layers[-1](self.up_layers[-1](x))
        for level in reversed(range(LEVELS - 1)):
            x = self.expands[level](x)  # twice the size, half the channels
            x = self.up_layers[level](self.up_layers[level](x)) + kept[level]
        pixels = self.patch_expand.project(x, self.output.weight)  # (B, H, W, out_chans)
        return pixels.permute(0, 3, 1, 2).contiguous()
