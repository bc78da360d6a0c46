"""Dropout bits: the right rate, and no relation between any two places that a mask depends on.

Bounds are five standard errors of the binomial, so a correct hash fails about once in a million.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.model import dropout as drop

ROWS, LENGTH, WIDTH = 8, 64, 128
RATE = 0.1


def _places(rows=ROWS, length=LENGTH):
    sequences = jnp.broadcast_to(jnp.arange(1, rows + 1)[:, None], (rows, length))
    positions = jnp.broadcast_to(jnp.arange(length), (rows, length))
    return sequences.astype(jnp.int32), positions.astype(jnp.int32)


def _mask(seed=0, step=0, layer=0, site=drop.OUTPUT, rate=RATE):
    """Which features are dropped: [B, L, D]."""
    sequences, positions = _places()
    update = drop.fold(jnp.uint32(seed), jnp.int32(step))
    bits = drop.token_bits(update, layer, site, sequences, positions)
    return np.asarray(drop.dropout(jnp.ones((ROWS, LENGTH, WIDTH)), rate, bits)) == 0


def _attention_mask(seed=0, heads=4, rate=RATE):
    sequences, positions = _places()
    bits = drop.token_bits(jnp.uint32(seed), 0, drop.ATTENTION, sequences, positions)
    probs = jnp.ones((ROWS, heads, LENGTH, LENGTH))
    return np.asarray(drop.attention_dropout(probs, rate, bits, positions)) == 0


def _independent(a, b, rate=RATE):
    """Whether two masks drop together as often as two independent ones do."""
    expected = rate * rate
    error = np.sqrt(expected * (1 - expected) / a.size)
    return abs(np.mean(a & b) - expected) < 5 * error


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_rate(rate):
    for seed in range(3):
        mask = _mask(seed, rate=rate)
        assert abs(mask.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / mask.size)
        mask = _attention_mask(seed, rate=rate)
        assert abs(mask.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / mask.size)


def test_kept_values_are_scaled():
    sequences, positions = _places()
    bits = drop.token_bits(jnp.uint32(0), 0, drop.OUTPUT, sequences, positions)
    kept = np.unique(np.asarray(drop.dropout(jnp.ones((ROWS, LENGTH, WIDTH)), 0.2, bits)))
    assert kept.tolist() == [0.0, 1.25]


def test_masks_of_seeds_steps_layers_and_sites_are_independent():
    masks = {
        "base": _mask(),
        "seed 1": _mask(seed=1),
        "seed 2**31": _mask(seed=2**31),
        "step 1": _mask(step=1),
        "step 2": _mask(step=2),
        "layer 1": _mask(layer=1),
        "layer 11": _mask(layer=11),
        "attention output": _mask(site=drop.ATTENTION_OUTPUT),
        "embeddings": _mask(site=drop.EMBEDDINGS),
        "head": _mask(site=drop.HEAD),
    }
    for (first, a), (second, b) in itertools.combinations(masks.items(), 2):
        assert _independent(a, b), (first, second)


def test_neighbours_are_independent():
    mask = _mask()
    for distance in (1, 2, 3, 8, 16, 64):
        assert _independent(mask[..., distance:], mask[..., :-distance]), ("feature", distance)
    for distance in (1, 2, 3, 16):
        assert _independent(mask[:, distance:], mask[:, :-distance]), ("position", distance)
    for distance in (1, 2, 4):
        assert _independent(mask[distance:], mask[:-distance]), ("sequence", distance)


def test_heads_queries_and_keys_are_independent():
    mask = _attention_mask(heads=8)
    for distance in (1, 2, 5):
        assert _independent(mask[:, distance:], mask[:, :-distance]), ("head", distance)
        assert _independent(mask[:, :, distance:], mask[:, :, :-distance]), ("query", distance)
        assert _independent(mask[..., distance:], mask[..., :-distance]), ("key", distance)
    off_diagonal = ~np.eye(LENGTH, dtype=bool)
    swapped = np.swapaxes(mask, 2, 3)
    assert _independent(mask[..., off_diagonal], swapped[..., off_diagonal]), "query <-> key"


def test_each_token_and_feature_is_dropped_at_the_rate_over_steps():
    """No place is luckier than another: over 400 steps every feature of a token gets its share."""
    sequences, positions = _places(rows=2, length=4)

    def dropped(step):
        bits = drop.token_bits(drop.fold(jnp.uint32(3), step), 2, drop.OUTPUT, sequences, positions)
        return drop.dropout(jnp.ones((2, 4, 64)), RATE, bits) == 0

    shares = np.asarray(jax.vmap(dropped)(jnp.arange(400))).mean(axis=0)
    error = np.sqrt(RATE * (1 - RATE) / 400)
    assert np.abs(shares - RATE).max() < 5 * error


def test_mix_flips_every_output_bit_half_of_the_time():
    """The avalanche of the finaliser: one input bit flips each output bit with probability 1/2."""
    x = np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint32)
    for bit in range(32):
        other = jnp.asarray(x ^ np.uint32(1 << bit))
        flipped = np.asarray(drop.mix(jnp.asarray(x)) ^ drop.mix(other))
        shares = [np.mean((flipped >> out) & 1) for out in range(32)]
        assert max(abs(share - 0.5) for share in shares) < 0.02


def test_a_mask_depends_on_the_place_in_the_sequence_only():
    """The same sequence at another place of another row has the same mask."""
    sequences = jnp.array([[1] * 5 + [2] * 5, [2] * 5 + [3] * 5])
    positions = jnp.array([[*range(5), *range(5)]] * 2)
    bits = np.asarray(drop.token_bits(jnp.uint32(1), 0, drop.OUTPUT, sequences, positions))
    assert np.array_equal(bits[0, 5:], bits[1, :5])
    assert not np.intersect1d(bits[0, :5], bits[1, 5:]).size
