"""A mixer unrolled over the measured k-space, for one coil or many: data consistency and window mixers in turn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastmri_plugin.espirit import centre_of, maps_of_batch
from img2img_recon.networks.base import Described, Example
from img2img_recon.networks.layers import TokenMixing
from img2img_recon.networks.window_mixer import WindowMixer
from img2img_recon.support.errors import InputError

DataConsistency = Literal["hard", "soft"]
Sensitivities = Literal["learned", "espirit", "none"]
Axes = tuple[int, ...]
# Conjugate gradients of the last fit; more changed nothing on validation slices.
REFINEMENTS = 5


class UnrolledMixer(Described):
    """Cascades that each subtract a mixer's output in image space and keep to the measured samples.

    As the end-to-end variational network (Sriram et al., MICCAI 2020, arXiv:2004.06688), with window mixers in
    the place of its U-Nets: k <- k - FS net(S*F* k), then data consistency on the measured columns. The image is
    complex, coils are combined by sensitivity maps, which a small mixer estimates from the fully sampled centre;
    with one coil the only map is 1. K-space is divided by one complex number first, which has the scale and the
    phase of the zero-filled image: the output does not depend on the scanner's units or its phase.

    Where every row of a column is measured or none, the transform along the rows commutes with the mask: it is done
    once, and the cascades transform along the phase encoding alone. Samples of any other pattern take both transforms.

    Args:
        cascades: K, number of cascades.
        patch_size: see `WindowMixer`, as the five that follow.
        window_size: side of a window in cells.
        embed_dims: channels at each level.
        depths: layers of each stage.
        mlp_ratio: hidden width of every MLP as a multiple of its input.
        token_mixing: "mlp" or "linear".
        partitions: how layers partition the volume, in turn.
        data_consistency: "hard" puts the measured samples back; "soft" subtracts a learned part of the
            difference, as the variational network does.
        sens: where sensitivity maps come from: "learned" estimates them with a mixer, "espirit" computes them
            (`fastmri_plugin.espirit`), both from the fully sampled centre; "none" is for one coil.
        sens_embed_dims: channels at each level of the mixer that estimates sensitivity maps.
        refine_weight: of several coils, how much the cascades' image weighs in a last least-squares fit to the
            samples (see `refined`); 0 leaves it out.

    Raises:
        InputError: sizes that do not fit together; in `forward`, several coils without maps.
    """

    def __init__(
        self,
        cascades: int = 4,
        patch_size: int = 2,
        window_size: int = 8,
        embed_dims: tuple[int, ...] = (32, 64, 128),
        depths: tuple[int, ...] = (2, 2, 4, 2, 2),
        mlp_ratio: int = 2,
        token_mixing: TokenMixing = "linear",
        partitions: tuple[str, ...] = ("windows", "grid"),
        data_consistency: DataConsistency = "hard",
        sens: Sensitivities = "learned",
        sens_embed_dims: tuple[int, ...] = (24, 48),
        refine_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if cascades < 1:
            raise InputError(f"cascades is {cascades}; it must be at least 1")
        if refine_weight < 0:
            raise InputError(f"refine_weight is {refine_weight:g}; it must be 0 or more")
        self.refine_weight = refine_weight
        self.cascades = nn.ModuleList(
            Cascade(
                WindowMixer(
                    2,
                    2,
                    patch_size,
                    window_size,
                    embed_dims,
                    depths,
                    mlp_ratio,
                    token_mixing,
                    partitions=partitions,
                    border="circular",
                ),
                data_consistency,
            )
            for _ in range(cascades)
        )
        self.sens = sens
        self.sens_net = SensitivityMixer(sens_embed_dims) if sens == "learned" else None
        for mixer in self.mixers():
            # A new network reconstructs as zero-filling does, with maps straight from the centre.
            nn.init.zeros_(mixer.output.weight)
            nn.init.zeros_(mixer.output.bias)

    def forward(
        self,
        masked_kspace: Tensor,
        mask: Tensor,
        num_low_frequencies: int | None = None,
        sens_maps: Tensor | None = None,
    ) -> Tensor:
        """Reconstruct the magnitude, root-sum-of-squares over the coils.

        Args as `coil_images`; returns real (B, H, W), in the units of the k-space.
        """
        coils = self.coil_images(masked_kspace, mask, num_low_frequencies, sens_maps)
        return coils.abs()[:, 0] if coils.shape[1] == 1 else coils.abs().square().sum(1).sqrt()

    def coil_images(
        self,
        masked_kspace: Tensor,
        mask: Tensor,
        num_low_frequencies: int | None = None,
        sens_maps: Tensor | None = None,
    ) -> Tensor:
        """Reconstruct the complex image of every coil.

        Args:
            masked_kspace: complex (B, coils, H, W), centred as fastMRI's, zero where nothing was measured.
            mask: bool (B, 1, 1, W), the measured columns, or (B, 1, H, W), the samples; B may be 1.
            num_low_frequencies: width of the fully sampled centre; None finds it in the mask.
            sens_maps: complex (B, coils, H, W), from elsewhere; None estimates them.

        Returns:
            complex (B, coils, H, W), in the units of the k-space.
        """
        axes = (-1,) if mask.shape[-2] == 1 else (-2, -1)
        kspace = torch.fft.ifftshift(masked_kspace, (-2, -1))
        sampled = torch.fft.ifftshift(mask, axes)
        # From here on in the transform's own order; rows are image already where whole columns were measured.
        measured = kspace if len(axes) == 2 else torch.fft.ifft(kspace, dim=-2, norm="ortho")
        unit = complex_unit(to_image(measured, axes))
        measured = measured / unit
        if masked_kspace.shape[1] == 1:
            maps = torch.ones_like(measured[:, :1, :1, :1])
        elif sens_maps is not None:
            maps = torch.fft.ifftshift(sens_maps, (-2, -1))
        elif self.sens == "none":
            raise InputError(
                f"k-space of {masked_kspace.shape[1]} coils needs sensitivity maps, which this network "
                "does not estimate"
            )
        else:
            centre = centre_of(sampled, num_low_frequencies)
            if self.sens_net is not None:
                maps = self.sens_net(measured, centre, axes)
            else:
                maps = torch.fft.ifftshift(maps_of_batch(masked_kspace / unit, centre), (-2, -1))
        estimate = measured
        for cascade in self.cascades:
            estimate = cascade(estimate, measured, sampled, maps, axes)
        if self.refine_weight and masked_kspace.shape[1] > 1:
            estimate = refined(estimate, measured, sampled, maps, axes, self.refine_weight)
        return torch.fft.fftshift(to_image(estimate, axes) * unit, (-2, -1))

    def example(self, img_size: tuple[int, int] | None = None) -> dict[str, Example]:
        """See `Described.example`; four coils stand for any number, where the network takes several.

        ESPIRiT is not for exporters: in its place such a network is given maps.
        """
        height, width = img_size or (53, 45)
        coils = 1 if self.sens == "none" else 4
        axes = {0: "batch", 2: "height", 3: "width"} | ({} if coils == 1 else {1: "coils"})
        kspace = torch.randn(2, coils, height, width, dtype=torch.complex64)
        mask = torch.rand(1, 1, 1, width) < 0.5
        inputs = {"masked_kspace": (kspace, axes), "mask": (mask, {3: "width"})}
        if self.sens == "espirit":
            inputs["sens_maps"] = (torch.ones_like(kspace) / coils**0.5, axes)
        return inputs

    def compile(self, *args: Any, **options: Any) -> None:
        """Compile the mixers in place; the complex numbers around them are not for `torch.compile`."""
        for mixer in self.mixers():
            mixer.compile(*args, **options)

    def mixers(self) -> Iterator[WindowMixer]:
        """All mixers: the cascades' and that of the sensitivity maps."""
        return (module for module in self.modules() if isinstance(module, WindowMixer))


