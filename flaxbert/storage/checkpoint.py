"""Checkpoints: Orbax writes the arrays, this file commits them, valid_checkpoints.py finds them.

A save goes to `<step>.tmp/state`; once Orbax has finalised it, run.json and then manifest.json are
written and the directory is renamed to `<step>`. Only then are older ones deleted. Parameters that
are not trained (`state["frozen"]`) are saved once, in the same way, as `frozen`; run.json of each
checkpoint has the digest of its manifest.

Note: Orbax's own CheckpointManager is not used. It commits before our manifest can be written, and
deletes older steps right after its own commit.

Several processes write one checkpoint together: each its parts of the arrays, the first one the
rest. They agree on whether a save succeeded, so that they try again together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Callable
from pathlib import PurePath
from typing import Any, Protocol

import jax
import orbax.checkpoint as ocp

from flaxbert.errors import ModelFileError, StorageError
from flaxbert.shell.console import say
from flaxbert.shell.free_memory import give_back_memory
from flaxbert.storage.manifest import NAME, write_manifest
from flaxbert.storage.parameters import declared, unreadable
from flaxbert.storage.store import location, store_for
from flaxbert.storage.valid_checkpoints import (
    FROZEN,
    RUN,
    STATE,
    newest_valid,
    read_run,
    steps_in,
    verify_frozen,
)
from flaxbert.storage.workdir import write_json


class Group(Protocol):
    """What a checkpoint needs of the processes that write it together; here one process."""

    index: int = 0
    is_first: bool = True
    count: int = 1

    def on_first(self, function: Callable[[], Any]) -> Any:
        return function()

    def all_gather(self, value: Any) -> list[Any]:
        return [value]

    def barrier(self, key: str, broken: str) -> None:
        pass

    def put(self, key: str, text: str) -> None:
        pass


class _SingleProcess(Group):
    pass


@dataclasses.dataclass(frozen=True)
class Commit:
    step: int
    seconds: float  # from the start of the copy to the commit


class Checkpoints:
    """The `checkpoints/` directory of one run; one writer, one save under way at a time."""

    def __init__(self, directory: PurePath, keep: int, group: Group | None = None) -> None:
        """`group`: the processes of the run (hosts/group.py); all of them call all methods."""
        self._group = group or _SingleProcess()
        self._directory = directory
        self._store = store_for(directory)
        self._keep = keep
        # If Orbax makes a directory in the background and fails, nobody is told: its threads wait
        # twenty minutes for it, and the process cannot end before.
        self._orbax = ocp.AsyncCheckpointer(
            # Weights and moments hardly compress, and compression would slow down training on
            # machines with few cores.
            ocp.PyTreeCheckpointHandler(use_compression=False),
            async_options=ocp.options.AsyncOptions(
                create_directories_asynchronously=False,
                # Orbax's own barrier waits twenty minutes for a process whose disk has failed.
                barrier_sync_fn=self._meet if self._group.count > 1 else None,
            ),
        )
        self._saves = 0  # tries, as every process counts them
        self._commit: threading.Thread | None = None
        self._outstanding = False  # whether the result of a save is still unknown
        self._error: BaseException | None = None
        self._has_leftovers = False  # whether a failure may have left temporary files
        self._frozen = ""  # digest of the frozen part, once it is saved
        self.last_commit: Commit | None = None  # of this process

    def path_of(self, step: int) -> PurePath:
        return self._directory / str(step)

    def newest_valid(self) -> int | None:
        """Returns `valid_checkpoints.newest_valid`, after removing unfinished saves."""
        self._store.make_directory(self._directory)
        self._store.sweep(self._directory)
        return newest_valid(self._directory)

    def restore(self, step: int, abstract_state: Any) -> Any:
        """Returns the state with the shardings of the abstract one.

        Raises ModelFileError if the arrays, their shapes or types differ, or the frozen part is
        damaged.
        """
        changing, frozen = _apart(abstract_state)
        state = self._restore(self._directory / str(step), changing)
        if frozen:
            self._frozen = self._group.on_first(lambda: verify_frozen(self._directory, step))
            state[FROZEN] = self._restore(self._directory / FROZEN, {"params": frozen})["params"]
        elif FROZEN in abstract_state:
            state[FROZEN] = {}
        return state

    def _restore(self, directory: PurePath, abstract_state: Any) -> Any:
        path = self._store.for_orbax(directory / STATE)
        # Compared first: Orbax casts other types in silence, and reads on in the background after
        # it has raised for a shape.
        stored = _layout(declared(self._orbax, directory / STATE))
        asked = _layout(abstract_state)
        names = sorted(stored.keys() | asked.keys())
        different = [name for name in names if stored.get(name) != asked.get(name)]
        if different:
            name = different[0]
            raise ModelFileError(
                f"{directory}: holds another model than config.json of the workdir says "
                f"({len(different)} arrays differ; {name}: expected {asked.get(name, 'none')}, "
                f"found {stored.get(name, 'none')})."
            )
        try:
            how = ocp.checkpoint_utils.construct_restore_args(abstract_state)
            args = ocp.args.PyTreeRestore(abstract_state, restore_args=how)
            return self._orbax.restore(path, args=args)
        except jax.errors.JaxRuntimeError:
            raise  # the device's memory or a lost process, not the file
        except Exception as error:
            raise unreadable(directory, error) from error

    def read_run(self, step: int) -> dict[str, Any]:
        """Returns what `save` recorded about the run at that step."""
        return read_run(self._directory, step)

    def save(self, step: int, state: Any, run: dict[str, Any]) -> bool:
        """Starts a save; returns once the state is copied, so that it may be donated again.

        Returns False if that step is committed already, as when a resumed run has nothing left to
        do. Errors of this save are raised by the next `check` or `wait`, those of the one before
        here.
        """
        self.wait()
        self._saves += 1
        path = self._directory / str(step)
        started = time.monotonic()
        changing, frozen = _apart(state)
        parts = [(path, changing)]
        if frozen and not self._frozen:
            parts.insert(0, (self._directory / FROZEN, {"params": frozen}))
        found = self._group.on_first(lambda: self._begin([path for path, _ in parts]))
        if found is None:
            return False
        self._outstanding = True
        if not found:  # the error is in the first process
            return True
        begun = [location(each) for each in found]
        try:
            with self._store.telling(f"saving {path}"):
                for place, (_, part) in zip(begun, parts, strict=True):
                    self._orbax.save(  # each waits for the one before
                        self._store.for_orbax(place / STATE), args=ocp.args.PyTreeSave(part)
                    )
        except (OSError, StorageError) as error:
            if self._group.count > 1:
                raise  # the others are in the middle of the save: they end with this process
            self._error, self._has_leftovers = error, True
            return True
        self._commit = threading.Thread(
            target=self._finish, args=(step, begun, run, started), name="checkpoint-commit"
        )
        self._commit.start()
        return True

    def _begin(self, paths: list[PurePath]) -> list[str] | None:
        """Returns the directories to save in; None = already saved, [] = an error."""
        *before, path = paths
        try:
            with self._store.telling(f"saving {path}"):
                if self._store.is_committed(path):
                    return None
                self._sweep()  # makes room on a full disk
                for left in before:  # by a start that was killed before its first checkpoint
                    if self._store.is_committed(left):
                        self._store.discard(left)
                return [os.fspath(self._store.begin(path)) for path in paths]
        except (OSError, StorageError) as error:
            self._error, self._has_leftovers = error, True
            return []

    @property
    def under_way(self) -> bool:
        """Whether this process is still saving."""
        return self._commit is not None and self._commit.is_alive()

    def check(self) -> bool:
        """Raises the error of the last save; returns False while it is under way.

        Only for runs of one process: several could get different answers.
        """
        return False if self.under_way else self.wait()

    def wait(self) -> bool:
        """Waits for a save under way and raises its error, once; returns True.

        Raises:
          ModelFileError: the disk failed, here or in another process.
          StorageError: the object store failed.
        """
        if not self._outstanding:
            return True
        if self._commit is not None:
            self._commit.join()
            self._commit = None
        self._outstanding = False
        error, self._error = self._error, None
        mine = dataclasses.astuple(self.last_commit) if self.last_commit else None
        text = (str(error) or repr(error)) if error else ""
        said = self._group.all_gather([text, mine, self._frozen])
        _, commit, self._frozen = said[0]  # the first process knows both
        if error is not None:
            raise error
        for process, (text, *_) in enumerate(said):
            if text:
                raise ModelFileError(f"process {process}: {text}")
        self.last_commit = Commit(*commit)
        return True

    def close(self) -> None:
        """Waits for the last save; call it before reporting success."""
        try:
            self.wait()
        finally:
            self._orbax.close()
            self._has_leftovers = True  # a thread of a failed save may have written since
            self._sweep()

    def _finish(
        self, step: int, begun: list[PurePath], run: dict[str, Any], started: float
    ) -> None:
        path = self.path_of(step)
        try:
            with self._store.telling(f"saving {path}"):
                self._orbax.wait_until_finished()
                if not self._group.is_first:
                    return
                *before, last = begun
                for part in before:
                    write_manifest(part)
                    self._store.commit(part, self._directory / FROZEN)
                    self._frozen = self._store.sha256(self._directory / FROZEN / NAME)
                write_json(last / RUN, run | ({FROZEN: self._frozen} if self._frozen else {}))
                write_manifest(last)
                self._store.commit(last, path)
            self.last_commit = Commit(step, time.monotonic() - started)
            for old in steps_in(self._directory)[: -self._keep]:
                self._delete(old)
            self._sweep()
            give_back_memory()
        except BaseException as error:  # raised again in the training thread, by wait()
            self._error, self._has_leftovers = error, True
            with contextlib.suppress(Exception):  # the first reason counts
                reason = str(error) or repr(error)
                self._group.put(self._broken, f"process {self._group.index}: {reason}")

    def _meet(self, *, key: str, timeout_ms: int) -> None:
        """Waits for the other processes, in Orbax's thread, or until one reports a failed save."""
        self._group.barrier(f"save/{self._saves}/{key}", self._broken)

    @property
    def _broken(self) -> str:
        return f"save/{self._saves}/broken"

    def _delete(self, step: int) -> None:
        try:
            self._store.discard(self._directory / str(step))
        # The new one is committed, so go on; deleting is tried again at the next save.
        except (OSError, StorageError) as error:
            self._has_leftovers = True
            say(f"flaxbert: WARNING: the old checkpoint {step} could not be deleted: {error}")

    def _sweep(self) -> None:
        """Removes what a failure has left; if that fails too, the next save or start retries it."""
        if self._has_leftovers and self._group.is_first:
            with contextlib.suppress(OSError, StorageError):
                self._store.sweep(self._directory)
                self._has_leftovers = False


def _apart(state: Any) -> tuple[Any, Any]:
    """Returns the part of the state that changes, and the frozen part."""
    return {name: part for name, part in state.items() if name != FROZEN}, state.get(FROZEN)


def _layout(tree: Any) -> dict[str, str]:
    """Returns "float32[2, 3]" of every array by its path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
