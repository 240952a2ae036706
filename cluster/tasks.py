"""The tasks a sweep can train: where each one's configuration and training function are.

The task packages are imported when asked for: a cluster of MRI runs needs no denoising package, and
reading a sweep's results needs neither.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_type_hints

from img2img_recon.support.errors import InputError

PACKAGES = {
    "mri": "fastmri_plugin",
    "gaussian": "denoise_tasks",
    "sidd": "denoise_tasks",
}
# What the cluster sets itself, per run.
OWN_FLAGS = ("mode", "run_dir", "out_dir", "progress", "num_nodes")


def package_of(task: str) -> str:
    """The package that trains `task`.

    Raises:
        InputError: no such task.
    """
    if task not in PACKAGES:
        raise InputError(f"task: given {task}, allowed: {', '.join(PACKAGES)}")
    return PACKAGES[task]


@functools.cache
def config_class(task: str) -> type[Any]:
    """The dataclass of a task's training flags."""
    return importlib.import_module(f"{package_of(task)}.config").TrainConfig


def training_of(task: str) -> Callable[[Any], dict[str, Any]]:
    """The function that trains a configuration, here as on a laptop."""
    return importlib.import_module(f"{package_of(task)}.train").train


@functools.cache
def not_identity(task: str) -> frozenset[str]:
    """Flags that may change between a run and its continuation."""
    module = importlib.import_module(f"{package_of(task)}.config")
    return frozenset(getattr(module, "NOT_IDENTITY", ()))


@functools.cache
def flag_names(task: str) -> frozenset[str]:
    """Flags that a sweep file may set."""
    own = {*OWN_FLAGS, "task"}
    return frozenset(item.name for item in fields(config_class(task)) if item.name not in own)


@functools.cache
def _parser(task: str) -> Any:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    for name, hint in get_type_hints(config_class(task)).items():
        parser.add_argument(f"--{name}", type=hint)
    return parser


def typed(task: str, name: str, value: Any) -> Any:
    """A flag's value as the configuration wants it; a single value stands for a list of one.

    Raises:
        InputError: a value of another type, with what is allowed.
    """
    from jsonargparse import ArgumentError

    hint = get_type_hints(config_class(task))[name]
    if "tuple[" in str(hint) and value is not None and not isinstance(value, list):
        value = [value]
    try:
        parsed = getattr(_parser(task).parse_object({name: value}, defaults=False), name)
    except (ArgumentError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()).split(" :: ")[-1]
        raise InputError(f"given {value!r}; {reason[:200]}") from None
    return tuple(parsed) if isinstance(parsed, list) else parsed


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Flags as JSON can hold them: paths as text, tuples as lists."""
    return {
        key: str(value)
        if isinstance(value, Path)
        else list(value)
        if isinstance(value, tuple)
        else value
        for key, value in values.items()
    }


def build_config(task: str, values: Mapping[str, Any]) -> Any:
    """The training configuration from flags (as `typed` or `plain` give them).

    Raises:
        InputError: what the configuration's own checks say.
    """
    cls = config_class(task)
    hints = get_type_hints(cls)
    given: dict[str, Any] = {}
    for item in fields(cls):
        if item.name == "task":
            given["task"] = task
        if item.name not in values:
            if item.default is MISSING and item.name not in given:
                raise InputError(f"{item.name}: missing, every run of the task {task} needs it")
            continue
        value = values[item.name]
        if isinstance(value, str) and "Path" in str(hints[item.name]):
            value = Path(value)
        given[item.name] = tuple(value) if isinstance(value, list) else value
    return cls(**given)
