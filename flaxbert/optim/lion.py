"""Lion (Chen et al. 2023, arXiv 2302.06675), as optax.lion: updates by the sign of a momentum.

All parameters change by the same amount: learning rates are 3 to 10 times smaller than AdamW's, and
weight decay larger by the same factor.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import optax

from flaxbert.optim.shared.decay import decay_mask


@dataclasses.dataclass(frozen=True)
class Options:
    b1: float = 0.9  # weight of the momentum in a step, against the gradient

    b2: float = 0.99  # decay of the momentum


RANGES = {"b1": (0, 0.9999999, True), "b2": (0, 0.9999999, True)}


def make(
    options: Options, learning_rate: Any, weight_decay: float
) -> optax.GradientTransformationExtraArgs:
    return optax.lion(
        learning_rate, options.b1, options.b2, weight_decay=weight_decay, mask=decay_mask
    )
