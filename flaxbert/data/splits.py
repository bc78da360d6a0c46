"""The splits of a run: which rows they are, and how rows become examples.

Everything a command needs of this room in two steps: `read_*` gives rows, `make_examples` checks
and tokenizes them. The surprising thing: nothing is printed here; what a user should be told comes
back as lines.
"""

from __future__ import annotations

import dataclasses

from flaxbert.config import Data
from flaxbert.data import check, files, holdout, overlap, report, sources
from flaxbert.data.batches import Examples
from flaxbert.data.check import Labels
from flaxbert.data.report import Report
from flaxbert.data.rows import Rows
from flaxbert.data.tokenize import Tokenizer
from flaxbert.errors import ConfigError, DataError
from flaxbert.tasks import Target, task_for


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


def read_training(data: Data) -> tuple[Rows, Rows | None, tuple[str, ...]]:
    """Returns training rows, validation rows (None: no file), and label names the task knows.

    Raises:
      ConfigError: an unknown task, no training file, or files beside a task that has its own.
      DataError: see `files.read_rows`.
    """
    sources.check_task(data.task)
    if data.task != "text":
        for name in ("train", "validation", "validation_fraction"):
            if getattr(data, name):
                raise ConfigError(
                    f"config.data.{name} has no effect with config.data.task={data.task}, which "
                    "brings its own split. Leave it out, or set config.data.task=text."
                )
    if data.task == "rotten_tomatoes":
        return (*sources.read_rotten_tomatoes(), sources.KNOWN_LABELS[data.task])
    if not data.train:
        raise ConfigError("config.data.train is empty: name the training file.")
    names = ("train", "validation", "test")
    files.refuse_same_file({f"config.data.{name}": getattr(data, name) for name in names})
    train = read_file(data, data.train)
    validation = read_file(data, data.validation) if data.validation else None
    return train, validation, train.label_names


def read_file(data: Data, path: str) -> Rows:
    """Reads a labelled file with the columns of the config."""
    return files.read_rows(
        path,
        text=data.text,
        text_pair=data.text_pair,
        label=data.label,
        on_bad_row=data.on_bad_row,
    )


def read_split(data: Data, labels: Labels, split: str, seed: int) -> Rows:
    """Returns the rows of "train", "validation" or "test" as training saw them.

    Raises:
      ConfigError: the run has no such split.
    """
    if split == "test":
        if not data.test:
            raise ConfigError("--split=test: the run's config.data.test names no file.")
        return read_file(data, data.test)
    train, validation, _ = read_training(data)
    if validation is None and data.validation_fraction:
        train, validation = hold_out(data, train, labels, seed)
    rows = train if split == "train" else validation
    if rows is None:
        raise ConfigError(f"--split={split}: the run has no {split} data. Give --data=FILE.")
    return rows


def hold_out(data: Data, train: Rows, labels: Labels, seed: int) -> tuple[Rows, Rows]:
    """Splits validation rows off, as data.validation_fraction says."""
    train = check.usable_texts(train, data.on_bad_row, data.on_empty)
    train, _ = check.usable_labels(train, labels, data.label_separator, data.on_bad_row)
    return holdout.split_validation(
        train, labels, data.validation_fraction, seed, data.label_separator
    )


def make_examples(
    name: str,
    rows: Rows,
    labels: Labels,
    tokenizer: Tokenizer,
    *,
    max_length: int,
    separator: str = "",
    on_bad_row: str = "error",
    on_empty: str = "keep",
) -> Split:
    """Checks and tokenizes the rows of one split.

    Raises:
      DataError: an empty split, unusable texts, or labels that are not the model's.
    """
    rows = check.usable_texts(rows, on_bad_row, on_empty)
    rows, targets = check.usable_labels(rows, labels, separator, on_bad_row)
    tokens = tokenizer.encode(rows.texts, rows.pairs, max_length=max_length)
    told = report.describe_split(name, rows, targets, labels, tokens, max_length)
    encoded = task_for(labels.problem).encode(targets, labels.names)
    return Split(Examples(tokens, encoded), rows, targets, told)


def report_on(data: Data, labels: Labels, train: Split, validation: Split | None) -> Report:
    """Reports on all data of a run, and on what its splits have in common.

    Raises:
      DataError: validation texts stand in training and data.on_leak is "error".
    """
    splits = {"training": train, **({"validation": validation} if validation else {})}
    values = {name: split.report.values for name, split in splits.items()}
    counts = {name: part["labels"] for name, part in values.items() if "labels" in part}
    parts = [report.describe_labels(labels, counts)]
    values["labels"] = parts[0].values
    if validation:
        found = overlap.leaks(train.rows, train.targets, validation.rows, validation.targets)
        leaks = report.describe_leaks(found, train.rows, validation.rows)
        if found and data.on_leak == "error":
            raise DataError(
                f"{leaks.lines[0].removeprefix('validation: WARNING: ')}. Remove them from one of "
                "the files, or set config.data.on_leak=warn."
            )
        parts.append(leaks)
        values["validation_in_training"] = leaks.values
    told = [*(split.report for split in splits.values()), *parts]
    return Report(tuple(line for part in told for line in part.lines), values)
