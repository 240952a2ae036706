"""Options read from source: equal to what the imported class says, of any JSON type, without torch."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
import typing
from dataclasses import MISSING
from pathlib import Path
from typing import Any, Literal

import pytest

from img2img_recon.networks import zoo
from img2img_recon.networks.signature import (
    Option,
    class_attribute,
    constructor_options,
    in_words,
)
from img2img_recon.support.errors import InputError

NETWORKS = sorted({row.network for row in zoo.MODELS.values()})
SOURCE = '''
import torch
from typing import Literal, Optional
from {here}_types import Mode, STEPS as COUNT
from .{here}_types import Mode as Same

WIDTHS = (4, 2 * COUNT)

class Net(torch.nn.Module):
    """A network.

    Args:
        required: needed. And more.
        mode: how it
            is done; in two lines.
        widths: of the layers.

    Raises:
        InputError: never.
    """

    grid_divisor: int = 2 ** COUNT

    def __init__(
        self,
        required: int,
        mode: Mode = "fast",
        same: Optional[Same] = None,
        *,
        widths: tuple[int, ...] = WIDTHS,
        share: float | None = -0.5,
        name: "str" = "n",
        on: bool = True,
    ) -> None: ...

class Untyped:
    def __init__(self, size=3) -> None: ...

class FromTorch:
    def __init__(self, dtype: torch.dtype = torch.float32) -> None: ...

class WithoutInit: ...
'''


def resolved(network: str) -> type:
    module, _, name = network.partition(":")
    found: type = getattr(importlib.import_module(module), name)
    return found


@pytest.mark.parametrize("network", NETWORKS)
def test_options_are_those_of_the_imported_class(network: str) -> None:
    constructor = resolved(network).__init__
    hints = typing.get_type_hints(constructor)
    arguments = list(inspect.signature(constructor).parameters.values())[1:]
    options = constructor_options(network)
    assert list(options) == [argument.name for argument in arguments]
    for argument in arguments:
        option = options[argument.name]
        assert option.type == hints[argument.name]
        assert option.default == argument.default
        assert 10 < len(option.help) < 120


@pytest.mark.parametrize("network", NETWORKS)
def test_grid_divisor_is_that_of_the_imported_class(network: str) -> None:
    assert class_attribute(network, "grid_divisor", 1) == resolved(network).grid_divisor


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A package with two modules that nobody has imported."""
    here = f"signature_{abs(hash(request.node.name))}"
    folder = tmp_path / f"package_{here}"
    folder.mkdir()
    (folder / "__init__.py").touch()
    types = 'from typing import Literal\nMode = Literal["fast", "slow"]\nSTEPS: int = 3\n'
    (folder / f"{here}_types.py").write_text(types)
    (tmp_path / f"{here}_types.py").write_text(types)
    (folder / "net.py").write_text(SOURCE.replace("{here}", here))
    monkeypatch.syspath_prepend(tmp_path)
    return f"package_{here}.net"


def test_types_and_defaults_of_every_kind(module: str) -> None:
    options = constructor_options(f"{module}:Net")
    mode = Literal["fast", "slow"]
    assert list(options.values()) == [
        Option("required", int, MISSING, "needed"),
        Option("mode", mode, "fast", "how it is done; in two lines"),
        Option("same", mode | None, None, ""),
        Option("widths", tuple[int, ...], (4, 6), "of the layers"),
        Option("share", float | None, -0.5, ""),
        Option("name", str, "n", ""),
        Option("on", bool, True, ""),
    ]
    assert class_attribute(f"{module}:Net", "grid_divisor", 1) == 8
    assert class_attribute(f"{module}:Untyped", "grid_divisor", 1) == 1
    assert module not in sys.modules


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (":Untyped", "the argument size has no type"),
        (":FromTorch", "torch cannot be told from the source alone"),
        (":WithoutInit", "has no __init__ of its own"),
        (":Absent", "defines no class 'Absent'"),
        ("_missing:Net", "no such Python module"),
    ],
)
def test_what_cannot_be_read_is_named(module: str, network: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        constructor_options(module + network)


@pytest.mark.parametrize(
    ("hint", "value", "fitted"),
    [
        (int, 3, 3),
        (float, 3, 3.0),
        (float, 0.25, 0.25),
        (str, "a", "a"),
        (bool, False, False),
        (int | None, None, None),
        (tuple[int, ...], [1, 2, 3], (1, 2, 3)),
        (tuple[float, ...], [1, 0.5], (1.0, 0.5)),
        (int | tuple[int, int], [3, 4], (3, 4)),
        (Literal["a", 2], 2, 2),
        (tuple[Literal["a", "b"], ...], ["b", "a"], ("b", "a")),
    ],
)
def test_values_that_fit(hint: Any, value: Any, fitted: Any) -> None:
    got = Option("o", hint, MISSING, "").checked(value)
    assert got == fitted
    assert type(got) is type(fitted)


@pytest.mark.parametrize(
    ("hint", "value", "words"),
    [
        (int, 0, "a whole number from 1"),
        (int, 2.0, "a whole number from 1"),
        (int, True, "a whole number from 1"),
        (float, "3", "a number"),
        (float, float("nan"), "a number"),
        (float, True, "a number"),
        (str, 3, "text"),
        (bool, 1, "true or false"),
        (float | None, "x", "a number or null"),
        (int | tuple[int, int], [3, 4, 5], "a whole number from 1 or 2 whole numbers from 1"),
        (tuple[int, ...], 3, "whole numbers from 1"),
        (tuple[str, ...], ["a", 1], "words"),
        (Literal["a", "b"], "c", "'a' or 'b'"),
        (Literal[1], True, "1"),
    ],
)
def test_values_that_do_not_fit(hint: Any, value: Any, words: str) -> None:
    with pytest.raises(InputError) as caught:
        Option("o", hint, MISSING, "").checked(value)
    assert str(caught.value) == f"o is {value!r}; it must be {words}"
    assert in_words(hint) == words


@pytest.mark.parametrize(("default", "least"), [(8, 1), (0, 0), (-2, -2), ((0, 3), 0)])
def test_a_whole_number_may_be_as_small_as_its_default(default: Any, least: int) -> None:
    option = Option("o", int, default, "")
    assert option.checked(least) == least
    with pytest.raises(InputError, match=f"from {least}"):
        option.checked(least - 1)


def test_nothing_imports_torch_before_a_network_is_built() -> None:
    script = """
import json, sys
import img2img_recon
from img2img_recon import list_models, model_config
from img2img_recon.networks import zoo
options = zoo.options_of_all()
configs = [zoo.complete_config(name, {}, (60, 50)) for name in list_models()]
json.dumps([configs, [zoo.find_row(name).options["in_chans"].help for name in list_models()]])
print([name for name in ("torch", "numpy", "fastmri") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == json.dumps([]), done.stderr
