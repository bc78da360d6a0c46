"""CSV and TSV: a header line, then a row a line or, in quoted cells of CSV, over several lines."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections import deque
from collections.abc import Collection, Iterator, Sequence
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
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}

# The line with which spreadsheets name the delimiter.
_SEPARATOR = re.compile(r'"?sep=([^"\r\n])"?[\r\n]*', re.IGNORECASE)

# A quote that, but for spaces before it, would open its cell.
_SPACED_QUOTE = re.compile(' +"')

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
        for line, cells in _rows(lines, dialect, places, bad):
            if not cells or (cells == [""] and len(header) > 1):
                continue  # a blank line
            if not header:
                header = [cell.strip() for cell in cells]
                places |= _places(f"{source}:{line}", header, columns, lines.row[0])
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

    def __iter__(self) -> Iterator[str]:
        while True:
            line = self._again.popleft() if self._again else next(self._lines, None)
            if line is None:
                return
            self.row.append(line)
            self._size += len(line)
            if self._size > decode.LONGEST_ROW:
                raise decode.too_long(self._source, self.start)
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
    if set(columns) <= set(header) or first.count('"') % 2:  # the header goes on in the next line
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
    return [cell.strip() for cell in _line_cells(line, dialect | {"skipinitialspace": True})]


def _line_cells(line: str, dialect: Dialect) -> list[str]:
    """Returns the cells of a row that is one line, [] if it is none."""
    try:
        return next(csv.reader([line], **dialect, strict=True), [])
    except csv.Error:
        return []


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


def _rows(
    lines: _Lines, dialect: Dialect, places: dict[str, int], bad: BadRows
) -> Iterator[tuple[int, list[str]]]:
    """Yields the cells of each row, and the line where it starts.

    Note: RFC 4180 has quotes in quoted cells only, so a space before an opening quote belongs to no
    cell. But people write rows that look so by chance: each is judged alone, and never joins lines.
    """
    may_skip = dialect["quoting"] != csv.QUOTE_NONE and dialect["delimiter"] != " "
    reader = csv.reader(lines, **dialect, strict=True)
    width, is_told = 0, False
    for line in lines:  # the first one of a row
        cells = []
        if may_skip and ' "' in line:
            cells = _without_spaces(line, dialect, width, places.values())
        if not cells:
            lines.back()
            cells = next(reader)
        elif not is_told:
            is_told = True
            bad.note(
                f"line {lines.start} has a space before an opening quote: the cells of such lines "
                "are quoted, and spaces after a delimiter are left out"
            )
        width = width or len(cells)
        yield lines.start, cells
        lines.end_row()


def _without_spaces(line: str, dialect: Dialect, width: int, places: Collection[int]) -> list[str]:
    """Returns the cells of a line without the spaces before them, [] if it is to be read as usual.

    `width` is the number of cells in a row, 0 if this is the header; `places` are of those used.
    """
    cells = _line_cells(line, dialect | {"skipinitialspace": True})
    if len(cells) != (width or len(cells)):
        return []
    usual = _line_cells(line, dialect)
    used = places if width else range(len(cells))
    if len(usual) == len(cells) and not any(
        _SPACED_QUOTE.match(usual[i]) and usual[i] != cells[i] for i in used
    ):
        return []
    return cells


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
