"""JSON Lines: one JSON object a line."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flaxbert.data import contents
from flaxbert.data.bad_rows import BadRows
from flaxbert.data.decode import read_lines
from flaxbert.data.formats import Format, Row
from flaxbert.data.rows import list_names, near_name, shown
from flaxbert.errors import DataError

# Objects to read before a key that none of them has is reported as missing.
_FIRST = 8192


def read(path: Path, columns: Sequence[str], bad: BadRows) -> Iterator[Row]:
    objects, seen = _objects(path, bad), {}
    first: list[Row] = []  # held back until each key is known to exist
    for line, values in itertools.islice(objects, _FIRST):
        seen.update(dict.fromkeys(values))
        first.append(Row(line, {name: values.get(name) for name in columns}))
    for name in columns:
        if first and name not in seen:
            raise DataError(
                f"{path}: no object has the key {name!r}.{near_name(seen, name)} "
                f"Keys: {list_names(list(seen))}."
            )
    yield from first
    first.clear()
    for line, values in objects:
        yield Row(line, {name: values.get(name) for name in columns})


def _objects(path: Path, bad: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the valid objects with their lines."""
    is_empty = True
    for line, text in enumerate(read_lines(path), start=1):
        if text.strip():
            if is_empty and not text.lstrip().startswith("{"):
                contents.refuse_texts(str(path), text, "one JSON object a line")
            is_empty = False
            values = _parse_object(str(path), line, text, bad)
            if values is not None:
                yield line, values
    if is_empty:
        raise DataError(f"{path}: is empty. Expected one JSON object a line.")


class _TwiceError(ValueError):
    """A key is twice in one object, and the last value would silently win."""


def _parse_object(source: str, line: int, text: str, bad: BadRows) -> dict[str, Any] | None:
    try:
        values = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_once_each)
    except _TwiceError as error:
        bad.add(source, line, str(error), "Keep one of them.", why="a key twice in one object")
        return None
    except (ValueError, RecursionError) as error:
        what, fix = f"is not valid JSON: {error}", "Expected one object a line."
        if not text.lstrip().startswith(("{", "[")):
            fix += " A file with a header line is .csv or .tsv."
        bad.add(source, line, what, fix, why="not valid JSON")
        return None
    if not isinstance(values, dict):
        what = f"expected a JSON object, got {type(values).__name__}"
        fix = 'Write each row as {"text": ...} on its own line.'
        bad.add(source, line, what, fix, why="not a JSON object")
        return None
    return values


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _TwiceError(f"the key {shown(twice)} is twice in one object")
    return values


FORMAT = Format((".jsonl",), read)
