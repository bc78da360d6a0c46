"""Finds invalid rows and labels, with file and line, before anything compiles.

Note: JAX does not raise on a bad index. A label of -1 trains on the last class with a finite loss,
and one that is too large gives a silent NaN. Each check either refuses the file or, with
`on_bad_row="skip"`, leaves the row out and counts it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from flaxbert.config import Data, Loss
from flaxbert.data import cells
from flaxbert.data.bad_rows import Sieve, where
from flaxbert.data.rows import Rows, Target, list_lines, list_names, shown
from flaxbert.errors import ConfigError, DataError

# The loss of a regression squares its targets, in float32.
_LARGEST = 1e18


@dataclasses.dataclass(frozen=True)
class Labels:
    """The kind of target and the label names in id order."""

    problem: str  # single_label | multi_label | regression
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Known:
    """Label names that are known before the data are read."""

    checkpoint: tuple[str, ...] = ()  # of the starting checkpoint, unless they are LABEL_0, ...
    task: tuple[str, ...] = ()  # of the task table


def usable_texts(rows: Rows, data: Data) -> Rows:
    """Returns the rows whose texts can be used.

    Raises DataError for a text that is missing or no string unless on_bad_row is "skip"; for an
    empty text if on_empty is "error".
    """
    sieve = Sieve(rows, data.on_bad_row)
    for column, values in (("text", rows.texts), ("second text", rows.pairs)):
        if values is None:
            continue
        fix = "Give it a value, or remove the row."
        sieve.refuse(where(v is None for v in values), f"the {column} is missing", fix)
        other = where(v is not None and not isinstance(v, str) for v in values)
        sieve.refuse(other, f"the {column} is not a string", "Put it in quotes.")
        broken = where(isinstance(v, str) and not cells.is_encodable(v) for v in values)
        fix = "Repair the \\ud800-\\udfff escapes."
        sieve.refuse(broken, f"the {column} has half of a surrogate pair", fix)
    rows = sieve.left()
    if data.on_empty != "keep":
        sieve = Sieve(rows, data.on_empty)
        fix = "Give it a value, remove the row, or set config.data.on_empty to keep or skip."
        sieve.refuse(empty_texts(rows), "the text is empty", fix)
        rows = sieve.left()
    return rows


def empty_texts(rows: Rows) -> list[int]:
    """Returns which rows have nothing but white space in both texts."""
    empty = [i for i, text in enumerate(rows.texts) if not text.strip()]
    return [i for i in empty if rows.pairs is None or not rows.pairs[i].strip()]


def learn_labels(rows: Rows, data: Data, known: Known) -> Labels:
    """Decides from the training rows what kind of target this is and how labels are numbered.

    Order: the checkpoint's names if they are the same set as the data's; the task's; integers
    0..n-1 as ids; other integers as names in numeric order; strings in code-point order. It never
    depends on the order of the rows. Raises DataError for missing, mixed or hidden (-1) labels, and
    for fewer than two classes.
    """
    sieve, separator = Sieve(rows, data.on_bad_row), data.label_separator
    targets = _present_targets(sieve, separator)
    _refuse_mixed(sieve, targets)
    problem = data.problem
    if problem == "auto":
        problem = _guess_problem([targets[i] for i in sieve.kept()], separator)
    if problem == "regression":
        labels = Labels("regression", ("LABEL_0",))
        usable_labels(rows, labels, data)
        return labels
    targets = _shaped(sieve, targets, problem, separator)
    if names := _names_of_places(sieve, targets, known):
        return Labels(problem, names)
    canonical = _canonical(sieve, targets, (*known.checkpoint, *known.task))
    used = sorted({name for i in sieve.kept() for name in cells.as_list(canonical[i])})
    if not used:
        raise DataError(f"{rows.source}: no row has any label. Check the label column.")
    labels = Labels(problem, _order(used, known))
    if problem == "single_label" and len(used) < 2:
        labels = _single_class(rows.source, used[0], labels, known, data.on_single_class)
    _within(sieve, canonical, labels)  # refuses ids out of range
    return labels


def usable_labels(rows: Rows, labels: Labels, data: Data) -> tuple[Rows, list[Target]]:
    """Returns the rows whose label the model knows, and their targets: a name, names, or a number.

    Raises DataError for a target that is missing, hidden (-1), not a number, or none of
    `labels.names`; with on_bad_row="skip" only if no row is left.
    """
    sieve, separator = Sieve(rows, data.on_bad_row), data.label_separator
    targets = _present_targets(sieve, separator)
    if labels.problem == "regression":
        targets = _numbers(sieve, targets)
        if len(targets) > 1 and all(target == -1 for target in targets):
            raise DataError(
                f"{rows.source}: every label is -1, which marks hidden labels of a test set. They "
                "cannot be scored; flaxbert.predict answers such a split."
            )
    else:
        targets = _shaped(sieve, targets, labels.problem, separator)
        targets = _within(sieve, _canonical(sieve, targets, labels.names), labels)
    targets = [targets[i] for i in sieve.kept()]
    rows = sieve.left()
    refuse_nothing(rows)
    return rows, targets


def check_options(labels: Labels, loss: Loss) -> None:
    """Raises ConfigError for options of the loss with a regression."""
    if labels.problem == "regression" and (loss.label_smoothing or loss.class_weights):
        raise ConfigError(
            "config.loss: label_smoothing and class_weights do not apply to regression; leave them "
            "at 0 and ()."
        )


def label_counts(targets: Iterable[Target], labels: Labels) -> dict[str, int]:
    """Returns how many rows have each label, in label-id order."""
    counts = Counter(name for target in targets for name in set(cells.as_list(target)))
    return {name: counts[name] for name in labels.names}


def refuse_nothing(rows: Rows) -> None:
    """Raises DataError if no row is left."""
    if len(rows):
        return
    if rows.skipped:
        listed = "; ".join(f"{why}: {list_lines(at, 5)}" for why, at in rows.skipped.items())
        raise DataError(f"{rows.source}: no row can be used. Skipped: {listed}. Repair them.")
    raise DataError(f"{rows.source}: has no rows. Expected at least one.")


def _present_targets(sieve: Sieve, separator: str) -> Sequence[Any]:
    """Returns the targets; with a separator an empty cell is a row without labels."""
    targets = sieve.rows.targets
    if targets is None:
        raise DataError(f"{sieve.rows.source}: has no label column. Name it by data.label.")
    missing = where(cells.is_missing(target, separator) for target in targets)
    sieve.refuse(missing, "the label is missing", "Give it a value, or remove the row.")
    return _with_lists(sieve, targets)


def _with_lists(sieve: Sieve, targets: Sequence[Any]) -> Sequence[Any]:
    """Returns the targets with lists in place of their texts, if all rows have such texts."""
    texts = [i for i in sieve.kept() if isinstance(targets[i], str) and targets[i].strip()]
    lists: dict[int, Any] = {i: cells.list_in(targets[i]) for i in texts}
    written = [i for i in texts if lists[i] is not None]
    lists |= {i: cells.places_in(targets[i]) for i in texts if lists[i] is None}
    if texts and None not in lists.values():
        return [lists.get(i, target) for i, target in enumerate(targets)]
    if written:
        raise DataError(
            f"{sieve.rows.where(written[0])}: the label is a list written as text (got "
            f"{shown(targets[written[0]])}), those of other rows are not. Write all as lists, or "
            "name one label a row."
        )
    return targets


def _names_of_places(sieve: Sieve, targets: Sequence[Any], known: Known) -> tuple[str, ...]:
    """Returns a name for each place if the targets are lists of 0 and 1; () if they are not."""
    kept = sieve.kept()
    sizes = Counter(len(targets[i]) for i in kept if cells.are_places(targets[i]))
    if not sizes:
        two = {"0", "1", "true", "false"}
        if kept and all(
            isinstance(targets[i], list)
            and len(targets[i]) == 2
            and two.issuperset(map(cells.name_of, targets[i]))
            for i in kept
        ):
            raise DataError(
                f"{sieve.rows.source}: every label is a list of two zeros or ones, which may be "
                "two names or two places. Write the names of each row, or a column for each label "
                "(data.label=a,b)."
            )
        return ()
    length = max(sizes, key=lambda size: (sizes[size], size))
    sieve.refuse_labels(
        [i for i in kept if not cells.are_places(targets[i]) or len(targets[i]) != length],
        f"the label is not a list of {length} zeros and ones, as those of other rows are",
        "Write all alike, or the names of each row.",
    )
    fitting = (names for names in (known.task, known.checkpoint) if len(names) == length)
    return next(fitting, tuple(map(str, range(length))))


def _refuse_mixed(sieve: Sieve, targets: Sequence[Any]) -> None:
    """Refuses a file with labels of several kinds, also with on_bad_row="skip"."""
    first: dict[str, str] = {}  # kind: its first place
    for index in sieve.kept():
        for item in cells.as_list(targets[index]):
            first.setdefault(cells.kind_of(item), sieve.rows.where(index))
    if len(first) > 1:
        listed = ", ".join(f"{kind} at {place}" for kind, place in first.items())
        raise DataError(f"{sieve.rows.source}: labels of several kinds: {listed}. Use one kind.")


def _guess_problem(targets: list[Any], separator: str) -> str:
    if separator or any(isinstance(target, list) for target in targets):
        return "multi_label"
    numbers = [cells.number_of(target) for target in targets]
    fractional = any(number is not None and not number.is_integer() for number in numbers)
    return "regression" if fractional else "single_label"


def _numbers(sieve: Sieve, targets: Sequence[Any]) -> list[float | None]:
    numbers = [cells.number_of(target) for target in targets]
    sieve.refuse_labels(
        where(number is None for number in numbers),
        "the label is not a finite number",
        "Expected a number for regression; for classes set data.problem=single_label.",
    )
    sieve.refuse_labels(
        where(number is not None and abs(number) > _LARGEST for number in numbers),
        "the label is so large that float32 cannot hold its square",
        "Scale the labels, for example to about -1 to 1.",
    )
    return numbers


def _shaped(sieve: Sieve, targets: Sequence[Any], problem: str, separator: str) -> Sequence[Any]:
    """Returns targets that are all lists for several labels a row, and no lists for one."""
    many = problem == "multi_label"
    if many:
        targets = [cells.split_cell(target, separator) for target in targets]
    sieve.refuse_labels(
        where(target is not None and isinstance(target, list) != many for target in targets),
        "the label is not a list" if many else "the label is a list",
        "Expected a list of labels a row." if many else "Expected one label a row.",
    )
    return targets


def _canonical(sieve: Sieve, targets: Sequence[Any], known: Sequence[str]) -> list[Any]:
    """Returns the names of labels: strings as is, integers in decimal, booleans as in JSON.

    `known` are names of the model or the task; lists of 0 and 1 become lists of these.
    """
    targets = _named_places(sieve, targets, known)
    canonical: list[Any] = [
        [cells.name_of(i) for i in target] if isinstance(target, list) else cells.name_of(target)
        for target in targets
    ]
    unnamed = where(None in cells.as_list(names) for names in canonical)
    sieve.refuse_labels(
        [i for i in unnamed if targets[i] is not None],
        "the label is neither a string nor a whole number",
        "For numbers with decimals set data.problem=regression.",
    )
    sieve.refuse_labels(
        where(
            not all(map(cells.is_encodable, filter(None, cells.as_list(names))))
            for names in canonical
        ),
        "the label has half of a surrogate pair",
        "Repair the \\ud800-\\udfff escapes.",
    )
    hidden = {"-1", "-1.0"} - set(known)
    sieve.refuse_labels(
        where(not hidden.isdisjoint(cells.as_list(names)) for names in canonical),
        "the label is -1, which marks hidden labels of a test set",
        "Remove these rows, or name the class by a word.",
    )
    return canonical


def _named_places(sieve: Sieve, targets: Sequence[Any], names: Sequence[str]) -> list[Any]:
    """Returns lists of names for lists with 0 or 1 for each of them."""
    placed = [i for i in sieve.kept() if cells.are_places(targets[i])]
    sieve.refuse_labels(
        [i for i in placed if len(targets[i]) != len(names)],
        f"the label is a list of zeros and ones, but not of {len(names)}, one for each label",
        f"The labels are {list_names(names)}. Write the names of each row.",
    )
    named = list(targets)
    for i in placed:
        named[i] = [n for n, item in zip(names, targets[i], strict=False) if cells.is_set(item)]
    return named


def _within(sieve: Sieve, canonical: list[Any], labels: Labels) -> list[Any]:
    """Returns the targets by the model's names; integers may be ids of them."""
    kept = sieve.kept()
    what = "the label is not among those of the training data or the model"
    fix = f"Expected one of {list_names(labels.names)}."
    used = {name for i in kept for name in cells.as_list(canonical[i])}
    found = cells.found_names(used, labels.names)
    if None in found.values() and cells.are_integers(used):
        if cells.are_ids(used, labels.names):
            ids = {str(i): name for i, name in enumerate(labels.names)}
            found = {name: ids.get(name) for name in used}
            what = "the label is out of range"
            fix = f"Expected an id from 0 to {len(ids) - 1} ({', '.join(labels.names[:20])})."
        elif not cells.are_integers(labels.names):
            fix = f"It is no id, since the names hold numbers. {fix}"
    unknown = [i for i in kept if any(found[n] is None for n in cells.as_list(canonical[i]))]
    sieve.refuse_labels(unknown, what, fix)
    return [
        [found.get(item) for item in target] if isinstance(target, list) else found.get(target)
        for target in canonical
    ]


def _order(used: list[str], known: Known) -> tuple[str, ...]:
    found = cells.found_names(used, known.checkpoint)
    if len(used) == len(known.checkpoint) and set(found.values()) == set(known.checkpoint):
        return known.checkpoint
    if known.task:
        return known.task
    plain = cells.without_points(used)
    names = [plain.get(name, name) for name in used]
    if cells.are_integers(names):
        numbers = sorted(map(int, names))
        if numbers == [*range(len(known.checkpoint))] and cells.are_ids(names, known.checkpoint):
            return known.checkpoint
        return tuple(map(str, numbers))
    return tuple(names)


def _single_class(source: str, name: str, labels: Labels, known: Known, on: str) -> Labels:
    """Returns the labels for rows of a single class, if another class is known."""
    if on == "warn" and name in known.checkpoint:
        labels = Labels(labels.problem, known.checkpoint)
    fix = "check the label column (or set config.data.on_single_class=warn)."
    if on == "warn":
        fix = "neither the model nor the task knows another one: add rows of another class."
    if on == "error" or len(labels.names) < 2:
        raise DataError(
            f"{source}: every row has the label {shown(name)}. Expected at least two classes; "
            + fix
        )
    return labels
