"""Scores of many volumes: means over groups of volumes, as tables and as JSON.

A group's figure is the mean over volumes, whatever their numbers of slices.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmri_plugin.scoring import ScoredVolume
from img2img_recon.perceptual_metrics import METRICS

if TYPE_CHECKING:
    from rich.table import Table

MOST_VOLUMES = 8


@dataclass(frozen=True)
class ScoreRow:
    """Scores of a group of volumes.

    Attributes:
        acquisition: the group's acquisition, None for all.
        acceleration: the group's acceleration, None for all.
        volumes: how many volumes.
        mean: mean over volumes by metric.
        std: sample standard deviation over volumes by metric, 0 for a single volume.
    """

    acquisition: str | None
    acceleration: float | None
    volumes: int
    mean: Mapping[str, float]
    std: Mapping[str, float]

    @property
    def label(self) -> str:
        """The group in words."""
        parts = []
        if self.acquisition is not None:
            parts.append(self.acquisition or "acquisition not stored")
        if self.acceleration is not None:
            parts.append(f"{self.acceleration}x")
        return " ".join(parts) or "all"


def summarise(scores: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Mean over volumes of each metric; empty without a volume."""
    rows = list(scores)
    return {name: float(np.mean([row[name] for row in rows])) for name in (rows[0] if rows else ())}


def _spread(values: Sequence[float]) -> float:
    several = len(values) > 1 and np.isfinite(values).all()
    return float(np.std(values, ddof=1)) if several else 0.0


def group_scores(volumes: Sequence[ScoredVolume]) -> list[ScoreRow]:
    """One row for all volumes, one per acquisition, one per acceleration, one per pair of them.

    Pairs are listed where there are several acquisitions and several accelerations; volumes that
    store no acceleration are in no acceleration's row.
    """
    acquisitions = sorted({volume.acquisition for volume in volumes})
    accelerations = sorted({v.acceleration for v in volumes if v.acceleration is not None})
    keys: list[tuple[str | None, float | None]] = [(None, None)]
    keys += [(acquisition, None) for acquisition in acquisitions]
    keys += [(None, acceleration) for acceleration in accelerations]
    if len(acquisitions) > 1 and len(accelerations) > 1:
        keys += [(one, other) for one in acquisitions for other in accelerations]
    rows = []
    for acquisition, acceleration in keys:
        members = [
            volume
            for volume in volumes
            if acquisition in (None, volume.acquisition)
            and acceleration in (None, volume.acceleration)
        ]
        if members:
            scores = [volume.scores for volume in members]
            std = {name: _spread([row[name] for row in scores]) for name in scores[0]}
            row = ScoreRow(acquisition, acceleration, len(members), summarise(scores), std)
            rows.append(row)
    return rows


def groups_table(methods: Mapping[str, Sequence[ScoreRow]], by_method: bool = True) -> Table:
    """Format groups for the terminal: mean and, as fastMRI, +/- two standard deviations.

    Args:
        methods: rows of the same groups by method; each group has a line for each, the best SSIM last.
        by_method: whether the methods' names are shown.
    """
    from rich.table import Column, Table

    groups = next(iter(methods.values()))
    names = list(groups[0].mean)
    labels = [METRICS[name].label if name in METRICS else name.upper() for name in names]
    columns = [Column("volumes of"), Column("number", justify="right")]
    columns += [Column("method")] if by_method else []
    table = Table(*columns, *(Column(label, justify="right") for label in labels))
    for position, row in enumerate(groups):
        first = (row.label, str(row.volumes))
        lines = [(method, rows[position]) for method, rows in methods.items()]
        for method, line in sorted(lines, key=lambda item: item[1].mean["ssim"]):
            figures = [f"{line.mean[name]:.4g} +/- {2 * line.std[name]:.2g}" for name in names]
            table.add_row(*first, *([method] if by_method else []), *figures)
            first = ("", "")
        if by_method:
            table.add_section()
    return table


def scores_table(methods: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    """Format scores by method and file name: a section per volume, then the means, best SSIM last.

    Of more than `MOST_VOLUMES` volumes only the means are shown.
    """
    from rich.table import Column, Table

    figures = (Column(name, justify="right") for name in ("NMSE", "PSNR (dB)", "SSIM"))
    table = Table("volume", "method", *figures)

    def add_section(label: str, scores: Mapping[str, Mapping[str, float]]) -> None:
        for method, row in sorted(scores.items(), key=lambda item: item[1]["ssim"]):
            figures = (f"{row['nmse']:.4f}", f"{row['psnr']:.2f}", f"{row['ssim']:.4f}")
            table.add_row(label, method, *figures)
            label = ""
        table.add_section()

    names = sorted(set().union(*methods.values()))
    if len(names) <= MOST_VOLUMES:
        for name in names:
            add_section(name, {m: scores[name] for m, scores in methods.items() if name in scores})
    means = {method: summarise(volumes.values()) for method, volumes in methods.items() if volumes}
    add_section(f"mean of {len(names)}", means)
    return table


def scores_json(volumes: Sequence[ScoredVolume], rows: Sequence[ScoreRow]) -> dict[str, Any]:
    """Content for a JSON file: every group's means and deviations, every volume's scores.

    The PSNR of a perfect reconstruction is infinite, which JSON lacks; it becomes null.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {
        "groups": [plain({"label": row.label, **asdict(row)}) for row in rows],
        "volumes": {
            volume.name: {
                "acquisition": volume.acquisition,
                "acceleration": volume.acceleration,
                "slices": volume.slices,
                **plain(volume.scores),
            }
            for volume in volumes
        },
    }
