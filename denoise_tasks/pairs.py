"""Pairs of noisy and clean photographs: SIDD's layout (Abdelhamed, Lin and Brown, CVPR 2018) or any folder.

They are listed and checked by their names and headers alone.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from denoise_tasks.picture_folders import list_pictures
from denoise_tasks.pictures import open_picture
from img2img_recon.support.errors import InputError

# What stems end in; "real" and "mean" are PolyU's own words.
NOISY_WORDS = ("noisy", "real")
CLEAN_WORDS = ("clean", "gt", "mean")
FOLDER_IS_NOISY = {"noisy": True, "clean": False, "gt": False}
SHOWN_NAMES = 8

_SCENE_FOLDER = re.compile(r"\d{4}_(\d{3})_")
_SIDD_FILE = re.compile(r"(?:\d{4}_)?(NOISY|GT)_SRGB_(\d{3})\.png", re.IGNORECASE)
# PolyU's names: camera, f-number, shutter, ISO, scene. Several cameras have taken the same scene.
_CAMERA_SETTINGS = re.compile(r"[A-Za-z0-9-]+_\d+(?:-\d+)?_\d+_\d+_(?=[^/]+$)")
_SUFFIX = re.compile(rf"(.+)[_-]({'|'.join(NOISY_WORDS + CLEAN_WORDS)})", re.IGNORECASE)

OnBroken = Callable[[str], None]
_Sides = defaultdict[str, dict[bool, Path]]


class Pair(NamedTuple):
    """A noisy picture and its clean version, equal in size.

    Attributes:
        name: unique among the pairs listed with it.
        scene: what it shows; pairs of one scene belong on one side of a split.
        noisy: the noisy picture's file.
        clean: the clean picture's file.
    """

    name: str
    scene: str
    noisy: Path
    clean: Path


def is_sidd(folder: Path) -> bool:
    """Whether a folder is laid out as `SIDD_Small_sRGB_Only` (or Medium), or is its `Data`."""
    return bool(_sidd_sides(folder)[0])


def list_pairs(folder: Path, on_broken: OnBroken | None = None) -> list[Pair]:
    """Pairs of noisy and clean pictures, sorted by name; other pictures are left out.

    Three ways to tell the sides. SIDD's: `Data/<nnnn_sss_...>/NOISY_SRGB_010.PNG` and `GT_SRGB_010.PNG`,
    where sss is the scene; the names may begin with `nnnn_`. Otherwise, at any depth, names such as
    `book_3_noisy.png` and `book_3_clean.png` (or _gt; _real and _mean as PolyU has them), or folders
    `noisy` and `clean` (or gt) with equal names. The scene is the folder that both are in; where that is
    the given folder itself, it is the name without its trailing number. Of PolyU's names
    (`Sony_4-5_125_6400_waterhouse`) it is the last part.

    Args:
        folder: holds them.
        on_broken: told of pairs with a picture that cannot be read, which are left out then.

    Raises:
        InputError: no such folder, no pair in it, a picture without its partner or with two, different
            sizes, and without `on_broken` a picture that cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    sides, scenes = _sidd_sides(folder)
    if sides:
        return _checked(
            (Pair(name, scenes[name], *_both(sides[name])) for name in sorted(sides)), on_broken
        )
    for path in list_pictures(folder):
        found = _side(path.relative_to(folder))
        if found:
            _add(sides, found[0].as_posix(), found[1], path)
    if not sides:
        raise InputError(
            f"{folder}: no noisy/clean pair in it, expected names ending in _noisy and _clean (or _gt), "
            "folders noisy and clean (or gt) with equal names, or SIDD's folders such as "
            "0001_001_S6_00100_00060_3200_L with NOISY_SRGB_010.PNG and GT_SRGB_010.PNG"
        )
    stems = Counter(PurePath(key).name for key in sides)
    repeated = max(stems.values()) > 1
    return _checked(
        (
            Pair(key if repeated else PurePath(key).name, _scene(PurePath(key)), *_both(sides[key]))
            for key in sorted(sides)
        ),
        on_broken,
    )


def _sidd_sides(folder: Path) -> tuple[_Sides, dict[str, str]]:
    """The pictures of SIDD's layout by name and side, and the scenes by name; empty for another layout."""
    data = folder / "Data" if (folder / "Data").is_dir() else folder
    sides: _Sides = defaultdict(dict)
    scenes: dict[str, str] = {}
    for scene_folder in sorted(path for path in data.iterdir() if path.is_dir()):
        matched = _SCENE_FOLDER.match(scene_folder.name)
        for path in sorted(scene_folder.iterdir()) if matched else ():
            kind = _SIDD_FILE.fullmatch(path.name)
            if matched and kind:
                name = f"{scene_folder.name}_{kind[2]}"
                scenes[name] = matched[1]
                _add(sides, name, kind[1].lower() == "noisy", path)
    return sides, scenes


def _side(path: PurePath) -> tuple[PurePath, bool] | None:
    """What both pictures of a pair have in common, and whether this is the noisy one."""
    named = _SUFFIX.fullmatch(path.stem)
    stem, noisy = (named[1], named[2].lower() in NOISY_WORDS) if named else (path.stem, None)
    parts = path.parent.parts
    for place in reversed(range(len(parts))):
        in_noisy = FOLDER_IS_NOISY.get(parts[place].lower())
        # A picture that says otherwise than the folder is in a folder that only happens to be called so.
        if in_noisy is not None and noisy in (None, in_noisy):
            return PurePath(*parts[:place], *parts[place + 1 :], stem), in_noisy
    return None if noisy is None else (path.with_name(stem), noisy)


def _scene(key: PurePath) -> str:
    if key.parent != PurePath("."):
        scene = key.parent.as_posix()
    else:
        scene = re.sub(r"[\s_-]*\d+$", "", key.name) or key.name
    return _CAMERA_SETTINGS.sub("", scene)


def _add(sides: _Sides, key: str, noisy: bool, path: Path) -> None:
    other = sides[key].setdefault(noisy, path)
    if other != path:
        kind = "noisy" if noisy else "clean"
        raise InputError(f"{path}: a second {kind} picture beside {other.name}, expected one")


def _both(pair: Mapping[bool, Path]) -> tuple[Path, Path]:
    for noisy, missing in ((True, "clean"), (False, "noisy")):
        if (not noisy) not in pair:
            raise InputError(f"{pair[noisy]}: its {missing} partner is missing")
    return pair[True], pair[False]


def _checked(pairs: Iterable[Pair], on_broken: OnBroken | None) -> list[Pair]:
    checked = []
    for pair in pairs:
        try:
            noisy, clean = open_picture(pair.noisy).shape, open_picture(pair.clean).shape
        except InputError as error:
            if on_broken is None:
                raise
            on_broken(str(error))
            continue
        if noisy != clean:
            raise InputError(
                f"{pair.noisy}: is {_size(noisy)}, its clean partner {pair.clean.name} {_size(clean)}"
            )
        checked.append(pair)
    if not checked:
        raise InputError(f"{pair.noisy.parent}: none of the pairs there can be read")
    return checked


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def some(names: Sequence[object]) -> str:
    """The first few of many names, for an error."""
    shown = ", ".join(map(str, names[:SHOWN_NAMES]))
    return shown + (f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else "")
