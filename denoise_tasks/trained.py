"""Trained networks as methods that denoise pictures: of a run, of a file, or those that come with the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from denoise_tasks.methods import Denoiser
from denoise_tasks.noise import Image
from denoise_tasks.task import DenoisingTask
from img2img_recon.denoising import bound_tiles, clean_images, default_name
from img2img_recon.trained import load, pick_device
from img2img_recon.wrappers import SelfEnsemble

# By how much of itself the level that a network was trained for may be missed without a warning.
LEVEL_TOLERANCE = 0.2


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
        """See `Denoiser.trained_levels`; None also for real noise."""
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
        return self._network(bool((noisy == noisy[..., :1]).all())).denoise(noisy, sigma)

    def _network(self, grey: bool) -> TrainedDenoiser:
        name = default_name(grey)
        if name not in self.opened:
            self.opened[name] = load_run(name, **self.options)
        return self.opened[name]

    @property
    def trained_levels(self) -> tuple[float, float] | None:
        """Those of the network for colour; the one for grey has the same."""
        return self._network(grey=False).trained_levels

    def level_warning(self, sigma: float, how: str) -> str | None:
        """See `Denoiser.level_warning`."""
        return self._network(grey=False).level_warning(sigma, how)


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
    device = pick_device(accelerator)
    network = load(source, tasks=DenoisingTask.begins_with)
    description: Mapping[str, Any] = network.description  # type: ignore[assignment]
    name = name or Path(source).resolve().name.removesuffix(".safetensors")
    return TrainedDenoiser(network, description, name, device=device, **options)
