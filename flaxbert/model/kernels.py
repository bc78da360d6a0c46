"""Fused GPU kernels, in Pallas: what XLA would spread over many passes through memory.

Two places of a layer move more than they compute: attention, whose probabilities XLA writes out
and reads again, and the end of each block (bias, dropout, residual, LayerNorm), of which XLA keeps
several float32 copies for the backward pass. Here each is one kernel forward and one backward; what
the backward pass needs is computed anew from its half-precision inputs, dropout masks included.

The surprising thing: nothing depends on it. The same numbers, to rounding, come from the plain code
beside each call (attention.py, bert.py), which every other device runs. Softmax over blocks of
keys: Milakov & Gimelshein 2018, Dao et al. 2022 (arXiv 2205.14135).
"""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as gpu
from jaxtyping import Array, Float, Int, UInt32

from flaxbert.model.dropout import feature_word, is_kept, key_word

# exp2 is one instruction, exp is two.
_LOG2E = math.log2(math.e)
# Finite: exp2 of the difference to any other logit is exactly 0, and no inf meets an inf.
_MASKED = -1e30
# Sequences of tokens beyond the row's end; they match no other, nor each other.
_NO_QUERY, _NO_KEY = -1, -2

_QUERIES, _KEYS = 128, 64  # at most, of one tile of logits; larger ones leave no registers
_WARPS = 8  # of a program with so many queries
_TOKENS = 2  # of `residual_norm` at once
_NORM_PROGRAMS = 528  # of its backward pass, four for each multiprocessor of an H100


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
        context: Array = attend_packed(qkv, bias, ids, ids, bits, 0.1)
        out: Array = residual_norm(tokens, tokens, vector, vector, vector, bits[0], 0.1, 1e-12)
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


def _interpreted() -> bool:
    """Without a GPU the kernels run as plain JAX: for tests."""
    return jax.default_backend() != "gpu"


def _padded(size: int) -> int:
    return pl.next_power_of_2(size)


# Attention


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
    block = min(_QUERIES, max(16, _padded(length)))
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
        interpret=_interpreted(),
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
    summed, most, total = _loop(others.count, over_keys, first)
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
    store(tokens, start, 0, _loop(others.count, over_keys, nothing))
    if tokens.count == 1:
        return
    own_keys = keys(tokens, start)

    def over_queries(number: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        to_k, to_v = carry
        found = queries(others, number * others.block)
        dropped, to_logits = tile(found, own_keys)
        return to_k + gpu.dot(to_logits.T, found[0]), to_v + gpu.dot(dropped.T, found[1])

    to_k, to_v = _loop(others.count, over_queries, (nothing, nothing))
    store(tokens, start, 1, to_k)
    store(tokens, start, 2, to_v)


def _loop(count: int, body: Callable[[Any, Any], Any], first: Any) -> Any:
    return body(0, first) if count == 1 else jax.lax.fori_loop(0, count, body, first)


# Bias, dropout, residual, LayerNorm


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
    features = _padded(size)
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
        interpret=_interpreted(),
        name=kernel.__name__.strip("_"),
    )(*itertools.chain(*inputs))


class _Features:
    """Reads and writes a few tokens at once; tokens and features that are not there read as 0."""

    def __init__(self, shape: tuple[int, int], start: Any) -> None:
        count, self.size = shape
        self.tokens = pl.ds(start, _TOKENS)
        self.is_token = start + jnp.arange(_TOKENS) < count
        self.columns = jnp.arange(_padded(self.size))
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
    nothing = jnp.zeros((_padded(size),), jnp.float32)
    rounds = pl.cdiv(pl.cdiv(count, _TOKENS), programs)
    sums = _loop(rounds, over_tokens, (nothing, nothing, nothing))
    is_feature = jnp.arange(_padded(size)) < size
    for which, value in enumerate(sums):
        gpu.store(sums_ref.at[np.int32(which), :], value, mask=is_feature)
