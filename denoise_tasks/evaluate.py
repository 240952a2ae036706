"""Score trained denoisers and classical methods on the same noise.

python denoise_tasks/evaluate.py --run RUN [--run RUN ...] [--method tv ...] --data_path FOLDER --sigma 15 25 30 50
python denoise_tasks/evaluate.py --run RUN --method bm3d --data_path FOLDER_OF_PAIRS
python denoise_tasks/evaluate.py --run RUN --sidd_validation NOISY.mat GT.mat
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from denoise_tasks.options import Protocol, check_unit
from img2img_recon.perceptual_metrics import Name
from img2img_recon.support.cli import flag, parse_config, script
from img2img_recon.support.errors import InputError
from img2img_recon.support.files import writable_folder, write_json, write_text
from img2img_recon.support.progress import bar, silent
from img2img_recon.support.types import GreyLevels, PositiveInt
from img2img_recon.training.options import Accelerator

if TYPE_CHECKING:
    from denoise_tasks.methods import Denoiser
    from denoise_tasks.scoring import Result
    from denoise_tasks.trained import TrainedDenoiser

OUTPUTS = ("results.json", "results.csv", "results.md")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Denoise images with any number of runs and methods, score and draw them."""

    run: tuple[Path, ...] = flag(
        (), help="run folder or checkpoint; may be given several times", basic=True
    )
    method: tuple[str, ...] = flag(
        (),
        help="classical methods: bm3d (slow), bm3d_channelwise (the paper's weaker call), tv",
        basic=True,
    )
    method_sigma: Literal["given", "oracle", "estimated"] = flag(
        "given", help="what methods are told of the noise; of real noise given is the oracle"
    )
    slow_images: PositiveInt | None = flag(
        None, help="slow methods (BM3D) only on the first so many images"
    )
    data_path: Path | None = flag(
        None, help="clean images (with --sigma), or SIDD or other pairs", group="data", basic=True
    )
    sidd_validation: tuple[Path, Path] | None = flag(
        None, help="ValidationNoisyBlocksSrgb.mat ValidationGtBlocksSrgb.mat", group="data"
    )
    split: Literal["all", "val", "test"] = flag(
        "all",
        help="val or test: what the runs left out of their training",
        group="data",
        basic=True,
    )
    sigma: tuple[GreyLevels, ...] = flag(
        (), help="noise levels to add, of 255 grey levels", group="data", basic=True
    )
    protocol: Protocol | None = flag(
        None, help="paper or standard (default); see denoise_tasks/noise.py", group="data"
    )
    limit: PositiveInt | None = flag(None, help="at most so many images", group="data", basic=True)
    self_ensemble: bool = flag(
        False, help="mean over the eight flips and quarter turns (networks)", basic=True
    )
    metrics: tuple[Name, ...] = flag(
        ("psnr", "ssim"), help="columns; PSNR and SSIM are always there", basic=True
    )
    out: Path = flag(Path("evaluation"), help="folder for tables and panels", basic=True)
    panels: int = flag(4, help="panels per noise level")
    num_workers: PositiveInt | None = flag(
        None, help="processes for slow methods; default: one per core", group="cluster"
    )
    accelerator: Accelerator = flag("auto", help="where networks run", group="cluster", basic=True)
    overwrite: bool = flag(False, help="replace earlier results in --out", basic=True)
    progress: bool = flag(True, help="progress bars", basic=True)

    def __post_init__(self) -> None:
        if (self.data_path is None) == (self.sidd_validation is None):
            raise InputError("give either --data_path or --sidd_validation")
        if not self.run and not self.method:
            raise InputError("--run: nothing to evaluate; give a run folder, or --method, as tv")
        for level in self.sigma:
            check_unit(level)
        if not self.sigma and self.protocol is not None:
            raise InputError("--protocol: only with --sigma; what is scored has real noise")
        if self.sidd_validation is not None and self.sigma:
            raise InputError("--sigma: only with --data_path; --sidd_validation is real noise")
        if self.sidd_validation is not None and self.split != "all":
            raise InputError(f"--split: given {self.split}, the validation blocks have no split")


