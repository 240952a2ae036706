"""Our models in deepinv itself, in an environment of its own, which takes 6 GB and minutes to make.

IMG2IMG_EXTERNAL=1 python -m pytest tests/external/test_deepinv.py
"""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from img2img_recon.support.errors import InputError
from tests.external.environments import TORCHVISION, environment, only_if_asked, run_tests

# Beside a pair of torch and torchvision.
BARE = ("deepinv==0.5.0", "einops==0.8.2", "natsort==8.4.0")
HERE = importlib.util.find_spec("deepinv") is not None

pytestmark = only_if_asked
inside = pytest.mark.skipif(not HERE, reason="runs in the environment that the first test makes")

if HERE:
    import deepinv as dinv
    from deepinv.models import MoDL, VarNet
    from deepinv.optim import DPIR
    from deepinv.physics import MRI, GaussianNoise, Inpainting, MultiCoilMRI
    from deepinv.physics.generator import RandomMaskGenerator

    from img2img_recon.deepinv import Denoiser, MixerBackbone, Reconstructor
    from tests.benchmarks.deepinv_plug_and_play import first_guess, operators, total_variation


@pytest.mark.skipif(HERE, reason="already in it")
@pytest.mark.timeout(3600)
def test_in_an_environment_with_deepinv():
    run_tests(environment(BARE[0], TORCHVISION, ("--no-deps", *BARE)), __file__)


def picture(side: int = 96) -> Tensor:
    from skimage.data import astronaut

    crop = np.ascontiguousarray(astronaut()[20 : 20 + side, 180 : 180 + side])
    return torch.from_numpy(crop).permute(2, 0, 1)[None].float() / 255


