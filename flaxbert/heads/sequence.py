"""Sequence classification (BertForSequenceClassification): a target for each text or pair of texts.

Three kinds of target, a file each: one label, several labels, a number. transformers calls them
problem types; `config.data.problem` names one, or the labels decide.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from flaxbert.config import Config
from flaxbert.data import checks, report
from flaxbert.data.batches import Examples
from flaxbert.data.checks import Known, Labels
from flaxbert.data.long import Cut, cut_end
from flaxbert.data.report import About
from flaxbert.data.rows import Rows
from flaxbert.data.tokenize import Tokenizer
from flaxbert.errors import ModelFileError
from flaxbert.heads import Activation, Head, Names
from flaxbert.heads.targets import multi_label, regression, single_label
from flaxbert.model import dropout as drop
from flaxbert.model.bert import Linear, Places
from flaxbert.model.bert_config import BertConfig
from flaxbert.model.bert_model import BertModel, BertWithHead


class BertForSequenceClassification(BertWithHead):
    """Pooler and classifier on each sequence's first token."""

    def __init__(self, config: BertConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs) -> None:
        self.bert = BertModel(config, dtype, pooler=True, rngs=rngs)
        self.classifier = Linear(config.hidden_size, config.num_labels, config, dtype, rngs=rngs)
        self.rate = config.head_dropout

    def head(self, states: Float[Array, "B S D"], places: Places) -> Float[Array, "B S C"]:
        pooled = self.bert.pooler(states)
        bits = places.bits(0, drop.HEAD)
        if bits is not None and self.rate:
            pooled = drop.dropout(pooled, self.rate, bits)
        return self.classifier(pooled)


class SequenceHead(Head):
    """A sequence classifier for one kind of target."""

    architecture = "BertForSequenceClassification"
    module = BertForSequenceClassification

    def __init__(self, name: str, problem_type: str, kind: ModuleType) -> None:
        """`kind` is the module of the kind of target; `problem_type` transformers' name of it."""
        self.name, self.problem_type, self.kind = name, problem_type, kind

    def usable(self, rows: Rows, config: Config) -> Rows:
        return checks.usable_texts(rows, config.data)

    def empty(self, rows: Rows) -> list[int]:
        return checks.empty_texts(rows)

    def learn_labels(self, rows: Rows, config: Config, known: Known) -> Labels:
        return checks.learn_labels(rows, config.data, known)

    def labelled(self, rows: Rows, labels: Labels, config: Config) -> tuple[Rows, list[Any]]:
        if self.kind is regression and len(labels.names) > 1:
            raise ModelFileError(
                f"the model has {len(labels.names)} outputs and the problem type regression: its "
                "answers can be predicted, not evaluated, as a row has one number. For classes set "
                "problem_type in its config.json to single_label_classification."
            )
        return checks.usable_labels(rows, labels, config.data)

    def check_options(self, labels: Labels, config: Config) -> None:
        checks.check_options(labels, config.loss)

    def encode(
        self, rows: Rows, tokenizer: Tokenizer, max_length: int, cut: Cut | None = None
    ) -> Examples:
        tokens = tokenizer.encode(rows.texts, rows.pairs, max_length=max_length, cut=cut or cut_end)
        return Examples(tokens, np.zeros(len(tokens), np.int32))

    def with_targets(self, examples: Examples, targets: Sequence[Any], names: Names) -> Examples:
        labels, owners = self.kind.encode(targets, names), examples.tokens.owners
        return dataclasses.replace(examples, labels=labels if owners is None else labels[owners])

    def describe_targets(self, rows: Rows, targets: Sequence[Any], labels: Labels) -> About:
        values = report.target_values(targets, labels)
        return [f"{report.count_rows(len(rows))}; {report.shares_line(values)}"], values

    def loss_sums(self, *arguments: Any, **options: Any) -> tuple[Any, Any]:
        return self.kind.loss_sums(*arguments, **options)

    def answers(self, outputs: np.ndarray, examples: Examples) -> np.ndarray:
        """Returns the logits of each text; of several windows their mean."""
        owners = examples.tokens.owners
        if owners is None:
            return outputs
        counts = np.bincount(owners)
        sums = np.zeros((len(counts), outputs.shape[1]))
        np.add.at(sums, owners, outputs)
        return (sums / counts[:, None]).astype(outputs.dtype)

    def activation(self, config: BertConfig) -> tuple[Activation, str]:
        if self.kind is regression:
            return regression.activation_for(config)
        if self.kind is single_label and config.num_labels == 1:
            raise ModelFileError(
                "config.json says single_label_classification for one output, whose probability "
                "would always be 1: set problem_type to regression for the number itself, or "
                "remove it for a sigmoid."
            )
        return super().activation(config)

    def gold(self, examples: Examples) -> np.ndarray:
        owners = examples.tokens.owners
        if owners is None:
            return examples.labels
        return examples.labels[np.unique(owners, return_index=True)[1]]

    def main_metric(self, names: Names) -> str:
        return self.kind.MAIN_METRIC

    def metrics(self, answers: np.ndarray, examples: Examples, names: Names) -> dict[str, float]:
        return self.kind.metrics(answers, self.gold(examples))

    def report(self, answers: np.ndarray, examples: Examples, names: Names) -> dict[str, Any]:
        return self.kind.report(answers, self.gold(examples), names)

    def readable(
        self, answers: np.ndarray, examples: Examples, rows: Rows, names: Names, top_k: int = 0
    ) -> list[dict[str, Any]]:
        return self.kind.readable(answers, names, top_k)

    def csv_columns(self, names: Names) -> Sequence[str]:
        several_numbers = self.kind is regression and len(names) > 1
        return ("values",) if several_numbers else self.kind.CSV_COLUMNS


HEADS: dict[str, Head] = {
    head.name: head
    for head in (
        SequenceHead("single_label", "single_label_classification", single_label),
        SequenceHead("multi_label", "multi_label_classification", multi_label),
        SequenceHead("regression", "regression", regression),
    )
}
