import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from skimage import data, img_as_float32

from denoise_tasks import bm3d
from denoise_tasks.bm3d import (
    denoise,
    denoise_many,
    estimate_sigma,
    oracle_sigma,
)
from img2img_recon.support.errors import InputError

PROJECT = Path(__file__).resolve().parents[2]
SIGMA = 30 / 255


def with_noise(clean, sigma=SIGMA, seed=0):
    noise = np.random.default_rng(seed).normal(0, sigma, clean.shape)
    return (clean + noise).astype(np.float32)


def psnr(image, clean):
    return -10 * np.log10(np.mean((np.asarray(image, np.float64) - clean) ** 2))


@pytest.fixture(scope="module")
def colour():
    return img_as_float32(data.astronaut())[40:136, 170:266]


@pytest.fixture(scope="module")
def grey():
    return img_as_float32(data.camera())[80:144, 200:264]


def test_gain_and_cbm3d_beats_the_channelwise_call(colour):
    noisy = with_noise(colour)
    before = noisy.copy()
    fair, papers = denoise(noisy, SIGMA), denoise(noisy, SIGMA, "channelwise")
    assert fair.shape == colour.shape
    assert fair.dtype == np.float32
    assert psnr(noisy, colour) == pytest.approx(18.6, abs=0.2)
    assert psnr(fair, colour) > psnr(noisy, colour) + 9
    assert psnr(fair, colour) > psnr(papers, colour) + 0.5
    np.testing.assert_array_equal(noisy, before)


def test_the_variants_are_the_packages_own_calls(colour):
    import bm3d as package

    noisy = with_noise(colour[:24, :24]).astype(np.float64)
    profile = package.BM3DProfile()
    profile.num_threads = 1
    expected = package.bm3d_rgb(noisy, SIGMA, profile)
    np.testing.assert_array_equal(denoise(noisy, SIGMA), expected.astype(np.float32))
    expected = package.bm3d(noisy, SIGMA, profile)
    np.testing.assert_array_equal(denoise(noisy, SIGMA, "channelwise"), expected.astype(np.float32))


def test_grey_with_and_without_a_channel_axis(grey):
    noisy = with_noise(grey)
    image = denoise(noisy, SIGMA)
    assert image.shape == grey.shape
    assert psnr(image, grey) > psnr(noisy, grey) + 7
    np.testing.assert_array_equal(denoise(noisy[..., None], SIGMA), image[..., None])
    np.testing.assert_array_equal(denoise(noisy[..., None], SIGMA, "channelwise"), image[..., None])


def test_a_grey_image_stored_as_colour_is_denoised_as_grey(grey):
    noisy = with_noise(grey)[:32, :32]
    image = denoise(np.repeat(noisy[..., None], 3, axis=2), SIGMA)
    np.testing.assert_array_equal(image, np.repeat(denoise(noisy, SIGMA)[..., None], 3, axis=2))


def test_an_opponent_colour_without_range_gives_no_nan(colour):
    noisy = with_noise(colour[:20, :20])
    noisy[..., 2] = noisy[..., 0]
    assert np.isfinite(denoise(noisy, SIGMA)).all()
    flat = np.full((20, 20, 3), 0.25, np.float32)
    np.testing.assert_allclose(denoise(flat, SIGMA), flat, atol=1e-3)


# 8 x 8 is the package's block: it crashes there, and refuses what is smaller.
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 9, 3), (8, 8), (17, 8), (3, 31, 1)])
def test_odd_and_tiny_sizes(shape):
    noisy = with_noise(np.full(shape, 0.5, np.float32))
    image = denoise(noisy, SIGMA)
    assert image.shape == shape
    assert np.isfinite(image).all()
    assert np.abs(image - 0.5).mean() <= np.abs(noisy - 0.5).mean()