class Cascade(nn.Module):
    """One step: subtract the regulariser's output, then keep to the measured samples.

    With "soft" it is fastMRI's `VarNetBlock`: k - weight * mask * (k - measured) - FS net(S*F* k).

    Args:
        regulariser: maps (B, 2, H, W), real and imaginary part, to the same.
        data_consistency: "hard" or "soft".
    """

    def __init__(self, regulariser: nn.Module, data_consistency: DataConsistency) -> None:
        super().__init__()
        if data_consistency not in ("hard", "soft"):
            raise InputError(f"data_consistency is {data_consistency!r}; it is 'hard' or 'soft'")
        self.regulariser = regulariser
        self.dc_weight = nn.Parameter(torch.ones(1)) if data_consistency == "soft" else None

    def forward(
        self, kspace: Tensor, measured: Tensor, mask: Tensor, maps: Tensor, axes: Axes = (-1,)
    ) -> Tensor:
        """Map k-space (B, coils, H, W), still to be transformed along `axes`, to the next estimate of it."""
        image = (to_image(kspace, axes) * maps.conj()).sum(1)
        residual = mixed(self.regulariser, image)
        update = kspace - to_kspace(residual[:, None] * maps, axes)
        if self.dc_weight is None:
            return torch.where(mask, measured, update)
        return update - self.dc_weight * torch.where(mask, kspace - measured, 0)


