"""Tiny BERT checkpoint folders without PyTorch: one clean one, and every messy variant of it.

Note: the values include the ones that a careless copy loses (-0.0, subnormals, the largest float,
NaN with a payload), so "bit-equal" means the bits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from flaxbert.model.bert_config import BertConfig
from flaxbert.weights.table import assemble, entries

Tensors = dict[str, np.ndarray]

CONFIG = BertConfig(
    vocab_size=50,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=20,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    id2label=("no", "perhaps", "yes"),
)


def random_tensors(config: BertConfig = CONFIG, seed: int = 0) -> Tensors:
    """Returns {PyTorch name: float32 array}, every value random."""
    random = np.random.default_rng(seed)
    return {
        entry.name: random.normal(0, 0.3, entry.shape).astype(np.float32)
        for entry in entries(config)
    }


def hard_tensors(config: BertConfig = CONFIG) -> Tensors:
    """Returns random tensors in which each one also holds values whose bits are easily lost."""
    tensors = random_tensors(config)
    odd = np.array([0x80000000, 0x00000001, 0x7F7FFFFF, 0x7FC00123, 0x807FFFFF], np.uint32)
    for array in tensors.values():
        flat = array.reshape(-1)
        flat[: len(odd)] = odd.view(np.float32)[: len(flat)]
    return tensors


def bits(array: Any) -> np.ndarray:
    """Returns the bits of a float32 array, for comparisons that tell -0.0 and NaNs apart."""
    array = np.asarray(array)
    assert array.dtype == np.float32, array.dtype
    return np.ascontiguousarray(array).view(np.uint32)


def assert_same_bits(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    assert actual.keys() == expected.keys()
    for name in expected:
        assert actual[name].shape == expected[name].shape, name
        np.testing.assert_array_equal(bits(actual[name]), bits(expected[name]), err_msg=name)


def write_folder(
    directory: Path,
    tensors: Tensors,
    values: dict[str, Any] | None = None,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Writes config.json and model.safetensors as they are given."""
    directory.mkdir(parents=True, exist_ok=True)
    values = CONFIG.to_dict() if values is None else values
    (directory / "config.json").write_text(json.dumps(values))
    save_file(tensors, directory / "model.safetensors", metadata=metadata)
    return directory


