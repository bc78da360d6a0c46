"""The GLUE tasks (Wang et al. 2019) as a table: columns, labels, metric and splits of each.

Labels are in the order of the ids in `nyu-mll/glue`. AX, the diagnostic set, is not a task of its
own but a further test split of MNLI.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from flaxbert.config import Data
from flaxbert.data.rows import Rows
from flaxbert.data.sources import Task, hub_datasets

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

TASKS = {
    name: Task(
        fields={
            "dataset_config": name,
            "text": row.text,
            "text_pair": row.text_pair,
            "problem": "single_label" if row.labels else "regression",
        },
        dataset=DATASET,
        metric=row.metric,
    )
    for name, row in GLUE.items()
} | {
    AX: Task(
        elsewhere="the diagnostic set has no training data. Train mnli, then run "
        "flaxbert.predict --workdir=RUN --split=ax."
    )
}


class GlueData:
    """A task's configuration of the data set, for MNLI also AX's.

    It is opened when rows are read: for AX nothing of MNLI is fetched.
    """

    def __init__(self, data: Data, revision: str) -> None:
        self._data = data
        self._asked = revision or data.dataset_revision
        self._opened: dict[str, hub_datasets.HubData] = {}

    @property
    def revision(self) -> str:
        return self._open(self._data.task).revision

    def parts(self, split: str) -> Mapping[str, str]:
        row = GLUE[self._data.task]
        return {"validation": row.validation, "test": row.test}.get(split) or {"": split}

    def read(self, part: str, columns: Mapping[str, str]) -> Rows:
        labels = GLUE[self._data.task].labels
        if part == AX and self._data.task == "mnli":
            return self._open(AX).read("test", columns, labels)
        return self._open(self._data.task).read(part, columns, labels)

    def _open(self, config: str) -> hub_datasets.HubData:
        if config not in self._opened:
            self._opened[config] = hub_datasets.open_dataset(self._data, config, self._asked)
        return self._opened[config]


def open_data(data: Data, revision: str) -> GlueData:
    return GlueData(data, revision)
