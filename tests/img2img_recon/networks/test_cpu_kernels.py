"""What a CPU computes in parts: equal to the modules, forward and backward, and only where nobody can tell."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from img2img_recon.networks import cpu_kernels, layers
from img2img_recon.networks.cpu_kernels import blocked_projection, in_parts
from img2img_recon.networks.layers import AxisMLP, PatchExpand
from img2img_recon.networks.mixers import Img2ImgMixer


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks so small that every volume here is cut, with a shorter last block."""
    monkeypatch.setattr(cpu_kernels, "BLOCK_ELEMENTS", 150)
    monkeypatch.setattr(cpu_kernels, "PLAIN_ELEMENTS", 0)
    monkeypatch.setattr(cpu_kernels, "WHOLE_ELEMENTS", 0)
    monkeypatch.setattr(cpu_kernels, "PART_ELEMENTS", 100)


def modules(scale: int = 2) -> tuple[PatchExpand, nn.Linear]:
    """Expansion and output in float64, every parameter of which counts."""
    torch.manual_seed(0)
    expand = PatchExpand(5, scale, 4).double()
    nn.init.normal_(expand.norm.weight)
    nn.init.normal_(expand.norm.bias)
    return expand, nn.Linear(4, 3, bias=False).double()


def small_mixer() -> Img2ImgMixer:
    torch.manual_seed(0)
    return Img2ImgMixer((24, 16), 3, 2, 4, 10, 2, 3)


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("frozen", ["nothing", "volume", "weights"])
def test_equal_to_its_modules_forward_and_backward(scale: int, frozen: str) -> None:
    expand, output = modules(scale)
    x = torch.randn(2, 4, 3, 5, dtype=torch.float64, requires_grad=frozen != "volume")
    weights = [*expand.parameters(), *output.parameters()]
    for weight in weights:
        weight.requires_grad_(frozen != "weights")
    wanted = [tensor for tensor in (x, *weights) if tensor.requires_grad]
    cells = blocked_projection(x, expand.expand, expand.norm, output)
    assert cells is not None
    got, expected = expand(x, output), output(expand(x))
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)
    weighting = torch.randn_like(got)
    gradients = torch.autograd.grad((got * weighting).sum(), wanted)
    expected_gradients = torch.autograd.grad((expected * weighting).sum(), wanted)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-10, atol=1e-11)


def test_mixer_is_the_same_with_and_without_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    net = small_mixer()
    image = torch.randn(2, 3, 24, 16)
    with torch.inference_mode():
        inferred = net(image)
    output = net(image)
    output.square().mean().backward()
    gradients = [p.grad for p in net.parameters()]
    net.zero_grad(set_to_none=True)
    monkeypatch.setattr(layers, "in_parts", lambda mix, x, axis, wide: mix(x))
    monkeypatch.setattr(layers, "blocked_projection", lambda *modules: None)
    expected = net(image)
    expected.square().mean().backward()
    torch.testing.assert_close(inferred, expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    expected_gradients = [p.grad for p in net.parameters()]
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-4, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 7)] * 4),
    hidden=st.integers(1, 40),
    axis=st.integers(-1, 3),
    order=st.permutations([0, 1, 2, 3]),
)
def test_parts_are_the_whole_whatever_the_strides(
    shape: tuple[int, int, int, int], hidden: int, axis: int, order: list[int]
) -> None:
    x = torch.randn([shape[i] for i in order], dtype=torch.float64).permute(order)
    mlp = AxisMLP(x.shape[axis], hidden, axis).double()
    expected = mlp(x).detach()  # with gradients: the whole at once
    with torch.no_grad():
        torch.testing.assert_close(mlp(x), expected, rtol=1e-11, atol=1e-11)


def test_parts_are_small_and_only_for_inference() -> None:
    parts: list[tuple[int, ...]] = []

    def mix(part: Tensor) -> Tensor:
        parts.append(tuple(part.shape))
        return part

    x = torch.randn(2, 4, 6, 5)
    assert torch.equal(in_parts(mix, x, 1, 4 * x.numel()), x)
    assert parts == [tuple(x.shape)]
    parts.clear()
    with torch.no_grad():
        assert torch.equal(in_parts(mix, x, 1, 4 * x.numel()), x)
    assert len(parts) > 2
    assert all(part[1] == 4 and 4 * math.prod(part) <= 100 for part in parts)


def test_copies_and_pickles_keep_the_output() -> None:
    net = small_mixer()
    image = torch.randn(1, 3, 24, 16)
    expected = net(image)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(image), expected)


def test_bfloat16_and_autocast_take_the_modules() -> None:
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


def test_functional_transforms_take_the_modules() -> None:
    expand, output = modules()
    x = torch.randn(1, 4, 3, 5, dtype=torch.float64)

    def run(x: Tensor) -> Tensor:
        return expand(x, output).square().sum()

    wanted = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(run(wanted), wanted)
    torch.testing.assert_close(torch.func.grad(run)(x), expected)
    torch.testing.assert_close(
        torch.vmap(lambda x: expand(x, output))(x[None])[0], expand(x, output)
    )


def test_a_small_volume_takes_the_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_kernels, "PLAIN_ELEMENTS", 4 * 3 * 16)
    expand, output = modules()
    x = torch.randn(1, 4, 3, 5, dtype=torch.float64)
    assert blocked_projection(x, expand.expand, expand.norm, output) is None
    assert blocked_projection(torch.cat([x, x]), expand.expand, expand.norm, output) is not None
