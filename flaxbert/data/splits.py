"""The splits of a run: which rows they are, and what they have in common.

`read_*` gives the rows of a split; a head checks and tokenizes them (`heads.Head.split`). Nothing
is printed here: what a user should be told comes back as lines.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from flaxbert.config import Data
from flaxbert.data import holdout, overlap, report
from flaxbert.data.batches import Examples
from flaxbert.data.checks import Labels
from flaxbert.data.report import Report
from flaxbert.data.rows import Rows, Target
from flaxbert.data.sources import files, hub_datasets, named_tasks
from flaxbert.data.sources.glue import AX, GLUE
from flaxbert.errors import ConfigError, DataError

# Training rows -> those that can be used, and their targets.
Usable = Callable[[Rows], tuple[Rows, list[Target]]]


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples of one split, the rows they come from, and what to tell about them."""

    examples: Examples
    rows: Rows  # without those that were skipped
    targets: list[Target]
    report: Report

    @property
    def lines(self) -> tuple[str, ...]:
        return self.report.lines


@dataclasses.dataclass(frozen=True)
class Training:
    """What a run trains and validates on, as read."""

    train: Rows
    validation: dict[str, Rows]  # {suffix of its metrics: rows}, the main one ("") first
    names: tuple[str, ...]  # label names that the task knows, in id order
    revision: str  # resolved hub revision of the data set, "" for files


def read_training(data: Data, revision: str = "") -> Training:
    """Reads the training rows and, if the data have them, validation rows.

    Args:
      data: as `sources.with_task` returns it.
      revision: of a hub data set, if one was resolved before; "" = data.dataset_revision.

    Raises:
      ConfigError: no training file, or a split that the data set has not.
      DataError: see `files.read_rows` and `hub.open_dataset`.
    """
    names = named_tasks.label_names_of(data.task)
    if data.task == named_tasks.ROTTEN_TOMATOES:
        train, validation = named_tasks.read_rotten_tomatoes()
        return Training(train, {"": validation}, names, "")
    if data.dataset:
        found = hub_datasets.open_dataset(
            data, data.dataset_config, revision or data.dataset_revision
        )
        train = found.read(data.train or "train", data, names)
        wanted = _dataset_splits(data, "validation", found)
        held = {suffix: found.read(split, data, names) for suffix, split in wanted.items()}
        return Training(train, held, train.label_names, found.revision)
    if not data.train:
        raise ConfigError("config.data.train is empty: name the training file.")
    fields = ("train", "validation", "test")
    files.refuse_same_file({f"config.data.{name}": getattr(data, name) for name in fields})
    train = read_file(data, data.train)
    held = {"": read_file(data, data.validation)} if data.validation else {}
    return Training(train, held, train.label_names, "")


def read_file(data: Data, path: str) -> Rows:
    """Reads a labelled file with the columns of the config."""
    return files.read_rows(
        path,
        text=data.text,
        text_pair=data.text_pair,
        label=data.label,
        on_bad_row=data.on_bad_row,
    )


def read_split(
    data: Data, labels: Labels, usable: Usable, split: str, seed: int, revision: str = ""
) -> dict[str, Rows]:
    """Returns the rows of a split as training saw them: {suffix: rows}, for MNLI "" and "mm".

    Args:
      data: as `sources.with_task` returns it.
      labels: the run's.
      usable: see `hold_out`.
      split: train, validation or test; with a data set also the name of any split it has, and ax
        with task mnli.
      seed: of the rows held out by data.validation_fraction.
      revision: of a hub data set, as the run recorded it.

    Raises:
      ConfigError: the run has no such split.
    """
    if split in ("train", "validation"):
        training = read_training(data, revision)
        train, held = training.train, training.validation
        if not held and data.validation_fraction:
            train, validation = hold_out(data, usable(train), labels, seed)
            held = {"": validation}
        rows = {"": train} if split == "train" else held
        if not rows:
            raise ConfigError(f"--split={split}: the run has no {split} data. Give --data=FILE.")
        return rows
    if data.dataset:
        config, names = data.dataset_config, named_tasks.label_names_of(data.task)
        if split == AX and data.task == "mnli":
            config, split = AX, "test"
        found = hub_datasets.open_dataset(data, config, revision or data.dataset_revision)
        own = {"": split} if config == AX else _dataset_splits(data, split, found)
        return {suffix: found.read(name, data, names) for suffix, name in own.items()}
    if split != "test" or not data.test:
        raise ConfigError(
            f"--split={split}: the run's config names no such file. Give --data=FILE."
        )
    return {"": read_file(data, data.test)}


def _dataset_splits(data: Data, split: str, found: hub_datasets.Dataset) -> dict[str, str]:
    """Returns {suffix: name} of the splits of a data set that "validation" or "test" stands for."""
    task = GLUE.get(data.task)
    if task is not None and split in ("validation", "test"):
        return dict(task.validation if split == "validation" else task.test)
    if split == "validation" and not data.validation:
        return {"": split} if split in found.files and not data.validation_fraction else {}
    asked = {"validation": data.validation, "test": data.test}.get(split, "")
    return {"": asked or split}


def hold_out(
    data: Data, usable: tuple[Rows, list[Target]], labels: Labels, seed: int
) -> tuple[Rows, Rows]:
    """Splits validation rows off the usable rows, as data.validation_fraction says.

    Args:
      usable: training rows with their targets, as the head's `labelled` returns them.
    """
    return holdout.split_validation(*usable, labels, data.validation_fraction, seed)


def report_on(data: Data, labels: Labels, train: Split, validation: dict[str, Split]) -> Report:
    """Reports on all data of a run, and on what its splits have in common.

    Args:
      validation: {name: split}, such as "validation" and "validation mm".

    Raises:
      DataError: validation texts stand in training and data.on_leak is "error".
    """
    splits = {"training": train, **validation}
    values = {_key(name): split.report.values for name, split in splits.items()}
    counts = {
        name: split.report.values["labels"]
        for name, split in splits.items()
        if "labels" in split.report.values
    }
    parts = [report.describe_labels(labels, counts)]
    values["labels"] = parts[0].values
    for name, split in validation.items():
        found = overlap.leaks(train.rows, train.targets, split.rows, split.targets)
        leaks = report.describe_leaks(name, found, train.rows, split.rows)
        if found and data.on_leak == "error":
            raise DataError(
                f"{leaks.lines[0].replace(': WARNING: ', ': ', 1)}. Remove them from one of "
                "the files, or set config.data.on_leak=warn."
            )
        parts.append(leaks)
        values[f"{_key(name)}_in_training"] = leaks.values
    told = [*(split.report for split in splits.values()), *parts]
    return Report(tuple(line for part in told for line in part.lines), values)


def _key(name: str) -> str:
    return name.replace(" ", "_")