def write_shards(directory: Path, tensors: Tensors, count: int = 3) -> Path:
    """Writes config.json, shards and their index file."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    weight_map = {}
    names = sorted(tensors)
    for number in range(count):
        shard = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        part = {name: tensors[name] for name in names[number::count]}
        save_file(part, directory / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, shard)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def without_prefix(tensors: Tensors) -> Tensors:
    return {name.removeprefix("bert."): array for name, array in tensors.items()}


def with_old_norms(tensors: Tensors) -> Tensors:
    renames = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    return {
        next((name.replace(a, b) for a, b in renames.items() if name.endswith(a)), name): array
        for name, array in tensors.items()
    }


def with_buffers(tensors: Tensors) -> Tensors:
    numbers = np.arange(CONFIG.max_position_embeddings)[None]
    return tensors | {
        "bert.embeddings.position_ids": numbers,
        "bert.embeddings.token_type_ids": np.zeros_like(numbers),
    }


def with_pretraining_heads(tensors: Tensors) -> Tensors:
    hidden, vocabulary = CONFIG.hidden_size, CONFIG.vocab_size
    shapes = {
        "cls.predictions.bias": (vocabulary,),
        "cls.predictions.decoder.bias": (vocabulary,),
        "cls.predictions.decoder.weight": (vocabulary, hidden),
        "cls.predictions.transform.dense.weight": (hidden, hidden),
        "cls.predictions.transform.dense.bias": (hidden,),
        "cls.predictions.transform.LayerNorm.gamma": (hidden,),
        "cls.predictions.transform.LayerNorm.beta": (hidden,),
        "cls.seq_relationship.weight": (2, hidden),
        "cls.seq_relationship.bias": (2,),
    }
    return tensors | {name: np.ones(shape, np.float32) for name, shape in shapes.items()}


def as_dtype(tensors: Tensors, dtype: Any) -> Tensors:
    with np.errstate(over="ignore"):  # the largest float32 becomes inf in half precision
        return {name: array.astype(dtype) for name, array in tensors.items()}


def _plain(change: Callable[[Tensors], Tensors]) -> Callable[[Path, Tensors], Path]:
    return lambda directory, tensors: write_folder(
        directory, change(tensors), metadata={"format": "pt"}
    )


# How the same weights come in the wild: name -> writer(directory, tensors). None loses a bit of
# what it is given, so reading any of them must give the clean tensors back.
VARIANTS: dict[str, Callable[[Path, Tensors], Path]] = {
    "clean": _plain(lambda tensors: tensors),
    "no prefix": _plain(without_prefix),
    "gamma and beta": _plain(with_old_norms),
    "gamma and beta, no prefix": _plain(lambda t: without_prefix(with_old_norms(t))),
    "buffers": _plain(with_buffers),
    "buffers, no prefix": _plain(lambda t: without_prefix(with_buffers(t))),
    "pre-training heads": _plain(lambda t: with_pretraining_heads(with_old_norms(t))),
    "float64": _plain(lambda tensors: as_dtype(tensors, np.float64)),
    "no metadata": write_folder,
    "other metadata": lambda d, t: write_folder(d, t, metadata={"format": "mlx", "x": "y"}),
    "3 shards": write_shards,
    "3 shards, gamma, buffers": lambda d, t: write_shards(d, with_buffers(with_old_norms(t))),
}

# Files in half precision hold fewer bits: what comes back is their values in float32.
HALVES: dict[str, Any] = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


# --- folders that PyTorch reads, or saved ---------------------------------------------------------

SENTENCES = [
    "a gorgeous, witty, seductive movie .",
    "it 's a charming and often affecting journey .",
    "unflinchingly bleak and desperate",
    "Well.",
    "the plot is nothing but boilerplate clichés from start to finish, and the script "
    "assumes that not only would subtlety be lost on the target audience",
]

# The tiny models of tests/golden/folders, as changes of tests.reference.config_for.
SAVED: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 20,
    "labels": 3,
}
SAVED_LENGTHS = [3, 17, 9]
OTHER_HEADS = ("BertModel", "BertForPreTraining", "BertForMaskedLM")


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A kind of target, and what transformers' pipeline must be told about it."""

    labels: tuple[str, ...]
    problem_type: str | None
    options: dict[str, str] = dataclasses.field(default_factory=dict)


PIPELINES = {
    "2 classes": Pipeline(("negative", "positive"), "single_label_classification"),
    "3 classes": Pipeline(("no", "perhaps", "yes"), None),
    "multi label": Pipeline(("joy", "anger", "fear"), "multi_label_classification"),
    "regression": Pipeline(("stars",), "regression", {"function_to_apply": "none"}),
}


def write_folder_for_sentences(directory: Path, case: Pipeline) -> Path:
    """Writes a tiny model with the real tokenizer, its weights wide enough for scores to differ."""
    from flaxbert import FlaxBertForSequenceClassification
    from flaxbert.storage.embedded import minilm_directory

    config = dataclasses.replace(
        CONFIG,
        vocab_size=30522,
        hidden_size=16,
        max_position_embeddings=64,
        id2label=case.labels,
        problem_type=case.problem_type,
    )
    tensors = random_tensors(config)
    for name, array in tensors.items():
        if name.endswith("LayerNorm.weight"):
            array += 1  # near one, as in any trained model: rounding errors do not grow
    params = assemble(config, tensors, "test").params
    model = FlaxBertForSequenceClassification(config, params, source=minilm_directory())
    model.save_pretrained(directory)
    return directory


@contextlib.contextmanager
def temporary() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
