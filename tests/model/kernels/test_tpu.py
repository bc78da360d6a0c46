"""The TPU kernels against the plain code that they stand for, run as plain JAX on a CPU."""

from __future__ import annotations

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.config import Mesh as MeshConfig
from flaxbert.loop import mesh as mesh_module
from flaxbert.model.attention import attend
from flaxbert.model.bert_config import BertConfig
from flaxbert.model.kernels import Projection, self_test, tpu, tpu_attention
from flaxbert.model.kernels.tpu_sizes import serves
from tests.model.kernels.compared import bits_of, computes_the_same, off, rows_of, with_gradients


def alone(function, *_):
    return functools.partial(function, 0)


KERNELS = tpu.kernels_of(alone, 1, interpret=True)


def both_attentions(kernels, rows, length, width, heads, rate):
    """Returns context and gradients of the kernel, and those of the plain code, in float32."""
    random = np.random.default_rng(length)

    def drawn(*shape):
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    parts = [Projection(drawn(width, width) / width**0.5, drawn(width)) for _ in range(3)]
    x, cotangent = drawn(rows, length, width), drawn(rows, length, width)
    sequences, positions = rows_of(random, rows, length)
    bits = bits_of(random, rows, length) if rate else None

    def fused(x, *parts):
        return kernels.attention(x, parts, sequences, positions, bits, rate, heads)

    def plain(x, *parts):
        qkv = (
            (jnp.matmul(x, part.kernel, precision="highest") + part.bias).reshape(
                rows, length, heads, -1
            )
            for part in parts
        )
        same = {"query_sequences": sequences, "key_sequences": sequences}
        context = attend(*qkv, **same, key_positions=positions, rate=rate, bits=bits)
        return context.reshape(rows, length, width)

    found, right = (with_gradients(each, cotangent, x, *parts) for each in (fused, plain))
    # The gradient of a key's bias is nothing but rounding.
    key_bias = 1 + 1 + 2 + 1
    found, right = jax.tree.leaves(found), jax.tree.leaves(right)
    assert float(jnp.abs(found.pop(key_bias)).max()) < 1e-3
    right.pop(key_bias)
    return list(zip(found, right, strict=True))


@pytest.mark.parametrize(
    "length, width, heads, rate",
    [
        (128, 128, 2, 0.0),
        (256, 128, 4, 0.1),  # four heads share the lanes, two blocks of queries
        (512, 256, 4, 0.1),  # two programs for each row
        (128, 256, 2, 0.1),  # a head fills the lanes
        (72, 96, 2, 0.1),  # not served: the plain code
    ],
)
def test_attention_is_the_plain_one(length, width, heads, rate):
    for found, right in both_attentions(KERNELS, 2, length, width, heads, rate):
        assert off(found, right) < 3e-6


def test_attention_spread_over_devices_is_the_plain_one():
    """Heads keep their numbers, and so their dropout, on whichever device they are."""
    config = BertConfig(hidden_size=256, num_attention_heads=4)
    mesh = mesh_module.make_mesh(MeshConfig(data=2, fsdp=2, model=2), config)
    spread = functools.partial(mesh_module._spread, mesh)
    kernels = tpu.kernels_of(spread, mesh.shape["model"], interpret=True)
    for found, right in both_attentions(kernels, 8, 128, 256, 4, 0.1):
        assert off(found, right) < 3e-6


@pytest.mark.parametrize(
    "dtype, limit, seed, length, hidden, heads",
    [
        ("float32", 1e-5, 7, 128, 128, 2),
        ("bfloat16", 0.03, 7, 72, 48, 3),  # plain attention beside the other kernels
    ],
)
def test_a_model_with_kernels_computes_the_same(dtype, limit, seed, length, hidden, heads):
    """Forward and backward pass of a model are compiled twice, and kernels are long programs."""
    computes_the_same(KERNELS, dtype, limit, seed, length, hidden=hidden, heads=heads)


