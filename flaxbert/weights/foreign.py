"""Folders that hold something else than a BERT checkpoint, named for what they are."""

from __future__ import annotations

from pathlib import Path

from flaxbert.errors import ModelFileError
from flaxbert.storage.workdir import read_json

# Shell patterns of files that tell what a folder is, what is said of it, and what to do.
_FROM_SOURCE = "Name the folder of the PyTorch model that it was made from."
_KINDS = (
    (
        ("adapter_config.json", "adapter_model.*"),
        "has only an adapter (PEFT){base}. Merge it into its base model (in PEFT: "
        "merge_and_unload, then save_pretrained), and name the merged folder.",
    ),
    (("model_index.json",), "is a diffusers pipeline, not a BERT model. Name a BERT model."),
    (
        ("config_setfit.json", "model_head.pkl"),
        "is a SetFit model whose encoder is not in it. Name the whole folder that SetFit saved.",
    ),
    (("*.onnx", "onnx/*.onnx"), f"has only ONNX weights, which are not read. {_FROM_SOURCE}"),
    (
        ("openvino*.xml", "openvino/*.xml"),
        f"has only OpenVINO weights, which are not read. {_FROM_SOURCE}",
    ),
    (("*.gguf",), f"has only GGUF weights (llama.cpp), which are not read. {_FROM_SOURCE}"),
    (
        ("quantize_config.json", "quant_config.json", "gptq_model*"),
        "has only quantized weights, which are not read. Name the model that was quantized.",
    ),
    (("*.tflite",), f"has only TensorFlow Lite weights, which are not read. {_FROM_SOURCE}"),
    (("*.mlmodel", "*.mlpackage"), f"has only Core ML weights, which are not read. {_FROM_SOURCE}"),
    (("rust_model.ot",), f"has only rust-bert's weights, which are not read. {_FROM_SOURCE}"),
    (
        ("zero_to_fp32.py", "global_step*"),
        "is a DeepSpeed checkpoint. Its zero_to_fp32.py writes a pytorch_model.bin: name the "
        "folder of that, with the model's config.json and tokenizer.",
    ),
)

# Small files that `kind_of` looks for: they are fetched from a hub too.
MARKERS = ("adapter_config.json", "config_setfit.json", "model_index.json", "quantize_config.json")

_PICKLED_HEAD = "model_head.pkl"


def kind_of(directory: Path) -> str:
    """Returns what a folder without weights that can be read is, and what to do; "" = unknown."""
    found = sorted(directory.iterdir())
    if not found:
        return "is empty. Fetch or copy the model again."
    for path in found:
        if path.is_symlink() and not path.exists():
            return f"{path.name} is a link to a file that is not there. Fetch the model again."
    for patterns, said in _KINDS:
        if any(any(directory.glob(pattern)) for pattern in patterns):
            return said.format(base=_base_of(directory))
    return ""


def head_elsewhere(directory: Path) -> str:
    """Returns where the head of a folder with an encoder is if it cannot be read, else ""."""
    if (directory / _PICKLED_HEAD).is_file() or (directory / "config_setfit.json").is_file():
        return (
            f"its head is SetFit's {_PICKLED_HEAD}: a pickle, which could run code and is not "
            "read. There is no trained classifier beside it: answer with SetFit, or train one from "
            "this folder."
        )
    return ""


def _base_of(directory: Path) -> str:
    """Returns " of NAME" for the base model that an adapter names."""
    try:
        values = read_json(directory / "adapter_config.json")
    except ModelFileError:
        return ""
    base = values.get("base_model_name_or_path") if isinstance(values, dict) else None
    return f" of {base!r:.200}" if base else ""
