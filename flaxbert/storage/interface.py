"""Everything a run does with files: one interface, implemented by local disk and object store.

They differ in:

|                      | disk                                  | object store                     |
|----------------------|---------------------------------------|----------------------------------|
| a file is whole      | written beside, synced, renamed       | one put is atomic                |
| a checkpoint commits | `<step>.tmp` is renamed to `<step>`   | its manifest is written          |
| model/ is switched   | two renames                           | copies; its weights go last      |
| a file grows         | appended and synced                   | a local file, put whole          |
| one writer           | a kernel lock that dies with it       | a lease that must be renewed     |

Paths are pathlib's on disk and etils.epath's for URLs; both are PurePath, which can be joined and
printed but not opened: all reads and writes go through the store.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import Any, Protocol, TextIO, TypeVar

MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"  # of model/; checkpoints record its digest
TEMPORARY = ".tmp"

_Path = TypeVar("_Path", bound=PurePath)


class DamagedError(Exception):
    """Why a directory does not match its manifest; callers decide what that means."""


@contextlib.contextmanager
def naming(path: PurePath) -> Iterator[None]:
    """Adds the file's name to an OSError of the block: errors of write and sync have none."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


class Spool(Protocol):
    """Files that grow: written in the local `directory`, and made durable by `push`."""

    directory: Path

    def push(self) -> None:
        """Returns once everything in the files so far is durable."""

    def close(self) -> None:
        """Pushes, and removes temporary copies."""


class Store(Protocol):
    """Everything a run does with files."""

    # Files

    def is_file(self, path: PurePath) -> bool: ...

    def read(self, path: PurePath) -> bytes:
        """Raises OSError if there is no such file."""
        ...

    def write(self, path: PurePath, data: bytes) -> None:
        """Writes a whole file: a reader sees the old or the new one, also after a crash."""

    def replacing(self, path: PurePath) -> contextlib.AbstractContextManager[TextIO]:
        """Opens a text file that replaces `path` after the block, unless the block raises."""
        ...

    def sha256(self, path: PurePath) -> str: ...

    def spool(self, path: PurePath) -> Spool:
        """Returns a spool for the file `path` and for new files beside it."""
        ...

    # Directories

    def make_directory(self, path: PurePath) -> None: ...

    def is_directory(self, path: PurePath) -> bool: ...

    def names(self, path: PurePath) -> list[str]:
        """Returns the names of files and directories directly below, sorted."""
        ...

    def sizes(self, path: PurePath) -> dict[str, int]:
        """Returns relative name -> bytes of every file below.

        Raises DamagedError for a pipe, a device, or a link to a folder.
        """
        ...

    def remove(self, path: PurePath) -> None:
        """Removes a directory or file, if there is one."""

    def local_copy(self, path: PurePath) -> Path:
        """Returns a local directory with the files of `path`, for readers of many of them."""
        ...

    # Checkpoints

    def for_orbax(self, path: PurePath) -> Any:
        """Returns the path as Orbax wants it."""
        ...

    def telling(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Wraps a save: turns errors of the disk into ModelFileError, and those of an object store
        into StorageError, each with one readable line."""
        ...

    def is_committed(self, path: PurePath) -> bool:
        """Whether there is a committed checkpoint at `path`; it may be damaged."""
        ...

    def begin(self, path: PurePath) -> PurePath:
        """Returns the empty directory to write the checkpoint `path` in."""
        ...

    def settle(self, path: PurePath) -> None:
        """Makes all files below durable, also those written by others."""

    def commit(self, begun: PurePath, path: PurePath) -> None:
        """Makes what `begin` returned the checkpoint `path`; its manifest was written last."""

    def discard(self, path: PurePath) -> None:
        """Removes a checkpoint; an interruption leaves temporary files, never half of it."""

    def sweep(self, path: PurePath) -> None:
        """Removes the checkpoints below `path` that never committed."""

    def set_aside(self, path: PurePath, target: PurePath) -> None:
        """Moves a damaged checkpoint to `target`, replacing what is there."""

    # The folder of the best model

    def stage(self, target: PurePath) -> Path:
        """Returns the empty local directory to write a new `target` in."""
        ...

    def replace_directory(self, new: Path, target: PurePath, *, committed: bool) -> None:
        """Replaces the directory `target` by `new`, which `stage` named.

        If a committed checkpoint refers to the old one (`committed`), it is kept beside the new
        one: should the process die before the next checkpoint, `choose_directory` restores it.
        """

    def choose_directory(self, target: PurePath, is_right: Callable[[PurePath], bool]) -> bool:
        """Makes the target the directory that `is_right` accepts: itself or the one kept beside it.

        Returns False if it accepts neither; both then stay.
        """
        ...

    def forget_previous(self, target: PurePath) -> None:
        """Removes what `replace_directory` kept: the target's checkpoint has been committed."""

    # One writer

    def locked(self, path: PurePath) -> contextlib.AbstractContextManager[None]:
        """Holds the lock `path` while the block runs.

        Raises ConfigError if another process holds it; names its pid and host.
        """
        ...


def is_step(name: str) -> bool:
    """Whether a name under checkpoints/ is that of a checkpoint."""
    return name.isdecimal() and str(int(name)) == name


def beside(target: _Path, name: str) -> _Path:
    """Returns the temporary directory `name` for the directory `target`, in the same folder."""
    return target.with_name(f"{target.name}.{name}{TEMPORARY}")
