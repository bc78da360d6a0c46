"""The held-out split: shares, what stays together, and what it depends on."""

from __future__ import annotations

import dataclasses
import random
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest

from flaxbert.data import holdout
from flaxbert.data.checks import Labels
from flaxbert.data.overlap import text_keys
from flaxbert.data.rows import Rows
from flaxbert.errors import DataError
from tests.data import made

REGRESSION = Labels("regression", ("x",))


def rows_of(targets: list[Any], texts: list[str] | None = None) -> Rows:
    return made.rows_of(texts or [f"text {i}" for i in range(len(targets))], targets)


def split_validation(rows: Rows, labels: Labels, fraction: float, seed: int) -> tuple[Rows, Rows]:
    targets = rows.targets or []
    return holdout.split_validation(rows, targets, labels.problem, fraction, seed)


def refusal(call, *args, **kwargs) -> str:
    with pytest.raises(DataError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


# --- the held-out split -------------------------------------------------------------------------


def imbalanced() -> tuple[Rows, Labels]:
    targets = ["a"] * 100 + ["b"] * 40 + ["c"] * 10 + ["d"] * 2 + ["e"]
    random.Random(3).shuffle(targets)
    texts = [f"text {i}" for i in range(len(targets))]
    return rows_of(targets, texts), Labels("single_label", ("a", "b", "c", "d", "e"))


def test_split_is_disjoint_and_whole_in_file_order():
    rows, labels = imbalanced()
    train, validation = split_validation(rows, labels, 0.2, seed=1)
    assert sorted(train.lines + validation.lines) == rows.lines
    assert list(train.lines) == sorted(train.lines)
    assert list(validation.lines) == sorted(validation.lines)
    for part in (train, validation):
        for line, text, target in zip(part.lines, part.texts, part.targets, strict=True):
            assert (text, target) == (rows.texts[line - 2], rows.targets[line - 2])


def test_split_takes_the_share_of_each_label_and_leaves_one_to_train():
    rows, labels = imbalanced()
    train, validation = split_validation(rows, labels, 0.2, seed=1)
    assert Counter(validation.targets) == {"a": 20, "b": 8, "c": 2, "d": 1}  # 31 = round(30.6)
    train, validation = split_validation(rows, labels, 0.9, seed=1)
    assert Counter(validation.targets) == {"a": 90, "b": 36, "c": 9, "d": 1}  # never all of d or e
    assert set(train.targets) == set(labels.names)


def test_split_depends_on_the_seed_alone():
    rows, labels = imbalanced()
    first, again, other = (split_validation(rows, labels, 0.2, s)[1].lines for s in (1, 1, 2))
    assert first == again
    assert first != other
    assert len(first) == len(other)


@pytest.mark.parametrize(
    ("targets", "labels"),
    [
        ([float(i) for i in range(40)], Labels("regression", ("x",))),
        ([["a"], ["a", "b"], [], ["b"]] * 10, Labels("multi_label", ("a", "b"))),
    ],
)
def test_split_of_numbers_and_lists(targets, labels):
    rows = rows_of(targets)
    train, validation = split_validation(rows, labels, 0.25, seed=0)
    assert (len(train), len(validation)) == (30, 10)
    assert sorted(train.lines + validation.lines) == rows.lines


def test_too_few_rows_to_split():
    rows = rows_of(["a", "b", "a", "b"])
    message = refusal(split_validation, rows, Labels("single_label", ("a", "b")), 0.1, 0)
    assert re.search(r"rows\.csv: 4 rows are too few .* 0\.1 .* larger share", message)


def test_split_of_many_rare_labels_has_its_size():
    """Rounded label by label, three rows each would never give one to validation."""
    names = tuple(f"label {i:02}" for i in range(50))
    rows = rows_of([name for name in names for _ in range(3)])
    train, validation = split_validation(rows, Labels("single_label", names), 0.1, seed=0)
    assert len(validation) == 15
    assert max(Counter(validation.targets).values()) == 1
    assert set(train.targets) == set(names)


def test_split_does_not_depend_on_the_order_of_the_rows():
    for targets, labels in (
        (["a", "b", "b", "c"] * 25, Labels("single_label", ("a", "b", "c"))),
        ([[], ["a"], ["a", "b"], ["c", "b"]] * 25, Labels("multi_label", ("a", "b", "c"))),
        ([i % 17 / 4 for i in range(100)], REGRESSION),
    ):
        texts = [f"text {i // 2}" for i in range(100)]  # pairs of equal ones
        rows = rows_of(targets, texts)
        order = random.Random(5).sample(range(100), 100)
        held = split_validation(rows, labels, 0.3, seed=4)[1]
        shuffled = split_validation(rows.take(order, ""), labels, 0.3, seed=4)[1]
        assert sorted(held.lines) == sorted(shuffled.lines)


def test_equal_texts_are_on_one_side():
    texts = [f"Text  {i % 40}" if i % 2 else f"ｔｅｘｔ {i % 40} " for i in range(160)]
    rows = rows_of(["ab"[i % 3 == 0] for i in range(160)], texts)
    train, validation = split_validation(rows, Labels("single_label", ("a", "b")), 0.25, seed=0)
    assert not set(text_keys(train)) & set(text_keys(validation))
    assert 32 <= len(validation) <= 40  # groups of four


def test_a_text_that_fills_the_file_cannot_be_split():
    rows = rows_of(["a", "b"] * 20, ["same"] * 40)
    assert "too few" in refusal(split_validation, rows, Labels("single_label", ("a", "b")), 0.2, 0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.8])
def test_labels_of_multi_label_keep_their_shares(seed, fraction):
    chance = random.Random(seed)
    names = tuple("abcdefgh")
    targets = [
        [name for place, name in enumerate(names) if chance.random() < 0.5 / (1 + place)]
        for _ in range(300)
    ]
    targets[0] = [*targets[0], "rare"]
    labels = Labels("multi_label", (*names, "rare"))
    train, validation = split_validation(rows_of(targets), labels, fraction, seed)
    counts = Counter(name for names in targets for name in names)
    held = Counter(name for names in validation.targets for name in names)
    kept = Counter(name for names in train.targets for name in names)
    assert set(kept) == set(labels.names)  # every label stays in training
    # Combinations of labels bind each other: each label is within two rows of its share.
    for name in names:
        assert abs(held[name] - counts[name] * fraction) <= 2, name
    assert abs(len(validation) - 300 * fraction) <= 2


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_ranges_of_numbers_keep_their_shares(fraction):
    chance = random.Random(1)
    values = [round(chance.expovariate(1), 3) for _ in range(200)]
    _, validation = split_validation(rows_of(values), REGRESSION, fraction, seed=2)
    assert len(validation) == 200 * fraction
    # Each tenth of the values (ten bins here) gives its share, rounded down or up.
    edges = np.quantile(values, np.arange(1, 10) / 10)
    held = np.bincount(np.searchsorted(edges, validation.targets, side="right"), minlength=10)
    assert abs(held - 20 * fraction).max() <= 1


def test_lines_left_out_before_are_counted_with_training():
    rows = dataclasses.replace(rows_of(["a", "b"] * 10), skipped={"why": [99]})
    train, validation = split_validation(rows, Labels("single_label", ("a", "b")), 0.2, seed=0)
    assert (train.skipped, validation.skipped) == ({"why": [99]}, {})
