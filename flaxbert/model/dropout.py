"""Dropout whose mask is a pure function of an element's coordinates, not of a random stream.

The bits of an element are a hash of (update seed, layer and site, sequence number, position in the
sequence, feature): so a mask does not depend on packing, mesh, hosts or micro-batches, and no state
is saved. Note: no `jax.random`; threefry takes 17 ns per element on CPU and about a third of a TPU
step, while the hash fuses into its consumer.

The hash is the 32-bit finaliser of MurmurHash3 (Appleby), applied once per word that goes in.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

# Odd, so that multiplication is invertible modulo 2**32; spreads small integers over all bits.
_GOLDEN = np.uint32(0x9E3779B9)

# Sites within an encoder layer, and outside of the layers. A site's word is layer * 8 + site.
ATTENTION, ATTENTION_OUTPUT, OUTPUT = 0, 1, 2
EMBEDDINGS, HEAD = 3, 4

# Key positions of one head take the low 16 bits, the head number the high 16.
_POSITION_BITS = 16


def mix(x: UInt32[Array, "*T"]) -> UInt32[Array, "*T"]:
    """MurmurHash3's finaliser: every input bit flips every output bit with probability near 1/2."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def fold(
    seed: Int[Array, ...] | UInt32[Array, ...] | int,
    word: Int[Array, ...] | UInt32[Array, ...] | int,
) -> UInt32[Array, ...]:
    """Returns a seed for `word` under `seed`; arrays broadcast."""
    word = jnp.asarray(word).astype(jnp.uint32)
    return mix(mix(jnp.asarray(seed).astype(jnp.uint32) + _GOLDEN) ^ word * _GOLDEN)


def token_bits(
    seed: UInt32[Array, ""],
    layer: int | Int[Array, ""],
    site: int,
    sequence_ids: Int[Array, "B L"],
    position_ids: Int[Array, "B L"],
) -> UInt32[Array, "B L"]:
    """Returns one hash per token, from which `dropout` draws the token's features."""
    return fold(fold(fold(seed, layer * 8 + site), sequence_ids), position_ids)


def dropout(
    x: Float[Array, "*T D"], rate: float, bits: UInt32[Array, "*T"]
) -> Float[Array, "*T D"]:
    """Zeroes each feature with probability `rate` and scales the rest by 1 / (1 - rate)."""
    features = feature_word(jnp.arange(x.shape[-1]))
    return _drop(x, rate, is_kept(bits[..., None], features, rate))


def attention_dropout(
    probs: Float[Array, "B N L M"],
    rate: float,
    query_bits: UInt32[Array, "B L"],
    key_positions: Int[Array, "B M"],
) -> Float[Array, "B N L M"]:
    """One draw per (query token, head, key position): BERT's attention dropout, per element."""
    heads = jnp.arange(probs.shape[1])[None, :, None, None]
    keys = key_word(heads, key_positions[:, None, None, :])
    return _drop(probs, rate, is_kept(query_bits[:, None, :, None], keys, rate))


def feature_word(features: Int[Array, "*T"]) -> UInt32[Array, "*T"]:
    return features.astype(jnp.uint32) * _GOLDEN


def key_word(heads: Int[Array, "*T"], positions: Int[Array, "*T"]) -> UInt32[Array, "*T"]:
    return ((heads.astype(jnp.uint32) << _POSITION_BITS) | positions.astype(jnp.uint32)) * _GOLDEN


def is_kept(bits: UInt32[Array, "*T"], word: UInt32[Array, "*T"], rate: float) -> Bool[Array, "*T"]:
    """Whether the element of a token with this word is kept; the arguments broadcast."""
    return mix(bits ^ word) >= np.uint32(round(rate * 2**32))


def _drop(x: jax.Array, rate: float, kept: jax.Array) -> jax.Array:
    return jnp.where(kept, x / (1.0 - rate), jnp.zeros((), x.dtype))
