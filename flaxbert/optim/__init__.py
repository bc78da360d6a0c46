"""Optimizers: one file each, and these files are the registry; `optim.name` names one.

A file's `make(options, learning_rate, weight_decay)` returns an optax transformation for the rate
of the moment: `step` counts updates, so no state of an optimizer does it again. Its options are a
dataclass `Options` in the same file (flaxbert/registry.py). What all have in common is here: the
schedule, gradients that are summed and clipped, updates that are skipped because they are not
finite, and a state of plain nested dicts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from flaxbert.config import Optim
from flaxbert.errors import ConfigError
from flaxbert.optim.schedules import Schedule, make_schedule
from flaxbert.optim.shared.norms import clip_factor
from flaxbert.registry import member, options_for

# Nested dicts of arrays, string keys only
Tree = dict[str, Any]


class Fused(optax.GradientTransformationExtraArgs):
    """A transformation that does by itself what `Optimizer.apply` does for the others.

    Its `update` takes `scale`, which the gradients are still to be multiplied by, and `finite`:
    where that is false it returns -0.0 for every parameter, and the state as it was.
    """


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimizer with its schedule, and clipping by the global norm."""

    make: Callable[[Any], optax.GradientTransformationExtraArgs]  # of a learning rate
    schedule: Schedule
    clip_norm: float  # 0 = no clipping

    def init(self, params: Any) -> Tree:
        """Returns the state before the first update."""
        return _as_dict(self.make(0.0).init(params))

    def apply(
        self,
        params: Any,
        state: Any,
        gradients: Any,
        *,
        step: Int[Array, ""],
        norm: Float[Array, ""],
        normalizer: Float[Array, ""],
        finite: Bool[Array, ""],
    ) -> tuple[Any, Any]:
        """Returns parameters and state after update `step` (from 0).

        The gradients still have to be divided by the normalizer; `norm` is that of the result.
        Where the update is not `finite` all come out as they went in, bit for bit.
        """
        scale = clip_factor(norm, self.clip_norm) / normalizer
        # As a float: schedules divide, and an int32 step would make that float32 even under x64.
        rate = jnp.asarray(self.schedule(step.astype(scale.dtype)), scale.dtype)
        transformation: Any = self.make(rate)
        if isinstance(transformation, Fused):
            updates, state = transformation.update(
                gradients, state, params, scale=scale, finite=finite
            )
            return optax.apply_updates(params, updates), state
        like = jax.eval_shape(transformation.init, params)

        # The choice is around the whole: made for each array afterwards, XLA copies all of them.
        def update() -> tuple[Any, Any]:
            scaled = jax.tree.map(lambda leaf: leaf * scale, gradients)
            updates, new = transformation.update(scaled, _from_dict(like, state), params)
            return optax.apply_updates(params, updates), _as_dict(new)

        return jax.lax.cond(finite, update, lambda: (params, state))


def optimizer_for(optim: Optim, total: int) -> Optimizer:
    """Returns the optimizer that a config names, for a run of `total` updates."""
    module = member("optim", optim.name)
    options = options_for(module, optim)

    def make(rate: Any) -> optax.GradientTransformationExtraArgs:
        return module.make(options, rate, optim.weight_decay)

    return Optimizer(make, make_schedule(optim, total), optim.clip_norm)


def _as_dict(state: Any) -> Tree:
    """Returns the arrays of an optax state by the names on their paths.

    Places in a chain have no name: versions of optax may chain otherwise.
    """
    nested: Tree = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        *parents, last = _names(path)
        node = nested
        for name in parents:
            node = node.setdefault(name, {})
        if last in node:
            name = "/".join((*parents, last))
            raise ConfigError(
                f"config.optim.name: this optimizer has two arrays called {name} in its state, "
                "which a checkpoint cannot tell apart. Name another optimizer."
            )
        node[last] = leaf
    return nested


def _from_dict(like: Any, nested: Tree) -> Any:
    """Returns an optax state like another one, with the arrays that `_as_dict` has named."""

    def leaf(path: tuple[Any, ...], _: Any) -> Any:
        node = nested
        for name in _names(path):
            node = node[name]
        return node

    return jax.tree_util.tree_map_with_path(leaf, like)


def _names(path: tuple[Any, ...]) -> list[str]:
    """Returns the keys of dicts and the names of fields on a path."""
    named = (jax.tree_util.DictKey, jax.tree_util.GetAttrKey)
    return [str(getattr(p, "key", getattr(p, "name", ""))) for p in path if isinstance(p, named)]
