"""Pairs of noisy and clean photographs: SIDD's layout and other folders, and what is refused."""

import pytest
from PIL import Image

from denoise_tasks.pairs import is_sidd, list_pairs
from img2img_recon.support.errors import InputError


def picture(path, size=(4, 3), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 7).save(path)


def refused(said, function, *words, **options):
    with pytest.raises(InputError, match=said) as caught:
        function(*words, **options)
    assert "\n" not in str(caught.value)


@pytest.fixture
def sidd(tmp_path):
    root = tmp_path / "SIDD_Small_sRGB_Only"
    for folder in ("0001_001_S6_00100", "0008_006_GP_00100", "0009_006_IP_00400"):
        for kind in ("NOISY", "GT"):
            picture(root / "Data" / folder / f"{kind}_SRGB_010.PNG")
    picture(root / "Data" / "0008_006_GP_00100" / "0008_NOISY_SRGB_011.PNG")
    picture(root / "Data" / "0008_006_GP_00100" / "0008_GT_SRGB_011.PNG")
    (root / "Data" / "0008_006_GP_00100" / "notes.txt").write_text("no picture")
    picture(root / "Data" / "previews" / "NOISY_SRGB_010.PNG")
    return root


def test_sidd_is_listed_from_its_folder_or_its_data(sidd):
    pairs = list_pairs(sidd)
    assert [(pair.name, pair.scene) for pair in pairs] == [
        ("0001_001_S6_00100_010", "001"),
        ("0008_006_GP_00100_010", "006"),
        ("0008_006_GP_00100_011", "006"),
        ("0009_006_IP_00400_010", "006"),
    ]
    assert pairs[2].noisy == sidd / "Data" / "0008_006_GP_00100" / "0008_NOISY_SRGB_011.PNG"
    assert pairs[2].clean.name == "0008_GT_SRGB_011.PNG"
    assert list_pairs(sidd / "Data") == pairs
    assert is_sidd(sidd)
    assert is_sidd(sidd / "Data")


def test_other_folders_are_not_taken_for_sidds(tmp_path):
    for side in ("noisy", "clean"):
        picture(tmp_path / "0001_001_S6" / f"1_{side}.png")
        picture(tmp_path / "Data" / f"2_{side}.png")
    assert not is_sidd(tmp_path)
    assert [pair.name for pair in list_pairs(tmp_path)] == ["1", "2"]


