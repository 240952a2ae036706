"""Every format's files, made by other programs, read as the k-space that was put in."""

import sys
import types
from typing import ClassVar

import nibabel
import numpy as np
import pytest
import scipy.io

from fastmri_plugin.flags import ReadFlags
from fastmri_plugin.kspace import centred_fft, centred_ifft
from fastmri_plugin.readers import find_scans, open_scan
from fastmri_plugin.slices import measured_samples
from img2img_recon.support.errors import InputError
from tests.fastmri_plugin.readers import files


def flags(**given):
    return ReadFlags(**given)


def whole(path, **given):
    with open_scan(path, flags(**given)) as scan:
        return np.stack([scan.kspace(i) for i in range(scan.num_slices)]), scan


KSPACE = files.random_complex(3, 4, 16, 12)


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: files.bart(folder / "scan", KSPACE),
        lambda folder: files.bart(folder / "scan", KSPACE).with_suffix(""),
        lambda folder: files.bart(folder / "scan", KSPACE).with_suffix(".hdr"),
        lambda folder: files.matlab5(folder / "v5.mat", KSPACE),
        lambda folder: files.matlab73(folder / "v73.mat", KSPACE),
        lambda folder: files.matlab73(folder / "renamed.h5", KSPACE),
    ],
)
def test_kspace_of_other_programs(tmp_path, make):
    found, scan = whole(make(tmp_path))
    np.testing.assert_array_equal(found, KSPACE)
    assert scan.kind == "kspace"


def test_real_bart_dimensions(tmp_path):
    """A slice out of a 3-D scan has its plane in dimensions 1 and 2."""
    files.bart(tmp_path / "s", KSPACE[:1])
    (tmp_path / "s.hdr").write_text(
        "# Dimensions\n1 16 12 4 1 1 1 1 1 1 1 1 1 1 1 1\n# Command\nx\n"
    )
    np.testing.assert_array_equal(whole(tmp_path / "s.cfl")[0], KSPACE[:1])


def test_partitions_are_transformed_and_undersampled_ones_are_refused(tmp_path):
    volume = files.random_complex(6, 4, 16, 12)
    data = centred_fft(volume, (0,)).transpose(2, 3, 0, 1)  # rows, columns, partitions, coils
    (tmp_path / "v.hdr").write_text("# Dimensions\n16 12 6 4\n")
    data.astype("<c8").ravel(order="F").tofile(tmp_path / "v.cfl")
    found, scan = whole(tmp_path / "v.cfl")
    np.testing.assert_allclose(found, volume, atol=1e-5)
    assert any("partitions" in note for note in scan.notes)
    data = data.copy()
    data[:, ::2, 1] = 0
    data.astype("<c8").ravel(order="F").tofile(tmp_path / "v.cfl")
    with pytest.raises(InputError, match="undersampled along the partitions"):
        whole(tmp_path / "v.cfl")


def test_partitions_of_real_and_imaginary_parts(tmp_path):
    volume = files.random_complex(6, 4, 16, 12)
    data = centred_fft(volume, (0,))
    np.save(tmp_path / "v.npy", np.stack([data.real, data.imag]))
    named = {"kind": "kspace", "axes": ("complex", "partitions", "coils", "rows", "columns")}
    np.testing.assert_allclose(whole(tmp_path / "v.npy", **named)[0], volume, atol=1e-5)
    named = {"kind": "kspace", "axes": named["axes"][1:], "complex_axis": 0}
    np.testing.assert_allclose(whole(tmp_path / "v.npy", **named)[0], volume, atol=1e-5)
    images = {"kind": "image", "axes": ("complex", "partitions", "coils", "rows", "columns")}
    found = whole(tmp_path / "v.npy", **images)[0]
    np.testing.assert_allclose(centred_ifft(found), data, atol=1e-5)


