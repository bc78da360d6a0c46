"""A constant learning rate."""

from __future__ import annotations

import optax


def make(rate: float, updates: int) -> optax.Schedule:
    return optax.schedules.constant_schedule(rate)
