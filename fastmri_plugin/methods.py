"""Ways to reconstruct a volume, trained and untrained, all the same kind of thing to who scores, draws or exports.

A new method is a class here and a row of `METHODS`: a `SliceReconstructor` needs only to say how one slice's
image comes from its k-space. Nothing heavy is imported before a method is made or used.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fastmri_plugin.masks import MaskSpec
from img2img_recon.support.errors import InputError
from img2img_recon.support.progress import Track, silent

if TYPE_CHECKING:
    import numpy as np

    from fastmri_plugin.compressed_sensing import Regularizer
    from fastmri_plugin.volumes import VolumeInfo

# A pool of processes imports everything once more in each. It has to save more than that takes.
POOL_START_SECONDS = 10.0
SECONDS_PER_PIXEL_ITERATION = 2.4e-7
MAX_COILS = 8


class Reconstructor(ABC):
    """Turns measured volumes into magnitude images.

    Attributes:
        name: how tables, figures and folders call it.
        chooses: whether `choose` settles something without which `reconstruct` refuses to work.
        settings: what `choose` settled, as metrics.json holds it; may be put back from there.
    """

    name: str
    chooses: ClassVar[bool] = False
    settings: Mapping[str, Any] = {}

    def choose(  # noqa: B027 - most methods have nothing to choose
        self, train: Sequence[VolumeInfo], masks: MaskSpec, track: Track = silent
    ) -> None:
        """Settle what is to be settled on training volumes, which have targets and are never scored."""

    @abstractmethod
    def image(self, kspace: np.ndarray, mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Reconstruct one slice.

        Args:
            kspace: complex (coils, H, W), or (H, W) where the method is no network.
            mask: bool (W,), the columns to use, or (H, W), the samples, outside of which the k-space is zero.
            size: (h, w) of the image, at most (H, W).

        Returns:
            Magnitude, float32 (h, w), in the k-space's units.
        """

    @abstractmethod
    def reconstruct(
        self, infos: Sequence[VolumeInfo], masks: MaskSpec, track: Track = silent
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Reconstruct volumes, one at a time.

        Args:
            infos: the volumes.
            masks: for volumes that store no mask.
            track: shows the progress over slices.

        Yields:
            (file name, float32 (slices, H, W)): magnitudes of the volume's image size, in the intensity
            units of its k-space.

        Raises:
            InputError: naming the file that cannot be read or reconstructed.
        """


@dataclass(frozen=True)
class _SliceTask:
    """One slice to read and to reconstruct; it travels between processes."""

    path: Path
    index: int
    mask: np.ndarray
    size: tuple[int, int]
    function: Callable[[np.ndarray, np.ndarray, tuple[int, int]], np.ndarray]


def _run_task(task: _SliceTask) -> np.ndarray:
    from fastmri_plugin.volumes import read_slice

    kspace = read_slice(task.path, task.index)
    try:
        return task.function(kspace, task.mask, task.size)
    except InputError as error:
        raise InputError(f"{task.path}: slice {task.index}: {error}") from None


class SliceReconstructor(Reconstructor):
    """Reconstructs slice by slice; in several processes where that is worth their start.

    Args:
        num_workers: processes; by default one per core, 0 for none. The result does not depend on it.
    """

    def __init__(self, num_workers: int | None = None) -> None:
        self.num_workers = num_workers

    def seconds(self, info: VolumeInfo) -> float:
        """About how long one slice takes, to decide on processes; by default what zero-filling takes."""
        coils = min(info.kspace_shape[1], MAX_COILS) if len(info.kspace_shape) == 4 else 1
        pixels = info.image_size[0] * info.num_columns
        return SECONDS_PER_PIXEL_ITERATION * pixels * (coils + 2) / 3

    def reconstruct(
        self, infos: Sequence[VolumeInfo], masks: MaskSpec, track: Track = silent
    ) -> Iterator[tuple[str, np.ndarray]]:
        """See `Reconstructor`."""
        import numpy as np

        slices = [(info, index) for info in infos for index in range(info.num_slices)]
        label = self.name.replace("_", " ")
        results = iter(track(self._run(self.image, slices, masks), label, len(slices)))
        for info in infos:
            yield info.name, np.stack([next(results) for _ in range(info.num_slices)])
        # The track sees its end and closes its display.
        next(results, None)

    def _run(
        self,
        function: Callable[..., np.ndarray],
        slices: Sequence[tuple[VolumeInfo, int]],
        masks: MaskSpec,
        times: int = 1,
    ) -> Iterable[np.ndarray]:
        """What `function`, which takes `times` as long as `image`, makes of every slice of volumes."""
        from img2img_recon.support.processes import available_cores, map_in_processes

        own = {info.path: masks.mask_of(info) for info in {info for info, _ in slices}}
        tasks = [
            _SliceTask(info.path, index, own[info.path], info.image_size, function)
            for info, index in slices
        ]
        seconds = times * sum(self.seconds(info) for info, _ in slices)
        workers = available_cores() if self.num_workers is None else self.num_workers
        workers = min(workers, len(tasks))
        if workers < 2 or seconds * (1 - 1 / workers) < POOL_START_SECONDS:
            workers = 1
        return map_in_processes(_run_task, tasks, workers)


class ZeroFilled(SliceReconstructor):
    """The inverse FFT of what was measured: what the networks are fed."""

    name = "zero_filled"

    def image(self, kspace: np.ndarray, mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """See `Reconstructor`.

        Raises:
            InputError: k-space that is not finite.
        """
        from fastmri_plugin.kspace import check_finite, zero_filled

        columns = mask if mask.ndim == 1 else None
        image = zero_filled(kspace, columns, size).astype("float32", copy=False)
        # One bad sample spreads over the whole image.
        check_finite(image, "the k-space")
        return image


class Regularized(SliceReconstructor):
    """Compressed sensing (`fastmri_plugin.compressed_sensing`) with a regularization chosen on training slices.

    Args:
        regularization: relative to a zero-filled maximum of 1; `choose` sets it.
        candidates: regularizations to choose from, by default a factor of about three apart.
        num_iter: iterations per slice; the method's usual number by default.
        num_slices: training slices to choose on.
        num_workers: see `SliceReconstructor`.
    """

    name: Regularizer
    chooses = True

    def __init__(
        self,
        regularization: float | None = None,
        candidates: Sequence[float] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
        num_iter: int | None = None,
        num_slices: int = 4,
        num_workers: int | None = None,
    ) -> None:
        super().__init__(num_workers)
        self.settings = {"regularization": regularization}
        self.candidates = tuple(sorted(set(candidates)))
        self.num_iter = num_iter
        self.num_slices = num_slices

    @property
    def regularization(self) -> float:
        """The one that was given or chosen."""
        return self._checked(self.settings["regularization"])

    def _checked(self, value: float | None) -> float:
        if value is None or not (math.isfinite(value) and value > 0):
            raise InputError(
                f"{self.name}: the regularization is {value}, allowed: a positive number"
            )
        return value

    def image(self, kspace: np.ndarray, mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """See `Reconstructor`."""
        from fastmri_plugin.compressed_sensing import reconstruct_slice

        values = [self.regularization]
        return reconstruct_slice(kspace, mask, size, self.name, values, self.num_iter)[0]

    def seconds(self, info: VolumeInfo) -> float:
        """About how long one slice takes under one regularization."""
        from fastmri_plugin.compressed_sensing import NUM_ITERATIONS

        iterations = NUM_ITERATIONS[self.name] if self.num_iter is None else self.num_iter
        return max(iterations, 1) * super().seconds(info)

    def choose(self, train: Sequence[VolumeInfo], masks: MaskSpec, track: Track = silent) -> None:
        """Take the regularization of the best mean SSIM on a few training slices, the smallest of equals.

        Raises:
            InputError: no volume, no candidate, or a file that cannot be read.
        """
        means = self.scores(train, masks, track)
        self.settings = {"regularization": max(means, key=lambda value: (means[value], -value))}

    def scores(
        self, train: Sequence[VolumeInfo], masks: MaskSpec, track: Track = silent
    ) -> dict[float, float]:
        """Mean SSIM of every candidate on `num_slices` slices.

        The slices come from the middle half of their volumes (the ends hold little but noise), from as
        many volumes as possible.
        """
        import numpy as np

        from fastmri_plugin.compressed_sensing import reconstruct_slice
        from fastmri_plugin.volumes import read_target
        from img2img_recon.metrics import volume_ssim

        if not self.candidates:
            raise InputError(f"{self.name}: no regularization to choose from")
        for value in self.candidates:
            self._checked(value)
        function = partial(
            reconstruct_slice,
            method=self.name,
            regularizations=self.candidates,
            num_iter=self.num_iter,
        )
        chosen = middle_slices(train, self.num_slices)
        made = self._run(function, chosen, masks, len(self.candidates))
        label = f"choosing the regularization of {self.name.replace('_', ' ')}"
        totals = np.zeros(len(self.candidates))
        for (info, index), images in zip(chosen, track(made, label, len(chosen)), strict=True):
            target = read_target(info)[index : index + 1]
            data_range = float(info.max_value or target.max())
            totals += [volume_ssim(target, image[None], data_range=data_range) for image in images]
        return dict(zip(self.candidates, (totals / len(chosen)).tolist(), strict=True))


def middle_slices(infos: Sequence[VolumeInfo], num_slices: int) -> list[tuple[VolumeInfo, int]]:
    """`num_slices` (volume, index) pairs of middle halves, round after round over shuffled volumes.

    Raises:
        InputError: no volume.
    """
    import numpy as np

    if not infos:
        raise InputError("choosing a regularization needs training volumes, given none")
    rng = np.random.default_rng(0)
    ordered = [infos[i] for i in rng.permutation(len(infos))]
    orders = []
    for info in ordered:
        first, last = info.num_slices // 4, (3 * info.num_slices + 3) // 4
        orders.append([int(i) for i in first + rng.permutation(last - first)])
    pairs = [
        (info, order[turn])
        for turn in range(max(map(len, orders)))
        for info, order in zip(ordered, orders, strict=True)
        if turn < len(order)
    ]
    return pairs[: max(num_slices, 1)]


class TotalVariation(Regularized):
    """Least squares with a total-variation penalty."""

    name = "tv"


class L1Wavelet(Regularized):
    """Least squares with an L1 penalty on wavelet coefficients."""

    name = "l1_wavelet"


METHODS: dict[str, Callable[[], Reconstructor]] = {
    "zero_filled": ZeroFilled,
    "tv": TotalVariation,
    "l1_wavelet": L1Wavelet,
}


def make_method(word: str, **network_options: Any) -> Reconstructor:
    """The method of this name, or the trained network of this name, run folder or file.

    Args:
        word: a name of `METHODS` or of `fastmri_plugin.shipped`, or a path.
        **network_options: arguments of `TrainedNetwork`.

    Raises:
        InputError: neither, or a run that cannot be used.
    """
    if word in METHODS:
        return METHODS[word]()
    from fastmri_plugin.shipped import shipped
    from fastmri_plugin.trained import TrainedNetwork

    if word not in shipped() and not Path(word).exists():
        names = ", ".join((*METHODS, *shipped()))
        raise InputError(
            f"--method: given {word}; allowed: {names}, or a run folder, checkpoint or .safetensors file"
        )
    return TrainedNetwork(word, **network_options)
