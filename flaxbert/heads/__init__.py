"""What is predicted: a file of this room for each of transformers' BertFor... classes.

A member defines `HEADS`, {name: Head}, a head for each kind of target that it knows. The files
of the folder are the registry; nothing else lists them. The training loop never asks which head it
trains: it calls what `Head` declares. Note: `sequence` is three heads (one label, several labels,
a number) on one module, chosen by the labels.
"""

from __future__ import annotations

import abc
import functools
import json
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np

from flaxbert.config import Config
from flaxbert.data.batches import Examples
from flaxbert.data.checks import Known, Labels
from flaxbert.data.long import LONG, Cut
from flaxbert.data.report import About, describe_split
from flaxbert.data.rows import Rows
from flaxbert.data.splits import Split
from flaxbert.data.tokenize import Tokenizer
from flaxbert.metrics.report_lines import report_lines
from flaxbert.model import binding
from flaxbert.model.bert_config import BertConfig
from flaxbert.model.binding import Params
from flaxbert.model.kernels import Kernels
from flaxbert.registry import member, members

Names = Sequence[str]  # of labels, in id order
Activation = Callable[[np.ndarray], np.ndarray]

# Fields of a record with an entry for each label, and what one of them is.
_BY_LABEL = {"probabilities": "probability", "values": "value"}

# Metrics where less is better, whatever the head; every other one is better when greater.
_LOWER_IS_BETTER = frozenset({"loss", "mse", "mae"})


class Head(abc.ABC):
    """One kind of target: its module, its data, its loss, its scores and its answers.

    Arrays of a split: *outputs* are the logits as computed, of every sequence [N, C] or of every
    token [T, C], as `layout` says; *answers* are those of what the user asks about (texts, words),
    one row of logits for each, and *gold* their labels.
    """

    name: str  # names the kind of target: "single_label", "token"
    architecture: str  # transformers' class
    problem_type: str | None = None  # transformers' name in config.json, where it has one
    prefix: str = "classifier"  # of the paths of its own parameters
    module: Any  # called as module(config, dtype, rngs=...)
    layout: Literal["slot", "token"] = "slot"  # what has a target: a sequence, or a token
    long: tuple[str, ...] = LONG  # how long inputs may be treated, the default first

    # Data

    @abc.abstractmethod
    def usable(self, rows: Rows, config: Config) -> Rows:
        """Returns the rows whose inputs can be used.

        Raises DataError for others, unless the config says to skip them.
        """

    @abc.abstractmethod
    def empty(self, rows: Rows) -> list[int]:
        """Returns which usable rows have no text."""

    @abc.abstractmethod
    def learn_labels(self, rows: Rows, config: Config, known: Known) -> Labels:
        """Decides from the usable training rows what the labels are, and in which order.

        `Labels.problem` names the head that trains on them, this one or another of its file.
        """

    @abc.abstractmethod
    def labelled(self, rows: Rows, labels: Labels, config: Config) -> tuple[Rows, list[Any]]:
        """Returns the usable rows whose targets are the model's, and these targets."""

    @abc.abstractmethod
    def encode(
        self, rows: Rows, tokenizer: Tokenizer, max_length: int, cut: Cut | None = None
    ) -> Examples:
        """Returns the rows' sequences without labels; `cut` shortens long texts."""

    @abc.abstractmethod
    def with_targets(self, examples: Examples, targets: Sequence[Any], names: Names) -> Examples:
        """Returns the examples with the labels that `labelled` has accepted."""

    @abc.abstractmethod
    def describe_targets(self, rows: Rows, targets: Sequence[Any], labels: Labels) -> About:
        """Returns the data report's part about the targets."""

    def split(
        self,
        name: str,
        rows: Rows,
        labels: Labels,
        tokenizer: Tokenizer,
        max_length: int,
        config: Config,
    ) -> Split:
        """Checks the targets of usable rows, and tokenizes them; DataError for unknown targets."""
        rows, targets = self.labelled(rows, labels, config)
        examples = self.encode(rows, tokenizer, max_length)
        examples = self.with_targets(examples, targets, labels.names)
        told = describe_split(
            name,
            rows,
            targets,
            self.describe_targets(rows, targets, labels),
            self.empty(rows),
            examples.tokens,
            max_length,
            "read in windows of" if self.long[0] == "window" else "cut to",
        )
        return Split(examples, rows, targets, told)

    @abc.abstractmethod
    def check_options(self, labels: Labels, config: Config) -> None:
        """Raises ConfigError if options of the loss do not fit the kind of target."""

    # Training

    @abc.abstractmethod
    def loss_sums(
        self,
        logits: jax.Array,
        labels: jax.Array,
        weights: jax.Array,
        *,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] = (),
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the loss summed over what has weight 1, and what to divide it by."""

    # Results

    @abc.abstractmethod
    def answers(self, outputs: np.ndarray, examples: Examples) -> np.ndarray:
        """Returns the logits of what the user asks about, from those of all sequences."""

    def activation(self, config: BertConfig) -> tuple[Activation, str]:
        """Returns what a trained model's answers go through before they are scored and shown.

        Mostly nothing. The second part is a note for the user if that was assumed, else "".
        ModelFileError if config.json asks for something else.
        """
        return (lambda answers: answers), ""

    @abc.abstractmethod
    def gold(self, examples: Examples) -> np.ndarray:
        """Returns the labels of the answers."""

    @abc.abstractmethod
    def main_metric(self, names: Names) -> str:
        """Returns the metric that picks the best model unless the config names another."""

    @abc.abstractmethod
    def metrics(self, answers: np.ndarray, examples: Examples, names: Names) -> dict[str, float]:
        """Returns the metrics of one whole split, in float64."""

    @abc.abstractmethod
    def report(self, answers: np.ndarray, examples: Examples, names: Names) -> dict[str, Any]:
        """Returns scores in more detail, ready for JSON: per label, or about the errors."""

    def report_lines(self, report: dict[str, Any]) -> list[str]:
        """Returns a report as aligned lines for people."""
        return report_lines(report)

    @abc.abstractmethod
    def readable(
        self, answers: np.ndarray, examples: Examples, rows: Rows, names: Names, top_k: int = 0
    ) -> list[dict[str, Any]]:
        """Returns one prediction record per row; probabilities of the `top_k` best labels, the best
        first, or of all (0) in id order."""

    def no_answer(self, names: Names) -> dict[str, Any]:
        """Returns the record of a row that cannot be used."""
        return dict.fromkeys(self.csv_columns(names))

    @abc.abstractmethod
    def csv_columns(self, names: Names) -> Sequence[str]:
        """Returns the fields of a record that a CSV file has, the most important one first."""

    def csv_header(self, names: Names, top_k: int = 0) -> list[str]:
        """Returns the columns of a CSV file of predictions; some fields have one per label."""
        header = []
        for column in self.csv_columns(names):
            each = _each_of(column, top_k)
            header += [f"{each}_{name}" for name in names] if each else [column]
        return header

    def csv_row(self, record: dict[str, Any], names: Names, top_k: int = 0) -> list[Any]:
        """Returns a record's cells; lists, and some of all probabilities, are written as JSON."""
        cells = []
        for column in self.csv_columns(names):
            value = record[column]
            each = _each_of(column, top_k)
            cells += [value and value[name] for name in names] if each else [value]
        nested = (list, dict)
        return [json.dumps(c, ensure_ascii=False) if isinstance(c, nested) else c for c in cells]

    def summary(self, record: dict[str, Any], names: Names) -> str:
        """Returns a record in a few words: one cell of a numbered file of predictions."""
        value = record[self.csv_columns(names)[0]]
        if value is None:
            return ""
        if isinstance(value, float):
            return f"{value:3.3f}"  # as transformers' run_glue writes numbers
        if isinstance(value, list | dict):
            return json.dumps(value, ensure_ascii=False)
        # A label with a tab or a line break is escaped, so that a record stays one line.
        return value if value.isprintable() else json.dumps(value, ensure_ascii=False)[1:-1]

    def metric_names(self, examples: Examples, names: Names) -> list[str]:
        """Returns the names of the metrics of a split like this one."""
        answers = np.zeros((len(self.gold(examples)), len(names)), np.float32)
        return list(self.metrics(answers, examples, names))


