"""Run control: which update is next, and what is due after it.

The order after update k never changes: log, evaluate (a new best model leaves as a folder), save.
So a checkpoint at k has seen everything that was due at k, and a resume starts with update k + 1.
The surprising thing: Python is ahead of the device (loop/in_flight.py), so an update whose loss is
not finite is noticed late; the step itself has left the parameters alone.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, NoReturn

import jax

from flaxbert.errors import InterruptedRun, NonFiniteError
from flaxbert.loop.in_flight import InFlight
from flaxbert.loop.progress import Clock, Progress, Sums
from flaxbert.loop.step import Batch, State, all_finite
from flaxbert.loop.writer import Writer
from flaxbert.storage.checkpoint import Checkpoints
from flaxbert.tasks import is_better

# What an evaluation says beside its metrics, also of a second set (samples_mm).
_NOT_METRICS = ("samples", "runtime", "steps_per_second")


@dataclasses.dataclass(frozen=True)
class Cadence:
    """When what is due, in updates."""

    total: int
    per_epoch: int
    log_every: int
    eval_every: int
    save_every: int
    patience: int
    nonfinite_limit: int
    best_metric: str

    def epoch(self, step: int) -> float:
        return step / self.per_epoch


@dataclasses.dataclass(frozen=True)
class Hooks:
    """What the loop calls; `train.py` puts the rooms together here."""

    batch: Callable[[int], tuple[Batch, dict[str, int]]]  # update -> arrays, host-side counts
    update: Callable[[State, Batch], tuple[State, dict[str, jax.Array]]]
    learning_rate: Callable[[int], float]
    evaluate: Callable[[Any], dict[str, Any]] | None  # parameters -> metrics; None: no data
    # (parameters, step, metrics, whether the present model/ is a committed checkpoint's) -> digest
    export: Callable[[Any, int, dict[str, Any], bool], str]
    started: float  # time.perf_counter() of this start
    run_facts: dict[str, Any]  # what else run.json records
    interrupted: Callable[[], bool]


def train(
    state: State,
    progress: Progress,
    cadence: Cadence,
    hooks: Hooks,
    checkpoints: Checkpoints,
    writer: Writer,
) -> State:
    """Runs the remaining updates and returns the final state; `progress` is kept up to date.

    Raises:
      NonFiniteError: too many updates in a row had a loss or gradient that is not finite.
      InterruptedRun: asked to stop; every finished update is saved.
      OSError: a checkpoint could not be written, also where a stop asked for it.
    """
    clock = Clock(progress, hooks.started)
    exported = _Exported()
    begun_at, warm_up = progress.step, progress.step + 1

    def read(update: int, sums: dict[str, Any], counts: dict[str, int]) -> None:
        _add(progress, sums, counts)
        if not sums["finite"]:
            _tell_skipped(update, sums, progress, cadence, writer)
            if progress.nonfinite_in_a_row >= cadence.nonfinite_limit:
                first = update - progress.nonfinite_in_a_row + 1
                give_up(
                    f"not finite in {progress.nonfinite_in_a_row} updates in a row (from update "
                    f"{first} on; the last: {_described(sums)}), all skipped: parameters are those "
                    "from before them",
                    "look at their data, or lower optim.learning_rate, or use model.dtype=float32",
                )

    def give_up(what: str, todo: str) -> NoReturn:
        checkpoints.wait()
        saved = checkpoints.last_commit.step if checkpoints.last_commit else begun_at
        stands = f"checkpoint {saved}, from before that" if saved else "there is no checkpoint yet"
        raise NonFiniteError(
            f"{what}. What stands: {stands}. The same command would meet the same updates again: "
            f"{todo}, in another workdir."
        )

    in_flight = InFlight(read)

    def settle() -> None:
        """Waits for the device: `progress` knows all updates afterwards."""
        in_flight.settle()
        progress.longest_update = max(progress.longest_update, in_flight.longest)
        clock.tick(warm=progress.step > warm_up)

    def check_parameters() -> None:
        if not all_finite(state):
            give_up(
                f"parameters are not finite any more after update {progress.step}, though every "
                "gradient was",
                "lower optim.learning_rate or optim.weight_decay",
            )

    def save() -> None:
        settle()
        check_parameters()
        writer.sync()
        clock.wall()
        begun = time.perf_counter()
        facts = dataclasses.asdict(progress)
        checkpoints.save(progress.step, state, {**hooks.run_facts, **facts})
        progress.saving_seconds += time.perf_counter() - begun
        exported.since_save = False

    def note_commit() -> None:
        """Tells the least grace period once it can be known, while the run goes on."""
        if checkpoints.last_commit is not None:
            first = not progress.longest_save
            progress.longest_save = max(progress.longest_save, checkpoints.last_commit.seconds)
            if first:
                progress.longest_update = max(progress.longest_update, in_flight.longest)
                writer.line(progress.least_grace)

    def stop() -> NoReturn:
        if not progress.step:
            raise InterruptedRun("stopped by a signal before the first update: nothing to save")
        save()
        checkpoints.wait()
        note_commit()
        raise InterruptedRun(
            f"stopped by a signal: update {progress.step} of {cadence.total} is saved in "
            f"{checkpoints.path_of(progress.step)} ({progress.least_grace})"
        )

    def conclude() -> None:
        """Does what is due after the update just sent."""
        step, last = progress.step, progress.step == cadence.total
        try:
            if hooks.evaluate is not None and (step % cadence.eval_every == 0 or last):
                settle()
                if progress.evaluated != step:
                    results = hooks.evaluate(state["params"])
                    clock.restart()
                    if _judge(results, progress, cadence, writer):
                        check_parameters()
                        checkpoints.wait()
                        _export(state["params"], results, cadence, progress, hooks, exported)
        except InterruptedRun:
            stop()  # the evaluation is dropped; a resume starts with it
        if step % cadence.save_every == 0 or last or progress.stopped_early:
            save()

    if progress.step:
        conclude()  # a resume: the interruption may have come in the middle of it
    while progress.step < cadence.total and not progress.stopped_early:
        batch, counts = hooks.batch(progress.step)
        in_flight.make_room()
        note_commit()
        if hooks.interrupted():
            stop()
        sent = time.perf_counter()
        state, sums = hooks.update(state, batch)
        progress.step += 1
        in_flight.add(progress.step, sums, counts, sent)
        writer.advance()
        if progress.step == warm_up:
            settle()  # the first update of a start warms caches up: not part of the steady state
        if progress.step % cadence.log_every == 0 or progress.step == cadence.total:
            settle()
            _log(progress, cadence, hooks, writer)
        conclude()
    checkpoints.wait()
    note_commit()
    clock.wall()
    return state


def _add(progress: Progress, sums: dict[str, Any], counts: dict[str, int]) -> None:
    for total in (progress.window, progress.total):
        total.examples += counts["examples"]
        total.real_tokens += counts["real_tokens"]
        total.computed_tokens += counts["computed_tokens"]
    if not sums["finite"]:
        progress.nonfinite_updates += 1
        progress.nonfinite_in_a_row += 1
        return
    progress.nonfinite_in_a_row = 0
    for total in (progress.window, progress.total):
        total.updates += 1
        total.loss += float(sums["loss"]) / float(sums["normalizer"])
        total.gradient_norm += float(sums["gradient_norm"])


def _described(sums: dict[str, Any]) -> str:
    loss, norm = float(sums["loss"]) / float(sums["normalizer"]), float(sums["gradient_norm"])
    return f"loss {loss:.4g}, gradient norm {norm:.4g}"


def _tell_skipped(
    update: int, sums: dict[str, Any], progress: Progress, cadence: Cadence, writer: Writer
) -> None:
    in_a_row, in_all = progress.nonfinite_in_a_row, progress.nonfinite_updates
    values = {
        "skipped_loss": float(sums["loss"]) / float(sums["normalizer"]),
        "skipped_gradient_norm": float(sums["gradient_norm"]),
        "skipped_in_a_row": in_a_row,
        "skipped_updates": in_all,
    }
    writer.scalars(update, cadence.epoch(update), "train", values)
    writer.line(
        f"update {update}: {_described(sums)}: skipped, {in_a_row} in a row, {in_all} in all"
    )


def _log(progress: Progress, cadence: Cadence, hooks: Hooks, writer: Writer) -> None:
    window, step = progress.window, progress.step
    seconds = max(window.seconds, 1e-9)
    values = {
        "loss": window.loss / window.updates if window.updates else float("nan"),
        "gradient_norm": window.gradient_norm / window.updates if window.updates else float("nan"),
        "learning_rate": hooks.learning_rate(step - 1),
        "padding_share": 1 - window.real_tokens / window.computed_tokens,
        "nonfinite_updates": progress.nonfinite_updates,
        "samples_per_second": window.examples / seconds,
        "tokens_per_second": window.real_tokens / seconds,
    }
    writer.scalars(step, cadence.epoch(step), "train", values)
    skipped = f"  skipped {progress.nonfinite_updates}" if progress.nonfinite_updates else ""
    writer.line(
        f"update {step}/{cadence.total}  epoch {cadence.epoch(step):.2f}  "
        f"loss {values['loss']:.4f}  lr {values['learning_rate']:.2e}  "
        f"{values['samples_per_second']:.1f} sequences/s  "
        f"{values['tokens_per_second']:.0f} tokens/s  "
        f"padding {100 * values['padding_share']:.1f} %{skipped}"
    )
    progress.window = Sums()


def _judge(results: dict[str, Any], progress: Progress, cadence: Cadence, writer: Writer) -> bool:
    """Records an evaluation; returns whether it is the best so far, and notes when to stop."""
    step, metric = progress.step, cadence.best_metric
    progress.evaluated = step
    progress.results = {**results, "epoch": cadence.epoch(step), "step": step}
    metrics = {name: v for name, v in results.items() if not name.startswith(_NOT_METRICS)}
    scalars = metrics | {"samples_per_second": results["samples_per_second"]}
    writer.scalars(step, cadence.epoch(step), "validation", scalars)
    # NaN logits have an accuracy too: a loss that is not finite is no model to keep.
    odd = [name for name in ("loss", metric) if not math.isfinite(results[name])]
    if odd:
        writer.line(f"validation {odd[0]} is not finite: this model cannot become the best")
    best = progress.best["value"] if progress.best else None
    better = not odd and is_better(metric, results[metric], best)
    if better:
        progress.evaluations_without_gain = 0
    else:
        progress.evaluations_without_gain += 1
        if cadence.patience and progress.evaluations_without_gain >= cadence.patience:
            progress.stopped_early = True
    shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    writer.line(
        f"validation after update {step}: {shown}  ({results['samples']} examples, "
        f"{results['samples_per_second']:.0f}/s){'  best so far' if better else ''}"
    )
    if progress.stopped_early:
        writer.line(f"stopping early: {metric} has not improved in {cadence.patience} evaluations")
    return better


@dataclasses.dataclass
class _Exported:
    since_save: bool = False  # whether model/ is newer than the last checkpoint


def _export(
    params: Any,
    results: dict[str, Any],
    cadence: Cadence,
    progress: Progress,
    hooks: Hooks,
    exported: _Exported,
) -> None:
    """The new best leaves as a folder, complete before a checkpoint names it."""
    step = progress.step
    scalars = {name: v for name, v in results.items() if not name.startswith(_NOT_METRICS)}
    digest = hooks.export(params, step, scalars, not exported.since_save)
    exported.since_save = True
    progress.best = {
        "step": step,
        "value": results[cadence.best_metric],
        "results": progress.results,
        "weights": digest,
    }
