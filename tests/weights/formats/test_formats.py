"""Which weights of a folder are read, what becomes of them, and what is said of the rest."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from flaxbert import FlaxBertForSequenceClassification
from flaxbert.errors import ModelFileError
from flaxbert.weights import formats, table
from tests import folders
from tests.folders import CONFIG, assert_same_bits, write_folder
from tests.golden.values import LABELS, golden

GOLDEN = Path(__file__).parents[2] / "golden" / "formats"
HEAD = {"classifier.weight", "classifier.bias"}
PRETRAINING = "left out cls.* (7 parameters), which this model does not have"


def _load(directory, **options):
    return FlaxBertForSequenceClassification.from_pretrained(directory, **options)


# Golden folder -> (what is fresh, whether pre-training heads are left out, the type in the file).
MODELS = {
    "flax": ((), False, np.float32),
    "flax-base": (HEAD, False, np.float32),
    "flax-pretraining": (HEAD, True, np.float32),
    "pytorch-lightning": ((), False, np.float32),
    "pytorch-bfloat16": ((), False, ml_dtypes.bfloat16),
    "tf1": (HEAD, True, np.float32),
    "tf1-classifier": ((), False, np.float32),  # without its optimizer
}


@pytest.mark.parametrize("name", MODELS)
def test_golden_models(name):
    fresh, dropped, dtype = MODELS[name]
    model = _load(GOLDEN / name)
    assert set(model.fresh) == set(fresh)
    assert (PRETRAINING in model.notes) == dropped and (fresh or not model.notes)
    assert name.startswith("tf1") or fresh or model.config.id2label == LABELS
    ours = table.to_torch(model.config, model.params)
    for entry in table.entries(model.config):
        if entry.name not in fresh:
            expected = golden(entry.name, entry.shape).astype(dtype).astype(np.float32)
            np.testing.assert_array_equal(ours[entry.name], expected, err_msg=entry.name)


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
        ([], "is empty"),
        ([".gitattributes"], "found .gitattributes files"),
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
        formats.find(tmp_path)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path}: ")


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
