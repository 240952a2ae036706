"""`reconstruct.py SCAN`: files of other programs to volumes, NIfTI and pictures, and never a second mask unasked."""

import json
import subprocess
import sys
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
from PIL import Image

import fastmri_plugin
from fastmri_plugin.kspace import centred_fft, rss
from fastmri_plugin.module import build_network
from fastmri_plugin.reconstruct import main
from fastmri_plugin.scans import _names
from fastmri_plugin.shipped import package
from fastmri_plugin.slices import default_model, is_undersampled, measured_samples, reconstruct
from fastmri_plugin.volumes import read_reconstruction
from img2img_recon.support.errors import InputError
from tests.fastmri_plugin.readers import files

COLUMNS = np.array([c % 3 == 0 or 10 <= c < 22 for c in range(32)])


def phantom(slices=2, coils=3, rows=40, columns=32):
    """Coil images (slices, coils, rows, columns) of discs under smooth coils."""
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    disc = np.stack(
        [(x**2 + y**2 < 0.7 - 0.1 * s) + 0.5 * (abs(x - 0.2) < 0.2) for s in range(slices)]
    )
    places = np.exp(2j * np.pi * np.arange(coils) / max(coils, 2))
    maps = np.stack([np.exp(-((x - p.real) ** 2 + (y - p.imag) ** 2) / 2 + 1j * x) for p in places])
    return (disc[:, None] * maps).astype(np.complex64)


def run(*words):
    main([str(word) for word in (*words, "--no_progress")])


def root_sum_of_squares(images):
    return np.stack([rss(image) for image in images])


def test_a_fully_sampled_scan_is_its_root_sum_of_squares(tmp_path, capsys):
    images = phantom()
    scan = files.bart(tmp_path / "scan", centred_fft(images))
    run(scan, "--out", tmp_path / "out")
    printed = capsys.readouterr()
    assert printed.out.split() == [
        str(tmp_path / f"out/scan{s}") for s in (".h5", ".nii.gz", ".png")
    ]
    assert "fully sampled" in printed.err
    expected = root_sum_of_squares(images)
    np.testing.assert_allclose(read_reconstruction(tmp_path / "out/scan.h5"), expected, atol=1e-5)
    with h5py.File(tmp_path / "out/scan.h5") as file:
        assert list(file) == ["reconstruction"]
    stored = nibabel.load(tmp_path / "out/scan.nii.gz").get_fdata()
    np.testing.assert_allclose(stored.transpose(2, 1, 0), expected, atol=1e-5)
    mosaic = np.asarray(Image.open(tmp_path / "out/scan.png"))
    assert mosaic.size == expected.size
    with pytest.raises(InputError, match="exists; give --overwrite"):
        run(scan, "--out", tmp_path / "out")


def test_undersampled_without_a_mask_is_said_and_never_masked_again(tmp_path, capsys):
    kspace = centred_fft(phantom()) * COLUMNS
    scan = files.matlab5(tmp_path / "scan.mat", kspace)
    run(scan, "--out", tmp_path / "out", "--model", "zero_filled")
    assert f"taken from the zeros, {COLUMNS.sum()} of 32 columns" in capsys.readouterr().err
    expected = reconstruct(kspace, model="zero_filled")
    np.testing.assert_allclose(read_reconstruction(tmp_path / "out/scan.h5"), expected, rtol=1e-5)
    # The package's function, whether or not the script of its name was imported.
    np.testing.assert_array_equal(fastmri_plugin.reconstruct(kspace, model="zero_filled"), expected)
    with pytest.raises(InputError, match=r"--accel: .* is undersampled already"):
        run(scan, "--out", tmp_path / "other", "--accel", 4)
    capsys.readouterr()
    run(scan, "--out", tmp_path / "given", "--model", "zero_filled", "--mask", "from-zeros")
    assert "taken from the zeros" not in capsys.readouterr().err


def test_scans_of_the_same_name_do_not_overwrite_each_other(tmp_path, capsys):
    scans = [tmp_path / folder / "kspace.npy" for folder in ("one", "two")]
    for number, scan in enumerate(scans):
        scan.parent.mkdir()
        np.save(scan, centred_fft(phantom(coils=2) * (number + 1)))
    run(*scans, "--out", tmp_path / "out")
    means = [
        read_reconstruction(tmp_path / f"out/{name}_kspace.npy.h5").mean()
        for name in ("one", "two")
    ]
    assert means[1] == pytest.approx(2 * means[0])
    with pytest.raises(InputError, match=r"one/kspace\.npy is given 2 times"):
        run(scans[0], scans[0], "--out", tmp_path / "twice")


