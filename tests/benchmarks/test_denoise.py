"""The benchmarks of denoising: complete reports, and bad input is one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from img2img_recon import load
from img2img_recon.support.errors import InputError
from tests.benchmarks import denoise as benchmark
from tests.benchmarks import denoise_loader, denoising_trials
from tests.denoise_tasks.conftest import make_run


@pytest.mark.slow
def test_benchmark_of_denoising(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = make_run(tmp_path / "run")
    scores = tmp_path / "results.json"
    means = [{"method": "tv", "images": 3, "psnr": 27.5}, {"method": "tv", "images": 1, "psnr": 9}]
    scores.write_text(json.dumps({"results": [{"title": "cats, sigma 25", "means": means}]}))
    report, figure = tmp_path / "report.json", tmp_path / "figure.png"
    sizes = ["--megapixels", 0.05, "--classical_megapixels", 0.02, "--repeats", 1]
    outputs = ["--scores", scores, "--json", report, "--figure", figure]
    benchmark.main([*map(str, [network, "tv", *sizes, *outputs])])
    found = json.loads(report.read_text())
    assert set(found) == {"run", "tv"}
    assert all(row["seconds_per_megapixel"] > 0 and row["peak_mb"] > 0 for row in found.values())
    assert found["run"]["ratio"] == [1, 1, 1]
    assert found["run"]["parameters"] > 0
    assert (found["tv"]["parameters"], found["tv"]["psnr"]) == (None, 27.5)
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert "27.50" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "method"),
        (["tv", "--megapixels", "0"], "--megapixels"),
        (["tv", "--figure", "a.png"], "--figure: needs --scores"),
        (["missing"], "missing: a pass over the picture failed: .*missing"),
    ],
)
def test_bad_input_of_the_benchmark(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        benchmark.main(words)


def test_equal_trials_learn_and_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"embed_dims": (8,), "depths": (2,)}
    trials = {"a": denoising_trials.Trial(options=tiny, crop=64), "b": denoising_trials.Trial()}
    monkeypatch.setattr(denoising_trials, "TRIALS", trials)
    monkeypatch.setattr(denoising_trials, "SCORED_SIDE", 64)
    rng = np.random.default_rng(0)
    for number in range(3):
        slope = np.linspace(0, 1, 80) * rng.uniform(0.3, 1, (3, 80, 1))
        Image.fromarray((255 * slope.transpose(1, 2, 0)).astype(np.uint8)).save(
            tmp_path / f"{number}.png"
        )
    words = ["--data_path", tmp_path, "--out", tmp_path / "out", "--trials", "a", "--sigma", 50]
    denoising_trials.main([*map(str, words), "--seconds", "2"])
    report = json.loads((tmp_path / "out/trials.json").read_text())
    first, _, last = (scores["PSNR (dB)"] for _, scores in report["a"]["curve"])
    assert last == report["a"]["PSNR (dB)"] > first + 0.05
    assert load(tmp_path / "out/a.safetensors")(torch.zeros(1, 3, 20, 30)).shape == (1, 3, 20, 30)
    before = (tmp_path / "out/a.safetensors").stat().st_mtime_ns
    denoising_trials.main([*map(str, words), "--seconds", "2"])
    assert (tmp_path / "out/a.safetensors").stat().st_mtime_ns == before


@pytest.mark.slow
def test_the_loader_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(denoise_loader, "STEPS", 6)
    words = ["--task", "gaussian", "--embed_dim", "4", "--depth", "1", "--accelerator", "cpu"]
    denoise_loader.main([*words, "--batch_size", "2", "--crops_per_image", "1"])
    report = json.loads(capsys.readouterr().out)
    assert report["training_images_per_s"] > 0
    assert 0 < report["share_waiting"] < 1
    assert report["loader_alone_images_per_s"] > 0
