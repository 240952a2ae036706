import io
import zipfile

import h5py
import numpy as np
import pytest

from fastmri_plugin.demo_data import TINY, make_demo_data
from fastmri_plugin.kspace import zero_filled
from fastmri_plugin.listing import list_volumes
from fastmri_plugin.submission import (
    ALLOWED_RATIO,
    check_submission,
    intensity_ratio,
    write_submission,
)
from fastmri_plugin.volumes import (
    VolumeInfo,
    own_mask,
    read_reconstruction,
    write_reconstruction,
)
from img2img_recon.support.errors import InputError


@pytest.fixture(scope="module", params=["singlecoil", "multicoil"])
def split(request, tmp_path_factory):
    """(challenge, data folder, test volumes, their honest reconstructions)."""
    patch = pytest.MonkeyPatch()
    patch.setenv("IMG2IMG_CACHE", str(tmp_path_factory.mktemp("cache")))
    challenge = request.param
    sizes = TINY.__class__(
        recon=32, readout=64, widths=(36, 28), slices=(6,), train=1, val=1, test=2, coils=2
    )
    data = make_demo_data(tmp_path_factory.mktemp("data"), challenge, sizes=sizes)
    infos = list_volumes(data / f"{challenge}_test", challenge)
    volumes = {}
    for info in infos:
        with h5py.File(info.path) as file:
            kspace, mask = file["kspace"][()], own_mask(info)
        images = [zero_filled(k, mask, info.image_size) for k in kspace]
        volumes[info.name] = np.stack(images).astype(np.float32)
    yield challenge, data, infos, volumes
    patch.undo()


@pytest.fixture
def honest(split, tmp_path):
    _, _, infos, volumes = split
    return write_submission(volumes.items(), infos, tmp_path / "honest.zip")


def repack(path, out, change):
    """Copy an archive while `change(name, bytes)` yields the members that take a member's place."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w") as target:
        for name in source.namelist():
            for new_name, content in change(name, source.read(name)):
                target.writestr(new_name, content)
    return out


def hdf5(**datasets):
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for key, value in datasets.items():
            file[key] = value
    return content.getvalue()


def volume_in(content):
    with h5py.File(io.BytesIO(content), "r") as file:
        return file["reconstruction"][()]


def changed(change):
    """Apply `change` to the second volume's array."""
    return lambda name, content, second: [
        (name, hdf5(reconstruction=change(volume_in(content))) if name == second else content)
    ]


def with_nan(volume):
    volume[0, 0, :2] = np.nan
    return volume


