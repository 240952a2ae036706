"""Fits of the untrained study: curves against steps by hand, seeds, and what is stored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from denoise_tasks.untrained_fits import (
    Fit,
    first_input,
    first_network,
    fit_network,
    load_fit,
    save_fit,
)
from denoise_tasks.untrained_study import (
    NETWORKS,
    TARGETS,
    Targets,
    lr_of,
    make_targets,
    psnr_of,
    shown_iterations,
)
from img2img_recon.support.errors import InputError
from tests.denoise_tasks.test_untrained_study import FULL, TINY, picture


@pytest.mark.parametrize("model", NETWORKS)
@pytest.mark.parametrize("target", TARGETS)
def test_curves_begin_with_the_untrained_network_and_record_before_each_step(model, target):
    """The first steps, taken again by hand with another formulation of the loss."""
    targets = make_targets(picture(), TINY.sigma, TINY.seed)
    fit = fit_network(model, target, targets, replace(TINY, iterations=3))
    network = first_network(model, TINY).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=lr_of(model, TINY))
    wanted = {
        "image": targets.image,
        "noise": targets.noise,
        "noisy": targets.image + targets.noise,
    }
    # The third step follows a halving: three iterations have one after each.
    for iteration in range(2):
        optimizer.param_groups[0]["lr"] = lr_of(model, TINY) * 0.5**iteration
        output = network(first_input(model, TINY))[0, 0]
        loss = ((output - torch.from_numpy(wanted[target])) ** 2).mean()
        assert fit.mse_target[iteration] == pytest.approx(loss.item(), rel=1e-4)
        reference = targets.noise if target == "noise" else targets.image
        error = np.mean((output.detach().numpy() - reference) ** 2)
        assert fit.mse_reference[iteration] == pytest.approx(error, rel=1e-4)
        np.testing.assert_allclose(fit.shown[iteration], output.detach(), rtol=1e-3, atol=1e-4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("model", ["vit", "unet"])
def test_the_best_iterate_is_the_one_at_the_maximum_of_the_curve(model):
    targets = make_targets(picture(), 50, seed=0)
    settings = replace(TINY, iterations=25, lr=0.02)
    fit = fit_network(model, "noisy", targets, settings)
    psnr = [psnr_of(float(error)) for error in fit.mse_reference]
    assert fit.best_psnr == max(psnr)
    assert fit.best_iteration == int(np.argmax(psnr))
    error = np.mean((fit.best.astype(np.float64) - targets.image) ** 2)
    assert -10 * np.log10(error) == pytest.approx(fit.best_psnr, abs=1e-3)
    assert fit.shown.shape == (len(shown_iterations(25)), 32, 32)
    assert fit.mse_target[-1] < fit.mse_target[0]


def test_the_seed_decides_everything_and_leaves_the_global_state_alone():
    targets = make_targets(picture(), 50, seed=0)
    before = torch.random.get_rng_state()
    once = fit_network("vit", "noisy", targets, TINY)
    torch.rand(7)
    again = fit_network("vit", "noisy", targets, TINY)
    other = fit_network("vit", "noisy", targets, replace(TINY, seed=4))
    np.testing.assert_array_equal(once.mse_target, again.mse_target)
    np.testing.assert_array_equal(once.shown, again.shown)
    assert other.mse_target[0] != once.mse_target[0]
    torch.random.set_rng_state(before)
    first_network("vit", TINY)
    first_input("vit", TINY)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_inputs_are_uniform_in_the_published_ranges():
    for model, (low, high) in {"img2img_mixer": (0, 1), "vit": (-0.25, 0.25)}.items():
        values = first_input(model, FULL)
        assert values.shape == (1, 1, 256, 256)
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() < high


def test_a_stored_fit_comes_back(tmp_path):
    targets = make_targets(picture(), 50, seed=0)
    fit = fit_network("vit", "noise", targets, replace(TINY, iterations=2))
    path = tmp_path / "fits" / "vit-noise.npz"
    assert load_fit(path) is None
    save_fit(path, fit)
    back = load_fit(path)
    assert isinstance(back, Fit)
    for name, value in fit._asdict().items():
        np.testing.assert_array_equal(getattr(back, name), value)
    assert type(back.parameters) is int
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="not a fit of this study"):
        load_fit(path)


def test_a_fit_counts_as_fitted_where_its_curve_first_gets_there():
    curve = np.array([4, 2, 1, 3, 0.5], dtype=np.float32)
    fit = Fit(curve, curve, np.zeros((1, 2, 2)), np.zeros((2, 2)), 1, 0.0)
    assert fit.iterations_to(2) == 1
    assert fit.iterations_to(1.5) == 2
    assert fit.iterations_to(0.1) is None


def test_a_learning_rate_that_diverges_is_named():
    targets = make_targets(picture(), 50, seed=0)
    broken = make_targets(picture() * np.float32(np.inf), 50, seed=0)
    unusable = Targets(broken.image, targets.noise)
    said = r"--lr: with 0.5 the fit of vit to image diverged at iter"
    with pytest.raises(InputError, match=said):
        fit_network("vit", "image", unusable, replace(TINY, lr=0.5))
