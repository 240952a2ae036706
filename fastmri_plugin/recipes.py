"""Networks that MRI trains beside the zoo's, and recipes: defaults that depend on the data and the network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from fastmri_plugin.methods import METHODS
from img2img_recon.networks.zoo import Option, Row


class Recipe(NamedTuple):
    """Defaults that depend on the data: of flags, of networks' options by model, of flags by model."""

    flags: Mapping[str, Any]
    networks: Mapping[str, Mapping[str, Any]]
    model_flags: Mapping[str, Mapping[str, Any]]


UNROLLED = {
    "batch_size": 1,
    "lr": 3e-3,
    "lr_interval": "step",
    "gradient_clip_val": 1.0,
    "gradient_clip_norm_type": 2.0,
}
# fastMRI's VarNet takes one slice.
VARNET = {"batch_size": 1}

# The paper's fastMRI networks and recipe (arXiv:2202.02018 and its code).
PAPER = Recipe(
    {
        "max_epochs": 40,
        "lr": 5e-4,
        "lr_interval": "epoch",
        "batch_size": 1,
        "gradient_clip_val": 1.0,
        "gradient_clip_norm_type": 1.0,
        "baselines": ("zero_filled",),
        "num_workers": 4,
    },
    {
        "img2img_mixer": {"patch_size": 4, "embed_dim": 128, "depth": 16, "mlp_ratio": 8},
        "unet": {"chans": 32},
        "vit": {"embed_dim": 396, "depth": 4, "num_heads": 9},
    },
    {"fastmri_varnet": VARNET, "unrolled_mixer": UNROLLED},
)
# A few minutes on two cores: what the built-in synthetic data are trained with.
LAPTOP = Recipe(
    {
        "max_epochs": 20,
        "lr": 2e-3,
        "lr_interval": "step",
        "batch_size": 2,
        "gradient_clip_val": 1.0,
        "gradient_clip_norm_type": 2.0,
        "baselines": tuple(METHODS),
        "num_workers": 0,
    },
    {
        "img2img_mixer": {"patch_size": 4, "embed_dim": 48, "depth": 6, "mlp_ratio": 2},
        "linear_mixer": {"patch_size": 4, "embed_dim": 48, "depth": 6, "mlp_ratio": 2},
        "multires_mixer": {"embed_dim": 24},
        "original_mixer": {"patch_size": 4, "embed_dim": 64, "depth": 4},
        "vit": {"embed_dim": 176, "depth": 2, "num_heads": 4},
        "dncnn": {"depth": 8},
        "unet": {"chans": 16},
        "fastmri_unet": {"chans": 16},
        "fastmri_varnet": {"num_cascades": 4, "chans": 8, "sens_chans": 4},
        "unrolled_mixer": {
            "cascades": 3,
            "embed_dims": (24, 48),
            "depths": (2, 2, 2),
            "sens_embed_dims": (16,),
        },
    },
    {"fastmri_varnet": VARNET, "unrolled_mixer": {**UNROLLED, "max_epochs": 12}},
)

# fastMRI's own networks, which its own modules train (`fastmri_plugin.module`).
FASTMRI_MODELS = {
    "fastmri_unet": Row(
        "fastmri.models:Unet",
        own_options=(
            Option("in_chans", int, 1, "channels of the images that come in"),
            Option("out_chans", int, 1, "channels of the images that go out"),
            Option("chans", int, 32, "channels of the first level"),
            Option("num_pool_layers", int, 4, "number of poolings"),
            Option("drop_prob", float, 0.0, "probability of dropping a channel in training"),
        ),
    ),
    "fastmri_varnet": Row(
        "fastmri.models:VarNet",
        own_options=(
            Option("num_cascades", int, 12, "number of cascades"),
            Option("pools", int, 4, "number of poolings of a cascade's U-Net"),
            Option("chans", int, 18, "channels of the first level of a cascade's U-Net"),
            Option("sens_pools", int, 4, "number of poolings of the sensitivities' U-Net"),
            Option("sens_chans", int, 8, "channels of the first level of the sensitivities' U-Net"),
        ),
    ),
}

# Networks that are fed the measured k-space.
KSPACE_MODELS = {"unrolled_mixer": Row("fastmri_plugin.unrolled_mixer:UnrolledMixer")}
