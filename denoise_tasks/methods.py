"""Methods that denoise pictures: trained networks, BM3D and total variation, all the same to whoever uses them.

A new method is a class here and a row of `METHODS`. Images and sigmas are in image units, [0, 1].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from denoise_tasks.noise import Image, check_image
from img2img_recon.support.errors import InputError
from img2img_recon.support.processes import available_cores, map_in_processes
from img2img_recon.support.progress import Track, silent

if TYPE_CHECKING:
    import torch
    from torch import nn

# By how much of itself the level that a network was trained for may be missed without a warning.
LEVEL_TOLERANCE = 0.2


class Denoiser(ABC):
    """Takes noise out of pictures.

    Attributes:
        name: unique among methods that are compared; `img2img_recon.figures.label_of` spells it.
        in_chans: channels of the pictures it is made for; None for any.
        needs_sigma: whether it must be told how strong the noise is.
        task: what its network was trained for, gaussian or pairs; None for a classical method.
        slow: whether it takes seconds an image; several are then worked on in processes.
    """

    name: str
    in_chans: int | None = None
    needs_sigma: bool = True
    task: str | None = None
    slow: bool = False

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
        return [self.denoise(image, sigma) for image, sigma in zip(noisy, sigmas, strict=True)]

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

    def denoise_many(
        self,
        noisy: Sequence[Image],
        sigmas: Sequence[float | None],
        *,
        workers: int | None = None,
        track: Track = silent,
    ) -> list[Image]:
        """See `Denoiser.denoise_many`; the results are those of `denoise`, to the bit."""
        tasks = list(zip(noisy, sigmas, strict=True))
        for place, (image, sigma) in enumerate(tasks):
            _checked_sigma(image, sigma, f"noisy image {place}")
        count = available_cores() if workers is None else workers
        results = map_in_processes(self._denoise_task, tasks, count)
        try:
            return list(track(results, "BM3D", len(tasks)))
        finally:
            # An error inside `track` leaves the generator waiting; closing it ends the workers now.
            results.close()

    def _denoise_task(self, task: tuple[Image, float | None]) -> Image:
        return self.denoise(*task)


class BM3DChannelwise(BM3D):
    """BM3D as the paper (arXiv:2202.02018) calls it: blocks are matched on the red channel alone."""

    name = "bm3d_channelwise"

    def _colour(self, image: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
        return self._package(image, sigma)


class TrainedDenoiser(Denoiser):
    """A trained network on pictures of any size, in bounded memory; see `img2img_recon.denoising`.

    Args:
        network: maps (B, C, H, W) in [0, 1] of any size to the same shape, with the noise level where it
            takes one.
        config: what the network was trained for: its run's stored configuration, or its description.
        name: of the method.
        device: where the network runs; it is moved there.
        self_ensemble: take the mean over the eight flips and quarter turns of the picture.
        tile: side in pixels of what goes through the network at once; None: as suits it and the device.
    """

    def __init__(
        self,
        network: nn.Module,
        config: Mapping[str, Any],
        name: str,
        *,
        device: torch.device | str = "cpu",
        self_ensemble: bool = False,
        tile: int | None = None,
    ) -> None:
        import torch

        from img2img_recon.denoising import bound_tiles
        from img2img_recon.wrappers import SelfEnsemble

        self.name, self.config = name, config
        self.device = torch.device(device)
        self.network = network.eval().to(self.device)
        self.task, self.trained_sigma = str(config["task"]), config.get("sigma")
        self.in_chans: int = config["options"]["in_chans"]
        self.needs_sigma = bool(getattr(network, "noise_level_plane", False))
        bound_tiles(self.network, tile, self.device)
        self._mapping = SelfEnsemble(self.network) if self_ensemble else self.network

    @property
    def trained_levels(self) -> tuple[float, float] | None:
        """Least and greatest sigma of its training, of 255 grey levels; None for real noise."""
        own = self.trained_sigma
        if own is None:
            return None
        return (own[0], own[1]) if isinstance(own, Sequence) else (own, own)

    @property
    def trained_words(self) -> str:
        """`trained_levels` in words."""
        return " to ".join(f"{level:g}" for level in sorted(set(self.trained_levels or ())))

    def denoise(self, noisy: Image, sigma: float | None) -> Image:
        """See `Denoiser.denoise`; `sigma` says something only to networks trained for many levels.

        Raises:
            InputError: numbers of channels that do not go together, or too little memory.
        """
        import torch

        from img2img_recon.denoising import clean_images

        with torch.inference_mode():
            image = torch.from_numpy(np.ascontiguousarray(noisy)).permute(2, 0, 1)[None]
            level = None if sigma is None else torch.tensor([sigma], device=self.device)
            output = clean_images(self._mapping, image.to(self.device), level)
            return output[0].permute(1, 2, 0).float().cpu().numpy()

    def details(self) -> dict[str, Any]:
        """Network, size and what it was trained for."""
        return {
            "model": self.config["model"],
            "trained_for_sigma": self.trained_sigma,
            "trained_under_protocol": self.config.get("protocol"),
            "parameters": sum(p.numel() for p in self.network.parameters()),
        }

    def level_warning(self, sigma: float, how: str) -> str | None:
        """See `Denoiser.level_warning`."""
        own = self.trained_levels
        if own is None:
            if how == "given" and not self.needs_sigma:
                return (
                    f"sigma {sigma:g} given, but the network was trained on real noise of any level"
                )
            return None
        least, most = own
        if (1 - LEVEL_TOLERANCE) * least <= sigma <= (1 + LEVEL_TOLERANCE) * most:
            return None
        direction = "too much is removed" if sigma < least else "noise will be left"
        return (
            f"noise of sigma {sigma:.3g} {how}, the network was trained for {self.trained_words}: "
            f"{direction}"
        )


class ShippedDenoiser(Denoiser):
    """The networks that come with the package: the one for grey or the one for colour, as the picture is.

    Args:
        **options: of `load_run`.
    """

    name = "shipped"

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.opened: dict[str, TrainedDenoiser] = {}

    def denoise(self, noisy: Image, sigma: float | None) -> Image:
        """See `Denoiser.denoise`."""
        from img2img_recon.denoising import default_name

        name = default_name(bool((noisy == noisy[..., :1]).all()))
        if name not in self.opened:
            self.opened[name] = load_run(name, **self.options)
        return self.opened[name].denoise(noisy, sigma)


METHODS: dict[str, Callable[[], Denoiser]] = {
    method.name: method for method in (BM3D, BM3DChannelwise, TotalVariation)
}


def make_method(word: str, **options: Any) -> Denoiser:
    """The method of that name in `METHODS`, or the network of that run folder or checkpoint file.

    Args:
        word: the name or the path.
        **options: of `load_run`, for a run.

    Raises:
        InputError: neither, or what `load_run` says.
    """
    from img2img_recon.trained import shipped

    if word in METHODS:
        return METHODS[word]()
    if word not in shipped() and not Path(word).exists():
        raise InputError(
            f"--method: given {word}, allowed: {', '.join([*METHODS, *shipped()])}, or a run folder, "
            "a checkpoint or a .safetensors file"
        )
    return load_run(word, **options)


def load_run(
    source: Path | str, *, name: str | None = None, accelerator: str = "auto", **options: Any
) -> TrainedDenoiser:
    """The trained network of a name, run folder, checkpoint or weights file.

    Args:
        source: see `img2img_recon.load`.
        name: of the method; the source's by default.
        accelerator: where it runs, as Lightning calls it.
        **options: of `TrainedDenoiser`.

    Raises:
        InputError: no such network, one of another task, weights of another network, or an accelerator that
            is not here.
    """
    from denoise_tasks.task import TASKS
    from img2img_recon.trained import load, pick_device

    device = pick_device(accelerator)
    network = load(source, tasks=("denoising", *TASKS))
    description: Mapping[str, Any] = network.description  # type: ignore[assignment]
    name = name or Path(source).resolve().name.removesuffix(".safetensors")
    return TrainedDenoiser(network, description, name, device=device, **options)
