"""NaN and infinity end a training before they are kept, and say where."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from img2img_recon.support.errors import TrainingError
from img2img_recon.training.checkpoints import RunCheckpoints
from img2img_recon.training.faults import StopAtFaults, not_finite
from img2img_recon.training.run_folder import RunFolder


def trainer_of(**scores: float) -> SimpleNamespace:
    data = SimpleNamespace(batch_names=lambda batch, index, side: [f"{side}-{index}.png"])
    metrics = {name: torch.tensor(score) for name, score in scores.items()}
    return SimpleNamespace(
        current_epoch=3, global_step=17, datamodule=data, callback_metrics=metrics
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_epoch_step_file_and_checkpoint(tmp_path, value):
    guard, run = StopAtFaults(RunFolder(tmp_path), "score"), RunFolder(tmp_path)
    guard.on_train_batch_end(trainer_of(), None, {"loss": torch.tensor(1.0)}, None, 5)
    with pytest.raises(TrainingError, match=r"epoch 3, step 17: training loss .*train-5\.png.*no "):
        guard.on_train_batch_end(trainer_of(), None, {"loss": torch.tensor(value)}, None, 5)
    run.checkpoints.mkdir()
    run.last_checkpoint.write_bytes(b"")
    with pytest.raises(TrainingError, match=r"val-2\.png.*last\.ckpt"):
        guard.on_validation_batch_end(trainer_of(), None, torch.tensor(value), None, 2)
    with pytest.raises(TrainingError, match="score is "):
        guard.on_validation_end(trainer_of(score=value), None)
    guard.on_validation_end(trainer_of(score=30.0), None)


def test_broken_weights_are_not_saved(tmp_path):
    module = nn.Linear(1, 1)
    with torch.no_grad():
        module.weight.fill_(float("nan"))
    checkpoints = RunCheckpoints(RunFolder(tmp_path), "score", "max", 0)
    with pytest.raises(TrainingError, match="weights are not finite"):
        checkpoints.on_train_epoch_end(trainer_of(score=30.0), module)
    assert not list(tmp_path.iterdir())


def test_the_place_of_a_nan_among_scores_is_found():
    assert not_finite({"a": [1.0, {"psnr": float("inf")}], "b": None}) is None
    assert not_finite({"a": [1.0, {"psnr": float("nan")}]}) == "a/1/psnr"
