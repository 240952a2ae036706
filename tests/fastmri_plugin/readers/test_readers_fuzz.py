"""Damaged scans of every format: read, or refused in one line; what is written is whole.

`FUZZ=1000` damages each kind of file that often (see docs/RELIABILITY.md).
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
from PIL import Image

from fastmri_plugin.reconstruct import main
from fastmri_plugin.volumes import read_reconstruction
from img2img_recon.support.errors import InputError
from tests.fastmri_plugin.readers import files

COUNT = int(os.environ.get("FUZZ", "6"))
KSPACE = files.random_complex(2, 2, 12, 10)
# The bytes, and how many of them are the header: that is where damage does harm.
HEADER_BYTES = 3000


def raw(folder: Path) -> Path:
    noise = [{"data": files.random_complex(2, 40), "flags": [19]}]
    return files.raw(folder / "scan.h5", noise + files.raw_lines(KSPACE), files.header(12, 10))


def npy(folder: Path) -> Path:
    np.save(folder / "scan.npy", KSPACE)
    return folder / "scan.npy"


def npz(folder: Path) -> Path:
    np.savez(folder / "scan.npz", kspace=KSPACE)
    return folder / "scan.npz"


def hdf5(folder: Path) -> Path:
    with h5py.File(folder / "scan.h5", "w") as file:
        file["kspace"] = KSPACE
    return folder / "scan.h5"


def bart_header(folder: Path) -> Path:
    return files.bart(folder / "scan", KSPACE).with_suffix(".hdr")


def dicom(folder: Path) -> Path:
    series = files.dicom_series(folder / "series", np.full((1, 12, 10), 9))
    return next(series.iterdir()).rename(folder / "scan.dcm")


MAKERS = {
    "raw": raw,
    "npy": npy,
    "npz": npz,
    "hdf5": hdf5,
    "bart": bart_header,
    "dicom": dicom,
    "matlab5": lambda folder: files.matlab5(folder / "scan.mat", KSPACE),
    "matlab73": lambda folder: files.matlab73(folder / "scan.mat", KSPACE),
    "nifti": lambda folder: files.nifti(folder / "scan.nii", np.abs(KSPACE[:, 0]), np.eye(4)),
}


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """A few bytes changed, mostly of the header; now and then a part is gone or doubled."""
    changed = bytearray(content)
    for _ in range(rng.integers(1, 6)):
        last = len(changed) if rng.random() < 0.2 else min(len(changed), HEADER_BYTES)
        place = int(rng.integers(max(last, 1)))
        kind = rng.random()
        if kind < 0.8:
            changed[place : place + 1] = bytes(
                [int(rng.choice([0, 1, 48, 57, 127, 255, rng.integers(256)]))]
            )
        elif kind < 0.9:
            del changed[place : place + int(rng.integers(1, 40))]
        else:
            changed[place:place] = changed[place : place + int(rng.integers(1, 40))]
    return bytes(changed) if rng.random() < 0.9 else bytes(changed[: rng.integers(len(changed))])


@pytest.mark.parametrize("kind", MAKERS)
def test_damaged_scans(tmp_path, kind, capsys):
    path = MAKERS[kind](tmp_path)
    content = path.read_bytes()
    rng = np.random.default_rng(list(kind.encode()))
    for number in range(COUNT):
        path.write_bytes(damaged(content, rng))
        out = tmp_path / f"out{number}"
        words = [str(path), "--out", str(out), "--model", "zero_filled", "--no_progress"]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                main(words)
            said = "scan"
        except InputError as error:
            said = str(error)
        assert "scan" in said, number
        assert "\n" not in said, number
        found = sorted(item.name for item in out.iterdir()) if out.is_dir() else []
        assert found in ([], ["scan.h5", "scan.nii.gz", "scan.png"]), number
        if found:
            shape = read_reconstruction(out / "scan.h5").shape
            assert nibabel.load(out / "scan.nii.gz").shape == shape[::-1]
            Image.open(out / "scan.png").load()
