"""Training images per second, and the share of the time in which training waits for its data.

python -m tests.benchmarks.denoise_loader --task gaussian [any flag of train.py]
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import DataLoader

from denoise_tasks.module import make_loader
from denoise_tasks.options import TrainConfig
from denoise_tasks.task import TASKS, PreparedDenoising
from img2img_recon.support.cli import parse_config, run_script
from img2img_recon.trained import pick_device
from img2img_recon.training.batches import ShuffledBatches
from img2img_recon.training.runner import report

STEPS, WARM_UP = 40, 4


def measure(prepared: PreparedDenoising) -> dict[str, Any]:
    """Train some steps by hand and split their time into waiting for a batch and using it.

    Returns:
        Images per second, the share of waiting, and images per second of the loader alone.
    """
    config = prepared.config
    device = pick_device(config.accelerator)
    module = TASKS[config.task].module(config).to(device)
    optimizer = torch.optim.Adam(module.parameters(), lr=config.lr or 1e-3)

    def synchronise() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def batches() -> DataLoader:
        enough = 1 + STEPS * config.batch_size // len(prepared.train)
        everything = list(range(len(prepared.train))) * enough
        sampler = ShuffledBatches([everything], config.batch_size, config.seed)
        return make_loader(prepared.train, sampler, config.num_workers)

    waited = worked = 0.0
    images = 0
    source = iter(batches())
    for step in range(STEPS):
        start = time.perf_counter()
        batch = next(source)
        got = time.perf_counter()
        moved = type(batch)(
            *(value.to(device) if torch.is_tensor(value) else value for value in batch)
        )
        noisy, clean, _ = module.images(moved)
        loss = torch.nn.functional.mse_loss(module(noisy), clean)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        synchronise()
        if step >= WARM_UP:
            waited += got - start
            worked += time.perf_counter() - got
            images += len(clean)
    start = time.perf_counter()
    loaded = sum(len(batch.clean) for _, batch in zip(range(STEPS), batches(), strict=False))
    alone = time.perf_counter() - start
    return {
        "model": config.model,
        "crop_size": config.crop_size,
        "batch_size": config.batch_size,
        "num_workers": config.num_workers,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "training_images_per_s": images / (waited + worked),
        "share_waiting": waited / (waited + worked),
        "loader_alone_images_per_s": loaded / alone,
    }


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    given = parse_config(
        TrainConfig,
        words,
        description="Measure how long training waits for data.",
        models=TASKS["gaussian"].models(),
    )
    task = TASKS[given.task]
    prepared = task.prepare(task.resolve(replace(given, progress=False)), report)
    print(json.dumps(measure(prepared), indent=2))


if __name__ == "__main__":
    run_script(main)
