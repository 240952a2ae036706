"""What the models for deepinv need here; they themselves are tested with deepinv, in tests/external."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from img2img_recon.denoising import estimated_levels, noise_levels
from img2img_recon.support.errors import InputError


@pytest.mark.skipif(importlib.util.find_spec("deepinv") is not None, reason="deepinv is here")
def test_without_deepinv_one_line_says_what_to_install():
    with pytest.raises(InputError, match=r"cannot be imported.*install.*torchvision") as caught:
        importlib.import_module("img2img_recon.deepinv")
    assert "\n" not in str(caught.value)


def test_noise_levels_come_from_images_with_a_gradient_and_pass_one_on():
    noisy = 0.1 * torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) + 0.5
    levels = estimated_levels(noisy.requires_grad_())
    torch.testing.assert_close(levels, torch.full((1,), 0.1), rtol=0.1, atol=0)
    sigma = torch.tensor([0.1, 0.2], requires_grad=True)
    noise_levels(sigma, 2).sum().backward()
    assert sigma.grad is not None
    assert sigma.grad.tolist() == [1, 1]
