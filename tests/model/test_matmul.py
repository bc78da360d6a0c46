"""In half precision both products of a gradient read half precision; elsewhere nothing changes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.model.matmul import dense, einsum

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(2, 5, 8))
W = RANDOM.normal(size=(8, 6))
G = RANDOM.normal(size=(2, 5, 6))


def gradients(function, *inputs, weights):
    return jax.grad(
        lambda *inputs: jnp.sum(function(*inputs) * weights), argnums=tuple(range(len(inputs)))
    )(*inputs)


def dot_dtypes(function, *inputs) -> set[tuple[str, ...]]:
    """The input dtypes of every matrix product in a program."""
    text = jax.jit(function).lower(*inputs).as_text()
    lines = [line for line in text.splitlines() if "dot_general" in line]
    assert lines
    return {tuple(part.split("x")[-1] for part in _types(line)[:2]) for line in lines}


def _types(line: str) -> list[str]:
    signature = line.rsplit(" : ", 1)[1]
    return [part.split(">")[0] for part in signature.split("tensor<")[1:]]


def test_float64_is_plain_algebra(x64):
    x, w, g = (jnp.asarray(a, jnp.float64) for a in (X, W, G))
    np.testing.assert_allclose(dense(x, w, "float64"), X @ W, rtol=1e-14)
    to_x, to_w = gradients(lambda x, w: dense(x, w, "float64"), x, w, weights=g)
    np.testing.assert_allclose(to_x, G @ W.T, rtol=1e-13)
    np.testing.assert_allclose(to_w, np.einsum("BTI,BTO->IO", X, G), rtol=1e-13)


def test_forward_mode_works_in_float32():
    tangent = jax.jvp(lambda x: dense(x, jnp.asarray(W, jnp.float32), "float32"), (X,), (X,))[1]
    np.testing.assert_allclose(tangent, X @ W, rtol=1e-5)


def test_bfloat16_follows_float32():
    w, g = jnp.asarray(W, jnp.float32), jnp.asarray(G, jnp.float32)
    outcome = {}
    for dtype in ("float32", "bfloat16"):
        x = jnp.asarray(X, dtype)
        y = dense(x, w, dtype)
        assert y.dtype == jnp.float32
        to_x, to_w = gradients(lambda x, w, d=dtype: dense(x, w, d), x, w, weights=g)
        assert to_x.dtype == dtype and to_w.dtype == jnp.float32
        outcome[dtype] = [np.asarray(a, np.float32) for a in (y, to_x, to_w)]
    for full, half in zip(*outcome.values(), strict=True):
        # bfloat16 has 8 bits: inputs are off by 2^-9, sums of at most 10 products by a few of them.
        assert np.abs(full - half).max() <= 0.02 * np.abs(full).max()


@pytest.mark.parametrize("spec", ["BNLH,BNMH->BNLM", "BNLM,BNMH->BNLH"])
def test_einsum_gradients(spec, x64):
    sizes = dict(zip("BNLMH", (2, 3, 4, 5, 6), strict=True))
    left, right, out = spec.replace("->", ",").split(",")
    a, b, g = (RANDOM.normal(size=[sizes[axis] for axis in term]) for term in (left, right, out))
    exact = gradients(lambda a, b: jnp.einsum(spec, a, b), a, b, weights=g)
    ours = gradients(lambda a, b: einsum(spec, a, b), a, b, weights=g)
    halves = (jnp.asarray(x, jnp.bfloat16) for x in (a, b))
    half = gradients(lambda a, b: einsum(spec, a, b), *halves, weights=g)
    for one, two, three in zip(exact, ours, half, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-12)
        assert three.dtype == jnp.bfloat16
        assert np.abs(one - np.asarray(three, float)).max() <= 0.03 * np.abs(one).max()


def test_no_product_mixes_dtypes():
    w = jnp.asarray(W, jnp.float32)

    def loss(x, w):
        y = dense(x, w, "bfloat16")
        heads = y.astype(jnp.bfloat16)[:, None]
        return jnp.sum(einsum("BNLH,BNMH->BNLM", heads, heads) ** 2)

    found = dot_dtypes(jax.grad(loss, argnums=(0, 1)), jnp.asarray(X, jnp.bfloat16), w)
    assert found == {("bf16", "bf16")}
    # What JAX alone does, so that this test can fail.
    plain = jax.grad(
        lambda x: jnp.sum(jnp.matmul(x, w.astype(x.dtype), preferred_element_type="float32") ** 2)
    )
    assert ("f32", "f32") in dot_dtypes(plain, jnp.asarray(X, jnp.bfloat16))
