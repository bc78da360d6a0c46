"""Model FLOPs against the published figure and the compiled step; peaks by a device's own name."""

from __future__ import annotations

import dataclasses
import types

import numpy as np
import pytest

from flaxbert.config import Loss, Optim
from flaxbert.data.batches import empty_batch
from flaxbert.data.pack import RowPlan
from flaxbert.heads import abstract_params, head_named
from flaxbert.loop.flops import Utilisation, model_flops, peak_of
from flaxbert.loop.mesh import make_mesh, state_shardings
from flaxbert.loop.step import abstract_state, compile_step, make_train_step
from flaxbert.methods import Method
from flaxbert.model.bert_config import BertConfig
from flaxbert.optim import optimizer_for
from tests.loop.harness import ONE_DEVICE, examples

BASE = BertConfig(id2label=("a", "b"))


def test_bert_base_takes_67_gflop_for_128_tokens():
    # 6 x 84.93 M weights x 128 tokens + 12 x 12 layers x 128 keys x 768 x 128 tokens.
    assert model_flops(BASE, 128, 128 * 128) == pytest.approx(67.0e9, rel=0.005)
    # A row of four short sequences: each token attends to its own 32 keys alone.
    assert model_flops(BASE, 128, 128 * 32) < model_flops(BASE, 128, 128 * 128)


def test_utilisation_has_an_mfu_where_the_peak_is_known():
    assert Utilisation(BASE, 0.0).of(128, 128 * 128, 1.0).keys() == {"model_flops_per_second"}
    used = Utilisation(BASE, 200e12).of(128_000, 128 * 128_000, 1.0)
    assert used["mfu"] == pytest.approx(67.0e12 / 200e12, rel=0.005)
    assert used["model_flops_per_second"] == pytest.approx(67.0e12, rel=0.005)


@pytest.mark.parametrize(
    ("kind", "platform", "dtype", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "gpu", "bfloat16", 989e12),
        ("NVIDIA H100 PCIe", "gpu", "bfloat16", 756e12),
        ("NVIDIA A100-SXM4-80GB", "gpu", "bfloat16", 312e12),
        ("NVIDIA A100 80GB PCIe", "gpu", "bfloat16", 312e12),
        ("NVIDIA H100 NVL", "gpu", "bfloat16", 835e12),
        ("NVIDIA A10", "gpu", "bfloat16", 125e12),
        ("NVIDIA A10G", "gpu", "bfloat16", 0.0),  # another chip
        ("NVIDIA RTX A1000", "gpu", "bfloat16", 0.0),
        ("NVIDIA L40", "gpu", "bfloat16", 181e12),
        ("NVIDIA L40S", "gpu", "bfloat16", 362e12),
        ("NVIDIA L4", "gpu", "bfloat16", 121e12),
        ("TPU v5 lite", "tpu", "bfloat16", 197e12),
        ("TPU v5", "tpu", "bfloat16", 459e12),
        ("TPU v6 lite", "tpu", "bfloat16", 918e12),
        ("NVIDIA H100 80GB HBM3", "gpu", "float32", 0.0),
        ("cpu", "cpu", "bfloat16", 0.0),
        ("something new", "gpu", "bfloat16", 0.0),
    ],
)
def test_peaks(kind, platform, dtype, peak):
    device = types.SimpleNamespace(device_kind=kind, platform=platform)
    mesh = types.SimpleNamespace(devices=np.array([device, device]))
    assert peak_of(mesh, dtype) == 2 * peak  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_compiled_update_computes_little_beside_the_model(dtype):
    """Half of bert-base, full rows of 128: the compiler's own count, everything included, against
    the model's. Recomputation, a one-hot table or a product in full where a slice would do show
    here. Compiling six layers takes long; of fewer the last, of which only the first tokens are
    computed, would be too large a part.
    """
    """Half of bert-base, full rows of 128: the compiler's own count, everything included, against
    the model's. Recomputation, a one-hot table or a product in full where a slice would do show
    here. Compiling six layers takes long; of fewer the last, of which only the first tokens are
    computed, would be too large a part.
    """
    half = dataclasses.replace(BASE, num_hidden_layers=6)
    data = examples(4, longest=12, config=half)
    mesh = make_mesh(ONE_DEVICE, half)
    optimizer = optimizer_for(Optim(), 100)
    state = abstract_state(abstract_params(half), mesh, optimizer, Method())
    step = make_train_step(
        half,
        head_named("single_label"),
        mesh=mesh,
        shardings=state_shardings(mesh, state),
        optimizer=optimizer,
        loss=Loss(),
        dtype=dtype,
    )
    plan = RowPlan(row_length=128, row_counts=(16,), slots=1)
    seeds = {"dropout": np.uint32(0)}
    compiled = compile_step(step, state, empty_batch(data, plan, 16), seeds)
    tokens = 16 * 128
    wanted = model_flops(half, tokens, tokens * 128)
    counted = compiled.cost_analysis()["flops"]
    assert 0.8 * wanted < counted <= 1.05 * wanted
