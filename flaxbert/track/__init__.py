"""Trackers: where a run logs its values. One file each, and these files are the registry.

A file's `make(start)` returns its `Tracker`. Every run has `console` and `jsonl`; others are named
in `config.log.trackers`. The loop has one `Trackers` and does not know what is in it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flaxbert.config import Config
from flaxbert.errors import ConfigError
from flaxbert.storage.interface import Spool
from flaxbert.storage.workdir import Workdir

# A checkpoint assumes that the lines of metrics.jsonl are written, so a run ends if they cannot be.
_RECORD = "jsonl"


@dataclasses.dataclass(frozen=True)
class Start:
    """The start of a run, or its resume after update `step`, for a tracker."""

    config: Config
    workdir: Workdir
    spool: Spool  # files in its directory are kept in the workdir
    total: int  # updates of the whole run
    step: int = 0
    evaluated: int = 0  # update after which the last evaluation ran

    @property
    def folder(self) -> Path:
        """The local directory for a tracker's files."""
        return self.spool.directory


class Tracker:
    """The contract: a tracker overrides the methods that it needs.

    One that raises is dropped with a warning, and the run continues.
    """

    def scalars(self, step: int, epoch: float, split: str, values: Mapping[str, float]) -> None:
        """Takes values of update `step`; the split is "train" or "validation"."""

    def text(self, line: str) -> None:
        """Takes a line for people."""

    def advance(self) -> None:
        """Notes that one more update was sent to the devices."""

    def sync(self) -> None:
        """Writes everything to storage: after evaluations, and before a checkpoint."""

    def close(self) -> None:
        """Closes; no other call follows."""


class Trackers:
    """The trackers of a process. Of several processes of a run, only the first has any."""

    def __init__(self) -> None:
        self._trackers: dict[str, Tracker] = {}

    def add(self, name: str, make: Callable[[], Tracker]) -> None:
        """Adds the tracker that `make` returns; raises ConfigError if its options are invalid."""
        with self._guarding(name):
            self._trackers[name] = make()

    def scalars(self, step: int, epoch: float, split: str, values: Mapping[str, Any]) -> None:
        numbers = {name: float(value) for name, value in values.items()}
        self._each(lambda tracker: tracker.scalars(step, epoch, split, numbers))
        if split == "validation":  # evaluations are rare, and somebody may be watching remotely
            self.sync()

    def text(self, line: str) -> None:
        self._each(lambda tracker: tracker.text(line))

    def advance(self) -> None:
        self._each(lambda tracker: tracker.advance())

    def sync(self) -> None:
        self._each(lambda tracker: tracker.sync())

    def close(self) -> None:
        try:
            self._each(lambda tracker: tracker.close())
        finally:
            self._trackers.clear()

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            with self._guarding(name):
                call(tracker)

    @contextlib.contextmanager
    def _guarding(self, name: str) -> Any:
        """Drops a tracker that fails in the block."""
        try:
            yield
        except Exception as error:
            if name == _RECORD or isinstance(error, ConfigError):
                raise
            failed = self._trackers.pop(name, None)
            if failed:
                with contextlib.suppress(Exception):
                    failed.close()
            # The tracker that shows this line may fail next, and is then dropped in the same way.
            self.text(
                f"flaxbert: WARNING: {name}: {error}. The run continues without this tracker."
            )


def open_trackers(
    config: Config, workdir: Workdir, *, total: int, step: int = 0, evaluated: int = 0
) -> Trackers:
    """Returns the trackers of a run of `total` updates, of which `step` are done."""
    start = Start(config, workdir, workdir.store.spool(workdir.metrics), total, step, evaluated)
    named = [name for name in config.log.trackers if name not in ("console", _RECORD)]
    trackers = Trackers()
    # The record comes last: to a bucket it also uploads what the others have just written.
    for name in dict.fromkeys(("console", *named, _RECORD)):
        module = importlib.import_module(f"{__name__}.{name}")
        trackers.add(name, lambda module=module: module.make(start))
    return trackers
