"""The largest batch is one that was compiled and fits; the next one, nearly, does not."""

from __future__ import annotations

import types

import pytest

from flaxbert.planning.largest import by_proportion, largest_rows

FIXED, LIMIT = 1000, 16_000


def program(needed: int, limit: int = LIMIT):
    return types.SimpleNamespace(
        memory=types.SimpleNamespace(
            needed=needed, limit=limit, margin=limit - needed, parameters=600, moments=300, code=100
        )
    )


def found(memory, rows: int, multiple: int = 4, refuses=lambda rows: False):
    tried: list[int] = []

    def describe(rows):
        tried.append(rows)
        return None if refuses(rows) else program(memory(rows))

    best, best_program = largest_rows(describe, program(memory(rows)), rows, multiple)  # pyright: ignore
    assert best % multiple == 0
    assert not best or best_program.memory.needed == memory(best)  # of these rows, not of others
    return best, tried


def most(memory, multiple: int) -> int:
    return max(
        (r for r in range(multiple, 20_000, multiple) if memory(r) <= LIMIT),
        default=0,
    )


@pytest.mark.parametrize("multiple", [1, 4, 32])
@pytest.mark.parametrize(
    "memory",
    [
        lambda rows: FIXED + 10 * rows,
        lambda rows: FIXED + 3000 + 7 * rows,  # gradients do not grow
        lambda rows: FIXED + 500 + int(0.9 * rows**1.15),
        lambda rows: FIXED + 200 * (rows // 25),  # by steps
    ],
    ids=["proportional", "gradients", "bent", "steps"],
)
def test_the_largest_that_fits(memory, multiple):
    best, tried = found(memory, 64, multiple)
    right = most(memory, multiple)
    assert 0.95 * right - multiple <= best <= right
    assert len(tried) <= 5


def test_a_refusal_is_too_many():
    """A TPU's compiler refuses what is beyond all of the memory, and does not say by how much."""

    def memory(rows):
        return FIXED + (2 * rows if rows < 2000 else 20 * rows - 36_000)

    best, tried = found(memory, 64, 4, refuses=lambda rows: memory(rows) > 1.08 * LIMIT)
    assert tried[0] > most(memory, 4)  # the first guess is refused
    assert 0.7 * most(memory, 4) <= best <= most(memory, 4) and len(tried) <= 5


def test_nothing_fits():
    assert found(lambda rows: LIMIT + rows, 64)[0] == 0
    best, _ = found(lambda rows: FIXED + 300 * rows, 64)
    assert best == most(lambda rows: FIXED + 300 * rows, 4)


def test_by_proportion_is_too_few_rather_than_too_many():
    def memory(rows):
        return FIXED + 3000 + 7 * rows

    guess = by_proportion(program(memory(64)), 64, 4)  # pyright: ignore
    assert guess % 4 == 0 and 64 <= guess <= most(memory, 4)
    assert by_proportion(program(900, limit=0), 64, 4) == 0  # pyright: ignore
    assert by_proportion(program(1500, limit=800), 64, 4) == 0  # pyright: ignore
