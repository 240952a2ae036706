"""Speed and memory of every network, beside the machine's own matrix-multiply peak.

    python -m img2img_recon.benchmark --quick
    python -m img2img_recon.benchmark --json benchmark.json

The table goes to the standard output, progress to the standard error. Whatever is compared is timed in
turns (A B A B ...), a matrix product among it, so that a machine whose clock wanders slows all alike.
Needs torch alone; without `fastmri` the U-Net is left out with a notice.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from img2img_recon.blocked import has_units_for, keep_freed_memory
from img2img_recon.cli import run_script, underscore_flags
from img2img_recon.errors import InputError
from img2img_recon.mixer import Img2ImgMixer
from img2img_recon.mixing import AxisMLP, MixerLayer
from img2img_recon.zoo import build_model, list_models

NETWORKS = (
    "img2img_mixer",
    "linear_mixer",
    "multires_mixer",
    "original_mixer",
    "vit",
    "dncnn",
    "unet",
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MODES = ("eager", "compiled")

# Images a second at batch 1 and at the best batch on an RTX 6000: arXiv:2202.02018, table 2.
PUBLISHED_IMAGES_PER_S = {
    "img2img_mixer": (89, 98),
    "unet": (287, 524),
    "vit": (116, 690),
    "dncnn": (28, 30),
}


# Side of the square matrices whose product is the peak that everything is compared with, and numbers
# in the copy that measures bandwidth: large enough that larger ones are no faster.
MATMUL_SIDE = {"cpu": 2048, "cuda": 8192}
COPY_NUMBERS = 1 << 26


class Timing(NamedTuple):
    """Median and quartiles of repeated timings, and the timings themselves, in milliseconds."""

    median_ms: float
    q1_ms: float
    q3_ms: float
    rounds_ms: tuple[float, ...]

    @staticmethod
    def of(seconds: Sequence[float]) -> Timing:
        """Summarise timings given in seconds."""
        rounds = tuple(1e3 * value for value in seconds)
        if len(rounds) == 1:
            return Timing(*rounds * 3, rounds)
        q1, median, q3 = statistics.quantiles(rounds, n=4, method="inclusive")
        return Timing(median, q1, q3, rounds)

    def over(self, other: Timing) -> float:
        """How many times the other's time this is: the median over the rounds that both were timed in.

        A machine that is faster in some rounds than in others spoils a ratio of medians, not this one.
        """
        pairs = zip(self.rounds_ms, other.rounds_ms, strict=True)
        return statistics.median(mine / its for mine, its in pairs)


class NaiveMixer(nn.Module):
    """The yardstick: a mixer's own weights, with transpose -> nn.Linear -> GELU -> nn.Linear -> transpose.

    Args:
        net: the mixer, with MLP token mixing; parameters are shared, not copied.

    Shapes: as `net`, whose output it equals up to rounding.
    """

    def __init__(self, net: Img2ImgMixer) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, in_chans, H, W) to (B, out_chans, H, W)."""
        x = self.net.patch_embed(image)
        for layer in self.net.mixer_layers:
            assert isinstance(layer, MixerLayer)
            mixed = layer.token_norm(x).transpose(1, 3)  # (B, C, W, H)
            mixed = _naive_mlp(layer.height_mixing, mixed).transpose(2, 3)  # (B, C, H, W)
            mixed = _naive_mlp(layer.width_mixing, mixed).permute(0, 2, 3, 1)  # (B, H, W, C)
            x = x + mixed
            x = x + _naive_mlp(layer.channel_mixing, layer.channel_norm(x))
        return self.net.output(self.net.patch_expand(x)).permute(0, 3, 1, 2).contiguous()


def _naive_mlp(mlp: nn.Module, x: Tensor) -> Tensor:
    """Apply an MLP's weights along the last axis."""
    assert isinstance(mlp, AxisMLP)
    hidden = F.gelu(F.linear(x, mlp.fc1.weight, mlp.fc1.bias))
    return F.linear(hidden, mlp.fc2.weight, mlp.fc2.bias)


