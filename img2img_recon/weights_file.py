"""Weights in files: safetensors that say what network they are of, and the checkpoints of other programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from img2img_recon.support.errors import InputError, reason
from img2img_recon.support.files import atomic_path

KEY = "img2img_recon"
CHECKPOINT_SUFFIXES = (".npz", ".pt", ".pth", ".ckpt", ".safetensors")
# Where training programs put the weights inside of a checkpoint.
WRAPPED_UNDER = ("state_dict", "model_state_dict", "model", "state")


def write_weights(path: Path, state: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write a network's `state_dict` and what it is of, atomically.

    Args:
        path: the file, `.safetensors`.
        state: the network's.
        description: JSON-serialisable: task, model, options and whatever else a reader should know.

    Raises:
        InputError: the file cannot be written.
    """
    from safetensors.torch import save

    plain = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(
            save(plain, {KEY: json.dumps(description, sort_keys=True), "format": "pt"})
        )


def read_weights(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and `state_dict` of a file of `write_weights`.

    Raises:
        InputError: no such file, not a safetensors file, or one that does not say what it is of.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            description = json.loads((file.metadata() or {}).get(KEY, "{}"))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        reason = (
            "no such file" if isinstance(error, FileNotFoundError) else "not a safetensors file"
        )
        raise InputError(f"{path}: {reason}") from None
    if not isinstance(description, dict) or not {"task", "model", "options"} <= description.keys():
        raise InputError(f"{path}: its metadata do not say what network the weights are of ({KEY})")
    return description, state


def under(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """What of a state begins with a prefix, without it."""
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }


def foreign_weights(checkpoint: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of another program's checkpoint, a file or its contents, wherever they lie in it.

    Raises:
        InputError: no such file, no checkpoint, or something else than tensors in it.
    """
    contents = _read(Path(checkpoint)) if isinstance(checkpoint, (str, Path)) else checkpoint
    for key in WRAPPED_UNDER:
        if isinstance(contents.get(key), Mapping):
            return foreign_weights(contents[key])
    # A reference vector holds an input and an output beside the state.
    contents = under(contents, "state/") or contents
    state = {}
    for name, value in contents.items():
        if not hasattr(value, "__array__"):
            raise InputError(
                f"the checkpoint has {name!r} of type {type(value).__name__}, no tensor"
            )
        state[name] = torch.as_tensor(value)
    return state


def _read(path: Path) -> Mapping[str, Any]:
    """Read the contents of a checkpoint file."""
    if not path.is_file():
        raise InputError(f"the checkpoint {path} is no file")
    if path.suffix not in CHECKPOINT_SUFFIXES:
        raise InputError(
            f"the checkpoint {path} has none of the endings {', '.join(CHECKPOINT_SUFFIXES)}"
        )
    try:
        if path.suffix == ".npz":
            import numpy as np

            with np.load(path) as arrays:
                return dict(arrays)
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Each of the three libraries reports a foreign file in several ways.
        raise InputError(f"the checkpoint {path} cannot be read: {reason(error)}") from error
    if not isinstance(contents, Mapping):
        raise InputError(f"the checkpoint {path} holds a {type(contents).__name__}, no state")
    return contents
