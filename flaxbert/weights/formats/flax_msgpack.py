"""flax_model.msgpack, the weights of transformers' former Flax classes, in both directions.

The bytes are not trusted: the unpacker gets limits, and an extension type becomes an array only
after its length is compared with its shape. The surprising thing: the tree in the file has the very
paths of ours, so writing is serializing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
from flax import serialization

from flaxbert.errors import ModelFileError
from flaxbert.model.binding import Params
from flaxbert.storage.workdir import write_atomically
from flaxbert.weights.shards import Tensors, read_shards, refuse_pointer
from flaxbert.weights.table import from_flax

WEIGHTS = "flax_model.msgpack"
INDEX = "flax_model.msgpack.index.json"

_NDARRAY, _COMPLEX, _SCALAR = 1, 2, 3  # extension types of flax.serialization
_CHUNKED = "__msgpack_chunked_array__"  # how it writes arrays of more than 1 GiB
_FLOATS = ("float16", "float32", "float64", "bfloat16")
_INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
_DTYPES = {name: np.dtype(getattr(ml_dtypes, name, name)) for name in (*_FLOATS, *_INTEGERS)}
# A tree of BERT has about 20 entries a layer. The unpacker itself stops at a depth of 1024.
_MAX_ENTRIES = 100_000
_MAX_MAP, _MAX_NAME, _MAX_AXES = 2_000, 1_000, 8


def read_flax(directory: Path) -> Tensors:
    """Returns every array of a folder's flax_model.msgpack under PyTorch's names and layout.

    Raises:
      ModelFileError: a damaged file, one that is no tree of arrays, or the tree of a transformers
        before 4.6.
    """
    if (directory / WEIGHTS).is_file():
        flat = _read_file(directory / WEIGHTS)
    else:
        flat = read_shards(directory / INDEX, _read_file)
    old = [path for path, a in flat.items() if "/layer_norm/" in path or _is_3d(path, a)]
    if old:
        raise ModelFileError(
            f"{directory}: its Flax weights have the layout that transformers used before 4.6 "
            f"(April 2021; {old[0]}). Load it with transformers 4.5 and save it as PyTorch."
        )
    return from_flax(flat, str(directory))


def write_flax(path: Path, params: Params) -> None:
    """Writes a tree as `save_pretrained` of transformers 4's Flax classes did."""
    write_atomically(path, serialization.msgpack_serialize(params))


def _is_3d(path: str, array: np.ndarray) -> bool:
    return path.endswith("/kernel") and array.ndim == 3


def _read_file(path: Path) -> Tensors:
    refuse_pointer(path)
    try:
        data = path.read_bytes()
        entries = 0

        def count(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
            nonlocal entries
            entries += len(pairs) + 1
            if entries > _MAX_ENTRIES:
                raise ValueError(f"more than {_MAX_ENTRIES} entries")
            for name, _ in pairs:
                if type(name) is not str:
                    raise ValueError(f"a {type(name).__name__} where a name is expected")
            tree = dict(pairs)
            if len(tree) != len(pairs):
                raise ValueError("a name that is there twice")
            return tree

        tree = msgpack.unpackb(
            data,
            ext_hook=_array,
            object_pairs_hook=count,
            raw=False,
            strict_map_key=True,
            max_str_len=_MAX_NAME,
            max_bin_len=0,
            max_array_len=0,
            max_map_len=_MAX_MAP,
            max_ext_len=len(data),
        )
        if isinstance(tree, dict) and isinstance(tree.get("params"), dict):
            tree = tree["params"]  # a saved train state
        if not isinstance(tree, dict):
            raise ValueError(f"a {type(tree).__name__} at the top")
        return dict(_leaves(tree, ""))
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}.") from error
    except RecursionError as error:
        raise ModelFileError(f"{path}: is no tree of Flax arrays: too deep.") from error
    except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
        said = str(error)[:200] or type(error).__name__
        raise ModelFileError(f"{path}: is no tree of Flax arrays, or damaged: {said}.") from error


def _array(code: int, data: bytes) -> np.ndarray:
    """Extension bytes -> array; (shape, dtype's name, buffer) is what they hold."""
    if code not in (_NDARRAY, _SCALAR):
        raise ValueError(
            "a complex number" if code == _COMPLEX else f"the unknown extension type {code}"
        )
    shape, name, buffer = msgpack.unpackb(
        data,
        raw=False,
        max_str_len=32,
        max_array_len=max(_MAX_AXES, 3),
        max_map_len=0,
        max_ext_len=0,
        max_bin_len=len(data),
    )
    dtype = _DTYPES.get(name) if type(name) is str else None
    if dtype is None:
        raise ValueError(f"an array of type {str(name)[:32]!r}")
    if type(buffer) is not bytes:
        raise ValueError("an array without bytes")
    _check_shape(shape)
    if math.prod(shape) * dtype.itemsize != len(buffer):
        raise ValueError(f"an array {name}{list(shape)} of {len(buffer)} bytes")
    return np.frombuffer(buffer, dtype.newbyteorder("<")).reshape(shape)


def _check_shape(shape: Any) -> None:
    if (
        not isinstance(shape, (list, tuple))
        or len(shape) > _MAX_AXES
        or not all(type(size) is int and 0 <= size < 2**40 for size in shape)
    ):
        raise ValueError("an array with a wrong shape")


def _leaves(tree: Any, prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(tree, dict) and _CHUNKED in tree:
        tree = _joined(tree)
    if isinstance(tree, np.ndarray):
        yield prefix, tree
    elif isinstance(tree, dict):
        for name, branch in tree.items():
            yield from _leaves(branch, f"{prefix}/{name}" if prefix else name)
    else:
        raise ValueError(f"a {type(tree).__name__} at {prefix[:80]!r} where an array is expected")


def _joined(tree: dict[str, Any]) -> np.ndarray:
    shape, chunks = (_numbered(tree[name]) for name in ("shape", "chunks"))
    _check_shape(shape)
    if not chunks or not all(isinstance(chunk, np.ndarray) for chunk in chunks):
        raise ValueError("an array in chunks that are none")
    if len({chunk.dtype for chunk in chunks}) > 1:
        raise ValueError("an array in chunks of several types")
    if math.prod(shape) != sum(chunk.size for chunk in chunks):
        raise ValueError(f"an array {list(shape)} in chunks of another size")
    return np.concatenate([chunk.reshape(-1) for chunk in chunks]).reshape(shape)


def _numbered(items: Any) -> list[Any]:
    if not isinstance(items, dict):
        raise ValueError("an array in chunks that are not numbered")
    return [items[str(index)] for index in range(len(items))]
