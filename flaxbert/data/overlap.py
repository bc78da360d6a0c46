"""Finds duplicate texts: within a split, and between training and validation.

Texts are compared as they are, and normalised: Unicode NFKC, without case, white space as one
space. Empty texts are never duplicates; they are counted as empty.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import unicodedata
from collections.abc import Iterator, Sequence

from flaxbert.data.cells import number_of
from flaxbert.data.rows import Rows, Target

# Characters without a shape that Unicode counts as letters or marks: joiners, fillers, variation
# selectors.
_INVISIBLE = "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0\ufe0e\ufe0f"


@dataclasses.dataclass(frozen=True)
class Repeat:
    """A row whose text also occurs in an earlier row."""

    row: int
    earlier: int  # in the same rows, or in those they are compared with
    exact: bool  # False = equal only when normalised
    conflict: bool  # the two have different labels


def normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def look_of(label: str) -> str:
    """Returns a key that is equal for labels that print alike, or are the same number."""
    visible = "".join(c for c in label if unicodedata.category(c) != "Cf" and c not in _INVISIBLE)
    key = normalised(visible)
    number = number_of(key)
    return key if number is None else repr(number)


def text_keys(rows: Rows) -> Iterator[bytes]:
    """Yields 16 bytes per row, equal where the normalised texts (both, of a pair) are; b"" for
    empty ones."""
    for text, pair in _both(rows):
        some = text.strip() or pair.strip()
        yield _digest(normalised(text), normalised(pair)) if some else b""


def repeats(rows: Rows, targets: Sequence[Target]) -> list[Repeat]:
    """Returns the rows whose exact text occurs in an earlier row of the same split."""
    first: dict[tuple[str, str], int] = {}
    found = []
    for row, both in enumerate(_both(rows)):
        earlier = first.setdefault(both, row)
        if earlier != row and any(map(str.strip, both)):
            found.append(Repeat(row, earlier, True, targets[row] != targets[earlier]))
    return found


def leaks(
    train: Rows,
    train_targets: Sequence[Target],
    validation: Rows,
    validation_targets: Sequence[Target],
) -> list[Repeat]:
    """Returns the validation rows whose normalised text occurs in training, at row `earlier`."""
    keys = list(text_keys(validation))
    needed = set(keys) - {b""}
    first: dict[bytes, int] = {}
    exact: dict[tuple[str, str], int] = {}
    for row, (key, both) in enumerate(zip(text_keys(train), _both(train), strict=True)):
        if key in needed:
            first.setdefault(key, row)
            exact.setdefault(both, row)
    found = []
    for row, (key, both) in enumerate(zip(keys, _both(validation), strict=True)):
        if key in first:
            earlier = exact.get(both, first[key])
            conflict = validation_targets[row] != train_targets[earlier]
            found.append(Repeat(row, earlier, both in exact, conflict))
    return found


def _digest(text: str, pair: str) -> bytes:
    # The length keeps ("a", "b c") and ("a b", "c") apart.
    return hashlib.blake2b(f"{len(text)} {text} {pair}".encode(), digest_size=16).digest()


def _both(rows: Rows) -> Iterator[tuple[str, str]]:
    """Yields both texts of each row; a list of words is one text."""
    texts = (text if isinstance(text, str) else " ".join(text) for text in rows.texts)
    return zip(texts, rows.pairs or itertools.repeat(""), strict=False)