def make_methods(config: EvaluateConfig) -> tuple[list[TrainedDenoiser], list[Denoiser]]:
    """The runs, and all methods with them first.

    Raises:
        InputError: a name twice, a method or run that there is not, or networks of different channels.
    """
    from denoise_tasks.methods import make_method
    from denoise_tasks.trained import load_run

    options: dict[str, Any] = {
        "accelerator": config.accelerator,
        "self_ensemble": config.self_ensemble,
    }
    runs = [load_run(source, **options) for source in config.run]
    methods = [*runs, *(make_method(word, **options) for word in config.method)]
    names = [method.name for method in methods]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"--run, --method: {name} is given twice; rename one of the folders")
    if len({method.in_chans for method in methods} - {None}) > 1:
        channels = ", ".join(f"{method.name}: {method.in_chans}" for method in methods)
        raise InputError(f"--run: runs of different numbers of channels ({channels})")
    return runs, methods


def notes(config: EvaluateConfig, run: TrainedDenoiser) -> list[str]:
    """What to bear in mind about the scores of a run."""
    found = []
    trained = run.trained_levels
    other = [s for s in config.sigma if trained and not trained[0] <= s <= trained[1]]
    if other:
        levels = ", ".join(map("{:g}".format, other))
        found.append(f"{run.name} was trained for sigma {run.trained_words}, not {levels}")
    protocol, own = config.protocol or "standard", run.config.get("protocol")
    if run.task == "gaussian" and config.sigma and own != protocol:
        found.append(
            f"{run.name} was trained under the protocol {own}, and is scored under {protocol}"
        )
    folder = config.data_path
    if config.split == "all" and folder and str(folder.resolve()) == run.config.get("data_path"):
        found.append(f"{run.name} was trained on images of {folder}; --split leaves those out")
    return [f"note: {note}" for note in found]


def evaluate(config: EvaluateConfig) -> list[Result]:
    """Score everything and write tables and panels.

    Raises:
        InputError: something given cannot be used; nothing is written then.
    """
    from denoise_tasks.cases import find_cases
    from denoise_tasks.figures import panels_in
    from denoise_tasks.scoring import score_cases, to_csv, to_json, to_markdown
    from img2img_recon.figures import label_of
    from img2img_recon.perceptual_metrics import make_scores

    taken = [name for name in OUTPUTS if (config.out / name).exists()]
    if taken and not config.overwrite:
        raise InputError(
            f"--out: {config.out / taken[0]} exists; give --overwrite or another folder"
        )
    metrics = make_scores(config.metrics)
    runs, methods = make_methods(config)
    levels = find_cases(config, runs)
    writable_folder(config.out, "--out")
    for run in runs:
        for note in notes(config, run):
            print(note, file=sys.stderr)
    details = {
        "methods": {method.name: method.details() for method in methods},
        "method_sigma": config.method_sigma,
        "self_ensemble": config.self_ensemble,
        "split": config.split,
    }
    results: list[Result] = []
    for title, cases in levels:
        result = score_cases(
            title,
            cases,
            methods,
            sigma_source=config.method_sigma,
            slow_images=config.slow_images,
            workers=config.num_workers,
            draw=panels_in(config.out / "panels", f"{title} ", " "),
            panels=config.panels,
            metrics=metrics,
            track=bar if config.progress else silent,
        )
        results.append(result)
        # After every level, so that an interruption does not cost the levels before it.
        write_json(config.out / OUTPUTS[0], to_json(results, details))
        write_text(config.out / OUTPUTS[1], to_csv(results))
        write_text(config.out / OUTPUTS[2], to_markdown(results, label_of))
    return results


def print_scores(results: Sequence[Result], out: Path) -> None:
    """Print the means."""
    from rich.console import Console
    from rich.table import Column, Table

    from denoise_tasks.scoring import PROTOCOL_NOTES, SSIM_SETTINGS, figures
    from img2img_recon.figures import label_of
    from img2img_recon.perceptual_metrics import LABELS

    console = Console(markup=False)
    for result in results:
        headings = ["images", *map(LABELS.__getitem__, result.columns())]
        columns = [Column(heading, justify="right") for heading in headings]
        caption = PROTOCOL_NOTES[result.protocol]
        table = Table("method", *columns, title=result.title, caption=caption)
        for method, count, scores in result.means():
            table.add_row(label_of(method), str(count), *figures(scores))
        console.print(table)
    console.print(SSIM_SETTINGS, highlight=False)
    console.print(
        f"per image: {out / 'results.csv'}; panels: {out / 'panels'}",
        highlight=False,
        soft_wrap=True,
    )


@script
def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    config = parse_config(EvaluateConfig, words)
    print_scores(evaluate(config), config.out)


if __name__ == "__main__":
    main()
