"""Readers of scans in many formats, one module each behind one protocol: what a file holds becomes a `Scan`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from fastmri_plugin.flags import ReadFlags
from fastmri_plugin.readers import arrays, bart, dicom, matlab, nifti, raw_ismrmrd, twix, volume
from fastmri_plugin.readers.scan import Scan
from fastmri_plugin.volumes import unreadable
from img2img_recon.support.errors import InputError, named


class Reader(Protocol):
    """A module that reads one format.

    Attributes:
        NAME: the format, in words of an error.
        SUFFIXES: endings of its files.
    """

    NAME: str
    SUFFIXES: tuple[str, ...]

    def recognises(self, path: Path) -> bool:
        """Whether it reads the file or folder; an exception counts as no."""

    def open_scan(self, path: Path, flags: ReadFlags, stack: ExitStack) -> Scan:
        """Check the headers; what is opened is closed with the stack."""


# HDF5 files say themselves what they are; the reader of plain arrays takes what nobody knows.
READERS: tuple[Reader, ...] = (nifti, bart, dicom, twix, volume, raw_ismrmrd, matlab, arrays)
SUFFIXES = tuple(dict.fromkeys(suffix for reader in READERS for suffix in reader.SUFFIXES))


@contextmanager
def open_scan(path: Path, flags: ReadFlags) -> Iterator[Scan]:
    """Open a scan of any format that is known.

    Args:
        path: file, BART's name without ending, or folder of a DICOM series.
        flags: how to read it.

    Raises:
        InputError: no such file, no such format, or a damaged file.
    """
    with ExitStack() as stack:
        scan = _opened(path, flags, stack)
        if flags.phase is not None:
            scan = scan.with_phase(_opened(flags.phase, flags, stack))
        yield scan


def _opened(path: Path, flags: ReadFlags, stack: ExitStack) -> Scan:
    if not _exists(path):
        raise InputError(f"{path}: no such file")
    reader = next((reader for reader in READERS if _recognises(reader, path)), None)
    if reader is None:
        raise InputError(
            f"{path}: of no known format; allowed are {', '.join(SUFFIXES)} files and DICOM series"
        )
    with named(str(path)), unreadable(f"not {reader.NAME}, or damaged"):
        return reader.open_scan(path, flags, stack)


def check_paths(paths: Sequence[Path]) -> None:
    """See that one of the paths exists; it opens nothing.

    Raises:
        InputError: none does.
    """
    if paths and not any(map(_exists, paths)):
        raise InputError(f"{paths[0]}: no such file")


def _exists(path: Path) -> bool:
    return os.path.exists(path) or bart.recognises(path)


def find_scans(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Scans among files and in folders, and what in the folders is none.

    Raises:
        InputError: a folder without a scan, or not one path that exists.
    """
    check_paths(paths)
    scans: list[Path] = []
    others: list[Path] = []
    for path in paths:
        if not path.is_dir() or _recognises(dicom, path):
            scans.append(path)
            continue
        # Hidden files do not count, and the .hdr of a BART pair is found with its .cfl.
        items = [
            item
            for item in sorted(path.iterdir())
            if not item.name.startswith(".")
            and not (item.suffix == ".hdr" and item.with_suffix(".cfl").exists())
        ]
        found = [item for item in items if _is_scan(item)]
        if not found:
            raise InputError(
                f"{path}: no scan in this folder (known: {', '.join(SUFFIXES)}, DICOM series)"
            )
        scans += found
        others += [item for item in items if item not in found]
    return scans, others


def _is_scan(path: Path) -> bool:
    readers = READERS if path.is_file() else (dicom,)
    return any(_recognises(reader, path) for reader in readers)


def _recognises(reader: Reader, path: Path) -> bool:
    try:
        return reader.recognises(path)
    except Exception:  # what h5py raises on a damaged file: it is somebody else's, or nobody's
        return False
