"""What takes jobs: the `Queue` protocol and the table of those there are.

A new engine is one file here with a class that has these methods, and one row of `QUEUES`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn, Protocol

if TYPE_CHECKING:
    from typing import TypeAlias

    from cluster.job import TrainingJob
    from cluster.resources import Resources
    from cluster.sweep_folder import Submission, SweepFolder

    # By resources, the runs that ask for them.
    Groups: TypeAlias = Sequence[tuple[Resources, list[str]]]

# By the word for `--cluster`; the first is the default.
QUEUES = {
    "slurm": "cluster.queues.slurm:SlurmQueue",
    "local": "cluster.queues.local:LocalQueue",
    "debug": "cluster.queues.local:InProcessQueue",
}
DEFAULT_QUEUE = next(iter(QUEUES))

if TYPE_CHECKING:
    QueueWord: TypeAlias = str
else:
    QueueWord = Literal[tuple(QUEUES)]

# Takes the id of a run and what happens to it.
Told = Callable[[str, str], None]


class JobState(NamedTuple):
    """What a queue knows of a job.

    Attributes:
        state: pending, running, or gone (ended, cancelled, lost).
        detail: the queue's own words.
        job_id: as the job calls itself in the run's record; None where that says nothing.
    """

    state: Literal["pending", "running", "gone"]
    detail: str
    job_id: str | None = None


class QueuedJob(NamedTuple):
    """A job and what it asks for."""

    job: TrainingJob
    resources: Resources


class Queue(Protocol):
    """Takes the jobs of runs, knows what has become of them, takes them back.

    Whatever cannot be done raises `InputError` with the reason.

    Attributes:
        word: for `--cluster`.
        requeues: whether a job of it can be put back.
    """

    @property
    def word(self) -> str: ...  # noqa: D102

    @property
    def requeues(self) -> bool: ...  # noqa: D102

    def check(self, resources: Sequence[Resources]) -> None:
        """See that jobs with these resources can be handed in from here."""

    def preview(self, name: str, groups: Groups, folder: SweepFolder) -> str:
        """What `hand_in` would do with these runs of the sweep `name`; nothing is done."""

    def hand_in(
        self, folder: SweepFolder, name: str, jobs: Mapping[str, QueuedJob]
    ) -> Callable[[Told], None]:
        """Take the jobs and note the submission, under the folder's lock; what is left to do after it."""

    def states(self, latest: Mapping[str, Submission]) -> dict[str, JobState]:
        """By run, what is known of its job of this submission."""

    def cancel(self, latest: Mapping[str, Submission]) -> None:
        """Take the jobs of these runs out of the queue, the running ones included."""

    # The rest is asked from inside of a job.

    def rank(self) -> int:
        """The number of this process among those of its job."""

    def job_id(self) -> str:
        """The job."""

    def attempt(self) -> str:
        """Tells the starts of one job apart."""

    def give_way(self, warned: bool, former: Any) -> NoReturn:
        """Leave, with everything saved, and go on later.

        Args:
            warned: by the cluster's warning; otherwise by SIGTERM alone.
            former: the handler that the queue itself had for its warning.
        """

    def requeue(self) -> NoReturn:
        """Leave after a failure, and try again later."""


def make_queue(word: str, parallel: int | None = None) -> Queue:
    """The queue of this name, with so many runs at a time instead of what the resources say."""
    module, _, name = QUEUES[word].partition(":")
    return getattr(importlib.import_module(module), name)(word, parallel)
