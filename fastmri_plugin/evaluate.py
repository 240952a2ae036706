"""Score reconstructions with fastMRI's figures, a row per acquisition and per acceleration.

    python fastmri_plugin/evaluate.py --target_path DATA --predictions_path DIR --challenge singlecoil
    python fastmri_plugin/evaluate.py --method tv --run A --run B --data_path DATA --challenge singlecoil

The first way scores files; the second reconstructs a split with several runs and methods and scores them
side by side. Prints MSE, NMSE, PSNR and SSIM as `fastmri.evaluate` computes them, mean over volumes and
plus or minus two standard deviations.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmri_plugin.flags import SplitFlags, SplitName
from img2img_recon.perceptual_metrics import Name
from img2img_recon.support.cli import flag, parse_config, script
from img2img_recon.support.errors import InputError, named
from img2img_recon.support.types import NonNegativeInt, PositiveInt

if TYPE_CHECKING:
    from fastmri_plugin.scoring import ScoredVolume
    from img2img_recon.perceptual_metrics import Score


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(SplitFlags):
    """Score reconstructions with fastMRI's figures, a row per acquisition and per acceleration.

    Give --target_path and --predictions_path to score files, or --run and --method to reconstruct a split
    of --data_path and score it.
    """

    target_path: Path | None = flag(
        None,
        help="folder of target files (*.h5); or a data folder whose targets/{challenge}_test or "
        "{challenge}_val holds files named as the predictions are",
        group="data",
        basic=True,
    )
    predictions_path: Path | None = flag(
        None,
        help="folder of reconstructions, files named as the targets",
        group="data",
        basic=True,
    )
    test_split: SplitName = flag("val", help="split of --data_path", group="data", basic=True)
    acquisition: str | None = flag(
        None, help="score only volumes of this acquisition", group="data"
    )
    acceleration: PositiveInt | None = flag(
        None, help="score only volumes whose target file stores this acceleration", group="data"
    )
    metrics: tuple[Name, ...] = flag(
        ("psnr", "ssim"),
        help="columns beside MSE and NMSE; PSNR and SSIM are always there",
        basic=True,
    )
    json: Path | None = flag(
        None, help="file to write with the scores of groups and volumes", basic=True
    )
    num_workers: NonNegativeInt = flag(2, help="volumes scored at the same time; loader processes")

    def __post_init__(self) -> None:
        super().__post_init__()
        files = {"target_path": self.target_path, "predictions_path": self.predictions_path}
        given = [name for name, path in files.items() if path is not None]
        if self.run or self.method:
            if given:
                raise InputError(f"--{given[0]}: give it without --run and --method")
        elif len(given) < 2:
            name = next(name for name in files if name not in given)
            raise InputError(f"--{name}: needed, unless --run or --method is given")
        if self.json is not None and self.json.is_dir():
            raise InputError(f"--json: {self.json} is a folder, expected a file's name")


def score_files(
    config: EvaluateConfig, metrics: Mapping[str, Score]
) -> dict[str, list[ScoredVolume]]:
    """The scores of a folder of reconstructions, under the folder's name."""
    from fastmri_plugin.scoring import find_targets, score_folders
    from img2img_recon.support.progress import bar, silent

    assert config.target_path is not None
    assert config.predictions_path is not None
    volumes = score_folders(
        find_targets(config.target_path, config.predictions_path, config.challenge),
        config.predictions_path,
        config.challenge,
        acquisition=config.acquisition,
        acceleration=config.acceleration,
        num_workers=config.num_workers,
        metrics=metrics,
        track=bar if config.progress else silent,
    )
    return {config.predictions_path.name: volumes}


def score_methods(
    config: EvaluateConfig, metrics: Mapping[str, Score]
) -> dict[str, list[ScoredVolume]]:
    """The scores of runs and methods on a split, by method."""
    from fastmri_plugin.scoring import TargetFile, score_reconstructions, select_targets
    from fastmri_plugin.splits import open_split
    from img2img_recon.training.runner import report

    split = open_split(config, report)
    files = [TargetFile.of(info) for info in split.infos]
    targets = select_targets(files, config.acquisition, config.acceleration)
    infos = [info for info in split.infos if info.name in targets]
    scored = {}
    for name, method in split.methods.items():
        made = method.reconstruct(infos, split.masks, split.track)
        scored[name] = score_reconstructions(made, targets, Path(name), config.num_workers, metrics)
    return scored


def content(scored: Mapping[str, Sequence[ScoredVolume]], by_method: bool) -> dict[str, Any]:
    """What the JSON file holds: groups and volumes, of several methods under `methods`."""
    from fastmri_plugin.score_tables import group_scores, scores_json

    found = {name: scores_json(volumes, group_scores(volumes)) for name, volumes in scored.items()}
    return {"methods": found} if by_method else next(iter(found.values()))


@script
def main(words: Sequence[str] | None = None) -> None:
    """Score, print the table, write the JSON file."""
    config = parse_config(EvaluateConfig, words)
    from rich.console import Console

    from fastmri_plugin.score_tables import group_scores, groups_table
    from img2img_recon.perceptual_metrics import make_scores
    from img2img_recon.support.files import write_json

    by_method = config.predictions_path is None
    metrics = make_scores(config.metrics)
    scored = (score_methods if by_method else score_files)(config, metrics)
    rows = {name: group_scores(volumes) for name, volumes in scored.items()}
    # Into a file or a pipe a table of figures must not be folded at a terminal's width.
    console = Console(markup=False, width=None if sys.stdout.isatty() else 140)
    console.print(groups_table(rows, by_method))
    if config.json is not None:
        with named("--json"):
            write_json(config.json, content(scored, by_method))


if __name__ == "__main__":
    main()
