"""FastMRI's scores of reconstructed volumes.

Per volume, target and reconstruction are cropped to the target's width squared, and the data range
is the cropped target's maximum: what `fastmri.evaluate` does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastmri_plugin import Challenge
from fastmri_plugin.kspace import center_crop, check_finite, crop_size
from fastmri_plugin.listing import volume_paths
from fastmri_plugin.volumes import (
    TARGET_KEYS,
    VolumeInfo,
    acceleration_of,
    attribute,
    dataset_in,
    open_volume,
    read_reconstruction,
    read_whole_target,
)
from img2img_recon.metrics import volume_scores
from img2img_recon.perceptual_metrics import Score
from img2img_recon.support.errors import InputError, named
from img2img_recon.support.progress import Track, silent

MAX_THREADS = 8


def score_volume(
    target: np.ndarray, reconstruction: np.ndarray, metrics: Mapping[str, Score] | None = None
) -> dict[str, float]:
    """Score one volume as `fastmri.evaluate` does.

    Args:
        target: real, (slices, H, W).
        reconstruction: real, in the target's units, (slices, h, w): not smaller than the crop W x
            W, or W' x W' of a narrower volume.
        metrics: more scores, of `img2img_recon.perceptual_metrics`: means over slices divided by the
            target's maximum.

    Returns:
        `mse` (intensity squared), `nmse`, `psnr` (dB), `ssim`, and those of `metrics`.

    Raises:
        InputError: shapes that do not fit, values that are not finite or not real, a target of
            zeros.
    """
    for name, volume in (("target", target), ("reconstruction", reconstruction)):
        if volume.ndim != 3 or volume.size == 0:
            raise InputError(f"the {name} has shape {volume.shape}, expected (slices, H, W)")
        if not np.issubdtype(volume.dtype, np.floating):
            raise InputError(f"the {name} is {volume.dtype}, expected real magnitudes")
        check_finite(volume, f"the {name}")
    if len(target) != len(reconstruction):
        raise InputError(
            f"the reconstruction has {len(reconstruction)} slices, the target {len(target)}"
        )
    side = target.shape[-1]
    size = (
        min(side, target.shape[-2], reconstruction.shape[-2]),
        min(side, reconstruction.shape[-1]),
    )
    target, reconstruction = center_crop(target, size), center_crop(reconstruction, size)
    data_range = float(target.max())
    if data_range <= 0:
        raise InputError("the target's maximum is not positive, its scores are not defined")
    difference = target.astype(np.float64) - reconstruction
    scaled = [volume[..., None] / data_range for volume in (target, reconstruction)]
    return {
        "mse": float(np.mean(difference**2)),
        **volume_scores(target, reconstruction, data_range=data_range),
        **{name: score(*scaled) for name, score in (metrics or {}).items()},
    }


@dataclass(frozen=True)
class ScoredVolume:
    """One volume's scores and what groups it with others.

    Attributes:
        name: the file name.
        acquisition: the pulse sequence's name, "" when not stored.
        acceleration: nominal, None when not stored.
        slices: number of slices.
        scores: by metric, see `score_volume`.
    """

    name: str
    acquisition: str
    acceleration: float | None
    slices: int
    scores: Mapping[str, float]


def volume_names(folder: Path) -> list[str]:
    """Names of the HDF5 files in a folder, sorted; hidden files do not count."""
    return [path.name for path in volume_paths(folder)] if folder.is_dir() else []


def find_targets(target_path: Path, predictions_path: Path, challenge: Challenge) -> Path:
    """Find the folder of target files that `target_path` stands for.

    That is `target_path` itself if it holds `*.h5` files; else the one of its folders
    `targets/{challenge}_test` and `{challenge}_val` that holds files named as the predictions are.

    Raises:
        InputError: none does, or both do.
    """
    for name, folder in (("--target_path", target_path), ("--predictions_path", predictions_path)):
        if not folder.is_dir():
            raise InputError(f"{name}: {folder} is not a folder")
    predicted = volume_names(predictions_path)
    if not predicted:
        raise InputError(f"--predictions_path: no *.h5 file in {predictions_path}")
    if volume_names(target_path):
        return target_path
    candidates = [target_path / "targets" / f"{challenge}_test", target_path / f"{challenge}_val"]
    fitting = [folder for folder in candidates if {*volume_names(folder)} & {*predicted}]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        folders = " and ".join(map(str, fitting))
        raise InputError(f"--target_path: the predictions fit both {folders}; give one of the two")
    raise InputError(
        f"--target_path: no *.h5 file in {target_path}, and in its targets/{challenge}_test and "
        f"{challenge}_val no file named as the predictions are (such as {predicted[0]})"
    )


@dataclass(frozen=True)
class TargetFile:
    """Where a volume's target is, and what groups its scores with others.

    Attributes:
        path: the file, which may be the volume's own.
        challenge: which target of the file.
        acquisition: the pulse sequence's name, "" when not stored.
        acceleration: nominal, None when not stored.
    """

    path: Path
    challenge: Challenge
    acquisition: str
    acceleration: float | None

    @classmethod
    def read(cls, path: Path, challenge: Challenge) -> TargetFile:
        """What the file says of itself.

        Raises:
            InputError: it holds no target.
        """
        with open_volume(path) as volume, named(str(path)):
            dataset_in(volume, TARGET_KEYS[challenge], "target")
            acquisition = attribute(volume, "acquisition")
            return cls(path, challenge, acquisition, acceleration_of(volume))

    @classmethod
    def of(cls, info: VolumeInfo) -> TargetFile:
        """Of a listed volume: in its own file or, in a frozen split, apart.

        Raises:
            InputError: there is none.
        """
        folder = info.path.parent
        apart = folder.parent / "targets" / folder.name / info.name
        if info.target_shape is None and not apart.is_file():
            raise InputError(f"{info.path}: no target in it, nor at {apart}")
        return cls.read(info.path if info.target_shape else apart, info.challenge)

    def narrow_size(self, target: np.ndarray) -> tuple[int, int] | None:
        """(h, w) of the image by its k-space, in the target's file or, in a frozen split, beside it, if at all."""
        own = self.path.resolve()
        for path in (own, own.parent.parent.parent / own.parent.name / own.name):
            if path.is_file():
                with open_volume(path) as volume:
                    if "kspace" in volume:
                        return crop_size(target.shape[-2:], dataset_in(volume, "kspace").shape)
        return None


