"""One training run: look everything up and check it, then train to the end, resuming where a run broke off."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from fastmri_plugin.classical import METHODS
from fastmri_plugin.config import (
    LAPTOP_NETWORKS,
    LAPTOP_RECIPE,
    PAPER_NETWORKS,
    PAPER_RECIPE,
    TrainConfig,
    configured_data_path,
    default_run_dir,
    identity,
)
from fastmri_plugin.data import SliceDataModule, SliceDataset, most_common_size, sample_slices
from fastmri_plugin.demo_data import demo_folder
from fastmri_plugin.module import build_module, build_transform, model_options
from fastmri_plugin.volumes import VolumeInfo, list_volumes, split_folder
from img2img_recon.support.errors import InputError
from img2img_recon.support.progress import Track
from img2img_recon.training.run_folder import RunFolder
from img2img_recon.training.runner import Parts, Say, count_parameters, say_nothing, track_of
from img2img_recon.training.trainer import compile_networks, make_trainer


@dataclass(frozen=True)
class Setup:
    """A run with everything looked up and checked, before anything is trained."""

    config: TrainConfig
    options: dict[str, Any]
    train: list[VolumeInfo]
    val: list[VolumeInfo]
    run: RunFolder
    content: dict[str, Any]
    builtin_data: bool
    say: Say

    @property
    def track(self) -> Track:
        """Progress bars, if wanted."""
        return track_of(self.config.progress)


def find_data(config: TrainConfig, say: Say) -> tuple[Path, bool]:
    """The data folder, and whether it is the built-in synthetic one (made now if need be)."""
    given = config.data_path or configured_data_path(config.anatomy)
    if given is not None:
        return given, False
    say(
        "No --data_path and no fastmri_dirs.yaml: using the built-in synthetic data (phantoms, not "
        "patients) and settings fit for a laptop."
    )
    return demo_folder(config.challenge, track_of(config.progress)), True


def prepare(config: TrainConfig, say: Say = say_nothing) -> Setup:
    """Find the data and settle every open setting.

    Args:
        config: what was asked for.
        say: takes the messages for the person at the terminal.

    Raises:
        InputError: data, flags or run folder that cannot be used.
    """
    track = track_of(config.progress)
    data_path, builtin = find_data(config, say)
    if builtin:
        network = LAPTOP_NETWORKS.get(config.model, {})
        config = config.with_recipe(
            {**LAPTOP_RECIPE, **network, "baselines": METHODS, "num_workers": 0}
        )
    else:
        network = PAPER_NETWORKS.get(config.model, {})
        config = config.with_recipe(
            {**PAPER_RECIPE, **network, "baselines": ("zero_filled",), "num_workers": 4}
        )
    config = replace(config, data_path=data_path)

    def skip(error: InputError) -> None:
        say(f"skipped: {error}")

    train, val = (
        list_volumes(
            split_folder(data_path, config.challenge, split),
            config.challenge,
            require_target=True,
            on_broken=skip if split == "train" else None,
            track=track,
        )
        for split in ("train", "val")
    )
    options = model_options(config.model, config.given_options(), most_common_size(train))
    content = identity(config, options)
    run = RunFolder(config.run_dir or default_run_dir(config, content))
    return Setup(config, options, train, val, run, content, builtin, say)


def build(setup: Setup) -> Parts:
    """Make the module, the data module and the trainer of a run.

    Raises:
        InputError: settings that do not go together.
    """
    config, sampling = setup.config, setup.config.sampling()
    pl.seed_everything(config.seed, verbose=False)
    module = build_module(
        config.model,
        setup.options,
        config.lr,
        config.lr_interval or "epoch",
    )
    if config.compile:
        compile_networks(module)

    def dataset(volumes: list[VolumeInfo], seeded_masks: bool, slices: Any) -> SliceDataset:
        transform = build_transform(
            config.model, config.challenge, sampling.mask_func(), use_seed=seeded_masks
        )
        return SliceDataset(volumes, config.challenge, transform, config.seed, slices)

    sampled = sample_slices(setup.train, config.sample_rate, config.volume_sample_rate, config.seed)
    data = SliceDataModule(
        train=dataset(setup.train, False, sampled),
        val=dataset(setup.val, True, None),
        batch_size=config.batch_size or 1,
        num_workers=config.num_workers or 0,
        seed=config.seed,
    )
    options = config.trainer_options("val_metrics/ssim", "max")
    return Parts(module, data, make_trainer(setup.run, setup.content, options))


def describe(setup: Setup, parts: Parts) -> str:
    """One line on what is about to be trained."""
    data = parts.data
    assert isinstance(data, SliceDataModule)
    return (
        f"{setup.config.model}: {count_parameters(parts.module):,} parameters; {len(data.train)} "
        f"training slices of {len(setup.train)} volumes, {len(data.val)} validation slices of "
        f"{len(setup.val)}"
    )
