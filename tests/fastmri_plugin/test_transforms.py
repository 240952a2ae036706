"""Samples: fastMRI's transforms as oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fastmri.data import transforms as fastmri_transforms

from fastmri_plugin.masks import MaskSpec
from fastmri_plugin.transforms import ImageTransform
from img2img_recon.support.errors import InputError


def complex_noise(*shape: int, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return draw.standard_normal(shape) + 1j * draw.standard_normal(shape)


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
    mask_func = MaskSpec("random", (4,), (0.08,)).mask_func()
    theirs = fastmri_transforms.UnetDataTransform(challenge, mask_func, use_seed=True)(
        kspace, None, target, attrs, "a.h5", 3
    )
    ours = ImageTransform(mask_func)(kspace, None, target, attrs, "a.h5", 3)
    normalised = ((ours.image - theirs.mean) / theirs.std).clamp(-6, 6)
    torch.testing.assert_close(normalised, theirs.image, atol=1e-4, rtol=1e-4)
    undone = theirs.target * theirs.std + theirs.mean
    inside = theirs.target.abs() < 6
    torch.testing.assert_close(ours.target[inside], undone[inside], atol=1e-5, rtol=1e-5)
    assert (ours.fname, ours.slice_num, ours.max_value) == ("a.h5", 3, attrs["max"])


@pytest.mark.parametrize("where", ["kspace", "target"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite(where, value):
    kspace = complex_noise(16, 16).astype(np.complex64)
    target = np.ones((8, 8), dtype=np.float32)
    (kspace if where == "kspace" else target)[3, 3] = value
    with pytest.raises(InputError, match=f"a.h5: slice 0 of (the )?{where} holds NaN"):
        ImageTransform()(kspace, None, target, {"max": 1.0}, "a.h5", 0)
