"""Cosine decay to 0 (Loshchilov and Hutter 2017, without restarts)."""

from __future__ import annotations

import optax


def make(rate: float, updates: int) -> optax.Schedule:
    return optax.schedules.cosine_decay_schedule(rate, updates)
