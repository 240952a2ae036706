"""Figures. They are written to files and never shown; matplotlib is imported when one is drawn."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from img2img_recon.support.errors import InputError
from img2img_recon.support.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WINDOW_PERCENTILE = 99.9
PANEL_INCHES = 2.6
ERROR_SCALE = 5
DOTS_PER_INCH = 150
LONGEST_PANEL_NAME = 200  # bytes, of the 255 that a file system takes

LABELS = {
    "zero_filled": "zero-filled",
    "tv": "total variation",
    "l1_wavelet": "l1-wavelet",
    "img2img_mixer": "img2img mixer",
    "linear_mixer": "linear mixer",
    "multires_mixer": "multi-resolution mixer",
    "original_mixer": "original mixer",
    "vit": "ViT",
    "dncnn": "DnCNN",
    "unet": "U-Net",
    "fastmri_unet": "fastMRI U-Net",
    "fastmri_varnet": "fastMRI VarNet",
    "bm3d": "BM3D",
    "bm3d_channelwise": "BM3D, blocks matched on red",
}


def label_of(name: str) -> str:
    """Spell a method's or network's name for a figure."""
    return LABELS.get(name, name.replace("_", " "))


def shown_text(text: str) -> str:
    """A name as matplotlib shows it: `$` begins no formula, bytes that are no text are spelt out."""
    return text.encode(errors="backslashreplace").decode().replace("$", r"\$")


def panel_path(folder: Path, name: str) -> Path:
    """A PNG's path whose name holds as much of `name` as any file system takes, without blanks and signs."""
    plain = re.sub(r"[^\w.,-]+", "_", name).encode()[:LONGEST_PANEL_NAME]
    return folder / f"{plain.decode(errors='ignore')}.png"


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Without pyplot: no figure is registered globally and no display is ever asked for.
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as the image file that its ending says (PNG without one), atomically.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=path.suffix.lstrip(".") or "png")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None


def reconstruction_panel(
    path: Path,
    images: Mapping[str, np.ndarray],
    target: np.ndarray,
    *,
    title: str = "",
) -> None:
    """Draw reconstructions beside their target, with the magnified error and the scores under each.

    All images share the window from 0 to the target's 99.9th percentile, and all errors
    `ERROR_SCALE * |image - target|` share the same window, so that panels compare by eye.

    Args:
        path: the image file to write (PNG, by its ending), atomically.
        images: reconstructions by name, real (H, W), in the target's units, drawn in this order.
        target: real (H, W).
        title: a line above.

    Raises:
        InputError: no image, an image of another shape, a target without signal, or a file that
            cannot be written.
    """
    from img2img_recon.metrics import volume_scores

    if not images:
        raise InputError(f"{path}: no image to draw")
    for name, image in images.items():
        if image.ndim != 2 or image.shape != target.shape:
            raise InputError(
                f"{path}: {name} has shape {image.shape}, expected the target's {target.shape}"
            )
    top = float(np.percentile(target, WINDOW_PERCENTILE))
    if not top > 0:
        raise InputError(f"{path}: the target holds no signal to draw")

    height, width = target.shape
    columns = len(images) + 1
    cell = PANEL_INCHES * height / width
    top_inches = 0.55 if title else 0.3
    total = (columns * PANEL_INCHES, 2 * cell + 0.45 + top_inches)
    figure = new_figure(*total)
    axes = figure.subplots(2, columns, squeeze=False)
    figure.subplots_adjust(
        left=0.005,
        right=0.995,
        wspace=0.02,
        hspace=0.02,
        bottom=0.42 / total[1],
        top=1 - top_inches / total[1],
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for column, (name, image) in enumerate(images.items()):
        axes[0, column].imshow(image, cmap="gray", vmin=0, vmax=top, interpolation="nearest")
        axes[0, column].set_title(shown_text(label_of(name)), fontsize=10)
        error = ERROR_SCALE * np.abs(image - target)
        axes[1, column].imshow(error, cmap="gray", vmin=0, vmax=top, interpolation="nearest")
        scores = volume_scores(target[None], image[None], data_range=float(target.max()))
        axes[1, column].text(
            0.5,
            -0.02,
            f"SSIM {scores['ssim']:.3f}   PSNR {scores['psnr']:.1f} dB\nNMSE {scores['nmse']:.4f}",
            transform=axes[1, column].transAxes,
            ha="center",
            va="top",
            fontsize=8,
        )
    axes[0, -1].imshow(target, cmap="gray", vmin=0, vmax=top, interpolation="nearest")
    axes[0, -1].set_title("target", fontsize=10)
    axes[1, -1].text(
        0.5,
        0.5,
        f"on the left:\n{ERROR_SCALE} × |error|\nin the same window",
        transform=axes[1, -1].transAxes,
        ha="center",
        va="center",
        fontsize=9,
        color="0.3",
    )
    if title:
        figure.suptitle(shown_text(title), fontsize=10, y=1 - 0.1 / total[1], va="top")
    save_figure(figure, path)
