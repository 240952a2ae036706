"""Which images train, which choose the checkpoint and which are kept for testing; nothing similar on two sides."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from denoise_tasks.pairs import OnBroken, Pair, is_sidd, list_pairs, some
from denoise_tasks.picture_folders import list_pictures
from img2img_recon.support.errors import InputError
from img2img_recon.support.seeds import seed_of

# Photographs that scikit-image ships in its package; the two of one street scene count as one picture.
PHOTOGRAPHS = {
    "astronaut.png": "astronaut",
    "chelsea.png": "chelsea",
    "coffee.png": "coffee",
    "hubble_deep_field.jpg": "hubble",
    "ihc.png": "ihc",
    "motorcycle_left.png": "motorcycle",
    "motorcycle_right.png": "motorcycle",
    "retina.jpg": "retina",
    "rocket.jpg": "rocket",
}
PHOTOGRAPHS_VAL = ("chelsea", "coffee")
SIDE_FOLDERS = ("train", "training", "val", "valid", "validation", "test")
SIDD_VAL_SCENES = ("6", "9")


class Source(NamedTuple):
    """An image file; what shares a group (a class, a picture) stays on one side of a split."""

    path: Path
    group: str


class Split(NamedTuple):
    """Images that train, that choose the checkpoint, and that are only ever scored."""

    train: list[Source]
    val: list[Source]
    test: list[Source]


def list_sources(folder: Path) -> list[Source]:
    """Images below a folder; the group is the sub-folder (a class), or the file itself where there is none.

    Where the first folders are the sides of somebody's split (`train/n01440764`, `val/n01440764`), the
    group is what follows, so that a class is not on two sides of ours.

    Raises:
        InputError: no such folder, or no image in it.
    """
    sources = []
    for path in list_pictures(folder):
        parts = path.parent.relative_to(folder).parts
        if len(parts) > 1 and parts[0].lower() in SIDE_FOLDERS:
            parts = parts[1:]
        sources.append(Source(path, "/".join(parts) or path.name))
    return sources


@functools.cache  # asked for every run of a sweep
def builtin_sources() -> Split:
    """Training and validation photographs that come with scikit-image, split by picture."""
    import skimage.data

    folder = Path(skimage.data.__file__).parent
    sources = [
        Source(folder / name, group)
        for name, group in PHOTOGRAPHS.items()
        if (folder / name).is_file()
    ]
    val = [source for source in sources if source.group in PHOTOGRAPHS_VAL]
    train = [source for source in sources if source.group not in PHOTOGRAPHS_VAL]
    if not train or not val:
        raise InputError("--data_path: scikit-image came without its photographs; give a folder")
    return Split(train, val, [])


def split_groups(
    sources: Sequence[Source], val_share: float, test_share: float, seed: int, flag: str
) -> Split:
    """Split images so that no group is on two sides.

    Args:
        sources: images with their groups.
        val_share: share of the groups that validates; at least one group.
        test_share: share of the groups that is kept for testing; with 0 none.
        seed: which groups.
        flag: named in the error.

    Raises:
        InputError: too few groups.
    """
    groups = sorted({source.group for source in sources})
    count = len(groups)
    val_count = max(round(count * val_share), 1)
    test_count = max(round(count * test_share), 1) if test_share else 0
    if val_count + test_count >= count:
        raise InputError(
            f"{flag}: {len(sources)} images in {count} group{'s' * (count > 1)} cannot be split into "
            "training, validation and test groups; give single images or more classes, or smaller shares"
        )
    random.Random(seed_of("split", seed)).shuffle(groups)
    val, test = set(groups[:val_count]), set(groups[val_count : val_count + test_count])
    return Split(
        [source for source in sources if source.group not in val | test],
        [source for source in sources if source.group in val],
        [source for source in sources if source.group in test],
    )


def gaussian_split(
    data_path: Path | None, val_share: float, test_share: float, split_seed: int
) -> Split:
    """The images of a run on Gaussian noise, split by class or picture."""
    if data_path is None:
        return builtin_sources()
    return split_groups(list_sources(data_path), val_share, test_share, split_seed, "--data_path")


def pairs_split(
    data_path: Path,
    val_scenes: Sequence[str] | None,
    val_share: float,
    test_share: float,
    split_seed: int,
    on_broken: OnBroken | None = None,
) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """The pairs of a run on real noise, split by scene: training, validation and test.

    With `val_scenes` (SIDD has default ones) `test_share` is one of the other scenes. `on_broken` is told
    of pairs that cannot be read.
    """
    found = list_pairs(data_path, on_broken)
    by_path = {pair.noisy: pair for pair in found}

    def shares(rest: Sequence[Pair], first: float, second: float, flag: str) -> list[list[Pair]]:
        sources = [Source(pair.noisy, pair.scene) for pair in rest]
        sides = split_groups(sources, first, second, split_seed, flag)
        return [[by_path[source.path] for source in side] for side in sides]

    if val_scenes is None and is_sidd(data_path):
        val_scenes = SIDD_VAL_SCENES
    if val_scenes is None:
        train, val, test = shares(found, val_share, test_share, "--data_path")
        return train, val, test
    train, val = split_scenes(found, val_scenes)
    if not test_share:
        return train, val, []
    train, test, _ = shares(train, test_share, 0, "--test_share")
    return train, val, test


def _scene_key(scene: str) -> int | str:
    return int(scene) if re.fullmatch(r"[0-9]+", scene) else scene


def split_scenes(pairs: Sequence[Pair], val_scenes: Sequence[str]) -> tuple[list[Pair], list[Pair]]:
    """Split pairs into training and validation ones, by scene.

    Args:
        pairs: the pairs.
        val_scenes: scenes to hold out; numbers are compared as such, 6 is 006.

    Returns:
        (training, validation) pairs, each in the given order.

    Raises:
        InputError: scenes that no pair has, or a side without pairs.
    """
    there = {_scene_key(pair.scene): pair.scene for pair in pairs}
    all_scenes = some(sorted(there.values()))
    unknown = [scene for scene in val_scenes if _scene_key(scene) not in there]
    if unknown:
        raise InputError(f"--val_scenes: no scene {some(unknown)}, there are {all_scenes}")
    held = {_scene_key(scene) for scene in val_scenes}
    val = [pair for pair in pairs if _scene_key(pair.scene) in held]
    train = [pair for pair in pairs if _scene_key(pair.scene) not in held]
    if not val:
        raise InputError(
            f"--val_scenes: none given, nothing to validate on; there are {all_scenes}"
        )
    if not train:
        raise InputError(
            f"--val_scenes: {some(val_scenes)} are all scenes, none is left to train on"
        )
    return train, val


def subset(
    sources: Sequence[Source], count: int | None, root: Path, seed: int, flag: str
) -> list[Source]:
    """A seeded choice of `count` images; a smaller one lies within a larger one.

    Args:
        sources: what to choose from.
        count: how many; None for all.
        root: the order depends on the names below this folder, not on where the folder is.
        seed: which order.
        flag: named in the error.

    Raises:
        InputError: there are not so many.
    """
    if count is None:
        return list(sources)
    if count > len(sources):
        raise InputError(
            f"{flag}: given {count}, allowed: 1 to {len(sources)}, as many as there are"
        )

    def place(source: Source) -> tuple[int, str]:
        name = source.path.relative_to(root).as_posix()
        return seed_of("subset", seed, name), name

    return sorted(sorted(sources, key=place)[:count])
