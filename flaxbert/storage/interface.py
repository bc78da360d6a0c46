"""What a run does with files: one interface, which a local disk and an object store implement.

What differs, and nothing else does:

|                      | disk                                  | object store                     |
|----------------------|---------------------------------------|----------------------------------|
| a file is whole      | written beside, synced, renamed       | one put is atomic                |
| a checkpoint commits | `<step>.tmp` is renamed to `<step>`   | its manifest is there            |
| model/ is switched   | two renames                           | copies; its weights go last      |
| a file grows         | appended and synced                   | a local file, put whole          |
| one writer           | a kernel lock that dies with it       | a lease, renewed, that runs out  |

Paths are pathlib's on disk and etils.epath's for URLs; both are PurePath, which can be joined and
printed but not opened: whoever wants bytes has to ask the store.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import Any, TextIO

MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"  # of model/: its digest is what a checkpoint knows the folder by
TEMPORARY = ".tmp"


class DamagedError(Exception):
    """Why a directory does not verify; callers decide what that means."""


@contextlib.contextmanager
def naming(path: PurePath) -> Iterator[None]:
    """Gives an error of the block the file's name: one of a write or a sync knows only a number."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


class Spool(abc.ABC):
    """Files that grow: they are written in the local `directory`, and kept by `push`."""

    directory: Path

    @abc.abstractmethod
    def push(self) -> None:
        """Returns once everything in the files so far is durable."""

    @abc.abstractmethod
    def close(self) -> None:
        """Pushes, and removes what was only local."""


class Store(abc.ABC):
    """All that a run does with files."""

    # Files

    @abc.abstractmethod
    def is_file(self, path: PurePath) -> bool: ...

    @abc.abstractmethod
    def read(self, path: PurePath) -> bytes:
        """Raises OSError if there is no such file."""

    @abc.abstractmethod
    def write(self, path: PurePath, data: bytes) -> None:
        """Writes a whole file: a reader sees the old or the new one, also after a crash."""

    @abc.abstractmethod
    def replacing(self, path: PurePath) -> contextlib.AbstractContextManager[TextIO]:
        """Opens a text file that stands at `path`, whole, after the block; after an error not."""

    @abc.abstractmethod
    def sha256(self, path: PurePath) -> str: ...

    @abc.abstractmethod
    def spool(self, path: PurePath) -> Spool:
        """Returns a spool for the file `path` and for new files beside it."""

    # Directories

    @abc.abstractmethod
    def make_directory(self, path: PurePath) -> None: ...

    @abc.abstractmethod
    def is_directory(self, path: PurePath) -> bool: ...

    @abc.abstractmethod
    def names(self, path: PurePath) -> list[str]:
        """Returns the names of files and directories directly below, sorted."""

    @abc.abstractmethod
    def sizes(self, path: PurePath) -> dict[str, int]:
        """Returns relative name -> bytes of every file below, looking without following links.

        Raises:
          DamagedError: a link, or anything else that is no plain file.
        """

    def refuse_links(self, path: PurePath) -> None:  # noqa: B027 - an object store has no links
        """Raises ConfigError for a workdir of which an entry leads out of it."""

    @abc.abstractmethod
    def remove(self, path: PurePath) -> None:
        """Removes a directory or file, if there is one."""

    @abc.abstractmethod
    def local_copy(self, path: PurePath) -> Path:
        """Returns a local directory with the files of `path`, for those who read many of them."""

    # Checkpoints

    @abc.abstractmethod
    def for_orbax(self, path: PurePath) -> Any:
        """Returns the path as Orbax wants it."""

    @abc.abstractmethod
    def telling(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Around a save: what the disk says, or the clients of a store, becomes our one line.

        Raises:
          ModelFileError: the disk failed.
          StorageError: an object store that refuses or does not answer.
        """

    @abc.abstractmethod
    def is_committed(self, path: PurePath) -> bool:
        """Whether a checkpoint stands at `path`, damaged perhaps."""

    @abc.abstractmethod
    def begin(self, path: PurePath) -> PurePath:
        """Returns the empty directory to write the checkpoint `path` in."""

    @abc.abstractmethod
    def settle(self, path: PurePath) -> None:
        """Makes all files below durable, whoever wrote them."""

    @abc.abstractmethod
    def commit(self, begun: PurePath, path: PurePath) -> None:
        """Makes what `begin` returned the checkpoint `path`; its manifest was written last."""

    @abc.abstractmethod
    def discard(self, path: PurePath) -> None:
        """Removes a checkpoint; cut off at any point, it leaves litter, never half of one."""

    @abc.abstractmethod
    def sweep(self, path: PurePath) -> None:
        """Removes the checkpoints below `path` that never committed."""

    @abc.abstractmethod
    def set_aside(self, path: PurePath, target: PurePath) -> None:
        """Moves a damaged checkpoint, in place of one that stands there."""

    # The folder of the best model

    @abc.abstractmethod
    def stage(self, target: PurePath) -> Path:
        """Returns the empty local directory to write a new `target` in."""

    @abc.abstractmethod
    def replace_directory(self, new: Path, target: PurePath, *, committed: bool) -> None:
        """Switches a whole directory, for the local one that `stage` named.

        A directory that a committed checkpoint speaks of (`committed`) is kept beside the new one
        until the next such switch: should the process die before the next checkpoint,
        `choose_directory` takes it back. One that no checkpoint speaks of is dropped.
        """

    @abc.abstractmethod
    def choose_directory(self, target: PurePath, is_right: Callable[[PurePath], bool]) -> bool:
        """Makes the directory that `is_right` accepts the target: it or the one kept beside it.

        Returns False if it accepts neither; both then stay.
        """

    @abc.abstractmethod
    def forget_previous(self, target: PurePath) -> None:
        """Drops the one that `replace_directory` kept: the target's checkpoint has committed."""

    # One writer

    @abc.abstractmethod
    def locked(self, path: PurePath) -> contextlib.AbstractContextManager[None]:
        """Holds the lock `path` while the block runs.

        Raises:
          ConfigError: another process holds it; names its pid and host.
        """


def is_step(name: str) -> bool:
    """Whether a name under checkpoints/ is that of a checkpoint."""
    return name.isdecimal() and str(int(name)) == name
