"""The progress of a run, as run.json of a checkpoint records it, and the clock for its times.

Note: counts and sums depend only on the run, so an interrupted run ends with the same ones; only
the fields named "seconds" or "longest" depend on the machine.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any


@dataclasses.dataclass
class Sums:
    """Running totals over updates; all but the seconds depend only on the run."""

    updates: int = 0
    loss: float = 0.0  # sum over updates of each update's mean loss
    gradient_norm: float = 0.0
    examples: int = 0
    real_tokens: int = 0
    computed_tokens: int = 0
    attended_keys: int = 0  # sum over real tokens of the keys that each attends to
    seconds: float = 0.0  # without evaluation and compilation; used for log lines


@dataclasses.dataclass
class Progress:
    """The progress of a run; run.json of a checkpoint has these fields and the run's facts."""

    step: int = 0  # finished updates
    window: Sums = dataclasses.field(default_factory=Sums)  # since the last log line
    total: Sums = dataclasses.field(default_factory=Sums)
    steady_seconds: float = 0.0  # without the first update of each start
    steady_examples: int = 0
    wall_seconds: float = 0.0  # everything, except the time between the last save and a kill
    best: dict[str, Any] | None = None  # {"step", "value", "results", "weights"}
    evaluated: int = 0  # update after which the last evaluation ran
    results: dict[str, Any] | None = None  # of the last evaluation
    evaluations_without_gain: int = 0
    nonfinite_in_a_row: int = 0
    nonfinite_updates: int = 0
    stopped_early: bool = False
    longest_update: float = 0.0  # seconds from sending an update to the device to its end
    longest_save: float = 0.0  # seconds from the start of the copy to the commit
    saving_seconds: float = 0.0  # total time that training waited for saves

    def add(self, sums: dict[str, Any], counts: dict[str, int]) -> None:
        """Counts an update: the sums of the step, and the counts of its batch."""
        for total in (self.window, self.total):
            total.examples += counts["examples"]
            total.real_tokens += counts["real_tokens"]
            total.computed_tokens += counts["computed_tokens"]
            total.attended_keys += counts["attended_keys"]
        if not sums["finite"]:
            self.nonfinite_updates += 1
            self.nonfinite_in_a_row += 1
            return
        self.nonfinite_in_a_row = 0
        for total in (self.window, self.total):
            total.updates += 1
            total.loss += float(sums["loss"]) / float(sums["normalizer"])
            total.gradient_norm += float(sums["gradient_norm"])

    @property
    def grace_period(self) -> str:
        """The grace period that a stop needs, as a log line."""
        update, save = self.longest_update, self.longest_save
        return (
            f"longest update {update:.2f} s, longest save {save:.2f} s: allow a grace period of at "
            f"least {update + save:.1f} s"
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Progress:
        fields = {field.name for field in dataclasses.fields(cls)}
        known = {name: value for name, value in values.items() if name in fields}
        for name in ("window", "total"):
            known[name] = Sums(**known[name])
        return cls(**known)


class Clock:
    """Measures training time, without compilation and evaluation, and wall time.

    `tick` ends a period of training; `restart` discards the time since then (an evaluation)."""

    def __init__(self, progress: Progress, started: float) -> None:
        self._progress = progress
        self._last = time.perf_counter()
        self._wall = started
        self._examples = progress.total.examples

    def tick(self, *, warm: bool) -> None:
        """Adds the time since the last tick; to the steady state if `warm`."""
        now = time.perf_counter()
        passed, self._last = now - self._last, now
        progress = self._progress
        done = progress.total.examples - self._examples
        self._examples = progress.total.examples
        if warm:
            progress.steady_seconds += passed
            progress.steady_examples += done
        progress.window.seconds += passed

    def restart(self) -> None:
        self._last = time.perf_counter()

    def wall(self) -> None:
        now = time.perf_counter()
        self._progress.wall_seconds += now - self._wall
        self._wall = now
