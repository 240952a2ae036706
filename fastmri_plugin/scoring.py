"""Scores of reconstructed volumes: fastMRI's figures per volume, then means over groups of volumes.

Per volume, target and reconstruction are cropped to the target's width squared, and the data range
is the cropped target's maximum: what `fastmri.evaluate` does. A group's figure is the mean over
volumes, whatever their numbers of slices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmri_plugin.volumes import (
    TARGET_KEYS,
    Challenge,
    center_crop,
    crop_size,
    open_volume,
    read_reconstruction,
)
from img2img_recon.metrics import volume_scores
from img2img_recon.support.errors import InputError
from img2img_recon.support.progress import Track, silent

if TYPE_CHECKING:
    from rich.table import Table

METRICS = ("mse", "nmse", "psnr", "ssim")
MAX_THREADS = 8


def score_volume(target: np.ndarray, reconstruction: np.ndarray) -> dict[str, float]:
    """Score one volume as `fastmri.evaluate` does.

    Args:
        target: real, (slices, H, W).
        reconstruction: real, in the target's units, (slices, h, w): not smaller than the crop W x
            W, or W' x W' of a narrower volume.

    Returns:
        `mse` (intensity squared), `nmse`, `psnr` (dB) and `ssim`.

    Raises:
        InputError: shapes that do not fit, values that are not finite or not real, a target of
            zeros.
    """
    for name, volume in (("target", target), ("reconstruction", reconstruction)):
        if volume.ndim != 3 or volume.size == 0:
            raise InputError(f"the {name} has shape {volume.shape}, expected (slices, H, W)")
        if not np.issubdtype(volume.dtype, np.floating):
            raise InputError(f"the {name} is {volume.dtype}, expected real magnitudes")
        # Any NaN or infinity shows in the sum; float64 keeps large finite values from doing the
        # same.
        if not np.isfinite(volume.sum(dtype=np.float64)):
            raise InputError(f"the {name} holds NaN or infinite values")
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
    return {
        "mse": float(np.mean(difference**2)),
        **volume_scores(target, reconstruction, data_range=data_range),
    }


@dataclass(frozen=True)
class ScoredVolume:
    """One volume's scores and what groups it with others.

    Attributes:
        name: the file name.
        acquisition: the pulse sequence's name, "" when not stored.
        acceleration: nominal, None when not stored.
        slices: number of slices.
        scores: by metric, see `METRICS`.
    """

    name: str
    acquisition: str
    acceleration: int | None
    slices: int
    scores: Mapping[str, float]


@dataclass(frozen=True)
class ScoreRow:
    """Scores of a group of volumes.

    Attributes:
        acquisition: the group's acquisition, None for all.
        acceleration: the group's acceleration, None for all.
        volumes: how many volumes.
        mean: mean over volumes by metric.
        std: sample standard deviation over volumes by metric, 0 for a single volume.
    """

    acquisition: str | None
    acceleration: int | None
    volumes: int
    mean: Mapping[str, float]
    std: Mapping[str, float]

    @property
    def label(self) -> str:
        """The group in words."""
        parts = []
        if self.acquisition is not None:
            parts.append(self.acquisition or "acquisition not stored")
        if self.acceleration is not None:
            parts.append(f"{self.acceleration}x")
        return " ".join(parts) or "all"


def summarise(scores: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Mean over volumes of each metric; empty without a volume."""
    return {name: float(np.mean(values)) for name, values in _columns(scores).items()}


def _columns(scores: Iterable[Mapping[str, float]]) -> dict[str, list[float]]:
    rows = list(scores)
    names = [name for name in METRICS if rows and all(name in row for row in rows)]
    return {name: [row[name] for row in rows] for name in names}


def _row(
    volumes: Sequence[ScoredVolume], acquisition: str | None, acceleration: int | None
) -> ScoreRow:
    scores = [volume.scores for volume in volumes]
    std = {
        name: float(np.std(values, ddof=1))
        if len(values) > 1 and np.isfinite(values).all()
        else 0.0
        for name, values in _columns(scores).items()
    }
    return ScoreRow(acquisition, acceleration, len(volumes), summarise(scores), std)


