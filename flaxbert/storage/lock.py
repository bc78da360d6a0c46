"""One writer at a time: a kernel lock on the workdir that ends with its process.

Note: the file stays after the run. Only the lock on it counts, so a killed process leaves nothing
to clean up, and no stale pid can block a restart.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from flaxbert.errors import ConfigError
from flaxbert.storage.interface import naming

_ON = " on "
_LONGEST = 400  # characters to read of the file, which others may have written

# Errors of file systems without flock: NFS, Lustre and FUSE differ.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock file at `path` while the block runs.

    Raises ConfigError if another process holds it (names its pid and host), or the file system has
    no locks.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise ConfigError(f"--workdir: {path} is no plain file, as the lock is. Remove it.")
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    file = os.fdopen(handle, "r+", encoding="utf-8", errors="replace")
    try:
        try:
            with naming(path):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            who = file.read(_LONGEST).strip() or "another process"
            raise ConfigError(
                f"--workdir: {path.parent} is in use by {who}. Wait for it to end, or name "
                "another directory."
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            raise ConfigError(
                f"--workdir: {path} cannot be locked ({os.strerror(error.errno)}): this file "
                "system has no locks, so two runs could write there at once. Name a directory on "
                "another one, or mount this one with locks."
            ) from error
        with naming(path):
            file.seek(0)
            file.truncate()
            file.write(f"pid {os.getpid()}{_ON}{socket.gethostname()}\n")
            file.flush()
            os.fsync(file.fileno())  # NFS would show it to other machines only after half a minute
        yield
    finally:
        # The content is flushed, and the kernel releases the lock whatever the disk answers: an
        # error here must not hide how the block ended.
        with contextlib.suppress(OSError):
            file.close()


def holder(path: Path) -> str | None:
    """Returns who holds the lock, None if nobody does; never takes it, not even for a moment.

    Raises OSError if that is not known without taking it: outside Linux, or if another machine was
    the last to hold it, since a kernel knows only the locks of its own machine.
    """
    if not path.exists():
        return None
    found = path.stat()
    with path.open(encoding="utf-8", errors="replace") as file:
        last = file.read(_LONGEST).strip()
    # "1: FLOCK  ADVISORY  WRITE 4711 08:01:131 0 EOF": the device is major:minor in hexadecimal.
    for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
        fields = line.split()
        if len(fields) < 6 or fields[1] != "FLOCK" or "->" in fields:
            continue
        major, minor, inode = fields[5].split(":")
        device = os.makedev(int(major, 16), int(minor, 16))
        if int(inode) == found.st_ino and device == found.st_dev:
            return last or f"pid {fields[4]}"
    if last.partition(_ON)[2] not in ("", socket.gethostname()):
        raise OSError(f"{last} was the last to lock it, and only that machine knows of its locks")
    return None
