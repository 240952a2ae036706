"""Make a trained denoiser one of the networks that come with the package.

python denoise_tasks/release.py RUN --name denoise-color
python denoise_tasks/release.py weights.pt --options options.json --name denoise-grey --half
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from img2img_recon.support.cli import flag, parse_config, script
from img2img_recon.support.errors import InputError, reason
from img2img_recon.support.types import GreyLevels, NonNegativeFloat

if TYPE_CHECKING:
    from torch import Tensor, nn

LARGEST_BYTES = 4_000_000


@dataclass(frozen=True, kw_only=True)
class ReleaseConfig:
    """Write a denoiser's weights as the package ships them."""

    source: Path = flag(
        help="run folder, checkpoint, or a torch file of weights with --options",
        positional=True,
        basic=True,
    )
    name: str = flag(help="of the network, as denoise-color", basic=True)
    options: Path | None = flag(
        None, help="JSON of a window mixer's options, alone or under `network`", basic=True
    )
    sigma: tuple[NonNegativeFloat, GreyLevels] = flag(
        (0.0, 75.0), help="least and greatest noise of its training, of 255 grey levels", basic=True
    )
    half: bool = flag(False, help="store numbers of 16 bits", basic=True)
    out: Path = flag(
        Path("img2img_recon/weights"), help="folder; the file is NAME.safetensors", basic=True
    )


def weights_in(content: Any, source: Path) -> Mapping[str, Tensor]:
    """The weights of a torch file: averaged ones where there are any.

    Raises:
        InputError: none in it.
    """
    import torch

    for key in ("ema", "net"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            return content[key]
    if isinstance(content, dict) and all(isinstance(w, torch.Tensor) for w in content.values()):
        return content
    raise InputError(f"{source}: no weights; allowed: tensors by name, alone or under ema or net")


def opened(config: ReleaseConfig) -> nn.Module:
    """The network of the command line, with its description.

    Raises:
        InputError: a source that cannot be read, or options that do not fit its weights.
    """
    import pickle

    import torch

    from img2img_recon.trained import load, network_of

    if config.options is None:
        return load(config.source)
    try:
        options = json.loads(config.options.read_text())
        content = torch.load(config.source, map_location="cpu", weights_only=True)
    except (OSError, ValueError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        files = f"{config.source} with --options {config.options}"
        raise InputError(f"{files}: {reason(error)}") from None
    description = {
        "model": "window_mixer",
        "options": options.get("network", options),
        "wrapper": "residual",
    }
    if description["options"].get("noise_level_plane"):  # others know one kind of noise, not levels
        description["sigma"] = list(config.sigma)
    inside = {f"net.net.{key}": w for key, w in weights_in(content, config.source).items()}
    return network_of(description, inside, config.source)


def release(config: ReleaseConfig) -> Path:
    """Write the file.

    Raises:
        InputError: as `opened`, or the file would be too large.
    """
    from img2img_recon.hub import KEPT
    from img2img_recon.weights_file import write_weights

    network = opened(config)
    given = network.description
    assert isinstance(given, Mapping)
    description = {key: given[key] for key in KEPT if given.get(key) is not None}
    state = {key: w.half() if config.half else w for key, w in network.state_dict().items()}
    count = sum(w.numel() * w.element_size() for w in state.values())
    if count > LARGEST_BYTES:
        raise InputError(
            f"{config.source}: {count:,} bytes, allowed: {LARGEST_BYTES:,}; give --half"
        )
    path = config.out / f"{config.name}.safetensors"
    write_weights(path, state, {**description, "task": "denoising", "name": config.name})
    return path


@script
def main(words: Sequence[str] | None = None) -> None:
    """Write what the command line says."""
    print(f"written: {release(parse_config(ReleaseConfig, words))}")


if __name__ == "__main__":
    main()
