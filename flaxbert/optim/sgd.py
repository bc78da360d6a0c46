"""Stochastic gradient descent with momentum, as optax.sgd, and decoupled weight decay (SGDW of
Loshchilov and Hutter 2019)."""

from __future__ import annotations

import dataclasses
from typing import Any

import optax

from flaxbert.optim.shared.decay import decay_mask


@dataclasses.dataclass(frozen=True)
class Options:
    momentum: float = 0.9  # decay of the momentum; 0 = none, which needs no memory

    nesterov: bool = False  # look ahead (Sutskever et al. 2013)


RANGES = {"momentum": (0, 0.9999999, True)}


def make(
    options: Options, learning_rate: Any, weight_decay: float
) -> optax.GradientTransformationExtraArgs:
    has_momentum = [optax.trace(options.momentum, options.nesterov)] if options.momentum else []
    return optax.chain(
        *has_momentum,
        optax.add_decayed_weights(weight_decay, decay_mask),
        optax.scale_by_learning_rate(learning_rate),
    )
