"""pytorch_model.bin without PyTorch: the zip archive of torch >= 1.6 and the older plain pickles.

Declared sizes are checked: a tensor may not have more elements than its storage, nor the storages
more bytes than the file.
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
from flaxbert.weights.formats import Tensors
from flaxbert.weights.pickle_reader import (
    MAX_PICKLE_BYTES,
    PickledDict,
    Storage,
    TensorRecord,
    read_pickle,
)
from flaxbert.weights.shards import one_file_or_shards

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_WRAPPERS = ("state_dict", "model")  # Lightning's, NVIDIA's
_ADVICE = (
    "Load it with the PyTorch that wrote it and save the weights alone, as model.safetensors "
    "(safetensors.torch.save_file)."
)


def _read_file(path: Path) -> Tensors:
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


def _read_zip(file: BinaryIO, path: Path) -> Tensors:
    try:
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
            if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
                raise ModelFileError(f"{path}: was written by a big-endian machine. {_ADVICE}")
            root, _ = read_pickle(io.BytesIO(archive.read(pickle)), f"{path}: data.pkl")

            def load(storage: Storage) -> bytes | None:
                entry = entries.get(f"data/{storage.key}")
                return archive.read(entry) if entry and storage.view is None else None

            return _tensors(root, load, path)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise ModelFileError(f"{path}: is damaged: {error}.") from error


def _checked_entries(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """Returns the entries by their name below the archive's one folder.

    torch stores entries side by side, uncompressed; anything else is not from torch, and could make
    a small file large.
    """
    entries: dict[str, zipfile.ZipInfo] = {}
    folders, total = set(), 0
    for entry in archive.infolist():
        folder, _, name = entry.filename.partition("/")
        plain = entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 1
        if not plain or entry.compress_size != entry.file_size:
            raise _wrong(path, f"the entry {entry.filename[:80]!r} is compressed or encrypted")
        if (
            folder in ("", "..")
            or "\\" in entry.filename
            or any(part in ("", ".", "..") for part in name.split("/"))
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
    if type(system) is not PickledDict or system.get("little_endian") is not True:
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
    return _tensors(root, lambda storage: data.get(storage.key), path)


def _tensors(root: Any, load: Callable[[Storage], bytes | None], path: Path) -> Tensors:
    """Returns the arrays of a state dict; tensors may share a storage, which is loaded once."""
    storages: dict[str, np.ndarray] = {}
    tensors = {}
    for name, record in _records(root, path):
        storage = record.storage
        if storage.key not in storages:
            data = load(storage)
            if data is None:
                raise _wrong(path, f"the storage {storage.key[:40]!r} is missing")
            if len(data) != _bytes_of(storage):
                what = f"has {len(data)} bytes, expected {_bytes_of(storage)}"
                raise _wrong(path, f"the storage {storage.key[:40]!r} {what}")
            storages[storage.key] = np.frombuffer(data, _dtype(storage.dtype))
        try:
            tensors[name] = _strided(_viewed(storages[storage.key], storage), record)
        except ValueError as error:
            raise _wrong(path, f"{name[:80]!r} has {error}") from error
    return tensors


def _viewed(flat: np.ndarray, storage: Storage) -> np.ndarray:
    if storage.view is None:
        return flat
    _, offset, size = storage.view
    if offset < 0 or size < 0 or offset + size > len(flat):
        raise ValueError("a view outside of its storage")
    return flat[offset : offset + size]


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
        if type(root) is PickledDict and type(root.get(wrapper)) is PickledDict:
            root = root[wrapper]
            break
    if type(root) is not PickledDict:
        raise ModelFileError(f"{path}: holds no dict of tensors. {_ADVICE}")
    found = [(name, value) for name, value in root.items() if type(value) is TensorRecord]
    if not found or not all(type(name) is str for name, _ in found):
        raise ModelFileError(f"{path}: holds no dict from names to tensors. {_ADVICE}")
    return found


def _bytes_of(storage: Storage) -> int:
    return storage.size * _dtype(storage.dtype).itemsize


def _dtype(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name).newbyteorder("<")


def _wrong(path: Path, what: str) -> ModelFileError:
    return ModelFileError(f"{path}: is damaged or was made by hand: {what}.")


FORMAT = one_file_or_shards("pytorch_model.bin", _read_file, name="PyTorch", rank=20)
