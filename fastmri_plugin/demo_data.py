"""A small synthetic knee set in fastMRI's format, for trying everything without the real data.

It behaves as the knee set does: read-out over-sampled twice, phase-encode columns that were never
acquired and that the header describes, widths that differ from file to file, one file per split
narrower than its reconstruction, smooth phase, coil sensitivities, complex noise, two contrasts,
and a test split with stored masks at 4x and 8x. The anatomy is drawn, not measured: numbers on it
say that the code works, nothing about patients.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastmri_plugin.headers import Header, write_header
from fastmri_plugin.making import (
    centred_fft2,
    draw_mask,
    freeze_volume,
    target_of,
    write_volume,
)
from fastmri_plugin.volumes import TARGET_KEYS, Challenge
from img2img_recon.support.errors import InputError
from img2img_recon.support.files import cache_dir, make_folder_once
from img2img_recon.support.progress import Track, silent

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


class _Tissue(NamedTuple):
    """Signal of each tissue relative to the brightest."""

    fat: float
    marrow: float
    muscle: float
    cartilage: float
    fluid: float
    fibrous: float
    cortical: float
    noise: float


_CONTRASTS = {
    "CORPD_FBK": _Tissue(0.95, 0.80, 0.42, 0.66, 0.72, 0.12, 0.06, 0.022),
    "CORPDFS_FBK": _Tissue(0.17, 0.15, 0.40, 0.72, 0.95, 0.12, 0.05, 0.034),
}


class _Canvas:
    """Paints tissues on a stack of slices, in coordinates where the reconstruction spans -1 to 1.

    Attributes:
        x, y: (slices, H, W) warped and tilted coordinates, x to the right and y downwards.
        z: (slices, 1, 1) position through the knee, -1 at the front to 1 at the back.
        image: (slices, H, W) what has been painted.
    """

    def __init__(
        self, rng: np.random.Generator, slices: int, height: int, width: int, recon: int
    ) -> None:
        self.rng = rng
        self.recon = recon
        half = recon / 2
        self.z = np.linspace(-0.8, 0.8, slices, dtype=np.float32).reshape(-1, 1, 1)
        rows = ((np.arange(height) - height // 2) / half).reshape(1, -1, 1)
        columns = ((np.arange(width) - width // 2) / half).reshape(1, 1, -1)
        # A smooth displacement makes every outline irregular, differently in every volume.
        shift_x, shift_y = self._waves(columns, rows), self._waves(columns, rows)
        tilt = rng.uniform(-0.07, 0.07)
        side = rng.choice([-1.0, 1.0])
        self.x = (side * (columns + tilt * rows + shift_x)).astype(np.float32)
        self.y = (rows - tilt * columns + shift_y + rng.uniform(-0.06, 0.06)).astype(np.float32)
        self.image = np.zeros((slices, height, width), dtype=np.float32)

    def _waves(self, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
        total = np.zeros(np.broadcast_shapes(columns.shape, rows.shape, self.z.shape))
        for _ in range(6):
            along_x, along_y = self.rng.uniform(-5, 5, 2)
            phase = self.rng.uniform(0, 2 * np.pi) + self.rng.uniform(-0.8, 0.8) * self.z
            total = total + np.cos(along_x * columns + along_y * rows + phase)
        return 0.009 * total

    def noise(self, through: float, down: float, across: float) -> np.ndarray:
        """Draw smooth noise (slices, H, W) of deviation 1; widths are in pixels at recon 128."""
        from scipy.ndimage import gaussian_filter

        scale = self.recon / 128
        white = self.rng.standard_normal(self.image.shape, dtype=np.float32)
        smooth = gaussian_filter(
            white, (through, down * scale, across * scale), mode="nearest", truncate=2.5
        )
        return smooth / smooth.std()

    def paint(
        self,
        distance: np.ndarray,
        value: np.ndarray | float,
        softness: float = 0.6,
        rows: slice = slice(None),
    ) -> None:
        """Paint where `distance` (negative inside) says, with an edge of `softness` pixels."""
        edge = softness * 2 / self.recon
        inside = 0.5 - 0.5 * np.tanh(distance / (2 * edge))
        self.image[:, rows] += inside * (value - self.image[:, rows])

    def paint_tube(
        self, x: np.ndarray, y: np.ndarray, radius: float, value: float, softness: float = 0.6
    ) -> None:
        """Paint a disc per slice at (x, y), both (slices, 1, 1)."""
        # Rows far from it are left out, which is most of them.
        near = np.flatnonzero((np.abs(self.y - y) < radius + 0.05).any(axis=(0, 2)))
        rows = slice(near[0], near[-1] + 1) if len(near) else slice(0)
        distance = np.hypot(self.x[:, rows] - x, self.y[:, rows] - y) - radius
        self.paint(distance, value, softness, rows)

    def ellipse(self, x: float, y: float, a: np.ndarray | float, b: float) -> np.ndarray:
        """Approximate distance to an ellipse."""
        return (np.hypot((self.x - x) / a, (self.y - y) / b) - 1) * np.minimum(a, b)

    def segment(self, start: tuple[float, float], end: tuple[float, float]) -> np.ndarray:
        """Distance to a straight segment from `start` to `end`, both (x, y)."""
        along_x, along_y = end[0] - start[0], end[1] - start[1]
        length2 = along_x**2 + along_y**2
        position = ((self.x - start[0]) * along_x + (self.y - start[1]) * along_y) / length2
        position = np.clip(position, 0, 1)
        return np.hypot(
            self.x - start[0] - position * along_x, self.y - start[1] - position * along_y
        )


def _ramp(value: np.ndarray) -> np.ndarray:
    """Rise smoothly from 0 at 0 to 1 at 1."""
    clipped = np.clip(value, 0, 1)
    return clipped**2 * (3 - 2 * clipped)


def _union(first: np.ndarray, second: np.ndarray, blend: float = 0.04) -> np.ndarray:
    """Smooth minimum of two distances."""
    mix = np.clip(0.5 + 0.5 * (second - first) / blend, 0, 1)
    return second + (first - second) * mix - blend * mix * (1 - mix)


def _draw_soft_tissue(canvas: _Canvas, tissue: _Tissue, half_width: float) -> None:
    """Skin, the fat under it with its septa, and muscle in bundles with vessels."""
    rng, x, y, z = canvas.rng, canvas.x, canvas.y, canvas.z
    leg = half_width * (1 - 0.08 * z**2) * (1 + 0.04 * np.cos(2.2 * y + rng.uniform(-1, 1)))
    outline = np.abs(x) - leg
    thickness = rng.uniform(0.07, 0.13) * (1 + 0.3 * np.cos(3 * y + 2 * np.sign(x)))
    septa = np.exp(-((canvas.noise(0.7, 3, 4) / 0.16) ** 2))
    fat = tissue.fat * (1 + 0.05 * canvas.noise(0.7, 1.2, 1.2)) * (1 - 0.45 * septa)
    fibres = canvas.noise(0.8, 7, 0.9)
    strands = np.exp(-((canvas.noise(0.9, 16, 3) / 0.10) ** 2))
    muscle = tissue.muscle * (1 + 0.13 * fibres + 0.07 * canvas.noise(0.6, 1, 1))
    muscle = muscle + 0.75 * strands * (tissue.fat - muscle)
    canvas.paint(outline, 0.45 * tissue.fat + 0.15)
    canvas.paint(outline + 0.022, fat)
    canvas.paint(outline + thickness + 0.012, tissue.fibrous)
    canvas.paint(outline + thickness + 0.025, muscle)
    for _ in range(14):
        side = rng.choice([-1, 1])
        centre_x = side * rng.uniform(0.5, half_width - 0.04) + rng.uniform(-0.05, 0.05) * z
        centre_y = rng.uniform(-1.0, 1.0) + rng.uniform(-0.15, 0.15) * z
        radius = rng.uniform(0.012, 0.03)
        canvas.paint_tube(centre_x, centre_y, radius, 0.05)
        canvas.paint_tube(centre_x, centre_y, 0.45 * radius, rng.choice([0.1, 0.9]) * tissue.fluid)


def _draw_joint(canvas: _Canvas, tissue: _Tissue) -> None:
    """Femur, tibia and fibula with cartilage, menisci, ligaments and joint fluid."""
    rng, x, y, z = canvas.rng, canvas.x, canvas.y, canvas.z
    size = rng.uniform(0.93, 1.05)
    x, y = x / size, y / size

    trabeculae = canvas.noise(0.4, 0.9, 0.7)
    marrow = tissue.marrow * (1 + 0.055 * trabeculae + 0.08 * canvas.noise(0.8, 4, 4))
    flare = _ramp((y + 0.85) / 0.6)
    condyle = 0.235 + 0.03 * z
    shaft = np.maximum(np.abs(x + 0.02) - (0.17 + 0.27 * flare), y + 0.16)
    femur = _union(shaft, canvas.ellipse(-0.235, -0.19, condyle, 0.235))
    femur = _union(femur, canvas.ellipse(0.235, -0.18, condyle, 0.225))
    notch = canvas.ellipse(0.0, 0.0, 0.10 + 0.035 * z, 0.17)
    femur = np.maximum(femur, -notch)

    spines = 0.085 * (np.exp(-(((x - 0.06) / 0.035) ** 2)) + np.exp(-(((x + 0.05) / 0.04) ** 2)))
    plateau = 0.115 - spines * (1 - 0.5 * np.abs(z)) - 0.03 * np.cos(7 * x)
    tibia_width = 0.17 + 0.31 * (1 - _ramp((y - 0.16) / 0.75))
    tibia = np.maximum(np.abs(x + 0.01) - tibia_width, plateau - y)
    fibula = _union(
        canvas.ellipse(0.47, 0.40, 0.075, 0.10), np.maximum(np.abs(x - 0.47) - 0.05, 0.42 - y)
    )

    capsule = canvas.ellipse(0.0, 0.0, 0.53, 0.28)
    canvas.paint(capsule, 0.5 * tissue.fat + 0.12 + 0.06 * canvas.noise(0.7, 1.5, 1.5))
    fluid = rng.uniform(0.012, 0.035)
    canvas.paint(np.maximum(notch - fluid, np.abs(y) - 0.16), tissue.fluid, 1.2)
    layers = tissue.cartilage * (1 + 0.06 * canvas.noise(0.6, 1, 1))
    canvas.paint(np.maximum(femur - 0.058, -0.22 - y), layers)
    canvas.paint(np.maximum(tibia - 0.042, y - 0.2), layers)
    canvas.paint(np.maximum(np.abs(y - 0.058) - 0.009, np.abs(x) - 0.45), tissue.fluid)

    reach = 0.23 + 0.12 * z**2
    for side in (-1, 1):
        out = side * x
        wedge = np.abs(y - 0.06) - 0.33 * (out - reach)
        meniscus = np.maximum(np.maximum(wedge, out - 0.485), reach - out)
        canvas.paint(meniscus, tissue.fibrous * (1 + 0.25 * canvas.noise(0.6, 1, 1)))
    if rng.random() < 0.3:
        canvas.paint(canvas.segment((-0.46, 0.09), (-0.34, 0.05)) - 0.006, tissue.fluid)

    rim = rng.uniform(0.016, 0.024)
    scar_x = 0.03 * np.cos(9 * x)
    for bone, scar in ((femur, y + 0.46 + scar_x), (tibia, y - 0.36 - scar_x), (fibula, y - 0.47)):
        canvas.paint(bone, tissue.cortical)
        canvas.paint(bone + rim, marrow)
        canvas.paint(np.maximum(np.abs(scar) - 0.006, bone + 0.03), 0.5 * tissue.marrow + 0.06, 0.7)
    if rng.random() < 0.5:
        spot_x, spot_y = rng.uniform(-0.3, 0.3), rng.choice([-0.3, 0.28])
        bruise = np.hypot(x - spot_x, y - spot_y) + 0.03 * canvas.noise(0.8, 4, 4)
        canvas.paint(
            np.maximum(bruise - rng.uniform(0.05, 0.1), np.minimum(femur, tibia) + 0.02),
            0.5 * tissue.fluid + 0.25 * tissue.marrow,
            4.0,
        )

    cord = tissue.fibrous * (1 + 0.5 * np.abs(canvas.noise(0.5, 3, 0.6)))
    lean = 0.05 * float(rng.uniform(-1, 1))
    canvas.paint(canvas.segment((0.09, -0.17), (-0.05 + lean, 0.06)) - 0.026 - 0.008 * z, cord)
    canvas.paint(canvas.segment((-0.09, -0.14), (0.04, 0.10)) - 0.022 + 0.014 * z, cord)
    bow = 0.025 * np.cos(2 * y)
    collateral = np.maximum(np.abs(x + 0.50 + bow) - 0.013, np.abs(y - 0.1) - 0.6)
    canvas.paint(collateral, tissue.fibrous)
    canvas.paint(canvas.segment((0.50, -0.25), (0.50, 0.33)) - 0.014, tissue.fibrous)


def _sensitivities(
    rng: np.random.Generator, coils: int, height: int, width: int, recon: int
) -> np.ndarray:
    """Complex maps (coils, H, W), smooth, of loops around the knee that fade along the leg."""
    half = recon / 2
    rows = ((np.arange(height) - height // 2) / half).reshape(-1, 1)
    columns = ((np.arange(width) - width // 2) / half).reshape(1, -1)
    maps = []
    for coil in range(coils):
        angle = 2 * np.pi * (coil + 0.5) / coils + rng.uniform(-0.1, 0.1)
        centre_x, centre_y = 1.0 * np.cos(angle), 0.75 * np.sin(angle)
        distance2 = (columns - centre_x) ** 2 + (rows - centre_y) ** 2
        slope_x, slope_y = rng.uniform(-0.8, 0.8, 2)
        phase = angle + slope_x * columns + slope_y * rows
        maps.append(np.exp(-distance2 / (2 * 0.8**2)) * np.exp(1j * phase))
    stack = np.stack(maps)
    return stack / np.sqrt((np.abs(stack) ** 2).sum(axis=0)).max()


def _acquired_columns(rng: np.random.Generator, width: int) -> tuple[int, int]:
    """Draw the first and one-past-last acquired column; about an eighth is never acquired."""
    left = max(1, round(width * rng.uniform(0.04, 0.07)))
    right = width - max(1, round(width * rng.uniform(0.05, 0.09)))
    return left, right


def _draw_kspace(
    rng: np.random.Generator,
    tissue: _Tissue,
    shape: tuple[int, int, int],
    sizes: DemoSizes,
    coils: int | None,
    columns: tuple[int, int],
) -> np.ndarray:
    """Noisy k-space complex64 (slices[, coils], H, W) of one knee, zero outside `columns`."""
    slices, height, width = shape
    canvas = _Canvas(rng, slices, height, width, sizes.recon)
    widest = 0.5 * width / (sizes.recon / 2)
    _draw_soft_tissue(canvas, tissue, min(rng.uniform(0.74, 0.84), 0.88 * widest))
    _draw_joint(canvas, tissue)
    slope = rng.uniform(-0.8, 0.8, 3)
    smooth = canvas.noise(2, 18, 18)
    phase = slope[0] * canvas.x + slope[1] * canvas.y + slope[2] * canvas.x * canvas.y
    image = canvas.image * np.exp(1j * (phase + 0.35 * smooth + rng.uniform(-3, 3)))

    maps = _sensitivities(rng, coils or 4, height, width, sizes.recon)
    if coils is None:
        maps = np.sqrt((np.abs(maps) ** 2).sum(axis=0))
        kspace = centred_fft2(image * maps)
    else:
        kspace = centred_fft2(image[:, None] * maps)
    noise = rng.standard_normal((*kspace.shape, 2)) @ np.array([1, 1j])
    kspace = kspace + tissue.noise / np.sqrt(2) * noise
    acquired = np.zeros(width)
    acquired[columns[0] : columns[1]] = 1
    # Signal in fastMRI's order of magnitude, so that fixed small constants act as on the real data.
    return (kspace * acquired * rng.uniform(2e-4, 5e-4)).astype(np.complex64)


def _write_demo_volume(
    path: Path, challenge: Challenge, sizes: DemoSizes, position: int, rng: np.random.Generator
) -> None:
    """Write the fully sampled volume number `position` of a split."""
    width = sizes.widths[position % len(sizes.widths)]
    shape = (sizes.slices[position % len(sizes.slices)], sizes.readout, width)
    acquisition = tuple(_CONTRASTS)[position % len(_CONTRASTS)]
    columns = _acquired_columns(rng, width)
    coils = sizes.coils if challenge == "multicoil" else None
    kspace = _draw_kspace(rng, _CONTRASTS[acquisition], shape, sizes, coils, columns)
    recon_size = (sizes.recon, sizes.recon)
    header = Header.of_columns((sizes.readout, width), recon_size, columns)
    xml = write_header(header, num_coils=coils or 1, protocol=acquisition)
    patient_id = hashlib.sha256(f"demo {path.stem}".encode()).hexdigest()
    attrs = {"acquisition": acquisition, "patient_id": patient_id}
    write_volume(path, kspace, target_of(kspace, recon_size), xml, challenge, attrs)


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
    if challenge not in TARGET_KEYS:
        raise InputError(f"--challenge: given {challenge}, allowed: {', '.join(TARGET_KEYS)}")
    sizes = sizes or SIZES[challenge]
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
            width = sizes.widths[position % len(sizes.widths)]
            mask = draw_mask(name, width, "random", acceleration, 0.32 / acceleration)
            test = f"{challenge}_test"
            freeze_volume(
                full, folder / test / name, folder / "targets" / test / name, mask, challenge
            )
            full.unlink()
    return folder


def demo_folder(challenge: Challenge, track: Track = silent) -> Path:
    """Return the demo data's folder in the user's cache, made on the first call.

    Usable as `--data_path`; the test split's targets are in its `targets/{challenge}_test`.
    """
    if challenge not in TARGET_KEYS:
        raise InputError(f"--challenge: given {challenge}, allowed: {', '.join(TARGET_KEYS)}")

    def fill(folder: Path) -> None:
        make_demo_data(folder, challenge, track=track)

    return make_folder_once(cache_dir("demo") / f"{challenge}_v{DEMO_VERSION}", fill)
