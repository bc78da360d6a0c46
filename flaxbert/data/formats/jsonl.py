"""JSON Lines: one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flaxbert.data.bad_rows import BadRows
from flaxbert.data.decode import read_lines
from flaxbert.data.formats import Format, Row, list_names, shortened
from flaxbert.data.rows import near_name
from flaxbert.errors import DataError

# Objects to read before a key that none of them has is reported as missing.
_FIRST = 8192


def read(path: Path, columns: Sequence[str], bad: BadRows) -> Iterator[Row]:
    source = str(path)
    seen: dict[str, None] = {}
    is_empty = True
    first: list[Row] | None = []  # held back until each key is known to exist

    def release() -> list[Row]:
        for name in columns:
            if first and name not in seen:
                raise DataError(
                    f"{source}: no object has the key {name!r}.{near_name(seen, name)} "
                    f"Keys: {list_names(list(seen))}."
                )
        return first or []

    for line, text in enumerate(read_lines(path), start=1):
        if not text.strip():
            continue
        is_empty = False
        values = _parse_object(source, line, text, bad)
        if values is None:
            continue
        row = Row(line, {name: values.get(name) for name in columns})
        if first is None:
            yield row
            continue
        seen.update(dict.fromkeys(values))
        first.append(row)
        if len(first) == _FIRST:
            yield from release()
            first = None
    if is_empty:
        raise DataError(f"{source}: is empty. Expected one JSON object a line.")
    yield from release()


class _TwiceError(ValueError):
    """A key is twice in one object, and the last value would silently win."""


def _parse_object(source: str, line: int, text: str, bad: BadRows) -> dict[str, Any] | None:
    try:
        values = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_once_each)
    except _TwiceError as error:
        bad.add(source, line, str(error), "Keep one of them.", why="a key twice in one object")
        return None
    except (ValueError, RecursionError) as error:
        what = f"is not valid JSON: {error}"
        bad.add(source, line, what, "Expected one object a line.", why="not valid JSON")
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
        raise _TwiceError(f"the key {shortened(twice)} is twice in one object")
    return values


FORMAT = Format((".jsonl",), read)
