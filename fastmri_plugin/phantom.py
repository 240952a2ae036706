"""A drawn knee and its simulated measurement: tissues, phase, coil sensitivities, noise.

The anatomy is drawn, not measured: numbers on it say that the code works, nothing about patients.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter

from fastmri_plugin.kspace import centred_fft


class Tissue(NamedTuple):
    """Signal of each tissue relative to the brightest."""

    fat: float
    marrow: float
    muscle: float
    cartilage: float
    fluid: float
    fibrous: float
    cortical: float
    noise: float


CONTRASTS = {
    "CORPD_FBK": Tissue(0.95, 0.80, 0.42, 0.66, 0.72, 0.12, 0.06, 0.022),
    "CORPDFS_FBK": Tissue(0.17, 0.15, 0.40, 0.72, 0.95, 0.12, 0.05, 0.034),
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

    def paint_tube(self, x: np.ndarray, y: np.ndarray, radius: float, value: float) -> None:
        """Paint a disc per slice at (x, y), both (slices, 1, 1)."""
        # Rows far from it are left out, which is most of them.
        near = np.flatnonzero((np.abs(self.y - y) < radius + 0.05).any(axis=(0, 2)))
        rows = slice(near[0], near[-1] + 1) if len(near) else slice(0)
        distance = np.hypot(self.x[:, rows] - x, self.y[:, rows] - y) - radius
        self.paint(distance, value, rows=rows)

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


def _union(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Smooth minimum of two distances."""
    blend = 0.04
    mix = np.clip(0.5 + 0.5 * (second - first) / blend, 0, 1)
    return second + (first - second) * mix - blend * mix * (1 - mix)


def _draw_soft_tissue(canvas: _Canvas, tissue: Tissue, half_width: float) -> None:
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


def _draw_joint(canvas: _Canvas, tissue: Tissue) -> None:
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


def draw_kspace(
    rng: np.random.Generator,
    tissue: Tissue,
    shape: tuple[int, int, int],
    recon: int,
    coils: int | None,
    columns: tuple[int, int],
) -> np.ndarray:
    """Noisy k-space of one knee, complex64 (slices[, coils], H, W), zero outside `columns`.

    Args:
        rng: draws everything.
        tissue: the contrast.
        shape: (slices, H, W).
        recon: side of the reconstruction in pixels, to which the knee is drawn.
        coils: how many; None for a single-coil measurement.
        columns: first and one-past-last acquired column.
    """
    slices, height, width = shape
    canvas = _Canvas(rng, slices, height, width, recon)
    widest = 0.5 * width / (recon / 2)
    _draw_soft_tissue(canvas, tissue, min(rng.uniform(0.74, 0.84), 0.88 * widest))
    _draw_joint(canvas, tissue)
    slope = rng.uniform(-0.8, 0.8, 3)
    smooth = canvas.noise(2, 18, 18)
    phase = slope[0] * canvas.x + slope[1] * canvas.y + slope[2] * canvas.x * canvas.y
    image = canvas.image * np.exp(1j * (phase + 0.35 * smooth + rng.uniform(-3, 3)))

    maps = _sensitivities(rng, coils or 4, height, width, recon)
    if coils is None:
        maps = np.sqrt((np.abs(maps) ** 2).sum(axis=0))
        kspace = centred_fft(image * maps)
    else:
        kspace = centred_fft(image[:, None] * maps)
    noise = rng.standard_normal((*kspace.shape, 2)) @ np.array([1, 1j])
    kspace = kspace + tissue.noise / np.sqrt(2) * noise
    acquired = np.zeros(width)
    acquired[columns[0] : columns[1]] = 1
    # Signal in fastMRI's order of magnitude, so that fixed small constants act as on the real data.
    return (kspace * acquired * rng.uniform(2e-4, 5e-4)).astype(np.complex64)
