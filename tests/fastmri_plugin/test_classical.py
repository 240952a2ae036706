import dataclasses

import h5py
import numpy as np
import pytest
import sigpy
import sigpy.mri
from skimage.metrics import structural_similarity

from fastmri_plugin import classical
from fastmri_plugin.demo_data import TINY, make_demo_data
from fastmri_plugin.transforms import Sampling, combine_coils, zero_filled_image
from fastmri_plugin.volumes import center_crop, list_volumes
from img2img_recon.support.errors import InputError

SIZES = dataclasses.replace(TINY, recon=48, readout=96, widths=(64, 40, 56))
MASK_OF = Sampling("random", (4,), (0.2,)).mask_of
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


@pytest.fixture(scope="module", params=["singlecoil", "multicoil"])
def demo(request, tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("IMG2IMG_CACHE", str(tmp_path_factory.mktemp("cache")))
    sizes = dataclasses.replace(SIZES, coils=4)
    folder = make_demo_data(tmp_path_factory.mktemp("demo"), request.param, sizes=sizes)
    yield (
        request.param,
        list_volumes(folder / f"{request.param}_train", request.param),
        list_volumes(folder / f"{request.param}_val", request.param),
    )
    patch.undo()


@pytest.mark.parametrize("method", ITERATIVE)
@pytest.mark.parametrize("coils", [1, 4])
def test_regularised_reconstructions_beat_zero_filling(phantom, method, coils):
    image, mask = phantom
    kspace = kspace_of(image if coils == 1 else birdcage(image, coils) * image)
    target = center_crop(np.abs(image), (48, 48)).astype(np.float32)
    before = classical.reconstruct_slice(kspace, mask, (48, 48), "zero_filled")
    after = classical.reconstruct_slice(kspace, mask, (48, 48), method, 0.003)
    assert after.shape == (48, 48)
    assert after.dtype == np.float32
    assert ssim(target, after) > ssim(target, before) + 0.02
    assert np.linalg.norm(after - target) < 0.95 * np.linalg.norm(before - target)
    bright = target > 0.15
    assert np.median(after[bright] / target[bright]) == pytest.approx(1, abs=0.05)


def test_zero_filled_is_the_networks_input(phantom):
    image, mask = phantom
    kspace = kspace_of(birdcage(image) * image)
    expected = combine_coils(zero_filled_image(kspace, mask, (48, 48)))
    found = classical.reconstruct_slice(kspace, mask, (48, 48), "zero_filled")
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * expected.max())


@pytest.mark.parametrize("method", ITERATIVE)
@pytest.mark.parametrize("coils", [1, 4])
def test_a_vanishing_weight_gives_back_a_fully_sampled_image(phantom, method, coils):
    """Also says that the crop keeps the image on the target's pixels, odd sizes included."""
    image, _ = phantom
    kspace = sigpy.fft(image if coils == 1 else birdcage(image, coils) * image, axes=(-2, -1))
    for size in ((48, 48), (47, 51)):
        target = center_crop(np.abs(image), size)
        found = classical.reconstruct_slice(kspace, None, size, method, 1e-8)
        assert np.linalg.norm(found - target) < 0.02 * np.linalg.norm(target)


def test_the_cropped_problem_is_the_full_one(phantom):
    """Without signal outside the crop, solving with all the rows gives the same image."""
    image, mask = phantom
    kspace = sigpy.fft(image, axes=(-2, -1)).astype(np.complex64)
    cropped = classical.reconstruct_slice(kspace, mask, (56, 72), "tv", 0.003)
    full = classical.reconstruct_slice(kspace, mask, (96, 72), "tv", 0.003)
    full = center_crop(full, (56, 72))
    assert np.linalg.norm(cropped - full) < 0.02 * np.linalg.norm(full)


