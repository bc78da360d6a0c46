"""Linear decay to 0."""

from __future__ import annotations

import optax


def make(rate: float, updates: int) -> optax.Schedule:
    return optax.schedules.linear_schedule(rate, 0.0, updates)
