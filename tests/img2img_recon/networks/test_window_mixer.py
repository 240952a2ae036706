"""The window mixer: windows and their shifts, any size, the noise level, and the plain mixer inside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from img2img_recon.networks import window_mixer
from img2img_recon.networks.layers import MixerLayer
from img2img_recon.networks.window_mixer import (
    WindowMixer,
    WindowStage,
    gather_cells,
    in_windows,
    spread_cells,
)
from img2img_recon.support.errors import InputError
from tests.contracts import (
    assert_every_parameter_learns,
    assert_images_do_not_mix,
    assert_maps_images,
    parameter_count,
)

U_SHAPE: dict[str, Any] = {"window_size": 4, "embed_dims": (6, 8), "depths": (2, 2, 2)}
FLAT: dict[str, Any] = {"window_size": 4, "embed_dims": (6,), "depths": (3,)}


def small(seed: int = 0, **options: Any) -> WindowMixer:
    torch.manual_seed(seed)
    return WindowMixer(**(U_SHAPE | options)).eval()


def reached(outputs: Tensor, inputs: Tensor, cell: tuple[int, int]) -> set[tuple[int, int]]:
    """The cells of the volume `inputs` (1, H, W, C) that one cell of `outputs` depends on."""
    (gradient,) = torch.autograd.grad(
        (outputs[0, cell[0], cell[1]] * torch.randn(outputs.shape[-1])).sum(),
        inputs,
        retain_graph=True,
    )
    return {(row, column) for row, column in gradient[0].abs().sum(-1).nonzero().tolist()}


def box(top: int, left: int, side: int) -> set[tuple[int, int]]:
    return {(top + row, left + column) for row in range(side) for column in range(side)}


@pytest.mark.parametrize("token_mixing", ["mlp", "linear"])
def test_a_cell_sees_its_own_window_and_no_other(token_mixing: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 12, 16, 5, requires_grad=True)
    mixed = WindowStage(4, 5, 1, 2, token_mixing)(x)
    assert reached(mixed, x, (5, 10)) == box(4, 8, 4)
    assert reached(mixed, x, (11, 0)) == box(8, 0, 4)


def test_the_second_layer_lies_half_a_window_further() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 16, 16, 5, requires_grad=True)
    mixed = WindowStage(4, 5, 2, 2, "linear")(x)
    # The shifted window of rows 6 to 9 and columns 6 to 9 touches the four windows from 4 to 11.
    assert reached(mixed, x, (7, 8)) == box(4, 4, 8)


def test_shifted_windows_do_not_wrap_around() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 16, 16, 5, requires_grad=True)
    mixed = WindowStage(4, 5, 2, 2, "linear")(x)
    for corner, window in {(0, 0): box(0, 0, 4), (15, 15): box(12, 12, 4)}.items():
        assert reached(mixed, x, corner) == window


@pytest.mark.parametrize("options", [FLAT, U_SHAPE])
def test_far_ends_of_an_image_do_not_meet(options: dict[str, Any]) -> None:
    net = small(**options)
    image = torch.rand(1, 3, 150, 40)
    changed = image.clone()
    changed[..., -30:, :] = torch.rand(1, 3, 30, 40)
    with torch.no_grad():
        before, after = net(image), net(changed)
    assert torch.equal(before[..., :40, :], after[..., :40, :])
    assert not torch.equal(before[..., -40:, :], after[..., -40:, :])


def test_one_window_is_the_plain_mixer_layer() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 8, 8, 6)
    plain, stage = MixerLayer((8, 8), 6, 2), WindowStage(8, 6, 1, 2, "mlp")
    stage[0].load_state_dict(plain.state_dict())
    torch.testing.assert_close(stage(x), plain(x))


def test_windows_are_cut_and_put_together_in_place() -> None:
    x = torch.arange(2 * 4 * 6 * 3.0).view(2, 4, 6, 3)
    assert torch.equal(in_windows(nn.Identity(), x, 2), x)
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, windows: Tensor) -> Tensor:
            seen.append(windows)
            return windows

    in_windows(Spy(), x, 2)
    assert seen[0].shape == (12, 2, 2, 3)
    assert torch.equal(seen[0][4], x[0, 2:4, 2:4])


def test_cells_are_gathered_and_spread_in_place() -> None:
    x = torch.randn(2, 4, 6, 3)
    gathered = gather_cells(x)
    assert torch.equal(
        gathered[0, 1, 2], torch.cat([x[0, 2, 4], x[0, 2, 5], x[0, 3, 4], x[0, 3, 5]])
    )
    assert torch.equal(spread_cells(gathered, 2), x)


@pytest.mark.parametrize("options", [FLAT, U_SHAPE, {"patch_size": 1}, {"patch_size": 3}])
@pytest.mark.parametrize("size", [(1, 1), (1, 37), (16, 16), (33, 71), (64, 48)])
def test_takes_images_of_any_size(options: dict[str, Any], size: tuple[int, int]) -> None:
    assert_maps_images(small(**options), torch.rand(2, 3, *size), out_chans=3)


def test_channels_in_and_out_may_differ() -> None:
    assert_maps_images(small(in_chans=2, out_chans=5), torch.rand(1, 2, 20, 20), out_chans=5)


def test_padding_is_the_mirror_image() -> None:
    net = small()
    image = torch.rand(1, 3, 32, 32)
    # 16 pixels, one window of the coarse level, are added; 8 on each side.
    mirrored = nn.functional.pad(image, (8, 8, 8, 8), mode="reflect")
    with torch.no_grad():
        torch.testing.assert_close(net(image), net._residual(mirrored, None)[..., 8:-8, 8:-8])


@pytest.mark.parametrize("options", [FLAT, U_SHAPE])
@pytest.mark.parametrize("noise_level_plane", [False, True])
def test_every_parameter_learns(options: dict[str, Any], noise_level_plane: bool) -> None:
    net = small(noise_level_plane=noise_level_plane, **options)
    sigma = torch.tensor([0.1, 0.3]) if noise_level_plane else None
    assert_every_parameter_learns(_At(net, sigma), torch.rand(2, 3, 32, 48))


class _At(nn.Module):
    """A network at one noise level."""

    def __init__(self, net: WindowMixer, sigma: Tensor | float | None) -> None:
        super().__init__()
        self.net, self.sigma = net, sigma

    def forward(self, image: Tensor) -> Tensor:
        return self.net(image, self.sigma)


def test_images_of_a_batch_do_not_mix() -> None:
    assert_images_do_not_mix(small(), torch.rand(3, 3, 24, 40))


def test_sigma_belongs_to_its_image() -> None:
    net = small(noise_level_plane=True)
    image, sigma = torch.rand(3, 3, 24, 40), torch.tensor([0.02, 0.1, 0.3])
    with torch.no_grad():
        together = net(image, sigma)
        alone = torch.cat([net(image[k : k + 1], float(sigma[k])) for k in range(3)])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(net(image, sigma.view(3, 1, 1, 1)), together)
        same = net(image[:1].expand(3, -1, -1, -1), sigma) / sigma.view(3, 1, 1, 1)
    assert (same[0] - same[1]).abs().max() > 1e-4, "the level must also enter as a plane"


def test_without_noise_nothing_is_removed() -> None:
    assert not small(noise_level_plane=True)(torch.rand(2, 3, 24, 40), 0.0).any()


@pytest.mark.parametrize("sigma", [torch.rand(2), torch.rand(3, 1, 8, 8), torch.rand(0)])
def test_a_sigma_that_does_not_fit_is_refused(sigma: Tensor) -> None:
    with pytest.raises(InputError, match=r"sigma has shape .* one per image, \(3,\)"):
        small(noise_level_plane=True)(torch.rand(3, 3, 8, 8), sigma)


def test_sigma_is_needed_exactly_where_it_enters() -> None:
    image = torch.rand(1, 3, 8, 8)
    with pytest.raises(InputError, match="needs sigma"):
        small(noise_level_plane=True)(image)
    with pytest.raises(InputError, match="takes no sigma"):
        small()(image, 0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": (2, 2)}, "depths has 2 stages; 2 levels need 3"),
        ({"window_size": 5}, "window_size is 5; it must be even"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        small(**options)


def test_an_image_of_other_channels_is_refused() -> None:
    with pytest.raises(InputError, match=r"\(1, 1, 8, 8\)"):
        small()(torch.rand(1, 1, 8, 8))


def test_parameters_are_those_that_were_counted_by_hand() -> None:
    # Window 4, MLP ratio 2, linear token mixing: a layer of C channels has 2 norms (4C), two
    # 4 x 4 maps (40) and the channel MLP (4C^2 + 3C).
    def layer(chans: int) -> int:
        return 4 * chans + 40 + 4 * chans**2 + 3 * chans

    embed, output = 3 * 4 * 6 + 6, 6 * 12 + 12
    merge, expand = 24 * 8 + 8, 8 * 24 + 24
    assert parameter_count(small()) == embed + 4 * layer(6) + 2 * layer(8) + merge + expand + output
    assert parameter_count(small(noise_level_plane=True)) - parameter_count(small()) == 4 * 6


def test_a_grid_layer_sees_columns_spread_over_the_whole_width() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 8, 20, 5, requires_grad=True)
    mixed = WindowStage(4, 5, 1, 2, "linear", ("grid",))(x)
    # Rows 4 to 7 are a window's; columns of one window lie 20 / 4 apart.
    assert reached(mixed, x, (6, 7)) == {
        (row, col) for row in range(4, 8) for col in (2, 7, 12, 17)
    }


def test_partitions_are_taken_in_turn() -> None:
    stage = WindowStage(4, 5, 5, 2, "linear", ("windows", "grid"))
    assert stage.partitions == ("windows", "grid", "windows", "grid", "windows")


@pytest.mark.parametrize(
    ("partitions", "axis"), [(("windows", "shifted"), 3), (("windows", "grid"), 2)]
)
def test_a_circular_border_has_no_first_row(partitions: tuple[str, ...], axis: int) -> None:
    # A grid layer has weights by position along the width; along the height it moves as windows do.
    net = small(**U_SHAPE, border="circular", partitions=partitions)
    unit = net.size_unit
    image = torch.rand(1, 3, 2 * unit, 3 * unit)
    moved = net(image.roll((unit, unit), (2, axis)))
    torch.testing.assert_close(moved.roll((-unit, -unit), (2, axis)), net(image))


def test_a_circular_border_pads_with_the_other_end() -> None:
    net = small(**U_SHAPE, border="circular")
    unit = net.size_unit
    image = torch.rand(1, 3, unit - 3, unit)
    padded = torch.cat([image[:, :, -1:], image, image[:, :, :2]], 2)
    torch.testing.assert_close(net(image), net(padded)[:, :, 1:-2])


@pytest.mark.parametrize("wrong", [{"partitions": ("diagonal",)}, {"border": "mirror"}])
def test_unknown_partitions_and_borders_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        small(**wrong)


@pytest.mark.parametrize("size", [(200, 70), (131, 259), (320, 96)])
@pytest.mark.parametrize("token_mixing", ["mlp", "linear"])
def test_tiles_give_what_the_whole_gives(size: tuple[int, int], token_mixing: str) -> None:
    torch.manual_seed(0)
    options = {"window_size": 4, "embed_dims": (8, 12, 16), "depths": (1, 2, 2, 2, 2)}
    network = WindowMixer(token_mixing=token_mixing, noise_level_plane=True, **options).eval()
    image, sigma = torch.rand(2, 3, *size), torch.tensor([0.1, 0.3])
    with torch.no_grad():
        whole = network(image, sigma)
        for tile in (32, 64, 100):
            network.tile = tile
            torch.testing.assert_close(network(image, sigma), whole, atol=1e-6, rtol=0)


def test_reach_is_how_far_a_pixel_acts_on_others_and_no_further() -> None:
    torch.manual_seed(0)
    network = WindowMixer(window_size=4, embed_dims=(8, 8), depths=(2, 2, 2)).eval()
    assert WindowMixer(partitions=("grid",)).reach is None
    unit, reach = network.size_unit, network.reach
    assert reach is not None
    image = torch.rand(1, 3, 12 * unit, 2 * unit)
    changed = image.clone()
    changed[:, :, 6 * unit - 1] += 1  # the last row of a unit
    with torch.no_grad():
        acts = (network._residual(image, None) != network._residual(changed, None)).any(3).any(1)[0]
    rows = acts.nonzero().flatten()
    assert rows.max() < 6 * unit + reach
    assert rows.max() >= 6 * unit + reach - unit
    assert rows.min() >= 6 * unit - unit - reach


@pytest.mark.parametrize("partitions", [("windows", "shifted"), ("shifted", "windows")])
def test_parts_that_stay_in_cache_change_nothing(
    partitions: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network = WindowMixer(window_size=4, embed_dims=(8, 12), partitions=partitions).eval()
    image = torch.rand(2, 3, 90, 150)
    with torch.no_grad():
        monkeypatch.setattr(window_mixer, "PART_ELEMENTS", 1 << 40)
        plain = network(image)
        for elements in (1, 700, 5000):
            monkeypatch.setattr(window_mixer, "PART_ELEMENTS", elements)
            assert torch.equal(network(image), plain)
        seen: list[int] = []
        network.stages[0][1].channel_norm.register_forward_hook(lambda *_: seen.append(1))
        network(image)
    assert len(seen) > 2  # modules are called, part by part
