"""The workdir: where a run's files stand, and how a file gets there whole.

Every file is written beside its name and renamed over it, so a reader sees the old or the new one,
never half of one. The surprising thing: a folder that holds only our own litter (a lock, files
whose rename never came) counts as empty, so a first start that was killed can simply be repeated.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flaxbert.errors import ConfigError, ModelFileError

_TEMPORARY = ".tmp"


@dataclasses.dataclass(frozen=True)
class Workdir:
    """The names of a run's files; `root` is a local directory."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.json"

    @property
    def lock(self) -> Path:
        return self.root / ".lock"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def model(self) -> Path:
        """The best model as a Hugging Face folder."""
        return self.root / "model"

    @property
    def source(self) -> Path:
        """config.json and tokenizer files of the starting checkpoint: a resume reads only these."""
        return self.root / "source"

    @property
    def facts(self) -> Path:
        """What the first start found out: digests of the data, compute dtype, model revision."""
        return self.source / "facts.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def data_report(self) -> Path:
        return self.root / "data_report.json"

    @property
    def all_results(self) -> Path:
        return self.root / "all_results.json"

    def results(self, split: str) -> Path:
        """train_results.json, eval_results.json (validation) or <split>_results.json."""
        return self.root / f"{'eval' if split == 'validation' else split}_results.json"

    def report(self, split: str) -> Path:
        """eval_report.json (validation) or <split>_report.json: scores per label."""
        return self.root / f"{'eval' if split == 'validation' else split}_report.json"

    @property
    def started(self) -> bool:
        return self.config.is_file()


def open_workdir(path: str | os.PathLike[str]) -> Workdir:
    """Returns the workdir at `path`, created if there is nothing yet.

    Raises:
      ConfigError: the path is a file, a URL, not writable, or a folder with somebody else's files.
    """
    if "://" in os.fspath(path):
        raise ConfigError(f"--workdir: expected a local directory, got {os.fspath(path)!r}.")
    root = Path(path)
    try:
        root.mkdir(parents=True, exist_ok=True)
        present = sorted(entry.name for entry in root.iterdir())
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"--workdir: {root} is a file; name a directory.") from error
    except OSError as error:
        raise ConfigError(f"--workdir: cannot use {root}: {error.strerror}.") from error
    workdir = Workdir(root)
    foreign = [name for name in present if name != ".lock" and not name.endswith(_TEMPORARY)]
    if foreign and not _is_run(workdir):
        raise ConfigError(
            f"--workdir: {root} is not empty and holds no config.json of a run "
            f"(found {', '.join(foreign[:5])}). Name a new or empty directory."
        )
    return workdir


def existing_workdir(path: str | os.PathLike[str]) -> Workdir:
    """Returns the workdir of a run that has started.

    Raises:
      ConfigError: there is no run at `path`.
    """
    workdir = Workdir(Path(path))
    if not _is_run(workdir):
        raise ConfigError(f"--workdir: {path} holds no config.json of a run.")
    return workdir


def trained_model(workdir: Workdir) -> Path:
    """Returns the folder of the run's best model.

    Raises:
      ConfigError: training has not come to one yet.
    """
    if not workdir.model.is_dir():
        raise ConfigError(f"--workdir: {workdir.root} has no model/ yet; train it first.")
    return workdir.model


def _is_run(workdir: Workdir) -> bool:
    """Whether config.json is that of a run: a model folder has a file of that name too."""
    if not workdir.started:
        return False
    stored = read_json(workdir.config)
    return isinstance(stored, dict) and {"train", "optim", "checkpoint"} <= stored.keys()


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a whole file: beside its name, synced, then renamed over it."""
    temporary = path.with_name(path.name + _TEMPORARY)
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Makes renames in a directory durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, values: Any) -> None:
    """Writes `to_json` of the values."""
    write_atomically(path, (to_json(values) + "\n").encode())


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
      ModelFileError: it is missing, unreadable or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: is not valid JSON: {error}.") from error


def replace_directory(new: Path, target: Path, *, committed: bool) -> None:
    """Switches a whole directory; a reader sees the old one or the new one.

    A directory that a committed checkpoint speaks of (`committed`) is kept beside the new one until
    the next such switch: should the process die before the next checkpoint, `choose_directory`
    takes it back. One that no checkpoint speaks of is dropped.
    """
    repair_directory(target)
    previous, old = _beside(target, "previous"), _beside(target, "old")
    kept = previous if committed else old
    shutil.rmtree(kept, ignore_errors=True)
    if target.exists():
        target.rename(kept)
    new.rename(target)
    sync_directory(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def repair_directory(target: Path) -> None:
    """Finishes a `replace_directory` that was cut off between two renames."""
    old, previous = _beside(target, "old"), _beside(target, "previous")
    for candidate in (old, previous):
        if candidate.exists() and not target.exists():
            candidate.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def choose_directory(target: Path, is_right: Callable[[Path], bool]) -> bool:
    """Makes the directory that `is_right` accepts the target: it or the one kept beside it.

    Returns False, and changes nothing, if it accepts neither.
    """
    repair_directory(target)
    previous = _beside(target, "previous")
    if target.is_dir() and is_right(target):
        return True
    if previous.is_dir() and is_right(previous):
        shutil.rmtree(target, ignore_errors=True)
        previous.rename(target)
        sync_directory(target.parent)
        return True
    return False


def forget_previous(target: Path) -> None:
    """Drops the directory that `replace_directory` kept: the target's checkpoint has committed."""
    shutil.rmtree(_beside(target, "previous"), ignore_errors=True)


def copy_file(source: Path, directory: Path) -> None:
    """Copies a file into a directory, whole and synced."""
    write_atomically(directory / source.name, source.read_bytes())


def to_json(values: Any) -> str:
    """Returns JSON as the Hugging Face Trainer writes it; NaN and inf become null."""
    return json.dumps(_finite(values), indent=4, sort_keys=True, allow_nan=False)


def _beside(target: Path, name: str) -> Path:
    return target.with_name(f"{target.name}.{name}{_TEMPORARY}")


def _finite(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: _finite(value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_finite(value) for value in values]
    if isinstance(values, float) and not math.isfinite(values):
        return None
    return values
