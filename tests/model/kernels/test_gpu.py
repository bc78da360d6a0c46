"""The GPU kernels against the plain code that they stand for, run as plain JAX on a CPU."""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, Mesh

from flaxbert.heads import bind
from flaxbert.loop import mesh as mesh_module
from flaxbert.model.attention import attend
from flaxbert.model.bert_config import BertConfig
from flaxbert.model.dropout import dropout
from flaxbert.optim.shared.norms import norm_together
from tests.model.kernels.compared import (
    bits_of,
    computes_the_same,
    inputs_of,
    model_of,
    off,
    rows_of,
    with_gradients,
)

gpu = pytest.importorskip("flaxbert.model.kernels.gpu", reason="this JAX has no Pallas for Triton")
gpu_attention, gpu_norm = gpu.gpu_attention, gpu.gpu_norm

HEADS, SIZE = 3, 16


@pytest.mark.parametrize("length, rate", [(16, 0.1), (72, 0.0), (128, 0.1), (200, 0.1)])
def test_attention_is_the_plain_one(length, rate):
    """Of one block of queries and of several, full and not; in float32, so that nothing hides."""
    random = np.random.default_rng(length)
    rows = 3
    qkv = jnp.asarray(random.normal(size=(rows, length, 3, HEADS, SIZE)), jnp.float32)
    bias = jnp.asarray(random.normal(size=(3, HEADS, SIZE)), jnp.float32)
    cotangent = jnp.asarray(random.normal(size=(rows, length, HEADS, SIZE)), jnp.float32)
    sequences, positions = rows_of(random, rows, length)
    bits = bits_of(random, rows, length)

    def fused(qkv, bias):
        return gpu_attention.attend_packed(qkv, bias, sequences, positions, bits, rate)

    def plain(qkv, bias):
        query, key, value = jnp.moveaxis(qkv + bias, 2, 0)
        return attend(
            query,
            key,
            value,
            query_sequences=sequences,
            key_sequences=sequences,
            key_positions=positions,
            rate=rate,
            bits=bits if rate else None,
        )

    for found, right in zip(
        with_gradients(fused, cotangent, qkv, bias),
        with_gradients(plain, cotangent, qkv, bias),
        strict=True,
    ):
        assert off(found, right) < 2e-6


@pytest.mark.parametrize(
    "count, size, rate", [(8, 64, 0.1), (7, 96, 0.0), (64, 64, 0.1), (1100, 40, 0.1)]
)
def test_residual_norm_is_the_plain_one(count, size, rate):
    """Of features that fill their block and do not, of more tokens than all programs take at once
    (seconds, as a loop on a CPU), and of as many tokens as features."""
    random = np.random.default_rng(count)
    y, skip, cotangent = jnp.asarray(random.normal(size=(3, count, size)), jnp.float32)
    bias, scale, shift = jnp.asarray(random.normal(size=(3, size)), jnp.float32)
    bits = bits_of(random, count)

    def fused(y, skip, bias, scale, shift):
        return gpu_norm.residual_norm(y, skip, bias, scale, shift, bits, rate, 1e-12)

    def plain(y, skip, bias, scale, shift):
        y = y + bias
        x = (dropout(y, rate, bits) if rate else y) + skip
        centred = x - x.mean(-1, keepdims=True)
        return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12) * scale + shift

    arrays = (y, skip, bias, scale, shift)
    for found, right in zip(
        with_gradients(fused, cotangent, *arrays),
        with_gradients(plain, cotangent, *arrays),
        strict=True,
    ):
        assert off(found, right) < 2e-6


def test_a_model_with_kernels_computes_the_same():
    """Forward and backward pass of a model are compiled twice, and kernels are long programs."""
    computes_the_same(gpu.KERNELS, "float32", 1e-5, 7)


def test_a_fused_head_is_not_rounded():
    """Logits are float32: of bfloat16 a regression would get steps of 1/32 between 4 and 8."""
    random = np.random.default_rng(0)
    config, params = model_of(random)
    inputs = inputs_of(random)
    logits = jax.jit(lambda: bind(config, params, "bfloat16", gpu.KERNELS)(*inputs))()
    bias = params["classifier"]["bias"]
    rounded = (logits - bias).astype(jnp.bfloat16).astype(jnp.float32)
    assert np.mean(np.abs(np.asarray(logits - bias - rounded)) > 1e-6) > 0.5


def test_nothing_beyond_the_end_makes_gradients_infinite():
    """3 tokens in blocks of 2, and a variance of 0 with an epsilon of 0 where nothing is."""
    y, skip = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 64)), jnp.float32)
    vector, bits = jnp.ones(64), jnp.zeros(3, jnp.uint32)

    def total(scale):
        out = gpu_norm.residual_norm(y, skip, vector, scale, vector, bits, 0.0, 0.0)
        return jnp.sum(out * y)

    assert np.isfinite(np.asarray(jax.jit(jax.grad(total))(vector))).all()


