"""The most rows that fit a device at once: found by compiling, not by proportion.

Memory is not proportional to rows: gradients do not grow, small arrays of a TPU are on the chip and
not in its memory, and its compiler rematerialises. Note: so each guess is compiled, and the answer
is a program that fits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from flaxbert.planning.estimate import Memory

_COMPILED = 6  # programs at most
_CLOSE = 0.03  # of the rows: closer is not worth another compilation
_GROWTH = 8  # times the rows that fit, at most: extrapolation from few rows is unreliable
# Extrapolation is used if what grows with the rows takes at least this share of the limit.
_TELLING = 0.05


@dataclasses.dataclass(frozen=True)
class Largest:
    """The most that all devices compute at once, without micro-batches."""

    rows: int  # 0 = not even the planned ones fit
    sequences: int  # in so many rows, as in the planned update
    too_many: int  # rows that do not fit; 0 = none were tried
    memory: Memory | None  # of `rows`; None = by proportion, nothing was compiled


def by_proportion(memory: Memory, rows: int, multiple: int) -> int:
    """Returns about how many rows fit if everything but parameters and moments grows with them.

    That is rather too few, since gradients do not grow. 0 if too little grows to extrapolate, or
    the limit is unknown.
    """
    fixed = memory.parameters + memory.moments + memory.code
    grows = memory.needed - fixed
    if grows < _TELLING * memory.limit or memory.limit <= fixed:
        return 0
    return int(rows * (memory.limit - fixed) / grows) // multiple * multiple


def largest_rows(
    memory_of: Callable[[int], Memory | None], rows: int, multiple: int
) -> tuple[int, int, Memory | None]:
    """Returns nearly the most rows that fit, a number that does not, and the memory of the former.

    Both may be 0: nothing that was tried fits, or all of it does. `memory_of` compiles an update of
    so many rows, a multiple of `multiple`; it returns None if the compiler refuses. `rows` is where
    to begin.
    """
    best = too_many = 0
    known: dict[int, Memory] = {}
    guess = rows
    for _ in range(_COMPILED):
        memory = memory_of(guess)
        if memory is not None:
            known[guess] = memory
        if memory is not None and memory.margin >= 0:
            best = guess
        else:
            too_many = guess
        guess = _next(known, best, too_many, multiple)
        if guess in (best, too_many) or (too_many and guess - best <= _CLOSE * best):
            break
    return best, too_many, known.get(best)


def _next(known: dict[int, Memory], best: int, too_many: int, multiple: int) -> int:
    """Returns the next rows to try: where a line through the two programs closest to the limit
    reaches it.

    If that is not between what fits and what does not, their middle. While everything fits, at most
    `_GROWTH` times the rows, and exactly that if memory did not grow.
    """
    sizes = sorted(known, key=lambda rows: abs(known[rows].margin))[:2]
    guess = 0
    if len(sizes) == 2:
        less, more = sorted(sizes)
        slope = (known[more].needed - known[less].needed) / (more - less)
        guess = int(less + known[less].margin / slope) if slope > 0 else 0
    elif sizes:
        guess = by_proportion(known[sizes[0]], sizes[0], multiple)
    guess = guess // multiple * multiple
    if not too_many:
        return min(guess, _GROWTH * best) if guess > best else _GROWTH * best
    if not best < guess < too_many:
        guess = (best + too_many) // 2 // multiple * multiple
    return guess
