"""Methods that denoise: BM3D and total variation against their packages, networks in tiles, and the table of names."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import img2img_recon
from denoise_tasks import methods
from denoise_tasks.methods import (
    BM3D,
    METHODS,
    BM3DChannelwise,
    Denoiser,
    TotalVariation,
    make_method,
)
from denoise_tasks.pictures import read_picture
from denoise_tasks.trained import ShippedDenoiser, load_run
from img2img_recon.denoising import BLENDED_TILE as TILE
from img2img_recon.figures import label_of
from img2img_recon.networks.zoo import build_model
from img2img_recon.support.errors import InputError
from img2img_recon.wrappers import AnySize, Residual
from tests.denoise_tasks.conftest import (
    SIGMA,
    TILE_SIDE,
    OnTiles,
    denoiser,
    picture,
    psnr,
    trained,
    with_noise,
)

PROJECT = Path(__file__).resolve().parents[2]
bm3d, channelwise, tv = BM3D(), BM3DChannelwise(), TotalVariation()


# BM3D and total variation


def test_gain_and_cbm3d_beats_the_channelwise_call(colour):
    noisy = with_noise(colour)
    before = noisy.copy()
    fair, papers = bm3d.denoise(noisy, SIGMA), channelwise.denoise(noisy, SIGMA)
    assert fair.shape == colour.shape
    assert fair.dtype == np.float32
    assert psnr(noisy, colour) == pytest.approx(18.6, abs=0.2)
    assert psnr(fair, colour) > psnr(noisy, colour) + 9
    assert psnr(fair, colour) > psnr(papers, colour) + 0.5
    np.testing.assert_array_equal(noisy, before)


def test_the_variants_are_the_packages_own_calls(colour):
    import bm3d as package

    noisy = with_noise(colour[:24, :24])
    exact = noisy.astype(np.float64)
    profile = package.BM3DProfile()
    profile.num_threads = 1
    expected = package.bm3d_rgb(exact, SIGMA, profile)
    np.testing.assert_array_equal(bm3d.denoise(noisy, SIGMA), expected.astype(np.float32))
    expected = package.bm3d(exact, SIGMA, profile)
    np.testing.assert_array_equal(channelwise.denoise(noisy, SIGMA), expected.astype(np.float32))
    expected = package.bm3d(exact[..., 0], SIGMA, profile)
    for method in (bm3d, channelwise):
        found = method.denoise(noisy[..., :1], SIGMA)[..., 0]
        np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_grey_gains(grey):
    noisy = with_noise(grey)
    assert psnr(bm3d.denoise(noisy, SIGMA), grey) > psnr(noisy, grey) + 7


def test_a_grey_image_stored_as_colour_is_denoised_as_grey(grey):
    noisy = with_noise(grey)[:32, :32]
    image = bm3d.denoise(np.repeat(noisy, 3, axis=2), SIGMA)
    np.testing.assert_array_equal(image, np.repeat(bm3d.denoise(noisy, SIGMA), 3, axis=2))


def test_an_opponent_colour_without_range_gives_no_nan(colour):
    noisy = with_noise(colour[:20, :20])
    noisy[..., 2] = noisy[..., 0]
    assert np.isfinite(bm3d.denoise(noisy, SIGMA)).all()
    flat = np.full((20, 20, 3), 0.25, np.float32)
    np.testing.assert_allclose(bm3d.denoise(flat, SIGMA), flat, atol=1e-3)


# 8 x 8 is the package's block: it crashes there, and refuses what is smaller.
@pytest.mark.parametrize("method", [bm3d, tv])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (1, 7, 1), (5, 9, 3), (8, 8, 1), (17, 8, 1), (3, 31, 1)]
)
def test_odd_and_tiny_sizes(method, shape):
    noisy = with_noise(np.full(shape, 0.5, np.float32))
    image = method.denoise(noisy, SIGMA)
    assert image.shape == shape
    assert image.dtype == np.float32
    assert np.isfinite(image).all()
    assert np.abs(image - 0.5).mean() <= np.abs(noisy - 0.5).mean()


def test_other_numbers_of_channels_are_filtered_one_by_one():
    noisy = with_noise(np.linspace(0, 1, 32 * 32 * 2, dtype=np.float32).reshape(32, 32, 2))
    for method in (bm3d, tv):
        image = method.denoise(noisy, SIGMA)
        for channel in range(2):
            alone = method.denoise(noisy[..., channel : channel + 1], SIGMA)
            np.testing.assert_allclose(image[..., channel], alone[..., 0], atol=1e-6)


@pytest.mark.parametrize("method", [bm3d, tv])
@pytest.mark.parametrize(
    ("image", "sigma", "said"),
    [
        (np.zeros((16, 16, 1)), 0.0, "sigma is 0"),
        (np.zeros((16, 16, 1)), -0.1, "sigma is -0.1"),
        (np.zeros((16, 16, 1)), np.nan, "sigma is nan"),
        (np.zeros((16, 16, 1)), None, "sigma is not given"),
        (np.full((16, 16, 1), np.nan), 0.1, "NaN or infinite"),
        (np.full((16, 16, 3), np.inf), 0.1, "NaN or infinite"),
        (np.zeros((16, 16, 1), np.uint8), 0.1, "uint8"),
        (np.zeros((2, 16, 16, 3)), 0.1, r"\(2, 16, 16, 3\)"),
        (np.zeros((0, 16, 1)), 0.1, r"\(0, 16, 1\)"),
        ([[0.0]], 0.1, "list"),
    ],
)
def test_refused_input(method, image, sigma, said):
    with pytest.raises(InputError, match=said) as caught:
        method.denoise(image, sigma)
    assert "\n" not in str(caught.value)


def test_a_failure_inside_the_package_is_not_a_result(monkeypatch):
    monkeypatch.setattr(BM3D, "_filter", lambda self, image, sigma: np.zeros_like(image))
    with pytest.raises(InputError, match="gave up on an image of 9 x 20"):
        bm3d.denoise(with_noise(np.zeros((9, 20, 1))), SIGMA)


def test_total_variation_is_scikit_images_with_a_weight_that_suits_the_noise(colour):
    from skimage.restoration import denoise_tv_chambolle

    for level in (15, 30, 50):
        noisy = with_noise(colour, level / 255)
        image = tv.denoise(noisy, level / 255)
        own = psnr(image, colour)
        weights = np.geomspace(0.3, 3, 9) * level / 255
        best = max(
            psnr(denoise_tv_chambolle(noisy, w, tv.TOLERANCE, channel_axis=-1), colour)
            for w in weights
        )
        assert own > psnr(noisy, colour) + 4
        assert own > best - 0.4, level


# Many at once


def some_images(colour):
    return [
        with_noise(colour[:24, :24]),
        with_noise(colour[:17, :30, :1]),
        with_noise(colour[:9, :9]),
    ]


def counting_track(seen):
    def track(items, description, total):
        seen.append((description, total))
        for item in items:
            seen.append(item.shape)
            yield item

    return track


@pytest.mark.slow
def test_the_pool_gives_the_direct_results_in_order(colour):
    noisy, sigmas = some_images(colour), [0.05, 0.1, 0.2]
    for method, pools in ((bm3d, (0, 2)), (channelwise, (2,)), (tv, (2,))):
        direct = [method.denoise(*one) for one in zip(noisy, sigmas, strict=True)]
        for workers in pools:
            seen: list[object] = []
            images = method.denoise_many(noisy, sigmas, workers=workers, track=counting_track(seen))
            if method.slow:
                assert seen == [(label_of(method.name), 3), *(image.shape for image in noisy)]
            for image, expected in zip(images, direct, strict=True):
                np.testing.assert_array_equal(image, expected)


def test_many_checks_before_it_computes(colour, monkeypatch):
    monkeypatch.setattr(BM3D, "_filter", lambda *_: pytest.fail("computed"))
    noisy = some_images(colour)
    with pytest.raises(InputError, match="noisy image 1: sigma is 0"):
        bm3d.denoise_many(noisy, [0.1, 0.0, 0.1])
    with pytest.raises(InputError, match="noisy image 2: holds NaN"):
        bm3d.denoise_many([*noisy[:2], noisy[2] * np.nan], [0.1] * 3)
    with pytest.raises(ValueError, match="shorter"):
        bm3d.denoise_many(noisy, [0.1, 0.1])
    assert bm3d.denoise_many([], []) == []


def test_whatever_method_is_slow_works_in_processes(monkeypatch):
    class Halved(Denoiser):
        name, slow, needs_sigma = "halved", True, False

        def denoise(self, noisy, sigma):
            return noisy / 2

    def pool(function, tasks, workers):
        asked.append(workers)
        yield from map(function, tasks)

    asked: list[int] = []
    monkeypatch.setattr(methods, "map_in_processes", pool)
    images = Halved().denoise_many([np.ones((2, 2, 1), np.float32)] * 3, [None] * 3, workers=5)
    assert asked == [5]
    assert [float(image.mean()) for image in images] == [0.5] * 3


def test_worker_processes_import_no_torch():
    code = "import sys, denoise_tasks.methods; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


POOL_SCRIPT = """
import signal
import sys
import numpy as np
from denoise_tasks.methods import BM3D

