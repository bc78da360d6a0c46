"""Attention as one TPU kernel (Mosaic) forward and one backward, written in Pallas.

A program takes a row and some of its heads. Note: logits are held transposed, keys along sublanes
and queries along lanes, so that maxima and sums over keys are plain vector operations and what
belongs to a query needs no transposing; and heads that share 128 lanes are told apart by zeroing
the others' lanes, never by shifting. The matrix units are no slower for the zeros.

Each unit of work (some heads, 128 queries) is split in three stages, and stages of three units are
written side by side: the compiler keeps the order it is given, and one unit alone leaves it waiting
for the matrix units. By its own count that takes half the cycles.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int, UInt32

from flaxbert.model.dropout import is_kept, key_word
from flaxbert.model.kernels.tpu_sizes import LANES
from flaxbert.model.matmul import is_half, precision_for

# Tiles of 128 x 128 logits, each for all heads that share lanes, in one program: more take long to
# compile, 128 x 768 need 6.
_TILES = 16
_LOG2E = math.log2(math.e)  # exp2 is one instruction, exp is two
# Finite: exp2 of the difference to any other logit is exactly 0, and no inf meets an inf.
_MASKED = -1e30


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """Of one call: everything that is not an array."""

    rows: int
    length: int
    features: int
    heads: int
    rate: float
    dtype: Any

    @property
    def size(self) -> int:
        return self.features // self.heads

    @property
    def together(self) -> int:
        """Heads that share the lanes."""
        return LANES // self.size

    @property
    def blocks(self) -> int:
        """Of queries, in a row."""
        return self.length // LANES

    @property
    def groups(self) -> int:
        """Of heads, in a program: a divisor of all."""
        most, every = max(1, _TILES // self.blocks**2), self.features // LANES
        return max(count for count in range(1, min(most, every) + 1) if every % count == 0)

    @property
    def programs(self) -> int:
        """Of a row."""
        return self.features // LANES // self.groups


def attention_forward(
    query: Float[Array, "B L D"],
    key: Float[Array, "B L D"],
    value: Float[Array, "B L D"],
    sequence_ids: Int[Array, "B L"],
    position_ids: Int[Array, "B L"],
    bits: UInt32[Array, "B L"],
    *,
    heads: int,
    rate: float,
    interpret: bool,
) -> tuple[Float[Array, "B L D"], Float[Array, "B G T L"]]:
    """Returns attention.attend's context, and the log of each query's sum (in powers of two).

    Heads lie side by side in D; that log is by groups of the heads that share 128 lanes. A head's
    number may be added to the positions from bit 16 on: that of the first, where D is a part.
    """
    rows, length, features = query.shape
    sizes = _Sizes(rows, length, features, heads, rate, query.dtype)
    results = (
        (_tokens(sizes), jax.ShapeDtypeStruct(query.shape, query.dtype)),
        _statistic(sizes),
    )
    places = (sequence_ids, position_ids, bits)
    return _call(_forward, sizes, (query, key, value), places, (), results, interpret)


def attention_backward(
    query: Float[Array, "B L D"],
    key: Float[Array, "B L D"],
    value: Float[Array, "B L D"],
    sequence_ids: Int[Array, "B L"],
    position_ids: Int[Array, "B L"],
    bits: UInt32[Array, "B L"],
    logsumexp: Float[Array, "B G T L"],
    cotangent: Float[Array, "B L D"],
    *,
    heads: int,
    rate: float,
    interpret: bool,
) -> tuple[Array, ...]:
    """Returns the gradients of query, key and value, and their sums over each row [B, 3, D]."""
    rows, length, features = query.shape
    sizes = _Sizes(rows, length, features, heads, rate, query.dtype)
    width = sizes.groups * LANES
    sums = (
        pl.BlockSpec((None, 3, width), lambda row, part: (row, 0, part)),
        jax.ShapeDtypeStruct((rows, 3, features), jnp.float32),
    )
    tokens = (_tokens(sizes), jax.ShapeDtypeStruct(query.shape, query.dtype))
    more = ((_statistic(sizes)[0], logsumexp), (_tokens(sizes), cotangent))
    places = (sequence_ids, position_ids, bits)
    results = (tokens, tokens, tokens, sums)
    return _call(_backward, sizes, (query, key, value), places, more, results, interpret)


def _tokens(sizes: _Sizes) -> pl.BlockSpec:
    width = sizes.groups * LANES
    return pl.BlockSpec((None, sizes.length, width), lambda row, part: (row, 0, part))


def _statistic(sizes: _Sizes) -> tuple[pl.BlockSpec, jax.ShapeDtypeStruct]:
    shape = (sizes.rows, sizes.features // LANES, sizes.together, sizes.length)
    block = (None, sizes.groups, *shape[2:])
    spec = pl.BlockSpec(block, lambda row, part: (row, part, 0, 0))
    return spec, jax.ShapeDtypeStruct(shape, jnp.float32)


def _call(
    kernel: Callable[..., None],
    sizes: _Sizes,
    qkv: tuple[Array, ...],
    places: tuple[Array, ...],
    more: tuple[tuple[pl.BlockSpec, Array], ...],
    results: tuple[tuple[pl.BlockSpec, jax.ShapeDtypeStruct], ...],
    interpret: bool,
) -> Any:
    length = sizes.length
    place = pl.BlockSpec((None, 1, length), lambda row, part: (row, 0, 0))
    inputs = (
        *((_tokens(sizes), array) for array in qkv),
        *((place, array[:, None, :]) for array in places),
        *more,
    )
    arrays = [array for _, array in inputs]
    shapes = [shape for _, shape in results]
    products = 2 if kernel is _forward else 5
    elements = sizes.rows * sizes.heads * length**2
    cost = pl.CostEstimate(
        flops=products * 2 * sizes.size * elements,
        transcendentals=elements,
        bytes_accessed=sum(int(x.size) * x.dtype.itemsize for x in (*arrays, *shapes)),
    )
    return pl.pallas_call(
        functools.partial(kernel, sizes),
        grid=(sizes.rows, sizes.programs),
        in_specs=[spec for spec, _ in inputs],
        out_specs=[spec for spec, _ in results],
        out_shape=shapes,
        scratch_shapes=[
            pltpu.VMEM((length, length), jnp.float32),
            pltpu.VMEM((length, LANES), jnp.uint32),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=cost,
        interpret=interpret,
        name=f"attention{kernel.__name__}{'_dropout' if sizes.rate else ''}",
    )(*arrays)


def _down(row: Array) -> Array:
    """Returns [M, 128] of [1, M]: each value along a row of its own."""
    return jnp.broadcast_to(row, (LANES, row.shape[-1])).T


def _dot(a: Array, b: Array, contracted: tuple[int, int]) -> Array:
    return jax.lax.dot_general(
        a,
        b,
        (((contracted[0],), (contracted[1],)), ((), ())),
        precision=precision_for(a.dtype),
        preferred_element_type=jnp.float32,
    )


def _zero() -> Array:
    return jnp.zeros((), jnp.int32)


class _Row:
    """What all heads of a row share: which keys a query sees, and the words of dropout."""

    def __init__(self, sizes: _Sizes, places: tuple[Any, ...], scratch: tuple[Any, ...]) -> None:
        self.sizes = sizes
        sequences_ref, positions_ref, bits_ref = places
        self.mask_ref, self.words_ref = scratch
        self.bits = bits_ref[...]

        @pl.when(pl.program_id(1) == 0)
        def _() -> None:
            theirs = _down(sequences_ref[...])
            for block in range(sizes.blocks):
                same = theirs == sequences_ref[:, self.queries(block)]
                self.mask_ref[:, self.queries(block)] = jnp.where(same, 0.0, _MASKED)
            self.words_ref[...] = key_word(_zero(), _down(positions_ref[...]))

    def queries(self, block: int) -> slice:
        return slice(block * LANES, (block + 1) * LANES)

    def logits(self, block: int, keys: Array, queries: Array) -> Float[Array, "M 128"]:
        """In powers of two."""
        scale = np.float32(self.sizes.size**-0.5 * _LOG2E)
        return _dot(keys, queries, (1, 1)) * scale + self.mask_ref[:, self.queries(block)]

    def kept(self, block: int, group: int, head: int) -> Array:
        first = (pl.program_id(1) * self.sizes.groups + group) * self.sizes.together + head
        word = key_word(first, _zero())
        return is_kept(
            self.bits[:, self.queries(block)], self.words_ref[...] + word, self.sizes.rate
        )

    def only(self, x: Float[Array, "T 128"]) -> list[Float[Array, "T 128"]]:
        """Returns x for each head that shares the lanes, zero in all others' lanes."""
        size = self.sizes.size
        if self.sizes.together == 1:
            return [x]
        # As integers, two half-precision numbers in each: these chips select no shorter ones, and
        # libtpu 0.0.42 fails on a selection that it takes into a product.
        half = is_half(x.dtype)
        packed = pltpu.bitcast(x, jnp.int32) if half else x
        # Not //, whose lowering asks for a TPU that is here.
        lanes = jax.lax.div(jax.lax.broadcasted_iota(jnp.int32, packed.shape, 1), np.int32(size))
        parts = [
            jnp.where(lanes == head, packed, jnp.zeros_like(packed))
            for head in range(self.sizes.together)
        ]
        return [pltpu.bitcast(part, x.dtype) if half else part for part in parts]

    def pipelined(self, *stages: Callable[..., Any]) -> None:
        """Runs the stages of every unit, each one unit behind the one before it."""
        units = [
            (group, block)
            for group in range(self.sizes.groups)
            for block in range(self.sizes.blocks)
        ]
        waiting: list[Any] = [None] * len(stages)
        for number in range(len(units) + len(stages) - 1):
            # Latest stages last: what a unit's last stage reads was computed a round ago.
            found: list[Any] = [None] * len(stages)
            for place, stage in enumerate(stages):
                if 0 <= number - place < len(units):
                    found[place] = stage(*units[number - place], waiting[place])
            waiting = [None, *found[:-1]]


