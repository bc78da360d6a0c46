"""The queue of updates that the device may still be computing.

Note: at most one update waits while the device computes another. So the device has work while
Python prepares the next update, and a signal or a loss that is not finite is noticed at most two
updates late.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import jax

Sums = dict[str, jax.Array]
Counts = dict[str, int]

_QUEUED = 1


class InFlight:
    """Calls `read(update, sums on the host, counts)` for each finished update, in order."""

    def __init__(self, read: Callable[[int, dict[str, Any], Counts], None]) -> None:
        self.longest = 0.0  # seconds from sending an update to the device to its end
        self._read = read
        self._waiting: deque[tuple[int, Sums, Counts, float]] = deque()

    def add(self, update: int, sums: Sums, counts: Counts, sent: float) -> None:
        """Adds an update that was sent at `sent` (time.perf_counter)."""
        self._waiting.append((update, sums, counts, sent))

    def make_room(self) -> None:
        """Waits until another update may be sent."""
        self._read_until(_QUEUED)

    def settle(self) -> None:
        """Waits for all updates."""
        self._read_until(0)

    def _read_until(self, left: int) -> None:
        while len(self._waiting) > left:
            update, sums, counts, sent = self._waiting.popleft()
            values = jax.device_get(sums)
            self.longest = max(self.longest, time.perf_counter() - sent)
            self._read(update, values, counts)
