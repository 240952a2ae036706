"""Train a reconstruction network on fastMRI data, score it beside other methods, draw, export.

python fastmri_plugin/train.py --challenge singlecoil --accel 4 [--data_path DIR]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from fastmri_plugin.flags import SplitFlags
from fastmri_plugin.task import TASK, TrainConfig
from img2img_recon.support.cli import parse_config, script
from img2img_recon.support.errors import InputError
from img2img_recon.training.run_folder import RunFolder


def test(config: TrainConfig) -> Path:
    """Reconstruct a test split with a trained run; the new folder with a folder per method.

    Raises:
        InputError: no `--run`, no trained run in it, or data that cannot be used.
    """
    from fastmri_plugin.splits import default_out, open_split, reconstruct_into
    from img2img_recon.training.runner import report

    if config.run is None:
        raise InputError("--run: --mode test needs the folder of a trained run")
    if not config.run.is_dir():
        raise InputError(f"--run: {config.run} is not a folder")
    trained = RunFolder(config.run).config().get("model")
    if config.model not in (trained, TrainConfig.__dataclass_fields__["model"].default):
        raise InputError(
            f"--model: given {config.model}, but {config.run} was trained with {trained}"
        )
    given: dict[str, Any] = {
        item.name: getattr(config, item.name, None) for item in fields(SplitFlags)
    }
    given |= {"run": (config.run,), "method": config.baselines}
    given |= {"batch_size": config.batch_size or 1, "num_workers": config.num_workers or 0}
    split = open_split(SplitFlags(**given), report)
    return reconstruct_into(config.out or default_out(config.run, split.folder), split)


def show(run: RunFolder, metrics: Mapping[str, Any]) -> None:
    """Print the table and say where things are."""
    from rich.console import Console

    from fastmri_plugin.results import SUBMISSION
    from fastmri_plugin.score_tables import scores_table

    out = Console(markup=False)
    out.print(scores_table(metrics["volumes"]))
    out.print(f"scored on: {metrics['scored_on']}", highlight=False)
    out.print(f"panels: {run.figures}", highlight=False, soft_wrap=True)
    if (run.path / SUBMISSION).exists():
        out.print(
            f"submission, validated: {run.path / SUBMISSION}", highlight=False, soft_wrap=True
        )


def defaults() -> dict[str, str]:
    """For `--help`: what the recipes settle."""
    from img2img_recon.training.default_words import default_words

    own = {"challenge": "singlecoil", "data_path": "DIR"}
    builtin = {"challenge": "singlecoil"}
    return default_words([("fastMRI's data", TASK, own), ("built-in data", TASK, builtin)])


@script
def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    config = parse_config(
        TrainConfig,
        words,
        models=TASK.models(),
        defaults=defaults,
        settled=lambda given: TASK.values(TASK.resolve(given)),
    )
    if config.mode == "test":
        print(test(config))
        return
    from img2img_recon.training.runner import is_first_process, report, run_prepared

    prepared = TASK.prepare(TASK.resolve(config), report)
    metrics = run_prepared(TASK, prepared)
    if is_first_process():
        show(prepared.run, metrics)


if __name__ == "__main__":
    main()
