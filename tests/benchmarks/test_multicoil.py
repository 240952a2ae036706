"""The comparison of methods for several coils: its parts on images whose answers are known."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import sigpy.mri

from tests.benchmarks import multicoil


@pytest.fixture
def slices(tmp_path: Path) -> Path:
    image = sigpy.shepp_logan((64, 64)).astype(np.complex64)
    path = tmp_path / "slices.h5"
    with h5py.File(path, "w") as file:
        file["image"] = np.repeat(np.stack([image.real, image.imag])[None], 8, axis=0)
        file["scale"] = np.full(8, 3e-6, np.float32)
    return path


def test_simulated_coils_give_the_image_back(slices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multicoil, "NOISE", 0)
    (one,) = multicoil.simulated(slices, [0], lambda width: np.ones(width, bool))
    image = abs(sigpy.shepp_logan((64, 64)))
    np.testing.assert_allclose(one.reference, image / image.max(), atol=1e-5)
    assert multicoil.scores(one.reference, multicoil.reconstructed("zero-filled", one, 0))[1] == 1


def test_scores_in_the_head_do_not_see_units_or_background() -> None:
    reference = np.zeros((20, 20), np.float32)
    reference[5:15, 5:15] = np.linspace(1, 2, 100).reshape(10, 10)
    image = 7 * reference
    image[:3] = 5
    np.testing.assert_allclose(multicoil.in_the_head(reference, image), reference, rtol=1e-6)


def test_report_of_all_methods(
    slices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multicoil, "CANDIDATES", dict.fromkeys(multicoil.CANDIDATES, (1e-2,)))
    monkeypatch.setattr(multicoil, "COILS", 3)
    monkeypatch.setattr(multicoil, "CHOSEN_ON", 1)
    monkeypatch.setattr(multicoil, "MASKS", {"equispaced": multicoil.equispaced})
    image = sigpy.shepp_logan((64, 64)) * sigpy.mri.birdcage_maps((3, 64, 64))
    kspace = sigpy.fft(image, axes=(-2, -1)).astype(np.complex64)
    kspace[:, ::2, :20] = 0
    np.save(tmp_path / "real.npy", kspace)
    words = ["--train", slices, "--test", slices, "--real", tmp_path / "real.npy"]
    words += ["--json", tmp_path / "report.json", "--figure", tmp_path / "figure.png"]
    multicoil.main([*map(str, words)])
    report = json.loads((tmp_path / "report.json").read_text())
    kinds = ("simulated coils", "measured", "measured, at its places", "measured, filled in")
    assert set(report) == {
        f"{kind}, {mask}, {method}"
        for kind in kinds
        for mask in multicoil.MASKS
        for method in multicoil.METHODS
    }
    assert np.isfinite([*report.values()]).all()
    assert (tmp_path / "figure.png").stat().st_size > 10_000
