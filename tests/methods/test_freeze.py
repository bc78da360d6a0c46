"""Which parameters each option trains, and that the backward pass of the others is not computed."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from flaxbert.config import Config, Loss, make_config
from flaxbert.data.batches import empty_batch
from flaxbert.data.pack import RowPlan
from flaxbert.errors import ConfigError
from flaxbert.heads import abstract_params, head_named, init_params
from flaxbert.loop.mesh import make_mesh, state_shardings
from flaxbert.loop.step import abstract_state, make_train_step
from flaxbert.methods import method_for, params_of
from flaxbert.optim import optimizer_for
from flaxbert.weights.table import flatten
from tests.loop.harness import BERT, ONE_DEVICE, examples, run

HEAD = {
    "bert/pooler/dense/kernel",
    "bert/pooler/dense/bias",
    "classifier/kernel",
    "classifier/bias",
}
EVERY = set(flatten(abstract_params(BERT)))


def section(**options):
    return make_config({"method": {"name": "freeze", "freeze": options}}).method


def trained(**options) -> set[str]:
    method = method_for(section(**options), BERT)
    return {path for path in EVERY if method.is_trained(path)}


def test_what_is_trained():
    embeddings = {path for path in EVERY if path.startswith("bert/embeddings/")}
    first = {path for path in EVERY if path.startswith("bert/encoder/layer/0/")}
    assert trained() == trained(trained="head") == HEAD
    assert trained(trained="bias") == {path for path in EVERY if path.endswith("/bias")} | HEAD
    assert trained(trained="norm") == {path for path in EVERY if "LayerNorm" in path} | HEAD
    assert trained(trained="all", layers=0) == EVERY - embeddings
    assert trained(trained="all", layers=1) == EVERY - embeddings - first
    assert trained(trained="all", layers=2) == HEAD  # the model has two
    assert trained(trained="bias", layers=1) == trained(trained="bias") - embeddings - first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trained": "all"}, "nothing is frozen"),
        ({"layers": 1}, "layers=1 has no effect: config.method.freeze.trained is 'head'"),
        ({"trained": "all", "layers": 3}, "layers=3: the model has 2 layers"),
    ],
)
def test_options_that_do_nothing_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        trained(**options)


def test_frozen_parameters_are_bit_equal_after_100_updates():
    before = flatten(jax.device_get(init_params(BERT, 0)))
    _, state = run(examples(), updates=100, method=section(trained="bias"))
    after = flatten(params_of(jax.device_get(state)))
    same = {path for path in EVERY if np.array_equal(before[path], after[path])}
    assert same == EVERY - trained(trained="bias")


def flops(method) -> float:
    mesh, optimizer = make_mesh(ONE_DEVICE, BERT), optimizer_for(Config().optim, 10)
    state = abstract_state(abstract_params(BERT), mesh, optimizer, method_for(method, BERT))
    step = make_train_step(
        BERT,
        head_named("single_label"),
        mesh=mesh,
        shardings=state_shardings(mesh, state),
        optimizer=optimizer,
        loss=Loss(),
        dtype="float32",
    )
    plan = RowPlan(row_length=32, row_counts=(8,), slots=2)
    batch = empty_batch(examples(), plan, 8)
    return step.lower(state, batch, {"dropout": np.uint32(0)}).cost_analysis()["flops"]


def test_what_is_not_trained_costs_no_backward_pass():
    """A backward pass is two thirds of an update: gradients by kernels, and by activations."""
    full = flops(Config().method)
    assert flops(section()) < 0.5 * full
    assert flops(section(trained="bias")) < 0.85 * full
