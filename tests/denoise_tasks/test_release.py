"""A trained denoiser becomes one that comes with the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from denoise_tasks.release import main
from img2img_recon import InputError, build_model, load

OPTIONS = {"embed_dims": [8], "depths": [2], "window_size": 4, "noise_level_plane": True}


def test_weights_of_a_script_and_of_a_run(tmp_path: Path, tiny_run: Path) -> None:
    network = build_model("window_mixer", **OPTIONS)
    torch.save({"ema": network.state_dict(), "step": 3}, tmp_path / "ema.pt")
    (tmp_path / "options.json").write_text(json.dumps({"network": OPTIONS, "seed": 0}))
    words = [str(tmp_path / "ema.pt"), "--options", str(tmp_path / "options.json"), "--half"]
    main([*words, "--name", "denoise-grey", "--sigma", "0", "50", "--out", str(tmp_path / "w")])
    shipped = load(tmp_path / "w/denoise-grey.safetensors")
    about = shipped.description
    assert (about["task"], about["name"], about["sigma"]) == ("denoising", "denoise-grey", [0, 50])
    image = torch.rand(1, 3, 30, 40)
    with torch.no_grad():
        expected = image - network.eval()(image, 0.1)
        assert (shipped(image, 0.1) - expected).abs().max() < 1e-3
    main([str(tiny_run), "--name", "mine", "--out", str(tmp_path / "w")])
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "w/mine.safetensors")(image), load(tiny_run)(image))


def test_a_network_of_no_level_names_none(tmp_path: Path) -> None:
    options = {**OPTIONS, "noise_level_plane": False}
    torch.save(build_model("window_mixer", **options).state_dict(), tmp_path / "blind.pt")
    (tmp_path / "options.json").write_text(json.dumps(options))
    words = [str(tmp_path / "blind.pt"), "--options", str(tmp_path / "options.json")]
    main([*words, "--name", "denoise-camera", "--out", str(tmp_path)])
    assert "sigma" not in load(tmp_path / "denoise-camera.safetensors").description


def test_what_cannot_be_released(tmp_path: Path) -> None:
    (tmp_path / "options.json").write_text(json.dumps(OPTIONS))
    torch.save({"step": 3}, tmp_path / "none.pt")
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("no weights")
    for name, message in (("none", "no weights"), ("other", "another network"), ("text", "text")):
        words = [str(tmp_path / f"{name}.pt"), "--options", str(tmp_path / "options.json")]
        with pytest.raises(InputError, match=message) as caught:
            main([*words, "--name", "denoise-grey", "--out", str(tmp_path / "w")])
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "w").exists()
