"""Rows: the form in which all sources return data and all checks take them."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# The target of a row, after reading: a name or id, a list of names, or a number.
Target = Any

# Lines or names in one message; the rest are counted.
NAMED = 20


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of one split as read, by column; cells are not checked yet.

    The keys of columns are fields of config.data ("text", "text_pair", "label"), whatever their
    names in the file. A cell that a JSON object lacks is None; cells of CSV and TSV are strings.
    """

    source: str  # file or data set name, for messages
    columns: Mapping[str, Sequence[Any]]
    lines: Sequence[int]  # in the file where each row starts, from 1; its number in Parquet
    # Of a column: label names in id order, where the data set itself has them.
    class_names: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    skipped: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)  # why: lines
    notes: Sequence[str] = ()  # what a user should know of how the file is read

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def texts(self) -> Sequence[Any]:
        return self.columns["text"]

    @property
    def pairs(self) -> Sequence[Any] | None:
        return self.columns.get("text_pair")

    @property
    def targets(self) -> Sequence[Any] | None:
        return self.columns.get("label")

    def where(self, index: int) -> str:
        return f"{self.source}:{self.lines[index]}"

    def take(self, indices: Sequence[int], name: str) -> Rows:
        """Returns the rows at `indices`; `name` is added to the source in messages."""
        return Rows(
            f"{self.source} ({name})" if name else self.source,
            {key: [cells[i] for i in indices] for key, cells in self.columns.items()},
            [self.lines[i] for i in indices],
            self.class_names,
            notes=self.notes,
        )

    def without(self, aside: Mapping[int, str]) -> Rows:
        """Returns the rows without those of {index: why}, which are added to `skipped`."""
        kept = self.take([i for i in range(len(self)) if i not in aside], "")
        skipped = {why: list(lines) for why, lines in self.skipped.items()}
        for index in sorted(aside):
            skipped.setdefault(aside[index], []).append(self.lines[index])
        return dataclasses.replace(kept, skipped=skipped)


def joined(parts: Sequence[Rows], source: str) -> Rows:
    """Returns the rows of several files as one; lines of a file are counted on from those before
    it, of which each was a row or skipped, as in Parquet."""
    lines: list[int] = []
    skipped: dict[str, list[int]] = {}
    before = 0  # lines of the files so far
    for rows in parts:
        lines += [before + line for line in rows.lines]
        for why, left_out in rows.skipped.items():
            skipped.setdefault(why, []).extend(before + line for line in left_out)
        before += len(rows) + sum(map(len, rows.skipped.values()))
    return Rows(
        source,
        {key: [c for rows in parts for c in rows.columns[key]] for key in parts[0].columns},
        lines,
        parts[0].class_names,
        skipped,
        tuple(dict.fromkeys(note for rows in parts for note in rows.notes)),
    )


def list_lines(lines: Sequence[int], named: int = NAMED) -> str:
    """Returns "line 3", "lines 3, 4" or "lines 3, 4 and 7 more"."""
    first = ", ".join(map(str, lines[:named]))
    more = f" and {len(lines) - named} more" if len(lines) > named else ""
    return f"line{'s' if len(lines) > 1 else ''} {first}{more}"


def list_names(names: Sequence[str]) -> str:
    """Returns the first names, each quoted, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(shown, names[:NAMED])) + more


def shown(value: Any) -> str:
    """Returns a value for messages, cut if it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:76]}...{text[-1]}"


def near_name(names: Iterable[str], name: str) -> str:
    """Returns " Did you mean '...'?" for the closest of the names, "" if none is close."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
