"""SLURM's queue through submitit: hand in, ask, take out."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.folder import SweepFolder
from cluster.jobs import TrainingJob
from cluster.queues import JobState, job_command
from cluster.resources import Resources
from img2img_recon.support.errors import InputError

# SLURM's states of a job that will not go on by itself.
ENDED = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
)
ANSWER_S = 60


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


def _slurm_parameters(name: str, resources: Resources) -> dict[str, Any]:
    """The resources by submitit's names."""
    parameters: dict[str, Any] = {
        "job_name": name,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.processes_per_node,
        "cpus_per_task": resources.cpus_per_task,
        "time": resources.timeout_min,
        "signal_delay_s": resources.signal_delay_s,
        "array_parallelism": resources.array_parallelism,
        "stderr_to_stdout": True,
        # One process that fails must not leave the others waiting until the time is up.
        # Since SLURM 22.05 srun does not take the cores per process from sbatch. Processes other than
        # the first end when training does, and must not end the first while it scores.
        "srun_args": [
            "--kill-on-bad-exit=1",
            f"--cpus-per-task={resources.cpus_per_task}",
            "--wait=0",
        ],
        "additional_parameters": {"requeue": True},
    }
    if resources.gpus_per_node:
        parameters["gpus_per_node"] = resources.gpus_per_node
    if resources.mem_gb is not None:
        parameters["mem"] = f"{round(resources.mem_gb * 1024)}M"
    for key in ("partition", "account", "qos", "constraint"):
        if getattr(resources, key) is not None:
            parameters[key] = getattr(resources, key)
    if resources.setup:
        parameters["setup"] = list(resources.setup)
    return parameters


def sbatch_header(name: str, resources: Resources, count: int, logs: Path) -> str:
    """The batch script that `submit_to_slurm` would hand in for `count` runs; nothing is submitted."""
    from submitit.slurm.slurm import _make_sbatch_string

    return _make_sbatch_string(
        command=job_command(logs.absolute()),
        folder=logs.absolute(),
        map_count=count if count > 1 else None,
        **_slurm_parameters(name, resources),
    )


def submit_to_slurm(
    folder: SweepFolder, name: str, resources: Resources, jobs: Mapping[str, TrainingJob]
) -> None:
    """Hand in jobs of one shape as one job array, or several where SLURM limits an array's size.

    Raises:
        InputError: SLURM refuses, with its reason.
    """
    import submitit

    class SlurmExecutor(submitit.SlurmExecutor):
        """Starts the project's own program."""

        _submitit_command_str = property(lambda self: job_command(self.folder))

    settings = _ask("scontrol", "show", "config")
    limits = [line for line in settings.splitlines() if line.startswith("MaxArraySize")]
    largest = int(limits[0].split("=")[1]) - 1 if limits else 1000
    ids = list(jobs)
    for start in range(0, len(ids), largest):
        part = ids[start : start + largest]
        logs = folder.logs / f"{time.strftime('%Y%m%d-%H%M%S')}-{part[0]}"
        executor = SlurmExecutor(logs, max_num_timeout=resources.max_timeouts)
        mark = f"{part[0]}-{time.time_ns()}"
        executor.update_parameters(**_slurm_parameters(name, resources), comment=mark)
        try:
            handed = executor.submit_array([jobs[run_id] for run_id in part])
            folder.add_submission(
                {
                    "cluster": "slurm",
                    "time": time.time(),
                    "logs": str(logs),
                    "jobs": {run_id: job.job_id for run_id, job in zip(part, handed, strict=True)},
                }
            )
        except submitit.core.utils.FailedJobError as error:
            said = str(error).strip().split("\n")[-1]
            shape = (
                f"nodes {resources.nodes}, gpus_per_node {resources.gpus_per_node}, "
                f"tasks_per_node {resources.processes_per_node}, "
                f"cpus_per_task {resources.cpus_per_task}, mem_gb {resources.mem_gb}, "
                f"partition {resources.partition}"
            )
            raise InputError(f"resources: SLURM refuses the job ({shape}): {said}") from None
        except BaseException:
            _take_back(mark)
            raise


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


def cancel_in_slurm(job_ids: Sequence[str]) -> None:
    """Take jobs out of the queue, the running ones included."""
    for start in range(0, len(job_ids), 500):
        _ask("scancel", *job_ids[start : start + 500])
