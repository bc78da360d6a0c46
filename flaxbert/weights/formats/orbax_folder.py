"""Parameters that Orbax wrote: `params/` of a converted folder, or a checkpoint of a run.

Of a run's state only the parameters are read; its config and tokenizer are in `source/` of the
workdir, and parameters that were not trained in `frozen/` beside the checkpoint.
"""

from __future__ import annotations

from pathlib import Path

from flaxbert.storage.parameters import (
    PARAMS,
    STATE,
    is_checkpoint,
    load_parameters,
    save_parameters,
    verify_parameters,
)
from flaxbert.storage.valid_checkpoints import FROZEN
from flaxbert.weights.formats import Tensors, WeightFormat


def _load(directory: Path) -> Tensors:
    directory = directory.resolve()  # the folder itself may be a link, since the user named it
    if not is_checkpoint(directory):
        verify_parameters(directory / PARAMS)
        return load_parameters(directory / PARAMS)
    frozen, tensors = directory.parent / FROZEN, {}
    for part in [directory, *([frozen] if frozen.is_dir() else [])]:
        verify_parameters(part, required=True)
        tensors |= load_parameters(part / STATE, f"{PARAMS}/")
    return tensors


def _store(directory: Path, tensors: Tensors) -> None:
    save_parameters(directory / PARAMS, tensors)


def _advise(directory: Path) -> str:
    steps = [path.name for path in directory.glob("checkpoints/*") if path.name.isdecimal()]
    if not steps:
        return ""
    newest = directory / "checkpoints" / max(steps, key=int)
    return f"is a run that has no model/ yet. Name one of its checkpoints, as {newest}."


FORMAT = WeightFormat(
    name="Orbax",
    option="orbax",
    rank=50,
    files=((f"{PARAMS}/_METADATA",),),
    load=_load,
    store=_store,
    flax_names=True,
    on_hub=False,  # no file of it may be a link
    advise=_advise,
    also_in=is_checkpoint,
)
