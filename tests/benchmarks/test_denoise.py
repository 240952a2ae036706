"""The benchmarks of denoising: complete reports, and bad input is one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from img2img_recon.networks.zoo import build_model
from img2img_recon.support.errors import InputError
from tests.benchmarks import denoise as benchmark
from tests.benchmarks import denoise_loader
from tests.denoise_tasks.conftest import make_run


@pytest.mark.slow
def test_benchmark_of_denoising(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_run = make_run(tmp_path / "run")
    report_file = tmp_path / "report.json"
    words = ["--run", tiny_run, "--megapixels", 0.05, "--repeats", 1, "--json", report_file]
    benchmark.main(["denoise", *map(str, words)])
    report = json.loads(report_file.read_text())
    assert report["width"] * report["height"] == pytest.approx(50_000, rel=0.02)
    for name in ("run", "unet"):
        assert report[name]["megapixels_per_second"] > 0
        assert report[name]["peak_mb"] >= report[name]["start_mb"] > 0
    printed = capsys.readouterr().out
    assert "img2img_mixer, tiles" in printed
    assert "unet of" in printed


def test_benchmark_takes_the_unet_of_equal_size() -> None:
    table = {
        chans: sum(p.numel() for p in build_model("unet", chans=chans).parameters())
        for chans in range(1, 25)
    }
    for wanted in (1, 197_000, 1_000_000, 3_400_000):
        nearest = min(table, key=lambda chans: abs(table[chans] - wanted))
        assert benchmark.unet_of_size(wanted, 3) == nearest


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give one of denoise"),
        (["nonsense"], "give one of denoise"),
        (["denoise"], "run"),
        (["denoise", "--run", "missing", "--megapixels", "0"], "--megapixels: given 0"),
        (["denoise", "--run", "missing", "--repeats", "0"], "--repeats: given 0"),
        (["denoise", "--run", "missing", "--unet_chans", "0"], "--unet_chans: given 0"),
        (["denoise", "--run", "missing"], "there is no network 'missing'"),
    ],
)
def test_bad_input_of_the_benchmark(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        benchmark.main(words)


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
