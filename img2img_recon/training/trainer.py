"""What every task's training shares: checkpoints, resuming, determinism, clipping, the Lightning trainer."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ProgressBar
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.strategies import DDPStrategy, Strategy
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

from img2img_recon.support.errors import InputError, reason
from img2img_recon.support.seeds import seed_of
from img2img_recon.training.checkpoints import AtomicCheckpointIO, RunCheckpoints
from img2img_recon.training.epoch_lines import progress_callback
from img2img_recon.training.faults import StopAtFaults
from img2img_recon.training.loggers import RunLoggers
from img2img_recon.training.optimisers import AverageWeights, Budget, StretchSchedule
from img2img_recon.training.options import TrainingFlags
from img2img_recon.training.run_folder import RunFolder


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


class ValidateUncompiled(Callback):
    """Validates without the compiler: every size of an image would be compiled anew, for minutes each."""

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Call what was compiled as it was written."""
        torch.compiler.set_stance("force_eager")

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Call what was compiled."""
        torch.compiler.set_stance("default")

    def on_exception(
        self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException
    ) -> None:
        """As at the end: the stance is the whole process's."""
        self.on_validation_end(trainer, module)


def _devices(given: str) -> str | int | list[int]:
    if given == "auto":
        return given
    numbers = [int(part) for part in given.split(",")]
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
    content: Mapping[str, Any],
    config: TrainingFlags,
    monitor: str,
    mode: str,
    callbacks: Sequence[Callback] = (),
) -> pl.Trainer:
    """A Lightning trainer that logs to the run folder and can be killed and resumed at any moment.

    Args:
        run: where checkpoints and logs go; nothing is written before training starts.
        content: the run's resolved configuration, kept in every checkpoint.
        config: the flags.
        monitor: the validation metric that chooses the best checkpoint.
        mode: "max" or "min", which of two scores is better.
        callbacks: of whoever adds some.

    Raises:
        InputError: a flag that Lightning refuses, with its reason.
    """
    quiet_lightning()
    devices = _devices(config.devices)
    budget = [Budget(config.budget_min, config.cool_down)] if config.budget_min else []
    averages = [AverageWeights(config.ema)] if config.ema else []
    own: list[Callback] = [
        SeedEachBatch(config.seed),
        AverageBuffers(),
        StretchSchedule(),
        *budget,
        *averages,
        StopAtFaults(run, monitor),
        RunLoggers(run, config.logger, content),
        RunCheckpoints(run, monitor, mode, config.checkpoint_every_n_steps, *averages),
        progress_callback(config.progress, monitor),
    ]
    if config.compile:
        own.append(ValidateUncompiled())
    if config.gradient_clip_val:
        own.append(ClipGradients(config.gradient_clip_val, config.gradient_clip_norm_type or 2.0))
    try:
        return pl.Trainer(
            max_epochs=-1 if budget else config.max_epochs or 1,
            precision=config.precision,
            accelerator=config.accelerator,
            devices=devices,
            num_nodes=config.num_nodes,
            strategy=_strategy(config.strategy, devices, config.num_nodes),
            accumulate_grad_batches=config.accumulate_grad_batches,
            check_val_every_n_epoch=config.check_val_every_n_epoch,
            logger=False,  # see RunLoggers
            plugins=[AtomicCheckpointIO(content), *_cluster_plugins()],
            callbacks=[*own, *callbacks],
            default_root_dir=run.path,
            # Our samplers know the processes; a second sampler on top would tear volumes apart.
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            enable_checkpointing=False,
            enable_progress_bar=any(isinstance(one, ProgressBar) for one in own),
            enable_model_summary=False,
            log_every_n_steps=10,
        )
    except (ValueError, TypeError, RuntimeError, ImportError, MisconfigurationException) as error:
        given = ", ".join(
            f"--{name} {getattr(config, name)}"
            for name in ("accelerator", "devices", "num_nodes", "strategy", "precision")
        )
        raise InputError(f"Lightning refuses {given}: {reason(error)}") from None


def _cluster_plugins() -> list[SLURMEnvironment]:
    """Under SLURM, Lightning's place in it without Lightning's own requeueing: the job sees to that."""
    return [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []


def quiet_lightning() -> None:
    """Keep Lightning's advertisements and notes on its own defaults off the terminal."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    warnings.filterwarnings("ignore", module="lightning_utilities")
    warnings.filterwarnings("ignore", module="lightning_fabric")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")


def compile_networks(module: nn.Module) -> None:
    """Compile, in place and without renaming weights, every child that has parameters."""
    for child in module.children():
        if any(True for _ in child.parameters()):
            child.compile()
