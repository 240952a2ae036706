"""What a finished training leaves behind: scored reconstructions, pictures, a submission."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmri_plugin.listing import list_volumes, split_folder
from fastmri_plugin.methods import Reconstructor, make_method
from fastmri_plugin.score_tables import summarise
from fastmri_plugin.scoring import TargetFile, score_reconstructions
from fastmri_plugin.submission import check_submission, write_submission
from fastmri_plugin.trained import TrainedNetwork
from fastmri_plugin.volumes import (
    VolumeInfo,
    read_reconstruction,
    read_target,
    write_reconstruction,
)
from img2img_recon.figures import panel_path, reconstruction_panel

if TYPE_CHECKING:
    from fastmri_plugin.task import MriRun

SUBMISSION = "submission.zip"
MAX_PANELS = 16


def score(prepared: MriRun) -> dict[str, Any]:
    """Reconstruct the validation volumes with each baseline and the best checkpoint; score and draw them."""
    config, run, val = prepared.config, prepared.run, prepared.val
    masks, folder = config.masks(), run.reconstructions / "val"
    targets = {info.name: TargetFile.of(info) for info in val}
    methods: list[Reconstructor] = [make_method(name) for name in config.baselines or ()]
    methods.append(TrainedNetwork(run.path, config.accelerator))
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for method in methods:
        method.choose(prepared.train, masks, prepared.track)
        made = method.reconstruct(val, masks, prepared.track)
        kept = _kept(made, folder / method.name)
        scored = score_reconstructions(kept, targets, folder / method.name)
        rows[method.name] = {volume.name: dict(volume.scores) for volume in scored}
    draw(val, folder, [method.name for method in methods], run.figures)
    return {
        "task": "mri",
        "model": config.model,
        "scored_on": "validation volumes; the checkpoint was chosen on them too",
        "method_settings": {m.name: m.settings for m in methods if m.chooses},
        "volumes": rows,
        "mean": {method: summarise(scores.values()) for method, scores in rows.items()},
    }


def _kept(
    reconstructions: Iterable[tuple[str, np.ndarray]], folder: Path
) -> Iterator[tuple[str, np.ndarray]]:
    """The same, each written into the folder on its way."""
    for name, reconstruction in reconstructions:
        write_reconstruction(folder / name, reconstruction)
        yield name, reconstruction


def draw(infos: Sequence[VolumeInfo], folder: Path, methods: Sequence[str], figures: Path) -> None:
    """A panel of the middle slice of each volume (at most `MAX_PANELS`), the methods side by side."""
    for info in infos[:MAX_PANELS]:
        middle = info.num_slices // 2
        reconstruction_panel(
            panel_path(figures, info.path.stem),
            {name: read_reconstruction(folder / name / info.name)[middle] for name in methods},
            read_target(info)[middle],
            title=f"{info.name}, slice {middle}",
        )


def export_test_split(prepared: MriRun) -> Path:
    """Reconstruct the built-in test split and write its validated submission."""
    config, run = prepared.config, prepared.run
    infos = list_volumes(
        split_folder(prepared.data_path, config.challenge, "test"), config.challenge
    )
    network = TrainedNetwork(run.path, config.accelerator)
    made = network.reconstruct(infos, config.masks(), prepared.track)
    path = run.path / SUBMISSION
    write_submission(_kept(made, run.reconstructions / "test"), infos, path, overwrite=True)
    check_submission(path, infos).raise_if_invalid()
    return path
