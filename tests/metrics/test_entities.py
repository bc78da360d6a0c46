"""Entity scores equal seqeval's default and strict modes.

Tolerance 1e-12: both sides compute in float64 on values near 1 and differ by rounding only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from seqeval import metrics as seqeval
from seqeval.scheme import IOB1, IOB2, IOBES
from sklearn import metrics as sk

from flaxbert.errors import DataError
from flaxbert.metrics.entities import report, scored_entities
from flaxbert.metrics.report_lines import report_lines
from flaxbert.metrics.tag_schemes import TagSet, flatten, to_iob2

TOLERANCE = 1e-12
Tags = Sequence[Sequence[str]]
pytestmark = pytest.mark.filterwarnings(
    "ignore::sklearn.exceptions.UndefinedMetricWarning", "ignore:.*seems not to be NE tag"
)


def ours(actual: Tags, predicted: Tags, scheme: str = "IOB2") -> dict[str, Any]:
    names, ids, sentences = flatten([*actual, *predicted])
    words = len(ids) // 2
    return report(ids[:words], ids[words:], sentences[:words], names, scheme)


def assert_equal(report: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Compares with the dictionary of seqeval.classification_report."""
    means = {name.removesuffix(" avg"): theirs.pop(name) for name in [*theirs] if " avg" in name}
    assert list(report["labels"]) == list(theirs)
    assert list(means) == ["micro", "macro", "weighted"]
    for mine, row in [(report["labels"], theirs), (report, means)]:
        for name, values in row.items():
            got = [mine[name][score] for score in ("precision", "recall", "f1")]
            want = [values[score] for score in ("precision", "recall", "f1-score")]
            np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE, err_msg=name)
            assert mine[name].get("support", values["support"]) == values["support"]


def assert_as_seqeval(actual: Tags, predicted: Tags, scheme="IOB2", strict_scheme=IOB2) -> None:
    found = ours(actual, predicted, scheme)
    assert_equal(found, seqeval.classification_report(actual, predicted, output_dict=True))
    strict = {"mode": "strict", "scheme": strict_scheme, "output_dict": True}
    assert_equal(found["strict"], seqeval.classification_report(actual, predicted, **strict))
    assert abs(found["accuracy"] - seqeval.accuracy_score(actual, predicted)) <= TOLERANCE


def random_rows(seed: int, count: int, letters: str) -> tuple[Tags, Tags]:
    """Returns sequences of random tags and a copy with noise; neither follows a scheme."""
    generator, rows = np.random.default_rng(seed), ([], [])
    tags = ["O", *(f"{letter}-{kind}" for kind in ("PER", "creative-work") for letter in letters)]
    for _ in range(count):
        length = generator.integers(0, 9)
        actual, noise = generator.integers(0, len(tags), (2, length))
        predicted = np.where(generator.random(length) < 0.7, actual, noise)
        for row, ids in zip(rows, (actual, predicted), strict=True):
            row.append([tags[number] for number in ids])
    return rows


@pytest.mark.parametrize("seed", range(100))
def test_random_tags(seed):
    assert_as_seqeval(*random_rows(seed, 20, "BI"))


@pytest.mark.parametrize("seed", range(20))
def test_random_tags_of_bioes(seed):
    assert_as_seqeval(*random_rows(seed, 20, "BIES"), "BIOES", IOBES)


@pytest.mark.parametrize(
    ("actual", "predicted"),
    {
        "begins at I after O": (["O B-A I-A"], ["O I-A I-A"]),
        "begins at I of another type": (["B-A I-A B-B"], ["B-A I-B B-B"]),
        "B within": (["B-A I-A I-A"], ["B-A B-A I-A"]),
        "next sentence goes on": (["O B-A", "I-A O"], ["O B-A", "I-A O"]),
        "type only predicted": (["B-A O O"], ["B-A O B-B"]),
        "type never predicted": (["B-A O B-B"], ["B-A O O"]),
        "all predicted O": (["B-A I-A O"], ["O O O"]),
        "nothing to find": (["O O", "O"], ["O B-A", "O"]),
        "type in strict mode only by its gold": (["B-A B-B"], ["I-A B-B"]),
        "dash in the type": (["B-creative-work I-creative-work"], ["B-creative-work I-work"]),
        "type O": (["B-O I-O O"], ["B-O O O"]),
        "same words, other type": (["B-A I-A"], ["B-B I-B"]),
        "same start, other end": (["B-A I-A I-A"], ["B-A I-A O"]),
    }.values(),
)
def test_delicate_tags(actual, predicted):
    assert_as_seqeval([row.split() for row in actual], [row.split() for row in predicted])


def test_the_two_modes_differ():
    found = ours([["B-A", "I-A", "O", "B-B"]], [["I-A", "I-A", "O", "B-B"]])
    assert found["micro"]["f1"] == 1.0
    assert found["strict"]["micro"] == {"precision": 1.0, "recall": 0.5, "f1": 2 / 3, "support": 2}
    assert found["accuracy"] == 0.75


