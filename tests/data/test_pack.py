"""Placement and plans: every sequence once, nothing overlaps, every update of a run fits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxbert.data.pack import (
    MAX_ROW_COUNTS,
    Placement,
    RowPlan,
    Work,
    choose_row_counts,
    make_plan,
    pack,
    pack_kinds,
    rows_for,
)
from flaxbert.errors import ConfigError

# The same examples in every run, so that a failure is a failure everywhere.
PROPERTY = settings(max_examples=300, deadline=None, derandomize=True)
PLANS = settings(max_examples=200, deadline=None, derandomize=True)

# Many short ones among them, so that slots run out before tokens do.
LENGTHS = st.lists(st.one_of(st.integers(2, 5), st.integers(2, 64)), min_size=1, max_size=80).map(
    np.array
)


def naive(lengths, row_length: int, slots: int) -> list[tuple[int, int, int]]:
    """Returns (row, start, slot) of each sequence by first-fit decreasing, the slow obvious way."""
    rows: list[list[int]] = []
    out: dict[int, tuple[int, int, int]] = {}
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        length = int(lengths[place])
        fits = [sum(inside) + length <= row_length and len(inside) < slots for inside in rows]
        row = fits.index(True) if True in fits else len(rows)
        if row == len(rows):
            rows.append([])
        out[place] = (row, sum(rows[row]), len(rows[row]))
        rows[row].append(length)
    return [out[place] for place in range(len(lengths))]


# --- placement ----------------------------------------------------------------------------------


@PROPERTY
@given(lengths=LENGTHS, spare=st.integers(0, 64), slots=st.integers(1, 12))
def test_placement(lengths, spare, slots):
    row_length = int(lengths.max()) + spare
    placement = pack(lengths, row_length, slots)
    # Every sequence is placed once, no token twice, none beyond the row.
    taken = np.zeros((placement.count, row_length), int)
    for row, start, length in zip(placement.rows, placement.starts, lengths, strict=True):
        assert start + length <= row_length
        taken[row, start : start + length] += 1
    assert taken.max() == 1
    assert taken.sum() == lengths.sum()
    assert sorted(set(placement.rows.tolist())) == list(range(placement.count))
    # Slots of a row are 0, 1, ... from its start on, and never more than there are.
    for row in range(placement.count):
        here = np.flatnonzero(placement.rows == row)
        here = here[np.argsort(placement.starts[here])]
        assert placement.slots[here].tolist() == list(range(len(here)))
        assert len(here) <= slots


@PROPERTY
@given(lengths=LENGTHS, spare=st.integers(0, 64), slots=st.integers(1, 12))
def test_placement_is_first_fit_decreasing(lengths, spare, slots):
    row_length = int(lengths.max()) + spare
    placement = pack(lengths, row_length, slots)
    found = zip(
        placement.rows.tolist(), placement.starts.tolist(), placement.slots.tolist(), strict=True
    )
    assert list(found) == naive(lengths, row_length, slots)


def test_placement_of_nothing():
    placement = pack(np.zeros(0, np.int32), 16, 4)
    assert (len(placement.rows), placement.count) == (0, 0)


def test_placement_by_hand():
    placement = pack(np.array([5, 6, 3, 2, 8, 1]), 8, 4)
    assert placement.rows.tolist() == [2, 1, 2, 1, 0, 3]
    assert placement.starts.tolist() == [0, 0, 5, 6, 0, 0]
    assert placement.slots.tolist() == [0, 0, 1, 1, 0, 0]
    assert placement.count == 4
    # Row 0 has tokens left after two, but no slot.
    assert pack(np.array([14, 3, 3, 3, 2]), 20, 2).rows.tolist() == [0, 0, 1, 1, 2]
    assert placement.rows.dtype == placement.starts.dtype == placement.slots.dtype == np.int32


# --- plans --------------------------------------------------------------------------------------


def epoch_updates(examples: int, batch_size: int, epochs: int, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    updates = []
    for _ in range(epochs):
        order = generator.permutation(examples)
        updates += [order[i : i + batch_size] for i in range(0, examples, batch_size)]
    return updates


def place(lengths, plan: RowPlan, update) -> Placement:
    return pack(lengths[update], plan.row_length, plan.slots)


def check_plan(plan: RowPlan, lengths, batch_size: int, accumulate: int, row_multiple: int) -> None:
    assert plan.accumulate == accumulate
    assert 1 <= len(plan.row_counts) <= MAX_ROW_COUNTS == 4
    assert list(plan.row_counts) == sorted(set(plan.row_counts))
    assert all(rows > 0 and rows % row_multiple == 0 for rows in plan.row_counts)
    assert plan.row_length >= lengths.max()
    assert 1 <= plan.slots <= batch_size
    assert 0 < plan.efficiency <= 1


@PLANS
@given(
    lengths=LENGTHS,
    batch_size=st.integers(1, 40),
    accumulate=st.integers(1, 4),
    row_multiple=st.sampled_from([1, 2, 3, 8]),
    spare=st.sampled_from([None, 0, 1, 70]),
)
def test_every_update_of_a_whole_plan_fits(lengths, batch_size, accumulate, row_multiple, spare):
    batch_size = min(batch_size, len(lengths))
    updates = epoch_updates(len(lengths), batch_size, epochs=3)
    plan = make_plan(
        lengths,
        iter(updates),
        complete=True,
        packing="pack",
        batch_size=batch_size,
        accumulate=accumulate,
        row_multiple=row_multiple,
        row_length=0 if spare is None else int(lengths.max()) + spare,
    )
    check_plan(plan, lengths, batch_size, accumulate, row_multiple)
    if spare is not None:
        assert plan.row_length == lengths.max() + spare
    computed, needed = 0, []
    for update in updates:
        placement = place(lengths, plan, update)
        rows = rows_for(plan, placement)
        assert rows in plan.row_counts
        assert rows * accumulate >= placement.count
        smaller = [count for count in plan.row_counts if count < rows]
        assert all(count * accumulate < placement.count for count in smaller)
        needed.append(placement.count)
        computed += rows * accumulate * plan.row_length
    # Nothing is compiled that no update needs.
    step = accumulate * row_multiple
    assert plan.row_counts[-1] == -(-max(needed) // step) * row_multiple
    # The stated efficiency is the real one; both are quotients of the same integers.
    real = sum(int(lengths[update].sum()) for update in updates)
    assert plan.efficiency == real / computed


def adversarial_updates(lengths, batch_size: int, seed: int) -> list[np.ndarray]:
    """Updates that are hard to pack: the longest, long and short in turns, in every order."""
    order = np.argsort(lengths, kind="stable")
    longest = order[-batch_size:]
    turns = np.stack([longest, longest[::-1]], 1).ravel()
    _, first = np.unique(turns, return_index=True)
    generator = np.random.default_rng(seed)
    return [
        longest,
        longest[::-1],
        turns[np.sort(first)],
        order[:batch_size],
        *(generator.permutation(longest) for _ in range(4)),
        *epoch_updates(len(lengths), batch_size, 1, seed),
    ]


@PLANS
@given(
    lengths=LENGTHS,
    batch_size=st.integers(1, 40),
    accumulate=st.integers(1, 3),
    row_multiple=st.sampled_from([1, 2, 8]),
    tail=st.integers(0, 64),
    seed=st.integers(0, 1000),
)
def test_every_other_update_fits_a_sampled_plan(
    lengths, batch_size, accumulate, row_multiple, tail, seed
):
    batch_size = min(batch_size, len(lengths))
    # The sample is the easiest update that there is: the shortest sequences, few of them.
    easiest = np.argsort(lengths, kind="stable")[: max(1, batch_size // 2)]
    plan = make_plan(
        lengths,
        [easiest],
        complete=False,
        packing="pack",
        batch_size=batch_size,
        accumulate=accumulate,
        row_multiple=row_multiple,
        row_length=int(lengths.max()) + tail if tail else 0,
    )
    check_plan(plan, lengths, batch_size, accumulate, row_multiple)
    for update in adversarial_updates(lengths, batch_size, seed):
        placement = place(lengths, plan, update)
        assert rows_for(plan, placement) * accumulate >= placement.count


def test_worst_case_of_a_sampled_plan_is_reached():
    # Half a row and one token each: no two fit, so an update needs as many rows as sequences.
    lengths = np.array([2] * 100 + [33] * 10)
    plan = make_plan(
        lengths, [np.arange(10)], complete=False, packing="pack", batch_size=10, row_length=64
    )
    placement = place(lengths, plan, np.arange(100, 110))
    assert placement.count == 10
    assert rows_for(plan, placement) == plan.row_counts[-1] == 10


def test_row_counts_are_at_most_four_and_worth_it():
    # Updates of very different sizes would each like their own count.
    lengths = np.repeat(np.arange(2, 66), 40)
    updates = [np.arange(i, i + 128) for i in range(0, len(lengths) - 128, 64)]
    arguments = {"packing": "pack", "batch_size": 128, "row_length": 128}
    plan = make_plan(lengths, updates, complete=True, **arguments)
    needed = {place(lengths, plan, update).count for update in updates}
    assert len(needed) > 4
    assert len(plan.row_counts) == 4
    one_count = sum(int(lengths[u].sum()) for u in updates) / (len(updates) * max(needed) * 128)
    assert plan.efficiency > 1.3 * one_count
    # A sample leaves room for the bound among the four, where it is above what was seen.
    sampled = make_plan(lengths, updates[:-10], complete=False, **arguments)
    assert len(sampled.row_counts) == 4
    assert sampled.row_counts[-1] >= max(needed)
    # Updates that are all alike need one program.
    alike = make_plan(np.full(640, 16), updates[:5], complete=True, **arguments)
    assert alike.row_counts == (16,)
    assert alike.efficiency == 1.0


def sentence_lengths(count: int = 20_000) -> np.ndarray:
    """Lengths as of SST-2's phrases (mean 13.3, median 11, 95 % below 30, longest 66)."""
    random = np.random.default_rng(0)
    return np.clip(np.round(np.exp(random.normal(np.log(11), 0.61, count))), 3, 66).astype(int)


