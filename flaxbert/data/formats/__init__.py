"""One reader per format: a file's wanted cells, row by row, in flat memory.

The surprising thing: no data-frame library. They turn "NA" and "null" into missing values, guess
types per column and hide ragged rows; here a cell is the text that stands in the file.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from flaxbert.data.bad_rows import BadRows
from flaxbert.data.decode import LONGEST_ROW, open_file, read_lines, too_long
from flaxbert.data.rows import near_name
from flaxbert.errors import DataError

# The line (Parquet: the number) of a row, and its cells in the order of the wanted names.
Row = tuple[int, Sequence[Any]]
Reader = Callable[[Path, list[str], BadRows], Iterator[Row]]

# Objects that are looked at before a key that none of them has is called missing.
_FIRST = 8192


def read_csv(path: Path, wanted: list[str], bad: BadRows) -> Iterator[Row]:
    """RFC 4180 quoting; "\\n", "\\r\\n" and "\\r" end a line outside quotes."""
    return _table(path, wanted, bad, ",", csv.QUOTE_MINIMAL)


def read_tsv(path: Path, wanted: list[str], bad: BadRows) -> Iterator[Row]:
    """No quoting: a cell is what stands between tabs."""
    return _table(path, wanted, bad, "\t", csv.QUOTE_NONE)


def _table(
    path: Path, wanted: list[str], bad: BadRows, delimiter: str, quoting: Any
) -> Iterator[Row]:
    source = str(path)
    fix = "Quote a cell that has a comma, quote or line break."
    if quoting == csv.QUOTE_NONE:
        fix = "A cell of TSV cannot have a tab or line break: use CSV or JSONL for such texts."
    csv.field_size_limit(sys.maxsize)  # `limited` below has the say
    start, size = 1, 0  # line where the row at hand starts; its characters so far

    def limited(lines: Iterable[str]) -> Iterator[str]:
        nonlocal size
        for line in lines:
            size += len(line)
            if size > LONGEST_ROW:
                raise too_long(source, start)
            yield line

    lines = limited(read_lines(path, carriage_returns=True))
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    header: list[str] = []
    places: list[int] = []
    try:
        for cells in reader:
            line, start, size = start, reader.line_num + 1, 0
            if not cells or (cells == [""] and len(header) > 1):
                continue  # a blank line
            if not header:
                header = [cell.strip() for cell in cells]
                places = [_column(f"{source}:{line}", header, name) for name in wanted]
            elif len(cells) != len(header):
                what = f"has {len(cells)} cells, the header has {len(header)}"
                bad.add(source, line, what, fix, why="another number of cells than the header")
            else:
                yield line, [cells[place] for place in places]
    except csv.Error as error:
        raise DataError(
            f"{source}:{start}: is not valid CSV: {error}. Close each quoted cell, and double a "
            "quote inside one."
        ) from error
    if not header:
        raise DataError(f"{source}: is empty. Expected a header line with {', '.join(wanted)}.")


def _column(where: str, header: list[str], name: str) -> int:
    if header.count(name) > 1:
        raise DataError(f"{where}: column {name!r} stands twice in the header. Rename one.")
    if name not in header:
        raise DataError(
            f"{where}: there is no column {name!r}.{near_name(header, name)} "
            f"Columns: {_listed(header)}."
        )
    return header.index(name)


def read_jsonl(path: Path, wanted: list[str], bad: BadRows) -> Iterator[Row]:
    """One JSON object a line. Only "\\n" ends a line: str.splitlines would also split at U+2028
    inside a string."""
    source = str(path)
    seen: dict[str, None] = {}
    read = count = 0  # lines that are not blank, and those of them that are objects
    first: list[Row] = []  # held back until it is clear that each wanted key exists

    def release() -> list[Row]:
        for name in wanted:
            if name not in seen:
                raise DataError(
                    f"{source}: no object has the key {name!r}.{near_name(seen, name)} "
                    f"Keys: {_listed(list(seen))}."
                )
        return first

    for line, text in enumerate(read_lines(path, carriage_returns=False), start=1):
        if not text.strip():
            continue
        read += 1
        values = _parse_object(source, line, text, bad)
        if values is None:
            continue
        count += 1
        row = line, [values.get(name) for name in wanted]
        if count > _FIRST:
            yield row
            continue
        seen.update(dict.fromkeys(values))
        first.append(row)
        if count == _FIRST:
            yield from release()
    if not read:
        raise DataError(f"{source}: is empty. Expected one JSON object a line.")
    if first and count < _FIRST:
        yield from release()


class _TwiceError(ValueError):
    """A key stands twice in one object; the last value would silently win."""


def _parse_object(source: str, line: int, text: str, bad: BadRows) -> dict[str, Any] | None:
    try:
        values = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_once_each)
    except _TwiceError as error:
        bad.add(source, line, str(error), "Keep one of them.", why="a key twice in one object")
        return None
    except (ValueError, RecursionError) as error:
        bad.add(
            source,
            line,
            f"is not valid JSON: {error}",
            "Expected one object a line.",
            why="not valid JSON",
        )
        return None
    if not isinstance(values, dict):
        bad.add(
            source,
            line,
            f"expected a JSON object, got {type(values).__name__}",
            'Write each row as {"text": ...} on its own line.',
            why="not a JSON object",
        )
        return None
    return values


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _TwiceError(f"the key {_shortened(twice)} stands twice in one object")
    return values


def read_parquet(path: Path, wanted: list[str], bad: BadRows) -> Iterator[Row]:
    """Strings, numbers, booleans and lists of them; a row's line is its number, from 1."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = str(path)
    with open_file(path) as opened:
        try:
            file = pq.ParquetFile(opened)
            schema = file.schema_arrow
            places = [_column(source, schema.names, name) for name in wanted]
            for name, place in zip(wanted, places, strict=True):
                _check_type(source, name, schema.field(place).type)
            names = _class_names(schema)
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=list(dict.fromkeys(wanted))):
                columns = [
                    _cells(batch.column(name).to_pylist(), names.get(name), source, number)
                    for name in wanted
                ]
                for cells in zip(*columns, strict=True):
                    number += 1
                    yield number, cells
        # What a damaged file raises is whatever pyarrow's decoders do, UnicodeDecodeError included.
        except (pa.ArrowException, OSError, UnicodeDecodeError, KeyError, MemoryError) as error:
            raise DataError(
                f"{source}: cannot be read as Parquet: {_first_line(error)}. "
                "Write or copy it again."
            ) from error


