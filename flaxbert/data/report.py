"""The data report: a summary of a run's data, shown before training starts.

Pure functions that return lines to print and a dict to write as JSON. Lengths are those before
truncation, since they show which max_length would be enough.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from flaxbert.data import checks, overlap
from flaxbert.data.checks import Labels
from flaxbert.data.overlap import Repeat
from flaxbert.data.rows import Rows, Target, list_lines, list_names
from flaxbert.data.tokenize import Tokens

About = tuple[list[str], dict[str, Any]]  # lines about the targets, and values for JSON

# Above this share of unknown tokens the model is probably not made for these texts.
UNKNOWN_SHARE = 0.2

_LABELS = 20  # named in a line; the dict has all
_WITH_COMMA = re.compile(r"[+-]?\d+(,\d+)?")
_PAIRS = 3  # repeated rows that are named in a line


@dataclasses.dataclass(frozen=True)
class Report:
    """Lines to print, and the same and more as a JSON-ready dict."""

    lines: tuple[str, ...]
    values: dict[str, Any]


def describe_split(
    name: str,
    rows: Rows,
    targets: Sequence[Target],
    about_targets: About,
    empty: Sequence[int],
    tokens: Tokens,
    max_length: int,
    cut: str = "cut to",
) -> Report:
    """Describes one split that has been checked: its targets, lengths and repeated rows.

    Args:
      name: opens each line.
      empty: which rows have no text.
      cut: how rows over max_length are treated.
    """
    target_lines, target_values = about_targets
    repeated = overlap.repeats(rows, targets)
    length = _lengths(tokens, max_length)
    values: dict[str, Any] = {
        "source": rows.source,
        "rows": len(rows),
        **target_values,
        "tokens": length,
        "empty": len(empty),
        "duplicates": len(repeated),
        "duplicates_with_another_label": sum(repeat.conflict for repeat in repeated),
        "unknown_token_share": tokens.unknown_share,
        "skipped": {why: len(lines) for why, lines in rows.skipped.items()},
    }
    lines = [*rows.notes, *target_lines, _length_line(length, cut)]
    for why, where in rows.skipped.items():
        lines.append(f"WARNING: {count_rows(len(where))} skipped: {why} ({list_lines(where, 5)})")
    if empty:
        where = list_lines([rows.lines[i] for i in empty], 5)
        lines.append(f"WARNING: {count_rows(len(empty))} with an empty text ({where})")
    if repeated:
        lines.append(
            f"WARNING: {count_rows(len(repeated))} with the text of an earlier row"
            + _pairs_line(repeated, rows, rows)
        )
    lines += warn_of_unknown(tokens.unknown_share)
    return Report(tuple(f"{name}: {line}" for line in lines), values)


def describe_labels(labels: Labels, counts: dict[str, dict[str, int]]) -> Report:
    """Warns of labels that are missing in a split, look alike, or look like numbers.

    `counts` says for each split ("training", "validation") how often each label occurs.
    """
    lines = []
    for split, of_split in counts.items():
        absent = [name for name, count in of_split.items() if not count]
        if absent:
            lines.append(f"{split}: WARNING: no row has the label {list_names(absent)}")
    alike: dict[str, list[str]] = {}
    for label in labels.names:
        alike.setdefault(overlap.look_of(label), []).append(label)
    near = [names for names in alike.values() if len(names) > 1]
    lines += [
        f"labels: WARNING: {list_names(names)} look alike (case, spacing, invisible characters or "
        "how a number is written), and are classes of their own; write them alike if they mean the "
        "same"
        for names in near
    ]
    commas = any("," in name for name in labels.names)
    if commas and all(map(_WITH_COMMA.fullmatch, labels.names)):
        lines.append(
            f"labels: WARNING: {list_names(labels.names[:3])} look like numbers with a decimal "
            "comma, and are classes; for regression write them with a point"
        )
    training = counts.get("training", {})
    rows = sum(training.values())
    if labels.problem == "single_label" and len(labels.names) > max(20, rows / 2):
        lines.append(
            f"labels: WARNING: {len(labels.names)} classes in {rows} rows; "
            "is this the label column?"
        )
    return Report(tuple(lines), {"problem": labels.problem, "names": list(labels.names)})


def describe_leaks(name: str, found: Sequence[Repeat], train: Rows, validation: Rows) -> Report:
    """Reports the texts of split `name` that also occur in training (see `overlap.leaks`)."""
    exact = sum(repeat.exact for repeat in found)
    values = {
        "rows": len(found),
        "exact": exact,
        "with_another_label": sum(repeat.conflict for repeat in found),
    }
    if not found:
        return Report((), values)
    line = (
        f"{name}: WARNING: {len(found)} of {len(validation)} texts also occur in training, "
        f"{exact} of them exactly{_pairs_line(found, validation, train)}; "
        "the metrics will be too optimistic"
    )
    return Report((line,), values)


def target_values(targets: Sequence[Target], labels: Labels) -> dict[str, Any]:
    """Returns how often each label occurs, or the distribution of numbers."""
    if labels.problem == "regression":
        numbers = np.array(targets, np.float64)
        return {
            "targets": {
                "min": float(numbers.min()),
                "mean": float(numbers.mean()),
                "max": float(numbers.max()),
                "std": float(numbers.std()),
            }
        }
    counts = checks.label_counts(targets, labels)
    shares = {name: count / len(targets) for name, count in counts.items()}
    return {"labels": counts, "label_shares": shares}


def shares_line(values: dict[str, Any]) -> str:
    """Returns how often each label occurs, or the range of numbers."""
    if "targets" in values:
        t = values["targets"]
        return f"values {t['min']:.4g} to {t['max']:.4g}, mean {t['mean']:.4g}"
    listed = [
        f"{name} {count} ({100 * values['label_shares'][name]:.1f} %)"
        for name, count in list(values["labels"].items())[:_LABELS]
    ]
    more = len(values["labels"]) - _LABELS
    return ", ".join(listed) + (f" and {more} more labels" if more > 0 else "")


def _lengths(tokens: Tokens, max_length: int) -> dict[str, Any]:
    lengths = tokens.lengths if tokens.uncut_lengths is None else tokens.uncut_lengths
    p50, p90, p99 = (int(np.percentile(lengths, p, method="higher")) for p in (50, 90, 99))
    return {
        "mean": float(tokens.lengths.mean()),  # as trained on
        "p50": p50,
        "p90": p90,
        "p99": p99,
        "max": int(lengths.max()),
        "max_length": max_length,
        "truncated": tokens.truncated,
        "truncated_share": tokens.truncated / len(lengths),
    }


def _length_line(length: dict[str, Any], cut: str) -> str:
    share = f"{100 * length['truncated_share']:.1f} %"
    long = f"{count_rows(length['truncated'])} ({share})" if length["truncated"] else "none"
    return (
        f"tokens a row: median {length['p50']}, 90 % up to {length['p90']}, 99 % up to "
        f"{length['p99']}, longest {length['max']}; {long} {cut} {length['max_length']}"
    )


def warn_of_unknown(share: float) -> list[str]:
    """Returns a warning if this share of unknown tokens is too large."""
    if share <= UNKNOWN_SHARE:
        return []
    return [
        f"WARNING: {100 * share:.0f} % of the tokens are unknown to the vocabulary; is this the "
        "right model for these texts?"
    ]


def count_rows(count: int) -> str:
    """Returns "1 row" or "7 rows"."""
    return f"{count} row{'' if count == 1 else 's'}"


def _pairs_line(found: Sequence[Repeat], rows: Rows, earlier: Rows) -> str:
    conflicts = [repeat for repeat in found if repeat.conflict]
    first = (conflicts or list(found))[:_PAIRS]
    named = ", ".join(f"{rows.where(r.row)} = {earlier.where(r.earlier)}" for r in first)
    if not conflicts:
        return f": {named}"
    return f", {len(conflicts)} of them with another label: {named}"