@pytest.mark.parametrize(
    ("batch_size", "row_multiple", "least"),
    [(512, 1, 0.97), (32, 1, 0.90), (2048, 8, 0.97)],
)
def test_packing_computes_little_padding_where_pad_computes_much(batch_size, row_multiple, least):
    lengths = sentence_lengths()
    updates = epoch_updates(len(lengths), batch_size, 1)[:-1]
    plan, pad = (
        make_plan(
            lengths,
            updates,
            complete=True,
            packing=packing,
            batch_size=batch_size,
            row_multiple=row_multiple,
            work=Work(key=1 / 4608, slot=1 / 12),
        )
        for packing in ("pack", "pad")
    )
    assert plan.efficiency >= least
    assert pad.efficiency < 0.25


@PROPERTY
@given(
    rows=st.lists(st.integers(1, 12), min_size=1, max_size=30),
    limit=st.integers(1, 4),
)
def test_row_counts_are_the_best_there_are(rows, limit):
    """Against all choices of row counts; a further count must save one percent."""
    chosen, computed = choose_row_counts(np.array(rows), limit)

    def computed_with(counts) -> int:
        return sum(min(count for count in counts if count >= row) for row in rows)

    values = sorted(set(rows))
    costs = {
        (*lower, values[-1]): computed_with((*lower, values[-1]))
        for size in range(min(limit, len(values)))
        for lower in itertools.combinations(values[:-1], size)
    }
    assert computed == computed_with(chosen) == costs[chosen]
    worth = {counts: cost * (1 + 0.01 * (len(counts) - 1)) for counts, cost in costs.items()}
    assert worth[chosen] == min(worth.values())


