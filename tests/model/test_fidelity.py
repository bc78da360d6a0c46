"""The same function as PyTorch BERT: semantics in float64, arithmetic in float32.

PyTorch's side is what it computed when the golden files were written (every Python line), and live
PyTorch (Python 3.11). Tolerances are those of the design: in float64 two correct programs differ by
rounding only (1e-12 on values near 1); in float32 PyTorch itself differs from its own float64 by
1e-6 to 6e-6, so ours may err at most twice as much as PyTorch's own float32 does, plus half a unit
of 1e-6.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert import FlaxBertForSequenceClassification
from flaxbert.heads import bind, head_named
from flaxbert.model.bert import activation_for
from flaxbert.model.bert_config import ACTIVATIONS, BertConfig
from flaxbert.weights.table import entries, flatten
from tests.reference import (
    DEEP,
    EMBEDDED_LENGTHS,
    GRID,
    LENGTHS,
    NO_TORCH,
    Arrays,
    Outcome,
    Sentences,
    config_for,
    digest,
    embedded_arrays,
    embedded_config,
    float32_errors,
    golden_outcome,
    norm,
    params_for,
    random_arrays,
    sentences,
)

_SHALLOWER = "test_semantics_in_float64, with fewer layers"
SOURCES = ["golden", "live"]
# One worker computes a case for both sources.
NAMES = [pytest.param(name, marks=pytest.mark.xdist_group(f"fidelity, {name}")) for name in GRID]


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    config: BertConfig
    arrays: Arrays
    batch: Sentences

    def golden(self, file: str, name: str) -> tuple[Outcome, np.ndarray]:
        inputs = digest(self.arrays, *vars(self.batch).values())
        return golden_outcome(file, name, inputs)

    def live(
        self, counterpart: str = "the case [golden] of the same test"
    ) -> tuple[Outcome, np.ndarray]:
        pytest.importorskip("torch", reason=NO_TORCH + counterpart)
        from tests.torch_reference import outcome_and_errors

        return outcome_and_errors(self.config, self.arrays, self.batch)


@functools.cache
def case_for(name: str) -> Case:
    config = config_for(**(DEEP if name == "deep" else GRID[name]))
    return Case(config, random_arrays(config), sentences(config, LENGTHS))


@functools.cache
def embedded_case() -> Case:
    config = embedded_config()
    return Case(config, embedded_arrays(), sentences(config, EMBEDDED_LENGTHS))


# Each case is computed once for both sources: compiling is most of the time.
@functools.cache
def ours(make: Callable[..., Case], name: tuple[str, ...], dtype: str) -> Outcome:
    return compute(make(*name), dtype)


def compute(case: Case, dtype: str) -> Outcome:
    config, batch = case.config, case.batch
    labels = batch.labels.astype(dtype if config.num_labels == 1 else "int32")
    task = head_named("regression" if config.num_labels == 1 else "single_label")

    @jax.jit  # one program: compiling is most of the time
    def both(params, input_ids, mask, types):
        model = FlaxBertForSequenceClassification(config, params, dtype=dtype)
        out = model(input_ids, mask, types, output_hidden_states=True)

        def loss(params):
            """As a step has it, where the last layer is computed at the first tokens only."""
            rows, length = input_ids.shape
            logits = bind(config, params, dtype)(
                input_ids,
                types,
                jnp.broadcast_to(jnp.arange(length), (rows, length)),
                jnp.arange(1, rows + 1)[:, None] * mask,
                jnp.zeros((rows, 1), jnp.int32),
            )[:, 0]
            total, normalizer = task.loss_sums(logits, labels, jnp.ones(rows, logits.dtype))
            return total / normalizer, logits

        gradients, logits = jax.grad(loss, has_aux=True)(model.params)
        return out, logits, gradients

    params = params_for(config, case.arrays)
    inputs = (batch.input_ids, batch.attention_mask, batch.token_type_ids)
    out, logits, gradients = both(params, *map(jnp.asarray, inputs))
    assert np.abs(logits - out.logits).max() <= (1e-12 if dtype == "float64" else 1e-5)
    gradients = flatten(gradients)
    by_name = {
        entry.name: np.asarray(gradients[entry.path]).T
        if entry.transposed
        else np.asarray(gradients[entry.path])
        for entry in entries(config)
    }
    real = batch.attention_mask.astype(bool)
    return Outcome(
        [np.asarray(state)[real] for state in out.hidden_states], np.asarray(logits), by_name
    )


def compare_float64(ours: Outcome, theirs: Outcome) -> None:
    assert len(ours.states) == len(theirs.states)
    for our, their in zip(ours.states, theirs.states, strict=True):
        assert our.dtype == np.float64
        assert np.abs(our - their).max() <= 1e-12
    assert np.abs(ours.logits - theirs.logits).max() <= 1e-12
    assert ours.gradients.keys() == theirs.gradients.keys()
    for name, their in theirs.gradients.items():
        error = np.abs(ours.gradients[name] - their).max()
        assert error <= 1e-12 * norm(theirs.gradients), name


def compare_float32(ours: Outcome, exact: Outcome, their_errors: np.ndarray) -> None:
    """Our float32 error against PyTorch's float64 <= 2 x PyTorch's own float32 error + 5e-7."""
    assert ours.logits.dtype == np.float32
    errors = float32_errors(ours, exact)
    assert (errors <= 2 * their_errors + 5e-7).all(), (errors, their_errors)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", NAMES)
def test_semantics_in_float64(name, source, x64):
    case = case_for(name)
    theirs, _ = case.golden("grid", name) if source == "golden" else case.live()
    compare_float64(ours(case_for, (name,), "float64"), theirs)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", NAMES)
def test_arithmetic_in_float32(name, source):
    case = case_for(name)
    exact, errors = case.golden("grid", name) if source == "golden" else case.live()
    compare_float32(ours(case_for, (name,), "float32"), exact, errors)


@pytest.mark.slow
def test_twelve_layers_in_float64(x64):
    theirs, _ = case_for("deep").live(_SHALLOWER)
    compare_float64(compute(case_for("deep"), "float64"), theirs)


@pytest.mark.slow
def test_twelve_layers_in_float32():
    compare_float32(compute(case_for("deep"), "float32"), *case_for("deep").live(_SHALLOWER))


# Live PyTorch takes as long as all the rest: the golden file, which is its word, does each time.
EMBEDDED = [
    pytest.param(source, marks=[pytest.mark.slow] * (source == "live")) for source in SOURCES
]


@pytest.mark.xdist_group("fidelity, embedded")
@pytest.mark.parametrize("source", EMBEDDED)
def test_semantics_of_the_embedded_checkpoint(source, minilm, x64):
    """Every element live; from the golden file first tokens and samples of each gradient."""
    found = ours(embedded_case, (), "float64")
    if source == "live":
        return compare_float64(found, embedded_case().live()[0])
    theirs, _ = embedded_case().golden("embedded", "embedded")
    # The global norm of samples would be smaller than that of whole gradients: stricter.
    return compare_float64(found.sampled(EMBEDDED_LENGTHS), theirs)


@pytest.mark.xdist_group("fidelity, embedded")
def test_arithmetic_of_the_embedded_checkpoint(minilm):
    found = ours(embedded_case, (), "float32")
    golden = embedded_case().golden("embedded", "embedded")
    return compare_float32(found.sampled(EMBEDDED_LENGTHS), *golden)


def test_padding_row_gets_no_gradient(x64):
    config = config_for(num_hidden_layers=1)
    case = Case(config, random_arrays(config), sentences(config, [20, 20, 20, 20, 20, 20]))
    assert (case.batch.input_ids == 0).any()
    gradients = compute(case, "float64").gradients
    assert not gradients["bert.embeddings.word_embeddings.weight"][0].any()


def test_a_wrong_activation_would_be_seen(x64):
    """The tolerances can fail: the tanh form of GELU is off by far more than they allow."""
    case = case_for("plain")
    theirs, _ = case.golden("grid", "plain")
    wrong = dataclasses.replace(case.config, hidden_act="gelu_new")
    found = compute(Case(wrong, case.arrays, case.batch), "float64")
    assert np.abs(found.logits - theirs.logits).max() > 1e-9
    with pytest.raises(AssertionError):
        compare_float64(found, theirs)
    with pytest.raises(AssertionError, match="float32"):
        compare_float32(found, theirs, np.zeros(1))


def test_other_inputs_than_the_golden_file_has_are_refused():
    with pytest.raises(AssertionError, match="other inputs than grid"):
        golden_outcome("grid", "plain", digest(np.zeros(1)))


def test_names_cover_the_whole_pytorch_model():
    theirs, _ = case_for("plain").golden("grid", "plain")
    shapes = {name: array.shape for name, array in theirs.gradients.items()}
    assert {e.name: e.shape for e in entries(case_for("plain").config)} == shapes


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_of_transformers(name, x64):
    """The function and its slope, by their names in ACT2FN.

    Golden: the cases of the grid, which have the names that checkpoints use most.
    """
    torch = pytest.importorskip("torch", reason=f"{NO_TORCH}test_semantics_in_float64")
    from transformers.activations import ACT2FN

    values = np.linspace(-14, 14, 4001)  # the kinks of the piecewise ones lie between
    values = values[np.min(np.abs(values[:, None] - [-10, -3, 0, 3, 6, 10]), axis=1) > 1e-4]
    theirs = torch.tensor(values, requires_grad=True)
    expected = ACT2FN[name](theirs)
    expected.sum().backward()
    ours = activation_for(name)
    found, slope = jax.jvp(ours, (jnp.asarray(values),), (jnp.ones(len(values)),))
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(slope, theirs.grad.numpy(), rtol=1e-12, atol=1e-12)


def test_the_activations_that_are_left_out():
    """Those with parameters of their own, and two that no BERT has."""
    pytest.importorskip("torch", reason=f"{NO_TORCH}test_activations_of_transformers")
    from transformers.activations import ACT2CLS

    assert set(ACT2CLS) - set(ACTIVATIONS) == {"laplace", "prelu", "sqrtsoftplus", "xielu"}
