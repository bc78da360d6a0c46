"""Any number of labels per example: one sigmoid per label, micro F1, macro F1, subset accuracy.

Note: class weights are torch's `pos_weight` here (they weigh the positive term of each label), and
the mean is over examples and labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flaxbert.metrics import classification as scores

MAIN_METRIC = "f1"
CSV_COLUMNS = ("labels", "probabilities")

THRESHOLD = 0.5


def encode(targets: Sequence[Sequence[str]], names: Sequence[str]) -> Float[np.ndarray, "N C"]:
    """Returns 0/1 rows; a target is a list of names, possibly empty."""
    ids = {name: index for index, name in enumerate(names)}
    rows = np.zeros((len(targets), len(names)), np.float32)
    for row, target in zip(rows, targets, strict=True):
        row[[ids[name] for name in target]] = 1.0
    return rows


def loss_sums(
    logits: Float[Array, "*B C"],
    labels: Float[Array, "*B C"],
    weights: Float[Array, "*B"],
    *,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] = (),
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The two sums of torch.nn.BCEWithLogitsLoss(pos_weight, reduction="mean").

    Smoothing moves each 0/1 target towards 1/2 by the given share.
    """
    classes = logits.shape[-1]
    targets = labels.astype(logits.dtype) * (1 - label_smoothing) + 0.5 * label_smoothing
    per_class = jnp.asarray(class_weights or (1.0,) * classes, logits.dtype)
    positive = per_class * targets * jax.nn.log_sigmoid(logits)
    negative = (1 - targets) * jax.nn.log_sigmoid(-logits)
    loss = -jnp.sum(positive + negative, axis=-1) * weights
    return jnp.sum(loss), jnp.sum(weights) * classes


def metrics(logits: Float[np.ndarray, "N C"], labels: Float[np.ndarray, "N C"]) -> dict[str, float]:
    """F1 is micro-averaged; accuracy counts examples whose whole label set is right."""
    predicted = logits > 0  # sigmoid(x) > 1/2
    actual = labels > 0.5
    hits = np.sum(predicted & actual, axis=0)
    counts = np.sum(predicted, axis=0) + np.sum(actual, axis=0)
    each = zip(hits, counts, strict=True)
    return {
        "f1": scores.ratio(2 * hits.sum(), counts.sum()),
        "f1_macro": float(np.mean([scores.ratio(2 * h, c) for h, c in each])),
        "accuracy": float(np.mean(np.all(predicted == actual, axis=-1))),
    }


def report(
    logits: Float[np.ndarray, "N C"], labels: Float[np.ndarray, "N C"], names: Sequence[str]
) -> dict[str, Any]:
    """Returns {"labels": {name: scores}, "micro", "macro", "weighted"}."""
    predicted, actual = logits > 0, labels > 0.5
    counts = [
        np.sum(which, axis=0).astype(int).tolist()
        for which in (predicted & actual, predicted, actual)
    ]
    return {**scores.count_report(names, counts), "micro": scores.label_scores(*map(sum, counts))}


def readable(
    logits: Float[np.ndarray, "N C"], names: Sequence[str], top_k: int = 0
) -> list[dict[str, Any]]:
    """Returns {"labels", "probabilities": {name: p}} per row; labels are those above 1/2."""
    probabilities = scores.sigmoid(logits.astype(np.float64))
    return [
        {
            "labels": [name for name, p in zip(names, row, strict=True) if p > THRESHOLD],
            "probabilities": scores.by_name(row, names, top_k),
        }
        for row in probabilities
    ]
