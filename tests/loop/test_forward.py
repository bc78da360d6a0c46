"""Logits come back once per example, in order, and a defect there is loud."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.config import Loss, Mesh
from flaxbert.data.batches import inference_batches, plan_inference
from flaxbert.heads import head_named, init_params
from flaxbert.loop.evaluation import evaluate, scores
from flaxbert.loop.forward import make_forward, predict_logits
from flaxbert.loop.mesh import make_mesh, row_multiple
from tests.loop import grid
from tests.loop.harness import BERT, ONE_DEVICE, examples


def _logits(data, mesh=ONE_DEVICE, packing="pack", tokens=256, rows=0):
    on = make_mesh(mesh, BERT)
    plan = plan_inference(
        data.tokens.lengths,
        row_multiple=row_multiple(on),
        packing=packing,
        tokens=tokens,
        rows=rows,
    )
    batches = inference_batches(data, plan)
    forward = make_forward(BERT, mesh=on, dtype="float32")
    return predict_logits(forward, init_params(BERT, 0), batches, len(data))


def test_packed_padded_and_sharded_evaluation_agree():
    data = examples(53)
    reference = _logits(data, packing="pad")
    assert reference.shape == (53, 3)
    # Sums in another order, float32: a few units in the last place of logits near 1.
    for other in (
        _logits(data),
        _logits(data, tokens=1024),
        _logits(data, rows=3),
        _logits(data, mesh=Mesh(data=2, fsdp=2, model=2)),
    ):
        assert np.abs(other - reference).max() < 2e-6


@pytest.mark.parametrize("count", [1, 2, 7, 16, 17])
def test_every_count_is_complete(count):
    assert _logits(examples(count)).shape == (count, 3)


def test_a_missing_or_repeated_example_is_an_error():
    def forward(params, batch):
        return jnp.zeros((*batch["output_ids"].shape, 2))

    once = {name: np.array([[0, 1, -1]]) for name in ("example_ids", "output_ids")}
    with pytest.raises(RuntimeError, match="1 of 3 outputs were not computed once"):
        predict_logits(forward, {}, [once], 3)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="2 of 2 outputs were not computed once"):
        predict_logits(forward, {}, [once, once], 2)  # type: ignore[arg-type]


def test_evaluation_counts_and_scores_everything():
    data = examples(30)
    on = make_mesh(ONE_DEVICE, BERT)
    plan = plan_inference(data.tokens.lengths, row_multiple=1, tokens=128)
    params = init_params(BERT, 0)
    results = evaluate(
        make_forward(BERT, mesh=on, dtype="float32"),
        params,
        inference_batches(data, plan),
        data,
        head=head_named("single_label"),
        names=("a", "b"),
        loss=Loss(),
    )
    logits = _logits(data)
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = -log_probs[np.arange(30), data.labels].mean()
    assert results["samples"] == 30
    assert results["loss"] == pytest.approx(expected, rel=1e-5)
    assert results["accuracy"] == np.mean(logits.argmax(-1) == data.labels)


def test_scores_use_the_training_objective():
    logits = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    data = dataclasses.replace(examples(20), labels=np.arange(20, dtype=np.int32) % 3)
    head, names = head_named("single_label"), ("a", "b", "c")
    plain = scores(head, logits, data, names, Loss())
    smoothed = scores(head, logits, data, names, Loss(label_smoothing=0.2))
    assert plain["loss"] != smoothed["loss"]
    assert plain["accuracy"] == smoothed["accuracy"]


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("packing", ["pack", "pad"])
def test_evaluation_is_exact(devices, packing):
    """A part of the grid; all of it is in tests/soak/evaluation.py."""
    assert grid.check([1, 2, 17, 33, 130], [1, 5, 17], devices, packing) == 15
