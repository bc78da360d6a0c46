"""Packing: several sequences to a row, so that almost no padding is computed.

First-fit in the order of the update: each sequence goes to the first row with room. A plan is made
once from the lengths of all updates of the run: one row length and at most four row counts, because
each (rows, row length) is one compiled program. The surprising thing: packing never changes which
sequences make up an update, only where they stand.

Packed classification: Krell et al. 2021 (arXiv 2107.02027).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int

from flaxbert.errors import ConfigError

MAX_ROW_COUNTS = 4

# A further program must save this share of the computed tokens to be worth compiling.
_WORTH_COMPILING = 0.01


@dataclasses.dataclass(frozen=True)
class Plan:
    """The shapes of a run: micro-batches of `rows` x `row_length` tokens with `slots` sequences."""

    row_length: int
    row_counts: tuple[int, ...]  # rows of one micro-batch, ascending
    slots: int  # sequences that a row can hold
    accumulate: int = 1  # micro-batches per update
    efficiency: float = 1.0  # real / computed tokens, over the updates the plan was made from


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where each sequence of an update stands."""

    rows: Int[np.ndarray, " n"]
    starts: Int[np.ndarray, " n"]  # position of the first token in its row
    slots: Int[np.ndarray, " n"]
    count: int  # rows used


def first_fit(lengths: Sequence[int] | np.ndarray, row_length: int, slots: int) -> Placement:
    """Puts each sequence, in order, into the first row with room for it."""
    fill: list[int] = []
    used: list[int] = []
    rows, starts, places = [], [], []
    open_from = 0  # rows before this one cannot take even the shortest sequence
    lengths = np.asarray(lengths).tolist()  # plain integers: several times faster in the loop
    shortest = min(lengths, default=1)
    for length in lengths:
        row = open_from
        while row < len(fill) and (fill[row] + length > row_length or used[row] == slots):
            row += 1
        if row == len(fill):
            fill.append(0)
            used.append(0)
        rows.append(row)
        starts.append(fill[row])
        places.append(used[row])
        fill[row] += length
        used[row] += 1
        while open_from < len(fill) and (
            fill[open_from] + shortest > row_length or used[open_from] == slots
        ):
            open_from += 1
    arrays = [np.array(values, np.int32) for values in (rows, starts, places)]
    return Placement(arrays[0], arrays[1], arrays[2], len(fill))


