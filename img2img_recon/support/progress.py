"""Progress over long loops: a library takes a `Track`, a script passes `bar`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from typing import Protocol, TypeVar

T = TypeVar("T")

LINES = 4


class Track(Protocol):
    """Wraps an iterable of `total` items and shows, or does not show, how far it has come."""

    def __call__(self, items: Iterable[T], description: str, total: int) -> Iterable[T]:
        """The same items; called once per loop."""
        ...


def silent(items: Iterable[T], description: str, total: int) -> Iterable[T]:
    """Show nothing."""
    return items


def bar(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """A progress bar on the standard error, with the time left; into a file or without rich, at most `LINES` lines."""
    if sys.stderr.isatty() and find_spec("rich"):
        from rich.console import Console
        from rich.progress import track

        console = Console(stderr=True)
        yield from track(items, description, total=total, console=console)
        return
    step = -(-total // LINES)
    for done, item in enumerate(items, start=1):
        yield item
        if done == total or done % step == 0:
            print(f"{description}: {done}/{total}", file=sys.stderr, flush=True)
