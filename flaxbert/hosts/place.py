"""The place that this process has among those of its run, kept from a second one on this machine.

The surprising thing: JAX takes whoever comes with a process's number for that process, started
again, and ends the run on all machines. So a command typed a second time must not get that far. The
place is a name in the kernel (an abstract socket) that goes with its process, however it ends.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import socket
import struct
import sys
import time
from collections.abc import Iterator

from flaxbert.errors import ConfigError
from flaxbert.shell.console import say

# Seconds: one that has lost the others takes up to 22 to end, and may be started again before.
_PATIENCE = 30.0
_ASKING = 4096  # how many may ask whose it is: nobody answers them, the kernel does


@contextlib.contextmanager
def held(place: str) -> Iterator[None]:
    """Holds a place (found.Peers) while the block runs. For Linux; elsewhere it holds nothing.

    Waits a little for another process on this machine that has it.

    Raises:
      ConfigError: that one goes on; names its pid.
    """
    if sys.platform != "linux":
        yield
        return
    with socket.socket(socket.AF_UNIX) as mine:
        _take(mine, "\0flaxbert-" + hashlib.sha256(place.encode()).hexdigest())
        yield


def _take(mine: socket.socket, name: str) -> None:
    begun = time.monotonic()
    told = False
    while True:
        try:
            mine.bind(name)
            mine.listen(_ASKING)
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return  # a sandbox that has no such names: then as it would be without
            who = f"{_holder(name)} on this machine is this process of the run already"
            if time.monotonic() - begun >= _PATIENCE:
                raise ConfigError(
                    f"{who}: the command was started a second time. The first was left as it is: "
                    "wait for it to end, or stop it and run the command again."
                ) from error
        if not told:
            say(f"{who}: waiting up to {_PATIENCE:.0f} s for its end")
            told = True
        time.sleep(0.2)


def _holder(name: str) -> str:
    """Returns who has the name, as far as the kernel tells."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as asking:
        asking.setblocking(False)
        asking.connect(name)
        size = struct.calcsize("3i")  # pid, user, group: pid 0 is one in another container
        pid, _, _ = struct.unpack(
            "3i", asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        )
        if pid:
            return f"pid {pid}"
    return "another process"
