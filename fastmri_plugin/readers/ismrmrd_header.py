"""What a raw ISMRMRD file's header says of its sampling, element by element and with what may be missing."""

from __future__ import annotations

from dataclasses import dataclass

from fastmri_plugin.headers import Elements
from img2img_recon.support.errors import InputError


@dataclass(frozen=True)
class Encoding:
    """The first encoding of a raw file.

    Attributes:
        encoded: (x, y, z) samples; x is the read-out.
        recon: (x, y, z) of the image.
        encoded_mm: field of view of the samples, None if it is not given.
        recon_mm: field of view of the image, None if it is not given.
        center: index of the k = 0 line of both phase encodings, None if it is not given.
        calibration: the mode of parallel-imaging calibration, "" if none.
        protocol: the pulse sequence's name.
    """

    encoded: tuple[int, int, int]
    recon: tuple[int, int, int]
    encoded_mm: tuple[float, float, float] | None
    recon_mm: tuple[float, float, float] | None
    center: tuple[int | None, int | None]
    calibration: str
    protocol: str

    @property
    def oversampling(self) -> float:
        """Of the read-out."""
        if self.encoded_mm and self.recon_mm:
            return max(self.encoded_mm[0] / self.recon_mm[0], 1.0)
        return 2.0 if self.encoded[0] == 2 * self.recon[0] else 1.0

    @property
    def voxel_mm(self) -> tuple[float, float, float] | None:
        """(row, column, slice) spacing of the image at the resolution that was measured."""
        if not self.encoded_mm or not self.recon_mm:
            return None
        row, column = (self.encoded_mm[k] / self.encoded[k] for k in (0, 1))
        return row, column, self.recon_mm[2] / self.recon[2]

    @property
    def size(self) -> tuple[int, int]:
        """(rows, columns) of the image, at the resolution that was measured."""
        rows = round(self.encoded[0] / self.oversampling)
        if self.encoded_mm and self.recon_mm:
            share = min(self.recon_mm[1] / self.encoded_mm[1], 1.0)
            return max(rows, 1), max(round(self.encoded[1] * share), 1)
        return max(min(rows, self.recon[0]), 1), min(self.encoded[1], self.recon[1])


def read_encoding(xml: bytes | str) -> Encoding:
    """Read the first encoding.

    Raises:
        InputError: no header, no matrix sizes, or sampling that is not Cartesian.
    """
    header = Elements(xml)

    def matrix(space: str) -> tuple[int, int, int]:
        size = f"encoding/{space}/matrixSize"
        x, y = (header.needed(f"{size}/{axis}", 1) for axis in "xy")
        return x, y, header.number(f"{size}/z", 1) or 1

    def field_of_view(space: str) -> tuple[float, float, float] | None:
        texts = [header.text(f"encoding/{space}/fieldOfView_mm/{axis}") for axis in "xyz"]
        try:
            x, y, z = map(float, texts)
        except ValueError:
            return None
        return (x, y, z) if all(0 < value < 1e5 for value in (x, y, z)) else None

    trajectory = header.text("encoding/trajectory") or "cartesian"
    if trajectory.lower() != "cartesian":
        raise InputError(f"header: the trajectory is {trajectory!r}, allowed: cartesian")
    encoded = matrix("encodedSpace")
    try:
        recon = matrix("reconSpace")
    except InputError:
        recon = encoded
    limits = "encoding/encodingLimits/kspace_encoding_step_{}/center"
    return Encoding(
        encoded=encoded,
        recon=recon,
        encoded_mm=field_of_view("encodedSpace"),
        recon_mm=field_of_view("reconSpace"),
        center=(header.number(limits.format(1), 0), header.number(limits.format(2), 0)),
        calibration=header.text("encoding/parallelImaging/calibrationMode"),
        protocol=header.text("measurementInformation/protocolName"),
    )
