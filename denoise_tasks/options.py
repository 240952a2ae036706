"""Flags of a denoising training, and recipes: what they come to where they are not given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from img2img_recon.support.cli import flag
from img2img_recon.support.errors import InputError
from img2img_recon.support.types import (
    GreyLevels,
    NonNegativeFloat,
    NonNegativeInt,
    OpenUnitInterval,
    PositiveInt,
    ShareBelowOne,
)
from img2img_recon.training.options import TrainingFlags

Protocol = Literal["paper", "standard"]

USUAL: dict[str, Any] = {"augment": False, "protocol": "standard"}
ADDED_NOISE = USUAL | {"sigma": 30.0, "crops_per_image": 1}
PAPER = {"crop_size": 256, "halve_at_epoch": 50, "num_workers": 2}
# The paper's settings (arXiv:2202.02018 and its code), and minutes on two cores: what the built-in
# photographs are trained with.
RECIPES: dict[str, dict[str, Any]] = {
    "gaussian": {
        **ADDED_NOISE,
        **PAPER,
        "max_epochs": 60,
        "lr": 1e-3,
        "batch_size": 12,
        "protocol": "paper",
    },
    "pairs": {**USUAL, **PAPER, "max_epochs": 100, "lr": 5e-4, "batch_size": 8},
    "built-in": {
        **ADDED_NOISE,
        "max_epochs": 12,
        "lr": 2e-3,
        "batch_size": 16,
        "crop_size": 64,
        "crops_per_image": 96,
        "augment": True,
        "num_workers": 0,
        "gradient_clip_val": 1.0,
        "halve_at_epoch": 0,
    },
}
LAPTOP_NETWORKS: dict[str, dict[str, Any]] = {
    "img2img_mixer": {"patch_size": 4, "embed_dim": 64, "depth": 6, "mlp_ratio": 2},
    "linear_mixer": {"patch_size": 4, "embed_dim": 64, "depth": 6, "mlp_ratio": 2},
    "multires_mixer": {"embed_dim": 24},
    "original_mixer": {"patch_size": 4, "embed_dim": 64, "depth": 4},
    "vit": {"embed_dim": 88, "depth": 3, "num_heads": 4, "patch_size": 8},
    "dncnn": {"depth": 8, "chans": 32},
    "unet": {"chans": 8},
}
# Side of the part of a photograph of a pair that is cut into patches, as published for SIDD.
PAIRS_CENTRE = 2048


@dataclass(frozen=True, kw_only=True)
class TrainConfig(TrainingFlags):
    """Train a denoising network on Gaussian noise or on pairs of noisy and clean photographs."""

    task: Literal["gaussian", "pairs"] = flag(
        help="clean images plus Gaussian noise, or noisy/clean pairs", group="data", basic=True
    )
    sigma: GreyLevels | tuple[NonNegativeFloat, ...] | None = flag(
        None,
        help="noise that is added, of 255 grey levels; two for one network from LOW to HIGH (gaussian)",
        group="data",
        basic=True,
    )
    loss: Literal["mse", "level", "absolute"] = flag(
        "mse",
        help="squared error, that over sigma / 255 + 0.01 (gaussian), or the absolute error over that one's root",
        group="training",
    )
    data_path: Path | None = flag(
        None,
        help="images or class folders (gaussian; default: scikit-image's photographs), SIDD or any pairs",
        group="data",
        basic=True,
    )
    val_scenes: tuple[str, ...] | None = flag(
        None, help="scenes that validate (pairs); default: a share, of SIDD 6 and 9", group="data"
    )
    val_share: OpenUnitInterval = flag(
        0.1, help="share of the classes, pictures or scenes that validate", group="data"
    )
    test_share: ShareBelowOne = flag(
        0.0, help="share of them kept for evaluate.py --split test", group="data"
    )
    split_seed: NonNegativeInt = flag(
        42, help="of sides and subsets, which runs of another --seed share", group="data"
    )
    train_images: PositiveInt | None = flag(
        None, help="a seeded subset of so many; smaller lie within larger", group="data", basic=True
    )
    val_images: PositiveInt | None = flag(
        100, help="at most so many validation images", group="data"
    )
    protocol: Protocol | None = flag(
        None, help="paper or standard; see denoise_tasks/noise.py (gaussian)", group="data"
    )
    channels: Literal[1, 3] = flag(3, help="1 trains on luminance, 3 on colour", group="data")
    crop_size: PositiveInt | None = flag(
        None, help="side of the training crops", group="data", basic=True
    )
    crop_margin: NonNegativeInt = flag(
        0,
        help="outer pixels of a crop that do not count, crops being mapped without padding (window mixers)",
        group="data",
    )
    crops_per_image: PositiveInt | None = flag(
        None, help="crops of each image in an epoch (gaussian)", group="data"
    )
    augment: bool | None = flag(
        None, help="flips and quarter turns of the training crops", group="data"
    )
    fixed_noise: bool = flag(
        False, help="the same noise and crop in every epoch, as published (gaussian)", group="data"
    )
    skip_small: bool = flag(False, help="leave out images smaller than the crop", group="data")
    residual: bool = flag(
        True, help="the network estimates the noise; --no_residual: the image", group="network"
    )
    halve_at_epoch: NonNegativeInt | None = flag(
        None, help="halve the learning rate then; 0 for a one-cycle schedule", group="training"
    )

    def __post_init__(self) -> None:
        if self.sigma is not None:
            check_unit(max(self.sigma, default=0) if isinstance(self.sigma, tuple) else self.sigma)
        if not isinstance(self.sigma, tuple):
            return
        if len(self.sigma) == 1 and 0 < self.sigma[0] <= 255:
            object.__setattr__(self, "sigma", self.sigma[0])
        elif len(self.sigma) != 2 or not self.sigma[0] < self.sigma[1] <= 255:
            given = " ".join(f"{one:g}" for one in self.sigma)
            raise InputError(
                f"--sigma: given {given}, allowed: one level above 0, or the lowest and the highest of "
                "many, as 0 75; at most 255"
            )
        elif self.fixed_noise:
            raise InputError("--fixed_noise: only with one --sigma")

    @property
    def level(self) -> float | None:
        """The noise that validates, of 255 grey levels: that of training, or the middle of its range."""
        return sum(self.sigma) / 2 if isinstance(self.sigma, tuple) else self.sigma


def check_unit(sigma: float) -> None:
    """See that the level of noise of a command line is not in units of white.

    Raises:
        InputError: it lies between 0 and 1.
    """
    if 0 < sigma < 1:
        raise InputError(
            f"--sigma: given {sigma:g}, allowed: 0, or 1 and more of 255 grey levels; was "
            f"{sigma:g} of white meant? That is --sigma {255 * sigma:g}"
        )
