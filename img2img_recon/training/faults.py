"""A training that goes wrong in numbers: NaN and infinity end it before they are kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from img2img_recon.support.errors import TrainingError
from img2img_recon.training.run_folder import RunFolder


def fault(run: RunFolder, trainer: pl.Trainer, what: str) -> TrainingError:
    """The error that ends a training, with where it was and what it can be taken up from."""
    last = run.last_checkpoint
    good = (
        f"last good checkpoint: {last}, from which the same command goes on"
        if last.is_file()
        else "no checkpoint was written yet"
    )
    return TrainingError(
        f"epoch {trainer.current_epoch}, step {trainer.global_step}: {what}; {good}. "
        "A lower --lr may help"
    )


class StopAtFaults(Callback):
    """Ends the run where a loss or a validation score is not finite.

    It looks at the loss itself, so gradients that overflow under mixed precision, whose step is skipped,
    are no fault. It comes before the callback that saves, so nothing is saved after a fault.

    Args:
        run: whose last checkpoint is named.
        monitor: logged name of the validation score.
    """

    def __init__(self, run: RunFolder, monitor: str) -> None:
        self.run = run
        self.monitor = monitor

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, *batch: Any
    ) -> None:
        """Look at the loss of a batch."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        self._check(trainer, "train", loss, *batch)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, *batch: Any
    ) -> None:
        """Look at the validation loss of a batch."""
        self._check(trainer, "val", outputs, *batch)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Look at the score."""
        score = trainer.callback_metrics.get(self.monitor)
        if score is not None and not math.isfinite(score):
            raise fault(self.run, trainer, f"{self.monitor} is {float(score)}")

    def _check(
        self, trainer: pl.Trainer, side: str, loss: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if not isinstance(loss, torch.Tensor) or bool(loss.isfinite().all()):
            return
        names: Sequence[str] = trainer.datamodule.batch_names(batch, batch_idx, side)  # type: ignore[attr-defined]
        where = ", ".join(dict.fromkeys(names))
        what = {"train": "training loss", "val": "validation loss"}[side]
        raise fault(self.run, trainer, f"{what} is {float(loss.mean())} (batch of {where})")


def not_finite(content: Any, place: str = "") -> str | None:
    """The place of the first NaN in what a JSON file is about to hold; None if there is none."""
    if isinstance(content, float):
        return place if math.isnan(content) else None
    items: Any = content.items() if isinstance(content, Mapping) else ()
    if isinstance(content, (list, tuple)):
        items = enumerate(content)
    found = (not_finite(value, f"{place}/{key}".lstrip("/")) for key, value in items)
    return next((one for one in found if one is not None), None)
