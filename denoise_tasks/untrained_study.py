"""The inductive-bias study: how fast an untrained network fits a picture, noise, and their sum.

A network's weights are fitted by gradient descent until its output for one fixed random input is one
target; nothing else is ever seen. A network whose structure suits pictures fits a picture long before
it fits noise. Fitted to picture plus noise, it then passes close to the clean picture on its way: its
best iterate, compared with the clean picture, says how well that structure alone denoises.

Published (arXiv:2202.02018 and its code): a grey picture of 256 x 256 divided by its maximum; Gaussian
noise of half the picture's norm, never clipped; the input uniform in [0, 1), for the transformer in
[-0.25, 0.25); the same first weights for all three targets; mean squared error; Adam without weight
decay for 1,501 iterations, the learning rate halved after every 500; learning rates 1e-4 (mixer), 5e-3
(U-Net), 1e-3 (transformer) and 5e-4 (original mixer); a transformer of 8 heads of 46 channels; the
iterates drawn (`shown_iterations`).

Our reading, where nothing is published: a U-Net of 30 channels, the paper's U-Net of about the mixer's
size; scores on outputs that are not clipped, with a data range of 1. Ours too, because the published
picture is not at hand: which picture, and that a larger one is scaled down before its centre is cut out.
All of `--short` is ours. Its learning rates are, for each network, the one of 3e-4, 1e-3, 3e-3, 1e-2 and
3e-2 with the best iterate on scikit-image's `camera` with seed 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from denoise_tasks.noise import Image, centre, image_units
from denoise_tasks.pixel_store import with_channels
from img2img_recon.networks.zoo import model_config
from img2img_recon.support.errors import InputError

if TYPE_CHECKING:
    from denoise_tasks.untrained import UntrainedConfig

# What is fitted, by the names of `Targets`.
TARGETS = {"image": "image", "noise": "noise", "noisy": "image + noise"}
NOISE_NORM_RATIO = 0.5
# Shown from every fit, and these shares of the way to its last iteration.
SHOWN_FIRST, SHOWN_SHARES = (0, 10, 50, 100), (7 / 15, 11 / 15, 1.0)


class StudyNetwork(NamedTuple):
    """One network of the study, in the published size and in the one for a laptop."""

    zoo_name: str
    lr: float
    short_options: Mapping[str, Any]
    short_lr: float
    published_psnr: float
    options: Mapping[str, Any] = {}
    input_range: tuple[float, float] = (0, 1)


NETWORKS: dict[str, StudyNetwork] = {
    "img2img_mixer": StudyNetwork(
        "img2img_mixer_untrained",
        lr=1e-4,
        short_options={"embed_dim": 64, "depth": 6, "mlp_ratio": 2},
        short_lr=1e-2,
        published_psnr=18.1,
    ),
    "unet": StudyNetwork(
        "unet_c30", lr=5e-3, short_options={"chans": 8}, short_lr=3e-2, published_psnr=20.2
    ),
    "vit": StudyNetwork(
        "vit_h8",
        lr=1e-3,
        options={"embed_dim": 46 * 8},
        short_options={"embed_dim": 44 * 2, "num_heads": 2},
        short_lr=1e-3,
        published_psnr=17.3,
        input_range=(-0.25, 0.25),
    ),
    "original_mixer": StudyNetwork(
        "original_mixer",
        lr=5e-4,
        short_options={"embed_dim": 64, "depth": 4, "tokens_mlp_dim": 48, "channels_mlp_dim": 128},
        short_lr=3e-2,
        published_psnr=16.3,
    ),
}


def halve_every(iterations: int) -> int:
    """Iterations between two halvings of the learning rate (500 of the published 1,501)."""
    return max(iterations // 3, 1)


def shown_iterations(iterations: int) -> tuple[int, ...]:
    """Iterations whose output is kept; of 1,501 the published 0, 10, 50, 100, 700, 1100, 1500."""
    last = iterations - 1
    late = (round(share * last) for share in SHOWN_SHARES)
    return tuple(sorted({i for i in SHOWN_FIRST if i < last} | set(late)))


def lr_of(model: str, config: UntrainedConfig) -> float:
    """The first learning rate of a network's fits."""
    own = NETWORKS[model].short_lr if config.short else NETWORKS[model].lr
    return own if config.lr is None else config.lr


