"""The splits of a run: which rows they are, and how rows become examples.

Everything a command needs of this room in two steps: `read_*` gives rows, `make_examples` checks
and tokenizes them. The surprising thing: nothing is printed here; what a user should be told comes
back as lines.
"""

from __future__ import annotations

import dataclasses

from flaxbert.config import Data
from flaxbert.data import check, files, sources
from flaxbert.data.batches import Examples
from flaxbert.data.check import Labels
from flaxbert.data.rows import Rows
from flaxbert.data.tokenize import Tokenizer
from flaxbert.errors import ConfigError
from flaxbert.tasks import task_for

# Above this share of unknown tokens the model was hardly made for these texts.
_UNKNOWN_SHARE = 0.2


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples of one split, the rows they come from, and what to tell about them."""

    examples: Examples
    rows: Rows
    lines: tuple[str, ...]


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
    train = read_file(data, data.train)
    return train, read_file(data, data.validation) if data.validation else None, ()


def read_file(data: Data, path: str) -> Rows:
    """Reads a labelled file with the columns of the config."""
    return files.read_rows(path, text=data.text, text_pair=data.text_pair, label=data.label)


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
    return Split(Examples(tokens, encoded), rows, tuple(lines))
