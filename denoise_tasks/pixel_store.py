"""Decoded images in a memory-mapped file in the user's cache, so that an epoch decodes nothing."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from denoise_tasks.noise import centre
from denoise_tasks.pictures import read_spanned
from img2img_recon.support.errors import InputError
from img2img_recon.support.files import cache_dir, locked, make_folder_once, write_json
from img2img_recon.support.progress import Track, silent

T = TypeVar("T")
R = TypeVar("R")

CACHE_VERSION = 2
PIXELS, INDEX = "pixels.u8", "index.json"
# ITU-R BT.601: how bright the eye sees red, green and blue.
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)


def with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Pixels (H, W, C) with another number of channels: grey is repeated, colour becomes its luminance.

    Raises:
        InputError: neither grey nor colour is asked for or given.
    """
    given = pixels.shape[2]
    if given == channels:
        return pixels
    if given == 1:
        return np.repeat(pixels, channels, axis=2)
    if given == 3 and channels == 1:
        return (pixels @ LUMINANCE)[..., None]
    raise InputError(f"an image of {given} channels cannot be turned into one of {channels}")


class PixelStore:
    """Decoded images, uint8 (H, W, C) each, in one memory-mapped file.

    Attributes:
        names: file names as given to `open_store`, relative to its root.
        shapes: (H, W, C) of each image.
        broken: what was left out, and why.
    """

    def __init__(self, folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        self.folder = folder
        self.names: list[str] = index["names"]
        self.shapes = [tuple(shape) for shape in index["shapes"]]
        self.broken: list[str] = index["broken"]
        self.maxima: list[int] = index["maxima"]
        sizes = [int(np.prod(shape)) for shape in self.shapes]
        self._offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self._pixels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __getstate__(self) -> dict[str, object]:
        # A loader process maps the file itself instead of being sent the pixels.
        return {**self.__dict__, "_pixels": None}

    def image(self, number: int) -> np.ndarray:
        """A read-only view (H, W, C) of an image; only the pixels that are touched are read."""
        if self._pixels is None:
            self._pixels = np.memmap(self.folder / PIXELS, np.uint8, "r")
        start, end = self._offsets[number], self._offsets[number + 1]
        return self._pixels[start:end].reshape(self.shapes[number])


def open_store(
    paths: Sequence[Path],
    *,
    root: Path,
    channels: int,
    centre_size: int | None = None,
    companions: Sequence[Path] | None = None,
    on_broken: Callable[[str], None] = lambda message: None,
    track: Track = silent,
) -> PixelStore:
    """Decode images once, in parallel, into the user's cache folder; later calls only map the file.

    The entry is keyed by the files' names, sizes and times of change and by what is kept of them. Two
    processes that ask for it at once build it once.

    Args:
        paths: image files, in order.
        root: folder that the stored names are relative to.
        channels: 1 or 3; see `with_channels`.
        centre_size: keep the central square of this side; None keeps whole images.
        companions: of every file, one of the same scene; see `read_spanned`.
        on_broken: told what cannot be decoded and was left out, each time the store is opened.
        track: progress over the files.

    Raises:
        InputError: none of the images can be decoded.
    """
    identity = {
        "version": CACHE_VERSION,
        "files": [_content(path) for path in paths],
        "channels": channels,
        "centre_size": centre_size,
        "companions": [_content(path) for path in companions or ()],
    }
    beside = dict(zip(paths, companions or (), strict=companions is not None))
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:20]
    cache = cache_dir("pixels")

    def decode(path: Path) -> np.ndarray | str:
        try:
            picture = read_spanned(path, beside.get(path))
            # Bytes need no detour through floats, unless colours are mixed.
            direct = picture.bits == 8 and picture.samples.shape[2] <= channels
            pixels = with_channels(picture.samples if direct else picture.pixels, channels)
        except InputError as error:
            return str(error)
        kept = pixels if centre_size is None else centre(pixels, centre_size)
        return kept if direct else np.round(kept * 255).astype(np.uint8)

    def fill(folder: Path) -> None:
        names, shapes, maxima, broken = [], [], [], []
        with (folder / PIXELS).open("wb") as file, ThreadPoolExecutor() as pool:
            for path, decoded in zip(
                paths,
                track(_ahead(pool, decode, paths), "decoding images", len(paths)),
                strict=True,
            ):
                if isinstance(decoded, str):
                    broken.append(decoded)
                    continue
                names.append(name_in(path, root))
                shapes.append(decoded.shape)
                maxima.append(int(decoded.max()))
                file.write(decoded.tobytes())
        if not names:
            raise InputError(f"{root}: none of its {len(paths)} images can be read: {broken[0]}")
        content = {"names": names, "shapes": shapes, "maxima": maxima, "broken": broken}
        write_json(folder / INDEX, content)

    # Who comes second waits for the first one's pixels.
    with locked(cache / f".{key}.lock", math.inf, f"{cache}: another process works in it"):
        store = PixelStore(make_folder_once(cache / key, fill))
    for message in store.broken:
        on_broken(message)
    return store


def _content(path: Path) -> list[str | int]:
    """What a file is known by: where it is, its size and its time of change."""
    stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


def name_in(path: Path, root: Path) -> str:
    """The name of an image of a store: its path below `root`."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def _ahead(
    pool: ThreadPoolExecutor, function: Callable[[T], R], items: Sequence[T], depth: int = 64
) -> Iterator[R]:
    """`map` over threads, in order, with at most `depth` results waiting."""
    waiting = [pool.submit(function, item) for item in items[:depth]]
    for position in range(len(items)):
        yield waiting[position % depth].result()
        if position + depth < len(items):
            waiting[position % depth] = pool.submit(function, items[position + depth])
