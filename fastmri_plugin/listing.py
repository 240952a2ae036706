"""Listing the volumes of a split, with a cache of what their files say of themselves."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastmri_plugin import Challenge
from fastmri_plugin.inspection import Need, check_needs, inspect_volume
from fastmri_plugin.volumes import VolumeInfo
from img2img_recon.support.errors import InputError
from img2img_recon.support.files import cache_dir, write_json
from img2img_recon.support.progress import Track, silent

CACHE_VERSION = 4
SUFFIXES = (".h5", ".hdf5")
SHOWN_NOTES = 5


def split_folder(data_path: Path, challenge: Challenge, split: str) -> Path:
    """The folder of one split: `data_path/{challenge}_{split}`, under fastMRI's later names too, or `data_path` itself.

    Later names are `singlecoil_test_v2`, `multicoil_test_full` and `multicoil_test_batch_0`.

    Raises:
        InputError: it is not there, with what is there instead; or there are several.
    """
    if not data_path.is_dir():
        raise InputError(f"{data_path} is not a folder")
    name = f"{challenge}_{split}"
    if (data_path / name).is_dir():
        return data_path / name
    later = re.compile(rf"{re.escape(name)}(_v\d+|_full|_batch_\d+)")
    own = data_path.resolve().name
    if own == name or later.fullmatch(own):
        return data_path
    folders = sorted(item for item in data_path.iterdir() if item.is_dir())
    fitting = [folder for folder in folders if later.fullmatch(folder.name)]
    if len(fitting) == 1:
        return fitting[0]
    found = ", ".join(folder.name for folder in fitting or folders)
    which = "; give one of them itself" if fitting else ""
    raise InputError(f"{data_path} has no folder {name} (found: {found or 'no folder'}{which})")


def volume_paths(folder: Path) -> list[Path]:
    """The HDF5 files of a folder in the order of their names; hidden ones do not count."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )


def list_volumes(
    folder: Path,
    challenge: Challenge,
    *,
    needs: Collection[Need] = (),
    skip_broken: bool = False,
    report: Callable[[str], None] = lambda message: None,
    track: Track = silent,
) -> list[VolumeInfo]:
    """The volumes of a folder in the order of their names, each fit for what it is needed for.

    What is read is kept in the user's cache folder as JSON, an entry per file under its path, size and
    time of change, always before any choice among the volumes, so that a stale or filtered listing
    cannot come back.

    Args:
        folder: the split's folder.
        challenge: what the files must hold.
        needs: see `fastmri_plugin.inspection`.
        skip_broken: leave broken files out and report each, rather than raise the first one's error.
        report: is told what was corrected or taken from elsewhere.
        track: shows the progress.

    Raises:
        InputError: no volume there, or a broken one.
    """
    paths = volume_paths(folder)
    if not paths:
        raise InputError(f"{folder}: no *.h5 volume in this folder")
    cache = _MetadataCache(folder, challenge)
    volumes: list[VolumeInfo] = []
    broken: list[InputError] = []
    for path in track(paths, f"reading volumes in {folder.name}", len(paths)):
        try:
            info = cache.info(path)
            check_needs(info, needs)
        except InputError as error:
            if not skip_broken:
                raise
            broken.append(error)
            continue
        volumes.append(info)
    cache.save()
    if not volumes:
        raise InputError(f"{broken[0]} (and no other volume in {folder.name} can be used)")
    notes = [f"skipped: {problem}" for problem in broken]
    corrected = [info for info in volumes if info.notes]
    notes += [f"{info.path}: {note}" for info in corrected[:SHOWN_NOTES] for note in info.notes]
    if len(corrected) > SHOWN_NOTES:
        notes.append(
            f"{folder}: {len(corrected) - SHOWN_NOTES} more volumes with notes of this kind"
        )
    for note in notes:
        report(note)
    return volumes


class _MetadataCache:
    """`VolumeInfo` per file of a folder, kept as JSON under (path, size, time of change)."""

    def __init__(self, folder: Path, challenge: Challenge) -> None:
        self.challenge = challenge
        key = f"{folder.resolve()}|{challenge}|{CACHE_VERSION}"
        self.file = cache_dir("metadata") / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
        try:
            self.known = json.loads(self.file.read_text())
        except (OSError, ValueError):
            self.known = {}
        self.current: dict[str, dict] = {}

    def info(self, path: Path) -> VolumeInfo:
        try:
            stat = path.stat()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
        entry = self.known.get(key)
        if entry is None:
            info = inspect_volume(path, self.challenge)
            entry = asdict(info)
            del entry["path"]
        self.current[key] = entry
        lists_as_tuples: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in entry.items()
        }
        return VolumeInfo(path=path, **lists_as_tuples)

    def save(self) -> None:
        if self.current != self.known:
            write_json(self.file, self.current)
