"""Where a training begins: the trained network that `--init` names, its options and its weights."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from img2img_recon.support.errors import InputError, named
from img2img_recon.trained import find_network, load_weights, read_network, shipped
from img2img_recon.training.options import TrainingFlags

FlagsT = TypeVar("FlagsT", bound=TrainingFlags)


def find_beginning(init: str) -> tuple[str, Path]:
    """What a run stores of `--init`, NAME@HASH with ten digits of the file's SHA-256, and the file.

    Args:
        init: what was given, a name, run folder or file, or what a run has stored.

    Raises:
        InputError: no such network, or a file that is no longer what the hash says.
    """
    stored = re.fullmatch(r"(.+)@([0-9a-f]{10})", init)
    name, known = stored.groups() if stored else (init, None)
    path = find_network(name)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:10]
    if known not in (None, digest):
        raise InputError(f"{name} has changed: its hash is {digest}, it was {known}")
    return f"{name if name in shipped() else Path(name).resolve()}@{digest}", path


def with_beginning(given: FlagsT, tasks: Collection[str]) -> tuple[FlagsT, Mapping[str, Any]]:
    """Flags with the model of `--init` and its options where none are given, and what its file says of itself.

    Args:
        given: the flags, with `init`.
        tasks: that the network may be of.

    Raises:
        InputError: no such network, one of another task, or another `--model`.
    """
    assert given.init is not None
    with named("--init"):
        init, path = find_beginning(given.init)
        description, _ = read_network(path)
        if description.get("task") not in tasks:
            raise InputError(
                f"{path}: a network of the task {description.get('task')}; allowed: {', '.join(tasks)}"
            )
    model = description["model"]
    usual = next(item.default for item in fields(given) if item.name == "model")
    if given.model not in (usual, model):
        raise InputError(f"--model: given {given.model}, but --init {given.init} is a {model}")
    options = {**description["options"], **given.options}
    return replace(given, init=init, model=model, options=options), description


def begin(module: nn.Module, init: str | None) -> None:
    """Copy the weights of `--init` into the network of a Lightning module.

    Raises:
        InputError: weights of a network of other options.
    """
    if init is None:
        return
    with named("--init"):
        _, path = find_beginning(init)
        ((name, network),) = (
            (name, child)
            for name, child in module.named_children()
            if any(True for _ in child.parameters())
        )
        _, state = read_network(path, name)
        load_weights(network, {"state_dict": state}, path)
