"""CoNLL columns: a token and its tags a line, a blank line after each sentence.

Columns are separated by tabs if the first row has one, else by spaces. A row is a sentence, of
which `tokens` is the first column, `tags` the last, and "1", "2", ... any column by its number.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from flaxbert.data import decode
from flaxbert.data.bad_rows import BadRows
from flaxbert.data.formats import Format, Row, place_of
from flaxbert.errors import DataError

# Stands before each document of CoNLL-2003.
_DOCUMENT = "-DOCSTART-"

_LOOKED_AT = 10_000  # lines

Split = Callable[[str], list[str]]
Line = tuple[int, list[str]]  # its number, from 1, and its cells


def read(path: Path, columns: Sequence[str], bad: BadRows) -> Iterator[Row]:
    source = str(path)
    split, first, width = _shape(path)
    tags_seen = _tags_in(path, split, width)
    known = {"tokens": 0, "tags": width - 1} | {str(i + 1): i for i in range(width)}
    for name in columns:
        place_of(source, list(known), name)
    places = {name: known[name] for name in columns}
    tags = {place for name, place in places.items() if place or name == "tags"}
    for sentence in _sentences(path, split, width, tags_seen):
        for line, cells in sentence:
            given = [cells[place] for place in tags if place < len(cells)]
            if tags and (len(cells) == 1 or not all(given)):
                why = "a token without a tag"
                bad.add(source, line, why, "Write its tag after it, in the same line.", why=why)
                break
            if len(cells) != width:
                what = f"has {len(cells)} columns, line {first} has {width}"
                why = "another number of columns than the first line"
                bad.add(source, line, what, "Give all lines the same columns.", why=why)
                break
        else:
            rows = [cells for _, cells in sentence]
            found = {name: [cells[place] for cells in rows] for name, place in places.items()}
            yield Row(sentence[0][0], found)


def _shape(path: Path) -> tuple[Split, int, int]:
    """Returns how to split a line, and the number and width of the first row."""
    for number, line in enumerate(decode.read_lines(path), start=1):
        if line.strip() and not line.startswith(("# ", _DOCUMENT)):
            split = _by_tabs if "\t" in line else _by_spaces
            return split, number, len(split(line))
    raise DataError(
        f"{path}: is empty. Expected a token and its tag a line, and a blank line after each "
        "sentence."
    )


def _tags_in(path: Path, split: Split, width: int) -> set[str]:
    """Returns the tags in the first lines of a file, without lines that may be comments."""
    lines = itertools.islice(decode.read_lines(path), _LOOKED_AT)
    rows = (split(line) for line in lines if not line.startswith("# "))
    return {cells[-1] for cells in rows if len(cells) == width}


def _sentences(path: Path, split: Split, width: int, tags: set[str]) -> Iterator[list[Line]]:
    sentence: list[Line] = []
    size = 0
    for number, line in enumerate(decode.read_lines(path), start=1):
        cells = split(line)
        # A comment has another number of columns, or stands before a sentence and ends in no tag.
        is_tagged = sentence or cells[-1] in tags
        if line.startswith("# ") and (len(cells) != width or not is_tagged):
            continue
        if line.strip() and cells[0] != _DOCUMENT:
            sentence.append((number, cells))
            size += len(line)
            if size > decode.LONGEST_ROW:
                raise decode.too_long(str(path), sentence[0][0])
        elif sentence:
            yield sentence
            sentence, size = [], 0
    if sentence:
        yield sentence


def _by_tabs(line: str) -> list[str]:
    return [cell.strip(" ") for cell in line.rstrip("\r\n").split("\t")]


def _by_spaces(line: str) -> list[str]:
    # Not str.split: it would also split at spaces that are tokens, such as U+3000.
    return re.split("[ \t]+", line.strip(" \t\r\n"))


FORMAT = Format((".conll", ".iob", ".bio"), read)