def time_in_turns(
    tasks: Mapping[str, Callable[[], object]],
    device: torch.device,
    repeats: int,
    limit_s: float,
) -> dict[str, Timing]:
    """Time every task once per round, device synchronised, after one round that is not counted.

    Args:
        tasks: what to time, by name.
        device: where the tasks run.
        repeats: number of rounds.
        limit_s: no further round begins after this many seconds, the first three excepted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for task in tasks.values():
        task()
    begin = time.perf_counter()
    for done in range(repeats):
        if done >= 3 and time.perf_counter() - begin > limit_s:
            break
        for name, task in tasks.items():
            _synchronise(device)
            start = time.perf_counter()
            task()
            _synchronise(device)
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing.of(values) for name, values in seconds.items()}


def count_gflops(name: str, img_size: int) -> float:
    """Count the floating-point operations (2 per multiply-add) of one forward pass on one image, in 1e9.

    On the meta device nothing is computed, and the mixers run their plain formulation.
    """
    net = build(name, img_size).to("meta").eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        net(torch.empty(1, 3, img_size, img_size, device="meta"))
    return counter.get_total_flops() / 1e9


def layer_traffic_gb(name: str, img_size: int) -> float:
    """GB that a forward pass moves in float32 if every layer reads its input and writes its output once."""
    net = build(name, img_size).to("meta").eval()
    numbers = sum(parameter.numel() for parameter in net.parameters())

    def count(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal numbers
        numbers += sum(tensor.numel() for tensor in (*inputs, output) if isinstance(tensor, Tensor))

    for module in net.modules():
        if not list(module.children()):
            module.register_forward_hook(count)
    with torch.no_grad():
        net(torch.empty(1, 3, img_size, img_size, device="meta"))
    return 4 * numbers / 1e9


def build(name: str, img_size: int) -> nn.Module:
    """Build a network for colour images of img_size x img_size, the same weights every time."""
    torch.manual_seed(0)
    any_size = name.startswith(("unet", "dncnn"))
    return build_model(name) if any_size else build_model(name, img_size=img_size)


class Machine:
    """The device, with the matrix product and the copy that its speed is judged by."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._side = MATMUL_SIDE[device.type]
        self.matmul_gflop = 2e-9 * self._side**3
        self._operands: dict[torch.dtype, tuple[Tensor, Tensor]] = {}

    def matmul(self, dtype: torch.dtype) -> Callable[[], object]:
        """Return a task: one large matrix product in the dtype that the networks' products run in."""
        if self.device.type == "cpu" and not has_units_for(dtype):
            dtype = torch.float32
        if dtype not in self._operands:
            operand = torch.randn(self._side, self._side, device=self.device).to(dtype)
            self._operands[dtype] = operand, torch.empty_like(operand)
        operand, out = self._operands[dtype]
        return lambda: torch.mm(operand, operand, out=out)

    def copy_gb_per_s(self) -> float:
        """Measure the memory bandwidth, reading and writing, of a copy far larger than the caches."""
        source = torch.ones(COPY_NUMBERS, device=self.device)
        target = torch.zeros_like(source)
        timing = time_in_turns({"copy": lambda: target.copy_(source)}, self.device, 5, 5)["copy"]
        return 2 * 4e-6 * source.numel() / timing.median_ms

    def describe(self) -> dict[str, Any]:
        """What the figures belong to."""
        facts: dict[str, Any] = {"device": self.device.type, "torch": torch.__version__}
        if self.device.type == "cuda":
            return facts | {"name": torch.cuda.get_device_name(self.device)}
        return facts | {
            "threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "bfloat16_units": has_units_for(torch.bfloat16),
        }


def forward_task(net: nn.Module, image: Tensor) -> Callable[[], object]:
    """Return a task: the network on the image, without gradients."""

    def forward() -> Tensor:
        with torch.no_grad():
            return net(image)

    return forward


def training_task(net: nn.Module, image: Tensor) -> Callable[[], object]:
    """Return a task: forward, mean squared error, backward and an Adam step (learning rate 0)."""
    # A rate of 0 costs the same and leaves the weights, so that one network serves every timing.
    optimizer = torch.optim.Adam(net.parameters(), lr=0.0)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.mse_loss(net(image).float(), image.float()).backward()
        optimizer.step()

    return step


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError from the block after some seconds; no limit without timer signals.

    The compiler wraps what is raised inside it in errors of its own: whatever the block raises once
    the time is up comes out as TimeoutError.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() != threading.main_thread():
        yield
        return

    deadline = time.monotonic() + seconds
    message = f"compiling took longer than {seconds:g} s"

    def expire(_signal: int, _frame: object) -> NoReturn:
        raise TimeoutError(message)

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except Exception as error:
        if time.monotonic() < deadline:
            raise
        raise TimeoutError(message) from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def compile_network(net: nn.Module) -> None:
    """Have `torch.compile` compile a network in place at its first call.

    Of a network that repeats a block, the block is compiled: once for all its repetitions, which takes
    a fraction of the time that compiling the whole does.
    """
    blocks = [
        list(container)
        for container in net.children()
        if isinstance(container, (nn.Sequential, nn.ModuleList))
        and len(container) > 1
        and len({type(block) for block in container}) == 1
    ]
    modules = [block for container in blocks for block in container] or [net]
    # Blocks of different shapes share their code, which is compiled for each shape with and without gradient;
    # past its limit the compiler would run the rest uncompiled without an error.
    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, 4 * len(modules))
    for module in modules:
        module.compile(dynamic=False)


