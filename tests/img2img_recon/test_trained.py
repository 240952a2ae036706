"""Networks by name, file and run: what is saved is loaded again, and what cannot be opened is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from img2img_recon import InputError, Residual, build_model, load
from img2img_recon.trained import shipped

IMAGE = torch.rand(1, 3, 40, 50, generator=torch.Generator().manual_seed(0))


def test_every_network_that_comes_with_the_package_is_small_described_and_opens() -> None:
    assert "denoise-color" in shipped()
    for name, path in shipped().items():
        assert path.stat().st_size <= 4_000_000
        card = path.with_suffix(".md").read_text()
        for word in (name, "Data", "Recipe", "Limits", "Scores", "Intended use"):
            assert word in card, (name, word)
        assert load(name).description["name"] == name


def test_what_is_saved_is_loaded_again(tmp_path: Path) -> None:
    network = load("denoise-color")
    network.save(tmp_path / "copy.safetensors")
    copy = load(tmp_path / "copy.safetensors")
    assert copy.description == network.description
    with torch.no_grad():
        assert torch.equal(copy(IMAGE, 0.1), network(IMAGE, 0.1))
    bare = build_model("dncnn", depth=3, chans=4)
    bare.save(str(tmp_path / "bare.safetensors"))
    assert torch.equal(load(tmp_path / "bare.safetensors")(IMAGE), bare.eval()(IMAGE))


def test_weights_of_half_precision_are_single_precision_once_loaded(tmp_path: Path) -> None:
    path = shipped()["denoise-color"]
    halved = {key: w.half() for key, w in load_file(path).items()}
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        save_file(halved, tmp_path / "half.safetensors", file.metadata())
    network = load(tmp_path / "half.safetensors")
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    with torch.no_grad():
        assert (network(IMAGE, 0.1) - load("denoise-color")(IMAGE, 0.1)).abs().max() < 2e-3


def test_what_cannot_be_opened_or_saved(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("no weights")
    save_file({"a": torch.zeros(2)}, tmp_path / "bare.safetensors")
    described: dict[str, Any] = {"task": "denoising", "model": "linear_mixer", "options": {}}
    from img2img_recon.weights_file import write_weights

    write_weights(tmp_path / "other.safetensors", {"a": torch.zeros(2)}, described)
    for source, message in (
        ("denoise-colour", "did you mean 'denoise-color'.*allowed: denoise-.*run folder"),
        (tmp_path / "missing.safetensors", "there is no network"),
        (tmp_path, "no checkpoint in this folder"),
        (tmp_path / "text.safetensors", "not a safetensors file"),
        (tmp_path / "bare.safetensors", "do not say"),
        (tmp_path / "other.safetensors", "another network"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            load(source)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="of the task denoising; allowed: mri"):
        load("denoise-color", tasks=("mri",))
    network = load("denoise-color")
    with pytest.raises(InputError, match=r"ends in \.safetensors"):
        network.save(tmp_path / "weights.pt")
    with pytest.raises(InputError, match="does not say how it was built"):
        Residual(build_model("window_mixer_tiny")).save(tmp_path / "a.safetensors")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        network.save(tmp_path / "file" / "a.safetensors")


def test_networks_of_mri_are_opened_by_their_own_package(tmp_path: Path) -> None:
    """By the same `load`, though they map k-space and not images."""
    pytest.importorskip("fastmri")
    from fastmri_plugin.module import build_network
    from fastmri_plugin.shipped import package
    from fastmri_plugin.task import KSPACE_MODELS

    options = KSPACE_MODELS["unrolled_mixer"].complete("unrolled_mixer", {"cascades": 1})
    network = build_network("unrolled_mixer", options)
    path = tmp_path / "mri-mine.safetensors"
    package(path, network.state_dict(), options, "multicoil")
    opened = load(path, tasks=("mri",))
    for key, weight in network.state_dict().items():
        assert torch.equal(opened.state_dict()[key], weight)
