"""The files of SIDD's benchmark: blocks in, submissions out and back, and what is refused."""

import base64
import shutil
import sys

import h5py
import numpy as np
import pytest
from scipy.io import loadmat, savemat

from denoise_tasks.sidd_benchmark import (
    read_benchmark,
    read_submission,
    read_validation,
    to_bytes,
    write_submission,
)
from img2img_recon.support.errors import InputError

COUNTS = (2, 3)
SMALL = {"counts": COUNTS}


def refused(said, function, *words, **options):
    with pytest.raises(InputError, match=said) as caught:
        function(*words, **options)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def blocks():
    return np.random.default_rng(0).integers(0, 256, (*COUNTS, 256, 256, 3), dtype=np.uint8)


def matlab73(path, **variables):
    """Write variables as MATLAB's -v7.3 does: HDF5 behind 512 bytes, axes reversed, cells as references."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in variables.items():
            if isinstance(value, dict):
                group = file.create_group(name)
                group.attrs["MATLAB_class"] = np.bytes_("struct")
                for key, text in value.items():
                    group[key] = np.array([[ord(c)] for c in text], dtype=np.uint16)
            elif value.dtype == object:
                references = np.empty(value.shape[::-1], dtype=h5py.ref_dtype)
                for i, j in np.ndindex(*value.shape):
                    cell = file.create_dataset(f"#refs#/{name}{i}_{j}", data=value[i, j].T)
                    references[j, i] = cell.ref
                file.create_dataset(name, data=references).attrs["MATLAB_class"] = np.bytes_("cell")
            else:
                kind = {"float64": "double"}.get(str(value.dtype), str(value.dtype))
                file.create_dataset(name, data=value.T).attrs["MATLAB_class"] = np.bytes_(kind)
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")
    return path


def matlab5(path, **variables):
    savemat(path, variables)
    return path


@pytest.mark.parametrize("write", [matlab5, matlab73])
def test_benchmark_blocks(tmp_path, blocks, write):
    path = write(tmp_path / "BenchmarkNoisyBlocksSrgb.mat", BenchmarkNoisyBlocksSrgb=blocks)
    read = read_benchmark(path, **SMALL)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, blocks)
    refused(
        r"uint8 \(2, 3, 256, 256, 3\), expected uint8 \(40, 32, 256, 256, 3\)", read_benchmark, path
    )


def test_files_of_older_versions_need_no_h5py(tmp_path, blocks, monkeypatch):
    old = matlab5(tmp_path / "old.mat", BenchmarkNoisyBlocksSrgb=blocks)
    new = matlab73(tmp_path / "new.mat", BenchmarkNoisyBlocksSrgb=blocks)
    monkeypatch.setitem(sys.modules, "h5py", None)
    np.testing.assert_array_equal(read_benchmark(old, **SMALL), blocks)
    refused("new.mat: cannot be read as a MATLAB file .*h5py", read_benchmark, new, **SMALL)


@pytest.mark.parametrize("write", [matlab5, matlab73])
def test_what_block_files_refuse(tmp_path, blocks, write):
    path = tmp_path / "b.mat"
    refused("b.mat: no such file", read_benchmark, path, **SMALL)
    write(path, BenchmarkNoisyBlocksSrgb=blocks.astype(np.float64))
    refused("is double .* expected uint8", read_benchmark, path, **SMALL)
    write(path, other=blocks)
    refused(r"no BenchmarkNoisyBlocksSrgb in it.*other uint8 \(2, 3", read_benchmark, path, **SMALL)
    path.write_bytes(path.read_bytes()[:4000])
    refused("b.mat: ", read_benchmark, path, **SMALL)
    path.write_bytes(b"no matlab file")
    refused("b.mat: cannot be read as a MATLAB file", read_benchmark, path, **SMALL)


@pytest.mark.parametrize("write", [matlab5, matlab73])
def test_validation_blocks_under_any_one_name(tmp_path, blocks, write):
    noisy = write(tmp_path / "n.mat", ValidationNoisyBlocksSrgb=blocks, other=blocks)
    clean = write(tmp_path / "c.mat", gt=255 - blocks, info=np.zeros((1, 2)))
    read = read_validation(noisy, clean, **SMALL)
    np.testing.assert_array_equal(read[0], blocks)
    np.testing.assert_array_equal(read[1], 255 - blocks)
    again = write(tmp_path / "again.mat", blocks=blocks)
    refused("the same blocks as", read_validation, noisy, again, **SMALL)
    swapped = write(tmp_path / "swapped.mat", ValidationNoisyBlocksSrgb=blocks)
    refused("no ValidationGtBlocksSrgb in it", read_validation, noisy, swapped, **SMALL)
    two = write(tmp_path / "two.mat", a=blocks, b=blocks)
    refused("no ValidationGtBlocksSrgb in it", read_validation, noisy, two, **SMALL)


# Submissions


def decoded_csv(path):
    """Decode by the format's description alone: ID = 32 i + j, base64 of the RGB bytes, row by row."""
    header, *rows = path.read_text().splitlines()
    assert header == "ID,BLOCK"
    return {
        int(row.split(",")[0]): np.array(
            list(base64.b64decode(row.split(",")[1])), np.uint8
        ).reshape(256, 256, 3)
        for row in rows
    }


