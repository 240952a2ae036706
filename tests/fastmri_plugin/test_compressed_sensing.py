"""The solvers: sigpy's operators, objectives and phantoms as oracles."""

import numpy as np
import pytest
import sigpy
import sigpy.mri
from skimage.metrics import structural_similarity

from fastmri_plugin import compressed_sensing as solver
from fastmri_plugin.kspace import center_crop, rss, zero_filled
from img2img_recon.support.errors import InputError

ITERATIVE = ("tv", "l1_wavelet")


@pytest.fixture(scope="module")
def phantom():
    """Complex piecewise constant image (96, 72) over-sampled along its rows, and its mask."""
    image = np.zeros((96, 72), dtype=complex)
    image[24:72] = sigpy.shepp_logan((48, 72))
    image *= np.exp(1j * np.linspace(0, 2, 72))
    mask = np.random.default_rng(1).random(72) < 0.35
    mask[30:42] = True
    return image, mask


def birdcage(image, num_coils=4):
    maps = sigpy.mri.birdcage_maps((num_coils, *image.shape))
    return maps / np.sqrt((np.abs(maps) ** 2).sum(0))


def kspace_of(image):
    rng = np.random.default_rng(2)
    kspace = sigpy.fft(image, axes=(-2, -1))
    noise = rng.standard_normal(kspace.shape) + 1j * rng.standard_normal(kspace.shape)
    return (kspace + 0.005 * noise).astype(np.complex64)


def ssim(target, image):
    return structural_similarity(target, image, data_range=float(target.max()))


def reconstruct(kspace, mask, size, method, regularization):
    return solver.reconstruct_slice(kspace, mask, size, method, [regularization])[0]


@pytest.mark.parametrize("method", ITERATIVE)
@pytest.mark.parametrize("coils", [1, 4])
def test_regularised_reconstructions_beat_zero_filling(phantom, method, coils):
    image, mask = phantom
    kspace = kspace_of(image if coils == 1 else birdcage(image, coils) * image)
    target = center_crop(np.abs(image), (48, 48)).astype(np.float32)
    before = zero_filled(kspace, mask, (48, 48))
    after = reconstruct(kspace, mask, (48, 48), method, 0.003)
    assert after.shape == (48, 48)
    assert after.dtype == np.float32
    assert ssim(target, after) > ssim(target, before) + 0.02
    assert np.linalg.norm(after - target) < 0.95 * np.linalg.norm(before - target)
    bright = target > 0.15
    assert np.median(after[bright] / target[bright]) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("method", ITERATIVE)
@pytest.mark.parametrize("coils", [1, 4])
def test_a_vanishing_regularization_gives_back_a_fully_sampled_image(phantom, method, coils):
    """Also says that the crop keeps the image on the target's pixels, odd sizes included."""
    image, _ = phantom
    kspace = sigpy.fft(image if coils == 1 else birdcage(image, coils) * image, axes=(-2, -1))
    for size in ((48, 48), (47, 51)):
        target = center_crop(np.abs(image), size)
        found = reconstruct(kspace, None, size, method, 1e-8)
        assert np.linalg.norm(found - target) < 0.02 * np.linalg.norm(target)


def test_the_cropped_problem_is_the_full_one(phantom):
    """Without signal outside the crop, solving with all the rows gives the same image."""
    image, mask = phantom
    kspace = sigpy.fft(image, axes=(-2, -1)).astype(np.complex64)
    cropped = reconstruct(kspace, mask, (56, 72), "tv", 0.003)
    full = reconstruct(kspace, mask, (96, 72), "tv", 0.003)
    full = center_crop(full, (56, 72))
    assert np.linalg.norm(cropped - full) < 0.02 * np.linalg.norm(full)


@pytest.mark.parametrize("method", ITERATIVE)
def test_the_regularization_has_no_units(phantom, method):
    image, mask = phantom
    kspace = kspace_of(birdcage(image) * image)
    one = reconstruct(kspace, mask, (48, 48), method, 0.01)
    other = reconstruct((kspace * np.float32(3e-5)), mask, (48, 48), method, 0.01)
    np.testing.assert_allclose(other / np.float32(3e-5), one, rtol=0, atol=2e-3 * one.max())


