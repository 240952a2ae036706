"""Small sweeps of stand-in trainings, for tests of what happens around a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.queues import make_queue
from cluster.runs import Run, Sweep
from cluster.states import run_states
from cluster.submission import submit
from cluster.sweep_file import read_sweep
from cluster.sweep_folder import SweepFolder
from img2img_recon.support.errors import InputError
from tests.stand_in_training import StandInJob

PROJECT = Path(__file__).resolve().parents[2]


def make(
    folder: Path, seeds: list[int], behave: dict[str, str] | None = None, **plan: Any
) -> tuple[Sweep, SweepFolder]:
    """A sweep over seeds and its folder; `behave` maps a seed to what it does at its second step."""
    content = {"steps": 3, "step_s": 0.05, "behave": behave or {}, **plan}
    (folder / "plan.json").write_text(json.dumps(content))
    text = {
        "name": "case",
        "task": "mri",
        "base": {"challenge": "singlecoil", "model": "unet"},
        "axes": {"grid": {"seed": seeds}},
        "resources": {"setup": [f"export PYTHONPATH={PROJECT}"], "grace_s": 10},
    }
    (folder / "case.yaml").write_text(yaml.safe_dump(text))
    return read_sweep(folder / "case.yaml"), SweepFolder(folder / "out")


def hand_in(
    sweep: Sweep, folder: SweepFolder, word: str, parallel: int | None = None, **more: Any
) -> list[Run]:
    """Submit stand-in trainings."""
    return submit(sweep, folder, make_queue(word, parallel), job_class=StandInJob, **more)


def states_of(sweep: Sweep, folder: SweepFolder) -> list[str]:
    return [state.state for state in run_states(folder, sweep.ids).values()]


def complaint(main: Any, *words: object) -> str:
    """What a script says of words that it cannot use; one line."""
    with pytest.raises(InputError) as caught:
        main([str(word) for word in words])
    assert "\n" not in str(caught.value)
    return str(caught.value)
