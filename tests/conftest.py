from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.scripts import run_script

PROJECT = Path(__file__).resolve().parent.parent

# Two tests side by side on two cores: a thread each is faster than two that quarrel.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than there are cores: a worker waits for SLURM's clock, time-outs and pauses most of the time."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first, so that the quick ones fill the workers at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the tests out of the user's cache folder."""
    before = os.environ.get("IMG2IMG_CACHE")
    os.environ["IMG2IMG_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["IMG2IMG_CACHE"]
    else:
        os.environ["IMG2IMG_CACHE"] = before


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny demo set per challenge, made once; nobody may write into it."""
    from fastmri_plugin.demo_data import TINY, make_demo_data

    made: dict[str, Path] = {}

    def get(challenge: str) -> Path:
        if challenge not in made:
            folder = tmp_path_factory.mktemp("tiny") / challenge
            made[challenge] = make_demo_data(folder, challenge, sizes=TINY)
        return made[challenge]

    return get


@pytest.fixture
def script() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run one of the project's scripts as a person does."""

    def run(name: str, *words: object, **options: Any) -> subprocess.CompletedProcess[str]:
        return run_script([PROJECT / name, *words], **options)

    return run
