"""A run's files on a local disk: renames, syncs and a kernel lock.

Links are the user's choice: a workdir, its checkpoints/ and each checkpoint may be links to other
disks. But an unpacked archive may hold links too. So no file is ever written through a link: one
that is in the place of a file, or of model/, is replaced, and what it points to stays as it is.

Note: a rename makes a new file visible, but only syncing its directory makes the name survive a
power cut. So every commit here is data, sync, rename, sync of the directory.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import TextIO

from flaxbert.errors import ModelFileError
from flaxbert.shell import signals
from flaxbert.storage.interface import TEMPORARY, DamagedError, Spool, beside, naming
from flaxbert.storage.lock import locked


class LocalDisk:
    """A local disk; implements interface.Store."""

    def is_file(self, path: PurePath) -> bool:
        return Path(path).is_file()

    def read(self, path: PurePath) -> bytes:
        return Path(path).read_bytes()

    def write(self, path: PurePath, data: bytes) -> None:
        """Writes beside its name, syncs, then renames over it."""
        path = Path(path)
        temporary = path.with_name(path.name + TEMPORARY)
        temporary.unlink(missing_ok=True)
        with naming(temporary), temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_directory(path.parent)

    @contextlib.contextmanager
    def replacing(self, path: PurePath) -> Iterator[TextIO]:
        path = Path(path)
        temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")

        def undo() -> None:
            temporary.unlink(missing_ok=True)

        undo()
        try:
            with (
                signals.undoing(undo),
                naming(temporary),
                temporary.open("x", encoding="utf-8", newline="") as file,
            ):
                yield file
                file.flush()
                os.fsync(file.fileno())
                temporary.replace(path)
        except BaseException:
            undo()
            raise

    def sha256(self, path: PurePath) -> str:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def spool(self, path: PurePath) -> Spool:
        return _InPlace(Path(path))

    def make_directory(self, path: PurePath) -> None:
        path = Path(path)
        if path.is_symlink() and not path.exists():
            said = "The folder that a link names does not exist"
            raise FileNotFoundError(errno.ENOENT, said, str(path))
        path.mkdir(parents=True, exist_ok=True)

    def is_directory(self, path: PurePath) -> bool:
        return Path(path).is_dir()

    def names(self, path: PurePath) -> list[str]:
        return sorted(entry.name for entry in Path(path).iterdir())

    def sizes(self, path: PurePath) -> dict[str, int]:
        return {name: file.stat().st_size for name, file in files_in(Path(path)).items()}

    def remove(self, path: PurePath) -> None:
        path = Path(path)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def _drop(self, path: Path) -> None:
        """Removes it as far as possible."""
        with contextlib.suppress(OSError):
            self.remove(path)

    def local_copy(self, path: PurePath) -> Path:
        return Path(path)

    def for_orbax(self, path: PurePath) -> Path:
        return Path(path).absolute()

    @contextlib.contextmanager
    def telling(self, what: str) -> Iterator[None]:
        """Note: TensorStore raises a long ValueError with the error number inside the text."""
        try:
            yield
        except Exception as error:
            found = re.search(r"\[os_error_code='(\d+)'\]", str(error))
            number = int(found[1]) if found else getattr(error, "errno", None)
            if number is None:
                raise
            name = getattr(error, "filename", None)
            raise ModelFileError(
                f"{what}: {os.strerror(number)}{f' ({name})' if name else ''}. Checkpoints before "
                "it are kept; fix the disk, then run the same command to resume from the newest."
            ) from error

    def is_committed(self, path: PurePath) -> bool:
        return Path(path).exists()

    def begin(self, path: PurePath) -> Path:
        begun = Path(path).with_name(path.name + TEMPORARY)
        self.remove(begun)
        begun.mkdir(parents=True)
        return begun

    def settle(self, path: PurePath) -> None:
        files = files_in(Path(path)).values()
        for file in files:
            with naming(file), file.open("rb") as opened:
                os.fsync(opened.fileno())
        for folder in {file.parent for file in files}:
            sync_directory(folder)

    def commit(self, begun: PurePath, path: PurePath) -> None:
        Path(begun).rename(path)
        sync_directory(Path(path).parent)

    def discard(self, path: PurePath) -> None:
        """Renames it first: what an interruption leaves is then removed like a failed save."""
        left = Path(path).with_name(path.name + TEMPORARY)
        Path(path).rename(left)
        self.remove(left)

    def sweep(self, path: PurePath) -> None:
        for left in Path(path).glob(f"*{TEMPORARY}"):
            self.remove(left)

    def set_aside(self, path: PurePath, target: PurePath) -> None:
        self.remove(target)
        Path(path).rename(target)

    def stage(self, target: PurePath) -> Path:
        staged = beside(Path(target), "new")
        self.remove(staged)
        return staged

    def replace_directory(self, new: Path, target: PurePath, *, committed: bool) -> None:
        target = Path(target)
        repair_directory(target)
        previous, old = beside(target, "previous"), beside(target, "old")
        kept = previous if committed else old
        self._drop(kept)
        if target.exists() or target.is_symlink():
            target.rename(kept)
        new.rename(target)
        sync_directory(target.parent)
        self._drop(old)

    def choose_directory(self, target: PurePath, is_right: Callable[[PurePath], bool]) -> bool:
        target = Path(target)
        repair_directory(target)
        previous = beside(target, "previous")
        if target.is_dir() and is_right(target):
            return True
        if previous.is_dir() and is_right(previous):
            self._drop(target)
            previous.rename(target)
            sync_directory(target.parent)
            return True
        return False

    def forget_previous(self, target: PurePath) -> None:
        previous = beside(Path(target), "previous")
        self._drop(previous)
        self.remove(previous)  # raises if it is still there

    def locked(self, path: PurePath) -> contextlib.AbstractContextManager[None]:
        return locked(Path(path))


class _InPlace:
    """Files that grow in place."""

    def __init__(self, path: Path) -> None:
        self.directory = path.parent
        self._path = path

    def push(self) -> None:
        with naming(self._path), self._path.open("rb") as file:
            os.fsync(file.fileno())

    def close(self) -> None:
        pass


def sync_directory(path: Path) -> None:
    """Makes renames in a directory durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(handle)
    finally:
        os.close(handle)


def files_in(directory: Path) -> dict[str, Path]:
    """Returns relative name -> path of every file.

    Raises DamagedError for a pipe, a device, a link to a folder, or if `directory` is none.
    """
    if not directory.is_dir():
        raise DamagedError(f"{directory.name} is no directory")
    found: dict[str, Path] = {}
    pending = [directory]
    while pending:
        for entry in sorted(os.scandir(pending.pop()), key=lambda item: item.name):
            path = Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                pending.append(path)
            elif entry.is_file():
                found[path.relative_to(directory).as_posix()] = path
            else:
                raise DamagedError(f"{path.name} is neither a plain file nor a directory")
    return found


def repair_directory(target: Path) -> None:
    """Completes a `replace_directory` that was interrupted between two renames."""
    old, previous = beside(target, "old"), beside(target, "previous")
    for candidate in (old, previous):
        if candidate.exists() and not target.exists():
            target.unlink(missing_ok=True)  # a link to nothing
            candidate.rename(target)
    shutil.rmtree(old, ignore_errors=True)
