"""A real SLURM on this machine: arrays, failures, time-outs, preemption, restarts, two nodes, lost jobs.

Most runs are stand-ins that count steps, so that the scheduling is what is tested; two tests train.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cluster.job import TrainingJob
from cluster.queues import make_queue
from cluster.queues.slurm import check_slurm
from cluster.runs import Sweep
from cluster.states import RunState, run_states
from cluster.submission import cancel, submit
from cluster.sweep_file import read_sweep
from cluster.sweep_folder import SweepFolder
from img2img_recon.support.errors import InputError
from img2img_recon.trained import load_checkpoint
from tests.slurm.local_slurm import LocalSlurm, SlurmUnavailableError, missing_programs
from tests.stand_in_training import StandInJob, WaitingJob

PROJECT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm"), pytest.mark.timeout(300)]
SMALL = {"model": "img2img_mixer", "patch_size": 4, "embed_dim": 8, "depth": 1, "mlp_ratio": 1}


def unavailable(reason: str) -> None:
    if os.environ.get("CI_REQUIRES_SLURM") == "1":
        pytest.fail(f"CI needs the SLURM tests, but {reason}", pytrace=False)
    pytest.skip(f"no SLURM here: {reason}")


@pytest.fixture(scope="module")
def slurm() -> Iterator[LocalSlurm]:
    if lacking := missing_programs():
        unavailable(
            f"not installed: {', '.join(lacking)}; as root, `python tests/slurm/local_slurm.py install`"
        )
    folder = Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))
    local = LocalSlurm(folder)
    before = dict(os.environ)
    try:
        try:
            local.start()
        except SlurmUnavailableError as error:
            unavailable(f"it does not start: {error}")
        for name in [n for n in os.environ if n.startswith(("SLURM_", "SBATCH_"))]:
            del os.environ[name]
        os.environ.update(local.environment)
        yield local
    finally:
        os.environ.clear()
        os.environ.update(before)
        local.stop()
        shutil.rmtree(folder, ignore_errors=True)


class Case:
    """A sweep of stand-in runs in a folder of its own."""

    def __init__(
        self,
        folder: Path,
        seeds: int,
        *,
        steps: int = 4,
        step_s: float = 0.2,
        behave: Mapping[str, str] | None = None,
        base: Mapping[str, Any] | None = None,
        job_class: type[TrainingJob] = StandInJob,
        setup: tuple[str, ...] = (),
        **resources: Any,
    ) -> None:
        self.root = folder
        plan = {"steps": steps, "step_s": step_s, "behave": dict(behave or {})}
        (folder / "plan.json").write_text(json.dumps(plan))
        resources = {"timeout_min": 5, "signal_delay_s": 30, "grace_s": 15, **resources}
        resources["setup"] = [f"export PYTHONPATH={PROJECT}", *setup]
        text = {
            "name": "case",
            "task": "mri",
            "base": {"challenge": "singlecoil", "model": "unet", **(base or {})},
            "axes": {"grid": {"seed": list(range(seeds))}},
            "resources": resources,
        }
        (folder / "case.yaml").write_text(yaml.safe_dump(text))
        self.job_class = job_class
        self.sweep: Sweep = read_sweep(folder / "case.yaml")
        self.folder = SweepFolder(folder / "out")
        self.ids = {run.config["seed"]: run.id for run in self.sweep.runs}

    def submit(self, again: Any = "new") -> int:
        queue = make_queue("slurm")
        return len(submit(self.sweep, self.folder, queue, again=again, job_class=self.job_class))

    def states(self) -> dict[int, RunState]:
        states = run_states(self.folder, list(self.ids.values()))
        return {seed: states[run_id] for seed, run_id in self.ids.items()}

    def job(self, seed: int) -> str:
        return self.folder.submissions()[-1].jobs[self.ids[seed]]

    def diary(self, seed: int) -> list[tuple[float, str]]:
        path = self.folder.run(self.ids[seed]).path / "diary.txt"
        if not path.exists():
            return []
        lines = [line.partition(" ") for line in path.read_text().splitlines()]
        return [(float(stamp), what) for stamp, _, what in lines]

    def said(self, seed: int) -> list[str]:
        return [what.split()[0] for _, what in self.diary(seed)]

    def wait(self, condition: Callable[[], Any], what: str, seconds: float = 150) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                logs = "\n".join(
                    f"== {path}\n{path.read_text(errors='replace')[-1500:]}"
                    for path in sorted(self.folder.logs.rglob("*_log.out"))
                )
                pytest.fail(f"waited {seconds} s for: {what}; {self.states()}\n{logs}"[:12000])
            time.sleep(0.25)

    def ends(self, seed: int) -> list[str | None]:
        return [attempt["end"] for attempt in self.folder.record(self.ids[seed]).attempts]

    def over(self) -> bool:
        """A run is done once its scores stand; its job notes its own end a moment later."""
        return all(
            state.state == "failed" or (state.state == "done" and self.ends(seed)[-1] is not None)
            for seed, state in self.states().items()
        )


def scontrol(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, timeout=60)


def test_array_two_at_a_time_with_a_run_that_raises_and_one_that_is_killed(slurm, tmp_path):
    case = Case(tmp_path, 6, behave={"4": "raise", "5": "kill"}, array_parallelism=2)
    assert case.submit() == 6
    assert case.submit() == 0, "submitted twice"
    assert len(case.folder.submissions()) == 1
    assert {case.job(seed).partition("_")[2] for seed in range(6)} == set("012345")
    case.wait(case.over, "the array to end")

    states = case.states()
    assert [states[seed].state for seed in range(6)] == ["done"] * 4 + ["failed"] * 2
    assert states[4].given_up
    assert "this run always fails at step 2" in states[4].detail
    record = case.folder.record(case.ids[4])
    assert record.starts == 3
    assert "stand_in_training.py" in (record.traceback or "")
    assert "SIGKILL" in states[5].detail
    assert not states[5].given_up
    spans = []
    for seed in range(4):
        first, *_, last = case.diary(seed)
        assert (first[1], last[1]) == ("start", "done")
        spans.append((first[0], last[0]))
    for moment, _ in spans:
        assert sum(start <= moment < end for start, end in spans) <= 2

    (tmp_path / "spare").touch()
    assert case.submit("lost") == 1, "only the killed run is due; the other was given up"
    case.wait(case.over, "the killed run's second try")
    assert case.states()[5].state == "done"
    assert case.submit("failed") == 1
    assert cancel(case.folder, list(case.ids.values())) == 1
    case.wait(case.over, "the cancelled run to leave")
    assert "CANCELLED" in case.states()[4].detail


def test_requeue_without_warning_and_a_restarted_controller(slurm, tmp_path):
    case = Case(tmp_path, 1, steps=30, step_s=0.2)
    case.submit()
    case.wait(lambda: (case.folder.run(case.ids[0]).path / "state.json").exists(), "a saved state")
    scontrol("scontrol", "requeue", case.job(0))
    case.wait(lambda: case.said(0).count("start") == 2, "the second start")

    slurm.stop_controller()
    with pytest.raises(InputError, match=r"^--cluster slurm: .*(controller|scontrol)"):
        check_slurm()
    with pytest.raises(InputError, match=r"^--cluster slurm: "):
        case.submit()
    slurm.start_controller()
    case.wait(case.over, "the end")
    assert case.states()[0].state == "done"
    # SLURM ends a requeued job by SIGTERM; whether the run could save before depends on the moment
    assert [what for what in case.said(0) if what != "saved"] == ["start", "start", "done"]
    state = json.loads((case.folder.run(case.ids[0]).path / "state.json").read_text())
    assert state["step"] == 30


def test_preemption_saves_within_the_grace_time_and_goes_on(slurm, tmp_path):
    case = Case(tmp_path, 2, steps=80, step_s=0.15, cpus_per_task=4)
    case.submit()
    case.wait(lambda: case.said(0) and case.said(1), "both nodes to be busy")
    scontrol("sbatch", "-p", "high", "-c", "4", "-o", "/dev/null", "--wrap", "sleep 2")
    case.wait(lambda: "saved" in case.said(0) + case.said(1), "one of them to save")
    case.wait(case.over, "both to end")
    assert [state.state for state in case.states().values()] == ["done", "done"]
    victim = 0 if "saved" in case.said(0) else 1
    assert case.said(victim) == ["start", "saved", "start", "done"]
    assert case.said(1 - victim) == ["start", "done"]
    assert case.ends(victim) == ["stopped", "done"]


def test_an_array_that_nobody_would_know_of_is_taken_back(slurm, tmp_path, monkeypatch):
    """Interrupted between the hand-in and the note of it."""

    def interrupted(*words: Any) -> None:
        raise KeyboardInterrupt

    case = Case(tmp_path, 2, steps=500)
    monkeypatch.setattr(SweepFolder, "add_submission", interrupted)
    with pytest.raises(KeyboardInterrupt):
        case.submit()
    deadline = time.monotonic() + 60
    while subprocess.run(["squeue", "-h"], capture_output=True, check=True).stdout.strip():
        assert time.monotonic() < deadline, "still in the queue"
        time.sleep(0.5)
    assert not case.folder.submissions()


def test_a_job_larger_than_any_node_is_refused(slurm, tmp_path):
    case = Case(tmp_path, 2, cpus_per_task=64)
    with pytest.raises(InputError, match=r"^resources: SLURM refuses the job .*cpus_per_task 64"):
        case.submit()
    assert {state.state for state in case.states().values()} == {"missing"}


def test_twelve_runs_with_random_kills_are_all_there_once(slurm, tmp_path):
    # Long enough for eight harms: SLURM takes up to ten seconds to signal a job that is only starting.
    case = Case(tmp_path, 12, steps=64, step_s=0.25, array_parallelism=8)
    case.submit()
    draw = random.Random(4)
    harmed = 0
    deadline = time.monotonic() + 300
    while not all(state.state == "done" for state in case.states().values()):
        assert time.monotonic() < deadline, case.states()
        running = [
            seed
            for seed, state in case.states().items()
            if state.state == "running" and case.said(seed)
        ]
        if running and harmed < 8:
            jobs = {i: job for s in case.folder.submissions() for i, job in s.jobs.items()}
            job = jobs[case.ids[draw.choice(running)]]
            harm = draw.choice(
                [
                    ["scancel", "--signal=KILL", job],
                    ["scontrol", "requeue", job],
                    ["scancel", "--signal=USR2", job],
                    ["scancel", job],
                ]
            )
            subprocess.run(harm, check=False, capture_output=True, timeout=60)
            harmed += 1
        case.submit("lost")
        time.sleep(1)
    assert harmed == 8
    for seed in range(12):
        folder = case.folder.run(case.ids[seed])
        assert json.loads(folder.metrics_file.read_text())["mean"]["unet"]["psnr"] == 20 + seed
        assert case.said(seed).count("done") == 1
    assert sorted(os.listdir(case.folder.path / "runs")) == sorted(case.ids.values())


def tiny_base(data: Path, **more: Any) -> dict[str, Any]:
    return {
        "data_path": str(data),
        "accel": 4,
        "num_workers": 0,
        "accelerator": "cpu",
        "checkpoint_every_n_steps": 0,
        **SMALL,
        **more,
    }


def test_a_run_that_times_out_twice_ends_with_the_weights_of_an_unbroken_one(
    slurm, tmp_path, tiny_data
):
    """True time-outs: the limit is a minute, the warning comes by SLURM's own clock."""
    base = tiny_base(tiny_data("singlecoil"), max_epochs=4)
    case = Case(
        tmp_path,
        1,
        base=base,
        job_class=WaitingJob,
        timeout_min=1,
        signal_delay_s=30,
        grace_s=25,
    )
    case.submit()
    unbroken = subprocess.run(
        [sys.executable, str(PROJECT / "fastmri_plugin/train.py"), "--no_progress"]
        + [f"--{key}={value}" for key, value in base.items()]
        + ["--challenge=singlecoil", "--seed=0", "--devices=1", f"--run={tmp_path / 'whole'}"],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
        env={k: v for k, v in os.environ.items() if k != "SLURM_CONF"},
    )
    assert unbroken.returncode == 0, unbroken.stderr
    case.wait(case.over, "the end after two time-outs", 280)
    *stops, end = case.ends(0)
    # more than two where the machine is so slow that the third attempt takes too long as well
    assert stops.count("stopped") >= 2
    assert end == "done"
    broken, whole = (
        load_checkpoint(path / "checkpoints/last.ckpt")["state_dict"]
        for path in (case.folder.run(case.ids[0]).path, tmp_path / "whole")
    )
    assert broken.keys() == whole.keys()
    assert all(torch.equal(broken[name], whole[name]) for name in whole)


