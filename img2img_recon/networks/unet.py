"""fastMRI's U-Net as a `Network`."""

from __future__ import annotations

from torch import Tensor

from img2img_recon.networks.base import Network
from img2img_recon.support.errors import InputError


class UNet(Network):
    """`fastmri.models.Unet`, unchanged inside.

    Args:
        in_chans: channels of the images that come in.
        out_chans: channels of the images that go out.
        chans: channels of the first convolution; they double with every pooling.
        num_pool_layers: number of poolings, each halving height and width.
        drop_prob: probability of dropping a channel in training.

    Shapes: (B, in_chans, H, W) -> (B, out_chans, H, W). Odd sizes work, because the network pads inside;
        both sides must be at least 2^num_pool_layers and one of them twice that.

    Raises:
        InputError: a number is out of range, or an image too small comes in.
        ImportError: `fastmri` is not installed.

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
        try:
            from fastmri.models import Unet
        except ImportError as error:
            raise ImportError(
                "the U-Net is fastmri.models.Unet; install fastmri, or choose another model"
            ) from error
        super().__init__(in_chans, out_chans, min_size=2 ** (num_pool_layers + 1))
        self.unet = Unet(in_chans, out_chans, chans, num_pool_layers, drop_prob)

    def takes_size(self, height: int, width: int) -> bool:
        """Whether the coarsest grid has more than one pixel, which instance normalisation needs."""
        shorter, longer = sorted((height, width))
        return shorter >= self.min_size // 2 and longer >= self.min_size

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, in_chans, H, W) to (B, out_chans, H, W)."""
        self.check_image(image)
        return self.unet(image)
