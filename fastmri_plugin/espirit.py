"""Coil sensitivity maps by ESPIRiT, fast enough to be made for every slice where it is reconstructed.

Uecker et al., "ESPIRiT - an eigenvalue approach to autocalibrating parallel MRI", MRM 71:990, 2014. The maps are
the eigenvectors of one small Hermitian matrix per pixel. Its entries hold no higher frequencies than the kernel is
wide, so that the matrices are made on a coarse grid, and what is interpolated is the projection onto the
eigenvector, which has no phase of its own to go astray.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

CALIBRATION_WIDTH = 24
KERNEL_WIDTH = 6
# Singular values below this part of the largest hold noise; the value of the paper's and of sigpy's.
THRESHOLD = 0.02
# Of fewer columns the maps are poor (27 dB of a measured slice explained by 4, 36 by 8, 41 by 16 and more).
LEAST_WIDTH = 8
# Points of the coarse grid along an axis: six to the shortest period of 2 * KERNEL_WIDTH - 1 columns.
GRID = 64
# The matrix is squared so often, which is the power iteration of 2^5 steps.
SQUARINGS = 5


def centre_of(mask: Tensor, num_low_frequencies: int | None = None) -> Tensor:
    """The fully sampled centre, a bool mask of the same shape, of masks in the transform's own order.

    Args:
        mask: bool (B, 1, 1, W), measured columns, or (B, 1, H, W), samples; zero frequency first.
        num_low_frequencies: its width; None takes what lies on both sides up to the first gap, the same number
            on each, and at least the middle one, as fastMRI does. Of samples it is a square.
    """
    frequencies = [_frequencies(side, mask.device) for side in mask.shape[-2:]]
    if num_low_frequencies is None:
        rings = [torch.where(frequency < 0, -frequency - 1, frequency) for frequency in frequencies]
        ring = torch.maximum(rings[0][:, None], rings[1])
        gap = torch.where(mask, mask.shape[-1], ring)
        count = (2 * gap.amin((-2, -1), keepdim=True)).clamp(1, mask.shape[-1])
    else:
        count = torch.tensor(num_low_frequencies, device=mask.device)
    inside = torch.ones_like(mask)
    for axis, frequency in zip((-2, -1), frequencies, strict=True):
        side = len(frequency)
        if side > 1:
            low = side // 2 - torch.div(side - count + 1, 2, rounding_mode="floor")
            along = (frequency >= -low) & (frequency < count - low)
            inside = inside & along.transpose(axis, -1)
    return inside


def _frequencies(side: int, device: torch.device) -> Tensor:
    place = torch.arange(side, device=device)
    return torch.where(place < (side + 1) // 2, place, place - side)


def centre_width(measured: np.ndarray) -> int:
    """Columns of the fully sampled centre of a mask (W,), or the side of the square one of samples (H, W), bool."""
    mask = torch.from_numpy(np.atleast_2d(measured))[None, None]
    axes = -1 if measured.ndim == 1 else (-2, -1)
    return int(centre_of(torch.fft.ifftshift(mask, axes))[0, 0].any(0).sum()) if mask.any() else 0


@torch.no_grad()
def maps_of_batch(kspace: Tensor, centre: Tensor) -> Tensor:
    """Maps (B, coils, H, W) of centred k-space, slice by slice, given the centre in the transform's own order."""
    maps = []
    for index, one in enumerate(kspace):
        inside = torch.fft.fftshift(centre[index if len(centre) > 1 else 0, 0])
        rows = one.shape[-2] if len(inside) == 1 else _places_around_middle(inside.any(1))
        maps.append(espirit_maps(one, (rows, _places_around_middle(inside.any(0)))))
    return torch.stack(maps)


def _places_around_middle(inside: Tensor) -> int:
    """How many places around the middle are inside, (n,); fastMRI's centre of an odd number lies one further on."""
    places, middle = inside.nonzero().flatten(), len(inside) // 2
    return int(min(2 * (middle - places[0]) + 1, 2 * (places[-1] + 1 - middle)))


