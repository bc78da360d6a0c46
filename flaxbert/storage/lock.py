"""One writer at a time: a kernel lock on the workdir that dies with its process.

The surprising thing: the file stays after the run. Only the lock on it counts, so a killed process
leaves nothing to clean up and no stale pid can block a restart.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from flaxbert.errors import ConfigError
from flaxbert.storage.store import naming


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock file at `path` while the block runs.

    Raises:
      ConfigError: another process holds it; names its pid and host.
    """
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise ConfigError(
                f"--workdir: {path.parent} is in use by {holder}. Wait for it to end, or name "
                "another directory."
            ) from error
        with naming(path):
            file.seek(0)
            file.truncate()
            file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        yield