def test_names_take_as_many_folders_as_tell_them_apart(tmp_path, monkeypatch):
    scans = [tmp_path / folder / "k.npy" for folder in ("P1/T2", "P2/T2", "P2/T1")]
    for scan in scans:
        scan.parent.mkdir(parents=True, exist_ok=True)
        scan.touch()
    assert _names(scans) == ["P1_T2_k.npy", "P2_T2_k.npy", "T1_k.npy"]
    monkeypatch.chdir(scans[0].parent)
    given = [Path("k.npy"), Path("../../P2/T1/k.npy"), Path(".")]
    assert _names(given) == ["T2_k.npy", "T1_k.npy", "T2"]


@pytest.mark.parametrize(("centre", "said"), [(4, "centre is 4 wide"), (10, None)])
def test_a_narrow_centre_is_said(tmp_path, capsys, centre, said):
    columns = np.arange(32) % 4 == 0
    columns[16 - centre // 2 : 16 + centre // 2] = True
    scan = files.matlab5(tmp_path / "scan.mat", centred_fft(phantom()) * columns)
    run(scan, "--out", tmp_path / "out", "--model", "l1_wavelet")
    told = capsys.readouterr().err
    assert said in told if said else "centre is" not in told


def test_l1_wavelet_is_nearer_than_zero_filling(tmp_path):
    images = phantom()[:1]
    rows = np.random.default_rng(0).random((40, 32)) < 0.4
    rows[14:26, 10:22] = True
    truth = root_sum_of_squares(images)
    for mask in (COLUMNS, rows):
        kspace = centred_fft(images) * mask
        np.testing.assert_array_equal(measured_samples(kspace[0]), mask)
        error = {
            model: np.linalg.norm(reconstruct(kspace, model=model) - truth)
            for model in ("zero_filled", "l1_wavelet")
        }
        assert error["l1_wavelet"] < 0.8 * error["zero_filled"]
        given = reconstruct(centred_fft(images), mask, model="zero_filled")
        np.testing.assert_allclose(given, reconstruct(kspace, model="zero_filled"), rtol=1e-5)


def test_retrospective_comparison(tmp_path, capsys):
    scan = files.bart(tmp_path / "scan", centred_fft(phantom()))
    run(scan, "--out", tmp_path / "out", "--accel", 2, "--model", "tv")
    stored = json.loads((tmp_path / "out/scan_compared.json").read_text())
    assert stored["retrospective"]
    assert len(stored["columns"]) < 28
    assert stored["scores"].keys() == {"zero_filled", "l1_wavelet", "tv"}
    assert (
        stored["scores"]["l1_wavelet"]["scan"]["psnr"]
        > stored["scores"]["zero_filled"]["scan"]["psnr"]
    )
    assert Image.open(tmp_path / "out/scan_compared.png").size[0] > 400
    assert "l1_wavelet" in capsys.readouterr().out


def test_stored_masks_and_folders_with_a_broken_scan(tmp_path, tiny_data, capsys):
    folder = tmp_path / "scans"
    folder.mkdir()
    files.bart(folder / "good", centred_fft(phantom()))
    (folder / "broken.mat").write_bytes(b"x" * 300)
    (folder / "notes.txt").write_text("x")
    test = sorted((tiny_data("singlecoil") / "singlecoil_test").glob("*.h5"))[0]
    (folder / "frozen.h5").write_bytes(test.read_bytes())
    with pytest.raises(InputError, match=r"1 of 3 scans could not be reconstructed: .*broken\.mat"):
        run(folder, "--out", tmp_path / "out", "--model", "zero_filled")
    said = capsys.readouterr().err
    assert "1 files of no known format left out, notes.txt" in said
    assert "stored mask" in said
    assert sorted(p.name for p in (tmp_path / "out").glob("*.h5")) == ["frozen.h5", "good.h5"]


@pytest.mark.parametrize("model", ["zero_filled", "l1_wavelet"])
def test_an_image_beyond_single_precision_is_refused_by_name(tmp_path, model):
    np.save(tmp_path / "a.npy", np.full((1, 1, 40, 32), 3e38, np.complex64))
    with pytest.raises(InputError, match=r"a.npy: slice 0: the k-space holds NaN or infinite"):
        run(tmp_path / "a.npy", "--out", tmp_path / "o", "--model", model)


def test_a_wrong_path_is_said_before_torch_is_imported_and_makes_no_folder(tmp_path):
    code = (
        "import sys; from fastmri_plugin.reconstruct import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print('torch' in sys.modules)"
    )
    words = [sys.executable, "-c", code, "none.h5", "--out", str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "False\n"
    assert "none.h5: no such file" in done.stderr
    assert not (tmp_path / "out").exists()


def test_flags_of_scans_and_of_splits(tmp_path):
    for words, says in (
        (
            ("a.npy", "--out", "o", "--method", "tv"),
            r"--method: for a split, not scans \(they take --model\)",
        ),
        (("--model", "tv", "--out", "o"), "--model: for scans, give at least one"),
        (("a.npy",), "--out: needed"),
        (
            ("a.npy", "--out", "o", "--axes", "rows rows"),
            "--axes: given rows rows; allowed: each at most once",
        ),
    ):
        with pytest.raises(InputError, match=says):
            run(*words)
    np.save(tmp_path / "a.npy", centred_fft(phantom()))
    with pytest.raises(InputError, match="--model: given tvv; allowed: tv, l1_wavelet"):
        run(tmp_path / "a.npy", "--out", tmp_path / "o", "--model", "tvv")
    for kspace, says in (
        (np.ones((2, 8, 8)), "expected complex"),
        (np.ones((8, 8), complex), "expected complex"),
    ):
        with pytest.raises(InputError, match=says):
            reconstruct(kspace)


def test_networks_from_files_take_scans_of_their_coils(tmp_path):
    """A new unrolled mixer reconstructs as zero-filling does; one trained for many coils refuses one."""
    options = {"cascades": 1, "embed_dims": (8,), "depths": (1,), "window_size": 4}
    network = build_network("unrolled_mixer", options)
    path = tmp_path / "tiny.safetensors"
    package(path, network.state_dict(), options, "multicoil")
    kspace = centred_fft(phantom()) * COLUMNS
    expected = reconstruct(kspace, model="zero_filled")
    np.testing.assert_allclose(reconstruct(kspace, model=str(path)), expected, rtol=1e-3, atol=1e-5)
    with pytest.raises(InputError, match=r"is for multicoil, the scan has 1 coil"):
        reconstruct(kspace[:, :1], model=str(path))
    samples = np.random.default_rng(0).random((40, 32)) < 0.4
    expected = reconstruct(kspace * samples, samples, model="zero_filled")
    found = reconstruct(kspace * samples, samples, model=str(path))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_what_the_package_network_has_seen_is_said_beside_the_scan_it_is_used_on(tmp_path, capsys):
    kspace = (centred_fft(phantom(coils=1)) * COLUMNS)[:, 0]
    with h5py.File(tmp_path / "knee.h5", "w") as file:
        file["kspace"], file["mask"] = kspace, COLUMNS.astype(np.float32)
        file["ismrmrd_header"] = files.header(40, 32)
        file.attrs["acquisition"] = "CORPD_FBK"
    run(tmp_path / "knee.h5", "--out", tmp_path / "out")
    said = capsys.readouterr().err
    assert "mri-brain-singlecoil (trained on brains alone, this scan is 'CORPD_FBK'" in said


def test_the_networks_of_the_package_take_what_they_were_trained_on():
    columns, samples = np.ones(8, bool), np.ones((8, 8), bool)
    assert [default_model(coils, columns) for coils in (1, 4)] == [
        "mri-brain-singlecoil",
        "mri-brain-multicoil",
    ]
    assert [default_model(coils, samples) for coils in (1, 4)] == [
        "l1_wavelet",
        "mri-brain-multicoil",
    ]


def test_cut_corners_and_single_zeros_are_not_undersampling():
    """Scans of two phase encodings often measure an ellipse; gaps between samples are what undersampling makes."""
    kspace = files.random_complex(2, 40, 32)
    y, x = np.mgrid[-1:1:40j, -1:1:32j]
    ellipse = x**2 + y**2 <= 1
    row, few = np.ones((40, 32), bool), np.random.default_rng(0).random((40, 32)) < 0.95
    row[11] = False
    for kept in (ellipse, row, ellipse & few):
        assert not is_undersampled(measured_samples(kspace * kept))
    rows, column = np.ones((40, 32), bool), ellipse.copy()
    rows[:16:2] = False
    column[:, 7] = False
    singles = ellipse & (np.random.default_rng(0).random((40, 32)) < 0.7)
    for kept in (rows, column, singles):
        assert is_undersampled(measured_samples(kspace * kept))
    assert not is_undersampled(measured_samples(0 * kspace))
