"""Batches as a pure function of (data, seed, step): only the step is ever stored.

A permutation per (seed, epoch), a slice per update; the last update of an epoch is short. So a
resume is exact, and hosts or devices may change. Sequences are numbered by their place in the
update's slice, before packing, so dropout masks do not depend on the layout.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from flaxbert.data.pack import (
    COMPARED_SEQUENCES,
    Placement,
    RowPlan,
    Work,
    make_plan,
    pack,
    pack_kinds,
    round_up,
    rows_for,
)
from flaxbert.data.tokenize import Tokens

Batch = dict[str, np.ndarray]

_TILE = 128  # tokens of a row: efficient on matrix units, and filled by a few sentences

# Sequences whose packing is tried for a plan: all updates of a small run, a sample of a large one.
_PLANNED_SEQUENCES = 400_000


@dataclasses.dataclass(frozen=True)
class Examples:
    """One split, ready to train on: tokens and their labels, in the order of the data set.

    The layout "slot" has a label for each of the N sequences, [N] int32, [N] float32 (regression)
    or [N, C] float32 (several labels); "token" one for each of the T tokens, [T] int32, -1 = none.
    """

    tokens: Tokens
    labels: np.ndarray
    layout: Literal["slot", "token"] = "slot"
    # Further arrays that the head needs for its answers, by name.
    extra: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        """The number of sequences."""
        return len(self.tokens)

    @property
    def outputs(self) -> int:
        """The number of rows of logits."""
        return len(self.tokens.input_ids) if self.layout == "token" else len(self.tokens)

    @property
    def count(self) -> int:
        """The number of examples: all windows of a text are one."""
        owners = self.tokens.owners
        return len(self.tokens) if owners is None else int(owners[-1]) + 1

    @functools.cached_property
    def digest(self) -> str:
        """Identifies the data: a resume with other data is refused."""
        labels = hashlib.sha256(np.ascontiguousarray(self.labels).tobytes()).hexdigest()
        return hashlib.sha256((self.tokens.digest() + labels).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Share:
    """The rows of each micro-batch to lay out here: some of its equal blocks, ascending."""

    blocks: tuple[int, ...] = (0,)
    of: int = 1

    def rows(self, rows: int) -> int:
        """Returns how many of `rows` rows are in the share."""
        return rows // self.of * len(self.blocks)

    def kept(self, rows: Int[np.ndarray, " n"], count: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns which of the `rows` (numbers below `count`) are kept, and their new numbers."""
        place = np.full(self.of, -1)
        place[list(self.blocks)] = np.arange(len(self.blocks))
        block, inside = np.divmod(rows, count // self.of)
        return place[block] >= 0, place[block] * (count // self.of) + inside


WHOLE = Share()


def steps_per_epoch(examples: int, batch_size: int) -> int:
    return -(-examples // batch_size)


def total_steps(examples: int, batch_size: int, *, epochs: float, steps: int) -> int:
    """Returns the updates of a run: `steps` if positive, else `epochs` passes, rounded up."""
    return steps or math.ceil(steps_per_epoch(examples, batch_size) * epochs)


@functools.lru_cache(maxsize=2)  # batches are made ahead, over the end of an epoch
def _permutation(examples: int, seed: int, epoch: int) -> Int[np.ndarray, " N"]:
    key = np.array([seed, epoch], np.uint64)
    order = np.random.Generator(np.random.Philox(key=key)).permutation(examples)
    order = order.astype(np.int32 if examples < 2**31 else np.int64)
    order.setflags(write=False)  # callers get slices of the cached array
    return order


def update_indices(examples: int, batch_size: int, seed: int, step: int) -> Int[np.ndarray, " n"]:
    """Returns the rows of the data set that update `step` (from 0) trains on, in order."""
    epoch, place = divmod(step, steps_per_epoch(examples, batch_size))
    return _permutation(examples, seed, epoch)[place * batch_size : (place + 1) * batch_size]


def plan_training(
    examples: Examples, *, batch_size: int, seed: int, steps: int, **options: Any
) -> RowPlan:
    """Plans the shapes of a run from its own updates; `options` are those of `pack.make_plan`."""
    sampled = min(steps, max(1, _PLANNED_SEQUENCES // batch_size))
    return make_plan(
        examples.tokens.lengths,
        (update_indices(len(examples), batch_size, seed, step) for step in range(sampled)),
        complete=sampled == steps,
        batch_size=min(batch_size, len(examples)),
        **options,
    )


def train_batch(
    examples: Examples,
    plan: RowPlan,
    *,
    batch_size: int,
    seed: int,
    step: int,
    share: Share = WHOLE,
) -> Batch:
    """Returns the arrays of one update: [A, R, L or S], see `lay_out`.

    Each of several processes lays out its `share` of the rows; places and numbers of sequences are
    those of the whole update.
    """
    indices = update_indices(len(examples), batch_size, seed, step)
    placement = _place(examples.tokens.lengths_of(indices), plan)
    return lay_out(examples, indices, placement, plan, rows_for(plan, placement), share)


def empty_batch(examples: Examples, plan: RowPlan, rows: int) -> Batch:
    """Returns a batch of padding: the shapes and dtypes to compile for."""
    none = np.zeros(0, np.int32)
    return lay_out(examples, none, Placement(none, none, none, 0), plan, rows)


def count_batch(batch: Batch) -> dict[str, int]:
    """Returns the numbers of examples, real tokens and computed tokens of a batch, and the sum over
    its real tokens of the keys that each attends to."""
    lengths = np.bincount(batch["sequence_ids"].ravel())[1:]
    return _counts(lengths[lengths > 0], batch["sequence_ids"].size)


def count_update(
    examples: Examples, *, batch_size: int, seed: int, step: int, computed: int
) -> dict[str, int]:
    """Returns the same counts for a whole update, of which this process may have only a share.

    `computed` are the tokens of all rows.
    """
    indices = update_indices(len(examples), batch_size, seed, step)
    return _counts(examples.tokens.lengths_of(indices), computed)


def _counts(lengths: Int[np.ndarray, " n"], computed: int) -> dict[str, int]:
    return {
        "examples": len(lengths),
        "real_tokens": int(lengths.sum()),
        "computed_tokens": computed,
        "attended_keys": int(np.square(lengths).sum()),
    }


def plan_inference(
    lengths: Int[np.ndarray, " N"],
    *,
    row_multiple: int,
    packing: str = "pack",
    rows: int = 0,
    tokens: int = 2048,
    work: Work | None = None,
) -> tuple[RowPlan, ...]:
    """Plans the shapes of evaluation and prediction, by ascending row length.

    Short sequences share rows of 128 tokens: attention costs rows x length^2, so only long ones use
    long rows (256, 512, ...). Each plan has two row counts: the fewest possible, for small calls
    (such as one sentence), and the full batch.

    Args:
      lengths: tokens of the sequences.
      row_multiple: rows are a multiple of this (the mesh's data x fsdp devices).
      packing: "pack", or "pad" for one sequence a row.
      rows: rows of a full batch, rounded up to `row_multiple`; 0 = as many as `tokens`.
      tokens: about how many each device computes at once.
      work: what rows cost on this model and device, if `lengths` are all there will be: sequences
        that all fit 128 tokens then use the cheapest row length.
    """
    plans = []
    for length in _row_lengths(lengths, packing, work):
        each = max(1, tokens // length) * row_multiple
        full = round_up(rows, row_multiple) if rows else each
        slots = 1 if packing == "pad" else _slots(lengths, length)
        plans.append(RowPlan(length, tuple(sorted({row_multiple, full})), slots))
    return tuple(plans)


def _slots(lengths: Int[np.ndarray, " N"], row_length: int) -> int:
    """Returns the number of slots of a row: a power of two, at least one for every 16 tokens.

    So one program serves most calls. A slot costs as much as a token of the last layer: very little
    for this many.
    """
    usual = 1.5 * row_length / float(np.median(lengths)) if len(lengths) else 1.0
    wanted = min(usual, len(lengths))
    return min(row_length // 2, max(row_length // 16, 2 ** math.ceil(math.log2(max(wanted, 1)))))


def _row_lengths(lengths: Int[np.ndarray, " N"], packing: str, work: Work | None) -> list[int]:
    longest = int(lengths.max(initial=2))
    least = round_up(longest, 8)
    if packing == "pad":
        return [(work or Work()).padded_length(longest)]
    if work is not None and least <= _TILE:
        some = lengths[:COMPARED_SEQUENCES]

        def cost(length: int) -> float:
            slots = _slots(lengths, length)
            return pack(some, length, slots).count * work.of_row(length, slots)

        return [min(range(least, _TILE + 1, 8), key=cost)]  # ties go to the shortest
    row_lengths = [_TILE]
    while row_lengths[-1] < least:
        row_lengths.append(2 * row_lengths[-1])
    return row_lengths


def inference_batches(
    examples: Examples, plans: Sequence[RowPlan], share: Share = WHOLE
) -> Iterator[Batch]:
    """Yields every example exactly once: [R, L or S] without A, longest rows first.

    Each of several processes lays out its `share` of the rows; but "example_ids" and "output_ids"
    are those of all rows, since every process gets all logits.
    """
    lengths = examples.tokens.lengths
    placed = pack_kinds(lengths, [(plan.row_length, plan.slots) for plan in plans])
    small = sum(placement.count for _, placement in placed) <= plans[0].row_counts[0]
    for (chosen, placement), plan in reversed(list(zip(placed, plans, strict=True))):
        rows = plan.row_counts[0 if small else -1]
        by_row = np.argsort(placement.rows, kind="stable")
        bounds = np.searchsorted(placement.rows[by_row], np.arange(0, placement.count + rows, rows))
        for start, end in itertools.pairwise(bounds):
            part = by_row[start:end]
            kept = Placement(
                placement.rows[part] % rows, placement.starts[part], placement.slots[part], rows
            )
            batch = lay_out(examples, chosen[part], kept, plan, rows, share, outputs=True)
            if share != WHOLE:
                whole = lay_out(examples, chosen[part], kept, plan, rows, outputs=True)
                batch |= {name: whole[name] for name in ("example_ids", "output_ids")}
            yield {name: array[0] for name, array in batch.items()}


def lay_out(
    examples: Examples,
    indices: Int[np.ndarray, " n"],
    placement: Placement,
    plan: RowPlan,
    rows: int,
    share: Share = WHOLE,
    *,
    outputs: bool = False,
) -> Batch:
    """Writes the sequences `indices` into [A, rows, row_length] arrays at their places.

    With a `share` only those rows are returned. With `outputs` there are "output_ids" too: the
    sequence, or token of the split, that each output of the model belongs to, -1 = none.
    """
    numbers = np.arange(1, len(indices) + 1)
    if share != WHOLE:
        micro, row = np.divmod(placement.rows, rows)
        kept, row = share.kept(row, rows)
        rows = share.rows(rows)
        placement = Placement(
            (micro * rows + row)[kept], placement.starts[kept], placement.slots[kept], rows
        )
        indices, numbers = indices[kept], numbers[kept]
    tokens, total = examples.tokens, plan.accumulate * rows
    batch: dict[str, Any] = {
        name: np.zeros((total, plan.row_length), np.int32)
        for name in ("input_ids", "token_type_ids", "position_ids", "sequence_ids")
    }
    batch["cls_positions"] = np.zeros((total, plan.slots), np.int32)
    batch["example_ids"] = np.full((total, plan.slots), -1, np.int32)
    labels, by_token = examples.labels, examples.layout == "token"
    targets = plan.row_length if by_token else plan.slots
    batch["labels"] = np.zeros((total, targets, *labels.shape[1:]), labels.dtype)
    batch["weights"] = np.zeros((total, targets), np.float32)

    # One flat scatter for all tokens of the update: no Python loop over sequences.
    lengths = tokens.lengths_of(indices)
    inside = _ranges(lengths)
    source = np.repeat(tokens.offsets[indices], lengths) + inside
    place = np.repeat(placement.rows * plan.row_length + placement.starts, lengths) + inside
    batch["input_ids"].flat[place] = tokens.input_ids[source]
    batch["token_type_ids"].flat[place] = tokens.token_type_ids[source]
    batch["position_ids"].flat[place] = inside
    batch["sequence_ids"].flat[place] = np.repeat(numbers, lengths)

    slot = (placement.rows, placement.slots)
    batch["cls_positions"][slot] = placement.starts
    batch["example_ids"][slot] = indices
    if outputs:
        batch["output_ids"] = np.full((total, targets), -1, np.int32)
        if by_token:
            batch["output_ids"].flat[place] = source
        else:
            batch["output_ids"][slot] = indices
    if by_token:
        batch["labels"].flat[place] = np.maximum(labels[source], 0)
        batch["weights"].flat[place] = labels[source] >= 0
    else:
        batch["labels"][slot] = labels[indices]
        batch["weights"][slot] = 1.0
    return {
        name: array.reshape(plan.accumulate, rows, *array.shape[1:])
        for name, array in batch.items()
    }


def _place(lengths: Int[np.ndarray, " n"], plan: RowPlan) -> Placement:
    if plan.slots == 1:  # one sequence a row, in order
        rows = np.arange(len(lengths), dtype=np.int32)
        return Placement(rows, np.zeros_like(rows), np.zeros_like(rows), len(rows))
    return pack(lengths, plan.row_length, plan.slots)


def _ranges(lengths: Int[np.ndarray, " n"]) -> Int[np.ndarray, " T"]:
    """Returns 0..length-1 of each sequence, end to end."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)
