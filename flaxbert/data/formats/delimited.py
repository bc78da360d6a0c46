"""CSV and TSV: a header line, then a row a line or, in quoted cells of CSV, over several lines."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from flaxbert.data import decode
from flaxbert.data.bad_rows import BadRows
from flaxbert.data.formats import Format, Row, place_of, suffix_of
from flaxbert.errors import DataError

_FIXES = {
    ".csv": "Quote a cell that has a comma, quote or line break.",
    ".tsv": "A cell of TSV cannot have a tab or line break: use CSV or JSONL for such texts.",
}


def read(path: Path, columns: Sequence[str], bad: BadRows) -> Iterator[Row]:
    """Reads CSV by RFC 4180; TSV has no quotes, a cell is the text between tabs."""
    source, suffix = str(path), suffix_of(path)
    csv.field_size_limit(sys.maxsize)  # `limited` sets the limit
    start, size = 1, 0  # line where the row at hand starts; its characters so far

    def limited(lines: Iterable[str]) -> Iterator[str]:
        nonlocal size
        for line in lines:
            size += len(line)
            if size > decode.LONGEST_ROW:
                raise decode.too_long(source, start)
            yield line

    delimiter, quoting = (",", csv.QUOTE_MINIMAL) if suffix == ".csv" else ("\t", csv.QUOTE_NONE)
    reader = csv.reader(limited(_lines(path)), delimiter=delimiter, quoting=quoting, strict=True)
    header: list[str] = []
    places: dict[str, int] = {}
    try:
        for cells in reader:
            line, start, size = start, reader.line_num + 1, 0
            if not cells or (cells == [""] and len(header) > 1):
                continue  # a blank line
            if not header:
                header = [cell.strip() for cell in cells]
                places = {name: place_of(f"{source}:{line}", header, name) for name in columns}
            elif len(cells) != len(header):
                what = f"has {len(cells)} cells, the header has {len(header)}"
                why = "another number of cells than the header"
                bad.add(source, line, what, _FIXES[suffix], why=why)
            else:
                yield Row(line, {name: cells[place] for name, place in places.items()})
    except csv.Error as error:
        raise DataError(
            f"{source}:{start}: is not valid CSV: {error}. Close each quoted cell, and double a "
            "quote inside one."
        ) from error
    if not header:
        raise DataError(f"{source}: is empty. Expected a header line with {', '.join(columns)}.")


def _lines(path: Path) -> Iterator[str]:
    """Yields lines that "\\n", "\\r\\n" or "\\r" ends."""
    for line in decode.read_lines(path):
        if "\r" in line[:-2]:
            yield from io.StringIO(line, newline="")
        else:
            yield line


FORMAT = Format((".csv", ".tsv"), read)
