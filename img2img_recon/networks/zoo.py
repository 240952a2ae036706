"""Every network by name: one table from name to class and configuration.

A plain name (`img2img_mixer`) is the size that stands in comparisons at 256 x 256 x 3; a name with
a suffix is another size of the same network, or the one for another task. Options come from the
constructor's signature, so that a new network is one file and one row. Nothing here imports torch before a
network is built.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, field
from typing import TYPE_CHECKING, Any

from img2img_recon.networks.signature import Option, class_attribute, constructor_options
from img2img_recon.support.errors import InputError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Row:
    """A network and its size.

    Attributes:
        network: "package.module:Class", or a function in the place of the class.
        config: arguments of the constructor that differ from its defaults.
        own_options: the options, where the constructor's signature does not tell them.
    """

    network: str
    config: Mapping[str, Any] = field(default_factory=dict)
    own_options: tuple[Option, ...] | None = None

    @property
    def options(self) -> dict[str, Option]:
        """Every argument of the constructor, with this row's defaults."""
        options = self.own_options or constructor_options(self.network).values()
        merged = {o.name: o._replace(default=self.config.get(o.name, o.default)) for o in options}
        for name in (*self.config, *merged):
            if name not in merged or merged[name].default is MISSING:
                raise InputError(f"{self.network}: the row of the table and {name} do not fit")
        return merged

    @property
    def grid_divisor(self) -> int:
        """What the numbers of patches along height and width of `img_size` must be divisible by."""
        return 1 if self.own_options else class_attribute(self.network, "grid_divisor", 1)

    def complete(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """All arguments of the constructor, JSON-serialisable.

        Args:
            name: what the network is called, for errors.
            given: arguments to change.

        Raises:
            InputError: an argument that the network does not have, or a value of the wrong kind.
        """
        options = self.options
        config = {key: _plain(option.default) for key, option in options.items()}
        for key, value in given.items():
            if key not in options:
                raise InputError(
                    f"{name} has no option {key!r}{did_you_mean(key, options)}; "
                    f"it has {', '.join(options)}"
                )
            config[key] = _plain(options[key].checked(value))
        return config

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        """The network of a complete configuration, with random weights."""
        module, _, network = self.network.partition(":")
        build = getattr(importlib.import_module(module), network)
        options = self.options
        return build(**{key: options[key].checked(value) for key, value in config.items()})


def _plain(value: Any) -> Any:
    """An option's value as JSON holds it."""
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


_MIXER = "img2img_recon.networks.mixers:Img2ImgMixer"
_ORIGINAL = "img2img_recon.networks.mixers:OriginalMixer"
_MULTIRES = "img2img_recon.networks.mixers:MultiResMixer"
_VIT = "img2img_recon.networks.vit:VisionTransformer"
_UNET = "img2img_recon.networks.unet:UNet"
_DNCNN = "img2img_recon.networks.dncnn:DnCNN"
_WINDOW = "img2img_recon.networks.window_mixer:WindowMixer"

_MRI = {"img_size": 320, "in_chans": 1, "out_chans": 1}
_GREY = {"in_chans": 1, "out_chans": 1}
# The published transformers have 44 channels per head.
_HEAD = 44

MODELS: dict[str, Row] = {
    "img2img_mixer": Row(_MIXER),
    "img2img_mixer_c64_f4": Row(_MIXER, {"embed_dim": 64}),
    "img2img_mixer_c96_f4": Row(_MIXER, {"embed_dim": 96}),
    "img2img_mixer_c128_f8": Row(_MIXER, {"mlp_ratio": 8}),
    "img2img_mixer_c192_f8": Row(_MIXER, {"embed_dim": 192, "mlp_ratio": 8}),
    # The patch-size study: about 3.4 M parameters each, then about 6.8 M each.
    "img2img_mixer_p1_c107_f1": Row(
        _MIXER, {"patch_size": 1, "embed_dim": 107, "depth": 12, "mlp_ratio": 1}
    ),
    "img2img_mixer_p2_c140_f2": Row(_MIXER, {"patch_size": 2, "embed_dim": 140, "mlp_ratio": 2}),
    "img2img_mixer_p8_c128_f4": Row(_MIXER, {"patch_size": 8}),
    "img2img_mixer_p1_c100_f2": Row(
        _MIXER, {"patch_size": 1, "embed_dim": 100, "depth": 12, "mlp_ratio": 2}
    ),
    "img2img_mixer_p2_c140_f4": Row(_MIXER, {"patch_size": 2, "embed_dim": 140}),
    "img2img_mixer_p8_c140_f8": Row(_MIXER, {"patch_size": 8, "embed_dim": 140, "mlp_ratio": 8}),
    "img2img_mixer_fastmri": Row(_MIXER, {**_MRI, "mlp_ratio": 8}),
    "img2img_mixer_untrained": Row(_MIXER, {**_GREY, "mlp_ratio": 8}),
    "linear_mixer": Row(_MIXER, {"embed_dim": 140, "depth": 19, "token_mixing": "linear"}),
    "original_mixer": Row(_ORIGINAL),
    "multires_mixer": Row(_MULTIRES),
    "vit": Row(_VIT),
    "vit_h8": Row(_VIT, {"embed_dim": 8 * _HEAD, "num_heads": 8}),
    "vit_fastmri": Row(_VIT, {**_MRI, "embed_dim": 9 * _HEAD, "num_heads": 9}),
    "unet": Row(_UNET),
    "unet_c30": Row(_UNET, {"chans": 30}),
    "unet_fastmri": Row(_UNET, {**_GREY, "chans": 32}),
    "dncnn": Row(_DNCNN),
    "window_mixer": Row(_WINDOW),
    "window_mixer_tiny": Row(_WINDOW, {"embed_dims": (32, 64)}),
    "window_mixer_base": Row(_WINDOW, {"embed_dims": (64, 192), "depths": (2, 6, 2)}),
}


def list_models() -> list[str]:
    """All names that `build_model` knows, in the order of the table."""
    return list(MODELS)


def find_row(name: str, models: Mapping[str, Row] | None = None) -> Row:
    """The row of a name, in the zoo or in another table.

    Raises:
        InputError: an unknown name.
    """
    models = MODELS if models is None else models
    if name not in models:
        raise InputError(
            f"there is no model {name!r}{did_you_mean(name, models)}; the models are {', '.join(models)}"
        )
    return models[name]


def options_of_all(models: Mapping[str, Row] | None = None) -> dict[str, Option]:
    """The options of all networks of a table (default: the zoo), None standing for the network's default.

    Raises:
        InputError: two networks have an option of the same name and of different types.
    """
    found: dict[str, Option] = {}
    for name, row in (MODELS if models is None else models).items():
        for key, option in row.options.items():
            optional = option._replace(type=option.type | None, default=None)
            if found.setdefault(key, optional).type != optional.type:
                raise InputError(
                    f"the option {key} of {name} is {option.type}, that of others {found[key].type}"
                )
    return found


def model_config(name: str, **overrides: Any) -> dict[str, Any]:
    """All constructor arguments of a model: those of its row with the overrides in place.

    What a run stores: it can be written as JSON, and `build_model(name, **config)` gives the
    network again.

    Args:
        name: one of `list_models()`.
        **overrides: options of that model to change; img_size is a number or (H, W).

    Raises:
        InputError: an unknown name, an option that the model does not have, or a value of the
            wrong kind.
    """
    return find_row(name).complete(name, overrides)


def build_model(name: str, **overrides: Any) -> nn.Module:
    """Build a network by name, with random weights.

    Every network maps (B, in_chans, H, W) to (B, out_chans, H, W) and says which images it takes
    (`img2img_recon.networks.base.Network`).

    Args:
        name: one of `list_models()`.
        **overrides: options of that model to change, as in `model_config`.

    Raises:
        InputError: as `model_config`, or the network cannot be built with these options.
        ImportError: the U-Net is asked for and `fastmri` is not installed.
    """
    from img2img_recon.networks.base import Network

    options = model_config(name, **overrides)
    network = find_row(name).build(options)
    if isinstance(network, Network):
        network.description = {"task": None, "model": name, "options": options}
    return network


def complete_config(
    name: str,
    given: Mapping[str, Any],
    img_size: tuple[int, int],
    models: Mapping[str, Row] | None = None,
) -> dict[str, Any]:
    """All constructor arguments for images of one size, as a run stores them.

    Args:
        name: one of `list_models()`.
        given: what the user set.
        img_size: (H, W) of the data's images; what the grid of networks that have one is made for
            unless `given` says otherwise, rounded up to what their patches divide.
        models: another table than the zoo.

    Raises:
        InputError: as `model_config`, or a patch larger than the images.
    """
    row = find_row(name, models)
    config = row.complete(name, given)
    if "img_size" not in config or "img_size" in given:
        return config
    patch = config.get("patch_size", 1)
    if min(img_size) < patch:
        raise InputError(
            f"patch_size is {patch}, but the images are {img_size[0]} x {img_size[1]}; "
            f"it must be 1 to {min(img_size)}"
        )
    multiple = patch * row.grid_divisor
    return config | {"img_size": [-(-side // multiple) * multiple for side in img_size]}


def did_you_mean(given: str, allowed: Collection[str]) -> str:
    """A question about the allowed word that is closest to the given one, or nothing if none is close."""
    close = difflib.get_close_matches(given, list(allowed), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
