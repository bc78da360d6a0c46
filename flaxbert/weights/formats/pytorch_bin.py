"""pytorch_model.bin without PyTorch: the zip archive of torch >= 1.6 and the older plain pickles.

The surprising thing: sizes are believed only after they are compared with the file. A tensor may
not have more elements than its storage, nor the storages more bytes than the file.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from flaxbert.errors import ModelFileError
from flaxbert.weights.pickle_reader import (
    MAX_PICKLE_BYTES,
    Storage,
    TensorRecord,
    read_pickle,
)
from flaxbert.weights.shards import Tensors, read_shards, refuse_pointer

WEIGHTS = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
# Bytes of the records that end a zip file, and of a list of entries: BERT-large has 43 kB.
_ZIP_END, _ZIP64_LOCATOR, _ZIP64_END, _MAX_DIRECTORY = 22, 20, 56, 2**20
_WRAPPERS = ("state_dict", "model")  # Lightning's, NVIDIA's
_ADVICE = (
    "Load it with the PyTorch that wrote it and save the weights alone, as model.safetensors "
    "(safetensors.torch.save_file)."
)


def read_pytorch(directory: Path) -> Tensors:
    """Returns every tensor of a folder's pytorch_model.bin, whole or in shards, by its name.

    Raises:
      ModelFileError: a damaged file, or one that does more than describe tensors.
    """
    if (directory / WEIGHTS).is_file():
        return read_pytorch_file(directory / WEIGHTS)
    return read_shards(directory / INDEX, read_pytorch_file)


def read_pytorch_file(path: Path) -> Tensors:
    """Returns every tensor of one file by its name; see `read_pytorch`."""
    refuse_pointer(path)
    try:
        with path.open("rb") as file:
            start = file.read(512)
            file.seek(0)
            if start.startswith(b"PK\x03\x04"):
                return _read_zip(file, path)
            if start[257:262] == b"ustar":
                raise ModelFileError(
                    f"{path}: is the tar format of the first PyTorch versions. {_ADVICE}"
                )
            return _read_legacy(file, path)
    except OSError as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}.") from error


def _read_zip(file: BinaryIO, path: Path) -> Tensors:
    try:
        _check_directory(file, path)
        with zipfile.ZipFile(file) as archive:
            entries = _checked_entries(archive, path)
            pickle = entries.get("data.pkl")
            if pickle is None or "constants.pkl" in entries:
                what = "a TorchScript program" if pickle else "a zip file without a data.pkl"
                raise ModelFileError(f"{path}: is {what}, no state dict. {_ADVICE}")
            if pickle.file_size > MAX_PICKLE_BYTES:
                raise ModelFileError(
                    f"{path}: its data.pkl has {pickle.file_size} bytes, expected at most "
                    f"{MAX_PICKLE_BYTES}. {_ADVICE}"
                )
            order = "little"
            if "byteorder" in entries and entries["byteorder"].file_size < 16:
                order = archive.read(entries["byteorder"]).decode("ascii", "replace")
            if order not in ("little", "big"):
                raise ModelFileError(f"{path}: has the byte order {order!r}.")
            root, _ = read_pickle(io.BytesIO(archive.read(pickle)), f"{path}: data.pkl")

            def load(storage: Storage) -> bytes:
                entry = entries.get(f"data/{storage.key}")
                if entry is None or storage.view is not None:
                    raise _wrong(path, f"the storage {storage.key[:40]!r} is missing")
                if entry.file_size != _bytes_of(storage):
                    raise _wrong(
                        path,
                        f"the storage {storage.key[:40]!r} has {entry.file_size} bytes, expected "
                        f"{_bytes_of(storage)}",
                    )
                return archive.read(entry)

            return _tensors(root, _Storages(load, order == "big"), path)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise ModelFileError(f"{path}: is damaged: {error}.") from error


def _check_directory(file: BinaryIO, path: Path) -> None:
    """Refuses a list of entries that would fill the memory: zipfile makes an object of each."""
    end = file.seek(0, 2)
    file.seek(max(0, end - _ZIP_END - _ZIP64_LOCATOR - _ZIP64_END))
    tail = file.read()
    record = tail[-_ZIP_END:]
    if not record.startswith(b"PK\x05\x06") or not record.endswith(b"\0\0"):
        raise _wrong(path, "it does not end as an archive of torch does")
    size = int.from_bytes(record[12:16], "little")
    if tail[-_ZIP_END - _ZIP64_LOCATOR :].startswith(b"PK\x06\x07"):
        size = int.from_bytes(tail[40:48], "little")
        if not tail.startswith(b"PK\x06\x06"):
            raise _wrong(path, "its list of entries is not where torch writes it")
    if size > _MAX_DIRECTORY:
        raise _wrong(path, f"its list of entries has {size} bytes")


def _checked_entries(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """Returns the entries by their name below the archive's one folder.

    torch stores entries side by side, uncompressed; anything else is not from torch, and could make
    a small file large.
    """
    entries: dict[str, zipfile.ZipInfo] = {}
    folders, total = set(), 0
    for entry in archive.infolist():
        folder, _, name = entry.filename.partition("/")
        parts = name.split("/")
        if (
            entry.compress_type != zipfile.ZIP_STORED
            or entry.compress_size != entry.file_size
            or entry.flag_bits & 1
        ):
            raise _wrong(path, f"the entry {entry.filename[:80]!r} is compressed or encrypted")
        if (
            folder in ("", "..")
            or "\\" in entry.filename
            or any(part in ("", ".", "..") for part in parts)
            or name in entries
        ):
            raise _wrong(path, f"the entry {entry.filename[:80]!r} is misnamed or there twice")
        entries[name] = entry
        folders.add(folder)
        total += entry.file_size
    if len(folders) > 1 or total > path.stat().st_size:
        raise _wrong(path, "the entries are in several folders or overlap")
    return entries


def _read_legacy(file: BinaryIO, path: Path) -> Tensors:
    """Magic number, version, system, object and storage keys, each a pickle; then the storages."""
    source = str(path)
    magic, _ = read_pickle(file, source)
    if magic != _MAGIC or read_pickle(file, source)[0] != _PROTOCOL:
        raise ModelFileError(f"{path}: is a pickle, but none that torch.save wrote. {_ADVICE}")
    system, _ = read_pickle(file, source)
    if type(system) is not dict or system.get("little_endian") is not True:
        raise ModelFileError(f"{path}: was written by a big-endian machine. {_ADVICE}")
    (root, storages), (keys, _) = read_pickle(file, source), read_pickle(file, source)
    if type(keys) is not list or not all(type(key) is str and key in storages for key in keys):
        raise _wrong(path, "its list of storages names unknown ones")
    data: dict[str, bytes] = {}
    for key in keys:
        size, expected = int.from_bytes(file.read(8), "little"), _bytes_of(storages[key])
        if key in data or size != storages[key].size:
            raise _wrong(path, f"the storage {key[:40]!r} is there twice or of another size")
        if expected > path.stat().st_size - file.tell():
            raise _wrong(path, f"the storage {key[:40]!r} is cut off")
        data[key] = file.read(expected)

    def load(storage: Storage) -> bytes:
        if storage.key not in data:
            raise _wrong(path, f"the storage {storage.key[:40]!r} is missing")
        return data[storage.key]

    return _tensors(root, _Storages(load, False), path)


class _Storages:
    """Storages as flat arrays, each read once: tensors may share one."""

    def __init__(self, load: Callable[[Storage], bytes], swap: bool) -> None:
        self._load = load
        self._swap = swap
        self._arrays: dict[str, np.ndarray] = {}

    def array(self, storage: Storage) -> np.ndarray:
        """Returns the storage's elements; raises ValueError for a view outside of it."""
        if storage.key not in self._arrays:
            flat = np.frombuffer(self._load(storage), _dtype(storage.dtype))
            if self._swap:
                words = flat.view(f"u{flat.itemsize}").byteswap()
                flat = words.view(flat.dtype)
            self._arrays[storage.key] = flat
        flat = self._arrays[storage.key]
        if storage.view is None:
            return flat
        _, offset, size = storage.view
        if offset < 0 or size < 0 or offset + size > len(flat):
            raise ValueError("a view outside of its storage")
        return flat[offset : offset + size]


