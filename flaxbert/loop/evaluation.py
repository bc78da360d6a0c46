"""Loss and metrics of a whole split: every example exactly once, no averages of averages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxbert.config import Loss
from flaxbert.data.batches import Examples
from flaxbert.heads import Head
from flaxbert.loop.forward import Batch, Forward, predict_logits
from flaxbert.model.binding import Params


def evaluate(
    forward: Forward,
    params: Params,
    batches: Iterable[Batch],
    examples: Examples,
    *,
    head: Head,
    names: Sequence[str],
    loss: Loss,
    after_batch: Callable[[int], object] = lambda sequences: None,
) -> dict[str, float]:
    """Returns {"loss", the head's metrics, "samples", "runtime" (seconds) and speeds}.

    The loss is the training objective (with smoothing and class weights), over the whole split.
    `after_batch` is called with the number of sequences of every batch, and may raise.
    """
    stopwatch = Stopwatch(after_batch)
    outputs = predict_logits(forward, params, batches, examples.outputs, stopwatch)
    answers = head.answers(outputs, examples)
    return scores(head, answers, examples, names, loss) | stopwatch.results(examples.count)


class Stopwatch:
    """Counts batches and seconds since its creation; call it after every batch."""

    def __init__(self, after_batch: Callable[[int], object] = lambda examples: None) -> None:
        self._after_batch = after_batch
        self._batches = 0
        self._start = time.perf_counter()

    def __call__(self, examples: int) -> None:
        self._batches += 1
        self._after_batch(examples)

    def results(self, samples: int) -> dict[str, float]:
        """Returns "samples", "runtime" and the two speeds under the names of the Trainer."""
        seconds = time.perf_counter() - self._start
        return {
            "samples": samples,
            "runtime": seconds,
            "samples_per_second": samples / seconds,
            "steps_per_second": self._batches / seconds,
        }


def scores(
    head: Head, answers: np.ndarray, examples: Examples, names: Sequence[str], loss: Loss
) -> dict[str, Any]:
    """Returns the loss and the head's metrics of computed logits."""
    gold = head.gold(examples)
    total, normalizer = jax.device_get(
        head.loss_sums(
            jnp.asarray(answers),
            jnp.asarray(gold),
            jnp.ones(len(gold), answers.dtype),
            label_smoothing=loss.label_smoothing,
            class_weights=loss.class_weights,
        )
    )
    metrics = head.metrics(answers, examples, names)
    return {"loss": float(total) / float(normalizer), **metrics}
