"""Trackers: what a run tells while it trains. One file each, and these files are the registry.

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

# A checkpoint counts the lines of metrics.jsonl as written, so a run ends where they cannot be.
_RECORD = "jsonl"


@dataclasses.dataclass(frozen=True)
class Start:
    """What a tracker may know of the run that starts, or goes on after update `step`."""

    config: Config
    workdir: Workdir
    spool: Spool  # what grows in its directory is kept in the workdir
    total: int  # updates of the whole run
    step: int = 0
    evaluated: int = 0  # update after which the last evaluation ran

    @property
    def folder(self) -> Path:
        """The local directory for a tracker's files."""
        return self.spool.directory


class Tracker:
    """The contract: a tracker overrides what it cares for.

    One that raises is left out from then on, with a warning, and the run goes on.
    """

    def scalars(self, step: int, epoch: float, split: str, values: Mapping[str, float]) -> None:
        """Takes values of update `step`; the split is "train" or "validation"."""

    def text(self, line: str) -> None:
        """Takes a line for people."""

    def advance(self) -> None:
        """Notes that one more update was sent to the devices."""

    def sync(self) -> None:
        """Makes durable what came so far: after evaluations, and before a checkpoint."""

    def close(self) -> None:
        """Ends. Nothing comes afterwards."""


class Trackers:
    """The trackers of a process. Of several processes of a run, only the first has any."""

    def __init__(self) -> None:
        self._trackers: dict[str, Tracker] = {}

    def add(self, name: str, make: Callable[[], Tracker]) -> None:
        """Adds what `make` returns; raises ConfigError if it cannot be as it is configured."""
        with self._guarding(name):
            self._trackers[name] = make()

    def scalars(self, step: int, epoch: float, split: str, values: Mapping[str, Any]) -> None:
        numbers = {name: float(value) for name, value in values.items()}
        self._each(lambda tracker: tracker.scalars(step, epoch, split, numbers))
        if split == "validation":  # it took long, and somebody may be watching from elsewhere
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
        """Leaves a tracker out that fails in the block."""
        try:
            yield
        except Exception as error:
            if name == _RECORD or isinstance(error, ConfigError):
                raise
            failed = self._trackers.pop(name, None)
            if failed:
                with contextlib.suppress(Exception):
                    failed.close()
            # The one that would tell it may be the next to fail, and comes here again.
            self.text(f"flaxbert: WARNING: {name}: {error}. The run goes on without this tracker.")


def open_trackers(
    config: Config, workdir: Workdir, *, total: int, step: int = 0, evaluated: int = 0
) -> Trackers:
    """Returns the trackers of a run of `total` updates, of which `step` are done."""
    start = Start(config, workdir, workdir.store.spool(workdir.metrics), total, step, evaluated)
    named = [name for name in config.log.trackers if name not in ("console", _RECORD)]
    trackers = Trackers()
    # The record goes last: it uploads to a bucket what the others have just written, too.
    for name in dict.fromkeys(("console", *named, _RECORD)):
        module = importlib.import_module(f"{__name__}.{name}")
        trackers.add(name, lambda module=module: module.make(start))
    return trackers
