"""The model's matrix products: inputs in the compute dtype, accumulation in at least float32.

This holds forward and backward. Note: JAX alone does not do it. A product of bfloat16 inputs with a
float32 result has a float32 cotangent, so JAX converts the other factor of each gradient to float32
too. In float32 and float64 nothing is changed, and forward-mode derivatives work.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Dtype = Any


def stable_dtype(dtype: Dtype) -> jnp.dtype:
    """Returns at least float32: for norms, softmax, activations and losses."""
    return jnp.promote_types(dtype, jnp.float32)


def is_half(dtype: Dtype) -> bool:
    return jnp.dtype(dtype).itemsize < 4


def precision_for(dtype: Dtype) -> jax.lax.Precision:
    """Returns full precision for float32; the default is bfloat16 passes on TPU, TF32 on GPU."""
    return jax.lax.Precision.DEFAULT if is_half(dtype) else jax.lax.Precision.HIGHEST


def dense(x: Float[Array, "*T I"], kernel: Float[Array, "I O"], dtype: Dtype) -> Array:
    """Returns x W in at least float32, from inputs in the compute dtype.

    The kernel's gradient has the kernel's dtype, not rounded to the compute dtype.
    """
    x = x.astype(dtype)
    return _half_dense(x, kernel) if is_half(dtype) else _dense(x, kernel)


def einsum(spec: str, a: Array, b: Array) -> Array:
    """Returns the einsum of two arrays of one dtype, at least float32.

    Each axis must appear in two of the three terms, so that the gradients are einsums too.

    """
    return _half_einsum(spec, a, b) if is_half(a.dtype) else _einsum(spec, a, b)


def _einsum(spec: str, a: Array, b: Array) -> Array:
    dtype = a.dtype
    return jnp.einsum(
        spec, a, b, precision=precision_for(dtype), preferred_element_type=stable_dtype(dtype)
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _half_einsum(spec: str, a: Array, b: Array) -> Array:
    return _einsum(spec, a, b)


def _half_einsum_forward(spec: str, a: Array, b: Array) -> tuple[Array, tuple[Array, Array]]:
    return _einsum(spec, a, b), (a, b)


def _half_einsum_backward(
    spec: str, saved: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    a, b = saved
    left, right, out = spec.replace("->", ",").split(",")
    g = cotangent.astype(a.dtype)
    to_a, to_b = _einsum(f"{out},{right}->{left}", g, b), _einsum(f"{out},{left}->{right}", g, a)
    return to_a.astype(a.dtype), to_b.astype(b.dtype)


_half_einsum.defvjp(_half_einsum_forward, _half_einsum_backward)


def _dense(x: Array, kernel: Array) -> Array:
    dtype = x.dtype
    return jnp.matmul(
        x,
        kernel.astype(dtype),
        precision=precision_for(dtype),
        preferred_element_type=stable_dtype(dtype),
    )


@jax.custom_vjp
def _half_dense(x: Array, kernel: Array) -> Array:
    return _dense(x, kernel)


def _half_dense_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _dense(x, kernel), (x, kernel)


def _half_dense_backward(saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    x, kernel = saved
    g = cotangent.astype(x.dtype)
    to_x = _einsum("...O,IO->...I", g, kernel.astype(x.dtype)).astype(x.dtype)
    to_kernel = _einsum("TI,TO->IO", x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1]))
    return to_x, to_kernel.astype(kernel.dtype)


_half_dense.defvjp(_half_dense_forward, _half_dense_backward)