def measure_network(
    name: str, dtype_name: str, mode: str, machine: Machine, options: argparse.Namespace
) -> dict[str, Any]:
    """Measure one network in one dtype and mode: a row of the table.

    A mode that cannot run here (no compiler, say, or `--compile_limit_s` passed) gives a row whose
    `error` is the reason.
    """
    dtype = DTYPES[dtype_name]
    net = build(name, options.img_size).to(machine.device, dtype)
    image = torch.rand(1, 3, options.img_size, options.img_size, device=machine.device).to(dtype)
    gflops = count_gflops(name, options.img_size)
    row: dict[str, Any] = {
        "network": name,
        "dtype": dtype_name,
        "mode": mode,
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "gflops": gflops,
        "error": None,
    }
    forward, train_step = forward_task(net, image), training_task(net, image)
    if mode == "compiled":
        try:
            with time_limit(options.compile_limit_s):
                compile_network(net)
                forward()
                train_step()
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
            return row
    timings = time_in_turns(
        {"forward": forward, "train_step": train_step, "matmul": machine.matmul(dtype)},
        machine.device,
        options.repeats,
        options.limit_s,
    )
    # Another batch size would be compiled anew.
    batch_sizes = options.batch_sizes if mode == "eager" else ()
    batches = measure_batches(net, image, timings["forward"], batch_sizes, machine.device, options)
    best = max(batches, key=lambda batch: batches[batch])
    peak_gflops = 1e3 * machine.matmul_gflop / timings["matmul"].median_ms
    floor_ms = 1e3 * gflops / peak_gflops
    flop_share = gflops / machine.matmul_gflop
    return row | {
        "forward": timings["forward"]._asdict(),
        "train_step": timings["train_step"]._asdict(),
        "images_per_s_batch_1": batches[1],
        "best_batch": best,
        "images_per_s_best_batch": batches[best],
        "matmul_peak_gflops": peak_gflops,
        "floor_ms": floor_ms,
        "layer_traffic_gb": layer_traffic_gb(name, options.img_size),
        "forward_share_of_peak": flop_share / timings["forward"].over(timings["matmul"]),
        # Backward multiplies with the transposed weights and with the activations: twice the forward.
        "train_step_share_of_peak": 3 * flop_share / timings["train_step"].over(timings["matmul"]),
    }


def measure_batches(
    net: nn.Module,
    image: Tensor,
    batch_1: Timing,
    batch_sizes: Sequence[int],
    device: torch.device,
    options: argparse.Namespace,
) -> dict[int, float]:
    """Images a second by batch size; sizes that do not fit in memory are left out."""
    rates = {1: 1e3 / batch_1.median_ms}
    for batch in batch_sizes:
        if batch == 1:
            continue
        try:
            task = forward_task(net, image.expand(batch, -1, -1, -1).contiguous())
            timing = time_in_turns({"forward": task}, device, 3, options.limit_s)["forward"]
        except torch.cuda.OutOfMemoryError:
            break
        rates[batch] = 1e3 * batch / timing.median_ms
    return rates


def compare_with_naive(
    dtype_name: str, machine: Machine, options: argparse.Namespace
) -> dict[str, Any]:
    """Time the default mixer and its naive formulation in turns, with the largest difference of outputs."""
    dtype = DTYPES[dtype_name]
    net = build("img2img_mixer", options.img_size).to(machine.device, dtype)
    assert isinstance(net, Img2ImgMixer)
    naive = NaiveMixer(net)
    image = torch.rand(1, 3, options.img_size, options.img_size, device=machine.device).to(dtype)
    result: dict[str, Any] = {"dtype": dtype_name}
    kinds = (("forward", forward_task), ("train_step", training_task))
    # Before ours has run for the first time: from then on the naive one gains by `keep_freed_memory` too.
    alone = {}
    if machine.device.type == "cpu" and not keep_freed_memory.cache_info().currsize:
        for kind, make in kinds:
            tasks = {"naive": make(naive, image), "matmul": machine.matmul(dtype)}
            alone[kind] = time_in_turns(tasks, machine.device, options.repeats, 2 * options.limit_s)
    with torch.no_grad():
        result["largest_output_difference"] = (net(image) - naive(image)).abs().max().item()
    peak_ms = []
    for kind, make in kinds:
        timings = time_in_turns(
            {
                "naive": make(naive, image),
                "ours": make(net, image),
                "matmul": machine.matmul(dtype),
            },
            machine.device,
            2 * options.repeats,
            3 * options.limit_s,
        )
        result[kind] = {"naive": timings["naive"]._asdict(), "ours": timings["ours"]._asdict()}
        result[f"{kind}_ratio"] = timings["naive"].over(timings["ours"])
        ours = timings["ours"].over(timings["matmul"])
        flop = count_gflops("img2img_mixer", options.img_size) * (1 if kind == "forward" else 3)
        result[f"{kind}_share_of_peak"] = flop / machine.matmul_gflop / ours
        if kind in alone:
            # In units of the matrix product timed beside it: the clock wanders between the two runs.
            result[f"{kind}_naive_alone"] = alone[kind]["naive"]._asdict()
            result[f"{kind}_ratio_alone"] = alone[kind]["naive"].over(alone[kind]["matmul"]) / ours
        peak_ms.append(timings["matmul"].median_ms)
    result["matmul_peak_gflops"] = 1e3 * machine.matmul_gflop / statistics.mean(peak_ms)
    return result


