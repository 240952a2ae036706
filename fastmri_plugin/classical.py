"""Classical reconstructions to stand beside the networks: zero-filled, total variation, l1-wavelet.

All three see the same measured columns and return the same thing, a magnitude image cropped to the
volume's image size in the k-space's intensity units. The iterative two minimise, over the complex
image x (h, W),

    tv:          1/2 || M F S x - y / s ||^2 + weight * || G x ||_1
    l1_wavelet:  1/2 || M F S x - y / s ||^2 + weight * || Psi x ||_1

where y is the measured k-space, M the columns' mask, F the centred orthonormal FFT, S the coil maps
(1 for a single coil), G the finite differences, Psi Daubechies-4 wavelets, and s the maximum of the
zero-filled magnitude, which makes the weight free of units. The read-out is fully sampled, so that
its over-sampled rows are cut off in the image domain before the iterations: the same problem with
half the rows, and noise that is still white.

Solvers and maps are sigpy's: `TotalVariationRecon` (primal-dual hybrid gradient), `L1WaveletRecon`
(FISTA) and `EspiritCalib` (Uecker et al., MRM 71:990, 2014). For TV and wavelets in MRI see Block
et al., MRM 57:1086, 2007, and Lustig et al., MRM 58:1182, 2007.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from fastmri_plugin.transforms import combine_coils, zero_filled_magnitude
from fastmri_plugin.volumes import Challenge, VolumeInfo, center_crop, open_volume, read_target
from img2img_recon.metrics import ssim
from img2img_recon.support.errors import InputError
from img2img_recon.support.processes import available_cores, map_in_processes
from img2img_recon.support.progress import Track, silent

if TYPE_CHECKING:
    from sigpy.linop import Linop

Method = Literal["zero_filled", "tv", "l1_wavelet"]
MaskOf = Callable[[VolumeInfo], "np.ndarray | None"]
METHODS: tuple[Method, ...] = ("zero_filled", "tv", "l1_wavelet")

# Weights relative to a zero-filled maximum of 1, a factor of about three apart.
WEIGHT_CANDIDATES: dict[str, tuple[float, ...]] = {
    "tv": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "l1_wavelet": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
}
# A compromise with the time: the weight chosen goes with these numbers, so that stopping early
# counts as part of the method.
NUM_ITERATIONS: dict[str, int] = {"tv": 100, "l1_wavelet": 40}

# sigma tau (|M F S|^2 + |G|^2) <= sigma tau (1 + 8) = 1 is what the primal-dual method needs. The
# dual variable of G lives in a ball of radius `weight`, far below the image's 1, hence long primal
# and short dual steps: with sigma = 1, more than ten times the iterations reach the same objective.
TV_SIGMA = 1 / 32
TV_TAU = 1 / (9 * TV_SIGMA)

# The cost of the maps grows with the square of the coils; a few combinations of them hold nearly all
# the signal (Buehrer et al., MRM 57:1131, 2007).
MAX_VIRTUAL_COILS = 8
CALIBRATION_WIDTH = 24
KERNEL_WIDTH = 6
# A pool of processes imports everything once more in each. It has to save more than that takes.
POOL_START_SECONDS = 10.0
SECONDS_PER_PIXEL_ITERATION = 2.4e-7
# Below this, a square calibration region holds too few kernels to tell signal from noise.
MIN_ESPIRIT_WIDTH = 8


@dataclass(frozen=True)
class SliceProblem:
    """One slice, read-out cropped, coils compressed, scaled: what the solvers start from.

    Attributes:
        kspace: complex64 (coils, h, W), zero where not sampled, divided by `scale`.
        sampled: float32 (h, W), 1 where measured.
        maps: complex64 (coils, h, W), with unit root-sum-of-squares wherever they are not zero.
        scale: intensity of the zero-filled maximum; 0 for a slice without signal.
        size: (h, w) of the image to return.
    """

    kspace: np.ndarray
    sampled: np.ndarray
    maps: np.ndarray
    scale: float
    size: tuple[int, int]


def prepare_slice(
    kspace: np.ndarray, mask: np.ndarray | None, size: tuple[int, int]
) -> SliceProblem:
    """Mask, cut the read-out to the image's rows, compress and calibrate the coils, scale.

    Args:
        kspace: complex, (H, W) or (coils, H, W).
        mask: bool (W,), the columns to use; None uses all.
        size: (h, w) of the image, at most (H, W).
    """
    import sigpy

    height, width = kspace.shape[-2:]
    # Columns in the mask that were never acquired hold zeros and count as measured: fastMRI's
    # targets are made from the zero-padded k-space too.
    columns = np.ones(width, dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
    coils = kspace.reshape(-1, height, width).astype(np.complex64, copy=False) * columns
    # Along the read-out only; the crop has fastMRI's offsets, so that the image lands on the
    # target's pixels.
    hybrid = center_crop(sigpy.ifft(coils, axes=(-2,)), (size[0], width))
    measured = sigpy.fft(hybrid, axes=(-2,)).astype(np.complex64, copy=False)
    zero_filled = center_crop(combine_coils(sigpy.ifft(measured, axes=(-2, -1))), size)
    scale = float(zero_filled.max())
    sampled = np.broadcast_to(columns, measured.shape[1:]).astype(np.float32)
    if scale == 0:
        return SliceProblem(measured, sampled, np.ones_like(measured), scale, size)
    measured = compress_coils(measured / np.float32(scale), MAX_VIRTUAL_COILS)
    return SliceProblem(measured, sampled, coil_maps(measured, columns), scale, size)


def compress_coils(kspace: np.ndarray, num_coils: int) -> np.ndarray:
    """Combine (coils, h, W) into the `num_coils` coils of the most energy, strongest first."""
    if len(kspace) == 1:
        return kspace
    flat = kspace.reshape(len(kspace), -1)
    _, vectors = np.linalg.eigh(flat @ flat.conj().T)
    strongest = vectors[:, ::-1][:, :num_coils]
    return (
        (strongest.conj().T @ flat).reshape(-1, *kspace.shape[1:]).astype(np.complex64, copy=False)
    )


def calibration_width(columns: np.ndarray) -> int:
    """Side of the widest window around column W // 2 within which every column is sampled."""
    centre = len(columns) // 2
    width = 0
    while width < len(columns):
        start = centre - (width + 1) // 2
        if not columns[start : start + width + 1].all():
            break
        width += 1
    return width


