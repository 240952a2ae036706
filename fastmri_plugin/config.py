"""The configuration of an MRI training run: flags, checks, and the recipes behind the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from fastmri_plugin.classical import Method
from fastmri_plugin.transforms import Sampling, usual_center_fraction
from img2img_recon.support.cli import flag
from img2img_recon.support.errors import InputError
from img2img_recon.training import options as flags
from img2img_recon.training.options import TrainingFlags
from img2img_recon.training.run_folder import config_hash

DIRS_FILE = Path("fastmri_dirs.yaml")

# The paper's fastMRI network and recipe (arXiv:2202.02018 and its code).
PAPER_RECIPE: dict[str, Any] = {
    "max_epochs": 40,
    "lr": 5e-4,
    "lr_interval": "epoch",
    "batch_size": 1,
    "gradient_clip_val": 1.0,
    "gradient_clip_norm_type": 1.0,
}
PAPER_NETWORKS: dict[str, dict[str, Any]] = {
    "img2img_mixer": {"patch_size": 4, "embed_dim": 128, "depth": 16, "mlp_ratio": 8},
    "unet": {"chans": 32},
    "vit": {"embed_dim": 396, "depth": 4, "num_heads": 9},
}

# A few minutes on two cores: what the built-in synthetic data are trained with.
LAPTOP_RECIPE: dict[str, Any] = {
    "max_epochs": 20,
    "lr": 2e-3,
    "lr_interval": "step",
    "batch_size": 2,
    "gradient_clip_val": 1.0,
    "gradient_clip_norm_type": 2.0,
}
LAPTOP_NETWORKS: dict[str, dict[str, Any]] = {
    "img2img_mixer": {"patch_size": 4, "embed_dim": 48, "depth": 6, "mlp_ratio": 2},
    "linear_mixer": {"patch_size": 4, "embed_dim": 48, "depth": 6, "mlp_ratio": 2},
    "multires_mixer": {"embed_dim": 24},
    "original_mixer": {"patch_size": 4, "embed_dim": 64, "depth": 4},
    "vit": {"embed_dim": 176, "depth": 2, "num_heads": 4},
    "dncnn": {"depth": 8},
    "unet": {"chans": 16},
    "fastmri_unet": {"chans": 16},
    "fastmri_varnet": {"num_cascades": 4, "chans": 8, "sens_chans": 4, "batch_size": 1},
}

# What may change between a run and its continuation.
NOT_IDENTITY = (*flags.NOT_IDENTITY, "mode", "out_dir", "test_path", "test_split")

FASTMRI_MODELS = ("fastmri_unet", "fastmri_varnet")

VARNET_OPTIONS = ("num_cascades", "pools", "sens_chans", "sens_pools")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(TrainingFlags):
    """Train a reconstruction network on fastMRI volumes, score it and export what it reconstructs."""

    challenge: Literal["singlecoil", "multicoil"] = flag(help="which fastMRI challenge")
    accel: tuple[int, ...] | None = flag(
        None, help="accelerations with their usual centre fractions: 4, 8, or both"
    )
    data_path: Path | None = flag(
        None,
        help="folder with {challenge}_train and {challenge}_val; default: built-in synthetic data",
    )
    anatomy: Literal["knee", "brain"] = flag(
        "knee", help="which path of fastmri_dirs.yaml stands in for --data_path"
    )
    test_path: Path | None = flag(None, help="folder of test volumes, for --mode test")
    out_dir: Path | None = flag(
        None, help="where --mode test writes; default: RUN/predictions/, named by the data"
    )
    test_split: Literal["test", "challenge", "val"] = flag("test", help="split for --mode test")
    mode: Literal["train", "test"] = flag(
        "train", help="train and score, or reconstruct a test split with a trained run"
    )
    mask_type: str | None = flag(None, help="fastMRI's mask type; default: random")
    accelerations: tuple[int, ...] | None = flag(None, help="as --accel, fastMRI's name")
    center_fractions: tuple[float, ...] | None = flag(
        None,
        help="share of columns kept at the centre, one per acceleration; default: 0.32 / acceleration",
    )
    sample_rate: float | None = flag(None, help="share of the training slices, (0, 1]")
    volume_sample_rate: float | None = flag(None, help="share of the training volumes, (0, 1]")
    num_cascades: int | None = flag(None, help="cascades (varnet)")
    pools: int | None = flag(None, help="pooling levels (varnet)")
    sens_chans: int | None = flag(None, help="channels of the coil-map network (varnet)")
    sens_pools: int | None = flag(None, help="pooling levels of the coil-map network (varnet)")
    lr_interval: Literal["epoch", "step"] | None = flag(
        None, help="when the one-cycle schedule steps"
    )
    baselines: tuple[Method, ...] | None = flag(
        None,
        help="classical methods to score beside: zero_filled tv l1_wavelet; "
        "default: all on the built-in data, zero_filled elsewhere",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sample_rate", "volume_sample_rate"):
            rate = getattr(self, name)
            if rate is not None and not 0 < rate <= 1:
                raise InputError(f"--{name}: given {rate:g}, allowed: above 0, up to 1")
        if self.sample_rate is not None and self.volume_sample_rate is not None:
            raise InputError(
                "--sample_rate and --volume_sample_rate: only one of the two can be given"
            )
        self.sampling()

    def sampling(self) -> Sampling:
        """The masks that the flags describe.

        Raises:
            InputError: --accel and --accelerations disagree, or a value that is not allowed.
        """
        if self.accel and self.accelerations and self.accel != self.accelerations:
            raise InputError(
                f"--accel {_words(self.accel)} and --accelerations {_words(self.accelerations)} disagree; "
                "give one of the two"
            )
        accelerations = self.accel or self.accelerations or (4,)
        for acceleration in accelerations:
            if acceleration < 1:
                name = "accel" if self.accel else "accelerations"
                raise InputError(f"--{name}: given {acceleration}, allowed: 1 or more")
        fractions = self.center_fractions or tuple(usual_center_fraction(a) for a in accelerations)
        return Sampling(self.mask_type or "random", accelerations, fractions)

    def gives_sampling(self) -> bool:
        """Whether a flag about the masks was given."""
        flags = (self.mask_type, self.accel, self.accelerations, self.center_fractions)
        return any(given is not None for given in flags)

    @classmethod
    def option_flags(cls) -> tuple[str, ...]:
        """Names of the flags that are a model's constructor arguments."""
        return (*super().option_flags(), *VARNET_OPTIONS)

    def with_recipe(self, recipe: Mapping[str, Any]) -> TrainConfig:
        """This configuration with the recipe's value for every flag that was not given.

        fastMRI's modules keep their own learning rate and schedule.

        Raises:
            InputError: values that do not go together.
        """
        theirs = ("lr", "lr_interval") if self.model in FASTMRI_MODELS else ()
        config = self.filled(recipe, theirs)
        if config.model == "fastmri_varnet" and (config.batch_size or 1) > 1:
            raise InputError(
                f"--batch_size: given {config.batch_size}, allowed: 1 (fastmri_varnet takes one slice)"
            )
        return config


