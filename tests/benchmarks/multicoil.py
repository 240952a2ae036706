"""Several coils: the package's network beside SENSE, total variation and l1-wavelet with ESPIRiT maps.

    python -m tests.benchmarks.multicoil --train brain_mri_train.h5 --test brain_mri_val.h5 [--real KSPACE.npy]

The slices are complex images (`image` (N, 2, H, W), `scale` (N,)); eight coils and noise of 1 % of each slice's maximum
are simulated, so this is retrospective. Regularizations are chosen by SSIM on `CHOSEN_ON` slices of `--train` and kept
for `--real`, measured k-space (coils, H, W). Where that has zeros among its samples, its reference is blurred, and who
restores what is missing moves away from it. It is then scored in three ways: as it is, the zeros of measured columns
counting as measured; at its places, every method being told the samples, and the places alone counting that the file
holds; filled in, an l1-wavelet reconstruction standing where nothing was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import h5py
import numpy as np
import sigpy
import torch
from rich.console import Console
from rich.table import Table
from sigpy.mri import birdcage_maps
from sigpy.mri.app import L1WaveletRecon, SenseRecon

from fastmri_plugin import load
from fastmri_plugin.compressed_sensing import SliceProblem, coil_maps, prepare_slice, solve
from fastmri_plugin.kspace import rss
from img2img_recon.metrics import psnr, volume_ssim
from img2img_recon.support.cli import flag, parse_config, run_script
from img2img_recon.support.files import write_json

COILS, NOISE, CENTRE = 8, 0.01, 24
CHOSEN_ON, EVERY = 4, 4
# A place belongs to the head where the reference has at least so much of its maximum.
HEAD = 0.1
FILLED_BY = 1e-3  # regularization of what fills in measured k-space that has zeros
CANDIDATES = {
    "SENSE": (3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
    "tv": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "l1_wavelet": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
}
NETWORK = "mri-brain-multicoil"
METHODS = ("zero-filled", *CANDIDATES, NETWORK)


@dataclass(frozen=True)
class Slice:
    """Undersampled k-space (coils, H, W) and what it holds: columns (W,) or samples (H, W).

    Attributes:
        reference: (H, W), the root-sum-of-squares of all k-space.
        places: bool (H, W), the places of k-space that the reference has; None for all.
    """

    kspace: np.ndarray
    mask: np.ndarray
    reference: np.ndarray
    places: np.ndarray | None = None

    @cached_property
    def problem(self) -> SliceProblem:
        """With coil maps, which every classical method takes."""
        return prepare_slice(self.kspace, self.mask, self.reference.shape)

    def magnitude(self, coils: np.ndarray) -> np.ndarray:
        """What is scored of coil images (coils, H, W): their root-sum-of-squares, of the places alone."""
        if self.places is not None:
            kspace = sigpy.fft(coils, axes=(-2, -1)) * self.places
            coils = sigpy.ifft(kspace, axes=(-2, -1))
        return rss(coils)


@dataclass(frozen=True)
class MulticoilBenchmark:
    """Score reconstructions of undersampled k-space of several coils."""

    train: Path = flag(help="slices to choose regularizations on")
    test: Path = flag(help="slices to score")
    real: Path | None = flag(None, help="measured k-space of one slice, .npy, scored too")
    figure: Path | None = flag(None, help="draw the reconstructions of the last slice scored")
    json: Path | None = flag(None, help="write the figures to this file")


def equispaced(width: int) -> np.ndarray:
    """Every fourth column and `CENTRE` in the middle, bool (W,)."""
    columns = np.arange(width) % 4 == 0
    return columns | (abs(np.arange(width) - width // 2 + 0.5) < CENTRE / 2)


def random_3x(width: int) -> np.ndarray:
    """About a third of the columns, with `CENTRE` in the middle, bool (W,)."""
    share = (width / 3 - CENTRE) / (width - CENTRE)
    columns = np.random.default_rng(0).random(width) < share
    return columns | (abs(np.arange(width) - width // 2 + 0.5) < CENTRE / 2)


MASKS: dict[str, Callable[[int], np.ndarray]] = {
    f"equispaced 4x, {CENTRE} centre lines": equispaced,
    f"random 3x, {CENTRE} centre lines": random_3x,
}


def simulated(file: Path, numbers: Sequence[int], mask: Callable[[int], np.ndarray]) -> list[Slice]:
    """Slices of a file, each with coils, noise and mask; the reference is that of all noisy samples."""
    slices = []
    with h5py.File(file) as content:
        for number in numbers:
            real, imaginary = content["image"][number] * content["scale"][number]
            image = (real + 1j * imaginary).astype(np.complex64)
            image /= abs(image).max()
            rng = np.random.default_rng(number)
            noise = NOISE * rng.standard_normal((2, COILS, *image.shape))
            coils = image * birdcage_maps((COILS, *image.shape)) + noise[0] + 1j * noise[1]
            slices.append(masked(sigpy.fft(coils, axes=(-2, -1)).astype(np.complex64), mask))
    return slices


def masked(
    kspace: np.ndarray, mask: Callable[[int], np.ndarray], places: np.ndarray | None = None
) -> Slice:
    """K-space (coils, H, W) under a mask, and its reference."""
    columns = mask(kspace.shape[-1])
    known = columns if places is None else columns & places
    return Slice(kspace * columns, known, rss(sigpy.ifft(kspace, axes=(-2, -1))), places)


def filled_in(kspace: np.ndarray) -> np.ndarray:
    """K-space (coils, H, W) with an l1-wavelet reconstruction where there are zeros."""
    places = kspace.any(axis=0)
    scale = rss(sigpy.ifft(kspace, axes=(-2, -1))).max()
    # Of the coils themselves: the network knows no combinations of them.
    maps = coil_maps(kspace, places)
    recon = L1WaveletRecon(
        kspace / scale,
        maps,
        FILLED_BY,
        weights=places.astype(np.float32),
        alpha=1,
        max_iter=100,
        show_pbar=False,
    )
    made = sigpy.fft(scale * maps * recon.run(), axes=(-2, -1))
    return np.where(places, kspace, made).astype(np.complex64)


def reconstructed(method: str, given: Slice, value: float) -> np.ndarray:
    """The magnitude (H, W) that a method makes, with this regularization if it has one."""
    if method == "zero-filled":
        return given.magnitude(sigpy.ifft(given.kspace, axes=(-2, -1)))
    if method == NETWORK:
        return given.magnitude(network_coils(given))
    problem = given.problem
    if method == "SENSE":
        recon = SenseRecon(
            problem.kspace,
            problem.maps,
            lamda=value,
            weights=problem.sampled,
            max_iter=60,
            show_pbar=False,
        )
        image = recon.run()
    else:
        image = solve(problem, method, value)
    return given.magnitude(problem.scale * problem.maps * image)


def network_coils(given: Slice) -> np.ndarray:
    """The network's coil images (coils, H, W)."""
    mask = torch.from_numpy(given.mask).view(1, 1, -1, given.mask.shape[-1])
    with torch.inference_mode():
        return load(NETWORK).coil_images(torch.from_numpy(given.kspace)[None], mask)[0].numpy()


