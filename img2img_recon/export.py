"""Write a network for programs without this package: ONNX, a program of torch.export, or a folder for the hub.

python -m img2img_recon.export denoise-color --format onnx --out denoise-color.onnx
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from img2img_recon.support.cli import flag, parse_config, script
from img2img_recon.support.errors import InputError
from img2img_recon.support.types import PositiveInt

if TYPE_CHECKING:
    from torch import Tensor

    from img2img_recon.networks.base import Described, Example

# Largest difference between a file and its network, as a share of the largest value or of 1.
AGREE = 1e-5
# Lengths of free axes at which they are compared.
SIZES = (
    {"batch": 1, "height": 31, "width": 78, "coils": 3},
    {"batch": 3, "height": 64, "width": 45, "coils": 5},
)


@dataclass(frozen=True)
class ExportConfig:
    """Write a trained network for programs without this package."""

    source: str = flag(
        help="name of the package's, run folder, checkpoint or .safetensors file",
        positional=True,
        basic=True,
    )
    format: Literal["onnx", "pt2", "hub"] = flag(
        help="pt2 is for torch.export.load, hub a folder", basic=True
    )
    out: Path = flag(help="what is written", basic=True)
    img_size: tuple[PositiveInt, PositiveInt] | None = flag(
        None, help="height and width for a network that is exported for one size only", basic=True
    )

    def __post_init__(self) -> None:
        if self.format != "hub" and self.out.suffix != f".{self.format}":
            raise InputError(
                f"--out: given {self.out}; with --format {self.format} it ends in .{self.format}"
            )


def export(
    network: Described,
    path: Path,
    format: Literal["onnx", "pt2"],
    img_size: tuple[int, int] | None = None,
) -> str:
    """Write a network to a file, and compare what the file gives with PyTorch.

    Images go in as `image` (batch, channels, height, width), and the level of their noise, if the network takes it, as
    `sigma` (batch,); in ONNX `output` comes out. Any batch goes in, and any height and width of 2 or more into
    networks made for them; others have the size that they were made for, or `img_size`.

    Args:
        network: of images, or of k-space ("pt2" only).
        path: the file.
        format: "onnx", or "pt2" for `torch.export.load`.
        img_size: (height, width) where these cannot vary.

    Returns:
        What goes in and how well file and network agree, in words.

    Raises:
        InputError: a network that does not go into this format, a missing package, or a file that differs.
    """
    import torch

    from img2img_recon.support.files import atomic_path

    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if not find_spec(name)]
    if format == "onnx" and missing:
        raise InputError(
            f"--format onnx: needs {missing[0]}; pip install 'img2img-mlp-mixer[onnx]', or give pt2"
        )
    example = network.example(img_size)
    if format == "onnx" and any(tensor.is_complex() for tensor, _ in example.values()):
        raise InputError(
            "--format onnx: given a network of k-space; ONNX knows no complex numbers, allowed: pt2"
        )
    names = {name for _, axes in example.values() for name in axes.values()}
    dims = {name: torch.export.Dim(name) for name in sorted(names)}
    dynamic = {
        key: {axis: dims[name] for axis, name in axes.items()} for key, (_, axes) in example.items()
    }
    order = list(signature(network.forward).parameters)
    in_order = [name == place for name, place in zip(example, order, strict=False)]
    first = in_order.index(False) if False in in_order else len(example)

    def called(function: Callable[..., Any], given: Sequence[Tensor]) -> Any:
        return function(
            *given[:first], **dict(zip(list(example)[first:], given[first:], strict=True))
        )

    inputs = [tensor for tensor, _ in example.values()]
    with atomic_path(path) as temporary, torch.no_grad(), _quiet():
        program = torch.export.export(
            network.eval(),
            tuple(inputs[:first]),
            dict(zip(list(example)[first:], inputs[first:], strict=True)),
            dynamic_shapes=dynamic,
        )
        if format == "pt2":
            torch.export.save(program, temporary)
            run: Callable[..., Any] = torch.export.load(temporary).module()
        else:
            file = torch.onnx.export(program, dynamo=True, verbose=False, output_names=["output"])
            assert file is not None
            file.model.metadata_props["img2img_recon"] = json.dumps(dict(network.description or {}))
            file.save(temporary)
            run = _in_onnxruntime(temporary, list(example))
        worst = 0.0
        for size in SIZES:
            given = _other_inputs(example, size)
            expected = called(network, given)
            error = (torch.as_tensor(called(run, given)) - expected).abs().max()
            worst = max(worst, float(error / expected.abs().max().clamp_min(1)))
        if not worst <= AGREE:
            raise InputError(f"{path}: not written, it differs from the network by {worst:.1g}")
    shapes = (
        f"{key} ({', '.join(axes.get(axis, str(side)) for axis, side in enumerate(tensor.shape))})"
        for key, (tensor, axes) in example.items()
    )
    return f"{', '.join(shapes)}; differs from PyTorch by {worst:.1g} at most"


def _in_onnxruntime(path: Path, names: Sequence[str]) -> Callable[..., Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(*tensors: Tensor) -> Any:
        given = {name: one.numpy() for name, one in zip(names, tensors, strict=True)}
        return session.run(None, given)[0]

    return run


def _other_inputs(example: Mapping[str, Example], lengths: Mapping[str, int]) -> list[Tensor]:
    """Random inputs whose axes are as long as said where they may be."""
    import torch

    inputs = []
    for tensor, axes in example.values():
        shape = [lengths[axes[i]] if i in axes else side for i, side in enumerate(tensor.shape)]
        kind = torch.float32 if tensor.dtype == torch.bool else tensor.dtype
        values = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=kind)
        inputs.append(values < 0.5 if tensor.dtype == torch.bool else values)
    return inputs


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to themselves what exporters say of packages that this one does not use, and of their own future."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@script
def main(words: Sequence[str] | None = None) -> None:
    """Write what the command line says."""
    config = parse_config(ExportConfig, words)
    from img2img_recon.hub import from_pretrained, save_pretrained
    from img2img_recon.networks.base import Described
    from img2img_recon.training.run_folder import RunFolder

    network = from_pretrained(config.source)
    if not isinstance(network, Described):
        raise InputError(f"{config.source}: a network of another package, which is not exported")
    if config.format == "hub":
        scores = RunFolder(Path(config.source)).metrics() or {}
        mean = scores.get("mean", {}).get(scores.get("model"), {})
        save_pretrained(network, config.out, mean, scores.get("scored_on", ""))
        print(f"written: {config.out}")
    else:
        said = export(network, config.out, config.format, config.img_size)
        print(f"written: {config.out}: {said}")


if __name__ == "__main__":
    main()
