"""Truncation and windows: which tokens of a text over max_length are used.

Note: transformers' own truncation is not used. For a pair it also builds every combination of the
pieces cut off, so that two texts of 30,000 words take more than 12 GB.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

Mask = Bool[np.ndarray, " n"]

# (mask of the template's tokens, such as [CLS]; max_length) -> the tokens to keep, once for each
# sequence that the text becomes.
Cut = Callable[[Mask, int], list[Any]]  # masks or indices

LONG = ("truncate", "head_tail", "window")


def cut_for(long: str, stride: int) -> Cut:
    """Returns the function of "truncate", "head_tail" or "window"; `stride` is for windows."""
    if long == "window":
        return lambda special, max_length: windows(special, max_length, stride)
    return {"truncate": cut_end, "head_tail": cut_middle}[long]


def cut_end(special: Mask, max_length: int) -> list[Mask]:
    """Keeps the beginning, as truncation="longest_first" of transformers: of a pair the longer
    text is cut first, down to half of the room."""
    keep = special.copy()
    for part, count in _shares(special, max_length):
        keep[part[:count]] = True
    return [keep]


def cut_middle(special: Mask, max_length: int) -> list[Mask]:
    """Keeps the first quarter and the last three of what `cut_end` would keep of each text.

    128 + 382 of 510 tokens, after Sun et al. 2019, "How to fine-tune BERT for text classification".
    """
    keep = special.copy()
    for part, count in _shares(special, max_length):
        head = -(-count // 4) if count < len(part) else count
        keep[part[:head]] = True
        keep[part[len(part) - (count - head) :]] = True
    return [keep]


def windows(special: Mask, max_length: int, stride: int) -> list[Int[np.ndarray, " n"]]:
    """Returns the token indices of windows over the whole text that share `stride` tokens, at most
    half a window. (Masks would take quadratic memory.)

    The last window ends with the text and may be short. Of a pair the longer text (the first if
    they are equal) is read in windows; the other is in each of them, cut to half of the room.
    """
    first, second = _texts(special)
    long, other = (first, second) if len(first) >= len(second) else (second, first)
    room = max_length - int(special.sum())
    other = other[: room // 2]
    size = room - len(other)
    step = size - min(stride, size // 2)
    fixed = np.concatenate([np.flatnonzero(special), other])
    found = []
    for start in range(0, len(long), step):
        found.append(np.sort(np.concatenate([fixed, long[start : start + size]])))
        if start + size >= len(long):
            break
    return found


def _texts(special: Mask) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]:
    """Returns the positions of the first text's tokens and of the second's, if there is one."""
    inside = np.flatnonzero(~special)
    gap = np.flatnonzero(np.diff(inside) > 1)  # the separator between two texts
    first = int(gap[0]) + 1 if len(gap) else len(inside)
    return inside[:first], inside[first:]


def _shares(special: Mask, max_length: int) -> list[tuple[Int[np.ndarray, " a"], int]]:
    """Returns the positions of each text's tokens and how many of them fit."""
    texts = _texts(special)
    first, second = map(len, texts)
    room = max_length - int(special.sum())
    short, long = min(first, second), max(first, second)
    long = max(short, room - short)
    if short + long > room:
        short, long = room // 2, room - room // 2
    counts = (long, short) if first > second else (short, long)
    return [(part, min(count, len(part))) for part, count in zip(texts, counts, strict=True)]
