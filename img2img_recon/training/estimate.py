"""What a training will cost, before any data are read: parameters and estimated GPU hours.

    GPU hours = presented images * 3 * F / (R * F0) / 3600

with F the network's floating-point operations on one training image, counted on tensors without storage,
R the published images per second of its kind at the best batch on one RTX 6000 (arXiv:2202.02018) and F0
the operations of that published network on its 256 x 256 x 3 image. A training step is counted as three
passes (forward, and backward at twice the forward's cost). Validation, loading and start-up are left out.
"""

from __future__ import annotations

import functools
import json
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from img2img_recon.networks.base import count_parameters
from img2img_recon.networks.zoo import build_model
from img2img_recon.training.task import Task

PASSES_PER_STEP = 3
PUBLISHED_IMAGES_PER_S = {"img2img_mixer": 98.0, "unet": 524.0, "vit": 690.0, "dncnn": 30.0}
PUBLISHED_SIZE = (256, 256)


class Estimate(NamedTuple):
    """Of one run.

    Attributes:
        parameters: trainable ones.
        train_images: training images or slices in an epoch; None where only the data say it.
        gpu_hours: see the module; None where `train_images` is, or for a network that does not take images.
    """

    parameters: int
    train_images: int | None
    gpu_hours: float | None


def estimate(task: Task, config: Any) -> Estimate:
    """The cost of a resolved configuration.

    Raises:
        InputError: a network that cannot be built with its options.
    """
    work = task.workload(config)
    key = json.dumps([config.model, config.options, work.image_size], sort_keys=True)
    parameters, operations = _measured(task, key, config)
    if work.presented is None or operations is None:
        return Estimate(parameters, work.train_images, None)
    kind = next((k for k in PUBLISHED_IMAGES_PER_S if config.model.startswith(k)), "img2img_mixer")
    per_second = PUBLISHED_IMAGES_PER_S[kind] * _published_operations(kind) / operations
    seconds = work.presented * PASSES_PER_STEP / per_second
    return Estimate(parameters, work.train_images, seconds / 3600)


_seen: dict[tuple[str, str], tuple[int, float | None]] = {}


def _measured(task: Task, key: str, config: Any) -> tuple[int, float | None]:
    """Parameters and operations, once for every distinct network."""
    if (task.name, key) not in _seen:
        with torch.device("meta"):
            network = task.network(config).eval()
        example = task.example(config)
        operations = None if example is None else _operations(network, example)
        _seen[task.name, key] = count_parameters(network), operations
    return _seen[task.name, key]


def _operations(network: nn.Module, example: tuple[Tensor | None, ...]) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(*example)
    return float(counter.get_total_flops())


@functools.cache
def _published_operations(name: str) -> float:
    with torch.device("meta"):
        network = build_model(name).eval()
    return _operations(network, (torch.empty(1, 3, *PUBLISHED_SIZE, device="meta"),))
