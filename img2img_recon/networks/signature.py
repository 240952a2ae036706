"""What a network's constructor takes, read from its source: no torch is imported, so a command line stays fast.

A network is named "package.module:Class". Its options are the constructor's arguments: name, type and
default from the signature, one sentence from the `Args:` section of the class's docstring.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
import importlib.util
import math
import re
import sys
import types
from collections.abc import Iterator
from dataclasses import MISSING
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

from img2img_recon.support.errors import InputError
from img2img_recon.support.values import alternatives


class Option(NamedTuple):
    """One argument of a network's constructor.

    Attributes:
        name: as the constructor spells it.
        type: of int, float, str, bool, None, Literal, tuple, and unions of them. An int counts something:
            it is at least 1, or at least the default where that is smaller.
        default: what it is if it is not given; `dataclasses.MISSING` if it has to be.
        help: one sentence.
    """

    name: str
    type: Any
    default: Any
    help: str

    def checked(self, value: Any) -> Any:
        """`value` as the constructor takes it: a float for a whole number, a tuple for a list.

        Raises:
            InputError: a value of another type, or a number out of range.
        """
        defaults = self.default if isinstance(self.default, (tuple, list)) else [self.default]
        least = min([1, *(number for number in defaults if type(number) is int)])
        for kind in alternatives(self.type):
            fitted = _fitted(kind, value, least)
            if fitted is not _MISFIT:
                return fitted
        raise InputError(f"{self.name} is {value!r}; it must be {in_words(self.type, least)}")


_MISFIT = object()


def _fitted(kind: Any, value: Any, least: int) -> Any:
    """`value` as `kind` holds it, or `_MISFIT`."""
    fits = False
    if get_origin(kind) is Literal:
        fits = any(value == one and type(value) is type(one) for one in get_args(kind))
    elif get_origin(kind) is tuple:
        return _fitted_tuple(get_args(kind), value, least)
    elif kind in (None, types.NoneType):
        fits = value is None
    elif kind is int:
        fits = type(value) is int and value >= least
    elif kind is float:
        fits = type(value) in (int, float) and math.isfinite(value)
        value = float(value) if fits else value
    else:
        fits = type(value) is kind
    return value if fits else _MISFIT


def _fitted_tuple(kinds: tuple[Any, ...], value: Any, least: int) -> Any:
    if not isinstance(value, (tuple, list)):
        return _MISFIT
    if kinds[1:] == (...,):
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        return _MISFIT
    fitted = tuple(_fitted(kind, item, least) for kind, item in zip(kinds, value, strict=True))
    return _MISFIT if any(item is _MISFIT for item in fitted) else fitted


def in_words(hint: Any, least: int = 1) -> str:
    """What a type allows, for messages: "a whole number from 1 or 2 whole numbers from 1"."""
    return " or ".join(_words(kind, least) for kind in alternatives(hint))


def _words(kind: Any, least: int) -> str:
    plural = {
        int: f"whole numbers from {least}",
        float: "numbers",
        str: "words",
        bool: "true or false",
    }
    single = {int: f"a whole number from {least}", float: "a number", str: "text"}
    if get_origin(kind) is Literal:
        return " or ".join(repr(one) for one in get_args(kind))
    if get_origin(kind) is tuple:
        items = get_args(kind)
        each = plural.get(items[0], in_words(items[0], least))
        return each if items[1:] == (...,) else f"{len(items)} {each}"
    return single.get(kind) or plural.get(kind) or "null"


@functools.cache
def constructor_options(network: str) -> dict[str, Option]:
    """The options of a network, in the order of its constructor's arguments.

    Args:
        network: "package.module:Class".

    Raises:
        InputError: no such module or class, or an argument without a type, or with a type or default that
            the source alone does not tell.
    """
    module, found = _find(network)
    constructors = [item for item in found.body if isinstance(item, ast.FunctionDef)]
    constructor = next((item for item in constructors if item.name == "__init__"), None)
    if constructor is None:
        raise InputError(f"{network} has no __init__ of its own")
    helps = dict(_argument_helps(ast.get_docstring(found) or ""))
    options = {}
    for argument, default in _arguments(constructor.args):
        if argument.annotation is None:
            raise InputError(f"{network}: the argument {argument.arg} has no type")
        options[argument.arg] = Option(
            argument.arg,
            module.type(argument.annotation),
            MISSING if default is None else module.value(default),
            helps.get(argument.arg, ""),
        )
    return options


def class_attribute(network: str, name: str, default: Any) -> Any:
    """The value that a network's class sets for an attribute, or `default` where it sets none."""
    module, found = _find(network)
    expression = module.assigned(name, found.body)
    return default if expression is None else module.value(expression)