def test_other_numbers_of_channels_are_filtered_one_by_one():
    noisy = with_noise(np.linspace(0, 1, 32 * 32 * 2, dtype=np.float32).reshape(32, 32, 2))
    image = denoise(noisy, SIGMA)
    for channel in range(2):
        assert np.array_equal(image[..., channel], denoise(noisy[..., channel], SIGMA))


def test_grey_kept_as_colour_has_the_noise_of_grey():
    noisy = with_noise(np.full((96, 96, 1), 0.5, np.float32))
    assert estimate_sigma(np.repeat(noisy, 3, axis=2)) == estimate_sigma(noisy) > SIGMA / 2


@pytest.mark.parametrize(
    ("image", "sigma", "variant", "said"),
    [
        (np.zeros((16, 16)), 0.0, "cbm3d", "sigma is 0"),
        (np.zeros((16, 16)), -0.1, "cbm3d", "sigma is -0.1"),
        (np.zeros((16, 16)), np.nan, "cbm3d", "sigma is nan"),
        (np.full((16, 16), np.nan), 0.1, "cbm3d", "NaN or infinite"),
        (np.full((16, 16, 3), np.inf), 0.1, "cbm3d", "NaN or infinite"),
        (np.zeros((16, 16), np.uint8), 0.1, "cbm3d", "uint8"),
        (np.zeros((2, 16, 16, 3)), 0.1, "cbm3d", r"\(2, 16, 16, 3\)"),
        (np.zeros((0, 16)), 0.1, "cbm3d", r"\(0, 16\)"),
        (np.zeros((16, 16)), 0.1, "bm4d", "allowed: cbm3d, channelwise"),
        ([[0.0]], 0.1, "cbm3d", "list"),
    ],
)
def test_refused_input(image, sigma, variant, said):
    with pytest.raises(InputError, match=said) as caught:
        denoise(image, sigma, variant)
    assert "\n" not in str(caught.value)


def test_a_failure_inside_the_package_is_not_a_result(monkeypatch):
    monkeypatch.setattr(bm3d, "_filter", lambda image, *_: np.zeros_like(image))
    with pytest.raises(InputError, match="gave up on an image of 9 x 20"):
        denoise(with_noise(np.zeros((9, 20))), SIGMA)


def counting_track(seen):
    def track(items, description, total):
        seen.append((description, total))
        for item in items:
            seen.append(item.shape)
            yield item

    return track


def some_images(colour):
    return [
        with_noise(colour[:24, :24]),
        with_noise(colour[:17, :30, 0]),
        with_noise(colour[:9, :9]),
    ]


@pytest.mark.slow
def test_the_pool_gives_the_direct_results_in_order(colour):
    noisy, sigmas = some_images(colour), [0.05, 0.1, 0.2]
    direct = [denoise(image, sigma) for image, sigma in zip(noisy, sigmas, strict=True)]
    for workers in (0, 2):
        seen = []
        images = denoise_many(noisy, sigmas, workers=workers, track=counting_track(seen))
        assert seen == [("BM3D", 3), *(image.shape for image in noisy)]
        for image, expected in zip(images, direct, strict=True):
            np.testing.assert_array_equal(image, expected)


def test_many_checks_before_it_computes(colour, monkeypatch):
    monkeypatch.setattr(bm3d, "_filter", lambda *_: pytest.fail("computed"))
    noisy = some_images(colour)
    with pytest.raises(InputError, match="noisy image 1: sigma is 0"):
        denoise_many(noisy, [0.1, 0.0, 0.1])
    with pytest.raises(InputError, match="noisy image 2: holds NaN"):
        denoise_many([*noisy[:2], noisy[2] * np.nan], [0.1] * 3)
    with pytest.raises(InputError, match="3 images but 2 sigmas"):
        denoise_many(noisy, [0.1, 0.1])
    with pytest.raises(InputError, match="-1 workers"):
        denoise_many(noisy, [0.1] * 3, workers=-1)
    assert denoise_many([], []) == []


