"""Every network, small: shapes, gradients, image sizes, and that the core needs torch alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from img2img_recon import InputError, build_model
from img2img_recon.networks import zoo
from img2img_recon.networks.dncnn import DnCNN
from img2img_recon.networks.unet import UNet
from img2img_recon.networks.vit import VisionTransformer
from tests.contracts import (
    assert_every_parameter_learns,
    assert_images_do_not_mix,
    assert_maps_images,
)

SMALL = {
    "img2img_mixer": {"patch_size": 4, "embed_dim": 8, "depth": 2, "mlp_ratio": 2},
    "linear_mixer": {"patch_size": 4, "embed_dim": 8, "depth": 2, "mlp_ratio": 2},
    "original_mixer": {
        "patch_size": 4,
        "embed_dim": 8,
        "depth": 2,
        "tokens_mlp_dim": 6,
        "channels_mlp_dim": 10,
    },
    "multires_mixer": {"patch_size": 4, "embed_dim": 4},
    "vit": {"patch_size": 10, "embed_dim": 12, "depth": 2, "num_heads": 3},
    "unet": {"chans": 4, "num_pool_layers": 2},
    "dncnn": {"chans": 8, "depth": 4},
    "window_mixer": {"window_size": 4, "embed_dims": (6, 8), "depths": (2, 2, 2)},
}
MIXERS = ["img2img_mixer", "linear_mixer", "original_mixer", "multires_mixer"]


def test_every_network_is_tried() -> None:
    tried = {zoo.MODELS[name].network for name in SMALL}
    assert tried == {row.network for row in zoo.MODELS.values()}


def small(name: str, height: int = 64, width: int = 64, **overrides: int) -> nn.Module:
    torch.manual_seed(0)
    sized = {"img_size": (height, width)} if "img_size" in zoo.find_row(name).options else {}
    return build_model(name, **SMALL[name], **sized, **overrides)


@pytest.mark.parametrize("name", SMALL)
def test_maps_images_to_images(name: str) -> None:
    assert_maps_images(small(name), torch.rand(2, 3, 64, 64), out_chans=3)


@pytest.mark.parametrize("name", SMALL)
def test_channels_in_and_out_may_differ(name: str) -> None:
    net = small(name, in_chans=2, out_chans=5)
    assert_maps_images(net, torch.rand(1, 2, 64, 64), out_chans=5)


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_learns(name: str) -> None:
    assert_every_parameter_learns(small(name), torch.rand(2, 3, 64, 64))


def test_a_parameter_without_gradient_is_named() -> None:
    net = small("img2img_mixer")
    net.register_parameter("idle", nn.Parameter(torch.ones(2)))
    with pytest.raises(AssertionError, match="no gradient for idle"):
        assert_every_parameter_learns(net, torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize("name", SMALL)
def test_images_of_a_batch_do_not_mix(name: str) -> None:
    assert_images_do_not_mix(small(name).eval(), torch.rand(3, 3, 64, 64))


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("size", [(32, 96), (96, 64)])
def test_mixers_take_images_that_are_not_square(name: str, size: tuple[int, int]) -> None:
    net = small(name, *size)
    assert net.img_size == size
    assert_maps_images(net, torch.rand(2, 3, *size), out_chans=3)
    assert_every_parameter_learns(net, torch.rand(1, 3, *size))


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("shape", [(1, 3, 32, 64), (1, 3, 128, 64), (1, 1, 64, 64), (3, 64, 64)])
def test_mixers_name_a_shape_they_do_not_take(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="image has shape"):
        small(name)(torch.rand(shape))


@pytest.mark.parametrize("name", [*MIXERS, "vit"])
def test_image_smaller_than_a_patch_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="smaller than a patch"):
        small(name, 2, 64)


@pytest.mark.parametrize("name", MIXERS)
def test_image_that_patches_do_not_divide_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="img_size 64 x 66 is not divisible by"):
        small(name, 64, 66)


def test_multires_mixer_needs_whole_patches_on_its_coarsest_grid() -> None:
    with pytest.raises(InputError, match="48 x 64 is not divisible by 32"):
        small("multires_mixer", 48, 64)


@pytest.mark.parametrize("size", [(64, 64), (7, 5), (1, 1), (101, 30)])
def test_vit_takes_any_size(size: tuple[int, int]) -> None:
    assert_maps_images(small("vit"), torch.rand(1, 3, *size), out_chans=3)


def test_vit_pads_evenly_with_the_larger_half_below_and_right() -> None:
    net = small("vit").eval()
    image = torch.rand(1, 3, 17, 19)  # 3 rows and 1 column short of whole patches
    with torch.no_grad():
        whole = net(F.pad(image, (0, 1, 1, 2)))
        torch.testing.assert_close(net(image), whole[:, :, 1:-2, :-1])


def test_vit_attention_is_softmax_of_scaled_products() -> None:
    attention = small("vit").blocks[0].attention.double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    heads = []
    query, key, value = attention.qkv(x).chunk(3, dim=-1)
    for head in range(3):
        own = slice(4 * head, 4 * head + 4)
        scores = query[..., own] @ key[..., own].transpose(1, 2) * 4**-0.5
        heads.append(scores.softmax(-1) @ value[..., own])
    torch.testing.assert_close(attention(x), attention.proj(torch.cat(heads, -1)))


def test_vit_width_must_be_whole_heads() -> None:
    with pytest.raises(InputError, match="embed_dim 12 is not divisible by num_heads 5"):
        VisionTransformer(20, 1, 1, patch_size=10, embed_dim=12, depth=1, num_heads=5)


def test_dncnn_has_seventeen_convolutions_and_fifteen_normalisations() -> None:
    layers = list(build_model("dncnn").modules())
    assert sum(isinstance(layer, nn.Conv2d) for layer in layers) == 17
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in layers) == 15
    assert sum(isinstance(layer, nn.ReLU) for layer in layers) == 16


def test_dncnn_of_one_layer_is_refused() -> None:
    with pytest.raises(InputError, match="depth is 1"):
        DnCNN(1, 1, 8, 1)


def test_unet_is_fastmris() -> None:
    from fastmri.models import Unet

    ours = small("unet")
    theirs = Unet(3, 3, 4, 2)
    theirs.load_state_dict(ours.unet.state_dict())
    image = torch.rand(1, 3, 37, 41)
    assert torch.equal(ours(image), theirs(image))


def test_unet_names_an_image_too_small() -> None:
    net = UNet(1, 1, 4, 2)
    with pytest.raises(InputError, match="height and width of 8 or more"):
        net(torch.rand(1, 1, 4, 4))
    assert_maps_images(net, torch.rand(1, 1, 4, 8), out_chans=1)


def test_unet_settings_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="num_pool_layers is 0"):
        UNet(1, 1, 4, 0)
    with pytest.raises(InputError, match="drop_prob is 2"):
        UNet(1, 1, 4, 2, drop_prob=2)


def test_core_needs_torch_alone() -> None:
    # Every other package of this environment is hidden: what is left is torch with what it imports.
    script = """
import importlib.metadata, sys
sys.modules["numpy"] = None
import torch
known = set(sys.modules)
hidden = {
    module
    for distribution in importlib.metadata.distributions()
    for module in (distribution.read_text("top_level.txt") or distribution.name).split()
}
hidden |= {"fastmri", "skimage", "safetensors", "bm3d", "h5py", "pytorch_lightning", "scipy"}
hidden -= {"torch", "img2img_recon"}
class Hider:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in hidden and name not in known:
            raise ModuleNotFoundError(f"{name} is hidden", name=name)
sys.meta_path.insert(0, Hider())
import img2img_recon
net = img2img_recon.build_model(
    "img2img_mixer", img_size=16, embed_dim=8, depth=1, mlp_ratio=1, in_chans=1, out_chans=1
)
wrapped = img2img_recon.Normalized(img2img_recon.AnySize(net))
print(tuple(wrapped(torch.rand(1, 1, 20, 24)).shape))
try:
    img2img_recon.build_model("unet")
except ImportError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "(1, 1, 20, 24)"
    assert "install fastmri" in done.stdout