def select_targets(
    targets: Sequence[TargetFile], acquisition: str | None, acceleration: int | None
) -> dict[str, TargetFile]:
    """The targets of this acquisition and this stored acceleration (None takes all) by file name.

    Raises:
        InputError: there is none.
    """
    selected = list(targets)
    for name, wanted in (("acquisition", acquisition), ("acceleration", acceleration)):
        if wanted is not None:
            found = sorted({str(getattr(item, name) or "(none)") for item in selected})
            selected = [item for item in selected if getattr(item, name) == wanted]
            if not selected:
                raise InputError(f"--{name}: given {wanted}, the targets have {', '.join(found)}")
    return {item.path.name: item for item in selected}


def _score(
    item: TargetFile,
    reconstruction: np.ndarray,
    source: Path,
    metrics: Mapping[str, Score] | None,
) -> ScoredVolume:
    target = read_whole_target(item.path, item.challenge)
    with named(str(source)):
        if reconstruction.ndim == 3 and target.ndim == 3:
            (height, width), side = reconstruction.shape[-2:], target.shape[-1]
            least = min(side, target.shape[-2])
            # Only a k-space narrower than the image explains a smaller reconstruction.
            if (height < least or width < side) and (height, width) != item.narrow_size(target):
                raise InputError(
                    f"slices of {height} x {width}, expected at least {least} x {side}, the target's"
                )
        scores = score_volume(target, reconstruction, metrics)
    return ScoredVolume(item.path.name, item.acquisition, item.acceleration, len(target), scores)


def score_reconstructions(
    reconstructions: Iterable[tuple[str, np.ndarray]],
    targets: Mapping[str, TargetFile],
    source: Path,
    num_workers: int = 1,
    metrics: Mapping[str, Score] | None = None,
) -> list[ScoredVolume]:
    """Score reconstructions as they are made or read.

    Args:
        reconstructions: file name and real (slices, H, W) in the target's units.
        targets: by file name.
        source: where the reconstructions come from, for the errors.
        num_workers: threads; each holds one volume.
        metrics: more scores, see `score_volume`.

    Returns:
        The scored volumes, in the order of the reconstructions.

    Raises:
        InputError: a reconstruction of another shape than its target, or not finite; it is named.
    """
    scored: list[ScoredVolume] = []
    workers = max(1, min(num_workers, MAX_THREADS))
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[ScoredVolume]] = deque()
        try:
            for name, volume in reconstructions:
                waiting.append(pool.submit(_score, targets[name], volume, source / name, metrics))
                if len(waiting) > workers:
                    scored.append(waiting.popleft().result())
            scored += [future.result() for future in waiting]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return scored


def score_folders(
    targets: Path,
    predictions: Path,
    challenge: Challenge,
    *,
    acquisition: str | None = None,
    acceleration: int | None = None,
    num_workers: int = 2,
    metrics: Mapping[str, Score] | None = None,
    track: Track = silent,
) -> list[ScoredVolume]:
    """Score a folder of reconstructions against a folder of targets, file by file.

    Args:
        targets: folder of fastMRI files with the challenge's target.
        predictions: folder of files of the same names with `reconstruction`.
        challenge: which target.
        acquisition: score only volumes of this acquisition.
        acceleration: score only volumes of this stored acceleration.
        num_workers: threads; each holds one volume.
        metrics: more scores, see `score_volume`.
        track: shows the progress over volumes.

    Raises:
        InputError: naming the file: a prediction missing, without a target, of another shape, not
            finite, or a file that cannot be read.
    """
    names = volume_names(targets)
    if not names:
        raise InputError(f"{targets}: no *.h5 file in this folder")
    files = [TargetFile.read(targets / name, challenge) for name in names]
    selected = select_targets(files, acquisition, acceleration)
    predicted = set(volume_names(predictions))
    missing = [name for name in selected if name not in predicted]
    if missing:
        raise InputError(
            f"{predictions / missing[0]}: no such prediction "
            f"({len(missing)} of {len(selected)} volumes are missing)"
        )
    surplus = sorted(predicted - set(names))
    if surplus:
        raise InputError(
            f"{predictions / surplus[0]}: no target of this name in {targets} "
            f"({len(surplus)} such predictions)"
        )
    read = ((name, read_reconstruction(predictions / name)) for name in selected)
    tracked = track(read, "scoring volumes", len(selected))
    return score_reconstructions(tracked, selected, predictions, num_workers, metrics)
