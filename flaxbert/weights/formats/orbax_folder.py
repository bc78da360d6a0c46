"""Parameters that Orbax wrote: `params/` of a converted folder, or a checkpoint of a run.

A run's checkpoint is a model too. Its config and tokenizer stand in `source/` of the workdir, and
of its state only the parameters are read; those that were not trained stand in `frozen/` beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flaxbert.errors import ModelFileError
from flaxbert.model.bert_config import BertConfig
from flaxbert.model.heads import Params
from flaxbert.storage.manifest import verify_manifest
from flaxbert.storage.parameters import (
    describe_parameters,
    holds_parameters,
    load_parameters,
    save_parameters,
    verify_parameters,
)
from flaxbert.storage.store import DamagedError
from flaxbert.storage.valid_checkpoints import FROZEN, STATE
from flaxbert.weights import table
from flaxbert.weights.table import Assembled

PARAMS = "params"
_SOURCE = "source"


def is_checkpoint(directory: Path) -> bool:
    """Whether a directory is `checkpoints/<step>` of a run."""
    return directory.resolve().name.isdecimal() and (directory / STATE).is_dir()


def description_of(directory: Path) -> Path:
    """Returns where config.json and the tokenizer of a model folder stand: mostly in itself."""
    return directory.resolve().parents[1] / _SOURCE if is_checkpoint(directory) else directory


def holds_orbax(directory: Path) -> bool:
    return is_checkpoint(directory) or holds_parameters(directory / PARAMS)


def assemble_orbax(config: BertConfig, directory: Path) -> Assembled:
    """Reads the parameters; nothing is read before the manifest, names, shapes and dtypes fit.

    Raises:
      ModelFileError: damaged, or another model than the config says.
    """
    directory = directory.resolve()  # named by its user, so it may itself be a link
    if is_checkpoint(directory):
        frozen = directory.parent / FROZEN
        parts = [directory, *([frozen] if frozen.is_dir() else [])]
        try:
            for part in parts:
                verify_manifest(part)
        except (DamagedError, OSError) as error:
            raise ModelFileError(f"{part}: the checkpoint is damaged: {error}.") from error
        folders, inside = [part / STATE for part in parts], f"{PARAMS}/"
    else:
        folders, inside = [directory / PARAMS], ""
        verify_parameters(directory / PARAMS)
    described, place = {}, {}
    for folder in folders:
        for path, leaf in describe_parameters(folder).items():
            if path.startswith(inside):
                described[path.removeprefix(inside)] = leaf
                place[path.removeprefix(inside)] = folder
    source = str(folders[0])
    paths = {table.torch_name(path)[0]: path for path in described}
    matched = table.match(config, table.from_flax(described, source), source)
    wanted = {path: paths[name] for path, name in matched.found.items()}
    arrays: dict[str, Any] = {}
    for folder in folders:
        own = [path for path in wanted.values() if place[path] == folder]
        arrays |= load_parameters(folder, {inside + path: described[path] for path in own})
    named = table.from_flax({p: arrays[inside + p] for p in wanted.values()}, source)
    return table.assemble(config, named, source, matched)


def write_orbax(directory: Path, params: Params) -> None:
    """Writes `params/`; it must not exist yet."""
    save_parameters(directory / PARAMS, params)
