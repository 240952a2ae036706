"""Flags that every training script has: the network's size, the optimiser, Lightning's settings."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from img2img_recon.support.cli import flag
from img2img_recon.support.errors import InputError
from img2img_recon.training.trainer import TrainerOptions

FlagsT = TypeVar("FlagsT", bound="TrainingFlags")

OPTION_FLAGS = (
    "img_size",
    "patch_size",
    "embed_dim",
    "depth",
    "mlp_ratio",
    "num_heads",
    "tokens_mlp_dim",
    "channels_mlp_dim",
    "chans",
    "num_pool_layers",
    "drop_prob",
)

# What may change between a run and its continuation.
NOT_IDENTITY = ("accelerator", "checkpoint_every_n_steps", "num_workers", "progress", "run_dir")


@dataclass(frozen=True, kw_only=True)
class TrainingFlags:
    """What the tasks' configurations have in common; None means "what the recipe says"."""

    model: str = flag("img2img_mixer", help="network; an unknown name lists them all")
    run_dir: Path | None = flag(
        None, help="the run's folder; default: runs/, named by what is trained"
    )
    batch_size: int | None = flag(None, help="samples per batch")
    num_workers: int | None = flag(None, help="loader processes")
    seed: int = flag(42, help="seeds weights, order and whatever is drawn")
    img_size: tuple[int, ...] | None = flag(
        None,
        help="the network's grid, one number or H W; default: the data's most common image size",
    )
    patch_size: int | None = flag(None, help="side of a patch")
    embed_dim: int | None = flag(None, help="channels")
    depth: int | None = flag(None, help="layers")
    mlp_ratio: int | None = flag(None, help="hidden width of an MLP over its input")
    num_heads: int | None = flag(None, help="attention heads (vit)")
    tokens_mlp_dim: int | None = flag(None, help="hidden width of the token MLPs (original_mixer)")
    channels_mlp_dim: int | None = flag(
        None, help="hidden width of the channel MLPs (original_mixer)"
    )
    chans: int | None = flag(None, help="first level's channels (U-Nets, varnet, dncnn)")
    num_pool_layers: int | None = flag(None, help="pooling levels (U-Nets)")
    drop_prob: float | None = flag(None, help="dropout (U-Nets)")
    max_epochs: int | None = flag(None, help="epochs")
    lr: float | None = flag(None, help="highest learning rate")
    gradient_clip_val: float | None = flag(None, help="clip the gradient to this norm; 0 for none")
    gradient_clip_norm_type: float | None = flag(None, help="1 clips the L1 norm, 2 the L2 norm")
    accumulate_grad_batches: int = flag(1, help="batches per optimiser step")
    precision: str = flag(
        "32-true", help="Lightning's precision: 32-true, bf16-mixed, 16-mixed ..."
    )
    compile: bool = flag(False, help="compile the network")
    accelerator: str = flag("auto", help="Lightning's accelerator: auto, cpu, gpu")
    devices: str = flag("auto", help="Lightning's devices: auto, a number, or indices as 0,1")
    num_nodes: int = flag(1, help="machines")
    strategy: str = flag("auto", help="Lightning's strategy: auto, ddp, fsdp ...")
    check_val_every_n_epoch: int = flag(1, help="epochs between validations")
    checkpoint_every_n_steps: int = flag(
        1000, help="optimiser steps between checkpoints within an epoch; 0 for none"
    )
    progress: bool = flag(True, help="progress bars")

    def __post_init__(self) -> None:
        for name in (
            "batch_size",
            "max_epochs",
            "accumulate_grad_batches",
            "num_nodes",
            "check_val_every_n_epoch",
        ):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise InputError(f"--{name}: given {number}, allowed: 1 or more")
        for name in ("num_workers", "checkpoint_every_n_steps", "gradient_clip_val", "seed"):
            number = getattr(self, name)
            if number is not None and number < 0:
                raise InputError(f"--{name}: given {number}, allowed: 0 or more")
        if self.lr is not None and not self.lr > 0:
            raise InputError(f"--lr: given {self.lr:g}, allowed: above 0")
        if self.img_size is not None and (
            len(self.img_size) > 2 or any(side < 1 for side in self.img_size)
        ):
            given = " ".join(map(str, self.img_size))
            raise InputError(f"--img_size: given {given}, allowed: one or two numbers of 1 or more")

    @classmethod
    def option_flags(cls) -> tuple[str, ...]:
        """Names of the flags that are a network's constructor arguments."""
        return OPTION_FLAGS

    def given_options(self) -> dict[str, Any]:
        """The network's options that were given as flags."""
        options = {name: getattr(self, name) for name in self.option_flags()}
        return {
            name: value[0] if isinstance(value, tuple) and len(value) == 1 else value
            for name, value in options.items()
            if value is not None
        }

    def filled(self: FlagsT, recipe: Mapping[str, Any], leave_out: Collection[str] = ()) -> FlagsT:
        """This configuration with the recipe's value for every flag that was not given.

        Raises:
            InputError: values that do not go together.
        """
        config = replace(
            self,
            **{
                key: value
                for key, value in recipe.items()
                if getattr(self, key) is None and key not in leave_out
            },
        )
        if config.max_epochs is not None and config.check_val_every_n_epoch > config.max_epochs:
            raise InputError(
                f"--check_val_every_n_epoch: given {config.check_val_every_n_epoch}, "
                f"allowed: 1 to {config.max_epochs}, the number of epochs"
            )
        return config

    def trainer_options(self, monitor: str, monitor_mode: str) -> TrainerOptions:
        """What Lightning's trainer is made with."""
        return TrainerOptions(
            max_epochs=self.max_epochs or 1,
            precision=self.precision,
            accelerator=self.accelerator,
            devices=self.devices,
            num_nodes=self.num_nodes,
            strategy=self.strategy,
            accumulate_grad_batches=self.accumulate_grad_batches,
            gradient_clip_val=self.gradient_clip_val or 0.0,
            gradient_clip_norm_type=self.gradient_clip_norm_type or 2.0,
            checkpoint_every_n_steps=self.checkpoint_every_n_steps,
            check_val_every_n_epoch=self.check_val_every_n_epoch,
            seed=self.seed,
            monitor=monitor,
            monitor_mode=monitor_mode,
            progress=self.progress,
        )
