"""The largest batch that a device can compute at once: found by compiling, not by proportion.

Memory grows with rows, but not only: gradients stay, and the compiler computes again what it cannot
keep. The surprising thing: so each guess is compiled, and the answer is a program that fits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from flaxbert.planning.estimate import Program

_COMPILED = 5  # programs at most
_CLOSE = 0.03  # of the rows: nearer is not worth another compilation


@dataclasses.dataclass(frozen=True)
class Largest:
    """What all devices compute at once, at most."""

    rows: int  # 0 = not even the planned ones fit
    sequences: int  # that stand in so many rows, as in the planned update
    program: Program | None  # of these rows; None = by proportion, nothing was compiled


def by_proportion(program: Program, rows: int, multiple: int) -> int:
    """Returns about how many rows fit if all but parameters and moments grows with them.

    That is too few, since gradients do not grow; 0 = the limit is unknown.
    """
    held = program.memory
    fixed = held.parameters + held.moments + held.code
    free = held.limit - fixed
    if not held.limit or free <= 0:
        return 0
    return int(rows * free / (held.needed - fixed)) // multiple * multiple


def largest_rows(
    describe: Callable[[int], Program | None], program: Program, rows: int, multiple: int
) -> tuple[int, Program]:
    """Returns the most rows whose program fits, nearly, and that program; (0, first) if none does.

    Args:
      describe: compiles an update of so many rows; None where the compiler refuses.
      program: of `rows`, compiled already; its limit is known.
      multiple: of which rows are one.
    """
    best, best_program = (rows, program) if program.memory.margin >= 0 else (0, program)
    too_many = 0 if best else rows  # 0 = not found yet
    known = [(rows, program.memory.needed)]
    guess = by_proportion(program, rows, multiple)
    for _ in range(_COMPILED):
        guess = max(guess, best + multiple)
        if too_many:
            guess = min(guess, too_many - multiple)
        if guess <= best:
            break
        found = describe(guess)
        if found is not None:
            known.append((guess, found.memory.needed))
        if found is not None and found.memory.margin >= 0:
            best, best_program = guess, found
        else:
            too_many = guess
        following = _next(known, best, too_many, program.memory.limit, multiple)
        if abs(following - best) <= max(_CLOSE * best, multiple - 1):
            break
        guess = following
    return best, best_program


def _next(known: list[tuple[int, int]], best: int, too_many: int, limit: int, multiple: int) -> int:
    """Returns where a line through the last two programs meets the limit, kept between the bounds.

    In the middle where only one is known, or where the line leads nowhere.
    """
    guess = 0
    if len(known) > 1:
        (one, less), (two, more) = sorted(known[-2:])
        if more > less:
            guess = int(one + (limit - less) * (two - one) / (more - less))
    if too_many and not best < guess < too_many:
        guess = (best + too_many) // 2
    return guess // multiple * multiple
