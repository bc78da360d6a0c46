"""Which texts stand twice: within a split, and in training as well as in validation.

Texts are compared as they stand, and normalised: Unicode NFKC, without case, white space as one
space. The surprising thing: empty texts are never duplicates; they are counted as empty.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

from flaxbert.data.rows import Rows, Target


@dataclasses.dataclass(frozen=True)
class Repeat:
    """A row whose text stands in an earlier row too."""

    row: int
    earlier: int  # in the same rows, or in those that the rows are compared with
    exact: bool  # else equal only when normalised
    conflict: bool  # the two have different labels


def normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def text_keys(rows: Rows) -> Iterator[bytes]:
    """Yields 16 bytes per row, equal where the normalised texts (both, of a pair) are; b"" for
    empty ones."""
    for text, pair in _both(rows):
        some = text.strip() or pair.strip()
        yield _digest(normalised(text), normalised(pair)) if some else b""


def repeats(rows: Rows, targets: Sequence[Target]) -> list[Repeat]:
    """Returns the rows whose text, as it stands, stands in an earlier row of the same split."""
    # Sixteen bytes a row: only texts of one hash are compared. Python's differs from process to
    # process, what is found does not.
    hashes = np.fromiter(map(hash, _both(rows)), np.int64, len(rows))
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(np.diff(hashes[order]) == 0)
    first: dict[tuple[str, str], int] = {}
    found = []
    for row in np.unique(order[np.concatenate([same, same + 1])]).tolist():
        texts = (rows.texts[row], _second(rows, row))
        earlier = first.setdefault(texts, row)
        if earlier != row and (texts[0].strip() or texts[1].strip()):
            found.append(Repeat(row, earlier, True, targets[row] != targets[earlier]))
    return found


def leaks(
    train: Rows,
    train_targets: Sequence[Target],
    validation: Rows,
    validation_targets: Sequence[Target],
) -> list[Repeat]:
    """Returns the validation rows whose normalised text stands in training; `earlier` is there."""
    first: dict[bytes, int] = {}
    exact: dict[tuple[str, str], int] = {}
    wanted = list(text_keys(validation))
    needed = set(wanted)
    for row, key in enumerate(text_keys(train)):
        if key and key in needed:
            first.setdefault(key, row)
            exact.setdefault((train.texts[row], _second(train, row)), row)
    found = []
    for row, key in enumerate(wanted):
        if not key or key not in first:
            continue
        same = exact.get((validation.texts[row], _second(validation, row)))
        earlier = first[key] if same is None else same
        conflict = validation_targets[row] != train_targets[earlier]
        found.append(Repeat(row, earlier, same is not None, conflict))
    return found


def _digest(text: str, pair: str) -> bytes:
    # The length keeps ("a", "b c") and ("a b", "c") apart.
    return hashlib.blake2b(f"{len(text)} {text} {pair}".encode(), digest_size=16).digest()


def _second(rows: Rows, row: int) -> str:
    return rows.pairs[row] if rows.pairs is not None else ""


def _both(rows: Rows) -> Iterator[tuple[str, str]]:
    if rows.pairs is None:
        return zip(rows.texts, itertools.repeat(""), strict=False)
    return zip(rows.texts, rows.pairs, strict=True)
