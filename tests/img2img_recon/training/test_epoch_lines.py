"""What a training writes where there is no terminal: a line per epoch, nothing else; on one, bars."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from img2img_recon.training.epoch_lines import in_words
from img2img_recon.training.options import TrainingFlags
from img2img_recon.training.run_folder import RunFolder
from img2img_recon.training.trainer import make_trainer

LINE = (
    r"epoch {epoch}/3: train_loss {loss}, validation_loss 0\.5, val_metrics/psnr {psnr}; "
    r"lr 0\.1, [\d.e+]+ batches/s, \d+ s left"
)


class Line(pl.LightningModule):
    """Its loss in batch i is i + epoch, its score the epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, index):
        loss = 0 * self.weight + batch.mean() + self.current_epoch
        self.log("train_loss", loss.detach())
        return loss

    def validation_step(self, batch, index):
        self.log("validation_loss", 0.5)
        self.log("val_metrics/psnr", float(self.current_epoch))
        self.log("val_metrics/other", 9.0)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        # 0.1 in all batches and 9 after them: the line tells what was trained with.
        change = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 90 if step >= 12 else 1)
        return [optimizer], [{"scheduler": change, "interval": "step"}]

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.arange(4.0), batch_size=1)

    val_dataloader = train_dataloader


def train(folder: Path, epochs: int = 3, progress: bool = False, every: int = 1) -> None:
    run = RunFolder(folder)
    config = TrainingFlags(
        max_epochs=epochs, accelerator="cpu", progress=progress, check_val_every_n_epoch=every
    )
    trainer = make_trainer(run, {}, config, "val_metrics/psnr", "max")
    resume = run.last_checkpoint if run.last_checkpoint.is_file() else None
    trainer.fit(Line(), ckpt_path=resume)


@pytest.mark.parametrize("progress", [False, True])
def test_one_line_per_epoch_into_a_file(tmp_path, capfd, progress):
    train(tmp_path, progress=progress)
    out, err = capfd.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert "\r" not in err
    assert len(lines) == 3, err
    for epoch, line in enumerate(lines):
        # Batches 0 to 3: their mean is 1.5, the last one's loss would be 3.
        wanted = LINE.format(epoch=epoch + 1, loss=rf"{epoch + 1}\.5", psnr=epoch)
        assert re.fullmatch(wanted, line), line
    assert ", 0 s left" in lines[-1]


def test_a_resumed_training_goes_on_counting(tmp_path, capfd):
    train(tmp_path, epochs=1)
    capfd.readouterr()
    train(tmp_path, epochs=3)
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["epoch 2/3", "epoch 3/3"]


def test_an_epoch_without_validation_names_no_old_score(tmp_path, capfd):
    train(tmp_path, every=2, epochs=3)
    lines = capfd.readouterr().err.splitlines()
    assert ["val_metrics/psnr 1" in line for line in lines] == [False, True, False]
    assert ["validation_loss" in line for line in lines] == [False, True, False]


def test_bars_on_a_terminal_only_and_on_the_standard_error(tmp_path):
    pty = pytest.importorskip("pty")
    code = (
        "import sys; from pathlib import Path; from tests.img2img_recon.training.test_epoch_lines import "
        "train; [train(Path(sys.argv[1]) / name, progress=name == 'bars') for name in sys.argv[2:]]"
    )
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), "bars", "lines"],
        stdout=subprocess.PIPE,
        stderr=theirs,
        cwd=Path(__file__).parents[3],
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        seen += part
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out == b""
    bars, *lines = re.split(rb"epoch \d/3:", seen)
    assert b"\x1b[" in bars
    assert "━".encode() in bars
    assert len(lines) == 3
    assert not any(b"\x1b" in line for line in lines)


def test_times_in_words():
    shown = [in_words(seconds) for seconds in (0, 99, 100, 5999, 6000, 86400)]
    assert shown == ["0 s", "99 s", "2 min", "100 min", "1.7 h", "24.0 h"]
