"""Scores through piq and torchvision, in an environment of their own, which takes 6 GB and minutes to make.

IMG2IMG_EXTERNAL=1 python -m pytest tests/external/test_metrics.py
"""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from skimage.data import astronaut

from img2img_recon.perceptual_metrics import make_scores
from img2img_recon.support.errors import InputError
from tests.external.environments import TORCHVISION, environment, only_if_asked, run_tests

# Beside a pair of torch and torchvision.
BARE = ("piq==0.8.0",)
HERE = importlib.util.find_spec("piq") is not None

pytestmark = only_if_asked
inside = pytest.mark.skipif(not HERE, reason="runs in the environment that the first test makes")

CLEAN = astronaut()[60:188, 160:288].astype(np.float32) / 255


def noisy(sigma: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, sigma / 255, CLEAN.shape)
    return (CLEAN + noise).clip(0, 1).astype(np.float32)


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.tensor(image).permute(2, 0, 1)[None]


def at_levels(name: str) -> list[float]:
    score = make_scores((name,))[name]
    return [score(CLEAN[None], noisy(sigma)[None]) for sigma in (0, 5, 15, 50)]


@pytest.mark.skipif(HERE, reason="already in it")
def test_in_an_environment_with_them():
    run_tests(environment(BARE[0], TORCHVISION, ("--no-deps", *BARE)), __file__)


@inside
@pytest.mark.parametrize("name", ["haarpsi", "vif"])
def test_similarities_are_piqs_and_fall_with_the_noise(name):
    import piq

    found = at_levels(name)
    assert found == sorted(found, reverse=True)
    assert found[0] == pytest.approx(1, abs=1e-3)
    direct = {"haarpsi": piq.haarpsi, "vif": piq.vif_p}[name]
    per_channel = [slice(c, c + 1) for c in range(3)] if name == "vif" else [slice(None)]
    values = [float(direct(tensor(noisy(15))[:, c], tensor(CLEAN)[:, c])) for c in per_channel]
    assert found[2] == pytest.approx(np.mean(values), rel=1e-3)


@inside
def test_distances_of_vggs_features_rise_with_the_noise(tmp_path, monkeypatch):
    from torchmetrics.functional import image as direct
    from torchvision.models import vgg16

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"^--metrics: lpips needs the weights .*vgg16-397923af"):
        make_scores(("lpips",))
    # Not the trained features, which only a download brings; the arithmetic around them is the same.
    torch.manual_seed(0)
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    torch.save(vgg16(weights=None).state_dict(), tmp_path / "hub/checkpoints/vgg16-397923af.pth")
    images = (tensor(noisy(15)), tensor(CLEAN))
    for name, wanted in (
        (
            "lpips",
            lambda: direct.learned_perceptual_image_patch_similarity(
                *images, net_type="vgg", normalize=True
            ),
        ),
        ("dists", lambda: direct.deep_image_structure_and_texture_similarity(*images)),
    ):
        found = at_levels(name)
        assert found == sorted(found)
        assert found[0] == pytest.approx(0, abs=1e-5)
        assert found[2] == pytest.approx(float(wanted()), rel=1e-4)
        grey = make_scores((name,))[name](CLEAN[None, ..., :1], noisy(15)[None, ..., :1])
        assert 0 < grey < 1
