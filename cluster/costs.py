"""What a run will cost, before any data are read: parameters and estimated GPU hours.

    GPU hours = epochs * training images * 3 * F / (R * F0) / 3600

with F the network's floating-point operations on one training image, counted on tensors without storage,
R the published images per second of its kind at the best batch on one RTX 6000 (arXiv:2202.02018) and F0
the operations of that published network on its 256 x 256 x 3 image. A training step is counted as three
passes (forward, and backward at twice the forward's cost). Validation, loading and start-up are left out.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from cluster.grid import Run
from img2img_recon.support.errors import InputError

PASSES_PER_STEP = 3
# Published images per second, and the network of the zoo that they were measured with.
PUBLISHED_SPEED = {
    "img2img_mixer": (98.0, "img2img_mixer"),
    "unet": (524.0, "unet"),
    "vit": (690.0, "vit"),
    "dncnn": (30.0, "dncnn"),
}
# Slices of the fastMRI training sets, the size of most of their images, and the paper's epochs.
MRI_SLICES = {"singlecoil": 34_742, "multicoil": 34_742}
MRI_SIZE = (320, 320)
DENOISING_SIZE = (256, 256)
EPOCHS = {"mri": 40, "gaussian": 60, "sidd": 100}


class Cost(NamedTuple):
    """Of one run; None where the sweep file does not say enough.

    Attributes:
        parameters: trainable ones.
        train_images: training images or slices in an epoch.
        gpu_hours: estimated; see the module.
    """

    parameters: int | None
    train_images: int | None
    gpu_hours: float | None


def _shape(run: Run) -> tuple[int, tuple[int, int]]:
    """Channels and size of the images that the network is trained on."""
    if run.task == "mri":
        return 1, MRI_SIZE
    side = run.config.get("crop_size")
    return run.config.get("channels", 3), (side, side) if side else DENOISING_SIZE


@functools.cache
def _network(name: str, options: str) -> tuple[int, float]:
    """Parameters of a network and its operations on one image of its own size."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from img2img_recon.networks.zoo import build_model

    given: dict[str, Any] = json.loads(options)
    height, width = given.pop("image")
    with torch.device("meta"):
        network = build_model(name, **given).eval()
    image = torch.empty(1, given["in_chans"], height, width, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return parameters, float(counter.get_total_flops())


def network_cost(
    name: str, given: Mapping[str, Any], channels: int, size: tuple[int, int]
) -> tuple[int, float]:
    """Parameters and operations of a network of the zoo on one image.

    Args:
        name: of the network.
        given: its options, as flags.
        channels: of the images, in and out.
        size: (H, W) of the images, if `given` does not say; rounded up to what the patches divide.

    Raises:
        InputError: no such network, or an option that it lacks.
    """
    from img2img_recon.networks.zoo import complete_config

    complete = complete_config(name, {"in_chans": channels, "out_chans": channels, **given}, size)
    image = complete.get("img_size", size)
    # A U-Net halves the image at every level; the transformer pads by itself.
    multiple = 2 ** complete.get("num_pool_layers", 0)
    sides = [image, image] if isinstance(image, int) else list(image)
    complete["image"] = [-(-side // multiple) * multiple for side in sides]
    return _network(name, json.dumps(complete, sort_keys=True))


def cost(run: Run) -> Cost:
    """The cost of a run.

    Raises:
        InputError: no such network, or an option that it lacks.
    """
    from img2img_recon.training.options import OPTION_FLAGS

    model = str(run.config.get("model", "img2img_mixer"))
    images = _train_images(run)
    if model.startswith("fastmri_"):
        return Cost(None, images, None)
    given = {
        key: _single(run.config[key]) for key in OPTION_FLAGS if run.config.get(key) is not None
    }
    channels, size = _shape(run)
    parameters, operations = network_cost(model, given, channels, size)
    epochs = run.config.get("max_epochs") or EPOCHS[run.task]
    if images is None:
        return Cost(parameters, None, None)
    kind = next((k for k in PUBLISHED_SPEED if model.startswith(k)), "img2img_mixer")
    per_second, reference = PUBLISHED_SPEED[kind]
    _, reference_operations = network_cost(reference, {}, 3, DENOISING_SIZE)
    images_per_second = per_second * reference_operations / operations
    presented = epochs * images * run.config.get("crops_per_image", 1)
    return Cost(parameters, images, presented * PASSES_PER_STEP / images_per_second / 3600)


def _single(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _train_images(run: Run) -> int | None:
    if run.task != "mri":
        return run.config.get("train_images")
    if run.config.get("data_path") is None and "train_slices" not in run.tags:
        return None
    whole = MRI_SLICES[run.config["challenge"]]
    share = run.config.get("sample_rate") or run.config.get("volume_sample_rate") or 1.0
    return int(run.tags.get("train_slices", round(whole * share)))


def check(run: Run, place: str) -> Cost:
    """`cost`, with an error that begins with `place`."""
    try:
        return cost(run)
    except InputError as error:
        raise InputError(f"{place}: {error}") from None
