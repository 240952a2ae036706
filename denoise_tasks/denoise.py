"""Denoise picture files with the package's networks, others or a classical method; make and check SIDD submissions.

python denoise_tasks/denoise.py photo.jpg folder --out DIR
python denoise_tasks/denoise.py photo.jpg --out DIR --model RUN --sigma 25 --strength 0.7
python denoise_tasks/denoise.py photo.jpg --out DIR --method bm3d
python denoise_tasks/denoise.py --sidd_benchmark BenchmarkNoisyBlocksSrgb.mat --out SubmitSrgb.csv --model RUN
python denoise_tasks/denoise.py --validate_submission SubmitSrgb.csv
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from denoise_tasks.checked_pictures import CheckedPictures
from denoise_tasks.options import check_unit
from img2img_recon.support.cli import flag, parse_config, script
from img2img_recon.support.errors import InputError
from img2img_recon.support.files import writable_folder
from img2img_recon.support.progress import Track, bar, silent
from img2img_recon.support.types import ClosedUnitInterval, GreyLevelsOrNone, PositiveInt
from img2img_recon.training.options import Accelerator

if TYPE_CHECKING:
    from denoise_tasks.methods import Denoiser
    from denoise_tasks.noise import Image
    from denoise_tasks.pictures import Picture

EXIT_SOME_BROKEN = 1  # all others are done


@dataclass(frozen=True, kw_only=True)
class DenoiseConfig:
    """Denoise picture files, or the SIDD benchmark's blocks, with the package's networks or another method."""

    inputs: tuple[Path, ...] = flag(
        (),
        help="pictures (PNG, JPEG, TIFF, WebP, AVIF, BMP; HEIC where pillow-heif is) and folders of them",
        positional=True,
        group="data",
        basic=True,
    )
    out: Path | None = flag(
        None,
        help="folder for the results; of the benchmark a .csv or .mat file",
        group="data",
        basic=True,
    )
    sidd_benchmark: Path | None = flag(
        None, help="BenchmarkNoisyBlocksSrgb.mat in the place of inputs", group="data", basic=True
    )
    validate_submission: Path | None = flag(
        None, help="only check such a submission", group="data", basic=True
    )
    model: str | None = flag(
        None,
        help="a network by name, run folder, checkpoint or .safetensors file; default: the package's for "
        "grey or colour",
        basic=True,
        aliases=("run",),
    )
    method: str | None = flag(
        None, help="a classical method instead: bm3d, bm3d_channelwise, tv", basic=True
    )
    sigma: GreyLevelsOrNone | Literal["auto"] = flag(
        "auto",
        help="noise of 255 grey levels, 0 to 100; auto estimates it",
        group="data",
        basic=True,
    )
    strength: ClosedUnitInterval = flag(
        1.0,
        help="how much of what was found to be noise is removed; the rest looks like the noise did",
        group="data",
        basic=True,
    )
    self_ensemble: bool = flag(
        False, help="mean over the eight flips and quarter turns (networks)", basic=True
    )
    overwrite: bool = flag(False, help="make results anew that exist", basic=True)
    accelerator: Accelerator = flag("auto", help="where networks run", group="cluster", basic=True)
    tile: PositiveInt | None = flag(
        None,
        help="side in pixels of what a network is given at once, which bounds the memory; default: 1536 for "
        "the package's networks",
        group="cluster",
        basic=True,
    )
    progress: bool = flag(True, help="progress bars", basic=True)

    def __post_init__(self) -> None:
        jobs = [self.inputs, self.sidd_benchmark, self.validate_submission]
        if sum(map(bool, jobs)) != 1:
            raise InputError(
                "inputs: give pictures and folders, or in their place --sidd_benchmark or "
                "--validate_submission"
            )
        if self.validate_submission is not None:
            return
        if self.out is None:
            raise InputError("--out: missing; give a folder, for the benchmark a .csv or .mat file")
        if self.model is not None and self.method is not None:
            raise InputError("--model, --method: give one of them: a network, or a method as tv")
        if self.sigma != "auto":
            check_unit(self.sigma)

    def make(self) -> Denoiser:
        """The method.

        Raises:
            InputError: there is none of that name, or no such run.
        """
        from denoise_tasks.methods import make_method
        from denoise_tasks.trained import ShippedDenoiser, load_run

        options: dict[str, Any] = {
            "accelerator": self.accelerator,
            "self_ensemble": self.self_ensemble,
            "tile": self.tile,
        }
        if self.method is not None:
            return make_method(self.method, **options)
        return ShippedDenoiser(**options) if self.model is None else load_run(self.model, **options)

    @property
    def track(self) -> Track:
        """Progress bars, if wanted."""
        return bar if self.progress else silent


def to_stderr(line: str) -> None:
    """Tell the person at the terminal."""
    print(line, file=sys.stderr)


def in_image_units(sigma: float | None) -> float | None:
    """A picture's noise as methods take it."""
    from denoise_tasks.noise import LEAST_SIGMA, image_units

    return None if sigma is None else image_units(max(sigma, LEAST_SIGMA))


