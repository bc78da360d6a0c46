"""What the GPU's kernels share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import pallas as pl


def interpreted() -> bool:
    """Without a GPU the kernels run as plain JAX: for tests."""
    return jax.default_backend() != "gpu"


def padded(size: int) -> int:
    return pl.next_power_of_2(size)


def loop(count: int, body: Callable[[Any, Any], Any], first: Any) -> Any:
    return body(0, first) if count == 1 else jax.lax.fori_loop(0, count, body, first)
