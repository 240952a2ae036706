"""Networks by name, run or file: what is packaged is what comes back; files of other kinds are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

import fastmri_plugin
import img2img_recon
from fastmri_plugin import shipped
from fastmri_plugin.kspace import center_crop, centred_fft, centred_ifft
from fastmri_plugin.listing import list_volumes
from fastmri_plugin.masks import MaskSpec
from fastmri_plugin.methods import make_method
from fastmri_plugin.module import build_module
from fastmri_plugin.task import TASK
from fastmri_plugin.unrolled_mixer import UnrolledMixer
from fastmri_plugin.volumes import read_slice
from img2img_recon.networks.zoo import complete_config
from img2img_recon.support.errors import InputError
from img2img_recon.weights_file import read_weights

OPTIONS = {"cascades": 2, "embed_dims": (4, 8), "depths": (1, 1, 1), "sens_embed_dims": (4,)}


def trained(**more: object) -> UnrolledMixer:
    torch.manual_seed(0)
    network = UnrolledMixer(**{**OPTIONS, **more}).eval()
    for mixer in network.mixers():
        torch.nn.init.normal_(mixer.output.weight, std=0.1)
    return network


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A folder of shipped weights with one network for each challenge."""
    folder = tmp_path / "weights"
    monkeypatch.setattr(shipped, "WEIGHTS", folder)
    for challenge in ("singlecoil", "multicoil"):
        file = folder / f"mri-test-{challenge}.safetensors"
        shipped.package(file, trained().state_dict(), OPTIONS, challenge, anatomy="brain")
    return folder


@pytest.mark.parametrize("coils", [1, 3])
@pytest.mark.parametrize("half", [False, True])
def test_what_is_packaged_comes_back(tmp_path, coils, half):
    network = trained()
    file = tmp_path / "mri-x.safetensors"
    challenge = "singlecoil" if coils == 1 else "multicoil"
    shipped.package(file, network.state_dict(), OPTIONS, challenge, half=half)
    again = fastmri_plugin.load(file)
    assert not again.training
    assert {value.dtype for value in again.state_dict().values()} == {torch.float32}
    assert any("sens_net" in name for name in again.state_dict()) == (coils > 1)
    kspace = torch.randn(1, coils, 32, 36, dtype=torch.complex64)
    mask = (torch.arange(36) % 3 != 0).view(1, 1, 1, -1)
    with torch.no_grad():
        difference = again(kspace * mask, mask) - network(kspace * mask, mask)
    assert float(difference.abs().max()) <= (0.02 if half else 0)


def test_by_name_and_as_a_method(weights, tiny_data):
    """What a split is reconstructed with is the named network, mask by mask."""
    assert list(shipped.shipped()) == ["mri-test-multicoil", "mri-test-singlecoil"]
    folder = tiny_data("singlecoil") / "singlecoil_val"
    (info, *_) = list_volumes(folder, "singlecoil")
    method = make_method("mri-test-singlecoil")
    assert (method.name, method.challenge, method.masks) == (
        "mri-test-singlecoil", "singlecoil", None,
    )  # fmt: skip
    masks = MaskSpec("random", (4,), (0.2,))
    ((name, volume),) = method.reconstruct([info], masks)
    assert (name, volume.shape) == (info.name, (info.num_slices, *info.image_size))
    mask = masks.mask_of(info)
    mask[: info.acquired_columns[0]] = mask[info.acquired_columns[1] :] = False
    rows, columns = info.image_size
    image = center_crop(centred_ifft(read_slice(info.path, 0) * mask), (rows, len(mask)))
    with torch.no_grad():
        whole = fastmri_plugin.load("mri-test-singlecoil")(
            torch.from_numpy(centred_fft(image))[None, None],
            torch.from_numpy(mask)[None, None, None],
        )
    expected = center_crop(whole, (rows, columns))[0].numpy()
    np.testing.assert_allclose(volume[0], expected, rtol=1e-3, atol=1e-4 * expected.max())


def test_runs_open_as_files_do(tmp_path):
    options = complete_config("unrolled_mixer", OPTIONS, (32, 32), TASK.models())
    module = build_module("unrolled_mixer", options, 1e-3, "step")
    config = {
        "task": "mri", "model": "unrolled_mixer", "options": options, "lr": 1e-3, "lr_interval": "step",
        "challenge": "multicoil",
    }  # fmt: skip
    torch.save({"state_dict": module.state_dict(), "run_config": config}, tmp_path / "x.ckpt")
    again = fastmri_plugin.load(tmp_path / "x.ckpt")
    for name, value in module.network.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_what_was_loaded_is_saved_and_opens_in_either_package(tmp_path, weights):
    network = fastmri_plugin.load("mri-test-multicoil")
    assert network.description["challenge"] == "multicoil"
    network.save(tmp_path / "copy.safetensors")
    for load in (fastmri_plugin.load, img2img_recon.load):
        again = load(tmp_path / "copy.safetensors")
        assert again.description == network.description
        for name, value in network.state_dict().items():
            assert torch.equal(again.state_dict()[name], value)


def test_what_is_no_network_is_refused(tmp_path, weights):
    with pytest.raises(
        InputError, match="mri-tset: no such checkpoint, run or network; there are mri-test-multi"
    ):
        fastmri_plugin.load("mri-tset")
    with pytest.raises(InputError, match="--method: given tvv; allowed: zero_filled, tv, l1_wav"):
        make_method("tvv")
    text = tmp_path / "text.safetensors"
    text.write_text("not weights, whatever the name says")
    with pytest.raises(InputError, match=r"text.safetensors: not a safetensors file"):
        fastmri_plugin.load(text)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(2)}, foreign)
    with pytest.raises(InputError, match="do not say what network"):
        fastmri_plugin.load(foreign)
    other = trained(cascades=1).state_dict()
    with pytest.raises(InputError, match=r"checkpoint of another network \(it lacks cascades.1"):
        shipped.package(tmp_path / "y.safetensors", other, OPTIONS, "multicoil")
    assert not (tmp_path / "y.safetensors").exists()


@pytest.mark.parametrize("name", shipped.shipped())
def test_the_packages_own_networks_open_and_have_cards(name):
    path = shipped.find_network(name)
    assert path.stat().st_size <= 4_000_000
    config, _ = shipped.open_module(path)
    assert config["name"] == name
    assert config["challenge"] in name
    card = path.with_suffix(".md").read_text()
    assert "diagnos" in card
    assert name in card


@pytest.mark.parametrize("challenge", ["singlecoil", "multicoil"])
def test_the_recipe_is_of_the_networks_that_come_with_the_package(challenge):
    values = yaml.safe_load((shipped.WEIGHTS / "mri-brain.yaml").read_text())
    coils = {"sens": "espirit", "refine_weight": 0.1} if challenge == "multicoil" else {}
    given = TASK.config({**values, **coils, "challenge": challenge, "data_path": "BRAINS"})
    network = TASK.network(TASK.resolve(given))
    known = {name: value.shape for name, value in network.state_dict().items()}
    _, state = read_weights(shipped.WEIGHTS / f"mri-brain-{challenge}.safetensors")
    assert known == {name: value.shape for name, value in state.items()}
