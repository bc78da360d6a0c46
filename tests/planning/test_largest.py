"""The largest batch is one that was compiled and fits; the next one, nearly, does not."""

from __future__ import annotations

import pytest

from flaxbert.planning.estimate import Memory
from flaxbert.planning.largest import by_proportion, largest_rows

FIXED, LIMIT = 1000, 16_000


def memory(needed: int, limit: int = LIMIT) -> Memory:
    return Memory(needed, limit, parameters=600, moments=300, temporaries=needed - 1000, code=100)


def found(needed, rows: int, multiple: int = 4, refuses=lambda rows: False):
    tried: list[int] = []

    def memory_of(rows):
        tried.append(rows)
        return None if refuses(rows) else memory(needed(rows))

    best, too_many, held = largest_rows(memory_of, rows, multiple)
    assert best % multiple == too_many % multiple == 0
    assert len(tried) <= 6 and len(set(tried)) == len(tried)
    if best:
        assert held is not None and held.needed == needed(best) <= LIMIT  # of these rows
    assert not too_many or refuses(too_many) or needed(too_many) > LIMIT
    return best, too_many, tried


def most(needed, multiple: int) -> int:
    fitting = [rows for rows in range(multiple, 20_000, multiple) if needed(rows) <= LIMIT]
    return max(fitting, default=0)


@pytest.mark.parametrize("multiple", [1, 4, 32])
@pytest.mark.parametrize(
    "needed",
    [
        lambda rows: FIXED + 10 * rows,
        lambda rows: FIXED + 3000 + 7 * rows,  # gradients do not grow
        lambda rows: FIXED + 500 + int(0.9 * rows**1.15),
        lambda rows: FIXED + 200 * (rows // 25),  # by steps
        lambda rows: FIXED + 3 + max(0, 12 * rows - 2000),  # small arrays lie on the chip
    ],
    ids=["proportional", "gradients", "bent", "steps", "on-chip"],
)
def test_the_largest_that_fits(needed, multiple):
    best, too_many, _ = found(needed, 64, multiple)
    right = most(needed, multiple)
    assert 0.9 * right - multiple <= best <= right
    assert not too_many or too_many > right


def test_few_rows_say_nothing_of_many():
    """A TPU keeps what 8 rows need on the chip: next to nothing is left in its memory."""

    def needed(rows):
        return FIXED + 1 + max(0, 40 * (rows - 16))

    assert by_proportion(memory(needed(8)), 8, 8) == 0
    best, too_many, tried = found(needed, 8, 8)
    assert tried[1] == 64 and 0.9 * most(needed, 8) <= best <= most(needed, 8) < too_many


def test_a_refusal_is_too_many():
    """A TPU's compiler refuses what is beyond all of the memory, and does not say by how much."""

    def needed(rows):
        return FIXED + (2 * rows if rows < 2000 else 20 * rows - 36_000)

    best, too_many, _ = found(needed, 512, 4, refuses=lambda rows: needed(rows) > 1.08 * LIMIT)
    assert 0.7 * most(needed, 4) <= best <= most(needed, 4) < too_many


def test_what_does_not_grow_at_first_is_no_end():
    def needed(rows):
        return FIXED + max(8000, 5 * rows)  # a workspace

    best, too_many, _ = found(needed, 64)
    assert 0.7 * most(needed, 4) <= best <= most(needed, 4) < too_many


def test_it_says_what_it_did_not_find():
    best, too_many, tried = found(lambda rows: FIXED, 8, 8)  # all fits
    assert best == max(tried) and too_many == 0
    best, too_many, _ = found(lambda rows: LIMIT + rows, 64)
    assert best == 0 and too_many == 4
    needed = lambda rows: FIXED + 300 * rows  # noqa: E731
    best, too_many, _ = found(needed, 64)
    assert best == most(needed, 4) and too_many == best + 4


def test_by_proportion_is_too_few_rather_than_too_many():
    def needed(rows):
        return FIXED + 3000 + 7 * rows

    guess = by_proportion(memory(needed(64)), 64, 4)
    assert guess % 4 == 0 and 64 <= guess <= most(needed, 4)
    assert by_proportion(memory(1500, limit=800), 64, 4) == 0
    assert by_proportion(memory(900, limit=0), 64, 4) == 0
