"""Self-attention within each sequence of a row: tokens attend where their sequence ids are equal.

This covers packed rows, padded rows and single sentences. Padding (id 0) attends to padding, so no
row of the softmax is empty and no NaN can appear.

Note: heads are transposed in front of positions before both products. Otherwise XLA:CPU multiplies
transposed probabilities, which takes four times as long as everything else here.

"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from flaxbert.model.dropout import attention_dropout
from flaxbert.model.matmul import einsum, stable_dtype


def attend(
    query: Float[Array, "B L N H"],
    key: Float[Array, "B M N H"],
    value: Float[Array, "B M N H"],
    *,
    query_sequences: Int[Array, "B L"],
    key_sequences: Int[Array, "B M"],
    key_positions: Int[Array, "B M"],
    rate: float,
    bits: UInt32[Array, "B L"] | None,
) -> Float[Array, "B L N H"]:
    """Scaled dot-product attention (Vaswani et al. 2017) with dropout on the probabilities.

    Logits, mask and softmax are computed in at least float32, whatever the inputs' dtype.
    """
    dtype = query.dtype
    stable = stable_dtype(dtype)
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    logits = einsum("BNLH,BNMH->BNLM", query, key)
    logits = logits * (query.shape[-1] ** -0.5)
    same = query_sequences[:, None, :, None] == key_sequences[:, None, None, :]
    # Finite, so that a masked logit underflows to exactly 0 in the softmax instead of meeting inf.
    logits = jnp.where(same, logits, jnp.finfo(stable).min)
    probs = jax.nn.softmax(logits, axis=-1)
    if bits is not None:
        probs = attention_dropout(probs, rate, bits, key_positions)
    context = einsum("BNLM,BNMH->BNLH", probs.astype(dtype), value)
    return jnp.swapaxes(context, 1, 2).astype(dtype)
