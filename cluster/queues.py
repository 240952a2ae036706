"""Where jobs go: SLURM's queue, this machine, or this very process. Hand in, ask, take out.

Every queue takes the jobs of one shape and says which run became which job; nothing here knows what a
run is about.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cluster.folder import SweepFolder
from cluster.grid import Resources
from cluster.jobs import TrainingJob
from img2img_recon.errors import InputError
from img2img_recon.files import write_json

Cluster = Literal["slurm", "local", "debug"]
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
STOP_S = 30
QUEUED, ENDED_HERE = "queued", "ended"
# Of a local submission: runs that nobody works on.
IDLE = (QUEUED, ENDED_HERE)


class JobState(NamedTuple):
    """What a queue knows of a job.

    Attributes:
        state: pending, running, or gone (ended, cancelled, lost).
        detail: the queue's own words.
    """

    state: Literal["pending", "running", "gone"]
    detail: str


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


def _command(logs: Path) -> str:
    """The shell command of every process of a job; submitit puts srun in front of it."""
    return f"{shlex.quote(sys.executable)} -u -m cluster.entry {shlex.quote(str(logs))}"


def sbatch_header(name: str, resources: Resources, count: int, logs: Path) -> str:
    """The batch script that `submit_to_slurm` would hand in for `count` runs; nothing is submitted."""
    from submitit.slurm.slurm import _make_sbatch_string

    return _make_sbatch_string(
        command=_command(logs.absolute()),
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

        _submitit_command_str = property(lambda self: _command(self.folder))

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


def process_start(pid: int) -> int | None:
    """When a process of this machine started, in its kernel's ticks; None if there is none (or a zombie).

    Where the kernel does not tell (no /proc), 0 for a process that is there.
    """
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except OSError:
            pass
        return 0
    try:
        text = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if text[0] == "Z" else int(text[19])


def claim_locally(folder: SweepFolder, run_ids: Sequence[str], cluster: Cluster) -> Path:
    """Note that this process is about to train these runs."""
    return folder.add_submission(
        {
            "cluster": cluster,
            "time": time.time(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "pid_started": process_start(os.getpid()),
            "jobs": dict.fromkeys(run_ids, QUEUED),
        }
    )


def local_state(submission: Mapping[str, Any], run_id: str, busy: bool = True) -> JobState:
    """What is known of a run that a process of some machine took on.

    Args:
        submission: the one that took it.
        run_id: of the run.
        busy: whether anybody works on a run of the submission; asked where its process is out of sight.
    """
    job = submission["jobs"][run_id]
    if job == ENDED_HERE:
        return JobState("gone", "its process ended")
    if submission["host"] != socket.gethostname():
        if not busy:
            return JobState("gone", f"nobody works on it on {submission['host']}")
        return JobState("running", f"on {submission['host']}, as far as known here")
    if process_start(submission["pid"]) != submission["pid_started"]:
        return JobState("gone", "the process that started it is gone")
    return JobState("pending" if job == QUEUED else "running", f"process {job}")


@contextmanager
def interruptible() -> Iterator[None]:
    """Let processes that start in this block be interrupted, which is how submitit cancels them.

    A process that a script has started in the background ignores SIGINT, and its children inherit that.
    """
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def check_local(
    cluster: Cluster, resources: Resources, parallel: int = 1, dashes: str = ""
) -> None:
    """See that this machine alone has what `parallel` runs of this shape need at a time.

    Args:
        cluster: local or debug; the latter runs one at a time.
        resources: of a run.
        parallel: runs at a time.
        dashes: what a flag's name begins with in the error.

    Raises:
        InputError: more machines, or more GPUs, than there are.
    """
    if resources.nodes > 1:
        raise InputError(
            f"--cluster {cluster}: runs on 1 node, given {dashes}nodes {resources.nodes}"
        )
    wanted = resources.gpus_per_node * (parallel if cluster == "local" else 1)
    if wanted and wanted > (there := len(visible_gpus())):
        raise InputError(
            f"--cluster {cluster}: needs {wanted} GPUs ({dashes}gpus_per_node {resources.gpus_per_node}, "
            f"{parallel} at a time), there are {there}"
        )


def visible_gpus() -> tuple[str, ...]:
    """The GPUs of this machine that may be used, by the names that CUDA_VISIBLE_DEVICES takes."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return tuple(name.strip() for name in given.split(",") if name.strip())
    import torch

    return tuple(map(str, range(torch.cuda.device_count())))


