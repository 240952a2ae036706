"""The benchmark: its yardstick equals the network, its report is complete, bad input is one line."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from img2img_recon.networks.mixers import Img2ImgMixer
from img2img_recon.support.errors import InputError
from tests.benchmarks import measurements
from tests.benchmarks import networks as benchmark
from tests.benchmarks.fresh_process import call_in_fresh_process


def test_naive_formulation_equals_the_mixer() -> None:
    torch.manual_seed(0)
    net = Img2ImgMixer((64, 48), 3, 3, 4, 32, 3, 4)
    naive = measurements.NaiveMixer(net)
    image = torch.rand(2, 3, 64, 48)
    outputs = {}
    gradients = {}
    for name, module in (("ours", net), ("naive", naive)):
        net.zero_grad()
        with torch.no_grad():
            outputs[name] = module(image)
        module(image).square().mean().backward()
        gradients[name] = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    torch.testing.assert_close(outputs["ours"], outputs["naive"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients["ours"], gradients["naive"], rtol=1e-4, atol=1e-5)


def test_ratio_is_taken_round_by_round() -> None:
    """The machine becomes four times as slow between and within rounds; a ratio of medians says 8."""
    ours = measurements.Timing.of([1.0, 1.0, 4.0])
    naive = measurements.Timing.of([2.0, 8.0, 8.0])
    assert naive.over(ours) == 2.0
    assert naive.median_ms / ours.median_ms == 8.0


def test_default_mixer_equals_the_naive_formulation() -> None:
    net = measurements.build("img2img_mixer", 256)
    assert isinstance(net, Img2ImgMixer)
    image = torch.rand(1, 3, 256, 256)
    with torch.no_grad():
        torch.testing.assert_close(
            net(image), measurements.NaiveMixer(net)(image), rtol=0, atol=1e-5
        )


def test_gflops_of_the_default_mixer_by_hand() -> None:
    H, W, C, f, P = 64, 64, 128, 4, 4
    products = 16 * 2 * f * H * W * C * (H + W + C)  # two per MLP, dim x f dim each
    products += H * W * C * (3 * P * P + C * P * P) + (H * P) * (W * P) * C * 3
    assert measurements.count_gflops("img2img_mixer", 256) == pytest.approx(2e-9 * products)


def test_time_in_turns_takes_turns() -> None:
    order: list[str] = []
    tasks = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    timings = measurements.time_in_turns(tasks, torch.device("cpu"), repeats=2, limit_s=1.0)
    assert order == ["a", "b"] * 3  # one round uncounted
    assert all(t.q1_ms <= t.median_ms <= t.q3_ms for t in timings.values())


def test_time_limit_stops_after_three_rounds() -> None:
    calls: list[int] = []
    measurements.time_in_turns({"a": lambda: calls.append(1)}, torch.device("cpu"), 50, limit_s=0.0)
    assert len(calls) == 1 + 3


@pytest.fixture
def tiny_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurements, "MATMUL_SIDE", {"cpu": 64})
    monkeypatch.setattr(measurements, "COPY_NUMBERS", 1 << 10)


@pytest.mark.usefixtures("tiny_machine")
def test_report_has_every_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = {"forward": 1.0, "train_step": 2.0}
    monkeypatch.setattr(benchmark, "peak_memory_mb", lambda *given: memory)
    file = tmp_path / "report.json"
    words = "--models img2img_mixer vit --img_size 32 --repeats 1 --modes eager --batch-sizes 1 2"
    words += " --dtypes float32"
    benchmark.main([*words.split(), "--json", str(file)])
    report = json.loads(file.read_text())
    assert [(row["network"], row["dtype"]) for row in report["rows"]] == [
        ("img2img_mixer", "float32"),
        ("vit", "float32"),
    ]
    for row in report["rows"]:
        assert row["error"] is None
        assert row["peak_memory_mb"] == memory
        for figure in ("forward", "train_step"):
            assert row[figure]["q1_ms"] <= row[figure]["median_ms"] <= row[figure]["q3_ms"]
            assert row[f"{figure}_share_of_peak"] > 0
        assert row["best_batch"] in (1, 2)
        assert row["images_per_s_best_batch"] >= row["images_per_s_batch_1"] > 0
    float32 = report["naive"][0]
    assert float32["dtype"] == "float32"
    assert float32["largest_output_difference"] < 1e-5
    for figure in ("forward", "train_step", "forward_after_training"):
        assert float32[f"{figure}_ratio"] > 0
        assert float32[f"{figure}_share_of_peak"] > 0
    for figure in ("forward", "train_step"):
        alone = float32[f"{figure}_alone"]
        assert alone["ratio"] == alone["naive"]["in_matmuls"] / alone["ours"]["in_matmuls"]
    assert report["where_time_goes"]["forward"]["matrix products"] > 0
    printed = capsys.readouterr()
    assert "img2img_mixer" in printed.out
    assert "% of the peak" in printed.out
    assert "forward after training: naive" in printed.out
    assert printed.out.count("each in its own process: naive") == 2
    assert "img2img_mixer, float32, eager" in printed.err


def test_a_call_in_a_fresh_process_returns_or_says_why() -> None:
    assert call_in_fresh_process("operator", "add", 2, 3) == 5
    with pytest.raises(RuntimeError, match=r"^ZeroDivisionError: [^\n]*$"):
        call_in_fresh_process("operator", "floordiv", 2, 0)
    with pytest.raises(RuntimeError, match="ended with 3"):
        call_in_fresh_process("os", "_exit", 3)


@pytest.mark.usefixtures("tiny_machine")
def test_a_process_that_fails_loses_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*given: object) -> None:
        raise RuntimeError("ended with -9, out of memory?")

    monkeypatch.setattr(measurements, "call_in_fresh_process", killed)
    words = "--models img2img_mixer --img_size 32 --repeats 1 --modes eager --dtypes float32"
    report = benchmark.run_benchmark(benchmark.parse_options(words.split()))
    assert report["rows"][0]["peak_memory_mb"] == {"forward": None, "train_step": None}
    said = benchmark.format_report(report)
    assert "forward, each in its own process: did not run: ended with -9" in said
    assert "forward: naive" in said


def test_memory_is_measured_in_a_fresh_process() -> None:
    peaks = measurements.peak_memory_mb("img2img_mixer_c64_f4", "float32", torch.device("cpu"), 64)
    if sys.platform != "linux":
        assert peaks == {"forward": None, "train_step": None}
        return
    forward, train_step = peaks["forward"], peaks["train_step"]
    assert forward is not None
    assert train_step is not None
    # Training keeps what inference throws away, the gradients and Adam's two moments.
    assert train_step > forward > 0


@pytest.mark.usefixtures("tiny_machine")
def test_a_mode_that_fails_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(module: torch.nn.Module, **options: object) -> None:
        """Fails as torch.compile does: at the first call, not before."""

        def fail(*inputs: object) -> None:
            raise RuntimeError("no C++ compiler\nlong story")

        module.register_forward_pre_hook(fail)

    monkeypatch.setattr(torch.nn.Module, "compile", no_compiler)
    options = benchmark.parse_options(["--img_size", "32", "--repeats", "1"])
    machine = measurements.Machine(torch.device("cpu"))
    row = measurements.measure_network("dncnn", "float32", "compiled", machine, options)
    assert row["error"] == "RuntimeError: no C++ compiler"


def test_time_limit_ends_what_takes_too_long() -> None:
    with pytest.raises(TimeoutError, match=r"longer than 0\.05 s"), measurements.time_limit(0.05):
        time.sleep(5)

    def wrapped() -> None:
        try:
            time.sleep(5)
        except TimeoutError as error:
            raise RuntimeError("the compiler's own words") from error

    with pytest.raises(TimeoutError, match="compiling"), measurements.time_limit(0.05):
        wrapped()
    with pytest.raises(RuntimeError, match="its own fault"), measurements.time_limit(5):
        raise RuntimeError("its own fault")
    with measurements.time_limit(0.05):
        pass
    time.sleep(0.1)  # no alarm outlives its block


def test_repeated_blocks_are_compiled_each(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **options: compiled.append(type(self).__name__)
    )
    measurements.compile_network(Img2ImgMixer(16, 3, 3, 4, 8, 3, 2))
    assert compiled == ["MixerLayer"] * 3
    compiled.clear()
    measurements.compile_network(measurements.build("unet", 32))
    assert compiled == ["UNet"]


@pytest.mark.usefixtures("tiny_machine")
def test_unet_without_fastmri_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastmri.models", None)
    monkeypatch.delitem(sys.modules, "img2img_recon.networks.unet", raising=False)
    options = benchmark.parse_options(["--models", "unet", "--quick"])
    report = benchmark.run_benchmark(options)
    assert report["rows"] == []
    assert "fastmri" in report["left_out"]["unet"]
    assert "unet left out" in benchmark.format_report(report)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--models", "resnet"], "resnet"),
        (["--models", "unet_fastmri"], "one channel"),
        (["--device", "tpu"], "tpu"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--device", "cuda:x"], "cuda:x"),
        (["--json", "no/such/folder/report.json"], "no/such/folder"),
        (["--repeats", "0"], "--repeats"),
        (["--batch_sizes", "4", "0"], "--batch_sizes"),
        (["--dtypes", "float8"], "float8"),
        (["--speed", "11"], "--speed"),
    ],
)
def test_bad_input_is_named(words: list[str], says: str) -> None:
    with pytest.raises(InputError) as raised:
        benchmark.parse_options(words)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_command_exits_2_with_one_line() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.networks", "--models", "resnet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
