"""A user's own files: CSV, TSV and JSONL.

The surprising thing: no data-frame library. They turn "NA" and "null" into missing values, guess
types per column and hide ragged rows; here a cell is the text that stands in the file.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flaxbert.data.rows import Rows, near_name
from flaxbert.errors import DataError

SUFFIXES = (".csv", ".tsv", ".jsonl")


def read_rows(path: str | Path, *, text: str, text_pair: str = "", label: str = "") -> Rows:
    """Reads a .csv, .tsv or .jsonl file; "" for a column means that it is not wanted.

    Raises:
      DataError: the file is missing, a directory, of an unknown kind, not UTF-8, malformed, or
        lacks a column. Names the line.
    """
    columns, lines = read_columns(path, [name for name in (text, text_pair, label) if name])
    return Rows(
        str(path),
        columns[text],
        columns[text_pair] if text_pair else None,
        columns[label] if label else None,
        lines,
    )


def read_columns(path: str | Path, names: list[str]) -> tuple[dict[str, list[Any]], list[int]]:
    """Returns the named columns of a file, and the line on which each row starts."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(
            f"{path}: unknown kind of file {suffix!r}. Expected one of {', '.join(SUFFIXES)}."
        )
    content = read_text(path)
    wanted = list(dict.fromkeys(names))
    reader = _read_jsonl if suffix == ".jsonl" else _read_table
    return reader(str(path), content, wanted, "\t" if suffix == ".tsv" else ",")


def read_inputs(path: str, *, text: str, text_pair: str = "") -> Rows:
    """Reads texts to label: a .csv, .tsv or .jsonl file, one text a line of .txt, or "-" for lines
    on standard input. An empty line of text is an input too."""
    if path != "-" and Path(path).suffix.lower() != ".txt":
        if Path(path).suffix.lower() not in SUFFIXES:
            raise DataError(
                f"{path}: unknown kind of file {Path(path).suffix!r}. Expected one of "
                f"{', '.join((*SUFFIXES, '.txt'))}, or - for standard input."
            )
        return read_rows(path, text=text, text_pair=text_pair)
    name = "standard input" if path == "-" else path
    content = decode(sys.stdin.buffer.read(), name) if path == "-" else read_text(Path(path))
    texts = content.split("\n")
    if texts[-1] == "":
        texts.pop()
    texts = [line.removesuffix("\r") for line in texts]
    return Rows(name, list(texts), None, None, list(range(1, len(texts) + 1)))


def read_input_chunks(
    path: str, *, text: str, text_pair: str = "", size: int = 8192
) -> Iterator[Rows]:
    """Yields the rows of `read_inputs` in parts of at most `size`, in order."""
    rows = read_inputs(path, text=text, text_pair=text_pair)
    for start in range(0, len(rows), size):
        yield rows.take(range(start, min(start + size, len(rows))), "")


def read_text(path: Path) -> str:
    """Returns the whole file as text: UTF-8, with or without a byte order mark.

    Raises:
      DataError: missing, a directory, unreadable, another encoding, or a NUL character.
    """
    try:
        data = path.read_bytes()
    except IsADirectoryError as error:
        raise DataError(f"{path}: is a directory. Name a file.") from error
    except FileNotFoundError as error:
        near = near_name([entry.name for entry in _siblings(path)], path.name)
        raise DataError(f"{path}: there is no such file.{near or ' Check the path.'}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. Check the path.") from error
    return decode(data, str(path))


def decode(data: bytes, source: str) -> str:
    """Decodes UTF-8 and refuses NUL characters, which no text has and many tools stop at."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{source}: is UTF-16. Save it as UTF-8.")
    try:
        # Not "utf-8-sig": that codec counts the place of a bad byte from after the mark.
        content = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{source}:{line}: byte {error.start} (0x{data[error.start]:02x}) is not UTF-8. "
            "Save the file as UTF-8."
        ) from error
    if "\0" in content:
        line = content.count("\n", 0, content.index("\0")) + 1
        raise DataError(f"{source}:{line}: contains a NUL character. Remove it.")
    return content


def _read_table(
    source: str, content: str, wanted: list[str], delimiter: str
) -> tuple[dict[str, list[Any]], list[int]]:
    """Reads CSV (RFC 4180 quoting) or TSV (no quoting: a cell is what stands between tabs)."""
    csv.field_size_limit(sys.maxsize)
    quoting, fix = csv.QUOTE_MINIMAL, "Quote a cell that has a comma, quote or line break."
    if delimiter == "\t":
        quoting = csv.QUOTE_NONE
        fix = "A cell of TSV cannot have a tab or line break: use CSV or JSONL for such texts."
    reader = csv.reader(
        io.StringIO(content, newline=""), delimiter=delimiter, quoting=quoting, strict=True
    )
    columns: dict[str, list[Any]] = {name: [] for name in wanted}
    lines: list[int] = []
    header: list[str] = []
    start = 1
    try:
        for cells in reader:
            line, start = start, reader.line_num + 1
            if not cells or (cells == [""] and len(header) > 1):
                continue  # a blank line
            if not header:
                header = [cell.strip() for cell in cells]
                places = {name: _column(f"{source}:{line}", header, name) for name in wanted}
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{source}:{line}: has {len(cells)} cells, the header has {len(header)}. {fix}"
                )
            lines.append(line)
            for name, place in places.items():
                columns[name].append(cells[place])
    except csv.Error as error:
        raise DataError(
            f"{source}:{start}: is not valid CSV: {error}. Close each quoted cell, and double a "
            "quote inside one."
        ) from error
    if not header:
        raise DataError(f"{source}: is empty. Expected a header line with {', '.join(wanted)}.")
    return columns, lines


def _column(where: str, header: list[str], name: str) -> int:
    if header.count(name) > 1:
        raise DataError(f"{where}: column {name!r} stands twice in the header. Rename one.")
    if name not in header:
        raise DataError(
            f"{where}: there is no column {name!r}.{near_name(header, name)} "
            f"Columns: {', '.join(map(repr, header))}."
        )
    return header.index(name)


def _read_jsonl(
    source: str, content: str, wanted: list[str], _: str
) -> tuple[dict[str, list[Any]], list[int]]:
    columns: dict[str, list[Any]] = {name: [] for name in wanted}
    seen: dict[str, None] = {}
    lines: list[int] = []
    # Only "\n" ends a line of JSONL: str.splitlines would also split at U+2028 inside a string.
    for line, row in enumerate(content.split("\n"), start=1):
        if not row.strip():
            continue
        values = _parse_object(source, line, row)
        seen.update(dict.fromkeys(values))
        lines.append(line)
        for name in wanted:
            columns[name].append(values.get(name))
    if not lines:
        raise DataError(f"{source}: is empty. Expected one JSON object a line.")
    for name in wanted:
        if name not in seen:
            raise DataError(
                f"{source}: no object has the key {name!r}.{near_name(seen, name)} "
                f"Keys: {', '.join(map(repr, seen))}."
            )
    return columns, lines


def _parse_object(source: str, line: int, row: str) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        values = json.loads(row, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{source}:{line}: is not valid JSON: {error}. Expected one object a line."
        ) from error
    if not isinstance(values, dict):
        raise DataError(
            f"{source}:{line}: expected a JSON object, got {type(values).__name__}. "
            'Write each row as {"text": ...} on its own line.'
        )
    return values


def _siblings(path: Path) -> list[Path]:
    try:
        return list(path.parent.iterdir())
    except OSError:
        return []
