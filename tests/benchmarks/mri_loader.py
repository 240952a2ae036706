"""Slices per second, HDF5 to network input: this plugin's loader beside fastMRI's.

    python -m tests.benchmarks.mri_loader [--json FILE]

The volumes are noise of the knee set's size, written to a temporary folder; what is timed is reading, masking,
transforming, cropping and handing over, not the content.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import fastmri.data
import h5py
import numpy as np
import torch
from fastmri.data.transforms import UnetDataTransform
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

from fastmri_plugin.data import SliceDataset, volume_loader
from fastmri_plugin.headers import Header, write_header
from fastmri_plugin.listing import list_volumes
from fastmri_plugin.masks import MaskSpec
from fastmri_plugin.transforms import ImageTransform
from img2img_recon.support.cli import flag, parse_config, run_script
from img2img_recon.support.errors import InputError
from img2img_recon.support.files import write_json
from img2img_recon.support.types import PositiveInt


@dataclass(frozen=True)
class LoaderBenchmark:
    """Time this plugin's loader and fastMRI's, in turn, on volumes of the knee set's size."""

    rows: PositiveInt = flag(640, help="read-out samples")
    columns: PositiveInt = flag(368, help="phase-encode columns")
    recon_size: PositiveInt = flag(320, help="side of the cropped image")
    slices: PositiveInt = flag(32, help="slices per volume")
    volumes: PositiveInt = flag(4, help="volumes")
    accel: PositiveInt = flag(4, help="acceleration")
    repeats: PositiveInt = flag(7, help="timed passes of each loader")
    json: Path | None = flag(None, help="write the figures to this file")

    def __post_init__(self) -> None:
        if self.recon_size > min(self.rows, self.columns):
            raise InputError(
                f"--recon_size: given {self.recon_size}, allowed: up to {min(self.rows, self.columns)}"
            )


def write_volumes(folder: Path, config: LoaderBenchmark) -> None:
    """Noise volumes with valid headers and targets."""
    draw = np.random.default_rng(0)
    shape = (config.slices, config.rows, config.columns)
    size = (config.recon_size, config.recon_size)
    header = write_header(Header.of_columns(shape[1:], size, (0, config.columns)))
    folder.mkdir(parents=True)
    for number in range(config.volumes):
        kspace = draw.standard_normal((*shape, 2), dtype=np.float32).view(np.complex64)[..., 0]
        with h5py.File(folder / f"noise{number}.h5", "w") as file:
            file["kspace"] = kspace
            file["ismrmrd_header"] = header
            file["reconstruction_esc"] = np.abs(draw.standard_normal((shape[0], *size), np.float32))
            file.attrs["max"] = 5.0


def passes(loader: DataLoader) -> float:
    """Slices per second of one pass."""
    start = time.perf_counter()
    count = sum(1 for _ in loader)
    return count / (time.perf_counter() - start)


def largest_difference(theirs: Dataset, ours: Dataset) -> float:
    """Largest difference of the two inputs over the first slices, relative to the image's maximum."""
    worst = 0.0
    for index in range(4):
        reference, sample = theirs[index], ours[index]
        # fastMRI normalises and then clips at six standard deviations; so is ours before comparing.
        image = ((sample.image - reference.mean) / reference.std).clamp(-6, 6)
        worst = max(
            worst, float((image - reference.image).abs().max() / reference.image.abs().max())
        )
    return worst


def measure(config: LoaderBenchmark) -> dict[str, object]:
    """Median and quartiles of slices per second for both loaders, and their ratio pass by pass."""
    masks = MaskSpec("random", (config.accel,), (0.32 / config.accel,))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "singlecoil_val"
        write_volumes(folder, config)
        theirs = fastmri.data.SliceDataset(
            folder,
            "singlecoil",
            UnetDataTransform("singlecoil", masks.mask_func(), use_seed=True),
        )
        ours = SliceDataset(
            list_volumes(folder, "singlecoil"), ImageTransform(masks.mask_func(), use_seed=True)
        )
        torch.set_num_threads(1)
        difference = largest_difference(theirs, ours)
        loaders = [
            DataLoader(
                theirs,
                batch_size=1,
                num_workers=1,
                persistent_workers=True,
                worker_init_fn=lambda _: torch.set_num_threads(1),
            ),
            volume_loader(ours, batch_size=1, num_workers=1),
        ]
        for loader in loaders:
            passes(loader)
        rates = [[passes(loader) for loader in loaders] for _ in range(config.repeats)]
    result: dict[str, object] = {"largest_relative_difference": difference}
    for name, values in (
        ("fastmri", [rate[0] for rate in rates]),
        ("ours", [rate[1] for rate in rates]),
        ("ratio", [rate[1] / rate[0] for rate in rates]),
    ):
        low, middle, high = (
            statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
        )
        result[name] = {"q1": low, "median": middle, "q3": high}
    return result


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    config = parse_config(LoaderBenchmark, words)
    result = measure(config)
    table = Table("", "q1", "median", "q3", title="slices per second, one worker, batch 1")
    for name in ("fastmri", "ours", "ratio"):
        row = result[name]
        assert isinstance(row, dict)
        table.add_row(name, *(f"{row[key]:.2f}" for key in ("q1", "median", "q3")))
    console = Console()
    console.print(table)
    console.print(
        f"largest relative difference of the inputs: {result['largest_relative_difference']:.1e}"
    )
    if config.json is not None:
        try:
            write_json(config.json, result)
        except OSError as error:
            raise InputError(
                f"--json: {config.json} cannot be written ({error.strerror})"
            ) from None


if __name__ == "__main__":
    run_script(main)
