"""K-space to image: fastMRI's own functions and the adjoint law as oracles."""

from __future__ import annotations

import fastmri
import numpy as np
import pytest
import torch
from fastmri.data import transforms as fastmri_transforms
from fastmri.data.subsample import create_mask_for_mask_type
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmri_plugin.transforms import (
    ImageTransform,
    Sampling,
    column_mask,
    combine_coils,
    name_seed,
    usual_center_fraction,
    zero_filled_image,
    zero_filled_magnitude,
)
from img2img_recon.support.errors import InputError

sizes = st.integers(min_value=1, max_value=24)


def complex_noise(*shape: int, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return draw.standard_normal(shape) + 1j * draw.standard_normal(shape)


def fastmri_image(kspace: np.ndarray) -> np.ndarray:
    image = fastmri.ifft2c(torch.view_as_real(torch.from_numpy(kspace).contiguous()))
    return torch.view_as_complex(image).numpy()


@settings(deadline=None, max_examples=60)
@given(st.data(), sizes, sizes)
def test_both_zero_filled_functions_are_fastmris_masked_and_cropped(data, height, width):
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
    np.testing.assert_allclose(zero_filled_image(kspace, mask, crop), expected, atol=1e-12)
    magnitude = zero_filled_magnitude(kspace, mask, crop)
    np.testing.assert_allclose(magnitude, np.abs(expected), atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(sizes, sizes, st.integers(min_value=0, max_value=9))
def test_masked_fourier_operator_has_the_zero_filled_image_as_its_adjoint(height, width, seed):
    """<M F x, k> = <x, F^H M k> for the orthonormal centred transform of fastMRI."""
    x, k = complex_noise(height, width, seed=seed), complex_noise(height, width, seed=seed + 100)
    mask = np.random.default_rng(seed).random(width) < 0.5
    forward = fastmri.fft2c(torch.view_as_real(torch.from_numpy(x)))
    measured = torch.view_as_complex(forward).numpy() * mask
    adjoint = zero_filled_image(k, mask, (height, width))
    assert np.vdot(k, measured) == pytest.approx(np.vdot(adjoint, x), abs=1e-9)


def test_the_input_is_left_alone():
    kspace = complex_noise(8, 1)
    before = kspace.copy()
    zero_filled_magnitude(kspace, None, (8, 1))
    np.testing.assert_array_equal(kspace, before)


@pytest.mark.parametrize("mask_type", ["random", "equispaced_fraction"])
@pytest.mark.parametrize("acceleration", [4, 8])
def test_validation_masks_are_fastmris(mask_type, acceleration):
    """The very columns that fastMRI's U-Net and VarNet transforms keep for a file of that name."""
    sampling = Sampling(mask_type, (acceleration,), (usual_center_fraction(acceleration),))
    fname, width = "file1000123.h5", 368
    ours = column_mask(sampling.mask_func(), width, name_seed(fname))
    theirs = create_mask_for_mask_type(
        mask_type, [{4: 0.08, 8: 0.04}[acceleration]], [acceleration]
    )
    kspace = torch.ones(16, width, 2)
    masked, _, _ = fastmri_transforms.apply_mask(kspace, theirs, seed=tuple(map(ord, fname)))
    np.testing.assert_array_equal(ours, masked[0, :, 0].numpy() > 0)


@pytest.mark.parametrize("coils", [0, 4])
@pytest.mark.parametrize(
    ("shape", "size"), [((64, 36), (32, 32)), ((150, 67), (67, 67)), ((48, 28), (32, 32))]
)
def test_sample_is_that_of_fastmris_unet_transform(coils, shape, size):
    """Cropping of narrow files included; fastMRI also normalises, which is undone here."""
    challenge = "multicoil" if coils else "singlecoil"
    kspace = complex_noise(*((coils,) if coils else ()), *shape).astype(np.complex64)
    target = np.abs(complex_noise(*size)).astype(np.float32)
    attrs = {"max": float(target.max()), "recon_size": (*size, 1)}
    mask_func = Sampling("random", (4,), (0.08,)).mask_func()
    theirs = fastmri_transforms.UnetDataTransform(challenge, mask_func, use_seed=True)(
        kspace, None, target, attrs, "a.h5", 3
    )
    ours = ImageTransform(challenge, mask_func)(kspace, None, target, attrs, "a.h5", 3)
    normalised = ((ours.image - theirs.mean) / theirs.std).clamp(-6, 6)
    torch.testing.assert_close(normalised, theirs.image, atol=1e-4, rtol=1e-4)
    undone = theirs.target * theirs.std + theirs.mean
    inside = theirs.target.abs() < 6
    torch.testing.assert_close(ours.target[inside], undone[inside], atol=1e-5, rtol=1e-5)
    assert (ours.fname, ours.slice_num, ours.max_value) == ("a.h5", 3, attrs["max"])


def test_root_sum_of_squares_is_fastmris():
    image = complex_noise(4, 8, 8)
    expected = fastmri.rss_complex(torch.view_as_real(torch.from_numpy(image)))
    np.testing.assert_allclose(combine_coils(image), expected.numpy())


@pytest.mark.parametrize("where", ["kspace", "target"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite(where, value):
    kspace = complex_noise(16, 16).astype(np.complex64)
    target = np.ones((8, 8), dtype=np.float32)
    (kspace if where == "kspace" else target)[3, 3] = value
    with pytest.raises(InputError, match=f"a.h5: slice 0 of (the )?{where} holds NaN"):
        ImageTransform("singlecoil")(kspace, None, target, {"max": 1.0}, "a.h5", 0)
