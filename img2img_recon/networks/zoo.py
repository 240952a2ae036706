"""Every network by name: one table from name to configuration.

A plain name (`img2img_mixer`) is the size that stands in comparisons at 256 x 256 x 3; a name with
a suffix is another size of the same network, or the one for another task.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from img2img_recon.networks.dncnn import DnCNN
from img2img_recon.networks.mixers import LEVELS, Img2ImgMixer, MultiResMixer, OriginalMixer
from img2img_recon.networks.unet import UNet
from img2img_recon.networks.vit import VisionTransformer
from img2img_recon.networks.window_mixer import WindowMixer
from img2img_recon.support.errors import InputError


class Model(NamedTuple):
    """A row of the table: the class and all of its constructor's arguments."""

    network: type[nn.Module]
    config: Mapping[str, Any]


_COLOUR = {"img_size": 256, "in_chans": 3, "out_chans": 3}
_MRI = {"img_size": 320, "in_chans": 1, "out_chans": 1}
_GREY = {"img_size": 256, "in_chans": 1, "out_chans": 1}

_MIXER = _COLOUR | {
    "patch_size": 4,
    "embed_dim": 128,
    "depth": 16,
    "mlp_ratio": 4,
    "token_mixing": "mlp",
}
_LINEAR = _MIXER | {"embed_dim": 140, "depth": 19, "token_mixing": "linear"}
_ORIGINAL = _COLOUR | {
    "patch_size": 4,
    "embed_dim": 128,
    "depth": 8,
    "tokens_mlp_dim": 96,
    "channels_mlp_dim": 256,
}
_MULTIRES = _COLOUR | {"patch_size": 4, "embed_dim": 96, "mlp_ratio": 1}
# The published transformers have 44 channels per head.
_VIT = _COLOUR | {
    "patch_size": 10,
    "embed_dim": 44 * 6,
    "depth": 4,
    "num_heads": 6,
    "mlp_ratio": 4,
}
_UNET = {"in_chans": 3, "out_chans": 3, "chans": 21, "num_pool_layers": 4, "drop_prob": 0.0}
_DNCNN = {"in_chans": 3, "out_chans": 3, "chans": 64, "depth": 17}
_WINDOW = {
    "in_chans": 3,
    "out_chans": 3,
    "patch_size": 2,
    "window_size": 8,
    "embed_dims": [48, 128],
    "depths": [2, 4, 2],
    "mlp_ratio": 2,
    "token_mixing": "linear",
    "noise_level_plane": False,
}

_TABLE: dict[str, Model] = {
    "img2img_mixer": Model(Img2ImgMixer, _MIXER),
    "img2img_mixer_c64_f4": Model(Img2ImgMixer, _MIXER | {"embed_dim": 64}),
    "img2img_mixer_c96_f4": Model(Img2ImgMixer, _MIXER | {"embed_dim": 96}),
    "img2img_mixer_c128_f8": Model(Img2ImgMixer, _MIXER | {"mlp_ratio": 8}),
    "img2img_mixer_c192_f8": Model(Img2ImgMixer, _MIXER | {"embed_dim": 192, "mlp_ratio": 8}),
    # The patch-size study: about 3.4 M parameters each, then about 6.8 M each.
    "img2img_mixer_p1_c107_f1": Model(
        Img2ImgMixer, _MIXER | {"patch_size": 1, "embed_dim": 107, "depth": 12, "mlp_ratio": 1}
    ),
    "img2img_mixer_p2_c140_f2": Model(
        Img2ImgMixer, _MIXER | {"patch_size": 2, "embed_dim": 140, "mlp_ratio": 2}
    ),
    "img2img_mixer_p8_c128_f4": Model(Img2ImgMixer, _MIXER | {"patch_size": 8}),
    "img2img_mixer_p1_c100_f2": Model(
        Img2ImgMixer, _MIXER | {"patch_size": 1, "embed_dim": 100, "depth": 12, "mlp_ratio": 2}
    ),
    "img2img_mixer_p2_c140_f4": Model(Img2ImgMixer, _MIXER | {"patch_size": 2, "embed_dim": 140}),
    "img2img_mixer_p8_c140_f8": Model(
        Img2ImgMixer, _MIXER | {"patch_size": 8, "embed_dim": 140, "mlp_ratio": 8}
    ),
    "img2img_mixer_fastmri": Model(Img2ImgMixer, _MIXER | _MRI | {"mlp_ratio": 8}),
    "img2img_mixer_untrained": Model(Img2ImgMixer, _MIXER | _GREY | {"mlp_ratio": 8}),
    "linear_mixer": Model(Img2ImgMixer, _LINEAR),
    "original_mixer": Model(OriginalMixer, _ORIGINAL),
    "multires_mixer": Model(MultiResMixer, _MULTIRES),
    "vit": Model(VisionTransformer, _VIT),
    "vit_h8": Model(VisionTransformer, _VIT | {"embed_dim": 44 * 8, "num_heads": 8}),
    "vit_fastmri": Model(VisionTransformer, _VIT | _MRI | {"embed_dim": 44 * 9, "num_heads": 9}),
    "unet": Model(UNet, _UNET),
    "unet_c30": Model(UNet, _UNET | {"chans": 30}),
    "unet_fastmri": Model(UNet, _UNET | {"in_chans": 1, "out_chans": 1, "chans": 32}),
    "dncnn": Model(DnCNN, _DNCNN),
    "window_mixer": Model(WindowMixer, _WINDOW),
    "window_mixer_tiny": Model(WindowMixer, _WINDOW | {"embed_dims": [32, 64]}),
    "window_mixer_base": Model(
        WindowMixer, _WINDOW | {"embed_dims": [64, 192], "depths": [2, 6, 2]}
    ),
}


