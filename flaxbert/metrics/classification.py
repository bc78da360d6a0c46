"""Metrics as pure functions of whole arrays in float64, equal to scikit-learn and SciPy.

Note: they never see batches. Averages of per-batch averages are wrong for every metric here when
batches differ in size, and F1 or a correlation has no per-batch meaning at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

SCORES = ("precision", "recall", "f1")

MATRIX_LABELS = 200  # with more of them a report has no confusion matrix, but
CONFUSIONS = 1000  # as many pairs at most


def ratio(part: float | np.number, whole: float | np.number) -> float:
    """part / whole, 0 when there is nothing to divide by (scikit-learn's zero_division=0)."""
    return float(part) / float(whole) if whole else 0.0


def sigmoid(x: Float[np.ndarray, ...]) -> Float[np.ndarray, ...]:
    """1 / (1 + exp(-x)) without overflow."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


def softmax(logits: Float[np.ndarray, "N C"]) -> Float[np.ndarray, "N C"]:
    """exp(x) / sum(exp(x)) of each row, without overflow."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True, initial=-np.inf))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def by_name(row: Float[np.ndarray, " C"], names: Sequence[str], top_k: int) -> dict[str, float]:
    """Returns {name: value} of all (0), or of the `top_k` greatest, the greatest first."""
    if not top_k:
        return dict(zip(names, map(float, row), strict=True))
    best = map(int, np.argsort(-row, kind="stable")[:top_k])
    return {names[i]: float(row[i]) for i in best}


def confusion_matrix(
    actual: Int[np.ndarray, " N"], predicted: Int[np.ndarray, " N"], classes: int
) -> Int[np.ndarray, "C C"]:
    """Returns counts[actual, predicted]."""
    flat = np.bincount(actual.astype(np.int64) * classes + predicted, minlength=classes**2)
    return flat.reshape(classes, classes)


def accuracy(confusion: Int[np.ndarray, "C C"]) -> float:
    return ratio(np.trace(confusion), confusion.sum())


def f1_per_class(confusion: Int[np.ndarray, "C C"]) -> Float[np.ndarray, " C"]:
    """2 TP / (2 TP + FP + FN) of each class; 0 where a class is neither present nor predicted."""
    hits, counts = np.diag(confusion), confusion.sum(axis=0) + confusion.sum(axis=1)
    return np.array([ratio(2 * h, c) for h, c in zip(hits, counts, strict=True)])


def label_scores(hits: int, predicted: int, actual: int) -> dict[str, float]:
    """Precision, recall, F1 and support (how often the label occurs); 0 where undefined."""
    return {
        "precision": ratio(hits, predicted),
        "recall": ratio(hits, actual),
        "f1": ratio(2 * hits, predicted + actual),
        "support": int(actual),
    }


def count_report(names: Sequence[str], counts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Returns {"labels": {name: scores}, "macro", "weighted"}; the means are 0 without labels.

    `counts` are hits, predictions and occurrences of each label. The macro mean gives each label
    the same weight, the weighted mean its support.
    """
    each = {name: label_scores(*three) for name, *three in zip(names, *counts, strict=True)}

    def mean(score: str, weights: Sequence[int]) -> float:
        values = [scores[score] for scores in each.values()]
        return ratio(sum(v * w for v, w in zip(values, weights, strict=True)), sum(weights))

    return {
        "labels": each,
        "macro": {score: mean(score, [1] * len(each)) for score in SCORES},
        "weighted": {score: mean(score, counts[2]) for score in SCORES},
    }


def label_report(confusion: Int[np.ndarray, "C C"], names: Sequence[str]) -> dict[str, Any]:
    """Returns {"labels": {name: scores}, "macro", "weighted", "confusion_matrix": {"labels",
    "counts"}}; counts[actual][predicted] in the order of the names.

    With more than MATRIX_LABELS the matrix is replaced by "confusions", see `worst_confusions`.
    """
    counts = (np.diag(confusion), confusion.sum(axis=0), confusion.sum(axis=1))
    report = count_report(names, [column.tolist() for column in counts])
    if len(names) > MATRIX_LABELS:
        return report | {"confusions": worst_confusions(confusion, names, CONFUSIONS)}
    matrix = {"labels": list(names), "counts": confusion.tolist()}
    return report | {"confusion_matrix": matrix}


def worst_confusions(
    confusion: Int[np.ndarray, "C C"], names: Sequence[str], most: int
) -> list[dict[str, Any]]:
    """Returns the most frequent errors as [{"actual", "predicted", "count"}, ...]."""
    pairs = np.argwhere(confusion)
    actual, predicted = pairs[pairs[:, 0] != pairs[:, 1]].T
    counts = confusion[actual, predicted]
    order = np.argsort(-counts, kind="stable")[:most]
    return [
        {"actual": names[actual[i]], "predicted": names[predicted[i]], "count": int(counts[i])}
        for i in order
    ]


def mean_of_present(per_class: Float[np.ndarray, " C"], confusion: Int[np.ndarray, "C C"]) -> float:
    """Mean over the classes that occur or are predicted, as f1_score(average="macro")."""
    present = (confusion.sum(axis=0) + confusion.sum(axis=1)) > 0
    return float(np.mean(per_class[present])) if present.any() else 0.0


def matthews(confusion: Int[np.ndarray, "C C"]) -> float:
    """The multi-class Matthews correlation coefficient (Gorodkin 2004); 0 when undefined."""
    hits = float(np.trace(confusion))
    actual, predicted = (confusion.sum(axis=axis).astype(np.float64) for axis in (1, 0))
    total = actual.sum()
    covariance = hits * total - actual @ predicted
    spread = (total**2 - predicted @ predicted) * (total**2 - actual @ actual)
    return float(covariance / np.sqrt(spread)) if spread > 0 else 0.0


def pearson(x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"]) -> float:
    """Pearson's r; NaN when either side is constant or there are fewer than two rows."""
    if len(x) < 2:
        return float("nan")
    # Asked of the values: x - x.mean() of a constant is often a rounding error away from 0.
    if np.all(x == x[0]) or np.all(y == y[0]):
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    # Normalised one by one: the product of the two norms may underflow where neither does.
    norm_x, norm_y = np.sqrt(x @ x), np.sqrt(y @ y)
    if norm_x == 0 or norm_y == 0:
        return float("nan")
    return float(np.clip((x / norm_x) @ (y / norm_y), -1.0, 1.0))


def spearman(x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"]) -> float:
    """Spearman's rho: Pearson's r of the ranks, ties sharing their mean rank."""
    if np.isnan(x).any() or np.isnan(y).any():  # has no rank
        return float("nan")
    return pearson(_ranks(x), _ranks(y))


def _ranks(x: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    _, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts).astype(np.float64)
    return (last - (counts - 1) / 2)[place]
