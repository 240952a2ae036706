"""Environments of their own for tests with foreign packages, made once and kept in the user's cache."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("IMG2IMG_EXTERNAL_CACHE", Path.home() / ".cache/img2img_external"))
# A pair that fits, for packages that import torchvision.
TORCHVISION = ("torch==2.14.1", "torchvision==0.29.1")

only_if_asked = pytest.mark.skipif(
    os.environ.get("IMG2IMG_EXTERNAL") != "1", reason="needs IMG2IMG_EXTERNAL=1"
)


def environment(name: str, *installed: tuple[str, ...]) -> Path:
    """The interpreter of an environment in which what pip is told to install goes before what is here."""
    folder = CACHE / name
    python, whole = folder / "bin/python", folder / "whole"
    if not whole.is_file():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    # Written every time: what is kept may have been made from another environment than this one.
    (packages,) = folder.glob("lib/*/site-packages")
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    if not whole.is_file():
        for words in installed:
            subprocess.run([python, "-m", "pip", "install", "--quiet", *words], check=True)
        whole.touch()
    return python


def run_tests(python: Path, file: str) -> None:
    """Run a file of tests with another interpreter; they must pass."""
    done = subprocess.run(
        [python, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", file],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
