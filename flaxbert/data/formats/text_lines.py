"""Plain text: one text a line, as `predict` labels them; an empty line is a text too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from flaxbert.data.bad_rows import BadRows
from flaxbert.data.decode import read_lines
from flaxbert.data.formats import Format, Row
from flaxbert.data.rows import list_names
from flaxbert.errors import DataError


def read(path: Path, columns: Sequence[str], bad: BadRows) -> Iterator[Row]:
    """Reads a file or standard input ("-")."""
    if len(columns) > 1:
        raise DataError(
            f"{path}: has one text a line and no columns; asked for {list_names(columns)}. Use a "
            "format with columns, such as .csv."
        )
    for line, text in enumerate(read_lines(path), start=1):
        yield Row(line, dict.fromkeys(columns, text.removesuffix("\n").removesuffix("\r")))


FORMAT = Format((".txt",), read, has_columns=False)
