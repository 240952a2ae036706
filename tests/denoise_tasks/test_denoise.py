"""The script that denoises files: what goes in comes out, methods and runs alike, and what is refused."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage import data as photographs
from torch import Tensor

import img2img_recon
from denoise_tasks import checked_pictures, denoise, pictures, trained
from denoise_tasks import sidd_benchmark as sidd
from denoise_tasks.methods import METHODS, TotalVariation
from denoise_tasks.pictures import Metadata, Picture, read_picture, write_picture
from denoise_tasks.trained import TrainedDenoiser
from img2img_recon.support.errors import InputError
from tests.denoise_tasks.conftest import denoiser, picture, psnr

RNG = np.random.default_rng(0)
PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Make the script find a network in any run."""
    asked: list[str] = []

    def install(function: Callable[[Tensor], Tensor] = lambda x: x, **network: Any) -> list[str]:
        def load(source: str, accelerator: str, **options: Any) -> TrainedDenoiser:
            asked.append(source)
            return denoiser(function, **network, **options)

        monkeypatch.setattr(trained, "load_run", load)
        return asked

    install()
    return install


def stored(
    pixels: np.ndarray, alpha: np.ndarray | None, bits: int = 8, metadata: Metadata | None = None
) -> Picture:
    """A picture of samples, from floats in [0, 1]."""
    dtype, largest = (np.uint8, 255) if bits == 8 else (np.uint16, 65535)
    opacity = None if alpha is None else np.rint(alpha * largest).astype(dtype)
    return Picture(np.rint(pixels * largest).astype(dtype), opacity, metadata or Metadata())


def run(*words: object) -> None:
    denoise.main([*map(str, words), "--model", "RUN", "--accelerator", "cpu"])


@pytest.mark.parametrize(
    ("name", "bits", "channels", "alpha"),
    [
        ("a.png", 8, 3, False),
        ("a.png", 16, 3, True),
        ("a.png", 16, 1, False),
        ("a.tif", 16, 3, False),
        ("a.tif", 8, 1, True),
        ("a.webp", 8, 3, True),
        ("a.bmp", 8, 3, False),
    ],
)
@pytest.mark.usefixtures("fake")
def test_a_network_that_changes_nothing_changes_nothing(
    tmp_path: Path, name: str, bits: int, channels: int, alpha: bool
) -> None:
    pixels = picture(90, 70, channels)
    opacity = picture(90, 70, 1)[..., 0] if alpha else None
    like = stored(pixels, opacity, bits, Metadata(dpi=(300.0, 300.0)))
    write_picture(tmp_path / name, pixels, like)
    run(tmp_path / name, "--out", tmp_path / "out")
    before, after = read_picture(tmp_path / name), read_picture(tmp_path / "out" / name)
    assert np.array_equal(after.pixels, before.pixels)
    assert after.bits == before.bits
    assert after.metadata == before.metadata
    assert (before.alpha is not None) == (after.alpha is not None) == alpha
    if before.alpha is not None and after.alpha is not None:
        assert np.array_equal(before.alpha, after.alpha)


