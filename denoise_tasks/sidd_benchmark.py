"""The benchmark files of SIDD (Abdelhamed, Lin and Brown, CVPR 2018): noisy blocks in, a submission out.

The noisy blocks come as one MATLAB array (images, blocks per image, 256, 256, 3) of uint8 and go back as one
of two forms:

`.csv`, the present board: columns ID and BLOCK, ID = blocks per image * image + block, from 0, BLOCK
the base64 of the block's bytes, row by row, red, green, blue within a pixel.

`.mat`, the older board, as its MATLAB kit saves it: `DenoisedBlocksSrgb`, a cell array of images x
blocks, each uint8 (256, 256, 3); `TimeMPSrgb`, seconds for 1024 x 1024 pixels; `OptionalData`, a
struct of texts (MethodName, Authors ...). Many people sent one array (images, blocks, 256, 256, 3) in
the place of the cells, so that is read too.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denoise_tasks.pairs import some
from img2img_recon.support.errors import InputError, reason
from img2img_recon.support.files import atomic_path

Blocks = NDArray[np.uint8]
Counts = tuple[int, int]

BENCHMARK_KEY = "BenchmarkNoisyBlocksSrgb"
VALIDATION_KEYS = ("ValidationNoisyBlocksSrgb", "ValidationGtBlocksSrgb")
DENOISED_KEY, TIME_KEY, OPTIONAL_KEY = "DenoisedBlocksSrgb", "TimeMPSrgb", "OptionalData"
COUNTS = (40, 32)  # images, and blocks of each
BLOCK_SHAPE = (256, 256, 3)
BLOCK_BYTES = 256 * 256 * 3
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def _read_mat(path: Path) -> dict[str, NDArray[Any]]:
    """The variables of a MATLAB file, version 5 to 7.2 or 7.3 (HDF5), by name; a cell array holds arrays."""
    from scipy.io import loadmat

    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            hdf5 = HDF5_SIGNATURE in file.read(520)
        found = _read_hdf5(path) if hdf5 else loadmat(path, appendmat=False)
    # A broken file makes the readers raise nearly anything.
    except Exception as error:
        raise InputError(f"{path}: cannot be read as a MATLAB file ({reason(error)})") from None
    return {name: value for name, value in found.items() if not name.startswith(("#", "__"))}


def _read_hdf5(path: Path) -> dict[str, NDArray[Any]]:
    """As scipy's `loadmat` for older files; what a struct holds is left out."""
    import h5py

    found = {}
    with h5py.File(path, "r") as file:
        for name, item in file.items():
            if isinstance(item, h5py.Group):
                found[name] = np.empty((1, 1), [("fields", object)])
                continue
            # MATLAB counts columns first: its axes come out in reverse order.
            found[name] = values = np.ascontiguousarray(item[()].T)
            if values.dtype == object:  # a cell array, of references
                for place, reference in np.ndenumerate(values):
                    values[place] = np.ascontiguousarray(file[reference][()].T)
    return found


def _kind(variable: NDArray[Any]) -> str:
    """Its type in MATLAB's words."""
    kind = "struct" if variable.dtype.names else str(variable.dtype)
    return {"object": "a cell array", "float64": "double", "float32": "single"}.get(kind, kind)


def _said(variable: NDArray[Any]) -> str:
    return f"{_kind(variable)} {variable.shape}"


def _read_blocks(path: Path, key: str, counts: Counts, any_name: bool) -> Blocks:
    wanted = f"uint8 {(*counts, *BLOCK_SHAPE)}"
    variables = _read_mat(path)
    said = {name: _said(value) for name, value in variables.items()}
    if key not in variables and any_name:
        # Not under a name that says that it is another of SIDD's files.
        others = (BENCHMARK_KEY, *VALIDATION_KEYS)
        fitting = [name for name in said if said[name] == wanted and name not in others]
        key = fitting[0] if len(fitting) == 1 else key
    if key not in variables:
        there = some([f"{name} {words}" for name, words in said.items()]) or "nothing"
        raise InputError(f"{path}: no {key} in it, expected {wanted}; there is {there}")
    if said[key] != wanted:
        raise InputError(f"{path}: {key} is {said[key]}, expected {wanted}")
    return variables[key]


def read_benchmark(path: Path, counts: Counts = COUNTS) -> Blocks:
    """The noisy blocks of `BenchmarkNoisyBlocksSrgb.mat`, uint8 (images, blocks per image, 256, 256, 3).

    Raises:
        InputError: no such file, not a MATLAB file, no such variable, another shape or type.
    """
    return _read_blocks(path, BENCHMARK_KEY, counts, any_name=False)


