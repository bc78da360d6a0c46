"""Batches as a pure function of (data, seed, step): nothing but the step is ever stored.

A permutation per (seed, epoch), a slice per update; the last update of an epoch is short. So a
resume is exact, and hosts or devices may change. The surprising thing: sequences are numbered by
their place in the update's slice, before packing, so dropout masks do not depend on the layout.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int

from flaxbert.data.pack import Placement, Plan, first_fit, make_plan, rows_for
from flaxbert.data.tokenize import Tokens

Batch = dict[str, np.ndarray]

# Updates whose packing is tried out for a plan: all of a small run, a sample of a large one.
_PLANNED_SEQUENCES = 400_000


@dataclasses.dataclass(frozen=True)
class Examples:
    """One split, ready to train on: tokens and their labels, in the order of the data set."""

    tokens: Tokens
    labels: np.ndarray  # [N] int32, [N] float32 (regression) or [N, C] float32 (multi-label)

    def __len__(self) -> int:
        return len(self.tokens)

    def digest(self) -> str:
        """Identifies the data: a resume with other rows is refused."""
        labels = hashlib.sha256(np.ascontiguousarray(self.labels).tobytes()).hexdigest()
        return hashlib.sha256((self.tokens.digest() + labels).encode()).hexdigest()


def steps_per_epoch(examples: int, batch_size: int) -> int:
    return -(-examples // batch_size)


def total_steps(examples: int, batch_size: int, *, epochs: float, steps: int) -> int:
    """Returns the updates of a run: `steps` if positive, else `epochs` passes, rounded up."""
    return steps or math.ceil(steps_per_epoch(examples, batch_size) * epochs)


@functools.lru_cache(maxsize=4)
def _permutation(examples: int, seed: int, epoch: int) -> Int[np.ndarray, " N"]:
    key = np.array([seed, epoch], np.uint64)
    order = np.random.Generator(np.random.Philox(key=key)).permutation(examples)
    order.setflags(write=False)  # callers get slices of the cached array
    return order


def update_indices(examples: int, batch_size: int, seed: int, step: int) -> Int[np.ndarray, " n"]:
    """Returns the rows of the data set that update `step` (from 0) trains on, in order."""
    epoch, place = divmod(step, steps_per_epoch(examples, batch_size))
    return _permutation(examples, seed, epoch)[place * batch_size : (place + 1) * batch_size]


def plan_training(
    examples: Examples,
    *,
    batch_size: int,
    seed: int,
    steps: int,
    packing: str,
    accumulate: int = 1,
    row_multiple: int = 1,
    row_length: int = 0,
) -> Plan:
    """Plans the shapes of a run from its own updates (see `pack.make_plan`)."""
    sampled = min(steps, max(1, _PLANNED_SEQUENCES // batch_size))
    updates = (update_indices(len(examples), batch_size, seed, step) for step in range(sampled))
    return make_plan(
        examples.tokens.lengths,
        updates,
        complete=sampled == steps,
        packing=packing,
        batch_size=min(batch_size, len(examples)),
        accumulate=accumulate,
        row_multiple=row_multiple,
        row_length=row_length,
    )


def train_batch(examples: Examples, plan: Plan, *, batch_size: int, seed: int, step: int) -> Batch:
    """Returns the arrays of one update, as DESIGN's table of batch keys says: [A, R, L or S]."""
    indices = update_indices(len(examples), batch_size, seed, step)
    placement = _place(examples.tokens.lengths[indices], plan)
    return lay_out(examples, indices, placement, plan, rows_for(plan, placement))


def empty_batch(examples: Examples, plan: Plan, rows: int) -> Batch:
    """Returns a batch of padding: the shapes and dtypes to compile for."""
    none = np.zeros(0, np.int32)
    return lay_out(examples, none, Placement(none, none, none, 0), plan, rows)


def count_batch(batch: Batch) -> dict[str, int]:
    """Returns how many examples, real tokens and computed tokens a batch has."""
    return {
        "examples": int((batch["example_ids"] >= 0).sum()),
        "real_tokens": int((batch["sequence_ids"] > 0).sum()),
        "computed_tokens": batch["sequence_ids"].size,
    }


