"""The configuration of a denoising run: flags, checks, and the recipes behind the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from denoise_tasks.noise import Protocol, check_sigma
from img2img_recon.support.cli import flag
from img2img_recon.support.errors import InputError
from img2img_recon.training import options as flags
from img2img_recon.training.options import TrainingFlags
from img2img_recon.training.run_folder import config_hash

Task = Literal["gaussian", "sidd"]
SIDD_VAL_SCENES = ("6", "9")
SIDD_CENTRE = 2048

# The paper's settings (arXiv:2202.02018 and its code).
PAPER_RECIPES: dict[str, dict[str, Any]] = {
    "gaussian": {
        "max_epochs": 60,
        "lr": 1e-3,
        "batch_size": 12,
        "crop_size": 256,
        "halve_at_epoch": 50,
        "protocol": "paper",
        "num_workers": 2,
    },
    "sidd": {
        "max_epochs": 100,
        "lr": 5e-4,
        "batch_size": 8,
        "crop_size": 256,
        "halve_at_epoch": 50,
        "protocol": "standard",
        "num_workers": 2,
    },
}

# Minutes on two cores: what the built-in photographs are trained with.
LAPTOP_RECIPE: dict[str, Any] = {
    "max_epochs": 12,
    "lr": 2e-3,
    "batch_size": 16,
    "crop_size": 64,
    "crops_per_image": 96,
    "protocol": "standard",
    "augment": True,
    "num_workers": 0,
    "gradient_clip_val": 1.0,
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

NOT_IDENTITY = (*flags.NOT_IDENTITY, "skip_small")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(TrainingFlags):
    """Train a denoising network on Gaussian noise or on pairs of noisy and clean photographs."""

    task: Task = flag(help="gaussian: clean images, noise is added; sidd: pairs of real noise")
    sigma: float | None = flag(
        None, help="standard deviation of the noise, of 255 grey levels (gaussian; default 30)"
    )
    data_path: Path | None = flag(
        None,
        help="folder of images or of class folders (gaussian), SIDD's folder (sidd); "
        "default: the photographs of scikit-image (gaussian)",
    )
    pairs: Path | None = flag(
        None, help="folder of noisy/clean pairs instead of SIDD's folder (sidd)"
    )
    val_scenes: tuple[str, ...] | None = flag(
        None, help="scenes that validate (sidd; default 6 9, of other pairs a seeded tenth)"
    )
    val_share: float = flag(0.1, help="share of the classes, pictures or scenes that validate")
    test_share: float = flag(0.0, help="share of them kept for evaluate.py --split test")
    split_seed: int = flag(
        42, help="decides the sides and the subsets, so that runs of another --seed have the same"
    )
    train_images: int | None = flag(
        None, help="a seeded subset of so many training images; smaller ones lie within larger ones"
    )
    val_images: int | None = flag(100, help="at most so many validation images")
    protocol: Protocol | None = flag(
        None, help="paper or standard; see denoise_tasks/noise.py (gaussian)"
    )
    channels: Literal[1, 3] = flag(3, help="1 trains on luminance, 3 on colour")
    crop_size: int | None = flag(None, help="side of the training crops")
    crops_per_image: int | None = flag(None, help="crops of each image in an epoch (gaussian)")
    augment: bool | None = flag(None, help="flips and quarter turns of the training crops")
    fixed_noise: bool = flag(
        False, help="the same noise and crop of an image in every epoch, as published (gaussian)"
    )
    residual: bool = flag(True, help="the network estimates the noise; --no_residual: the image")
    halve_at_epoch: int | None = flag(
        None, help="halve the learning rate then; 0 for a one-cycle schedule"
    )
    skip_small: bool = flag(False, help="leave out images smaller than the crop")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma is not None:
            check_sigma(self.sigma)
        for name in ("train_images", "val_images", "crop_size", "crops_per_image"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise InputError(f"--{name}: given {number}, allowed: 1 or more")
        if self.halve_at_epoch is not None and self.halve_at_epoch < 0:
            raise InputError(f"--halve_at_epoch: given {self.halve_at_epoch}, allowed: 0 or more")
        if not 0 < self.val_share < 1:
            raise InputError(f"--val_share: given {self.val_share:g}, allowed: above 0 and below 1")
        if not 0 <= self.test_share < 1:
            raise InputError(
                f"--test_share: given {self.test_share:g}, allowed: at least 0 and below 1"
            )
        if self.task == "sidd" and (self.data_path is None) == (self.pairs is None):
            raise InputError(
                "--task sidd: give either --data_path, the folder SIDD_Small_sRGB_Only, or --pairs, "
                "a folder of noisy/clean pairs"
            )

    def check_task_flags(self) -> None:
        """Refuse flags of the other task.

        Raises:
            InputError: such a flag was given.
        """
        only = {
            "gaussian": ("sigma", "crops_per_image", "protocol", "fixed_noise"),
            "sidd": ("pairs", "val_scenes"),
        }
        for task, names in only.items():
            for name in names:
                if task != self.task and getattr(self, name) not in (None, False):
                    raise InputError(f"--{name}: only for --task {task}, given --task {self.task}")

    def with_recipe(self, recipe: Mapping[str, Any]) -> TrainConfig:
        """This configuration with the recipe's value for every flag that was not given.

        Raises:
            InputError: flags that do not go together.
        """
        self.check_task_flags()
        defaults = {
            "sigma": 30.0 if self.task == "gaussian" else None,
            "crops_per_image": 1,
            "augment": False,
            "halve_at_epoch": 0,
            "lr": 1e-3,
        }
        values = {**defaults, **recipe}
        if self.max_epochs is not None and values["halve_at_epoch"]:
            # a shorter training halves at the same share of it
            share = values["halve_at_epoch"] / values["max_epochs"]
            values["halve_at_epoch"] = max(round(self.max_epochs * share), 1)
        return self.filled(values)


def identity(config: TrainConfig, model_options: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a run the run it is, as stored in its folder and its checkpoints."""
    content = asdict(config)
    for name in (*NOT_IDENTITY, *config.option_flags()):
        del content[name]
    for name in ("data_path", "pairs"):
        folder = content[name]
        content[name] = str(folder.resolve()) if folder else None
    if config.val_scenes is not None:
        content["val_scenes"] = list(config.val_scenes)
    return content | {"model_options": dict(model_options)}


def default_run_dir(config: TrainConfig, content: Mapping[str, Any]) -> Path:
    """`runs/<task>-<model>-<sigma>-<hash>`: one folder per configuration."""
    level = f"-{config.sigma:g}" if config.sigma is not None else ""
    return Path("runs") / f"{config.task}{level}-{config.model}-{config_hash(content)}"
