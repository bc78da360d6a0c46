"""Class weights of the loss as a config gives them: numbers, names, a file, or "balanced".

`loss.class_weights` is one number a label in id order, ("neg=1", "pos=2.5"), ("weights.json",) with
{"neg": 1, "pos": 2.5}, or ("balanced",). Labels that are not named have the weight 1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flaxbert.config import CLASS_WEIGHTS
from flaxbert.data.checks import Labels
from flaxbert.data.rows import list_names, near_name
from flaxbert.errors import ConfigError

_FIELD = "config.loss.class_weights"
_BALANCED = ("balanced",)

Asked = Sequence[float | str]


def balanced(labels: Labels, counts: Mapping[str, int], rows: int) -> tuple[float, ...]:
    """Returns rows / (classes * count) of each label, as scikit-learn; of several labels a row
    (rows - count) / count, the pos_weight that PyTorch's documentation suggests.

    Labels without a row have the weight 1.
    """
    many, classes = labels.problem == "multi_label", len(labels.names)
    low, high = CLASS_WEIGHTS
    weights = []
    for name in labels.names:
        count = counts[name]
        weight = (rows - count) / count if many and count else rows / (classes * count or 1)
        weights.append(min(max(weight, low), high) if count else 1.0)
    return tuple(weights)


def weights_for(
    asked: Asked, labels: Labels, counts: Mapping[str, int] | None = None, rows: int = 0
) -> tuple[float, ...]:
    """Returns one weight per label in id order, () for none.

    Args:
      asked: the config's value.
      labels: of the run.
      counts: how many of the `rows` (or words) have each label; None = only check what is asked.

    Raises ConfigError for an unknown label, another number of weights than labels, a weight out of
    range, or a file that has none.
    """
    if tuple(asked) == _BALANCED:
        return () if counts is None else balanced(labels, counts, rows)
    weights = _named(asked, labels) if any(isinstance(part, str) for part in asked) else asked
    if weights and len(weights) != len(labels.names):
        raise ConfigError(
            f"{_FIELD}: expected {len(labels.names)} numbers for the labels "
            f"{list_names(labels.names)}, got {len(weights)}."
        )
    return tuple(map(float, weights))


def is_file(asked: Any) -> bool:
    """Whether a weight is the name of a file with all of them."""
    return isinstance(asked, str) and asked.endswith(".json")


def _named(asked: Asked, labels: Labels) -> list[float]:
    """Returns the weights of NAME=WEIGHT strings, or of a JSON file with an object or a list."""
    if len(asked) == 1 and is_file(asked[0]):
        source, given = str(asked[0]), _read(str(asked[0]))
        if isinstance(given, list):
            return [_number(weight, source) for weight in given]
    else:
        texts = str(asked[0]).split(",") if len(asked) == 1 else map(str, asked)
        parts = [text.strip().rpartition("=") for text in texts]
        source, given = _FIELD, {name or weight: weight for name, _, weight in parts}
        if len(given) < len(parts):
            raise ConfigError(f"{_FIELD}: a label is named twice. Give each one weight.")
    if not isinstance(given, dict):
        raise ConfigError(f'{source}: expected {{"LABEL": WEIGHT, ...}} or a list of weights.')
    for name in given:
        if name not in labels.names:
            raise ConfigError(
                f"{source}: there is no label {name!r}.{near_name(labels.names, name)} Labels: "
                f"{list_names(labels.names)}. Expected LABEL=WEIGHT for some of them, 'balanced', "
                "or a .json file."
            )
    return [_number(given.get(name, 1.0), source) for name in labels.names]


def _read(path: str) -> Any:
    try:
        return json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{_FIELD}: {path} cannot be read as JSON: {error}.") from error


def _number(weight: Any, source: str) -> float:
    low, high = CLASS_WEIGHTS
    try:
        number = float(weight)
    except (TypeError, ValueError):
        number = -1.0
    if not low <= number <= high:  # NaN fails too
        raise ConfigError(
            f"{source}: expected positive weights from {low:g} to {high:g} (only their ratios "
            f"matter), got {weight!r}."
        )
    return number
