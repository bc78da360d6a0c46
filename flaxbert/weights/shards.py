"""Weights in one file, or in several named by an index: `{"weight_map": {parameter: file}}`.

Shared by every format that transformers shards. The names in an index are not trusted: files must
be in the same folder, and parameters in files that the index names.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flaxbert.errors import ModelFileError
from flaxbert.storage.workdir import read_json
from flaxbert.weights.formats import Tensors, WeightFormat


def one_file_or_shards(
    whole: str,
    read_file: Callable[[Path], Tensors],
    write_file: Callable[[Path, Tensors], None] | None = None,
    **fields: Any,
) -> WeightFormat:
    """Returns the format whose weights are the file `whole`, or shards of it.

    `fields` are others of WeightFormat.
    """
    stem, _, suffix = whole.partition(".")
    index = f"{whole}.index.json"

    def load(directory: Path) -> Tensors:
        if (directory / whole).is_file():
            check_file(directory / whole)
            return read_file(directory / whole)
        return _read_shards(directory / index, read_file)

    def store(directory: Path, tensors: Tensors) -> None:
        assert write_file is not None
        write_file(directory / whole, tensors)

    return WeightFormat(
        files=((whole,), (index, f"{stem}-*-of-*.{suffix}")),
        load=load,
        store=store if write_file else None,
        **fields,
    )


def check_file(path: Path) -> None:
    """Raises ModelFileError for a pipe, a folder, or a git-lfs pointer that was not fetched."""
    if not path.is_file():
        raise ModelFileError(f"{path}: is missing, or no file.")
    with path.open("rb") as file:
        if file.read(64).startswith(b"version https://git-lfs"):
            raise ModelFileError(f"{path}: is a git-lfs pointer. Run `git lfs pull`.")


def _read_shards(index: Path, read_file: Callable[[Path], Tensors]) -> Tensors:
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
        check_file(index.parent / shard)
        tensors.update(read_file(index.parent / shard))
    absent = sorted(set(weight_map) - set(tensors))
    if absent:
        raise ModelFileError(
            f"{index}: names {len(absent)} parameters that no shard has: {', '.join(absent[:8])}."
        )
    return tensors