def test_the_default_iterations_come_close_to_the_minimum(phantom):
    """The step sizes: sigpy's own objective, after the default and after many iterations."""
    image, mask = phantom
    problem = solver.prepare_slice(kspace_of(image), mask, (48, 48))

    def objective(x, regularization):
        residual = solver.sense_operator(problem)(x) - problem.kspace
        gradient = sigpy.linop.FiniteDifference(x.shape)(x)
        return 0.5 * np.linalg.norm(residual) ** 2 + regularization * np.abs(gradient).sum()

    from sigpy.mri.app import TotalVariationRecon

    def run(max_iter):
        return TotalVariationRecon(
            problem.kspace,
            problem.maps,
            0.003,
            weights=problem.sampled,
            max_iter=max_iter,
            sigma=solver.TV_SIGMA,
            tau=solver.TV_TAU,
            show_pbar=False,
            x=solver.sense_operator(problem).H(problem.kspace),
        ).run()

    start = solver.sense_operator(problem).H(problem.kspace)
    first, usual, best = (
        objective(x, 0.003) for x in (start, run(solver.NUM_ITERATIONS["tv"]), run(800))
    )
    assert best < usual < first
    assert usual - best < 0.1 * (first - best)


@pytest.mark.parametrize("coils", [1, 5])
def test_the_operators_adjoint_is_its_adjoint(coils):
    rng = np.random.default_rng(0)

    def draw(*shape):
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)

    mask = rng.random(40) < 0.4
    mask[12:28] = True
    kspace = draw(64, 40) if coils == 1 else draw(coils, 64, 40)
    operator = solver.sense_operator(solver.prepare_slice(kspace, mask, (32, 32)))
    x, y = draw(*operator.ishape), draw(*operator.oshape)
    assert np.vdot(y, operator(x)) == pytest.approx(np.vdot(operator.H(y), x), rel=1e-4)


@pytest.mark.parametrize("acs", [1, 5, 8, 12, 24])
def test_maps_have_unit_root_sum_of_squares_at_any_calibration_width(phantom, acs):
    image, _ = phantom
    maps = birdcage(image[24:72])
    columns = np.zeros(72, dtype=bool)
    columns[36 - acs // 2 : 36 - acs // 2 + acs] = True
    kspace = (kspace_of(maps * image[24:72]) * columns).astype(np.complex64)
    assert solver.calibration_width(columns) == acs
    found = solver.coil_maps(kspace, columns)
    np.testing.assert_allclose((np.abs(found) ** 2).sum(0), 1, atol=1e-3)
    if acs >= 5:
        inside = np.abs(image[24:72]) > 0.15
        overlap = np.abs((found.conj() * maps).sum(0))[inside]
        assert np.median(overlap) > 0.97


@pytest.mark.parametrize("width", [40, 41])
@pytest.mark.parametrize("low", [4, 5, 12])
def test_the_calibration_width_is_that_of_fastmris_masks(width, low):
    columns = np.zeros(width, dtype=bool)
    start = (width - low + 1) // 2
    columns[start : start + low] = True
    assert low - 1 <= solver.calibration_width(columns) <= low
    assert solver.calibration_width(np.ones(width, dtype=bool)) == width
    assert solver.calibration_width(np.zeros(width, dtype=bool)) == 0


def test_compressed_coils_keep_the_image():
    rng = np.random.default_rng(0)
    basis = rng.standard_normal((3, 24, 20)) + 1j * rng.standard_normal((3, 24, 20))
    coils = np.einsum("ck,khw->chw", rng.standard_normal((12, 3)), basis).astype(np.complex64)
    compressed = solver.compress_coils(coils, 8)
    assert compressed.shape == (8, 24, 20)
    np.testing.assert_allclose(rss(compressed), rss(coils), rtol=1e-3)


def test_a_slice_without_signal_stays_empty():
    kspace = np.zeros((4, 64, 40), dtype=np.complex64)
    for method in ITERATIVE:
        image = reconstruct(kspace, None, (32, 32), method, 0.01)
        assert image.shape == (32, 32)
        assert not image.any()


def test_kspace_that_is_not_finite_is_refused():
    kspace = np.zeros((64, 40), dtype=np.complex64)
    kspace[0, 0] = np.nan
    with pytest.raises(InputError, match="NaN"):
        reconstruct(kspace, None, (32, 32), "tv", 0.01)
