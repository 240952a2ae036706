"""Scores that papers report beside PSNR and SSIM: by name, through torchmetrics and piq, which a name imports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from img2img_recon.support.errors import InputError, reason

Name = Literal["psnr", "ssim", "vif", "haarpsi", "lpips", "dists"]
Score = Callable[[Any, Any], float]


@dataclass(frozen=True)
class Metric:
    """How a score is made and named.

    Attributes:
        label: heading of its column.
        setting: what a reader has to know to compare.
        make: gives the function of estimate and clean images, tensors (1, C, H, W) in [0, 1]; it imports what
            the score needs, and raises InputError where weights are missing.
        package: that a person installs.
    """

    label: str
    setting: str
    make: Callable[[], Callable[[Any, Any], Any]]
    package: str


def _vif() -> Callable[[Any, Any], Any]:
    from torchmetrics.functional.image import visual_information_fidelity

    # Its noise, of variance 2, is meant for 255 grey levels.
    return lambda estimate, clean: visual_information_fidelity(255 * estimate, 255 * clean)


def _haarpsi() -> Callable[[Any, Any], Any]:
    from piq import haarpsi

    return haarpsi


def _of_vgg(name: str, **options: Any) -> Callable[[Any, Any], Any]:
    """A distance of VGG's features, which torchvision keeps in torch's folder of downloads."""
    import torch
    import torchmetrics.image
    from torchvision.models import VGG16_Weights

    weights = Path(torch.hub.get_dir()) / "checkpoints" / Path(VGG16_Weights.DEFAULT.url).name
    if not weights.is_file():
        raise InputError(
            f'needs the weights {weights}; python -c "import torchvision; '
            "torchvision.models.vgg16(weights='DEFAULT')\" downloads them (528 MB)"
        )
    metric = getattr(torchmetrics.image, name)(**options).eval()
    lock = Lock()  # a metric of torchmetrics keeps sums, and volumes are scored in threads

    def score(estimate: Any, clean: Any) -> Any:
        with lock:
            return metric(*(image.expand(-1, 3, -1, -1) for image in (estimate, clean)))

    return score


METRICS: dict[str, Metric] = {
    "vif": Metric(
        "VIF",
        "pixel domain, mean over channels, torchmetrics; more is better",
        _vif,
        "torchmetrics",
    ),
    "haarpsi": Metric("HaarPSI", "piq; more is better", _haarpsi, "piq"),
    "lpips": Metric(
        "LPIPS",
        "VGG, torchmetrics; less is better",
        lambda: _of_vgg("LearnedPerceptualImagePatchSimilarity", net_type="vgg", normalize=True),
        "torchvision",
    ),
    "dists": Metric(
        "DISTS",
        "torchmetrics; less is better",
        lambda: _of_vgg("DeepImageStructureAndTextureSimilarity"),
        "torchvision",
    ),
}
LABELS = {"psnr": "PSNR (dB)", "ssim": "SSIM"} | {name: one.label for name, one in METRICS.items()}


def make_scores(names: Sequence[str]) -> dict[str, Score]:
    """Functions of clean and estimated images, (N, H, W, C) in [0, 1], that give the mean over N.

    Args:
        names: of `METRICS`; others, which are always scored, are passed over.

    Raises:
        InputError: a package or weights that are not here.
    """
    return {name: _score(name, METRICS[name]) for name in dict.fromkeys(names) if name in METRICS}


def settings(names: Sequence[str]) -> Mapping[str, str]:
    """What a reader has to know of these scores, by name."""
    return {name: METRICS[name].setting for name in names if name in METRICS}


def _score(name: str, metric: Metric) -> Score:
    try:
        function = metric.make()
    except ImportError as error:
        raise InputError(
            f"--metrics: {name} needs the package {metric.package} ({error}); pip install "
            f"{metric.package}, with a torchvision that fits the torch that is there"
        ) from None
    except InputError as error:
        raise InputError(f"--metrics: {name} {error}") from None

    def mean(clean: Any, estimate: Any) -> float:
        import torch

        def tensors(images: Any) -> Any:
            return torch.tensor(images, dtype=torch.float32).clamp(0, 1).permute(0, 3, 1, 2)

        pairs = zip(tensors(estimate).split(1), tensors(clean).split(1), strict=True)
        try:
            with torch.inference_mode():
                values = [float(function(*pair)) for pair in pairs]
        except ValueError as error:
            size = " x ".join(map(str, clean.shape[1:3]))
            raise InputError(f"--metrics: {name} of {size} pixels: {reason(error)}") from None
        return sum(values) / len(values)

    return mean
