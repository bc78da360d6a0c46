"""The values and lines that are logged about updates and evaluations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flaxbert.loop.cadence import Cadence
from flaxbert.loop.progress import Progress, Sums
from flaxbert.track import Trackers

# Prefixes of an evaluation's results that are not metrics, also of a second set (samples_mm).
_NOT_METRICS = ("samples", "runtime", "steps_per_second")


def described(sums: dict[str, Any]) -> str:
    """Returns loss and gradient norm of an update as text."""
    loss, norm = float(sums["loss"]) / float(sums["normalizer"]), float(sums["gradient_norm"])
    return f"loss {loss:.4g}, gradient norm {norm:.4g}"


def skipped(
    update: int, sums: dict[str, Any], progress: Progress, cadence: Cadence, trackers: Trackers
) -> None:
    """Logs a skipped update, whose loss or gradient is not finite."""
    in_a_row, in_all = progress.nonfinite_in_a_row, progress.nonfinite_updates
    values = {
        "skipped_loss": float(sums["loss"]) / float(sums["normalizer"]),
        "skipped_gradient_norm": float(sums["gradient_norm"]),
        "skipped_in_a_row": in_a_row,
        "skipped_updates": in_all,
    }
    trackers.scalars(update, cadence.epoch(update), "train", values)
    trackers.text(
        f"update {update}: {described(sums)}: skipped, {in_a_row} in a row, {in_all} in all"
    )


def window(
    progress: Progress,
    cadence: Cadence,
    learning_rate: Callable[[int], Any],
    utilisation: Callable[[int, int, float], dict[str, float]],
    trackers: Trackers,
) -> None:
    """Logs the updates since the last such line, and resets their sums."""
    sums, step = progress.window, progress.step
    seconds = max(sums.seconds, 1e-9)
    values = {
        "loss": sums.loss / sums.updates if sums.updates else float("nan"),
        "gradient_norm": sums.gradient_norm / sums.updates if sums.updates else float("nan"),
        "learning_rate": float(learning_rate(step - 1)),
        "padding_share": 1 - sums.real_tokens / sums.computed_tokens,
        "nonfinite_updates": progress.nonfinite_updates,
        "samples_per_second": sums.examples / seconds,
        "tokens_per_second": sums.real_tokens / seconds,
        **utilisation(sums.real_tokens, sums.attended_keys, seconds),
    }
    trackers.scalars(step, cadence.epoch(step), "train", values)
    speed = f"{values['model_flops_per_second'] / 1e9:.0f} GFLOP/s"
    if "mfu" in values:
        speed = f"MFU {100 * values['mfu']:.1f} %"
    skipped = f"  skipped {progress.nonfinite_updates}" if progress.nonfinite_updates else ""
    trackers.text(
        f"update {step}/{cadence.total}  epoch {cadence.epoch(step):.2f}  "
        f"loss {values['loss']:.4f}  lr {values['learning_rate']:.2e}  "
        f"{values['samples_per_second']:.1f} sequences/s  "
        f"{values['tokens_per_second']:.0f} tokens/s  {speed}  "
        f"padding {100 * values['padding_share']:.1f} %{skipped}"
    )
    progress.window = Sums()


def validation(
    results: dict[str, Any], better: bool, progress: Progress, cadence: Cadence, trackers: Trackers
) -> None:
    """Logs an evaluation, and whether it is `better` than all before."""
    step, metrics = progress.step, metrics_of(results)
    scalars = metrics | {"samples_per_second": results["samples_per_second"]}
    trackers.scalars(step, cadence.epoch(step), "validation", scalars)
    shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    trackers.text(
        f"validation after update {step}: {shown}  ({results['samples']} examples, "
        f"{results['samples_per_second']:.0f}/s){'  best so far' if better else ''}"
    )


def metrics_of(results: dict[str, Any]) -> dict[str, float]:
    """Returns the metrics among the results of an evaluation."""
    return {name: v for name, v in results.items() if not name.startswith(_NOT_METRICS)}
