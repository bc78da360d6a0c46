"""Adafactor (Shazeer and Stern 2018, arXiv 1804.04235), as optax.adafactor: needs little memory.

For a large matrix only row and column means of the second moment are kept, and no first moment.
Steps are relative to the size of the parameters, so learning rates are larger than AdamW's: 1e-3 is
usual. Weight decay is multiplied by the learning rate, as with every optimizer here but not by
default in optax.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import optax

from flaxbert.optim.shared.decay import decay_mask


@dataclasses.dataclass(frozen=True)
class Options:
    decay_rate: float = 0.8  # the second moment's decay after t updates is 1 - t ** -decay_rate
    clipping_threshold: float = 1.0  # root mean square of an array's step; 0 = no clipping
    min_dim_size_to_factor: int = 128  # matrices with a smaller side keep their whole moment
    multiply_by_parameter_scale: bool = True  # steps relative to each array's root mean square


RANGES = {
    "decay_rate": (0, 10, False),
    "clipping_threshold": (0, 1e9, True),
    "min_dim_size_to_factor": (1, 1_000_000, True),
}


def make(
    options: Options, learning_rate: Any, weight_decay: float
) -> optax.GradientTransformationExtraArgs:
    return optax.adafactor(
        learning_rate,
        options.min_dim_size_to_factor,
        options.decay_rate,
        multiply_by_parameter_scale=options.multiply_by_parameter_scale,
        clipping_threshold=options.clipping_threshold or None,
        weight_decay_rate=weight_decay * learning_rate,
        weight_decay_mask=decay_mask,
    )
