"""Patches and mixing: layout, equality of the blocked and plain formulations, gradients, dtypes."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from img2img_recon.networks import cpu_kernels as blocked
from img2img_recon.networks import layers
from img2img_recon.networks.cpu_kernels import plain_formulation
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


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks so small that every tensor here is cut, with a shorter last block."""
    monkeypatch.setattr(blocked, "BLOCK_ELEMENTS", 150)
    monkeypatch.setattr(blocked, "TRAINING_BLOCK_ELEMENTS", 150)
    monkeypatch.setattr(blocked, "MATRIX_ELEMENTS", 60)
    monkeypatch.setattr(blocked, "PLAIN_ELEMENTS", 0)


def transposed_mlp(mlp: AxisMLP, x: Tensor, axis: int) -> Tensor:
    """The MLP as nn.Linear would do it: axis last, linear, GELU, linear, axis back."""
    hidden = F.gelu(F.linear(x.movedim(axis, -1), mlp.fc1.weight, mlp.fc1.bias))
    return F.linear(hidden, mlp.fc2.weight, mlp.fc2.bias).movedim(-1, axis)


def small_mixer(token_mixing: str = "mlp") -> Img2ImgMixer:
    torch.manual_seed(0)
    return Img2ImgMixer((24, 16), 3, 2, 4, 10, 2, 3, token_mixing)  # type: ignore[arg-type]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("axis", [1, 2, 3, -1])
def test_axis_mlp_is_linear_gelu_linear_along_that_axis(axis: int, plain: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 6, 7, dtype=torch.float64)
    mlp = AxisMLP(x.shape[axis], 11, axis).double()
    if plain:
        with plain_formulation():
            mixed = mlp(x)
    else:
        mixed = mlp(x)
    torch.testing.assert_close(mixed, transposed_mlp(mlp, x, axis), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_axis_linear_is_linear_along_that_axis(axis: int) -> None:
    x = torch.randn(2, 5, 6, 7, dtype=torch.float64)
    layer = AxisLinear(x.shape[axis], 4, axis).double()
    expected = F.linear(x.movedim(axis, -1), layer.weight, layer.bias).movedim(-1, axis)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_axis_mlp_takes_three_dimensions(axis: int) -> None:
    x = torch.randn(3, 9, 4, dtype=torch.float64)
    mlp = AxisMLP(x.shape[axis], 7, axis).double()
    if axis == 0:
        with plain_formulation():
            mixed = mlp(x)
    else:
        mixed = mlp(x)
    torch.testing.assert_close(mixed, transposed_mlp(mlp, x, axis), rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("small_blocks")
@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 7)] * 4),
    hidden=st.integers(1, 40),
    axis=st.integers(1, 3),
    order=st.permutations([0, 1, 2, 3]),
)
def test_blocked_equals_plain_whatever_the_strides(
    shape: tuple[int, int, int, int], hidden: int, axis: int, order: list[int]
) -> None:
    base = torch.randn([shape[i] for i in order], dtype=torch.float64)
    x = base.permute([order.index(i) for i in range(4)])
    mlp = AxisMLP(x.shape[axis], hidden, axis).double()
    with plain_formulation():
        expected = x + mlp(x)
    torch.testing.assert_close(mlp(x, residual=x), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_blocked_gradient_is_right(axis: int, with_residual: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 3, 5, dtype=torch.float64, requires_grad=True)
    residual = torch.randn_like(x, requires_grad=True) if with_residual else None
    mlp = AxisMLP(x.shape[axis], 9, axis).double()

    def run(x: Tensor, residual: Tensor | None, *weights: Tensor) -> Tensor:
        return blocked.blocked_mlp(x, blocked.MLPWeights(*weights), axis, residual)

    assert torch.autograd.gradcheck(run, (x, residual, *mlp.weights))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("frozen", ["input", "weights"])
def test_blocked_gradient_of_one_part_alone(frozen: str) -> None:
    x = torch.randn(1, 4, 3, 5, dtype=torch.float64, requires_grad=frozen == "weights")
    mlp = AxisMLP(4, 9, 1).double().requires_grad_(frozen == "input")
    wanted = [x] if frozen == "weights" else list(mlp.parameters())
    got = torch.autograd.grad(mlp(x).square().sum(), wanted)
    with plain_formulation():
        expected = torch.autograd.grad(mlp(x).square().sum(), wanted)
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("token_mixing", ["mlp", "linear"])
def test_mixer_equals_its_plain_formulation_forward_and_backward(token_mixing: str) -> None:
    net = small_mixer(token_mixing)
    image = torch.randn(2, 3, 24, 16)
    with torch.no_grad():
        inferred = net(image)
    output = net(image)
    output.square().mean().backward()
    gradients = [p.grad for p in net.parameters()]
    net.zero_grad(set_to_none=True)
    with plain_formulation():
        expected = net(image)
    expected.square().mean().backward()
    torch.testing.assert_close(inferred, expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    expected_gradients = [p.grad for p in net.parameters()]
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-4, atol=1e-6)


def test_plain_formulation_ends_with_its_block() -> None:
    x, weight = torch.zeros(1, 2), torch.zeros(2, 2)
    with plain_formulation():
        assert not blocked.runs_blocked(x, weight)
        with plain_formulation():
            pass
        assert not blocked.runs_blocked(x, weight)
    assert blocked.runs_blocked(x, weight)


@pytest.mark.usefixtures("small_blocks")
def test_training_after_inference_mode() -> None:
    """The hidden buffer kept between calls must not be one that inference mode made."""
    net = small_mixer()
    blocked._local.__dict__.pop("buffers", None)
    image = torch.randn(1, 3, 24, 16)
    with torch.inference_mode():
        net(image)
    net(image).sum().backward()


@pytest.mark.usefixtures("small_blocks")
def test_results_do_not_share_the_kept_buffer() -> None:
    mlp = AxisMLP(4, 9, 1)
    first = mlp(torch.randn(1, 4, 3, 5)).detach()
    before = first.clone()
    mlp(torch.randn(1, 4, 3, 5))
    assert torch.equal(first, before)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("units", [False, True])
def test_bfloat16_and_autocast_stay_near_float32(
    units: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocked, "has_units_for", lambda dtype: units)
    net = small_mixer()
    image = torch.randn(2, 3, 24, 16)
    expected = net(image).detach()
    with torch.autocast("cpu", torch.bfloat16):
        cast = net(image)
    assert cast.dtype == torch.bfloat16
    cast.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in net.parameters())
    half = copy.deepcopy(net).bfloat16()(image.bfloat16())
    assert half.dtype == torch.bfloat16
    for output in (cast, half):
        torch.testing.assert_close(output.float(), expected, rtol=0.1, atol=0.1)


