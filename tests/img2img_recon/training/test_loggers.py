"""Where a training's losses and configuration go: the same places after a break, and packages that are missing."""

from __future__ import annotations

import csv
import importlib.util
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from img2img_recon.support.errors import InputError
from img2img_recon.training.loggers import RunLoggers, check_loggers, log_image, make_loggers
from img2img_recon.training.run_folder import RunFolder

BOTH = ("tensorboard", "csv")


def log(run: RunFolder, step: int, **metrics: float) -> None:
    """What one attempt of a training logs."""
    trainer = SimpleNamespace(loggers=[], is_global_zero=True)
    callback = RunLoggers(run, BOTH, {"lr": 0.1, "options": {"depth": 2}, "sigma": None})
    callback.setup(trainer, None, "fit")
    callback.on_train_start(trainer, None)
    loggers = trainer.loggers
    log_image(loggers, "target", torch.zeros(1, 4, 4), step)
    for logger in loggers:
        logger.log_metrics(metrics, step=step)
        logger.finalize("success")


def test_a_resumed_run_goes_on_in_its_table_and_in_tensorboards_folder(tmp_path):
    run = RunFolder(tmp_path)
    log(run, 0, loss=1.0)
    log(run, 1, loss=0.5)
    log(run, 2, psnr=30.0)
    (table,) = tmp_path.glob("logs/csv-*/metrics.csv")
    rows = list(csv.DictReader(table.open()))
    assert [row["step"] for row in rows] == ["0", "1", "2"]
    assert [row["loss"] for row in rows] == ["1.0", "0.5", ""]
    assert rows[-1]["psnr"] == "30.0"
    assert "depth: 2" in (table.parent / "hparams.yaml").read_text()
    events = EventAccumulator(str(tmp_path / "logs/tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(0, 1.0), (1, 0.5)]
    assert [e.step for e in events.Images("target")] == [0, 1, 2]
    assert "depth: 2" in (tmp_path / "logs/tensorboard/hparams.yaml").read_text()


@pytest.mark.parametrize(("name", "count"), [("run \u5199 $1", 2), (os.fsdecode(b"caf\xe9"), 1)])
def test_a_folder_whose_name_is_no_text_has_the_table_of_scores(tmp_path, name, count):
    made = make_loggers(RunFolder(tmp_path / name), BOTH)
    assert len(made) == count
    for logger in made:
        logger.log_metrics({"loss": 1.0}, step=0)
        logger.save()
    assert Path(tmp_path / name / "logs/csv-0/metrics.csv").read_text().startswith("loss")


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_one_line(name):
    if importlib.util.find_spec(name):
        pytest.skip("installed here")
    with pytest.raises(InputError, match=rf"^--logger: {name} needs the package {name}; pip "):
        check_loggers(("csv", name))
