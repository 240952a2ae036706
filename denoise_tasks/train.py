"""Train a denoiser; with no --data_path, on the photographs that come with scikit-image.

python denoise_tasks/train.py --task gaussian --sigma 30 [--data_path DIR]
python denoise_tasks/train.py --task pairs --data_path SIDD_Small_sRGB_Only
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from denoise_tasks.options import TrainConfig
from denoise_tasks.task import TASKS
from img2img_recon.support.cli import parse_config, script
from img2img_recon.training.default_words import default_words


def print_scores(metrics: Mapping[str, Any], figures: Path) -> None:
    """Print the means and say where things are."""
    from rich.console import Console
    from rich.table import Column, Table

    from img2img_recon.figures import label_of

    count = len(metrics["images"]["noisy"])
    noise = f"sigma {metrics['sigma']:g}" if metrics["sigma"] else "real noise"
    title = f"{count} validation images, {noise}, protocol {metrics['protocol']}"
    scores = [Column(heading, justify="right") for heading in ("PSNR (dB)", "SSIM")]
    table = Table("method", *scores, title=title)
    for method, mean in metrics["mean"].items():
        table.add_row(label_of(method), f"{mean['psnr']:.2f}", f"{mean['ssim']:.4f}")
    out = Console(markup=False)
    out.print(table)
    out.print(f"scored on: {metrics['scored_on']}", highlight=False)
    out.print(f"panels: {figures}", highlight=False, soft_wrap=True)


def defaults() -> dict[str, str]:
    """What flags come to that are not given, in words."""
    folder = {"data_path": "FOLDER"}
    return default_words(
        [
            ("gaussian", TASKS["gaussian"], {"task": "gaussian", **folder}),
            ("built-in data", TASKS["gaussian"], {"task": "gaussian"}),
            ("pairs", TASKS["pairs"], {"task": "pairs", **folder}),
        ]
    )


def settled(given: TrainConfig) -> Mapping[str, Any]:
    """All flags, for `--print_config`."""
    task = TASKS[given.task]
    return task.values(task.resolve(given))


@script
def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    models = next(iter(TASKS.values())).models()
    given = parse_config(TrainConfig, words, models=models, defaults=defaults, settled=settled)
    from img2img_recon.training.runner import is_first_process, report, run_prepared

    task = TASKS[given.task]
    prepared = task.prepare(task.resolve(given), report)
    metrics = run_prepared(task, prepared)
    if is_first_process():
        print_scores(metrics, prepared.run.figures)


if __name__ == "__main__":
    main()
