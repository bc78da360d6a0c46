"""Google's BERT checkpoints (`bert_model.ckpt.index` and `.data-...`) without TensorFlow.

The index maps variable names to a shape and a place in the data files. Note: heads are stored
[outputs, inputs], as in PyTorch, all other kernels [inputs, outputs]. The checksums are not
compared: truncated files and wrong shapes are noticed without.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from flaxbert.errors import ModelFileError
from flaxbert.weights.formats import Tensors, WeightFormat
from flaxbert.weights.shards import check_file
from flaxbert.weights.sstable import MAGIC, TableError, read_table, read_varint

_INDEX = "*ckpt*.index"
_MAX_INDEX_BYTES = 64 * 2**20  # BERT-large with optimizer slots: 80 kB

# Numbers of tensorflow.DataType.
_DTYPES = {
    1: np.dtype("float32"),
    2: np.dtype("float64"),
    3: np.dtype("int32"),
    9: np.dtype("int64"),
    14: np.dtype(ml_dtypes.bfloat16),
    19: np.dtype("float16"),
}

# Variables of optimizers and loss scaling.
_DROPPED = re.compile(
    r"(^|/)(adam_[mv]|Adam(_1)?|AdamWeightDecayOptimizer[^/]*|LAMB[^/]*|beta[12]_power|global_step"
    r"|good_steps|bad_steps|(current_)?loss_scale|learning_rate)(_\d+)?(/|$)"
)
_HEADS = {
    "output": "classifier",
    "cls/seq_relationship/output": "cls.seq_relationship",
    "cls/squad/output": "qa_outputs",
}
_LEAVES = {"kernel": "weight", "gamma": "weight", "beta": "bias", "bias": "bias"}

_ADVICE = (
    "Convert it with transformers 4 and TensorFlow: "
    "BertForSequenceClassification.from_pretrained(FOLDER, from_tf=True).save_pretrained(NEW)."
)


class _Entry(NamedTuple):
    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    sliced: bool


def _load(directory: Path) -> Tensors:
    index = _newest(directory)
    check_file(index)
    try:
        if index.stat().st_size > _MAX_INDEX_BYTES:
            raise TableError(f"it is larger than {_MAX_INDEX_BYTES} bytes")
        table = read_table(index.read_bytes())
        shards = _read_header(table.pop(b"", b""))
        names = {key.decode(): value for key, value in table.items()}
        entries = {n: _read_entry(v) for n, v in names.items() if not _DROPPED.search(n)}
    except ValueError as error:  # TableError, or a name that is not text
        raise ModelFileError(
            f"{index}: is no index of a TensorFlow checkpoint: {error}."
        ) from error
    if any(".ATTRIBUTES/VARIABLE_VALUE" in n or n.startswith("_CHECKPOINT") for n in names):
        raise ModelFileError(
            f"{index}: is an object-graph checkpoint of TensorFlow 2 (Keras), which names "
            "objects, not BERT's variables. Convert it with the code that trained it, for "
            "example to a Hugging Face folder."
        )
    tensors: Tensors = {}
    # In the order of the data files, to read them from front to back.
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].shard, item[1].offset)):
        torch_name, value = _for_torch(name, _read_variable(index, shards, name, entry))
        if torch_name in tensors:
            raise ModelFileError(f"{index}: {name[:80]!r} is there under two names.")
        tensors[torch_name] = value
    return tensors


def _newest(directory: Path) -> Path:
    """Returns the index of the `model.ckpt-N` with the highest number."""
    steps: dict[Path, int] = {}
    stems = set()
    for path in sorted(directory.glob(_INDEX)):
        stem, _, step = path.name.removesuffix(".index").rpartition("-")
        stems.add(stem if step.isdecimal() else path.name)
        steps[path] = int(step) if step.isdecimal() else 0
    if len(stems) > 1:
        raise ModelFileError(
            f"{directory}: has several checkpoints ({', '.join(path.name for path in steps)}). "
            "Move the one to be read, with its data file, to a folder of its own."
        )
    return max(steps, key=lambda path: steps[path])


def _read_variable(index: Path, shards: int, name: str, entry: _Entry) -> np.ndarray:
    dtype = _DTYPES.get(entry.dtype)
    what = f"{index}: {name[:80]!r}"
    if dtype is None or entry.sliced:
        odd = "is stored in slices" if entry.sliced else f"has the data type {entry.dtype}"
        raise ModelFileError(f"{what} {odd}, which BERT's checkpoints do not use.")
    if math.prod(entry.shape) * dtype.itemsize != entry.size:
        raise ModelFileError(f"{what} has {entry.size} bytes for {dtype}{list(entry.shape)}.")
    stem = index.name.removesuffix(".index")
    path = index.with_name(f"{stem}.data-{entry.shard:05d}-of-{shards:05d}")
    check_file(path)
    held = path.stat().st_size
    if entry.offset + entry.size > held:
        raise ModelFileError(f"{what} is cut off: {path.name} has only {held} bytes.")
    count = entry.size // dtype.itemsize
    array = np.fromfile(path, dtype.newbyteorder("<"), count, offset=entry.offset)
    return array.reshape(entry.shape)


def _for_torch(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """Returns PyTorch's name of a variable, and the array as it lies there."""
    for suffix, last in (("_weights", "weight"), ("_bias", "bias")):
        head = _HEADS.get(name.removesuffix(suffix)) if name.endswith(suffix) else None
        if head is not None:
            return f"{head}.{last}", array
    if name == "cls/predictions/output_bias":
        return "cls.predictions.bias", array
    parts = re.sub(r"(^|/)layer_(\d+)/", r"\1layer/\2/", name).split("/")
    if parts[-1].endswith("_embeddings"):
        return ".".join([*parts, "weight"]), array
    last = _LEAVES.get(parts[-1], parts[-1])
    transposed = parts[-1] == "kernel" and array.ndim == 2
    return ".".join([*parts[:-1], last]), array.T if transposed else array