def _each_of(column: str, top_k: int) -> str | None:
    """Returns what a field of a record has for each label; None for a single cell."""
    return None if top_k and column == "probabilities" else _BY_LABEL.get(column)


@functools.cache
def all_heads() -> dict[str, Head]:
    """Returns every head by the name of its kind of target."""
    heads: dict[str, Head] = {}
    for name in members("heads"):
        heads |= member("heads", name).HEADS
    return heads


def heads_in(name: str) -> dict[str, Head]:
    """Returns the heads of one file, which config.head.name names."""
    return member("heads", name).HEADS


def head_named(problem: str) -> Head:
    """Returns the head of a kind of target: "single_label", "token", ..."""
    heads = all_heads()
    if problem not in heads:
        raise ValueError(f"problem: expected one of {', '.join(heads)}, got {problem!r}")
    return heads[problem]


def head_of(config: BertConfig) -> Head:
    """Returns the head that a model's config.json states.

    Without a problem type a single output is a number, as in transformers. Classes without a head
    (BertModel, the pre-training ones) count as sequence classifiers.
    """
    own = [head for head in all_heads().values() if head.architecture == config.architecture]
    if not own:
        own = list(heads_in("sequence").values())
    kind = config.problem_type
    if kind is None:
        kind = "regression" if config.num_labels == 1 else "single_label_classification"
    return next((head for head in own if head.problem_type == kind), own[0])


def is_better(metric: str, new: float, old: float | None) -> bool:
    """Whether `new` is strictly better than `old`; a value that is not finite never is."""
    if not np.isfinite(new):
        return False
    if old is None:
        return True
    return new < old if metric in _LOWER_IS_BETTER else new > old


# The parameters of a model with its head, for a config that states it.


def abstract_params(config: BertConfig, dtype: str = "float32") -> Params:
    """See `model.binding.abstract_params`."""
    return binding.abstract_params(head_of(config).module, config, dtype)


def init_params(
    config: BertConfig, seed: int, dtype: str = "float32", paths: tuple[str, ...] | None = None
) -> Params:
    """See `model.binding.init_params`."""
    return binding.init_params(head_of(config).module, config, seed, dtype, paths)


def bind(
    config: BertConfig, params: Params, dtype: str = "float32", kernels: Kernels | None = None
) -> Any:
    """See `model.binding.bind`."""
    return binding.bind(head_of(config).module, config, params, dtype, kernels)