def class_names(path: Path, name: str) -> tuple[str, ...]:
    """Returns the label names, in id order, that the `datasets` library left in a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_file(path) as opened:
        try:
            return _class_names(pq.read_schema(opened)).get(name, ())
        except (pa.ArrowException, OSError):
            return ()  # `read_parquet` says what is wrong


def _class_names(schema: Any) -> dict[str, tuple[str, ...]]:
    """Returns {column: names} of ClassLabel columns, alone or in a list."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        found = {}
        for name, feature in features.items():
            while isinstance(feature, (dict, list)) and "names" not in feature:
                feature = feature[0] if isinstance(feature, list) else feature.get("feature")
            names = feature["names"] if isinstance(feature, dict) else ()
            if isinstance(names, list) and all(isinstance(part, str) for part in names):
                found[name] = tuple(part.strip() for part in names)
        return found
    except (TypeError, KeyError, ValueError, AttributeError, IndexError, RecursionError):
        return {}  # no such metadata, or another program's


def _cells(values: list[Any], names: tuple[str, ...] | None, source: str, number: int) -> list[Any]:
    """Gives ids their names (-1, which hides a label, stays) and takes NaN, pandas' missing value,
    for missing."""

    def cell(place: int, value: Any) -> Any:
        if isinstance(value, list):
            return [cell(place, item) for item in value]
        if isinstance(value, float) and math.isnan(value):
            return None
        if not names or type(value) is not int:
            return value
        if not -1 <= value < len(names):
            raise DataError(
                f"{source}:{number + place + 1}: the label {value} is out of range. Expected an id "
                f"from 0 to {len(names) - 1}, as the file's own list of names says."
            )
        return names[value] if value >= 0 else "-1"

    return [cell(place, value) for place, value in enumerate(values)]


def _check_type(source: str, name: str, kind: Any) -> None:
    from pyarrow import types

    inner = kind
    while types.is_dictionary(inner) or _is_list(inner):
        inner = inner.value_type
    plain = (
        types.is_string,
        types.is_large_string,
        types.is_string_view,
        types.is_integer,
        types.is_floating,
        types.is_boolean,
        types.is_null,
    )
    if not any(check(inner) for check in plain):
        raise DataError(
            f"{source}: column {name!r} has the type {kind}. Expected strings, numbers, booleans "
            "or lists of them."
        )


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    checks = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view)
    return any(check(kind) for check in (*checks, types.is_large_list_view))


def _listed(names: list[str]) -> str:
    shown = ", ".join(map(_shortened, names[:20]))
    return shown + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _shortened(name: str) -> str:
    return repr(name if len(name) <= 80 else name[:77] + "...")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:200]
