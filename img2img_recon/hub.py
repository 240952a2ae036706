"""A network as a folder with the files of the Hugging Face hub: configuration, weights and model card."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import nn

from img2img_recon.networks.base import Described, described
from img2img_recon.support.errors import InputError, reason
from img2img_recon.support.files import write_json, write_text
from img2img_recon.trained import HUB_WEIGHTS, load, shipped
from img2img_recon.weights_file import read_weights, write_weights

CONFIG, CARD = "config.json", "README.md"
# Of a run's configuration the rest is about its machine, its data's place and its training.
KEPT = (
    *("task", "name", "model", "options", "wrapper", "sigma", "protocol", "noise"),
    *("challenge", "mask_type", "accel", "center_fractions"),
)


def save_pretrained(
    network: Described,
    folder: Path | str,
    metrics: Mapping[str, float] | None = None,
    dataset: str = "held-out data",
) -> None:
    """Write config.json, model.safetensors and README.md, the model card.

    Networks that come with the package get their own card with its scores, unless their weights were changed.

    Args:
        network: one that says how it was built.
        folder: made where it is missing.
        metrics: scores for the card of any other network, by the hub's names for them, as "psnr".
        dataset: what it was scored on, in words.

    Raises:
        InputError: a network without a description, or files that cannot be written.
    """
    folder, given = Path(folder), described(network, folder)
    description = {key: given[key] for key in KEPT if key in given}
    name = str(given.get("name") or given["model"])
    own = shipped().get(name)
    if own is not None and _is_same(network, own):
        card = own.with_suffix(".md").read_text(encoding="utf-8")
    else:
        card = _card(name, description, metrics or {}, dataset)
    write_weights(folder / HUB_WEIGHTS, network.state_dict(), description)
    write_json(folder / CONFIG, description)
    write_text(folder / CARD, card)


def from_pretrained(
    source: Path | str, *, tasks: Collection[str] | None = None, revision: str | None = None
) -> nn.Module:
    """The network of a folder of `save_pretrained`, of a repository of the hub, or of anything that `load` opens.

    Args:
        source: as of `load`, or a repository "owner/name", which huggingface_hub, if it is installed, fetches.
        tasks: as of `load`.
        revision: of the repository.

    Raises:
        InputError: as `load`, or the repository cannot be had.
    """
    word = str(source)
    if Path(source).exists() or word in shipped() or word.count("/") != 1 or Path(word).suffix:
        return load(source, tasks=tasks)
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise InputError(
            f"{word}: no such folder; for a repository of the hub: pip install huggingface_hub"
        ) from None
    try:
        folder = snapshot_download(
            word, revision=revision, allow_patterns=[HUB_WEIGHTS, CONFIG, CARD]
        )
    except Exception as error:  # of requests, httpx, the hub: whatever it says is about this name
        raise InputError(f"{word}: the hub does not give it ({reason(error)})") from None
    return load(folder, tasks=tasks)


def _is_same(network: nn.Module, path: Path) -> bool:
    weights = network.state_dict()
    _, stored = read_weights(path)
    return weights.keys() == stored.keys() and all(
        torch.equal(weights[key].cpu(), value.to(weights[key].dtype))
        for key, value in stored.items()
    )


def _card(
    name: str, description: Mapping[str, object], metrics: Mapping[str, float], dataset: str
) -> str:
    """A card of what is known; JSON is YAML too."""
    task = {"type": "image-to-image", "name": str(description.get("task") or "image restoration")}
    front: dict[str, object] = {
        "library_name": "img2img-mlp-mixer",
        "pipeline_tag": task["type"],
        "tags": ["mlp-mixer", "image-restoration"],
    }
    if metrics:
        slug = "-".join("".join(c if c.isalnum() else " " for c in dataset.lower()).split())
        result = {
            "task": task,
            "dataset": {"type": slug, "name": dataset},
            "metrics": [{"type": key, "value": value} for key, value in metrics.items()],
        }
        front["model-index"] = [{"name": name, "results": [result]}]
    head = "\n".join(f"{key}: {json.dumps(value)}" for key, value in front.items())
    table = "".join(f"| {key} | {value:.4g} |\n" for key, value in metrics.items())
    scores = f"\n## Scores\n\nOn {dataset}:\n\n| metric | value |\n| --- | --- |\n{table}"
    return (
        f"---\n{head}\n---\n\n# {name}\n\nTrained with img2img_recon; this folder is opened by\n\n"
        "    from img2img_recon import from_pretrained\n    network = from_pretrained(FOLDER)\n\n"
        f"## Network\n\n    {json.dumps(description)}\n{scores if metrics else ''}"
    )
