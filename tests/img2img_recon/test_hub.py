"""Folders as the Hugging Face hub has them: written, opened again, and cards that say what the weights reach."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from img2img_recon import InputError, Residual, build_model, from_pretrained, load
from img2img_recon.trained import WRAPPERS, shipped

IMAGE = torch.rand(1, 3, 20, 30, generator=torch.Generator().manual_seed(0))


def front_matter(card: str) -> dict[str, Any]:
    _, front, _ = card.split("---\n", 2)
    return yaml.safe_load(front)


def test_a_network_of_ones_own_with_its_scores(tmp_path: Path) -> None:
    network = WRAPPERS["residual"](build_model("dncnn", depth=3, chans=4)).eval()
    network.description = {
        **{"task": "gaussian", "model": "dncnn", "wrapper": "residual", "sigma": [25.0]},
        **{"options": {"depth": 3, "chans": 4}, "data_path": "/home/somebody"},
    }
    metrics = {"psnr": 30.25, "ssim": 0.875}
    network.save_pretrained(tmp_path / "mine", metrics=metrics, dataset="my photographs")
    names = {path.name for path in (tmp_path / "mine").iterdir()}
    assert names == {"config.json", "model.safetensors", "README.md"}
    for opened in (load(tmp_path / "mine"), from_pretrained(str(tmp_path / "mine"))):
        with torch.no_grad():
            assert torch.equal(opened(IMAGE), network(IMAGE))
    config = json.loads((tmp_path / "mine" / "config.json").read_text())
    assert config["options"] == {"depth": 3, "chans": 4}
    for path in (tmp_path / "mine").iterdir():
        assert b"somebody" not in path.read_bytes()
    card = (tmp_path / "mine" / "README.md").read_text()
    (entry,) = front_matter(card)["model-index"]
    (result,) = entry["results"]
    assert {one["type"]: one["value"] for one in result["metrics"]} == metrics
    assert result["dataset"]["name"] == "my photographs"
    assert "| psnr | 30.25 |" in card


def test_every_score_in_front_of_a_shipped_card_stands_in_its_text() -> None:
    for name, path in shipped().items():
        card = path.with_suffix(".md").read_text()
        _, front, text = card.split("---\n", 2)
        (entry,) = front_matter(card)["model-index"]
        assert entry["name"] == name
        for result in entry["results"]:
            for metric in result["metrics"]:
                assert f"{metric['type']}, value: " in front
                assert f"{metric['value']:g}" in text, (name, metric)


def test_a_shipped_network_keeps_its_card_while_its_weights_are_its_own(tmp_path: Path) -> None:
    network = load("denoise-grey")
    network.save_pretrained(tmp_path / "same")
    own = shipped()["denoise-grey"]
    assert (tmp_path / "same" / "README.md").read_text() == own.with_suffix(".md").read_text()
    stored, copied = load_file(own), load_file(tmp_path / "same" / "model.safetensors")
    assert stored.keys() == copied.keys()
    assert all(torch.equal(copied[key], value.float()) for key, value in stored.items())
    with torch.no_grad():
        next(network.parameters()).add_(1)
    network.save_pretrained(tmp_path / "changed")
    assert "model-index" not in (tmp_path / "changed" / "README.md").read_text()


def test_a_network_of_mri_is_opened_from_its_folder(tmp_path: Path) -> None:
    pytest.importorskip("fastmri")
    from fastmri_plugin.trained import TrainedNetwork

    network = load("mri-brain-singlecoil")
    network.save_pretrained(tmp_path)
    assert load(tmp_path, tasks=("mri",)).description == network.description
    assert TrainedNetwork(tmp_path).challenge == "singlecoil"


def test_what_cannot_be_written_or_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="does not say how it was built"):
        Residual(build_model("window_mixer_tiny")).save_pretrained(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"owner/name: no such folder.*pip install hugg"):
        from_pretrained("owner/name")
    with pytest.raises(InputError, match="did you mean 'denoise-color'"):
        from_pretrained("denoise-colour")
    with pytest.raises(InputError, match="no checkpoint in this folder"):
        from_pretrained(tmp_path)
