"""Reading and writing volumes."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from fastmri_plugin.listing import list_volumes
from fastmri_plugin.volumes import (
    own_mask,
    read_reconstruction,
    read_slice,
    read_target,
    write_reconstruction,
)
from img2img_recon.support.errors import InputError


def test_a_narrow_volumes_target_is_cropped_to_its_image(tiny_data):
    """The stored target is 32 x 32, but the k-space of one volume has 28 columns."""
    sizes = set()
    for info in list_volumes(tiny_data("singlecoil") / "singlecoil_val", "singlecoil"):
        with h5py.File(info.path) as file:
            file_target = file["reconstruction_esc"][()]
        target = read_target(info)
        assert target.shape == (info.num_slices, *info.image_size)
        top = (file_target.shape[-2] - info.image_size[0]) // 2
        left = (file_target.shape[-1] - info.image_size[1]) // 2
        rows = slice(top, top + info.image_size[0])
        columns = slice(left, left + info.image_size[1])
        np.testing.assert_array_equal(target, file_target[:, rows, columns])
        sizes.add((file_target.shape[-1], info.image_size[1]))
    assert len(sizes) > 1


def test_a_target_larger_than_the_image_is_cropped_in_reading(tiny_data, tmp_path):
    """Files of other programs store targets larger than their narrow k-space."""
    source = list_volumes(tiny_data("singlecoil") / "singlecoil_val", "singlecoil")[1]
    path = tmp_path / source.name
    path.write_bytes(source.path.read_bytes())
    large = np.random.default_rng(0).random((source.num_slices, 40, 40), dtype=np.float32)
    with h5py.File(path, "r+") as file:
        del file["reconstruction_esc"]
        file["reconstruction_esc"] = large
    (info,) = list_volumes(tmp_path, "singlecoil")
    side = info.num_columns
    assert side < 40
    start = (40 - side) // 2
    cropped = large[:, start : start + side, start : start + side]
    np.testing.assert_array_equal(read_target(info), cropped)


def test_a_reconstruction_is_read_back(tmp_path):
    volume = np.random.default_rng(0).random((2, 5, 4))
    write_reconstruction(tmp_path / "a.h5", volume)
    found = read_reconstruction(tmp_path / "a.h5")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, volume.astype(np.float32))
    with pytest.raises(InputError, match=r"a.h5: slice 0 cannot be read"):
        read_slice(tmp_path / "a.h5", 0)


def test_the_own_mask(tiny_data):
    for split, stored in (("test", True), ("val", False)):
        for info in list_volumes(tiny_data("multicoil") / f"multicoil_{split}", "multicoil"):
            mask = own_mask(info)
            assert (mask is not None) == stored
            if mask is not None:
                assert mask.dtype == bool
                used = (read_slice(info.path, 0) != 0).any(axis=(0, 1))
                assert mask[used].all()
