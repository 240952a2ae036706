"""What the queue costs: time to the first running job, overhead per run, preemption, looking at many runs.

python -m tests.benchmarks.queue slurm     (starts a SLURM of its own on this machine; see local_slurm.py)
python -m tests.benchmarks.queue folders   (status and collect on many finished runs)

Whole processes are timed, as a person would: `sweep.py` and the bare training command.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster.sweep_folder import SweepFolder
from img2img_recon.support.cli import flag, parse_config, run_script
from img2img_recon.support.errors import InputError
from img2img_recon.support.files import write_json
from img2img_recon.support.progress import bar
from img2img_recon.support.types import PositiveInt
from tests.slurm.local_slurm import CPUS_PER_NODE, LocalSlurm, SlurmUnavailableError

ROOT = Path(__file__).resolve().parents[2]
# A training of about half a minute on one core, on the photographs that scikit-image ships.
TRAINING: dict[str, Any] = {
    "sigma": 30,
    "accelerator": "cpu",
    "max_epochs": 3,
    "seed": 0,
    "model": "img2img_mixer",
    "patch_size": 4,
    "embed_dim": 32,
    "depth": 4,
    "mlp_ratio": 2,
}
LIMIT_S = 600


@dataclass(frozen=True)
class SlurmBenchmark:
    """Time a training bare, as a sweep's run in SLURM, and preempted once."""

    repeats: PositiveInt = flag(3, help="turns of bare, queued, preempted")
    json: Path | None = flag(None, help="write the figures to this file")


@dataclass(frozen=True)
class FoldersBenchmark:
    """Time status and collect on finished runs."""

    runs: PositiveInt = flag(10_000, help="run folders")
    repeats: PositiveInt = flag(3, help="calls of each command")
    json: Path | None = flag(None, help="write the figures to this file")


