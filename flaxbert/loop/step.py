"""One update as one compiled program: gradients of sums over micro-batches, then the optimizer.

Note: no mean is taken before the end. Losses and gradients are summed over micro-batches and
devices and divided once by the update's total weight, so accumulated, sharded and packed updates
equal the plain one.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from flaxbert.config import Loss
from flaxbert.heads import Head, Params, bind
from flaxbert.loop.agreement import all_said, said_sharding
from flaxbert.loop.mesh import (
    batch_sharding,
    gather_tables,
    kernels_for,
    moment_shardings,
    replicated,
    state_shardings,
)
from flaxbert.methods import Method, merged, split
from flaxbert.model.bert_config import BertConfig
from flaxbert.model.bert_model import INPUTS
from flaxbert.model.dropout import fold
from flaxbert.optim import Optimizer
from flaxbert.optim.shared.norms import norm_spread, norm_together

State = dict[str, Any]
Batch = dict[str, Any]

# For several TPUs, by their compiler's estimate of three layers of bert-base on v5e:
# * Without the first, small shards of parameters are gathered by an all-reduce from 64 chips on,
#   twice the bytes: all-reduces of 170 MiB; with it 85 MiB, and 85 MiB gathered.
# * Without the second, products of gathered kernels (fsdp) are computed in pieces as they arrive:
#   16.2 million cycles on 8 chips; whole 11.0, and the gathers overlap with other products.
_OPTIONS_FOR_TPUS = {
    "xla_tpu_prefer_async_allgather_to_allreduce": "true",
    "xla_tpu_enable_windowed_einsum_for_all_gather": "false",
}


def init_state(params: Params, mesh: Mesh, optimizer: Optimizer, method: Method) -> State:
    """Returns {"params", "frozen", "optimizer", "step"} on the mesh; string keys only.

    "params" are those that the method trains, "frozen" the others.
    """
    fresh = functools.partial(_fresh_state, optimizer, method)
    shardings = state_shardings(mesh, jax.eval_shape(fresh, params))
    # The state is donated to the first update: it must not share buffers with the caller's arrays.
    return jax.jit(fresh, out_shardings=shardings)(jax.tree.map(np.asarray, params))


def abstract_state(params: Params, mesh: Mesh, optimizer: Optimizer, method: Method) -> State:
    """Returns the shapes, dtypes and shardings of `init_state`'s result, without memory."""
    shapes = jax.eval_shape(functools.partial(_fresh_state, optimizer, method), params)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings(mesh, shapes),
    )


def _fresh_state(optimizer: Optimizer, method: Method, params: Params) -> State:
    trained, frozen = split(params, method)
    kept, step = optimizer.init(trained), jnp.zeros((), jnp.int32)
    return {"params": trained, "frozen": frozen, "optimizer": kept, "step": step}


@jax.jit
def all_finite(tree: Any) -> jax.Array:
    """Returns whether every number of a tree is finite.

    A parameter can overflow float32 although its gradient is finite (large decay and rate). Checked
    before each checkpoint and not inside the step, where it made the optimizer a third slower.
    """
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


def make_train_step(
    config: BertConfig,
    head: Head,
    *,
    mesh: Mesh,
    shardings: Any,
    optimizer: Optimizer,
    loss: Loss,
    dtype: str,
    agreeing: bool = False,
) -> Any:
    """Returns the jitted `train_step(state, batch, seeds) -> (state, sums)`; the state is donated.

    `shardings` are those of the state, which comes out as it went in. `batch` has the keys and
    shapes of `data.batches.train_batch`; `seeds` is {"dropout": uint32}. `sums` has "loss" (summed
    over the update), "normalizer" (what divides it), "gradient_norm" and "finite": an update whose
    loss or gradient is not finite leaves parameters and optimizer as they were, bit for bit. It is
    an update for the schedule ("step"), but not for Adam's bias correction ("optimizer/count").

    With `agreeing` a fourth argument is this process's votes, `agreement.Agreement.said`, and
    `sums["said"]` is the result of all.
    """

    kernels = kernels_for(mesh, config, dtype)

    def loss_sums(
        trained: Params, frozen: Params, micro: Batch, seed: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        whole = gather_tables(mesh, merged(trained, frozen))
        model = bind(config, whole, dtype, kernels)
        logits = model(*(micro[name] for name in INPUTS), seed)
        return head.loss_sums(
            logits,
            micro["labels"],
            micro["weights"].astype(logits.dtype),
            label_smoothing=loss.label_smoothing,
            class_weights=loss.class_weights,
        )

    gradients_of = jax.value_and_grad(loss_sums, has_aux=True)  # by what is trained

    def sums_over_micro_batches(state: State, batch: Batch, seed: jax.Array) -> Any:
        params = state["params"], state["frozen"]

        def add(total: Any, micro: Batch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, gradients_of(*params, micro, seed)), None

        first = jax.tree.map(lambda leaf: leaf[0], batch)
        if batch["input_ids"].shape[0] == 1:
            return gradients_of(*params, first, seed)
        shapes = jax.eval_shape(gradients_of, *params, first, seed)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.scan(add, zeros, batch)[0]

    def train_step(
        state: State, batch: Batch, seeds: dict[str, jax.Array], *said: jax.Array
    ) -> tuple[State, dict]:
        params, step = state["params"], state["step"]
        moments = moment_shardings(mesh, params)

        def spread(tree: Params) -> Params:
            """Shards parameters or gradients like their moments."""
            if mesh.shape["data"] == 1:
                return tree
            return jax.lax.with_sharding_constraint(tree, moments)

        seed = fold(seeds["dropout"], step)
        (total, normalizer), gradients = sums_over_micro_batches(state, batch, seed)
        # An update may have nothing to learn from, such as rows without a word: its loss is 0.
        normalizer = jnp.where(normalizer == 0, jnp.ones_like(normalizer), normalizer)
        gradients = spread(gradients)
        with jax.named_scope("gradient_norm"):
            if mesh.size == 1:
                norm = norm_together(gradients, normalizer)
            else:
                norm = norm_spread(moments, gradients, normalizer)
        finite = jnp.isfinite(total) & jnp.isfinite(norm)
        with jax.named_scope("optimizer"):
            params, kept = optimizer.apply(
                spread(params),
                state["optimizer"],
                gradients,
                step=step,
                norm=norm,
                normalizer=normalizer,
                finite=finite,
            )
        state = {**state, "params": params, "optimizer": kept, "step": step + 1}
        sums = {"loss": total, "normalizer": normalizer, "gradient_norm": norm, "finite": finite}
        if said:
            sums["said"] = all_said(*said)
        return state, sums

    everywhere = replicated(mesh)
    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(
            shardings,
            batch_sharding(mesh, micro_batches=True),
            everywhere,
            *([said_sharding(mesh)] if agreeing else []),
        ),
        out_shardings=(shardings, everywhere),
    )


def compile_step(
    step: Any, state: State, batch: Batch, seeds: dict[str, Any], *said: jax.Array
) -> Any:
    """Compiles the step for the shapes of a whole batch, before training."""

    def shape(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(np.shape(leaf), np.asarray(leaf).dtype)

    lowered = step.lower(state, jax.tree.map(shape, batch), seeds, *said)
    (device, *others) = jax.tree.leaves(state)[0].sharding.device_set
    if device.platform != "tpu" or not others:
        return lowered.compile()
    try:
        return lowered.compile(_OPTIONS_FOR_TPUS)
    except Exception as error:
        if "No such compile option" not in str(error):
            raise
        return lowered.compile()  # another compiler version: the same program, more communication
