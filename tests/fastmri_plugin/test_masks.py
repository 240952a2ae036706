"""Masks: fastMRI's own as oracle, and what is not allowed."""

from __future__ import annotations

import os
from typing import get_args

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
    MaskType,
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


def test_every_flag_draws_or_is_refused_in_one_line():
    """Against fastMRI's own functions: what is accepted draws their very columns, what is refused they cannot draw.

    `FUZZ=20000` for more (docs/RELIABILITY.md).
    """
    rng = np.random.default_rng(7)
    accepted = refused = 0
    for number in range(int(os.environ.get("FUZZ", "1500"))):
        mask_type = str(rng.choice(get_args(MaskType)))
        acceleration = int(rng.choice([1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32]))
        width = int(rng.choice([rng.integers(2, 65), rng.integers(65, 401)]))
        # Most fractions lie where fastMRI's denominators are small: around 1 / acceleration.
        near = (1 / acceleration) * rng.choice([1, 0.999, rng.uniform(0.9, 1.05)])
        fraction = float(
            min(rng.choice([near, rng.uniform(1e-4, 1), usual_center_fraction(acceleration)]), 1)
        )
        flags = (mask_type, acceleration, fraction, width)
        theirs = create_mask_for_mask_type(mask_type, [fraction], [acceleration])
        seeds = [name_seed(f"file{number}.h5"), name_seed(f"{number}")]
        said = ""
        try:
            spec = MaskSpec(mask_type, (acceleration,), (fraction,))
            ours = [draw_columns(spec.mask_func(), width, seed) for seed in seeds]
        except InputError as error:
            said = str(error)
        if said:
            assert "--center_fractions" in said
            assert "\n" not in said
            if "leaves no column" not in said:
                with pytest.raises((ZeroDivisionError, ValueError)):
                    theirs((1, width, 1), seed=seeds[0])
            refused += 1
            continue
        accepted += 1
        for drawn, seed in zip(ours, seeds, strict=True):
            expected = theirs((1, width, 1), seed=seed)[0].numpy().reshape(-1) > 0
            if not expected.any():
                expected[width // 2] = True
            np.testing.assert_array_equal(drawn, expected, err_msg=str(flags))
    assert min(accepted, refused) > 100
