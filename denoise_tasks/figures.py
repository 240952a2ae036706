"""Pictures of denoised images side by side, whole and enlarged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from img2img_recon.figures import (
    PANEL_INCHES,
    label_of,
    new_figure,
    panel_path,
    save_figure,
    shown_text,
)
from img2img_recon.metrics import image_psnr
from img2img_recon.support.errors import InputError

if TYPE_CHECKING:
    from denoise_tasks.cases import Case

ZOOM = 4


def busiest(image: np.ndarray, side: int) -> tuple[int, int]:
    """Top left corner of the `side` x `side` square with the most detail, on a coarse grid."""
    grey = image.mean(axis=2)
    rows, columns = np.gradient(grey)
    detail = np.abs(rows) + np.abs(columns)
    step = max(side // 4, 1)
    places = [
        (top, left)
        for top in range(0, image.shape[0] - side + 1, step)
        for left in range(0, image.shape[1] - side + 1, step)
    ]
    return max(places, key=lambda p: detail[p[0] : p[0] + side, p[1] : p[1] + side].sum())


def denoising_panel(
    path: Path, images: Mapping[str, np.ndarray], clean: np.ndarray, *, title: str = ""
) -> None:
    """Draw noisy and denoised images beside the clean one, with a square enlarged below each.

    Args:
        path: the PNG to write, atomically.
        images: by method, (H, W, C) in [0, 1], drawn in this order.
        clean: the reference, same shape.
        title: a line above.

    Raises:
        InputError: an image of another shape, or a file that cannot be written.
    """
    for name, image in images.items():
        if image.shape != clean.shape:
            raise InputError(f"{path}: {name} has shape {image.shape}, expected {clean.shape}")

    from matplotlib.patches import Rectangle

    height, width = clean.shape[:2]
    side = max(min(height, width) // ZOOM, 1)
    top, left = busiest(clean, side)
    columns = len(images) + 1
    cell = PANEL_INCHES * height / width
    total = (columns * PANEL_INCHES, cell + PANEL_INCHES + 0.75)
    figure = new_figure(*total)
    axes = figure.subplots(2, columns, squeeze=False, height_ratios=[cell, PANEL_INCHES])
    figure.subplots_adjust(
        left=0.005, right=0.995, bottom=0.01, top=1 - 0.6 / total[1], wspace=0.02, hspace=0.02
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for column, (name, image) in enumerate([*images.items(), ("clean", clean)]):
        shown = image.clip(0, 1)
        shown = shown[..., 0] if shown.shape[2] == 1 else shown
        label = shown_text(label_of(name))
        if name != "clean":
            label += f"\n{image_psnr(clean, image, data_range=1):.2f} dB"
        zoomed = shown[top : top + side, left : left + side]
        for axis, part in ((axes[0, column], shown), (axes[1, column], zoomed)):
            axis.imshow(part, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes[0, column].set_title(label, fontsize=9)
        axes[0, column].add_patch(
            Rectangle((left - 0.5, top - 0.5), side, side, fill=False, color="yellow", lw=0.8)
        )
    if title:
        figure.suptitle(shown_text(title), fontsize=9, y=1 - 0.05 / total[1], va="top")
    save_figure(figure, path)


def panels_in(
    folder: Path, before: str, between: str
) -> Callable[[int, Case, Mapping[str, np.ndarray], np.ndarray], None]:
    """What draws the panels of `scoring.score_cases` into a folder; their names are `before`, number and image."""

    def draw(number: int, case: Case, images: Mapping[str, np.ndarray], clean: np.ndarray) -> None:
        path = panel_path(folder, f"{before}{number:02}{between}{Path(case.name).stem}")
        denoising_panel(path, images, clean, title=case.name)

    return draw