def brain(batch: int = 1, side: int = 64, seed: int = 0) -> Tensor:
    """Smooth complex blobs, (B, 2, side, side), of a scanner's small units."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.randn(batch, 2, 8, 8, generator=generator)
    return 1e-6 * nn.functional.interpolate(low, (side, side), mode="bicubic")


def random_masks(batch: int, side: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return RandomMaskGenerator((2, side, side), acceleration=4, rng=generator).step(batch)["mask"]


def to_numpy(y: Tensor) -> np.ndarray:
    """(B, 2, [coils,] H, W) as complex (B, coils, H, W)."""
    kspace = torch.complex(y[:, 0], y[:, 1]).numpy()
    return kspace if kspace.ndim == 4 else kspace[:, None]


def difference(a: Tensor, b: Tensor) -> float:
    return float(((a - b).abs().max() / b.abs().max()).detach())


def psnr(a: Tensor, b: Tensor) -> float:
    return float(dinv.metric.PSNR()(a.clamp(0, 1), b).mean())


@inside
@pytest.mark.parametrize("name", ["denoise-color", "denoise-grey"])
def test_a_denoiser_is_the_loaded_network(name):
    from img2img_recon import load

    noisy = torch.cat([picture(), picture().flip(3)])[:, : 1 if name == "denoise-grey" else 3]
    noisy = noisy + 0.1 * torch.randn(noisy.shape, generator=torch.Generator().manual_seed(0))
    denoiser, network = Denoiser(name), load(name)
    with torch.no_grad():
        each = denoiser(noisy, torch.tensor([0.05, 0.2]))
        for number, sigma in enumerate((0.05, 0.2)):
            alone = denoiser(noisy[number : number + 1], sigma)
            assert difference(each[number : number + 1], alone) < 1e-5
            if name == "denoise-color":
                assert difference(alone, network(noisy[number : number + 1], sigma)) < 1e-6
        assert psnr(denoiser(noisy, None)[:1], picture()[:, : noisy.shape[1]]) > 26
    x = noisy[:1].clone().requires_grad_()
    denoiser(x, 0.1).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    with pytest.raises(InputError, match="25 / 255"):
        denoiser(noisy, 25.0)


@inside
def test_networks_of_another_kind_are_refused():
    with pytest.raises(InputError, match="does not denoise"):
        Denoiser("mri-brain-singlecoil")
    with pytest.raises(InputError, match="task"):
        Reconstructor("denoise-color")
    with pytest.raises(InputError, match="UNet: allowed"):
        Reconstructor(dinv.models.UNet(2, 2, scales=2))


@inside
@pytest.mark.parametrize("task", ["deblurring", "inpainting"])
def test_plug_and_play_is_ahead_of_the_input_and_of_total_variation(task):
    clean, noise = picture(), GaussianNoise(0.02, rng=torch.Generator().manual_seed(0))
    physics = operators((3, 96, 96), noise)[task]
    y = physics(clean)
    start = first_guess(y, physics)
    with torch.no_grad():
        ours = psnr(DPIR(0.02, denoiser=Denoiser())(y, physics, init=start), clean)
        # The regularization that suits this very picture best.
        smooth = max(
            psnr(total_variation(y, start, physics, weight), clean) for weight in (2e-3, 4e-3)
        )
    assert smooth > psnr(start, clean) + 0.7
    assert ours > smooth + 0.4


@inside
def test_single_coil_reconstruction_is_that_of_the_plugin_for_every_mask_of_a_batch():
    from fastmri_plugin import reconstruct

    masks = random_masks(2)
    assert not torch.equal(masks[0], masks[1])
    physics = MRI(masks)
    y = physics(brain(2))
    with torch.no_grad():
        image = Reconstructor("mri-brain-singlecoil")(y, physics)
        whole = Reconstructor("mri-brain-singlecoil", complex_output=True)(y, physics)
    assert image.shape == (2, 1, 64, 64)
    for number, kspace in enumerate(to_numpy(y)):
        columns = masks[number, 0, 0].bool().numpy()
        expected = reconstruct(kspace, columns, model="mri-brain-singlecoil")
        assert difference(image[number, 0], torch.from_numpy(expected)) < 1e-5
    assert difference(physics.rss(whole, multicoil=False), image) < 1e-5
    assert difference(physics(whole), y) < 1e-5  # hard data consistency, by deepinv's own operator


@inside
@pytest.mark.parametrize("kind", ["columns", "rows", "samples"])
def test_multi_coil_reconstruction_is_that_of_the_plugin(kind):
    from fastmri_plugin import reconstruct

    mask = random_masks(1)
    rows = mask.transpose(2, 3)
    mask = {"columns": mask, "rows": rows, "samples": mask * rows}[kind]
    physics = MultiCoilMRI(mask, coil_maps=4, img_size=(64, 64))
    y = physics(brain())
    with torch.no_grad():
        image = Reconstructor()(y, physics)
        of_maps = Reconstructor("mri-brain-singlecoil")(y, physics)  # estimates none
    measured = physics.mask[0, 0].bool().numpy()
    measured = measured[0] if kind == "columns" else measured
    expected = reconstruct(to_numpy(y)[0], measured, model="mri-brain-multicoil")
    assert difference(image[0, 0], torch.from_numpy(expected)) < 1e-5
    assert difference(of_maps, image) > 1e-4


@inside
def test_maps_of_any_scale_and_all_samples_give_the_complex_image_itself():
    physics = MultiCoilMRI(torch.ones(64, 64), coil_maps=4, img_size=(64, 64))
    physics.update(coil_maps=3 * physics.coil_maps)
    x = brain()
    with torch.no_grad():
        for name in ("mri-brain-multicoil", "mri-brain-singlecoil"):
            model = Reconstructor(name, complex_output=True)
            assert difference(model(physics(x), physics), x) < 1e-5


@inside
def test_over_sampled_kspace_is_cropped_as_by_the_plugin():
    from fastmri_plugin.trained import TrainedNetwork

    physics = MRI(random_masks(1, 96))
    y = physics(brain(1, 96))
    with torch.no_grad():
        image = Reconstructor("mri-brain-singlecoil", img_size=(48, 80))(y, physics)
    network = TrainedNetwork("mri-brain-singlecoil")
    expected = network.image(to_numpy(y)[0], physics.mask[0, 0, 0].bool().numpy(), (48, 80))
    assert difference(image[0, 0], torch.from_numpy(expected)) < 1e-5


@inside
def test_an_image_network_is_fed_the_zero_filled_magnitude():
    from img2img_recon import AnySize, Normalized, build_model

    torch.manual_seed(0)
    network = Normalized(
        AnySize(build_model("img2img_mixer", img_size=32, in_chans=1, out_chans=1))
    )
    physics = MultiCoilMRI(random_masks(1), coil_maps=4, img_size=(64, 64))
    y = physics(brain())
    with torch.no_grad():
        expected = network(physics.A_adjoint(y, rss=True)).clamp_min(0)
        assert difference(Reconstructor(network.eval())(y, physics), expected) < 1e-5


@inside
def test_what_cannot_be_reconstructed_is_one_line():
    model = Reconstructor("mri-brain-singlecoil")
    physics, y = MRI(random_masks(1)), torch.zeros(1, 2, 64, 64)
    with pytest.raises(InputError, match="allowed: MRI, MultiCoilMRI"):
        model(y, Inpainting((2, 64, 64), 0.5))
    with pytest.raises(InputError, match="as the mask"):
        model(y[..., :60], physics)
    with pytest.raises(InputError, match="up to 64 x 64"):
        Reconstructor("mri-brain-singlecoil", img_size=(65, 64))(y, physics)
    several = MultiCoilMRI(random_masks(1), img_size=(64, 64))  # of which no maps are known
    with pytest.raises(InputError, match="coil_maps: of 1 coils, y has 4"):
        Reconstructor(complex_output=True)(torch.zeros(1, 2, 4, 64, 64), several)


KINDS = ("varnet", "e2e", "modl", "removal")
SMALL = {"embed_dims": (8, 16), "depths": (1, 1, 1)}


def unfolded() -> dict[str, nn.Module]:
    return {
        "varnet": VarNet(MixerBackbone(residual=False, **SMALL), num_cascades=2),
        "e2e": VarNet(MixerBackbone(residual=False, **SMALL), num_cascades=2, mode="e2e-varnet"),
        "modl": MoDL(MixerBackbone(**SMALL), num_iter=2),
        "removal": dinv.models.ArtifactRemoval(MixerBackbone(**SMALL)),
    }


@inside
# On coils deepinv's MoDL solves by conjugate gradients with an absolute tolerance, which knows units.
@pytest.mark.parametrize(
    ("kind", "coils"),
    [(kind, coils) for kind in KINDS for coils in (1, 3) if (kind, coils) != ("modl", 3)],
)
def test_unfolded_networks_learn_with_the_mixer_and_do_not_know_units(kind, coils):
    torch.manual_seed(0)
    model = unfolded()[kind]
    mask = random_masks(1)
    physics = MRI(mask) if coils == 1 else MultiCoilMRI(mask, coil_maps=coils, img_size=(64, 64))
    x = 1e6 * brain()
    y = physics(x)
    if coils == 1:  # a new one gives the zero-filled image
        assert difference(model(y, physics), physics.A_adjoint(y)) < 1e-5
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (model(y, physics) - x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    with torch.no_grad():
        assert difference(model(1e-6 * y, physics), 1e-6 * model(y, physics)) < 1e-3
