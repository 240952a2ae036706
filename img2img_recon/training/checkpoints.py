"""Checkpoints: written whole or not at all, kept by score and by time; `img2img_recon.trained` reads them."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins.io import TorchCheckpointIO

from img2img_recon.support.files import atomic_path
from img2img_recon.trained import load_checkpoint
from img2img_recon.training.faults import fault
from img2img_recon.training.optimisers import AverageWeights
from img2img_recon.training.preemption import STOP_REQUEST, RunStopped
from img2img_recon.training.run_folder import RunFolder


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are whole or absent, say what they are, and are read without running pickled code.

    Args:
        run_config: the run's configuration, written into every checkpoint.
    """

    def __init__(self, run_config: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.run_config = run_config

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write beside `path`, flush to disk, then rename."""
        with atomic_path(Path(path)) as temporary:
            torch.save({**checkpoint, "run_config": self.run_config}, temporary)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read by `load_checkpoint`, whatever is asked for."""
        return load_checkpoint(Path(path))


class RunCheckpoints(Callback):
    """Keeps best.ckpt (by a validation metric) and last.ckpt (to resume from).

    Both are written when an epoch with its validation is over; last.ckpt also every `every_n_steps`
    optimiser steps within an epoch, and when the run is asked to stop (then `RunStopped` ends it).

    Args:
        run: where to write.
        monitor: logged name of the metric.
        mode: "max" or "min", which of two scores is better.
        every_n_steps: optimiser steps between two saves within an epoch; 0 for none.
        average: of the weights, which is then what checkpoints hold as weights.
    """

    def __init__(
        self,
        run: RunFolder,
        monitor: str,
        mode: str,
        every_n_steps: int,
        average: AverageWeights | None = None,
    ) -> None:
        self.run = run
        self.monitor = monitor
        self.sign = {"max": 1.0, "min": -1.0}[mode]
        self.every_n_steps = every_n_steps
        self.average = average
        self.best_score: float | None = None
        self.best_epoch: int | None = None
        self.seconds_before = 0.0
        self.started: float | None = None

    @property
    def fit_seconds(self) -> float:
        """Time spent in training, earlier attempts up to their last checkpoint included."""
        now = 0.0 if self.started is None else time.perf_counter() - self.started
        return self.seconds_before + now

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Start the clock."""
        self.started = time.perf_counter()
        for number, handler in STOP_REQUEST.handlers.items():
            signal.signal(number, handler)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save within an epoch, on the boundary of an optimiser step."""
        accumulated = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        last_batch = batch_idx + 1 == trainer.num_training_batches
        if not accumulated or last_batch:
            return
        stop = STOP_REQUEST.agreed(trainer)
        if stop or (self.every_n_steps and trainer.global_step % self.every_n_steps == 0):
            self._save(trainer, module, self.run.last_checkpoint)
        if stop:
            raise RunStopped(f"{self.run.path}: stopped at step {trainer.global_step}")

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Save the best, then the last: a run killed between the two repeats the epoch and agrees."""
        metric = trainer.callback_metrics.get(self.monitor)
        if metric is not None:
            score = float(metric)
            known = self.best_score is not None and math.isfinite(self.best_score)
            if not known or self.sign * score > self.sign * (self.best_score or 0.0):
                self.best_score, self.best_epoch = score, trainer.current_epoch
                self._save(trainer, module, self.run.best_checkpoint, weights_only=True)
        self._save(trainer, module, self.run.last_checkpoint)
        if STOP_REQUEST.agreed(trainer):
            raise RunStopped(f"{self.run.path}: stopped after epoch {trainer.current_epoch}")

    def _save(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        path: Path,
        weights_only: bool = False,
    ) -> None:
        """Write a checkpoint, unless the weights are broken: it would be where a restart begins."""
        if not all(bool(weights.isfinite().all()) for weights in module.parameters()):
            raise fault(self.run, trainer, "weights are not finite")
        if self.average is not None:
            self.average.swap(module)
        trainer.save_checkpoint(path, weights_only=weights_only)
        if self.average is not None:
            self.average.swap(module)

    def state_dict(self) -> dict[str, Any]:
        """The best score and the time so far."""
        return {
            "best_score": self.best_score,
            "best_epoch": self.best_epoch,
            "fit_seconds": self.fit_seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best score of the run that is resumed."""
        self.best_score, self.best_epoch = state_dict["best_score"], state_dict["best_epoch"]
        self.seconds_before = state_dict["fit_seconds"]
