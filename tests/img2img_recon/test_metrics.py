"""SSIM loss and volume scores against independent implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from img2img_recon import InputError, SSIMLoss
from img2img_recon.metrics import nmse, psnr, ssim, ssim_loss, volume_scores, volume_ssim


def pair(scale: float = 1.0, shape: tuple[int, ...] = (3, 1, 33, 41)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=generator)
    return scale * x, scale * (0.8 * x + 0.2 * torch.rand(shape, generator=generator))


def volumes(scale: float) -> tuple[np.ndarray, np.ndarray]:
    prediction, target = pair(scale, (4, 1, 40, 36))
    return target[:, 0].numpy(), prediction[:, 0].numpy()


@pytest.mark.parametrize("scale", [1.0, 1e-3, 200.0])
@pytest.mark.parametrize("window_size", [7, 11])
def test_loss_is_fastmris(scale: float, window_size: int) -> None:
    from fastmri.losses import SSIMLoss as FastMRILoss

    x, y = pair(scale)
    data_range = scale * torch.tensor([1.0, 0.5, 2.0])
    x.requires_grad_()
    ours = SSIMLoss(window_size)(x, y, data_range)
    theirs = FastMRILoss(window_size)(x, y, data_range)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    (own,) = torch.autograd.grad(ours, x)
    (other,) = torch.autograd.grad(theirs, x)
    torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-6 / scale)


def test_ssim_is_scikit_images() -> None:
    from skimage.metrics import structural_similarity

    x, y = pair()
    expected = [
        structural_similarity(one[0].numpy(), other[0].numpy(), win_size=7, data_range=1.5)
        for one, other in zip(x.double(), y.double(), strict=True)
    ]
    np.testing.assert_allclose(ssim(x, y, 1.5).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-6, 1e-12])
def test_tiny_intensities(scale: float) -> None:
    (x, y), (tiny_x, tiny_y) = pair(), pair(scale)
    torch.testing.assert_close(ssim(tiny_x, tiny_y, scale), ssim(x, y, 1.0), rtol=0, atol=1e-5)


def test_gradient_in_double_precision() -> None:
    x, y = pair(shape=(2, 1, 8, 9))
    x, y = x.double().requires_grad_(), y.double().requires_grad_()
    span = torch.tensor([1.0, 0.7], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: ssim_loss(a, b, span), (x, y))


def test_equal_images_have_ssim_one_and_order_does_not_matter() -> None:
    x, y = pair()
    torch.testing.assert_close(ssim(x, x, 1.0), torch.ones(3))
    torch.testing.assert_close(ssim(x, y, 1.0), ssim(y, x, 1.0))
    assert ssim_loss(x, y, 1.0) > 0


def test_colour_is_the_mean_over_channels() -> None:
    x, y = pair(shape=(2, 3, 20, 20))
    channels = torch.stack([ssim(x[:, [c]], y[:, [c]], 1.0) for c in range(3)])
    torch.testing.assert_close(ssim(x, y, 1.0), channels.mean(0))


@pytest.mark.parametrize("size", [(7, 7), (7, 30)])
def test_smallest_images(size: tuple[int, int]) -> None:
    x, y = pair(shape=(1, 1, *size))
    assert ssim(x, y, 1.0).isfinite().all()


def test_float32_under_autocast_and_for_half_precision() -> None:
    x, y = pair()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = ssim(x, y, 1.0)
    assert torch.equal(under, ssim(x, y, 1.0))
    assert ssim(x.bfloat16(), y, 1.0).dtype == torch.float32


def test_loss_names_what_does_not_fit() -> None:
    x, y = pair()
    with pytest.raises(InputError, match="images of shape"):
        ssim(x, y[:2], 1.0)
    with pytest.raises(InputError, match="data_range has shape"):
        ssim(x, y, torch.ones(2))
    with pytest.raises(InputError, match="window_size is 7; for images of 6 x 41"):
        ssim(x[:, :, :6], y[:, :, :6], 1.0)


@pytest.mark.parametrize("scale", [1.0, 1e-5, 300.0])
def test_scores_are_fastmris(scale: float) -> None:
    from fastmri import evaluate

    target, prediction = volumes(scale)
    scores = volume_scores(target, prediction, data_range=target.max())
    assert set(scores) == {"nmse", "psnr", "ssim"}
    assert all(type(score) is float for score in scores.values())
    np.testing.assert_allclose(scores["nmse"], evaluate.nmse(target, prediction), rtol=1e-5)
    np.testing.assert_allclose(scores["psnr"], evaluate.psnr(target, prediction), rtol=1e-6)
    np.testing.assert_allclose(scores["ssim"], evaluate.ssim(target, prediction)[0], atol=1e-6)


def test_scores_are_torchmetrics() -> None:
    from torchmetrics.functional.image import (
        peak_signal_noise_ratio,
        structural_similarity_index_measure,
    )

    target, prediction = volumes(1.0)
    given = torch.as_tensor(prediction)[:, None], torch.as_tensor(target)[:, None]
    expected = peak_signal_noise_ratio(*given, data_range=2.0)
    np.testing.assert_allclose(psnr(target, prediction, data_range=2.0), expected, rtol=1e-6)
    # torchmetrics divides by n where fastMRI divides by n - 1, so only c2 = 0 would be the same:
    # the two agree to the few per cent that this makes.
    expected = structural_similarity_index_measure(
        *given, gaussian_kernel=False, kernel_size=7, data_range=2.0
    )
    np.testing.assert_allclose(volume_ssim(target, prediction, data_range=2.0), expected, atol=0.01)


def test_loss_and_score_are_the_same_ssim() -> None:
    target, prediction = volumes(1.0)
    tensors = torch.as_tensor(prediction)[:, None], torch.as_tensor(target)[:, None]
    score = volume_ssim(target, prediction, data_range=1.3)
    np.testing.assert_allclose(ssim(*tensors, 1.3).mean().item(), score, atol=1e-6)


def test_known_values() -> None:
    target = np.ones((2, 8, 8), np.float32)
    assert nmse(target, target) == 0
    assert nmse(target, 0 * target) == 1
    assert psnr(target, target, data_range=1.0) == math.inf
    assert psnr(target, target + 0.1, data_range=1.0) == pytest.approx(20, abs=1e-4)
    assert volume_ssim(target, target, data_range=1.0) == pytest.approx(1)


def test_data_range_is_never_guessed() -> None:
    target = np.ones((2, 8, 8))
    for metric in (psnr, volume_ssim, volume_scores):
        with pytest.raises(TypeError, match="data_range"):
            metric(target, target)
        for wrong in (0, -1.0, math.nan, math.inf):
            with pytest.raises(InputError, match="data_range is"):
                metric(target, target, data_range=wrong)


@pytest.mark.parametrize(
    ("target", "prediction", "message"),
    [
        (np.ones((8, 8)), np.ones((8, 8)), "target has shape"),
        (np.ones((2, 8, 8)), np.ones((2, 8, 9)), "must be the same"),
        (np.ones((2, 8, 8)), np.ones((2, 8, 8), complex), "prediction is complex"),
        (np.zeros((2, 8, 8)), np.ones((2, 8, 8)), "all zeros"),
        (np.ones((2, 8, 6)), np.ones((2, 8, 6)), "at least 7 x 7"),
    ],
)
def test_scores_name_what_does_not_fit(
    target: np.ndarray, prediction: np.ndarray, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        volume_scores(target, prediction, data_range=1.0)
