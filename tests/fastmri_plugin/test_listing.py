"""Listing a folder: what is cached, when it is read anew."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import h5py
import pytest

from fastmri_plugin import Challenge
from fastmri_plugin.listing import list_volumes
from fastmri_plugin.volumes import VolumeInfo
from img2img_recon.support.errors import InputError


def test_listing_is_cached_and_never_stale(tiny_data, tmp_path, monkeypatch):
    from fastmri_plugin import listing as module

    folder = Path(shutil.copytree(tiny_data("singlecoil") / "singlecoil_val", tmp_path / "val"))
    (folder / "notes.txt").write_text("not a volume")
    (folder / ".hidden.h5").write_text("not a volume either")
    first = list_volumes(folder, "singlecoil")
    read: list[Path] = []
    original = module.inspect_volume

    def counted(path: Path, challenge: Challenge) -> VolumeInfo:
        read.append(path)
        return original(path, challenge)

    monkeypatch.setattr(module, "inspect_volume", counted)
    assert list_volumes(folder, "singlecoil") == first
    assert read == []
    with h5py.File(first[0].path, "r+") as file:
        file.attrs["acquisition"] = "OTHER"
    os.utime(first[0].path, ns=(1, 1))
    changed = list_volumes(folder, "singlecoil")
    assert read == [first[0].path]
    assert changed[0].acquisition == "OTHER"
    caches = list((Path(os.environ["IMG2IMG_CACHE"]) / "metadata").glob("*.json"))
    assert caches
    for cache in caches:
        json.loads(cache.read_text())
    # the other challenge does not see this one's entries
    with pytest.raises(InputError, match="single-coil; --challenge multicoil"):
        list_volumes(folder, "multicoil")
    # a damaged cache is read anew
    for cache in caches:
        cache.write_text("{")
    assert list_volumes(folder, "singlecoil") == changed


def test_a_rewritten_file_of_the_same_name_and_size_is_read_anew(tiny_data, tmp_path):
    folder = Path(shutil.copytree(tiny_data("singlecoil") / "singlecoil_val", tmp_path / "val"))
    first = list_volumes(folder, "singlecoil")
    with h5py.File(first[0].path, "r+") as file:
        file.attrs["acceleration"] = 4
    size = first[0].path.stat().st_size
    with h5py.File(first[0].path, "r+") as file:
        file.attrs.modify("acceleration", 8)
    assert first[0].path.stat().st_size == size
    later = first[0].path.stat().st_mtime_ns + 1_000_000
    os.utime(first[0].path, ns=(later, later))
    again = list_volumes(folder, "singlecoil")
    assert again[0].acceleration == 8
    assert again[1:] == first[1:]
