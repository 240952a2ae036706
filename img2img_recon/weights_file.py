"""Weights in safetensors files, which say what network they are of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from img2img_recon.support.errors import InputError
from img2img_recon.support.files import atomic_path

KEY = "img2img_recon"


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
