"""The workdir: the names of a run's files, and whether a directory belongs to a run.

Note: a folder that holds only left-overs of a killed first start (a lock, temporary files) counts
as empty, so that start can simply be repeated.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path, PurePath
from typing import Any

from flaxbert.errors import ConfigError, ModelFileError
from flaxbert.storage.interface import TEMPORARY, Store
from flaxbert.storage.store import location, store_for

# A file of JSON becomes objects many times its size; the largest known, a tokenizer, has 20 MB.
_MAX_JSON_BYTES = 2**27


class Workdir:
    """The names of a run's files, and the store that they are in."""

    def __init__(self, root: PurePath) -> None:
        self.root = root
        self.config = root / "config.json"
        self.lock = root / ".lock"
        self.checkpoints = root / "checkpoints"
        self.model = root / "model"  # the best model as a Hugging Face folder
        # config.json and tokenizer files of the starting checkpoint: a resume reads only these.
        self.source = root / "source"
        # Found at the first start: digests of the data, compute dtype, model revision.
        self.facts = self.source / "facts.json"
        self.metrics = root / "metrics.jsonl"
        self.data_report = root / "data_report.json"
        self.all_results = root / "all_results.json"

    @property
    def store(self) -> Store:
        return store_for(self.root)

    def results(self, split: str) -> PurePath:
        """train_results.json, eval_results.json (validation) or <split>_results.json."""
        return self.root / f"{'eval' if split == 'validation' else split}_results.json"

    def report(self, split: str) -> PurePath:
        """eval_report.json (validation) or <split>_report.json: scores per label."""
        return self.root / f"{'eval' if split == 'validation' else split}_report.json"

    @property
    def started(self) -> bool:
        return self.store.is_file(self.config)

    @property
    def finished(self) -> bool:
        return self.store.is_file(self.all_results)


def open_workdir(path: str | os.PathLike[str]) -> Workdir:
    """Returns the workdir at `path`, created if there is nothing yet.

    Raises:
      ConfigError: the path is a file, not writable, or a folder with other files; or a malformed
        URL.
      StorageError: an object store that refuses or does not answer.
    """
    root = location(path)
    try:
        store_for(root).make_directory(root)
        present = store_for(root).names(root)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"--workdir: {root} is a file; name a directory.") from error
    except OSError as error:
        raise ConfigError(f"--workdir: cannot use {root}: {error.strerror}.") from error
    except ConfigError:
        raise
    except ValueError as error:  # a NUL, or characters that the file system cannot encode
        raise ConfigError(f"--workdir: {str(root)!a} is no name of a directory.") from error
    workdir = Workdir(root)
    foreign = [name for name in present if name != ".lock" and not name.endswith(TEMPORARY)]
    if foreign and not _is_run(workdir):
        raise ConfigError(
            f"--workdir: {root} is not empty and holds no config.json of a run "
            f"(found {', '.join(foreign[:5])}). Name a new or empty directory."
        )
    return workdir


def existing_workdir(path: str | os.PathLike[str]) -> Workdir:
    """Returns the workdir of a run that has started; ConfigError if there is none at `path`."""
    workdir = Workdir(location(path))
    if not _is_run(workdir):
        raise ConfigError(f"--workdir: {path} holds no config.json of a run.")
    return workdir


def trained_model(workdir: Workdir) -> PurePath:
    """Returns the folder of the run's best model; ConfigError if there is none yet."""
    if not workdir.store.is_directory(workdir.model):
        raise ConfigError(f"--workdir: {workdir.root} has no model/ yet; train it first.")
    return workdir.model


def _is_run(workdir: Workdir) -> bool:
    """Whether config.json is that of a run: a model folder has a file of that name too."""
    if not workdir.started:
        return False
    stored = read_json(workdir.config)
    return isinstance(stored, dict) and {"train", "optim", "checkpoint"} <= stored.keys()


def write_atomically(path: PurePath, data: bytes) -> None:
    """Writes a whole file: a reader sees the old or the new one, also after a crash."""
    store_for(path).write(path, data)


def write_json(path: PurePath, values: Any) -> None:
    """Writes `to_json` of the values."""
    write_atomically(path, (to_json(values) + "\n").encode())


def read_json(path: PurePath) -> Any:
    """Reads a JSON file; ModelFileError if it is missing, unreadable, not JSON, or too large."""
    try:
        # Only disks have sparse files, which can be huge at no cost.
        if isinstance(path, Path) and (size := path.stat().st_size) > _MAX_JSON_BYTES:
            raise ModelFileError(f"{path}: has {size} bytes, expected at most {_MAX_JSON_BYTES}.")
        return json.loads(store_for(path).read(path).decode())
    except ModelFileError:
        raise
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: is not valid JSON: {error}.") from error


def copy_file(source: Path, directory: PurePath) -> None:
    """Copies a file into a directory, whole and synced."""
    write_atomically(directory / source.name, source.read_bytes())


def to_json(values: Any) -> str:
    """Returns JSON as the Hugging Face Trainer writes it; NaN and inf become null."""
    return json.dumps(_finite(values), indent=4, sort_keys=True, allow_nan=False)


def _finite(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: _finite(value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_finite(value) for value in values]
    if isinstance(values, float) and not math.isfinite(values):
        return None
    return values
