"""Progress of a training where there is no terminal: one line per epoch."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, RichProgressBar

from img2img_recon.training.optimisers import Budget


def progress_callback(wanted: bool, monitor: str) -> Callback:
    """Bars on a terminal if they are wanted, else a line per epoch; both on the standard error.

    Args:
        wanted: whether bars may be shown.
        monitor: the score that the lines name.
    """
    if wanted and sys.stderr.isatty():
        return RichProgressBar(console_kwargs={"stderr": True})
    return EpochLines(monitor)


class EpochLines(Callback):
    """Writes epoch, losses, score, learning rate, speed and time left when an epoch is over.

    Args:
        monitor: logged name of the score.
    """

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor
        self.validated = False

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Start the clock; epochs of an earlier attempt do not count for the time left."""
        self.started, self.first_epoch = time.perf_counter(), trainer.current_epoch
        # Lightning does not start the epoch within which a run is resumed.
        self.on_train_epoch_start(trainer, module)

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Start the epoch's clock and its mean loss."""
        self.epoch_started, self.validated = time.perf_counter(), False
        self.loss, self.batches = torch.zeros((), device=module.device), 0

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any
    ) -> None:
        """Note the rate of this batch; a schedule has moved on when the batch is over."""
        self.rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, *_: Any
    ) -> None:
        """Add to the mean loss, without waiting for the device."""
        self.loss = self.loss + outputs["loss"].detach().float()
        self.batches += 1
        self.trained = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Only now are the validation's values this epoch's."""
        self.validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Write the line, once for all processes."""
        if not trainer.is_global_zero or not self.batches:
            return
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or 1
        values = {"train_loss": float(self.loss) / self.batches}
        if self.validated:
            names = ("validation_loss", self.monitor)
            values |= {
                name: float(v) for name, v in trainer.callback_metrics.items() if name in names
            }
        shown = ", ".join(f"{name} {value:.5g}" for name, value in values.items())
        speed = self.batches / max(self.trained - self.epoch_started, 1e-9)
        seconds = (time.perf_counter() - self.started) / (epoch - self.first_epoch)
        budget = next((c for c in trainer.callbacks if isinstance(c, Budget)), None)  # type: ignore[attr-defined]
        remaining = seconds * (epochs - epoch) if budget is None else budget.seconds - budget.used
        left = in_words(max(remaining, 0))
        of = f"/{epochs}" if budget is None else ""
        line = f"epoch {epoch}{of}: {shown}; lr {self.rate:.3g}, {speed:.3g} batches/s, {left} left"
        print(line, file=sys.stderr, flush=True)


def in_words(seconds: float) -> str:
    """A span of time in its fitting unit."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
