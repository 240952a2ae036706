"""Score reconstructions with fastMRI's figures, a row per acquisition and per acceleration.

    python fastmri_plugin/evaluate.py --target-path DATA --predictions-path DIR --challenge
    singlecoil

Prints MSE, NMSE, PSNR and SSIM as `fastmri.evaluate` computes them, mean over volumes and plus or
minus two standard deviations.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastmri_plugin.scoring import (
    find_targets,
    group_scores,
    groups_table,
    score_folders,
    scores_json,
)
from fastmri_plugin.volumes import TARGET_KEYS, Challenge
from img2img_recon.support.cli import flag, parse_config, run_script
from img2img_recon.support.errors import InputError
from img2img_recon.support.files import write_json
from img2img_recon.support.progress import bar


@dataclass(frozen=True)
class EvaluateConfig:
    """Score reconstructions with fastMRI's figures, a row per acquisition and per acceleration."""

    target_path: Path = flag(
        help="folder of target files (*.h5); or a data folder whose targets/{challenge}_test or "
        "{challenge}_val holds files named as the predictions are"
    )
    predictions_path: Path = flag(help="folder of reconstructions, files named as the targets")
    challenge: Challenge = flag(help="which target: reconstruction_esc or reconstruction_rss")
    acquisition: str | None = flag(None, help="score only volumes of this acquisition")
    acceleration: int | None = flag(
        None, help="score only volumes whose target file stores this acceleration"
    )
    json: Path | None = flag(None, help="file to write with the scores of groups and volumes")
    num_workers: int = flag(2, help="volumes scored at the same time")

    def __post_init__(self) -> None:
        if self.challenge not in TARGET_KEYS:
            raise InputError(
                f"--challenge: given {self.challenge}, allowed: {', '.join(TARGET_KEYS)}"
            )
        if self.num_workers < 1:
            raise InputError(f"--num_workers: given {self.num_workers}, allowed: 1 or more")
        if self.json is not None and self.json.is_dir():
            raise InputError(f"--json: {self.json} is a folder, expected a file's name")


def main(words: Sequence[str] | None = None) -> None:
    """Score, print the table, write the JSON file."""
    from rich.console import Console

    config = parse_config(EvaluateConfig, words)
    targets = find_targets(config.target_path, config.predictions_path, config.challenge)
    volumes = score_folders(
        targets,
        config.predictions_path,
        config.challenge,
        acquisition=config.acquisition,
        acceleration=config.acceleration,
        num_workers=config.num_workers,
        track=bar,
    )
    rows = group_scores(volumes)
    # Into a file or a pipe a table of figures must not be folded at a terminal's width.
    console = Console() if sys.stdout.isatty() else Console(width=140)
    console.print(groups_table(rows))
    if config.json is not None:
        try:
            write_json(config.json, scores_json(volumes, rows))
        except OSError as error:
            raise InputError(
                f"--json: {config.json} cannot be written ({error.strerror})"
            ) from None


if __name__ == "__main__":
    run_script(main)
