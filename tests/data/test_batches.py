"""Batches are a pure function of (data, seed, step), laid out as the table of batch keys says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxbert.data.batches import (
    Examples,
    Share,
    count_batch,
    count_update,
    empty_batch,
    inference_batches,
    plan_inference,
    plan_training,
    steps_per_epoch,
    total_steps,
    train_batch,
    update_indices,
)
from flaxbert.data.pack import RowPlan, Work, pack
from flaxbert.data.tokenize import Tokens

# The same examples in every run, so that a failure is a failure everywhere.
PROPERTY = settings(max_examples=100, deadline=None, derandomize=True)


def examples_of(lengths, problem: str = "single_label", seed: int = 0) -> Examples:
    """Examples whose every token differs from every other, so that a mix-up shows."""
    lengths = np.asarray(lengths, np.int64)
    generator = np.random.default_rng(seed)
    total, count = int(lengths.sum()), len(lengths)
    labels = {
        "single_label": generator.integers(1, 5, count).astype(np.int32),
        "regression": generator.normal(size=count).astype(np.float32),
        "multi_label": generator.integers(0, 2, (count, 3)).astype(np.float32),
    }[problem]
    tokens = Tokens(
        np.arange(1, total + 1, dtype=np.int32),
        generator.integers(0, 2, total).astype(np.int32),
        np.concatenate([[0], np.cumsum(lengths)]),
        0,
        0.0,
    )
    return Examples(tokens, labels)


def some_lengths(count: int, seed: int = 0, longest: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).integers(2, longest + 1, count)


# --- updates ------------------------------------------------------------------------------------


def test_steps_per_epoch_keeps_the_short_update():
    assert [steps_per_epoch(n, 4) for n in (1, 4, 5, 8, 9)] == [1, 1, 2, 2, 3]


def test_total_steps():
    assert total_steps(100, 32, epochs=3.0, steps=0) == 12
    assert total_steps(100, 32, epochs=0.5, steps=0) == 2
    assert total_steps(100, 32, epochs=0.01, steps=0) == 1
    assert total_steps(100, 32, epochs=3.0, steps=7) == 7  # steps win


@PROPERTY
@given(
    examples=st.integers(1, 130),
    batch_size=st.integers(1, 150),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 5),
)
def test_an_epoch_has_each_example_once(examples, batch_size, seed, epoch):
    per_epoch = steps_per_epoch(examples, batch_size)
    updates = [
        update_indices(examples, batch_size, seed, epoch * per_epoch + i) for i in range(per_epoch)
    ]
    assert sorted(np.concatenate(updates).tolist()) == list(range(examples))
    assert all(len(update) == batch_size for update in updates[:-1])
    assert len(updates[-1]) == examples - (per_epoch - 1) * batch_size


def test_updates_are_a_pure_function_of_seed_and_step():
    def order(seed: int, epoch: int) -> list[int]:
        steps = range(epoch * 4, epoch * 4 + 4)
        return np.concatenate([update_indices(100, 32, seed, step) for step in steps]).tolist()

    first = order(7, 2)
    for seed in range(8):  # other permutations in between, more than are remembered
        order(seed, 0)
    assert order(7, 2) == first
    # Every seed and every epoch has an order of its own, and none is the file's.
    orders = [tuple(order(seed, epoch)) for seed in range(4) for epoch in range(4)]
    assert len({tuple(range(100)), *orders}) == 17
    # Seed and epoch are two numbers, not one sum.
    assert order(1, 0) != order(0, 1)
    assert order(2**32 - 1, 0) != order(0, 0)


def test_updates_cannot_be_changed_by_a_caller():
    indices = update_indices(10, 4, 0, 0)
    with pytest.raises(ValueError, match="read-only"):
        indices[0] = 0


def test_the_order_is_the_same_in_every_version():
    # A run that is resumed after an upgrade must go on with the same permutation. If NumPy changes
    # its generator, this fails, and the order has to be computed in another way.
    updates = [update_indices(10, 4, 0, step).tolist() for step in range(4)]
    assert updates == [[0, 7, 8, 6], [9, 5, 1, 3], [2, 4], [9, 4, 2, 1]]


# --- layout -------------------------------------------------------------------------------------


def naive_batch(examples: Examples, plan: RowPlan, indices, rows: int) -> dict[str, np.ndarray]:
    """The table of batch keys, one token at a time."""
    tokens, shape = examples.tokens, (plan.accumulate, rows)
    batch = {
        name: np.zeros((*shape, plan.row_length), np.int32)
        for name in ("input_ids", "token_type_ids", "position_ids", "sequence_ids")
    }
    batch["cls_positions"] = np.zeros((*shape, plan.slots), np.int32)
    batch["example_ids"] = np.full((*shape, plan.slots), -1, np.int32)
    batch["weights"] = np.zeros((*shape, plan.slots), np.float32)
    kind = examples.labels
    batch["labels"] = np.zeros((*shape, plan.slots, *kind.shape[1:]), kind.dtype)
    held: list[list[int]] = []  # lengths in each row
    numbered = list(enumerate(indices, start=1))
    if plan.slots > 1:  # packed longest first; padded rows stay in order
        numbered.sort(key=lambda pair: -tokens.lengths[pair[1]])
    for number, index in numbered:
        begin, end = tokens.offsets[index], tokens.offsets[index + 1]
        row = 0
        while row < len(held) and (
            sum(held[row]) + end - begin > plan.row_length or len(held[row]) == plan.slots
        ):
            row += 1
        if row == len(held):
            held.append([])
        start, slot, at = sum(held[row]), len(held[row]), divmod(row, rows)
        held[row].append(int(end - begin))
        for position, token in enumerate(range(begin, end)):
            place = (*at, start + position)
            batch["input_ids"][place] = tokens.input_ids[token]
            batch["token_type_ids"][place] = tokens.token_type_ids[token]
            batch["position_ids"][place] = position
            batch["sequence_ids"][place] = number
        batch["cls_positions"][*at, slot] = start
        batch["example_ids"][*at, slot] = index
        batch["labels"][*at, slot] = kind[index]
        batch["weights"][*at, slot] = 1.0
    return batch


@pytest.mark.parametrize("problem", ["single_label", "regression", "multi_label"])
@pytest.mark.parametrize("packing", ["pack", "pad"])
@pytest.mark.parametrize(("accumulate", "row_multiple"), [(1, 1), (3, 1), (2, 4)])
def test_layout_equals_the_naive_one(problem, packing, accumulate, row_multiple):
    examples = examples_of(some_lengths(50), problem)
    sizes = {"batch_size": 16, "seed": 5}
    plan = plan_training(
        examples,
        **sizes,
        steps=8,
        packing=packing,
        accumulate=accumulate,
        row_multiple=row_multiple,
    )
    assert plan.slots == 1 if packing == "pad" else plan.slots > 1
    for step in range(8):
        batch = train_batch(examples, plan, **sizes, step=step)
        rows = batch["input_ids"].shape[1]
        assert rows in plan.row_counts
        assert rows % row_multiple == 0
        expected = naive_batch(examples, plan, update_indices(50, 16, 5, step), rows)
        assert batch.keys() == expected.keys()
        for name, array in batch.items():
            assert array.dtype == expected[name].dtype, name
            np.testing.assert_array_equal(array, expected[name], name)


@PROPERTY
@given(
    count=st.integers(1, 60),
    batch_size=st.integers(1, 70),
    accumulate=st.integers(1, 3),
    row_multiple=st.sampled_from([1, 2, 8]),
    packing=st.sampled_from(["pack", "pad"]),
    seed=st.integers(0, 100),
)
def test_what_every_batch_keeps(count, batch_size, accumulate, row_multiple, packing, seed):
    examples = examples_of(some_lengths(count, seed))
    steps = 2 * steps_per_epoch(count, batch_size)
    plan = plan_training(
        examples,
        batch_size=batch_size,
        seed=seed,
        steps=steps,
        packing=packing,
        accumulate=accumulate,
        row_multiple=row_multiple,
    )
    seen = []
    for step in range(steps):
        batch = train_batch(examples, plan, batch_size=batch_size, seed=seed, step=step)
        flat = {name: array.reshape(-1, *array.shape[2:]) for name, array in batch.items()}
        indices = update_indices(count, batch_size, seed, step).tolist()
        filled = flat["example_ids"] >= 0
        np.testing.assert_array_equal(flat["weights"], filled.astype(np.float32))
        assert sorted(flat["example_ids"][filled].tolist()) == sorted(indices)
        seen += indices
        for row, slot in np.argwhere(filled):
            example, start = flat["example_ids"][row, slot], flat["cls_positions"][row, slot]
            begin, end = examples.tokens.offsets[example : example + 2]
            here = np.s_[row, start : start + end - begin]
            np.testing.assert_array_equal(flat["input_ids"][here], range(begin + 1, end + 1))
            np.testing.assert_array_equal(flat["position_ids"][here], range(end - begin))
            # Numbered from 1 by the place in the update, wherever the packing put it.
            assert set(flat["sequence_ids"][here].tolist()) == {indices.index(example) + 1}
            assert flat["labels"][row, slot] == examples.labels[example]
        padding = flat["sequence_ids"] == 0
        for name in ("input_ids", "token_type_ids", "position_ids"):
            assert not flat[name][padding].any()
        counts = count_batch(batch)
        assert counts == {
            "examples": len(indices),
            "real_tokens": int(examples.tokens.lengths[indices].sum()),
            "computed_tokens": padding.size,
            "attended_keys": int(np.square(examples.tokens.lengths[indices]).sum()),
        }
        assert (~padding).sum() == counts["real_tokens"]
    assert sorted(seen) == sorted(2 * [*range(count)])


def test_sequence_numbers_do_not_depend_on_the_layout():
    # Dropout masks hang on them: packed, padded and accumulated runs must agree.
    examples = examples_of(some_lengths(40))
    sizes = {"batch_size": 12, "seed": 3}
    found = []
    for packing, accumulate in (("pack", 1), ("pack", 4), ("pad", 1), ("pad", 3)):
        plan = plan_training(examples, **sizes, steps=8, packing=packing, accumulate=accumulate)
        batch = train_batch(examples, plan, **sizes, step=5)
        starts = np.take_along_axis(batch["sequence_ids"], batch["cls_positions"], axis=-1)
        filled = batch["example_ids"] >= 0
        pairs = zip(batch["example_ids"][filled].tolist(), starts[filled].tolist(), strict=True)
        found.append(sorted(pairs))
    assert len(found[0]) == 12
    assert all(numbers == found[0] for numbers in found)


def test_one_batch_for_few_examples():
    examples = examples_of([5, 9, 3])
    plan = plan_training(examples, batch_size=32, seed=0, steps=4, packing="pack")
    batch = train_batch(examples, plan, batch_size=32, seed=0, step=3)
    assert count_batch(batch)["examples"] == 3
    assert plan.slots <= 3


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("packing", ["pack", "pad"])
def test_shares_of_the_rows_are_the_rows(packing, accumulate):
    examples = examples_of(some_lengths(90))
    sizes = {"batch_size": 24, "seed": 0}
    plan = plan_training(
        examples, **sizes, steps=4, packing=packing, accumulate=accumulate, row_multiple=4
    )
    shares = [Share((0,), 4), Share((1, 3), 4), Share((2,), 4)]
    for step in range(4):
        whole = train_batch(examples, plan, **sizes, step=step)
        rows = whole["input_ids"].shape[1]
        for share in shares:
            part = train_batch(examples, plan, **sizes, step=step, share=share)
            mine = [r for b in share.blocks for r in range(b * rows // 4, (b + 1) * rows // 4)]
            assert part.keys() == whole.keys()
            for name, array in part.items():
                assert array.dtype == whole[name].dtype
                np.testing.assert_array_equal(array, whole[name][:, mine], err_msg=name)
        computed = whole["sequence_ids"].size
        counted = count_update(examples, **sizes, step=step, computed=computed)
        assert counted == count_batch(whole)


def test_shares_of_inference_know_all_example_ids():
    examples = examples_of(some_lengths(70))
    plans = plan_inference(examples.tokens.lengths, row_multiple=2, rows=4)
    whole = list(inference_batches(examples, plans))
    for block in (0, 1):
        parts = list(inference_batches(examples, plans, Share((block,), 2)))
        assert len(parts) == len(whole) > 1
        for part, batch in zip(parts, whole, strict=True):
            half = len(batch["input_ids"]) // 2
            mine = slice(block * half, (block + 1) * half)
            of_all = {"example_ids", "output_ids"}
            for name in of_all:
                np.testing.assert_array_equal(part[name], batch[name])
            for name in batch.keys() - of_all:
                np.testing.assert_array_equal(part[name], batch[name][mine], err_msg=name)


def test_large_runs_are_planned_from_a_sample(monkeypatch):
    import flaxbert.data.batches as batches

    monkeypatch.setattr(batches, "_PLANNED_SEQUENCES", 20)
    examples = examples_of(some_lengths(120))
    sizes = {"batch_size": 10, "seed": 0}
    plan = plan_training(examples, **sizes, steps=60, packing="pack", row_length=48)
    assert len(plan.row_counts) <= 4
    for step in range(60):  # only two were looked at
        assert count_batch(train_batch(examples, plan, **sizes, step=step))["examples"] == 10


@pytest.mark.parametrize("problem", ["single_label", "regression", "multi_label"])
def test_empty_batch_has_the_shapes_to_compile_for(problem):
    examples = examples_of(some_lengths(30), problem)
    sizes = {"batch_size": 8, "seed": 0}
    plan = plan_training(examples, **sizes, steps=4, packing="pack", accumulate=2)
    batch = train_batch(examples, plan, **sizes, step=0)
    empty = empty_batch(examples, plan, batch["input_ids"].shape[1])
    assert {k: (v.shape, v.dtype) for k, v in empty.items()} == {
        k: (v.shape, v.dtype) for k, v in batch.items()
    }
    assert (empty["example_ids"] == -1).all()
    assert not any(empty[name].any() for name in empty if name != "example_ids")


def test_digest_covers_tokens_and_labels():
    examples = examples_of([4, 5, 6])
    tokens, labels = examples.tokens, examples.labels
    assert examples.digest == Examples(tokens, labels.copy()).digest
    others = [
        Examples(tokens, labels[::-1].copy()),
        Examples(dataclasses.replace(tokens, input_ids=tokens.input_ids[::-1]), labels),
        Examples(dataclasses.replace(tokens, offsets=np.array([0, 5, 9, 15])), labels),
    ]
    assert len({examples.digest, *(other.digest for other in others)}) == 4


# --- inference ----------------------------------------------------------------------------------


@PROPERTY
@given(
    count=st.integers(0, 130),
    longest=st.integers(2, 400),
    row_multiple=st.sampled_from([1, 2, 3, 8]),
    packing=st.sampled_from(["pack", "pad"]),
    rows=st.integers(0, 9),
    tokens=st.sampled_from([64, 256, 2048]),
)
def test_inference_sees_every_example_once_in_few_shapes(
    count, longest, row_multiple, packing, rows, tokens
):
    examples = examples_of(some_lengths(count, seed=count, longest=longest))
    lengths = examples.tokens.lengths
    plans = plan_inference(
        lengths, row_multiple=row_multiple, packing=packing, rows=rows, tokens=tokens
    )
    by_length = {plan.row_length: plan for plan in plans}
    assert max(by_length) >= lengths.max(initial=0)
    for plan in plans:
        assert all(number % row_multiple == 0 for number in plan.row_counts)
        assert plan.row_counts[0] == row_multiple
        assert plan.slots == 1 or packing == "pack"
    seen: list[int] = []
    for batch in inference_batches(examples, plans):
        plan = by_length[batch["input_ids"].shape[1]]
        assert batch["input_ids"].shape[0] in plan.row_counts
        assert not rows or batch["input_ids"].shape[0] < rows + row_multiple
        assert batch["labels"].shape == batch["example_ids"].shape == (
            batch["input_ids"].shape[0], plan.slots,
        )  # fmt: skip
        for row, slot in np.argwhere(batch["weights"] == 1):
            example, start = batch["example_ids"][row, slot], batch["cls_positions"][row, slot]
            here = np.s_[row, start : start + lengths[example]]
            first = examples.tokens.offsets[example] + 1
            wanted = range(first, first + lengths[example])
            np.testing.assert_array_equal(batch["input_ids"][here], wanted)
            np.testing.assert_array_equal(batch["position_ids"][here], range(lengths[example]))
            assert len(set(batch["sequence_ids"][here].tolist())) == 1
            assert batch["labels"][row, slot] == examples.labels[example]
            seen.append(int(example))
        numbers = batch["sequence_ids"][batch["sequence_ids"] > 0]
        assert len(np.unique(numbers)) == (batch["weights"] == 1).sum()
        assert (batch["example_ids"] >= 0).sum() == (batch["weights"] == 1).sum() > 0
    assert sorted(seen) == list(range(count))


def test_inference_packs():
    examples = examples_of(np.full(64, 16))
    packed, padded = (
        plan_inference(examples.tokens.lengths, row_multiple=1, rows=8, packing=packing)
        for packing in ("pack", "pad")
    )
    assert [(plan.row_length, plan.row_counts) for plan in packed] == [(128, (1, 8))]
    assert [(plan.row_length, plan.row_counts) for plan in padded] == [(16, (1, 8))]
    assert len(list(inference_batches(examples, packed))) == 1
    assert len(list(inference_batches(examples, padded))) == 8


def test_rows_of_known_lengths_are_those_that_cost_the_least():
    lengths = some_lengths(2000, seed=3, longest=60)
    costs = {"free": Work(), "dear": Work(key=4 / 2304, slot=0.1), "tiles": Work(1e-3, 0.1, 128)}
    chosen = {}
    for name, work in costs.items():
        (plan,) = plan_inference(lengths, row_multiple=1, work=work)
        chosen[name] = plan.row_length
        packed = {
            length: pack(lengths, length, plan.slots).count * work.of_row(length, plan.slots)
            for length in (64, 128)
        }
        assert lengths.max() <= plan.row_length <= 128
        assert pack(lengths, plan.row_length, plan.slots).count * work.of_row(
            plan.row_length, plan.slots
        ) <= 1.001 * min(packed.values())
    assert chosen["dear"] < 128
    assert [plan.row_length for plan in plan_inference(lengths, row_multiple=1)] == [128]
    long = np.append(lengths, 300)
    with_work = plan_inference(long, row_multiple=1, work=costs["dear"])
    assert [plan.row_length for plan in with_work] == [128, 256, 512]
    (padded,) = plan_inference(lengths, row_multiple=1, packing="pad", work=costs["dear"])
    assert padded.row_length == -(-lengths.max() // 8) * 8


def test_inference_puts_short_sequences_beside_long_ones():
    """Mixed lengths: long rows only for long sequences, and their rest is filled."""
    lengths = np.array([500, 300, *[20] * 60])
    examples = examples_of(lengths)
    plans = plan_inference(lengths, row_multiple=1)
    assert [plan.row_length for plan in plans] == [128, 256, 512]
    batches = list(inference_batches(examples, plans))
    long = next(batch for batch in batches if batch["input_ids"].shape[1] == 512)
    used = (long["sequence_ids"] > 0).sum(axis=1)
    assert used[used > 0].tolist() == [500, 500]  # 300 + 10 x 20
    assert all(batch["input_ids"].shape[1] != 256 for batch in batches)
    filled = [batch["sequence_ids"][batch["sequence_ids"].max(axis=1) > 0] for batch in batches]
    assert lengths.sum() / sum(rows.size for rows in filled) > 0.9


def test_a_few_texts_compute_one_row():
    lengths = np.array([7, 9])
    plans = plan_inference(lengths, row_multiple=2)
    (batch,) = inference_batches(examples_of(lengths), plans)
    assert batch["input_ids"].shape == (2, 128)


def test_slots_are_powers_of_two_so_that_few_programs_serve_all():
    for mean, slots in ((3, 64), (8, 32), (16, 16), (30, 8), (100, 8)):
        (plan,) = plan_inference(np.full(1000, mean), row_multiple=1)
        assert plan.slots == slots
