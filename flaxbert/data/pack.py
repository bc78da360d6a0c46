"""Packing: several sequences to a row, so that almost no padding is computed.

Longest first, each into the first row with room (first-fit decreasing). A plan is made once from
the lengths of all updates of the run: one row length and at most four row counts, because each
(rows, row length) is one compiled program. Note: packing never changes which sequences make up an
update, only where they are placed.

Packed classification: Krell et al. 2021 (arXiv 2107.02027).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Int

from flaxbert.errors import ConfigError

MAX_ROW_COUNTS = 4

# A further program must save this share of the computed tokens to be worth compiling.
_WORTH_COMPILING = 0.01

# Row lengths are compared on at least this many sequences and updates: enough to measure shares of
# padding to a few tenths of a percent.
COMPARED_SEQUENCES, _COMPARED_UPDATES = 8192, 4


@dataclasses.dataclass(frozen=True)
class Work:
    """The cost of a row; the unit is a token's cost in all linear layers."""

    key: float = 0.0  # a token attending to one key
    slot: float = 0.0  # a sequence: its first token's last layer, pooler and head
    tile: int = 8  # attention computes row lengths rounded up to a multiple of this
    kernel_lengths: tuple[int, ...] = ()  # row lengths with a kernel for attention
    plain_key: float = 0.0  # the extra cost of a key in rows of other lengths

    def of_row(self, row_length: int, slots: int) -> float:
        keys = round_up(row_length, self.tile)
        key = self.key + (0.0 if row_length in self.kernel_lengths else self.plain_key)
        return row_length * (1 + key * keys) + self.slot * slots

    def padded_length(self, longest: int) -> int:
        """Returns the cheapest row length for one sequence a row."""
        lengths = [length for length in self.kernel_lengths if length >= longest]
        return min((round_up(longest, 8), *lengths), key=lambda length: self.of_row(length, 1))


