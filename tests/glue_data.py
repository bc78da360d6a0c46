"""GLUE-shaped data: the columns, label types, splits and card of `nyu-mll/glue`, other sentences.

Real movie sentences in place of GLUE's; labels drawn by a seed, hidden (-1) in the test splits as
on the hub.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from flaxbert.data.sources.glue import AX, GLUE

ROWS = {"train": 24, "validation": 13, "test": 7}


def write_glue(folder: Path, tasks: tuple[str, ...] = (*GLUE, AX)) -> Path:
    """Writes {task}/{split}-00000-of-00001.parquet and the card that says so."""
    folder.mkdir(parents=True, exist_ok=True)
    card = ["---", "license: other", "configs:"]
    for task in tasks:
        card += [f"- config_name: {task}", "  data_files:"]
        for split in _splits(task):
            card += [f"  - split: {split}", f"    path: {task}/{split}-*"]
            _write_split(folder, task, split)
    (folder / "README.md").write_text("\n".join([*card, "---", "", "# GLUE", ""]))
    return folder


@functools.cache
def _sentences() -> list[str]:
    from flaxbert.data.sources.movie_reviews import MovieReviews

    return list(MovieReviews().read("train", {}).texts)


def _splits(task: str) -> list[str]:
    if task == AX:
        return ["test"]
    row = GLUE[task]
    return ["train", *row.validation.values(), *row.test.values()]


def _write_split(folder: Path, task: str, split: str) -> None:
    import datasets

    row = GLUE["mnli" if task == AX else task]
    count = ROWS[split.split("_")[0]]
    sentences = _sentences()
    random = np.random.default_rng([len(task), len(split), *map(ord, task[:2])])
    picked = random.choice(len(sentences), (2, count), replace=False)
    columns: dict[str, list] = {row.text: [sentences[i] for i in picked[0]]}
    features: dict = {row.text: datasets.Value("string")}
    if row.text_pair:
        columns[row.text_pair] = [sentences[i] for i in picked[1]]
        features[row.text_pair] = datasets.Value("string")
    features["label"] = (
        datasets.ClassLabel(names=list(row.labels)) if row.labels else datasets.Value("float32")
    )
    features["idx"] = datasets.Value("int32")
    if split.startswith("test"):
        columns["label"] = [-1] * count
    elif row.labels:
        columns["label"] = (np.arange(count) % len(row.labels)).tolist()
    else:
        columns["label"] = np.round(random.uniform(0, 5, count), 1).tolist()
    columns["idx"] = list(range(count))
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    path = folder / task / f"{split}-00000-of-00001.parquet"
    path.parent.mkdir(exist_ok=True)
    table.to_parquet(path)
