"""What a reconstructed scan is written as: a volume as submissions have it, NIfTI, a mosaic of its slices."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np

from fastmri_plugin.readers.scan import Scan
from fastmri_plugin.volumes import write_reconstruction
from img2img_recon.figures import WINDOW_PERCENTILE
from img2img_recon.support.files import atomic_path

SUFFIXES = (".h5", ".nii.gz", ".png")


def write_scan(folder: Path, name: str, volume: np.ndarray, scan: Scan) -> list[Path]:
    """Write the three files of a volume (slices, h, w), each whole or absent."""
    paths = [folder / f"{name}{suffix}" for suffix in SUFFIXES]
    write_reconstruction(paths[0], volume)
    write_nifti(paths[1], volume, scan)
    write_mosaic(paths[2], volume)
    return paths


def write_nifti(path: Path, volume: np.ndarray, scan: Scan) -> None:
    """Write a volume (slices, h, w) as NIfTI (columns, rows, slices), float32, in mm.

    Without an orientation in the scan's file only the voxel size is set, and the codes say "unknown".
    """
    from nibabel.nifti1 import Nifti1Image

    image = Nifti1Image(volume.transpose(2, 1, 0).astype(np.float32), scan.affine)
    image.header.set_xyzt_units("mm")
    if scan.affine is None:
        row, column, slice_ = scan.voxel_mm or (1.0, 1.0, 1.0)
        image.header.set_zooms((column, row, slice_))
        image.set_sform(None, 0)
        image.set_qform(None, 0)
    with atomic_path(path) as temporary:
        # Without a time in it, equal volumes make equal files.
        temporary.write_bytes(gzip.compress(image.to_bytes(), mtime=0))


def write_mosaic(path: Path, volume: np.ndarray) -> None:
    """Write all slices of a volume (slices, h, w) side by side as a grey PNG, in one window from 0."""
    from PIL import Image

    top = float(np.percentile(volume, WINDOW_PERCENTILE)) or 1.0
    grey = (np.clip(volume / top, 0, 1) * 255).round().astype(np.uint8)
    slices, height, width = grey.shape
    across = max(1, round(math.sqrt(slices * height / width)))
    down = math.ceil(slices / across)
    canvas = np.zeros((down * across, height, width), np.uint8)
    canvas[:slices] = grey
    tiles = canvas.reshape(down, across, height, width).transpose(0, 2, 1, 3)
    with atomic_path(path) as temporary:
        Image.fromarray(tiles.reshape(down * height, across * width)).save(temporary, format="PNG")
