"""model.safetensors, whole or in shards, without pickle: what transformers writes today.

Note: `__metadata__` decides nothing. Files without it are common; names and shapes tell what a file
holds.
"""

from __future__ import annotations

from pathlib import Path

import ml_dtypes  # noqa: F401 - registers bfloat16 with NumPy, for safetensors
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from flaxbert.errors import ModelFileError
from flaxbert.storage.workdir import write_atomically
from flaxbert.weights.formats import Tensors
from flaxbert.weights.shards import one_file_or_shards


def write_safetensors(path: Path, tensors: Tensors) -> None:
    """Writes one file that PyTorch loads: `format: pt` is what transformers asks for.

    Not by safetensors' own `save_file`: that leaves a file which only its owner may read.
    """
    write_atomically(path, save(tensors, metadata={"format": "pt"}))


def _read_file(path: Path) -> Tensors:
    try:
        with safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{path}: cannot be read as safetensors: {error}") from error


FORMAT = one_file_or_shards(
    "model.safetensors",
    _read_file,
    write_safetensors,
    name="safetensors",
    option="pytorch",
    rank=10,
)
