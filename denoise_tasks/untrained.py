"""Fit untrained networks to one picture, to noise and to their sum: what a network's structure knows.

    python denoise_tasks/untrained.py --image PHOTO.jpg --out DIR
    python denoise_tasks/untrained.py --short

Writes to DIR: the three curves (curves.png, curves.csv), the strip of iterates (strip.png), every number
(results.json), and each fit (fits/MODEL-TARGET.npz). Interrupted and started again, it goes on after the
last finished fit. The defaults are the published settings (see untrained_study.py for what is published
and what is our reading), which want a GPU; `--short` is a picture of 96 x 96 pixels, networks of 0.2 to
0.5 M parameters and 300 iterations, for a laptop.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from img2img_recon.figures import label_of
from img2img_recon.support.cli import flag, parse_config, run_script
from img2img_recon.support.errors import InputError
from img2img_recon.support.files import atomic_path, locked, writable_folder, write_json
from img2img_recon.support.progress import bar, silent
from img2img_recon.training.run_folder import config_hash, environment

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from denoise_tasks.untrained_figures import Fits
    from denoise_tasks.untrained_study import Fit, Image, Scene, Settings

MODELS = ("img2img_mixer", "unet", "vit", "original_mixer")
FULL_SIZE, FULL_ITERATIONS = 256, 1501
SHORT_SIZE, SHORT_ITERATIONS = 96, 300
STUDY_FILE = "study.json"
RESULT_FILES = ("results.json", "curves.csv", "curves.png", "strip.png")
# How small a share of its variance is left when a target counts as fitted, in the table.
FITTED_SHARE = 0.1


@dataclass(frozen=True)
class UntrainedConfig:
    """Fit untrained networks to one picture, to noise and to their sum."""

    image: Path | None = flag(
        None, help="a picture, colour is made grey; without it, scikit-image's `camera`"
    )
    out: Path | None = flag(None, help="folder to write; runs/untrained-HASH by default")
    short: bool = flag(False, help="a small picture, small networks, few iterations: for a laptop")
    models: tuple[str, ...] = flag(MODELS, help=f"which networks, of {', '.join(MODELS)}")
    sigma: float | None = flag(
        None,
        help="standard deviation of the noise, where 255 is the picture's maximum; without it, noise "
        "of half the picture's norm, as published",
    )
    iterations: int | None = flag(
        None, help=f"steps of every fit; {FULL_ITERATIONS}, with --short {SHORT_ITERATIONS}"
    )
    lr: float | None = flag(
        None, help="first learning rate of all networks; without it each has its own"
    )
    seed: int = flag(1, help="of noise, input and first weights")
    size: int | None = flag(
        None, help=f"side of the square picture; {FULL_SIZE}, with --short {SHORT_SIZE}"
    )
    accelerator: Literal["auto", "cpu", "gpu"] = flag("auto", help="where to compute")
    progress: bool = flag(True, help="show progress bars")
    overwrite: bool = flag(False, help="throw away the study that --out holds and start anew")

    def __post_init__(self) -> None:
        unknown = [model for model in self.models if model not in MODELS]
        if unknown or not self.models:
            given = unknown[0] if unknown else "none"
            raise InputError(f"--models: given {given}, allowed: {', '.join(MODELS)}")
        if self.sigma is not None:
            from denoise_tasks.noise import check_sigma

            check_sigma(self.sigma)

    def settings(self) -> Settings:
        """The study's settings, checked."""
        from denoise_tasks.untrained_study import Settings

        size, iterations = FULL_SIZE, FULL_ITERATIONS
        if self.short:
            size, iterations = SHORT_SIZE, SHORT_ITERATIONS
        return Settings(
            size=size if self.size is None else self.size,
            iterations=iterations if self.iterations is None else self.iterations,
            sigma=self.sigma,
            lr=self.lr,
            seed=self.seed,
            short=self.short,
        )


