"""A user's own files, in any format of formats/."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flaxbert.config import Data
from flaxbert.data import formats
from flaxbert.data.bad_rows import BadRows
from flaxbert.data.cells import name_of, without_point
from flaxbert.data.decode import STANDARD_INPUT
from flaxbert.data.formats import Row, text_lines
from flaxbert.data.rows import Rows, shown
from flaxbert.data.sources import Task
from flaxbert.errors import DataError

TASKS = {"text": Task()}

_FLAGS = {"0": False, "false": False, "1": True, "true": True}
_SPLITS = ("train", "validation", "test")

# Columns with few different cells: equal strings are stored once.
_REPEATED = ("label", "tags")


@dataclasses.dataclass(frozen=True)
class Files:
    """The files that a config names as train, validation and test."""

    data: Data
    revision = ""

    def parts(self, split: str) -> dict[str, str]:
        path = getattr(self.data, split) if split in _SPLITS else ""
        return {"": path} if path else {}

    def read(self, part: str, columns: Mapping[str, str]) -> Rows:
        return read_rows(part, columns, self.data.on_bad_row)


def open_data(data: Data, revision: str) -> Files | None:
    if data.dataset or not data.train:
        return None
    refuse_same_file({f"config.data.{name}": getattr(data, name) for name in _SPLITS})
    return Files(data)


def read_rows(path: str | Path, columns: Mapping[str, str], on_bad_row: str = "error") -> Rows:
    """Reads a whole file.

    With on_bad_row="skip" invalid lines (too many cells, no JSON object) are left out and counted
    in `Rows.skipped`. `columns` is {key in the rows: name in the file}; those with an empty name
    are not read, and a label of several names ("war,drama") is one column of 0 and 1 for each.
    Raises DataError, with the line, if the file is missing, a directory, of an unknown kind, not
    UTF-8, malformed, or lacks a column.
    """
    path, bad = Path(path), BadRows(on_bad_row)
    wanted = {key: name for key, name in columns.items() if name}
    label = wanted.get("label", "")
    flags = tuple(name.strip() for name in label.split(",")) if "," in label else ()
    names = [*(name for name in wanted.values() if name != label or not flags), *flags]
    rows = formats.read_rows(path, names, bad)
    if flags:
        rows = _with_lists(rows, label, flags, str(path), bad)
    read: dict[str, list[Any]] = {key: [] for key in wanted}
    adding = [(name, read[key].append, key in _REPEATED) for key, name in wanted.items()]
    lines = []
    for line, cells in rows:
        lines.append(line)
        for name, add, repeated in adding:
            add(_interned(cells[name]) if repeated else cells[name])
    class_names = formats.format_for(path).class_names
    named = {key: class_names(path, name) for key, name in wanted.items()}
    if flags:
        named["label"] = flags
    named = {key: names for key, names in named.items() if names}
    return Rows(str(path), read, lines, named, bad.skipped, bad.notes)


def _with_lists(
    rows: Iterator[Row], label: str, flags: Sequence[str], source: str, bad: BadRows
) -> Iterator[Row]:
    """Adds to each row under `label` the list of the columns that hold 1; all must hold 0 or 1."""
    for row in rows:
        values = {
            name: _FLAGS.get(without_point(name_of(row.cells[name]) or "").lower())
            for name in flags
        }
        odd = next((name for name, value in values.items() if value is None), None)
        if odd is None:
            chosen = [name for name, value in values.items() if value]
            yield Row(row.line, {**row.cells, label: chosen})
        else:
            what = f"the column {odd!r} holds {shown(row.cells[odd])}"
            fix = f"Expected 0 or 1 in each of the columns {', '.join(flags)}."
            bad.add(source, row.line, what, fix, why="a label's column holds neither 0 nor 1")


def read_chunks(
    path: str, columns: Mapping[str, str], *, size: int = 8192, on_bad_row: str = "error"
) -> Iterator[Rows]:
    """Yields a file, or the lines of standard input ("-"), in parts of at most `size` rows, as they
    are read; skipped lines are in the part where they stand. Raises DataError as `read_rows`, after
    the parts before the place.
    """
    bad = BadRows(on_bad_row)
    wanted = {key: name for key, name in columns.items() if name}
    names = list(dict.fromkeys(wanted.values()))
    if Path(path) == STANDARD_INPUT:
        source, rows = "standard input", text_lines.read(STANDARD_INPUT, names, bad)
    else:
        source, rows = path, formats.read_rows(Path(path), names, bad)
    while (part := list(itertools.islice(rows, size))) or bad.skipped:
        cells = {key: [row.cells[name] for row in part] for key, name in wanted.items()}
        skipped = bad.take(part[-1].line if len(part) == size else math.inf)
        yield Rows(source, cells, [row.line for row in part], {}, skipped, tuple(bad.notes))
        bad.notes.clear()


def has_columns(path: str) -> bool:
    """Whether an input has columns, or is one text a line: standard input or .txt."""
    return Path(path) != STANDARD_INPUT and formats.format_for(Path(path)).has_columns


def refuse_same_file(paths: Mapping[str, str]) -> None:
    """Raises DataError if two of the {name: path} are one file, also through a link."""
    for (name, path), (other, second) in itertools.combinations(paths.items(), 2):
        try:
            same = bool(path and second) and os.path.samefile(path, second)
        except OSError:
            continue  # reading it will report the error
        if same:
            raise DataError(
                f"{name}={path} and {other}={second} are one file. Give each its own rows"
                + (", or hold rows out by config.data.validation_fraction." if "train" in name
                   else ".")
            )  # fmt: skip


def _interned(cell: Any) -> Any:
    if isinstance(cell, list):
        return [_interned(item) for item in cell]
    return sys.intern(cell) if type(cell) is str else cell
