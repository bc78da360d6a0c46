"""The GLUE tasks (Wang et al. 2019) as a table: columns, labels, metric and splits of each.

Labels stand in the order of the ids in `nyu-mll/glue`. The surprising thing: AX, the diagnostic
set, is no task of its own but a further test split of MNLI, whose model answers it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

DATASET = "nyu-mll/glue"

_YES_NO = ("entailment", "not_entailment")
_THREE = ("entailment", "neutral", "contradiction")
_ONE_VALIDATION = {"": "validation"}
_ONE_TEST = {"": "test"}


@dataclasses.dataclass(frozen=True)
class GlueTask:
    """One row of the table. Splits are {suffix of the metrics: split of the data set}."""

    text: str
    text_pair: str  # "" = single sentences
    labels: tuple[str, ...]  # in id order of the data; () = a number (regression)
    metric: str  # picks the best model
    validation: Mapping[str, str] = dataclasses.field(default_factory=lambda: _ONE_VALIDATION)
    test: Mapping[str, str] = dataclasses.field(default_factory=lambda: _ONE_TEST)


GLUE: dict[str, GlueTask] = {
    "cola": GlueTask("sentence", "", ("unacceptable", "acceptable"), "matthews_correlation"),
    "sst2": GlueTask("sentence", "", ("negative", "positive"), "accuracy"),
    "mrpc": GlueTask("sentence1", "sentence2", ("not_equivalent", "equivalent"), "combined_score"),
    "stsb": GlueTask("sentence1", "sentence2", (), "combined_score"),
    "qqp": GlueTask("question1", "question2", ("not_duplicate", "duplicate"), "combined_score"),
    "mnli": GlueTask(
        "premise",
        "hypothesis",
        _THREE,
        "accuracy",
        {"": "validation_matched", "mm": "validation_mismatched"},
        {"": "test_matched", "mm": "test_mismatched"},
    ),
    "qnli": GlueTask("question", "sentence", _YES_NO, "accuracy"),
    "rte": GlueTask("sentence1", "sentence2", _YES_NO, "accuracy"),
    "wnli": GlueTask("sentence1", "sentence2", ("not_entailment", "entailment"), "accuracy"),
}

# The diagnostic set: another configuration of the data set, its labels and columns MNLI's.
AX = "ax"
