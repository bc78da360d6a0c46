"""The meaning of a label cell: a name, a number, or the id of a known name.

White space around a label is ignored ("pos " is "pos"), but case is not: "Pos" and "pos" are two
classes, and a warning. A name is what the file says: "1.0" is read as 1 only where all labels are
whole numbers and none is spelled in two ways, since data frames write integers like that.
"""

from __future__ import annotations

import ast
import contextlib
import json
import math
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

# As many digits as an id can have; Python itself refuses to read thousands.
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,99}")
_HUGE = 10**100
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_HELD_NUMBER = re.compile(r"(?<![A-Za-z0-9.])[0-9]{1,6}(?![A-Za-z0-9])")

# A list as Python, NumPy or JSON writes it into a cell: quoted strings, numbers or booleans.
# Possessive: what has been read is never read again in another way, which could take for ever.
_QUOTED = r"""'(?:[^'\\\n]|\\.)*+'|"(?:[^"\\\n]|\\.)*+\""""
_ITEM = re.compile(rf"{_QUOTED}|-?+[0-9]{{1,99}}+(?:\.[0-9]*+)?+|True|False|true|false")
_GAP = r"(?:\s*+,\s*+|\s++)"
_LIST = re.compile(
    rf"\[\s*+(?:(?:{_ITEM.pattern})(?:{_GAP}(?:{_ITEM.pattern}))*+\s*+,?+\s*+)?+\]"  # [1. 0.]
    rf"|[({{]\s*+(?:{_QUOTED})(?:{_GAP}(?:{_QUOTED}))*+\s*+,?+\s*+[)}}]|set\(\)"  # ('a',), {{'a'}}
)
# A place for each label without brackets; of two, "0,1" would be a decimal comma, "0|1" two names.
_PLACES = re.compile(r"[01](?:([ ;|,])[01])(?:\1[01])+")


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


def list_in(cell: Any) -> list[Any] | None:
    """Returns the list that a cell has as text: "['war', 'music']", "[1 0 1]", "{'war'}"; None for
    any other cell."""
    text = cell.strip() if isinstance(cell, str) else ""
    if not _LIST.fullmatch(text):
        return None
    with contextlib.suppress(ValueError):
        return json.loads(text)
    with contextlib.suppress(ValueError, SyntaxError):
        return [_item(item) for item in _ITEM.findall(text)]
    return None


def places_in(cell: Any) -> list[int] | None:
    """Returns the 0 or 1 for each label that a cell has as text without brackets: "1 0 1"."""
    text = cell.strip() if isinstance(cell, str) else ""
    return list(map(int, re.findall("[01]", text))) if _PLACES.fullmatch(text) else None


def _item(text: str) -> Any:
    if text[0] in "'\"":
        return ast.literal_eval(text)
    return text.lower() == "true" if text.isalpha() else float(text) if "." in text else int(text)


def are_places(target: Any) -> bool:
    """Whether a target is a list with a 0 or 1 for each label.

    It has at least three items, so 0 or 1 stands there twice, as no name does in a list of names.
    """
    return (
        isinstance(target, list)
        and len(target) > 2
        and all(name_of(item) in ("0", "1", "true", "false") for item in target)
    )


def is_set(item: Any) -> bool:
    """Whether an item of such a list is 1 or true."""
    return name_of(item) in ("1", "true")


def name_of(value: Any) -> str | None:
    """Returns the name of a label: strings stripped of white space, whole numbers in decimal,
    booleans as in JSON; None for any other value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):  # not through float, which would make neighbours of 2**53 equal
        return str(value) if abs(value) < _HUGE else None
    if isinstance(value, str):
        return value.strip() or None
    number = number_of(value)
    return str(int(number)) if number is not None and number.is_integer() else None


def without_point(name: str) -> str:
    """Returns "1" of "1.0"; any other name unchanged."""
    number = number_of(name) if "." in name else None
    return str(int(number)) if number is not None and number.is_integer() else name


def without_points(names: Collection[str]) -> dict[str, str]:
    """Returns {"1.0": "1"} for names that are all whole numbers, each spelled in one way; {} for
    others, which are names as they stand."""
    plain = {name: without_point(name) for name in names}
    numbers = [number_of(name) for name in plain]
    whole = all(number is not None and number.is_integer() for number in numbers)
    return plain if whole and len(set(plain.values())) == len(plain) else {}


def found_names(used: Collection[str], names: Sequence[str]) -> dict[str, str | None]:
    """Returns for each label that a file uses the name that it means, None if there is none.

    That is the name itself, or the only one that differs in outer white space. Where all labels and
    all names are whole numbers, and no two are equal, "1.0" means 1 as well.
    """
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(name.strip(), []).append(name)
    exact, whole = set(names), without_points(used)
    numbers = {plain: name for name, plain in without_points(names).items()}
    found: dict[str, str | None] = {}
    for label in used:
        near = alike.get(label, [])
        found[label] = numbers.get(whole.get(label, ""))
        if label in exact or len(near) == 1:
            found[label] = label if label in exact else near[0]
    return found


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
    """Whether integers in the data are ids of names.

    If names are integers themselves (stars from 1 to 5), or hold them ("1 star"), an integer is
    never an id: it would be another class.
    """
    return are_integers(used) and not hold_numbers(names)


def hold_numbers(names: Sequence[str]) -> bool:
    """Whether names are integers, or hold some that are not their ids."""
    return any(
        _INTEGER.fullmatch(name)
        or any(i <= len(names) and i != own for i in map(int, _HELD_NUMBER.findall(name)))
        for own, name in enumerate(names)
    )


def is_encodable(text: str) -> bool:
    """Whether UTF-8 can encode it: it has no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_list(target: Any) -> list[Any]:
    return target if isinstance(target, list) else [target]
