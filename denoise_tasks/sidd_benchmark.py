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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from denoise_tasks.pairs import some
from img2img_recon.support.errors import InputError
from img2img_recon.support.files import atomic_path

Blocks = NDArray[np.uint8]

BENCHMARK_KEY = "BenchmarkNoisyBlocksSrgb"
VALIDATION_KEYS = ("ValidationNoisyBlocksSrgb", "ValidationGtBlocksSrgb")
DENOISED_KEY, TIME_KEY, OPTIONAL_KEY = "DenoisedBlocksSrgb", "TimeMPSrgb", "OptionalData"
IMAGES, PER_IMAGE = 40, 32
BLOCK_SHAPE = (256, 256, 3)
BLOCK_BYTES = 256 * 256 * 3


class _Variable(NamedTuple):
    shape: tuple[int, ...]
    kind: str


class _MatFile:
    """A MATLAB file, of version 5 to 7.2 or 7.3 (HDF5): what is in it, and one variable at a time.

    Attributes:
        variables: shape and MATLAB class of the variables, by name.
    """

    def __init__(self, path: Path) -> None:
        import h5py

        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"{path}: no such file")
        with self._naming():
            self.hdf5 = bool(h5py.is_hdf5(self.path))
            self.variables = dict(self._hdf5_variables() if self.hdf5 else self._mat5_variables())

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except InputError:
            raise
        # A broken file makes the readers raise nearly anything.
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"{self.path}: cannot be read as a MATLAB file ({reason[:120]})"
            ) from None

    def _mat5_variables(self) -> Iterator[tuple[str, _Variable]]:
        from scipy.io import whosmat

        for name, shape, kind in whosmat(self.path, appendmat=False):
            if not name.startswith("__"):
                yield name, _Variable(tuple(shape), kind)

    def _hdf5_variables(self) -> Iterator[tuple[str, _Variable]]:
        import h5py

        with h5py.File(self.path, "r") as file:
            for name, item in file.items():
                if name.startswith(("#", "__")):
                    continue
                if isinstance(item, h5py.Group):
                    yield name, _Variable((1, 1), "struct")
                    continue
                kind = item.attrs.get("MATLAB_class", str(item.dtype).encode())
                # MATLAB counts columns first: its axes come out in reverse order.
                text = kind.decode() if isinstance(kind, bytes) else str(kind)
                yield name, _Variable(item.shape[::-1], text)

    def read(self, name: str) -> NDArray[Any]:
        """One variable; a cell array as an object array of arrays."""
        with self._naming():
            if not self.hdf5:
                from scipy.io import loadmat

                return loadmat(self.path, variable_names=[name], appendmat=False)[name]
            import h5py

            with h5py.File(self.path, "r") as file:
                item = file[name]
                if self.variables[name].kind != "cell":
                    return np.ascontiguousarray(item[()].T)
                references = item[()].T
                cells = np.empty(references.shape, dtype=object)
                for place, reference in np.ndenumerate(references):
                    cells[place] = np.ascontiguousarray(file[reference][()].T)
                return cells


def _expected(blocks: int, per_image: int) -> tuple[int, ...]:
    return (blocks, per_image, *BLOCK_SHAPE)


def _read_blocks(path: Path, key: str, expected: tuple[int, ...], any_name: bool) -> Blocks:
    file = _MatFile(path)
    wanted = _Variable(expected, "uint8")
    if key not in file.variables and any_name:
        # Not under a name that says that it is another of SIDD's files.
        fitting = [
            name
            for name, variable in file.variables.items()
            if variable == wanted and name not in (BENCHMARK_KEY, *VALIDATION_KEYS)
        ]
        key = fitting[0] if len(fitting) == 1 else key
    if key not in file.variables:
        there = some([f"{name} {v.kind} {v.shape}" for name, v in file.variables.items()])
        raise InputError(
            f"{path}: no {key} in it, expected uint8 {expected}; there is {there or 'nothing'}"
        )
    found = file.variables[key]
    if found != wanted:
        raise InputError(f"{path}: {key} is {found.kind} {found.shape}, expected uint8 {expected}")
    return file.read(key)