def network_options(model: str, config: UntrainedConfig) -> dict[str, Any]:
    """All constructor arguments of one of the study's networks: grey, of the picture's size."""
    network = NETWORKS[model]
    options = {**network.options, **(network.short_options if config.short else {})}
    options |= {"in_chans": 1, "out_chans": 1}
    if "img_size" in model_config(network.zoo_name):
        options["img_size"] = config.side
    return model_config(network.zoo_name, **options)


def identity(config: UntrainedConfig, targets: Targets) -> dict[str, Any]:
    """What makes a study of these targets the study it is, as its folder keeps it."""
    networks = {
        model: {
            "network": network.zoo_name,
            "options": network_options(model, config),
            "lr": lr_of(model, config),
            "input_range": list(network.input_range),
        }
        for model, network in NETWORKS.items()
    }
    return {
        "task": "untrained",
        "size": config.side,
        "iterations": config.steps,
        **{key: getattr(config, key) for key in ("sigma", "lr", "seed", "short")},
        "picture_digest": hashlib.sha256(targets.image.tobytes()).hexdigest()[:10],
        "networks": networks,
    }


class Targets(NamedTuple):
    """What is fitted: a picture, noise, and their sum. All are float32, (H, W), in units of the picture's maximum.

    Args:
        image: the clean picture, 0 to 1.
        noise: what is added to it; not clipped, neither alone nor in the sum.
    """

    image: Image
    noise: Image

    @property
    def noisy(self) -> Image:
        """Picture plus noise."""
        return self.image + self.noise

    @property
    def noise_std(self) -> float:
        """The noise's root mean square, in units of the picture's maximum."""
        return float(np.sqrt(np.mean(np.square(self.noise, dtype=np.float64))))

    def reference(self, target: str) -> Image:
        """What a fit to that target is compared with: the clean picture, for pure noise the noise."""
        return self.noise if target == "noise" else self.image


def square_picture(pixels: Image, size: int, name: str) -> Image:
    """Make a picture grey, scale it down until its shorter side is `size`, cut out the centre, divide by its maximum.

    Args:
        pixels: (H, W, 1 or 3), any range from 0 on.
        size: side of the result in pixels.
        name: what errors call the picture.

    Returns:
        float32 (size, size), 0 to 1.

    Raises:
        InputError: a picture that is smaller, or one flat grey.
    """
    from skimage.transform import resize

    grey = with_channels(pixels, 1)[..., 0]
    shorter = min(grey.shape)
    if shorter < size:
        raise InputError(
            f"{name}: {grey.shape[1]} x {grey.shape[0]} pixels, smaller than --size {size}; "
            "give a larger picture or a smaller --size"
        )
    if shorter > size:
        shape = tuple(round(side * size / shorter) for side in grey.shape)
        grey = resize(grey, shape, order=1, anti_aliasing=True)
    square = centre(grey, size)
    if np.ptp(square) < 1e-3:
        raise InputError(f"{name}: its centre is one flat grey; there is nothing to fit")
    return (square / square.max()).astype(np.float32)


def make_targets(image: Image, sigma: float | None, seed: int) -> Targets:
    """Draw the noise of a study; the same seed gives the same noise, scaled.

    Args:
        image: (H, W), 0 to 1.
        sigma: standard deviation in [0, 255] units; None makes the noise's norm half the picture's.
        seed: of numpy's legacy generator, which the published noise was drawn with (seed 1).
    """
    noise = np.random.RandomState(seed).standard_normal(image.shape)
    if sigma is None:
        noise *= NOISE_NORM_RATIO * np.linalg.norm(image) / np.linalg.norm(noise)
    else:
        noise *= image_units(sigma)
    return Targets(image, noise.astype(np.float32))


def mse_of(image: Image, reference: Image) -> float:
    """Mean squared error, summed up in float64."""
    return float(np.mean(np.square(image.astype(np.float64) - reference)))


def psnr_of(mse: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error, with a data range of 1."""
    return float(-10 * np.log10(max(mse, np.finfo(np.float64).tiny)))
