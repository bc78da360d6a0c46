"""Parameters that Orbax wrote: `params/` of a converted folder, or a checkpoint of a run.

The surprising thing: a run's checkpoint is a model too. Its config and tokenizer stand in `source/`
of the workdir, and of its state only the parameters are read.
"""

from __future__ import annotations

from pathlib import Path

from flaxbert.errors import ModelFileError
from flaxbert.model.bert_config import BertConfig
from flaxbert.model.binding import Params
from flaxbert.storage.interface import DamagedError
from flaxbert.storage.manifest import verify_manifest
from flaxbert.storage.parameters import (
    describe_parameters,
    holds_parameters,
    load_parameters,
    save_parameters,
    verify_parameters,
)
from flaxbert.weights import table
from flaxbert.weights.table import Assembled

PARAMS = "params"
_STATE, _SOURCE = "state", "source"


def is_checkpoint(directory: Path) -> bool:
    """Whether a directory is `checkpoints/<step>` of a run."""
    return directory.resolve().name.isdecimal() and (directory / _STATE).is_dir()


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
        try:
            verify_manifest(directory)
        except (DamagedError, OSError) as error:
            raise ModelFileError(f"{directory}: the checkpoint is damaged: {error}.") from error
        folder, inside = directory / _STATE, "params/"
    else:
        folder, inside = directory / PARAMS, ""
        verify_parameters(folder)
    described = {
        path.removeprefix(inside): leaf
        for path, leaf in describe_parameters(folder).items()
        if path.startswith(inside)
    }
    paths = {table.torch_name(path)[0]: path for path in described}
    matched = table.match(config, table.from_flax(described, str(folder)), str(folder))
    wanted = {path: paths[name] for path, name in matched.found.items()}
    arrays = load_parameters(folder, {inside + p: described[p] for p in wanted.values()})
    named = table.from_flax({p: arrays[inside + p] for p in wanted.values()}, str(folder))
    return table.assemble(config, named, str(folder), matched)


def write_orbax(directory: Path, params: Params) -> None:
    """Writes `params/`; it must not exist yet."""
    save_parameters(directory / PARAMS, params)
