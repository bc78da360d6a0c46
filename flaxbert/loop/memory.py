"""Whether an update fits the device, known before the first one from the compiled program.

Note: the limit is what the device has, not what is free on it now, so that the same command on the
same devices always computes in the same micro-batches, to the same bits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Any

import jax

MIB = 2**20

# The share that a program may take. Beside it stand other programs' buffers and fragments; on a
# host also Python, the data, and a checkpoint's copy of the state.
_SHARE_OF_HOST = 0.7
_SHARE_OF_ACCELERATOR = 0.92

_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclasses.dataclass(frozen=True)
class Fit:
    """Bytes of one device: what a program needs, and what it may take."""

    needed: int
    limit: int  # 0 = unknown: everything fits
    fixed: int = 0  # of what is needed: parameters and moments, in parts or whole

    @property
    def fits(self) -> bool:
        return not self.limit or self.needed <= self.limit

    def __str__(self) -> str:
        of = f" of {self.limit / MIB:.1f}" if self.limit else ""
        return f"{self.needed / MIB:.1f}{of} MiB"


def fit(compiled: Any, limit: int) -> Fit:
    """Compares a compiled program with what it may take of a device (0 = unknown)."""
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
    """Returns the bytes that programs may take on a device; 0 if it does not say."""
    stats = device.memory_stats() or {}
    if total := stats.get("bytes_limit", 0):
        return share_of(total)
    if device.platform != "cpu":
        return 0
    return int(_SHARE_OF_HOST * _host_memory() / jax.local_device_count())


def share_of(total: int) -> int:
    """Returns the bytes that programs may take of an accelerator's memory."""
    return int(_SHARE_OF_ACCELERATOR * total)


def smaller(accumulate: int, found: Fit | None, most: int) -> int:
    """Returns with how many micro-batches to try next, at most `most`; 0 = none can fit.

    All but parameters and moments shrinks in proportion. Where nothing is known but that the
    program does not fit (None), twice as many.
    """
    if found is None:
        return min(2 * accumulate, most) if accumulate < most else 0
    if found.fixed >= found.limit or accumulate >= most:
        return 0
    share = -(-accumulate * (found.needed - found.fixed) // (found.limit - found.fixed))
    return min(max(accumulate + 1, share), most)


def _host_memory() -> int:
    """Returns the bytes of this machine, or of the container that the process is in."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _CGROUPS:
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            total = min(total, int(Path(path).read_text()))
    return total