def list_models() -> list[str]:
    """All names that `build_model` knows, in the order of the table."""
    return list(_TABLE)


def model_config(name: str, **overrides: Any) -> dict[str, Any]:
    """All constructor arguments of a model: those of its row with the overrides in place.

    What a run stores: it can be written as JSON, and `build_model(name, **config)` gives the
    network again.

    Args:
        name: one of `list_models()`.
        **overrides: arguments of that model's network to change; img_size is a number or (H, W).

    Raises:
        InputError: an unknown name, an argument that the model does not have, or a value of the
            wrong kind.

    """
    if name not in _TABLE:
        raise InputError(
            f"there is no model {name!r}{_suggestion(name, list(_TABLE))}; "
            f"the models are {', '.join(_TABLE)}"
        )
    config = dict(_TABLE[name].config)
    for key, value in overrides.items():
        if key not in config:
            raise InputError(
                f"{name} has no argument {key!r}{_suggestion(key, list(config))}; "
                f"it has {', '.join(config)}"
            )
        config[key] = _checked(key, value)
    return config


def build_model(name: str, **overrides: Any) -> nn.Module:
    """Build a network by name, with random weights.

    Every network maps (B, in_chans, H, W) to (B, out_chans, H, W) and has `img_size`, the (H, W) it
    works on or None for any, and `size_divisor`, what height and width must be divisible by.

    Args:
        name: one of `list_models()`.
        **overrides: arguments of that model's network to change, as in `model_config`.

    Raises:
        InputError: as `model_config`, or the network cannot be built with these arguments.
        ImportError: the U-Net is asked for and `fastmri` is not installed.

    """
    config = model_config(name, **overrides)
    if isinstance(config.get("img_size"), list):
        config["img_size"] = tuple(config["img_size"])
    return _TABLE[name].network(**config)


def _suggestion(given: str, allowed: list[str]) -> str:
    close = difflib.get_close_matches(given, allowed, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _checked(key: str, value: Any) -> Any:
    """Bring an override into the form in which it is stored, or raise `InputError`."""
    if key == "img_size":
        if isinstance(value, (tuple, list)) and len(value) == 2 and all(map(_is_count, value)):
            return list(value)
        allowed, fits = "a positive whole number or two of them, (H, W)", _is_count(value)
    elif key == "token_mixing":
        allowed, fits = "'mlp' or 'linear'", value in ("mlp", "linear")
    elif key == "drop_prob":
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        allowed, fits = "a number in [0, 1]", is_number and 0 <= value <= 1
    elif key == "noise_level_plane":
        allowed, fits = "true or false", isinstance(value, bool)
    elif key in ("embed_dims", "depths"):
        value = list(value) if isinstance(value, (tuple, list)) else value
        allowed = "positive whole numbers"
        fits = isinstance(value, list) and bool(value) and all(map(_is_count, value))
    else:
        allowed, fits = "a positive whole number", _is_count(value)
    if not fits:
        raise InputError(f"{key} is {value!r}; it must be {allowed}")
    return value


def grid_multiple(name: str, patch_size: int) -> int:
    """What H and W of a network's `img_size` must be multiples of: its patch, at its coarsest level."""
    return patch_size * (2 ** (LEVELS - 1) if name == "multires_mixer" else 1)


def complete_config(
    name: str, given: Mapping[str, Any], img_size: tuple[int, int]
) -> dict[str, Any]:
    """All constructor arguments for images of one size, as a run stores them.

    Args:
        name: one of `list_models()`.
        given: what the user set.
        img_size: (H, W) of the data's images; what the grid of networks that have one is made for
            unless `given` says otherwise, rounded up to what their patches divide.

    Raises:
        InputError: as `model_config`, or a patch larger than the images.
    """
    options, defaults = dict(given), model_config(name)
    if "img_size" in defaults and "img_size" not in options:
        patch = int(options.get("patch_size", defaults.get("patch_size", 1)))
        if min(img_size) < patch:
            raise InputError(
                f"--patch_size: given {patch}, but the images are {img_size[0]} x {img_size[1]}; "
                f"allowed: 1 to {min(img_size)}"
            )
        multiple = grid_multiple(name, patch)
        options["img_size"] = [-(-side // multiple) * multiple for side in img_size]
    return model_config(name, **options)


class Option(NamedTuple):
    name: str
    type: Any
    default: Any
    help: str


def options_of_all(models: Mapping[str, Any]) -> dict[str, Option]:
    """Stand-in until the signatures are read: the options of all rows, typed by their values."""
    found: dict[str, Option] = {}
    for row in models.values():
        for name, value in row.config.items():
            hint = (int | tuple[int, int] | None) if name == "img_size" else (type(value) | None)
            found.setdefault(name, Option(name, hint, value, name))
    return found


Row = Model
ROWS: Mapping[str, Row] = _TABLE
