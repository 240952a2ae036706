"""One call denoises arrays and tensors of any kind: units, types, channels, levels, tiles, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from skimage import data
from torch import Tensor, nn

import img2img_recon
from img2img_recon import InputError, build_model, denoise, load
from img2img_recon.denoising import bound_tiles, default_name
from img2img_recon.networks.window_mixer import WindowMixer
from img2img_recon.wrappers import AnySize

CLEAN = (data.astronaut()[:96, 180:290] / 255).astype(np.float32)
SIGMA = 25 / 255
NOISY = (CLEAN + np.random.default_rng(0).normal(0, SIGMA, CLEAN.shape)).astype(np.float32)


def psnr(image: np.ndarray, clean: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((np.asarray(image, np.float64) - clean) ** 2)))


class Halves(nn.Module):
    """A network that is easy to foresee: it takes away half of sigma."""

    in_chans, noise_level_plane, description = 3, True, None

    def forward(self, image: Tensor, sigma: Tensor) -> Tensor:
        return image - sigma.view(-1, 1, 1, 1) / 2


def test_the_shipped_network_denoises_a_photograph() -> None:
    clean = denoise(NOISY, SIGMA)
    assert (clean.dtype, clean.shape) == (np.float32, NOISY.shape)
    assert psnr(clean, CLEAN) > psnr(NOISY, CLEAN) + 8
    found = denoise(NOISY)
    assert psnr(found, CLEAN) > psnr(clean, CLEAN) - 0.5
    grey, noisy = CLEAN.mean(2), NOISY[..., 0] - CLEAN[..., 0] + CLEAN.mean(2)
    assert psnr(denoise(noisy, SIGMA), grey) > psnr(noisy, grey) + 7
    in_colour = denoise(np.repeat(noisy[..., None], 3, axis=2), SIGMA)
    np.testing.assert_allclose(in_colour, denoise(noisy, SIGMA)[..., None].repeat(3, 2), atol=1e-6)


def test_an_array_that_is_read_only(recwarn: pytest.WarningsRecorder) -> None:
    given = (255 * CLEAN[:16, :16]).astype(np.uint8)
    expected = denoise(given, 0.1)
    given.flags.writeable = False
    np.testing.assert_array_equal(denoise(given, 0.1), expected)
    assert not recwarn.list


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, ">u2", np.float16, np.float64])
@pytest.mark.parametrize("shape", [(96, 110), (96, 110, 1), (96, 110, 3), (5, 3, 3), (1, 1)])
def test_arrays_come_back_as_they_were(dtype: Any, shape: tuple[int, ...]) -> None:
    height, width = shape[:2]
    floats = NOISY[:height, :width] if shape[2:] == (3,) else NOISY[:height, :width, :1]
    floats = floats.reshape(shape).clip(0, 1)
    white = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1
    given = (floats * white).round().astype(dtype) if white > 1 else floats.astype(dtype)
    clean = denoise(given, 0.1)
    assert (clean.dtype, clean.shape) == (given.dtype, shape)
    expected = denoise((given / white).astype(np.float32), 0.1).clip(0, 1) * white
    error = 0.51 if white > 1 else 1e-3
    assert np.abs(clean.clip(0, white).astype(float) - expected).max() <= error
    np.testing.assert_allclose(denoise(given, 0), given, rtol=1e-6 if dtype != np.float16 else 1e-3)


def test_tensors_and_a_sigma_for_each_image() -> None:
    images = torch.from_numpy(np.stack([NOISY, NOISY])).permute(0, 3, 1, 2)
    sigmas = torch.tensor([0.05, 0.2])
    together = denoise(images, sigmas)
    assert (together.dtype, together.shape) == (images.dtype, images.shape)
    for image, sigma, clean in zip(images, sigmas, together, strict=True):
        alone = denoise(image.permute(1, 2, 0).numpy(), float(sigma))
        np.testing.assert_allclose(clean.permute(1, 2, 0), alone, atol=1e-5)
    network = load("denoise-color")
    with torch.no_grad():
        torch.testing.assert_close(network(images, sigmas), together, atol=1e-5, rtol=0)
        assert torch.equal(network(images, 0.0), images)
    assert denoise(images.to(torch.bfloat16), 0.1).dtype == torch.bfloat16


def test_channels_lie_on_any_axis_and_stacks_are_denoised_slice_by_slice(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Centres(Halves):
        """What it makes of a pixel depends on its whole image and on nothing else."""

        def forward(self, image: Tensor, sigma: Tensor) -> Tensor:
            return image - sigma.view(-1, 1, 1, 1) * image.mean((2, 3), keepdim=True)

    def centred(image: np.ndarray, sigma: Any = SIGMA, **options: Any) -> np.ndarray:
        return denoise(image, sigma, model=Centres(), **options)

    clean = centred(NOISY)
    assert np.array_equal(centred(NOISY, channel_axis=-1), clean)
    first = NOISY.transpose(2, 0, 1)
    assert np.array_equal(centred(first, channel_axis=0), clean.transpose(2, 0, 1))
    assert not np.allclose(centred(first), clean.transpose(2, 0, 1))  # three grey slices
    sigmas = [0.05, 0.1, 0.2]
    apart = [centred(one, sigma) for one, sigma in zip(first, sigmas, strict=True)]
    assert np.array_equal(centred(first, sigmas, progress=True), np.stack(apart))
    assert "denoising: 3/3" in capsys.readouterr().err
    # Without a channel axis, as in scikit-image, (96, 110, 3) is 96 slices.
    assert np.array_equal(centred(NOISY, channel_axis=None)[7], centred(NOISY[7]))
    # Channels that are no colour are an image each, and the type stays.
    pairs = (np.stack([first[:2], first[1:]]).clip(0, 1) * 65535).astype(">u2")
    clean = centred(pairs, channel_axis=1)
    assert clean.dtype == pairs.dtype
    assert np.array_equal(clean[1, 0], centred(pairs[1, 0]))
    colours = np.stack([NOISY, NOISY[::-1]])
    assert np.array_equal(centred(colours, None)[1], centred(colours[1], None))


def test_strength_is_the_share_of_the_noise_that_goes() -> None:
    full = denoise(NOISY, SIGMA)
    np.testing.assert_allclose(
        denoise(NOISY, SIGMA, strength=0.25), NOISY + 0.25 * (full - NOISY), atol=1e-6
    )
    assert np.array_equal(denoise(NOISY, SIGMA, strength=0), NOISY)


def test_grey_tells_a_colour_network_more_noise_than_there_is_in_each_channel() -> None:
    grey = np.full((20, 20), 0.5, np.float32)
    np.testing.assert_allclose(denoise(grey, 0.1, model=Halves()), 0.5 - 0.05 * 3**0.5, atol=1e-6)
    colour = np.stack([grey, grey, grey + 0.1], 2)
    np.testing.assert_allclose(denoise(colour, 0.1, model=Halves()), colour - 0.05, atol=1e-6)


def test_grey_is_grey_also_in_a_batch_with_colour() -> None:
    colour = torch.from_numpy(NOISY).permute(2, 0, 1)[None]
    batch = torch.cat([colour[:, :1].expand_as(colour), colour])
    alone = torch.cat([denoise(one, SIGMA, model="denoise-color") for one in batch.split(1)])
    torch.testing.assert_close(denoise(batch, SIGMA), alone, atol=1e-6, rtol=0)


def test_a_photograph_in_colour_goes_through_a_grey_network_by_channels() -> None:
    torch.manual_seed(0)
    network = build_model("window_mixer_tiny", in_chans=1, out_chans=1, noise_level_plane=True)
    apart = [denoise(NOISY[..., channel], SIGMA, model=network) for channel in range(3)]
    together = denoise(NOISY, SIGMA, model=network)
    np.testing.assert_allclose(together, np.stack(apart, 2), atol=1e-5)


def test_tiles_change_nothing() -> None:
    whole = denoise(NOISY, SIGMA)
    tall = np.tile(NOISY, (3, 1, 1))
    np.testing.assert_allclose(denoise(tall, SIGMA, tile=96), denoise(tall, SIGMA), atol=1e-6)
    network = load("denoise-color")
    bound_tiles(network, 64, torch.device("cpu"))
    np.testing.assert_allclose(denoise(NOISY, SIGMA, model=network, tile=64), whole, atol=1e-6)


def test_a_network_of_its_own_name_for_grey(monkeypatch: pytest.MonkeyPatch) -> None:
    from img2img_recon import denoising

    both = {"denoise-color": None, "denoise-grey": None}
    monkeypatch.setattr(denoising, "shipped", lambda: both)
    assert (default_name(True), default_name(False)) == ("denoise-grey", "denoise-color")
    monkeypatch.setattr(denoising, "shipped", lambda: {})
    with pytest.raises(InputError, match="denoise-color: this network is missing"):
        default_name(True)


@pytest.mark.parametrize("level", [5 / 255, SIGMA, 100 / 255])
def test_noise_may_lie_beyond_white_and_the_picture_not(level: float) -> None:
    noise = np.random.default_rng(1).normal(0, level, (400, 250)).astype(np.float32)
    for sigma in (level, min(level, SIGMA / 25)) if level <= SIGMA else (level,):
        for clean in (0, 1):
            denoise(noise + clean, sigma, model=Halves())
    hot = CLEAN.copy()
    hot[40, 50] = 3.5
    denoise(hot, 0.02, model=Halves())
    hot[41:44, 51:54] = 3.5  # of such a light the network makes -40
    for image in (hot, CLEAN * 2, CLEAN - 0.5, np.stack([CLEAN, hot]), np.full((1, 2), 1.9)):
        with pytest.raises(InputError, match=r"means of \d+ x \d+ pixels .* white 1"):
            denoise(image, 0.02, model=Halves())
    with pytest.raises(InputError, match="white 1"):
        denoise(torch.full((1, 3, 32, 32), 1.9), model=Halves())


def test_a_full_memory_names_the_tile() -> None:
    class Full(nn.Module):
        in_chans = 3

        def forward(self, image: Tensor) -> Tensor:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with pytest.raises(InputError, match=r"memory of cpu is not enough for 96 x 110 .*--tile"):
        denoise(NOISY, SIGMA, model=Full())


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (NOISY, {"sigma": 25}, "given 25, allowed: 0 to 0.392 .* of 255 grey levels meant"),
        (NOISY, {"sigma": 0.5}, "given 0.5, allowed: 0 to 0.392"),
        (NOISY, {"sigma": -0.1}, "given -0.1"),
        (NOISY, {"sigma": float("nan")}, "given nan"),
        (NOISY, {"sigma": [0.1, 0.2]}, "given 2 numbers"),
        (NOISY, {"sigma": "auto"}, "given 'auto', allowed: numbers, or None to estimate"),
        (NOISY, {"strength": 2}, "strength: given 2, allowed: 0 to 1"),
        (NOISY, {"tile": 0}, "tile: given 0"),
        (NOISY, {"model": "denoise-colour"}, "did you mean 'denoise-color'"),
        (NOISY, {"model": "mri-brain-singlecoil"}, "model: a network of the task mri"),
        (NOISY, {"device": "tpu"}, "tpu, which this machine lacks"),
        (NOISY * 255, {}, "white must be 1"),
        (np.full((9, 9), np.nan, np.float32), {}, "NaN"),
        (NOISY[..., :2], {}, r"shape \(96, 110, 2\), allowed: an array"),
        (NOISY[None, None], {}, r"shape \(1, 1, 96, 110, 3\), allowed: an array"),
        (np.zeros((2, 9, 9, 9)), {}, "for others give channel_axis"),
        (NOISY, {"channel_axis": 3}, "channel_axis: given 3, the image has 3 axes"),
        (NOISY[0], {"channel_axis": 0}, "allowed: an array of height and width"),
        (torch.rand(1, 3, 9, 9), {"channel_axis": -1}, "tensors are .* allowed: 1"),
        (np.stack([NOISY, NOISY * 99]), {}, "white must be 1"),
        (NOISY[0, 0], {}, "allowed: an array"),
        (torch.rand(3, 9, 9), {}, r"shape \(3, 9, 9\), allowed: a tensor \(B"),
        (np.zeros((0, 4), np.float32), {}, "allowed"),
        (np.zeros((9, 9), np.int32), {}, "holds int32, allowed: uint8, uint16 or floats"),
        (np.zeros((9, 9), bool), {}, "holds bool"),
        (np.full((9, 9), "a"), {}, "holds <U1"),
        (NOISY.tolist(), {}, "given list"),
    ],
)
def test_what_is_refused(image: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        denoise(image, **{"sigma": 0.1, **options})
    assert "\n" not in str(caught.value)


def test_a_network_for_other_images_is_refused() -> None:
    network = build_model("window_mixer_tiny", in_chans=2, out_chans=2)
    with pytest.raises(InputError, match="a picture of 3 and a network of 2 channels"):
        img2img_recon.denoise(NOISY, 0.1, model=network)


def test_a_network_that_is_lent_comes_back_as_it_was() -> None:
    network = load("denoise-color").train()
    (tiled,) = [part for part in network.modules() if isinstance(part, WindowMixer)]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    tiled.tile = None
    denoise(NOISY, SIGMA, model=network, tile=64)
    assert network.training
    assert tiled.training
    assert tiled.tile is None
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    tiled.eval()
    denoise(NOISY, SIGMA, model=network, tile=64)
    assert (network.training, tiled.training) == (True, False)
    averages = AnySize(build_model("dncnn", in_chans=3, out_chans=3, depth=3))
    counts = {name: value.clone() for name, value in averages.named_buffers()}
    denoise(NOISY, SIGMA, model=averages)
    assert all(torch.equal(value, counts[name]) for name, value in averages.named_buffers())


def test_compiled_programs_are_lent_too() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Dropout())
    scripted = torch.jit.script(network)
    denoise(NOISY, SIGMA, model=scripted)
    assert scripted.training
    size = torch.export.Dim.DYNAMIC
    example = torch.zeros(2, 3, 40, 48)
    program = torch.export.export(
        network.eval(), (example,), dynamic_shapes=({0: size, 2: size, 3: size},)
    )
    assert denoise(NOISY, SIGMA, model=program.module()).shape == NOISY.shape
