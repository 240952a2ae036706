"""The one exception that means "what you gave cannot be used"."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """What the user gave (a flag, a file, a folder) cannot be used.

    The message is one line that names the flag or file, what was given and what is allowed. Libraries
    raise it; scripts print it and exit with status 2 (`img2img_recon.support.cli.run_script`).
    """


@contextmanager
def named(place: str) -> Iterator[None]:
    """Say in the message of an `InputError` of this block which flag or file it is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{place}: {error}") from None
