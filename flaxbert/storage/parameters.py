"""A plain parameter tree as an Orbax checkpoint: written, described without reading it, and read.

A manifest beside Orbax's files makes damage visible, as in a run's checkpoints.

Note: Orbax allocates what a checkpoint declares, so nothing is read before the caller has seen the
shapes, and never much more than the files could hold.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flaxbert.errors import ModelFileError
from flaxbert.storage.declared import declared, unreadable
from flaxbert.storage.interface import DamagedError
from flaxbert.storage.local import files_in
from flaxbert.storage.manifest import NAME, verify_manifest, write_manifest

_MARKER = "_METADATA"  # a file of every Orbax checkpoint
# Weights hardly compress; a file that declares far more than it has was made to fill the memory.
_MAX_RATIO, _SPARE = 64, 2**20


def holds_parameters(directory: Path) -> bool:
    """Whether a directory is an Orbax checkpoint."""
    return (directory / _MARKER).is_file()


def save_parameters(directory: Path, tree: Any) -> None:
    """Writes nested dicts of arrays to a directory that does not exist yet."""
    import orbax.checkpoint as ocp  # here, as below: most models need none, and it takes a second

    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(directory.absolute(), jax.tree.map(np.asarray, tree))
    write_manifest(directory)


def verify_parameters(directory: Path) -> bool:
    """Compares a directory with its manifest; returns False if it has none.

    Raises:
      ModelFileError: something was changed, lost or added, or is a link.
    """
    try:
        if NAME in files_in(directory):
            verify_manifest(directory)
            return True
        return False
    except (DamagedError, OSError) as error:
        raise ModelFileError(f"{directory}: is damaged: {error}.") from error


def describe_parameters(directory: Path) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shape and dtype of every array by its path, "a/b/c"; no array is read.

    Raises:
      ModelFileError: Orbax cannot read the description, or its chunks exceed its shapes.
    """
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer:
        return declared(checkpointer, directory)


def load_parameters(
    directory: Path, wanted: dict[str, jax.ShapeDtypeStruct]
) -> dict[str, np.ndarray]:
    """Reads the arrays at these paths, of these shapes and dtypes, and no others.

    Raises:
      ModelFileError: they are not there as described, or larger than the files could hold.
    """
    import orbax.checkpoint as ocp

    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in wanted.values())
    held = sum(path.stat().st_size for path in files_in(directory).values())
    if size > _MAX_RATIO * held + _SPARE:
        raise ModelFileError(
            f"{directory}: declares {size} bytes of parameters, its files have {held}."
        )
    item: dict[str, Any] = {}
    for path, leaf in wanted.items():
        *parents, last = path.split("/")
        node = item
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = leaf
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.restore(
                directory.absolute(),
                args=ocp.args.PyTreeRestore(
                    item=item,
                    restore_args=jax.tree.map(
                        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item
                    ),
                    partial_restore=True,
                ),
            )
    except Exception as error:  # whatever Orbax, TensorStore and their parsers raise
        raise unreadable(directory, error) from error
    arrays = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    for path, leaf in wanted.items():
        array = arrays.get(path)
        if array is None or (array.shape, array.dtype) != (leaf.shape, leaf.dtype):
            raise ModelFileError(f"{directory}: {path} is not as its description says.")
    return arrays
