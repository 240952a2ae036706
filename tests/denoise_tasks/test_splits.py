"""Who trains, validates and tests: nothing similar on two sides, seeded, nested."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from denoise_tasks import splits
from denoise_tasks.pairs import Pair
from denoise_tasks.splits import Source, list_sources, split_scenes
from img2img_recon.support.errors import InputError


@given(
    counts=st.lists(st.integers(1, 4), min_size=3, max_size=12),
    seed=st.integers(0, 99),
    val_share=st.floats(0.01, 0.4),
    test_share=st.floats(0, 0.4),
)
def test_no_class_is_on_two_sides(counts, seed, val_share, test_share):
    sources = [
        Source(Path(f"{group}/{number}.png"), str(group))
        for group, count in enumerate(counts)
        for number in range(count)
    ]
    try:
        split = splits.split_groups(sources, val_share, test_share, seed, "--data_path")
    except InputError:
        assert round(len(counts) * val_share) + round(len(counts) * test_share) >= len(counts) - 2
        return
    sides = [{source.group for source in side} for side in split]
    assert sides[0]
    assert sides[1]
    assert bool(sides[2]) == bool(test_share)
    assert not sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2]
    assert sorted([*split.train, *split.val, *split.test]) == sorted(sources)
    assert split == splits.split_groups(sources, val_share, test_share, seed, "--data_path")


def test_a_class_in_the_folders_of_two_sides_is_one_group(tmp_path):
    for name in ("train/n01/a", "val/n01/b", "train/n02/c", "n03/d", "e"):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    groups = {s.path.stem: s.group for s in list_sources(tmp_path)}
    assert groups == {"a": "n01", "b": "n01", "c": "n02", "d": "n03", "e": "e.png"}


def test_the_split_that_is_tested_could_fail():
    """One picture per class and per-image splitting would look the same: classes must hold several."""
    sources = [Source(Path(f"{g}/{n}.png"), str(g)) for g in range(4) for n in range(5)]
    split = splits.split_groups(sources, 0.25, 0, 0, "--data_path")
    assert len(split.val) == 5


@settings(max_examples=25)
@given(small=st.integers(1, 30), more=st.integers(0, 20), seed=st.integers(0, 5))
def test_subsets_are_nested_and_do_not_depend_on_the_place(small, more, seed):
    def chosen(root: str, count: int) -> set[str]:
        sources = [Source(Path(root) / f"{n}.png", str(n)) for n in range(50)]
        kept = splits.subset(sources, count, Path(root), seed, "--train_images")
        assert len(kept) == count
        return {source.path.name for source in kept}

    assert chosen("/one", small) <= chosen("/one", small + more)
    assert chosen("/one", small) == chosen("/two/deeper", small)


def test_more_images_than_there_are(folder):
    sources = splits.list_sources(folder)
    with pytest.raises(InputError, match="--train_images: given 7, allowed: 1 to 6"):
        splits.subset(sources, 7, folder, 0, "--train_images")


def test_the_builtin_photographs_are_split_by_picture():
    split = splits.builtin_sources()
    assert {s.group for s in split.train}.isdisjoint(s.group for s in split.val)
    both = [s for s in split.train if s.group == "motorcycle"]
    assert len(both) in (0, 2), "the two views of one scene must stay together"


def refused(said, function, *words, **options):
    with pytest.raises(InputError, match=said) as caught:
        function(*words, **options)
    assert "\n" not in str(caught.value)


def some_pairs(*scenes):
    return [Pair(f"p{i}", scene, Path(f"n{i}"), Path(f"c{i}")) for i, scene in enumerate(scenes)]


def test_no_scene_is_on_both_sides():
    pairs = some_pairs("001", "006", "009", "006", "010", "1")
    train, val = split_scenes(pairs, ("6", "9"))
    assert [pair.name for pair in val] == ["p1", "p2", "p3"]
    assert [pair.name for pair in train] == ["p0", "p4", "p5"]
    # 001 and 1 are one scene.
    train, val = split_scenes(pairs, ["01"])
    assert [pair.name for pair in val] == ["p0", "p5"]
    train, val = split_scenes(some_pairs("wall", "Wall", "6a"), ["6a"])
    assert [pair.scene for pair in train] == ["wall", "Wall"]


def test_what_a_split_refuses():
    pairs = some_pairs("001", "006")
    refused(
        "--val_scenes: no scene 7, book, there are 001, 006",
        split_scenes,
        pairs,
        ["7", "6", "book"],
    )
    refused("none given", split_scenes, pairs, [])
    refused("1, 6 are all scenes", split_scenes, pairs, ["1", "6"])
    many = some_pairs(*(f"{i:03d}" for i in range(30)))
    refused("007 and 22 more", split_scenes, many, ["99"])


def test_a_share_of_the_scenes_that_are_not_held_out_is_kept_for_testing(pairs, tmp_path):
    sides = splits.pairs_split(pairs, ("tree",), 0.1, 0.4, 42)
    scenes = [{pair.scene for pair in side} for side in sides]
    assert scenes[1] == {"tree"}
    assert scenes[0] | scenes[2] == {"desk", "wall"}
    assert scenes[0].isdisjoint(scenes[2])