def read_validation(noisy: Path, clean: Path, counts: Counts = COUNTS) -> tuple[Blocks, Blocks]:
    """Noisy and clean validation blocks, each uint8 (images, blocks per image, 256, 256, 3).

    Args:
        noisy: `ValidationNoisyBlocksSrgb.mat`; a variable of another name will do when it is the only
            one of the right shape and type.
        clean: `ValidationGtBlocksSrgb.mat`, likewise.
        counts: images, and blocks of each.

    Raises:
        InputError: as `read_benchmark`, or the same blocks twice.
    """
    first = _read_blocks(noisy, VALIDATION_KEYS[0], counts, any_name=True)
    second = _read_blocks(clean, VALIDATION_KEYS[1], counts, any_name=True)
    if np.array_equal(first, second):
        raise InputError(f"{clean}: holds the same blocks as {noisy}, expected the clean ones")
    return first, second


def to_bytes(blocks: NDArray[Any]) -> Blocks:
    """Blocks in [0, 1] as uint8, clipped and rounded; uint8 as it is.

    Raises:
        InputError: values that are not finite, or of another type.
    """
    if blocks.dtype == np.uint8:
        return blocks
    if not np.issubdtype(blocks.dtype, np.floating):
        raise InputError(
            f"denoised blocks: hold {blocks.dtype}, allowed: floats in [0, 1] or uint8"
        )
    rounded = np.empty(blocks.shape, dtype=np.uint8)
    # Image by image: all blocks as float64 would take 2 GB.
    for place, image in enumerate(blocks):
        if not np.isfinite(image).all():
            raise InputError(f"denoised blocks: image {place} holds NaN or infinite values")
        rounded[place] = np.rint(np.clip(image, 0, 1).astype(np.float64) * 255)
    return rounded


def check_submission_path(path: Path, overwrite: bool = False) -> None:
    """Check before any work that a submission can get this name.

    Raises:
        InputError: neither .csv nor .mat, or there already.
    """
    path = Path(path)
    if path.suffix.lower() not in (".csv", ".mat"):
        raise InputError(f"{path}: a submission ends in .csv or .mat")
    if path.is_dir():
        raise InputError(f"{path}: a folder, expected the name of a file")
    if path.exists() and not overwrite:
        raise InputError(f"{path}: exists; --overwrite replaces it")


def write_submission(
    path: Path,
    blocks: NDArray[Any],
    seconds_per_megapixel: float = 0.0,
    overwrite: bool = False,
    optional_data: Mapping[str, str] | None = None,
) -> None:
    """Write denoised blocks for the board, whole or not at all.

    Args:
        path: `SubmitSrgb.csv`, or `SubmitSrgb.mat` for the older board.
        blocks: (images, blocks per image, 256, 256, 3), floats in [0, 1] or uint8.
        seconds_per_megapixel: time of denoising 1024 x 1024 pixels; `.mat` alone has it.
        overwrite: replace a file.
        optional_data: texts on the method, such as MethodName and Authors; `.mat` alone has them.

    Raises:
        InputError: a name with another ending, a file that exists, another shape or type, a time that
            is not a number, or a folder that cannot be written to.
    """
    path = Path(path)
    check_submission_path(path, overwrite)
    if blocks.ndim != 5 or blocks.shape[2:] != BLOCK_SHAPE or blocks.size == 0:
        raise InputError(
            f"denoised blocks: shape {blocks.shape}, expected (images, blocks, 256, 256, 3)"
        )
    if not (np.isfinite(seconds_per_megapixel) and seconds_per_megapixel >= 0):
        raise InputError(
            f"seconds per megapixel: given {seconds_per_megapixel}, allowed: 0 or more"
        )
    finished = to_bytes(blocks)
    try:
        with atomic_path(path) as temporary:
            if path.suffix.lower() == ".csv":
                _write_csv(temporary, finished)
            else:
                _write_mat(temporary, finished, seconds_per_megapixel, optional_data or {})
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None


def _write_csv(path: Path, blocks: Blocks) -> None:
    # The csv module looks at every one of the 335 million characters for something to quote.
    with path.open("wb") as file:
        file.write(b"ID,BLOCK\n")
        for number, block in enumerate(blocks.reshape(-1, *BLOCK_SHAPE)):
            file.write(b"%d,%s\n" % (number, base64.b64encode(block.tobytes())))


