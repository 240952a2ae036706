"""Folders of pictures: what lies in them, what is left out, and which files are still to be made."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from denoise_tasks.picture_metadata import HEIC
from denoise_tasks.pictures import ENDINGS, check_ending
from img2img_recon.support.errors import InputError

# Endings of files that are left out are said one by one up to this many.
NAMED_ENDINGS = 6


class Listing(NamedTuple):
    """What a folder holds.

    Attributes:
        pictures: files with a picture's ending, sorted.
        left_out: other files by their ending, and links that lead nowhere or back.
    """

    pictures: list[Path]
    left_out: Counter[str]


def scan(folder: Path) -> Listing:
    """List the picture files below a folder by their endings; hidden files and folders do not count.

    Links to folders are followed, but for those to a folder that is listed already or holds this one.

    Raises:
        InputError: no such folder, or one that cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    found, left_out = list[Path](), Counter[str]()
    listed = {os.path.realpath(folder), *map(str, Path(folder).resolve().parents)}
    starts = [str(folder)]
    for start in starts:  # grows: links are followed when all that is no link has been listed
        real = os.path.realpath(start)
        if real in listed and start != starts[0]:
            left_out["links"] += 1
            continue
        for root, folders, names in os.walk(start, onerror=_unreadable):
            listed.add(os.path.realpath(root))
            folders[:] = [name for name in folders if not name.startswith(".")]
            below = [os.path.join(root, name) for name in folders]
            starts += [path for path in below if os.path.islink(path)]
            for name in (name for name in names if not name.startswith(".")):
                path = Path(root, name)
                if path.is_symlink() and not path.is_file():
                    left_out["links"] += 1
                elif path.suffix.lower() in ENDINGS and path.is_file():
                    found.append(path)
                else:
                    left_out[path.suffix or "without ending"] += 1
    return Listing(sorted(found), left_out)


def _unreadable(error: OSError) -> None:
    raise InputError(f"{error.filename}: cannot be read ({error.strerror})")


def list_pictures(folder: Path) -> list[Path]:
    """The pictures of `scan`.

    Raises:
        InputError: no such folder, or no picture in it.
    """
    found = scan(folder).pictures
    if not found:
        raise InputError(f"{folder}: no picture in this folder (looked for {', '.join(ENDINGS)})")
    return found


class Plan(NamedTuple):
    """What is to be done with inputs.

    Attributes:
        jobs: pictures and the files that they become.
        finished: how many such files are there already.
        left_out: as in `Listing`.
    """

    jobs: list[tuple[Path, Path]]
    finished: int
    left_out: Counter[str]

    def remarks(self, out: Path) -> list[str]:
        """Lines on what is not done, and why."""
        lines = []
        if self.finished:
            count = f"{self.finished} of {self.finished + len(self.jobs)}"
            lines.append(f"{count} results are in {out} already; --overwrite makes them anew")
        if self.left_out:
            lines.append(f"left out: {_in_words(self.left_out)}")
        return lines


def _in_words(left_out: Counter[str]) -> str:
    """What was left out, what is read, and what it would take to read more."""
    most = left_out.most_common(NAMED_ENDINGS)
    words = [f"{count} {ending}" for ending, count in most]
    if others := left_out.total() - sum(count for _, count in most):
        words.append(f"{others} others")
    hint = f"; {HEIC}" if {".heic", ".heif"} & {ending.lower() for ending in left_out} else ""
    return f"{', '.join(words)}; read are {', '.join(ENDINGS)}{hint}"


def plan(inputs: Sequence[Path], out: Path, overwrite: bool) -> Plan:
    """Which file becomes which: a file keeps its name, the files of a folder their places in it.

    Results that exist are finished. Only where a single file is asked for, that is an error.

    Args:
        inputs: files and folders; of folders, `out` itself is left out.
        out: folder of the results.
        overwrite: results that exist are made anew.

    Raises:
        InputError: an input that is not there or has no picture's ending, a folder without pictures,
            two inputs for one result, a result in the place of an input or of a folder.
    """
    pairs, left_out = list[tuple[Path, Path]](), Counter[str]()
    real_out = out.resolve()
    for given in inputs:
        if given.is_dir():
            listing = scan(given)
            left_out += listing.left_out
            pairs += [
                (path, out / path.relative_to(given))
                for path in listing.pictures
                if real_out == given.resolve() or real_out not in path.resolve().parents
            ]
        elif given.exists():
            check_ending(given)
            pairs.append((given, out / given.name))
        else:
            raise InputError(f"{given}: no such file or folder")
    if not pairs:
        there = _in_words(left_out) if left_out else "nothing"
        raise InputError(f"{inputs[0]}: no picture in this folder, apart from --out: {there}")
    _check_targets(pairs)
    jobs = [pair for pair in pairs if overwrite or not pair[1].exists()]
    if not jobs and len(pairs) == 1 and not inputs[0].is_dir():
        raise InputError(f"--out: {pairs[0][1]} exists; give --overwrite to replace")
    return Plan(jobs, len(pairs) - len(jobs), left_out)


def _check_targets(pairs: Sequence[tuple[Path, Path]]) -> None:
    sources = {source.resolve() for source, _ in pairs}
    taken: dict[Path, Path] = {}
    given = set[Path]()
    for source, target in pairs:
        # Where upper and lower case are one, so are two such names.
        key = Path(str(target.resolve()).lower())
        twice = source in given or (key in taken and source.samefile(taken[key]))
        if twice:
            raise InputError(f"{source}: given twice, by itself or with its folder")
        if key in taken:
            raise InputError(
                f"--out: {taken[key]} and {source} would both become {target}; "
                "denoise them into different folders"
            )
        taken[key] = source
        given.add(source)
        if target.resolve() in sources:
            raise InputError(
                f"--out: {target} is an input; give a folder that holds none of the inputs"
            )
        if target.is_dir():
            raise InputError(f"--out: {target} is a folder, and a picture would get this name")