def test_planned_row_lengths():
    # A multiple of 8 that holds the longest, or a longer one that wastes less.
    for longest in (2, 9, 64, 100, 128, 300, 511):
        lengths = np.array([longest] * 4)
        plan = make_plan(lengths, [np.arange(4)], complete=True, packing="pack", batch_size=4)
        assert plan.row_length % 8 == 0
        assert longest <= plan.row_length <= max(512, 2 * longest + 16)
    # 3 x 40 fit into 120 with no waste; rows of 40 are as good.
    lengths = np.full(12, 40)
    plan = make_plan(lengths, [np.arange(12)], complete=True, packing="pack", batch_size=12)
    assert (plan.row_length, plan.row_counts, plan.efficiency) == (40, (12,), 1.0)
    # 40 and 24 fill 64.
    lengths = np.array([40, 24, 24, 40] * 8)
    plan = make_plan(lengths, [np.arange(32)], complete=True, packing="pack", batch_size=32)
    assert (plan.row_length, plan.row_counts, plan.efficiency) == (64, (16,), 1.0)


def test_what_rows_cost_decides_between_row_lengths():
    """33 and 31 fill a row of 64. In rows of 40 a fifth is padding, but attention costs less."""
    lengths = np.array([33, 31] * 8)

    def row_length(**work) -> int:
        plan = make_plan(
            lengths,
            [np.arange(16)],
            complete=True,
            packing="pack",
            batch_size=16,
            work=Work(**work),
        )
        return plan.row_length

    assert row_length() == 64
    assert row_length(key=1 / 40) == 40
    # Where attention computes tiles of 128 keys anyway, the long row costs no more.
    assert row_length(key=1 / 40, tile=128) == 64


