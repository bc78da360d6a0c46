"""AdamW with PyTorch's semantics, over a state of plain nested dicts.

Decay is chosen by name, never by the number of dimensions: kernels and embeddings decay, biases and
LayerNorms do not. The surprising thing: the learning rate of the very first update is 0 when there
is a warm-up, as in transformers' `get_linear_schedule_with_warmup`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from flaxbert.config import Optim

Schedule = Callable[[Any], Any]

# torch.nn.utils.clip_grad_norm_ divides by (norm + 1e-6).
_CLIP_EPS = 1e-6


def warmup_steps(warmup: float, total: int) -> int:
    """Returns the updates of the warm-up: a fraction of all (rounded up), or a number."""
    return math.ceil(total * warmup) if warmup < 1 else round(warmup)


def make_schedule(optim: Optim, total: int) -> Schedule:
    """Returns step (from 0) -> learning rate, as transformers' schedules of that name.

    `total` is the number of updates of the run.
    """
    rate, warm = optim.learning_rate, warmup_steps(optim.warmup, total)
    left = max(1, total - warm)
    after = {
        "linear": lambda: optax.schedules.linear_schedule(rate, 0.0, left),
        "cosine": lambda: optax.schedules.cosine_decay_schedule(rate, left),
        "constant": lambda: optax.schedules.constant_schedule(rate),
    }[optim.schedule]()
    if not warm:
        return after
    ramp = optax.schedules.linear_schedule(0.0, rate, warm)
    return optax.schedules.join_schedules([ramp, after], [warm])


def is_decayed(path: tuple[Any, ...]) -> bool:
    """Whether weight decay applies to the parameter at a tree path."""
    return path[-1].key in ("kernel", "embedding")


def init_optimizer(params: Any) -> dict[str, Any]:
    """Returns {"count", "mu", "nu"}: updates applied, and both moments (zeros)."""
    zeros = lambda: jax.tree.map(jnp.zeros_like, params)  # noqa: E731 - two separate copies
    return {"count": jnp.zeros((), jnp.int32), "mu": zeros(), "nu": zeros()}


def norm_together(gradients: Any, normalizer: Float[Array, ""]) -> Float[Array, ""]:
    """Returns the norm of all gradients over the normalizer, for one device.

    Columns first, and their sums of all gradients at once: a scalar of each, as optax takes them,
    is two launches for each on a GPU, a quarter of those of a small update.
    """
    columns = [
        jnp.sum(jnp.square(leaf), axis=0) if leaf.ndim > 1 else jnp.square(leaf)
        for leaf in jax.tree.leaves(gradients)
    ]
    # The barrier, or XLA makes of it the scalars again.
    norm = jnp.sqrt(jnp.sum(jax.lax.optimization_barrier(jnp.concatenate(columns))))
    # Not before: XLA would write out the quotients. Class weights are bounded (config.py), so that
    # no square leaves float32.
    return norm / normalizer


def norm_spread(shardings: Any, gradients: Any, normalizer: Float[Array, ""]) -> Float[Array, ""]:
    """Returns the same for gradients that are spread over several devices as the shardings say.

    Each device adds up its parts of all gradients that are spread alike, and that one sum is
    exchanged: a scalar of each gradient, as optax takes them, is a message of each.
    """
    flat, leaves = jax.tree.leaves(shardings), jax.tree.leaves(gradients)
    mesh, specs = flat[0].mesh, [sharding.spec for sharding in flat]
    spread_over = [_axes_of(mesh, spec) for spec in specs]

    def local(parts: list[jax.Array]) -> jax.Array:
        sums: dict[tuple[str, ...], Any] = {}
        for axes, part in zip(spread_over, parts, strict=True):
            sums[axes] = sums.get(axes, 0) + jnp.sum(jnp.square(part))
        totals = [jax.lax.psum(total, axes) if axes else total for axes, total in sums.items()]
        return jnp.sum(jnp.stack(totals))

    over_all = jax.shard_map(local, mesh=mesh, in_specs=(specs,), out_specs=P(), check_vma=False)
    return jnp.sqrt(over_all(leaves)) / normalizer


def _axes_of(mesh: Mesh, spec: P) -> tuple[str, ...]:
    """Returns the mesh axes that an array is spread over, in the mesh's order."""
    names = [axes if isinstance(axes, tuple) else (axes,) for axes in spec if axes]
    named = {name for axes in names for name in axes}
    return tuple(axis for axis, size in mesh.shape.items() if size > 1 and axis in named)


def apply_gradients(
    optim: Optim,
    rate: Float[Array, ""],
    params: Any,
    optimizer: dict[str, Any],
    gradients: Any,
    norm: Float[Array, ""],
    finite: Bool[Array, ""],
    normalizer: Float[Array, ""],
) -> tuple[Any, dict[str, Any]]:
    """Returns parameters and moments after torch's clip_grad_norm_ and one torch AdamW update.

    The gradients still have to be divided by the normalizer, `norm` is that of the result.

    Where the update is not `finite` they come out as they went in, bit for bit. That is decided for
    each moment before the parameter reads it: deciding afterwards made XLA copy both moments, twice
    the time of the whole optimizer on a CPU.
    """
    clip = jnp.minimum(1.0, optim.clip_norm / (norm + _CLIP_EPS)) if optim.clip_norm else 1.0
    scale = clip / normalizer
    count = jnp.where(finite, optimizer["count"] + 1, optimizer["count"])
    # Before the first update that is finite both corrections are 0, and nothing is divided by them.
    correct1, correct2 = (1 - beta ** count.astype(norm.dtype) for beta in (optim.b1, optim.b2))

    rates = (scale, rate, correct1, correct2, finite)

    def update(path: tuple[Any, ...], *arrays: Array) -> tuple[Array, Array, Array]:
        return _adamw(optim, is_decayed(path), rates, *arrays)

    done = jax.tree_util.tree_map_with_path(
        update, params, optimizer["mu"], optimizer["nu"], gradients
    )
    params, mu, nu = jax.tree.transpose(jax.tree.structure(params), None, done)
    return params, {"count": count, "mu": mu, "nu": nu}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _adamw(
    optim: Optim,
    decayed: bool,
    rates: tuple[Any, ...],
    param: Array,
    mu: Array,
    nu: Array,
    gradient: Array,
) -> tuple[Array, Array, Array]:
    """Updates one parameter and its moments; traced once for each shape."""
    scale, rate, correct1, correct2, finite = rates

    def moment(beta: float, old: Array, new: Array) -> Array:
        return jnp.where(finite, beta * old + (1 - beta) * new, old)

    mu = moment(optim.b1, mu, gradient * scale)
    nu = moment(optim.b2, nu, jnp.square(gradient * scale))
    direction = (mu / correct1) / (jnp.sqrt(nu / correct2) + optim.eps)
    decay = optim.weight_decay if decayed else 0.0
    step = rate.astype(param.dtype) * (direction + decay * param)
    return jnp.where(finite, param - step, param), mu, nu