def _call(words: Sequence[str], environment: Mapping[str, str], folder: Path) -> float:
    """Seconds of a command in `folder`.

    Raises:
        InputError: it fails, with its last line.
    """
    begin = time.time()
    done = subprocess.run(
        [sys.executable, *words],
        env=dict(environment),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise InputError(f"{' '.join(words[:2])} failed: {lines[-1]}")
    return time.time() - begin


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise InputError(f"waited {LIMIT_S} s for {what}")
        time.sleep(0.05)


def _attempts(folder: SweepFolder, run_id: str) -> list[dict[str, Any]]:
    return folder.record(run_id).attempts


def _queued(folder: Path, environment: Mapping[str, str], preempt: bool) -> dict[str, float]:
    """Seconds of one run in the queue, from the start of `sweep.py submit`."""
    folder.mkdir()
    content = {
        "name": "one",
        "task": "gaussian",
        "base": TRAINING,
        # A whole node, so that a job of the other partition must take it away.
        "resources": {
            "cpus_per_task": CPUS_PER_NODE,
            "timeout_min": 30,
            "setup": [f"export OMP_NUM_THREADS={environment['OMP_NUM_THREADS']}"],
        },
    }
    (folder / "one.yaml").write_text(yaml.safe_dump(content))
    begin = time.time()
    submit = _call([str(ROOT / "cluster/sweep.py"), "submit", "one.yaml"], environment, folder)
    sweep = SweepFolder(folder / "sweeps_out/one")
    [submission] = sweep.submissions()
    [run_id] = submission.jobs
    run = sweep.run(run_id)
    _wait(lambda: bool(_attempts(sweep, run_id)), "the job to start")
    figures = {
        "submit": submit,
        "submit_to_running": _attempts(sweep, run_id)[0]["started"] - begin,
        "queue_to_running": _attempts(sweep, run_id)[0]["started"] - submission.time,
    }
    if preempt:
        _wait(lambda: run.config_file.exists() and _trains(run.path), "the training to begin")
        node = _ask(environment, "squeue", "-h", "-o", "%N").strip()
        _ask(
            environment,
            *("sbatch", "-p", "high", "-w", node, "-c", str(CPUS_PER_NODE), "-o", "/dev/null"),
            *("--wrap", "sleep 1"),
        )
        warned = time.time()
        _wait(lambda: _attempts(sweep, run_id)[0]["end"] is not None, "the run to give way")
        figures["warned_to_saved"] = _attempts(sweep, run_id)[0]["ended"] - warned
        _wait(lambda: len(_attempts(sweep, run_id)) == 2, "the run to start again")
        figures["saved_to_running"] = (
            _attempts(sweep, run_id)[1]["started"] - _attempts(sweep, run_id)[0]["ended"]
        )
    _wait(lambda: _attempts(sweep, run_id)[-1]["end"] == "done", "the end")
    figures["total"] = _attempts(sweep, run_id)[-1]["ended"] - begin
    _wait(lambda: not _ask(environment, "squeue", "-h").strip(), "the queue to be empty")
    return figures


def _trains(run: Path) -> bool:
    """Whether an epoch has been logged."""
    return any(
        file.read_text(errors="replace").count("\n") > 1
        for file in run.glob("logs/csv-*/metrics.csv")
    )


def _ask(environment: Mapping[str, str], *words: str) -> str:
    done = subprocess.run(
        words, env=dict(environment), capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


def measure_slurm(config: SlurmBenchmark) -> dict[str, Any]:
    """Bare, queued and preempted trainings in turns, on a SLURM started for it.

    Returns:
        Seconds by name, every turn; `overhead` and `lost` are differences within a turn.

    Raises:
        InputError: no SLURM can be started here, or a training fails.
    """
    turns: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="slurm", dir="/tmp") as place:
        slurm = LocalSlurm(Path(place) / "s")
        try:
            slurm.start()
        except SlurmUnavailableError as error:
            raise InputError(str(error)) from None
        try:
            threads = os.environ.get("OMP_NUM_THREADS", "1")
            environment = {**os.environ, **slurm.environment, "OMP_NUM_THREADS": threads}
            work = Path(place) / "w"
            work.mkdir()
            words = [str(ROOT / "denoise_tasks/train.py"), "--task", "gaussian", "--no_progress"]
            words += [f"--{key}={value}" for key, value in TRAINING.items()]
            _call([*words, "--max_epochs=1", f"--run={work / 'warm'}"], environment, work)
            for turn in bar(range(config.repeats), "turns", config.repeats):
                bare = _call([*words, f"--run={work / f'bare{turn}'}"], environment, work)
                queued = _queued(work / f"queued{turn}", environment, preempt=False)
                preempted = _queued(work / f"preempted{turn}", environment, preempt=True)
                turns.append(
                    {
                        "bare": bare,
                        **queued,
                        "overhead": queued["total"] - bare,
                        "warned_to_saved": preempted["warned_to_saved"],
                        "saved_to_running": preempted["saved_to_running"],
                        "preempted_total": preempted["total"],
                        "lost": preempted["total"] - queued["total"],
                    }
                )
        finally:
            slurm.stop()
    return {name: [turn[name] for turn in turns] for name in turns[0]}


def write_finished_runs(folder: SweepFolder, run_ids: Sequence[str]) -> None:
    """Folders as finished runs leave them, with two images each."""
    for number, run_id in enumerate(run_ids):
        run = folder.run(run_id)
        run.path.mkdir(parents=True)
        config = {"task": "gaussian", "model": "unet", "seed": number, "train_images": 10}
        run.config_file.write_text(json.dumps(config | {"max_epochs": 4}))
        score = {"psnr": 30.0 + number % 7, "ssim": 0.8}
        metrics = {
            "task": "gaussian",
            "model": "unet",
            "parameters": 1000,
            "fit_seconds": 8.0,
            "images": {"unet": {"a.png": score, "b.png": score}},
            "mean": {"unet": score},
        }
        run.metrics_file.write_text(json.dumps(metrics))


def measure_folders(config: FoldersBenchmark) -> dict[str, Any]:
    """Seconds of `sweep.py status` and `sweep.py collect`, the interpreter's start included."""
    environment = dict(os.environ)
    script = str(ROOT / "cluster/sweep.py")
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        content = {
            "name": "many",
            "task": "gaussian",
            "base": {"model": "unet"},
            "axes": {"grid": {"seed": list(range(config.runs))}},
        }
        (work / "many.yaml").write_text(yaml.safe_dump(content))
        # Made by the sweep's own code, so that the folder is what a submission leaves behind.
        code = (
            "import sys; from pathlib import Path; from tests.benchmarks.queue import claim_finished; "
            "claim_finished(Path('many.yaml'))"
        )
        path = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
        _call(["-c", code], environment | {"PYTHONPATH": path}, work)
        seconds: dict[str, list[float]] = {"status": [], "collect": []}
        for _ in bar(range(config.repeats), "turns", config.repeats):
            for command, found in seconds.items():
                found.append(_call([script, command, "many.yaml"], environment, work))
    return {"runs": config.runs, **seconds}


def claim_finished(file: Path, changes: Sequence[str] = ()) -> None:
    """Make a sweep's folder in the working directory as it is when all its runs have finished."""
    from cluster.runs import stored_sweep
    from cluster.sweep import Command

    command = Command(sweep=file, set=tuple(changes))
    sweep = command.read()
    folder = command.folder_of(sweep.name)
    folder.claim(sweep.name, sweep.task, stored_sweep(sweep, command.key, changes))
    write_finished_runs(folder, sweep.ids)


def as_text(report: Mapping[str, Any]) -> str:
    """A line per figure: median and range."""
    lines = []
    for name, values in report.items():
        if not isinstance(values, list):
            lines.append(f"{name}: {values}")
            continue
        lines.append(
            f"{name}: {statistics.median(values):.2f} s (from {min(values):.2f} to {max(values):.2f})"
        )
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    given = list(sys.argv[1:] if words is None else words)
    if not given or given[0] not in ("slurm", "folders"):
        raise InputError(f"given {' '.join(given[:1]) or 'nothing'}, allowed: slurm, folders")
    if given[0] == "slurm":
        slurm_config = parse_config(SlurmBenchmark, given[1:])
        report, target = measure_slurm(slurm_config), slurm_config.json
    else:
        folders_config = parse_config(FoldersBenchmark, given[1:])
        report, target = measure_folders(folders_config), folders_config.json
    print(as_text(report))
    if target is not None:
        write_json(target, report)


if __name__ == "__main__":
    run_script(main)
