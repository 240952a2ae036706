"""The documentation's tutorials and notebooks, run as they are written; what README's test runs is not run again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from denoise_tasks.methods import METHODS
from tests.test_readme import PROJECT, README, run_command

DOCS = PROJECT / "docs"
BLOCK = re.compile(r'^```(\w+)(?: title="(.+?)")?\n(.*?)^```$', flags=re.MULTILINE | re.DOTALL)
TINY = {
    "denoise_tasks/train.py": "--max_epochs 1 --patch_size 4 --embed_dim 4 --depth 1 --mlp_ratio 1 --num_workers 0",
    "fastmri_plugin/train.py": "--img_size 32 --patch_size 4 --embed_dim 4 --depth 1 --mlp_ratio 1 --num_workers 0 "
    "--sample_rate 1",
}


@pytest.fixture
def place(tmp_path, tiny_data, monkeypatch) -> Iterator[Path]:
    """A folder with photo.jpg, PHOTOS, DIR and the scripts, in which the test is; rows that a page adds go with it."""
    from PIL import Image
    from skimage import data

    for name in ("cluster", "denoise_tasks", "fastmri_plugin"):
        (tmp_path / name).symlink_to(PROJECT / name)
    (tmp_path / "DIR").symlink_to(tiny_data("singlecoil"))
    (tmp_path / "PHOTOS").mkdir()
    for number in range(3):
        part = data.chelsea()[8 * number : 8 * number + 256, :256]
        Image.fromarray(part).save(tmp_path / "PHOTOS" / f"{number}.png")
    noisy = part[:64, :64] + np.random.default_rng(0).normal(0, 30, (64, 64, 3))
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    before = dict(METHODS)
    yield tmp_path
    METHODS.clear()
    METHODS.update(before)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    # "Add a network" is the file of test_adding_a_network.py.
    sorted({*DOCS.glob("tutorials/*.md"), *DOCS.glob("howto/*.md")} - {*DOCS.glob("*/add_*")}),
    ids=lambda page: page.stem,
)
def test_pages(page, place):
    """Commands with tiny networks, files as they are titled, Python as it stands."""
    names: dict[str, object] = {}
    for language, title, text in BLOCK.findall(page.read_text()):
        if language == "yaml":
            text = text.replace("seed: [0, 1]", "seed: [0]")
            text = text.replace("max_epochs: 10", "max_epochs: 1\n  crops_per_image: 1")
            (place / title).write_text(text)
        elif language == "sh":
            for command in text.splitlines():
                if f"    {command}\n" in README:
                    continue
                words = command.removeprefix("python ")
                run_command(f"{words} {TINY.get(words.split()[0], '')}", place)
        elif language == "python":
            exec(compile(text, str(page), "exec"), names)


@pytest.mark.slow
@pytest.mark.parametrize(
    "notebook", sorted(DOCS.glob("notebooks/*.ipynb")), ids=lambda path: path.stem
)
def test_notebooks(notebook, place):
    """Every cell, in order; no outputs are kept and no magics used, so that a difference in git is one of content."""
    names: dict[str, object] = {}
    for cell in json.loads(notebook.read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"]
            assert cell["execution_count"] is None
            exec(compile("".join(cell["source"]), str(notebook), "exec"), names)


def test_pages_are_in_the_navigation():
    """What `mkdocs build --strict` says as well, where it is installed."""
    navigation = (PROJECT / "mkdocs.yml").read_text()
    pages = {path.relative_to(PROJECT).as_posix() for path in DOCS.rglob("*.md")}
    assert pages == set(re.findall(r" (docs/\S+\.md)$", navigation, flags=re.MULTILINE))
