"""Rows: what every source of data gives and every check takes."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from flaxbert.data.texts import Texts

# What a row is to be answered with, after reading: a name or id, a list of names, or a number.
Target = Any

# Offenders named in one message; the rest is counted.
NAMED = 20


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of one split, as read: nothing is checked but the file's own format.

    A cell that a JSONL object lacks is None; cells of CSV and TSV are always strings. A file's
    texts are `Texts` and its lines an array, so that ten times the rows hardly take more memory.
    """

    source: str  # file or data set name, for messages
    texts: Sequence[Any]
    pairs: Sequence[Any] | None  # second texts
    targets: list[Any] | None
    lines: Sequence[int]  # in the file where each row starts, from 1; its number in Parquet
    label_names: tuple[str, ...] = ()  # in id order, where the file itself says so
    skipped: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)  # why: lines

    def __len__(self) -> int:
        return len(self.texts)

    def where(self, index: int) -> str:
        return f"{self.source}:{self.lines[index]}"

    def take(self, indices: Sequence[int] | Int[np.ndarray, " n"], name: str) -> Rows:
        """Returns the rows at `indices`; `name` says in messages which part they are."""
        chosen = np.asarray(indices, np.int64)
        ascending = len(chosen) > 0 and bool(np.all(np.diff(chosen) > 0))
        first, end = (chosen[0], chosen[-1] + 1) if ascending else (0, 0)
        wanted = np.isin(np.arange(first, end), chosen, assume_unique=True)

        def pick(values: Sequence[Any]) -> Iterable[Any]:
            if not ascending:
                return (values[i] for i in chosen)
            # In one pass over what lies between: texts are read from a file.
            between = values.part(first, end) if isinstance(values, Texts) else values[first:end]
            return itertools.compress(between, wanted)

        return Rows(
            self.source if not name else f"{self.source} ({name})",
            Texts(pick(self.texts)),
            None if self.pairs is None else Texts(pick(self.pairs)),
            None if self.targets is None else list(pick(self.targets)),
            array("q", pick(self.lines)),
            self.label_names,
        )

    def without(self, aside: Mapping[int, str]) -> Rows:
        """Returns the rows but those of {index: why}, which `skipped` then counts."""
        kept = self.take(np.setdiff1d(np.arange(len(self)), list(aside)), "")
        skipped = {why: list(lines) for why, lines in self.skipped.items()}
        for index in sorted(aside):
            skipped.setdefault(aside[index], []).append(self.lines[index])
        return dataclasses.replace(kept, skipped=skipped)


def list_lines(lines: Sequence[int], named: int = NAMED) -> str:
    """Returns "line 3", "lines 3, 4" or "lines 3, 4 and 7 more"."""
    shown = ", ".join(map(str, lines[:named]))
    more = f" and {len(lines) - named} more" if len(lines) > named else ""
    return f"line{'s' if len(lines) > 1 else ''} {shown}{more}"


def near_name(names: Iterable[str], name: str) -> str:
    """Returns " Did you mean '...'?" for the closest of the names, "" if none is close."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