@pytest.mark.skipif(
    jax.__version_info__ < (0, 11), reason="GPUs need jax 0.11.2, and this cannot name a device"
)
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
@pytest.mark.parametrize("length", [72, 200])
def test_the_kernels_are_written_for_a_gpu(length, monkeypatch):
    """As far as that goes without one: to Triton's language."""
    monkeypatch.setattr(gpu_attention.common, "interpreted", lambda: False)

    def loss(qkv, bias, ids, bits, y, vector):
        out = gpu_attention.attend_packed(qkv, bias, ids, ids, bits, 0.1)
        normal = gpu_norm.residual_norm(y, y, vector, vector, vector, bits.reshape(-1), 0.1, 1e-12)
        return jnp.sum(out.astype(jnp.float32)) + jnp.sum(normal.astype(jnp.float32))

    shape = jax.ShapeDtypeStruct
    arguments = (
        shape((2, length, 3, 12, 64), jnp.bfloat16),
        shape((3, 12, 64), jnp.float32),
        shape((2, length), jnp.int32),
        shape((2, length), jnp.uint32),
        shape((2 * length, 768), jnp.bfloat16),
        shape((768,), jnp.float32),
    )
    device = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu")
    mesh = AbstractMesh((1,), ("one",), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 4, 5))).trace(*arguments)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    for kernel in ("_forward_kernel", "_backward_kernel", "_norm_forward_kernel"):
        assert kernel in text
    assert text.count("__gpu$xla.gpu.triton") == 4


@pytest.mark.parametrize(
    "device, config, dtype, answer",
    [
        ({"platform": "gpu", "compute_capability": "9.0"}, {}, "bfloat16", True),
        ({"platform": "gpu", "compute_capability": "8.0"}, {}, "float16", True),
        ({"platform": "gpu", "compute_capability": "12.0"}, {}, "bfloat16", True),
        ({"platform": "gpu", "compute_capability": "9.0"}, {}, "float32", False),
        ({"platform": "gpu", "compute_capability": "7.5"}, {}, "bfloat16", False),
        ({"platform": "gpu", "compute_capability": "gfx942"}, {}, "bfloat16", False),
        ({"platform": "tpu"}, {}, "float32", False),
        ({"platform": "cpu"}, {}, "bfloat16", False),
        # heads of 26, as TinyBERT's, and of 256, which do not fit the shared memory of all GPUs
        ({"platform": "gpu", "compute_capability": "9.0"}, {"hidden_size": 312}, "bfloat16", False),
        (
            {"platform": "gpu", "compute_capability": "9.0"},
            {"hidden_size": 3072},
            "bfloat16",
            False,
        ),
    ],
)
def test_which_devices_have_kernels(device, config, dtype, answer):
    device = types.SimpleNamespace(**device)
    mesh = types.SimpleNamespace(devices=np.array([device], object), size=1)
    bert, kernels_for = BertConfig(**config), mesh_module.kernels_for.__wrapped__
    assert kernels_for(mesh, bert, dtype) is (gpu.KERNELS if answer else None)
    mesh.devices, mesh.size = np.array([device, device], object), 2
    assert kernels_for(mesh, bert, dtype) is None


def test_a_jax_that_gave_up_the_kernels_goes_without(monkeypatch):
    def refused(*_, **__):
        raise ValueError("no such backend any more")

    monkeypatch.setattr(gpu_attention.pl, "pallas_call", refused)
    with pytest.warns(RuntimeWarning, match="no such backend any more"):
        assert not gpu.are_written.__wrapped__()
    monkeypatch.undo()
    assert gpu.are_written.__wrapped__()


def test_this_machine_has_none():
    mesh = Mesh(np.array(jax.devices("cpu")[:1]).reshape(1, 1, 1), mesh_module.AXES)
    assert mesh_module.kernels_for(mesh, BertConfig(), "bfloat16") is None


def test_the_norm_of_all_gradients_at_once():
    random = np.random.default_rng(0)
    tree = {
        "kernel": jnp.asarray(random.normal(size=(5, 7)), jnp.float32),
        "bias": jnp.asarray(random.normal(size=7), jnp.float32),
    }
    right = np.sqrt(sum(float((np.asarray(leaf, np.float64) ** 2).sum()) for leaf in tree.values()))
    for size in (1.0, 4.0, 1e-6, 1e12):
        scaled = jax.tree.map(lambda leaf, size=size: leaf * size, tree)
        norm = jax.jit(norm_together)(scaled, jnp.float32(size))
        assert float(norm) == pytest.approx(right, rel=1e-6)
    tree["bias"] = tree["bias"].at[3].set(jnp.nan)
    assert not np.isfinite(float(norm_together(tree, jnp.float32(1))))
