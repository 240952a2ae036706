"""Turn scans of many formats into fastMRI volumes.

    python fastmri_plugin/convert.py SOURCE --out DIR --split val --challenge singlecoil

SOURCE is a raw ISMRMRD file, a BART pair, a MATLAB, NIfTI, twix, .npy, .npz or .h5 file, or a DICOM file
or folder. One volume is written per group of slices, as DIR/{challenge}_{split}/{prefix}_{group}.h5.
The columns are phase encoded. K-space made from an image is *retrospective*: the centred orthonormal
Fourier transform of an image that a scanner has already reconstructed. It lacks the noise, the
over-sampled read-out and the separate coils of a measurement; results on it are not results on raw data.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from fastmri_plugin import Challenge
from fastmri_plugin.flags import ReadFlags
from img2img_recon.support.cli import flag, parse_config, script
from img2img_recon.support.errors import InputError
from img2img_recon.support.types import PositiveInt

CONVERTED_SPLITS = ("train", "val")


@dataclass(frozen=True)
class ConvertConfig(ReadFlags):
    """Convert scans (ISMRMRD, BART, MATLAB, NIfTI, DICOM, twix, arrays) to fastMRI volumes.

    Phase encoding is along the columns. K-space made from images is retrospective: say so with
    any result on it.
    """

    default_kind: ClassVar[Literal["image", "kspace"]] = "image"

    source: Path = flag(help="the file or DICOM folder to convert", positional=True)
    out: Path = flag(help="data folder; volumes go to OUT/{challenge}_{split}")
    split: str = flag(
        "train", help="train or val; test splits are made from val by freeze_split.py"
    )
    challenge: Challenge = flag("singlecoil", help="whether volumes have a coil axis", basic=True)
    slices_per_volume: PositiveInt | None = flag(
        None, help="cut the slices into volumes of this many; default: one volume"
    )
    volumes: tuple[str, ...] | None = flag(
        None, help="convert only these volume ids (of --group_key or counted from 0)"
    )
    coils: PositiveInt | None = flag(
        None, help="multicoil from single-coil data: number of simulated birdcage coils"
    )
    coil_maps: Path | None = flag(
        None, help="multicoil from single-coil data: .npy of complex maps (coils, H, W)"
    )
    recon_size: tuple[PositiveInt, ...] | None = flag(
        None, help="H W of the reconstructed centre; default: the whole image"
    )
    acquisition: str | None = flag(
        None, help="pulse sequence's name to store; default: the file's, else CONVERTED"
    )
    prefix: str | None = flag(None, help="start of the file names; default: the source's name")

    @property
    def simulates_coils(self) -> bool:
        """Whether coils are made from single-coil data."""
        return self.coils is not None or self.coil_maps is not None

    @property
    def coils_expected(self) -> bool:
        """Whether the source has coils."""
        return self.challenge == "multicoil" and not self.simulates_coils

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split not in CONVERTED_SPLITS:
            raise InputError(
                f"--split: given {self.split}, allowed: {', '.join(CONVERTED_SPLITS)}; a split with "
                "stored masks is made from val by fastmri_plugin/freeze_split.py"
            )
        if self.group_key is not None and self.slices_per_volume is not None:
            raise InputError("--group_key and --slices_per_volume: give one of the two")
        if self.coils is not None and self.coil_maps is not None:
            raise InputError("--coils and --coil_maps: give one of the two")
        if self.challenge == "singlecoil" and (self.coils or self.coil_maps):
            raise InputError("--coils and --coil_maps: only with --challenge multicoil")
        if self.recon_size is not None and len(self.recon_size) != 2:
            given = " ".join(map(str, self.recon_size))
            raise InputError(f"--recon_size: given {given}, expected two positive numbers H W")
        if self.prefix is not None:
            safe_name(self.prefix, "--prefix")


def safe_name(text: str, what: str) -> str:
    """The text, if it can be part of a file's name.

    Raises:
        InputError: it cannot; `what` is named.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", text):
        raise InputError(
            f"{what}: {text!r} cannot be part of a file name; letters, digits, '.', '_', '-' can"
        )
    return text


@script
def main(words: Sequence[str] | None = None) -> None:
    """Convert what the command line says."""
    config = parse_config(ConvertConfig, words)
    from fastmri_plugin.conversion import convert
    from img2img_recon.support.progress import bar
    from img2img_recon.training.runner import report

    written = convert(config, report=report, track=bar)
    print(f"{len(written)} volumes written to {written[0].parent}")


if __name__ == "__main__":
    main()
