"""Attention as one Triton kernel forward and one backward, written in Pallas.

XLA would write the probabilities out and read them again; here the backward pass computes them anew
from half-precision inputs, dropout masks included. Softmax over blocks of keys: Milakov &
Gimelshein 2018, Dao et al. 2022 (arXiv 2205.14135).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as gpu
from jaxtyping import Array, Float, Int, UInt32

from flaxbert.model.dropout import is_kept, key_word
from flaxbert.model.kernels import gpu_common as common

# exp2 is one instruction, exp is two.
_LOG2E = math.log2(math.e)
# Finite: exp2 of the difference to any other logit is exactly 0, and no inf meets an inf.
_MASKED = -1e30
# Sequences of tokens beyond the row's end; they match no other, nor each other.
_NO_QUERY, _NO_KEY = -1, -2

_QUERIES, _KEYS = 128, 64  # at most, of one tile of logits; larger ones leave no registers
_WARPS = 8  # of a program with so many queries


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def attend_packed(
    qkv: Float[Array, "B L 3 N H"],
    bias: Float[Array, "3 N H"],
    sequence_ids: Int[Array, "B L"],
    position_ids: Int[Array, "B L"],
    bits: UInt32[Array, "B L"],
    rate: float,
) -> Float[Array, "B L N H"]:
    """attention.attend of queries, keys and values that lie together and lack their biases.

    `rate` 0 computes without dropout, whatever the bits.
    """
    return _attend_forward(qkv, bias, sequence_ids, position_ids, bits, rate)[0]


def _attend_forward(
    qkv: Array,
    bias: Array,
    sequence_ids: Array,
    position_ids: Array,
    bits: Array,
    rate: float,
) -> tuple[Array, tuple[Array, ...]]:
    rows, length, _, heads, size = qkv.shape
    inputs = (qkv, bias, sequence_ids, position_ids, bits)
    results = (
        jax.ShapeDtypeStruct((rows, length, heads, size), qkv.dtype),
        jax.ShapeDtypeStruct((rows, heads, length), jnp.float32),
    )
    out, logsumexp = _attention_call(_forward_kernel, inputs, results, rate)
    return out, (*inputs, out, logsumexp)


def _attend_backward(
    rate: float, saved: tuple[Array, ...], cotangent: Array
) -> tuple[Array | None, ...]:
    qkv, bias = saved[:2]
    results = (jax.ShapeDtypeStruct(qkv.shape, qkv.dtype),)
    inputs = (*saved, cotangent)
    (to_qkv,) = _attention_call(_backward_kernel, inputs, results, rate)
    return to_qkv, jnp.sum(to_qkv.astype(bias.dtype), axis=(0, 1)), None, None, None


attend_packed.defvjp(_attend_forward, _attend_backward)


def _attention_call(
    kernel: Callable[..., None],
    inputs: tuple[Array, ...],
    results: tuple[jax.ShapeDtypeStruct, ...],
    rate: float,
) -> tuple[Array, ...]:
    """Runs a kernel for each row, head and block of its positions."""
    rows, length, _, heads, size = inputs[0].shape
    block = min(_QUERIES, max(16, common.padded(length)))
    blocks = pl.cdiv(length, block)
    covered = blocks * block
    packed = pl.BlockSpec((None, covered, 3, None, size), lambda row, head, _: (row, 0, 0, head, 0))
    context = pl.BlockSpec((None, covered, None, size), lambda row, head, _: (row, 0, head, 0))
    biases = pl.BlockSpec((3, None, size), lambda row, head, _: (0, head, 0))
    token = pl.BlockSpec((None, covered), lambda row, head, _: (row, 0))
    statistic = pl.BlockSpec((None, None, covered), lambda row, head, _: (row, head, 0))
    forward = [packed, biases, token, token, token]
    specs, out_specs = {
        _forward_kernel: (forward, [context, statistic]),
        _backward_kernel: ([*forward, context, statistic, context], [packed]),
    }[kernel]
    return pl.pallas_call(
        functools.partial(kernel, length=length, block=block, rate=rate),
        grid=(rows, heads, blocks),
        in_specs=specs,
        out_specs=out_specs,
        out_shape=list(results),
        compiler_params=gpu.CompilerParams(
            num_warps=_WARPS if block == _QUERIES else 4, num_stages=1
        ),
        interpret=common.interpreted(),
        name=kernel.__name__.strip("_"),
    )(*inputs)


class _Tokens:
    """Reads and writes blocks of a row's tokens; what lies beyond its end reads as a filler."""

    def __init__(self, length: int, block: int) -> None:
        self.length, self.block, self.count = length, block, pl.cdiv(length, block)

    def _at(self, ref: Any, start: Any, *rest: Any) -> tuple[Any, Any]:
        inside = start + jnp.arange(self.block) < self.length
        ref = ref.at[(pl.ds(start, self.block), *rest)]
        return ref, inside if len(ref.shape) == 1 else inside[:, None]

    def load(self, ref: Any, start: Any, *rest: Any, other: float = 0) -> Array:
        ref, inside = self._at(ref, start, *rest)
        return gpu.load(ref, mask=inside, other=other)

    def store(self, ref: Any, start: Any, value: Array, *rest: Any) -> None:
        ref, inside = self._at(ref, start, *rest)
        gpu.store(ref, value.astype(ref.dtype), mask=inside)


