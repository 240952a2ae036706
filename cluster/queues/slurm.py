"""SLURM's queue through submitit: hand in, ask, take out, and what a job in it can do."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from cluster.queues import JobState, QueuedJob, Told
from cluster.resources import Resources, resource_groups
from cluster.sweep_folder import Submission, SweepFolder
from img2img_recon.support.errors import InputError

if TYPE_CHECKING:
    from cluster.queues import Groups

# SLURM's states of a job that will not go on by itself.
ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED"),
    *("NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
}
ANSWER_S = 60
# What SLURM may refuse.
ASKED = ("nodes", "gpus_per_node", "processes_per_node", "cpus_per_task", "mem_gb", "partition")


def _ask(*words: str) -> str:
    """The output of a SLURM command.

    Raises:
        InputError: SLURM is not installed, does not answer, or refuses.
    """
    if shutil.which(words[0]) is None:
        raise InputError(
            f"--cluster slurm: SLURM is not installed here (no {words[0]}); "
            "allowed: a machine of a SLURM cluster, or --cluster local"
        )
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=ANSWER_S, check=False)
    except subprocess.TimeoutExpired:
        raise InputError(f"--cluster slurm: {words[0]} did not answer in {ANSWER_S} s") from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise InputError(f"--cluster slurm: {words[0]} says: {said}")
    return done.stdout


def check_slurm() -> None:
    """See that SLURM is installed and its controller answers.

    Raises:
        InputError: one of the two is not so.
    """
    _ask("sbatch", "--version")
    # One line per controller; a backup that is down does no harm.
    if not re.search(r"\bUP\b", said := " ".join(_ask("scontrol", "ping").split())):
        raise InputError(f"--cluster slurm: its controller does not answer ({said})")


def job_command(logs: Path) -> str:
    """The shell command of every process of a job; submitit puts srun in front of it."""
    return f"{shlex.quote(sys.executable)} -u -m cluster.entry {shlex.quote(str(logs))}"


@dataclass(frozen=True)
class SlurmQueue:
    """Jobs go into job arrays, one per resource group.

    Attributes:
        word: for `--cluster`.
        parallel: runs of an array at one time, instead of what the resources say.
    """

    word: str
    parallel: int | None = None
    requeues: ClassVar[bool] = True

    def check(self, resources: Sequence[Resources]) -> None:
        """See that SLURM is installed and its controller answers."""
        check_slurm()

    def _parameters(self, name: str, resources: Resources) -> dict[str, Any]:
        """The resources by submitit's names."""
        given = {
            "gpus_per_node": resources.gpus_per_node or None,
            "mem": f"{round(resources.mem_gb * 1024)}M" if resources.mem_gb else None,
            "partition": resources.partition,
            "account": resources.account,
            "qos": resources.qos,
            "constraint": resources.constraint,
            "setup": list(resources.setup) or None,
        }
        return {key: value for key, value in given.items() if value is not None} | {
            "job_name": name,
            "nodes": resources.nodes,
            "ntasks_per_node": resources.processes_per_node,
            "cpus_per_task": resources.cpus_per_task,
            "time": resources.minutes,
            "signal_delay_s": resources.signal_delay_s,
            "array_parallelism": self.parallel or resources.array_parallelism,
            "stderr_to_stdout": True,
            # One process that fails must not leave the others waiting until the time is up. Since
            # SLURM 22.05 srun does not take the cores per process from sbatch. Processes other than the
            # first end when training does, and must not end the first while it scores.
            "srun_args": [
                "--kill-on-bad-exit=1",
                f"--cpus-per-task={resources.cpus_per_task}",
                "--wait=0",
            ],
            "additional_parameters": {"requeue": True},
        }

    def preview(self, name: str, groups: Groups, folder: SweepFolder) -> str:
        """The batch script of each array."""
        from submitit.slurm.slurm import _make_sbatch_string

        logs = folder.logs.absolute()
        return "\n".join(
            _make_sbatch_string(
                command=job_command(logs),
                folder=logs,
                map_count=len(runs) if len(runs) > 1 else None,
                **self._parameters(name, resources),
            )
            for resources, runs in groups
        )

    def hand_in(
        self, folder: SweepFolder, name: str, jobs: Mapping[str, QueuedJob]
    ) -> Callable[[Told], None]:
        """One job array per resource group, or several where SLURM limits an array's size."""
        largest = _largest_array()
        handed = 0
        for resources, ids in resource_groups((i, one.resources) for i, one in jobs.items()):
            for start in range(0, len(ids), largest):
                part = {run_id: jobs[run_id] for run_id in ids[start : start + largest]}
                try:
                    self._submit(folder, name, resources, part)
                except InputError as error:
                    if not handed:
                        raise
                    raise InputError(f"{error} ({handed} other runs were submitted)") from None
                handed += len(part)
        return lambda told: None

    def _submit(
        self,
        folder: SweepFolder,
        name: str,
        resources: Resources,
        jobs: Mapping[str, QueuedJob],
    ) -> None:
        import submitit

        class SlurmExecutor(submitit.SlurmExecutor):
            """Starts the project's own program."""

            _submitit_command_str = property(lambda self: job_command(self.folder))

        first = next(iter(jobs))
        logs = folder.logs / f"{time.strftime('%Y%m%d-%H%M%S')}-{first}"
        executor = SlurmExecutor(logs, max_num_timeout=resources.max_timeouts)
        mark = f"{first}-{time.time_ns()}"
        executor.update_parameters(**self._parameters(name, resources), comment=mark)
        try:
            handed = executor.submit_array([queued.job for queued in jobs.values()])
            ids = {run_id: job.job_id for run_id, job in zip(jobs, handed, strict=True)}
            folder.add_submission(self.word, ids, {"logs": str(logs)})
        except submitit.core.utils.FailedJobError as error:
            said = str(error).strip().split("\n")[-1]
            asked = ", ".join(f"{key} {getattr(resources, key)}" for key in ASKED)
            raise InputError(f"resources: SLURM refuses the job ({asked}): {said}") from None
        except BaseException:
            _take_back(mark)
            raise

    def states(self, latest: Mapping[str, Submission]) -> dict[str, JobState]:
        """By run, what SLURM knows of its job."""
        jobs = {run_id: one.jobs[run_id] for run_id, one in latest.items()}
        known = slurm_states(list(jobs.values()))
        return {
            run_id: known[job]._replace(detail=f"{known[job].detail} (job {job})", job_id=job)
            for run_id, job in jobs.items()
        }

    def cancel(self, latest: Mapping[str, Submission]) -> None:
        """Take jobs out of the queue, the running ones included."""
        ids = sorted(one.jobs[run_id] for run_id, one in latest.items())
        for start in range(0, len(ids), 500):
            _ask("scancel", *ids[start : start + 500])

    def rank(self) -> int:
        """The number of this process among those of its job."""
        return int(os.environ.get("SLURM_PROCID", "0"))

    def job_id(self) -> str:
        """The job, by SLURM's name for members of an array."""
        array = os.environ.get("SLURM_ARRAY_JOB_ID")
        if array is not None:
            return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
        return os.environ.get("SLURM_JOB_ID", "?")

    def attempt(self) -> str:
        """How often SLURM has put the job back."""
        return os.environ.get("SLURM_RESTART_COUNT", "0")

    def give_way(self, warned: bool, former: Any) -> NoReturn:
        """Let submitit's handler requeue the job."""
        if self.rank() == 0 and not warned:
            # Only SIGTERM came: a preemption without warning, which SLURM follows by a requeue, or a
            # cancellation, which must not be followed by one. All is saved; wait for what comes.
            time.sleep(3600)
        if self.rank() == 0 and callable(former):
            former(signal.SIGUSR2, None)
        # The first process requeues the job, which ends this one too.
        raise SystemExit(0)

    def requeue(self) -> NoReturn:
        """Put the job back, from whichever of its processes failed."""
        done = subprocess.run(
            ["scontrol", "requeue", self.job_id()],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        # Another process of the job may have been faster; SLURM ends this one in a moment.
        raise SystemExit(f"failed, requeued {done.stderr.strip()}")


def _largest_array() -> int:
    settings = _ask("scontrol", "show", "config")
    limits = [line for line in settings.splitlines() if line.startswith("MaxArraySize")]
    # Without arrays (0 or 1) one job at a time is handed in.
    return max(int(limits[0].split("=")[1]) - 1, 1) if limits else 1000


def _take_back(mark: str) -> None:
    """Cancel the array with this comment: nobody would know that it is in the queue."""
    for line in set(_ask("squeue", "-h", "--me", "-o", "%F|%k").splitlines()):
        job_id, _, comment = line.partition("|")
        if comment == mark:
            _ask("scancel", job_id)


def slurm_states(job_ids: Sequence[str]) -> dict[str, JobState]:
    """What SLURM knows of jobs; all of those asked for are in the answer.

    Raises:
        InputError: SLURM does not answer.
    """
    if not job_ids:
        return {}
    check_slurm()
    states: dict[str, JobState] = {}
    ended: dict[str, str] = {}
    wanted = set(job_ids)
    for line in _ask("squeue", "-h", "-r", "-t", "all", "--me", "-o", "%i|%T|%r").splitlines():
        job_id, state, reason = (*line.split("|"), "", "")[:3]
        if job_id in wanted and state in ENDED:
            ended[job_id] = state
        elif job_id in wanted:
            pending = state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")
            detail = reason if pending and reason not in ("None", "") else state.lower()
            states[job_id] = JobState("pending" if pending else "running", detail)
    gone = sorted(wanted - states.keys())
    whole = sorted({job_id.split("_")[0] for job_id in gone}, key=int)
    for start in range(0, len(whole), 200):
        try:
            answer = _ask(
                *("sacct", "-X", "-n", "-P", "-o", "JobID,State,ExitCode"),
                *("-j", ",".join(whole[start : start + 200])),
            )
        except InputError:
            # The queue has answered; the accounting, which some clusters lack, only knows why.
            break
        for line in answer.splitlines():
            job_id, state, code = (*line.split("|"), "", "")[:3]
            if job_id in wanted and job_id not in states:
                states[job_id] = JobState("gone", _spell_end(state, code))
    for job_id in gone:
        states.setdefault(job_id, JobState("gone", ended.get(job_id, "SLURM knows no such job")))
    return states


def _spell_end(state: str, code: str) -> str:
    """SLURM's state and exit code in words."""
    status, _, number = code.partition(":")
    if state.split()[0] not in ENDED:
        # The accounting still says PENDING or RUNNING for a job that the controller has forgotten.
        return f"SLURM lost the job (its accounting says {state})"
    names = {item.value: item.name for item in signal.Signals}
    ended, killer = int(status or 0), int(number or 0)
    if killer or ended > 128:
        return f"{state}, killed by {names.get(killer or ended - 128, 'a signal')}"
    if state != "FAILED":
        return state
    # srun, told to end all processes with the first that fails, answers with the bare number of the signal.
    hint = f" (perhaps {names[ended]})" if ended in (signal.SIGKILL, signal.SIGUSR2) else ""
    return f"{state}, exit status {status}{hint}"