def test_two_nodes_train_one_model_and_score_as_one_process_does(slurm, tmp_path, tiny_data):
    """An odd number of volumes, one longer; the rate is so small that only what is measured can differ."""
    data = tmp_path / "data"
    shutil.copytree(tiny_data("singlecoil"), data)
    shutil.copy(min((data / "singlecoil_train").glob("*.h5")), data / "singlecoil_val/one_more.h5")
    base = tiny_base(data, max_epochs=1, lr=1e-12)
    scores = []
    for nodes in (2, 1):
        (tmp_path / str(nodes)).mkdir()
        case = Case(
            tmp_path / str(nodes),
            1,
            base=base,
            job_class=TrainingJob,
            nodes=nodes,
            setup=("export MASTER_ADDR=127.0.0.1 GLOO_SOCKET_IFNAME=lo",),
        )
        case.submit()
        scores.append(case)
    logged = []
    for case in scores:
        case.wait(case.over, "the training", 250)
        assert case.states()[0].state == "done", case.states()
        folder = case.folder.run(case.ids[0])
        rows = [
            line.split(",")
            for line in next(folder.path.glob("logs/csv-*/metrics.csv")).read_text().splitlines()
        ]
        values = {k: float(v) for row in rows[1:] for k, v in zip(rows[0], row, strict=True) if v}
        logged.append((values, json.loads(folder.metrics_file.read_text())["volumes"]))
    for name in ("validation_loss", "val_metrics/ssim", "val_metrics/psnr", "val_metrics/nmse"):
        assert logged[0][0][name] == pytest.approx(logged[1][0][name], rel=1e-6, abs=1e-6), name
    for method, volumes in logged[1][1].items():
        for volume, values in volumes.items():
            assert logged[0][1][method][volume] == pytest.approx(values, rel=1e-5), volume
