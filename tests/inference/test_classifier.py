"""The Classifier: inputs it takes, order, long texts, and what it refuses."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from transformers import AutoTokenizer

import flaxbert
from flaxbert import Classifier, FlaxBertForSequenceClassification
from flaxbert.errors import ConfigError, ModelFileError
from flaxbert.model.bert_config import PROBLEM_TYPES
from tests.inputs import write_trained
from tests.reference import NO_TORCH

TEXTS = ["a fine film", "", "bad, bad, bad", "so long " * 90, "émotion 😀", "a fine film"]

# Packed beside other texts or alone: float32 sums in another order.
SAME = 2e-6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_trained(tmp_path_factory.mktemp("trained") / "model")


@pytest.fixture(scope="module")
def classify(folder):
    return Classifier.from_pretrained(folder)


def _probabilities(answers):
    return np.array([list(answer["probabilities"].values()) for answer in answers])


def test_one_text_gives_one_answer(classify):
    answer = classify("a fine film")
    assert list(answer) == ["label", "score", "probabilities"]
    assert list(answer["probabilities"]) == ["bad", "fair", "good"]
    assert answer["score"] == answer["probabilities"][answer["label"]]
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-9)


def test_many_texts_are_answered_in_order(classify):
    answers = classify(TEXTS)
    alone = [classify(text) for text in TEXTS]
    assert np.abs(_probabilities(answers) - _probabilities(alone)).max() < SAME
    # The same text twice may stand in different places of different rows.
    assert np.abs(_probabilities(answers[:1]) - _probabilities(answers[5:])).max() < SAME
    assert classify([]) == []


def test_pairs_in_both_forms(classify):
    pairs = [("a film", "a bore"), ("a film", "")]
    answers = classify(pairs)
    assert classify(([a for a, _ in pairs], [b for _, b in pairs])) == answers
    assert classify([list(pair) for pair in pairs]) == answers
    assert np.abs(_probabilities(answers) - _probabilities(classify(["a film"] * 2))).max() > 1e-3


def test_a_stream_is_read_as_it_is_needed(classify):
    taken = []

    def endless():
        for number in itertools.count():
            taken.append(number)
            yield TEXTS[number % len(TEXTS)]

    answers = list(itertools.islice(classify.stream(endless(), size=4), 9))
    assert len(taken) == 12  # three parts of four
    expected = classify([TEXTS[i % len(TEXTS)] for i in range(9)])
    assert np.abs(_probabilities(answers) - _probabilities(expected)).max() < SAME


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (["a", 5], "input 1: expected a text, got 5"),
        (["a", ("b", "c")], "input 1: expected a text"),
        ([("a", "b"), "c"], "input 1: expected a pair"),
        ([("a", "b", "c")], "input 0: expected a pair"),
        ([None], "input 0"),
        (("a", "b"), "Write a single pair as"),
        ((["a"], ["b", "c"]), "got 1 and 2"),
    ],
)
def test_anything_else_is_refused(inputs, words, classify):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        classify(inputs)


def _plain(folder, sequences):
    """One unpacked forward pass per sequence, through the public model."""
    model = FlaxBertForSequenceClassification.from_pretrained(folder)
    width = 64  # one program for all
    rows = np.zeros((len(sequences), width), np.int32)
    for row, ids in zip(rows, sequences, strict=True):
        row[: len(ids)] = ids
    mask = (np.arange(width) < np.array([[len(ids)] for ids in sequences])).astype(np.int32)
    return np.asarray(model(rows, mask).logits)


@pytest.mark.parametrize("long", ["truncate", "head_tail", "window"])
def test_long_texts_against_a_plain_computation(long, folder, minilm):
    """The same definition with transformers' tokenizer and unpacked rows; windows by the mean."""
    options = {"stride": 10} if long == "window" else {}
    classify = Classifier.from_pretrained(folder, max_length=40, long=long, **options)
    tokenizer = AutoTokenizer.from_pretrained(str(minilm))
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    texts = [*TEXTS, "first words " * 30 + "and the last ones " * 20]
    if long == "window":
        found = tokenizer(
            texts, truncation=True, max_length=40, stride=10, return_overflowing_tokens=True
        )
        sequences, owners = found["input_ids"], np.array(found["overflow_to_sample_mapping"])
    else:
        whole = tokenizer(texts)["input_ids"]
        head = 39 if long == "truncate" else 1 + 10
        sequences = [
            ids if len(ids) <= 40 else ids[:head] + ids[len(ids) - (40 - head) :] for ids in whole
        ]
        owners = np.arange(len(texts))
    logits = _plain(folder, sequences)
    expected = np.stack([logits[owners == i].mean(axis=0) for i in range(len(texts))])
    assert np.abs(classify.logits(texts) - expected).max() < 5e-6  # logits of a few units
    assert classify.encode(texts).truncated == 2


