"""What every network and wrapper says of itself and refuses, and that none sends float64 to a device without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from img2img_recon import AnySize, InputError, Normalized, Residual
from img2img_recon.networks.base import Network, patch_grid
from tests.img2img_recon.networks.test_networks import SMALL, small

WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "alone": lambda net: net,
    "any size": AnySize,
    "residual": lambda net: Residual(AnySize(net)),
    "normalized": lambda net: Normalized(AnySize(net)),
    "padded and normalized": lambda net: Normalized(AnySize(net), zero_padding=10),
    "residual directly": Residual,
    "normalized directly": Normalized,
}


class NoFloat64(TorchDispatchMode):
    """A stand-in for a device without float64: no operation may have such a tensor outside of the CPU."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            if isinstance(leaf, Tensor) and leaf.device.type != "cpu":
                assert leaf.dtype != torch.float64, f"{func} has float64 on {leaf.device}"
        return result


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", SMALL)
def test_no_float64_leaves_the_cpu(name: str, wrapper: str) -> None:
    net = WRAPPERS[wrapper](small(name)).to("meta")
    sizes = [(64, 64)] if "directly" in wrapper or wrapper == "alone" else [(64, 64), (50, 90)]
    for height, width in sizes:
        image = torch.empty(2, 3, height, width, device="meta")
        with NoFloat64():
            assert net(image).shape == image.shape
            net.eval()(image).sum()


@pytest.mark.parametrize("tile", [None, 32])
def test_no_float64_in_tiles_of_a_network_for_any_size(tile: int | None) -> None:
    net = AnySize(small("dncnn"), tile=tile).to("meta")
    with NoFloat64():
        net(torch.empty(1, 3, 70, 50, device="meta"))


def test_the_stand_in_finds_float64() -> None:
    with NoFloat64(), pytest.raises(AssertionError, match="float64 on meta"):
        torch.ones(2, dtype=torch.float64).to("meta")


@pytest.mark.parametrize("shape", [(0, 3, 64, 64), (3, 64, 64), (1, 2, 64, 64), (1, 3, 0, 64)])
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", SMALL)
def test_what_cannot_come_in_is_refused_in_the_same_words(
    name: str, wrapper: str, shape: tuple[int, ...]
) -> None:
    net = WRAPPERS[wrapper](small(name))
    with pytest.raises(InputError) as caught:
        net(torch.zeros(shape))
    message = str(caught.value)
    assert message.startswith(f"the image has shape {shape}; it must be (1 or more, 3, ")
    assert "\n" not in message


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", SMALL)
def test_wrappers_say_what_the_network_inside_says(name: str, wrapper: str) -> None:
    net = small(name, in_chans=2, out_chans=2)
    wrapped = WRAPPERS[wrapper](net)
    assert isinstance(net, Network)
    assert isinstance(wrapped, Network)
    assert (wrapped.in_chans, wrapped.out_chans) == (2, 2)
    if "directly" in wrapper or wrapper == "alone":
        assert wrapped.img_size == net.img_size
        assert wrapped.takes_size(64, 64)
        assert wrapped.takes_size(3, 64) == net.takes_size(3, 64)
    else:
        assert wrapped.img_size is None
        assert wrapped.takes_size(3, 64)


def test_sizes_are_refused_by_divisor_and_least_side() -> None:
    class Picky(Network):
        def forward(self, image: Tensor) -> Tensor:
            self.check_image(image)
            return image

    net = Picky(None, None, size_divisor=4, min_size=8)
    assert net(torch.zeros(1, 5, 8, 12)).shape == (1, 5, 8, 12)
    for size in ((4, 8), (8, 10)):
        with pytest.raises(InputError, match="height and width of 8 or more, divisible by 4"):
            net(torch.zeros(1, 1, *size))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((30, 4), "not divisible by 4, the side of a patch"),
        (((16, 48), 4, 8), "not divisible by 32, the side of 8 patches"),
        ((2, 4), "smaller than a patch of 4 x 4"),
        ((0, 4), "smaller than a patch"),
        ((32, 0), "patch size is 0"),
    ],
)
def test_images_that_patches_do_not_fill_are_refused(arguments: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        patch_grid(*arguments)


def test_grid_of_patches() -> None:
    assert patch_grid((32, 64), 4, 8) == ((32, 64), (8, 16))
    assert patch_grid(20, 10) == ((20, 20), (2, 2))
