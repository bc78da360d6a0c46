"""Formats of data files: each file of this folder reads one, and the folder is the registry.

No data-frame library is used: they turn "NA" and "null" into missing values, guess types per column
and hide ragged rows. Here a cell is the text in the file.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flaxbert.data.bad_rows import BadRows
from flaxbert.data.rows import list_names, near_name
from flaxbert.errors import DataError
from flaxbert.registry import member, members
from flaxbert.storage.store import is_url, url_refusal


class Row(NamedTuple):
    line: int  # where it starts in the file, from 1; its number in Parquet
    cells: dict[str, Any]  # of the columns that were asked for


# Yields the rows of a file as it is read, with the columns of these names. Invalid lines go to
# BadRows; errors of the file itself raise DataError.
Reader = Callable[[Path, Sequence[str], BadRows], Iterator[Row]]


@dataclasses.dataclass(frozen=True)
class Format:
    """What each file of this folder provides, as FORMAT."""

    suffixes: tuple[str, ...]
    read: Reader
    is_text: bool = True  # UTF-8, and may be compressed: rows.csv.gz
    has_columns: bool = True  # False: a row is one text, whatever the column's name
    # Label names of a column, in id order, if the file has them.
    class_names: Callable[[Path, str], tuple[str, ...]] = lambda path, column: ()


def read_rows(path: Path, columns: Sequence[str], bad: BadRows) -> Iterator[Row]:
    """Yields the rows of a file in the format of its suffix; see `Reader`."""
    return format_for(path).read(path, list(dict.fromkeys(columns)), bad)


@functools.cache
def by_suffix() -> dict[str, Format]:
    """Returns {suffix: format} of all formats."""
    found: list[Format] = [member("data/formats", n).FORMAT for n in members("data/formats")]
    return {suffix: form for form in found for suffix in form.suffixes}


def format_for(path: Path) -> Format:
    """Returns the format of a file; DataError for an unknown suffix, or what is not on a disk."""
    if is_url(path):
        raise DataError(f"{path}: data are read from local files. Copy it: gcloud storage cp")
    if refusal := url_refusal(path):
        raise DataError(refusal)
    suffix, formats = suffix_of(path), by_suffix()
    if suffix in formats:
        return formats[suffix]
    if suffix.removesuffix(".gz") in formats:
        raise DataError(f"{path}: {suffix[:-3]} is compressed inside; unpack it: gunzip {path}")
    if path.is_dir():
        raise DataError(
            f"{path}: is a directory. Name a file. For a data set in a folder set "
            "config.data.dataset."
        )
    near = near_name(formats, suffix) if suffix else ""
    raise DataError(f"{path}: unknown kind of file {suffix!r}.{near} Expected {listed()}.")


def suffix_of(path: Path) -> str:
    """Returns ".csv" of both rows.csv and rows.CSV.gz; ".parquet.gz" stays."""
    suffix = path.suffix.lower()
    if suffix != ".gz":
        return suffix
    inner = Path(path.stem).suffix.lower()
    form = by_suffix().get(inner)
    return inner if form and form.is_text else inner + suffix


def listed() -> str:
    """Returns all suffixes, for messages and help texts."""
    formats = by_suffix()
    text = sorted(suffix for suffix, form in formats.items() if form.is_text)
    return f"{', '.join(text)} (each also .gz), or {', '.join(sorted(formats.keys() - text))}"


def place_of(where: str, header: Sequence[str], name: str) -> int:
    """Returns the index of a column; `where` starts the error message if there is none."""
    if header.count(name) > 1:
        raise DataError(f"{where}: column {name!r} is twice in the header. Rename one.")
    if name not in header:
        raise DataError(
            f"{where}: there is no column {name!r}.{near_name(header, name)} "
            f"Columns: {list_names(header)}."
        )
    return header.index(name)