def test_what_sidd_refuses(sidd, tmp_path):
    refused("nothing: no such folder", list_pairs, tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    refused("empty: no picture in this folder", list_pairs, tmp_path / "empty")
    picture(tmp_path / "empty" / "0001_001_S6" / "NOISY.PNG")
    refused("no noisy/clean pair in it.*NOISY_SRGB_010.PNG", list_pairs, tmp_path / "empty")
    clean = sidd / "Data" / "0001_001_S6_00100" / "GT_SRGB_010.PNG"
    picture(clean, (5, 3))
    refused("NOISY_SRGB_010.PNG: is 3 x 4 x 3, its clean partner .* 3 x 5 x 3", list_pairs, sidd)
    clean.unlink()
    refused("0001_001.*NOISY_SRGB_010.PNG: its clean partner is missing", list_pairs, sidd)
    picture(clean)
    clean.with_name("NOISY_SRGB_010.PNG").unlink()
    refused("0001_001.*GT_SRGB_010.PNG: its noisy partner is missing", list_pairs, sidd)


def brief(folder, pairs):
    return [
        (
            p.name,
            p.scene,
            p.noisy.relative_to(folder).as_posix(),
            p.clean.relative_to(folder).as_posix(),
        )
        for p in pairs
    ]


def test_pairs_by_the_ends_of_their_names(tmp_path):
    for name in ("chair/chair_1_noisy.jpg", "chair/chair_1_clean.jpg", "wall/w-NOISY.png"):
        picture(tmp_path / name)
    picture(tmp_path / "wall" / "w-gt.webp")
    picture(tmp_path / "chair" / "overview.jpg")
    picture(tmp_path / "real" / "top_3_noisy.png")
    picture(tmp_path / "real" / "top_3_clean.png")
    assert brief(tmp_path, list_pairs(tmp_path)) == [
        ("chair_1", "chair", "chair/chair_1_noisy.jpg", "chair/chair_1_clean.jpg"),
        ("top_3", "real", "real/top_3_noisy.png", "real/top_3_clean.png"),
        ("w", "wall", "wall/w-NOISY.png", "wall/w-gt.webp"),
    ]


def test_polyu_as_it_is_published_has_scenes_by_name(tmp_path):
    for number in (1, 12):
        for side in ("real", "mean"):
            picture(tmp_path / f"Canon80D_800_GO_{number}_{side}.jpg")
    picture(tmp_path / "123_real.jpg")
    picture(tmp_path / "123_mean.jpg")
    assert [(p.name, p.scene) for p in list_pairs(tmp_path)] == [
        ("123", "123"),
        ("Canon80D_800_GO_1", "Canon80D_800_GO"),
        ("Canon80D_800_GO_12", "Canon80D_800_GO"),
    ]


def test_a_scene_of_polyu_is_one_whichever_camera_took_it(tmp_path):
    for folder in ("Sony_4-5_125_6400_waterhouse", "Canon600D_3-5_125_1600_waterhouse"):
        for side in ("noisy", "clean"):
            picture(tmp_path / folder / f"1_{side}.jpg")
    for side in ("Real", "mean"):
        picture(tmp_path / f"Canon5D2_5_160_3200_plug_2_{side}.JPG")
    assert {pair.scene for pair in list_pairs(tmp_path)} == {"waterhouse", "plug"}


def test_pairs_that_cannot_be_read_are_left_out_only_where_that_is_wanted(tmp_path):
    for number in (1, 2):
        for side in ("noisy", "clean"):
            picture(tmp_path / "desk" / f"{number}_{side}.png")
    (tmp_path / "desk" / "1_noisy.png").write_bytes(b"no picture")
    refused("1_noisy.png", list_pairs, tmp_path)
    said = []
    assert [pair.name for pair in list_pairs(tmp_path, said.append)] == ["2"]
    assert len(said) == 1
    assert "1_noisy.png" in said[0]
    (tmp_path / "desk" / "2_clean.png").write_bytes(b"no picture")
    refused("none of the pairs", list_pairs, tmp_path, said.append)


@pytest.mark.parametrize("clean", ["clean", "gt", "GT"])
def test_pairs_in_two_folders(tmp_path, clean):
    for side in ("noisy", clean):
        picture(tmp_path / side / "book 1.png")
        picture(tmp_path / side / "book 2.png")
        picture(tmp_path / side / "lab" / "1.png")
        picture(tmp_path / "hall" / side / f"1_{side}.png")
    assert brief(tmp_path, list_pairs(tmp_path)) == [
        ("book 1", "book", "noisy/book 1.png", f"{clean}/book 1.png"),
        ("book 2", "book", "noisy/book 2.png", f"{clean}/book 2.png"),
        ("hall/1", "hall", "hall/noisy/1_noisy.png", f"hall/{clean}/1_{clean}.png"),
        ("lab/1", "lab", "noisy/lab/1.png", f"{clean}/lab/1.png"),
    ]


def test_what_pairs_refuse(tmp_path):
    refused("nothing: no such folder", list_pairs, tmp_path / "nothing")
    refused("no picture in this folder", list_pairs, tmp_path)
    picture(tmp_path / "plain.png")
    refused("no noisy/clean pair in it", list_pairs, tmp_path)
    picture(tmp_path / "s" / "a_noisy.png")
    refused("a_noisy.png: its clean partner is missing", list_pairs, tmp_path)
    picture(tmp_path / "s" / "a_clean.png", mode="L")
    refused(
        "a_noisy.png: is 3 x 4 x 3, its clean partner a_clean.png 3 x 4 x 1", list_pairs, tmp_path
    )
    picture(tmp_path / "s" / "a_clean.png")
    assert len(list_pairs(tmp_path)) == 1
    picture(tmp_path / "s" / "a_gt.png")
    refused("a_gt.png: a second clean picture beside a_clean.png", list_pairs, tmp_path)
    (tmp_path / "s" / "a_gt.png").unlink()
    (tmp_path / "s" / "a_clean.png").write_bytes(b"not a picture")
    refused("a_clean.png", list_pairs, tmp_path)
