"""20 AdamW updates of the embedded checkpoint against PyTorch, with warm-up, clipping and decay.

PyTorch's side is its golden file, of which tests/golden/test_golden.py proves that live PyTorch
computes it.
"""

from __future__ import annotations

import jax
import numpy as np
import pytest

from flaxbert.weights.table import entries, flatten
from tests.loop.cases import EMBEDDED_UPDATES, embedded_examples
from tests.loop.harness import means, run
from tests.reference import (
    digest,
    embedded_arrays,
    embedded_config,
    load_golden,
    params_for,
    sample,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def _theirs(dtype: str):
    """Returns PyTorch's losses, and samples of its float64 parameters after them."""
    golden, data = load_golden("embedded_updates"), embedded_examples()
    inputs = digest(embedded_arrays(), data.tokens.input_ids, data.tokens.offsets, data.labels)
    assert str(golden["inputs"]) == inputs, "other inputs than embedded_updates.npz has"
    end = {n.removeprefix("end/"): a for n, a in golden.items() if n.startswith("end/")}
    return golden["losses" if dtype == "float64" else "float32_losses"], end


def _ours(dtype: str):
    config = embedded_config()
    params = params_for(config, embedded_arrays())
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    return run(
        embedded_examples(),
        config=config,
        params=params,
        dtype=dtype,
        optim=EMBEDDED_UPDATES,
        batch_size=8,
    )


def test_parameters_in_float64(minilm, x64):
    losses, end = _theirs("float64")
    start = embedded_arrays()
    history, state = _ours("float64")
    assert np.abs(means(history) / losses - 1).max() <= 1e-9
    ours = flatten(jax.device_get(state["params"]))
    for entry in entries(embedded_config()):
        array = ours[entry.path].T if entry.transposed else ours[entry.path]
        difference = np.abs(sample(array) - end[entry.name]).max()
        assert difference <= 1e-5 * EMBEDDED_UPDATES.learning_rate, (entry.name, difference)
        assert np.abs(array - start[entry.name]).max() > 0, f"{entry.name} never moved"


def test_loss_curve_in_float32(minilm):
    losses, _ = _theirs("float32")
    history, _ = _ours("float32")
    assert np.abs(means(history) / losses - 1).max() <= 2e-5
