import io
import shutil
import sys
import zipfile
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from fastmri_plugin import export_submission
from fastmri_plugin.demo_data import TINY, make_demo_data
from fastmri_plugin.submission import (
    ALLOWED_RATIO,
    check_submission,
    intensity_ratio,
    stored_mask,
    validate_submission,
    write_submission,
)
from fastmri_plugin.transforms import combine_coils, zero_filled_image
from fastmri_plugin.volumes import VolumeInfo, list_volumes, write_reconstructions
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
            kspace, mask = file["kspace"][()], stored_mask(info)
        images = [combine_coils(zero_filled_image(k, mask, info.image_size)) for k in kspace]
        volumes[info.name] = np.stack(images).astype(np.float32)
    yield challenge, data, infos, volumes
    patch.undo()


@pytest.fixture
def honest(split, tmp_path):
    challenge, _, infos, volumes = split
    return write_submission(volumes, infos, tmp_path / "honest.zip", challenge)


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
    challenge, _, infos, _ = split
    change, says = DEFECTS[defect]
    second = infos[1].name
    path = repack(honest, tmp_path / "bad.zip", lambda name, data: change(name, data, second))
    with pytest.raises(InputError, match=says) as caught:
        validate_submission(path, infos, challenge)
    assert "\n" not in str(caught.value)
    problems = check_submission(path, infos, challenge).problems
    assert any(second in problem for problem in problems)


def test_an_honest_submission_is_valid_and_flat(split, honest):
    challenge, _, infos, volumes = split
    report = validate_submission(honest, infos, challenge)
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
    path = write_submission(volumes.items(), infos, tmp_path / "t.zip", challenge)
    validate_submission(path, infos, challenge)


def test_all_problems_are_listed_and_counted(split, honest, tmp_path):
    challenge, _, infos, _ = split
    path = repack(
        honest, tmp_path / "bad.zip", lambda name, data: [(name, b""), (f"x/{name}", data)]
    )
    report = check_submission(path, infos, challenge)
    assert len(report.problems) == 4
    with pytest.raises(InputError, match="and 3 more problems"):
        report.raise_if_invalid()


def test_twice_the_same_name_is_found(split, honest, tmp_path):
    challenge, _, infos, _ = split
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = repack(honest, tmp_path / "bad.zip", lambda name, data: [(name, data), (name, data)])
    with pytest.raises(InputError, match="2 times in the archive"):
        validate_submission(path, infos, challenge)


def test_a_file_that_is_no_archive_is_refused(split, tmp_path):
    challenge, _, infos, _ = split
    path = tmp_path / "text.zip"
    path.write_text("no")
    with pytest.raises(InputError, match="not a zip archive"):
        validate_submission(path, infos, challenge)
    with pytest.raises(InputError, match=r"none.zip: no such file"):
        validate_submission(tmp_path / "none.zip", infos, challenge)


def test_the_ratio_bounds_are_where_they_are_said_to_be():
    zero_filled = np.linspace(0, 1, 100).reshape(1, 10, 10)
    assert intensity_ratio(1.9 * zero_filled, zero_filled) == pytest.approx(1.9)
    assert intensity_ratio(np.ones((1, 10, 10)), np.zeros((1, 10, 10))) == 1
    assert ALLOWED_RATIO[0] < 1 < ALLOWED_RATIO[1]


def test_a_folder_writes_the_same_bytes_as_a_mapping(split, honest, tmp_path):
    challenge, _, infos, volumes = split
    write_reconstructions(tmp_path / "folder", volumes)
    other = write_submission(tmp_path / "folder", infos, tmp_path / "other.zip", challenge)
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
    challenge, _, infos, volumes = split
    copies = {name: volume.copy() for name, volume in volumes.items()}
    change(copies)
    with pytest.raises(InputError, match=says):
        write_submission(copies, infos, tmp_path / "out.zip", challenge)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_unasked(split, honest):
    challenge, _, infos, volumes = split
    before = honest.read_bytes()
    with pytest.raises(InputError, match="nothing is overwritten"):
        write_submission(volumes, infos, honest, challenge)
    halved = {name: volume / 2 for name, volume in volumes.items()}
    write_submission(halved, infos, honest, challenge, overwrite=True)
    assert honest.read_bytes() != before


