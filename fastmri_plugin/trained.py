"""A trained network as a way to reconstruct volumes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from fastmri_plugin import Challenge
from fastmri_plugin.data import SliceDataset, volume_loader
from fastmri_plugin.kspace import center_crop
from fastmri_plugin.masks import MaskSpec
from fastmri_plugin.methods import Reconstructor
from fastmri_plugin.recipes import KSPACE_MODELS
from fastmri_plugin.shipped import find_network, open_module
from fastmri_plugin.transforms import build_transform
from fastmri_plugin.volumes import VolumeInfo
from img2img_recon.support.errors import InputError
from img2img_recon.support.progress import Track, silent
from img2img_recon.trained import pick_device
from img2img_recon.training.run_folder import RunFolder


class TrainedNetwork(Reconstructor):
    """A network that comes with the package, a trained run, or one of its checkpoints.

    Args:
        source: a name of `fastmri_plugin.shipped`, a run folder or checkpoint of fastmri_plugin/train.py, or a
            `.safetensors` file.
        accelerator: where it runs, as Lightning calls it.
        batch_size: slices per batch (of one size).
        num_workers: loader processes.

    Attributes:
        challenge: what it was trained for.
        masks: what a run was trained with; None for weights by themselves.
        chosen: by method, what the run's baselines settled on its training volumes.

    Raises:
        InputError: no checkpoint, not one of this plugin, or weights of another network.
    """

    def __init__(
        self,
        source: str | Path,
        accelerator: str = "cpu",
        batch_size: int = 1,
        num_workers: int = 0,
    ) -> None:
        self.source = source = find_network(source)
        config, module = open_module(source)
        self.name = config.get("name", config["model"])
        self.model: str = config["model"]
        self.options: dict[str, Any] = config["options"]
        self.challenge: Challenge = config["challenge"]
        self.masks = (
            MaskSpec(config["mask_type"], tuple(config["accel"]), tuple(config["center_fractions"]))
            if "mask_type" in config
            else None
        )
        self.chosen: dict[str, dict[str, Any]] = (RunFolder(source).metrics() or {}).get(
            "method_settings", {}
        )
        if self.model == "fastmri_varnet" and batch_size > 1:
            raise InputError(
                f"--batch_size: given {batch_size}, allowed: 1 (fastmri_varnet takes one slice)"
            )
        self.device = pick_device(accelerator)
        self.module = module.eval().to(self.device)
        self.batch_size, self.num_workers = batch_size, num_workers

    def reconstruct(
        self, infos: Sequence[VolumeInfo], masks: MaskSpec, track: Track = silent
    ) -> Iterator[tuple[str, np.ndarray]]:
        """See `Reconstructor`."""
        total = sum(info.num_slices for info in infos)
        slices = track(self._slices(infos, masks), "reconstructing", total)
        for name, images in groupby(slices, key=itemgetter(0)):
            yield name, np.stack([image for _, image in images])

    def image(self, kspace: np.ndarray, mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """See `Reconstructor`.

        Raises:
            InputError: single samples were measured, or other coils than the network was trained for.
        """
        if mask.ndim == 2 and self.model not in KSPACE_MODELS:
            raise InputError(
                f"--model: {self.name} takes whole measured columns; of this scan single samples were measured "
                "(or rows: then name the phase-encoded axis columns, with --axes); unrolled mixers, l1_wavelet "
                "and tv take any"
            )
        if (len(kspace) > 1) != (self.challenge == "multicoil"):
            raise InputError(
                f"--model: {self.name} is for {self.challenge}, the scan has {len(kspace)} coil(s)"
            )
        if mask.ndim == 2:
            with torch.inference_mode():
                samples = torch.from_numpy(np.asarray(kspace, np.complex64)).to(self.device)
                sampled = torch.from_numpy(mask).to(self.device)
                magnitude = self.module(samples[None], sampled[None, None])[0]
            return center_crop(magnitude.cpu().numpy(), size)
        transform = build_transform(self.model, self.challenge, None, True)
        attrs = {"recon_size": size, "padding_left": 0, "padding_right": kspace.shape[-1]}
        slice_ = kspace if len(kspace) > 1 else kspace[0]
        batch = default_collate([transform(slice_, mask, None, attrs, "scan", 0)])
        with torch.inference_mode():
            moved = self.module.transfer_batch_to_device(batch, self.device, 0)
            return np.asarray(self.module.test_step(moved, 0)["output"][0], dtype=np.float32)

    def _slices(
        self, infos: Sequence[VolumeInfo], masks: MaskSpec
    ) -> Iterator[tuple[str, np.ndarray]]:
        with torch.inference_mode():
            transform = build_transform(self.model, self.challenge, masks.mask_func(), True)
            data = SliceDataset(infos, transform)
            for index, batch in enumerate(volume_loader(data, self.batch_size, self.num_workers)):
                moved = self.module.transfer_batch_to_device(batch, self.device, 0)
                logs = self.module.test_step(moved, index)
                for fname, image in zip(logs["fname"], logs["output"], strict=True):
                    yield fname, np.asarray(image, dtype=np.float32)
