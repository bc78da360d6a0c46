"""The training loop: updates, and after each of them logging, evaluation and checkpoints when due.

The order after update k is always: log, evaluate (a new best model is exported), save. So a
checkpoint at k contains everything that was due at k, and a resume starts with update k + 1.
Note: Python is ahead of the device (loop/in_flight.py), so it notices an update whose loss is not
finite one or two updates later; the step itself has already skipped it.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, NoReturn

from flaxbert.errors import InterruptedRun, ModelFileError, NonFiniteError, StorageError
from flaxbert.heads import is_better
from flaxbert.loop import log
from flaxbert.loop.agreement import SAVING, STOP
from flaxbert.loop.cadence import Cadence
from flaxbert.loop.in_flight import InFlight
from flaxbert.loop.progress import Clock, Progress
from flaxbert.loop.step import Batch, State, all_finite
from flaxbert.methods import params_of
from flaxbert.run.training import Training
from flaxbert.storage import compiled
from flaxbert.storage.checkpoint import Checkpoints
from flaxbert.track import Trackers


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
      InterruptedRun: a stop was requested; every finished update is saved.
      ModelFileError, StorageError: a checkpoint could not be written in two attempts.
    """
    return _Loop(training, state, progress, checkpoints, trackers).run()


@dataclasses.dataclass
class _Loop:
    """The loop of one start of a run, from a fresh or restored state."""

    training: Training
    state: State
    progress: Progress
    checkpoints: Checkpoints
    trackers: Trackers
    exported_since_save: bool = False  # whether model/ is newer than the last checkpoint
    save_failed: bool = False  # whether the last save that ended has failed
    stopping: bool = False  # whether the processes have agreed to stop
    all_saved: bool | None = None  # whether all processes ended the last save; None: one process

    def __post_init__(self) -> None:
        self.cadence = self.training.cadence
        self.in_flight = InFlight(self.read)
        self.clock = Clock(self.progress, self.training.started)
        self.begun_at = self.progress.step
        self.all_saved = False if self.training.several else None

    def run(self) -> State:
        progress, cadence = self.progress, self.cadence
        if progress.step:
            self.after_update()  # a resume: the run may have been interrupted before it was done
        while progress.step < cadence.total and not progress.stopped_early:
            batch, counts = self.training.batch(progress.step)
            self.in_flight.make_room()
            self.check_save()
            if self.stopping or self.training.interrupted:
                self.stop()
            self.update(batch, counts)
            self.after_update()
        self.finish_saving()
        self.clock.wall()
        return self.state

    def update(self, batch: Batch, counts: dict[str, int]) -> None:
        """Sends one update to the device, and logs the finished ones when that is due."""
        progress = self.progress
        sent = time.perf_counter()
        self.state, sums = self.training.update(self.state, batch)
        progress.step += 1
        self.in_flight.add(progress.step, sums, counts, sent)
        self.trackers.advance()
        if progress.step == self.begun_at + 1:
            self.settle()  # it warms up caches: not part of the steady state
            seconds, told = time.perf_counter() - self.training.started, compiled.told()
            about = f" ({told})" if told else ""
            self.trackers.text(f"first update after {seconds:.1f} s{about}")
        if progress.step % self.cadence.log_every == 0 or progress.step == self.cadence.total:
            self.settle()
            rate, utilisation = self.training.learning_rate, self.training.utilisation
            log.window(progress, self.cadence, rate, utilisation, self.trackers)

    def after_update(self) -> None:
        """Evaluates and saves if that is due after the update just sent."""
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
        # First: a repeated save must not record half of this evaluation, and model/ must not change
        # during a save.
        self.finish_saving()
        if self.progress.evaluated == self.progress.step:
            return
        results = evaluate(params_of(self.state))
        self.clock.restart()
        better = judge(results, self.progress, self.cadence, self.trackers)
        if better:
            self.check_parameters()
            self.export(results)

    def export(self, results: dict[str, Any]) -> None:
        """Exports the new best model as a folder, complete before a checkpoint names it."""
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

    def settle(self) -> None:
        """Waits for the device: `progress` knows all updates afterwards."""
        self.in_flight.settle()
        self.clock.tick(warm=self.progress.step > self.begun_at + 1)

    def read(self, update: int, sums: dict[str, Any], counts: dict[str, int]) -> None:
        """Counts a finished update; ends the run if too many were skipped."""
        progress = self.progress
        self.training.beat()
        if "said" in sums:
            self.stopping = self.stopping or bool(sums["said"][STOP])
            self.all_saved = not sums["said"][SAVING]
        progress.longest_update = max(progress.longest_update, self.in_flight.longest)
        progress.add(sums, counts)
        if sums["finite"]:
            return
        log.skipped(update, sums, progress, self.cadence, self.trackers)
        if progress.nonfinite_in_a_row >= self.cadence.nonfinite_limit:
            first = update - progress.nonfinite_in_a_row + 1
            self.give_up(
                f"loss or gradient not finite in {progress.nonfinite_in_a_row} updates in a row "
                f"(from update {first} on; the last: {log.described(sums)}); all were skipped, the "
                "parameters are those from before them",
                "check the data, lower optim.learning_rate, or use model.dtype=float32",
            )

    def check_parameters(self) -> None:
        if not all_finite(self.state):
            self.give_up(
                f"parameters are no longer finite after update {self.progress.step}, although "
                "every gradient was",
                "lower optim.learning_rate or optim.weight_decay",
            )

    def give_up(self, what: str, todo: str) -> NoReturn:
        self.checkpoints.wait()
        commit = self.checkpoints.last_commit
        saved = commit.step if commit else self.begun_at
        newest = f"The newest checkpoint is {saved}" if saved else "There is no checkpoint yet"
        raise NonFiniteError(
            f"{what}. {newest}. The same command would compute the same updates again: {todo}, in "
            "another workdir."
        )

    # Saving

    def save(self) -> None:
        """Starts a save of the current state, after the previous one has ended."""
        self.check_save(wait=True)
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
            self.all_saved = False  # the processes spoke of the previous save
        progress.saving_seconds += time.perf_counter() - begun

    def finish_saving(self) -> None:
        """Waits for the last save, and for its repetition if it failed."""
        self.check_save(wait=True)
        self.check_save(wait=True)

    def check_save(self, *, wait: bool = False) -> None:
        """Checks whether a save has ended (or waits for it); repeats a failed one once, at once.

        Raises:
          ModelFileError, StorageError: the repetition has failed too.
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
        if not ended:
            return
        self.save_failed = False
        progress, commit = self.progress, self.checkpoints.last_commit
        if commit:
            first = not progress.longest_save
            progress.longest_save = max(progress.longest_save, commit.seconds)
            if first:
                self.trackers.text(progress.grace_period)

    def stop(self) -> NoReturn:
        progress = self.progress
        if not progress.step:
            raise InterruptedRun("stopped by a signal before the first update: nothing to save")
        self.save()
        self.finish_saving()
        raise InterruptedRun(
            f"stopped by a signal: update {progress.step} of {self.cadence.total} is saved in "
            f"{self.checkpoints.path_of(progress.step)} ({progress.grace_period})"
        )


def judge(
    results: dict[str, Any], progress: Progress, cadence: Cadence, trackers: Trackers
) -> bool:
    """Records an evaluation; returns whether it is the best so far, and decides on early stop."""
    step, metric = progress.step, cadence.best_metric
    progress.evaluated = step
    progress.results = {**results, "epoch": cadence.epoch(step), "step": step}
    # NaN logits can have a finite accuracy, so the loss is checked too.
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
