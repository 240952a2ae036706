"""Which k-space columns are measured: fastMRI's masks, by type, accelerations and centre fractions.

Nothing heavy is imported before a mask is drawn, so that command lines can be checked with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from img2img_recon.support.errors import InputError, named

if TYPE_CHECKING:
    import numpy as np
    import torch

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

    def check_width(self, num_columns: int) -> None:
        """Whether fastMRI's functions can draw over so many columns.

        Raises:
            InputError: they divide by zero there, or draw from nothing.
        """
        for acceleration, fraction in zip(self.accelerations, self.center_fractions, strict=True):
            low = round(num_columns * fraction)
            # What they divide by, or the number of columns that they choose.
            outside = {
                "random": num_columns - low,
                "equispaced_fraction": num_columns - low * acceleration,
                "magic_fraction": round(num_columns / acceleration) - max(low, 1),
            }
            if outside.get(self.mask_type, 1) <= 0:
                raise InputError(
                    f"--center_fractions: {fraction:g} at {acceleration}x keeps {low} of {num_columns} columns "
                    f"at the centre, and {self.mask_type} masks have none left outside it; give a smaller "
                    "fraction, or another --accel or --mask_type"
                )

    def check(self, infos: Iterable[VolumeInfo]) -> None:
        """Whether a mask can be drawn for every volume that needs one.

        Raises:
            InputError: not for the file that it names.
        """
        for info in infos:
            if not info.has_mask:
                with named(str(info.path)):
                    self.check_width(info.num_columns)

    def others(self, infos: Sequence[VolumeInfo]) -> str | None:
        """What to say of volumes whose own masks are of another acceleration than these; None without such."""
        accelerations = {
            info.name: round(info.num_columns / max(info.sampled_columns, 1), 1)
            for info in infos
            if info.has_mask
        }
        other = {
            name: found
            for name, found in accelerations.items()
            if not any(found / 1.4 <= given <= found * 1.4 for given in self.accelerations)
        }
        if not other:
            return None
        name, found = next(iter(other.items()))
        given = " ".join(map(str, self.accelerations))
        return (
            f"{len(other)} of {len(infos)} volumes have masks of their own of another acceleration than "
            f"--accel {given}, and keep them: {name} has about {found:g}x"
        )

    def mask_func(self) -> ColumnMasks:
        """Draws the masks; called as fastMRI's mask functions are."""
        return ColumnMasks(self)

    def drawn(self, name: str, num_columns: int) -> np.ndarray:
        """The mask that fastMRI draws in validation for the volume file `name`, bool (W,)."""
        return draw_columns(self.mask_func(), num_columns, name_seed(name))

    def mask_of(self, info: VolumeInfo) -> np.ndarray:
        """The volume's mask, bool (W,): its own, else the one its name seeds."""
        from fastmri_plugin.volumes import own_mask

        own = own_mask(info)
        return self.drawn(info.name, info.num_columns) if own is None else own


class ColumnMasks:
    """FastMRI's mask function of a `MaskSpec`; it refuses in one line what fastMRI cannot draw.

    Where fastMRI keeps no column at all (few columns, high acceleration), the centre is kept.

    Attributes:
        rng: the generator that fastMRI draws from.
    """

    def __init__(self, spec: MaskSpec) -> None:
        from fastmri_plugin.framework import create_mask_for_mask_type

        self.spec = spec
        self._fastmri: Any = create_mask_for_mask_type(
            spec.mask_type, list(spec.center_fractions), list(spec.accelerations)
        )
        self.rng = self._fastmri.rng

    def __call__(
        self,
        shape: Sequence[int],
        offset: int | None = None,
        seed: int | tuple[int, ...] | None = None,
    ) -> tuple[torch.Tensor, int]:
        """The mask, float (1, ..., W, 1), and the number of columns at its centre, for k-space (..., W, 2).

        Raises:
            InputError: see `MaskSpec.check_width`.
        """
        self.spec.check_width(shape[-2])
        mask, num_low = self._fastmri(shape, offset, seed)
        if not mask.any():
            mask[..., shape[-2] // 2, :] = 1
        return mask, num_low


def name_seed(fname: str) -> tuple[int, ...]:
    """FastMRI's seed of a volume's mask: the code points of its file name."""
    return tuple(map(ord, fname))


def draw_columns(
    mask_func: ColumnMasks, num_columns: int, seed: int | tuple[int, ...] | None
) -> np.ndarray:
    """A sampling mask over the phase-encode columns, bool (W,)."""
    mask, _ = mask_func((1, num_columns, 1), seed=seed)
    return mask.numpy().reshape(num_columns).astype(bool)
