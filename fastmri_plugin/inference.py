"""From a trained run or a checkpoint to reconstructed volumes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastmri.pl_modules import MriModule

from fastmri_plugin.data import SliceDataset, volume_loader
from fastmri_plugin.module import build_module, build_transform
from fastmri_plugin.transforms import Sampling
from fastmri_plugin.volumes import Challenge, VolumeInfo
from img2img_recon.support.errors import InputError
from img2img_recon.support.progress import Track, silent
from img2img_recon.training.checkpoints import load_weights, read_run


@dataclass(frozen=True)
class Reconstructor:
    """A trained module with what it was trained for.

    Attributes:
        module: the Lightning module, in evaluation mode, on the CPU.
        model: its name among `list_trainable()`.
        challenge: single- or multi-coil.
        sampling: the masks for volumes that store none.
    """

    module: MriModule
    model: str
    challenge: Challenge
    sampling: Sampling

    def mask_of(self, info: VolumeInfo) -> np.ndarray:
        """The mask under which a volume is reconstructed, bool (W,)."""
        return self.sampling.mask_of(info)


def load_reconstructor(source: Path) -> Reconstructor:
    """Load a run folder or a checkpoint file of this plugin.

    Raises:
        InputError: no checkpoint, not one of this plugin, or weights of another network.
    """
    config, checkpoint, path = read_run(source, ("mri",), "fastmri_plugin/train.py")
    module = build_module(
        config["model"], config["model_options"], config["lr"], config["lr_interval"]
    )
    load_weights(module, checkpoint, path)
    sampling = Sampling(
        config["mask_type"], tuple(config["accelerations"]), tuple(config["center_fractions"])
    )
    return Reconstructor(module.eval(), config["model"], config["challenge"], sampling)


def reconstruct_volumes(
    reconstructor: Reconstructor,
    volumes: Sequence[VolumeInfo],
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 1,
    num_workers: int = 0,
    track: Track = silent,
) -> Iterator[tuple[str, np.ndarray]]:
    """Reconstruct volumes, one at a time, in order.

    Volumes with a stored mask keep it; the others get the mask that their name seeds.

    Yields:
        (file name, float32 (slices, H, W)) in the volume's intensity units.
    """
    if reconstructor.model == "fastmri_varnet" and batch_size > 1:
        raise InputError(
            f"--batch_size: given {batch_size}, allowed: 1 (fastmri_varnet takes one slice)"
        )
    module = reconstructor.module.to(device)
    groups = [
        ([info for info in volumes if info.has_mask], None),
        ([info for info in volumes if not info.has_mask], reconstructor.sampling.mask_func()),
    ]
    total = sum(info.num_slices for info in volumes)

    def batches() -> Iterator[Any]:
        for infos, mask_func in groups:
            if infos:
                transform = build_transform(
                    reconstructor.model, reconstructor.challenge, mask_func, use_seed=True
                )
                dataset = SliceDataset(infos, reconstructor.challenge, transform)
                yield from volume_loader(dataset, batch_size, num_workers)

    def slices() -> Iterator[tuple[str, np.ndarray]]:
        with torch.inference_mode():
            for index, batch in enumerate(batches()):
                moved = module.transfer_batch_to_device(batch, torch.device(device), 0)
                logs = module.test_step(moved, index)
                for fname, image in zip(logs["fname"], logs["output"], strict=True):
                    yield fname, np.asarray(image, dtype=np.float32)

    name, images = None, []
    for fname, image in track(slices(), "reconstructing", total):
        if name is not None and fname != name:
            yield name, np.stack(images)
            images = []
        name = fname
        images.append(image)
    if name is not None:
        yield name, np.stack(images)
