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
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from denoise_tasks.noise import centre, image_units
from denoise_tasks.pixel_store import with_channels
from img2img_recon.figures import label_of
from img2img_recon.networks.zoo import build_model, model_config
from img2img_recon.support.errors import InputError
from img2img_recon.support.files import atomic_path
from img2img_recon.support.progress import Track, silent

if TYPE_CHECKING:
    from denoise_tasks.untrained import UntrainedConfig

Image = NDArray[np.float32]
Target = Literal["image", "noise", "noisy"]

TARGETS: tuple[Target, ...] = get_args(Target)
TARGET_LABELS: dict[Target, str] = {"image": "image", "noise": "noise", "noisy": "image + noise"}
NOISE_NORM_RATIO = 0.5
# Shown from every fit, and these shares of the way to its last iteration.
SHOWN_FIRST, SHOWN_SHARES = (0, 10, 50, 100), (7 / 15, 11 / 15, 1.0)


class StudyNetwork(NamedTuple):
    """One network of the study, in the published size and in the one for a laptop."""

    zoo_name: str
    options: Mapping[str, Any]
    lr: float
    short_options: Mapping[str, Any]
    short_lr: float
    published_psnr: float
    input_range: tuple[float, float] = (0, 1)


NETWORKS: dict[str, StudyNetwork] = {
    "img2img_mixer": StudyNetwork(
        "img2img_mixer_untrained",
        {},
        lr=1e-4,
        short_options={"embed_dim": 64, "depth": 6, "mlp_ratio": 2},
        short_lr=1e-2,
        published_psnr=18.1,
    ),
    "unet": StudyNetwork(
        "unet_c30", {}, lr=5e-3, short_options={"chans": 8}, short_lr=3e-2, published_psnr=20.2
    ),
    "vit": StudyNetwork(
        "vit_h8",
        {"embed_dim": 46 * 8},
        lr=1e-3,
        short_options={"embed_dim": 44 * 2, "num_heads": 2},
        short_lr=1e-3,
        published_psnr=17.3,
        input_range=(-0.25, 0.25),
    ),
    "original_mixer": StudyNetwork(
        "original_mixer",
        {},
        lr=5e-4,
        short_options={"embed_dim": 64, "depth": 4, "tokens_mlp_dim": 48, "channels_mlp_dim": 128},
        short_lr=3e-2,
        published_psnr=16.3,
    ),
}
PUBLISHED_METHODS = {"bm3d": 23.5}


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
        "picture_digest": targets.digest,
        "networks": networks,
    }


@dataclass(frozen=True, eq=False)
class Targets:
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

    @property
    def digest(self) -> str:
        """Ten hexadecimal digits that tell pictures apart."""
        return hashlib.sha256(np.ascontiguousarray(self.image).tobytes()).hexdigest()[:10]

    def target(self, name: Target) -> Image:
        """What a fit of that name is fitted to."""
        return {"image": self.image, "noise": self.noise, "noisy": self.noisy}[name]

    def reference(self, name: Target) -> Image:
        """What a fit to that target is compared with: the clean picture, for pure noise the noise."""
        return self.noise if name == "noise" else self.image


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
    if square.max() - square.min() < 1e-3:
        raise InputError(f"{name}: its centre is one flat grey; there is nothing to fit")
    return (square / square.max()).astype(np.float32)


def make_targets(image: Image, sigma: float | None, seed: int) -> Targets:
    """Draw the noise of a study.

    Args:
        image: (H, W), 0 to 1.
        sigma: standard deviation in [0, 255] units; None makes the noise's norm half the picture's.
        seed: the same seed gives the same noise, scaled.
    """
    # numpy's legacy generator, which the published noise was drawn with (seed 1).
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


class Fit(NamedTuple):
    """One network fitted to one target.

    Entry i of a curve belongs to the output after i Adam steps; entry 0 is the untrained network's.

    Args:
        mse_target: (iterations,), error to the target: what is minimised.
        mse_reference: (iterations,), error to the clean picture; for pure noise, to the noise.
        shown: (K, H, W), the outputs at `shown_iterations`.
        best: (H, W), the output nearest to the reference.
        parameters: number of weights.
        seconds: time the fit took.
    """

    mse_target: NDArray[np.float32]
    mse_reference: NDArray[np.float32]
    shown: Image
    best: Image
    parameters: int
    seconds: float

    @property
    def best_iteration(self) -> int:
        """Adam steps to the output nearest to the reference."""
        return int(self.mse_reference.argmin())

    @property
    def best_psnr(self) -> float:
        """PSNR in dB of that output."""
        return psnr_of(float(self.mse_reference.min()))

    def iterations_to(self, level: float) -> int | None:
        """Adam steps until the error to the target is at most `level`; None if it never is."""
        below = np.flatnonzero(self.mse_target <= level)
        return int(below[0]) if below.size else None


