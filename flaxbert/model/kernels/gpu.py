"""Kernels for one NVIDIA GPU: what XLA would spread over many passes through memory.

Two places of a layer move more than they compute: attention and the end of each block. Here each is
one kernel, and products are rounded before their bias: half the bytes to write and to read again.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from flaxbert.model.kernels import Kernels, Projection, gpu_attention, gpu_norm
from flaxbert.model.matmul import dense


@functools.cache
def are_written() -> bool:
    """Whether this JAX writes the kernels for the device at hand.

    Its way to Triton is deprecated: a JAX that has given it up trains without them, and says so.
    """
    vector, tokens = jnp.ones(64), jnp.ones((16, 64), jnp.bfloat16)
    ids = jnp.ones((1, 16), jnp.int32)
    qkv = tokens.reshape(1, 16, 1, 1, 64).repeat(3, axis=2)

    def both(qkv: Array, tokens: Array) -> Array:
        bias, bits = vector.repeat(3).reshape(3, 1, 64), ids.astype(jnp.uint32)
        context: Array = gpu_attention.attend_packed(qkv, bias, ids, ids, bits, 0.1)
        out: Array = gpu_norm.residual_norm(
            tokens, tokens, vector, vector, vector, bits[0], 0.1, 1e-12
        )
        return jnp.sum(context.astype(jnp.float32)) + jnp.sum(out.astype(jnp.float32))

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            jax.jit(jax.grad(both, argnums=(0, 1))).lower(qkv, tokens)
    except Exception as error:
        warnings.warn(
            f"this JAX does not write flaxbert's GPU kernels, updates take longer: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


def _product(x: Array, kernel: Array) -> Array:
    return dense(x, kernel, x.dtype).astype(x.dtype)


def _attention(
    x: Array,
    parts: tuple[Projection, Projection, Projection],
    sequence_ids: Array,
    position_ids: Array,
    bits: Array | None,
    rate: float,
    heads: int,
) -> Array:
    """All three in one product and one kernel, in which biases are added."""
    kernel = jnp.concatenate([part.kernel for part in parts], axis=1)
    bias = jnp.stack([part.bias for part in parts])
    sizes = (3, heads, bias.shape[1] // heads)
    context: Array = gpu_attention.attend_packed(
        _product(x, kernel).reshape(*x.shape[:2], *sizes),
        bias.reshape(sizes),
        sequence_ids,
        position_ids,
        jnp.zeros(x.shape[:2], jnp.uint32) if bits is None else bits,
        0.0 if bits is None else rate,
    )
    return context.reshape(*x.shape[:2], -1)


def _residual(
    x: Array,
    skip: Array,
    projection: Projection,
    scale: Array,
    shift: Array,
    bits: Array | None,
    rate: float,
    eps: float,
) -> Array:
    count = skip.shape[0] * skip.shape[1]
    out: Array = gpu_norm.residual_norm(
        _product(x, projection.kernel).reshape(count, -1),
        skip.reshape(count, -1),
        projection.bias,
        scale,
        shift,
        jnp.zeros(count, jnp.uint32) if bits is None else bits.reshape(count),
        0.0 if bits is None else rate,
        eps,
    )
    return out.reshape(skip.shape)


def _dense(
    x: Array, projection: Projection, activation: Callable[[Array], Array] | None = None
) -> Array:
    y = _product(x, projection.kernel) + projection.bias
    return (y if activation is None else activation(y)).astype(x.dtype)


KERNELS = Kernels(_attention, _residual, _dense)
