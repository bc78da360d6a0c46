"""The meaning of a label cell: a name, a number, or the id of a known name.

White space around a label is ignored ("pos " is "pos"), but case is not: "Pos" and "pos" are two
classes, and a warning.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

# As many digits as an id can have; Python itself refuses to read thousands.
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,99}")
_HUGE = 10**100
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


def is_missing(cell: Any, separator: str) -> bool:
    """Whether a cell holds no label; with a separator an empty cell is a row without labels."""
    if isinstance(cell, str) and not cell.strip():
        return not separator
    return cell is None


def split_cell(cell: Any, separator: str) -> Any:
    """Returns the labels of one cell as a list; what is no string is returned unchanged."""
    if not isinstance(cell, str):
        return cell
    if not separator:
        return [cell]
    return [part.strip() for part in cell.split(separator) if part.strip()]


def name_of(value: Any) -> str | None:
    """Returns the name of a label: strings stripped of white space, integers in decimal, booleans
    as in JSON; None for any other value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):  # not through float, which would make neighbours of 2**53 equal
        return str(value) if abs(value) < _HUGE else None
    if isinstance(value, str):
        value = value.strip()
        number = number_of(value)
        if "." in value and number is not None and number.is_integer():
            return str(int(number))
        return value or None
    number = number_of(value)
    return str(int(number)) if number is not None and number.is_integer() else None


def number_of(value: Any) -> float | None:
    """Returns the finite number that a cell holds; None if it holds none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        stripped = value.strip()
        value = float(stripped) if _NUMBER.fullmatch(stripped) else None
    if not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def kind_of(value: Any) -> str:
    name = type(value).__name__
    kinds = {"int": "number", "float": "number", "str": "string", "bool": "true/false"}
    return kinds.get(name, {"dict": "object", "NoneType": "null"}.get(name, name))


def are_integers(names: Iterable[str]) -> bool:
    return all(map(_INTEGER.fullmatch, names))


def are_ids(used: Iterable[str], names: Sequence[str]) -> bool:
    """Whether integers in the data are ids of names. If names are integers themselves (stars from 1
    to 5) an integer is always a name: as an id it would be another class."""
    return are_integers(used) and not any(map(_INTEGER.fullmatch, names))


def is_encodable(text: str) -> bool:
    """Whether UTF-8 can encode it: it has no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_list(target: Any) -> list[Any]:
    return target if isinstance(target, list) else [target]
