"""A parameter tree as Orbax stores it: a folder of its own, or `params/` of a run's checkpoint.

A manifest beside Orbax's files reveals damage. Note: Orbax and TensorStore allocate what the files
declare, so folders that declare much more than their files could hold are refused. An array's shape
may be right and its chunks a thousand times larger; TensorStore allocates whole chunks.
"""

from __future__ import annotations

import math
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from flaxbert.errors import ModelFileError, first_line
from flaxbert.storage.interface import DamagedError
from flaxbert.storage.local import files_in
from flaxbert.storage.manifest import NAME, verify_manifest, write_manifest
from flaxbert.storage.store import store_for
from flaxbert.storage.valid_checkpoints import STATE

PARAMS = "params"
_SOURCE = "source"
# Weights hardly compress; files that declare far more were made to exhaust memory.
_MAX_RATIO, _SPARE = 64, 2**20


def is_checkpoint(directory: Path) -> bool:
    """Whether a directory is `checkpoints/<step>` of a run."""
    return directory.resolve().name.isdecimal() and (directory / STATE).is_dir()


def description_of(directory: Path) -> Path:
    """Returns the folder with config.json and tokenizer of a model folder: mostly itself."""
    return directory.resolve().parents[1] / _SOURCE if is_checkpoint(directory) else directory


def save_parameters(directory: Path, arrays: dict[str, Any]) -> None:
    """Writes arrays by their paths, "a/b/c", to a directory that does not exist yet."""
    import orbax.checkpoint as ocp  # here, as below: most models need none, and it takes a second

    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = unflatten({path: np.asarray(array) for path, array in arrays.items()})
        checkpointer.save(directory.absolute(), tree)
    write_manifest(directory)


def verify_parameters(directory: Path, *, required: bool = False) -> None:
    """Compares a directory with its manifest, if it has one or `required`.

    Raises ModelFileError if something was changed, lost or added, or is a link.
    """
    try:
        if required or NAME in files_in(directory):
            verify_manifest(directory)
    except (DamagedError, OSError) as error:
        what = "the checkpoint is damaged" if required else "is damaged"
        raise ModelFileError(f"{directory}: {what}: {error}.") from error


def load_parameters(directory: Path, inside: str = "") -> dict[str, np.ndarray]:
    """Returns every array whose path starts with `inside` ("params/") by the rest of its path.

    Raises ModelFileError if Orbax cannot read them, they differ from their description, or are
    larger than the files could hold.
    """
    import jax
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer:
        found = declared(checkpointer, directory)
        wanted = {path: leaf for path, leaf in found.items() if path.startswith(inside)}
        size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in wanted.values())
        held = sum(path.stat().st_size for path in files_in(directory).values())
        if size > _MAX_RATIO * held + _SPARE:
            raise ModelFileError(
                f"{directory}: declares {size} bytes of parameters, its files have {held}."
            )
        try:
            item = unflatten(wanted)
            how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
            asked = ocp.args.PyTreeRestore(item=item, restore_args=how, partial_restore=True)
            tree = checkpointer.restore(directory.absolute(), args=asked)
        except Exception as error:  # whatever Orbax, TensorStore and their parsers raise
            raise unreadable(directory, error) from error
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    arrays = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in leaves
    }
    for path, leaf in wanted.items():
        array = arrays.get(path)
        if array is None or (array.shape, array.dtype) != (leaf.shape, leaf.dtype):
            raise ModelFileError(f"{directory}: {path} is not as its description says.")
    return {path.removeprefix(inside): arrays[path] for path in wanted}


def declared(checkpointer: Any, directory: PurePath) -> dict[str, Any]:
    """Returns shape and dtype of every array of an Orbax folder by its path, "a/b/c".

    Raises ModelFileError if these cannot be read, or an array's chunks exceed its shape.
    """
    import jax

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
    said = first_line(error).partition(" See full TensorStore details")[0]
    return ModelFileError(f"{directory}: cannot be read by Orbax: {said[:200]}")


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """Returns the nested dict of {"a/b/c": leaf}."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = leaf
    return tree
