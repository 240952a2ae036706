"""Cases: noisy images with their clean versions, from photographs, pairs or SIDD's blocks, whole or of one split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from denoise_tasks.noise import noise_seed, noisy_copy, prepare_clean
from denoise_tasks.pairs import Pair, list_pairs
from denoise_tasks.picture_folders import list_pictures
from denoise_tasks.pictures import read_picture, read_spanned
from denoise_tasks.pixel_store import with_channels
from denoise_tasks.sidd_benchmark import read_validation
from denoise_tasks.splits import gaussian_split, pairs_split
from img2img_recon.support.errors import InputError, named

if TYPE_CHECKING:
    from denoise_tasks.evaluate import EvaluateConfig
    from denoise_tasks.trained import TrainedDenoiser

SPLIT_KEYS = ("data_path", "val_scenes", "val_share", "test_share", "split_seed")

CleanAndNoisy = tuple[np.ndarray, np.ndarray]


class Case(NamedTuple):
    """One noisy image to denoise.

    Attributes:
        name: unique among the cases.
        load: gives clean and noisy image, float32 (H, W, C) in [0, 1].
        sigma: known standard deviation of the noise in [0, 255] units; None for real noise.
        protocol: a key of `scoring.PROTOCOL_NOTES`.
    """

    name: str
    load: Callable[[], CleanAndNoisy]
    sigma: float | None
    protocol: str


def gaussian_case(path: Path, name: str, channels: int, sigma: float, protocol: str) -> Case:
    """A picture with noise of a level in [0, 255] units, made of 1 or 3 channels; `paper` seeds it by the name."""

    def load() -> CleanAndNoisy:
        pixels = with_channels(read_spanned(path).pixels, channels)
        with named(str(path)):
            clean = prepare_clean(pixels, protocol)
        return clean, noisy_copy(clean, sigma, protocol, noise_seed(protocol, name))

    return Case(name, load, sigma, protocol)


def pair_case(pair: Pair, channels: int) -> Case:
    """A whole photograph with real noise."""

    def load() -> CleanAndNoisy:
        clean = read_spanned(pair.clean, pair.noisy).pixels
        noisy = read_spanned(pair.noisy, pair.clean).pixels
        return with_channels(clean, channels), with_channels(noisy, channels)

    return Case(pair.name, load, None, "pairs")


def block_case(name: str, noisy: np.ndarray, clean: np.ndarray) -> Case:
    """One of SIDD's validation blocks, uint8 (H, W, 3)."""

    def load() -> CleanAndNoisy:
        return clean.astype(np.float32) / 255, noisy.astype(np.float32) / 255

    return Case(name, load, None, "pairs")


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
    if config.data_path is None:
        levels = [("SIDD validation blocks", _block_cases(config, channels))]
    elif config.sigma:
        levels = _gaussian_levels(config, config.data_path, runs, channels)
    else:
        pairs = _chosen_pairs(config, config.data_path, runs)
        title = f"{config.data_path.name}, real noise"
        levels = [(title, [pair_case(pair, channels) for pair in pairs])]
    for title, cases in levels:
        if not cases:
            raise InputError(f"--split: {config.split} of {title} has no image in it")
    return levels


def _block_cases(config: EvaluateConfig, channels: int) -> list[Case]:
    assert config.sidd_validation is not None
    if channels != 3:
        raise InputError("--sidd_validation: colour blocks, but --run is a grey network")
    noisy, clean = read_validation(*config.sidd_validation)
    return [
        block_case(f"image {i} block {j}", noisy[i, j], clean[i, j])
        for i, j in list(np.ndindex(noisy.shape[:2]))[: config.limit]
    ]


def _chosen_pairs(
    config: EvaluateConfig, folder: Path, runs: Sequence[TrainedDenoiser]
) -> list[Pair]:
    try:
        if config.split == "all":
            pairs = list_pairs(folder)
        else:
            stored = {key: runs[0].config[key] for key in SPLIT_KEYS}
            sides = pairs_split(**stored | {"data_path": folder})
            pairs = sides[1 if config.split == "val" else 2]
    except InputError as error:
        raise InputError(f"{error}; if its images are clean, give --sigma 15 25 50") from None
    for pair in pairs[: config.limit]:
        read_picture(pair.noisy)
        read_picture(pair.clean)
    return pairs[: config.limit]


def _gaussian_levels(
    config: EvaluateConfig, folder: Path, runs: Sequence[TrainedDenoiser], channels: int
) -> list[tuple[str, list[Case]]]:
    if config.split == "all":
        paths = list_pictures(folder)
    else:
        stored = {key: runs[0].config[key] for key in ("val_share", "test_share", "split_seed")}
        split = gaussian_split(folder, **stored)
        paths = [source.path for source in getattr(split, config.split)]
    names = {path: path.relative_to(folder).as_posix() for path in paths[: config.limit]}
    for path in names:
        read_picture(path)
    protocol = config.protocol or "standard"
    return [
        (
            f"{folder.name}, sigma {sigma:g}",
            [gaussian_case(path, name, channels, sigma, protocol) for path, name in names.items()],
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
