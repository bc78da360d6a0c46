"""Which parameters weight decay applies to: kernels and embeddings, not biases and LayerNorms.

It is chosen by name, never by the number of dimensions.
"""

from __future__ import annotations

from typing import Any

import jax


def is_decayed(path: tuple[Any, ...]) -> bool:
    """Whether weight decay applies to the parameter at a tree path."""
    return path[-1].key in ("kernel", "embedding")


def decay_mask(params: Any) -> Any:
    """Returns `is_decayed` of every parameter: optax's `mask`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: is_decayed(path), params)
