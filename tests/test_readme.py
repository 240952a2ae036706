"""The README's commands, run as they are written."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

PROJECT = Path(__file__).resolve().parent.parent
README = (PROJECT / "README.md").read_text()


@pytest.fixture(scope="module")
def place(tiny_data, tmp_path_factory) -> Path:
    """A folder in which DIR, scans.h5 and the scripts are what the README takes them for."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "fastmri_plugin").symlink_to(PROJECT / "fastmri_plugin")
    (folder / "DIR").symlink_to(tiny_data("singlecoil"))
    draw = np.random.default_rng(0)
    with h5py.File(folder / "scans.h5", "w") as file:
        noise = draw.standard_normal((4, 32, 32, 2))
        file["image"] = (noise[..., 0] + 1j * noise[..., 1]).astype(np.complex64)
        file["volume"] = [0, 0, 1, 1]
    return folder


@pytest.mark.slow
def test_commands(place):
    commands = re.findall(r"^    python (fastmri_plugin/.*)$", README, flags=re.MULTILINE)
    assert len(commands) >= 7
    for number, command in enumerate(commands):
        done = subprocess.run(
            [sys.executable, *shlex.split(command)],
            cwd=place,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        if number == 0:
            (run,) = (place / "runs").iterdir()
            (place / "RUN").symlink_to(run)
        if "--validate" in command:
            assert "valid submission" in done.stdout


def test_python_block():
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(block, names)
    assert tuple(names["image"].shape) == (1, 1, 301, 222)


def test_make_targets_exist():
    makefile = (PROJECT / "Makefile").read_text()
    for target in set(re.findall(r"`?make ([a-z]+)", README)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_links_lead_somewhere():
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (PROJECT / link).exists(), link


@pytest.mark.parametrize(
    "name", ["train", "evaluate", "export_submission", "freeze_split", "convert"]
)
def test_help(name, script):
    done = script(f"fastmri_plugin/{name}.py", "--help")
    assert done.returncode == 0, done.stderr
    assert "--challenge" in done.stdout