def coil_maps(kspace: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Sensitivity maps from the centre columns, complex64 (coils, h, W), unit root-sum-of-squares.

    ESPIRiT where the fully sampled centre is wide enough; below that (8-fold acceleration of few
    columns) the smooth low-resolution coil images over their root-sum-of-squares. No map is cut off
    by its eigenvalue: fastMRI's targets show the background's noise too.

    Args:
        kspace: complex64 (coils, h, W), zero where not sampled.
        columns: bool (W,), the sampled columns.
    """
    import sigpy
    from sigpy.mri.app import EspiritCalib

    if len(kspace) == 1:
        return np.ones_like(kspace)
    width = min(calibration_width(columns), CALIBRATION_WIDTH, kspace.shape[-2])
    if width >= MIN_ESPIRIT_WIDTH:
        maps = EspiritCalib(
            kspace,
            calib_width=width,
            kernel_width=min(KERNEL_WIDTH, width // 2),
            crop=0,
            max_iter=30,
            show_pbar=False,
        ).run()
        return np.nan_to_num(maps).astype(np.complex64, copy=False)
    # A window that is zero just outside the sampled centre keeps the low-resolution images from
    # ringing.
    window = np.hanning(max(width, 1) + 2)[1:-1]
    centre = sigpy.resize(np.outer(window, window), kspace.shape[1:])
    images = sigpy.ifft(kspace * centre.astype(np.float32), axes=(-2, -1))
    magnitude = combine_coils(images)
    return (images / np.maximum(magnitude, np.finfo(np.float32).tiny)).astype(np.complex64)


def sense_operator(problem: SliceProblem) -> Linop:
    """M F S as sigpy's linear operator, image (h, W) to k-space (coils, h, W)."""
    from sigpy.mri.linop import Sense

    return Sense(problem.maps, weights=problem.sampled)


def solve(
    problem: SliceProblem, method: Method, weight: float, num_iter: int | None = None
) -> np.ndarray:
    """Minimise the method's objective (see the module) and return its magnitude, float32 (h, w).

    In the input's intensity units.

    Args:
        problem: the prepared slice.
        method: "tv" or "l1_wavelet".
        weight: of the regularisation, relative to a zero-filled maximum of 1.
        num_iter: iterations; the method's usual number by default.
    """
    from sigpy.mri.app import L1WaveletRecon, TotalVariationRecon

    if problem.scale == 0:
        return np.zeros(problem.size, dtype=np.float32)
    # The operator's norm is at most 1, so all step sizes are known. sigpy would estimate them by a
    # power iteration from a random start: slower, and another result on every call.
    steps = {"sigma": TV_SIGMA, "tau": TV_TAU} if method == "tv" else {"alpha": 1}
    app = {"tv": TotalVariationRecon, "l1_wavelet": L1WaveletRecon}[method]
    image = app(
        problem.kspace,
        problem.maps,
        weight,
        weights=problem.sampled,
        x=sense_operator(problem).H(problem.kspace),
        max_iter=NUM_ITERATIONS[method] if num_iter is None else num_iter,
        show_pbar=False,
        **steps,
    ).run()
    return center_crop(np.abs(image) * problem.scale, problem.size).astype(np.float32)


def check_method(method: str, weight: float | None) -> None:
    """Refuse an unknown method, or a weight that is missing or not positive.

    Raises:
        InputError: saying what is allowed.
    """
    if method not in METHODS:
        raise InputError(f"classical method: given {method!r}, allowed: {', '.join(METHODS)}")
    if method != "zero_filled" and (weight is None or not (np.isfinite(weight) and weight > 0)):
        raise InputError(
            f"{method}: the regularisation weight is {weight}, allowed: a positive number"
        )


def reconstruct_slice(
    kspace: np.ndarray,
    mask: np.ndarray | None,
    size: tuple[int, int],
    method: Method,
    weight: float | None = None,
    num_iter: int | None = None,
) -> np.ndarray:
    """Reconstruct one slice.

    Args:
        kspace: complex, (H, W) or (coils, H, W).
        mask: bool (W,), the columns to use; None uses all.
        size: (h, w) of the image, at most (H, W).
        method: one of `METHODS`.
        weight: of the regularisation, unit-free; not used by "zero_filled".
        num_iter: iterations; the method's usual number by default.

    Returns:
        Magnitude, float32 (h, w), in the intensity units of the k-space's orthonormal inverse FFT
        (root-sum-of-squares for many coils).

    Raises:
        InputError: an unknown method, a weight that is not positive, or k-space that is not finite.
    """
    return _reconstruct(kspace, mask, size, method, (weight,), num_iter)[0]


def _reconstruct(
    kspace: np.ndarray,
    mask: np.ndarray | None,
    size: tuple[int, int],
    method: Method,
    weights: Sequence[float | None],
    num_iter: int | None,
) -> np.ndarray:
    """One slice under several weights, (weights, h, w); the coil maps are made once."""
    for weight in weights:
        check_method(method, weight)
    # One bad sample spreads over the whole sum.
    if not np.isfinite(kspace.sum()):
        raise InputError("the k-space holds NaN or infinite values")
    if method == "zero_filled":
        image = combine_coils(zero_filled_magnitude(kspace, mask, size)).astype(
            np.float32, copy=False
        )
        return np.stack([image] * len(weights))
    problem = prepare_slice(kspace, mask, size)
    return np.stack(
        [solve(problem, method, weight, num_iter) for weight in weights if weight is not None]
    )


@dataclass(frozen=True)
class _SliceTask:
    """What a worker needs to read and reconstruct one slice; it travels between processes."""

    path: Path
    index: int
    mask: np.ndarray | None
    size: tuple[int, int]
    method: Method
    weights: tuple[float | None, ...]
    num_iter: int | None
    seconds: float

    @classmethod
    def of(
        cls,
        info: VolumeInfo,
        index: int,
        mask: np.ndarray | None,
        method: Method,
        weights: tuple[float | None, ...],
        num_iter: int | None,
    ) -> _SliceTask:
        default = NUM_ITERATIONS.get(method, 0)
        # A zero-filled image costs about as much as one iteration.
        iterations = max(len(weights) * (default if num_iter is None else num_iter), 1)
        coils = min(info.kspace_shape[1], MAX_VIRTUAL_COILS) if len(info.kspace_shape) == 4 else 1
        pixels = info.image_size[0] * info.num_columns
        seconds = SECONDS_PER_PIXEL_ITERATION * pixels * iterations * (coils + 2) / 3
        return cls(info.path, index, mask, info.image_size, method, weights, num_iter, seconds)


def _run_task(task: _SliceTask) -> np.ndarray:
    with open_volume(task.path) as volume:
        try:
            kspace = volume["kspace"][task.index]
        except (KeyError, OSError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{task.path}: slice {task.index} cannot be read ({reason})") from None
    try:
        return _reconstruct(kspace, task.mask, task.size, task.method, task.weights, task.num_iter)
    except InputError as error:
        raise InputError(f"{task.path}: slice {task.index}: {error}") from None


def _run_tasks(tasks: Sequence[_SliceTask], num_workers: int | None) -> Iterator[np.ndarray]:
    """Results in the tasks' order, from a pool of processes where that is worth its start."""
    workers = min(available_cores() if num_workers is None else num_workers, len(tasks))
    saved = sum(task.seconds for task in tasks) * (1 - 1 / max(workers, 1))
    if workers < 2 or saved < POOL_START_SECONDS:
        workers = 1
    yield from map_in_processes(_run_task, tasks, workers)


def reconstruct_volumes(
    infos: Sequence[VolumeInfo],
    challenge: Challenge,
    method: Method,
    mask_of: MaskOf,
    weight: float | None = None,
    *,
    num_iter: int | None = None,
    num_workers: int | None = None,
    track: Track = silent,
) -> dict[str, np.ndarray]:
    """Reconstruct volumes slice by slice, in parallel.

    Args:
        infos: the volumes.
        challenge: what their files hold.
        method: one of `METHODS`.
        mask_of: the columns to use of a volume, bool (W,), or None for all.
        weight: of the regularisation, unit-free; not used by "zero_filled".
        num_iter: iterations per slice; the method's usual number by default.
        num_workers: processes; by default one per core, 0 for none. The result does not depend on
            it.
        track: shows the progress over slices.

    Returns:
        Volumes by file name, float32 (slices, h, w), in the volume's intensity units.

    Raises:
        InputError: naming the file that cannot be read or reconstructed.
    """
    check_method(method, weight)
    _check_challenge(infos, challenge)
    tasks = [
        _SliceTask.of(info, index, mask, method, (weight,), num_iter)
        for info in infos
        for mask in (mask_of(info),)
        for index in range(info.num_slices)
    ]
    if not tasks:
        return {}
    results = iter(track(_run_tasks(tasks, num_workers), method.replace("_", " "), len(tasks)))
    volumes: dict[str, list[np.ndarray]] = {info.name: [] for info in infos}
    # Driven by the results, not by the tasks: the track sees its end and closes its display.
    position = iter(tasks)
    for images in results:
        volumes[next(position).path.name].append(images[0])
    return {name: np.stack(images) for name, images in volumes.items()}


def choose_weight(
    train_infos: Sequence[VolumeInfo],
    challenge: Challenge,
    method: Method,
    mask_of: MaskOf,
    candidates: Sequence[float] | None = None,
    *,
    num_slices: int = 4,
    seed: int = 0,
    num_iter: int | None = None,
    num_workers: int | None = None,
    track: Track = silent,
) -> tuple[float, dict[float, float]]:
    """Choose the regularisation weight on a few training slices: the one of the best mean SSIM.

    The slices come from the middle half of their volumes (the ends hold little but noise), from as
    many volumes as possible, drawn by `seed` alone.

    Args:
        train_infos: training volumes, with targets; never those that are scored.
        challenge: what their files hold.
        method: "tv" or "l1_wavelet".
        mask_of: the columns to use of a volume, bool (W,), or None for all.
        candidates: weights to try; `WEIGHT_CANDIDATES[method]` by default.
        num_slices: slices to reconstruct under each weight.
        seed: draws the slices.
        num_iter: iterations per slice; the method's usual number by default.
        num_workers: processes; by default one per core, 0 for none.
        track: shows the progress over slices.

    Returns:
        The best weight (the smallest of equals), and the mean SSIM of every candidate.

    Raises:
        InputError: no volume, a volume without a target, no candidate, or a file that cannot be
            read.
    """
    weights = tuple(
        sorted(set(WEIGHT_CANDIDATES.get(method, ()) if candidates is None else candidates))
    )
    if not weights:
        raise InputError(f"{method}: no weight to choose from")
    for weight in weights:
        check_method(method, weight)
    _check_challenge(train_infos, challenge)
    chosen = _middle_slices(train_infos, num_slices, seed)
    tasks = [
        _SliceTask.of(info, index, mask_of(info), method, weights, num_iter)
        for info, index in chosen
    ]
    label = f"choosing the weight of {method.replace('_', ' ')}"
    totals = np.zeros(len(weights))
    position = iter(chosen)
    for images in track(_run_tasks(tasks, num_workers), label, len(tasks)):
        info, index = next(position)
        target = read_target(info, challenge)[index : index + 1]
        data_range = float(info.max_value or target.max())
        totals += [ssim(target, image[None], data_range=data_range) for image in images]
    means = {
        weight: float(total / len(chosen)) for weight, total in zip(weights, totals, strict=True)
    }
    return max(means, key=lambda weight: (means[weight], -weight)), means


def _middle_slices(
    infos: Sequence[VolumeInfo], num_slices: int, seed: int
) -> list[tuple[VolumeInfo, int]]:
    """`num_slices` (volume, index) pairs, round after round over shuffled volumes."""
    if not infos:
        raise InputError("choosing a regularisation weight needs training volumes, given none")
    rng = np.random.default_rng(seed)
    ordered = [infos[i] for i in rng.permutation(len(infos))]
    orders = []
    for info in ordered:
        first, last = info.num_slices // 4, (3 * info.num_slices + 3) // 4
        orders.append([int(i) for i in first + rng.permutation(last - first)])
    rounds = max(map(len, orders))
    pairs = [
        (info, order[turn])
        for turn in range(rounds)
        for info, order in zip(ordered, orders, strict=True)
        if turn < len(order)
    ]
    return pairs[: max(num_slices, 1)]


def _check_challenge(infos: Sequence[VolumeInfo], challenge: Challenge) -> None:
    axes = {"singlecoil": 3, "multicoil": 4}[challenge]
    for info in infos:
        if len(info.kspace_shape) != axes:
            raise InputError(
                f"{info.path}: kspace has shape {info.kspace_shape}, which is not {challenge}"
            )
