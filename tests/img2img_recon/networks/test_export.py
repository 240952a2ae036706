"""Every network leaves PyTorch: torch.export, torch.jit.trace and ONNX, each run at another batch size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from img2img_recon import AnySize, Normalized, Residual
from tests.img2img_recon.networks.test_networks import SMALL, small

NETWORKS = list(SMALL)
SIDE = 32
BATCH = {"image": {0: torch.export.Dim("batch")}}


@pytest.fixture(params=NETWORKS)
def net(request: pytest.FixtureRequest) -> nn.Module:
    return small(request.param, SIDE, SIDE).eval()


def images(number: int) -> Tensor:
    torch.manual_seed(number)
    return torch.rand(number, 3, SIDE, SIDE)


def assert_same(net: nn.Module, other: nn.Module) -> None:
    with torch.no_grad():
        torch.testing.assert_close(other(images(5)), net(images(5)), rtol=1e-5, atol=1e-6)


def exported(net: nn.Module) -> torch.export.ExportedProgram:
    return torch.export.export(net, (images(2),), dynamic_shapes=BATCH)


def test_torch_export_with_a_dynamic_batch(net: nn.Module) -> None:
    assert_same(net, exported(net).module())


@pytest.mark.parametrize("wrapper", [Residual, Normalized])
def test_a_wrapped_network_at_its_own_size_leaves_too(wrapper: type[nn.Module]) -> None:
    wrapped = wrapper(AnySize(small("linear_mixer", SIDE, SIDE))).eval()
    assert_same(wrapped, exported(wrapped).module())


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("batch", [1, 2])
def test_torch_jit_trace_runs_at_another_batch_size(net: nn.Module, batch: int) -> None:
    assert_same(net, torch.jit.trace(net, images(batch), check_trace=False))


# The window mixer leaves with any height and width: tests/img2img_recon/test_export.py.
@pytest.mark.parametrize(
    "net", [name for name in NETWORKS if name != "window_mixer"], indirect=True
)
@pytest.mark.filterwarnings("ignore")  # the exporter warns of its own old parts
def test_onnx_with_a_dynamic_batch(net: nn.Module, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = tmp_path / "net.onnx"
    program = torch.onnx.export(exported(net), dynamo=True, verbose=False)
    assert program is not None
    program.save(path)
    session = onnxruntime.InferenceSession(path)
    (name,) = (given.name for given in session.get_inputs())
    with torch.no_grad():
        expected = net(images(5)).numpy()
    (output,) = session.run(None, {name: images(5).numpy()})
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)
