"""Denoise picture files with a trained network; make and check submissions to the SIDD benchmark.

python denoise_tasks/denoise.py photo.jpg folder --out DIR --run RUN
python denoise_tasks/denoise.py --sidd_benchmark BenchmarkNoisyBlocksSrgb.mat --out SubmitSrgb.csv --run RUN
python denoise_tasks/denoise.py --validate_submission SubmitSrgb.csv
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from denoise_tasks.pictures import (
    check_ending,
    check_picture,
    list_pictures,
    read_picture,
    write_picture,
)
from img2img_recon.support.cli import flag, parse_config, run_script, underscore_flags
from img2img_recon.support.errors import InputError
from img2img_recon.support.files import writable_folder
from img2img_recon.support.progress import bar

if TYPE_CHECKING:
    import numpy as np

    from denoise_tasks.inference import Denoiser

# By how much of itself the level that a network was trained for may be missed without a warning.
LEVEL_TOLERANCE = 0.2
# The estimate looks at the middle of a large picture: that is enough, and bounds its memory.
ESTIMATED_SIDE = 1024

BENCHMARK_FLAG, VALIDATE_FLAG = "sidd_benchmark", "validate_submission"
_RUN_HELP = "run folder or checkpoint file of denoise_tasks/train.py"
_ENSEMBLE_HELP = "mean over the eight flips and quarter turns of a picture"
_OVERWRITE_HELP = "replace files that exist"
_ACCELERATOR_HELP = "where the network runs"
_TILE_BATCH_HELP = (
    "tiles of 256 x 256 that go through the network at once; more takes more memory "
    "(default: 4, on a GPU 32)"
)


@dataclass(frozen=True)
class DenoiseConfig:
    """Denoise picture files with a trained network."""

    inputs: tuple[Path, ...] = flag(
        help="pictures (PNG, JPEG, TIFF, WebP, AVIF, BMP) and folders of them", positional=True
    )
    out: Path = flag(help="folder for the results, under the inputs' names")
    run: Path = flag(help=_RUN_HELP)
    sigma: str | None = flag(
        None,
        help="noise of the pictures, of 255 grey levels, or auto to estimate it: warns when the "
        "network was trained for another level",
    )
    self_ensemble: bool = flag(False, help=_ENSEMBLE_HELP)
    overwrite: bool = flag(False, help=_OVERWRITE_HELP)
    accelerator: Literal["auto", "cpu", "gpu"] = flag("auto", help=_ACCELERATOR_HELP)
    tile_batch: int | None = flag(None, help=_TILE_BATCH_HELP)

    def __post_init__(self) -> None:
        _check_tile_batch(self.tile_batch)
        if self.sigma is not None and self.sigma != "auto":
            self.stated_sigma()

    def stated_sigma(self) -> float | None:
        """The noise that was given as a number, in [0, 255] units."""
        if self.sigma is None or self.sigma == "auto":
            return None
        from denoise_tasks.noise import check_sigma

        try:
            number = float(self.sigma)
        except ValueError:
            raise InputError(
                f"--sigma: given {self.sigma}, allowed: auto or a number of 255 grey levels"
            ) from None
        return check_sigma(number)


@dataclass(frozen=True)
class BenchmarkConfig:
    """Denoise the blocks of the SIDD benchmark into a file to submit."""

    sidd_benchmark: Path = flag(help="BenchmarkNoisyBlocksSrgb.mat")
    out: Path = flag(help="file to write, .csv or .mat")
    run: Path = flag(help=_RUN_HELP)
    self_ensemble: bool = flag(False, help=_ENSEMBLE_HELP)
    overwrite: bool = flag(False, help=_OVERWRITE_HELP)
    accelerator: Literal["auto", "cpu", "gpu"] = flag("auto", help=_ACCELERATOR_HELP)
    tile_batch: int | None = flag(None, help=_TILE_BATCH_HELP)

    def __post_init__(self) -> None:
        _check_tile_batch(self.tile_batch)


@dataclass(frozen=True)
class ValidateConfig:
    """Check a file to submit to the SIDD benchmark."""

    validate_submission: Path = flag(help="file to check, .csv or .mat")


def _check_tile_batch(tile_batch: int | None) -> None:
    if tile_batch is not None and tile_batch < 1:
        raise InputError(f"--tile_batch: given {tile_batch}, allowed: 1 or more")


def plan(inputs: Sequence[Path], out: Path, overwrite: bool) -> list[tuple[Path, Path]]:
    """Which file becomes which: a file keeps its name, the files of a folder their places in it.

    Args:
        inputs: files and folders; in folders, hidden files and `out` itself are left out.
        out: folder of the results.
        overwrite: results that exist may be replaced.

    Raises:
        InputError: an input that is not there or has no picture's ending, a folder without pictures,
            two inputs for one result, a result in the place of an input, one that exists.
    """
    pairs: list[tuple[Path, Path]] = []
    for given in inputs:
        if given.is_dir():
            pairs += [
                (path, out / path.relative_to(given))
                for path in list_pictures(given)
                if out.resolve() not in path.resolve().parents or out.resolve() == given.resolve()
            ]
        elif given.exists():
            check_ending(given)
            pairs.append((given, out / given.name))
        else:
            raise InputError(f"{given}: no such file or folder")
    if not pairs:
        raise InputError(f"{inputs[0]}: no picture in this folder but those in --out")
    sources = {source.resolve() for source, _ in pairs}
    taken: dict[Path, Path] = {}
    for source, target in pairs:
        # Where upper and lower case are one, so are two such names.
        key = Path(str(target.resolve()).lower())
        if key in taken:
            raise InputError(
                f"--out: {taken[key]} and {source} would both become {target}; "
                "denoise them into different folders"
            )
        taken[key] = source
        if target.resolve() in sources:
            raise InputError(
                f"--out: {target} is an input; give a folder that holds none of the inputs"
            )
    existing = [target for _, target in pairs if target.exists()]
    if existing and not overwrite:
        more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise InputError(f"--out: {existing[0]} exists{more}; give --overwrite to replace")
    return pairs


def check_pictures(sources: Sequence[Path]) -> None:
    """Decode all inputs once, so that a broken one is known before the first result is written.

    Raises:
        InputError: the first that cannot be read or written again, and how many more there are.
    """
    problems = []
    for path in bar(sources, "checking", len(sources)):
        try:
            check_picture(path, path)
        except InputError as error:
            problems.append(str(error))
    if problems:
        more = f" (and {len(problems) - 1} more that cannot be used)" if problems[1:] else ""
        raise InputError(problems[0] + more)


def estimated_sigma(pixels: np.ndarray, task: str) -> float:
    """Noise of the picture's middle in [0, 255] units.

    Args:
        pixels: float32 (H, W, C) in [0, 1].
        task: what the network was trained for; only Gaussian noise is independent between pixels.

    Raises:
        InputError: a picture of a few pixels.
    """
    from denoise_tasks.bm3d import estimate_sigma
    from denoise_tasks.noise import centre

    return 255 * estimate_sigma(
        centre(pixels, ESTIMATED_SIDE), "white" if task == "gaussian" else "camera"
    )


def level_warning(sigma: float, denoiser: Denoiser, how: str) -> str | None:
    """What to tell a person whose pictures have another noise than the network was trained for.

    Args:
        sigma: of the pictures, in [0, 255] units.
        denoiser: the network.
        how: `given` or `estimated`.
    """
    if denoiser.sigma is None:
        if how == "given":
            return f"sigma {sigma:g} given, but the network was trained on real noise of any level"
        return None
    if abs(sigma - denoiser.sigma) <= LEVEL_TOLERANCE * denoiser.sigma:
        return None
    direction = "too much is removed" if sigma < denoiser.sigma else "noise will be left"
    return f"noise of sigma {sigma:.3g} {how}, the network was trained for {denoiser.sigma:g}: {direction}"


def warn_about_levels(
    config: DenoiseConfig, sources: Sequence[Path], denoiser: Denoiser
) -> list[str]:
    """Say on the standard error where the pictures' noise is not the network's; return what was said."""
    stated = config.stated_sigma()
    said: list[str | None] = []
    if stated is not None:
        said.append(level_warning(stated, denoiser, "given"))
    elif config.sigma == "auto":
        for path in bar(sources, "estimating the noise", len(sources)):
            try:
                sigma = estimated_sigma(read_picture(path).pixels, denoiser.task)
            except InputError as error:
                said.append(f"{path}: {error}")
                continue
            if denoiser.sigma is None:
                print(f"{path}: noise of about sigma {sigma:.3g}", file=sys.stderr)
            warning = level_warning(sigma, denoiser, "estimated")
            said.append(warning and f"{path}: {warning}")
    warnings = [line for line in said if line is not None]
    for line in warnings:
        print(f"warning: {line}", file=sys.stderr)
    return warnings


def denoise_files(config: DenoiseConfig) -> list[Path]:
    """Denoise all inputs; everything is checked before the first result is written.

    Returns:
        The files written.

    Raises:
        InputError: something given cannot be used.
    """
    pairs = plan(config.inputs, config.out, config.overwrite)
    sources = [source for source, _ in pairs]
    # The network and its packages: only now, so that a mistyped name is answered at once.
    from denoise_tasks.apply import denoise_pixels
    from denoise_tasks.inference import load_denoiser
    from img2img_recon.training.trainer import pick_device

    denoiser, device = load_denoiser(config.run), pick_device(config.accelerator)
    check_pictures(sources)
    writable_folder(config.out, "--out")
    warn_about_levels(config, sources, denoiser)
    for source, target in bar(pairs, "denoising", len(pairs)):
        picture = read_picture(source)
        denoised = denoise_pixels(
            denoiser,
            picture.pixels,
            device=device,
            self_ensemble=config.self_ensemble,
            tile_batch=config.tile_batch,
        )
        write_picture(target, denoised, picture, config.overwrite)
    return [target for _, target in pairs]


def denoise_benchmark(config: BenchmarkConfig) -> Path:
    """Denoise the blocks of the SIDD benchmark, write the submission and check it.

    Raises:
        InputError: something given cannot be used.
    """
    import numpy as np

    from denoise_tasks import sidd

    sidd.check_submission_path(config.out, config.overwrite)
    noisy = sidd.read_benchmark(config.sidd_benchmark)
    from denoise_tasks.apply import denoise_pixels
    from denoise_tasks.inference import load_denoiser
    from img2img_recon.training.trainer import pick_device

    denoiser, device = load_denoiser(config.run), pick_device(config.accelerator)
    if denoiser.sigma is not None:
        print(
            f"warning: the network was trained on Gaussian noise of sigma {denoiser.sigma:g}, "
            "the benchmark has real noise",
            file=sys.stderr,
        )
    if denoiser.in_chans != 3:
        raise InputError(f"--run: {config.run} takes grey pictures, the benchmark is in colour")
    writable_folder(config.out.parent, "--out")
    denoised = np.empty_like(noisy)
    places = list(np.ndindex(noisy.shape[:2]))
    begin = time.perf_counter()
    for place in bar(places, "denoising", len(places)):
        output = denoise_pixels(
            denoiser,
            noisy[place].astype(np.float32) / 255,
            device=device,
            self_ensemble=config.self_ensemble,
            tile_batch=config.tile_batch,
        )
        denoised[place] = sidd.to_bytes(output)
    seconds = time.perf_counter() - begin
    megapixels = noisy[..., 0].size / 2**20  # the board's
    sidd.write_submission(config.out, denoised, seconds / megapixels, config.overwrite)
    return config.out


def main(words: Sequence[str] | None = None) -> None:
    """Denoise files, or make or check a submission, as the command line says."""
    given = underscore_flags(sys.argv[1:] if words is None else words)
    flags = {word[2:].partition("=")[0] for word in given if word.startswith("--")}
    if VALIDATE_FLAG in flags:
        validate(parse_config(ValidateConfig, given).validate_submission)
    elif BENCHMARK_FLAG in flags:
        validate(denoise_benchmark(parse_config(BenchmarkConfig, given)))
    else:
        description = (
            "Denoise picture files with a trained network. With "
            f"--{BENCHMARK_FLAG} BenchmarkNoisyBlocksSrgb.mat in the place of files, make a submission "
            f"to the SIDD benchmark; with --{VALIDATE_FLAG} FILE, check one."
        )
        config = parse_config(DenoiseConfig, given, description=description)
        written = denoise_files(config)
        what = written[0] if len(written) == 1 else f"{len(written)} pictures in {config.out}"
        print(f"denoised: {what}")


def validate(path: Path) -> None:
    """Check a submission and say what it holds."""
    from denoise_tasks import sidd

    sidd.validate_submission(path)
    print(f"valid submission: {path}")


if __name__ == "__main__":
    run_script(main)