def _words(numbers: tuple[int, ...]) -> str:
    return " ".join(map(str, numbers))


def configured_data_path(anatomy: str, dirs_file: Path = DIRS_FILE) -> Path | None:
    """The data folder that `fastmri_dirs.yaml` in the working directory names.

    fastMRI writes a template with made-up paths into that file; those count as not set.

    Raises:
        InputError: a file that is no YAML mapping, or a path that is not a folder.
    """
    value = _dirs_entry(f"{anatomy}_path", dirs_file)
    if value is None or value == Path(f"/path/to/{anatomy}"):
        return None
    if not value.is_dir():
        raise InputError(f"{dirs_file}: {anatomy}_path is {value}, which is not a folder")
    return value


def log_path(dirs_file: Path = DIRS_FILE) -> Path:
    """Where runs go: `log_path` of `fastmri_dirs.yaml`, else the working directory."""
    return _dirs_entry("log_path", dirs_file) or Path()


def _dirs_entry(key: str, dirs_file: Path) -> Path | None:
    if not dirs_file.is_file():
        return None
    try:
        content = yaml.safe_load(dirs_file.read_text())
    except yaml.YAMLError as error:
        raise InputError(f"{dirs_file}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise InputError(f"{dirs_file}: expected the keys knee_path, brain_path and log_path")
    value = content.get(key)
    return None if value is None else Path(str(value)).expanduser()


def identity(config: TrainConfig, model_options: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a run the run it is, as stored in its folder and its checkpoints."""
    content = asdict(config)
    sampling = config.sampling()
    for name in (*NOT_IDENTITY, *config.option_flags(), "accel", "anatomy"):
        del content[name]
    content |= {
        "task": "mri",
        "data_path": str(config.data_path.resolve()) if config.data_path else None,
        "mask_type": sampling.mask_type,
        "accelerations": list(sampling.accelerations),
        "center_fractions": list(sampling.center_fractions),
        "baselines": list(config.baselines or ()),
        "model_options": dict(model_options),
    }
    return content


def default_run_dir(config: TrainConfig, content: Mapping[str, Any]) -> Path:
    """`runs/<challenge>-<model>-<accelerations>x-<hash>`: one folder per configuration."""
    accelerations = "-".join(map(str, content["accelerations"]))
    name = f"{config.challenge}-{config.model}-{accelerations}x-{config_hash(content)}"
    return log_path() / "runs" / name
