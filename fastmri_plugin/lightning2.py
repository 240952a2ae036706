"""fastMRI's Lightning modules on today's Lightning.

fastMRI writes for Lightning 1: its modules aggregate in `validation_epoch_end(logs)`, which Lightning 2 refuses,
after a `validation_step_end` that Lightning 2 no longer calls. The adapter gathers the steps' outputs itself and
calls fastMRI's own methods, so the logged names and the numbers stay fastMRI's. Test splits are reconstructed by
`fastmri_plugin.trained`, not by Lightning's test loop.
"""

from __future__ import annotations

from typing import Any

import torch

from fastmri_plugin.framework import MriModule
from img2img_recon.training.loggers import log_image

# fastMRI's sums over volumes and processes, in the order in which it adds to them.
_SUMS = ("NMSE", "SSIM", "PSNR", "TotExamples", "ValLoss", "TotSliceExamples")


class _OnLightning2:
    """Mixed in before a fastMRI module; see `on_lightning2`."""

    # Not callable, so Lightning accepts the class; fastMRI's methods stay reachable through super().
    validation_epoch_end = None
    test_epoch_end = None

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()  # type: ignore[misc]
        self._validation_logs: list[dict[str, Any]] = []
        if not hasattr(self, "_sums_in_single"):
            # fastMRI adds numbers in double precision, which some devices (Apple's) do not have.
            self._sums_in_single = [
                getattr(self, name).register_forward_pre_hook(_in_single_precision)
                for name in _SUMS
            ]
        if self.val_log_indices is None:  # type: ignore[has-type]
            # Evenly spaced, where fastMRI draws at random from a loader that it expects in a list.
            batches = int(self.trainer.num_val_batches[0])  # type: ignore[attr-defined]
            step = max(batches // max(self.num_log_images, 1), 1)  # type: ignore[attr-defined]
            self.val_log_indices = list(range(0, batches, step))[: self.num_log_images]  # type: ignore[attr-defined]

    def validation_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        logs = super().validation_step(*args, **kwargs)  # type: ignore[misc]
        self._validation_logs.append(self.validation_step_end(logs))  # type: ignore[attr-defined]
        return logs["val_loss"]

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()  # type: ignore[misc]
        if self._validation_logs:
            super().validation_epoch_end(self._validation_logs)  # type: ignore[misc]
        else:
            self._aggregate_nothing()
        self._validation_logs = []

    def log_image(self, name: str, image: torch.Tensor) -> None:
        log_image(self.loggers, name, image, self.global_step)  # type: ignore[attr-defined]

    def _aggregate_nothing(self) -> None:
        """Take part in fastMRI's sums, in its order, in a process that has no volume to validate."""
        zero = torch.tensor(0.0, device=self.device)  # type: ignore[attr-defined]
        sums = {name: getattr(self, name)(zero) for name in _SUMS}
        loss = sums["ValLoss"] / sums["TotSliceExamples"]
        self.log("validation_loss", loss, prog_bar=True)  # type: ignore[attr-defined]
        for name in ("NMSE", "SSIM", "PSNR"):
            self.log(f"val_metrics/{name.lower()}", sums[name] / sums["TotExamples"])  # type: ignore[attr-defined]


def _in_single_precision(metric: Any, values: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(value.float().to(metric.quantity.device) for value in values)


def on_lightning2(module_class: type[MriModule]) -> type[MriModule]:
    """The same fastMRI module, able to run on Lightning 2.

    Args:
        module_class: a subclass of `fastmri.pl_modules.MriModule`, written as fastMRI's own are.

    Returns:
        A subclass of it with the same name, constructor, logged metrics (`validation_loss`,
        `val_metrics/nmse`, `val_metrics/ssim`, `val_metrics/psnr`, per volume) and `state_dict`.

    Example:
        `on_lightning2(fastmri.pl_modules.UnetModule)(chans=32)`
    """
    if not issubclass(module_class, MriModule):
        raise TypeError(f"{module_class.__name__} is no fastmri.pl_modules.MriModule")
    return type(module_class.__name__, (_OnLightning2, module_class), {"__module__": __name__})
