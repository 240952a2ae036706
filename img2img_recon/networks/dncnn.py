"""DnCNN (Zhang et al., "Beyond a Gaussian Denoiser", IEEE TIP 2017, arXiv:1608.03981)."""

from __future__ import annotations

from torch import Tensor, nn

from img2img_recon.networks.base import Network
from img2img_recon.support.errors import InputError


class DnCNN(Network):
    """A plain stack of 3 x 3 convolutions; the 17 layers of the original for `depth` 17.

    Convolution + ReLU, then depth - 2 times convolution + batch normalisation + ReLU, then one
    convolution. As in the authors' code only the first convolution has a bias: the middle ones have
    that of the normalisation. The output is the last convolution's: subtracting it from the image
    (residual learning, as in the paper) is the task's choice.

    Args:
        in_chans: channels of the images that come in.
        out_chans: channels of the images that go out.
        chans: channels between the convolutions.
        depth: number of convolutions, at least 2.

    Shapes: (B, in_chans, H, W) -> (B, out_chans, H, W), any H and W.

    Raises:
        InputError: `depth` is below 2.
    """

    def __init__(
        self, in_chans: int = 3, out_chans: int = 3, chans: int = 64, depth: int = 17
    ) -> None:
        super().__init__(in_chans, out_chans)
        if depth < 2:
            raise InputError(f"depth is {depth}; DnCNN has at least 2 layers")
        layers: list[nn.Module] = [nn.Conv2d(in_chans, chans, 3, padding=1), nn.ReLU(inplace=True)]
        for _ in range(depth - 2):
            layers += [
                nn.Conv2d(chans, chans, 3, padding=1, bias=False),
                nn.BatchNorm2d(chans),
                nn.ReLU(inplace=True),
            ]
        layers.append(nn.Conv2d(chans, out_chans, 3, padding=1, bias=False))
        self.layers = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, in_chans, H, W) to (B, out_chans, H, W)."""
        self.check_image(image)
        return self.layers(image)
