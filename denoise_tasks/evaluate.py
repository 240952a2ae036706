"""Score trained denoisers and classical methods on the same noise.

python denoise_tasks/evaluate.py --run RUN [--run RUN ...] [--method tv ...] --data_path FOLDER --sigma 15 25 30 50
python denoise_tasks/evaluate.py --run RUN --method bm3d --data_path FOLDER_OF_PAIRS
python denoise_tasks/evaluate.py --run RUN --sidd_validation NOISY.mat GT.mat
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from denoise_tasks.options import Protocol
from img2img_recon.perceptual_metrics import Name
from img2img_recon.support.cli import flag, parse_config, script
from img2img_recon.support.errors import InputError
from img2img_recon.support.files import writable_folder, write_json, write_text
from img2img_recon.support.progress import bar, silent
from img2img_recon.support.types import GreyLevels, PositiveInt
from img2img_recon.training.options import Accelerator

if TYPE_CHECKING:
    import numpy as np

    from denoise_tasks.methods import Denoiser, TrainedDenoiser
    from denoise_tasks.scoring import Case, Result

OUTPUTS = ("results.json", "results.csv", "results.md")
SPLIT_KEYS = ("data_path", "val_scenes", "val_share", "test_share", "split_seed")


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
    from denoise_tasks.methods import load_run, make_method

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


def find_cases(
    config: EvaluateConfig, runs: Sequence[TrainedDenoiser]
) -> list[tuple[str, list[Case]]]:
    """Titles and cases, one entry per noise level; every file is read once to find the broken ones.

    Raises:
        InputError: data that cannot be used, or none.
    """
    channels = runs[0].in_chans if runs else 3
    # The package's own networks have no split of a folder.
    runs = [run for run in runs if "data_path" in run.config]
    if config.split != "all":
        check_same_split(config, runs)
    if config.sidd_validation is not None:
        levels = _block_cases(config, channels)
    elif config.sigma:
        levels = _gaussian_cases(config, runs, channels)
    else:
        levels = _pair_cases(config, runs, channels)
    for title, cases in levels:
        if not cases:
            raise InputError(f"--split: {config.split} of {title} has no image in it")
    return levels


def _block_cases(config: EvaluateConfig, channels: int) -> list[tuple[str, list[Case]]]:
    from denoise_tasks.scoring import block_cases
    from denoise_tasks.sidd_benchmark import read_validation

    assert config.sidd_validation is not None
    if channels != 3:
        raise InputError("--sidd_validation: colour blocks, but --run is a grey network")
    cases = block_cases(*read_validation(*config.sidd_validation))
    return [("SIDD validation blocks", cases[: config.limit])]


def _pair_cases(
    config: EvaluateConfig, runs: Sequence[TrainedDenoiser], channels: int
) -> list[tuple[str, list[Case]]]:
    from denoise_tasks.pairs import list_pairs
    from denoise_tasks.pictures import check_picture
    from denoise_tasks.scoring import pair_cases
    from denoise_tasks.splits import pairs_split

    folder = config.data_path
    assert folder is not None
    try:
        if config.split == "all":
            pairs = list_pairs(folder)
        else:
            stored = {key: runs[0].config[key] for key in SPLIT_KEYS}
            sides = pairs_split(**stored | {"data_path": folder})
            pairs = sides[1 if config.split == "val" else 2]
    except InputError as error:
        raise InputError(f"{error}; if its images are clean, give --sigma 15 25 50") from None
    pairs = pairs[: config.limit]
    for pair in pairs:
        check_picture(pair.noisy)
        check_picture(pair.clean)
    return [(f"{folder.name}, real noise", pair_cases(pairs, channels))]


def _gaussian_cases(
    config: EvaluateConfig, runs: Sequence[TrainedDenoiser], channels: int
) -> list[tuple[str, list[Case]]]:
    from denoise_tasks.picture_folders import list_pictures
    from denoise_tasks.pictures import check_picture
    from denoise_tasks.scoring import gaussian_cases
    from denoise_tasks.splits import gaussian_split

    folder = config.data_path
    assert folder is not None
    if config.split == "all":
        paths = list_pictures(folder)
    else:
        stored = {key: runs[0].config[key] for key in ("val_share", "test_share", "split_seed")}
        split = gaussian_split(folder, **stored)
        paths = [source.path for source in getattr(split, config.split)]
    paths = paths[: config.limit]
    for path in paths:
        check_picture(path)
    protocol = config.protocol or "standard"
    return [
        (
            f"{folder.name}, sigma {sigma:g}",
            gaussian_cases(paths, folder, channels, sigma, protocol),
        )
        for sigma in config.sigma
    ]


def check_same_split(config: EvaluateConfig, runs: Sequence[TrainedDenoiser]) -> None:
    """Make sure that `--split` means the same images for every run.

    Raises:
        InputError: no run, runs that were split differently, or trained on other data.
    """
    if not runs:
        raise InputError(f"--split: {config.split} needs a --run that says how the data were split")
    first, *others = runs
    for other in others:
        for key in SPLIT_KEYS:
            if other.config[key] != first.config[key]:
                raise InputError(
                    f"--split: {first.name} and {other.name} were split differently "
                    f"({key}: {first.config[key]} and {other.config[key]})"
                )
    folder = config.data_path
    if folder is not None and str(folder.resolve()) != first.config["data_path"]:
        raise InputError(
            f"--split: {config.split} of --data_path {folder}, but {first.name} was trained on "
            f"{first.config['data_path']}; give that folder, or --split all"
        )
    if config.split == "test" and not first.config["test_share"]:
        raise InputError(f"--split: test, but {first.name} was trained with --test_share 0")


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
    from denoise_tasks.figures import denoising_panel
    from denoise_tasks.scoring import score_cases
    from img2img_recon.figures import panel_path
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
    results = []
    for title, cases in levels:

        def draw(
            number: int,
            case: Case,
            images: Mapping[str, np.ndarray],
            clean: np.ndarray,
            title: str = title,
        ) -> None:
            path = panel_path(config.out / "panels", f"{title} {number:02} {Path(case.name).stem}")
            denoising_panel(path, images, clean, title=case.name)

        results.append(
            score_cases(
                title,
                cases,
                methods,
                sigma_source=config.method_sigma,
                slow_images=config.slow_images,
                workers=config.num_workers,
                draw=draw,
                panels=config.panels,
                metrics=metrics,
                track=bar if config.progress else silent,
            )
        )
        # After every level, so that an interruption does not cost the levels before it.
        write_results(config.out, results, details)
    return results


def write_results(out: Path, results: Sequence[Result], details: Mapping[str, Any]) -> None:
    """Write the tables."""
    from denoise_tasks.scoring import to_csv, to_json, to_markdown
    from img2img_recon.figures import label_of

    write_json(out / OUTPUTS[0], to_json(results, details))
    for name, text in ((OUTPUTS[1], to_csv(results)), (OUTPUTS[2], to_markdown(results, label_of))):
        write_text(out / name, text)


def print_scores(results: Sequence[Result], out: Path) -> None:
    """Print the means."""
    from rich.console import Console
    from rich.table import Table

    from denoise_tasks.scoring import PROTOCOL_NOTES, SSIM_SETTINGS, figures
    from img2img_recon.figures import label_of
    from img2img_recon.perceptual_metrics import LABELS

    console = Console(markup=False)
    for result in results:
        table = Table(title=result.title, caption=PROTOCOL_NOTES[result.protocol])
        for column in ("method", "images", *map(LABELS.__getitem__, result.columns())):
            table.add_column(column, justify="left" if column == "method" else "right")
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