def read_scene(image: Path | None, settings: Settings) -> Scene:
    """Read the picture, or take scikit-image's `camera`, and add the noise."""
    from denoise_tasks.untrained_study import luminance, make_scene, square_picture

    if image is None:
        import skimage.data

        pixels, name = skimage.data.camera()[..., None] / 255, "scikit-image's camera"
    else:
        from denoise_tasks.pictures import read_picture

        pixels, name = read_picture(image).pixels, f"--image: {image}"
    clean = square_picture(luminance(pixels), settings.size, name)
    return make_scene(clean, settings.sigma, settings.seed)


def check_folder(folder: Path, study: Mapping[str, Any], overwrite: bool) -> None:
    """See that the folder is new or this study's; nothing in it is changed.

    Args:
        folder: where the study's files go.
        study: what makes the study the study it is; a value that JSON can hold.
        overwrite: the study that is there will be thrown away.

    Raises:
        InputError: a folder of another study (the first differing setting is named), or one that holds
            files but no study.
    """
    record = folder / STUDY_FILE
    wanted = json.loads(json.dumps(study))
    if record.exists():
        try:
            stored = json.loads(record.read_text())
        except (OSError, ValueError):
            raise InputError(f"--out: {record} cannot be read; give another --out") from None
        differing = sorted(
            key for key in stored.keys() | wanted.keys() if stored.get(key) != wanted.get(key)
        )
        if differing and not overwrite:
            key = differing[0]
            raise InputError(
                f"--out: {folder} holds a study of other settings ({key}: {stored.get(key)!r} there, "
                f"{wanted[key]!r} here); give another --out, the same flags, or --overwrite"
            )
    elif folder.is_dir() and any(not item.name.startswith(".") for item in folder.iterdir()):
        raise InputError(
            f"--out: {folder} holds files but no {STUDY_FILE}; give a new or empty folder"
        )


def claim_folder(folder: Path, study: Mapping[str, Any], overwrite: bool) -> None:
    """Make the folder this study's; call it when `check_folder` has found nothing, under the folder's lock.

    Args:
        folder: where the study's files go.
        study: what makes the study the study it is.
        overwrite: throw away the study that is there. Files that no study wrote are never touched.
    """
    if overwrite:
        for path in (*(folder / "fits").glob("*.npz"), *(folder / n for n in RESULT_FILES)):
            path.unlink(missing_ok=True)
    writable_folder(folder / "fits", "--out")
    write_json(folder / STUDY_FILE, json.loads(json.dumps(study)))


def run_fits(
    config: UntrainedConfig, settings: Settings, scene: Scene, folder: Path, device: torch.device
) -> Fits:
    """Make the fits that are missing; return all of the folder's finished networks, in the table's order."""
    from denoise_tasks.untrained_study import TARGETS, fit_key, fit_network, load_fit, save_fit

    fits: dict[str, dict[Any, Fit]] = {}
    for model in MODELS:
        by_target: dict[Any, Fit] = {}
        for target in TARGETS:
            path = folder / "fits" / f"{model}-{target}.npz"
            key = fit_key(model, target, scene, settings)
            fit = load_fit(path, key)
            if fit is None and model in config.models:
                track = bar if config.progress else silent
                fit = fit_network(model, target, scene, settings, device=device, track=track)
                save_fit(path, fit, key)
            if fit is not None:
                by_target[target] = fit
        # A network of an earlier call belongs to the study too, once its three fits are there.
        if len(by_target) == len(TARGETS):
            fits[model] = by_target
    return fits


