"""Folders whose files are their registry: the members of each, and their options.

Note: options are read from the source of a member's file, without importing it: the config needs
them first, members import JAX, which takes seconds, and a wrong flag should be reported at once. So
an `Options` class is plain data: fields whose defaults are literals, each with a comment.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

_PACKAGE = Path(__file__).parent
_Section = TypeVar("_Section", bound=type)


@dataclasses.dataclass(frozen=True)
class Declared:
    """The options that a member's file declares."""

    options: Any  # its dataclass `Options` with the defaults; None = it has none
    choices: dict[str, tuple[str, ...]]  # its CHOICES: {field: allowed values}
    ranges: dict[str, tuple[float, float, bool]]  # its RANGES, as in config.py
    comments: dict[str, str]  # {field: comment}


def members(room: str) -> tuple[str, ...]:
    """Returns the names of a room's files, which are its members; subfolders hold shared code.

    A room in a room is named "optim/schedules".
    """
    found = pkgutil.iter_modules([str(_PACKAGE / room)])
    return tuple(module.name for module in found if not module.ispkg)


def member(room: str, name: str) -> Any:
    """Imports a member."""
    return importlib.import_module(f"flaxbert.{room.replace('/', '.')}.{name}")


def options_for(module: Any, section: Any) -> Any:
    """Returns a member's `Options` from a config section, or the section if it has none."""
    if not hasattr(module, "Options"):
        return section
    return module.Options(**vars(getattr(section, section.name)))


def with_options(room: str) -> Callable[[_Section], _Section]:
    """Adds a field to a config section for each member of a room that has options."""

    def extended(section: _Section) -> _Section:
        options = {name: declared(room, name).options for name in members(room)}
        fields = [(name, type(value), value) for name, value in options.items() if value]
        made: Any = dataclasses.make_dataclass(
            section.__name__, fields, bases=(section,), frozen=True
        )
        made.__module__, made.__doc__ = section.__module__, section.__doc__
        return made

    return extended


@functools.cache
def declared(room: str, name: str) -> Declared:
    """Reads the options that a member's file declares."""
    source = (_PACKAGE / room / f"{name}.py").read_text(encoding="utf-8")
    found: dict[str, Any] = {"CHOICES": {}, "RANGES": {}}
    options, comments = None, {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in found:
            found[ast.unparse(node.targets[0])] = ast.literal_eval(node.value)
        elif isinstance(node, ast.ClassDef) and node.name == "Options":
            options = _defaults(node)
            comments = comments_in(source, node)
    return Declared(options, found["CHOICES"], found["RANGES"], comments)


def comments_in(source: str, section: ast.ClassDef) -> dict[str, str]:
    """Returns the comment at the line of each field of a class, "" if it has none."""
    lines = source.splitlines()
    return {
        ast.unparse(field.target): lines[field.lineno - 1].partition("  # ")[2]
        for field in section.body
        if isinstance(field, ast.AnnAssign)
    }


def _defaults(section: ast.ClassDef) -> Any:
    fields = [
        (ast.unparse(field.target), ast.unparse(field.annotation), ast.literal_eval(field.value))
        for field in section.body
        if isinstance(field, ast.AnnAssign) and field.value
    ]
    return dataclasses.make_dataclass("Options", fields, frozen=True)()
