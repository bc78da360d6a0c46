"""Class weights by number, name, file and from the counts."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from flaxbert.data.checks import Labels
from flaxbert.data.class_weights import weights_for
from flaxbert.errors import ConfigError

LABELS = Labels("single_label", ("neg", "a=b", "pos"))


def test_balanced_is_scikit_learn_s():
    counts = {"neg": 7, "a=b": 1, "pos": 4}
    rows = [name for name, count in counts.items() for _ in range(count)]
    expected = compute_class_weight("balanced", classes=np.array(LABELS.names), y=rows)
    found = weights_for(("balanced",), LABELS, counts, 12)
    np.testing.assert_allclose(found, expected, rtol=1e-15)
    assert weights_for(("balanced",), LABELS) == ()  # before anything is counted
    assert weights_for(("balanced",), LABELS, counts | {"pos": 0}, 8)[2] == 1


def test_balanced_for_several_labels_is_negatives_by_positives():
    labels = Labels("multi_label", ("x", "y", "z"))
    counts = {"x": 2, "y": 8, "z": 0}
    assert weights_for(("balanced",), labels, counts, 8) == (3.0, 1e-6, 1.0)


def test_numbers_names_and_files(tmp_path):
    assert weights_for((), LABELS) == ()
    assert weights_for((1, 2, 3), LABELS) == (1.0, 2.0, 3.0)
    for asked in (("pos=2.5", "a=b=3"), ("pos=2.5, a=b=3",)):
        assert weights_for(asked, LABELS) == (1.0, 3.0, 2.5)
    path = tmp_path / "weights.json"
    for content in ([1, 3, 2.5], {"a=b": 3, "pos": 2.5}):
        path.write_text(json.dumps(content))
        assert weights_for((str(path),), LABELS) == (1.0, 3.0, 2.5)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ((1, 2), "expected 3 numbers for the labels 'neg', 'a=b', 'pos', got 2"),
        (("po=2",), "there is no label 'po'. Did you mean 'pos'?"),
        (("balance",), "there is no label 'balance'.* 'balanced', or a .json file"),
        (("neg=0",), "expected positive weights from 1e-06 to 1e\\+06"),
        (("neg=nan",), "got 'nan'"),
        (("neg=much",), "got 'much'"),
        (("neg=1", "neg=2"), "a label is named twice"),
        (("gone.json",), "gone.json cannot be read as JSON: .*No such file"),
    ],
)
def test_weights_that_do_not_fit(asked, said):
    with pytest.raises(ConfigError, match=said):
        weights_for(asked, LABELS)


@pytest.mark.parametrize("content", ["1", "[1, 2]", '{"neg": "x"}', '{"neg": [1]}', "{"])
def test_files_that_do_not_fit(tmp_path, content):
    path = tmp_path / "weights.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match="weights"):
        weights_for((str(path),), LABELS)