def collect_results(
    fits: Fits, scene: Scene, bm3d: Image, settings: Settings, picture: str
) -> dict[str, Any]:
    """Every number of the study; errors are in units of the picture's maximum, PSNR in dB."""
    from denoise_tasks.untrained_study import CONTENDERS, PUBLISHED_BM3D_PSNR, psnr_of

    def mse(image: Image) -> float:
        return float(((image.astype("float64") - scene.image) ** 2).mean())

    models: dict[str, Any] = {}
    for model, by_target in fits.items():
        noisy = by_target["noisy"]
        models[model] = {
            "network": CONTENDERS[model].zoo_name,
            "options": settings.network_config(model),
            "parameters": noisy.parameters,
            "lr": settings.lr_of(model),
            "best_psnr": noisy.best_psnr,
            "best_iteration": noisy.best_iteration,
            "last_psnr": psnr_of(float(noisy.mse_reference[-1])),
            "published_best_psnr": CONTENDERS[model].published_psnr,
            "targets": {
                target: {
                    "first_mse": float(fit.mse_target[0]),
                    "last_mse": float(fit.mse_target[-1]),
                    "fitted_iteration": fit.iterations_to(
                        FITTED_SHARE * float(scene.target(target).var())
                    ),
                    "seconds": fit.seconds,
                }
                for target, fit in by_target.items()
            },
        }
    return {
        "picture": picture,
        "settings": asdict(settings),
        "halve_every": settings.halve_every,
        "shown_iterations": settings.shown_iterations,
        "fitted_share": FITTED_SHARE,
        "noise_sigma": 255 * scene.noise_std,
        "noisy_psnr": psnr_of(mse(scene.noisy)),
        "bm3d": {"best_psnr": psnr_of(mse(bm3d)), "published_best_psnr": PUBLISHED_BM3D_PSNR},
        "models": models,
        "environment": environment(),
    }


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
    """One row per network, and rows for BM3D and for doing nothing."""
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
    bm3d = results["bm3d"]
    table.add_row(
        label_of("bm3d"),
        "",
        f"{bm3d['best_psnr']:.2f}",
        *[""] * 4,
        f"{bm3d['published_best_psnr']:.1f}",
    )
    table.add_row("noisy", "", f"{results['noisy_psnr']:.2f}", *[""] * 5)
    return table


def main(words: Sequence[str] | None = None) -> None:
    """Check, fit, draw, print the table."""
    config = parse_config(UntrainedConfig, words)
    from img2img_recon.training.trainer import pick_device

    settings = config.settings()
    device = pick_device(config.accelerator)
    scene = read_scene(config.image, settings)
    study = asdict(settings) | {"picture": scene.digest}
    folder = config.out or Path("runs") / f"untrained-{config_hash(study)}"
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out: {folder} is a file, expected a folder")
    check_folder(folder, study, config.overwrite)
    writable_folder(folder, "--out")
    with locked(folder / ".lock", 0, f"--out: another process is working in {folder}"):
        check_folder(folder, study, config.overwrite)
        claim_folder(folder, study, config.overwrite)
        _run(config, settings, scene, folder, device)


def _run(
    config: UntrainedConfig, settings: Settings, scene: Scene, folder: Path, device: torch.device
) -> None:
    """Fit, draw and tell, in a folder that is this study's."""
    from rich.console import Console

    picture = "scikit-image's camera" if config.image is None else config.image.name
    notes = Console(stderr=True)
    notes.print(f"picture: {picture}, {settings.size} x {settings.size}; writing to {folder}")
    fits = run_fits(config, settings, scene, folder, device)

    from denoise_tasks.bm3d import denoise
    from denoise_tasks.untrained_figures import curves_figure, strip_figure

    bm3d = denoise(scene.noisy, scene.noise_std)
    results = collect_results(fits, scene, bm3d, settings, picture)
    write_curves(folder / "curves.csv", fits)
    curves_figure(folder / "curves.png", fits, scene, bm3d)
    strip_figure(folder / "strip.png", fits, scene, bm3d, settings.shown_iterations)
    write_json(folder / "results.json", results)
    # Into a file or a pipe a table of figures must not be folded at a terminal's width.
    console = Console() if sys.stdout.isatty() else Console(width=140)
    console.print(results_table(results))
    console.print(
        f"PSNR on outputs that are not clipped, data range 1. Fitted: {FITTED_SHARE:.0%} of the target's "
        f"variance left; -: not in {settings.iterations} iterations. Published: full-size networks, "
        "another picture of 256 x 256.",
        style="dim",
    )


if __name__ == "__main__":
    run_script(main)
