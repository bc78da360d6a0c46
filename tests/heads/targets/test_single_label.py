"""One label per example: the loss of torch, the metrics of scikit-learn, readable predictions.

Also the functions that all kinds of target share. Tolerance 1e-12: both sides compute in float64
on sums of about a hundred terms near 1 and differ by rounding only.
The losses of torch are golden; tests/golden/test_golden.py keeps them true.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sk

from flaxbert.heads.targets import single_label
from flaxbert.metrics.report_lines import report_lines
from tests.heads.targets.slots import SINGLE_LABEL, class_weights
from tests.heads.targets.slots import single_label as batch
from tests.reference import load_golden

TOLERANCE = 1e-12


# --- loss ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", SINGLE_LABEL, ids=str)
def test_loss_equals_torch(x64, case):
    classes, smoothing, weighted = case
    loss, divisor = single_label.loss_sums(
        *map(jnp.asarray, batch(classes=classes)),
        label_smoothing=smoothing,
        class_weights=class_weights(classes, weighted),
    )
    assert loss.dtype == jnp.float64
    total, mean = load_golden("losses")[f"single_label/{case}"]
    assert abs(float(loss) - total) <= TOLERANCE * total
    assert abs(float(loss / divisor) - mean) <= TOLERANCE


def test_loss_of_parts_adds_up(x64):
    # Sums over micro-batches, divided once: never a mean of means.
    logits, labels, weights = map(jnp.asarray, batch())
    options = {"label_smoothing": 0.1, "class_weights": (0.5, 1.0, 3.0)}
    whole = single_label.loss_sums(logits, labels, weights, **options)
    parts = [
        single_label.loss_sums(*(array[i] for array in (logits, labels, weights)), **options)
        for i in range(2)
    ]
    for total, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        np.testing.assert_allclose(total, sum(pieces), rtol=TOLERANCE)


def test_empty_slots_have_no_gradient(x64):
    logits, labels, weights = map(jnp.asarray, batch())
    gradient = jax.grad(
        lambda x: single_label.loss_sums(x, labels, weights, label_smoothing=0.1)[0]
    )(logits)
    assert not np.any(gradient[weights == 0])
    assert np.all(np.any(gradient[weights == 1] != 0, axis=-1))
    loss, divisor = single_label.loss_sums(logits, labels, jnp.zeros_like(weights))
    assert float(loss) == float(divisor) == 0.0


def test_loss_has_the_dtype_of_the_logits():
    logits, labels, weights = batch()
    arguments = (jnp.asarray(labels), jnp.asarray(weights, jnp.float32))
    loss, divisor = single_label.loss_sums(jnp.asarray(logits, jnp.float32), *arguments)
    assert loss.dtype == divisor.dtype == jnp.float32


# --- encode, metrics, readable ------------------------------------------------------------------


def test_encode():
    ids = single_label.encode(["b", "a", "c", "b"], ("a", "b", "c"))
    assert ids.tolist() == [1, 0, 2, 1]
    assert ids.dtype == np.int32
    assert single_label.encode([], ("a", "b")).shape == (0,)
    with pytest.raises(KeyError):
        single_label.encode(["d"], ("a", "b", "c"))


@pytest.mark.parametrize("classes", [2, 3, 6])
@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_scikit_learn(classes, seed):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, 97).astype(np.int32)
    logits = generator.normal(size=(97, classes)).astype(np.float32)
    logits[np.arange(97), labels] += 1
    found = single_label.metrics(logits, labels)
    predicted = logits.argmax(-1)
    average = {"average": "binary"} if classes == 2 else {"average": "macro"}
    two = {"combined_score"} if classes == 2 else set()
    assert found.keys() == {"accuracy", "f1", "matthews_correlation"} | two
    if two:
        assert found["combined_score"] == (found["accuracy"] + found["f1"]) / 2
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted), abs=TOLERANCE)
    expected = sk.f1_score(labels, predicted, zero_division=0, **average)
    assert found["f1"] == pytest.approx(expected, abs=TOLERANCE)
    expected = sk.matthews_corrcoef(labels, predicted)
    assert found["matthews_correlation"] == pytest.approx(expected, abs=TOLERANCE)
    assert single_label.MAIN_METRIC in found


def test_f1_of_two_classes_is_that_of_class_1():
    logits = np.eye(2)[[0, 0, 0, 1, 0]]
    found = single_label.metrics(logits, np.array([0, 0, 0, 1, 1], np.int32))
    assert found["f1"] == pytest.approx(2 / 3, abs=TOLERANCE)  # class 0: 6/7
    absent = single_label.metrics(np.eye(2)[[0, 0]], np.array([0, 0], np.int32))
    expected = {"accuracy": 1.0, "f1": 0.0, "matthews_correlation": 0.0, "combined_score": 0.5}
    assert absent == expected


def test_readable():
    logits = np.log(np.array([[0.2, 0.7, 0.1], [0.5, 0.25, 0.25]]))
    first, second = single_label.readable(logits, ("a", "b", "c"))
    assert first["label"] == "b"
    assert first["score"] == first["probabilities"]["b"] == pytest.approx(0.7, abs=TOLERANCE)
    assert list(first["probabilities"]) == ["a", "b", "c"]
    assert sum(first["probabilities"].values()) == pytest.approx(1, abs=TOLERANCE)
    assert (second["label"], type(second["score"])) == ("a", float)
    with np.errstate(over="raise"):
        (extreme,) = single_label.readable(np.array([[1e4, -1e4]], np.float32), ("a", "b"))
    assert extreme["probabilities"] == {"a": 1.0, "b": 0.0}
    assert single_label.readable(np.zeros((0, 2)), ("a", "b")) == []


def test_report_equals_scikit_learn():
    from sklearn.metrics import classification_report, confusion_matrix

    random = np.random.default_rng(5)
    names = ["bad", "fair", "good", "never"]  # the last one neither occurs nor is predicted
    labels = random.integers(0, 3, 200)
    logits = random.normal(size=(200, 4)) + 2 * np.eye(4)[labels]
    logits[:, 3] = -9
    report = single_label.report(logits, labels, names)
    predicted = logits.argmax(axis=-1)
    expected = classification_report(
        labels, predicted, labels=range(4), target_names=names, output_dict=True, zero_division=0
    )
    for name in names:
        theirs = {key.replace("-score", ""): value for key, value in expected[name].items()}
        assert report["labels"][name] == pytest.approx(theirs, abs=1e-12)
    for mean in ("macro", "weighted"):
        for score in ("precision", "recall", "f1"):
            key = "f1-score" if score == "f1" else score
            assert report[mean][score] == pytest.approx(expected[f"{mean} avg"][key], abs=1e-12)
    matrix = confusion_matrix(labels, predicted, labels=range(4)).tolist()
    assert report["confusion_matrix"] == {"labels": names, "counts": matrix}


def test_report_lines_are_aligned():
    logits = np.eye(2)[[0, 1, 1, 0]]
    report = single_label.report(logits, np.array([0, 1, 0, 0]), ["negative", "+"])
    assert report_lines(report) == [
        "label       precision  recall      f1  support",
        "negative       1.0000  0.6667  0.8000        3",
        "+              0.5000  1.0000  0.6667        1",
        "(macro)        0.7500  0.8333  0.7333",
        "(weighted)     0.8750  0.7500  0.7667",
        "",
        "actual \\ predicted  negative  +",
        "negative                   2  1",
        "+                          0  1",
    ]


def test_combined_score_is_for_two_classes():
    logits = np.eye(2)[[0, 1, 1, 0]]
    two = single_label.metrics(logits, np.array([0, 1, 0, 0]))
    assert two["combined_score"] == (two["accuracy"] + two["f1"]) / 2 == (0.75 + 2 / 3) / 2
    assert "combined_score" not in single_label.metrics(np.eye(3), np.arange(3))
