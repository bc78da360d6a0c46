"""Any number of labels per example: the loss of torch, the metrics of scikit-learn.

Tolerance 1e-12: both sides compute in float64 on sums of about a hundred terms near 1 and differ
by rounding only. The losses of torch are golden; tests/golden/test_golden.py keeps them true.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sk

from flaxbert.heads.targets import multi_label
from flaxbert.metrics.report_lines import report_lines
from tests.heads.targets.slots import MULTI_LABEL, class_weights
from tests.heads.targets.slots import multi_label as batch
from tests.reference import load_golden

TOLERANCE = 1e-12


@pytest.mark.parametrize("case", MULTI_LABEL, ids=str)
def test_loss_equals_torch(x64, case):
    classes, smoothing, weighted = case
    logits, labels, weights = batch(classes=classes)
    loss, divisor = multi_label.loss_sums(
        *map(jnp.asarray, (logits, labels, weights)),
        label_smoothing=smoothing,
        class_weights=class_weights(classes, weighted),
    )
    assert loss.dtype == jnp.float64
    expected = load_golden("losses")[f"multi_label/{case}"]
    assert abs(float(loss / divisor) - expected) <= TOLERANCE
    assert float(divisor) == (weights > 0).sum() * classes


def test_extreme_logits_stay_finite(x64):
    loss, _ = multi_label.loss_sums(jnp.array([[1e4, -1e4]]), jnp.array([[0.0, 1.0]]), jnp.ones(1))
    assert float(loss) == 2e4


def test_empty_slots_have_no_gradient(x64):
    logits, labels, weights = map(jnp.asarray, batch())
    gradient = jax.grad(lambda x: multi_label.loss_sums(x, labels, weights)[0])(logits)
    assert not np.any(gradient[weights == 0])
    assert np.all(gradient[weights == 1] != 0)
    loss, divisor = multi_label.loss_sums(logits, labels, jnp.zeros_like(weights))
    assert float(loss) == float(divisor) == 0.0


def test_encode():
    rows = multi_label.encode([["b", "a"], [], ["c"], ["c", "c"]], ("a", "b", "c"))
    assert rows.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1], [0, 0, 1]]
    assert rows.dtype == np.float32
    assert multi_label.encode([], ("a", "b")).shape == (0, 2)
    with pytest.raises(KeyError):
        multi_label.encode([["d"]], ("a", "b", "c"))


@pytest.mark.parametrize("seed", range(6))
def test_metrics_equal_scikit_learn(seed):
    generator = np.random.default_rng(seed)
    labels = (generator.random((61, 5)) < 0.4).astype(np.float32)
    logits = (generator.normal(size=(61, 5)) + 2 * labels - 1).astype(np.float32)
    if seed == 1:  # a label that nobody has and nobody predicts, and one that everybody has
        labels[:, 0], logits[:, 0] = 0, -1
        labels[:, 1], logits[:, 1] = 1, 1
    found = multi_label.metrics(logits, labels)
    actual, predicted = labels.astype(int), (logits > 0).astype(int)
    expected = {
        "f1": sk.f1_score(actual, predicted, average="micro", zero_division=0),
        "f1_macro": sk.f1_score(actual, predicted, average="macro", zero_division=0),
        "accuracy": sk.accuracy_score(actual, predicted),
    }
    assert found == pytest.approx(expected, abs=TOLERANCE)
    assert multi_label.MAIN_METRIC in found


def test_metrics_without_any_label():
    found = multi_label.metrics(np.full((4, 2), -1.0), np.zeros((4, 2)))
    assert found == {"f1": 0.0, "f1_macro": 0.0, "accuracy": 1.0}


def test_readable():
    probabilities = np.array([[0.9, 0.2, 0.6], [0.1, 0.2, 0.3]])
    logits = np.log(probabilities / (1 - probabilities))
    first, second = multi_label.readable(logits, ("a", "b", "c"))
    assert first["labels"] == ["a", "c"]
    assert second["labels"] == []
    expected = {"a": 0.9, "b": 0.2, "c": 0.6}
    assert first["probabilities"] == pytest.approx(expected, abs=TOLERANCE)
    (half,) = multi_label.readable(np.zeros((1, 1)), ("a",))
    assert half == {"labels": [], "probabilities": {"a": 0.5}}  # above 1/2, as the metrics count


def test_report_equals_scikit_learn():
    from sklearn.metrics import precision_recall_fscore_support

    random = np.random.default_rng(3)
    logits, labels = random.normal(size=(50, 3)), random.integers(0, 2, (50, 3))
    logits[:, 2] = -1  # never predicted
    names = ["a", "b", "c"]
    report = multi_label.report(logits, labels, names)
    scores = ("precision", "recall", "f1", "support")
    each = precision_recall_fscore_support(labels, logits > 0, zero_division=0)
    for name, *values in zip(names, *each, strict=True):
        expected = dict(zip(scores, map(float, values), strict=True))
        assert report["labels"][name] == pytest.approx(expected, abs=1e-12)
    for mean in ("micro", "macro", "weighted"):
        values = precision_recall_fscore_support(labels, logits > 0, average=mean, zero_division=0)
        for score, value in zip(scores[:3], values, strict=False):
            assert report[mean][score] == pytest.approx(float(value), abs=1e-12)
    lines = report_lines(report)
    assert [line.split()[0] for line in lines] == [
        "label", "a", "b", "c", "(micro)", "(macro)", "(weighted)",
    ]  # fmt: skip
