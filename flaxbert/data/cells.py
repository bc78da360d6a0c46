"""The meaning of a label cell: a name, a number, or the id of a known name.

White space around a label is ignored ("pos " is "pos"), but case is not: "Pos" and "pos" are two
classes, and a warning. A name is what the file says: "1.0" is read as 1 only where all labels are
whole numbers and none is spelled in two ways, since data frames write integers like that.
"""

from __future__ import annotations

import ast
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
_QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_ITEM = re.compile(rf"{_QUOTED}|-?[0-9]+(?:\.[0-9]*)?|True|False|true|false")
_GAP = r"(?:\s*,\s*|\s+)"
_LIST = re.compile(
    rf"\[\s*(?:(?:{_ITEM.pattern})(?:{_GAP}(?:{_ITEM.pattern}))*\s*,?\s*)?\]"  # ['a', 'b'], [1. 0.]
    rf"|[({{]\s*(?:{_QUOTED})(?:{_GAP}(?:{_QUOTED}))*\s*,?\s*[)}}]|set\(\)"  # ('a',), {{'a', 'b'}}
)
# A place for each label without brackets. "0,1" would be a number with a decimal comma.
_PLACES = re.compile(r"[01](?:([ ;|])[01](?:\1[01])*|(?:,[01]){2,})")


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


def is_list_text(cell: Any) -> bool:
    """Whether a cell is a list written as text: "['war', 'music']", "[1 0 1]", "{'war'}"."""
    return isinstance(cell, str) and _LIST.fullmatch(cell.strip()) is not None


def parsed_lists(cells: Sequence[Any]) -> Sequence[Any]:
    """Returns the cells with lists in place of their texts, if every cell with a text is a list,
    or has a 0 or 1 for each label ("1 0 1")."""
    texts = [cell.strip() for cell in cells if isinstance(cell, str) and cell.strip()]
    if not texts or not all(_LIST.fullmatch(text) or _PLACES.fullmatch(text) for text in texts):
        return cells
    return [
        list(map(_item, _ITEM.findall(cell))) if isinstance(cell, str) and cell.strip() else cell
        for cell in cells
    ]


def _item(text: str) -> Any:
    if text[0] in "'\"":
        return ast.literal_eval(text)
    return text.lower() == "true" if text.isalpha() else float(text) if "." in text else int(text)


def vector_length(targets: Iterable[Any], known: int = 0) -> int:
    """Returns the length of lists of 0 and 1 that have a place for each label; 0 if they are lists
    of names or ids.

    `known` is the number of labels, 0 = unknown. Lists of two without any 0 or 1 twice may be both:
    they are places if these are numbers and there are two labels, as far as is known.
    """
    lists = [target for target in targets if isinstance(target, list)]
    sizes = set(map(len, lists))
    if len(sizes) != 1 or max(sizes) < 2:
        return 0
    names = [[name_of(item) for item in one] for one in lists]
    if any(name not in ("0", "1", "true", "false") for row in names for name in row):
        return 0
    strings = any(isinstance(item, str) for one in lists for item in one)
    repeated = any(len(set(row)) < len(row) for row in names)
    return sizes.pop() if repeated or (not strings and known in (0, 2)) else 0


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


class KnownNames:
    """The names of a model or a task, found by what a file may write for them."""

    def __init__(self, names: Sequence[str]) -> None:
        self._exact = {name: name for name in names}
        self._alike: dict[str, list[str]] = {}
        for name in names:
            self._alike.setdefault(without_point(name.strip()), []).append(name)

    def find(self, name: str | None) -> str | None:
        """Returns the name itself, or the only one that differs in outer white space or in the
        spelling of a whole number; None if there is none."""
        if name is None or name in self._exact:
            return name
        alike = self._alike.get(without_point(name), [])
        return alike[0] if len(alike) == 1 else None


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
