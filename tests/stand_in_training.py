"""Takes the place of a training where the scheduling is tested: quick to start, steps that can be counted.

The job's process must not need torch for it, so it writes what a run writes, by itself.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from cluster.job import TrainingJob
from img2img_recon.support.files import write_json
from img2img_recon.training.run_folder import RunFolder


class StandInJob(TrainingJob):
    """A run whose training is `train`."""

    def train(self, folder: RunFolder) -> None:
        train(dict(self.config), folder)


def train(config: dict[str, Any], folder: RunFolder) -> None:
    """`seed` says how the run behaves; the state is the number of steps done.

    A file `slow` in the sweep's folder holds the seconds per step; `behave` maps a seed to raise, kill.
    """
    from img2img_recon.training.preemption import STOP_REQUEST, RunStopped

    sweep = folder.path.parent.parent
    plan = json.loads((sweep.parent / "plan.json").read_text())
    with folder.locked():
        if folder.metrics_file.exists():
            return
        folder.claim(config)
        note(folder, "start")
        behaviour = plan["behave"].get(str(config["seed"]))
        state = folder.path / "state.json"
        step = json.loads(state.read_text())["step"] if state.exists() else 0
        while step < plan["steps"]:
            time.sleep(plan["step_s"])
            step += 1
            if behaviour == "raise" and step == 2:
                raise RuntimeError("this run always fails at step 2")
            if behaviour == "kill" and step == 2 and not (sweep.parent / "spare").exists():
                os.kill(os.getpid(), signal.SIGKILL)
            if STOP_REQUEST.made or step % 2 == 0:
                write_json(state, {"step": step})
            if STOP_REQUEST.made:
                note(folder, f"saved {step}")
                raise RunStopped("asked to")
        score = {"psnr": 20.0 + config["seed"], "ssim": 0.5}
        model = config["model"]
        write_json(
            folder.metrics_file,
            {
                "task": "mri",
                "model": model,
                "parameters": 1000 * (1 + config["seed"]),
                "fit_seconds": 1.0,
                "volumes": {model: {"a": score, "b": score}},
                "mean": {model: score},
            },
        )
        note(folder, "done")


def note(folder: RunFolder, what: str) -> None:
    """A line in the run's diary, which survives everything."""
    with Path(folder.path / "diary.txt").open("a") as diary:
        diary.write(f"{time.time():.3f} {what}\n")


class WaitingJob(TrainingJob):
    """The true training; in its first two attempts it waits for the warning at a step of its own."""

    def train(self, folder: RunFolder) -> None:
        from img2img_recon.training.checkpoints import RunCheckpoints
        from img2img_recon.training.preemption import STOP_REQUEST

        sweep = folder.path.parent.parent
        record = json.loads((sweep / "records" / f"{folder.path.name}.json").read_text())
        waits_at = {1: 2, 2: 5}.get(record["starts"])
        original = RunCheckpoints.on_train_batch_end

        def patient(self: Any, trainer: Any, *rest: Any) -> None:
            while trainer.global_step == waits_at and not STOP_REQUEST.made:
                time.sleep(0.05)
            original(self, trainer, *rest)

        RunCheckpoints.on_train_batch_end = patient
        super().train(folder)