def test_a_variance_in_one_pass_is_that_of_two():
    """Of sums whose mean is three times their deviation; no BERT has such."""
    random = np.random.default_rng(0)
    y, skip = jnp.asarray(random.normal(size=(2, 4, 64, 256)), jnp.float32)
    vector = jnp.ones(256)
    found = tpu._residual_norm(y + 4.0, skip, vector, vector, vector, None, 0.0, 1e-12)
    x = np.asarray(y, np.float64) + 5 + np.asarray(skip, np.float64)
    centred = x - x.mean(-1, keepdims=True)
    right = centred / np.sqrt((centred**2).mean(-1, keepdims=True)) + 1
    assert off(found, jnp.asarray(right)) < 2e-6


def test_what_is_kept_for_the_backward_pass_is_in_half_precision():
    """An activation keeps its slope, a norm its sum: float32 would be twice the memory."""
    x = jnp.ones((2, 8, 128), jnp.bfloat16)
    dense = Projection(jnp.ones((128, 256)), jnp.zeros(256))
    back = Projection(jnp.ones((256, 128)), jnp.zeros(128))
    vector = jnp.ones(128)

    def layer(x):
        y = KERNELS.dense(x, dense, jax.nn.gelu)
        return KERNELS.residual(y, x, back, vector, vector, None, 0.0, 1e-12)

    pullback = jax.vjp(layer, x)[1]
    large = [leaf for leaf in jax.tree.leaves(pullback) if leaf.ndim == 3 and leaf.shape[-1] > 1]
    assert large and all(leaf.dtype == jnp.bfloat16 for leaf in large)


@pytest.mark.parametrize(
    "length, width, heads, served",
    [
        (128, 768, 12, True),
        (512, 1024, 16, True),
        (128, 384, 12, True),
        (128, 256, 1, False),
        (640, 768, 12, False),
        (120, 768, 12, False),
        (128, 312, 12, False),
        (128, 128, 16, False),
        (256, 128, 8, True),
        (512, 128, 8, False),  # does not fit the vector memory
    ],
)
def test_what_the_kernel_is_written_for(length, width, heads, served):
    assert serves(length, width, heads) is served


def a_tpu(count=4, model=2):
    devices = np.array([types.SimpleNamespace(platform="tpu")] * count, object)
    return types.SimpleNamespace(devices=devices, size=count, shape={"model": model})


def test_tpus_have_kernels():
    kernels_for = mesh_module.kernels_for.__wrapped__
    assert kernels_for(a_tpu(), BertConfig(), "bfloat16") is not None
    assert kernels_for(a_tpu(), BertConfig(), "float32") is None


@pytest.mark.parametrize("answer", [True, False])
def test_a_tpu_is_asked_for_its_numbers_first(answer, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(mesh_module, "_are_right", lambda: answer)
    found = mesh_module.kernels_for.__wrapped__(a_tpu(), BertConfig(), "bfloat16")
    assert (found is not None) is answer
    # The doctor compares them whatever the answer.
    assert mesh_module.kernels_written_for(a_tpu(), BertConfig(), "bfloat16") is not None


def test_what_is_wrong_on_a_tpu_is_told(monkeypatch):
    """Every kernel is compiled once as it is, and that of attention once more, broken."""
    kernels_of = functools.partial(tpu.kernels_of, interpret=True)
    monkeypatch.setattr(tpu, "kernels_of", kernels_of)
    monkeypatch.setattr(self_test, "_LENGTH", 130)
    are_right = mesh_module._are_right.__wrapped__
    assert are_right()

    backward = tpu_attention.attention_backward

    def not_finite(*arrays, **options):
        to_query, to_key, *others = backward(*arrays, **options)
        return to_query, to_key * jnp.nan, *others

    # The others were right, and compiling them takes as long again.
    for others in ("_residual_differs", "_dense_differs"):
        monkeypatch.setattr(self_test, others, lambda *_: False)
    monkeypatch.setattr(tpu_attention, "attention_backward", not_finite)
    with pytest.warns(RuntimeWarning, match="the attention kernel at 256 tokens; the attention"):
        assert not are_right()

    def refused(*_, **__):
        raise NotImplementedError

    monkeypatch.setattr(tpu_attention, "attention_backward", refused)
    with pytest.warns(RuntimeWarning, match="Please report: NotImplementedError"):
        assert not are_right()
