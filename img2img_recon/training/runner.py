"""One training run from claiming its folder to its metrics.json, whatever the task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
from lightning_utilities.core.rank_zero import rank_zero_only
from rich.console import Console
from torch import nn

from img2img_recon.support.files import write_json
from img2img_recon.support.progress import Track, bar, silent
from img2img_recon.training.checkpoints import RunCheckpoints
from img2img_recon.training.run_folder import RunFolder

Say = Callable[[str], None]


def is_first_process() -> bool:
    """Whether this process is the one that talks and writes."""
    return getattr(rank_zero_only, "rank", 0) == 0


def say(message: str) -> None:
    """Tell the person at the terminal, once for all processes."""
    if is_first_process():
        Console(stderr=True, highlight=False).print(message, markup=False, soft_wrap=True)


def say_nothing(message: str) -> None:
    """Keep what a run has to tell from the terminal."""


def track_of(progress: bool) -> Track:
    """Progress bars in the first process, if wanted."""
    return bar if progress and is_first_process() else silent


def count_parameters(module: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


@dataclass(frozen=True)
class Parts:
    """What a training puts together, built and thereby checked before anything is written."""

    module: pl.LightningModule
    data: pl.LightningDataModule
    trainer: pl.Trainer


def fit(run: RunFolder, parts: Parts) -> dict[str, Any]:
    """Train to the last epoch, from the last checkpoint if there is one; time and size of it."""
    resume = run.last_checkpoint if run.last_checkpoint.is_file() else None
    try:
        parts.trainer.fit(parts.module, datamodule=parts.data, ckpt_path=resume)
    except SystemExit:
        # Lightning ends the program on Ctrl-C; the scripts have their own way and status for it.
        raise KeyboardInterrupt from None
    clock = next(c for c in parts.trainer.callbacks if isinstance(c, RunCheckpoints))  # type: ignore[attr-defined]
    return {"fit_seconds": clock.fit_seconds, "parameters": count_parameters(parts.module)}


def execute(
    run: RunFolder,
    content: Mapping[str, Any],
    *,
    build: Callable[[], Parts],
    describe: Callable[[Parts], str],
    score: Callable[[], dict[str, Any]],
    finish: Callable[[], None] | None = None,
    tell: Say = say_nothing,
) -> dict[str, Any]:
    """Train (or resume) a run, score it and write its metrics.json; a finished run is only read.

    Args:
        run: the run's folder, claimed after everything is built.
        content: the resolved configuration that the folder belongs to.
        build: makes the parts; whatever the user gave that cannot be used is found here.
        describe: one line on what is about to be trained.
        score: what metrics.json holds besides the time and the parameters.
        finish: what else belongs in the folder, made also when the run was found finished.
        tell: takes the messages for the person at the terminal.

    Returns:
        The content of metrics.json; nothing in processes other than the first.

    Raises:
        InputError: the folder belongs to another configuration or another process is working in it.
    """
    run.claim(content, dry=True)
    metrics = run.metrics()
    parts = build() if metrics is None else None
    if not is_first_process():
        if parts is not None:
            fit(run, parts)
        return {}
    with run.locked():
        run.claim(content)
        run.remove_leftovers()
        if parts is not None:
            resuming = "; resuming" if run.last_checkpoint.is_file() else ""
            tell(f"{describe(parts)}; run folder {run.path}{resuming}")
            fitted = fit(run, parts)
            metrics = score() | fitted
            write_json(run.metrics_file, metrics)
        else:
            tell(f"{run.path} is finished; its results:")
        if finish is not None:
            finish()
    assert metrics is not None
    return metrics
