"""A run's files in a bucket, gs://bucket/folder.

A put is atomic and visible to everybody at once, but nothing can be renamed or appended to. So in a
folder that must be complete one object vouches for all others: it is deleted first and written
last. For a checkpoint that is its manifest, for model/ its weights. A `<step>/` without a manifest
is therefore an unfinished save, never a damaged checkpoint, and is deleted at the next start. A
damaged checkpoint is copied to `damaged-<step>/` before it is deleted.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath, PurePosixPath
from typing import TextIO

from etils import epath

from flaxbert.errors import FlaxbertError, ModelFileError, StorageError
from flaxbert.shell import signals
from flaxbert.shell.console import say
from flaxbert.storage.bucket import (
    SCHEME,
    Bucket,
    Listed,
    configure_clients,
    reason_for,
    split_url,
)
from flaxbert.storage.interface import MANIFEST, WEIGHTS, Spool, beside, is_step
from flaxbert.storage.lease import Lease

_VOUCHING = (MANIFEST, WEIGHTS)
_ATTEMPTS = 3  # to copy a folder that is written meanwhile


@functools.cache
def object_store(bucket: str) -> ObjectStore:
    """Returns the store of a bucket: always the same one, since it knows the lease held."""
    return ObjectStore(bucket)


class ObjectStore:
    """A bucket; implements interface.Store."""

    def __init__(self, bucket: str) -> None:
        self._bucket = Bucket(bucket)
        self._lease: Lease | None = None

    # Files

    def is_file(self, path: PurePath) -> bool:
        return self._bucket.size(self._name(path)) is not None

    def read(self, path: PurePath) -> bytes:
        try:
            return self._bucket.read(self._name(path))
        except FileNotFoundError as error:
            raise FileNotFoundError(2, os.strerror(2), str(path)) from error

    def write(self, path: PurePath, data: bytes) -> None:
        self.check_lease()
        self._bucket.put(self._name(path), data)

    @contextlib.contextmanager
    def replacing(self, path: PurePath) -> Iterator[TextIO]:
        folder = _temporary_folder()
        try:
            with (folder / path.name).open("w", encoding="utf-8", newline="") as file:
                yield file
            self.check_lease()
            self._bucket.upload(self._name(path), folder / path.name)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def sha256(self, path: PurePath) -> str:
        digest = hashlib.sha256()
        for chunk in self._bucket.chunks(self._name(path)):
            digest.update(chunk)
        return digest.hexdigest()

    def spool(self, path: PurePath) -> Spool:
        return _Uploaded(self, path)

    # Directories

    def make_directory(self, path: PurePath) -> None:
        """A bucket has no directories; this only shows early that the bucket exists."""
        self._bucket.list(self._name(path))

    def is_directory(self, path: PurePath) -> bool:
        return bool(self._list(path))

    def names(self, path: PurePath) -> list[str]:
        return sorted({name.split("/")[0] for name in self._list(path)})

    def sizes(self, path: PurePath) -> dict[str, int]:
        return {name: entry.size for name, entry in sorted(self._list(path).items())}

    def remove(self, path: PurePath) -> None:
        self._delete_all_but(set(), path)

    def local_copy(self, path: PurePath) -> Path:
        """Copies the folder, and the files of its run that it is read with, to a temporary folder.

        It is removed when the process ends, also by a signal. If the listing has changed during the
        copy, it is copied again.

        Raises:
          ModelFileError: there is no such folder, or it has names with `..`.
          StorageError: it does not stop changing, or the disk has no room.
        """
        folder = _temporary_folder()
        target = folder / self._bucket.name / self._name(path)
        for attempt in range(_ATTEMPTS):
            time.sleep(attempt)
            before = self._list(path)
            if not before:
                raise ModelFileError(f"{path}: there is nothing there.")
            shutil.rmtree(target, ignore_errors=True)
            try:
                self._fetch(path, before, target)
            except FileNotFoundError:
                continue
            if self._list(path) == before:
                break
        else:
            raise StorageError(f"{path}: changed while it was copied. Try again.")
        for other in _belonging(path):
            for name in [""] if self.is_file(other) else self._list(other):
                file = other / name if name else other
                self._fetch_file(file, folder / self._bucket.name / self._name(file))
        return target

    # Checkpoints

    def for_orbax(self, path: PurePath) -> epath.Path:
        configure_clients()
        return epath.Path(path)

    @contextlib.contextmanager
    def telling(self, what: str) -> Iterator[None]:
        try:
            yield
        except FlaxbertError:
            raise
        except Exception as error:  # whatever gcsfs and TensorStore raise
            raise StorageError(f"{what}: {reason_for(error)}") from error

    def is_committed(self, path: PurePath) -> bool:
        return self.is_file(path / MANIFEST)

    def begin(self, path: PurePath) -> PurePath:
        """Returns the path itself, without what a failed save left there."""
        self.remove(path)
        return path

    def settle(self, path: PurePath) -> None:
        """Does nothing: an object is durable once it is put."""

    def commit(self, begun: PurePath, path: PurePath) -> None:
        """Does nothing: writing the manifest was the commit."""

    def discard(self, path: PurePath) -> None:
        self.remove(path)

    def sweep(self, path: PurePath) -> None:
        """Removes the steps without a manifest."""
        files = self._list(path)
        for step in sorted({name.split("/")[0] for name in files}):
            if is_step(step) and f"{step}/{MANIFEST}" not in files:
                self.remove(path / step)

    def set_aside(self, path: PurePath, target: PurePath) -> None:
        self.remove(target)
        self._copy(path, target)
        self.remove(path)

    # The folder of the best model

    def stage(self, target: PurePath) -> Path:
        return _temporary_folder() / target.name

    def replace_directory(self, new: Path, target: PurePath, *, committed: bool) -> None:
        if committed and WEIGHTS in self._list(target):
            self._copy(target, beside(target, "previous"))
        files = {f.relative_to(new).as_posix(): f for f in new.rglob("*") if f.is_file()}
        self._delete_all_but(set(files), target)
        for name in sorted(files, key=lambda name: (name in _VOUCHING, name)):
            self.check_lease()
            self._bucket.upload(self._name(target / name), files[name])
        shutil.rmtree(new.parent, ignore_errors=True)

    def choose_directory(self, target: PurePath, is_right: Callable[[PurePath], bool]) -> bool:
        if is_right(target):
            return True
        previous = beside(target, "previous")
        if not is_right(previous):
            return False
        self._copy(previous, target)
        self.remove(previous)
        return True

    def forget_previous(self, target: PurePath) -> None:
        self.remove(beside(target, "previous"))

    # One writer

    @contextlib.contextmanager
    def locked(self, path: PurePath) -> Iterator[None]:
        with Lease(self._bucket.name, self._name(path)).held() as lease:
            self._lease = lease
            try:
                yield
            finally:
                self._lease = None

    def check_lease(self) -> None:
        """Raises StorageError if the lease is lost: then nothing more may be written."""
        if self._lease is not None:
            self._lease.check()

    def _name(self, path: PurePath) -> str:
        return split_url(os.fspath(path))[1]

    def _list(self, path: PurePath) -> dict[str, Listed]:
        return self._bucket.list(self._name(path))

    def _delete_all_but(self, names: set[str], target: PurePath) -> None:
        """Empties a folder but for objects that will be overwritten; what vouches goes first.

        So a folder that is half removed, or half written, is never taken for a whole one.
        """
        self.check_lease()
        present = self._list(target)
        first = [name for name in present if name in _VOUCHING]
        gone = [name for name in present if name not in names and name not in first]
        for some in (first, gone):
            self._bucket.delete(self._name(target / name) for name in some)

    def _copy(self, path: PurePath, target: PurePath) -> None:
        """Copies a folder over another; the object that vouches for the rest goes last."""
        files = self._list(path)
        self._delete_all_but(set(files), target)
        for last in (False, True):
            names = [name for name in files if (name in _VOUCHING) is last]
            size = sum(files[name].size for name in names)
            self.check_lease()
            self._bucket.copy({self._name(path / n): self._name(target / n) for n in names}, size)

    def _fetch(self, path: PurePath, listed: dict[str, Listed], target: Path) -> None:
        for name in listed:
            parts = name.split("/")
            if any(part in ("", ".", "..") or "\0" in part for part in parts):
                raise ModelFileError(f"{path}: holds an object named {name!r}, no name of a file.")
        target.mkdir(parents=True)
        size, free = sum(e.size for e in listed.values()), shutil.disk_usage(target).free
        if size > free:
            raise StorageError(
                f"{path}: has {size} bytes, and {target} has room for {free}. Set TMPDIR to a "
                "larger disk."
            )
        for name in listed:
            self._fetch_file(path / name, target.joinpath(*name.split("/")))

    def _fetch_file(self, path: PurePath, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        self._bucket.fetch(self._name(path), target)


class _Uploaded:
    """Files that grow in a temporary folder; each push uploads those that have changed.

    Only the run's own record has to arrive: other files are trackers', which never end a run.
    """

    def __init__(self, store: ObjectStore, path: PurePath) -> None:
        self._store, self._parent, self._record = store, path.parent, path.name
        self.directory = _temporary_folder()
        if store.is_file(path):
            (self.directory / path.name).write_bytes(store.read(path))
        self._pushed = self._states()

    def push(self) -> None:
        self._store.check_lease()
        for name, state in self._states().items():
            if self._pushed.get(name) == state:
                continue
            try:
                self._store.write(self._parent / name, (self.directory / name).read_bytes())
            except (StorageError, OSError) as error:
                if name == self._record:
                    raise
                say(f"flaxbert: WARNING: {name} was not uploaded, and the run goes on: {error}")
            else:
                self._pushed[name] = state

    def close(self) -> None:
        try:
            self.push()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _states(self) -> dict[str, tuple[int, int]]:
        found = {}
        for path in sorted(self.directory.rglob("*")):
            with contextlib.suppress(FileNotFoundError):  # a tracker may remove its files
                if path.is_file():
                    stat = path.stat()
                    name = path.relative_to(self.directory).as_posix()
                    found[name] = (stat.st_size, stat.st_mtime_ns)
        return found


def _temporary_folder() -> Path:
    """Returns an empty local folder that is removed when the process ends, if not before."""
    return Path(tempfile.mkdtemp(dir=_temporary_root()))


@functools.cache
def _temporary_root() -> Path:
    root = Path(tempfile.mkdtemp(prefix="flaxbert-"))
    remove = functools.partial(shutil.rmtree, root, ignore_errors=True)
    atexit.register(remove)
    signals.on_leaving(remove)
    return root


def _belonging(path: PurePath) -> list[PurePath]:
    """Returns the other files of a run that its model/ or checkpoints/<step> is read with."""
    name = PurePosixPath(split_url(os.fspath(path))[1])
    checkpoint = name.name.isdecimal()
    if len(name.parts) <= checkpoint:
        return []  # nothing is above the bucket
    if not checkpoint:
        return [path.parent / "config.json", path.parent / "source" / "facts.json"]
    run, frozen = path.parents[1], path.parent / "frozen"
    return [run / "config.json", run / "source", frozen]


def url_path(url: str) -> PurePath:
    """Returns the path of a gs:// URL; ConfigError if it is malformed."""
    bucket, name = split_url(url)
    return epath.Path(f"{SCHEME}{bucket}/{name}")
