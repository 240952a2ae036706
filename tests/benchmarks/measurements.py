"""What `python -m tests.benchmarks.networks` measures: time in turns with a matrix product, memory, operations.

Whatever is compared is timed in turns (A B A B ...), so that a machine whose clock wanders slows all alike.
"""

from __future__ import annotations

import argparse
import signal
import statistics
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

from img2img_recon.networks.layers import AxisMLP, MixerLayer
from img2img_recon.networks.mixers import Img2ImgMixer
from img2img_recon.networks.zoo import build_model
from tests.benchmarks.fresh_process import call_in_fresh_process

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

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
    any_size = name.startswith(("unet", "dncnn", "window_mixer"))
    return build_model(name) if any_size else build_model(name, img_size=img_size)


class Machine:
    """The device, with the matrix product and the copy that its speed is judged by."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._side = MATMUL_SIDE[device.type]
        self.matmul_gflop = 2e-9 * self._side**3
        self._operands: dict[torch.dtype, tuple[Tensor, Tensor]] = {}

    def matmul(self, dtype: torch.dtype) -> Callable[[], object]:
        """Return a task: one large matrix product."""
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


# What is timed of every network; both are made of a network and an image.
TASKS = {"forward": forward_task, "train_step": training_task}


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
    """Time the default mixer and its naive formulation in turns, with the largest difference of outputs.

    On a CPU the naive formulation is the faster the more freed memory the process already holds, page faults
    being much of its time. So the forward pass is timed before and after training steps, and in float32 each
    formulation also in a process of its own.
    """
    dtype = DTYPES[dtype_name]
    net = build("img2img_mixer", options.img_size).to(machine.device, dtype)
    assert isinstance(net, Img2ImgMixer)
    naive = NaiveMixer(net)
    image = torch.rand(1, 3, options.img_size, options.img_size, device=machine.device).to(dtype)
    result: dict[str, Any] = {"dtype": dtype_name}
    with torch.no_grad():
        result["largest_output_difference"] = (net(image) - naive(image)).abs().max().item()
    peak_ms = []
    for kind, make in (*TASKS.items(), ("forward_after_training", forward_task)):
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
        flop = count_gflops("img2img_mixer", options.img_size) * (3 if kind == "train_step" else 1)
        result[f"{kind}_share_of_peak"] = flop / machine.matmul_gflop / ours
        peak_ms.append(timings["matmul"].median_ms)
    result["matmul_peak_gflops"] = 1e3 * machine.matmul_gflop / statistics.mean(peak_ms)
    if dtype_name == "float32" and machine.device.type == "cpu" and not options.quick:
        effort = options.img_size, options.repeats, 2 * options.limit_s
        for kind in TASKS:
            try:
                result[f"{kind}_alone"] = _compare_alone(kind, *effort)
            except RuntimeError as error:  # what was measured so far is not lost with it
                result[f"{kind}_alone_error"] = str(error)
    return result


def _compare_alone(kind: str, img_size: int, repeats: int, limit_s: float) -> dict[str, Any]:
    alone = {
        formulation: call_in_fresh_process(
            __name__, "_measure_alone", formulation, kind, img_size, repeats, limit_s
        )
        for formulation in ("naive", "ours")
    }
    # In units of the matrix product timed beside each: the clock wanders between two processes.
    return alone | {"ratio": alone["naive"]["in_matmuls"] / alone["ours"]["in_matmuls"]}


def _measure_alone(
    formulation: str, kind: str, img_size: int, repeats: int, limit_s: float
) -> dict[str, Any]:
    machine = Machine(torch.device("cpu"))
    net = build("img2img_mixer", img_size)
    assert isinstance(net, Img2ImgMixer)
    chosen = NaiveMixer(net) if formulation == "naive" else net
    tasks = {
        "task": TASKS[kind](chosen, torch.rand(1, 3, img_size, img_size)),
        "matmul": machine.matmul(torch.float32),
    }
    timings = time_in_turns(tasks, machine.device, repeats, limit_s)
    return {
        "time": timings["task"]._asdict(),
        "in_matmuls": timings["task"].over(timings["matmul"]),
    }


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
    arguments = name, dtype_name, str(device), img_size
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return _measure_memory(*arguments)
    try:
        return call_in_fresh_process(__name__, "_measure_memory", *arguments)
    except RuntimeError:
        return {"forward": None, "train_step": None}


def _measure_memory(
    name: str, dtype_name: str, device_name: str, img_size: int
) -> dict[str, float | None]:
    dtype, device = DTYPES[dtype_name], torch.device(device_name)
    net = build(name, img_size).to(device, dtype)
    image = torch.rand(1, 3, img_size, img_size, device=device).to(dtype)
    peaks: dict[str, float | None] = {}
    # Made before anything is measured: the optimiser's code, imported here, is tens of MB by itself.
    tasks = {kind: make(net, image) for kind, make in TASKS.items()}
    before = _peak_mb(device)
    # Forward first: a high-water mark only rises, and a training step needs more.
    for kind, task in tasks.items():
        task()
        after = _peak_mb(device)
        peaks[kind] = None if before is None or after is None else after - before
    return peaks


def _peak_mb(device: torch.device) -> float | None:
    return (
        torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else high_water_mb()
    )


def high_water_mb() -> float | None:
    """The most memory that this process has held; None where the system does not tell."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):  # unlike ru_maxrss, without the parent's from before exec
                return int(line.split()[1]) * 1.024e-3
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return None
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held / 1e6 if sys.platform == "darwin" else held * 1.024e-3


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
