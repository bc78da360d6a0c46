"""Google's BERT checkpoints (`bert_model.ckpt.index` and `.data-...`) without TensorFlow.

The index maps variable names to a shape and a place in the data files. The surprising thing: heads
are stored [outputs, inputs], as in PyTorch, all other kernels [inputs, outputs].
"""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import BinaryIO

import ml_dtypes
import numpy as np

from flaxbert.errors import ModelFileError
from flaxbert.weights.crc32c import masked_crc32c
from flaxbert.weights.shards import Tensors, refuse_pointer
from flaxbert.weights.sstable import MAGIC, TableError, read_table, read_varint

_INDEX = re.compile(r"(.*ckpt(?:-(\d+))?)\.index")
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

# What an optimizer and a loss scale leave beside the model.
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


@dataclasses.dataclass(frozen=True)
class _Entry:
    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int
    sliced: bool


def find_tf1(directory: Path) -> list[Path]:
    """Returns the index files of TensorFlow checkpoints in a folder."""
    return sorted(path for path in directory.iterdir() if _INDEX.fullmatch(path.name))


def read_tf1(directory: Path) -> Tensors:
    """Returns the model's variables of a folder's checkpoint under PyTorch's names and layout.

    Of several `model.ckpt-N` the one with the highest number is read.

    Raises:
      ModelFileError: damaged (every block and variable has a checksum), a Keras checkpoint of
        TensorFlow 2, or several that cannot be told apart.
    """
    index = _newest(directory)
    refuse_pointer(index)
    try:
        if index.stat().st_size > _MAX_INDEX_BYTES:
            raise TableError(f"it is larger than {_MAX_INDEX_BYTES} bytes")
        table = read_table(index.read_bytes())
        shards = _read_header(table.pop(b"", b""))
        names = {_decoded(key): value for key, value in table.items()}
        if any(
            ".ATTRIBUTES/VARIABLE_VALUE" in name or name.startswith("_CHECKPOINT") for name in names
        ):
            raise ModelFileError(
                f"{index}: is an object-graph checkpoint of TensorFlow 2 (Keras), which names "
                "objects, not BERT's variables. Convert it with the code that trained it, for "
                "example to a Hugging Face folder."
            )
        entries = {n: _read_entry(v) for n, v in names.items() if not _DROPPED.search(n)}
    except TableError as error:
        raise ModelFileError(
            f"{index}: is no index of a TensorFlow checkpoint: {error}."
        ) from error
    except OSError as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(f"{index}: cannot be read: {error.strerror}.") from error
    return _read_variables(index, shards, entries)


def is_v1(path: Path) -> bool:
    """Whether a file is a TensorFlow checkpoint of the format before 2016: one file, no index."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(MAGIC)))
        return file.read() == MAGIC


def _newest(directory: Path) -> Path:
    indices = find_tf1(directory)
    if len(indices) == 1:
        return indices[0]
    steps = {path: _INDEX.fullmatch(path.name) for path in indices}
    stems = {match[1].rpartition("-")[0] for match in steps.values() if match and match[2]}
    if len(stems) != 1 or not all(match and match[2] for match in steps.values()):
        raise ModelFileError(
            f"{directory}: has several checkpoints ({', '.join(path.name for path in indices)}). "
            "Move the one to be read, with its data file, to a folder of its own."
        )
    return max(indices, key=lambda path: int((steps[path] or "00")[2]))


def _read_variables(index: Path, shards: int, entries: dict[str, _Entry]) -> Tensors:
    stem = index.name.removesuffix(".index")
    tensors: Tensors = {}
    files: dict[int, BinaryIO] = {}
    try:
        # In the order of the data files: they are read from front to back.
        for name, entry in sorted(
            entries.items(), key=lambda item: (item[1].shard, item[1].offset)
        ):
            if entry.shard >= shards:
                raise ModelFileError(f"{index}: {name[:80]!r} is in a data file that is not there.")
            if entry.shard not in files:
                path = index.with_name(f"{stem}.data-{entry.shard:05d}-of-{shards:05d}")
                refuse_pointer(path)
                files[entry.shard] = path.open("rb")
            array = _read_variable(index, files[entry.shard], name, entry)
            torch_name, value = _for_torch(name, array)
            if torch_name in tensors:
                raise ModelFileError(f"{index}: {name[:80]!r} is there under two names.")
            tensors[torch_name] = value
    except OSError as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(f"{error.filename}: cannot be read: {error.strerror}.") from error
    finally:
        for file in files.values():
            file.close()
    return tensors


def _read_variable(index: Path, file: BinaryIO, name: str, entry: _Entry) -> np.ndarray:
    dtype = _DTYPES.get(entry.dtype)
    what = f"{index}: {name[:80]!r}"
    if dtype is None or entry.sliced:
        odd = "is stored in slices" if entry.sliced else f"has the data type {entry.dtype}"
        raise ModelFileError(f"{what} {odd}, which BERT's checkpoints do not use.")
    if math.prod(entry.shape) * dtype.itemsize != entry.size:
        raise ModelFileError(f"{what} has {entry.size} bytes for {dtype}{list(entry.shape)}.")
    end = file.seek(0, 2)
    if entry.offset + entry.size > end:
        raise ModelFileError(f"{what} is cut off: its data file has only {end} bytes.")
    file.seek(entry.offset)
    data = file.read(entry.size)
    if masked_crc32c(data) != entry.crc:
        raise ModelFileError(f"{what} does not match its checksum: fetch the checkpoint again.")
    return np.frombuffer(data, dtype.newbyteorder("<")).reshape(entry.shape)


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


def _decoded(key: bytes) -> str:
    try:
        return key.decode()
    except UnicodeDecodeError as error:
        raise TableError("a name is no text") from error


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
    numbers = [values.get(number, 0) for number in (1, 3, 4, 5, 6)]
    if max(numbers) >= 2**62:
        raise TableError("an entry has a negative size or place")
    dtype, shard, offset, size, crc = numbers
    return _Entry(dtype, shape, shard, offset, size, crc, sliced)


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