Fits = Mapping[str, Mapping[Target, Fit]]


def first_network(model: str, config: UntrainedConfig) -> nn.Module:
    """The network with the first weights of its fits, which depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return build_model(NETWORKS[model].zoo_name, **network_options(model, config))


def first_input(model: str, config: UntrainedConfig) -> Tensor:
    """The fixed random input of a network's fits, (1, 1, size, size)."""
    low, high = NETWORKS[model].input_range
    generator = torch.Generator().manual_seed(config.seed)
    return low + (high - low) * torch.rand((1, 1, config.side, config.side), generator=generator)


def fit_network(
    model: str,
    target: Target,
    targets: Targets,
    config: UntrainedConfig,
    *,
    device: torch.device | None = None,
    track: Track = silent,
) -> Fit:
    """Fit one network to one target from its first weights.

    Args:
        model: a key of `NETWORKS`.
        target: which target.
        targets: picture and noise, (size, size).
        config: of the study.
        device: where to compute; the CPU by default.
        track: shows the iterations.

    Raises:
        InputError: the error is no longer a finite number: the learning rate is too high.
    """
    device = device or torch.device("cpu")
    network = first_network(model, config).to(device).train()
    network_input = first_input(model, config).to(device)
    wanted = torch.from_numpy(targets.target(target)).to(device)[None, None]
    reference = torch.from_numpy(targets.reference(target)).to(device)[None, None]
    optimizer = torch.optim.Adam(network.parameters(), lr=lr_of(model, config))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, halve_every(config.steps), gamma=0.5)
    # The curves and the best output stay on the device: reading them out would stall every step.
    curves = torch.zeros(2, config.steps, device=device)
    best, least = torch.zeros_like(wanted), torch.full((), torch.inf, device=device)
    shown, kept = list[Tensor](), shown_iterations(config.steps)
    label = f"{label_of(model)}, {TARGET_LABELS[target]}"
    start = time.perf_counter()
    for iteration in track(range(config.steps), label, config.steps):
        output = network(network_input)
        loss = F.mse_loss(output, wanted)
        with torch.no_grad():
            error = F.mse_loss(output, reference)
            curves[0, iteration], curves[1, iteration] = loss, error
            best = torch.where(error < least, output, best)
            least = torch.minimum(error, least)
            if iteration in kept:
                shown.append(output.detach())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    mse_target, mse_reference = curves.cpu().numpy()
    seconds = time.perf_counter() - start
    broken = np.flatnonzero(~np.isfinite(mse_target))
    if broken.size:
        raise InputError(
            f"--lr: with {lr_of(model, config):g} the fit of {model} to {TARGET_LABELS[target]} "
            f"diverged at iteration {broken[0]}; give a smaller one"
        )
    return Fit(
        mse_target,
        mse_reference,
        torch.cat(shown)[:, 0].cpu().numpy(),
        best[0, 0].cpu().numpy(),
        sum(weight.numel() for weight in network.parameters()),
        seconds,
    )


def save_fit(path: Path, fit: Fit) -> None:
    """Write a fit as .npz, whole or not at all."""
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        np.savez_compressed(handle, **fit._asdict())


def load_fit(path: Path) -> Fit | None:
    """Read a fit; None if there is none.

    Raises:
        InputError: a file that is no fit.
    """
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in Fit._fields}
    # numpy reports a foreign file as one of: BadZipFile, ValueError, KeyError, OSError, EOFError ...
    except Exception as error:
        raise InputError(
            f"{path}: not a fit of this study ({type(error).__name__}); delete it or give another --run"
        ) from None
    arrays |= {"parameters": int(arrays["parameters"]), "seconds": float(arrays["seconds"])}
    return Fit(**arrays)


def run_fits(
    config: UntrainedConfig,
    targets: Targets,
    folder: Path,
    *,
    device: torch.device | None = None,
    track: Track = silent,
) -> Fits:
    """Make the fits that are missing; return all of the folder's finished networks, in the table's order."""
    fits: dict[str, Mapping[Target, Fit]] = {}
    for model in NETWORKS:
        by_target: dict[Target, Fit] = {}
        for target in TARGETS:
            path = folder / f"{model}-{target}.npz"
            fit = load_fit(path)
            if fit is None and model in config.model:
                fit = fit_network(model, target, targets, config, device=device, track=track)
                save_fit(path, fit)
            if fit is not None:
                by_target[target] = fit
        # A network of an earlier call belongs to the study too, once its three fits are there.
        if len(by_target) == len(TARGETS):
            fits[model] = by_target
    return fits
