"""The package as somebody installs it: from a wheel, in an environment of its own, outside the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

PROJECT = Path(__file__).resolve().parent.parent


def call(*words: object, cwd: Path) -> str:
    """What a command says; it must end well. The checkout is not on its path."""
    done = subprocess.run(
        [*map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from what is committed, in a clean clone."""
    folder = tmp_path_factory.mktemp("wheel")
    call("git", "clone", "--quiet", "--no-hardlinks", PROJECT, folder / "clone", cwd=folder)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    call(
        *(*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder),
        folder / "clone",
        cwd=folder,
    )
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a new environment with the wheel in it and this one's libraries beside it."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    scheme = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", "venv", scheme))
    # Libraries only: the checkout that is installed here as editable is reached by a hook, not by a path.
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    binaries = Path(sysconfig.get_path("scripts", "venv", scheme))
    python = next(binaries.glob("python*"))
    call(
        *(python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"),
        *("--no-deps", "--ignore-installed", wheel),
        cwd=folder,
    )
    where = call(python, "-c", "import img2img_recon; print(img2img_recon.__file__)", cwd=folder)
    assert Path(where.strip()).is_relative_to(folder)
    return binaries


def test_the_wheel_says_that_it_is_typed_and_holds_sweeps_and_weights(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for package in ("img2img_recon", "fastmri_plugin", "denoise_tasks", "cluster"):
        assert f"{package}/py.typed" in names
    shipped = {
        f"cluster/sweeps/{path.name}" for path in (PROJECT / "cluster/sweeps").glob("*.yaml")
    }
    assert shipped
    assert shipped <= names
    weights = PROJECT.glob("*/weights/*.*")
    assert {path.relative_to(PROJECT).as_posix() for path in weights} <= names
    assert {f"img2img_recon/weights/denoise-color{end}" for end in (".safetensors", ".md")} <= names
    assert not [name for name in names if name.startswith("tests/")]


@pytest.mark.slow
def test_trains_and_denoises_outside_the_checkout(installed, tmp_path):
    from PIL import Image

    call(
        *(installed / "img2img-train-denoise", "--task", "gaussian", "--sigma", 30, "--run", "RUN"),
        *("--max_epochs", 1, "--crops_per_image", 4, "--embed_dim", 8, "--depth", 1),
        "--no_progress",
        cwd=tmp_path,
    )
    assert json.loads((tmp_path / "RUN/metrics.json").read_text())["parameters"] > 0
    picture = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "photo.png")
    call(installed / "img2img-denoise", "photo.png", "--out", "OUT", "--run", "RUN", cwd=tmp_path)
    assert Image.open(tmp_path / "OUT/photo.png").size == (50, 40)
    call(installed / "img2img-denoise", "photo.png", "--out", "OWN", cwd=tmp_path)
    assert Image.open(tmp_path / "OWN/photo.png").size == (50, 40)


@pytest.mark.slow
def test_every_command_starts(installed, tmp_path):
    commands = [path for path in sorted(installed.glob("img2img-*")) if path.suffix != ".py"]
    assert len(commands) >= 12
    for command in commands:
        assert "--help" in call(command, "--help", cwd=tmp_path)


def test_installing_beside_a_torch_leaves_it_alone(tmp_path):
    """What `pip install .` would fetch, where torch and numpy are: nothing but this project."""
    report = call(
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"),
        *("--dry-run", "--no-build-isolation", "--report", "-", PROJECT),
        cwd=tmp_path,
    )
    wanted = {item["metadata"]["name"] for item in json.loads(report)["install"]}
    assert wanted <= {"img2img-mlp-mixer"}