def test_csv_against_a_decoder_of_its_own(tmp_path):
    floats = np.zeros((3, 32, 256, 256, 3), np.float32)
    floats[2, 5] = np.random.default_rng(0).random((256, 256, 3))
    floats[1, 0, 4, 9] = (-0.5, 1.5, 0.25)
    write_submission(tmp_path / "SubmitSrgb.csv", floats)
    found = decoded_csv(tmp_path / "SubmitSrgb.csv")
    assert list(found) == list(range(96))
    exact = floats[2, 5].astype(np.float64) * 255
    assert np.abs(found[32 * 2 + 5] - exact).max() <= 0.5
    assert found[32][4, 9].tolist() == [0, 255, 64]


def test_mat_holds_what_the_older_board_reads(tmp_path, blocks):
    path = tmp_path / "SubmitSrgb.mat"
    write_submission(path, blocks, 1.5, optional_data={"MethodName": "mixer", "Authors": "A and B"})
    content = loadmat(path)
    assert content["DenoisedBlocksSrgb"].shape == COUNTS
    assert content["DenoisedBlocksSrgb"].dtype == object
    for place in np.ndindex(*COUNTS):
        cell = content["DenoisedBlocksSrgb"][place]
        assert cell.dtype == np.uint8
        np.testing.assert_array_equal(cell, blocks[place])
    assert content["TimeMPSrgb"].item() == 1.5
    assert content["OptionalData"]["MethodName"].item().item() == "mixer"
    assert content["OptionalData"]["Authors"].item().item() == "A and B"


@pytest.mark.parametrize("name", ["s.csv", "s.mat", "S.CSV"])
def test_submissions_come_back(tmp_path, blocks, name):
    path = tmp_path / name
    write_submission(path, blocks)
    np.testing.assert_array_equal(read_submission(path, **SMALL), blocks)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def cells_of(blocks):
    cells = np.empty(blocks.shape[:2], dtype=object)
    for place in np.ndindex(*cells.shape):
        cells[place] = blocks[place]
    return cells


@pytest.mark.parametrize("write", [matlab5, matlab73])
@pytest.mark.parametrize("form", [cells_of, np.asarray])
def test_matlabs_own_submissions_are_read(tmp_path, blocks, write, form):
    path = write(
        tmp_path / "s.mat",
        DenoisedBlocksSrgb=form(blocks),
        TimeMPSrgb=np.array([[0.5]]),
        OptionalData={"MethodName": "m"},
    )
    np.testing.assert_array_equal(read_submission(path, **SMALL), blocks)


def test_bytes_are_rounded_never_truncated():
    values = np.array([[0, 0.4999 / 255, 0.5001 / 255, 254.6 / 255, 254.4 / 255, 1.001, -0.1]])
    assert to_bytes(values).tolist() == [[0, 0, 1, 255, 254, 255, 0]]
    every = np.arange(256, dtype=np.uint8).reshape(1, -1)
    np.testing.assert_array_equal(to_bytes((every / 255).astype(np.float32)), every)
    assert to_bytes(every) is every


def test_what_writing_refuses(tmp_path, blocks):
    path = tmp_path / "s.csv"
    refused("ends in .csv or .mat", write_submission, tmp_path / "s.zip", blocks)
    refused(r"shape \(6, 256, 256, 3\)", write_submission, path, blocks.reshape(6, 256, 256, 3))
    refused("hold int64", write_submission, path, blocks.astype(np.int64))
    broken = blocks / np.float32(255)
    broken[1, 2, 0, 0, 0] = np.nan
    refused("image 1 holds NaN", write_submission, path, broken)
    refused("given nan", write_submission, path, blocks, float("nan"))
    assert not list(tmp_path.iterdir())
    path.write_text("precious")
    refused("s.csv: exists; --overwrite", write_submission, path, blocks)
    refused("cannot be written", write_submission, path / "below.csv", blocks)
    assert path.read_text() == "precious"
    write_submission(path, blocks, overwrite=True)
    read_submission(path, **SMALL)
    (tmp_path / "folder.mat").mkdir()
    refused("a folder", write_submission, tmp_path / "folder.mat", blocks, overwrite=True)


@pytest.fixture(scope="module")
def csv_lines(blocks, tmp_path_factory):
    path = tmp_path_factory.mktemp("csv") / "s.csv"
    write_submission(path, blocks)
    return path.read_text().splitlines()