def test_folders_keep_their_structure(
    tmp_path: Path, fake: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = fake(lambda x: x / 2)
    source = tmp_path / "in"
    pixels = picture(20, 30)
    for name in ("a.png", "sub/a.png", "sub/deep/b.TIF"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        write_picture(source / name, pixels)
    (source / "notes.txt").write_text("no picture")
    write_picture(tmp_path / "single.png", pixels)
    out = source / "out"  # inside the input: a second run must not take it for one
    for extra in ((), ("--overwrite",)):
        run(source, tmp_path / "single.png", "--out", out, *extra)
        made = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
        assert made == ["a.png", "single.png", "sub/a.png", "sub/deep/b.TIF"]
    halved = read_picture(out / "sub/deep/b.TIF").pixels
    assert np.abs(halved - pixels / 2).max() < 0.51 / 255 + 0.26 / 255
    assert asked == ["RUN"] * 2
    printed = capsys.readouterr()
    assert "4 pictures" in printed.out
    assert "denoising: 4/4" in printed.err


@pytest.mark.usefixtures("fake")
def test_self_ensemble_and_tile(tmp_path: Path) -> None:
    pixels = picture(90, 130)
    write_picture(tmp_path / "a.png", pixels)
    run(tmp_path / "a.png", "--out", tmp_path / "o", "--self-ensemble", "--tile", 64)
    assert np.array_equal(
        read_picture(tmp_path / "o/a.png").pixels, read_picture(tmp_path / "a.png").pixels
    )


@pytest.mark.parametrize(
    ("sigma", "options", "words"),
    [
        ("20.5", {}, None),
        ("29", {}, None),
        ("31", {}, "noise of sigma 31 given, the network was trained for 25: noise will be left"),
        ("15", {}, "too much is removed"),
        ("15", {"sigma": None, "task": "pairs"}, "trained on real noise"),
    ],
)
def test_stated_level(
    tmp_path: Path,
    fake: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
    sigma: str,
    options: dict[str, Any],
    words: str | None,
) -> None:
    fake(**options)
    write_picture(tmp_path / "a.png", picture(20, 30))
    run(tmp_path / "a.png", "--out", tmp_path / "out", "--sigma", sigma)
    error = capsys.readouterr().err
    assert (words in error) if words else ("warning" not in error)


@pytest.mark.parametrize(("sigma", "warned"), [(25, False), (50, True), (10, True)])
@pytest.mark.usefixtures("fake")
def test_estimated_level(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sigma: float, warned: bool
) -> None:
    y, x = np.mgrid[:200, :300] / 60
    clean = np.stack([0.5 + 0.15 * np.sin(x + i) * np.cos(y) for i in range(3)], axis=2)
    noisy = clean + RNG.normal(0, sigma / 255, clean.shape)
    name = tmp_path / "a.png"
    write_picture(name, noisy.astype(np.float32))
    run(name, "--out", tmp_path / "out", "--sigma", "auto")
    error = capsys.readouterr().err
    assert (f"warning: {name}: noise of sigma" in error) == warned
    assert (tmp_path / "out/a.png").exists()


@pytest.mark.usefixtures("fake")
def test_a_picture_smaller_than_a_block_is_denoised(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", picture(3, 4))
    run(tmp_path / "a.png", "--out", tmp_path / "out", "--sigma", "auto")
    assert read_picture(tmp_path / "out/a.png").pixels.shape == (3, 4, 3)


@pytest.mark.parametrize("kept", [checked_pictures.KEPT_PIXELS, 1500])
def test_pictures_are_decoded_once_as_far_as_memory_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int, fake: Callable[..., list[str]]
) -> None:
    fake(lambda x: x / 2)
    decoded: list[str] = []
    read, decode = pictures.read_picture, pictures._read
    monkeypatch.setattr(checked_pictures, "KEPT_PIXELS", kept)
    monkeypatch.setattr(
        pictures, "_read", lambda path, file: decoded.append(path.name) or decode(path, file)
    )
    for number in range(3):
        write_picture(tmp_path / "in" / f"{number}.png", picture(20 + number, 50))
    run(tmp_path / "in", "--out", tmp_path / "out", "--sigma", "auto")
    again = [] if kept > 1500 else ["1.png", "2.png"]
    assert decoded == ["0.png", "1.png", "2.png", *again]
    monkeypatch.setattr(pictures, "_read", decode)
    for number in range(3):
        before = read(tmp_path / "in" / f"{number}.png").pixels
        after = read(tmp_path / "out" / f"{number}.png").pixels
        assert np.abs(after - before / 2).max() < 0.51 / 255


def with_method(*words: object) -> None:
    denoise.main(list(map(str, words)))


def test_a_classical_method_is_told_the_noise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    y, x = np.mgrid[:64, :96] / 30
    clean = np.stack([0.5 + 0.2 * np.sin(x + i) * np.cos(y) for i in range(3)], axis=2)
    source, out = tmp_path / "a.png", tmp_path / "out"
    write_picture(source, (clean + RNG.normal(0, 25 / 255, clean.shape)).astype(np.float32))
    noisy = read_picture(source).pixels
    with_method(source, "--out", out, "--method", "tv", "--sigma", 25)
    expected = TotalVariation().denoise(noisy, 25 / 255)
    assert np.abs(read_picture(out / "a.png").pixels - expected).max() < 0.51 / 255
    with_method(source, "--out", out, "--method", "tv", "--sigma", "auto", "--overwrite")
    assert "noise of about sigma 2" in capsys.readouterr().err
    assert np.abs(read_picture(out / "a.png").pixels - clean).std() < 12 / 255
    flat = tmp_path / "flat.png"
    write_picture(flat, np.full((40, 40, 3), 0.5, np.float32))
    for method in METHODS:
        with_method(flat, "--out", tmp_path / method, "--method", method, "--sigma", "auto")
        before, after = (
            read_picture(flat).pixels,
            read_picture(tmp_path / method / "flat.png").pixels,
        )
        assert np.abs(after - before).max() < 1.1 / 255


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--method", "median", "--sigma", 9), "--method: given median, allowed: bm3d"),
        (("--method", "tv", "--model", "r"), "--model, --method: give one of them"),
        (
            ("--model", "denoise-colour"),
            "no network 'denoise-colour' .*mean 'denoise-color'.*run folder",
        ),
    ],
)
def test_what_methods_refuse(tmp_path: Path, words: tuple[object, ...], message: str) -> None:
    write_picture(tmp_path / "a.png", picture(7, 9))
    with pytest.raises(InputError, match=message):
        with_method(tmp_path / "a.png", "--out", tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


def test_bad_input(tmp_path: Path, fake: Callable[..., list[str]]) -> None:
    good, folder = tmp_path / "good.png", tmp_path / "in"
    write_picture(good, picture(20, 30))
    for name in ("a.png", "sub/a.png", "sub/b.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_picture(folder / name, picture(20, 30))
    broken = tmp_path / "broken"
    broken.mkdir()
    write_picture(broken / "a.png", picture(20, 30))
    for name in ("b.png", "c.png"):
        (broken / name).write_bytes(good.read_bytes()[:-400])
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.gif").write_bytes(b"GIF89a")
    (tmp_path / "alpha.bmp").write_bytes(b"")
    with_alpha = stored(picture(20, 30), np.ones((20, 30)))
    write_picture(tmp_path / "alpha.png", with_alpha.pixels, with_alpha)
    (tmp_path / "alpha.png").rename(tmp_path / "alpha.jpg")  # a PNG file under another name
    (tmp_path / "file").touch()
    out = tmp_path / "out"
    for words, message in (
        ([tmp_path / "missing.png", "--out", out], r"missing\.png: no such file"),
        ([tmp_path / "empty", "--out", out], "no picture in this folder"),
        ([tmp_path / "a.gif", "--out", out], r"a\.gif: no picture's ending, allowed: \.png"),
        ([tmp_path / "alpha.jpg", "--out", out], "alpha channel"),
        ([tmp_path / "alpha.bmp", "--out", out], r"alpha\.bmp: an empty file, not a picture"),
        ([broken / "b.png", "--out", out], r"broken/b\.png: truncated or broken"),
        ([folder, folder / "sub/b.png", "--out", out], r"b\.png: given twice"),
        ([folder, folder / "sub", "--out", out], r"sub/a\.png: given twice"),
        ([good, good, "--out", out], "given twice"),
        ([good, "--out", tmp_path], r"--out: .*good\.png is an input"),
        ([folder, "--out", folder, "--overwrite"], "is an input"),
        ([good, "--out", tmp_path / "file"], "--out: .*cannot be written"),
        ([good, "--out", out, "--sigma", "-3"], "--sigma: given -3"),
        ([good, "--out", out, "--sigma", "101"], "--sigma: given 101"),
        (
            [good, "--out", out, "--sigma", "0.1"],
            "--sigma: given 0.1.* 0.1 of white .*--sigma 25.5",
        ),
        ([good, "--out", out, "--strength", "1.5"], "--strength: given 1.5"),
        ([good, "--out", out, "--sigma", "nan"], "--sigma: given nan"),
        ([good, "--out", out, "--sigma", "much"], "--sigma: given much; allowed: .* auto"),
        ([good, "--out", out, "--tile", "0"], "--tile: given 0"),
        ([good, "--out", out, "--typo", "1"], "typo"),
        (["--out", out], "inputs"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            run(*words)
        assert "\n" not in str(caught.value)
        assert not out.exists()
    assert not list(tmp_path.rglob("out"))


@pytest.mark.usefixtures("fake")
def test_nothing_is_overwritten_without_being_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.png", "b.png"):
        write_picture(tmp_path / name, picture(20, 30))
    out = tmp_path / "out"
    run(tmp_path / "b.png", "--out", out)
    (out / "b.png").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"--out: .*b\.png exists; give --overwrite"):
        run(tmp_path / "b.png", "--out", out)
    both = (tmp_path / "a.png", tmp_path / "b.png", "--out", out)
    run(*both)
    assert (out / "b.png").read_bytes() == b"mine"
    assert read_picture(out / "a.png").samples.shape == (20, 30, 3)
    assert "1 of 2 results are in" in capsys.readouterr().err
    (out / "a.png").write_bytes(b"mine too")
    run(*both)
    assert (out / "a.png").read_bytes() == b"mine too"
    assert "denoised: 0 pictures" in capsys.readouterr().out
    run(*both, "--overwrite")
    for name in ("a.png", "b.png"):
        assert np.array_equal(
            read_picture(out / name).samples, read_picture(tmp_path / name).samples
        )


@pytest.mark.usefixtures("fake")
def test_broken_pictures_are_listed_and_the_others_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    for number in range(5):
        write_picture(source / f"{number}.png", picture(20, 30))
    for name in ("1.png", "3.png"):
        (source / name).write_bytes((source / name).read_bytes()[:-400])
    (source / "x.heic").touch()
    for count in (3, 0):
        with pytest.raises(SystemExit) as caught:
            run(source, "--out", out)
        assert caught.value.code == 1
        printed = capsys.readouterr()
        assert f"denoised: {count} pictures" in printed.out
        assert sorted(path.name for path in out.iterdir()) == ["0.png", "2.png", "4.png"]
        *_, words, first, second = printed.err.splitlines()
        assert words.startswith("left out, 2 that cannot")
        assert first.startswith(f"{source / '1.png'}: truncated")
        assert second.startswith(f"{source / '3.png'}: truncated")
        assert "left out: 1 .heic" in printed.err


def test_after_an_interruption_or_a_full_disk_the_rest_is_done(
    tmp_path: Path,
    fake: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    for number in range(4):
        write_picture(source / f"{number}.png", picture(20, 30))
    calls: list[int] = []

    def interrupted(x: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return x

    fake(interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(source, "--out", out)
    assert "1 of 4 pictures are in" in capsys.readouterr().err
    encode, first = pictures.encode, (out / "0.png").stat().st_mtime_ns

    def full(file: Any, pages: Any, name: Path, size: int = 0) -> None:
        encode(file, pages, name, size)
        if name == out / "2.png":
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with monkeypatch.context() as patch:
        patch.setattr(pictures, "encode", full)
        with pytest.raises(InputError, match=r"2\.png: cannot be written \(Disk quota exceeded\)"):
            run(source, "--out", out)
    assert sorted(path.name for path in out.iterdir()) == ["0.png", "1.png"]
    run(source, "--out", out)
    assert sorted(path.name for path in out.iterdir()) == [f"{number}.png" for number in range(4)]
    assert (out / "0.png").stat().st_mtime_ns == first
    assert len(calls) == 6  # interrupted and refused ones included


def test_a_network_that_gives_nan_writes_nothing(
    tmp_path: Path, fake: Callable[..., list[str]]
) -> None:
    fake(lambda x: x * torch.nan)
    write_picture(tmp_path / "a.png", picture(20, 30))
    with pytest.raises(InputError, match="NaN"):
        run(tmp_path / "a.png", "--out", tmp_path / "out")
    assert not (tmp_path / "out/a.png").exists()


def test_a_run_that_is_none_is_refused(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", picture(20, 30))
    with pytest.raises(InputError, match="no checkpoint in this folder"):
        denoise.main(
            [str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), "--run", str(tmp_path)]
        )
    assert not (tmp_path / "out").exists()


# With a network and in a process of its own


@pytest.mark.slow
def test_script_gives_what_the_network_gives(
    tmp_path: Path, tiny_run: Path, script: Callable[..., Any]
) -> None:
    source, out = tmp_path / "a.png", tmp_path / "out"
    write_picture(source, picture(75, 140), stored(picture(75, 140), None, 16))
    done = script("denoise_tasks/denoise.py", source, "--out", out, "--run", tiny_run)
    assert done.returncode == 0, done.stderr
    pixels = read_picture(source).pixels
    with torch.inference_mode():
        network = img2img_recon.load(tiny_run)
        wanted = network(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    assert not np.allclose(wanted, pixels, atol=0.01)
    given = read_picture(out / "a.png")
    assert given.bits == 16
    assert np.abs(given.pixels - wanted.numpy().clip(0, 1)).max() < 1e-5 + 0.5 / 65535
    done = script("denoise_tasks/denoise.py", source, "--out", out, "--run", tiny_run)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: --out: ")
    assert done.stdout == ""


PICTURES = 80  # so many that a busy machine, too, breaks off before the last


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_folder_that_is_broken_off_is_finished_by_the_same_command(
    tmp_path: Path, tiny_run: Path, number: int, code: int
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    for place in range(PICTURES):
        write_picture(source / f"{place:03}.png", picture(300, 300))
    words = [str(source), "--out", str(out), "--run", str(tiny_run), "--accelerator", "cpu"]
    command = [sys.executable, str(PROJECT / "denoise_tasks/denoise.py"), *words]
    # A shell ignores Ctrl-C for what it runs in the background, and so would all that is started there.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    with process:
        while process.poll() is None and not (out / "001.png").exists():
            time.sleep(0.01)
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
    assert process.returncode == code
    assert "Traceback" not in said
    done = sorted(path for path in out.iterdir() if not path.name.startswith("."))
    assert 2 <= len(done) < PICTURES
    for path in done:
        assert read_picture(path).samples.shape == (300, 300, 3)
    assert number == signal.SIGKILL or len(done) == len(list(out.iterdir()))
    times = [path.stat().st_mtime_ns for path in done]
    denoise.main(words)
    assert len(list(out.glob("[0-9]*.png"))) == PICTURES
    assert [path.stat().st_mtime_ns for path in done] == times


def test_what_trains_is_not_imported_to_denoise(tmp_path: Path, tiny_run: Path) -> None:
    write_picture(tmp_path / "a.png", picture(20, 30))
    code = (
        "import sys; from denoise_tasks.denoise import main; main(sys.argv[1:]);"
        "print('torch' in sys.modules, 'pytorch_lightning' in sys.modules)"
    )
    words = [str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), "--run", str(tiny_run)]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "True False"


# The package's own networks


def test_a_photograph_without_further_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = photographs.astronaut()[:128, 150:300] / 255
    noisy = clean + RNG.normal(0, 20 / 255, clean.shape)
    write_picture(tmp_path / "a.png", noisy.astype(np.float32))
    write_picture(tmp_path / "grey.png", noisy[..., :1].astype(np.float32))
    with_method(tmp_path / "a.png", tmp_path / "grey.png", "--out", tmp_path / "out")
    printed = capsys.readouterr()
    assert "2 pictures" in printed.out
    assert "a.png: noise of about sigma 1" in printed.err or "about sigma 2" in printed.err
    for name, wanted in (("a.png", clean), ("grey.png", clean[..., :1])):
        before, after = read_picture(tmp_path / name).pixels, read_picture(tmp_path / "out" / name)
        assert after.pixels.shape == before.shape
        assert psnr(after.pixels, wanted) > psnr(before, wanted) + 5
    half = ("--strength", 0.5, "--sigma", 20, "--tile", 64)
    with_method(tmp_path / "a.png", "--out", tmp_path / "half", *half)
    with_method(tmp_path / "a.png", "--out", tmp_path / "full", "--sigma", 20)
    source = read_picture(tmp_path / "a.png").pixels
    full = read_picture(tmp_path / "full/a.png").pixels
    difference = read_picture(tmp_path / "half/a.png").pixels - (source + full) / 2
    # At black and white the whole was clipped, of which the half knows nothing.
    assert np.abs(difference[(full > 0) & (full < 1)]).max() < 1.1 / 255


@pytest.mark.parametrize("size", [(9, 9), (1, 40), (3, 3)])
def test_a_picture_smaller_than_a_window(tmp_path: Path, size: tuple[int, int]) -> None:
    write_picture(tmp_path / "a.png", picture(*size))
    with_method(tmp_path / "a.png", "--out", tmp_path / "out", "--sigma", 30)
    assert read_picture(tmp_path / "out/a.png").pixels.shape == (*size, 3)


# The SIDD benchmark


def test_sidd_benchmark(
    tmp_path: Path,
    fake: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from scipy.io import savemat

    for function in ("read_benchmark", "read_submission"):
        whole = getattr(sidd, function)
        monkeypatch.setattr(
            sidd,
            function,
            lambda path, whole=whole: whole(path, (2, 3)),
        )
    noisy = RNG.integers(0, 256, (2, 3, 256, 256, 3), dtype=np.uint8)
    savemat(tmp_path / "noisy.mat", {sidd.BENCHMARK_KEY: noisy})
    fake(lambda x: 1 - x, sigma=None, task="pairs")
    for name in ("submit.csv", "submit.mat"):
        out = tmp_path / name
        run("--sidd_benchmark", tmp_path / "noisy.mat", "--out", out)
        assert np.array_equal(sidd.read_submission(out), 255 - noisy)
        with pytest.raises(InputError, match="overwrite"):
            run("--sidd_benchmark", tmp_path / "noisy.mat", "--out", out)
        capsys.readouterr()
        denoise.main(["--validate-submission", str(out)])
        assert "valid submission" in capsys.readouterr().out
    assert "warning" not in capsys.readouterr().err
    half = ("--out", tmp_path / "half.csv", "--strength", 0.5)
    run("--sidd_benchmark", tmp_path / "noisy.mat", *half)
    assert np.abs(sidd.read_submission(tmp_path / "half.csv") - 127.5).max() < 1
    fake(lambda x: 1 - x, sigma=25, task="denoising")
    run("--sidd_benchmark", tmp_path / "noisy.mat", "--out", tmp_path / "gaussian.csv")
    assert "trained on Gaussian noise" in capsys.readouterr().err
    fake(in_chans=1, sigma=None, task="pairs")
    with pytest.raises(InputError, match="grey"):
        run("--sidd_benchmark", tmp_path / "noisy.mat", "--out", tmp_path / "grey.csv")
    (tmp_path / "submit.csv").write_text("nonsense")
    with pytest.raises(InputError, match="first line"):
        denoise.main([f"--validate_submission={tmp_path / 'submit.csv'}"])


def test_a_classical_method_makes_a_submission_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy = np.zeros((1, 2, 256, 256, 3), np.uint8)
    noisy[:, :, :128] = 200
    monkeypatch.setattr(sidd, "read_benchmark", lambda path: noisy)
    read = sidd.read_submission
    monkeypatch.setattr(sidd, "read_submission", lambda path: read(path, (1, 2)))
    out = tmp_path / "submit.csv"
    words = ("--sidd_benchmark", "noisy.mat", "--out", out, "--method", "tv", "--sigma")
    with_method(*words, "auto")
    found = sidd.read_submission(out).astype(int)
    assert np.abs(found - noisy).max() <= 1
    with pytest.raises(InputError, match="exists"):
        with_method(*words, 40)
    with_method(*words, 40, "--overwrite")
    assert (sidd.read_submission(out)[0, 0, 126] < 198).all()
