"""Checks the fields of a checkpoint's run.json against the types of `Progress`.

A manifest proves that a checkpoint was not changed, not who made it. Note: the types of Progress
are the list of fields, so a new field is checked automatically.
"""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from pathlib import PurePath
from typing import Any

from flaxbert.errors import ModelFileError
from flaxbert.loop.progress import Progress

_DTYPES = ("float32", "bfloat16")
_MOST = 2**53  # the largest exact integer of a float
_BEST = {"step": int, "value": float, "weights": str, "results": dict}
_FACTS = {
    "training": dict,
    "validation": dict,
    "source": dict,
    "dtype": str,
    "model_revision": str,
}


def check_recorded(values: Any, directory: PurePath, step: int) -> dict[str, Any]:
    """Returns the checked run.json of `directory`, the checkpoint at `step`.

    Raises:
      ModelFileError: a field is missing, of another type or out of range; names it.
    """
    if not isinstance(values, dict):
        raise _wrong(directory, "it is not an object")
    hints = typing.get_type_hints(Progress)
    for name in ("step", "window", "total"):
        if name not in values:
            raise _wrong(directory, f"{name} is missing")
    for name, hint in {**_FACTS, **hints}.items():
        if name in values and not _fits(values[name], hint):
            raise _wrong(directory, f"{name} is {values[name]!r:.60}")
    best = values.get("best")
    if best is not None and not all(_fits(best.get(name), _BEST[name]) for name in _BEST):
        raise _wrong(directory, f"best is {best!r:.60}")
    if values["step"] != step:
        raise _wrong(directory, f"step is {values['step']}")
    for name in ("training", "validation"):
        if name not in values:
            raise _wrong(directory, f"{name} is missing")
    if values.get("dtype", _DTYPES[0]) not in _DTYPES:
        raise _wrong(directory, f"dtype is {values['dtype']!r:.60}")
    return values


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value has the type of a field."""
    if isinstance(hint, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if dataclasses.is_dataclass(hint):
        inner = typing.get_type_hints(hint)
        return isinstance(value, dict) and all(
            name in inner and _fits(some, inner[name]) for name, some in value.items()
        )
    if hint is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    if hint is int:
        return type(value) is int and 0 <= value < _MOST
    return isinstance(value, typing.get_origin(hint) or hint)


def _wrong(directory: PurePath, what: str) -> ModelFileError:
    return ModelFileError(
        f"{directory}: run.json is not as a run writes it: {what}. Delete this checkpoint to go "
        "back to an older one, or start in another workdir."
    )
