"""Reports of all heads as aligned lines for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flaxbert.metrics.classification import SCORES, worst_confusions

SHOWN_LABELS = 40  # with more of them only the worst are shown
WORST = 20
_LONGEST_NAME = 60  # of a label, where only the worst are shown


def report_lines(report: dict[str, Any]) -> list[str]:
    """Returns a head's report as lines, a table for each kind of its entries.

    They are scores of labels and their means ("labels", "micro", ...), a confusion matrix or the
    most frequent confusions, the accuracy of tokens, and distributions of numbers.
    """
    lines = []
    if "labels" in report:
        lines += _label_lines(report)
    if "confusion_matrix" in report or "confusions" in report:
        lines += ["", *_confusion_lines(report)]
    if "accuracy" in report:
        lines += ["", f"token accuracy: {report['accuracy']:.4f}"]
    if "r2" in report:
        summaries = {name: values for name, values in report.items() if name != "r2"}
        rows = [[name, *values.values()] for name, values in summaries.items()]
        lines += table(["", *next(iter(summaries.values()))], rows)
        lines.append(f"r2 {report['r2']:.4f}")
    return lines


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Returns aligned lines: names to the left, numbers to the right, fractions in 4 digits."""
    cells = [[f"{c:.4f}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *cells)
    ]


def _label_lines(report: dict[str, Any]) -> list[str]:
    labels, note = report["labels"], []
    rows = [[name, *values.values()] for name, values in labels.items()]
    if len(labels) > SHOWN_LABELS:
        present = [name for name, values in labels.items() if values["support"]]
        worst = sorted(present, key=lambda name: (labels[name]["f1"], -labels[name]["support"]))
        rows = [[_cut(name), *labels[name].values()] for name in worst[:WORST]]
        note = [
            f"{len(rows)} of {len(labels)} labels, those with the lowest F1; *_report.json has all "
            "(for --data with --output=DIR)"
        ]
    means = {name: report[name] for name in ("micro", "macro", "weighted") if name in report}
    if "strict" in report:
        means["micro, strict"] = report["strict"]["micro"]
    rows += [[f"({name})", *(mean[s] for s in SCORES), ""] for name, mean in means.items()]
    return table(["label", *SCORES, "support"], rows) + note


def _confusion_lines(report: dict[str, Any]) -> list[str]:
    if matrix := report.get("confusion_matrix"):
        names, counts = matrix["labels"], matrix["counts"]
        if len(names) <= SHOWN_LABELS:
            rows = [[name, *row] for name, row in zip(names, counts, strict=True)]
            return table(["actual \\ predicted", *names], rows)
        worst = worst_confusions(np.array(counts), names, WORST)
    else:
        worst = report["confusions"][:WORST]
    rows = [[_cut(each["actual"]), _cut(each["predicted"]), each["count"]] for each in worst]
    return [*table(["actual", "predicted", "count"], rows), f"the {len(rows)} most frequent errors"]


def _cut(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..."
