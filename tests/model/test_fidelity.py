"""The same function as PyTorch BERT: semantics in float64, arithmetic in float32.

Tolerances are those of the design: in float64 two correct programs differ by rounding only (1e-12
on values near 1); in float32 PyTorch itself differs from its own float64 by 1e-6 to 6e-6, so ours
may err at most twice as much as PyTorch's own float32 does, plus half a unit of 1e-6.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch, the reference, is pinned for Python 3.11")

from flaxbert.classifier import FlaxBertForSequenceClassification  # noqa: E402
from flaxbert.model.heads import bind  # noqa: E402
from flaxbert.tasks import task_for  # noqa: E402
from flaxbert.weights.table import entries, flatten  # noqa: E402
from tests.reference import (  # noqa: E402
    GRID,
    arrays_of,
    our_config,
    our_params,
    round_to_float32,
    sentences,
    torch_model,
)

LENGTHS = [3, 17, 9, 30, 1]


def _reference(model, batch, dtype):
    """Returns (hidden states, logits, gradients by name) of PyTorch in a dtype."""
    model = model.to(dtype)
    model.zero_grad()
    out = model(**batch.torch(), output_hidden_states=True)
    if model.config.num_labels == 1:
        loss = torch.nn.functional.mse_loss(out.logits[:, 0], torch.tensor(batch.labels).to(dtype))
    else:
        loss = torch.nn.functional.cross_entropy(out.logits, torch.tensor(batch.labels).long())
    loss.backward()
    gradients = {name: p.grad.double().numpy().copy() for name, p in model.named_parameters()}
    states = [state.detach().double().numpy() for state in out.hidden_states]
    return states, out.logits.detach().double().numpy(), gradients


def _ours(config, params, batch, dtype):
    model = FlaxBertForSequenceClassification(config, params, dtype=dtype)
    out = model(
        batch.input_ids, batch.attention_mask, batch.token_type_ids, output_hidden_states=True
    )
    # Without hidden states the last layer is computed at the first tokens only.
    logits = model(batch.input_ids, batch.attention_mask, batch.token_type_ids).logits
    assert np.abs(logits - out.logits).max() <= (1e-12 if dtype == "float64" else 1e-5)
    task = task_for("regression" if config.num_labels == 1 else "single_label")

    def loss(params):
        shape = batch.input_ids.shape
        positions = jnp.broadcast_to(jnp.arange(shape[1]), shape)
        rows = jnp.arange(1, shape[0] + 1)[:, None]
        logits = bind(config, params, dtype)(
            batch.input_ids,
            batch.token_type_ids,
            positions,
            rows * batch.attention_mask,
            jnp.zeros((shape[0], 1), jnp.int32),
        )
        total, normalizer = task.loss_sums(
            logits[:, 0], jnp.asarray(batch.labels), jnp.ones(shape[0], logits.dtype)
        )
        return total / normalizer

    gradients = flatten(jax.jit(jax.grad(loss))(model.params))
    by_name = {
        entry.name: np.asarray(gradients[entry.path]).T
        if entry.transposed
        else np.asarray(gradients[entry.path])
        for entry in entries(config)
    }
    return [np.asarray(s) for s in out.hidden_states], np.asarray(logits), by_name


def _norm(gradients):
    return np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in gradients.values()))


def _global_error(gradients, reference):
    return _norm({name: gradients[name] - reference[name] for name in reference}) / _norm(reference)


@pytest.mark.parametrize("changes", GRID.values(), ids=GRID.keys())
def test_semantics_in_float64(changes, x64):
    model = torch_model(**changes)
    round_to_float32(model)
    config = our_config(model.config)
    batch = sentences(config, LENGTHS)
    params = our_params(model, config)
    states, logits, gradients = _reference(model, batch, torch.float64)
    our_states, our_logits, our_gradients = _ours(config, params, batch, "float64")
    real = batch.attention_mask.astype(bool)
    assert len(our_states) == len(states)
    for ours, theirs in zip(our_states, states, strict=True):
        assert np.abs(ours - theirs)[real].max() <= 1e-12
    assert np.abs(our_logits - logits).max() <= 1e-12
    assert our_gradients.keys() == gradients.keys()
    norm = _norm(gradients)
    for name, theirs in gradients.items():
        assert np.abs(our_gradients[name] - theirs).max() <= 1e-12 * norm, name


@pytest.mark.parametrize("changes", GRID.values(), ids=GRID.keys())
def test_arithmetic_in_float32(changes):
    model = torch_model(**changes)
    round_to_float32(model)
    config = our_config(model.config)
    batch = sentences(config, LENGTHS)
    params = our_params(model, config)
    _compare_float32(model, config, params, batch)


def test_arithmetic_of_the_embedded_checkpoint(minilm):
    from transformers import BertForSequenceClassification

    torch.manual_seed(0)
    model = BertForSequenceClassification.from_pretrained(
        minilm, num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    model = model.eval()
    config = our_config(model.config)
    batch = sentences(config, [12, 30, 7, 21])
    _compare_float32(model, config, our_params(model, config), batch)


def test_semantics_of_the_embedded_checkpoint(minilm, x64):
    from transformers import BertForSequenceClassification

    torch.manual_seed(0)
    model = BertForSequenceClassification.from_pretrained(minilm, num_labels=2).eval()
    config = our_config(model.config)
    batch = sentences(config, [12, 30, 7, 21])
    params = our_params(model, config)
    states, logits, gradients = _reference(model, batch, torch.float64)
    our_states, our_logits, our_gradients = _ours(config, params, batch, "float64")
    real = batch.attention_mask.astype(bool)
    for ours, theirs in zip(our_states, states, strict=True):
        assert np.abs(ours - theirs)[real].max() <= 1e-12
    assert np.abs(our_logits - logits).max() <= 1e-12
    norm = _norm(gradients)
    for name, theirs in gradients.items():
        assert np.abs(our_gradients[name] - theirs).max() <= 1e-12 * norm, name


def _compare_float32(model, config, params, batch):
    """Our float32 error against PyTorch's float64 <= 2 x PyTorch's own float32 error + 5e-7."""
    exact_states, exact_logits, exact_gradients = _reference(model, batch, torch.float64)
    states, logits, gradients = _reference(model, batch, torch.float32)
    our_states, our_logits, our_gradients = _ours(config, params, batch, "float32")
    real = batch.attention_mask.astype(bool)
    for ours, theirs, exact in zip(our_states, states, exact_states, strict=True):
        own_error = np.abs(theirs - exact)[real].max()
        assert np.abs(ours - exact)[real].max() <= 2 * own_error + 5e-7
    own_error = np.abs(logits - exact_logits).max()
    assert np.abs(our_logits - exact_logits).max() <= 2 * own_error + 5e-7
    own_error = _global_error(gradients, exact_gradients)
    assert _global_error(our_gradients, exact_gradients) <= 2 * own_error + 5e-7


def test_padding_row_gets_no_gradient(x64):
    model = torch_model()
    round_to_float32(model)
    config = our_config(model.config)
    batch = sentences(config, [20, 20])
    assert (batch.input_ids == 0).any()
    _, _, gradients = _ours(config, our_params(model, config), batch, "float64")
    assert not gradients["bert.embeddings.word_embeddings.weight"][0].any()


def test_a_wrong_activation_would_be_seen(x64):
    """The tolerances can fail: the tanh form of GELU is off by far more than they allow."""
    model = torch_model()
    round_to_float32(model)
    config = our_config(model.config)
    batch = sentences(config, LENGTHS)
    params = our_params(model, config)
    _, logits, _ = _reference(model, batch, torch.float64)
    wrong, _ = type(config).from_dict({**config.to_dict(), "hidden_act": "gelu_new"})
    _, our_logits, _ = _ours(wrong, params, batch, "float64")
    assert np.abs(our_logits - logits).max() > 1e-9


def test_names_cover_the_whole_pytorch_model():
    model = torch_model()
    config = our_config(model.config)
    assert {e.name: e.shape for e in entries(config)} == {
        name: array.shape for name, array in arrays_of(model).items()
    }
