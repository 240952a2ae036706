"""Image-to-image MLP-mixers and their rivals: tensor in, tensor out.

    from img2img_recon import build_model
    net = build_model("img2img_mixer", img_size=128)

Importing this needs torch alone; the U-Net also needs fastmri, when it is built.
"""

from img2img_recon.losses import SSIMLoss
from img2img_recon.networks.mixer import Img2ImgMixer
from img2img_recon.networks.published import load_reference_checkpoint
from img2img_recon.networks.zoo import build_model, list_models, model_config
from img2img_recon.support.errors import InputError
from img2img_recon.wrappers import AnySize, Normalized, Residual

__all__ = [
    "AnySize",
    "Img2ImgMixer",
    "InputError",
    "Normalized",
    "Residual",
    "SSIMLoss",
    "build_model",
    "list_models",
    "load_reference_checkpoint",
    "model_config",
]