# Profiler operator name -> what it is; the rest is "other": Python, dispatch, allocation, views.
_KINDS = {
    "matrix products": ("mm", "bmm", "addmm", "addmm_", "baddbmm", "convolution", "conv2d"),
    "GELU": ("gelu", "gelu_backward"),
    "LayerNorm": ("native_layer_norm", "native_layer_norm_backward", "linalg_vector_norm"),
    "additions, sums": ("add", "add_", "sum", "addmv_", "mul"),
    "copies": ("copy_", "cat", "fill_"),
    "optimiser": ("_fused_adam_", "_foreach_add_", "_foreach_addcdiv_", "_foreach_lerp_"),
}


def where_time_goes(task: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Run a task three times under torch's profiler; milliseconds a run by kind of operator."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    runs = 3
    task()
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(runs):
            task()
        _synchronise(device)
    kinds = {operator: kind for kind, operators in _KINDS.items() for operator in operators}
    spent = dict.fromkeys([*_KINDS, "other"], 0.0)
    for event in profile.key_averages():
        own_us = (
            event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        )
        operator = event.key.removeprefix("aten::") if event.key.startswith("aten::") else ""
        spent[kinds.get(operator, "other")] += 1e-3 * own_us / runs
    return spent


def peak_memory_mb(
    name: str, dtype_name: str, device: torch.device, img_size: int
) -> dict[str, float | None]:
    """Peak memory of a forward pass and of a training step, on one image.

    On CUDA what torch's allocator reached; on a CPU how far the resident set of a fresh process rose
    above what it was with the network built. None where the system does not tell.
    """
    if device.type == "cuda":
        return _measure_memory(name, dtype_name, device, img_size)
    # With `-c`, unlike multiprocessing, the new process never runs this one's main module.
    code = (
        "import json, torch; from img2img_recon.benchmark import _measure_memory; "
        f"print(json.dumps(_measure_memory({name!r}, {dtype_name!r}, torch.device('cpu'), {img_size})))"
    )
    package_parent = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [package_parent, os.environ.get("PYTHONPATH")]))
    child = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": path},
    )
    if child.returncode != 0:
        return {"forward": None, "train_step": None}
    return json.loads(child.stdout)


def _measure_memory(
    name: str, dtype_name: str, device: torch.device, img_size: int
) -> dict[str, float | None]:
    dtype = DTYPES[dtype_name]
    net = build(name, img_size).to(device, dtype)
    image = torch.rand(1, 3, img_size, img_size, device=device).to(dtype)
    peaks: dict[str, float | None] = {}
    before = _high_water_mb(device)
    # Forward first: a high-water mark only rises, and a training step needs more.
    for kind, task in (
        ("forward", forward_task(net, image)),
        ("train_step", training_task(net, image)),
    ):
        task()
        after = _high_water_mb(device)
        peaks[kind] = None if before is None or after is None else after - before
    return peaks


def _high_water_mb(device: torch.device) -> float | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return next(
        (int(line.split()[1]) * 1.024e-3 for line in status.splitlines() if line[:6] == "VmHWM:"),
        None,
    )


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
        for kind, make in (("forward", forward_task), ("train_step", training_task)):
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
            "-" if memory.get(kind) is None else f"{memory[kind]:.0f}"
            for kind in ("forward", "train_step")
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
        lines += [
            f"  {kind:<11}naive {_quartiles(naive[kind]['naive'])}, ours {_quartiles(naive[kind]['ours'])}: "
            f"{naive[kind + '_ratio']:.2f}x, {100 * naive[kind + '_share_of_peak']:.0f} % of the peak"
            for kind in ("forward", "train_step")
        ]
        lines += [
            f"  {kind:<11}naive by itself, in a process that ours has not tuned: "
            f"{_quartiles(naive[kind + '_naive_alone'])}; {naive[kind + '_ratio_alone']:.2f}x by "
            "shares of the peak"
            for kind in ("forward", "train_step")
            if kind + "_ratio_alone" in naive
        ]
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
    parser = _Parser(prog="python -m img2img_recon.benchmark", description=__doc__.split("\n")[0])
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
    options = parser.parse_args(underscore_flags(sys.argv[1:] if words is None else words))

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