@pytest.mark.parametrize("method", ITERATIVE)
def test_the_weight_has_no_units(phantom, method):
    image, mask = phantom
    kspace = kspace_of(birdcage(image) * image)
    one = classical.reconstruct_slice(kspace, mask, (48, 48), method, 0.01)
    other = classical.reconstruct_slice((kspace * np.float32(3e-5)), mask, (48, 48), method, 0.01)
    np.testing.assert_allclose(other / np.float32(3e-5), one, rtol=0, atol=2e-3 * one.max())


def test_the_default_iterations_come_close_to_the_minimum(phantom):
    """The step sizes: sigpy's own objective, after the default and after many iterations."""
    image, mask = phantom
    problem = classical.prepare_slice(kspace_of(image), mask, (48, 48))

    def objective(x, weight):
        residual = classical.sense_operator(problem)(x) - problem.kspace
        gradient = sigpy.linop.FiniteDifference(x.shape)(x)
        return 0.5 * np.linalg.norm(residual) ** 2 + weight * np.abs(gradient).sum()

    from sigpy.mri.app import TotalVariationRecon

    def run(max_iter):
        return TotalVariationRecon(
            problem.kspace,
            problem.maps,
            0.003,
            weights=problem.sampled,
            max_iter=max_iter,
            sigma=classical.TV_SIGMA,
            tau=classical.TV_TAU,
            show_pbar=False,
            x=classical.sense_operator(problem).H(problem.kspace),
        ).run()

    start = classical.sense_operator(problem).H(problem.kspace)
    first, usual, best = (
        objective(x, 0.003) for x in (start, run(classical.NUM_ITERATIONS["tv"]), run(800))
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
    operator = classical.sense_operator(classical.prepare_slice(kspace, mask, (32, 32)))
    x, y = draw(*operator.ishape), draw(*operator.oshape)
    assert np.vdot(y, operator(x)) == pytest.approx(np.vdot(operator.H(y), x), rel=1e-4)


@pytest.mark.parametrize("acs", [1, 5, 8, 12, 24])
def test_maps_have_unit_root_sum_of_squares_at_any_calibration_width(phantom, acs):
    image, _ = phantom
    maps = birdcage(image[24:72])
    columns = np.zeros(72, dtype=bool)
    columns[36 - acs // 2 : 36 - acs // 2 + acs] = True
    kspace = (kspace_of(maps * image[24:72]) * columns).astype(np.complex64)
    assert classical.calibration_width(columns) == acs
    found = classical.coil_maps(kspace, columns)
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
    assert low - 1 <= classical.calibration_width(columns) <= low
    assert classical.calibration_width(np.ones(width, dtype=bool)) == width
    assert classical.calibration_width(np.zeros(width, dtype=bool)) == 0


def test_compressed_coils_keep_the_image():
    rng = np.random.default_rng(0)
    basis = rng.standard_normal((3, 24, 20)) + 1j * rng.standard_normal((3, 24, 20))
    coils = np.einsum("ck,khw->chw", rng.standard_normal((12, 3)), basis).astype(np.complex64)
    compressed = classical.compress_coils(coils, 8)
    assert compressed.shape == (8, 24, 20)
    np.testing.assert_allclose(combine_coils(compressed), combine_coils(coils), rtol=1e-3)


def test_a_slice_without_signal_stays_empty():
    kspace = np.zeros((4, 64, 40), dtype=np.complex64)
    for method in classical.METHODS:
        image = classical.reconstruct_slice(kspace, None, (32, 32), method, 0.01)
        assert image.shape == (32, 32)
        assert not image.any()


def test_volumes_narrow_ones_included_have_their_image_size(demo):
    challenge, _, val = demo
    assert {info.image_size for info in val} == {(48, 48), (40, 40)}
    for method in classical.METHODS:
        found = classical.reconstruct_volumes(
            val, challenge, method, MASK_OF, 0.003, num_iter=3, num_workers=0
        )
        assert list(found) == [info.name for info in val]
        for info in val:
            assert found[info.name].shape == (info.num_slices, *info.image_size)
            assert found[info.name].dtype == np.float32
    info = val[0]
    with h5py.File(info.path) as volume:
        kspace = volume["kspace"][1]
    alone = classical.reconstruct_slice(
        kspace, MASK_OF(info), info.image_size, "l1_wavelet", 0.003, 3
    )
    np.testing.assert_array_equal(found[info.name][1], alone)


@pytest.mark.slow
def test_processes_change_nothing_but_the_time(demo, monkeypatch):
    challenge, _, val = demo
    if challenge == "multicoil":
        pytest.skip("one start of the processes is enough")
    monkeypatch.setattr(classical, "POOL_START_SECONDS", 0.0)
    seen = []

    def track(items, description, total):
        for item in items:
            seen.append(total)
            yield item

    pooled, alone = (
        classical.reconstruct_volumes(
            val, challenge, "tv", MASK_OF, 0.003, num_iter=5, num_workers=n, track=track
        )
        for n in (2, 0)
    )
    for name, volume in alone.items():
        np.testing.assert_allclose(pooled[name], volume, rtol=0, atol=1e-5 * volume.max())
    total = sum(info.num_slices for info in val)
    assert seen == [total] * (2 * total)


def test_the_weight_is_the_best_of_the_candidates_and_drawn_by_the_seed_alone(demo):
    challenge, train, _ = demo
    candidates = (1e-6, 3e-3, 3.0)
    options = {"num_slices": 2, "num_workers": 0, "num_iter": 30}
    weight, scores = classical.choose_weight(train, challenge, "tv", MASK_OF, candidates, **options)
    assert set(scores) == set(candidates)
    assert scores[weight] == max(scores.values())
    assert scores[3.0] < scores[weight]
    again = classical.choose_weight(train, challenge, "tv", MASK_OF, candidates[::-1], **options)
    assert again == (weight, scores)


def test_slices_to_choose_on_come_from_the_middle_of_different_volumes(demo):
    _, train, _ = demo
    long = [dataclasses.replace(info, kspace_shape=(20, 96, 64)) for info in train]
    chosen = classical._middle_slices(long, 3, seed=0)
    assert len({info.name for info, _ in chosen}) == 3
    assert all(5 <= index < 15 for _, index in classical._middle_slices(long, 100, seed=0))
    assert len(set(classical._middle_slices(long, 100, seed=0))) == 30


def test_errors_say_what_and_where(demo, tmp_path):
    challenge, train, val = demo
    with pytest.raises(InputError, match="zero_filled, tv, l1_wavelet"):
        classical.reconstruct_volumes(val, challenge, "ista", MASK_OF, 0.1)
    with pytest.raises(InputError, match="weight is None"):
        classical.reconstruct_volumes(val, challenge, "tv", MASK_OF)
    with pytest.raises(InputError, match="weight is -1"):
        classical.choose_weight(train, challenge, "tv", MASK_OF, (0.1, -1))
    with pytest.raises(InputError, match="given none"):
        classical.choose_weight([], challenge, "tv", MASK_OF)
    other = {"singlecoil": "multicoil", "multicoil": "singlecoil"}[challenge]
    with pytest.raises(InputError, match=f"which is not {other}"):
        classical.reconstruct_volumes(val, other, "tv", MASK_OF, 0.1)
    bad = tmp_path / val[0].name
    bad.write_bytes(val[0].path.read_bytes())
    with h5py.File(bad, "r+") as volume:
        slice_ = volume["kspace"][1]
        slice_[..., 0, 0] = np.nan
        volume["kspace"][1] = slice_
    with pytest.raises(InputError, match=rf"{bad.name}: slice 1: .*NaN"):
        classical.reconstruct_volumes(
            [dataclasses.replace(val[0], path=bad)], challenge, "tv", MASK_OF, 0.1, num_iter=1
        )