def best_fit(
    lengths: Int[np.ndarray, " n"], kinds: Sequence[tuple[int, int]]
) -> list[tuple[Int[np.ndarray, " m"], Placement]]:
    """Puts each sequence, in order, where it leaves the least room, over rows of several lengths.

    Args:
      lengths: tokens of each sequence; descending packs best.
      kinds: (row length, slots) of each kind of row, ascending. A sequence that fits no open row
        opens one of the shortest kind that holds it.

    Returns:
      For each kind the places in `lengths` of its sequences, and where they stand.
    """
    open_rows: dict[int, list[tuple[int, int]]] = {}  # room left -> rows (kind, number) with it
    rooms = 0  # bit r is set where some row has room r: the best fit is its lowest bit from length
    used: list[list[int]] = [[] for _ in kinds]
    found: list[list[tuple[int, int, int, int]]] = [[] for _ in kinds]
    for index, length in enumerate(np.asarray(lengths).tolist()):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            kind, row = open_rows[room].pop()
            if not open_rows[room]:
                rooms ^= 1 << room
        else:
            kind = next(k for k, (row_length, _) in enumerate(kinds) if row_length >= length)
            room, row = kinds[kind][0], len(used[kind])
            used[kind].append(0)
        slot = used[kind][row]
        found[kind].append((index, row, kinds[kind][0] - room, slot))
        used[kind][row] += 1
        if used[kind][row] < kinds[kind][1] and room > length:
            left = room - length
            open_rows.setdefault(left, []).append((kind, row))
            rooms |= 1 << left
    columns = (np.array(part, np.int32).reshape(-1, 4).T for part in found)
    return [
        (index, Placement(rows, starts, slots, len(used[kind])))
        for kind, (index, rows, starts, slots) in enumerate(columns)
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
) -> Plan:
    """Chooses the shapes for a run.

    Args:
      lengths: tokens of every sequence.
      updates: the sequences of each update, or of a sample of them.
      complete: whether `updates` are all of the run's; otherwise one row count is a bound that
        every other update fits.
      packing: "pack", or "pad" for one sequence a row.
      batch_size: sequences per update.
      accumulate: micro-batches per update.
      row_multiple: rows are a multiple of this (the mesh's data x fsdp devices).
      row_length: tokens per row; 0 = chosen.

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
        length = row_length or _round_up(longest, 8)
        efficiency = float(lengths.mean() * batch_size / (rows * accumulate * length))
        return Plan(length, (rows,), 1, accumulate, min(efficiency, 1.0))
    sample = [lengths[indices] for indices in updates]
    candidates = [row_length] if row_length else _row_lengths(longest)
    plans = [
        _plan_for(
            length,
            sample,
            lengths,
            batch_size=batch_size,
            accumulate=accumulate,
            row_multiple=row_multiple,
            complete=complete,
        )
        for length in candidates
    ]
    # Attention costs rows x length^2, so of two lengths that compute as many tokens take the short.
    return max(plans, key=lambda plan: (round(plan.efficiency, 2), -plan.row_length))


def rows_for(plan: Plan, placement: Placement) -> int:
    """Returns the planned row count (of one micro-batch) that holds the placement."""
    needed = -(-placement.count // plan.accumulate)
    return next(count for count in plan.row_counts if count >= needed)


def _plan_for(
    row_length: int,
    sample: list[np.ndarray],
    lengths: np.ndarray,
    *,
    batch_size: int,
    accumulate: int,
    row_multiple: int,
    complete: bool,
) -> Plan:
    # Twice the average number per row: the pooler and head compute every slot, filled or not.
    wanted = int(2 * row_length / float(lengths.mean())) + 1
    slots = max(1, min(batch_size, wanted, row_length // int(lengths.min())))
    step = accumulate * row_multiple
    needed = np.array([first_fit(update, row_length, slots).count for update in sample])
    unique = np.unique(-(-needed // step) * row_multiple, return_counts=True)
    values, counts = unique[0].tolist(), unique[1].tolist()
    spare = []
    if not complete:
        worst = -(-_most_rows(lengths, batch_size, row_length, slots) // step) * row_multiple
        spare = [worst] if worst > values[-1] else []
    chosen = _choose(values, counts, MAX_ROW_COUNTS - len(spare))
    computed = _computed(chosen, values, counts)
    real = sum(int(update.sum()) for update in sample)
    efficiency = float(real / (computed * accumulate * row_length))
    return Plan(row_length, (*chosen, *spare), slots, accumulate, efficiency)


def _choose(values: list[int], counts: list[int], limit: int) -> tuple[int, ...]:
    """Returns at most `limit` row counts, the largest included, that compute the fewest rows."""
    best: tuple[int, ...] = (values[-1],)
    fewest = values[-1] * sum(counts)
    for size in range(1, min(limit, len(values))):
        # At most 3 of the distinct counts besides the largest; only every n-th when there are many.
        pool = values[:-1][:: max(1, len(values) // 24)]
        options = [(*lower, values[-1]) for lower in itertools.combinations(pool, size)]
        totals = [_computed(option, values, counts) for option in options]
        total = min(totals, default=fewest)
        if total > fewest * (1 - _WORTH_COMPILING):
            break
        best, fewest = options[totals.index(total)], total
    return best


def _computed(option: tuple[int, ...], values: list[int], counts: list[int]) -> int:
    """Returns the rows computed when each update takes the smallest count that holds it."""
    return sum(n * next(c for c in option if c >= v) for v, n in zip(values, counts, strict=True))


def _most_rows(lengths: np.ndarray, batch_size: int, row_length: int, slots: int) -> int:
    """A bound on the rows of any update: in first-fit all rows but one are more than half full or
    have all slots taken."""
    total = int(np.sort(lengths)[-batch_size:].sum())
    return min(batch_size, 2 * total // row_length + batch_size // slots + 1)


def _row_lengths(longest: int) -> list[int]:
    least = _round_up(longest, 8)
    usual = (128, 256, 512)  # tiles that matrix units like
    return sorted(
        {least, 2 * least, 3 * least, 4 * least}.union(
            length for length in usual if least < length < 4 * least
        )
    )


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
