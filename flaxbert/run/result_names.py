"""Numbers and files of a run under the names of the Hugging Face Trainer and its run_glue."""

from __future__ import annotations

from typing import Any

from flaxbert.loop.progress import Progress

# Without the split's prefix, as in the Trainer's files.
_PLAIN = ("epoch", "step")


def train_results(progress: Progress, samples: int, epoch: float) -> dict[str, Any]:
    """Returns train_loss, train_runtime (seconds, all starts), train_samples and speeds.

    train_samples_per_second is the steady state: from the first update after compilation to the
    last, with data, packing, logging and saves, without compilation and evaluation. A stop waits
    for at most the longest update and save; train_saving_runtime is how long training waited for
    saves.
    """
    total, wall = progress.total, max(progress.wall_seconds, 1e-9)
    return {
        "epoch": epoch,
        "train_loss": total.loss / max(total.updates, 1),
        "train_runtime": progress.wall_seconds,
        "train_samples": samples,
        "train_samples_per_second": progress.steady_examples / max(progress.steady_seconds, 1e-9),
        "train_samples_per_second_overall": total.examples / wall,
        "train_steps_per_second": progress.step / wall,
        "train_steps": progress.step,
        "train_nonfinite_updates": progress.nonfinite_updates,
        "train_longest_update_runtime": progress.longest_update,
        "train_longest_save_runtime": progress.longest_save,
        "train_saving_runtime": progress.saving_seconds,
    }


def merged(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Merges the results of several sets: {"": ..., "mm": ...} gives accuracy and accuracy_mm, the
    names of transformers' run_glue for MNLI."""
    return {
        f"{name}_{suffix}" if suffix else name: value
        for suffix, values in results.items()
        for name, value in values.items()
    }


def named_for(split: str, results: dict[str, Any]) -> dict[str, Any]:
    """Prefixes metric names: eval_accuracy for validation, else <split>_accuracy."""
    prefix = "eval" if split == "validation" else split
    return {name if name in _PLAIN else f"{prefix}_{name}": v for name, v in results.items()}


def predictions_name(task: str, split: str, suffix: str = "") -> str:
    """Returns the file name of a split's predictions: run_glue's for the test split, where the
    second set of MNLI is mnli-mm."""
    parts = [task, *([suffix] if suffix else []), *([split] if split != "test" else [])]
    return f"predict_results_{'-'.join(parts)}.txt"