def _tensors(root: Any, storages: _Storages, path: Path) -> Tensors:
    tensors = {}
    for name, record in _records(root, path):
        try:
            tensors[name] = _strided(storages.array(record.storage), record)
        except ValueError as error:
            raise _wrong(path, f"{name[:80]!r} has {error}") from error
    return tensors


def _strided(flat: np.ndarray, record: TensorRecord) -> np.ndarray:
    """Returns the tensor as a view of its storage; bounds are checked here, NumPy does not."""
    shape, strides = record.shape, record.strides
    count = math.prod(shape)
    last = record.offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if record.offset > len(flat) or (count and (count > len(flat) or last >= len(flat))):
        raise ValueError(f"shape {shape} and strides {strides}, outside of its storage")
    if not count:
        return np.zeros(shape, flat.dtype)
    return np.lib.stride_tricks.as_strided(
        flat[record.offset :], shape, [step * flat.itemsize for step in strides], writeable=False
    )


def _records(root: Any, path: Path) -> list[tuple[str, TensorRecord]]:
    """Finds the state dict: the object itself, or what one of the usual wrappers holds."""
    for wrapper in _WRAPPERS:
        if type(root) is dict and type(root.get(wrapper)) is dict:
            root = root[wrapper]
            break
    if type(root) is not dict:
        raise ModelFileError(f"{path}: holds no dict of tensors. {_ADVICE}")
    found = [(name, value) for name, value in root.items() if isinstance(value, TensorRecord)]
    if not found or not all(type(name) is str for name, _ in found):
        raise ModelFileError(f"{path}: holds no dict from names to tensors. {_ADVICE}")
    return found


def _bytes_of(storage: Storage) -> int:
    return storage.size * _dtype(storage.dtype).itemsize


def _dtype(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name).newbyteorder("<")


def _wrong(path: Path, what: str) -> ModelFileError:
    return ModelFileError(f"{path}: is damaged or was made by hand: {what}.")
