"""Fits of the untrained study: one network to one target, stored as they are finished."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from denoise_tasks.untrained_study import (
    NETWORKS,
    TARGETS,
    Image,
    Targets,
    halve_every,
    lr_of,
    network_options,
    psnr_of,
    shown_iterations,
)
from img2img_recon.figures import label_of
from img2img_recon.networks.base import count_parameters
from img2img_recon.networks.zoo import build_model
from img2img_recon.support.errors import InputError
from img2img_recon.support.files import atomic_path
from img2img_recon.support.progress import Track, silent

if TYPE_CHECKING:
    from denoise_tasks.untrained import UntrainedConfig


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


Fits = Mapping[str, Mapping[str, Fit]]  # by network and target


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
    target: str,
    targets: Targets,
    config: UntrainedConfig,
    device: torch.device | str = "cpu",
    track: Track = silent,
) -> Fit:
    """Fit a network of `NETWORKS` to one target from its first weights.

    Raises:
        InputError: the error is no longer a finite number: the learning rate is too high.
    """
    network = first_network(model, config).to(device).train()
    network_input = first_input(model, config).to(device)
    wanted = torch.from_numpy(getattr(targets, target)).to(device)[None, None]
    reference = torch.from_numpy(targets.reference(target)).to(device)[None, None]
    optimizer = torch.optim.Adam(network.parameters(), lr=lr_of(model, config))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, halve_every(config.steps), gamma=0.5)
    # The curves and the best output stay on the device: reading them out would stall every step.
    curves = torch.zeros(2, config.steps, device=device)
    best, least = torch.zeros_like(wanted), torch.full((), torch.inf, device=device)
    shown, kept = list[Tensor](), shown_iterations(config.steps)
    label = f"{label_of(model)}, {TARGETS[target]}"
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
            f"--lr: with {lr_of(model, config):g} the fit of {model} to {TARGETS[target]} "
            f"diverged at iteration {broken[0]}; give a smaller one"
        )
    pictures = torch.cat(shown)[:, 0].cpu().numpy(), best[0, 0].cpu().numpy()
    return Fit(mse_target, mse_reference, *pictures, count_parameters(network), seconds)


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
    arrays |= {name: arrays[name].item() for name in ("parameters", "seconds")}
    return Fit(**arrays)


def run_fits(
    config: UntrainedConfig,
    targets: Targets,
    folder: Path,
    device: torch.device,
    track: Track = silent,
) -> Fits:
    """Make the fits that are missing; return all of the folder's finished networks, in the table's order."""
    fits = {}
    for model in NETWORKS:
        by_target = {}
        for target in TARGETS:
            path = folder / f"{model}-{target}.npz"
            fit = load_fit(path)
            if fit is None and model in config.model:
                fit = fit_network(model, target, targets, config, device, track)
                save_fit(path, fit)
            if fit is not None:
                by_target[target] = fit
        # A network of an earlier call belongs to the study too, once its three fits are there.
        if len(by_target) == len(TARGETS):
            fits[model] = by_target
    return fits
