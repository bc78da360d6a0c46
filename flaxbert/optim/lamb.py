"""LAMB (You et al. 2020, arXiv 1904.00962), as optax.lamb: Adam for large batches.

The step of each array is scaled by the ratio of its norm to the step's, decay included.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import optax

from flaxbert.optim.shared.decay import decay_mask


@dataclasses.dataclass(frozen=True)
class Options:
    b1: float = 0.9  # decay of the first moment
    b2: float = 0.999  # decay of the second moment
    eps: float = 1e-6  # added to the root of the second moment


RANGES = {"b1": (0, 0.9999999, True), "b2": (0, 0.9999999, True), "eps": (0, 1, False)}


def make(
    options: Options, learning_rate: Any, weight_decay: float
) -> optax.GradientTransformationExtraArgs:
    return optax.lamb(
        learning_rate,
        options.b1,
        options.b2,
        options.eps,
        weight_decay=weight_decay,
        mask=decay_mask,
    )
