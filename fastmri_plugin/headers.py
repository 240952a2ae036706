"""The ISMRMRD header of a fastMRI volume: the few numbers that matter, read and written."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

from img2img_recon.support.errors import InputError

NAMESPACE = "http://www.ismrm.org/ISMRMRD"
# What a written header says where nothing is known: fastMRI's knees.
DEFAULT_VOXEL_MM = (0.4375, 0.4375, 4.5)
MAX_MATRIX = 1 << 16
FIELD_STRENGTH_T = 3.0
GYROMAGNETIC_RATIO_HZ_PER_T = 42_577_478.5


@dataclass(frozen=True)
class Header:
    """What a reconstruction needs from an ISMRMRD header.

    Attributes:
        encoded_size: (x, y, z) samples of the k-space matrix: read-out, phase encode, partitions.
        recon_size: (H, W) pixels of the reconstructed image, which are the header's (x, y).
        ky_center: index of the k = 0 line among the acquired phase-encode lines.
        ky_max: index of the last acquired phase-encode line (the first is 0).
    """

    encoded_size: tuple[int, int, int]
    recon_size: tuple[int, int]
    ky_center: int
    ky_max: int

    @property
    def acquired_columns(self) -> tuple[int, int]:
        """First and one-past-last acquired column of the k-space; the others are zero-filled."""
        left = self.encoded_size[1] // 2 - self.ky_center
        return left, left + self.ky_max + 1

    @classmethod
    def of_columns(
        cls, kspace_size: tuple[int, int], recon_size: tuple[int, int], columns: tuple[int, int]
    ) -> Header:
        """Describe an (H, W) k-space of which columns[0] to columns[1] - 1 were acquired."""
        height, width = kspace_size
        left, right = columns
        if not 0 <= left <= width // 2 < right <= width:
            raise ValueError(
                f"acquired columns {left} to {right - 1} miss the centre of {width} columns"
            )
        return cls(
            (height, width, 1), recon_size, ky_center=width // 2 - left, ky_max=right - left - 1
        )


class Elements:
    """Elements of an ISMRMRD header by their paths, a/b/c.

    They are looked up one by one, not through `ismrmrd.xsd`: that parser gives a missing matrix size the
    value 1 without a word and refuses elements that no reconstruction needs.

    Raises:
        InputError: no XML, or none of ISMRMRD; as in the methods one line, without the file's name.
    """

    def __init__(self, xml: bytes | str) -> None:
        try:
            self.root = ElementTree.fromstring(xml)
        except (ElementTree.ParseError, TypeError, ValueError, LookupError):
            raise InputError("ismrmrd_header is not an XML document") from None
        if self.root.tag != f"{{{NAMESPACE}}}ismrmrdHeader":
            raise InputError(
                f"ismrmrd_header: the root is {self.root.tag[:80]!r}, expected ismrmrdHeader of {NAMESPACE}"
            )

    def text(self, path: str) -> str:
        """The text of an element, "" without one."""
        names = "/".join(f"{{{NAMESPACE}}}{name}" for name in path.split("/"))
        return (self.root.findtext(names) or "").strip()

    def number(self, path: str, minimum: int) -> int | None:
        """A whole number, None without one.

        Raises:
            InputError: another text, or a number below the minimum or beyond all reason.
        """
        text = self.text(path)
        if not text:
            return None
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if not minimum <= value <= MAX_MATRIX:
            raise InputError(
                f"ismrmrd_header: {path} is {text[:40]!r}, expected an integer "
                f">= {minimum} and <= {MAX_MATRIX}"
            )
        return value

    def needed(self, path: str, minimum: int) -> int:
        """As `number`; an element that is missing is an error."""
        value = self.number(path, minimum)
        if value is None:
            raise InputError(f"ismrmrd_header: no element {path}")
        return value


def read_header(xml: bytes | str) -> Header:
    """Read an ISMRMRD header.

    Raises:
        InputError: see `Elements`.
    """
    number = Elements(xml).needed
    x, y, z = (number(f"encoding/encodedSpace/matrixSize/{axis}", 1) for axis in "xyz")
    limits = "encoding/encodingLimits/kspace_encoding_step_1"
    return Header(
        encoded_size=(x, y, z),
        recon_size=read_recon_size(xml),
        ky_center=number(f"{limits}/center", 0),
        ky_max=number(f"{limits}/maximum", 0),
    )


def read_recon_size(xml: bytes | str) -> tuple[int, int]:
    """(H, W) of the reconstructed image, whatever else the header holds.

    Raises:
        InputError: see `Elements`.
    """
    number = Elements(xml).needed
    recon = "encoding/reconSpace/matrixSize"
    return number(f"{recon}/x", 1), number(f"{recon}/y", 1)


def write_header(
    header: Header,
    *,
    num_coils: int = 1,
    pixel_size_mm: tuple[float, float, float] = DEFAULT_VOXEL_MM,
    protocol: str = "",
) -> str:
    """Write an ISMRMRD header that ismrmrd and fastMRI both read.

    Args:
        header: the matrix sizes and encoding limits.
        num_coils: receiver channels.
        pixel_size_mm: (read-out, phase encode, slice thickness); the fields of view follow from it.
        protocol: the pulse sequence's name; "" leaves it out.

    Returns:
        The XML document, ASCII.
    """
    from ismrmrd import xsd

    def space(size: tuple[int, int, int]) -> xsd.encodingSpaceType:
        x, y, z = (float(n * pixel) for n, pixel in zip(size, pixel_size_mm, strict=True))
        return xsd.encodingSpaceType(
            matrixSize=xsd.matrixSizeType(x=size[0], y=size[1], z=size[2]),
            fieldOfView_mm=xsd.fieldOfViewMm(x=x, y=y, z=z),
        )

    encoding = xsd.encodingType(
        encodedSpace=space(header.encoded_size),
        reconSpace=space((*header.recon_size, 1)),
        encodingLimits=xsd.encodingLimitsType(
            kspace_encoding_step_1=xsd.limitType(
                minimum=0, maximum=header.ky_max, center=header.ky_center
            )
        ),
        trajectory=xsd.trajectoryType.CARTESIAN,
    )
    measurement = xsd.measurementInformationType(
        patientPosition=xsd.patientPositionType.FFS, protocolName=protocol
    )
    document = xsd.ismrmrdHeader(
        measurementInformation=measurement if protocol else None,
        acquisitionSystemInformation=xsd.acquisitionSystemInformationType(
            systemFieldStrength_T=FIELD_STRENGTH_T, receiverChannels=num_coils
        ),
        experimentalConditions=xsd.experimentalConditionsType(
            H1resonanceFrequency_Hz=round(GYROMAGNETIC_RATIO_HZ_PER_T * FIELD_STRENGTH_T)
        ),
        encoding=[encoding],
    )
    return xsd.ToXML(document)
