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

import csv
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from img2img_recon.figures import label_of
from img2img_recon.support.cli import flag, parse_config, script
from img2img_recon.support.errors import InputError
from img2img_recon.support.files import atomic_path, write_json
from img2img_recon.support.progress import bar, silent
from img2img_recon.support.types import GreyLevels, NonNegativeInt, PositiveFloat, PositiveInt
from img2img_recon.training.options import Accelerator
from img2img_recon.training.run_folder import RunFolder, config_hash

if TYPE_CHECKING:
    from rich.table import Table

    from denoise_tasks.untrained_study import Fits, Settings, Targets

Model = Literal["img2img_mixer", "unet", "vit", "original_mixer"]
FULL_SIZE, FULL_ITERATIONS = 256, 1501
SHORT_SIZE, SHORT_ITERATIONS = 96, 300
RESULTS = ("metrics.json", "curves.csv", "figures", "fits")


@dataclass(frozen=True, kw_only=True)
class UntrainedConfig:
    """Fit untrained networks to one picture, to noise and to their sum."""

    image: Path | None = flag(
        None,
        help="a picture, colour is made grey; default: scikit-image's camera",
        group="data",
        basic=True,
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
        help="standard deviation of the noise, where 255 is the picture's maximum; default: noise of half "
        "the picture's norm, as published",
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
        None,
        help="first learning rate of all networks; default: each has its own",
        group="training",
        basic=True,
    )
    seed: NonNegativeInt = flag(
        1, help="of noise, input and first weights", group="training", basic=True
    )
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

    def settings(self) -> Settings:
        """The study's settings, checked."""
        from denoise_tasks.untrained_study import Settings

        size, iterations = FULL_SIZE, FULL_ITERATIONS
        if self.short:
            size, iterations = SHORT_SIZE, SHORT_ITERATIONS
        return Settings(
            size=self.size or size,
            iterations=self.iterations or iterations,
            sigma=self.sigma,
            lr=self.lr,
            seed=self.seed,
            short=self.short,
        )


def read_targets(image: Path | None, settings: Settings) -> Targets:
    """Read the picture, or take scikit-image's `camera`, and add the noise."""
    from denoise_tasks.pictures import read_picture
    from denoise_tasks.untrained_study import make_targets, square_picture

    if image is None:
        import skimage.data

        pixels, name = skimage.data.camera()[..., None] / 255, "scikit-image's camera"
    else:
        pixels, name = read_picture(image).pixels, f"--image: {image}"
    return make_targets(square_picture(pixels, settings.size, name), settings.sigma, settings.seed)


def holds_study(run: RunFolder) -> bool:
    """Whether a folder is that of a study, of whatever settings."""
    try:
        return run.config().get("task") == "untrained"
    except InputError:
        return False


def start_anew(run: RunFolder, content: Mapping[str, Any]) -> None:
    """Make the folder of one study that of another; what no study wrote stays."""
    for name in RESULTS:
        path = run.path / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    write_json(run.config_file, content)


def write_curves(path: Path, fits: Fits) -> None:
    """Write a row per network, target and iteration: the errors, and the PSNR to the clean picture."""
    from denoise_tasks.untrained_study import psnr_of

    with atomic_path(path) as temporary, temporary.open("w", newline="") as handle:
        rows = csv.writer(handle)
        rows.writerow(("model", "target", "iteration", "mse_target", "mse_image", "psnr_image"))
        for model, by_target in fits.items():
            for target, fit in by_target.items():
                errors = zip(fit.mse_target.tolist(), fit.mse_reference.tolist(), strict=True)
                for iteration, (to_target, to_reference) in enumerate(errors):
                    # How far noise is from the picture says nothing.
                    image = ("", "")
                    if target != "noise":
                        image = (f"{to_reference:.6g}", f"{psnr_of(to_reference):.4f}")
                    rows.writerow((model, target, iteration, f"{to_target:.6g}", *image))


def results_table(results: Mapping[str, Any]) -> Table:
    """One row per network, and rows for the methods and for doing nothing."""
    from rich.table import Table

    table = Table(title=f"{results['picture']}, noise of sigma {results['noise_sigma']:.1f}")
    table.add_column("")
    for heading in (
        "parameters",
        "best PSNR (dB)",
        "at iteration",
        "last PSNR (dB)",
        "image fitted at",
        "noise fitted at",
        "published best (dB)",
    ):
        table.add_column(heading, justify="right")
    for model, row in results["models"].items():
        fitted = [row["targets"][target]["fitted_iteration"] for target in ("image", "noise")]
        table.add_row(
            label_of(model),
            f"{row['parameters']:,}",
            f"{row['best_psnr']:.2f}",
            str(row["best_iteration"]),
            f"{row['last_psnr']:.2f}",
            *("-" if step is None else str(step) for step in fitted),
            f"{row['published_best_psnr']:.1f}",
        )
    for name, row in results["methods"].items():
        published = row["published_best_psnr"]
        said = "" if published is None else f"{published:.1f}"
        table.add_row(label_of(name), "", f"{row['best_psnr']:.2f}", *[""] * 4, said)
    table.add_row("noisy", "", f"{results['noisy_psnr']:.2f}", *[""] * 5)
    return table


def study(config: UntrainedConfig) -> dict[str, Any]:
    """Fit what is missing, draw, and write every number.

    Raises:
        InputError: something given cannot be used; nothing is written then.
    """
    from denoise_tasks.methods import make_method
    from denoise_tasks.untrained_figures import curves_figure, strip_figure
    from denoise_tasks.untrained_study import collect_results, run_fits
    from img2img_recon.training.runner import report
    from img2img_recon.training.trainer import pick_device

    settings, device = config.settings(), pick_device(config.accelerator)
    methods = [make_method(word, accelerator=config.accelerator) for word in config.method]
    targets = read_targets(config.image, settings)
    content = settings.identity(targets)
    run = RunFolder(config.run or Path("runs") / f"untrained-{config_hash(content)}")
    anew = config.overwrite and holds_study(run)
    if not anew:
        run.claim(content, dry=True)
    with run.locked():
        if anew:
            start_anew(run, content)
        run.claim(content)
        run.remove_leftovers()
        picture = "scikit-image's camera" if config.image is None else config.image.name
        report(f"picture: {picture}, {settings.size} x {settings.size}; writing to {run.path}")
        track = bar if config.progress else silent
        fits = run_fits(
            config.model, targets, settings, run.path / "fits", device=device, track=track
        )
        denoised = {
            method.name: method.denoise(targets.noisy[..., None], targets.noise_std)[..., 0]
            for method in methods
        }
        results = collect_results(fits, targets, denoised, settings, picture)
        write_curves(run.path / "curves.csv", fits)
        curves_figure(run.figures / "curves.png", fits, targets, denoised)
        shown = settings.shown_iterations
        strip_figure(run.figures / "strip.png", fits, targets, denoised, shown)
        write_json(run.metrics_file, results)
    return results


@script
def main(words: Sequence[str] | None = None) -> None:
    """Check, fit, draw, print the table."""
    from rich.console import Console

    results = study(parse_config(UntrainedConfig, words))
    # Into a file or a pipe a table of figures must not be folded at a terminal's width.
    console = Console() if sys.stdout.isatty() else Console(width=140)
    console.print(results_table(results))
    console.print(
        f"PSNR on outputs that are not clipped, data range 1. Fitted: {results['fitted_share']:.0%} of the "
        f"target's variance left; -: not in {results['iterations']} iterations. Published: full-size "
        "networks, another picture of 256 x 256.",
        style="dim",
    )


if __name__ == "__main__":
    main()
