"""Train a denoiser; with no --data_path, on the photographs that come with scikit-image.

python denoise_tasks/train.py --task gaussian --sigma 30 [--data_path DIR]
python denoise_tasks/train.py --task sidd --data_path SIDD_Small_sRGB_Only
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from denoise_tasks.config import TrainConfig
from denoise_tasks.experiment import Setup, build, describe, prepare, score
from img2img_recon.figures import label_of
from img2img_recon.support.cli import parse_config, run_script
from img2img_recon.training.runner import execute, is_first_process, say


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
    return execute(
        setup.run,
        setup.content,
        build=lambda: build(setup),
        describe=lambda parts: describe(setup, parts),
        score=lambda: score(setup),
        tell=setup.say,
    )


def report(setup: Setup, metrics: Mapping[str, Any]) -> None:
    """Print the means and say where things are."""
    count = len(metrics["images"]["noisy"])
    noise = f"sigma {metrics['sigma']:g}" if metrics["sigma"] else "real noise"
    table = Table(title=f"{count} validation images, {noise}, protocol {metrics['protocol']}")
    table.add_column("method")
    table.add_column("PSNR (dB)", justify="right")
    table.add_column("SSIM", justify="right")
    for method, scores in metrics["mean"].items():
        table.add_row(label_of(method), f"{scores['psnr']:.2f}", f"{scores['ssim']:.4f}")
    out = Console()
    out.print(table)
    out.print(f"scored on: {metrics['scored_on']}", highlight=False)
    out.print(f"panels: {setup.run.figures}", highlight=False, soft_wrap=True)


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    config = parse_config(TrainConfig, words, description=TrainConfig.__doc__)
    setup = prepare(config, say)
    metrics = run_prepared(setup)
    if is_first_process():
        report(setup, metrics)


if __name__ == "__main__":
    run_script(main)
