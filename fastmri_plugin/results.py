"""What a finished training leaves behind: scored reconstructions, pictures, a submission."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fastmri_plugin import classical
from fastmri_plugin.experiment import Setup
from fastmri_plugin.inference import load_reconstructor, reconstruct_volumes
from fastmri_plugin.scoring import score_volume, summarise
from fastmri_plugin.submission import validate_submission, write_submission
from fastmri_plugin.volumes import (
    list_volumes,
    read_reconstruction,
    read_target,
    split_folder,
    write_reconstruction,
)
from img2img_recon.figures import reconstruction_panel
from img2img_recon.training.trainer import pick_device

SUBMISSION = "submission.zip"


def score(setup: Setup) -> dict[str, Any]:
    """Reconstruct the validation volumes with the best checkpoint and each baseline; score and draw them."""
    config, sampling, run = setup.config, setup.config.sampling(), setup.run
    reconstructor = load_reconstructor(run.path)
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


def keep_and_score(
    setup: Setup, method: str, reconstructions: Iterable[tuple[str, np.ndarray]]
) -> dict[str, dict[str, float]]:
    """Write each volume into the run folder and score it against its target."""
    known = {info.name: info for info in setup.val}
    scores = {}
    for name, reconstruction in reconstructions:
        write_reconstruction(setup.run.reconstructions / "val" / method / name, reconstruction)
        scores[name] = score_volume(
            read_target(known[name], setup.config.challenge), reconstruction
        )
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
            setup.run.figures / f"{info.path.stem}.png",
            images,
            target,
            title=f"{info.name}, slice {middle}",
        )


def export_test_split(setup: Setup) -> Path:
    """Reconstruct the built-in test split and write its validated submission."""
    config, run = setup.config, setup.run
    assert config.data_path is not None
    infos = list_volumes(split_folder(config.data_path, config.challenge, "test"), config.challenge)
    reconstructor = load_reconstructor(run.path)
    folder = run.reconstructions / "test"
    device = pick_device(config.accelerator)
    for name, volume in reconstruct_volumes(reconstructor, infos, device=device, track=setup.track):
        write_reconstruction(folder / name, volume)
    path = run.path / SUBMISSION
    write_submission(folder, infos, path, config.challenge, overwrite=True)
    validate_submission(path, infos, config.challenge)
    return path
