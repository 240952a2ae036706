"""Checkpoints: whole or absent, and read without running code."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from img2img_recon.support.errors import InputError
from img2img_recon.trained import load_checkpoint
from img2img_recon.training.checkpoints import AtomicCheckpointIO


def test_checkpoints_hold_no_pickled_code_and_are_atomic(tmp_path, monkeypatch):
    io = AtomicCheckpointIO()
    path = tmp_path / "last.ckpt"
    io.save_checkpoint({"state_dict": {"w": torch.ones(2)}}, path)

    class Evil:
        def __reduce__(self):
            return (os.system, ("echo pwned",))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(InputError, match="not a checkpoint that can be read safely"):
        load_checkpoint(tmp_path / "evil.ckpt")

    def interrupted(content, file):
        Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        io.save_checkpoint({"state_dict": {}}, path)
    assert torch.equal(load_checkpoint(path)["state_dict"]["w"], torch.ones(2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evil.ckpt", "last.ckpt"]