def test_raw_lines_are_sorted_and_oversampling_is_removed(tmp_path):
    image = files.random_complex(3, 4, 16, 12)
    wide = np.zeros((3, 4, 32, 12), np.complex64)
    wide[:, :, 8:24] = image
    lines = files.raw_lines(centred_fft(wide), np.random.default_rng(0).permutation(12))
    path = files.raw(tmp_path / "raw.h5", lines, files.header(32, 12))
    found, scan = whole(path)
    np.testing.assert_allclose(centred_ifft(found), image, atol=1e-5)
    assert scan.mask is None
    assert scan.image_size == (16, 12)
    assert scan.voxel_mm == (1, 2, 5)
    assert whole(path, key="dataset/data")[1].shape == (3, 4, 16, 12)


def test_raw_partial_fourier_reversed_lines_and_partial_echoes(tmp_path):
    wide = files.random_complex(1, 2, 32, 12)
    lines = files.raw_lines(wide, range(4, 12))
    for line in lines:
        line["idx"]["kspace_encode_step_1"] -= 4
    lines[2]["data"], lines[2]["flags"] = lines[2]["data"][:, ::-1], [22]
    lines[3]["data"] = lines[3]["data"][:, 6:]
    lines[3]["fields"] = {"center_sample": 16 - 6}
    xml = files.header(32, 12, center=2, last=7, frx=32, rx=32)
    found, scan = whole(files.raw(tmp_path / "raw.h5", lines, xml))
    expected = wide.copy()
    expected[..., :4] = 0
    expected[:, :, :6, 7] = 0
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert scan.mask.tolist() == [False] * 4 + [True] * 8


def test_raw_repetitions_echoes_and_noise(tmp_path):
    kspace = files.random_complex(1, 2, 16, 8)
    mixing = np.array([[1, 0], [0.8, 0.3]])
    noise = mixing @ files.random_complex(2, 4000, seed=1)
    lines = [{"data": noise.astype(np.complex64), "flags": [19]}]
    lines += files.raw_lines(kspace) + files.raw_lines(3 * kspace, repetition=1)
    lines += files.raw_lines(9 * kspace, contrast=1)
    xml = files.header(16, 8, frx=16, rx=16)
    path = files.raw(tmp_path / "raw.h5", lines, xml)
    found, scan = whole(path)
    said = " | ".join(scan.notes)
    assert all(word in said for word in ("2 echoes", "2 repetitions: averaged", "prewhitened"))
    level = np.trace(np.cov(noise)).real / 2
    white = np.linalg.inv(np.linalg.cholesky(np.cov(noise) / level)) @ kspace[0].reshape(2, -1)
    np.testing.assert_allclose(found[0].reshape(2, -1), 2 * white, rtol=1e-2, atol=1e-2)
    ratio = whole(path, repetition=1)[0] / found
    np.testing.assert_allclose(ratio, 1.5, rtol=1e-4)
    np.testing.assert_allclose(whole(path, echo=1)[0] / found, 4.5, rtol=1e-4)
    with pytest.raises(InputError, match="--repetition: given 2, allowed: 0 to 1"):
        whole(path, repetition=2)


@pytest.mark.parametrize(("mode", "used"), [("embedded", True), ("separate", False)])
def test_raw_calibration_lines(tmp_path, mode, used):
    kspace = files.random_complex(1, 2, 16, 12)
    lines = files.raw_lines(kspace, range(0, 12, 2))
    lines += [{**line, "flags": [20]} for line in files.raw_lines(kspace, (5, 7))]
    more = f"<parallelImaging><calibrationMode>{mode}</calibrationMode></parallelImaging>"
    xml = files.header(16, 12, frx=16, rx=16, more=more)
    _, scan = whole(files.raw(tmp_path / "raw.h5", lines, xml))
    columns = {0, 2, 4, 6, 8, 10} | ({5, 7} if used else set())
    assert set(np.flatnonzero(scan.mask)) == columns
    assert any("2 calibration lines" in note for note in scan.notes)


