"""CSV and TSV: a header line, then a row a line or, in quoted cells of CSV, over several lines."""

from __future__ import annotations

import contextlib
import csv
import io
import re
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flaxbert.data import contents, decode
from flaxbert.data.bad_rows import BadRows
from flaxbert.data.formats import Format, Row, place_of, suffix_of
from flaxbert.data.rows import list_names, near_name
from flaxbert.errors import DataError

Dialect = dict[str, Any]  # arguments of csv.reader

_OWN: dict[str, Dialect] = {
    ".csv": {"delimiter": ",", "quoting": csv.QUOTE_MINIMAL},
    ".tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE},
}
_TRIED = 1 << 20  # characters of a row that may turn out to be read in the wrong way
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}

# The line with which spreadsheets name the delimiter.
_SEPARATOR = re.compile(r'"?sep=([^"\r\n])"?[\r\n]*', re.IGNORECASE)

# A cell as CSV writers quote it, with a doubled quote inside.
_QUOTED = re.compile(r'"[^"]*(""[^"]*)+"')


def read(path: Path, columns: Sequence[str], bad: BadRows) -> Iterator[Row]:
    """Reads CSV by RFC 4180; TSV has no quotes, a cell is the text between tabs.

    The header shows other delimiters: one of `_DELIMITERS` that gives all columns, where the
    suffix's own does not. A first line sep=; names it.
    """
    source = str(path)
    csv.field_size_limit(sys.maxsize)  # `_Lines` sets the limit
    lines = _Lines(path)
    dialect = _dialect_for(lines, columns, _OWN[suffix_of(path)], bad)
    has_quotes = dialect["quoting"] != csv.QUOTE_NONE
    header: list[str] = []
    places: dict[str, int] = {}
    try:
        for line, cells in _rows(lines, dialect, bad):
            if not cells or (cells == [""] and len(header) > 1):
                continue  # a blank line
            if not header:
                header = [cell.strip() for cell in cells]
                places = _places(f"{source}:{line}", header, columns, lines.row[0])
            elif len(cells) != len(header):
                what = f"has {len(cells)} cells, the header has {len(header)}"
                why = "another number of cells than the header"
                bad.add(source, line, what, _fix(dialect), why=why)
            else:
                wanted = {name: cells[place] for name, place in places.items()}
                if not has_quotes and any(map(_QUOTED.fullmatch, wanted.values())):
                    has_quotes = True
                    bad.note(
                        f"WARNING: line {line} has a cell in quotes with doubled quotes inside, as "
                        "CSV writers quote. TSV has no quoting: quotes are read as part of the "
                        "text. If it was written with quoting, name it .csv (its header shows the "
                        "tabs)"
                    )
                yield Row(line, wanted)
    except csv.Error as error:
        fix = "Close each quoted cell, double a quote inside one, and put no space behind it."
        if dialect["delimiter"] == "\t":
            fix += " If quotes are part of the text, name the file .tsv."
        raise DataError(f"{source}:{lines.start}: is not valid CSV: {error}. {fix}") from error
    if not header:
        raise DataError(f"{source}: is empty. Expected a header line with {', '.join(columns)}.")


class _Lines:
    """The lines of a file; those of the row at hand can be read once more."""

    def __init__(self, path: Path) -> None:
        self.start = 1  # line where the row at hand starts
        self.row: list[str] = []  # its lines so far
        self._source, self._lines = str(path), _split_lines(path)
        self._again: deque[str] = deque()
        self._size = 0
        self.is_trial = False

    def __iter__(self) -> Iterator[str]:
        while True:
            line = self._again.popleft() if self._again else next(self._lines, None)
            if line is None:
                return
            self.row.append(line)
            self._size += len(line)
            if self._size > decode.LONGEST_ROW:
                raise decode.too_long(self._source, self.start)
            if self.is_trial and self._size > _TRIED:
                raise csv.Error("a row that long is none")
            yield line

    def end_row(self) -> None:
        self.start += len(self.row)
        self.row, self._size = [], 0

    def back(self) -> None:
        """Goes back to where the row starts."""
        self._again.extendleft(reversed(self.row))
        self.row, self._size = [], 0


def _split_lines(path: Path) -> Iterator[str]:
    """Yields lines that "\\n", "\\r\\n" or "\\r" ends."""
    for line in decode.read_lines(path):
        if "\r" in line[:-2]:
            yield from io.StringIO(line, newline="")
        else:
            yield line


