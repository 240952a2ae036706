"""What every queue has in common: where jobs go, what is known of them, what they run.

Every queue takes the jobs of one shape and says which run became which job; nothing there knows what a
run is about.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Literal, NamedTuple

Cluster = Literal["slurm", "local", "debug"]


class JobState(NamedTuple):
    """What a queue knows of a job.

    Attributes:
        state: pending, running, or gone (ended, cancelled, lost).
        detail: the queue's own words.
    """

    state: Literal["pending", "running", "gone"]
    detail: str


def job_command(logs: Path) -> str:
    """The shell command of every process of a job; submitit puts srun in front of it."""
    return f"{shlex.quote(sys.executable)} -u -m cluster.entry {shlex.quote(str(logs))}"
