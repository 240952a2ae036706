"""The table of models: exact sizes, overrides, and what a misspelt one says."""

from __future__ import annotations

import json
from dataclasses import MISSING

import pytest
import torch

from img2img_recon import InputError, build_model, list_models, model_config
from img2img_recon.networks import zoo
from tests.contracts import parameter_count

PARAMETERS = {
    "img2img_mixer": 3_443_456,
    "img2img_mixer_c64_f4": 1_661_312,
    "img2img_mixer_c96_f4": 2_404_928,
    "img2img_mixer_c128_f8": 6_605_568,
    "img2img_mixer_c192_f8": 12_192_896,
    "img2img_mixer_p1_c107_f1": 3_452_908,
    "img2img_mixer_p2_c140_f2": 3_460_440,
    "img2img_mixer_p8_c128_f4": 3_456_768,
    "img2img_mixer_p1_c100_f2": 6_809_188,
    "img2img_mixer_p2_c140_f4": 6_824_664,
    "img2img_mixer_p8_c140_f8": 6_862_344,
    "img2img_mixer_fastmri": 7_785_472,
    "img2img_mixer_untrained": 6_601_216,
    "linear_mixer": 3_482_380,
    "original_mixer": 6_869_123,
    "multires_mixer": 6_451_136,
    "vit": 3_680_460,
    "vit_h8": 6_394_028,
    "vit_fastmri": 8_029_000,
    "unet": 3_340_767,
    "unet_c30": 6_817_503,
    "unet_fastmri": 7_756_097,
    "dncnn": 558_400,
    "window_mixer": 355_772,
    "window_mixer_tiny": 103_148,
    "window_mixer_base": 1_061_932,
}
NATIVE_SIZE = {
    "img2img_mixer": ((256, 256), 4),
    "img2img_mixer_p8_c128_f4": ((256, 256), 8),
    "img2img_mixer_fastmri": ((320, 320), 4),
    "linear_mixer": ((256, 256), 4),
    "original_mixer": ((256, 256), 4),
    "multires_mixer": ((256, 256), 32),
    "vit": (None, 1),
    "unet": (None, 1),
    "dncnn": (None, 1),
    "window_mixer": (None, 1),
}


def test_no_model_is_left_out() -> None:
    assert set(PARAMETERS) == set(list_models())


@pytest.mark.parametrize("name", list_models())
def test_parameter_count(name: str) -> None:
    with torch.device("meta"):
        net = build_model(name)
    assert parameter_count(net) == PARAMETERS[name]


@pytest.mark.parametrize("name", NATIVE_SIZE)
def test_size_attributes(name: str) -> None:
    with torch.device("meta"):
        net = build_model(name)
    assert (net.img_size, net.size_divisor) == NATIVE_SIZE[name]


@pytest.mark.parametrize("name", list_models())
def test_config_survives_json_and_builds_the_same_network(name: str) -> None:
    config = json.loads(json.dumps(model_config(name)))
    assert config == model_config(name, **config)
    with torch.device("meta"):
        assert parameter_count(build_model(name, **config)) == PARAMETERS[name]


@pytest.mark.parametrize("size", [(64, 32), [64, 32]])
def test_image_size_of_two_numbers(size: tuple[int, int] | list[int]) -> None:
    assert model_config("img2img_mixer", img_size=size)["img_size"] == [64, 32]
    net = build_model("img2img_mixer", img_size=size, embed_dim=8, depth=1, mlp_ratio=1)
    assert net.img_size == (64, 32)


def test_an_override_does_not_change_the_table() -> None:
    model_config("vit", depth=1)
    assert model_config("vit")["depth"] == 4


