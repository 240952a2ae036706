"""Files for programs without this package: run by both programs at other sizes; refusals in a line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from img2img_recon import InputError, build_model
from img2img_recon import export as exporting
from img2img_recon.networks.base import Described
from img2img_recon.trained import WRAPPERS

OPTIONS = {"window_size": 4, "embed_dims": (4, 6), "depths": (1, 2, 1), "noise_level_plane": True}


def window_mixer() -> Described:
    torch.manual_seed(0)
    network = WRAPPERS["residual"](build_model("window_mixer", **OPTIONS))
    network.description = {"model": "window_mixer", "options": OPTIONS}
    return network.eval()


def test_onnx_takes_any_batch_height_and_width(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network, path = window_mixer(), tmp_path / "net.onnx"
    said = exporting.export(network, path, "onnx")
    assert said.startswith("image (batch, 3, height, width), sigma (batch); differs from PyTorch")
    session = onnxruntime.InferenceSession(path)
    assert json.loads(session.get_modelmeta().custom_metadata_map["img2img_recon"])["model"]
    # Smaller than a patch's window, one side divisible, larger than what it was traced with.
    for batch, height, width in ((1, 2, 3), (2, 16, 9), (1, 61, 47)):
        image, sigma = torch.rand(batch, 3, height, width), torch.rand(batch)
        given = {"image": image.numpy(), "sigma": sigma.numpy()}
        (output,) = session.run(["output"], given)
        with torch.no_grad():
            np.testing.assert_allclose(output, network(image, sigma).numpy(), rtol=0, atol=1e-5)


def test_a_network_of_one_size_keeps_it(tmp_path: Path) -> None:
    network = build_model(
        "linear_mixer", img_size=16, embed_dim=4, depth=1, in_chans=1, out_chans=1
    )
    said = exporting.export(network, tmp_path / "net.pt2", "pt2")
    assert said.startswith("image (batch, 1, 16, 16); differs")
    program = torch.export.load(tmp_path / "net.pt2").module()
    image = torch.rand(1, 1, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(program(image), network(image), rtol=0, atol=1e-5)
    with pytest.raises(
        InputError, match=r"--img_size: given 32 x 32; the network takes \(16, 16\)"
    ):
        exporting.export(network, tmp_path / "a.pt2", "pt2", (32, 32))
    assert not (tmp_path / "a.pt2").exists()


def test_kspace_goes_into_a_program_of_torch_and_not_into_onnx(tmp_path: Path) -> None:
    from fastmri_plugin.unrolled_mixer import UnrolledMixer

    small = {"window_size": 4, "embed_dims": (4,), "depths": (1,), "partitions": ("grid",)}
    network = UnrolledMixer(cascades=1, sens="none", **small).eval()
    torch.nn.init.normal_(next(network.mixers()).output.weight)
    exporting.export(network, tmp_path / "net.pt2", "pt2")
    program = torch.export.load(tmp_path / "net.pt2").module()
    kspace = torch.randn(1, 1, 20, 37, dtype=torch.complex64)
    mask = torch.arange(37).view(1, 1, 1, -1) % 3 == 0
    with torch.no_grad():
        torch.testing.assert_close(program(kspace * mask, mask), network(kspace * mask, mask))
    network = UnrolledMixer(cascades=1, sens="espirit", **small).eval()
    torch.nn.init.normal_(next(network.mixers()).output.weight)
    exporting.export(network, tmp_path / "many.pt2", "pt2")
    program = torch.export.load(tmp_path / "many.pt2").module()
    kspace, maps = torch.randn(2, 1, 5, 20, 37, dtype=torch.complex64)
    with torch.no_grad():
        expected = network(kspace * mask, mask, sens_maps=maps)
        torch.testing.assert_close(program(kspace * mask, mask, sens_maps=maps), expected)
    with pytest.raises(InputError, match=r"--format onnx: .* no complex numbers, allowed: pt2"):
        exporting.export(network, tmp_path / "net.onnx", "onnx")


def test_a_run_becomes_a_folder_of_the_hub_with_its_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, network = tmp_path / "run", window_mixer()
    config = {"task": "gaussian", "wrapper": "residual", **network.description}
    state = {f"network.{key}": weight for key, weight in network.state_dict().items()}
    (run / "checkpoints").mkdir(parents=True)
    content = {"state_dict": state, "run_config": config}
    torch.save(content, run / "checkpoints" / "best.ckpt")
    scores = {"model": "window_mixer", "mean": {"window_mixer": {"psnr": 28.5}}}
    (run / "metrics.json").write_text(json.dumps({**scores, "scored_on": "validation images"}))
    exporting.main([str(run), "--format", "hub", "--out", str(tmp_path / "hub")])
    assert capsys.readouterr().out == f"written: {tmp_path / 'hub'}\n"
    front = yaml.safe_load((tmp_path / "hub" / "README.md").read_text().split("---\n")[1])
    (result,) = front["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "psnr", "value": 28.5}]
    assert result["dataset"]["name"] == "validation images"


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"--out: given a.pt; .*it ends in \.onnx"):
        exporting.main(["denoise-color", "--format", "onnx", "--out", "a.pt"])
    with pytest.raises(InputError, match="UnrolledThing: this network is not exported"):
        exporting.export(type("UnrolledThing", (Described,), {})(), tmp_path / "a.pt2", "pt2")
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs onnx; pip install .*\[onnx\]', or give pt2"):
        exporting.export(window_mixer(), tmp_path / "a.onnx", "onnx")
    monkeypatch.setattr(exporting, "AGREE", -1.0)
    small = build_model("dncnn", depth=2, chans=2)
    with pytest.raises(InputError, match=r"a\.pt2: not written, it differs from the network by 0"):
        exporting.export(small, tmp_path / "a.pt2", "pt2")
    assert not list(tmp_path.iterdir())
