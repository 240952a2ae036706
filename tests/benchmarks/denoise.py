"""Speed and memory of denoising a large picture: trained networks beside BM3D and total variation, in one run.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.denoise denoise-color bm3d tv [--scores results.json --figure FILE.png]

Every pass runs in a fresh process, which tells its own highest memory; the methods take turns, so that a machine whose
speed changes slows all. Classical methods, whose time a pixel does not depend on the picture's size, get a smaller one.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from img2img_recon.support.cli import flag, parse_config, run_script
from img2img_recon.support.errors import InputError
from img2img_recon.support.files import write_json
from img2img_recon.support.progress import bar
from img2img_recon.support.types import PositiveFloat, PositiveInt
from tests.benchmarks.fresh_process import call_in_fresh_process
from tests.benchmarks.measurements import high_water_mb

SIGMA = 25 / 255


@dataclass(frozen=True)
class DenoiseBenchmark:
    """Denoise one large picture with each method, in turns; time and memory of each."""

    method: tuple[str, ...] = flag(
        help="networks by name, run or file, and classical methods", positional=True
    )
    megapixels: PositiveFloat = flag(12.0, help="size of the networks' picture, of 3:4")
    classical_megapixels: PositiveFloat = flag(0.15, help="size of the classical methods' picture")
    repeats: PositiveInt = flag(3, help="passes of each")
    scores: Path | None = flag(None, help="results.json of evaluate.py; adds PSNR at its --sigma")
    title: str = flag("sigma 25", help="how the title of the results in --scores ends")
    figure: Path | None = flag(None, help="draw PSNR against time a megapixel; needs --scores")
    json: Path | None = flag(None, help="write the figures to this file")

    def __post_init__(self) -> None:
        if self.figure and not self.scores:
            raise InputError("--figure: needs --scores, the results.json of evaluate.py")


def picture(megapixels: float) -> np.ndarray:
    """Noise around a ramp, float32 (H, W, 3), in [0, 1]."""
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    width = round(megapixels * 1e6 / height)
    image = np.random.default_rng(0).normal(0, SIGMA, (height, width, 3)).astype(np.float32)
    return image + np.linspace(0.2, 0.8, width, dtype=np.float32)[:, None]


def measure_pass(word: str, megapixels: float) -> dict[str, Any]:
    """One pass in this process, which should be fresh: seconds a megapixel, highest memory and name of the method."""
    from denoise_tasks.methods import make_method

    denoiser = make_method(word, **({} if is_classical(word) else {"accelerator": "cpu"}))
    noisy = picture(megapixels)
    denoiser.denoise(noisy[:64, :64], SIGMA)  # imports, starts threads, chooses kernels
    begin = time.perf_counter()
    denoiser.denoise(noisy, SIGMA)
    seconds = time.perf_counter() - begin
    return {
        "name": denoiser.name,
        "parameters": denoiser.details().get("parameters"),
        "seconds_per_megapixel": seconds / (noisy.size / 3e6),
        "peak_mb": high_water_mb(),
    }


def is_classical(word: str) -> bool:
    """Whether a word names no network."""
    from denoise_tasks.methods import METHODS

    return word in METHODS


def measure(config: DenoiseBenchmark) -> dict[str, dict[str, Any]]:
    """Each method's medians, by name, with its time over that of the first, round by round.

    Raises:
        InputError: a pass that failed.
    """
    passes: dict[str, list[dict[str, Any]]] = {word: [] for word in config.method}
    turns = [word for _ in range(config.repeats) for word in config.method]
    for word in bar(turns, "passes", len(turns)):
        size = config.classical_megapixels if is_classical(word) else config.megapixels
        try:
            found = call_in_fresh_process("tests.benchmarks.denoise", "measure_pass", word, size)
        except RuntimeError as error:
            raise InputError(f"{word}: a pass over the picture failed: {error}") from None
        passes[word].append(found)
    times = {
        word: [one["seconds_per_megapixel"] for one in found] for word, found in passes.items()
    }
    first = times[config.method[0]]
    report = {}
    for word, found in passes.items():
        ratios = [a / b for a, b in zip(times[word], first, strict=True)]
        report[found[0]["name"]] = found[0] | {
            "seconds_per_megapixel": statistics.median(times[word]),
            "peak_mb": max(one["peak_mb"] or 0 for one in found),
            "ratio": [min(ratios), statistics.median(ratios), max(ratios)],
        }
    return report


def mean_psnr(scores: Path, title: str) -> dict[str, float]:
    """PSNR (dB) by method, the means over most images, of the results whose title ends so.

    Raises:
        InputError: no such results.
    """
    for result in json.loads(scores.read_text())["results"]:
        if result["title"].endswith(title):
            rows = sorted(result["means"], key=lambda row: row["images"])
            return {row["method"]: row["psnr"] for row in rows}
    raise InputError(f"--scores: {scores} has no results whose title ends with {title}")


def draw(report: Mapping[str, Mapping[str, Any]], path: Path, title: str) -> None:
    """PSNR against milliseconds a megapixel."""
    from img2img_recon.figures import label_of, new_figure, save_figure

    figure = new_figure(6, 4)
    axes = figure.add_subplot()
    scored = {name: row for name, row in report.items() if "psnr" in row}
    places = {n: (1e3 * row["seconds_per_megapixel"], row["psnr"]) for n, row in scored.items()}
    for name, (took, psnr) in places.items():
        untrained = scored[name]["parameters"] is None
        axes.plot(took, psnr, "o", color="tab:orange" if untrained else "tab:blue")
        # On its right and above, unless another point or its label is there.
        near = [(t / took, p - psnr) for t, p in places.values() if (t, p) != (took, psnr)]
        right = not any(1 < ratio < 4 and abs(gap) < 0.4 for ratio, gap in near)
        above = not right or not any(1 / 4 < ratio < 4 and 0 < gap < 1 for ratio, gap in near)
        axes.annotate(
            label_of(name),
            (took, psnr),
            xytext=(6 if right else -6, 4 if above else -12),
            textcoords="offset points",
            horizontalalignment="left" if right else "right",
        )
    axes.set(xscale="log", xlabel="milliseconds a megapixel, one thread", ylabel="PSNR (dB)")
    axes.set_title(title)
    axes.margins(x=0.4, y=0.15)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    save_figure(figure, path)


def main(words: Sequence[str] | None = None) -> None:
    """Print the table, draw the figure."""
    config = parse_config(DenoiseBenchmark, words)
    psnr = mean_psnr(config.scores, config.title) if config.scores else {}
    report = measure(config)
    table = Table("method", "parameters", "ms / MP", "time over the first's", "peak MB", "PSNR")
    for name, row in report.items():
        if name in psnr:
            row["psnr"] = psnr[name]
        low, middle, high = row["ratio"]
        table.add_row(
            name,
            f"{row['parameters'] or 0:,}",
            f"{1e3 * row['seconds_per_megapixel']:,.0f}",
            f"{middle:.2f} [{low:.2f}, {high:.2f}]",
            f"{row['peak_mb']:,.0f}",
            f"{psnr[name]:.2f}" if name in psnr else "",
        )
    Console(width=110).print(table)
    if config.json:
        write_json(config.json, report)
    if config.figure:
        draw(report, config.figure, config.title)


if __name__ == "__main__":
    run_script(main)
