"""Files that are whole or absent, and the user's cache folder."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from img2img_recon.support.errors import InputError

CACHE_VARIABLE = "IMG2IMG_CACHE"
TEMPORARY = ".writing."
LONGEST_SUFFIX = 32  # characters, of at most 4 bytes; names may have 255 bytes
NO_ROOM = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
PROBE_BYTES = 1 << 20


def cache_dir(*parts: str) -> Path:
    """A folder (made if need be) in the user's cache: `$IMG2IMG_CACHE`, else `$XDG_CACHE_HOME`, else `~/.cache`."""
    own = os.environ.get(CACHE_VARIABLE)
    shared = os.environ.get("XDG_CACHE_HOME")
    root = (
        Path(own) if own else (Path(shared) if shared else Path.home() / ".cache") / "img2img_recon"
    )
    folder = root.expanduser().joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder}: the cache folder cannot be made ({error.strerror}); "
            f"set {CACHE_VARIABLE} to a writable folder"
        ) from None
    return folder


def writable_folder(folder: Path, flag: str) -> Path:
    """Make `folder` if need be and prove that it can be written to; `flag` is named in the error."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except FileExistsError:
        raise InputError(f"{flag}: {folder} cannot be written to (it is no folder)") from None
    except OSError as error:
        raise InputError(f"{flag}: {folder} cannot be written to ({error.strerror})") from None
    return folder


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well.

    The data reach the disk before the name changes, so that a reader (or a run resumed after a power
    cut) finds the old file or the new one, never half of either.

    Raises:
        InputError: the folder cannot be written to, or the disk or the user's share of it is full.
    """
    path = Path(path)
    # The temporary's name is short: `path.name` may be as long as a file system allows.
    suffix = path.suffix if 0 < len(path.suffix) <= LONGEST_SUFFIX else ".part"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=TEMPORARY, suffix=suffix)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("r+b") as written:
            os.fsync(written.fileno())
        # mkstemp makes files private; a result is as readable as any file the user makes.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except Exception as error:
        full = _full(error, temporary)
        if full is None:
            raise
        raise InputError(f"{path}: {no_room(full)}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _full(error: Exception, temporary: Path) -> OSError | None:
    """That there is no room for more, if so; torch does not say that it was the reason."""
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return error
    try:
        with temporary.open("ab") as file:
            file.write(bytes(PROBE_BYTES))
    except OSError as refused:
        return refused if refused.errno in NO_ROOM else None
    return None


def no_room(error: OSError) -> str:
    """In words: the disk, or the user's share of it, is full."""
    return f"cannot be written ({os.strerror(error.errno or 0)}); make room and start the same command again"


def write_text(path: Path, text: str) -> None:
    r"""Write `text` in UTF-8, atomically; bytes of a file's name that are no text as `\\udce9`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode(errors="backslashreplace"))


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


@contextmanager
def locked(path: Path, wait_s: float, busy: str) -> Iterator[None]:
    """Hold the lock file `path`; the lock goes with the process, so a killed one leaves none behind.

    Args:
        path: the file.
        wait_s: how long to wait for another process that holds it.
        busy: what the error says when that was in vain.

    Raises:
        InputError: not free within `wait_s`, or a file system without locks.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    # filelock's own fallback, a file that says "taken", would outlive a killed process.
    lock = FileLock(path, timeout=wait_s, poll_interval=0.02, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(busy) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be locked ({error.strerror})") from None
    try:
        yield
    finally:
        lock.release()


def make_folder_once(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Return `folder`, filled by `fill(temporary_folder)` if it is not there yet.

    Two processes may call this at once: each fills its own temporary folder, the first to finish gives
    it the name and the other's is thrown away. An interrupted call leaves no half-filled folder behind.

    Raises:
        InputError: the folder cannot be made, or the disk or the user's share of it is full.
    """
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=TEMPORARY))
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror})") from None
    try:
        fill(temporary)
        temporary.chmod(0o755)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    except OSError as error:
        if error.errno in NO_ROOM:
            raise InputError(f"{folder}: {no_room(error)}") from None
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder
