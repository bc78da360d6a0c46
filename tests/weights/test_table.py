"""The name table: both directions, every dialect of names, and all differences told at once."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from safetensors.numpy import load_file

from flaxbert.errors import ModelFileError
from flaxbert.heads import abstract_params, init_params
from flaxbert.weights import table
from tests import folders
from tests.folders import CONFIG, assert_same_bits
from tests.reference import GOLDEN, config_for


def _problems(tensors, config=CONFIG):
    with pytest.raises(ModelFileError) as caught:
        table.assemble(config, tensors, "somewhere")
    assert caught.value.exit_code == 4
    first, *lines = str(caught.value).splitlines()
    assert first == f"somewhere: does not fit its config.json ({len(lines)} differences):"
    return [line.strip() for line in lines]


def test_the_table_names_every_parameter_once():
    rows = table.entries(CONFIG)
    assert {row.path for row in rows} == table.flatten(abstract_params(CONFIG)).keys()
    assert len({row.name for row in rows}) == len(rows) == 5 + 16 * 2 + 2 + 2


def test_names_and_shapes_are_those_of_pytorch():
    """As transformers saved them; tests/golden/test_golden.py saves them again on Python 3.11."""
    saved = load_file(GOLDEN / "folders" / "classifier" / "model.safetensors")
    theirs = {name: array.shape for name, array in saved.items()}
    ours = {row.name: row.shape for row in table.entries(config_for(**folders.SAVED))}
    assert ours == theirs


def test_round_trip_keeps_every_bit():
    tensors = folders.hard_tensors()
    read = table.assemble(CONFIG, tensors, "test")
    assert (read.fresh, read.dropped, read.resized) == ((), (), False)
    assert_same_bits(table.to_torch(CONFIG, read.params), tensors)


def test_round_trip_from_our_side_keeps_every_bit():
    params = {k: np.asarray(v) for k, v in table.flatten(init_params(CONFIG, 3)).items()}
    tensors = table.to_torch(CONFIG, table.unflatten(params))
    back = table.assemble(CONFIG, tensors, "test").params
    assert_same_bits(table.flatten(back), params)


def test_kernels_are_transposed_and_embeddings_are_not():
    tensors = folders.random_tensors()
    flat = table.flatten(table.assemble(CONFIG, tensors, "test").params)
    for ours, theirs in {
        "bert/encoder/layer/1/intermediate/dense/kernel": (
            "bert.encoder.layer.1.intermediate.dense.weight"
        ),
        "classifier/kernel": "classifier.weight",
        "bert/encoder/layer/0/attention/self/query/kernel": (
            "bert.encoder.layer.0.attention.self.query.weight"
        ),
    }.items():
        np.testing.assert_array_equal(flat[ours], tensors[theirs].T)
    words = "bert.embeddings.word_embeddings"
    np.testing.assert_array_equal(
        flat["bert/embeddings/word_embeddings/embedding"], tensors[f"{words}.weight"]
    )


def test_read_arrays_own_their_memory_and_may_be_written():
    tensors = folders.random_tensors()
    for array in tensors.values():
        array.setflags(write=False)
    for path, leaf in table.flatten(table.assemble(CONFIG, tensors, "test").params).items():
        assert leaf.flags.c_contiguous and leaf.flags.writeable and leaf.dtype == np.float32, path
        assert not any(np.shares_memory(leaf, array) for array in tensors.values()), path


def test_written_arrays_are_contiguous():
    params = table.assemble(CONFIG, folders.random_tensors(), "test").params
    assert all(array.flags.c_contiguous for array in table.to_torch(CONFIG, params).values())


@pytest.mark.parametrize(
    ("found", "canonical"),
    [
        ("bert.embeddings.word_embeddings.weight", "bert.embeddings.word_embeddings.weight"),
        ("embeddings.word_embeddings.weight", "bert.embeddings.word_embeddings.weight"),
        ("embeddings.LayerNorm.gamma", "bert.embeddings.LayerNorm.weight"),
        (
            "bert.encoder.layer.0.output.LayerNorm.beta",
            "bert.encoder.layer.0.output.LayerNorm.bias",
        ),
        ("pooler.dense.bias", "bert.pooler.dense.bias"),
        ("classifier.weight", "classifier.weight"),
        ("bert.embeddings.position_ids", None),
        ("embeddings.token_type_ids", None),
        ("position_ids", None),
        # Only norms had old names; anything else is left for the report of differences.
        ("bert.embeddings.word_embeddings.gamma", "bert.embeddings.word_embeddings.gamma"),
        ("bert.embeddings.relative_position_ids", "bert.embeddings.relative_position_ids"),
    ],
)
def test_canonical_name(found, canonical):
    assert table.canonical_name(found) == canonical


def test_layers_are_ordered_by_number():
    config = dataclasses.replace(CONFIG, num_hidden_layers=12)
    paths = table.flatten(abstract_params(config))
    numbers = [path.split("/")[3] for path in paths if path.endswith("query/kernel")]
    assert numbers == [str(i) for i in range(12)]


def test_twelve_layers_are_not_permuted():
    config = dataclasses.replace(CONFIG, num_hidden_layers=12)
    tensors = folders.random_tensors(config)
    flat = table.flatten(table.assemble(config, dict(reversed(tensors.items())), "test").params)
    for layer in range(12):
        np.testing.assert_array_equal(
            flat[f"bert/encoder/layer/{layer}/output/dense/bias"],
            tensors[f"bert.encoder.layer.{layer}.output.dense.bias"],
        )


def test_all_differences_are_listed_at_once():
    tensors = folders.random_tensors()
    del tensors["bert.encoder.layer.1.output.dense.bias"]
    del tensors["bert.embeddings.LayerNorm.weight"]
    tensors["bert.encoder.layer.2.output.dense.bias"] = np.zeros(8, np.float32)
    tensors["other.weight"] = np.zeros((2, 8), np.float32)
    tensors["bert.embeddings.position_embeddings.weight"] = np.zeros((21, 8), np.float32)
    tensors["bert.encoder.layer.0.output.dense.bias"] = np.zeros(8, np.int64)
    tensors["encoder.layer.0.intermediate.dense.bias"] = np.zeros(12, np.float32)
    twice = "encoder.layer.0.intermediate.dense.bias"
    assert _problems(tensors) == sorted(
        [
            "bert.encoder.layer.1.output.dense.bias is missing",
            "bert.embeddings.LayerNorm.weight is missing",
            "bert.encoder.layer.2.output.dense.bias is not a parameter of this model",
            "other.weight is not a parameter of this model",
            "bert.embeddings.position_embeddings.weight has shape (21, 8), expected (20, 8)",
            "bert.encoder.layer.0.output.dense.bias has dtype int64, expected floating point",
            f"{twice} and bert.{twice} are the same parameter",
        ]
    )


def test_a_transposed_weight_is_misshapen():
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    tensors = folders.random_tensors()
    tensors[name] = tensors[name].T
    assert _problems(tensors) == [f"{name} has shape (8, 12), expected (12, 8)"]


@pytest.mark.parametrize("name", ["classifier.weight", "classifier.bias"])
def test_half_a_head_is_an_error(name):
    tensors = folders.random_tensors()
    del tensors[name]
    assert _problems(tensors) == [f"{name} is missing"]


@pytest.mark.parametrize("last", ["weight", "bias"])
def test_half_a_pooler_is_an_error(last):
    tensors = folders.random_tensors()
    del tensors[f"bert.pooler.dense.{last}"]
    assert _problems(tensors) == [f"bert.pooler.dense.{last} is missing"]


def test_half_a_head_of_another_size_is_an_error():
    tensors = folders.random_tensors()
    tensors["classifier.weight"] = np.zeros((5, 8), np.float32)
    assert _problems(tensors) == ["classifier.weight has shape (5, 8), expected (3, 8)"]
    del tensors["classifier.bias"]
    assert _problems(tensors) == [
        "classifier.bias is missing",
        "classifier.weight has shape (5, 8), expected (3, 8)",
    ]


def test_a_head_of_another_hidden_size_is_an_error():
    tensors = folders.random_tensors()
    tensors["classifier.weight"] = np.zeros((3, 9), np.float32)
    assert _problems(tensors) == ["classifier.weight has shape (3, 9), expected (3, 8)"]


def test_a_head_of_another_size_is_fresh():
    tensors = folders.random_tensors()
    tensors["classifier.weight"] = np.zeros((5, 8), np.float32)
    tensors["classifier.bias"] = np.zeros(5, np.float32)
    read = table.assemble(CONFIG, tensors, "test")
    assert read.resized
    assert set(read.fresh) == {"classifier.weight", "classifier.bias"}
    assert "classifier" not in read.params


def test_missing_head_and_pooler_are_fresh():
    encoder = {
        name: array
        for name, array in folders.random_tensors().items()
        if not name.startswith(("classifier.", "bert.pooler."))
    }
    read = table.assemble(CONFIG, encoder, "test")
    assert set(read.fresh) == {
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
        "classifier.weight",
        "classifier.bias",
    }
    assert not read.resized
    assert "pooler" not in read.params["bert"]


def test_pretraining_heads_are_named_as_dropped():
    tensors = folders.with_pretraining_heads(folders.random_tensors())
    read = table.assemble(CONFIG, tensors, "test")
    assert set(read.dropped) == {name for name in tensors if name.startswith("cls.")}


def test_no_tensors_at_all_lists_the_whole_encoder():
    problems = _problems({})
    assert len(problems) == len(table.entries(CONFIG)) - 4  # head and pooler may be fresh


def test_flatten_and_unflatten_are_inverse():
    params = table.assemble(CONFIG, folders.random_tensors(), "test").params
    again = table.unflatten(table.flatten(params))
    assert_same_bits(table.flatten(again), table.flatten(params))
    assert all(isinstance(key, str) for key in again["bert"]["encoder"]["layer"])


def test_two_paths_of_one_name_are_refused():
    flat = {"a/kernel": np.ones((1, 1)), "a/scale": np.ones(1)}
    with pytest.raises(ModelFileError, match=r"'a/scale' is there under two names"):
        table.from_flax(flat, "test")
