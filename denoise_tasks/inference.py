"""From a trained run or a checkpoint to a network that denoises images of any size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from denoise_tasks.module import DenoisingModule
from img2img_recon.training.checkpoints import load_weights, read_run

TASKS = ("gaussian", "sidd")


@dataclass(frozen=True)
class Denoiser:
    """A trained network with what it was trained for.

    Attributes:
        module: maps (B, C, H, W) in [0, 1] of any size to the denoised image, not clipped; in
            evaluation mode, on the CPU.
        model: its name in the zoo.
        task: `gaussian` or `sidd`.
        sigma: the noise it was trained for, in [0, 255] units; None for real noise.
        in_chans: 1 for grey, 3 for colour.
        config: the run's configuration.
    """

    module: nn.Module
    model: str
    task: str
    sigma: float | None
    in_chans: int
    config: dict[str, Any]


def build_module(config: dict[str, Any]) -> DenoisingModule:
    """The Lightning module that a stored configuration describes."""
    return DenoisingModule(
        config["model"],
        config["model_options"],
        residual=config["residual"],
        clamp=config["protocol"] == "paper",
        sigma=config["sigma"],
        protocol=config["protocol"],
        lr=config["lr"],
        halve_at_epoch=config["halve_at_epoch"] or None,
    )


def load_denoiser(source: Path) -> Denoiser:
    """Load a run folder or a checkpoint file of denoise_tasks.

    Raises:
        InputError: no checkpoint, one of another task, or weights of another network.
    """
    config, checkpoint, path = read_run(source, TASKS, "denoise_tasks/train.py")
    module = build_module(config)
    load_weights(module, checkpoint, path)
    return Denoiser(
        module.network.eval(),
        config["model"],
        config["task"],
        config["sigma"],
        config["model_options"]["in_chans"],
        config,
    )
