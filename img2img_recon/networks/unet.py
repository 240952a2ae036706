"""fastMRI's U-Net with the attributes that every network here has."""

from __future__ import annotations

from torch import Tensor, nn

from img2img_recon.support.errors import InputError


class UNet(nn.Module):
    """`fastmri.models.Unet`, unchanged inside.

    Args:
        in_chans: channels of the images that come in.
        out_chans: channels of the images that go out.
        chans: channels of the first convolution; they double with every pooling.
        num_pool_layers: number of poolings, each halving height and width.
        drop_prob: probability of dropping a channel in training.

    Shapes: (B, in_chans, H, W) -> (B, out_chans, H, W). Odd sizes work, because the network pads
        inside;
    both sides must be at least 2^num_pool_layers and one of them twice that, so that instance
    normalisation has more than one pixel to look at on the coarsest grid.

    Raises:
        InputError: a number is out of range, or an image too small comes in.
        ImportError: `fastmri` is not installed.

    """

    img_size: tuple[int, int] | None = None
    size_divisor = 1

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        chans: int,
        num_pool_layers: int,
        drop_prob: float = 0.0,
    ) -> None:
        super().__init__()
        if num_pool_layers < 1:
            raise InputError(f"num_pool_layers is {num_pool_layers}; it must be at least 1")
        if not 0 <= drop_prob <= 1:
            raise InputError(f"drop_prob is {drop_prob}; it must lie in [0, 1]")
        try:
            from fastmri.models import Unet
        except ImportError as error:
            raise ImportError(
                "the U-Net is fastmri.models.Unet; install fastmri, or choose another model"
            ) from error
        self.min_size = 2 ** (num_pool_layers + 1)
        self.unet = Unet(in_chans, out_chans, chans, num_pool_layers, drop_prob)

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, in_chans, H, W) to (B, out_chans, H, W)."""
        shorter, longer = sorted(image.shape[-2:])
        if shorter < self.min_size // 2 or longer < self.min_size:
            raise InputError(
                f"the image has shape {tuple(image.shape)}; this U-Net takes {self.min_size} x "
                f"{self.min_size} or more (AnySize pads what is smaller)"
            )
        return self.unet(image)