def test_a_volume_of_the_other_challenge_is_refused(split, tmp_path):
    challenge, _, infos, volumes = split
    other = {"singlecoil": "multicoil", "multicoil": "singlecoil"}[challenge]
    with pytest.raises(InputError, match=f"which is not {other}"):
        write_submission(volumes, infos, tmp_path / "out.zip", other)


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
            images = [
                combine_coils(zero_filled_image(k, None, info.image_size)) for k in file["kspace"]
            ]
        volumes[info.name] = np.stack(images)
    path = write_submission(volumes, infos, tmp_path / "val.zip", challenge)
    validate_submission(path, infos, challenge, mask_of=mask_of)
    assert asked == [info.name for info in infos]


def test_the_command_validates(split, honest, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("IMG2IMG_CACHE", str(tmp_path / "cache"))
    challenge, data, infos, _ = split
    words = ["--data-path", str(data), "--challenge", challenge]
    export_submission.main([*words, "--validate", str(honest)])
    assert "valid submission" in capsys.readouterr().out
    bad = repack(honest, tmp_path / "bad.zip", lambda name, content: [])
    with pytest.raises(InputError, match="not valid, 2 problem"):
        export_submission.main([*words, "--validate", str(bad)])
    assert capsys.readouterr().err.count("missing") == len(infos)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "--checkpoint: needed"),
        (["--checkpoint", "run"], "--out: needed"),
        (["--validate", "a.zip", "--out", "b.zip"], "--validate: give it without"),
        (["--validate", "a.zip", "--batch_size", "0"], "--batch_size: given 0"),
        (["--validate", "a.zip", "--test_split", "train"], "test_split"),
    ],
)
def test_flags_that_do_not_fit_are_refused(words, says):
    with pytest.raises(InputError, match=says):
        export_submission.main(["--data_path", ".", "--challenge", "singlecoil", *words])


def test_an_existing_archive_is_refused_before_any_work(split, honest, tmp_path, monkeypatch):
    monkeypatch.setenv("IMG2IMG_CACHE", str(tmp_path / "cache"))
    challenge, data, _, _ = split
    shutil.copy(honest, tmp_path / "there.zip")
    words = ["--data_path", str(data), "--challenge", challenge, "--checkpoint", "none"]
    with pytest.raises(InputError, match=r"--out: .*there.zip exists; give --overwrite"):
        export_submission.main([*words, "--out", str(tmp_path / "there.zip")])


def test_an_export_is_written_and_checked_and_bound_to_its_challenge(
    split, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("IMG2IMG_CACHE", str(tmp_path / "cache"))
    challenge, data, infos, volumes = split
    trained_for = [challenge]
    scale = [1.0]
    inference = SimpleNamespace(
        load_reconstructor=lambda source: SimpleNamespace(
            challenge=trained_for[0], mask_of=stored_mask
        ),
        reconstruct_volumes=lambda reconstructor, infos, **options: (
            (info.name, volumes[info.name] * scale[0]) for info in infos
        ),
    )
    monkeypatch.setitem(sys.modules, "fastmri_plugin.inference", inference)
    out = tmp_path / "submission.zip"
    words = ["--data_path", str(data), "--challenge", challenge, "--checkpoint", "run"]
    export_submission.main([*words, "--out", str(out)])
    assert "2 volumes, 12 slices" in capsys.readouterr().out
    validate_submission(out, infos, challenge)
    scale[0] = 100.0
    with pytest.raises(InputError, match="not valid"):
        export_submission.main([*words, "--out", str(out), "--overwrite"])
    trained_for[0] = "another"
    with pytest.raises(InputError, match=r"--challenge: given .*, but run was trained for another"):
        export_submission.main([*words, "--out", str(tmp_path / "other.zip")])
    assert not (tmp_path / "other.zip").exists()
