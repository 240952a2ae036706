"""The folder of a sweep: its runs, what happened to each, what was submitted.

SWEEP/sweep.json            whose folder it is, and the runs as last expanded
SWEEP/runs/<id>/            run folders
SWEEP/records/<id>.json     attempts and failures of a run, written by its jobs
SWEEP/submissions/*.json    which run became which job, one file per array, written by who submits
SWEEP/logs/                 what submitit and the jobs write
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from img2img_recon.support.errors import InputError
from img2img_recon.support.files import locked, writable_folder, write_json
from img2img_recon.training.run_folder import RunFolder

KEPT_ATTEMPTS = 20
SUBMITTING_S = 600


@dataclass
class Record:
    """What happened to a run.

    Attributes:
        attempts: the last ones: job, host, pid, start, end (seconds since 1970) and how it ended.
        starts: attempts in all.
        failures: how often by the place where it failed.
        counted: attempts whose failure is counted (several processes of one job may fail together).
        traceback: of the last failure.
        failed: given up; not submitted again unless asked to.
    """

    attempts: list[dict[str, Any]] = field(default_factory=list)
    starts: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    counted: list[str] = field(default_factory=list)
    traceback: str | None = None
    failed: bool = False

    def start(self, job_id: str, host: str, pid: int) -> None:
        """A job begins to work on the run."""
        self.starts += 1
        self.attempts.append(
            {"job_id": job_id, "host": host, "pid": pid, "started": time.time(), "end": None}
        )
        del self.attempts[:-KEPT_ATTEMPTS]

    def end(self, how: str) -> None:
        """The last attempt has ended."""
        if self.attempts and self.attempts[-1]["end"] is None:
            self.attempts[-1] |= {"end": how, "ended": time.time()}

    def add_failure(self, place: str, text: str, attempt: str) -> None:
        """Count a failure, once per attempt."""
        if attempt in self.counted:
            return
        self.counted = [*self.counted[-KEPT_ATTEMPTS:], attempt]
        self.failures[place] = self.failures.get(place, 0) + 1
        self.traceback = text

    @property
    def reason(self) -> str:
        """The last line of the last traceback."""
        return (self.traceback or "").strip().split("\n")[-1]


@dataclass(frozen=True)
class Submission:
    """Runs that were handed to a queue together.

    Attributes:
        path: the JSON file.
        queue: the word for it (`cluster.queues.QUEUES`).
        time: when, in seconds since 1970.
        jobs: by run, what the queue calls its job.
        details: what else the queue needs to find the jobs again.
    """

    path: Path
    queue: str
    time: float
    jobs: dict[str, str]
    details: dict[str, Any]

    def note(self, jobs: Mapping[str, str]) -> None:
        """Write the file, with what jobs of it are called now."""
        self.jobs.update(jobs)
        content = {"queue": self.queue, "time": self.time, "jobs": self.jobs}
        write_json(self.path, content | {"details": self.details})


@dataclass(frozen=True)
class SweepFolder:
    """Paths inside a sweep's folder, and what is read from and written to it."""

    path: Path

    @property
    def sweep_file(self) -> Path:
        """Whose folder it is."""
        return self.path / "sweep.json"

    @property
    def logs(self) -> Path:
        """What submitit and the jobs write."""
        return self.path / "logs"

    def run(self, run_id: str) -> RunFolder:
        """A run's folder."""
        return RunFolder(self.path / "runs" / run_id)

    def record_file(self, run_id: str) -> Path:
        """Where a run's record is, if anything has happened to the run."""
        return self.path / "records" / f"{run_id}.json"

    def record(self, run_id: str) -> Record:
        """A run's record.

        Raises:
            InputError: broken.
        """
        path = self.record_file(run_id)
        try:
            return Record(**json.loads(path.read_text()))
        except FileNotFoundError:
            return Record()
        except (ValueError, TypeError):
            raise InputError(f"{path}: not a record of a run (broken JSON)") from None

    @contextmanager
    def change_record(self, run_id: str, wait_s: float = 30) -> Iterator[Record]:
        """Read a run's record, let the block change it, and write, one process at a time.

        Raises:
            InputError: another process holds it for longer than `wait_s`.
        """
        path = self.record_file(run_id)
        busy = f"{path}: another process holds its lock"
        with locked(path.with_name(f".{run_id}.lock"), wait_s, busy):
            record = self.record(run_id)
            before = asdict(record)
            yield record
            if asdict(record) != before:
                write_json(path, asdict(record))

    def lock(self) -> Any:
        """Hold the folder while its runs are submitted, so that two who submit do not both take a run."""
        busy = f"--folder: {self.path}: another process is submitting its runs"
        return locked(self.path / ".lock", SUBMITTING_S, busy)

    def stored(self) -> dict[str, Any] | None:
        """The content of sweep.json, None in a new folder.

        Raises:
            InputError: broken.
        """
        try:
            return json.loads(self.sweep_file.read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            raise InputError(f"{self.sweep_file}: not valid JSON") from None

    def check_owner(self, name: str, task: str) -> None:
        """See that the folder is new or this sweep's.

        Raises:
            InputError: it belongs to another sweep, or holds other files.
        """
        stored = self.stored()
        if stored is not None:
            for key, own in (("name", name), ("task", task)):
                if stored.get(key) != own:
                    raise InputError(
                        f"--folder: {self.path} belongs to another sweep ({key}: {stored.get(key)} "
                        f"there, {own} here); give another --folder"
                    )
        elif self.path.is_dir() and any(not i.name.startswith(".") for i in self.path.iterdir()):
            raise InputError(
                f"--folder: {self.path} holds files but no sweep.json; give a new or empty folder"
            )

    def claim(self, name: str, task: str, content: Mapping[str, Any]) -> None:
        """Make the folder this sweep's.

        Raises:
            InputError: as `check_owner`, or it cannot be written to.
        """
        self.check_owner(name, task)
        writable_folder(self.path, "--folder")
        wanted = {"name": name, "task": task, **content}
        if self.stored() != json.loads(json.dumps(wanted)):
            write_json(self.sweep_file, wanted)

    def submissions(self) -> list[Submission]:
        """Every submission, the oldest first.

        Raises:
            InputError: one that is broken.
        """
        found = []
        for path in sorted((self.path / "submissions").glob("*.json")):
            try:
                found.append(Submission(path, **json.loads(path.read_text())))
            except (ValueError, TypeError):
                raise InputError(f"{path}: not a submission (broken JSON)") from None
        return found

    def latest(self, run_ids: Iterable[str]) -> dict[str, Submission]:
        """The newest submission of each of the runs that was ever submitted."""
        every = {run_id: one for one in self.submissions() for run_id in one.jobs}
        return {run_id: every[run_id] for run_id in run_ids if run_id in every}

    def add_submission(
        self, queue: str, jobs: Mapping[str, str], details: Mapping[str, Any]
    ) -> Submission:
        """Note a submission; call it under the folder's lock."""
        folder = self.path / "submissions"
        path = folder / f"{len(list(folder.glob('*.json'))):05d}.json"
        submission = Submission(path, queue, time.time(), {}, dict(details))
        submission.note(jobs)
        return submission
