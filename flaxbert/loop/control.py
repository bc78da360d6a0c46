"""Run control: which update is next, and what is due after it.

The order after update k never changes: log, evaluate (a new best model leaves as a folder), save.
So a checkpoint at k has seen everything that was due at k, and a resume starts with update k + 1.
The surprising thing: device results are read late. Sums wait in a list until a log line, an
evaluation or a checkpoint needs them, so the device never waits for Python.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax

from flaxbert.errors import InterruptedRun, NonFiniteError
from flaxbert.loop.step import Batch, State
from flaxbert.loop.writer import Writer
from flaxbert.storage.checkpoint import Checkpoints
from flaxbert.tasks import is_better

# What an evaluation says beside its metrics, also of a second set (samples_mm).
_NOT_METRICS = ("samples", "runtime", "steps_per_second")


@dataclasses.dataclass
class Sums:
    """Running totals over updates; all but the seconds are a function of the run alone."""

    updates: int = 0
    loss: float = 0.0  # sum over updates of each update's mean loss
    gradient_norm: float = 0.0
    examples: int = 0
    real_tokens: int = 0
    computed_tokens: int = 0
    seconds: float = 0.0  # evaluation and compilation apart; used for log lines


@dataclasses.dataclass
class Progress:
    """Where a run stands; run.json of a checkpoint holds exactly this (and who wrote it)."""

    step: int = 0  # finished updates
    window: Sums = dataclasses.field(default_factory=Sums)  # since the last log line
    total: Sums = dataclasses.field(default_factory=Sums)
    steady_seconds: float = 0.0  # without the first update of each start
    steady_examples: int = 0
    wall_seconds: float = 0.0  # everything included; what a kill cut off after a save is not seen
    best: dict[str, Any] | None = None  # {"step", "value", "results"}
    evaluated: int = 0  # update after which the last evaluation ran
    results: dict[str, Any] | None = None  # of the last evaluation
    evaluations_without_gain: int = 0
    nonfinite_in_a_row: int = 0
    nonfinite_updates: int = 0
    stopped_early: bool = False

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Progress:
        fields = {field.name for field in dataclasses.fields(cls)}
        known = {name: value for name, value in values.items() if name in fields}
        for name in ("window", "total"):
            known[name] = Sums(**known[name])
        return cls(**known)


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
    """
    clock = _Clock(progress, hooks.started)
    exported = _Exported()
    warm_up = progress.step + 1
    pending: list[tuple[dict[str, jax.Array], dict[str, int]]] = []

    def settle() -> None:
        """Reads all waiting sums, which waits for the device."""
        for sums, counts in pending:
            _add(progress, jax.device_get(sums), counts, cadence)
        pending.clear()
        clock.tick(warm=progress.step > warm_up)

    def save() -> None:
        settle()
        writer.sync()
        clock.wall()
        facts = dataclasses.asdict(progress)
        checkpoints.save(progress.step, state, {**hooks.run_facts, **facts})
        exported.since_save = False

    def conclude() -> None:
        """Does what is due after the update just finished, and stops if asked to."""
        step, last = progress.step, progress.step == cadence.total
        try:
            if hooks.evaluate is not None and (step % cadence.eval_every == 0 or last):
                settle()
                if progress.evaluated != step:
                    results = hooks.evaluate(state["params"])
                    clock.restart()
                    if _judge(results, progress, cadence, writer):
                        checkpoints.wait()
                        _export(state["params"], results, cadence, progress, hooks, exported)
        except InterruptedRun:
            save()  # the evaluation was dropped; a resume starts with it
            checkpoints.wait()
            raise
        last = last or progress.stopped_early
        if step % cadence.save_every == 0 or last:
            save()
        if hooks.interrupted() and not last:
            save()
            checkpoints.wait()
            raise InterruptedRun(f"stopped by a signal after update {step} of {cadence.total}")

    if progress.step:
        conclude()  # a resume: the interruption may have come in the middle of it
    while progress.step < cadence.total and not progress.stopped_early:
        batch, counts = hooks.batch(progress.step)
        state, sums = hooks.update(state, batch)
        pending.append((sums, counts))
        progress.step += 1
        writer.advance()
        if progress.step == warm_up:
            settle()  # the first update of a start warms caches up: not part of the steady state
        if progress.step % cadence.log_every == 0 or progress.step == cadence.total:
            settle()
            _log(progress, cadence, hooks, writer)
        conclude()
    checkpoints.wait()
    clock.wall()
    return state


def _add(
    progress: Progress, sums: dict[str, Any], counts: dict[str, int], cadence: Cadence
) -> None:
    for total in (progress.window, progress.total):
        total.examples += counts["examples"]
        total.real_tokens += counts["real_tokens"]
        total.computed_tokens += counts["computed_tokens"]
    if not bool(sums["finite"]):
        progress.nonfinite_updates += 1
        progress.nonfinite_in_a_row += 1
        if progress.nonfinite_in_a_row >= cadence.nonfinite_limit:
            raise NonFiniteError(
                f"the loss or its gradient was not finite in {progress.nonfinite_in_a_row} updates "
                f"in a row (loss {float(sums['loss'])}, gradient norm "
                f"{float(sums['gradient_norm'])}). Parameters were left as they were before. Lower "
                "optim.learning_rate, or use model.dtype=float32."
            )
        return
    progress.nonfinite_in_a_row = 0
    for total in (progress.window, progress.total):
        total.updates += 1
        total.loss += float(sums["loss"]) / float(sums["normalizer"])
        total.gradient_norm += float(sums["gradient_norm"])


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
    better = is_better(metric, results[metric], progress.best["value"] if progress.best else None)
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


class _Clock:
    """Adds up time: training without compilation and evaluation, and wall time.

    A stretch of training ends at `tick`; `restart` forgets what passed since (an evaluation)."""

    def __init__(self, progress: Progress, started: float) -> None:
        self._progress = progress
        self._last = time.perf_counter()
        self._wall = started
        self._examples = progress.total.examples

    def tick(self, *, warm: bool) -> None:
        """Counts the time since the last tick; as steady state once the start is `warm`."""
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