def test_options_are_checked(folder, minilm):
    for options, words in (
        ({"long": "middle"}, "expected one of truncate, head_tail, window"),
        ({"stride": 3}, "no effect with long=truncate"),
        ({"long": "window", "max_length": 20, "stride": 10}, "expected 0 to 9"),
        ({"batch_rows": -1}, "number of rows"),
        ({"max_length": 65}, "64 positions"),
    ):
        with pytest.raises(ConfigError, match=words):
            Classifier.from_pretrained(folder, **options)
    with pytest.raises(ModelFileError, match="no trained classifier"):
        Classifier.from_pretrained(minilm)
    model = FlaxBertForSequenceClassification.from_pretrained(folder)
    model.source = None
    with pytest.raises(ModelFileError, match="no tokenizer"):
        Classifier(model)


def test_batch_rows_bound_what_is_computed_at_once(folder):
    few = Classifier.from_pretrained(folder, batch_rows=8)  # eight devices
    sizes = []
    few.logits(["a fine film"] * 300, after_batch=sizes.append)
    assert sum(sizes) == 300 and max(sizes) <= 8 * 64
    assert len(sizes) > 1


def _stating(directory, problem_type, outputs, **fields):
    """Writes a classifier whose config.json states fields of its own."""
    names = [f"name {i}" for i in range(outputs)]
    folder = write_trained(directory, names=names)
    values = json.loads((folder / "config.json").read_text()) | fields
    del values["problem_type"]
    if problem_type:
        values["problem_type"] = problem_type
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def _scores(answer):
    """Returns the scores of an answer by name."""
    if "value" in answer:
        return {"name 0": answer["value"]}
    return answer.get("values") or answer["probabilities"]


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("problem_type", [None, *PROBLEM_TYPES])
def test_every_problem_type_and_number_of_outputs(problem_type, outputs, tmp_path):
    """The scores are those of transformers' pipeline.

    Golden: test_the_pipeline_of_transformers_gives_our_scores in tests/weights/test_folder.py
    """
    folder = _stating(tmp_path / "model", problem_type, outputs)
    if problem_type == "single_label_classification" and outputs == 1:  # so does transformers
        with pytest.raises(ModelFileError, match="for one output"):
            Classifier.from_pretrained(folder)
        return
    classify = Classifier.from_pretrained(folder)
    texts = ["a fine film", "bad, bad, bad"]
    logits = classify.logits(texts).astype(np.float64)
    answers = classify(texts)
    if problem_type == "regression":
        expected = logits
    elif problem_type == "multi_label_classification" or outputs == 1:
        expected = 1 / (1 + np.exp(-logits))
    else:
        expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    ours = np.array([list(_scores(answer).values()) for answer in answers])
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
    assumed = outputs == 1 and problem_type is None
    assert any("go through a sigmoid" in note for note in classify.notes) == assumed

    pytest.importorskip("torch", reason=f"{NO_TORCH}tests/weights/test_folder.py")
    from transformers import pipeline

    theirs = pipeline("text-classification", model=str(folder), top_k=None)(texts)
    for answer, records in zip(answers, theirs, strict=True):
        by_name = {record["label"]: record["score"] for record in records}
        # Logits of a few units in float32 from two programs: measured 3e-6.
        assert _scores(answer) == pytest.approx(by_name, abs=1e-5)


@pytest.mark.parametrize(
    ("fields", "sigmoid"),
    [
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, False),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}, True),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, False),
    ],
)
def test_a_cross_encoder_s_activation(fields, sigmoid, tmp_path):
    classify = Classifier.from_pretrained(_stating(tmp_path / "model", None, 1, **fields))
    assert classify.notes == ()
    pairs = [("a film", "a bore"), ("a film", "a joy")]
    logits = classify.logits(*zip(*pairs, strict=True))[:, 0].astype(np.float64)
    expected = 1 / (1 + np.exp(-logits)) if sigmoid else logits
    assert [answer["value"] for answer in classify(pairs)] == pytest.approx(list(expected))


def test_an_activation_that_is_not_known_is_refused_where_it_is_used(tmp_path):
    stated = {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}}
    for outputs in (1, 3):  # of several outputs it is not used
        folder = _stating(tmp_path / str(outputs), None, outputs, **stated)
        FlaxBertForSequenceClassification.from_pretrained(folder)
        if outputs == 3:
            assert "label" in Classifier.from_pretrained(folder)("a fine film")
            continue
        with pytest.raises(ModelFileError, match=r"names 'torch\.nn\.modules\.activation\.Tanh'"):
            Classifier.from_pretrained(folder)


def test_the_class_is_public():
    assert "Classifier" in flaxbert.__all__