def levels(
    sigma: float | Literal["auto"],
    pictures: CheckedPictures,
    method: Denoiser,
    report: Callable[[str], None],
) -> dict[Path, list[float | None]]:
    """The noise of every page, of 255 grey levels, as far as it is known; warn where it does not suit."""
    if sigma != "auto":
        warnings = [method.level_warning(sigma, "given")]
        found: dict[Path, list[float | None]] = {
            path: [sigma] * len(pages) for path, pages in pictures.sigmas.items()
        }
    else:
        warnings, found = [], pictures.sigmas
        for path, pages in found.items():
            known = [level for level in pages if level is not None]
            least, most = min(known, default=0.0), max(known, default=0.0)
            warning = method.level_warning(least, "estimated") or method.level_warning(
                most, "estimated"
            )
            if known and warning:
                warnings.append(f"{path}: {warning}")
            elif known and method.needs_sigma:
                words = f" to {most:.3g} on {len(pages)} pages" if len(pages) > 1 else ""
                report(f"{path}: noise of about sigma {least:.3g}{words}")
    for line in filter(None, warnings):
        report(f"warning: {line}")
    return found


def denoise_files(
    config: DenoiseConfig, report: Callable[[str], None] = to_stderr
) -> tuple[list[Path], list[str]]:
    """Denoise what is not finished of all inputs; everything is checked before the first result is written.

    Args:
        config: the inputs, and what is done with them.
        report: told the noise that was found, warnings, and what is left out.

    Returns:
        The files written, and a line for each picture that cannot be used.

    Raises:
        InputError: something given cannot be used.
    """
    from denoise_tasks.picture_folders import plan

    assert config.out is not None
    work = plan(config.inputs, config.out, config.overwrite)
    for line in work.remarks(config.out):
        report(line)
    if not work.jobs:
        return [], []
    # The network and its packages: only now, so that a mistyped name is answered at once.
    from denoise_tasks.pictures import write_pages

    method = config.make()
    targets = dict(work.jobs)
    pictures = CheckedPictures(list(targets), config.sigma == "auto", config.track, report)
    sigmas = levels(config.sigma, pictures, method, report)
    for folder in sorted({targets[source].parent for source in sigmas}):
        writable_folder(folder, "--out")
    written, count = list[Path](), len(pictures)
    try:
        for source, pages in config.track(pictures, "denoising", count):
            steps: Iterable[Any] = zip(pages, sigmas[source], strict=True)
            if len(pages) > 1:
                steps = config.track(steps, source.name, len(pages))
            results = ((denoised(config, method, *step), step[0]) for step in steps)
            write_pages(targets[source], results, config.overwrite, pages.size)
            written.append(targets[source])
    except (InputError, KeyboardInterrupt):
        if count > 1 and not config.overwrite:
            rest = "the same command goes on from there"
            report(f"{len(written)} of {count} pictures are in {config.out}; {rest}")
        raise
    return written, pictures.broken


def denoised(
    config: DenoiseConfig, method: Denoiser, picture: Picture, sigma: float | None
) -> Image:
    """The pixels of one page without noise, or with as much as was asked for."""
    noisy = picture.pixels
    clean = method.denoise(noisy, in_image_units(sigma))
    return clean if config.strength == 1 else noisy + config.strength * (clean - noisy)


def denoise_benchmark(config: DenoiseConfig) -> Path:
    """Denoise the blocks of the SIDD benchmark and write the submission.

    Raises:
        InputError: something given cannot be used.
    """
    import numpy as np

    from denoise_tasks import sidd_benchmark as sidd
    from img2img_recon.noise_level import estimate_sigma

    assert config.out is not None
    assert config.sidd_benchmark is not None
    sidd.check_submission_path(config.out, config.overwrite)
    noisy = sidd.read_benchmark(config.sidd_benchmark)
    method = config.make()
    if method.in_chans not in (None, 3):
        raise InputError(f"--model: {config.model} takes grey pictures, the benchmark is in colour")
    if method.trained_levels is not None:
        print(
            f"warning: {method.name} was trained on Gaussian noise, the benchmark has real noise",
            file=sys.stderr,
        )
    writable_folder(config.out.parent, "--out")
    denoised = np.empty_like(noisy)
    begin = time.perf_counter()
    # An image's blocks at a time, so that methods with a pool of processes can use it.
    for image in config.track(range(len(noisy)), "denoising", len(noisy)):
        blocks = list(noisy[image].astype(np.float32) / 255)
        sigmas = [
            in_image_units(255 * estimate_sigma(block) if config.sigma == "auto" else config.sigma)
            for block in blocks
        ]
        before, after = np.stack(blocks), np.stack(method.denoise_many(blocks, sigmas))
        denoised[image] = sidd.to_bytes(before + config.strength * (after - before))
    seconds = time.perf_counter() - begin
    megapixels = noisy[..., 0].size / 2**20  # the board's
    about = {"MethodName": method.name}
    sidd.write_submission(config.out, denoised, seconds / megapixels, config.overwrite, about)
    return config.out


@script
def main(words: Sequence[str] | None = None) -> None:
    """Denoise files, or make or check a submission, as the command line says."""
    config = parse_config(DenoiseConfig, words)
    submission = config.validate_submission
    if config.inputs:
        written, broken = denoise_files(config)
        what = written[0] if len(written) == 1 else f"{len(written)} pictures in {config.out}"
        print(f"denoised: {what}")
        if broken:
            print(
                f"left out, {len(broken)} that cannot be used:", *broken, sep="\n", file=sys.stderr
            )
            raise SystemExit(EXIT_SOME_BROKEN)
        return
    if submission is None:
        submission = denoise_benchmark(config)
    from denoise_tasks.sidd_benchmark import read_submission

    read_submission(submission)
    print(f"valid submission: {submission}")


if __name__ == "__main__":
    main()
