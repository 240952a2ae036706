"""The MRI task: flags, and what a training prepares, builds, scores and leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fastmri_plugin.demo_data import SIZES
from fastmri_plugin.dirs import configured_data_path, log_path
from fastmri_plugin.flags import DataFlags, SplitName
from fastmri_plugin.methods import METHODS
from fastmri_plugin.recipes import FASTMRI_MODELS, KSPACE_MODELS, LAPTOP, PAPER
from img2img_recon.networks.zoo import MODELS, Row, complete_config
from img2img_recon.support.cli import flag
from img2img_recon.support.errors import InputError, named
from img2img_recon.support.types import NonNegativeFloat, UnitShare
from img2img_recon.training.options import TrainingFlags
from img2img_recon.training.run_folder import RunFolder, config_hash, data_digest
from img2img_recon.training.task import PreparedRun, Report, Task, TrainingParts, Workload

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fastmri_plugin.inspection import Need
    from fastmri_plugin.volumes import VolumeInfo


# Slices of fastMRI's knee training sets, the size of most images, and coils.
TRAIN_SLICES = 34_742
IMAGE_SIZE = (320, 320)
KNEE_COILS = 15


@dataclass(frozen=True, kw_only=True)
class TrainConfig(TrainingFlags, DataFlags):
    """Train a reconstruction network on fastMRI volumes, score it and export what it reconstructs."""

    sample_rate: UnitShare | None = flag(
        None, help="share of the training slices, (0, 1]", group="data", basic=True
    )
    volume_sample_rate: UnitShare | None = flag(
        None, help="share of the training volumes, (0, 1]", group="data"
    )
    lr_interval: Literal["epoch", "step"] | None = flag(
        None, help="when the one-cycle schedule steps", group="training"
    )
    kspace_loss: NonNegativeFloat = flag(
        0.0,
        help="weight of the L1 distance of the Fourier transforms of magnitude and target, beside 1 - SSIM",
        group="training",
    )
    baselines: tuple[str, ...] | None = flag(
        None,
        help="methods to score beside: zero_filled tv l1_wavelet; default: all on the built-in data, "
        "zero_filled elsewhere",
        basic=True,
    )
    mode: Literal["train", "test"] = flag(
        "train", help="train and score, or reconstruct a test split with a trained run", basic=True
    )
    test_split: SplitName = flag("test", help="split for --mode test")
    test_path: Path | None = flag(None, help="folder of test volumes, for --mode test")
    out: Path | None = flag(
        None, help="where --mode test writes; default: RUN/predictions/, named by the data"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sample_rate is not None and self.volume_sample_rate is not None:
            raise InputError(
                "--sample_rate and --volume_sample_rate: only one of the two can be given"
            )


@dataclass(frozen=True)
class MriRun(PreparedRun):
    """A run with its data.

    Attributes:
        data_path: the data folder.
        builtin: whether that is the synthetic one.
        train: training volumes.
        val: validation volumes.
    """

    data_path: Path
    builtin: bool
    train: list[VolumeInfo]
    val: list[VolumeInfo]

    def data_digest(self) -> str:
        """Names, sizes and headers of the volumes of both sides."""
        return data_digest(
            (volume.path.name, replace(volume, path=Path())) for volume in (*self.train, *self.val)
        )


class MriTask(Task[TrainConfig, MriRun]):
    """Accelerated MRI: zero-filled or measured k-space to magnitude images."""

    name = "mri"
    config_class = TrainConfig
    monitor = "val_metrics/ssim"
    begins_with = ("mri",)
    not_identity = ("anatomy", "mode", "out", "test_path", "test_split")

    def models(self) -> Mapping[str, Row]:
        """The networks of the zoo, fastMRI's own modules and the networks that are fed k-space."""
        return MODELS | FASTMRI_MODELS | KSPACE_MODELS

    def resolve(self, given: TrainConfig) -> TrainConfig:
        """See `Task`; `data_path` stays None for the built-in data."""
        given, known = self.begun(given)
        if known.get("challenge", given.challenge) != given.challenge:
            raise InputError(
                f"--challenge: given {given.challenge}, but --init {given.init} is for {known['challenge']}"
            )
        data_path = given.data_path or configured_data_path(given.anatomy)
        recipe = LAPTOP if data_path is None else PAPER
        # fastMRI's modules keep their own learning rate and schedule.
        own = given.model in FASTMRI_MODELS
        flags = {**recipe.flags, **recipe.model_flags.get(given.model, {})}
        config = given.filled(flags, ("lr", "lr_interval") if own else ())
        if own and (given.optimizer != "adam" or given.budget_min is not None):
            raise InputError(
                f"--optimizer, --budget_min: {given.model} brings its own optimiser and schedule; "
                "leave both out"
            )
        masks = config.masks()
        for name in config.baselines or ():
            if name not in METHODS:
                raise InputError(f"--baselines: given {name}, allowed: {', '.join(METHODS)}")
        if own and config.kspace_loss:
            raise InputError(
                f"--kspace_loss: given with {config.model}, which has fastMRI's own loss"
            )
        if config.model == "fastmri_varnet":
            if config.challenge != "multicoil":
                raise InputError("--model: fastmri_varnet needs --challenge multicoil")
            if (config.batch_size or 1) > 1:
                raise InputError(
                    f"--batch_size: given {config.batch_size}, allowed: 1 (fastmri_varnet takes one slice)"
                )
        options = {**recipe.networks.get(config.model, {}), **_sens(config), **config.options}
        size = IMAGE_SIZE if data_path else (SIZES[config.challenge].recon,) * 2
        complete = self._complete(config.model, options, size)
        assumed = "img_size" in complete and "img_size" not in options
        return replace(
            config,
            data_path=data_path,
            mask_type=masks.mask_type,
            accel=masks.accelerations,
            center_fractions=masks.center_fractions,
            options=complete,
            assumed=("img_size",) if assumed else config.assumed,
        )

    def _complete(
        self, model: str, options: Mapping[str, Any], size: tuple[int, int]
    ) -> dict[str, Any]:
        """All of the network's options for images of this size.

        Raises:
            InputError: no such model, or an option that it lacks.
        """
        if model not in (models := self.models()):
            raise InputError(f"--model: given {model}, allowed: {', '.join(models)}")
        one_channel = {"in_chans": 1, "out_chans": 1} if model in MODELS else {}
        return complete_config(model, {**one_channel, **options}, size, models)

    def workload(self, config: TrainConfig) -> Workload:
        """See `Task`; of the user's own data fastMRI's numbers are taken."""
        if config.data_path is None:
            sizes = SIZES[config.challenge]
            slices, size = sizes.train_slices, (sizes.recon, sizes.recon)
        else:
            slices, size = TRAIN_SLICES, IMAGE_SIZE
        share = config.sample_rate or config.volume_sample_rate or 1.0
        images = max(round(slices * share), 1)
        return Workload(size, images, images * (config.max_epochs or 1))

    def network(self, config: TrainConfig) -> nn.Module:
        """See `Task`."""
        from fastmri_plugin.module import build_network

        return build_network(config.model, config.options)

    def example(self, config: TrainConfig) -> tuple[Tensor | None, ...] | None:
        """See `Task`; k-space is as wide as the image."""
        if config.model not in KSPACE_MODELS:
            return super().example(config)
        import torch

        height, width = self.workload(config).image_size
        coils = SIZES[config.challenge].coils if config.data_path is None else KNEE_COILS
        coils = 1 if config.challenge == "singlecoil" else coils
        kspace = torch.empty(1, coils, height, width, dtype=torch.complex64, device="meta")
        mask = torch.empty(1, 1, 1, width, dtype=torch.bool, device="meta")
        # ESPIRiT goes by what is in k-space; beside the cascades its operations are few.
        maps = (None, kspace) if config.options.get("sens") == "espirit" else ()
        return kspace, mask, *maps

    def identity(self, config: TrainConfig) -> dict[str, Any]:
        """See `Task`."""
        content = super().identity(config)
        return content | {"wrapper": "normalized"} if config.model in MODELS else content

    def default_run(self, config: TrainConfig, content: Mapping[str, Any]) -> Path:
        """`runs/<challenge>-<model>-<accelerations>x-<hash>`."""
        accelerations = "-".join(map(str, config.accel or ()))
        name = f"{config.challenge}-{config.model}-{accelerations}x-{config_hash(content)}"
        return log_path() / "runs" / name

    def prepare(self, config: TrainConfig, report: Report) -> MriRun:
        """See `Task`; broken training volumes are named and left out."""
        from fastmri_plugin.data import most_common_size
        from fastmri_plugin.listing import list_volumes, split_folder
        from fastmri_plugin.splits import find_data
        from img2img_recon.training.runner import track_of

        track = track_of(config.progress)
        data_path, builtin = find_data(config, report, track)

        needs: tuple[Need, ...] = ("target",)
        if config.model == "fastmri_varnet":
            needs = ("target", "limits")
        masks = config.masks()

        def volumes(split: str) -> list[VolumeInfo]:
            with named("--data_path"):
                folder = split_folder(data_path, config.challenge, split)
            infos = list_volumes(
                folder,
                config.challenge,
                needs=needs,
                skip_broken=split == "train",
                report=report,
                track=track,
            )
            masks.check(infos)
            if others := masks.others(infos):
                report(f"{folder}: {others}")
            return infos

        train, val = volumes("train"), volumes("val")
        if config.assumed:
            known = {k: v for k, v in config.options.items() if k not in config.assumed}
            size = most_common_size(train)
            options = self._complete(config.model, known, size)
            if options != config.options:
                report(
                    f"The images of {data_path} are {size[0]} x {size[1]}; so is the network's grid."
                )
            config = replace(config, options=options)
        content = self.identity(config)
        run = RunFolder(config.run or self.default_run(config, content))
        return MriRun(config, run, content, report, track, data_path, builtin, train, val)

    def build(self, prepared: MriRun) -> TrainingParts:
        """See `Task`."""
        import pytorch_lightning as pl

        from fastmri_plugin.data import SliceDataModule, SliceDataset, sample_slices
        from fastmri_plugin.module import build_module
        from fastmri_plugin.transforms import build_transform
        from img2img_recon.training.beginnings import begin
        from img2img_recon.training.trainer import compile_networks, make_trainer

        config: TrainConfig = prepared.config
        masks = config.masks()
        pl.seed_everything(config.seed, verbose=False)
        module = build_module(
            config.model,
            config.options,
            config.lr,
            config.lr_interval or "epoch",
            config.kspace_loss,
            config.optimizer,
        )
        begin(module, config.init)
        if config.compile:
            compile_networks(module)

        def dataset(volumes: list[VolumeInfo], seeded_masks: bool, slices: Any) -> SliceDataset:
            transform = build_transform(
                config.model, config.challenge, masks.mask_func(), seeded_masks
            )
            return SliceDataset(volumes, transform, config.seed, slices)

        sampled = sample_slices(
            prepared.train, config.sample_rate, config.volume_sample_rate, config.seed
        )
        data = SliceDataModule(
            train=dataset(prepared.train, False, sampled),
            val=dataset(prepared.val, True, None),
            batch_size=config.batch_size or 1,
            num_workers=config.num_workers or 0,
            seed=config.seed,
        )
        trainer = make_trainer(
            prepared.run, prepared.content, config, self.monitor, self.monitor_mode
        )
        return TrainingParts(module, data, trainer)

    def describe(self, prepared: MriRun, parts: TrainingParts) -> str:
        """See `Task`."""
        from img2img_recon.networks.base import count_parameters

        data: Any = parts.data
        return (
            f"{prepared.config.model}: {count_parameters(parts.module):,} parameters; "
            f"{len(data.train)} training slices of {len(prepared.train)} volumes, "
            f"{len(data.val)} validation slices of {len(prepared.val)}"
        )

    def score(self, prepared: MriRun) -> dict[str, Any]:
        """See `Task`."""
        from fastmri_plugin.results import score

        return score(prepared)

    def finish(self, prepared: MriRun) -> None:
        """Export the built-in data's test split as a validated submission."""
        from fastmri_plugin.results import SUBMISSION, export_test_split

        if prepared.builtin and not (prepared.run.path / SUBMISSION).exists():
            export_test_split(prepared)


def _sens(config: TrainConfig) -> dict[str, Any]:
    """Where an unrolled network's sensitivity maps come from unless that is given; one coil has none.

    Raises:
        InputError: it is given and does not fit the coils.
    """
    if config.model not in KSPACE_MODELS:
        return {}
    one_coil = config.challenge == "singlecoil"
    default = "none" if one_coil else "learned"
    given = config.options.get("sens", default)
    if one_coil != (given == "none"):
        allowed = "none" if one_coil else "learned, espirit"
        raise InputError(f"--sens: given {given}, allowed with {config.challenge}: {allowed}")
    return {"sens": default}


TASK = MriTask()
