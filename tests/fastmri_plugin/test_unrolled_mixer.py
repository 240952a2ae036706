"""The unrolled mixer: its operators, data consistency, fastMRI's cascade as oracle, what must not matter."""

from __future__ import annotations

from copy import deepcopy

import fastmri
import pytest
import torch
from fastmri.models.varnet import NormUnet, SensitivityModel, VarNetBlock
from torch import Tensor, nn

from fastmri_plugin import unrolled_mixer
from fastmri_plugin.espirit import centre_of, maps_of_batch
from fastmri_plugin.unrolled_mixer import (
    Cascade,
    SensitivityMixer,
    UnrolledMixer,
    complex_unit,
    refined,
    to_image,
    to_kspace,
)
from img2img_recon.support.errors import InputError

SMALL = {"cascades": 2, "embed_dims": (8, 16), "depths": (2, 2, 2), "sens_embed_dims": (8,)}


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.complex64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def columns(width: int, centre: int = 6, every: int = 3) -> Tensor:
    """Every third column and a centre, bool (1, 1, 1, W)."""
    mask = torch.arange(width) % every == 0
    start = width // 2 - centre // 2
    mask[start : start + centre] = True
    return mask.view(1, 1, 1, -1)


def awake(network: nn.Module, scale: float = 0.1, seed: int = 0) -> nn.Module:
    """The network with random weights where new ones are zero, so that its mixers do something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            if not weight.any():
                weight.copy_(scale * torch.randn(weight.shape, generator=generator))
    return network


def unrolled(**options: object) -> UnrolledMixer:
    torch.manual_seed(0)
    return awake(UnrolledMixer(**{**SMALL, **options})).eval()


def shifted_fft(image: Tensor) -> Tensor:
    return torch.fft.fftshift(
        torch.fft.fft2(torch.fft.ifftshift(image, (-2, -1)), norm="ortho"), (-2, -1)
    )


def test_the_forward_operator_has_its_adjoint():
    """<y, M F S x> = <S* F* M y, x>, and the normal operator is its own adjoint."""
    maps, image = (
        noise(2, 3, 12, 10, dtype=torch.complex128),
        noise(2, 12, 10, seed=1).to(torch.complex128),
    )
    other, kspace = (
        noise(2, 12, 10, seed=3).to(image.dtype),
        noise(2, 3, 12, 10, seed=2).to(image.dtype),
    )
    mask = columns(10)

    def forward(x: Tensor) -> Tensor:
        return mask * to_kspace(x[:, None] * maps)

    def adjoint(y: Tensor) -> Tensor:
        return (to_image(mask * y) * maps.conj()).sum(1)

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a.conj() * b).sum()

    torch.testing.assert_close(dot(kspace, forward(image)), dot(adjoint(kspace), image))
    normal = [adjoint(forward(x)) for x in (image, other)]
    torch.testing.assert_close(dot(other, normal[0]), dot(normal[1], image))


@pytest.mark.parametrize("coils", [1, 4])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (30, 27)])
def test_everything_measured_is_kept(coils, height, width):
    """Hard data consistency and a full mask: the root-sum-of-squares, whatever the weights say."""
    kspace = noise(2, coils, height, width)
    with torch.no_grad():
        output = unrolled()(kspace, torch.ones(1, 1, 1, width, dtype=torch.bool))
    target = fastmri.rss(fastmri.ifft2c(torch.view_as_real(kspace)).norm(dim=-1), dim=1)
    torch.testing.assert_close(output, target, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("coils", [1, 3])
def test_a_new_network_fills_with_zeros(coils):
    """Before training its mixers subtract nothing."""
    mask = columns(24)
    kspace = noise(1, coils, 20, 24) * mask
    with torch.no_grad():
        output = UnrolledMixer(**SMALL)(kspace, mask)
    target = fastmri.rss(fastmri.ifft2c(torch.view_as_real(kspace)).norm(dim=-1), dim=1)
    torch.testing.assert_close(output, target, rtol=1e-4, atol=1e-5)


class AsChannels(nn.Module):
    """fastMRI's normalised U-Net, which takes (B, 1, H, W, 2), as a regulariser that takes (B, 2, H, W)."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, image: Tensor) -> Tensor:
        output = self.unet(image.permute(0, 2, 3, 1)[:, None].contiguous())
        return output[:, 0].permute(0, 3, 1, 2)


