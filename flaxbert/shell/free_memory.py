"""Giving memory back to the system."""

from __future__ import annotations

import ctypes
import os


def give_back_memory() -> None:
    """Returns to the system what was freed.

    glibc keeps freed memory in the arenas of the threads that wrote it: hundreds of MiB that a
    compiler used, up to 1.5 times the state after a save. Elsewhere (macOS, musl) there is nothing
    to call.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