def group_scores(volumes: Sequence[ScoredVolume]) -> list[ScoreRow]:
    """One row for all volumes, one per acquisition, one per acceleration, one per pair of them.

    Pairs are listed where there are several acquisitions and several accelerations; volumes that
    store no acceleration are in no acceleration's row.
    """
    acquisitions = sorted({volume.acquisition for volume in volumes})
    accelerations = sorted({v.acceleration for v in volumes if v.acceleration is not None})
    keys: list[tuple[str | None, int | None]] = [(None, None)]
    keys += [(acquisition, None) for acquisition in acquisitions]
    keys += [(None, acceleration) for acceleration in accelerations]
    if len(acquisitions) > 1 and len(accelerations) > 1:
        keys += [(one, other) for one in acquisitions for other in accelerations]
    rows = []
    for acquisition, acceleration in keys:
        members = [
            volume
            for volume in volumes
            if acquisition in (None, volume.acquisition)
            and acceleration in (None, volume.acceleration)
        ]
        if members:
            rows.append(_row(members, acquisition, acceleration))
    return rows


def groups_table(rows: Sequence[ScoreRow]) -> Table:
    """Format groups for the terminal: mean and, as fastMRI, +/- two standard deviations."""
    from rich.table import Table

    table = Table()
    table.add_column("volumes of")
    for heading in ("number", *(name.upper() for name in METRICS)):
        table.add_column(heading, justify="right")
    for row in rows:
        figures = [f"{row.mean[name]:.4g} +/- {2 * row.std[name]:.2g}" for name in METRICS]
        table.add_row(row.label, str(row.volumes), *figures)
    return table


def scores_table(
    methods: Mapping[str, Mapping[str, Mapping[str, float]]], most_volumes: int = 8
) -> Table:
    """Format scores by method and file name: a section per volume, then the means, best SSIM last.

    Of more than `most_volumes` volumes only the means are shown.
    """
    from rich.table import Table

    table = Table()
    for heading in ("volume", "method"):
        table.add_column(heading)
    for heading in ("NMSE", "PSNR (dB)", "SSIM"):
        table.add_column(heading, justify="right")

    def add_section(label: str, scores: Mapping[str, Mapping[str, float]]) -> None:
        for method, row in sorted(scores.items(), key=lambda item: item[1]["ssim"]):
            figures = (f"{row['nmse']:.4f}", f"{row['psnr']:.2f}", f"{row['ssim']:.4f}")
            table.add_row(label, method, *figures)
            label = ""
        table.add_section()

    names = sorted(set().union(*methods.values()))
    if len(names) <= most_volumes:
        for name in names:
            add_section(name, {m: scores[name] for m, scores in methods.items() if name in scores})
    means = {method: summarise(volumes.values()) for method, volumes in methods.items() if volumes}
    add_section(f"mean of {len(names)}", means)
    return table


def scores_json(volumes: Sequence[ScoredVolume], rows: Sequence[ScoreRow]) -> dict[str, Any]:
    """Content for a JSON file: every group's means and deviations, every volume's scores.

    The PSNR of a perfect reconstruction is infinite, which JSON lacks; it becomes null.
    """

    def plain(scores: Mapping[str, float]) -> dict[str, float | None]:
        return {name: value if math.isfinite(value) else None for name, value in scores.items()}

    return {
        "groups": [
            {
                "label": row.label,
                "acquisition": row.acquisition,
                "acceleration": row.acceleration,
                "volumes": row.volumes,
                "mean": plain(row.mean),
                "std": plain(row.std),
            }
            for row in rows
        ],
        "volumes": {
            volume.name: {
                "acquisition": volume.acquisition,
                "acceleration": volume.acceleration,
                "slices": volume.slices,
                **plain(volume.scores),
            }
            for volume in volumes
        },
    }


