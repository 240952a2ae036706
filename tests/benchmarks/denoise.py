"""Speed and memory of denoising a large picture, beside one pass of a U-Net over the whole of it.

    python -m tests.benchmarks.denoise denoise --run RUN [--megapixels 12]

Every pass runs in a fresh process, which tells its own highest memory; the two are run in turns, so that a
machine whose speed changes slows both.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from img2img_recon.support.cli import flag, parse_config, run_script
from img2img_recon.support.errors import InputError
from img2img_recon.support.files import write_json
from img2img_recon.support.progress import bar
from tests.benchmarks.fresh_process import call_in_fresh_process
from tests.benchmarks.measurements import high_water_mb

UNET = "unet"
MAX_UNET_CHANS = 128


@dataclass(frozen=True)
class DenoiseBenchmark:
    """Denoise one large picture with a run's network and, whole, with a U-Net; time and memory of each."""

    run: Path = flag(help="run folder or checkpoint file of denoise_tasks/train.py")
    megapixels: float = flag(12.0, help="size of the picture, of 3:4")
    unet: bool = flag(True, help="also pass the whole picture through a U-Net: 0.5 GB a megapixel")
    unet_chans: int | None = flag(
        None, help="channels of the U-Net; default: as many parameters as the run's network"
    )
    repeats: int = flag(3, help="passes of each")
    tile: int | None = flag(None, help="as for denoise.py")
    accelerator: Literal["auto", "cpu", "gpu"] = flag("auto", help="where the networks run")
    json: Path | None = flag(None, help="write the figures to this file")

    def __post_init__(self) -> None:
        for name in ("repeats", "tile"):
            if (given := getattr(self, name)) is not None and given < 1:
                raise InputError(f"--{name}: given {given}, allowed: 1 or more")
        if not 0.01 <= self.megapixels <= 200:
            raise InputError(f"--megapixels: given {self.megapixels:g}, allowed: 0.01 to 200")
        if self.unet_chans is not None and not 1 <= self.unet_chans <= MAX_UNET_CHANS:
            raise InputError(
                f"--unet_chans: given {self.unet_chans}, allowed: 1 to {MAX_UNET_CHANS}"
            )


def unet_of_size(parameters: int, channels: int) -> int:
    """Channels of the U-Net whose number of parameters comes closest."""
    import torch

    from img2img_recon.networks.zoo import build_model

    def count(chans: int) -> int:
        with torch.device("meta"):
            network = build_model(UNET, chans=chans, in_chans=channels, out_chans=channels)
        return sum(parameter.numel() for parameter in network.parameters())

    # The number grows with the square of the channels.
    low, high = 1, MAX_UNET_CHANS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) <= parameters else (low, middle)
    return min((low, high), key=lambda chans: abs(count(chans) - parameters))


