"""Listing the volumes of a split, with a cache of what their files say of themselves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastmri_plugin import Challenge
from fastmri_plugin.volumes import TARGET_KEYS, VolumeInfo, read_volume_info
from img2img_recon.support.errors import InputError
from img2img_recon.support.files import cache_dir, write_json
from img2img_recon.support.progress import Track, silent

CACHE_VERSION = 2


def split_folder(data_path: Path, challenge: Challenge, split: str) -> Path:
    """The folder of one split, `data_path/{challenge}_{split}`.

    Raises:
        InputError: it is not there; with what is there instead.
    """
    if not data_path.is_dir():
        raise InputError(f"{data_path} is not a folder")
    folder = data_path / f"{challenge}_{split}"
    if not folder.is_dir():
        found = ", ".join(sorted(item.name for item in data_path.iterdir() if item.is_dir()))
        raise InputError(f"{data_path} has no folder {folder.name} (found: {found or 'no folder'})")
    return folder


def list_volumes(
    folder: Path,
    challenge: Challenge,
    *,
    require_target: bool = False,
    on_broken: Callable[[InputError], None] | None = None,
    track: Track = silent,
) -> list[VolumeInfo]:
    """The volumes (`*.h5`) of a folder in the order of their names.

    What is read is kept in the user's cache folder as JSON, an entry per file under its path, size and
    time of change, always before any choice among the volumes, so that a stale or filtered listing
    cannot come back.

    Args:
        folder: the split's folder.
        challenge: what the files must hold.
        require_target: whether a volume without a target counts as broken.
        on_broken: called with the error of each broken file, which is then left out; without it, the
            first broken file's error is raised.
        track: shows the progress.

    Raises:
        InputError: no volume there, or a broken one.
    """
    paths = sorted(path for path in folder.glob("*.h5") if not path.name.startswith("."))
    if not paths:
        raise InputError(f"{folder}: no *.h5 volume in this folder")
    cache = _MetadataCache(folder, challenge)
    volumes: list[VolumeInfo] = []
    broken: list[InputError] = []
    for path in track(paths, f"reading headers in {folder.name}", len(paths)):
        try:
            info = cache.info(path)
            if require_target and info.target_shape is None:
                raise InputError(f"{path}: no target '{TARGET_KEYS[challenge]}'")
        except InputError as error:
            if on_broken is None:
                raise
            broken.append(error)
            continue
        volumes.append(info)
    cache.save()
    if not volumes:
        raise InputError(f"{broken[0]} (and no other volume in {folder.name} can be used)")
    if on_broken is not None:
        for problem in broken:
            on_broken(problem)
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
            info = read_volume_info(path, self.challenge)
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
