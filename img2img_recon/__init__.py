"""Image-to-image MLP-mixers and their rivals: tensor in, tensor out.

    from img2img_recon import build_model
    net = build_model("img2img_mixer", img_size=128)

A name is imported when it is first used, so that importing the package costs nothing; the networks need
torch alone, and the U-Net also fastmri.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from img2img_recon.denoising import denoise
    from img2img_recon.hub import from_pretrained
    from img2img_recon.metrics import SSIMLoss
    from img2img_recon.networks.mixers import Img2ImgMixer
    from img2img_recon.networks.published import load_reference_checkpoint
    from img2img_recon.networks.zoo import build_model, list_models, model_config
    from img2img_recon.support.errors import InputError
    from img2img_recon.trained import load
    from img2img_recon.wrappers import AnySize, Normalized, Residual

__all__ = [
    "AnySize",
    "Img2ImgMixer",
    "InputError",
    "Normalized",
    "Residual",
    "SSIMLoss",
    "build_model",
    "denoise",
    "from_pretrained",
    "list_models",
    "load",
    "load_reference_checkpoint",
    "model_config",
]

_HOME = {
    "AnySize": "wrappers",
    "Img2ImgMixer": "networks.mixers",
    "InputError": "support.errors",
    "Normalized": "wrappers",
    "Residual": "wrappers",
    "SSIMLoss": "metrics",
    "build_model": "networks.zoo",
    "denoise": "denoising",
    "from_pretrained": "hub",
    "list_models": "networks.zoo",
    "load": "trained",
    "load_reference_checkpoint": "networks.published",
    "model_config": "networks.zoo",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