def test_raw_positions_become_the_affine(tmp_path):
    lines = files.raw_lines(files.random_complex(3, 2, 16, 8))
    for line in lines:
        line["fields"] = {
            "read_dir": (0.0, 0.0, -1.0),
            "phase_dir": (1.0, 0.0, 0.0),
            "slice_dir": (0.0, 1.0, 0.0),
            "position": (5.0, 10.0 + 6 * line["idx"]["slice"], -3.0),
        }
    xml = files.header(16, 8, frx=16, rx=16)
    scan = whole(files.raw(tmp_path / "raw.h5", lines, xml))[1]
    # The middle of the second slice lies at its position, left and posterior turned to RAS.
    np.testing.assert_allclose(scan.affine @ [4, 8, 1, 1], [-5, -16, -3, 1])
    np.testing.assert_allclose(scan.affine[:3, 0], [-2, 0, 0])


@pytest.mark.parametrize(
    ("places", "order", "even"),
    [
        ((3, 9, 0, 6, 12), (2, 0, 3, 1, 4), True),  # counted as they were measured
        ((12, 9, 6, 3, 0), (0, 1, 2, 3, 4), True),
        ((0, 3, 6, 20, 23), (0, 1, 2, 3, 4), False),
        ((0, 0, 0, 0, 0), (0, 1, 2, 3, 4), True),
    ],
)
def test_raw_slices_lie_by_their_positions(tmp_path, places, order, even):
    kspace = files.random_complex(5, 2, 16, 8)
    lines = files.raw_lines(kspace)
    for line in lines:
        line["fields"] = {
            "read_dir": (0.0, 1.0, 0.0),
            "phase_dir": (1.0, 0.0, 0.0),
            "slice_dir": (0.0, 0.0, 1.0),
            "position": (0.0, 0.0, float(places[line["idx"]["slice"]])),
        }
    found, scan = whole(files.raw(tmp_path / "raw.h5", lines, files.header(16, 8, frx=16, rx=16)))
    np.testing.assert_allclose(found, kspace[list(order)], atol=1e-6)
    assert (scan.affine is not None) == even
    if even and any(places):
        middles = [(scan.affine @ [4, 8, index, 1])[2] for index in range(5)]
        np.testing.assert_allclose(middles, [places[number] for number in order], atol=1e-5)


def test_raw_slices_of_a_localiser_keep_their_order(tmp_path):
    kspace = files.random_complex(3, 2, 16, 8)
    lines = files.raw_lines(kspace)
    for line in lines:
        number = line["idx"]["slice"]
        line["fields"] = {
            "slice_dir": tuple(float(axis == number) for axis in range(3)),
            "position": ((3.0, 0.0, 0.0), (9.0, 1.0, 0.0), (6.0, 0.0, 1.0))[number],
        }
    found, _ = whole(files.raw(tmp_path / "raw.h5", lines, files.header(16, 8, frx=16, rx=16)))
    np.testing.assert_allclose(found, kspace, atol=1e-6)


def test_raw_slices_with_columns_of_their_own_have_no_mask_for_all(tmp_path):
    kspace = files.random_complex(2, 3, 16, 12)
    lines = files.raw_lines(kspace[:1], range(0, 12, 2))
    more = files.raw_lines(kspace[1:], range(0, 12, 3))
    for line in more:
        line["idx"]["slice"] = 1
    xml = files.header(16, 12, frx=16, rx=16)
    found, scan = whole(files.raw(tmp_path / "raw.h5", [*lines, *more], xml))
    assert scan.mask is None
    measured = [measured_samples(one).tolist() for one in found]
    assert measured == [[c % 2 == 0 for c in range(12)], [c % 3 == 0 for c in range(12)]]


def test_raw_that_is_not_cartesian_is_refused(tmp_path):
    xml = files.header(16, 8, trajectory="radial")
    path = files.raw(tmp_path / "raw.h5", files.raw_lines(files.random_complex(1, 2, 16, 8)), xml)
    with pytest.raises(InputError, match="trajectory is 'radial', allowed: cartesian"):
        whole(path)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_nifti(tmp_path, ending):
    volume = np.random.default_rng(0).random((4, 16, 12)).astype(np.float32)
    affine = np.array([[0, 1.5, 0, 3], [-0.75, 0, 0, 5], [0, 0, 4, 7], [0, 0, 0, 1]])
    found, scan = whole(files.nifti(tmp_path / f"m{ending}", volume, affine))
    np.testing.assert_allclose(np.abs(centred_ifft(found))[:, 0], volume, atol=1e-5)
    np.testing.assert_allclose(scan.affine, affine)
    assert scan.voxel_mm == (1.5, 0.75, 4)
    assert any("synthetic" in note for note in scan.notes)


