"""Folders of other tools: each is named for what it is, with a config.json and without one."""

from __future__ import annotations

import json

import pytest

from flaxbert import Classifier
from flaxbert.errors import ModelFileError
from flaxbert.weights import foreign
from flaxbert.weights.folder import read_config, read_weights
from tests import folders
from tests.folders import CONFIG, write_folder
from tests.inputs import write_tiny_bert

# Files of the folder, and what is said of it.
KINDS = {
    "PEFT": (["adapter_config.json", "adapter_model.safetensors"], "only an adapter (PEFT)"),
    "PEFT, as a pickle": (["adapter_model.bin"], "merge_and_unload"),
    "SetFit without its encoder": (["model_head.pkl"], "SetFit"),
    "diffusers": (["model_index.json", "text_encoder/config.json"], "diffusers pipeline"),
    "ONNX": (["model.onnx"], "ONNX"),
    "ONNX of optimum": (["onnx/model_quantized.onnx"], "ONNX"),
    "OpenVINO": (["openvino_model.xml", "openvino_model.bin"], "OpenVINO"),
    "llama.cpp": (["model-q8_0.gguf"], "GGUF"),
    "GPTQ": (["quantize_config.json", "gptq_model-4bit-128g.bin"], "quantized"),
    "TensorFlow Lite": (["model.tflite"], "TensorFlow Lite"),
    "Core ML": (["model.mlpackage/Manifest.json"], "Core ML"),
    "DeepSpeed": (["zero_to_fp32.py", "global_step5/a.pt"], "zero_to_fp32.py writes"),
    "Keras": (["tf_model.h5"], "tf_model.h5"),
    "SavedModel": (["saved_model.pb"], "SavedModel"),
}


def _write(folder, names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"{}")


@pytest.mark.parametrize("with_config", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_folders_of_other_tools_are_named(kind, with_config, tmp_path):
    names, said = KINDS[kind]
    _write(tmp_path, names)
    if with_config:
        (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    with pytest.raises(ModelFileError) as caught:
        read_weights(tmp_path, *read_config(tmp_path))
    assert str(caught.value).startswith(f"{tmp_path}: ") and said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_that_can_be_read_are_read_whatever_lies_beside_them(tmp_path):
    write_folder(tmp_path, folders.random_tensors())
    _write(tmp_path, ["onnx/model.onnx", "model.gguf", "checkpoint-3/config.json"])
    read = read_weights(tmp_path, *read_config(tmp_path))
    assert (read.fresh, read.notes) == ((), ())
    _write(tmp_path, ["adapter_model.bin"])  # transformers would apply it
    [note] = read_weights(tmp_path, *read_config(tmp_path)).notes
    assert "read without it" in note
    (tmp_path / "config.json").unlink()
    with pytest.raises(ModelFileError, match=r"has no config\.json"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("written", "base"),
    [
        ('{"base_model_name_or_path": "someone/bert"}', " of 'someone/bert'. Merge"),
        ('{"base_model_name_or_path": null}', "(PEFT). Merge"),
        ("[]", "(PEFT). Merge"),
        ("{", "(PEFT). Merge"),
        ("[" * 100_000, "(PEFT). Merge"),
    ],
)
def test_an_adapter_names_its_base(written, base, tmp_path):
    (tmp_path / "adapter_config.json").write_text(written)
    assert base in foreign.kind_of(tmp_path)


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        (["0_Transformer"], ["0_Transformer"]),  # sentence-transformers
        (["checkpoint-20", "checkpoint-3"], ["checkpoint-3", "checkpoint-20"]),  # the Trainer
        (["snapshots/0123"], ["snapshots/0123"]),  # a repository in the hub's cache
        (["model"], ["model"]),  # a workdir of flaxbert
    ],
)
@pytest.mark.parametrize("with_config", [False, True])
def test_a_model_in_a_folder_below_is_named(places, expected, with_config, tmp_path):
    for place in places:
        write_folder(tmp_path / place, folders.random_tensors())
    _write(tmp_path, ["modules.json", "1_Pooling/config.json"])
    if with_config:
        (tmp_path / "config.json").write_text('{"__version__": "2.0.0"}')
    with pytest.raises(ModelFileError) as caught:
        read_weights(tmp_path, *read_config(tmp_path))
    listed = ", ".join(str(tmp_path / place) for place in expected)
    assert f"has no model itself, but in {listed}. Name such a folder." in str(caught.value)


def test_empty_folders_and_links_to_nothing(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ModelFileError, match="is empty"):
        read_config(empty)
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").symlink_to("../../blobs/gone")
    with pytest.raises(ModelFileError, match=r"config\.json is a link to a file that is not there"):
        read_config(snapshot)


def test_the_head_of_setfit_is_named(tmp_path):
    """Its encoder is a BERT like any other: it can be trained, but does not answer."""
    folder = write_tiny_bert(tmp_path / "setfit")
    (folder / "model_head.pkl").write_bytes(b"\x80\x04N.")
    with pytest.raises(ModelFileError, match=r"its head is SetFit's model_head\.pkl: a pickle"):
        Classifier.from_pretrained(folder)
    (folder / "model_head.pkl").unlink()
    with pytest.raises(ModelFileError, match=r"has no trained classifier \(classifier\.bias"):
        Classifier.from_pretrained(folder)
