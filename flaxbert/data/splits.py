"""The splits of a run: which rows they are, and how rows become examples.

Everything a command needs of this room in two steps: `read_*` gives rows whose texts have been
checked, `make_examples` checks their labels and tokenizes them. Nothing is printed here; what a
user should be told comes back as lines.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from flaxbert.config import Data
from flaxbert.data import checks, holdout, overlap, report, sources
from flaxbert.data.batches import Examples
from flaxbert.data.checks import Labels
from flaxbert.data.report import Report
from flaxbert.data.rows import Rows
from flaxbert.data.sources import files
from flaxbert.data.tokenize import Tokenizer
from flaxbert.errors import ConfigError, DataError
from flaxbert.heads import Target, task_for


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
      DataError: see `files.read_rows` and `checks.usable_texts`.
    """
    opened = sources.open_data(data, revision)
    train = _read(opened, opened.parts("train"), data)[""]
    validation = _read(opened, opened.parts("validation"), data)
    return Training(train, validation, train.class_names.get("label", ()), opened.revision)


def read_file(data: Data, path: str) -> Rows:
    """Reads a labelled file with the columns of the config."""
    return _checked(files.read_rows(path, columns_of(data), data.on_bad_row), data)


def columns_of(data: Data) -> dict[str, str]:
    """Returns {column of the rows: its name in the data}."""
    return {"text": data.text, "text_pair": data.text_pair, "label": data.label}


def read_split(
    data: Data, labels: Labels, split: str, seed: int, revision: str = ""
) -> dict[str, Rows]:
    """Returns the rows of a split as training saw them: {suffix: rows}, for MNLI "" and "mm".

    Args:
      data: as `sources.with_task` returns it.
      labels: the run's.
      split: train, validation or test; with a data set also the name of any split it has, and ax
        with task mnli.
      seed: of the rows held out by data.validation_fraction.
      revision: of a hub data set, as the run recorded it.

    Raises:
      ConfigError: the run has no such split.
    """
    opened = sources.open_data(data, revision)
    parts = opened.parts(split)
    trained = split in ("train", "validation")
    if trained and data.validation_fraction and not opened.parts("validation"):
        whole = _read(opened, opened.parts("train"), data)[""]
        train, validation = hold_out(data, whole, labels, seed)
        return {"": train if split == "train" else validation}
    if not parts:
        raise ConfigError(f"--split={split}: the run has no {split} data. Give --data=FILE.")
    return _read(opened, parts, data)


def _read(opened: sources.DataSet, parts: Mapping[str, str], data: Data) -> dict[str, Rows]:
    columns = columns_of(data)
    return {suffix: _checked(opened.read(part, columns), data) for suffix, part in parts.items()}


def _checked(rows: Rows, data: Data) -> Rows:
    return checks.usable_texts(rows, data.on_bad_row, data.on_empty)


def hold_out(data: Data, train: Rows, labels: Labels, seed: int) -> tuple[Rows, Rows]:
    """Splits validation rows off, as data.validation_fraction says."""
    train, targets = checks.usable_labels(train, labels, data.label_separator, data.on_bad_row)
    return holdout.split_validation(train, targets, labels.problem, data.validation_fraction, seed)


def make_examples(
    name: str,
    rows: Rows,
    labels: Labels,
    tokenizer: Tokenizer,
    *,
    max_length: int,
    separator: str = "",
    on_bad_row: str = "error",
) -> Split:
    """Checks the labels of one split, whose texts have been checked, and tokenizes it.

    Raises:
      DataError: labels that are not the model's.
    """
    rows, targets = checks.usable_labels(rows, labels, separator, on_bad_row)
    tokens = tokenizer.encode(rows.texts, rows.pairs, max_length=max_length)
    told = report.describe_split(name, rows, targets, labels, tokens, max_length)
    encoded = task_for(labels.problem).encode(targets, labels.names)
    return Split(Examples(tokens, encoded), rows, targets, told)


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
