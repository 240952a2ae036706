"""Raw ISMRMRD files: Cartesian acquisitions, sorted by their counters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fastmri_plugin.flags import ReadFlags
from fastmri_plugin.kspace import MAX_SLICE_BYTES, center_crop, centred_fft, centred_ifft
from fastmri_plugin.readers.ismrmrd_header import Encoding, read_encoding
from fastmri_plugin.readers.scan import Scan
from img2img_recon.support.errors import InputError

NAME = "a raw ISMRMRD file"
SUFFIXES: tuple[str, ...] = (".h5", ".hdf5", ".mrd")
NOISE, CALIBRATION, CALIBRATION_AND_IMAGING, REVERSE = 19, 20, 21, 22
# Navigation, phase correction, feedback (two kinds), dummies, surface-coil correction, phase stabilisation (two).
NOT_IMAGING = (23, 24, 26, 27, 28, 29, 30, 31)
# Slices are evenly apart up to this share of their distance.
UNEVEN = 0.05
SAME_DIRECTION = 0.01
# Counters whose first value is taken, in the words of a note.
CHOSEN = {"phase": "cardiac phases", "set": "sets"}


def recognises(path: Path) -> bool:
    """By a group that holds acquisitions."""
    with h5py.File(path, "r") as file:
        return _acquisitions(file, None) is not None


def _acquisitions(file: h5py.File, key: str | None) -> h5py.Dataset | None:
    """The dataset `data` of a group beside `xml`; `key` names the group or the dataset."""
    names = [key.removesuffix("/data")] if key else list(file)
    for name in names:
        group = file.get(name)
        if (
            isinstance(group, h5py.Group)
            and "xml" in group
            and isinstance(group.get("data"), h5py.Dataset)
        ):
            data = group["data"]
            if {"head", "data"} <= set(data.dtype.names or ()):
                return data
    return None


def open_scan(path: Path, flags: ReadFlags, stack: ExitStack) -> Scan:
    """Sort the acquisitions by their headers; samples are read slice by slice (3-D: at once)."""
    file = stack.enter_context(h5py.File(path, "r"))
    data = _acquisitions(file, flags.key)
    if data is None:
        raise InputError(
            f"--key: no group {flags.key!r} with acquisitions (found: {', '.join(file)})"
        )
    xml = np.asarray(data.parent["xml"][()]).reshape(-1)
    encoding = read_encoding(xml[0] if len(xml) else b"")
    return _Raw(path, data, encoding, flags).scan()


class _Raw:
    """The acquisitions of one file, of which only the headers are in memory."""

    def __init__(
        self, path: Path, data: h5py.Dataset, encoding: Encoding, flags: ReadFlags
    ) -> None:
        self.path, self.data, self.encoding = path, data, encoding
        self.notes: list[str] = []
        self.heads = data.fields("head")[:]
        if len(self.heads) == 0:
            raise InputError("holds no acquisitions")
        imaging = np.flatnonzero(self._is_imaging())
        for counter, words in CHOSEN.items():
            imaging = self._choose(imaging, counter, None, words)
        imaging = self._choose(imaging, "contrast", flags.echo or 0, "echoes", "--echo")
        imaging = self._choose(
            imaging, "repetition", flags.repetition, "repetitions", "--repetition"
        )
        if len(imaging) == 0:
            raise InputError("holds no imaging acquisitions")
        channels = np.unique(self.heads["active_channels"][imaging])
        if len(channels) > 1 or channels[0] == 0:
            raise InputError(
                f"acquisitions of {', '.join(map(str, channels))} coils, expected one number"
            )
        self.num_coils = int(channels[0])
        size = (encoding.encoded[2], self.num_coils, *encoding.encoded[:2])
        if int(np.prod(size, dtype=object)) * 8 > MAX_SLICE_BYTES:
            raise InputError(f"header: (partitions, coils, x, y) = {size} is too large to be true")
        self.imaging = imaging
        self.slices = self._slices_by_place()
        _, y, z = encoding.encoded
        self.columns = self._places("kspace_encode_step_1", y, encoding.center[0])
        self.partitions = self._places("kspace_encode_step_2", z, encoding.center[1])
        self.whiten = self._whitening()

    def _slices_by_place(self) -> np.ndarray:
        """Numbers of the slices along their normal: scanners may count them as they measure them."""
        numbers = self.heads["idx"]["slice"][self.imaging]
        slices, first = np.unique(numbers, return_index=True)
        heads = self.heads[self.imaging[first]]
        if np.ptp(heads["slice_dir"], axis=0).max() > SAME_DIRECTION:
            return slices  # no stack: a localiser, say
        along = heads["position"].astype(float) @ heads["slice_dir"][0].astype(float)
        signs = np.sign(np.diff(along.round(3)))
        # In order already, one way or the other, or in no known places.
        return slices if len(set(signs)) < 2 else slices[np.argsort(along, kind="stable")]

    def _places(self, counter: str, count: int, center: int | None) -> np.ndarray:
        """Where the acquisitions lie in the matrix along a phase encoding of so many lines."""
        said = self.heads["idx"][counter].astype(int)
        places = said + (0 if center is None else count // 2 - center)
        outside = self.imaging[(places[self.imaging] < 0) | (places[self.imaging] >= count)]
        if len(outside):
            number = outside[0]
            raise InputError(
                f"acquisition {number}: {counter} is {said[number]}, the header has {count} lines"
            )
        return places

    def _flagged(self, *numbers: int) -> np.ndarray:
        """Of every acquisition, whether any of these flags is set."""
        return self.heads["flags"] & np.uint64(sum(1 << (n - 1) for n in numbers)) != 0

    def _is_imaging(self) -> np.ndarray:
        """Lines that make the image: without noise, corrections, and calibration of another kind."""
        others = self.heads["encoding_space_ref"] != 0
        keep = ~self._flagged(NOISE, *NOT_IMAGING) & ~others
        apart = keep & self._flagged(CALIBRATION) & ~self._flagged(CALIBRATION_AND_IMAGING)
        if apart.any():
            if self.encoding.calibration in ("", "embedded"):
                self.notes.append(f"{apart.sum()} calibration lines: used with the image's")
            else:
                keep &= ~apart
                self.notes.append(
                    f"{apart.sum()} calibration lines ({self.encoding.calibration}): left out"
                )
        if others.any():
            self.notes.append(f"{others.sum()} acquisitions of further encodings: left out")
        return keep

    def _choose(
        self, chosen: np.ndarray, counter: str, wanted: int | None, words: str, flag: str = ""
    ) -> np.ndarray:
        """Acquisitions of one value of a counter; all repetitions, where none is wanted."""
        values = self.heads["idx"][counter][chosen]
        found = np.unique(values)
        if len(found) < 2 and not wanted:
            return chosen
        if counter == "repetition" and wanted is None:
            self.notes.append(f"{len(found)} repetitions: averaged (--repetition N takes one)")
            return chosen
        index = wanted or 0
        if index >= len(found):
            raise InputError(f"{flag}: given {index}, allowed: 0 to {len(found) - 1}")
        other = f" ({flag} N takes another)" if flag else ""
        self.notes.append(f"{len(found)} {words}: number {index} is taken{other}")
        return chosen[values == found[index]]

    def _samples(self, chosen: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """(acquisition, complex (coils, samples)) without what is to be discarded, in runs of neighbours."""
        for run in np.split(chosen, np.flatnonzero(np.diff(chosen) != 1) + 1):
            stored = self.data.fields("data")[run[0] : run[-1] + 1]
            for number, values in zip(run, stored, strict=True):
                head = self.heads[number]
                count = int(head["number_of_samples"])
                flat = np.ascontiguousarray(values, dtype=np.float32).view(np.complex64)
                coils = int(head["active_channels"])
                if flat.size != coils * count:
                    raise InputError(
                        f"acquisition {number} holds {flat.size} samples, its header says {coils} x {count}"
                    )
                yield int(number), flat.reshape(coils, count)

    def _whitening(self) -> np.ndarray | None:
        """The matrix (coils, coils) that makes the coils' noise white, in the mean coil's units."""
        noise = np.flatnonzero(
            self._flagged(NOISE) & (self.heads["active_channels"] == self.num_coils)
        )
        if len(noise) == 0 or self.num_coils < 2:
            return None
        samples = np.concatenate([values for _, values in self._samples(noise)], axis=1).astype(
            complex
        )
        covariance = samples @ samples.conj().T / max(samples.shape[1] - 1, 1)
        level = float(np.trace(covariance).real) / self.num_coils
        try:
            if not (np.isfinite(level) and level > 0 and samples.shape[1] > self.num_coils):
                raise np.linalg.LinAlgError
            factor = np.linalg.inv(np.linalg.cholesky(covariance / level))
        except np.linalg.LinAlgError:
            self.notes.append(f"{len(noise)} noise scans: not used, their covariance is singular")
            return None
        self.notes.append(f"prewhitened with {len(noise)} noise scans")
        return factor

    def matrix(self, slice_number: int) -> np.ndarray:
        """K-space (partitions, coils, x, y) of one slice, the mean where a line was measured more than once."""
        x, y, z = self.encoding.encoded
        matrix = np.zeros((z, self.num_coils, x, y), np.complex64)
        counts = np.zeros((z, 1, x, y), np.uint16)
        chosen = self.imaging[self.heads["idx"]["slice"][self.imaging] == slice_number]
        reverse = self._flagged(REVERSE)
        for number, values in self._samples(chosen):
            head = self.heads[number]
            before, after = int(head["discard_pre"]), int(head["discard_post"])
            if reverse[number]:
                values, before, after = values[:, ::-1], after, before
            values = values[:, before : values.shape[1] - after]
            # Programs that do not fill in the centre leave 0, which no Cartesian read-out has.
            center = int(head["center_sample"]) or int(head["number_of_samples"]) // 2
            start = x // 2 - center + before
            stop = start + values.shape[1]
            if start < 0 or stop > x:
                raise InputError(
                    f"acquisition {number}: samples {start} to {stop - 1}, outside the {x} of the header"
                )
            if self.whiten is not None:
                values = self.whiten @ values
            where = self.partitions[number], slice(None), slice(start, stop), self.columns[number]
            matrix[where] += values
            counts[where] += 1
        matrix /= np.maximum(counts, 1)
        share = round(x / self.encoding.oversampling)
        if share < x:
            image = centred_ifft(matrix, (-2,))
            matrix = centred_fft(center_crop(image, (share, y)), (-2,))
        return matrix

    def scan(self) -> Scan:
        """The acquisitions as slices; of a 3-D scan, the partitions transformed."""
        x, y, z = self.encoding.encoded
        rows = round(x / self.encoding.oversampling)
        if rows < x:
            self.notes.append(f"read-out oversampling removed: {x} to {rows} rows")
        measured = np.zeros((z, y), bool)
        measured[self.partitions[self.imaging], self.columns[self.imaging]] = True
        mask = self._mask(measured)
        count = len(self.slices)
        read: Any = lambda index: self.matrix(int(self.slices[index]))[0]  # noqa: E731 - replaced below for 3-D
        if z > 1:
            volume = self._partitions(measured)
            count, read = z, volume.__getitem__
        size = self.encoding.size
        return Scan(
            path=self.path,
            shape=(count, self.num_coils, rows, y),
            read=read,
            recon_size=size,
            mask=mask,
            voxel_mm=self.encoding.voxel_mm,
            affine=self._affine(size, count),
            acquisition=self.encoding.protocol,
            notes=tuple(self.notes),
        )

    def _mask(self, measured: np.ndarray) -> np.ndarray | None:
        """Columns that every slice has; None if they are all, or of each slice its own, which its zeros say."""
        numbers = self.heads["idx"]["slice"][self.imaging]
        mask = np.asarray(measured.any(axis=0))
        for number in self.slices:
            own = np.isin(np.arange(len(mask)), self.columns[self.imaging[numbers == number]])
            if not np.array_equal(own, mask):
                return None
        return None if mask.all() else mask

    def _partitions(self, measured: np.ndarray) -> np.ndarray:
        if len(self.slices) > 1:
            raise InputError(f"holds {len(self.slices)} slabs of partitions, expected one")
        used = measured[measured.any(axis=1)]
        if (used != used[:1]).any():
            raise InputError(
                "is undersampled along the partitions; only whole columns may be left out"
            )
        self.notes.append(f"{len(measured)} partitions (3-D): transformed to slices")
        return centred_ifft(self.matrix(int(self.slices[0])), (0,))

    def _affine(self, size: tuple[int, int], count: int) -> np.ndarray | None:
        """From (column, row, slice) to RAS mm; the file's positions are slices' centres, in LPS."""
        spacing = self.encoding.voxel_mm
        numbers = self.heads["idx"]["slice"][self.imaging]
        heads = [self.heads[self.imaging[numbers == k][0]] for k in self.slices]
        axes = [
            np.asarray(heads[0][name], dtype=float)
            for name in ("phase_dir", "read_dir", "slice_dir")
        ]
        directions = np.stack(axes, axis=1)
        if spacing is None or not np.allclose(directions.T @ directions, np.eye(3), atol=1e-2):
            return None
        steps = directions * np.array([spacing[1], spacing[0], spacing[2]])
        places = np.stack([np.asarray(head["position"], dtype=float) for head in heads])
        centre = places[0]
        if len(places) > 1:
            apart = (places[-1] - centre) / (len(places) - 1)
            distance = np.linalg.norm(apart)
            if not np.allclose(np.diff(places, axis=0), apart, atol=UNEVEN * distance):
                return None
            steps[:, 2] = apart if distance > 0 else steps[:, 2]
        middle = np.array([size[1] // 2, size[0] // 2, count // 2 if len(self.slices) == 1 else 0])
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = steps, centre - steps @ middle
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
