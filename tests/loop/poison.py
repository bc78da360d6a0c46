"""The real step on a tiny model, with one update poisoned, or computed and then taken back."""

from __future__ import annotations

import dataclasses
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxbert.config import Loss, Optim
from flaxbert.data.batches import plan_training, train_batch
from flaxbert.heads import head_named, init_params
from flaxbert.loop.mesh import make_mesh, state_shardings
from flaxbert.loop.step import init_state, make_train_step
from flaxbert.methods import Method
from flaxbert.optim import optimizer_for
from tests.loop.harness import BERT, ONE_DEVICE, examples

# A weight that asks for a NaN in the gradient alone. The loss sees 1 instead.
_BAD_GRADIENT = 2.0


@jax.custom_vjp
def _through(values: jax.Array, bad: jax.Array) -> jax.Array:
    return values


_through.defvjp(
    lambda values, bad: (values, bad),
    lambda bad, cotangent: (jnp.where(bad, jnp.nan, cotangent), None),
)


def _head() -> Any:
    real = head_named("single_label")

    def loss_sums(logits: Any, labels: Any, weights: Any, **options: Any) -> Any:
        asked = (weights == _BAD_GRADIENT).any()
        weights = jnp.where(weights == _BAD_GRADIENT, 1.0, weights)
        return real.loss_sums(_through(logits, asked), labels, weights, **options)

    return types.SimpleNamespace(loss_sums=loss_sums)


class Loop:
    """Runs `updates` updates in two micro-batches each; compiled once."""

    def __init__(self, updates: int) -> None:
        optimizer = optimizer_for(Optim(learning_rate=1e-3, warmup=0.2), updates)
        mesh = make_mesh(ONE_DEVICE, BERT)
        data = examples()
        plan = plan_training(
            data,
            batch_size=16,
            seed=1,
            steps=updates,
            packing="pack",
            accumulate=2,
            row_multiple=1,
            row_length=0,
        )
        plan = dataclasses.replace(plan, row_counts=plan.row_counts[-1:])
        params = jax.device_get(init_params(BERT, 0, "float32"))
        self._fresh = lambda: init_state(params, mesh, optimizer, Method())
        self._batches = [
            train_batch(data, plan, batch_size=16, seed=1, step=step) for step in range(updates)
        ]
        self._step = make_train_step(
            BERT,
            _head(),
            mesh=mesh,
            shardings=state_shardings(mesh, self._fresh()),
            optimizer=optimizer,
            loss=Loss(),
            dtype="float32",
        )

    def run(self, *, poisoned: int = 0, taken_back: int = 0, kind: str = "") -> Any:
        """Returns the final state; updates count from 1."""
        state = self._fresh()
        for update, batch in enumerate(self._batches, 1):
            if update == poisoned:
                batch = {**batch, "weights": _poison(batch["weights"], kind)}
            before = jax.tree.map(jnp.copy, state) if update == taken_back else None
            state, sums = self._step(state, batch, {"dropout": np.uint32(7)})
            if before is not None:
                state = {**before, "step": state["step"]}
            assert bool(sums["finite"]) == (update != poisoned)
        return state


def _poison(weights: np.ndarray, kind: str) -> np.ndarray:
    weights = weights.copy()
    last = tuple(axis[-1] for axis in np.nonzero(weights))  # a real example of a micro-batch
    if kind == "infinite loss":
        weights[weights > 0] = np.float32("inf")
    elif kind == "nan in a gradient":
        weights[last] = _BAD_GRADIENT
    elif kind == "one bad micro-batch":
        weights[0][weights[0] > 0] = np.nan
    else:
        weights[last] = np.nan
    return weights
