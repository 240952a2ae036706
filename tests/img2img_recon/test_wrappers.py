"""Normalise, residual, any size: laws of padding and tiling, and the modules made of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from img2img_recon import AnySize, InputError, Normalized, Residual, build_model
from img2img_recon.wrappers import blend_window, pad_to, tile_positions, unpad
from tests.contracts import (
    assert_every_parameter_learns,
    assert_images_do_not_mix,
    assert_maps_images,
)

sides = st.integers(1, 40)


class Fixed(nn.Module):
    """A pointwise network that takes images of one size, and counts how many at once."""

    def __init__(self, size: tuple[int, int], gain: float = 1.0) -> None:
        super().__init__()
        self.img_size: tuple[int, int] | None = size
        self.size_divisor = 1
        self.gain = nn.Parameter(torch.tensor(gain))
        self.batches: list[int] = []

    def forward(self, image: Tensor) -> Tensor:
        assert tuple(image.shape[-2:]) == self.img_size
        self.batches.append(len(image))
        return image * self.gain


class Divisible(nn.Module):
    img_size = None

    def __init__(self, divisor: int, least: int = 1) -> None:
        super().__init__()
        self.size_divisor, self.min_size = divisor, least

    def forward(self, image: Tensor) -> Tensor:
        H, W = image.shape[-2:]
        assert H % self.size_divisor == W % self.size_divisor == 0
        assert min(H, W) >= self.min_size
        return image.clone()


def tiny_mixer(size: int = 16) -> nn.Module:
    torch.manual_seed(0)
    return build_model(
        "img2img_mixer", img_size=size, in_chans=1, out_chans=1, embed_dim=4, depth=1, mlp_ratio=1
    )


@settings(deadline=None)
@given(sides, sides, sides, sides)
def test_unpad_undoes_pad(height: int, width: int, least_height: int, least_width: int) -> None:
    image = torch.rand(2, 3, height, width)
    padded, padding = pad_to(image, least_height, least_width)
    assert padded.shape == (2, 3, max(height, least_height), max(width, least_width))
    assert torch.equal(unpad(padded, padding), image)
    assert 0 <= padding.bottom - padding.top <= 1
    assert 0 <= padding.right - padding.left <= 1


@settings(deadline=None)
@given(sides, sides, sides, sides)
def test_padding_is_numpys_reflection(
    height: int, width: int, least_height: int, least_width: int
) -> None:
    image = torch.rand(height, width)
    padded, (top, bottom, left, right) = pad_to(image, least_height, least_width)
    np.testing.assert_array_equal(
        padded.numpy(), np.pad(image.numpy(), ((top, bottom), (left, right)), mode="reflect")
    )


@st.composite
def tilings(draw: st.DrawFn) -> tuple[int, int, int]:
    tile = draw(st.integers(1, 24))
    return draw(st.integers(tile, 120)), tile, draw(st.integers(0, tile - 1))


@settings(deadline=None, max_examples=50)
@given(tilings())
def test_tiles_cover_the_axis_with_the_overlap_asked_for(tiling: tuple[int, int, int]) -> None:
    length, tile, overlap = tiling
    positions = tile_positions(length, tile, overlap)
    assert positions[0] == 0
    assert positions[-1] == length - tile
    steps = np.diff(positions)
    assert (steps > 0).all()
    assert (steps <= tile - overlap).all()
    # One tile fewer could not do it.
    assert (len(positions) - 1) * (tile - overlap) + overlap < length or len(positions) == 1


@settings(deadline=None, max_examples=50)
@given(tilings())
def test_blend_weights_are_positive_and_sum_to_one(tiling: tuple[int, int, int]) -> None:
    length, tile, overlap = tiling
    positions, weights = tile_positions(length, tile, overlap), blend_window(length, tile, overlap)
    assert weights.shape == (len(positions), tile)
    assert (weights > 0).all()
    total = torch.zeros(length, dtype=torch.float64)
    for start, weight in zip(positions, weights, strict=True):
        total[start : start + tile] += weight
    torch.testing.assert_close(total, torch.ones_like(total))


def test_blend_weights_are_smooth() -> None:
    weights = blend_window(160, 64, 16)
    assert weights.diff(dim=1).abs().max() < 0.11


@pytest.mark.parametrize("arguments", [(10, 4, 4), (10, 4, -1), (3, 4, 0)])
def test_impossible_tiling_is_refused(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match="0 <= overlap < tile <= length"):
        tile_positions(*arguments)


@settings(deadline=None, max_examples=50)
@given(sides, sides, st.integers(1, 16), st.integers(1, 16), st.floats(0, 0.9))
def test_any_size_of_an_identity_is_the_identity(
    height: int, width: int, tile_height: int, tile_width: int, overlap: float
) -> None:
    image = torch.rand(2, 1, height, width)
    net = AnySize(Fixed((tile_height, tile_width)), overlap=overlap, max_tiles_per_batch=64)
    torch.testing.assert_close(net(image), image, rtol=0, atol=1e-6)


def test_any_size_at_the_native_size_is_the_network_bit_by_bit() -> None:
    net = tiny_mixer()
    image = torch.rand(3, 1, 16, 16)
    assert torch.equal(AnySize(net)(image), net(image))


@settings(deadline=None)
@given(sides, sides, st.integers(1, 16), st.integers(1, 40))
def test_any_size_pads_to_what_a_network_needs(
    height: int, width: int, divisor: int, least: int
) -> None:
    image = torch.rand(1, 1, height, width)
    assert torch.equal(AnySize(Divisible(divisor, least))(image), image)


def test_any_size_of_the_unet_takes_a_single_pixel() -> None:
    net = build_model("unet", in_chans=1, out_chans=1, chans=4)
    assert_maps_images(AnySize(net), torch.rand(1, 1, 1, 1), out_chans=1)
    image = torch.rand(1, 1, 53, 47)
    assert torch.equal(AnySize(net)(image), net(image))


@pytest.mark.parametrize("size", [(8, 8), (16, 40), (40, 10), (50, 33), (3, 90)])
def test_any_size_learns_and_keeps_images_apart(size: tuple[int, int]) -> None:
    net = AnySize(tiny_mixer(), max_tiles_per_batch=3)
    assert_every_parameter_learns(net, torch.rand(2, 1, *size))
    assert_images_do_not_mix(net, torch.rand(3, 1, *size))


def test_gradient_reaches_the_image_through_tiles() -> None:
    image = torch.rand(1, 1, 40, 9, requires_grad=True)
    direction = torch.randn(1, 1, 40, 9)
    (AnySize(Fixed((16, 16), gain=3.0))(image) * direction).sum().backward()
    torch.testing.assert_close(image.grad, 3 * direction, rtol=1e-5, atol=1e-6)


def test_tiles_are_batched_and_bounded() -> None:
    net = Fixed((16, 16))
    AnySize(net, overlap=0, max_tiles_per_batch=5)(torch.rand(2, 1, 48, 32))
    assert net.batches == [5, 5, 2]


def test_a_network_of_any_size_is_cut_into_tiles_on_demand() -> None:
    """Interior tiles see what the whole image shows; each is padded to what the network takes."""
    seen: list[tuple[int, ...]] = []

    class Doubling(Divisible):
        def forward(self, image: Tensor) -> Tensor:
            seen.append(tuple(image.shape))
            return super().forward(image) * 2

    image = torch.rand(1, 3, 100, 21)
    tiled = AnySize(Doubling(8), tile=32, max_tiles_per_batch=3)
    torch.testing.assert_close(tiled(image), 2 * image)
    assert {shape[2:] for shape in seen} == {(32, 24)}
    assert max(shape[0] for shape in seen) == 3
    seen.clear()
    tiled(image[:, :, :32])
    assert seen == [(1, 3, 32, 24)]
    seen.clear()
    AnySize(Doubling(8))(image)
    assert seen == [(1, 3, 104, 24)]


def test_result_does_not_depend_on_the_batch_of_tiles() -> None:
    net = tiny_mixer()
    image = torch.rand(2, 1, 37, 52)
    torch.testing.assert_close(
        AnySize(net, max_tiles_per_batch=1)(image), AnySize(net, max_tiles_per_batch=99)(image)
    )


def test_no_seams_between_tiles() -> None:
    # Tiles that disagree by an offset: the blend must not jump from one to the next.
    class Offset(Fixed):
        def forward(self, image: Tensor) -> Tensor:
            return image + torch.arange(len(image), dtype=image.dtype)[:, None, None, None] % 2

    output = AnySize(Offset((32, 32)), overlap=0.5)(torch.zeros(1, 1, 32, 96))
    assert output.diff(dim=-1).abs().max() < 0.1


@pytest.mark.parametrize(
    ("setting", "name"),
    [({"overlap": 1.0}, "overlap"), ({"max_tiles_per_batch": 0}, "max_tiles_per_batch")],
)
def test_any_size_settings_out_of_range_are_refused(setting: dict[str, float], name: str) -> None:
    with pytest.raises(InputError, match=f"{name} is"):
        AnySize(nn.Identity(), **setting)


@pytest.mark.parametrize("shape", [(1, 1, 0, 4), (0, 1, 4, 4), (4, 4)])
def test_image_without_pixels_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="image has shape"):
        AnySize(Fixed((4, 4)))(torch.rand(shape))


class Recorder(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        self.seen = image
        return image


def test_normalised_image_has_mean_zero_and_unbiased_deviation_one() -> None:
    net = Recorder()
    image = torch.randn(3, 2, 20, 30) * 1e-6 + 5e-6
    output = Normalized(net)(image)
    torch.testing.assert_close(net.seen.mean((1, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(net.seen.flatten(1).std(1), torch.ones(3))
    torch.testing.assert_close(output, image, rtol=1e-5, atol=0)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e-7])
@pytest.mark.parametrize("size", [(8, 8), (1, 1)])
def test_normalising_a_constant_image_is_finite(value: float, size: tuple[int, int]) -> None:
    image = torch.full((2, 1, *size), value, requires_grad=True)
    output = Normalized(nn.Conv2d(1, 1, 3, padding=1))(image)
    output.sum().backward()
    assert output.isfinite().all()
    assert image.grad is not None
    assert image.grad.isfinite().all()


def test_normalising_commutes_with_the_units_of_the_image() -> None:
    net = Normalized(tiny_mixer())
    image = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(net(1e-6 * image + 3e-6), 1e-6 * net(image) + 3e-6)


def test_statistics_are_float32_under_autocast() -> None:
    # In bfloat16 this image would be constant.
    image = 1000 + torch.rand(2, 1, 16, 16)
    recorder = Recorder()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = Normalized(nn.Sequential(recorder, tiny_mixer()))(image)
    assert output.dtype == torch.float32
    torch.testing.assert_close(recorder.seen.flatten(1).std(1), torch.ones(2))


def test_normalised_half_precision_image_stays_so() -> None:
    image = torch.rand(2, 1, 16, 16, dtype=torch.bfloat16)
    assert_maps_images(Normalized(tiny_mixer().bfloat16()), image, out_chans=1)


def test_normalised_outside_any_size_sees_the_real_image() -> None:
    recorder = Recorder()
    Normalized(nn.Sequential(recorder, AnySize(tiny_mixer())))(torch.rand(1, 1, 11, 13))
    torch.testing.assert_close(recorder.seen.std(), torch.tensor(1.0))


def test_residual_is_the_image_minus_the_network() -> None:
    net = tiny_mixer()
    image = torch.rand(2, 1, 16, 16)
    assert torch.equal(Residual(net)(image), image - net(image))


def test_wrappers_pass_on_what_the_network_takes() -> None:
    nested = Residual(Normalized(tiny_mixer()))
    assert (nested.img_size, nested.size_divisor, nested.min_size) == ((16, 16), 4, 1)
    assert (AnySize(nested).img_size, AnySize(nested).size_divisor) == (None, 1)
    assert AnySize(nested)(torch.rand(1, 1, 30, 20)).shape == (1, 1, 30, 20)
    assert Normalized(build_model("unet", chans=4)).min_size == 32
