"""One training run from claiming its folder to its metrics.json, whatever the task."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only
from rich.console import Console

from img2img_recon.networks.base import count_parameters
from img2img_recon.support.cli import as_yaml
from img2img_recon.support.errors import TrainingError
from img2img_recon.support.files import write_json, write_text
from img2img_recon.support.progress import Track, bar, silent
from img2img_recon.training.checkpoints import RunCheckpoints
from img2img_recon.training.faults import not_finite
from img2img_recon.training.run_folder import RunFolder
from img2img_recon.training.task import PreparedRun, Task, TrainingParts


def is_first_process() -> bool:
    """Whether this process is the one that reports and writes."""
    return getattr(rank_zero_only, "rank", 0) == 0


def report(message: str) -> None:
    """Tell the person at the terminal, once for all processes."""
    if is_first_process():
        Console(stderr=True, highlight=False).print(message, markup=False, soft_wrap=True)


def report_nothing(message: str) -> None:
    """Keep what a run has to tell from the terminal."""


def track_of(progress: bool) -> Track:
    """Progress bars in the first process, if wanted."""
    return bar if progress and is_first_process() else silent


def fit(run: RunFolder, parts: TrainingParts) -> dict[str, Any]:
    """Train to the last epoch, from the last checkpoint if there is one; time and size of it."""
    resume = run.last_checkpoint if run.last_checkpoint.is_file() else None
    try:
        parts.trainer.fit(parts.module, datamodule=parts.data, ckpt_path=resume)
    except SystemExit:
        # Lightning ends the program on Ctrl-C; the scripts have their own way and status for it.
        raise KeyboardInterrupt from None
    clock = next(c for c in parts.trainer.callbacks if isinstance(c, RunCheckpoints))  # type: ignore[attr-defined]
    return {"fit_seconds": clock.fit_seconds, "parameters": count_parameters(parts.module)}


def run_task(task: Task, given: Any) -> dict[str, Any]:
    """Train (or resume), score and draw, without a word; what a job on a cluster calls too.

    Args:
        task: what is trained.
        given: its configuration, defaults open or settled.

    Returns:
        The content of the run's metrics.json; nothing in processes other than the first.

    Raises:
        InputError: something given cannot be used.
    """
    return run_prepared(task, task.prepare(task.resolve(given), report_nothing))


def run_prepared(task: Task, prepared: PreparedRun) -> dict[str, Any]:
    """`run_task`, after the checks; a finished run is only read.

    Raises:
        InputError: the folder belongs to another configuration or another process is working in it.
    """
    run, asked = prepared.run, prepared.content
    data = prepared.data_digest()
    changes = run.claim(asked, dry=True, data=data)
    stays = run.stays(asked)
    prepared = replace(prepared, config=replace(prepared.config, **stays), content=asked | stays)
    metrics = None if "max_epochs" in changes else run.metrics()
    parts = task.build(prepared) if metrics is None else None
    if not is_first_process():
        if parts is not None:
            fit(run, parts)
        return {}
    with run.locked():
        run.claim(asked, data=data)
        values = task.values(prepared.config)
        del values["run"]  # where, not what
        write_text(run.flags_file, as_yaml(task.flags(), values))
        for key, (old, new) in changes.items():
            prepared.report(f"going on with --{key} {new} (it was {old})")
        run.remove_leftovers()
        if parts is not None:
            resuming = "; resuming" if run.last_checkpoint.is_file() else ""
            prepared.report(f"{task.describe(prepared, parts)}; run folder {run.path}{resuming}")
            fitted = fit(run, parts)
            metrics = task.score(prepared) | fitted
            if (place := not_finite(metrics)) is not None:
                raise TrainingError(
                    f"{run.path}: the score {place} is NaN; metrics.json is not written"
                )
            write_json(run.metrics_file, metrics)
        else:
            prepared.report(f"{run.path} is finished; its results:")
        task.finish(prepared)
    assert metrics is not None
    return metrics
