"""Files of scans, made by other libraries than the readers use, or by a format's documented layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import h5py
import ismrmrd
import nibabel
import numpy as np
import pydicom
import scipy.io
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import MRImageStorage, generate_uid

XML = (
    '<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding>'
    "<encodedSpace><matrixSize><x>{x}</x><y>{y}</y><z>{z}</z></matrixSize>"
    "<fieldOfView_mm><x>{fx}</x><y>{fy}</y><z>5</z></fieldOfView_mm></encodedSpace>"
    "<reconSpace><matrixSize><x>{rx}</x><y>{y}</y><z>{z}</z></matrixSize>"
    "<fieldOfView_mm><x>{frx}</x><y>{fy}</y><z>5</z></fieldOfView_mm></reconSpace>"
    "<encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>{last}</maximum>"
    "<center>{center}</center></kspace_encoding_step_1></encodingLimits>"
    "<trajectory>{trajectory}</trajectory>{more}</encoding></ismrmrdHeader>"
)


def random_complex(*shape: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def header(x: int, y: int, **changes: Any) -> str:
    """A raw file's header, read-out oversampled twofold, voxels of 1 x 2 x 5 mm."""
    facts = {
        "x": x,
        "y": y,
        "z": 1,
        "rx": x // 2,
        "fx": x,
        "frx": x // 2,
        "fy": 2 * y,
        "last": y - 1,
    }
    facts |= {"center": y // 2, "trajectory": "cartesian", "more": ""}
    return XML.format(**(facts | changes))


def bart(stem: Path, kspace: np.ndarray) -> Path:
    """K-space (slices, coils, rows, columns) in BART's layout, slices along dimension 13."""
    slices, coils, rows, columns = kspace.shape
    shape = [rows, columns, 1, coils, *[1] * 9, slices, 1, 1]
    Path(f"{stem}.hdr").write_text("# Dimensions\n" + " ".join(map(str, shape)) + " \n")
    kspace.transpose(2, 3, 1, 0).astype("<c8").ravel(order="F").tofile(f"{stem}.cfl")
    return Path(f"{stem}.cfl")


def matlab5(path: Path, kspace: np.ndarray) -> Path:
    scipy.io.savemat(path, {"kspace": kspace.transpose(2, 3, 1, 0), "note": "text"})
    return path


def matlab73(path: Path, kspace: np.ndarray) -> Path:
    """What MATLAB writes of (rows, columns, coils, slices): HDF5, axes reversed, real and imag fields."""
    reversed_ = kspace.transpose(0, 1, 3, 2)
    values = np.empty(reversed_.shape, np.dtype([("real", "<f4"), ("imag", "<f4")]))
    values["real"], values["imag"] = reversed_.real, reversed_.imag
    with h5py.File(path, "w", userblock_size=512) as file:
        file["kspace"] = values
        file["kspace"].attrs["MATLAB_class"] = np.bytes_("single")
    return path


def raw(path: Path, lines: list[dict[str, Any]], xml: str) -> Path:
    """Acquisitions as `ismrmrd` writes them: of each the data (coils, samples), counters, flags and fields."""
    dataset = ismrmrd.Dataset(str(path), "dataset", create_if_needed=True)
    dataset.write_xml_header(xml.encode())
    for line in lines:
        acquisition = ismrmrd.Acquisition.from_array(np.ascontiguousarray(line["data"]))
        acquisition.center_sample = line["data"].shape[1] // 2
        for name, value in line.get("idx", {}).items():
            setattr(acquisition.idx, name, value)
        for name, value in line.get("fields", {}).items():
            target = getattr(acquisition, name)
            if isinstance(value, tuple):
                target[:] = value
            else:
                setattr(acquisition, name, value)
        for number in line.get("flags", ()):
            acquisition.setFlag(number)
        dataset.append_acquisition(acquisition)
    dataset.close()
    return path


def raw_lines(kspace: np.ndarray, columns: Any = None, **idx: int) -> list[dict[str, Any]]:
    """Imaging lines of k-space (slices, coils, rows, columns), in a scanner's interleaved order."""
    order = range(kspace.shape[-1]) if columns is None else columns
    return [
        {
            "data": kspace[s, :, :, column],
            "idx": {"kspace_encode_step_1": column, "slice": s, **idx},
        }
        for column in order
        for s in reversed(range(len(kspace)))
    ]


def nifti(path: Path, volume: np.ndarray, affine: np.ndarray) -> Path:
    """Magnitudes (slices, rows, columns) as NIfTI (columns, rows, slices)."""
    nibabel.save(nibabel.Nifti1Image(volume.transpose(2, 1, 0), affine), path)
    return path


def enhanced_dicom(
    path: Path,
    volume: np.ndarray,
    heights: Sequence[float],
    slopes: Sequence[float] | None,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> Path:
    """Integer magnitudes (frames, rows, columns), 0.5 x 0.6 mm, axial, in one file.

    Places and slopes by frame, and a vendor's own places; `more` of all frames.
    """

    def group(keyword: str, **values: Any) -> pydicom.Dataset:
        item, outer = pydicom.Dataset(), pydicom.Dataset()
        for name, value in values.items():
            setattr(item, name, value)
        setattr(outer, keyword, [item])
        return outer

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.EnhancedMRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.SeriesInstanceUID, dataset.NumberOfFrames = generate_uid(), len(volume)
    dataset.Rows, dataset.Columns = volume.shape[1:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    shared = group("PixelMeasuresSequence", PixelSpacing=[0.5, 0.6], SliceThickness=4)
    shared.update(group("PlaneOrientationSequence", ImageOrientationPatient=[1, 0, 0, 0, 1, 0]))
    dataset.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for height, slope in zip(heights, slopes or [None] * len(volume), strict=True):
        place = group("PlanePositionSequence", ImagePositionPatient=[0, 0, height])
        if slope is not None:
            scale = {"RescaleSlope": slope, "RescaleIntercept": 0}
            place.update(group("PixelValueTransformationSequence", **scale))
        own = pydicom.Dataset()  # as a vendor may have it, after the others
        own.ImagePositionPatient = [7, 7, 7]
        place.private_block(0x2005, "Philips MR Imaging DD 005", create=True).add_new(
            0x0F, "SQ", [own]
        )
        frames.append(place)
    for name, value in more.items():
        setattr(dataset, name, value)
    dataset.PerFrameFunctionalGroupsSequence = frames
    dataset.PixelData = volume.astype("<u2").tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return path


def dicom_series(folder: Path, volume: np.ndarray, places: Sequence[float] | None = None) -> Path:
    """Integer magnitudes (slices, rows, columns), 1.5 x 0.75 mm, 4 mm apart, coronal, in files of any order."""
    folder.mkdir()
    series = generate_uid()
    for index, pixels in enumerate(volume):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = (
            MRImageStorage,
            generate_uid(),
        )
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        dataset = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
        dataset.SOPClassUID, dataset.SOPInstanceUID = (
            MRImageStorage,
            meta.MediaStorageSOPInstanceUID,
        )
        dataset.SeriesInstanceUID, dataset.Modality, dataset.InstanceNumber = series, "MR", 7
        dataset.Rows, dataset.Columns = pixels.shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation = 15, 0
        dataset.PixelSpacing, dataset.SliceThickness = [1.5, 0.75], 3
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
        dataset.ImagePositionPatient = [-10, 20 + 4 * (places or range(99))[index], 30]
        dataset.RescaleSlope, dataset.RescaleIntercept = 2, 1
        dataset.PixelData = pixels.astype("<u2").tobytes()
        dataset.save_as(folder / f"IM{(index * 5) % 7}", enforce_file_format=True)
    return folder
