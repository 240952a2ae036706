"""Samples: fastMRI's transforms as oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fastmri.data import transforms as fastmri_transforms

from fastmri_plugin.data import _collate
from fastmri_plugin.kspace import center_crop, centred_ifft
from fastmri_plugin.masks import MaskSpec
from fastmri_plugin.module import spread_columns
from fastmri_plugin.transforms import ImageTransform, KspaceSample, KspaceTransform
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
    attrs = {"max": 1.0, "padding_left": 0, "padding_right": 16}
    with pytest.raises(InputError, match=f"a.h5: slice 0 of (the )?{where} holds NaN"):
        KspaceTransform()(kspace, None, target, attrs, "a.h5", 0)


def whole(sample: KspaceSample) -> torch.Tensor:
    """K-space (coils, H, W) of a sample."""
    return spread_columns(sample.samples[None], sample.mask[None])[0]


def attributes(size: tuple[int, int], limits: tuple[int, int]) -> dict[str, object]:
    return {
        "max": 3.0,
        "recon_size": (*size, 1),
        "padding_left": limits[0],
        "padding_right": limits[1],
    }


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("coils", [0, 3])
@pytest.mark.parametrize(("shape", "limits"), [((32, 40), (3, 36)), ((32, 33), (0, 33))])
def test_measured_samples_are_those_of_fastmris_varnet_transform(coils, shape, limits, stored):
    """Without rows to cut off: the same samples and mask, which ends where the acquisition did."""
    kspace = complex_noise(*((coils,) if coils else (1,)), *shape).astype(np.complex64)
    kspace[..., : limits[0]] = kspace[..., limits[1] :] = 0
    target = np.abs(complex_noise(32, 32)).astype(np.float32)
    attrs = attributes((32, 32), limits)
    mask_func = MaskSpec("equispaced", (4,), (0.16,)).mask_func()
    mask = None
    if stored:
        mask_func, mask = None, (np.arange(shape[1]) % 2 == 0).astype(np.float32)
        kspace *= mask
    theirs = fastmri_transforms.VarNetDataTransform(mask_func)(
        kspace, mask, target, attrs, "b.h5", 1
    )
    given = kspace if coils else kspace[0]
    ours = KspaceTransform(mask_func)(given.copy(), mask, target, attrs, "b.h5", 1)
    assert torch.equal(torch.view_as_real(whole(ours)), theirs.masked_kspace)
    assert torch.equal(ours.mask[..., None], theirs.mask.bool())
    assert torch.equal(ours.target, theirs.target)
    assert (ours.fname, ours.slice_num, ours.max_value) == ("b.h5", 1, 3.0)


def test_the_read_out_is_cut_to_the_images_rows():
    kspace = complex_noise(2, 50, 24).astype(np.complex64)
    mask = np.arange(24) % 3 > 0
    sample = KspaceTransform()(kspace, mask, None, attributes((21, 20), (0, 24)), "a.h5", 0)
    expected = center_crop(centred_ifft(kspace * mask), (21, 24))
    np.testing.assert_allclose(centred_ifft(whole(sample).numpy()), expected, atol=1e-5)
    assert (sample.target.shape, sample.max_value) == ((21, 20), 0.0)


def test_a_column_that_holds_samples_was_measured():
    """A header's limits are sometimes wrong; samples are not."""
    kspace = complex_noise(16, 20).astype(np.complex64)
    kspace[:, 18:] = 0
    sample = KspaceTransform()(kspace, None, None, attributes((16, 16), (4, 16)), "a.h5", 0)
    assert sample.mask.flatten().tolist() == [True] * 18 + [False] * 2
    np.testing.assert_array_equal(whole(sample)[0], kspace)


def test_a_batchs_masks_may_differ_in_number():
    samples = [
        KspaceTransform()(
            complex_noise(2, 8, 12, seed=seed).astype(np.complex64),
            np.arange(12) % every == 0, None, attributes((8, 8), (0, 12)), "a.h5", seed,
        )
        for seed, every in enumerate((2, 3, 5))
    ]  # fmt: skip
    batch = _collate(samples)
    kspace = spread_columns(torch.from_numpy(batch.samples), torch.from_numpy(batch.mask))
    for one, sample in zip(kspace, samples, strict=True):
        assert torch.equal(one, whole(sample))