def test_slots_cost_too():
    """One short sentence beside many long ones: slots that are hardly ever filled are not worth
    it where they cost as much as tokens."""
    lengths = np.array([4] * 60 + [30] * 40)
    updates = epoch_updates(100, 20, 4)

    def slots(cost: float) -> int:
        return make_plan(
            lengths,
            updates,
            complete=True,
            packing="pack",
            batch_size=20,
            row_length=64,
            work=Work(slot=cost),
        ).slots

    assert slots(4.0) < slots(0.0)


def test_plan_is_deterministic():
    lengths = np.random.default_rng(1).integers(3, 100, 500)
    updates = epoch_updates(500, 32, 2)
    plans = [
        make_plan(lengths, iter(updates), complete=True, packing="pack", batch_size=32)
        for _ in range(2)
    ]
    assert plans[0] == plans[1]


# --- pad ----------------------------------------------------------------------------------------


@PROPERTY
@given(
    lengths=LENGTHS,
    batch_size=st.integers(1, 40),
    accumulate=st.integers(1, 4),
    row_multiple=st.sampled_from([1, 2, 3, 8]),
)
def test_pad_plan_holds_one_sequence_a_row(lengths, batch_size, accumulate, row_multiple):
    batch_size = min(batch_size, len(lengths))
    plan = make_plan(
        lengths,
        [],
        complete=False,
        packing="pad",
        batch_size=batch_size,
        accumulate=accumulate,
        row_multiple=row_multiple,
    )
    check_plan(plan, lengths, batch_size, accumulate, row_multiple)
    assert plan.slots == 1
    assert plan.row_length - 8 < lengths.max() <= plan.row_length
    assert plan.row_length % 8 == 0
    (rows,) = plan.row_counts
    step = accumulate * row_multiple
    assert batch_size <= rows * accumulate < batch_size + step
    for update in epoch_updates(len(lengths), batch_size, 1):
        assert rows_for(plan, place(lengths, plan, update)) == rows


def test_pad_plan_efficiency():
    lengths = np.array([10, 20])
    plan = make_plan(
        lengths, [], complete=True, packing="pad", batch_size=2, row_multiple=4, row_length=32
    )
    assert plan.row_length == 32
    assert plan.efficiency == 30 / (4 * 32)


# --- refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", ["pack", "pad"])
def test_row_length_below_the_longest_sequence(packing):
    lengths = np.array([10, 65])
    with pytest.raises(ConfigError) as caught:
        make_plan(
            lengths, [np.arange(2)], complete=True, packing=packing, batch_size=2, row_length=64
        )
    assert caught.value.exit_code == 2
    assert "config.data.row_length=64: the longest sequence has 65 tokens" in str(caught.value)
    plan = make_plan(
        lengths, [np.arange(2)], complete=True, packing=packing, batch_size=2, row_length=65
    )
    assert plan.row_length == 65


# --- rows of several lengths -----------------------------------------------------------------


@PROPERTY
@given(
    lengths=st.lists(st.integers(1, 64), max_size=60),
    slots=st.tuples(st.integers(1, 4), st.integers(1, 6)),
)
def test_kinds_hold_every_sequence_once_and_apart(lengths, slots):
    kinds = [(16, slots[0]), (64, slots[1])]
    placed = pack_kinds(np.array(lengths, np.int32), kinds)
    found = sorted(index for indices, _ in placed for index in indices.tolist())
    assert found == list(range(len(lengths)))
    for (row_length, most), (indices, placement) in zip(kinds, placed, strict=True):
        assert set(placement.rows.tolist()) == set(range(placement.count))
        for row in range(placement.count):
            here = np.flatnonzero(placement.rows == row)
            here = here[np.argsort(placement.starts[here])]
            ends = 0
            for place, slot in zip(here, placement.slots[here], strict=True):
                assert placement.starts[place] == ends
                ends += lengths[indices[place]]
                assert slot < most
            assert ends <= row_length
            assert placement.slots[here].tolist() == list(range(len(here)))


def test_a_row_is_of_the_shortest_kind_that_holds_its_longest():
    placed = pack_kinds(np.array([9, 5, 4, 3, 2, 30]), [(10, 4), (40, 4)])
    (short, first), (long, second) = placed
    # 30 and what fills its row: 9; then 5, 4 | 3, 2.
    assert long.tolist() == [0, 5] and short.tolist() == [1, 2, 3, 4]
    assert second.starts.tolist() == [30, 0] and second.count == 1
    assert first.rows.tolist() == [0, 0, 1, 1] and first.count == 2
