"""A small synthetic knee set in fastMRI's format, for trying everything without the real data.

It behaves as the knee set does: read-out over-sampled twice, phase-encode columns that were never
acquired and that the header describes, widths that differ from file to file, one file per split
narrower than its reconstruction, smooth phase, coil sensitivities, complex noise, two contrasts,
and a test split with stored masks at 4x and 8x. Nothing heavy is imported before it is made: its
sizes are asked for on command lines.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastmri_plugin import Challenge
from fastmri_plugin.masks import usual_center_fraction
from img2img_recon.support.errors import InputError
from img2img_recon.support.files import cache_dir, make_folder_once
from img2img_recon.support.progress import Track, silent

if TYPE_CHECKING:
    import numpy as np

DEMO_VERSION = 1
TEST_ACCELERATIONS = (4, 8)


@dataclass(frozen=True)
class DemoSizes:
    """How large the demo set is.

    Attributes:
        recon: height and width of the reconstruction in pixels.
        readout: rows of the k-space, twice `recon` as on the scanner.
        widths: columns of the k-space, dealt to the volumes of a split in turn.
        slices: slices per volume, dealt likewise.
        train, val, test: volumes per split.
        coils: coils of a multi-coil volume.
    """

    recon: int = 128
    readout: int = 256
    widths: tuple[int, ...] = (144, 120, 152, 136, 160)
    slices: tuple[int, ...] = (8, 7, 9)
    train: int = 12
    val: int = 4
    test: int = 4
    coils: int = 4

    @property
    def train_slices(self) -> int:
        """Slices of all training volumes."""
        return sum(self.slices[number % len(self.slices)] for number in range(self.train))

    def __post_init__(self) -> None:
        counts = (*self.slices, self.train, self.val, self.test, self.coils)
        if min(counts) < 1 or min(self.recon, *self.widths) < 16:
            raise ValueError("DemoSizes: counts start at 1, sizes at 16")
        if self.readout < max(self.recon, *self.widths):
            raise ValueError("DemoSizes: readout must be at least recon and every width")


TINY = DemoSizes(
    recon=32, readout=64, widths=(36, 28, 40), slices=(2,), train=3, val=2, test=2, coils=2
)
SIZES: dict[str, DemoSizes] = {
    "singlecoil": DemoSizes(),
    "multicoil": DemoSizes(slices=(6, 5), train=6, val=2, test=2),
}


def sizes_of(challenge: str) -> DemoSizes:
    """The set's sizes.

    Raises:
        InputError: no such challenge.
    """
    if challenge not in SIZES:
        raise InputError(f"challenge: given {challenge}, allowed: {', '.join(SIZES)}")
    return SIZES[challenge]


def _acquired_columns(rng: np.random.Generator, width: int) -> tuple[int, int]:
    """Draw the first and one-past-last acquired column; about an eighth is never acquired."""
    left = max(1, round(width * rng.uniform(0.04, 0.07)))
    right = width - max(1, round(width * rng.uniform(0.05, 0.09)))
    return left, right


def _write_demo_volume(
    path: Path, challenge: Challenge, sizes: DemoSizes, position: int, rng: np.random.Generator
) -> None:
    """Write the fully sampled volume number `position` of a split."""
    from fastmri_plugin.headers import Header, write_header
    from fastmri_plugin.kspace import target_of
    from fastmri_plugin.phantom import CONTRASTS, draw_kspace
    from fastmri_plugin.volumes import write_volume

    width = sizes.widths[position % len(sizes.widths)]
    shape = (sizes.slices[position % len(sizes.slices)], sizes.readout, width)
    acquisition = tuple(CONTRASTS)[position % len(CONTRASTS)]
    columns = _acquired_columns(rng, width)
    coils = sizes.coils if challenge == "multicoil" else None
    kspace = draw_kspace(rng, CONTRASTS[acquisition], shape, sizes.recon, coils, columns)
    recon_size = (sizes.recon, sizes.recon)
    header = Header.of_columns((sizes.readout, width), recon_size, columns)
    xml = write_header(header, num_coils=coils or 1, protocol=acquisition)
    patient_id = hashlib.sha256(f"demo {path.stem}".encode()).hexdigest()
    attrs = {"acquisition": acquisition, "patient_id": patient_id}
    write_volume(path, kspace, target_of(kspace, recon_size), xml, attrs)


def make_demo_data(
    folder: Path,
    challenge: Challenge,
    *,
    seed: int = 0,
    sizes: DemoSizes | None = None,
    track: Track = silent,
) -> Path:
    """Write a synthetic data set: `{challenge}_train`, `_val`, `_test` and the test targets.

    Train and val hold fully sampled k-space and its target (magnitude of the inverse FFT, for
    several coils the root-sum-of-squares), test holds masked k-space and the mask, half of the
    volumes at 4x and half at 8x. The test split's targets are in `targets/{challenge}_test`. The
    same seed and sizes give the same arrays.

    Args:
        folder: data folder, made if need be; it may hold another challenge's splits.
        challenge: single- or multi-coil.
        seed: of all that is drawn.
        sizes: how large; default `SIZES[challenge]`.
        track: shows the progress.

    Returns:
        `folder`, usable as `--data_path`.

    Raises:
        InputError: an unknown challenge, or a split that exists already.
    """
    import numpy as np

    from fastmri_plugin.frozen import freeze_into
    from fastmri_plugin.inspection import inspect_volume

    usual = sizes_of(challenge)
    sizes = sizes or usual
    counts = {"train": sizes.train, "val": sizes.val, "test": sizes.test}
    for split in counts:
        if (folder / f"{challenge}_{split}").exists():
            raise InputError(f"{folder / f'{challenge}_{split}'} exists; nothing is overwritten")
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [(split, position) for split, count in counts.items() for position in range(count)]
    with tempfile.TemporaryDirectory(dir=folder, prefix=".demo.") as scratch:
        for number, (split, position) in enumerate(
            track(wanted, f"drawing {challenge} demo volumes", len(wanted)), start=1
        ):
            rng = np.random.default_rng([seed, number])
            name = f"demo{1000 + number}.h5"
            if split != "test":
                path = folder / f"{challenge}_{split}" / name
                _write_demo_volume(path, challenge, sizes, position, rng)
                continue
            full = Path(scratch) / name
            _write_demo_volume(full, challenge, sizes, position, rng)
            # Contrast alternates too: in pairs, so that both are seen at both accelerations.
            acceleration = TEST_ACCELERATIONS[position // 2 % 2 if sizes.test > 2 else position % 2]
            info, fraction = inspect_volume(full, challenge), usual_center_fraction(acceleration)
            freeze_into(folder, info, "random", acceleration, fraction)
            full.unlink()
    return folder


def demo_folder(challenge: Challenge, track: Track = silent) -> Path:
    """Return the demo data's folder in the user's cache, made on the first call.

    Usable as `--data_path`; the test split's targets are in its `targets/{challenge}_test`.
    """
    sizes_of(challenge)

    def fill(folder: Path) -> None:
        make_demo_data(folder, challenge, track=track)

    return make_folder_once(cache_dir("demo") / f"{challenge}_v{DEMO_VERSION}", fill)