def measure_pass(task: Mapping[str, Any]) -> dict[str, float | None]:
    """One pass in this process, which should be fresh: seconds and highest memory.

    Args:
        task: `run`, `picture`, `megapixels`, `tile`, `accelerator`, and `unet_chans`, None for
            the run's own network.

    Returns:
        `seconds` of the network with everything around it; for the run's network also `read_seconds`
        and `write_seconds` of the file. `peak_mb` of the whole process, `start_mb` before the picture
        was read; on a GPU `gpu_peak_mb`.
    """
    import torch

    from denoise_tasks.pictures import read_picture, write_picture
    from denoise_tasks.trained import load_run
    from img2img_recon.networks.zoo import build_model
    from img2img_recon.wrappers import AnySize

    denoiser = load_run(Path(task["run"]), accelerator=task["accelerator"], tile=task["tile"])
    device, channels, path = denoiser.device, denoiser.in_chans, Path(task["picture"])
    work: Callable[[torch.Tensor], object]
    if task["unet_chans"] is None:

        def work(image: torch.Tensor) -> object:
            pixels = image[0].permute(1, 2, 0).numpy()
            return denoiser.denoise(pixels, None)
    else:
        unet = build_model(
            UNET, chans=task["unet_chans"], in_chans=channels, out_chans=channels
        ).eval()
        whole = AnySize(unet).to(device)  # pads the sides to what the U-Net takes

        def work(image: torch.Tensor) -> object:
            with torch.inference_mode():
                return whole(image.to(device)).cpu()

    def timed(step: Callable[[], Any]) -> tuple[float, Any]:
        begin = time.perf_counter()
        result = step()
        return time.perf_counter() - begin, result

    work(torch.rand(1, channels, 64, 64))  # starts the thread pool, chooses kernels
    start = high_water_mb()
    read_seconds, picture = timed(lambda: read_picture(path))
    image = torch.from_numpy(picture.pixels).permute(2, 0, 1)[None]
    seconds, result = timed(lambda: work(image))
    figures: dict[str, float | None] = {"seconds": seconds, "start_mb": start}
    if task["unet_chans"] is None:
        write_seconds, _ = timed(
            lambda: write_picture(path.with_name("denoised.png"), result, picture, overwrite=True)
        )
        figures |= {"read_seconds": read_seconds, "write_seconds": write_seconds}
    figures["peak_mb"] = high_water_mb()
    if device.type == "cuda":
        figures["gpu_peak_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
    return figures


def measure(config: DenoiseBenchmark) -> dict[str, Any]:
    """Both networks in turns on one picture of noise around a ramp.

    Returns:
        What was measured, and for each of `run` and `unet` the medians of `measure_pass` with
        `megapixels_per_second`.

    Raises:
        InputError: no run, or a pass that failed.
    """
    import numpy as np

    from denoise_tasks.pictures import write_picture
    from denoise_tasks.trained import load_run

    denoiser = load_run(config.run, accelerator="cpu")
    parameters = denoiser.details()["parameters"]
    height = round((config.megapixels * 1e6 * 3 / 4) ** 0.5)
    width = round(config.megapixels * 1e6 / height)
    chans: dict[str, int | None] = {"run": None}
    if config.unet:
        chans[UNET] = config.unet_chans or unet_of_size(parameters, denoiser.in_chans)
    passes: dict[str, list[dict[str, float | None]]] = {name: [] for name in chans}
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "noisy.png"
        noise = np.random.default_rng(0).normal(0, 0.1, (height, width, denoiser.in_chans))
        noise += np.linspace(0.2, 0.8, width)[:, None]
        write_picture(picture, noise)
        del noise
        turns = [name for _ in range(config.repeats) for name in chans]
        for name in bar(turns, "passes", len(turns)):
            task = {
                "run": str(config.run),
                "picture": str(picture),
                "tile": config.tile,
                "accelerator": config.accelerator,
                "unet_chans": chans[name],
            }
            try:
                passes[name].append(
                    call_in_fresh_process("tests.benchmarks.denoise", "measure_pass", task)
                )
            except RuntimeError as error:
                raise InputError(f"a pass over the picture failed: {error}") from None
    return {
        "height": height,
        "width": width,
        "model": denoiser.config["model"],
        "parameters": parameters,
        "unet_chans": chans.get(UNET),
        "tile": config.tile,
    } | {name: _summary(results, height * width / 1e6) for name, results in passes.items()}


def _summary(
    results: Sequence[Mapping[str, float | None]], megapixels: float
) -> dict[str, float | None]:
    """Medians, and the fastest and slowest pass."""
    medians: dict[str, float | None] = {}
    for key in results[0]:
        values = [value for result in results if (value := result[key]) is not None]
        medians[key] = statistics.median(values) if values else None
    seconds = [float(result["seconds"] or 0) for result in results]
    return medians | {
        "fastest_seconds": min(seconds),
        "slowest_seconds": max(seconds),
        "megapixels_per_second": megapixels / statistics.median(seconds),
    }


def as_text(report: Mapping[str, Any]) -> str:
    """A line for each of the two."""
    picture = 4e-6 * 3 * report["height"] * report["width"]
    lines = [
        f"{report['width']} x {report['height']} pixels, {picture:.0f} MB as colour in float32; medians"
    ]
    for name, title in (
        ("run", f"{report['model']}, tiles"),
        (UNET, f"unet of {report['unet_chans']} channels, whole"),
    ):
        if name not in report:
            continue
        row = report[name]
        line = (
            f"{title}: {row['megapixels_per_second']:.2f} megapixels/s, {row['seconds']:.1f} s "
            f"({row['fastest_seconds']:.1f} to {row['slowest_seconds']:.1f})"
        )
        if row["peak_mb"] is not None:
            line += (
                f", peak {row['peak_mb']:.0f} MB of which {row['start_mb']:.0f} before the picture"
            )
        if "gpu_peak_mb" in row:
            line += f", GPU {row['gpu_peak_mb']:.0f} MB"
        if "read_seconds" in row:
            line += f"; reading {row['read_seconds']:.1f} s, writing {row['write_seconds']:.1f} s"
        lines.append(line)
    return "\n".join(lines)


def denoise(words: Sequence[str]) -> None:
    """The sub-command `denoise`."""
    config = parse_config(DenoiseBenchmark, words)
    report = measure(config)
    print(as_text(report))
    if config.json is not None:
        write_json(config.json, report)


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {"denoise": denoise}


def main(words: Sequence[str] | None = None) -> None:
    """Run the sub-command that the first word names."""
    given = list(sys.argv[1:] if words is None else words)
    if not given or given[0] not in COMMANDS:
        raise InputError(
            f"give one of {', '.join(COMMANDS)} first, as in: "
            "python -m tests.benchmarks.denoise denoise --run RUN"
        )
    COMMANDS[given[0]](given[1:])


if __name__ == "__main__":
    run_script(main)
