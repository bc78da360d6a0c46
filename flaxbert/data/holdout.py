"""Holds validation rows out of the training rows: a seeded, stratified share.

The choice depends on texts, labels and seed, never on the order in the file, and equal texts
(normalised) stay in one split. No library does that for all three kinds of target: scikit-learn's
splits depend on the order, and stratify neither lists nor numbers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from flaxbert.data.overlap import text_keys
from flaxbert.data.rows import Rows, Target
from flaxbert.errors import DataError

_BINS = 10  # quantile bins of regression targets, at most


_Group = tuple[int, ...]  # rows with the same text, which stay together


def split_validation(
    rows: Rows, targets: Sequence[Target], problem: str, fraction: float, seed: int
) -> tuple[Rows, Rows]:
    """Holds out the same share of each label (single label), of each label as far as combinations
    allow (multi-label), or of each range of values (regression).

    Every label keeps a row to train on. Without duplicates each label gives its share rounded down
    or up, and all rows together theirs rounded; groups of equal texts can reduce it. Raises
    DataError if there are too few rows.
    """
    groups = _groups(rows, seed)
    if problem == "regression":
        held = _stratified(groups, _quantile_bins(groups, targets, fraction), fraction)
    elif any(isinstance(target, list) for target in targets):
        held = _iterative(groups, targets, fraction)
    else:
        held = _stratified(groups, [_most_common(group, targets) for group in groups], fraction)
    if not held:
        raise DataError(
            f"{rows.source}: {len(rows)} rows are too few to hold out a share of {fraction} for "
            "validation. Give a larger share or a validation file."
        )
    train = rows.take([row for row in range(len(rows)) if row not in held], "training part")
    validation = rows.take(sorted(held), "validation part")
    return dataclasses.replace(train, skipped=rows.skipped), validation


def _groups(rows: Rows, seed: int) -> list[_Group]:
    """Returns the rows grouped by text, in an order drawn from seed and text."""
    salt = str(seed).encode()[:16]
    drawn = [hashlib.blake2b(key, salt=salt).digest()[:16] for key in text_keys(rows)]
    order = sorted(range(len(rows)), key=drawn.__getitem__)
    return [tuple(group) for _, group in itertools.groupby(order, drawn.__getitem__)]


def _most_common(group: _Group, targets: Sequence[Target]) -> Target:
    counts = Counter(targets[row] for row in group)
    return min(counts, key=lambda target: (-counts[target], target))


def _stratified(groups: Sequence[_Group], strata: Sequence[Hashable], fraction: float) -> set[int]:
    """Holds out the first groups of each stratum until its share is reached."""
    sizes: Counter[Any] = Counter()
    for group, stratum in zip(groups, strata, strict=True):
        sizes[stratum] += len(group)
    room = _apportion(sizes, fraction)
    held: set[int] = set()
    for group, stratum in zip(groups, strata, strict=True):
        if len(group) <= room[stratum]:
            room[stratum] -= len(group)
            held.update(group)
    return held


def _apportion(sizes: Counter[Any], fraction: float) -> dict[Any, int]:
    """Returns how many rows of each stratum to hold out, by largest remainders: its share rounded
    down or up, and never all."""
    # Rounded first: 40 * 0.2 must not become 9 by way of 8.000000000000002.
    shares = {stratum: round(size * fraction, 6) for stratum, size in sizes.items()}
    counts = {stratum: math.floor(share) for stratum, share in shares.items()}
    left = round(sum(sizes.values()) * fraction) - sum(counts.values())
    for stratum in sorted(shares, key=lambda s: (counts[s] - shares[s], s)):
        if left > 0 and counts[stratum] < min(math.ceil(shares[stratum]), sizes[stratum] - 1):
            counts[stratum] += 1
            left -= 1
    return {stratum: min(count, sizes[stratum] - 1) for stratum, count in counts.items()}


def _quantile_bins(
    groups: Sequence[_Group], targets: Sequence[Target], fraction: float
) -> list[int]:
    """Returns a bin per group; equal values share one."""
    means = np.array([float(np.mean(sorted(targets[row] for row in group))) for group in groups])
    held = round(len(targets) * fraction)
    bins = max(1, min(_BINS, held // 2))
    edges = np.quantile(means, np.arange(1, bins) / bins)
    return np.searchsorted(edges, means, side="right").tolist()


def _iterative(groups: Sequence[_Group], targets: Sequence[Target], fraction: float) -> set[int]:
    """Iterative stratification (Sechidis et al. 2011): the rarest label first, each group to the
    split that still needs more of that label."""
    own = [Counter(name for row in group for name in set(targets[row])) for group in groups]
    counts = sum(own, Counter())
    # Rows that are not placed yet, and those that validation still needs, by label; "", which is no
    # label's name, counts all rows.
    unplaced = {**counts, "": len(targets)}
    wanted = {name: count * fraction for name, count in unplaced.items()}
    training = Counter(counts)

    def prefers_validation(name: str) -> bool | None:
        lead = round(2 * wanted[name] - unplaced[name], 6)  # over what training needs
        return None if lead == 0 else lead > 0

    # Each group is placed by its rarest label; those without any label come last.
    names = [*sorted(counts, key=lambda name: (counts[name], name)), ""]
    rank = {name: place for place, name in enumerate(names)}
    rarest = [min(labels, key=rank.__getitem__, default="") for labels in own]
    held: set[int] = set()
    for index in sorted(range(len(groups)), key=lambda index: rank[rarest[index]]):
        takes = prefers_validation(rarest[index])
        takes = prefers_validation("") if takes is None else takes
        takes = takes and all(training[n] > count for n, count in own[index].items())
        for n, count in (*own[index].items(), ("", len(groups[index]))):
            unplaced[n] -= count
            wanted[n] -= count if takes else 0
        if takes:
            training -= own[index]
            held.update(groups[index])
    return held
