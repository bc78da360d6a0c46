"""The most rows that fit a device at once: found by compiling, not by proportion.

Memory does not grow with the rows alone: gradients stay, small arrays of a TPU lie on the chip and
not in its memory, and its compiler computes again what it cannot keep. Note: so each guess is
compiled, and the answer is a program that fits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from flaxbert.planning.estimate import Memory

_COMPILED = 6  # programs at most
_CLOSE = 0.03  # of the rows: nearer is not worth another compilation
_GROWTH = 8  # times the rows that fit, at most: a line drawn from few of them says little
# What grows with the rows tells something about more of them from this share of the limit on.
_TELLING = 0.05


@dataclasses.dataclass(frozen=True)
class Largest:
    """What all devices compute at once, without micro-batches, at most."""

    rows: int  # 0 = not even the planned ones fit
    sequences: int  # that stand in so many rows, as in the planned update
    too_many: int  # rows that do not fit; 0 = none were tried
    memory: Memory | None  # of `rows`; None = by proportion, nothing was compiled


def by_proportion(memory: Memory, rows: int, multiple: int) -> int:
    """Returns about how many rows fit if all but parameters and moments grows with them.

    That is rather too few, since gradients do not grow. 0 where so little grows that it says
    nothing, or the limit is unknown.
    """
    fixed = memory.parameters + memory.moments + memory.code
    grows = memory.needed - fixed
    if grows < _TELLING * memory.limit or memory.limit <= fixed:
        return 0
    return int(rows * (memory.limit - fixed) / grows) // multiple * multiple


def largest_rows(
    memory_of: Callable[[int], Memory | None], rows: int, multiple: int
) -> tuple[int, int, Memory | None]:
    """Returns the most rows that fit, nearly, some that do not, and the memory of the former.

    Both may be 0: none that was tried fits, or all of them do.

    Args:
      memory_of: compiles an update of so many rows; None where the compiler refuses.
      rows: where to begin.
      multiple: of which rows are one.
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
    """Returns where a line through the two programs next to the limit meets it.

    Between what fits and what does not: in the middle where the line leads elsewhere. Nothing does
    not fit yet: beyond what does, by no more than `_GROWTH`, and by that where memory did not grow.
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