def _lanes(group: int) -> slice:
    return slice(group * LANES, (group + 1) * LANES)


def _forward(
    sizes: _Sizes,
    query_ref: Any,
    key_ref: Any,
    value_ref: Any,
    sequences_ref: Any,
    positions_ref: Any,
    bits_ref: Any,
    out_ref: Any,
    logsumexp_ref: Any,
    *scratch: Any,
) -> None:
    row = _Row(sizes, (sequences_ref, positions_ref, bits_ref), scratch)

    def begin(group: int, block: int, _: None) -> Any:
        lanes = _lanes(group)
        queries = row.only(query_ref[row.queries(block), lanes])
        keys = key_ref[:, lanes]
        return value_ref[:, lanes].T, [row.logits(block, keys, q) for q in queries]

    def weigh(group: int, block: int, found: Any) -> Any:
        values, logits = found
        weighed = []
        for head, logit in enumerate(logits):
            most = jnp.max(logit, axis=0, keepdims=True)
            weights = jnp.exp2(logit - most)
            total = jnp.sum(weights, axis=0, keepdims=True)
            where = (group, slice(head, head + 1), row.queries(block))
            logsumexp_ref[where] = most + jnp.log2(total)
            if sizes.rate:
                weights = jnp.where(row.kept(block, group, head), weights, 0.0)
            inverse = 1 / (total * np.float32(1 - sizes.rate))
            weighed.append((weights.astype(sizes.dtype), inverse))
        return values, weighed

    def end(group: int, block: int, found: Any) -> None:
        values, weighed = found
        parts = []
        for head, (weights, inverse) in enumerate(weighed):
            own = values[head * sizes.size : (head + 1) * sizes.size]
            parts.append(_dot(own, weights, (1, 0)) * inverse)
        context = jnp.concatenate(parts, axis=0).T
        out_ref[row.queries(block), _lanes(group)] = context.astype(sizes.dtype)

    row.pipelined(begin, weigh, end)


