"""Random examples, configs and files for every head: what the conformance suite feeds it with.

A new head adds an entry to each table here.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from flaxbert.data.batches import Examples
from flaxbert.heads import head_named
from flaxbert.model.bert_config import BertConfig
from tests.loop.harness import examples, without_dropout

NAMES = {
    "single_label": ("a", "b", "c"),
    "multi_label": ("a", "b", "c"),
    "regression": ("LABEL_0",),
    "token": ("B-X", "I-X", "O"),
}


def config_of(name: str, base: BertConfig | None = None) -> BertConfig:
    """Returns a tiny model with the head, without dropout unless `base` has it."""
    head = head_named(name)
    return dataclasses.replace(
        base or without_dropout(),
        id2label=NAMES[name],
        architecture=head.architecture,
        problem_type=head.problem_type,
    )


def examples_of(name: str, count: int = 40) -> Examples:
    """Returns random sequences with random targets of the head."""
    data, random = examples(count), np.random.default_rng(3)
    if name == "regression":
        return dataclasses.replace(data, labels=random.normal(size=count).astype(np.float32))
    if name == "multi_label":
        return dataclasses.replace(data, labels=random.integers(0, 2, (count, 3)).astype("f4"))
    if name == "token":
        labels = random.integers(-1, 3, len(data.tokens.input_ids)).astype(np.int32)
        return Examples(data.tokens, labels, "token")
    return data


def write_data(name: str, folder: Path) -> dict[str, Any]:
    """Writes training and validation files; returns the config fields that say how to read them."""
    random = np.random.default_rng(5)
    words = ["good", "bad", "Paris", "film", "Anna", "the", "a", "was", "slow", "unbelievable"]

    def row() -> dict[str, Any]:
        chosen = [words[i] for i in random.integers(0, len(words), random.integers(2, 12))]
        target: Any = "yes" if "good" in chosen else "no"
        if name == "multi_label":
            target = [word for word in ("good", "bad") if word in chosen]
        elif name == "regression":
            target = chosen.count("good") - 0.5 * chosen.count("bad") + 0.25
        elif name == "token":
            tags = {"Paris": "B-LOC", "Anna": "B-PER"}
            return {"tokens": chosen, "tags": [tags.get(word, "O") for word in chosen]}
        return {"text": " ".join(chosen), "label": target}

    files = {}
    for split, count in (("train", 48), ("validation", 20)):
        path = folder / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row()) + "\n" for _ in range(count)))
        files[f"data__{split}"] = path
    if name == "token":
        files |= {"head__name": "token", "data__text": "tokens", "data__label": "tags"}
    return files
