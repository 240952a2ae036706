"""Slices per second, HDF5 to network input: this plugin's loader beside fastMRI's.

    python -m tests.benchmarks.mri_loader [--coils 15 --slices 4] [--json FILE]

Single-coil slices become images, as for fastMRI's U-Net; with `--coils` they become k-space samples, as for its VarNet.

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
from fastmri.data.transforms import UnetDataTransform, VarNetDataTransform
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

from fastmri_plugin import Challenge
from fastmri_plugin.data import SliceDataset, volume_loader
from fastmri_plugin.headers import Header, write_header
from fastmri_plugin.kspace import center_crop, centred_ifft
from fastmri_plugin.listing import list_volumes
from fastmri_plugin.masks import MaskSpec
from fastmri_plugin.module import spread_columns
from fastmri_plugin.transforms import ImageTransform, KspaceSample, KspaceTransform
from fastmri_plugin.volumes import TARGET_KEYS
from img2img_recon.support.cli import flag, parse_config, run_script
from img2img_recon.support.errors import InputError
from img2img_recon.support.files import write_json
from img2img_recon.support.types import NonNegativeInt, PositiveInt


@dataclass(frozen=True)
class LoaderBenchmark:
    """Time this plugin's loader and fastMRI's, in turn, on volumes of the knee set's size."""

    rows: PositiveInt = flag(640, help="read-out samples")
    columns: PositiveInt = flag(368, help="phase-encode columns")
    recon_size: PositiveInt = flag(320, help="side of the cropped image")
    coils: NonNegativeInt = flag(0, help="coils; 0 for single-coil images")
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
    plane = (config.rows, config.columns)
    shape = (config.slices, *([config.coils] if config.coils else []), *plane)
    size = (config.recon_size, config.recon_size)
    header = write_header(Header.of_columns(plane, size, (0, config.columns)))
    target = TARGET_KEYS["multicoil" if config.coils else "singlecoil"]
    folder.mkdir(parents=True)
    for number in range(config.volumes):
        kspace = draw.standard_normal((*shape, 2), dtype=np.float32).view(np.complex64)[..., 0]
        with h5py.File(folder / f"noise{number}.h5", "w") as file:
            file["kspace"] = kspace
            file["ismrmrd_header"] = header
            file[target] = np.abs(draw.standard_normal((shape[0], *size), np.float32))
            file.attrs["max"] = 5.0


def passes(loader: DataLoader) -> float:
    """Slices per second of one pass."""
    start = time.perf_counter()
    count = sum(1 for _ in loader)
    return count / (time.perf_counter() - start)


def largest_difference(theirs: Dataset, ours: Dataset) -> float:
    """Largest difference of the two inputs over the first slices, relative to the image's maximum."""
    worst = 0.0
    for index in range(min(4, len(ours))):
        reference, sample = theirs[index], ours[index]
        if isinstance(sample, KspaceSample):
            kspace = spread_columns(sample.samples[None], sample.mask[None])[0].numpy()
            size = kspace.shape[-2:]
            image = center_crop(
                centred_ifft(torch.view_as_complex(reference.masked_kspace).numpy()), size
            )
            difference = np.abs(centred_ifft(kspace) - image).max()
            worst = max(worst, float(difference / np.abs(image).max()))
            continue
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
        challenge: Challenge = "multicoil" if config.coils else "singlecoil"
        folder = Path(temporary) / f"{challenge}_val"
        write_volumes(folder, config)
        their_transform, our_transform = (
            (VarNetDataTransform(masks.mask_func()), KspaceTransform(masks.mask_func()))
            if config.coils
            else (
                UnetDataTransform(challenge, masks.mask_func()),
                ImageTransform(masks.mask_func()),
            )
        )
        theirs = fastmri.data.SliceDataset(folder, challenge, their_transform)
        ours = SliceDataset(list_volumes(folder, challenge), our_transform)
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
