"""Kinds of target: label shapes, loss sums, metrics and readable predictions, one file per kind.

A leaf: data and loop import it. The loop never asks which kind of target it trains; it calls the
functions of the `Task` protocol.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

PROBLEMS = ("single_label", "multi_label", "regression")

# transformers' names for them, in config.json.
HF_PROBLEM_TYPES = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}

# What a target may look like after reading a file: a name or id, a list of names, or a number.
Target = Any


@runtime_checkable
class Task(Protocol):
    """The functions that each file of this room defines."""

    MAIN_METRIC: str  # picks the best model unless the config names another

    @staticmethod
    def encode(targets: Sequence[Target], names: Sequence[str]) -> np.ndarray:
        """Returns the label array of targets that `data.check` has accepted."""
        ...

    @staticmethod
    def loss_sums(
        logits: jax.Array,
        labels: jax.Array,
        weights: jax.Array,
        *,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] = (),
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the loss summed over valid slots and what to divide it by."""
        ...

    @staticmethod
    def metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Returns the metrics of one whole split, in float64."""
        ...

    @staticmethod
    def report(logits: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
        """Returns scores in more detail, ready for JSON: per label, or about the errors."""
        ...

    @staticmethod
    def report_lines(report: dict[str, Any]) -> list[str]:
        """Returns a report as aligned lines for people."""
        ...

    @staticmethod
    def readable(logits: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
        """Returns one prediction record per row of the logits."""
        ...


# Metrics where less is better; every other one is better when greater.
_LOWER_IS_BETTER = frozenset({"loss", "mse", "mae"})


def task_for(problem: str) -> Task:
    """Returns the task module of "single_label", "multi_label" or "regression"."""
    if problem not in PROBLEMS:
        raise ValueError(f"problem: expected one of {', '.join(PROBLEMS)}, got {problem!r}")
    return importlib.import_module(f"flaxbert.heads.{problem}")  # type: ignore[return-value]


def problem_of(problem_type: str | None, num_labels: int) -> str:
    """Returns the kind of target of a checkpoint; without a stated one, a single output means
    regression, as in transformers."""
    for problem, name in HF_PROBLEM_TYPES.items():
        if name == problem_type:
            return problem
    return "regression" if num_labels == 1 else "single_label"


def is_better(metric: str, new: float, old: float | None) -> bool:
    """Whether `new` is strictly better than `old`; a value that is not finite never is."""
    if not np.isfinite(new):
        return False
    if old is None:
        return True
    return new < old if metric in _LOWER_IS_BETTER else new > old
