"""Published states: golden outputs, every file kind, and what an unusable one says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from img2img_recon import InputError, Normalized, load_reference_checkpoint
from img2img_recon.networks.mixers import Img2ImgMixer, MultiResMixer, OriginalMixer
from img2img_recon.networks.vit import VisionTransformer

FOLDER = Path(__file__).parents[2] / "data" / "reference"
NETWORKS = {
    "img2img_mixer": Img2ImgMixer,
    "img2img_mixer_patch1": Img2ImgMixer,
    "linear_mixer": Img2ImgMixer,
    "original_mixer": OriginalMixer,
    "u_mixer": MultiResMixer,
    "vit": VisionTransformer,
    "recon_net_mixer": Normalized,
    "recon_net_vit": Normalized,
}
# The golden transformers have 4 channels per head, which their weights do not say.
HINTS = {"vit": {"num_heads": 3}, "recon_net_vit": {"num_heads": 3}}
WRAPPED = ["recon_net_mixer", "recon_net_vit"]


def state_of(name: str) -> dict[str, torch.Tensor]:
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return {
            key.removeprefix("state/"): torch.as_tensor(arrays[key])
            for key in arrays
            if key.startswith("state/")
        }


def assert_golden(net: torch.nn.Module, name: str) -> None:
    with np.load(FOLDER / f"{name}.npz") as arrays, torch.no_grad():
        output = net(torch.as_tensor(arrays["input"]))
        np.testing.assert_allclose(output.numpy(), arrays["output"], rtol=0, atol=1e-10)


def test_every_golden_file_is_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.npz")} == set(NETWORKS)


@pytest.mark.parametrize("name", NETWORKS)
def test_golden_output(name: str) -> None:
    net = load_reference_checkpoint(FOLDER / f"{name}.npz", **HINTS.get(name, {}))
    assert type(net) is NETWORKS[name]
    assert not net.training
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float64}
    assert_golden(net, name)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in WRAPPED])
@pytest.mark.parametrize("prefix", ["net.", "recon_net.net."])
def test_net_prefix_means_normalised(name: str, prefix: str) -> None:
    state = {prefix + key: tensor for key, tensor in state_of(name).items()}
    if prefix == "recon_net.net.":
        state["loss.w"] = torch.ones(1, 1, 7, 7)
    wrapped = load_reference_checkpoint(state, **HINTS.get(name, {}))
    assert type(wrapped) is Normalized
    assert_golden(wrapped.net, name)


def test_other_prefix_is_the_network_itself() -> None:
    state = {f"module.unet.{key}": tensor for key, tensor in state_of("img2img_mixer").items()}
    assert_golden(load_reference_checkpoint(state), "img2img_mixer")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".safetensors", ".npz"])
def test_file_kinds(suffix: str, tmp_path: Path) -> None:
    state, path = state_of("linear_mixer"), tmp_path / f"published{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    elif suffix == ".npz":
        np.savez(path, **{key: tensor.numpy() for key, tensor in state.items()})
    else:
        torch.save(state, path)
    assert_golden(load_reference_checkpoint(path), "linear_mixer")


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "state"])
def test_weights_inside_a_training_checkpoint(key: str, tmp_path: Path) -> None:
    path = tmp_path / "training.ckpt"
    torch.save({"epoch": 3, key: state_of("img2img_mixer"), "optimizer": {"lr": 1e-3}}, path)
    assert_golden(load_reference_checkpoint(path), "img2img_mixer")


def test_float32_state_gives_a_float32_network() -> None:
    state = {key: tensor.float() for key, tensor in state_of("img2img_mixer").items()}
    net = load_reference_checkpoint(state)
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", NETWORKS)
def test_golden_output_in_single_precision(name: str) -> None:
    net = load_reference_checkpoint(FOLDER / f"{name}.npz", **HINTS.get(name, {})).float()
    with np.load(FOLDER / f"{name}.npz") as arrays, torch.no_grad():
        output = net(torch.as_tensor(arrays["input"]).float())
        np.testing.assert_allclose(output.numpy(), arrays["output"], rtol=1e-4, atol=1e-4)


def test_published_transformers_have_44_channels_per_head() -> None:
    torch.manual_seed(0)
    ours = VisionTransformer(20, 1, 1, patch_size=10, embed_dim=88, depth=1, num_heads=2)
    names = {"attention_norm": "norm1", "attention": "attn", "mlp_norm": "norm2"}
    published = {
        ".".join(names.get(part, part) for part in key.split(".")): tensor
        for key, tensor in ours.state_dict().items()
    }
    published["patch_embed.proj.weight"] = ours.patch_embed.proj.weight.detach().view(88, 1, 10, 10)
    image = torch.rand(1, 1, 20, 20)
    torch.testing.assert_close(load_reference_checkpoint(published)(image), ours(image))


def test_other_head_width_must_be_given() -> None:
    with pytest.raises(InputError, match=r"width 12 is not a multiple .* give num_heads"):
        load_reference_checkpoint(state_of("vit"))
    with pytest.raises(InputError, match="not divisible by num_heads 5"):
        load_reference_checkpoint(state_of("vit"), num_heads=5)


def test_original_mixer_on_another_grid() -> None:
    net = load_reference_checkpoint(state_of("original_mixer"), img_size=(8, 32))
    assert net.img_size == (8, 32)
    with pytest.raises(InputError, match="does not have the checkpoint's 16 patches"):
        load_reference_checkpoint(state_of("original_mixer"), img_size=(8, 16))


def test_hint_for_another_network_is_refused() -> None:
    with pytest.raises(InputError, match=r"num_heads is 3, but .* linear mixer"):
        load_reference_checkpoint(state_of("linear_mixer"), num_heads=3)
    with pytest.raises(InputError, match=r"img_size is .* linear mixer"):
        load_reference_checkpoint(state_of("linear_mixer"), img_size=(16, 16))


def test_fastmri_unet() -> None:
    from fastmri.models import Unet

    torch.manual_seed(0)
    theirs = Unet(1, 2, 4, 3).eval()
    ours = load_reference_checkpoint(theirs.state_dict())
    image = torch.rand(1, 1, 32, 32)
    assert torch.equal(ours(image), theirs(image))


def test_unknown_state_names_what_was_found() -> None:
    with pytest.raises(InputError, match=r"no known network .* it has 'head.bias', 'head.weight'"):
        load_reference_checkpoint({"head.weight": torch.ones(2), "head.bias": torch.ones(2)})


@pytest.mark.parametrize("name", NETWORKS)
def test_missing_and_unknown_weights_are_named(name: str) -> None:
    state = state_of(name)
    prefix = "net." if name in WRAPPED else ""
    with pytest.raises(InputError, match="unknown 'bogus'"):
        load_reference_checkpoint(state | {f"{prefix}bogus": torch.ones(1)}, **HINTS.get(name, {}))
    last = next(key for key in reversed(state) if "norm" in key)
    del state[last]
    with pytest.raises(InputError, match="it misses"):
        load_reference_checkpoint(state, **HINTS.get(name, {}))


@pytest.mark.parametrize("name", NETWORKS)
def test_any_missing_weight_is_an_input_error(name: str) -> None:
    # Every eleventh, because each builds the network: weights of every kind come up.
    for key in list(state_of(name))[::11]:
        state = state_of(name)
        del state[key]
        with pytest.raises(InputError):
            load_reference_checkpoint(state, **HINTS.get(name, {}))


def test_weight_beside_the_network_is_named() -> None:
    with pytest.raises(InputError, match="beside it, 'extra'"):
        load_reference_checkpoint(state_of("recon_net_mixer") | {"extra": torch.ones(1)})


def test_weight_of_another_shape_is_named() -> None:
    state = state_of("img2img_mixer")
    state["mixer_layers.1.channel_mixing.0.weight"] = torch.ones(9, dtype=torch.float64)
    with pytest.raises(InputError, match=r"mixer_layers.1.channel_norm.weight has shape \(9,\)"):
        load_reference_checkpoint(state)


def test_unusable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no file"):
        load_reference_checkpoint(tmp_path / "absent.pt")
    for suffix in (".pt", ".npz", ".safetensors"):
        broken = tmp_path / f"broken{suffix}"
        broken.write_bytes(b"not a checkpoint")
        with pytest.raises(InputError, match="cannot be read"):
            load_reference_checkpoint(broken)
    other = tmp_path / "weights.bin"
    other.touch()
    with pytest.raises(InputError, match=r"none of the endings \.npz"):
        load_reference_checkpoint(other)
    torch.save(torch.ones(2), tmp_path / "tensor.pt")
    with pytest.raises(InputError, match="holds a Tensor"):
        load_reference_checkpoint(tmp_path / "tensor.pt")
    with pytest.raises(InputError, match="'epoch' of type int"):
        load_reference_checkpoint({"epoch": 3})
