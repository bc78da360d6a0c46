"""The one name table between flaxbert's parameter tree and BERT checkpoints, used both ways.

The tree keeps BERT's own terms, so a PyTorch name is the path with the last part renamed; a linear
kernel is [inputs, outputs] here and [outputs, inputs] in PyTorch. There is no list of names to keep
in step with the model: the table is computed from the model's own tree, so a parameter cannot be
forgotten in one direction. A head's own parameters are those under its prefix.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

from flaxbert.errors import ModelFileError
from flaxbert.heads import Params, abstract_params, all_heads, head_of
from flaxbert.model.bert_config import BertConfig
from flaxbert.storage.parameters import unflatten

# Last part of a path here -> (last part in PyTorch, transposed).
_LEAVES = {
    "kernel": ("weight", True),
    "embedding": ("weight", False),
    "scale": ("weight", False),
    "bias": ("bias", False),
}

_FLOATS = tuple(map(np.dtype, (np.float16, np.float32, np.float64, ml_dtypes.bfloat16)))

_POOLER = "bert/pooler/"

# Buffers that old versions saved: derived from nothing but their shape.
_BUFFERS = re.compile(r"(^|\.)(position_ids|token_type_ids)$")
# transformers' classes for other tasks, and the prefix of their heads.
_OTHER_CLASSES = {
    "BertForPreTraining": "cls",
    "BertForMaskedLM": "cls",
    "BertForNextSentencePrediction": "cls",
    "BertLMHeadModel": "cls",
    "BertForQuestionAnswering": "qa_outputs",
    "BertForMultipleChoice": "classifier",
}
_OLD_LAYER_NORM = {"gamma": "weight", "beta": "bias"}
_WRAPPERS = ("module.", "model.")  # of DataParallel, of Lightning
_ENCODER_PARTS = ("embeddings.", "encoder.", "pooler.")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One parameter: its path here, its PyTorch name, and the layout of its array there."""

    path: str
    name: str
    shape: tuple[int, ...]  # in PyTorch
    transposed: bool


def entries(config: BertConfig) -> list[Entry]:
    """Returns the table for a model: every parameter once."""
    table = []
    for path, leaf in flatten(abstract_params(config)).items():
        name, transposed = torch_name(path)
        shape = leaf.shape[::-1] if transposed else leaf.shape
        table.append(Entry(path, name, tuple(shape), transposed))
    return table


def canonical_name(name: str) -> str | None:
    """Returns the PyTorch name that a name found in a file stands for; None = a buffer, dropped.

    Accepts files without the `bert.` prefix, prefixes of wrapping modules, old gamma/beta norms and
    NVIDIA's name of the intermediate layer.
    """
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    name = name.replace(".intermediate.dense_act.", ".intermediate.dense.")
    if _BUFFERS.search(name):
        return None
    head, _, last = name.rpartition(".")
    if head.endswith("LayerNorm") and last in _OLD_LAYER_NORM:
        name = f"{head}.{_OLD_LAYER_NORM[last]}"
    return f"bert.{name}" if name.startswith(_ENCODER_PARTS) else name


@dataclasses.dataclass(frozen=True)
class Assembled:
    """Parameters read from a file, and what the user should know about them."""

    params: Params  # numpy arrays; a fresh leaf is absent
    fresh: tuple[str, ...]  # PyTorch names of parameters to be initialised: pooler, head
    dropped: tuple[str, ...]  # other heads, or the pooler, which this model does not have
    unused: tuple[str, ...]  # the head of a class that is for another task, or unknown
    resized: int  # labels of the file's head where that is why the head is fresh, else 0


