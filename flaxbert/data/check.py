"""What keeps training honest: rows and labels are checked on the host before anything compiles.

JAX does not raise on a bad index: a label of -1 trains on the last class with a finite loss, and
one that is too large gives a silent NaN. So this is where they are found, with file and line.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from flaxbert.data.rows import Rows
from flaxbert.errors import ConfigError, DataError
from flaxbert.tasks import Target

# Offenders named in one message; the rest is counted.
_NAMED = 20

_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclasses.dataclass(frozen=True)
class Labels:
    """What a target is: the kind of problem and the names in label-id order."""

    problem: str  # single_label | multi_label | regression
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Known:
    """Label names that are known before the data are read.

    `checkpoint` are those of the starting checkpoint if they mean something; `task` those of the
    task table.
    """

    checkpoint: tuple[str, ...] = ()
    task: tuple[str, ...] = ()


def check_texts(rows: Rows) -> int:
    """Refuses an empty split and missing or unusable texts; returns how many are empty."""
    if not len(rows):
        raise DataError(f"{rows.source}: has no rows. Expected at least one.")
    for column, values in (("text", rows.texts), ("second text", rows.pairs)):
        if values is None:
            continue
        _refuse(
            rows,
            [i for i, value in enumerate(values) if value is None],
            f"the {column} is missing",
            "Give it a value, or remove the row.",
        )
        _refuse(
            rows,
            [i for i, value in enumerate(values) if not isinstance(value, str)],
            f"the {column} is not a string",
            "Put it in quotes.",
        )
        _refuse(
            rows,
            [i for i, value in enumerate(values) if not _encodable(value)],
            f"the {column} has half of a surrogate pair",
            "Repair the \\ud800-\\udfff escapes.",
        )
    pairs = rows.pairs or [""] * len(rows)
    both = zip(rows.texts, pairs, strict=True)
    return sum(1 for text, pair in both if not text.strip() and not pair.strip())


def learn_labels(
    rows: Rows, problem: str = "auto", separator: str = "", known: Known | None = None
) -> Labels:
    """Decides from the training rows what kind of target this is and how labels are numbered.

    Order: the checkpoint's names if they are the data's set; the task's; integers 0..n-1 as ids;
    other integers as names in numeric order; strings in code-point order. Never first-seen.

    Raises:
      DataError: missing, mixed or hidden (-1) labels, only one class, or none at all.
    """
    known = known or Known()
    targets = _present_targets(rows, separator)
    _refuse_mixed(rows, targets)
    if problem == "auto":
        problem = _guess_problem(targets, separator)
    if problem == "regression":
        canonical_targets(rows, Labels("regression", ("LABEL_0",)), separator)
        return Labels("regression", ("LABEL_0",))
    canonical = _canonical(rows, targets, problem, separator)
    used = sorted({name for target in canonical for name in _as_list(target)})
    if not used:
        raise DataError(f"{rows.source}: no row has any label. Check the label column.")
    if problem == "single_label" and len(used) < 2:
        raise DataError(
            f"{rows.source}: every row has the label {used[0]!r}. "
            "Expected at least two classes; check the label column."
        )
    labels = Labels(problem, _order(used, known))
    canonical_targets(rows, labels, separator)  # out of range of a known map
    return labels


def canonical_targets(rows: Rows, labels: Labels, separator: str = "") -> list[Target]:
    """Returns each row's target as its task's `encode` wants it: a name, names, or a number.

    Raises:
      DataError: a target that is missing, hidden (-1), not a number, or none of `labels.names`.
    """
    targets = _present_targets(rows, separator)
    if labels.problem == "regression":
        numbers = [_number(target) for target in targets]
        _refuse(
            rows,
            [i for i, number in enumerate(numbers) if number is None],
            "the label is not a finite number",
            "Expected a number for regression; for classes set data.problem=single_label.",
        )
        return numbers
    canonical = _canonical(rows, targets, labels.problem, separator)
    names = set(labels.names)
    used = {name for target in canonical for name in _as_list(target)}
    if not used <= names and _are_ids(used, labels.names):
        by_id = {str(i): name for i, name in enumerate(labels.names)}
        _refuse(
            rows,
            [i for i, target in enumerate(canonical) if set(_as_list(target)) - set(by_id)],
            "the label is out of range",
            f"Expected an id from 0 to {len(labels.names) - 1} ({', '.join(labels.names)}).",
        )
        return [_renamed(target, by_id) for target in canonical]
    _refuse(
        rows,
        [i for i, target in enumerate(canonical) if set(_as_list(target)) - names],
        "the label is not among those of the training data or the model",
        f"Expected one of {', '.join(map(repr, labels.names[:20]))}.",
    )
    return canonical


def split_validation(
    rows: Rows, labels: Labels, fraction: float, seed: int, separator: str = ""
) -> tuple[Rows, Rows]:
    """Holds out a seeded share of the rows, of each label alike for single labels.

    Raises:
      DataError: too few rows for the share.
    """
    generator = np.random.Generator(np.random.Philox(key=seed))
    groups: dict[Any, list[int]] = {}
    for index, target in enumerate(canonical_targets(rows, labels, separator)):
        group = target if labels.problem == "single_label" else ""
        groups.setdefault(group, []).append(index)
    held: set[int] = set()
    for group in sorted(groups):
        members = groups[group]
        # The last member of a label stays in training, so that no label is only validated.
        count = min(round(len(members) * fraction), len(members) - 1)
        held.update(int(i) for i in generator.permutation(members)[:count])
    if not held:
        raise DataError(
            f"{rows.source}: {len(rows)} rows are too few to hold out a share of {fraction} for "
            "validation. Give a larger share or a validation file."
        )
    train = [i for i in range(len(rows)) if i not in held]
    return rows.take(train, "training part"), rows.take(sorted(held), "validation part")


def check_options(labels: Labels, label_smoothing: float, class_weights: Sequence[float]) -> None:
    """Refuses loss options that do not fit the kind of target.

    Raises:
      ConfigError: smoothing or weights for regression, or another number of weights than labels.
    """
    if labels.problem == "regression" and (label_smoothing or class_weights):
        raise ConfigError(
            "config.loss: label_smoothing and class_weights do not apply to regression; leave them "
            "at 0 and ()."
        )
    if class_weights and len(class_weights) != len(labels.names):
        raise ConfigError(
            f"config.loss.class_weights: expected {len(labels.names)} numbers for the labels "
            f"{', '.join(labels.names)}, got {len(class_weights)}."
        )


def label_counts(targets: Iterable[Target], labels: Labels) -> dict[str, int]:
    """Returns how often each label occurs, in label-id order."""
    counts = Counter(name for target in targets for name in _as_list(target))
    return {name: counts[name] for name in labels.names}


def _present_targets(rows: Rows, separator: str) -> list[Any]:
    """Returns the targets; with a separator an empty cell is an example without labels."""
    if rows.targets is None:
        raise DataError(f"{rows.source}: has no label column. Name it by data.label.")
    _refuse(
        rows,
        [i for i, t in enumerate(rows.targets) if t is None or (t == "" and not separator)],
        "the label is missing",
        "Give it a value, or remove the row.",
    )
    return rows.targets


def _refuse_mixed(rows: Rows, targets: list[Any]) -> None:
    first: dict[str, str] = {}  # kind: where it stands first
    for index, target in enumerate(targets):
        for item in _as_list(target):
            first.setdefault(_kind(item), rows.where(index))
    if len(first) > 1:
        listed = ", ".join(f"{kind} at {where}" for kind, where in first.items())
        raise DataError(f"{rows.source}: labels of several kinds: {listed}. Use one kind.")


def _guess_problem(targets: list[Any], separator: str) -> str:
    if separator or any(isinstance(target, list) for target in targets):
        return "multi_label"
    numbers = [_number(target) for target in targets]
    fractional = any(number is not None and not number.is_integer() for number in numbers)
    return "regression" if fractional else "single_label"


def _canonical(rows: Rows, targets: list[Any], problem: str, separator: str) -> list[Any]:
    """Returns names: strings as they stand, integers in decimal, booleans as in JSON."""
    many = problem == "multi_label"
    if many and separator:
        targets = [
            [part.strip() for part in target.split(separator) if part.strip()]
            if isinstance(target, str)
            else target
            for target in targets
        ]
    elif many:
        targets = [[target] if isinstance(target, str) else target for target in targets]
    _refuse(
        rows,
        [i for i, target in enumerate(targets) if isinstance(target, list) != many],
        "the label is a list" if not many else "the label is not a list",
        "Expected one label a row." if not many else "Expected a list of labels a row.",
    )
    canonical = [[_name(item) for item in _as_list(target)] for target in targets]
    _refuse(
        rows,
        [i for i, names in enumerate(canonical) if None in names],
        "the label is neither a string nor a whole number",
        "For numbers with decimals set data.problem=regression.",
    )
    _refuse(
        rows,
        [i for i, names in enumerate(canonical) if "-1" in names],
        "the label is -1, which marks hidden labels of a test set",
        "Remove these rows, or name the class by a word.",
    )
    return canonical if many else [names[0] for names in canonical]


def _name(value: Any) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        number = _number(value)
        if "." in value and number is not None and number.is_integer():
            return str(int(number))
        return value
    number = _number(value)
    return str(int(number)) if number is not None and number.is_integer() else None


def _order(used: list[str], known: Known) -> tuple[str, ...]:
    if known.checkpoint and set(used) == set(known.checkpoint):
        return known.checkpoint
    if known.task:
        return known.task
    if all(_INTEGER.fullmatch(name) for name in used):
        numbers = sorted(int(name) for name in used)
        if numbers == [*range(len(known.checkpoint))] and _are_ids(used, known.checkpoint):
            return known.checkpoint
        return tuple(map(str, numbers))
    return tuple(used)


def _are_ids(used: Iterable[str], names: Sequence[str]) -> bool:
    """Whether integers in the data are ids of names. Where names are integers themselves (stars
    from 1 to 5) an integer is always a name: read as an id it would be another class."""
    return all(map(_INTEGER.fullmatch, used)) and not any(map(_INTEGER.fullmatch, names))


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        stripped = value.strip()
        value = float(stripped) if _NUMBER.fullmatch(stripped) else None
    if not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _kind(value: Any) -> str:
    name = type(value).__name__
    kinds = {"int": "number", "float": "number", "str": "string", "bool": "true/false"}
    return kinds.get(name, {"dict": "object", "NoneType": "null"}.get(name, name))


def _as_list(target: Any) -> list[Any]:
    return target if isinstance(target, list) else [target]


def _renamed(target: Any, names: dict[str, str]) -> Any:
    return [names[item] for item in target] if isinstance(target, list) else names[target]


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse(rows: Rows, offenders: list[int], what: str, fix: str) -> None:
    """Raises a DataError that names up to 20 offenders, if there are any."""
    if not offenders:
        return
    first = rows.where(offenders[0])
    if rows.targets is not None and what.startswith("the label") and "missing" not in what:
        what += f" (got {rows.targets[offenders[0]]!r})"
    others = ", ".join(str(rows.lines[i]) for i in offenders[1:_NAMED])
    more = len(offenders) - _NAMED
    also = f" Also line{'s' if len(offenders) > 2 else ''} {others}" if others else ""
    also += f" and {more} more" if more > 0 else ""
    raise DataError(f"{first}: {what}.{also + '.' if also else ''} {fix}")
