"""What a file must hold to be a volume: files as other programs write them, and damaged ones."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastmri.data
import h5py
import numpy as np
import pytest
from fastmri.data.transforms import UnetDataTransform

from fastmri_plugin.convert import ConvertConfig
from fastmri_plugin.data import SliceDataset
from fastmri_plugin.frozen import freeze_volume
from fastmri_plugin.headers import Header, write_header
from fastmri_plugin.inspection import check_needs, inspect_volume
from fastmri_plugin.kspace import centred_ifft
from fastmri_plugin.listing import list_volumes, split_folder
from fastmri_plugin.masks import MaskSpec
from fastmri_plugin.readers import open_scan
from fastmri_plugin.transforms import build_transform
from fastmri_plugin.volumes import own_mask, read_slice, read_target, write_volume
from img2img_recon.support.errors import InputError

COUNT = int(os.environ.get("FUZZ", "60"))
SLICES, ROWS, COLUMNS, SIDE = 3, 16, 12, 8
XML = write_header(Header.of_columns((ROWS, COLUMNS), (SIDE, SIDE), (0, COLUMNS)))
Change = Callable[[h5py.File], Any]


def complex_noise(*shape: int) -> np.ndarray:
    draw = np.random.default_rng(0)
    return (draw.normal(size=shape) + 1j * draw.normal(size=shape)).astype(np.complex64)


def image_of(kspace: np.ndarray) -> np.ndarray:
    top, left = (ROWS - SIDE) // 2, (COLUMNS - SIDE) // 2
    return np.abs(centred_ifft(kspace))[..., top : top + SIDE, left : left + SIDE]


KSPACE = complex_noise(SLICES, ROWS, COLUMNS)
TARGET = image_of(KSPACE)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    def made(change: Change | None = None, name: str = "file.h5") -> Path:
        path = tmp_path / "val" / name
        attributes = {"acquisition": "AXT2", "patient_id": "p"}
        write_volume(path, KSPACE, TARGET, XML, attributes)
        if change is not None:
            with h5py.File(path, "r+") as file:
                change(file)
        return path

    return made


def drop(file: h5py.File, name: str) -> None:
    if file.get(name, getlink=True) is not None:
        del file[name]


def put(name: str, value: Any) -> Change:
    def change(file: h5py.File) -> None:
        drop(file, name)
        file[name] = value

    return change


def group(name: str) -> Change:
    def change(file: h5py.File) -> None:
        drop(file, name)
        file.create_group(name)

    return change


def header_without_target(file: h5py.File) -> None:
    """With a target there is another way to know the image's size."""
    put("ismrmrd_header", "<half")(file)
    del file["reconstruction_esc"]


def attribute(name: str, value: Any) -> Change:
    return lambda file: file.attrs.__setitem__(name, value)


def compound(kind: str, *names: str) -> np.ndarray:
    values = np.empty(KSPACE.shape, [(name, kind) for name in names])
    values[names[0]], values[names[1]] = KSPACE.real, KSPACE.imag
    return values


