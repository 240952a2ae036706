"""The MLP that estimates noise: it learns the levels it is given, and its command writes what is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from denoise_tasks import train_noise_level as training
from img2img_recon.noise_level import SCALE, statistics


def test_members_become_one_mlp_that_gives_the_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "STEPS", 1500)
    monkeypatch.setattr(training, "HIDDEN", (8, 6))
    rows = np.random.default_rng(0).normal(2, 3, (512, 3)).astype(np.float32)
    levels = np.exp(rows[:, 0] / 3 + 1.5).astype(np.float64)
    arrays = training.fit(rows, levels, seed=0)
    assert arrays["1.weight"].shape == (6 * training.MEMBERS, 8 * training.MEMBERS)
    hidden = rows.T
    for i in range(3):
        hidden = arrays[f"{i}.weight"] @ hidden + arrays[f"{i}.bias"][:, None]
        hidden = np.maximum(hidden, 0) if i < 2 else hidden
    found = SCALE * np.expm1(hidden[0])
    assert np.median(np.abs(found / levels - 1)) < 0.05


def test_examples_are_pictures_and_say_a_level() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (90, 100, 3)).astype(np.uint8)
    levels = []
    for seed in range(60):
        noisy, level = training.example(picture, np.random.default_rng(seed))
        assert noisy.ndim == 3
        assert noisy.shape[2] == 3
        levels.append(level)
    assert 0 in levels
    assert 5 < max(levels) < 2 * training.SIGMA_MAX


def test_the_command_writes_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "STEPS", 2)
    pixels = np.random.default_rng(0).integers(0, 255, (80, 96, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    out = tmp_path / "out.safetensors"
    training.main(["--data_path", str(tmp_path), "--out", str(out), "--examples", "12"])
    arrays = load_file(out)
    width = training.MEMBERS * training.HIDDEN[0]
    assert arrays["0.weight"].shape == (width, len(statistics(pixels / 255)))
    assert all(np.isfinite(value).all() for value in arrays.values())
