"""What a raw ISMRMRD file's header says of its sampling, element by element and with what may be missing."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

from fastmri_plugin.headers import MAX_MATRIX, NAMESPACE
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
        InputError: no XML, no matrix sizes, or sampling that is not Cartesian.
    """
    try:
        root = ElementTree.fromstring(xml)
    except (ElementTree.ParseError, TypeError, ValueError):
        raise InputError("its ISMRMRD header is not an XML document") from None

    def text(path: str) -> str | None:
        found = root.findtext("/".join(f"{{{NAMESPACE}}}{name}" for name in path.split("/")))
        return found.strip() if found is not None and found.strip() else None

    def whole(path: str, least: int) -> int | None:
        found = text(path)
        if found is None:
            return None
        if not (found.isascii() and found.isdigit() and least <= int(found[:9]) <= MAX_MATRIX):
            raise InputError(
                f"header: {path} is {found!r}, expected a number from {least} to {MAX_MATRIX}"
            )
        return int(found)

    def matrix(space: str) -> tuple[int, int, int]:
        x, y, z = (whole(f"encoding/{space}/matrixSize/{axis}", 1) for axis in "xyz")
        if x is None or y is None:
            raise InputError(f"header: no element encoding/{space}/matrixSize")
        return x, y, z or 1

    def field_of_view(space: str) -> tuple[float, float, float] | None:
        values = []
        for axis in "xyz":
            try:
                values.append(float(text(f"encoding/{space}/fieldOfView_mm/{axis}") or "nan"))
            except ValueError:
                return None
        x, y, z = values
        return (x, y, z) if all(0 < value < 1e5 for value in values) else None

    trajectory = (text("encoding/trajectory") or "cartesian").lower()
    if trajectory != "cartesian":
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
        center=(whole(limits.format(1), 0), whole(limits.format(2), 0)),
        calibration=text("encoding/parallelImaging/calibrationMode") or "",
        protocol=text("measurementInformation/protocolName") or "",
    )
