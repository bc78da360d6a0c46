"""The splits of a run: their rows, and what they have in common.

`read_*` returns rows whose inputs the head has checked, once; `heads.Head.split` makes examples of
them. Nothing is printed here: messages for the user are returned as lines.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

from flaxbert.config import Config, Data, seed_for
from flaxbert.data import checks, holdout, overlap, report, sources
from flaxbert.data.batches import Examples
from flaxbert.data.checks import Labels
from flaxbert.data.report import Report
from flaxbert.data.rows import Rows, Target
from flaxbert.data.sources import files
from flaxbert.errors import ConfigError, DataError


class Checks(Protocol):
    """The checks of a head (heads.Head)."""

    def usable(self, rows: Rows, config: Config) -> Rows: ...

    def labelled(self, rows: Rows, labels: Labels, config: Config) -> tuple[Rows, list[Any]]: ...


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples of one split, the rows they come from, and the report about them."""

    examples: Examples
    rows: Rows  # without those that were skipped
    targets: list[Target]
    report: Report

    @property
    def lines(self) -> tuple[str, ...]:
        return self.report.lines


@dataclasses.dataclass(frozen=True)
class Training:
    """The training and validation rows of a run, as read."""

    train: Rows
    validation: dict[str, Rows]  # {suffix of its metrics: rows}, the main one ("") first
    names: tuple[str, ...]  # label names that the task knows, in id order
    revision: str  # resolved hub revision of the data set, "" for files


def read_training(config: Config, head: Checks, revision: str = "") -> Training:
    """Reads the training rows and, if the data have them, validation rows.

    Args:
      config: with data as `sources.with_task` returns it.
      head: checks the rows.
      revision: of a hub data set, if one was resolved before; "" = data.dataset_revision.

    Raises:
      ConfigError: no training file, or a split that the data set does not have.
      DataError: see `files.read_rows` and the head's `usable`.
    """
    opened = sources.open_data(config.data, revision)
    train = _read(opened, opened.parts("train"), config, head)[""]
    validation = _read(opened, opened.parts("validation"), config, head)
    return Training(train, validation, train.class_names.get("label", ()), opened.revision)


def read_file(config: Config, head: Checks, path: str) -> Rows:
    """Reads a labelled file with the columns of the config."""
    data = config.data
    return _usable(files.read_rows(path, columns_of(data), data.on_bad_row), config, head)


def columns_of(data: Data) -> dict[str, str]:
    """Returns {column of the rows: its name in the data}."""
    return {"text": data.text, "text_pair": data.text_pair, "label": data.label}


def read_split(
    config: Config, head: Checks, labels: Labels, split: str, revision: str = ""
) -> dict[str, Rows]:
    """Returns the rows of a split as in training: {suffix: rows}, for MNLI "" and "mm".

    `split` is train, validation or test; with a data set also any split it has, and ax with task
    mnli. `revision` is the one that the run recorded. Raises ConfigError if there is no such split.
    """
    opened = sources.open_data(config.data, revision)
    parts = opened.parts(split)
    trained = split in ("train", "validation")
    if trained and config.data.validation_fraction and not opened.parts("validation"):
        whole = _read(opened, opened.parts("train"), config, head)[""]
        train, validation = hold_out(config, head, whole, labels)
        return {"": train if split == "train" else validation}
    if not parts:
        raise ConfigError(f"--split={split}: the run has no {split} data. Give --data=FILE.")
    return _read(opened, parts, config, head)


def _read(
    opened: sources.DataSet, parts: Mapping[str, str], config: Config, head: Checks
) -> dict[str, Rows]:
    columns = columns_of(config.data)
    return {
        suffix: _usable(opened.read(part, columns), config, head) for suffix, part in parts.items()
    }


def _usable(rows: Rows, config: Config, head: Checks) -> Rows:
    checks.refuse_nothing(rows)
    rows = head.usable(rows, config)
    checks.refuse_nothing(rows)
    return rows


def hold_out(config: Config, head: Checks, train: Rows, labels: Labels) -> tuple[Rows, Rows]:
    """Holds out validation rows as data.validation_fraction says; returns training rows first."""
    train, targets = head.labelled(train, labels, config)
    fraction, seed = config.data.validation_fraction, seed_for(config, "data")
    return holdout.split_validation(train, targets, labels.problem, fraction, seed)


def report_on(data: Data, labels: Labels, train: Split, validation: dict[str, Split]) -> Report:
    """Reports on all data of a run, and on what its splits have in common.

    `validation` is {name: split}, such as "validation" and "validation mm". Raises DataError if
    validation texts occur in training and data.on_leak is "error".
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
