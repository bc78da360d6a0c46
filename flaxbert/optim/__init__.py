"""Optimizers: one file each, and these files are the registry; `optim.name` names one.

A file's `make(options, learning_rate, weight_decay)` returns an optax transformation for the
learning rate of one update: the run's `step` drives the schedule, not the optimizer's state. Its
options are a dataclass `Options` in the same file (flaxbert/registry.py). Common to all, and here:
the schedule, division and clipping of summed gradients, skipped updates that are not finite, and a
state of plain nested dicts.

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
    """A transformation that scales gradients and skips updates itself.

    Its `update` takes `scale`, a factor for the gradients, and `finite`: if that is false it
    returns -0.0 for every parameter, and the unchanged state.
    """


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimizer with its schedule, and clipping by the global norm."""

    make: Callable[[Any], optax.GradientTransformationExtraArgs]  # for a learning rate
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

        The gradients are divided by the normalizer here; `norm` is that of the quotients. If the
        update is not `finite`, parameters and state stay unchanged, bit for bit.
        """
        scale = clip_factor(norm, self.clip_norm) / normalizer
        # A float: schedules divide, and an int32 step would give float32 even under x64.
        rate = jnp.asarray(self.schedule(step.astype(scale.dtype)), scale.dtype)
        transformation: Any = self.make(rate)
        if isinstance(transformation, Fused):
            updates, state = transformation.update(
                gradients, state, params, scale=scale, finite=finite
            )
            return optax.apply_updates(params, updates), state
        like = jax.eval_shape(transformation.init, params)

        # One condition around everything: a choice per array makes XLA copy all of them.
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

    Indices in a chain are left out: other versions of optax may chain differently.
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
    """Returns an optax state of the given structure with the arrays of `_as_dict`."""

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
