"""Reports of many labels: what people see stays readable, and the file bounded."""

from __future__ import annotations

import json

import numpy as np
import pytest

from flaxbert.heads.targets import multi_label, single_label
from flaxbert.metrics.classification import CONFUSIONS, MATRIX_LABELS
from flaxbert.metrics.report_lines import SHOWN_LABELS, WORST, report_lines


def report_of(count: int) -> dict:
    """Returns a report in which label 7 is always taken for 8, and 5 once for 6."""
    names = [f"department {i:04}" for i in range(count)]
    gold = np.repeat(np.arange(count), 3)
    predicted = gold.copy()
    predicted[21:24], predicted[15] = 8, 6
    return single_label.report(np.eye(count)[predicted], gold, names)


@pytest.mark.parametrize("count", [SHOWN_LABELS + 1, MATRIX_LABELS, MATRIX_LABELS + 1, 1500])
def test_the_worst_of_many_labels(count):
    report = report_of(count)
    lines = report_lines(report)
    assert len(lines) < 2 * WORST + 15 and max(map(len, lines)) < 120
    assert lines[1].split() == ["department", "0007", *["0.0000"] * 3, "3"]
    assert f"{WORST} of {count} labels, those with the lowest F1" in "\n".join(lines)
    assert any(line.startswith("(macro)") for line in lines)
    place = next(i for i, line in enumerate(lines) if line.startswith("actual"))
    assert lines[place].split() == ["actual", "predicted", "count"]
    assert [line.split()[1::2] for line in lines[place + 1 : place + 3]] == [
        ["0007", "0008"], ["0005", "0006"],
    ]  # fmt: skip
    assert lines[-1] == "the 2 most frequent errors"
    assert len(json.dumps(report, indent=4)) < 1_000_000
    assert ("confusion_matrix" in report) == (count <= MATRIX_LABELS)
    if count > MATRIX_LABELS:
        assert report["confusions"] == [
            {"actual": "department 0007", "predicted": "department 0008", "count": 3},
            {"actual": "department 0005", "predicted": "department 0006", "count": 1},
        ]


def test_as_many_confusions_as_a_file_has_room_for():
    count = 1200
    shifted = np.eye(count)[(np.arange(count) + 1) % count]
    report = single_label.report(shifted, np.arange(count), [str(i) for i in range(count)])
    assert len(report["confusions"]) == CONFUSIONS


def test_several_labels_a_row():
    """No matrix; a label that never occurs is not among the worst, a long name is cut."""
    names = [f"{i} {'long ' * 40}" for i in range(300)]
    actual = np.zeros((2, 300))
    actual[:, :50] = 1
    lines = report_lines(multi_label.report(actual * 2 - 1, actual, names))
    assert len(lines) == 1 + WORST + 3 + 1 and max(map(len, lines)) < 120
    assert all("0.0000" not in line for line in lines)


def test_few_labels_are_shown_whole():
    lines = report_lines(report_of(SHOWN_LABELS))
    assert len(lines) == 1 + SHOWN_LABELS + 2 + 1 + 1 + SHOWN_LABELS