def run_locally(
    folder: SweepFolder,
    claim: Path,
    jobs: Mapping[str, tuple[TrainingJob, Resources]],
    parallel: int,
    told: Callable[[str, str], None],
) -> None:
    """Train runs on this machine, `parallel` at a time, each in a process of submitit's local executor.

    Args:
        folder: of the sweep.
        claim: the submission's file, kept up to date.
        jobs: job and resources by run.
        parallel: runs at a time; each has GPUs of its own.
        told: takes the id of a run and what happens to it.
    """
    import submitit

    class LocalExecutor(submitit.LocalExecutor):
        """Starts the project's own program, after the set-up commands.

        Given those itself, submitit puts a shell before its controller, which signals do not pass.
        """

        commands: tuple[str, ...] = ()

        @property
        def _submitit_command_str(self) -> str:
            words = " && ".join([*self.commands, f"exec {_command(self.folder)}"])
            return f"sh -c {shlex.quote(words)}"

    uses_gpus = any(resources.gpus_per_node for _, resources in jobs.values())
    gpus = visible_gpus() if uses_gpus else ()
    content = json.loads(claim.read_text())
    waiting, working = list(jobs), dict[str, tuple[Any, int]]()
    tries = dict.fromkeys(jobs, 0)

    def note(run_id: str, state: str) -> None:
        content["jobs"][run_id] = state
        write_json(claim, content)

    def begin(run_id: str, slot: int) -> None:
        job, resources = jobs[run_id]
        executor = LocalExecutor(folder.logs / run_id, max_num_timeout=resources.max_timeouts)
        first = slot * resources.gpus_per_node
        executor.update_parameters(
            timeout_min=resources.timeout_min,
            signal_delay_s=resources.signal_delay_s,
            tasks_per_node=1,
            gpus_per_node=resources.gpus_per_node,
            visible_gpus=gpus[first : first + resources.gpus_per_node],
            stderr_to_stdout=True,
        )
        executor.commands = resources.setup
        with interruptible():
            handed = executor.submit(job)
        working[run_id] = (handed, slot)
        tries[run_id] += 1
        note(run_id, handed.job_id)
        told(run_id, f"started, process {handed.job_id}")

    def stop(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        while waiting or working:
            free = sorted(set(range(parallel)) - {slot for _, slot in working.values()})
            for slot in free[: len(waiting)]:
                begin(waiting.pop(0), slot)
            time.sleep(0.1)
            for run_id, (handed, _) in list(working.items()):
                if not handed.done():
                    continue
                del working[run_id]
                record = folder.record(run_id).read()
                last = record.attempts[-1]["end"] if record.attempts else None
                done = folder.run(run_id).metrics_file.exists()
                # submitit's local executor gives up after six requeues; the sweep does not.
                if (
                    not done
                    and not record.failed
                    and last in ("stopped", "stopped without saving", "failed")
                    and tries[run_id] <= jobs[run_id][1].max_timeouts
                ):
                    note(run_id, QUEUED)
                    waiting.append(run_id)
                    told(run_id, f"{last}, queued again")
                    continue
                note(run_id, ENDED_HERE)
                told(run_id, "done" if done else f"failed: {record.reason or 'killed'}")
    finally:
        signal.signal(signal.SIGTERM, before)
        for handed, _ in working.values():
            handed.cancel()
        for run_id, (handed, _) in working.items():
            try:
                handed._process.wait(timeout=STOP_S)
            except subprocess.TimeoutExpired:
                handed._process.kill()
            content["jobs"][run_id] = ENDED_HERE
        for run_id in waiting:
            content["jobs"][run_id] = ENDED_HERE
        write_json(claim, content)


def run_here(
    folder: SweepFolder,
    claim: Path,
    jobs: Mapping[str, TrainingJob],
    told: Callable[[str, str], None],
) -> None:
    """Train runs in this process, one after the other; the first exception comes through."""
    content = json.loads(claim.read_text())
    try:
        for run_id, job in jobs.items():
            content["jobs"][run_id] = str(os.getpid())
            write_json(claim, content)
            told(run_id, "started")
            job()
            content["jobs"][run_id] = ENDED_HERE
            told(run_id, "done")
    finally:
        content["jobs"] = dict.fromkeys(content["jobs"], ENDED_HERE)
        write_json(claim, content)


def cancel_local(submission: Mapping[str, Any]) -> None:
    """Ask the process that runs a submission to stop what it started and end.

    Raises:
        InputError: it is on another machine.
    """
    if submission["host"] != socket.gethostname():
        raise InputError(
            f"cancel: the runs were started on {submission['host']}; cancel them there"
        )
    if process_start(submission["pid"]) == submission["pid_started"]:
        os.kill(submission["pid"], signal.SIGTERM)
