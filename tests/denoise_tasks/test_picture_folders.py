"""Listing folders: endings, hidden files, links, names of any bytes; which file becomes which."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from denoise_tasks import picture_folders
from denoise_tasks.picture_folders import list_pictures, plan, scan
from img2img_recon.support.errors import InputError


def filled(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def below(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in list_pictures(folder)]


def test_endings_and_hidden_files(tmp_path: Path) -> None:
    filled(tmp_path, "b.PNG", "a.jpg", "sub/c.tiff", ".hidden.png", ".cache/d.png", "notes.txt")
    filled(tmp_path, "sub/e.HEIC", "sub/f.HEIC", "README")
    assert below(tmp_path) == ["a.jpg", "b.PNG", "sub/c.tiff"]
    assert scan(tmp_path).left_out == {".HEIC": 2, ".txt": 1, "without ending": 1}
    with pytest.raises(InputError, match="no such folder"):
        list_pictures(tmp_path / "missing")
    with pytest.raises(InputError, match="no picture in this folder"):
        list_pictures(filled(tmp_path / "empty", "x.txt"))


def test_links_are_followed_once_and_never_in_a_circle(tmp_path: Path) -> None:
    inside = filled(tmp_path / "in", "a.png", "real/r.png")
    other = filled(tmp_path / "other", "b.png", "deep/c.png")
    (other / "home").symlink_to(inside)
    (inside / "to_other").symlink_to(other)
    (inside / "a_first").symlink_to(inside / "real")  # sorted before the folder it leads to
    (inside / "up").symlink_to("..")
    (inside / "nowhere.png").symlink_to("missing")
    (inside / "file.png").symlink_to(other / "b.png")
    found = ["a.png", "file.png", "real/r.png", "to_other/b.png", "to_other/deep/c.png"]
    assert below(inside) == found
    assert scan(inside).left_out == {"links": 4}
    (tmp_path / "same").symlink_to(inside)
    assert below(tmp_path / "same") == found


def test_plan_says_what_is_finished_and_left_out(tmp_path: Path) -> None:
    names = [f"{number}.{ending}" for number in range(3) for ending in ("png", "gif")]
    source = filled(tmp_path / "in", *names, *(f"x.{letter}" for letter in "abcdefgh"))
    out = filled(tmp_path / "in/out", "1.png")
    work = plan([source], out, overwrite=False)
    assert work.jobs == [(source / name, out / name) for name in ("0.png", "2.png")]
    finished, left_out = work.remarks(out)
    assert finished.startswith(f"1 of 3 results are in {out} already; --overwrite")
    assert left_out.startswith("left out: 3 .gif, 1 .")
    assert "3 others" in left_out
    again = plan([source], out, overwrite=True)
    assert (len(again.jobs), again.finished) == (3, 0)
    with pytest.raises(InputError, match=r"0\.png: given twice"):
        plan([source / "0.png", source / "../in/0.png"], out, overwrite=True)
    other = filled(tmp_path / "other", "0.PNG")
    with pytest.raises(InputError, match=r"0\.png and .*0\.PNG would both become"):
        plan([source, other], out, overwrite=True)
    (out / "2.png").mkdir()
    with pytest.raises(InputError, match=r"2\.png is a folder"):
        plan([source], out, overwrite=True)


def test_a_folder_from_a_phone_says_what_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture_folders, "ENDINGS", (".png",))  # without pillow-heif
    source, out = filled(tmp_path / "in", "IMG_1.HEIC", "IMG_2.HEIC"), tmp_path / "out"
    words = r"2 \.HEIC; read are \.png; for HEIC pip install pillow-heif$"
    with pytest.raises(InputError, match=f"in: no picture .*: {words}"):
        plan([source], out, overwrite=False)
    (line,) = plan([filled(source, "a.png")], out, overwrite=False).remarks(out)
    assert re.match(f"left out: {words}", line)
    (tmp_path / "link").symlink_to(source)
    assert plan([tmp_path / "link"], source / "out", overwrite=False).jobs == [
        (tmp_path / "link/a.png", source / "out/a.png")
    ]
    filled(source / "out", "a.png")
    again = plan([tmp_path / "link"], tmp_path / "link/out", overwrite=False)
    assert (again.jobs, again.finished) == ([], 1)


def test_names_of_any_bytes(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9 $5 #1 'q' [1] \n.png")
    source = filled(tmp_path / "in", name, "-x.png", "a" * 251 + ".png")
    jobs = plan([source], tmp_path / "out", overwrite=False).jobs
    assert {target.name for _, target in jobs} == {name, "-x.png", "a" * 251 + ".png"}
