"""ESPIRiT maps: against the coils that were simulated, against sigpy's, and where there is little to go by."""

from __future__ import annotations

import numpy as np
import pytest
import sigpy
import torch
from sigpy.mri import birdcage_maps
from sigpy.mri.app import EspiritCalib

from fastmri_plugin.espirit import espirit_maps


def coils(number: int = 6, size: tuple[int, int] = (90, 72)) -> np.ndarray:
    """Coil images of an ellipse with a hole and a phase of its own."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, side) for side in size), indexing="ij")
    image = ((y / 0.8) ** 2 + (x / 0.7) ** 2 < 1) * (1.0 - 0.7 * (y**2 + (x - 0.2) ** 2 < 0.05))
    return image * np.exp(1j * (y + 2 * x)) * birdcage_maps((number, *size))


def kspace_of(images: np.ndarray) -> np.ndarray:
    return sigpy.fft(images, axes=(-2, -1)).astype(np.complex64)


def unexplained(images: np.ndarray, maps: np.ndarray) -> float:
    """Share of the coil images' norm that no image times these maps explains."""
    left = images - maps * (maps.conj() * images).sum(0)
    return float(np.linalg.norm(left) / np.linalg.norm(images))


@pytest.mark.parametrize("size", [(90, 72), (61, 45)])
def test_maps_explain_the_coils_as_sigpys_do(size):
    images = coils(size=size)
    kspace = kspace_of(images)
    ours = espirit_maps(torch.from_numpy(kspace), (24, 24)).numpy()
    theirs = EspiritCalib(kspace, calib_width=24, crop=0, show_pbar=False).run()
    # Over the object's edge the centre rings, for both.
    assert unexplained(images, ours) < 1.1 * unexplained(images, theirs) < 0.05
    inside = abs(images).sum(0) > 0.5 * abs(images).sum(0).max()
    assert np.percentile(abs((ours.conj() * theirs).sum(0))[inside], 1) > 0.998


@pytest.mark.parametrize(("centre", "bound"), [((90, 24), 0.03), ((90, 10), 0.1), ((90, 1), 0.5)])
def test_a_narrow_centre_is_enough_for_something(centre, bound):
    images = coils()
    maps = espirit_maps(torch.from_numpy(kspace_of(images)), centre)
    energy = maps.abs().square().sum(0)
    torch.testing.assert_close(energy, torch.ones_like(energy), rtol=1e-3, atol=1e-3)
    assert unexplained(images, maps.numpy()) < bound


def test_only_the_centre_counts():
    kspace = torch.from_numpy(kspace_of(coils()))
    expected = espirit_maps(kspace, (20, 12))
    kspace[:, :35], kspace[:, :, :30] = torch.nan, torch.nan
    torch.testing.assert_close(espirit_maps(kspace, (20, 12)), expected)


def test_a_combined_image_is_nearly_real():
    images = coils()
    maps = espirit_maps(torch.from_numpy(kspace_of(images)), (24, 24)).numpy()
    combined = (maps.conj() * images).sum(0)
    assert np.linalg.norm(combined.imag) < 0.1 * np.linalg.norm(combined.real)


@pytest.mark.parametrize("unit", [1e-9, 1e6])
def test_units_do_not_matter(unit):
    images = coils()
    inside = abs(images).sum(0) > 0.1 * abs(images).sum(0).max()
    kspace = torch.from_numpy(kspace_of(images))
    found, expected = (espirit_maps(k, (24, 24))[:, inside] for k in (unit * kspace, kspace))
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


def test_nothing_measured_gives_finite_maps():
    assert espirit_maps(torch.zeros(3, 20, 18, dtype=torch.complex64), (8, 8)).isfinite().all()
