"""A network in PyTorch and its exported files, in turns on one thread of a CPU: megapixels a second.

python -m tests.benchmarks.exported denoise-color --side 512
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from img2img_recon.support.cli import flag, parse_config, run_script


@dataclass(frozen=True)
class ExportedBenchmark:
    """Time a network and its ONNX and pt2 files on one square image."""

    source: str = flag(help="of `img2img_recon.load`", positional=True)
    side: int = flag(512, help="pixels along each side")
    repeats: int = flag(5, help="rounds")


def main(words: Sequence[str] | None = None) -> None:
    """Print parameters and, of each, megapixels a second with quartiles and its time over eager's."""
    config = parse_config(ExportedBenchmark, words)
    import onnxruntime
    import torch

    from img2img_recon import load
    from img2img_recon.export import export
    from tests.benchmarks.measurements import time_in_turns

    torch.set_num_threads(1)
    network, side = load(config.source), config.side
    one_thread = onnxruntime.SessionOptions()
    one_thread.intra_op_num_threads = 1
    inputs = [torch.rand(1, network.in_chans or 3, side, side), torch.full((1,), 0.1)]
    inputs = inputs[: 1 + bool(getattr(network, "noise_level_plane", False))]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        onnx, pt2 = Path(folder) / "net.onnx", Path(folder) / "net.pt2"
        export(network, onnx, "onnx")
        export(network, pt2, "pt2")
        session = onnxruntime.InferenceSession(onnx, one_thread)
        given = dict(zip(("image", "sigma"), (one.numpy() for one in inputs), strict=False))
        program = torch.export.load(pt2).module()
        tasks: dict[str, Callable[[], object]] = {
            "eager": lambda: network(*inputs),
            "onnxruntime": lambda: session.run(None, given),
            "pt2": lambda: program(*inputs),
        }
        timings = time_in_turns(tasks, torch.device("cpu"), config.repeats, 300)
    for name, timing in timings.items():
        rates = [side**2 / 1e3 / ms for ms in (timing.median_ms, timing.q3_ms, timing.q1_ms)]
        row = {"megapixels_per_second": [round(rate, 3) for rate in rates]}
        print(json.dumps({"what": name, **row, "time_over_eager": timing.over(timings["eager"])}))


if __name__ == "__main__":
    run_script(main)