POOL_SCRIPT = """
import signal
import sys
import numpy as np
from denoise_tasks.bm3d import denoise_many

# Tests started in the background ignore the signal, and all their children do.
signal.signal(signal.SIGINT, signal.default_int_handler)

def track(items, description, total):
    for item in items:
        print("one", flush=True)
        yield item

if __name__ == "__main__":
    small, large = np.random.default_rng(0).random((2, 600, 600, 3))
    denoise_many([small[:16, :16], *[large] * 9], [0.1] * 10, workers=2, track=track)
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


@pytest.mark.slow
def test_the_package_is_found_from_a_script_of_this_folder():
    lines = (
        "import sys, numpy as np; "
        f"sys.path[:0] = [{str(PROJECT / 'denoise_tasks')!r}, {str(PROJECT)!r}]; "
        "from denoise_tasks.bm3d import denoise; "
        "print(denoise(np.random.default_rng(0).random((9, 9)), 0.1).shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", lines], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.stdout == "(9, 9)\n", done.stderr


@pytest.mark.parametrize("sigma", [15, 25, 50])
@pytest.mark.parametrize("picture", ["astronaut", "coffee", "camera"])
def test_white_noise_is_estimated_within_five_percent(picture, sigma):
    clean = img_as_float32(getattr(data, picture)())[:256, :256]
    estimate = estimate_sigma(with_noise(clean, sigma / 255))
    assert estimate * 255 == pytest.approx(sigma, rel=0.05)
    camera = estimate_sigma(with_noise(clean, sigma / 255), "camera")
    assert camera * 255 == pytest.approx(sigma, rel=0.08)


@pytest.mark.parametrize("shape", [(8, 8), (16, 16), (24, 24, 3), (33, 47, 1), (64, 40, 3)])
def test_the_estimate_on_small_images(shape):
    clean = np.full(shape, 0.5, np.float32)
    estimates = [estimate_sigma(with_noise(clean, 0.1, seed)) for seed in range(20)]
    assert np.median(estimates) == pytest.approx(0.1, rel=0.1 if min(shape[:2]) > 8 else 0.2)


def test_noise_that_is_smooth_is_seen_as_camera_noise_only():
    from scipy.ndimage import gaussian_filter

    clean = img_as_float32(data.chelsea())[:256, :256]
    noise = gaussian_filter(np.random.default_rng(0).normal(size=clean.shape), (1.5, 1.5, 0))
    noise *= 0.05 / noise.std()
    noisy = (clean + noise).astype(np.float32)
    assert estimate_sigma(noisy) < 0.01
    assert estimate_sigma(noisy, "camera") == pytest.approx(0.05, rel=0.2)


def test_burnt_out_blocks_are_not_taken_for_noiseless():
    clean = np.full((128, 128, 3), 0.4, np.float32)
    clean[:, :64] = 2.0
    assert estimate_sigma(with_noise(clean, 0.05).clip(0, 1), "camera") == pytest.approx(
        0.05, rel=0.1
    )
    assert estimate_sigma(np.ones((32, 32, 3), np.float32), "camera") == 0


def test_what_estimates_refuse(grey):
    with pytest.raises(InputError, match="7 x 64 is too small"):
        estimate_sigma(grey[:7])
    with pytest.raises(InputError, match="15 x 64 is too small"):
        estimate_sigma(grey[:15], "camera")
    with pytest.raises(InputError, match="allowed: white, camera"):
        estimate_sigma(grey, "pink")
    with pytest.raises(InputError, match="NaN"):
        estimate_sigma(grey * np.nan)


def test_oracle_sigma_is_the_spread_of_the_difference(colour):
    noisy = with_noise(colour)
    assert oracle_sigma(noisy, colour) == pytest.approx(np.std(noisy - colour), rel=1e-5)
    assert oracle_sigma(noisy, colour) == pytest.approx(SIGMA, rel=0.02)
    with pytest.raises(InputError, match=r"\(96, 96\)"):
        oracle_sigma(noisy, colour[..., 0])
    with pytest.raises(InputError, match="no noise"):
        oracle_sigma(colour, colour)
