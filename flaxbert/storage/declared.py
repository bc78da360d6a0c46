"""Shapes and types that an Orbax folder declares, checked before any array is read.

Orbax and TensorStore allocate what the files declare. Note: an array's shape may be right and its
chunks a thousand times larger; TensorStore allocates whole chunks, so a small file could exhaust
the memory.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

import jax

from flaxbert.errors import ModelFileError
from flaxbert.storage.store import store_for


def declared(checkpointer: Any, directory: PurePath) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shape and dtype of every array of an Orbax folder by its path, "a/b/c".

    Raises ModelFileError if these cannot be read, or an array's chunks exceed its shape.
    """
    try:
        found = checkpointer.metadata(store_for(directory).for_orbax(directory)).item_metadata
        if found is None:  # Orbax only logs that it could not read it
            raise ValueError("_METADATA is missing or damaged")
        leaves = jax.tree_util.tree_leaves_with_path(found.tree)
    except Exception as error:  # whatever Orbax, TensorStore and their parsers raise
        raise unreadable(directory, error) from error
    arrays = {}
    for path, leaf in leaves:
        shape, dtype = getattr(leaf, "shape", None), getattr(leaf, "dtype", None)
        chunk = getattr(getattr(leaf, "storage", None), "chunk_shape", None)
        if shape is None or dtype is None or chunk is None:
            continue  # Orbax can also store strings and numbers, which we do not use
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        # An axis of length 0 has chunks of length 1.
        fits = len(chunk) == len(shape) and all(map(lambda c, n: c <= max(n, 1), chunk, shape))
        if not fits:
            raise ModelFileError(
                f"{directory}: {name} has the shape {list(shape)} in chunks of {list(chunk)}. It "
                "was made by hand, or is damaged."
            )
        arrays[name] = jax.ShapeDtypeStruct(shape, dtype)
    return arrays


def unreadable(directory: PurePath, error: Exception) -> ModelFileError:
    """Returns one readable line for whatever Orbax or TensorStore raised."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    said = lines[0].partition(" See full TensorStore details")[0]
    return ModelFileError(f"{directory}: cannot be read by Orbax: {said[:200]}")
