"""The data report: each line of it, each number of it, and that it can be written as JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from flaxbert.data import overlap
from flaxbert.data.checks import Labels
from flaxbert.data.report import describe_labels, describe_leaks, describe_split
from flaxbert.data.tokenize import Tokens
from flaxbert.heads import head_named
from tests.data.made import rows_of

AB = Labels("single_label", ("a", "b"))


def tokens_of(lengths: list[int], max_length: int = 16, unknown_share: float = 0.0) -> Tokens:
    kept = np.minimum(lengths, max_length)
    ids = np.zeros(kept.sum(), np.int32)
    cut = int(sum(length > max_length for length in lengths))
    uncut = np.array(lengths, np.int32) if cut else None
    return Tokens(ids, ids, np.cumsum([0, *kept]), cut, unknown_share, uncut)


def describe(
    texts: list[str],
    targets: list[Any],
    labels: Labels = AB,
    *,
    lengths: list[int] | None = None,
    unknown_share: float = 0.0,
    **fields: Any,
):
    rows = dataclasses.replace(rows_of(texts), **fields)
    tokens = tokens_of(lengths or [5] * len(texts), unknown_share=unknown_share)
    head = head_named(labels.problem)
    about = head.describe_targets(rows, targets, labels)
    report = describe_split("training", rows, targets, about, head.empty(rows), tokens, 16)
    json.dumps(report.values, allow_nan=False)
    return report


def test_rows_labels_and_lengths():
    texts = [f"text {i}" for i in range(100)]
    targets = ["a"] * 25 + ["b"] * 75
    report = describe(texts, targets, lengths=[*range(1, 101)])
    assert report.lines == (
        "training: 100 rows; a 25 (25.0 %), b 75 (75.0 %)",
        "training: tokens a row: median 51, 90 % up to 91, 99 % up to 100, longest 100; "
        "84 rows (84.0 %) cut to 16",
    )
    assert report.values == {
        "source": "rows.csv",
        "rows": 100,
        "labels": {"a": 25, "b": 75},
        "label_shares": {"a": 0.25, "b": 0.75},
        "tokens": {
            "mean": (sum(range(1, 17)) + 84 * 16) / 100,  # as trained on
            "p50": 51,
            "p90": 91,
            "p99": 100,
            "max": 100,
            "max_length": 16,
            "truncated": 84,
            "truncated_share": 0.84,
        },
        "empty": 0,
        "duplicates": 0,
        "duplicates_with_another_label": 0,
        "unknown_token_share": 0.0,
        "skipped": {},
    }
    assert describe(["x"], ["a"]).lines[1].endswith("longest 5; none cut to 16")


def test_many_labels_are_shortened_in_the_line_alone():
    names = tuple(f"label {i:02}" for i in range(30))
    report = describe([f"{i}" for i in range(30)], list(names), Labels("single_label", names))
    assert report.lines[0].endswith("label 19 1 (3.3 %) and 10 more labels")
    assert len(report.values["labels"]) == 30


def test_numbers():
    report = describe(["x", "y"], [0.5, -2.0], Labels("regression", ("LABEL_0",)))
    assert report.lines[0] == "training: 2 rows; values -2 to 0.5, mean -0.75"
    expected = {"min": -2.0, "mean": -0.75, "max": 0.5, "std": 1.25}
    assert report.values["targets"] == expected


def test_empty_skipped_and_unknown():
    skipped = {"the text is missing": [3, 9], "not valid JSON": list(range(20))}
    report = describe(["", "x", " "], ["a", "b", "a"], unknown_share=0.34, skipped=skipped)
    assert report.lines[2:] == (
        "training: WARNING: 2 rows skipped: the text is missing (lines 3, 9)",
        "training: WARNING: 20 rows skipped: not valid JSON (lines 0, 1, 2, 3, 4 and 15 more)",
        "training: WARNING: 2 rows with an empty text (lines 2, 4)",
        "training: WARNING: 34 % of the tokens are unknown to the vocabulary; is this the right "
        "model for these texts?",
    )
    assert report.values["empty"] == 2
    assert report.values["skipped"] == {"the text is missing": 2, "not valid JSON": 20}
    assert report.values["unknown_token_share"] == 0.34
    assert len(describe(["x"], ["a"], unknown_share=0.2).lines) == 2  # a share still usual


def test_duplicates():
    report = describe(["x", "y", "x", "X", "x", "", ""], ["a", "b", "a", "a", "b", "a", "b"])
    assert report.lines[3] == (
        "training: WARNING: 2 rows with the text of an earlier row, 1 of them with another label: "
        "rows.csv:6 = rows.csv:2"
    )
    assert report.values["duplicates"] == 2
    assert report.values["duplicates_with_another_label"] == 1
    alike = describe(["x", "x"], ["a", "a"])
    assert alike.lines[2].endswith("1 row with the text of an earlier row: rows.csv:3 = rows.csv:2")


def test_pairs_are_duplicates_when_both_texts_are():
    rows = rows_of(["a", "a", "a b", "a", ""], None, ["b c", "b", "c", "b c", ""])
    found = overlap.repeats(rows, ["x"] * 5)
    assert [(repeat.row, repeat.earlier) for repeat in found] == [(3, 0)]
    assert len(set(overlap.text_keys(rows))) == 4


LEAKS = {
    # name: (training text, validation text, exact; None: no leak)
    "exact": ("Some text.", "Some text.", True),
    "case": ("Some text.", "SOME TEXT.", False),
    "sharp s": ("straße", "STRASSE", False),
    "spaces": ("some text", " some \t text\n", False),
    "compatibility": ("ﬁne １", "fine 1", False),
    "composed": ("caf\u00e9", "cafe\u0301", False),
    "another": ("some text", "some texts", None),
    "empty": ("", "", None),
    "blank": (" ", "\t", None),
}


@pytest.mark.parametrize("case", LEAKS)
def test_leaks(case):
    first, second, exact = LEAKS[case]
    train, validation = rows_of(["other", first], source="t"), rows_of(["new", second], source="v")
    found = overlap.leaks(train, ["a", "a"], validation, ["b", "b"])
    expected = [] if exact is None else [overlap.Repeat(1, 1, exact, True)]
    assert found == expected


def test_leak_lines():
    train = rows_of(["One", "one", "two"], source="train.csv")
    validation = rows_of(["one", "TWO", "three"], source="dev.csv")
    found = overlap.leaks(train, ["a", "b", "b"], validation, ["b", "b", "a"])
    report = describe_leaks("validation", found, train, validation)
    assert report.lines == (
        "validation: WARNING: 2 of 3 texts also occur in training, 1 of them exactly: "
        "dev.csv:2 = train.csv:3, dev.csv:3 = train.csv:4; the metrics will be too optimistic",
    )
    assert report.values == {"rows": 2, "exact": 1, "with_another_label": 0}
    found = overlap.leaks(train, ["a", "a", "b"], validation, ["b", "b", "a"])
    line = describe_leaks("validation", found, train, validation).lines[0]
    assert ", 1 of them with another label: dev.csv:2 = train.csv:3;" in line
    assert describe_leaks("validation", [], train, validation).lines == ()


def test_labels_that_lack_or_look_alike():
    labels = Labels("single_label", ("Pos", "neg", "pos", "ｎｅｇ"))
    report = describe_labels(labels, {
        "training": {"Pos": 1, "neg": 1, "pos": 1, "ｎｅｇ": 0},
        "validation": {"Pos": 0, "neg": 3, "pos": 0, "ｎｅｇ": 1},
    })  # fmt: skip
    assert report.lines == (
        "training: WARNING: no row has the label 'ｎｅｇ'",
        "validation: WARNING: no row has the label 'Pos', 'pos'",
        "labels: WARNING: 'Pos', 'pos' look alike (case, spacing, invisible characters or how a "
        "number is written), and are classes of their own; write them alike if they mean the same",
        "labels: WARNING: 'neg', 'ｎｅｇ' look alike (case, spacing, invisible characters or how a "
        "number is written), and are classes of their own; write them alike if they mean the same",
    )
    assert report.values == {"problem": "single_label", "names": list(labels.names)}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("good", "go\u200bod"), "WARNING: 'good', 'go\\u200bod' look alike"),
        (("\u2060bad", "bad"), "WARNING: '\\u2060bad', 'bad' look alike"),
        (("❤", "❤\ufe0f"), "look alike"),
        (("caf\u00e9", "cafe\u0301"), "look alike"),
        (("12.50", "12.5"), "WARNING: '12.50', '12.5' look alike"),
        (
            ("1,5", "-2,25", "3"),
            "WARNING: '1,5', '-2,25', '3' look like numbers with a decimal comma",
        ),
        (("a", "b"), ""),
        (("1,5", "many"), ""),
        (("1", "2"), ""),
    ],
)
def test_labels_that_are_told(names, said):
    labels = Labels("single_label", names)
    lines = describe_labels(labels, {"training": dict.fromkeys(names, 9)}).lines
    assert len(lines) == bool(said) and all(said in line for line in lines)


def test_a_label_column_that_is_none():
    names = tuple(f"{i}" for i in range(40))
    labels = Labels("single_label", names)
    report = describe_labels(labels, {"training": dict.fromkeys(names, 1)})
    assert report.lines == ("labels: WARNING: 40 classes in 40 rows; is this the label column?",)
    assert describe_labels(labels, {"training": dict.fromkeys(names, 2)}).lines == ()
