"""The mesh and the table from parameter paths to PartitionSpecs."""

from __future__ import annotations

import types

import jax
import pytest
from jax.sharding import PartitionSpec as P

from flaxbert.config import Mesh, Optim
from flaxbert.errors import ConfigError
from flaxbert.heads import abstract_params
from flaxbert.loop.mesh import (
    AXES,
    make_mesh,
    over_data,
    row_multiple,
    spec_for,
)
from flaxbert.loop.step import abstract_state
from flaxbert.methods import Method
from flaxbert.optim import optimizer_for
from flaxbert.weights.table import flatten
from tests.loop.harness import BERT


def test_every_parameter_has_a_rule():
    specs = {path: spec_for(path) for path in flatten(abstract_params(BERT))}
    assert specs["bert/encoder/layer/1/attention/self/query/kernel"] == P("fsdp", "model")
    assert specs["bert/encoder/layer/1/attention/output/dense/kernel"] == P("model", "fsdp")
    assert specs["bert/encoder/layer/0/output/dense/kernel"] == P("model", "fsdp")
    assert specs["bert/embeddings/word_embeddings/embedding"] == P(None, "fsdp")
    assert specs["bert/embeddings/LayerNorm/scale"] == P()


def test_an_unknown_parameter_is_an_error():
    with pytest.raises(ValueError, match="no sharding rule matches"):
        spec_for("bert/encoder/layer/0/adapter/kernel")


def test_moments_are_spread_over_data_too():
    mesh = make_mesh(Mesh(data=2, fsdp=2, model=2), BERT)
    state = abstract_state(abstract_params(BERT), mesh, optimizer_for(Optim(), 10), Method())

    def parts(tree):
        layer = tree["bert"]["encoder"]["layer"]["0"]
        leaves = (layer["intermediate"]["dense"]["kernel"], layer["output"]["dense"]["kernel"])
        leaves += (tree["bert"]["embeddings"]["position_embeddings"]["embedding"],)
        leaves += (layer["intermediate"]["dense"]["bias"], tree["classifier"]["kernel"])
        return [leaf.sharding.shard_shape(leaf.shape) for leaf in leaves]

    assert parts(state["params"]) == [(16, 32), (32, 16), (32, 16), (32,), (16, 3)]
    for moments in ("mu", "nu"):
        # Vectors stay whole over data.
        assert parts(state["optimizer"][moments]) == [(8, 32), (16, 16), (16, 16), (32,), (8, 3)]


@pytest.mark.parametrize(
    ("sizes", "spec", "shape", "spread"),
    [
        ((4, 1, 1), P(None, "fsdp"), (30522, 768), P(None, ("fsdp", "data"))),  # no multiple of 4
        ((2, 1, 1), P(None, "fsdp"), (30522, 768), P("data", "fsdp")),
        ((4, 2, 1), P("fsdp", "model"), (768, 768), P(("fsdp", "data"), "model")),
        ((8, 1, 1), P("fsdp", None), (36, 36), P("fsdp", None)),  # nothing divides
        ((8, 1, 1), P("model"), (768,), P("model")),
        ((1, 8, 1), P("fsdp", "model"), (768, 768), P("fsdp", "model")),
    ],
)
def test_the_axis_that_is_spread_over_data(sizes, spec, shape, spread):
    mesh = types.SimpleNamespace(shape=dict(zip(AXES, sizes, strict=True)))
    assert over_data(mesh, spec, shape) == spread


@pytest.mark.parametrize(
    ("asked", "shape"),
    [
        (Mesh(), (8, 1, 1)),
        (Mesh(data=2, fsdp=-1, model=2), (2, 2, 2)),
        (Mesh(data=1, fsdp=1, model=4), (1, 1, 4)),
        (Mesh(data=1, fsdp=1, model=1), (1, 1, 1)),
    ],
)
def test_mesh_sizes(asked, shape):
    mesh = make_mesh(asked, BERT)
    assert tuple(mesh.shape.values()) == shape
    assert row_multiple(mesh) == shape[0] * shape[1]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Mesh(data=3), "must be one of 1, 2, 4, 8"),
        (Mesh(data=16), "must be one of 1, 2, 4, 8"),
        (Mesh(data=1, fsdp=1, model=8), "num_attention_heads 4. Possible sizes: 1, 2, 4"),
    ],
)
def test_illegal_sizes_name_the_legal_ones(asked, message):
    with pytest.raises(ConfigError, match=message):
        make_mesh(asked, BERT)


def test_devices_are_simulated():
    assert len(jax.devices()) == 8
