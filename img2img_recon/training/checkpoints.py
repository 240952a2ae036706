"""Checkpoints: written whole or not at all, read without running pickled code, kept by score and by time."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import nn

from img2img_recon.networks.zoo import build_model
from img2img_recon.support.errors import InputError
from img2img_recon.support.files import atomic_path
from img2img_recon.training.preemption import STOP_REQUEST, RunStopped
from img2img_recon.training.run_folder import RunFolder
from img2img_recon.wrappers import AnySize, Normalized, Residual


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running pickled code.

    Raises:
        InputError: no such file, or not a checkpoint.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch reports a foreign file in half a dozen ways: EOFError, RuntimeError, UnpicklingError ...
        reason = str(error).strip().split("\n")[0][:120]
        raise InputError(
            f"{path}: not a checkpoint that can be read safely ({type(error).__name__}: {reason})"
        ) from None
    if not isinstance(content, dict) or "state_dict" not in content:
        raise InputError(f"{path}: a file of torch, but not a checkpoint (no 'state_dict' in it)")
    return content


def load_weights(module: nn.Module, checkpoint: Mapping[str, Any], source: Path) -> None:
    """Copy a checkpoint's weights into `module`.

    Raises:
        InputError: the checkpoint is of another network; the first misfit is named.
    """
    own, given = module.state_dict(), checkpoint["state_dict"]
    missing, surplus = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    misfits = [
        f"{key} has shape {tuple(given[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own.keys() & given.keys()
        if own[key].shape != given[key].shape
    ]
    problem = (
        f"it lacks {missing[0]}"
        if missing
        else f"it holds {surplus[0]}, which this network lacks"
        if surplus
        else min(misfits, default=None)
    )
    if problem:
        raise InputError(f"{source}: checkpoint of another network ({problem})")
    module.load_state_dict(given)


def find_checkpoint(source: Path) -> Path:
    """The checkpoint that a run folder or a file stands for: a run's best, else its last.

    Raises:
        InputError: nothing there.
    """
    if not source.is_dir():
        return source
    run = RunFolder(source)
    for path in (run.best_checkpoint, run.last_checkpoint):
        if path.is_file():
            return path
    raise InputError(f"{source}: no checkpoint in this folder (looked for checkpoints/best.ckpt)")


def read_run(
    source: Path, tasks: Collection[str], script: str
) -> tuple[dict[str, Any], dict[str, Any], Path]:
    """Configuration, checkpoint and file of a run folder or a checkpoint file.

    Args:
        source: the folder or the file.
        tasks: the `task` that its configuration may name.
        script: what trains such runs, for the error.

    Raises:
        InputError: no checkpoint, or one of another task.
    """
    path = find_checkpoint(source)
    checkpoint = load_checkpoint(path)
    config: dict[str, Any] = checkpoint.get("run_config") or {}
    if config.get("task") not in tasks:
        raise InputError(
            f"{path}: not a checkpoint of {script} (its task: {config.get('task', 'none')})"
        )
    return config, checkpoint, path


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": AnySize,
    "residual": lambda network: Residual(AnySize(network)),
    "normalized": lambda network: Normalized(AnySize(network)),
}
"""What a task trains around a network, by the word that its runs store under `wrapper`."""


def load(source: Path | str) -> nn.Module:
    """The trained network of a run folder or checkpoint file, of any task, in evaluation mode on the CPU.

    It maps images (B, C, H, W) of any size and, as it was trained, in [0, 1] (denoising) or in any
    units (MRI magnitudes), to images of the same size and units.

    Raises:
        InputError: no checkpoint, or one whose network does not take images alone.
    """
    path = find_checkpoint(Path(source))
    checkpoint = load_checkpoint(path)
    return network_of(checkpoint.get("run_config") or {}, checkpoint, path)


def network_of(config: Mapping[str, Any], checkpoint: Mapping[str, Any], path: Path) -> nn.Module:
    """`load`, from what `read_run` has read.

    Raises:
        InputError: as `load`.
    """
    if config.get("wrapper") not in WRAPPERS:
        raise InputError(
            f"{path}: its network does not map images to images "
            f"(model: {config.get('model', 'unknown')})"
        )
    network = WRAPPERS[config["wrapper"]](build_model(config["model"], **config["options"]))
    own = {
        key.removeprefix("network."): value
        for key, value in checkpoint["state_dict"].items()
        if key.startswith("network.")
    }
    load_weights(network, {"state_dict": own}, path)
    return network.eval()


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
    """

    def __init__(self, run: RunFolder, monitor: str, mode: str, every_n_steps: int) -> None:
        self.run = run
        self.monitor = monitor
        self.sign = {"max": 1.0, "min": -1.0}[mode]
        self.every_n_steps = every_n_steps
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
            trainer.save_checkpoint(self.run.last_checkpoint, weights_only=False)
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
                trainer.save_checkpoint(self.run.best_checkpoint, weights_only=True)
        trainer.save_checkpoint(self.run.last_checkpoint, weights_only=False)
        if STOP_REQUEST.agreed(trainer):
            raise RunStopped(f"{self.run.path}: stopped after epoch {trainer.current_epoch}")

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
