"""Compares kernels with the plain code that they stand for, on the device at hand.

In half precision against float32, forward and backward: rounding takes about 3e-3 of the norm here,
a wrong mask or scale 0.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flaxbert.model.attention import attend
from flaxbert.model.dropout import dropout
from flaxbert.model.kernels import Kernels, Projection

_ROUNDING = 0.02
_RATE, _HEADS, _WIDTH, _ROWS = 0.1, 4, 256, 2

# Blocks of tokens that are full and not, one and several.
LENGTHS = (88, 200, 128, 256)


def wrong_kernels(kernels: Kernels, lengths: Sequence[int] = LENGTHS) -> list[str]:
    """Returns "the attention kernel at 200 tokens" of each that differs by more than rounding."""
    random = np.random.default_rng(0)
    wrong = [
        f"the attention kernel at {length} tokens{'' if has_dropout else ' without dropout'}"
        for length in lengths
        for has_dropout in (True, False)
        if _attention_differs(kernels, random, length, has_dropout)
    ]
    if _residual_differs(kernels, random):
        wrong.append("the kernel of residual and LayerNorm")
    if _dense_differs(kernels, random):
        wrong.append("the kernel of a linear layer and its activation")
    return wrong


def _attention_differs(
    kernels: Kernels, random: np.random.Generator, length: int, has_dropout: bool
) -> bool:
    tokens = jnp.tile(jnp.arange(length, dtype=jnp.int32), (_ROWS, 1))
    ids, places = tokens // 25, tokens % 25
    bits = _bits(random, length) if has_dropout else None

    def kernel(x: Array, parts: Any) -> Array:
        return kernels.attention(x, parts, ids, places, bits, _RATE, _HEADS)

    def plain(x: Array, parts: Any) -> Array:
        qkv = (_linear(x, part).reshape(_ROWS, length, _HEADS, -1) for part in parts)
        same = {"query_sequences": ids, "key_sequences": ids, "key_positions": places}
        return attend(*qkv, **same, rate=_RATE, bits=bits).reshape(x.shape)

    parts = tuple(_projection(random, _WIDTH) for _ in range(3))
    x, cotangent = _drawn(random, 2, _ROWS, length, _WIDTH).astype(jnp.bfloat16)
    return _differ(kernel, plain, cotangent, x, parts)


# More tokens than all programs take at once; of features, a block that is not full.
_LENGTH, _FEATURES = 600, 96


def _residual_differs(kernels: Kernels, random: np.random.Generator) -> bool:
    bits = _bits(random, _LENGTH)

    def kernel(x: Array, skip: Array, parameters: Projection, scale: Array, shift: Array) -> Array:
        return kernels.residual(x, skip, parameters, scale, shift, bits, _RATE, 1e-12)

    def plain(x: Array, skip: Array, parameters: Projection, scale: Array, shift: Array) -> Array:
        y = dropout(_linear(x, parameters), _RATE, bits) + skip
        centred = y - y.mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True)) * scale + shift

    x = _drawn(random, _ROWS, _LENGTH, _WIDTH).astype(jnp.bfloat16)
    skip, cotangent = _drawn(random, 2, _ROWS, _LENGTH, _FEATURES).astype(jnp.bfloat16)
    scale, shift = _drawn(random, 2, _FEATURES)
    return _differ(kernel, plain, cotangent, x, skip, _projection(random, _FEATURES), scale, shift)


def _dense_differs(kernels: Kernels, random: np.random.Generator) -> bool:
    def kernel(x: Array, parameters: Projection) -> Array:
        return kernels.dense(x, parameters, jax.nn.silu)

    def plain(x: Array, parameters: Projection) -> Array:
        return jax.nn.silu(_linear(x, parameters))

    x = _drawn(random, _ROWS, _LENGTH, _WIDTH).astype(jnp.bfloat16)
    cotangent = _drawn(random, _ROWS, _LENGTH, _FEATURES).astype(jnp.bfloat16)
    return _differ(kernel, plain, cotangent, x, _projection(random, _FEATURES))


def _differ(
    kernel: Callable[..., Array], plain: Callable[..., Array], cotangent: Array, *inputs: Any
) -> bool:
    """Whether results or gradients differ; of half-precision inputs and float32 parameters."""

    def results(function: Callable[..., Array], dtype: str) -> list[np.ndarray]:
        @jax.jit
        def both(*inputs: Any) -> Any:
            out, pullback = jax.vjp(function, *inputs)
            return out, *pullback(cotangent.astype(out.dtype))

        def cast(leaf: Array) -> Array:
            return leaf.astype(dtype) if leaf.dtype == jnp.bfloat16 else leaf

        found = both(*jax.tree.map(cast, inputs))
        return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(found)]

    norm = np.linalg.norm
    pairs = zip(results(kernel, "bfloat16"), results(plain, "float32"), strict=True)
    # A key's bias changes nothing: its gradient is rounding. NaN is no number that is less.
    return not all(
        norm(one - other) <= _ROUNDING * norm(other) for one, other in pairs if norm(other) > 1e-2
    )


def _drawn(random: np.random.Generator, *shape: int) -> Array:
    return jnp.asarray(random.normal(size=shape), jnp.float32)


def _bits(random: np.random.Generator, length: int) -> Array:
    return jnp.asarray(random.integers(0, 2**32, (_ROWS, length), dtype=np.uint32))


def _projection(random: np.random.Generator, outputs: int) -> Projection:
    return Projection(_drawn(random, _WIDTH, outputs) / _WIDTH**0.5, _drawn(random, outputs))


def _linear(x: Array, parameters: Projection) -> Array:
    return jnp.matmul(x, parameters.kernel, precision="highest") + parameters.bias
