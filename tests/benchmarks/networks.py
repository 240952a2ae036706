"""Speed and memory of every network, beside the machine's own matrix-multiply peak.

    python -m tests.benchmarks.networks --quick
    python -m tests.benchmarks.networks --json benchmark.json

The table goes to the standard output, progress to the standard error. Whatever is compared is timed in
turns (A B A B ...), a matrix product among it, so that a machine whose clock wanders slows all alike.
Needs torch alone; without `fastmri` the U-Net is left out with a notice.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from img2img_recon.networks.zoo import list_models
from img2img_recon.support.cli import run_script
from img2img_recon.support.errors import InputError
from tests.benchmarks.measurements import (
    DTYPES,
    TASKS,
    Machine,
    build,
    compare_with_naive,
    measure_network,
    peak_memory_mb,
    where_time_goes,
)

NETWORKS = (
    "img2img_mixer",
    "linear_mixer",
    "multires_mixer",
    "original_mixer",
    "vit",
    "dncnn",
    "unet",
)
MODES = ("eager", "compiled")

# Images a second at batch 1 and at the best batch on an RTX 6000: arXiv:2202.02018, table 2.
PUBLISHED_IMAGES_PER_S = {
    "img2img_mixer": (89, 98),
    "unet": (287, 524),
    "vit": (116, 690),
    "dncnn": (28, 30),
}


def run_benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Measure everything that the options ask for; progress goes to the standard error."""
    device = torch.device(options.device)
    machine = Machine(device)
    report: dict[str, Any] = {
        "machine": machine.describe() | {"copy_gb_per_s": machine.copy_gb_per_s()},
        "img_size": options.img_size,
        "repeats": options.repeats,
        "rows": [],
        "naive": [],
        "left_out": {},
        "where_time_goes": {},
    }
    for dtype in options.dtypes if "img2img_mixer" in options.models else ():
        _progress(f"img2img_mixer against its naive formulation, {dtype}")
        report["naive"].append(compare_with_naive(dtype, machine, options))
    if "img2img_mixer" in options.models:
        net = build("img2img_mixer", options.img_size).to(device)
        image = torch.rand(1, 3, options.img_size, options.img_size, device=device)
        for kind, make in TASKS.items():
            report["where_time_goes"][kind] = where_time_goes(make(net, image), device)
    for name in options.models:
        try:
            build(name, options.img_size)
        except ImportError as error:
            report["left_out"][name] = str(error)
            _progress(f"{name} left out: {error}")
            continue
        for dtype in options.dtypes:
            memory = (
                {"forward": None, "train_step": None}
                if options.quick
                else peak_memory_mb(name, dtype, device, options.img_size)
            )
            for mode in options.modes:
                _progress(f"{name}, {dtype}, {mode}")
                row = measure_network(name, dtype, mode, machine, options)
                # Measured in eager mode: compiling itself takes more memory than the network.
                row["peak_memory_mb"] = memory if mode == "eager" else None
                report["rows"].append(row)
    return report


def format_report(report: Mapping[str, Any]) -> str:
    """The report as plain text: the table, the yardstick, where the time goes."""
    machine = report["machine"]
    on_gpu = machine["device"] == "cuda"
    size = report["img_size"]
    lines = [
        ", ".join(f"{key} {value}" for key, value in machine.items() if key != "copy_gb_per_s"),
        f"{size} x {size} x 3, batch 1, median [quartiles] in ms; copy {machine['copy_gb_per_s']:.1f} GB/s",
        "",
        f"{'network':<15}{'dtype':<10}{'mode':<10}{'params':>10}{'GFLOP':>7}{'forward ms':>25}"
        f"{'train step ms':>26}{'img/s':>7}{'best (batch)':>14}{'MB fwd/train':>14}{'% of peak':>11}"
        + ("  RTX 6000 (paper)" if on_gpu else ""),
    ]
    for row in report["rows"]:
        start = (
            f"{row['network']:<15}{row['dtype']:<10}{row['mode']:<10}{row['parameters']:>10,}"
            f"{row['gflops']:>7.1f}"
        )
        if row["error"]:
            lines.append(f"{start}  did not run: {row['error']}")
            continue
        memory = row["peak_memory_mb"] or {}
        peaks = "/".join(
            "-" if memory.get(kind) is None else f"{memory[kind]:.0f}" for kind in TASKS
        )
        best = f"{row['images_per_s_best_batch']:.1f} ({row['best_batch']})"
        share = (
            f"{100 * row['forward_share_of_peak']:.0f}/{100 * row['train_step_share_of_peak']:.0f}"
        )
        published = PUBLISHED_IMAGES_PER_S.get(row["network"]) if on_gpu else None
        lines.append(
            f"{start}{_quartiles(row['forward']):>25}{_quartiles(row['train_step']):>26}"
            f"{row['images_per_s_batch_1']:>7.1f}{best:>14}{peaks:>14}{share:>11}"
            + (f"  {published[0]}/{published[1]} images/s" if published else "")
        )
    lines += [f"{name} left out: {reason}" for name, reason in report["left_out"].items()]
    for naive in report["naive"]:
        lines += [
            "",
            f"img2img_mixer against its naive formulation, {naive['dtype']}, timed in turns "
            f"(largest output difference {naive['largest_output_difference']:.1e}, matrix-multiply "
            f"peak {naive['matmul_peak_gflops']:.0f} GFLOP/s)",
        ]
        for kind in (*TASKS, "forward_after_training"):
            lines.append(
                f"  {kind.replace('_', ' ')}: naive {_quartiles(naive[kind]['naive'])}, "
                f"ours {_quartiles(naive[kind]['ours'])}: {naive[kind + '_ratio']:.2f}x, "
                f"{100 * naive[kind + '_share_of_peak']:.0f} % of the peak"
            )
        for kind in TASKS:
            start = f"  {kind.replace('_', ' ')}, each in its own process: "
            if alone := naive.get(f"{kind}_alone"):
                lines.append(
                    f"{start}naive {_quartiles(alone['naive']['time'])}, "
                    f"ours {_quartiles(alone['ours']['time'])}: {alone['ratio']:.2f}x by shares of the peak"
                )
            elif error := naive.get(f"{kind}_alone_error"):
                lines.append(f"{start}did not run: {error}")
    by_dtype = {naive["dtype"]: naive["forward"]["ours"]["median_ms"] for naive in report["naive"]}
    if {"float32", "bfloat16"} <= by_dtype.keys():
        lines.append(
            f"  bfloat16 forward: {by_dtype['float32'] / by_dtype['bfloat16']:.2f}x ours in float32"
        )
    for kind, spent in report["where_time_goes"].items():
        total = sum(spent.values()) or 1.0
        parts = ", ".join(f"{name} {100 * ms / total:.0f} %" for name, ms in spent.items() if ms)
        lines += ["", f"where the time of an img2img_mixer {kind} goes (float32, eager): {parts}"]
    for row in report["rows"]:
        if row["network"] == "img2img_mixer" and row["dtype"] == "float32" and not row["error"]:
            traffic_ms = 1e3 * row["layer_traffic_gb"] / machine["copy_gb_per_s"]
            lines.append(
                f"floor, {row['mode']}: {row['gflops']:.1f} GFLOP at {row['matmul_peak_gflops']:.0f} GFLOP/s = "
                f"{row['floor_ms']:.0f} ms; {row['layer_traffic_gb']:.2f} GB, if every layer went through "
                f"memory, = {traffic_ms:.0f} ms; measured {row['forward']['median_ms']:.0f} ms"
            )
    return "\n".join(lines)


