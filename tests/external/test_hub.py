"""Our folders in huggingface_hub itself, which is installed beside what is here, into a folder of its own.

IMG2IMG_EXTERNAL=1 python -m pytest tests/external/test_hub.py
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from img2img_recon import AnySize, InputError, Residual, build_model, from_pretrained, load
from img2img_recon.trained import shipped
from tests.external.environments import CACHE, only_if_asked

PINNED = "huggingface_hub==1.33.0"
IMAGE = torch.rand(1, 3, 33, 21, generator=torch.Generator().manual_seed(0))

pytestmark = only_if_asked


@pytest.fixture(scope="module")
def hub() -> Any:
    folder = CACHE / PINNED
    if not (folder / "whole").is_file():
        words = ("-m", "pip", "install", "--quiet", "--upgrade", "--target", folder, PINNED)
        subprocess.run([sys.executable, *words], check=True)
        (folder / "whole").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(sys, "path", [*sys.path, str(folder)])
        yield importlib.import_module("huggingface_hub")


def test_its_own_loader_reads_our_folder(hub: Any, tmp_path: Path) -> None:
    class Denoiser(Residual, hub.PyTorchModelHubMixin):
        def __init__(self, model: str, options: dict[str, Any]) -> None:
            super().__init__(AnySize(build_model(model, **options)))

    network = load("denoise-color")
    network.save_pretrained(tmp_path)
    theirs = Denoiser.from_pretrained(tmp_path, strict=True).eval()
    with torch.no_grad():
        assert torch.equal(theirs(IMAGE, 0.1), network(IMAGE, 0.1))


def test_its_parser_finds_the_scores_of_every_card(hub: Any, tmp_path: Path) -> None:
    build_model("dncnn", depth=3, chans=4).save_pretrained(tmp_path, metrics={"psnr": 30.5})
    cards = [path.with_suffix(".md") for path in shipped().values()]
    for path in (*cards, tmp_path / "README.md"):
        card = hub.ModelCard.load(path)
        assert card.data.pipeline_tag == "image-to-image"
        assert card.data.eval_results
        for result in card.data.eval_results:
            assert result.metric_type in ("psnr", "ssim")
            assert isinstance(result.metric_value, float)
        # What it writes again is the same data.
        again = hub.ModelCard(f"---\n{card.data.to_yaml()}\n---\n")
        assert again.data.to_dict() == card.data.to_dict()


def test_a_repository_in_its_cache_is_opened_by_name(
    hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    commit, repository = "0" * 40, tmp_path / "models--somebody--denoiser"
    load("denoise-grey").save_pretrained(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    network = from_pretrained("somebody/denoiser")
    assert network.description == load("denoise-grey").description
    assert json.loads((repository / "snapshots" / commit / "config.json").read_text())["model"]
    with pytest.raises(InputError, match="nobody/nothing: the hub does not give it"):
        from_pretrained("nobody/nothing")