def read_benchmark(path: Path, *, blocks: int = IMAGES, per_image: int = PER_IMAGE) -> Blocks:
    """The benchmark's noisy blocks, uint8 (images, blocks per image, 256, 256, 3).

    Args:
        path: `BenchmarkNoisyBlocksSrgb.mat`.
        blocks: images that the blocks are cut from, 40.
        per_image: blocks per image, 32.

    Raises:
        InputError: no such file, not a MATLAB file, no such variable, another shape or type.
    """
    return _read_blocks(path, BENCHMARK_KEY, _expected(blocks, per_image), any_name=False)


def read_validation(
    noisy: Path, clean: Path, *, blocks: int = IMAGES, per_image: int = PER_IMAGE
) -> tuple[Blocks, Blocks]:
    """Noisy and clean validation blocks, each uint8 (images, blocks per image, 256, 256, 3).

    Args:
        noisy: `ValidationNoisyBlocksSrgb.mat`; a variable of another name will do when it is the only
            one of the right shape and type.
        clean: `ValidationGtBlocksSrgb.mat`, likewise.
        blocks: images that the blocks are cut from, 40.
        per_image: blocks per image, 32.

    Raises:
        InputError: as `read_benchmark`, or the same blocks twice.
    """
    expected = _expected(blocks, per_image)
    first = _read_blocks(noisy, VALIDATION_KEYS[0], expected, any_name=True)
    second = _read_blocks(clean, VALIDATION_KEYS[1], expected, any_name=True)
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


def read_submission(path: Path, blocks: int = IMAGES, per_image: int = PER_IMAGE) -> Blocks:
    """The blocks of a submission in either form, uint8 (images, blocks per image, 256, 256, 3).

    Args:
        path: a `.csv` or `.mat` file.
        blocks: images that the blocks are cut from, 40.
        per_image: blocks per image, 32.

    Raises:
        InputError: the first thing that the board would not understand.
    """
    path = Path(path)
    check_submission_path(path, overwrite=True)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    result = np.empty(_expected(blocks, per_image), dtype=np.uint8)
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
    file = _MatFile(path)
    for key in (DENOISED_KEY, TIME_KEY, OPTIONAL_KEY):
        if key not in file.variables:
            there = some(list(file.variables)) or "nothing"
            raise InputError(f"{path}: no {key} in it; there is {there}")
    if file.variables[OPTIONAL_KEY].kind != "struct":
        kind = file.variables[OPTIONAL_KEY].kind
        raise InputError(f"{path}: {OPTIONAL_KEY} is {kind}, expected a struct")
    seconds = file.read(TIME_KEY)
    if (
        seconds.size != 1
        or not np.issubdtype(seconds.dtype, np.number)
        or not (np.isfinite(seconds).all() and (seconds >= 0).all())
    ):
        raise InputError(f"{path}: {TIME_KEY} is not a number of seconds, 0 or more")
    shape, kind = file.variables[DENOISED_KEY]
    if kind != "cell":
        if (shape, kind) != (result.shape, "uint8"):
            raise InputError(
                f"{path}: {DENOISED_KEY} is {kind} {shape}, expected uint8 {result.shape} or a cell "
                f"array {result.shape[:2]}"
            )
        result[...] = file.read(DENOISED_KEY)
        return
    if shape != result.shape[:2]:
        raise InputError(
            f"{path}: {DENOISED_KEY} is a cell array {shape}, expected {result.shape[:2]}"
        )
    for place, block in np.ndenumerate(file.read(DENOISED_KEY)):
        if block.shape != BLOCK_SHAPE or block.dtype != np.uint8:
            raise InputError(
                f"{path}: {DENOISED_KEY} cell {place} is {block.dtype} {block.shape}, expected uint8 "
                f"{BLOCK_SHAPE} (counted from 0)"
            )
        result[place] = block
