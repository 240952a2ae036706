"""Methods that denoise pictures: trained networks, BM3D and total variation, all the same to whoever uses them.

A new method is a class here and a row of `METHODS`. Images and sigmas are in image units, [0, 1].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denoise_tasks.noise import Image, check_image
from img2img_recon.figures import label_of
from img2img_recon.support.errors import InputError
from img2img_recon.support.processes import available_cores, map_in_processes
from img2img_recon.support.progress import Track, silent


class Denoiser(ABC):
    """Takes noise out of pictures.

    Attributes:
        name: unique among methods that are compared; `img2img_recon.figures.label_of` spells it.
        in_chans: channels of the pictures it is made for; None for any.
        needs_sigma: whether it must be told how strong the noise is.
        task: what its network was trained for, gaussian or pairs; None for a classical method.
        slow: whether it takes seconds an image; several are then worked on in processes, which import its class.
    """

    name: str
    in_chans: int | None = None
    needs_sigma: bool = True
    task: str | None = None
    slow: bool = False

    @property
    def trained_levels(self) -> tuple[float, float] | None:
        """Least and greatest sigma of Gaussian noise that its network knows, of 255 grey levels, if any."""
        return None

    @abstractmethod
    def denoise(self, noisy: Image, sigma: float | None) -> Image:
        """Denoise one picture.

        Args:
            noisy: float32 (H, W, C), nominally in [0, 1]; C is 1 or 3.
            sigma: standard deviation of the noise; methods that need none take None.

        Returns:
            float32 (H, W, C), not clipped.

        Raises:
            InputError: a picture or a sigma that cannot be used.
        """

    def denoise_many(
        self,
        noisy: Sequence[Image],
        sigmas: Sequence[float | None],
        *,
        workers: int | None = None,
        track: Track = silent,
    ) -> list[Image]:
        """`denoise` for pictures of any sizes, in order.

        Args:
            noisy: the pictures.
            sigmas: one per picture.
            workers: processes, where the method is slow; by default one per core.
            track: shows the progress, where the method is slow.

        Raises:
            InputError: what `denoise` refuses, before anything is computed where the method is slow.
        """
        tasks = list(zip(noisy, sigmas, strict=True))
        if not self.slow:
            return [self.denoise(*task) for task in tasks]
        for place, (image, sigma) in enumerate(tasks if self.needs_sigma else ()):
            _checked_sigma(image, sigma, f"noisy image {place}")
        count = available_cores() if workers is None else workers
        results = map_in_processes(self._denoise_task, tasks, count)
        try:
            return list(track(results, label_of(self.name), len(tasks)))
        finally:
            # An error inside `track` leaves the generator waiting; closing it ends the workers now.
            results.close()

    def _denoise_task(self, task: tuple[Image, float | None]) -> Image:
        return self.denoise(*task)

    def details(self) -> dict[str, Any]:
        """What a table of results says about it, JSON-serialisable."""
        return {}

    def level_warning(self, sigma: float, how: str) -> str | None:
        """What to tell a person whose pictures have noise of `sigma` ([0, 255] units; `given` or `estimated`)."""
        return None


def _checked_sigma(noisy: Any, sigma: float | None, what: str) -> float:
    """The sigma of a method that needs one, after a look at it and the picture."""
    check_image(noisy, what)
    if sigma is None or not (np.isfinite(sigma) and sigma > 0):
        given = "not given" if sigma is None else f"{sigma:g}"
        raise InputError(f"{what}: sigma is {given}, allowed: a number above 0 in image units")
    return float(sigma)


class TotalVariation(Denoiser):
    """Total variation (Rudin, Osher and Fatemi, Physica D 60:259, 1992) by scikit-image's Chambolle iteration.

    The weight is `FACTOR` * sigma ** `EXPONENT`: a power law through the weights with the highest mean PSNR
    on 24 training pictures of BSDS (192 x 192 of each, in colour) at sigma 5, 10, 15, 25, 30, 50 and 75 of
    255, where it loses at most 0.02 dB against the best of nine weights for each level. It iterates to a
    tenth of scikit-image's tolerance, with which results jump from weight to weight by up to 1 dB.
    """

    name = "tv"
    FACTOR, EXPONENT, TOLERANCE = 1.4, 1.285, 2e-5

    def denoise(self, noisy: Image, sigma: float | None) -> Image:
        """See `Denoiser.denoise`; every channel for itself."""
        from skimage.restoration import denoise_tv_chambolle

        weight = self.FACTOR * _checked_sigma(noisy, sigma, "noisy image") ** self.EXPONENT
        image = np.asarray(noisy, np.float32)
        result = denoise_tv_chambolle(image, weight, self.TOLERANCE, channel_axis=-1)
        return result.astype(np.float32)


class BM3D(Denoiser):
    """CBM3D (Dabov et al., "Color image denoising via sparse 3D collaborative filtering", ICIP 2007).

    Blocks are matched on the luminance of opponent colours; on grey images it is BM3D (Dabov et al., IEEE
    TIP 16:2080, 2007). The implementation is the authors' package `bm3d` (Mäkinen et al., IEEE TIP 29:8339,
    2020), with its standard profile, on one thread.
    """

    name = "bm3d"
    slow = True
    # The package refuses images smaller than its 8 x 8 block and crashes on one of exactly 8 x 8.
    MIN_SIDE = 16
    # The package divides every opponent colour by its range: NaN for a grey image stored as colour.
    MIN_COLOUR_RANGE = 1e-6

    def denoise(self, noisy: Image, sigma: float | None) -> Image:
        """See `Denoiser.denoise`."""
        sigma = _checked_sigma(noisy, sigma, "noisy image")
        height, width, _ = noisy.shape
        margins = [(0, max(self.MIN_SIDE - side, 0)) for side in (height, width)]
        padded = np.pad(np.asarray(noisy, np.float64), [*margins, (0, 0)], mode="symmetric")
        result = self._filter(padded, sigma)
        # The package answers a failure inside (no memory) with an image of zeros.
        if np.ptp(padded) > 0 and (result.max(axis=(0, 1)) == result.min(axis=(0, 1))).all():
            raise InputError(f"BM3D gave up on an image of {height} x {width} (out of memory?)")
        return result[:height, :width].astype(np.float32)

    def _filter(self, image: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
        """Denoise (H, W, C) with sides of at least `MIN_SIDE`."""
        channels = np.moveaxis(image, 2, 0)
        if (channels == channels[0]).all():
            filtered = self._package(channels[0], sigma)
            return np.repeat(filtered[..., None], len(channels), axis=2)
        if len(channels) == 3:
            return self._colour(image, sigma)
        return np.stack([self._package(channel, sigma) for channel in channels], axis=2)

    def _colour(self, image: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
        red, green, blue = np.moveaxis(image, 2, 0)
        opponents = ((red + green + blue) / 3, (red - blue) / 2, (red + blue) / 4 - green / 2)
        if min(float(np.ptp(colour)) for colour in opponents) < self.MIN_COLOUR_RANGE:
            return self._package(image, sigma)
        return self._package(image, sigma, "bm3d_rgb")

    def _package(
        self, image: NDArray[np.float64], sigma: float, function: str = "bm3d"
    ) -> NDArray[np.float64]:
        try:
            import bm3d
        except ImportError:
            raise InputError("BM3D needs the package bm3d: pip install bm3d") from None
        profile = bm3d.BM3DProfile()
        # With more threads the sums are taken in another order, and results differ from call to call.
        profile.num_threads = 1
        return getattr(bm3d, function)(image, sigma, profile)


class BM3DChannelwise(BM3D):
    """BM3D as the paper (arXiv:2202.02018) calls it: blocks are matched on the red channel alone."""

    name = "bm3d_channelwise"

    def _colour(self, image: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
        return self._package(image, sigma)


METHODS: dict[str, Callable[[], Denoiser]] = {
    method.name: method for method in (BM3D, BM3DChannelwise, TotalVariation)
}


def make_method(word: str, **options: Any) -> Denoiser:
    """The method of that name in `METHODS`, or the network of that run folder or checkpoint file.

    Args:
        word: the name or the path.
        **options: of `trained.load_run`, for a network.

    Raises:
        InputError: neither, or what `load_run` says.
    """
    from denoise_tasks.trained import load_run
    from img2img_recon.trained import shipped

    if word in METHODS:
        return METHODS[word]()
    if word not in shipped() and not Path(word).exists():
        raise InputError(
            f"--method: given {word}, allowed: {', '.join([*METHODS, *shipped()])}, or a run folder, "
            "a checkpoint or a .safetensors file"
        )
    return load_run(word, **options)