@pytest.mark.parametrize("name", list_models())
def test_misspelt_override_names_the_valid_ones(name: str) -> None:
    with pytest.raises(InputError) as caught:
        build_model(name, in_chanz=3)
    message = str(caught.value)
    assert "did you mean 'in_chans'" in message
    assert all(key in message for key in model_config(name))
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "override"),
    [
        ("unet", {"img_size": 256}),
        ("dncnn", {"patch_size": 4}),
        ("img2img_mixer", {"num_heads": 6}),
        ("original_mixer", {"mlp_ratio": 4}),
    ],
)
def test_override_that_a_model_lacks_is_refused(name: str, override: dict[str, int]) -> None:
    with pytest.raises(InputError, match=f"{name} has no option '{next(iter(override))}'"):
        build_model(name, **override)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("img2img_mixer", "embed_dim", 0),
        ("img2img_mixer", "depth", 2.5),
        ("img2img_mixer", "mlp_ratio", "4"),
        ("img2img_mixer", "in_chans", True),
        ("img2img_mixer", "img_size", (256, 256, 3)),
        ("img2img_mixer", "img_size", -256),
        ("img2img_mixer", "token_mixing", "conv"),
        ("unet", "drop_prob", 1.5),
        ("window_mixer", "depths", (2, 0, 2)),
        ("window_mixer", "embed_dims", 48),
        ("window_mixer", "noise_level_plane", 1),
    ],
)
def test_value_of_the_wrong_kind_is_refused(name: str, key: str, value: object) -> None:
    with pytest.raises(InputError, match=f"{key} is .*; it must be"):
        build_model(name, **{key: value})


def test_the_noise_level_plane_is_one_more_channel() -> None:
    with torch.device("meta"):
        net = build_model("window_mixer", noise_level_plane=True)
    assert parameter_count(net) == PARAMETERS["window_mixer"] + 48 * 2 * 2


def test_unknown_name_lists_the_names() -> None:
    with pytest.raises(InputError) as caught:
        build_model("img2img_mixr")
    assert "did you mean 'img2img_mixer'" in str(caught.value)
    assert all(name in str(caught.value) for name in list_models())


OWN = {
    "plain": zoo.Row(
        "nowhere:build",
        own_options=(zoo.Option("width", int, 3, "channels"), zoo.Option("gain", float, 1.0, "")),
    ),
}


def test_another_table_with_options_of_its_own() -> None:
    assert zoo.complete_config("plain", {"gain": 2}, (8, 8), OWN) == {"width": 3, "gain": 2.0}
    with pytest.raises(InputError, match=r"no option 'widht' \(did you mean 'width'\?\)"):
        zoo.complete_config("plain", {"widht": 2}, (8, 8), OWN)
    with pytest.raises(InputError, match="the models are plain"):
        zoo.complete_config("vit", {}, (8, 8), OWN)
    assert [option.default for option in zoo.options_of_all(OWN).values()] == [None, None]
    assert zoo.options_of_all(OWN)["width"].type == int | None


def test_one_name_of_two_types_is_refused() -> None:
    other = zoo.Row("nowhere:other", own_options=(zoo.Option("width", float, 3.0, ""),))
    with pytest.raises(InputError, match="width of other is <class 'float'>"):
        zoo.options_of_all(OWN | {"other": other})


def test_options_of_the_zoo_have_one_type_each() -> None:
    options = zoo.options_of_all()
    for name in list_models():
        for key, option in zoo.find_row(name).options.items():
            assert options[key].type == option.type | None
            assert model_config(name)[key] == json.loads(json.dumps(option.default))


@pytest.mark.parametrize("config", [{"depht": 3}, {}])
def test_a_row_that_does_not_fit_its_class_is_refused(config: dict[str, int]) -> None:
    row = zoo.Row("nowhere:build", config, (zoo.Option("depth", int, MISSING, ""),))
    with pytest.raises(InputError, match=r"nowhere:build: the row of the table and .* do not fit"):
        row.complete("x", {})


@pytest.mark.parametrize(
    ("name", "given", "size"),
    [
        ("img2img_mixer", {}, [60, 52]),
        ("img2img_mixer", {"patch_size": 8}, [64, 56]),
        ("multires_mixer", {}, [64, 64]),
        ("multires_mixer", {"patch_size": 2}, [64, 64]),
        ("vit", {}, [60, 50]),
        ("img2img_mixer", {"img_size": 32}, 32),
        ("dncnn", {}, None),
    ],
)
def test_complete_config_rounds_the_grid_up(name: str, given: dict[str, int], size: object) -> None:
    config = zoo.complete_config(name, given, (60, 50))
    assert config.get("img_size") == size
    if size is not None:
        build_model(name, **config | {"embed_dim": 12 if name == "vit" else 4})


def test_complete_config_refuses_a_patch_larger_than_the_images() -> None:
    with pytest.raises(InputError, match="patch_size is 16, but the images are 60 x 8; it must be"):
        zoo.complete_config("img2img_mixer", {"patch_size": 16}, (60, 8))
