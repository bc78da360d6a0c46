"""20 AdamW updates of the embedded checkpoint against PyTorch, with warm-up, clipping and decay."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from flaxbert.config import Optim
from flaxbert.weights.table import assemble, entries, flatten
from tests.loop.harness import examples, means, run
from tests.loop.torch_updates import torch_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

OPTIM = Optim(learning_rate=5e-5, warmup=0.2, clip_norm=0.5, weight_decay=0.1)


@pytest.fixture
def model(minilm):
    torch = pytest.importorskip("torch", reason="PyTorch, the reference, is for Python 3.11")
    from transformers import BertForSequenceClassification

    torch.manual_seed(0)
    return BertForSequenceClassification.from_pretrained(
        minilm, num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )


def _run(model, dtype, torch_dtype):
    from tests.reference import our_config

    config = dataclasses.replace(our_config(model.config))
    data = examples(32, config=config)
    start, losses, end = torch_run(model, data, OPTIM, 20, 8, torch_dtype)
    params = assemble(config, start, "test").params
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    history, state = run(data, config=config, params=params, dtype=dtype, optim=OPTIM, batch_size=8)
    return config, start, losses, end, history, state


def test_parameters_in_float64(model, x64):
    import torch

    config, start, losses, end, history, state = _run(model, "float64", torch.float64)
    assert np.abs(means(history) / losses - 1).max() <= 1e-9
    ours = flatten(jax.device_get(state["params"]))
    for entry in entries(config):
        array = ours[entry.path].T if entry.transposed else ours[entry.path]
        difference = np.abs(array - end[entry.name]).max()
        assert difference <= 1e-5 * OPTIM.learning_rate, (entry.name, difference)
        assert np.abs(array - start[entry.name]).max() > 0, f"{entry.name} never moved"


def test_loss_curve_in_float32(model):
    import torch

    _, _, losses, _, history, _ = _run(model, "float32", torch.float32)
    assert np.abs(means(history) / losses - 1).max() <= 2e-5
