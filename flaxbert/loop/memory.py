"""Compares the memory of a compiled program with the device's, before the first update.

Note: the limit is the device's total, not its free memory, so that the same command on the same
devices always chooses the same micro-batches, and gives the same bits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Any

import jax

MIB = 2**20

# The share that a program may use. The rest is for other programs' buffers and fragmentation; on a
# host also for Python, the data, and a checkpoint's copy of the state.
_SHARE_OF_HOST = 0.7
_SHARE_OF_ACCELERATOR = 0.92

_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclasses.dataclass(frozen=True)
class Fit:
    """Bytes on one device that a program needs, and may use."""

    needed: int
    limit: int  # 0 = unknown: everything fits
    fixed: int = 0  # the part of `needed` for parameters and moments, sharded or not

    @property
    def fits(self) -> bool:
        return not self.limit or self.needed <= self.limit

    def __str__(self) -> str:
        of = f" of {self.limit / MIB:.1f}" if self.limit else ""
        return f"{self.needed / MIB:.1f}{of} MiB"


def fit(compiled: Any, limit: int) -> Fit:
    """Compares a compiled program with a limit in bytes (0 = unknown)."""
    memory = compiled.memory_analysis()
    if memory is None:  # a backend without it
        return Fit(0, 0)
    return Fit(needed_by(compiled), limit, memory.argument_size_in_bytes)


def needed_by(compiled: Any) -> int:
    """Returns the bytes on each device while a compiled program runs, arguments included."""
    memory = compiled.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes  # the state is in place
    code = memory.generated_code_size_in_bytes
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes + results + code


def limit_of(device: Any) -> int:
    """Returns the bytes that programs may use on a device; 0 = unknown."""
    stats = device.memory_stats() or {}
    if total := stats.get("bytes_limit", 0):
        return share_of(total)
    if device.platform != "cpu":
        return 0
    return int(_SHARE_OF_HOST * _host_memory() / jax.local_device_count())


def share_of(total: int) -> int:
    """Returns the bytes that programs may use of an accelerator's memory."""
    return int(_SHARE_OF_ACCELERATOR * total)


def smaller(accumulate: int, found: Fit | None, most: int) -> int:
    """Returns the number of micro-batches to try next, at most `most`; 0 = none can fit.

    All memory but that of parameters and moments shrinks in proportion. If only the compiler's
    refusal is known (None), the number is doubled.
    """
    if found is None:
        return min(2 * accumulate, most) if accumulate < most else 0
    if found.fixed >= found.limit or accumulate >= most:
        return 0
    share = -(-accumulate * (found.needed - found.fixed) // (found.limit - found.fixed))
    return min(max(accumulate + 1, share), most)


def _host_memory() -> int:
    """Returns the memory of this machine, or of the container that the process is in."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _CGROUPS:
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            total = min(total, int(Path(path).read_text()))
    return total
