"""PyTorch's promises: whatever is done to a sub-module changes the output on a CPU as it does elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from img2img_recon.networks import cpu_kernels, layers
from img2img_recon.networks.mixers import Img2ImgMixer
from tests.img2img_recon.networks.test_networks import SMALL, small


class LowRank(nn.Module):
    """A LoRA-like adapter: what it wraps, plus a map of rank 1 that mixes the last axis."""

    def __init__(self, wrapped: nn.Module, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.wrapped = wrapped
        self.down = nn.Linear(dim_in, 1, bias=False)
        self.up = nn.Linear(1, dim_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.wrapped(x) + self.up(self.down(x))


class Bent(nn.Module):
    """Changes a weight in a way that no normalisation takes out."""

    def forward(self, weight: Tensor) -> Tensor:
        return (3 * weight).sin()


def adapter(net: nn.Module, name: str) -> None:
    module = net.get_submodule(name)
    assert isinstance(module, nn.Linear)
    parent, _, own = name.rpartition(".")
    adapted = LowRank(module, module.in_features, module.out_features)
    setattr(net.get_submodule(parent), own, adapted)


def forward_hook(net: nn.Module, name: str) -> None:
    net.get_submodule(name).register_forward_hook(lambda module, given, output: output.sin())


def pre_hook(net: nn.Module, name: str) -> None:
    net.get_submodule(name).register_forward_pre_hook(lambda module, given: (given[0].sin(),))


def pruning(net: nn.Module, name: str) -> None:
    prune.l1_unstructured(net.get_submodule(name), "weight", amount=0.5)


def parametrization(net: nn.Module, name: str) -> None:
    parametrize.register_parametrization(net.get_submodule(name), "weight", Bent())


def own_forward(net: nn.Module, name: str) -> None:
    module = net.get_submodule(name)
    before = module.forward
    module.forward = lambda x: before(x).sin()


CHANGES = [adapter, forward_hook, pre_hook, pruning, parametrization, own_forward]
# Linear maps along channels, which any adapter fits, and the last two around the output projection.
PARTS = [
    "patch_embed.proj",
    "mixer_layers.0.channel_mixing.fc1",
    "mixer_layers.1.channel_mixing.fc2",
    "patch_expand.expand",
    "output",
]


def only_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on every module is called on the whole volume, as on any other device."""
    monkeypatch.setattr(layers, "in_parts", lambda mix, x, axis, wide: mix(x))
    monkeypatch.setattr(layers, "blocked_projection", lambda *modules: None)


def large() -> tuple[Img2ImgMixer, Tensor]:
    """A mixer and images with far more than a million hidden elements in every MLP."""
    torch.manual_seed(0)
    net = Img2ImgMixer(64, 1, 1, 2, 24, 2, 8)
    image = torch.randn(8, 1, 64, 64)
    assert image[:, 0, ::2, ::2].numel() * 24 * 8 > cpu_kernels.WHOLE_ELEMENTS
    return net.eval(), image


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("change", CHANGES)
def test_every_change_counts_as_in_the_plain_formula(
    change: Callable[[nn.Module, str], None], part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, image = large()
    with torch.no_grad():
        before = net(image)
        change(net, part)
        after = net(image)
        only_modules(monkeypatch)
        expected = net(image)
    assert not torch.allclose(after, before, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-5)


REPLACEMENTS: dict[str, dict[str, nn.Module]] = {
    "bias after the norm": {"output": nn.Linear(24, 1)},
    "another width": {"output": nn.Linear(24, 5, bias=False)},
    "several layers": {"output": nn.Sequential(nn.Linear(24, 7), nn.GELU(), nn.Linear(7, 1))},
    "bias before the norm": {"patch_expand.expand": nn.Linear(24, 4 * 24)},
    "norm without weights": {"patch_expand.norm": nn.LayerNorm(24, elementwise_affine=False)},
    "norm without bias": {"patch_expand.norm": nn.LayerNorm(24, bias=False)},
    "no norm": {"patch_expand.norm": nn.Identity()},
    "subclass": {"output": layers.AxisLinear(24, 1, -1)},
}


@pytest.mark.parametrize("replaced", REPLACEMENTS)
def test_a_replaced_module_is_the_one_that_runs(
    replaced: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, image = large()
    for name, module in REPLACEMENTS[replaced].items():
        parent, _, own = name.rpartition(".")
        setattr(net.get_submodule(parent), own, module)
        for parameter in module.parameters():
            nn.init.normal_(parameter)
    with torch.no_grad():
        got = net(image)
        only_modules(monkeypatch)
        torch.testing.assert_close(got, net(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_every_module_with_parameters_is_called(name: str) -> None:
    """Also under a hook of all modules, which counts the calls."""
    net = small(name)
    image = torch.randn(2, 3, 64, 64)
    called: set[nn.Module] = set()
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, given, output: called.add(module)
    )
    try:
        net(image)
    finally:
        handle.remove()
    missing = [
        path
        for path, module in net.named_modules()
        if module not in called and next(module.parameters(recurse=False), None) is not None
    ]
    assert not missing


@pytest.mark.parametrize("name", SMALL)
def test_a_hook_on_any_module_changes_the_output(name: str) -> None:
    net = small(name).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = net(image)
        for path, module in net.named_modules():
            if isinstance(module, (nn.ModuleList, nn.Dropout2d)):
                continue
            # A random factor, which no normalisation takes out.
            handle = module.register_forward_hook(
                lambda module, given, output: output * (1 + torch.rand_like(output))
            )
            changed = net(image)
            handle.remove()
            assert not torch.allclose(changed, before, rtol=1e-6, atol=1e-8), path
        assert torch.equal(net(image), before)


@pytest.mark.parametrize("part", ["fc1", "fc2"])
@pytest.mark.parametrize("mlp", ["height_mixing", "width_mixing", "channel_mixing"])
def test_a_hook_in_an_mlp_sees_the_whole_volume_once(mlp: str, part: str) -> None:
    net, image = large()
    seen: list[int] = []
    net.get_submodule(f"mixer_layers.0.{mlp}.{part}").register_forward_hook(
        lambda module, given, output: seen.append(given[0].shape[0])
    )
    with torch.no_grad():
        net(image)
    assert seen == [len(image)]


def test_gradient_hooks_are_called_at_every_size() -> None:
    net, image = large()
    image.requires_grad_()
    seen: list[str] = []
    for part in PARTS:
        net.get_submodule(part).register_full_backward_hook(
            lambda module, into, out, part=part: seen.append(part)
        )
    net(image).sum().backward()
    assert sorted(seen) == sorted(PARTS)
