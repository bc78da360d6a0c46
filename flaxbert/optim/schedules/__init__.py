"""Learning-rate schedules: a linear warm-up, then the schedule of `optim.schedule`, a file each.

A file's `make(rate, updates)` returns the optax schedule from the peak rate on, over the updates
after the warm-up.

Note: with a warm-up the rate of the very first update is 0, as in transformers'
`get_linear_schedule_with_warmup`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import optax

from flaxbert.config import Optim
from flaxbert.registry import member

Schedule = Callable[[Any], Any]  # step (from 0) -> learning rate


def warmup_steps(warmup: float, total: int) -> int:
    """Returns the number of warm-up updates: a fraction of all (rounded up), or a number."""
    return math.ceil(total * warmup) if warmup < 1 else round(warmup)


def make_schedule(optim: Optim, total: int) -> Schedule:
    """Returns step (from 0) -> learning rate, equal to transformers' schedules of that name.

    `total` is the number of updates of the run.
    """
    rate, warm = optim.learning_rate, warmup_steps(optim.warmup, total)
    after = member("optim/schedules", optim.schedule).make(rate, max(1, total - warm))
    if not warm:
        return after
    ramp = optax.schedules.linear_schedule(0.0, rate, warm)
    return optax.schedules.join_schedules([ramp, after], [warm])