def _backward(
    sizes: _Sizes,
    query_ref: Any,
    key_ref: Any,
    value_ref: Any,
    sequences_ref: Any,
    positions_ref: Any,
    bits_ref: Any,
    logsumexp_ref: Any,
    cotangent_ref: Any,
    to_query_ref: Any,
    to_key_ref: Any,
    to_value_ref: Any,
    sums_ref: Any,
    *scratch: Any,
) -> None:
    row = _Row(sizes, (sequences_ref, positions_ref, bits_ref), scratch)
    keep = np.float32(1 / (1 - sizes.rate))
    scale = np.float32(sizes.size**-0.5)
    totals: dict[str, Array] = {}

    def begin(group: int, block: int, _: None) -> Any:
        lanes, own = _lanes(group), row.queries(block)
        queries = row.only(query_ref[own, lanes])
        cotangents = row.only(cotangent_ref[own, lanes])
        keys, values = key_ref[:, lanes], value_ref[:, lanes]
        logits = [row.logits(block, keys, q) for q in queries]
        to_weights = [_dot(values, g, (1, 1)) for g in cotangents]
        return keys.T, queries, cotangents, logits, to_weights

    def weigh(group: int, block: int, found: Any) -> Any:
        keys, queries, cotangents, logits, to_weights = found
        weighed = []
        for head, (logit, to_weight) in enumerate(zip(logits, to_weights, strict=True)):
            where = (group, slice(head, head + 1), row.queries(block))
            probs = jnp.exp2(logit - logsumexp_ref[where])
            dropped = probs
            if sizes.rate:  # multiplied, not selected: see `only`
                kept = row.kept(block, group, head)
                dropped = probs * jnp.where(kept, keep, np.float32(0))
            product = dropped * to_weight
            to_logit = product - probs * jnp.sum(product, axis=0, keepdims=True)
            weighed.append((dropped.astype(sizes.dtype), to_logit.astype(sizes.dtype)))
        return keys, queries, cotangents, weighed

    def end(group: int, block: int, found: Any) -> None:
        keys, queries, cotangents, weighed = found
        parts = []
        for head, (dropped, to_logit) in enumerate(weighed):
            own = keys[head * sizes.size : (head + 1) * sizes.size]
            parts.append(_dot(own, to_logit, (1, 0)))
            add("key", _dot(to_logit, queries[head], (1, 0)))
            add("value", _dot(dropped, cotangents[head], (1, 0)))
        to_query = jnp.concatenate(parts, axis=0).T * scale
        to_query_ref[row.queries(block), _lanes(group)] = to_query.astype(sizes.dtype)
        add("sum", jnp.sum(to_query, axis=0, keepdims=True))
        if block < sizes.blocks - 1:
            return
        lanes = _lanes(group)
        sums_ref[0:1, lanes] = totals.pop("sum")
        for which, ref, factor in ((1, to_key_ref, scale), (2, to_value_ref, np.float32(1))):
            gradient = totals.pop(("key", "value")[which - 1]) * factor
            ref[:, lanes] = gradient.astype(sizes.dtype)
            sums_ref[which : which + 1, lanes] = jnp.sum(gradient, axis=0, keepdims=True)

    def add(name: str, value: Array) -> None:
        totals[name] = totals[name] + value if name in totals else value

    row.pipelined(begin, weigh, end)
