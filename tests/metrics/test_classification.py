"""Metrics equal scikit-learn and SciPy, on random arrays and where definitions are delicate.

Tolerance 1e-12: both sides compute in float64 on values near 1 and differ by rounding only.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import scipy.special
import scipy.stats
from sklearn import metrics as sk

from flaxbert.metrics import classification as scores

TOLERANCE = 1e-12


def close(ours: float, theirs: float) -> bool:
    return (math.isnan(ours) and math.isnan(theirs)) or abs(ours - theirs) <= TOLERANCE


def label_arrays() -> list[tuple[str, np.ndarray, np.ndarray, int]]:
    """(name, actual, predicted, classes): random ones and the delicate ones."""
    cases = []
    for seed in range(20):
        generator = np.random.default_rng(seed)
        classes, count = int(generator.integers(2, 8)), int(generator.integers(1, 200))
        actual, noise = generator.integers(0, classes, (2, count))
        predicted = np.where(generator.random(count) < 0.6, actual, noise)
        cases.append((f"random {seed}", actual, predicted, classes))
    by_hand = {
        "all right": ([0, 1, 2], [0, 1, 2], 3),
        "all wrong": ([0, 1, 1], [1, 0, 0], 2),
        "one row": ([1], [1], 2),
        "single class": ([1, 1, 1], [1, 1, 1], 2),
        "class 1 neither present nor predicted": ([0, 0], [0, 0], 2),
        "constant prediction": ([0, 1, 0, 1, 1], [1, 1, 1, 1, 1], 2),
        "constant truth": ([0, 0, 0], [0, 1, 0], 2),
        "absent class": ([0, 2, 2, 0], [0, 2, 0, 0], 4),
        "class only predicted": ([0, 1, 0], [0, 2, 0], 4),
        "class never predicted": ([0, 1, 2], [0, 0, 0], 3),
    }
    for name, (actual, predicted, classes) in by_hand.items():
        cases.append((name, np.array(actual), np.array(predicted), classes))
    return cases


@pytest.fixture(params=label_arrays(), ids=lambda case: case[0])
def labelled(request):
    _, actual, predicted, classes = request.param
    return actual, predicted, classes, scores.confusion_matrix(actual, predicted, classes)


def test_confusion_matrix(labelled):
    actual, predicted, classes, confusion = labelled
    expected = sk.confusion_matrix(actual, predicted, labels=range(classes))
    np.testing.assert_array_equal(confusion, expected)


def test_confusion_matrix_of_int32_labels_and_no_rows():
    labels = np.array([2, 0], np.int32)
    assert scores.confusion_matrix(labels, labels, 3).tolist() == [[1, 0, 0], [0] * 3, [0, 0, 1]]
    none = np.zeros(0, np.int32)
    assert scores.confusion_matrix(none, none, 2).tolist() == [[0, 0], [0, 0]]


def test_accuracy(labelled):
    actual, predicted, _, confusion = labelled
    assert close(scores.accuracy(confusion), sk.accuracy_score(actual, predicted))


def test_f1(labelled):
    actual, predicted, classes, confusion = labelled
    ours = scores.f1_per_class(confusion)
    theirs = sk.f1_score(actual, predicted, labels=range(classes), average=None, zero_division=0)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)
    macro = sk.f1_score(actual, predicted, average="macro", zero_division=0)
    assert close(scores.mean_of_present(ours, confusion), macro)


def test_matthews(labelled):
    actual, predicted, _, confusion = labelled
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of a single label
        assert close(scores.matthews(confusion), sk.matthews_corrcoef(actual, predicted))


def test_nothing_to_count():
    empty = np.zeros((3, 3), np.int64)
    assert scores.accuracy(empty) == 0.0
    assert scores.matthews(empty) == 0.0
    assert scores.mean_of_present(scores.f1_per_class(empty), empty) == 0.0
    assert scores.ratio(1, 0) == 0.0
    assert scores.ratio(1, 4) == 0.25


def test_matthews_of_a_large_split():
    # The products of the counts pass 2^63.
    confusion = np.array([[4_000_000_000, 1], [1, 4_000_000_000]])
    assert close(scores.matthews(confusion), 1 - 2 / 4_000_000_001)


# --- correlations -------------------------------------------------------------------------------


def number_arrays() -> list[tuple[str, np.ndarray, np.ndarray]]:
    cases = []
    for seed in range(20):
        generator = np.random.default_rng(seed)
        count = int(generator.integers(2, 200))
        x = generator.normal(size=count) * 10.0 ** generator.integers(-3, 4)
        y = generator.random() * x + generator.normal(size=count)
        cases.append((f"random {seed}", x, y))
        cases.append((f"ties {seed}", np.round(x, 0), generator.integers(0, 5, count) * 1.0))
    by_hand = {
        "two rows": ([1.0, 2.0], [5.0, 3.0]),
        "equal": ([1.0, 2.0, 4.0], [1.0, 2.0, 4.0]),
        "opposite": ([1.0, 2.0, 4.0], [-1.0, -2.0, -4.0]),
        "monotone": ([1.0, 2.0, 3.0, 4.0], [1.0, 10.0, 100.0, 1000.0]),
        "ties": ([1.0, 1.0, 2.0, 2.0, 3.0], [1.0, 2.0, 2.0, 2.0, 0.0]),
        "constant": ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]),
        # The mean of three times 0.1 is not 0.1: the deviations are tiny, but not 0.
        "constant with a rounded mean": ([0.1, 0.1, 0.1], [1.0, 2.0, 3.0]),
        "constant truth with a rounded mean": ([1.0, 2.0, 3.0], [0.1, 0.1, 0.1]),
        "both constant": ([0.1] * 10, [0.3] * 10),
        # The product of both sums of squares would underflow to 0.
        "tiny": ([1e-100, 2e-100, 4e-100], [1e-100, 2e-100, 3e-100]),
        "nan": ([1.0, float("nan"), 3.0], [1.0, 2.0, 4.0]),
        "nan in the truth": ([1.0, 2.0, 4.0], [1.0, float("nan"), 3.0]),
    }
    return cases + [(name, np.array(x), np.array(y)) for name, (x, y) in by_hand.items()]


@pytest.mark.parametrize(("name", "x", "y"), number_arrays(), ids=lambda case: str(case)[:40])
def test_correlations(name, x, y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SciPy warns of constants
        pearson, spearman = scipy.stats.pearsonr(x, y)[0], scipy.stats.spearmanr(x, y)[0]
    assert close(scores.pearson(x, y), pearson)
    assert close(scores.spearman(x, y), spearman)


def test_correlations_of_less_than_two_rows():
    for count in (0, 1):
        assert math.isnan(scores.pearson(np.ones(count), np.ones(count)))
        assert math.isnan(scores.spearman(np.ones(count), np.ones(count)))


# --- sigmoid ------------------------------------------------------------------------------------


def test_sigmoid():
    x = np.concatenate([np.linspace(-50, 50, 1001), [-1e4, 1e4, 0.0, -0.0]])
    with np.errstate(over="raise"):
        np.testing.assert_allclose(scores.sigmoid(x), scipy.special.expit(x), rtol=TOLERANCE)
