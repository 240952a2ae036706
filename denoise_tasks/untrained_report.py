"""What the untrained study tells: every number, the curves, a table for the terminal, and two figures."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.table import Column, Table

from denoise_tasks.untrained_fits import Fits
from denoise_tasks.untrained_study import (
    NETWORKS,
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

PUBLISHED_METHODS = {"bm3d": 23.5}
# How small a share of its variance is left when a target counts as fitted.
FITTED_SHARE = 0.1
STRIP_CELL_INCHES = 1.35
STYLES = ("--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)))
COLOURS = dict(zip(NETWORKS, ("tab:red", "tab:blue", "tab:green", "tab:orange"), strict=True))
HEADINGS = (
    "parameters",
    "best PSNR (dB)",
    "at iteration",
    "last PSNR (dB)",
    "image fitted at",
    "noise fitted at",
    "published best (dB)",
)


class Study(NamedTuple):
    """A finished study.

    Attributes:
        config: its flags.
        picture: the picture's name.
        targets: picture and noise.
        fits: of every network, by target.
        denoised: what methods make of the sum, (H, W), by name.
    """

    config: UntrainedConfig
    picture: str
    targets: Targets
    fits: Fits
    denoised: Mapping[str, Image]


def collect_results(study: Study) -> dict[str, Any]:
    """Every number of the study; errors are in units of the picture's maximum, PSNR in dB."""
    targets, steps = study.targets, study.config.steps
    models = {}
    for model, by_target in study.fits.items():
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
                        FITTED_SHARE * float(getattr(targets, target).var())
                    ),
                    "seconds": fit.seconds,
                }
                for target, fit in by_target.items()
            },
        }
    return identity(study.config, targets) | {
        "picture": study.picture,
        "halve_every": halve_every(steps),
        "shown_iterations": shown_iterations(steps),
        "fitted_share": FITTED_SHARE,
        "noise_sigma": 255 * targets.noise_std,
        "noisy_psnr": psnr_of(mse_of(targets.noisy, targets.image)),
        "methods": {
            name: {
                "best_psnr": psnr_of(mse_of(image, targets.image)),
                "published_best_psnr": PUBLISHED_METHODS.get(name),
            }
            for name, image in study.denoised.items()
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
    title = f"{results['picture']}, noise of sigma {results['noise_sigma']:.1f}"
    table = Table("", *(Column(heading, justify="right") for heading in HEADINGS), title=title)
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
    table.add_row("noisy", "", f"{results['noisy_psnr']:.2f}")
    return table


def curves_figure(path: Path, study: Study) -> None:
    """Draw the three curves: error against iteration, a panel per target and a line per network.

    Both axes are logarithmic, iterations are counted from 1 for that. Picture and noise are compared with
    themselves; the sum is compared with the clean picture, its dot is the best iterate.
    """
    figure = new_figure(13.5, 4.2)
    axes = figure.subplots(1, 3)
    for axis, (target, words) in zip(axes, TARGETS.items(), strict=True):
        for model, by_target in study.fits.items():
            curve, colour = by_target[target].mse_reference, COLOURS[model]
            steps = np.arange(1, curve.size + 1)
            axis.loglog(steps, curve, color=colour, label=label_of(model), linewidth=1.4)
            if target == "noisy":
                best = by_target[target].best_iteration
                axis.plot(steps[best], curve[best], "o", color=colour, markersize=5)
        flat = float(study.targets.reference(target).var())
        axis.axhline(flat, color="0.6", linestyle=":", linewidth=1, label="one flat grey")
        if target == "noisy":
            lines = {"noisy": study.targets.noisy, **study.denoised}
            for number, (name, image) in enumerate(lines.items()):
                error, style = mse_of(image, study.targets.image), STYLES[number % len(STYLES)]
                axis.axhline(error, color="k", linestyle=style, linewidth=1, label=label_of(name))
        compared = "noise" if target == "noise" else "clean image"
        axis.set_title(f"fitted to {words}", fontsize=10)
        axis.set_xlabel("iteration, counted from 1", fontsize=9)
        axis.set_ylabel(f"mean squared error to the {compared}", fontsize=9)
        axis.grid(which="major", alpha=0.3)
        axis.tick_params(labelsize=8, which="both")
        if target != "noise":
            _psnr_axis(axis)
    axes[2].legend(fontsize=7, loc="best")
    figure.tight_layout()
    save_figure(figure, path)


def strip_figure(path: Path, study: Study) -> None:
    """Draw what the networks show on their way to picture plus noise, a row per network.

    The first row is the clean picture, the noisy one and what methods make of it; the last column is the best iterate.
    All are drawn in the window from 0 to 1, with the PSNR to the clean picture under each.
    """
    clean, iterations = study.targets.image, shown_iterations(study.config.steps)
    rows = [{"clean": clean, "noisy": study.targets.noisy, **study.denoised}]
    rows[0] = {label_of(name): image for name, image in rows[0].items()}
    for by_target in study.fits.values():
        fit = by_target["noisy"]
        shown = zip(iterations, fit.shown, strict=True)
        row = {f"iteration {iteration}": image for iteration, image in shown}
        rows.append(row | {f"best: {fit.best_iteration}": fit.best})
    columns = max(map(len, rows))
    width, cell = columns * STRIP_CELL_INCHES + 0.3, STRIP_CELL_INCHES
    figure = new_figure(width, len(rows) * (cell + 0.36))
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for row_axes, row in zip(axes, rows, strict=True):
        for axis, (title, image) in zip(row_axes, row.items(), strict=False):
            axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set_title(title, fontsize=7, pad=2)
            error = mse_of(image, clean)
            _text(axis, 0.5, -0.02, f"{psnr_of(error):.1f} dB" if error else "", va="top", size=7)
    for axis, model in zip(axes[1:, 0], study.fits, strict=True):
        _text(axis, -0.1, 0.5, label_of(model), rotation=90, va="center", size=8)
    figure.subplots_adjust(
        left=0.3 / width, right=0.995, top=0.965, bottom=0.035, wspace=0.04, hspace=0.3
    )
    save_figure(figure, path)


def _text(axis: Axes, x: float, y: float, text: str, **style: Any) -> None:
    axis.text(x, y, text, transform=axis.transAxes, ha="center", **style)


def _psnr_axis(axis: Axes) -> Axes:
    """Show the PSNR on the right: it is linear where the error is logarithmic, and grows downwards."""
    right = axis.twinx()
    # The error's limits are final once they are read; drawing must not change them any more.
    axis.set_ylim(axis.get_ylim())
    right.set_ylim(*(psnr_of(error) for error in axis.get_ylim()))
    right.tick_params(labelsize=8)
    right.set_ylabel("PSNR (dB)", fontsize=9)
    return right