def volume_names(folder: Path) -> list[str]:
    """Names of the `*.h5` files in a folder, sorted; hidden files do not count."""
    return sorted(path.name for path in folder.glob("*.h5") if not path.name.startswith("."))


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
    present = [folder for folder in candidates if volume_names(folder)]
    fitting = [f for f in present if not set(volume_names(f)).isdisjoint(predicted)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        folders = " and ".join(map(str, fitting))
        raise InputError(f"--target_path: the predictions fit both {folders}; give one of the two")
    if present:
        raise InputError(
            f"--target_path: {present[0]} has no file named as the predictions are "
            f"(such as {predicted[0]})"
        )
    raise InputError(
        f"--target_path: no *.h5 file in {target_path}, in its targets/{challenge}_test or in its "
        f"{challenge}_val"
    )


@dataclass(frozen=True)
class _TargetFile:
    path: Path
    acquisition: str
    acceleration: int | None


def _target_file(path: Path, challenge: Challenge) -> _TargetFile:
    with open_volume(path) as volume:
        if TARGET_KEYS[challenge] not in volume:
            found = ", ".join(sorted(volume)) or "nothing"
            raise InputError(f"{path}: no target '{TARGET_KEYS[challenge]}' (found: {found})")
        acceleration = volume.attrs.get("acceleration")
        return _TargetFile(
            path,
            str(volume.attrs.get("acquisition", "")),
            None if acceleration is None else int(acceleration),
        )


def _select(
    targets: Sequence[_TargetFile], acquisition: str | None, acceleration: int | None
) -> list[_TargetFile]:
    selected = list(targets)
    if acquisition is not None:
        selected = [item for item in selected if item.acquisition == acquisition]
        if not selected:
            found = ", ".join(sorted({item.acquisition or "(none)" for item in targets}))
            raise InputError(f"--acquisition: given {acquisition}, the targets have {found}")
    if acceleration is not None:
        found = ", ".join(sorted({str(item.acceleration or "(none)") for item in selected}))
        selected = [item for item in selected if item.acceleration == acceleration]
        if not selected:
            raise InputError(f"--acceleration: given {acceleration}, the targets have {found}")
    return selected


def _kspace_shape(target: Path) -> tuple[int, ...] | None:
    """Find the k-space's shape in the target's file or, in a frozen split, beside it."""
    target = target.resolve()
    beside = target.parent.parent.parent / target.parent.name / target.name
    for path in (target, beside):
        if path.is_file():
            with open_volume(path) as volume:
                if "kspace" in volume:
                    return tuple(int(n) for n in volume["kspace"].shape)
    return None


def _read(path: Path, read: Callable[[], np.ndarray]) -> np.ndarray:
    try:
        return read()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None


def _score_file(item: _TargetFile, prediction: Path, challenge: Challenge) -> ScoredVolume:
    def read_target() -> np.ndarray:
        with open_volume(item.path) as volume:
            return np.asarray(volume[TARGET_KEYS[challenge]][()])

    target = _read(item.path, read_target)
    reconstruction = _read(prediction, lambda: read_reconstruction(prediction))
    side = target.shape[-1]
    if reconstruction.ndim == 3 and target.ndim == 3:
        found = reconstruction.shape[-2:]
        if found[0] < min(side, target.shape[-2]) or found[1] < side:
            # Only a k-space narrower than the image explains a smaller reconstruction.
            kspace_shape = _kspace_shape(item.path)
            narrow = kspace_shape and crop_size(target.shape[-2:], kspace_shape)
            if found != narrow:
                raise InputError(
                    f"{prediction}: slices of {found[0]} x {found[1]}, expected at least "
                    f"{min(side, target.shape[-2])} x {side}, the target's"
                )
    try:
        scores = score_volume(target, reconstruction)
    except InputError as error:
        raise InputError(f"{prediction}: {error}") from None
    return ScoredVolume(item.path.name, item.acquisition, item.acceleration, len(target), scores)


def score_folders(
    targets: Path,
    predictions: Path,
    challenge: Challenge,
    *,
    acquisition: str | None = None,
    acceleration: int | None = None,
    num_workers: int = 2,
    track: Track = silent,
) -> list[ScoredVolume]:
    """Score a folder of reconstructions against a folder of targets, file by file.

    Args:
        targets: folder of fastMRI files with `reconstruction_esc` or `reconstruction_rss`.
        predictions: folder of files of the same names with `reconstruction`.
        challenge: which target.
        acquisition: score only volumes of this acquisition.
        acceleration: score only volumes of this stored acceleration.
        num_workers: threads; each holds one volume.
        track: shows the progress over volumes.

    Returns:
        The scored volumes in the order of their names.

    Raises:
        InputError: naming the file: a prediction missing, without a target, of another shape, not
            finite, or a file that cannot be read.
    """
    names = volume_names(targets)
    if not names:
        raise InputError(f"{targets}: no *.h5 file in this folder")
    selected = _select(
        [_target_file(targets / name, challenge) for name in names], acquisition, acceleration
    )
    predicted = set(volume_names(predictions))
    missing = [item.path.name for item in selected if item.path.name not in predicted]
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
    with ThreadPoolExecutor(max(1, min(num_workers, MAX_THREADS))) as pool:
        try:
            results = pool.map(
                lambda item: _score_file(item, predictions / item.path.name, challenge), selected
            )
            return list(track(results, "scoring volumes", len(selected)))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
