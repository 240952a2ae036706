"""What is used of fastMRI, or one line on how to install it."""

from __future__ import annotations

from img2img_recon.support.errors import InputError

INSTALL = (
    "pip install --no-deps fastmri, then pip install h5py ismrmrd pandas pyyaml requests runstats sigpy "
    "(without --no-deps, fastmri brings torchvision and with it another build of torch)"
)

try:
    from fastmri.data.subsample import create_mask_for_mask_type
    from fastmri.data.transforms import UnetDataTransform, VarNetDataTransform
    from fastmri.pl_modules import MriModule, UnetModule, VarNetModule
except ImportError as error:
    raise InputError(f"fastmri cannot be imported ({error}); {INSTALL}") from None

__all__ = [
    "MriModule",
    "UnetDataTransform",
    "UnetModule",
    "VarNetDataTransform",
    "VarNetModule",
    "create_mask_for_mask_type",
]
