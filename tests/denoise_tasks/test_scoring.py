"""The scoring loop: what is scored and in which order, what methods are told, and the tables."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from denoise_tasks import scoring
from denoise_tasks.cases import Case, find_cases
from denoise_tasks.evaluate import EvaluateConfig
from denoise_tasks.methods import Denoiser
from denoise_tasks.scoring import Result, Row, score_cases, to_csv, to_json, to_markdown
from img2img_recon.support.errors import InputError
from tests.denoise_tasks.conftest import with_noise


class Recorder(Denoiser):
    """Gives back what it gets, times a factor, and remembers it."""

    def __init__(self, name: str, factor: float = 1.0, slow: bool = False, needs: bool = True):
        self.name, self.factor, self.slow, self.needs_sigma = name, np.float32(factor), slow, needs
        self.told: list[float | None] = []

    def denoise(self, noisy, sigma):
        self.told.append(sigma)
        return noisy * self.factor


def some_cases(count: int = 3, sigma: float | None = 25, protocol: str = "standard") -> list[Case]:
    def load(number: int) -> tuple[np.ndarray, np.ndarray]:
        clean = np.full((40, 40 + number, 3), 0.5, np.float32)
        return clean, with_noise(clean, 25 / 255, number)

    return [Case(f"{n}.png", partial(load, n), sigma, protocol) for n in range(count)]


def psnr(image: np.ndarray) -> float:
    return -10 * math.log10(np.mean((image.astype(float) - 0.5) ** 2))


@pytest.mark.parametrize("protocol", ["standard", "paper", "pairs"])
def test_results_are_clipped_and_rounded_as_the_protocol_says(protocol):
    case = some_cases(1, None if protocol == "pairs" else 25, protocol)
    result = score_cases("t", case, [Recorder("double", 2)])
    _, noisy = case[0].load()
    expected = (2 * noisy).clip(0, 1)
    if protocol != "paper":
        expected = np.round(expected * 255) / 255
    assert result.methods() == ["noisy", "double"]
    assert result.scores("double")["0.png"]["psnr"] == pytest.approx(psnr(expected), abs=1e-4)
    assert result.scores("noisy")["0.png"]["psnr"] == pytest.approx(psnr(noisy), abs=1e-4)


def test_what_methods_are_told():
    one = some_cases(1)
    for source, low, high in (("given", 25, 25), ("oracle", 24, 26), ("estimated", 23, 27)):
        method, other = Recorder("method"), Recorder("other", needs=False)
        score_cases("t", one, [method, other], sigma_source=source)
        assert low / 255 <= method.told[0] <= high / 255
        assert other.told == [None]
    method = Recorder("method")
    flat = np.full((64, 64, 3), 0.5, np.float32)
    score_cases(
        "t",
        [Case("flat", lambda: (flat, flat), 25, "standard")],
        [method],
        sigma_source="estimated",
    )
    assert 0 < method.told[0] < 1 / 255, "methods take no noise for an error"
    method = Recorder("method")
    score_cases("t", some_cases(1, None, "pairs"), [method])
    assert method.told[0] == pytest.approx(25 / 255, rel=0.05), "real noise: the oracle"


def test_slow_methods_see_chunks_and_only_so_many_images(monkeypatch):
    monkeypatch.setattr(scoring, "CHUNK_PIXELS", 40 * 41 * 2)
    fast, slow = Recorder("fast"), Recorder("slow", slow=True)
    drawn = []
    result = score_cases(
        "t",
        some_cases(5),
        [fast, slow],
        slow_images=3,
        workers=1,
        draw=lambda number, case, images, clean: drawn.append((number, case.name, list(images))),
        panels=4,
    )
    assert len(fast.told) == 5
    assert len(slow.told) == 3
    assert list(result.scores("slow")) == ["0.png", "1.png", "2.png"]
    assert drawn == [
        *((n, f"{n}.png", ["noisy", "fast", "slow"]) for n in range(3)),
        (3, "3.png", ["noisy", "fast"]),
    ]
    assert [(method, count) for method, count, _ in result.means()] == [
        ("noisy", 5),
        ("fast", 5),
        ("noisy", 3),
        ("fast", 3),
        ("slow", 3),
    ]


def test_an_image_too_small_for_ssim_is_named():
    tiny = np.zeros((10, 40, 3), np.float32)
    with pytest.raises(InputError, match=r"tiny.png: 10 x 40 is too small"):
        score_cases("t", [Case("tiny.png", lambda: (tiny, tiny), 25, "standard")], [])


def test_tables_hold_every_score():
    rows = [
        Row("a", "noisy", {"psnr": 20.0, "ssim": 0.5}),
        Row("a", "tv", {"psnr": math.inf, "ssim": 1.0}),
        Row("b", "noisy", {"psnr": 22.0, "ssim": 0.7}),
    ]
    result = Result("title", "standard", rows)
    content = json.loads(json.dumps(to_json([result], {"split": "all"}), allow_nan=False))
    assert content["split"] == "all"
    assert content["results"][0]["images"]["tv"]["a"] == {"psnr": None, "ssim": 1.0}
    assert content["results"][0]["means"][0] == {
        "method": "noisy",
        "images": 2,
        "psnr": 21.0,
        "ssim": pytest.approx(0.6),
    }
    lines = to_csv([result]).splitlines()
    assert lines[0] == "data,protocol,image,method,psnr,ssim"
    assert lines[1] == "title,standard,a,noisy,20.0000,0.50000"
    assert "title,standard,mean of 2,noisy,21.0000,0.60000" in lines
    text = to_markdown([result], str.upper)
    assert "| NOISY | 2 | 21.00 | 0.6000 |" in text
    assert "| b | 22.00 / 0.7000 | - |" in text


def test_pictures_are_named_by_their_place_and_made_of_as_many_channels(photos: Path):
    for channels in (1, 3):
        config = EvaluateConfig(method=("tv",), data_path=photos, sigma=(25,), limit=2)
        runs = [SimpleNamespace(in_chans=channels, config={})]
        ((title, cases),) = find_cases(config, runs)
        assert title == f"{photos.name}, sigma 25"
        assert [case.name for case in cases] == ["class0/0.png", "class0/1.png"]
        clean, noisy = cases[0].load()
        assert clean.shape == noisy.shape == (48, 48, channels)
        assert np.std(noisy - clean) * 255 == pytest.approx(25, rel=0.1)