def test_the_cascade_is_fastmris_with_a_mixer_in_the_unets_place():
    torch.manual_seed(0)
    theirs = VarNetBlock(NormUnet(4, 2)).eval()
    nn.init.constant_(theirs.dc_weight, 0.7)
    ours = Cascade(AsChannels(deepcopy(theirs.model)), "soft").eval()
    nn.init.constant_(ours.dc_weight, 0.7)
    mask, maps = columns(36), noise(2, 3, 32, 36, seed=1)
    maps = maps / maps.abs().square().sum(1, keepdim=True).sqrt()
    estimate, measured = noise(2, 3, 32, 36, seed=2), noise(2, 3, 32, 36, seed=3) * mask

    def hybrid(kspace: Tensor) -> Tensor:
        return torch.fft.ifft(torch.fft.ifftshift(kspace, (-2, -1)), dim=-2, norm="ortho")

    with torch.no_grad():
        real = torch.view_as_real
        expected = theirs(real(estimate), real(measured), mask[..., None], real(maps))
        output = ours(
            hybrid(estimate),
            hybrid(measured),
            torch.fft.ifftshift(mask, -1),
            torch.fft.ifftshift(maps, (-2, -1)),
        )
    back = torch.fft.fftshift(torch.fft.fft(output, dim=-2, norm="ortho"), (-2, -1))
    scale = expected.abs().max()
    assert float((real(back) - expected).abs().max() / scale) < 1e-6


@pytest.mark.parametrize("width", [36, 37])
@pytest.mark.parametrize("low", [None, 4, 5])
def test_the_centre_is_fastmris(width, low):
    mask = columns(width, centre=7, every=5)
    pad, count = SensitivityModel(2, 1).get_pad_and_num_low_freqs(mask[..., None], low)
    expected = torch.zeros(width, dtype=torch.bool)
    expected[int(pad) : int(pad + count)] = True
    found = torch.fft.fftshift(centre_of(torch.fft.ifftshift(mask, -1), low), -1)
    assert torch.equal(found.flatten(), expected)


def test_maps_squares_sum_to_one():
    torch.manual_seed(0)
    network = awake(SensitivityMixer((8, 16)))
    with torch.no_grad():
        maps = network(noise(2, 5, 24, 20), torch.ones(2, 1, 1, 20, dtype=torch.bool))
    torch.testing.assert_close(maps.abs().square().sum(1), torch.ones(2, 24, 20))


def test_one_coil_is_single_coil():
    """Its only map is 1, so a network for many coils reconstructs it as one without maps does."""
    many, mask = unrolled(), columns(24)
    single = UnrolledMixer(**SMALL, sens="none").eval()
    single.load_state_dict({k: v for k, v in many.state_dict().items() if "sens_net" not in k})
    kspace = noise(2, 1, 20, 24) * mask
    with torch.no_grad():
        torch.testing.assert_close(many(kspace, mask), single(kspace, mask))
        given = many(kspace, mask, sens_maps=torch.ones_like(kspace))
        torch.testing.assert_close(many(kspace, mask), given)
    with pytest.raises(InputError, match="3 coils needs sensitivity maps"):
        single(noise(1, 3, 20, 24), mask)


@pytest.mark.parametrize("consistency", ["hard", "soft"])
@pytest.mark.parametrize("sens", ["learned", "espirit"])
def test_whole_columns_are_the_same_as_columns_and_as_samples(sens, consistency):
    """Two ways through the network: rows transformed once, or with the columns in every cascade."""
    network = unrolled(sens=sens, data_consistency=consistency)
    # As many rows as the centre is wide: of samples it is a square.
    mask = torch.cat([columns(30, centre=10), columns(30, centre=10, every=5)])
    kspace = noise(2, 3, 10, 30) * mask
    with torch.no_grad():
        torch.testing.assert_close(
            network(kspace, mask.expand(-1, 1, 10, -1)), network(kspace, mask), rtol=1e-3, atol=1e-4
        )


def test_the_centre_of_samples_is_the_largest_square_around_the_middle():
    mask = torch.zeros(2, 1, 30, 25, dtype=torch.bool)
    mask[0, :, 11:19, 8:17] = True  # 4 rows each way, 4 columns before the middle and 5 from it on
    mask[1, :, 15, 12] = True
    found = torch.fft.fftshift(centre_of(torch.fft.ifftshift(mask, (-2, -1))), (-2, -1))
    assert found[0, 0].nonzero().aminmax(dim=0).min.tolist() == [11, 9]  # as fastMRI's of odd width
    assert found[0].sum() == 64
    assert found[0, 0, 11:19, 9:17].all()
    assert found[1].sum() == 1


