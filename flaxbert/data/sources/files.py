"""A user's own files: CSV, TSV, JSONL (each also .gz) and Parquet; lines of text for prediction.

The surprising thing: everything streams. `read_rows` only collects what `read_input_chunks` gives
in parts, so a file larger than the memory can be labelled.
"""

from __future__ import annotations

import itertools
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flaxbert.data import formats
from flaxbert.data.bad_rows import BadRows
from flaxbert.data.decode import STANDARD_INPUT, read_lines, read_standard_input
from flaxbert.data.formats import Reader, Row
from flaxbert.data.rows import Rows, near_name
from flaxbert.data.texts import Texts
from flaxbert.errors import DataError
from flaxbert.storage.store import is_url

READERS: dict[str, Reader] = {
    ".csv": formats.read_csv,
    ".tsv": formats.read_tsv,
    ".jsonl": formats.read_jsonl,
    ".parquet": formats.read_parquet,
}
SUFFIXES = tuple(READERS)

_SHARED = 4096  # labels of which one string is kept, however many rows have it


def read_rows(
    path: str | Path, *, text: str, text_pair: str = "", label: str = "", on_bad_row: str = "error"
) -> Rows:
    """Reads a file of labelled rows; "" for a column means that it is not wanted.

    With on_bad_row="skip" lines that are no row (too many cells, no JSON object) are left out and
    counted in `Rows.skipped`.

    Raises:
      DataError: the file is missing, a directory, of an unknown kind, not UTF-8, malformed, or
        lacks a column. Names the line.
    """
    bad = BadRows(on_bad_row)
    path, wanted = Path(path), [name for name in (text, text_pair, label) if name]
    columns, lines = _collect(path, wanted, {text, text_pair}, bad)
    names = formats.class_names(path, label) if label and _kind(path) == ".parquet" else ()
    return Rows(
        str(path),
        columns[text],
        columns[text_pair] if text_pair else None,
        columns[label] if label else None,
        lines,
        names,
        bad.skipped,
    )


def read_columns(path: str | Path, names: list[str]) -> tuple[dict[str, Any], Sequence[int]]:
    """Returns the named columns of a file, and the line on which each row starts."""
    return _collect(Path(path), names, set(), BadRows())


def read_input_chunks(
    path: str, *, text: str, text_pair: str = "", size: int = 8192
) -> Iterator[Rows]:
    """Yields texts to label in parts of at most `size`, in order, as they are read: rows of a file,
    one text a line of .txt, or "-" for lines on standard input. An empty line is an input too.

    Raises:
      DataError: as `read_rows`, when the reading comes to the place; parts before it are given.
    """
    source = STANDARD_INPUT if path == "-" else path
    if not has_columns(path):
        lines = read_standard_input() if path == "-" else _text_lines(path)
        rows: Iterator[Row] = ((n, (line,)) for n, line in enumerate(map(_bare, lines), start=1))
        pairs = False
    else:
        reader = _reader(Path(path), also=(".txt", "- for standard input"))
        wanted = [name for name in (text, text_pair) if name]
        rows = reader(Path(path), wanted, BadRows())
        pairs = bool(text_pair)
    while part := list(itertools.islice(rows, size)):
        yield Rows(
            source,
            [cells[0] for _, cells in part],
            [cells[1] for _, cells in part] if pairs else None,
            None,
            [line for line, _ in part],
        )


def has_columns(path: str) -> bool:
    """Whether an input has columns, or is one text a line: standard input or .txt."""
    return path != "-" and _kind(Path(path)) != ".txt"


def refuse_same_file(paths: Mapping[str, str]) -> None:
    """Refuses one file under two of the names; also through a symbolic or hard link.

    Raises:
      DataError: names both.
    """
    for (name, path), (other, second) in itertools.combinations(paths.items(), 2):
        try:
            same = bool(path and second) and os.path.samefile(path, second)
        except OSError:
            continue  # reading it says what is wrong
        if same:
            raise DataError(
                f"{name}={path} and {other}={second} are one file. Give each its own rows"
                + (", or hold rows out by config.data.validation_fraction." if "train" in name
                   else ".")
            )  # fmt: skip


def _collect(
    path: Path, names: list[str], texts: set[str], bad: BadRows
) -> tuple[dict[str, Any], Sequence[int]]:
    """Returns the columns `names`, those in `texts` as `Texts`, and the line of each row."""
    wanted = list(dict.fromkeys(names))
    columns: dict[str, Any] = {name: Texts() if name in texts else [] for name in wanted}
    lines = array("q")
    known: dict[str, str] = {}

    def shared(cell: Any) -> Any:
        # Few labels stand in many rows: one string for all of them.
        if type(cell) is not str:
            return cell
        return known.get(cell, cell) if len(known) == _SHARED else known.setdefault(cell, cell)

    adding = [(columns[name].append, name not in texts) for name in wanted]
    for line, cells in _reader(path)(path, wanted, bad):
        lines.append(line)
        for (add, few), cell in zip(adding, cells, strict=True):
            add(shared(cell) if few else cell)
    return columns, lines


def _reader(path: Path, also: tuple[str, ...] = ()) -> Reader:
    if is_url(path):
        raise DataError(f"{path}: data are read from local files. Copy it: gcloud storage cp")
    kind = _kind(path)
    if kind in READERS:
        return READERS[kind]
    if kind == ".parquet.gz":
        raise DataError(f"{path}: Parquet is compressed inside; unpack it first: gunzip {path}")
    near = near_name(SUFFIXES, kind) if kind else ""
    listed = ", ".join((*SUFFIXES, *also[:-1])) + (f", or {also[-1]}" if also else "")
    raise DataError(
        f"{path}: unknown kind of file {kind!r}.{near} Expected one of {listed} (.gz of text files "
        "too)."
    )


def _kind(path: Path) -> str:
    """Returns ".csv" of both rows.csv and rows.CSV.gz; ".parquet.gz" stays."""
    suffix = path.suffix.lower()
    if suffix != ".gz":
        return suffix
    inner = Path(path.stem).suffix.lower()
    return inner + suffix if inner not in (".csv", ".tsv", ".jsonl", ".txt") else inner


def _text_lines(path: str) -> Iterator[str]:
    return read_lines(Path(path), carriage_returns=False)


def _bare(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")
