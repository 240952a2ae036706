"""Adding a network is one file and one row: from `build_model` over both command lines to a trained run and a sweep."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from img2img_recon import build_model, load, model_config
from img2img_recon.networks import zoo
from img2img_recon.support.errors import InputError

# The file of the tutorial.
PAGE = Path(__file__).parent.parent / "docs" / "tutorials" / "add_a_network.md"
FILE = PAGE.read_text().partition('toy.py"\n')[2].partition("```")[0]
GIVEN = ("--model", "toy", "--activation", "tanh", "--slope", "0.25", "--widths", "3", "6", "2")
OPTIONS = {"activation": "tanh", "slope": 0.25, "widths": [3, 6, 2]}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file, and the row."""
    (tmp_path / "toy_network.py").write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(zoo.MODELS, "toy", zoo.Row("toy_network:Toy"))
    yield
    sys.modules.pop("toy_network", None)


@pytest.mark.usefixtures("toy")
def test_options_come_from_the_constructor():
    network = build_model("toy", **OPTIONS)
    assert (network.activation, network.slope, network.widths) == ("tanh", 0.25, (3, 6, 2))
    assert json.loads(json.dumps(model_config("toy")))["widths"] == [4, 5]
    for wrong in ({"slope": "steep"}, {"widths": ["a"]}, {"activation": 3}, {"slop": 0.1}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            build_model("toy", **wrong)


@pytest.mark.usefixtures("toy")
def test_it_is_checked_and_exported():
    network = build_model("toy", **OPTIONS).eval()
    with pytest.raises(InputError, match=r"must be \(1 or more, 3, height, width\)"):
        network(torch.rand(0, 3, 8, 8))
    batch = {"image": {0: torch.export.Dim("batch")}}
    program = torch.export.export(network, (torch.rand(2, 3, 8, 8),), dynamic_shapes=batch)
    image = torch.rand(5, 3, 8, 8)
    torch.testing.assert_close(program.module()(image), network(image))


@pytest.mark.usefixtures("toy")
def test_denoising_trains_it(tmp_path):
    from denoise_tasks.train import main

    run = tmp_path / "run"
    main(
        [
            *("--task", "gaussian", "--sigma", "30", *GIVEN, "--run", str(run)),
            *("--max_epochs", "1", "--crops_per_image", "1", "--val_images", "1", "--no_progress"),
        ]
    )
    network = load(run)
    assert network(torch.rand(1, 3, 9, 7)).shape == (1, 3, 9, 7)
    assert json.loads((run / "config.json").read_text())["options"].items() >= OPTIONS.items()


@pytest.mark.usefixtures("toy")
def test_mri_trains_it(tmp_path, tiny_data):
    from fastmri_plugin.train import main

    run = tmp_path / "run"
    main(
        [
            *("--challenge", "singlecoil", "--data_path", str(tiny_data("singlecoil")), *GIVEN),
            *("--run", str(run), "--max_epochs", "1", "--num_workers", "0", "--no_progress"),
        ]
    )
    assert json.loads((run / "metrics.json").read_text())["mean"].keys() >= {"toy", "zero_filled"}
    assert json.loads((run / "config.json").read_text())["options"].items() >= OPTIONS.items()


@pytest.mark.usefixtures("toy")
def test_sweeps_know_it(tmp_path):
    from cluster.sweep_file import read_sweep

    file = tmp_path / "toy.yaml"
    file.write_text(
        "name: toy\ntask: gaussian\nbase: {model: toy, sigma: 30, widths: [3, 6, 2], activation: tanh}\n"
        "axes: {grid: {slope: [0.25, 0.5]}}\n"
    )
    runs = read_sweep(file).runs
    assert len({run.id for run in runs}) == 2
    assert [run.config["slope"] for run in runs] == [0.25, 0.5]
