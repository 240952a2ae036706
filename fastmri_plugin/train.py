"""Train a reconstruction network on fastMRI data, score it beside the classical methods, draw, export.

python fastmri_plugin/train.py --challenge singlecoil --accel 4 [--data_path DIR]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fastmri_plugin import classical
from fastmri_plugin.config import TrainConfig, configured_data_path
from fastmri_plugin.demo_data import demo_folder
from fastmri_plugin.experiment import Setup, fit, is_first_process, prepare, say, track_of
from fastmri_plugin.inference import load_reconstructor, pick_device, reconstruct_volumes
from fastmri_plugin.results import export_test_split, score
from fastmri_plugin.scoring import scores_table
from fastmri_plugin.volumes import (
    list_volumes,
    split_folder,
    write_reconstruction,
    write_reconstructions,
)
from img2img_recon.cli import parse_config, run_script
from img2img_recon.errors import InputError
from img2img_recon.files import write_json
from img2img_recon.runs import RunFolder


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
    if not is_first_process():
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


def test(config: TrainConfig) -> Path:
    """Reconstruct a test split with a trained run; the folder with a folder per method.

    The baselines, if any are asked for, take the weights that the run chose on its training volumes.

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
    track = track_of(config)
    if config.test_path is not None:
        folder = config.test_path
        if not folder.is_dir():
            raise InputError(f"--test_path: {folder} is not a folder")
    else:
        data_path = (
            config.data_path
            or configured_data_path(config.anatomy)
            or demo_folder(config.challenge)
        )
        folder = split_folder(data_path, config.challenge, config.test_split)
    infos = list_volumes(folder, config.challenge, track=track)
    run = RunFolder(config.run_dir)
    out = run.reconstructions / config.test_split
    for name, volume in reconstruct_volumes(
        reconstructor,
        infos,
        device=pick_device(config.accelerator),
        num_workers=config.num_workers or 0,
        track=track,
    ):
        write_reconstruction(out / reconstructor.model / name, volume)
    weights = (run.metrics() or {}).get("baseline_weights", {})
    for method in config.baselines or ():
        if method != "zero_filled" and method not in weights:
            raise InputError(
                f"--baselines: the weight of {method} was not chosen when {config.run_dir} was trained; "
                f"allowed: {', '.join(['zero_filled', *weights])}"
            )
        volumes = classical.reconstruct_volumes(
            infos, config.challenge, method, reconstructor.mask_of, weights.get(method), track=track
        )
        write_reconstructions(out / method, volumes)
    return out


def report(run: RunFolder, metrics: Mapping[str, Any]) -> None:
    """Print the table and say where things are."""
    out = Console()
    out.print(scores_table(metrics["volumes"]))
    out.print(f"scored on: {metrics['scored_on']}", highlight=False)
    out.print(f"panels: {run.figures}", highlight=False, soft_wrap=True)
    if "submission" in metrics:
        out.print(
            f"submission, validated: {run.path / metrics['submission']}",
            highlight=False,
            soft_wrap=True,
        )


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    config = parse_config(TrainConfig, words, description=TrainConfig.__doc__)
    if config.mode == "test":
        print(test(config))
        return
    setup = prepare(config)
    metrics = run_prepared(setup)
    if is_first_process():
        report(setup.run, metrics)


if __name__ == "__main__":
    run_script(main)
