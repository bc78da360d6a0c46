"""Kernels, and a model with them, beside the plain code that they stand for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from flaxbert.heads import bind, init_params
from flaxbert.model.bert_config import BertConfig


def rows_of(random: np.random.Generator, rows: int, length: int) -> tuple[jax.Array, jax.Array]:
    """Returns sequence ids and positions of packed rows; padding is at their ends."""
    sequences, positions = np.zeros((2, rows, length), np.int32)
    number = 0
    for row in range(rows):
        at = 0
        while at < length - 6:
            count = min(int(random.integers(3, 25)), length - 3 - at)
            number += 1
            sequences[row, at : at + count] = number
            positions[row, at : at + count] = np.arange(count)
            at += count
    return jnp.asarray(sequences), jnp.asarray(positions)


def bits_of(random: np.random.Generator, *shape: int) -> jax.Array:
    return jnp.asarray(random.integers(0, 2**32, shape, dtype=np.uint32))


def off(found: jax.Array, right: jax.Array) -> float:
    found, right = (np.asarray(x, np.float64) for x in (found, right))
    return float(np.linalg.norm(found - right) / np.linalg.norm(right))


def with_gradients(function, cotangent, *arrays):
    @jax.jit
    def both(*arrays):
        out, pullback = jax.vjp(function, *arrays)
        return out, *pullback(cotangent)

    return both(*arrays)


def model_of(random: np.random.Generator, hidden: int = 48, heads: int = 3):
    config = BertConfig(
        vocab_size=60,
        hidden_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=heads,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    shaken = lambda leaf: leaf + jnp.asarray(random.normal(0, 0.05, leaf.shape), leaf.dtype)  # noqa: E731
    return config, jax.tree.map(shaken, init_params(config, 0))


def inputs_of(random: np.random.Generator, rows: int = 3, length: int = 72) -> tuple:
    sequences, positions = rows_of(random, rows, length)
    first = [
        np.flatnonzero((row > 0) & (place == 0))[:3]
        for row, place in zip(np.asarray(sequences), np.asarray(positions), strict=True)
    ]
    ids = jnp.asarray(random.integers(1, 60, (rows, length)), jnp.int32)
    return ids, jnp.zeros_like(ids), positions, sequences, jnp.asarray(np.stack(first))


def computes_the_same(kernels, dtype, limit, seed, length=72, **sizes):
    """bfloat16 is as far from the fused model as from float32 itself, by rounding."""
    random = np.random.default_rng(0)
    config, params = model_of(random, **sizes)
    inputs = inputs_of(random, length=length)
    seed = None if seed is None else jnp.uint32(seed)
    weights = jnp.asarray(random.normal(size=(*inputs[-1].shape, 2)), jnp.float32)

    def loss(params, used):
        logits = bind(config, params, dtype, used)(*inputs, seed)
        return jnp.sum(logits * weights), logits

    gradients_of = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    (_, found), gradients = gradients_of(params, kernels)
    (_, right), others = gradients_of(params, None)
    assert off(found, right) < limit
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        other = others
        for part in path:
            other = other[part.key]
        assert gradient.dtype == other.dtype
        if [part.key for part in path[-2:]] != ["key", "bias"]:  # which changes nothing
            assert off(gradient, other) < limit, path
