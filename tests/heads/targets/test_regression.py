"""One number per example: the loss of torch, the correlations of SciPy.

Tolerance 1e-12: both sides compute in float64 on sums of about a hundred terms near 1 and differ
by rounding only. The losses of torch are golden; tests/golden/test_golden.py keeps them true.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from flaxbert.errors import ModelFileError
from flaxbert.heads.targets import regression
from flaxbert.metrics.report_lines import report_lines
from flaxbert.model.bert_config import BertConfig
from tests.heads.targets.slots import REGRESSION
from tests.heads.targets.slots import regression as batch
from tests.reference import load_golden

TOLERANCE = 1e-12


@pytest.mark.parametrize("seed", REGRESSION)
def test_loss_equals_torch(x64, seed):
    logits, labels, weights = batch(seed)
    loss, divisor = regression.loss_sums(*map(jnp.asarray, (logits, labels, weights)))
    assert loss.dtype == jnp.float64
    expected = load_golden("losses")[f"regression/{seed}"]
    assert abs(float(loss / divisor) - expected) <= TOLERANCE
    assert float(divisor) == (weights > 0).sum()


def test_empty_slots_have_no_gradient(x64):
    logits, labels, weights = map(jnp.asarray, batch())
    gradient = jax.grad(lambda x: regression.loss_sums(x, labels, weights)[0])(logits)
    assert not np.any(gradient[weights == 0])
    assert np.all(gradient[weights == 1] != 0)


@pytest.mark.parametrize("options", [{"label_smoothing": 0.1}, {"class_weights": (1.0,)}])
def test_options_that_mean_nothing_for_numbers(options):
    with pytest.raises(ValueError, match="do not apply to regression"):
        regression.loss_sums(*map(jnp.asarray, batch()), **options)


def test_encode():
    numbers = regression.encode([1.5, -2.0, 3], ("LABEL_0",))
    assert numbers.tolist() == [1.5, -2.0, 3.0]
    assert numbers.dtype == np.float32
    assert regression.encode([], ("LABEL_0",)).shape == (0,)


@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_scipy(seed):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 11, 83).astype(np.float32) / 2  # with ties, as STS-B
    logits = (labels[:, None] + generator.normal(size=(83, 1))).astype(np.float32)
    found = regression.metrics(logits, labels)
    x, y = logits[:, 0].astype(np.float64), labels.astype(np.float64)
    pearson, spearman = scipy.stats.pearsonr(x, y)[0], scipy.stats.spearmanr(x, y)[0]
    expected = {
        "pearson": pearson,
        "spearmanr": spearman,
        "combined_score": (pearson + spearman) / 2,
        "mse": np.mean((x - y) ** 2),
        "mae": np.mean(np.abs(x - y)),
    }
    assert found == pytest.approx(expected, abs=TOLERANCE)
    assert all(type(value) is float for value in found.values())


def test_a_model_that_answers_the_same_for_everything_has_no_correlation():
    logits = np.full((7, 1), 0.1, np.float32)
    found = regression.metrics(logits, np.arange(7, dtype=np.float32))
    assert all(math.isnan(found[name]) for name in ("pearson", "spearmanr", "combined_score"))
    assert found["mae"] == pytest.approx(np.mean(np.abs(np.arange(7) - np.float64(logits[0, 0]))))


def test_readable():
    found = regression.readable(np.array([[1.5], [-2.0]], np.float32), ("LABEL_0",))
    assert found == [{"value": 1.5}, {"value": -2.0}]
    assert type(found[0]["value"]) is float


def test_report_sums_up_the_errors():
    from sklearn.metrics import r2_score

    random = np.random.default_rng(2)
    labels = random.normal(size=41).astype(np.float32)
    logits = (labels + random.normal(size=41) / 3).astype(np.float32)[:, None]
    report = regression.report(logits, labels, ["x"])
    error = logits[:, 0].astype(np.float64) - labels.astype(np.float64)
    assert report["error"]["mean"] == pytest.approx(error.mean(), abs=1e-12)
    assert report["error"]["std"] == pytest.approx(error.std(), abs=1e-12)
    assert report["absolute_error"]["median"] == pytest.approx(np.median(np.abs(error)), abs=1e-12)
    assert report["target"]["max"] == labels.max()
    assert report["r2"] == pytest.approx(
        r2_score(labels, logits[:, 0]), abs=1e-6
    )  # theirs: float32
    lines = report_lines(report)
    assert lines[0].split() == ["mean", "std", "min", "25", "%", "median", "75", "%", "max"]
    assert lines[-1] == f"r2 {report['r2']:.4f}"
    assert np.isnan(regression.report(logits, np.zeros(41), ["x"])["r2"])


def _config(problem_type=None, activation=None, labels=1):
    names = tuple(f"LABEL_{i}" for i in range(labels))
    return BertConfig(problem_type=problem_type, output_activation=activation, id2label=names)


@pytest.mark.parametrize(
    ("problem_type", "activation", "sigmoid", "assumed"),
    [
        (None, None, True, True),
        ("regression", None, False, False),
        (None, "torch.nn.modules.activation.Sigmoid", True, False),
        (None, "torch.nn.modules.linear.Identity", False, False),
        (None, "torch.nn.Identity", False, False),
        # Said to be a number: transformers' pipeline applies nothing.
        ("regression", "torch.nn.modules.activation.Sigmoid", False, False),
    ],
)
def test_what_the_output_goes_through(problem_type, activation, sigmoid, assumed):
    found, note = regression.activation_for(_config(problem_type, activation))
    logits = np.array([[-30.0], [0.0], [1.5]], np.float32)
    expected = 1 / (1 + np.exp(-logits.astype(np.float64))) if sigmoid else logits
    np.testing.assert_allclose(found(logits), expected, rtol=1e-6)
    assert found(logits).dtype == np.float32
    assert ("sigmoid" in note) == assumed


@pytest.mark.parametrize(
    "name", ["torch.nn.modules.activation.Tanh", "Sigmoid", "mine.Sigmoid", "torch.nnx.Sigmoid", ""]
)
def test_another_activation_is_refused_by_its_name(name):
    with pytest.raises(ModelFileError, match=f"'{name}' as the activation"):
        regression.activation_for(_config(activation=name))


def test_several_numbers_have_names():
    logits = np.array([[1.0, -2.0], [0.5, 3.0]], np.float32)
    assert regression.readable(logits, ("joy", "fear")) == [
        {"values": {"joy": 1.0, "fear": -2.0}},
        {"values": {"joy": 0.5, "fear": 3.0}},
    ]
