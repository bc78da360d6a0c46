"""Parquet: cells of any type, for the checks to judge; a row's line is its number."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flaxbert.data.bad_rows import BadRows
from flaxbert.data.decode import open_file
from flaxbert.data.formats import Format, Row, place_of
from flaxbert.errors import DataError, first_line

# What pyarrow raises for damaged files, beside its own exceptions.
_DAMAGE = (OSError, ValueError, LookupError, ArithmeticError, MemoryError)

# pyarrow is imported where it is used: it takes a quarter of a second, and few runs need it.


def read(path: Path, columns: Sequence[str], bad: BadRows) -> Iterator[Row]:
    """Reads batch by batch; ids of ClassLabel columns (`datasets` library) become names."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = str(path)
    with open_file(path) as opened:
        try:
            file = pq.ParquetFile(opened)
            schema = file.schema_arrow
            for name in columns:
                place_of(source, schema.names, name)
            names = _class_names(schema)
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=list(columns)):
                cells = {
                    name: _cells(batch.column(name).to_pylist(), names.get(name), source, number)
                    for name in columns
                }
                for place in range(batch.num_rows):
                    number += 1
                    yield Row(number, {name: values[place] for name, values in cells.items()})
        except DataError:
            raise
        except (pa.ArrowException, *_DAMAGE) as error:
            raise DataError(
                f"{source}: cannot be read as Parquet: {first_line(error)}. Write or copy it again."
            ) from error


def class_names(path: Path, column: str) -> tuple[str, ...]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_file(path) as opened:
        try:
            return _class_names(pq.read_schema(opened)).get(column, ())
        except (pa.ArrowException, OSError):
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


def _cells(values: list[Any], names: tuple[str, ...] | None, source: str, number: int) -> list[Any]:
    """Replaces ids by names, and NaN, pandas' missing value, by None.

    A hidden label, -1, stays "-1", or is missing where that is the name of a class.
    """
    hidden = None if "-1" in (names or ()) else "-1"

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
        return names[value] if value >= 0 else hidden

    return [cell(place, value) for place, value in enumerate(values)]


FORMAT = Format((".parquet",), read, is_text=False, class_names=class_names)
