"""The original MLP-mixer (Tolstikhin et al., arXiv:2105.01601) with an image as output."""

from __future__ import annotations

from torch import Tensor, nn

from img2img_recon.networks.mixer import check_image, image_size
from img2img_recon.networks.mixing import AxisMLP
from img2img_recon.networks.patches import PatchEmbed


class OriginalMixerLayer(nn.Module):
    """x = x + TokenMLP(LN(x)), then x = x + ChannelMLP(LN(x)); all tokens are mixed by one MLP.

    Args:
        num_tokens: T, number of tokens.
        embed_dim: C, channels of a token.
        tokens_mlp_dim: hidden width of the MLP over tokens.
        channels_mlp_dim: hidden width of the MLP over channels.

    Shapes: (B, T, C) -> (B, T, C).

    """

    def __init__(
        self, num_tokens: int, embed_dim: int, tokens_mlp_dim: int, channels_mlp_dim: int
    ) -> None:
        super().__init__()
        self.token_norm = nn.LayerNorm(embed_dim)
        self.token_mixing = AxisMLP(num_tokens, tokens_mlp_dim, axis=1)
        self.channel_norm = nn.LayerNorm(embed_dim)
        self.channel_mixing = AxisMLP(embed_dim, channels_mlp_dim, axis=-1)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, T, C) to (B, T, C)."""
        x = x + self.token_mixing(self.token_norm(x))
        return x + self.channel_mixing(self.channel_norm(x))


class OriginalMixer(nn.Module):
    """Patches as a flat list of tokens, mixed along tokens and channels, then mapped back.

    Args:
        img_size: height and width of the images, or one number for both. The weights of token
            mixing belong to this size.
        in_chans: channels of the images that come in.
        out_chans: channels of the images that go out.
        patch_size: P, side of a patch in pixels; divides both sides of `img_size`.
        embed_dim: C, channels of a token.
        depth: number of mixer layers.
        tokens_mlp_dim: hidden width of the MLP over tokens.
        channels_mlp_dim: hidden width of the MLP over channels.

    Shapes: (B, in_chans, H, W) -> (B, out_chans, H, W).

    Raises:
        InputError: `img_size` is not divisible by `patch_size`, a size is not positive, or an image
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
        tokens_mlp_dim: int,
        channels_mlp_dim: int,
    ) -> None:
        super().__init__()
        self.img_size = image_size(img_size, patch_size)
        self.in_chans = in_chans
        self.size_divisor = patch_size
        self.grid = (self.img_size[0] // patch_size, self.img_size[1] // patch_size)
        num_tokens = self.grid[0] * self.grid[1]
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.mixer_layers = nn.Sequential(
            *(
                OriginalMixerLayer(num_tokens, embed_dim, tokens_mlp_dim, channels_mlp_dim)
                for _ in range(depth)
            )
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.output = nn.ConvTranspose2d(embed_dim, out_chans, patch_size, stride=patch_size)

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, in_chans, H, W) to (B, out_chans, H, W)."""
        check_image(image, self.in_chans, self.img_size)
        tokens = self.patch_embed(image).flatten(1, 2)  # (B, H/P * W/P, C)
        tokens = self.norm(self.mixer_layers(tokens))
        volume = tokens.transpose(1, 2).unflatten(2, self.grid)  # (B, C, H/P, W/P)
        return self.output(volume)  # (B, out_chans, H, W)
