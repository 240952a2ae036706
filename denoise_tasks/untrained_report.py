"""What the untrained study tells: every number, the curves, a table for the terminal, and two figures."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from denoise_tasks.untrained_fits import Fits
from denoise_tasks.untrained_study import (
    NETWORKS,
    PUBLISHED_METHODS,
    TARGET_LABELS,
    TARGETS,
    Image,
    Targets,
    halve_every,
    identity,
    mse_of,
    psnr_of,
    shown_iterations,
)
from img2img_recon.figures import label_of, new_figure, save_figure
from img2img_recon.support.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from denoise_tasks.untrained import UntrainedConfig

# How small a share of its variance is left when a target counts as fitted.
FITTED_SHARE = 0.1
STRIP_CELL_INCHES = 1.35
STYLES = ("--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)))
COLOURS = {
    "img2img_mixer": "tab:red",
    "unet": "tab:blue",
    "vit": "tab:green",
    "original_mixer": "tab:orange",
}


def collect_results(
    fits: Fits,
    targets: Targets,
    denoised: Mapping[str, Image],
    config: UntrainedConfig,
    picture: str,
) -> dict[str, Any]:
    """Every number of the study; errors are in units of the picture's maximum, PSNR in dB.

    Args:
        fits: of every network, by target.
        targets: picture and noise.
        denoised: what methods make of the sum, (H, W), by name.
        config: of the study.
        picture: its name.
    """
    models: dict[str, Any] = {}
    for model, by_target in fits.items():
        noisy = by_target["noisy"]
        models[model] = {
            "parameters": noisy.parameters,
            "best_psnr": noisy.best_psnr,
            "best_iteration": noisy.best_iteration,
            "last_psnr": psnr_of(float(noisy.mse_reference[-1])),
            "published_best_psnr": NETWORKS[model].published_psnr,
            "targets": {
                target: {
                    "first_mse": float(fit.mse_target[0]),
                    "last_mse": float(fit.mse_target[-1]),
                    "fitted_iteration": fit.iterations_to(
                        FITTED_SHARE * float(targets.target(target).var())
                    ),
                    "seconds": fit.seconds,
                }
                for target, fit in by_target.items()
            },
        }
    return identity(config, targets) | {
        "picture": picture,
        "halve_every": halve_every(config.steps),
        "shown_iterations": shown_iterations(config.steps),
        "fitted_share": FITTED_SHARE,
        "noise_sigma": 255 * targets.noise_std,
        "noisy_psnr": psnr_of(mse_of(targets.noisy, targets.image)),
        "methods": {
            name: {
                "best_psnr": psnr_of(mse_of(image, targets.image)),
                "published_best_psnr": PUBLISHED_METHODS.get(name),
            }
            for name, image in denoised.items()
        },
        "models": models,
    }


def write_curves(path: Path, fits: Fits) -> None:
    """Write a row per network, target and iteration: the errors, and the PSNR to the clean picture."""
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


def curves_figure(path: Path, fits: Fits, targets: Targets, denoised: Mapping[str, Image]) -> None:
    """Draw the three curves: error against iteration, a panel per target and a line per network.

    Both axes are logarithmic, iterations are counted from 1 for that. Picture and noise are compared with
    themselves; the sum is compared with the clean picture, its dot is the best iterate.

    Args:
        path: the PNG to write.
        fits: of every network, by target.
        targets: picture and noise.
        denoised: what methods make of the sum, (H, W), by name.

    Raises:
        InputError: the file cannot be written.
    """
    figure = new_figure(13.5, 4.2)
    axes = figure.subplots(1, 3)
    for axis, target in zip(axes, TARGETS, strict=True):
        for model, by_target in fits.items():
            curve = by_target[target].mse_reference
            steps = np.arange(1, curve.size + 1)
            colour = COLOURS.get(model)
            axis.loglog(steps, curve, color=colour, label=label_of(model), linewidth=1.4)
            if target == "noisy":
                best = by_target[target].best_iteration
                axis.plot(steps[best], curve[best], "o", color=colour, markersize=5)
        flat = float(targets.reference(target).var())
        axis.axhline(flat, color="0.6", linestyle=":", linewidth=1, label="one flat grey")
        if target == "noisy":
            for number, (name, image) in enumerate({"noisy": targets.noisy, **denoised}.items()):
                error, style = mse_of(image, targets.image), STYLES[number % len(STYLES)]
                axis.axhline(error, color="k", linestyle=style, linewidth=1, label=label_of(name))
        compared = "noise" if target == "noise" else "clean image"
        axis.set_title(f"fitted to {TARGET_LABELS[target]}", fontsize=10)
        axis.set_xlabel("iteration, counted from 1", fontsize=9)
        axis.set_ylabel(f"mean squared error to the {compared}", fontsize=9)
        axis.grid(which="major", alpha=0.3)
        axis.tick_params(labelsize=8, which="both")
        if target != "noise":
            _psnr_axis(axis)
    axes[2].legend(fontsize=7, loc="best")
    figure.tight_layout()
    save_figure(figure, path)


def strip_figure(path: Path, fits: Fits, targets: Targets, denoised: Mapping[str, Image]) -> None:
    """Draw what the networks show on their way to picture plus noise, a row per network.

    The first row is the clean picture, the noisy one and what methods make of it; the last column is the best iterate.
    All are drawn in the window from 0 to 1, with the PSNR to the clean picture under each.

    Args:
        path: the PNG to write.
        fits: of every network, by target.
        targets: picture and noise.
        denoised: what methods make of the sum, (H, W), by name.

    Raises:
        InputError: the file cannot be written.
    """
    iterations = (
        shown_iterations(len(next(iter(fits.values()))["noisy"].mse_target)) if fits else ()
    )
    first_row = {"clean": targets.image, "noisy": targets.noisy, **denoised}
    columns = max(len(iterations) + 1, len(first_row))
    cell = STRIP_CELL_INCHES
    figure = new_figure(columns * cell + 0.3, (len(fits) + 1) * (cell + 0.36))
    axes = figure.subplots(len(fits) + 1, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (name, image) in zip(axes[0], first_row.items(), strict=False):
        _cell(axis, image, targets.image, label_of(name))
    for row, (model, by_target) in zip(axes[1:], fits.items(), strict=True):
        fit = by_target["noisy"]
        for axis, image, iteration in zip(row, fit.shown, iterations, strict=False):
            _cell(axis, image, targets.image, f"iteration {iteration}")
        _cell(row[len(iterations)], fit.best, targets.image, f"best: {fit.best_iteration}")
        row[0].text(
            -0.06,
            0.5,
            label_of(model),
            transform=row[0].transAxes,
            rotation=90,
            ha="right",
            va="center",
            fontsize=8,
        )
    figure.subplots_adjust(
        left=0.3 / (columns * cell + 0.3),
        right=0.995,
        top=0.965,
        bottom=0.035,
        wspace=0.04,
        hspace=0.3,
    )
    save_figure(figure, path)


def _cell(axis: Axes, image: Image, clean: Image, title: str) -> None:
    axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set_title(title, fontsize=7, pad=2)
    error = mse_of(image, clean)
    score = f"{psnr_of(error):.1f} dB" if error else ""
    axis.text(0.5, -0.02, score, transform=axis.transAxes, ha="center", va="top", fontsize=7)


def _psnr_axis(axis: Axes) -> Axes:
    """Show the PSNR on the right: it is linear where the error is logarithmic, and grows downwards."""
    right = axis.twinx()
    # The error's limits are final once they are read; drawing must not change them any more.
    axis.set_ylim(axis.get_ylim())
    right.set_ylim(*(psnr_of(error) for error in axis.get_ylim()))
    right.tick_params(labelsize=8)
    right.set_ylabel("PSNR (dB)", fontsize=9)
    return right
