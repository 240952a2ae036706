"""How a score grows with size: a saturating power law with intervals, and the figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cluster.runs import Plot, Sweep
from cluster.table import Table
from img2img_recon.support.errors import InputError

EXPONENTS = np.geomspace(0.01, 5, 240)
LEVEL = 0.95
MIN_SIZES = 3


class PowerLaw(NamedTuple):
    """score = limit - gain * (x / scale) ** -exponent.

    Attributes:
        limit: the score that no size exceeds.
        gain: what is missing to it at x = scale; at least 0.
        exponent: above 0.
        scale: the geometric mean of the sizes that were fitted.
    """

    limit: float
    gain: float
    exponent: float
    scale: float

    def __call__(self, x: Any) -> np.ndarray:
        """The score at sizes x."""
        return self.limit - self.gain * (np.asarray(x, dtype=float) / self.scale) ** -self.exponent


class Interval(NamedTuple):
    """A central bootstrap interval."""

    low: float
    high: float


class Scaling(NamedTuple):
    """A fitted law.

    Attributes:
        law: fitted to the mean scores.
        intervals: of limit, gain and exponent.
        x: sizes, ascending.
        mean: mean score at each.
        spread: interval of each mean.
        replicates: laws of the bootstrap.
    """

    law: PowerLaw
    intervals: dict[str, Interval]
    x: np.ndarray
    mean: np.ndarray
    spread: list[Interval]
    replicates: list[PowerLaw]


def fit_law(x: np.ndarray, y: np.ndarray) -> PowerLaw:
    """Least squares: for each exponent the rest is linear, so only the exponent is searched.

    Args:
        x: sizes, above 0, at least three different ones.
        y: scores.

    Raises:
        InputError: too few sizes.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(np.unique(x)) < MIN_SIZES:
        raise InputError(f"a fit needs {MIN_SIZES} different sizes, given {len(np.unique(x))}")
    scale = float(np.exp(np.log(x).mean()))
    logs = np.log(x / scale)

    def solve(exponents: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Limits, gains and squared errors at each exponent."""
        basis = np.exp(-exponents[:, None] * logs)
        centred = basis - basis.mean(axis=1, keepdims=True)
        gains = -(centred * (y - y.mean())).sum(axis=1) / (centred**2).sum(axis=1)
        gains = np.maximum(gains, 0.0)  # a law that falls with size is none of these
        limits = y.mean() + gains * basis.mean(axis=1)
        errors = ((y - limits[:, None] + gains[:, None] * basis) ** 2).sum(axis=1)
        return limits, gains, errors

    best = int(np.argmin(solve(EXPONENTS)[2]))
    low, high = EXPONENTS[max(best - 1, 0)], EXPONENTS[min(best + 1, len(EXPONENTS) - 1)]
    for _ in range(6):
        finer = np.linspace(low, high, 11)
        best = int(np.argmin(solve(finer)[2]))
        low, high = finer[max(best - 1, 0)], finer[min(best + 1, 10)]
    exponent = finer[best]
    limits, gains, _ = solve(np.array([exponent]))
    return PowerLaw(float(limits[0]), float(gains[0]), float(exponent), scale)


def fit_scaling(
    scores: Mapping[float, Sequence[np.ndarray]], *, replicates: int = 1000, seed: int = 0
) -> Scaling:
    """Fit the law to mean scores; intervals by a bootstrap over seeds and images.

    The images are drawn once per replicate, the same for all sizes, because all runs were scored on the
    same ones; the seeds are drawn for every size apart.

    Args:
        scores: by size, one array (images,) per seed; every array has the same images in the same order.
        replicates: of the bootstrap.
        seed: of its draws.

    Raises:
        InputError: too few sizes, or arrays of different length.
    """
    sizes = np.array(sorted(scores), dtype=float)
    stacks = [
        np.stack([np.asarray(s, dtype=float) for s in scores[size]]) for size in sorted(scores)
    ]
    counts = {stack.shape[1] for stack in stacks}
    if len(counts) != 1:
        raise InputError(f"runs were scored on different numbers of images: {sorted(counts)}")
    mean = np.array([stack.mean() for stack in stacks])
    law = fit_law(sizes, mean)
    rng = np.random.default_rng(seed)
    images = counts.pop()
    drawn = np.empty((replicates, len(sizes)))
    for number in range(replicates):
        chosen = rng.integers(images, size=images)
        for position, stack in enumerate(stacks):
            seeds = rng.integers(len(stack), size=len(stack))
            drawn[number, position] = stack[seeds].mean(axis=0)[chosen].mean()
    laws = [fit_law(sizes, row) for row in drawn]
    fields = {name: np.array([getattr(one, name) for one in laws]) for name in PowerLaw._fields[:3]}
    return Scaling(
        law,
        {name: interval(values) for name, values in fields.items()},
        sizes,
        mean,
        [interval(drawn[:, position]) for position in range(len(sizes))],
        laws,
    )


def interval(values: np.ndarray) -> Interval:
    """The central interval that holds the share `LEVEL` of the values."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def _line_of(row: Mapping[str, Any], columns: Sequence[str]) -> str | None:
    """The line of a figure that a row belongs to; a number says of what. None if the row lacks a column."""
    values = [row.get(column) for column in columns]
    if any(value in (None, "") for value in values):
        return None
    return ", ".join(
        value if isinstance(value, str) else f"{value:,} {column.replace('_', ' ')}"
        for value, column in zip(values, columns, strict=True)
    )


def lines_of(table: Table, plot: Plot) -> dict[str, dict[float, list[np.ndarray]]]:
    """By line and size, the scores by image of each seed; only of images that all runs of the line share.

    Raises:
        InputError: no finished run has the plot's columns.
    """
    found: dict[str, dict[float, list[dict[str, float]]]] = {}
    for row in table.rows:
        size, line = row.get(plot.x), _line_of(row, plot.lines)
        by_image = table.scores[row["id"]].get(plot.y)
        if by_image is None and plot.y in row:
            by_image = {"mean": row[plot.y]}
        if size in (None, "") or line is None or not by_image:
            continue
        try:
            position = float(size)
        except (TypeError, ValueError):
            raise InputError(f"plots: {plot.x} is no number in run {row['id']}: {size!r}") from None
        found.setdefault(line, {}).setdefault(position, []).append(by_image)
    if not found:
        raise InputError(
            f"plots: no finished run has {', '.join([plot.x, plot.y, *plot.lines])}; "
            f"columns: {', '.join(table.columns) or 'none'}"
        )
    lines = {}
    for line, by_size in found.items():
        every = [scores for runs in by_size.values() for scores in runs]
        shared = sorted(set(every[0]).intersection(*every[1:]))
        if not shared:
            raise InputError(f"plots: the runs of {line} were scored on different images")
        lines[line] = {
            size: [np.array([scores[image] for image in shared]) for scores in runs]
            for size, runs in by_size.items()
        }
    return lines


def draw(
    path: Path, table: Table, plot: Plot, *, title: str = "", replicates: int = 1000
) -> dict[str, Any]:
    """Draw a figure (PNG or PDF by the ending) and give what it shows.

    Returns:
        By line: its sizes, means and their intervals, and the law with its intervals (or why there is none).

    Raises:
        InputError: nothing to draw.
    """
    from img2img_recon.figures import label_of, new_figure, save_figure, shown_text

    lines = lines_of(table, plot)
    figure = new_figure(6, 4.2)
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    report: dict[str, Any] = {}
    for number, line in enumerate(dict.fromkeys([*lines, *plot.published])):
        network, comma, rest = line.partition(", ")
        colour, label = f"C{number % 10}", shown_text(label_of(network) + comma + rest)
        points = plot.published.get(line, ())
        if points:
            x, y = np.transpose(points)
            axes.plot(x, y, "^", color=colour, mfc="none", label=f"{label}, published")
        if line not in lines:
            continue
        report[line] = _draw_line(axes, lines[line], colour, label, plot.fit, replicates)
    axes.set_xscale("log")
    axes.set_xlabel(shown_text(plot.x_label or plot.x.replace("_", " ")))
    axes.set_ylabel({"psnr": "PSNR (dB)", "ssim": "SSIM", "nmse": "NMSE"}.get(plot.y, plot.y))
    axes.set_title(shown_text(plot.title or title))
    axes.grid(True, which="both", alpha=0.25)
    axes.legend(fontsize="small")
    save_figure(figure, path)
    return report


def _draw_line(
    axes: Any,
    scores: Mapping[float, Sequence[np.ndarray]],
    colour: str,
    label: str,
    fit: bool,
    replicates: int,
) -> dict[str, Any]:
    sizes = np.array(sorted(scores))
    runs = int(sum(map(len, scores.values())))
    means = np.array([np.mean([s.mean() for s in scores[size]]) for size in sorted(scores)])
    report: dict[str, Any] = {"runs": runs, "x": sizes.tolist(), "mean": means.tolist()}
    if not fit or len(sizes) < MIN_SIZES:
        for size in sizes:
            ours = [float(one.mean()) for one in scores[size]]
            axes.plot([size] * len(ours), ours, ".", color=colour, alpha=0.5)
        axes.plot(sizes, means, "o-", color=colour, label=label)
        if fit:
            report["law"] = f"no fit: {len(sizes)} sizes, {MIN_SIZES} are needed"
        return report
    result = fit_scaling(scores, replicates=replicates)
    low, high = np.transpose(result.spread)
    errors = np.maximum([means - low, high - means], 0)
    axes.errorbar(sizes, means, errors, fmt="o", color=colour, capsize=3, label=label)
    dense = np.geomspace(sizes[0], sizes[-1] * math.sqrt(10), 120)
    axes.plot(dense, result.law(dense), "-", color=colour)
    band = np.quantile([law(dense) for law in result.replicates], [0.025, 0.975], axis=0)
    axes.fill_between(dense, band[0], band[1], color=colour, alpha=0.12, linewidth=0)
    report["spread"] = [list(one) for one in result.spread]
    report["law"] = result.law._asdict()
    report["intervals"] = {name: list(one) for name, one in result.intervals.items()}
    return report


def draw_all(
    table: Table, sweep: Sweep, folder: Path, replicates: int = 1000
) -> dict[str, dict[str, Any]]:
    """Draw every figure of a sweep file into `folder`; what they show, by file name.

    Raises:
        InputError: the sweep file has no plots, or there is nothing to draw.
    """
    if not sweep.plots:
        raise InputError(f"{sweep.file}: no plots in it; give `plots: [{{x: ..., y: ...}}]`")
    reports = {}
    for number, plot in enumerate(sweep.plots):
        same = sum(other.x == plot.x and other.y == plot.y for other in sweep.plots[:number])
        name = f"{sweep.name}-{plot.y}-{plot.x}" + (f"-{same + 1}" if same else "")
        reports[f"{name}.png"] = draw(
            folder / f"{name}.png", table, plot, title=sweep.name, replicates=replicates
        )
    return reports
