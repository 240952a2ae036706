"""Defaults as `--help` names them: what a task settles where a flag is not given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from img2img_recon.support.values import shown
from img2img_recon.training.task import Task

Case = tuple[str, Task[Any, Any], Mapping[str, Any]]


def default_words(cases: Sequence[Case]) -> dict[str, str]:
    """Words for the defaults of all flags whose own default is None: "40 (built-in data: 20)".

    Args:
        cases: how help names the case, the task, and what is given (the required flags, say). The first
            is the usual one; of the others, only what differs from it is named. Flags that are given in
            any case are left out.
    """
    settled = [(name, task, task.resolve(task.config(given))) for name, task, given in cases]
    _, first, usual = settled[0]
    words: dict[str, str] = {}
    left_out = {name for _, _, given in cases for name in given}
    for flag in first.flags().values():
        if flag.default is None and flag.name not in left_out:
            value = _value(usual, flag.name)
            others = [(name, _value(config, flag.name)) for name, _, config in settled[1:]]
            differing = [f"{name}: {other}" for name, other in others if other != value]
            if value != "none" or differing:
                words[flag.name] = value + (f" ({', '.join(differing)})" if differing else "")
    return words


def _value(config: Any, name: str) -> str:
    value = config.options.get(name, getattr(config, name, None))
    return "none" if value is None or value == () else shown(value)
