"""Train a reconstruction network on fastMRI data, score it beside the classical methods, draw, export.

    python fastmri_plugin/train.py --challenge singlecoil --accel 4 [--data_path DIR]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from lightning_utilities.core.rank_zero import rank_zero_only
from rich.console import Console

from fastmri_plugin import classical
from fastmri_plugin.config import (
    BASELINES,
    LAPTOP_NETWORKS,
    LAPTOP_RECIPE,
    PAPER_NETWORK,
    PAPER_RECIPE,
    TrainConfig,
    configured_data_path,
    default_run_dir,
    identity,
)
from fastmri_plugin.data import SliceDataModule, SliceDataset, most_common_size, sample_slices
from fastmri_plugin.demo_data import demo_folder
from fastmri_plugin.inference import load_reconstructor, pick_device, reconstruct_volumes
from fastmri_plugin.module import build_module, build_transform, count_parameters, model_options
from fastmri_plugin.scoring import score_volume, scores_table, summarise
from fastmri_plugin.submission import validate_submission, write_submission
from fastmri_plugin.volumes import (
    VolumeInfo,
    list_volumes,
    read_reconstruction,
    read_target,
    split_folder,
    write_reconstruction,
)
from img2img_recon.cli import parse_config, run_script
from img2img_recon.errors import InputError
from img2img_recon.files import write_json
from img2img_recon.plots import reconstruction_panel
from img2img_recon.progress import Track, bar, silent
from img2img_recon.runs import RunFolder
from img2img_recon.training import TrainerOptions, compile_networks, make_trainer

console = Console(stderr=True, highlight=False)


@rank_zero_only
def say(message: str) -> None:
    """Tell the person at the terminal, once for all processes."""
    console.print(message, markup=False, soft_wrap=True)


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

    @property
    def track(self) -> Track:
        """Progress bars, if wanted."""
        return bar if self.config.progress and rank_zero_only.rank == 0 else silent


def prepare(config: TrainConfig) -> Setup:
    """Find the data and settle every open setting.

    Raises:
        InputError: data, flags or run folder that cannot be used.
    """
    given_path = config.data_path or configured_data_path(config.anatomy)
    track = bar if config.progress and rank_zero_only.rank == 0 else silent
    if given_path is None:
        say(
            "No --data_path and no fastmri_dirs.yaml: using the built-in synthetic data (phantoms, not "
            "patients) and settings fit for a laptop."
        )
        data_path = demo_folder(config.challenge, track)
        network = LAPTOP_NETWORKS.get(config.model, {})
        config = config.with_recipe({**LAPTOP_RECIPE, **network, "baselines": BASELINES, "num_workers": 0})
    else:
        data_path = given_path
        network = PAPER_NETWORK if config.model == "img2img_mixer" else {}
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
    return Setup(config, options, train, val, run, content, builtin_data=given_path is None)


def train(config: TrainConfig) -> dict[str, Any]:
    """Train (or resume), score and draw; what a job on a cluster calls too.

    Returns:
        The content of the run's metrics.json.

    Raises:
        InputError: something given cannot be used.
    """
    return run_prepared(prepare(config))


def run_prepared(setup: Setup) -> dict[str, Any]:
    """`train`, after the checks."""
    if rank_zero_only.rank != 0:
        fit(setup)
        return {}
    with setup.run.locked():
        setup.run.claim(setup.content)
        metrics = setup.run.metrics()
        if metrics is None:
            seconds, parameters = fit(setup)
            metrics = score(setup) | {"fit_seconds": seconds, "parameters": parameters}
            if setup.builtin_data:
                metrics["submission"] = str(export_test_split(setup).name)
            write_json(setup.run.metrics_file, metrics)
        else:
            say(f"{setup.run.path} is finished; its results:")
    return metrics


def fit(setup: Setup) -> tuple[float, int]:
    """Train to the last epoch, from the last checkpoint if there is one; (seconds, parameters)."""
    config, sampling = setup.config, setup.config.sampling()
    pl.seed_everything(config.seed, verbose=False)
    module = build_module(
        config.model, setup.options, None if config.model.startswith("fastmri_") else config.lr,
        config.lr_interval or "epoch",
    )
    if config.compile:
        compile_networks(module)
    datasets = [
        SliceDataset(
            volumes,
            config.challenge,
            build_transform(config.model, config.challenge, sampling.mask_func(), use_seed),
            config.seed,
            slices,
        )
        for volumes, use_seed, slices in (
            (
                setup.train,
                False,
                sample_slices(setup.train, config.sample_rate, config.volume_sample_rate, config.seed),
            ),
            (setup.val, True, None),
        )
    ]
    data = SliceDataModule(
        *datasets,
        batch_size=config.batch_size or 1,
        num_workers=config.num_workers or 0,
        seed=config.seed,
    )
    options = TrainerOptions(
        max_epochs=config.max_epochs or 1,
        precision=config.precision,
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=config.strategy,
        accumulate_grad_batches=config.accumulate_grad_batches,
        gradient_clip_val=config.gradient_clip_val or 0.0,
        gradient_clip_norm_type=config.gradient_clip_norm_type or 2.0,
        checkpoint_every_n_steps=config.checkpoint_every_n_steps,
        check_val_every_n_epoch=config.check_val_every_n_epoch,
        seed=config.seed,
        monitor="val_metrics/ssim",
        monitor_mode="max",
        progress=config.progress,
    )
    trainer = make_trainer(setup.run, options, [])
    resume = setup.run.last_checkpoint if setup.run.last_checkpoint.is_file() else None
    parameters = count_parameters(module)
    say(
        f"{config.model}: {parameters:,} parameters; {len(datasets[0])} training slices of "
        f"{len(setup.train)} volumes, {len(datasets[1])} validation slices of {len(setup.val)}; "
        f"run folder {setup.run.path}" + ("; resuming" if resume else "")
    )
    start = time.perf_counter()
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    return time.perf_counter() - start, parameters


def score(setup: Setup) -> dict[str, Any]:
    """Reconstruct the validation volumes with the best checkpoint and each baseline; score and draw them."""
    config, sampling, run = setup.config, setup.config.sampling(), setup.run
    reconstructor = load_reconstructor(run.best_checkpoint)
    rows: dict[str, dict[str, dict[str, float]]] = {}
    weights: dict[str, float] = {}
    for method in config.baselines or ():
        weight = None
        if method != "zero_filled":
            weight, _ = classical.choose_weight(
                setup.train, config.challenge, method, sampling.mask_of, track=setup.track
            )
            weights[method] = weight
        reconstructions = classical.reconstruct_volumes(
            setup.val, config.challenge, method, sampling.mask_of, weight, track=setup.track
        )
        rows[method] = keep_and_score(setup, method, reconstructions.items())
    rows[config.model] = keep_and_score(
        setup,
        config.model,
        reconstruct_volumes(
            reconstructor, setup.val, device=pick_device(config.accelerator), track=setup.track
        ),
    )
    draw(setup)
    return {
        "task": "mri",
        "model": config.model,
        "scored_on": "validation volumes; the checkpoint was chosen on them too",
        "baseline_weights": weights,
        "volumes": rows,
        "mean": {method: summarise(scores.values()) for method, scores in rows.items()},
    }


def keep_and_score(setup: Setup, method: str, reconstructions: Any) -> dict[str, dict[str, float]]:
    """Write each volume into the run folder and score it against its target."""
    known = {info.name: info for info in setup.val}
    scores = {}
    for name, reconstruction in reconstructions:
        write_reconstruction(setup.run.reconstructions / "val" / method / name, reconstruction)
        scores[name] = score_volume(read_target(known[name], setup.config.challenge), reconstruction)
    return scores


def draw(setup: Setup, limit: int = 16) -> None:
    """A panel of the middle slice of each validation volume (at most `limit`)."""
    folder = setup.run.reconstructions / "val"
    methods = [m for m in ("zero_filled",) if (folder / m).is_dir()] + [setup.config.model]
    for info in setup.val[:limit]:
        middle = info.num_slices // 2
        target = read_target(info, setup.config.challenge)[middle]
        images = {m: read_reconstruction(folder / m / info.name)[middle] for m in methods}
        reconstruction_panel(
            setup.run.figures / f"{info.path.stem}.png", images, target, title=f"{info.name}, slice {middle}"
        )


def export_test_split(setup: Setup) -> Path:
    """Reconstruct the built-in test split and write its validated submission."""
    config, run = setup.config, setup.run
    assert config.data_path is not None
    infos = list_volumes(split_folder(config.data_path, config.challenge, "test"), config.challenge)
    reconstructor = load_reconstructor(run.best_checkpoint)
    folder = run.reconstructions / "test"
    device = pick_device(config.accelerator)
    for name, volume in reconstruct_volumes(reconstructor, infos, device=device, track=setup.track):
        write_reconstruction(folder / name, volume)
    path = run.path / "submission.zip"
    write_submission(folder, infos, path, config.challenge, overwrite=True)
    validate_submission(path, infos, config.challenge)
    return path


def test(config: TrainConfig) -> Path:
    """Reconstruct a test split with a trained run; the folder of the reconstructions.

    Raises:
        InputError: no --run_dir, no trained run in it, or data that cannot be used.
    """
    if config.run_dir is None:
        raise InputError("--run_dir: --mode test needs the folder of a trained run")
    reconstructor = load_reconstructor(config.run_dir)
    if reconstructor.challenge != config.challenge:
        raise InputError(
            f"--challenge: given {config.challenge}, but {config.run_dir} was trained for "
            f"{reconstructor.challenge}"
        )
    track = bar if config.progress else silent
    if config.test_path is not None:
        folder = config.test_path
        if not folder.is_dir():
            raise InputError(f"--test_path: {folder} is not a folder")
    else:
        data_path = config.data_path or configured_data_path(config.anatomy) or demo_folder(config.challenge)
        folder = split_folder(data_path, config.challenge, config.test_split)
    infos = list_volumes(folder, config.challenge, track=track)
    out = RunFolder(config.run_dir).reconstructions / config.test_split
    for name, volume in reconstruct_volumes(
        reconstructor,
        infos,
        device=pick_device(config.accelerator),
        num_workers=config.num_workers or 0,
        track=track,
    ):
        write_reconstruction(out / name, volume)
    return out


def report(run: RunFolder, metrics: Mapping[str, Any]) -> None:
    """Print the table and say where things are."""
    out = Console()
    out.print(scores_table(metrics["volumes"]))
    out.print(f"scored on: {metrics['scored_on']}", highlight=False)
    out.print(f"panels: {run.figures}", highlight=False, soft_wrap=True)
    if "submission" in metrics:
        out.print(
            f"submission, validated: {run.path / metrics['submission']}", highlight=False, soft_wrap=True
        )


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    config = parse_config(TrainConfig, words, description=TrainConfig.__doc__)
    if config.mode == "test":
        print(test(config))
        return
    setup = prepare(config)
    metrics = run_prepared(setup)
    if rank_zero_only.rank == 0:
        report(setup.run, metrics)


if __name__ == "__main__":
    run_script(main)