def refined(
    kspace: Tensor, measured: Tensor, mask: Tensor, maps: Tensor, axes: Axes, weight: float
) -> Tensor:
    """K-space of the image x that minimises |M F S x - y|^2 + weight |x - S* F* k|^2, the samples put back.

    Cascades step once each towards what coils know of each other; a few conjugate gradients go the rest of the way, as
    MoDL (Aggarwal et al., IEEE TMI 2019, arXiv:1712.02862) does in every one of its steps.

    Args:
        kspace: k, the cascades' estimate (B, coils, H, W), still to be transformed along `axes`.
        measured: y, likewise, zero outside the mask.
        mask: M.
        maps: S, (B, coils, H, W), of unit root-sum-of-squares.
        axes: see `Cascade`.
        weight: of the estimate; the operator's norm is 1.
    """

    def combined(k: Tensor) -> Tensor:
        return (to_image(k, axes) * maps.conj()).sum(1)

    def normal(x: Tensor) -> Tensor:
        return combined(mask * to_kspace(x[:, None] * maps, axes)) + weight * x

    def product(a: Tensor, b: Tensor) -> Tensor:
        # Real for these. Where nothing is left to fit it is 0, and the steps are to be finite.
        whole = (a.conj() * b).real.sum((-2, -1), keepdim=True)
        return whole.clamp_min(torch.finfo(whole.dtype).tiny)

    image = combined(kspace)
    rest = combined(measured) + weight * image - normal(image)
    direction, size = rest, product(rest, rest)
    for _ in range(REFINEMENTS):
        along = normal(direction)
        step = size / product(direction, along)
        image, rest = image + step * direction, rest - step * along
        size, before = product(rest, rest), size
        direction = rest + size / before * direction
    return torch.where(mask, measured, to_kspace(image[:, None] * maps, axes))


class SensitivityMixer(nn.Module):
    """Sensitivity maps of all coils from the fully sampled centre; their squares sum to one over the coils.

    The images of the centre are the first guess, a mixer that sees one coil at a time subtracts from it.

    Args:
        embed_dims: channels at each level.
    """

    def __init__(self, embed_dims: tuple[int, ...]) -> None:
        super().__init__()
        depths = (1,) * (2 * len(embed_dims) - 1)
        self.mixer = WindowMixer(2, 2, 4, 8, embed_dims, depths, border="circular")

    def forward(self, kspace: Tensor, centre: Tensor, axes: Axes = (-1,)) -> Tensor:
        """Map k-space (B, coils, H, W), still to be transformed along `axes`, and its centre to maps of that shape."""
        image = to_image(kspace * centre, axes)
        coil = image.flatten(0, 1)
        guess = (coil - mixed(self.mixer, coil)).view_as(image)
        energy = guess.abs().square().sum(1, keepdim=True)
        return guess / energy.clamp_min(torch.finfo(energy.dtype).tiny).sqrt()


def mixed(network: nn.Module, image: Tensor) -> Tensor:
    """Send complex images (B, H, W), in the transform's own order, through a network of two channels."""
    channels = torch.view_as_real(torch.fft.fftshift(image, (-2, -1))).permute(0, 3, 1, 2)
    kind = next((weight.dtype for weight in network.parameters()), channels.dtype)
    output = network(channels.to(kind)).to(channels.dtype).permute(0, 2, 3, 1).contiguous()
    return torch.fft.ifftshift(torch.view_as_complex(output), (-2, -1))


def to_image(kspace: Tensor, axes: Axes = (-1,)) -> Tensor:
    """K-space to images, along the axes that are not image yet."""
    return torch.fft.ifftn(kspace, dim=axes, norm="ortho")


def to_kspace(image: Tensor, axes: Axes = (-1,)) -> Tensor:
    """Images to k-space along these axes."""
    return torch.fft.fftn(image, dim=axes, norm="ortho")


def complex_unit(image: Tensor) -> Tensor:
    """One complex number per slice, (B, 1, 1, 1): deviation of the magnitudes and mean phase of (B, coils, H, W)."""
    magnitude = image.abs()
    scale = magnitude.square().sum(1).sqrt().flatten(1).std(1)
    phase = (image * magnitude).flatten(1).sum(1)
    size = phase.abs()
    turn = torch.where(size > 0, phase / torch.where(size > 0, size, 1), 1)
    return (torch.where(scale > 0, scale, 1) * turn).view(-1, 1, 1, 1)