def test_phase_of_magnitudes(tmp_path):
    rng = np.random.default_rng(0)
    magnitude, phase = rng.random((4, 16, 12)), rng.uniform(-3, 3, (4, 16, 12))
    path = files.nifti(tmp_path / "m.nii", magnitude.astype(np.float32), np.eye(4))
    other = files.nifti(tmp_path / "p.nii", phase.astype(np.float32), np.eye(4))
    found, _ = whole(path, phase=other)
    np.testing.assert_allclose(centred_ifft(found)[:, 0], magnitude * np.exp(1j * phase), atol=1e-5)


def test_dicom_series_is_sorted_by_place(tmp_path):
    volume = np.random.default_rng(0).integers(0, 4000, (4, 16, 12))
    found, scan = whole(files.dicom_series(tmp_path / "series", volume))
    images = np.abs(centred_ifft(found))[:, 0]
    # Along the normal, (1, 0, 0) x (0, 0, -1) = (0, 1, 0), the files lie in the volume's order.
    np.testing.assert_allclose(images, 2 * volume + 1, rtol=1e-4)
    assert scan.voxel_mm == (1.5, 0.75, 4)
    np.testing.assert_allclose(scan.affine @ [0, 0, 1, 1], [10, -24, 30, 1])
    np.testing.assert_allclose(scan.affine[:3, 1], [0, 0, -1.5])
    (first,) = [p for p in (tmp_path / "series").iterdir() if p.name == "IM0"]
    assert whole(first)[1].shape == (1, 1, 16, 12)


def test_enhanced_dicom_says_place_spacing_and_scale_of_every_frame(tmp_path):
    volume = np.random.default_rng(0).integers(0, 4000, (3, 16, 12))
    path = files.enhanced_dicom(tmp_path / "e.dcm", volume, heights=(8, 0, 4), slopes=(1, 2, 3))
    found, scan = whole(path)
    images = np.abs(centred_ifft(found))[:, 0]
    expected = [slope * volume[n] for n, slope in ((1, 2), (2, 3), (0, 1))]
    np.testing.assert_allclose(images, expected, rtol=1e-4, atol=0.1)
    assert scan.voxel_mm == (0.5, 0.6, 4)
    np.testing.assert_allclose(scan.affine @ [0, 0, 2, 1], [0, 0, 8, 1])


def test_scale_of_all_frames_is_in_an_enhanced_files_own_header(tmp_path):
    volume = np.random.default_rng(0).integers(100, 4000, (3, 16, 12))
    scale = {"RescaleSlope": 2, "RescaleIntercept": -100}
    path = files.enhanced_dicom(tmp_path / "e.dcm", volume, (0, 4, 8), None, scale)
    images = np.abs(centred_ifft(whole(path)[0]))[:, 0]
    np.testing.assert_allclose(images, 2 * volume - 100, rtol=1e-4, atol=0.1)


def test_frames_of_a_classic_file_share_a_place(tmp_path):
    import pydicom

    volume = np.random.default_rng(0).integers(0, 4000, (3, 16, 12))
    path = files.enhanced_dicom(tmp_path / "e.dcm", volume, (0, 4, 8), None)
    header = pydicom.dcmread(path)
    del header.PerFrameFunctionalGroupsSequence, header.SharedFunctionalGroupsSequence
    header.ImagePositionPatient, header.ImageOrientationPatient = [0, 0, 5], [1, 0, 0, 0, 1, 0]
    header.save_as(path)
    images = np.abs(centred_ifft(whole(path)[0]))[:, 0]
    np.testing.assert_allclose(images, volume, rtol=1e-4, atol=0.1)