def espirit_maps(kspace: Tensor, centre: tuple[int, int]) -> Tensor:
    """Sensitivity maps of one slice from the fully sampled centre of its k-space.

    Nothing is cut off by its eigenvalue: outside the object the maps say what the centre's noise says. Their phase
    is that of the low-resolution coil images, so that an image combined with them is nearly real.

    Args:
        kspace: complex (coils, H, W), centred, in any unit.
        centre: rows and columns of the middle that are sampled; no more than 24 of each are used.

    Returns:
        complex (coils, H, W); the squares of the magnitudes sum to one over the coils wherever there is a signal.
    """
    size = kspace.shape[-2:]
    width = [min(CALIBRATION_WIDTH, given, side) for given, side in zip(centre, size, strict=True)]
    first = [side // 2 - given // 2 for given, side in zip(width, size, strict=True)]
    box = kspace[:, first[0] : first[0] + width[0], first[1] : first[1] + width[1]]
    scale = box.abs().amax()
    box = box / torch.where(scale > 0, scale, 1)
    vectors, grid = _eigenvectors(box, size)
    images = _low_resolution(box, size)
    maps = _projected(images, vectors, grid)
    energy = maps.abs().square().sum(0)
    return maps / energy.clamp_min(torch.finfo(energy.dtype).tiny).sqrt()


def _eigenvectors(box: Tensor, size: tuple[int, ...]) -> tuple[Tensor, tuple[int, int]]:
    """Eigenvectors (coils, h, w) of the largest eigenvalue on a coarse grid of the image, and its (h, w)."""
    grid = min(GRID, size[0]), min(GRID, size[1])
    matrices = _matrices(_signal_space(box), grid)
    for _ in range(SQUARINGS):
        matrices = _normalised(matrices) @ matrices
        matrices = _normalised(matrices)
    # Where there is a signal they are of rank one now, and of noise, nearly the unit matrix, the images decide.
    start = _low_resolution(box, grid).flatten(1).T[..., None]
    vectors = (matrices @ start)[..., 0]
    length = vectors.abs().square().sum(1, keepdim=True).sqrt()
    vectors = vectors / length.clamp_min(torch.finfo(length.dtype).tiny)
    return vectors.T.view(len(box), *grid), grid


def _signal_space(box: Tensor) -> Tensor:
    """What the windows of the box (coils, h, w) are made of, as a projection (coils, kh, kw, coils, kh, kw)."""
    coils = len(box)
    kernel = [max(1, min(KERNEL_WIDTH, side // 2)) for side in box.shape[1:]]
    windows = box.unfold(1, kernel[0], 1).unfold(2, kernel[1], 1)
    rows = windows.permute(1, 2, 0, 3, 4).reshape(-1, coils * kernel[0] * kernel[1])
    if len(rows) < rows.shape[1]:
        values, vectors = torch.linalg.eigh(rows @ rows.mH)
        space = (vectors.mH @ rows) / values.clamp_min(torch.finfo(values.dtype).tiny).sqrt()[
            :, None
        ]
    else:
        values, vectors = torch.linalg.eigh(rows.mH @ rows)
        space = vectors.mH
    space = space[values >= THRESHOLD**2 * values[-1]]
    return (space.mH @ space).view(coils, *kernel, coils, *kernel)


def _matrices(projection: Tensor, grid: tuple[int, int]) -> Tensor:
    """The matrices (h w, coils, coils) of the image's places on a grid, up to a factor.

    k(r + j) is the transform of the image times exp(-2 pi i j x): a window's product with a kernel is, in the image,
    a product with the kernel's transform, and a place's matrix the transform of the projection's sums over windows
    that lie equally far apart.
    """
    coils, height, width = projection.shape[:3]
    sums = projection.new_zeros(coils, coils, *grid)
    for row in range(height):
        for column in range(width):
            down = (torch.arange(height, device=sums.device) - row) % grid[0]
            right = (torch.arange(width, device=sums.device) - column) % grid[1]
            block = projection[:, :, :, :, row, column].permute(3, 0, 1, 2)
            sums[:, :, down[:, None], right] += block
    spectra = torch.fft.fftshift(torch.fft.fft2(sums), (-2, -1))
    return spectra.flatten(2).permute(2, 0, 1)


def _normalised(matrices: Tensor) -> Tensor:
    trace = torch.diagonal(matrices, dim1=1, dim2=2).real.sum(1)
    return matrices / torch.where(trace > 0, trace, 1)[:, None, None]


def _low_resolution(box: Tensor, size: tuple[int, ...]) -> Tensor:
    """Coil images (coils, H, W) of the box, under a window that keeps them from ringing."""
    tapers = [
        torch.hann_window(side + 2, periodic=False, device=box.device)[1:-1]
        for side in box.shape[1:]
    ]
    whole = box.new_zeros((len(box), *size))
    first = [side // 2 - part // 2 for side, part in zip(size, box.shape[1:], strict=True)]
    whole[:, first[0] : first[0] + box.shape[1], first[1] : first[1] + box.shape[2]] = (
        box * torch.outer(*tapers)
    )
    images = torch.fft.ifft2(torch.fft.ifftshift(whole, (-2, -1)))
    return torch.fft.fftshift(images, (-2, -1))


def _projected(images: Tensor, vectors: Tensor, grid: tuple[int, int]) -> Tensor:
    """Coil images (coils, H, W), each pixel projected onto the eigenvector there, interpolated bilinearly."""
    below, share = [], []
    for side, points in zip(images.shape[1:], grid, strict=True):
        # The middles of image and grid are the same place.
        pixel = torch.arange(side, device=images.device) - side // 2
        place = pixel * (points / side) + points // 2
        below.append(place.floor().long())
        share.append(place - place.floor())
    projected = torch.zeros_like(images)
    for down in (0, 1):
        for right in (0, 1):
            row, column = (below[0] + down) % grid[0], (below[1] + right) % grid[1]
            vector = vectors[:, row][:, :, column]
            weight = torch.outer(
                share[0] if down else 1 - share[0], share[1] if right else 1 - share[1]
            )
            projected += weight * vector * (vector.conj() * images).sum(0)
    return projected
