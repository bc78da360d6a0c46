"""The parts of a layer as one kind of device computes them best, in half precision.

Note: nothing depends on them. bert.py and attention.py hold the plain code, which every other
device runs and whose numbers these have, to rounding. `loop.mesh.kernels_for` says which devices
have them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float


class Projection(NamedTuple):
    """Parameters of a linear layer."""

    kernel: Float[Array, "I O"]
    bias: Float[Array, " O"]


@dataclasses.dataclass(frozen=True)
class Kernels:
    """Each returns the dtype of its first argument, in which products are read.

    attention(x [B, L, D], (query, key, value), sequence_ids, position_ids [B, L],
      bits [B, L] or None, rate, heads) -> context [B, L, D].
    residual(x [B, L, I], skip [B, L, D], projection, scale, shift [D], bits [B, L] or None, rate,
      eps) -> LayerNorm(dropout(x W + b) + skip).
    dense(x [B, L, I], projection, activation or None) -> activation(x W + b) [B, L, O].

    Bits are those of dropout.token_bits; None drops nothing.
    """

    attention: Callable[..., Array]
    residual: Callable[..., Array]
    dense: Callable[..., Array]
