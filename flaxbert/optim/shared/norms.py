"""The global norm of gradients, on one device and on several, and clipping by it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

# torch.nn.utils.clip_grad_norm_ divides by (norm + 1e-6).
_CLIP_EPS = 1e-6


def clip_factor(norm: Float[Array, ""], limit: float) -> Float[Array, ""]:
    """Returns the factor of torch's clip_grad_norm_ for gradients of this norm; limit 0 = none."""
    return jnp.minimum(1.0, limit / (norm + _CLIP_EPS)) if limit else jnp.ones_like(norm)


def norm_together(gradients: Any, normalizer: Float[Array, ""]) -> Float[Array, ""]:
    """Returns the norm of all gradients over the normalizer, for one device.

    Sums columns first, then those of all gradients together: one scalar per gradient, as in optax,
    takes two kernel launches each on a GPU, a quarter of those of a small update.
    """
    columns = [
        jnp.sum(jnp.square(leaf), axis=0) if leaf.ndim > 1 else jnp.square(leaf)
        for leaf in jax.tree.leaves(gradients)
    ]
    # Without the barrier XLA turns this into scalars again.
    norm = jnp.sqrt(jnp.sum(jax.lax.optimization_barrier(jnp.concatenate(columns))))
    # Divided last, or XLA would write out the quotients. Class weights are bounded (config.py), so
    # that squares fit float32.
    return norm / normalizer


def norm_spread(shardings: Any, gradients: Any, normalizer: Float[Array, ""]) -> Float[Array, ""]:
    """Returns the same for gradients sharded over several devices.

    Each device sums its shards of all gradients with the same sharding, and only these sums are
    all-reduced: one scalar per gradient, as in optax, would be one message each.
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
