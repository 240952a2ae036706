"""Equal trials of unrolled networks: every variant runs, and what is trained learns."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import sigpy

from fastmri_plugin.unrolled_mixer import UnrolledMixer
from tests.benchmarks import mri_trials


@pytest.fixture
def slices(tmp_path: Path) -> Path:
    path = tmp_path / "slices.h5"
    phantom = sigpy.shepp_logan((64, 64)).astype(np.complex64)
    with h5py.File(path, "w") as file:
        images = np.stack([np.roll(phantom, number, 1) for number in range(12)])
        file["image"] = np.stack([images.real, images.imag], 1)
        file["scale"] = np.full(12, 2e-5, np.float32)
        file["block"] = np.arange(12) // 3
    return path


@pytest.mark.slow
def test_a_trial_learns(slices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"cascades": 2, "embed_dims": (8,), "depths": (2,)}
    monkeypatch.setattr(mri_trials, "TRIALS", {"a": mri_trials.Trial(tiny)})
    words = ["--data_path", slices, "--out", tmp_path / "out", "--seconds", 3]
    mri_trials.main([*map(str, words)])
    report = json.loads((tmp_path / "out/trials.json").read_text())["a"]
    first, _, last = (scores["SSIM"] for _, scores in report["curve"])
    assert last == report["SSIM"] > first + 0.01


@pytest.mark.parametrize("name", mri_trials.TRIALS)
def test_every_variant_reconstructs_and_learns(slices: Path, name: str) -> None:
    trial = mri_trials.TRIALS[name]
    data = mri_trials.Data.read(slices, 4, 0)
    assert len(data.train) == 6
    assert len(data.held_out) == 2
    network = UnrolledMixer(**{**mri_trials.SHIPPED, **trial.options, "cascades": 1})
    if trial.change:
        trial.change(network, 64)
    image, mask = data.draw()
    output = mri_trials.reconstructed(network, image, mask)
    assert output.shape == image.shape
    output.sum().backward()
    assert any(weight.grad is not None and weight.grad.any() for weight in network.parameters())