def _arguments(spec: ast.arguments) -> Iterator[tuple[ast.arg, ast.expr | None]]:
    """Arguments after `self` with their defaults."""
    ordered = [*spec.posonlyargs, *spec.args]
    missing: list[ast.expr | None] = [None] * (len(ordered) - len(spec.defaults))
    yield from list(zip(ordered, [*missing, *spec.defaults], strict=True))[1:]
    yield from zip(spec.kwonlyargs, spec.kw_defaults, strict=True)


def _argument_helps(docstring: str) -> Iterator[tuple[str, str]]:
    """First sentence of every entry of a docstring's `Args:` section."""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", docstring, re.MULTILINE)
    entries = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section[1] if section else "", re.M)
    for name, text in entries:
        yield name, re.split(r"\.(?:\s|$)", " ".join(text.split()), maxsplit=1)[0]


def _find(network: str) -> tuple[_Source, ast.ClassDef]:
    name, _, class_name = network.partition(":")
    module = _source(name)
    for item in module.tree.body:
        if isinstance(item, ast.ClassDef) and item.name == class_name:
            return module, item
    raise InputError(f"{network}: {name} defines no class {class_name!r}")


@functools.cache
def _source(name: str) -> _Source:
    """The source of a module, which is found but not imported (the packages around it are)."""
    try:
        spec = importlib.util.find_spec(name)
    except ImportError:
        spec = None
    if spec is None or not (spec.origin or "").endswith(".py"):
        raise InputError(f"{name}: no such Python module")
    return _Source(name, ast.parse(Path(str(spec.origin)).read_text(encoding="utf-8")))


class _Source(dict[str, Any]):
    """The names of a module, each evaluated when it is looked up: a literal, a type, an alias of types."""

    def __init__(self, name: str, tree: ast.Module) -> None:
        super().__init__()
        self.name = name
        self.tree = tree

    def value(self, expression: ast.expr) -> Any:
        """Evaluate a type or a default."""
        return eval(compile(ast.Expression(expression), self.name, "eval"), {}, self)

    def type(self, annotation: ast.expr) -> Any:
        """Evaluate an annotation, which may be written as text."""
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            annotation = ast.parse(annotation.value, mode="eval").body
        return self.value(annotation)

    def assigned(self, name: str, body: list[ast.stmt]) -> ast.expr | None:
        """What a module's or a class's body assigns to a name."""
        for item in body:
            targets = item.targets if isinstance(item, ast.Assign) else []
            if isinstance(item, ast.AnnAssign) and item.value is not None:
                targets = [item.target]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                return item.value  # type: ignore[attr-defined]
        return None

    def imported(self, name: str) -> tuple[str, str] | None:
        """The module that a name is imported from, and its name there."""
        for item in self.tree.body:
            if not isinstance(item, ast.ImportFrom):
                continue
            for alias in item.names:
                if (alias.asname or alias.name) == name:
                    module = "." * item.level + (item.module or "")
                    package = self.name.rpartition(".")[0]
                    return importlib.util.resolve_name(module, package), alias.name
        return None

    def __missing__(self, name: str) -> Any:
        expression = self.assigned(name, self.tree.body)
        origin = self.imported(name)
        if expression is not None:
            self[name] = self.value(expression)
        elif origin and origin[0].partition(".")[0] in sys.stdlib_module_names:
            self[name] = getattr(importlib.import_module(origin[0]), origin[1])
        elif origin:
            self[name] = _source(origin[0])[origin[1]]
        elif hasattr(builtins, name):
            self[name] = getattr(builtins, name)
        else:
            raise InputError(f"{self.name}: {name} cannot be told from the source alone")
        return self[name]