def test_a_localiser_keeps_its_order_and_has_no_grid(tmp_path):
    import pydicom

    volume = np.random.default_rng(0).integers(0, 4000, (6, 16, 12))
    folder = files.dicom_series(tmp_path / "series", volume, places=(0, 0, 5, 5, 10, 10))
    numbers = {}
    for path in folder.iterdir():
        header = pydicom.dcmread(path)
        header.InstanceNumber = int(path.name[2:])
        if path.name in ("IM1", "IM4", "IM5"):  # the second image of each place
            header.ImageOrientationPatient = [0, 0, -1, 1, 0, 0]
        header.save_as(path)
        numbers[header.InstanceNumber] = header.pixel_array
    found, scan = whole(folder)
    expected = [2 * numbers[number] + 1 for number in sorted(numbers)]
    np.testing.assert_allclose(np.abs(centred_ifft(found))[:, 0], expected, rtol=1e-4)
    assert scan.affine is None


def test_a_dicom_series_of_echoes_is_refused(tmp_path):
    volume = np.random.default_rng(0).integers(0, 4000, (4, 16, 12))
    files.dicom_series(tmp_path / "series", volume, places=(0, 0, 1, 1))
    with pytest.raises(InputError, match="4 images at 2 places"):
        whole(tmp_path / "series")


def test_axes_named_of_a_bart_pair_keep_it_kspace(tmp_path):
    pair = files.bart(tmp_path / "scan", KSPACE[:1])
    found, scan = whole(pair, axes=("rows", "columns", "coils"))
    np.testing.assert_array_equal(found, KSPACE[:1])
    assert scan.kind == "kspace"
    with pytest.raises(InputError, match="complex already"):
        whole(pair, axes=("rows", "columns", "complex"))


def test_matlab_vectors_are_rows_or_columns(tmp_path):
    arrays = {"image": np.ones((4, 6, 5)), "ids": np.array([[1, 1, 2, 2]]), "by": np.ones((4, 1))}
    scipy.io.savemat(tmp_path / "v.mat", arrays)
    given = {
        "key": "image",
        "axes": ("slices", "rows", "columns"),
        "group_key": "ids",
        "scale_key": "by",
    }
    _, scan = whole(tmp_path / "v.mat", **given)
    assert scan.volume_ids == ("1", "1", "2", "2")


@pytest.mark.parametrize(
    ("axes", "moved"),
    [
        ("slices coils rows columns", (0, 1, 2, 3)),
        ("rows columns coils slices", (2, 3, 1, 0)),
        ("columns slices rows coils", (3, 0, 2, 1)),
    ],
)
def test_axes_by_name(tmp_path, axes, moved):
    np.save(tmp_path / "a.npy", KSPACE.transpose(moved))
    for given in ((axes,), tuple(axes.split())):
        found, scan = whole(tmp_path / "a.npy", axes=given)
        np.testing.assert_array_equal(found, KSPACE)
        assert scan.notes == ()


@pytest.mark.parametrize(
    ("shape", "kind", "expected"),
    [
        ((16, 64, 48), "image", (16, 1, 64, 48)),
        ((64, 48, 16), "image", (16, 1, 64, 48)),
        ((8, 64, 48), "kspace", (1, 8, 64, 48)),
        ((64, 48, 4, 7), "kspace", (7, 4, 64, 48)),
        ((2, 5, 4, 64, 48), "kspace", (5, 4, 64, 48)),
    ],
)
def test_guessed_axes_are_said(tmp_path, shape, kind, expected):
    np.savez(tmp_path / "a.npz", a=np.ones(shape, np.complex64))
    with open_scan(tmp_path / "a.npz", flags(kind=kind)) as scan:
        assert scan.shape == expected
        assert any("axes taken as" in note and "--axes" in note for note in scan.notes)