DEFECTS = {
    "missing": (
        lambda name, content, second: [] if name == second else [(name, content)],
        "missing, expected every volume",
    ),
    "surplus": (
        lambda name, content, second: [(name, content), (f"extra_{name}", content)],
        "surplus, the split has no such volume",
    ),
    "nested": (
        lambda name, content, second: [(f"reconstructions/{name}", content)],
        "in a folder, expected a flat archive",
    ),
    "key": (
        lambda name, content, second: [(name, hdf5(image=volume_in(content)))],
        r"no dataset 'reconstruction' \(found: image\)",
    ),
    "surplus key": (
        lambda name, content, second: [(name, hdf5(reconstruction=volume_in(content), mask=[1]))],
        "surplus mask, expected 'reconstruction' alone",
    ),
    "not hdf5": (lambda name, content, second: [(name, b"text")], "not a readable HDF5 file"),
    "cut off": (
        lambda name, content, second: [(name, content[: len(content) // 2])],
        "not a readable HDF5 file",
    ),
    "uncropped": (changed(lambda v: np.pad(v, ((0, 0), (4, 4), (4, 4)))), "expected the centre 28"),
    "a slice short": (changed(lambda v: v[:-1]), "5 slices, expected 6"),
    "one slice": (changed(lambda v: v[0]), r"shape \(28, 28\), expected \(6, 28, 28\)"),
    "double": (changed(lambda v: v.astype(np.float64)), "float64 values, expected float32"),
    "complex": (changed(lambda v: v.astype(np.complex64)), "complex64 values, expected float32"),
    "nan": (changed(with_nan), "2 NaN or infinite values, expected none"),
    "normalised": (changed(lambda v: v / v.max()), "times those of the zero-filled image, allowed"),
    "tripled": (changed(lambda v: 3 * v), "intensities are 3 times"),
    "signed": (changed(lambda v: v * np.resize([1, 1, 1, -1], 28).astype("f4")), "are negative"),
    "reversed": (changed(lambda v: v[::-1]), "slices out of order: slice . shows what slice"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_found_and_named(split, honest, tmp_path, defect):
    _, _, infos, _ = split
    change, says = DEFECTS[defect]
    second = infos[1].name
    path = repack(honest, tmp_path / "bad.zip", lambda name, data: change(name, data, second))
    with pytest.raises(InputError, match=says) as caught:
        check_submission(path, infos).raise_if_invalid()
    assert "\n" not in str(caught.value)
    problems = check_submission(path, infos).problems
    assert any(second in problem for problem in problems)


def test_an_honest_submission_is_valid_and_flat(split, honest):
    _, _, infos, volumes = split
    report = check_submission(honest, infos)
    report.raise_if_invalid()
    assert report.problems == ()
    assert (report.volumes, report.slices) == (2, 12)
    assert report.num_bytes == honest.stat().st_size
    with zipfile.ZipFile(honest) as archive:
        assert archive.namelist() == [info.name for info in infos]
        for info in infos:
            found = volume_in(archive.read(info.name))
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, volumes[info.name])


def test_a_target_is_a_valid_submission_too(split, tmp_path):
    """The bounds let a perfect reconstruction through, not only the zero-filled one."""
    challenge, data, infos, _ = split
    key = {"singlecoil": "reconstruction_esc", "multicoil": "reconstruction_rss"}[challenge]
    volumes = {}
    for info in infos:
        with h5py.File(data / "targets" / f"{challenge}_test" / info.name) as file:
            crop = (file[key].shape[-1] - info.image_size[0]) // 2
            target = file[key][()]
        volumes[info.name] = target[:, crop : crop + info.image_size[0]][
            :, :, crop : crop + info.image_size[1]
        ]
    path = write_submission(volumes.items(), infos, tmp_path / "t.zip")
    check_submission(path, infos).raise_if_invalid()


def test_all_problems_are_listed_and_counted(split, honest, tmp_path):
    _, _, infos, _ = split
    path = repack(
        honest, tmp_path / "bad.zip", lambda name, data: [(name, b""), (f"x/{name}", data)]
    )
    report = check_submission(path, infos)
    assert len(report.problems) == 4
    with pytest.raises(InputError, match="and 3 more problems"):
        report.raise_if_invalid()


def test_twice_the_same_name_is_found(split, honest, tmp_path):
    _, _, infos, _ = split
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = repack(honest, tmp_path / "bad.zip", lambda name, data: [(name, data), (name, data)])
    with pytest.raises(InputError, match="2 times in the archive"):
        check_submission(path, infos).raise_if_invalid()


def test_a_file_that_is_no_archive_is_refused(split, tmp_path):
    _, _, infos, _ = split
    path = tmp_path / "text.zip"
    path.write_text("no")
    with pytest.raises(InputError, match="not a zip archive"):
        check_submission(path, infos).raise_if_invalid()
    with pytest.raises(InputError, match=r"none.zip: no such file"):
        check_submission(tmp_path / "none.zip", infos).raise_if_invalid()


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_member_is_a_problem_and_no_traceback(split, honest, tmp_path, method):
    _, _, infos, _ = split
    path = tmp_path / "damaged.zip"
    with zipfile.ZipFile(honest) as source, zipfile.ZipFile(path, "w", method) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
        start = target.infolist()[0].header_offset
    content = bytearray(path.read_bytes())
    content[start + 120 : start + 400] = bytes(range(140)) * 2
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read from the archive"):
        check_submission(path, infos).raise_if_invalid()
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 6] = 146  # the version that is needed to extract
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a zip archive"):
        check_submission(path, infos).raise_if_invalid()


def test_the_ratio_bounds_are_where_they_are_said_to_be():
    zero_filled = np.linspace(0, 1, 100).reshape(1, 10, 10)
    assert intensity_ratio(1.9 * zero_filled, zero_filled) == pytest.approx(1.9)
    assert intensity_ratio(np.ones((1, 10, 10)), np.zeros((1, 10, 10))) == 1
    assert ALLOWED_RATIO[0] < 1 < ALLOWED_RATIO[1]


def test_files_read_back_make_the_same_bytes(split, honest, tmp_path):
    _, _, infos, volumes = split
    for name, volume in volumes.items():
        write_reconstruction(tmp_path / "folder" / name, volume)
    paths = sorted((tmp_path / "folder").iterdir())
    pairs = ((path.name, read_reconstruction(path)) for path in paths)
    other = write_submission(pairs, infos, tmp_path / "other.zip")
    assert other.read_bytes() == honest.read_bytes()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda volumes: volumes.popitem(), "missing .1 of the split's 2"),
        (lambda volumes: volumes.update(x=np.zeros((1, 2, 2))), "x: surplus"),
        (lambda volumes: [v.fill(np.nan) for v in volumes.values()], "NaN or infinite"),
        (lambda volumes: volumes.update({k: v[1:] for k, v in volumes.items()}), "5 slices"),
        (lambda volumes: volumes.update({k: v + 0j for k, v in volumes.items()}), "complex"),
    ],
)
def test_what_is_not_a_submission_is_not_written(split, tmp_path, change, says):
    _, _, infos, volumes = split
    copies = {name: volume.copy() for name, volume in volumes.items()}
    change(copies)
    with pytest.raises(InputError, match=says):
        write_submission(copies.items(), infos, tmp_path / "out.zip")
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_unasked(split, honest):
    _, _, infos, volumes = split
    before = honest.read_bytes()
    with pytest.raises(InputError, match="nothing is overwritten"):
        write_submission(volumes.items(), infos, honest)
    halved = {name: volume / 2 for name, volume in volumes.items()}
    write_submission(halved.items(), infos, honest, overwrite=True)
    assert honest.read_bytes() != before


def test_the_mask_of_a_split_without_masks_is_the_callers(split, tmp_path):
    challenge, data, _, _ = split
    infos = list_volumes(data / f"{challenge}_val", challenge)
    asked = []

    def mask_of(info: VolumeInfo) -> np.ndarray:
        asked.append(info.name)
        return np.ones(info.num_columns, dtype=bool)

    volumes = {}
    for info in infos:
        with h5py.File(info.path) as file:
            images = [zero_filled(k, None, info.image_size) for k in file["kspace"]]
        volumes[info.name] = np.stack(images)
    path = write_submission(volumes.items(), infos, tmp_path / "val.zip")
    check_submission(path, infos, mask_of=mask_of).raise_if_invalid()
    assert asked == [info.name for info in infos]
