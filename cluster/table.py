"""From run folders to one tidy table: a row per run, nothing guessed, no SLURM needed."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.runs import Run
from cluster.sweep_folder import SweepFolder
from img2img_recon.support.files import write_text
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


def _mapping(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name} cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} is no mapping")
    return content


def _flat(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, list) else value


def read_run(run: Run, folder: RunFolder) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """A finished run's row and its scores by image.

    The row holds what the run says of itself (config.json, metrics.json), the varied flags and the tags of
    the sweep, the mean scores of the network under their own names and of other methods as
    `<method>_<score>`.

    Raises:
        ValueError: the run is not finished, or a file of it cannot be used; the message says which.
    """
    if not folder.metrics_file.exists():
        started = folder.config_file.exists()
        raise ValueError("no metrics.json yet" if started else "not started")
    metrics, config = _mapping(folder.metrics_file), _mapping(folder.config_file)
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
    images, seconds = row.get("train_images"), row.get("fit_seconds")
    if images and seconds and (epochs := config.get("max_epochs")):
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
    text = io.StringIO()
    writer = csv.DictWriter(text, table.columns, restval="")
    writer.writeheader()
    writer.writerows(table.rows)
    write_text(path, text.getvalue())


def progress_of(folder: RunFolder) -> str:
    """How far a running run is and its last validation score: `epoch 3 of 40, psnr 29.81`; empty if unknown."""
    rows = _last_log(folder)
    if not rows:
        return ""
    done = 1 + max(int(row["epoch"]) for row in rows)
    try:
        of = f" of {_mapping(folder.config_file)['max_epochs']}"
    except (ValueError, KeyError):
        of = ""
    return f"epoch {done}{of}{_last_score(rows)}"


def _last_log(folder: RunFolder) -> list[dict[str, str]]:
    """The rows with an epoch of the newest CSV log that has any."""
    logs = (folder.path / "logs").glob("csv-*/metrics.csv")
    for path in sorted(logs, key=lambda log: int(log.parent.name.partition("-")[2]), reverse=True):
        try:
            with path.open(newline="") as handle:
                rows = [row for row in csv.DictReader(handle) if (row["epoch"] or "").isdigit()]
        except (OSError, csv.Error, KeyError):
            continue
        if rows:
            return rows
    return []


def _last_score(rows: Sequence[Mapping[str, str]]) -> str:
    for row in reversed(rows):
        scores = {key.rpartition("/")[2]: row[key] for key in row if key.startswith("val")}
        for name in ("psnr", "ssim", "validation_loss"):
            if scores.get(name):
                return f", {name} {float(scores[name]):.4g}"
    return ""
