"""flax_model.msgpack, the weights of transformers' former Flax classes: the nested dict as it is.

The bytes are not trusted: the unpacker has limits, and an extension type becomes an array only if
its length fits its shape. (`flax.serialization.msgpack_restore` has no limits: a
file of empty lists takes 65 times its size.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import msgpack
import numpy as np

from flaxbert.errors import ModelFileError
from flaxbert.storage.parameters import unflatten
from flaxbert.storage.workdir import write_atomically
from flaxbert.weights.formats import Tensors
from flaxbert.weights.shards import one_file_or_shards

_NDARRAY, _SCALAR = 1, 3  # extension types of flax.serialization
_CHUNKED = "__msgpack_chunked_array__"  # how it writes arrays of more than 1 GiB
_NAMES = ["float16", "float32", "float64", "bfloat16"]
_NAMES += [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
_DTYPES = {name: np.dtype(getattr(ml_dtypes, name, name)) for name in _NAMES}
# A tree of BERT has about 20 entries a layer. The unpacker itself stops at a depth of 1024.
_MAX_ENTRIES = 100_000
_NOTHING = {"max_array_len": 0, "max_map_len": 0, "max_ext_len": 0, "max_bin_len": 0}


def _read_file(path: Path) -> Tensors:
    try:
        flat = dict(_leaves(_unpacked(path.read_bytes()), ""))
    except OSError:
        raise
    except Exception as error:  # whatever msgpack and NumPy raise for invalid bytes
        said = str(error)[:200] or type(error).__name__
        raise ModelFileError(f"{path}: is no tree of Flax arrays, or damaged: {said}.") from error
    for name, array in flat.items():
        if "/layer_norm/" in name or (name.endswith("/kernel") and array.ndim == 3):
            raise ModelFileError(
                f"{path}: has the layout that transformers used before 4.6 (April 2021; {name}). "
                "Load it with transformers 4.5 and save it as PyTorch."
            )
    return flat


def _unpacked(data: bytes) -> Any:
    entries = 0

    def count(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal entries
        entries += len(pairs) + 1
        if entries > _MAX_ENTRIES:
            raise ValueError(f"more than {_MAX_ENTRIES} entries")
        return dict(pairs)

    limits = _NOTHING | {"max_map_len": 2_000, "max_str_len": 1_000, "max_ext_len": len(data)}
    tree = msgpack.unpackb(data, ext_hook=_array, object_pairs_hook=count, **limits)
    if isinstance(tree, dict) and isinstance(tree.get("params"), dict):
        return tree["params"]  # a saved train state
    return tree


def _array(code: int, data: bytes) -> np.ndarray:
    """Extension bytes -> array; (shape, dtype's name, buffer) is what they hold."""
    if code not in (_NDARRAY, _SCALAR):
        raise ValueError(f"the extension type {code}, no array of numbers")
    limits = _NOTHING | {"max_array_len": 8, "max_str_len": 32, "max_bin_len": len(data)}
    shape, name, buffer = msgpack.unpackb(data, **limits)
    dtype = _DTYPES.get(name)
    if dtype is None or type(buffer) is not bytes:
        raise ValueError(f"an array of type {str(name)[:32]!r}, or without bytes")
    if not all(type(size) is int for size in shape):  # an int times a string is a long string
        raise ValueError("an array with a wrong shape")
    if math.prod(shape) * dtype.itemsize != len(buffer):
        raise ValueError(f"an array {name}{list(shape)} of {len(buffer)} bytes")
    return np.frombuffer(buffer, dtype.newbyteorder("<")).reshape(shape)


def _leaves(tree: Any, prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(tree, dict) and _CHUNKED in tree:
        parts = (tree["shape"], tree["chunks"])  # dicts, numbered from "0"
        shape, chunks = ([part[str(i)] for i in range(len(part))] for part in parts)
        tree = np.concatenate([chunk.reshape(-1) for chunk in chunks]).reshape(shape)
    if isinstance(tree, np.ndarray) and prefix:
        yield prefix, tree
    elif isinstance(tree, dict):
        for name, branch in tree.items():
            yield from _leaves(branch, f"{prefix}/{name}" if prefix else name)
    else:
        where = repr(prefix[:80]) if prefix else "the top"
        raise ValueError(f"a {type(tree).__name__} at {where} where an array is expected")


def _write_file(path: Path, tensors: Tensors) -> None:
    """Writes a tree as `save_pretrained` of transformers 4's Flax classes did."""
    from flax import serialization  # here: it imports JAX, and `convert` lists formats before

    tree = unflatten(dict(sorted(tensors.items())))
    write_atomically(path, serialization.msgpack_serialize(tree))


FORMAT = one_file_or_shards(
    "flax_model.msgpack",
    _read_file,
    _write_file,
    name="Flax",
    option="flax",
    rank=30,
    flax_names=True,
)
