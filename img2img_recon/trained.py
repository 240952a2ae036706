"""Trained networks: checkpoints read without running pickled code, and the networks in them; needs torch alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from img2img_recon.networks.zoo import build_model
from img2img_recon.support.errors import InputError
from img2img_recon.training.run_folder import RunFolder
from img2img_recon.wrappers import AnySize, Normalized, Residual


def pick_device(accelerator: str) -> torch.device:
    """The device that Lightning's accelerator of this name trains on, for inference.

    Raises:
        InputError: an accelerator that is not here, or that torch alone does not know.
    """
    found = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    gpu = next((name for name in ("mps", "cuda") if found[name]), None)
    wanted = {"auto": gpu or "cpu", "gpu": gpu}.get(accelerator, accelerator)
    if wanted is None or not found.get(wanted, False):
        here = [
            "auto",
            *(name for name, there in found.items() if there),
            *(["gpu"] if gpu else []),
        ]
        raise InputError(
            f"--accelerator: given {accelerator}, which this machine lacks; "
            f"allowed here: {', '.join(here)}"
        )
    return torch.device(wanted)


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
