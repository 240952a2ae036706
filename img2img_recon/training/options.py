"""Flags that every training script has: the network's size, the optimiser, Lightning's settings."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from img2img_recon.support.cli import flag, network_options
from img2img_recon.support.errors import InputError
from img2img_recon.support.types import (
    Devices,
    NonNegativeFloat,
    NonNegativeInt,
    OpenUnitInterval,
    PositiveFloat,
    PositiveInt,
    Seed,
    Strategy,
)

FlagsT = TypeVar("FlagsT", bound="TrainingFlags")
Precision = Literal[
    "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true", "32", "bf16", "16", "64"
]
Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]

COOL_DOWN = 0.3  # of a budget, unless it is said
# What may change between a run and its continuation.
NOT_IDENTITY = (
    "accelerator",
    "assumed",
    "checkpoint_every_n_steps",
    "logger",
    "num_workers",
    "progress",
    "run",
)


@dataclass(frozen=True, kw_only=True)
class TrainingFlags:
    """What the tasks' configurations have in common; None means "what the recipe says".

    Attributes:
        options: of the network (`--embed_dim 64` ...): as given, and after `Task.resolve` all of its
            constructor's arguments.
        assumed: options that `resolve` set by what the task's data usually are; the data themselves may
            say otherwise.
    """

    model: str = flag("img2img_mixer", help="network", group="network", basic=True)
    options: Mapping[str, Any] = network_options()
    init: str | None = flag(
        None,
        help="begin with the weights of a network of the package, a run or a .safetensors file",
        group="network",
        basic=True,
    )
    assumed: tuple[str, ...] = field(default=(), repr=False)
    run: Path | None = flag(
        None, help="the run's folder; default: runs/, named by what is trained", basic=True
    )
    batch_size: PositiveInt | None = flag(
        None, help="samples per batch", group="training", basic=True
    )
    num_workers: NonNegativeInt | None = flag(None, help="loader processes", group="training")
    seed: Seed = flag(
        42, help="seeds weights, order and whatever is drawn", group="training", basic=True
    )
    max_epochs: PositiveInt | None = flag(None, help="epochs", group="training", basic=True)
    lr: PositiveFloat | None = flag(
        None, help="highest learning rate", group="training", basic=True
    )
    optimizer: Literal["adam", "adamw", "muon"] = flag(
        "adam",
        help="muon: on the inner matrices, AdamW at a tenth of --lr on the rest",
        group="training",
    )
    budget_min: PositiveFloat | None = flag(
        None,
        help="train for so many minutes instead of epochs; the rate falls at their end",
        group="training",
    )
    cool_down: OpenUnitInterval = flag(
        COOL_DOWN, help="of --budget_min, the last part, in which the rate falls", group="training"
    )
    ema: OpenUnitInterval | None = flag(
        None,
        help="validate and keep an average of the weights with this decay, 0.999 say",
        group="training",
    )
    gradient_clip_val: NonNegativeFloat | None = flag(
        None, help="clip the gradient to this norm; 0 for none", group="training"
    )
    gradient_clip_norm_type: PositiveFloat | None = flag(
        None, help="1 clips the L1 norm, 2 the L2 norm", group="training"
    )
    accumulate_grad_batches: PositiveInt = flag(
        1, help="batches per optimiser step", group="training"
    )
    check_val_every_n_epoch: PositiveInt = flag(
        1, help="epochs between validations", group="training"
    )
    checkpoint_every_n_steps: NonNegativeInt = flag(
        1000, help="optimiser steps between checkpoints within an epoch; 0 for none"
    )
    precision: Precision = flag(
        "32-true", help="Lightning's precision", group="cluster", basic=True
    )
    compile: bool = flag(False, help="compile the network", group="cluster")
    accelerator: Accelerator = flag("auto", help="what to compute on", group="cluster", basic=True)
    devices: Devices = flag("auto", help="how many, or which", group="cluster", basic=True)
    num_nodes: PositiveInt = flag(1, help="machines", group="cluster")
    strategy: Strategy = flag("auto", help="Lightning's strategy", group="cluster")
    logger: tuple[Literal["tensorboard", "csv", "wandb", "mlflow"], ...] = flag(
        ("tensorboard", "csv"), help="where losses, scores and the configuration are logged"
    )
    progress: bool = flag(True, help="progress bars; without, one line per epoch", basic=True)

    def filled(self: FlagsT, recipe: Mapping[str, Any], leave_out: Collection[str] = ()) -> FlagsT:
        """This configuration with the recipe's value for every flag that was not given.

        Raises:
            InputError: values that do not go together.
        """
        missing = {
            key: value
            for key, value in recipe.items()
            if key not in leave_out and getattr(self, key) is None
        }
        config = replace(self, **missing)
        if config.max_epochs is not None and config.check_val_every_n_epoch > config.max_epochs:
            raise InputError(
                f"--check_val_every_n_epoch: given {config.check_val_every_n_epoch}, "
                f"allowed: 1 to {config.max_epochs}, the number of epochs"
            )
        return config
