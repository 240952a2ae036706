"""Asking a running training to save and stop; used by jobs of a cluster, which imports no Lightning for it."""

from __future__ import annotations

from typing import Any


class RunStopped(Exception):  # noqa: N818 - not an error: the run gives way and will go on later
    """The run was asked to stop (see `StopRequest`), has saved its state and can be resumed."""


class StopRequest:
    """Lets a signal handler ask the running training to save and stop at its next safe place.

    Attributes:
        expected: whether somebody may ask; several processes then agree after every step.
        made: whether somebody has asked this process.
        handlers: of the signals by which it is asked; Lightning puts its own in their place when training
            starts, of which the one for SIGTERM lets processes wait for each other for ever.
    """

    def __init__(self) -> None:
        self.expected = False
        self.made = False
        self.handlers: dict[int, Any] = {}

    def agreed(self, trainer: Any) -> bool:
        """Whether any process of the Lightning trainer has been asked; all processes get the same answer."""
        if not self.expected or trainer.world_size == 1:
            return self.made
        return trainer.strategy.reduce_boolean_decision(self.made, all=False)


STOP_REQUEST = StopRequest()
