"""The registry of heads, and how a model's config.json names one."""

from __future__ import annotations

import pytest

from flaxbert.config import make_config
from flaxbert.errors import ConfigError
from flaxbert.heads import all_heads, head_named, head_of, heads_in, is_better
from flaxbert.model.bert_config import BertConfig


def test_heads_by_name():
    assert {"single_label", "multi_label", "regression"} <= all_heads().keys()
    assert [head_named(name).name for name in all_heads()] == list(all_heads())
    with pytest.raises(ValueError, match=r"expected one of .*single_label"):
        head_named("nothing")
    with pytest.raises(ConfigError, match=r"config\.head\.name: expected one of .*sequence"):
        make_config({"head": {"name": "sequences"}})


def _config(problem_type, labels, architecture="BertForSequenceClassification") -> BertConfig:
    names = tuple(f"LABEL_{i}" for i in range(labels))
    return BertConfig(id2label=names, problem_type=problem_type, architecture=architecture)


@pytest.mark.parametrize(
    ("problem_type", "labels", "name"),
    [
        *((head.problem_type, 3, head.name) for head in heads_in("sequence").values()),
        ("single_label_classification", 1, "single_label"),
        ("multi_label_classification", 1, "multi_label"),
        ("regression", 3, "regression"),
        (None, 1, "regression"),
        (None, 2, "single_label"),
    ],
)
def test_the_head_that_a_config_states(problem_type, labels, name):
    assert head_of(_config(problem_type, labels)).name == name
    # A class that is no head's stands for the sequence classifier.
    assert head_of(_config(problem_type, labels, "BertForMaskedLM")).name == name


@pytest.mark.parametrize(
    ("metric", "new", "old", "better"),
    [
        ("accuracy", 0.6, 0.5, True),
        ("accuracy", 0.5, 0.5, False),  # strictly
        ("accuracy", 0.4, 0.5, False),
        ("matthews_correlation", -0.1, -0.2, True),
        ("loss", 0.4, 0.5, True),
        ("loss", 0.5, 0.5, False),
        ("loss", 0.6, 0.5, False),
        ("mse", 1.0, 2.0, True),
        ("mae", 2.0, 1.0, False),
        ("f1", 0.0, None, True),
        ("loss", 9.0, None, True),
        ("accuracy", float("nan"), 0.5, False),
        ("accuracy", float("nan"), None, False),
        ("accuracy", float("inf"), 0.5, False),
        ("loss", float("nan"), None, False),
        ("loss", float("-inf"), 0.5, False),
    ],
)
def test_is_better(metric, new, old, better):
    assert is_better(metric, new, old) is better
