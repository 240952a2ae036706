"""What the page shows of a scan's slices, beside what its arrays give."""

import numpy as np
import pytest

from fastmri_plugin.app import AUTOMATIC, ERROR_SCALE, show_slice
from fastmri_plugin.kspace import centred_fft, rss
from fastmri_plugin.slices import reconstruct
from img2img_recon.support.errors import InputError
from tests.fastmri_plugin.readers import files
from tests.fastmri_plugin.test_scans import COLUMNS, phantom

IMAGES = phantom(slices=3, coils=2)
KSPACE = centred_fft(IMAGES)


def shown(image, top):
    return (np.clip(image / top, 0, 1) * 255).round()


def test_an_undersampled_scan(tmp_path):
    scan = files.bart(tmp_path / "scan", KSPACE * COLUMNS)
    lines = []
    pair = [scan, scan.with_suffix(".hdr")]
    pictures, index, count = show_slice(pair, tmp_path, lines.append, AUTOMATIC, 0, None)
    assert (index, count) == (1, 3)
    mask, zero_filled, network = (picture for picture, _ in pictures)
    assert [caption for _, caption in pictures] == [
        f"mask: {COLUMNS.sum()} of 32 measured",
        "zero-filled",
        "mri-brain-multicoil",
    ]
    np.testing.assert_array_equal(mask, np.broadcast_to(255 * COLUMNS, (40, 32)))
    expected = reconstruct(KSPACE[1] * COLUMNS, COLUMNS)
    top = np.percentile(expected, 99.9)
    np.testing.assert_allclose(network, shown(expected, top), atol=1)
    plain = reconstruct(KSPACE[1] * COLUMNS, COLUMNS, model="zero_filled")
    np.testing.assert_allclose(zero_filled, shown(plain, top), atol=1)
    assert f"taken from the zeros, {COLUMNS.sum()} of 32 columns" in lines[-2]
    assert "reconstructed with mri-brain-multicoil" in lines[-1]


def test_a_fully_sampled_scan_beside_its_target(tmp_path):
    scan = files.bart(tmp_path / "scan", KSPACE)
    pictures, index, _ = show_slice([scan], tmp_path, print, "zero_filled", 4, 2)
    assert index == 2
    images = [picture.astype(int) for picture, _ in pictures]
    mask, zero_filled, target, error = images
    expected = rss(IMAGES[2])
    top = np.percentile(expected, 99.9)
    np.testing.assert_allclose(target, shown(expected, top), atol=1)
    columns = mask[0] > 0
    assert 4 < columns.sum() < 20
    plain = reconstruct(KSPACE[2] * columns, columns, model="zero_filled")
    np.testing.assert_allclose(zero_filled, shown(plain, top), atol=1)
    np.testing.assert_allclose(error, shown(ERROR_SCALE * np.abs(plain - expected), top), atol=1)
    assert "SSIM 0." in pictures[1][1]


def test_what_is_no_scan_is_one_line(tmp_path):
    for name in ("a", "b"):
        files.bart(tmp_path / name, KSPACE)
    broken = tmp_path / "broken.h5"
    broken.write_bytes(b"\x89HDF\r\n\x1a\n broken")
    (tmp_path / "other").mkdir()
    undersampled = files.bart(tmp_path / "other" / "scan", KSPACE * COLUMNS)
    for given, accel, message in (
        ([tmp_path / "a.cfl", tmp_path / "b.cfl"], 0, "scans (a.cfl, b.cfl"),
        ([broken], 0, "broken.h5: "),
        ([undersampled], 4, "is undersampled already"),
    ):
        with pytest.raises(InputError) as caught:
            show_slice(given, tmp_path, print, AUTOMATIC, accel, None)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
