"""Run control: which update is next, and what is due after it.

The order after update k never changes: log, evaluate (a new best model leaves as a folder), save.
So a checkpoint at k has seen everything that was due at k, and a resume starts with update k + 1.
Note: Python is ahead of the device (loop/in_flight.py), so an update whose loss is not finite is
noticed late; the step itself has left the parameters alone.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import jax

from flaxbert.errors import InterruptedRun, ModelFileError, NonFiniteError, StorageError
from flaxbert.heads import is_better
from flaxbert.loop import log
from flaxbert.loop.agreement import SAVING, STOP
from flaxbert.loop.cadence import Cadence
from flaxbert.loop.in_flight import InFlight
from flaxbert.loop.progress import Clock, Progress
from flaxbert.loop.step import Batch, State, all_finite
from flaxbert.methods import params_of
from flaxbert.storage.checkpoint import Checkpoints
from flaxbert.track import Trackers


class Training(Protocol):
    """A run as the loop knows it (run/training.py): its updates, evaluation and export."""

    @property
    def cadence(self) -> Cadence: ...

    @property
    def started(self) -> float:
        """time.perf_counter() of this start."""
        ...

    @property
    def facts(self) -> dict[str, Any]:
        """What run.json records beside the progress."""
        ...

    @property
    def several(self) -> bool:
        """Whether other processes train the same run: they agree inside the update."""
        ...

    @property
    def interrupted(self) -> bool:
        """Whether this process, the only one, was asked to stop."""
        ...

    @property
    def update(self) -> Callable[[State, Batch], tuple[State, dict[str, jax.Array]]]: ...

    @property
    def evaluate(self) -> Callable[[Any], dict[str, Any]] | None:
        """Parameters -> metrics; None without validation data."""
        ...

    @property
    def export(self) -> Callable[[Any, int, dict[str, Any], bool], str]:
        """Parameters, step, metrics, whether the present model/ is a committed checkpoint's ->
        digest of the weights."""
        ...

    @property
    def learning_rate(self) -> Callable[[int], Any]: ...

    @property
    def utilisation(self) -> Callable[[int, int, float], dict[str, float]]:
        """Real tokens, keys that they attend to, seconds -> how well that used the devices."""
        ...

    def batch(self, step: int) -> tuple[Batch, dict[str, int]]:
        """Update -> arrays, host-side counts."""
        ...

    def start_facts(self) -> str:
        """What else to tell of the start, once the first update is done."""
        ...

    def beat(self) -> None:
        """Tells other processes that something was finished."""
        ...


def train(
    training: Training,
    state: State,
    progress: Progress,
    checkpoints: Checkpoints,
    trackers: Trackers,
) -> State:
    """Runs the remaining updates and returns the final state; `progress` is kept up to date.

    Raises:
      NonFiniteError: too many updates in a row had a loss or gradient that is not finite.
      InterruptedRun: asked to stop; every finished update is saved.
      ModelFileError, StorageError: a checkpoint could not be written, and not at a second try.
    """
    return _Start(training, state, progress, checkpoints, trackers).to_the_end()


@dataclasses.dataclass
class _Start:
    """One start of a run, from a state on."""

    training: Training
    state: State
    progress: Progress
    checkpoints: Checkpoints
    trackers: Trackers
    exported_since_save: bool = False  # whether model/ is newer than the last checkpoint
    save_failed: bool = False  # the last one that ended
    stopping: bool = False  # as the processes have agreed
    all_saved: bool | None = None  # whether all have ended the last save; None: one process

    def __post_init__(self) -> None:
        self.cadence = self.training.cadence
        self.in_flight = InFlight(self.read)
        self.clock = Clock(self.progress, self.training.started)
        self.begun_at = self.progress.step
        self.all_saved = False if self.training.several else None

    def to_the_end(self) -> State:
        progress, cadence = self.progress, self.cadence
        if progress.step:
            self.conclude()  # a resume: the interruption may have come in the middle of it
        while progress.step < cadence.total and not progress.stopped_early:
            batch, counts = self.training.batch(progress.step)
            self.in_flight.make_room()
            self.look_after_save()
            if self.stopping or self.training.interrupted:
                self.stop()
            self.update(batch, counts)
            self.conclude()
        self.save_for_sure()
        self.clock.wall()
        return self.state

    def update(self, batch: Batch, counts: dict[str, int]) -> None:
        """Sends one update to the device, and tells of those that are done when that is due."""
        progress = self.progress
        sent = time.perf_counter()
        self.state, sums = self.training.update(self.state, batch)
        progress.step += 1
        self.in_flight.add(progress.step, sums, counts, sent)
        self.trackers.advance()
        if progress.step == self.warm_up:
            self.settle()  # it warms caches up: not part of the steady state
            self.tell_start()
        if progress.step % self.cadence.log_every == 0 or progress.step == self.cadence.total:
            self.settle()
            training = self.training
            log.window(
                progress,
                self.cadence,
                training.learning_rate,
                training.utilisation,
                self.trackers,
            )

    def tell_start(self) -> None:
        seconds, facts = time.perf_counter() - self.training.started, self.training.start_facts()
        told = f" ({facts})" if facts else ""
        self.trackers.text(f"first update after {seconds:.1f} s{told}")

    def conclude(self) -> None:
        """Does what is due after the update just sent."""
        progress, cadence = self.progress, self.cadence
        step, last = progress.step, progress.step == cadence.total
        try:
            if self.training.evaluate is not None and (step % cadence.eval_every == 0 or last):
                self.evaluate(self.training.evaluate)
        except InterruptedRun:
            self.stop()  # the evaluation is dropped; a resume starts with it
        if step % cadence.save_every == 0 or last or progress.stopped_early:
            self.save()

    def evaluate(self, evaluate: Callable[[Any], dict[str, Any]]) -> None:
        self.settle()
        # A second try must not know half of what follows, nor model/ change during a save.
        self.save_for_sure()
        if self.progress.evaluated == self.progress.step:
            return
        results = evaluate(params_of(self.state))
        self.clock.restart()
        better = judge(results, self.progress, self.cadence, self.trackers)
        if better:
            self.check_parameters()
            self.export(results)

    def export(self, results: dict[str, Any]) -> None:
        """The new best leaves as a folder, complete before a checkpoint names it."""
        step, metrics = self.progress.step, log.metrics_of(results)
        committed = not self.exported_since_save
        digest = self.training.export(params_of(self.state), step, metrics, committed)
        self.exported_since_save = True
        self.progress.best = {
            "step": step,
            "value": results[self.cadence.best_metric],
            "results": self.progress.results,
            "weights": digest,
        }

    # Reading what the device has done

    @property
    def warm_up(self) -> int:
        """The first update of this start."""
        return self.begun_at + 1

    def settle(self) -> None:
        """Waits for the device: `progress` knows all updates afterwards."""
        self.in_flight.settle()
        self.note_longest_update()
        self.clock.tick(warm=self.progress.step > self.warm_up)

    def note_longest_update(self) -> None:
        self.progress.longest_update = max(self.progress.longest_update, self.in_flight.longest)

    def read(self, update: int, sums: dict[str, Any], counts: dict[str, int]) -> None:
        """Counts an update that is done; ends the run if too many were skipped."""
        progress = self.progress
        self.training.beat()
        if "said" in sums:
            self.stopping = self.stopping or bool(sums["said"][STOP])
            self.all_saved = not sums["said"][SAVING]
        progress.add(sums, counts)
        if sums["finite"]:
            return
        log.skipped(update, sums, progress, self.cadence, self.trackers)
        if progress.nonfinite_in_a_row >= self.cadence.nonfinite_limit:
            first = update - progress.nonfinite_in_a_row + 1
            self.give_up(
                f"not finite in {progress.nonfinite_in_a_row} updates in a row (from update "
                f"{first} on; the last: {log.described(sums)}), all skipped: parameters are those "
                "from before them",
                "look at their data, or lower optim.learning_rate, or use model.dtype=float32",
            )

    def check_parameters(self) -> None:
        if not all_finite(self.state):
            self.give_up(
                f"parameters are not finite any more after update {self.progress.step}, though "
                "every gradient was",
                "lower optim.learning_rate or optim.weight_decay",
            )

    def give_up(self, what: str, todo: str) -> NoReturn:
        self.checkpoints.wait()
        commit = self.checkpoints.last_commit
        saved = commit.step if commit else self.begun_at
        stands = f"checkpoint {saved}, from before that" if saved else "there is no checkpoint yet"
        raise NonFiniteError(
            f"{what}. What stands: {stands}. The same command would meet the same updates again: "
            f"{todo}, in another workdir."
        )

    # Saving

    def save(self) -> None:
        """Starts a save of the present state, after the one before has ended."""
        self.look_after_save(wait=True)
        self.start_save()

    def start_save(self) -> None:
        progress = self.progress
        self.settle()
        self.check_parameters()
        self.trackers.sync()
        self.clock.wall()
        begun = time.perf_counter()
        facts = {**self.training.facts, **dataclasses.asdict(progress)}
        if self.checkpoints.save(progress.step, self.state, facts):
            self.exported_since_save = False
        if self.all_saved:
            self.all_saved = False  # what was said was of the save before
        progress.saving_seconds += time.perf_counter() - begun

    def save_for_sure(self) -> None:
        """Waits for the last save, and for a second try."""
        self.look_after_save(wait=True)
        self.look_after_save(wait=True)

    def look_after_save(self, *, wait: bool = False) -> None:
        """Notes that a save has ended; one that failed is told and tried once more, at once.

        Raises:
          ModelFileError, StorageError: the second try has failed, too.
        """
        try:
            if wait or self.all_saved:
                ended = self.checkpoints.wait()
            else:
                ended = self.all_saved is None and self.checkpoints.check()
        except (ModelFileError, StorageError) as error:
            if self.save_failed:
                raise
            self.save_failed = True
            self.trackers.text(f"flaxbert: WARNING: {error} Trying once more, now.")
            self.start_save()
            return
        if ended:
            self.save_failed = False
            self.note_commit()

    def note_commit(self) -> None:
        """Tells the least grace period once it can be known, while the run goes on."""
        progress, commit = self.progress, self.checkpoints.last_commit
        if commit is None:
            return
        first = not progress.longest_save
        progress.longest_save = max(progress.longest_save, commit.seconds)
        if first:
            self.note_longest_update()
            self.trackers.text(progress.least_grace)

    def stop(self) -> NoReturn:
        progress = self.progress
        if not progress.step:
            raise InterruptedRun("stopped by a signal before the first update: nothing to save")
        self.save()
        self.save_for_sure()
        raise InterruptedRun(
            f"stopped by a signal: update {progress.step} of {self.cadence.total} is saved in "
            f"{self.checkpoints.path_of(progress.step)} ({progress.least_grace})"
        )


def judge(
    results: dict[str, Any], progress: Progress, cadence: Cadence, trackers: Trackers
) -> bool:
    """Records an evaluation; returns whether it is the best so far, and notes when to stop."""
    step, metric = progress.step, cadence.best_metric
    progress.evaluated = step
    progress.results = {**results, "epoch": cadence.epoch(step), "step": step}
    # NaN logits have an accuracy too: a loss that is not finite is no model to keep.
    odd = [name for name in ("loss", metric) if not math.isfinite(results[name])]
    if odd:
        trackers.text(f"validation {odd[0]} is not finite: this model cannot become the best")
    best = progress.best["value"] if progress.best else None
    better = not odd and is_better(metric, results[metric], best)
    if better:
        progress.evaluations_without_gain = 0
    else:
        progress.evaluations_without_gain += 1
        if cadence.patience and progress.evaluations_without_gain >= cadence.patience:
            progress.stopped_early = True
    log.validation(results, better, progress, cadence, trackers)
    if progress.stopped_early:
        trackers.text(
            f"stopping early: {metric} has not improved in {cadence.patience} evaluations"
        )
    return better
