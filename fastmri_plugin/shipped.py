"""MRI networks by name, run folder or file: those that come with the package, and how new ones are made part of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fastmri_plugin import Challenge
from fastmri_plugin.framework import MriModule
from fastmri_plugin.module import build_module, build_network
from img2img_recon.networks.base import Described
from img2img_recon.support.errors import InputError
from img2img_recon.trained import find_checkpoint, load_weights, read_run
from img2img_recon.weights_file import read_weights, write_weights

WEIGHTS = Path(__file__).parent / "weights"
SUFFIX = ".safetensors"


def shipped() -> dict[str, Path]:
    """The networks that come with the package, by name."""
    return {path.stem: path for path in sorted(WEIGHTS.glob(f"*{SUFFIX}"))}


def find_network(word: str | Path) -> Path:
    """The file or folder of a network's name, or the path itself.

    Raises:
        InputError: neither.
    """
    path = shipped().get(str(word), Path(word))
    if not path.exists():
        names = ", ".join([*shipped(), "run folders", f"checkpoint and {SUFFIX} files"])
        raise InputError(f"{word}: no such checkpoint, run or network; there are {names}")
    return path


def open_module(source: Path) -> tuple[dict[str, Any], MriModule]:
    """What `find_network` has found, as its Lightning module.

    Returns:
        Task, model, options, challenge (of a run its whole configuration), and the module in evaluation mode.

    Raises:
        InputError: not of MRI, or weights of another network.
    """
    path = find_checkpoint(source)
    if path.suffix == SUFFIX:
        config, state = read_weights(path)
        checkpoint = {"state_dict": state}
        if config["task"] != "mri":
            raise InputError(f"{path}: a network for {config['task']}, not for mri")
    else:
        config, checkpoint, _ = read_run(path, ("mri",), "fastmri_plugin/train.py")
    # Nobody trains it, so that any rate will do.
    module = build_module(config["model"], config["options"], 1.0, "epoch")
    load_weights(_network(module) if path.suffix == SUFFIX else module, checkpoint, path)
    return config, module.eval()


def _network(module: nn.Module) -> nn.Module:
    (network,) = (child for child in module.children() if any(True for _ in child.parameters()))
    return network


def load(word: str | Path) -> nn.Module:
    """The network of a name that comes with the package, a run folder, a checkpoint or a `.safetensors` file.

    An unrolled mixer maps k-space (B, coils, H, W) and the measured columns (B, 1, 1, W) to magnitudes
    (B, H, W); an image-to-image network maps zero-filled magnitudes (B, 1, H, W) to magnitudes.

    Raises:
        InputError: none of these, or not of MRI.
    """
    description, module = open_module(find_network(word))
    network = _network(module)
    if isinstance(network, Described):
        network.description = description
    return network


def package(
    path: Path,
    state: Mapping[str, Tensor],
    options: Mapping[str, Any],
    challenge: Challenge,
    *,
    half: bool = False,
    **extra: Any,
) -> None:
    """Write a trained unrolled mixer's weights as the package ships them.

    Args:
        path: the `.safetensors` file; its name is the network's.
        state: the network's `state_dict`. For single-coil data weights of sensitivity maps are left out.
        options: of the network's constructor.
        challenge: single- or multi-coil.
        half: store half-precision numbers.
        **extra: what else the file should say of itself, JSON-serialisable.

    Raises:
        InputError: weights that are not of this network, or a file that cannot be written.
    """
    options = dict(options)
    if challenge == "singlecoil":
        options["sens"] = "none"
        state = {name: value for name, value in state.items() if not name.startswith("sens_net.")}
    load_weights(build_network("unrolled_mixer", options), {"state_dict": state}, path)
    stored = {name: value.half() for name, value in state.items()} if half else state
    description = {"task": "mri", "model": "unrolled_mixer", "options": options}
    description["challenge"] = challenge
    write_weights(path, stored, {**description, "name": path.stem, **extra})
