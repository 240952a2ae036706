"""Flags that several MRI scripts share: data, masks, and which split is reconstructed with what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from fastmri_plugin import Challenge
from fastmri_plugin.masks import MaskSpec, MaskType, usual_center_fraction
from img2img_recon.support.cli import flag
from img2img_recon.support.errors import InputError
from img2img_recon.support.types import NonNegativeInt, PositiveInt, UnitShare
from img2img_recon.training.options import Accelerator

DEFAULT_ACCELERATIONS = (4,)
SplitName = Literal["test", "challenge", "val", "test_v2", "challenge_v2", "test_full"]


@dataclass(frozen=True, kw_only=True)
class DataFlags:
    """Which data, and which k-space columns of volumes that store no mask."""

    challenge: Challenge = flag(help="which fastMRI challenge", group="data", basic=True)
    accel: tuple[PositiveInt, ...] | None = flag(
        None,
        help="acceleration, 4 or 8; of several, one is drawn per mask",
        group="data",
        basic=True,
        aliases=("accelerations",),
    )
    data_path: Path | None = flag(
        None,
        help="folder with {challenge}_train, {challenge}_val ...; default: fastmri_dirs.yaml, else "
        "built-in synthetic data",
        group="data",
        basic=True,
    )
    anatomy: Literal["knee", "brain"] = flag(
        "knee", help="which path of fastmri_dirs.yaml stands in for --data_path", group="data"
    )
    center_fractions: tuple[UnitShare, ...] | None = flag(
        None,
        help="share of columns kept at the centre, one per acceleration; default: 0.32 / acceleration",
        group="data",
    )
    mask_type: MaskType | None = flag(
        None, help="fastMRI's mask type; default: random", group="data"
    )

    def __post_init__(self) -> None:
        self.masks()

    def masks(self) -> MaskSpec:
        """The masks that the flags describe.

        Raises:
            InputError: values that are not allowed, or do not go together.
        """
        accel = self.accel or DEFAULT_ACCELERATIONS
        fractions = self.center_fractions or tuple(map(usual_center_fraction, accel))
        return MaskSpec(self.mask_type or "random", accel, fractions)

    def gives_masks(self) -> bool:
        """Whether a flag about the masks was given."""
        flags = (self.mask_type, self.accel, self.center_fractions)
        return any(given is not None for given in flags)


@dataclass(frozen=True, kw_only=True)
class SplitFlags(DataFlags):
    """Which split is reconstructed, and with which trained runs and methods."""

    run: tuple[Path, ...] | None = flag(
        None,
        help="network that comes with the package, run folder, checkpoint or .safetensors file; may be repeated",
        basic=True,
    )
    method: tuple[str, ...] | None = flag(
        None,
        help="method without training: zero_filled, tv, l1_wavelet; may be repeated",
        basic=True,
    )
    test_split: SplitName = flag("test", help="split of --data_path", group="data", basic=True)
    test_path: Path | None = flag(
        None, help="folder of volumes, in place of a split of --data_path", group="data", basic=True
    )
    accelerator: Accelerator = flag("auto", help="where networks run", group="cluster", basic=True)
    batch_size: PositiveInt = flag(1, help="slices per batch (of one size)", basic=True)
    num_workers: NonNegativeInt = flag(0, help="loader processes")
    progress: bool = flag(True, help="progress bars", basic=True)


AXES = ("slices", "coils", "rows", "columns", "complex", "repetitions", "echoes", "partitions")


@dataclass(frozen=True, kw_only=True)
class ReadFlags:
    """How files of scans are read, whatever their format.

    Attributes:
        default_kind: what complex arrays are taken for without `--kind`.
        coils_expected: whether an array of three axes has coils; None leaves it to `kind`.
    """

    default_kind: ClassVar[Literal["image", "kspace"]] = "kspace"

    key: str | None = flag(
        None, help="dataset of the file; needed when it holds several", group="data", basic=True
    )
    axes: tuple[str, ...] | None = flag(
        None,
        help=f"names of an array's axes in order, of: {' '.join(AXES)}; default: a guess, which is said",
        group="data",
        basic=True,
    )
    kind: Literal["image", "kspace"] | None = flag(
        None, help="what an array holds, where its format does not say it", group="data", basic=True
    )
    complex_axis: int | None = flag(
        None, help="axis with the real and the imaginary part, for real-valued arrays", group="data"
    )
    scale_key: str | None = flag(
        None, help="dataset with one factor per slice to multiply by", group="data"
    )
    group_key: str | None = flag(None, help="dataset with one volume id per slice", group="data")
    repetition: NonNegativeInt | None = flag(
        None, help="repetition to take; default: their average", group="data"
    )
    echo: NonNegativeInt | None = flag(None, help="echo to take; default: 0", group="data")
    phase: Path | None = flag(
        None,
        help="phase (radians) of magnitude images, a file of the same form; default: 0",
        group="data",
    )

    def __post_init__(self) -> None:
        names = self.axis_names() or ("rows", "columns")
        unknown = [name for name in names if name not in AXES]
        twice = [name for name in names if names.count(name) > 1]
        if unknown or twice or not {"rows", "columns"} <= set(names):
            raise InputError(
                f"--axes: given {' '.join(names)}; allowed: each at most once of {', '.join(AXES)}, "
                "rows and columns among them"
            )

    @property
    def coils_expected(self) -> bool | None:
        """See the class."""
        return None

    def axis_names(self) -> tuple[str, ...] | None:
        """The words of `--axes`, which may be one text in quotes."""
        return None if self.axes is None else tuple(" ".join(self.axes).replace(",", " ").split())
