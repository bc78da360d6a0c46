"""Which sizes the attention kernels for TPUs are written for.

Apart from them, since planning rows needs no Pallas.
"""

from __future__ import annotations

LANES = 128
_LONGEST = 512  # of a row: its logits have to fit the chip's vector memory


def served_lengths(features: int, heads: int) -> tuple[int, ...]:
    """Returns the row lengths that have kernels; none where heads of that size have none."""
    lengths = range(LANES, _LONGEST + 1, LANES)
    return tuple(length for length in lengths if serves(length, features, heads))


def serves(length: int, features: int, heads: int) -> bool:
    """Whether rows of that length, and heads of that size, are what the kernels are written for."""
    size = features // heads
    whole = length % LANES == 0 and features % LANES == 0 and LANES % size == 0
    # Eight heads of 16 share lanes: at 512 their backward pass does not fit that memory.
    return whole and length <= _LONGEST and size >= (32 if length > 256 else 16)