def _read_header(data: bytes) -> int:
    """Returns the number of data files (BundleHeaderProto)."""
    fields = dict(_fields(data))
    if fields.get(2, 0) != 0:
        raise TableError("it is big-endian")
    shards = fields.get(1, 0)
    if not isinstance(shards, int) or not 0 < shards < 100_000:
        raise TableError("it has no number of data files")
    return shards


def _read_entry(data: bytes) -> _Entry:
    """BundleEntryProto: where a variable is."""
    values: dict[int, int] = {}
    shape: tuple[int, ...] = ()
    sliced = False
    for number, value in _fields(data):
        if number == 2 and isinstance(value, bytes):
            shape = tuple(_dimension(part) for field, part in _fields(value) if field == 2)
            if len(shape) > 8:
                raise TableError("an entry has more than 8 axes")
        elif number == 7:
            sliced = True
        elif isinstance(value, int):
            values[number] = value
    dtype, shard, offset, size = (values.get(number, 0) for number in (1, 3, 4, 5))
    if max(shard, offset, size) >= 2**62:
        raise TableError("an entry has a negative size or place")
    return _Entry(dtype, shape, shard, offset, size, sliced)


def _dimension(part: int | bytes) -> int:
    size = dict(_fields(part)).get(1, 0) if isinstance(part, bytes) else 2**63
    if not isinstance(size, int) or size >= 2**40:
        raise TableError("an entry has a wrong shape")
    return size


def _fields(data: bytes) -> list[tuple[int, int | bytes]]:
    """Returns (number, value) of a protocol buffer's fields, without knowing its schema."""
    fields: list[tuple[int, int | bytes]] = []
    position = 0
    while position < len(data):
        tag, position = read_varint(data, position)
        number, kind = tag >> 3, tag & 7
        value: int | bytes
        if kind == 0:
            value, position = read_varint(data, position)
        else:
            size = {1: 8, 5: 4}.get(kind, -1)
            if kind == 2:
                size, position = read_varint(data, position)
            if size < 0 or position + size > len(data):
                raise TableError("an entry is damaged")
            taken = data[position : position + size]
            value = taken if kind == 2 else int.from_bytes(taken, "little")
            position += size
        fields.append((number, value))
    return fields


def _advise(directory: Path) -> str:
    for path in filter(Path.is_file, directory.glob("*.ckpt*")):
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - len(MAGIC)))
            if file.read() == MAGIC:
                return (
                    f"{path.name} is a TensorFlow checkpoint of the format before 2017 (one file, "
                    "no .index), which is not read. Save it again with a tf.train.Saver of "
                    "TensorFlow 1."
                )
    if (directory / "tf_model.h5").is_file():
        return f"has only tf_model.h5, the weights of Keras, which are not read. {_ADVICE}"
    if (directory / "saved_model.pb").is_file():
        return f"has a TensorFlow SavedModel, which is not read. {_ADVICE}"
    return ""


FORMAT = WeightFormat(
    name="TensorFlow 1",
    rank=40,
    files=((_INDEX, "*ckpt*.data-*-of-*"),),
    load=_load,
    advise=_advise,
)