def test_repetitions_of_arrays(tmp_path):
    data = np.stack([KSPACE, 3 * KSPACE])
    data[1, ..., 1::2] = 0  # measured in the first repetition only
    np.save(tmp_path / "a.npy", data)
    axes = ("repetitions", "slices", "coils", "rows", "columns")
    factor = np.where(np.arange(12) % 2, 1, 2)
    np.testing.assert_allclose(whole(tmp_path / "a.npy", axes=axes)[0], KSPACE * factor, rtol=1e-5)
    found = whole(tmp_path / "a.npy", axes=axes, repetition=0)[0]
    np.testing.assert_array_equal(found, KSPACE)


def test_twix_through_twixtools(tmp_path, monkeypatch):
    """The dimensions of twixtools' arrays, from a stand-in: the library cannot write files."""
    names = [
        "Ide",
        "Idd",
        "Idc",
        "Idb",
        "Ida",
        "Seg",
        "Set",
        "Rep",
        "Phs",
        "Eco",
        "Par",
        "Sli",
        "Ave",
        "Lin",
        "Cha",
        "Col",
    ]

    class Array:
        dims = names
        flags: ClassVar[dict] = {}
        data = KSPACE.transpose(0, 3, 1, 2).reshape(*[1] * 11, 3, 1, 12, 4, 16)
        shape = data.shape

        def __getitem__(self, index):
            return self.data[index]

    library = types.ModuleType("twixtools")
    library.map_twix = lambda path, verbose: [{"hdr": {}}, {"image": Array()}]
    monkeypatch.setitem(sys.modules, "twixtools", library)
    (tmp_path / "meas.dat").write_bytes(b"x")
    np.testing.assert_array_equal(whole(tmp_path / "meas.dat")[0], KSPACE)
    monkeypatch.setitem(sys.modules, "twixtools", None)
    with pytest.raises(InputError, match="pip install twixtools"):
        whole(tmp_path / "meas.dat")


def test_fastmri_volumes_and_folders(tmp_path, tiny_data):
    folder = tiny_data("multicoil") / "multicoil_val"
    first = sorted(folder.glob("*.h5"))[0]
    found, scan = whole(first)
    assert found.shape == scan.shape
    assert scan.image_size[0] <= scan.shape[2]
    files.bart(tmp_path / "scan", KSPACE)
    files.dicom_series(tmp_path / "series", np.ones((3, 8, 8), int))
    (tmp_path / "notes.txt").write_text("x")
    scans, others = find_scans([tmp_path])
    assert [path.name for path in scans] == ["scan.cfl", "series"]
    assert [path.name for path in others] == ["notes.txt"]


def test_wrong_files_are_named(tmp_path):
    for name, content, says in (
        ("none.npy", None, "no such file"),
        ("x.png", b"x", "of no known format"),
        ("x.mat", b"x" * 200, "not a MATLAB file"),
        ("x.nii", b"x" * 400, "not a NIfTI file"),
        ("x.dcm", bytes(128) + b"DICM" + bytes(64), "DICOM"),
        ("x.hdr", b"# Dimensions\n4 4\n", "x.cfl is missing"),
        ("x.h5", b"x", "not a file of plain arrays"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=says) as caught:
            whole(tmp_path / name)
        assert name.split(".")[0] in str(caught.value)
        assert "\n" not in str(caught.value)


def test_nibabel_reads_what_we_write(tmp_path):
    from fastmri_plugin.scan_files import write_nifti

    volume = np.random.default_rng(0).random((4, 16, 12)).astype(np.float32)
    affine = np.array([[0, 1.5, 0, 3], [-0.75, 0, 0, 5], [0, 0, 4, 7], [0, 0, 0, 1]])
    scan = whole(files.nifti(tmp_path / "m.nii", volume, affine))[1]
    write_nifti(tmp_path / "out.nii.gz", volume, scan)
    image = nibabel.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(image.get_fdata().transpose(2, 1, 0), volume)
    np.testing.assert_allclose(image.affine, affine)
    plain = whole(files.bart(tmp_path / "s", KSPACE))[1]
    write_nifti(tmp_path / "plain.nii.gz", volume, plain)
    assert nibabel.load(tmp_path / "plain.nii.gz").header["sform_code"] == 0
