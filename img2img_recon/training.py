"""What every task's training shares: checkpoints, resuming, determinism, clipping, the Lightning trainer."""

from __future__ import annotations

import logging
import math
import signal
import sys
import time
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, RichProgressBar, TQDMProgressBar
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.strategies import DDPStrategy, Strategy
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from img2img_recon.errors import InputError
from img2img_recon.files import atomic_path
from img2img_recon.runs import RunFolder
from img2img_recon.seeds import seed_of
from img2img_recon.stopping import STOP_REQUEST, RunStopped


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


def pick_device(accelerator: str) -> torch.device:
    """`auto` is the GPU where there is one."""
    if accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError(
            f"--accelerator: given {accelerator}, but torch sees no GPU; allowed here: auto, cpu"
        )
    return torch.device("cuda")


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


class SeedEachBatch(Callback):
    """Seeds torch anew for every training batch, so that no generator's state has to survive a kill.

    What a network draws (dropout, noise) then depends on the seed, the process, the epoch and the batch
    only, and a resumed run draws what the unbroken one does.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed by process, epoch and batch."""
        torch.manual_seed(
            seed_of("batch", self.seed, trainer.global_rank, trainer.current_epoch, batch_idx)
        )


class ClipGradients(Callback):
    """Scales the gradient down to a norm; the paper's recipe clips the L1 norm, which Lightning cannot."""

    def __init__(self, max_norm: float, norm_type: float) -> None:
        self.max_norm = max_norm
        self.norm_type = norm_type

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Clip, after accumulation and unscaling."""
        nn.utils.clip_grad_norm_(module.parameters(), self.max_norm, norm_type=self.norm_type)


class AverageBuffers(Callback):
    """Averages floating-point buffers (batch-norm statistics) over the processes before validation.

    DDP would broadcast them at every forward pass, a collective call that hangs as soon as one process
    validates more slices than another.
    """

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """All processes take the mean."""
        if trainer.world_size == 1:
            return
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer.copy_(trainer.strategy.reduce(buffer.clone(), reduce_op="mean"))


def one_cycle(optimizer: torch.optim.Optimizer, max_lr: float, total_steps: int) -> LRScheduler:
    """Linear one-cycle schedule: up to `max_lr` over the first 30 %, then down to almost nothing."""
    return OneCycleLR(
        optimizer,
        max_lr=max_lr,
        total_steps=total_steps,
        anneal_strategy="linear",
        cycle_momentum=False,
    )


@dataclass(frozen=True)
class TrainerOptions:
    """What a task passes through to the Lightning trainer; see the flags of the training scripts."""

    max_epochs: int
    precision: str = "32-true"
    accelerator: str = "auto"
    devices: str = "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    accumulate_grad_batches: int = 1
    gradient_clip_val: float = 0.0
    gradient_clip_norm_type: float = 2.0
    checkpoint_every_n_steps: int = 0
    check_val_every_n_epoch: int = 1
    seed: int = 42
    monitor: str = "validation_loss"
    monitor_mode: str = "min"
    progress: bool = True


def _devices(given: str) -> str | int | list[int]:
    if given == "auto":
        return given
    try:
        numbers = [int(part) for part in given.split(",")]
    except ValueError:
        raise InputError(
            f"--devices: given {given}, allowed: auto, a number of devices, or their indices as 0,1"
        ) from None
    return numbers if "," in given else numbers[0]


def _strategy(given: str, devices: str | int | list[int], num_nodes: int) -> str | Strategy:
    """`given`, with plain DDP set up so that uneven volumes cannot hang it (see `AverageBuffers`)."""
    count = len(devices) if isinstance(devices, list) else devices
    if count in ("auto", -1):
        count = torch.cuda.device_count()
    several = num_nodes > 1 or (isinstance(count, int) and count > 1)
    if given == "ddp" or (given == "auto" and several):
        return DDPStrategy(broadcast_buffers=False)
    return given


def make_trainer(
    run: RunFolder,
    config: Mapping[str, Any],
    options: TrainerOptions,
    callbacks: Sequence[Callback] = (),
) -> pl.Trainer:
    """A Lightning trainer that logs to the run folder and can be killed and resumed at any moment.

    Args:
        run: where checkpoints and logs go; nothing is written before training starts.
        config: the run's resolved configuration, kept in every checkpoint.
        options: Lightning's settings.
        callbacks: the task's own.

    Raises:
        InputError: an option that Lightning refuses, with its reason.
    """
    quiet_lightning()
    devices = _devices(options.devices)
    own: list[Callback] = [
        SeedEachBatch(options.seed),
        AverageBuffers(),
        RunCheckpoints(
            run, options.monitor, options.monitor_mode, options.checkpoint_every_n_steps
        ),
    ]
    if options.gradient_clip_val > 0:
        own.append(ClipGradients(options.gradient_clip_val, options.gradient_clip_norm_type))
    if options.progress:
        own.append(_progress_bar())
    try:
        return pl.Trainer(
            max_epochs=options.max_epochs,
            precision=options.precision,  # type: ignore[arg-type]
            accelerator=options.accelerator,
            devices=devices,
            num_nodes=options.num_nodes,
            strategy=_strategy(options.strategy, devices, options.num_nodes),
            accumulate_grad_batches=options.accumulate_grad_batches,
            check_val_every_n_epoch=options.check_val_every_n_epoch,
            logger=[
                TensorBoardLogger(run.path, name="logs", version="tensorboard"),
                CSVLogger(run.path, name="logs", version=_next_csv(run)),
            ],
            plugins=[AtomicCheckpointIO(config), *_cluster_plugins()],
            callbacks=[*own, *callbacks],
            default_root_dir=run.path,
            # Our samplers know the processes; a second sampler on top would tear volumes apart.
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            enable_checkpointing=False,
            enable_progress_bar=options.progress,
            enable_model_summary=False,
            log_every_n_steps=10,
        )
    except (ValueError, TypeError, RuntimeError, ImportError, MisconfigurationException) as error:
        given = ", ".join(
            f"--{name} {getattr(options, name)}"
            for name in ("accelerator", "devices", "num_nodes", "strategy", "precision")
        )
        reason = " ".join(str(error).split())
        raise InputError(f"Lightning refuses {given}: {reason}") from None


def _cluster_plugins() -> list[SLURMEnvironment]:
    """Under SLURM, Lightning's place in it without Lightning's own requeueing: the job sees to that."""
    return [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []


def _next_csv(run: RunFolder) -> str:
    """A new name each time: Lightning's CSV logger empties a folder that a resumed run finds."""
    return f"csv-{sum(1 for _ in (run.path / 'logs').glob('csv-*'))}"


def quiet_lightning() -> None:
    """Keep Lightning's advertisements and notes on its own defaults off the terminal."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    warnings.filterwarnings("ignore", module="lightning_utilities")
    warnings.filterwarnings("ignore", module="lightning_fabric")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")


def _progress_bar() -> Callback:
    """Rich on a terminal; in a log file one line per epoch's refresh."""
    return RichProgressBar() if sys.stderr.isatty() else TQDMProgressBar(refresh_rate=50)


def compile_networks(module: nn.Module) -> None:
    """Compile, in place and without renaming weights, every child that has parameters."""
    for child in module.children():
        if any(True for _ in child.parameters()):
            child.compile()
