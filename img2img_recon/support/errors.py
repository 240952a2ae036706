"""Exceptions that a script answers with one line: what was given cannot be used, a training went wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """What the user gave (a flag, a file, a folder) cannot be used.

    The message is one line that names the flag or file, what was given and what is allowed. Libraries
    raise it; scripts print it and exit with status 2 (`img2img_recon.support.cli.run_script`).
    """


class TrainingError(RuntimeError):
    """A training's numbers are no longer finite; scripts print the message and exit with status 1."""


@contextmanager
def named(place: str) -> Iterator[None]:
    """Say in the message of an `InputError` of this block which flag or file it is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{place}: {error}") from None


def reason(error: BaseException) -> str:
    """An exception of a library in one short line."""
    text = " ".join(str(error).split())[:200]
    return text or type(error).__name__
