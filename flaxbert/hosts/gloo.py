"""The thread in which gloo moves what processes on CPUs send each other gives way to computing.

The surprising thing: it asks the kernel without a pause as long as something has come that nobody
here asks for yet. So the process that computes longest shares its cores with it, while all others
wait for that process.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

_TASKS = Path("/proc/self/task")
_LOWEST = 19  # as `nice` counts
_LOOKS, _PAUSE = 20, 0.01


def give_way() -> int | None:
    """Gives gloo's thread the lowest priority; returns its number.

    For Linux, after exchanges; where the thread is not found it does nothing.
    """
    waiting: set[int] = set()
    for _ in range(_LOOKS if _TASKS.is_dir() else 0):  # in one it may just be moving something
        waiting |= _waiting_for_sockets()
        time.sleep(_PAUSE)
    # gRPC's threads wait there too, and have had next to nothing to do.
    thread = max(waiting, key=_worked, default=None)
    if thread is not None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, _LOWEST)
    return thread


def _waiting_for_sockets() -> set[int]:
    """Returns the threads without a name of their own that wait in epoll, and are not Python's."""
    found: set[int] = set()
    name = _said(os.getpid(), "comm")
    for task in map(int, os.listdir(_TASKS)):
        waits = _said(task, "wchan")
        if ("epoll" in waits or "ep_poll" in waits) and _said(task, "comm") == name:
            found.add(task)
    return found - {thread.native_id for thread in threading.enumerate()}


def _worked(thread: int) -> int:
    """Returns the nanoseconds that a thread has computed; 0 where that is not known."""
    return int((_said(thread, "schedstat").split() or ["0"])[0])


def _said(thread: int, what: str) -> str:
    """Returns what Linux says of a thread; nothing of one that has ended, or that it hides."""
    with contextlib.suppress(OSError):
        return (_TASKS / str(thread) / what).read_text()
    return ""