@pytest.mark.parametrize(
    "stored",
    [
        KSPACE.astype(np.complex128),
        KSPACE.astype(">c8"),
        compound("<f4", "real", "imag"),
        compound(">f8", "r", "i"),
        compound("<f4", "re", "im"),
    ],
    ids=["complex128", "big-endian", "matlab", "r-i", "re-im"],
)
@pytest.mark.parametrize("model", ["img2img_mixer", "fastmri_unet"])
def test_kspace_of_other_programs_is_single_precision(make, stored, model):
    info = inspect_volume(make(put("kspace", stored)), "singlecoil")
    np.testing.assert_array_equal(read_slice(info.path, 1), KSPACE[1])
    transform = build_transform(
        model, "singlecoil", MaskSpec("random", (2,), (0.2,)).mask_func(), True
    )
    expected = inspect_volume(make(name="plain.h5"), "singlecoil")
    shutil.move(expected.path, info.path)
    plain = SliceDataset([info], transform)[1].image
    make(put("kspace", stored))
    assert (SliceDataset([info], transform)[1].image == plain).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (put("kspace", np.abs(KSPACE)), "kspace: is float32 .*complex numbers.*--complex_axis"),
        (put("kspace", np.zeros((SLICES, ROWS, COLUMNS), "S3")), "kspace: is .S3"),
        (put("kspace", h5py.Empty("f")), "'kspace' is empty"),
        (put("kspace", KSPACE[:0]), "kspace has shape .0, 16, 12., it holds nothing"),
        (group("kspace"), "'kspace' is a group"),
        (put("kspace", KSPACE[None, None]), "neither single- nor multi-coil"),
        (put("reconstruction_esc", TARGET.astype(complex)), "reconstruction_esc is complex128"),
        (put("reconstruction_esc", TARGET[:2]), "reconstruction_esc has shape .2, 8, 8."),
        (put("reconstruction_esc", 0 * TARGET), "the target's maximum is 0"),
        (put("reconstruction_esc", TARGET * 1e-20), "maximum is 3.29e-20; allowed: 1e-15 to 1e.15"),
        (put("reconstruction_esc", TARGET * [[[1]], [[np.nan]], [[1]]]), "slice 1 of the target holds NaN"),
        (group("mask"), "'mask' is a group"),
        (put("mask", np.ones(COLUMNS - 1)), r"mask has shape .11,., expected .12,."),
        (put("mask", np.ones((2, COLUMNS // 2))), "mask has shape"),
        (put("mask", np.full(COLUMNS, np.nan)), "all finite"),
        (put("mask", np.zeros(COLUMNS)), "mask keeps no column"),
        (header_without_target, "not an XML document"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_one_line_with_the_file(make, change, says):
    path = make(change)
    with pytest.raises(InputError, match=says) as caught:
        inspect_volume(path, "singlecoil")
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [np.uint16, np.float16, np.float64, ">f4"])
def test_targets_of_other_types_are_scored_as_single_precision(make, dtype):
    values = np.round(TARGET / TARGET.max() * 1000).astype(dtype)

    def change(file: h5py.File) -> None:
        put("reconstruction_esc", values)(file)
        file.attrs["max"] = 1000.0

    info = inspect_volume(make(change), "singlecoil")
    assert (info.max_value, info.notes) == (1000.0, ())
    assert read_target(info).dtype.kind == "f"
    sample = SliceDataset([info], build_transform("img2img_mixer", "singlecoil", None, True))[2]
    assert sample.target.dtype.is_floating_point
    np.testing.assert_array_equal(sample.target, values[2].astype(np.float32))


@pytest.mark.parametrize("stated", [1.0, 1e-5, np.nan, "large", b"0", [1, 2]])
def test_a_wrong_maximum_is_corrected_with_a_word(make, stated):
    info = inspect_volume(make(attribute("max", stated)), "singlecoil")
    assert info.max_value == TARGET.max()
    (note,) = info.notes
    assert "attribute max" in note


@pytest.mark.parametrize(
    ("stored", "found"),
    [
        (np.bytes_("AXT2"), "AXT2"),
        (np.array(["AXT2"], object), "AXT2"),
        (np.array([b"AXT2"]), "AXT2"),
        ("a\nb", "a b"),
        (np.bytes_(b"\xff"), "\ufffd"),
        (h5py.Empty("S1"), ""),
    ],
)
def test_texts_of_other_programs(make, stored, found):
    info = inspect_volume(make(attribute("acquisition", stored)), "singlecoil")
    assert info.acquisition == found


@pytest.mark.parametrize(
    ("stored", "found"),
    [(4, 4), ("4x", 4), (b"8", 8), ([4], 4), (np.array([4], np.uint8), 4), (4.0, 4), (3.7, 3.7),
     (np.nan, None), ("fast", None), (-2, None), ([4, 8], None)],
)  # fmt: skip
def test_accelerations_of_other_programs(make, stored, found):
    info = inspect_volume(make(attribute("acceleration", stored)), "singlecoil")
    assert (info.acceleration, type(info.acceleration)) == (found, type(found))
    assert bool(info.notes) == (found is None and stored != [4, 8])


def header(center: object, maximum: object, recon: int = SIDE) -> str:
    plain = write_header(Header((ROWS, COLUMNS, 1), (recon, recon), 6, 11))
    return plain.replace("<maximum>11<", f"<maximum>{maximum}<").replace(
        "<center>6<", f"<center>{center}<"
    )


@pytest.mark.parametrize(
    "xml",
    [header(186, 371), header(6, 12), header(0, 0), header(6, 0), header(-1, 11), header("", ""),
     XML.replace("kspace_encoding_step_1", "kspace_encoding_step_9"), "not XML"],
)  # fmt: skip
def test_limits_that_cannot_be_are_found_in_the_samples(make, xml):
    def change(file: h5py.File) -> None:
        kspace = KSPACE.copy()
        kspace[..., :2] = 0
        put("kspace", kspace)(file)
        put("ismrmrd_header", xml)(file)

    path = make(change)
    (info,) = list_volumes(path.parent, "singlecoil", needs=("target",))
    assert info.acquired_columns == (2, COLUMNS)
    assert info.limits_fault
    assert any("columns 2 to 11 hold samples" in note for note in info.notes)
    with pytest.raises(InputError, match=r"file.h5: .*fastmri_varnet needs them"):
        check_needs(info, ("target", "limits"))


@pytest.mark.parametrize("recon", [6, 10, 400])
def test_the_target_goes_before_the_headers_size(make, recon, tmp_path):
    info = inspect_volume(make(put("ismrmrd_header", header(6, 11, recon))), "singlecoil")
    assert info.image_size == info.recon_size == (SIDE, SIDE)
    assert f"image is {recon} x {recon}; the target is 8 x 8" in info.notes[0]
    masked = tmp_path / "frozen" / "file.h5"
    freeze_volume(info, masked, tmp_path / "target.h5", np.arange(COLUMNS) % 2 == 0, 2, 0)
    again = inspect_volume(masked, "singlecoil")
    assert (again.image_size, again.target_shape, again.notes) == ((SIDE, SIDE), None, ())


@pytest.mark.parametrize("shape", [(-1,), (1, -1), (1, 1, -1), (-1, 1)])
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float64])
def test_stored_masks_of_every_form_are_the_masks_of_training_and_validation(make, shape, dtype):
    mask = np.arange(COLUMNS) % 3 == 0
    info = inspect_volume(make(put("mask", mask.reshape(shape).astype(dtype))), "singlecoil")
    assert (info.mask_source, info.sampled_columns) == ("stored", 4)
    assert (own_mask(info) == mask).all()
    drawn = MaskSpec("random", (2,), (0.4,))
    assert (drawn.mask_of(info) == mask).all()
    expected = image_of(KSPACE[0] * mask)
    for seeded in (True, False):
        transform = build_transform("img2img_mixer", "singlecoil", drawn.mask_func(), seeded)
        np.testing.assert_allclose(SliceDataset([info], transform)[0].image, expected, atol=1e-5)
    theirs = build_transform("fastmri_unet", "singlecoil", drawn.mask_func(), True)
    sample = SliceDataset([info], theirs)[0]
    # fastMRI's transform by itself does not apply a stored mask: its k-space comes masked.
    reference = UnetDataTransform("singlecoil")(
        KSPACE[0] * mask, None, TARGET[0], {"max": 1.0}, "file.h5", 0
    )
    np.testing.assert_array_equal(sample.image, reference.image)


def test_a_mask_that_keeps_all_is_no_undersampling(make):
    info = inspect_volume(make(put("mask", np.ones(COLUMNS))), "singlecoil")
    assert not info.has_mask
    assert "masks are drawn" in info.notes[0]


def test_undersampled_kspace_is_never_undersampled_again(make):
    mask = np.isin(np.arange(COLUMNS), (0, 5, 6, 7, 10))
    path = make(put("kspace", KSPACE * mask))
    said: list[str] = []
    (info,) = list_volumes(path.parent, "singlecoil", report=said.append)
    assert len(said) == 1
    assert "undersampled and no mask is stored; the 5 of 12 columns" in said[0]
    assert list_volumes(path.parent, "singlecoil", report=said.append) == [info]
    assert len(said) == 2  # a listing from the cache says it too
    spec = MaskSpec("random", (4,), (0.1,))
    assert (spec.mask_of(info) == mask).all()
    assert "file.h5 has about 2.4x" in str(spec.others([info]))
    assert MaskSpec("random", (2,), (0.1,)).others([info]) is None
    with pytest.raises(InputError, match="is undersampled already; --split"):
        check_needs(info, ("full",))
    make(put("kspace", KSPACE * (np.arange(ROWS * COLUMNS) % 5 < 3).reshape(ROWS, COLUMNS)))
    with pytest.raises(InputError, match=r"file.h5: single samples .* reconstruct.py"):
        list_volumes(path.parent, "singlecoil")
    shifted = np.stack(
        [np.roll(mask, n) | (abs(np.arange(COLUMNS) - COLUMNS // 2) < 2) for n in range(3)]
    )
    make(put("kspace", KSPACE * shifted[:, None]))
    with pytest.raises(
        InputError, match=r"file.h5: .* of their own in each slice; .* reconstruct.py"
    ):
        list_volumes(path.parent, "singlecoil")


def test_columns_missing_at_the_edge_are_no_undersampling(make):
    kspace = KSPACE.copy()
    kspace[..., 9:] = 0
    kspace[1] = 0
    info = inspect_volume(make(put("kspace", kspace)), "singlecoil")
    assert not info.has_mask


def test_locked_and_unfinished_files_are_called_that(make):
    path = make()
    holder = (
        f"import h5py, sys; f = h5py.File({str(path)!r}, 'r+'); print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(InputError, match=r"file.h5: is locked: a program is writing it"):
            inspect_volume(path, "singlecoil")
        with (
            pytest.raises(InputError, match=r"file.h5: is locked"),
            open_scan(path, ConvertConfig(source=path, out=path)),
        ):
            pass
        process.kill()
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(InputError, match=r"file.h5: (truncated|is still being written)"):
        inspect_volume(path, "singlecoil")
    path.write_bytes(b"")
    with pytest.raises(InputError, match="not an HDF5 file"):
        inspect_volume(path, "singlecoil")


def test_what_cannot_be_read_later_names_the_file(make):
    info = inspect_volume(make(), "singlecoil")
    with h5py.File(info.path, "r+") as file:
        put("reconstruction_esc", TARGET[:1])(file)
    with pytest.raises(InputError, match=r"file.h5: slice 2 cannot be used"):
        SliceDataset([info], build_transform("img2img_mixer", "singlecoil", None, True))[2]


def test_names_of_splits_and_files(make, tmp_path):
    for name in ("a.H5", "b.hdf5", "._c.h5"):
        make(name=name)
    assert [info.name for info in list_volumes(tmp_path / "val", "singlecoil")] == [
        "a.H5",
        "b.hdf5",
    ]
    for name in ("multicoil_test_v2", "multicoil_test_old", "multicoil_val"):
        (tmp_path / name).mkdir()
    later = tmp_path / "multicoil_test_v2"
    assert split_folder(tmp_path, "multicoil", "test") == later
    assert split_folder(tmp_path, "multicoil", "test_v2") == later
    assert split_folder(later, "multicoil", "test") == later
    (tmp_path / "multicoil_test_full").mkdir()
    with pytest.raises(InputError, match=r"multicoil_test_full, multicoil_test_v2; give one"):
        split_folder(tmp_path, "multicoil", "test")
    (tmp_path / "multicoil_test").mkdir()
    assert split_folder(tmp_path, "multicoil", "test").name == "multicoil_test"


VALUES: tuple[Any, ...] = (
    0, -1, 3.7, np.nan, np.inf, 10**9, "4x", "", "a\nb", b"\xff\xfe", h5py.Empty("f"), np.zeros(0),
    np.arange(COLUMNS), np.ones((1, COLUMNS), bool), np.full((2, 2), np.nan), np.array(["a", "b"], object),
    np.zeros((SLICES, ROWS, COLUMNS)), KSPACE[:1], KSPACE[:, 0], TARGET[:, :4], -TARGET, TARGET.astype(int),
    compound("<i2", "real", "imag"), compound("<f4", "x", "y"), 1j, np.array([XML, XML], object), XML[:200],
)  # fmt: skip


def spoil(file: h5py.File, rng: np.random.Generator) -> None:
    """Change one thing: a dataset, an attribute, or a few characters of the header."""
    value = VALUES[rng.integers(len(VALUES))]
    name = rng.choice(["kspace", "reconstruction_esc", "mask", "ismrmrd_header"])
    kind = rng.integers(5)
    if kind == 0:
        file.attrs[str(rng.choice(["max", "norm", "acquisition", "acceleration"]))] = value
    elif kind == 1:
        put(name, value)(file)
    elif kind == 2:
        drop(file, name)
        if rng.random() < 0.3:
            file.create_group(name)
        elif rng.random() < 0.3:
            file[name] = h5py.ExternalLink("nowhere.h5", "x")
    else:
        text = list(XML)
        for _ in range(rng.integers(1, 4)):
            place = int(rng.integers(len(text)))
            if kind == 4:  # numbers, where damage does harm
                digits = [k for k, c in enumerate(text) if c.isdigit()]
                place = digits[int(rng.integers(len(digits)))] if digits else place
            text[place] = str(rng.choice(["", "0", "9", "-", "<", "99999", "\u00e9", "1" * 5000]))
        put("ismrmrd_header", "".join(text))(file)


def test_spoilt_volumes_are_read_or_refused_in_one_line(make, tmp_path):
    """`FUZZ=1500` for more (docs/RELIABILITY.md); what is listed can be read, drawn for and frozen."""
    rng = np.random.default_rng(5)
    masks = MaskSpec("equispaced_fraction", (4,), (0.08,))
    content = make().read_bytes()
    path = tmp_path / "val" / "file.h5"
    listed = 0
    for number in range(COUNT):
        path.write_bytes(content)
        with h5py.File(path, "r+") as file:
            for _ in range(rng.integers(1, 4)):
                spoil(file, rng)
        start = time.monotonic()
        try:
            (info,) = list_volumes(path.parent, "singlecoil")
            masks.check([info])
            for model in ("img2img_mixer", "unrolled_mixer"):
                transform = build_transform(model, "singlecoil", masks.mask_func(), True)
                sample = SliceDataset([info], transform)[info.num_slices - 1]
                assert sample.target.ndim == 0 or sample.target.shape == info.image_size, number
            if info.target_shape is not None and not info.has_mask:
                freeze_volume(info, tmp_path / "m.h5", tmp_path / "t.h5", masks.mask_of(info), 4, 1)
                assert inspect_volume(tmp_path / "m.h5", "singlecoil").image_size == info.image_size
            listed += 1
            said = "file.h5"
        except InputError as error:
            said = str(error)
        assert "file.h5" in said, (number, said)
        assert "\n" not in said, number
        assert len(said) < 600, number
        assert time.monotonic() - start < 20, number
    assert COUNT / 10 < listed < COUNT


def test_damaged_bytes(make, tmp_path):
    """In a process of its own, as the HDF5 library aborts on some."""
    rng = np.random.default_rng(6)
    content = make().read_bytes()
    for number in range(30):
        damaged = bytearray(content)
        for _ in range(4):
            damaged[int(rng.integers(4000))] = int(rng.integers(256))
        (tmp_path / f"{number:02}.h5").write_bytes(damaged)
    code = (
        "import sys, pathlib\n"
        "from fastmri_plugin.inspection import inspect_volume\n"
        "from img2img_recon.support.errors import InputError\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).glob('*.h5')):\n"
        "    try: inspect_volume(path, 'singlecoil')\n"
        "    except InputError as error: assert str(path) in str(error) and chr(10) not in str(error)\n"
        "    print(path.name, flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 30


def test_fastmri_reads_the_same(make):
    """Its own dataset on a plain file: the attributes that the transforms are given are the same."""
    path = make()
    theirs = fastmri.data.SliceDataset(path.parent, "singlecoil").raw_samples[0].metadata
    info = inspect_volume(path, "singlecoil")
    assert theirs["recon_size"][:2] == info.recon_size
    assert (theirs["padding_left"], theirs["padding_right"]) == info.acquired_columns
    assert theirs["max"] == info.max_value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert info.notes == ()
