"""Assertions that every network and wrapper must pass, shared by the test files."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def parameter_count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def assert_maps_images(net: nn.Module, image: Tensor, out_chans: int) -> None:
    """`net` maps (B, C, H, W) to finite (B, out_chans, H, W) of the same dtype."""
    with torch.no_grad():
        output = net(image)
    assert output.shape == (image.shape[0], out_chans, *image.shape[2:])
    assert output.dtype == image.dtype
    assert output.isfinite().all()


def assert_every_parameter_learns(net: nn.Module, image: Tensor) -> None:
    """Every parameter gets a gradient, finite and not all zeros; one that does not is named."""
    net.zero_grad()
    output = net(image)
    # A random direction: a plain sum is blind to whatever a normalisation takes out.
    torch.manual_seed(0)
    (output * torch.randn_like(output)).sum().backward()
    without = [
        name
        for name, parameter in net.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all() or not parameter.grad.any()
    ]
    assert not without, f"no gradient for {', '.join(without)}"


def assert_images_do_not_mix(net: nn.Module, image: Tensor) -> None:
    """The output for an image does not depend on the others in its batch."""
    with torch.no_grad():
        together = net(image)
        alone = torch.cat([net(one[None]) for one in image])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
