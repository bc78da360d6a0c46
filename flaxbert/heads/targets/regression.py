"""One number per example: mean squared error, Pearson and Spearman correlation.

A model that was trained elsewhere may also answer with several numbers, which are not scored, or
with a number that a cross-encoder passes through a sigmoid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flaxbert.errors import ModelFileError
from flaxbert.metrics import classification as scores
from flaxbert.model.bert_config import BertConfig

MAIN_METRIC = "loss"
CSV_COLUMNS = ("value",)

_ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Sigmoid": lambda x: scores.sigmoid(x.astype(np.float64)).astype(x.dtype),
    "Identity": lambda x: x,
}

_QUANTILES = ("min", "25 %", "median", "75 %", "max")


def activation_for(config: BertConfig) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
    """Returns what transformers' pipeline and sentence-transformers apply to the outputs.

    Nothing where the problem type is regression. Otherwise there is one output, and config.json may
    name a class of torch.nn for it; without a name it is a sigmoid, which the second part tells.

    Raises:
      ModelFileError: it names another class.
    """
    if config.problem_type == "regression":
        return _ACTIVATIONS["Identity"], ""
    stated = config.output_activation
    if stated is None:
        return _ACTIVATIONS["Sigmoid"], (
            "has one output and no problem_type: its answers go through a sigmoid, as in "
            "transformers' pipeline (for the number itself set problem_type to regression in its "
            "config.json)"
        )
    module, _, name = stated.rpartition(".")
    if name not in _ACTIVATIONS or not f"{module}.".startswith("torch.nn."):
        expected = " or ".join(f"torch.nn.{name}" for name in _ACTIVATIONS)
        raise ModelFileError(
            f"config.json names {stated!r:.200} as the activation of the output: expected "
            f"{expected}."
        )
    return _ACTIVATIONS[name], ""


def encode(targets: Sequence[float], names: Sequence[str]) -> Float[np.ndarray, " N"]:
    """Returns the numbers; `names` is the single name of the output."""
    return np.array(targets, np.float32)


def loss_sums(
    logits: Float[Array, "*B 1"],
    labels: Float[Array, "*B"],
    weights: Float[Array, "*B"],
    *,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] = (),
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns the two sums of torch.nn.MSELoss(reduction="mean").

    Raises ValueError for smoothing or class weights, which do not apply to numbers.
    """
    if label_smoothing or class_weights:
        raise ValueError("label smoothing and class weights do not apply to regression")
    error = logits[..., 0] - labels.astype(logits.dtype)
    return jnp.sum(jnp.square(error) * weights), jnp.sum(weights)


def metrics(logits: Float[np.ndarray, "N 1"], labels: Float[np.ndarray, " N"]) -> dict[str, float]:
    """combined_score is the mean of both correlations, as for STS-B."""
    predicted, actual = logits[..., 0].astype(np.float64), labels.astype(np.float64)
    pearson, spearman = scores.pearson(predicted, actual), scores.spearman(predicted, actual)
    return {
        "pearson": pearson,
        "spearmanr": spearman,
        "combined_score": (pearson + spearman) / 2,
        "mse": float(np.mean(np.square(predicted - actual))),
        "mae": float(np.mean(np.abs(predicted - actual))),
    }


def report(
    logits: Float[np.ndarray, "N 1"], labels: Float[np.ndarray, " N"], names: Sequence[str]
) -> dict[str, Any]:
    """Returns what the errors (prediction - target) look like, and both ranges."""
    predicted, actual = logits[..., 0].astype(np.float64), labels.astype(np.float64)
    error = predicted - actual
    spread = float(np.sum(np.square(actual - actual.mean())))
    return {
        "error": _summary(error),
        "absolute_error": _summary(np.abs(error)),
        "prediction": _summary(predicted),
        "target": _summary(actual),
        "r2": 1 - float(np.sum(np.square(error))) / spread if spread else float("nan"),
    }


def _summary(values: Float[np.ndarray, " N"]) -> dict[str, float]:
    points = zip(_QUANTILES, np.quantile(values, [0, 0.25, 0.5, 0.75, 1]), strict=True)
    quantiles = {name: float(value) for name, value in points}
    return {"mean": float(values.mean()), "std": float(values.std()), **quantiles}


def readable(
    logits: Float[np.ndarray, "N 1"], names: Sequence[str], top_k: int = 0
) -> list[dict[str, Any]]:
    """Returns {"value"} per row; of several outputs {"values": {name: number}}."""
    if len(names) > 1:
        return [{"values": dict(zip(names, map(float, row), strict=True))} for row in logits]
    return [{"value": float(value)} for value in logits[..., 0]]
