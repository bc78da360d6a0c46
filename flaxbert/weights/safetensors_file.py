"""model.safetensors, whole or in shards named by an index file, without pickle.

The surprising thing: `__metadata__` decides nothing. Files without it are common; names and shapes
tell what a file holds.
"""

from __future__ import annotations

from pathlib import Path

import ml_dtypes  # noqa: F401 - registers bfloat16 with NumPy, for safetensors
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from flaxbert.errors import ModelFileError
from flaxbert.storage.workdir import read_json, write_atomically

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def read_safetensors(directory: Path) -> dict[str, np.ndarray]:
    """Returns every tensor of a checkpoint folder, or of one .safetensors file, by its name.

    Raises:
      ModelFileError: no weights, a damaged file, or an index that names files outside the folder
        or tensors that are not there.
    """
    if directory.is_file():
        return _read_file(directory)
    if (directory / WEIGHTS).is_file():
        return _read_file(directory / WEIGHTS)
    if (directory / INDEX).is_file():
        return _read_shards(directory)
    present = sorted(path.name for path in directory.glob("*") if path.is_file())
    raise ModelFileError(
        f"{directory}: has neither {WEIGHTS} nor {INDEX} (found {', '.join(present[:8]) or 'no'} "
        "files). Other formats are not read: they may run code."
    )


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes one file that PyTorch loads: `format: pt` is what transformers asks for.

    Not by safetensors' own `save_file`: that leaves a file which only its owner may read.
    """
    write_atomically(path, save(tensors, metadata={"format": "pt"}))


def _read_shards(directory: Path) -> dict[str, np.ndarray]:
    index = read_json(directory / INDEX)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(
        isinstance(shard, str) and Path(shard).name == shard for shard in weight_map.values()
    ):
        raise ModelFileError(
            f"{directory / INDEX}: expected a weight_map from parameter names to files of the "
            "same folder."
        )
    tensors: dict[str, np.ndarray] = {}
    for shard in sorted(set(weight_map.values())):
        tensors.update(_read_file(directory / shard))
    absent = sorted(set(weight_map) - set(tensors))
    if absent:
        raise ModelFileError(
            f"{directory / INDEX}: names {len(absent)} parameters that no shard has: "
            f"{', '.join(absent[:8])}."
        )
    return tensors


def _read_file(path: Path) -> dict[str, np.ndarray]:
    if path.is_file() and path.stat().st_size < 1024:
        start = path.read_bytes()[:64]
        if start.startswith(b"version https://git-lfs"):
            raise ModelFileError(f"{path}: is a git-lfs pointer. Run `git lfs pull`.")
    try:
        with safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{path}: cannot be read as safetensors: {error}") from error