def _write_mat(
    path: Path, blocks: Blocks, seconds: float, optional_data: Mapping[str, str]
) -> None:
    from scipy.io import savemat

    cells = np.empty(blocks.shape[:2], dtype=object)
    for place in np.ndindex(*cells.shape):
        cells[place] = blocks[place]
    # A struct needs a field.
    texts = dict(optional_data) or {"MethodName": ""}
    with path.open("wb") as file:
        savemat(file, {DENOISED_KEY: cells, TIME_KEY: float(seconds), OPTIONAL_KEY: texts})


def read_submission(path: Path, counts: Counts = COUNTS) -> Blocks:
    """The blocks of a submission in either form, uint8 (images, blocks per image, 256, 256, 3).

    Raises:
        InputError: the first thing that the board would not understand.
    """
    path = Path(path)
    check_submission_path(path, overwrite=True)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    result = np.empty((*counts, *BLOCK_SHAPE), dtype=np.uint8)
    fill = _fill_from_csv if path.suffix.lower() == ".csv" else _fill_from_mat
    fill(path, result)
    return result


def _fill_from_csv(path: Path, result: Blocks) -> None:
    rows = result.reshape(-1, *BLOCK_SHAPE)
    seen: set[int] = set()
    try:
        # The csv module's limit on a field is below a block's length, and is one for the whole program.
        with path.open(encoding="ascii", newline=None) as file:
            header = file.readline().rstrip("\n")
            if header != "ID,BLOCK":
                raise InputError(f"{path}: the first line is {header[:40]!r}, expected 'ID,BLOCK'")
            for line, text in enumerate(file, start=2):
                if text.strip():
                    where = f"{path}, line {line}"
                    number, block = _decode_row(text.rstrip("\n"), len(rows), where)
                    if number in seen:
                        raise InputError(f"{where}: ID {number} is there twice")
                    seen.add(number)
                    rows[number] = block
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file of ID,BLOCK") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    missing = sorted(set(range(len(rows))) - seen)
    if missing:
        raise InputError(f"{path}: {len(missing)} of {len(rows)} IDs are missing: {some(missing)}")


def _decode_row(text: str, count: int, where: str) -> tuple[int, Blocks]:
    fields = [field.strip().strip('"') for field in text.split(",")]
    if len(fields) != 2:
        raise InputError(f"{where}: {len(fields)} columns, expected ID,BLOCK")
    number, encoded = fields
    if not re.fullmatch(r"[0-9]+", number) or int(number) >= count:
        raise InputError(f"{where}: ID is {number[:20]!r}, allowed: 0 to {count - 1}")
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"{where}: BLOCK of ID {number} is not base64 ({error})") from None
    if len(content) != BLOCK_BYTES:
        raise InputError(
            f"{where}: BLOCK of ID {number} holds {len(content)} bytes, expected {BLOCK_BYTES} "
            "(256 x 256 x 3)"
        )
    return int(number), np.frombuffer(content, dtype=np.uint8).reshape(BLOCK_SHAPE)


def _fill_from_mat(path: Path, result: Blocks) -> None:
    variables = _read_mat(path)
    for key in (DENOISED_KEY, TIME_KEY, OPTIONAL_KEY):
        if key not in variables:
            there = some(list(variables)) or "nothing"
            raise InputError(f"{path}: no {key} in it; there is {there}")
    denoised, seconds, optional = (variables[k] for k in (DENOISED_KEY, TIME_KEY, OPTIONAL_KEY))
    if not optional.dtype.names:
        raise InputError(f"{path}: {OPTIONAL_KEY} is {_kind(optional)}, expected a struct")
    number = seconds.size == 1 and np.issubdtype(seconds.dtype, np.number)
    if not number or not 0 <= seconds.item() < np.inf:
        raise InputError(f"{path}: {TIME_KEY} is not a number of seconds, 0 or more")
    if denoised.dtype != object:
        if _said(denoised) != f"uint8 {result.shape}":
            raise InputError(
                f"{path}: {DENOISED_KEY} is {_said(denoised)}, expected uint8 {result.shape} or a cell "
                f"array {result.shape[:2]}"
            )
        result[...] = denoised
        return
    if denoised.shape != result.shape[:2]:
        raise InputError(
            f"{path}: {DENOISED_KEY} is {_said(denoised)}, expected {result.shape[:2]}"
        )
    for place, block in np.ndenumerate(denoised):
        if block.shape != BLOCK_SHAPE or block.dtype != np.uint8:
            raise InputError(
                f"{path}: {DENOISED_KEY} cell {place} is {block.dtype} {block.shape}, expected uint8 "
                f"{BLOCK_SHAPE} (counted from 0)"
            )
        result[place] = block
