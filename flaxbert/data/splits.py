"""The splits of a run: which rows they are, and how rows become examples.

Everything a command needs of this room in two steps: `read_*` gives rows, `make_examples` checks
and tokenizes them. The surprising thing: nothing is printed here; what a user should be told comes
back as lines.
"""

from __future__ import annotations

import dataclasses

from flaxbert.config import Data
from flaxbert.data import check, files, hub, sources
from flaxbert.data.batches import Examples
from flaxbert.data.check import Labels
from flaxbert.data.rows import Rows
from flaxbert.data.tokenize import Tokenizer
from flaxbert.errors import ConfigError
from flaxbert.tasks import task_for
from flaxbert.tasks.glue import AX, GLUE

# Above this share of unknown tokens the model was hardly made for these texts.
_UNKNOWN_SHARE = 0.2


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples of one split and what to tell about them."""

    examples: Examples
    lines: tuple[str, ...]


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
    names = sources.label_names_of(data.task)
    if data.task == sources.ROTTEN_TOMATOES:
        train, validation = sources.read_rotten_tomatoes()
        return Training(train, {"": validation}, names, "")
    if data.dataset:
        found = hub.open_dataset(data, data.dataset_config, revision or data.dataset_revision)
        train = found.read(data.train or "train", data, names)
        wanted = _dataset_splits(data, "validation", found)
        held = {suffix: found.read(split, data, names) for suffix, split in wanted.items()}
        return Training(train, held, names, found.revision)
    if not data.train:
        raise ConfigError("config.data.train is empty: name the training file.")
    train = read_file(data, data.train)
    held = {"": read_file(data, data.validation)} if data.validation else {}
    return Training(train, held, names, "")


def read_file(data: Data, path: str) -> Rows:
    """Reads a labelled file with the columns of the config."""
    return files.read_rows(path, text=data.text, text_pair=data.text_pair, label=data.label)


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
    if split in ("train", "validation"):
        training = read_training(data, revision)
        train, held = training.train, training.validation
        if not held and data.validation_fraction:
            train, validation = hold_out(data, train, labels, seed)
            held = {"": validation}
        rows = {"": train} if split == "train" else held
        if not rows:
            raise ConfigError(f"--split={split}: the run has no {split} data. Give --data=FILE.")
        return rows
    if data.dataset:
        config, names = data.dataset_config, sources.label_names_of(data.task)
        if split == AX and data.task == "mnli":
            config, split = AX, "test"
        found = hub.open_dataset(data, config, revision or data.dataset_revision)
        own = {"": split} if config == AX else _dataset_splits(data, split, found)
        return {suffix: found.read(name, data, names) for suffix, name in own.items()}
    if split != "test" or not data.test:
        raise ConfigError(
            f"--split={split}: the run's config names no such file. Give --data=FILE."
        )
    return {"": read_file(data, data.test)}


def _dataset_splits(data: Data, split: str, found: hub.Dataset) -> dict[str, str]:
    """Returns {suffix: name} of the splits of a data set that "validation" or "test" stands for."""
    task = GLUE.get(data.task)
    if task is not None and split in ("validation", "test"):
        return dict(task.validation if split == "validation" else task.test)
    if split == "validation" and not data.validation:
        return {"": split} if split in found.files and not data.validation_fraction else {}
    asked = {"validation": data.validation, "test": data.test}.get(split, "")
    return {"": asked or split}


def hold_out(data: Data, train: Rows, labels: Labels, seed: int) -> tuple[Rows, Rows]:
    """Splits validation rows off, as data.validation_fraction says."""
    return check.split_validation(
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
) -> Split:
    """Checks and tokenizes the rows of one split.

    Raises:
      DataError: an empty split, unusable texts, or labels that are not the model's.
    """
    empty = check.check_texts(rows)
    targets = check.canonical_targets(rows, labels, separator)
    tokens = tokenizer.encode(rows.texts, rows.pairs, max_length=max_length)
    lengths = tokens.lengths
    line = (
        f"{name}: {len(rows)} rows, {lengths.mean():.1f} tokens on average, longest "
        f"{lengths.max()}, {tokens.truncated} cut to {max_length}"
    )
    if labels.problem != "regression":
        counts = check.label_counts(targets, labels)
        line += "; " + ", ".join(f"{label} {count}" for label, count in counts.items())
    lines = [line]
    if empty:
        lines.append(f"{name}: WARNING: {empty} rows have an empty text")
    if tokens.unknown_share > _UNKNOWN_SHARE:
        lines.append(
            f"{name}: WARNING: {100 * tokens.unknown_share:.0f} % of the tokens are unknown to the "
            "vocabulary; is this the right model for these texts?"
        )
    encoded = task_for(labels.problem).encode(targets, labels.names)
    return Split(Examples(tokens, encoded), tuple(lines))
