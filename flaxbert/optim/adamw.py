"""AdamW (Loshchilov and Hutter 2019) with PyTorch's semantics, fused for speed.

Its options are in the section `optim` itself.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flaxbert.config import Optim
from flaxbert.optim import Fused
from flaxbert.optim.shared.decay import is_decayed


def make(options: Optim, learning_rate: Float[Array, ""] | float, weight_decay: float) -> Fused:
    def init(params: Any) -> dict[str, Any]:
        zeros = lambda: jax.tree.map(jnp.zeros_like, params)  # noqa: E731 - two separate copies
        return {"count": jnp.zeros((), jnp.int32), "mu": zeros(), "nu": zeros()}

    def update(
        gradients: Any,
        state: dict[str, Any],
        params: Any,
        *,
        scale: Float[Array, ""],
        finite: Bool[Array, ""],
    ) -> tuple[Any, dict[str, Any]]:
        count = jnp.where(finite, state["count"] + 1, state["count"])
        # Before the first finite update both corrections are 0; the quotients are then unused.
        corrections = [1 - beta ** count.astype(scale.dtype) for beta in (options.b1, options.b2)]
        numbers = (scale, learning_rate, *corrections, finite)

        def leaf(path: tuple[Any, ...], *arrays: Array) -> tuple[Array, Array, Array]:
            return _adamw(options, weight_decay if is_decayed(path) else 0.0, numbers, *arrays)

        done = jax.tree_util.tree_map_with_path(leaf, params, state["mu"], state["nu"], gradients)
        updates, mu, nu = jax.tree.transpose(jax.tree.structure(params), None, done)
        return updates, {"count": count, "mu": mu, "nu": nu}

    return Fused(init, update)  # pyright: ignore[reportArgumentType] - more arguments than optax's


@functools.partial(jax.jit, static_argnums=(0, 1))
def _adamw(
    options: Optim,
    decay: float,
    numbers: tuple[Any, ...],
    param: Array,
    mu: Array,
    nu: Array,
    gradient: Array,
) -> tuple[Array, Array, Array]:
    """Returns one parameter's update and its new moments; traced once for each shape.

    `finite` selects each moment before the parameter reads it: selecting afterwards made XLA copy
    both moments, twice the time of the whole optimizer on a CPU.

    """
    scale, rate, correct1, correct2, finite = numbers

    def moment(beta: float, old: Array, new: Array) -> Array:
        return jnp.where(finite, beta * old + (1 - beta) * new, old)

    mu = moment(options.b1, mu, gradient * scale)
    nu = moment(options.b2, nu, jnp.square(gradient * scale))
    direction = (mu / correct1) / (jnp.sqrt(nu / correct2) + options.eps)
    step = rate.astype(param.dtype) * (direction + decay * param)
    return jnp.where(finite, -step, -0.0), mu, nu
