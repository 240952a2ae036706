"""What the page does with a picture: the same as the script, with files that a browser shows."""

import numpy as np
import pytest
from PIL import Image

from denoise_tasks import denoise
from denoise_tasks.app import AUTOMATIC, choices, denoise_upload
from denoise_tasks.pictures import Metadata, Picture, read_picture, write_picture
from img2img_recon.support.errors import InputError
from tests.denoise_tasks.conftest import with_noise


@pytest.fixture
def noisy(tmp_path, colour):
    """A 16-bit TIFF file with a resolution in its metadata."""
    path = tmp_path / "in" / "noisy.tif"
    path.parent.mkdir()
    (tmp_path / "out").mkdir()
    like = Picture(np.empty((0, 0, 3), np.uint16), metadata=Metadata(dpi=(72.0, 72.0)))
    write_picture(path, with_noise(colour).clip(0, 1), like)
    return path


@pytest.mark.parametrize(("method", "sigma"), [("tv", ""), (AUTOMATIC, "20")])
def test_the_page_and_the_script_make_the_same_file(noisy, tmp_path, capsys, method, sigma):
    lines = []
    shown, result = denoise_upload([noisy], tmp_path / "out", lines.append, method, sigma, 0.5)
    words = ["--method", "tv"] if method == "tv" else ["--sigma", "20"]
    by_script = [str(noisy), "--out", str(tmp_path / "by_script"), "--strength", "0.5", *words]
    denoise.main([*by_script, "--no_progress"])
    assert result.name == "noisy.tif"
    assert result.read_bytes() == (tmp_path / "by_script/noisy.tif").read_bytes()
    assert lines == capsys.readouterr().err.splitlines()
    assert lines == [] if sigma else "noise of about sigma" in lines[0]
    for path, file in zip(shown, (noisy, result), strict=True):
        eighth = np.asarray(Image.open(path)) / 255
        np.testing.assert_allclose(eighth, read_picture(file).pixels, atol=0.51 / 255)


def test_what_a_browser_shows_is_shown_as_it_is(noisy, tmp_path, colour):
    photo = noisy.with_name("photo.jpg")
    write_picture(photo, colour)
    shown, result = denoise_upload([photo], tmp_path / "out", print, "tv", "10", 1)
    assert shown == (photo, result)
    assert result == tmp_path / "out/photo.jpg"


def test_floats_are_shown_between_the_black_and_white_of_the_first(noisy, tmp_path):
    import tifffile

    ramp = np.linspace(-100, 3000, 48 * 48, dtype=np.float32).reshape(48, 48)
    tifffile.imwrite(noisy, ramp)
    shown, _ = denoise_upload([noisy], tmp_path / "out", print, "tv", "1", 1)
    before, after = (np.asarray(Image.open(path)).astype(int) for path in shown)
    assert before.min() == 0
    assert before.max() == 255
    assert np.abs(before - after).max() < 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma": "many"}, "--sigma: given many; allowed: "),
        ({"sigma": "0.2"}, "--sigma: given 0.2, allowed: "),
        ({"files": 2}, "2 files; give one picture"),
        ({"content": b"II*\0 broken"}, "noisy.tif: "),
    ],
)
def test_what_cannot_be_used_is_one_line(noisy, tmp_path, change, message):
    if "content" in change:
        noisy.write_bytes(change["content"])
    files = [noisy] * change.get("files", 1)
    with pytest.raises(InputError) as caught:
        denoise_upload(files, tmp_path / "out", print, "tv", change.get("sigma", ""), 1)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_networks_and_methods_can_be_chosen():
    values = [choice if isinstance(choice, str) else choice[1] for choice in choices()]
    assert values[0] == AUTOMATIC
    assert {"denoise-color", "denoise-grey", "bm3d", "tv"} <= {*values}
    assert not [value for value in values if value.startswith(("mri", "noise-level"))]
