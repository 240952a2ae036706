"""fastMRI's U-Net as a `Network`; importing this needs fastmri."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from img2img_recon.networks.base import Network
from img2img_recon.support.errors import InputError

try:
    from fastmri.models import Unet
except ImportError as error:
    raise ImportError(
        "the U-Net is fastmri.models.Unet; install fastmri, or choose another model"
    ) from error


class UNet(Network):
    """`fastmri.models.Unet`, the same function.

    Args:
        in_chans: channels of the images that come in.
        out_chans: channels of the images that go out.
        chans: channels of the first convolution; they double with every pooling.
        num_pool_layers: number of poolings, each halving height and width.
        drop_prob: probability of dropping a channel in training, in [0, 1].

    Shapes: (B, in_chans, H, W) -> (B, out_chans, H, W). Odd sizes work, because the network pads inside;
        both sides must be at least 2^num_pool_layers and one of them twice that.

    Raises:
        InputError: a number is out of range, or an image too small comes in.
    """

    def __init__(
        self,
        in_chans: int = 3,
        out_chans: int = 3,
        chans: int = 21,
        num_pool_layers: int = 4,
        drop_prob: float = 0.0,
    ) -> None:
        if num_pool_layers < 1:
            raise InputError(f"num_pool_layers is {num_pool_layers}; it must be at least 1")
        if not 0 <= drop_prob <= 1:
            raise InputError(f"drop_prob is {drop_prob}; it must be in [0, 1]")
        super().__init__(in_chans, out_chans, min_size=2 ** (num_pool_layers + 1))
        self.unet = _TraceableUnet(in_chans, out_chans, chans, num_pool_layers, drop_prob)

    def takes_size(self, height: int, width: int) -> bool:
        """Whether the coarsest grid has more than one pixel, which instance normalisation needs."""
        shorter, longer = sorted((height, width))
        return shorter >= self.min_size // 2 and longer >= self.min_size

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, in_chans, H, W) to (B, out_chans, H, W)."""
        self.check_image(image)
        return self.unet(image)


class _TraceableUnet(Unet):
    """fastMRI's asks a tensor whether to pad odd sizes, which exporters cannot follow; this one asks the sizes."""

    def forward(self, image: Tensor) -> Tensor:
        x, finer = image, []
        for layer in self.down_sample_layers:
            finer.append(layer(x))
            x = F.avg_pool2d(finer[-1], 2)
        x = self.conv(x)
        for transpose, layer in zip(self.up_transpose_conv, self.up_conv, strict=True):
            x, skipped = transpose(x), finer.pop()
            rows, columns = (skipped.shape[dim] - x.shape[dim] for dim in (-2, -1))
            if rows or columns:
                x = F.pad(x, (0, columns, 0, rows), "reflect")
            x = layer(torch.cat([x, skipped], 1))
        return x
