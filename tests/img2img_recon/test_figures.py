import matplotlib.image
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from img2img_recon.figures import label_of, new_figure, panel_path, reconstruction_panel, shown_text
from img2img_recon.support.errors import InputError


def knee(shape=(40, 32)):
    image = gaussian_filter(np.random.default_rng(0).random(shape), 2)
    return (image / image.max()).astype(np.float32)


def test_names_are_no_formulas_and_no_long_file_names(tmp_path):
    for name in ("$5_$6", "$\\frac$", "\udce9", "$", "a$b"):
        figure = new_figure(2, 1)
        figure.suptitle(shown_text(name))
        figure.canvas.draw()
        reconstruction_panel(tmp_path / "a.png", {name: knee()}, knee(), title=name)
    names = ("a" * 255, "\u5199" * 85, "\udce9 / $x", "c")
    paths = [panel_path(tmp_path, name) for name in names]
    for path in paths:
        reconstruction_panel(path, {"tv": knee()}, knee())
    assert [len(path.name.encode()) for path in paths[:2]] == [204, 202]
    assert [path.name for path in paths[2:]] == ["_x.png", "c.png"]


def test_a_panel_is_an_image_with_a_column_per_reconstruction_and_the_target(tmp_path):
    target = knee()
    one, two = tmp_path / "new" / "one.png", tmp_path / "two.png"
    reconstruction_panel(one, {"zero_filled": 0.9 * target}, target)
    reconstruction_panel(two, {"zero_filled": 0.9 * target, "tv": target}, target, title="knee")
    pixels_one, pixels_two = matplotlib.image.imread(one), matplotlib.image.imread(two)
    assert pixels_two.shape[1] == pytest.approx(1.5 * pixels_one.shape[1], rel=0.01)
    assert pixels_one.std() > 0.1
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["two.png"]


def test_errors_share_the_images_window_and_are_magnified(tmp_path):
    """A perfect reconstruction's error is black; a fifth of the range off, it is white."""
    target = np.full((40, 40), 2.0, dtype=np.float32)
    target[10:20, 10:20] = 1.0
    path = tmp_path / "panel.png"
    reconstruction_panel(path, {"same": target, "off": target + 0.4}, target)
    pixels = matplotlib.image.imread(path)[..., :3].mean(axis=-1)
    row = int(pixels.shape[0] * 0.62)
    third = pixels.shape[1] // 3
    assert pixels[row, third // 2] == pytest.approx(0, abs=0.01)
    assert pixels[row, third + third // 2] == pytest.approx(1, abs=0.01)


def test_labels_are_spelled_out():
    assert label_of("l1_wavelet") == "l1-wavelet"
    assert label_of("my_net") == "my net"


@pytest.mark.parametrize(
    ("images", "target", "says"),
    [
        ({}, knee(), "no image"),
        (
            {"tv": knee((40, 40))},
            knee(),
            r"tv has shape \(40, 40\), expected the target's \(40, 32\)",
        ),
        ({"tv": knee()}, np.zeros((40, 32)), "no signal"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path, images, target, says):
    with pytest.raises(InputError, match=says):
        reconstruction_panel(tmp_path / "panel.png", images, target)
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way_of_the_folder_is_named(tmp_path):
    (tmp_path / "figures").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        reconstruction_panel(tmp_path / "figures" / "panel.png", {"tv": knee()}, knee())