def plan_inference(
    lengths: Int[np.ndarray, " N"],
    *,
    row_multiple: int,
    row_length: int = 0,
    packing: str = "pack",
    tokens: int = 2048,
) -> Plan:
    """Plans one shape of about `tokens` tokens for evaluation and prediction."""
    longest = -(-int(lengths.max(initial=8)) // 8) * 8
    length = max(row_length, longest)
    rows = max(1, tokens // length // row_multiple) * row_multiple
    mean = float(lengths.mean()) if len(lengths) else 1.0
    slots = 1 if packing == "pad" else max(1, int(2 * length / max(mean, 1.0)) + 1)
    return Plan(length, (rows,), min(slots, length), 1)


def inference_batches(examples: Examples, plan: Plan) -> Iterator[Batch]:
    """Yields every example exactly once, in batches of one shape: [R, L or S] without A."""
    rows = plan.row_counts[-1]
    lengths = examples.tokens.lengths
    window = rows * plan.slots
    start = 0
    while start < len(examples):
        placement = _place(lengths[start : start + window], plan)
        fits = np.nonzero(placement.rows >= rows)[0]
        # Up to the first sequence that would open a row too many; first-fit keeps those before it.
        count = int(fits[0]) if len(fits) else len(placement.rows)
        kept = Placement(
            placement.rows[:count], placement.starts[:count], placement.slots[:count], rows
        )
        batch = lay_out(examples, np.arange(start, start + count), kept, plan, rows)
        yield {name: array[0] for name, array in batch.items()}
        start += count


def lay_out(
    examples: Examples,
    indices: Int[np.ndarray, " n"],
    placement: Placement,
    plan: Plan,
    rows: int,
) -> Batch:
    """Writes the sequences `indices` into [A, rows, row_length] arrays at their places."""
    tokens, total = examples.tokens, plan.accumulate * rows
    batch: dict[str, Any] = {
        name: np.zeros((total, plan.row_length), np.int32)
        for name in ("input_ids", "token_type_ids", "position_ids", "sequence_ids")
    }
    batch["cls_positions"] = np.zeros((total, plan.slots), np.int32)
    batch["example_ids"] = np.full((total, plan.slots), -1, np.int32)
    labels = examples.labels
    batch["labels"] = np.zeros((total, plan.slots, *labels.shape[1:]), labels.dtype)
    batch["weights"] = np.zeros((total, plan.slots), np.float32)

    # One flat scatter for all tokens of the update: no Python loop over sequences.
    lengths = tokens.lengths[indices]
    inside = _ranges(lengths)
    source = np.repeat(tokens.offsets[indices], lengths) + inside
    place = np.repeat(placement.rows * plan.row_length + placement.starts, lengths) + inside
    batch["input_ids"].flat[place] = tokens.input_ids[source]
    batch["token_type_ids"].flat[place] = tokens.token_type_ids[source]
    batch["position_ids"].flat[place] = inside
    batch["sequence_ids"].flat[place] = np.repeat(np.arange(1, len(indices) + 1), lengths)

    slot = (placement.rows, placement.slots)
    batch["cls_positions"][slot] = placement.starts
    batch["example_ids"][slot] = indices
    batch["labels"][slot] = labels[indices]
    batch["weights"][slot] = 1.0
    return {
        name: array.reshape(plan.accumulate, rows, *array.shape[1:])
        for name, array in batch.items()
    }


def _place(lengths: Int[np.ndarray, " n"], plan: Plan) -> Placement:
    if plan.slots == 1:  # one sequence a row, in order
        rows = np.arange(len(lengths), dtype=np.int32)
        return Placement(rows, np.zeros_like(rows), np.zeros_like(rows), len(rows))
    return first_fit(lengths, plan.row_length, plan.slots)


def _ranges(lengths: Int[np.ndarray, " n"]) -> Int[np.ndarray, " T"]:
    """Returns 0..length-1 of each sequence, end to end."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)