@pytest.mark.usefixtures("small_blocks")
def test_copies_and_pickles_keep_the_output() -> None:
    net = small_mixer()
    image = torch.randn(1, 3, 24, 16)
    expected = net(image)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(image), expected)


@pytest.mark.usefixtures("small_blocks")
def test_functional_transforms_go_through() -> None:
    mlp = AxisMLP(4, 9, 1).double()
    x = torch.randn(1, 4, 3, 5, dtype=torch.float64)
    got = torch.func.grad(lambda x: mlp(x).square().sum())(x)
    wanted = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(mlp(wanted).square().sum(), wanted)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torch.vmap(mlp)(x[None])[0], mlp(x))


@pytest.mark.usefixtures("small_blocks")
def test_second_derivatives_need_the_plain_formulation() -> None:
    mlp = AxisMLP(4, 9, 1).double()
    x = torch.randn(1, 4, 3, 5, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(mlp(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        first.sum().backward()
    with plain_formulation():
        assert torch.autograd.gradgradcheck(lambda x: mlp(x), (x,))


def test_small_volumes_run_plain_and_half_precision_without_units_never(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight = torch.zeros(32, 16)
    small, large = torch.zeros(2, 16, 16, 16), torch.zeros(32, 16, 32, 16)
    assert not blocked.pays_off(small, weight)
    assert not blocked.pays_off(large, weight)
    assert blocked.pays_off(torch.cat([large] * 2), weight)
    monkeypatch.setattr(blocked, "has_units_for", lambda dtype: dtype != torch.bfloat16)
    assert blocked.pays_off(small.bfloat16(), weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert blocked.pays_off(small, weight)
        assert not blocked.pays_off(small.double(), weight)


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_small_images_of_a_batch_are_cut_together(axis: int) -> None:
    """Image by image, a batch of small crops took twice as long as the plain formulation."""
    layout = blocked._Layout.of(torch.zeros(8, 16, 16, 64), axis, 32)
    assert layout.shape[0] == 1


def random_norm(dim: int) -> nn.LayerNorm:
    """LayerNorm whose gain and shift are not the initial ones."""
    norm = nn.LayerNorm(dim)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("scale", [1, 2])
def test_projection_is_expansion_then_a_linear_map(scale: int) -> None:
    torch.manual_seed(0)
    expand = PatchExpand(5, scale, 4)
    expand.norm = random_norm(4)
    expand.double()
    x = torch.randn(2, 4, 3, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    wanted = [x, weight, *expand.parameters()]
    got, expected = expand.project(x, weight), F.linear(expand(x), weight)
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)
    weighting = torch.randn_like(got)
    gradients = torch.autograd.grad((got * weighting).sum(), wanted)
    expected_gradients = torch.autograd.grad((expected * weighting).sum(), wanted)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-10, atol=1e-11)


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


def random_layer() -> MixerLayer:
    """A layer in float64 whose every parameter, biases among them, counts."""
    torch.manual_seed(0)
    layer = MixerLayer((6, 5), 7, 2).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_inference_mixes_tokens_at_once(
    batch: int, transposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both biases go through the product along width: equal to the formula, whatever the strides."""
    layer = random_layer()
    x = torch.randn(batch, 6, 5, 7, dtype=torch.float64)
    if transposed:
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    ran: list[int] = []
    at_once = layers.blocked_token_mixing
    monkeypatch.setattr(
        layers, "blocked_token_mixing", lambda *given: ran.append(1) or at_once(*given)
    )
    with torch.no_grad():
        got = layer(x)
        h, w, c = layer.height_mixing, layer.width_mixing, layer.channel_mixing
        assert isinstance(h, AxisMLP)
        assert isinstance(w, AxisMLP)
        y = x + transposed_mlp(w, transposed_mlp(h, layer.token_norm(x), 1), 2)
        y = y + transposed_mlp(c, layer.channel_norm(y), 3)
    assert ran == [1]
    torch.testing.assert_close(got, y, rtol=1e-11, atol=1e-11)
    layer(x)  # with gradients: one MLP after the other
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        layer.float()(x.float())
    assert ran == [1]


def test_inference_on_a_batch_of_small_images() -> None:
    """Large enough as a batch for the blocked formulation, each image too small to go column by column."""
    torch.manual_seed(0)
    layer = MixerLayer((16, 12), 64, 2)
    x = torch.randn(24, 16, 12, 64)
    with torch.no_grad():
        got = layer(x)
        assert blocked.pays_off(x, torch.empty(32, 16))
        with plain_formulation():
            torch.testing.assert_close(got, layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", ["height_mixing", "width_mixing"])
@pytest.mark.parametrize("when", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_on_token_mixing_are_called_in_inference(name: str, when: str) -> None:
    layer = random_layer()
    called: list[nn.Module] = []
    module = getattr(layer, name)
    getattr(module, when)(lambda hooked, *given: called.append(hooked))
    with torch.no_grad():
        layer(torch.randn(1, 6, 5, 7, dtype=torch.float64))
    assert called == [module]


@pytest.mark.usefixtures("small_blocks")
def test_a_replaced_token_mixing_is_run_in_inference() -> None:
    class Doubled(AxisMLP):
        def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
            return 2 * x if residual is None else residual + 2 * x

    layer = random_layer()
    layer.height_mixing, layer.width_mixing = Doubled(6, 3, 1), Doubled(5, 3, 2)
    x = torch.randn(1, 6, 5, 7, dtype=torch.float64)
    with torch.no_grad():
        mixed = x + 4 * layer.token_norm(x)
        expected = layer.channel_mixing(layer.channel_norm(mixed), residual=mixed)
        torch.testing.assert_close(layer(x), expected)


def test_unknown_token_mixing_is_named() -> None:
    with pytest.raises(ValueError, match="'conv'"):
        MixerLayer((4, 4), 5, 2, "conv")  # type: ignore[arg-type]


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