@pytest.mark.parametrize("width", [36, 37])
@pytest.mark.parametrize("rows", [1, 33])
def test_espirit_goes_by_what_was_measured(width, rows):
    mask = columns(width, centre=8, every=50).expand(1, 1, rows, -1).clone()
    mask[..., [0, -1]] = False
    mask[..., : (rows - 8) // 2, :], mask[..., rows - (rows - 8) // 2 :, :] = rows == 1, rows == 1
    kspace = noise(1, 3, 33, width)
    network = unrolled(sens="espirit")
    shifted = torch.fft.ifftshift(mask, (-2, -1) if rows > 1 else -1)
    maps = maps_of_batch(torch.where(mask, kspace, torch.nan), centre_of(shifted))
    assert maps.isfinite().all()
    assert network(kspace * mask, mask).isfinite().all()


@pytest.mark.parametrize("axes", [(-1,), (-2, -1)])
def test_the_last_fit_solves_its_least_squares(axes, monkeypatch):
    monkeypatch.setattr(unrolled_mixer, "REFINEMENTS", 60)
    shape, wide = (2, 3, 6, 5), {"dtype": torch.complex128}
    maps = noise(*shape, **wide)
    maps = maps / maps.abs().square().sum(1, keepdim=True).sqrt()
    mask = (
        torch.rand(2, 1, 1 if axes == (-1,) else 6, 5, generator=torch.Generator().manual_seed(0))
        < 0.5
    )
    kspace, measured = noise(*shape, seed=1, **wide), noise(*shape, seed=2, **wide) * mask
    found = refined(kspace, measured, mask, maps, axes, 0.1)
    assert torch.equal(torch.where(mask, found, 0), measured)
    estimate = (to_image(kspace, axes) * maps.conj()).sum(1)
    for one in range(2):
        # The operator's matrix, a column from each pixel's image.
        pixels = torch.eye(30, **wide).view(30, 1, 6, 5)
        operator = (mask[one] * to_kspace(pixels * maps[one], axes)).flatten(1).T
        left = operator.mH @ operator + 0.1 * torch.eye(30, **wide)
        right = operator.mH @ measured[one].flatten() + 0.1 * estimate[one].flatten()
        image = torch.linalg.solve(left, right).view(6, 5)
        expected = torch.where(mask[one], measured[one], to_kspace(image * maps[one], axes))
        torch.testing.assert_close(found[one], expected)


def test_the_last_fit_tells_coils_apart():
    """Maps that are right explain the samples; a new network with them is SENSE, regularised."""
    side = torch.linspace(-1, 1, 32)
    image = ((side[:, None] ** 2 + side**2) < 0.7) * (1 + noise(32, 32) / 4)
    places = [(-1, -1), (-1, 1), (1, -1), (1, 1)]
    coils = torch.stack(
        [torch.exp(-((side[:, None] - y) ** 2) - (side - x) ** 2) for y, x in places]
    )
    maps = (coils / coils.square().sum(0).sqrt()).to(torch.complex64)[None]
    mask = columns(32, centre=6, every=2)
    kspace = shifted_fft(maps * image) * mask
    errors = []
    for weight in (0.0, 1e-3):
        network = UnrolledMixer(**{**SMALL, "cascades": 1}, sens="espirit", refine_weight=weight)
        with torch.no_grad():
            errors.append(float((network(kspace, mask, sens_maps=maps) - image.abs()).norm()))
    assert errors[1] < 0.2 * errors[0]


def test_measured_samples_are_kept_and_full_sampling_gives_the_target():
    network = unrolled(sens="espirit")
    mask = torch.rand(1, 1, 28, 26, generator=torch.Generator().manual_seed(0)) < 0.4
    mask[..., 10:18, 9:17] = True
    whole = noise(1, 4, 28, 26)
    with torch.no_grad():
        output = shifted_fft(network.coil_images(whole * mask, mask))
        torch.testing.assert_close(output * mask, whole * mask, rtol=1e-3, atol=1e-4)
        assert (output * ~mask).abs().max() > 0.1
        full = network.coil_images(whole, torch.ones_like(mask))
    torch.testing.assert_close(shifted_fft(full), whole, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("coils", [1, 3])
@pytest.mark.parametrize("sens", ["learned", "espirit"])
@pytest.mark.parametrize("factor", [1e-9, 3e5, -1.0, 2.5 * torch.exp(torch.tensor(2j))])
def test_units_and_phase_do_not_matter(coils, sens, factor):
    network, mask = unrolled(sens=sens), columns(28)
    kspace = noise(1, coils, 24, 28) * mask
    with torch.no_grad():
        expected = network(kspace, mask)
        output = network(kspace * factor, mask) / abs(factor)
    torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-4 * float(expected.max()))


@pytest.mark.parametrize("coils", [1, 2])
def test_moving_the_object_by_whole_windows_moves_the_image(coils):
    """The border is circular, as the FFT's; a read-out of whole windows moves by any of them."""
    network, mask = unrolled(partitions=("windows",)), columns(64)
    stride = (
        8 * 2 * 2 * 2
    )  # the window, the patch, the second level; the maps' mixer has patches of 4
    object_ = noise(1, coils, 64, 64)
    kspace = [shifted_fft(object_.roll((rows, stride), (-2, -1))) * mask for rows in (0, stride)]
    with torch.no_grad():
        still, moved = (network(one, mask) for one in kspace)
        start = network(shifted_fft(object_) * mask, mask)
    torch.testing.assert_close(moved, still.roll(stride, -2), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(still, start.roll(stride, -1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("consistency", ["hard", "soft"])
@pytest.mark.parametrize("refine", [0.0, 0.1])
@pytest.mark.parametrize(("coils", "sens"), [(1, "none"), (3, "learned"), (3, "espirit")])
def test_every_parameter_learns(consistency, coils, sens, refine):
    network = unrolled(data_consistency=consistency, sens=sens, refine_weight=refine)
    mask = columns(36)
    kspace = noise(1, coils, 32, 36) * mask
    output = network(kspace, mask)
    (
        output * torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    ).sum().backward()
    without = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == (["cascades.0.dc_weight"] if consistency == "soft" else [])


def test_nothing_measured_gives_nothing():
    with torch.no_grad():
        output = unrolled()(noise(1, 2, 16, 20) * 0, torch.zeros(1, 1, 1, 20, dtype=torch.bool))
    assert output.isfinite().all()
    assert complex_unit(torch.zeros(1, 2, 4, 4, dtype=torch.complex64)) == 1


def test_masks_of_a_batch_may_differ():
    network, kspace = unrolled(), noise(2, 3, 24, 30)
    masks = torch.cat([columns(30), columns(30, centre=10, every=5)])
    kspace = kspace * masks
    with torch.no_grad():
        together = network(kspace, masks)
        alone = torch.cat([network(kspace[i : i + 1], masks[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float64])
def test_weights_of_another_precision(precision):
    mask = columns(24)
    kspace = noise(1, 2, 16, 24) * mask
    network = unrolled()
    with torch.no_grad():
        expected = network(kspace, mask)
        output = network.to(precision)(kspace, mask)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = unrolled()(kspace, mask)
    tolerance = 1e-4 if precision == torch.float64 else 5e-2
    for one in (output, mixed):
        assert one.dtype == torch.float32
    assert float((output - expected).abs().max() / expected.max()) < tolerance
    assert float((mixed - expected).abs().max() / expected.max()) < 5e-2


def test_compiling_is_for_the_mixers(monkeypatch):
    network, compiled = unrolled(), []
    monkeypatch.setattr(nn.Module, "compile", lambda module, *_: compiled.append(module))
    network.compile()
    assert compiled == list(network.mixers())
    assert len(compiled) == SMALL["cascades"] + 1


@pytest.mark.parametrize("coils", [1, 3])
def test_coil_images_hold_the_measured_samples_and_their_energy_is_the_output(coils):
    network, mask = unrolled(), columns(40)
    kspace = noise(1, coils, 24, 40) * mask
    with torch.no_grad():
        images = network.coil_images(kspace, mask)
        torch.testing.assert_close(shifted_fft(images) * mask, kspace, rtol=0, atol=1e-5)
        energy = images.abs().square().sum(1)
        torch.testing.assert_close(network(kspace, mask).square(), energy)