def scores(reference: np.ndarray, image: np.ndarray) -> tuple[float, float]:
    """PSNR (dB) and SSIM as `fastmri.evaluate` has them."""
    pair, data_range = (reference[None], image[None]), float(reference.max())
    return psnr(*pair, data_range=data_range), volume_ssim(*pair, data_range=data_range)


def in_the_head(reference: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The image where the head is, its intensities matched to the reference's; the reference elsewhere."""
    head = reference > HEAD * reference.max()
    factor = (reference[head] @ image[head]) / (image[head] @ image[head])
    return np.where(head, factor * image, reference)


def choose(slices: Sequence[Slice]) -> dict[str, float]:
    """The regularization of the best mean SSIM of each method."""
    best = {}
    for method, values in CANDIDATES.items():
        found = [
            [scores(one.reference, reconstructed(method, one, value))[1] for value in values]
            for one in slices
        ]
        best[method] = values[int(np.argmax(np.mean(found, axis=0)))]
    return best


def main(words: Sequence[str] | None = None) -> None:
    """Print a table for each mask."""
    config = parse_config(MulticoilBenchmark, words)
    with h5py.File(config.train) as train, h5py.File(config.test) as test:
        numbers = [len(file["image"]) for file in (train, test)]
    chosen_on = np.linspace(0, numbers[0] - 1, CHOSEN_ON + 2).astype(int)[1:-1].tolist()
    report = {}
    for title, mask in MASKS.items():
        best = choose(simulated(config.train, chosen_on, mask))
        data = {
            "simulated coils": simulated(config.test, range(EVERY // 2, numbers[1], EVERY), mask)
        }
        if config.real:
            kspace = np.load(config.real)
            data["measured"] = [masked(kspace, mask)]
            if not (places := kspace.any(axis=0)).all():
                data["measured, at its places"] = [masked(kspace, mask, places)]
                data["measured, filled in"] = [masked(filled_in(kspace), mask)]
        for kind, slices in data.items():
            table = Table("method", "regularization", "whole image", "head, intensities matched")
            table.title = f"{kind}, {title}, {len(slices)} slices: PSNR (dB) / SSIM"
            images: dict[str, np.ndarray] = {}
            for method in METHODS:
                whole, head = [], []
                for one in slices:
                    images[method] = image = reconstructed(method, one, best.get(method, 0.0))
                    whole.append(scores(one.reference, image))
                    head.append(scores(one.reference, in_the_head(one.reference, image)))
                means = [np.mean(found, axis=0).tolist() for found in (whole, head)]
                report[f"{kind}, {title}, {method}"] = means
                cells = [f"{psnr:.2f} / {ssim:.4f}" for psnr, ssim in means]
                table.add_row(method, f"{best[method]:g}" if method in best else "", *cells)
            Console(width=110).print(table)
            if config.figure:
                draw(config.figure, images, slices[-1].reference)
    if config.json:
        write_json(config.json, report)


def draw(path: Path, images: dict[str, np.ndarray], reference: np.ndarray) -> None:
    """The images beside their reference, with their errors."""
    from img2img_recon.figures import reconstruction_panel

    reconstruction_panel(path, images, reference)


if __name__ == "__main__":
    run_script(main)