# Tests started in the background ignore the signal, and all their children do.
signal.signal(signal.SIGINT, signal.default_int_handler)

def track(items, description, total):
    for item in items:
        print("one", flush=True)
        yield item

if __name__ == "__main__":
    small, large = np.random.default_rng(0).random((2, 600, 600, 3))
    BM3D().denoise_many([small[:16, :16], *[large] * 9], [0.1] * 10, workers=2, track=track)
"""


def group_members(group):
    """Process ids of a group, zombies left out."""
    members = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, number = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(number) == group and state != "Z":
            members.append(int(folder.name))
    return members


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_pool_ends_with_its_parent(tmp_path, number):
    script = tmp_path / "pool.py"
    script.write_text(POOL_SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(script)],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    try:
        assert process.stdout.readline() == "one\n"
        assert len(group_members(process.pid)) >= 3
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.kill()
        _, errors = process.communicate(timeout=240)
        assert process.returncode != 0
        if number == signal.SIGINT:
            assert errors.count("KeyboardInterrupt") == 1
        for _ in range(600):
            if not group_members(process.pid):
                break
            time.sleep(0.1)
        assert not group_members(process.pid)
    finally:
        for member in group_members(process.pid):
            os.kill(member, signal.SIGKILL)


# The table


class Grey(Denoiser):
    """A method that somebody adds: every picture becomes its mean."""

    name = "mean_grey"

    def denoise(self, noisy, sigma):
        assert sigma == pytest.approx(20 / 255)
        return np.full_like(noisy, noisy.mean())


def test_a_method_that_is_added_is_scored_drawn_and_exported(tmp_path, photos, monkeypatch, capsys):
    from denoise_tasks import denoise, evaluate, figures

    drawn = []
    panel = figures.denoising_panel
    monkeypatch.setattr(
        figures,
        "denoising_panel",
        lambda path, images, *a, **b: drawn.append(images) or panel(path, images, *a, **b),
    )
    monkeypatch.setitem(METHODS, "mean_grey", Grey)
    out = tmp_path / "scores"
    words = ["--method", "mean_grey", "--method", "tv", "--data_path", photos, "--sigma", 20]
    evaluate.main([*map(str, words), "--limit", "1", "--out", str(out), "--no_progress"])
    assert "mean grey" in capsys.readouterr().out
    rows = list(csv.DictReader((out / "results.csv").open()))
    scores = {row["method"]: float(row["psnr"]) for row in rows if row["image"] == "mean of 1"}
    assert scores["mean_grey"] < scores["tv"]
    (images,) = drawn
    assert list(images) == ["noisy", "mean_grey", "tv"]
    assert np.ptp(images["mean_grey"]) == 0
    assert len(list((out / "panels").glob("*.png"))) == 1
    source = photos / "class0" / "0.png"
    words = [source, "--out", tmp_path / "out", "--method", "mean_grey", "--sigma", 20]
    denoise.main([*map(str, words), "--no_progress"])
    exported = read_picture(tmp_path / "out" / "0.png").pixels
    assert np.abs(exported - read_picture(source).pixels.mean()).max() < 0.51 / 255


# Networks


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (64, 64), (63, 65), (200, 333)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("self_ensemble", [False, True])
def test_identity_is_exact(
    size: tuple[int, int], channels: int, in_chans: int, self_ensemble: bool
) -> None:
    pixels = picture(*size, channels)
    output = denoiser(lambda x: x, in_chans, self_ensemble=self_ensemble).denoise(pixels, None)
    assert output.dtype == np.float32
    assert output.shape == pixels.shape
    assert np.abs(output - pixels).max() < 1e-6


def test_pixelwise_network_shows_no_tiles() -> None:
    mix = torch.tensor([[0.5, 0.2, 0.1], [0.1, 0.6, 0.1], [0.0, 0.3, 0.4]])
    pixels = picture(201, 157)
    method = denoiser(lambda x: torch.einsum("oc,bchw->bohw", mix, x) ** 2 + 0.05)
    output = method.denoise(pixels, None)
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
    output = denoiser(patchwise).denoise(pixels, None)
    whole = patchwise(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    assert np.abs(output - whole.numpy()).max() < 1e-6


def test_no_seam_where_a_network_knows_its_place_in_the_tile() -> None:
    tilt = torch.linspace(-0.05, 0.05, TILE_SIDE)
    method = denoiser(lambda x: x + tilt + tilt[:, None])
    output = method.denoise(np.full((300, 300, 3), 0.5, np.float32), None)
    # Tiles side by side would jump by 0.1 where they meet; blended, they fade over 16 pixels.
    jumps = [np.abs(np.diff(output, axis=axis)).max() for axis in (0, 1)]
    assert max(jumps) < 0.012
    assert np.abs(output - 0.5).max() <= 0.1 + 1e-6


def test_convolutional_network_is_tiled_without_visible_seams() -> None:
    torch.manual_seed(0)
    body = build_model("dncnn", depth=4, chans=8).eval()
    method = trained(Residual(AnySize(body)))

    def whole(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            image = torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()
            return (image - body(image))[0].permute(1, 2, 0).numpy()

    pixels = picture(TILE + 90, TILE + 300)
    output, expected = method.denoise(pixels, None), whole(pixels)
    # Padding with zeros reaches 4 pixels into a tile, where its weight is small.
    assert np.abs(output - expected).max() < 0.2 * np.abs(expected - pixels).max()
    assert np.abs(output - expected).mean() < 1e-3 * np.abs(expected - pixels).mean()
    small = pixels[:100, :120]
    assert np.array_equal(method.denoise(small, None), whole(small))


def test_tiles_at_once_are_bounded() -> None:
    for tile, at_once in ((256, 16), (363, 32)):
        method = denoiser(lambda x: x, tile=tile)
        tiles = method.network.net
        assert isinstance(tiles, OnTiles)
        method.denoise(picture(500, 500), None)
        assert max(tiles.batches) == at_once
    seen: list[tuple[int, ...]] = []

    class AnyConvolution(nn.Module):
        img_size = None

        def forward(self, image: Tensor) -> Tensor:
            seen.append(tuple(image.shape))
            return image

    for tile, side, at_once in ((256, 256, 1), (512, 512, 1), (900, 512, 3)):
        seen.clear()
        method = trained(AnySize(AnyConvolution()), tile=tile)
        assert method.denoise(picture(1400, 300), None).shape == (1400, 300, 3)
        assert {shape[2:] for shape in seen} == {(side, min(side, 300))}
        assert max(shape[0] for shape in seen) == at_once


def test_self_ensemble_is_the_mean_over_orientations() -> None:
    weights = torch.rand(TILE_SIDE, TILE_SIDE, generator=torch.Generator().manual_seed(0))
    method = denoiser(lambda x: x * weights, self_ensemble=True)
    pixels = picture(TILE_SIDE, TILE_SIDE)
    w = weights.numpy()
    turned = [np.rot90(w, k) for k in range(4)]
    mean = np.mean([*turned, *(view[:, ::-1] for view in turned)], axis=0)[..., None]
    assert np.abs(method.denoise(pixels, None) - pixels * mean).max() < 1e-6
    # A network that does not mind flips and turns gives the same with and without.
    plain, mean = (
        denoiser(lambda x: nn.functional.avg_pool2d(x, 3, 1, 1), self_ensemble=ensemble)
        for ensemble in (False, True)
    )
    assert np.abs(mean.denoise(pixels, None) - plain.denoise(pixels, None)).max() < 1e-6


def test_grey_through_colour_and_colour_through_grey() -> None:
    scale = torch.tensor([0.2, 0.5, 0.8]).view(1, 3, 1, 1)
    grey, colour = picture(70, 80, 1), picture(70, 80, 3)
    output = denoiser(lambda x: x * scale, 3).denoise(grey, None)
    assert np.abs(output - 0.5 * grey).max() < 1e-6
    output = denoiser(lambda x: x**2, 1).denoise(colour, None)
    assert np.abs(output - colour**2).max() < 1e-6
    with pytest.raises(InputError, match="channels"):
        denoiser(lambda x: x, 2).denoise(colour, None)


def test_a_method_made_of_a_run_is_the_runs_network(tiny_run, colour):
    """The same as `img2img_recon.load` gives, whose network takes tensors."""
    method = make_method(str(tiny_run))
    assert (method.name, method.in_chans, method.needs_sigma) == ("run", 3, False)
    assert method.task == "gaussian"
    assert method.details()["trained_for_sigma"] == 25
    assert method.details()["parameters"] == sum(p.numel() for p in method.network.parameters())
    network = img2img_recon.load(tiny_run)
    with torch.inference_mode():
        image = torch.from_numpy(colour).permute(2, 0, 1)[None].contiguous()
        expected = network(image)[0].permute(1, 2, 0).numpy()
    assert not np.allclose(expected, colour, atol=0.01)
    np.testing.assert_allclose(method.denoise(colour, None), expected, atol=1e-6)


def test_a_run_is_found_by_its_folder_of_checkpoints(tiny_run):
    whole, inner = (load_run(path).network for path in (tiny_run, tiny_run / "checkpoints"))
    for key, weights in whole.state_dict().items():
        assert torch.equal(inner.state_dict()[key], weights)
    (tiny_run / "checkpoints/best.ckpt").unlink()
    with pytest.raises(InputError, match="checkpoints: no checkpoint in this folder"):
        load_run(tiny_run / "checkpoints")


def test_names_and_paths_that_are_no_method(tmp_path):
    assert [type(make_method(name)) for name in METHODS] == list(METHODS.values())
    with pytest.raises(
        InputError, match="--method: given median, allowed: bm3d, bm3d_channelwise, tv, denoise-"
    ):
        make_method("median")
    with pytest.raises(InputError, match="no checkpoint in this folder"):
        make_method(str(tmp_path))


@pytest.mark.slow
def test_a_run_of_the_mri_task_is_refused(tmp_path):
    content = {"state_dict": {}, "run_config": {"task": "mri"}}
    torch.save(content, tmp_path / "mri.ckpt")
    with pytest.raises(
        InputError, match=r"a network of the task mri; allowed: denoising, gaussian"
    ):
        load_run(tmp_path / "mri.ckpt")


def test_the_packages_networks_are_told_the_noise_and_chosen_by_picture(colour, grey):
    method = make_method("denoise-color", accelerator="cpu")
    assert (method.name, method.in_chans, method.needs_sigma) == ("denoise-color", 3, True)
    assert method.level_warning(75, "given") is None
    assert ShippedDenoiser().trained_levels == (0, 75)
    assert "noise will be left" in str(ShippedDenoiser().level_warning(100, "given"))
    assert "trained for 0 to 75: noise will be left" in str(method.level_warning(95, "estimated"))
    noise = np.random.default_rng(0).normal(0, 0.1, colour.shape).astype(np.float32)
    both = ShippedDenoiser(accelerator="cpu")
    assert both.needs_sigma
    for clean, picture_noise in ((colour, noise), (grey, noise[:64, :64, :1])):
        denoised = both.denoise(clean + picture_noise, 0.1)
        expected = img2img_recon.denoise(clean + picture_noise, 0.1)
        np.testing.assert_allclose(denoised, expected, atol=1e-5)
        assert psnr(denoised, clean) > 26