def assemble(
    config: BertConfig, tensors: dict[str, np.ndarray], source: str, *, architecture: str = ""
) -> Assembled:
    """Builds the parameter tree from named PyTorch arrays, as float32.

    A pooler or a head may be missing, or the head may have another number of labels; they are
    listed as fresh. Everything else must match. `architecture` is the class that config.json names,
    if it does: the head of one for another task is not used, nor that of an unknown one if it has
    other parameters than this model's head.
    Raises ModelFileError, which lists all missing, unexpected and misshapen parameters.
    """
    found: dict[str, tuple[str, np.ndarray]] = {}
    problems, dropped = [], []
    table = {entry.name: entry for entry in entries(config)}
    prefix = head_of(config).prefix
    others = {other.prefix for other in all_heads().values()}.union(_OTHER_CLASSES.values())
    others -= {prefix}
    for name, array in tensors.items():
        canonical = canonical_name(name)
        if canonical is None:
            continue
        is_pooler = canonical.startswith("bert.pooler.")
        if canonical.partition(".")[0] in others or (is_pooler and canonical not in table):
            dropped.append(name)
        elif canonical in found:
            problems.append(f"{name} and {found[canonical][0]} are the same parameter")
        else:
            found[canonical] = (name, array)

    heads = [name for name, entry in table.items() if entry.path.startswith(f"{prefix}/")]
    unused = []
    outside = [name for name in found if not name.startswith("bert.")]
    if architecture not in ("", config.architecture):
        known = {other.architecture for other in all_heads().values()}.union(_OTHER_CLASSES)
        if architecture in known or not set(outside) <= set(heads):
            unused = [found.pop(name)[0] for name in outside]
    resized = 0
    if any(name in found and found[name][1].shape != table[name].shape for name in heads):
        resized = _labels_of_head(found, heads, config)
    if resized:
        for name in heads:
            found.pop(name, None)

    flat: dict[str, np.ndarray] = {}
    missing = [name for name in table if name not in found]
    fresh = _fresh(missing, table, prefix)
    problems += [f"{name} is missing" for name in missing if name not in fresh]
    for name, (original, array) in found.items():
        entry = table.get(name)
        if entry is None:
            problems.append(f"{original} is not a parameter of this model")
        elif array.shape != entry.shape:
            problems.append(f"{original} has shape {array.shape}, expected {entry.shape}")
        elif array.dtype not in _FLOATS:
            problems.append(f"{original} has dtype {array.dtype}, expected floating point")
        else:
            array = np.asarray(array, np.float32)
            # Memory of its own, and contiguous.
            flat[entry.path] = np.array(array.T if entry.transposed else array, order="C")
    if problems:
        raise ModelFileError(
            f"{source}: does not fit its config.json ({len(problems)} differences):\n  "
            + "\n  ".join(sorted(problems))
        )
    return Assembled(unflatten(flat), tuple(fresh), tuple(dropped), tuple(unused), resized)


def to_torch(config: BertConfig, params: Params) -> dict[str, np.ndarray]:
    """Returns {PyTorch name: contiguous float32 array} of every parameter; bit-equal.

    A tree without head or pooler gives the names without them.
    """
    flat = flatten(params)
    table = {entry.name: entry for entry in entries(config)}
    missing = [name for name, entry in table.items() if entry.path not in flat]
    absent = _fresh(missing, table, head_of(config).prefix)
    tensors = {}
    for name, entry in table.items():
        if name in absent:
            continue
        array = np.asarray(flat[entry.path], np.float32)
        tensors[entry.name] = np.ascontiguousarray(array.T if entry.transposed else array)
    return tensors


def from_flax(flat: dict[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """Returns {PyTorch name: array} for {path in a Flax tree: array}. Nothing is copied.

    Raises ModelFileError if two paths have the same name.
    """
    tensors: dict[str, np.ndarray] = {}
    for path, array in flat.items():
        name, transposed = torch_name(path)
        if name in tensors:
            raise ModelFileError(f"{source}: {path[:80]!r} is there under two names.")
        tensors[name] = array.T if transposed else array
    return tensors


def torch_name(path: str) -> tuple[str, bool]:
    """Returns PyTorch's name for a path in a Flax tree, and whether the array is transposed."""
    *parents, last = path.split("/")
    torch_last, transposed = _LEAVES.get(last, (last, False))
    return ".".join([*parents, torch_last]), transposed


def flatten(tree: Params) -> dict[str, Any]:
    """Returns {"bert/encoder/layer/0/...": leaf} in the tree's order, layers by number."""
    return dict(_leaves(tree, ""))


def _leaves(tree: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(tree, dict):
        yield prefix, tree
        return
    for name in sorted(tree, key=lambda part: (len(part), part) if part.isdecimal() else (0, part)):
        yield from _leaves(tree[name], f"{prefix}/{name}" if prefix else name)


def _fresh(missing: list[str], table: dict[str, Entry], prefix: str) -> list[str]:
    """Returns those of the missing names that may be missing: a whole pooler, a whole head.

    Half of one is a damaged file.
    """
    fresh = []
    for part in (_POOLER, f"{prefix}/"):
        names = [name for name, entry in table.items() if entry.path.startswith(part)]
        if all(name in missing for name in names):
            fresh += names
    return fresh


def _labels_of_head(
    found: dict[str, tuple[str, np.ndarray]], heads: list[str], config: BertConfig
) -> int:
    """Returns the number of labels that weight and bias agree on, or 0: then it is an error."""
    shapes = {name.rpartition(".")[2]: found[name][1].shape for name in heads if name in found}
    weight, bias = shapes.get("weight", ()), shapes.get("bias", ())
    whole = len(weight) == 2 and weight[1] == config.hidden_size and bias == weight[:1]
    return int(weight[0]) if whole else 0
