"""The public class as users call it: shapes, exclusions, ranges, packing, dropout, jit and saving.

The numbers themselves are compared with PyTorch in tests/model/test_fidelity.py.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxbert
from flaxbert import FlaxBertForSequenceClassification
from flaxbert.errors import ModelFileError
from flaxbert.weights.table import assemble, flatten, to_torch, unflatten
from tests import folders
from tests.folders import CONFIG, assert_same_bits, write_folder

ROOT = Path(__file__).parents[2]
DROPPING = dataclasses.replace(CONFIG, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3)
LENGTHS = [5, 9, 1, 5]
WIDTH = 9


def _model(config=CONFIG, dtype="float32"):
    params = assemble(config, folders.random_tensors(config), "test").params
    return FlaxBertForSequenceClassification(config, params, dtype=dtype)


@pytest.fixture(scope="module")
def model():
    return _model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("model"), folders.random_tensors())


def _batch(seed=0):
    """Four sentences of different lengths, padded to the longest with ids that are no padding."""
    random = np.random.default_rng(seed)
    shape = (len(LENGTHS), WIDTH)
    mask = (np.arange(WIDTH) < np.array(LENGTHS)[:, None]).astype(np.int32)
    ids = random.integers(1, CONFIG.vocab_size, shape)
    return ids, mask, random.integers(0, CONFIG.type_vocab_size, shape)


def _packed(ids, types):
    """The same sentences in two rows: 0 and 1 in the first, 3 and 2 in the second."""
    rows = [[0, 1], [3, 2]]
    packed = {
        name: np.zeros((2, 16), np.int32)
        for name in ("input_ids", "token_type_ids", "position_ids", "sequence_ids")
    }
    packed["cls_positions"] = np.zeros((2, 2), np.int32)
    for row, members in enumerate(rows):
        start = 0
        for slot, sentence in enumerate(members):
            here = (row, slice(start, start + LENGTHS[sentence]))
            packed["input_ids"][here] = ids[sentence, : LENGTHS[sentence]]
            packed["token_type_ids"][here] = types[sentence, : LENGTHS[sentence]]
            packed["position_ids"][here] = np.arange(LENGTHS[sentence])
            packed["sequence_ids"][here] = sentence + 1
            packed["cls_positions"][row, slot] = start
            start += LENGTHS[sentence]
    return rows, packed


# Shapes


def test_shapes(model):
    ids, mask, types = _batch()
    out = model(ids, mask, types, output_hidden_states=True)
    assert out.logits.shape == (4, 3)
    assert out.logits.dtype == jnp.float32
    assert [state.shape for state in out.hidden_states] == [(4, 9, 8)] * 3
    assert model(ids).hidden_states is None


def test_packed_shapes(model):
    ids, _, types = _batch()
    _, packed = _packed(ids, types)
    out = model(**packed, output_hidden_states=True)
    assert out.logits.shape == (2, 2, 3)
    assert out.hidden_states[0].shape == (2, 16, 8)
    one = model(ids, cls_positions=np.zeros((4, 1), np.int32)).logits
    np.testing.assert_array_equal(one[:, 0], model(ids).logits)


def test_the_defaults_are_no_padding_zero_types_and_counted_positions(model):
    ids, _, _ = _batch()
    explicit = model(
        ids,
        np.ones_like(ids),
        np.zeros_like(ids),
        np.broadcast_to(np.arange(WIDTH), ids.shape),
        cls_positions=np.zeros((4, 1), np.int32),
    )
    np.testing.assert_array_equal(model(ids).logits, explicit.logits[:, 0])


def test_every_input_has_an_effect(model):
    ids, mask, types = _batch()
    base = model(ids, mask, types).logits
    variants = {
        "input_ids": model((ids + 1) % CONFIG.vocab_size, mask, types),
        "attention_mask": model(ids, None, types),
        "token_type_ids": model(ids, mask, 1 - types),
        "position_ids": model(ids, mask, types, np.broadcast_to(np.arange(3, 12), ids.shape)),
        "sequence_ids": model(ids, token_type_ids=types, sequence_ids=np.ones_like(ids)),
    }
    for name, out in variants.items():
        assert np.abs(out.logits - base).max() > 1e-4, name


# Packing and padding


def test_packed_equals_single_in_float64(x64):
    model = _model(dtype="float64")
    ids, mask, types = _batch()
    rows, packed = _packed(ids, types)
    together = model(**packed).logits
    assert together.dtype == jnp.float64
    for row, members in enumerate(rows):
        for slot, sentence in enumerate(members):
            alone = (slice(sentence, sentence + 1), slice(LENGTHS[sentence]))
            single = model(ids[alone], None, types[alone]).logits[0]
            # Sums in another order differ by rounding: 1e-16 on values near 1, over two layers.
            assert np.abs(together[row, slot] - single).max() <= 1e-12
    padded = model(ids, mask, types).logits
    order = np.array(rows).ravel()
    assert np.abs(together.reshape(4, 3) - padded[order]).max() <= 1e-12


def test_padding_changes_nothing(model):
    ids, mask, types = _batch()
    batch = model(ids, mask, types).logits
    for row, length in enumerate(LENGTHS):
        alone = model(ids[row : row + 1, :length], None, types[row : row + 1, :length]).logits
        # float32 programs of different shapes: a few units of 6e-8 on values near 1.
        np.testing.assert_allclose(batch[row], alone[0], rtol=0, atol=1e-6)


def test_what_stands_under_the_padding_does_not_matter(model):
    ids, mask, types = _batch()
    other = np.where(mask, ids, (ids * 7 + 3) % CONFIG.vocab_size)
    assert (other != ids).any()
    np.testing.assert_array_equal(model(ids, mask, types).logits, model(other, mask, types).logits)


def test_a_row_of_padding_only_is_finite(model):
    ids, mask, types = _batch()
    mask[2] = 0
    out = model(ids, mask, types, output_hidden_states=True)
    assert all(np.isfinite(state).all() for state in (out.logits, *out.hidden_states))


# Dropout


def test_without_a_key_there_is_no_dropout():
    ids, mask, types = _batch()
    dropping, plain = _model(DROPPING), _model()
    first = dropping(ids, mask, types).logits
    np.testing.assert_array_equal(first, dropping(ids, mask, types).logits)
    np.testing.assert_array_equal(first, plain(ids, mask, types).logits)
    # Rates of zero: a key changes nothing either. Another program, hence float32 rounding.
    keyed = plain(ids, mask, types, key=jax.random.key(0)).logits
    np.testing.assert_allclose(first, keyed, rtol=0, atol=1e-6)


def test_a_key_gives_dropout_that_it_alone_decides():
    model = _model(DROPPING)
    # The same sentence four times: rows must not share their masks.
    ids = np.repeat(_batch()[0][:1], 4, axis=0)
    first, same, other = (model(ids, key=jax.random.key(s)).logits for s in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert (np.abs(first - other).max(axis=1) > 1e-4).all()
    assert len(np.unique(np.round(first, 4), axis=0)) == 4
    np.testing.assert_array_equal(model(ids, key=jax.random.PRNGKey(1)).logits, first)


# Inputs of many kinds


@pytest.mark.parametrize(
    "convert",
    [
        lambda a: a.tolist(),
        lambda a: a.astype(np.int64),
        lambda a: a.astype(np.uint8),
        lambda a: np.asfortranarray(a),
        jnp.asarray,
    ],
    ids=["list", "int64", "uint8", "fortran", "jax"],
)
def test_kinds_of_arrays(model, convert):
    batch = _batch()
    expected = model(*batch).logits
    np.testing.assert_array_equal(model(*map(convert, batch)).logits, expected)


def test_torch_tensors(model):
    reason = "hands over tensors of PyTorch itself; other kinds of arrays: test_kinds_of_arrays"
    torch = pytest.importorskip("torch", reason=reason)
    batch = _batch()
    tensors = [torch.tensor(array) for array in batch]
    tensors[1] = tensors[1].bool()
    np.testing.assert_array_equal(model(*tensors).logits, model(*batch).logits)


def test_masks_of_bools(model):
    ids, mask, types = _batch()
    expected = model(ids, mask, types).logits
    np.testing.assert_array_equal(model(ids, mask.astype(bool), types).logits, expected)
    np.testing.assert_array_equal(model(ids, (mask > 0).tolist(), types).logits, expected)


IDS = np.ones((2, 4), np.int32)


@pytest.mark.parametrize(
    ("name", "bad", "size"),
    [
        ("input_ids", 50, 50),
        ("input_ids", -1, 50),
        ("input_ids", 2**32 + 5, 50),  # 5 once it is an int32
        ("input_ids", -(2**32) + 5, 50),
        ("token_type_ids", 2, 2),
        ("token_type_ids", -1, 2),
        ("position_ids", 20, 20),
        ("position_ids", -1, 20),
        ("cls_positions", 4, 4),
        ("cls_positions", -1, 4),
        ("attention_mask", 2, 2),
        ("attention_mask", -10000, 2),  # an additive mask
        ("sequence_ids", -1, 2**31),
        ("sequence_ids", 2**32 + 1, 2**31),
    ],
)
def test_values_out_of_range_name_argument_and_range(model, name, bad, size):
    given = {"input_ids": IDS, name: np.zeros((2, 4), np.int64)}
    given[name][1, 2] = bad
    said = f"{name}: expected values from 0 to {size - 1}, got .*{bad}"
    with pytest.raises(ValueError, match=said):
        model(**given)
    if abs(bad) < 2**31:
        given[name] = jnp.asarray(given[name], jnp.int32)
        with pytest.raises(ValueError, match=said):
            model(**given)


def test_the_last_value_of_each_range_is_accepted(model):
    out = model(
        np.full((2, 4), 49),
        np.full((2, 4), 1),
        np.full((2, 4), 1),
        np.full((2, 4), 19),
        cls_positions=np.full((2, 4), 3),
    )
    assert np.isfinite(out.logits).all()


def test_rows_longer_than_the_model_s_positions(model):
    assert model(np.ones((1, 20), np.int32)).logits.shape == (1, 3)
    with pytest.raises(ValueError, match="position_ids: expected values from 0 to 19, got 0 to 20"):
        model(np.ones((1, 21), np.int32))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("input_ids", (4,)),
        ("input_ids", (2, 4, 1)),
        ("input_ids", ()),
        ("attention_mask", (4,)),
        ("attention_mask", (1, 4)),
        ("token_type_ids", (2, 5)),
        ("position_ids", (4,)),
        ("sequence_ids", (4, 2)),
        ("cls_positions", (2,)),
        ("cls_positions", (3, 1)),
        ("cls_positions", (2, 1, 1)),
    ],
)
def test_wrong_shapes_name_the_argument(model, name, shape):
    with pytest.raises(ValueError, match=f"{name}: expected"):
        model(**{"input_ids": IDS, name: np.zeros(shape, np.int32)})


@pytest.mark.parametrize(
    "name", ["input_ids", "attention_mask", "token_type_ids", "position_ids", "sequence_ids"]
)
def test_wrong_types_name_the_argument(model, name):
    for bad in (np.ones((2, 4), np.float32), [["a"] * 4] * 2, []):
        with pytest.raises(ValueError, match=f"{name}: expected integers"):
            model(**{"input_ids": IDS, name: bad})


def test_rows_of_different_lengths(model):
    with pytest.raises(ValueError, match="input_ids: expected an array of integers"):
        model([[1, 2, 3], [1, 2]])
    with pytest.raises(ValueError, match="input_ids: expected integers"):
        model(None)


def test_mask_and_sequence_numbers_exclude_each_other(model):
    with pytest.raises(ValueError, match="attention_mask and sequence_ids exclude"):
        model(IDS, IDS, sequence_ids=IDS)


def test_an_empty_batch(model):
    assert model(np.zeros((0, 4), np.int32)).logits.shape == (0, 3)


# Inside of other transformations


def test_it_can_be_jitted_with_traced_inputs(model):
    ids, mask, types = _batch()
    compiled = jax.jit(lambda *args: model(*args).logits)
    # One program or two, the same operations: float32 rounding on values near 1.
    np.testing.assert_allclose(
        compiled(ids, mask, types), model(ids, mask, types).logits, rtol=0, atol=1e-6
    )
    _, packed = _packed(ids, types)
    whole = jax.jit(lambda given: model(**given))(packed)  # the output is a pytree
    np.testing.assert_allclose(whole.logits, model(**packed).logits, rtol=0, atol=1e-6)


def test_it_can_be_differentiated(x64):
    model = _model(dtype="float64")
    ids, mask, types = _batch()

    def loss(params):
        traced = FlaxBertForSequenceClassification(CONFIG, params, dtype="float64")
        return jnp.sum(traced(ids, mask, types).logits ** 2)

    gradients = flatten(jax.jit(jax.grad(loss))(model.params))
    assert gradients.keys() == flatten(model.params).keys()
    # Central differences in float64 with a step of 1e-6: error about 1e-9 relative.
    for path in ("classifier/kernel", "bert/encoder/layer/0/attention/self/value/kernel"):
        direction = np.ones_like(gradients[path])

        def moved(by, path=path, direction=direction):
            flat = flatten(model.params)
            flat[path] = flat[path] + by * direction
            return loss(unflatten(flat))

        numeric = (moved(1e-6) - moved(-1e-6)) / 2e-6
        assert np.sum(gradients[path]) == pytest.approx(float(numeric), rel=1e-6)


# Types


def test_bfloat16_is_close_to_float32(model):
    batch = _batch()
    half = _model(dtype="bfloat16")
    assert half(*batch).logits.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(half.params))
    error = np.abs(half(*batch).logits - model(*batch).logits)
    # bfloat16 keeps 8 bits: 0.4 % per product; several percent after two layers would be a fault.
    assert 1e-6 < error.max() < 0.03 * np.abs(model(*batch).logits).max()


def test_float64_needs_x64():
    with pytest.raises(ValueError, match="jax_enable_x64"):
        _model(dtype="float64")


@pytest.mark.parametrize("dtype", ["float16", "auto", "", None])
def test_unknown_dtypes(dtype, unchecked):
    with pytest.raises(ValueError, match="dtype: expected one of float32, bfloat16, float64"):
        _model(dtype=dtype)


# Loading and saving


@pytest.mark.parametrize("kind", [str, Path])
def test_paths_of_both_kinds(folder, tmp_path, kind):
    model = FlaxBertForSequenceClassification.from_pretrained(kind(folder))
    model.save_pretrained(kind(tmp_path / "out"))
    again = FlaxBertForSequenceClassification.from_pretrained(kind(tmp_path / "out"))
    assert_same_bits(flatten(again.params), flatten(model.params))
    assert (model.source, model.revision, model.config) == (folder, "", CONFIG)


def test_anything_with_a_path(folder):
    class Somewhere(os.PathLike):
        def __fspath__(self):
            return str(folder)

    model = FlaxBertForSequenceClassification.from_pretrained(Somewhere())
    assert_same_bits(to_torch(CONFIG, model.params), folders.random_tensors())


@pytest.mark.parametrize(
    "names",
    [
        ["a", "b", "c"],
        ("a", "b", "c"),
        {0: "a", 1: "b", 2: "c"},
        {2: "c", 0: "a", 1: "b"},
        {"2": "c", "1": "b", "0": "a"},  # as in JSON
    ],
)
def test_names_of_labels(folder, names):
    model = FlaxBertForSequenceClassification.from_pretrained(folder, id2label=names, num_labels=3)
    assert model.config.id2label == ("a", "b", "c")
    assert not model.fresh


def test_more_names_than_the_checkpoint_has(folder):
    model = FlaxBertForSequenceClassification.from_pretrained(folder, id2label=["a", "b"])
    assert model.config.num_labels == 2
    assert set(model.fresh) == {"classifier.weight", "classifier.bias"}
    assert model(IDS).logits.shape == (2, 2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_labels": 2, "id2label": ["a", "b", "c"]}, "num_labels=2 but id2label has 3 names"),
        ({"num_labels": 0}, "num_labels: expected at least 1, got 0"),
        ({"num_labels": -1}, "num_labels: expected at least 1, got -1"),
        ({"id2label": {0: "a", 2: "b"}}, "id2label: expected ids 0..n-1"),
        ({"id2label": "abc"}, "id2label: expected a list of names, got 'abc'"),
    ],
)
def test_labels_that_fit_nothing(folder, options, said):
    with pytest.raises(ValueError, match=said):
        FlaxBertForSequenceClassification.from_pretrained(folder, **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"id2label": ["same", "same"]}, "expected distinct names"),
        ({"id2label": []}, "expected distinct names"),
        ({"problem_type": "ranking"}, "problem_type: expected one of"),
    ],
)
def test_a_config_that_no_model_can_have(folder, options, said):
    with pytest.raises(ModelFileError, match=said):
        FlaxBertForSequenceClassification.from_pretrained(folder, **options)


def test_the_problem_type_is_kept_or_set(folder, tmp_path):
    load = FlaxBertForSequenceClassification.from_pretrained
    assert load(folder).config.problem_type is None
    model = load(folder, problem_type="multi_label_classification")
    model.save_pretrained(tmp_path)
    assert load(tmp_path).config.problem_type == "multi_label_classification"


def test_saving_copies_the_source_s_tokenizer_files(tmp_path):
    source = write_folder(tmp_path / "source", folders.random_tensors())
    for name in ("vocab.txt", "tokenizer_config.json", "training_args.bin"):
        (source / name).write_text(name)
    model = FlaxBertForSequenceClassification.from_pretrained(source)
    model.save_pretrained(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json",
        "model.safetensors",
        "vocab.txt",
        "tokenizer_config.json",
    }
    _model().save_pretrained(tmp_path / "bare")  # made from arrays: there is no source
    assert {path.name for path in (tmp_path / "bare").iterdir()} == {
        "config.json",
        "model.safetensors",
    }


def test_errors_are_ordinary_exceptions_with_the_exit_code(tmp_path):
    with pytest.raises(OSError) as caught:
        FlaxBertForSequenceClassification.from_pretrained(tmp_path / "absent")
    assert isinstance(caught.value, ModelFileError) and caught.value.exit_code == 4


# The package


def test_public_names_are_there():
    assert flaxbert.FlaxBertForSequenceClassification is FlaxBertForSequenceClassification
    for name in flaxbert.__all__:
        assert getattr(flaxbert, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Bert'"):
        _ = flaxbert.Bert


def test_importing_the_package_imports_nothing_slow():
    code = "import sys, flaxbert; print(' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "flaxbert" in loaded
    assert not loaded & {"jax", "flax", "transformers", "torch", "orbax", "numpy", "datasets"}


def test_importing_the_classifier_imports_no_other_framework():
    code = "import sys, flaxbert.inference.models; print(' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "jax" in loaded
    assert not loaded & {"transformers", "torch", "orbax", "datasets", "tensorflow"}


# Parameters as an argument


def test_params_are_computed_with_and_differentiated(model):
    ids, mask, types = _batch()
    other = jax.tree.map(lambda leaf: leaf * 1.5, model.params)
    own = FlaxBertForSequenceClassification(model.config, other)
    given = model(ids, mask, types, params=other).logits
    np.testing.assert_array_equal(given, own(ids, mask, types).logits)
    assert not np.allclose(given, model(ids, mask, types).logits)

    def loss(params):
        return model(ids, mask, types, params=params).logits.sum()

    gradients = jax.jit(jax.grad(loss))(other)
    np.testing.assert_allclose(gradients["classifier"]["bias"], len(LENGTHS))


@pytest.mark.parametrize(
    ("argument", "instead"),
    [
        ({"train": True}, "key=KEY"),
        ({"dropout_rng": None}, "key=KEY"),
        ({"return_dict": False}, "output.logits"),
        ({"head_mask": None}, "no such argument"),
    ],
)
def test_arguments_of_transformers_4_are_told_what_takes_their_place(model, argument, instead):
    with pytest.raises(TypeError, match=f"{next(iter(argument))}=.*{instead}"):
        model(_batch()[0], **argument)
