"""Sources of rows: each file of this folder is one, and the folder is the registry.

A source handles some values of config.data.task, its TASKS. "text" means data that the config
describes; any other task has its own columns, labels and splits.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from flaxbert.config import Data
from flaxbert.data.rows import Rows, near_name
from flaxbert.errors import ConfigError
from flaxbert.registry import member, members


class DataSet(Protocol):
    """A data set that a source has opened."""

    @property
    def revision(self) -> str:
        """The commit of a hub data set, "" of any other."""
        ...

    def parts(self, split: str) -> Mapping[str, str]:
        """Returns {suffix of its metrics: part} of a split ("train", "validation", "test", ...),
        the main part ("") first; {} if there is none."""
        ...

    def read(self, part: str, columns: Mapping[str, str]) -> Rows:
        """Returns the rows of a part.

        `columns` is {key in the rows: name in the data set}; those with an empty name are not read.
        Raises ConfigError if there is no such part, DataError if it cannot be read.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Task:
    """What a value of config.data.task decides."""

    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of config.data
    needless: tuple[str, ...] = ()  # further fields of config.data without effect
    dataset: str = ""  # for config.data.dataset, unless the config names another
    metric: str = ""  # picks the best model; "" = the head's main one
    elsewhere: str = ""  # why it cannot be trained, and what to do


@runtime_checkable
class Source(Protocol):
    """What each file of this folder provides."""

    TASKS: Mapping[str, Task]

    @staticmethod
    def open_data(data: Data, revision: str) -> DataSet | None:
        """Returns the data set of a config whose task is one of TASKS; None if it is not this
        source's. `revision`: of a hub data set, if resolved before; "" = data.dataset_revision."""
        ...


# Fields that describe the data. They have no effect if the task is not "text".
_DESCRIBING = (
    "text", "text_pair", "label", "label_separator", "problem", "train", "validation", "test",
    "validation_fraction", "dataset_config",
)  # fmt: skip


def open_data(data: Data, revision: str = "") -> DataSet:
    """Opens the data set of a config, as `with_task` returns it.

    Raises ConfigError if the config names no data, DataError if they cannot be opened.
    """
    for source in _sources():
        if data.task in source.TASKS and (found := source.open_data(data, revision)):
            return found
    raise ConfigError("config.data.train is empty: name the training file.")


def tasks() -> dict[str, Task]:
    """Returns {value of config.data.task: what it decides}."""
    return {name: task for source in _sources() for name, task in source.TASKS.items()}


def with_task(data: Data) -> Data:
    """Returns the data config with the fields that its task decides.

    Raises ConfigError for an unknown task, or a field without effect because the task decides it.
    """
    known = tasks()
    names = sorted(name for name, task in known.items() if not task.elsewhere)
    if data.task not in known:
        raise ConfigError(
            f"config.data.task: expected one of {', '.join(names)}, got {data.task!r}."
            f"{near_name(names, data.task)}"
        )
    task = known[data.task]
    if task.elsewhere:
        raise ConfigError(f"config.data.task={data.task}: {task.elsewhere}")
    default = Data()
    for name in (*_DESCRIBING, *task.needless) if data.task != "text" else ():
        if getattr(data, name) != getattr(default, name):
            raise ConfigError(
                f"config.data.{name} has no effect with config.data.task={data.task}, which has "
                "its own. Leave it out, or set config.data.task=text."
            )
    return dataclasses.replace(data, dataset=data.dataset or task.dataset, **task.fields)


def main_metric_of(task: str) -> str:
    """Returns the metric that picks the best model, "" where the head decides."""
    return tasks()[task].metric


@functools.cache
def _sources() -> list[Source]:
    return [member("data/sources", name) for name in members("data/sources")]
