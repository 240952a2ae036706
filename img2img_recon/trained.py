"""Trained networks: checkpoints read without running pickled code, and the networks in them; needs torch alone."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from img2img_recon.networks.base import Network
from img2img_recon.networks.zoo import MODELS, build_model, did_you_mean
from img2img_recon.support.errors import InputError, reason
from img2img_recon.training.run_folder import RunFolder
from img2img_recon.weights_file import read_weights, under
from img2img_recon.wrappers import AnySize, Normalized, Residual


def pick_device(accelerator: str) -> torch.device:
    """The device that Lightning's accelerator of this name trains on, for inference.

    Raises:
        InputError: an accelerator that is not here, or that torch alone does not know.
    """
    found = {"mps": torch.backends.mps.is_available(), "cuda": torch.cuda.is_available()}
    gpus = [name for name, there in found.items() if there]
    here = {"auto": [*gpus, "cpu"][0], "cpu": "cpu", **{name: name for name in gpus}}
    if gpus:
        here["gpu"] = gpus[0]
    if accelerator not in here:
        raise InputError(
            f"--accelerator: given {accelerator}, which this machine lacks; "
            f"allowed here: {', '.join(here)}"
        )
    return torch.device(here[accelerator])


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
        said = f"{type(error).__name__}: {reason(error)}"
        raise InputError(f"{path}: not a checkpoint that can be read safely ({said})") from None
    if not isinstance(content, dict) or "state_dict" not in content:
        raise InputError(f"{path}: a file of torch, but not a checkpoint (no 'state_dict' in it)")
    return content


def load_weights(module: nn.Module, checkpoint: Mapping[str, Any], source: Path) -> None:
    """Copy a checkpoint's weights into `module`.

    Raises:
        InputError: the checkpoint is of another network; the first misfit is named.
    """
    own, given = module.state_dict(), checkpoint["state_dict"]
    problems = [f"it lacks {key}" for key in sorted(own.keys() - given.keys())]
    surplus = sorted(given.keys() - own.keys())
    problems += [f"it holds {key}, which this network lacks" for key in surplus]
    problems += [
        f"{key} has shape {tuple(given[key].shape)}, expected {tuple(own[key].shape)}"
        for key in sorted(own.keys() & given.keys())
        if own[key].shape != given[key].shape
    ]
    if problems:
        raise InputError(f"{source}: checkpoint of another network ({problems[0]})")
    module.load_state_dict(given)


def find_checkpoint(source: Path) -> Path:
    """The file that is meant: of a run, or its folder of checkpoints, the best, else the last; else the hub's weights.

    Raises:
        InputError: nothing there.
    """
    if not source.is_dir():
        return source
    run = RunFolder(source.parent if source.name == RunFolder(source).checkpoints.name else source)
    for path in (run.best_checkpoint, run.last_checkpoint, source / HUB_WEIGHTS):
        if path.is_file():
            return path
    raise InputError(
        f"{source}: no checkpoint in this folder (looked for checkpoints/best.ckpt and {HUB_WEIGHTS})"
    )


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
"""What a task trains around a network, by the word that its runs and weights store under `wrapper`."""

HUB_WEIGHTS = "model.safetensors"  # in a folder of `hub.save_pretrained`
PREFIXES = ("denoise-", "mri-")  # of the names of networks that come with the packages
# Where networks of a task are opened that the zoo does not know; imported when one is.
OPENED_BY = {"mri": "fastmri_plugin.shipped"}


def shipped() -> dict[str, Path]:
    """The files of weights that come with the installed packages, by the networks' names."""
    found = (importlib.util.find_spec(package) for package in ("img2img_recon", "fastmri_plugin"))
    folders = [Path(spec.origin).parent / "weights" for spec in found if spec and spec.origin]
    return {
        path.stem: path
        for folder in folders
        for path in sorted(folder.glob("*.safetensors"))
        if path.stem.startswith(PREFIXES)
    }


def find_network(source: Path | str) -> Path:
    """The file of a network: of a name of `shipped`, a run folder, a checkpoint or a `.safetensors` file.

    Raises:
        InputError: none of these.
    """
    path = shipped().get(str(source), Path(source))
    if not path.exists():
        raise InputError(
            f"there is no network {str(source)!r}{did_you_mean(str(source), shipped())}; allowed: "
            f"{', '.join(shipped())}, a run folder, a checkpoint or a .safetensors file"
        )
    return find_checkpoint(path)


def read_network(path: Path, child: str = "network") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a file of `find_network` says of its network, and the network's weights.

    Args:
        path: the file.
        child: under which a training's module has the network.

    Raises:
        InputError: a broken file, or one of something else.
    """
    if path.suffix == ".safetensors":
        return read_weights(path)
    checkpoint = load_checkpoint(path)
    state = under(checkpoint["state_dict"], f"{child}.")
    return checkpoint.get("run_config") or {}, state


def load(source: Path | str, *, tasks: Collection[str] | None = None) -> nn.Module:
    """The trained network of any task, in evaluation mode on the CPU.

    A denoiser maps images (B, C, H, W) in [0, 1] of any size, and the level of their noise in the same units
    where it was trained for many, to images: `network(noisy, sigma)` with one sigma or one per image. A network
    trained for MRI magnitudes maps images (B, 1, H, W) in any units. `network.description` says what it is, and
    `network.save(path)` writes it.

    Args:
        source: a name of the networks that come with the package, as "denoise-color"; a run folder or a
            checkpoint; a `.safetensors` file of `save`, or a folder of `save_pretrained`.
        tasks: what it may have been trained for; None for anything.

    Raises:
        InputError: none of these, a broken file, or one of another task.
    """
    path = find_network(source)
    description, state = read_network(path)
    task = description.get("task")
    if tasks is not None and task not in tasks:
        raise InputError(f"{path}: a network of the task {task}; allowed: {', '.join(tasks)}")
    if description.get("model") not in MODELS and task in OPENED_BY:
        return importlib.import_module(OPENED_BY[task]).load(path)
    return network_of(description, state, path)


def network_of(
    description: Mapping[str, Any], state: Mapping[str, Tensor], path: Path
) -> nn.Module:
    """A network of the zoo, in its wrapper, with weights.

    Args:
        description: with `model`, `options` and, for a network in a wrapper, `wrapper`.
        state: the weights.
        path: where they are from.

    Raises:
        InputError: no network of the zoo, or weights of another one.
    """
    wrapper = description.get("wrapper")
    if description.get("model") not in MODELS or wrapper not in (None, *WRAPPERS):
        raise InputError(
            f"{path}: its network does not map images to images "
            f"(model: {description.get('model', 'unknown')})"
        )
    network = build_model(description["model"], **description["options"])
    if wrapper is not None:
        network = WRAPPERS[wrapper](network)
    load_weights(network, {"state_dict": state}, path)
    if isinstance(network, Network):
        network.description = description
    return network.eval()
