"""Defaults in words, from what a task settles."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from img2img_recon.support.cli import Flag, config_from, flag, flags_of
from img2img_recon.training.default_words import default_words


@dataclass(frozen=True)
class Config:
    data: str | None = flag(None, help="")
    epochs: int | None = flag(None, help="")
    lr: float | None = flag(None, help="")
    accel: tuple[int, ...] | None = flag(None, help="")
    workers: int | None = flag(None, help="")
    split: str | None = flag(None, help="")
    seed: int = flag(42, help="")
    options: Any = None


class Recipe:
    """A task that trains for 40 epochs, on its own data for 20."""

    def flags(self) -> dict[str, Flag]:
        depth = Flag("depth", int, None, "", option=True)
        return {**flags_of(Config), "depth": depth}

    def config(self, values: Mapping[str, Any]) -> Config:
        return config_from(Config, values)

    def resolve(self, given: Config) -> Config:
        own = given.data is None
        return replace(
            given,
            epochs=20 if own else 40,
            lr=5e-4,
            accel=(4, 8),
            split=None if own else "val",
            options={"depth": 6 if own else 16, "in_chans": 1},
        )


def test_what_differs_between_cases_is_named():
    task: Any = Recipe()
    words = default_words([("data", task, {"data": "x"}), ("own data", task, {})])
    assert words == {
        "epochs": "40 (own data: 20)",
        "lr": "0.0005",
        "accel": "4 8",
        "split": "val (own data: none)",
        "depth": "16 (own data: 6)",
    }
