"""Weights in several files named by an index: `{"weight_map": {parameter: file}}`.

Shared by every format that transformers shards. The surprising thing: the names in an index are not
trusted; a file must stand in the same folder, and a parameter in the file that the index names.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from flaxbert.errors import ModelFileError
from flaxbert.storage.workdir import read_json

Tensors = dict[str, np.ndarray]


def read_shards(index: Path, read_file: Callable[[Path], Tensors]) -> Tensors:
    """Returns the tensors of all files that an index names.

    Raises:
      ModelFileError: no weight_map, a file outside of the folder, or a parameter that no file has.
    """
    body = read_json(index)
    weight_map = body.get("weight_map") if isinstance(body, dict) else None
    if not isinstance(weight_map, dict) or not all(
        isinstance(shard, str) and Path(shard).name == shard and shard.isprintable()
        for shard in weight_map.values()
    ):
        raise ModelFileError(
            f"{index}: expected a weight_map from parameter names to files of the same folder."
        )
    tensors: Tensors = {}
    for shard in sorted(set(weight_map.values())):
        tensors.update(read_file(index.parent / shard))
    absent = sorted(set(weight_map) - set(tensors))
    if absent:
        raise ModelFileError(
            f"{index}: names {len(absent)} parameters that no shard has: {', '.join(absent[:8])}."
        )
    return tensors


def refuse_pointer(path: Path) -> None:
    """Raises ModelFileError if a file is what git-lfs leaves where it did not fetch."""
    if path.is_file() and path.stat().st_size < 1024:
        with path.open("rb") as file:
            if file.read(64).startswith(b"version https://git-lfs"):
                raise ModelFileError(f"{path}: is a git-lfs pointer. Run `git lfs pull`.")
