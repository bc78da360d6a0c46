"""model.safetensors, whole or in shards named by an index file, without pickle.

The surprising thing: `__metadata__` decides nothing. Files without it are common; names and shapes
tell what a file holds.
"""

from __future__ import annotations

from pathlib import Path

import ml_dtypes  # noqa: F401 - registers bfloat16 with NumPy, for safetensors
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from flaxbert.errors import ModelFileError
from flaxbert.storage.workdir import write_atomically
from flaxbert.weights.shards import Tensors, read_shards, refuse_pointer

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def read_safetensors(directory: Path) -> Tensors:
    """Returns every tensor of a checkpoint folder, or of one .safetensors file, by its name.

    Raises:
      ModelFileError: no weights, a damaged file, or an index that names files outside the folder
        or tensors that are not there.
    """
    if directory.is_file():
        return _read_file(directory)
    if (directory / WEIGHTS).is_file():
        return _read_file(directory / WEIGHTS)
    return read_shards(directory / INDEX, _read_file)


def write_safetensors(path: Path, tensors: Tensors) -> None:
    """Writes one file that PyTorch loads: `format: pt` is what transformers asks for.

    Not by safetensors' own `save_file`: that leaves a file which only its owner may read.
    """
    write_atomically(path, save(tensors, metadata={"format": "pt"}))


def _read_file(path: Path) -> Tensors:
    refuse_pointer(path)
    try:
        with safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{path}: cannot be read as safetensors: {error}") from error
