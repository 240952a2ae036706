"""From run folders to one tidy table: a row per run, nothing guessed, no SLURM needed."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.runs import Run
from cluster.sweep_folder import SweepFolder
from img2img_recon.support.files import atomic_path
from img2img_recon.training.run_folder import RunFolder

FIRST_COLUMNS = ("id", "task", "model", "parameters", "train_images", "seed")
PLAIN_METRICS = ("parameters", "fit_seconds", "protocol", "scored_on", "sigma")


@dataclass
class Table:
    """The results of a sweep.

    Attributes:
        rows: of the finished runs, by column.
        scores: by run id and score (psnr ...): the score of every image or volume by its name.
        unfinished: by run id, why it has no row.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    scores: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    unfinished: dict[str, str] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        """All columns, the telling ones first."""
        found = dict.fromkeys(key for row in self.rows for key in row)
        first = [key for key in FIRST_COLUMNS if key in found]
        return [*first, *(key for key in found if key not in first)]


def _read_json(path: Path) -> Any:
    with open(path, encoding="utf-8") as handle:
        return json.load(handle)


def _flat(value: Any) -> Any:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return value


def read_run(run: Run, folder: RunFolder) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """A finished run's row and its scores by image.

    The row holds what the run says of itself (config.json, metrics.json), the varied flags and the tags of
    the sweep, the mean scores of the network under their own names and of other methods as
    `<method>_<score>`.

    Raises:
        ValueError: the run is not finished, or a file of it cannot be used; the message says which.
    """
    try:
        metrics = _read_json(folder.metrics_file)
    except FileNotFoundError:
        there = folder.config_file.exists()
        raise ValueError("no metrics.json yet" if there else "not started") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"metrics.json cannot be read ({error})") from None
    try:
        config = _read_json(folder.config_file)
    except (OSError, ValueError) as error:
        raise ValueError(f"config.json cannot be read ({error})") from None
    if not isinstance(metrics, dict) or not isinstance(config, dict):
        raise ValueError("metrics.json or config.json is no mapping")
    model = metrics.get("model")
    means = metrics.get("mean")
    if not isinstance(means, dict) or not isinstance(means.get(model), dict):
        raise ValueError("metrics.json lacks the mean scores of its model")
    row: dict[str, Any] = {"id": run.id, "task": run.task, "model": model}
    row |= {key: _flat(config[key]) for key in ("train_images", "seed") if key in config}
    row |= {key: metrics[key] for key in ("train_images",) if key in metrics}
    row |= {key: _flat(value) for key, value in run.varied.items()}
    row |= run.tags
    row |= {key: metrics[key] for key in PLAIN_METRICS if key in metrics}
    images, epochs, seconds = (
        row.get("train_images"),
        config.get("max_epochs"),
        row.get("fit_seconds"),
    )
    if images and epochs and seconds:
        row["images_per_s"] = images * epochs * (config.get("crops_per_image") or 1) / seconds
    by_method = metrics.get("images") or metrics.get("volumes") or {}
    row["scored"] = len(by_method.get(model, {}))
    row |= means[model]
    for method, scores in means.items():
        if method != model:
            row |= {f"{method}_{name}": value for name, value in scores.items()}
    by_score: dict[str, dict[str, float]] = {}
    for image, values in by_method.get(model, {}).items():
        for name, value in values.items():
            by_score.setdefault(name, {})[image] = value
    return row, by_score


def collect(runs: Sequence[Run], folder: SweepFolder) -> Table:
    """Read every run; those without usable results are in `unfinished`."""
    table = Table()
    for run in runs:
        try:
            row, scores = read_run(run, folder.run(run.id))
        except ValueError as error:
            table.unfinished[run.id] = str(error)
            continue
        table.rows.append(row)
        table.scores[run.id] = scores
    return table


def write_table(table: Table, path: Path) -> None:
    """Write the rows as CSV, atomically; an absent value is an empty cell."""
    with atomic_path(path) as temporary, temporary.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, table.columns, restval="")
        writer.writeheader()
        writer.writerows(table.rows)


def progress_of(folder: RunFolder) -> str:
    """How far a running run is and its last validation score: `epoch 3 of 40, psnr 29.81`; empty if unknown."""
    parts = []
    epoch, metric = _last_logged(folder)
    try:
        epochs = _read_json(folder.config_file).get("max_epochs")
    except (OSError, ValueError):
        epochs = None
    if epoch is not None:
        parts.append(f"epoch {epoch + 1}" + (f" of {epochs}" if epochs else ""))
    if metric is not None:
        parts.append(f"{metric[0]} {metric[1]:.4g}")
    return ", ".join(parts)


def _last_logged(folder: RunFolder) -> tuple[int | None, tuple[str, float] | None]:
    """The last epoch and the last validation metric in the newest CSV log that has any."""
    logs = sorted(
        (folder.path / "logs").glob("csv-*/metrics.csv"),
        key=lambda path: int(path.parent.name.partition("-")[2] or 0),
    )
    for path in reversed(logs):
        try:
            with path.open(newline="") as handle:
                rows = list(csv.DictReader(handle))
        except (OSError, csv.Error):
            continue
        epochs = [int(row["epoch"]) for row in rows if (row.get("epoch") or "").isdigit()]
        metric = _last_metric(rows)
        if epochs:
            return max(epochs), metric
    return None, None


def _last_metric(rows: Iterable[Mapping[str, str]]) -> tuple[str, float] | None:
    for row in reversed(list(rows)):
        named = {key: value for key, value in row.items() if value and key.startswith("val")}
        for wanted in ("psnr", "ssim", "loss", ""):
            for key, value in named.items():
                if wanted in key:
                    try:
                        return key.rpartition("/")[2], float(value)
                    except ValueError:
                        continue
    return None
