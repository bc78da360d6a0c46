"""One label per example: softmax cross-entropy, accuracy, F1, Matthews correlation.

Note: the loss picks the label's column by a one-hot product, not by indexing: a gather on an array
that is spread over devices makes the compiler replicate it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flaxbert.metrics import classification as scores

MAIN_METRIC = "accuracy"
CSV_COLUMNS = ("label", "score", "probabilities")


def encode(targets: Sequence[Any], names: Sequence[str]) -> Int[np.ndarray, " N"]:
    """Returns label ids; every target is one of `names`."""
    ids = {name: index for index, name in enumerate(names)}
    return np.array([ids[target] for target in targets], np.int32)


def loss_sums(
    logits: Float[Array, "*B C"],
    labels: Int[Array, "*B"],
    weights: Float[Array, "*B"],
    *,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] = (),
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The two sums of torch.nn.CrossEntropyLoss(weight, label_smoothing, reduction="mean").

    Returns (sum of losses, sum of the class weights of the labels); their ratio is the mean.
    """
    classes = logits.shape[-1]
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    one_hot = jax.nn.one_hot(labels, classes, dtype=logits.dtype)
    per_class = jnp.asarray(class_weights or (1.0,) * classes, logits.dtype)
    # A sum, not a matrix product: accelerators round the inputs of those (bfloat16, TF32).
    label_weights = weights * jnp.sum(one_hot * per_class, axis=-1)
    loss = -jnp.sum(one_hot * log_probs, axis=-1) * label_weights
    if label_smoothing:
        uniform = -jnp.sum(log_probs * per_class, axis=-1) / classes * weights
        loss = (1 - label_smoothing) * loss + label_smoothing * uniform
    return jnp.sum(loss), jnp.sum(label_weights)


def metrics(logits: Float[np.ndarray, "N C"], labels: Int[np.ndarray, " N"]) -> dict[str, float]:
    """F1 is that of class 1 for two classes (as in GLUE), else the mean over classes (macro).

    Two classes also get combined_score, the mean of accuracy and F1, as for MRPC and QQP.
    """
    predicted = np.argmax(logits, axis=-1)
    confusion = scores.confusion_matrix(labels, predicted, logits.shape[-1])
    per_class = scores.f1_per_class(confusion)
    f1 = per_class[1] if len(per_class) == 2 else scores.mean_of_present(per_class, confusion)
    accuracy = scores.accuracy(confusion)
    combined = {"combined_score": (accuracy + float(f1)) / 2} if len(per_class) == 2 else {}
    return {
        "accuracy": accuracy,
        "f1": float(f1),
        "matthews_correlation": scores.matthews(confusion),
        **combined,
    }


def report(
    logits: Float[np.ndarray, "N C"], labels: Int[np.ndarray, " N"], names: Sequence[str]
) -> dict[str, Any]:
    """Returns the scores of each label, their means, and the confusion matrix."""
    predicted = np.argmax(logits, axis=-1)
    return scores.label_report(scores.confusion_matrix(labels, predicted, len(names)), names)


def readable(
    logits: Float[np.ndarray, "N C"], names: Sequence[str], top_k: int = 0
) -> list[dict[str, Any]]:
    """Returns {"label", "score", "probabilities": {name: p}} per row."""
    probabilities = scores.softmax(logits.astype(np.float64))
    best = np.argmax(logits, axis=-1)
    return [
        {
            "label": names[top],
            "score": float(row[top]),
            "probabilities": scores.by_name(row, names, top_k),
        }
        for top, row in zip(best, probabilities, strict=True)
    ]
