"""The tasks that a sweep can train, by the word that sweep files have for them, and their flags.

Their packages are imported when asked for: a cluster of MRI runs needs no denoising package, and reading a
sweep's results needs neither.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from cluster.document import Document, Number, Place, as_numbers, unknown
from img2img_recon.support.cli import Flag, typed
from img2img_recon.support.errors import InputError
from img2img_recon.training.options import NOT_IDENTITY
from img2img_recon.training.run_folder import config_hash
from img2img_recon.training.task import Task

TASKS = {
    "mri": "fastmri_plugin.task:TASK",
    "gaussian": "denoise_tasks.task:TASKS",
    "pairs": "denoise_tasks.task:TASKS",
}
# What the cluster sets itself, per run, and what is no training.
OWN_FLAGS = ("mode", "num_nodes", "out", "progress", "run", "task")
Complaint = Callable[[str], InputError]


@cache
def task_of(word: str) -> Task[Any, Any]:
    """The task; where its module has several, the one of this name.

    Raises:
        InputError: no such task.
    """
    if word not in TASKS:
        raise InputError(f"task: given {word}, allowed: {', '.join(TASKS)}")
    module, _, name = TASKS[word].partition(":")
    found = getattr(importlib.import_module(module), name)
    return found[word] if isinstance(found, Mapping) else found


class FlagReader:
    """Reads values of files as flags; each distinct one once, for thousands of runs.

    Attributes:
        flags: that may be set, by every spelling.
    """

    def __init__(self, flags: Iterable[Flag]) -> None:
        self.flags = {key: item for item in flags for key in (item.name, *item.aliases)}
        self._read: dict[str, Any] = {}

    def read(self, key: str, value: Any, error: Complaint) -> tuple[str, Any]:
        """The flag's name and its value; `error` makes the error from what is wrong.

        Raises:
            InputError: no such flag, or a value that it does not take.
        """
        if key not in self.flags:
            raise error(unknown(key, self.flags))
        flag = self.flags[key]
        seen = f"{flag.name} {value!r} {type(value)}"
        if seen not in self._read:
            try:
                self._read[seen] = absolute(_typed(flag, value))
            except InputError as refusal:
                raise error(str(refusal).removeprefix(f"--{flag.name}: ")) from None
        return flag.name, self._read[seen]

    def read_all(
        self, given: Mapping[str, Any], document: Document, place: Place
    ) -> dict[str, Any]:
        """The values of a mapping of a file, at `place`, by the flags' names; errors as `read`."""
        return dict(
            self.read(key, value, partial(document.error, (*place, key)))
            for key, value in given.items()
        )


def _typed(flag: Flag, value: Any) -> Any:
    """A value as the flag has it; a number is what was written where only text will do."""
    try:
        return typed(flag, as_numbers(value))
    except InputError:
        if isinstance(value, (list, Number)):
            return typed(flag, value if isinstance(value, list) else str(value))
        raise


def absolute(value: Any) -> Any:
    """A flag's value with paths from the root: jobs run in another working directory."""
    if isinstance(value, tuple):
        return tuple(map(absolute, value))
    return value.expanduser().absolute() if isinstance(value, Path) else value


def as_json(value: Any) -> Any:
    """A flag's value as JSON holds it; links in paths stay, which may lead elsewhere on another machine."""
    if isinstance(value, tuple):
        return [as_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value


class TaskFlags(FlagReader):
    """The flags of a task that a sweep may set, and what its runs are with them.

    Attributes:
        task: whose flags.
        every: all flags of the task by name.
        own: those that the cluster sets for every run.
    """

    def __init__(self, word: str) -> None:
        self.task = task_of(word)
        self.every = self.task.flags()
        super().__init__(item for name, item in self.every.items() if name not in OWN_FLAGS)
        self.own = {key: v for key, v in (("task", word), ("progress", False)) if key in self.every}

    def resolve(self, values: Mapping[str, Any], lacking: Sequence[str] = ()) -> Any:
        """The task's configuration from typed values, with every default settled.

        Args:
            values: by flag.
            lacking: flags that are to come; for a folder among them some name stands in, so that the
                defaults are those for a folder that is given.

        Raises:
            InputError: a flag that is missing, or flags that the task refuses.
        """
        assumed = {key: Path("/", key) for key in lacking if "Path" in str(self.every[key].type)}
        given: dict[str, Any] = {**assumed, **values}
        for name, item in self.every.items():
            if item.required and name not in given:
                raise InputError(f"--{name}: missing; give {item.allowed}")
        options = {key: given.pop(key) for key in list(given) if self.every[key].option}
        options = {key: value for key, value in options.items() if value is not None}
        return self.task.resolve(self.task.config_class(**given, options=options))

    def run_id(self, config: Mapping[str, Any]) -> str:
        """Ten hexadecimal digits: the task and its flags, whatever their order; defaults do not count.

        Args:
            config: flags as JSON holds them.
        """
        passing = (*NOT_IDENTITY, *self.task.not_identity)
        content = {
            key: value
            for key, value in config.items()
            if key not in passing and value != as_json(self.every[key].default)
        }
        return config_hash({"task": self.task.name, "flags": content})
