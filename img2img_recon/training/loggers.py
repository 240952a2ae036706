"""Loggers by name: where a training's losses, scores and configuration go; a resumed run goes on in the same places."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import (
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)
from torch import Tensor

from img2img_recon.support.errors import InputError, reason
from img2img_recon.support.files import write_json
from img2img_recon.training.run_folder import RunFolder

PROJECT = "img2img_recon"


class _Table(CSVLogger):
    """Goes on in the table that it finds; Lightning's logger would begin it anew."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer, which knows the columns that are there."""
        table = Path(self.log_dir) / "metrics.csv"
        before = table.read_text() if self._experiment is None and table.is_file() else ""
        writer = super().experiment
        if before:
            table.write_text(before)
            writer.metrics_keys = next(csv.reader(before.splitlines()))
        return writer


class _Wandb(WandbLogger):
    """Ends its run with the training; the next one of this process would be written into it."""

    def finalize(self, status: str) -> None:
        """As Lightning's, then the end."""
        super().finalize(status)
        if self._experiment is not None:
            self._experiment.finish(exit_code=int(status != "success"))


def _last_table(run: RunFolder) -> int:
    """Each attempt of an older run had a table of its own."""
    tables = (run.path / "logs").glob("csv-*")
    return max((int(table.name.partition("-")[2]) for table in tables), default=0)


def _mlflow(run: RunFolder, known: str | None) -> Logger:
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None:
        # A run folder is whole by itself: files, which newer versions of mlflow have to be asked for.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        uri = (run.path.resolve() / "logs/mlruns").as_uri()
    return MLFlowLogger(PROJECT, run.path.name, uri, run_id=known)


def _wandb(run: RunFolder, known: str | None) -> Logger:
    folder = run.path / "logs"
    return _Wandb(run.path.name, folder, id=known, project=os.environ.get("WANDB_PROJECT", PROJECT))


# By name, from the run and its id with this logger, None for a new one.
LOGGERS: dict[str, Callable[[RunFolder, str | None], Logger]] = {
    "tensorboard": lambda run, _: TensorBoardLogger(run.path, "logs", "tensorboard"),
    "csv": lambda run, _: _Table(run.path, "logs", f"csv-{_last_table(run)}"),
    "wandb": _wandb,
    "mlflow": _mlflow,
}


TRACKERS = {"wandb": WandbLogger, "mlflow": MLFlowLogger}  # their packages are named as they are


def check_loggers(names: Sequence[str]) -> None:
    """See that the packages of these loggers are installed.

    Raises:
        InputError: one that is not.
    """
    for name in names:
        if name in TRACKERS and find_spec(name) is None:
            raise InputError(f"--logger: {name} needs the package {name}; pip install {name}")


def make_loggers(run: RunFolder, names: Sequence[str]) -> list[Logger]:
    """The loggers of a run, in the order of their names.

    TensorBoard is left out where the folder's name is no text, which its files need.

    Raises:
        InputError: one that refuses its settings.
    """
    known = _known(run)
    made = []
    for name in dict.fromkeys(names):
        if name == "tensorboard" and not str(run.path).isprintable():
            continue
        try:
            made.append(LOGGERS[name](run, known.get(name)))
        except Exception as error:  # whatever a tracker says of its server or folder
            raise InputError(f"--logger: {name} cannot be used: {reason(error)}") from None
    return made


def log_image(loggers: Sequence[Logger], name: str, image: Tensor, step: int) -> None:
    """Give an image (1, H, W) in [0, 1] to every logger that takes images."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, image, global_step=step)
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [image[0].cpu().numpy()], step)


def _file(run: RunFolder) -> Path:
    return run.path / "logs/loggers.json"


def _known(run: RunFolder) -> dict[str, str]:
    """The run's ids with its trackers."""
    try:
        return json.loads(_file(run).read_text())
    except (OSError, ValueError):
        return {}


class RunLoggers(Callback):
    """Makes a training's loggers when it starts, for some write at once, and gives them the configuration.

    Args:
        run: where they write, and which ids its trackers know it by.
        names: of the loggers.
        content: the run's configuration.
    """

    def __init__(self, run: RunFolder, names: Sequence[str], content: Mapping[str, Any]) -> None:
        check_loggers(names)
        self.run, self.names, self.content = run, names, dict(content)

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        """Make the loggers."""
        trainer.loggers = make_loggers(self.run, self.names)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Log; mlflow lets nobody change a parameter, so that those of a resumed run stay."""
        known = _known(self.run)
        for logger in trainer.loggers:
            if not (isinstance(logger, MLFlowLogger) and "mlflow" in known):
                logger.log_hyperparams(self.content)
        ids = {
            name: str(logger.version)
            for name, kind in TRACKERS.items()
            for logger in trainer.loggers
            if isinstance(logger, kind) and trainer.is_global_zero
        }
        if ids.items() - known.items():
            write_json(_file(self.run), known | ids)
