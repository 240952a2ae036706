"""Seconds per slice and memory: the package's unrolled mixer beside fastMRI's VarNet of as many parameters.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.unrolled [--coils 15 --rows 640 --columns 368] [--json FILE]

Both reconstruct the same k-space (noise: the time does not depend on the content) on the CPU, in turns. What is given
to `reconstruct` is cut to the image's rows first, as the project's data path does; VarNet is given all rows, as
fastMRI's does, and once the same cut k-space, which its own data path does not make.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import fastmri
import torch
from fastmri.models import VarNet
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from fastmri_plugin.kspace import center_crop
from fastmri_plugin.shipped import load
from img2img_recon.support.cli import flag, parse_config, run_script
from img2img_recon.support.files import write_json
from img2img_recon.support.types import PositiveInt
from tests.benchmarks.fresh_process import call_in_fresh_process

MODULE = "tests.benchmarks.unrolled"  # what a fresh process imports
NETWORKS = ("mri-brain-multicoil", "VarNet", "VarNet, rows cut")


@dataclass(frozen=True)
class UnrolledBenchmark:
    """Time one slice through the shipped multi-coil network and through fastMRI's VarNet."""

    rows: PositiveInt = flag(640, help="read-out samples")
    columns: PositiveInt = flag(368, help="phase-encode columns")
    recon_size: PositiveInt = flag(320, help="rows of the image")
    coils: PositiveInt = flag(15, help="coils")
    repeats: PositiveInt = flag(5, help="timed slices of each")
    json: Path | None = flag(None, help="write the figures to this file")


def make(name: str) -> nn.Module:
    """A network of `NETWORKS`; VarNet with 8 cascades and as many parameters, within 2 %."""
    if name == "mri-brain-multicoil":
        return load(name)
    return VarNet(8, sens_chans=9, sens_pools=2, chans=8, pools=2).eval()


def slice_of(config: UnrolledBenchmark) -> tuple[Tensor, Tensor]:
    """K-space (1, coils, rows, columns) of noise, every fourth column and a centre of 28, and the mask."""
    torch.manual_seed(0)
    mask = torch.zeros(1, 1, 1, config.columns, dtype=torch.bool)
    mask[..., ::4] = True
    mask[..., config.columns // 2 - 14 : config.columns // 2 + 14] = True
    shape = (1, config.coils, config.rows, config.columns)
    return torch.randn(shape, dtype=torch.complex64) * mask, mask


def cut(kspace: Tensor, rows: int) -> Tensor:
    """The k-space of the image's middle rows: the read-out's over-sampling is taken away."""
    pairs = fastmri.ifft2c(torch.view_as_real(kspace))
    image = center_crop(torch.view_as_complex(pairs), (rows, kspace.shape[-1]))
    return torch.view_as_complex(fastmri.fft2c(torch.view_as_real(image.contiguous())))


def reconstruction(name: str, config: UnrolledBenchmark) -> Callable[[], Tensor]:
    """One slice through a network, beginning with the raw k-space."""
    network, (kspace, mask) = make(name), slice_of(config)

    def run() -> Tensor:
        with torch.inference_mode():
            given = kspace if name == "VarNet" else cut(kspace, config.recon_size)
            if name in ("VarNet", "VarNet, rows cut"):
                return network(torch.view_as_real(given), mask[..., None])
            return network(given, mask)

    return run


def memory_mb(name: str, *sizes: int) -> float:
    """How far the resident set of this process rises with a slice, MB (Linux)."""
    run = reconstruction(name, UnrolledBenchmark(*sizes))
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = resident_mb("VmRSS")
    run()
    return resident_mb("VmHWM") - before


def resident_mb(field: str) -> float:
    """A field of this process's status, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def main(words: Sequence[str] | None = None) -> None:
    """Print the table."""
    config = parse_config(UnrolledBenchmark, words)
    runs = {name: reconstruction(name, config) for name in NETWORKS}
    times: dict[str, list[float]] = {name: [] for name in NETWORKS}
    for turn in range(config.repeats + 1):
        for name, run in runs.items():
            start = time.process_time()
            run()
            if turn:
                times[name].append(time.process_time() - start)
    sizes = (config.rows, config.columns, config.recon_size, config.coils)
    table = Table("network", "parameters", "s / slice", "memory (MB)", "time over the mixer's")
    report = {}
    for name in NETWORKS:
        seconds = statistics.median(times[name])
        ratio = [a / b for a, b in zip(times[name], times[NETWORKS[0]], strict=True)]
        report[name] = {
            "parameters": sum(p.numel() for p in make(name).parameters()),
            "seconds": seconds,
            "memory_mb": call_in_fresh_process(MODULE, "memory_mb", name, *sizes),
            "ratio": [min(ratio), statistics.median(ratio), max(ratio)],
        }
        low, middle, high = report[name]["ratio"]
        table.add_row(
            name,
            f"{report[name]['parameters']:,}",
            f"{seconds:.2f}",
            f"{report[name]['memory_mb']:.0f}",
            f"{middle:.2f} [{low:.2f}, {high:.2f}]",
        )
    Console(width=110).print(table)
    if config.json:
        write_json(config.json, report)


if __name__ == "__main__":
    run_script(main)
