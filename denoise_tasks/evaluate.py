"""Score trained denoisers and BM3D on the same noise.

python denoise_tasks/evaluate.py --run RUN [--run RUN ...] [--bm3d] --data_path FOLDER --sigma 15 25 30 50
python denoise_tasks/evaluate.py --run RUN --sidd_validation NOISY.mat GT.mat
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from denoise_tasks.evaluation import (
    PROTOCOL_NOTES,
    SSIM_SETTINGS,
    Case,
    Result,
    block_cases,
    gaussian_cases,
    pair_cases,
    score_cases,
    to_csv,
    to_json,
    to_markdown,
)
from denoise_tasks.experiment import gaussian_split, pairs_split
from denoise_tasks.inference import Denoiser, load_denoiser
from denoise_tasks.noise import Protocol, check_sigma
from denoise_tasks.panels import denoising_panel
from denoise_tasks.pictures import check_picture, list_pictures
from denoise_tasks.sidd import list_pairs, list_sidd, read_validation
from img2img_recon.figures import label_of
from img2img_recon.support.cli import flag, parse_config, run_script
from img2img_recon.support.errors import InputError
from img2img_recon.support.files import atomic_path, writable_folder, write_json
from img2img_recon.support.progress import bar, silent
from img2img_recon.training.runner import say
from img2img_recon.training.trainer import pick_device

OUTPUTS = ("results.json", "results.csv", "results.md")
SPLIT_KEYS = ("data_path", "pairs", "val_scenes", "val_share", "test_share", "split_seed")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Denoise images with any number of runs and BM3D, score and draw them."""

    run: tuple[Path, ...] = flag((), help="run folder or checkpoint; may be given several times")
    bm3d: bool = flag(False, help="score BM3D too (seconds an image)")
    bm3d_variant: tuple[Literal["cbm3d", "channelwise"], ...] = flag(
        ("cbm3d",), help="cbm3d, or the weaker call of the paper, or both"
    )
    bm3d_sigma: Literal["given", "oracle", "estimated"] = flag(
        "given", help="what BM3D is told: the noise added (real noise: oracle), or an estimate"
    )
    bm3d_images: int | None = flag(None, help="BM3D only on the first so many images")
    data_path: Path | None = flag(
        None, help="folder of clean images, or SIDD's folder (--task sidd runs)"
    )
    pairs: Path | None = flag(None, help="folder of noisy/clean pairs")
    sidd_validation: tuple[Path, ...] | None = flag(
        None, help="ValidationNoisyBlocksSrgb.mat ValidationGtBlocksSrgb.mat"
    )
    split: Literal["all", "val", "test"] = flag(
        "all", help="val or test: only what the runs left out of their training, found as they did"
    )
    sigma: tuple[float, ...] | None = flag(None, help="noise levels, of 255 grey levels")
    protocol: Protocol | None = flag(
        None, help="paper or standard (default); see denoise_tasks/noise.py"
    )
    limit: int | None = flag(None, help="at most so many images")
    self_ensemble: bool = flag(False, help="mean over the eight flips and quarter turns")
    out: Path = flag(Path("evaluation"), help="folder for tables and panels")
    panels: int = flag(4, help="panels per noise level")
    workers: int | None = flag(None, help="processes for BM3D")
    accelerator: str = flag("auto", help="auto, cpu or gpu")
    overwrite: bool = flag(False, help="replace earlier results in --out")
    progress: bool = flag(True, help="progress bars")

    def __post_init__(self) -> None:
        given = [
            n for n in ("data_path", "pairs", "sidd_validation") if getattr(self, n) is not None
        ]
        if len(given) != 1:
            raise InputError(
                "give one of --data_path, --pairs and --sidd_validation"
                + (f", not {' and '.join('--' + name for name in given)}" if given else "")
            )
        if not self.run and not self.bm3d:
            raise InputError("--run: nothing to evaluate; give a run folder, or --bm3d")
        if self.sidd_validation is not None and len(self.sidd_validation) != 2:
            raise InputError("--sidd_validation: two files are needed, NOISY.mat GT.mat")
        if self.data_path is None:
            for name in ("sigma", "protocol"):
                if getattr(self, name) is not None:
                    raise InputError(f"--{name}: only with --data_path; --{given[0]} is real noise")
        if self.sidd_validation is not None and self.split != "all":
            raise InputError(f"--split: given {self.split}, the validation blocks have no split")
        for sigma in self.sigma or ():
            check_sigma(sigma)
        for name in ("limit", "bm3d_images", "workers"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise InputError(f"--{name}: given {number}, allowed: 1 or more")


def load_runs(sources: Sequence[Path]) -> dict[str, Denoiser]:
    """Denoisers by run name.

    Raises:
        InputError: a run twice, or one that cannot be loaded.
    """
    loaded: dict[str, Denoiser] = {}
    for source in sources:
        name = source.resolve().name
        if name in loaded:
            raise InputError(f"--run: {name} is given twice; rename one of the folders")
        loaded[name] = load_denoiser(source)
    if len({denoiser.in_chans for denoiser in loaded.values()}) > 1:
        channels = ", ".join(f"{name}: {d.in_chans}" for name, d in loaded.items())
        raise InputError(f"--run: runs of different numbers of channels ({channels})")
    return loaded


def find_cases(config: EvaluateConfig, runs: dict[str, Denoiser]) -> list[tuple[str, list[Case]]]:
    """Titles and cases, one entry per noise level; every file is read once to find the broken ones.

    Raises:
        InputError: data that cannot be used, or none.
    """
    levels = _find_cases(config, runs)
    for title, cases in levels:
        if not cases:
            raise InputError(f"--split: {config.split} of {title} has no image in it")
    return levels


def _find_cases(config: EvaluateConfig, runs: dict[str, Denoiser]) -> list[tuple[str, list[Case]]]:
    first = next(iter(runs.values()), None)
    channels = first.in_chans if first else 3
    real = config.pairs is not None or (
        first is not None and first.task == "sidd" and not config.sigma
    )
    if config.sidd_validation is not None:
        if channels != 3:
            raise InputError("--sidd_validation: colour blocks, but --run is a grey network")
        cases = block_cases(*read_validation(*config.sidd_validation))
        return [("SIDD validation blocks", cases[: config.limit])]
    if config.split != "all":
        check_same_split(config, runs)
    if real:
        if config.split == "all":
            pairs = list_pairs(config.pairs) if config.pairs else list_sidd(config.data_path)  # type: ignore[arg-type]
        else:
            assert first is not None
            stored = {key: first.config[key] for key in SPLIT_KEYS}
            sides = pairs_split(**stored | {"data_path": config.data_path, "pairs": config.pairs})
            pairs = sides[1 if config.split == "val" else 2]
        pairs = pairs[: config.limit]
        for pair in pairs:
            check_picture(pair.noisy)
            check_picture(pair.clean)
        folder = config.pairs or config.data_path
        return [(f"{folder.name}, real noise", pair_cases(pairs, channels))]  # type: ignore[union-attr]
    if not config.sigma:
        raise InputError("--sigma: needed with --data_path, e.g. --sigma 15 25 30 50")
    assert config.data_path is not None
    if config.split == "all":
        paths = list_pictures(config.data_path)
    else:
        assert first is not None
        stored = {key: first.config[key] for key in ("val_share", "test_share", "split_seed")}
        split = gaussian_split(config.data_path, **stored)
        paths = [source.path for source in getattr(split, config.split)]
    paths = paths[: config.limit]
    for path in paths:
        check_picture(path)
    return [
        (
            f"{config.data_path.name}, sigma {sigma:g}",
            gaussian_cases(paths, config.data_path, channels, sigma, config.protocol or "standard"),
        )
        for sigma in config.sigma
    ]


def check_same_split(config: EvaluateConfig, runs: dict[str, Denoiser]) -> None:
    """Make sure that `--split` means the same images for every run.

    Raises:
        InputError: no run, runs that were split differently, or trained on other data.
    """
    if not runs:
        raise InputError(f"--split: {config.split} needs a --run that says how the data were split")
    (first, reference), *others = runs.items()
    for name, denoiser in others:
        for key in SPLIT_KEYS:
            if denoiser.config[key] != reference.config[key]:
                raise InputError(
                    f"--split: {first} and {name} were split differently "
                    f"({key}: {reference.config[key]} and {denoiser.config[key]})"
                )
    for key in ("data_path", "pairs"):
        given = getattr(config, key)
        if given is not None and str(given.resolve()) != reference.config[key]:
            raise InputError(
                f"--split: {config.split} of --{key} {given}, but {first} was trained on "
                f"{reference.config[key]}; give that folder, or --split all"
            )
    if config.split == "test" and not reference.config["test_share"]:
        raise InputError(f"--split: test, but {first} was trained with --test_share 0")


def evaluate(config: EvaluateConfig) -> list[Result]:
    """Score everything and write tables and panels.

    Raises:
        InputError: something given cannot be used; nothing is written then.
    """
    taken = [name for name in OUTPUTS if (config.out / name).exists()]
    if taken and not config.overwrite:
        raise InputError(
            f"--out: {config.out / taken[0]} exists; give --overwrite or another folder"
        )
    runs = load_runs(config.run)
    levels = find_cases(config, runs)
    device = pick_device(config.accelerator)
    writable_folder(config.out, "--out")
    for name, denoiser in runs.items():
        other = [s for s in config.sigma or () if denoiser.sigma not in (None, s)]
        if other:
            say(
                f"note: {name} was trained for sigma {denoiser.sigma:g}, not {', '.join(map('{:g}'.format, other))}"
            )
        if denoiser.task == "gaussian" and config.data_path is not None:
            protocol, own = config.protocol or "standard", denoiser.config["protocol"]
            if own != protocol:
                say(
                    f"note: {name} was trained under the protocol {denoiser.config['protocol']}, "
                    f"and is scored under {protocol}"
                )
        for key in ("data_path", "pairs"):
            given = getattr(config, key)
            if config.split == "all" and given and str(given.resolve()) == denoiser.config[key]:
                say(f"note: {name} was trained on images of {given}; --split leaves those out")
    variants = {
        "bm3d" if variant == "cbm3d" else "bm3d_channelwise": variant
        for variant in (config.bm3d_variant if config.bm3d else ())
    }
    details = {
        "runs": {
            name: {
                "model": denoiser.model,
                "trained_for_sigma": denoiser.sigma,
                "trained_under_protocol": denoiser.config["protocol"],
                "parameters": sum(p.numel() for p in denoiser.module.parameters()),
            }
            for name, denoiser in runs.items()
        },
        "bm3d_sigma": config.bm3d_sigma if config.bm3d else None,
        "self_ensemble": config.self_ensemble,
        "split": config.split,
    }
    results = []
    for title, cases in levels:

        def draw(
            case: Case, images: dict[str, np.ndarray], clean: np.ndarray, title: str = title
        ) -> None:
            name = re.sub(r"[^A-Za-z0-9.-]+", "_", f"{title} {Path(case.name).with_suffix('')}")
            denoising_panel(config.out / "panels" / f"{name}.png", images, clean, title=case.name)

        results.append(
            score_cases(
                title,
                cases,
                runs,
                bm3d_variants=variants,
                bm3d_sigma=config.bm3d_sigma,
                bm3d_images=config.bm3d_images,
                device=device,
                self_ensemble=config.self_ensemble,
                workers=config.workers,
                draw=draw,
                panels=config.panels,
                track=bar if config.progress else silent,
            )
        )
        # After every level, so that an interruption does not cost the levels before it.
        _write(config.out, results, details)
    return results


def _write(out: Path, results: Sequence[Result], details: Mapping[str, Any]) -> None:
    """Write the tables."""
    write_json(out / OUTPUTS[0], to_json(results, details))
    for name, text in ((OUTPUTS[1], to_csv(results)), (OUTPUTS[2], to_markdown(results, label_of))):
        with atomic_path(out / name) as temporary:
            temporary.write_text(text)


def report(results: Sequence[Result], out: Path) -> None:
    """Print the means."""
    console = Console()
    for result in results:
        table = Table(title=result.title, caption=PROTOCOL_NOTES[result.protocol])
        for column in ("method", "images", "PSNR (dB)", "SSIM"):
            table.add_column(column, justify="left" if column == "method" else "right")
        for method, count, scores in result.means():
            table.add_row(
                label_of(method), str(count), f"{scores['psnr']:.2f}", f"{scores['ssim']:.4f}"
            )
        console.print(table)
    console.print(SSIM_SETTINGS, highlight=False)
    console.print(
        f"per image: {out / 'results.csv'}; panels: {out / 'panels'}",
        highlight=False,
        soft_wrap=True,
    )


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    config = parse_config(EvaluateConfig, words)
    report(evaluate(config), config.out)


if __name__ == "__main__":
    run_script(main)