def test_seqeval_of_other_schemes_is_ours_of_their_iob2():
    """Where seqeval reads a scheme in half only, its scores of the IOB2 tags are what we show."""
    # seqeval's IOB1 finds no entity at a B that touches none of its type.
    iob1 = [["B-PER", "I-LOC"]]
    strict = {"mode": "strict", "scheme": IOB1, "output_dict": True}
    lost = seqeval.classification_report(iob1, iob1, **strict)["micro avg"]["support"]
    converted = to_iob2(iob1, "IOB1")
    assert lost < ours(converted, converted)["strict"]["micro"]["support"] == 2
    assert_as_seqeval(converted, converted)
    # U- and L- are no prefixes of seqeval's default mode.
    bilou = [["U-PER", "U-PER", "B-LOC", "L-LOC"]]
    seen = seqeval.classification_report(bilou, bilou, output_dict=True)["micro avg"]["support"]
    converted = to_iob2(bilou, "BILOU")
    assert seen < ours(converted, converted)["micro"]["support"] == 3
    assert_as_seqeval(converted, converted)
    with pytest.raises(DataError, match=r"expected O, B-TYPE, I-TYPE .* found 'U-PER'"):
        ours(bilou, bilou)


def test_bare_tags_score_as_in_seqeval():
    """There their type is "_"."""
    actual, predicted = [["B", "I", "O", "B"]], [["B", "O", "I", "B"]]
    found = ours(actual, predicted)
    theirs = seqeval.classification_report(actual, predicted, output_dict=True)
    assert_equal(found, {"entity": theirs.pop("_"), **theirs})


def test_no_entities():
    zero = {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    for rows, accuracy in [([["O", "O"]], 1.0), ([[]], 0.0), ([], 0.0)]:
        found = ours(rows, rows)
        assert found["labels"] == found["strict"]["labels"] == {}
        assert found["macro"] == found["weighted"] == zero
        assert found["micro"] == {**zero, "support": 0}
        assert found["accuracy"] == accuracy
        assert report_lines(found)[-1] == f"token accuracy: {accuracy:.4f}"


def test_plain_tags_equal_scikit_learn():
    generator = np.random.default_rng(0)
    names = ["ADJ", "NOUN", "PUNCT", "VERB"]
    actual, noise = generator.integers(0, 4, (2, 500))
    predicted = np.where(generator.random(500) < 0.6, actual, noise)
    found = report(actual, predicted, np.arange(500) // 10, names, "plain")
    theirs = sk.classification_report(actual, predicted, target_names=names, output_dict=True)
    assert abs(found["accuracy"] - theirs["accuracy"]) <= TOLERANCE
    for name in [*names, "macro", "weighted"]:
        mine = found["labels"].get(name) or found[name]
        row = theirs.get(name) or theirs[f"{name} avg"]
        for score in ("precision", "recall", "f1"):
            assert abs(mine[score] - row[score.replace("f1", "f1-score")]) <= TOLERANCE
    assert json.loads(json.dumps(found)) == found
    lines = report_lines(found)
    assert lines[0].split() == ["label", "precision", "recall", "f1", "support"]
    assert any(line.startswith("actual \\ predicted") for line in lines)
    assert lines[-1] == f"token accuracy: {found['accuracy']:.4f}"


def test_report_is_json_and_lines():
    found = ours([["B-PER", "I-PER", "O", "B-LOC"]], [["I-PER", "I-PER", "O", "O"]])
    assert json.loads(json.dumps(found)) == found
    assert report_lines(found) == [
        "label            precision  recall      f1  support",
        "LOC                 0.0000  0.0000  0.0000        1",
        "PER                 1.0000  1.0000  1.0000        1",
        "(micro)             1.0000  0.5000  0.6667",
        "(macro)             0.5000  0.5000  0.5000",
        "(weighted)          0.5000  0.5000  0.5000",
        "(micro, strict)     0.0000  0.0000  0.0000",
        "",
        "token accuracy: 0.5000",
    ]


def test_scored_entities():
    names = ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"]
    tags = TagSet.make(names, "IOB2")
    # O B-PER I-PER I-LOC O: the tag and its probability
    chosen = [(4, 0.9), (1, 0.8), (3, 0.6), (2, 0.5), (4, 0.7)]
    probabilities = np.array(
        [[top if i == tag else (1 - top) / 4 for i in range(5)] for tag, top in chosen], np.float32
    )
    person, place = scored_entities(probabilities, tags)
    # 1e-7: the probabilities are float32.
    assert person.pop("score") == pytest.approx(0.7, abs=1e-7)
    assert place.pop("score") == pytest.approx(0.5, abs=1e-7)
    assert person == {"type": "PER", "start": 1, "end": 3}
    assert place == {"type": "LOC", "start": 3, "end": 4}
    words = [(0, 2), (3, 7), (8, 12), (13, 18), (18, 19)]
    person, place = scored_entities(probabilities, tags, words)
    assert (person["start_char"], person["end_char"]) == (3, 12)
    assert (place["start_char"], place["end_char"]) == (13, 18)
    assert json.loads(json.dumps(person)) == person
    assert scored_entities(probabilities[:1], tags, words[:1]) == []
    assert scored_entities(probabilities[:0], tags) == []


def test_scored_entities_of_a_checkpoint_in_bioes():
    names = ["O", "B-A", "I-A", "E-A", "S-A"]
    probabilities = np.eye(5)[[1, 3, 4, 4, 0]]
    found = scored_entities(probabilities, TagSet.make(names, "BIOES"))
    assert [(each["start"], each["end"]) for each in found] == [(0, 2), (2, 3), (3, 4)]
