"""Arrays of k-space and images: fastMRI's own functions and the adjoint law as oracles."""

from __future__ import annotations

import fastmri
import numpy as np
import pytest
import torch
from fastmri.data import transforms as fastmri_transforms
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmri_plugin.kspace import (
    center_crop,
    centred_fft,
    centred_ifft,
    crop_size,
    rss,
    target_of,
    zero_filled,
)

sizes = st.integers(min_value=1, max_value=24)


def complex_noise(*shape: int, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return draw.standard_normal(shape) + 1j * draw.standard_normal(shape)


def fastmri_image(kspace: np.ndarray) -> np.ndarray:
    image = fastmri.ifft2c(torch.view_as_real(torch.from_numpy(kspace).contiguous()))
    return torch.view_as_complex(image).numpy()


@settings(deadline=None, max_examples=60)
@given(st.data(), sizes, sizes)
def test_the_zero_filled_image_is_fastmris_masked_and_cropped(data, height, width):
    """Odd and even sizes, any mask, any crop, any number of coils."""
    crop = (
        data.draw(st.integers(min_value=1, max_value=height)),
        data.draw(st.integers(min_value=1, max_value=width)),
    )
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=width, max_size=width)))
    coils = data.draw(st.sampled_from([(), (3,)]))
    kspace = complex_noise(*coils, height, width)
    image = fastmri_image(kspace * mask)
    expected = fastmri_transforms.center_crop(torch.from_numpy(image), crop).numpy()
    magnitude = np.sqrt((np.abs(expected) ** 2).sum(0)) if coils else np.abs(expected)
    np.testing.assert_allclose(zero_filled(kspace, mask, crop), magnitude, atol=1e-12)
    np.testing.assert_allclose(center_crop(centred_ifft(kspace * mask), crop), expected, atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(sizes, sizes, st.integers(min_value=0, max_value=9))
def test_the_masked_fourier_operators_adjoint_is_the_zero_filled_image(height, width, seed):
    """<M F x, k> = <x, F^H M k> for the orthonormal centred transform of fastMRI."""
    x, k = complex_noise(height, width, seed=seed), complex_noise(height, width, seed=seed + 100)
    mask = np.random.default_rng(seed).random(width) < 0.5
    forward = fastmri.fft2c(torch.view_as_real(torch.from_numpy(x)))
    measured = torch.view_as_complex(forward).numpy() * mask
    adjoint = centred_ifft(k * mask)
    assert np.vdot(k, measured) == pytest.approx(np.vdot(adjoint, x), abs=1e-9)


def test_the_input_is_left_alone():
    kspace = complex_noise(8, 1)
    before = kspace.copy()
    zero_filled(kspace, None, (8, 1))
    np.testing.assert_array_equal(kspace, before)


def test_root_sum_of_squares_is_fastmris():
    image = complex_noise(4, 8, 8)
    expected = fastmri.rss_complex(torch.view_as_real(torch.from_numpy(image)))
    np.testing.assert_allclose(rss(image), expected.numpy())


@pytest.mark.parametrize("shape", [(2, 8, 6), (2, 7, 5), (3, 2, 6, 9)])
def test_the_fft_is_fastmris_and_has_an_inverse(shape):
    image = complex_noise(*shape)
    expected = torch.view_as_complex(fastmri.fft2c(torch.view_as_real(torch.from_numpy(image))))
    np.testing.assert_allclose(centred_fft(image), expected.numpy(), atol=1e-12)
    np.testing.assert_allclose(centred_ifft(centred_fft(image)), image, atol=1e-12)
    along_rows = centred_ifft(centred_fft(image, axes=(-1,)), axes=(-1,))
    np.testing.assert_allclose(along_rows, image, atol=1e-12)
    assert centred_fft(image.astype(np.complex64)).dtype == np.complex64


@pytest.mark.parametrize("shape", [(2, 12, 9), (2, 3, 12, 9)])
def test_the_target_is_the_cropped_root_sum_of_squares(shape):
    kspace = complex_noise(*shape).astype(np.complex64)
    images = np.abs(np.stack([fastmri_image(k) for k in kspace]))
    if len(shape) == 4:
        images = np.sqrt((images**2).sum(1))
    target = target_of(kspace, (8, 8))
    assert target.dtype == np.float32
    np.testing.assert_allclose(target, images[:, 2:10, :8], atol=1e-5)


def test_crop_of_narrow_files_is_width_by_width():
    assert crop_size((320, 320), (10, 640, 300)) == (300, 300)
    assert crop_size((320, 320), (10, 640, 368)) == (320, 320)
    with pytest.raises(ValueError, match="cannot crop 4 x 4 to 5 x 4"):
        center_crop(np.zeros((4, 4)), (5, 4))
