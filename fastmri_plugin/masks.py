"""Which k-space columns are measured: fastMRI's masks, by type, accelerations and centre fractions.

Nothing heavy is imported before a mask is drawn, so that command lines can be checked with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from img2img_recon.support.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from fastmri.data.subsample import MaskFunc

    from fastmri_plugin.volumes import VolumeInfo

MaskType = Literal["random", "equispaced_fraction", "equispaced", "magic", "magic_fraction"]


def usual_center_fraction(acceleration: int) -> float:
    """FastMRI's centre fraction: 0.08 at 4x, 0.04 at 8x, and in proportion elsewhere."""
    return min(0.32 / acceleration, 1.0)


@dataclass(frozen=True)
class MaskSpec:
    """How k-space columns are chosen.

    Attributes:
        mask_type: fastMRI's word for how the columns outside the centre are spread.
        accelerations: 1 or more, e.g. (4,) or (4, 8); one of them is drawn per mask.
        center_fractions: (0, 1], share of the columns kept at the centre, one per acceleration.

    Raises:
        InputError: fractions that do not go with the accelerations.
    """

    mask_type: MaskType
    accelerations: tuple[int, ...]
    center_fractions: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.accelerations) != len(self.center_fractions):
            raise InputError(
                f"--center_fractions: given {len(self.center_fractions)} for "
                f"{len(self.accelerations)} accelerations, one per acceleration is needed"
            )
        for acceleration, fraction in zip(self.accelerations, self.center_fractions, strict=True):
            if fraction * acceleration >= 1 and not (acceleration == 1 and fraction < 1):
                raise InputError(
                    f"--center_fractions: {fraction:g} at {acceleration}x leaves no column outside "
                    f"the centre; allowed there: below {1 / acceleration:g}"
                )

    def mask_func(self) -> MaskFunc:
        """FastMRI's mask function."""
        from fastmri_plugin.framework import create_mask_for_mask_type

        return create_mask_for_mask_type(
            self.mask_type, list(self.center_fractions), list(self.accelerations)
        )

    def drawn(self, name: str, num_columns: int) -> np.ndarray:
        """The mask that fastMRI draws in validation for the volume file `name`, bool (W,)."""
        return draw_columns(self.mask_func(), num_columns, name_seed(name))

    def mask_of(self, info: VolumeInfo) -> np.ndarray:
        """The volume's mask, bool (W,): the stored one, else the one its name seeds."""
        from fastmri_plugin.volumes import stored_mask

        stored = stored_mask(info) if info.has_mask else None
        return self.drawn(info.name, info.num_columns) if stored is None else stored


def name_seed(fname: str) -> tuple[int, ...]:
    """FastMRI's seed of a volume's mask: the code points of its file name."""
    return tuple(map(ord, fname))


def draw_columns(
    mask_func: MaskFunc, num_columns: int, seed: int | tuple[int, ...] | None
) -> np.ndarray:
    """A sampling mask over the phase-encode columns, bool (W,), drawn by one of fastMRI's mask functions."""
    mask, _ = mask_func((1, num_columns, 1), seed=seed)
    return mask.numpy().reshape(num_columns).astype(bool)
