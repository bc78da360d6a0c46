"""A parameter tree as Orbax stores it: a folder of its own, or `params/` of a run's checkpoint.

A manifest beside Orbax's files reveals damage. Note: Orbax allocates what a checkpoint declares, so
folders that declare much more than their files could hold are refused.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from flaxbert.errors import ModelFileError
from flaxbert.storage.interface import DamagedError
from flaxbert.storage.local import files_in
from flaxbert.storage.manifest import NAME, verify_manifest, write_manifest
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

    from flaxbert.storage.declared import declared, unreadable

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