def test_rows_in_another_order_with_quotes_and_windows_ends_are_fine(tmp_path, csv_lines, blocks):
    path = tmp_path / "s.csv"
    rows = ['{},"{}"'.format(*line.split(",")) for line in csv_lines[:0:-1]]
    path.write_bytes("\r\n".join(["ID,BLOCK", *rows, ""]).encode())
    np.testing.assert_array_equal(read_submission(path, **SMALL), blocks)


def replaced(place, line):
    return lambda lines: [*lines[:place], line(lines[place]), *lines[place + 1 :]]


short = base64.b64encode(bytes(100)).decode()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: lines[:-1], "1 of 6 IDs are missing: 5"),
        (lambda lines: lines[:1], "6 of 6 IDs are missing: 0, 1, 2, 3, 4, 5"),
        (lambda lines: [*lines, lines[2]], "line 8: ID 1 is there twice"),
        (lambda lines: lines[1:], "first line is"),
        (lambda lines: [], "first line is ''"),
        (replaced(0, lambda _: "BLOCK,ID"), "first line is 'BLOCK,ID'"),
        (replaced(2, lambda line: "6" + line[1:]), "line 3: ID is '6', allowed: 0 to 5"),
        (replaced(2, lambda line: "-1" + line[1:]), "line 3: ID is '-1'"),
        (replaced(2, lambda line: "x" + line[1:]), "line 3: ID is 'x'"),
        (replaced(2, lambda line: line + ",1"), "line 3: 3 columns"),
        (replaced(2, lambda line: "1"), "line 3: 1 columns"),
        (replaced(2, lambda line: "1," + short), "line 3: BLOCK of ID 1 holds 100 bytes"),
        (replaced(2, lambda line: line[:-1]), "BLOCK of ID 1 is not base64"),
        (replaced(2, lambda line: line[:9] + "*" + line[10:]), "BLOCK of ID 1 is not base64"),
        (replaced(2, lambda line: "1,é"), "not a text file"),
    ],
)
def test_what_a_csv_is_refused_for(tmp_path, csv_lines, change, said):
    path = tmp_path / "s.csv"
    path.write_text("\n".join(change(list(csv_lines))), encoding="utf-8")
    refused(said, read_submission, path, **SMALL)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"DenoisedBlocksSrgb": None}, "no DenoisedBlocksSrgb in it; there is"),
        ({"TimeMPSrgb": None}, "no TimeMPSrgb"),
        ({"OptionalData": None}, "no OptionalData"),
        ({"TimeMPSrgb": np.array([[1.0, 2.0]])}, "TimeMPSrgb is not a number"),
        ({"TimeMPSrgb": np.array([[-1.0]])}, "TimeMPSrgb is not a number"),
        ({"TimeMPSrgb": np.array([[np.nan]])}, "TimeMPSrgb is not a number"),
        ({"OptionalData": np.array([[1.0]])}, "OptionalData is double, expected a struct"),
        ({"DenoisedBlocksSrgb": "fewer"}, r"cell array \(1, 3\), expected \(2, 3\)"),
        ({"DenoisedBlocksSrgb": "float cell"}, r"cell \(1, 2\) is float64"),
        ({"DenoisedBlocksSrgb": "small cell"}, r"cell \(1, 2\) is uint8 \(8, 8, 3\)"),
        ({"DenoisedBlocksSrgb": "float array"}, "is double .* expected uint8"),
        ({"DenoisedBlocksSrgb": "flat array"}, r"is uint8 \(6, 256, 256, 3\)"),
    ],
)
@pytest.mark.parametrize("write", [matlab5, matlab73])
def test_what_a_mat_is_refused_for(tmp_path, blocks, write, change, said):
    cells = cells_of(blocks)
    bad_cells = {"float cell": blocks[1, 2] / 255, "small cell": blocks[1, 2, :8, :8]}
    forms = {
        "fewer": cells[:1],
        "float array": blocks / 255,
        "flat array": blocks.reshape(-1, 256, 256, 3),
    }
    content = {
        "DenoisedBlocksSrgb": cells,
        "TimeMPSrgb": np.array([[0.5]]),
        "OptionalData": {"MethodName": "m"},
    }
    for key, value in change.items():
        if isinstance(value, str) and value in bad_cells:
            content[key][1, 2] = bad_cells[value]
        else:
            content[key] = forms[value] if isinstance(value, str) else value
    path = write(tmp_path / "s.mat", **{k: v for k, v in content.items() if v is not None})
    refused(said, read_submission, path, **SMALL)


def test_validating_what_is_no_submission(tmp_path):
    refused("no such file", read_submission, tmp_path / "s.csv")
    refused("no such file", read_submission, tmp_path / "s.mat")
    refused("ends in .csv or .mat", read_submission, tmp_path / "s.txt")
    (tmp_path / "s.mat").write_bytes(bytes(64))
    refused("cannot be read as a MATLAB file", read_submission, tmp_path / "s.mat")
    shutil.copy(tmp_path / "s.mat", tmp_path / "s.csv")
    refused("first line is", read_submission, tmp_path / "s.csv")
