"""Train a reconstruction network on fastMRI data, score it beside the classical methods, draw, export.

python fastmri_plugin/train.py --challenge singlecoil --accel 4 [--data_path DIR]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from fastmri_plugin import classical
from fastmri_plugin.config import TrainConfig
from fastmri_plugin.experiment import Setup, build, describe, find_data, prepare
from fastmri_plugin.inference import load_reconstructor, reconstruct_volumes
from fastmri_plugin.results import SUBMISSION, export_test_split, score
from fastmri_plugin.scoring import scores_table
from fastmri_plugin.volumes import (
    list_volumes,
    split_folder,
    write_reconstruction,
    write_reconstructions,
)
from img2img_recon.support.cli import parse_config, run_script
from img2img_recon.support.errors import InputError
from img2img_recon.support.files import make_folder_once
from img2img_recon.training.run_folder import RunFolder
from img2img_recon.training.runner import execute, is_first_process, say, track_of
from img2img_recon.training.trainer import pick_device


def train(config: TrainConfig) -> dict[str, Any]:
    """Train (or resume), score and draw; what a job on a cluster calls too.

    Returns:
        The content of the run's metrics.json; nothing in processes other than the first.

    Raises:
        InputError: something given cannot be used.
    """
    return run_prepared(prepare(config, say))


def run_prepared(setup: Setup) -> dict[str, Any]:
    """`train`, after the checks."""
    run = setup.run

    def finish() -> None:
        if setup.builtin_data and not (run.path / SUBMISSION).exists():
            export_test_split(setup)

    return execute(
        run,
        setup.content,
        build=lambda: build(setup),
        describe=lambda parts: describe(setup, parts),
        score=lambda: score(setup),
        finish=finish,
        tell=setup.say,
    )


def test(config: TrainConfig) -> Path:
    """Reconstruct a test split with a trained run; the new folder with a folder per method.

    Volumes that store a mask keep it. The others get the masks that the flags describe, by default
    the run's. The baselines, if any are asked for, take the weights that the run chose on its training
    volumes.

    Raises:
        InputError: no --run_dir, no trained run in it, or data that cannot be used.
    """
    if config.run_dir is None:
        raise InputError("--run_dir: --mode test needs the folder of a trained run")
    if not config.run_dir.is_dir():
        raise InputError(f"--run_dir: {config.run_dir} is not a folder")
    reconstructor = load_reconstructor(config.run_dir)
    for name, own in (("challenge", reconstructor.challenge), ("model", reconstructor.model)):
        given = getattr(config, name)
        if given not in (own, TrainConfig.__dataclass_fields__[name].default):
            raise InputError(
                f"--{name}: given {given}, but {config.run_dir} was trained with {own}"
            )
    if config.gives_sampling():
        reconstructor = replace(reconstructor, sampling=config.sampling())
    track, run = track_of(config.progress), RunFolder(config.run_dir)
    folder = config.test_path
    if folder is None:
        data_path, _ = find_data(config, say)
        folder = split_folder(data_path, config.challenge, config.test_split)
    elif not folder.is_dir():
        raise InputError(f"--test_path: {folder} is not a folder")
    infos = list_volumes(folder, config.challenge, track=track)
    weights = (run.metrics() or {}).get("baseline_weights", {})
    for method in config.baselines or ():
        if method != "zero_filled" and method not in weights:
            raise InputError(
                f"--baselines: the weight of {method} was not chosen when {config.run_dir} was "
                f"trained; allowed: {', '.join(['zero_filled', *weights])}"
            )
    source = folder.resolve()
    out = config.out_dir or run.path / "predictions" / f"{source.parent.name}-{source.name}"
    if out.exists():
        raise InputError(f"--out_dir: {out} exists and is not overwritten; give another")

    def fill(temporary: Path) -> None:
        for name, volume in reconstruct_volumes(
            reconstructor,
            infos,
            device=pick_device(config.accelerator),
            batch_size=config.batch_size or 1,
            num_workers=config.num_workers or 0,
            track=track,
        ):
            write_reconstruction(temporary / reconstructor.model / name, volume)
        for method in config.baselines or ():
            volumes = classical.reconstruct_volumes(
                infos,
                config.challenge,
                method,
                reconstructor.mask_of,
                weights.get(method),
                track=track,
            )
            write_reconstructions(temporary / method, volumes)

    return make_folder_once(out, fill)


def report(run: RunFolder, metrics: Mapping[str, Any]) -> None:
    """Print the table and say where things are."""
    out = Console()
    out.print(scores_table(metrics["volumes"]))
    out.print(f"scored on: {metrics['scored_on']}", highlight=False)
    out.print(f"panels: {run.figures}", highlight=False, soft_wrap=True)
    if (run.path / SUBMISSION).exists():
        out.print(
            f"submission, validated: {run.path / SUBMISSION}", highlight=False, soft_wrap=True
        )


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    config = parse_config(TrainConfig, words, description=TrainConfig.__doc__)
    if config.mode == "test":
        print(test(config))
        return
    setup = prepare(config, say)
    metrics = run_prepared(setup)
    if is_first_process():
        report(setup.run, metrics)


if __name__ == "__main__":
    run_script(main)
