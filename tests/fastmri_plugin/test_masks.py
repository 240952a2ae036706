"""Masks: fastMRI's own as oracle, and what is not allowed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fastmri.data import transforms as fastmri_transforms
from fastmri.data.subsample import (
    EquispacedMaskFractionFunc,
    RandomMaskFunc,
    create_mask_for_mask_type,
)

from fastmri_plugin.listing import list_volumes
from fastmri_plugin.masks import (
    MaskSpec,
    draw_columns,
    name_seed,
    usual_center_fraction,
)
from img2img_recon.support.errors import InputError


@pytest.mark.parametrize("mask_type", ["random", "equispaced_fraction"])
@pytest.mark.parametrize("acceleration", [4, 8])
def test_validation_masks_are_fastmris(mask_type, acceleration):
    """The very columns that fastMRI's U-Net and VarNet transforms keep for a file of that name."""
    masks = MaskSpec(mask_type, (acceleration,), (usual_center_fraction(acceleration),))
    fname, width = "file1000123.h5", 368
    ours = draw_columns(masks.mask_func(), width, name_seed(fname))
    theirs = create_mask_for_mask_type(
        mask_type, [{4: 0.08, 8: 0.04}[acceleration]], [acceleration]
    )
    kspace = torch.ones(16, width, 2)
    masked, _, _ = fastmri_transforms.apply_mask(kspace, theirs, seed=tuple(map(ord, fname)))
    np.testing.assert_array_equal(ours, masked[0, :, 0].numpy() > 0)


@pytest.mark.parametrize("width", [368, 321])
@pytest.mark.parametrize(
    ("mask_type", "oracle"),
    [("random", RandomMaskFunc), ("equispaced_fraction", EquispacedMaskFractionFunc)],
)
def test_the_mask_of_a_file_is_fastmris(width, mask_type, oracle):
    mask = MaskSpec(mask_type, (4,), (0.08,)).drawn("file1000000.h5", width)
    seed = tuple(map(ord, "file1000000.h5"))
    expected, low = oracle([0.08], [4])((1, width, 1), seed=seed)
    np.testing.assert_array_equal(mask, expected.numpy().reshape(-1))
    # what frozen splits store as num_low_frequency
    assert low == round(width * 0.08)


def test_a_stored_mask_goes_before_a_drawn_one(tiny_data):
    masks = MaskSpec("random", (4,), (0.2,))
    for split, stored in (("test", True), ("val", False)):
        for info in list_volumes(tiny_data("singlecoil") / f"singlecoil_{split}", "singlecoil"):
            drawn = draw_columns(masks.mask_func(), info.num_columns, name_seed(info.name))
            assert info.has_mask == stored
            assert np.array_equal(masks.mask_of(info), drawn) != stored


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (("random", (4, 8), (0.08,)), "given 1 for 2 accelerations, one per acceleration"),
        (("random", (4,), (0.25,)), "0.25 at 4x leaves no column .* below 0.25"),
    ],
)
def test_what_is_not_allowed_is_named(spec, says):
    with pytest.raises(InputError, match=says):
        MaskSpec(*spec)
    assert MaskSpec("random", (1,), (0.5,)).accelerations == (1,)
