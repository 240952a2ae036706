"""What is trained: an image-to-image network in fastMRI's framework, or one of fastMRI's own modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from fastmri.data.subsample import MaskFunc
from fastmri.data.transforms import UnetDataTransform, VarNetDataTransform
from fastmri.pl_modules import MriModule, UnetModule, VarNetModule

from fastmri_plugin.config import FASTMRI_MODELS
from fastmri_plugin.lightning2 import on_lightning2
from fastmri_plugin.transforms import ImageSample, ImageTransform
from fastmri_plugin.volumes import Challenge
from img2img_recon.losses import ssim_loss
from img2img_recon.networks.zoo import build_model, complete_config, list_models
from img2img_recon.support.errors import InputError
from img2img_recon.training.trainer import one_cycle
from img2img_recon.wrappers import AnySize, Normalized

FASTMRI_OPTIONS: dict[str, dict[str, Any]] = {
    "fastmri_unet": {"chans": 32, "num_pool_layers": 4, "drop_prob": 0.0},
    "fastmri_varnet": {
        "num_cascades": 12,
        "pools": 4,
        "chans": 18,
        "sens_pools": 4,
        "sens_chans": 8,
    },
}


def list_trainable() -> list[str]:
    """Names that `--model` takes."""
    return [*list_models(), *FASTMRI_MODELS]


class _ImageModule(MriModule):
    """Trains an image-to-image network on zero-filled magnitudes with the SSIM loss.

    The network sees each image normalised by its own mean and standard deviation and at its own grid's
    size (`Normalized(AnySize(network))`); loss and metrics see the volume's intensity units, with the
    volume's maximum as data range.

    Args:
        network: name of a network of the zoo.
        options: its constructor's arguments, complete (`img2img_recon.networks.zoo.model_config`).
        lr: highest learning rate of Adam.
        lr_interval: "epoch" as the paper steps its one-cycle schedule, or "step".
        num_log_images: validation images to log.
    """

    def __init__(
        self,
        network: str,
        options: Mapping[str, Any],
        lr: float,
        lr_interval: str = "epoch",
        num_log_images: int = 4,
    ) -> None:
        super().__init__(num_log_images=num_log_images)
        self.network = Normalized(AnySize(build_model(network, **options)))
        self.lr = lr
        self.lr_interval = lr_interval

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Reconstruct images (B, H, W) of any size; same shape and units, float32."""
        return self.network(image.unsqueeze(1)).squeeze(1).float()

    def training_step(self, batch: ImageSample, batch_idx: int) -> torch.Tensor:
        """1 - SSIM over a batch of one image size."""
        loss = _loss(self(batch.image), batch)
        self.log("train_loss", loss.detach(), prog_bar=True, batch_size=len(batch.fname))
        return loss

    def validation_step(self, batch: ImageSample, batch_idx: int) -> dict[str, Any]:
        """What fastMRI's aggregation asks for; a magnitude is not negative."""
        output = self(batch.image).clamp_min(0)
        return {
            "batch_idx": batch_idx,
            "fname": batch.fname,
            "slice_num": batch.slice_num,
            "max_value": batch.max_value,
            "output": output,
            "target": batch.target,
            "val_loss": _loss(output, batch),
        }

    def test_step(self, batch: ImageSample, batch_idx: int) -> dict[str, Any]:
        """What fastMRI's writer of reconstructions asks for; a magnitude is not negative."""
        return {
            "fname": batch.fname,
            "slice": batch.slice_num,
            "output": self(batch.image).clamp_min(0).cpu().numpy(),
        }

    def configure_optimizers(self) -> dict[str, Any]:
        """Adam under a linear one-cycle schedule (the paper's)."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        steps = self.trainer.max_epochs or 1
        if self.lr_interval == "step":
            # Not trainer.estimated_stepping_batches: it would start the loader before a resumed run
            # knows which epoch it is in and how far it has come.
            batches = self.trainer.datamodule.batches_per_epoch()
            steps *= -(-batches // self.trainer.accumulate_grad_batches)
        schedule = one_cycle(optimizer, self.lr, max(steps, 2))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": self.lr_interval},
        }


def _loss(output: torch.Tensor, batch: ImageSample) -> torch.Tensor:
    return ssim_loss(output.unsqueeze(1), batch.target.unsqueeze(1), batch.max_value.float())  # type: ignore[attr-defined]


ImageModule = on_lightning2(_ImageModule)


def model_options(name: str, given: Mapping[str, Any], img_size: tuple[int, int]) -> dict[str, Any]:
    """The complete constructor arguments of a model, JSON-serialisable.

    Args:
        name: one of `list_trainable()`.
        given: what the user set, by the field's names.
        img_size: (H, W) that most images of the data have; the grid of networks that have one.

    Raises:
        InputError: an unknown model, or an option that it lacks.
    """
    if name in FASTMRI_OPTIONS:
        allowed = FASTMRI_OPTIONS[name]
        for key in given:
            if key not in allowed:
                raise InputError(
                    f"--{key}: {name} has no such option; it has: {', '.join(allowed)}"
                )
        return {**allowed, **given}
    if name not in list_models():
        raise InputError(f"--model: given {name}, allowed: {', '.join(list_trainable())}")
    return complete_config(name, {"in_chans": 1, "out_chans": 1, **given}, img_size)


def build_module(
    name: str, options: Mapping[str, Any], lr: float | None, lr_interval: str
) -> MriModule:
    """The Lightning module of a model.

    fastMRI's modules bring their own schedule; their rate is theirs too unless one is given.
    """
    if name in FASTMRI_OPTIONS:
        rate = {} if lr is None else {"lr": lr}
        shape = {"in_chans": 1, "out_chans": 1} if name == "fastmri_unet" else {}
        module_class = {"fastmri_unet": UnetModule, "fastmri_varnet": VarNetModule}[name]
        return on_lightning2(module_class)(**shape, **options, **rate, num_log_images=4)
    assert lr is not None
    return ImageModule(name, options, lr, lr_interval)


class _FiniteKspace:
    """A fastMRI transform that refuses k-space with NaN or infinite values, naming the file."""

    def __init__(self, transform: Callable[..., Any]) -> None:
        self.transform = transform
        self.mask_func = transform.mask_func  # type: ignore[attr-defined]
        self.use_seed = transform.use_seed  # type: ignore[attr-defined]

    def __call__(self, kspace: np.ndarray, *rest: Any) -> Any:
        if not np.isfinite(kspace).all():
            fname, slice_num = rest[-2:]
            raise InputError(f"{fname}: slice {slice_num} of kspace holds NaN or infinite values")
        return self.transform(kspace, *rest)


def build_transform(
    name: str, challenge: Challenge, mask_func: MaskFunc | None, use_seed: bool
) -> Callable[..., Any]:
    """The transform that feeds a model, with fastMRI's signature.

    Args:
        name: one of `list_trainable()`.
        challenge: single- or multi-coil.
        mask_func: None takes the mask stored in the file.
        use_seed: one mask per volume, seeded by its name.
    """
    if name == "fastmri_unet":
        return _FiniteKspace(UnetDataTransform(challenge, mask_func, use_seed))
    if name == "fastmri_varnet":
        if challenge != "multicoil":
            raise InputError("--model: fastmri_varnet needs --challenge multicoil")
        return _FiniteKspace(VarNetDataTransform(mask_func, use_seed))
    return ImageTransform(challenge, mask_func, use_seed)
