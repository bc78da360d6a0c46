"""Checkpoints: Orbax writes the arrays, this file decides what counts as one.

A save goes to `<step>.tmp/state`; once Orbax has finalised it, run.json and then manifest.json are
written and the directory is renamed to `<step>`. Only after that are older ones deleted. The
surprising thing: Orbax's own CheckpointManager is not used; its commit comes before our manifest
could, and it deletes older steps right after its own commit.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
from pathlib import PurePath
from typing import Any

import jax
import orbax.checkpoint as ocp

from flaxbert.errors import ModelFileError
from flaxbert.storage.manifest import verify_manifest, write_manifest
from flaxbert.storage.store import DamagedError, store_for
from flaxbert.storage.workdir import read_json, write_json

_STATE, _RUN = "state", "run.json"


class Checkpoints:
    """The `checkpoints/` directory of one run; one writer, one save under way at a time."""

    def __init__(self, directory: PurePath, keep: int) -> None:
        self._directory = directory
        self._store = store_for(directory)
        self._keep = keep
        self._orbax = ocp.StandardCheckpointer()
        self._commit: threading.Thread | None = None
        self._error: BaseException | None = None

    def newest_valid(self) -> int | None:
        """Returns the newest step whose manifest verifies, or None if there never was a checkpoint.

        Removes the litter of saves that were cut off, and sets damaged checkpoints aside as
        `damaged-<step>` with a line on stderr.

        Raises:
          ModelFileError: there are checkpoints and none is valid: never a silent restart.
        """
        self._store.make_directory(self._directory)
        self._store.sweep(self._directory)
        present = self._store.names(self._directory)
        damaged = [name for name in present if name.startswith("damaged-")]
        for step in reversed(self._steps()):
            try:
                verify_manifest(self._directory / str(step))
                self._check_number(step)
                return step
            except (DamagedError, OSError) as error:
                damaged.append(self._set_aside(step, error))
        if damaged:
            raise ModelFileError(
                f"{self._directory}: no checkpoint is valid ({', '.join(sorted(damaged))}). Bring "
                "one back from a copy, or start again in another workdir."
            )
        return None

    def restore(self, step: int, abstract_state: Any) -> Any:
        """Returns the state, laid out as the abstract one says.

        Raises:
          ModelFileError: the checkpoint holds other arrays, shapes or types than asked for.
        """
        directory = self._directory / str(step)
        path = self._store.for_orbax(directory / _STATE)
        # Compared first: Orbax casts other types in silence, and reads on in the background after
        # it has raised for a shape.
        found = self._orbax.metadata(path).item_metadata
        stored = _layout(found.tree if found is not None else {})
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
        return self._orbax.restore(path, abstract_state)

    def read_run(self, step: int) -> dict[str, Any]:
        """Returns what `save` was told about the run at that step."""
        return read_json(self._directory / str(step) / _RUN)

    def save(self, step: int, state: Any, run: dict[str, Any]) -> None:
        """Starts a save; returns once the state is copied, so that it may be donated again.

        Raises:
          ModelFileError: the disk failed, in this save or in the *previous* one.
          others: the previous save failed for another reason.
        """
        self.wait()
        path = self._directory / str(step)
        if self._store.is_committed(path):
            return  # a resumed run that has nothing left to do
        begun = self._store.begin(path)
        try:
            self._orbax.save(self._store.for_orbax(begun / _STATE), state)
        except Exception as error:
            raise _readable(path, error) from error
        self._commit = threading.Thread(
            target=self._finish, args=(path, begun, run), name="checkpoint-commit"
        )
        self._commit.start()

    def wait(self) -> None:
        """Waits for a save under way and raises what went wrong in it."""
        if self._commit is not None:
            self._commit.join()
            self._commit = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def close(self) -> None:
        """Waits for the last save; the run must not report success before this returns."""
        try:
            self.wait()
        finally:
            self._orbax.close()

    def _finish(self, path: PurePath, begun: PurePath, run: dict[str, Any]) -> None:
        try:
            self._orbax.wait_until_finished()
            write_json(begun / _RUN, run)
            write_manifest(begun)
            self._store.commit(begun, path)
            for old in self._steps()[: -self._keep]:
                self._delete(old)
        except BaseException as error:  # raised again in the training thread, by wait()
            self._error = _readable(path, error)
            self._error.__cause__ = error

    def _check_number(self, step: int) -> None:
        """A checkpoint copied to another number verifies, and is not that update's."""
        held = self.read_run(step).get("step", step)
        if held != step:
            raise DamagedError(f"it holds the state after update {held}")

    def _delete(self, step: int) -> None:
        try:
            self._store.remove(self._directory / str(step))
        except OSError as error:  # the new one is committed: no reason to stop; tried again later
            print(
                f"flaxbert: WARNING: the old checkpoint {step} could not be deleted: {error}",
                file=sys.stderr,
            )

    def _steps(self) -> list[int]:
        return sorted(
            int(name)
            for name in self._store.names(self._directory)
            if name.isdecimal() and str(int(name)) == name
        )

    def _set_aside(self, step: int, reason: Exception) -> str:
        name = f"damaged-{step}"
        target = self._directory / name
        self._store.set_aside(self._directory / str(step), target)
        print(
            f"flaxbert: WARNING: checkpoint {step} is damaged ({reason}); kept as {target}, going "
            "back to an older one",
            file=sys.stderr,
        )
        return name


def _readable(path: PurePath, error: BaseException) -> BaseException:
    """Returns a disk's error in words; any other one unchanged.

    TensorStore's errors come as a ValueError of a page with the number somewhere in it.
    """
    found = re.search(r"\[os_error_code='(\d+)'\]", str(error))
    number = int(found[1]) if found else getattr(error, "errno", None)
    if number is None:
        return error
    where = getattr(error, "filename", None) or path
    return ModelFileError(
        f"{where}: the checkpoint after update {path.name} could not be saved: "
        f"{os.strerror(number)}. Those before it are kept; once the disk is in order the same "
        "command goes on from the newest."
    )


def _be_quiet() -> None:
    """Keeps Orbax from printing what it also raises.

    It logs every failed save with its traceback, and the arrays still being written then call back
    into an event loop that is closed already.
    """

    class NotTwice(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            return not (record.exc_info and "orbax" in record.pathname)

    show = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            show(unraisable)

    logging.getLogger("absl").addFilter(NotTwice())
    sys.unraisablehook = hook


_be_quiet()


def _layout(tree: Any) -> dict[str, str]:
    """Returns "float32[2, 3]" of every array by its path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
