"""Patches and mixing: layout, order, sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from img2img_recon.networks.layers import (
    AxisLinear,
    AxisMLP,
    MixerLayer,
    PatchEmbed,
    PatchExpand,
    PatchMerge,
)
from img2img_recon.networks.mixers import Img2ImgMixer
from img2img_recon.support.errors import InputError


def transposed_mlp(mlp: AxisMLP, x: Tensor, axis: int) -> Tensor:
    """The MLP as nn.Linear would do it: axis last, linear, GELU, linear, axis back."""
    hidden = F.gelu(F.linear(x.movedim(axis, -1), mlp.fc1.weight, mlp.fc1.bias))
    return F.linear(hidden, mlp.fc2.weight, mlp.fc2.bias).movedim(-1, axis)


def small_mixer(token_mixing: str = "mlp") -> Img2ImgMixer:
    torch.manual_seed(0)
    return Img2ImgMixer((24, 16), 3, 2, 4, 10, 2, 3, token_mixing)


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 1, 3), (3, 2, 1, 0)])
def test_axis_mlp_is_linear_gelu_linear_along_that_axis(axis: int, order: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 6, 7, dtype=torch.float64).permute(order)
    mlp = AxisMLP(x.shape[axis], 11, axis).double()
    torch.testing.assert_close(mlp(x), transposed_mlp(mlp, x, axis), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_axis_linear_is_linear_along_that_axis(axis: int) -> None:
    x = torch.randn(2, 5, 6, 7, dtype=torch.float64)
    layer = AxisLinear(x.shape[axis], 4, axis).double()
    expected = F.linear(x.movedim(axis, -1), layer.weight, layer.bias).movedim(-1, axis)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_axis_mlp_takes_three_dimensions(axis: int) -> None:
    x = torch.randn(3, 9, 4, dtype=torch.float64)
    mlp = AxisMLP(x.shape[axis], 7, axis).double()
    torch.testing.assert_close(mlp(x), transposed_mlp(mlp, x, axis), rtol=1e-12, atol=1e-12)


def test_functional_transforms_and_second_derivatives_go_through() -> None:
    mlp = AxisMLP(4, 9, 1).double()
    x = torch.randn(1, 4, 3, 5, dtype=torch.float64)
    got = torch.func.grad(lambda x: mlp(x).square().sum())(x)
    wanted = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(mlp(wanted).square().sum(), wanted)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torch.vmap(mlp)(x[None])[0], mlp(x))
    assert torch.autograd.gradgradcheck(mlp, (wanted,))


def test_mixer_layer_order_is_height_width_then_channels() -> None:
    torch.manual_seed(0)
    layer = MixerLayer((4, 3), 5, 2).double()
    x = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    h, w, c = layer.height_mixing, layer.width_mixing, layer.channel_mixing
    assert isinstance(h, AxisMLP)
    assert isinstance(w, AxisMLP)
    y = x + transposed_mlp(w, transposed_mlp(h, layer.token_norm(x), 1), 2)
    y = y + transposed_mlp(c, layer.channel_norm(y), 3)
    torch.testing.assert_close(layer(x), y)


def test_unknown_token_mixing_is_named() -> None:
    with pytest.raises(ValueError, match="'conv'"):
        MixerLayer((4, 4), 5, 2, "conv")


def test_patch_embed_is_the_strided_convolution() -> None:
    embed = PatchEmbed(4, 3, 7).double()
    image = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    weight = embed.proj.weight.view(7, 3, 4, 4)
    expected = F.conv2d(image, weight, embed.proj.bias, stride=4).permute(0, 2, 3, 1)
    torch.testing.assert_close(embed(image), expected)


def test_patch_expand_orders_features_row_column_channel() -> None:
    expand = PatchExpand(5, 2, 3).double()
    x = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    out = expand(x)
    assert out.shape == (2, 8, 6, 3)
    features = F.linear(x, expand.expand.weight)
    for p1 in range(2):
        for p2 in range(2):
            start = (2 * p1 + p2) * 3
            cell = expand.norm(features[..., start : start + 3])
            torch.testing.assert_close(out[:, p1::2, p2::2], cell)


def test_patch_merge_orders_the_four_neighbours() -> None:
    merge = PatchMerge(3).double()
    x = torch.randn(2, 4, 6, 3, dtype=torch.float64)
    neighbours = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
    expected = merge.reduction(merge.norm(torch.cat(neighbours, -1)))
    torch.testing.assert_close(merge(x), expected)
    assert merge.reduction.bias is None


@pytest.mark.parametrize(
    ("config", "count"),
    [
        ((256, 3, 3, 4, 64, 16, 4), 1_661_312),
        ((256, 3, 3, 4, 96, 16, 4), 2_404_928),
        ((256, 3, 3, 4, 128, 16, 4), 3_443_456),
        ((256, 3, 3, 4, 128, 16, 8), 6_605_568),
        ((256, 3, 3, 4, 192, 16, 8), 12_192_896),
        ((256, 3, 3, 1, 107, 12, 1), 3_452_908),
        ((320, 1, 1, 4, 128, 16, 8), 7_785_472),
        ((256, 3, 3, 4, 140, 19, 4, "linear"), 3_482_380),
    ],
)
def test_parameter_count(config: tuple, count: int) -> None:
    with torch.device("meta"):
        net: nn.Module = Img2ImgMixer(*config)
    assert sum(p.numel() for p in net.parameters()) == count


def test_wrong_sizes_raise_one_line() -> None:
    for size, patch in ((30, 4), (2, 4), ((32, 30), 4), (0, 4), (32, 0)):
        with pytest.raises(InputError) as raised:
            Img2ImgMixer(size, 3, 3, patch, 8, 1, 2)
        assert "\n" not in str(raised.value)
    net = small_mixer()
    for shape in ((1, 3, 16, 24), (1, 1, 24, 16), (3, 24, 16)):
        with pytest.raises(InputError, match="24, 16"):
            net(torch.zeros(shape))
