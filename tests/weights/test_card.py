"""The model card: labels and scores of the model itself, and front matter that the hub can read."""

from __future__ import annotations

import dataclasses

import yaml

from flaxbert.model.bert_config import BertConfig
from flaxbert.weights.card import model_card
from tests.folders import CONFIG


def test_the_card_tells_labels_facts_and_results():
    card = model_card(
        CONFIG,
        {"started from": "embedded:minilm", "seed": 3},
        {"eval_accuracy": 0.91743, "eval_samples": 872, "eval_loss": None},
    )
    assert "0 = no, 1 = perhaps, 2 = yes" in card
    assert "| started from | embedded:minilm |" in card
    assert "| seed | 3 |" in card
    assert "| eval_accuracy | 0.9174 |" in card
    assert "| eval_samples | 872 |" in card


def test_the_front_matter_is_yaml_for_the_hub():
    _, front, _ = model_card(CONFIG, {}, {}).split("---\n", 2)
    values = yaml.safe_load(front)
    assert values["pipeline_tag"] == "text-classification"
    assert values["library_name"] == "transformers"


def test_without_results_there_is_no_table_of_them():
    card = model_card(dataclasses.replace(CONFIG, id2label=("a", "b")), {"seed": 1}, {})
    assert "Validation" not in card
    assert card.count("|---|") == 1


def test_names_that_others_chose_stay_in_their_cells():
    config = BertConfig(id2label=("a\n\n## b", "c|d\x1b[31m"))
    card = model_card(config, {"data": "x|y\n---"}, {})
    assert "Labels: 0 = a  ## b, 1 = c\\|d\\x1b[31m." in card
    assert "| data | x\\|y --- |" in card and "\x1b" not in card
