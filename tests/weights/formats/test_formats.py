"""Which weights of a folder are read, and that files made by the formats' own libraries are."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from flaxbert.errors import ModelFileError
from flaxbert.inference.models import FlaxBertForSequenceClassification
from flaxbert.weights import table
from flaxbert.weights.formats import assemble, weight_patterns
from flaxbert.weights.formats.flax_msgpack import write_flax
from tests import folders
from tests.folders import CONFIG, assert_same_bits, write_folder
from tests.golden.values import LABELS, golden

GOLDEN = Path(__file__).parents[2] / "golden" / "formats"
HEAD = {"classifier.weight", "classifier.bias"}
PRETRAINING = "left out the pre-training heads (7 parameters of cls.*)"


def _load(directory, **options):
    return FlaxBertForSequenceClassification.from_pretrained(directory, **options)


def _expected(model, dtype=np.float32):
    return {
        entry.name: golden(entry.name, entry.shape).astype(dtype).astype(np.float32)
        for entry in table.entries(model.config)
        if entry.name not in model.fresh
    }


def _assert_golden(model, dtype=np.float32):
    ours = table.to_torch(model.config, model.params)
    expected = _expected(model, dtype)
    assert_same_bits({name: ours[name] for name in expected}, expected)


WHOLE = [
    "flax",
    "flax-shards",
    "flax-train-state",
    "pytorch",
    "pytorch-legacy",
    "pytorch-legacy-views",
    "pytorch-lightning",
    "pytorch-lightning-legacy",
    "pytorch-shards",
    "pytorch-views",
]


@pytest.mark.parametrize("name", WHOLE)
def test_golden_classifiers(name):
    model = _load(GOLDEN / name)
    assert (model.fresh, model.notes) == ((), ())
    assert model.config.id2label == LABELS
    _assert_golden(model)


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("writer", ["flax", "pytorch", "pytorch-legacy"])
def test_golden_half_precision(writer, half):
    model = _load(GOLDEN / f"{writer}-{half}")
    assert (model.fresh, model.notes) == ((), ())
    _assert_golden(model, np.dtype(getattr(ml_dtypes, half, half)))


@pytest.mark.parametrize("name", ["flax-base", "flax-pretraining", "tf1", "tf1-shards"])
def test_golden_encoders(name):
    model = _load(GOLDEN / name)
    assert set(model.fresh) == HEAD
    assert (PRETRAINING in model.notes) == (name != "flax-base")
    _assert_golden(model)


def test_golden_tf1_classifier_without_its_optimizer():
    model = _load(GOLDEN / "tf1-classifier")
    assert (model.fresh, model.notes) == ((), ())
    _assert_golden(model)


def test_every_golden_file_is_read_by_a_test():
    refused = {"tf1-v1", "tf2"}
    halves = {f"{w}-{h}" for w in ("flax", "pytorch", "pytorch-legacy") for h in folders.HALVES}
    others = {"flax-base", "flax-pretraining", "tf1", "tf1-shards", "tf1-classifier"}
    assert {path.name for path in GOLDEN.iterdir()} == {*WHOLE, *refused, *halves, *others}


def test_a_head_that_no_config_counts_is_kept(tmp_path):
    """bert_config.json does not say how many labels there are; the head of the file does."""
    three = folders.random_tensors()
    write_folder(tmp_path, three)
    values = CONFIG.to_dict()
    for field in ("id2label", "label2id", "model_type"):
        del values[field]
    (tmp_path / "config.json").rename(tmp_path / "bert_config.json")
    (tmp_path / "bert_config.json").write_text(json.dumps(values))
    model = _load(tmp_path)
    assert model.config.id2label == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert model.fresh == ()
    assert any("head has 3 labels" in note for note in model.notes)
    assert_same_bits(table.to_torch(model.config, model.params), three)
    assert set(_load(tmp_path, num_labels=2).fresh) == HEAD  # asked for: no head of three


def _all_formats(directory: Path) -> Path:
    """A folder with every format; only the safetensors hold other values."""
    shutil.copytree(GOLDEN / "pytorch", directory)
    shutil.copy(GOLDEN / "flax-train-state" / "flax_model.msgpack", directory)
    for path in (GOLDEN / "tf1").glob("bert_model*"):
        shutil.copy(path, directory)
    write_folder(directory, folders.hard_tensors())
    return directory


def test_the_safest_format_wins_and_the_others_are_named(tmp_path):
    folder = _all_formats(tmp_path / "all")
    model = _load(folder)
    (note,) = model.notes
    assert note.startswith("read the safetensors weights; those for PyTorch, Flax, TensorFlow 1 ")
    assert_same_bits(table.to_torch(CONFIG, model.params), folders.hard_tensors())
    os.unlink(folder / "model.safetensors")
    assert _load(folder).notes[0].startswith("read the PyTorch weights")
    os.unlink(folder / "pytorch_model.bin")
    assert _load(folder).notes[0].startswith("read the Flax weights")
    os.unlink(folder / "flax_model.msgpack")
    assert set(_load(folder).fresh) == HEAD  # TensorFlow's


def test_a_damaged_file_is_no_reason_to_read_another(tmp_path):
    folder = _all_formats(tmp_path / "all")
    os.truncate(folder / "model.safetensors", 100)
    with pytest.raises(ModelFileError, match="cannot be read as safetensors"):
        _load(folder)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "found no files"),
        (["model.pt", "notes.txt"], "found model.pt, notes.txt files"),
        (["tf_model.h5"], "from_tf=True"),
        (["saved_model.pb"], "SavedModel"),
        (["adapter_config.json", "adapter_model.safetensors"], "only an adapter"),
    ],
)
def test_what_is_not_read_says_what_to_do(tmp_path, names, said):
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ModelFileError) as caught:
        assemble(CONFIG, tmp_path)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path}: has ")


def test_other_checkpoints_of_tensorflow_are_refused():
    with pytest.raises(ModelFileError, match=r"format before 2017 \(one file, no \.index\)"):
        _load(GOLDEN / "tf1-v1")
    with pytest.raises(ModelFileError, match="object-graph checkpoint of TensorFlow 2"):
        _load(GOLDEN / "tf2")


def test_wrapped_and_renamed_modules(tmp_path):
    """DataParallel, Lightning and NVIDIA name the same parameters differently, in any format."""
    tensors = {
        f"module.model.{name}".replace("intermediate.dense.", "intermediate.dense_act."): array
        for name, array in folders.random_tensors().items()
    }
    model = _load(write_folder(tmp_path, tensors))
    assert_same_bits(table.to_torch(CONFIG, model.params), folders.random_tensors())


# What the hub is asked for.


@pytest.mark.parametrize("name", [*WHOLE, "tf1", "tf1-shards", "tf1-classifier", "flax-base"])
def test_the_files_to_fetch_are_enough(name, tmp_path):
    source = GOLDEN / name
    found = next(patterns for patterns in weight_patterns() if any(source.glob(patterns[0])))
    for file in {path for pattern in found for path in source.glob(pattern)}:
        shutil.copy(file, tmp_path)
    for config in source.glob("*config.json"):
        shutil.copy(config, tmp_path)
    _assert_golden(_load(tmp_path))


def test_half_a_tree_lists_what_is_missing(tmp_path):
    params = _load(GOLDEN / "flax-shards").params
    del params["bert"]["encoder"]["layer"]["1"]["output"]
    (tmp_path / "config.json").write_bytes((GOLDEN / "flax-shards" / "config.json").read_bytes())
    write_flax(tmp_path / "flax_model.msgpack", {k: _host(v) for k, v in params.items()})
    with pytest.raises(ModelFileError, match=r"layer\.1\.output\.dense\.weight is missing"):
        _load(tmp_path)


def _host(tree):
    return {k: _host(v) for k, v in tree.items()} if isinstance(tree, dict) else np.asarray(tree)
