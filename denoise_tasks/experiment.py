"""One denoising run: look everything up and check it, build what is trained, score it afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from denoise_tasks.config import (
    LAPTOP_NETWORKS,
    LAPTOP_RECIPE,
    PAPER_RECIPES,
    SIDD_CENTRE,
    SIDD_VAL_SCENES,
    TrainConfig,
    default_run_dir,
    identity,
)
from denoise_tasks.data import (
    DenoisingData,
    EvalImages,
    TrainCrops,
    Window,
    grid_windows,
    whole_windows,
)
from denoise_tasks.images import (
    PixelStore,
    Source,
    Split,
    builtin_sources,
    list_sources,
    name_in,
    open_store,
    split_groups,
    subset,
)
from denoise_tasks.inference import build_module, load_denoiser
from denoise_tasks.noise import PAPER_CROP, finish
from denoise_tasks.panels import denoising_panel
from denoise_tasks.sidd import Pair, list_pairs, list_sidd, split_scenes
from img2img_recon.metrics import image_scores
from img2img_recon.networks.zoo import complete_config, list_models
from img2img_recon.support.errors import InputError
from img2img_recon.support.progress import Track
from img2img_recon.support.seeds import seed_of
from img2img_recon.training.run_folder import RunFolder
from img2img_recon.training.runner import Parts, Say, count_parameters, say_nothing, track_of
from img2img_recon.training.trainer import compile_networks, make_trainer, pick_device

PANELS = 8
MIN_SCORED = 11  # side of SSIM's window


@dataclass(frozen=True)
class Setup:
    """A run with everything looked up and checked, before anything is trained."""

    config: TrainConfig
    options: dict[str, Any]
    train: TrainCrops
    val: EvalImages
    run: RunFolder
    content: dict[str, Any]
    say: Say

    @property
    def track(self) -> Track:
        """Progress bars, if wanted."""
        return track_of(self.config.progress)

    @property
    def train_images(self) -> int:
        """How many images the training crops are cut from."""
        return len({window.image for window in self.train.windows})


def prepare(config: TrainConfig, say: Say = say_nothing) -> Setup:
    """Find and decode the data and settle every open setting.

    Args:
        config: what was asked for.
        say: takes the messages for the person at the terminal.

    Raises:
        InputError: data, flags or run folder that cannot be used.
    """
    if config.model not in list_models():
        raise InputError(f"--model: given {config.model}, allowed: {', '.join(list_models())}")
    if config.task == "gaussian" and config.data_path is None:
        if config.test_share:
            raise InputError(
                "--test_share: the photographs of scikit-image have fixed sides; give --data_path"
            )
        say(
            "No --data_path: using the photographs that come with scikit-image, split by picture, and "
            "settings fit for a laptop."
        )
        config = config.with_recipe({**LAPTOP_RECIPE, **LAPTOP_NETWORKS.get(config.model, {})})
    else:
        config = config.with_recipe(PAPER_RECIPES[config.task])
    config = replace(config, protocol=config.protocol or "standard")
    crop = config.crop_size or PAPER_CROP
    given = {"in_chans": config.channels, "out_chans": config.channels, **config.given_options()}
    options = complete_config(config.model, given, (crop, crop))
    train, val = (_gaussian if config.task == "gaussian" else _pairs)(config, crop, say)
    content = identity(config, options)
    run = RunFolder(config.run_dir or default_run_dir(config, content))
    return Setup(config, options, train, val, run, content, say)


def gaussian_split(
    data_path: Path | None, val_share: float, test_share: float, split_seed: int
) -> Split:
    """The images of a run on Gaussian noise, split by class or picture."""
    if data_path is None:
        return builtin_sources()
    return split_groups(list_sources(data_path), val_share, test_share, split_seed, "--data_path")


def pairs_split(
    data_path: Path | None,
    pairs: Path | None,
    val_scenes: Sequence[str] | None,
    val_share: float,
    test_share: float,
    split_seed: int,
    on_broken: Say | None = None,
) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """The pairs of a run on real noise, split by scene: training, validation and test.

    With `val_scenes` (SIDD has default ones) `test_share` is one of the other scenes. `on_broken` is told
    of pairs that cannot be read.
    """
    folder = pairs or data_path
    assert folder is not None
    found = list_pairs(folder, on_broken) if pairs else list_sidd(folder, on_broken)
    by_path = {pair.noisy: pair for pair in found}

    def shares(rest: Sequence[Pair], first: float, second: float, flag: str) -> list[list[Pair]]:
        sources = [Source(pair.noisy, pair.scene) for pair in rest]
        sides = split_groups(sources, first, second, split_seed, flag)
        return [[by_path[source.path] for source in side] for side in sides]

    if val_scenes is None and pairs is None:
        val_scenes = SIDD_VAL_SCENES
    if val_scenes is None:
        train, val, test = shares(found, val_share, test_share, "--pairs")
        return train, val, test
    train, val = split_scenes(found, val_scenes)
    if not test_share:
        return train, val, []
    train, test, _ = shares(train, test_share, 0, "--test_share")
    return train, val, test


def _gaussian(config: TrainConfig, crop: int, say: Say) -> tuple[TrainCrops, EvalImages]:
    train, val, _ = gaussian_split(
        config.data_path, config.val_share, config.test_share, config.split_seed
    )
    root = config.data_path or train[0].path.parent
    val_count = None if config.val_images is None else min(config.val_images, len(val))
    train = subset(train, config.train_images, root, config.split_seed, "--train_images")
    val = subset(val, val_count, root, config.split_seed, "--val_images")
    paper = config.protocol == "paper"

    def store(sources: Sequence[Source], centre_size: int | None) -> PixelStore:
        return open_store(
            [source.path for source in sources],
            root=root,
            channels=config.channels,
            centre_size=centre_size,
            on_broken=lambda message: say(f"skipped: {message}"),
            track=track_of(config.progress),
        )

    def windows_of(pixels: PixelStore, repeats: int, side: int) -> list[Window]:
        windows = whole_windows(pixels, repeats)
        if paper:
            windows = [window for window in windows if pixels.maxima[window.image] > 0]
            for number in sorted(set(range(len(pixels.names))) - {w.image for w in windows}):
                say(f"skipped: {pixels.names[number]}: all black, cannot be divided by its maximum")
        return _large_enough(config, pixels, windows, side)

    clean = store(train, PAPER_CROP if paper else None)
    windows = windows_of(clean, config.crops_per_image or 1, crop)
    # Validated on centres under both protocols: whole photographs would take longer than training does.
    held = store(val, PAPER_CROP)
    return (
        TrainCrops(
            clean,
            windows,
            crop,
            config.seed,
            divide_by_max=paper,
            augment=bool(config.augment),
            fixed=config.fixed_noise,
        ),
        EvalImages(
            held,
            windows_of(held, 1, MIN_SCORED),
            protocol=config.protocol or "standard",
            sigma=config.sigma,
        ),
    )


def _pairs(config: TrainConfig, crop: int, say: Say) -> tuple[TrainCrops, EvalImages]:
    folder = config.pairs or config.data_path
    assert folder is not None
    train, val, _ = pairs_split(
        config.data_path,
        config.pairs,
        config.val_scenes,
        config.val_share,
        config.test_share,
        config.split_seed,
        lambda message: say(f"skipped: {message}"),
    )
    sources = [Source(pair.noisy, pair.scene) for pair in train]
    kept = {
        s.path
        for s in subset(sources, config.train_images, folder, config.split_seed, "--train_images")
    }
    train = [pair for pair in train if pair.noisy in kept]
    scenes = ", ".join(sorted({pair.scene for pair in val}))
    say(f"validating on the scenes {scenes}")

    def store(paths: Sequence[Path], skip_broken: bool) -> PixelStore:
        return open_store(
            paths,
            root=folder,
            channels=config.channels,
            centre_size=SIDD_CENTRE,
            skip_broken=skip_broken,
            on_broken=lambda message: say(f"skipped: {message}"),
            track=track_of(config.progress),
        )

    def stores(chosen: Sequence[Pair]) -> tuple[PixelStore, PixelStore]:
        clean, noisy = (
            store([getattr(pair, side) for pair in chosen], True) for side in ("clean", "noisy")
        )
        if clean.broken or noisy.broken:
            # A pair with one picture is none.
            readable = {*clean.names, *noisy.names}
            chosen = [
                pair
                for pair in chosen
                if {name_in(pair.clean, folder), name_in(pair.noisy, folder)} <= readable
            ]
            if not chosen:
                raise InputError(f"{folder}: no pair of which both pictures can be read")
            clean, noisy = (
                store([getattr(pair, side) for pair in chosen], False)
                for side in ("clean", "noisy")
            )
        return clean, noisy

    def patches(pixels: PixelStore, size: int) -> list[Window]:
        kept = {w.image for w in _large_enough(config, pixels, whole_windows(pixels), crop)}
        return [window for window in grid_windows(pixels, size) if window.image in kept]

    clean, noisy = stores(train)
    windows = patches(clean, crop)
    val_clean, val_noisy = stores(val)
    large = min(min(shape[:2]) for shape in val_clean.shapes) >= PAPER_CROP
    val_windows = patches(val_clean, max(crop, PAPER_CROP) if large else crop)
    if config.val_images is not None and len(val_windows) > config.val_images:
        val_windows = sorted(
            sorted(val_windows, key=lambda w: seed_of("val", config.split_seed, *w))[
                : config.val_images
            ]
        )
    return (
        TrainCrops(clean, windows, crop, config.seed, noisy=noisy, augment=bool(config.augment)),
        EvalImages(val_clean, val_windows, noisy=val_noisy),
    )


def _large_enough(
    config: TrainConfig, store: PixelStore, windows: list[Window], side: int
) -> list[Window]:
    kept = [window for window in windows if min(window.height, window.width) >= side]
    if len(kept) == len(windows):
        return kept
    small = next(w for w in windows if min(w.height, w.width) < side)
    if not config.skip_small or not kept:
        raise InputError(
            f"--crop_size: {store.names[small.image]} is {small.height} x {small.width}, smaller than "
            f"the {side} x {side} needed; give a smaller crop"
            + (" or --skip_small" if kept else "")
        )
    return kept


def build(setup: Setup) -> Parts:
    """Make the module, the data module and the trainer of a run.

    Raises:
        InputError: settings that do not go together.
    """
    config = setup.config
    pl.seed_everything(config.seed, verbose=False)
    module = build_module(setup.content)
    if config.compile:
        compile_networks(module)
    data = DenoisingData(
        setup.train, setup.val, config.batch_size or 1, config.num_workers or 0, config.seed
    )
    options = config.trainer_options("val_metrics/psnr", "max")
    return Parts(module, data, make_trainer(setup.run, setup.content, options))


def describe(setup: Setup, parts: Parts) -> str:
    """One line on what is about to be trained."""
    return (
        f"{setup.config.model}: {count_parameters(parts.module):,} parameters; "
        f"{len(setup.train)} crops of {setup.train_images} images per epoch, "
        f"{len(setup.val)} validation images"
    )


def score(setup: Setup) -> dict[str, Any]:
    """Denoise the validation images with the best checkpoint; score them and draw some."""
    config, run = setup.config, setup.run
    denoiser = load_denoiser(run.path)
    device = pick_device(config.accelerator)
    network = denoiser.module.to(device)
    protocol = config.protocol or "standard"
    rows: dict[str, dict[str, dict[str, float]]] = {"noisy": {}, config.model: {}}
    with torch.inference_mode():
        for number in setup.track(range(len(setup.val)), "scoring", len(setup.val)):
            clean, noisy = setup.val.arrays(number)
            name = setup.val.name(number)
            batch = torch.from_numpy(np.moveaxis(noisy, 2, 0)[None].copy()).to(device)
            output = network(batch)[0].float().cpu().numpy()
            denoised = finish(np.moveaxis(output, 0, 2), protocol)
            rows["noisy"][name] = image_scores(clean, noisy, data_range=1)
            rows[config.model][name] = image_scores(clean, denoised, data_range=1)
            if number < PANELS:
                denoising_panel(
                    run.figures / f"{number:02}-{Path(name).stem}.png",
                    {"noisy": noisy, config.model: denoised},
                    clean,
                    title=name,
                )
    return {
        "task": config.task,
        "model": config.model,
        "sigma": config.sigma,
        "protocol": config.protocol,
        "train_images": setup.train_images,
        "scored_on": "validation images; the checkpoint was chosen on them too",
        "images": rows,
        "mean": {method: mean_scores(scores) for method, scores in rows.items()},
    }


def mean_scores(rows: dict[str, dict[str, float]]) -> dict[str, float]:
    """Mean of every score over images."""
    keys = next(iter(rows.values())).keys()
    return {key: float(np.mean([scores[key] for scores in rows.values()])) for key in keys}
