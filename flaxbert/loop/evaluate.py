"""Loss and metrics of a whole split: every example exactly once, no averages of averages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxbert.config import Loss
from flaxbert.loop.predict import Batch, Forward, predict_logits
from flaxbert.model.heads import Params
from flaxbert.tasks import Task


def evaluate(
    forward: Forward,
    params: Params,
    batches: Iterable[Batch],
    labels: np.ndarray,
    *,
    task: Task,
    loss: Loss,
    stop: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Returns {"loss", the task's metrics, "samples", "runtime", "samples_per_second"}.

    The loss is the training objective (with smoothing and class weights), over the whole split.
    """
    start = time.perf_counter()
    logits = predict_logits(forward, params, batches, len(labels), stop)
    results = scores(task, logits, labels, loss)
    seconds = time.perf_counter() - start
    return {
        **results,
        "samples": len(labels),
        "runtime": seconds,
        "samples_per_second": len(labels) / seconds,
    }


def scores(task: Task, logits: np.ndarray, labels: np.ndarray, loss: Loss) -> dict[str, Any]:
    """Returns the loss and the task's metrics of logits that are already there."""
    total, normalizer = jax.device_get(
        task.loss_sums(
            jnp.asarray(logits),
            jnp.asarray(labels),
            jnp.ones(len(labels), logits.dtype),
            label_smoothing=loss.label_smoothing,
            class_weights=loss.class_weights,
        )
    )
    return {"loss": float(total) / float(normalizer), **task.metrics(logits, labels)}
