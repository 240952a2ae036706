from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import denoise_tasks.inference
from denoise_tasks import denoise, sidd
from denoise_tasks.apply import TILE, back, bounded, denoise_pixels, orientations, tiles_at_once
from denoise_tasks.inference import Denoiser, build_module, load_denoiser
from denoise_tasks.pictures import Metadata, Picture, read_picture, write_picture
from img2img_recon.networks.zoo import build_model, model_config
from img2img_recon.support.errors import InputError
from img2img_recon.wrappers import AnySize, Residual
from tests.benchmarks import denoise as benchmark

RNG = np.random.default_rng(0)
TILE_SIDE = 64


class OnTiles(nn.Module):
    """A function of images of TILE_SIDE x TILE_SIDE alone, counting how many it gets at once."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.img_size = (TILE_SIDE, TILE_SIDE)
        self.batches: list[int] = []

    def forward(self, image: Tensor) -> Tensor:
        assert tuple(image.shape[-2:]) == self.img_size
        self.batches.append(len(image))
        return self.function(image)


def denoiser(
    function: Callable[[Tensor], Tensor],
    in_chans: int = 3,
    sigma: float | None = 25.0,
    task: str = "gaussian",
) -> Denoiser:
    return Denoiser(AnySize(OnTiles(function)), "fake", task, sigma, in_chans, {})


def picture(height: int, width: int, channels: int = 3) -> np.ndarray:
    return RNG.random((height, width, channels), dtype=np.float32)


# denoise_pixels


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (64, 64), (63, 65), (200, 333)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("self_ensemble", [False, True])
def test_identity_is_exact(
    size: tuple[int, int], channels: int, in_chans: int, self_ensemble: bool
) -> None:
    pixels = picture(*size, channels)
    output = denoise_pixels(denoiser(lambda x: x, in_chans), pixels, self_ensemble=self_ensemble)
    assert output.dtype == np.float32
    assert output.shape == pixels.shape
    assert np.abs(output - pixels).max() < 1e-6


def test_pixelwise_network_shows_no_tiles() -> None:
    mix = torch.tensor([[0.5, 0.2, 0.1], [0.1, 0.6, 0.1], [0.0, 0.3, 0.4]])
    pixels = picture(201, 157)
    output = denoise_pixels(
        denoiser(lambda x: torch.einsum("oc,bchw->bohw", mix, x) ** 2 + 0.05), pixels
    )
    assert np.abs(output - ((pixels @ mix.numpy().T) ** 2 + 0.05)).max() < 1e-6


def test_network_equivariant_on_the_tile_grid_shows_no_tiles() -> None:
    patch = 4
    matrix = torch.randn(16, 16, generator=torch.Generator().manual_seed(0)) / 8

    def patchwise(image: Tensor) -> Tensor:
        B, C, H, W = image.shape
        patches = image.reshape(B, C, H // patch, patch, W // patch, patch).transpose(3, 4)
        mixed = patches.reshape(B, C, H // patch, W // patch, 16) @ matrix
        return (
            mixed.reshape(B, C, H // patch, W // patch, patch, patch)
            .transpose(3, 4)
            .reshape(B, C, H, W)
        )

    # A quarter of overlap: tiles begin at multiples of 48, which are multiples of the patch.
    pixels = picture(64 + 3 * 48, 64 + 2 * 48)
    output = denoise_pixels(denoiser(patchwise), pixels)
    whole = patchwise(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    assert np.abs(output - whole.numpy()).max() < 1e-6


def test_no_seam_where_a_network_knows_its_place_in_the_tile() -> None:
    tilt = torch.linspace(-0.05, 0.05, TILE_SIDE)
    output = denoise_pixels(
        denoiser(lambda x: x + tilt + tilt[:, None]), np.full((300, 300, 3), 0.5, np.float32)
    )
    # Tiles side by side would jump by 0.1 where they meet; blended, they fade over 16 pixels.
    jumps = [np.abs(np.diff(output, axis=axis)).max() for axis in (0, 1)]
    assert max(jumps) < 0.012
    assert np.abs(output - 0.5).max() <= 0.1 + 1e-6


def test_convolutional_network_is_tiled_without_visible_seams() -> None:
    torch.manual_seed(0)
    network = Residual(AnySize(build_model("dncnn", depth=4, chans=8))).eval()
    pixels = picture(TILE + 90, TILE + 300)
    fake = Denoiser(network, "dncnn", "gaussian", 25.0, 3, {})
    output = denoise_pixels(fake, pixels)
    with torch.inference_mode():
        whole = network(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    # Padding with zeros reaches 4 pixels into a tile, where its weight is small.
    assert np.abs(output - whole.numpy()).max() < 0.2 * float((whole - pixels).abs().max())
    assert np.abs(output - whole.numpy()).mean() < 1e-3 * float((whole - pixels).abs().mean())
    small = pixels[:100, :120]
    with torch.inference_mode():
        whole = network(torch.from_numpy(small).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    assert np.array_equal(denoise_pixels(fake, small), whole.numpy())


def test_tiles_at_once_are_bounded() -> None:
    fake = denoiser(lambda x: x)
    tiles = fake.module.net
    assert isinstance(tiles, OnTiles)
    for tile_batch in (1, 2):
        tiles.batches.clear()
        denoise_pixels(fake, picture(500, 500), tile_batch=tile_batch)
        assert max(tiles.batches) == 16 * tile_batch  # as many pixels as so many of 256 x 256
    assert tiles_at_once((512, 512), 4) == 1
    assert tiles_at_once((512, 512), 1) == 1
    seen: list[tuple[int, ...]] = []

    class AnyConvolution(nn.Module):
        img_size = None

        def forward(self, image: Tensor) -> Tensor:
            seen.append(tuple(image.shape))
            return image

    module = bounded(AnySize(AnyConvolution()), 1000, 300, 4)
    assert module(torch.rand(1, 3, 1000, 300)).shape == (1, 3, 1000, 300)
    assert {shape[2:] for shape in seen} == {(TILE, 300)}


def test_orientations_are_eight_and_undone() -> None:
    image = torch.arange(2 * 3 * 4.0).reshape(1, 2, 3, 4)
    turned = orientations(image)
    assert len({(tuple(view.shape), *view.flatten().tolist()) for view in turned}) == 8
    for number, view in enumerate(turned):
        assert torch.equal(back(view, number), image)


def test_self_ensemble_is_the_mean_over_orientations() -> None:
    weights = torch.rand(TILE_SIDE, TILE_SIDE, generator=torch.Generator().manual_seed(0))
    fake = denoiser(lambda x: x * weights)
    pixels = picture(TILE_SIDE, TILE_SIDE)
    w = weights.numpy()
    turned = [np.rot90(w, k) for k in range(4)]
    mean = np.mean([*turned, *(view[:, ::-1] for view in turned)], axis=0)[..., None]
    assert np.abs(denoise_pixels(fake, pixels, self_ensemble=True) - pixels * mean).max() < 1e-6
    # A network that does not mind flips and turns gives the same with and without.
    blur = denoiser(lambda x: nn.functional.avg_pool2d(x, 3, 1, 1))
    plain = denoise_pixels(blur, pixels)
    assert np.abs(denoise_pixels(blur, pixels, self_ensemble=True) - plain).max() < 1e-6


def test_grey_through_colour_and_colour_through_grey() -> None:
    scale = torch.tensor([0.2, 0.5, 0.8]).view(1, 3, 1, 1)
    grey, colour = picture(70, 80, 1), picture(70, 80, 3)
    output = denoise_pixels(denoiser(lambda x: x * scale, 3), grey)
    assert np.abs(output - 0.5 * grey).max() < 1e-6
    output = denoise_pixels(denoiser(lambda x: x**2, 1), colour)
    assert np.abs(output - colour**2).max() < 1e-6
    with pytest.raises(InputError, match="channels"):
        denoise_pixels(denoiser(lambda x: x, 2), colour)


# The script


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Path]]:
    """Make the script find a network in any run."""
    asked: list[Path] = []

    def install(function: Callable[[Tensor], Tensor] = lambda x: x, **options: Any) -> list[Path]:
        def load(source: Path) -> Denoiser:
            asked.append(source)
            return denoiser(function, **options)

        monkeypatch.setattr(denoise_tasks.inference, "load_denoiser", load)
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
    denoise.main([*map(str, words), "--run", "RUN", "--accelerator", "cpu"])


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
    tmp_path: Path, fake: Callable[..., list[Path]], capsys: pytest.CaptureFixture[str]
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
    assert asked == [Path("RUN")] * 2
    printed = capsys.readouterr()
    assert "4 pictures" in printed.out
    assert "denoising: 4/4" in printed.err


@pytest.mark.usefixtures("fake")
def test_self_ensemble_and_tile_batch(tmp_path: Path) -> None:
    pixels = picture(90, 130)
    write_picture(tmp_path / "a.png", pixels)
    run(tmp_path / "a.png", "--out", tmp_path / "o", "--self-ensemble", "--tile_batch", 1)
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
        ("15", {"sigma": None, "task": "sidd"}, "trained on real noise"),
    ],
)
def test_stated_level(
    tmp_path: Path,
    fake: Callable[..., list[Path]],
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
def test_picture_too_small_for_an_estimate_is_denoised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_picture(tmp_path / "a.png", picture(3, 4))
    run(tmp_path / "a.png", "--out", tmp_path / "out", "--sigma", "auto")
    assert "too small" in capsys.readouterr().err
    assert (tmp_path / "out/a.png").exists()


def test_bad_input(tmp_path: Path, fake: Callable[..., list[Path]]) -> None:
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
        ([tmp_path / "alpha.bmp", "--out", out], r"alpha\.bmp: not a picture"),
        ([broken, "--out", out], r"broken/b\.png: truncated .*\(and 1 more that cannot be used\)"),
        ([folder, folder / "sub", "--out", out], "would both become"),
        ([good, good, "--out", out], "would both become"),
        ([good, "--out", tmp_path], r"--out: .*good\.png is an input"),
        ([folder, "--out", folder, "--overwrite"], "is an input"),
        ([good, "--out", tmp_path / "file"], "--out: .*cannot be written"),
        ([good, "--out", out, "--sigma", "-3"], "--sigma: given -3"),
        ([good, "--out", out, "--sigma", "300"], "--sigma: given 300"),
        ([good, "--out", out, "--sigma", "nan"], "--sigma: given nan"),
        ([good, "--out", out, "--sigma", "much"], "--sigma: given much, allowed: auto"),
        ([good, "--out", out, "--tile_batch", "0"], "--tile_batch: given 0"),
        ([good, "--out", out, "--typo", "1"], "typo"),
        (["--out", out], "inputs"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            run(*words)
        assert "\n" not in str(caught.value)
        assert not out.exists()
    assert not list(tmp_path.rglob("out"))


@pytest.mark.usefixtures("fake")
def test_nothing_is_overwritten_without_being_told(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", picture(20, 30))
    write_picture(tmp_path / "b.png", picture(20, 30))
    out = tmp_path / "out"
    run(tmp_path / "b.png", "--out", out)
    before = (out / "b.png").read_bytes()
    with pytest.raises(InputError, match=r"--out: .*b\.png exists; give --overwrite"):
        run(tmp_path / "a.png", tmp_path / "b.png", "--out", out)
    assert [item.name for item in out.iterdir()] == ["b.png"]
    assert (out / "b.png").read_bytes() == before
    run(tmp_path / "a.png", tmp_path / "b.png", "--out", out, "--overwrite")
    assert len(list(out.iterdir())) == 2


def test_a_network_that_gives_nan_writes_nothing(
    tmp_path: Path, fake: Callable[..., list[Path]]
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


@pytest.fixture
def tiny_run(tmp_path: Path) -> Path:
    """A run folder's checkpoint, as training writes it, with random weights."""
    config = {
        "task": "gaussian",
        "model": "img2img_mixer",
        "model_options": model_config("img2img_mixer", img_size=32, embed_dim=8, depth=2),
        "residual": True,
        "protocol": "standard",
        "sigma": 25.0,
        "lr": 1e-3,
        "halve_at_epoch": 0,
    }
    torch.manual_seed(0)
    weights = build_module(config).state_dict()
    path = tmp_path / "run/checkpoints/best.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": weights, "run_config": config}, path)
    return tmp_path / "run"


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
        network = load_denoiser(tiny_run).module
        wanted = network(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    assert not np.allclose(wanted, pixels, atol=0.01)
    given = read_picture(out / "a.png")
    assert given.bits == 16
    assert np.abs(given.pixels - wanted.numpy().clip(0, 1)).max() < 1e-5 + 0.5 / 65535
    done = script("denoise_tasks/denoise.py", source, "--out", out, "--run", tiny_run)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: --out: ")
    assert done.stdout == ""


@pytest.mark.slow
def test_benchmark_of_denoising(
    tmp_path: Path, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
        (["denoise", "--run", "missing"], "no such checkpoint"),
    ],
)
def test_bad_input_of_the_benchmark(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        benchmark.main(words)


# The SIDD benchmark


def test_sidd_benchmark(
    tmp_path: Path,
    fake: Callable[..., list[Path]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from scipy.io import savemat

    for function in ("read_benchmark", "validate_submission"):
        whole = getattr(sidd, function)
        monkeypatch.setattr(
            sidd,
            function,
            lambda path, whole=whole: whole(path, blocks=2, per_image=3),
        )
    noisy = RNG.integers(0, 256, (2, 3, 256, 256, 3), dtype=np.uint8)
    savemat(tmp_path / "noisy.mat", {sidd.BENCHMARK_KEY: noisy})
    fake(lambda x: 1 - x, sigma=None, task="sidd")
    for name in ("submit.csv", "submit.mat"):
        out = tmp_path / name
        run("--sidd_benchmark", tmp_path / "noisy.mat", "--out", out)
        assert np.array_equal(sidd.read_submission(out, blocks=2, per_image=3), 255 - noisy)
        with pytest.raises(InputError, match="overwrite"):
            run("--sidd_benchmark", tmp_path / "noisy.mat", "--out", out)
        capsys.readouterr()
        denoise.main(["--validate-submission", str(out)])
        assert "valid submission" in capsys.readouterr().out
    fake(in_chans=1, sigma=None, task="sidd")
    with pytest.raises(InputError, match="grey"):
        run("--sidd_benchmark", tmp_path / "noisy.mat", "--out", tmp_path / "grey.csv")
    (tmp_path / "submit.csv").write_text("nonsense")
    with pytest.raises(InputError, match="first line"):
        denoise.main([f"--validate_submission={tmp_path / 'submit.csv'}"])
