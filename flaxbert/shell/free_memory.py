"""Returns freed memory to the operating system."""

from __future__ import annotations

import ctypes
import os


def give_back_memory() -> None:
    """Returns freed memory to the operating system, where glibc is used.

    glibc keeps freed memory in the arenas of its threads: hundreds of MiB after a compilation, up
    to 1.5 times the state after a save.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
