"""From rows to examples of a sequence classifier, and what a user is told about them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from flaxbert.config import Config, Data
from flaxbert.data.checks import Labels
from flaxbert.data.rows import Rows
from flaxbert.data.splits import Split, report_on
from flaxbert.data.tokenize import Tokenizer
from flaxbert.errors import DataError
from flaxbert.heads import head_named
from tests.data.made import rows_of

AB = Labels("single_label", ("a", "b"))


@pytest.fixture(scope="module")
def tokenizer(minilm) -> Tokenizer:
    return Tokenizer(minilm, vocab_size=30522, pad_token_id=0)


def make_split(
    name: str, rows: Rows, labels: Labels, tokenizer: Tokenizer, max_length: int, **data: str
) -> Split:
    head = head_named(labels.problem)
    return head.split(name, rows, labels, tokenizer, max_length, Config(data=Data(**data)))


def test_examples(tokenizer):
    rows = rows_of(["hello world", "one two three four", "hi"], ["b", "a", "b"])
    split = make_split("training", rows, AB, tokenizer, max_length=5)
    assert split.examples.labels.tolist() == [1, 0, 1]
    assert split.examples.labels.dtype == np.int32
    assert split.examples.tokens.lengths.tolist() == [4, 5, 3]
    assert split.lines == (
        "training: 3 rows; a 1 (33.3 %), b 2 (66.7 %)",
        "training: tokens a row: median 4, 90 % up to 6, 99 % up to 6, longest 6; 1 row (33.3 %) "
        "cut to 5",
    )


def test_examples_of_pairs_lists_and_numbers(tokenizer):
    rows = rows_of(["x", "y"], ["a;b", "b"], ["second", "text"])
    labels = Labels("multi_label", ("a", "b"))
    split = make_split("test", rows, labels, tokenizer, max_length=16, label_separator=";")
    assert split.examples.labels.tolist() == [[1.0, 1.0], [0.0, 1.0]]
    assert split.examples.tokens.lengths.tolist() == [5, 5]
    assert split.lines[0] == "test: 2 rows; a 1 (50.0 %), b 2 (100.0 %)"
    rows = rows_of(["x", "y"], ["0.5", "-2"])
    split = make_split("test", rows, Labels("regression", ("LABEL_0",)), tokenizer, max_length=16)
    assert split.examples.labels.tolist() == [0.5, -2.0]
    assert split.lines[0] == "test: 2 rows; values -2 to 0.5, mean -0.75"


@pytest.mark.parametrize(
    ("texts", "targets", "said"),
    [
        ([], [], "rows.csv: has no rows"),
        (["a", "b"], ["a", "c"], "rows.csv:3: the label is not among"),
        (["a", "b"], ["a", -1], "rows.csv:3: the label is -1"),
        (["a"], None, "rows.csv: has no label column"),
    ],
)
def test_bad_rows_never_become_examples(tokenizer, texts, targets, said):
    with pytest.raises(DataError, match=said):
        make_split("test", rows_of(texts, targets), AB, tokenizer, max_length=16)


def test_bad_rows_can_be_left_out(tokenizer):
    rows = rows_of(["a", "b", "c"], ["a", "x", "b"])
    split = make_split("test", rows, AB, tokenizer, max_length=16, on_bad_row="skip")
    assert split.rows.lines == [2, 4]
    assert split.targets == ["a", "b"]
    assert split.examples.labels.tolist() == [0, 1]
    assert len(split.examples.tokens) == 2


# --- the report on all splits -------------------------------------------------------------------


def test_report_on_training_and_validation(tokenizer):
    def split(name, texts, targets):
        return make_split(name, rows_of(texts, targets), AB, tokenizer, max_length=16)

    train = split("training", ["one", "two", "three"], ["a", "b", "b"])
    validation = split("validation", ["Two ", "four"], ["b", "b"])
    report = report_on(Data(), AB, train, {"validation": validation})
    assert report.lines[:2] == train.lines
    assert report.lines[2:4] == validation.lines
    assert report.lines[4:] == (
        "validation: WARNING: no row has the label 'a'",
        "validation: WARNING: 1 of 2 texts also occur in training, 0 of them exactly: "
        "rows.csv:2 = rows.csv:3; the metrics will be too optimistic",
    )
    assert set(report.values) == {"training", "validation", "labels", "validation_in_training"}
    assert report_on(Data(), AB, train, {}).values.keys() == {"training", "labels"}
    json.dumps(report.values, allow_nan=False)
    message = r"^validation: 1 of 2 texts also occur in training.*\. Remove them.*on_leak=warn"
    with pytest.raises(DataError, match=message):
        report_on(Data(on_leak="error"), AB, train, {"validation": validation})
    clean = split("validation", ["five", "six"], ["a", "b"])
    assert len(report_on(Data(on_leak="error"), AB, train, {"validation": clean}).lines) == 4
