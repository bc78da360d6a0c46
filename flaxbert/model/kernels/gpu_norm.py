"""Bias, dropout, residual and LayerNorm as one Triton kernel forward and one backward, in Pallas.

XLA would keep several float32 copies of them for the backward pass.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as gpu
from jaxtyping import Array, Float, UInt32

from flaxbert.model.dropout import feature_word, is_kept
from flaxbert.model.kernels import gpu_common as common

_TOKENS = 2  # of `residual_norm` at once
_NORM_PROGRAMS = 528  # of its backward pass, four for each multiprocessor of an H100


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def residual_norm(
    y: Float[Array, "T D"],
    skip: Float[Array, "T D"],
    bias: Float[Array, " D"],
    scale: Float[Array, " D"],
    shift: Float[Array, " D"],
    bits: UInt32[Array, " T"],
    rate: float,
    eps: float,
) -> Float[Array, "T D"]:
    """LayerNorm(dropout(y + bias) + skip), computed in float32; `rate` 0 drops nothing."""
    return _norm_forward(y, skip, bias, scale, shift, bits, rate, eps)[0]


def _norm_forward(
    y: Array,
    skip: Array,
    bias: Array,
    scale: Array,
    shift: Array,
    bits: Array,
    rate: float,
    eps: float,
) -> tuple[Array, tuple[Array, ...]]:
    programs = pl.cdiv(len(y), _TOKENS)
    inputs = ((y, skip), (bits,), (bias, scale, shift))
    (out,) = _norm_call(_norm_forward_kernel, inputs, (1, 0), programs, rate, eps)
    return out, (y, skip, bits, bias, scale)


def _norm_backward(
    rate: float, eps: float, saved: tuple[Array, ...], cotangent: Array
) -> tuple[Array | None, ...]:
    y, skip, bits, bias, scale = saved
    programs = min(_NORM_PROGRAMS, pl.cdiv(len(y), _TOKENS))
    inputs = ((y, skip, cotangent), (bits,), (bias, scale))
    to_y, to_skip, sums = _norm_call(_norm_backward_kernel, inputs, (2, 1), programs, rate, eps)
    return to_y, to_skip, *jnp.sum(sums, axis=0), None


residual_norm.defvjp(_norm_forward, _norm_backward)


def _norm_call(
    kernel: Callable[..., None],
    inputs: tuple[tuple[Array, ...], tuple[Array, ...], tuple[Array, ...]],
    results: tuple[int, int],
    programs: int,
    rate: float,
    eps: float,
) -> tuple[Array, ...]:
    """Runs a kernel of [T, D], [T] and [D] arrays; returns [T, D] arrays and [programs, 3, D] sums.

    `results` says how many of each.
    """
    first = inputs[0][0]
    count, size = first.shape
    features = common.padded(size)
    specs = (
        pl.BlockSpec((count, features), lambda _: (0, 0)),
        pl.BlockSpec((count,), lambda _: (0,)),
        pl.BlockSpec((features,), lambda _: (0,)),
    )
    sums = pl.BlockSpec((None, 3, features), lambda program: (program, 0, 0))
    shapes = (
        jax.ShapeDtypeStruct(first.shape, first.dtype),
        jax.ShapeDtypeStruct((programs, 3, size), jnp.float32),
    )
    return pl.pallas_call(
        functools.partial(kernel, shape=(count, size), programs=programs, rate=rate, eps=eps),
        grid=(programs,),
        in_specs=[spec for spec, arrays in zip(specs, inputs, strict=True) for _ in arrays],
        out_specs=[specs[0]] * results[0] + [sums] * results[1],
        out_shape=[shapes[0]] * results[0] + [shapes[1]] * results[1],
        compiler_params=gpu.CompilerParams(num_warps=4, num_stages=1),
        interpret=common.interpreted(),
        name=kernel.__name__.strip("_"),
    )(*itertools.chain(*inputs))


class _Features:
    """Reads and writes a few tokens at once; tokens and features that are not there read as 0."""

    def __init__(self, shape: tuple[int, int], start: Any) -> None:
        count, self.size = shape
        self.tokens = pl.ds(start, _TOKENS)
        self.is_token = start + jnp.arange(_TOKENS) < count
        self.columns = jnp.arange(common.padded(self.size))
        self.is_feature = self.columns < self.size
        self.inside = self.is_token[:, None] & self.is_feature[None, :]

    def load(self, ref: Any) -> Array:
        return gpu.load(ref.at[self.tokens, :], mask=self.inside, other=0).astype(jnp.float32)

    def store(self, ref: Any, value: Array) -> None:
        gpu.store(ref.at[self.tokens, :], value.astype(ref.dtype), mask=self.inside)

    def vector(self, ref: Any) -> Array:
        return gpu.load(ref, mask=self.is_feature, other=0).astype(jnp.float32)[None, :]

    def mean(self, x: Array) -> Array:
        return jnp.sum(x, axis=-1, keepdims=True) * np.float32(1 / self.size)

    def dropped(self, x: Array, bits_ref: Any, rate: float) -> Array:
        if not rate:
            return x
        bits = gpu.load(bits_ref.at[self.tokens], mask=self.is_token, other=0)
        kept = is_kept(bits[:, None], feature_word(self.columns)[None, :], rate)
        return jnp.where(kept, x * np.float32(1 / (1 - rate)), 0.0)

    def normalized(
        self, y_ref: Any, skip_ref: Any, bits_ref: Any, bias_ref: Any, rate: float, eps: float
    ) -> tuple[Array, Array]:
        """Returns the normalised sum, and by what it was multiplied for that."""
        y = self.load(y_ref) + self.vector(bias_ref)
        x = self.dropped(y, bits_ref, rate) + self.load(skip_ref)
        centred = jnp.where(self.inside, x - self.mean(x), 0.0)
        inverse = jax.lax.rsqrt(self.mean(centred * centred) + np.float32(eps))
        # Masked once more: where nothing is and eps is 0, this is 0 times infinity.
        return jnp.where(self.inside, centred * inverse, 0.0), inverse


def _norm_forward_kernel(
    y_ref: Any,
    skip_ref: Any,
    bits_ref: Any,
    bias_ref: Any,
    scale_ref: Any,
    shift_ref: Any,
    out_ref: Any,
    *,
    shape: tuple[int, int],
    programs: int,
    rate: float,
    eps: float,
) -> None:
    block = _Features(shape, pl.program_id(0) * _TOKENS)
    normal, _ = block.normalized(y_ref, skip_ref, bits_ref, bias_ref, rate, eps)
    block.store(out_ref, normal * block.vector(scale_ref) + block.vector(shift_ref))


def _norm_backward_kernel(
    y_ref: Any,
    skip_ref: Any,
    cotangent_ref: Any,
    bits_ref: Any,
    bias_ref: Any,
    scale_ref: Any,
    to_y_ref: Any,
    to_skip_ref: Any,
    sums_ref: Any,
    *,
    shape: tuple[int, int],
    programs: int,
    rate: float,
    eps: float,
) -> None:
    """Gradients of every so many tokens; of bias, scale and shift, their sums over these."""
    program = pl.program_id(0)

    def over_tokens(number: Any, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        to_bias, to_scale, to_shift = sums
        block = _Features(shape, (program + number * programs) * _TOKENS)
        normal, inverse = block.normalized(y_ref, skip_ref, bits_ref, bias_ref, rate, eps)
        cotangent = block.load(cotangent_ref)
        inner = cotangent * block.vector(scale_ref)
        to_sum = inverse * (inner - block.mean(inner) - normal * block.mean(inner * normal))
        to_y = block.dropped(to_sum, bits_ref, rate)
        block.store(to_skip_ref, to_sum)
        block.store(to_y_ref, to_y)
        # Of features that are not there, and of tokens that are not, all of these are 0.
        return (
            to_bias + jnp.sum(jnp.where(block.inside, to_y, 0.0), axis=0),
            to_scale + jnp.sum(cotangent * normal, axis=0),
            to_shift + jnp.sum(cotangent, axis=0),
        )

    count, size = shape
    nothing = jnp.zeros((common.padded(size),), jnp.float32)
    rounds = pl.cdiv(pl.cdiv(count, _TOKENS), programs)
    sums = common.loop(rounds, over_tokens, (nothing, nothing, nothing))
    is_feature = jnp.arange(common.padded(size)) < size
    for which, value in enumerate(sums):
        gpu.store(sums_ref.at[np.int32(which), :], value, mask=is_feature)
