"""Parquet and Arrow: cells of any type, for the checks to judge; a row's line is its number."""

from __future__ import annotations

import decimal
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from flaxbert.data import contents
from flaxbert.data.bad_rows import BadRows
from flaxbert.data.decode import open_file
from flaxbert.data.formats import Format, Row, place_of
from flaxbert.errors import DataError, first_line

# What pyarrow raises for damaged files, beside its own exceptions.
_DAMAGE = (OSError, ValueError, LookupError, ArithmeticError, MemoryError)

# How such files start; the second kind of Arrow file is a stream of batches.
_PARQUET, _ARROW = b"PAR1", (b"ARROW1", b"\xff\xff\xff\xff")
_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"

_ROWS = 1024  # that are Python's objects at once

# pyarrow is imported where it is used: it takes a quarter of a second, and few runs need it.


def read(path: Path, columns: Sequence[str], bad: BadRows) -> Iterator[Row]:
    """Reads batch by batch; ids of ClassLabel columns (`datasets` library) become names."""
    import pyarrow as pa

    source = str(path)
    with open_file(path) as opened:
        head = opened.read(contents.HEAD)
        kind = _kind(path, head)
        if not head.startswith((*_ARROW, _PARQUET)):
            contents.refuse_files(source, head, "Parquet or Arrow")
        try:
            schema, batches = _open(opened, kind, head, columns)
            for name in columns:
                place_of(source, schema.names, name)
            names = _class_names(schema)
            number = 0
            for batch in batches:
                faults: dict[int, str] = {}  # row of the batch: what is wrong with a cell
                cells = {
                    name: _cells(
                        batch.column(name).to_pylist(), names.get(name), source, number, faults
                    )
                    for name in columns
                }
                for place in range(batch.num_rows):
                    number += 1
                    if place in faults:
                        why = "a cell is binary and not UTF-8"
                        bad.add(
                            source, number, faults[place], "Write the column as strings.", why=why
                        )
                    else:
                        yield Row(number, {name: values[place] for name, values in cells.items()})
        except DataError:
            raise
        except (pa.ArrowException, *_DAMAGE) as error:
            fix = "Write or copy it again."
            if head and not re.search(rb"PAR1|[\0-\x08\x0e-\x1f]", head):
                fix = "It is text: name it .csv, .tsv or .jsonl, as it is written."
            raise DataError(
                f"{source}: cannot be read as {kind}: {first_line(error)}. {fix}"
            ) from error


def _kind(path: Path, head: bytes) -> str:
    """Returns what a file is by its first bytes; a damaged one is what its name says."""
    if head.startswith((*_ARROW, _PARQUET)):
        return "Parquet" if head.startswith(_PARQUET) else "Arrow"
    return "Parquet" if path.suffix.lower() == ".parquet" else "Arrow"


def _open(
    file: BinaryIO, kind: str, head: bytes, columns: Sequence[str]
) -> tuple[Any, Iterator[Any]]:
    """Returns the schema, and record batches with at least these columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file.seek(0)
    if kind == "Parquet":
        parquet = pq.ParquetFile(file)
        return parquet.schema_arrow, parquet.iter_batches(batch_size=_ROWS, columns=list(columns))
    is_stream = head.startswith(_ARROW[1])
    if is_stream:
        file.seek(-len(_STREAM_END), 2)
        if file.read() != _STREAM_END:  # else rows would be missing unnoticed
            raise ValueError("it ends too early")
        file.seek(0)
    open_arrow = pa.ipc.open_stream if is_stream else pa.ipc.open_file
    schema = open_arrow(file).schema
    file.seek(0)
    fields = [i for i, name in enumerate(schema.names) if name in columns]
    reader = open_arrow(file, options=pa.ipc.IpcReadOptions(included_fields=fields))
    if is_stream:
        return schema, _valid(reader)
    return schema, _valid(reader.get_batch(i) for i in range(reader.num_record_batches))


def _valid(batches: Iterable[Any]) -> Iterator[Any]:
    """Yields batches whose offsets lead nowhere else, which pyarrow would follow, in parts."""
    for batch in batches:
        batch.validate(full=True)
        for start in range(0, batch.num_rows, _ROWS):
            yield batch.slice(start, _ROWS)


def class_names(path: Path, column: str) -> tuple[str, ...]:
    import pyarrow as pa

    with open_file(path) as opened:
        head = opened.read(contents.HEAD)
        kind = _kind(path, head)
        try:
            return _class_names(_open(opened, kind, head, [])[0]).get(column, ())
        except (pa.ArrowException, *_DAMAGE):
            return ()  # `read` says what is wrong


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


def _cells(
    values: list[Any],
    names: tuple[str, ...] | None,
    source: str,
    number: int,
    faults: dict[int, str],
) -> list[Any]:
    """Returns cells as JSON has them; `faults` says of which rows there is none.

    Ids become names, NaN, pandas' missing value, becomes None, decimals become numbers. A hidden
    label, -1, stays "-1", or is missing where that names a class. Bytes are text: Spark and Impala
    may write strings without saying so.
    """
    hidden = None if "-1" in (names or ()) else "-1"

    def cell(place: int, value: Any) -> Any:
        if isinstance(value, list):
            return [cell(place, item) for item in value]
        if isinstance(value, float) and math.isnan(value):
            return None
        if isinstance(value, decimal.Decimal):
            return int(value) if value == value.to_integral_value() else float(value)
        if isinstance(value, bytes):
            try:
                return value.decode()
            except UnicodeDecodeError as error:
                faults[place] = (
                    f"the cell is binary and not UTF-8 (byte {error.start} is "
                    f"0x{value[error.start]:02x})"
                )
                return None
        if not names or type(value) is not int:
            return value
        if not -1 <= value < len(names):
            raise DataError(
                f"{source}:{number + place + 1}: the label {value} is out of range. Expected an id "
                f"from 0 to {len(names) - 1}, as the file's own list of names says."
            )
        return names[value] if value >= 0 else hidden

    return [cell(place, value) for place, value in enumerate(values)]


FORMAT = Format((".parquet", ".arrow", ".feather"), read, is_text=False, class_names=class_names)
