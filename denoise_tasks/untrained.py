"""Fit untrained networks to one picture, to noise and to their sum: what a network's structure knows.

    python denoise_tasks/untrained.py --image PHOTO.jpg --run DIR
    python denoise_tasks/untrained.py --short

Writes into a run folder: every number (metrics.json), the three curves (figures/curves.png, curves.csv), the
strip of iterates (figures/strip.png), and each fit (fits/MODEL-TARGET.npz). Interrupted and started again, it
goes on after the last finished fit. The defaults are the published settings (see untrained_study.py for what
is published and what is our reading), which want a GPU; `--short` is a picture of 96 x 96 pixels, networks of
0.2 to 0.5 M parameters and 300 iterations, for a laptop.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from img2img_recon.support.cli import flag, parse_config, script
from img2img_recon.support.errors import InputError
from img2img_recon.support.files import write_json
from img2img_recon.support.progress import bar, silent
from img2img_recon.support.types import GreyLevels, PositiveFloat, PositiveInt, Seed
from img2img_recon.training.options import Accelerator
from img2img_recon.training.run_folder import RunFolder, config_hash

if TYPE_CHECKING:
    from denoise_tasks.untrained_study import Targets

Model = Literal["img2img_mixer", "unet", "vit", "original_mixer"]
FULL_SIZE, FULL_ITERATIONS = 256, 1501
SHORT_SIZE, SHORT_ITERATIONS = 96, 300
# What the U-Net's four poolings and the patches of 4 need.
MIN_SIZE, SIZE_MULTIPLE = 32, 4


@dataclass(frozen=True, kw_only=True)
class UntrainedConfig:
    """Fit untrained networks to one picture, to noise and to their sum."""

    image: Path | None = flag(
        None, help="a picture; default: scikit-image's camera", group="data", basic=True
    )
    run: Path | None = flag(None, help="folder to write; default: runs/untrained-HASH", basic=True)
    short: bool = flag(
        False, help="a small picture, small networks, few iterations: for a laptop", basic=True
    )
    model: tuple[Model, ...] = flag(
        get_args(Model), help="which networks", group="network", basic=True
    )
    method: tuple[str, ...] = flag(
        ("bm3d", "tv"), help="classical methods to compare with", basic=True
    )
    sigma: GreyLevels | None = flag(
        None,
        help="noise, where 255 is the picture's maximum; default: of half its norm, as published",
        group="data",
        basic=True,
    )
    iterations: PositiveInt | None = flag(
        None,
        help=f"steps of every fit; default: {FULL_ITERATIONS}, with --short {SHORT_ITERATIONS}",
        group="training",
        basic=True,
    )
    lr: PositiveFloat | None = flag(
        None, help="first learning rate; default: each network's own", group="training", basic=True
    )
    seed: Seed = flag(1, help="of noise, input and first weights", group="training", basic=True)
    size: PositiveInt | None = flag(
        None,
        help=f"side of the square picture; default: {FULL_SIZE}, with --short {SHORT_SIZE}",
        group="data",
        basic=True,
    )
    accelerator: Accelerator = flag("auto", help="where to compute", group="cluster", basic=True)
    progress: bool = flag(True, help="progress bars", basic=True)
    overwrite: bool = flag(
        False, help="throw away the study that --run holds and start anew", basic=True
    )

    def __post_init__(self) -> None:
        if self.size is not None and (self.size < MIN_SIZE or self.size % SIZE_MULTIPLE):
            raise InputError(
                f"--size: given {self.size}, allowed: multiples of {SIZE_MULTIPLE} from {MIN_SIZE} on"
            )

    @property
    def side(self) -> int:
        """Of the square picture, in pixels."""
        return self.size or (SHORT_SIZE if self.short else FULL_SIZE)

    @property
    def steps(self) -> int:
        """Of every fit."""
        return self.iterations or (SHORT_ITERATIONS if self.short else FULL_ITERATIONS)


def read_targets(config: UntrainedConfig) -> tuple[Targets, str]:
    """Read the picture, or take scikit-image's `camera`, and add the noise; the targets and the picture's name."""
    from denoise_tasks.pictures import read_picture
    from denoise_tasks.untrained_study import make_targets, square_picture

    if config.image is None:
        import skimage.data

        name = place = "scikit-image's camera"
        pixels = skimage.data.camera()[..., None] / 255
    else:
        name, place = config.image.name, f"--image: {config.image}"
        pixels = read_picture(config.image).pixels
    image = square_picture(pixels, config.side, place)
    return make_targets(image, config.sigma, config.seed), name


def start_anew(run: RunFolder, content: Mapping[str, Any]) -> None:
    """Make the folder of one study that of another; what no study wrote stays."""
    for folder in (run.path / "fits", run.figures):
        shutil.rmtree(folder, ignore_errors=True)
    for file in (run.path / "curves.csv", run.metrics_file):
        file.unlink(missing_ok=True)
    write_json(run.config_file, content)


def study(config: UntrainedConfig) -> dict[str, Any]:
    """Fit what is missing, draw, and write every number.

    Raises:
        InputError: something given cannot be used; nothing is written then.
    """
    from denoise_tasks import untrained_report as report
    from denoise_tasks.methods import make_method
    from denoise_tasks.untrained_fits import run_fits
    from denoise_tasks.untrained_study import identity
    from img2img_recon.trained import pick_device

    device = pick_device(config.accelerator)
    methods = [make_method(word, accelerator=config.accelerator) for word in config.method]
    targets, picture = read_targets(config)
    content = identity(config, targets)
    run = RunFolder(config.run or Path("runs") / f"untrained-{config_hash(content)}")
    known = run.config() if config.overwrite and run.config_file.is_file() else {}
    anew = known.get("task") == "untrained"
    if not anew:
        run.claim(content, dry=True)
    with run.locked():
        if anew:
            start_anew(run, content)
        run.claim(content)
        run.remove_leftovers()
        said = f"picture: {picture}, {config.side} x {config.side}; writing to {run.path}"
        print(said, file=sys.stderr)
        track = bar if config.progress else silent
        fits = run_fits(config, targets, run.path / "fits", device, track)
        denoised = {
            method.name: method.denoise(targets.noisy[..., None], targets.noise_std)[..., 0]
            for method in methods
        }
        finished = report.Study(config, picture, targets, fits, denoised)
        results = report.collect_results(finished)
        report.write_curves(run.path / "curves.csv", fits)
        report.curves_figure(run.figures / "curves.png", finished)
        report.strip_figure(run.figures / "strip.png", finished)
        write_json(run.metrics_file, results)
    return results


@script
def main(words: Sequence[str] | None = None) -> None:
    """Check, fit, draw, print the table."""
    results = study(parse_config(UntrainedConfig, words))
    from rich.console import Console

    from denoise_tasks.untrained_report import results_table

    # Into a file or a pipe a table of figures must not be folded at a terminal's width.
    console = Console(markup=False, width=None if sys.stdout.isatty() else 140)
    console.print(results_table(results))
    console.print(
        f"PSNR on outputs that are not clipped, data range 1. Fitted: {results['fitted_share']:.0%} of the "
        f"target's variance left; -: not in {results['iterations']} iterations. Published: full-size "
        "networks, another picture of 256 x 256.",
        style="dim",
    )


if __name__ == "__main__":
    main()
