"""Validation rows taken from the training rows: a seeded share, alike in labels.

The surprising thing: which rows go depends on their texts, their labels and the seed, never on
their order in the file, and equal texts (normalised) are on one side together.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from flaxbert.data.checks import Labels
from flaxbert.data.overlap import text_keys
from flaxbert.data.rows import Rows
from flaxbert.errors import DataError

_KEY = 16  # bytes of a text's key
_BINS = 10  # quantile bins of regression targets, at most


@dataclasses.dataclass(frozen=True)
class _Group:
    """Rows of one text: they stay together."""

    rows: Sequence[int]
    targets: list[Any]

    def most_common(self) -> Any:
        counts = Counter(self.targets)
        return min(counts, key=lambda target: (-counts[target], target))


@dataclasses.dataclass(frozen=True)
class _Groups(Sequence[_Group]):
    """All groups, each made when it is asked for: there are about as many as rows."""

    rows: Int[np.ndarray, " N"]  # of one group after the other
    bounds: Int[np.ndarray, " bounds"]  # group i has rows[bounds[i] : bounds[i + 1]]
    targets: Sequence[Any]  # of the rows in their own order

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, index: Any) -> Any:
        rows = self.rows[self.bounds[index] : self.bounds[index + 1]].tolist()
        return _Group(rows, [_hashable(self.targets[row]) for row in rows])

    def __iter__(self) -> Iterator[_Group]:
        return map(self.__getitem__, range(len(self)))


def split_validation(
    rows: Rows, targets: Sequence[Any], labels: Labels, fraction: float, seed: int
) -> tuple[Rows, Rows]:
    """Holds out a share of the rows: of each label alike (single label), of each label as near as
    its combinations allow (multi-label), or of each range of values alike (regression).

    Every label keeps a row to train on. Texts without duplicates give each label its share rounded
    down or up and the whole its share rounded; groups of equal texts can make it less.

    Raises:
      DataError: too few rows for the share.
    """
    groups = _groups(rows, targets, seed)
    if labels.problem == "multi_label":
        held = _iterative(groups, fraction)
    elif labels.problem == "regression":
        held = _stratified(groups, _quantile_bins(groups, fraction), fraction)
    else:
        held = _stratified(groups, [group.most_common() for group in groups], fraction)
    if not held:
        raise DataError(
            f"{rows.source}: {len(rows)} rows are too few to hold out a share of {fraction} for "
            "validation. Give a larger share or a validation file."
        )
    is_held = np.zeros(len(rows), np.bool_)
    is_held[list(held)] = True
    train = rows.take(np.flatnonzero(~is_held), "training part")
    return (
        dataclasses.replace(train, skipped=rows.skipped),
        rows.take(np.flatnonzero(is_held), "validation part"),
    )


def _groups(rows: Rows, targets: Sequence[Any], seed: int) -> _Groups:
    """Returns the rows by text, in an order that the seed draws from the texts themselves."""
    keys = bytearray()
    for key in text_keys(rows):
        keys += key or bytes(_KEY)
    _, firsts, text_of = np.unique(
        np.frombuffer(keys, f"S{_KEY}"), return_index=True, return_inverse=True
    )
    salt = str(seed).encode()[:16]
    drawn = bytearray()
    for first in firsts.tolist():
        key = bytes(keys[_KEY * first : _KEY * (first + 1)])
        drawn += hashlib.blake2b(key if any(key) else b"", salt=salt).digest()[:_KEY]
    place = np.empty(len(firsts), np.int64)
    place[np.argsort(np.frombuffer(drawn, f"S{_KEY}"), kind="stable")] = np.arange(len(firsts))
    group_of = place[text_of]
    bounds = np.concatenate([[0], np.cumsum(np.bincount(group_of))])
    return _Groups(np.argsort(group_of, kind="stable"), bounds, targets)


def _hashable(target: Any) -> Any:
    return tuple(sorted(set(target))) if isinstance(target, list) else target


def _stratified(groups: Sequence[_Group], strata: Sequence[Hashable], fraction: float) -> set[int]:
    """Holds out the first groups of each stratum until its part of the share is full."""
    sizes: Counter[Any] = Counter()
    for group, stratum in zip(groups, strata, strict=True):
        sizes[stratum] += len(group.rows)
    room = _apportion(sizes, fraction)
    held: set[int] = set()
    for group, stratum in zip(groups, strata, strict=True):
        if len(group.rows) <= room[stratum]:
            room[stratum] -= len(group.rows)
            held.update(group.rows)
    return held


def _apportion(sizes: Counter[Any], fraction: float) -> dict[Any, int]:
    """Returns how many rows of each stratum to hold out, by largest remainders: each its share
    rounded down or up, and never all."""
    # Rounded first: 40 * 0.2 must not become 9 by way of 8.000000000000002.
    shares = {stratum: round(size * fraction, 6) for stratum, size in sizes.items()}
    counts = {stratum: math.floor(share) for stratum, share in shares.items()}
    left = round(sum(sizes.values()) * fraction) - sum(counts.values())
    for stratum in sorted(shares, key=lambda s: (counts[s] - shares[s], s)):
        if left > 0 and counts[stratum] < min(math.ceil(shares[stratum]), sizes[stratum] - 1):
            counts[stratum] += 1
            left -= 1
    return {stratum: min(count, sizes[stratum] - 1) for stratum, count in counts.items()}


def _quantile_bins(groups: Sequence[_Group], fraction: float) -> list[int]:
    """Returns a bin per group; equal values share one."""
    means = np.array([float(np.mean(sorted(group.targets))) for group in groups])
    held = round(sum(len(group.rows) for group in groups) * fraction)
    bins = max(1, min(_BINS, held // 2))
    edges = np.quantile(means, np.arange(1, bins) / bins)
    return np.searchsorted(edges, means, side="right").tolist()


def _iterative(groups: Sequence[_Group], fraction: float) -> set[int]:
    """Iterative stratification (Sechidis et al. 2011): the rarest label first, each group to the
    side that still wants more of that label."""
    own = [Counter(name for names in group.targets for name in names) for group in groups]
    counts = sum(own, Counter())
    # Rows that are not placed yet, and those that validation still wants. "" stands for any row:
    # no label is called so.
    unplaced = {**counts, "": sum(len(group.rows) for group in groups)}
    wanted = {name: count * fraction for name, count in unplaced.items()}
    training = Counter(counts)

    def prefers_validation(name: str) -> bool | None:
        lead = round(2 * wanted[name] - unplaced[name], 6)  # over what training wants
        return None if lead == 0 else lead > 0

    of_label: dict[str, list[int]] = {
        name: [] for name in sorted(counts, key=lambda n: (counts[n], n))
    }
    of_label[""] = list(range(len(groups)))  # last: the rows without any label
    for index, names in enumerate(own):
        for name in names:
            of_label[name].append(index)
    held: set[int] = set()
    placed: set[int] = set()
    for name, members in of_label.items():
        for index in members:
            if index in placed:
                continue
            placed.add(index)
            takes = prefers_validation(name)
            takes = prefers_validation("") if takes is None else takes
            takes = takes and all(training[n] > count for n, count in own[index].items())
            for n, count in (*own[index].items(), ("", len(groups[index].rows))):
                unplaced[n] -= count
                wanted[n] -= count if takes else 0
            if takes:
                training -= own[index]
                held.update(groups[index].rows)
    return held
