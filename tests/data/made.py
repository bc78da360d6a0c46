"""Rows as a file with a header would give them: row i stands in line i + 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flaxbert.config import Config, Data, Seeds
from flaxbert.data import splits
from flaxbert.data.checks import Labels
from flaxbert.data.rows import Rows
from flaxbert.heads import head_named


def rows_of(
    texts: Sequence[Any],
    targets: Sequence[Any] | None = None,
    pairs: Sequence[Any] | None = None,
    source: str = "rows.csv",
) -> Rows:
    columns = {"text": texts, "text_pair": pairs, "label": targets}
    given = {key: cells for key, cells in columns.items() if cells is not None}
    return Rows(source, given, list(range(2, len(texts) + 2)))


HEAD = head_named("single_label")


def read_training(data: Data):
    return splits.read_training(Config(data=data), HEAD)


def read_file(data: Data, path: str):
    return splits.read_file(Config(data=data), HEAD, path)


def read_split(data: Data, labels: Labels, split: str, seed: int):
    config = Config(data=data, seeds=Seeds(data=seed))
    return splits.read_split(config, head_named(labels.problem), labels, split)


def hold_out(data: Data, rows, labels: Labels, seed: int):
    return splits.hold_out(Config(data=data, seeds=Seeds(data=seed)), HEAD, rows, labels)