def _quartiles(timing: Mapping[str, float]) -> str:
    return f"{timing['median_ms']:.1f} [{timing['q1_ms']:.1f}, {timing['q3_ms']:.1f}]"


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def parse_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read and check the command line.

    Raises:
        InputError: an unknown flag, model, dtype or mode, a number out of range, a device that is not
            there, or a JSON file that cannot be written.
    """
    parser = _Parser(prog="python -m tests.benchmarks.networks", description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(NETWORKS), help="networks by name")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--img_size", type=int, default=256, help="side of the square images (256)")
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), help="default: all")
    parser.add_argument("--modes", nargs="+", choices=MODES, help="default: all")
    parser.add_argument(
        "--batch_sizes", nargs="+", type=int, help="sizes among which the best is looked for"
    )
    parser.add_argument("--repeats", type=int, help="timed runs of everything (7; quick: 3)")
    parser.add_argument(
        "--compile_limit_s", type=float, default=20.0, help="give up compiling a network after (20)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="float32, eager, few repeats, no memory"
    )
    parser.add_argument("--json", type=Path, help="also write everything measured to this file")
    given = sys.argv[1:] if words is None else words
    options = parser.parse_args(
        ["--" + w[2:].replace("-", "_") if w[:2] == "--" else w for w in given]
    )

    quick = options.quick
    options.dtypes = options.dtypes or (["float32"] if quick else list(DTYPES))
    options.modes = options.modes or (["eager"] if quick else list(MODES))
    options.repeats = (3 if quick else 7) if options.repeats is None else options.repeats
    # Seconds for one group of timings: a slow network does not hold up the table.
    options.limit_s = 2.0 if quick else 4.0
    unknown = [name for name in options.models if name not in list_models()]
    if unknown:
        raise InputError(
            f"--models: no model {unknown[0]!r}; choose from {', '.join(list_models())}"
        )
    grey = [name for name in options.models if name.endswith(("_fastmri", "_untrained"))]
    if grey:
        raise InputError(f"--models: {grey[0]} takes one channel; the benchmark uses colour images")
    for flag, values in (
        ("--img_size", [options.img_size]),
        ("--repeats", [options.repeats]),
        ("--batch_sizes", options.batch_sizes or [1]),
    ):
        if min(values) < 1:
            raise InputError(f"{flag}: {min(values)} given; it must be at least 1")
    device_type = options.device.split(":")[0]
    if device_type not in ("cpu", "cuda"):
        raise InputError(f"--device: {options.device!r} given; it must be cpu or cuda")
    try:
        device = torch.device(options.device)
    except RuntimeError:
        raise InputError(f"--device: {options.device!r} is not a device") from None
    if device_type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"--device: {options.device} is not there ({torch.cuda.device_count()} found)"
        )
    if options.batch_sizes is None:
        options.batch_sizes = [1, 4, 16, 64] if device_type == "cuda" else [1, 2, 4]
    if options.json is not None:
        try:
            options.json.open("a").close()
        except OSError as error:
            raise InputError(f"--json: cannot write {options.json}: {error.strerror}") from None
    return options


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print the table and write the JSON file."""
    options = parse_options(words)
    report = run_benchmark(options)
    print(format_report(report))
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    run_script(main)
