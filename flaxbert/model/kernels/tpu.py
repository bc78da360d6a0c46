"""Kernels for TPUs: attention by Pallas, and for the rest what the compiler is to keep.

It fuses nearly all of a layer into the products, but where it decides what to keep for the backward
pass it keeps float32 and computes much again. Note: optimization_barrier says what is kept, in half
precision: the sum that a LayerNorm reads with its mean and variance, and the slope of an activation
beside its value (the exact GELU's erf and exp are dear: once is enough).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from flaxbert.model.attention import attend
from flaxbert.model.dropout import dropout
from flaxbert.model.kernels import Kernels, Projection, tpu_attention
from flaxbert.model.kernels.tpu_sizes import serves
from flaxbert.model.matmul import dense, einsum, stable_dtype

# spread(function, inputs, outputs) is function on every device's parts of its arrays, which it gets
# after the number of the part of heads; a letter for each axis: r = rows, h = heads or features
# that are split by heads, "." = neither.
Spread = Callable[[Callable[..., Any], tuple[str, ...], tuple[str, ...]], Callable[..., Any]]

_TOKENS, _PLACES, _STATISTIC = "r.h", "r.", "rh.."


def kernels_of(spread: Spread, parts: int, interpret: bool = False) -> Kernels:
    """Returns the kernels for a mesh.

    Args:
      spread: see above.
      parts: over how many devices heads are split.
      interpret: run them as plain JAX; for tests.
    """
    attention = functools.partial(_attention, _OnMesh(spread, parts, interpret))
    return Kernels(attention, _residual, _dense)


class _OnMesh:
    """How kernels are run."""

    def __init__(self, spread: Spread, parts: int, interpret: bool) -> None:
        self.spread, self.parts, self.interpret = spread, parts, interpret

    def run(
        self,
        kernel: Callable[..., Any],
        heads: int,
        rate: float,
        outputs: tuple[str, ...],
        *arrays: Array,
    ) -> Any:
        """Runs a kernel of query, key, value, sequence ids, positions, bits and what follows."""
        each = heads // self.parts

        def local(part: Any, *arrays: Array) -> Any:
            q, k, v, sequences, positions, *rest = arrays
            positions = positions + part * each * 2**16
            options = {"heads": each, "rate": rate, "interpret": self.interpret}
            return tuple(kernel(q, k, v, sequences, positions, *rest, **options))

        inputs = (*[_TOKENS] * 3, *[_PLACES] * 3, _STATISTIC, _TOKENS)[: len(arrays)]
        return self.spread(local, inputs, outputs)(*arrays)


def _attention(
    mesh: _OnMesh,
    x: Array,
    parts: tuple[Projection, Projection, Projection],
    sequence_ids: Array,
    position_ids: Array,
    bits: Array | None,
    rate: float,
    heads: int,
) -> Array:
    products = [dense(x, part.kernel, x.dtype) for part in parts]
    if serves(x.shape[1], products[0].shape[-1] // mesh.parts, heads // mesh.parts):
        bits, rate = (
            (jnp.zeros_like(sequence_ids, jnp.uint32), 0.0) if bits is None else (bits, rate)
        )
        biases = [part.bias for part in parts]
        places = (sequence_ids, position_ids, bits)
        return _attend(mesh, heads, rate, x.dtype, tuple(products), tuple(biases), places)
    split = (*x.shape[:2], heads, -1)
    query, key, value = (
        (product + part.bias).astype(x.dtype).reshape(split)
        for product, part in zip(products, parts, strict=True)
    )
    return attend(
        query,
        key,
        value,
        query_sequences=sequence_ids,
        key_sequences=sequence_ids,
        key_positions=position_ids,
        rate=rate,
        bits=bits,
    ).reshape(*x.shape[:2], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _attend(
    mesh: _OnMesh,
    heads: int,
    rate: float,
    dtype: Any,
    products: tuple[Array, Array, Array],
    biases: tuple[Array, Array, Array],
    places: tuple[Array, Array, Array],
) -> Array:
    return _attend_forward(mesh, heads, rate, dtype, products, biases, places)[0]


def _attend_forward(
    mesh: _OnMesh,
    heads: int,
    rate: float,
    dtype: Any,
    products: tuple[Array, Array, Array],
    biases: tuple[Array, Array, Array],
    places: tuple[Array, Array, Array],
) -> tuple[Array, Any]:
    qkv = [(x + bias).astype(dtype) for x, bias in zip(products, biases, strict=True)]
    kernel = tpu_attention.attention_forward
    context, logsumexp = mesh.run(kernel, heads, rate, (_TOKENS, _STATISTIC), *qkv, *places)
    return context, (*qkv, *places, logsumexp)


def _attend_backward(
    mesh: _OnMesh, heads: int, rate: float, dtype: Any, saved: Any, cotangent: Array
) -> Any:
    outputs = (*[_TOKENS] * 3, "r.h")
    kernel = tpu_attention.attention_backward
    *gradients, sums = mesh.run(kernel, heads, rate, outputs, *saved, cotangent)
    products = tuple(gradient.astype(stable_dtype(dtype)) for gradient in gradients)
    return products, tuple(jnp.sum(sums, axis=0)), None


_attend.defvjp(_attend_forward, _attend_backward)


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
    y = dense(x, projection.kernel, x.dtype)
    return _residual_norm(y, skip, projection.bias, scale, shift, bits, rate, eps)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _residual_norm(
    y: Array,
    skip: Array,
    bias: Array,
    scale: Array,
    shift: Array,
    bits: Array | None,
    rate: float,
    eps: float,
) -> Array:
    """LayerNorm(dropout(y + bias) + skip) of a product that is not yet rounded."""
    return _norm_forward(y, skip, bias, scale, shift, bits, rate, eps)[0]


def _norm_forward(
    y: Array,
    skip: Array,
    bias: Array,
    scale: Array,
    shift: Array,
    bits: Array | None,
    rate: float,
    eps: float,
) -> tuple[Array, Any]:
    dtype = skip.dtype
    y = y + bias
    rounded = ((y if bits is None else dropout(y, rate, bits)) + skip).astype(dtype)
    x = rounded.astype(y.dtype)
    # In one pass beside the product, of what is rounded: its squares are exact to 1e-7 of them, and
    # a mean as large as the deviation itself costs no more than that.
    mean, square = (jnp.mean(value, axis=-1, keepdims=True) for value in (x, x * x))
    rounded, mean, square = jax.lax.optimization_barrier((rounded, mean, square))
    inverse = jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0) + eps)
    normal = (rounded.astype(y.dtype) - mean) * inverse
    return (normal * scale + shift).astype(dtype), (rounded, mean, inverse, scale, bits)


def _norm_backward(rate: float, eps: float, saved: Any, cotangent: Array) -> Any:
    rounded, mean, inverse, scale, bits = saved
    dtype = cotangent.dtype
    cotangent = cotangent.astype(mean.dtype)
    normal = (rounded.astype(mean.dtype) - mean) * inverse
    inner = cotangent * scale
    means = [jnp.mean(value, axis=-1, keepdims=True) for value in (inner, inner * normal)]
    to_sum = inverse * (inner - means[0] - normal * means[1])
    to_y = to_sum if bits is None else dropout(to_sum, rate, bits)
    to_bias, to_scale, to_shift = (
        jnp.sum(value, axis=(0, 1)) for value in (to_y, cotangent * normal, cotangent)
    )
    return to_y, to_sum.astype(dtype), to_bias, to_scale, to_shift, None


_residual_norm.defvjp(_norm_forward, _norm_backward)


def _dense(
    x: Array, projection: Projection, activation: Callable[[Array], Array] | None = None
) -> Array:
    y = dense(x, projection.kernel, x.dtype)
    if activation is None:
        return (y + projection.bias).astype(x.dtype)
    return _activate(activation, x.dtype, y, projection.bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _activate(activation: Callable[[Array], Array], dtype: Any, y: Array, bias: Array) -> Array:
    """The activation of a product that is not yet rounded, and its bias."""
    return activation(y + bias).astype(dtype)


def _activate_forward(
    activation: Callable[[Array], Array], dtype: Any, y: Array, bias: Array
) -> tuple[Array, Array]:
    x = y + bias
    value, slope = jax.jvp(activation, (x,), (jnp.ones_like(x),))
    return jax.lax.optimization_barrier((value.astype(dtype), slope.astype(dtype)))


def _activate_backward(
    activation: Callable[[Array], Array], dtype: Any, slope: Array, cotangent: Array
) -> tuple[Array, Array]:
    stable = stable_dtype(dtype)
    to_y = cotangent.astype(stable) * slope.astype(stable)
    return to_y, _sum_of_tokens(to_y.astype(dtype))


def _sum_of_tokens(x: Array) -> Array:
    """Sums all but the last axis, as a product where the compiler thinks that matrix units pay."""
    x = x.reshape(-1, x.shape[-1])
    return einsum("eT,TO->eO", jnp.ones((1, x.shape[0]), x.dtype), x)[0]


_activate.defvjp(_activate_forward, _activate_backward)