@dataclasses.dataclass(frozen=True)
class RowPlan:
    """The shapes of a run: micro-batches of `rows` x `row_length` tokens with `slots` sequences."""

    row_length: int
    row_counts: tuple[int, ...]  # rows of one micro-batch, ascending
    slots: int  # sequences that a row can hold
    accumulate: int = 1  # micro-batches per update
    efficiency: float = 1.0  # real / computed tokens, over the updates the plan was made from


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where each sequence of an update is placed."""

    rows: Int[np.ndarray, " n"]
    starts: Int[np.ndarray, " n"]  # position of the first token in its row
    slots: Int[np.ndarray, " n"]
    count: int  # rows used


def pack(lengths: Int[np.ndarray, " n"], row_length: int, slots: int) -> Placement:
    """Puts each sequence, longest first, into the first row with room for it."""
    ((_, placement),) = pack_kinds(lengths, [(row_length, slots)])
    return placement


def pack_kinds(
    lengths: Int[np.ndarray, " n"], kinds: Sequence[tuple[int, int]]
) -> list[tuple[Int[np.ndarray, " m"], Placement]]:
    """Packs into rows of several lengths: each has the shortest length for its longest sequence.

    Filling one row after the other with the longest sequences that fit gives the same rows as
    first-fit decreasing; equal lengths are placed together, so the time depends on the number of
    rows and not of sequences.

    Args:
      lengths: tokens of each sequence.
      kinds: (row length, slots) of each kind of row, ascending; the last holds every sequence.

    Returns:
      For each kind the indices in `lengths` of its sequences, and their placement.
    """
    left = np.bincount(lengths, minlength=1).tolist() if len(lengths) else [0]
    # Bit n is set if a sequence of n tokens is left: the longest that fits is the highest bit.
    present = sum(1 << length for length, count in enumerate(left) if count)
    counts = [0] * len(kinds)
    # (kind, row, start, slot, length, count) of equal sequences placed one after the other
    runs: list[tuple[int, int, int, int, int, int]] = []
    kind = len(kinds) - 1
    while present:
        longest = present.bit_length() - 1
        while kind and kinds[kind - 1][0] >= longest:
            kind -= 1
        room, free = kinds[kind]
        row, start, slot = counts[kind], 0, 0
        counts[kind] += 1
        while free and (fitting := present & ((2 << room) - 1)):
            length = fitting.bit_length() - 1
            count = min(left[length], room // length, free)
            runs.append((kind, row, start, slot, length, count))
            left[length] -= count
            if not left[length]:
                present ^= 1 << length
            start, slot = start + count * length, slot + count
            room, free = room - count * length, free - count
    table = np.array(runs, np.int64).reshape(-1, 6)
    each = np.repeat(table, table[:, 5], axis=0)
    inside = np.arange(len(each)) - np.repeat(np.cumsum(table[:, 5]) - table[:, 5], table[:, 5])
    # Runs of one length hold its sequences in their order.
    order = np.argsort(-np.asarray(lengths), kind="stable")
    each, inside = (part[np.argsort(-each[:, 4], kind="stable")] for part in (each, inside))
    starts, places = each[:, 2] + inside * each[:, 4], each[:, 3] + inside
    columns = np.empty((4, len(each)), np.int32)
    columns[:, order] = (each[:, 0], each[:, 1], starts, places)
    of_kind = [np.flatnonzero(columns[0] == number) for number in range(len(kinds))]
    return [
        (index, Placement(*columns[1:, index], count=counts[number]))
        for number, index in enumerate(of_kind)
    ]


def make_plan(
    lengths: Int[np.ndarray, " N"],
    updates: Iterable[Int[np.ndarray, " _"]],
    *,
    complete: bool,
    packing: str,
    batch_size: int,
    accumulate: int = 1,
    row_multiple: int = 1,
    row_length: int = 0,
    work: Work = Work(),
) -> RowPlan:
    """Chooses the shapes for a run.

    Args:
      lengths: tokens of every training sequence.
      updates: indices into `lengths` of each planned update, in order.
      complete: whether `updates` are all of the run's; otherwise one row count is a bound for every
        other update.
      packing: "pack", or "pad" for one sequence a row.
      batch_size: sequences per update.
      accumulate: micro-batches per update.
      row_multiple: rows are a multiple of this (the mesh's data x fsdp devices).
      row_length: tokens per row; 0 = chosen.
      work: what rows cost on this model and device.

    Raises:
      ConfigError: a row length that is shorter than the longest sequence.
    """
    longest = int(lengths.max())
    if row_length and row_length < longest:
        raise ConfigError(
            f"config.data.row_length={row_length}: the longest sequence has {longest} tokens. Set "
            "it to at least that, to 0 to have it planned, or lower config.data.max_length."
        )
    step = accumulate * row_multiple
    if packing == "pad":
        rows = -(-batch_size // step) * row_multiple
        length = row_length or work.padded_length(longest)
        efficiency = float(lengths.mean() * batch_size / (rows * accumulate * length))
        return RowPlan(length, (rows,), 1, accumulate, min(efficiency, 1.0))
    sample = [lengths[indices] for indices in updates]
    compared = sample[: max(_COMPARED_UPDATES, COMPARED_SEQUENCES // batch_size)]

    def needed(updates: list[np.ndarray], row_length: int, slots: int) -> np.ndarray:
        """Returns the rows of one micro-batch that each update needs."""
        rows = np.array([pack(update, row_length, slots).count for update in updates])
        return -(-rows // step) * row_multiple

    def cost(row_length: int, slots: int) -> float:
        rows = choose_row_counts(needed(compared, row_length, slots), MAX_ROW_COUNTS)[1]
        return rows * work.of_row(row_length, slots)

    length, slots = _cheapest(cost, lengths, row_length, batch_size)
    rows = needed(sample, length, slots)
    spare = []
    if not complete:
        worst = -(-_most_rows(lengths, batch_size, length, slots) // step) * row_multiple
        spare = [worst] if worst > rows.max() else []
    chosen, computed = choose_row_counts(rows, MAX_ROW_COUNTS - len(spare))
    real = sum(int(update.sum()) for update in sample)
    efficiency = float(real / (computed * accumulate * length))
    return RowPlan(length, (*chosen, *spare), slots, accumulate, efficiency)


def rows_for(plan: RowPlan, placement: Placement) -> int:
    """Returns the planned row count (of one micro-batch) that holds the placement."""
    needed = -(-placement.count // plan.accumulate)
    return next(count for count in plan.row_counts if count >= needed)


def _cheapest(
    cost: Callable[[int, int], float], lengths: np.ndarray, row_length: int, batch_size: int
) -> tuple[int, int]:
    """Returns the row length and the slots with the least cost; `row_length` = 0 leaves it free."""

    def slots_for(length: int, times: float) -> int:
        """Returns `times` as many slots as the average row needs."""
        most = min(batch_size, length // int(lengths.min()))
        return max(1, min(most, int(times * length / float(lengths.mean())) + 1))

    candidates = [row_length] if row_length else _row_lengths(int(lengths.max()))
    # Ties go to the shortest.
    length = min(candidates, key=lambda length: cost(length, slots_for(length, 2)))
    slots = sorted({slots_for(length, times) for times in (1.25, 1.5, 2, 3, 4)})
    return length, min(slots, key=lambda slots: cost(length, slots))


def choose_row_counts(
    needed: Int[np.ndarray, " updates"], limit: int
) -> tuple[tuple[int, ...], int]:
    """Returns at most `limit` row counts, the largest included, and the total rows computed.

    `needed` are the rows of each update. Finds the best choice of each size by dynamic programming
    over the ascending distinct counts; each further count must be worth compiling.
    """
    values, counts = np.unique(needed, return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)])
    later = np.triu(np.ones((len(values), len(values)), bool), 1)
    # cost[j]: fewest rows for the updates that need up to values[j], the largest count there.
    cost, before = values * below[1:], []
    costs = [float(cost[-1])]
    for _ in range(1, min(limit, len(values))):
        # options[i, j]: the cost if the next smaller count is values[i].
        options = cost[:, None] + values * (below[None, 1:] - below[1:, None])
        options = np.where(later, options, np.inf)
        before.append(options.argmin(axis=0))
        cost = options.min(axis=0)
        costs.append(float(cost[-1]))
    more = min(range(len(costs)), key=lambda n: costs[n] * (1 + n * _WORTH_COMPILING))
    places = [len(values) - 1]
    for came_from in reversed(before[:more]):
        places.append(int(came_from[places[-1]]))
    return tuple(int(values[place]) for place in reversed(places)), int(costs[more])


def _most_rows(lengths: np.ndarray, batch_size: int, row_length: int, slots: int) -> int:
    """Bounds the rows of any update: in first-fit all rows but one are more than half full or have
    no free slot."""
    total = int(np.sort(lengths)[-batch_size:].sum())
    return min(batch_size, 2 * total // row_length + batch_size // slots + 1)


def _row_lengths(longest: int) -> list[int]:
    """Multiples of 8 from the longest sequence on: finely up to its double, then coarsely."""
    least = round_up(longest, 8)
    return sorted({*range(least, 2 * least + 1, 8), *range(round_up(least, 64), 513, 64)})


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