def _projected(tokens: _Tokens, qkv_ref: Any, bias_ref: Any, which: int, start: Any) -> Array:
    """Returns queries (0), keys (1) or values (2) of a block with their bias."""
    without = tokens.load(qkv_ref, start, np.int32(which), slice(None))
    return (without.astype(jnp.float32) + bias_ref[which, :]).astype(without.dtype)


def _logits(q: Array, k: Array, same: Array) -> Array:
    """In units of log 2."""
    return jnp.where(same, gpu.dot(q, k.T) * np.float32(q.shape[-1] ** -0.5 * _LOG2E), _MASKED)


def _forward_kernel(
    qkv_ref: Any,
    bias_ref: Any,
    sequences_ref: Any,
    positions_ref: Any,
    bits_ref: Any,
    out_ref: Any,
    logsumexp_ref: Any,
    *,
    length: int,
    block: int,
    rate: float,
) -> None:
    size = qkv_ref.shape[-1]
    tokens, others = _Tokens(length, block), _Tokens(length, min(block, _KEYS))
    head, start = pl.program_id(1), pl.program_id(2) * block
    q = _projected(tokens, qkv_ref, bias_ref, 0, start)
    sequences = tokens.load(sequences_ref, start, other=_NO_QUERY)
    bits = tokens.load(bits_ref, start)

    def over_keys(number: Any, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        summed, most, total = carry
        at = number * others.block
        k = _projected(others, qkv_ref, bias_ref, 1, at)
        v = _projected(others, qkv_ref, bias_ref, 2, at)
        theirs = others.load(sequences_ref, at, other=_NO_KEY)
        logits = _logits(q, k, sequences[:, None] == theirs[None, :])
        larger = jnp.maximum(most, jnp.max(logits, axis=-1))
        weights = jnp.exp2(logits - larger[:, None])
        again = jnp.exp2(most - larger)
        total = total * again + jnp.sum(weights, axis=-1)
        if rate:
            words = key_word(head, others.load(positions_ref, at))
            weights = jnp.where(is_kept(bits[:, None], words[None, :], rate), weights, 0.0)
        summed = summed * again[:, None] + gpu.dot(weights.astype(v.dtype), v)
        return summed, larger, total

    nothing = jnp.zeros((block, size), jnp.float32)
    first = (nothing, jnp.full((block,), _MASKED, jnp.float32), jnp.zeros((block,), jnp.float32))
    summed, most, total = common.loop(others.count, over_keys, first)
    tokens.store(out_ref, start, summed / (total * np.float32(1 - rate))[:, None], slice(None))
    tokens.store(logsumexp_ref, start, most + jnp.log2(total))


def _backward_kernel(
    qkv_ref: Any,
    bias_ref: Any,
    sequences_ref: Any,
    positions_ref: Any,
    bits_ref: Any,
    out_ref: Any,
    logsumexp_ref: Any,
    cotangent_ref: Any,
    to_qkv_ref: Any,
    *,
    length: int,
    block: int,
    rate: float,
) -> None:
    """Gradients of all keys and values from one block of queries, if that is all there are.

    Otherwise of a block of each: of keys and values from all queries, of queries from all keys.
    """
    size = qkv_ref.shape[-1]
    tokens, others = _Tokens(length, block), _Tokens(length, min(block, _KEYS))
    head, start = pl.program_id(1), pl.program_id(2) * block

    def queries(tokens: _Tokens, at: Any) -> tuple[Array, ...]:
        cotangent = tokens.load(cotangent_ref, at, slice(None))
        out = tokens.load(out_ref, at, slice(None)).astype(jnp.float32)
        return (
            _projected(tokens, qkv_ref, bias_ref, 0, at),
            cotangent,
            # The softmax's row sum of probability x gradient, dropout or not.
            jnp.sum(out * cotangent.astype(jnp.float32), axis=-1),
            tokens.load(logsumexp_ref, at),
            tokens.load(sequences_ref, at, other=_NO_QUERY),
            tokens.load(bits_ref, at),
        )

    def keys(tokens: _Tokens, at: Any) -> tuple[Array, ...]:
        return (
            _projected(tokens, qkv_ref, bias_ref, 1, at),
            _projected(tokens, qkv_ref, bias_ref, 2, at),
            tokens.load(sequences_ref, at, other=_NO_KEY),
            key_word(head, tokens.load(positions_ref, at)),
        )

    def tile(queries: tuple[Array, ...], keys: tuple[Array, ...]) -> tuple[Array, Array]:
        """Returns the dropped probabilities and the logits' gradient."""
        q, cotangent, row_sum, logsumexp, sequences, bits = queries
        k, v, theirs, words = keys
        logits = _logits(q, k, sequences[:, None] == theirs[None, :])
        probs = jnp.exp2(logits - logsumexp[:, None])
        dropped, to_probs = probs, gpu.dot(cotangent, v.T)
        if rate:
            kept = is_kept(bits[:, None], words[None, :], rate)
            scale = np.float32(1 / (1 - rate))
            dropped = jnp.where(kept, probs * scale, 0.0)
            to_probs = jnp.where(kept, to_probs * scale, 0.0)
        to_logits = probs * (to_probs - row_sum[:, None]) * np.float32(size**-0.5)
        return dropped.astype(q.dtype), to_logits.astype(q.dtype)

    def store(tokens: _Tokens, at: Any, which: int, value: Array) -> None:
        tokens.store(to_qkv_ref, at, value, np.int32(which), slice(None))

    own_queries = queries(tokens, start)

    def over_keys(number: Any, to_q: Array) -> Array:
        at = number * others.block
        found = keys(others, at)
        dropped, to_logits = tile(own_queries, found)
        if tokens.count == 1:
            store(others, at, 1, gpu.dot(to_logits.T, own_queries[0]))
            store(others, at, 2, gpu.dot(dropped.T, own_queries[1]))
        return to_q + gpu.dot(to_logits, found[0])

    nothing = jnp.zeros((block, size), jnp.float32)
    store(tokens, start, 0, common.loop(others.count, over_keys, nothing))
    if tokens.count == 1:
        return
    own_keys = keys(tokens, start)

    def over_queries(number: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        to_k, to_v = carry
        found = queries(others, number * others.block)
        dropped, to_logits = tile(found, own_keys)
        return to_k + gpu.dot(to_logits.T, found[0]), to_v + gpu.dot(dropped.T, found[1])

    to_k, to_v = common.loop(others.count, over_queries, (nothing, nothing))
    store(tokens, start, 1, to_k)
    store(tokens, start, 2, to_v)
