"""The identity of a run: config, data, tokenizer and labels.

The first start writes them into the workdir, a resume compares. Note: compute dtype and revisions
always stay those of the first start, whatever a later machine would choose.
"""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import flaxbert
from flaxbert.config import Config, make_config, resume_differences, to_dict
from flaxbert.data.class_weights import is_file
from flaxbert.data.tokenizer_files import write_files
from flaxbert.errors import ConfigError, DataError, ModelFileError
from flaxbert.storage.interface import TEMPORARY
from flaxbert.storage.workdir import Workdir, read_json, write_json

if TYPE_CHECKING:
    from flaxbert.run.inputs import Inputs
    from flaxbert.storage.checkpoint import Checkpoints


# Fields that name files, of which a resume compares what they hold (`run_facts`).
_PATHS = ("data.train", "data.validation", "data.test", "data.dataset", "loss.class_weights")


def look_at(workdir: Workdir, config: Config) -> tuple[bool, bool, bool]:
    """Returns whether the run has been started, whether it is finished, and whether the config
    names other files than before.

    Raises:
      ConfigError: it was started with another config; names the fields.
    """
    if not workdir.started:
        return False, False, False
    found = resume_differences(make_config(read_json(workdir.config)), config)
    moved = [each for each in found if each[0] in _PATHS and all(map(_is_path, each[1:]))]
    differences = [each for each in found if each not in moved]
    if differences:
        listed = "\n".join(f"  config.{name}: {old!r} -> {new!r}" for name, old, new in differences)
        raise ConfigError(
            f"--workdir: {workdir.root} holds a run with another config:\n{listed}\n"
            "Name another --workdir, or put these fields back."
        )
    return True, workdir.finished, bool(moved)


def _is_path(value: Any) -> bool:
    """Whether the value of such a field names something; class weights may be numbers instead."""
    return len(value) == 1 and is_file(value[0]) if isinstance(value, list) else bool(value)


def keep_paths(config: Config, workdir: Workdir) -> None:
    """Writes to the run's config where its files are now, for `evaluate` and `predict`."""
    stored = to_dict(make_config(read_json(workdir.config)))
    for path in _PATHS:
        section, name = path.split(".")
        stored[section][name] = to_dict(config)[section][name]
    write_json(workdir.config, stored)


def newest_record(workdir: Workdir, checkpoints: Checkpoints) -> dict[str, Any]:
    """Returns run.json of the newest valid checkpoint, {} if there is none to start from.

    Raises:
      ModelFileError: tokenizer or labels are not those that the run started with.
    """
    from flaxbert.loop.run_record import check_recorded  # here: it imports JAX

    newest = checkpoints.newest_valid()
    if newest is None:
        return {}
    place = workdir.checkpoints / str(newest)
    record = check_recorded(checkpoints.read_run(newest), place, newest)
    found, recorded = _source_digests(workdir), record.get("source", {})
    names = [name for name, digest in recorded.items() if found.get(name) != digest]
    if names:
        raise ModelFileError(
            f"{workdir.source}: {', '.join(names)}: not the same as when this run was started. "
            "Bring the old content back, or start in another workdir."
        )
    return record


def run_facts(
    config: Config, workdir: Workdir, inputs: Inputs, dtype: str, record: dict[str, Any]
) -> dict[str, Any]:
    """Returns what run.json records beside the progress; `record` is run.json of a resume.

    Raises:
      DataError: training or validation data, or class weights, are not those of the first start.
    """
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "transformers")
    versions = {"flaxbert": flaxbert.__version__, "python": platform.python_version()}
    facts = {
        "training": {"": inputs.train.digest},
        "validation": {name: split.digest for name, split in inputs.validation.items()},
        "dtype": dtype,
        "labels": list(inputs.bert.id2label),
        "class_weights": list(inputs.class_weights),
        "model": config.model.path,
        "model_revision": record.get("model_revision", inputs.revision),
        "dataset_revision": inputs.dataset_revision,
        "source": record.get("source", {}),
        "config": to_dict(config),
        "versions": versions | {name: version(name) for name in names},
    }
    for split in ("training", "validation"):
        if record and record[split] != facts[split]:
            raise DataError(
                f"config.data: the {split} data differ from those that {workdir.root} was started "
                "with. Restore them, or start in another workdir."
            )
    if record.get("class_weights", facts["class_weights"]) != facts["class_weights"]:
        raise DataError(
            f"config.loss.class_weights: the weights differ from those that {workdir.root} was "
            "started with. Restore the file, or start in another workdir."
        )
    return facts


def start_workdir(
    config: Config, workdir: Workdir, inputs: Inputs, facts: dict[str, Any]
) -> dict[str, Any]:
    """Writes what a resume reads or compares; returns the facts with the digests of it.

    config.json comes first: from then on the folder belongs to this run.
    """
    write_json(workdir.config, to_dict(config))
    workdir.store.remove(workdir.source)  # of a start that was killed
    workdir.store.make_directory(workdir.source)
    write_files(inputs.tokenizer_files, workdir.source)
    write_json(workdir.source / "config.json", inputs.bert.to_dict())
    write_json(workdir.data_report, inputs.report)
    facts = facts | {"source": _source_digests(workdir)}
    write_json(workdir.facts, facts)
    return facts


def _source_digests(workdir: Workdir) -> dict[str, str]:
    """Returns the SHA-256 of the files that a resume reads instead of the starting checkpoint."""
    source, store = workdir.source, workdir.store
    # A killed start may have left a temporary file.
    names = [
        name
        for name in store.names(source)
        if source / name != workdir.facts and not name.endswith(TEMPORARY)
    ]
    return {name: store.sha256(source / name) for name in names if store.is_file(source / name)}