def _dialect_for(lines: _Lines, columns: Sequence[str], own: Dialect, bad: BadRows) -> Dialect:
    """Returns the dialect that the first line names, or the header shows; else the suffix's own."""
    first = _first_line(lines)
    if named := _SEPARATOR.fullmatch(first):
        lines.end_row()
        return {"delimiter": named[1], "quoting": csv.QUOTE_MINIMAL}
    lines.back()
    others = [{"delimiter": each, "quoting": csv.QUOTE_MINIMAL} for each in _DELIMITERS]
    headers = [(_header(first, dialect), dialect) for dialect in others if dialect != own]
    header = _header(first, own)
    if set(columns) <= set(header):
        return own
    fitting = [dialect for cells, dialect in headers if set(columns) <= set(cells)]
    if len(fitting) == 1:
        between = _DELIMITERS[fitting[0]["delimiter"]]
        quoted = " and quoted" if own["quoting"] == csv.QUOTE_NONE else ""
        bad.note(f"cells are separated by {between}{quoted}, as the header shows")
        return fitting[0]
    most, dialect = max(headers, key=lambda each: len(each[0]))
    return dialect if len(header) <= 1 < len(most) else own


def _first_line(lines: _Lines) -> str:
    return next((line for line in lines if line.strip("\r\n")), "")


def _header(line: str, dialect: Dialect) -> list[str]:
    """Returns the cells of a header line, [] if it is no line of this dialect."""
    try:
        cells = next(csv.reader([line], **dialect, skipinitialspace=True, strict=True), [])
    except csv.Error:
        return []
    return [cell.strip() for cell in cells]


def _places(where: str, header: list[str], columns: Sequence[str], line: str) -> dict[str, int]:
    """Returns {column: its place}; the error says whether this line is a header at all."""
    if not set(header) & set(columns):
        contents.refuse_texts(where, line, "a header line")
        if not any(near_name(header, name) for name in columns):
            raise DataError(
                f"{where}: there is no column {columns[0]!r}. Columns: {list_names(header)}. If "
                f"this line is a row and not a header, put one before it: {','.join(columns)}"
            )
    return {name: place_of(where, header, name) for name in columns}


def _rows(lines: _Lines, dialect: Dialect, bad: BadRows) -> Iterator[tuple[int, list[str]]]:
    """Yields the cells of each row, and the line where it starts.

    Note: RFC 4180 has quotes in quoted cells only, and keeps the spaces of all others. So a space
    before an opening quote belongs to no cell, and only there may spaces be left out.
    """
    reader = csv.reader(lines, **dialect, strict=True)
    width, may_skip = 0, dialect["quoting"] != csv.QUOTE_NONE
    while (cells := next(reader, None)) is not None:
        may_open = may_skip and (len(lines.row) > 1 or ' "' in lines.row[0])
        quoted = [c for c in cells if c[:1] == " " and c.lstrip(" ")[:1] == '"'] if may_open else []
        if quoted:
            lines.back()
            skipping = csv.reader(lines, **dialect, strict=True, skipinitialspace=True)
            again: list[str] = []
            lines.is_trial = True
            with contextlib.suppress(csv.Error):
                again = next(skipping)
            lines.is_trial = False
            fits = len(again) == (width or len(again) or -1)
            if fits and not set(quoted) <= set(again):
                bad.note(
                    f"line {lines.start} has a space before an opening quote: cells are quoted, "
                    "and spaces after a delimiter are left out"
                )
                reader, cells, may_skip = skipping, again, False
            else:
                lines.back()
                reader = csv.reader(lines, **dialect, strict=True)
                cells = next(reader)
                may_skip = fits  # a quote that is open might read on to the end each time
        width = width or len(cells)
        yield lines.start, cells
        lines.end_row()


def _fix(dialect: Dialect) -> str:
    if dialect["quoting"] == csv.QUOTE_NONE:
        return (
            "A cell of TSV cannot have a tab or line break: use CSV or JSONL for such texts, or, "
            "if cells are in quotes, name the file .csv."
        )
    names = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
    name = names.get(dialect["delimiter"], repr(dialect["delimiter"]))
    return f"Quote a cell that has a {name}, quote or line break."


FORMAT = Format((".csv", ".tsv"), read)
